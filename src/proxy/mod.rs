//! Assembles the process: reads the files, builds what sessions share, accepts clients, reloads on
//! SIGHUP, drains on SIGTERM. The only room that knows all the others; it decides nothing.

mod cancels;
mod limits;
mod logins;
mod slots;
mod source;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Waker};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

use crate::admin::{self, Access};
use crate::auth::{Methods, ServerSecret, Users};
use crate::catalog::{self, CatalogStore};
use crate::config::{Config, LogFormat};
use crate::fleet::{Fleet, FleetSettings};
use crate::metrics::{LoginOutcome, Metrics};
use crate::net::tls::{self, Acceptor, ServerTls};
use crate::net::unix::UnixSocket;
use crate::net::{self, Buffer, Stream};
use crate::pool::{self, Pools};
use crate::route::refusals;
use crate::session::auth_query::AuthQuery;
use crate::session::directory::Directory;
use crate::session::login::{self, ClientTls, Database, Door, Hello, Login};
use crate::session::lookup::Lookup;
use crate::session::welcome::Greetings;
use crate::session::{Services, Session, direct, statements, welcome};
use crate::shard_map::ShardMap;
use crate::shard_map::source::{self as maps, MapStore, ReloadOutcome};
use crate::sql::Analyzer;
use crate::wire::backend;
use cancels::Cancels;
use logins::Logins;
use slots::{Most, Slot, Slots};

/// Connections that the kernel keeps for us while we accept.
const LISTEN_BACKLOG: i32 = 4_096;
/// How long the first clients wait for the shards' catalogs at the start.
const START_WAIT: Duration = Duration::from_secs(3);
/// Time for a client to take its last word.
const FAREWELL_WAIT: Duration = Duration::from_secs(1);
/// How long SIGTERM waits for clients to finish.
const DRAIN_WAIT: Duration = Duration::from_secs(60);
/// Bytes of the shared prepared statements' texts.
const STATEMENT_BYTES_MAX: usize = 64 << 20;

/// The running process.
pub(crate) struct Proxy {
    services: Arc<Services>,
    path: PathBuf,
    is_listening: AtomicBool,
    /// Clients that have proven who they are, until their sockets are closed.
    connections: AtomicUsize,
    /// Those of the console.
    consoles: AtomicUsize,
    slots: Arc<Slots>,
    cancels: Cancels,
    /// TLS with clients, if they get it; those who come after a reload get the new one.
    client_tls: ArcSwapOption<ClientTls>,
    /// Connections that are logging in.
    logins: Arc<Logins>,
    /// One reload at a time.
    reloading: tokio::sync::Mutex<()>,
    logins_ok: std::sync::atomic::AtomicU64,
}

/// The files, read and valid.
struct Files {
    config: Config,
    map: ShardMap,
    users: Users,
    client_tls: Option<ClientTls>,
    server_tls: ServerTls,
}

