//! The users file: who may log in, with which secret and rights, and as whom on the servers.
//!
//! Pure but for [`Users::load`]. All problems of a file are reported at once, with line and
//! column, and never with a secret in them. A login takes the same time and gets the same words
//! whether or not its name exists: [`Users::verifier`] has something for every name.
//!
//! ```toml
//! [[user]]
//! name = "ward7"
//! secret_env = "WARD7_SECRET"         # or secret, secret_file; plain, or SCRAM-SHA-256$...
//! server_user = "app"                 # whom pgward logs in as; default: the user itself
//! server_secret_file = "app.secret"   # or server_secret, server_secret_env; plain
//! hospital = "f47ac10b-58cc-4372-a567-0e02b2c3d479"    # or hospitals = [...]; default: any
//! shard_access = false
//! cross_hospital = "none"             # or "read", "write"
//! ```

use std::collections::{HashMap, HashSet};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::Secret;
use super::scram::{Verifier, salt_for};
use crate::config::{Auth, AuthType};
use crate::route::{CrossHospital, Hospitals, Rights};
use crate::shard_map::HospitalId;

/// Plain secrets up to this number are worked through while the file is loaded.
const WARM_AT_ONCE: usize = 100;
/// Longest secret or name, in bytes.
const TEXT_BYTES_MAX: usize = 1024;

/// One user of the file.
#[derive(Debug)]
pub struct User {
    /// Name at login.
    pub name: String,
    /// What it may reach.
    pub rights: Rights,
    /// Whom pgward logs in as on the servers.
    pub server: ServerCredentials,
    proof: Proof,
}

/// A login on the servers, shared by many users.
#[derive(Debug, Clone)]
pub struct ServerCredentials {
    /// Name of the role.
    pub user: String,
    /// Its secret; `None` where the servers ask for none.
    pub secret: Option<Secret>,
}

/// What a user proves itself with.
#[derive(Debug)]
enum Proof {
    /// No secret: `trust` only.
    None,
    /// A plain secret, and its verifier once computed.
    Plain(Secret, OnceLock<Verifier>),
    /// The verifier, as the file has it.
    Stored(Verifier),
}

/// The users file, read and valid.
#[derive(Debug)]
pub struct Users {
    by_name: HashMap<String, Arc<User>>,
    /// Makes salts. Outlives reloads: a name's salt must not change where another's doesn't.
    seed: [u8; 32],
    iterations: u32,
    /// All verifiers of plain secrets have been computed.
    warm: AtomicBool,
}

/// One thing wrong with the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    /// What is wrong; no secret.
    pub what: String,
}

/// Why the file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It can't be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// All that is wrong with it.
    #[error("{}", lines(path, problems))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// In the order of the file; at least one.
        problems: Vec<Problem>,
    },
}

