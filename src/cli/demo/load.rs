//! The demo's rows: schema and reference rows per shard, then hospitals, patients and visits.
//!
//! Everything goes through pgward: the schema in shard-addressed sessions, as a migration would,
//! the rest hospital by hospital, each in one transaction. The people are made up.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use uuid::Uuid;

use super::Error;
use super::system::System;
use crate::shard_map::{MintError, ShardMap, UuidVersion, mint};

const HOSPITALS: usize = 200;
const PATIENTS_EACH: usize = 100;
const VISITS_EACH: usize = 300;
const USERS_EACH: usize = 4;

const SCHEMA: &str = include_str!("../../../config/schema.sql");
const REFERENCE_ROWS: &str = include_str!("../../../config/reference-rows.sql");

/// Name of each region with its id in `regions`, and the shard region where its hospitals live.
/// Latin America has no shard of its own yet.
const REGIONS: [(u32, &str, &str); 5] = [
    (1, "north-america", "north-america"),
    (2, "europe", "europe"),
    (3, "asia-pacific", "asia-pacific"),
    (4, "middle-east-africa", "middle-east-africa"),
    (5, "latin-america", "north-america"),
];
const GIVEN: [&str; 10] =
    ["Ana", "Ben", "Chi", "Dara", "Eli", "Fay", "Goran", "Hana", "Ivo", "Jun"];
const FAMILY: [&str; 8] =
    ["Okafor", "Larsen", "Silva", "Tanaka", "Haddad", "Novak", "Reyes", "Quist"];
const STATUSES: [&str; 3] = ["admitted", "discharged", "scheduled"];

/// A hospital of the demo.
#[derive(Debug, Clone)]
pub(super) struct Hospital {
    pub(super) id: Uuid,
    pub(super) region: &'static str,
    region_id: u32,
    number: usize,
}

/// Mints the hospitals, region by region in turn, so that each lands in its region's shards.
pub(super) fn hospitals(map: &ShardMap) -> Result<Vec<Hospital>, MintError> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    (0..HOSPITALS)
        .map(|number| {
            let (region_id, region, home) = REGIONS[number % REGIONS.len()];
            let id = mint(map, home, UuidVersion::V7, now as u64, rand::random)?.0;
            Ok(Hospital { id, region, region_id, number })
        })
        .collect()
}

/// Creates the tables and the reference rows on one shard.
pub(super) async fn migrate(system: &System, shard: u16) -> Result<(), Error> {
    let sql = |source| Error::Sql { what: format!("schema of shard {shard}"), source };
    let client = system.connect("migrate", &format!("-c pgward.shard={shard}")).await;
    let client = client.map_err(sql)?;
    client.batch_execute(SCHEMA).await.map_err(sql)?;
    client.batch_execute(REFERENCE_ROWS).await.map_err(sql)
}

/// Loads all hospitals and says how far it is.
pub(super) async fn load(system: &System, hospitals: &[Hospital]) -> Result<(), Error> {
    let next = AtomicUsize::new(0);
    let progress = Progress::default();
    let loader = || async {
        let client = system.connect("demo", "").await.map_err(sql_error)?;
        while let Some(hospital) = hospitals.get(next.fetch_add(1, Ordering::Relaxed)) {
            load_hospital(&client, hospital).await.map_err(sql_error)?;
            progress.on_hospital();
        }
        Ok::<(), Error>(())
    };
    // Four connections load at the same time.
    tokio::try_join!(loader(), loader(), loader(), loader())?;
    progress.on_end();
    Ok(())
}

fn sql_error(source: tokio_postgres::Error) -> Error {
    Error::Sql { what: "loading".into(), source }
}

async fn load_hospital(
    client: &tokio_postgres::Client,
    hospital: &Hospital,
) -> Result<(), tokio_postgres::Error> {
    client.batch_execute("BEGIN").await?;
    for statement in [insert_hospital, insert_users, insert_patients, insert_visits] {
        client.batch_execute(&statement(hospital)).await?;
    }
    client.batch_execute("COMMIT").await
}

fn insert_hospital(hospital: &Hospital) -> String {
    let Hospital { id, region, region_id, number } = hospital;
    format!(
        "INSERT INTO hospitals (id, region_id, code, name) \
         VALUES ('{id}', {region_id}, 'H{number:04}', 'Hospital {number} of {region}')"
    )
}

