//! The end of a login: what the servers report, the client's own settings tried, the greeting.
//!
//! A client is told what a server would tell it, though it has none yet: the parameters that the
//! first server login of its (server user) reported, with its own startup settings in the spelling
//! that a server gives them. Each distinct name and value is tried on a server once, so that a bad
//! one fails at login and not at some later statement.

use std::sync::{Arc, Mutex};

use bytes::BytesMut;
use quick_cache::sync::Cache;
use tokio::time::{Instant, timeout_at};

use super::attach::Unattached;
use super::block::Block;
use super::directory::{Client, Newcomer};
use super::login::Login;
use super::params::{self, Ledger};
use super::pins::Pin;
use super::query::is_unguarded;
use super::run::Run;
use super::statements::{Names, Statements};
use super::told::Told;
use super::{End, Services, Session, answer};
use crate::config::PoolMode;
use crate::net::{Buffer, Stream};
use crate::pool::{UserPools, Want};
use crate::route::{Hospitals, Role, Route, refusals};
use crate::server::{self, ServerError, SettingsMap};
use crate::shard_map::HospitalId;
use crate::wire::TxnStatus;
use crate::wire::backend::{self, ErrorReply};
use crate::wire::encoding::Encoding;

/// Distinct startup settings that are remembered.
const CHECKED_MAX: usize = 4_096;
/// Distinct sets of startup settings that are shared.
const SETS_MAX: usize = 1_024;
/// Postgres's NAMEDATALEN: longer application names are cut.
const NAME_BYTES_MAX: usize = 63;

type LearntOf = (Arc<str>, usize, Arc<Learnt>);

/// What servers said at logins.
pub struct Greetings {
    /// By server user and the generation of its pools.
    learnt: Mutex<Vec<LearntOf>>,
    checked: Cache<(Arc<str>, String, String), String>,
    sets: Cache<SettingsMap, Arc<SettingsMap>>,
}

/// What a server says of itself to one server user.
#[derive(Debug, Default)]
pub(super) struct Learnt {
    /// Settings that it reports.
    pub parameters: Vec<(String, String)>,
    /// The one that nobody has set.
    pub search_path: Arc<str>,
}

impl Default for Greetings {
    fn default() -> Self {
        Self {
            learnt: Mutex::default(),
            checked: Cache::new(CHECKED_MAX),
            sets: Cache::new(SETS_MAX),
        }
    }
}

