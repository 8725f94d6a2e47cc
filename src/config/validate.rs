//! Text to a [`Config`] that is valid by construction, with all problems at once.
//!
//! serde knows the keys and their types but stops at the first error, so each key is deserialized
//! by itself first. Then come the checks that types can't make.

use std::io;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::Path;

use serde::Deserialize;
use toml::de::{DeTable, DeValue, Deserializer};

use crate::document::{self, Problems, Report, Spanned};
use crate::route::GuardMode;
use crate::shard_map::SslMode;

use super::{
    Auth, AuthType, Config, Consistency, Health, Listen, Pool, Routing, Tls, TlsProtocols,
};

/// Most threads that `worker_threads` may ask for.
pub const WORKER_THREADS_MAX: usize = 1024;
/// About 30 years: what `Duration` and timers surely take.
const SECONDS_MAX: f64 = 1e9;
/// Clients, servers, statements: more is a typing error.
const COUNT_MAX: u64 = 10_000_000;
/// Highest `peer_id`: what process ids have room for.
const PEER_ID_MAX: u16 = 1023;
const BYTES_MAX: u64 = 1 << 40;
const INTERVAL_MS_MAX: u64 = 3_600_000;
/// Postgres's own limit of a message is 1 GB; less than a page carries no statement.
const PACKET_BYTES: RangeInclusive<u64> = 4096..=(1 << 30);
/// Freshness samples cost a query each.
const FRESHNESS_INTERVAL_MS_MIN: u64 = 10;
/// More would make a login take seconds of CPU.
const SCRAM_ITERATIONS: RangeInclusive<u64> = 1..=10_000_000;
/// As Linux has them (`MAX_TCP_KEEPIDLE`, `MAX_TCP_KEEPCNT`).
const KEEPALIVE_SECONDS_MAX: u64 = 32_767;
const KEEPALIVE_PROBES_MAX: u64 = 127;
const LOG_LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];

/// Reads `text`; `more` may change the configuration and check more, before problems are told.
pub(super) fn parse(
    file: &str,
    text: &str,
    more: impl FnOnce(&mut Config, &Checks<'_>),
) -> Result<Config, Problems> {
    let (report, root) = document::parse(file, text)?;
    let good = readable_keys(&report, root.get_ref());
    let mut config = deserialize(good).unwrap_or_else(|error| {
        report.at(&error.span().unwrap_or_default(), error.message());
        Config::default()
    });
    let checks = Checks { report: &report, root: root.get_ref() };
    checks.all(&config);
    more(&mut config, &checks);
    report.finish(config)
}

/// The keys that are known and of the right type; the others are reported.
fn readable_keys<'t>(report: &Report<'_>, root: &DeTable<'t>) -> DeTable<'t> {
    let mut good = DeTable::new();
    for (name, value) in root.iter() {
        let one = |value: DeValue<'t>, span| {
            DeTable::from_iter([(name.clone(), Spanned::new(span, value))])
        };
        let as_section = deserialize(one(DeValue::Table(DeTable::new()), value.span()));
        let DeValue::Table(section) = value.get_ref() else {
            if as_section.is_ok() {
                let message = format!("`{0}` is a section: write [{0}]", name.get_ref());
                report.at(&name.span(), message);
            } else if is_readable(
                report,
                name.get_ref(),
                one(value.get_ref().clone(), value.span()),
            ) {
                good.insert(name.clone(), value.clone());
            }
            continue;
        };
        // Without keys, so that an unknown section is told once.
        if !is_readable(report, name.get_ref(), one(DeValue::Table(DeTable::new()), value.span())) {
            continue;
        }
        let kept = section.iter().filter(|(key, item)| {
            let only = DeTable::from_iter([((*key).clone(), (*item).clone())]);
            is_readable(report, key.get_ref(), one(DeValue::Table(only), value.span()))
        });
        let kept = kept.map(|(key, item)| (key.clone(), item.clone())).collect();
        good.insert(name.clone(), Spanned::new(value.span(), DeValue::Table(kept)));
    }
    good
}

/// Whether `only`, a document with one key, is a configuration.
fn is_readable(report: &Report<'_>, key: &str, only: DeTable<'_>) -> bool {
    let Err(error) = deserialize(only) else { return true };
    let message = match error.message() {
        message if message.starts_with("unknown field") => message.to_owned(),
        message => format!("`{key}`: {message}"),
    };
    report.at(&error.span().unwrap_or_default(), message);
    false
}

fn deserialize(table: DeTable<'_>) -> Result<Config, toml::de::Error> {
    Config::deserialize(Deserializer::from(Spanned::new(0..0, table)))
}

