//! Why a client keeps its server between transactions: what it has there can't be given to another.
//!
//! Nothing here follows statements. One that may make or end a cause is a reason to ask the server,
//! once its transaction is over: what it says is true whatever a function or a rolled back
//! transaction did. Pure.

use std::collections::BTreeMap;

use crate::sql;

/// What a server of PostgreSQL 13 or newer answers in words: the causes that it knows of. Names are
/// qualified, operators too: the search_path is the client's.
pub const QUESTION: &str = "SELECT pg_catalog.concat_ws(' ', \
    CASE WHEN EXISTS (SELECT FROM pg_catalog.pg_listening_channels()) THEN 'listen' END, \
    CASE WHEN EXISTS (SELECT FROM pg_catalog.pg_depend \
        WHERE refclassid OPERATOR(pg_catalog.=) 2615::pg_catalog.oid \
        AND refobjid OPERATOR(pg_catalog.=) pg_catalog.pg_my_temp_schema()) THEN 'temp' END, \
    CASE WHEN EXISTS (SELECT FROM pg_catalog.pg_locks \
        WHERE locktype OPERATOR(pg_catalog.=) 'advisory'::pg_catalog.text \
        AND pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid()) THEN 'lock' END, \
    CASE WHEN EXISTS (SELECT FROM pg_catalog.pg_cursors WHERE is_holdable) THEN 'cursor' END)";

/// Asked with [`QUESTION`] where what ran may have set anything: a row `name=value` for each setting of
/// the session, the role always among them.
pub const SETTINGS_QUESTION: &str = " UNION ALL SELECT pg_catalog.concat(name, '=', \
    pg_catalog.current_setting(name)) FROM pg_catalog.pg_settings \
    WHERE source OPERATOR(pg_catalog.=) 'session'::pg_catalog.text \
    UNION ALL SELECT pg_catalog.concat('role=', pg_catalog.current_setting('role')) \
    UNION ALL SELECT pg_catalog.concat('session_authorization=', \
        pg_catalog.current_setting('session_authorization'))";

/// Splits the answer to both questions: the causes, and the settings by lower-case name.
pub fn split_answer(rows: Vec<Option<String>>) -> (String, BTreeMap<String, String>) {
    let (mut words, mut settings) = (String::new(), BTreeMap::new());
    for row in rows.into_iter().flatten() {
        match row.split_once('=') {
            Some((name, value)) => drop(settings.insert(name.to_lowercase(), value.to_owned())),
            None => words = row,
        }
    }
    (words, settings)
}

/// One cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pin {
    /// `pool_mode = "session"`.
    SessionMode,
    /// LISTEN.
    Listen,
    /// Temporary tables, views, sequences, functions, types.
    TempTable,
    /// Session-level advisory locks.
    AdvisoryLock,
    /// Cursors WITH HOLD.
    HoldCursor,
    /// LOAD, which nothing undoes.
    Load,
    /// The server could not be asked.
    Unsure,
    /// A replication connection, whose server nobody else has ever.
    Replication,
}

impl Pin {
    /// All causes.
    pub const ALL: [Self; 8] = [
        Self::SessionMode,
        Self::Listen,
        Self::TempTable,
        Self::AdvisoryLock,
        Self::HoldCursor,
        Self::Load,
        Self::Unsure,
        Self::Replication,
    ];

    /// As SHOW CLIENTS and the metrics name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::SessionMode => "session mode",
            Self::Listen => "LISTEN",
            Self::TempTable => "temporary table",
            Self::AdvisoryLock => "advisory lock",
            Self::HoldCursor => "cursor WITH HOLD",
            Self::Load => "LOAD",
            Self::Unsure => "not known",
            Self::Replication => "replication",
        }
    }
}

/// A set of causes; empty: the server may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pins(u8);

impl Pins {
    /// Adds a cause.
    pub fn insert(&mut self, pin: Pin) {
        self.0 |= 1 << pin as u8;
    }

    /// Has it?
    pub fn has(self, pin: Pin) -> bool {
        self.0 & (1 << pin as u8) != 0
    }

    /// Something that it keeps may hold a hospital's rows.
    pub fn may_hold_rows(self) -> bool {
        [Pin::TempTable, Pin::HoldCursor, Pin::Unsure].into_iter().any(|pin| self.has(pin))
    }

    /// No cause.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Its causes.
    pub fn iter(self) -> impl Iterator<Item = Pin> {
        Pin::ALL.into_iter().filter(move |pin| self.has(*pin))
    }

    /// What is in it and not in `other`.
    pub fn beyond(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// As a number, for [`Self::from_bits`].
    pub fn bits(self) -> u8 {
        self.0
    }

    /// Of [`Self::bits`].
    pub fn from_bits(bits: u8) -> Self {
        Self(bits)
    }

    /// The server's answer to [`QUESTION`]; what it can't know stays as it is.
    pub fn on_answer(self, words: &str) -> Self {
        let mut pins = Self::default();
        for pin in [Pin::SessionMode, Pin::Load] {
            if self.has(pin) {
                pins.insert(pin);
            }
        }
        for word in words.split(' ') {
            match word {
                "listen" => pins.insert(Pin::Listen),
                "temp" => pins.insert(Pin::TempTable),
                "lock" => pins.insert(Pin::AdvisoryLock),
                "cursor" => pins.insert(Pin::HoldCursor),
                _ => {}
            }
        }
        pins
    }
}

impl std::fmt::Display for Pins {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (n, pin) in self.iter().enumerate() {
            let comma = if n > 0 { ", " } else { "" };
            write!(f, "{comma}{}", pin.name())?;
        }
        Ok(())
    }
}

/// What a transaction may do to the causes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Change {
    /// Nothing.
    #[default]
    None,
    /// End one.
    MayEnd,
    /// Make one.
    MayBegin,
}

impl Change {
    /// What a statement with this effect may do.
    pub fn of(effect: &sql::Effect) -> Self {
        use sql::Effect;
        match effect {
            // Of DDL all kinds can name something in pg_temp.
            Effect::Pin(_) | Effect::Opaque | Effect::Ddl => Self::MayBegin,
            Effect::Unpin | Effect::Discard(_) => Self::MayEnd,
            _ => Self::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_says_all_but_what_a_server_cannot_know() {
        let mut pins = Pins::default();
        pins.insert(Pin::Load);
        pins.insert(Pin::TempTable);
        for (words, want) in [
            ("", "LOAD"),
            ("listen", "LISTEN, LOAD"),
            (
                "listen temp lock cursor",
                "LISTEN, temporary table, advisory lock, cursor WITH HOLD, LOAD",
            ),
        ] {
            assert_eq!(pins.on_answer(words).to_string(), want);
        }
        assert!(Pins::default().on_answer("").is_empty());
        assert_eq!(pins.beyond(pins.on_answer("")).to_string(), "temporary table");
    }
}
