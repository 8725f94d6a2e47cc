//! A session on one shard's primary, for migrations, pg_dump and VACUUM: one server of its own,
//! no guard, always audited. Bytes pass through unread, and the server is closed at the end, so
//! nothing of it can reach another client.

use std::sync::Arc;
use std::task::Poll;

use super::directory::{CancelTarget, Newcomer};
use super::login::Login;
use super::params;
use super::settle::REFUSAL_TIMEOUT;
use super::{Services, directory::Client};
use crate::net::{Buffer, Stream};
use crate::pool::{Checkout, Want};
use crate::route::{Role, refusals};
use crate::shard_map::ShardId;
use crate::wire::TxnStatus;
use crate::wire::backend::{self, ErrorReply};
use crate::wire::frontend;

/// Bytes in flight in one direction.
const FLIGHT_BYTES_MAX: usize = 256 << 10;

/// Serves a session on `shard` to its end.
pub async fn serve(
    services: Arc<Services>,
    mut login: Login,
    shard: ShardId,
    peer: Option<std::net::SocketAddr>,
) {
    let (checkout, client) = match open(&services, &login, shard, peer).await {
        Ok(opened) => opened,
        Err(refusal) => {
            services.metrics.on_refusal(refusal.sqlstate);
            let mut output = Buffer::default();
            ErrorReply { severity: "FATAL", ..refusal }.encode(output.tail());
            let farewell = login.stream.drain(&mut output);
            drop(tokio::time::timeout(REFUSAL_TIMEOUT, farewell).await);
            return;
        }
    };
    tracing::info!(target: "audit", user = login.user.name, shard = shard.0, "shard session begins");
    let outcome = Box::pin(pass(&mut login, checkout, &client)).await;
    tracing::info!(
        target: "audit",
        user = login.user.name,
        shard = shard.0,
        ok = outcome.is_ok(),
        "shard session ends"
    );
    // What it wrote, and to which hospitals, nobody knows.
    services.writes.note_all(services.fleet.now());
    services.directory.leave(&client);
}

async fn open(
    services: &Services,
    login: &Login,
    shard: ShardId,
    peer: Option<std::net::SocketAddr>,
) -> Result<(Checkout, Arc<Client>), ErrorReply> {
    let pools = services.pools.of_user(&login.user.server);
    if services.map.peek().shard(shard).is_none() {
        return Err(refusals::unknown_shard());
    }
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
    let name = settings.get("application_name").map_or("", String::as_str);
    let tls = login.stream.tls_version();
    let newcomer = Newcomer {
        user: &login.user.name,
        database: &login.startup.database,
        application: name,
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
    Ok((checkout, client))
}

/// Both directions until either ends.
async fn pass(login: &mut Login, checkout: Checkout, client: &Client) -> std::io::Result<()> {
    let (mut server, mut from_server, parameters, _lease) = checkout.server.into_raw();
    let mut to_client = Buffer::default();
    let out = to_client.tail();
    backend::write_authentication_ok(out);
    for (name, value) in &parameters {
        let sent = login.startup.settings.iter().find(|(n, _)| n.eq_ignore_ascii_case(name));
        backend::write_parameter_status(out, name, sent.map_or(value, |(_, value)| value));
    }
    backend::write_backend_key_data(out, client.pid, &client.key);
    backend::write_ready_for_query(out, TxnStatus::Idle);
    to_client.push(from_server.as_slice());
    from_server.clear();
    let mut to_server = std::mem::take(&mut login.buffer);
    let stream = &mut login.stream;
    let passed = relay(stream, &mut to_client, &mut server, &mut to_server).await;
    // The client may have gone without a word: the server rolls back and ends.
    // Behind what is not written yet, of which a part may be encrypted already.
    frontend::write_terminate(to_server.tail());
    drop(tokio::time::timeout(REFUSAL_TIMEOUT, server.drain(&mut to_server)).await);
    client.on_detach();
    passed
}

async fn relay(
    client: &mut Stream,
    to_client: &mut Buffer,
    server: &mut Stream,
    to_server: &mut Buffer,
) -> std::io::Result<()> {
    std::future::poll_fn(|cx| {
        loop {
            let mut is_progress = false;
            if !to_client.is_empty()
                && let Poll::Ready(written) = client.poll_drain(cx, to_client)
            {
                written?;
            }
            if !to_server.is_empty()
                && let Poll::Ready(written) = server.poll_drain(cx, to_server)
            {
                written?;
            }
            if to_client.len() < FLIGHT_BYTES_MAX
                && let Poll::Ready(read) = server.poll_fill(cx, to_client)
            {
                if read? == 0 {
                    // What it said last still has to go out.
                    return client.poll_drain(cx, to_client);
                }
                is_progress = true;
            }
            if to_server.len() < FLIGHT_BYTES_MAX
                && let Poll::Ready(read) = client.poll_fill(cx, to_server)
            {
                if read? == 0 {
                    return server.poll_drain(cx, to_server);
                }
                is_progress = true;
            }
            if !is_progress {
                return Poll::Pending;
            }
        }
    })
    .await
}
