//! The end of a login: what the servers report, the client's own settings tried, the greeting.
//!
//! A client is told what a server would tell it, though it has none yet: the parameters that the
//! first server login of its (server user) reported, with its own startup settings in the spelling
//! that a server gives them. Each distinct name and value is tried on a server once, so that a bad
//! one fails at login and not at some later statement.

use std::sync::{Arc, Mutex};

use bytes::BytesMut;
use quick_cache::sync::Cache;

use super::block::Block;
use super::directory::Newcomer;
use super::login::Login;
use super::params::{self, Ledger};
use super::statements::{Names, Statements};
use super::{Services, Session, answer};
use crate::net::{Buffer, Stream};
use crate::pool::{UserPools, Want};
use crate::route::{Hospitals, Role, refusals};
use crate::server::SettingsMap;
use crate::wire::TxnStatus;
use crate::wire::backend::{self, ErrorReply};

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
#[derive(Debug)]
struct Learnt {
    parameters: Vec<(String, String)>,
    search_path: Arc<str>,
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
/// back for its last word.
pub async fn welcome(
    services: Arc<Services>,
    login: Login,
    peer: Option<std::net::SocketAddr>,
) -> Result<Session, (Stream, ErrorReply)> {
    let pools = services.pools.of_user(&login.user.server);
    let prepared = prepare(&services, &login, &pools).await;
    let (learnt, settings) = match prepared {
        Ok(prepared) => prepared,
        Err(refusal) => return Err((login.stream, ErrorReply { severity: "FATAL", ..refusal })),
    };
    // A login that is bound to one hospital is a session of that hospital.
    let bound = match &login.user.rights.hospitals {
        Hospitals::Only(hospitals) if hospitals.len() == 1 => hospitals.first().copied(),
        _ => None,
    };
    let application = settings.get("application_name").map_or("", String::as_str);
    let newcomer = Newcomer {
        user: &login.user.name,
        database: &login.startup.database,
        application,
        peer,
        has_long_key: login.has_long_key,
        server_pid: None,
    };
    let Some(client) = services.directory.enter(newcomer) else {
        return Err((login.stream, refusals::too_many_clients()));
    };
    let mut output = Buffer::default();
    greet(output.tail(), &learnt.parameters, &settings, client.pid, &client.key);
    let mut session = Session {
        pools,
        stream: login.stream,
        input: login.buffer,
        output,
        ledger: Ledger::new(settings, login.hospital.or(bound)),
        names: Arc::new(Names::default()),
        default_path: learnt.search_path.clone(),
        statements: Statements::default(),
        block: Block::None,
        attached: None,
        is_skipping: false,
        written_at: 1,
        skip_bytes: 0,
        loss: None,
        ledger_before: None,
        user: login.user,
        client,
        services,
    };
    session.renew_names();
    Ok(session)
}

async fn prepare(
    services: &Services,
    login: &Login,
    pools: &UserPools,
) -> Result<(Arc<Learnt>, Arc<SettingsMap>), ErrorReply> {
    let learnt = learn(services, login, pools).await?;
    let mut settings = SettingsMap::new();
    for (name, value) in &login.startup.settings {
        answer::check_setting(name, value)?;
        let value = match name.as_str() {
            // Any value is good, and there may be as many as there are clients.
            "application_name" => application_name(value),
            _ => check(services, login, pools, name, value).await?,
        };
        let is_default =
            learnt.parameters.iter().any(|(n, v)| n.eq_ignore_ascii_case(name) && *v == value);
        if !is_default {
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
    match checkout.server.run_collect(&sql).await {
        Ok(Ok(rows)) => {
            let canonical = rows.into_iter().flatten().next().unwrap_or_default();
            services.greetings.checked.insert(key, canonical.clone());
            Ok(canonical)
        }
        Ok(Err(error)) if error.code() == "42704" => Err(refusals::unknown_setting(name)),
        Ok(Err(error)) if error.code() == "55P02" => Err(refusals::setting_at_start_only(name)),
        Ok(Err(_)) => Err(refusals::bad_setting(name)),
        Err(_) => Err(refusals::not_ready()),
    }
}

/// As Postgres keeps it: cut, and printable ASCII only.
fn application_name(value: &str) -> String {
    let mut end = value.len().min(NAME_BYTES_MAX);
    while !value.is_char_boundary(end) {
        end -= 1;
    }
    let printable = |c: char| if (' '..='~').contains(&c) { c } else { '?' };
    value[..end].chars().map(printable).collect()
}

/// AuthenticationOk to ReadyForQuery.
fn greet(
    out: &mut BytesMut,
    parameters: &[(String, String)],
    settings: &SettingsMap,
    pid: i32,
    key: &[u8],
) {
    backend::write_authentication_ok(out);
    for (name, value) in parameters {
        let value = match name.as_str() {
            // pgward answers for the primary, whichever server it learnt from.
            "in_hot_standby" | "default_transaction_read_only" => "off",
            _ => settings.get(&name.to_ascii_lowercase()).map_or(value.as_str(), String::as_str),
        };
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
    }
}
