//! Bad input and bad days: each ends in a clear error, and nothing leaks into what comes after.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use pgward::cli::local::{HostAuth, Options, free_port};

use crate::support::*;

#[tokio::test]
async fn a_shard_that_is_down_at_start_fails_only_its_own_hospitals() {
    let shards = shards();
    let dead = free_port().expect("a port");
    let (primary, replica) = (shards.primary.port(), shards.replica.port());
    let map = shards.map_with(|shard| match shard {
        3 => (dead, None, 3),
        _ => (primary, Some(replica), shard),
    });
    let config = [("pool", "query_wait_timeout = 2"), ("pool", "server_connect_timeout = 1")];
    let ward = Ward::start(shards, &WardOptions { map: Some(map), config: &config });
    let client = ward.connect().await;
    let count = |id| format!("SELECT count(*) FROM patients WHERE hospital_id = '{id}'");
    for shard in 0..3 {
        assert_eq!(value(&client, &count(shards.hospital(shard, 2))).await, "2");
    }
    let (code, told) = refusal(&client, &count(hospital_on(3))).await;
    assert_eq!(code, "57P03", "{told}");
    assert_eq!(value(&client, &count(shards.hospital(0, 1))).await, "1", "the connection stays");
    assert_eq!(http_get(ward.metrics_port, "/readyz").0, 200, "three shards serve");
}

#[tokio::test]
async fn a_server_that_dies_in_a_query_is_told_truthfully_and_comes_back() {
    let mut shards = Shards::start(&Options::default());
    let id = shards.hospital(0, 1);
    let config = [("pool", "query_wait_timeout = 20")];
    let ward = Ward::start(&shards, &WardOptions { config: &config, ..Default::default() });
    let (in_txn, alone) = (ward.connect().await, ward.connect().await);
    let slow = format!(
        "UPDATE patients SET name = 'x' WHERE hospital_id = '{id}' AND
         (SELECT pg_sleep(60)) IS NOT NULL"
    );
    simple(&in_txn, "BEGIN").await.expect("BEGIN");
    let phone = format!("UPDATE patients SET phone = '1' WHERE hospital_id = '{id}'");
    simple(&in_txn, &phone).await.expect("a write");
    let crash = async {
        let running =
            "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'UPDATE patients SET name%'
                       AND state = 'active'";
        eventually("the slow query runs", async || shards.psql(0, running) != "0").await;
        shards.primary.stop();
    };
    let (lost, ()) = tokio::join!(simple(&alone, &slow), crash);
    assert_eq!(sqlstate(&lost.expect_err("its server died")), "08007", "outcome unknown");
    let lost = simple(&in_txn, &phone).await.expect_err("its server died");
    assert_eq!(sqlstate(&lost), "40001", "nothing of it is stored");
    simple(&in_txn, "ROLLBACK").await.expect("the client stays");

    shards.primary.start().expect("a restart");
    let read = format!("SELECT name FROM patients WHERE hospital_id = '{id}'");
    for client in [&in_txn, &alone] {
        eventually("the shard serves again", async || simple(client, &phone).await.is_ok()).await;
        assert_eq!(value(client, &read).await, "Patient 1", "the same clients go on");
    }
}

#[tokio::test]
async fn a_dead_replica_is_not_chosen() {
    let mut shards = Shards::start(&Options::default());
    let id = shards.hospital(1, 1);
    let ward = Ward::start(&shards, &WardOptions::default());
    let client = ward.connect().await;
    let sql = format!("SELECT inet_server_port() FROM patients WHERE hospital_id = '{id}'");
    let replica = shards.replica.port().to_string();
    eventually("the replica serves", async || value(&client, &sql).await == replica).await;
    shards.replica.stop();
    let primary = shards.primary.port().to_string();
    // The first read may find out the hard way; it is a read, so it runs again on the primary.
    for _ in 0..20 {
        assert_eq!(value(&client, &sql).await, primary);
    }
    shards.replica.start().expect("a restart");
    eventually("the replica serves again", async || value(&client, &sql).await == replica).await;
}

