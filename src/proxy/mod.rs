//! Assembles the process: reads the files, builds what sessions share, accepts clients, reloads on
//! SIGHUP, drains on SIGTERM. The only room that knows all the others; it decides nothing.

mod limits;
mod source;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

use crate::admin::{self, Access};
use crate::auth::{Methods, ServerSecret, Users};
use crate::catalog::{self, CatalogStore};
use crate::config::{Config, LogFormat};
use crate::fleet::{Fleet, FleetSettings};
use crate::metrics::{LoginOutcome, Metrics};
use crate::net::{Buffer, Stream};
use crate::pool::{self, Pools};
use crate::route::refusals;
use crate::session::auth_query::AuthQuery;
use crate::session::login::{self, Database, Door, Hello, Login};
use crate::session::lookup::Lookup;
use crate::session::welcome::Greetings;
use crate::session::{Services, direct, statements, welcome};
use crate::shard_map::ShardMap;
use crate::shard_map::source::{self as maps, MapStore, ReloadOutcome};
use crate::sql::Analyzer;
use crate::wire::backend;

/// Connections that the kernel keeps for us while we accept.
const LISTEN_BACKLOG: i32 = 4_096;
/// How long the first clients wait for the shards' catalogs at the start.
const START_WAIT: Duration = Duration::from_secs(3);
/// How long SIGTERM waits for clients to finish.
const DRAIN_WAIT: Duration = Duration::from_secs(60);
/// How long a cancel request may take.
const CANCEL_WAIT: Duration = Duration::from_secs(10);
/// Bytes of the shared prepared statements' texts.
const STATEMENT_BYTES_MAX: usize = 64 << 20;

/// The running process.
pub(crate) struct Proxy {
    services: Arc<Services>,
    path: PathBuf,
    is_listening: AtomicBool,
    connections: AtomicUsize,
    /// Connections that are logging in, by address.
    logins: Mutex<HashMap<IpAddr, usize>>,
    /// One reload at a time.
    reloading: tokio::sync::Mutex<()>,
    logins_ok: std::sync::atomic::AtomicU64,
}

/// The three files, read and valid.
struct Files {
    config: Config,
    map: ShardMap,
    users: Users,
}

impl Files {
    fn load(path: &Path, before: Option<&Users>) -> Result<Self, String> {
        let config = Config::load(path).map_err(|error| error.to_string())?;
        let map = maps::load(&config.shard_map).map_err(|error| error.to_string())?;
        let users = match before {
            Some(users) => users.reload(&config.users, &config.auth),
            None => Users::load(&config.users, &config.auth),
        };
        let users = users.map_err(|error| error.to_string())?;
        if let Some(problem) = users.lookup_problem(&config.auth) {
            return Err(problem);
        }
        let methods = Methods::load(&config.auth).map_err(|error| error.to_string())?;
        Ok(Self { map, users: users.with_methods(methods), config })
    }
}

/// Where users are looked up that are not in the users file, if they are. Its answers so far go with
/// the one before.
fn lookup(
    config: &Config,
    users: &Users,
    fleet: &Arc<Fleet>,
    map: Arc<ShardMap>,
) -> Result<Option<Arc<Lookup>>, String> {
    let auth = &config.auth;
    if auth.auth_user.is_empty() {
        return Ok(None);
    }
    let listed = |name: &str| users.get(name).map(|user| user.server.clone());
    let secret = match auth.user_secret().map_err(|error| error.to_string())? {
        Some(secret) => Some(secret),
        None => listed(&auth.auth_user).and_then(|server| match &server.secret {
            Some(ServerSecret::Plain(secret)) => Some(secret.expose().to_owned()),
            _ => None,
        }),
    };
    let source = AuthQuery::new(config, secret, fleet.clone(), map);
    let kept_for = Duration::from_secs_f64(auth.auth_query_cache_time);
    let server = listed(&auth.auth_query_server_user);
    Ok(Some(Arc::new(Lookup::new(Box::new(source), server, kept_for))))
}

/// Serves until drained. Exit code 1: the files or the address can't be used.
pub fn serve(path: &Path) -> ExitCode {
    let files = match Files::load(path, None) {
        Ok(files) => files,
        Err(problems) => {
            eprintln!("{problems}");
            return ExitCode::from(1);
        }
    };
    start_log(&files.config);
    limits::apply();
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if files.config.listen.worker_threads > 0 {
        builder.worker_threads(files.config.listen.worker_threads);
    }
    let runtime = match builder.enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("pgward can't start its threads: {error}");
            return ExitCode::from(1);
        }
    };
    match runtime.block_on(run(path, files)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("{problem}");
            ExitCode::from(1)
        }
    }
}

