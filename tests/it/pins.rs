//! What keeps a client on its server, and that it does so for as long as its cause lasts; session
//! mode, which is a cause of its own.

use tokio_postgres::Client;

use crate::support::raw::{bind, execute, message, parse, query, sync};
use crate::support::*;

const TRUST: (&str, &str) = ("auth", "auth_type = \"trust\"");
const ROUTE: (&str, &str) = ("guard", "mode = \"route\"");
const ONE_SERVER: (&str, &str) = ("pool", "default_pool_size = 1");
const SHORT_WAIT: (&str, &str) = ("pool", "query_wait_timeout = 1");
const SESSION: (&str, &str) = ("pool", "pool_mode = \"session\"");

/// Nothing is guarded: one shard, whose database `app` owns.
fn open_ward(config: &[(&str, &str)]) -> Ward {
    let shards = shards();
    let map = one_shard_map(shards.primary.port(), "shard0");
    Ward::start(shards, &WardOptions { map: Some(map), config })
}

/// The pin of the one client of `user` that has one, as SHOW CLIENTS tells it.
async fn pin(console: &Client) -> String {
    let rows = console.simple_query("SHOW CLIENTS").await.expect("SHOW CLIENTS");
    let pins: Vec<String> = rows
        .iter()
        .filter_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get("pin").map(str::to_owned),
            _ => None,
        })
        .filter(|pin| !pin.is_empty())
        .collect();
    assert!(pins.len() <= 1, "{pins:?}");
    pins.into_iter().next().unwrap_or_default()
}

#[tokio::test]
async fn a_client_keeps_its_server_as_long_as_the_cause_lasts() {
    let ward = open_ward(&[ROUTE, ONE_SERVER, SHORT_WAIT]);
    let (client, other, console) =
        (ward.connect().await, ward.connect().await, ward.console().await);
    for (begin, works, end, name) in [
        (
            "CREATE TEMP TABLE t (x int)",
            "INSERT INTO t VALUES (1)",
            "DROP TABLE t",
            "temporary table",
        ),
        ("SELECT 1 AS x INTO TEMP t", "SELECT x FROM t", "DROP TABLE t", "temporary table"),
        (
            "CREATE TEMP VIEW t AS SELECT 1 AS x",
            "SELECT x FROM t",
            "DROP VIEW t",
            "temporary table",
        ),
        (
            "DO $$ BEGIN CREATE TEMP TABLE t (x int); END $$",
            "INSERT INTO t VALUES (1)",
            "DISCARD TEMP",
            "temporary table",
        ),
        (
            "CREATE TYPE pg_temp.t AS ENUM ('x')",
            "SELECT 'x'::pg_temp.t",
            "DROP TYPE pg_temp.t",
            "temporary table",
        ),
        ("LISTEN news", "SELECT 1", "UNLISTEN news", "LISTEN"),
        ("SELECT pg_advisory_lock(7)", "SELECT 1", "SELECT pg_advisory_unlock(7)", "advisory lock"),
        (
            "BEGIN; DECLARE c CURSOR WITH HOLD FOR SELECT * FROM regions; COMMIT",
            "FETCH 1 FROM c",
            "CLOSE c",
            "cursor WITH HOLD",
        ),
        (
            "CREATE TEMP TABLE t (x int); LISTEN news",
            "SELECT 1",
            "DISCARD ALL",
            "LISTEN, temporary table",
        ),
    ] {
        simple(&client, begin).await.unwrap_or_else(|e| panic!("{begin}: {}", tell(&e)));
        // The client has its answer before pgward has asked the server.
        eventually(&format!("{name} after {begin}"), async || pin(&console).await == name).await;
        assert_eq!(refusal(&other, "SELECT 1").await.0, "57014", "{begin} keeps the one server");
        simple(&client, works).await.unwrap_or_else(|e| panic!("{works}: {}", tell(&e)));
        simple(&client, end).await.unwrap_or_else(|e| panic!("{end}: {}", tell(&e)));
        eventually(&format!("no pin after {end}"), async || pin(&console).await.is_empty()).await;
        assert_eq!(value(&other, "SELECT 1").await, "1", "after {end}");
        assert_eq!(value(&other, "SELECT count(*) FROM pg_listening_channels()").await, "0");
        assert_eq!(value(&other, "SELECT to_regclass('t') IS NULL").await, "t", "after {end}");
    }
    let metrics = http_get(ward.metrics_port, "/metrics").1;
    for (reason, count) in [("LISTEN", 2), ("temporary table", 6), ("advisory lock", 1)] {
        let line = format!("pgward_pins_total{{reason=\"{reason}\"}} {count}");
        assert!(metrics.contains(&line), "no {line} in\n{metrics}");
    }
}

