//! Replication connections: who may open one, that they carry what Postgres's own tools and streams
//! need, and how they end.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use pgward::cli::local::Options;

use crate::support::raw::{Message, message, query};
use crate::support::*;

const TRUST: (&str, &str) = ("auth", "auth_type = \"trust\"");
const ROUTE: (&str, &str) = ("guard", "mode = \"route\"");
const PHYSICAL: &str = "replication\0true\0";
const LOGICAL: &str = "replication\0database\0";
const SHARD_0: &str = "options\0-c pgward.shard=0\0";
/// As the tests above this one, and `stream`, whose server user may replicate.
const STREAMERS: &str = r#"
[[user]]
name = "stream"
secret = "stream-password"
server_user = "streamer"
server_secret_file = "app-secret"
shard_access = true

[[user]]
name = "plain"
secret = "plain-password"
server_user = "streamer"
server_secret_file = "app-secret"

[[user]]
name = "bound"
secret = "bound-password"
server_user = "streamer"
server_secret_file = "app-secret"
hospital = "00000000-0000-0000-0000-000000000001"
"#;

/// Servers that decode their WAL.
fn decoding() -> &'static Shards {
    static SHARDS: OnceLock<Shards> = OnceLock::new();
    SHARDS.get_or_init(|| {
        let settings = [("wal_level", "logical"), ("max_wal_senders", "20")];
        let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        let shards = Shards::start(&Options { settings, ..Options::default() });
        let role = "CREATE ROLE streamer LOGIN REPLICATION PASSWORD 'app-secret' IN ROLE app";
        shards.psql(0, role);
        shards
    })
}

fn start(map: Option<String>, config: &[(&str, &str)]) -> Ward {
    let users = format!("{USERS}{STREAMERS}");
    let mut lines = vec![TRUST];
    lines.extend_from_slice(config);
    let extra = Extra { users: Some(&users), ..Extra::default() };
    Ward::start_with(decoding(), &WardOptions { map, config: &lines }, &extra)
}

/// Four shards, guarded.
fn guarded() -> Ward {
    start(None, &[])
}

/// One shard whose application is trusted.
fn unguarded(more: &[(&str, &str)]) -> Ward {
    let map = one_shard_map(decoding().primary.port(), "shard0");
    let mut config = vec![ROUTE];
    config.extend_from_slice(more);
    start(Some(map), &config)
}

fn login(ward: &Ward, user: &str, more: &str) -> Result<Cancellable, Vec<Message>> {
    Cancellable::try_login(ward, raw::Login { user, minor: 0, more })
}

fn streamer(ward: &Ward) -> Cancellable {
    login(ward, "plain", PHYSICAL).expect("a replication connection")
}

/// Begins to stream WAL from where the server is now.
fn stream(client: &mut Cancellable) {
    let answer = client.query("IDENTIFY_SYSTEM");
    let row = answer.iter().find(|message| message.tag == b'D').expect("a row");
    let mut fields = row.body.split(|byte| !byte.is_ascii_graphic());
    let place = fields.find(|field| field.contains(&b'/')).expect("a place in the WAL");
    let place = String::from_utf8_lossy(place);
    client.raw.send(&query(&format!("START_REPLICATION PHYSICAL {place}")));
    let begun = client.raw.message().expect("a stream");
    assert_eq!(begun.tag, b'W', "{begun:?}");
}

/// A standby's word, which asks for an answer.
fn status_update() -> Vec<u8> {
    message(b'd', &[b"r", &[0; 32], b"\x01"])
}

fn keepalive(client: &mut Cancellable) -> Message {
    loop {
        let next = client.raw.message().expect("a message");
        assert_eq!(next.tag, b'd', "{next:?}");
        if next.body[0] == b'k' {
            return next;
        }
    }
}

