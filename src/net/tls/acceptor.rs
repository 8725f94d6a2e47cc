//! Clients over TLS: what pgward shows them, and what it asks of them.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use tokio_rustls::rustls::{ServerConfig, ServerConnection};

use super::{
    Error, PROTOCOL, TlsStream, authorities, certificate, certificates, private_key, provider,
    read, versions,
};
use crate::config;
use crate::shard_map::SslMode;

/// How long a client may take to be told that its first bytes were wrong.
const ALERT_WAIT: Duration = Duration::from_secs(1);

/// Takes clients' handshakes.
#[derive(Clone)]
pub struct Acceptor {
    inner: TlsAcceptor,
    mode: SslMode,
    /// Hash of pgward's certificate; empty where there is none to bind to.
    end_point: Arc<[u8]>,
    /// The file that begins with pgward's own certificate.
    pem: Arc<[u8]>,
}

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Acceptor").field("mode", &self.mode).finish_non_exhaustive()
    }
}

impl Acceptor {
    /// From `[tls]` and its files; `None` where clients get no TLS.
    pub fn load(tls: &config::Tls) -> Result<Option<Self>, Error> {
        if tls.client_tls_sslmode == SslMode::Disable {
            return Ok(None);
        }
        let path = &tls.client_tls_cert_file;
        let pem = read(path)?;
        let chain = certificates(path, &pem)?;
        let key = private_key(&tls.client_tls_key_file, &read(&tls.client_tls_key_file)?)?;
        let unfit = |source| Error::Unfit { path: path.clone(), source };
        let builder = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&versions(tls.client_tls_protocols))
            .map_err(unfit)?;
        let ca_file = &tls.client_tls_ca_file;
        let builder = if ca_file.as_os_str().is_empty() {
            builder.with_no_client_auth()
        } else {
            let roots = Arc::new(authorities(ca_file, &read(ca_file)?)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider());
            // As Postgres: whoever shows one shows a good one, also where none is needed.
            let verifier = if tls.client_tls_sslmode.is_verified() {
                verifier
            } else {
                verifier.allow_unauthenticated()
            };
            let verifier = verifier
                .build()
                .map_err(|error| Error::File { path: ca_file.clone(), why: error.to_string() })?;
            builder.with_client_cert_verifier(verifier)
        };
        let end_point = chain.first().map(|own| certificate::end_point(own)).unwrap_or_default();
        let mut config = builder.with_single_cert(chain, key).map_err(unfit)?;
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Some(Self {
            inner: TlsAcceptor::from(Arc::new(config)),
            mode: tls.client_tls_sslmode,
            end_point: end_point.into(),
            pem: pem.into(),
        }))
    }

    /// Clients in the clear are refused.
    pub fn is_required(&self) -> bool {
        self.mode.is_encrypted()
    }

    /// What a login can be bound to, if to anything: pgward's own certificate, first in PEM, and its
    /// hash.
    pub fn end_point(&self) -> Option<(&[u8], &[u8])> {
        Some((&*self.pem, &*self.end_point)).filter(|(_, hash)| !hash.is_empty())
    }

    /// Takes a client's handshake, whose first bytes are `begun`. The caller bounds the time.
    /// `is_direct`: nobody asked first, so it must say that it means Postgres; else another
    /// protocol's client could be led here (manual: "Direct TLS").
    pub(in crate::net) async fn accept(
        &self,
        tcp: TcpStream,
        begun: &[u8],
        is_direct: bool,
    ) -> io::Result<Box<TlsStream>> {
        let mut failure = None;
        let feed = |session: &mut ServerConnection| failure = take_in(session, begun).err();
        let accepting = self.inner.accept_with(tcp, feed);
        if let Some(error) = failure {
            // It has failed already; what is left to do is to tell the client, by an alert.
            drop(tokio::time::timeout(ALERT_WAIT, accepting).await);
            return Err(error);
        }
        let stream = accepting.await?;
        if is_direct && stream.get_ref().1.alpn_protocol() != Some(PROTOCOL) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "direct TLS without the protocol's name (ALPN)",
            ));
        }
        Ok(TlsStream::new(stream.into(), self.end_point.clone()))
    }
}

/// Gives the session what was read before it was there.
fn take_in(session: &mut ServerConnection, mut begun: &[u8]) -> io::Result<()> {
    while !begun.is_empty() {
        if session.read_tls(&mut begun)? == 0 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        session
            .process_new_packets()
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    }
    Ok(())
}
