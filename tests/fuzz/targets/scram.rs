//! SCRAM, both sides: clients that know no secret, and servers that know none.

use std::sync::OnceLock;

use pgward::auth::Secret;
use pgward::auth::scram::{ClientExchange, ServerExchange, Verifier};

use super::Input;

/// Length of an iteration count that is worth computing here.
const DIGITS_MAX: usize = 2;

/// The side, then two messages with a newline between them, in which `NONCE` stands for the other
/// side's.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let is_client = input.byte() % 2 == 0;
    let (first, last) = match input.0.iter().position(|byte| *byte == b'\n') {
        Some(at) => (&input.0[..at], &input.0[at + 1..]),
        None => (input.0, &b""[..]),
    };
    match is_client {
        true => client(first, last),
        false => server(first, last),
    }
    if let Some(verifier) = std::str::from_utf8(input.0).ok().and_then(Verifier::parse) {
        // One that is not ours: it must be usable all the same.
        let first = b"n,,n=,r=0123456789abcdef0123";
        assert!(ServerExchange::start(first, &verifier).is_ok(), "read and of no use");
    }
}

fn client(first: &[u8], last: &[u8]) {
    static VERIFIER: OnceLock<Verifier> = OnceLock::new();
    let verifier =
        VERIFIER.get_or_init(|| Verifier::derive(&Secret::new("pencil"), b"0123456789abcdef", 1));
    let Ok((server_first, exchange)) = ServerExchange::start(first, verifier) else { return };
    let nonce = server_first.strip_prefix("r=").and_then(|rest| rest.split(',').next());
    let last = replace(last, nonce.expect("a nonce"));
    assert!(exchange.finish(&last).is_err(), "in without the secret");
}

fn server(first: &[u8], last: &[u8]) {
    let (client_first, client) = ClientExchange::start(&Secret::new("pencil"));
    let nonce = std::str::from_utf8(&client_first[8..]).expect("ASCII");
    let first = replace(first, nonce);
    let text = String::from_utf8_lossy(&first);
    let digits = text.rsplit("i=").next().unwrap_or_default().len();
    if text.contains("i=") && digits > DIGITS_MAX {
        return;
    }
    let Ok((_, proof)) = client.on_server_first(&first) else { return };
    assert!(proof.on_server_final(last).is_err(), "an impostor passes for the server");
}

fn replace(message: &[u8], nonce: &str) -> Vec<u8> {
    match message.windows(5).position(|window| window == b"NONCE") {
        Some(at) => [&message[..at], nonce.as_bytes(), &message[at + 5..]].concat(),
        None => message.to_vec(),
    }
}
