//! TLS with real peers: libpq's modes against pgward, pgward's modes against Postgres, hand-made
//! clients for what libpq would not do, and reloads.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pgward::auth::{ServerCredentials, ServerSecret};
use pgward::config;
use pgward::net::tls::ServerTls;
use pgward::server::login::{Target, connect, send_cancel};
use pgward::shard_map::{ShardId, SslMode};
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::support::certs::{Authority, Issued, Subject, put, self_signed};
use crate::support::raw::{message, packet, query, startup};
use crate::support::*;

const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];
const GSSENC_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 48];

/// A new directory for a test's files.
fn folder(shards: &Shards, name: &str) -> PathBuf {
    let path = shards.directory().join(name);
    std::fs::create_dir(&path).expect("a directory");
    path
}

fn localhost(authority: &Authority) -> Issued {
    authority.issue(Subject { names: &["localhost"], ..Subject::default() })
}

/// Lines of `[tls]` for clients.
fn client_lines(folder: &Path, mode: &str, more: &str) -> String {
    let folder = folder.display();
    format!(
        "client_tls_sslmode = \"{mode}\"\nclient_tls_cert_file = \"{folder}/server.crt\"\n\
         client_tls_key_file = \"{folder}/server.key\"\n{more}"
    )
}

/// What psql says of its connection, or of why it has none.
fn psql(ward: &Ward, conninfo: &str) -> Result<String, String> {
    let conninfo = format!("host=localhost hostaddr=127.0.0.1 {conninfo}");
    let output = ward.psql(&["-d", &conninfo, "-c", "\\conninfo", "-c", "SELECT 1"]);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// Every mode of libpq against every mode of pgward: in the clear, over TLS, or not in.
#[tokio::test]
async fn clients_get_the_tls_that_both_sides_want() {
    let shards = shards();
    let folder = folder(shards, "tls-modes");
    let ca = Authority::new("ca");
    localhost(&ca).write(&folder, "server");
    let ward = Ward::start(shards, &WardOptions::default());
    let console = ward.console().await;
    for (mode, want) in [
        ("disable", ["plain", "plain", "plain", "server does not support SSL"]),
        ("allow", ["plain", "plain", "tls", "tls"]),
        ("prefer", ["plain", "plain", "tls", "tls"]),
        ("require", ["SSL required", "tls", "tls", "tls"]),
    ] {
        ward.configure(&[("tls", &client_lines(&folder, mode, ""))]);
        simple(&console, "RELOAD").await.unwrap_or_else(|error| panic!("{}", tell(&error)));
        for (client, want) in ["disable", "allow", "prefer", "require"].into_iter().zip(want) {
            let got = match psql(&ward, &format!("sslmode={client}")) {
                Ok(said) if said.contains("SSL connection (protocol: TLSv1.3") => "tls".to_owned(),
                Ok(said) if said.ends_with("1\n") => "plain".to_owned(),
                Ok(said) | Err(said) => said,
            };
            assert!(got.contains(want), "pgward {mode}, psql {client}: {got}");
        }
    }
    // A cancel in the clear is none of a login: libpq has sent no other before version 17.
    let mut config = ward.client_config();
    config.dbname("pgward").user("admin").password("admin-password");
    assert!(ward.connect_with(&config).await.is_err(), "the console needs TLS too");
}

#[tokio::test]
async fn libpq_judges_pgwards_certificate_and_binds_its_login_to_it() {
    let shards = shards();
    let folder = folder(shards, "tls-judged");
    let (ca, other) = (Authority::new("ca"), Authority::new("other"));
    let (good, wrong) = (put(&folder, "ca.crt", &ca.pem), put(&folder, "wrong.crt", &other.pem));
    localhost(&ca).write(&folder, "server");
    let lines = client_lines(&folder, "require", "");
    let ward = Ward::start(shards, &WardOptions { config: &[("tls", &lines)], map: None });
    let verify = |mode: &str, root: &Path, more: &str| {
        psql(&ward, &format!("sslmode={mode} sslrootcert={} {more}", root.display()))
    };
    let refused = |got: Result<String, String>, want: &str| {
        let said = got.expect_err("refused");
        assert!(said.contains(want), "{said}");
    };
    verify("verify-full", &good, "channel_binding=require").expect("in");
    verify("verify-full", &good, "channel_binding=disable").expect("in");
    verify("verify-ca", &good, "host=db.example").expect("in");
    refused(verify("verify-full", &good, "host=db.example"), "does not match host name");
    refused(verify("verify-ca", &wrong, ""), "certificate verify failed");

    // Those who are connected keep what they have; new ones get what a reload read.
    let reload = async |issued: Issued| {
        issued.write(&folder, "server");
        ward.signal("HUP");
    };
    let seen = ward.log().matches("\"reloaded\"").count();
    reload(ca.issue(Subject { names: &["localhost"], is_expired: true, ..Subject::default() }))
        .await;
    eventually("the reload", async || ward.log().matches("\"reloaded\"").count() > seen).await;
    refused(verify("verify-ca", &good, ""), "certificate verify failed");

    // Ed25519 has no hash to bind to: not offered, so libpq logs in without.
    let ed25519 = Authority::with("ca", &rcgen::PKCS_ED25519);
    let good = put(&folder, "ed25519.crt", &ed25519.pem);
    reload(localhost(&ed25519)).await;
    eventually("the reload", async || verify("verify-full", &good, "").is_ok()).await;
    refused(verify("verify-full", &good, "channel_binding=require"), "channel binding");
    let p384 = Authority::with("ca", &rcgen::PKCS_ECDSA_P384_SHA384);
    let good = put(&folder, "p384.crt", &p384.pem);
    reload(localhost(&p384)).await;
    eventually("the reload", async || verify("verify-full", &good, "").is_ok()).await;
    verify("verify-full", &good, "channel_binding=require").expect("bound by SHA-384");

    // What can't be read leaves all as it is, and is told.
    put(&folder, "server.crt", "no certificate");
    ward.signal("HUP");
    eventually("the refusal", async || ward.log().contains("has no certificate in PEM")).await;
    verify("verify-full", &good, "channel_binding=require").expect("the old one serves on");
}

#[tokio::test]
async fn clients_show_the_certificates_that_they_must() {
    let shards = shards();
    let folder = folder(shards, "tls-mutual");
    let (ca, other) = (Authority::new("ca"), Authority::new("other"));
    put(&folder, "ca.crt", &ca.pem);
    localhost(&ca).write(&folder, "server");
    let ada = Subject { common_name: "ada", ..Subject::default() };
    ca.issue(ada).write(&folder, "ada");
    other.issue(ada).write(&folder, "stranger");
    ca.issue(Subject { is_expired: true, ..ada }).write(&folder, "former");
    let ca_file = format!("client_tls_ca_file = \"{}/ca.crt\"", folder.display());
    let ward = Ward::start(shards, &WardOptions::default());
    let console = ward.console().await;
    let show = |name: &str| {
        let path = folder.join(name).display().to_string();
        psql(&ward, &format!("sslmode=require sslcert={path}.crt sslkey={path}.key"))
    };
    for (mode, needed) in [("require", false), ("verify-ca", true), ("verify-full", true)] {
        ward.configure(&[("tls", &client_lines(&folder, mode, &ca_file))]);
        simple(&console, "RELOAD").await.unwrap_or_else(|error| panic!("{}", tell(&error)));
        show("ada").unwrap_or_else(|said| panic!("{mode}: {said}"));
        for stranger in ["stranger", "former"] {
            show(stranger).expect_err("a certificate that is no good");
        }
        assert_eq!(show("none").is_err(), needed, "{mode}, without a certificate");
    }
}

/// Rules of `auth_hba_file` and of `auth_ident_file`, for `rules_see_what_the_handshake_has_shown`.
const RULES: &str = "
hostssl    hospital  app,migrate  127.0.0.1/32  cert           map=staff
hostssl    hospital  nurse        127.0.0.1/32  scram-sha-256
hostssl    hospital  clerk        127.0.0.1/32  scram-sha-256  clientcert=verify-full
hostssl    hospital  guest        127.0.0.1/32  scram-sha-256  clientcert=verify-ca
hostnossl  hospital  old          127.0.0.1/32  scram-sha-256
host       pgward    admin        127.0.0.1/32  scram-sha-256
";
const MAPS: &str = "
staff  \"Ada Lovelace\"                  app
staff  /^([a-z]+)@hospital\\.example$     \\1
";

/// A user of the users file who is `app` on the servers.
fn proxied(name: &str) -> String {
    format!(
        "[[user]]\nname = \"{name}\"\nsecret = \"{name}-password\"\nserver_user = \"app\"\n\
         server_secret_file = \"app-secret\"\n"
    )
}

#[test]
fn rules_see_what_the_handshake_has_shown() {
    let shards = shards();
    let folder = folder(shards, "tls-rules");
    let (ca, other) = (Authority::new("ca"), Authority::new("other"));
    put(&folder, "ca.crt", &ca.pem);
    put(&folder, "hba.conf", RULES);
    put(&folder, "ident.conf", MAPS);
    localhost(&ca).write(&folder, "server");
    for name in ["Ada Lovelace", "migrate@hospital.example", "app", "clerk"] {
        ca.issue(Subject { common_name: name, ..Subject::default() }).write(&folder, name);
    }
    let stranger = Subject { common_name: "Ada Lovelace", ..Subject::default() };
    other.issue(stranger).write(&folder, "stranger");
    let ca_file = format!("client_tls_ca_file = \"{}/ca.crt\"", folder.display());
    let tls = client_lines(&folder, "prefer", &ca_file);
    let auth = format!(
        "auth_type = \"hba\"\nauth_hba_file = \"{0}/hba.conf\"\nauth_ident_file = \"{0}/ident.conf\"",
        folder.display()
    );
    let proxied: String = ["nurse", "clerk", "guest", "old"].map(proxied).concat();
    let users = format!("{USERS}{proxied}");
    let options = WardOptions { config: &[("tls", &tls), ("auth", &auth)], map: None };
    let extra = Extra { users: Some(&users), ..Extra::default() };
    let ward = Ward::start_with(shards, &options, &extra);

    let whom = |user: &str, encryption: &str| {
        format!(
            "no pg_hba.conf entry for host \"127.0.0.1\", user \"{user}\", database \"hospital\", \
             {encryption}"
        )
    };
    let not_by = |user: &str| format!("certificate authentication failed for user \"{user}\"");
    let no_password = |user: &str| format!("password authentication failed for user \"{user}\"");
    let none = || "connection requires a valid client certificate".to_owned();
    // User, password, certificate; "" is for none, and for what doesn't matter. `Err`: the refusal.
    let over_tls = [
        ("app", "", "Ada Lovelace", Ok(())),
        ("migrate", "", "migrate@hospital.example", Ok(())),
        // The map does not say so, although the name is the user's.
        ("app", "app-password", "app", Err(not_by("app"))),
        ("app", "app-password", "migrate@hospital.example", Err(not_by("app"))),
        ("migrate", "", "Ada Lovelace", Err(not_by("migrate"))),
        ("app", "app-password", "", Err(none())),
        ("app", "app-password", "stranger", Err(String::new())),
        ("nurse", "nurse-password", "", Ok(())),
        ("nurse", "wrong", "Ada Lovelace", Err(no_password("nurse"))),
        ("clerk", "clerk-password", "clerk", Ok(())),
        ("clerk", "wrong", "clerk", Err(no_password("clerk"))),
        ("clerk", "clerk-password", "app", Err(not_by("clerk"))),
        ("clerk", "clerk-password", "", Err(none())),
        ("guest", "guest-password", "app", Ok(())),
        ("guest", "wrong", "app", Err(no_password("guest"))),
        ("guest", "guest-password", "", Err(none())),
        ("old", "old-password", "", Err(whom("old", "SSL encryption"))),
    ];
    for (user, password, certificate, want) in over_tls {
        let certificate = if certificate.is_empty() { "none" } else { certificate };
        let path = folder.join(certificate).display().to_string();
        let got = psql(
            &ward,
            &format!(
                "sslmode=require user={user} password='{password}' sslcert='{path}.crt' \
                 sslkey='{path}.key'"
            ),
        );
        let case = format!("{user}, {password:?}, {certificate}");
        match want {
            Ok(()) => {
                assert!(got.as_ref().is_ok_and(|said| said.ends_with("1\n")), "{case}: {got:?}")
            }
            Err(words) => {
                let said = got.expect_err(&case);
                assert!(said.contains(&words), "{case}: {said}");
            }
        }
    }
    let bound =
        psql(&ward, "sslmode=require channel_binding=require user=nurse password=nurse-password");
    bound.expect("by a rule, and bound to the connection");

    for (user, want) in [
        ("old", None),
        ("app", Some(whom("app", "no encryption"))),
        ("nurse", Some(whom("nurse", "no encryption"))),
        ("clerk", Some(whom("clerk", "no encryption"))),
    ] {
        let got = psql(&ward, &format!("sslmode=disable user={user} password={user}-password"));
        match want {
            None => assert!(got.is_ok(), "{user}: {got:?}"),
            Some(words) => {
                let said = got.expect_err(user);
                assert!(said.contains(&words), "{user}: {said}");
            }
        }
    }
    assert!(!ward.log().contains("-password"), "a secret in the log:\n{}", ward.log());
}

/// A client of TLS that sends bytes as it likes.
type TlsRaw = StreamOwned<ClientConnection, TcpStream>;

/// Shakes hands on `tcp`.
fn shake(tcp: TcpStream, ca: &str, alpn: Option<&str>) -> TlsRaw {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).expect("PEM")).expect("a root");
    let mut config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.into_iter().map(Into::into).collect();
    let name = ServerName::try_from("localhost").expect("a name");
    StreamOwned::new(ClientConnection::new(Arc::new(config), name).expect("a client"), tcp)
}

