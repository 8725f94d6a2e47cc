//! What logins are judged by: rules, maps, PgBouncer's userlist, and the proofs of each method.

use std::sync::OnceLock;
use std::time::Duration;

use pgward::auth::hba::{Certificate, NameOf, Rules};
use pgward::auth::ident::Maps;
use pgward::auth::scram::{ClientExchange, ServerExchange, Verifier};
use pgward::auth::{Asked, Demand, Method, Refused, Secret, ServerSecret, Users};
use pgward::config::{Auth, AuthType};
use pgward::net::{CertificateNames, Origin, Stream, TlsFacts};
use pgward::session::login::{Door, Hello, hello};
use tokio::io::AsyncWriteExt;
use tokio::time::Instant;

use super::{Input, paused, pieces};

/// Text as a file may hold it, and whether a line may be added behind it.
fn text(data: &[u8]) -> Option<(&str, bool)> {
    let text = std::str::from_utf8(data).ok()?;
    Some((text, !text.trim_end_matches('\r').ends_with('\\')))
}

/// Whether `word` stands in `text`, whatever quotes and continued lines it is in.
fn says(text: &str, word: &str) -> bool {
    let text = text.replace("\\\r\n", "").replace("\\\n", "").replace('"', "");
    text.contains(word)
}

fn origins() -> [Origin; 4] {
    let at = |peer: [u8; 4]| Some((peer, 50_000).into());
    let named = CertificateNames {
        common_name: Some("app".into()),
        distinguished_name: "CN=app,O=Hospital".into(),
    };
    let tls = TlsFacts { client_certificate: Some(named), ..TlsFacts::default() };
    [
        Origin { peer: None, tls: None },
        Origin { peer: at([127, 0, 0, 1]), tls: None },
        Origin { peer: at([10, 1, 2, 3]), tls: Some(TlsFacts::default()) },
        Origin { peer: at([10, 1, 2, 3]), tls: Some(tls) },
    ]
}

fn rules(text: &str, maps: &Maps) -> Option<Rules> {
    let include = |name: &str| match name {
        "users" => Ok("app other".to_owned()),
        _ => Err("can't be read".to_owned()),
    };
    match Rules::parse("hba", text, maps, &include) {
        Ok(rules) => Some(rules),
        Err(problems) => {
            assert!(!problems.to_string().is_empty(), "refused without a word");
            None
        }
    }
}

/// Rules let in whom a line of theirs names, and the first line that fits decides.
pub fn run_hba(data: &[u8]) {
    let Some((text, may_go_on)) = text(data) else { return };
    let maps = Maps::parse("ident", "staff anna app\n").expect("maps");
    let Some(read) = rules(text, &maps) else { return };
    let first = rules(&format!("local all all reject\nhost all all all reject\n{text}"), &maps);
    let first = first.expect("what is read is read behind two lines");
    let after =
        format!("{text}\nlocal all,replication all trust\nhost all,replication all all trust");
    let after = may_go_on.then(|| rules(&after, &maps).expect("and before two"));
    for origin in origins() {
        for (user, database) in [("app", "hospital"), ("other", "other"), ("admin", "pgward")] {
            for is_physical in [false, true] {
                let asked = Asked { user, database, is_physical, origin: &origin };
                let got = read.demand(&asked);
                assert_eq!(read.line(&asked).is_none(), got == Err(Refused::NoRule), "{asked:?}");
                match got {
                    Ok(demand) => {
                        check_demand(text, demand, &asked);
                        if let Some(after) = &after {
                            assert_eq!(after.demand(&asked), Ok(demand), "a later line decides");
                        }
                    }
                    Err(refused) => assert!(!refused.message(&asked).is_empty()),
                }
                if !is_physical {
                    assert_eq!(first.demand(&asked), Err(Refused::Rejected), "{asked:?}");
                }
            }
        }
    }
}

fn check_demand(text: &str, demand: &Demand, asked: &Asked<'_>) {
    let word = match demand.method {
        Method::Trust => "trust",
        Method::Cert => "cert",
        Method::Password => "password",
        Method::Md5 => "md5",
        Method::ScramSha256 => "scram-sha-256",
        Method::Reject => panic!("asks for nothing and lets in"),
    };
    assert!(says(text, word), "{word} is nowhere");
    assert!(!asked.is_physical || says(text, "replication"), "{asked:?}");
    if demand.method == Method::Cert {
        assert!(demand.certificate != Certificate::Ignored, "a certificate that nobody looks at");
        assert!(asked.origin.tls.is_some(), "{asked:?}");
    }
}

