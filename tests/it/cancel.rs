//! Cancel requests: they hit what runs for their client and nothing else, wherever it runs and
//! whichever pgward they come to; and what a client that vanishes leaves running.

use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::support::raw::{flush, query, sync};
use crate::support::*;

const SLEEP: &str = "SELECT pg_sleep(60)";

/// One unguarded shard, so that anything may run.
fn unguarded(shards: &Shards) -> Option<String> {
    Some(one_shard_map(shards.primary.port(), "shard0"))
}

fn base<'a>(more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let mut config = vec![("auth", "auth_type = \"trust\""), ("guard", "mode = \"route\"")];
    config.extend(more);
    config
}

/// Statements with `marker` that run on the primary now.
fn running(shards: &Shards, marker: &str) -> usize {
    let sql = format!(
        "SELECT count(*) FROM pg_stat_activity
         WHERE query LIKE '%{marker}%' AND state = 'active' AND pid <> pg_backend_pid()"
    );
    shards.psql(0, &sql).trim().parse().expect("a count")
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + PATIENCE;
    while !holds() {
        assert!(std::time::Instant::now() < deadline, "{what}");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

#[test]
fn keys_are_as_long_as_the_protocol_says() {
    let shards = shards();
    let config = base(&[]);
    let options = WardOptions { map: unguarded(shards), config: &config };
    let ward = Ward::start(shards, &options);
    for (minor, bytes) in [(0, 4), (1, 4), (2, 32), (3, 32), (9999, 32)] {
        let mut client = Cancellable::login(&ward, Login { minor, ..Login::default() });
        assert_eq!(client.key.len(), bytes, "3.{minor}");
        client.raw.send(&query(&format!("{SLEEP} /* k{minor} */")));
        wait_until("it runs", || running(shards, &format!("k{minor} ")) == 1);
        client.cancel_at(ward.port);
        let answer = client.raw.until(b'Z').expect("an answer");
        assert_eq!(code_of(&answer), "57014");
        assert_eq!(client.code("SELECT 1"), "", "the connection stays");
    }
}

#[test]
fn a_cancel_reaches_a_client_that_waits_and_gets_in_when_all_is_full() {
    let shards = shards();
    let config = base(&[("pool", "default_pool_size = 1"), ("listen", "max_client_conn = 2")]);
    let options = WardOptions { map: unguarded(shards), config: &config };
    for minor in [0, 2] {
        // Of its own: the last clients of one before may still have their places.
        let ward = Ward::start(shards, &options);
        let login = Login { minor, ..Login::default() };
        let mut holder = Cancellable::login(&ward, login);
        holder.raw.send(&query(&format!("{SLEEP} /* full{minor} */")));
        wait_until("it runs", || running(shards, &format!("full{minor} ")) == 1);
        let mut waiter = Cancellable::login(&ward, login);
        // No client more gets in.
        assert!(Cancellable::try_login(&ward, login).is_err_and(|m| code_of(&m) == "53300"));
        waiter.raw.send(&query("SELECT 'must not run'"));
        std::thread::sleep(std::time::Duration::from_millis(50));
        // Neither a wrong key nor another's pid is good for anything.
        send_cancel(ward.port, waiter.pid, &holder.key);
        send_cancel(ward.port, holder.pid, &waiter.key);
        send_cancel(ward.port, 1, &waiter.key);
        send_cancel(ward.port, waiter.pid, &vec![0; waiter.key.len()]);
        waiter.cancel_at(ward.port);
        let answer = waiter.raw.until(b'Z').expect("an answer");
        assert_eq!(words_of(&answer), "canceling statement due to user request");
        assert_eq!(running(shards, &format!("full{minor} ")), 1, "the other one's runs on");
        holder.cancel_at(ward.port);
        assert_eq!(code_of(&holder.raw.until(b'Z').expect("an answer")), "57014");
        assert_eq!(
            (holder.code("SELECT 1"), waiter.code("SELECT 1")),
            (String::new(), String::new())
        );
        drop((holder, waiter));
        wait_until("both places are free", || {
            let both = [(); 2].map(|()| Cancellable::try_login(&ward, login));
            both.iter().all(Result::is_ok)
        });
    }
}

#[test]
fn cancels_race_with_the_end_of_queries_and_hit_nobody_else() {
    let shards = shards();
    let config = base(&[("pool", "default_pool_size = 2")]);
    let options = WardOptions { map: unguarded(shards), config: &config };
    let ward = Ward::start(shards, &options);
    let is_over = AtomicBool::new(false);
    let (answered, hit_by_others) = (AtomicU32::new(0), AtomicU32::new(0));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut client = Cancellable::login(&ward, Login::default());
                while !is_over.load(Ordering::Relaxed) {
                    let is_hit = !client.code("SELECT pg_sleep(0.002)").is_empty();
                    hit_by_others.fetch_add(u32::from(is_hit), Ordering::Relaxed);
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let cancelled: Vec<_> = (0..4)
            .map(|n| {
                let (ward, answered) = (&ward, &answered);
                scope.spawn(move || {
                    let login = Login { minor: if n % 2 == 0 { 0 } else { 2 }, ..Login::default() };
                    let mut client = Cancellable::login(ward, login);
                    let (mut hits, mut round) = (0, 0);
                    // However busy the machine is: until the others had their share, too.
                    while round < 60 || answered.load(Ordering::Relaxed) < 60 {
                        round += 1;
                        client.raw.send(&query("SELECT pg_sleep(0.004)"));
                        client.cancel_at(ward.port);
                        let answer = client.raw.until(b'Z').expect("an answer");
                        match code_of(&answer).as_str() {
                            "" => {}
                            "57014" => hits += 1,
                            other => panic!("{other}: {answer:?}"),
                        }
                    }
                    (hits, round)
                })
            })
            .collect();
        let outcomes = cancelled.into_iter().map(|thread| thread.join());
        let outcomes: Vec<(u32, u32)> = outcomes.filter_map(Result::ok).collect();
        is_over.store(true, Ordering::Relaxed);
        assert_eq!(outcomes.len(), 4, "a client that panicked has said why");
        let hits: u32 = outcomes.iter().map(|(hits, _)| hits).sum();
        let rounds: u32 = outcomes.iter().map(|(_, rounds)| rounds).sum();
        let others = answered.load(Ordering::Relaxed);
        eprintln!("cancels: {hits} of {rounds} hit theirs, {others} queries of others none");
        assert!(hits > 0);
        assert_eq!(hit_by_others.load(Ordering::Relaxed), 0, "hit by another's");
    });
}

#[test]
fn a_storm_of_cancels_keeps_nobody_from_logging_in() {
    let shards = shards();
    let config =
        base(&[("listen", "max_client_conn = 5"), ("listen", "max_logins_per_address = 20")]);
    let options = WardOptions { map: unguarded(shards), config: &config };
    let ward = Ward::start(shards, &options);
    let mut client = Cancellable::login(&ward, Login::default());
    // A server that takes long to look at cancels: each of these stays until it does.
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..12 {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    send_cancel(ward.port, client.pid, &client.key);
                }
            });
        }
        for _ in 0..30 {
            drop(Cancellable::login(&ward, Login::default()));
        }
        is_over.store(true, Ordering::Relaxed);
    });
    assert_eq!(client.code("SELECT 1"), "");
}

