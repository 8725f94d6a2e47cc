//! Servers over TLS: how much of it, and whose certificates are good.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ring::digest::{Context, SHA256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::client::{
    Resumption, verify_server_cert_signed_by_trust_anchor, verify_server_name,
};
use tokio_rustls::rustls::crypto::{
    WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::ParsedCertificate;
use tokio_rustls::rustls::{
    self, CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};

use super::{
    Error, PROTOCOL, TlsStream, authorities, certificate, certificates, private_key, provider,
    read, versions,
};
use crate::config;
use crate::shard_map::{Shard, ShardId, ShardTls, SslMode};
use crate::wire::startup;

/// How the servers of a shard are spoken to. Cheap to clone; equal where it makes no difference.
#[derive(Clone)]
pub struct Connector {
    mode: SslMode,
    /// Hash of all that it was made of.
    fingerprint: [u8; 32],
    inner: Option<TlsConnector>,
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connector").field("mode", &self.mode).finish_non_exhaustive()
    }
}

impl PartialEq for Connector {
    fn eq(&self, other: &Self) -> bool {
        self.mode == other.mode && self.fingerprint == other.fingerprint
    }
}

impl Eq for Connector {}

/// One try at a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attempt {
    /// In the clear.
    Plain,
    /// Over TLS if the server has it.
    Preferred,
    /// Over TLS or not at all.
    Encrypted,
}

impl Connector {
    /// Never TLS.
    pub fn plain() -> Self {
        Self { mode: SslMode::Disable, fingerprint: [0; 32], inner: None }
    }

    fn load(tls: &config::Tls, shard: u16, over: &ShardTls) -> Result<Self, Error> {
        let mode = over.sslmode.unwrap_or(tls.server_tls_sslmode);
        if mode == SslMode::Disable {
            return Ok(Self::plain());
        }
        let chosen = |own: &Option<PathBuf>, all: &Path| {
            Some(own.clone().unwrap_or_else(|| all.to_owned()))
                .filter(|path| !path.as_os_str().is_empty())
        };
        let ca_file = chosen(&over.ca_file, &tls.server_tls_ca_file);
        let own = chosen(&over.cert_file, &tls.server_tls_cert_file)
            .zip(chosen(&over.key_file, &tls.server_tls_key_file));
        // As libpq: who names an authority means it.
        let is_verified = mode.is_verified() || mode == SslMode::Require && ca_file.is_some();
        let mut fingerprint = Context::new(&SHA256);
        fingerprint.update(format!("{is_verified} {:?}", tls.server_tls_protocols).as_bytes());
        let mut note = |pem: &[u8]| {
            fingerprint.update(&(pem.len() as u64).to_be_bytes());
            fingerprint.update(pem);
        };
        let trust = match ca_file.filter(|_| is_verified) {
            None if is_verified => return Err(Error::NoAuthority(shard)),
            None => None,
            Some(path) => {
                let pem = read(&path)?;
                note(&pem);
                let roots = authorities(&path, &pem)?;
                Some(Trust { roots, certificates: certificates(&path, &pem)? })
            }
        };
        let provider = provider();
        let verifier = Verifier {
            trust,
            is_name_checked: mode == SslMode::VerifyFull,
            algorithms: provider.signature_verification_algorithms,
        };
        let unfit = |path: &Path| {
            let path = path.to_owned();
            move |source| Error::Unfit { path, source }
        };
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&versions(tls.server_tls_protocols))
            .map_err(unfit(Path::new("server_tls_protocols")))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match own {
            None => builder.with_no_client_auth(),
            Some((cert_file, key_file)) => {
                let (certificate, key) = (read(&cert_file)?, read(&key_file)?);
                note(&certificate);
                note(&key);
                let chain = certificates(&cert_file, &certificate)?;
                let key = private_key(&key_file, &key)?;
                builder.with_client_auth_cert(chain, key).map_err(unfit(&cert_file))?
            }
        };
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        config.resumption = Resumption::disabled();
        let mut hash = [0; 32];
        hash.copy_from_slice(fingerprint.finish().as_ref());
        Ok(Self { mode, fingerprint: hash, inner: Some(TlsConnector::from(Arc::new(config))) })
    }

    /// What to try, in this order, each only if the server has refused the one before.
    pub fn attempts(&self) -> &'static [Attempt] {
        match self.mode {
            SslMode::Disable => &[Attempt::Plain],
            SslMode::Allow => &[Attempt::Plain, Attempt::Encrypted],
            SslMode::Prefer => &[Attempt::Preferred],
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => &[Attempt::Encrypted],
        }
    }

    /// Asks the server whether it speaks TLS and, if so, shakes hands. Exactly one byte is read in
    /// the clear: what a stranger puts behind it is taken for the handshake, and breaks that
    /// (CVE-2021-23222). An error in the clear may be anybody's and is not read at all.
    pub(in crate::net) async fn ask(
        &self,
        mut tcp: TcpStream,
        host: &str,
        attempt: Attempt,
    ) -> io::Result<Result<Box<TlsStream>, TcpStream>> {
        let Some(inner) = self.inner.as_ref().filter(|_| attempt != Attempt::Plain) else {
            return Ok(Err(tcp));
        };
        let mut request = bytes::BytesMut::new();
        startup::write_ssl_request(&mut request);
        tcp.write_all(&request).await?;
        match tcp.read_u8().await? {
            b'S' => {}
            b'N' if attempt == Attempt::Preferred => return Ok(Err(tcp)),
            b'N' => return Err(failure("the server does not speak TLS")),
            _ => return Err(failure("the server did not say whether it speaks TLS")),
        }
        let name = server_name(host).ok_or_else(|| failure("the host has no name for TLS"))?;
        let stream = inner.connect(name, tcp).await?;
        Ok(Ok(TlsStream::new(stream.into(), Arc::default())))
    }
}