#[tokio::test]
async fn what_is_rolled_back_keeps_nothing() {
    let ward = open_ward(&[ROUTE, ONE_SERVER, SHORT_WAIT]);
    let (client, other, console) =
        (ward.connect().await, ward.connect().await, ward.console().await);
    for begin in ["CREATE TEMP TABLE t (x int)", "LISTEN news"] {
        for end in ["ROLLBACK", "SAVEPOINT s"] {
            simple(&client, "BEGIN").await.expect("BEGIN");
            simple(&client, begin).await.expect(begin);
            if end != "ROLLBACK" {
                simple(&client, "SELECT 1/0").await.expect_err("a failed block");
            }
            simple(&client, "ROLLBACK").await.expect("ROLLBACK");
            assert_eq!(value(&other, "SELECT 1").await, "1");
            assert_eq!(pin(&console).await, "", "{begin}, {end}");
        }
    }
}

#[tokio::test]
async fn what_a_function_sets_follows_its_client() {
    let ward = open_ward(&[ROUTE, ONE_SERVER, SHORT_WAIT]);
    let (client, other) = (ward.connect().await, ward.connect().await);
    let do_set = |name: &str, value: &str| {
        format!("DO $$ BEGIN PERFORM set_config('{name}', '{value}', false); END $$")
    };
    let names = ["work_mem", "app.clinician", "DateStyle", "search_path", "role"];
    let read = names.map(|name| format!("nullif(current_setting('{name}', true), '')")).join(", ");
    let read = format!("SELECT concat_ws('|', {read})");
    let fresh = value(&other, "SELECT current_setting('search_path')").await;
    let path = fresh.clone();
    // A custom setting that a server has had is empty there, not unset.
    let fresh = format!("4MB|ISO, MDY|{fresh}|none");
    let both = async |mine: &str, after: &str| {
        let others = simple(&other, &read).await.expect("settings");
        assert!(
            others == [fresh.clone()] || others == ["NULL"],
            "the other's after {after}: {others:?}"
        );
        assert_eq!(simple(&client, &read).await.expect("settings"), [mine], "after {after}");
    };
    // Custom settings are on no list: found are those of a bound name, and what becomes of them.
    let bound = "SELECT set_config($1, $2, false)";
    client.query(bound, &[&"app.clinician", &"six"]).await.expect("set_config");
    both(&format!("4MB|six|ISO, MDY|{path}|none"), "a custom setting").await;
    simple(&client, &do_set("app.clinician", "7 = seven")).await.expect("DO");
    simple(&client, &do_set("work_mem", "9MB")).await.expect("DO");
    simple(&client, &do_set("datestyle", "German")).await.expect("DO");
    both(&format!("9MB|7 = seven|German, DMY|{path}|none"), "DO").await;
    // Nobody can tell from the text which setting this is.
    client.query(bound, &[&"search_path", &"pg_catalog"]).await.expect("set_config");
    both("9MB|7 = seven|German, DMY|pg_catalog|none", "a bound name").await;
    for (end, role) in [("ROLLBACK", "none"), ("COMMIT", "app")] {
        for sql in ["BEGIN", "DO 'BEGIN SET ROLE app; END'", end] {
            simple(&client, sql).await.unwrap_or_else(|error| panic!("{sql}: {}", tell(&error)));
        }
        both(&format!("9MB|7 = seven|German, DMY|pg_catalog|{role}"), end).await;
    }
    simple(&client, "DO 'BEGIN RESET ROLE; RESET work_mem; RESET search_path; END'")
        .await
        .expect("DO");
    both(&format!("4MB|7 = seven|German, DMY|{path}|none"), "RESET in DO").await;
    simple(&client, "DISCARD ALL").await.expect("DISCARD");
    both(&fresh, "DISCARD ALL").await;
}

#[tokio::test]
async fn a_pinned_client_that_leaves_leaves_nothing() {
    let ward = open_ward(&[ROUTE, ONE_SERVER]);
    for begin in [
        "CREATE TEMP TABLE regions (x int)",
        "LISTEN news",
        "SELECT pg_advisory_lock(8)",
        "CREATE TEMP TABLE regions (x int); SET work_mem = '9MB'",
    ] {
        let client = ward.connect().await;
        simple(&client, begin).await.expect(begin);
        drop(client);
        let next = ward.connect().await;
        assert_eq!(value(&next, "SELECT count(*) > 3 FROM regions").await, "t", "{begin}");
        assert_eq!(value(&next, "SHOW work_mem").await, "4MB", "{begin}");
        assert_eq!(value(&next, "SELECT count(*) FROM pg_listening_channels()").await, "0");
        let locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 8";
        assert_eq!(value(&next, locks).await, "0", "{begin}");
    }
}

/// Process id and key of a login.
fn login(ward: &Ward) -> (Raw, i32) {
    let mut raw = Raw::connect(ward);
    raw.send(&raw::startup(0x0003_0000));
    let messages = raw.until(b'Z').expect("a login");
    let key = messages.iter().find(|message| message.tag == b'K').expect("BackendKeyData");
    let pid = i32::from_be_bytes(key.body[..4].try_into().expect("four bytes"));
    (raw, pid)
}

fn row(messages: &[Message]) -> String {
    let row = messages.iter().find(|message| message.tag == b'D').expect("a row");
    String::from_utf8_lossy(&row.body[6..]).into_owned()
}

