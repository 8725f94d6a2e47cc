//! SCRAM-SHA-256 (RFC 5802, 7677; manual: "SASL Authentication"), message in, message out.
//!
//! Each step consumes the one before, so an exchange can't be replayed or skipped. Messages of a
//! peer are checked here for length, alphabet and fields before a library sees them, and numbers
//! of a server are capped, since they decide how long pgward computes.

use std::sync::Arc;

use pgwire::api::auth::sasl::scram as pgwire_scram;
use pgwire::api::auth::sasl::scram::{
    ScramSecret, ScramServerAuth, ScramServerAuthWaitingForClientFinal,
};
use pgwire::error::PgWireError;
use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};

use super::keys::{ClientKey, DIGEST_BYTES, Digest32, Keys, PassKeys, Passing, is_same};
use super::{Error, Secret};

/// Name of the mechanism.
pub const MECHANISM: &str = "SCRAM-SHA-256";
/// Name of the mechanism that binds the proof to the TLS connection it is given on.
pub const MECHANISM_PLUS: &str = "SCRAM-SHA-256-PLUS";
/// A proof for another connection; Postgres's words.
const CHECK_FAILED: &str = "SCRAM channel binding check failed";
/// What it binds to: the certificate of the server's side (RFC 5929).
pub(super) const BINDING_HEADER: &str = "p=tls-server-end-point,,";
/// Iterations that pgward computes for a server at most (as pgjdbc since CVE-2026-42198).
pub const ITERATIONS_MAX: u32 = 100_000;
/// Iterations of a stored verifier at most: whoever wrote it decides how long a login takes.
const STORED_ITERATIONS_MAX: u32 = 10_000_000;
/// Longest message of an exchange; real ones have about 100 bytes.
const MESSAGE_BYTES_MAX: usize = 1024;
/// Lengths of a nonce in characters. Drivers send 24 or more.
const NONCE_CHARS: std::ops::RangeInclusive<usize> = 18..=256;
/// Base64 of a SHA-256 digest.
const DIGEST_CHARS: usize = 44;

/// What pgward keeps of a client's secret: enough to check a proof, not enough to make one. Or of
/// two secrets, while one takes the other's place: an exchange begins with salt and iterations, so
/// both have the same.
#[derive(Clone)]
pub struct Verifier {
    salt: Vec<u8>,
    iterations: u32,
    keys: Keys,
    previous: Option<Keys>,
    /// No proof fits, whatever it is: the user does not exist.
    mock: bool,
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Verifier(...)")
    }
}

impl Verifier {
    /// Computes the verifier of a plain secret: `iterations` hashes, about a millisecond for 4096.
    pub fn derive(secret: &Secret, salt: &[u8], iterations: u32) -> Self {
        let (keys, _) = derive(secret, salt, iterations);
        let iterations = iterations.max(1);
        Self { salt: salt.to_vec(), iterations, keys, previous: None, mock: false }
    }

    /// This one, and that of the secret before; `None` where salts or iterations differ.
    pub fn with_previous(self, previous: &Self) -> Option<Self> {
        let fits = self.salt == previous.salt && self.iterations == previous.iterations;
        fits.then(|| Self { previous: Some(previous.keys.clone()), ..self })
    }

    /// Salt and iterations, which any client may know.
    pub fn shape(&self) -> (&[u8], u32) {
        (&self.salt, self.iterations)
    }

    /// Its keys are these: those of the present secret or of the one before.
    pub(super) fn has(&self, keys: &Keys, salt: &[u8], iterations: u32) -> bool {
        let shape = self.salt == salt && self.iterations == iterations;
        shape && (self.keys == *keys || self.previous.as_ref() == Some(keys))
    }

    /// Checks the secret itself: the keys that it gives, where it is right. As many hashes as
    /// [`Verifier::derive`], for mocks too.
    pub fn check(&self, secret: &Secret) -> Result<Arc<PassKeys>, Error> {
        let (keys, client) = derive(secret, &self.salt, self.iterations);
        let current = self.keys == keys;
        let previous = self.previous.as_ref().unwrap_or(&self.keys) == &keys;
        if self.mock || !(current | previous) {
            return Err(Error::Denied);
        }
        Ok(self.pass_keys(client, keys))
    }

    fn pass_keys(&self, client: ClientKey, keys: Keys) -> Arc<PassKeys> {
        Arc::new(PassKeys { client, keys, salt: self.salt.clone(), iterations: self.iterations })
    }