/// Connects, asks for TLS, and shakes hands.
fn asked(ward: &Ward, ca: &str) -> TlsRaw {
    let mut raw = Raw::connect(ward);
    raw.send(&SSL_REQUEST);
    let mut yes = [0];
    raw.stream.read_exact(&mut yes).expect("an answer");
    assert_eq!(&yes, b"S");
    shake(raw.stream, ca, None)
}

/// One message over TLS; `None` at the end.
fn hear(stream: &mut TlsRaw) -> Option<Message> {
    let mut head = [0; 5];
    stream.read_exact(&mut head).ok()?;
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
    let mut body = vec![0; length - 4];
    stream.read_exact(&mut body).ok()?;
    Some(Message { tag: head[0], body })
}

fn hear_until(stream: &mut TlsRaw, tag: u8) -> Message {
    std::iter::from_fn(|| hear(stream)).find(|message| message.tag == tag).expect("a message")
}

#[tokio::test]
async fn nothing_is_smuggled_past_the_handshake() {
    let shards = shards();
    let folder = folder(shards, "tls-hostile");
    let ca = Authority::new("ca");
    localhost(&ca).write(&folder, "server");
    let lines = client_lines(&folder, "require", "");
    let config = [
        ("tls", &*lines),
        ("auth", "auth_type = \"trust\""),
        ("listen", "client_login_timeout = 2.0"),
    ];
    let ward = Ward::start(shards, &WardOptions { config: &config, map: None });
    let plain_login = startup(0x0003_0000);

    // Bytes behind the request would else pass for the client's own, over TLS.
    let mut raw = Raw::connect(&ward);
    raw.send(&[&SSL_REQUEST[..], &plain_login].concat());
    let error = raw.message().expect("a refusal");
    assert_eq!((error.tag, error.sqlstate()), (b'E', "08P01"));
    assert!(raw.message().is_none());

    // Between the yes and the handshake.
    let mut raw = Raw::connect(&ward);
    raw.send(&SSL_REQUEST);
    let mut yes = [0];
    raw.stream.read_exact(&mut yes).expect("an answer");
    raw.send(&plain_login);
    let heard = raw.until_closed();
    assert!(heard.iter().all(|message| message.tag != b'R'), "{heard:?}");

    // In the clear.
    let mut raw = Raw::connect(&ward);
    raw.send(&plain_login);
    let error = raw.message().expect("a refusal");
    assert_eq!((error.tag, error.sqlstate()), (b'E', "28000"));

    // Encryption inside encryption, once or for ever.
    for request in [SSL_REQUEST, GSSENC_REQUEST] {
        let mut stream = asked(&ward, &ca.pem);
        stream.write_all(&request).expect("sent");
        assert_eq!(hear(&mut stream).expect("a refusal").sqlstate(), "0A000");
        // And the end is a proper one, not a cut.
        assert_eq!(stream.read(&mut [0]).expect("close_notify"), 0);
    }

    // GSS is declined, and TLS may follow.
    let mut raw = Raw::connect(&ward);
    raw.send(&GSSENC_REQUEST);
    let mut no = [0];
    raw.stream.read_exact(&mut no).expect("an answer");
    raw.send(&SSL_REQUEST);
    let mut yes = [0];
    raw.stream.read_exact(&mut yes).expect("an answer");
    assert_eq!((&no, &yes), (b"N", b"S"));
    let mut stream = shake(raw.stream, &ca.pem, None);
    stream.write_all(&plain_login).expect("sent");
    hear_until(&mut stream, b'Z');

    // Direct TLS, with and without the protocol's name.
    let mut stream = shake(Raw::connect(&ward).stream, &ca.pem, Some("postgresql"));
    stream.write_all(&plain_login).expect("sent");
    hear_until(&mut stream, b'Z');
    let mut stream = shake(Raw::connect(&ward).stream, &ca.pem, None);
    let _ = stream.write_all(&plain_login);
    assert!(hear(&mut stream).is_none());

    // A client that is silent where the handshake should be: `client_login_timeout`.
    let mut raw = Raw::connect(&ward);
    raw.send(&SSL_REQUEST);
    raw.stream.read_exact(&mut yes).expect("an answer");
    // Unlike `read`, this goes on behind a signal.
    assert_eq!(raw.stream.read_to_end(&mut Vec::new()).expect("the end"), 0);
}

