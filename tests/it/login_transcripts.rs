//! Logins as transcripts: what a client sends, what it hears, and what becomes of it.
//!
//! `tests/golden/login/transcripts.txt` has cases of `# title`, the client's lines, `----`, and the
//! whole talk. `UPDATE_GOLDEN=1` rewrites the talks. Time is paused, so that a silence is certain.

use std::pin::Pin;
use std::time::Duration;

use bytes::BytesMut;
use pgward::auth::hba::Rules;
use pgward::auth::ident::Maps;
use pgward::auth::scram::ClientExchange;
use pgward::auth::{Methods, Secret, ServerSecret, Users, md5_response};
use pgward::config::{Auth, AuthType};
use pgward::net::Stream;
use pgward::session::login::{Door, Hello, hello};
use pgward::session::lookup::{Failed, Lookup, Row, Source};
use pgward::wire::backend::{self, AuthRequest, ErrorReply};
use pgward::wire::{self, frontend, startup};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::time::Instant;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/login/transcripts.txt");
const USERS: &str = r#"
[[user]]
name = "app"
secret = "app-password"
[[user]]
name = "ward7"
secret = "ward-password"
hospital = "f47ac10b-58cc-4372-a567-0e02b2c3d479"
[[user]]
name = "migrate"
secret = "migrate-password"
shard_access = true
[[user]]
name = "clerk"
secret = "clerk-password"
server_user = "shared"
server_secret = "shared-secret"
"#;
/// One of each kind of secret, for the methods that take them.
const KINDS: &str = r#"
[[user]]
name = "plain"
secret = "plain-password"
previous_secret = "old-password"
[[user]]
name = "stored"
secret = "SCRAM-SHA-256$64:MDEyMzQ1Njc4OWFiY2RlZg==$gntJnpHvFQl6girGi25MUXyhDfGwyunwKJYlKurBCB4=:kBFPp+07NufIHiUlJQHYtwHAt6eKkEE32DR4peNQdhM="
[[user]]
name = "hashed"
secret = "md54ab6b48c161e9da1c740681f96efc68e"
[[user]]
name = "expired"
secret = "expired-password"
valid_until = 2001-01-01T00:00:00Z
[[user]]
name = "bare"
"#;
/// Rules of the cases with `(hba)`; a pipe is a local connection.
const RULES: &str = r#"
local  hospital  plain    md5
local  hospital  hashed   scram-sha-256
local  hospital  stored   md5
local  hospital  bare     trust
local  hospital  expired  trust
local  hospital  evil     reject
local  pgbouncer all      scram-sha-256
host   all       all      all  trust
"#;

#[test]
fn transcripts() {
    let golden = std::fs::read_to_string(FILE).unwrap();
    let mut rewritten = Vec::new();
    for case in golden.trim_end().split("\n\n") {
        let (input, _) = case.split_once("\n----").unwrap_or((case, ""));
        let talk = runtime().block_on(talk(input));
        rewritten.push(format!("{input}\n----\n{talk}"));
    }
    let rewritten = rewritten.join("\n\n") + "\n";
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(FILE, rewritten).unwrap();
    } else if rewritten != golden {
        for (got, want) in rewritten.lines().zip(golden.lines()) {
            assert_eq!(got, want);
        }
        panic!("another number of lines; UPDATE_GOLDEN=1 rewrites {FILE}");
    }
}

fn door<'a>(users: &'a Users, database: &'a str) -> Door<'a> {
    Door { users, lookup: None, database, refusal: None, reserved_for: None, tls: None }
}

#[test]
fn a_login_in_progress_is_small() {
    let users = users(AuthType::ScramSha256);
    let door = door(&users, "x");
    let (near, _far) = tokio::io::duplex(1);
    let deadline = runtime().block_on(async { Instant::now() });
    let login = hello(Stream::Memory(Box::new(near)), &door, deadline);
    let bytes = size_of_val(&login);
    assert!(bytes <= 1536, "{bytes} bytes");
}

