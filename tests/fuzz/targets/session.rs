//! A whole session, its servers fake: a client that sends anything, or a server that answers anything.
//!
//! What must hold: nothing panics, the session ends when its client has gone, the client hears whole
//! messages and no more ReadyForQuery than it made requests, and who comes next finds each server
//! clean.

use pgward::wire;

use super::{Input, pieces};
use crate::support::script::{Raw, Scene};

/// Settings of the scene, as the transcripts write them.
const SCENES: [&str; 6] = [
    "shards=2",
    "guard=route",
    "shards=2 threshold=1 prepared=2 statements=3",
    "shards=2 batch=200 packet=4096",
    "guard=route replica threshold=1",
    "shards=2 replica",
];
/// What an honest client asks of a server that lies, and the message whose answer is the lie.
const SCRIPTS: [(&str, &str); 12] = [
    ("Query(\"SELECT 1\")", "Query"),
    ("Query(\"BEGIN\") Query(\"SELECT 2 FROM visits WHERE hospital_id = 'ID'\")", "Query"),
    ("Query(\"SELECT 2 FROM visits WHERE hospital_id = 'ID'\") Query(\"SELECT 3\")", "Query"),
    ("Parse(\"\",\"SELECT 1\") Bind(\"\",\"\") Execute(\"\") Sync", "Parse"),
    ("Parse(\"\",\"SELECT 1\") Bind(\"\",\"\") Execute(\"\") Sync", "Bind"),
    ("Parse(\"s\",\"SELECT 1\") Bind(\"p\",\"s\") Execute(\"p\") Sync", "Execute"),
    ("Parse(\"\",\"SELECT 1\") Bind(\"\",\"\") Execute(\"\") Sync", "Sync"),
    ("Parse(\"s\",\"SELECT 1\") Describe(S,\"s\") Sync Query(\"SELECT 1\")", "Parse"),
    ("Query(\"COPY visits (hospital_id) FROM STDIN\") CopyData(\"x\") CopyDone", "Query"),
    ("Query(\"SET application_name = 'x'\") Query(\"SELECT 1\")", "Query"),
    ("Parse(\"\",\"BEGIN\") Bind(\"\",\"\") Execute(\"\") Sync Query(\"SELECT 1\")", "Execute"),
    ("Query(\"SELECT 1\") Query(\"SELECT 2\") Query(\"ROLLBACK\")", "Query"),
];
/// A hospital of the first bucket.
const ID: &str = "00000000-0000-0000-0000-000000000000";
/// Longest stream that is worth a run.
const BYTES_MAX: usize = 64 << 10;

/// The scene, the choices of [`Input::cuts`], then what the client sends.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let setting = SCENES[usize::from(input.byte()) % SCENES.len()];
    let cuts = input.cuts();
    let stream = input.requests();
    if stream.len() > BYTES_MAX {
        return;
    }
    runtime().block_on(async {
        let mut scene = Scene::new(setting).await;
        let heard = scene.raw(&pieces(&stream, &cuts)).await;
        check_heard(&stream, &heard);
        check_next(&mut scene).await;
    });
}

/// The scene, what the client asks, whether the server ends then, and what it answers.
pub fn run_answers(data: &[u8]) {
    let mut input = Input(data);
    let setting = SCENES[usize::from(input.byte()) % SCENES.len()];
    let (script, lie) = SCRIPTS[usize::from(input.byte()) % SCRIPTS.len()];
    let after = if input.byte() % 4 == 1 { " close" } else { "" };
    let answer = input.replies();
    if answer.len() > BYTES_MAX {
        return;
    }
    let stream = Raw::bytes(&script.replace("ID", ID));
    runtime().block_on(async {
        let mut scene = Scene::new(setting).await;
        let hex: String = answer.iter().map(|byte| format!("{byte:02x}")).collect();
        scene.play(&format!("S0 on {lie} \"\": Raw({hex}){after}")).await;
        let heard = scene.raw(&[&stream]).await;
        check_heard(&stream, &heard);
        check_next(&mut scene).await;
    });
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// Whole messages, and no ReadyForQuery that nothing asked for.
fn check_heard(stream: &[u8], heard: &Raw) {
    let asked = tags(stream).0.iter().filter(|tag| b"QSF".contains(tag)).count();
    let (tags, _) = tags(&heard.bytes);
    let ready = tags.iter().filter(|tag| **tag == b'Z').count();
    assert!(ready <= asked, "{ready} times ready for {asked} requests: {}", heard.told());
    let is_known = |tag: &u8| b"123CDEGHINSTZcdnstAV".contains(tag);
    assert!(tags.iter().all(is_known), "not a message: {}", heard.told());
}

/// Tags of the whole messages at the front, and whether bytes are left over.
fn tags(mut bytes: &[u8]) -> (Vec<u8>, bool) {
    let mut tags = Vec::new();
    while let Ok(Some((tag, body))) = wire::peek(bytes, usize::MAX) {
        tags.push(tag);
        bytes = &bytes[wire::HEADER_BYTES + body.len()..];
    }
    (tags, !bytes.is_empty())
}

/// The next client finds the servers as if nobody had been there, and all are given back.
async fn check_next(scene: &mut Scene) {
    scene.forget_rules();
    for id in [ID, "00000000-0000-0000-0000-000000000063"] {
        let next =
            scene.ask(&format!("Query(\"SELECT 1 FROM visits WHERE hospital_id = '{id}'\")")).await;
        assert_eq!(
            next.told(),
            "RowDescription DataRow(\"1\") CommandComplete(\"SELECT 1\") ReadyForQuery(I)",
            "the next client"
        );
    }
    let left = scene.end().await;
    assert!(left.starts_with("= idle"), "{left}");
}
