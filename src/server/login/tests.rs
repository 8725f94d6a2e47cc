//! Servers that misbehave, over a pipe. Real ones are in `tests/it/server_login.rs`.

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::*;
use crate::auth::Secret;
use crate::auth::scram::{ServerExchange, Verifier};
use crate::wire::backend::ErrorReply;
use crate::wire::frontend::SaslInitial;

const KEY: &[u8] = &[1, 2, 3, 4];

fn target(secret: Option<&str>) -> Target {
    target_with(secret.map(ServerSecret::plain))
}

fn target_with(secret: Option<ServerSecret>) -> Target {
    let credentials = ServerCredentials::new("app", secret);
    let address = Address { host: "localhost".into(), port: 5432 };
    Target::new(address, Connector::plain(), "shard0".into(), &credentials)
}

/// Logs in to a server that says `bytes`, whatever it hears, and then ends.
async fn log_in_to(bytes: Vec<u8>, secret: Option<&str>) -> Result<Greeting, ConnectError> {
    let (near, mut far) = tokio::io::duplex(1 << 20);
    far.write_all(&bytes).await.unwrap();
    far.shutdown().await.unwrap();
    let greeting = log_in(Stream::Memory(Box::new(near)), &target(secret)).await;
    drop(far);
    greeting
}

fn messages(write: impl FnOnce(&mut bytes::BytesMut)) -> Vec<u8> {
    let mut out = bytes::BytesMut::new();
    write(&mut out);
    out.to_vec()
}

fn ok() -> Vec<u8> {
    messages(backend::write_authentication_ok)
}

fn parameter(name: &str, value: &str) -> Vec<u8> {
    messages(|out| backend::write_parameter_status(out, name, value))
}

fn key() -> Vec<u8> {
    messages(|out| backend::write_backend_key_data(out, 77, KEY))
}

fn ready(status: TxnStatus) -> Vec<u8> {
    messages(|out| backend::write_ready_for_query(out, status))
}

fn sasl(mechanisms: &[&str]) -> Vec<u8> {
    messages(|out| backend::write_authentication_sasl(out, mechanisms))
}

fn notice() -> Vec<u8> {
    let notice = ErrorReply { severity: "NOTICE", ..ErrorReply::error("00000", "hello") };
    messages(|out| notice.encode(out))
}

fn error(sqlstate: &'static str) -> Vec<u8> {
    messages(|out| ErrorReply::fatal(sqlstate, "Key (mrn)=(123) is secret").encode(out))
}

#[tokio::test]
async fn a_greeting_has_what_the_server_said() {
    let said = [
        notice(),
        ok(),
        parameter("TimeZone", "UTC"),
        notice(),
        parameter("server_version", "15.8"),
        parameter("TimeZone", "CET"),
        key(),
        ready(TxnStatus::Idle),
        b"more".to_vec(),
    ]
    .concat();
    let greeting = log_in_to(said, None).await.unwrap();
    let parameters = [("server_version", "15.8"), ("TimeZone", "CET")];
    let parameters = parameters.map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(greeting.parameters, parameters);
    assert_eq!((greeting.pid, &greeting.key[..]), (77, KEY));
    assert_eq!((greeting.buffer.as_slice(), greeting.way), (&b"more"[..], None));
}

#[tokio::test]
async fn the_startup_message_names_user_database_and_how_text_is_read() {
    let (near, mut far) = tokio::io::duplex(1 << 16);
    let login = tokio::spawn(async move {
        log_in(Stream::Memory(Box::new(near)), &target(None)).await.map(|_| ())
    });
    let mut heard = vec![0; 1024];
    let n = far.read(&mut heard).await.unwrap();
    let Some((startup::Packet::Startup(startup), total)) = startup::peek(&heard[..n]).unwrap()
    else {
        panic!("no StartupMessage")
    };
    assert_eq!((startup.minor, total), (0, n));
    let want = [
        ("user", "app"),
        ("database", "shard0"),
        ("client_encoding", "UTF8"),
        ("standard_conforming_strings", "on"),
    ];
    assert_eq!(startup.params, want);
    drop(far);
    assert!(matches!(login.await.unwrap(), Err(ConnectError::Closed | ConnectError::Io(_))));
}