fn start_log(config: &Config) {
    let filter = tracing_subscriber::EnvFilter::new(format!(
        "{level},tokio_postgres=error,h2=error,hyper=error",
        level = config.log.level
    ));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A second start in one process (tests) keeps the first log.
    let started = match config.log.format {
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
        LogFormat::Text => builder.with_ansi(false).try_init(),
    };
    drop(started);
}

async fn run(path: &Path, files: Files) -> Result<(), String> {
    let Files { config, map, users } = files;
    let address = SocketAddr::new(config.listen.listen_addr, config.listen.listen_port);
    let listener =
        listen(address).map_err(|error| format!("can't listen on {address}: {error}"))?;
    let metrics_listener = match config.metrics.address {
        Some(address) => Some(
            TcpListener::bind(address)
                .await
                .map_err(|error| format!("can't listen on {address}: {error}"))?,
        ),
        None => None,
    };
    let secret = config.health.probe_secret().map_err(|error| error.to_string())?;
    let fleet = Fleet::new(&map, FleetSettings::new(&config.health, secret));
    let declared = catalog::declared(&map, &config.guard.safe_functions);
    let refresh = Duration::from_secs(config.health.catalog_refresh_s);
    let catalog = CatalogStore::new(fleet.clone(), declared, refresh);
    let pools = Pools::new(pool::Settings::new(&config), &map, fleet.clone());
    let routing = &config.routing;
    let map = MapStore::new(map);
    let lookup = lookup(&config, &users, &fleet, map.current())?;
    let services = Arc::new(Services {
        analyzer: Analyzer::new(routing.cache_bytes_max, routing.cache_text_bytes_max),
        statements: statements::Store::new(STATEMENT_BYTES_MAX),
        greetings: Greetings::default(),
        writes: Default::default(),
        directory: Default::default(),
        metrics: Arc::new(Metrics::new()),
        map,
        lookup: ArcSwapOption::new(lookup),
        users: ArcSwap::from_pointee(users),
        config: ArcSwap::from_pointee(config),
        catalog: catalog.clone(),
        fleet: fleet.clone(),
        pools,
    });
    let proxy = Arc::new(Proxy {
        services,
        path: path.to_owned(),
        is_listening: AtomicBool::new(false),
        connections: AtomicUsize::new(0),
        logins: Mutex::default(),
        reloading: tokio::sync::Mutex::default(),
        logins_ok: Default::default(),
    });
    fleet.start();
    tokio::spawn(catalog.run());
    let warmed = proxy.services.users.load_full();
    tokio::task::spawn_blocking(move || warmed.warm());
    if let Some(listener) = metrics_listener {
        let address = listener.local_addr().ok();
        tracing::info!(address = address.map(|a| a.to_string()), "metrics listen");
        let source: Arc<dyn admin::Source> = proxy.clone();
        tokio::spawn(admin::web::serve(listener, source, std::future::pending()));
    }
    proxy.wait_for_shards().await;
    let address = listener.local_addr().map_err(|error| error.to_string())?;
    tracing::info!(address = address.to_string(), "pgward listens");
    proxy.is_listening.store(true, Ordering::Release);
    proxy.accept_until_drained(listener).await;
    Ok(())
}

fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(LISTEN_BACKLOG)?;
    TcpListener::from_std(socket.into())
}

