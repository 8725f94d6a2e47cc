//! What the client has been told of the settings that servers report (manual: "Asynchronous
//! Operations"): each change of what holds for it once, ahead of the ReadyForQuery of its request.
//!
//! While a server is held its word counts. What is answered without one, or is gone with it, is told
//! from the ledger. Called by `relay`, `settle` and whoever writes a ReadyForQuery.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::BytesMut;

use super::block::Block;
use super::params::{self, Ledger};
use super::welcome::{Learnt, application_name, reads_single_bytes};
use super::{Attached, Session};
use crate::server::SettingsMap;
use crate::wire::TxnStatus;
use crate::wire::backend;
use crate::wire::encoding::{self, Encoding};

/// A ReadyForQuery.
const READY_BYTES: usize = 6;

/// Values that the client believes in.
#[derive(Debug, Default)]
pub(super) struct Told {
    learnt: Arc<Learnt>,
    startup: Arc<SettingsMap>,
    /// Values that servers took to by themselves: their configuration has changed.
    defaults: BTreeMap<String, String>,
    /// What is no longer as it was greeted with.
    changed: BTreeMap<String, Box<[u8]>>,
}

impl Told {
    /// A client that is about to be greeted.
    pub fn new(learnt: Arc<Learnt>, startup: Arc<SettingsMap>) -> Self {
        Self { learnt, startup, ..Self::default() }
    }

    /// Names, as servers spell them, and values that it is greeted with.
    pub fn greeting(&self) -> impl Iterator<Item = (&str, &str)> {
        self.learnt.parameters.iter().map(|(name, value)| (name.as_str(), self.first(name, value)))
    }

    /// The value of the greeting; `learnt` is the server's own.
    fn first<'a>(&'a self, name: &str, learnt: &'a str) -> &'a str {
        match name {
            // pgward answers for the primary, whichever server it learnt from.
            "in_hot_standby" | "default_transaction_read_only" => "off",
            _ => self.startup.get(&name.to_ascii_lowercase()).map_or(learnt, String::as_str),
        }
    }

    /// Servers convert single-byte encodings to UTF8: those keep the same bytes as other text.
    pub fn reads_single_bytes(&self) -> bool {
        reads_single_bytes(&self.learnt.parameters)
    }

    /// Tells a value, unless the client knows it.
    pub fn tell(&mut self, out: &mut BytesMut, name: &str, value: &[u8]) {
        let greeted = self.greeting().find(|(known, _)| *known == name).map(|(_, value)| value);
        let is_as_greeted = greeted.is_some_and(|greeted| greeted.as_bytes() == value);
        let known = self.changed.get(name).map(|value| &**value).or(greeted.map(str::as_bytes));
        if known == Some(value) {
            return;
        }
        backend::write_parameter_bytes(out, name, value);
        if is_as_greeted {
            self.changed.remove(name);
        } else {
            self.changed.insert(name.to_owned(), value.into());
        }
    }

    /// Tells what holds by `ledger`, as far as that says.
    fn tell_all(&mut self, out: &mut BytesMut, ledger: &Ledger) {
        let learnt = self.learnt.clone();
        for (name, own) in &learnt.parameters {
            if let Some(value) = self.expected(ledger, name, own) {
                self.tell(out, name, value.as_bytes());
            }
        }
    }

    /// The value of a reported setting by `ledger`; `None` where only a server knows.
    fn expected(&self, ledger: &Ledger, name: &str, own: &str) -> Option<String> {
        let first = self.defaults.get(name).map_or(self.first(name, own), String::as_str);
        let key = name.to_ascii_lowercase();
        if key == "is_superuser" {
            let is_first = ["role", "session_authorization"]
                .iter()
                .all(|of| ledger.value(of) == self.startup.get(*of).map(String::as_str));
            return is_first.then(|| first.to_owned());
        }
        Some(match ledger.value(&key) {
            Some(value) => shown(&key, value, first),
            None => first.to_owned(),
        })
    }
}

/// `value` as servers show it, as far as that is known without one; `first`: the greeting's.
fn shown(name: &str, value: &str, first: &str) -> String {
    match name {
        "application_name" => application_name(value),
        "client_encoding" => encoding::canonical(value).unwrap_or(value).to_owned(),
        "datestyle" => params::merge_date_style(Some(first), value),
        "intervalstyle" => value.to_ascii_lowercase(),
        "standard_conforming_strings" | "default_transaction_read_only" => {
            if params::is_on(value) { "on" } else { "off" }.to_owned()
        }
        _ => value.to_owned(),
    }
}

