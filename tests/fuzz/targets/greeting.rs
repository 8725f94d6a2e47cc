//! A server that pgward logs in to, and that says whatever it likes.

use std::time::Duration;

use pgward::auth::{ServerCredentials, ServerSecret};
use pgward::net::Stream;
use pgward::net::tls::Connector;
use pgward::server::login::{ConnectError, Greeting, Target, log_in};
use pgward::shard_map::Address;
use pgward::wire;
use tokio::io::AsyncWriteExt;

use super::{Input, paused, pieces};

/// Whether a secret is configured, the choices of [`Input::cuts`], then what the server says.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let has_secret = input.byte() % 2 == 1;
    let cuts = input.cuts();
    let stream = input.0;
    if has_many_iterations(stream) {
        return;
    }
    let whole = paused().block_on(outcome(has_secret, &[stream]));
    let cut = paused().block_on(outcome(has_secret, &pieces(stream, &cuts)));
    assert_eq!(whole, cut, "cut at {cuts:?}");
    if whole.starts_with("ready") {
        assert!(!proves(stream), "believed in the middle of SCRAM");
    }
}

/// It asks for a SCRAM proof: then it can't be right, for it does not know our nonce.
fn proves(mut stream: &[u8]) -> bool {
    while let Ok(Some((tag, body))) = wire::peek(stream, usize::MAX) {
        match (tag, body.first_chunk::<4>()) {
            (b'R', Some([0, 0, 0, 0])) => return false,
            (b'R', Some([0, 0, 0, 10])) => return true,
            _ => stream = &stream[wire::HEADER_BYTES + body.len()..],
        }
    }
    false
}

fn has_many_iterations(stream: &[u8]) -> bool {
    let is_many =
        |window: &[u8]| &window[..2] == b"i=" && window[2..].iter().all(u8::is_ascii_digit);
    stream.windows(5).any(is_many)
}

async fn outcome(has_secret: bool, pieces: &[&[u8]]) -> String {
    let secret = has_secret.then(|| ServerSecret::plain("pencil"));
    let credentials = ServerCredentials::new("app", secret);
    let address = Address { host: "localhost".into(), port: 5432 };
    let target = Target::new(address, Connector::plain(), "shard0".into(), &credentials);
    let (near, mut far) = tokio::io::duplex(1 << 20);
    let login = tokio::spawn(async move {
        let login = log_in(Stream::Memory(Box::new(near)), &target);
        match tokio::time::timeout(Duration::from_secs(60), login).await {
            Ok(Ok(greeting)) => told(&greeting),
            Ok(Err(ConnectError::Io(_))) => "io".to_owned(),
            Ok(Err(error)) => error.to_string(),
            Err(_) => panic!("waits for a server that has gone"),
        }
    });
    for piece in pieces {
        let _ = far.write_all(piece).await;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let _ = far.shutdown().await;
    login.await.expect("no panic")
}

fn told(greeting: &Greeting) -> String {
    assert!((4..=256).contains(&greeting.key.len()), "a key of {} bytes", greeting.key.len());
    format!("ready {:?} {} {:?}", greeting.parameters, greeting.pid, greeting.key)
}