#[test]
fn notifications_come_while_idle_and_name_their_sender() {
    let ward = open_ward(&[TRUST, ROUTE, ("pool", "default_pool_size = 2")]);
    let (mut listener, told) = login(&ward);
    listener.send(&query("LISTEN news"));
    listener.until(b'Z').expect("it listens");
    // Its own: it knows itself by what it was told at its login.
    listener.send(&query("NOTIFY news, 'mine'"));
    let messages = listener.until(b'A').expect("its own notification");
    let mine = messages.last().expect("the notification");
    assert_eq!(mine.body[..4], told.to_be_bytes());
    assert!(mine.body.ends_with(b"news\0mine\0"), "{mine:?}");
    let mut other = Raw::login(&ward);
    other.send(&query("SELECT pg_backend_pid()"));
    let other_pid = row(&other.until(b'Z').expect("an answer"));
    other.send(&query("NOTIFY news, 'theirs'"));
    other.until(b'Z').expect("sent");
    let messages = listener.until(b'A').expect("one while it is idle");
    let theirs = messages.last().expect("the notification");
    assert_eq!(theirs.body[..4], other_pid.parse::<i32>().expect("a pid").to_be_bytes());
    listener.send(&query("UNLISTEN *"));
    listener.until(b'Z').expect("no more");
    other.send(&query("NOTIFY news, 'late'"));
    other.until(b'Z').expect("sent");
    listener.send(&query("SELECT 1"));
    let messages = listener.until(b'Z').expect("an answer");
    assert!(messages.iter().all(|message| message.tag != b'A'), "{messages:?}");
}

#[tokio::test]
async fn under_guard_a_pin_is_for_one_shard() {
    let shards = shards();
    let config = [("pool", "default_pool_size = 2")];
    let ward = Ward::start(shards, &WardOptions { config: &config, ..Default::default() });
    let client = ward.connect().await;
    let (here, there) = (shards.hospital(1, 2), shards.hospital(2, 2));
    let other_here = shards.hospital(1, 1);
    let count = |id| format!("SELECT count(*) FROM patients WHERE hospital_id = '{id}'");
    assert_eq!(refusal(&client, "LISTEN news").await.0, "PW001", "which shard?");
    simple(&client, &format!("SET pgward.hospital_id = '{here}'")).await.expect("SET");
    simple(&client, "LISTEN news").await.expect("LISTEN");
    simple(&client, "RESET pgward.hospital_id").await.expect("RESET");
    assert_eq!(value(&client, &count(here)).await, "2");
    assert_eq!(value(&client, &count(other_here)).await, "1", "LISTEN holds no rows");
    assert_eq!(refusal(&client, &count(there)).await.0, "0A000");
    simple(&client, "UNLISTEN news").await.expect("UNLISTEN");
    assert_eq!(value(&client, &count(there)).await, "2");
    // A cursor holds rows of its hospital.
    let declare = format!(
        "DECLARE c CURSOR WITH HOLD FOR SELECT name FROM patients WHERE hospital_id = '{here}'"
    );
    simple(&client, "BEGIN").await.expect("BEGIN");
    simple(&client, &declare).await.expect("DECLARE");
    simple(&client, "COMMIT").await.expect("COMMIT");
    assert_eq!(simple(&client, "FETCH 1 FROM c").await.expect("FETCH").len(), 1);
    assert_eq!(refusal(&client, &count(other_here)).await.0, "0A000");
    assert_eq!(value(&client, &count(here)).await, "2");
    simple(&client, "CLOSE c").await.expect("CLOSE");
    assert_eq!(value(&client, &count(other_here)).await, "1");
}

#[test]
fn in_session_mode_a_client_has_one_server_and_its_process_id() {
    let ward = open_ward(&[TRUST, ROUTE, SESSION, ONE_SERVER]);
    for _ in 0..3 {
        let (mut raw, told) = login(&ward);
        let mut ask = |sql: &str| {
            raw.send(&query(sql));
            raw.until(b'Z').expect(sql)
        };
        assert_eq!(row(&ask("SELECT pg_backend_pid()")), told.to_string());
        ask("SET work_mem = '9MB'");
        ask("CREATE TEMP TABLE t AS SELECT 41 AS x");
        ask("PREPARE mine (int) AS SELECT x + $1 FROM t");
        assert_eq!(row(&ask("EXECUTE mine (1)")), "42");
        assert_eq!(row(&ask("SHOW work_mem")), "9MB");
        assert_eq!(row(&ask("SELECT name FROM pg_prepared_statements")), "mine");
        // The protocol's names and SQL's are the same.
        let bind = message(b'B', &[b"\0mine\0\0\0\0\x01\0\0\0\x012\0\0"]);
        raw.send(&[bind, execute(), sync()].concat());
        assert_eq!(row(&raw.until(b'Z').expect("an answer")), "43");
        let parse = message(b'P', &[b"other\0SELECT 7\0\0\0"]);
        raw.send(&[parse, sync()].concat());
        raw.until(b'Z').expect("parsed");
        let mut ask = |sql: &str| {
            raw.send(&query(sql));
            raw.until(b'Z').expect(sql)
        };
        assert_eq!(row(&ask("EXECUTE other")), "7");
        // What pgward asks the server leaves the unnamed statement alone.
        let parse = message(b'P', &[b"\0LISTEN news\0\0\0"]);
        raw.send(&[parse, raw::bind(&[]), execute(), raw::parse("SELECT 8"), sync()].concat());
        raw.until(b'Z').expect("parsed");
        raw.send(&[raw::bind(&[]), execute(), sync()].concat());
        assert_eq!(row(&raw.until(b'Z').expect("an answer")), "8");
        let mut ask = |sql: &str| {
            raw.send(&query(sql));
            raw.until(b'Z').expect(sql)
        };
        ask("DEALLOCATE other; SELECT 1");
        let gone = ask("EXECUTE other");
        assert_eq!(gone[0].sqlstate(), "26000");
        ask("DISCARD ALL");
        assert_eq!(row(&ask("SELECT count(*) FROM pg_prepared_statements")), "0");
        assert_eq!(row(&ask("SHOW work_mem")), "4MB");
        ask("SET work_mem = '9MB'");
    }
}

