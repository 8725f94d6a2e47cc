//! Asking the hosts: one control connection each, a question per interval, answers to `ShardState`.
//!
//! Each host has a task: connect, ask, wait, ask again. Its answers go to every shard that names the
//! host, as often as the most eager of them wants, over a connection to any one's database. Whatever
//! goes wrong, from a refused connect to a late answer, makes the host unknown at once and is tried
//! again, slower each time. The questions are spread over the interval so that three hundred hosts
//! don't answer in one moment.
//!
//! The probe user needs LOGIN and no right beyond; with `pg_read_all_stats` (or `pg_monitor`) it
//! also sees the timeline that a replica receives, so that replicas serve again right after a
//! failover instead of after their next restartpoint. Works on PostgreSQL 13 to 18.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::PgLsn;
use tokio_postgres::{Client, Statement};

use super::control::Control as Socket;
use super::health::{Answer, end_of_records};
use super::{Clock, FleetSettings, ShardState};
use crate::net::tls::Connector;
use crate::shard_map::Address;

/// Longest pause between connects to a host that doesn't answer.
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// Pause after a refused login: no use in asking more often, and servers log each one.
const BACKOFF_LOGIN: Duration = Duration::from_secs(10);

/// Asked once per connection: what can't change while a server runs.
const IDENTITY: &str = "SELECT system_identifier,
    pg_catalog.current_setting('wal_block_size')::int8,
    pg_catalog.pg_size_bytes(pg_catalog.current_setting('wal_segment_size'))
    FROM pg_catalog.pg_control_system()";

/// Asked every interval. `r` is read once, and promotion is one way, so no arm can fail. A
/// replica's timeline is the highest that anything tells of it: the control file lags behind.
const PROBE: &str = "SELECT r,
    CASE WHEN r THEN pg_catalog.pg_last_wal_replay_lsn()
         ELSE pg_catalog.pg_current_wal_insert_lsn() END,
    CASE WHEN r THEN greatest(
             (SELECT received_tli FROM pg_catalog.pg_stat_wal_receiver),
             (SELECT min_recovery_end_timeline FROM pg_catalog.pg_control_recovery()),
             (SELECT timeline_id FROM pg_catalog.pg_control_checkpoint()))
         ELSE ('x' || pg_catalog.substr(pg_catalog.pg_walfile_name(
             pg_catalog.pg_current_wal_lsn()), 1, 8))::bit(32)::int4 END
    FROM (SELECT pg_catalog.pg_is_in_recovery() AS r OFFSET 0) AS s";

/// Why a host gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No answer in time.
    #[error("timed out")]
    TimedOut,
    /// The server refused; its SQLSTATE only, since its words may hold anything.
    #[error("refused with SQLSTATE {}", .0.code())]
    Refused(SqlState),
    /// No connection, or it broke.
    #[error("{0}")]
    Broken(String),
    /// It answered what no Postgres answers.
    #[error("unexpected answer")]
    Unexpected,
}

impl From<tokio_postgres::Error> for Error {
    fn from(error: tokio_postgres::Error) -> Self {
        if let Some(state) = error.code() {
            return Self::Refused(state.clone());
        }
        let source = std::error::Error::source(&error).map(|source| format!(": {source}"));
        Self::Broken(format!("{error}{}", source.unwrap_or_default()))
    }
}

/// A control connection's other half: it must be polled for the client to get answers.
pub type Carrier = tokio_postgres::Connection<Socket, Socket>;

/// Opens a control connection: read-only, with a fixed search_path and a statement timeout. Used
/// for probes and for reading catalogs, through [`carried`].
pub async fn connect(
    address: &Address,
    tls: &Connector,
    database: &str,
    settings: &FleetSettings,
    statement_timeout: Duration,
) -> Result<(Client, Carrier), Error> {
    let mut config = tokio_postgres::Config::new();
    config.dbname(database).user(&settings.user).application_name("pgward").options(format!(
        "-c default_transaction_read_only=on -c search_path=pg_catalog -c jit=off \
             -c statement_timeout={}",
        statement_timeout.as_millis()
    ));
    if let Some(secret) = &settings.secret {
        config.password(secret);
    }
    let connecting = timeout(settings.probe_timeout, super::control::connect(address, tls, config));
    connecting.await.map_err(|_| Error::TimedOut)?
}

