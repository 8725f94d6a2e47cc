//! What we know of each host: who accepts writes, who is fresh, who is silent.
//!
//! A [`Fleet`] is shared by all sessions. Its questions on the hot path are a few atomic loads; the
//! answers are kept by `monitor`, one control connection per host, through the pure rules of
//! `health`. `pool` picks hosts here; nothing here opens a client's connection.
//!
//! A host is an address, and an address is one Postgres server: shards that are databases of one
//! server share its control connection, because role, timeline and LSN are the server's.
//!
//! Time is nanoseconds of the fleet's own monotonic clock. A session that saw a write's outcome
//! keeps `fleet.now()`, and a replica may serve its reads once it is fresh as of that time. For
//! `consistency = "bounded"` the same question is asked with `now - max_replica_lag`.
//!
//! Why a replica stays usable while its primary is silent: what it has replayed doesn't go away, so
//! a fact of freshness outlives the primary. It ends when another primary, or another timeline, is
//! accepted, when the replica's log goes back, and two intervals after its own last answer.

mod control;
pub mod health;
pub mod monitor;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::config;
use crate::net::tls::{Connector, ServerTls};
use crate::shard_map::{Address, HOSTS_MAX, Shard, ShardId, ShardMap};
use health::{Alarm, Answer, HostHealth, ShardHealth};

/// A shard is in use for this long after it was last asked for a host.
const IN_USE: Duration = Duration::from_secs(10);
/// Uses are noted at most this often, so that a busy shard's cache line stays clean.
const USE_NOTED_EVERY: Duration = Duration::from_secs(1);

/// How hosts are asked.
#[derive(Clone)]
pub struct FleetSettings {
    /// Between probes of a host.
    pub health_interval: Duration,
    /// Between probes of the hosts of a shard in use, where that is shorter.
    pub freshness_interval: Duration,
    /// What a connect or a probe may take.
    pub probe_timeout: Duration,
    /// Server user of the control connections.
    pub user: String,
    /// Its password; `None` where it needs none.
    pub secret: Option<String>,
}

impl FleetSettings {
    /// Settings of `[health]`, with the secret that its keys point to.
    pub fn new(health: &config::Health, secret: Option<String>) -> Self {
        Self {
            health_interval: Duration::from_millis(health.health_interval_ms.max(1)),
            freshness_interval: Duration::from_millis(health.freshness_interval_ms.max(1)),
            probe_timeout: Duration::from_millis(health.probe_timeout_ms.max(1)),
            user: health.probe_user.clone(),
            secret,
        }
    }
}

impl std::fmt::Debug for FleetSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FleetSettings")
            .field("health_interval", &self.health_interval)
            .field("freshness_interval", &self.freshness_interval)
            .field("probe_timeout", &self.probe_timeout)
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

/// Nanoseconds since the fleet began; never 0, which means "never".
#[derive(Debug, Clone, Copy)]
struct Clock {
    began: Instant,
}

impl Clock {
    fn now(self) -> u64 {
        nanoseconds(self.began.elapsed()) + 1
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX / 2)
}

/// All shards' hosts.
pub struct Fleet {
    clock: Clock,
    settings: Arc<FleetSettings>,
    tls: ArcSwap<ServerTls>,
    table: ArcSwap<Table>,
    /// Serializes reloads. True once probing was started.
    is_started: Mutex<bool>,
}

#[derive(Default)]
struct Table {
    shards: BTreeMap<ShardId, Arc<ShardState>>,
    hosts: HashMap<Address, Entry>,
}

/// A host and the task that asks it; the task ends with the last table that names the host.
#[derive(Clone)]
struct Entry {
    host: Arc<monitor::Host>,
    probing: Option<Arc<monitor::Probing>>,
}

impl Fleet {
    /// A fleet that knows the hosts of `map` and nothing of their health. No I/O before [`start`].
    ///
    /// [`start`]: Fleet::start
    pub fn new(map: &ShardMap, settings: FleetSettings) -> Arc<Self> {
        Self::of_shards(map.shards(), settings)
    }

    /// As [`Fleet::new`], from the shards alone.
    pub fn of_shards(shards: &[Shard], settings: FleetSettings) -> Arc<Self> {
        let fleet = Self {
            clock: Clock { began: Instant::now() },
            settings: Arc::new(settings),
            tls: ArcSwap::from_pointee(ServerTls::plain()),
            table: ArcSwap::default(),
            is_started: Mutex::new(false),
        };
        fleet.apply_shards(shards);
        Arc::new(fleet)
    }

