//! Every SHOW as a table of rows: one list of commands, one function each.
//!
//! A [`Table`] is plain data; the console sends it as rows, and other views may draw it. Types are
//! those that PgBouncer's console reports, because exporters take text columns for labels.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use super::{ClientRow, Command, PoolRow, ServerRow, Source};
use crate::config::Config;
use crate::fleet::{HostView, ShardState, Standing};
use crate::route::Role;

/// Type of text columns.
pub const TEXT: u32 = 25;
/// Type of small numbers.
pub const INT4: u32 = 23;
/// Type of large numbers.
pub const INT8: u32 = 20;

/// A column of a [`Table`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: &'static str,
    /// OID of its type: [`TEXT`], [`INT4`] or [`INT8`].
    pub oid: u32,
}

/// Rows of text under typed columns; `None` is NULL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// The columns.
    pub columns: Vec<Column>,
    /// The rows, each as long as `columns`.
    pub rows: Vec<Vec<Option<String>>>,
}

impl Table {
    /// No rows yet. Types are told by a letter before each name: `t`ext, `i`nt4, `b`ig int8.
    fn new(columns: &[&'static str]) -> Self {
        let column = |spec: &&'static str| {
            let (letter, name) = spec.split_at(2);
            let oid = match letter {
                "i:" => INT4,
                "b:" => INT8,
                _ => TEXT,
            };
            Column { name, oid }
        };
        Self { columns: columns.iter().map(column).collect(), rows: Vec::new() }
    }

    fn push(&mut self, row: Vec<Option<String>>) {
        debug_assert_eq!(row.len(), self.columns.len());
        self.rows.push(row);
    }

    /// One column, one row.
    pub fn single(name: &'static str, value: &str) -> Self {
        Self { columns: vec![Column { name, oid: TEXT }], rows: vec![vec![some(value)]] }
    }
}

macro_rules! shows {
    ($($name:ident $text:literal $about:literal $run:path;)*) => {
        /// What SHOW can show.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Show {
            $(#[doc = $about] $name,)*
        }

        /// Name, what it is, and the function of each.
        pub const ALL: &[(&str, &str, Show)] = &[$(($text, $about, Show::$name),)*];

        impl Show {
            /// Its table now.
            pub fn table(self, source: &dyn Source) -> Table {
                match self {
                    $(Self::$name => $run(source),)*
                }
            }
        }
    };
}

shows! {
    Clients "clients" "Clients, and what each is doing." clients;
    Config "config" "Settings and their defaults." config;
    Databases "databases" "Hosts of every shard as connection targets." databases;
    Hosts "hosts" "Hosts: role, timeline, lag, why one is not used." hosts;
    Lists "lists" "Counts of things." lists;
    Map "map" "The shard map in short." map;
    Peers "peers" "Other pgwards behind the same address." peers;
    Pools "pools" "Pools: one per host and server user." pools;
    Servers "servers" "Server connections." servers;
    Shards "shards" "Shards: region, buckets, primary, replicas." shards;
    Stats "stats" "Totals since the start." stats;
    StatsTotals "stats_totals" "Totals since the start, without averages." stats_totals;
    Users "users" "Names of the users file." users;
    Version "version" "pgward's version." version;
}

impl Show {
    /// By its name, in lower case.
    pub fn named(name: &str) -> Option<Self> {
        ALL.iter().find(|(text, ..)| *text == name).map(|(.., show)| *show)
    }
}

/// The table of a command; `None` where it has none.
pub fn table(command: &Command, source: &dyn Source) -> Option<Table> {
    match command {
        Command::Show(show) => Some(show.table(source)),
        Command::ShowSetting(name, value) => Some(Table::single(name, value)),
        Command::Route(sql) => {
            let mut table = Table::new(&["t:item", "t:value"]);
            table.rows =
                source.route(sql).into_iter().map(|(a, b)| vec![Some(a), Some(b)]).collect();
            Some(table)
        }
        _ => None,
    }
}

/// What SHOW HELP says.
pub fn help() -> String {
    let mut text = String::from("\n");
    let names: Vec<String> = ALL.iter().map(|(name, ..)| name.to_ascii_uppercase()).collect();
    let _ = writeln!(text, "\tSHOW {}", names.join("|"));
    text.push_str("\tSHOW ROUTE '<sql>'\n\tSHOW HELP\n\tRELOAD\n");
    text
}

