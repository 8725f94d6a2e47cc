//! Answers that need no server: the session's hospital, lazy transaction control, DEALLOCATE,
//! DISCARD, and settings queued behind a BEGIN that no server has yet.

use std::borrow::Cow;

use bytes::BytesMut;

use super::block::Answer;
use super::statements::Change;
use super::welcome::reads_single_bytes;
use super::{Attached, Session, invalid_text, params};
use crate::route::{Hospitals, Values, refusals};
use crate::shard_map::HospitalId;
use crate::sql::{Discard, Effect, Setting, SettingValue, Statement};
use crate::wire::backend::{self, ErrorReply};
use crate::wire::encoding::Encoding;

/// OID of text.
const TEXT: u32 = 25;

/// What the client gets for a statement that ran here.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Local {
    /// Column name and value, where it answers a row.
    pub row: Option<(String, String)>,
    /// Sent ahead of the tag.
    pub warning: Option<ErrorReply>,
    /// Command tag.
    pub tag: String,
}

impl Local {
    fn tag(tag: impl Into<String>) -> Self {
        Self { tag: tag.into(), ..Self::default() }
    }

    /// RowDescription, or NoData where `is_described` asks for one or the other.
    pub fn write_description(&self, out: &mut BytesMut) {
        match &self.row {
            Some((name, _)) => backend::write_row_description(out, &[(name, TEXT)]),
            None => backend::write_no_data(out),
        }
    }

    /// Warning, row and tag: what Execute answers.
    pub fn write_result(&self, out: &mut BytesMut) {
        if let Some(warning) = &self.warning {
            warning.encode(out);
        }
        if let Some((_, value)) = &self.row {
            backend::write_data_row(out, [Some(value.as_str())].into_iter());
        }
        backend::write_command_complete(out, &self.tag);
    }

    /// What a simple Query answers.
    pub fn write_query_result(&self, out: &mut BytesMut) {
        if self.row.is_some() {
            self.write_description(out);
        }
        self.write_result(out);
    }
}

impl Session {
    /// Is `statement` answered here? With `is_attached`, transaction control and settings are the
    /// server's.
    pub(super) fn is_local(&self, statement: &Statement, is_attached: bool) -> bool {
        // What the server is to report at once is its to run where the session keeps one.
        let is_free = !is_attached && self.pinned.is_none();
        let is_pending = is_free && matches!(self.block, super::Block::Pending(_));
        match &statement.effect {
            Effect::Transaction(_) => !is_attached,
            Effect::Set(settings) => {
                settings.iter().any(|setting| setting.name == params::HOSPITAL)
                    || (is_pending && settings.iter().all(|setting| !setting.from_function))
            }
            Effect::Reset(name) => {
                name == params::HOSPITAL || (is_free && self.ledger.settings().contains_key(name))
            }
            Effect::ResetAll => is_free,
            Effect::Show(name) => name == params::HOSPITAL,
            Effect::Deallocate(_) | Effect::Discard(Discard::All) => !self.has_own_server(),
            // Of servers that no client keeps there is nothing to discard.
            Effect::Discard(_) => is_free,
            _ => false,
        }
    }

    /// Shape of the row that a local statement answers, without running it.
    pub(super) fn describe_locally(statement: &Statement) -> Local {
        let column = match &statement.effect {
            Effect::Show(name) => Some(name.clone()),
            Effect::Set(settings) if settings.iter().any(|s| s.from_function) => {
                Some("set_config".to_owned())
            }
            _ => None,
        };
        Local { row: column.map(|name| (name, String::new())), ..Local::default() }
    }

    /// Runs a local statement; `text` is the statement as sent.
    pub(super) fn answer(
        &mut self,
        statement: &Statement,
        values: &dyn Values,
        text: &str,
    ) -> Result<Local, ErrorReply> {
        if let Effect::Transaction(control) = &statement.effect {
            let was_pending = matches!(self.block, super::Block::Pending(_));
            let text = self.encode(text)?;
            let answer = self.block.on_control(control, &text);
            return self.after_control(control, answer, was_pending);
        }
        if matches!(self.block, super::Block::Failed(_)) {
            return Err(refusals::in_failed_transaction());
        }
        match &statement.effect {
            Effect::Set(settings) => self.set_locally(settings, values, text),
            Effect::Reset(name) if name == params::HOSPITAL => {
                self.ledger.reset_hospital(false);
                self.settle_implicit();
                Ok(Local::tag("RESET"))
            }
            Effect::Reset(name) => {
                let text = self.reset_statement(name, false);
                self.block.queue(text.as_bytes())?;
                self.ledger.reset(name);
                self.settle_implicit();
                // SET x TO DEFAULT is the same, and says SET.
                Ok(Local::tag(statement.command))
            }
            Effect::ResetAll => {
                self.block.queue(b"RESET ALL")?;
                for (name, value) in self.ledger.startup() {
                    self.block.queue(params::set_statement(name, value, false).as_bytes())?;
                }
                self.ledger.reset_all();
                self.settle_implicit();
                Ok(Local::tag("RESET"))
            }
            Effect::Show(name) => {
                let value = self.ledger.hospital().map(|h| h.to_string()).unwrap_or_default();
                Ok(Local { row: Some((name.clone(), value)), ..Local::tag("SHOW") })
            }
            Effect::Deallocate(name) => self.deallocate(name.as_deref()).map(|(local, _)| local),
            Effect::Discard(what) => self.discard(*what),
            _ => Err(refusals::internal()),
        }
    }