    /// Starts asking the hosts. Needs a tokio runtime; idempotent.
    pub fn start(&self) {
        let mut is_started = lock(&self.is_started);
        if !std::mem::replace(&mut *is_started, true) {
            let table = self.table.load();
            let (shards, mut hosts) = (table.shards.clone(), table.hosts.clone());
            self.probe(&mut hosts);
            self.table.store(Arc::new(Table { shards, hosts }));
        }
    }

    /// From the next [`apply`](Self::apply) on, hosts are spoken to like this; before it, in the
    /// clear.
    pub fn set_tls(&self, tls: Arc<ServerTls>) {
        self.tls.store(tls);
    }

    /// Follows a reloaded map. Shards that did not change keep their state and their connections;
    /// of a shard that changed, hosts that stay keep what is known of them. Hosts that are to be
    /// spoken to in another way are connected to anew.
    pub fn apply(&self, map: &ShardMap) {
        self.apply_shards(map.shards());
    }

    fn apply_shards(&self, shards: &[Shard]) {
        let is_started = lock(&self.is_started);
        let before = self.table.load_full();
        let mut after = Table::default();
        for shard in shards {
            let old = before.shards.get(&shard.id);
            let mut bells = Vec::new();
            for address in shard.hosts().take(HOSTS_MAX) {
                let entry = after.hosts.entry(address.clone()).or_insert_with(|| {
                    before.hosts.get(address).cloned().unwrap_or_else(|| Entry {
                        host: Arc::new(monitor::Host::new(address, self.clock)),
                        probing: None,
                    })
                });
                bells.push(entry.host.bell().clone());
            }
            let state = match old {
                Some(state) if state.is_of(shard) => state.clone(),
                _ => {
                    let old = old.map(|state| &**state);
                    Arc::new(ShardState::new(shard, self.clock, &self.settings, old, bells))
                }
            };
            state.set_connector(self.tls.load().of(shard.id));
            after.shards.insert(shard.id, state);
        }
        after.introduce();
        if *is_started {
            self.probe(&mut after.hosts);
        }
        self.table.store(Arc::new(after));
    }

    /// Starts asking the hosts that aren't asked yet.
    fn probe(&self, hosts: &mut HashMap<Address, Entry>) {
        for entry in hosts.values_mut().filter(|entry| entry.probing.is_none()) {
            let probing = monitor::Probing::start(&entry.host, &self.settings);
            entry.probing = Some(Arc::new(probing));
        }
    }

    /// Nanoseconds since the fleet began: monotonic, never 0.
    pub fn now(&self) -> u64 {
        self.clock.now()
    }

    /// One shard's hosts.
    pub fn shard(&self, id: ShardId) -> Option<Arc<ShardState>> {
        self.table.load().shards.get(&id).cloned()
    }

    /// All shards, by rising id.
    pub fn shards(&self) -> Vec<Arc<ShardState>> {
        self.table.load().shards.values().cloned().collect()
    }

    /// Some shard has a primary: what `/readyz` asks.
    pub fn is_any_reachable(&self) -> bool {
        self.table.load().shards.values().any(|state| state.peek_primary().is_some())
    }

    /// How hosts are asked.
    pub fn settings(&self) -> &Arc<FleetSettings> {
        &self.settings
    }
}

impl Table {
    /// Tells each host which shards hear its answers.
    fn introduce(&self) {
        let mut listeners: HashMap<&Address, Vec<monitor::Listener>> = HashMap::new();
        for state in self.shards.values() {
            for (index, address) in state.addresses.iter().enumerate() {
                let listener = monitor::Listener { state: state.clone(), index };
                listeners.entry(address).or_default().push(listener);
            }
        }
        for (address, heard_by) in listeners {
            if let Some(entry) = self.hosts.get(address) {
                entry.host.set_listeners(heard_by);
            }
        }
    }
}

/// What a replica has to show, for readers that take no lock.
#[derive(Default)]
struct ReplicaCell {
    /// It may serve reads before this time; 0: it may not.
    until: AtomicU64,
    /// See [`HostHealth::fresh_as_of`].
    fresh_as_of: AtomicU64,
}