fn peers(source: &dyn Source) -> Table {
    let mut table = Table::new(&["i:peer_id", "t:host", "i:port", "i:pool_size"]);
    for peer in &source.config().peer {
        // There is no pool of connections to it: a cancel opens one, and closes it.
        table.push(vec![some(peer.id), some(&peer.host), some(peer.port), None]);
    }
    table
}

fn pools(source: &dyn Source) -> Table {
    let mut table = Table::new(&[
        "t:database",
        "t:user",
        "i:cl_active",
        "i:cl_waiting",
        "i:cl_active_cancel_req",
        "i:cl_waiting_cancel_req",
        "i:sv_active",
        "i:sv_active_cancel",
        "i:sv_being_canceled",
        "i:sv_idle",
        "i:sv_used",
        "i:sv_tested",
        "i:sv_login",
        "i:maxwait",
        "i:maxwait_us",
        "t:pool_mode",
        "t:load_balance_hosts",
        "i:shard",
        "t:host",
        "t:role",
        "i:pool_size",
    ]);
    for pool in source.pools() {
        table.push(pool_row(&pool));
    }
    table
}

/// Exporters take (database, user) for the identity of a pool, and fail on a second one: the
/// database column names shard and host too.
fn pool_row(pool: &PoolRow) -> Vec<Option<String>> {
    let zero = || some(0);
    vec![
        some(format!("{}/{}/{}", pool.database, pool.shard, pool.address)),
        some(&pool.user),
        some(pool.cl_active),
        some(pool.cl_waiting),
        zero(),
        zero(),
        some(pool.sv_active),
        zero(),
        zero(),
        some(pool.sv_idle),
        some(pool.sv_used),
        zero(),
        some(pool.sv_login),
        some(pool.maxwait_us / 1_000_000),
        some(pool.maxwait_us % 1_000_000),
        some(pool.pool_mode),
        None,
        some(pool.shard),
        some(&pool.address),
        some(role_name(pool.role)),
        some(pool.size),
    ]
}

/// Columns of SHOW CLIENTS and SHOW SERVERS that PgBouncer has.
const SOCKET_COLUMNS: [&str; 21] = [
    "t:type",
    "t:user",
    "t:database",
    "t:replication",
    "t:state",
    "t:addr",
    "i:port",
    "t:local_addr",
    "i:local_port",
    "t:connect_time",
    "t:request_time",
    "i:wait",
    "i:wait_us",
    "i:close_needed",
    "t:ptr",
    "t:link",
    "i:remote_pid",
    "t:tls",
    "t:application_name",
    "i:prepared_statements",
    "b:id",
];

fn servers(source: &dyn Source) -> Table {
    let mut columns = SOCKET_COLUMNS.to_vec();
    columns.extend(["i:shard", "t:role", "b:transactions"]);
    let mut table = Table::new(&columns);
    for server in source.servers() {
        table.push(server_row(&server));
    }
    table
}

fn server_row(server: &ServerRow) -> Vec<Option<String>> {
    vec![
        some("S"),
        some(&server.user),
        some(&server.database),
        some("none"),
        some(server.state),
        some(&server.address.host),
        some(server.address.port),
        some(""),
        some(server.local_port),
        some(time_text(server.connect_time)),
        some(time_text(server.request_time)),
        some(0),
        some(0),
        some(i32::from(server.close_needed)),
        some(format!("S{}", server.id)),
        some(server.client.map(|id| format!("C{id}")).unwrap_or_default()),
        some(server.remote_pid),
        some(&server.tls),
        some(""),
        some(server.prepared_statements),
        some(server.id),
        some(server.shard),
        some(role_name(server.role)),
        some(server.transactions),
    ]
}

fn clients(source: &dyn Source) -> Table {
    let mut columns = SOCKET_COLUMNS.to_vec();
    columns.extend(["i:shard", "t:pin"]);
    let mut table = Table::new(&columns);
    for client in source.clients() {
        table.push(client_row(&client));
    }
    table
}