    /// A text of the client's as it was sent.
    fn encode<'t>(&self, text: &'t str) -> Result<Cow<'t, [u8]>, ErrorReply> {
        self.encoding().encode(text).ok_or_else(|| invalid_text(self.encoding()))
    }

    fn after_control(
        &mut self,
        control: &crate::sql::Transaction,
        answer: Answer,
        was_pending: bool,
    ) -> Result<Local, ErrorReply> {
        use crate::sql::Transaction;
        if matches!(answer, Answer::Tag(_)) {
            if !matches!(control, Transaction::Begin(_)) {
                self.ledger.on_control();
            }
            match control {
                Transaction::Commit { .. } if was_pending => self.ledger.commit(),
                Transaction::Commit { .. } | Transaction::Rollback { .. } => self.ledger.rollback(),
                Transaction::Savepoint(name) => self.ledger.savepoint(name),
                Transaction::Release(name) => self.ledger.release(name),
                Transaction::RollbackTo(name) => self.ledger.rollback_to(name),
                _ => {}
            }
            self.renew_names();
        }
        match answer {
            Answer::Tag(tag) => Ok(Local::tag(tag)),
            Answer::Warned(warning, tag) => Ok(Local { warning: Some(warning), ..Local::tag(tag) }),
            Answer::Refused(refusal) => Err(refusal),
        }
    }

    /// Outside a block each statement is a transaction of its own.
    fn settle_implicit(&mut self) {
        if matches!(self.block, super::Block::None) && self.attached.is_none() {
            self.ledger.commit();
        }
        self.renew_names();
    }

    fn set_locally(
        &mut self,
        settings: &[Setting],
        values: &dyn Values,
        text: &str,
    ) -> Result<Local, ErrorReply> {
        let is_hospital = settings.iter().any(|setting| setting.name == params::HOSPITAL);
        if is_hospital && settings.len() > 1 {
            return Err(refusals::unsupported(
                "pgward.hospital_id set together with other settings",
                "Set it in a statement of its own.",
            ));
        }
        let Some(setting) = settings.first() else { return Err(refusals::internal()) };
        if !is_hospital {
            // BEGIN is not out yet: the statement goes behind it, and is answered now.
            for setting in settings {
                let value = self.setting_value(setting, values)?;
                match value {
                    // A server's own default may be another.
                    None if setting.name == "search_path" => {
                        let text = self.reset_statement(&setting.name, setting.is_local);
                        self.block.queue(text.as_bytes())?;
                    }
                    _ => {
                        let text = self.encode(text)?;
                        self.block.queue(&text)?;
                    }
                }
                match value {
                    value if setting.is_local || params::is_of_transaction(&setting.name) => {
                        self.ledger.set_local(&setting.name, value.as_deref());
                    }
                    Some(value) => self.ledger.set(&setting.name, &value),
                    None => self.ledger.reset(&setting.name),
                }
            }
            self.renew_names();
            return Ok(Local::tag("SET"));
        }
        let value = match setting.value {
            SettingValue::Computed => return Err(refusals::computed_setting(params::HOSPITAL)),
            _ => self.setting_value(setting, values)?,
        };
        let shown = match value.as_deref() {
            None => {
                self.ledger.reset_hospital(setting.is_local);
                self.ledger.hospital().map(|h| h.to_string()).unwrap_or_default()
            }
            Some("") => {
                self.bind_hospital(None, setting.is_local)?;
                String::new()
            }
            Some(text) => {
                let hospital = HospitalId::parse(text)
                    .ok_or_else(|| refusals::not_a_uuid("pgward.hospital_id"))?;
                self.bind_hospital(Some(hospital), setting.is_local)?;
                text.to_owned()
            }
        };
        let warning = (setting.is_local
            && !setting.from_function
            && matches!(self.block, super::Block::None)
            && self.attached.is_none())
        .then(|| refusals::no_transaction_for("SET LOCAL"));
        self.settle_implicit();
        Ok(if setting.from_function {
            Local { row: Some(("set_config".into(), shown)), ..Local::tag("SELECT 1") }
        } else {
            Local { warning, ..Local::tag("SET") }
        })
    }

    /// A login that is bound to hospitals stays within them.
    fn bind_hospital(
        &mut self,
        hospital: Option<HospitalId>,
        is_local: bool,
    ) -> Result<(), ErrorReply> {
        if let Some(hospital) = hospital {
            may_bind(&self.user.rights.hospitals, hospital)?;
            if self.services.map.peek().locate(hospital).is_err() {
                return Err(refusals::unknown_hospital());
            }
        }
        self.ledger.set_hospital(hospital, is_local);
        Ok(())
    }

    /// RESET on a server that is held takes the setting to the server's own default. What the session
    /// began with is set again behind the request; a default that the session learnt otherwise is
    /// not, so where names depend on it the two must be one.
    pub(super) fn check_reset(&self, name: &str) -> Result<(), ErrorReply> {
        let Some(attached) = &self.attached else { return Ok(()) };
        if name == "search_path" && attached.checkout.server.default_path != self.default_path {
            return Err(refusals::unsupported(
                "resetting search_path in a transaction",
                "SET it to the value that you mean, or reset it outside.",
            ));
        }
        Ok(())
    }

    /// The value that a SET or set_config gives; `None` is the default.
    pub(super) fn setting_value(
        &self,
        setting: &Setting,
        values: &dyn Values,
    ) -> Result<Option<String>, ErrorReply> {
        let value = match &setting.value {
            SettingValue::Text(text) => Some(text.clone()),
            SettingValue::Slot(slot) => values.literal(*slot).map(|text| text.into_owned()),
            SettingValue::Param(n) => match values.param(*n) {
                Some((_, Some(bytes))) => Some(self.decode(bytes)?.into_owned()),
                _ => None,
            },
            SettingValue::Computed | SettingValue::Default => None,
        };
        if let Some(value) = &value
            && !self.is_unguarded()
        {
            // A server that is held would run it at once.
            let held = self.attached.as_deref().or(self.pinned.as_deref());
            let is_read = |of: &Attached| reads_single_bytes(&of.checkout.server.parameters);
            let is_read = self.told.reads_single_bytes() && held.is_none_or(is_read);
            check_setting(&setting.name, value, is_read)?;
        }
        Ok(value)
    }

    pub(super) fn deallocate(&mut self, name: Option<&str>) -> Result<(Local, Change), ErrorReply> {
        match name {
            None => Ok((Local::tag("DEALLOCATE ALL"), self.statements.take_all())),
            Some(name) if self.statements.get(name.as_bytes()).is_some() => {
                Ok((Local::tag("DEALLOCATE"), self.statements.take(name.as_bytes())))
            }
            Some(name) => Err(refusals::no_statement(name)),
        }
    }

    pub(super) fn discard(&mut self, what: Discard) -> Result<Local, ErrorReply> {
        if what == Discard::All {
            if !matches!(self.block, super::Block::None) || self.attached.is_some() {
                return Err(refusals::discard_in_transaction());
            }
            if let Some(pinned) = self.pinned.take() {
                self.unpin(pinned);
            }
            self.ledger.discard_all();
            self.statements.clear();
            self.settle_implicit();
        }
        Ok(Local::tag(match what {
            Discard::All => "DISCARD ALL",
            Discard::Plans => "DISCARD PLANS",
            Discard::Sequences => "DISCARD SEQUENCES",
            Discard::Temp => "DISCARD TEMP",
        }))
    }
}

