//! What the shards say of their tables, views and functions, read from their own catalogs.
//!
//! [`read`] takes [`ShardFacts`] off one shard over a control connection; [`CatalogStore`] does so
//! for every shard at the start, every `catalog_refresh_s`, and when asked, and publishes a new
//! `sql::Catalog` when the facts changed. `session` resolves names against the snapshot, asks for a
//! refresh where a statement names an unknown table, and requests one after DDL.
//!
//! A shard that is down keeps the facts that it had. One that was never read has none, so the
//! snapshot does not speak for it: a statement may go to a shard only if the snapshot that it was
//! analysed with [`speaks_for`](Snapshot::speaks_for) it. Else a name that is a table on all other
//! shards could be a view over anything on this one. It costs no availability: a shard that can
//! serve can also be read, within moments.
//!
//! Facts of views come from the rule's stored tree, not from pg_depend alone: pg_depend leaves out
//! what initdb made, such as pg_statistic, which holds patients' values, or `table_to_xml`.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_postgres::{Client, Row};

use crate::fleet::monitor::{self, carried, connect};
use crate::fleet::{Fleet, FleetSettings, ShardState, Standing};
use crate::net::tls::Connector;
use crate::shard_map::{Address, ShardId, ShardMap};
use crate::sql::catalog::FunctionKind;
use crate::sql::functions::builtin_function;
use crate::sql::{Catalog, Declared, FunctionFact, RelationFact, ShardFacts};

/// What reading one shard may take, with its connect.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// Rows of one kind that a shard may have; more is an error, not a guess.
const ROWS_MAX: usize = 200_000;
/// Shards that are read at a time.
const READERS_MAX: usize = 8;
/// A refresh begins at least this long after the last one ended, and so long as that one took.
const GAP_MIN: Duration = Duration::from_millis(200);
/// How often shards that were never read are looked at: is there a host now?
const UNREAD_TICK: Duration = Duration::from_millis(100);
/// Pause after such a shard could not be read although a host answers.
const UNREAD_RETRY: Duration = Duration::from_secs(1);
/// What a caller of [`CatalogStore::refresh_now`] waits at most.
const REFRESH_WAIT_MAX: Duration = Duration::from_secs(10);

/// Why a shard's catalog was not read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection, or a query failed.
    #[error(transparent)]
    Server(#[from] monitor::Error),
    /// It took too long.
    #[error("reading the catalog timed out")]
    TimedOut,
    /// More relations, functions or types than pgward takes.
    #[error("more than {ROWS_MAX} {0}")]
    TooMany(&'static str),
    /// No host of the shard answers.
    #[error("no host answers")]
    NoHost,
}

impl From<tokio_postgres::Error> for Error {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Server(error.into())
    }
}

/// User objects have OIDs from 16384; all else was made by initdb. System schemas are named too,
/// for what somebody put into them later.
macro_rules! is_users {
    ($oid:literal) => {
        concat!(
            "(n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast') OR ",
            $oid,
            " >= 16384)"
        )
    };
}

const RELATIONS: &str = concat!(
    "SELECT c.oid, n.nspname::text, c.relname::text, c.relkind::text,
        c.relrowsecurity AND c.relforcerowsecurity,
        ARRAY(SELECT a.attname::text FROM pg_attribute a
            WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum),
        ARRAY(SELECT format_type(a.atttypid, NULL) FROM pg_attribute a
            WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum)
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S') AND c.relpersistence <> 't' AND ",
    is_users!("c.oid"),
    " ORDER BY n.nspname, c.relname LIMIT $1"
);

/// What each view names, by the oids in its rules' trees: relations, then functions, also
/// aggregates, window functions and those behind operators. Operators of pg_catalog compute.
const READS: &str = r"WITH named AS (
        SELECT r.ev_class AS view, m[1] AS what, m[2]::oid AS id
        FROM pg_rewrite r JOIN pg_class c ON c.oid = r.ev_class,
            regexp_matches(r.ev_action::text || r.ev_qual::text,
                ':(relid|funcid|opfuncid|aggfnoid|winfnoid) (\d+)', 'g') AS m
        WHERE c.relkind IN ('v', 'm') AND c.oid >= 16384
    ), reads AS (
        SELECT view, id FROM named WHERE what = 'relid'
        UNION
        SELECT r.ev_class, d.refobjid FROM pg_rewrite r
        JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid
        WHERE d.refclassid = 'pg_class'::regclass
    )
    SELECT view, n.nspname::text, c.relname::text, false
    FROM reads JOIN pg_class c ON c.oid = reads.id JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE reads.id <> view
    UNION
    SELECT view, n.nspname::text, p.proname::text, true
    FROM named JOIN pg_proc p ON p.oid = named.id JOIN pg_namespace n ON n.oid = p.pronamespace
    WHERE what <> 'relid' AND (what <> 'opfuncid' OR p.oid >= 16384)
    ORDER BY 1, 2, 3, 4 LIMIT $1";