fn lines(path: &Path, problems: &[Problem]) -> String {
    let line = |p: &Problem| format!("{}:{}:{}: {}", path.display(), p.line, p.column, p.what);
    problems.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Where else a secret may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source<'a> {
    /// An environment variable.
    Env(&'a str),
    /// A file, relative to the users file.
    File(&'a str),
}

impl Users {
    /// Reads the file at `path` and the secrets that it points to. Blocks.
    pub fn load(path: &Path, auth: &Auth) -> Result<Self, LoadError> {
        Self::load_seeded(path, auth, rand::random())
    }

    /// Reads the file again, to take the place of this one.
    pub fn reload(&self, path: &Path, auth: &Auth) -> Result<Self, LoadError> {
        Self::load_seeded(path, auth, self.seed)
    }

    fn load_seeded(path: &Path, auth: &Auth, seed: [u8; 32]) -> Result<Self, LoadError> {
        let read = |file: &Path| {
            std::fs::read_to_string(file)
                .map_err(|source| LoadError::Read { path: file.to_owned(), source })
        };
        let text = read(path)?;
        let secret = |source: Source<'_>| match source {
            Source::Env(name) => std::env::var(name).map_err(|_| format!("{name} is not set")),
            Source::File(name) => {
                let file = path.parent().unwrap_or(Path::new("")).join(name);
                read(&file).map_err(|error| error.to_string())
            }
        };
        let users = Self::parse(&text, auth, seed, &secret)
            .map_err(|problems| LoadError::Invalid { path: path.to_owned(), problems })?;
        let plain = |user: &&Arc<User>| matches!(user.proof, Proof::Plain(..));
        if users.by_name.values().filter(plain).count() <= WARM_AT_ONCE {
            users.warm();
        }
        Ok(users)
    }

    /// Reads `text`; `secret` fetches what is kept elsewhere. `seed` is random and private.
    pub fn parse(
        text: &str,
        auth: &Auth,
        seed: [u8; 32],
        secret: &dyn Fn(Source<'_>) -> Result<String, String>,
    ) -> Result<Self, Vec<Problem>> {
        let mut reader = Reader { text, auth_type: auth.auth_type, secret, problems: Vec::new() };
        let users = reader.file();
        if !reader.problems.is_empty() {
            reader.problems.sort_by_key(|problem| (problem.line, problem.column));
            return Err(reader.problems);
        }
        let by_name = users.into_iter().map(|user| (user.name.clone(), Arc::new(user))).collect();
        let iterations = auth.scram_iterations.max(1);
        Ok(Self { by_name, seed, iterations, warm: AtomicBool::new(false) })
    }

    /// The user of that name.
    pub fn get(&self, name: &str) -> Option<&Arc<User>> {
        self.by_name.get(name)
    }

    /// All users, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<User>> {
        self.by_name.values()
    }

    /// What a proof for `name` is checked with; for a name without a secret, one that no proof
    /// fits. Costs the same for every name: one derivation before [`Users::warm`] is through,
    /// none afterwards.
    pub fn verifier(&self, name: &str) -> Verifier {
        let proof = self.by_name.get(name).map(|user| &user.proof);
        let warm = self.warm.load(Ordering::Acquire);
        let known = match proof {
            Some(Proof::Stored(verifier)) => Some(verifier.clone()),
            Some(Proof::Plain(secret, cell)) => match cell.get() {
                Some(verifier) => Some(verifier.clone()),
                None => return cell.get_or_init(|| self.derive(name, secret)).clone(),
            },
            Some(Proof::None) | None => None,
        };
        if !warm {
            self.derive(name, &Secret::new(name));
        }
        known.unwrap_or_else(|| Verifier::mock(name, &self.seed, self.iterations))
    }

    /// Computes the verifiers of all plain secrets: about a millisecond each, so for a large file
    /// on a thread of its own. Logins work meanwhile.
    pub fn warm(&self) {
        for (name, user) in &self.by_name {
            if let Proof::Plain(secret, cell) = &user.proof {
                cell.get_or_init(|| self.derive(name, secret));
            }
        }
        self.warm.store(true, Ordering::Release);
    }

    fn derive(&self, name: &str, secret: &Secret) -> Verifier {
        Verifier::derive(secret, &salt_for(name, &self.seed), self.iterations)
    }
}

/// Walks the file and notes all that is wrong.
struct Reader<'a> {
    text: &'a str,
    auth_type: AuthType,
    secret: &'a dyn Fn(Source<'_>) -> Result<String, String>,
    problems: Vec<Problem>,
}

type Value<'a> = Spanned<DeValue<'a>>;

