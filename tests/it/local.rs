//! The local Postgres servers that the demo and the tests stand on.

use std::time::{Duration, Instant};

use pgward::cli::local::{HostAuth, Options, Sandbox};

#[test]
fn a_replica_streams_and_everything_goes_at_the_end() {
    let started = Instant::now();
    let sandbox = Sandbox::new().expect("Postgres is installed");
    eprintln!("initdb {:?}", started.elapsed());
    let directory = sandbox.directory().to_owned();
    let options = Options { auth: HostAuth::Scram, ..Options::default() };
    let mut primary = sandbox.primary("primary", &options).expect("a primary");
    eprintln!("primary {:?}", started.elapsed());
    let replica = primary.replica("replica").expect("a replica");
    eprintln!("replica {:?}", started.elapsed());
    primary.psql("postgres", "CREATE TABLE t AS SELECT 7 AS n").expect("a write");
    let deadline = Instant::now() + Duration::from_secs(10);
    while replica.psql("postgres", "SELECT n FROM t").ok().as_deref() != Some("7") {
        assert!(Instant::now() < deadline, "nothing arrived at the replica");
    }
    assert_eq!(replica.psql("postgres", "SELECT pg_is_in_recovery()").unwrap(), "t");

    primary.stop();
    assert!(primary.psql("postgres", "SELECT 1").is_err());
    primary.start().expect("a restart");
    assert_eq!(primary.psql("postgres", "SELECT n FROM t").unwrap(), "7");
    eprintln!("restarted {:?}", started.elapsed());

    drop((primary, replica, sandbox));
    assert!(!directory.exists(), "files were left behind");
    eprintln!("gone {:?}", started.elapsed());
}
