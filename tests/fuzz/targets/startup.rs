//! A client that has not logged in: the packets of the start, and all of the login behind them.

use std::sync::OnceLock;
use std::time::Duration;

use pgward::auth::Users;
use pgward::config::{Auth, AuthType};
use pgward::net::Stream;
use pgward::session::login::{Door, Hello, hello};
use pgward::wire::startup::{self, Packet, StartupParams};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

use super::{Input, paused, pieces};

const USERS: &str = "[[user]]\nname = \"app\"\nsecret = \"app-password\"\nserver_user = \"app\"\n";
/// Longest stream worth a run: a startup packet and what may follow it.
const BYTES_MAX: usize = 32 << 10;

/// The choices of [`Input::cuts`], then what the client sends.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let cuts = input.cuts();
    let stream = &input.0[..input.0.len().min(BYTES_MAX)];
    look(stream);
    let proven = paused().block_on(log_in(AuthType::ScramSha256, &[stream]));
    assert!(!proven.1.starts_with("login"), "in without a proof");
    let whole = paused().block_on(log_in(AuthType::Trust, &[stream]));
    let cut = paused().block_on(log_in(AuthType::Trust, &pieces(stream, &cuts)));
    // What comes with a request for encryption is refused, what comes behind its answer is not.
    if !asks_for_encryption(stream) {
        assert_eq!(whole, cut, "cut at {cuts:?}");
    }
}

fn look(stream: &[u8]) {
    let Ok(Some((packet, total))) = startup::peek(stream) else { return };
    assert!(startup::PACKET_BYTES.contains(&total) && total <= stream.len());
    assert_eq!(startup::peek(&stream[..total - 1]), Ok(None), "a part is taken for all of it");
    if let Packet::Startup(packet) = packet
        && let Ok(params) = StartupParams::read(&packet)
    {
        assert!(!params.user.is_empty() && !params.database.is_empty());
        for (name, _) in &params.settings {
            assert!(!name.contains(|c: char| !c.is_ascii_alphanumeric() && !"_$.".contains(c)));
        }
    }
}

fn asks_for_encryption(stream: &[u8]) -> bool {
    matches!(startup::peek(stream), Ok(Some((Packet::SslRequest | Packet::GssEncRequest, _))))
}

fn users(auth_type: AuthType) -> &'static Users {
    static USERS_OF: [OnceLock<Users>; 2] = [OnceLock::new(), OnceLock::new()];
    let at = usize::from(auth_type == AuthType::Trust);
    USERS_OF[at].get_or_init(|| {
        let auth = Auth { auth_type, scram_iterations: 1, ..Auth::default() };
        Users::parse("users.toml", USERS, &auth, [7; 32], &|_| Err("none".into())).expect("users")
    })
}

/// What the client heard, and what became of it.
async fn log_in(auth_type: AuthType, pieces: &[&[u8]]) -> (Vec<u8>, String) {
    let (near, far) = tokio::io::duplex(1 << 16);
    let (mut read, mut write) = tokio::io::split(far);
    let login = tokio::spawn(async move {
        let users = users(auth_type);
        let door = Door {
            users,
            lookup: None,
            database: "hospital",
            refusal: None,
            reserved_for: None,
            tls: None,
        };
        let deadline = Instant::now() + Duration::from_secs(60);
        match Box::pin(hello(Stream::Memory(Box::new(near)), &door, deadline)).await {
            Ok(Hello::Login(login)) => format!(
                "login {} {:?} {:?} {:?} {:?}",
                login.user.name, login.database, login.hospital, login.shard, login.startup,
            ),
            Ok(Hello::Cancel { pid, key, .. }) => format!("cancel {pid} {key:?}"),
            Err(error) => error.to_string(),
        }
    });
    for piece in pieces {
        // It may be closed already.
        let _ = write.write_all(piece).await;
        // Time is paused: it goes on when the login has done all that it can.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let _ = write.shutdown().await;
    let outcome = login.await.expect("no panic");
    let mut heard = Vec::new();
    let _ = read.read_to_end(&mut heard).await;
    (heard, outcome)
}