/// One shard's hosts. A host's index is its place in `Shard::hosts()`.
pub struct ShardState {
    id: ShardId,
    region: String,
    database: String,
    addresses: Vec<Address>,
    connector: ArcSwap<Connector>,
    clock: Clock,
    intervals: Intervals,
    /// Microseconds until when it counts << 8 | host + 1; 0 where there is none.
    primary: AtomicU64,
    replicas: Box<[ReplicaCell]>,
    used_at: AtomicU64,
    known: Mutex<Known>,
    /// A primary appeared.
    primary_appeared: Notify,
    /// Ask this host now. Rung by every shard of the host.
    bells: Box<[Arc<Notify>]>,
}

#[derive(Clone, Copy)]
struct Intervals {
    idle: u64,
    in_use: u64,
}

struct Known {
    health: ShardHealth,
    /// Why a host doesn't answer, for people.
    errors: Vec<Option<String>>,
    /// When a failure was last reported, per host.
    reported_at: Vec<u64>,
}

/// One host, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostView {
    /// Index in `Shard::hosts()`.
    pub index: usize,
    /// Where it is.
    pub address: Address,
    /// What it says it is, if it answers.
    pub standing: Standing,
    /// Timeline of its last answer.
    pub timeline: Option<u32>,
    /// LSN of its last answer.
    pub lsn: Option<u64>,
    /// Upper bound of a replica's lag: the age of the latest sample that it has reached.
    pub lag_ms: Option<u64>,
    /// Milliseconds since its last answer.
    pub answered_ms_ago: Option<u64>,
    /// Why it doesn't answer.
    pub error: Option<String>,
}

/// What a host is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// No answer within two intervals.
    Unknown,
    /// Accepts writes.
    Primary,
    /// In recovery, of the primary's cluster and timeline.
    Replica,
    /// Answers, and isn't used: see the shard's alarm.
    Unfit,
}

impl ShardState {
    fn new(
        shard: &Shard,
        clock: Clock,
        settings: &FleetSettings,
        old: Option<&Self>,
        bells: Vec<Arc<Notify>>,
    ) -> Self {
        let addresses: Vec<Address> = shard.hosts().take(HOSTS_MAX).cloned().collect();
        let hosts = addresses.len();
        let idle = nanoseconds(settings.health_interval);
        let mut health = ShardHealth::new(hosts);
        let mut errors = vec![None; hosts];
        if let Some(old) = old.filter(|old| old.database == shard.database) {
            let origin: Vec<Option<usize>> = addresses
                .iter()
                .map(|address| old.addresses.iter().position(|other| other == address))
                .collect();
            let known = lock(&old.known);
            health = known.health.rearranged(&origin);
            for (error, origin) in errors.iter_mut().zip(origin) {
                *error = origin.and_then(|origin| known.errors[origin].clone());
            }
        }
        let state = Self {
            id: shard.id,
            region: shard.region.clone(),
            database: shard.database.clone(),
            addresses,
            connector: ArcSwap::from_pointee(Connector::plain()),
            clock,
            intervals: Intervals {
                idle,
                in_use: nanoseconds(settings.freshness_interval).min(idle),
            },
            primary: AtomicU64::new(0),
            replicas: (0..hosts).map(|_| ReplicaCell::default()).collect(),
            used_at: AtomicU64::new(0),
            known: Mutex::new(Known { health, errors, reported_at: vec![0; hosts] }),
            primary_appeared: Notify::new(),
            bells: bells.into(),
        };
        state.publish(&lock(&state.known).health, clock.now());
        state
    }

    fn is_of(&self, shard: &Shard) -> bool {
        self.region == shard.region
            && self.database == shard.database
            && self.addresses.iter().eq(shard.hosts().take(HOSTS_MAX))
    }

    /// Its number.
    pub fn id(&self) -> ShardId {
        self.id
    }

    /// Its region.
    pub fn region(&self) -> &str {
        &self.region
    }

    /// The database on its hosts.
    pub fn database(&self) -> &str {
        &self.database
    }

    /// How its hosts are spoken to.
    pub fn connector(&self) -> Arc<Connector> {
        self.connector.load_full()
    }

    fn set_connector(&self, connector: &Connector) {
        if **self.connector.load() != *connector {
            self.connector.store(Arc::new(connector.clone()));
        }
    }

