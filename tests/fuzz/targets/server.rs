//! A server connection whose server is broken, lies, or has its bytes cut anywhere by its network.

use std::task::Poll;

use bytes::Bytes;
use pgward::net::{Buffer, Stream};
use pgward::server::login::Greeting;
use pgward::server::{Expect, Message, Reply, ServerConn, StatementId};
use pgward::wire::backend::ErrorReply;
use tokio::io::AsyncWriteExt;

use super::{Input, pieces};

/// What was sent, and what a server answers.
#[derive(Debug, Clone)]
pub struct Step {
    pub message: Message,
    pub expect: Kind,
    pub reply: String,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    Forward,
    Swallow,
    Synthesize,
    Refuse,
}

/// All of them.
pub const KINDS: [Kind; 4] = [Kind::Forward, Kind::Swallow, Kind::Synthesize, Kind::Refuse];
/// All messages that are answered.
pub const MESSAGES: [Message; 9] = [
    Message::Parse,
    Message::Bind,
    Message::Describe,
    Message::Execute,
    Message::Close,
    Message::Sync,
    Message::Query,
    Message::FunctionCall,
    Message::DescribeShared(StatementId(1)),
];

impl Kind {
    /// As the pipeline has it.
    pub fn expect(self) -> Expect {
        match self {
            Self::Forward => Expect::Forward,
            Self::Swallow => Expect::Swallow,
            Self::Synthesize => Expect::Synthesize(Bytes::from_static(b"1\0\0\0\x04")),
            Self::Refuse => Expect::Refuse(Box::new(ErrorReply::error("PW001", "no"))),
        }
    }
}

/// Up to seven messages that were sent, the choices of [`Input::cuts`], then the replies.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let count = input.byte() % 8;
    let steps: Vec<Step> = (0..count)
        .map(|_| {
            let byte = usize::from(input.byte());
            let (message, expect) = (MESSAGES[byte % 8], KINDS[byte / 8 % 4]);
            Step { message, expect, reply: String::new() }
        })
        .collect();
    let holds_errors = input.byte() % 2 == 1;
    let cuts = input.cuts();
    let bytes = input.replies();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let (whole, cut) = runtime.expect("a runtime").block_on(async {
        let whole = feed(&steps, holds_errors, &bytes, &[]).await;
        (whole, feed(&steps, holds_errors, &bytes, &cuts).await)
    });
    check_bounds(&steps, &bytes, &whole);
    assert_eq!(whole.2, cut.2, "broken, cut at {cuts:?}");
    match whole.2 {
        // Of an invalid stream the client gets no more than what came before the fault.
        true => assert!(whole.0.starts_with(&cut.0) || cut.0.starts_with(&whole.0)),
        false => assert_eq!(whole, cut, "cut at {cuts:?}"),
    }
}

/// Nothing is made up, and each ReadyForQuery belongs to a message that has one.
pub fn check_bounds(steps: &[Step], bytes: &[u8], (out, replies, _): &Fed) {
    let count = |kind| steps.iter().filter(|step| step.expect == kind).count();
    let ours = 5 * count(Kind::Synthesize) + 200 * count(Kind::Refuse);
    assert!(out.len() <= bytes.len() + ours, "{} bytes of {}", out.len(), bytes.len());
    let ready = replies.iter().filter(|reply| reply.starts_with("Ready")).count();
    let owners = [Message::Sync, Message::Query, Message::FunctionCall];
    assert!(ready <= steps.iter().filter(|step| owners.contains(&step.message)).count());
}

/// Bytes for the client, replies for the session, and whether the connection broke.
pub type Fed = (Vec<u8>, Vec<String>, bool);

/// What a server connection makes of `bytes`, cut at `cuts`.
pub async fn feed(steps: &[Step], holds_errors: bool, bytes: &[u8], cuts: &[usize]) -> Fed {
    let (near, mut far) = tokio::io::duplex(1 << 20);
    let mut conn = ServerConn::new(Greeting {
        stream: Stream::Memory(Box::new(near)),
        buffer: Buffer::default(),
        parameters: Vec::new(),
        pid: 1,
        key: Bytes::from_static(b"key!"),
        way: None,
    });
    conn.begin_request(holds_errors);
    for step in steps {
        match step.expect.expect() {
            Expect::Synthesize(reply) => conn.synthesize(step.message, reply),
            expect => conn.send(step.message, expect, |_| {}),
        }
    }
    let mut out = Buffer::default();
    let mut replies = Vec::new();
    conn.synthesize_into(&mut out);
    for piece in pieces(bytes, cuts) {
        far.write_all(piece).await.expect("room in the pipe");
        // Whatever is in the pipe, however many reads it takes.
        while let Some(read) = fill(&mut conn).await {
            if !read {
                return (out.as_slice().to_vec(), replies, true);
            }
            loop {
                match conn.next_reply(&mut out) {
                    Ok(Some(reply)) => replies.push(told(&reply)),
                    Ok(None) => break,
                    Err(_) => {
                        assert!(conn.is_broken() && !conn.is_clean());
                        return (out.as_slice().to_vec(), replies, true);
                    }
                }
            }
        }
    }
    let is_waiting = !conn.pipeline().is_empty() || conn.pipeline().is_unsynced();
    assert!(!(conn.is_clean() && is_waiting));
    (out.as_slice().to_vec(), replies, conn.is_broken())
}

/// Reads once: whether that went well. `None`: nothing is there.
async fn fill(conn: &mut ServerConn) -> Option<bool> {
    std::future::poll_fn(|cx| match conn.poll_fill(cx) {
        Poll::Ready(read) => Poll::Ready(Some(read.is_ok())),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

fn told(reply: &Reply) -> String {
    match reply {
        Reply::Ready { status, forwarded } => format!("Ready {status:?} {forwarded}"),
        Reply::Error(error) => format!("Error {} {:?}", error.code(), error.message),
        Reply::Complete { kind, forwarded, .. } => format!("Complete {kind} {forwarded}"),
        Reply::Described { id, shape, forwarded } => {
            format!("Described {id:?} {shape:?} {forwarded}")
        }
        Reply::CopyIn => "CopyIn".to_owned(),
        Reply::Parameter { name, .. } => format!("Parameter {name}"),
    }
}
