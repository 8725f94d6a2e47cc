//! Each statement runs on the shard of its hospital, or is refused. Shards are looked at directly.

use crate::support::*;

fn insert_patients(id: uuid::Uuid) -> String {
    format!(
        "INSERT INTO patients (hospital_id, id, mrn, name)
         VALUES ('{id}', 1, 'MRN-1', 'One'), ('{id}', 2, 'MRN-2', 'Two')"
    )
}

fn insert_hospital(id: uuid::Uuid) -> String {
    format!("INSERT INTO hospitals (id, region_id, code, name) VALUES ('{id}', 1, 'H', 'Hospital')")
}

#[tokio::test]
async fn rows_land_on_the_shard_of_their_hospital_and_on_no_other() {
    let shards = shards();
    let ward = Ward::start(shards, &WardOptions::default());
    let client = ward.connect().await;
    for shard in 0..4 {
        let id = hospital_on(shard);
        simple(&client, &insert_hospital(id)).await.expect("a hospital");
        simple(&client, &insert_patients(id)).await.expect("patients");
        for other in 0..4 {
            let sql = format!("SELECT count(*) FROM patients WHERE hospital_id = '{id}'");
            let there = if other == shard { "2" } else { "0" };
            assert_eq!(shards.psql(other, &sql), there, "shard {other}, hospital of {shard}");
        }
        let sql = format!("SELECT name FROM patients WHERE hospital_id = '{id}' ORDER BY id");
        assert_eq!(simple(&client, &sql).await.expect("rows"), ["One", "Two"]);
    }
}

#[tokio::test]
async fn one_prepared_statement_serves_hospitals_of_all_shards() {
    let shards = shards();
    let ward = Ward::start(shards, &WardOptions::default());
    let client = ward.connect().await;
    let hospitals: Vec<_> = (0..4).map(|shard| (shard, shards.hospital(shard, 3))).collect();
    let sql = "SELECT name, current_database()::text FROM patients
               WHERE hospital_id = $1 AND id = $2";
    let statement = client.prepare(sql).await.expect("a statement");
    let marker = "UPDATE patients SET name = 'Other ' || name WHERE hospital_id = $1 AND id = $2";
    let update = client.prepare(marker).await.expect("a statement");
    for round in 0..3 {
        for (shard, id) in &hospitals {
            let row = client.query_one(&statement, &[&Id(*id), &2i64]).await.expect("a row");
            let (name, database): (String, String) = (row.get(0), row.get(1));
            assert!(name.ends_with("Patient 2"), "{name}");
            assert_eq!(name.matches("Other").count(), round);
            assert_eq!(database, format!("shard{shard}"));
            let changed = client.execute(&update, &[&Id(*id), &2i64]).await.expect("an update");
            assert_eq!(changed, 1);
        }
    }
}

#[tokio::test]
async fn pipelined_queries_of_several_hospitals_answer_in_order() {
    let shards = shards();
    let ward = Ward::start(shards, &WardOptions::default());
    let client = ward.connect().await;
    let ids = [0, 1, 2, 3].map(|shard| shards.hospital(shard, 2));
    let sql = "SELECT current_database()::text FROM patients WHERE hospital_id = $1 AND id = 1";
    let statement = client.prepare(sql).await.expect("a statement");
    let ids = ids.map(Id);
    let asked = ids.each_ref().map(|id| {
        let statement = &statement;
        let client = &client;
        async move { client.query_one(statement, &[id]).await.expect("a row").get::<_, String>(0) }
    });
    let [a, b, c, d] = asked;
    let found = tokio::join!(a, b, c, d);
    assert_eq!(found, ("shard0".into(), "shard1".into(), "shard2".into(), "shard3".into()));
}

#[tokio::test]
async fn reads_go_to_the_replica_and_writes_to_the_primary() {
    let shards = shards();
    let ward = Ward::start(shards, &WardOptions::default());
    let client = ward.connect().await;
    let id = shards.hospital(1, 3);
    let (primary, replica) = (shards.primary.port().to_string(), shards.replica.port().to_string());
    let read =
        format!("SELECT inet_server_port() FROM patients WHERE hospital_id = '{id}' LIMIT 1");
    eventually("a read served by the replica", async || value(&client, &read).await == replica)
        .await;

    for write in [
        format!("{read} FOR UPDATE"),
        format!(
            "UPDATE patients SET phone = '1' WHERE hospital_id = '{id}' AND id = 1
             RETURNING inet_server_port()"
        ),
        format!(
            "WITH gone AS (DELETE FROM patients WHERE hospital_id = '{id}' AND id = 3 RETURNING 1)
             SELECT inet_server_port() FROM gone"
        ),
    ] {
        assert_eq!(value(&client, &write).await, primary, "{write}");
    }
    simple(&client, "BEGIN").await.expect("BEGIN");
    assert_eq!(value(&client, &read).await, primary, "in a read-write transaction");
    simple(&client, "COMMIT").await.expect("COMMIT");
    eventually("a read-only transaction served by the replica", async || {
        simple(&client, "BEGIN READ ONLY").await.expect("BEGIN");
        let port = value(&client, &read).await;
        simple(&client, "COMMIT").await.expect("COMMIT");
        port == replica
    })
    .await;
}

