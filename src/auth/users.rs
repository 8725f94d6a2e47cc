//! The users file: who may log in, with which secret and rights, and as whom on the servers.
//!
//! Pure but for [`Users::load`]. All problems of a file are reported at once, with line and
//! column, and never with a secret in them. A login takes the same time and gets the same words
//! whether or not its name exists: [`Users::verifier`] has something for every name.
//!
//! ```toml
//! [[user]]
//! name = "ward7"
//! secret_env = "WARD7_SECRET"         # or secret, secret_file; plain, md5... or SCRAM-SHA-256$...
//! previous_secret_env = "WARD7_OLD"   # or previous_secret, ..._file: valid too, during a rotation
//! valid_until = 2027-01-01T00:00:00Z  # then it logs in no more; default: for ever
//! server_user = "app"                 # whom pgward logs in as; default: the user itself
//! server_secret_file = "app.secret"   # or server_secret, server_secret_env; plain
//! hospital = "f47ac10b-58cc-4372-a567-0e02b2c3d479"    # or hospitals = [...]; default: any
//! shard_access = false
//! cross_hospital = "none"             # or "read", "write"
//! query_timeout = 30                  # and others of `UserLimits`, in place of the configuration's
//! pool_size = 50                      # and others of `ServerLimits`, for its server user
//! ```
//!
//! A user without `server_user` is itself on the servers, with its own secret. Where that is only a
//! hash (md5, SCRAM), pgward logs in with what the client's own proof shows, which needs servers
//! that keep the same hash: SCRAM and md5 pass-through. A file called `*.txt` is a PgBouncer
//! `userlist.txt`, whose users have no rights beyond the least and are themselves on the servers.

mod reader;
mod userlist;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use super::keys::PassKeys;
use super::methods::Methods;
use super::scram::{Verifier, salt_for};
use super::secrets::{Secrets, ServerSecret, Stored};
use super::{Error, Secret};
use crate::config::{Auth, AuthType, PoolMode};
use crate::document::{self, LoadError, Problems};
use crate::route::Rights;
use reader::Reader;

/// Plain secrets up to this number are worked through while the file is loaded.
const WARM_AT_ONCE: usize = 100;
/// Longest secret or name, in bytes.
const TEXT_BYTES_MAX: usize = 1024;

/// Somebody who may log in.
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
    /// Stands in the users file. Others are known by `auth_query` alone: the shards vouch for them,
    /// and shards have no say in who may use the console.
    pub is_listed: bool,
    valid_until: Option<SystemTime>,
    secrets: Arc<Secrets>,
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
    pub secret: Option<ServerSecret>,
    /// How many connections it may have.
    pub limits: ServerLimits,
}

/// What the users file says of a server user in place of `[pool]`; `None`: what that says. Several
/// users may be one server user: what one of them says holds for all, and none may say otherwise.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ServerLimits {
    /// `pool_size`, in place of `default_pool_size` and `replica_pool_size`.
    pub pool_size: Option<usize>,
    /// `reserve_pool_size`.
    pub reserve_pool_size: Option<usize>,
    /// `max_user_connections`.
    pub max_user_connections: Option<usize>,
}

impl ServerLimits {
    /// Adds what `other` says; the key of which it says something else.
    fn join(&mut self, other: Self) -> Result<(), &'static str> {
        for (key, own, other) in [
            ("pool_size", &mut self.pool_size, other.pool_size),
            ("reserve_pool_size", &mut self.reserve_pool_size, other.reserve_pool_size),
            ("max_user_connections", &mut self.max_user_connections, other.max_user_connections),
        ] {
            match (*own, other) {
                (Some(own), Some(other)) if own != other => return Err(key),
                _ => *own = own.or(other),
            }
        }
        Ok(())
    }
}

impl ServerCredentials {
    /// With the limits of `[pool]`.
    pub fn new(user: &str, secret: Option<ServerSecret>) -> Self {
        Self { user: user.to_owned(), secret, limits: ServerLimits::default() }
    }
}

impl User {
    /// One that the users file does not have, with what `auth_query` says is its secret, and the
    /// least rights. `server`: whom it is on the servers; `None`: itself.
    pub fn looked_up(name: &str, secret: &str, server: Option<Arc<ServerCredentials>>) -> Self {
        let read = Stored::read(secret).ok().and_then(|stored| Secrets::new(stored, None).ok());
        let secrets = read.unwrap_or_else(Secrets::none);
        let server =
            server.unwrap_or_else(|| Arc::new(ServerCredentials::new(name, own_secret(&secrets))));
        Self {
            name: name.to_owned(),
            rights: Rights::default(),
            server,
            limits: UserLimits::default(),
            is_listed: false,
            valid_until: None,
            secrets: Arc::new(secrets),
        }
    }

    /// `valid_until` has passed.
    pub fn is_expired(&self, now: SystemTime) -> bool {
        self.valid_until.is_some_and(|until| until <= now)
    }

