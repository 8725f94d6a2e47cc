//! Bytes that no driver sends, and orders of messages that only some do.

use crate::support::raw::{bind, execute, flush, message, packet, parse, query, startup, sync};
use crate::support::*;

const TRUST: (&str, &str) = ("auth", "auth_type = \"trust\"");

fn tags(messages: &[Message]) -> String {
    messages.iter().map(|message| char::from(message.tag)).collect()
}

#[test]
fn encryption_is_declined_and_the_login_goes_on() {
    let ward = Ward::start(shards(), &WardOptions { config: &[TRUST], ..Default::default() });
    let mut raw = Raw::connect(&ward);
    for request in [80_877_104u32, 80_877_103] {
        raw.send(&packet(&[&request.to_be_bytes()]));
        let mut answer = [0];
        std::io::Read::read_exact(&mut raw.stream, &mut answer).expect("an answer");
        assert_eq!(answer, [b'N']);
    }
    raw.send(&startup(0x0003_0000));
    assert!(raw.until(b'Z').is_some());
}

#[test]
fn a_newer_protocol_is_negotiated_down() {
    let ward = Ward::start(shards(), &WardOptions { config: &[TRUST], ..Default::default() });
    let mut raw = Raw::connect(&ward);
    let body = b"user\0app\0database\0hospital\0_pq_.test_protocol_negotiation\0\0\0";
    raw.send(&packet(&[&0x0003_270fu32.to_be_bytes(), body]));
    let messages = raw.until(b'Z').expect("a login");
    assert_eq!(messages[0].tag, b'v', "{messages:?}");
    let named =
        String::from_utf8_lossy(&messages[0].body).contains("_pq_.test_protocol_negotiation");
    assert!(named, "{:?}", messages[0]);
}

#[test]
fn a_client_that_is_slow_to_read_gets_all_of_a_wide_row() {
    let ward = Ward::start(shards(), &WardOptions { config: &[TRUST], ..Default::default() });
    for bytes in [1 << 20, 10 << 20, 40 << 20] {
        let mut raw = Raw::login(&ward);
        raw.send(&query(&format!("SELECT repeat('x', {bytes})")));
        // Until every buffer on the way is full, the server's and pgward's too.
        std::thread::sleep(std::time::Duration::from_millis(300));
        let messages = raw.until(b'Z').expect("all of it");
        assert_eq!(tags(&messages), "TDCZ");
        assert_eq!(messages[1].body.len(), bytes + 6);
    }
}

#[test]
fn what_follows_a_rollback_in_its_request_runs() {
    let shards = shards();
    let map = one_shard_map(shards.primary.port(), "shard0");
    let config = [TRUST, ("guard", "mode = \"route\"")];
    let ward = Ward::start(shards, &WardOptions { map: Some(map), config: &config });
    let mut raw = Raw::login(&ward);
    let ends = [
        ([batch("ROLLBACK", &[]), batch("SELECT 1", &[]), sync()].concat(), "12C12DCZ"),
        ([batch("SELECT 1", &[]), batch("ROLLBACK", &[]), sync()].concat(), "EZ"),
        (query("ROLLBACK; SELECT 1"), "CTDCZ"),
        (query("SELECT 1; ROLLBACK"), "EZ"),
    ];
    for (end, want) in ends {
        raw.send(&[query("BEGIN"), query("SELECT 1 FROM pg_class"), query("SELECT 1/0")].concat());
        for _ in 0..3 {
            raw.until(b'Z').expect("an answer");
        }
        raw.send(&end);
        assert_eq!(tags(&raw.until(b'Z').expect("an answer")), want);
        raw.send(&query("ROLLBACK"));
        raw.until(b'Z').expect("an answer");
    }
}