const FUNCTIONS: &str = concat!(
    "SELECT DISTINCT n.nspname::text, p.proname::text
    FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE ",
    is_users!("p.oid"),
    " ORDER BY 1, 2 LIMIT $1"
);

/// Without those of temporary tables: they come and go with other sessions.
const TYPES: &str = concat!(
    "SELECT n.nspname::text, t.typname::text, t.oid
    FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
    WHERE n.nspname !~ '^pg_(toast_)?temp_' AND ",
    is_users!("t.oid"),
    " ORDER BY 1, 2 LIMIT $1"
);

/// Also one in pg_catalog that initdb did not make.
const FOREIGN_EQUALITY: &str = concat!(
    "SELECT EXISTS (SELECT FROM pg_operator o JOIN pg_namespace n ON n.oid = o.oprnamespace
    WHERE o.oprname = '=' AND 'uuid'::regtype IN (o.oprleft, o.oprright) AND ",
    is_users!("o.oid"),
    ")"
);

/// Reads one shard's facts from one of its hosts.
pub async fn read(
    address: &Address,
    tls: &Connector,
    database: &str,
    settings: &FleetSettings,
) -> Result<ShardFacts, Error> {
    let reading = async {
        let (client, carrier) = connect(address, tls, database, settings, READ_TIMEOUT).await?;
        carried(carrier, read_with(&client)).await
    };
    timeout(READ_TIMEOUT, reading).await.map_err(|_| Error::TimedOut)?
}

async fn read_with(client: &Client) -> Result<ShardFacts, Error> {
    // One snapshot for all of it. It ends with the connection.
    client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
    let mut relations = Vec::new();
    let mut index_of = HashMap::new();
    for row in rows(client, RELATIONS, "relations").await? {
        index_of.insert(row.try_get::<_, u32>(0)?, relations.len());
        relations.push(relation(&row)?);
    }
    for row in rows(client, READS, "references of views").await? {
        let view: u32 = row.try_get(0)?;
        let (schema, mut name): (String, String) = (row.try_get(1)?, row.try_get(2)?);
        if row.try_get(3)? {
            // Most views call some builtin function; only those that are more than a computation
            // count as something that is read.
            let is_harmless = schema == "pg_catalog"
                && matches!(builtin_function(&name), Some(FunctionKind::BuiltinRead));
            if is_harmless {
                continue;
            }
            name.push_str("()");
        }
        if let Some(index) = index_of.get(&view) {
            relations[*index].reads.push((schema, name));
        }
    }
    let mut functions = Vec::new();
    for row in rows(client, FUNCTIONS, "functions").await? {
        functions.push(FunctionFact { schema: row.try_get(0)?, name: row.try_get(1)? });
    }
    let mut types = Vec::new();
    for row in rows(client, TYPES, "types").await? {
        types.push((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?));
    }
    let has_foreign_uuid_equality = client.query_one(FOREIGN_EQUALITY, &[]).await?.try_get(0)?;
    Ok(ShardFacts { relations, functions, types, has_foreign_uuid_equality })
}

async fn rows(client: &Client, sql: &str, what: &'static str) -> Result<Vec<Row>, Error> {
    let rows = client.query(sql, &[&(ROWS_MAX as i64 + 1)]).await?;
    if rows.len() > ROWS_MAX { Err(Error::TooMany(what)) } else { Ok(rows) }
}

fn relation(row: &Row) -> Result<RelationFact, Error> {
    let kind: String = row.try_get(3)?;
    let (names, types): (Vec<String>, Vec<String>) = (row.try_get(5)?, row.try_get(6)?);
    Ok(RelationFact {
        schema: row.try_get(1)?,
        name: row.try_get(2)?,
        kind: kind.chars().next().unwrap_or('?'),
        columns: names.into_iter().zip(types).collect(),
        reads: Vec::new(),
        is_rls_forced: row.try_get(4)?,
    })
}

/// The map's declarations, as `sql` takes them. A name without a schema is in `public`.
pub fn declared(map: &ShardMap, safe_functions: &[String]) -> Declared {
    let qualified = |name: &String| match name.split_once('.') {
        Some((schema, name)) => (schema.to_owned(), name.to_owned()),
        None => ("public".to_owned(), name.clone()),
    };
    let key_tables = map.tables.key_tables.iter();
    Declared {
        key_column: map.tables.key_column.clone(),
        key_tables: key_tables.map(|(table, key)| (qualified(table), key.clone())).collect(),
        reference: map.tables.reference.iter().map(qualified).collect(),
        safe_functions: safe_functions.to_vec(),
        is_one_shard: map.shards().len() == 1,
    }
}

