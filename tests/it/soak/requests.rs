//! Statements as bytes: simple or extended, unnamed or prepared, values as text or binary, whole or
//! in portions.

use std::collections::BTreeSet;

use super::statements::{Statement, Value};
use crate::support::Dice;
use crate::support::raw::{message, query, sync};

/// What is sent up to one ReadyForQuery.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// For a failure.
    pub told: String,
    pub bytes: Vec<u8>,
    /// Kind of each statement, and whether its rows have an order, by result.
    pub kinds: Vec<&'static str>,
    pub is_ordered: Vec<bool>,
    /// Which of the client's hospitals it is for.
    pub at: usize,
    pub is_write: bool,
    /// It runs where its hospital is.
    pub has_hospital: bool,
    /// It ends a transaction block, or may.
    pub ends: bool,
    pub is_slow: bool,
    pub refused: Option<&'static str>,
    /// Statements that it prepares or closes: after a failure nobody knows whether they are there.
    pub touches: Vec<&'static str>,
}

/// A session's prepared statements; their names are kinds.
#[derive(Debug, Default)]
pub struct Names {
    /// There.
    pub known: BTreeSet<&'static str>,
    /// There or not.
    pub doubtful: BTreeSet<&'static str>,
    /// Touched by an earlier part of the same pipeline, which may fail.
    pub barred: BTreeSet<&'static str>,
}

impl Names {
    /// A request that touches `names` has failed.
    pub fn doubt(&mut self, names: &[&'static str]) {
        self.known.retain(|name| !names.contains(name));
        self.doubtful.extend(names);
    }
}

/// How results are asked for.
const RESULT_FORMATS: [&[u8]; 3] = [b"\0\0", b"\0\x01\0\0", b"\0\x01\0\x01"];

impl Request {
    pub fn new(at: usize) -> Self {
        Self { at, ..Self::default() }
    }

    /// Transaction control and the like, in a Query.
    pub fn control(at: usize, kind: &'static str, sql: &str) -> Self {
        let ends = ["COMMIT", "ROLLBACK", "END"].contains(&sql);
        let told = sql.to_owned();
        Self { told, bytes: query(sql), kinds: vec![kind], ends, ..Self::new(at) }
    }

    /// All of `statements` in one Query.
    pub fn simple(at: usize, statements: &[Statement], dice: &mut Dice) -> Self {
        let mut request = Self::new(at);
        let texts: Vec<String> =
            statements.iter().map(|statement| literal_text(statement, dice)).collect();
        let sql = texts.join("; ");
        for statement in statements {
            request.note(statement);
        }
        request.bytes = query(&sql);
        request.told = sql;
        request
    }

    /// Adds `statement` in the extended protocol.
    pub fn add(&mut self, statement: &Statement, names: &mut Names, dice: &mut Dice) {
        self.note(statement);
        let kind = statement.kind;
        let is_usable = !names.doubtful.contains(kind) && !names.barred.contains(kind);
        let name = if is_usable && !dice.one_in(3) { kind } else { "" };
        let is_new = !names.known.contains(name);
        if is_new {
            let types: Vec<u8> = match dice.one_in(3) {
                true => {
                    let oids = statement.values.iter().flat_map(|v| v.oid().to_be_bytes());
                    let count = (statement.values.len() as u16).to_be_bytes();
                    count.into_iter().chain(oids).collect()
                }
                false => vec![0, 0],
            };
            let text = statement.sql.as_bytes();
            self.push(b'P', &[name.as_bytes(), b"\0", text, b"\0", &types]);
            if !name.is_empty() {
                names.known.insert(kind);
                self.touches.push(kind);
            }
        }
        if dice.one_in(4) {
            self.push(b'D', &[b"S", name.as_bytes(), b"\0"]);
        }
        let values = bound(&statement.values, dice);
        let formats = dice.pick(&RESULT_FORMATS);
        self.push(b'B', &[b"\0", name.as_bytes(), b"\0", &values, formats]);
        if dice.one_in(3) {
            self.push(b'D', &[b"P\0"]);
        }
        if statement.is_ordered && dice.one_in(4) {
            // In portions; the last takes the rest. Each is a result of its own, in order.
            let rows = 1 + dice.below(4) as i32;
            self.push(b'E', &[b"\0", &rows.to_be_bytes()]);
            self.is_ordered.push(true);
        }
        self.push(b'E', &[b"\0\0\0\0\0"]);
        let is_new = if is_new { "parse, " } else { "" };
        self.told += &format!("[{is_new}{name:?} {} {:?}] ", statement.sql, statement.values);
    }