#[tokio::test]
async fn a_cancel_over_tls_stops_the_query() {
    let shards = shards();
    let folder = folder(shards, "tls-cancel");
    let ca = Authority::new("ca");
    localhost(&ca).write(&folder, "server");
    let lines = client_lines(&folder, "require", "");
    let config = [("tls", &*lines), ("auth", "auth_type = \"trust\"")];
    let ward = Ward::start(shards, &WardOptions { config: &config, map: None });
    let id = shards.hospital(1, 1);
    let mut client = asked(&ward, &ca.pem);
    client.write_all(&startup(0x0003_0000)).expect("sent");
    let key = hear_until(&mut client, b'K').body;
    hear_until(&mut client, b'Z');
    let mark = id.simple();
    let slow = format!("SELECT pg_sleep(60) AS s{mark} FROM patients WHERE hospital_id = '{id}'");
    client.write_all(&query(&slow)).expect("sent");
    let is_running = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%s{mark}%' \
         AND pid <> pg_backend_pid()"
    );
    eventually("the query", async || shards.psql(1, &is_running) != "0").await;
    let request = packet(&[&80_877_102u32.to_be_bytes(), &key]);
    let mut cancel = asked(&ward, &ca.pem);
    cancel.write_all(&request).expect("sent");
    assert_eq!(cancel.read(&mut [0]).expect("the end, without a word"), 0);
    assert_eq!(hear_until(&mut client, b'E').sqlstate(), "57014");
    hear_until(&mut client, b'Z');
    // Bulk, both ways, over the same connection: more than any buffer on the way holds.
    let long = "x".repeat(3_000_000);
    client.write_all(&query(&format!("SELECT '{long}'"))).expect("sent");
    assert!(hear_until(&mut client, b'D').body.len() > long.len());
    client.write_all(&message(b'X', &[])).expect("sent");
}