#[tokio::test]
async fn a_read_that_its_replica_did_not_finish_runs_again_on_the_primary() {
    let mut shards = Shards::start(&Options::default());
    let id = shards.hospital(1, 1);
    let ward = Ward::start(&shards, &WardOptions::default());
    let client = ward.connect().await;
    let quick = format!("SELECT inet_server_port() FROM patients WHERE hospital_id = '{id}'");
    let replica = shards.replica.port().to_string();
    eventually("the replica serves", async || value(&client, &quick).await == replica).await;
    let slow = format!(
        "SELECT inet_server_port() FROM patients WHERE hospital_id = '{id}'
         AND (SELECT count(*) FROM generate_series(1, 3000000)) > 0"
    );
    let crash = async {
        let running = "SELECT count(*) FROM pg_stat_activity
                       WHERE query LIKE '%3000000%' AND state = 'active' AND usename = 'app'";
        eventually("the slow query runs", async || {
            shards.replica.psql("shard1", running).expect("a count") != "0"
        })
        .await;
        shards.replica.stop();
    };
    let (port, ()) = tokio::join!(value(&client, &slow), crash);
    assert_eq!(port, shards.primary.port().to_string());
}

#[tokio::test]
async fn a_client_that_vanishes_in_a_transaction_leaves_nothing() {
    let shards = shards();
    let config = [("pool", "default_pool_size = 1")];
    let ward = Ward::start(shards, &WardOptions { config: &config, ..Default::default() });
    let id = shards.hospital(2, 1);
    for _ in 0..5 {
        let (client, connection) =
            ward.client_config().connect(tokio_postgres::NoTls).await.expect("a login");
        let task = tokio::spawn(connection);
        simple(&client, "BEGIN").await.expect("BEGIN");
        let sql = format!("UPDATE patients SET name = 'Lost' WHERE hospital_id = '{id}'");
        simple(&client, &sql).await.expect("a write");
        // No Terminate, no goodbye: the socket closes.
        task.abort();
    }
    let client = ward.connect().await;
    let name = format!("UPDATE patients SET phone = '1' WHERE hospital_id = '{id}' RETURNING name");
    assert_eq!(value(&client, &name).await, "Patient 1", "the next client has a clean server");
}

#[tokio::test]
async fn a_full_pool_times_out_and_the_connection_stays() {
    let shards = shards();
    let config = [("pool", "default_pool_size = 1"), ("pool", "query_wait_timeout = 0.3")];
    let ward = Ward::start(shards, &WardOptions { config: &config, ..Default::default() });
    let id = shards.hospital(0, 1);
    let write = format!("UPDATE patients SET phone = '1' WHERE hospital_id = '{id}'");
    let (holder, waiter) = (ward.connect().await, ward.connect().await);
    simple(&holder, "BEGIN").await.expect("BEGIN");
    simple(&holder, &write).await.expect("a write");
    assert_eq!(refusal(&waiter, &write).await.0, "57014");
    simple(&holder, "COMMIT").await.expect("COMMIT");
    simple(&waiter, &write).await.expect("the same connection goes on");
}

#[tokio::test]
async fn one_client_too_many_is_told_so() {
    let shards = shards();
    let config = [("listen", "max_client_conn = 2")];
    let ward = Ward::start(shards, &WardOptions { config: &config, ..Default::default() });
    let (first, _second) = (ward.connect().await, ward.connect().await);
    let refused = ward.connect_with(&ward.client_config()).await.expect_err("two are enough");
    assert_eq!(sqlstate(&refused), "53300");
    drop(first);
    eventually("a place is free", async || ward.connect_with(&ward.client_config()).await.is_ok())
        .await;
}

#[tokio::test]
async fn a_wrong_password_and_an_unknown_user_look_alike() {
    let shards = shards();
    let ward = Ward::start(shards, &WardOptions::default());
    let mut config = ward.client_config();
    config.password("wrong");
    let wrong = ward.connect_with(&config).await.expect_err("a wrong password");
    let unknown = ward.connect_with(config.user("nobody-here")).await.expect_err("an unknown user");
    assert_eq!(sqlstate(&wrong), "28P01");
    assert_eq!(sqlstate(&unknown), "28P01");
    assert_eq!(tell(&wrong).replace("app", ""), tell(&unknown).replace("nobody-here", ""));
    let mut config = ward.client_config();
    config.dbname("elsewhere");
    let refused = ward.connect_with(&config).await.expect_err("not a database of the map");
    assert_eq!(sqlstate(&refused), "3D000");
}

#[tokio::test]
async fn shards_may_ask_for_scram_or_md5() {
    for auth in [HostAuth::Scram, HostAuth::Md5] {
        let shards = Shards::start(&Options { auth, ..Options::default() });
        let ward = Ward::start(&shards, &WardOptions::default());
        let client = ward.connect().await;
        let id = shards.hospital(1, 4);
        let sql = format!("SELECT count(*) FROM patients WHERE hospital_id = '{id}'");
        assert_eq!(value(&client, &sql).await, "4", "{auth:?}");
    }
}