    /// Its hosts, by index.
    pub fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    /// Nanoseconds of the fleet's clock.
    pub fn now(&self) -> u64 {
        self.clock.now()
    }

    /// The host that accepts writes *now*: it said so within two intervals, on a timeline not lower
    /// than the last accepted one, and no other host disputes it.
    pub fn primary(&self) -> Option<usize> {
        self.primary_at(self.clock.now())
    }

    /// As [`primary`](Self::primary), without counting as use: for people and metrics.
    pub fn peek_primary(&self) -> Option<usize> {
        self.primary_unnoted(self.clock.now())
    }

    /// As [`primary`](Self::primary), for a caller that has read the clock already.
    pub fn primary_at(&self, now: u64) -> Option<usize> {
        self.note_use(now);
        self.primary_unnoted(now)
    }

    fn primary_unnoted(&self, now: u64) -> Option<usize> {
        // Acquire: whoever sees a new primary sees that no replica is fresh in its eyes yet.
        unpack(self.primary.load(Ordering::Acquire))
            .and_then(|(host, until_us)| (now / 1000 < until_us).then_some(host))
    }

    /// Replicas that answer and are fresh as of `as_of`, the fleet's time of a write's outcome, as
    /// a bit mask of host indexes. With `None` any replica that answers will do.
    pub fn fresh_replicas(&self, as_of: Option<u64>) -> u32 {
        self.fresh_replicas_at(self.clock.now(), as_of)
    }

    /// As [`fresh_replicas`](Self::fresh_replicas), for a caller that has read the clock already.
    pub fn fresh_replicas_at(&self, now: u64, as_of: Option<u64>) -> u32 {
        self.note_use(now);
        let mut mask = 0;
        for (index, cell) in self.replicas.iter().enumerate() {
            let is_fresh = as_of.is_none_or(|t| cell.fresh_as_of.load(Ordering::Acquire) > t);
            if is_fresh && now < cell.until.load(Ordering::Acquire) {
                mask |= 1 << index;
            }
        }
        mask
    }

    /// Waits until there is a primary and says which. Unbounded: the caller limits the time.
    /// Cancel safety: nothing is held.
    pub async fn wait_for_primary(&self) -> usize {
        loop {
            let appeared = self.primary_appeared.notified();
            tokio::pin!(appeared);
            // Race: a primary that appears between the look and the wait must not be missed.
            appeared.as_mut().enable();
            if let Some(host) = self.primary() {
                return host;
            }
            appeared.await;
        }
    }

    /// A hint from a pool: connecting to `host` failed, or a write there was refused as read-only.
    /// The host is unknown until it answers again, and the shard's hosts are asked at once. Reports
    /// that come faster than probes could answer are dropped.
    pub fn report_failure(&self, host: usize) {
        if host >= self.addresses.len() {
            return;
        }
        let now = self.clock.now();
        {
            let mut known = lock(&self.known);
            if now - known.reported_at[host] < self.intervals.in_use / 4
                && known.reported_at[host] > 0
            {
                return;
            }
            known.reported_at[host] = now;
            known.health.on_silence(host, now);
            self.publish(&known.health, now);
        }
        self.poke();
    }

    /// All hosts, for people.
    pub fn hosts(&self) -> Vec<HostView> {
        let now = self.clock.now();
        let known = lock(&self.known);
        (0..self.addresses.len()).map(|index| self.view(&known, index, now)).collect()
    }

    /// What is wrong with this shard, if anything.
    pub fn alarm(&self) -> Option<Alarm> {
        lock(&self.known).health.alarm()
    }

    fn view(&self, known: &Known, index: usize, now: u64) -> HostView {
        let host: HostHealth = known.health.hosts()[index];
        let standing = if host.known_until <= now {
            Standing::Unknown
        } else if known.health.primary().is_some_and(|(primary, _)| primary == index) {
            Standing::Primary
        } else if known.health.replica_until(index) > now {
            Standing::Replica
        } else {
            Standing::Unfit
        };
        let ms_ago = |then: u64| (then > 0).then(|| now.saturating_sub(then) / 1_000_000);
        HostView {
            index,
            address: self.addresses[index].clone(),
            standing,
            timeline: host.last.map(|answer| answer.timeline),
            lsn: host.last.map(|answer| answer.lsn),
            lag_ms: ms_ago(host.fresh_as_of).filter(|_| standing == Standing::Replica),
            answered_ms_ago: ms_ago(host.answered_at),
            error: known.errors[index].clone(),
        }
    }