#[test]
fn copy_data_sent_once_it_is_asked_for_is_answered() {
    let shards = shards();
    let map = one_shard_map(shards.primary.port(), "shard0");
    let config = [TRUST, ("guard", "mode = \"route\"")];
    let ward = Ward::start(shards, &WardOptions { map: Some(map), config: &config });
    let mut raw = Raw::login(&ward);
    raw.send(&query("CREATE TEMP TABLE copied (n integer)"));
    raw.until(b'Z').expect("an answer");
    // A server keeps the end of a COPY of a batch to itself until it gets the Sync behind it.
    let ends = [(message(b'c', &[]), "CZ"), (message(b'f', &[b"no\0"]), "EZ")];
    for (end, want) in ends {
        raw.send(&[batch("COPY copied FROM STDIN", &[]), sync()].concat());
        assert_eq!(tags(&raw.until(b'G').expect("it begins")), "12G");
        raw.send(&[message(b'd', &[b"1\n"]), end, sync()].concat());
        assert_eq!(tags(&raw.until(b'Z').expect("an answer")), want);
    }
}

#[test]
fn a_client_that_dies_in_a_message_or_a_batch_leaks_nothing() {
    let shards = shards();
    let config = [TRUST, ("pool", "default_pool_size = 1"), ("pool", "query_wait_timeout = 10")];
    let ward = Ward::start(shards, &WardOptions { config: &config, ..Default::default() });
    let id = shards.hospital(1, 1).to_string();
    let update = "UPDATE patients SET name = 'Lost' WHERE hospital_id = $1";
    let whole = [batch(update, &[&id]), flush()].concat();
    let bind_at = parse(update).len();
    for cut in [3, bind_at, bind_at + 4, bind_at + 20, whole.len() - 7, whole.len()] {
        let mut raw = Raw::login(&ward);
        raw.send(&whole[..cut]);
        if cut == whole.len() {
            // The server has run it, but there was no Sync: nothing is committed.
            assert_eq!(tags(&raw.until(b'C').expect("it ran")), "12C");
        }
        drop(raw);
        let mut next = Raw::login(&ward);
        let read =
            format!("UPDATE patients SET phone = '1' WHERE hospital_id = '{id}' RETURNING name");
        next.send(&query(&read));
        let messages = next.until(b'Z').expect("an answer");
        assert_eq!(tags(&messages), "TDCZ", "after a cut at {cut}: {messages:?}");
        assert!(messages[1].body.ends_with(b"Patient 1"), "after a cut at {cut}: {messages:?}");
    }
}

#[test]
fn what_breaks_the_protocol_ends_that_connection() {
    let shards = shards();
    let ward = Ward::start(shards, &WardOptions { config: &[TRUST], ..Default::default() });
    let broken = [
        ("an unknown type", message(b'~', &[b"what"])),
        ("a length below four", b"Q\0\0\0\x03".to_vec()),
        ("a negative length", b"Q\xff\xff\xff\xff".to_vec()),
        ("a text without its end", message(b'Q', &[b"SELECT 1"])),
        ("a Parse that ends early", message(b'P', &[b"name"])),
        ("a Bind whose counts lie", message(b'B', &[b"\0\0\x7f\xff\x7f\xff"])),
        ("a Bind whose lengths lie", message(b'B', &[b"\0\0\0\0\0\x01\x7f\xff\xff\xff"])),
        ("a Close of nothing", message(b'C', &[b""])),
        ("a Describe of what", message(b'D', &[b"X\0"])),
        ("an Execute without a limit", message(b'E', &[b"\0"])),
        ("a password now", message(b'p', &[b"secret\0"])),
    ];
    for (what, bytes) in broken {
        let mut raw = Raw::login(&ward);
        raw.send(&[bytes, sync()].concat());
        let messages = raw.until_closed();
        let error = messages.iter().find(|message| message.tag == b'E');
        assert_eq!(error.map(Message::sqlstate), Some("08P01"), "{what}: {messages:?}");
        assert!(messages.iter().all(|message| message.tag != b'Z'), "{what}: {messages:?}");
    }
    let mut raw = Raw::login(&ward);
    raw.send(&query("SELECT 1"));
    assert_eq!(tags(&raw.until(b'Z').expect("others go on")), "TDCZ");
}