    /// This user, once it has shown `keys`: where it is itself on the servers and nothing better
    /// is known, pgward logs in there with them.
    pub fn proven_with(self: &Arc<Self>, keys: Arc<PassKeys>) -> Arc<Self> {
        if self.server.secret != Some(ServerSecret::FromClient) {
            return self.clone();
        }
        let secret = Some(ServerSecret::Keys(keys));
        let server = ServerCredentials { secret, ..ServerCredentials::clone(&self.server) };
        Arc::new(self.with_server(Arc::new(server)))
    }

    fn with_server(&self, server: Arc<ServerCredentials>) -> Self {
        Self {
            name: self.name.clone(),
            rights: self.rights.clone(),
            server,
            limits: self.limits.clone(),
            is_listed: self.is_listed,
            valid_until: self.valid_until,
            secrets: self.secrets.clone(),
        }
    }
}

/// What a user that is itself on the servers logs in there with.
fn own_secret(secrets: &Secrets) -> Option<ServerSecret> {
    if let Some(plain) = secrets.plain() {
        return Some(ServerSecret::Plain(plain.clone()));
    }
    if let Some(hash) = secrets.md5_only() {
        return Some(ServerSecret::Md5(hash.clone()));
    }
    (!secrets.is_none()).then_some(ServerSecret::FromClient)
}

/// The users file, read and valid, and how its users prove who they are.
#[derive(Debug)]
pub struct Users {
    by_name: HashMap<String, Arc<User>>,
    /// Logins on the servers that need no client's proof, by role.
    servers: HashMap<String, Arc<ServerCredentials>>,
    methods: Methods,
    /// Makes salts. Outlives reloads: a name's salt must not change where another's doesn't.
    seed: [u8; 32],
    iterations: u32,
    /// Derivations that any user takes at most.
    derivations_max: usize,
    /// Under `md5`, whether names that nobody has are asked for SCRAM: as most users are.
    is_mostly_scram: bool,
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
    /// Reads the file at `path` and the secrets that it points to. Blocks. Its methods are those of
    /// `auth_type` until [`Users::with_methods`].
    pub fn load(path: &Path, auth: &Auth) -> Result<Self, LoadError> {
        Self::load_seeded(path, auth, rand::random())
    }

    /// Reads the file again, to take the place of this one.
    pub fn reload(&self, path: &Path, auth: &Auth) -> Result<Self, LoadError> {
        Self::load_seeded(path, auth, self.seed)
    }

    fn load_seeded(path: &Path, auth: &Auth, seed: [u8; 32]) -> Result<Self, LoadError> {
        let text = document::read(path)?;
        let file = path.display().to_string();
        let secret = |source: Source<'_>| match source {
            Source::Env(name) => std::env::var(name).map_err(|_| format!("{name} is not set")),
            Source::File(name) => {
                let file = path.parent().unwrap_or(Path::new("")).join(name);
                document::read(&file).map_err(|error| error.to_string())
            }
        };
        let is_userlist = path.extension().is_some_and(|extension| extension == "txt");
        let users = match is_userlist {
            true => Self::parse_userlist(&file, &text, auth, seed)?,
            false => Self::parse(&file, &text, auth, seed, &secret)?,
        };
        let derivations = users.by_name.values().map(|user| user.secrets.derivations());
        if derivations.sum::<usize>() <= WARM_AT_ONCE {
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
        let mut fields = document::Fields::root(&report, &root);
        let users = reader.users(fields.tables("user", "[[user]]"));
        fields.finish();
        report.finish(Self::new(users, auth, seed))
    }

    /// As [`Users::parse`], for PgBouncer's `userlist.txt`: lines of `"name" "secret"`.
    pub fn parse_userlist(
        file: &str,
        text: &str,
        auth: &Auth,
        seed: [u8; 32],
    ) -> Result<Self, Problems> {
        Ok(Self::new(userlist::read(file, text, auth.auth_type)?, auth, seed))
    }

    fn new(users: Vec<User>, auth: &Auth, seed: [u8; 32]) -> Self {
        let scram = users.iter().filter(|user| user.secrets.has_verifier()).count();
        let known =
            users.iter().filter(|user| user.server.secret != Some(ServerSecret::FromClient));
        let servers = known.map(|user| (user.server.user.clone(), user.server.clone())).collect();
        Self {
            methods: Methods::one(auth.auth_type),
            servers,
            seed,
            iterations: auth.scram_iterations.max(1),
            derivations_max: users.iter().map(|user| user.secrets.derivations()).max().unwrap_or(0),
            // Those who are looked up have what servers keep, and that is SCRAM by default.
            is_mostly_scram: scram * 2 > users.len()
                || users.len() < 2 && !auth.auth_user.is_empty(),
            by_name: users.into_iter().map(|user| (user.name.clone(), Arc::new(user))).collect(),
            warm: AtomicBool::new(false),
        }
    }

