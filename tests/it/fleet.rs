//! What the fleet says of real hosts: freshness, promotion, hosts that vanish and come back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pgward::cli::local::{Options, Postgres, Sandbox};
use pgward::fleet::health::Alarm;
use pgward::fleet::{Fleet, FleetSettings, ShardState, Standing};
use pgward::shard_map::{Shard, ShardId, ShardMap};

use crate::support::eventually;

const INTERVAL: Duration = Duration::from_millis(50);

struct Hosts {
    sandbox: Sandbox,
    primary: Postgres,
    replica: Postgres,
}

impl Hosts {
    fn start() -> Self {
        let sandbox = Sandbox::new().unwrap_or_else(|error| panic!("these tests need it: {error}"));
        let primary = sandbox.primary("primary", &Options::default()).expect("a primary");
        for sql in [
            "CREATE ROLE probe LOGIN",
            "CREATE ROLE monitor LOGIN IN ROLE pg_monitor",
            "CREATE TABLE t (n int)",
        ] {
            primary.psql("postgres", sql).expect("set up");
        }
        let replica = primary.replica("replica").expect("a replica");
        Self { sandbox, primary, replica }
    }

    fn fleet(&self, user: &str) -> (Arc<Fleet>, Arc<ShardState>) {
        let shard = Shard {
            id: ShardId(0),
            region: "europe".into(),
            primary: self.primary.address(),
            replicas: vec![self.replica.address()],
            database: "postgres".into(),
            tls: Default::default(),
        };
        let settings = FleetSettings {
            health_interval: INTERVAL,
            freshness_interval: INTERVAL,
            probe_timeout: Duration::from_secs(1),
            user: user.into(),
            secret: None,
        };
        let fleet = Fleet::of_shards(&[shard], settings);
        fleet.start();
        let state = fleet.shard(ShardId(0)).expect("the shard");
        (fleet, state)
    }

    fn on_replica(&self, sql: &str) -> String {
        self.replica.psql("postgres", sql).expect("SQL on the replica")
    }

