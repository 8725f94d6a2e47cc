//! What a session has set: the ledger of SET, RESET and set_config, undone as Postgres undoes it.
//!
//! Owns the settings that a server must have before it runs this session's next request, and the
//! session's hospital. Every change is logged until its transaction ends, so that ROLLBACK and
//! ROLLBACK TO take it back. Settings that a server holds for one transaction only (SET LOCAL)
//! are the server's business; kept here in both scopes are only `pgward.hospital_id` and what
//! decides the meaning of names. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::route::TemporaryTables;
use crate::server::SettingsMap;
use crate::shard_map::HospitalId;
use crate::sql::{Effect, Statement, Temporary, Transaction};

/// Name of the setting that binds a session to a hospital.
pub const HOSPITAL: &str = "pgward.hospital_id";

/// Does this setting decide what names in a statement mean?
pub fn is_of_names(name: &str) -> bool {
    matches!(name, "search_path" | "role" | "session_authorization")
}

/// Settings that decide what literals in a statement mean. They are read when it is parsed, so
/// sessions that differ in one share no prepared statement.
pub const OF_LITERALS: [&str; 9] = [
    "array_nulls",
    "datestyle",
    "intervalstyle",
    "lc_monetary",
    "standard_conforming_strings",
    "timezone",
    "timezone_abbreviations",
    "transform_null_equals",
    "xmloption",
];

/// Settings beside those that servers report, and the client is told at once.
const REPORTED: [&str; 3] =
    ["application_name", "client_encoding", "default_transaction_read_only"];

/// The name of a custom setting (`app.clinician`), which no list of Postgres's has: it answers for one
/// only by name. `None`: it is none.
pub fn custom_name(bytes: &[u8]) -> Option<String> {
    let is_word = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '$'))
    };
    let text = std::str::from_utf8(bytes).ok().filter(|text| text.len() < 64)?;
    let is_name = text.contains('.') && text.split('.').all(is_word);
    // Those of pgward's own are no server's.
    let name = is_name.then(|| text.to_ascii_lowercase());
    name.filter(|name| !name.starts_with("pgward."))
}

/// Its value counts even where it ends with the transaction.
fn is_kept_locally(name: &str) -> bool {
    is_of_names(name) || OF_LITERALS.contains(&name) || REPORTED.contains(&name)
}

/// A boolean as Postgres reads it, of what it accepts.
pub fn is_on(value: &str) -> bool {
    let value = value.trim().to_ascii_lowercase();
    matches!(value.as_str(), "on" | "1")
        || (!value.is_empty() && ["true", "yes"].iter().any(|word| word.starts_with(&*value)))
}

/// Is this a setting of the transaction? It ends with it, however it was set.
pub fn is_of_transaction(name: &str) -> bool {
    matches!(name, "transaction_isolation" | "transaction_read_only" | "transaction_deferrable")
}

/// Does this setting decide as whom a statement runs? RESET ALL leaves it.
pub fn is_of_role(name: &str) -> bool {
    matches!(name, "role" | "session_authorization")
}

/// Does this setting decide how the bytes of a text are read?
pub fn is_of_text(name: &str) -> bool {
    matches!(name, "client_encoding" | "standard_conforming_strings")
}

/// Do names mean something else behind this statement?
pub fn changes_names(statement: &Statement) -> bool {
    match &statement.effect {
        _ if statement.temporary.as_ref().is_some_and(|of| **of != Temporary::Fills) => true,
        Effect::Set(settings) => settings.iter().any(|setting| is_of_names(&setting.name)),
        Effect::Reset(name) => is_of_names(name),
        Effect::ResetAll | Effect::Discard(_) => true,
        _ => false,
    }
}

/// As [`changes_names`], of how texts are read, but for what resets all.
pub fn changes_text(effect: &Effect) -> bool {
    match effect {
        Effect::Set(settings) => settings.iter().any(|setting| is_of_text(&setting.name)),
        Effect::Reset(name) => is_of_text(name),
        _ => false,
    }
}