    /// Closes a prepared statement, which need not be there.
    pub fn close(&mut self, kind: &'static str, names: &mut Names) {
        names.known.remove(kind);
        self.touches.push(kind);
        self.push(b'C', &[b"S", kind.as_bytes(), b"\0"]);
        self.told += &format!("[close {kind:?}] ");
    }

    pub fn push(&mut self, tag: u8, parts: &[&[u8]]) {
        self.bytes.extend(message(tag, parts));
    }

    /// With its Sync.
    pub fn synced(mut self) -> Self {
        self.bytes.extend(sync());
        self
    }

    fn note(&mut self, statement: &Statement) {
        self.kinds.push(statement.kind);
        self.is_ordered.push(statement.is_ordered);
        self.is_write |= statement.is_write;
        self.has_hospital = true;
        self.is_slow |= statement.is_slow;
        self.refused = self.refused.or(statement.refused);
    }
}

impl Value {
    fn oid(&self) -> u32 {
        match self {
            Self::Id(_) => 2950,
            Self::Long(_) => 20,
            Self::Int(_) => 23,
            Self::Text(_) | Self::Null => 25,
            Self::Date(_) => 1082,
        }
    }

    /// As text, a hospital's id in one of the ways in which Postgres reads it.
    fn text(&self, dice: &mut Dice) -> String {
        match self {
            Self::Id(id) => match dice.below(6) {
                0 => id.to_string().to_uppercase(),
                1 => format!("{{{id}}}"),
                2 => id.simple().to_string(),
                _ => id.to_string(),
            },
            Self::Long(number) => number.to_string(),
            Self::Int(number) => number.to_string(),
            Self::Text(text) => text.clone(),
            // Within one month after another: these days exist in each.
            Self::Date(days) => {
                let day = days - 8_000;
                format!("{}-{:02}-{:02}", 2021 + day / 336, 1 + day % 336 / 28, 1 + day % 28)
            }
            Self::Null => String::new(),
        }
    }

    fn binary(&self) -> Vec<u8> {
        match self {
            Self::Id(id) => id.as_bytes().to_vec(),
            Self::Long(number) => number.to_be_bytes().to_vec(),
            Self::Int(number) => number.to_be_bytes().to_vec(),
            Self::Text(text) => text.as_bytes().to_vec(),
            Self::Date(days) => days.to_be_bytes().to_vec(),
            Self::Null => Vec::new(),
        }
    }

    fn literal(&self, dice: &mut Dice) -> String {
        match self {
            Self::Long(_) | Self::Int(_) => self.text(dice),
            Self::Null => "NULL".to_owned(),
            Self::Id(_) if dice.one_in(3) => format!("'{}'::uuid", self.text(dice)),
            _ => format!("'{}'", self.text(dice).replace('\'', "''")),
        }
    }
}

/// Formats and values of a Bind, each as text or binary.
fn bound(values: &[Value], dice: &mut Dice) -> Vec<u8> {
    let count = (values.len() as u16).to_be_bytes();
    let is_binary: Vec<bool> = match dice.below(3) {
        0 => vec![false; values.len()],
        1 => vec![true; values.len()],
        _ => values.iter().map(|_| dice.one_in(2)).collect(),
    };
    let mut body = count.to_vec();
    body.extend(is_binary.iter().flat_map(|binary| u16::from(*binary).to_be_bytes()));
    body.extend(count);
    for (value, is_binary) in values.iter().zip(is_binary) {
        let bytes = match is_binary {
            true => value.binary(),
            false => value.text(dice).into_bytes(),
        };
        match value {
            Value::Null => body.extend((-1i32).to_be_bytes()),
            _ => {
                body.extend((bytes.len() as u32).to_be_bytes());
                body.extend(bytes);
            }
        }
    }
    body
}

/// Its text with literals in place of `$n`.
fn literal_text(statement: &Statement, dice: &mut Dice) -> String {
    let mut sql = statement.sql.clone();
    for (at, value) in statement.values.iter().enumerate().rev() {
        let name = format!("${}", at + 1);
        while let Some(found) = sql.find(&name) {
            sql.replace_range(found..found + name.len(), &value.literal(dice));
        }
    }
    sql
}
