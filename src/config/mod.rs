//! The configuration file: what every key means, its unit and its default.
//!
//! The structs are the reference: `config/reference.toml` is made from their docs and defaults by
//! a test. Parsing and validation are pure; only [`Config::load`] and [`Health::probe_secret`]
//! look at files and the environment. All problems are reported at once, with file, line and
//! column. Names are PgBouncer's where the meaning is (then seconds, fractions allowed); pgward's
//! own keys carry their unit. A [`Config`] that these return can be used without further checks.

mod validate;

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::document::{self, LoadError, Problems};
use crate::route::GuardMode;

pub use validate::WORKER_THREADS_MAX;

/// The whole file, `pgward.toml`.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The shard map's file, relative to this one.
    pub shard_map: PathBuf,
    /// The users file, relative to this one.
    pub users: PathBuf,
    /// Where clients connect.
    pub listen: Listen,
    /// How clients log in.
    pub auth: Auth,
    /// Server connections.
    pub pool: Pool,
    /// Reads, replicas and the analysis cache.
    pub routing: Routing,
    /// What a statement must say.
    pub guard: Guard,
    /// Probing of hosts.
    pub health: Health,
    /// The admin console.
    pub admin: Admin,
    /// `/metrics`, `/healthz`, `/readyz`.
    pub metrics: Metrics,
    /// Logs.
    pub log: Log,
}

/// `[listen]`
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Listen {
    /// IP address to listen on. Beyond loopback, `insecure = true` is needed while TLS is off.
    pub listen_addr: std::net::IpAddr,
    /// TCP port; 0 takes a free one (tests).
    pub listen_port: u16,
    /// Clients that may be connected at once; one more gets 53300.
    pub max_client_conn: usize,
    /// Seconds from connecting to ReadyForQuery; then the connection is dropped.
    pub client_login_timeout: f64,
    /// Connections of one address that may be logging in at once.
    pub max_logins_per_address: usize,
    /// Threads that carry sessions; 0 means one per core.
    pub worker_threads: usize,
    /// Allow clear text or `trust` beyond loopback.
    pub insecure: bool,
    /// Largest message of a client, in bytes.
    pub max_packet_size: usize,
}

/// `[auth]`
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Auth {
    /// How clients prove who they are: `scram-sha-256`, `md5` (SCRAM for users whose stored secret
    /// is a SCRAM verifier), `plain` (the password itself), `cert` (a TLS certificate whose common
    /// name is the user), `trust`, or `hba`: as the rules in `auth_hba_file` say.
    pub auth_type: AuthType,
    /// SCRAM iterations for users whose secret is kept in plain text.
    pub scram_iterations: u32,
    /// For `auth_type = "hba"`: rules as in pg_hba.conf, relative to this file.
    pub auth_hba_file: PathBuf,
    /// Maps as in pg_ident.conf, for rules with `map=`; relative to this file.
    pub auth_ident_file: PathBuf,
    /// Role on the servers that looks up, by `auth_query`, users that the users file does not
    /// have; empty: nobody else may log in. Such users have the least rights.
    pub auth_user: String,
    /// Environment variable that holds the secret of `auth_user`; empty: see the file.
    pub auth_user_secret_env: String,
    /// File that holds it, relative to this one; empty: as the users file has it, else none.
    pub auth_user_secret_file: PathBuf,
    /// Asked with the user's name as `$1`, on the first shard that has a primary, with a search_path
    /// of pg_catalog alone and read-only. Its two columns are the name and the stored secret; no
    /// secret: the user can't log in.
    pub auth_query: String,
    /// Database on that host; empty: the shard's.
    pub auth_dbname: String,
    /// Seconds that an answer of `auth_query` is used again; 0: it is asked at each login. A proof
    /// that fails has it asked again.
    pub auth_query_cache_time: f64,
    /// User of the users file whose `server_user` those users share; empty: each is itself on the
    /// servers, which need the same SCRAM verifier for it on every shard (SCRAM pass-through).
    pub auth_query_server_user: String,
}