    /// Notes that somebody wants this shard, and wakes the probes if they were resting.
    fn note_use(&self, now: u64) {
        let used_at = self.used_at.load(Ordering::Relaxed);
        if now.saturating_sub(used_at) < nanoseconds(USE_NOTED_EVERY) && used_at > 0 {
            return;
        }
        self.used_at.store(now, Ordering::Relaxed);
        if !self.is_in_use(used_at, now) && self.intervals.in_use < self.intervals.idle {
            self.poke();
        }
    }

    fn is_in_use(&self, used_at: u64, now: u64) -> bool {
        used_at > 0 && now.saturating_sub(used_at) < nanoseconds(IN_USE)
    }

    fn poke(&self) {
        self.bells.iter().for_each(|bell| bell.notify_one());
    }

    /// Nanoseconds between the probes that this shard wants.
    fn interval(&self) -> u64 {
        let used_at = self.used_at.load(Ordering::Relaxed);
        if self.is_in_use(used_at, self.clock.now()) {
            self.intervals.in_use
        } else {
            self.intervals.idle
        }
    }

    /// A host answered a question that was sent at `sent_at`. Called by `monitor`, and by tests
    /// that play the hosts.
    pub fn on_answer(&self, host: usize, answer: Answer, sent_at: u64) {
        let now = self.clock.now();
        let known_until = now + 2 * self.interval();
        let mut known = lock(&self.known);
        if host >= known.errors.len() {
            return;
        }
        let before = known.health.alarm();
        known.errors[host] = None;
        known.health.on_answer(host, answer, sent_at, now, known_until);
        self.publish(&known.health, now);
        self.log_alarm(before, &known.health);
    }

    /// A host did not answer, for this reason.
    pub fn on_silence(&self, host: usize, error: String) {
        let now = self.clock.now();
        let mut known = lock(&self.known);
        if host >= known.errors.len() {
            return;
        }
        let before = known.health.alarm();
        if known.errors[host].as_ref() != Some(&error) {
            let address = &self.addresses[host];
            tracing::warn!(shard = self.id.0, %address, error, "host does not answer");
        }
        known.errors[host] = Some(error);
        known.health.on_silence(host, now);
        self.publish(&known.health, now);
        self.log_alarm(before, &known.health);
    }

    fn log_alarm(&self, before: Option<Alarm>, health: &ShardHealth) {
        if let Some(alarm) = health.alarm().filter(|alarm| before != Some(*alarm)) {
            tracing::error!(shard = self.id.0, ?alarm, "shard is not sound");
        }
    }

    /// Makes `health` visible to readers. Order matters: a new primary is shown last, behind the
    /// fall of every `fresh_as_of` to 0, so that a write to it is never followed by a read from a
    /// replica that was fresh in the eyes of the old one.
    fn publish(&self, health: &ShardHealth, now: u64) {
        for (index, cell) in self.replicas.iter().enumerate() {
            cell.until.store(health.replica_until(index), Ordering::Release);
            cell.fresh_as_of.store(health.hosts()[index].fresh_as_of, Ordering::Release);
        }
        let packed = health.primary().map_or(0, |(host, until)| pack(host, until));
        let before = unpack(self.primary.swap(packed, Ordering::AcqRel));
        let had = before.filter(|(_, until_us)| now / 1000 < *until_us).map(|(host, _)| host);
        let has = health.primary().map(|(host, _)| host);
        if has.is_some() && has != had {
            self.primary_appeared.notify_waiters();
            let address = has.map(|host| self.addresses[host].to_string());
            let timeline = health.accepted().map(|accepted| accepted.timeline);
            tracing::info!(shard = self.id.0, address, timeline, "shard has a primary");
        }
    }
}

fn pack(host: usize, until: u64) -> u64 {
    (until / 1000) << 8 | (host as u64 + 1)
}

fn unpack(packed: u64) -> Option<(usize, u64)> {
    let host = (packed & 0xff).checked_sub(1)?;
    Some((host as usize, packed >> 8))
}

/// What the mutexes guard is whole between statements, so a panic elsewhere does not spoil it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
