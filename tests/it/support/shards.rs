//! Four shards on one primary and one streaming replica, with the schema of the hospital system.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use pgward::cli::local::{Options, Postgres, Sandbox};
use uuid::Uuid;

use super::PATIENCE;

pub const SCHEMA: &str = include_str!("../../../config/schema.sql");
pub const REFERENCE_ROWS: &str = include_str!("../../../config/reference-rows.sql");
/// Regions of the shards.
const REGIONS: [&str; 4] = ["north-america", "europe", "asia-pacific", "latin-america"];

/// Databases `shard0` to `shard3` of a primary and its replica.
pub struct Shards {
    pub sandbox: Sandbox,
    pub primary: Postgres,
    pub replica: Postgres,
}

/// The shards of this run. Only for tests that leave them as they are, but for rows.
pub fn shards() -> &'static Shards {
    static SHARDS: OnceLock<Shards> = OnceLock::new();
    SHARDS.get_or_init(|| Shards::start(&Options::default()))
}

impl Shards {
    /// New servers, for a test that breaks them.
    pub fn start(options: &Options) -> Self {
        let sandbox = Sandbox::new().unwrap_or_else(|error| panic!("these tests need it: {error}"));
        let primary = sandbox.primary("primary", options).expect("a primary");
        let psql = |database, sql: &str| primary.psql(database, sql).expect("set up");
        psql("postgres", "CREATE ROLE app LOGIN PASSWORD 'app-secret'");
        psql("postgres", "CREATE ROLE pgward LOGIN PASSWORD 'probe-secret'");
        psql("postgres", "CREATE DATABASE shard0 OWNER app");
        psql("shard0", &format!("SET ROLE app; {SCHEMA} {REFERENCE_ROWS}"));
        for shard in 1..4 {
            psql("postgres", &format!("CREATE DATABASE shard{shard} TEMPLATE shard0 OWNER app"));
        }
        let replica = primary.replica("replica").expect("a replica");
        Self { sandbox, primary, replica }
    }

    /// The map of these shards: 25 buckets each.
    pub fn map(&self) -> String {
        self.map_with(|shard| (self.primary.port(), Some(self.replica.port()), shard))
    }

    /// As [`Self::map`], with each shard's primary port, replica port and database's number.
    pub fn map_with(&self, place: impl Fn(u16) -> (u16, Option<u16>, u16)) -> String {
        let mut map = MAP_HEAD.to_owned();
        for (shard, region) in (0..4).zip(REGIONS) {
            let (primary, replica, database) = place(shard);
            let (first, last) = (shard * 25, shard * 25 + 24);
            let replicas = replica.map(|port| format!("\"127.0.0.1:{port}\"")).unwrap_or_default();
            write!(
                map,
                "\n[[shard]]\nid = {shard}\nregion = \"{region}\"\nbuckets = \"{first}-{last}\"\n\
                 primary = \"127.0.0.1:{primary}\"\nreplicas = [{replicas}]\n\
                 database = \"shard{database}\"\n"
            )
            .expect("a String");
        }
        map
    }

    /// Rows of a shard itself, past pgward.
    pub fn psql(&self, shard: u16, sql: &str) -> String {
        self.primary.psql(&format!("shard{shard}"), sql).expect("SQL on the shard itself")
    }

    /// Makes a hospital on `shard`, past pgward, with patients 1 to `patients`; the
    /// replica has them, because pgward can't know that it must wait for what it did not write.
    pub fn hospital(&self, shard: u16, patients: u32) -> Uuid {
        let id = hospital_on(shard);
        self.psql(
            shard,
            &format!(
                "INSERT INTO hospitals VALUES ('{id}', 1, 'H', 'Hospital of shard {shard}');
                 INSERT INTO patients (hospital_id, id, mrn, name)
                 SELECT '{id}', n, 'MRN-' || n, 'Patient ' || n FROM generate_series(1, {patients}) n"
            ),
        );
        let lsn = self.psql(shard, "SELECT pg_current_wal_insert_lsn()");
        let has_it = format!("SELECT pg_last_wal_replay_lsn() >= '{lsn}'");
        let deadline = Instant::now() + PATIENCE;
        while self.replica.psql("postgres", &has_it).expect("the replica answers") != "t" {
            assert!(Instant::now() < deadline, "the replica does not follow");
            std::thread::sleep(Duration::from_millis(5));
        }
        id
    }

    /// For files of a test.
    pub fn directory(&self) -> &Path {
        self.sandbox.directory()
    }
}

const MAP_HEAD: &str = r#"version = 1
modulus = 100
database = "hospital"
key = { column = "hospital_id", tables = { "public.hospitals" = "id" } }
reference = ["public.regions", "public.roles"]
"#;

/// A map of one shard with all buckets: `database` of a server without a replica.
pub fn one_shard_map(port: u16, database: &str) -> String {
    format!(
        "{MAP_HEAD}\n[[shard]]\nid = 0\nregion = \"europe\"\nbuckets = \"0-99\"\n\
         primary = \"127.0.0.1:{port}\"\ndatabase = \"{database}\"\n"
    )
}

/// A new hospital's id whose bucket belongs to `shard`.
pub fn hospital_on(shard: u16) -> Uuid {
    std::iter::repeat_with(Uuid::new_v4)
        .find(|id| id.as_u128() % 100 / 25 == u128::from(shard))
        .expect("one in four")
}