/// Bytes of the start: packets that are right, nearly right, or noise.
fn any_piece() -> impl Strategy<Value = Vec<u8>> {
    let packet = (0..6usize, any::<bool>()).prop_map(|(which, newer)| {
        let mut out = BytesMut::new();
        match which {
            0 => startup::write_ssl_request(&mut out),
            1 => startup::write_gssenc_request(&mut out),
            2 => startup::write_cancel_request(&mut out, 1, b"abcd"),
            3 => frontend::write_sasl_initial(
                &mut out,
                "SCRAM-SHA-256",
                b"n,,n=,r=0123456789abcdef0123",
            ),
            4 => frontend::write_sasl_response(&mut out, b"c=biws,r=x,p=y"),
            _ => {
                let params = [("user", "app"), ("database", "hospital")];
                startup::write_startup(&mut out, params.into_iter());
                out[7] = u8::from(newer);
            }
        }
        out.to_vec()
    });
    let noise = prop::collection::vec(any::<u8>(), 0..20);
    let length = (any::<u8>(), noise.clone())
        .prop_map(|(length, rest)| [&[0, 0, 0, length][..], &rest].concat());
    prop_oneof![4 => packet, 1 => noise, 1 => length]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn no_client_makes_the_login_panic(
        pieces in prop::collection::vec(any_piece(), 0..6),
        method in prop_oneof![
            Just(AuthType::ScramSha256), Just(AuthType::Plain), Just(AuthType::Md5),
            Just(AuthType::Cert), Just(AuthType::Hba),
        ],
    ) {
        runtime().block_on(async {
            let (near, mut far) = tokio::io::duplex(1 << 16);
            let login = tokio::spawn(async move {
                let users = users(method);
                let door = door(&users, "hospital");
                let deadline = Instant::now() + Duration::from_secs(60);
                outcome(hello(Stream::Memory(Box::new(near)), &door, deadline).await)
            });
            for piece in pieces {
                let _ = far.write_all(&piece).await;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let outcome = login.await.unwrap();
            assert!(!outcome.starts_with("= Login"), "in without a proof");
        });
    }
}

/// Every method with every kind of secret: who gets in with the right one, and nobody with a wrong one,
/// the stored text itself, or none.
#[test]
fn every_method_takes_the_secrets_that_it_can() {
    let mut table = String::new();
    for (auth_type, method) in [
        (AuthType::Plain, "plain"),
        (AuthType::Md5, "md5"),
        (AuthType::Hba, "scram"),
        (AuthType::Cert, "cert"),
    ] {
        for user in ["plain", "stored", "hashed", "expired", "nobody"] {
            let right = format!("{user}-password");
            let in_with = |secret: &str| runtime().block_on(gets_in(auth_type, user, secret));
            let row = [&right, "old-password", "wrong-password"].map(in_with);
            table += &format!("{method} {user}: {row:?}\n");
            let stored = KINDS.split(&format!("\"{user}\"\nsecret = \"")).nth(1);
            let stored = stored.and_then(|rest| rest.split('"').next()).unwrap_or_default();
            for wrong in ["", user, if user == "plain" { "x" } else { stored }] {
                let is_right = wrong == right;
                assert!(is_right || !in_with(wrong), "{method} {user} with {wrong:?}");
            }
        }
    }
    assert_eq!(table, MATRIX);
}

/// In with the right password, with the one before, with a wrong one.
const MATRIX: &str = "\
plain plain: [true, true, false]
plain stored: [true, false, false]
plain hashed: [true, false, false]
plain expired: [false, false, false]
plain nobody: [false, false, false]
md5 plain: [true, true, false]
md5 stored: [true, false, false]
md5 hashed: [true, false, false]
md5 expired: [false, false, false]
md5 nobody: [false, false, false]
scram plain: [true, true, false]
scram stored: [true, false, false]
scram hashed: [false, false, false]
scram expired: [false, false, false]
scram nobody: [false, false, false]
cert plain: [false, false, false]
cert stored: [false, false, false]
cert hashed: [false, false, false]
cert expired: [false, false, false]
cert nobody: [false, false, false]
";

/// A client that answers whatever it is asked with `secret`. For [`AuthType::Hba`], by SCRAM for all.
async fn gets_in(auth_type: AuthType, user: &str, secret: &str) -> bool {
    let (near, far) = tokio::io::duplex(1 << 16);
    let login = tokio::spawn(async move {
        let mut users = users(auth_type);
        if auth_type == AuthType::Hba {
            let rules = "local all all scram-sha-256";
            let rules = Rules::parse("hba", rules, &Maps::default(), &|_| Err(String::new()));
            users = users.with_methods(Methods::rules(rules.unwrap(), Maps::default()));
        }
        let door = door(&users, "hospital");
        let deadline = Instant::now() + Duration::from_secs(60);
        outcome(hello(Stream::Memory(Box::new(near)), &door, deadline).await)
    });
    let mut client =
        Client { pipe: Some(far), heard: Vec::new(), scram: Scram::None, salt: [0; 4] };
    client.say(&format!("Startup user={user} database=hospital")).await;
    let asked = client.hear().await;
    match asked.first().map(String::as_str) {
        Some("Cleartext") => client.say(&format!("Password {secret}")).await,
        Some("AuthenticationMD5Password") => client.say(&format!("Md5 {user} {secret}")).await,
        Some(asked) if asked.starts_with("AuthenticationSASL") => {
            client.say(&format!("SASLInitialResponse {secret}")).await;
            client.hear().await;
            client.say("SASLResponse").await;
        }
        _ => {}
    }
    client.hear().await;
    client.say("Close").await;
    let outcome = login.await.unwrap();
    assert!(!outcome.contains("-password"), "{outcome}");
    outcome.starts_with("= Login")
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap()
}

fn users(auth_type: AuthType) -> Users {
    let auth = Auth { auth_type, scram_iterations: 64, ..Auth::default() };
    let text = match auth_type {
        AuthType::Trust | AuthType::ScramSha256 => USERS.to_owned(),
        AuthType::Hba | AuthType::Cert => KINDS.to_owned(),
        // Who needs a secret needs one.
        _ => KINDS.split("[[user]]\nname = \"bare\"").next().unwrap().to_owned(),
    };
    let users = Users::parse("users.toml", &text, &auth, [7; 32], &|_| Err("none".into()));
    let users = users.unwrap_or_else(|problems| panic!("{problems}"));
    if auth_type != AuthType::Hba {
        return users;
    }
    let none = &|_: &str| Err("none".to_owned());
    let rules = Rules::parse("hba", RULES, &Maps::default(), none).unwrap();
    users.with_methods(Methods::rules(rules, Maps::default()))
}

/// What `auth_query` would say.
struct Roles;

impl Source for Roles {
    fn ask<'a>(
        &'a self,
        name: &'a str,
    ) -> Pin<Box<dyn Future<Output = Result<Row, Failed>> + Send + 'a>> {
        let row = match name {
            "role" => Ok(Some("role-password".to_owned())),
            "kept" | "shared" => Ok(Some(KINDS.split('"').nth(9).expect("stored").to_owned())),
            // The users file has them: nobody asks.
            "app" | "plain" => panic!("asked for a user of the file"),
            "lost" => Err(Failed),
            _ => Ok(None),
        };
        Box::pin(async move { row })
    }
}