/// Processes that send WAL to clients of pgward.
fn senders() -> Vec<i32> {
    let sql = "SELECT pid FROM pg_stat_activity WHERE usename = 'streamer'";
    decoding().psql(0, sql).lines().map(|pid| pid.parse().expect("a pid")).collect()
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + PATIENCE;
    while !holds() {
        assert!(std::time::Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// One of Postgres's own programs, as `user` on shard 0.
fn tool(ward: &Ward, name: &str, user: &str) -> Command {
    let mut command = ward.libpq(decoding().sandbox.program(name));
    command.env("PGUSER", user).env("PGOPTIONS", "-c pgward.shard=0").env_remove("PGDATABASE");
    command
}

fn run(mut command: Command) -> String {
    let output = command.output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("replication-{name}"));
    drop(std::fs::remove_dir_all(&folder));
    std::fs::create_dir_all(&folder).expect("a folder");
    folder
}

#[test]
fn postgres_own_tools_stream_through_pgward() {
    let (ward, shards) = (guarded(), decoding());
    let now = || shards.psql(0, "SELECT pg_current_wal_insert_lsn()").trim().to_owned();

    // A base backup: two connections, of which one streams while the other copies.
    let backup = folder("backup");
    let mut command = tool(&ward, "pg_basebackup", "stream");
    command.args(["--checkpoint=fast", "--wal-method=stream", "--no-sync", "-D"]).arg(&backup);
    run(command);
    let mut verify = Command::new(shards.sandbox.program("pg_verifybackup"));
    verify.arg(&backup);
    run(verify);

    // WAL, by a slot.
    let wal = folder("wal");
    let receive = |more: &[&str]| {
        let mut command = tool(&ward, "pg_receivewal", "stream");
        command.args(["--slot=through_pgward", "--no-loop", "-D"]).arg(&wal).args(more);
        run(command)
    };
    receive(&["--create-slot"]);
    let begin = now();
    shards.psql(0, "CREATE TABLE streamed AS SELECT n FROM generate_series(1, 20000) n");
    receive(&[&format!("--endpos={}", now())]);
    let received: u64 =
        std::fs::read_dir(&wal).unwrap().map(|file| file.unwrap().metadata().unwrap().len()).sum();
    assert!(received >= 1 << 20, "{received} bytes since {begin}");
    receive(&["--drop-slot"]);

    // Changes of a database.
    let decode = |more: &[&str]| {
        let mut command = tool(&ward, "pg_recvlogical", "stream");
        command.args(["--dbname=hospital", "--slot=decoded", "--no-loop"]).args(more);
        run(command)
    };
    decode(&["--create-slot", "--plugin=test_decoding"]);
    shards.psql(0, "INSERT INTO streamed SELECT 4711");
    let end = format!("--endpos={}", now());
    let changes = decode(&["--start", "--file=-", &end]);
    assert!(changes.contains("table public.streamed: INSERT: n[integer]:4711"), "{changes}");
    decode(&["--drop-slot"]);
    shards.psql(0, "DROP TABLE streamed");
    wait_until("all are closed", || senders().is_empty());

    let log = ward.log();
    for kind in ["true", "database"] {
        let line = format!("\"replication\":\"{kind}\"");
        assert!(log.lines().any(|l| l.contains("audit") && l.contains(&line)), "{kind}: {log}");
    }
}

#[test]
fn who_may_not_replicate_is_told_why() {
    let (guarded, unguarded) = (guarded(), unguarded(&[]));
    let hospital = "options\0-c pgward.hospital_id=00000000-0000-0000-0000-000000000001\0";
    let away = "options\0-c pgward.shard=99\0";
    let word = "must be superuser or replication role to start walsender";
    for (ward, user, more, code, words) in [
        (&guarded, "plain", vec![PHYSICAL], "42501", "may not open replication connections"),
        (&guarded, "plain", vec![LOGICAL], "42501", "may not open replication connections"),
        (&guarded, "plain", vec![LOGICAL, SHARD_0], "42501", "may not address a shard"),
        (&guarded, "stream", vec![PHYSICAL], "0A000", "is to one shard"),
        (&guarded, "stream", vec![PHYSICAL, away], "22023", "names no shard"),
        (&guarded, "stream", vec![LOGICAL, hospital], "0A000", "of one hospital"),
        (&guarded, "stream", vec!["replication\0perhaps\0"], "22023", "replication"),
        (&unguarded, "bound", vec![PHYSICAL], "42501", "may not open replication connections"),
        (&unguarded, "plain", vec![LOGICAL, "database\0pgward\0"], "0A000", "nothing to replicate"),
        (&unguarded, "plain", vec![LOGICAL, "work_mem\0much\0"], "22023", "work_mem"),
        // The server's own words.
        (&unguarded, "app", vec![PHYSICAL], "42501", word),
        (&unguarded, "app", vec![LOGICAL], "42501", word),
        (&guarded, "migrate", vec![PHYSICAL, SHARD_0], "42501", word),
    ] {
        let told = login(ward, user, &more.concat()).err();
        let told = told.unwrap_or_else(|| panic!("{user} {more:?} gets in"));
        assert_eq!(code_of(&told), code, "{user} {more:?}: {told:?}");
        assert!(words_of(&told).contains(words), "{user} {more:?}: {told:?}");
        assert!(told.last().unwrap().body.starts_with(b"SFATAL\0"), "{told:?}");
    }
    // That a server user may not replicate says nothing of its pool.
    let mut client = login(&unguarded, "app", "").expect("a session");
    assert_eq!(client.code("SELECT * FROM regions"), "");
}

#[test]
fn a_stream_goes_both_ways_and_no_time_out_ends_it() {
    let limits = ["query_timeout", "client_idle_timeout", "transaction_timeout"];
    let lines = limits.map(|name| format!("{name} = 0.4"));
    let config: Vec<_> = lines.iter().map(|line| ("pool", line.as_str())).collect();
    let ward = unguarded(&config);
    let mut client = streamer(&ward);
    assert!(senders().contains(&client.pid), "the true process id: {}", client.pid);
    stream(&mut client);
    let since = std::time::Instant::now();
    while since.elapsed() < Duration::from_millis(1500) {
        client.raw.send(&status_update());
        keepalive(&mut client);
        std::thread::sleep(Duration::from_millis(100));
    }
    decoding().psql(0, "SELECT pg_logical_emit_message(false, 'through', repeat('x', 3000000))");
    let mut bytes = 0;
    while bytes < 3_000_000 {
        let next = client.raw.message().expect("WAL");
        assert_eq!(next.tag, b'd');
        bytes += next.body.len();
    }
    // Both sides end it, and the connection is there for the next command.
    client.raw.send(&message(b'c', &[]));
    let end = client.raw.until(b'Z').expect("an end");
    let tags: Vec<u8> = end.iter().map(|m| m.tag).filter(|tag| *tag != b'd').collect();
    assert_eq!(tags, *b"cCCZ", "{end:?}");
    assert_eq!(client.code("SHOW wal_level"), "");
    assert_eq!(client.code("SELECT 1"), "0A000", "the server's own word on SQL");
    // Then it is idle, as any client.
    let farewell = client.raw.until_closed();
    assert_eq!(code_of(&farewell), "57P05");
}

#[test]
fn a_database_takes_sql_as_well() {
    let ward = guarded();
    let mut client = login(&ward, "stream", &[LOGICAL, SHARD_0].concat()).expect("a login");
    let rows = client.query("SELECT current_database()");
    assert!(rows.iter().any(|m| m.tag == b'D' && m.body.ends_with(b"shard0")), "{rows:?}");
    assert_eq!(client.code("SET client_min_messages = warning"), "");
    let slot = "CREATE_REPLICATION_SLOT sql_beside TEMPORARY LOGICAL test_decoding";
    assert_eq!(client.code(slot), "");
    client.raw.send(&query("START_REPLICATION SLOT sql_beside LOGICAL 0/0"));
    client.raw.until(b'W').expect("a stream");
    decoding().psql(0, "CREATE TABLE beside (n int); INSERT INTO beside VALUES (1)");
    loop {
        let next = client.raw.message().expect("changes");
        assert_eq!(next.tag, b'd', "{next:?}");
        if String::from_utf8_lossy(&next.body).contains("public.beside: INSERT") {
            break;
        }
    }
    // Its cancel key is good for the stream.
    client.cancel_at(ward.port);
    let end = client.raw.until(b'Z').expect("an end");
    assert_eq!(code_of(&end), "57014");
    decoding().psql(0, "DROP TABLE beside");
}

#[tokio::test]
async fn it_is_seen_counted_and_gone_with_its_client() {
    let ward = unguarded(&[("pool", "default_pool_size = 1"), ("pool", "query_wait_timeout = 1")]);
    let console = ward.console().await;
    let pin = async || {
        let rows = console.simple_query("SHOW CLIENTS").await.expect("SHOW CLIENTS");
        let pins = rows.iter().filter_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get("pin").map(str::to_owned),
            _ => None,
        });
        pins.collect::<String>()
    };
    // A server that was idle before: it serves no stream, and counts in its pool.
    let mut other = login(&ward, "plain", "").expect("a session");
    assert_eq!(other.code("SELECT * FROM regions"), "");
    let before = senders();
    for round in 1..3 {
        let mut client = streamer(&ward);
        assert!(!before.contains(&client.pid), "a server of its own");
        stream(&mut client);
        assert_eq!(pin().await, "replication");
        let metrics = http_get(ward.metrics_port, "/metrics").1;
        let line = format!("pgward_pins_total{{reason=\"replication\"}} {round}");
        assert!(metrics.contains(&line), "no {line} in\n{metrics}");
        assert_eq!(other.code("SELECT * FROM regions"), "57014", "the pool's one place is taken");
        let pid = client.pid;
        drop(client);
        wait_until("its server is gone", || !senders().contains(&pid));
        assert_eq!(other.code("SELECT * FROM regions"), "");
    }
    assert_eq!(pin().await, "");
}

#[test]
fn a_drain_ends_a_stream_between_two_messages() {
    let ward = unguarded(&[]);
    let mut clients: Vec<_> = (0..3).map(|_| streamer(&ward)).collect();
    for client in &mut clients[..2] {
        stream(client);
    }
    // One of them amid a lot of WAL.
    decoding().psql(0, "SELECT pg_logical_emit_message(false, 'drain', repeat('x', 8000000))");
    ward.signal("TERM");
    for (number, client) in clients.iter_mut().enumerate() {
        let farewell = client.raw.until_closed();
        let last = farewell.last().expect("a last word");
        assert_eq!((last.tag, last.sqlstate()), (b'E', "57P01"), "client {number}");
        let rest = &farewell[..farewell.len() - 1];
        assert!(rest.iter().all(|message| message.tag == b'd'), "client {number}");
    }
    wait_until("all are closed", || senders().is_empty());
}
