//! Tables of events for the election and the freshness rule, and what readers see of them.

use super::health::{Accepted, Alarm, Answer, ShardHealth, end_of_records};
use super::*;

const FOR_EVER: u64 = u64::MAX / 4;

fn writes(timeline: u32, lsn: u64) -> Answer {
    Answer { is_in_recovery: false, timeline, lsn, system: 7 }
}

fn replays(timeline: u32, lsn: u64) -> Answer {
    Answer { is_in_recovery: true, timeline, lsn, system: 7 }
}

fn of_system(system: u64, answer: Answer) -> Answer {
    Answer { system, ..answer }
}

enum Event {
    /// Host answers a question sent at the time; it arrives one tick later and counts for 100.
    Answers(usize, u64, Answer),
    /// Host is silent at the time.
    Silent(usize, u64),
}
use Event::{Answers, Silent};

fn after(events: &[Event]) -> ShardHealth {
    let mut health = ShardHealth::new(3);
    for event in events {
        match *event {
            Answers(host, at, answer) => health.on_answer(host, answer, at, at + 1, at + 101),
            Silent(host, at) => health.on_silence(host, at),
        }
    }
    health
}

#[test]
fn the_primary_is_who_writes_on_the_highest_timeline() {
    type Case = (&'static str, Vec<Event>, Option<usize>, Option<Alarm>);
    let cases: Vec<Case> = vec![
        ("nobody answered", vec![], None, None),
        ("one writes", vec![Answers(0, 10, writes(1, 5))], Some(0), None),
        ("replicas only", vec![Answers(1, 10, replays(1, 5))], None, None),
        (
            "the map's replica writes, and its primary was not asked yet",
            vec![Answers(1, 10, writes(2, 5)), Silent(2, 11)],
            None,
            None,
        ),
        (
            "the map's replica writes, its primary is silent",
            vec![Answers(1, 10, writes(2, 5)), Silent(2, 11), Silent(0, 12)],
            Some(1),
            None,
        ),
        (
            "two write, one timeline is higher",
            vec![Answers(0, 10, writes(1, 9)), Answers(1, 11, writes(2, 5))],
            Some(1),
            Some(Alarm::OldTimeline),
        ),
        (
            "two write on one timeline",
            vec![Answers(0, 10, writes(1, 9)), Answers(1, 11, writes(1, 5))],
            None,
            Some(Alarm::TwoPrimaries),
        ),
        (
            "one of two is gone",
            vec![Answers(0, 10, writes(1, 9)), Answers(1, 11, writes(1, 5)), Silent(0, 12)],
            Some(1),
            None,
        ),
        (
            "an old primary comes back when the new one is silent",
            vec![
                Answers(0, 10, writes(1, 9)),
                Answers(1, 11, writes(2, 10)),
                Silent(1, 12),
                Answers(0, 13, writes(1, 9)),
            ],
            None,
            Some(Alarm::OldTimeline),
        ),
        (
            "promotion",
            vec![
                Answers(0, 10, writes(1, 9)),
                Answers(1, 10, replays(1, 9)),
                Silent(0, 20),
                Answers(1, 30, writes(2, 10)),
            ],
            Some(1),
            None,
        ),
        ("demotion", vec![Answers(0, 10, writes(1, 9)), Answers(0, 20, replays(2, 9))], None, None),
        (
            "the answer is too old when another host answers",
            vec![Answers(0, 10, writes(1, 9)), Answers(1, 200, replays(1, 9))],
            None,
            None,
        ),
        (
            "restart on the same timeline",
            vec![Answers(0, 10, writes(3, 9)), Silent(0, 20), Answers(0, 30, writes(3, 7))],
            Some(0),
            None,
        ),
        (
            "a cluster made anew at the same address",
            vec![
                Answers(0, 10, writes(3, 9)),
                Silent(0, 20),
                Answers(0, 30, of_system(8, writes(1, 1))),
            ],
            Some(0),
            None,
        ),
        (
            "somebody else's primary at a replica's address",
            vec![Answers(0, 10, writes(1, 9)), Answers(1, 11, of_system(8, writes(5, 1)))],
            Some(0),
            Some(Alarm::ForeignHost),
        ),
        (
            "somebody else's primary alone",
            vec![
                Answers(0, 10, writes(1, 9)),
                Silent(0, 11),
                Answers(1, 12, of_system(8, writes(5, 1))),
            ],
            None,
            Some(Alarm::ForeignHost),
        ),
        (
            "two clusters, one of them accepted while the map's primary was silent",
            vec![
                Silent(0, 10),
                Silent(2, 10),
                Answers(1, 11, of_system(8, writes(5, 1))),
                Answers(0, 12, writes(1, 9)),
            ],
            None,
            Some(Alarm::ForeignHost),
        ),
        (
            "two clusters, the wrong one is faster",
            vec![
                Silent(2, 10),
                Answers(1, 11, of_system(8, writes(5, 1))),
                Answers(0, 12, writes(1, 9)),
            ],
            Some(0),
            Some(Alarm::ForeignHost),
        ),
        (
            "a replica of another cluster",
            vec![Answers(0, 10, writes(1, 9)), Answers(1, 11, of_system(8, replays(1, 9)))],
            Some(0),
            Some(Alarm::ForeignHost),
        ),
    ];
    for (name, events, primary, alarm) in cases {
        let health = after(&events);
        assert_eq!(health.primary().map(|(host, _)| host), primary, "{name}");
        assert_eq!(health.alarm(), alarm, "{name}");
    }
}

#[test]
fn a_replica_is_fresh_as_of_the_latest_sample_that_it_reached() {
    // Host 1's fresh_as_of, and whether it may serve at all.
    let cases: Vec<(&str, Vec<Event>, u64, bool)> = vec![
        ("no primary was ever seen", vec![Answers(1, 10, replays(1, 5))], 0, true),
        (
            "behind every sample",
            vec![Answers(0, 10, writes(1, 9)), Answers(1, 20, replays(1, 8))],
            0,
            true,
        ),
        (
            "reaches a sample",
            vec![Answers(0, 10, writes(1, 9)), Answers(1, 20, replays(1, 9))],
            10,
            true,
        ),
        (
            "reaches the older of two",
            vec![
                Answers(0, 10, writes(1, 9)),
                Answers(0, 20, writes(1, 12)),
                Answers(1, 30, replays(1, 11)),
            ],
            10,
            true,
        ),
        (
            "idle primary: a later question of the same LSN proves more",
            vec![
                Answers(0, 10, writes(1, 9)),
                Answers(1, 15, replays(1, 9)),
                Answers(0, 20, writes(1, 9)),
            ],
            20,
            true,
        ),
        (
            "stays fresh while the primary is silent",
            vec![
                Answers(0, 10, writes(1, 9)),
                Answers(1, 15, replays(1, 9)),
                Silent(0, 20),
                Answers(1, 30, replays(1, 9)),
            ],
            10,
            true,
        ),
        (
            "another timeline",
            vec![Answers(0, 10, writes(2, 9)), Answers(1, 20, replays(1, 20))],
            0,
            false,
        ),
        (
            "another cluster",
            vec![Answers(0, 10, writes(1, 9)), Answers(1, 20, of_system(8, replays(1, 20)))],
            0,
            false,
        ),
        (
            "a new primary: nothing is fresh in its eyes until it was asked",
            vec![
                Answers(0, 10, writes(1, 9)),
                Answers(1, 20, replays(1, 9)),
                Answers(2, 30, writes(2, 15)),
            ],
            0,
            false,
        ),
        (
            "follows the new primary",
            vec![
                Answers(0, 10, writes(1, 9)),
                Answers(1, 20, replays(1, 9)),
                Answers(2, 30, writes(2, 15)),
                Answers(1, 40, replays(2, 15)),
            ],
            30,
            true,
        ),
        (
            "its log went back: it was rebuilt",
            vec![
                Answers(0, 10, writes(1, 9)),
                Answers(1, 20, replays(1, 9)),
                Answers(1, 30, replays(1, 3)),
            ],
            0,
            true,
        ),
        (
            "the primary crashed and lost what was not flushed: old samples are void",
            vec![
                Answers(0, 10, writes(1, 9)),
                Silent(0, 15),
                Answers(0, 20, writes(1, 7)),
                Answers(1, 30, replays(1, 8)),
            ],
            20,
            true,
        ),
        (
            "silent",
            vec![Answers(0, 10, writes(1, 9)), Answers(1, 20, replays(1, 9)), Silent(1, 30)],
            10,
            false,
        ),
    ];
    for (name, events, fresh_as_of, may_serve) in cases {
        let health = after(&events);
        assert_eq!(health.hosts()[1].fresh_as_of, fresh_as_of, "{name}");
        assert_eq!(health.replica_until(1) > 40, may_serve, "{name}");
    }
}

#[test]
fn many_samples_are_thinned_and_still_ordered() {
    let mut health = ShardHealth::new(2);
    for n in 1..10_000u64 {
        health.on_answer(0, writes(1, n * 10), n, n, FOR_EVER);
    }
    // A replica far behind still finds some sample, and never one that it has not reached.
    let mut last = 0;
    for lsn in [5, 10, 50_000, 99_000, 99_895, 99_990, 200_000] {
        health.on_answer(1, replays(1, lsn), 10_000, 10_000, FOR_EVER);
        let fresh = health.hosts()[1].fresh_as_of;
        assert!(fresh * 10 <= lsn, "lsn {lsn} is not fresh as of {fresh}");
        assert!(fresh >= last);
        last = fresh;
    }
    assert_eq!(last, 9_999);
}

#[test]
fn a_position_behind_a_page_header_is_the_end_of_the_page_before() {
    let segment = 16 << 20;
    for (insert, end) in [
        (0x0300_0028, 0x0300_0000), // segment start, as after pg_switch_wal
        (0x0300_2018, 0x0300_2000), // page start
        (0x0300_2028, 0x0300_2028), // a record of 16 bytes behind a page header
        (0x0300_0018, 0x0300_0018), // can't be: a segment starts with 40 bytes
        (0x0300_1234, 0x0300_1234),
    ] {
        assert_eq!(end_of_records(insert, 8192, segment), end, "{insert:x}");
    }
    assert_eq!(end_of_records(0x28, 0, 0), 0x28);
}

fn settings() -> FleetSettings {
    FleetSettings {
        health_interval: Duration::from_millis(1000),
        freshness_interval: Duration::from_millis(100),
        probe_timeout: Duration::from_millis(500),
        user: "probe".into(),
        secret: Some("very secret".into()),
    }
}

fn shard(id: u16, hosts: &[&str]) -> Shard {
    let address = |host: &&str| Address { host: host.to_string(), port: 5432 };
    Shard {
        id: ShardId(id),
        region: "europe".into(),
        primary: address(&hosts[0]),
        replicas: hosts[1..].iter().map(address).collect(),
        database: "hospital".into(),
        tls: Default::default(),
    }
}

#[tokio::test(start_paused = true)]
async fn answers_become_unknown_with_time() {
    let fleet = Fleet::of_shards(&[shard(3, &["a", "b"])], settings());
    let state = fleet.shard(ShardId(3)).unwrap();
    assert_eq!(state.primary(), None);
    assert_eq!(state.fresh_replicas(None), 0);

    let sent_at = fleet.now();
    state.on_answer(0, writes(1, 9), sent_at);
    state.on_answer(1, replays(1, 9), sent_at);
    assert_eq!(state.primary(), Some(0));
    assert_eq!(state.fresh_replicas(None), 0b10);
    assert_eq!(state.fresh_replicas(Some(sent_at - 1)), 0b10);
    assert_eq!(state.fresh_replicas(Some(sent_at)), 0, "a sample asked at t is not after t");

    // In use: two freshness intervals of 100 ms.
    tokio::time::advance(Duration::from_millis(199)).await;
    assert_eq!(state.primary(), Some(0));
    tokio::time::advance(Duration::from_millis(2)).await;
    assert_eq!(state.primary(), None);
    assert_eq!(state.fresh_replicas(None), 0);
    assert_eq!(state.hosts()[0].standing, Standing::Unknown);
}

#[tokio::test(start_paused = true)]
async fn a_write_is_read_from_replicas_that_have_it_only() {
    let fleet = Fleet::of_shards(&[shard(0, &["a", "b", "c"])], settings());
    let state = fleet.shard(ShardId(0)).unwrap();
    state.on_answer(0, writes(1, 100), fleet.now());
    state.on_answer(1, replays(1, 100), fleet.now());
    state.on_answer(2, replays(1, 100), fleet.now());

    tokio::time::advance(Duration::from_millis(10)).await;
    let outcome_seen_at = fleet.now();
    assert_eq!(state.fresh_replicas(Some(outcome_seen_at)), 0);

    tokio::time::advance(Duration::from_millis(10)).await;
    state.on_answer(0, writes(1, 150), fleet.now());
    state.on_answer(1, replays(1, 149), fleet.now());
    state.on_answer(2, replays(1, 150), fleet.now());
    assert_eq!(state.fresh_replicas(Some(outcome_seen_at)), 0b100);
    assert_eq!(state.fresh_replicas(None), 0b110);
}

#[tokio::test(start_paused = true)]
async fn a_reported_failure_counts_at_once_and_waiters_wake_on_the_next_answer() {
    let fleet = Fleet::of_shards(&[shard(0, &["a", "b"])], settings());
    let state = fleet.shard(ShardId(0)).unwrap();
    state.on_answer(0, writes(1, 9), fleet.now());
    assert_eq!(state.wait_for_primary().await, 0);

    state.report_failure(0);
    assert_eq!(state.primary(), None);
    let waiter = tokio::spawn({
        let state = state.clone();
        async move { state.wait_for_primary().await }
    });
    tokio::task::yield_now().await;
    assert!(!waiter.is_finished());
    state.on_answer(1, writes(2, 10), fleet.now());
    assert_eq!(waiter.await.unwrap(), 1);

    // Reports that come faster than answers could are dropped.
    state.on_answer(0, replays(2, 10), fleet.now());
    state.report_failure(1);
    assert_eq!(state.primary(), None);
    state.on_answer(1, writes(2, 10), fleet.now());
    state.report_failure(1);
    assert_eq!(state.primary(), Some(1));
    state.report_failure(99);
}

#[tokio::test(start_paused = true)]
async fn a_reload_keeps_what_is_known_of_hosts_that_stay() {
    let fleet = Fleet::of_shards(&[shard(0, &["a", "b"]), shard(1, &["x"])], settings());
    let (first, second) = (fleet.shard(ShardId(0)).unwrap(), fleet.shard(ShardId(1)).unwrap());
    first.on_answer(0, writes(4, 9), fleet.now());
    first.on_answer(1, replays(4, 9), fleet.now());

    fleet.apply_shards(&[shard(0, &["c", "a"]), shard(1, &["x"])]);
    assert!(Arc::ptr_eq(&second, &fleet.shard(ShardId(1)).unwrap()));
    let moved = fleet.shard(ShardId(0)).unwrap();
    assert!(!Arc::ptr_eq(&first, &moved));
    assert_eq!(moved.primary(), Some(1), "host a moved to index 1");
    moved.on_answer(0, writes(3, 9), fleet.now());
    assert_eq!(moved.primary(), Some(1), "the floor of timelines is kept");
    let accepted = lock(&moved.known).health.accepted();
    assert_eq!(accepted, Some(Accepted { host: 1, timeline: 4, system: 7 }));

    fleet.apply_shards(&[shard(1, &["x"])]);
    assert!(fleet.shard(ShardId(0)).is_none());
}

#[test]
fn the_secret_is_not_shown() {
    assert!(!format!("{:?}", settings()).contains("very secret"));
}

proptest::proptest! {
    /// Whatever hosts say, in whatever order: the primary writes, on the highest timeline accepted
    /// so far, and a replica is never fresh as of a sample beyond what it replayed.
    #[test]
    fn no_history_makes_a_stale_replica_fresh(
        events in proptest::collection::vec((0usize..3, 0u64..40, 1u32..4, proptest::bool::ANY), 1..60)
    ) {
        let mut health = ShardHealth::new(3);
        let mut samples: Vec<(u64, u64, u32)> = Vec::new();
        let mut floor = 0;
        for (now, (host, lsn, timeline, recovers)) in (1u64..).zip(events) {
            let answer = Answer { is_in_recovery: recovers, timeline, lsn, system: 7 };
            health.on_answer(host, answer, now, now, now + 5);
            if let Some((primary, _)) = health.primary() {
                let said = health.hosts()[primary].last.unwrap();
                assert!(!said.is_in_recovery && said.timeline >= floor);
                floor = said.timeline;
                if primary == host {
                    samples.push((now, lsn, timeline));
                }
            }
            for host in health.hosts().iter().filter(|host| host.fresh_as_of > 0) {
                let said = host.last.unwrap();
                let Some(&(_, sample, sampled_on)) =
                    samples.iter().find(|sample| sample.0 == host.fresh_as_of) else { continue };
                if said.is_in_recovery {
                    assert!(said.lsn >= sample && said.timeline == sampled_on);
                }
            }
        }
    }
}
