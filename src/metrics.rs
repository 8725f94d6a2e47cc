//! Counters and histograms, and their Prometheus text. Knows no other room: shards are numbers here.
//!
//! What a transaction touches is counted at once, through handles that are made on first use: one
//! call of [`RoleMetrics::on_release`] per checkout. What is a state (clients, servers, hosts) is
//! not counted at all but read when somebody scrapes, as [`Gauge`]s; `admin` does that.
//! No label ever holds a hospital, an SQL text or anything else that a client chose.
//!
//! | metric | labels | what |
//! | --- | --- | --- |
//! | `pgward_logins_total` | outcome | logins: `ok`, `refused` (password, rights), `failed` (protocol, time-out) |
//! | `pgward_transactions_total` | shard, role | checkouts that were released |
//! | `pgward_queries_total` | shard, role | requests (Query, or a batch up to Sync) sent to servers |
//! | `pgward_bytes_total` | shard, role, direction | `to_server`, `to_client` |
//! | `pgward_checkout_wait_seconds` | shard, role | histogram: from wanting a server to having it |
//! | `pgward_transaction_seconds` | shard, role | histogram: from having a server to giving it back |
//! | `pgward_server_connects_total` | shard, role, outcome | `ok`, `failed` |
//! | `pgward_server_discards_total` | shard, role | servers closed because they were not provably clean |
//! | `pgward_errors_total` | shard, role, class | errors of servers, by the first two characters of SQLSTATE |
//! | `pgward_refusals_total` | sqlstate | pgward's own errors to clients |
//! | `pgward_pins_total` | reason | clients that began to keep their server between transactions |
//! | `pgward_replica_fallbacks_total` | shard, reason | reads that went to the primary: `stale`, `unavailable`, `retried` |
//! | `pgward_clients` | state | gauge: `active`, `idle`, `waiting` |
//! | `pgward_servers` | shard, role, state | gauge: `active`, `idle`, `login` |
//! | `pgward_waiting_clients`, `pgward_wait_seconds_max` | shard, role | gauge: the queue for a server, and its oldest |
//! | `pgward_shard_has_primary` | shard | gauge: 1 where writes are possible |
//! | `pgward_host_up` | shard, host | gauge: 1 where the host answers |
//! | `pgward_replica_lag_seconds` | shard, host | gauge: upper bound, from the fleet's samples |
//! | `pgward_shard_map_version`, `pgward_catalog_version` | | gauge |
//! | `pgward_build_info` | version | gauge: 1 |

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use metrics::{Counter, Key, Label, Level, Metadata, Recorder};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

/// Shards that share one lazily made block of handles.
const BLOCK_SHARDS: usize = 64;
/// Distinct SQLSTATE labels per metric; what comes later counts as `other`.
const STATES_MAX: usize = 64;
/// Upper bounds of the histograms' buckets are 2^k microseconds: 64 us, 128 us, ... 67 s.
const FIRST_BUCKET: u32 = 6;
const BUCKETS: usize = 21;

/// Which of a shard's hosts a figure is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ServerRole {
    /// The primary.
    Primary,
    /// Any replica.
    Replica,
}

impl ServerRole {
    /// As in labels.
    pub fn name(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Replica => "replica",
        }
    }
}

/// How a login ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoginOutcome {
    /// A session began.
    Ok,
    /// Wrong password, unknown user, no right.
    Refused,
    /// Protocol violation, time-out, the client left.
    Failed,
}

/// Why a read that could have gone to a replica went to the primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fallback {
    /// No replica had the last write of its scope.
    Stale,
    /// No replica answered.
    Unavailable,
    /// A replica refused it (25006, recovery conflict), and the primary ran it again.
    Retried,
}

/// What one checkout did, told when it is released.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tally {
    /// Requests sent.
    pub queries: u64,
    /// Bytes sent to the server.
    pub to_server: u64,
    /// Bytes sent to the client.
    pub to_client: u64,
    /// From wanting a server to having it.
    pub waited: Duration,
    /// From having it to giving it back.
    pub held: Duration,
}