impl Reader<'_> {
    fn problem(&mut self, span: Range<usize>, what: impl Into<String>) {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        self.problems.push(Problem { line, column, what: what.into() });
    }

    fn file(&mut self) -> Vec<User> {
        let (document, errors) = DeTable::parse_recoverable(self.text);
        for error in errors {
            // Only its message: its Display quotes the line, which may hold a secret.
            self.problem(error.span().unwrap_or(0..0), error.message());
        }
        let mut users: Vec<(User, Range<usize>)> = Vec::new();
        for (key, value) in document.get_ref() {
            if key.get_ref() != "user" {
                let what = format!("unknown key `{}`, expected `user`", key.get_ref());
                self.problem(key.span(), what);
                continue;
            }
            let Some(array) = value.get_ref().as_array() else {
                self.problem(value.span(), "`user` is a list: write [[user]]");
                continue;
            };
            for entry in array.iter() {
                let Some(table) = entry.get_ref().as_table() else {
                    self.problem(entry.span(), "a user is a table: write [[user]]");
                    continue;
                };
                if let Some(user) = self.user(table, entry.span()) {
                    users.push((user, entry.span()));
                }
            }
        }
        self.across(&users);
        users.into_iter().map(|(user, _)| user).collect()
    }

    /// Names are unique, and a server user has one secret.
    fn across(&mut self, users: &[(User, Range<usize>)]) {
        let mut names = HashSet::new();
        let mut servers: HashMap<&str, &ServerCredentials> = HashMap::new();
        for (user, span) in users {
            if !names.insert(&user.name) {
                self.problem(span.clone(), format!("user \"{}\" is listed twice", user.name));
            }
            let first = *servers.entry(&user.server.user).or_insert(&user.server);
            let secret = |credentials: &ServerCredentials| {
                credentials.secret.as_ref().map(|secret| secret.expose().to_owned())
            };
            if secret(first) != secret(&user.server) {
                let what = format!(
                    "server user \"{}\" has another secret here than above",
                    user.server.user
                );
                self.problem(span.clone(), what);
            }
        }
    }

    /// One `[[user]]`; `None` where a problem was noted that leaves nothing to go on with.
    fn user(&mut self, table: &DeTable<'_>, span: Range<usize>) -> Option<User> {
        const KEYS: [&str; 12] = [
            "name",
            "secret",
            "secret_env",
            "secret_file",
            "server_user",
            "server_secret",
            "server_secret_env",
            "server_secret_file",
            "hospital",
            "hospitals",
            "shard_access",
            "cross_hospital",
        ];
        for (key, _) in table {
            if !KEYS.contains(&key.get_ref().as_ref()) {
                let what =
                    format!("unknown key `{}`, expected one of {}", key.get_ref(), KEYS.join(", "));
                self.problem(key.span(), what);
            }
        }
        let name = match table.get("name") {
            Some(value) => self.text(value, "name"),
            None => {
                self.problem(span.clone(), "a user needs a `name`");
                None
            }
        };
        let rights = self.rights(table);
        let proof = self.proof(table, &span);
        let server = self.server(table, &span, name.as_deref(), proof.as_ref());
        Some(User { name: name?, rights, server: server?, proof: proof? })
    }

    fn rights(&mut self, table: &DeTable<'_>) -> Rights {
        let mut rights = Rights::default();
        match (table.get("hospital"), table.get("hospitals")) {
            (Some(_), Some(both)) => {
                self.problem(both.span(), "`hospital` and `hospitals` exclude each other");
            }
            (Some(one), None) => {
                rights.hospitals = Hospitals::Only(self.hospital(one).into_iter().collect());
            }
            (None, Some(list)) => match list.get_ref().as_array() {
                Some(array) if !array.is_empty() => {
                    let ids = array.iter().filter_map(|id| self.hospital(id)).collect();
                    rights.hospitals = Hospitals::Only(ids);
                }
                _ => self.problem(list.span(), "`hospitals` is a list of at least one uuid"),
            },
            (None, None) => {}
        }
        let bound = rights.hospitals != Hospitals::Any;
        if let Some(value) = table.get("shard_access") {
            match value.get_ref().as_bool() {
                Some(true) if bound => self.problem(
                    value.span(),
                    "`shard_access` reaches every hospital of a shard: not for a bound user",
                ),
                Some(access) => rights.shard_access = access,
                None => self.problem(value.span(), "`shard_access` is true or false"),
            }
        }
        if let Some(value) = table.get("cross_hospital") {
            rights.cross_hospital = match value.get_ref().as_str() {
                Some("none") => CrossHospital::None,
                Some("read" | "write") if bound => {
                    self.problem(
                        value.span(),
                        "`cross_hospital` reaches every hospital: not for a bound user",
                    );
                    CrossHospital::None
                }
                Some("read") => CrossHospital::Read,
                Some("write") => CrossHospital::Write,
                _ => {
                    self.problem(value.span(), "`cross_hospital` is none, read or write");
                    CrossHospital::None
                }
            };
        }
        rights
    }

    fn hospital(&mut self, value: &Value<'_>) -> Option<HospitalId> {
        let id = value.get_ref().as_str().and_then(HospitalId::parse);
        if id.is_none() {
            self.problem(value.span(), "a hospital is a uuid");
        }
        id
    }

    fn proof(&mut self, table: &DeTable<'_>, span: &Range<usize>) -> Option<Proof> {
        let (secret, at) = match self.secret(table, ["secret", "secret_env", "secret_file"])? {
            Some(found) => found,
            None if self.auth_type == AuthType::Trust => return Some(Proof::None),
            None => {
                let what = "a user needs `secret`, `secret_env` or `secret_file`";
                self.problem(span.clone(), what);
                return None;
            }
        };
        if is_md5(&secret) {
            let what = "an md5 secret can't do SCRAM: give the plain secret or a SCRAM verifier";
            self.problem(at, what);
            return None;
        }
        if !secret.starts_with("SCRAM-SHA-256$") {
            return Some(Proof::Plain(Secret::new(&secret), OnceLock::new()));
        }
        let verifier = Verifier::parse(&secret);
        if verifier.is_none() {
            let what = "not SCRAM-SHA-256$<iterations>:<salt>$<stored key>:<server key>";
            self.problem(at, what);
        }
        verifier.map(Proof::Stored)
    }

    fn server(
        &mut self,
        table: &DeTable<'_>,
        span: &Range<usize>,
        name: Option<&str>,
        proof: Option<&Proof>,
    ) -> Option<ServerCredentials> {
        const KEYS: [&str; 3] = ["server_secret", "server_secret_env", "server_secret_file"];
        let secret = self.secret(table, KEYS);
        if let Some(Some((secret, at))) = &secret
            && (is_md5(secret) || secret.starts_with("SCRAM-SHA-256$"))
        {
            self.problem(at.clone(), "a server's secret must be plain: pgward logs in with it");
            return None;
        }
        let plain = secret.map(|found| found.map(|(secret, _)| Secret::new(&secret)));
        if let Some(value) = table.get("server_user") {
            let user = self.text(value, "server_user")?;
            return Some(ServerCredentials { user, secret: plain? });
        }
        let own = match (plain?, proof?) {
            (Some(_), _) => {
                self.problem(span.clone(), "a server secret needs its `server_user`");
                return None;
            }
            (None, Proof::Plain(secret, _)) => Some(secret.clone()),
            (None, Proof::None) => None,
            (None, Proof::Stored(_)) => {
                let what = "a user with a SCRAM verifier needs a `server_user`: pgward can't log \
                            in with a verifier";
                self.problem(span.clone(), what);
                return None;
            }
        };
        Some(ServerCredentials { user: name?.to_owned(), secret: own })
    }

    /// The secret that one of `keys` (itself, environment, file) holds, and where it is named.
    /// Outer `None`: a problem was noted.
    fn secret(
        &mut self,
        table: &DeTable<'_>,
        keys: [&str; 3],
    ) -> Option<Option<(String, Range<usize>)>> {
        let named: Vec<_> =
            keys.into_iter().filter_map(|key| Some((key, table.get(key)?))).collect();
        let (key, value) = match named[..] {
            [] => return Some(None),
            [one] => one,
            [_, (_, second), ..] => {
                let what = format!("only one of {} may be given", keys.join(", "));
                self.problem(second.span(), what);
                return None;
            }
        };
        let text = self.text(value, key)?;
        let fetched = if key == keys[0] {
            Ok(text)
        } else if key == keys[1] {
            (self.secret)(Source::Env(&text))
        } else {
            // An editor ends a file with a line break, which nobody types at a prompt.
            (self.secret)(Source::File(&text)).map(|s| s.trim_end_matches(['\r', '\n']).to_owned())
        };
        match fetched {
            Ok(secret) if is_usable(&secret) => Some(Some((secret, value.span()))),
            Ok(_) => {
                let what = format!("`{key}`: a secret has 1 to {TEXT_BYTES_MAX} bytes, no NUL");
                self.problem(value.span(), what);
                None
            }
            Err(why) => {
                self.problem(value.span(), format!("`{key}`: {why}"));
                None
            }
        }
    }

    fn text(&mut self, value: &Value<'_>, key: &str) -> Option<String> {
        let text = value.get_ref().as_str().filter(|text| is_usable(text));
        if text.is_none() {
            let what = format!("`{key}` is a text of 1 to {TEXT_BYTES_MAX} bytes without NUL");
            self.problem(value.span(), what);
        }
        text.map(str::to_owned)
    }
}