#[tokio::test]
async fn servers_out_of_turn_are_refused() {
    let cleartext = || messages(backend::write_authentication_cleartext);
    let md5 = || messages(|out| backend::write_authentication_md5(out, [1, 2, 3, 4]));
    let scram = || sasl(&["SCRAM-SHA-256"]);
    let negotiate = messages(|out| backend::write_negotiate_protocol_version(out, 0, &[]));
    let many = || parameter("x", &"y".repeat(29_000)).repeat(10);
    for (said, secret, want) in [
        (vec![], None, "the server closed the connection during login"),
        (b"N".to_vec(), None, "the server closed the connection during login"),
        (
            b"HTTP/1.1 400 Bad Request".to_vec(),
            None,
            "broke the protocol: message 'H' of 1414811696",
        ),
        (b"R\0\0\0\x03".to_vec(), None, "broke the protocol: message 'R' has length 3"),
        (b"R\x7f\xff\xff\xff".to_vec(), None, "over the limit of 65536"),
        (b"R\0\0\0\x06\0\0".to_vec(), None, "broke the protocol: message 'R' is malformed"),
        (ready(TxnStatus::Idle), None, "broke the protocol: message type 'Z' is not known here"),
        (error("28P01"), None, "the server refused the login with 28P01"),
        ([notice(), error("3D000")].concat(), None, "the server refused the login with 3D000"),
        ([ok(), error("53300")].concat(), None, "the server refused the login with 53300"),
        (b"E\0\0\0\x05\0".to_vec(), None, "the server refused the login with XX000"),
        (b"E\0\0\0\x07C28".to_vec(), None, "broke the protocol: message 'E' is malformed"),
        (cleartext(), None, "the server asks for a secret"),
        (md5(), None, "the server asks for a secret"),
        (scram(), None, "the server asks for a secret"),
        (sasl(&["SCRAM-SHA-256-PLUS"]), Some("x"), "method that pgward does not have"),
        (sasl(&[]), Some("x"), "method that pgward does not have"),
        (b"R\0\0\0\x08\0\0\0\x07".to_vec(), None, "method that pgward does not have"),
        ([cleartext(), md5()].concat(), Some("x"), "authentication request out of turn"),
        ([md5(), md5()].concat(), Some("x"), "authentication request out of turn"),
        // A server that skips its own proof.
        ([scram(), ok()].concat(), Some("x"), "authentication request out of turn"),
        (
            [scram(), messages(|out| backend::write_authentication_sasl_final(out, "v="))].concat(),
            Some("x"),
            "authentication request out of turn",
        ),
        (
            [scram(), messages(|out| backend::write_authentication_sasl_continue(out, "r=x"))]
                .concat(),
            Some("x"),
            "malformed SCRAM message",
        ),
        ([ok(), ok()].concat(), None, "message type 'R' is not known here"),
        ([ok(), key(), ready(TxnStatus::Open)].concat(), None, "a transaction at the start"),
        ([ok(), ready(TxnStatus::Idle)].concat(), None, "no cancel key before it"),
        ([ok(), b"K\0\0\0\x08\0\0\0\x01".to_vec()].concat(), None, "cancel key is not 4 to 256"),
        ([ok(), many()].concat(), None, "more than 262144 bytes during login"),
        (notice().repeat(10_000), None, "more than 262144 bytes during login"),
        (negotiate, None, "the server closed the connection during login"),
    ] {
        let shown = String::from_utf8_lossy(&said[..said.len().min(40)]).into_owned();
        let error = log_in_to(said, secret).await.unwrap_err();
        assert!(error.to_string().contains(want), "{shown:?}: {error}");
        // Nothing of the server's own words reaches a log or a client.
        let told = format!("{error} {error:?} {}", error.public_words());
        assert!(!told.contains("mrn") && !told.contains("localhost"), "{told}");
    }
}

/// A server that checks SCRAM with `verifier`.
async fn scram_server(mut far: DuplexStream, verifier: Verifier) {
    let mut heard = vec![0; 4096];
    assert!(far.read(&mut heard).await.unwrap() > 0);
    far.write_all(&sasl(&["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"])).await.unwrap();
    let n = far.read(&mut heard).await.unwrap();
    let (_, body) = wire::peek(&heard[..n], 4096).unwrap().unwrap();
    let client_first = SaslInitial::read(body).unwrap().data.unwrap();
    let (server_first, exchange) = ServerExchange::start(client_first, &verifier).unwrap();
    let reply = messages(|out| backend::write_authentication_sasl_continue(out, &server_first));
    far.write_all(&reply).await.unwrap();
    let n = far.read(&mut heard).await.unwrap();
    let (_, body) = wire::peek(&heard[..n], 4096).unwrap().unwrap();
    let said = match exchange.finish(body) {
        Ok(proven) => [
            messages(|out| backend::write_authentication_sasl_final(out, &proven.server_final)),
            ok(),
            key(),
            ready(TxnStatus::Idle),
        ]
        .concat(),
        Err(_) => error("28P01"),
    };
    far.write_all(&said).await.unwrap();
}