/// Does it take settings back?
pub fn takes_back(effect: &Effect) -> bool {
    matches!(effect, Effect::Transaction(control) if ends_settings(control))
}

/// As [`takes_back`], of transaction control.
pub fn ends_settings(control: &Transaction) -> bool {
    matches!(
        control,
        Transaction::Commit { .. } | Transaction::Rollback { .. } | Transaction::RollbackTo(_)
    )
}

/// A session's settings.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    startup: Arc<SettingsMap>,
    current: Arc<SettingsMap>,
    startup_hospital: Option<HospitalId>,
    hospital: Option<HospitalId>,
    local_hospital: Option<Option<HospitalId>>,
    /// SET LOCAL of what decides a statement's meaning; `None`: the server's default, whatever the
    /// session has.
    local: Arc<BTreeMap<String, Option<String>>>,
    temporary: Arc<TemporaryTables>,
    log: Vec<Undo>,
    /// Times that transaction control other than BEGIN took place.
    controls: u64,
}

/// The session's hospital at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HospitalMark {
    session: Option<HospitalId>,
    local: Option<Option<HospitalId>>,
    controls: u64,
}

#[derive(Debug, Clone)]
enum Undo {
    Settings(Arc<SettingsMap>),
    Local(Arc<BTreeMap<String, Option<String>>>),
    Temporary(Arc<TemporaryTables>),
    Hospital { session: Option<HospitalId>, local: Option<Option<HospitalId>> },
    Savepoint(String),
}

impl Ledger {
    /// A session that began with these (canonical) settings and this hospital.
    pub fn new(startup: Arc<SettingsMap>, hospital: Option<HospitalId>) -> Self {
        Self {
            current: startup.clone(),
            startup,
            startup_hospital: hospital,
            hospital,
            ..Self::default()
        }
    }

    /// What a server must have before the open transaction begins on it.
    pub fn committed(&self) -> &Arc<SettingsMap> {
        let first = self.log.iter().find_map(|undo| match undo {
            Undo::Settings(old) => Some(old),
            _ => None,
        });
        first.unwrap_or(&self.current)
    }

    /// What holds for the next statement.
    pub fn settings(&self) -> &Arc<SettingsMap> {
        &self.current
    }

    /// A setting that [`is_kept_locally`], as it holds for the next statement; `None`: the default.
    pub fn value(&self, name: &str) -> Option<&str> {
        match self.local.get(name) {
            Some(value) => value.as_deref(),
            None => self.current.get(name).map(String::as_str),
        }
    }

    /// The value of the start.
    pub fn startup(&self) -> &SettingsMap {
        &self.startup
    }

    /// The session's hospital now.
    pub fn hospital(&self) -> Option<HospitalId> {
        self.local_hospital.unwrap_or(self.hospital)
    }

    /// SET, or set_config(.., false); lower-case name.
    pub fn set(&mut self, name: &str, value: &str) {
        let merged = (name == "datestyle").then(|| merge_date_style(self.value(name), value));
        let value = merged.as_deref().unwrap_or(value);
        self.end_local(name);
        if name == "session_authorization" {
            self.end_role();
        }
        if self.current.get(name).is_some_and(|old| old == value) {
            return;
        }
        self.change(|settings| {
            settings.insert(name.to_owned(), value.to_owned());
        });
    }

    /// SET LOCAL, or set_config(.., true): until the transaction ends.
    pub fn set_local(&mut self, name: &str, value: Option<&str>) {
        if is_kept_locally(name) {
            let value = match (name, value) {
                ("datestyle", Some(value)) => Some(merge_date_style(self.value(name), value)),
                (_, value) => value.map(str::to_owned),
            };
            self.note(Undo::Local(self.local.clone()));
            Arc::make_mut(&mut self.local).insert(name.to_owned(), value);
        }
    }