/// Turns TLS on at the primary, by a certificate of `ca`, and takes nothing else over TCP.
fn serve_tls(shards: &Shards, issued: &Issued, hba: &str) {
    let (cert, key) = issued.write(shards.directory(), "postgres");
    let settings = [("ssl_cert_file", cert), ("ssl_key_file", key)];
    let psql = |sql: &str| shards.primary.psql("postgres", sql).expect("set up");
    for (name, path) in settings {
        psql(&format!("ALTER SYSTEM SET {name} = '{}'", path.display()));
    }
    psql("ALTER SYSTEM SET ssl = on");
    let local = "local all all trust\nlocal replication all trust\n";
    let file = shards.directory().join("primary/pg_hba.conf");
    std::fs::write(file, format!("{local}{hba}")).expect("pg_hba.conf");
    psql("SELECT pg_reload_conf()");
}

const TLS_ONLY: &str = "hostssl all all 127.0.0.1/32 scram-sha-256\n";

#[tokio::test]
async fn servers_are_spoken_to_as_the_mode_says() {
    let shards = Shards::start(&Default::default());
    let (ca, other) = (Authority::new("ca"), Authority::new("other"));
    let good = put(shards.directory(), "ca.crt", &ca.pem);
    let wrong = put(shards.directory(), "wrong.crt", &other.pem);
    serve_tls(&shards, &localhost(&ca), TLS_ONLY);
    let log_in = async |host: &str, mode: SslMode, ca_file: &Path| {
        let tls = config::Tls {
            server_tls_sslmode: mode,
            server_tls_ca_file: ca_file.to_owned(),
            ..Default::default()
        };
        let tls = ServerTls::load(&tls, &[]).expect("files").of(ShardId(0)).clone();
        let address = format!("{host}:{}", shards.primary.port()).parse().expect("an address");
        let credentials = ServerCredentials::new("app", Some(ServerSecret::plain("app-secret")));
        let target = Target::new(address, tls, "shard0".into(), &credentials);
        connect(&target, PATIENCE).await
    };
    // Postgres reads its configuration when it gets round to it.
    let none = Path::new("");
    eventually("TLS at the server", async || {
        log_in("localhost", SslMode::Require, none).await.is_ok()
            && log_in("localhost", SslMode::Disable, none).await.is_err()
    })
    .await;
    use SslMode::{Allow, Disable, Prefer, Require, VerifyCa, VerifyFull};
    for (host, mode, ca_file, want) in [
        ("localhost", Disable, none, "the server refused the login with 28000"),
        ("localhost", Allow, none, ""),
        ("localhost", Prefer, none, ""),
        ("localhost", Require, none, ""),
        ("localhost", VerifyCa, &good, ""),
        ("127.0.0.1", VerifyCa, &good, ""),
        ("localhost", VerifyCa, &wrong, "UnknownIssuer"),
        ("localhost", VerifyFull, &good, ""),
        ("127.0.0.1", VerifyFull, &good, "not valid for name"),
        ("localhost", VerifyFull, &wrong, "UnknownIssuer"),
    ] {
        let got = log_in(host, mode, ca_file).await.map(|_| ()).map_err(|error| error.to_string());
        let is_right = match &got {
            Ok(()) => want.is_empty(),
            Err(said) => !want.is_empty() && said.contains(want),
        };
        assert!(is_right, "{host} {mode:?}: {got:?}, not {want:?}");
    }
    // A cancel goes the way of its connection.
    let greeting = log_in("localhost", VerifyFull, &good).await.expect("in");
    send_cancel(&greeting.way.expect("a way"), greeting.pid, &greeting.key, PATIENCE)
        .await
        .expect("sent");
    // One that signs itself, trusted by name, as the manual makes it.
    let own = self_signed(Subject { common_name: "localhost", ..Subject::default() });
    let own_file = put(shards.directory(), "own.crt", &own.pem);
    serve_tls(&shards, &own, TLS_ONLY);
    eventually("its own certificate", async || {
        log_in("localhost", VerifyFull, &own_file).await.is_ok()
    })
    .await;
    // Signed by Ed25519, which has no hash: Postgres offers to bind to it, and can't.
    let ed25519 = Authority::with("ca", &rcgen::PKCS_ED25519);
    let ed25519_file = put(shards.directory(), "ed25519.crt", &ed25519.pem);
    serve_tls(&shards, &localhost(&ed25519), TLS_ONLY);
    eventually("the certificate", async || {
        log_in("localhost", VerifyFull, &ed25519_file).await.is_ok()
    })
    .await;
}