#[test]
fn what_a_vanished_client_ran_is_cancelled() {
    let shards = shards();
    let config = base(&[("pool", "default_pool_size = 1")]);
    let options = WardOptions { map: unguarded(shards), config: &config };
    let ward = Ward::start(shards, &options);
    let copy = "COPY (SELECT n, pg_sleep(0.01) FROM generate_series(1, 100000) n) TO STDOUT";
    let block = [query("BEGIN"), query(&format!("{SLEEP} /* vanish4 */"))].concat();
    for (number, request) in [
        query(&format!("{SLEEP} /* vanish0 */")),
        [batch(&format!("{SLEEP} /* vanish1 */"), &[]), sync()].concat(),
        [batch(&format!("{SLEEP} /* vanish2 */"), &[]), flush()].concat(),
        query(&format!("{copy} /* vanish3 */")),
        block,
        query("COPY hospitals FROM STDIN /* vanish5 */"),
    ]
    .into_iter()
    .enumerate()
    {
        let marker = format!("vanish{number} ");
        let mut client = Cancellable::login(&ward, Login::default());
        client.raw.send(&request);
        wait_until(&marker, || running(shards, &marker) == 1);
        client.raw.stream.shutdown(Shutdown::Both).expect("gone");
        wait_until(&format!("{marker} ends"), || running(shards, &marker) == 0);
        // The pool has one server: it is back, or its place is.
        assert_eq!(Cancellable::login(&ward, Login::default()).code("SELECT 1"), "", "{marker}");
    }
}