impl Session {
    /// A server reports a setting.
    pub(super) fn on_parameter(&mut self, attached: &mut Attached, name: &str, value: &[u8]) {
        let key = name.to_ascii_lowercase();
        // The server's default: `settle` sets the session's own again.
        let own = attached.resets.contains(&key).then(|| self.ledger.settings().get(&key));
        let value = match own.flatten() {
            Some(own) if !attached.has_failed => own.as_bytes(),
            _ => value,
        };
        self.told.tell(self.output.tail(), name, value);
        if key == "client_encoding" {
            attached.encoding = Some(Encoding::named(&String::from_utf8_lossy(value)));
        }
        // Written as the client reads it.
        if let Some(value) = self.encoding_on(attached).decode(value) {
            attached.reported.push((name.to_owned(), value.into_owned()));
        }
    }

    /// A request has ended on its server: the values that were set are those that it reported.
    /// `true`: that changes what the ledger has.
    pub(super) fn confirm_reported(&mut self, attached: &mut Attached) -> bool {
        let mut is_new = false;
        for (name, value) in std::mem::take(&mut attached.reported) {
            let key = name.to_ascii_lowercase();
            if attached.has_failed {
                continue;
            }
            is_new |= self.ledger.confirm(&key, &value);
            let is_default = self.ledger.value(&key).is_none() && key != "is_superuser";
            if is_default && !attached.checkout.server.is_opaque {
                self.told.defaults.insert(name, value);
            }
        }
        is_new
    }

    /// ReadyForQuery of a request that was answered here.
    pub(super) fn write_ready(&mut self) {
        self.tell_settings();
        backend::write_ready_for_query(self.output.tail(), self.block.status());
    }

    /// Tells what holds now that no server is held.
    fn tell_settings(&mut self) {
        if !self.may_have_news() {
            return;
        }
        match self.block {
            Block::Failed(_) => self.told.tell_all(self.output.tail(), &self.ledger.failed()),
            _ => self.told.tell_all(self.output.tail(), &self.ledger),
        }
    }

    /// No server is held that tells by itself, and something is not as it was at the start.
    fn may_have_news(&self) -> bool {
        let is_servers = self.has_own_server() || self.pinned.is_some() || self.attached.is_some();
        !is_servers && (!self.told.changed.is_empty() || !self.ledger.is_as_at_start())
    }

    /// As [`Self::tell_settings`], ahead of the ReadyForQuery that was put out last.
    pub(super) fn tell_settings_before_ready(&mut self) {
        if !self.may_have_news() {
            return;
        }
        let tail = self.output.tail();
        let at = tail.len().saturating_sub(READY_BYTES);
        if !tail[at..].starts_with(b"Z\0\0\0\x05") {
            return self.tell_settings();
        }
        let status = tail.last().copied().and_then(TxnStatus::from_byte);
        tail.truncate(at);
        self.tell_settings();
        backend::write_ready_for_query(self.output.tail(), status.unwrap_or(TxnStatus::Idle));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told() -> Told {
        let parameters = [("TimeZone", "UTC"), ("DateStyle", "ISO, MDY"), ("is_superuser", "off")];
        let parameters = parameters.map(|(n, v)| (n.to_owned(), v.to_owned())).into();
        Told::new(Arc::new(Learnt { parameters, ..Learnt::default() }), Arc::default())
    }

    fn news(told: &mut Told, ledger: &Ledger) -> String {
        let mut out = BytesMut::new();
        told.tell_all(&mut out, ledger);
        String::from_utf8_lossy(&out).into_owned()
    }

    #[test]
    fn a_change_is_told_once_and_its_end_too() {
        let (mut told, mut ledger) = (told(), Ledger::default());
        assert_eq!(news(&mut told, &ledger), "");
        ledger.set("timezone", "CET");
        assert!(news(&mut told, &ledger).contains("TimeZone\0CET\0"));
        assert_eq!(news(&mut told, &ledger), "");
        ledger.rollback();
        assert!(news(&mut told, &ledger).contains("TimeZone\0UTC\0"));
        assert!(told.changed.is_empty());
    }

    #[test]
    fn half_a_date_style_is_told_whole() {
        let (mut told, mut ledger) = (told(), Ledger::default());
        ledger.set_local("datestyle", Some("dmy"));
        assert!(news(&mut told, &ledger).contains("DateStyle\0ISO, DMY\0"));
    }

    #[test]
    fn whether_a_role_is_a_superuser_only_a_server_knows() {
        let (mut told, mut ledger) = (told(), Ledger::default());
        told.tell(&mut BytesMut::new(), "is_superuser", b"on");
        ledger.set("role", "nurse");
        assert_eq!(news(&mut told, &ledger), "");
        ledger.reset("role");
        assert!(news(&mut told, &ledger).contains("is_superuser\0off\0"));
    }
}