/// The checks that types can't make.
pub(super) struct Checks<'a> {
    report: &'a Report<'a>,
    root: &'a DeTable<'a>,
}

impl Checks<'_> {
    fn all(&self, config: &Config) {
        let files = [("shard_map", &config.shard_map), ("users", &config.users)];
        for (key, _) in files.iter().filter(|(_, path)| path.as_os_str().is_empty()) {
            self.wrong("", key, "names no file");
        }
        self.listen(&config.listen);
        self.auth(&config.auth, &config.tls);
        self.peers(config);
        self.exposure(config);
        self.tls(&config.tls);
        self.pool(&config.pool);
        self.routing(&config.routing, &config.health);
        self.guard(config);
        self.health(&config.health);
        self.names("admin", "admin_users", &config.admin.admin_users);
        self.names("admin", "stats_users", &config.admin.stats_users);
        if !LOG_LEVELS.contains(&config.log.level.as_str()) {
            self.wrong("log", "level", &format!("must be one of {}", LOG_LEVELS.join(", ")));
        }
        let (ip, port) = (config.listen.listen_addr, config.listen.listen_port);
        let is_own = |a: std::net::SocketAddr| a.port() == port && same(a.ip(), ip);
        if port != 0 && config.listen.peer_address.is_some_and(is_own) {
            self.wrong("listen", "peer_address", "is where clients connect: take another port");
        }
        if port != 0 && config.metrics.address.is_some_and(|a| a.port() == port && same(a.ip(), ip))
        {
            self.wrong("metrics", "address", "is where clients connect: take another port");
        }
    }

    fn listen(&self, listen: &Listen) {
        let Listen {
            listen_addr: _,
            listen_port: _,
            so_reuseport: _, // any two may share an address
            peer_address: _, // takes cancels only, which need no secrecy
            peer_id,
            unix_socket_dir: _, // bound or not: only the system knows
            unix_socket_mode,
            max_client_conn,
            admin_reserved_connections,
            max_db_client_connections,
            max_user_client_connections,
            client_login_timeout,
            max_logins_per_address,
            max_logins,
            tcp_keepalive: _,
            tcp_keepidle,
            tcp_keepintvl,
            tcp_keepcnt,
            tcp_user_timeout,
            worker_threads,
            insecure: _, // see `exposure`
            max_packet_size,
        } = listen;
        if listen.socket_mode().is_none() {
            let message = format!("must be octal, such as \"0770\", not \"{unix_socket_mode}\"");
            self.wrong("listen", "unix_socket_mode", &message);
        }
        let ids = 0..=u64::from(PEER_ID_MAX);
        self.within("listen", "peer_id", u64::from(*peer_id), ids);
        self.count("listen", "max_client_conn", *max_client_conn, 1);
        self.count("listen", "admin_reserved_connections", *admin_reserved_connections, 0);
        self.count("listen", "max_db_client_connections", *max_db_client_connections, 0);
        self.count("listen", "max_user_client_connections", *max_user_client_connections, 0);
        self.seconds("listen", "client_login_timeout", *client_login_timeout, Zero::Refused);
        self.count("listen", "max_logins_per_address", *max_logins_per_address, 1);
        self.count("listen", "max_logins", *max_logins, 1);
        if max_logins < max_logins_per_address {
            self.wrong("listen", "max_logins", "must be at least max_logins_per_address");
        }
        // What the system takes; it refuses more, and a connection would go without.
        let probes = [("tcp_keepidle", tcp_keepidle), ("tcp_keepintvl", tcp_keepintvl)];
        for (key, seconds) in probes {
            self.within("listen", key, u64::from(*seconds), 0..=KEEPALIVE_SECONDS_MAX);
        }
        self.within("listen", "tcp_keepcnt", u64::from(*tcp_keepcnt), 0..=KEEPALIVE_PROBES_MAX);
        let timeout = u64::from(*tcp_user_timeout);
        self.within("listen", "tcp_user_timeout", timeout, 0..=i32::MAX as u64);
        let threads = 0..=WORKER_THREADS_MAX as u64;
        self.within("listen", "worker_threads", *worker_threads as u64, threads);
        self.within("listen", "max_packet_size", *max_packet_size as u64, PACKET_BYTES);
    }

    fn auth(&self, auth: &Auth, tls: &Tls) {
        let Auth {
            auth_type,
            scram_iterations,
            auth_hba_file,
            auth_ident_file,
            auth_user,
            auth_user_secret_env,
            auth_user_secret_file,
            auth_query,
            auth_dbname: _, // any name is good
            auth_query_cache_time,
            auth_query_server_user,
        } = auth;
        self.within("auth", "scram_iterations", u64::from(*scram_iterations), SCRAM_ITERATIONS);
        let is_hba = *auth_type == AuthType::Hba;
        let has_rules = !auth_hba_file.as_os_str().is_empty();
        if is_hba && !has_rules {
            self.wrong("auth", "auth_type", "\"hba\" needs the rules of `auth_hba_file`");
        }
        if !is_hba && has_rules {
            let message = "has no effect without `auth_type = \"hba\"`";
            self.wrong("auth", "auth_hba_file", message);
        }
        if *auth_type == AuthType::Cert && tls.client_tls_ca_file.as_os_str().is_empty() {
            let message =
                "\"cert\" needs `client_tls_ca_file` in [tls]: whose certificates are good?";
            self.wrong("auth", "auth_type", message);
        }
        if !has_rules && !auth_ident_file.as_os_str().is_empty() {
            let message = "has no effect without `auth_hba_file`, whose rules name its maps";
            self.wrong("auth", "auth_ident_file", message);
        }
        let has_file = !auth_user_secret_file.as_os_str().is_empty();
        if !auth_user_secret_env.is_empty() && has_file {
            let message = "and `auth_user_secret_env` both name the secret: leave one empty";
            self.wrong("auth", "auth_user_secret_file", message);
        }
        let of_lookup = [
            ("auth_user_secret_env", !auth_user_secret_env.is_empty()),
            ("auth_user_secret_file", has_file),
            ("auth_query_server_user", !auth_query_server_user.is_empty()),
        ];
        for (key, _) in of_lookup.iter().filter(|(_, is_set)| *is_set && auth_user.is_empty()) {
            self.wrong("auth", key, "has no effect without `auth_user`");
        }
        if !auth_query.contains("$1") {
            self.wrong("auth", "auth_query", "must ask for the user named by `$1`");
        }
        self.seconds("auth", "auth_query_cache_time", *auth_query_cache_time, Zero::Fine);
    }

    fn peers(&self, config: &Config) {
        for (at, peer) in config.peer.iter().enumerate() {
            if !(1..=PEER_ID_MAX).contains(&peer.id) {
                self.wrong("", "peer", &format!("has an id that is not 1 to {PEER_ID_MAX}"));
            }
            if config.peer[..at].iter().any(|other| other.id == peer.id) {
                self.wrong("", "peer", &format!("has id {} twice", peer.id));
            }
            if peer.host.is_empty() || peer.port == 0 {
                self.wrong("", "peer", &format!("{} needs a host and a port", peer.id));
            }
        }
        if config.listen.peer_id == 0 && !config.peer.is_empty() {
            self.wrong("", "peer", "needs a `peer_id` in `[listen]`: cancel keys name it");
        }
    }

    /// Beyond loopback, nothing goes in the clear and nobody comes in unproven by oversight.
    fn exposure(&self, config: &Config) {
        let Listen { listen_addr, insecure, .. } = &config.listen;
        if listen_addr.is_loopback() || *insecure {
            return;
        }
        if !config.tls.client_tls_sslmode.is_encrypted() {
            let message = "is beyond loopback, and clients need no TLS: health records would go in \
                           the clear. Say `client_tls_sslmode = \"require\"` in [tls] or, where the \
                           network is trusted, `insecure = true`";
            self.wrong("listen", "listen_addr", message);
        }
        if config.auth.auth_type == AuthType::Trust {
            let message = "is beyond loopback, and `auth_type = \"trust\"` lets anybody in: where \
                           the network is trusted, say `insecure = true`";
            self.wrong("listen", "listen_addr", message);
        }
    }

    /// Which keys need which; whether the files are good is seen where they are read.
    fn tls(&self, tls: &Tls) {
        let Tls {
            client_tls_sslmode,
            client_tls_key_file,
            client_tls_cert_file,
            client_tls_ca_file,
            client_tls_protocols: TlsProtocols::Secure | TlsProtocols::V12 | TlsProtocols::V13,
            server_tls_sslmode,
            server_tls_ca_file,
            server_tls_key_file,
            server_tls_cert_file,
            server_tls_protocols: TlsProtocols::Secure | TlsProtocols::V12 | TlsProtocols::V13,
        } = tls;
        let is_set = |path: &Path| !path.as_os_str().is_empty();
        if *client_tls_sslmode != SslMode::Disable
            && !(is_set(client_tls_key_file) && is_set(client_tls_cert_file))
        {
            let message = "needs `client_tls_key_file` and `client_tls_cert_file`";
            self.wrong("tls", "client_tls_sslmode", message);
        }
        if client_tls_sslmode.is_verified() && !is_set(client_tls_ca_file) {
            let message = "needs `client_tls_ca_file`: whose certificates are good?";
            self.wrong("tls", "client_tls_sslmode", message);
        }
        if server_tls_sslmode.is_verified() && !is_set(server_tls_ca_file) {
            let message = "needs `server_tls_ca_file`: whose certificates are good?";
            self.wrong("tls", "server_tls_sslmode", message);
        }
        if is_set(server_tls_key_file) != is_set(server_tls_cert_file) {
            let message = "and `server_tls_cert_file` belong together";
            self.wrong("tls", "server_tls_key_file", message);
        }
    }

    fn pool(&self, pool: &Pool) {
        let Pool {
            pool_mode: _, // all three are there
            default_pool_size,
            replica_pool_size,
            min_pool_size,
            reserve_pool_size,
            reserve_pool_timeout,
            max_db_connections,
            max_user_connections,
            query_wait_timeout,
            query_wait_notify,
            query_timeout,
            transaction_timeout,
            idle_transaction_timeout,
            client_idle_timeout,
            server_lifetime,
            server_idle_timeout,
            pool_idle_timeout,
            server_connect_timeout,
            server_login_retry,
            max_hospital_share,
            max_prepared_statements,
            server_prepare_threshold: _, // any number is good
            max_client_statements,
            client_statement_bytes_max,
            max_waiting,
            cancel_wait_timeout,
        } = pool;
        self.count("pool", "default_pool_size", *default_pool_size, 1);
        self.count("pool", "replica_pool_size", *replica_pool_size, 0);
        self.count("pool", "min_pool_size", *min_pool_size, 0);
        if min_pool_size > default_pool_size {
            self.wrong("pool", "min_pool_size", "is more than `default_pool_size`");
        }
        self.count("pool", "reserve_pool_size", *reserve_pool_size, 0);
        self.count("pool", "max_db_connections", *max_db_connections, 0);
        self.count("pool", "max_user_connections", *max_user_connections, 0);
        for (key, value) in [
            ("reserve_pool_timeout", reserve_pool_timeout),
            ("query_wait_notify", query_wait_notify),
            ("query_timeout", query_timeout),
            ("transaction_timeout", transaction_timeout),
            ("idle_transaction_timeout", idle_transaction_timeout),
            ("client_idle_timeout", client_idle_timeout),
            ("pool_idle_timeout", pool_idle_timeout),
        ] {
            self.seconds("pool", key, *value, Zero::Fine);
        }
        self.seconds("pool", "query_wait_timeout", *query_wait_timeout, Zero::Fine);
        self.seconds("pool", "server_lifetime", *server_lifetime, Zero::Fine);
        self.seconds("pool", "server_idle_timeout", *server_idle_timeout, Zero::Fine);
        self.seconds("pool", "server_connect_timeout", *server_connect_timeout, Zero::Refused);
        self.seconds("pool", "server_login_retry", *server_login_retry, Zero::Fine);
        self.seconds("pool", "cancel_wait_timeout", *cancel_wait_timeout, Zero::Fine);
        if !(*max_hospital_share > 0.0 && *max_hospital_share <= 1.0) {
            self.wrong("pool", "max_hospital_share", "must be more than 0 and at most 1");
        }
        self.count("pool", "max_prepared_statements", *max_prepared_statements, 0);
        self.count("pool", "max_client_statements", *max_client_statements, 1);
        let bytes_max = *client_statement_bytes_max as u64;
        self.within("pool", "client_statement_bytes_max", bytes_max, 1024..=BYTES_MAX);
        self.count("pool", "max_waiting", *max_waiting, 1);
    }

    fn routing(&self, routing: &Routing, health: &Health) {
        let Routing {
            consistency,
            max_replica_lag_ms,
            replica_choice: _,
            region: _, // against the map: `Routing::region_problem`
            batch_bytes_max,
            cache_bytes_max,
            cache_text_bytes_max,
        } = routing;
        // Answers count for two intervals, and one takes a while to come.
        let enough =
            max_replica_lag_ms.saturating_mul(2) >= health.freshness_interval_ms.saturating_mul(5);
        if *consistency == Consistency::Bounded && !enough {
            let message = "must be at least 2.5 times `freshness_interval_ms`, or no replica is \
                           ever known to be that fresh";
            self.wrong("routing", "max_replica_lag_ms", message);
        }
        self.within("routing", "batch_bytes_max", *batch_bytes_max as u64, 1024..=BYTES_MAX);
        self.within("routing", "cache_bytes_max", *cache_bytes_max as u64, 1..=BYTES_MAX);
        let text_bytes_max = *cache_text_bytes_max as u64;
        self.within("routing", "cache_text_bytes_max", text_bytes_max, 1..=BYTES_MAX);
        if cache_text_bytes_max > cache_bytes_max {
            self.wrong("routing", "cache_text_bytes_max", "is more than `cache_bytes_max`");
        }
    }

    fn guard(&self, config: &Config) {
        if config.guard.mode == GuardMode::Rls {
            let message = "can't be \"rls\" yet: use \"strict\" or \"route\"";
            self.wrong("guard", "mode", message);
        }
        for name in &config.guard.safe_functions {
            let parts: Vec<&str> = name.split('.').collect();
            if parts.len() != 2 || parts.iter().any(|part| part.is_empty()) {
                let message = format!("must name functions as schema.name, not `{name}`");
                self.wrong("guard", "safe_functions", &message);
            }
        }
    }

    fn health(&self, health: &Health) {
        let Health {
            health_interval_ms,
            freshness_interval_ms,
            probe_timeout_ms,
            probe_user,
            probe_secret_env,
            probe_secret_file,
            catalog_refresh_s,
        } = health;
        self.within("health", "health_interval_ms", *health_interval_ms, 1..=INTERVAL_MS_MAX);
        let freshness = FRESHNESS_INTERVAL_MS_MIN..=INTERVAL_MS_MAX;
        self.within("health", "freshness_interval_ms", *freshness_interval_ms, freshness);
        self.within("health", "probe_timeout_ms", *probe_timeout_ms, 1..=INTERVAL_MS_MAX);
        self.within("health", "catalog_refresh_s", *catalog_refresh_s, 1..=SECONDS_MAX as u64);
        if probe_user.is_empty() {
            self.wrong("health", "probe_user", "needs a name");
        }
        if !probe_secret_env.is_empty() && !probe_secret_file.as_os_str().is_empty() {
            let message = "and `probe_secret_env` both name the secret: leave one empty";
            self.wrong("health", "probe_secret_file", message);
        }
    }

    /// The secret that `name` with `_file` or `_env` points to isn't there.
    pub(super) fn secret(&self, section: &str, name: &str, error: &io::Error) {
        let table = self.root.get(section).and_then(|table| table.get_ref().as_table());
        let has = |key: &str| table.is_some_and(|table| table.contains_key(key));
        let (by_file, by_env) = (format!("{name}_file"), format!("{name}_env"));
        let key = if has(&by_file) && !has(&by_env) { by_file } else { by_env };
        self.wrong(section, &key, &format!("is not usable: {error}"));
    }

    fn names(&self, section: &str, key: &str, names: &[String]) {
        if names.iter().any(String::is_empty) {
            self.wrong(section, key, "has an empty name");
        }
    }

    fn count(&self, section: &str, key: &str, value: usize, least: u64) {
        self.within(section, key, value as u64, least..=COUNT_MAX);
    }

    fn within(&self, section: &str, key: &str, value: u64, range: RangeInclusive<u64>) {
        if !range.contains(&value) {
            let (low, high) = range.into_inner();
            self.wrong(section, key, &format!("must be from {low} to {high}, not {value}"));
        }
    }

    fn seconds(&self, section: &str, key: &str, value: f64, zero: Zero) {
        let message = match zero {
            _ if !(0.0..=SECONDS_MAX).contains(&value) => "must be seconds from 0 to 1000000000",
            Zero::Refused if value == 0.0 => "can't be 0: it must end some time",
            _ => return,
        };
        self.wrong(section, key, message);
    }

    /// Reports `key`, where it stands, else where its section does.
    fn wrong(&self, section: &str, key: &str, message: &str) {
        let (table, fallback) = match self.root.get(section) {
            _ if section.is_empty() => (Some(self.root), 0..0),
            Some(found) => (found.get_ref().as_table(), found.span()),
            None => (None, 0..0),
        };
        let span = table.and_then(|table| table.get(key)).map_or(fallback, Spanned::span);
        self.report.at(&span, format!("`{key}` {message}"));
    }
}

/// What 0 means for a time-out.
#[derive(Clone, Copy)]
enum Zero {
    Fine,
    Refused,
}

/// Would they take each other's port?
fn same(a: IpAddr, b: IpAddr) -> bool {
    a == b || a.is_unspecified() || b.is_unspecified()
}