#[test]
fn peers_pass_each_others_cancels_on() {
    let shards = shards();
    let ports = [(); 3].map(|()| pgward::cli::local::free_port().expect("a port"));
    let [port, one, two] = ports;
    let sections = format!(
        "\n[[peer]]\nid = 1\nhost = \"127.0.0.1\"\nport = {one}\n\
         \n[[peer]]\nid = 2\nhost = \"localhost\"\nport = {two}\n"
    );
    let start = |id: u16, address: u16| {
        let (id, address) =
            (format!("peer_id = {id}"), format!("peer_address = \"127.0.0.1:{address}\""));
        let config = base(&[
            ("listen", "so_reuseport = true"),
            ("listen", &id),
            ("listen", &address),
            ("pool", "default_pool_size = 40"),
        ]);
        let options = WardOptions { map: unguarded(shards), config: &config };
        let extra = Extra { port: Some(port), sections: &sections, ..Extra::default() };
        Ward::start_with(shards, &options, &extra)
    };
    let wards = [start(1, one), start(2, two)];
    // Connections are spread by the kernel: as many as it takes to have some of each kind at both.
    let shard_session = "options\0-c pgward.shard=0\0";
    let kinds = [
        Login { minor: 0, ..Login::default() },
        Login { minor: 2, ..Login::default() },
        Login { user: "migrate", minor: 0, more: shard_session },
        Login { user: "migrate", minor: 2, more: shard_session },
    ];
    let mut clients = Vec::new();
    let mut seen = std::collections::HashSet::new();
    for round in 0.. {
        assert!(round < 40, "the kernel gives all connections to one");
        for (kind, login) in kinds.iter().enumerate() {
            let client = Cancellable::login(&wards[0], *login);
            let is_own = client.pid >= 1 << 30;
            assert_eq!(is_own, kind < 2, "a session on one shard has its server's pid");
            if kind == 0 {
                seen.insert((client.pid >> 20) & 1023);
            }
            clients.push((kind, client));
        }
        if seen.len() == 2 && round >= 3 {
            break;
        }
    }
    assert_eq!(seen, [1, 2].into_iter().collect());
    for (number, (_, client)) in clients.iter_mut().enumerate() {
        client.raw.send(&query(&format!("{SLEEP} /* peers{number} */")));
        wait_until("it runs", || running(shards, &format!("peers{number} ")) == 1);
    }
    // Through the shared port, to whichever; through each one's own address in turn.
    for (number, (kind, client)) in clients.iter_mut().enumerate() {
        client.cancel_at([port, one, two][number / 4 % 3]);
        let answer = client.raw.until(b'Z').expect("an answer");
        assert_eq!(code_of(&answer), "57014", "client {number}, kind {kind}");
        assert_eq!(client.code("SELECT 1"), "", "the connection stays");
    }
    // What nobody knows does not go round, and ends.
    send_cancel(one, 4711, b"none");
    send_cancel(two, clients[0].1.pid, b"none");
    let shared = Ward::client_config(&wards[0]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut config = shared;
        let console = config.dbname("pgward").user("admin");
        let console = wards[0].connect_with(console).await.expect("the console");
        let rows = simple(&console, "SHOW PEERS").await.expect("SHOW PEERS");
        assert_eq!(rows, [format!("1|127.0.0.1|{one}|"), format!("2|localhost|{two}|")]);
    });
    // At its own address a pgward takes nothing but cancels.
    let mut raw = Raw { stream: std::net::TcpStream::connect(("127.0.0.1", one)).expect("there") };
    raw.send(&crate::support::raw::startup(0x0003_0000));
    assert_eq!(words_of(&raw.until_closed()), "only cancel requests are taken here");
}