#[test]
fn what_is_not_read_is_the_servers_where_nothing_is_guarded() {
    for mode in [SESSION, ("pool", "pool_mode = \"transaction\"")] {
        let ward = open_ward(&[TRUST, ROUTE, mode, ONE_SERVER]);
        let mut raw = Raw::login(&ward);
        let mut ask = |sql: &[u8]| {
            raw.send(&message(b'Q', &[sql, b"\0"]));
            raw.until(b'Z').expect("an answer")
        };
        let words = ask(b"SELEC 1");
        assert_eq!(words[0].sqlstate(), "42601");
        assert!(
            String::from_utf8_lossy(&words[0].body).contains("Fscan.l"),
            "not the server's own"
        );
        ask(b"SET client_encoding = 'LATIN1'");
        let messages = ask(b"SELECT 'caf\xe9'");
        assert!(messages[1].body.ends_with(b"caf\xe9"), "{messages:?}");
        let parse = message(b'P', &[b"\0SELECT 'th\xe9'\0\0\0"]);
        let bind = message(b'B', &[b"\0\0\0\0\0\0\0\0"]);
        raw.send(&[parse, bind, execute(), sync()].concat());
        let messages = raw.until(b'Z').expect("an answer");
        assert!(messages.iter().any(|m| m.tag == b'D' && m.body.ends_with(b"th\xe9")));
    }
}

#[test]
fn the_death_of_a_kept_server_is_the_clients() {
    let config = [TRUST, ROUTE, SESSION, ("pool", "default_pool_size = 3")];
    let ward = open_ward(&config);
    let mut killer = Raw::login(&ward);
    for is_idle in [true, false] {
        let (mut raw, told) = login(&ward);
        if !is_idle {
            raw.send(&query("SELECT pg_sleep(60)"));
        }
        killer.send(&query(&format!("SELECT pg_terminate_backend({told})")));
        killer.until(b'Z').expect("an answer");
        let last = raw.until_closed();
        let fatal = last.last().expect("a last word");
        assert_eq!(fatal.sqlstate(), "57P01", "{last:?}");
    }
}

#[tokio::test]
async fn a_session_without_a_shard_gets_its_server_with_its_first_key() {
    let shards = shards();
    let config = [SESSION, ("pool", "default_pool_size = 2")];
    let ward = Ward::start(shards, &WardOptions { config: &config, ..Default::default() });
    let (here, there) = (shards.hospital(1, 2), shards.hospital(2, 2));
    let client = ward.connect().await;
    let count = |id| format!("SELECT count(*) FROM patients WHERE hospital_id = '{id}'");
    assert_eq!(value(&client, "SELECT 1").await, "1");
    assert_eq!(value(&client, &count(here)).await, "2");
    assert_eq!(value(&client, &count(here)).await, "2");
    assert_eq!(refusal(&client, &count(there)).await.0, "0A000");
    // And with one named at its login.
    let mut config = ward.client_config();
    config.options(format!("-c pgward.hospital_id={there}"));
    let client = ward.connect_with(&config).await.expect("a login");
    assert_eq!(value(&client, &count(there)).await, "2");
    let pid = value(&client, "SELECT pg_backend_pid()").await;
    assert_eq!(value(&client, "SELECT pg_backend_pid()").await, pid);
}

/// Two hospitals of one shard, the first with a login of its own (session mode where `mode` says so).
fn bound_ward(mode: (&str, &str)) -> (Ward, String, String) {
    let shards = shards();
    let (mine, other) = (shards.hospital(1, 2).to_string(), shards.hospital(1, 3).to_string());
    let config = [TRUST, mode, ("pool", "default_pool_size = 1")];
    let ward = Ward::start(shards, &WardOptions { config: &config, ..Default::default() });
    (ward, mine, other)
}

