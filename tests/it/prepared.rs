//! PREPARE, EXECUTE and DEALLOCATE as SQL statements, over a pool that gives them other servers each
//! time.

use crate::support::raw::{execute, flush, message, query, sync};
use crate::support::*;

const TRUST: (&str, &str) = ("auth", "auth_type = \"trust\"");

fn tags(messages: &[Message]) -> String {
    messages.iter().map(|message| char::from(message.tag)).collect()
}

fn named(name: &str, sql: &str) -> Vec<u8> {
    message(b'P', &[name.as_bytes(), b"\0", sql.as_bytes(), b"\0\0\0"])
}

fn bound(statement: &str) -> Vec<u8> {
    message(b'B', &[b"\0", statement.as_bytes(), b"\0\0\0\0\0\0\0"])
}

#[tokio::test]
async fn a_prepared_name_follows_its_client_and_its_hospital() {
    let shards = shards();
    let ward = Ward::start(shards, &WardOptions::default());
    let client = ward.connect().await;
    let (one, two) = (shards.hospital(0, 2), shards.hospital(3, 3));
    let prepare = "PREPARE \"Of\" (uuid, int) AS
        SELECT count(*), $2 FROM patients WHERE hospital_id = $1 GROUP BY 2";
    client.batch_execute(prepare).await.expect("prepared");
    for (id, count) in [(one, "2|7"), (two, "3|7"), (one, "2|7"), (two, "3|7")] {
        let sql = format!("/* who */ EXECUTE /* what */ \"Of\" ('{id}', 3 + 4);");
        assert_eq!(value(&client, &sql).await, count);
    }
    let explain = format!("EXPLAIN (COSTS off, FORMAT text) EXECUTE \"Of\" ('{two}', 1)");
    assert!(!simple(&client, &explain).await.expect("a plan").is_empty());
    // A name is in one space with those of the protocol.
    let other = ward.connect().await;
    for (sql, code) in [
        (prepare.to_owned(), "42P05"),
        (format!("EXECUTE of('{one}', 1)"), "26000"),
        // Nothing follows what an expression, or NULL, means.
        (format!("EXECUTE \"Of\"(lower('{one}')::uuid, 1)"), "0A000"),
        ("EXECUTE \"Of\"(NULL, 1)".into(), "0A000"),
        ("EXECUTE \"Of\"('x', 1)".into(), "22P02"),
        ("EXECUTE \"Of\"".into(), "0A000"),
        (format!("EXECUTE \"Of\"('{one}', pg_read_file('x'))"), "42501"),
        ("PREPARE q AS SELECT nothing FROM patients".into(), "42703"),
        ("EXECUTE q".into(), "26000"),
        ("PREPARE q AS SELECT * FROM pg_stats".into(), "42501"),
        ("SELECT 1; EXECUTE \"Of\"('x', 1)".into(), "0A000"),
        ("PREPARE a AS SELECT 1; PREPARE b AS SELECT 2".into(), "0A000"),
        // Types are read by their names alone; a string, or what may be one, is none.
        ("PREPARE t(\"a'b\") AS SELECT $1".into(), "0A000"),
        ("PREPARE t(\"a$b\") AS SELECT $1".into(), "0A000"),
        ("PREPARE t(int, \"x) AS SELECT 1 --\") AS SELECT $1".into(), "42704"),
        ("PREPARE t(\"Uuid\") AS SELECT name FROM patients WHERE hospital_id = $1".into(), "42704"),
        ("EXECUTE t".into(), "26000"),
    ] {
        assert_eq!(refusal(&client, &sql).await.0, code, "{sql}");
    }
    let quoted = "PREPARE t(\"uuid\", pg_catalog.\"text\") AS
        SELECT count(*), $2 FROM patients WHERE hospital_id = $1 GROUP BY 2";
    client.batch_execute(quoted).await.expect("prepared");
    assert_eq!(value(&client, &format!("EXECUTE t('{two}', 'x')")).await, "3|x");
    assert_eq!(refusal(&other, &format!("EXECUTE \"Of\"('{one}', 1)")).await.0, "26000");
    client.batch_execute("DEALLOCATE \"Of\"").await.expect("gone");
    assert_eq!(refusal(&client, "DEALLOCATE \"Of\"").await.0, "26000");
    client.batch_execute(prepare).await.expect("anew");
}