fn failure(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn server_name(host: &str) -> Option<ServerName<'static>> {
    match host.parse::<IpAddr>() {
        Ok(address) => Some(ServerName::IpAddress(address.into())),
        Err(_) => ServerName::try_from(host.trim_end_matches('.').to_owned()).ok(),
    }
}

/// The connectors of all shards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerTls {
    all: Connector,
    /// Of shards whose `tls` says something.
    own: HashMap<ShardId, Connector>,
}

impl ServerTls {
    /// From `[tls]`, the shards of the map, and the files that they name.
    pub fn load(tls: &config::Tls, shards: &[Shard]) -> Result<Self, Error> {
        let mut own = HashMap::new();
        for shard in shards.iter().filter(|shard| shard.tls != ShardTls::default()) {
            own.insert(shard.id, Connector::load(tls, shard.id.0, &shard.tls)?);
        }
        Ok(Self { all: Connector::load(tls, 0, &ShardTls::default())?, own })
    }

    /// No TLS to any server (tests).
    pub fn plain() -> Self {
        Self { all: Connector::plain(), own: HashMap::new() }
    }

    /// How a shard's hosts are spoken to.
    pub fn of(&self, shard: ShardId) -> &Connector {
        self.own.get(&shard).unwrap_or(&self.all)
    }
}

/// Whom we trust.
#[derive(Debug)]
struct Trust {
    roots: RootCertStore,
    /// The same, as written: a server's own certificate may be among them.
    certificates: Vec<CertificateDer<'static>>,
}

/// Judges servers' certificates. That the server has the key to its certificate is always proven.
#[derive(Debug)]
struct Verifier {
    /// `None`: any certificate will do.
    trust: Option<Trust>,
    is_name_checked: bool,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(trust) = &self.trust else { return Ok(ServerCertVerified::assertion()) };
        let parsed = ParsedCertificate::try_from(end_entity)?;
        // A certificate that signs itself and is trusted by name, as the manual's "Creating
        // Certificates" makes it: no chain leads to it, since it is an authority's.
        let is_pinned = trust.certificates.iter().any(|known| known == end_entity);
        if !is_pinned {
            verify_server_cert_signed_by_trust_anchor(
                &parsed,
                &trust.roots,
                intermediates,
                now,
                self.algorithms.all,
            )?;
        } else if !certificate::is_valid_at(end_entity, now.as_secs()) {
            return Err(CertificateError::Expired.into());
        }
        if self.is_name_checked
            && let Err(error) = verify_server_name(&parsed, server_name)
            && !certificate::is_for_common_name(end_entity, &server_name.to_str())
        {
            return Err(error);
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
