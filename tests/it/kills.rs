//! Clients that vanish and servers that are killed at random: what was acknowledged is stored once,
//! what was said to be undone is not, and the pools are whole again afterwards.

use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

use crate::support::raw::{batch, flush, query, sync};
use crate::support::*;

const CLIENTS: usize = 6;
const POOL: usize = 3;

/// What a client knows of the row that it wrote.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Outcome {
    Stored,
    Undone,
    Unknown,
}

#[test]
fn kills_lose_no_acknowledged_write_and_leave_whole_pools() {
    let shards = shards();
    let config = [
        ("auth", "auth_type = \"trust\""),
        ("pool", "default_pool_size = 3"),
        ("pool", "query_wait_timeout = 15"),
        ("pool", "server_login_retry = 0.05"),
    ];
    let ward = Ward::start(shards, &WardOptions { config: &config, ..Default::default() });
    let hospital = shards.hospital(2, 1);
    let next = AtomicI64::new(1_000);
    let is_over = AtomicBool::new(false);
    let outcomes: Vec<(i64, Outcome)> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| scope.spawn(|| write_until(&ward, hospital, &next, &is_over)))
            .collect();
        let end = Instant::now() + Duration::from_secs(4);
        while Instant::now() < end {
            std::thread::sleep(Duration::from_millis(40));
            shards.psql(
                2,
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                 WHERE usename = 'app' AND datname = 'shard2' ORDER BY random() LIMIT 1",
            );
        }
        is_over.store(true, Ordering::Relaxed);
        clients.into_iter().flat_map(|client| client.join().expect("a client")).collect()
    });
    let sql = format!("SELECT id FROM patients WHERE hospital_id = '{hospital}' AND id >= 1000");
    let stored: Vec<i64> = shards.psql(2, &sql).lines().map(|id| id.parse().unwrap()).collect();
    let count = |what| outcomes.iter().filter(|(_, outcome)| *outcome == what).count();
    eprintln!(
        "kills: {} stored, {} undone, {} unknown",
        count(Outcome::Stored),
        count(Outcome::Undone),
        count(Outcome::Unknown)
    );
    for (id, outcome) in &outcomes {
        match outcome {
            Outcome::Stored => assert!(stored.contains(id), "{id} was acknowledged and is lost"),
            Outcome::Undone => assert!(!stored.contains(id), "{id} was undone and is stored"),
            Outcome::Unknown => {}
        }
    }
    assert!(count(Outcome::Stored) > 50, "too few to show anything: {outcomes:?}");
    pools_are_whole(&ward, hospital);
}

/// Writes rows until it is over, in every way, now and then leaving without a word.
fn write_until(
    ward: &Ward,
    hospital: uuid::Uuid,
    next: &AtomicI64,
    is_over: &AtomicBool,
) -> Vec<(i64, Outcome)> {
    let mut outcomes = Vec::new();
    let mut raw = Raw::login(ward);
    while !is_over.load(Ordering::Relaxed) {
        let id = next.fetch_add(1, Ordering::Relaxed);
        let insert = format!(
            "INSERT INTO patients (hospital_id, id, mrn, name) VALUES ('{hospital}', {id}, 'm', 'n')"
        );
        let (requests, is_block) = match rand::random_range(0..5) {
            0 => (vec![query(&insert)], false),
            1 => (vec![[batch(&insert, &[]), sync()].concat()], false),
            2 => (vec![[batch(&insert, &[]), flush(), sync()].concat()], false),
            3 => (vec![query("BEGIN"), query(&insert), query("COMMIT")], true),
            _ => {
                let block = ["BEGIN", &insert, "COMMIT"].map(|sql| batch(sql, &[]));
                (vec![[block.concat(), sync()].concat()], false)
            }
        };
        if rand::random_range(0..12) == 0 {
            raw.send(&requests[0][..requests[0].len() / 2]);
            drop(raw.stream.shutdown(Shutdown::Both));
            raw = Raw::login(ward);
            continue;
        }
        let mut outcome = Outcome::Stored;
        for request in &requests {
            raw.send(request);
            let Some(messages) = raw.until(b'Z') else {
                // Half a message was with it: nobody can say.
                outcome = Outcome::Unknown;
                raw = Raw::login(ward);
                break;
            };
            let error = messages.iter().find(|message| message.tag == b'E');
            match error.map(Message::sqlstate) {
                None if is_block && messages[0].body.starts_with(b"ROLLBACK") => {
                    outcome = Outcome::Undone;
                }
                None => {}
                Some("08007") => outcome = Outcome::Unknown,
                // Not run at all, or lost before its COMMIT.
                Some("40001" | "25P02" | "57P03") if outcome != Outcome::Unknown => {
                    outcome = Outcome::Undone;
                }
                Some("40001" | "25P02" | "57P03") => {}
                Some(other) => panic!("{other}: {messages:?}"),
            }
        }
        outcomes.push((id, outcome));
    }
    outcomes
}

fn pools_are_whole(ward: &Ward, hospital: uuid::Uuid) {
    // As many as the pool has, at the same time, and once more than that one after the other.
    let mut raws: Vec<Raw> = (0..POOL).map(|_| Raw::login(ward)).collect();
    for raw in &mut raws {
        for sql in [
            "BEGIN",
            &format!(
                "UPDATE patients SET phone = '1' WHERE hospital_id = '{hospital}' AND id = -1"
            ),
        ] {
            raw.send(&query(sql));
            let messages = raw.until(b'Z').expect("an answer");
            assert!(messages.iter().all(|message| message.tag != b'E'), "{sql}: {messages:?}");
        }
    }
    drop(raws);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let console = ward.connect_with(ward.client_config().dbname("pgward").user("admin")).await;
        let console = console.expect("the console");
        eventually("all servers are back in their pools", || async {
            let messages = console.simple_query("SHOW POOLS").await.expect("SHOW POOLS");
            messages.iter().all(|message| match message {
                tokio_postgres::SimpleQueryMessage::Row(row) => {
                    let is_none = |column| row.get(column).is_none_or(|number| number == "0");
                    is_none("sv_active") && is_none("cl_waiting")
                }
                _ => true,
            })
        })
        .await;
    });
}
