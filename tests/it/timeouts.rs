//! Time-outs: what each ends, with which SQLSTATE and words, and who stays connected.

use std::process::Command;
use std::time::Duration;

use pgward::net::{Buffer, Stream};
use pgward::server::ServerConn;
use pgward::server::login::Greeting;

use crate::support::raw::{flush, message, query, sync};
use crate::support::*;

fn start(more: &[(&str, &str)]) -> Ward {
    start_with(more, &Extra::default())
}

/// One unguarded shard, so that anything may run.
fn start_with(more: &[(&str, &str)], extra: &Extra<'_>) -> Ward {
    let shards = shards();
    let mut config = vec![("auth", "auth_type = \"trust\""), ("guard", "mode = \"route\"")];
    config.extend(more);
    let map = Some(one_shard_map(shards.primary.port(), "shard0"));
    Ward::start_with(shards, &WardOptions { map, config: &config }, extra)
}

fn login(ward: &Ward) -> Cancellable {
    Cancellable::login(ward, Login::default())
}

/// Statements with `marker` that run on the primary now.
fn running(marker: &str) -> usize {
    let sql = format!(
        "SELECT count(*) FROM pg_stat_activity
         WHERE query LIKE '%{marker}%' AND state <> 'idle' AND pid <> pg_backend_pid()"
    );
    shards().psql(0, &sql).trim().parse().expect("a count")
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + PATIENCE;
    while !holds() {
        assert!(std::time::Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// What a client is told that is disconnected: SQLSTATE, words, and that it is the end.
fn farewell(client: &mut Cancellable) -> (String, String) {
    let messages = client.raw.until_closed();
    let last = messages.last().expect("a last word");
    assert_eq!(last.tag, b'E', "{messages:?}");
    assert!(last.body.starts_with(b"SFATAL\0"), "{messages:?}");
    let last = std::slice::from_ref(last);
    (code_of(last), words_of(last))
}

#[test]
fn each_time_out_has_its_sqlstate_and_words() {
    let sleep = |name: &str| query(&format!("SELECT pg_sleep(60) /* {name} */"));
    let begin = || query("BEGIN");
    let touch = || query("SELECT * FROM regions");
    // Setting, what the client sends, SQLSTATE, words, and whether it stays.
    for (setting, requests, sqlstate, words, stays) in [
        ("query_timeout", vec![sleep("t0")], "57014", "query timeout", true),
        ("query_timeout", vec![begin(), sleep("t1")], "57014", "query timeout", true),
        (
            "query_timeout",
            vec![[batch("SELECT pg_sleep(60) /* t2 */", &[]), sync()].concat()],
            "57014",
            "query timeout",
            true,
        ),
        // A COPY whose data does not come.
        ("query_timeout", vec![query("COPY regions FROM STDIN")], "57014", "query timeout", true),
        ("transaction_timeout", vec![begin(), touch()], "25P04", "transaction timeout", false),
        ("transaction_timeout", vec![begin(), sleep("t3")], "25P04", "transaction timeout", false),
        (
            "idle_transaction_timeout",
            vec![begin(), touch()],
            "25P03",
            "idle transaction timeout",
            false,
        ),
        // A block that no server knows yet is one to the client.
        ("idle_transaction_timeout", vec![begin()], "25P03", "idle transaction timeout", false),
        (
            "idle_transaction_timeout",
            vec![begin(), touch(), query("SELECT 1/0")],
            "25P03",
            "idle transaction timeout",
            false,
        ),
        ("client_idle_timeout", vec![], "57P05", "client_idle_timeout", false),
        ("client_idle_timeout", vec![touch()], "57P05", "client_idle_timeout", false),
    ] {
        let line = format!("{setting} = 0.3");
        let ward = start(&[("pool", &line), ("pool", "default_pool_size = 1")]);
        let mut client = login(&ward);
        let (last, first) = match requests.split_last() {
            Some((last, first)) => (Some(last), first),
            None => (None, &[][..]),
        };
        for request in first {
            client.raw.send(request);
            client.raw.until(b'Z').expect("an answer");
        }
        if let Some(last) = last {
            client.raw.send(last);
        }
        if stays {
            let answer = client.raw.until(b'Z').expect("an answer");
            assert_eq!(code_of(&answer), sqlstate, "{setting}: {answer:?}");
            assert_eq!(words_of(&answer), words, "{setting}");
            let error = answer.iter().find(|m| m.tag == b'E').expect("an error");
            assert!(error.body.starts_with(b"SERROR\0"), "{setting}: {answer:?}");
            let status = answer.last().expect("ReadyForQuery").body[0];
            if status == b'E' {
                assert_eq!(client.code("SELECT 1"), "25P02");
                assert_eq!(client.code("ROLLBACK"), "");
            }
            assert_eq!(client.code("SELECT 1"), "", "{setting}: the connection stays");
        } else {
            let told = farewell(&mut client);
            assert_eq!(told, (sqlstate.to_owned(), words.to_owned()), "{setting}");
        }
        // The pool's one server, or its place, is there for the next one.
        assert_eq!(login(&ward).code("SELECT * FROM roles"), "", "{setting}");
        wait_until("nothing runs on", || running("/* t") == 0);
    }
}

#[test]
fn a_client_that_is_busy_is_not_idle_and_limits_of_a_user_come_first() {
    let users = format!(
        "{USERS}
        [[user]]
        name = \"patient\"
        server_user = \"app\"
        server_secret_file = \"app-secret\"
        query_timeout = 0
        client_idle_timeout = 0
        idle_transaction_timeout = 0.2
        "
    );
    let ward = start_with(
        &[("pool", "query_timeout = 0.3"), ("pool", "client_idle_timeout = 0.2")],
        &Extra { users: Some(&users), ..Extra::default() },
    );
    assert_eq!(login(&ward).code("SELECT pg_sleep(0.25)"), "", "longer than it may be idle");
    let mut patient = Cancellable::login(&ward, Login { user: "patient", ..Login::default() });
    assert_eq!(patient.code("SELECT pg_sleep(0.6)"), "");
    std::thread::sleep(Duration::from_millis(400));
    assert_eq!(patient.code("BEGIN"), "", "it may be idle");
    assert_eq!(farewell(&mut patient).0, "25P03");
}

#[test]
fn a_request_before_its_sync_has_the_same_limits() {
    let ward = start(&[("pool", "query_timeout = 0.3")]);
    let mut client = login(&ward);
    client.raw.send(&[batch("SELECT pg_sleep(60) /* flushed */", &[]), flush()].concat());
    let answer = client.raw.until(b'E').expect("an error");
    assert_eq!(words_of(&answer), "query timeout");
    client.raw.send(&sync());
    assert_eq!(client.raw.until(b'Z').expect("an answer").last().expect("one").body, b"I");
    assert_eq!(client.code("SELECT 1"), "");
}

#[test]
fn a_cancel_of_pgwards_own_hits_the_request_that_it_is_for() {
    let ward = start(&[("pool", "query_timeout = 0.03"), ("pool", "default_pool_size = 1")]);
    let (mut client, mut other) = (login(&ward), login(&ward));
    let (mut hits, mut misses) = (0, 0);
    for n in 0..60 {
        // About as long as it may take: the end and the cancel meet.
        let sleep = format!("SELECT pg_sleep({})", 0.02 + f64::from(n % 5) * 0.004);
        assert_eq!(client.code("BEGIN"), "");
        match client.code(&sleep).as_str() {
            "" => {
                misses += 1;
                assert_eq!(client.code("SELECT 'quick'"), "", "hit by the cancel before");
                assert_eq!(client.code("COMMIT"), "");
            }
            "57014" => {
                hits += 1;
                assert_eq!(client.code("ROLLBACK"), "");
            }
            other => panic!("{other}"),
        }
        assert_eq!(other.code("SELECT 'quick'"), "", "hit by another's cancel");
    }
    eprintln!("query_timeout: {hits} hit, {misses} were done before");
}

#[test]
fn a_server_that_does_not_cancel_is_given_up() {
    let ward = start(&[
        ("pool", "query_timeout = 0.2"),
        ("pool", "cancel_wait_timeout = 0.3"),
        ("pool", "default_pool_size = 1"),
    ]);
    for (block, sqlstate, then) in [(false, "08007", "I"), (true, "40001", "E")] {
        let mut client = login(&ward);
        if block {
            assert_eq!(client.code("BEGIN"), "");
        }
        // The pool has one server: it is the one that runs what comes next.
        let row = client.query("SELECT pg_backend_pid()").swap_remove(1);
        let pid = String::from_utf8(row.body[6..].to_vec()).expect("a number");
        let signal = |name: &str| {
            let status = Command::new("kill").args(["-s", name, &pid]).status();
            assert!(status.expect("kill").success());
        };
        signal("STOP");
        client.raw.send(&query(match block {
            true => "SELECT * FROM regions",
            false => "INSERT INTO regions SELECT 1000, 'x' WHERE false",
        }));
        let answer = client.raw.until(b'Z');
        signal("CONT");
        let answer = answer.expect("an answer");
        assert_eq!(code_of(&answer), sqlstate, "{answer:?}");
        assert_eq!(answer.last().expect("ReadyForQuery").body, then.as_bytes());
        if block {
            assert_eq!(client.code("ROLLBACK"), "");
        }
        assert_eq!(client.code("SELECT 1"), "", "the client stays");
    }
}

/// On its own server, past all guards.
fn shard_login(ward: &Ward) -> Cancellable {
    let more = "options\0-c pgward.shard=0\0";
    Cancellable::login(ward, Login { user: "migrate", more, ..Login::default() })
}

#[test]
fn shard_addressed_sessions_have_the_same_limits() {
    let sleep = |name: &str| query(&format!("SELECT pg_sleep(60) /* {name} */"));
    let prepared =
        |name: &str| [batch(&format!("SELECT pg_sleep(60) /* {name} */"), &[]), sync()].concat();
    let begin = || query("BEGIN");
    for (setting, first, last, sqlstate, stays) in [
        ("query_timeout", None, sleep("d0"), "57014", true),
        ("query_timeout", None, prepared("d1"), "57014", true),
        ("query_timeout", Some(begin()), sleep("d2"), "57014", true),
        // A COPY whose data does not come.
        ("query_timeout", None, query("COPY regions FROM STDIN"), "57014", true),
        ("transaction_timeout", None, sleep("d3"), "25P04", false),
        ("transaction_timeout", Some(begin()), query("SELECT 1"), "25P04", false),
        ("idle_transaction_timeout", Some(begin()), query("SELECT 1"), "25P03", false),
        ("idle_transaction_timeout", Some(begin()), query("SELECT 1/0"), "25P03", false),
        ("client_idle_timeout", None, query("SELECT pg_sleep(0.5)"), "57P05", false),
    ] {
        let line = format!("{setting} = 0.3");
        let ward = start(&[("pool", &line)]);
        let mut client = shard_login(&ward);
        if let Some(first) = first {
            client.raw.send(&first);
            client.raw.until(b'Z').expect("an answer");
        }
        client.raw.send(&last);
        if stays {
            let answer = client.raw.until(b'Z').expect("an answer");
            assert_eq!(code_of(&answer), sqlstate, "{setting}: {answer:?}");
            assert_eq!(client.code("ROLLBACK"), "");
            assert_eq!(client.code("SELECT 1"), "", "{setting}: the connection stays");
        } else {
            assert_eq!(farewell(&mut client).0, sqlstate, "{setting}");
        }
        wait_until("nothing runs on", || running("/* d") == 0);
    }
}

#[test]
fn a_shard_addressed_session_that_is_busy_goes_on() {
    let ward = start(&[("pool", "query_timeout = 0.4"), ("pool", "client_idle_timeout = 0.4")]);
    let mut client = shard_login(&ward);
    // Longer than one request may take, and never idle for so long.
    for _ in 0..8 {
        assert_eq!(client.code("SELECT pg_sleep(0.15)"), "");
    }
    client.raw.send(&query("COPY regions FROM STDIN"));
    client.raw.until(b'G').expect("COPY");
    client.raw.send(&message(b'f', &[b"no\0"]));
    assert_eq!(code_of(&client.raw.until(b'Z').expect("an answer")), "57014");
    assert_eq!(client.code("SELECT 1"), "");
}

#[test]
fn a_drain_ends_shard_addressed_sessions_when_they_are_idle() {
    let ward = start(&[]);
    let (mut idle, mut busy) = (shard_login(&ward), shard_login(&ward));
    assert_eq!(busy.code("BEGIN"), "");
    ward.signal("TERM");
    assert_eq!(farewell(&mut idle).0, "57P01");
    assert_eq!(busy.code("SELECT 1"), "", "in a transaction");
    assert_eq!(busy.code("COMMIT"), "");
    assert_eq!(farewell(&mut busy).0, "57P01");
}

#[test]
fn a_client_that_waits_is_told_so() {
    let ward = start(&[("pool", "query_wait_notify = 0.1"), ("pool", "default_pool_size = 1")]);
    let (mut holder, mut waiter) = (login(&ward), login(&ward));
    assert_eq!(holder.code("BEGIN"), "");
    assert_eq!(holder.code("SELECT * FROM regions"), "");
    waiter.raw.send(&query("SELECT * FROM roles"));
    let notice = waiter.raw.message().expect("a notice");
    assert_eq!(notice.tag, b'N');
    assert!(notice.body.starts_with(b"SNOTICE\0"), "{notice:?}");
    assert_eq!(holder.code("COMMIT"), "");
    let answer = waiter.raw.until(b'Z').expect("an answer");
    assert_eq!(answer[0].tag, b'T', "{answer:?}");
}

#[test]
fn statement_mode_has_no_blocks() {
    let users = format!(
        "{USERS}
        [[user]]
        name = \"blocks\"
        server_user = \"app\"
        server_secret_file = \"app-secret\"
        pool_mode = \"transaction\"
        "
    );
    let ward = start_with(
        &[("pool", "pool_mode = \"statement\""), ("pool", "default_pool_size = 1")],
        &Extra { users: Some(&users), ..Extra::default() },
    );
    let (mut client, mut other) = (login(&ward), login(&ward));
    let words = "transaction blocks not allowed in statement pooling mode";
    let extended = |sql: &str| [batch(sql, &[]), sync()].concat();
    for request in [
        query("BEGIN"),
        query("start transaction read only"),
        query("SELECT 1; BEGIN; SELECT 2"),
        extended("BEGIN"),
        [message(b'P', &[b"s\0BEGIN\0\0\0"]), sync()].concat(),
    ] {
        client.raw.send(&request);
        let answer = client.raw.until(b'Z').expect("an answer");
        assert_eq!((code_of(&answer).as_str(), words_of(&answer).as_str()), ("0A000", words));
        assert_eq!(answer.last().expect("ReadyForQuery").body, b"I");
        // Nothing holds the one server.
        assert_eq!(other.code("SELECT * FROM regions"), "");
        assert_eq!(client.code("SELECT * FROM regions"), "");
    }
    client.raw.send(&extended("SELECT * FROM roles"));
    assert_eq!(code_of(&client.raw.until(b'Z').expect("an answer")), "");
    let mut blocks = Cancellable::login(&ward, Login { user: "blocks", ..Login::default() });
    for sql in ["BEGIN", "SELECT * FROM regions", "COMMIT"] {
        assert_eq!(blocks.code(sql), "", "{sql}");
    }
}

/// A query of pgward's own (settings, a reset) on a server that says nothing.
#[tokio::test(start_paused = true)]
async fn a_silent_server_is_not_waited_for_for_ever() {
    let (ours, _theirs) = tokio::io::duplex(4096);
    let mut server = ServerConn::new(Greeting {
        stream: Stream::Memory(Box::new(ours)),
        buffer: Buffer::default(),
        parameters: Vec::new(),
        pid: 1,
        key: bytes::Bytes::from_static(b"key!"),
        way: None,
    });
    let outcome = server.run("SET work_mem = '1MB'").await;
    assert!(matches!(outcome, Err(pgward::server::Error::Silent)), "{outcome:?}");
    assert!(server.is_broken() && !server.is_clean());
}
