//! Sharded against one Postgres: many clients work for many hospitals on eight shards, through
//! pgward, while servers fail, clients vanish and requests are cancelled. Each answer must be the one
//! of a single Postgres that holds all the rows, and at the end so must all rows.
//!
//! A hospital is one client's at a time, so the order of its writes is known. What pgward
//! acknowledged is replayed on the oracle; what it said to be undone is not; what nobody knows
//! (08007, a client that left) is looked up on the shard itself, which must be as before or as after.
//! An error that no fault explains fails.
//!
//! `SOAK_STATEMENTS` goes on for so many (`make soak`: a million) and tells how far it is,
//! `SOAK_SEED` plays other dice. The dice of each client are the same for the same seed; which
//! client comes first is not.

mod client;
mod faults;
mod requests;
mod script;
mod statements;
mod tally;
mod wire;
mod world;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pgward::cli::local::Postgres;
use tokio::task::JoinSet;

use client::Client;
use tally::Tally;
use world::{Scene, Servers, World};

use crate::support::{Dice, PATIENCE, Ward, http_get};

/// Statements of a plain run, if they come within its time.
const STATEMENTS: u64 = 6_000;
/// Statements of a plain run on a machine however slow; each kind of fault comes once, too.
const STATEMENTS_MIN: u64 = 1_500;
/// Time of a plain run.
const PLAIN_RUN: Duration = Duration::from_secs(10);
/// Clients and hospitals per shard, under guard `strict` and under `route`.
const STRICT: (usize, usize) = (16, 4);
const ROUTE: (usize, usize) = (8, 2);
/// Between two faults, on average.
const PLAIN_GAP: Duration = Duration::from_millis(500);
const SOAK_GAP: Duration = Duration::from_millis(1_500);

const CONFIG: [(&str, &str); 8] = [
    ("auth", "auth_type = \"trust\""),
    ("pool", "default_pool_size = 3"),
    ("pool", "query_wait_timeout = 15"),
    ("pool", "server_login_retry = 0.05"),
    ("pool", "server_prepare_threshold = 2"),
    ("health", "freshness_interval_ms = 20"),
    ("health", "health_interval_ms = 300"),
    ("log", "level = \"warn\""),
];

#[test]
fn a_sharded_workload_gives_the_answers_of_one_postgres() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse().expect("a number"));
    let wanted: Option<u64> = number("SOAK_STATEMENTS");
    let seed = number("SOAK_SEED").unwrap_or(1);
    let started = Instant::now();
    let mut servers = Servers::start();
    let strict = servers.hospitals(STRICT.1, 1);
    let route = servers.hospitals(ROUTE.1, 1_000);
    let map = servers.map(1);
    let ward = |more: &[(&str, &str)]| {
        Ward::start_in(&servers.sandbox, &map, &[&CONFIG[..], more].concat())
    };
    let route_ward = ward(&[("guard", "mode = \"route\"")]);
    let scenes = [
        Arc::new(Scene::new("strict", ward(&[]), strict, false)),
        Arc::new(Scene::new("route", route_ward, route, true)),
    ];
    let world = Arc::new(World {
        seed,
        oracle: servers.oracle.port(),
        primaries: servers.clusters.iter().map(|cluster| cluster.primary.port()).collect(),
        disturbances: faults::Disturbances::default(),
        statements: AtomicU64::new(0),
        is_over: AtomicBool::new(false),
        tally: Default::default(),
    });
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let gap = if wanted.is_some() { SOAK_GAP } else { PLAIN_GAP };
    let began = Instant::now();
    let (outcome, injected) = std::thread::scope(|scope| {
        let chaos = scope.spawn(|| {
            let both = [&*scenes[0], &*scenes[1]];
            faults::play(&world, &mut servers, &both, runtime.handle(), gap)
        });
        let outcome = runtime.block_on(work(&world, &scenes, wanted));
        world.is_over.store(true, Ordering::Relaxed);
        (outcome, chaos.join())
    });
    let worked = began.elapsed();
    if let Err(told) = outcome {
        panic!("SOAK_SEED={seed}: {told}");
    }
    let mut tally = std::mem::take(&mut *world.tally.lock().expect("no panic holds it"));
    tally.take_in(injected.expect("the servers are whole again"));
    compare_all(&servers, &mut tally);
    for scene in &scenes {
        runtime.block_on(pools_are_whole(scene));
        tally.add(tally::COMPARED, "transactions on replicas", on_replicas(&scene.ward));
    }
    let statements = world.statements.load(Ordering::Relaxed);
    eprintln!(
        "soak: SOAK_SEED={seed}, {statements} statements in {worked:?}, {:?} in all\n{tally}",
        started.elapsed()
    );
    has_shown_something(&tally, wanted);
}