#[tokio::test]
async fn what_a_prepared_statement_does_counts_where_it_is_executed() {
    let shards = shards();
    let ward = Ward::start(shards, &WardOptions::default());
    let (client, other) = (ward.connect().await, ward.connect().await);
    let (id, elsewhere) = (shards.hospital(1, 1), shards.hospital(2, 1));
    let prepare = "PREPARE w(uuid, text) AS UPDATE patients SET name = $2
        WHERE hospital_id = $1 RETURNING name, pg_is_in_recovery()";
    client.batch_execute(prepare).await.expect("prepared");
    let write = format!("EXECUTE w('{id}', 'New')");
    assert_eq!(value(&client, &write).await, "New|f");
    // It is no part of the transaction that it stands in.
    client.batch_execute("BEGIN").await.expect("begun");
    client.batch_execute(&write.replace("New", "Newer")).await.expect("written");
    client.batch_execute("PREPARE r AS SELECT pg_is_in_recovery()").await.expect("prepared");
    assert_eq!(
        refusal(&client, &write.replace(&id.to_string(), &elsewhere.to_string())).await.0,
        "PW003"
    );
    client.batch_execute("ROLLBACK").await.expect("rolled back");
    assert_eq!(value(&client, "EXECUTE r").await.len(), 1);
    let read = format!("SELECT name FROM patients WHERE hospital_id = '{id}'");
    assert_eq!(value(&client, &read).await, "New");
    // A setting that it makes is the client's, and nobody else's.
    let set = "PREPARE s AS SELECT set_config('work_mem', $1, false)";
    client.batch_execute(set).await.expect("prepared");
    assert_eq!(value(&client, "EXECUTE s('7MB')").await, "7MB");
    for _ in 0..4 {
        assert_eq!(value(&client, "SHOW work_mem").await, "7MB");
        assert_ne!(value(&other, "SHOW work_mem").await, "7MB");
    }
    client
        .batch_execute("PREPARE h AS SELECT set_config('pgward.hospital_id', $1, false)")
        .await
        .expect("prepared");
    assert_eq!(refusal(&client, &format!("EXECUTE h('{id}')")).await.0, "0A000");
}

#[test]
fn both_protocols_share_the_names() {
    let shards = shards();
    let config =
        [TRUST, ("pool", "default_pool_size = 1"), ("pool", "max_prepared_statements = 1")];
    let ward = Ward::start(shards, &WardOptions { config: &config, ..Default::default() });
    let id = shards.hospital(2, 2);
    let count = format!("SELECT count(*) FROM patients WHERE hospital_id = '{id}'");
    let (mut one, mut two) = (Raw::login(&ward), Raw::login(&ward));
    for raw in [&mut one, &mut two] {
        for (bytes, answer) in [
            (query(&format!("PREPARE p AS {count}")), "CZ"),
            ([bound("p"), execute(), sync()].concat(), "2DCZ"),
            (named("p", "SELECT 1"), ""),
            (sync(), "EZ"),
            ([named("n", &count), sync()].concat(), "1Z"),
            (query("EXECUTE n"), "TDCZ"),
            (query("EXECUTE p"), "TDCZ"),
            ([named("", "EXECUTE n"), bound(""), execute(), sync()].concat(), "12DCZ"),
            (
                [named("e", "EXECUTE p"), message(b'D', &[b"Se\0"]), flush(), sync()].concat(),
                "1tTZ",
            ),
            (query("DEALLOCATE p"), "CZ"),
            ([bound("e"), execute(), sync()].concat(), "EZ"),
            // What the name means when it is executed counts.
            (
                query(&format!(
                    "PREPARE p AS SELECT name FROM patients WHERE hospital_id = '{id}'"
                )),
                "CZ",
            ),
            ([bound("e"), execute(), sync()].concat(), "2DDCZ"),
            ([named("", "PREPARE x AS SELECT 1"), bound(""), execute(), sync()].concat(), "12CZ"),
            (query("EXECUTE x"), "TDCZ"),
            (query("DEALLOCATE ALL"), "CZ"),
            (query("EXECUTE x"), "EZ"),
        ] {
            raw.send(&bytes);
            if !answer.is_empty() {
                let messages = raw.until(b'Z').expect("an answer");
                assert_eq!(
                    tags(&messages),
                    answer,
                    "{messages:?} to {}",
                    String::from_utf8_lossy(&bytes)
                );
            }
        }
    }
}

/// A pgward with one server, in front of a database of its own where nothing is guarded.
fn open_ward(database: &str, tables: &str) -> Ward {
    let primary = &shards().primary;
    primary.psql("postgres", &format!("CREATE DATABASE {database}")).expect("a database");
    primary.psql(database, tables).expect("tables");
    let grant = "GRANT ALL ON ALL TABLES IN SCHEMA public TO app";
    primary.psql(database, grant).expect("a grant");
    let config = [TRUST, ("guard", "mode = \"route\""), ("pool", "default_pool_size = 1")];
    let map = Some(one_shard_map(primary.port(), database));
    Ward::start(shards(), &WardOptions { map, config: &config })
}

/// Sends `bytes` and reads up to ReadyForQuery: tags, and the last error's SQLSTATE.
fn ask(raw: &mut Raw, bytes: &[u8]) -> String {
    raw.send(bytes);
    let messages = raw.until(b'Z').expect("an answer");
    let code = messages.iter().rev().find(|message| message.tag == b'E');
    tags(&messages) + code.map_or("", Message::sqlstate)
}

