//! `users.toml` to users: each key looked at, each problem told.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use toml::value::{Datetime, Offset};

use super::{
    ServerCredentials, ServerLimits, Source, TEXT_BYTES_MAX, User, UserLimits, is_usable,
    needs_another, own_secret,
};
use crate::auth::secrets::{Secrets, ServerSecret, Stored};
use crate::config::{AuthType, PoolMode};
use crate::document::{Fields, Report, Spanned};
use crate::route::{CrossHospital, Hospitals, Rights};
use crate::shard_map::HospitalId;

/// Longest time-out, in seconds: what the configuration takes.
const SECONDS_MAX: f64 = 1e9;
/// Most clients of a user, as in the configuration.
const COUNT_MAX: u64 = 10_000_000;

/// Walks the file; all that is wrong goes into the report.
pub(super) struct Reader<'r, 't> {
    pub auth_type: AuthType,
    pub secret: &'r dyn Fn(Source<'_>) -> Result<String, String>,
    pub report: &'r Report<'t>,
}

/// A problem has been noted that leaves nothing to go on with.
struct Noted;

impl Reader<'_, '_> {
    /// All users; names are unique, and a server user has one secret and the same limits.
    pub fn users(&self, tables: Vec<Fields<'_, '_>>) -> Vec<User> {
        let mut users: Vec<User> = Vec::with_capacity(tables.len());
        let mut names = HashSet::new();
        let mut servers: HashMap<String, ServerCredentials> = HashMap::new();
        for table in tables {
            let span = table.span().clone();
            let Ok(user) = self.user(table) else { continue };
            if !names.insert(user.name.clone()) {
                self.report.at(&span, format!("user \"{}\" is listed twice", user.name));
            }
            let server = servers.entry(user.server.user.clone());
            let server = server.or_insert_with(|| ServerCredentials::clone(&user.server));
            if let Err(key) = server.limits.join(user.server.limits) {
                let server = &user.server.user;
                let what = format!("server user \"{server}\" has another `{key}` here than above");
                self.report.at(&span, what);
            }
            if server.secret != user.server.secret {
                let what = format!(
                    "server user \"{}\" has another secret here than above",
                    user.server.user
                );
                self.report.at(&span, what);
            }
            users.push(user);
        }
        for user in &mut users {
            let limits = servers.get(&user.server.user).map(|server| server.limits);
            if let Some(limits) = limits.filter(|limits| *limits != user.server.limits) {
                let server = ServerCredentials::clone(&user.server);
                user.server = Arc::new(ServerCredentials { limits, ..server });
            }
        }
        users
    }