/// `[auth] auth_type`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
pub enum AuthType {
    /// No proof: any user of the users file.
    #[serde(rename = "trust")]
    Trust,
    /// The password in clear text.
    #[serde(rename = "plain")]
    Plain,
    /// md5, or SCRAM-SHA-256 where the stored secret is a SCRAM verifier.
    #[serde(rename = "md5")]
    Md5,
    /// SCRAM-SHA-256.
    #[serde(rename = "scram-sha-256")]
    ScramSha256,
    /// A TLS certificate of the user.
    #[serde(rename = "cert")]
    Cert,
    /// By the rules of `auth_hba_file`.
    #[serde(rename = "hba")]
    Hba,
}

/// `[pool]`
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Pool {
    /// When a server goes back to its pool: `session` keeps it until the client leaves (a hospital or the
    /// map must say which shard), `transaction` for a transaction.
    pub pool_mode: PoolMode,
    /// Server connections to the primary of a shard, per server user.
    pub default_pool_size: usize,
    /// Server connections to each replica, per server user; 0 means as `default_pool_size`.
    pub replica_pool_size: usize,
    /// Idle connections that are kept open.
    pub min_pool_size: usize,
    /// Seconds a client may wait for a server; then 57014, and the connection stays. 0: for ever.
    pub query_wait_timeout: f64,
    /// Seconds after which a server connection is closed when it comes back (spread by up to 10 %).
    pub server_lifetime: f64,
    /// Seconds after which an idle server connection is closed.
    pub server_idle_timeout: f64,
    /// Seconds that a connect and login to a server may take.
    pub server_connect_timeout: f64,
    /// Seconds for which a failed connect is remembered and answered at once.
    pub server_login_retry: f64,
    /// Share of a pool that one hospital may hold while others wait, 0 to 1.
    pub max_hospital_share: f64,
    /// Prepared statements kept on each server connection; 0 keeps none beyond its client's.
    pub max_prepared_statements: usize,
    /// Times that a text is parsed without a name before servers keep it as a prepared statement,
    /// which saves them parsing and planning it; 0: never.
    pub server_prepare_threshold: u32,
    /// Prepared statements that one client may hold.
    pub max_client_statements: usize,
    /// Clients that may wait for one pool; one more gets 53300.
    pub max_waiting: usize,
    /// Seconds that the cancel of what runs for a vanished client may take to reach its server.
    pub cancel_wait_timeout: f64,
}

/// `[pool] pool_mode`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PoolMode {
    /// A client keeps its server until it leaves.
    Session,
    /// A client keeps its server for a transaction.
    Transaction,
    /// As `transaction`, and transaction blocks are refused.
    Statement,
}

/// `[routing]`
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Routing {
    /// When a read may use a replica.
    pub consistency: Consistency,
    /// For `bounded`: how far a replica may be behind, in ms; at least 2.5 freshness intervals.
    pub max_replica_lag_ms: u64,
    /// How a replica is chosen among those that are fresh enough.
    pub replica_choice: ReplicaChoice,
    /// Region of this pgward, one of the map's; empty: none. Checked and kept, and without effect as
    /// long as all hosts of a shard are in the shard's region.
    pub region: String,
    /// Bytes of a batch (Parse, Bind, ... before Sync) gathered before its shard is chosen.
    pub batch_bytes_max: usize,
    /// Bytes of the analysis cache.
    pub cache_bytes_max: usize,
    /// Texts over this many bytes are analysed each time.
    pub cache_text_bytes_max: usize,
}

/// `[routing] consistency`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Consistency {
    /// Fresh as of the last write to the hospital through this pgward.
    Hospital,
    /// Fresh as of the session's own last write.
    Session,
    /// At most `max_replica_lag_ms` behind.
    Bounded,
    /// Any replica that answers.
    Eventual,
    /// No replica.
    Primary,
}