/// Maps let in whom they name, and a login by certificate gets in by them alone.
pub fn run_ident(data: &[u8]) {
    let Some((text, may_go_on)) = text(data) else { return };
    let maps = match Maps::parse("ident", text) {
        Ok(maps) => maps,
        Err(problems) => {
            assert!(!problems.to_string().is_empty(), "refused without a word");
            return;
        }
    };
    let more = may_go_on.then(|| Maps::parse("ident", &format!("{text}\nbeside x y\n")));
    let more = more.map(|more| more.expect("what is read is read before a line"));
    for map in ["staff", "mail", "m", ""] {
        for system in ["anna", "anna@hospital.example", "Berta Blau", ""] {
            for user in ["app", "anna", "ward7", ""] {
                let is_in = maps.allow(map, system, user);
                let is_named = ["all", "\\1", user].iter().any(|word| says(text, word));
                assert!(!is_in || maps.has(map) && is_named, "{map} {system} {user}");
                if let Some(more) = &more {
                    assert_eq!(more.allow(map, system, user), is_in, "by a line of another map");
                }
                let names = CertificateNames {
                    common_name: Some(system.to_owned()),
                    ..CertificateNames::default()
                };
                let tls = TlsFacts { client_certificate: Some(names), ..TlsFacts::default() };
                let certificate =
                    Certificate::VerifyFull { map: Some(map.into()), name: NameOf::CommonName };
                let demand = Demand { method: Method::Cert, certificate };
                let checked = demand.check_certificate(Some(&tls), user, &maps);
                assert_eq!(checked.is_ok(), is_in && !system.is_empty(), "{map} {system} {user}");
                assert!(demand.check_certificate(None, user, &maps).is_err(), "no certificate");
            }
        }
    }
}

/// A userlist that is taken has names that a userlist can hold, and nobody gets in without a secret.
pub fn run_userlist(data: &[u8]) {
    let Some((text, _)) = text(data) else { return };
    let auth = Auth { auth_type: AuthType::Plain, scram_iterations: 1, ..Auth::default() };
    let read = |text: &str| Users::parse_userlist("userlist.txt", text, &auth, [7; 32]);
    let users = match read(text) {
        Ok(users) => users,
        Err(problems) => {
            assert!(!problems.to_string().is_empty(), "refused without a word");
            return;
        }
    };
    let mut names: Vec<&str> = users.iter().map(|user| user.name.as_str()).collect();
    names.sort_unstable();
    let again: String =
        names.iter().map(|name| format!("\"{}\" \"x\"\n", name.replace('"', "\"\""))).collect();
    let again = read(&again).expect("its names");
    let mut named: Vec<&str> = again.iter().map(|user| user.name.as_str()).collect();
    named.sort_unstable();
    assert_eq!(named, names);
    for user in users.iter().take(2) {
        assert!(users.get(&user.name).is_some_and(|found| found.name == user.name));
        // A verifier says itself how much work it is.
        if !text.contains("SCRAM-") {
            let check = users.password_check(&user.name, Some(user.clone()), Secret::new(""));
            assert!(check().is_err(), "in without a password");
            let md5 = users.check_md5(&user.name, Some(user), [1, 2, 3, 4], b"");
            assert!(md5.is_err(), "in without a hash");
        }
    }
}

/// Longest secret worth a run.
const SECRET_BYTES_MAX: usize = 64;
const PASSWORD: &str = "app-password";

