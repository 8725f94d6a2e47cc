//! What operators see and say: the console, `/metrics`, `/healthz`, `/readyz`.
//!
//! Owns the commands, who may run them, and the tables they answer with ([`show`]); [`console`]
//! speaks the protocol and [`web`] HTTP. Facts come through [`Source`], which `proxy` implements
//! over sessions, pools, map and fleet: nothing here reaches into them. Columns and their types are
//! PgBouncer's where it has them, with pgward's own behind, so that exporters and habits work.
//!
//! Why `SELECT` and `BEGIN` work in a console: drivers that speak the extended protocol (psycopg,
//! tokio-postgres) send them around every statement. PgBouncer's console refuses them.

pub mod console;
pub mod show;
pub mod web;

use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::SystemTime;

use crate::config::{self, Config};
use crate::fleet::Fleet;
use crate::metrics::Metrics;
use crate::route::{Role, refusals};
use crate::shard_map::{Address, ShardId, ShardMap};
use crate::wire::backend::ErrorReply;

pub use console::serve;
pub use show::{Column, Table};

/// A future without a name, as [`Source`] needs to be one type.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Where the console and the web page get their facts. Called per command, never on the hot path.
pub trait Source: Send + Sync {
    /// One row per pool.
    fn pools(&self) -> Vec<PoolRow>;
    /// One row per server connection.
    fn servers(&self) -> Vec<ServerRow>;
    /// One row per client.
    fn clients(&self) -> Vec<ClientRow>;
    /// Totals since the start.
    fn stats(&self) -> StatsRow;
    /// Names of the users file.
    fn users(&self) -> Vec<String>;
    /// The running map.
    fn map(&self) -> Arc<ShardMap>;
    /// Hosts and their health.
    fn fleet(&self) -> Arc<Fleet>;
    /// The running config.
    fn config(&self) -> Arc<Config>;
    /// Counters.
    fn metrics(&self) -> Arc<Metrics>;
    /// Version of the catalog snapshot, 0 before the first.
    fn catalog_version(&self) -> u64;
    /// Accepts new clients (`/readyz`): false before the start and while draining.
    fn is_listening(&self) -> bool;
    /// Reads config, users and map again and takes all or none of them. `Ok` says what changed,
    /// `Err` why nothing did.
    fn reload(&self) -> BoxFuture<'_, Result<String, String>>;
    /// Where `sql` would go, as (item, value): hospital, bucket, shard, region, role, why.
    fn route(&self, sql: &str) -> Vec<(String, String)>;
}

/// One pool: a server user's connections to one host.
#[derive(Debug, Clone, PartialEq)]
pub struct PoolRow {
    /// The database that clients name.
    pub database: String,
    /// Server user.
    pub user: String,
    /// Shard.
    pub shard: ShardId,
    /// Host.
    pub address: Address,
    /// What its host serves.
    pub role: Role,
    /// Clients that hold a server of it.
    pub cl_active: u64,
    /// Clients that wait for one.
    pub cl_waiting: u64,
    /// Servers held by clients.
    pub sv_active: u64,
    /// Servers ready.
    pub sv_idle: u64,
    /// Servers that are being reset.
    pub sv_used: u64,
    /// Servers that are logging in.
    pub sv_login: u64,
    /// Most servers that it may have.
    pub size: u64,
    /// How long its first waiting client has waited, in microseconds.
    pub maxwait_us: u64,
    /// `transaction`, ...
    pub pool_mode: &'static str,
}

/// One server connection.
#[derive(Debug, Clone, PartialEq)]
pub struct ServerRow {
    /// Its number.
    pub id: u64,
    /// Server user.
    pub user: String,
    /// Database on the host.
    pub database: String,
    /// Shard.
    pub shard: ShardId,
    /// Host.
    pub address: Address,
    /// What its host serves.
    pub role: Role,
    /// `active`, `idle`, `used`, `login`.
    pub state: &'static str,
    /// Our end.
    pub local_port: u16,
    /// When it was opened.
    pub connect_time: SystemTime,
    /// When it was last handed out.
    pub request_time: SystemTime,
    /// It will be closed when it comes back.
    pub close_needed: bool,
    /// Client that holds it.
    pub client: Option<u64>,
    /// Backend's process id.
    pub remote_pid: i32,
    /// Prepared statements on it.
    pub prepared_statements: u64,
    /// Checkouts since it was opened.
    pub transactions: u64,
    /// Protocol and cipher of its TLS; empty without.
    pub tls: String,
}

/// One client.
#[derive(Debug, Clone, PartialEq)]
pub struct ClientRow {
    /// Its number.
    pub id: u64,
    /// Login name.
    pub user: String,
    /// Database as it named it.
    pub database: String,
    /// `active`, `idle`, `waiting`, `login`.
    pub state: &'static str,
    /// Its address; `None` over the Unix socket.
    pub ip: Option<IpAddr>,
    /// Its port; over the Unix socket, pgward's.
    pub port: u16,
    /// Protocol and cipher of its TLS; empty without.
    pub tls: String,
    /// When it connected.
    pub connect_time: SystemTime,
    /// When its last request came.
    pub request_time: SystemTime,
    /// How long it has waited for a server, in microseconds; 0 when it doesn't.
    pub wait_us: u64,
    /// Server that it holds.
    pub server: Option<u64>,
    /// Shard of that server.
    pub shard: Option<ShardId>,
    /// Why it may not give the server back (`temp_table`, ...).
    pub pin: Option<String>,
    /// Its application_name.
    pub application_name: String,
    /// Prepared statements that it holds.
    pub prepared_statements: u64,
}