/// The method that a case asks for in its title.
fn auth_type(case: &str) -> AuthType {
    let title = case.lines().next().unwrap_or_default();
    let is = |word: &str| title.contains(&format!("({word})"));
    match () {
        () if is("trust") => AuthType::Trust,
        () if is("plain") => AuthType::Plain,
        () if is("md5") => AuthType::Md5,
        () if is("cert") => AuthType::Cert,
        () if is("hba") => AuthType::Hba,
        () => AuthType::ScramSha256,
    }
}

/// Runs the lines of one case.
async fn talk(input: &str) -> String {
    let auth_type = auth_type(input);
    let lookup = input
        .contains("(lookup)")
        .then(|| Lookup::new(Box::new(Roles), None, Duration::from_secs(5)));
    let refusal = input
        .contains("(full)")
        .then(|| ErrorReply::fatal("53300", "sorry, too many clients already"));
    let (near, far) = tokio::io::duplex(1 << 16);
    let login = tokio::spawn(async move {
        let users = users(auth_type);
        let door = Door { lookup: lookup.as_ref(), refusal, ..door(&users, "hospital") };
        let deadline = Instant::now() + Duration::from_secs(60);
        outcome(hello(Stream::Memory(Box::new(near)), &door, deadline).await)
    });
    let mut client =
        Client { pipe: Some(far), heard: Vec::new(), scram: Scram::None, salt: [0; 4] };
    let mut talk = Vec::new();
    for line in input.lines().filter(|line| !line.starts_with('#')) {
        talk.push(format!("C> {line}"));
        client.say(line).await;
        talk.extend(client.hear().await.into_iter().map(|reply| format!("C< {reply}")));
    }
    talk.push(if login.is_finished() {
        login.await.unwrap()
    } else {
        "= (still waiting)".to_owned()
    });
    talk.join("\n")
}

