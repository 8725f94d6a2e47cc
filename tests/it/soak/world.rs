//! Eight shards with replicas, one oracle that holds all their rows, and pgward before the shards,
//! once under guard `strict` and once under `route`. Each hospital is one client's at a time.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pgward::cli::local::{Options, Postgres, Sandbox};
use uuid::Uuid;

use super::faults::Disturbances;
use super::statements::Value;
use super::tally::Tally;
use crate::support::{Dice, PATIENCE, REFERENCE_ROWS, SCHEMA, Ward};

pub const SHARDS: u16 = 8;
pub const CLUSTERS: usize = 2;
/// The cluster whose commits wait for its replica: a server lost meanwhile has committed.
pub const SYNCHRONOUS: usize = 1;
const SHARDS_PER_CLUSTER: u16 = SHARDS / CLUSTERS as u16;
/// Ids of hospitals, apart so that the ids of their rows are.
const IDS_PER_HOSPITAL: i64 = 100_000;
const PATIENTS: usize = 40;
const VISITS: usize = 60;
const USERS: usize = 20;
/// Units of a hospital's history that a failure tells.
const HISTORY: usize = 60;

/// A primary and its replica, which have the databases of four shards.
pub struct Cluster {
    pub primary: Postgres,
    pub replica: Postgres,
}

/// All servers. The oracle is never harmed.
pub struct Servers {
    pub sandbox: Sandbox,
    pub clusters: Vec<Cluster>,
    pub oracle: Postgres,
}

/// What all clients share.
pub struct World {
    pub seed: u64,
    pub oracle: u16,
    /// Ports of the primaries.
    pub primaries: Vec<u16>,
    pub disturbances: Disturbances,
    /// Statements run so far.
    pub statements: AtomicU64,
    pub is_over: AtomicBool,
    pub tally: Mutex<Tally>,
}

/// One pgward and its hospitals.
pub struct Scene {
    pub name: &'static str,
    pub ward: Ward,
    /// Its guard's mode is `route`.
    pub is_route: bool,
    /// Those that nobody works for now.
    free: Mutex<Vec<Hospital>>,
    pub all: Vec<Uuid>,
}

/// A hospital, and what has been done for it.
#[derive(Debug)]
pub struct Hospital {
    pub id: Uuid,
    pub shard: u16,
    base: i64,
    serial: u64,
    history: VecDeque<String>,
}

impl Servers {
    pub fn start() -> Self {
        let sandbox = Sandbox::new().unwrap_or_else(|error| panic!("this test needs it: {error}"));
        let (clusters, oracle) = std::thread::scope(|scope| {
            let sandbox = &sandbox;
            let clusters: Vec<_> =
                (0..CLUSTERS).map(|number| scope.spawn(move || cluster(sandbox, number))).collect();
            let oracle = primary(sandbox, "oracle");
            create(&oracle, "oracle");
            let clusters = clusters.into_iter().map(|cluster| cluster.join().expect("a cluster"));
            (clusters.collect(), oracle)
        });
        Self { sandbox, clusters, oracle }
    }

    pub fn map(&self, version: u64) -> String {
        let mut map = format!(
            "version = {version}\nmodulus = 100\ndatabase = \"hospital\"\n\
             key = {{ column = \"hospital_id\", tables = {{ \"public.hospitals\" = \"id\" }} }}\n\
             reference = [\"public.regions\", \"public.roles\"]\n"
        );
        for shard in 0..SHARDS {
            let Cluster { primary, replica } = &self.clusters[cluster_of(shard)];
            let (first, last) = (first_bucket(shard), first_bucket(shard + 1) - 1);
            write!(
                map,
                "\n[[shard]]\nid = {shard}\nregion = \"europe\"\nbuckets = \"{first}-{last}\"\n\
                 primary = \"127.0.0.1:{}\"\nreplicas = [\"127.0.0.1:{}\"]\n\
                 database = \"{}\"\n",
                primary.port(),
                replica.port(),
                database(shard)
            )
            .expect("a String");
        }
        map
    }

    /// Makes `count` hospitals on each shard, and the same rows in the oracle.
    pub fn hospitals(&self, count: usize, first: i64) -> Vec<Hospital> {
        let (mut hospitals, mut all) = (Vec::new(), String::new());
        for shard in 0..SHARDS {
            let mut sql = String::new();
            for _ in 0..count {
                let number = first + hospitals.len() as i64;
                let hospital = Hospital::new(shard, number * IDS_PER_HOSPITAL);
                sql += &hospital.rows();
                hospitals.push(hospital);
            }
            let primary = &self.clusters[cluster_of(shard)].primary;
            primary.psql(&database(shard), &sql).expect("rows of a shard");
            all += &sql;
        }
        self.oracle.psql("oracle", &all).expect("rows of the oracle");
        self.wait_for_replicas();
        hospitals
    }