#[tokio::test]
async fn scram_proves_both_sides() {
    for (secret, proven) in [("pencil", true), ("wrong", false)] {
        let (near, far) = tokio::io::duplex(1 << 16);
        let verifier = Verifier::derive(&Secret::new("pencil"), b"salt", 64);
        let server = tokio::spawn(scram_server(far, verifier));
        let login = log_in(Stream::Memory(Box::new(near)), &target(Some(secret))).await;
        match login {
            Ok(greeting) => assert!(proven && greeting.pid == 77),
            Err(ConnectError::Refused { sqlstate, .. }) => assert!(!proven && sqlstate == "28P01"),
            Err(error) => panic!("{error}"),
        }
        server.await.unwrap();
    }
}

#[tokio::test]
async fn keys_of_a_client_prove_pgward_where_the_verifier_is_the_same() {
    let pencil = Secret::new("pencil");
    let keys = Verifier::derive(&pencil, b"salt", 64).check(&pencil).unwrap();
    for (salt, want) in [(&b"salt"[..], None), (b"pepper", Some(auth::Error::OtherVerifier))] {
        let (near, far) = tokio::io::duplex(1 << 16);
        let server = tokio::spawn(scram_server(far, Verifier::derive(&pencil, salt, 64)));
        let target = target_with(Some(ServerSecret::Keys(keys.clone())));
        match (log_in(Stream::Memory(Box::new(near)), &target).await, want) {
            (Ok(greeting), None) => {
                assert_eq!(greeting.pid, 77);
                server.await.unwrap();
            }
            (Err(ConnectError::Auth(error)), Some(want)) => assert_eq!(error, want),
            (outcome, _) => panic!("{outcome:?}"),
        }
    }
}

#[tokio::test]
async fn no_hash_and_no_keys_go_out_in_place_of_a_password() {
    let pencil = Secret::new("pencil");
    let keys = Verifier::derive(&pencil, b"salt", 64).check(&pencil).unwrap();
    let hash = Secret::new("md50123456789abcdef0123456789abcdef");
    let cleartext = messages(backend::write_authentication_cleartext);
    let md5 = messages(|out| backend::write_authentication_md5(out, [1; 4]));
    let scram = sasl(&["SCRAM-SHA-256"]);
    for (secret, asked) in [
        (ServerSecret::Md5(hash.clone()), &cleartext),
        (ServerSecret::Md5(hash), &scram),
        (ServerSecret::Keys(keys.clone()), &cleartext),
        (ServerSecret::Keys(keys), &md5),
        (ServerSecret::FromClient, &cleartext),
        (ServerSecret::FromClient, &md5),
        (ServerSecret::FromClient, &scram),
    ] {
        let (near, mut far) = tokio::io::duplex(1 << 16);
        far.write_all(asked).await.unwrap();
        let error = log_in(Stream::Memory(Box::new(near)), &target_with(Some(secret))).await;
        assert!(matches!(error, Err(ConnectError::Unfit)), "{error:?}");
        // Only the StartupMessage.
        let mut heard = vec![0; 4096];
        let n = far.read(&mut heard).await.unwrap();
        let (_, total) = startup::peek(&heard[..n]).unwrap().unwrap();
        assert_eq!(total, n);
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_says_nothing_costs_only_the_timeout() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let peer = listener.local_addr().unwrap();
    let mut silent = target(None);
    silent.address = Address { host: "127.0.0.1".into(), port: peer.port() };
    let error = connect(&silent, Duration::from_secs(15)).await.unwrap_err();
    assert!(matches!(error, ConnectError::TimedOut), "{error}");
    let error = send_cancel(&Way::plain(peer), 1, KEY, Duration::from_secs(15)).await.unwrap_err();
    assert!(matches!(error, ConnectError::TimedOut), "{error}");
}

#[tokio::test]
async fn a_cancel_request_waits_for_the_end() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let peer = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut heard = vec![0; 64];
        let n = stream.read(&mut heard).await.unwrap();
        let (packet, _) = startup::peek(&heard[..n]).unwrap().unwrap();
        assert_eq!(packet, startup::Packet::Cancel { pid: 77, key: KEY });
    });
    send_cancel(&Way::plain(peer), 77, KEY, Duration::from_secs(15)).await.unwrap();
    server.await.unwrap();
}

proptest! {
    #[test]
    fn no_server_makes_the_login_panic(
        pieces in prop::collection::vec(prop_oneof![
            Just(ok()), Just(key()), Just(sasl(&["SCRAM-SHA-256"])), Just(notice()),
            Just(ready(TxnStatus::Idle)), Just(error("53300")),
            prop::collection::vec(any::<u8>(), 0..12),
            ("[RSKZENv]", prop::collection::vec(any::<u8>(), 0..12)).prop_map(|(tag, body)| {
                let length = (body.len() as u32 + 4).to_be_bytes();
                [tag.as_bytes(), &length, &body].concat()
            }),
        ], 0..6),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let _ = runtime.block_on(log_in_to(pieces.concat(), Some("x")));
    }
}
