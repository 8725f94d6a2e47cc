//! The secrets that a user proves itself with: one, or two while one takes the other's place.
//!
//! Each is plain, an md5 hash or a SCRAM verifier, as `pg_authid` has them. Comparing is done here and
//! in `keys`, always in constant time and always with both.

use std::sync::{Arc, OnceLock};

use md5::{Digest, Md5};

use super::keys::{PassKeys, is_same};
use super::scram::Verifier;
use super::{Error, Secret, md5_response};

/// What a stored SCRAM verifier begins with.
const VERIFIER_PREFIX: &str = "SCRAM-SHA-256$";

/// A secret as it is kept.
#[derive(Debug, Clone)]
pub(super) enum Stored {
    /// In plain text.
    Plain(Secret),
    /// `md5` and 32 hex digits: the hash over secret and name.
    Md5(Secret),
    /// What SCRAM needs.
    Scram(Verifier),
}

/// Text that begins like a SCRAM verifier and is none.
#[derive(Debug)]
pub(super) struct NoVerifier;

impl Stored {
    /// Tells what `text` is, as Postgres does.
    pub fn read(text: &str) -> Result<Self, NoVerifier> {
        if text.starts_with(VERIFIER_PREFIX) {
            return Verifier::parse(text).map(Self::Scram).ok_or(NoVerifier);
        }
        let hex = |digits: &str| {
            digits.len() == 32
                && digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        };
        match text.strip_prefix("md5").is_some_and(hex) {
            true => Ok(Self::Md5(Secret::new(text))),
            false => Ok(Self::Plain(Secret::new(text))),
        }
    }

    fn plain(&self) -> Option<&Secret> {
        match self {
            Self::Plain(secret) => Some(secret),
            _ => None,
        }
    }

    /// The md5 hash over secret and name, where there is one.
    fn md5(&self, name: &str) -> Option<String> {
        match self {
            Self::Plain(secret) => Some(md5_hash(name, secret.expose())),
            Self::Md5(hash) => Some(hash.expose().to_owned()),
            Self::Scram(_) => None,
        }
    }
}

/// Present secret, the one before, and what is computed of them.
#[derive(Debug)]
pub(super) struct Secrets {
    held: Vec<Stored>,
    verifier: OnceLock<Option<Verifier>>,
}

/// What keeps two secrets from being valid at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Clash {
    /// SCRAM names the salt before the proof.
    #[error(
        "two SCRAM verifiers can only be valid together if salt and iterations are the same: \
         give one of the two secrets in plain text"
    )]
    Salts,
    /// A client is asked for one kind of proof.
    #[error("an md5 hash and a SCRAM verifier can't be valid together")]
    Kinds,
}

impl Secrets {
    /// None at all: nobody can prove to be this user.
    pub fn none() -> Self {
        Self { held: Vec::new(), verifier: OnceLock::new() }
    }

    /// The present secret and the one before.
    pub fn new(current: Stored, previous: Option<Stored>) -> Result<Self, Clash> {
        match (&current, &previous) {
            (Stored::Scram(a), Some(Stored::Scram(b))) if a.shape() != b.shape() => {
                return Err(Clash::Salts);
            }
            (Stored::Scram(_), Some(Stored::Md5(_))) | (Stored::Md5(_), Some(Stored::Scram(_))) => {
                return Err(Clash::Kinds);
            }
            _ => {}
        }
        let held = std::iter::once(current).chain(previous).collect();
        Ok(Self { held, verifier: OnceLock::new() })
    }

    /// There is none.
    pub fn is_none(&self) -> bool {
        self.held.is_empty()
    }

    /// The present secret in plain text.
    pub fn plain(&self) -> Option<&Secret> {
        self.held.first().and_then(Stored::plain)
    }

    /// The present secret's md5 hash, where only that is kept.
    pub fn md5_only(&self) -> Option<&Secret> {
        match self.held.first() {
            Some(Stored::Md5(hash)) => Some(hash),
            _ => None,
        }
    }

    /// One is a SCRAM verifier: no md5 proof can be checked.
    pub fn has_verifier(&self) -> bool {
        self.held.iter().any(|stored| matches!(stored, Stored::Scram(_)))
    }

    /// One is an md5 hash: SCRAM can't be checked with it.
    pub fn has_md5(&self) -> bool {
        self.held.iter().any(|stored| matches!(stored, Stored::Md5(_)))
    }

