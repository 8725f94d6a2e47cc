//! Temporary tables under guard: on one server, for one hospital, and never taken for a table that
//! others have.

use tokio_postgres::Client;

use crate::support::raw::{Message, Raw, bind, execute, flush, message, parse, query, sync};
use crate::support::*;

const ONE_SERVER: (&str, &str) = ("pool", "default_pool_size = 1");
const SHORT_WAIT: (&str, &str) = ("pool", "query_wait_timeout = 1");
const TRUST: (&str, &str) = ("auth", "auth_type = \"trust\"");
/// Nobody tells pgward of what is made beside it.
const STALE: (&str, &str) = ("health", "catalog_refresh_s = 3600");

fn ward(config: &[(&str, &str)]) -> Ward {
    Ward::start(shards(), &WardOptions { config, ..Default::default() })
}

fn parse_as(name: &str, sql: &str) -> Vec<u8> {
    message(b'P', &[name.as_bytes(), b"\0", sql.as_bytes(), b"\0\0\0"])
}

fn bind_to(portal: &str, name: &str) -> Vec<u8> {
    message(b'B', &[portal.as_bytes(), b"\0", name.as_bytes(), b"\0\0\0\0\0\0\0"])
}

fn describe(name: &str) -> Vec<u8> {
    message(b'D', &[b"S", name.as_bytes(), b"\0"])
}

async fn run(client: &Client, statements: &[&str]) {
    for sql in statements {
        simple(client, sql).await.unwrap_or_else(|error| panic!("{sql}: {}", tell(&error)));
    }
}

#[tokio::test]
async fn rows_are_staged_in_a_temporary_table() {
    let shards = shards();
    let ward = ward(&[ONE_SERVER, SHORT_WAIT]);
    let (client, other) = (ward.connect().await, ward.connect().await);
    let (here, there) = (shards.hospital(1, 2), shards.hospital(2, 2));
    assert_eq!(refusal(&client, "CREATE TEMP TABLE staged (id int)").await.0, "PW001");
    run(&client, &[&format!("SET pgward.hospital_id = '{here}'")]).await;
    let make = "CREATE TEMP TABLE staged (LIKE patients INCLUDING DEFAULTS)";
    run(&client, &[make, "CREATE INDEX ON staged (id)", "ANALYZE staged"]).await;
    for (n, of) in [(1, here), (2, there)] {
        let row =
            format!("INSERT INTO staged (hospital_id, id, mrn, name) SELECT '{of}', 900 + {n}");
        run(&client, &[&format!("{row}, 'm{n}', 'Staged {n}'")]).await;
    }
    let staged = "SELECT string_agg(name, ', ' ORDER BY id) FROM staged";
    assert_eq!(value(&client, staged).await, "Staged 1, Staged 2");
    // Prepared, too, and with a result of its own types.
    let read = client.prepare("SELECT id FROM staged WHERE id > $1 ORDER BY id").await;
    let found = client.query(&read.expect("a statement"), &[&900_i64]).await.expect("rows");
    assert_eq!(found.iter().map(|row| row.get::<_, i64>(0)).collect::<Vec<_>>(), [901, 902]);

    // Also where its hospital is a parameter, which nobody knows yet.
    let count =
        "SELECT count(*) FROM patients LEFT JOIN staged USING (id) WHERE patients.hospital_id = $1";
    let text = count.replace("$1", "$1::text::uuid");
    let counts = client.prepare(&text).await.expect("a statement");
    let found = client.query_one(&counts, &[&here.to_string()]).await.expect("a row");
    assert_eq!(found.get::<_, i64>(0), 2);
    run(&client, &[&format!("PREPARE counts (uuid) AS {count}")]).await;
    assert_eq!(value(&client, &format!("EXECUTE counts ('{here}')")).await, "2");

    // What goes on into the sharded table shows its hospital, whatever the staged row says.
    let insert = "INSERT INTO patients (hospital_id, id, mrn, name) SELECT";
    assert_eq!(refusal(&client, &format!("{insert} * FROM staged")).await.0, "PW001");
    let merge = format!(
        "{insert} '{here}', id, mrn, name FROM staged WHERE hospital_id = '{here}' \
         ON CONFLICT (hospital_id, id) DO UPDATE SET name = excluded.name"
    );
    run(&client, &[&merge]).await;
    let count = format!("SELECT count(*) FROM patients WHERE hospital_id = '{here}'");
    assert_eq!(value(&client, &count).await, "3");
    let joined = format!(
        "SELECT count(*) FROM patients p JOIN staged USING (id) WHERE p.hospital_id = '{here}'"
    );
    assert_eq!(value(&client, &joined).await, "1");

    // It is this hospital's, and this session's.
    run(&client, &[&format!("SET pgward.hospital_id = '{there}'")]).await;
    assert_eq!(refusal(&client, staged).await.0, "0A000");
    run(&client, &["RESET pgward.hospital_id"]).await;
    assert_eq!(value(&client, staged).await, "Staged 1, Staged 2");
    assert_eq!(refusal(&other, staged).await.0, "PW004");
    let blocked = format!("DELETE FROM patients WHERE hospital_id = '{here}' AND id = 901");
    assert_eq!(refusal(&other, &blocked).await.0, "57014", "the one server is kept");
    run(&client, &["TRUNCATE staged", "DROP TABLE staged"]).await;
    run(&other, &[&blocked]).await;
    assert_eq!(refusal(&client, staged).await.0, "PW004");
}

