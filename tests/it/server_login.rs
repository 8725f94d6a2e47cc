//! pgward's own logins to a real Postgres: every method, right and wrong secrets, cancel.

use std::time::{Duration, Instant};

use pgward::auth::{ServerCredentials, ServerSecret};
use pgward::cli::local::{Options, Postgres, Sandbox};
use pgward::net::tls::Connector;
use pgward::server::login::{ConnectError, Greeting, Target, connect, send_cancel};
use pgward::shard_map::Address;
use pgward::wire::backend::{self, ErrorFields};
use pgward::wire::{self, HEADER_BYTES, frontend};

use super::support::PATIENCE;

/// Each role logs in by the method that it is named for.
const HBA: &str = "local all all trust\n\
                   host all trusted 127.0.0.1/32 trust\n\
                   host all cleartext 127.0.0.1/32 password\n\
                   host all md5 127.0.0.1/32 md5\n\
                   host all scram 127.0.0.1/32 scram-sha-256\n\
                   host all gss 127.0.0.1/32 reject\n";

fn postgres() -> (Sandbox, Postgres) {
    let sandbox = Sandbox::new().unwrap_or_else(|error| panic!("these tests need it: {error}"));
    let postgres = sandbox.primary("logins", &Options::default()).expect("a primary");
    let psql = |sql: &str| postgres.psql("postgres", sql).expect("set up");
    psql("CREATE ROLE trusted LOGIN; CREATE ROLE gss LOGIN");
    psql("SET password_encryption = 'scram-sha-256'; CREATE ROLE scram LOGIN PASSWORD 'p\u{e4}ss'");
    psql("SET password_encryption = 'md5'; CREATE ROLE md5 LOGIN PASSWORD 'p\u{e4}ss'");
    psql("CREATE ROLE cleartext LOGIN PASSWORD 'p\u{e4}ss'");
    std::fs::write(sandbox.directory().join("logins/pg_hba.conf"), HBA).expect("pg_hba.conf");
    psql("SELECT pg_reload_conf()");
    (sandbox, postgres)
}

fn target(postgres: &Postgres, user: &str, secret: Option<&str>) -> Target {
    let credentials = ServerCredentials::new(user, secret.map(ServerSecret::plain));
    Target::new(postgres.address(), Connector::plain(), "postgres".into(), &credentials)
}

async fn log_in(postgres: &Postgres, user: &str, secret: Option<&str>) -> String {
    match connect(&target(postgres, user, secret), PATIENCE).await {
        Ok(greeting) => {
            assert!(greeting.pid > 0 && greeting.key.len() == 4 && greeting.buffer.is_empty());
            let reported = |name: &str| {
                let found = greeting.parameters.iter().find(|(known, _)| known == name);
                found.map(|(_, value)| value.clone()).unwrap_or_default()
            };
            assert_eq!(reported("session_authorization"), user);
            assert_eq!(reported("client_encoding"), "UTF8");
            assert!(!reported("server_version").is_empty());
            "in".to_owned()
        }
        Err(ConnectError::Refused { sqlstate, .. }) => sqlstate,
        Err(error) => error.to_string(),
    }
}

#[tokio::test]
async fn every_method_lets_the_right_secret_in() {
    let (_sandbox, postgres) = postgres();
    let no_secret = "the server asks for a secret, and its user has none in the users file";
    for user in ["trusted", "cleartext", "md5", "scram"] {
        let asks = user != "trusted";
        assert_eq!(log_in(&postgres, user, Some("p\u{e4}ss")).await, "in", "{user}");
        let wrong = log_in(&postgres, user, Some("wrong")).await;
        assert_eq!(wrong, if asks { "28P01" } else { "in" }, "{user}");
        let none = log_in(&postgres, user, None).await;
        assert_eq!(none, if asks { no_secret } else { "in" }, "{user}");
    }
    assert_eq!(log_in(&postgres, "nobody", Some("x")).await, "28000");
    assert_eq!(log_in(&postgres, "gss", Some("x")).await, "28000");

    let mut nowhere = target(&postgres, "trusted", None);
    nowhere.database = "nowhere".into();
    let error = connect(&nowhere, PATIENCE).await.unwrap_err();
    assert!(matches!(error, ConnectError::Refused { sqlstate, .. } if sqlstate == "3D000"));

    let mut settings = target(&postgres, "trusted", None);
    settings.settings.push(("timezone".into(), "CET".into()));
    let greeting = connect(&settings, PATIENCE).await.unwrap();
    assert!(greeting.parameters.contains(&("TimeZone".into(), "CET".into())));

    let closed = Address { host: "127.0.0.1".into(), port: 1 };
    let error = connect(&Target { address: closed, ..settings }, PATIENCE).await.unwrap_err();
    assert!(matches!(error, ConnectError::Io(_)), "{error}");

    cancel(&postgres).await;
}

/// A query is cancelled by the key of its greeting, and by no other.
async fn cancel(postgres: &Postgres) {
    let mut server = connect(&target(postgres, "trusted", None), PATIENCE).await.unwrap();
    let (way, pid, key) = (server.way.clone().unwrap(), server.pid, server.key.clone());
    frontend::write_query(server.buffer.tail(), b"SELECT pg_sleep(60)");
    server.stream.drain(&mut server.buffer).await.unwrap();
    send_cancel(&way, pid, &[key[0] ^ 1, key[1], key[2], key[3]], PATIENCE).await.unwrap();
    let sent = Instant::now();
    let early = tokio::time::timeout(Duration::from_millis(300), error_of(&mut server)).await;
    assert!(early.is_err(), "cancelled by a wrong key: {early:?}");
    // A cancel that comes before the query runs is lost, as Postgres has it.
    let sqlstate = loop {
        send_cancel(&way, pid, &key, PATIENCE).await.unwrap();
        let wait = Duration::from_millis(200);
        if let Ok(sqlstate) = tokio::time::timeout(wait, error_of(&mut server)).await {
            break sqlstate;
        }
        assert!(sent.elapsed() < PATIENCE);
    };
    assert_eq!(sqlstate, "57014");
}

/// SQLSTATE of the next ErrorResponse.
async fn error_of(server: &mut Greeting) -> String {
    loop {
        while let Some((tag, body)) = wire::peek(server.buffer.as_slice(), 1 << 20).unwrap() {
            let total = HEADER_BYTES + body.len();
            let sqlstate = (tag == backend::tag::ERROR_RESPONSE)
                .then(|| ErrorFields::read(body).unwrap().sqlstate().to_owned());
            server.buffer.advance(total);
            if let Some(sqlstate) = sqlstate {
                return sqlstate;
            }
        }
        assert!(server.stream.fill(&mut server.buffer).await.unwrap() > 0, "the server went");
    }
}