/// What names mean now, and which shards have been heard on it.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Names.
    pub catalog: Arc<Catalog>,
    shards: HashSet<ShardId>,
}

impl Snapshot {
    /// The shard's own catalog is part of it.
    pub fn speaks_for(&self, shard: ShardId) -> bool {
        self.shards.contains(&shard)
    }
}

/// Facts of all shards and the snapshot made of them. One per process.
pub struct CatalogStore {
    fleet: Arc<Fleet>,
    refresh_every: Duration,
    current: ArcSwap<Snapshot>,
    known: Mutex<Known>,
    wanted: Notify,
    /// Refreshes begun, and the number of the last one that ended.
    begun: AtomicU64,
    ended: watch::Sender<u64>,
    /// Rises when what names mean may have changed.
    epoch: AtomicU64,
}

struct Known {
    declared: Declared,
    /// By rising id; a shard without facts is not here.
    shards: Vec<Read>,
    version: u64,
}

/// What one shard said.
#[derive(Clone)]
struct Read {
    shard: ShardId,
    origin: Origin,
    facts: Arc<ShardFacts>,
}

/// Where facts are from; of another database they say nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Origin {
    database: String,
    hosts: Vec<Address>,
}

impl Origin {
    fn of(state: &ShardState) -> Self {
        Self { database: state.database().to_owned(), hosts: state.addresses().to_vec() }
    }

    /// The map moved hosts around, but it is the same database.
    fn continues(&self, other: &Self) -> bool {
        self.database == other.database && self.hosts.iter().any(|host| other.hosts.contains(host))
    }
}

impl CatalogStore {
    /// A store that has read nothing yet: its snapshot knows no table.
    pub fn new(fleet: Arc<Fleet>, declared: Declared, refresh_every: Duration) -> Arc<Self> {
        Arc::new(Self {
            fleet,
            refresh_every: refresh_every.max(GAP_MIN),
            current: ArcSwap::default(),
            known: Mutex::new(Known { declared, shards: Vec::new(), version: 0 }),
            wanted: Notify::new(),
            begun: AtomicU64::new(0),
            ended: watch::Sender::new(0),
            epoch: AtomicU64::new(0),
        })
    }

    /// A store that knows `catalog` of every shard for good: for tests, where no shard can be read.
    pub fn fixed(fleet: Arc<Fleet>, catalog: Catalog) -> Arc<Self> {
        let shards = fleet.shards().iter().map(|state| state.id()).collect();
        let mut store = Self::new(fleet, Declared::default(), Duration::MAX);
        if let Some(store) = Arc::get_mut(&mut store) {
            store.current.store(Arc::new(Snapshot { catalog: Arc::new(catalog), shards }));
            // Whoever asks for a refresh has had it.
            store.ended.send_replace(u64::MAX);
        }
        store
    }

    /// The snapshot now. A request takes it once, and asks the same one for names and shards.
    pub fn current(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// The snapshot for a short look, without touching its reference count.
    pub fn peek(&self) -> arc_swap::Guard<Arc<Snapshot>> {
        self.current.load()
    }

    /// Asks for a refresh soon, and doesn't wait: after DDL.
    pub fn request_refresh(&self) {
        self.epoch.fetch_add(1, Ordering::SeqCst);
        self.wanted.notify_one();
    }

    /// What was parsed under another epoch may mean something else now.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Relaxed)
    }

    /// Waits for a refresh that began after this call and returns its snapshot: for a statement that
    /// names an unknown table. Many callers share one refresh; past a time limit the snapshot is
    /// what it is. Needs [`run`](Self::run) to be running.
    pub async fn refresh_now(&self) -> Arc<Snapshot> {
        let mut ended = self.ended.subscribe();
        // Race: a refresh that is under way may have read the shard already, so the next one counts.
        let wanted = self.begun.load(Ordering::SeqCst) + 1;
        self.wanted.notify_one();
        let _ = timeout(REFRESH_WAIT_MAX, ended.wait_for(|ended| *ended >= wanted)).await;
        self.current()
    }

    /// Takes over a reloaded map, whose hosts `fleet` must know already.
    pub fn apply(&self, declared: Declared) {
        {
            let mut known = self.lock();
            let is_declared_anew = known.declared != declared;
            known.declared = declared;
            self.take(&mut known, Vec::new(), is_declared_anew);
        }
        self.request_refresh();
    }