    /// These users, who prove themselves as `methods` say.
    pub fn with_methods(self, methods: Methods) -> Self {
        Self { methods, ..self }
    }

    /// How its users prove who they are.
    pub fn methods(&self) -> &Methods {
        &self.methods
    }

    /// The user of that name.
    pub fn get(&self, name: &str) -> Option<&Arc<User>> {
        self.by_name.get(name)
    }

    /// `user` with the login on the servers that this file has for the role that it is there, if it
    /// has one: a role that is looked up shares the pools of those who log in as it, and does not
    /// make others in their place.
    pub fn at_home(&self, user: Arc<User>) -> Arc<User> {
        match self.servers.get(&user.server.user) {
            Some(server) if !user.is_listed && *server != user.server => {
                Arc::new(user.with_server(server.clone()))
            }
            _ => user,
        }
    }

    /// All users, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<User>> {
        self.by_name.values()
    }

    /// What a SCRAM proof of `user`, who calls itself `name`, is checked with; for a name without a
    /// secret, one that no proof fits. Costs the same for every name: the same number of
    /// derivations before [`Users::warm`] is through, none afterwards.
    pub fn verifier(&self, name: &str, user: Option<&User>) -> Verifier {
        // Made for every name, needed or not: microseconds can be told apart too.
        let mock = Verifier::mock(name, &self.seed, self.iterations);
        let salt = salt_for(name, &self.seed);
        let secrets = user.map(|user| &user.secrets);
        if !self.warm.load(Ordering::Acquire) {
            let was_warm = secrets.is_none_or(|secrets| secrets.is_warm());
            let own = secrets.map_or(0, |secrets| secrets.derivations());
            let spare = self.derivations_max.max(1) - if was_warm { 0 } else { own.min(1) };
            for _ in 0..spare {
                Verifier::derive(&Secret::new(name), &salt, self.iterations);
            }
        }
        let own = secrets.and_then(|secrets| secrets.verifier(&salt, self.iterations));
        own.cloned().unwrap_or(mock)
    }

    /// What checks a password in clear text. It takes as many hashes for every name, about a
    /// millisecond: not for a thread that serves others.
    pub fn password_check(
        &self,
        name: &str,
        user: Option<Arc<User>>,
        password: Secret,
    ) -> impl FnOnce() -> Result<Option<Arc<PassKeys>>, Error> + Send + 'static {
        let verifier = self.verifier(name, user.as_deref());
        let secrets = user.map_or_else(|| Arc::new(Secrets::none()), |user| user.secrets.clone());
        let name = name.to_owned();
        move || secrets.check_password(&name, &verifier, &password)
    }

    /// What is wrong with how `auth` has users looked up, where these are the users.
    pub fn lookup_problem(&self, auth: &Auth) -> Option<String> {
        let name = &auth.auth_query_server_user;
        if name.is_empty() {
            return None;
        }
        let what = match self.get(name).map(|user| &user.server.secret) {
            None => "who is no user here",
            Some(Some(ServerSecret::FromClient)) => {
                "whose own secret on the servers is only known once it has logged in"
            }
            Some(_) => return None,
        };
        Some(format!("[auth] auth_query_server_user names `{name}`, {what}"))
    }

    /// Checks the answer to AuthenticationMD5Password.
    pub fn check_md5(
        &self,
        name: &str,
        user: Option<&User>,
        salt: [u8; 4],
        response: &[u8],
    ) -> Result<(), Error> {
        match user {
            Some(user) => user.secrets.check_md5(name, salt, response),
            None => Secrets::none().check_md5(name, salt, response),
        }
    }

    /// Under `md5`: whether this user is asked for SCRAM instead, as its secret takes.
    pub fn is_asked_for_scram(&self, user: Option<&User>) -> bool {
        match user {
            Some(user) if !user.secrets.is_none() => user.secrets.has_verifier(),
            _ => self.is_mostly_scram,
        }
    }

    /// Computes the verifiers of all plain secrets: about a millisecond each, so for a large file
    /// on a thread of its own. Logins work meanwhile.
    pub fn warm(&self) {
        for (name, user) in &self.by_name {
            user.secrets.verifier(&salt_for(name, &self.seed), self.iterations);
        }
        self.warm.store(true, Ordering::Release);
    }
}

/// What a user may be called, or have as its secret.
fn is_usable(text: &str) -> bool {
    (1..=TEXT_BYTES_MAX).contains(&text.len()) && !text.contains('\0')
}

/// A secret that no client could prove under this method.
fn needs_another(auth_type: AuthType, secrets: &Secrets) -> Option<&'static str> {
    (auth_type == AuthType::ScramSha256 && secrets.has_md5())
        .then_some("an md5 secret can't do SCRAM: give the plain secret or a SCRAM verifier")
}

#[cfg(test)]
mod tests;