#[tokio::test]
async fn the_names_of_temporary_tables_follow_transactions() {
    let shards = shards();
    let ward = ward(&[]);
    let client = ward.connect().await;
    let set = format!("SET pgward.hospital_id = '{}'", shards.hospital(1, 2));
    let read = async |table: &str| {
        let sql = format!("SELECT count(*) FROM {table}");
        simple(&client, &sql).await.map_or_else(|error| sqlstate(&error), |rows| rows[0].clone())
    };
    run(&client, &[&set, "BEGIN", "CREATE TEMP TABLE t1 (x int)", "SAVEPOINT s"]).await;
    run(&client, &["SELECT 1 AS x INTO TEMP t2", "ROLLBACK TO s"]).await;
    assert_eq!(read("t1").await, "0");
    assert_eq!(read("t2").await, "PW004");
    run(&client, &["ROLLBACK TO s", "DROP TABLE t1", "ROLLBACK TO s"]).await;
    assert_eq!(read("t1").await, "0", "its DROP was rolled back");
    run(&client, &["CREATE TEMP TABLE t3 ON COMMIT DROP AS SELECT 1 AS x", "COMMIT"]).await;
    assert_eq!((&*read("t1").await, &*read("t3").await), ("0", "PW004"));
    run(&client, &["BEGIN", "CREATE TEMP TABLE t4 (x int)", "ROLLBACK"]).await;
    assert_eq!((&*read("t1").await, &*read("t4").await), ("0", "PW004"));
    run(&client, &["CREATE TEMP TABLE IF NOT EXISTS t1 (y int)", "DISCARD TEMP"]).await;
    assert_eq!(read("t1").await, "PW004");
    run(&client, &["CREATE TEMP TABLE t5 (x int)", "DISCARD ALL"]).await;
    assert_eq!(read("t5").await, "PW004");
    run(&client, &[&set, "CREATE TEMP TABLE t6 (x int) ON COMMIT DROP"]).await;
    assert_eq!(read("t6").await, "PW004");
    for shadow in ["patients", "regions", "pg_class"] {
        let make = format!("CREATE TEMP TABLE {shadow} (x int)");
        assert_eq!(refusal(&client, &make).await.0, "0A000");
    }
}