impl Files {
    fn load(path: &Path, before: Option<&Users>) -> Result<Self, String> {
        let config = Config::load(path).map_err(|error| error.to_string())?;
        let map = maps::load(&config.shard_map).map_err(|error| error.to_string())?;
        let users = match before {
            Some(users) => users.reload(&config.users, &config.auth),
            None => Users::load(&config.users, &config.auth),
        };
        let told = |error: tls::Error| error.to_string();
        let client_tls = Acceptor::load(&config.tls).map_err(told)?.map(ClientTls::new);
        let server_tls = ServerTls::load(&config.tls, map.shards()).map_err(told)?;
        let users = users.map_err(|error| error.to_string())?;
        if let Some(problem) = users.lookup_problem(&config.auth) {
            return Err(problem);
        }
        let methods = Methods::load(&config.auth).map_err(|error| error.to_string())?;
        Ok(Self { users: users.with_methods(methods), map, client_tls, server_tls, config })
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
        "{level},tokio_postgres=error,h2=error,hyper=error,rustls=error",
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
    let Files { config, map, users, client_tls, server_tls } = files;
    let server_tls = Arc::new(server_tls);
    let socket = listen_locally(&config).await?;
    let metrics_listener = match config.metrics.address {
        Some(address) => Some(
            TcpListener::bind(address)
                .await
                .map_err(|error| format!("can't listen on {address}: {error}"))?,
        ),
        None => None,
    };
    let peer_listener = match config.listen.peer_address {
        Some(address) => Some(
            TcpListener::bind(address)
                .await
                .map_err(|error| format!("can't listen on {address}: {error}"))?,
        ),
        None => None,
    };
    // The last one: whoever reaches the port (systemd's checks, a script that waits for it) finds the
    // other ways in as well.
    let address = SocketAddr::new(config.listen.listen_addr, config.listen.listen_port);
    let listener = listen(address, config.listen.so_reuseport)
        .map_err(|error| format!("can't listen on {address}: {error}"))?;
    let secret = config.health.probe_secret().map_err(|error| error.to_string())?;
    let fleet = Fleet::new(&map, FleetSettings::new(&config.health, secret));
    fleet.set_tls(server_tls.clone());
    fleet.apply(&map);
    let declared = catalog::declared(&map, &config.guard.safe_functions);
    let refresh = Duration::from_secs(config.health.catalog_refresh_s);
    let catalog = CatalogStore::new(fleet.clone(), declared, refresh);
    let pools = Pools::new(pool::Settings::new(&config, server_tls), &map, fleet.clone());
    let routing = &config.routing;
    let map = MapStore::new(map);
    let lookup = lookup(&config, &users, &fleet, map.current())?;
    let services = Arc::new(Services {
        analyzer: Analyzer::new(routing.cache_bytes_max, routing.cache_text_bytes_max),
        statements: statements::Store::new(STATEMENT_BYTES_MAX),
        greetings: Greetings::default(),
        writes: Default::default(),
        directory: Directory::new(config.listen.peer_id),
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
        consoles: AtomicUsize::new(0),
        slots: Default::default(),
        cancels: Cancels::new(),
        client_tls: ArcSwapOption::from_pointee(client_tls),
        logins: Arc::default(),
        reloading: tokio::sync::Mutex::default(),
        logins_ok: Default::default(),
    });
    fleet.start();
    tokio::spawn(catalog.run());
    tokio::spawn(proxy.services.pools.clone().forget_unused());
    let warmed = proxy.services.users.load_full();
    tokio::task::spawn_blocking(move || warmed.warm());
    if let Some(listener) = metrics_listener {
        let address = listener.local_addr().ok();
        tracing::info!(address = address.map(|a| a.to_string()), "metrics listen");
        let source: Arc<dyn admin::Source> = proxy.clone();
        tokio::spawn(admin::web::serve(listener, source, std::future::pending()));
    }
    if let Some(listener) = peer_listener {
        tokio::spawn(cancels::serve_peers(proxy.clone(), listener));
    }
    proxy.wait_for_shards().await;
    let address = listener.local_addr().map_err(|error| error.to_string())?;
    tracing::info!(address = address.to_string(), "pgward listens");
    proxy.is_listening.store(true, Ordering::Release);
    proxy.accept_until_drained(listener, socket).await;
    Ok(())
}

/// The Unix socket, if there is to be one.
async fn listen_locally(config: &Config) -> Result<Option<UnixSocket>, String> {
    let directory = &config.listen.unix_socket_dir;
    if directory.as_os_str().is_empty() {
        return Ok(None);
    }
    let mode = config.listen.socket_mode().unwrap_or_default();
    let bound = UnixSocket::bind(directory, config.listen.listen_port, mode).await;
    let socket = bound.map_err(|error| {
        format!("can't listen in {} (unix_socket_dir): {error}", directory.display())
    })?;
    tracing::info!(path = socket.path().display().to_string(), "pgward has a socket");
    Ok(Some(socket))
}

/// The next client of the Unix socket; never, where there is none.
async fn accept_locally(socket: Option<&UnixSocket>) -> std::io::Result<Stream> {
    match socket {
        Some(socket) => socket.accept().await.map(Stream::from),
        None => std::future::pending().await,
    }
}

fn listen(address: SocketAddr, is_shared: bool) -> std::io::Result<TcpListener> {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if is_shared {
        socket.set_reuse_port(true)?;
    }
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

    async fn accept_until_drained(
        self: &Arc<Self>,
        listener: TcpListener,
        socket: Option<UnixSocket>,
    ) {
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
                // Those on the same machine next: they are few, and people who look for trouble.
                accepted = accept_locally(socket.as_ref()) => {
                    self.accept(accepted.map(|stream| (stream, None))).await;
                }
                accepted = listener.accept() => {
                    let accepted = accepted.map(|(tcp, peer)| {
                        drop(net::tune(&tcp, (&self.services.config.load().listen).into()));
                        (tcp.into(), Some(peer))
                    });
                    self.accept(accepted).await;
                }
            }
        }
        self.is_listening.store(false, Ordering::Release);
        drop((listener, socket));
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