    fn user(&self, mut table: Fields<'_, '_>) -> Result<User, Noted> {
        table.require(&["name"]);
        let name = table.string("name").ok_or(Noted).and_then(|name| self.text(&name, "name"));
        let secrets = self.secrets(&mut table);
        let valid_until = self.valid_until(&mut table);
        let server = self.server(&mut table, name.as_deref().ok(), secrets.as_ref().ok());
        let server_limits = self.server_limits(&mut table);
        let rights = self.rights(&mut table);
        let limits = self.limits(&mut table);
        table.finish();
        Ok(User {
            name: name?,
            rights,
            server: Arc::new(ServerCredentials { limits: server_limits, ..server? }),
            limits,
            is_listed: true,
            valid_until: valid_until?,
            secrets: Arc::new(secrets?),
        })
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

    fn server_limits(&self, table: &mut Fields<'_, '_>) -> ServerLimits {
        let mut count = |key, least| {
            let count = table.integer(key, least..=COUNT_MAX);
            count.and_then(|count| usize::try_from(*count.get_ref()).ok())
        };
        ServerLimits {
            pool_size: count("pool_size", 1),
            reserve_pool_size: count("reserve_pool_size", 0),
            max_user_connections: count("max_user_connections", 0),
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

    fn secrets(&self, table: &mut Fields<'_, '_>) -> Result<Secrets, Noted> {
        const KEYS: [&str; 3] = ["secret", "secret_env", "secret_file"];
        const PREVIOUS: [&str; 3] =
            ["previous_secret", "previous_secret_env", "previous_secret_file"];
        let current = self.secret(table, KEYS);
        let previous = self.secret(table, PREVIOUS);
        let (current, previous) = (current?, previous?);
        let Some(current) = current else {
            if let Some(previous) = previous {
                let what = "a previous secret needs a present one: `secret`";
                self.report.at(&previous.span(), what);
                return Err(Noted);
            }
            // Rules may have users who prove themselves otherwise.
            if matches!(self.auth_type, AuthType::Trust | AuthType::Cert | AuthType::Hba) {
                return Ok(Secrets::none());
            }
            let what = "a user needs `secret`, `secret_env` or `secret_file`";
            self.report.at(table.span(), what);
            return Err(Noted);
        };
        let span = current.span();
        let stored = self.stored(&current);
        let previous = previous.map(|previous| self.stored(&previous)).transpose();
        let secrets = Secrets::new(stored?, previous?).map_err(|clash| {
            self.report.at(&span, clash.to_string());
            Noted
        })?;
        if let Some(what) = needs_another(self.auth_type, &secrets) {
            self.report.at(&span, what);
            return Err(Noted);
        }
        Ok(secrets)
    }

    fn stored(&self, secret: &Spanned<String>) -> Result<Stored, Noted> {
        Stored::read(secret.get_ref()).map_err(|_| {
            let what = "not SCRAM-SHA-256$<iterations>:<salt>$<stored key>:<server key>";
            self.report.at(&secret.span(), what);
            Noted
        })
    }

    fn valid_until(&self, table: &mut Fields<'_, '_>) -> Result<Option<SystemTime>, Noted> {
        let has_one = table.has("valid_until");
        let Some(found) = table.datetime("valid_until", read_datetime) else {
            return if has_one { Err(Noted) } else { Ok(None) };
        };
        instant(found.get_ref()).map(Some).ok_or_else(|| {
            let what = "`valid_until` must be a date, a time and its zone, as 2027-01-01T00:00:00Z";
            self.report.at(&found.span(), what);
            Noted
        })
    }

    fn server(
        &self,
        table: &mut Fields<'_, '_>,
        name: Option<&str>,
        secrets: Option<&Secrets>,
    ) -> Result<ServerCredentials, Noted> {
        const KEYS: [&str; 3] = ["server_secret", "server_secret_env", "server_secret_file"];
        let user = table.string("server_user").map(|user| self.text(&user, "server_user"));
        let found = self.secret(table, KEYS)?;
        if let Some(secret) = &found
            && !matches!(Stored::read(secret.get_ref()), Ok(Stored::Plain(_)))
        {
            let what = "a server's secret must be plain: pgward logs in with it";
            self.report.at(&secret.span(), what);
            return Err(Noted);
        }
        let secret = found.map(|secret| ServerSecret::plain(secret.get_ref()));
        if let Some(user) = user {
            return Ok(ServerCredentials::new(&user?, secret));
        }
        if secret.is_some() {
            self.report.at(table.span(), "a server secret needs its `server_user`");
            return Err(Noted);
        }
        let own = own_secret(secrets.ok_or(Noted)?);
        Ok(ServerCredentials::new(name.ok_or(Noted)?, own))
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

/// A timestamp as Postgres writes it is nearly one as TOML does: its zone may lack the minutes.
fn read_datetime(text: &str) -> Result<Datetime, String> {
    let text = text.trim();
    let zone = text.len().checked_sub(3).and_then(|at| text.get(at..)).unwrap_or_default();
    let lacks_minutes = text.contains(':') && zone.starts_with(['+', '-']);
    let whole = if lacks_minutes { format!("{text}:00") } else { text.to_owned() };
    whole.parse().map_err(|_| "must be a date, a time and its zone, as 2027-01-01T00:00:00Z".into())
}

/// The instant of a date and time with a zone; without a zone it is several.
fn instant(datetime: &Datetime) -> Option<SystemTime> {
    let (date, time) = (datetime.date?, datetime.time?);
    let offset_minutes = match datetime.offset? {
        Offset::Z => 0,
        Offset::Custom { minutes } => i64::from(minutes),
    };
    // Days since 1970-01-01 of the Gregorian calendar, with years that begin in March.
    let (year, month) = (i64::from(date.year), i64::from(date.month));
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days_of_year = (153 * month + 2) / 5 + i64::from(date.day) - 1;
    let days = 365 * year + year / 4 - year / 100 + year / 400 + days_of_year - 719_468;
    let minutes = days * 1440 + i64::from(time.hour) * 60 + i64::from(time.minute) - offset_minutes;
    let seconds = minutes * 60 + i64::from(time.second.unwrap_or(0));
    // Before 1970 is long past all the same.
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_are_read_in_both_spellings() {
        for (text, want) in [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("1970-03-01T00:00:00Z", Some(59 * 86_400)),
            ("2000-02-29T12:30:01Z", Some(951_827_401)),
            ("2026-11-24T14:00:00Z", Some(1_795_528_800)),
            ("2026-11-24 14:00:00+00", Some(1_795_528_800)),
            ("2026-11-24 15:00:00.5+01", Some(1_795_528_800)),
            ("2026-11-24 19:30:00+05:30", Some(1_795_528_800)),
            ("2026-11-24 09:00:00-05", Some(1_795_528_800)),
            ("1969-12-31T00:00:00Z", Some(0)),
            ("2026-11-24T14:00:00", None),
            ("2026-11-24", None),
            ("14:00:00", None),
            ("infinity", None),
            ("tomorrow", None),
            ("-05", None),
            ("\u{e9}:", None),
        ] {
            let got = read_datetime(text).ok().and_then(|datetime| instant(&datetime));
            let want = want.map(|s| SystemTime::UNIX_EPOCH + Duration::from_secs(s));
            assert_eq!(got, want, "{text}");
        }
    }
}
