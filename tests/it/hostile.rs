//! Bytes of a server that is broken, or that its network cuts anywhere.
//!
//! What a client gets must not depend on how a valid stream is cut; of an invalid one it gets nothing
//! from the fault on, and nothing panics.

use bytes::BytesMut;
use pgward::server::{Message, Pipeline};
use proptest::prelude::*;

use crate::fuzz::targets::server::{KINDS, Kind, MESSAGES, Step, check_bounds, feed};
use crate::support::notation::{backend, words};

fn any_rows() -> impl Strategy<Value = String> {
    let async_message = prop_oneof![
        4 => Just(""),
        1 => Just("NoticeResponse(01000)"),
        1 => Just("ParameterStatus(\"TimeZone\",\"UTC\")"),
    ];
    (prop::collection::vec(0..300usize, 0..5), async_message).prop_map(|(rows, news)| {
        let rows: Vec<_> = rows.iter().map(|n| format!("DataRow({n} bytes)")).collect();
        format!("{news} {} CommandComplete(\"SELECT 1\")", rows.join(" "))
    })
}

/// A batch and its replies; one of its messages may fail.
fn any_batch() -> impl Strategy<Value = Vec<Step>> {
    let kind = prop_oneof![3 => Just(Kind::Forward), 1 => Just(Kind::Swallow)];
    let member = (0..6usize, kind, any_rows()).prop_map(|(which, expect, rows)| {
        let (message, reply) = match which {
            0 => (Message::Parse, "ParseComplete".to_owned()),
            1 => (Message::Bind, "BindComplete".to_owned()),
            2 => (Message::Describe, "ParameterDescription(2) RowDescription".to_owned()),
            3 => (Message::Close, "CloseComplete".to_owned()),
            _ => (Message::Execute, rows),
        };
        let is_ours = which == 0 && expect == Kind::Swallow;
        let expect = if is_ours { Kind::Synthesize } else { expect };
        Step { message, expect, reply: if is_ours { String::new() } else { reply } }
    });
    let failing = prop::option::of((0..8usize, any::<bool>()));
    (prop::collection::vec(member, 0..8), failing).prop_map(|(mut steps, failing)| {
        if let Some((at, is_refusal)) = failing
            && at < steps.len()
        {
            let error = "ErrorResponse(22012)".to_owned();
            let expect = if is_refusal { Kind::Refuse } else { Kind::Forward };
            steps[at] = Step { message: Message::Bind, expect, reply: error };
            for skipped in &mut steps[at + 1..] {
                skipped.reply.clear();
            }
        }
        let (message, reply) = (Message::Sync, "ReadyForQuery(I)".to_owned());
        steps.push(Step { message, expect: Kind::Forward, reply });
        steps
    })
}

fn any_query() -> impl Strategy<Value = Vec<Step>> {
    any_rows().prop_map(|rows| {
        let reply = format!("RowDescription {rows} ReadyForQuery(I)");
        vec![Step { message: Message::Query, expect: Kind::Forward, reply }]
    })
}

fn replies_of(steps: &[Step]) -> Vec<u8> {
    steps.iter().flat_map(|step| words(&step.reply)).flat_map(|word| backend(&word)).collect()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

fn any_message() -> impl Strategy<Value = Message> {
    prop::sample::select(MESSAGES.to_vec())
}

/// Tags that exist, with lengths and bodies that may lie.
fn any_noise() -> impl Strategy<Value = Vec<u8>> {
    let tag = prop::sample::select(b"123CDEGHINSTZcdnstvARKWV?".to_vec());
    let frame =
        (tag, prop::collection::vec(any::<u8>(), 0..20), -3..3i32).prop_map(|(tag, body, lie)| {
            let length = body.len() as i32 + 4 + if lie.abs() == 2 { lie } else { 0 };
            [&[tag][..], &length.to_be_bytes(), &body].concat()
        });
    let garbage = prop::collection::vec(any::<u8>(), 0..40);
    let pieces = prop_oneof![4 => frame, 1 => garbage];
    prop::collection::vec(pieces, 0..12).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn however_replies_are_cut_the_client_gets_the_same(
        steps in prop_oneof![3 => any_batch(), 1 => any_query()],
        cuts in prop::collection::vec(any::<usize>(), 0..12),
    ) {
        let bytes = replies_of(&steps);
        let (whole, cut) = runtime().block_on(async {
            (feed(&steps, false, &bytes, &[]).await, feed(&steps, false, &bytes, &cuts).await)
        });
        prop_assert!(!whole.2, "a valid stream broke: {:?}", whole.1);
        prop_assert_eq!(whole, cut);
    }

    #[test]
    fn one_bad_message_ends_what_the_client_gets(
        steps in any_batch(),
        bad in prop_oneof![
            Just("Raw(5200000008 00000000)"), Just("Raw(4400000003)"), Just("Raw(44 ffffffff)"),
            Just("Raw(7600000004)"), Just("Raw(ff00000004)"), Just("Raw(5a0000000558)"),
        ],
        at in any::<prop::sample::Index>(),
        cuts in prop::collection::vec(any::<usize>(), 0..12),
    ) {
        let mut frames: Vec<Vec<u8>> =
            steps.iter().flat_map(|step| words(&step.reply)).map(|word| backend(&word)).collect();
        let at = at.index(frames.len());
        frames.insert(at, backend(&words(bad)[0]));
        let good: Vec<u8> = frames[..at].concat();
        let (got, want) = runtime().block_on(async {
            (feed(&steps, false, &frames.concat(), &cuts).await, feed(&steps, false, &good, &[]).await)
        });
        prop_assert!(got.2, "was taken for a reply");
        prop_assert!(want.0.starts_with(&got.0), "more than what came before the fault");
    }

    #[test]
    fn no_server_makes_a_connection_panic(
        messages in prop::collection::vec((any_message(), 0..4usize), 0..8),
        bytes in any_noise(),
        cuts in prop::collection::vec(any::<usize>(), 0..12),
    ) {
        let steps: Vec<Step> = messages
            .iter()
            .map(|(message, kind)| {
                Step { message: *message, expect: KINDS[*kind], reply: String::new() }
            })
            .collect();
        let fed = runtime().block_on(feed(&steps, false, &bytes, &cuts));
        check_bounds(&steps, &bytes, &fed);
    }

    #[test]
    fn replies_only_ever_settle_what_is_owed(
        messages in prop::collection::vec((any_message(), 0..4usize), 0..8),
        tags in prop::collection::vec((any::<u8>(), any::<u8>()), 0..40),
    ) {
        let mut pipeline = Pipeline::default();
        for (message, kind) in &messages {
            pipeline.push(*message, KINDS[*kind].expect());
        }
        let mut owed = pipeline.len();
        for (tag, status) in tags {
            pipeline.synthesize_into(&mut BytesMut::new());
            if pipeline.on_reply(tag, status).is_err() {
                break;
            }
            prop_assert!(pipeline.len() <= owed);
            owed = pipeline.len();
        }
    }
}