#[test]
fn a_statement_that_ddl_made_stale_is_healed_where_nobody_can_tell() {
    let table = "CREATE TABLE t (a int); INSERT INTO t VALUES (1)";
    let ward = open_ward("healing", table);
    let alter = |sql: &str| shards().primary.psql("healing", sql).expect("DDL");
    let (mut one, mut two) = (Raw::login(&ward), Raw::login(&ward));
    let parse = named("s", "SELECT * FROM t");
    let describe = message(b'D', &[b"P\0"]);
    let run = [bound("s"), execute(), sync()].concat();
    let told = [bound("s"), describe.clone(), execute(), sync()].concat();
    assert_eq!(ask(&mut one, &[parse.clone(), run.clone()].concat()), "12DCZ");
    assert_eq!(ask(&mut two, &[parse.clone(), told.clone()].concat()), "12TDCZ");
    alter("ALTER TABLE t ADD b int");
    // It hears of the new column in this very batch.
    assert_eq!(ask(&mut two, &told), "2TDCZ");
    assert_eq!(ask(&mut two, &run), "2DCZ");
    // It was told of one column, and is told so, as on a connection of its own; until it prepares anew.
    assert_eq!(ask(&mut one, &run), "EZ0A000");
    assert_eq!(ask(&mut one, &run), "EZ0A000");
    let close = message(b'C', &[b"Ss\0"]);
    assert_eq!(ask(&mut one, &[close.clone(), parse.clone(), run.clone()].concat()), "312DCZ");
    assert_eq!(ask(&mut one, &run), "2DCZ");
    // Whoever prepares it in the batch never hears of it, by name or without.
    alter("ALTER TABLE t ADD c int");
    let mut three = Raw::login(&ward);
    assert_eq!(ask(&mut three, &[parse.clone(), run.clone()].concat()), "12DCZ");
    alter("ALTER TABLE t ADD d int");
    let unnamed = [named("", "SELECT * FROM t"), bound(""), execute(), sync()].concat();
    assert_eq!(ask(&mut two, &unnamed), "12DCZ");
    // In a block nothing is run twice.
    alter("ALTER TABLE t ADD e int");
    assert_eq!(ask(&mut three, &query("BEGIN")), "CZ");
    assert_eq!(ask(&mut three, &told), "EZ0A000");
    assert_eq!(ask(&mut three, &query("ROLLBACK")), "CZ");
    assert_eq!(ask(&mut three, &told), "2TDCZ");
    // What a function has thrown away is there again.
    alter(
        "CREATE FUNCTION forget() RETURNS int LANGUAGE plpgsql AS
         $$ BEGIN EXECUTE 'DEALLOCATE ALL'; RETURN 1; END $$",
    );
    assert_eq!(ask(&mut three, &query("BEGIN")), "CZ");
    assert_eq!(ask(&mut three, &query("SELECT forget()")), "TDCZ");
    assert_eq!(ask(&mut three, &query("COMMIT")), "CZ");
    assert_eq!(ask(&mut three, &told), "2TDCZ");
    // The same error about something else, while it is planned: the statement is still there.
    alter(
        "CREATE FUNCTION missing(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS
         $$ BEGIN RAISE SQLSTATE '26000'; END $$;
         CREATE VIEW broken AS SELECT missing(1) AS x; GRANT SELECT ON broken TO app",
    );
    assert_eq!(ask(&mut three, &[named("m", "SELECT x FROM broken"), sync()].concat()), "1Z");
    let planned = [bound("m"), describe, execute(), sync()].concat();
    for _ in 0..3 {
        assert_eq!(ask(&mut three, &planned), "EZ26000");
    }
    assert_eq!(ask(&mut three, &told), "2TDCZ");
}

#[test]
fn a_function_call_message_gets_its_one_answer() {
    let ward = open_ward("calling", "CREATE TABLE t (a int)");
    let mut raw = Raw::login(&ward);
    // int4div.
    let call = |oid: u32, args: &[&[u8]]| {
        let mut body = [&oid.to_be_bytes()[..], b"\0\x01\0\0"].concat();
        body.extend((args.len() as u16).to_be_bytes());
        for arg in args {
            body.extend((arg.len() as u32).to_be_bytes());
            body.extend(*arg);
        }
        message(b'F', &[&body, b"\0\0"])
    };
    assert_eq!(ask(&mut raw, &call(154, &[b"4", b"2"])), "VZ");
    assert_eq!(ask(&mut raw, &call(154, &[b"1", b"0"])), "EZ22012");
    assert_eq!(ask(&mut raw, &call(1, &[])), "EZ42883");
    assert_eq!(ask(&mut raw, &query("BEGIN")), "CZ");
    assert_eq!(ask(&mut raw, &call(154, &[b"1", b"0"])), "EZ22012");
    assert_eq!(ask(&mut raw, &call(154, &[b"4", b"2"])), "EZ25P02");
    assert_eq!(ask(&mut raw, &query("ROLLBACK")), "CZ");
    let unsynced = [named("", "SELECT 1"), bound(""), execute(), call(154, &[b"4", b"2"])].concat();
    assert_eq!(ask(&mut raw, &unsynced), "12DCVZ");
    let guarded = Ward::start(shards(), &WardOptions { config: &[TRUST], ..Default::default() });
    let mut raw = Raw::login(&guarded);
    assert_eq!(ask(&mut raw, &call(154, &[b"4", b"2"])), "EZ0A000");
    assert_eq!(ask(&mut raw, &query("SELECT 1")), "TDCZ");
}