/// Runs `work` over its connection, in one task: two would wake each other for every answer. Ends
/// as soon as the connection does.
pub async fn carried<T, E: From<Error>>(
    carrier: Carrier,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    // Work first: what it got before the connection ended counts.
    tokio::select! {
        biased;
        done = work => done,
        ended = carrier => Err(match ended {
            Ok(()) => Error::Broken("connection closed".into()),
            Err(error) => error.into(),
        }
        .into()),
    }
}

/// A host and the shards that hear its answers.
pub(super) struct Host {
    address: Address,
    clock: Clock,
    listeners: ArcSwap<Vec<Listener>>,
    bell: Arc<Notify>,
}

/// A shard, and the host's index there.
pub(super) struct Listener {
    pub(super) state: Arc<ShardState>,
    pub(super) index: usize,
}

impl Host {
    pub(super) fn new(address: &Address, clock: Clock) -> Self {
        let (address, listeners, bell) = (address.clone(), ArcSwap::default(), Arc::default());
        Self { address, clock, listeners, bell }
    }

    /// Rung to have the host asked at once.
    pub(super) fn bell(&self) -> &Arc<Notify> {
        &self.bell
    }

    /// Follows a reload. Whoever is new hears an answer at once.
    pub(super) fn set_listeners(&self, after: Vec<Listener>) {
        let before = self.listeners.load();
        let is_same =
            |(a, b): (&Listener, &Listener)| Arc::ptr_eq(&a.state, &b.state) && a.index == b.index;
        if before.len() != after.len() || !before.iter().zip(&after).all(is_same) {
            self.listeners.store(Arc::new(after));
            self.bell.notify_one();
        }
    }

    fn on_answer(&self, answer: Answer, sent_at: u64) {
        for listener in self.listeners.load().iter() {
            listener.state.on_answer(listener.index, answer, sent_at);
        }
    }

    fn on_silence(&self, error: &Error) {
        for listener in self.listeners.load().iter() {
            listener.state.on_silence(listener.index, error.to_string());
        }
    }

    /// What the most eager shard wants.
    fn interval(&self, settings: &FleetSettings) -> Duration {
        let listeners = self.listeners.load();
        let shortest = listeners.iter().map(|listener| listener.state.interval()).min();
        shortest.map_or(settings.health_interval, Duration::from_nanos)
    }

    /// The database to connect to and how, another one each turn.
    fn database(&self, turn: usize) -> Option<(String, Arc<Connector>)> {
        let listeners = self.listeners.load();
        let state = &listeners.get(turn.checked_rem(listeners.len())?)?.state;
        Some((state.database().to_owned(), state.connector()))
    }

    fn has_database(&self, database: &str, tls: &Connector) -> bool {
        let listeners = self.listeners.load();
        let mut states = listeners.iter().map(|listener| &listener.state);
        states.any(|state| state.database() == database && *state.connector() == *tls)
    }
}

/// The task that asks a host. It ends when this is dropped.
pub(super) struct Probing {
    task: JoinHandle<()>,
}

impl Probing {
    pub(super) fn start(host: &Arc<Host>, settings: &Arc<FleetSettings>) -> Self {
        Self { task: tokio::spawn(watch(host.clone(), settings.clone())) }
    }
}

