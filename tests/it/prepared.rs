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
    open_ward_with(database, tables, &["default_pool_size = 1"])
}

/// As [`open_ward`], with lines of the section `pool`.
fn open_ward_with(database: &str, tables: &str, pool: &[&str]) -> Ward {
    let primary = &shards().primary;
    primary.psql("postgres", &format!("CREATE DATABASE {database}")).expect("a database");
    primary.psql(database, tables).expect("tables");
    let grant = "GRANT ALL ON ALL TABLES IN SCHEMA public TO app";
    primary.psql(database, grant).expect("a grant");
    let mut config = vec![TRUST, ("guard", "mode = \"route\"")];
    config.extend(pool.iter().map(|line| ("pool", *line)));
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

fn described(statement: &str) -> Vec<u8> {
    message(b'D', &[b"S", statement.as_bytes(), b"\0"])
}

fn closed(statement: &str) -> Vec<u8> {
    message(b'C', &[b"S", statement.as_bytes(), b"\0"])
}

/// Bind and Execute of a statement, and Sync.
fn run(statement: &str) -> Vec<u8> {
    [bound(statement), execute(), sync()].concat()
}

/// A map without replicas: what is made beside pgward is there at once.
fn primaries() -> String {
    let shards = shards();
    shards.map_with(|shard| (shards.primary.port(), None, shard))
}

/// The first column of the only row that `bytes` are answered with.
fn first(raw: &mut Raw, bytes: &[u8]) -> String {
    raw.send(bytes);
    let messages = raw.until(b'Z').expect("an answer");
    let row = messages.iter().find(|message| message.tag == b'D').expect("a row");
    let length = u32::from_be_bytes(row.body[2..6].try_into().expect("a length"));
    String::from_utf8_lossy(&row.body[6..6 + length as usize]).into_owned()
}

/// Two servers, of which the pool gives out first what came back last: while one client holds that
/// one, the other meets the one that it was not on before.
struct Two {
    ward: Ward,
    holder: Raw,
}

impl Two {
    fn new(database: &str, tables: &str) -> Self {
        let ward = open_ward_with(database, tables, &["default_pool_size = 2"]);
        let holder = Raw::login(&ward);
        Self { ward, holder }
    }

    fn hold(&mut self) {
        assert_eq!(ask(&mut self.holder, &query("BEGIN")), "CZ");
        assert_eq!(ask(&mut self.holder, &query("SELECT 1")), "TDCZ");
    }

    fn let_go(&mut self) {
        assert_eq!(ask(&mut self.holder, &query("COMMIT")), "CZ");
    }
}

#[test]
fn what_a_client_was_told_holds_on_every_server_or_it_is_told_that_it_does_not() {
    let mut two = Two::new("told", "CREATE TABLE t (a int); INSERT INTO t VALUES (1)");
    let alter = |sql: &str| shards().primary.psql("told", sql).expect("DDL");
    let mut one = Raw::login(&two.ward);
    let insert = "INSERT INTO t VALUES (9) RETURNING *";
    let texts = [("s", "SELECT * FROM t"), ("i", insert), ("u", "SELECT * FROM t LIMIT 1")];
    for (name, text) in texts {
        let prepare = [named(name, text), described(name), sync()].concat();
        assert_eq!(ask(&mut one, &prepare), "1tTZ", "{name}");
    }
    // Never described: nothing can be held against what it answers.
    let untold = [named("n", "SELECT *, 2 FROM t"), sync()].concat();
    assert_eq!(ask(&mut one, &untold), "1Z");
    // Its parameter's type is the column's.
    let of_type = "SELECT 1 FROM t WHERE a = $1";
    let prepare = [named("p", of_type), described("p"), sync()].concat();
    assert_eq!(ask(&mut one, &prepare), "1tTZ");
    // The same elsewhere, and it goes on.
    two.hold();
    assert_eq!(ask(&mut one, &run("s")), "2DCZ");
    assert_eq!(ask(&mut one, &run("s")), "2DCZ");
    assert_eq!(ask(&mut one, &query("BEGIN")), "CZ");
    assert_eq!(ask(&mut one, &[run("u"), run("s")].concat()[..]), "2DCZ");
    assert_eq!(tags(&one.until(b'Z').expect("the second")), "2DCZ");
    assert_eq!(ask(&mut one, &query("ROLLBACK")), "CZ");
    // Another server, and DDL in between: it has not run anything.
    alter("ALTER TABLE t ADD b text");
    assert_eq!(ask(&mut one, &run("i")), "EZ0A000");
    assert_eq!(ask(&mut one, &run("i")), "EZ0A000");
    assert_eq!(ask(&mut one, &run("n")), "2DCZ");
    two.let_go();
    let count = query("SELECT count(*) FROM t WHERE a = 9");
    assert_eq!(first(&mut one, &count), "0");
    // Nor amid a block, which has failed as on a connection of its own.
    two.hold();
    assert_eq!(ask(&mut one, &query("BEGIN")), "CZ");
    assert_eq!(ask(&mut one, &query("SELECT 1")), "TDCZ");
    assert_eq!(ask(&mut one, &run("s")), "EZ0A000");
    assert_eq!(ask(&mut one, &query("SELECT 1")), "EZ25P02");
    assert_eq!(ask(&mut one, &query("ROLLBACK")), "CZ");
    assert_eq!(ask(&mut one, &query("BEGIN")), "CZ");
    assert_eq!(ask(&mut one, &run("i")), "EZ0A000");
    assert_eq!(ask(&mut one, &query("SELECT 1")), "EZ25P02");
    assert_eq!(ask(&mut one, &query("ROLLBACK")), "CZ");
    // Behind an earlier piece of the batch.
    let piece = [named("", "SELECT 1"), bound(""), execute(), flush()].concat();
    one.send(&piece);
    assert_eq!(tags(&one.until(b'C').expect("the piece")), "12DC");
    assert_eq!(ask(&mut one, &run("i")), "EZ0A000");
    assert_eq!(first(&mut one, &count), "0");
    // Prepared anew, in a block too.
    assert_eq!(ask(&mut one, &query("BEGIN")), "CZ");
    let anew = [closed("s"), named("s", "SELECT * FROM t"), described("s"), run("s")].concat();
    assert_eq!(ask(&mut one, &anew), "31tT2DCZ");
    assert_eq!(ask(&mut one, &query("COMMIT")), "CZ");
    two.let_go();
    assert_eq!(ask(&mut one, &run("s")), "2DCZ");
    alter("ALTER TABLE t ALTER a TYPE bigint");
    let param = message(b'B', &[b"\0p\0", b"\0\0", b"\0\x01", b"\0\0\0\x011", b"\0\0"]);
    two.hold();
    assert_eq!(ask(&mut one, &[param, execute(), sync()].concat()), "EZ0A000");
    // An error of its own is the client's.
    let drop = [named("d", "SELECT a FROM t"), described("d"), sync()].concat();
    assert_eq!(ask(&mut one, &drop), "1tTZ");
    two.let_go();
    alter("DROP TABLE t");
    two.hold();
    assert_eq!(ask(&mut one, &run("d")), "EZ42P01");
    assert_eq!(ask(&mut one, &query("SELECT 1")), "TDCZ");
}

#[test]
fn a_statement_without_a_name_is_as_told_too() {
    let mut two = Two::new("unnamed", "CREATE TABLE t (a int); INSERT INTO t VALUES (1)");
    let alter = |sql: &str| shards().primary.psql("unnamed", sql).expect("DDL");
    let mut one = Raw::login(&two.ward);
    let prepare = [named("", "SELECT * FROM t"), described(""), sync()].concat();
    for begins in [false, true] {
        assert_eq!(ask(&mut one, &prepare), "1tTZ");
        two.hold();
        if begins {
            assert_eq!(ask(&mut one, &query("BEGIN")), "CZ");
        }
        assert_eq!(ask(&mut one, &run("")), "2DCZ");
        if begins {
            assert_eq!(ask(&mut one, &query("COMMIT")), "CZ");
        }
        two.let_go();
    }
    assert_eq!(ask(&mut one, &prepare), "1tTZ");
    two.hold();
    alter("ALTER TABLE t ADD b int");
    assert_eq!(ask(&mut one, &run("")), "EZ0A000");
    assert_eq!(ask(&mut one, &prepare), "1tTZ");
    assert_eq!(ask(&mut one, &run("")), "2DCZ");
}

#[test]
fn whoever_prepares_after_ddl_never_hears_of_it() {
    let ward = open_ward("anew", "CREATE TABLE t (a int); INSERT INTO t VALUES (1)");
    let alter = |sql: &str| shards().primary.psql("anew", sql).expect("DDL");
    let prepare = [named("s", "SELECT * FROM t"), described("s")].concat();
    let whole = [prepare.clone(), sync()].concat();
    assert_eq!(ask(&mut Raw::login(&ward), &whole), "1tTZ");
    alter("ALTER TABLE t ADD b int");
    assert_eq!(ask(&mut Raw::login(&ward), &whole), "1tTZ");
    alter("ALTER TABLE t ADD c int");
    let mut flushed = Raw::login(&ward);
    flushed.send(&[prepare.clone(), flush()].concat());
    assert_eq!(tags(&flushed.until(b'T').expect("a description")), "1tT");
    assert_eq!(ask(&mut flushed, &run("s")), "2DCZ");
    // DDL that passes by is known at once: in a block nothing can be run twice.
    let (mut one, mut two) = (Raw::login(&ward), Raw::login(&ward));
    assert_eq!(ask(&mut one, &whole), "1tTZ");
    let owner = shards().primary.psql("anew", "GRANT CREATE ON SCHEMA public TO app");
    owner.expect("a grant");
    alter("ALTER TABLE t OWNER TO app");
    assert_eq!(ask(&mut two, &query("BEGIN")), "CZ");
    assert_eq!(ask(&mut two, &query("ALTER TABLE t ADD d int")), "CZ");
    assert_eq!(ask(&mut two, &query("COMMIT")), "CZ");
    assert_eq!(ask(&mut two, &query("BEGIN")), "CZ");
    assert_eq!(ask(&mut two, &query("SELECT 1")), "TDCZ");
    assert_eq!(ask(&mut two, &whole), "1tTZ");
    assert_eq!(ask(&mut two, &query("COMMIT")), "CZ");
    assert_eq!(ask(&mut one, &run("s")), "EZ0A000");
}

#[test]
fn a_kept_statement_reads_the_table_that_its_text_names_now() {
    let tables = "CREATE SCHEMA near; GRANT ALL ON SCHEMA near TO app;
        ALTER DATABASE shadow SET search_path = near, public;
        CREATE TABLE public.t (a int); INSERT INTO t VALUES (1)";
    let pool = ["default_pool_size = 1", "server_prepare_threshold = 2"];
    let ward = open_ward_with("shadow", tables, &pool);
    let mut one = Raw::login(&ward);
    let unnamed = [named("", "SELECT a FROM t"), run("")].concat();
    for _ in 0..4 {
        assert_eq!(first(&mut one, &unnamed), "1");
    }
    let asked = query("SELECT count(*) FROM pg_prepared_statements WHERE name LIKE 'pgward%'");
    assert_eq!(first(&mut one, &asked), "1");
    // Types and errors are those of a Parse each time.
    let told = [named("", "SELECT a FROM t"), described(""), run("")].concat();
    assert_eq!(ask(&mut one, &told), "1tT2DCZ");
    let wrong = [named("", "SELECT nothing FROM t"), run("")].concat();
    for _ in 0..4 {
        assert_eq!(ask(&mut one, &wrong), "EZ42703");
    }
    // A table that stands before it from now on, for all and for one session.
    assert_eq!(ask(&mut one, &query("CREATE TABLE near.t AS SELECT 2 AS a")), "CZ");
    let mut two = Raw::login(&ward);
    assert_eq!(first(&mut two, &unnamed), "2");
    assert_eq!(first(&mut two, &unnamed), "2");
    assert_eq!(ask(&mut one, &query("CREATE TEMP TABLE t AS SELECT 3 AS a")), "CZ");
    for _ in 0..4 {
        assert_eq!(first(&mut one, &unnamed), "3");
    }
    let by_name = [named("mine", "SELECT a FROM t"), run("mine")].concat();
    assert_eq!(first(&mut one, &by_name), "3");
    assert_eq!(ask(&mut one, &query("DROP TABLE pg_temp.t")), "CZ");
    for _ in 0..4 {
        assert_eq!(first(&mut two, &unnamed), "2");
    }
}

#[test]
fn a_clients_statements_are_bounded_by_bytes() {
    let pool = ["client_statement_bytes_max = 1024", "default_pool_size = 1"];
    let ward = open_ward_with("weighing", "CREATE TABLE t (a int)", &pool);
    let mut raw = Raw::login(&ward);
    let long = |n: usize| format!("SELECT {}", "1 + ".repeat(150) + &n.to_string());
    let parse = |name: &str, n| [named(name, &long(n)), sync()].concat();
    assert_eq!(ask(&mut raw, &parse("a", 1)), "1Z");
    assert_eq!(ask(&mut raw, &parse("b", 2)), "EZ53400");
    assert_eq!(ask(&mut raw, &query(&format!("PREPARE b AS {}", long(2)))), "EZ53400");
    // One without a name is gone with the next.
    assert_eq!(ask(&mut raw, &parse("", 2)), "1Z");
    for _ in 0..3 {
        assert_eq!(ask(&mut raw, &[closed("a"), parse("a", 3)].concat()), "31Z");
    }
    assert_eq!(ask(&mut raw, &query("DEALLOCATE ALL")), "CZ");
    assert_eq!(ask(&mut raw, &parse("b", 2)), "1Z");
}

#[test]
fn clients_who_read_a_literal_otherwise_share_no_statement() {
    let ward = open_ward("literals", "CREATE TABLE t (x int)");
    let sql = "SELECT extract(hour FROM '2020-01-01 12:00 EST'::timestamptz AT TIME ZONE 'UTC')";
    let mut there = Raw::login(&ward);
    assert_eq!(ask(&mut there, &query("SET timezone_abbreviations = 'Australia'")), "CZ");
    for (raw, hour) in [(&mut there, "2"), (&mut Raw::login(&ward), "17")] {
        assert_eq!(ask(raw, &[named("s", sql), sync()].concat()), "1Z");
        assert_eq!(first(raw, &run("s")), hour);
    }
    assert_eq!(first(&mut there, &run("s")), "2");
}

fn member(sql: &str) -> Vec<u8> {
    [named("", sql), bound(""), execute()].concat()
}

#[test]
fn a_hospital_that_was_set_in_an_earlier_piece_holds_however_often_the_rest_is_looked_at() {
    let shards = shards();
    let config = [TRUST, ("health", "catalog_refresh_s = 3600"), ("guard", "mode = \"route\"")];
    let map = Some(primaries());
    let ward = Ward::start(shards, &WardOptions { config: &config, map });
    let (one, two) = (shards.hospital(0, 2), shards.hospital(3, 3));
    let mut raw = Raw::login(&ward);
    let bind_to = |id: uuid::Uuid| format!("SET pgward.hospital_id = '{id}'");
    assert_eq!(ask(&mut raw, &query(&bind_to(one))), "CZ");
    for shard in 0..4 {
        let make =
            "CREATE TABLE later AS SELECT hospital_id FROM patients; GRANT SELECT ON later TO app";
        shards.psql(shard, make);
    }
    raw.send(&[member(&bind_to(two)), flush()].concat());
    raw.until(b'C').expect("an answer");
    let read = "SELECT current_database() FROM later LIMIT 1";
    assert_eq!(first(&mut raw, &[member(read), sync()].concat()), "shard3");
    let shown = query("SHOW pgward.hospital_id");
    assert_eq!(first(&mut raw, &shown), two.to_string());
    // A batch that fails takes back what it has set, in whatever piece.
    for refused in ["SELEC", "SELECT 1/0 FROM later"] {
        raw.send(&[member(&bind_to(one)), flush()].concat());
        raw.until(b'C').expect("an answer");
        ask(&mut raw, &[member(refused), sync()].concat());
        assert_eq!(first(&mut raw, &shown), two.to_string(), "{refused}");
    }
    // Whether a savepoint came ahead of it, nobody can say any more: it is for no hospital then.
    assert_eq!(ask(&mut raw, &query("BEGIN")), "CZ");
    assert_eq!(ask(&mut raw, &query("SELECT 1 FROM later LIMIT 1")), "TDCZ");
    let lost = [member(&bind_to(two)), member("SAVEPOINT s"), member("SELECT 1/0"), sync()];
    assert_eq!(ask(&mut raw, &lost.concat()), "12C12C1EZ22012");
    assert_eq!(ask(&mut raw, &query("ROLLBACK TO s")), "CZ");
    assert_eq!(first(&mut raw, &shown), "");
    assert_eq!(ask(&mut raw, &query("ROLLBACK")), "CZ");
    assert_eq!(first(&mut raw, &shown), two.to_string());
}

/// What Postgres answers to `SELECT 1/0` as one more member of a batch: an error at its Bind.
fn failing() -> Vec<u8> {
    [named("", "SELECT 1/0"), bound(""), execute()].concat()
}

#[test]
fn discard_all_takes_place_at_once() {
    let ward = open_ward("discarding", "CREATE TABLE t (a int)");
    let mut raw = Raw::login(&ward);
    let set = [query("SET statement_timeout = '7s'"), named("s", "SELECT 1"), sync()];
    let shown = query("SHOW statement_timeout");
    // Behind an error it does not take place.
    for bytes in &set {
        raw.send(bytes);
    }
    raw.until(b'Z').expect("an answer");
    assert_eq!(ask(&mut raw, &[]), "1Z");
    let discard = member("DISCARD ALL");
    assert_eq!(ask(&mut raw, &[&member("BEGIN")[..], &discard, &sync()].concat()), "EZ25001");
    assert_eq!(first(&mut raw, &shown), "7s");
    assert_eq!(first(&mut raw, &run("s")), "1");
    // Ahead of one it has, in one piece or in two.
    for between in [Vec::new(), flush()] {
        for bytes in &set {
            raw.send(bytes);
        }
        raw.until(b'Z').expect("an answer");
        ask(&mut raw, &[]);
        assert_eq!(
            ask(&mut raw, &[&discard[..], &between, &failing(), &sync()].concat()),
            "12C1EZ22012"
        );
        assert_eq!(first(&mut raw, &shown), "0");
        assert_eq!(ask(&mut raw, &run("s")), "EZ26000");
    }
}

#[test]
fn what_is_taken_away_behind_an_error_stays() {
    let ward = open_ward("taking", "CREATE TABLE t (a int)");
    let mut raw = Raw::login(&ward);
    let behind = |taking: &[u8]| [&failing(), taking, &sync()].concat();
    let ahead = |taking: &[u8]| [taking, &failing(), &sync()].concat();
    for name in ["a", "b", "c"] {
        assert_eq!(ask(&mut raw, &[named(name, "SELECT 1"), sync()].concat()), "1Z");
    }
    for taking in [closed("a"), member("DEALLOCATE a"), member("DEALLOCATE ALL")] {
        assert_eq!(ask(&mut raw, &behind(&taking)), "1EZ22012");
        assert_eq!(ask(&mut raw, &run("a")), "2DCZ");
    }
    // A name that is taken away, given anew and taken away again.
    let anew = [closed("a"), named("a", "SELECT 2"), closed("a")].concat();
    assert_eq!(ask(&mut raw, &behind(&anew)), "1EZ22012");
    assert_eq!(first(&mut raw, &run("a")), "1");
    // What the error comes behind has taken place.
    assert_eq!(ask(&mut raw, &ahead(&closed("a"))), "31EZ22012");
    assert_eq!(ask(&mut raw, &run("a")), "EZ26000");
    assert_eq!(ask(&mut raw, &ahead(&member("DEALLOCATE b"))), "12C1EZ22012");
    assert_eq!(ask(&mut raw, &run("b")), "EZ26000");
    let mixed = [&closed("none"), &named("a", "SELECT 3")[..], &failing(), &closed("a"), &sync()];
    assert_eq!(ask(&mut raw, &mixed.concat()), "311EZ22012");
    assert_eq!(first(&mut raw, &run("a")), "3");
    // What pgward has answered in an earlier piece of the batch counts, too.
    assert_eq!(ask(&mut raw, &query("BEGIN")), "CZ");
    assert_eq!(ask(&mut raw, &query("SELECT 1")), "TDCZ");
    raw.send(&[named("d", "SELECT 3"), flush()].concat());
    raw.until(b'1').expect("an answer");
    assert_eq!(ask(&mut raw, &ahead(&named("e", "SELECT 4"))), "11EZ22012");
    assert_eq!(ask(&mut raw, &query("ROLLBACK")), "CZ");
    assert_eq!(first(&mut raw, &run("d")), "3");
    assert_eq!(first(&mut raw, &run("e")), "4");
}

#[test]
fn a_batch_that_is_looked_at_twice_takes_away_once() {
    let shards = shards();
    let config = [TRUST, ("health", "catalog_refresh_s = 3600")];
    let map = Some(primaries());
    let ward = Ward::start(shards, &WardOptions { config: &config, map });
    let mut raw = Raw::login(&ward);
    let id = shards.hospital(1, 2);
    let texts =
        [("s", "SELECT 1"), ("d", "DEALLOCATE s"), ("all", "DEALLOCATE ALL"), ("x", "DISCARD ALL")];
    for (n, (taking, answer)) in [
        ([bound("s"), execute(), closed("s")].concat(), "2DC3"),
        ([bound("d"), execute()].concat(), "2C"),
        ([bound("all"), execute()].concat(), "2C"),
        ([bound("x"), execute()].concat(), "2C"),
    ]
    .into_iter()
    .enumerate()
    {
        for (name, sql) in texts {
            ask(&mut raw, &[closed(name), named(name, sql), sync()].concat());
        }
        for shard in 0..4 {
            let make =
                format!("CREATE TABLE late{n} (hospital_id uuid); GRANT SELECT ON late{n} TO app");
            shards.psql(shard, &make);
        }
        let late = format!("SELECT count(*) FROM late{n} WHERE hospital_id = '{id}'");
        let batch = [taking, member(&late), sync()].concat();
        assert_eq!(ask(&mut raw, &batch), format!("{answer}12DCZ"), "{n}");
        assert_eq!(ask(&mut raw, &run("s")), "EZ26000", "{n}");
    }
}