/// Makes a session of a proven login and greets its client; on a refusal the client's stream comes
/// back for its last word. By `deadline`: a shard that does not answer shall not hold it for ever.
pub async fn welcome(
    services: Arc<Services>,
    login: Login,
    peer: Option<std::net::SocketAddr>,
    deadline: Instant,
) -> Result<Session, (Stream, ErrorReply)> {
    let pools = services.pools.of_user(&login.user.server);
    let own_mode = login.user.limits.pool_mode;
    let mode = own_mode.unwrap_or_else(|| services.config.load().pool.pool_mode);
    // A login that is bound to one hospital is a session of that hospital.
    let bound = match &login.user.rights.hospitals {
        Hospitals::Only(hospitals) if hospitals.len() == 1 => hospitals.first().copied(),
        _ => None,
    };
    let hospital = login.hospital.or(bound);
    let own = match mode {
        PoolMode::Session => own_route(&services, hospital),
        PoolMode::Transaction | PoolMode::Statement => None,
    };
    let prepared = match own {
        Some(_) => Ok(Default::default()),
        None => {
            let prepared = timeout_at(deadline, prepare(&services, &login, &pools)).await;
            prepared.unwrap_or_else(|_| Err(refusals::login_timeout_no_server()))
        }
    };
    let (learnt, settings) = match prepared {
        Ok(prepared) => prepared,
        Err(refusal) => return Err((login.stream, ErrorReply { severity: "FATAL", ..refusal })),
    };
    let application = login.startup.settings.iter().find(|(name, _)| name == "application_name");
    let notice = application.and_then(|(_, value)| truncation(value));
    let application = application.map(|(_, value)| application_name(value)).unwrap_or_default();
    let has_long_key = login.has_long_key;
    let (user, database) = (login.user.name.clone(), login.startup.database);
    let tls = login.stream.tls_version();
    let newcomer = |server_pid| Newcomer {
        user: &user,
        database: &database,
        application: &application,
        peer,
        tls: tls.as_deref(),
        has_long_key,
        server_pid,
    };
    let Some(client) = services.directory.enter(newcomer(None)) else {
        return Err((login.stream, refusals::too_many_clients()));
    };
    let mut session = Session {
        pools,
        stream: login.stream,
        input: login.buffer,
        output: Buffer::default(),
        ledger: Ledger::new(settings.clone(), hospital),
        told: Told::new(learnt.clone(), settings.clone()),
        encoding: Encoding::Utf8,
        has_escapes: false,
        names: Arc::new(Names::default()),
        default_path: learnt.search_path.clone(),
        statements: Statements::default(),
        block: Block::None,
        attached: None,
        pinned: None,
        mode,
        is_own: false,
        was_unguarded: false,
        is_greeted: false,
        unsent_closes: Vec::new(),
        is_skipping: false,
        written_at: 1,
        skip_bytes: 0,
        loss: None,
        hospital_before: None,
        user: login.user,
        client,
        services,
    };
    let mut greeting = (learnt, settings);
    if let Some(route) = own {
        let enter = |services: &Services, pid| services.directory.enter(newcomer(Some(pid)));
        let taken = session.take_own_server(route, hospital, &login.startup.settings, enter);
        let taken = timeout_at(deadline, taken).await;
        match taken.unwrap_or_else(|_| Err(refusals::login_timeout_no_server())) {
            Ok(learnt) => greeting = learnt,
            Err(refusal) => {
                return Err((session.take_stream(), ErrorReply { severity: "FATAL", ..refusal }));
            }
        }
    }
    session.renew_names();
    let (learnt, settings) = greeting;
    let (pid, key) = (session.client.pid, &session.client.key);
    session.told = Told::new(learnt, settings);
    greet(session.output.tail(), &session.told, notice.as_ref(), (pid, key));
    session.is_greeted = true;
    Ok(session)
}

/// Where the one server of a session's is, if that can be told at its login.
fn own_route(services: &Services, hospital: Option<HospitalId>) -> Option<Route> {
    let map = services.map.peek();
    let shard = match (map.shards(), hospital) {
        ([only], _) => only.id,
        (_, Some(hospital)) => map.locate(hospital).ok()?,
        (_, None) => return None,
    };
    Some(Route::One { hospital: None, shard, role: Role::Primary })
}

impl Session {
    /// Takes the server that is the session's own from now on, gives it the settings of the startup,
    /// and has the client known by the server's process id.
    async fn take_own_server(
        &mut self,
        route: Route,
        hospital: Option<HospitalId>,
        startup: &[(String, String)],
        enter: impl FnOnce(&Services, i32) -> Option<Arc<Client>>,
    ) -> Result<(Arc<Learnt>, Arc<SettingsMap>), ErrorReply> {
        let mut attached = match self.attach(&Run::new(route)).await {
            Ok(attached) => attached,
            Err(Unattached::Refused(refusal) | Unattached::End(End::Fatal(refusal))) => {
                return Err(refusal);
            }
            Err(Unattached::Server(_) | Unattached::End(_)) => return Err(refusals::not_ready()),
        };
        let server = &mut *attached.checkout.server;
        // Whatever fails from here on, nobody else gets it with these settings.
        server.is_opaque = true;
        let learnt = Arc::new(Learnt {
            parameters: server.parameters.clone(),
            search_path: server.default_path.clone(),
        });
        let mut settings = SettingsMap::new();
        let is_any_fine = self.is_unguarded();
        // What the server says to the others is to be read as UTF-8.
        let (last, first): (Vec<_>, Vec<_>) =
            startup.iter().partition(|(name, _)| name == "client_encoding");
        for (name, value) in first.into_iter().chain(last) {
            if !is_any_fine {
                answer::check_setting(name, value, reads_single_bytes(&learnt.parameters))?;
            }
            let value = match name.as_str() {
                "application_name" => &application_name(value),
                _ => value,
            };
            let asked = server.run_collect(&params::set_statement(name, value, false)).await;
            let canonical = startup_answer(name, asked)?;
            if !learnt.has(name, &canonical) {
                settings.insert(name.clone(), canonical);
            }
        }
        let settings = share(&self.services, settings);
        self.default_path = learnt.search_path.clone();
        self.ledger = Ledger::new(settings.clone(), hospital);
        // Nobody finds it under both: the first key was never told.
        self.services.directory.leave(&self.client);
        self.client.on_detach();
        self.client = enter(&self.services, server.pid).ok_or_else(refusals::too_many_clients)?;
        server.told_pid = server.pid;
        self.hold(&attached.checkout);
        attached.pins.insert(Pin::SessionMode);
        self.keep(attached);
        self.is_own = true;
        self.was_unguarded = self.is_unguarded();
        Ok((learnt, settings))
    }