fn is_usable(text: &str) -> bool {
    (1..=TEXT_BYTES_MAX).contains(&text.len()) && !text.contains('\0')
}

/// `md5` and 32 hex digits, as `pg_authid` has it.
fn is_md5(secret: &str) -> bool {
    let hex = |digits: &str| digits.len() == 32 && digits.bytes().all(|b| b.is_ascii_hexdigit());
    secret.strip_prefix("md5").is_some_and(hex)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::auth::scram::{ClientExchange, ServerExchange};

    const SEED: [u8; 32] = [7; 32];

    fn auth(auth_type: AuthType) -> Auth {
        Auth { auth_type, scram_iterations: 64 }
    }

    fn secret(source: Source<'_>) -> Result<String, String> {
        match source {
            Source::Env("GOOD") => Ok("from env".into()),
            Source::File("good.secret") => Ok("from file\r\n".into()),
            Source::File("empty.secret") => Ok("\n".into()),
            Source::Env(name) | Source::File(name) => Err(format!("{name} is not there")),
        }
    }

    fn parse(text: &str) -> Result<Users, Vec<Problem>> {
        Users::parse(text, &auth(AuthType::ScramSha256), SEED, &secret)
    }

    fn log_in(users: &Users, name: &str, with: &str) -> Result<(), super::super::Error> {
        let (first, client) = ClientExchange::start(&Secret::new(with));
        let (reply, server) = ServerExchange::start(&first, &users.verifier(name))?;
        let (last, _) = client.on_server_first(reply.as_bytes())?;
        server.finish(&last).map(|_| ())
    }

    #[test]
    fn users_log_in_with_what_the_file_says() {
        let stored = postgres_protocol::password::scram_sha_256(b"kept");
        let text = format!(
            r#"
            [[user]]
            name = "plain"
            secret = "a secret"
            [[user]]
            name = "env"
            secret_env = "GOOD"
            cross_hospital = "read"
            shard_access = true
            [[user]]
            name = "file"
            secret_file = "good.secret"
            server_user = "app"
            server_secret_env = "GOOD"
            [[user]]
            name = "stored"
            secret = "{stored}"
            server_user = "app"
            server_secret_env = "GOOD"
            "#
        );
        let users = parse(&text).unwrap();
        for warm in [false, true] {
            if warm {
                users.warm();
            }
            for (name, good) in [
                ("plain", "a secret"),
                ("env", "from env"),
                ("file", "from file"),
                ("stored", "kept"),
            ] {
                assert_eq!(log_in(&users, name, good), Ok(()), "{name}");
                assert_eq!(log_in(&users, name, "bad"), Err(super::super::Error::Denied));
                assert_eq!(log_in(&users, name, name), Err(super::super::Error::Denied));
            }
            assert_eq!(log_in(&users, "nobody", "bad"), Err(super::super::Error::Denied));
        }

        let server = |name: &str| {
            let server = &users.get(name).unwrap().server;
            (server.user.clone(), server.secret.as_ref().map(|s| s.expose().to_owned()))
        };
        assert_eq!(server("plain"), ("plain".into(), Some("a secret".into())));
        assert_eq!(server("stored"), ("app".into(), Some("from env".into())));
        let rights = &users.get("env").unwrap().rights;
        assert_eq!((rights.shard_access, rights.cross_hospital), (true, CrossHospital::Read));
        assert_eq!(users.get("plain").unwrap().rights, Rights::default());
        assert!(users.get("nobody").is_none());
    }

    #[test]
    fn hospitals_bind_a_user() {
        let id = "f47ac10b-58cc-4372-a567-0e02b2c3d479";
        let other = "6ba7b810-9dad-11d1-80b4-00c04fd430c8";
        let text = format!(
            "[[user]]\nname = 'a'\nsecret = 's'\nhospital = '{id}'\n\
             [[user]]\nname = 'b'\nsecret = 't'\nhospitals = ['{id}', '{other}']\n"
        );
        let users = parse(&text).unwrap();
        let ids = |ids: &[&str]| {
            Hospitals::Only(ids.iter().map(|id| HospitalId::parse(id).unwrap()).collect())
        };
        assert_eq!(users.get("a").unwrap().rights.hospitals, ids(&[id]));
        assert_eq!(users.get("b").unwrap().rights.hospitals, ids(&[id, other]));
    }

    #[test]
    fn trust_needs_no_secret() {
        let text = "[[user]]\nname = 'app'\n";
        let users = Users::parse(text, &auth(AuthType::Trust), SEED, &secret).unwrap();
        assert!(users.get("app").unwrap().server.secret.is_none());
        assert_eq!(log_in(&users, "app", "app"), Err(super::super::Error::Denied));
    }

    #[test]
    fn salts_outlive_a_reload_for_known_and_unknown_names() {
        let text = "[[user]]\nname = 'a'\nsecret = 'b'\n";
        let server_first = |users: &Users, name: &str| {
            let (first, _) = ClientExchange::start(&Secret::new("x"));
            let (reply, _) = ServerExchange::start(&first, &users.verifier(name)).unwrap();
            reply.split_once(',').unwrap().1.to_owned()
        };
        let (before, after) = (parse(text).unwrap(), parse(text).unwrap());
        for name in ["a", "nobody"] {
            assert_eq!(server_first(&before, name), server_first(&after, name));
        }
        assert_ne!(server_first(&before, "a"), server_first(&before, "nobody"));
    }

    #[test]
    fn all_problems_come_at_once_with_line_and_column() {
        let text = r#"colour = "red"
[[user]]
secret = "s"
nmae = "typo"
[[user]]
name = ""
secret = "s"
[[user]]
name = "two"
secret = "s"
secret_env = "GOOD"
[[user]]
name = "missing"
secret_env = "NOT_SET"
[[user]]
name = "empty"
secret_file = "empty.secret"
[[user]]
name = "old"
secret = "md50123456789abcdef0123456789abcdef"
[[user]]
name = "broken"
secret = "SCRAM-SHA-256$4096:x"
[[user]]
name = "verifier"
secret = "SCRAM-SHA-256$1:c2FsdA==$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
[[user]]
name = "hashed"
secret = "s"
server_user = "app"
server_secret = "SCRAM-SHA-256$x"
[[user]]
name = "lonely"
secret = "s"
server_secret = "t"
[[user]]
name = "none"
[[user]]
name = "rights"
secret = "s"
hospitals = []
shard_access = "yes"
cross_hospital = "all"
[[user]]
name = "rights"
secret = "other"
"#;
        let got: Vec<String> = parse(text)
            .unwrap_err()
            .iter()
            .map(|p| format!("{}:{}: {}", p.line, p.column, p.what))
            .collect();
        let keys = "name, secret, secret_env, secret_file, server_user, server_secret, \
                    server_secret_env, server_secret_file, hospital, hospitals, shard_access, \
                    cross_hospital";
        let want = [
            "1:1: unknown key `colour`, expected `user`",
            "2:1: a user needs a `name`",
            &format!("4:1: unknown key `nmae`, expected one of {keys}"),
            "6:8: `name` is a text of 1 to 1024 bytes without NUL",
            "11:14: only one of secret, secret_env, secret_file may be given",
            "14:14: `secret_env`: NOT_SET is not there",
            "17:15: `secret_file`: a secret has 1 to 1024 bytes, no NUL",
            "20:10: an md5 secret can't do SCRAM: give the plain secret or a SCRAM verifier",
            "23:10: not SCRAM-SHA-256$<iterations>:<salt>$<stored key>:<server key>",
            "24:1: a user with a SCRAM verifier needs a `server_user`: pgward can't log in with \
             a verifier",
            "31:17: a server's secret must be plain: pgward logs in with it",
            "32:1: a server secret needs its `server_user`",
            "36:1: a user needs `secret`, `secret_env` or `secret_file`",
            "41:13: `hospitals` is a list of at least one uuid",
            "42:16: `shard_access` is true or false",
            "43:18: `cross_hospital` is none, read or write",
            "44:1: server user \"rights\" has another secret here than above",
            "44:1: user \"rights\" is listed twice",
        ];
        let mut got = got;
        got.sort_by_key(|line| {
            let mut at = line.split(':').map(|n| n.parse::<usize>().unwrap_or(0));
            (at.next(), at.next(), line.clone())
        });
        assert_eq!(got, want);
    }

    #[test]
    fn a_bound_user_gets_no_right_that_unbinds_it() {
        let id = "f47ac10b-58cc-4372-a567-0e02b2c3d479";
        let user = format!("[[user]]\nname = 'a'\nsecret = 's'\nhospital = '{id}'\n");
        for (right, want) in [
            ("shard_access = true", "`shard_access` reaches every hospital of a shard"),
            ("cross_hospital = 'read'", "`cross_hospital` reaches every hospital"),
            ("hospitals = []", "`hospital` and `hospitals` exclude each other"),
        ] {
            let problems = parse(&format!("{user}{right}\n")).unwrap_err();
            assert!(problems[0].what.starts_with(want), "{problems:?}");
            assert_eq!((problems.len(), problems[0].line), (1, 5));
        }
        assert!(parse(&format!("{user}shard_access = false\ncross_hospital = 'none'\n")).is_ok());
        let problems = parse("[[user]]\nname = 'a'\nsecret = 's'\nhospital = 'x'\n").unwrap_err();
        assert_eq!(
            problems,
            [Problem { line: 4, column: 12, what: "a hospital is a uuid".into() }]
        );
    }

    #[test]
    fn no_problem_and_no_debug_shows_a_secret() {
        let problems = parse("[[user]]\nname = 'a'\nsecret = 'hunter2' x\n").unwrap_err();
        let error = LoadError::Invalid { path: "users.toml".into(), problems };
        assert!(error.to_string().starts_with("users.toml:3:20: "), "{error}");
        assert!(!format!("{error} {error:?}").contains("hunter2"));
        let users = parse("[[user]]\nname = 'a'\nsecret = 'hunter2'\n").unwrap();
        users.warm();
        assert!(!format!("{users:?}").contains("hunter2"));
    }

    proptest! {
        #[test]
        fn any_text_is_a_file_or_has_a_problem(text in "(\\[\\[user\\]\\]\n)?([a-z_]{0,9} ?= ?['\"0-9\\[\\]{}a-z]{0,9}\n){0,4}\\PC{0,9}") {
            if let Err(problems) = parse(&text) {
                prop_assert!(!problems.is_empty());
            }
        }
    }
}