#[test]
fn each_request_gets_one_ready_for_query() {
    let shards = shards();
    let ward = Ward::start(shards, &WardOptions { config: &[TRUST], ..Default::default() });
    let (one, two) = (shards.hospital(0, 1), shards.hospital(3, 1));
    let read = |id| format!("SELECT name FROM patients WHERE hospital_id = '{id}'");
    let mut raw = Raw::login(&ward);
    // All at once: two shards, a refusal, a syntax error, an empty query, a batch with an error.
    let failing = [parse("SELECT 1"), bind(&["too", "many"]), execute(), sync()].concat();
    let all = [
        query(&read(one)),
        query(&read(two)),
        query("SELECT * FROM patients"),
        query("SELEC"),
        query(""),
        sync(),
        failing,
        [batch(&read(one), &[]), sync()].concat(),
        query("BEGIN"),
        query(&read(two)),
        query("SELECT * FROM patients"),
        query("SELECT 1"),
        query("ROLLBACK"),
    ];
    let answers =
        ["TDCZ", "TDCZ", "EZ", "EZ", "IZ", "Z", "1EZ", "12DCZ", "CZ", "TDCZ", "EZ", "EZ", "CZ"];
    raw.send(&all.concat());
    for (number, answer) in answers.into_iter().enumerate() {
        let messages = raw.until(b'Z').expect("an answer");
        assert_eq!(tags(&messages), answer, "request {number}: {messages:?}");
    }
    raw.send(&message(b'X', &[]));
    assert_eq!(raw.until_closed(), []);
}

#[test]
fn flush_brings_answers_before_sync() {
    let shards = shards();
    let ward = Ward::start(shards, &WardOptions { config: &[TRUST], ..Default::default() });
    let id = shards.hospital(2, 1);
    let mut raw = Raw::login(&ward);
    let sql = format!("SELECT name FROM patients WHERE hospital_id = '{id}'");
    raw.send(&[batch(&sql, &[]), flush()].concat());
    assert_eq!(tags(&raw.until(b'C').expect("answers")), "12DC");
    raw.send(&[batch(&sql, &[]), sync()].concat());
    assert_eq!(tags(&raw.until(b'Z').expect("answers")), "12DCZ");
}

#[test]
fn a_long_pipeline_does_not_block() {
    let shards = shards();
    let ward = Ward::start(shards, &WardOptions { config: &[TRUST], ..Default::default() });
    let ids = [0, 1, 2, 3].map(|shard| shards.hospital(shard, 200).to_string());
    let sql = "SELECT name, mrn, repeat(name, 20) FROM patients WHERE hospital_id = $1";
    let mut raw = Raw::login(&ward);
    let mut writer = raw.stream.try_clone().expect("the other half");
    let requests = 500;
    // Written without reading: megabytes each way, more than the sockets hold.
    let writing = std::thread::spawn(move || {
        for number in 0..requests {
            let request = [batch(sql, &[&ids[number % 4]]), sync()].concat();
            std::io::Write::write_all(&mut writer, &request).expect("sent");
        }
    });
    for number in 0..requests {
        let messages = raw.until(b'Z').expect("an answer");
        assert_eq!(messages.len(), 204, "request {number}: {}", tags(&messages));
    }
    writing.join().expect("all was sent");
}

#[tokio::test]
async fn startup_settings_are_tried_at_login() {
    let shards = shards();
    let ward = Ward::start(shards, &WardOptions::default());
    let mut config = ward.client_config();
    config.options("-c work_mem=9MB -c statement_timeout=1234");
    let client = ward.connect_with(&config).await.expect("a login");
    let id = shards.hospital(1, 1);
    let sql = format!(
        "SELECT current_setting('work_mem'), current_setting('statement_timeout')
         FROM patients WHERE hospital_id = '{id}'"
    );
    assert_eq!(value(&client, &sql).await, "9MB|1234ms");
    config.options("-c work_mem=lots");
    let refused = ward.connect_with(&config).await.expect_err("not a size");
    assert_eq!(sqlstate(&refused), "22023", "{}", tell(&refused));
}