    /// Returns when the replicas have what the primaries have now.
    pub fn wait_for_replicas(&self) {
        for Cluster { primary, replica } in &self.clusters {
            let lsn = primary.psql("postgres", "SELECT pg_current_wal_insert_lsn()").expect("LSN");
            let has_it = format!("SELECT pg_last_wal_replay_lsn() >= '{lsn}'");
            let deadline = Instant::now() + PATIENCE;
            while replica.psql("postgres", &has_it).expect("the replica answers") != "t" {
                assert!(Instant::now() < deadline, "the replica does not follow");
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

fn primary(sandbox: &Sandbox, name: &str) -> Postgres {
    let settings = vec![("wal_retrieve_retry_interval".to_owned(), "200ms".to_owned())];
    let options = Options { settings, ..Options::default() };
    let primary = sandbox.primary(name, &options).expect("a primary");
    primary
        .psql(
            "postgres",
            "CREATE ROLE app LOGIN PASSWORD 'app-secret';
             CREATE ROLE pgward LOGIN PASSWORD 'probe-secret'",
        )
        .expect("roles");
    primary
}

fn create(server: &Postgres, database: &str) {
    let sql = format!("CREATE DATABASE {database} OWNER app");
    server.psql("postgres", &sql).expect("a database");
    server.psql(database, &format!("SET ROLE app; {SCHEMA} {REFERENCE_ROWS}")).expect("the schema");
}

fn cluster(sandbox: &Sandbox, number: usize) -> Cluster {
    let primary = primary(sandbox, &format!("primary{number}"));
    let shards: Vec<u16> = (0..SHARDS).filter(|shard| cluster_of(*shard) == number).collect();
    create(&primary, &database(shards[0]));
    for shard in &shards[1..] {
        let (new, template) = (database(*shard), database(shards[0]));
        let sql = format!("CREATE DATABASE {new} TEMPLATE {template} OWNER app");
        primary.psql("postgres", &sql).expect("a database");
    }
    let replica = primary.replica(&format!("replica{number}")).expect("a replica");
    if number == SYNCHRONOUS {
        for sql in ["ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()"] {
            primary.psql("postgres", sql).expect("synchronous replication");
        }
    }
    Cluster { primary, replica }
}

pub fn database(shard: u16) -> String {
    format!("shard{shard}")
}

pub fn cluster_of(shard: u16) -> usize {
    usize::from(shard / SHARDS_PER_CLUSTER)
}

pub fn shard_of(id: Uuid) -> u16 {
    let bucket = (id.as_u128() % 100) as u16;
    (0..SHARDS).find(|shard| bucket < first_bucket(shard + 1)).expect("all buckets are owned")
}

fn first_bucket(shard: u16) -> u16 {
    shard * 100 / SHARDS
}

impl World {
    pub fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }
}

impl Scene {
    pub fn new(name: &'static str, ward: Ward, hospitals: Vec<Hospital>, is_route: bool) -> Self {
        let all = hospitals.iter().map(|hospital| hospital.id).collect();
        Self { name, ward, is_route, free: Mutex::new(hospitals), all }
    }

    /// One to three hospitals, nobody else's until they are given back.
    pub fn take(&self, dice: &mut Dice) -> Vec<Hospital> {
        let mut free = self.free.lock().expect("no panic holds it");
        let count = (1 + dice.below(3)).min(free.len());
        (0..count)
            .map(|_| {
                let at = dice.below(free.len());
                free.swap_remove(at)
            })
            .collect()
    }

    pub fn give_back(&self, hospitals: Vec<Hospital>) {
        self.free.lock().expect("no panic holds it").extend(hospitals);
    }
}

impl Hospital {
    fn new(shard: u16, base: i64) -> Self {
        let mut ids = std::iter::repeat_with(Uuid::new_v4);
        let id = ids.find(|id| shard_of(*id) == shard).expect("one in eight");
        Self { id, shard, base, serial: 0, history: VecDeque::new() }
    }

    /// Another one with the same ids of rows: for what must be refused.
    pub fn stranger(&self, id: Uuid) -> Self {
        Self { id, shard: self.shard, base: self.base, serial: 0, history: VecDeque::new() }
    }

    /// Its first rows.
    fn rows(&self) -> String {
        let Self { id, base, .. } = self;
        format!(
            "INSERT INTO hospitals VALUES ('{id}', 1, 'H', 'Hospital');
             INSERT INTO patients (hospital_id, id, mrn, name)
             SELECT '{id}', {base} + n, 'MRN-' || n, 'Patient ' || n FROM generate_series(1, 20) n;
             INSERT INTO visits SELECT '{id}', {base} + 1000 + n, {base} + 1 + n % 20, '2021-05-01',
             'planned' FROM generate_series(1, 30) n;
             INSERT INTO users SELECT '{id}', {base} + 2000 + n, 'user' || n, 1 + n % 4
             FROM generate_series(1, 10) n;"
        )
    }

    pub fn patient(&self, dice: &mut Dice) -> i64 {
        self.base + 1 + dice.below(PATIENTS) as i64
    }

    pub fn visit(&self, dice: &mut Dice) -> i64 {
        self.base + 1_001 + dice.below(VISITS) as i64
    }

    pub fn user(&self, dice: &mut Dice) -> i64 {
        self.base + 2_001 + dice.below(USERS) as i64
    }

    /// A text that it never had.
    pub fn new_text(&mut self, of: &str) -> Value {
        self.serial += 1;
        Value::Text(format!("{of}{}", self.serial))
    }

    /// Remembers what was done.
    pub fn note(&mut self, told: String) {
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(told);
    }

    /// What was done last, for a failure.
    pub fn told(&self) -> String {
        let lines: Vec<&str> = self.history.iter().map(String::as_str).collect();
        format!("hospital {} on shard {}:\n    {}", self.id, self.shard, lines.join("\n    "))
    }
}