fn outcome(hello: Result<Hello, pgward::session::login::Error>) -> String {
    match hello {
        Ok(Hello::Cancel { pid, key, .. }) => format!("= Cancel(pid={pid}, key={key:?})"),
        Ok(Hello::Login(login)) => {
            let mut out = format!("= Login({}, {:?}", login.user.name, login.database);
            if login.user.server.user == login.user.name && login.user.name != "app" {
                match &login.user.server.secret {
                    Some(ServerSecret::Keys(_)) => out += ", with its keys",
                    Some(ServerSecret::Md5(_)) => out += ", with its hash",
                    Some(ServerSecret::FromClient) => out += ", without its keys",
                    Some(ServerSecret::Plain(_)) | None => {}
                }
            }
            if !login.user.is_listed {
                out += ", looked up";
            }
            if let Some(hospital) = login.hospital {
                out += &format!(", hospital={hospital}");
            }
            if let Some(shard) = login.shard {
                out += &format!(", shard={shard}");
            }
            for (name, value) in &login.startup.settings {
                out += &format!(", {name}={value}");
            }
            if login.has_long_key {
                out += ", long key";
            }
            if !login.buffer.is_empty() {
                out += &format!(", {} bytes behind", login.buffer.len());
            }
            out + ")"
        }
        Err(error) => format!("= {error}"),
    }
}

struct Client {
    pipe: Option<DuplexStream>,
    heard: Vec<u8>,
    scram: Scram,
    salt: [u8; 4],
}

/// What the client needs of the server's last SASL message.
enum Scram {
    None,
    Started(ClientExchange),
    Challenged(ClientExchange, Vec<u8>),
}

impl Client {
    /// Sends what `line` names.
    async fn say(&mut self, line: &str) {
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        let mut out = BytesMut::new();
        match verb {
            "SSLRequest" => startup::write_ssl_request(&mut out),
            "GSSENCRequest" => startup::write_gssenc_request(&mut out),
            "CancelRequest" => startup::write_cancel_request(&mut out, 7, rest.as_bytes()),
            "SSLRequest+Startup" => {
                startup::write_ssl_request(&mut out);
                startup::write_startup(&mut out, [("user", "app")].into_iter());
            }
            "Startup" => self.startup(&mut out, rest, 0),
            "Startup+Query" => {
                self.startup(&mut out, rest, 0);
                frontend::write_query(&mut out, b"SELECT 1");
            }
            verb if verb.starts_with("Startup3.") => {
                self.startup(&mut out, rest, verb["Startup3.".len()..].parse().expect("a minor"));
            }
            "Startup2.0" => out.extend([0, 0, 0, 8, 0, 2, 0, 0]),
            "SASLInitialResponse" => {
                let (first, exchange) = ClientExchange::start(&Secret::new(rest));
                self.scram = Scram::Started(exchange);
                frontend::write_sasl_initial(&mut out, "SCRAM-SHA-256", &first);
            }
            "SASLInitialResponse-PLUS" => {
                frontend::write_sasl_initial(&mut out, "SCRAM-SHA-256-PLUS", b"p=tls,,n=,r=x");
            }
            "SASLInitialResponse-bad" => {
                frontend::write_sasl_initial(&mut out, "SCRAM-SHA-256", rest.as_bytes());
            }
            "SASLResponse" => {
                let scram = std::mem::replace(&mut self.scram, Scram::None);
                let Scram::Challenged(exchange, server_first) = scram else {
                    panic!("no challenge")
                };
                let (last, _) = exchange.on_server_first(&server_first).unwrap();
                frontend::write_sasl_response(&mut out, &last);
            }
            "SASLResponse-bad" => frontend::write_sasl_response(&mut out, rest.as_bytes()),
            "Password" => frontend::write_password(&mut out, rest.as_bytes()),
            "Md5" => {
                let (user, secret) = rest.split_once(' ').unwrap();
                let response = md5_response(user, &Secret::new(secret), self.salt);
                frontend::write_password(&mut out, response.as_bytes());
            }
            "Query" => frontend::write_query(&mut out, rest.as_bytes()),
            "Text" => out.extend_from_slice(rest.as_bytes()),
            "Length" => out.extend(rest.parse::<i32>().unwrap().to_be_bytes()),
            "HugePassword" => out.extend([b'p', 0x0f, 0xff, 0xff, 0xff]),
            "Wait" => tokio::time::sleep(Duration::from_secs(rest.parse().unwrap())).await,
            "Close" => self.pipe = None,
            _ => panic!("unknown line {line:?}"),
        }
        if let Some(pipe) = &mut self.pipe {
            // It may be closed already: what was said shows in the talk.
            let _ = pipe.write_all(&out).await;
        }
    }

