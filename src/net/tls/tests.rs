//! Certificates of every kind, and handshakes of every mode between our own two ends.

use std::path::PathBuf;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

use super::*;
use crate::config;
use crate::net::Stream;
use crate::shard_map::{Address, Shard, ShardId, ShardTls, SslMode};

#[path = "../../../tests/it/support/certs.rs"]
mod certs;
use certs::{Authority, Issued, Subject, put, self_signed};

/// A directory for files; it goes with this value.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("pgward-tls-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

fn der(issued: &Issued) -> Vec<u8> {
    CertificateDer::from_pem_slice(issued.pem.as_bytes()).unwrap().to_vec()
}

fn localhost(authority: &Authority) -> Issued {
    authority.issue(Subject { names: &["localhost"], ..Subject::default() })
}

#[test]
fn names_of_certificates() {
    let ca = Authority::new("ca");
    let names = |subject| certificate::names(&der(&ca.issue(subject))).unwrap();
    let ada = names(Subject { common_name: "ada", organization: "Ward, 7", ..Subject::default() });
    assert_eq!(ada.common_name.as_deref(), Some("ada"));
    assert_eq!(ada.distinguished_name, "CN=ada,O=Ward\\, 7");
    let nobody = names(Subject { organization: "Ward", ..Subject::default() });
    assert_eq!((nobody.common_name, nobody.distinguished_name.as_str()), (None, "O=Ward"));
    // It would end there for some readers.
    let cut = names(Subject { common_name: "root\0.example", ..Subject::default() });
    assert_eq!(cut.common_name, None);
    assert!(certificate::names(b"no certificate").is_none());
}

#[test]
fn the_hash_for_channel_binding_is_that_of_the_signature() {
    for (algorithm, bytes) in [
        (&rcgen::PKCS_ECDSA_P256_SHA256, 32),
        (&rcgen::PKCS_ECDSA_P384_SHA384, 48),
        // Libpq has none for it, and so must not be asked.
        (&rcgen::PKCS_ED25519, 0),
    ] {
        // It is the authority's algorithm that counts, not the key's own.
        let issued = localhost(&Authority::with("ca", algorithm));
        assert_eq!(certificate::end_point(&der(&issued)).len(), bytes, "{algorithm:?}");
        // The library that checks clients' proofs agrees with us.
        let mut machine = pgwire::api::auth::sasl::scram::ScramServerAuth::new();
        let is_bindable = machine.configure_certificate(issued.pem.as_bytes()).is_ok();
        assert_eq!(is_bindable, bytes > 0, "{algorithm:?}");
    }
    assert!(certificate::end_point(b"no certificate").is_empty());
    let issued = localhost(&Authority::new("ca"));
    let want = ::ring::digest::digest(&::ring::digest::SHA256, &der(&issued));
    assert_eq!(certificate::end_point(&der(&issued)), want.as_ref());
}

#[test]
fn a_common_name_counts_where_there_is_no_other() {
    let ca = Authority::new("ca");
    let is_for = |common_name, names, host| {
        let issued = ca.issue(Subject { common_name, names, ..Subject::default() });
        certificate::is_for_common_name(&der(&issued), host)
    };
    assert!(is_for("db.example", &[], "DB.example"));
    assert!(!is_for("db.example", &[], "db.example.org"));
    assert!(!is_for("db.example", &["other"], "db.example"));
    assert!(is_for("*.shards.example", &[], "a.shards.example"));
    assert!(!is_for("*.shards.example", &[], "a.b.shards.example"));
    assert!(!is_for("*.shards.example", &[], ".shards.example"));
    assert!(!is_for("*.example", &[], "db.example"));
    assert!(!is_for("*.0.0.1", &[], "127.0.0.1"));
    assert!(!is_for("", &[], ""));
}

/// `[tls]` whose clients see `issued`.
fn client_side(folder: &Folder, issued: &Issued, mode: SslMode) -> config::Tls {
    let (cert, key) = issued.write(&folder.0, "server");
    config::Tls {
        client_tls_sslmode: mode,
        client_tls_cert_file: cert,
        client_tls_key_file: key,
        ..config::Tls::default()
    }
}