#[tokio::test]
async fn a_client_reads_what_it_wrote() {
    let shards = shards();
    let ward = Ward::start(shards, &WardOptions::default());
    let client = ward.connect().await;
    let id = shards.hospital(2, 1);
    let mut from_replica = 0;
    for n in 0..100 {
        let update =
            format!("UPDATE patients SET phone = '{n}' WHERE hospital_id = '{id}' AND id = 1");
        simple(&client, &update).await.expect("an update");
        let read = format!(
            "SELECT phone, inet_server_port() FROM patients WHERE hospital_id = '{id}' AND id = 1"
        );
        for wait_ms in [0, 1, 20, 150] {
            tokio::time::sleep(std::time::Duration::from_millis(if n % 10 == 0 {
                wait_ms
            } else {
                0
            }))
            .await;
            let row = value(&client, &read).await;
            let (phone, port) = row.split_once('|').expect("two columns");
            assert_eq!(phone, n.to_string(), "a stale read, from port {port}");
            from_replica += u32::from(port == shards.replica.port().to_string());
        }
    }
    assert!(from_replica > 0, "the replica never served: the test showed nothing");
}

#[tokio::test]
async fn a_transaction_belongs_to_one_hospital() {
    let shards = shards();
    let ward = Ward::start(shards, &WardOptions::default());
    let client = ward.connect().await;
    // Two on one shard, one elsewhere: it is the hospital that counts, not the shard.
    let (here, beside, there) =
        (shards.hospital(0, 1), shards.hospital(0, 1), shards.hospital(3, 1));
    let rename = |id| format!("UPDATE patients SET name = 'Changed' WHERE hospital_id = '{id}'");
    for other in [beside, there] {
        simple(&client, "BEGIN").await.expect("BEGIN");
        simple(&client, &rename(here)).await.expect("the first hospital");
        assert_eq!(refusal(&client, &rename(other)).await.0, "PW003");
        assert_eq!(refusal(&client, "SELECT 1").await.0, "25P02");
        simple(&client, "COMMIT").await.expect("COMMIT answers ROLLBACK");
    }
    let name = |id| format!("SELECT name FROM patients WHERE hospital_id = '{id}'");
    for (shard, id) in [(0, here), (0, beside), (3, there)] {
        assert_eq!(shards.psql(shard, &name(id)), "Patient 1", "everything was rolled back");
    }
    simple(&client, "BEGIN").await.expect("BEGIN");
    simple(&client, &rename(there)).await.expect("an update");
    simple(&client, "SAVEPOINT s").await.expect("a savepoint");
    simple(&client, &format!("DELETE FROM patients WHERE hospital_id = '{there}'"))
        .await
        .expect("gone");
    simple(&client, "ROLLBACK TO s").await.expect("and back");
    simple(&client, "COMMIT").await.expect("COMMIT");
    assert_eq!(shards.psql(3, &name(there)), "Changed");
}

