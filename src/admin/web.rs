//! `/metrics`, `/healthz` and `/readyz` over HTTP, on an address of their own.
//!
//! The only file that names HTTP. `/healthz` says that the process answers, `/readyz` that it can
//! serve (it listens, and some shard has a primary) with 503 and the reason where it can't. States
//! in `/metrics` are read here, from the same facts as the console's tables.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;

use super::Source;
use super::show::role_name;
use crate::fleet::Standing;
use crate::metrics::Gauge;

type Shared = State<Arc<dyn Source>>;

/// Serves until `shutdown` is done.
pub async fn serve(
    listener: TcpListener,
    source: Arc<dyn Source>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    axum::serve(listener, router(source)).with_graceful_shutdown(shutdown).await
}

fn router(source: Arc<dyn Source>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "alive\n"))
        .route("/readyz", get(readyz))
        .with_state(source)
}

async fn metrics(State(source): Shared) -> impl IntoResponse {
    let text = source.metrics().render(&gauges(&*source));
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text)
}

async fn readyz(State(source): Shared) -> impl IntoResponse {
    match unready(&*source) {
        None => (StatusCode::OK, "ready\n".to_owned()),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")),
    }
}

/// Why new clients should go elsewhere.
fn unready(source: &dyn Source) -> Option<&'static str> {
    if !source.is_listening() {
        Some("not listening")
    } else if !source.fleet().is_any_reachable() {
        Some("no shard has a primary")
    } else {
        None
    }
}

/// States as they are now.
pub fn gauges(source: &dyn Source) -> Vec<Gauge> {
    let mut gauges = Vec::new();
    let mut gauge = |name, labels, value| gauges.push(Gauge { name, labels, value });

    let mut clients = BTreeMap::from([("active", 0u64), ("idle", 0), ("waiting", 0)]);
    for client in source.clients() {
        *clients.entry(client.state).or_default() += 1;
    }
    for (state, count) in clients {
        gauge("pgward_clients", vec![("state", state.to_owned())], count as f64);
    }

    // Pools of several server users on several hosts are one line per shard and role.
    let mut pools: BTreeMap<(u16, &str), [u64; 5]> = BTreeMap::new();
    for pool in source.pools() {
        let sum = pools.entry((pool.shard.0, role_name(pool.role))).or_default();
        for (sum, more) in sum.iter_mut().zip([
            pool.sv_active,
            pool.sv_idle + pool.sv_used,
            pool.sv_login,
            pool.cl_waiting,
        ]) {
            *sum += more;
        }
        sum[4] = sum[4].max(pool.maxwait_us);
    }
    for ((shard, role), [active, idle, login, waiting, maxwait_us]) in pools {
        let labels = |state: Option<&str>| {
            let mut labels = vec![("shard", shard.to_string()), ("role", role.to_owned())];
            labels.extend(state.map(|state| ("state", state.to_owned())));
            labels
        };
        for (state, count) in [("active", active), ("idle", idle), ("login", login)] {
            gauge("pgward_servers", labels(Some(state)), count as f64);
        }
        gauge("pgward_waiting_clients", labels(None), waiting as f64);
        gauge("pgward_wait_seconds_max", labels(None), maxwait_us as f64 / 1e6);
    }

    for shard in source.fleet().shards() {
        let number = shard.id().to_string();
        let has_primary = shard.peek_primary().is_some();
        let labels = vec![("shard", number.clone())];
        gauge("pgward_shard_has_primary", labels, f64::from(u8::from(has_primary)));
        for host in shard.hosts() {
            let labels = vec![("shard", number.clone()), ("host", host.address.to_string())];
            let is_up = host.standing != Standing::Unknown;
            gauge("pgward_host_up", labels.clone(), f64::from(u8::from(is_up)));
            if let Some(ms) = host.lag_ms {
                gauge("pgward_replica_lag_seconds", labels, ms as f64 / 1e3);
            }
        }
    }
    gauge("pgward_shard_map_version", Vec::new(), source.map().version as f64);
    gauge("pgward_catalog_version", Vec::new(), source.catalog_version() as f64);
    gauge("pgward_build_info", vec![("version", env!("CARGO_PKG_VERSION").to_owned())], 1.0);
    gauges
}

#[cfg(test)]
mod tests {
    use super::super::tests::Played;
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn fetch(address: std::net::SocketAddr, path: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn health_is_told_over_http() {
        let played = Arc::new(Played::default());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(serve(listener, played.clone(), std::future::pending()));

        assert!(fetch(address, "/healthz").await.starts_with("HTTP/1.1 200"));
        let text = fetch(address, "/readyz").await;
        assert!(text.starts_with("HTTP/1.1 503") && text.contains("no shard has a primary"));
        played.raise_primary();
        assert!(fetch(address, "/readyz").await.starts_with("HTTP/1.1 200"));
        played.stop_listening();
        assert!(fetch(address, "/readyz").await.contains("not listening"));
        assert!(fetch(address, "/other").await.starts_with("HTTP/1.1 404"));

        let text = fetch(address, "/metrics").await;
        for line in [
            "pgward_clients{state=\"active\"} 1",
            "pgward_clients{state=\"waiting\"} 0",
            "pgward_servers{shard=\"1\",role=\"replica\",state=\"active\"} 2",
            "pgward_waiting_clients{shard=\"1\",role=\"replica\"} 4",
            "pgward_wait_seconds_max{shard=\"1\",role=\"replica\"} 1.5",
            "pgward_shard_has_primary{shard=\"0\"} 1",
            "pgward_shard_has_primary{shard=\"1\"} 0",
            "pgward_host_up{shard=\"0\",host=\"a:5432\"} 1",
            "pgward_shard_map_version 1",
            "pgward_catalog_version 5",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        server.abort();
    }
}