    /// SET SESSION AUTHORIZATION ends SET ROLE.
    fn end_role(&mut self) {
        self.end_local("role");
        let has_startup = self.startup.contains_key("role");
        self.change(|settings| match has_startup {
            true => drop(settings.insert("role".to_owned(), "none".to_owned())),
            false => drop(settings.remove("role")),
        });
    }

    /// RESET: back to the value of the start.
    pub fn reset(&mut self, name: &str) {
        self.end_local(name);
        if name == "session_authorization" {
            self.end_role();
        }
        let startup = self.startup.get(name).cloned();
        self.change(|settings| match startup {
            Some(value) => {
                settings.insert(name.to_owned(), value);
            }
            None => {
                settings.remove(name);
            }
        });
    }

    /// RESET ALL: all but what belongs to the role, as Postgres does.
    pub fn reset_all(&mut self) {
        for name in OF_LITERALS.into_iter().chain(REPORTED).chain(["search_path"]) {
            self.end_local(name);
        }
        let startup = self.startup.clone();
        self.change(|settings| {
            let kept: BTreeMap<_, _> = settings
                .iter()
                .filter(|(name, _)| is_of_role(name))
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect();
            settings.clone_from(&startup);
            settings.extend(kept);
        });
        self.set_hospital(self.startup_hospital, false);
    }

    /// DISCARD ALL: all of it.
    pub fn discard_all(&mut self) {
        self.note(Undo::Settings(self.current.clone()));
        self.current = self.startup.clone();
        self.set_hospital(self.startup_hospital, false);
        self.drop_all_temporary();
    }

    /// Its temporary tables.
    pub fn temporary(&self) -> &TemporaryTables {
        &self.temporary
    }

    /// CREATE TEMP TABLE, if it was there or not.
    pub fn make_temporary(&mut self, name: &str, ends_with_transaction: bool) {
        self.note(Undo::Temporary(self.temporary.clone()));
        let tables = Arc::make_mut(&mut self.temporary);
        // One that was there keeps its own ON COMMIT: of two that differ the name ends sooner.
        *tables.entry(name.to_owned()).or_default() |= ends_with_transaction;
    }

    /// DROP TABLE.
    pub fn drop_temporary(&mut self, name: &str) {
        self.note(Undo::Temporary(self.temporary.clone()));
        Arc::make_mut(&mut self.temporary).remove(name);
    }

    /// DISCARD TEMP.
    pub fn drop_all_temporary(&mut self) {
        if !self.temporary.is_empty() {
            self.note(Undo::Temporary(self.temporary.clone()));
            self.temporary = Arc::default();
        }
    }

    /// Their server is gone, or has none of them any more.
    pub fn forget_temporary(&mut self) {
        self.log.retain(|undo| !matches!(undo, Undo::Temporary(_)));
        if !self.temporary.is_empty() {
            self.temporary = Arc::default();
        }
    }

    /// Binds the session, or with `is_local` its transaction, to a hospital or to none.
    pub fn set_hospital(&mut self, hospital: Option<HospitalId>, is_local: bool) {
        self.note(Undo::Hospital { session: self.hospital, local: self.local_hospital });
        if is_local {
            self.local_hospital = Some(hospital);
        } else {
            self.hospital = hospital;
            self.local_hospital = None;
        }
    }

    /// RESET of the hospital: the value of the start.
    pub fn reset_hospital(&mut self, is_local: bool) {
        self.set_hospital(self.startup_hospital, is_local);
    }

    /// The hospital as it is now, for [`Self::return_to`].
    pub fn hospital_mark(&self) -> HospitalMark {
        let (session, local) = (self.hospital, self.local_hospital);
        HospitalMark { session, local, controls: self.controls }
    }

    /// What came behind `mark` has failed. The hospital is set when a batch is looked at, and
    /// transaction control takes place when the server says so: where there was any, nobody can say
    /// what of the two came first, and the session is for no hospital.
    pub fn return_to(&mut self, mark: HospitalMark) {
        let is_known = mark.controls == self.controls;
        self.hospital = mark.session.filter(|_| is_known);
        self.local_hospital = mark.local.filter(|_| is_known);
    }