    /// Derivations that its verifier takes.
    pub fn derivations(&self) -> usize {
        self.held.iter().filter(|stored| stored.plain().is_some()).count()
    }

    /// The verifier has been computed, or never will be.
    pub fn is_warm(&self) -> bool {
        self.verifier.get().is_some() || self.derivations() == 0
    }

    /// What a SCRAM proof is checked with; `salt` and `iterations` for secrets that have none yet.
    pub fn verifier(&self, salt: &[u8], iterations: u32) -> Option<&Verifier> {
        self.verifier.get_or_init(|| self.derive(salt, iterations)).as_ref()
    }

    /// As [`Self::verifier`], computed anew.
    pub fn derive(&self, salt: &[u8], iterations: u32) -> Option<Verifier> {
        let stored = self.held.iter().find_map(|stored| match stored {
            Stored::Scram(verifier) => Some(verifier.shape()),
            _ => None,
        });
        let (salt, iterations) = stored.unwrap_or((salt, iterations));
        let mut verifiers = self.held.iter().filter_map(|stored| match stored {
            Stored::Plain(secret) => Some(Verifier::derive(secret, salt, iterations)),
            Stored::Md5(_) => None,
            Stored::Scram(verifier) => Some(verifier.clone()),
        });
        let first = verifiers.next()?;
        match verifiers.next() {
            Some(second) => first.with_previous(&second),
            None => Some(first),
        }
    }

    /// Whether `response` answers AuthenticationMD5Password with `salt`.
    pub fn check_md5(&self, name: &str, salt: [u8; 4], response: &[u8]) -> Result<(), Error> {
        let mut fits = false;
        // Both places, filled or not: what is missing is hashed all the same, and fits nothing.
        for place in 0..2 {
            let hash = self.held.get(place).and_then(|stored| stored.md5(name));
            let is_there = hash.is_some();
            let hash = hash.unwrap_or_else(|| md5_hash(name, name));
            let same = is_same(md5_of_hash(&hash, salt).as_bytes(), response);
            fits |= same & is_there;
        }
        if fits { Ok(()) } else { Err(Error::Denied) }
    }

    /// Whether `password` is one that only an md5 hash is kept of.
    fn is_hashed(&self, name: &str, password: &Secret) -> bool {
        let hash = md5_hash(name, password.expose());
        let mut fits = false;
        for place in 0..2 {
            let held = match self.held.get(place) {
                Some(Stored::Md5(held)) => Some(held.expose()),
                _ => None,
            };
            fits |= is_same(held.unwrap_or(&hash[3..]).as_bytes(), hash.as_bytes());
        }
        fits
    }