fn client_row(client: &ClientRow) -> Vec<Option<String>> {
    vec![
        some("C"),
        some(&client.user),
        some(&client.database),
        some("none"),
        some(client.state),
        some(client.ip.map_or_else(|| "unix".to_owned(), |ip| ip.to_string())),
        some(client.port),
        some(""),
        some(0),
        some(time_text(client.connect_time)),
        some(time_text(client.request_time)),
        some(client.wait_us / 1_000_000),
        some(client.wait_us % 1_000_000),
        some(0),
        some(format!("C{}", client.id)),
        some(client.server.map(|id| format!("S{id}")).unwrap_or_default()),
        some(0),
        some(&client.tls),
        some(&client.application_name),
        some(client.prepared_statements),
        some(client.id),
        client.shard.map(|shard| shard.to_string()),
        client.pin.clone(),
    ]
}

fn lists(source: &dyn Source) -> Table {
    let mut table = Table::new(&["t:list", "i:items"]);
    let pools = source.pools();
    let clients = source.clients();
    let sum = |of: fn(&PoolRow) -> u64| pools.iter().map(of).sum::<u64>();
    let login = clients.iter().filter(|client| client.state == "login").count() as u64;
    for (name, items) in [
        ("databases", 1),
        ("users", source.users().len() as u64),
        ("peers", source.config().peer.len() as u64),
        ("pools", pools.len() as u64),
        ("peer_pools", 0),
        ("free_clients", 0),
        ("used_clients", clients.len() as u64 - login),
        ("login_clients", login),
        ("free_servers", sum(|pool| pool.sv_idle)),
        ("used_servers", sum(|pool| pool.sv_active + pool.sv_used + pool.sv_login)),
        ("dns_names", 0),
        ("dns_zones", 0),
        ("dns_queries", 0),
        ("dns_pending", 0),
        ("shards", source.map().shards().len() as u64),
    ] {
        table.push(vec![some(name), some(items)]);
    }
    table
}

fn databases(source: &dyn Source) -> Table {
    let mut table = Table::new(&[
        "t:name",
        "t:host",
        "i:port",
        "t:database",
        "t:force_user",
        "i:pool_size",
        "i:min_pool_size",
        "i:reserve_pool_size",
        "i:server_lifetime",
        "t:pool_mode",
        "t:load_balance_hosts",
        "i:max_connections",
        "i:current_connections",
        "i:max_client_connections",
        "i:current_client_connections",
        "i:paused",
        "i:disabled",
        "i:shard",
        "t:region",
    ]);
    let (map, config, pools) = (source.map(), source.config(), source.pools());
    for shard in map.shards() {
        for (index, address) in shard.hosts().enumerate() {
            let here = pools.iter().filter(|p| p.shard == shard.id && p.address == *address);
            let (servers, clients) = here.fold((0, 0), |(servers, clients), pool| {
                let open = pool.sv_active + pool.sv_idle + pool.sv_used + pool.sv_login;
                (servers + open, clients + pool.cl_active + pool.cl_waiting)
            });
            let size = match config.pool.replica_pool_size {
                size if index > 0 && size > 0 => size,
                _ => config.pool.default_pool_size,
            };
            table.push(vec![
                some(&map.database),
                some(&address.host),
                some(address.port),
                some(&shard.database),
                None,
                some(size),
                some(config.pool.min_pool_size),
                some(config.pool.reserve_pool_size),
                some(config.pool.server_lifetime as u64),
                some(pool_mode_name(&config)),
                None,
                some(0),
                some(servers),
                some(0),
                some(clients),
                some(0),
                some(0),
                some(shard.id),
                some(&shard.region),
            ]);
        }
    }
    table
}

fn shards(source: &dyn Source) -> Table {
    let mut table = Table::new(&[
        "i:shard",
        "t:region",
        "t:database",
        "i:buckets",
        "i:listed_hospitals",
        "t:primary",
        "i:hosts",
        "i:replicas_up",
        "i:timeline",
        "t:alarm",
    ]);
    let (map, fleet) = (source.map(), source.fleet());
    let mut buckets = vec![0u64; map.shards().len()];
    for owner in (0..map.modulus).filter_map(|bucket| map.owner(bucket)) {
        buckets[usize::from(owner.0)] += 1;
    }
    let mut hospitals = vec![0u64; map.shards().len()];
    for (_, shard) in map.hospitals() {
        hospitals[usize::from(shard.0)] += 1;
    }
    for shard in map.shards() {
        let index = usize::from(shard.id.0);
        let state = fleet.shard(shard.id);
        let hosts = state.as_deref().map(ShardState::hosts).unwrap_or_default();
        let primary = hosts.iter().find(|host| host.standing == Standing::Primary);
        let replicas = hosts.iter().filter(|host| host.standing == Standing::Replica).count();
        table.push(vec![
            some(shard.id),
            some(&shard.region),
            some(&shard.database),
            some(buckets[index]),
            some(hospitals[index]),
            primary.map(|host| host.address.to_string()),
            some(shard.hosts().count()),
            some(replicas),
            primary.and_then(|host| host.timeline).map(|timeline| timeline.to_string()),
            state.and_then(|state| state.alarm()).map(|alarm| format!("{alarm:?}")),
        ]);
    }
    table
}