    /// Transaction control other than BEGIN took place.
    pub fn on_control(&mut self) {
        self.controls += 1;
    }

    /// A SET of the session takes the place of a SET LOCAL before it.
    fn end_local(&mut self, name: &str) {
        if self.local.contains_key(name) {
            self.note(Undo::Local(self.local.clone()));
            Arc::make_mut(&mut self.local).remove(name);
        }
    }

    /// Logs what a change undoes, unless an earlier one since the last savepoint undoes it too: the
    /// log grows with savepoints, not with settings.
    fn note(&mut self, undo: Undo) {
        let mut since = self.log.iter().rev().take_while(|old| !matches!(old, Undo::Savepoint(_)));
        let is_same = |old: &Undo| std::mem::discriminant(old) == std::mem::discriminant(&undo);
        if !since.any(is_same) {
            self.log.push(undo);
        }
    }

    fn change(&mut self, edit: impl FnOnce(&mut SettingsMap)) {
        self.note(Undo::Settings(self.current.clone()));
        edit(Arc::make_mut(&mut self.current));
    }

    /// SAVEPOINT.
    pub fn savepoint(&mut self, name: &str) {
        self.log.push(Undo::Savepoint(name.to_owned()));
    }

    /// RELEASE: the savepoint is gone with those behind it; what came behind it stays.
    pub fn release(&mut self, name: &str) {
        let is_savepoint = |undo: &Undo| matches!(undo, Undo::Savepoint(n) if n == name);
        if let Some(at) = self.log.iter().rposition(is_savepoint) {
            let behind = self.log.split_off(at);
            behind
                .into_iter()
                .filter(|undo| !matches!(undo, Undo::Savepoint(_)))
                .for_each(|undo| self.note(undo));
        }
    }

    /// ROLLBACK TO: undoes what came behind the savepoint, which stays.
    pub fn rollback_to(&mut self, name: &str) {
        let is_savepoint = |undo: &Undo| matches!(undo, Undo::Savepoint(n) if n == name);
        if let Some(at) = self.log.iter().rposition(is_savepoint) {
            self.undo_down_to(at + 1);
        }
    }

    /// The transaction (a block, or the implicit one of a request) was committed.
    pub fn commit(&mut self) {
        self.log.clear();
        self.local_hospital = None;
        if !self.local.is_empty() {
            self.local = Arc::default();
        }
        if self.temporary.values().any(|ends| *ends) {
            Arc::make_mut(&mut self.temporary).retain(|_, ends| !*ends);
        }
    }

    /// The transaction was rolled back.
    pub fn rollback(&mut self) {
        self.undo_down_to(0);
        self.local_hospital = None;
        self.local = Arc::default();
    }

    /// The end of the transaction, or a way back in it, may change what names mean.
    pub fn may_undo_names(&self) -> bool {
        let names = ["search_path", "role", "session_authorization"];
        !self.local.is_empty()
            || self.temporary.values().any(|ends| *ends)
            || self.log.iter().any(|undo| match undo {
                Undo::Settings(old) => {
                    names.iter().any(|name| old.get(*name) != self.current.get(*name))
                }
                Undo::Local(old) => *old != self.local,
                Undo::Temporary(old) => *old != self.temporary,
                Undo::Hospital { .. } | Undo::Savepoint(_) => false,
            })
    }

    /// Nothing is set beyond what the session began with.
    pub fn is_as_at_start(&self) -> bool {
        let is_same = Arc::ptr_eq(&self.current, &self.startup) || self.current == self.startup;
        is_same && self.local.is_empty()
    }

    /// What holds after an error in the open block: it undoes what came behind the last savepoint.
    pub fn failed(&self) -> Self {
        let mut failed = self.clone();
        let is_savepoint = |undo: &Undo| matches!(undo, Undo::Savepoint(_));
        failed.undo_down_to(self.log.iter().rposition(is_savepoint).map_or(0, |at| at + 1));
        failed
    }