fn insert_users(hospital: &Hospital) -> String {
    rows("INSERT INTO users (hospital_id, id, email, role_id) VALUES", USERS_EACH, |n| {
        let Hospital { id, number, .. } = hospital;
        format!("('{id}', {n}, 'user{n}@hospital{number}.example', {n})")
    })
}

fn insert_patients(hospital: &Hospital) -> String {
    let columns = "INSERT INTO patients (hospital_id, id, mrn, phone, email, name) VALUES";
    rows(columns, PATIENTS_EACH, |n| {
        let Hospital { id, number, .. } = hospital;
        let given = GIVEN[(n + number) % GIVEN.len()];
        let family = FAMILY[(n / GIVEN.len() + number) % FAMILY.len()];
        let phone = format!("+1-555-{number:03}-{n:04}");
        let email = format!("{}.{n}@mail{number}.example", given.to_lowercase());
        format!("('{id}', {n}, 'MRN-{number:04}-{n:04}', '{phone}', '{email}', '{given} {family}')")
    })
}

fn insert_visits(hospital: &Hospital) -> String {
    let columns = "INSERT INTO visits (hospital_id, id, patient_id, admission_date, status) VALUES";
    rows(columns, VISITS_EACH, |n| {
        let patient = (n * 7) % PATIENTS_EACH + 1;
        let status = STATUSES[(n + hospital.number) % STATUSES.len()];
        let (month, day) = (n % 12 + 1, n % 28 + 1);
        format!("('{}', {n}, {patient}, '2026-{month:02}-{day:02}', '{status}')", hospital.id)
    })
}

fn rows(head: &str, count: usize, row: impl Fn(usize) -> String) -> String {
    let mut text = String::from(head);
    for n in 1..=count {
        // Writing to a String does not fail.
        let _ = write!(text, "{} {}", if n == 1 { "" } else { "," }, row(n));
    }
    text
}

/// One line that grows, or every tenth where nobody watches.
#[derive(Debug, Default)]
struct Progress {
    done: AtomicUsize,
}

impl Progress {
    fn on_hospital(&self) {
        let done = self.done.fetch_add(1, Ordering::Relaxed) + 1;
        let watched = std::io::stdout().is_terminal();
        if watched {
            print!("\r{}", line(done));
            let _ = std::io::stdout().flush();
        } else if done.is_multiple_of(HOSPITALS / 10) {
            println!("{}", line(done));
        }
    }

    fn on_end(&self) {
        if std::io::stdout().is_terminal() {
            println!();
        }
    }
}

fn line(done: usize) -> String {
    let filled = done * 20 / HOSPITALS;
    format!(
        "      [{}{}] {done} hospitals, {} patients, {} visits",
        "#".repeat(filled),
        ".".repeat(20 - filled),
        done * PATIENTS_EACH,
        done * VISITS_EACH
    )
}

#[cfg(test)]
mod tests {
    use super::super::system::SHARD_REGIONS;
    use super::*;
    use crate::shard_map::{Address, HospitalId, Shard, ShardId};

    #[test]
    fn the_demo_has_the_rows_it_promises() {
        let shard = |id, region: &str| Shard {
            id: ShardId(id),
            region: region.to_owned(),
            primary: Address { host: format!("host{id}"), port: 5432 },
            replicas: Vec::new(),
            database: "hospital".to_owned(),
            tls: Default::default(),
        };
        let shards = (0..).zip(SHARD_REGIONS).map(|(id, region)| shard(id, region)).collect();
        let map = ShardMap::even(100, "hospital", shards);
        let hospitals = hospitals(&map).expect("each region has buckets");
        for hospital in &hospitals {
            let home = REGIONS[hospital.number % REGIONS.len()].2;
            let found = map.locate(HospitalId(hospital.id)).expect("all are routed");
            assert_eq!(map.region_of(found), Some(home));
        }
        assert_eq!(hospitals.len(), 200);
        assert_eq!(HOSPITALS * PATIENTS_EACH, 20_000);
        assert_eq!(HOSPITALS * VISITS_EACH, 60_000);
        let regions: std::collections::HashSet<_> = hospitals.iter().map(|h| h.region).collect();
        assert_eq!(regions.len(), 5);
        assert_eq!(insert_visits(&hospitals[0]).matches(&hospitals[0].id.to_string()).count(), 300);
    }
}