    /// Reads `SCRAM-SHA-256$<iterations>:<salt>$<stored key>:<server key>`, as in `pg_authid`.
    pub fn parse(text: &str) -> Option<Self> {
        let rest = text.strip_prefix("SCRAM-SHA-256$")?;
        let (head, keys) = rest.split_once('$')?;
        let (iterations, salt) = head.split_once(':')?;
        let (stored_key, server_key) = keys.split_once(':')?;
        let iterations = number(iterations).filter(|n| (1..=STORED_ITERATIONS_MAX).contains(n))?;
        let salt = decode_base64(salt).filter(|salt| !salt.is_empty())?;
        Some(Self {
            salt,
            iterations,
            keys: Keys {
                stored: decode_base64(stored_key)?.try_into().ok()?,
                server: decode_base64(server_key)?.try_into().ok()?,
            },
            previous: None,
            mock: false,
        })
    }

    /// A verifier for a name that does not exist: the same salt each time, like a real one, and
    /// no proof fits.
    pub fn mock(name: &str, seed: &[u8], iterations: u32) -> Self {
        let keys = [seed, b"keys"].concat();
        let mut key = [0; DIGEST_BYTES];
        key.iter_mut()
            .zip(pgwire_scram::gen_salted_password(name, &keys, 1))
            .for_each(|(to, from)| *to = from);
        Self {
            salt: salt_for(name, seed),
            iterations: iterations.max(1),
            keys: Keys { stored: key, server: key },
            previous: None,
            mock: true,
        }
    }
}

fn derive(secret: &Secret, salt: &[u8], iterations: u32) -> (Keys, ClientKey) {
    let iterations = iterations.max(1) as usize; // the library panics on none
    Keys::of_salted(&pgwire_scram::gen_salted_password(secret.expose(), salt, iterations))
}

/// The salt of `name`: the same for as long as `seed` lives, whether or not the name exists.
/// One PBKDF2 iteration is an HMAC, keyed by the name over the seed.
pub fn salt_for(name: &str, seed: &[u8]) -> Vec<u8> {
    let mut salt = pgwire_scram::gen_salted_password(name, seed, 1);
    salt.truncate(16);
    salt
}

/// What a client may bind its proof to: pgward's own certificate.
#[derive(Clone)]
pub struct EndPoint {
    machine: ScramServerAuth,
    hash: Vec<u8>,
}

impl EndPoint {
    /// Of the first certificate in `pem`, whose hash is `hash`; `None` where the library can't bind
    /// to such a certificate.
    pub fn new(pem: &[u8], hash: Vec<u8>) -> Option<Self> {
        let mut machine = ScramServerAuth::new();
        machine.configure_certificate(pem).ok()?;
        Some(Self { machine, hash })
    }
}

impl std::fmt::Debug for EndPoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("EndPoint(...)")
    }
}

