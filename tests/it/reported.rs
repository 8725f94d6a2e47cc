//! ParameterStatus: what a client hears of its settings over a pool is what it hears from a server of
//! its own, request by request.

use crate::support::raw::{Login, execute, message, query, sync};
use crate::support::*;

const TRUST: (&str, &str) = ("auth", "auth_type = \"trust\"");
const ROUTE: (&str, &str) = ("guard", "mode = \"route\"");

/// One request each; all that Postgres reports is in some of them set, reset or rolled back.
const REQUESTS: &[&str] = &[
    "SET TimeZone = 'utc'",
    "RESET TimeZone",
    "SET DateStyle = 'DMY'",
    "SET IntervalStyle = 'ISO_8601'",
    "BEGIN",
    "SET TimeZone = 'Asia/Tokyo'",
    "SAVEPOINT s",
    "SET LOCAL TimeZone = 'Asia/Seoul'",
    "ROLLBACK TO s",
    "SET LOCAL application_name = 'local'",
    "COMMIT",
    "BEGIN",
    "SELECT 1",
    "SET DateStyle TO DEFAULT",
    "SET client_encoding = 'SQL_ASCII'",
    "SELEC",
    "ROLLBACK",
    "SET application_name = 'mine'",
    "SET TIME ZONE DEFAULT",
    "RESET ALL",
    "SET TimeZone = 'Asia/Tokyo'; SET TimeZone = 'Asia/Seoul'",
    "SELECT set_config('TimeZone', 'CET', false)",
    "SELECT set_config('TimeZone', 'UTC', true)",
    "DISCARD ALL",
];

fn extended(sql: &str) -> Vec<u8> {
    let parse = message(b'P', &[b"\0", sql.as_bytes(), b"\0\0\0"]);
    let bind = message(b'B', &[b"\0\0\0\0\0\0\0\0"]);
    [parse, bind, execute(), sync()].concat()
}

/// The settings that the answer of each request reports.
fn heard(ward: &Ward, more: &str, is_extended: bool) -> Vec<(&'static str, Vec<String>)> {
    let mut raw = Cancellable::login(ward, Login { more, ..Login::default() }).raw;
    let requests = REQUESTS.iter().filter(|sql| !is_extended || !sql.contains(';'));
    let answer = |sql: &&'static str| {
        raw.send(&if is_extended { extended(sql) } else { query(sql) });
        let answer = raw.until(b'Z').expect("an answer");
        let reported = answer.iter().filter(|message| message.tag == b'S');
        let mut reported: Vec<_> =
            reported.map(|of| String::from_utf8_lossy(&of.body).replace('\0', "=")).collect();
        reported.sort();
        (*sql, reported)
    };
    requests.map(answer).collect()
}

#[test]
fn what_is_reported_over_a_pool_is_what_a_server_reports() {
    let map = one_shard_map(shards().primary.port(), "shard0");
    let of_mode = |mode| {
        let config = &[TRUST, ROUTE, ("pool", mode)];
        Ward::start(shards(), &WardOptions { map: Some(map.clone()), config })
    };
    let (own, pooled) = (of_mode("pool_mode = \"session\""), of_mode("default_pool_size = 1"));
    for more in ["", "TimeZone\0Europe/Rome\0DateStyle\0SQL, DMY\0application_name\0it\0"] {
        for is_extended in [false, true] {
            let want = heard(&own, more, is_extended);
            assert!(want.iter().filter(|(_, of)| !of.is_empty()).count() > 8, "{want:?}");
            let got = heard(&pooled, more, is_extended);
            for (want, got) in want.iter().zip(&got) {
                assert_eq!(want, got, "{more:?} {is_extended}");
            }
        }
    }
}