/// `[routing] replica_choice`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplicaChoice {
    /// The one with the fewest borrowed connections.
    LeastConnections,
    /// In turn.
    RoundRobin,
    /// A hospital's reads stay on one replica (hashring).
    HospitalAffinity,
}

/// `[guard]`
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Guard {
    /// What a statement on sharded tables must name. `strict`: its hospital, always. `route`: the
    /// session's hospital or a hint will do. (`rls` is not available yet.)
    pub mode: GuardMode,
    /// User functions (`schema.name`) that neither write, nor change settings, nor read another
    /// hospital's rows.
    pub safe_functions: Vec<String>,
}

/// `[health]`
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Health {
    /// Milliseconds between probes of a host.
    pub health_interval_ms: u64,
    /// Milliseconds between freshness samples on shards in use.
    pub freshness_interval_ms: u64,
    /// Milliseconds that a probe may take.
    pub probe_timeout_ms: u64,
    /// Server user of probes and catalog reads.
    pub probe_user: String,
    /// Environment variable that holds the probe user's secret; empty: see the file.
    pub probe_secret_env: String,
    /// File that holds the probe user's secret, relative to this one; empty: it needs none.
    pub probe_secret_file: PathBuf,
    /// Seconds between reads of the shards' catalogs.
    pub catalog_refresh_s: u64,
}

/// `[admin]`
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Admin {
    /// Users who may run every console command.
    pub admin_users: Vec<String>,
    /// Users who may run SHOW.
    pub stats_users: Vec<String>,
}

/// `[metrics]`
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Metrics {
    /// Address of the HTTP server; unset: none. Port 0 takes a free one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<SocketAddr>,
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// `error`, `warn`, `info`, `debug` or `trace`.
    pub level: String,
    /// `json` or `text`.
    pub format: LogFormat,
}

/// `[log] format`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            shard_map: "shard-map.toml".into(),
            users: "users.toml".into(),
            listen: Listen::default(),
            auth: Auth::default(),
            pool: Pool::default(),
            routing: Routing::default(),
            guard: Guard::default(),
            health: Health::default(),
            admin: Admin::default(),
            metrics: Metrics::default(),
            log: Log::default(),
        }
    }
}

impl Default for Listen {
    fn default() -> Self {
        Self {
            listen_addr: std::net::Ipv4Addr::LOCALHOST.into(),
            listen_port: 6432,
            max_client_conn: 10_000,
            client_login_timeout: 60.0,
            max_logins_per_address: 1_000,
            worker_threads: 0,
            insecure: false,
            max_packet_size: 1 << 30,
        }
    }
}

impl Default for Auth {
    fn default() -> Self {
        Self {
            auth_type: AuthType::ScramSha256,
            scram_iterations: 4096,
            auth_hba_file: PathBuf::new(),
            auth_ident_file: PathBuf::new(),
            auth_user: String::new(),
            auth_user_secret_env: String::new(),
            auth_user_secret_file: PathBuf::new(),
            // PgBouncer's, with names qualified.
            auth_query: "SELECT rolname, CASE WHEN rolvaliduntil < pg_catalog.now() THEN NULL \
                         ELSE rolpassword END FROM pg_catalog.pg_authid \
                         WHERE rolname = $1 AND rolcanlogin"
                .into(),
            auth_dbname: String::new(),
            auth_query_cache_time: 5.0,
            auth_query_server_user: String::new(),
        }
    }
}

impl Default for Pool {
    fn default() -> Self {
        Self {
            pool_mode: PoolMode::Transaction,
            default_pool_size: 20,
            replica_pool_size: 0,
            min_pool_size: 0,
            query_wait_timeout: 120.0,
            server_lifetime: 3600.0,
            server_idle_timeout: 600.0,
            server_connect_timeout: 15.0,
            server_login_retry: 1.0,
            max_hospital_share: 0.5,
            max_prepared_statements: 200,
            server_prepare_threshold: 0,
            max_client_statements: 10_000,
            max_waiting: 20_000,
            cancel_wait_timeout: 10.0,
        }
    }
}