#[test]
fn a_name_that_may_be_another_tables_by_then_is_refused() {
    let shards = shards();
    let id = shards.hospital(1, 2);
    let ward = ward(&[STALE, TRUST]);
    let member = |sql: &str| [parse(sql), bind(&[]), execute()].concat();
    let steal = "SELECT name FROM stolen";
    let keyed = format!("SELECT 1 FROM patients WHERE hospital_id = '{id}'");
    let show = "SHOW pgward.hospital_id";
    let with_select = |first: &str| vec![[member(first), member(steal), sync()].concat()];
    let in_pieces =
        |first: &str| vec![[member(first), flush()].concat(), [member(steal), sync()].concat()];
    let make = || vec![query("CREATE TEMP TABLE stolen (name text)")];
    let in_block = || vec![query("BEGIN"), query("CREATE TEMP TABLE stolen (name text)")];
    let in_savepoint = || [vec![query("BEGIN"), query("SAVEPOINT a")], make()].concat();
    let back = || vec![query("ROLLBACK TO a")];
    let set = format!("SET pgward.hospital_id = '{id}'");
    // For this one the session stays with its server.
    let keep = || query("CREATE TEMP TABLE keep (x int)");
    let no_portal = || message(b'E', &[b"none\0\0\0\0\0"]);
    let late = |sql: &str| {
        let bound = [parse_as("s", sql), bind_to("p", "s")].concat();
        let run = message(b'E', &[b"p\0\0\0\0\0"]);
        vec![[bound, member("DROP TABLE stolen"), run, sync()].concat()]
    };
    let prepare = "PREPARE e AS SELECT name FROM stolen";
    let at_commit = "CREATE TEMP TABLE stolen (name text) ON COMMIT DROP";
    for ((name, before, requests), n) in [
        ("no temporary table", vec![], vec![query(steal)]),
        ("DROP in the batch", make(), with_select("DROP TABLE stolen")),
        ("DROP in an earlier piece", make(), in_pieces("DROP TABLE stolen")),
        ("DISCARD in an earlier piece", make(), in_pieces("DISCARD TEMP")),
        ("ROLLBACK in the batch", in_block(), with_select("ROLLBACK")),
        ("ROLLBACK in an earlier piece", in_block(), in_pieces("ROLLBACK")),
        ("COMMIT", vec![query("BEGIN"), query(at_commit)], in_pieces("COMMIT")),
        (
            "parsed behind DROP",
            [make(), vec![query("BEGIN"), query("SAVEPOINT a")]].concat(),
            vec![
                [member("DROP TABLE stolen"), parse_as("s", steal), sync()].concat(),
                query("ROLLBACK TO a"),
                [bind_to("", "s"), execute(), sync()].concat(),
            ],
        ),
        (
            "described while it is away",
            [in_savepoint(), vec![[parse_as("s", steal), sync()].concat()], back()].concat(),
            vec![
                [describe("s"), sync()].concat(),
                query("ROLLBACK TO a"),
                query("CREATE TEMP TABLE stolen (name text)"),
                [bind_to("", "s"), execute(), sync()].concat(),
            ],
        ),
        (
            "COMMIT of a DROP in a batch that fails",
            [vec![keep()], make(), vec![query("BEGIN"), query("DROP TABLE stolen")]].concat(),
            vec![[member(&set), member("COMMIT"), no_portal(), sync()].concat(), query(steal)],
        ),
        ("COPY in a portal", make(), late("COPY stolen TO STDOUT")),
        ("EXECUTE in a portal", [make(), vec![query(prepare)]].concat(), late("EXECUTE e")),
        ("one query string", make(), vec![query("DROP TABLE stolen; SELECT name FROM stolen")]),
        (
            "a failed block",
            in_block(),
            [query("SELECT 1/0"), query("ROLLBACK"), query(steal)].into(),
        ),
        (
            "COMMIT amid a batch that fails",
            make(),
            vec![
                [member(show), member("DROP TABLE stolen"), flush()].concat(),
                [member("COMMIT"), flush()].concat(),
                [member("SELECT 1/0"), sync()].concat(),
                query("BEGIN"),
                query(&keyed),
                query(steal),
            ],
        ),
        (
            "DISCARD ALL in a batch that is refused",
            make(),
            vec![
                [member("DISCARD ALL"), parse("SELEC"), sync()].concat(),
                query(&format!("SET pgward.hospital_id = '{id}'")),
                query("BEGIN"),
                query(&keyed),
                query(steal),
            ],
        ),
        (
            "EXPLAIN makes nothing",
            vec![query("EXPLAIN CREATE TEMP TABLE stolen AS SELECT 1")],
            vec![query(steal)],
        ),
    ]
    .into_iter()
    .zip('a'..)
    {
        // A table of all hospitals, made beside pgward, which has not heard of it. Names of one length:
        // they stand in messages.
        let hidden = format!("hidd{n:02}");
        let make = format!(
            "CREATE TABLE {hidden} AS SELECT hospital_id, name FROM patients; \
             GRANT SELECT ON {hidden} TO app"
        );
        shards.psql(1, &make);
        let renamed = |bytes: &[u8]| {
            let mut bytes = bytes.to_vec();
            while let Some(at) = bytes.windows(6).position(|at| at == b"stolen") {
                bytes[at..at + 6].copy_from_slice(hidden.as_bytes());
            }
            bytes
        };
        let mut raw = Raw::login(&ward);
        for request in [query(&set)].iter().chain(&before) {
            raw.send(&renamed(request));
            raw.until(b'Z').expect(name);
        }
        requests.iter().for_each(|piece| raw.send(&renamed(piece)));
        raw.send(&[query("ROLLBACK"), query("SELECT 'the end'")].concat());
        let mut answers = Vec::new();
        let is_last = |m: &Message| m.tag == b'D' && m.body.ends_with(b"the end");
        while !answers.iter().any(is_last) {
            answers.extend(raw.until(b'Z').unwrap_or_else(|| panic!("{name}: {answers:?}")));
        }
        let shows = |body: &[u8]| body.windows(7).any(|at| at == b"Patient");
        assert!(!answers.iter().any(|m| matches!(m.tag, b'D' | b'd') && shows(&m.body)), "{name}");
        assert!(answers.iter().any(|m| m.tag == b'E'), "{name}: refused by nobody");
    }
}