#[tokio::test]
async fn settings_follow_their_client_and_reach_no_other() {
    let shards = shards();
    let config = [("pool", "default_pool_size = 1"), ("routing", "consistency = \"primary\"")];
    let ward = Ward::start(shards, &WardOptions { config: &config, ..Default::default() });
    let id = shards.hospital(3, 1);
    let (one, two) = (ward.connect().await, ward.connect().await);
    simple(&one, "SET statement_timeout = '12345ms'").await.expect("SET");
    simple(&one, "SELECT set_config('application_name', 'mine', false)").await.expect("set_config");
    simple(&one, "BEGIN").await.expect("BEGIN");
    simple(&one, "SET work_mem = '7MB'").await.expect("SET");
    simple(&one, "ROLLBACK").await.expect("ROLLBACK");
    let sql = format!(
        "SELECT current_setting('statement_timeout'), current_setting('application_name'),
         current_setting('work_mem') FROM patients WHERE hospital_id = '{id}'"
    );
    for _ in 0..3 {
        assert_eq!(value(&one, &sql).await, "12345ms|mine|4MB");
        // And not the name of the client before it.
        assert_eq!(value(&two, &sql).await, "0||4MB");
    }
    assert_eq!(value(&one, "SHOW statement_timeout").await, "12345ms");
    simple(&one, "RESET statement_timeout").await.expect("RESET");
    assert_eq!(value(&one, "SHOW statement_timeout").await, "0");
}

#[tokio::test]
async fn a_cancel_stops_the_query_of_its_client_only() {
    let shards = shards();
    let ward = Ward::start(shards, &WardOptions::default());
    let (client, other) = (ward.connect().await, ward.connect().await);
    let id = shards.hospital(0, 1);
    let slow = format!("SELECT pg_sleep(60) FROM patients WHERE hospital_id = '{id}'");
    let cancel = async {
        let token = client.cancel_token();
        // Late cancels of an idle client change nothing.
        other.cancel_token().cancel_query(tokio_postgres::NoTls).await.expect("sent");
        tokio::time::sleep(Duration::from_millis(300)).await;
        token.cancel_query(tokio_postgres::NoTls).await.expect("sent");
    };
    let (cancelled, ()) = tokio::join!(simple(&client, &slow), cancel);
    assert_eq!(sqlstate(&cancelled.expect_err("it was cancelled")), "57014");
    assert_eq!(value(&client, "SELECT 1").await, "1");
    assert_eq!(value(&other, "SELECT 1").await, "1");
}

#[test]
fn hostile_bytes_close_one_connection_and_nothing_else() {
    let shards = shards();
    let ward = Ward::start(shards, &WardOptions::default());
    let startup = |protocol: u32, body: &[u8]| {
        let mut packet = (8 + body.len() as u32).to_be_bytes().to_vec();
        packet.extend(protocol.to_be_bytes());
        packet.extend(body);
        packet
    };
    let openings: [Vec<u8>; 12] = [
        vec![],
        vec![0, 0],
        vec![0, 0, 0, 3],
        vec![0, 0, 0, 4],
        vec![0xff; 8],
        vec![0x7f, 0xff, 0xff, 0xff, 0, 3, 0, 0],
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        startup(0x0002_0000, b"user\0app\0\0"),
        startup(0x0003_0000, b"database\0hospital\0\0"),
        startup(0x0003_0000, b"user\0app"),
        startup(80877103, b"x"),
        // A message before the login has ended.
        [startup(0x0003_0000, b"user\0app\0\0"), b"Q\0\0\0\x0dSELECT 1\0".to_vec()].concat(),
    ];
    for opening in openings {
        let mut stream = TcpStream::connect(("127.0.0.1", ward.port)).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.write_all(&opening).expect("sent");
        stream.shutdown(std::net::Shutdown::Write).expect("half closed");
        let mut answer = Vec::new();
        // A reset is as good an end as a close.
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.len() < 1024, "{opening:?} was answered with {} bytes", answer.len());
        assert!(!answer.windows(5).any(|five| five[0] == b'Z'), "{opening:?} was let in");
    }
    let output = ward.psql(&["-c", "SELECT 1"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "1", "{output:?}");
}