/// Runs the clients until enough has been done; the first failure ends it.
async fn work(
    world: &Arc<World>,
    scenes: &[Arc<Scene>],
    wanted: Option<u64>,
) -> Result<(), String> {
    let mut clients = JoinSet::new();
    for (scene, (count, _)) in scenes.iter().zip([STRICT, ROUTE]) {
        for number in 0..count as u64 {
            let dice = Dice::new(world.seed << 16 | u64::from(scene.is_route) << 8 | number);
            let client = Client::new(world.clone(), scene.clone(), dice).await;
            clients.spawn(client.live());
        }
    }
    let began = Instant::now();
    let mut told = 0;
    loop {
        tokio::select! {
            biased;
            Some(ended) = clients.join_next() => match ended {
                Ok(Ok(())) => {}
                Ok(Err(told)) => return Err(told),
                Err(panic) => return Err(format!("a client: {panic}")),
            },
            () = tokio::time::sleep(Duration::from_millis(50)) => {
                let done = world.statements.load(Ordering::Relaxed);
                let is_enough = match wanted {
                    Some(wanted) => done >= wanted,
                    None if began.elapsed() > PLAIN_RUN => done >= STATEMENTS_MIN,
                    None => done >= STATEMENTS,
                };
                if is_enough && world.disturbances.are_all() {
                    world.is_over.store(true, Ordering::Relaxed);
                }
                if wanted.is_some() && done / 20_000 > told {
                    told = done / 20_000;
                    eprintln!("soak: {done} statements, {:?}", began.elapsed());
                }
            }
        }
        if clients.is_empty() {
            return Ok(());
        }
    }
}

/// All rows of a database, each with its hospital in front.
const ALL_ROWS: &str = "SELECT id, 'hospitals', t::text FROM hospitals t
    UNION ALL SELECT hospital_id, 'users', t::text FROM users t
    UNION ALL SELECT hospital_id, 'patients', t::text FROM patients t
    UNION ALL SELECT hospital_id, 'visits', t::text FROM visits t ORDER BY 1, 2, 3";

/// Each row of each shard, on primary and replica, is the oracle's, and the other way round.
fn compare_all(servers: &Servers, tally: &mut Tally) {
    servers.wait_for_replicas();
    let rows = |server: &Postgres, database: &str| {
        let rows = server.psql(database, ALL_ROWS).expect("rows");
        rows.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let mut all = Vec::new();
    for shard in 0..world::SHARDS {
        let cluster = &servers.clusters[world::cluster_of(shard)];
        let own = rows(&cluster.primary, &world::database(shard));
        let replica = rows(&cluster.replica, &world::database(shard));
        assert!(own == replica, "shard {shard}: its replica differs");
        for row in &own {
            let id = row[..36].parse().expect("a uuid");
            assert_eq!(world::shard_of(id), shard, "on a foreign shard: {row}");
        }
        all.extend(own);
    }
    all.sort_unstable();
    let mut oracle = rows(&servers.oracle, "oracle");
    oracle.sort_unstable();
    let differs = all.iter().zip(&oracle).find(|(ours, theirs)| ours != theirs);
    assert!(differs.is_none() && all.len() == oracle.len(), "{differs:?}");
    tally.add(tally::COMPARED, "rows at the end", all.len() as u64);
}

/// No server is held and nobody waits.
async fn pools_are_whole(scene: &Scene) {
    let console = wire::Wire::login(scene.ward.port, "pgward", "admin").await;
    let mut console = console.expect("the console");
    let deadline = Instant::now() + PATIENCE;
    loop {
        let pools = console.rows("SHOW POOLS").await.expect("SHOW POOLS");
        let is_busy = |row: &String| {
            let number = |at| row.split('|').nth(at).is_some_and(|number: &str| number != "0");
            number(CL_WAITING) || number(SV_ACTIVE)
        };
        if !pools.iter().any(is_busy) {
            return;
        }
        assert!(Instant::now() < deadline, "{}: servers are held: {pools:#?}", scene.name);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Columns of SHOW POOLS.
const CL_WAITING: usize = 3;
const SV_ACTIVE: usize = 6;

fn on_replicas(ward: &Ward) -> u64 {
    let (_, metrics) = http_get(ward.metrics_port, "/metrics");
    let of_replicas = metrics.lines().filter(|line| {
        line.starts_with("pgward_transactions_total") && line.contains("role=\"replica\"")
    });
    of_replicas.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

/// A run that compared little has shown little.
fn has_shown_something(tally: &Tally, wanted: Option<u64>) {
    let at_least = |count: u64, what: &str, least: u64| {
        assert!(count >= least, "{what}: {count} are too few to show anything");
    };
    at_least(tally.sum(tally::STATEMENTS), "statements", wanted.map_or(1_000, |n| n / 10 * 8));
    at_least(tally.get(tally::COMPARED, "rows"), "rows", 3_000);
    at_least(tally.get(tally::COMPARED, "rows at the end"), "rows at the end", 500);
    at_least(tally.get(tally::COMPARED, "whole hospitals"), "whole hospitals", 10);
    at_least(tally.get(tally::COMPARED, "transactions on replicas"), "replica reads", 30);
    at_least(tally.sum(tally::REFUSED), "refusals", 15);
    at_least(tally.sum(tally::ERRORS), "errors of both", 30);
    for fault in ["backends terminated", "primaries restarted", "replicas restarted", "cancels"] {
        at_least(tally.get(tally::FAULTS, fault), fault, 1);
    }
}
