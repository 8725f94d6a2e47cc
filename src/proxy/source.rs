//! What the console and the web page ask: rows over sessions, pools, map and fleet.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::Proxy;
use crate::admin::{BoxFuture, ClientRow, PoolRow, ServerRow, Source, StatsRow};
use crate::config::Config;
use crate::fleet::Fleet;
use crate::metrics::Metrics;
use crate::route::explain::{explain, refusal_rows};
use crate::route::{Block, Rights, Role, SessionView, TextValues, refuse_text};
use crate::session::directory::State;
use crate::shard_map::ShardMap;
use crate::sql::Context;

fn role_of(host: usize, primary: Option<usize>) -> Role {
    match primary {
        Some(primary) if primary != host => Role::Replica,
        None if host != 0 => Role::Replica,
        _ => Role::Primary,
    }
}

impl Source for Proxy {
    fn pools(&self) -> Vec<PoolRow> {
        let now = Instant::now();
        let database = self.services.map.peek().database.clone();
        let located = self.services.pools.located();
        let rows = located.into_iter().map(|(shard, host, pool)| {
            let load = pool.gate().load(now);
            let counters = pool.counters();
            let borrowed = counters.borrowed.load(Ordering::Relaxed) as u64;
            let open = counters.open.load(Ordering::Relaxed) as u64;
            let state = self.services.fleet.shard(shard.id);
            PoolRow {
                database: database.clone(),
                user: pool.target().user.clone(),
                shard: shard.id,
                address: pool.target().address.clone(),
                role: role_of(host, state.and_then(|s| s.peek_primary())),
                cl_active: borrowed,
                cl_waiting: load.waiting as u64,
                sv_active: borrowed,
                sv_idle: open.saturating_sub(borrowed),
                sv_used: 0,
                sv_login: counters.connecting.load(Ordering::Relaxed) as u64,
                size: pool.limits().size as u64,
                maxwait_us: load.longest_wait_us,
                pool_mode: "transaction",
            }
        });
        rows.collect()
    }

    fn servers(&self) -> Vec<ServerRow> {
        let mut rows = Vec::new();
        for (shard, host, pool) in self.services.pools.located() {
            let state = self.services.fleet.shard(shard.id);
            let role = role_of(host, state.and_then(|s| s.peek_primary()));
            for entry in pool.entries() {
                let client = entry.client.load(Ordering::Relaxed);
                rows.push(ServerRow {
                    id: entry.id,
                    user: pool.target().user.clone(),
                    database: pool.target().database.clone(),
                    shard: shard.id,
                    address: pool.target().address.clone(),
                    role,
                    state: if client == 0 { "idle" } else { "active" },
                    local_port: 0,
                    connect_time: entry.since,
                    request_time: entry.since,
                    close_needed: false,
                    client: (client != 0).then_some(client),
                    remote_pid: entry.pid,
                    prepared_statements: 0,
                    transactions: entry.borrows.load(Ordering::Relaxed),
                    tls: entry.tls.clone().unwrap_or_default(),
                });
            }
        }
        rows
    }

    fn clients(&self) -> Vec<ClientRow> {
        let clients = self.services.directory.all();
        let listen_port = self.services.config.load().listen.listen_port;
        let row = |client: Arc<crate::session::directory::Client>| {
            let state = client.state();
            ClientRow {
                id: client.number,
                user: client.user.to_string(),
                database: client.database.to_string(),
                state: match state {
                    State::Idle => "idle",
                    State::Waiting => "waiting",
                    State::Active(_) => "active",
                },
                ip: client.peer.map(|peer| peer.ip()),
                port: client.peer.map_or(listen_port, |peer| peer.port()),
                tls: client.tls.as_deref().unwrap_or_default().to_owned(),
                connect_time: client.since,
                request_time: client.since,
                wait_us: 0,
                server: match state {
                    State::Active(pid) => u64::try_from(pid).ok(),
                    _ => None,
                },
                shard: None,
                pin: (!client.pins().is_empty()).then(|| client.pins().to_string()),
                application_name: client.application.to_string(),
                prepared_statements: 0,
            }
        };
        clients.into_iter().map(row).collect()
    }

    fn stats(&self) -> StatsRow {
        let totals = self.services.metrics.totals();
        StatsRow {
            server_assignments: totals.transactions,
            transactions: totals.transactions,
            queries: totals.queries,
            transaction_us: totals.held_us,
            query_us: totals.held_us,
            wait_us: totals.wait_us,
            client_logins: self.logins_ok.load(Ordering::Relaxed),
            ..StatsRow::default()
        }
    }

    fn users(&self) -> Vec<String> {
        self.services.users.load().iter().map(|user| user.name.clone()).collect()
    }

    fn map(&self) -> Arc<ShardMap> {
        self.services.map.current()
    }

    fn fleet(&self) -> Arc<Fleet> {
        self.services.fleet.clone()
    }

    fn config(&self) -> Arc<Config> {
        self.services.config.load_full()
    }

    fn metrics(&self) -> Arc<Metrics> {
        self.services.metrics.clone()
    }

    fn catalog_version(&self) -> u64 {
        self.services.catalog.peek().catalog.version
    }

    fn is_listening(&self) -> bool {
        self.is_listening.load(Ordering::Acquire)
    }

    fn reload(&self) -> BoxFuture<'_, Result<String, String>> {
        Box::pin(Proxy::reload(self))
    }

    fn route(&self, text: &str) -> Vec<(String, String)> {
        let snapshot = self.services.catalog.current();
        let context = Context {
            catalog: &snapshot.catalog,
            search_path: "\"$user\", public",
            role: "",
            param_types: &[],
        };
        let rights = Rights::default();
        let config = self.services.config.load();
        let view = SessionView {
            rights: &rights,
            hospital: None,
            transaction: None,
            pinned: None,
            temporary: None,
            block: Block::None,
            guard: config.guard.mode,
        };
        let rows = match self.services.analyzer.analyze(text, &context) {
            Ok(analyzed) => {
                let values = TextValues { lexed: &analyzed.lexed, params: &[] };
                explain(&analyzed.analysis, &values, &view, &self.services.map.peek()).rows
            }
            Err(error) => refusal_rows(&refuse_text(&error)),
        };
        rows.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }
}
