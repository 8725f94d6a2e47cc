//! The keys of SCRAM-SHA-256 (RFC 5802, section 3), and a login with them in place of the secret.
//!
//! A client's proof shows pgward its ClientKey: with it and the verifier pgward can prove itself to
//! every server that keeps the very same verifier (same salt, same iterations), and to no other.
//! That is SCRAM pass-through. A [`PassKeys`] is worth as much as the secret on such a server, so
//! it is kept in memory only and printed as dots.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::Error;
use super::scram::{BINDING_HEADER, Binding, Verifier};

/// Bytes of a SHA-256 digest.
pub(super) const DIGEST_BYTES: usize = 32;
/// A digest, or an HMAC.
pub(super) type Digest32 = [u8; DIGEST_BYTES];
/// Random bytes of a nonce, as libpq has them.
const NONCE_BYTES: usize = 18;

/// HMAC-SHA-256.
pub(super) fn hmac(key: &[u8], message: &[u8]) -> Digest32 {
    let mut mac = match Hmac::<Sha256>::new_from_slice(key) {
        Ok(mac) => mac,
        Err(never) => unreachable!("HMAC takes keys of any length: {never}"),
    };
    mac.update(message);
    mac.finalize().into_bytes().into()
}

/// What a verifier keeps of a secret.
#[derive(Clone)]
pub(super) struct Keys {
    /// SHA-256 of the ClientKey.
    pub stored: Digest32,
    /// What pgward proves with that it knows the verifier.
    pub server: Digest32,
}

/// A client's ClientKey. As good as its secret, where salt and iterations are the same.
#[derive(Clone)]
pub(super) struct ClientKey(Digest32);

impl Keys {
    /// Both keys, and the ClientKey, of a salted password.
    pub fn of_salted(salted: &[u8]) -> (Self, ClientKey) {
        let client = ClientKey(hmac(salted, b"Client Key"));
        let stored = Sha256::digest(client.0).into();
        (Self { stored, server: hmac(salted, b"Server Key") }, client)
    }

    /// The ClientKey that `proof` over `auth_message` shows, if it is the one of these keys. In
    /// constant time.
    pub fn proven(&self, proof: &Digest32, auth_message: &[u8]) -> Option<ClientKey> {
        let key = xor(proof, &hmac(&self.stored, auth_message));
        let digest: Digest32 = Sha256::digest(key).into();
        bool::from(digest.ct_eq(&self.stored)).then_some(ClientKey(key))
    }

    /// server-final: proof that these keys are known here.
    pub fn server_final(&self, auth_message: &[u8]) -> String {
        format!("v={}", STANDARD.encode(hmac(&self.server, auth_message)))
    }
}

impl PartialEq for Keys {
    fn eq(&self, other: &Self) -> bool {
        bool::from(self.stored.ct_eq(&other.stored) & self.server.ct_eq(&other.server))
    }
}

fn xor(a: &Digest32, b: &Digest32) -> Digest32 {
    std::array::from_fn(|i| a[i] ^ b[i])
}

/// What a proven client leaves for pgward's own logins to servers with the same verifier.
#[derive(Clone)]
pub struct PassKeys {
    pub(super) client: ClientKey,
    pub(super) keys: Keys,
    pub(super) salt: Vec<u8>,
    pub(super) iterations: u32,
}

impl PassKeys {
    /// `verifier` still is the one that these keys are of.
    pub fn is_of(&self, verifier: &Verifier) -> bool {
        verifier.has(&self.keys, &self.salt, self.iterations)
    }
}

impl std::fmt::Debug for PassKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PassKeys(...)")
    }
}

impl PartialEq for PassKeys {
    fn eq(&self, other: &Self) -> bool {
        self.keys == other.keys && self.salt == other.salt && self.iterations == other.iterations
    }
}

impl Eq for PassKeys {}

/// pgward's side of a login with [`PassKeys`], between client-first and server-final.
pub(super) struct Passing {
    keys: std::sync::Arc<PassKeys>,
    /// What the proof is bound to.
    bound_to: Vec<u8>,
    first_bare: String,
}

impl Passing {
    /// Gives client-first and what waits for server-first.
    pub fn start(keys: std::sync::Arc<PassKeys>, binding: Binding) -> (Vec<u8>, Self) {
        let (header, hash) = match binding {
            Binding::None => ("n,,", Vec::new()),
            Binding::NotOffered => ("y,,", Vec::new()),
            Binding::EndPoint(hash) => (BINDING_HEADER, hash),
        };
        let nonce = STANDARD.encode(rand::random::<[u8; NONCE_BYTES]>());
        let first_bare = format!("n=,r={nonce}");
        let bound_to = [header.as_bytes(), &hash].concat();
        (format!("{header}{first_bare}").into_bytes(), Self { keys, bound_to, first_bare })
    }

    /// Takes server-first, read and checked: gives client-final and the server-final that a server
    /// with this verifier answers.
    pub fn on_server_first(
        self,
        message: &str,
        nonce: &str,
        salt: &[u8],
        iterations: u32,
    ) -> Result<(Vec<u8>, String), Error> {
        let own = self.first_bare.trim_start_matches("n=,r=");
        if !nonce.starts_with(own) {
            return Err(Error::Malformed("server-first"));
        }
        if salt != self.keys.salt || iterations != self.keys.iterations {
            return Err(Error::OtherVerifier);
        }
        let without_proof = format!("c={},r={nonce}", STANDARD.encode(&self.bound_to));
        let auth_message = format!("{},{message},{without_proof}", self.first_bare);
        let signature = hmac(&self.keys.keys.stored, auth_message.as_bytes());
        let proof = STANDARD.encode(xor(&self.keys.client.0, &signature));
        let server_final = self.keys.keys.server_final(auth_message.as_bytes());
        Ok((format!("{without_proof},p={proof}").into_bytes(), server_final))
    }
}

/// Equal, in a time that tells nothing but the lengths.
pub(super) fn is_same(a: &[u8], b: &[u8]) -> bool {
    bool::from(a.ct_eq(b))
}