/// What a client was offered, and what it took.
#[derive(Debug, Clone, Copy)]
pub enum Channel<'a> {
    /// Nothing to bind to.
    Unbound,
    /// It was offered [`MECHANISM_PLUS`] and took [`MECHANISM`].
    Declined(&'a EndPoint),
    /// It took [`MECHANISM_PLUS`].
    Bound(&'a EndPoint),
}

/// pgward's side of a client's login, between server-first and client-final.
pub struct ServerExchange {
    machine: ScramServerAuthWaitingForClientFinal,
    /// What the client's final message must be bound to.
    bound_to: Option<Vec<u8>>,
    verifier: Verifier,
    /// client-first without its header, and server-first: what the proof will be over.
    said: String,
}

/// A client has proven that it knows a secret.
#[derive(Debug)]
pub struct Proven {
    /// server-final, for the client.
    pub server_final: String,
    /// What pgward has learnt of it.
    pub keys: Arc<PassKeys>,
}

impl ServerExchange {
    /// Takes client-first; gives server-first and what waits for client-final.
    pub fn start(client_first: &[u8], verifier: &Verifier) -> Result<(String, Self), Error> {
        Self::start_on(Channel::Unbound, client_first, verifier)
    }

    /// As [`Self::start`], over TLS.
    pub fn start_on(
        channel: Channel<'_>,
        client_first: &[u8],
        verifier: &Verifier,
    ) -> Result<(String, Self), Error> {
        check_client_first(client_first, channel)?;
        let (machine, bound_to) = match channel {
            Channel::Unbound => (ScramServerAuth::new(), None),
            Channel::Declined(end) => (end.machine.clone(), None),
            Channel::Bound(end) => {
                let bound_to = [BINDING_HEADER.as_bytes(), &end.hash].concat();
                (end.machine.clone(), Some(bound_to))
            }
        };
        let secret = ScramSecret::Verifier {
            salt: verifier.salt.clone(),
            iterations: verifier.iterations as usize,
            stored_key: verifier.keys.stored.to_vec(),
            server_key: verifier.keys.server.to_vec(),
        };
        let (server_first, machine) = machine
            .on_client_first_message_with_secret(client_first, secret)
            .map_err(|_| Error::Malformed("client-first"))?;
        let first = std::str::from_utf8(client_first).unwrap_or_default();
        let bare = first.splitn(3, ',').nth(2).unwrap_or_default();
        let said = format!("{bare},{server_first}");
        Ok((server_first, Self { machine, bound_to, verifier: verifier.clone(), said }))
    }

    /// Takes client-final; gives server-final if the proof is right, for the present secret or
    /// for the one before.
    ///
    /// The library checks all that is in the message, and compares in variable time hashes over
    /// its own fresh nonce, which the client can't steer: the time tells nothing of the stored key.
    pub fn finish(self, client_final: &[u8]) -> Result<Proven, Error> {
        let ClientFinal { binding, without_proof, proof } = check_client_final(client_final)?;
        if self.bound_to.is_some_and(|bound_to| bound_to != binding) {
            return Err(Error::Channel(CHECK_FAILED));
        }
        let auth_message = format!("{},{without_proof}", self.said).into_bytes();
        let Verifier { keys, previous, .. } = &self.verifier;
        // Both, whichever there are: one more hash can be told from none.
        let by_current = keys.proven(&proof, &auth_message);
        let before = previous.as_ref().unwrap_or(keys);
        let by_previous = before.proven(&proof, &auth_message);
        let (client, keys) = match self.machine.on_client_final_message(client_final) {
            Ok(_) if !self.verifier.mock => (by_current, keys),
            Err(PgWireError::InvalidPassword(_)) if !self.verifier.mock => (by_previous, before),
            Ok(_) | Err(PgWireError::InvalidPassword(_)) => return Err(Error::Denied),
            Err(_) => return Err(Error::Malformed("client-final")),
        };
        let client = client.ok_or(Error::Denied)?;
        Ok(Proven {
            server_final: keys.server_final(&auth_message),
            keys: self.verifier.pass_keys(client, keys.clone()),
        })
    }
}

/// `n,,n=<name>,r=<nonce>`, or `y` or `p=...` for `n`. The name is not used: the StartupMessage has
/// it.
fn check_client_first(message: &[u8], channel: Channel<'_>) -> Result<(), Error> {
    let fields = fields::<4>(message, "client-first")?;
    let [flag, authzid, name, nonce] = fields;
    match (flag, channel) {
        ("n", Channel::Unbound | Channel::Declined(_)) | ("y", Channel::Unbound) => {}
        // It could, and thinks that we can't: somebody between us took our offer away.
        ("y", Channel::Declined(_)) => {
            return Err(Error::Channel("SCRAM channel binding negotiation error"));
        }
        ("p=tls-server-end-point", Channel::Bound(_)) => {}
        ("n" | "y", Channel::Bound(_)) => return Err(Error::Malformed("no channel binding")),
        _ if flag.starts_with("p=") => return Err(Error::Malformed("channel binding")),
        _ => return Err(Error::Malformed("channel binding flag")),
    }
    if !authzid.is_empty() {
        return Err(Error::Malformed("authorization identity"));
    }
    if !name.starts_with("n=") || name.chars().any(char::is_control) {
        return Err(Error::Malformed("user name"));
    }
    check_nonce(nonce)
}

/// A client's last message, read.
struct ClientFinal {
    /// What its proof is bound to.
    binding: Vec<u8>,
    /// All that is before the proof.
    without_proof: String,
    proof: Digest32,
}

/// `c=<base64>,r=<nonce>,p=<proof>`.
fn check_client_final(message: &[u8]) -> Result<ClientFinal, Error> {
    let [bound, nonce, proof] = fields::<3>(message, "client-final")?;
    let Some(binding) = bound.strip_prefix("c=").and_then(decode_base64) else {
        return Err(Error::Malformed("channel binding"));
    };
    check_nonce(nonce)?;
    let proof = proof.strip_prefix("p=").filter(|proof| proof.len() == DIGEST_CHARS);
    match proof.and_then(decode_base64).map(Digest32::try_from) {
        Some(Ok(proof)) => {
            Ok(ClientFinal { binding, without_proof: format!("{bound},{nonce}"), proof })
        }
        _ => Err(Error::Malformed("proof")),
    }
}

/// The message as exactly `N` fields; extensions (`m=` and what may follow) are refused.
fn fields<'a, const N: usize>(
    message: &'a [u8],
    what: &'static str,
) -> Result<[&'a str; N], Error> {
    if message.len() > MESSAGE_BYTES_MAX {
        return Err(Error::Malformed("too long"));
    }
    let text = std::str::from_utf8(message).map_err(|_| Error::Malformed("not UTF-8"))?;
    let fields: Vec<&str> = text.splitn(N + 1, ',').collect();
    fields.try_into().map_err(|_| Error::Malformed(what))
}