/// May a login with these hospitals bind its session to `hospital`?
pub(super) fn may_bind(hospitals: &Hospitals, hospital: HospitalId) -> Result<(), ErrorReply> {
    match hospitals {
        Hospitals::Only(list) if !list.contains(&hospital) => Err(refusals::login_may_not_reach()),
        _ => Ok(()),
    }
}

/// Settings that would make pgward misread statements are refused, where something is guarded;
/// `reads_single_bytes`: servers are of UTF8, and convert what comes in another encoding.
pub(super) fn check_setting(
    name: &str,
    value: &str,
    reads_single_bytes: bool,
) -> Result<(), ErrorReply> {
    match name {
        "client_encoding" => match Encoding::named(value) {
            Encoding::Utf8 => Ok(()),
            Encoding::Single(_) if reads_single_bytes => Ok(()),
            _ => Err(refusals::unsupported_encoding(value)),
        },
        "standard_conforming_strings" => {
            if params::is_on(value) {
                Ok(())
            } else {
                Err(refusals::nonstandard_strings())
            }
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_change_how_text_reads_are_refused() {
        for (name, value, is_ok) in [
            ("client_encoding", "UTF8", true),
            ("client_encoding", "utf-8", true),
            ("client_encoding", "SQL_ASCII", true),
            ("client_encoding", "SJIS", false),
            ("client_encoding", "LATIN1", true),
            ("client_encoding", "windows-1252", true),
            ("client_encoding", "EUC_JP", false),
            ("standard_conforming_strings", "on", true),
            ("standard_conforming_strings", "off", false),
            ("work_mem", "off", true),
        ] {
            assert_eq!(check_setting(name, value, true).is_ok(), is_ok, "{name}={value}");
        }
        assert!(check_setting("client_encoding", "LATIN1", false).is_err());
    }
}