    /// For the last word to its client.
    fn take_stream(&mut self) -> Stream {
        std::mem::replace(&mut self.stream, Stream::closed())
    }
}

impl Learnt {
    /// The server reports this value of the setting by itself.
    fn has(&self, name: &str, value: &str) -> bool {
        self.parameters.iter().any(|(n, v)| n.eq_ignore_ascii_case(name) && v == value)
    }
}

/// The encoding of a server that reported these is UTF8: it converts what comes in another.
pub(super) fn reads_single_bytes(parameters: &[(String, String)]) -> bool {
    let mut encodings = parameters.iter().filter(|(name, _)| name == "server_encoding");
    encodings.all(|(_, value)| value == "UTF8")
}

/// What a server said to a setting of the startup: its spelling of the value, or why not.
fn startup_answer(
    name: &str,
    asked: Result<Result<Vec<Option<String>>, ServerError>, server::Error>,
) -> Result<String, ErrorReply> {
    match asked {
        Ok(Ok(rows)) => Ok(rows.into_iter().flatten().next().unwrap_or_default()),
        Ok(Err(error)) if error.code() == "42704" => Err(refusals::unknown_setting(name)),
        Ok(Err(error)) if error.code() == "55P02" => Err(refusals::setting_at_start_only(name)),
        Ok(Err(_)) => Err(refusals::bad_setting(name)),
        Err(_) => Err(refusals::not_ready()),
    }
}

async fn prepare(
    services: &Services,
    login: &Login,
    pools: &UserPools,
) -> Result<(Arc<Learnt>, Arc<SettingsMap>), ErrorReply> {
    let learnt = learn(services, login, pools).await?;
    let mut settings = SettingsMap::new();
    let is_any_fine = is_unguarded(services, &login.user);
    for (name, value) in &login.startup.settings {
        if !is_any_fine {
            answer::check_setting(name, value, reads_single_bytes(&learnt.parameters))?;
        }
        let value = match name.as_str() {
            // Any value is good, and there may be as many as there are clients.
            "application_name" => application_name(value),
            _ => check(services, login, pools, name, value).await?,
        };
        if !learnt.has(name, &value) {
            settings.insert(name.clone(), value);
        }
    }
    Ok((learnt, share(services, settings)))
}

/// Equal sets are one, so that servers need not be compared with each session's.
fn share(services: &Services, settings: SettingsMap) -> Arc<SettingsMap> {
    let sets = &services.greetings.sets;
    if let Some(shared) = sets.get(&settings) {
        return shared;
    }
    let shared = Arc::new(settings.clone());
    sets.insert(settings, shared.clone());
    shared
}