/// A server that agrees to TLS and shakes hands with everybody.
async fn serve(acceptor: Acceptor, behind_yes: &'static [u8]) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (mut tcp, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut request = [0; 8];
                tcp.read_exact(&mut request).await.unwrap();
                tcp.write_all(&[b"S", behind_yes].concat()).await.unwrap();
                let accepted = Stream::from(tcp).accept_tls(&acceptor, b"", false).await;
                let Ok(mut stream) = accepted else { return };
                let (mut input, mut output) = (Buffer::default(), Buffer::default());
                while stream.fill(&mut input).await.is_ok_and(|n| n > 0) {
                    output.push(input.as_slice());
                    input.clear();
                    stream.drain(&mut output).await.unwrap();
                }
            });
        }
    });
    port
}

/// Connects to `host`, which is this machine, and hears its echo.
async fn connect(tls: &Connector, host: &str, port: u16) -> Result<(), String> {
    let address = Address { host: host.into(), port };
    let (mut stream, way) = Stream::connect(&address, tls, tls.attempts()[0])
        .await
        .map_err(|error| error.to_string())?;
    echo(&mut stream).await?;
    echo(&mut Stream::connect_again(&way).await.unwrap()).await
}

async fn echo(stream: &mut Stream) -> Result<(), String> {
    assert!(stream.is_tls() && stream.tls_version().unwrap().starts_with("TLSv1."));
    let (mut output, mut input) = (Buffer::default(), Buffer::default());
    let sent = vec![b'x'; 300_000];
    output.push(&sent);
    let mut is_written = false;
    std::future::poll_fn(|cx| {
        loop {
            if !is_written && let Poll::Ready(written) = stream.poll_drain(cx, &mut output) {
                written.map_err(|error| error.to_string())?;
                is_written = true;
            }
            match ready!(stream.poll_fill(cx, &mut input)) {
                Ok(0) => return Poll::Ready(Err("closed".to_owned())),
                Ok(_) if input.len() == sent.len() => return Poll::Ready(Ok(())),
                Ok(_) => {}
                Err(error) => return Poll::Ready(Err(error.to_string())),
            }
        }
    })
    .await
}

fn connector(tls: &config::Tls) -> Result<Connector, Error> {
    ServerTls::load(tls, &[]).map(|all| all.of(ShardId(0)).clone())
}

fn server_side(sslmode: SslMode, ca_file: PathBuf) -> config::Tls {
    config::Tls { server_tls_sslmode: sslmode, server_tls_ca_file: ca_file, ..Default::default() }
}

