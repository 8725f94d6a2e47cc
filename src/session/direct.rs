//! A session on one shard's primary, for migrations, pg_dump, VACUUM and replication: one server of
//! its own, no guard, always audited. Bytes pass through unread but for the headers of messages, and
//! the server is closed at the end, so nothing of it can reach another client.

mod talk;
mod through;

use std::sync::Arc;

use super::Services;
use super::directory::{CancelTarget, Client, Newcomer};
use super::login::Login;
use super::params;
use super::pins::{Pin, Pins};
use super::settle::REFUSAL_TIMEOUT;
use super::timeouts::limit;
use crate::metrics::LoginOutcome;
use crate::net::Buffer;
use crate::pool::{self, Checkout, Want};
use crate::route::{GuardMode, Hospitals, Role, refusals};
use crate::server::login::{ConnectError, Word};
use crate::shard_map::ShardId;
use crate::wire::backend::{self, ErrorReply};
use crate::wire::startup::Replication;
use crate::wire::{TxnStatus, frontend, sqlstate};
use talk::Talk;
use through::{Clock, Side, Through};

/// Why there is no session.
enum Refused {
    Ours(ErrorReply),
    /// By the server, in its own words.
    Servers(Word),
}

impl From<ErrorReply> for Refused {
    fn from(reply: ErrorReply) -> Self {
        Self::Ours(reply)
    }
}

/// Serves a session on one shard to its end.
pub async fn serve(services: Arc<Services>, mut login: Login, peer: Option<std::net::SocketAddr>) {
    let opened = match shard_of(&services, &login) {
        Ok(shard) => open(&services, &login, shard, peer).await,
        Err(refusal) => Err(refusal.into()),
    };
    let (checkout, client) = match opened {
        Ok(opened) => opened,
        Err(refused) => return refuse(&services, login, refused).await,
    };
    services.metrics.on_login(LoginOutcome::Ok);
    let shard = checkout.shard;
    let replication = login.startup.replication.map_or("", Replication::value);
    let user = login.user.name.clone();
    tracing::info!(target: "audit", user, shard = shard.0, replication, "shard session begins");
    let outcome = Box::pin(pass(&services, &mut login, checkout, &client)).await;
    let ok = outcome.is_ok();
    tracing::info!(target: "audit", user, shard = shard.0, replication, ok, "shard session ends");
    // What it wrote, and to which hospitals, nobody knows.
    services.writes.note_all(services.fleet.now());
    services.directory.leave(&client);
}

/// The last word to a client that has no session.
async fn refuse(services: &Services, mut login: Login, refused: Refused) {
    let mut output = Buffer::default();
    match refused {
        Refused::Ours(refusal) => {
            services.metrics.on_refusal(refusal.sqlstate);
            ErrorReply { severity: "FATAL", ..refusal }.encode(output.tail());
        }
        Refused::Servers(word) => word.encode(output.tail()),
    }
    services.metrics.on_login(LoginOutcome::Refused);
    let farewell = login.stream.drain(&mut output);
    drop(tokio::time::timeout(REFUSAL_TIMEOUT, farewell).await);
}

/// The shard that the login addresses. Replication carries the rows of all hospitals: it is for those
/// who may address shards, and for all who may reach every hospital where nothing is guarded.
fn shard_of(services: &Services, login: &Login) -> Result<ShardId, ErrorReply> {
    let map = services.map.peek();
    if let Some(shard) = login.shard {
        let is_known = map.shard(shard).is_some();
        return if is_known { Ok(shard) } else { Err(refusals::unknown_shard()) };
    }
    if login.hospital.is_some() {
        return Err(refusals::replication_of_hospital());
    }
    let rights = &login.user.rights;
    let is_guarded = services.config.load().guard.mode != GuardMode::Route;
    match map.shards() {
        [only] if !is_guarded && rights.hospitals == Hospitals::Any => Ok(only.id),
        _ if rights.shard_access => Err(refusals::replication_of_no_shard()),
        _ => Err(refusals::no_replication()),
    }
}