impl Drop for Probing {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn watch(host: Arc<Host>, settings: Arc<FleetSettings>) {
    let mut failures = 0u32;
    let mut turn = 0usize;
    // Databases in a row that let nobody in.
    let mut refused = 0usize;
    loop {
        // The first connect after a lost connection comes at once: most often the server restarted
        // or somebody closed idle connections.
        let began = Instant::now();
        let mut is_open = false;
        let asked = probe(&host, turn, &settings, || is_open = true).await;
        if is_open {
            (failures, refused) = (0, 0);
        }
        let Err(error) = asked else { continue };
        turn = turn.wrapping_add(1);
        // Says nothing of the host, if another shard's database lets us in.
        if !is_open && is_of_database(&error) {
            refused += 1;
            if refused < host.listeners.load().len() {
                continue;
            }
        }
        refused = 0;
        let pause = backoff(&error, failures, &settings);
        host.on_silence(&error);
        failures = failures.saturating_add(1);
        let until = began + pause;
        // A refused login is not asked again on a mere hint.
        tokio::select! {
            biased;
            () = host.bell.notified(), if pause < BACKOFF_LOGIN => {}
            () = tokio::time::sleep_until(until) => {}
        }
    }
}

/// The database doesn't exist, takes no connections, or not from us.
fn is_of_database(error: &Error) -> bool {
    matches!(error, Error::Refused(state)
        if [SqlState::INVALID_CATALOG_NAME, SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
            SqlState::INSUFFICIENT_PRIVILEGE].contains(state))
}

fn backoff(error: &Error, failures: u32, settings: &FleetSettings) -> Duration {
    let is_login = matches!(error, Error::Refused(state)
        if *state == SqlState::INVALID_PASSWORD || state.code().starts_with("28"));
    if is_login {
        return BACKOFF_LOGIN;
    }
    let first = settings.freshness_interval.min(settings.health_interval);
    let pause = first.saturating_mul(1 << failures.min(10)).min(BACKOFF_MAX);
    pause.mul_f64(0.75 + 0.25 * rand::random::<f64>())
}

/// Connects and asks until something goes wrong, or until no shard has this database any more or is
/// spoken to like this.
async fn probe(
    host: &Host,
    turn: usize,
    settings: &FleetSettings,
    on_open: impl FnOnce(),
) -> Result<(), Error> {
    let Some((database, tls)) = host.database(turn) else {
        host.bell.notified().await;
        return Ok(());
    };
    let limit = settings.probe_timeout;
    let (client, carrier) = connect(&host.address, &tls, &database, settings, limit).await?;
    let asking = async {
        let opening = timeout(limit, Control::open(client));
        let control = opening.await.map_err(|_| Error::TimedOut)??;
        on_open();
        control.ask_while_named(host, &database, &tls, settings).await
    };
    carried(carrier, asking).await
}

/// When to ask again: 80 to 100 % of the interval later, early rather than late because an answer
/// counts for two intervals. `spread` is from 0 to 1 and random, so that hosts don't drift into one
/// moment; rounding to tenths gathers them in ten, which saves most of what waking up costs.
fn next_at(sent_at: u64, interval: Duration, spread: f64) -> u64 {
    let slot = (super::nanoseconds(interval) / 10).max(1);
    let at = sent_at + super::nanoseconds(interval.mul_f64(0.9 + 0.1 * spread));
    at - at % slot
}

/// A control connection whose server has said who it is.
struct Control {
    client: Client,
    question: Statement,
    system: u64,
    block_bytes: u64,
    segment_bytes: u64,
}

impl Control {
    async fn open(client: Client) -> Result<Self, Error> {
        let identity = client.query_one(IDENTITY, &[]).await?;
        let question = client.prepare(PROBE).await?;
        let number = |column| identity.try_get::<_, i64>(column).map(|n| n as u64);
        let (system, block_bytes, segment_bytes) = (number(0)?, number(1)?, number(2)?);
        Ok(Self { client, question, system, block_bytes, segment_bytes })
    }

    /// Asks once per interval, at times that are the interval apart whatever an answer takes.
    async fn ask_while_named(
        self,
        host: &Host,
        database: &str,
        tls: &Connector,
        settings: &FleetSettings,
    ) -> Result<(), Error> {
        // A connection would keep a database that moved away from being dropped.
        while host.has_database(database, tls) {
            let sent_at = host.clock.now();
            let asking = timeout(settings.probe_timeout, self.ask());
            let answer = asking.await.map_err(|_| Error::TimedOut)??;
            host.on_answer(answer, sent_at);
            let next = next_at(sent_at, host.interval(settings), rand::random());
            let until = host.clock.began + Duration::from_nanos(next);
            tokio::select! {
                biased;
                () = host.bell.notified() => {}
                () = tokio::time::sleep_until(until) => {}
            }
        }
        Ok(())
    }

    async fn ask(&self) -> Result<Answer, Error> {
        let row = self.client.query_one(&self.question, &[]).await?;
        let is_in_recovery: bool = row.try_get(0)?;
        let lsn: Option<PgLsn> = row.try_get(1)?;
        let timeline: Option<i32> = row.try_get(2)?;
        let (Some(lsn), Some(timeline)) = (lsn, timeline) else { return Err(Error::Unexpected) };
        let lsn = u64::from(lsn);
        let lsn = if is_in_recovery {
            lsn
        } else {
            end_of_records(lsn, self.block_bytes, self.segment_bytes)
        };
        Ok(Answer { is_in_recovery, timeline: timeline as u32, lsn, system: self.system })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn the_next_question_is_in_a_slot_and_never_late(
            sent_at in 1u64..1 << 60, ms in 1u64..3_600_000, spread in 0.0f64..1.0
        ) {
            let interval = ms * 1_000_000;
            let next = next_at(sent_at, Duration::from_millis(ms), spread);
            assert_eq!(next % (interval / 10), 0);
            assert!(next <= sent_at + interval);
            assert!(next + 1 >= sent_at + interval / 10 * 8);
        }
    }
}
