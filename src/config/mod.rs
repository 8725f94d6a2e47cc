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
use crate::shard_map::SslMode;

pub use validate::WORKER_THREADS_MAX;

/// The whole file, `pgward.toml`.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The shard map's file, relative to this one.
    pub shard_map: PathBuf,
    /// The users file, relative to this one.
    pub users: PathBuf,
    /// Other pgwards behind the same address, which cancels are passed on to: `[[peer]]` with `id`
    /// (its `peer_id`), `host` and `port` (6432). Of all, this one included, each may have the same
    /// list.
    pub peer: Vec<Peer>,
    /// Where clients connect.
    pub listen: Listen,
    /// TLS with clients and with servers. Files are PEM, relative to this one; a reload reads them anew.
    pub tls: Tls,
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
    /// IP address to listen on. Beyond loopback, clients must use TLS (`client_tls_sslmode`) and prove
    /// who they are, or `insecure = true` is needed.
    pub listen_addr: std::net::IpAddr,
    /// TCP port; 0 takes a free one (tests).
    pub listen_port: u16,
    /// Let several pgwards listen on this address and port (SO_REUSEPORT); each needs a `peer_id`
    /// and a `peer_address` of its own, and the others as `[[peer]]`.
    pub so_reuseport: bool,
    /// Address and port that only this pgward listens on, for cancels that its peers pass on; it
    /// takes nothing else there. Unset: they come to `listen_addr`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer_address: Option<SocketAddr>,
    /// Number of this pgward among its peers, 1 to 1023; 0: it has none. Cancel keys carry it.
    pub peer_id: u16,
    /// Directory of a Unix socket, `.s.PGSQL.<listen_port>`, relative to this file; empty: none.
    pub unix_socket_dir: PathBuf,
    /// Who may use the socket: its mode, in octal.
    pub unix_socket_mode: String,
    /// Clients that may be connected at once; one more gets 53300. Each counts until its socket is
    /// closed. Cancel requests are not counted.
    pub max_client_conn: usize,
    /// Consoles that may be open, by those who may use it, although `max_client_conn` is reached.
    pub admin_reserved_connections: usize,
    /// Clients of the database that may be connected at once; 0: as many as there are.
    pub max_db_client_connections: usize,
    /// Clients of one user that may be connected at once, unless the users file has a number of its
    /// own; 0: as many as there are.
    pub max_user_client_connections: usize,
    /// Seconds from connecting to ReadyForQuery; then the connection is dropped.
    pub client_login_timeout: f64,
    /// Connections of one address that may be logging in at once; one more gets 53300. An IPv6 site
    /// (/64) is one address.
    pub max_logins_per_address: usize,
    /// Connections that may be logging in at once, of all addresses; they don't count as clients yet,
    /// and may take 20 kB each. The last quarter is for addresses that have none.
    pub max_logins: usize,
    /// Notice clients whose host has gone without a word, and end what runs for them.
    pub tcp_keepalive: bool,
    /// Seconds of silence before the first probe; 0: the system's value, often two hours.
    pub tcp_keepidle: u32,
    /// Seconds between probes; 0: the system's value.
    pub tcp_keepintvl: u32,
    /// Probes without an answer that end the connection; 0: the system's value.
    pub tcp_keepcnt: u32,
    /// Milliseconds that bytes for a client may stay unacknowledged before the connection ends;
    /// 0: the system's value, about 15 minutes. Also ends clients that read nothing for so long.
    pub tcp_user_timeout: u32,
    /// Threads that carry sessions; 0 means one per core.
    pub worker_threads: usize,
    /// Allow clear text or `trust` beyond loopback.
    pub insecure: bool,
    /// Largest message of a client, in bytes.
    pub max_packet_size: usize,
}

/// `[[peer]]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    /// Its `peer_id`.
    pub id: u16,
    /// Name or address at which it, and no other, can be reached.
    pub host: String,
    /// Its port.
    #[serde(default = "default_port")]
    pub port: u16,
}