#[test]
fn names_that_postgres_cuts_are_refused() {
    let (ward, mine, _) = bound_ward(SESSION);
    let mut raw = Raw::connect(&ward);
    let options = format!("-c pgward.hospital_id={mine}");
    let body = format!("user\0app\0database\0hospital\0options\0{options}\0\0");
    raw.send(&raw::packet(&[&0x0003_0000u32.to_be_bytes(), body.as_bytes()]));
    raw.until(b'Z').expect("a login");
    let long = "a".repeat(64);
    let keyed = format!("SELECT name FROM patients WHERE hospital_id = '{mine}'");
    for (name, code) in [(&long[..63], ""), (&long[..], "0A000")] {
        let parse = message(b'P', &[name.as_bytes(), b"\0", keyed.as_bytes(), b"\0\0\0"]);
        raw.send(&[parse, sync()].concat());
        assert_eq!(raw.until(b'Z').expect("an answer")[0].sqlstate(), code);
        let close = message(b'C', &[b"S", name.as_bytes(), b"\0"]);
        raw.send(&[close, sync()].concat());
        assert_eq!(raw.until(b'Z').expect("an answer")[0].sqlstate(), code);
    }
}

#[test]
fn a_login_that_fails_leaves_no_setting() {
    let (ward, mine, _) = bound_ward(SESSION);
    for bad in ["-c nosuchparam=1", "-c work_mem=much"] {
        let options = format!(
            "-c pgward.hospital_id={mine} -c statement_timeout=7777 -c search_path=pg_temp {bad}"
        );
        let mut raw = Raw::connect(&ward);
        let body = format!("user\0app\0database\0hospital\0options\0{options}\0\0");
        raw.send(&raw::packet(&[&0x0003_0000u32.to_be_bytes(), body.as_bytes()]));
        let told = raw.until_closed();
        assert!(told.iter().any(|m| m.tag == b'E'), "{told:?}");
        let mut next = Raw::connect(&ward);
        let body =
            format!("user\0app\0database\0hospital\0options\0-c pgward.hospital_id={mine}\0\0");
        next.send(&raw::packet(&[&0x0003_0000u32.to_be_bytes(), body.as_bytes()]));
        next.until(b'Z').expect("a login");
        next.send(&query("SHOW statement_timeout"));
        assert_eq!(row(&next.until(b'Z').expect("an answer")), "0");
    }
}

#[test]
fn what_a_refused_batch_has_closed_is_closed_on_the_sessions_own_server() {
    let (ward, mine, _) = bound_ward(SESSION);
    let mut raw = Raw::connect(&ward);
    let options = format!("-c pgward.hospital_id={mine}");
    let body = format!("user\0app\0database\0hospital\0options\0{options}\0\0");
    raw.send(&raw::packet(&[&0x0003_0000u32.to_be_bytes(), body.as_bytes()]));
    raw.until(b'Z').expect("a login");
    let keyed = format!("SELECT name FROM patients WHERE hospital_id = '{mine}'");
    let parse = message(b'P', &[b"s\0", keyed.as_bytes(), b"\0\0\0"]);
    let close = message(b'C', &[b"Ss\0"]);
    let refused = message(b'P', &[b"t\0SELEC 1\0\0\0"]);
    let mut code = |bytes: Vec<u8>| {
        raw.send(&bytes);
        raw::code_of(&raw.until(b'Z').expect("an answer"))
    };
    assert_eq!(code([&parse[..], &sync()].concat()), "");
    for begin in ["SELECT 1", "BEGIN"] {
        let is_in_block = begin == "BEGIN";
        assert_eq!(code(query(begin)), "");
        if is_in_block {
            assert_eq!(code(query("SELECT 1/0")), "22012");
        }
        assert_eq!(code([&close[..], &refused, &sync()].concat()), "42601");
        if is_in_block {
            assert_eq!(code(query("ROLLBACK")), "");
        }
        // The name is free, by a Query and by a Parse.
        assert_eq!(code(query("EXECUTE s")), "26000");
        assert_eq!(code([&parse[..], &sync()].concat()), "");
    }
}

#[test]
fn a_name_of_the_sessions_own_server_means_what_it_means_there() {
    let shards = shards();
    let (mine, other) = (shards.hospital(1, 2).to_string(), shards.hospital(1, 3).to_string());
    let bound = ("routing", "batch_bytes_max = 1024");
    let config = [TRUST, SESSION, bound, ("pool", "default_pool_size = 1")];
    let ward = Ward::start(shards, &WardOptions { config: &config, ..Default::default() });
    let mut raw = Raw::connect(&ward);
    let options = format!("-c pgward.hospital_id={mine}");
    let body = format!("user\0app\0database\0hospital\0options\0{options}\0\0");
    raw.send(&raw::packet(&[&0x0003_0000u32.to_be_bytes(), body.as_bytes()]));
    raw.until(b'Z').expect("a login");
    let parse = |sql: &str| message(b'P', &[b"s\0", sql.as_bytes(), b"\0\0\0"]);
    let keyed = "SELECT name FROM patients WHERE hospital_id = $1";
    raw.send(&[parse(keyed), sync()].concat());
    raw.until(b'Z').expect("an answer");
    // The name is taken, which the server says while pgward refuses what comes behind it.
    let pad = " ".repeat(1024);
    let again = parse(&format!("SELECT $1, name FROM patients WHERE hospital_id = '{mine}' {pad}"));
    let refused = message(b'P', &[b"t\0SELEC 1\0\0\0"]);
    let sleep = format!("SELECT pg_sleep(0.5) FROM patients WHERE hospital_id = '{mine}' LIMIT 1");
    raw.send(&[raw::batch(&sleep, &[]), again].concat());
    std::thread::sleep(std::time::Duration::from_millis(200));
    raw.send(&[refused, sync()].concat());
    assert_eq!(raw::code_of(&raw.until(b'Z').expect("an answer")), "42P05");
    let values = [b"\0s\0\0\0\0\x01\0\0\0\x24", other.as_bytes(), b"\0\0"].concat();
    raw.send(&[message(b'B', &[&values]), execute(), sync()].concat());
    let answer = raw.until(b'Z').expect("an answer");
    assert!(answer.iter().all(|m| m.tag != b'D'), "rows of another hospital: {answer:?}");
}