/// Totals of the database, as PgBouncer's SHOW STATS has them. Times in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StatsRow {
    /// Servers handed out.
    pub server_assignments: u64,
    /// Transactions.
    pub transactions: u64,
    /// Requests.
    pub queries: u64,
    /// Bytes from clients.
    pub received: u64,
    /// Bytes to clients.
    pub sent: u64,
    /// Time that servers were held.
    pub transaction_us: u64,
    /// Time that requests took.
    pub query_us: u64,
    /// Time that clients waited for servers.
    pub wait_us: u64,
    /// Parse messages of clients.
    pub client_parses: u64,
    /// Parse messages to servers.
    pub server_parses: u64,
    /// Bind messages.
    pub binds: u64,
    /// Logins.
    pub client_logins: u64,
}

/// What a console login may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// SHOW.
    Stats,
    /// Everything.
    Admin,
}

impl Access {
    /// The access of `user`; `None` may not log in to the console.
    pub fn of(config: &config::Admin, user: &str) -> Option<Self> {
        let is_in = |users: &[String]| users.iter().any(|name| name == user);
        if is_in(&config.admin_users) {
            Some(Self::Admin)
        } else if is_in(&config.stats_users) {
            Some(Self::Stats)
        } else {
            None
        }
    }
}

/// The databases whose logins are consoles.
pub fn is_console(database: &str) -> bool {
    matches!(database, "pgward" | "pgbouncer")
}

/// A console command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// An empty text.
    Empty,
    /// SHOW of one of [`show::ALL`].
    Show(show::Show),
    /// SHOW of a setting that drivers ask for: name and value.
    ShowSetting(&'static str, &'static str),
    /// SHOW ROUTE '<sql>'.
    Route(String),
    /// SHOW HELP.
    Help,
    /// RELOAD.
    Reload,
    /// SET of anything: ignored with a notice.
    Set,
    /// BEGIN, so that drivers can.
    Begin,
    /// COMMIT or ROLLBACK; the tag.
    End(&'static str),
}

/// Settings that drivers ask every server for, and the console's answers.
const SETTINGS: &[(&str, &str)] = &[
    ("client_encoding", "UTF8"),
    ("default_transaction_isolation", "read committed"),
    ("transaction_isolation", "read committed"),
    ("standard_conforming_strings", "on"),
    ("datestyle", "ISO"),
    ("timezone", "GMT"),
    ("server_version", console::SERVER_VERSION),
];

/// PgBouncer's control commands that pgward doesn't have yet.
const NOT_YET: &[&str] = &[
    "PAUSE",
    "RESUME",
    "DISABLE",
    "ENABLE",
    "RECONNECT",
    "KILL",
    "KILL_CLIENT",
    "SUSPEND",
    "SHUTDOWN",
    "WAIT_CLOSE",
];

impl Command {
    /// Reads one command. Its errors don't repeat what was typed.
    pub fn parse(text: &str) -> Result<Self, ErrorReply> {
        let text = text.trim().trim_end_matches(';').trim_end();
        let (first, rest) = split_word(text);
        let word = first.to_ascii_uppercase();
        match word.as_str() {
            "" => Ok(Self::Empty),
            "SHOW" | "SELECT" => Self::parse_show(rest),
            "RELOAD" if rest.is_empty() => Ok(Self::Reload),
            "SET" => Ok(Self::Set),
            "BEGIN" | "START" => Ok(Self::Begin),
            "COMMIT" | "END" => Ok(Self::End("COMMIT")),
            "ROLLBACK" | "ABORT" => Ok(Self::End("ROLLBACK")),
            _ if NOT_YET.contains(&word.as_str()) => Err(refusals::console_not_yet(&word)),
            _ => Err(refusals::unknown_console_command()),
        }
    }

    fn parse_show(rest: &str) -> Result<Self, ErrorReply> {
        let (word, rest) = split_word(rest);
        let word = word.to_ascii_lowercase();
        if word == "route" {
            return unquote(rest).map(Self::Route).ok_or_else(refusals::console_bad_arguments);
        }
        if word == "transaction" && rest.eq_ignore_ascii_case("isolation level") {
            return Ok(Self::ShowSetting("transaction_isolation", "read committed"));
        }
        if !rest.is_empty() {
            return Err(refusals::unknown_console_command());
        }
        if word == "help" {
            return Ok(Self::Help);
        }
        if let Some((name, value)) = SETTINGS.iter().find(|(name, _)| *name == word) {
            return Ok(Self::ShowSetting(name, value));
        }
        show::Show::named(&word).map(Self::Show).ok_or_else(refusals::unknown_console_command)
    }

    /// What it takes to run it.
    pub fn needs(&self) -> Access {
        match self {
            Self::Reload => Access::Admin,
            Self::Empty
            | Self::Show(_)
            | Self::ShowSetting(..)
            | Self::Route(_)
            | Self::Help
            | Self::Set
            | Self::Begin
            | Self::End(_) => Access::Stats,
        }
    }

    /// Refuses it to those who may not.
    pub fn authorize(&self, access: Access) -> Result<(), ErrorReply> {
        if access >= self.needs() {
            return Ok(());
        }
        Err(refusals::console_needs_admin())
    }
}

fn split_word(text: &str) -> (&str, &str) {
    let end = text.find(char::is_whitespace).unwrap_or(text.len());
    (&text[..end], text[end..].trim_start())
}

/// The content of a string literal, or a text without quotes as it is.
fn unquote(text: &str) -> Option<String> {
    if text.is_empty() {
        return None;
    }
    let Some(inner) = text.strip_prefix('\'') else { return Some(text.to_owned()) };
    let inner = inner.strip_suffix('\'')?;
    let whole = inner.replace("''", "");
    (!whole.contains('\'')).then(|| inner.replace("''", "'"))
}

#[cfg(test)]
pub(crate) mod tests;