/// `[tls]`
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tls {
    /// TLS of clients. "disable": never; "allow" and "prefer": where the client wants it; "require":
    /// always, but for Unix sockets; "verify-ca" and "verify-full": and with a certificate of an
    /// authority in `client_tls_ca_file`.
    pub client_tls_sslmode: SslMode,
    /// pgward's own private key, without passphrase.
    pub client_tls_key_file: PathBuf,
    /// pgward's own certificate, then those between it and its authority.
    pub client_tls_cert_file: PathBuf,
    /// Authorities of clients' certificates. With it, a client that shows a certificate must show a
    /// good one, whatever the mode. Empty: certificates are not asked for.
    pub client_tls_ca_file: PathBuf,
    /// Versions of TLS for clients.
    pub client_tls_protocols: TlsProtocols,
    /// TLS to servers; a shard map may say otherwise for its shards, with `tls = { sslmode = ... }`.
    /// "disable": never; "allow": where the server insists; "prefer": where it can; "require":
    /// always, and as "verify-ca" where `server_tls_ca_file` is set; "verify-ca": always, with a
    /// certificate of an authority in that file; "verify-full": and one that names the host as the
    /// shard map does. Unix sockets have none.
    pub server_tls_sslmode: SslMode,
    /// Authorities of servers' certificates.
    pub server_tls_ca_file: PathBuf,
    /// Private key of the certificate that pgward shows to servers; empty: it shows none.
    pub server_tls_key_file: PathBuf,
    /// The certificate that pgward shows to servers.
    pub server_tls_cert_file: PathBuf,
    /// Versions of TLS to servers.
    pub server_tls_protocols: TlsProtocols,
}

/// Versions of TLS that may be spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
pub enum TlsProtocols {
    /// 1.2 and 1.3.
    #[serde(rename = "secure", alias = "tlsv1.2,tlsv1.3")]
    Secure,
    /// 1.2 only.
    #[serde(rename = "tlsv1.2")]
    V12,
    /// 1.3 only.
    #[serde(rename = "tlsv1.3")]
    V13,
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
    /// map must say which shard), `transaction` for a transaction, `statement` for a statement. The
    /// users file may say otherwise.
    pub pool_mode: PoolMode,
    /// Server connections to the primary of a shard, per server user. `pool_size` in the users file
    /// takes its place for a server user, on primaries and replicas.
    pub default_pool_size: usize,
    /// Server connections to each replica, per server user; 0 means as `default_pool_size`.
    pub replica_pool_size: usize,
    /// Idle connections that are kept open.
    pub min_pool_size: usize,
    /// Server connections beyond the pool's size for clients that have waited for
    /// `reserve_pool_timeout`.
    pub reserve_pool_size: usize,
    /// Seconds that a client waits before the reserve is used; 0: it never is.
    pub reserve_pool_timeout: f64,
    /// Server connections to one database of one host, of all server users; 0: as many as the pools
    /// may have. At the limit idle connections of other pools are closed first.
    pub max_db_connections: usize,
    /// Server connections of one server user, on all hosts; 0: as many as the pools may have.
    pub max_user_connections: usize,
    /// Seconds a client may wait for a server; then 57014, and the connection stays. 0: for ever.
    pub query_wait_timeout: f64,
    /// Seconds after which a client that waits for a server is told so by a notice; 0: it is not.
    pub query_wait_notify: f64,
    /// Seconds that a request may run; then it is cancelled on its server (57014), and the
    /// connection stays. 0: for ever.
    pub query_timeout: f64,
    /// Seconds that a transaction may hold a server; then the client is disconnected (25P04), and
    /// the transaction is rolled back. 0: for ever.
    pub transaction_timeout: f64,
    /// Seconds that a client may be idle in a transaction; then it is disconnected (25P03), and the
    /// transaction is rolled back. 0: for ever.
    pub idle_transaction_timeout: f64,
    /// Seconds that a client may be idle outside a transaction; then it is disconnected (57P05). 0:
    /// for ever.
    pub client_idle_timeout: f64,
    /// Seconds after which a server connection is closed when it comes back (spread by up to 10 %).
    pub server_lifetime: f64,
    /// Seconds after which an idle server connection is closed; 0: never. One that its server has
    /// closed, or has said anything on, serves nobody any more: each is looked at before a client
    /// gets it, which costs no query, so there is no `server_check_query`.
    pub server_idle_timeout: f64,
    /// Seconds after which a pool without connections and clients is forgotten; 0: never.
    pub pool_idle_timeout: f64,
    /// Seconds that a connect and login to a server may take.
    pub server_connect_timeout: f64,
    /// Seconds for which a failed connect is remembered and answered at once.
    pub server_login_retry: f64,
    /// Share of a pool that one hospital may hold while others wait, 0 to 1.
    pub max_hospital_share: f64,
    /// Prepared statements kept on each server connection; 0 keeps none beyond its client's.
    pub max_prepared_statements: usize,
    /// Times that a text is parsed without a name before servers keep it as a prepared statement,
    /// which saves them parsing and planning it; 0: never. Off unless asked for: a kept plan does not
    /// see a table or function made later that its text would now mean, until pgward knows of it
    /// (DDL that passes through at once, other DDL within `catalog_refresh_s`), and from its sixth
    /// use on Postgres may plan it for all parameters alike (`plan_cache_mode`). Sessions with
    /// temporary tables keep nothing.
    pub server_prepare_threshold: u32,
    /// Prepared statements that one client may hold.
    pub max_client_statements: usize,
    /// Bytes of text, names and parameter types of the prepared statements that one client may hold
    /// by name; one more is refused (53400). Clients with the same statements share their memory.
    pub client_statement_bytes_max: usize,
    /// Clients that may wait for one pool; one more gets 53300.
    pub max_waiting: usize,
    /// Seconds that a cancel may take to reach its server, and the server to obey one of pgward's
    /// own (`query_timeout`) before it is given up.
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
    /// hospital's rows. Name what is called often where nothing is guarded, too: behind any other
    /// the server is asked what it has set (about 1 ms of its CPU), and reset.
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
            peer: Vec::new(),
            listen: Listen::default(),
            tls: Tls::default(),
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
            listen_port: default_port(),
            so_reuseport: false,
            peer_address: None,
            peer_id: 0,
            unix_socket_dir: PathBuf::new(),
            unix_socket_mode: "0777".into(),
            max_client_conn: 10_000,
            admin_reserved_connections: 3,
            max_db_client_connections: 0,
            max_user_client_connections: 0,
            client_login_timeout: 60.0,
            max_logins_per_address: 1_000,
            max_logins: 4_000,
            tcp_keepalive: true,
            tcp_keepidle: 60,
            tcp_keepintvl: 10,
            tcp_keepcnt: 3,
            tcp_user_timeout: 0,
            worker_threads: 0,
            insecure: false,
            max_packet_size: 1 << 30,
        }
    }
}