#[tokio::test]
async fn a_servers_certificate_is_judged_as_the_mode_says() {
    let folder = Folder::new("judged");
    let (ca, other) = (Authority::new("ca"), Authority::new("other"));
    let good = put(&folder.0, "ca.crt", &ca.pem);
    let wrong = put(&folder.0, "other.crt", &other.pem);
    let none = PathBuf::new();
    let by_name = Subject { common_name: "localhost", ..Subject::default() };
    let expired = Subject { names: &["localhost"], is_expired: true, ..Subject::default() };
    let elsewhere = Subject { names: &["db.example"], ..Subject::default() };
    let own = self_signed(by_name);
    let own_file = put(&folder.0, "own.crt", &own.pem);
    let stale = self_signed(Subject { is_expired: true, ..by_name });
    let stale_file = put(&folder.0, "stale.crt", &stale.pem);
    use SslMode::{Prefer, Require, VerifyCa, VerifyFull};
    let cases = [
        ("localhost", localhost(&ca), Prefer, &wrong, ""),
        ("localhost", localhost(&ca), Require, &none, ""),
        ("localhost", ca.issue(expired), Require, &none, ""),
        // As libpq: an authority that is named is meant.
        ("localhost", localhost(&ca), Require, &wrong, "UnknownIssuer"),
        ("localhost", localhost(&ca), VerifyCa, &good, ""),
        ("localhost", localhost(&ca), VerifyCa, &wrong, "UnknownIssuer"),
        ("localhost", ca.issue(elsewhere), VerifyCa, &good, ""),
        ("localhost", ca.issue(expired), VerifyCa, &good, "xpired"),
        ("localhost", localhost(&ca), VerifyFull, &good, ""),
        ("localhost", localhost(&ca), VerifyFull, &wrong, "UnknownIssuer"),
        ("localhost", ca.issue(elsewhere), VerifyFull, &good, "not valid for name"),
        ("localhost", ca.issue(expired), VerifyFull, &good, "xpired"),
        ("127.0.0.1", localhost(&ca), VerifyFull, &good, "not valid for name"),
        (
            "127.0.0.1",
            ca.issue(Subject { names: &["127.0.0.1"], ..Subject::default() }),
            VerifyFull,
            &good,
            "",
        ),
        ("localhost", ca.issue(by_name), VerifyFull, &good, ""),
        // One that signs itself is good only where it is named itself.
        ("localhost", own.clone(), VerifyFull, &own_file, ""),
        ("127.0.0.1", own.clone(), VerifyFull, &own_file, "not valid for name"),
        ("localhost", own, VerifyCa, &good, "CaUsedAsEndEntity"),
        ("localhost", stale, VerifyCa, &stale_file, "xpired"),
    ];
    for (number, (host, issued, mode, ca_file, want)) in cases.into_iter().enumerate() {
        let acceptor =
            Acceptor::load(&client_side(&folder, &issued, SslMode::Require)).unwrap().unwrap();
        let port = serve(acceptor, b"").await;
        let connector = connector(&server_side(mode, ca_file.clone())).unwrap();
        let got = connect(&connector, host, port).await.err().unwrap_or_default();
        let is_right = if want.is_empty() { got.is_empty() } else { got.contains(want) };
        assert!(is_right, "case {number}: {host} {mode:?}: {got:?}, not {want:?}");
    }
}

#[tokio::test]
async fn what_a_stranger_puts_behind_the_servers_yes_breaks_the_handshake() {
    let folder = Folder::new("behind");
    let issued = localhost(&Authority::new("ca"));
    let acceptor =
        Acceptor::load(&client_side(&folder, &issued, SslMode::Require)).unwrap().unwrap();
    // AuthenticationOk, as if it came over TLS.
    let port = serve(acceptor, b"R\0\0\0\x08\0\0\0\0").await;
    let connector = connector(&server_side(SslMode::Require, PathBuf::new())).unwrap();
    let error = connect(&connector, "localhost", port).await.unwrap_err();
    assert!(error.contains("corrupt message") || error.contains("InvalidContentType"), "{error}");
}

#[tokio::test]
async fn a_server_without_tls_is_enough_only_where_it_is_preferred() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        for answer in [&b"N"[..], b"N", b"E\0\0\0\x08abcd", b""] {
            let (mut tcp, _) = listener.accept().await.unwrap();
            tcp.read_exact(&mut [0; 8]).await.unwrap();
            tcp.write_all(answer).await.unwrap();
        }
    });
    let address = Address { host: "127.0.0.1".into(), port };
    let prefer = connector(&server_side(SslMode::Prefer, PathBuf::new())).unwrap();
    let require = connector(&server_side(SslMode::Require, PathBuf::new())).unwrap();
    let connect = async |tls: &Connector| Stream::connect(&address, tls, tls.attempts()[0]).await;
    let (stream, _) = connect(&prefer).await.unwrap();
    assert!(!stream.is_tls());
    let words = async |tls| connect(tls).await.map(|_| ()).unwrap_err().to_string();
    assert_eq!(words(&require).await, "the server does not speak TLS");
    let untrusted = "the server did not say whether it speaks TLS";
    assert_eq!(words(&prefer).await, untrusted);
    assert!(connect(&prefer).await.is_err(), "it closed");
}