/// A method, then messages of a client that knows no secret; or two secrets with a newline between
/// them, of which each proves what it is and nothing else.
pub fn run_proofs(data: &[u8]) {
    let mut input = Input(data);
    let auth_type = match input.byte() % 4 {
        0 => AuthType::Plain,
        1 => AuthType::Md5,
        2 => AuthType::ScramSha256,
        _ => return prove(input.0),
    };
    let cuts = input.cuts();
    let startup = b"\0\0\0\x24\0\x03\0\0user\0app\0database\0hospital\0\0";
    let stream = [startup, input.0].concat();
    let whole = paused().block_on(log_in(auth_type, &[&stream]));
    let cut = paused().block_on(log_in(auth_type, &pieces(&stream, &cuts)));
    assert_eq!(whole, cut, "cut at {cuts:?}");
    let right = [b"p\0\0\0\x11", PASSWORD.as_bytes(), b"\0"].concat();
    let knows = auth_type == AuthType::Plain && input.0.starts_with(&right);
    assert_eq!(whole == "in", knows, "{auth_type:?}");
}

async fn log_in(auth_type: AuthType, pieces: &[&[u8]]) -> String {
    let (near, mut far) = tokio::io::duplex(1 << 16);
    let login = tokio::spawn(async move {
        let door = Door {
            users: users(auth_type),
            lookup: None,
            database: "hospital",
            refusal: None,
            reserved_for: None,
            tls: None,
        };
        let deadline = Instant::now() + Duration::from_secs(60);
        match Box::pin(hello(Stream::Memory(Box::new(near)), &door, deadline)).await {
            Ok(Hello::Login(_)) => "in".to_owned(),
            Ok(Hello::Cancel { .. }) => panic!("a startup packet is no cancel"),
            Err(error) => error.to_string(),
        }
    });
    for piece in pieces {
        // It may be closed already.
        let _ = far.write_all(piece).await;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let _ = far.shutdown().await;
    login.await.expect("no panic")
}

fn users(auth_type: AuthType) -> &'static Users {
    static USERS_OF: [OnceLock<Users>; 3] = [const { OnceLock::new() }; 3];
    let at = match auth_type {
        AuthType::Plain => 0,
        AuthType::Md5 => 1,
        _ => 2,
    };
    USERS_OF[at].get_or_init(|| {
        let auth = Auth { auth_type, scram_iterations: 1, ..Auth::default() };
        let text = format!("\"app\" \"{PASSWORD}\"\n");
        let users = Users::parse_userlist("userlist.txt", &text, &auth, [7; 32]).expect("users");
        users.warm();
        users
    })
}

/// Both sides of SCRAM and of md5 agree on whether two secrets are one.
fn prove(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (kept, shown) = text.split_once('\n').unwrap_or((text, text));
    let is_usable = |secret: &str| (1..=SECRET_BYTES_MAX).contains(&secret.len());
    if !is_usable(kept) || !is_usable(shown) || text.contains('\0') {
        return;
    }
    let is_in = prove_scram(kept, shown);
    assert!(is_in || kept != shown, "not in by SCRAM with the secret");
    // Beyond ASCII secrets may differ and be one to SASLprep.
    assert!(!is_in || kept == shown || !text.is_ascii(), "in by SCRAM with another");
    let salt = [1, 2, 3, 4];
    let response = ServerSecret::plain(shown).md5_response("app", salt).expect("a response");
    let auth = Auth { auth_type: AuthType::Md5, scram_iterations: 1, ..Auth::default() };
    let line = format!("\"app\" \"{}\"\n", kept.replace('"', "\"\""));
    let Ok(users) = Users::parse_userlist("userlist.txt", &line, &auth, [7; 32]) else { return };
    // A secret that is a hash is compared as one.
    if kept.starts_with("md5") || kept.starts_with("SCRAM-") {
        return;
    }
    let user = users.get("app").expect("the user");
    let checked = users.check_md5("app", Some(user), salt, response.as_bytes());
    assert_eq!(checked.is_ok(), kept == shown, "md5");
}

fn prove_scram(kept: &str, shown: &str) -> bool {
    let verifier = Verifier::derive(&Secret::new(kept), b"0123456789abcdef", 1);
    let (client_first, client) = ClientExchange::start(&Secret::new(shown));
    let (server_first, server) = ServerExchange::start(&client_first, &verifier).expect("a start");
    let (client_final, proof) = client.on_server_first(server_first.as_bytes()).expect("a proof");
    match server.finish(&client_final) {
        Ok(proven) => {
            let server_final = proven.server_final;
            assert!(proof.on_server_final(server_final.as_bytes()).is_ok(), "no proof in return");
            true
        }
        Err(_) => false,
    }
}
