//! Who a peer is: secrets, SCRAM-SHA-256 and md5 for both sides, rules, maps, and the users file.
//!
//! Message in, message out: no sockets and no clock here. `session::prove` asks clients for a
//! proof with it, `server::login` proves pgward to the servers. Nothing in this room prints a
//! secret, and nothing tells a client whether a name exists.
//!
//! Why clients get pgwire's SCRAM machine and servers postgres-protocol's (2026-11): pgwire's
//! takes a stored verifier, which keeps the password off pgward, but its client side checks
//! neither nonce nor iterations; postgres-protocol has only the client side, with checks. Neither
//! knows of two secrets at once or of a login with a ClientKey: `keys` has those.

pub mod hba;
pub mod ident;
mod keys;
mod methods;
pub mod scram;
mod secrets;
mod tokens;
pub mod users;

use std::sync::Arc;

pub use hba::{Asked, Demand, Method, Refused};
pub use keys::PassKeys;
pub use methods::Methods;
pub use secrets::ServerSecret;
pub use users::{ServerCredentials, User, Users};

/// Why a proof failed. Says nothing that a peer sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The proof is wrong, or there is no such user: nobody may tell which.
    #[error("the proof is wrong")]
    Denied,
    /// A message of the exchange is not what the exchange says.
    #[error("malformed SCRAM message: {0}")]
    Malformed(&'static str),
    /// The proof is bound to another TLS connection, or should have been bound to one.
    #[error("{0}")]
    Channel(&'static str),
    /// The server could not prove that it knows the secret.
    #[error("the server does not know the secret")]
    Impostor,
    /// The server keeps another verifier than the one whose keys pgward has.
    #[error("the server keeps another verifier than the one that the client has proven")]
    OtherVerifier,
}

/// A secret in plain text, or its md5 hash. Prints as dots. Equality is for configuration, not for
/// proofs: its time tells where two secrets differ.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<str>);

impl Secret {
    /// Wraps `text`.
    pub fn new(text: &str) -> Self {
        Self(text.into())
    }

    /// The secret itself: for a proof, never for a message or a log.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(...)")
    }
}

/// The answer to AuthenticationMD5Password.
pub fn md5_response(user: &str, secret: &Secret, salt: [u8; 4]) -> String {
    let secret = secret.expose().as_bytes();
    postgres_protocol::authentication::md5_hash(user.as_bytes(), secret, salt)
}