fn hosts(source: &dyn Source) -> Table {
    let mut table = Table::new(&[
        "i:shard",
        "t:region",
        "t:host",
        "i:port",
        "t:map_role",
        "t:role",
        "i:timeline",
        "t:lsn",
        "b:lag_ms",
        "b:answered_ms_ago",
        "t:error",
    ]);
    for shard in source.fleet().shards() {
        for host in shard.hosts() {
            table.push(host_row(&shard, &host));
        }
    }
    table
}

fn host_row(shard: &ShardState, host: &HostView) -> Vec<Option<String>> {
    let lsn = |lsn: u64| format!("{:X}/{:X}", lsn >> 32, lsn & 0xffff_ffff);
    vec![
        some(shard.id()),
        some(shard.region()),
        some(&host.address.host),
        some(host.address.port),
        some(if host.index == 0 { "primary" } else { "replica" }),
        some(match host.standing {
            Standing::Unknown => "unknown",
            Standing::Primary => "primary",
            Standing::Replica => "replica",
            Standing::Unfit => "unfit",
        }),
        host.timeline.map(|timeline| timeline.to_string()),
        host.lsn.map(lsn),
        host.lag_ms.map(|ms| ms.to_string()),
        host.answered_ms_ago.map(|ms| ms.to_string()),
        host.error.clone(),
    ]
}

fn map(source: &dyn Source) -> Table {
    let mut table = Table::new(&["t:key", "t:value"]);
    let map = source.map();
    let overrides = map.hospitals().filter(|(hospital, _)| map.is_override(*hospital)).count();
    let key_tables = map.tables.key_tables.iter().map(|(table, key)| format!("{table}.{key}"));
    for (key, value) in [
        ("version", map.version.to_string()),
        ("modulus", map.modulus.to_string()),
        ("database", map.database.clone()),
        ("shards", map.shards().len().to_string()),
        ("regions", map.regions().join(", ")),
        ("key_column", map.tables.key_column.clone()),
        ("key_tables", key_tables.collect::<Vec<_>>().join(", ")),
        ("reference", map.tables.reference.join(", ")),
        ("listed_hospitals", map.hospitals().len().to_string()),
        ("overrides", overrides.to_string()),
        ("unknown_hospital", format!("{:?}", map.unknown_hospital).to_lowercase()),
        ("catalog_version", source.catalog_version().to_string()),
    ] {
        table.push(vec![some(key), some(value)]);
    }
    table
}

/// Averages are NULL: pgward keeps no stats period, and a made-up 0 would look like a fact.
fn stats(source: &dyn Source) -> Table {
    let mut columns = vec!["t:database"];
    columns.extend(STATS_COLUMNS.map(|(total, ..)| total));
    columns.extend(STATS_COLUMNS.map(|(_, average, _)| average));
    let mut table = Table::new(&columns);
    let mut row = stats_row(source);
    row.resize(columns.len(), None);
    table.push(row);
    table
}

fn stats_totals(source: &dyn Source) -> Table {
    let mut columns = vec!["t:database"];
    columns.extend(STATS_COLUMNS.map(|(.., plain)| plain));
    let mut table = Table::new(&columns);
    table.push(stats_row(source));
    table
}