    async fn accept(self: &Arc<Self>, accepted: std::io::Result<(Stream, Option<SocketAddr>)>) {
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                // Out of file descriptors, most likely: some will come back.
                tokio::time::sleep(Duration::from_millis(50)).await;
                return;
            }
        };
        // Before anything is spent on it: a storm costs an accept and a close each.
        let limits = (&self.services.config.load().listen).into();
        let address = peer.map(|peer| peer.ip());
        let under_way = self.logins.enter(address, limits, std::time::Instant::now());
        let Some(under_way) = under_way else { return self.turn_away(stream) };
        let proxy = self.clone();
        tokio::spawn(async move {
            // Boxed: the state of a login is large, and a session shall not carry it.
            let opened = Box::pin(proxy.open(stream, peer, under_way)).await;
            // The places are given back when all else of it is gone, its socket first of all.
            if let Some((session, _place, _slot)) = opened {
                session.run().await;
            }
        });
    }

    /// Says why, as far as the socket takes it at once, and closes.
    fn turn_away(&self, mut stream: Stream) {
        let refusal = refusals::too_many_logins();
        self.services.metrics.on_refusal(refusal.sqlstate);
        self.services.metrics.on_login(LoginOutcome::Refused);
        let mut output = Buffer::default();
        refusal.encode(output.tail());
        let mut cx = Context::from_waker(Waker::noop());
        let _ = stream.poll_drain(&mut cx, &mut output);
    }

    /// Makes a session of a new connection; what becomes none has ended when this returns.
    async fn open<'p>(
        self: &'p Arc<Self>,
        stream: Stream,
        peer: Option<SocketAddr>,
        under_way: logins::Slot,
    ) -> Option<(Session, Counted<'p>, Slot)> {
        let deadline = Instant::now() + self.login_timeout();
        let login = self.log_in(stream, peer, under_way, deadline).await?;
        let (login, place) = self.let_in(login).await?;
        if login.database == Database::Console {
            let _console = Counted::new(&self.consoles);
            self.console(login).await;
            return None;
        }
        let (login, slot) = self.place(login).await?;
        if login.shard.is_some() || login.startup.replication.is_some() {
            direct::serve(self.services.clone(), login, peer).await;
            return None;
        }
        let session = self.welcome(login, peer, deadline).await?;
        Some((session, place, slot))
    }

    fn login_timeout(&self) -> Duration {
        Duration::from_secs_f64(self.services.config.load().listen.client_login_timeout)
    }

    /// The place of a proven client among those of its database and user; else it has been told.
    async fn place(&self, login: Login) -> Option<(Login, Slot)> {
        let config = self.services.config.load_full();
        let own = login.user.limits.max_user_client_connections;
        let most = Most {
            of_database: config.listen.max_db_client_connections,
            of_user: own.unwrap_or(config.listen.max_user_client_connections),
        };
        match self.slots.take(&login.startup.database, &login.user.name, most) {
            Ok(slot) => Some((login, slot)),
            Err(refusal) => {
                self.services.metrics.on_login(LoginOutcome::Refused);
                self.part(login.stream, refusal).await;
                None
            }
        }
    }

    /// The last word to a client that has no session.
    async fn part(&self, mut stream: Stream, refusal: backend::ErrorReply) {
        self.services.metrics.on_refusal(refusal.sqlstate);
        let mut output = Buffer::default();
        refusal.encode(output.tail());
        drop(tokio::time::timeout(FAREWELL_WAIT, stream.drain(&mut output)).await);
    }

    /// Why nobody gets in now, with `others` who are in. Those who have not proven who they are don't
    /// count: they could keep everybody out.
    fn refusal(&self, others: usize) -> (Option<backend::ErrorReply>, bool) {
        let config = self.services.config.load();
        let is_full = others >= config.listen.max_client_conn;
        let refusal = if is_full {
            Some(refusals::too_many_clients())
        } else if self.is_listening.load(Ordering::Acquire) {
            None
        } else {
            Some(refusals::drained())
        };
        let consoles = self.consoles.load(Ordering::Acquire);
        let is_reserved = is_full && consoles < config.listen.admin_reserved_connections;
        (refusal.map(|r| backend::ErrorReply { severity: "FATAL", ..r }), is_reserved)
    }

    /// Counts a client that has proven who it is, if there is a place still.
    async fn let_in(&self, login: Login) -> Option<(Login, Counted<'_>)> {
        let (place, others) = Counted::and_before(&self.connections);
        match self.refusal(others) {
            (None, _) => Some((login, place)),
            (Some(_), true) if login.database == Database::Console => Some((login, place)),
            (Some(refusal), _) => {
                self.services.metrics.on_login(LoginOutcome::Refused);
                self.part(login.stream, refusal).await;
                None
            }
        }
    }

    async fn log_in(
        &self,
        stream: Stream,
        peer: Option<SocketAddr>,
        under_way: logins::Slot,
        deadline: Instant,
    ) -> Option<Login> {
        let config = self.services.config.load_full();
        let (refusal, is_reserved) = self.refusal(self.connections.load(Ordering::Acquire));
        let users = self.services.users.load_full();
        let map = self.services.map.current();
        let lookup = self.services.lookup.load_full();
        let client_tls = self.client_tls.load_full();
        let door = Door {
            tls: client_tls.as_deref(),
            users: &users,
            lookup: lookup.as_deref(),
            database: &map.database,
            refusal,
            reserved_for: is_reserved.then_some(&config.admin),
        };
        match login::hello(stream, &door, deadline).await {
            Ok(Hello::Login(login)) => Some(login),
            Ok(Hello::Cancel { stream, pid, key }) => {
                // It takes nothing from clients and their logins.
                drop(under_way);
                self.cancels.on_request(&self.services, pid, &key).await;
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
                tracing::info!(peer = shown(peer), %error, "no login");
                None
            }
        }
    }

    async fn welcome(
        &self,
        login: Login,
        peer: Option<SocketAddr>,
        deadline: Instant,
    ) -> Option<Session> {
        let user = login.user.name.clone();
        match welcome::welcome(self.services.clone(), login, peer, deadline).await {
            Ok(session) => {
                self.services.metrics.on_login(LoginOutcome::Ok);
                self.logins_ok.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(peer = shown(peer), user, "login");
                Some(session)
            }
            Err((stream, refusal)) => {
                self.services.metrics.on_login(LoginOutcome::Failed);
                tracing::info!(peer = shown(peer), sqlstate = refusal.sqlstate, "no session");
                self.part(stream, refusal).await;
                None
            }
        }
    }

    async fn console(self: &Arc<Self>, login: Login) {
        let Login { stream, buffer, user, .. } = login;
        // A role of a shard that is called like an admin is none.
        let access = Access::of(&self.services.config.load().admin, &user.name);
        let Some(access) = access.filter(|_| user.is_listed) else {
            let refusal = backend::ErrorReply { severity: "FATAL", ..refusals::console_denied() };
            return self.part(stream, refusal).await;
        };
        self.services.metrics.on_login(LoginOutcome::Ok);
        let mut output = Buffer::default();
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
        let Files { config, map, users, client_tls, server_tls } = files;
        let server_tls = Arc::new(server_tls);
        // The map is the only one of the three that may still be refused.
        let outcome = services.map.publish(map).map_err(|error| error.to_string())?;
        let map = services.map.current();
        services.fleet.set_tls(server_tls.clone());
        services.fleet.apply(&map);
        services.catalog.apply(catalog::declared(&map, &config.guard.safe_functions));
        let lookup = lookup(&config, &users, &services.fleet, map.clone())?;
        let had_credentials = credentials(&services.users.load());
        let is_same_login = had_credentials == credentials(&users);
        services.pools.reload(pool::Settings::new(&config, server_tls), &map);
        self.client_tls.store(client_tls.map(Arc::new));
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

/// A client's address, for the log.
fn shown(peer: Option<SocketAddr>) -> String {
    peer.map_or_else(|| "unix".to_owned(), |peer| peer.to_string())
}

fn credentials(users: &Users) -> Vec<Arc<crate::auth::ServerCredentials>> {
    let mut all: Vec<_> = users.iter().map(|user| user.server.clone()).collect();
    all.sort_by(|a, b| a.user.cmp(&b.user));
    all.dedup();
    all
}

/// One of what is counted; dropping it counts it down, however its task ends.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        Self::and_before(count).0
    }

    /// And how many there were.
    fn and_before(count: &'a AtomicUsize) -> (Self, usize) {
        let before = count.fetch_add(1, Ordering::AcqRel);
        (Self(count), before)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}
