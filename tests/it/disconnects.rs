//! Clients that go without a word, at every moment and in every way: what runs for them is stopped,
//! and the one server of the pool is the next client's, clean.

use std::net::Shutdown;
use std::time::Duration;

use socket2::SockRef;

use crate::support::raw::{Raw, batch, flush, message, query};
use crate::support::{Ward, WardOptions, eventually, one_shard_map, shards};

/// How a client goes.
#[derive(Debug, Clone, Copy)]
enum End {
    Close,
    /// The socket is reset, as after `kill -9` with bytes unread.
    Reset,
    /// It says that it sends no more, and stays to listen.
    HalfClose,
}

/// What it did before: what it sent, the message that it waited for, and what it sent then. `MARK`
/// is found in `pg_stat_activity`.
const MOMENTS: [(&str, &str, Option<u8>); 7] = [
    ("in a query", "SELECT pg_sleep(600), 'MARK'", None),
    (
        "in a result that it doesn't read",
        "SELECT repeat('x', 1000), 'MARK' FROM generate_series(1, 10000000)",
        None,
    ),
    (
        "in a COPY that it doesn't read",
        "COPY (SELECT repeat('x', 1000), 'MARK' FROM generate_series(1, 10000000)) TO STDOUT",
        None,
    ),
    ("in a COPY that it sends", "COPY regions FROM STDIN /* MARK */", Some(b'G')),
    ("in a transaction", "BEGIN; SELECT 'MARK'", Some(b'Z')),
    ("in a failed transaction", "BEGIN; SELECT 'MARK' / 0", Some(b'Z')),
    ("in a batch without Sync", "SELECT pg_sleep(600), 'MARK' ", None),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_goes_stops_what_runs_and_leaves_its_server_clean() {
    let shards = shards();
    let config = [
        ("auth", "auth_type = \"trust\""),
        ("guard", "mode = \"route\""),
        ("pool", "default_pool_size = 1"),
    ];
    let map = Some(one_shard_map(shards.primary.port(), "shard0"));
    let ward = Ward::start(shards, &WardOptions { map, config: &config });
    for (n, (what, sql, awaited)) in (0..).zip(MOMENTS) {
        for end in [End::Close, End::Reset, End::HalfClose] {
            let mark = format!("gone-{n}-{end:?}");
            let sql = sql.replace("MARK", &mark);
            let busy = format!(
                "SELECT count(*) FROM pg_stat_activity WHERE state <> 'idle' AND query LIKE '%{mark}%' \
                 AND pid <> pg_backend_pid()"
            );
            let is_busy = async |want: &str| shards.psql(0, &busy).trim() == want;
            let mut raw = Raw::login(&ward);
            let bytes = match what {
                "in a batch without Sync" => [batch(&sql, &[]), flush()].concat(),
                _ => query(&sql),
            };
            raw.send(&bytes);
            match awaited {
                Some(tag) => drop(raw.until(tag).expect("an answer")),
                None => eventually("it runs", async || is_busy("1").await).await,
            }
            if awaited == Some(b'G') {
                // A whole message, and half of another.
                let row = message(b'd', &[b"1\tnowhere\n"]);
                raw.send(&[&row[..], &row[..row.len() - 3]].concat());
            }
            go(&raw, end);
            let kept = matches!(end, End::HalfClose).then_some(raw);
            eventually(&format!("{what}, {end:?}: nothing runs"), async || is_busy("0").await)
                .await;
            let mut next = Raw::login(&ward);
            next.stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
            next.send(&query("SELECT 1"));
            let answer = next.until(b'Z').expect("an answer");
            let tags: Vec<u8> = answer.iter().map(|message| message.tag).collect();
            assert_eq!(tags, b"TDCZ", "{what}, {end:?}: {answer:?}");
            assert_eq!(answer[3].body, b"I", "{what}, {end:?}");
            drop(kept);
        }
    }
    assert!(!ward.log().contains("panicked"), "{}", ward.log());
}

fn go(raw: &Raw, end: End) {
    match end {
        // It closes when it is dropped.
        End::Close => {}
        End::Reset => {
            SockRef::from(&raw.stream).set_linger(Some(Duration::ZERO)).expect("an option");
        }
        End::HalfClose => raw.stream.shutdown(Shutdown::Write).expect("half closed"),
    }
}