impl Proxy {
    /// The first clients find names known and hosts judged, if the shards answer soon.
    async fn wait_for_shards(&self) {
        let deadline = Instant::now() + START_WAIT;
        let catalog = &self.services.catalog;
        let is_known = || {
            let snapshot = catalog.current();
            let map = self.services.map.peek();
            map.shards().iter().all(|shard| snapshot.speaks_for(shard.id))
        };
        while !is_known() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn accept_until_drained(self: &Arc<Self>, listener: TcpListener) {
        let signals = (
            signal(SignalKind::hangup()),
            signal(SignalKind::terminate()),
            signal(SignalKind::interrupt()),
        );
        let (Ok(mut hangup), Ok(mut terminate), Ok(mut interrupt)) = signals else {
            tracing::error!("signals can't be received");
            return;
        };
        loop {
            tokio::select! {
                // Signals first: a storm of connections must not keep them waiting.
                biased;
                _ = hangup.recv() => {
                    let proxy = self.clone();
                    tokio::spawn(async move { drop(proxy.reload().await) });
                }
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                accepted = listener.accept() => match accepted {
                    Ok((stream, peer)) => self.accept(stream, peer),
                    Err(error) => {
                        tracing::warn!(%error, "accept failed");
                        // Out of file descriptors, most likely: some will come back.
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                },
            }
        }
        self.is_listening.store(false, Ordering::Release);
        drop(listener);
        tracing::info!(clients = self.services.directory.len(), "draining");
        let drained = self.drain();
        tokio::select! {
            biased;
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = drained => {}
        }
        tracing::info!("pgward ends");
    }

    /// Idle clients are told to go now, the others when their transaction ends.
    async fn drain(&self) {
        let deadline = Instant::now() + DRAIN_WAIT;
        while self.connections.load(Ordering::Acquire) > 0 && Instant::now() < deadline {
            for client in self.services.directory.all() {
                client.kill();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn accept(self: &Arc<Self>, stream: TcpStream, peer: SocketAddr) {
        drop(stream.set_nodelay(true));
        let proxy = self.clone();
        tokio::spawn(async move {
            proxy.connections.fetch_add(1, Ordering::AcqRel);
            let _leaves = Leaves(&proxy.connections);
            // Boxed: the state of a login is large, and a session shall not carry it.
            let Some(login) = Box::pin(proxy.log_in(stream.into(), peer)).await else { return };
            match (login.database, login.shard) {
                (Database::Console, _) => Box::pin(proxy.console(login)).await,
                (Database::Sharded, Some(shard)) => {
                    let services = proxy.services.clone();
                    Box::pin(direct::serve(services, login, shard, Some(peer))).await;
                }
                (Database::Sharded, None) => {
                    let session = Box::pin(proxy.welcome(login, peer)).await;
                    if let Some(session) = session {
                        session.run().await;
                    }
                }
            }
        });
    }

    async fn log_in(&self, stream: Stream, peer: SocketAddr) -> Option<Login> {
        let config = self.services.config.load_full();
        let _login =
            LoginSlot::take(&self.logins, peer.ip(), config.listen.max_logins_per_address)?;
        let is_full = self.connections.load(Ordering::Acquire) > config.listen.max_client_conn;
        let refusal = if is_full {
            Some(refusals::too_many_clients())
        } else if self.is_listening.load(Ordering::Acquire) {
            None
        } else {
            Some(refusals::drained())
        };
        let users = self.services.users.load_full();
        let map = self.services.map.current();
        let lookup = self.services.lookup.load_full();
        let door = Door {
            users: &users,
            lookup: lookup.as_deref(),
            database: &map.database,
            refusal: refusal.map(|r| backend::ErrorReply { severity: "FATAL", ..r }),
        };
        let timeout = Duration::from_secs_f64(config.listen.client_login_timeout);
        match login::hello(stream, &door, Instant::now() + timeout).await {
            Ok(Hello::Login(login)) => Some(login),
            Ok(Hello::Cancel { stream, pid, key }) => {
                self.services.directory.cancel(pid, &key, CANCEL_WAIT).await;
                drop(stream);
                None
            }
            Err(error) => {
                let outcome = match &error {
                    login::Error::Refused(reply) => {
                        self.services.metrics.on_refusal(reply.sqlstate);
                        LoginOutcome::Refused
                    }
                    _ => LoginOutcome::Failed,
                };
                self.services.metrics.on_login(outcome);
                tracing::info!(peer = peer.to_string(), %error, "no login");
                None
            }
        }
    }

    async fn welcome(&self, login: Login, peer: SocketAddr) -> Option<crate::session::Session> {
        let user = login.user.name.clone();
        match welcome::welcome(self.services.clone(), login, Some(peer)).await {
            Ok(session) => {
                self.services.metrics.on_login(LoginOutcome::Ok);
                self.logins_ok.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(peer = peer.to_string(), user, "login");
                Some(session)
            }
            Err((mut stream, refusal)) => {
                self.services.metrics.on_login(LoginOutcome::Failed);
                self.services.metrics.on_refusal(refusal.sqlstate);
                tracing::info!(peer = peer.to_string(), sqlstate = refusal.sqlstate, "no session");
                let mut output = Buffer::default();
                refusal.encode(output.tail());
                let farewell = stream.drain(&mut output);
                drop(tokio::time::timeout(Duration::from_secs(1), farewell).await);
                None
            }
        }
    }

    async fn console(self: &Arc<Self>, login: Login) {
        let Login { mut stream, buffer, user, .. } = login;
        let mut output = Buffer::default();
        // A role of a shard that is called like an admin is none.
        let access = Access::of(&self.services.config.load().admin, &user.name);
        let Some(access) = access.filter(|_| user.is_listed) else {
            let refusal = backend::ErrorReply { severity: "FATAL", ..refusals::console_denied() };
            self.services.metrics.on_refusal(refusal.sqlstate);
            refusal.encode(output.tail());
            drop(tokio::time::timeout(Duration::from_secs(1), stream.drain(&mut output)).await);
            return;
        };
        self.services.metrics.on_login(LoginOutcome::Ok);
        backend::write_authentication_ok(output.tail());
        let pid = rand::random_range(1..i32::MAX);
        let client = admin::console::Client { stream, input: buffer, output, access, pid };
        drop(admin::serve(client, self.clone()).await);
    }

    /// Reads the files again and takes all of them or none.
    async fn reload(&self) -> Result<String, String> {
        let _one = self.reloading.lock().await;
        let services = &self.services;
        let users = services.users.load_full();
        let path = self.path.clone();
        let loaded = tokio::task::spawn_blocking(move || Files::load(&path, Some(&users))).await;
        let outcome = match loaded {
            Ok(Ok(files)) => self.take(files),
            Ok(Err(problems)) => Err(problems),
            Err(_) => Err("reading the files failed".to_owned()),
        };
        match &outcome {
            Ok(what) => tracing::info!(what, "reloaded"),
            Err(why) => tracing::error!(why, "reload refused; the old files keep serving"),
        }
        outcome
    }

    fn take(&self, files: Files) -> Result<String, String> {
        let services = &self.services;
        let Files { config, map, users } = files;
        // The map is the only one of the three that may still be refused.
        let outcome = services.map.publish(map).map_err(|error| error.to_string())?;
        let map = services.map.current();
        services.fleet.apply(&map);
        services.catalog.apply(catalog::declared(&map, &config.guard.safe_functions));
        let lookup = lookup(&config, &users, &services.fleet, map.clone())?;
        let had_credentials = credentials(&services.users.load());
        let is_same_login = had_credentials == credentials(&users);
        services.pools.reload(pool::Settings::new(&config), &map);
        if !is_same_login {
            services.pools.forget_users();
        }
        services.lookup.store(lookup);
        services.users.store(Arc::new(users));
        services.config.store(Arc::new(config));
        Ok(match outcome {
            ReloadOutcome::Unchanged => "config and users; the shard map is unchanged".to_owned(),
            ReloadOutcome::Published { from, to } => {
                format!("config, users and shard map (version {from} to {to})")
            }
        })
    }
}

fn credentials(users: &Users) -> Vec<Arc<crate::auth::ServerCredentials>> {
    let mut all: Vec<_> = users.iter().map(|user| user.server.clone()).collect();
    all.sort_by(|a, b| a.user.cmp(&b.user));
    all.dedup();
    all
}

/// Counts a connection down when its task ends, however it ends.
struct Leaves<'a>(&'a AtomicUsize);

impl Drop for Leaves<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// One of the logins that an address may have under way.
struct LoginSlot<'a> {
    logins: &'a Mutex<HashMap<IpAddr, usize>>,
    address: IpAddr,
}

impl<'a> LoginSlot<'a> {
    fn take(
        logins: &'a Mutex<HashMap<IpAddr, usize>>,
        address: IpAddr,
        max: usize,
    ) -> Option<Self> {
        let mut count = logins.lock().unwrap_or_else(|p| p.into_inner());
        let under_way = count.entry(address).or_default();
        if *under_way >= max {
            return None;
        }
        *under_way += 1;
        Some(Self { logins, address })
    }
}

impl Drop for LoginSlot<'_> {
    fn drop(&mut self) {
        let mut count = self.logins.lock().unwrap_or_else(|p| p.into_inner());
        if let Some(under_way) = count.get_mut(&self.address) {
            *under_way -= 1;
            if *under_way == 0 {
                count.remove(&self.address);
            }
        }
    }
}