    /// A server shows the setting as `value`, where this may have it in another spelling. `true`: it
    /// has.
    pub fn confirm(&mut self, name: &str, value: &str) -> bool {
        let is_other = |known: &String| known != value;
        match self.local.get(name) {
            Some(Some(known)) if is_other(known) => {
                Arc::make_mut(&mut self.local).insert(name.to_owned(), Some(value.to_owned()));
            }
            Some(_) => return false,
            None if self.current.get(name).is_some_and(is_other) => {
                Arc::make_mut(&mut self.current).insert(name.to_owned(), value.to_owned());
            }
            None => return false,
        }
        true
    }

    /// As [`Self::may_undo_names`], of how texts are read.
    pub fn may_undo_text(&self) -> bool {
        self.may_undo(&["client_encoding", "standard_conforming_strings"])
    }

    /// As [`Self::may_undo_names`], of what literals mean.
    pub fn may_undo_literals(&self) -> bool {
        self.may_undo(&OF_LITERALS)
    }

    fn may_undo(&self, names: &[&str]) -> bool {
        let is_local = |name: &&str| self.local.contains_key(*name);
        let is_changed = |undo: &Undo| match undo {
            Undo::Settings(old) => {
                names.iter().any(|name| old.get(*name) != self.current.get(*name))
            }
            Undo::Local(old) => *old != self.local,
            Undo::Temporary(_) | Undo::Hospital { .. } | Undo::Savepoint(_) => false,
        };
        names.iter().any(is_local) || self.log.iter().any(is_changed)
    }

    /// Something was changed since the transaction began.
    pub fn is_changed(&self) -> bool {
        !self.log.is_empty() || self.local_hospital.is_some()
    }

    fn undo_down_to(&mut self, keep: usize) {
        while self.log.len() > keep {
            match self.log.pop() {
                Some(Undo::Settings(old)) => self.current = old,
                Some(Undo::Local(old)) => self.local = old,
                Some(Undo::Temporary(old)) => self.temporary = old,
                Some(Undo::Hospital { session, local }) => {
                    self.hospital = session;
                    self.local_hospital = local;
                }
                Some(Undo::Savepoint(_)) | None => {}
            }
        }
    }
}

/// The statement that turns a server with `have` into one with `want`; `None` if it is one.
/// All values go through set_config, one statement, so that all of them hold or none. Whose settings
/// they are is settled last, and what they were is undone first, since it decides what may be set.
pub fn replay(have: &SettingsMap, want: &SettingsMap) -> Option<String> {
    let mut sql = String::new();
    let differs = |name: &str| have.get(name) != want.get(name);
    let is_other_user = differs("session_authorization");
    let is_other_role = differs("role") || is_other_user;
    for (name, is_other) in [("role", is_other_role), ("session_authorization", is_other_user)] {
        if is_other && have.contains_key(name) {
            push(&mut sql, &format!("RESET {name}"));
        }
    }
    for name in have.keys().filter(|name| !is_of_role(name)) {
        // A DateStyle may give half of it: the other half is the default's, not the last client's.
        if !want.contains_key(name) || (name == "datestyle" && differs(name)) {
            push(&mut sql, &format!("RESET {}", quote_name(name)));
        }
    }
    for (name, value) in want.iter().filter(|(name, _)| !is_of_role(name) && differs(name)) {
        push(&mut sql, &set_statement(name, value, false));
    }
    for (name, is_other) in [("session_authorization", is_other_user), ("role", is_other_role)] {
        if is_other && let Some(value) = want.get(name) {
            push(&mut sql, &set_statement(name, value, false));
        }
    }
    (!sql.is_empty()).then_some(sql)
}