/// What all shards and roles did since the start. Times in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Servers handed out and given back.
    pub transactions: u64,
    /// Requests sent.
    pub queries: u64,
    /// Waited for servers.
    pub wait_us: u64,
    /// Held servers.
    pub held_us: u64,
}

/// A state, read when somebody asks: a host that left the map leaves no line behind.
#[derive(Debug, Clone, PartialEq)]
pub struct Gauge {
    /// Name of the metric.
    pub name: &'static str,
    /// Label names and values.
    pub labels: Vec<(&'static str, String)>,
    /// The value.
    pub value: f64,
}

/// All of a process's figures.
pub struct Metrics {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    logins: [Counter; 3],
    refusals: Mutex<HashMap<&'static str, Counter>>,
    pins: Mutex<HashMap<&'static str, Counter>>,
    /// Two levels, because shard numbers go up to 65,535 and most are never used.
    blocks: Box<[OnceLock<Box<Block>>]>,
}

type Block = [OnceLock<RoleMetrics>; 2 * BLOCK_SHARDS];

/// Figures of one shard's primary or of its replicas.
pub struct RoleMetrics {
    shard: u16,
    role: ServerRole,
    transactions: Counter,
    queries: Counter,
    sent: AtomicU64,
    to_server: Counter,
    to_client: Counter,
    connects: [Counter; 2],
    discards: Counter,
    fallbacks: [Counter; 3],
    waits: Histogram,
    held: Histogram,
    errors: Mutex<HashMap<[u8; 2], Counter>>,
}

const METADATA: Metadata<'static> = Metadata::new("pgward", Level::INFO, None);

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Figures that start at zero; nothing global is touched.
    pub fn new() -> Self {
        let recorder = PrometheusBuilder::new().build_recorder();
        let login = |outcome| counter(&recorder, "pgward_logins_total", &[("outcome", outcome)]);
        let logins = ["ok", "refused", "failed"].map(login);
        let handle = recorder.handle();
        let blocks = (0..=usize::from(u16::MAX) / BLOCK_SHARDS).map(|_| OnceLock::new()).collect();
        Self {
            recorder,
            handle,
            logins,
            refusals: Mutex::default(),
            pins: Mutex::default(),
            blocks,
        }
    }

    /// Figures of one shard and role: two loads once they exist.
    pub fn of(&self, shard: u16, role: ServerRole) -> &RoleMetrics {
        let index = usize::from(shard);
        let block = self.blocks[index / BLOCK_SHARDS]
            .get_or_init(|| Box::new([const { OnceLock::new() }; 2 * BLOCK_SHARDS]));
        block[2 * (index % BLOCK_SHARDS) + role as usize]
            .get_or_init(|| RoleMetrics::new(&self.recorder, shard, role))
    }

    /// A login ended.
    pub fn on_login(&self, outcome: LoginOutcome) {
        self.logins[outcome as usize].increment(1);
    }

    /// pgward answered a client with an error of its own.
    pub fn on_refusal(&self, sqlstate: &'static str) {
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        refusals
            .entry(sqlstate)
            .or_insert_with(|| {
                counter(&self.recorder, "pgward_refusals_total", &[("sqlstate", sqlstate)])
            })
            .increment(1);
    }

    /// A client keeps its server for this reason from now on.
    pub fn on_pin(&self, reason: &'static str) {
        let mut pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        let made = || counter(&self.recorder, "pgward_pins_total", &[("reason", reason)]);
        pins.entry(reason).or_insert_with(made).increment(1);
    }

