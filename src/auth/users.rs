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
//! query_timeout = 30                  # and others of `UserLimits`, in place of the configuration's
//! ```

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use super::Secret;
use super::scram::{Verifier, salt_for};
use crate::config::{Auth, AuthType, PoolMode};
use crate::document::{self, Fields, LoadError, Problems, Report, Spanned};
use crate::route::{CrossHospital, Hospitals, Rights};
use crate::shard_map::HospitalId;

/// Plain secrets up to this number are worked through while the file is loaded.
const WARM_AT_ONCE: usize = 100;
/// What a stored verifier begins with.
const VERIFIER_PREFIX: &str = "SCRAM-SHA-256$";
/// Longest time-out, in seconds: what the configuration takes.
const SECONDS_MAX: f64 = 1e9;
/// Most clients of a user, as in the configuration.
const COUNT_MAX: u64 = 10_000_000;
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
    pub server: Arc<ServerCredentials>,
    /// What holds for it in place of the configuration.
    pub limits: UserLimits,
    proof: Proof,
}

/// What the users file says of a user in place of the configuration, under the same names; `None`:
/// what that says. Times are in seconds; 0 means none.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct UserLimits {
    /// `pool_mode`.
    pub pool_mode: Option<PoolMode>,
    /// `max_user_client_connections`.
    pub max_user_client_connections: Option<usize>,
    /// `query_timeout`.
    pub query_timeout: Option<f64>,
    /// `query_wait_timeout`.
    pub query_wait_timeout: Option<f64>,
    /// `transaction_timeout`.
    pub transaction_timeout: Option<f64>,
    /// `idle_transaction_timeout`.
    pub idle_transaction_timeout: Option<f64>,
    /// `client_idle_timeout`.
    pub client_idle_timeout: Option<f64>,
}