#[tokio::test]
async fn what_names_no_hospital_or_two_is_refused_with_a_hint() {
    let shards = shards();
    let ward = Ward::start(shards, &WardOptions::default());
    let client = ward.connect().await;
    let (one, two) = (shards.hospital(0, 1), shards.hospital(1, 1));
    shards.psql(0, "CREATE TABLE IF NOT EXISTS undeclared (n int)");
    let cases = [
        ("SELECT * FROM patients".to_owned(), "PW001", "hospital_id"),
        ("SELECT * FROM patients WHERE mrn = 'MRN-1'".to_owned(), "PW001", "hospital_id"),
        ("DELETE FROM visits".to_owned(), "PW001", "hospital_id"),
        ("UPDATE patients SET name = 'x' WHERE id = 1".to_owned(), "PW001", "hospital_id"),
        (format!("SELECT * FROM patients WHERE hospital_id <> '{one}'"), "PW001", "hospital_id"),
        (format!("SELECT * FROM patients WHERE NOT hospital_id = '{one}'"), "PW001", "hospital_id"),
        (
            format!("SELECT * FROM patients WHERE hospital_id = '{one}' OR id = 1"),
            "PW001",
            "hospital_id",
        ),
        (
            format!("SELECT * FROM patients p, visits v WHERE p.hospital_id = '{one}'"),
            "PW001",
            "visits",
        ),
        (
            format!("SELECT * FROM patients WHERE hospital_id IN ('{one}', '{two}')"),
            "PW003",
            "hospital",
        ),
        (
            format!(
                "INSERT INTO patients (hospital_id, id, mrn, name)
                 VALUES ('{one}', 8, 'm', 'n'), ('{two}', 8, 'm', 'n')"
            ),
            "PW003",
            "hospital",
        ),
        (
            format!(
                "UPDATE patients SET name = 'x' WHERE hospital_id = '{one}';
                 UPDATE patients SET name = 'x' WHERE hospital_id = '{two}'"
            ),
            "PW003",
            "hospital",
        ),
        ("SELECT * FROM patients WHERE hospital_id = 'not a uuid'".to_owned(), "22P02", "uuid"),
        ("SELECT * FROM undeclared".to_owned(), "PW004", "undeclared"),
        ("SELEC 1".to_owned(), "42601", "syntax"),
        ("SELECT pg_read_file('/etc/passwd')".to_owned(), "42501", "pg_read_file"),
        ("SELECT * FROM pg_stats".to_owned(), "42501", "pg_stats"),
        ("LISTEN x".to_owned(), "PW001", "LISTEN"),
        ("COPY patients FROM STDIN".to_owned(), "PW001", "COPY"),
        ("CREATE TEMP TABLE t (n int)".to_owned(), "PW001", "temporary table"),
        ("CREATE TABLE t (n int)".to_owned(), "0A000", "CREATE TABLE"),
        (
            format!("UPDATE patients SET hospital_id = '{two}' WHERE hospital_id = '{one}'"),
            "0A000",
            "",
        ),
        (format!("BEGIN; DELETE FROM patients WHERE hospital_id = '{one}'; COMMIT"), "0A000", ""),
    ];
    for (sql, code, word) in cases {
        let (found, told) = refusal(&client, &sql).await;
        assert_eq!(found, code, "{sql}: {told}");
        assert!(told.contains(word), "{sql}: `{word}` is not in: {told}");
        assert!(!told.contains(&one.to_string()), "{sql}: a refusal names a hospital: {told}");
    }
    for (shard, id) in [(0, one), (1, two)] {
        let sql = format!("SELECT name FROM patients WHERE hospital_id = '{id}'");
        assert_eq!(shards.psql(shard, &sql), "Patient 1", "a refused write was made");
    }
    assert_eq!(value(&client, "SELECT 1").await, "1", "the connection stays");
}

#[tokio::test]
async fn in_route_mode_the_session_says_which_hospital() {
    let shards = shards();
    let options = WardOptions { config: &[("guard", "mode = \"route\"")], ..Default::default() };
    let ward = Ward::start(shards, &options);
    let (one, two) = (shards.hospital(0, 1), shards.hospital(2, 2));
    let client = ward.connect().await;
    assert_eq!(refusal(&client, "SELECT 1 FROM patients").await.0, "PW001");
    let count = "SELECT count(*), current_database() FROM patients";
    let keyed = |id| format!("{count} WHERE hospital_id = '{id}' GROUP BY 2");
    simple(&client, &format!("SET pgward.hospital_id = '{two}'")).await.expect("SET");
    let sql = "SELECT current_database()::text, count(*) > 0 FROM patients GROUP BY 1";
    assert_eq!(value(&client, sql).await, "shard2|t");
    assert_eq!(refusal(&client, &keyed(one)).await.0, "42501", "another than the session's");
    simple(&client, "RESET pgward.hospital_id").await.expect("RESET");
    assert_eq!(refusal(&client, sql).await.0, "PW001");
    let hinted = format!("/* hospital_id='{one}' */ {sql}");
    assert_eq!(value(&client, &hinted).await, "shard0|t");

    let mut config = ward.client_config();
    config.options(format!("-c pgward.hospital_id={one}"));
    let bound = ward.connect_with(&config).await.expect("a login");
    assert_eq!(value(&bound, sql).await, "shard0|t");
}

#[tokio::test]
async fn a_shard_addressed_session_is_for_those_who_may() {
    let shards = shards();
    let ward = Ward::start(shards, &WardOptions::default());
    let mut config = ward.client_config();
    config.options("-c pgward.shard=2");
    let refused = ward.connect_with(&config).await.expect_err("app has no shard_access");
    assert_eq!(sqlstate(&refused), "42501");
    config.user("migrate").password("migrate-password");
    let client = ward.connect_with(&config).await.expect("a login");
    assert_eq!(value(&client, "SELECT current_database()").await, "shard2");
    let port = value(&client, "SELECT inet_server_port()").await;
    assert_eq!(port, shards.primary.port().to_string());
    simple(&client, "CREATE TABLE migrated (hospital_id uuid PRIMARY KEY)").await.expect("DDL");
    simple(&client, "DROP TABLE migrated").await.expect("DDL");
    config.options("-c pgward.shard=99");
    assert!(ward.connect_with(&config).await.is_err(), "there is no shard 99");
}