    /// Checks the password itself against whatever is kept; `verifier` is this user's, or a mock.
    pub fn check_password(
        &self,
        name: &str,
        verifier: &Verifier,
        password: &Secret,
    ) -> Result<Option<Arc<PassKeys>>, Error> {
        let is_hashed = self.is_hashed(name, password);
        match verifier.check(password) {
            Ok(keys) => Ok(Some(keys)),
            Err(_) if is_hashed => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// `md5` and the hash over secret and name, as `pg_authid` has it.
fn md5_hash(name: &str, secret: &str) -> String {
    let mut hash = Md5::new();
    hash.update(secret);
    hash.update(name);
    hex(&hash.finalize())
}

/// The answer to AuthenticationMD5Password of one who has the hash.
pub(super) fn md5_of_hash(hash: &str, salt: [u8; 4]) -> String {
    let mut md5 = Md5::new();
    md5.update(hash.strip_prefix("md5").unwrap_or(hash));
    md5.update(salt);
    hex(&md5.finalize())
}

fn hex(digest: &[u8]) -> String {
    let digits = digest.iter().map(|byte| format!("{byte:02x}"));
    std::iter::once("md5".to_owned()).chain(digits).collect()
}

/// What pgward itself logs in with on servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerSecret {
    /// Whatever a server asks for.
    Plain(Secret),
    /// For servers that ask for md5 and keep this hash.
    Md5(Secret),
    /// For servers that keep the verifier of which a client has shown these keys.
    Keys(Arc<PassKeys>),
    /// Those keys, once a client has shown them.
    FromClient,
}

impl ServerSecret {
    /// A secret in plain text.
    pub fn plain(text: &str) -> Self {
        Self::Plain(Secret::new(text))
    }

    /// The answer to AuthenticationMD5Password, where it can be given.
    pub fn md5_response(&self, user: &str, salt: [u8; 4]) -> Option<String> {
        match self {
            Self::Plain(secret) => Some(md5_response(user, secret, salt)),
            Self::Md5(hash) => Some(md5_of_hash(hash.expose(), salt)),
            Self::Keys(_) | Self::FromClient => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SALT: [u8; 4] = [1, 2, 3, 4];

    fn stored(text: &str) -> Stored {
        Stored::read(text).unwrap()
    }

    fn secrets(current: &str, previous: Option<&str>) -> Secrets {
        Secrets::new(stored(current), previous.map(stored)).unwrap()
    }

    #[test]
    fn texts_are_told_apart_as_in_postgres() {
        let hash = md5_hash("app", "pencil");
        assert_eq!(hash, postgres_protocol::password::md5(b"pencil", "app"));
        assert!(matches!(stored(&hash), Stored::Md5(_)));
        assert!(matches!(stored(&hash.to_uppercase().replace("MD5", "md5")), Stored::Plain(_)));
        assert!(matches!(stored("md5pencil"), Stored::Plain(_)));
        assert!(matches!(stored("scram-sha-256$"), Stored::Plain(_)));
        let verifier = postgres_protocol::password::scram_sha_256(b"pencil");
        assert!(matches!(stored(&verifier), Stored::Scram(_)));
        assert!(Stored::read("SCRAM-SHA-256$x").is_err());
    }

    #[test]
    fn md5_answers_fit_either_secret() {
        let answer = |secret: &str| md5_response("app", &Secret::new(secret), SALT);
        for (current, previous) in [
            ("new".to_owned(), None),
            (md5_hash("app", "new"), None),
            ("new".to_owned(), Some("old".to_owned())),
            (md5_hash("app", "new"), Some("old".to_owned())),
            ("new".to_owned(), Some(md5_hash("app", "old"))),
        ] {
            let both = previous.is_some();
            let secrets = secrets(&current, previous.as_deref());
            let check = |secret: &str| secrets.check_md5("app", SALT, answer(secret).as_bytes());
            assert_eq!(check("new"), Ok(()));
            assert_eq!(check("old").is_ok(), both);
            assert_eq!(check("other"), Err(Error::Denied));
            assert_eq!(check("app"), Err(Error::Denied), "what a missing one is hashed as");
            assert_eq!(secrets.check_md5("app", SALT, b""), Err(Error::Denied));
        }
        let app = md5_response("app", &Secret::new("app"), SALT);
        assert_eq!(Secrets::none().check_md5("app", SALT, app.as_bytes()), Err(Error::Denied));
        let scram = postgres_protocol::password::scram_sha_256(b"app");
        let scram = secrets(&scram, None);
        assert_eq!(scram.check_md5("app", SALT, app.as_bytes()), Err(Error::Denied));
    }

    #[test]
    fn one_answer_of_the_hash_is_that_of_the_secret() {
        let of_secret = ServerSecret::plain("pencil").md5_response("app", SALT);
        let of_hash = ServerSecret::Md5(Secret::new(&md5_hash("app", "pencil")));
        assert_eq!(of_hash.md5_response("app", SALT), of_secret);
        assert_eq!(ServerSecret::FromClient.md5_response("app", SALT), None);
    }

    #[test]
    fn two_verifiers_need_one_salt() {
        let at = |secret: &str, salt: &[u8]| {
            Stored::Scram(Verifier::derive(&Secret::new(secret), salt, 64))
        };
        assert!(Secrets::new(at("a", b"salt"), Some(at("b", b"salt"))).is_ok());
        let clash = Secrets::new(at("a", b"salt"), Some(at("b", b"pepper")));
        assert_eq!(clash.unwrap_err(), Clash::Salts);
        let md5 = stored(&md5_hash("app", "x"));
        assert_eq!(Secrets::new(at("a", b"s"), Some(md5)).unwrap_err(), Clash::Kinds);
        // A plain one takes the salt of the other.
        let mixed = Secrets::new(stored("new"), Some(at("old", b"salt"))).unwrap();
        let verifier = mixed.verifier(b"another", 1).unwrap();
        assert_eq!(verifier.shape(), (&b"salt"[..], 64));
        for (secret, fits) in [("new", true), ("old", true), ("other", false)] {
            assert_eq!(verifier.check(&Secret::new(secret)).is_ok(), fits, "{secret}");
        }
    }
}