#[test]
fn files_that_are_no_good_are_named() {
    let folder = Folder::new("no-good");
    let (a, b) = (localhost(&Authority::new("a")), localhost(&Authority::new("b")));
    let good = client_side(&folder, &a, SslMode::Require);
    let (_, other_key) = b.write(&folder.0, "other");
    let told = |tls: config::Tls| Acceptor::load(&tls).map(|_| ()).unwrap_err().to_string();
    assert!(Acceptor::load(&good).unwrap().is_some());
    assert!(Acceptor::load(&config::Tls::default()).unwrap().is_none());
    let gone = config::Tls { client_tls_cert_file: folder.0.join("gone"), ..good.clone() };
    assert!(told(gone).ends_with("gone: No such file or directory (os error 2)"));
    let swapped =
        config::Tls { client_tls_key_file: good.client_tls_cert_file.clone(), ..good.clone() };
    assert!(told(swapped).ends_with("has no private key in PEM that needs no passphrase"));
    let no_certificate =
        config::Tls { client_tls_cert_file: good.client_tls_key_file.clone(), ..good.clone() };
    assert!(told(no_certificate).ends_with("has no certificate in PEM"));
    let unfit = config::Tls { client_tls_key_file: other_key, ..good };
    assert!(told(unfit).contains("keys may not be consistent"));
}

#[test]
fn connectors_are_equal_where_files_say_the_same() {
    let folder = Folder::new("equal");
    let (a, b) = (Authority::new("a"), Authority::new("b"));
    let file = put(&folder.0, "ca.crt", &a.pem);
    let tls = server_side(SslMode::VerifyFull, file.clone());
    let shard = |tls| Shard {
        id: ShardId(1),
        region: "europe".into(),
        primary: "db:5432".parse().unwrap(),
        replicas: Vec::new(),
        database: "hospital".into(),
        tls,
    };
    let first = ServerTls::load(&tls, &[]).unwrap();
    assert_eq!(first, ServerTls::load(&tls, &[]).unwrap());
    let own = ShardTls { sslmode: Some(SslMode::Disable), ..ShardTls::default() };
    let with_own = ServerTls::load(&tls, &[shard(own)]).unwrap();
    assert_ne!(first, with_own);
    assert_eq!(*with_own.of(ShardId(1)), Connector::plain());
    assert_eq!(with_own.of(ShardId(0)), first.of(ShardId(0)));
    put(&folder.0, "ca.crt", &b.pem);
    assert_ne!(first, ServerTls::load(&tls, &[]).unwrap(), "another authority in the same file");
    let unnamed = ShardTls { sslmode: Some(SslMode::VerifyCa), ..ShardTls::default() };
    let error = ServerTls::load(&config::Tls::default(), &[shard(unnamed)]).unwrap_err();
    assert!(matches!(error, Error::NoAuthority(1)), "{error}");
}

/// The first bytes are read before it is known that they are TLS, wherever they are cut.
#[tokio::test]
async fn direct_tls_wants_the_protocols_name() {
    let folder = Folder::new("direct");
    let ca = Authority::new("ca");
    let acceptor =
        Acceptor::load(&client_side(&folder, &localhost(&ca), SslMode::Require)).unwrap().unwrap();
    let roots = authorities(&folder.0, ca.pem.as_bytes()).unwrap();
    for (protocol, begun, want) in [
        (Some("postgresql"), 1, ""),
        (Some("postgresql"), 100, ""),
        (Some("postgresql"), 10_000, ""),
        (None, 10_000, "direct TLS without the protocol's name (ALPN)"),
        (Some("http/1.1"), 10_000, "peer doesn't support any known protocol"),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&versions(TlsProtocols::Secure))
            .unwrap()
            .with_root_certificates(roots.clone())
            .with_no_client_auth();
        config.alpn_protocols = protocol.into_iter().map(|name| name.into()).collect();
        tokio::spawn(async move {
            let tcp = TcpStream::connect(address).await.unwrap();
            let name = ServerName::try_from("localhost").unwrap();
            let stream =
                tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await;
            if let Ok(mut stream) = stream {
                let _ = stream.read_u8().await;
            }
        });
        let mut stream = Stream::from(listener.accept().await.unwrap().0);
        let mut buffer = Buffer::default();
        stream.fill_at_most(&mut buffer, begun).await.unwrap();
        assert_eq!(buffer.as_slice()[0], 0x16);
        let accepted = stream.accept_tls(&acceptor, buffer.as_slice(), true).await;
        let got = accepted.map(drop).map_err(|error| error.to_string());
        let is_right = if want.is_empty() { got.is_ok() } else { got == Err(want.to_owned()) };
        assert!(is_right, "{protocol:?} {begun}: {got:?}");
    }
}