/// The DateStyle that `new` makes of `old`: each may give the format, the order of day and month,
/// or both, and what `new` leaves out stays.
pub fn merge_date_style(old: Option<&str>, new: &str) -> String {
    /// (format, order); the last one counts, `None` where a word is neither.
    fn halves(text: &str) -> Option<(Option<&'static str>, Option<&'static str>)> {
        let (mut format, mut order) = (None, None);
        for word in text.split(',') {
            let word = word.trim().to_ascii_lowercase();
            match word.as_str() {
                "iso" => format = Some("ISO"),
                "german" => (format, order) = (Some("German"), order.or(Some("DMY"))),
                "ymd" => order = Some("YMD"),
                "dmy" => order = Some("DMY"),
                "mdy" | "us" => order = Some("MDY"),
                _ if word.starts_with("sql") => format = Some("SQL"),
                _ if word.starts_with("postgres") => format = Some("Postgres"),
                _ if word.starts_with("euro") => order = Some("DMY"),
                _ if word.starts_with("noneuro") => order = Some("MDY"),
                _ => return None,
            }
        }
        Some((format, order))
    }
    let (Some(new_halves), Some(old_halves)) = (halves(new), old.and_then(halves)) else {
        return new.to_owned();
    };
    let (format, order) = (new_halves.0.or(old_halves.0), new_halves.1.or(old_halves.1));
    format.into_iter().chain(order).collect::<Vec<_>>().join(", ")
}

/// The statement that sets `name` for the session, or with `is_local` its transaction.
pub fn set_statement(name: &str, value: &str, is_local: bool) -> String {
    let (name, value) = (quote_literal(name), quote_literal(value));
    format!("SELECT pg_catalog.set_config({name}, {value}, {is_local})")
}

fn push(sql: &mut String, statement: &str) {
    if !sql.is_empty() {
        sql.push_str("; ");
    }
    sql.push_str(statement);
}

/// A string literal that means the same whatever standard_conforming_strings and client_encoding are.
pub fn quote_literal(text: &str) -> String {
    let doubled = text.replace('\'', "''");
    if text.is_ascii() && !text.contains('\\') {
        return format!("'{doubled}'");
    }
    let mut escaped = String::with_capacity(doubled.len() + 8);
    for c in doubled.chars() {
        match c {
            '\\' => escaped.push_str("\\\\"),
            c if c.is_ascii() => escaped.push(c),
            c => escaped.push_str(&format!("\\U{:08X}", u32::from(c))),
        }
    }
    format!("E'{escaped}'")
}