async fn open(
    services: &Services,
    login: &Login,
    shard: ShardId,
    peer: Option<std::net::SocketAddr>,
) -> Result<(Checkout, Arc<Client>), Refused> {
    let mut checkout = match login.startup.replication {
        Some(kind) => connect(services, login, shard, kind).await?,
        None => borrow(services, login, shard).await?,
    };
    let server = &mut checkout.server;
    let settings = &login.startup.settings;
    let application = settings.iter().find(|(name, _)| name == "application_name");
    let tls = login.stream.tls_version();
    let newcomer = Newcomer {
        user: &login.user.name,
        database: &login.startup.database,
        application: application.map_or("", |(_, value)| value),
        peer,
        tls: tls.as_deref(),
        has_long_key: login.has_long_key,
        server_pid: Some(server.pid),
    };
    let client = services.directory.enter(newcomer).ok_or_else(refusals::too_many_clients)?;
    client.on_attach(CancelTarget {
        way: server.way.clone(),
        pid: server.pid,
        key: server.key.clone(),
    });
    if login.startup.replication.is_some() {
        let mut pins = Pins::default();
        pins.insert(Pin::Replication);
        client.set_pins(pins);
        services.metrics.on_pin(Pin::Replication.name());
    }
    Ok((checkout, client))
}

/// A server of the pool, with the settings of the startup.
async fn borrow(
    services: &Services,
    login: &Login,
    shard: ShardId,
) -> Result<Checkout, ErrorReply> {
    let pools = services.pools.of_user(&login.user.server);
    let want = Want { shard: Some(shard), role: Role::Primary, hospital: None, written_at: 1 };
    let mut checkout =
        services.pools.checkout(&pools, want).await.map_err(|error| error.to_reply())?;
    let server = &mut checkout.server;
    // Whatever happens from here on, nobody else gets this server.
    server.is_opaque = true;
    let settings = login.startup.settings.iter().cloned().collect();
    if let Some(sql) = params::replay(&server.settings, &settings) {
        match server.run(&sql).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(refusals::bad_setting("of the startup")),
            Err(_) => return Err(refusals::no_server(shard)),
        }
    }
    Ok(checkout)
}

/// A new server for replication: it begins as one or never is one.
async fn connect(
    services: &Services,
    login: &Login,
    shard: ShardId,
    kind: Replication,
) -> Result<Checkout, Refused> {
    let pools = services.pools.of_user(&login.user.server);
    let mut settings = login.startup.settings.clone();
    settings.push(("replication".to_owned(), kind.value().to_owned()));
    let all = services.config.load().pool.query_wait_timeout;
    let wait = limit(login.user.limits.query_wait_timeout, all);
    services.pools.connect_apart(&pools, shard, &settings, wait).await.map_err(
        |error| match error {
            pool::Error::Connect(_, ConnectError::Refused { word: Some(word), .. }) => {
                Refused::Servers(word)
            }
            // "no pg_hba.conf entry for replication connection ...", most likely: it names whom it is
            // about, and pgward's clients are not told who pgward is there.
            pool::Error::Connect(
                shard,
                ref refused @ ConnectError::Refused { ref sqlstate, .. },
            ) if sqlstate == sqlstate::INVALID_AUTHORIZATION => {
                refusals::no_replication_there(shard, &refused.public_words()).into()
            }
            error => error.to_reply().into(),
        },
    )
}

/// Both directions until either ends.
async fn pass(
    services: &Services,
    login: &mut Login,
    checkout: Checkout,
    client: &Client,
) -> std::io::Result<()> {
    let shard = checkout.shard;
    let (mut server, mut from_server, parameters, _lease) = checkout.server.into_raw();
    let is_replication = login.startup.replication.is_some();
    let mut to_client = Buffer::default();
    let out = to_client.tail();
    backend::write_authentication_ok(out);
    for (name, value) in &parameters {
        // The server of a replication connection has had them in its own startup, and says what it
        // made of them.
        let mut settings = login.startup.settings.iter().filter(|_| !is_replication);
        let sent = settings.find(|(n, _)| n.eq_ignore_ascii_case(name));
        backend::write_parameter_status(out, name, sent.map_or(value, |(_, value)| value));
    }
    backend::write_backend_key_data(out, client.pid, &client.key);
    backend::write_ready_for_query(out, TxnStatus::Idle);
    let mut talk = Talk::new();
    talk.on_server(from_server.as_slice());
    to_client.push(from_server.as_slice());
    from_server.clear();
    let mut to_server = std::mem::take(&mut login.buffer);
    talk.on_client(to_server.as_slice());
    let mut through = Through {
        services,
        user: &login.user,
        handle: client,
        shard,
        is_replication,
        client: Side { stream: &mut login.stream, output: &mut to_client },
        server: Side { stream: &mut server, output: &mut to_server },
        talk,
        clock: Clock::default(),
    };
    let passed = through.run().await;
    // The client may have gone without a word: the server rolls back and ends.
    // Behind what is not written yet, of which a part may be encrypted already.
    frontend::write_terminate(to_server.tail());
    drop(tokio::time::timeout(REFUSAL_TIMEOUT, server.drain(&mut to_server)).await);
    client.on_detach();
    passed
}