#[test]
fn a_name_in_two_encodings_is_one_on_the_sessions_own_server() {
    let (ward, mine, other) = bound_ward(SESSION);
    let mut raw = Raw::connect(&ward);
    let options = format!("-c pgward.hospital_id={mine}");
    let body = format!("user\0app\0database\0hospital\0options\0{options}\0\0");
    raw.send(&raw::packet(&[&0x0003_0000u32.to_be_bytes(), body.as_bytes()]));
    raw.until(b'Z').expect("a login");
    let (latin, utf) = (b"\xe9", "\u{e9}".as_bytes());
    let keyed = format!("SELECT $1::text, name FROM patients WHERE hospital_id = '{mine}'");
    let by_param = "SELECT name FROM patients WHERE hospital_id = $1";
    let parse = |name: &[u8], sql: &str| message(b'P', &[name, b"\0", sql.as_bytes(), b"\0\0\0"]);
    let values = [b"\0\0\0\x01\0\0\0\x24", other.as_bytes(), b"\0\0"].concat();
    for request in [
        query("SET client_encoding = 'LATIN1'"),
        [parse(latin, &keyed), sync()].concat(),
        query("SET client_encoding = 'UTF8'"),
        [message(b'C', &[b"S", utf, b"\0"]), parse(utf, by_param), sync()].concat(),
        query("SET client_encoding = 'LATIN1'"),
        [message(b'B', &[b"\0", latin, b"\0", &values]), execute(), sync()].concat(),
    ] {
        raw.send(&request);
        let answer = raw.until(b'Z').expect("an answer");
        assert!(answer.iter().all(|m| m.tag != b'D'), "rows of another hospital: {answer:?}");
    }
}

#[test]
fn a_portal_of_a_failed_batch_is_gone() {
    let (ward, mine, _) = bound_ward(("pool", "pool_mode = \"transaction\""));
    let bind = |portal: &str, name: &str| {
        message(b'B', &[portal.as_bytes(), b"\0", name.as_bytes(), b"\0\0\0\0\0\0\0"])
    };
    let parse =
        |name: &str, sql: &str| message(b'P', &[name.as_bytes(), b"\0", sql.as_bytes(), b"\0\0\0"]);
    let run = |portal: &str| message(b'E', &[portal.as_bytes(), b"\0\0\0\0\0"]);
    let mut raw = Raw::login(&ward);
    let mut ask = |bytes: Vec<u8>| {
        raw.send(&bytes);
        raw.until(b'Z').expect("an answer")
    };
    let code = |messages: &[Message]| {
        messages
            .iter()
            .map(Message::sqlstate)
            .find(|code| !code.is_empty())
            .unwrap_or("")
            .to_owned()
    };
    ask(query("BEGIN"));
    ask(query(&format!("SELECT name FROM patients WHERE hospital_id = '{mine}'")));
    ask(query("SAVEPOINT s"));
    // With a name it could be run unseen.
    let named =
        ask([parse("s1", "SET statement_timeout = 4242"), bind("p", "s1"), sync()].concat());
    assert_eq!(code(&named), "0A000");
    ask(query("ROLLBACK TO s"));
    assert_eq!(
        code(&ask([parse("s2", "SET statement_timeout = 4242"), bind("", "s2"), sync()].concat())),
        ""
    );
    ask([parse("s3", "SELECT 1/0"), sync()].concat());
    ask([bind("q", "s3"), run("q"), bind("", "s3"), sync()].concat());
    ask(query("ROLLBACK TO s"));
    assert_eq!(code(&ask([run(""), sync()].concat())), "34000");
    // One from before the savepoint goes on, and so does one that was bound since.
    let rows = "SELECT generate_series(1, 9)";
    ask(query("ROLLBACK TO s"));
    ask(query("RELEASE s"));
    ask([parse("rows", rows), bind("old", "rows"), sync()].concat());
    ask(query("SAVEPOINT s"));
    ask([bind("q", "s3"), run("q"), sync()].concat());
    ask(query("ROLLBACK TO s"));
    let some = |portal: &str| message(b'E', &[portal.as_bytes(), b"\0\0\0\0\x02"]);
    for portal in ["old", "new", "old", "new"] {
        let again = if portal == "new" { bind("new", "rows") } else { vec![] };
        let known = [message(b'C', &[b"Pnew\0"]), again].concat();
        let answer = ask([&known[..], &some(portal), &sync()].concat());
        assert_eq!(answer.iter().filter(|m| m.tag == b'D').count(), 2, "{portal}: {answer:?}");
        let answer = ask([some(portal), sync()].concat());
        assert_eq!(answer.iter().filter(|m| m.tag == b'D').count(), 2, "{portal}: {answer:?}");
    }
    ask(query("ROLLBACK"));
    assert_eq!(on_primary(&ward, &mine, "statement_timeout"), "0");
}