/// A setting's name, each part quoted: `app."x"`; in ASCII, as [`quote_literal`].
pub fn quote_name(name: &str) -> String {
    let quote = |part: &str| {
        let doubled = part.replace('"', "\"\"");
        if part.is_ascii() {
            return format!("\"{doubled}\"");
        }
        let escape = |c: char| match c {
            '\\' => "\\\\".to_owned(),
            c if c.is_ascii() => c.to_string(),
            c => format!("\\+{:06X}", u32::from(c)),
        };
        format!("U&\"{}\"", doubled.chars().map(escape).collect::<String>())
    };
    name.split('.').map(quote).collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> SettingsMap {
        pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect()
    }

    fn ledger() -> Ledger {
        Ledger::new(Arc::new(map(&[("work_mem", "4MB")])), None)
    }

    #[test]
    fn reset_goes_back_to_the_value_of_the_start() {
        let mut ledger = ledger();
        ledger.set("work_mem", "9MB");
        ledger.set("app.x", "1");
        ledger.reset("work_mem");
        ledger.reset("app.x");
        ledger.commit();
        assert_eq!(**ledger.settings(), map(&[("work_mem", "4MB")]));
    }

    #[test]
    fn rollback_undoes_all_and_rollback_to_what_came_behind() {
        let mut ledger = ledger();
        ledger.set("a", "1");
        ledger.savepoint("s");
        ledger.set("a", "2");
        ledger.savepoint("s");
        ledger.set("a", "3");
        ledger.rollback_to("s");
        assert_eq!(ledger.settings()["a"], "2");
        ledger.set("a", "4");
        ledger.rollback_to("s");
        assert_eq!(ledger.settings()["a"], "2");
        ledger.rollback();
        assert!(!ledger.settings().contains_key("a"));
    }

    #[test]
    fn a_released_savepoint_leaves_its_elder_namesake() {
        let mut ledger = ledger();
        ledger.savepoint("s");
        ledger.set("a", "1");
        ledger.savepoint("s");
        ledger.set("a", "2");
        ledger.release("s");
        assert_eq!(ledger.settings()["a"], "2");
        ledger.rollback_to("s");
        assert!(!ledger.settings().contains_key("a"));
    }

    #[test]
    fn a_local_search_path_counts_until_its_end() {
        let mut ledger = ledger();
        ledger.set("search_path", "a");
        ledger.commit();
        ledger.savepoint("s");
        ledger.set_local("search_path", Some("b"));
        assert_eq!(ledger.value("search_path"), Some("b"));
        ledger.rollback_to("s");
        assert_eq!(ledger.value("search_path"), Some("a"));
        ledger.set_local("search_path", None);
        assert_eq!(ledger.value("search_path"), None);
        ledger.set("search_path", "c");
        assert_eq!(ledger.value("search_path"), Some("c"));
        ledger.rollback();
        assert_eq!(ledger.value("search_path"), Some("a"));
    }

    #[test]
    fn a_local_hospital_ends_with_its_transaction() {
        let id = |n| Some(HospitalId(uuid::Uuid::from_u128(n)));
        let mut ledger = Ledger::new(Arc::default(), id(1));
        ledger.set_hospital(id(2), true);
        assert_eq!(ledger.hospital(), id(2));
        ledger.commit();
        assert_eq!(ledger.hospital(), id(1));
        ledger.set_hospital(id(3), false);
        ledger.rollback();
        assert_eq!(ledger.hospital(), id(1));
        ledger.set_hospital(None, false);
        ledger.commit();
        assert_eq!(ledger.hospital(), None);
        ledger.reset_hospital(false);
        assert_eq!(ledger.hospital(), id(1));
    }

    #[test]
    fn set_local_counts_until_its_transaction_or_savepoint_ends() {
        let mut ledger = ledger();
        ledger.savepoint("s");
        ledger.set_local("search_path", Some("other"));
        assert_eq!(ledger.value("search_path"), Some("other"));
        assert!(!ledger.settings().contains_key("search_path"), "no other server needs it");
        ledger.rollback_to("s");
        assert_eq!(ledger.value("search_path"), None);
        ledger.set_local("search_path", Some("other"));
        ledger.set("search_path", "mine");
        assert_eq!(ledger.value("search_path"), Some("mine"));
        ledger.set_local("search_path", Some("other"));
        ledger.commit();
        assert_eq!(ledger.value("search_path"), Some("mine"));
    }

    #[test]
    fn discard_all_takes_even_the_role() {
        let mut ledger = ledger();
        ledger.set("role", "nurse");
        ledger.set("x.y", "1");
        ledger.reset_all();
        assert_eq!(**ledger.settings(), map(&[("role", "nurse"), ("work_mem", "4MB")]));
        ledger.discard_all();
        assert_eq!(**ledger.settings(), map(&[("work_mem", "4MB")]));
    }

    #[test]
    fn half_a_date_style_keeps_the_other_half() {
        for (old, new, want) in [
            (None, "DMY", "DMY"),
            (Some("DMY"), "ISO", "ISO, DMY"),
            (Some("ISO, MDY"), "SQL, European", "SQL, DMY"),
            (Some("ISO, YMD"), "German", "German, DMY"),
            (Some("SQL, DMY"), "us", "SQL, MDY"),
            (Some("ISO"), "default", "default"),
        ] {
            assert_eq!(merge_date_style(old, new), want, "{old:?} {new}");
        }
    }

    #[test]
    fn the_role_is_settled_last_and_undone_first() {
        let sql = |have: &[_], want: &[_]| replay(&map(have), &map(want)).unwrap_or_default();
        let role = sql(&[("role", "a"), ("work_mem", "1")], &[("role", "b"), ("work_mem", "2")]);
        let steps: Vec<_> = role.split("; ").collect();
        assert!(steps[0] == "RESET role" && steps[2].contains("'role', 'b'"), "{role}");
        let user = sql(&[("role", "a")], &[("role", "a"), ("session_authorization", "u")]);
        let steps: Vec<_> = user.split("; ").collect();
        assert!(steps[1].contains("authorization") && steps[2].contains("'role', 'a'"), "{user}");
        let style = sql(&[("datestyle", "SQL, DMY")], &[("datestyle", "ISO")]);
        assert!(style.starts_with("RESET \"datestyle\"; "), "{style}");
    }

    #[test]
    fn session_authorization_ends_the_role() {
        let mut ledger = ledger();
        ledger.set("role", "nurse");
        ledger.set("session_authorization", "app");
        assert_eq!(ledger.value("role"), None);
        ledger.rollback();
        ledger.set("role", "nurse");
        ledger.reset("session_authorization");
        assert_eq!(ledger.value("role"), None);
    }

    #[test]
    fn a_failed_block_is_as_at_its_last_savepoint() {
        let mut ledger = ledger();
        ledger.set("timezone", "a");
        ledger.savepoint("s");
        ledger.set("timezone", "b");
        ledger.set_local("timezone", Some("c"));
        assert_eq!(ledger.failed().value("timezone"), Some("a"));
        assert_eq!(ledger.value("timezone"), Some("c"));
        ledger.release("s");
        assert_eq!(ledger.failed().value("timezone"), None);
    }

    #[test]
    fn the_spelling_of_a_server_takes_the_place_of_the_clients() {
        let mut ledger = ledger();
        ledger.set("timezone", "utc");
        ledger.commit();
        assert!(ledger.confirm("timezone", "UTC") && !ledger.confirm("timezone", "UTC"));
        ledger.set_local("timezone", Some("cet"));
        assert!(ledger.confirm("timezone", "CET"));
        assert_eq!(ledger.value("timezone"), Some("CET"));
        ledger.commit();
        assert_eq!(ledger.value("timezone"), Some("UTC"));
        assert!(!ledger.confirm("datestyle", "ISO"), "nobody has set it");
    }

    #[test]
    fn booleans_are_read_as_postgres_reads_them() {
        for (text, want) in [("on", true), ("T", true), ("ye", true), ("1", true), ("o", false)] {
            assert_eq!(is_on(text), want, "{text}");
        }
        assert!(!is_on("") && !is_on("off") && !is_on("no"));
    }

    #[test]
    fn the_log_grows_with_savepoints_only() {
        let mut ledger = ledger();
        for n in 0..1_000 {
            ledger.savepoint("s");
            ledger.set("a", &n.to_string());
            ledger.set_local("search_path", Some("x"));
            ledger.release("s");
        }
        assert!(ledger.log.len() < 5, "{}", ledger.log.len());
        ledger.rollback();
        assert!(!ledger.settings().contains_key("a"));
        assert_eq!(ledger.value("search_path"), None);
    }

    #[test]
    fn what_is_replayed_is_ascii_whatever_it_says() {
        assert_eq!(quote_literal("caf\u{e9} \\ it's"), "E'caf\\U000000E9 \\\\ it''s'");
        assert_eq!(quote_name("app.caf\u{e9}"), "\"app\".U&\"caf\\+0000E9\"");
    }

    #[test]
    fn replay_quotes_and_resets() {
        for (have, want, sql) in [
            (&[][..], &[][..], None),
            (&[("a", "1")], &[("a", "1")], None),
            (&[("a.b", "1")], &[], Some("RESET \"a\".\"b\"")),
            (
                &[("a", "1"), ("c", "2")],
                &[("a", "it's"), ("b", "\\x")],
                Some(
                    "RESET \"c\"; SELECT pg_catalog.set_config('a', 'it''s', false); \
                     SELECT pg_catalog.set_config('b', E'\\\\x', false)",
                ),
            ),
        ] {
            assert_eq!(replay(&map(have), &map(want)).as_deref(), sql);
        }
    }
}