    /// A server answered with an error.
    pub fn on_error(&self, shard: u16, role: ServerRole, sqlstate: &str) {
        let class = class_of(sqlstate);
        let metrics = self.of(shard, role);
        let mut errors = metrics.errors.lock().unwrap_or_else(PoisonError::into_inner);
        let class =
            if errors.len() < STATES_MAX || errors.contains_key(&class) { class } else { *b"??" };
        errors
            .entry(class)
            .or_insert_with(|| {
                let name = std::str::from_utf8(&class).ok().filter(|name| *name != "??");
                let name = name.unwrap_or("other").to_owned();
                let labels = vec![
                    Label::new("shard", shard.to_string()),
                    Label::new("role", role.name()),
                    Label::new("class", name),
                ];
                let key = Key::from_parts("pgward_errors_total", labels);
                self.recorder.register_counter(&key, &METADATA)
            })
            .increment(1);
    }

    /// Sums over all shards and roles.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        let blocks = self.blocks.iter().filter_map(OnceLock::get);
        for role in blocks.flat_map(|block| block.iter().filter_map(OnceLock::get)) {
            totals.transactions += role.waits.count();
            totals.wait_us += role.waits.sum_us.load(Ordering::Relaxed);
            totals.held_us += role.held.sum_us.load(Ordering::Relaxed);
            totals.queries += role.sent.load(Ordering::Relaxed);
        }
        totals
    }

    /// Prometheus text of everything: what was counted, and `gauges` as they are now.
    pub fn render(&self, gauges: &[Gauge]) -> String {
        let mut text = self.handle.render();
        render_gauges(&mut text, gauges);
        let all: Vec<&RoleMetrics> = self
            .blocks
            .iter()
            .filter_map(OnceLock::get)
            .flat_map(|block| block.iter().filter_map(OnceLock::get))
            .collect();
        for (name, of) in [
            ("pgward_checkout_wait_seconds", (|m| &m.waits) as fn(&RoleMetrics) -> &Histogram),
            ("pgward_transaction_seconds", |m| &m.held),
        ] {
            let _ = writeln!(text, "# TYPE {name} histogram");
            for metrics in &all {
                of(metrics).render(&mut text, name, metrics.shard, metrics.role);
            }
        }
        text
    }
}

impl RoleMetrics {
    fn new(recorder: &PrometheusRecorder, shard: u16, role: ServerRole) -> Self {
        let number = shard.to_string();
        let count = |name, extra: &[(&'static str, &'static str)]| {
            let mut labels =
                vec![Label::new("shard", number.clone()), Label::new("role", role.name())];
            labels.extend(extra.iter().map(|(name, value)| Label::new(*name, *value)));
            recorder.register_counter(&Key::from_parts(name, labels), &METADATA)
        };
        let connect = |outcome| count("pgward_server_connects_total", &[("outcome", outcome)]);
        let fallback = |reason| match role {
            ServerRole::Primary => Counter::noop(),
            ServerRole::Replica => count("pgward_replica_fallbacks_total", &[("reason", reason)]),
        };
        Self {
            shard,
            role,
            transactions: count("pgward_transactions_total", &[]),
            queries: count("pgward_queries_total", &[]),
            sent: AtomicU64::new(0),
            to_server: count("pgward_bytes_total", &[("direction", "to_server")]),
            to_client: count("pgward_bytes_total", &[("direction", "to_client")]),
            connects: ["ok", "failed"].map(connect),
            discards: count("pgward_server_discards_total", &[]),
            fallbacks: ["stale", "unavailable", "retried"].map(fallback),
            waits: Histogram::default(),
            held: Histogram::default(),
            errors: Mutex::default(),
        }
    }

    /// A checkout came back: the one call per transaction.
    pub fn on_release(&self, tally: &Tally) {
        self.transactions.increment(1);
        self.queries.increment(tally.queries);
        self.sent.fetch_add(tally.queries, Ordering::Relaxed);
        self.to_server.increment(tally.to_server);
        self.to_client.increment(tally.to_client);
        self.waits.record(tally.waited);
        self.held.record(tally.held);
    }

    /// A connect and login to a server ended.
    pub fn on_connect(&self, is_ok: bool) {
        self.connects[usize::from(!is_ok)].increment(1);
    }