fn default_port() -> u16 {
    6432
}

impl Default for Tls {
    fn default() -> Self {
        Self {
            client_tls_sslmode: SslMode::Disable,
            client_tls_key_file: PathBuf::new(),
            client_tls_cert_file: PathBuf::new(),
            client_tls_ca_file: PathBuf::new(),
            client_tls_protocols: TlsProtocols::Secure,
            server_tls_sslmode: SslMode::Prefer,
            server_tls_ca_file: PathBuf::new(),
            server_tls_key_file: PathBuf::new(),
            server_tls_cert_file: PathBuf::new(),
            server_tls_protocols: TlsProtocols::Secure,
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
            reserve_pool_size: 0,
            reserve_pool_timeout: 5.0,
            max_db_connections: 0,
            max_user_connections: 0,
            query_wait_timeout: 120.0,
            query_wait_notify: 5.0,
            query_timeout: 0.0,
            transaction_timeout: 0.0,
            idle_transaction_timeout: 0.0,
            client_idle_timeout: 0.0,
            server_lifetime: 3600.0,
            server_idle_timeout: 600.0,
            pool_idle_timeout: 0.0,
            server_connect_timeout: 15.0,
            server_login_retry: 1.0,
            max_hospital_share: 0.5,
            max_prepared_statements: 200,
            server_prepare_threshold: 0,
            max_client_statements: 10_000,
            client_statement_bytes_max: 8 << 20,
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
        let tls = &mut self.tls;
        let paths = [
            &mut self.shard_map,
            &mut self.users,
            &mut self.health.probe_secret_file,
            &mut self.auth.auth_hba_file,
            &mut self.auth.auth_ident_file,
            &mut self.auth.auth_user_secret_file,
            &mut self.listen.unix_socket_dir,
            &mut tls.client_tls_key_file,
            &mut tls.client_tls_cert_file,
            &mut tls.client_tls_ca_file,
            &mut tls.server_tls_ca_file,
            &mut tls.server_tls_key_file,
            &mut tls.server_tls_cert_file,
        ];
        for path in paths.into_iter().filter(|path| !path.as_os_str().is_empty()) {
            *path = folder.join(&*path); // an absolute path stays as it is
        }
    }
}

impl Listen {
    /// `unix_socket_mode` as a number; `None` where it is none.
    pub fn socket_mode(&self) -> Option<u32> {
        let digits = &self.unix_socket_mode;
        let is_octal = digits.bytes().all(|digit| (b'0'..=b'7').contains(&digit));
        u32::from_str_radix(digits, 8).ok().filter(|mode| is_octal && *mode <= 0o777)
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