/// Names in SHOW STATS, its averages, and SHOW STATS_TOTALS.
const STATS_COLUMNS: [(&str, &str, &str); 12] = [
    (
        "b:total_server_assignment_count",
        "b:avg_server_assignment_count",
        "b:server_assignment_count",
    ),
    ("b:total_xact_count", "b:avg_xact_count", "b:xact_count"),
    ("b:total_query_count", "b:avg_query_count", "b:query_count"),
    ("b:total_received", "b:avg_recv", "b:bytes_received"),
    ("b:total_sent", "b:avg_sent", "b:bytes_sent"),
    ("b:total_xact_time", "b:avg_xact_time", "b:xact_time"),
    ("b:total_query_time", "b:avg_query_time", "b:query_time"),
    ("b:total_wait_time", "b:avg_wait_time", "b:wait_time"),
    ("b:total_client_parse_count", "b:avg_client_parse_count", "b:client_parse_count"),
    ("b:total_server_parse_count", "b:avg_server_parse_count", "b:server_parse_count"),
    ("b:total_bind_count", "b:avg_bind_count", "b:bind_count"),
    ("b:total_client_login_count", "b:avg_client_login_count", "b:client_login_count"),
];

fn stats_row(source: &dyn Source) -> Vec<Option<String>> {
    let stats = source.stats();
    let mut row = vec![some(&source.map().database)];
    row.extend(
        [
            stats.server_assignments,
            stats.transactions,
            stats.queries,
            stats.received,
            stats.sent,
            stats.transaction_us,
            stats.query_us,
            stats.wait_us,
            stats.client_parses,
            stats.server_parses,
            stats.binds,
            stats.client_logins,
        ]
        .map(some),
    );
    row
}

fn users(source: &dyn Source) -> Table {
    let mut table = Table::new(&["t:name", "t:pool_size", "t:pool_mode"]);
    for name in source.users() {
        table.push(vec![Some(name), None, None]);
    }
    table
}

fn version(_: &dyn Source) -> Table {
    Table::single("version", concat!("pgward ", env!("CARGO_PKG_VERSION")))
}

fn config(source: &dyn Source) -> Table {
    let mut table = Table::new(&["t:key", "t:value", "t:default", "t:changeable"]);
    let defaults = settings(&Config::default());
    let mut now = settings(&source.config());
    now.sort();
    for (key, value) in now {
        let default =
            defaults.iter().find(|(name, _)| *name == key).map(|(_, value)| value.clone());
        let changeable = if RESTART_NEEDED.contains(&key.as_str()) { "no" } else { "yes" };
        table.push(vec![Some(key), Some(value), default, some(changeable)]);
    }
    table
}

/// Settings that RELOAD can't change.
const RESTART_NEEDED: &[&str] = &[
    "listen_addr",
    "listen_port",
    "so_reuseport",
    "peer_id",
    "peer_address",
    "worker_threads",
    "address",
    "cache_bytes_max",
];

/// Every key of the config with its value, without its section: a test says that no two sections
/// have the same key.
fn settings(config: &Config) -> Vec<(String, String)> {
    let mut flat = Vec::new();
    let Ok(serde_json::Value::Object(sections)) = serde_json::to_value(config) else { return flat };
    for (name, section) in sections {
        match section {
            serde_json::Value::Object(keys) => {
                flat.extend(keys.into_iter().map(|(key, value)| (key, value_text(&value))));
            }
            value => flat.push((name, value_text(&value))),
        }
    }
    flat
}

fn value_text(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::String(text) => text.clone(),
        serde_json::Value::Array(items) => {
            items.iter().map(value_text).collect::<Vec<_>>().join(", ")
        }
        serde_json::Value::Null => String::new(),
        other => other.to_string(),
    }
}

fn pool_mode_name(config: &Config) -> String {
    format!("{:?}", config.pool.pool_mode).to_lowercase()
}

/// As in tables.
pub fn role_name(role: Role) -> &'static str {
    match role {
        Role::Primary => "primary",
        Role::Replica => "replica",
    }
}

fn some(value: impl ToString) -> Option<String> {
    Some(value.to_string())
}

/// `2026-11-23 14:29:05 UTC`. The civil date is Howard Hinnant's `civil_from_days`.
fn time_text(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, rest) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::time::Duration;

    #[test]
    fn times_are_civil() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_399, "2000-02-28 23:59:59 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (1_798_761_599, "2026-12-31 23:59:59 UTC"),
        ] {
            assert_eq!(time_text(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn no_two_sections_share_a_key() {
        let mut seen = HashSet::new();
        for (key, _) in settings(&Config::default()) {
            assert!(seen.insert(key.clone()), "{key}");
        }
    }
}