fn check_nonce(field: &str) -> Result<(), Error> {
    match field.strip_prefix("r=") {
        Some(nonce)
            if NONCE_CHARS.contains(&nonce.len())
                && nonce.bytes().all(|b| b.is_ascii_graphic()) =>
        {
            Ok(())
        }
        _ => Err(Error::Malformed("nonce")),
    }
}

/// What pgward's own login to a server is bound to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Binding {
    /// Nothing: the connection has no TLS, or a certificate that can't be bound to.
    None,
    /// Nothing, since the server doesn't offer it. A server that does will notice, and refuse.
    NotOffered,
    /// The server's certificate, by its hash (RFC 5929).
    EndPoint(Vec<u8>),
}

/// pgward's own login to a server, between client-first and server-first.
pub struct ClientExchange {
    machine: Machine,
    nonce_chars: usize,
}

enum Machine {
    /// With the secret.
    Secret(Box<ScramSha256>),
    /// With what a client's proof has shown.
    Keys(Passing),
}

impl ClientExchange {
    /// Gives client-first and what waits for server-first.
    pub fn start(secret: &Secret) -> (Vec<u8>, Self) {
        Self::start_bound(secret, Binding::None)
    }

    /// As [`Self::start`], over TLS.
    pub fn start_bound(secret: &Secret, binding: Binding) -> (Vec<u8>, Self) {
        let binding = match binding {
            Binding::None => ChannelBinding::unsupported(),
            Binding::NotOffered => ChannelBinding::unrequested(),
            Binding::EndPoint(hash) => ChannelBinding::tls_server_end_point(hash),
        };
        let machine = ScramSha256::new(secret.expose().as_bytes(), binding);
        let client_first = machine.message().to_vec();
        Self::started(client_first, Machine::Secret(Box::new(machine)))
    }

    /// As [`Self::start_bound`], for a server that keeps the verifier that `keys` are of.
    pub fn start_with_keys(keys: Arc<PassKeys>, binding: Binding) -> (Vec<u8>, Self) {
        let (client_first, passing) = Passing::start(keys, binding);
        Self::started(client_first, Machine::Keys(passing))
    }

    fn started(client_first: Vec<u8>, machine: Machine) -> (Vec<u8>, Self) {
        let nonce = client_first.rsplit(|byte| *byte == b',').next().unwrap_or_default();
        let nonce_chars = nonce.len() - b"r=".len();
        (client_first, Self { machine, nonce_chars })
    }

    /// Takes server-first; gives client-final and what waits for server-final. Computes up to
    /// [`ITERATIONS_MAX`] hashes: not for a thread that serves others.
    pub fn on_server_first(self, server_first: &[u8]) -> Result<(Vec<u8>, ClientProof), Error> {
        let [nonce, salt, iterations] = fields::<3>(server_first, "server-first")?;
        check_nonce(nonce)?;
        let nonce = &nonce["r=".len()..];
        // The library checks that it begins with ours.
        if nonce.len() <= self.nonce_chars {
            return Err(Error::Malformed("the server added nothing to the nonce"));
        }
        let salt = salt.strip_prefix("s=").and_then(decode_base64).filter(|salt| !salt.is_empty());
        let salt = salt.ok_or(Error::Malformed("salt"))?;
        let iterations = match iterations.strip_prefix("i=").and_then(number) {
            Some(iterations @ 1..=ITERATIONS_MAX) => iterations,
            _ => return Err(Error::Malformed("iterations")),
        };
        match self.machine {
            Machine::Secret(mut machine) => {
                let wrong = |_| Error::Malformed("server-first");
                machine.update(server_first).map_err(wrong)?;
                Ok((machine.message().to_vec(), ClientProof::Secret(machine)))
            }
            Machine::Keys(passing) => {
                let message = std::str::from_utf8(server_first).unwrap_or_default();
                let (client_final, server_final) =
                    passing.on_server_first(message, nonce, &salt, iterations)?;
                Ok((client_final, ClientProof::Keys(server_final)))
            }
        }
    }
}

/// pgward's own login to a server, between client-final and server-final.
pub enum ClientProof {
    /// With the secret.
    Secret(Box<ScramSha256>),
    /// The server-final that a server with the same verifier sends.
    Keys(String),
}