#[test]
fn a_portal_that_a_refused_batch_was_to_run_still_does_what_it_does() {
    let (ward, mine, _) = bound_ward(("pool", "pool_mode = \"transaction\""));
    let bind = |portal: &str, name: &str| {
        message(b'B', &[portal.as_bytes(), b"\0", name.as_bytes(), b"\0\0\0\0\0\0\0"])
    };
    let parse =
        |name: &str, sql: &str| message(b'P', &[name.as_bytes(), b"\0", sql.as_bytes(), b"\0\0\0"]);
    let run = |portal: &str| message(b'E', &[portal.as_bytes(), b"\0\0\0\0\0"]);
    let mut raw = Raw::login(&ward);
    let mut code = |bytes: &[Vec<u8>]| {
        raw.send(&bytes.concat());
        raw::code_of(&raw.until(b'Z').expect("an answer"))
    };
    code(&[query("BEGIN")]);
    code(&[query(&format!("SELECT name FROM patients WHERE hospital_id = '{mine}'"))]);
    let names = [
        parse("set", "SET statement_timeout = 4242"),
        parse("encoding", "SELECT set_config('client_encoding', $1, false)"),
        parse("save", "SAVEPOINT s"),
        parse("back", "ROLLBACK TO s"),
    ];
    assert_eq!(code(&[names.concat(), sync()]), "");
    assert_eq!(code(&[bind("", "set"), sync()]), "");
    assert_eq!(code(&[bind("save", "save"), run("save"), sync()]), "");
    let sjis = message(b'B', &[b"\0encoding\0\0\0\0\x01\0\0\0\x04SJIS\0\0"]);
    assert_eq!(code(&[run(""), sjis, sync()]), "0A000");
    assert_eq!(code(&[bind("back", "back"), run("back"), sync()]), "");
    assert_eq!(code(&[run(""), sync()]), "");
    assert_eq!(code(&[query("COMMIT")]), "");
    drop(raw);
    assert_eq!(on_primary(&ward, &mine, "statement_timeout"), "0");
}

/// A setting as the next client finds it on the one server of the primary.
fn on_primary(ward: &Ward, hospital: &str, setting: &str) -> String {
    let mut raw = Raw::login(ward);
    // What may write goes there.
    raw.send(&query("BEGIN"));
    raw.until(b'Z').expect("begun");
    let sql = format!(
        "SELECT current_setting('{setting}') FROM patients WHERE hospital_id = '{hospital}' LIMIT 1"
    );
    raw.send(&query(&sql));
    row(&raw.until(b'Z').expect("an answer"))
}

#[test]
fn a_cursor_over_a_setting_sets_nothing_for_others() {
    let (ward, mine, _) = bound_ward(("pool", "pool_mode = \"transaction\""));
    let set = "SELECT set_config('work_mem', '9MB', false)";
    let keyed = format!("SELECT name FROM patients WHERE hospital_id = '{mine}'");
    let named =
        |name: &str, sql: &str| message(b'P', &[name.as_bytes(), b"\0", sql.as_bytes(), b"\0\0\0"]);
    let to_portal = |portal: &str, name: &str| {
        message(b'B', &[portal.as_bytes(), b"\0", name.as_bytes(), b"\0\0\0\0\0\0\0"])
    };
    let fetch = "FETCH 1 FROM p";
    let in_batch = |sql: &str| [parse(sql), bind(&[]), execute()].concat();
    let both = format!("{set}, (SELECT count(*) FROM patients WHERE hospital_id = '{mine}')");
    let prepared = query(&format!("PREPARE s AS {set}"));
    for (name, requests) in [
        ("a cursor", vec![query(&format!("DECLARE p CURSOR FOR {set}")), query(fetch)]),
        ("a cursor that stays", vec![query(&format!("DECLARE p CURSOR WITH HOLD FOR {set}"))]),
        ("a cursor with a key", vec![query(&format!("DECLARE p CURSOR FOR {both}")), query(fetch)]),
        ("MOVE", vec![query(&format!("DECLARE p CURSOR FOR {set}")), query("MOVE ALL IN p")]),
        ("a portal", vec![[named("", set), to_portal("p", ""), sync()].concat(), query(fetch)]),
        (
            "a portal in its own batch",
            vec![[named("s", set), to_portal("p", "s"), in_batch(fetch), sync()].concat()],
        ),
        (
            "a portal of an EXECUTE",
            vec![
                prepared.clone(),
                [named("", "EXECUTE s"), to_portal("p", ""), sync()].concat(),
                query(fetch),
            ],
        ),
        (
            "a portal of a PREPARE's name",
            vec![prepared, [to_portal("p", "s"), sync()].concat(), query(fetch)],
        ),
        (
            "a cursor in a batch",
            vec![
                [in_batch(&format!("DECLARE p CURSOR FOR {set}")), in_batch(fetch), sync()]
                    .concat(),
            ],
        ),
    ] {
        let mut raw = Raw::login(&ward);
        let begin = [query("BEGIN"), query(&keyed)];
        for request in begin.into_iter().chain(requests).chain([query("COMMIT")]) {
            raw.send(&request);
            raw.until(b'Z').expect(name);
        }
        drop(raw);
        assert_eq!(on_primary(&ward, &mine, "work_mem"), "4MB", "{name}");
    }
}