/// TLS of each connection that pgward has to `database`, by user.
fn encrypted(shards: &Shards, database: &str) -> String {
    let sql = format!(
        "SELECT usename, bool_and(ssl), bool_or(ssl) FROM pg_stat_ssl JOIN pg_stat_activity \
         USING (pid) WHERE datname = '{database}' AND usename IN ('app', 'pgward') \
         GROUP BY 1 ORDER BY 1"
    );
    shards.primary.psql("postgres", &sql).expect("rows")
}

#[tokio::test]
async fn a_reload_brings_new_authorities_and_new_connections() {
    let shards = Shards::start(&Default::default());
    let (ca, next) = (Authority::new("ca"), Authority::new("next"));
    let ca_file = put(shards.directory(), "ca.crt", &ca.pem);
    serve_tls(&shards, &localhost(&ca), TLS_ONLY);
    let lines = format!(
        "server_tls_sslmode = \"verify-full\"\nserver_tls_ca_file = \"{}\"",
        ca_file.display()
    );
    let map = one_shard_map(shards.primary.port(), "shard0").replace("127.0.0.1", "localhost");
    let ward = Ward::start(&shards, &WardOptions { config: &[("tls", &lines)], map: Some(map) });
    let console = ward.console().await;
    let client = ward.connect().await;
    let ask = async || simple(&client, "SELECT pg_backend_pid()").await.map_err(|e| tell(&e));
    let first = ask().await.expect("a row");
    // A control connection comes and goes by itself: it may be on its way.
    let is_all_encrypted = async || encrypted(&shards, "shard0") == "app|t|t\npgward|t|t";
    eventually("TLS for all", is_all_encrypted).await;
    let servers = simple(&console, "SHOW SERVERS").await.expect("rows").join("\n");
    assert!(servers.contains("TLSv1.3/TLS13_"), "{servers}");
    assert_eq!(ask().await.expect("a row"), first, "the same connection");

    // The same files: nothing is closed.
    simple(&console, "RELOAD").await.unwrap_or_else(|error| panic!("{}", tell(&error)));
    assert_eq!(ask().await.expect("a row"), first, "the same connection");

    // Another authority, on both sides: servers are connected to anew.
    serve_tls(&shards, &localhost(&next), TLS_ONLY);
    put(shards.directory(), "ca.crt", &next.pem);
    simple(&console, "RELOAD").await.unwrap_or_else(|error| panic!("{}", tell(&error)));
    eventually("a new connection", async || ask().await.is_ok_and(|pid| pid != first)).await;
    eventually("TLS for all", is_all_encrypted).await;

    let second = ask().await.expect("a row");
    put(shards.directory(), "ca.crt", "no certificate");
    let error = simple(&console, "RELOAD").await.expect_err("refused");
    assert!(tell(&error).contains("has no certificate in PEM"), "{}", tell(&error));
    assert_eq!(ask().await.expect("a row"), second, "the same connection");
}