impl ClientProof {
    /// Takes server-final: fails unless the server has proved that it knows the secret too.
    pub fn on_server_final(self, server_final: &[u8]) -> Result<(), Error> {
        if server_final.len() > MESSAGE_BYTES_MAX {
            return Err(Error::Malformed("too long"));
        }
        match self {
            Self::Secret(mut machine) => machine.finish(server_final).map_err(|_| Error::Impostor),
            Self::Keys(want) if is_same(want.as_bytes(), server_final) => Ok(()),
            Self::Keys(_) => Err(Error::Impostor),
        }
    }
}

/// A decimal number without sign.
fn number(text: &str) -> Option<u32> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

/// Strict base64: padded, no white space, no stray bits.
fn decode_base64(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(4) {
        return None;
    }
    let data = text.strip_suffix("==").or(text.strip_suffix('=')).unwrap_or(text);
    let (mut out, mut bits, mut held) = (Vec::with_capacity(data.len() * 3 / 4), 0u32, 0);
    for byte in data.bytes() {
        let sextet = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6) | u32::from(sextet);
        held += 6;
        if held >= 8 {
            held -= 8;
            out.push((bits >> held) as u8);
            bits &= (1 << held) - 1;
        }
    }
    (bits == 0).then_some(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SEED: &[u8] = b"0123456789abcdef0123456789abcdef";

    /// Runs a whole login of postgres-protocol's client against pgwire's server.
    fn log_in(sent: &str, verifier: &Verifier) -> Result<(), Error> {
        let (client_first, client) = ClientExchange::start(&Secret::new(sent));
        let (server_first, server) = ServerExchange::start(&client_first, verifier)?;
        let (client_final, client) = client.on_server_first(server_first.as_bytes())?;
        let proven = server.finish(&client_final)?;
        client.on_server_final(proven.server_final.as_bytes())?;
        // What the client has shown lets pgward in where the same verifier is kept, and only there.
        let (client_first, client) =
            ClientExchange::start_with_keys(proven.keys.clone(), Binding::None);
        let (server_first, server) = ServerExchange::start(&client_first, verifier)?;
        let (client_final, client) = client.on_server_first(server_first.as_bytes())?;
        let passed = server.finish(&client_final)?;
        assert_eq!(passed.keys, proven.keys);
        client.on_server_final(passed.server_final.as_bytes())
    }

    #[test]
    fn both_sides_agree_on_the_right_secret_only() {
        for secret in ["pencil", "\u{e4}\u{2168}\u{a0}x", "a,b=c", &"long".repeat(100)] {
            let derived = Verifier::derive(&Secret::new(secret), b"0123456789abcdef", 64);
            assert_eq!(log_in(secret, &derived), Ok(()), "{secret}");
            assert_eq!(log_in("other", &derived), Err(Error::Denied), "{secret}");

            let stored = postgres_protocol::password::scram_sha_256(secret.as_bytes());
            let stored = Verifier::parse(&stored).unwrap();
            assert_eq!(log_in(secret, &stored), Ok(()), "{secret}");
            assert_eq!(log_in("other", &stored), Err(Error::Denied), "{secret}");
        }
    }

    #[test]
    fn a_name_that_does_not_exist_looks_like_one_that_does() {
        let mock = Verifier::mock("nobody", SEED, 64);
        assert_eq!(log_in("pencil", &mock), Err(Error::Denied));
        assert_eq!(mock.salt, Verifier::mock("nobody", SEED, 64).salt);
        assert_eq!(mock.salt, salt_for("nobody", SEED));
        assert_eq!(mock.salt.len(), 16);
        assert_ne!(mock.salt, Verifier::mock("somebody", SEED, 64).salt);
        assert_ne!(mock.salt, Verifier::mock("nobody", b"another seed", 64).salt);
    }

    #[test]
    fn no_proof_fits_a_mock() {
        // Even one that is right for its keys.
        let mut verifier = Verifier::derive(&Secret::new("pencil"), b"salt", 64);
        verifier.mock = true;
        assert_eq!(log_in("pencil", &verifier), Err(Error::Denied));
    }

    /// A certificate in PEM, and the end point that it makes.
    fn end_point() -> (Vec<u8>, EndPoint) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let hash = ring::digest::digest(&ring::digest::SHA256, made.cert.der()).as_ref().to_vec();
        (hash.clone(), EndPoint::new(made.cert.pem().as_bytes(), hash).unwrap())
    }

    #[test]
    fn a_proof_is_bound_to_the_connection_that_it_is_given_on() {
        let verifier = Verifier::derive(&Secret::new("pencil"), b"salt", 64);
        let (hash, end) = end_point();
        let (other_hash, other) = end_point();
        let finish = |started: (Vec<u8>, ClientExchange), channel: Channel<'_>| {
            let (client_first, client) = started;
            let (server_first, server) =
                ServerExchange::start_on(channel, &client_first, &verifier)?;
            let (client_final, client) = client.on_server_first(server_first.as_bytes())?;
            client.on_server_final(server.finish(&client_final)?.server_final.as_bytes())
        };
        let log_in = |binding: Binding, channel: Channel<'_>, secret: &str| {
            finish(ClientExchange::start_bound(&Secret::new(secret), binding), channel)
        };
        let keys = verifier.check(&Secret::new("pencil")).unwrap();
        let pass = |binding: Binding, channel: Channel<'_>| {
            finish(ClientExchange::start_with_keys(keys.clone(), binding), channel)
        };
        let bound = || Binding::EndPoint(hash.clone());
        let cases: [(Binding, Channel<'_>, Result<(), Error>); 11] = [
            (bound(), Channel::Bound(&end), Ok(())),
            (Binding::None, Channel::Declined(&end), Ok(())),
            (Binding::None, Channel::Unbound, Ok(())),
            (Binding::NotOffered, Channel::Unbound, Ok(())),
            // Our offer was taken away on its way to the client.
            (
                Binding::NotOffered,
                Channel::Declined(&end),
                Err(Error::Channel("SCRAM channel binding negotiation error")),
            ),
            // The client speaks to somebody else, who passes its words on.
            (bound(), Channel::Bound(&other), Err(Error::Channel(CHECK_FAILED))),
            (
                Binding::EndPoint(other_hash),
                Channel::Bound(&end),
                Err(Error::Channel(CHECK_FAILED)),
            ),
            (
                Binding::EndPoint(Vec::new()),
                Channel::Bound(&end),
                Err(Error::Channel(CHECK_FAILED)),
            ),
            // What it says and what it chose differ.
            (Binding::None, Channel::Bound(&end), Err(Error::Malformed("no channel binding"))),
            (bound(), Channel::Declined(&end), Err(Error::Malformed("channel binding"))),
            (bound(), Channel::Unbound, Err(Error::Malformed("channel binding"))),
        ];
        for (number, (binding, channel, want)) in cases.into_iter().enumerate() {
            assert_eq!(log_in(binding.clone(), channel, "pencil"), want, "case {number}");
            assert_eq!(pass(binding, channel), want, "case {number}, with keys");
        }
        assert_eq!(log_in(bound(), Channel::Bound(&end), "other"), Err(Error::Denied));
    }

    #[test]
    fn either_of_two_secrets_is_right() {
        let of = |secret: &str| Verifier::derive(&Secret::new(secret), b"0123456789abcdef", 64);
        let both = of("new").with_previous(&of("old")).unwrap();
        for (secret, fits) in [("new", true), ("old", true), ("other", false)] {
            let want = if fits { Ok(()) } else { Err(Error::Denied) };
            assert_eq!(log_in(secret, &both), want, "{secret}");
            assert_eq!(both.check(&Secret::new(secret)).is_ok(), fits, "{secret}");
        }
        assert_eq!(log_in("old", &of("new")), Err(Error::Denied));
        let other_salt = Verifier::derive(&Secret::new("old"), b"another", 64);
        assert!(of("new").with_previous(&other_salt).is_none());
        let other_count = Verifier::derive(&Secret::new("old"), b"0123456789abcdef", 65);
        assert!(of("new").with_previous(&other_count).is_none());
    }

    #[test]
    fn keys_are_good_for_the_very_same_verifier_only() {
        let secret = Secret::new("pencil");
        let mine = Verifier::derive(&secret, b"salt", 64);
        let keys = mine.check(&secret).unwrap();
        assert!(keys.is_of(&mine));
        for (salt, iterations) in [(&b"pepper"[..], 64), (b"salt", 65)] {
            let theirs = Verifier::derive(&secret, salt, iterations);
            assert!(!keys.is_of(&theirs));
            let (client_first, client) =
                ClientExchange::start_with_keys(keys.clone(), Binding::None);
            let (server_first, _) = ServerExchange::start(&client_first, &theirs).unwrap();
            let got = client.on_server_first(server_first.as_bytes()).err();
            assert_eq!(got, Some(Error::OtherVerifier));
        }
        let changed = Verifier::derive(&Secret::new("eraser"), b"salt", 64);
        let (client_first, client) = ClientExchange::start_with_keys(keys.clone(), Binding::None);
        let (server_first, server) = ServerExchange::start(&client_first, &changed).unwrap();
        let (client_final, client) = client.on_server_first(server_first.as_bytes()).unwrap();
        assert_eq!(server.finish(&client_final).err(), Some(Error::Denied));
        // And a server that only says yes is none that has the verifier.
        let impostor = b"v=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
        assert_eq!(client.on_server_final(impostor), Err(Error::Impostor));
        assert_eq!(format!("{keys:?}"), "PassKeys(...)");
    }

    #[test]
    fn stored_verifiers_are_read_strictly() {
        let good = postgres_protocol::password::scram_sha_256(b"pencil");
        assert!(Verifier::parse(&good).is_some());
        let (head, keys) = good.rsplit_once('$').unwrap();
        for bad in [
            "",
            "SCRAM-SHA-256$",
            "pencil",
            "md5c1e3b6b1f6b0c1b8b0f4c8f4e6c0a1b2",
            head,
            &format!("{head}${keys}x"),
            &format!("{head}${}", &keys[1..]),
            &good.replace("$4096", "$0"),
            &good.replace("$4096", "$+4096"),
            &good.replace("$4096", "$99999999999"),
            &good.replace("$4096", "$10000001"),
        ] {
            assert!(Verifier::parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn hostile_clients_are_refused_in_the_first_message() {
        let verifier = Verifier::derive(&Secret::new("pencil"), b"salt", 64);
        let nonce = "r=0123456789abcdef01234567";
        for (message, want) in [
            (String::new(), "client-first"),
            ("n,,n=".into(), "client-first"),
            (format!("n,,n=u,{nonce},x=1"), "client-first"),
            (format!("m=1,n,,n=u,{nonce}"), "client-first"),
            (format!("p=tls-server-end-point,,n=u,{nonce}"), "channel binding"),
            (format!("x,,n=u,{nonce}"), "channel binding flag"),
            (format!("n,a=root,n=u,{nonce}"), "authorization identity"),
            (format!("n,,u,{nonce}"), "user name"),
            (format!("n,,n=u\0,{nonce}"), "user name"),
            ("n,,n=u,r=short".into(), "nonce"),
            (format!("n,,n=u,{nonce}\0"), "nonce"),
            (format!("n,,n=u,{nonce}\u{e9}"), "nonce"),
            (format!("n,,n=u,r={}", "x".repeat(257)), "nonce"),
            (format!("n,,n={},{nonce}", "x".repeat(2000)), "too long"),
        ] {
            let got = ServerExchange::start(message.as_bytes(), &verifier).err();
            assert_eq!(got, Some(Error::Malformed(want)), "{message:?}");
        }
        assert!(ServerExchange::start(b"n,,n=u,\xff", &verifier).is_err());
        let message = format!("y,,n=\u{e9}va,{nonce}");
        assert!(ServerExchange::start(message.as_bytes(), &verifier).is_ok());
    }

    #[test]
    fn hostile_clients_are_refused_in_the_last_message() {
        let verifier = Verifier::derive(&Secret::new("pencil"), b"salt", 64);
        let proof = "A".repeat(43) + "=";
        for (message, want) in [
            ("c=biws,r=NONCE".into(), Error::Malformed("client-final")),
            (format!("c=biws,r=NONCE,x=1,p={proof}"), Error::Malformed("client-final")),
            (format!("c=*,r=NONCE,p={proof}"), Error::Malformed("channel binding")),
            (format!("c=eSws,r=NONCE,p={proof}"), Error::Malformed("client-final")),
            (format!("c=biws,r=NONCEx,p={proof}"), Error::Malformed("client-final")),
            (format!("c=biws,r=0123456789abcdef0123,p={proof}"), Error::Malformed("client-final")),
            (format!("c=biws,r=NONCE,p=A{proof}"), Error::Malformed("proof")),
            ("c=biws,r=NONCE,p=".into(), Error::Malformed("proof")),
            (format!("c=biws,r=NONCE,p={}", "A".repeat(44)), Error::Malformed("proof")),
            (format!("c=biws,r=NONCE,p={proof}"), Error::Denied),
        ] {
            let client_first = b"n,,n=,r=0123456789abcdef0123";
            let (server_first, server) = ServerExchange::start(client_first, &verifier).unwrap();
            let nonce = server_first["r=".len()..].split(',').next().unwrap();
            let message = message.replace("NONCE", nonce);
            assert_eq!(server.finish(message.as_bytes()).err(), Some(want), "{message}");
        }
    }

    #[test]
    fn hostile_servers_are_refused() {
        for (reply, want) in [
            ("", "server-first"),
            ("r=NONCEx,s=c2FsdA==", "server-first"),
            ("m=1,r=NONCEx,s=c2FsdA==,i=1", "server-first"),
            ("r=NONCEx,s=c2FsdA==,i=1,x=1", "server-first"),
            ("r=NONCE,s=c2FsdA==,i=1", "the server added nothing to the nonce"),
            ("r=0123456789abcdef01234567890,s=c2FsdA==,i=1", "server-first"),
            ("r=NONCELONG,s=c2FsdA==,i=1", "nonce"),
            ("r=NONCEx,s=,i=1", "salt"),
            ("r=NONCEx,s=c2FsdA,i=1", "salt"),
            ("r=NONCEx,s=c2FsdA==,i=0", "iterations"),
            ("r=NONCEx,s=c2FsdA==,i=-1", "iterations"),
            ("r=NONCEx,s=c2FsdA==,i=100001", "iterations"),
            ("r=NONCEx,s=c2FsdA==,i=99999999999", "iterations"),
        ] {
            let keys = Verifier::derive(&Secret::new("pencil"), b"salt", 1);
            let keys = keys.check(&Secret::new("pencil")).unwrap();
            for start in [
                ClientExchange::start(&Secret::new("pencil")),
                ClientExchange::start_with_keys(keys, Binding::None),
            ] {
                let (client_first, client) = start;
                let nonce = std::str::from_utf8(&client_first[8..]).unwrap();
                let reply = reply.replace("LONG", &"x".repeat(256)).replace("NONCE", nonce);
                let got = client.on_server_first(reply.as_bytes()).err();
                assert_eq!(got, Some(Error::Malformed(want)), "{reply}");
            }
        }
    }

    #[test]
    fn a_server_that_does_not_know_the_secret_is_an_impostor() {
        for server_final in
            ["v=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", "v=", "e=other-error", "", "\u{ff}"]
        {
            let (client_first, client) = ClientExchange::start(&Secret::new("pencil"));
            let nonce = std::str::from_utf8(&client_first[8..]).unwrap();
            let server_first = format!("r={nonce}xyz,s=c2FsdA==,i=64");
            let (_, proof) = client.on_server_first(server_first.as_bytes()).unwrap();
            assert_eq!(proof.on_server_final(server_final.as_bytes()), Err(Error::Impostor));
        }
    }

    #[test]
    fn base64_is_strict() {
        for (text, want) in [
            ("", Some(&b""[..])),
            ("AA==", Some(&[0])),
            ("/+8=", Some(&[255, 239])),
            ("c2FsdA==", Some(b"salt")),
            ("AB==", None),
            ("AA=", None),
            ("A===", None),
            ("====", None),
            ("A A=", None),
            ("AA==AA==", None),
            ("AA-_", None),
        ] {
            assert_eq!(decode_base64(text).as_deref(), want, "{text:?}");
        }
    }

    #[test]
    fn nothing_prints_a_secret() {
        let secret = Secret::new("pencil");
        let verifier = Verifier::derive(&secret, b"salt", 64);
        assert_eq!(format!("{secret:?} {verifier:?}"), "Secret(...) Verifier(...)");
    }

    proptest! {
        #[test]
        fn no_message_makes_the_server_side_panic(
            first in prop_oneof!["[nyp=,ra0-9\\PC]{0,60}", Just("n,,n=,r=0123456789abcdef0123".to_owned())],
            last in "(c=biws)?,?(r=[0-9a-f]{0,20})?[,p=A-Za-z/+\\PC]{0,60}",
        ) {
            let verifier = Verifier::mock("u", SEED, 1);
            if let Ok((_, server)) = ServerExchange::start(first.as_bytes(), &verifier) {
                prop_assert!(server.finish(last.as_bytes()).is_err());
            }
        }

        #[test]
        fn no_message_makes_the_client_side_panic(
            tail in "[a-z0-9,=/+\\PC]{0,40}",
            server_final in prop::collection::vec(any::<u8>(), 0..60),
        ) {
            let (client_first, client) = ClientExchange::start(&Secret::new("pencil"));
            let mut message = b"r=".to_vec();
            message.extend(&client_first[8..]);
            message.extend(tail.as_bytes());
            let _ = client.on_server_first(&message);

            let keys = Verifier::derive(&Secret::new("x"), b"salt", 1);
            let keys = keys.check(&Secret::new("x")).unwrap();
            let (client_first, client) = ClientExchange::start_with_keys(keys, Binding::None);
            let mut message = b"r=".to_vec();
            message.extend(&client_first[8..]);
            message.extend(tail.as_bytes());
            let _ = client.on_server_first(&message);

            let (client_first, client) = ClientExchange::start(&Secret::new("pencil"));
            let nonce = std::str::from_utf8(&client_first[8..]).unwrap();
            let (_, proof) =
                client.on_server_first(format!("r={nonce}x,s=c2FsdA==,i=1").as_bytes()).unwrap();
            prop_assert!(proof.on_server_final(&server_final).is_err());
        }
    }
}