    /// A server was closed because it was not provably clean.
    pub fn on_discard(&self) {
        self.discards.increment(1);
    }

    /// A read meant for a replica of this shard went to the primary. Call it on the replica's
    /// figures.
    pub fn on_fallback(&self, reason: Fallback) {
        debug_assert_eq!(self.role, ServerRole::Replica);
        self.fallbacks[reason as usize].increment(1);
    }
}

/// Times in buckets of powers of two: one addition to a bucket and one to the sum, no memory that
/// grows between scrapes.
#[derive(Default)]
struct Histogram {
    buckets: [AtomicU64; BUCKETS + 1],
    sum_us: AtomicU64,
}

impl Histogram {
    fn record(&self, time: Duration) {
        let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        // Bits of us - 1, so that a bound belongs to its own bucket.
        let bits = u64::BITS - us.saturating_sub(1).leading_zeros();
        let bucket = (bits.saturating_sub(FIRST_BUCKET) as usize).min(BUCKETS);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(us, Ordering::Relaxed);
    }

    fn count(&self) -> u64 {
        self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).sum()
    }

    fn render(&self, text: &mut String, name: &str, shard: u16, role: ServerRole) {
        let labels = format!("shard=\"{shard}\",role=\"{}\"", role.name());
        let mut count = 0;
        for (index, bucket) in self.buckets.iter().enumerate() {
            count += bucket.load(Ordering::Relaxed);
            let bound = match index {
                BUCKETS => "+Inf".to_owned(),
                _ => ((1u64 << (index as u32 + FIRST_BUCKET)) as f64 / 1e6).to_string(),
            };
            let _ = writeln!(text, "{name}_bucket{{{labels},le=\"{bound}\"}} {count}");
        }
        let sum = self.sum_us.load(Ordering::Relaxed) as f64 / 1e6;
        let _ = writeln!(text, "{name}_sum{{{labels}}} {sum}\n{name}_count{{{labels}}} {count}");
    }
}

fn render_gauges(text: &mut String, gauges: &[Gauge]) {
    let mut sorted: Vec<&Gauge> = gauges.iter().collect();
    sorted.sort_by_key(|gauge| gauge.name);
    let mut last = "";
    for gauge in sorted {
        if gauge.name != last {
            last = gauge.name;
            let _ = writeln!(text, "# TYPE {last} gauge");
        }
        let _ = write!(text, "{}", gauge.name);
        for (index, (label, value)) in gauge.labels.iter().enumerate() {
            let open = if index == 0 { '{' } else { ',' };
            let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(text, "{open}{label}=\"{value}\"");
        }
        let close = if gauge.labels.is_empty() { "" } else { "}" };
        let _ = writeln!(text, "{close} {}", gauge.value);
    }
}

fn counter(
    recorder: &PrometheusRecorder,
    name: &'static str,
    labels: &[(&'static str, &'static str)],
) -> Counter {
    let labels: Vec<Label> =
        labels.iter().map(|(name, value)| Label::from_static_parts(name, value)).collect();
    recorder.register_counter(&Key::from_parts(name, labels), &METADATA)
}

/// The class of an SQLSTATE; `??` for what is none, so that a server can't make labels.
fn class_of(sqlstate: &str) -> [u8; 2] {
    match sqlstate.as_bytes() {
        [a, b, ..] if sqlstate.len() == 5 && [a, b].iter().all(|byte| is_state_byte(**byte)) => {
            [*a, *b]
        }
        _ => *b"??",
    }
}