#[tokio::test]
async fn what_ran_unguarded_is_not_kept_behind_a_guard() {
    let shards = shards();
    let one = one_shard_map(shards.primary.port(), "shard0");
    // Another shard, of no bucket: no hospital moves, and what is read is guarded from now on.
    let two = one.replace("version = 1", "version = 2")
        + &format!(
            "[[shard]]\nid = 1\nregion = \"asia\"\nbuckets = \"\"\n\
             primary = \"127.0.0.1:{}\"\ndatabase = \"shard1\"\n",
            shards.primary.port()
        );
    let strict = ("guard", "mode = \"strict\"");
    shards.hospital(0, 2);
    let read = "SELECT name FROM patients ORDER BY name";
    for (mode, is_map) in
        [(SESSION, true), (SESSION, false), (("pool", "pool_mode = \"transaction\""), true)]
    {
        let more = ("pool", "default_pool_size = 5");
        let options = WardOptions { map: Some(one.clone()), config: &[TRUST, ROUTE, mode, more] };
        let ward = Ward::start(shards, &options);
        let console = ward.console().await;
        let begun = [
            format!("PREPARE p AS {read}"),
            format!("BEGIN; DECLARE c CURSOR FOR {read}"),
            format!("DECLARE c CURSOR WITH HOLD FOR {read}"),
            "BEGIN; DO 'BEGIN SET search_path = pg_temp; END'".to_owned(),
        ];
        let goes_on = ["EXECUTE p", "FETCH 1 FROM c", "FETCH 1 FROM c", "SELECT 1"];
        let mut clients = Vec::new();
        for sql in &begun {
            let mut raw = Raw::login(&ward);
            raw.send(&query(sql));
            let heard = raw.until(b'Z').expect("an answer");
            assert!(heard.iter().all(|message| message.tag != b'E'), "{sql}: {heard:?}");
            clients.push(raw);
        }
        match is_map {
            true => ward.write("shard-map.toml", &two),
            false => ward.configure(&[TRUST, strict, mode, more]),
        }
        simple(&console, "RELOAD").await.unwrap_or_else(|error| panic!("{}", tell(&error)));
        for (mut raw, sql) in clients.into_iter().zip(goes_on) {
            raw.send(&query(sql));
            let heard = raw.message().expect("an answer");
            let want = if sql == "EXECUTE p" && mode != SESSION { "PW001" } else { "57P01" };
            assert_eq!(heard.sqlstate(), want, "{sql}, {mode:?}, {is_map}: {heard:?}");
        }
    }
}

#[tokio::test]
async fn a_guard_that_comes_amid_requests_counts_for_those_behind() {
    let shards = shards();
    let map = one_shard_map(shards.primary.port(), "shard0");
    let options = WardOptions { map: Some(map), config: &[TRUST, ROUTE, ONE_SERVER] };
    let ward = Ward::start(shards, &options);
    let console = ward.console().await;
    let begun = "BEGIN; DO 'BEGIN SET search_path = pg_temp; END'";
    // In one write, the first still running when the guard comes.
    let mut running = Raw::login(&ward);
    let slow = query(&format!("{begun}; SELECT pg_sleep(1)"));
    running.send(&[slow, query("SELECT 1")].concat());
    eventually("it runs", async || {
        simple(&console, "SHOW SERVERS")
            .await
            .is_ok_and(|rows| rows.iter().any(|row| row.contains("active")))
    })
    .await;
    // The one server is taken: this one waits for it.
    let mut waiting = Raw::login(&ward);
    waiting.send(&[query(begun), query("SELECT 1")].concat());
    eventually("it waits", async || {
        simple(&console, "SHOW CLIENTS")
            .await
            .is_ok_and(|rows| rows.iter().any(|row| row.contains("waiting")))
    })
    .await;
    ward.configure(&[TRUST, ("guard", "mode = \"strict\""), ONE_SERVER]);
    simple(&console, "RELOAD").await.unwrap_or_else(|error| panic!("{}", tell(&error)));
    let rest = running.until_closed();
    let behind = rest.iter().skip_while(|message| message.tag != b'Z').collect::<Vec<_>>();
    assert_eq!(behind.last().expect("its end").sqlstate(), "57P01", "{rest:?}");
    assert!(behind.iter().all(|message| message.tag != b'D'), "{rest:?}");
    let rest = waiting.until_closed();
    assert_eq!(rest.len(), 1, "{rest:?}");
    assert_eq!(rest[0].sqlstate(), "57P01", "{rest:?}");
}