/// A login on the servers, shared by many users.
#[derive(Debug, Clone, PartialEq, Eq)]
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
        let text = document::read(path)?;
        let secret = |source: Source<'_>| match source {
            Source::Env(name) => std::env::var(name).map_err(|_| format!("{name} is not set")),
            Source::File(name) => {
                let file = path.parent().unwrap_or(Path::new("")).join(name);
                document::read(&file).map_err(|error| error.to_string())
            }
        };
        let users = Self::parse(&path.display().to_string(), &text, auth, seed, &secret)?;
        let plain = |user: &&Arc<User>| matches!(user.proof, Proof::Plain(..));
        if users.by_name.values().filter(plain).count() <= WARM_AT_ONCE {
            users.warm();
        }
        Ok(users)
    }

    /// Reads `text` of `file`; `secret` fetches what is kept elsewhere. `seed` is random and
    /// private.
    pub fn parse(
        file: &str,
        text: &str,
        auth: &Auth,
        seed: [u8; 32],
        secret: &dyn Fn(Source<'_>) -> Result<String, String>,
    ) -> Result<Self, Problems> {
        let (report, root) = document::parse(file, text)?;
        let reader = Reader { auth_type: auth.auth_type, secret, report: &report };
        let mut fields = Fields::root(&report, &root);
        let users = reader.users(fields.tables("user", "[[user]]"));
        fields.finish();
        let by_name = users.into_iter().map(|user| (user.name.clone(), Arc::new(user))).collect();
        let iterations = auth.scram_iterations.max(1);
        report.finish(Self { by_name, seed, iterations, warm: AtomicBool::new(false) })
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
        // Made for every name, needed or not: microseconds can be told apart too.
        let mock = Verifier::mock(name, &self.seed, self.iterations);
        let is_cold = !self.warm.load(Ordering::Acquire);
        match self.by_name.get(name).map(|user| &user.proof) {
            Some(Proof::Plain(secret, cell)) => {
                if is_cold && cell.get().is_some() {
                    self.derive(name, secret);
                }
                cell.get_or_init(|| self.derive(name, secret)).clone()
            }
            other => {
                if is_cold {
                    self.derive(name, &Secret::new(name));
                }
                if let Some(Proof::Stored(verifier)) = other { verifier.clone() } else { mock }
            }
        }
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

/// Walks the file; all that is wrong goes into the report.
struct Reader<'r, 't> {
    auth_type: AuthType,
    secret: &'r dyn Fn(Source<'_>) -> Result<String, String>,
    report: &'r Report<'t>,
}

/// A problem has been noted that leaves nothing to go on with.
struct Noted;

impl Reader<'_, '_> {
    /// All users; names are unique, and a server user has one secret.
    fn users(&self, tables: Vec<Fields<'_, '_>>) -> Vec<User> {
        let mut users: Vec<User> = Vec::with_capacity(tables.len());
        let mut names = HashSet::new();
        let mut servers: HashMap<String, Arc<ServerCredentials>> = HashMap::new();
        for table in tables {
            let span = table.span().clone();
            let Ok(user) = self.user(table) else { continue };
            if !names.insert(user.name.clone()) {
                self.report.at(&span, format!("user \"{}\" is listed twice", user.name));
            }
            let server = user.server.user.clone();
            if *servers.entry(server).or_insert_with(|| user.server.clone()) != user.server {
                let what = format!(
                    "server user \"{}\" has another secret here than above",
                    user.server.user
                );
                self.report.at(&span, what);
            }
            users.push(user);
        }
        users
    }

    fn user(&self, mut table: Fields<'_, '_>) -> Result<User, Noted> {
        table.require(&["name"]);
        let name = table.string("name").ok_or(Noted).and_then(|name| self.text(&name, "name"));
        let proof = self.proof(&mut table);
        let server = self.server(&mut table, name.as_deref().ok(), proof.as_ref().ok());
        let rights = self.rights(&mut table);
        let limits = self.limits(&mut table);
        table.finish();
        Ok(User { name: name?, rights, server: Arc::new(server?), limits, proof: proof? })
    }

    fn limits(&self, table: &mut Fields<'_, '_>) -> UserLimits {
        let pool_mode = table.string("pool_mode").and_then(|mode| match *mode.get_ref() {
            "session" => Some(PoolMode::Session),
            "transaction" => Some(PoolMode::Transaction),
            "statement" => Some(PoolMode::Statement),
            _ => {
                let what = "`pool_mode` must be session, transaction or statement";
                self.report.at(&mode.span(), what);
                None
            }
        });
        let count = table.integer("max_user_client_connections", 0..=COUNT_MAX);
        let mut seconds = |key| table.seconds(key, SECONDS_MAX).map(|seconds| *seconds.get_ref());
        UserLimits {
            pool_mode,
            max_user_client_connections: count
                .and_then(|count| usize::try_from(*count.get_ref()).ok()),
            query_timeout: seconds("query_timeout"),
            query_wait_timeout: seconds("query_wait_timeout"),
            transaction_timeout: seconds("transaction_timeout"),
            idle_transaction_timeout: seconds("idle_transaction_timeout"),
            client_idle_timeout: seconds("client_idle_timeout"),
        }
    }

    fn rights(&self, table: &mut Fields<'_, '_>) -> Rights {
        let hospitals = self.hospitals(table);
        let is_bound = hospitals != Hospitals::Any;
        let mut rights = Rights { hospitals, ..Rights::default() };
        if let Some(access) = table.boolean("shard_access") {
            rights.shard_access = *access.get_ref();
            if is_bound && rights.shard_access {
                let what = "`shard_access` reaches every hospital of a shard: not for a bound user";
                self.report.at(&access.span(), what);
            }
        }
        if let Some(cross) = table.string("cross_hospital") {
            rights.cross_hospital = match *cross.get_ref() {
                "none" => CrossHospital::None,
                "read" => CrossHospital::Read,
                "write" => CrossHospital::Write,
                _ => {
                    let what = "`cross_hospital` must be none, read or write";
                    self.report.at(&cross.span(), what);
                    CrossHospital::None
                }
            };
            if is_bound && rights.cross_hospital != CrossHospital::None {
                let what = "`cross_hospital` reaches every hospital: not for a bound user";
                self.report.at(&cross.span(), what);
            }
        }
        rights
    }

    fn hospitals(&self, table: &mut Fields<'_, '_>) -> Hospitals {
        let one = table.string("hospital");
        let has_list = table.has("hospitals");
        let list = table.strings("hospitals");
        if has_list && one.is_some() {
            let what = "`hospital` and `hospitals` exclude each other";
            self.report.at(&table.span_of("hospitals"), what);
        } else if has_list && list.is_empty() {
            let what = "`hospitals` must have at least one uuid";
            self.report.at(&table.span_of("hospitals"), what);
        }
        // Fail closed: whatever is wrong with the list, its user is not one for any hospital.
        if !table.has("hospital") && !has_list {
            return Hospitals::Any;
        }
        let id = |text: &Spanned<&str>| {
            let id = HospitalId::parse(text.get_ref());
            if id.is_none() {
                self.report.at(&text.span(), "a hospital is a uuid");
            }
            id
        };
        Hospitals::Only(one.iter().chain(&list).filter_map(id).collect())
    }

    fn proof(&self, table: &mut Fields<'_, '_>) -> Result<Proof, Noted> {
        let found = self.secret(table, ["secret", "secret_env", "secret_file"])?;
        let Some(secret) = found else {
            if self.auth_type == AuthType::Trust {
                return Ok(Proof::None);
            }
            let what = "a user needs `secret`, `secret_env` or `secret_file`";
            self.report.at(table.span(), what);
            return Err(Noted);
        };
        let text = secret.get_ref().as_str();
        if is_md5(text) {
            let what = "an md5 secret can't do SCRAM: give the plain secret or a SCRAM verifier";
            self.report.at(&secret.span(), what);
            return Err(Noted);
        }
        if !text.starts_with(VERIFIER_PREFIX) {
            return Ok(Proof::Plain(Secret::new(text), OnceLock::new()));
        }
        Verifier::parse(text).map(Proof::Stored).ok_or_else(|| {
            let what = "not SCRAM-SHA-256$<iterations>:<salt>$<stored key>:<server key>";
            self.report.at(&secret.span(), what);
            Noted
        })
    }

    fn server(
        &self,
        table: &mut Fields<'_, '_>,
        name: Option<&str>,
        proof: Option<&Proof>,
    ) -> Result<ServerCredentials, Noted> {
        const KEYS: [&str; 3] = ["server_secret", "server_secret_env", "server_secret_file"];
        let user = table.string("server_user").map(|user| self.text(&user, "server_user"));
        let found = self.secret(table, KEYS)?;
        if let Some(secret) = &found
            && (is_md5(secret.get_ref()) || secret.get_ref().starts_with(VERIFIER_PREFIX))
        {
            let what = "a server's secret must be plain: pgward logs in with it";
            self.report.at(&secret.span(), what);
            return Err(Noted);
        }
        let secret = found.map(|secret| Secret::new(secret.get_ref()));
        if let Some(user) = user {
            return Ok(ServerCredentials { user: user?, secret });
        }
        let own = match (secret, proof.ok_or(Noted)?) {
            (Some(_), _) => Err("a server secret needs its `server_user`"),
            (None, Proof::Plain(secret, _)) => Ok(Some(secret.clone())),
            (None, Proof::None) => Ok(None),
            (None, Proof::Stored(_)) => Err("a user with a SCRAM verifier needs a `server_user`: \
                                             pgward can't log in with a verifier"),
        };
        let secret = own.map_err(|what| {
            self.report.at(table.span(), what);
            Noted
        })?;
        Ok(ServerCredentials { user: name.ok_or(Noted)?.to_owned(), secret })
    }

    /// The secret that one of `keys` (itself, environment, file) holds, with its place.
    fn secret(
        &self,
        table: &mut Fields<'_, '_>,
        keys: [&'static str; 3],
    ) -> Result<Option<Spanned<String>>, Noted> {
        let has_any = keys.iter().any(|key| table.has(key));
        let mut given = keys.iter().filter_map(|key| Some((*key, table.secret(key)?)));
        let Some((key, value)) = given.next() else {
            return if has_any { Err(Noted) } else { Ok(None) };
        };
        let others: Vec<_> = given.collect();
        if let Some((_, other)) = others.first() {
            let what = format!("only one of {} may be given", keys.join(", "));
            self.report.at(&other.span(), what);
            return Err(Noted);
        }
        let text = self.text(&value, key)?;
        let fetched = if key == keys[0] {
            Ok(text)
        } else if key == keys[1] {
            (self.secret)(Source::Env(&text))
        } else {
            // An editor ends a file with a line break, which nobody types at a prompt.
            (self.secret)(Source::File(&text)).map(|s| s.trim_end_matches(['\r', '\n']).to_owned())
        };
        let what = match fetched {
            Ok(secret) if is_usable(&secret) => {
                return Ok(Some(Spanned::new(value.span(), secret)));
            }
            Ok(_) => format!("`{key}`: a secret has 1 to {TEXT_BYTES_MAX} bytes, no NUL"),
            Err(why) => format!("`{key}`: {why}"),
        };
        self.report.at(&value.span(), what);
        Err(Noted)
    }

    fn text(&self, value: &Spanned<&str>, key: &str) -> Result<String, Noted> {
        if is_usable(value.get_ref()) {
            return Ok((*value.get_ref()).to_owned());
        }
        let what = format!("`{key}` must have 1 to {TEXT_BYTES_MAX} bytes and no NUL");
        self.report.at(&value.span(), what);
        Err(Noted)
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

    fn parse(text: &str) -> Result<Users, Problems> {
        Users::parse("users.toml", text, &auth(AuthType::ScramSha256), SEED, &secret)
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
        let users =
            Users::parse("users.toml", text, &auth(AuthType::Trust), SEED, &secret).unwrap();
        assert!(users.get("app").unwrap().server.secret.is_none());
        assert_eq!(log_in(&users, "app", "app"), Err(super::super::Error::Denied));
    }

    #[test]
    fn limits_of_a_user_are_read() {
        let text = "
            [[user]]
            name = 'a'
            secret = 'x'
            pool_mode = 'statement'
            max_user_client_connections = 7
            query_timeout = 0
            query_wait_timeout = 1.5
            transaction_timeout = 0x10
            [[user]]
            name = 'b'
            secret = 'x'
        ";
        let users = parse(text).expect("fine");
        let limits = &users.get("a").expect("a").limits;
        let want = UserLimits {
            pool_mode: Some(PoolMode::Statement),
            max_user_client_connections: Some(7),
            query_timeout: Some(0.0),
            query_wait_timeout: Some(1.5),
            transaction_timeout: Some(16.0),
            ..UserLimits::default()
        };
        assert_eq!(*limits, want);
        assert_eq!(users.get("b").expect("b").limits, UserLimits::default());
        for (line, words) in [
            ("pool_mode = 'row'", "`pool_mode` must be session, transaction or statement"),
            ("query_timeout = -1", "`query_timeout` must be seconds from 0 to 1000000000, not -1"),
            ("query_timeout = nan", "`query_timeout` must be seconds"),
            ("client_idle_timeout = '1 s'", "`client_idle_timeout` must be seconds"),
        ] {
            let text = format!("[[user]]\nname = 'a'\nsecret = 'x'\n{line}");
            let problems = parse(&text).expect_err(line).to_string();
            assert!(problems.contains(words), "{line}: {problems}");
        }
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
[[user]]
name = "unquoted"
secret = 123456
"#;
        let keys = "`name`, `secret`, `secret_env`, `secret_file`, `server_user`, `server_secret`, \
                    `server_secret_env`, `server_secret_file`, `hospital`, `hospitals`, \
                    `shard_access`, `cross_hospital`, `pool_mode`, `max_user_client_connections`, \
                    `query_timeout`, `query_wait_timeout`, `transaction_timeout`, \
                    `idle_transaction_timeout`, `client_idle_timeout`";
        let want = [
            "1:1: unknown key `colour`; known: `user`",
            "2:1: `name` is missing in [[user]]",
            &format!("4:1: unknown key `nmae` in [[user]]; known: {keys}"),
            "6:8: `name` must have 1 to 1024 bytes and no NUL",
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
            "41:13: `hospitals` must have at least one uuid",
            "42:16: `shard_access` must be true or false, not a string",
            "43:18: `cross_hospital` must be none, read or write",
            "44:1: server user \"rights\" has another secret here than above",
            "44:1: user \"rights\" is listed twice",
            "49:10: `secret` must be a string",
        ];
        let got = parse(text).unwrap_err().to_string();
        let want = want.map(|line| format!("users.toml:{line}")).join("\n");
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
            let told = problems.to_string();
            assert!(told.starts_with("users.toml:5:") && told.contains(want), "{told}");
            assert_eq!(problems.list.len(), 1);
        }
        assert!(parse(&format!("{user}shard_access = false\ncross_hospital = 'none'\n")).is_ok());
        let problems = parse("[[user]]\nname = 'a'\nsecret = 's'\nhospital = 'x'\n").unwrap_err();
        assert_eq!(problems.to_string(), "users.toml:4:12: a hospital is a uuid");
    }

    #[test]
    fn no_problem_and_no_debug_shows_a_secret() {
        let problems = parse("[[user]]\nname = 'a'\nsecret = 'hunter2' x\n").unwrap_err();
        let error = LoadError::from(problems);
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
                prop_assert!(!problems.list.is_empty());
            }
        }
    }
}