/// By the columns of the table that pgward knows, the first one would be the key.
#[tokio::test]
async fn no_temporary_table_stands_before_a_table_that_was_looked_at() {
    let shards = shards();
    let ward = ward(&[]);
    let client = ward.connect().await;
    let (here, there) = (shards.hospital(1, 2), shards.hospital(1, 3));
    run(&client, &[&format!("SET pgward.hospital_id = '{here}'"), "SET search_path = pg_catalog"])
        .await;
    run(&client, &["CREATE TEMP TABLE patients (x uuid, hospital_id uuid)"]).await;
    run(&client, &[&format!("INSERT INTO patients VALUES ('{there}', '{here}')")]).await;
    run(&client, &["SET search_path = public"]).await;
    let read = format!(
        "SELECT p.name FROM (SELECT * FROM patients WHERE hospital_id = '{here}') AS of (key)
         JOIN public.patients p ON p.hospital_id = of.key"
    );
    assert_eq!(refusal(&client, &read).await.0, "0A000");
    run(&client, &["DISCARD TEMP"]).await;
    assert_eq!(simple(&client, &read).await.expect("rows").len(), 4);
}

/// Postgres takes a parameter for what the column was when the statement was parsed.
#[test]
fn a_statement_of_one_sessions_table_is_not_anothers() {
    let shards = shards();
    let id = shards.hospital(1, 2);
    let ward = ward(&[ONE_SERVER, TRUST]);
    let begin = |raw: &mut Raw, kind: &str| {
        for sql in [
            &format!("SET pgward.hospital_id = '{id}'"),
            "BEGIN",
            &format!("CREATE TEMP TABLE staged (x {kind}) ON COMMIT DROP"),
        ] {
            raw.send(&query(sql));
            raw.until(b'Z').expect(sql);
        }
    };
    let fill = b"\0s\0\0\0\0\x01\0\0\0\x03007\0\0";
    let fill = [message(b'B', &[fill]), execute(), sync()].concat();
    let end = |raw: &mut Raw, parts: &[Vec<u8>]| {
        raw.send(
            &[parts, &[query("SELECT 'has ' || x FROM staged"), query("COMMIT")]].concat().concat(),
        );
        let answers = (0..3).flat_map(|_| raw.until(b'Z').expect("an answer"));
        let row = answers.collect::<Vec<_>>().into_iter().find(|m| m.tag == b'D').expect("a row");
        String::from_utf8_lossy(&row.body[6..]).into_owned()
    };
    let insert = parse_as("s", "INSERT INTO staged VALUES ($1)");
    let (mut one, mut two) = (Raw::login(&ward), Raw::login(&ward));
    begin(&mut one, "text");
    assert_eq!(end(&mut one, &[insert.clone(), fill.clone()]), "has 007");
    begin(&mut two, "int");
    assert_eq!(end(&mut two, &[insert, fill.clone()]), "has 7");
    begin(&mut one, "text");
    assert_eq!(end(&mut one, &[fill]), "has 007");
}

#[test]
fn psql_copies_into_a_temporary_table() {
    let shards = shards();
    let ward = ward(&[]);
    let id = shards.hospital(1, 2);
    let file = shards.directory().join("staged.csv");
    std::fs::write(&file, "1,first\n2,second\n").expect("a file");
    let set = format!("SET pgward.hospital_id = '{id}'");
    let copy = format!("\\copy staged FROM '{}' CSV", file.display());
    let make = "CREATE TEMP TABLE staged (id int, name text) ON COMMIT DROP";
    let update = format!(
        "UPDATE patients p SET name = s.name FROM staged s \
         WHERE p.id = s.id AND p.hospital_id = '{id}' RETURNING p.name"
    );
    let output = ward.psql(&["-1", "-c", &set, "-c", make, "-c", &copy, "-c", &update]);
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "first\nsecond\n",
        "{output:?} {}",
        ward.log()
    );
}