    fn on_primary(&self, sql: &str) -> String {
        self.primary.psql("postgres", sql).expect("SQL on the primary")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fresh_replica_has_the_write() {
    let hosts = Hosts::start();
    let (fleet, shard) = hosts.fleet("probe");
    assert_eq!(shard.wait_for_primary().await, 0);
    eventually("the replica answers", async || shard.fresh_replicas(None) == 0b10).await;

    for n in 0..20 {
        hosts.on_primary(&format!("INSERT INTO t VALUES ({n})"));
        if n % 4 == 0 {
            // Ends the log at a page header, where replay does not stand before the next record.
            hosts.on_primary("SELECT pg_switch_wal()");
        }
        let seen_at = fleet.now();
        let began = Instant::now();
        while shard.fresh_replicas(Some(seen_at)) == 0 {
            assert!(began.elapsed() < Duration::from_secs(5), "write {n} was never fresh");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(hosts.on_replica("SELECT max(n) FROM t").trim(), n.to_string());
    }

    hosts.on_replica("SELECT pg_wal_replay_pause()");
    hosts.on_primary("INSERT INTO t VALUES (1000)");
    let seen_at = fleet.now();
    tokio::time::sleep(8 * INTERVAL).await;
    assert_eq!(shard.fresh_replicas(Some(seen_at)), 0, "it does not have the write");
    assert_eq!(shard.fresh_replicas(None), 0b10, "it answers all the same");
    hosts.on_replica("SELECT pg_wal_replay_resume()");
    eventually("the replica catches up", async || shard.fresh_replicas(Some(seen_at)) == 0b10)
        .await;
}

/// With an unprivileged probe user, and with one that may see the timeline that is received.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promoted_replica_is_the_primary_and_the_old_one_is_not() {
    for user in ["probe", "monitor"] {
        let mut hosts = Hosts::start();
        let (fleet, shard) = hosts.fleet(user);
        assert_eq!(shard.wait_for_primary().await, 0);
        hosts.on_primary("INSERT INTO t VALUES (1)");
        let written_at = fleet.now();
        eventually("fresh", async || shard.fresh_replicas(Some(written_at)) == 0b10).await;

        hosts.primary.stop();
        let began = Instant::now();
        while shard.primary().is_some() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(began.elapsed() < 4 * INTERVAL, "unknown within two intervals");
        eventually("the replica serves reads without a primary", async || {
            shard.fresh_replicas(Some(written_at)) == 0b10
        })
        .await;

        hosts.on_replica("SELECT pg_promote()");
        let began = Instant::now();
        assert_eq!(shard.wait_for_primary().await, 1);
        assert!(began.elapsed() < Duration::from_millis(250), "{:?}", began.elapsed());
        assert_eq!(shard.fresh_replicas(Some(written_at)), 0, "the primary is no replica");

        hosts.primary.start().expect("the old primary");
        eventually("the old primary is seen", async || {
            shard.hosts()[0].standing == Standing::Unfit
        })
        .await;
        assert_eq!(shard.alarm(), Some(Alarm::OldTimeline));
        assert_eq!(shard.primary(), Some(1));
        hosts.replica.stop();
        tokio::time::sleep(6 * INTERVAL).await;
        assert_eq!(shard.primary(), None, "an old timeline is not accepted for want of a better");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_probes_come_back() {
    let hosts = Hosts::start();
    let (_fleet, shard) = hosts.fleet("probe");
    shard.wait_for_primary().await;
    let probes =
        || hosts.on_primary("SELECT pid FROM pg_stat_activity WHERE application_name = 'pgward'");
    for _ in 0..3 {
        let before = probes();
        hosts.on_primary(&format!("SELECT pg_terminate_backend({})", before.trim()));
        eventually("another probe", async || {
            let after = probes();
            after.trim().parse::<i32>().is_ok() && after != before
        })
        .await;
        eventually("the primary is known", async || shard.primary() == Some(0)).await;
    }
    // A role that may not log in is told apart from a host that is down.
    hosts.on_primary("ALTER ROLE probe NOLOGIN");
    hosts.on_primary(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pgward'",
    );
    eventually("the refusal is seen", async || {
        shard.hosts()[0].error.as_deref() == Some("refused with SQLSTATE 28000")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_of_another_cluster_is_not_used() {
    let hosts = Hosts::start();
    // The sandbox's primaries are copies of one initdb; this one is not.
    let other = Sandbox::new().expect("another sandbox");
    let stranger = other.primary("stranger", &Options::default()).expect("a primary");
    stranger.psql("postgres", "CREATE ROLE probe LOGIN").expect("set up");
    let shard = Shard {
        id: ShardId(0),
        region: "europe".into(),
        primary: hosts.primary.address(),
        replicas: vec![stranger.address()],
        database: "postgres".into(),
        tls: Default::default(),
    };
    let (fleet, _) = hosts.fleet("probe");
    let fleet = Fleet::of_shards(&[shard], (**fleet.settings()).clone());
    fleet.start();
    let shard = fleet.shard(ShardId(0)).expect("the shard");
    eventually("the alarm", async || shard.alarm() == Some(Alarm::ForeignHost)).await;
    assert_eq!(shard.primary(), Some(0));
    assert_eq!(shard.fresh_replicas(None), 0);
    drop(hosts.sandbox);
}

/// Role, timeline and LSN are the server's: its databases share a control connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn databases_of_one_server_share_a_probe() {
    let hosts = Hosts::start();
    for name in ["one", "two"] {
        hosts.on_primary(&format!("CREATE DATABASE {name}"));
    }
    let shard = |id: u16, database: &str| Shard {
        id: ShardId(id),
        region: "europe".into(),
        primary: hosts.primary.address(),
        replicas: vec![hosts.replica.address()],
        database: database.into(),
        tls: Default::default(),
    };
    let probes = || {
        let sql = "SELECT string_agg(datname, ' ') FROM pg_stat_activity
            WHERE application_name = 'pgward'";
        hosts.on_primary(sql).trim().to_owned()
    };
    let (fleet, _) = hosts.fleet("probe");
    let settings = (**fleet.settings()).clone();
    drop(fleet);
    eventually("no probe is left", async || probes().is_empty()).await;

    // The first database does not exist: the host is asked all the same.
    let shards = [shard(0, "absent"), shard(1, "one"), shard(2, "two")];
    let fleet = Fleet::of_shards(&shards, settings);
    fleet.start();
    let known = async || fleet.shards().iter().all(|shard| shard.fresh_replicas(Some(1)) == 0b10);
    eventually("all shards have a fresh replica", known).await;
    assert!(fleet.shards().iter().all(|shard| shard.primary() == Some(0)));
    assert_eq!(probes(), "one");

    // Of a reload: whoever is new is told, and a database that left is let go.
    fleet.apply(&ShardMap::even(2, "hospital", vec![shard(0, "two"), shard(1, "postgres")]));
    eventually("all shards have a fresh replica", known).await;
    eventually("another database", async || ["two", "postgres"].contains(&&*probes())).await;
    hosts.on_primary("DROP DATABASE one");
    drop(fleet);
    eventually("no probe is left", async || probes().is_empty()).await;
}