impl Default for Routing {
    fn default() -> Self {
        Self {
            consistency: Consistency::Hospital,
            max_replica_lag_ms: 250,
            replica_choice: ReplicaChoice::LeastConnections,
            region: String::new(),
            batch_bytes_max: 1 << 20,
            cache_bytes_max: 64 << 20,
            cache_text_bytes_max: 64 << 10,
        }
    }
}

impl Default for Health {
    fn default() -> Self {
        Self {
            health_interval_ms: 100,
            freshness_interval_ms: 100,
            probe_timeout_ms: 1000,
            probe_user: "pgward".into(),
            probe_secret_env: String::new(),
            probe_secret_file: PathBuf::new(),
            catalog_refresh_s: 30,
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".into(), format: LogFormat::Json }
    }
}

impl Config {
    /// Reads the configuration in `text`; `file` is how problems name it. Paths stay as written.
    pub fn parse(file: &str, text: &str) -> Result<Self, Problems> {
        validate::parse(file, text, |_, _| ())
    }

    /// Reads the configuration in `path`: paths in it are relative to it, and the secrets that it
    /// names must be there.
    pub fn load(path: &Path) -> Result<Self, LoadError> {
        let text = document::read(path)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let file = path.display().to_string();
        Ok(validate::parse(&file, &text, |config, checks| {
            config.resolve(folder);
            if let Err(error) = config.health.probe_secret() {
                checks.secret("health", "probe_secret", &error);
            }
            if let Err(error) = config.auth.user_secret() {
                checks.secret("auth", "auth_user_secret", &error);
            }
        })?)
    }

    fn resolve(&mut self, folder: &Path) {
        let paths = [
            &mut self.shard_map,
            &mut self.users,
            &mut self.health.probe_secret_file,
            &mut self.auth.auth_hba_file,
            &mut self.auth.auth_ident_file,
            &mut self.auth.auth_user_secret_file,
        ];
        for path in paths.into_iter().filter(|path| !path.as_os_str().is_empty()) {
            *path = folder.join(&*path); // an absolute path stays as it is
        }
    }
}

impl Health {
    /// The probe user's secret; `None` where it needs none. The error names what is missing.
    pub fn probe_secret(&self) -> io::Result<Option<String>> {
        secret(&self.probe_secret_env, &self.probe_secret_file)
    }
}

impl Auth {
    /// The secret of `auth_user`, where this section names one. The error names what is missing.
    pub fn user_secret(&self) -> io::Result<Option<String>> {
        secret(&self.auth_user_secret_env, &self.auth_user_secret_file)
    }
}

/// The secret in an environment variable, else in a file; `None` where neither is named.
fn secret(env: &str, file: &Path) -> io::Result<Option<String>> {
    if !env.is_empty() {
        return match std::env::var(env) {
            Ok(secret) if !secret.is_empty() => Ok(Some(secret)),
            _ => Err(io::Error::other(format!("the environment has no secret in {env}"))),
        };
    }
    if file.as_os_str().is_empty() {
        return Ok(None);
    }
    let words = |error| io::Error::other(format!("cannot read {}: {error}", file.display()));
    let text = std::fs::read_to_string(file).map_err(words)?;
    match text.trim_end_matches(['\r', '\n']) {
        "" => Err(io::Error::other(format!("{} is empty", file.display()))),
        secret => Ok(Some(secret.to_owned())),
    }
}

impl Routing {
    /// What is wrong with `region` where the shard map has `regions`.
    pub fn region_problem(&self, regions: &[String]) -> Option<String> {
        let unknown = !self.region.is_empty() && !regions.contains(&self.region);
        unknown.then(|| {
            format!(
                "[routing] region `{}` is not in the shard map, which has: {}",
                self.region,
                regions.join(", ")
            )
        })
    }
}

#[cfg(test)]
mod tests;