fn is_state_byte(byte: u8) -> bool {
    byte.is_ascii_uppercase() || byte.is_ascii_digit()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line<'a>(text: &'a str, start: &str) -> &'a str {
        text.lines()
            .find(|line| line.starts_with(start))
            .unwrap_or_else(|| panic!("no line starts with {start} in\n{text}"))
    }

    #[test]
    fn what_was_counted_is_rendered() {
        let metrics = Metrics::new();
        let replica = metrics.of(99, ServerRole::Replica);
        let tally = Tally {
            queries: 3,
            to_server: 100,
            to_client: 2000,
            waited: Duration::from_micros(64),
            held: Duration::from_millis(3),
        };
        replica.on_release(&tally);
        replica.on_release(&tally);
        replica.on_fallback(Fallback::Stale);
        replica.on_connect(false);
        metrics.on_login(LoginOutcome::Refused);
        metrics.on_refusal("PW001");
        metrics.on_error(99, ServerRole::Replica, "23505");
        metrics.on_error(99, ServerRole::Replica, "not a state");
        let idle = Gauge {
            name: "pgward_clients",
            labels: vec![("state", "idle".into()), ("odd", "a\"b\\c\nd".into())],
            value: 7.0,
        };
        let version = Gauge { name: "pgward_shard_map_version", labels: vec![], value: 12.0 };
        let text = metrics.render(&[version, idle]);
        for (start, value) in [
            ("pgward_transactions_total{shard=\"99\",role=\"replica\"}", "2"),
            ("pgward_queries_total{shard=\"99\",role=\"replica\"}", "6"),
            ("pgward_bytes_total{shard=\"99\",role=\"replica\",direction=\"to_client\"}", "4000"),
            ("pgward_logins_total{outcome=\"refused\"}", "1"),
            ("pgward_logins_total{outcome=\"ok\"}", "0"),
            ("pgward_refusals_total{sqlstate=\"PW001\"}", "1"),
            ("pgward_errors_total{shard=\"99\",role=\"replica\",class=\"23\"}", "1"),
            ("pgward_errors_total{shard=\"99\",role=\"replica\",class=\"other\"}", "1"),
            ("pgward_replica_fallbacks_total{shard=\"99\",role=\"replica\",reason=\"stale\"}", "1"),
            ("pgward_clients{state=\"idle\",odd=\"a\\\"b\\\\c\\nd\"}", "7"),
            ("pgward_shard_map_version", "12"),
            (
                "pgward_checkout_wait_seconds_bucket{shard=\"99\",role=\"replica\",le=\"0.000064\"}",
                "2",
            ),
            (
                "pgward_transaction_seconds_bucket{shard=\"99\",role=\"replica\",le=\"0.002048\"}",
                "0",
            ),
            (
                "pgward_transaction_seconds_bucket{shard=\"99\",role=\"replica\",le=\"0.004096\"}",
                "2",
            ),
            ("pgward_transaction_seconds_bucket{shard=\"99\",role=\"replica\",le=\"+Inf\"}", "2"),
            ("pgward_transaction_seconds_sum{shard=\"99\",role=\"replica\"}", "0.006"),
            ("pgward_transaction_seconds_count{shard=\"99\",role=\"replica\"}", "2"),
        ] {
            assert_eq!(line(&text, start).rsplit(' ').next(), Some(value), "{start}");
        }
    }

    #[test]
    fn bounds_belong_to_their_bucket() {
        for (us, bucket) in
            [(0, 0), (1, 0), (64, 0), (65, 1), (128, 1), (129, 2), (u64::MAX, BUCKETS)]
        {
            let histogram = Histogram::default();
            histogram.record(Duration::from_micros(us));
            assert_eq!(histogram.buckets[bucket].load(Ordering::Relaxed), 1, "{us}");
        }
    }

    #[test]
    fn labels_are_bounded() {
        let metrics = Metrics::new();
        for a in b'A'..=b'Z' {
            for b in b'A'..=b'Z' {
                let state = format!("{}{}000", char::from(a), char::from(b));
                metrics.on_error(0, ServerRole::Primary, &state);
            }
        }
        let text = metrics.render(&[]);
        let lines = text.lines().filter(|line| line.starts_with("pgward_errors_total{")).count();
        assert_eq!(lines, STATES_MAX + 1);
        metrics.of(u16::MAX, ServerRole::Replica).on_discard();
    }
}