/// Parameters and search_path that a server reports to this login's server user.
async fn learn(
    services: &Services,
    login: &Login,
    pools: &UserPools,
) -> Result<Arc<Learnt>, ErrorReply> {
    let generation = pools.generation();
    let user: Arc<str> = login.user.server.user.as_str().into();
    let lock = || services.greetings.learnt.lock().unwrap_or_else(|p| p.into_inner());
    let known = lock().iter().find(|(n, g, _)| *n == user && *g == generation).map(|l| l.2.clone());
    if let Some(learnt) = known {
        return Ok(learnt);
    }
    let want = Want { shard: None, role: Role::Primary, hospital: None, written_at: 1 };
    let checkout = services.pools.checkout(pools, want).await.map_err(|error| error.to_reply())?;
    let server = &checkout.server;
    let learnt = Arc::new(Learnt {
        parameters: server.parameters.clone(),
        search_path: server.default_path.clone(),
    });
    let mut all = lock();
    all.retain(|(name, g, _)| *name != user && *g == generation);
    all.push((user, generation, learnt.clone()));
    Ok(learnt)
}

/// Tries a setting on a server, for one statement; answers the server's spelling of the value.
async fn check(
    services: &Services,
    login: &Login,
    pools: &UserPools,
    name: &str,
    value: &str,
) -> Result<String, ErrorReply> {
    let user: Arc<str> = login.user.server.user.as_str().into();
    let key = (user, name.to_owned(), value.to_owned());
    if let Some(canonical) = services.greetings.checked.get(&key) {
        return Ok(canonical);
    }
    let want = Want { shard: None, role: Role::Primary, hospital: None, written_at: 1 };
    let mut checkout =
        services.pools.checkout(pools, want).await.map_err(|error| error.to_reply())?;
    // What the last client left would complete a half DateStyle, or forbid a role.
    let server = &mut *checkout.server;
    let base = Arc::<SettingsMap>::default();
    if let Some(sql) = params::replay(&server.settings, &base) {
        match server.run(&sql).await {
            Ok(Ok(())) => server.settings = base,
            _ => return Err(refusals::not_ready()),
        }
    }
    let sql = params::set_statement(name, value, true);
    let canonical = startup_answer(name, checkout.server.run_collect(&sql).await)?;
    services.greetings.checked.insert(key, canonical.clone());
    Ok(canonical)
}

/// As Postgres keeps it: cut, and printable ASCII only.
pub(super) fn application_name(value: &str) -> String {
    let mut end = value.len().min(NAME_BYTES_MAX);
    while !value.is_char_boundary(end) {
        end -= 1;
    }
    let printable = |c: char| if (' '..='~').contains(&c) { c } else { '?' };
    value[..end].chars().map(printable).collect()
}

/// What Postgres says to a login whose application name it cuts.
fn truncation(value: &str) -> Option<ErrorReply> {
    (value.len() > NAME_BYTES_MAX).then(|| refusals::name_cut(value, &application_name(value)))
}

/// AuthenticationOk to ReadyForQuery; `key` is the process id and its cancel key.
fn greet(out: &mut BytesMut, told: &Told, notice: Option<&ErrorReply>, (pid, key): (i32, &[u8])) {
    backend::write_authentication_ok(out);
    if let Some(notice) = notice {
        notice.encode(out);
    }
    for (name, value) in told.greeting() {
        backend::write_parameter_status(out, name, value);
    }
    backend::write_backend_key_data(out, pid, key);
    backend::write_ready_for_query(out, TxnStatus::Idle);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn application_names_are_cut_as_postgres_cuts_them() {
        assert_eq!(application_name("psql"), "psql");
        assert_eq!(application_name("caf\u{e9}\n"), "caf??");
        assert_eq!(application_name(&"\u{e9}".repeat(60)).chars().count(), 31);
        assert_eq!(truncation(&"x".repeat(63)), None);
        let notice = truncation(&"x".repeat(65)).expect("a notice");
        assert_eq!((notice.severity, notice.sqlstate), ("NOTICE", "42622"));
        let (long, cut) = ("x".repeat(65), "x".repeat(63));
        let want = format!("identifier \"{long}\" will be truncated to \"{cut}\"");
        assert_eq!(notice.message, want);
    }
}