    /// A StartupMessage of `name=value` words; `+` stands for a space in a value.
    fn startup(&self, out: &mut BytesMut, words: &str, minor: u16) {
        let spaced: Vec<(&str, String)> = words
            .split_whitespace()
            .filter_map(|word| word.split_once('='))
            .map(|(name, value)| (name, value.replace('+', " ")))
            .collect();
        startup::write_startup(out, spaced.iter().map(|(name, value)| (*name, value.as_str())));
        out[6..8].copy_from_slice(&minor.to_be_bytes());
    }

    /// What comes until silence.
    async fn hear(&mut self) -> Vec<String> {
        let mut replies = Vec::new();
        let Some(pipe) = &mut self.pipe else {
            tokio::time::sleep(Duration::from_millis(1)).await;
            return replies;
        };
        let mut chunk = [0; 4096];
        let mut closed = false;
        while let Ok(read) =
            tokio::time::timeout(Duration::from_millis(1), pipe.read(&mut chunk)).await
        {
            match read {
                Ok(n) if n > 0 => self.heard.extend(&chunk[..n]),
                _ => {
                    closed = true;
                    break;
                }
            }
        }
        let heard = std::mem::take(&mut self.heard);
        let mut rest = &heard[..];
        while !rest.is_empty() {
            // The answer to a request for encryption is one byte, which no message has for a tag
            // before AuthenticationOk.
            if rest.len() == 1 || (rest[0] == b'N' && rest[1] != 0) {
                replies.push((rest[0] as char).to_string());
                rest = &rest[1..];
                continue;
            }
            let (tag, body) = wire::peek(rest, 1 << 16).unwrap().expect("a whole message");
            replies.push(self.shown(tag, body));
            rest = &rest[wire::HEADER_BYTES + body.len()..];
        }
        if closed {
            self.pipe = None;
            replies.push("(closed)".to_owned());
        }
        replies
    }

    fn shown(&mut self, tag: u8, body: &[u8]) -> String {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace('\0', " ");
        match tag {
            backend::tag::ERROR_RESPONSE => format!("ErrorResponse({})", text(body).trim_end()),
            backend::tag::NEGOTIATE_PROTOCOL_VERSION => {
                format!("NegotiateProtocolVersion({:02x?}, {})", &body[..4], text(&body[8..]))
            }
            backend::tag::AUTHENTICATION => match AuthRequest::read(body).unwrap() {
                AuthRequest::Sasl(names) => format!("AuthenticationSASL({})", text(names).trim()),
                AuthRequest::SaslContinue(server_first) => {
                    if let Scram::Started(exchange) =
                        std::mem::replace(&mut self.scram, Scram::None)
                    {
                        self.scram = Scram::Challenged(exchange, server_first.to_vec());
                    }
                    let message = text(server_first);
                    let (_, visible) = message.split_once(',').unwrap();
                    format!("AuthenticationSASLContinue(r=...,{visible})")
                }
                AuthRequest::SaslFinal(_) => "AuthenticationSASLFinal(v=...)".to_owned(),
                AuthRequest::Md5(salt) => {
                    self.salt = salt;
                    "AuthenticationMD5Password".to_owned()
                }
                other => format!("{other:?}"),
            },
            _ => format!("{}({} bytes)", tag as char, body.len()),
        }
    }
}
