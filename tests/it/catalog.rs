//! What is read off the catalogs of real shards, and when it is read again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pgward::catalog::{self, CatalogStore};
use pgward::cli::local::{Options, Postgres, Sandbox};
use pgward::fleet::{Fleet, FleetSettings};
use pgward::net::tls::Connector;
use pgward::shard_map::{Shard, ShardId};
use pgward::sql::{Declared, RelationFact};

use crate::support::eventually;

fn settings() -> FleetSettings {
    FleetSettings {
        health_interval: Duration::from_millis(50),
        freshness_interval: Duration::from_millis(50),
        probe_timeout: Duration::from_secs(1),
        user: "probe".into(),
        secret: None,
    }
}

fn declared() -> Declared {
    Declared { key_column: "hospital_id".into(), ..Declared::default() }
}

fn shard(id: u16, host: &Postgres) -> Shard {
    Shard {
        id: ShardId(id),
        region: "europe".into(),
        primary: host.address(),
        replicas: vec![],
        database: "postgres".into(),
        tls: Default::default(),
    }
}

const OBJECTS: &str = r#"
    CREATE ROLE probe LOGIN;
    CREATE SCHEMA clinic;
    CREATE TABLE patients (hospital_id uuid, id bigint, gone int, name varchar(20));
    ALTER TABLE patients DROP COLUMN gone;
    ALTER TABLE patients ENABLE ROW LEVEL SECURITY;
    ALTER TABLE patients FORCE ROW LEVEL SECURITY;
    CREATE TABLE clinic."Odd, Name" (a uuid[]) PARTITION BY RANGE (a);
    CREATE TYPE clinic.mood AS ENUM ('ok');
    CREATE DOMAIN clinic.uuid AS uuid;
    CREATE TABLE typed (m clinic.mood, u clinic.uuid, d timestamptz);
    CREATE SEQUENCE numbers;
    CREATE FUNCTION clinic.peek() RETURNS bigint LANGUAGE sql AS 'SELECT count(*) FROM patients';
    CREATE FUNCTION clinic.same(uuid, uuid) RETURNS bool LANGUAGE sql AS 'SELECT true';
    CREATE VIEW direct AS SELECT id FROM patients p JOIN typed ON true;
    CREATE VIEW indirect AS SELECT * FROM direct WHERE id IN (SELECT id FROM patients);
    CREATE MATERIALIZED VIEW stored AS SELECT id FROM patients;
    CREATE VIEW calls AS SELECT clinic.peek() AS n;
    CREATE VIEW samples AS SELECT s.starelid FROM typed, pg_statistic s;
    CREATE VIEW whole AS SELECT table_to_xml('patients', true, false, '') FROM typed;
    CREATE VIEW computes AS SELECT lower(m::text), count(*) FROM typed GROUP BY 1;
    CREATE TEMP TABLE temporary (n int);
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn facts_are_read() {
    let sandbox = Sandbox::new().unwrap_or_else(|error| panic!("these tests need it: {error}"));
    let host = sandbox.primary("one", &Options::default()).expect("a primary");
    host.psql("postgres", OBJECTS).expect("objects");
    let read = async || {
        catalog::read(&host.address(), &Connector::plain(), "postgres", &settings()).await.unwrap()
    };
    let facts = read().await;

    let find = |schema: &str, name: &str| -> &RelationFact {
        facts
            .relations
            .iter()
            .find(|fact| fact.schema == schema && fact.name == name)
            .unwrap_or_else(|| panic!("{schema}.{name} is missing"))
    };
    let columns = |fact: &RelationFact| {
        fact.columns.iter().map(|(name, of)| format!("{name} {of}")).collect::<Vec<_>>().join(", ")
    };
    let patients = find("public", "patients");
    assert_eq!((patients.kind, patients.is_rls_forced), ('r', true));
    assert_eq!(columns(patients), "hospital_id uuid, id bigint, name character varying");
    assert_eq!(columns(find("clinic", "Odd, Name")), "a uuid[]");
    assert_eq!(find("clinic", "Odd, Name").kind, 'p');
    // A type that only looks like uuid is told apart.
    assert_eq!(
        columns(find("public", "typed")),
        "m clinic.mood, u clinic.uuid, d timestamp with time zone"
    );
    assert_eq!(find("public", "numbers").kind, 'S');
    assert!(!find("public", "typed").is_rls_forced);

    for (view, kind, reads) in [
        ("direct", 'v', "public.patients public.typed"),
        ("indirect", 'v', "public.direct public.patients"),
        ("stored", 'm', "public.patients"),
        ("calls", 'v', "clinic.peek()"),
        ("computes", 'v', "public.typed"),
        // What initdb made, which pg_depend does not tell.
        ("samples", 'v', "pg_catalog.pg_statistic public.typed"),
        ("whole", 'v', "pg_catalog.table_to_xml() public.patients public.typed"),
    ] {
        let fact = find("public", view);
        assert_eq!(fact.kind, kind, "{view}");
        let mut got: Vec<String> =
            fact.reads.iter().map(|(schema, name)| format!("{schema}.{name}")).collect();
        got.sort_unstable();
        assert_eq!(got.join(" "), reads, "{view}");
    }
    assert_eq!(facts.relations.len(), 11, "no system, toast or temporary relation");

    let functions: Vec<_> =
        facts.functions.iter().map(|f| format!("{}.{}", f.schema, f.name)).collect();
    assert_eq!(functions, ["clinic.peek", "clinic.same"]);
    assert!(
        facts
            .types
            .iter()
            .any(|(schema, name, oid)| { schema == "clinic" && name == "mood" && *oid >= 16384 })
    );

    assert!(!facts.has_foreign_uuid_equality);
    assert_eq!(read().await, facts, "the same facts compare equal");
    host.psql(
        "postgres",
        "CREATE OPERATOR clinic.= (LEFTARG = uuid, RIGHTARG = uuid, FUNCTION = clinic.same)",
    )
    .expect("an operator");
    assert!(read().await.has_foreign_uuid_equality);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_snapshot_follows_the_shards() {
    let sandbox = Sandbox::new().unwrap_or_else(|error| panic!("these tests need it: {error}"));
    let first = sandbox.primary("first", &Options::default()).expect("a primary");
    let mut second = sandbox.primary("second", &Options::default()).expect("a primary");
    let objects = "CREATE ROLE probe LOGIN; CREATE TABLE patients (hospital_id uuid, id bigint)";
    for host in [&first, &second] {
        host.psql("postgres", objects).expect("objects");
    }
    second.stop();

    let fleet = Fleet::of_shards(&[shard(0, &first), shard(1, &second)], settings());
    fleet.start();
    let store = CatalogStore::new(fleet.clone(), declared(), Duration::from_secs(3600));
    let running = tokio::spawn(store.clone().run());
    eventually("the first shard", async || store.peek().speaks_for(ShardId(0))).await;
    let knows = |name: &str| store.peek().catalog.resolve(None, name, &["public"]).is_some();
    assert!(knows("patients"));
    assert!(!store.peek().speaks_for(ShardId(1)), "it was down from the start");

    second.start().expect("the second shard");
    let began = Instant::now();
    eventually("the second shard", async || store.peek().speaks_for(ShardId(1))).await;
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());

    // DDL behind pgward's back, and a statement that names the new table.
    assert!(!knows("visits"));
    let version = store.current().catalog.version;
    first.psql("postgres", "CREATE TABLE visits (hospital_id uuid)").expect("a table");
    assert!(store.refresh_now().await.catalog.resolve(None, "visits", &["public"]).is_some());
    let next = store.current().catalog.version;
    assert!(next > version);
    store.refresh_now().await;
    assert_eq!(store.current().catalog.version, next, "nothing changed, nothing rises");

    // Many callers share a refresh.
    let began = Instant::now();
    let callers: Vec<_> = (0..50)
        .map(|_| {
            tokio::spawn({
                let store = Arc::clone(&store);
                async move { store.refresh_now().await }
            })
        })
        .collect();
    for caller in callers {
        caller.await.expect("a caller");
    }
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());

    // A shard that goes down keeps its facts; one that leaves the map loses them.
    second.stop();
    eventually("it is down", async || {
        fleet.shard(ShardId(1)).is_some_and(|shard| shard.peek_primary().is_none())
    })
    .await;
    store.refresh_now().await;
    assert!(store.peek().speaks_for(ShardId(1)));
    running.abort();
}