    /// Refreshes for ever: at the start, on request, and with time. Shards that were never read
    /// are read as soon as a host of theirs answers.
    pub async fn run(self: Arc<Self>) {
        let mut next = Instant::now();
        let mut next_of_unread = next;
        loop {
            let has_unread = !self.unread().is_empty();
            // The order is of no matter: each is a reason, and the first two are one.
            tokio::select! {
                biased;
                () = self.wanted.notified() => next = Instant::now(),
                () = tokio::time::sleep_until(next) => {}
                () = tokio::time::sleep(UNREAD_TICK), if has_unread => {}
            }
            let began = Instant::now();
            if began >= next {
                let number = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
                self.refresh(self.fleet.shards()).await;
                self.ended.send_replace(number);
                tokio::time::sleep(began.elapsed().max(GAP_MIN)).await;
                next = Instant::now() + self.refresh_every;
            } else if began >= next_of_unread && !self.refresh(self.unread()).await {
                next_of_unread = Instant::now() + UNREAD_RETRY;
            }
        }
    }

    /// Shards without facts.
    fn unread(&self) -> Vec<Arc<ShardState>> {
        let mut shards = self.fleet.shards();
        let current = self.current();
        shards.retain(|state| !current.speaks_for(state.id()));
        shards
    }

    /// Reads these shards once; false if one that answers could not be read.
    async fn refresh(&self, states: Vec<Arc<ShardState>>) -> bool {
        let permits = Arc::new(Semaphore::new(READERS_MAX));
        let mut readers = JoinSet::new();
        for state in states {
            let permits = permits.clone();
            let settings = self.fleet.settings().clone();
            let was_read = self.peek().speaks_for(state.id());
            readers.spawn(async move {
                let _permit = permits.acquire_owned().await;
                let facts = read_shard(&state, &settings, was_read).await;
                (state.id(), Origin::of(&state), facts)
            });
        }
        let mut fresh = Vec::new();
        let mut is_complete = true;
        while let Some(joined) = readers.join_next().await {
            match joined {
                Ok((shard, origin, Ok(facts))) => {
                    fresh.push(Read { shard, origin, facts: Arc::new(facts) });
                }
                Ok((_, _, Err(Error::NoHost))) => {}
                Ok((shard, _, Err(error))) => {
                    tracing::warn!(shard = shard.0, %error, "catalog not read");
                    is_complete = false;
                }
                Err(_) => is_complete = false,
            }
        }
        self.take(&mut self.lock(), fresh, false);
        is_complete
    }

    /// Puts fresh facts in place of old ones, drops those of shards that left or became another
    /// database, publishes if anything changed or `must` be.
    fn take(&self, known: &mut Known, fresh: Vec<Read>, must: bool) {
        let old = std::mem::replace(&mut known.shards, fresh);
        for state in self.fleet.shards() {
            let origin = Origin::of(&state);
            if known.shards.iter().all(|read| read.shard != state.id())
                && let Some(read) = old
                    .iter()
                    .find(|read| read.shard == state.id() && read.origin.continues(&origin))
            {
                known.shards.push(Read { origin, ..read.clone() });
            }
        }
        known.shards.sort_by_key(|read| read.shard);
        let is_same = old.len() == known.shards.len()
            && old.iter().zip(&known.shards).all(|(old, new)| {
                old.shard == new.shard
                    && (Arc::ptr_eq(&old.facts, &new.facts) || old.facts == new.facts)
            });
        if must || !is_same {
            self.publish(known);
        }
    }

    fn publish(&self, known: &mut Known) {
        known.version += 1;
        self.epoch.fetch_add(1, Ordering::SeqCst);
        let facts: Vec<ShardFacts> =
            known.shards.iter().map(|read| ShardFacts::clone(&read.facts)).collect();
        let catalog = Catalog::build(known.version, &facts, &known.declared);
        let relations = facts.iter().map(|facts| facts.relations.len()).max().unwrap_or(0);
        tracing::info!(version = known.version, shards = facts.len(), relations, "catalog changed");
        let shards = known.shards.iter().map(|read| read.shard).collect();
        self.current.store(Arc::new(Snapshot { catalog: Arc::new(catalog), shards }));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The primary's facts. A replica's may be older than those that pgward has, so it is asked only
/// where there are none.
async fn read_shard(
    state: &ShardState,
    settings: &FleetSettings,
    was_read: bool,
) -> Result<ShardFacts, Error> {
    let hosts = state.hosts();
    let primary = hosts.iter().find(|host| host.standing == Standing::Primary);
    let replica =
        || hosts.iter().find(|host| host.standing == Standing::Replica).filter(|_| !was_read);
    let host = primary.or_else(replica).ok_or(Error::NoHost)?;
    read(&host.address, &state.connector(), state.database(), settings).await
}
