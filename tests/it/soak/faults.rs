//! What goes wrong on the servers' side, by the dice: backends and probes terminated, servers stopped
//! at once and started again, replicas that fall behind, configurations read anew.
//!
//! Errors of clients are excused only for a while after something that explains them: an error that
//! nothing explains is a failure.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pgward::cli::local::Postgres;

use super::tally::{self, Tally};
use super::wire::Wire;
use super::world::{CLUSTERS, Cluster, SHARDS, SYNCHRONOUS, Scene, Servers, World, cluster_of};
use crate::support::Dice;

/// How long after a fault its errors may still come: waits for a primary included.
const EXCUSED_FOR: Duration = Duration::from_secs(20);

/// When each cluster was last harmed.
#[derive(Default)]
pub struct Disturbances {
    last: [Mutex<Option<Instant>>; CLUSTERS],
    /// Faults of each kind that came at least once, as bits.
    seen: AtomicU64,
}

impl Disturbances {
    fn note(&self, cluster: usize) {
        *self.last[cluster].lock().expect("no panic holds it") = Some(Instant::now());
    }

    /// Whether an error of `shard` may be due to a fault, if what it answers was sent at `sent`.
    /// How long it took to look at the answer does not matter.
    pub fn excuse(&self, shard: u16, sent: Instant) -> bool {
        let last = *self.last[cluster_of(shard)].lock().expect("no panic holds it");
        last.is_some_and(|last| last + EXCUSED_FOR > sent)
    }

    /// Whether each kind of fault has come.
    pub fn are_all(&self) -> bool {
        self.seen.load(Ordering::Relaxed) + 1 == 1 << KINDS.len()
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Backends,
    Probes,
    Behind,
    Replica,
    Primary,
    Reload,
}

const KINDS: [Kind; 6] =
    [Kind::Backends, Kind::Behind, Kind::Replica, Kind::Primary, Kind::Reload, Kind::Probes];
/// How often each comes once each has come.
const WEIGHTED: [Kind; 10] = [
    Kind::Backends,
    Kind::Backends,
    Kind::Backends,
    Kind::Behind,
    Kind::Behind,
    Kind::Replica,
    Kind::Primary,
    Kind::Reload,
    Kind::Reload,
    Kind::Probes,
];

/// Harms `servers` until it is over; all are whole again when it returns.
pub fn play(
    world: &World,
    servers: &mut Servers,
    scenes: &[&Scene],
    runtime: &tokio::runtime::Handle,
    gap: Duration,
) -> Tally {
    let (mut dice, mut tally) = (Dice::new(world.seed ^ 0xfa17), Tally::default());
    let (mut rounds, mut version) = (0, 1);
    while !world.is_over() {
        std::thread::sleep(gap / 2 + gap * dice.below(100) as u32 / 100);
        let kind = match KINDS.get(rounds) {
            Some(kind) => *kind,
            None => WEIGHTED[dice.below(WEIGHTED.len())],
        };
        rounds += 1;
        if kind == Kind::Reload {
            version += 1;
            let map = servers.map(version);
            for scene in scenes {
                scene.ward.write("shard-map.toml", &map);
                match dice.one_in(2) {
                    true => scene.ward.signal("HUP"),
                    false => runtime.block_on(async {
                        let console = Wire::login(scene.ward.port, "pgward", "admin").await;
                        let mut console = console.expect("the console");
                        console.rows("RELOAD").await.expect("a reload");
                    }),
                }
            }
            tally.add(tally::FAULTS, "reloads", 1);
        } else {
            harm(world, servers, kind, &mut dice, &mut tally);
        }
        world.disturbances.seen.fetch_or(1 << kind as u64, Ordering::Relaxed);
    }
    tally
}

fn harm(world: &World, servers: &mut Servers, kind: Kind, dice: &mut Dice, tally: &mut Tally) {
    let shard = dice.below(SHARDS.into()) as u16;
    let at = match kind {
        Kind::Replica if !dice.one_in(4) => SYNCHRONOUS,
        _ => cluster_of(shard),
    };
    let Cluster { primary, replica } = &mut servers.clusters[at];
    let pause = Duration::from_millis(dice.below(700) as u64);
    // A replica that falls behind explains no error.
    if kind != Kind::Behind {
        world.disturbances.note(at);
    }
    match kind {
        Kind::Backends => {
            let server = if dice.one_in(3) { replica } else { primary };
            terminate(server, 1 + dice.below(3), tally);
        }
        Kind::Probes => {
            let sql = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                       WHERE usename = 'pgward'";
            let ended = primary.psql("postgres", sql).expect("probes end");
            tally.add(tally::FAULTS, "probes terminated", ended.parse().expect("a number"));
        }
        Kind::Behind => {
            replica.psql("postgres", "SELECT pg_wal_replay_pause()").expect("a pause");
            std::thread::sleep(Duration::from_millis(300) + pause);
            replica.psql("postgres", "SELECT pg_wal_replay_resume()").expect("an end of it");
            tally.add(tally::FAULTS, "replicas fell behind", 1);
        }
        Kind::Replica => {
            replica.stop();
            std::thread::sleep(Duration::from_millis(300) + pause);
            // Those that wait for a synchronous replica have committed, and can't say so any more.
            terminate(primary, 4 + dice.below(4), tally);
            replica.start().expect("a restart");
            tally.add(tally::FAULTS, "replicas restarted", 1);
        }
        Kind::Primary => {
            primary.stop();
            std::thread::sleep(pause);
            primary.start().expect("a restart");
            tally.add(tally::FAULTS, "primaries restarted", 1);
        }
        Kind::Reload => {}
    }
    if kind != Kind::Behind {
        world.disturbances.note(at);
    }
}

/// Ends backends that serve pgward, busy ones first.
fn terminate(server: &Postgres, count: usize, tally: &mut Tally) {
    let sql = format!(
        "SELECT count(pg_terminate_backend(pid)) FROM (SELECT pid FROM pg_stat_activity
         WHERE usename = 'app' ORDER BY state, random() LIMIT {count}) l"
    );
    let ended = server.psql("postgres", &sql).expect("backends end");
    tally.add(tally::FAULTS, "backends terminated", ended.parse().expect("a number"));
}