#[tokio::test]
async fn a_shard_may_have_its_own_tls() {
    let shards = Shards::start(&Default::default());
    let ca = Authority::new("ca");
    put(shards.directory(), "ca.crt", &ca.pem);
    serve_tls(&shards, &localhost(&ca), "host all all 127.0.0.1/32 scram-sha-256\n");
    let map = shards.map_with(|shard| (shards.primary.port(), None, shard));
    let map = map
        .replace("id = 0\n", "id = 0\ntls = { sslmode = \"disable\" }\n")
        .replace("127.0.0.1", "localhost")
        .replace(
            "id = 2\n",
            "id = 2\ntls = { sslmode = \"verify-full\", ca_file = \"../ca.crt\" }\n",
        );
    let config = [("tls", "server_tls_sslmode = \"require\"")];
    let ward = Ward::start(&shards, &WardOptions { config: &config, map: Some(map) });
    let client = ward.connect().await;
    for (shard, want) in [(0, "f"), (1, "t"), (2, "t")] {
        let id = hospital_on(shard);
        simple(&client, &format!("SELECT 1 FROM patients WHERE hospital_id = '{id}'"))
            .await
            .unwrap_or_else(|error| panic!("shard {shard}: {}", tell(&error)));
        let got = encrypted(&shards, &format!("shard{shard}"));
        let got = got.lines().next().expect("a row");
        assert_eq!(got, format!("app|{want}|{want}"), "shard {shard}");
    }
}
