//! PREPARE and EXECUTE as SQL statements: where the name stands in their text, and what an EXECUTE is
//! once its statement is known.
//!
//! pgward keeps prepared statements under names of its own, so a client's name is replaced in the
//! text. The body of a PREPARE is analysed as any text; [`Statement::executing`] puts the arguments
//! of an EXECUTE in the place of its parameters. An argument that is no plain literal can't be
//! followed, and where a hospital is meant that is a [`Problem`]. Used by `session::statements`.

use std::ops::Range;

use super::{Access, Effect, KeySource, Problem, ProblemKind, SettingValue, ShardedUse, Statement};

/// Stands for a declared type that pgward does not know; no type of Postgres has this OID.
pub const OTHER_TYPE: u32 = u32::MAX;

/// Slots from here on are those of the executed statement's own text.
const BODY_SLOTS: u16 = 0x8000;

/// `PREPARE name (types) AS ...`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepare {
    /// The name that the client gave.
    pub name: String,
    /// OIDs of the declared types that a hospital key may have, [`OTHER_TYPE`] for all others.
    pub types: Vec<u32>,
}

/// `EXECUTE name (...)`, also within EXPLAIN and CREATE TABLE AS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Execute {
    /// The name that the client gave.
    pub name: String,
    /// Its arguments.
    pub args: Vec<Arg>,
}

/// One argument of an EXECUTE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arg {
    /// String literal number `n` of the text.
    Slot(u16),
    /// Any other expression.
    Other,
}

/// The parts of a PREPARE's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrepareParts<'a> {
    /// `(int, text)` as written, or nothing.
    pub types: &'a str,
    /// The statement that is prepared.
    pub body: &'a str,
}

/// The subject by which a statement is refused while what it executes is not known.
pub(super) const EXECUTE: &str = "EXECUTE";
/// As [`EXECUTE`], for PREPARE.
pub(super) const PREPARE: &str = "PREPARE";

/// Where the name stands in the text of an EXECUTE, EXPLAIN EXECUTE or CREATE TABLE AS EXECUTE.
/// `None`: not found. What is made of it must be analysed again.
pub fn execute_name(text: &str) -> Option<Range<usize>> {
    let mut tokens = Tokens { text, at: 0 };
    let first = tokens.next()?;
    let is_create = is_word(text, &first, "create");
    let mut before = first.clone();
    if is_word(text, &first, "execute") {
        return tokens.name();
    }
    while let Some(token) = tokens.next() {
        // A table may be called so; behind AS it can't be one.
        if is_word(text, &token, "execute") && (!is_create || is_word(text, &before, "as")) {
            return tokens.name();
        }
        if &text[token.clone()] == "(" {
            tokens.skip_parens()?;
        }
        before = token;
    }
    None
}

/// The parts of `text`, which is one PREPARE statement. `None`: not found.
pub fn prepare_parts(text: &str) -> Option<PrepareParts<'_>> {
    let mut tokens = Tokens { text, at: 0 };
    let first = tokens.next()?;
    if !is_word(text, &first, "prepare") {
        return None;
    }
    let name = tokens.name()?;
    let mut token = tokens.next()?;
    let mut types = "";
    if &text[token.clone()] == "(" {
        tokens.skip_parens()?;
        types = text[name.end..tokens.at].trim();
        // Types need none of these, and strings are read here less well than by the grammar.
        if types.contains(['\'', '$']) {
            return None;
        }
        token = tokens.next()?;
    }
    is_word(text, &token, "as").then(|| PrepareParts { types, body: text[token.end..].trim() })
}

fn is_word(text: &str, token: &Range<usize>, word: &str) -> bool {
    text[token.clone()].eq_ignore_ascii_case(word)
}

/// A text's tokens, as far as a name has to be found: comments are passed over.
struct Tokens<'a> {
    text: &'a str,
    at: usize,
}

impl Tokens<'_> {
    /// A name: a word or `"..."`. `U&".."` is not read.
    fn name(&mut self) -> Option<Range<usize>> {
        let token = self.next()?;
        let first = self.text.as_bytes()[token.start];
        let is_escape = self.text.as_bytes().get(token.end) == Some(&b'&');
        let is_name = first == b'"' || is_ident(first);
        (is_name && !is_escape).then_some(token)
    }

    /// Behind an opening parenthesis: to its closing one.
    fn skip_parens(&mut self) -> Option<()> {
        let mut depth = 1;
        while depth > 0 {
            let token = self.next()?;
            match &self.text[token] {
                "(" => depth += 1,
                ")" => depth -= 1,
                _ => {}
            }
        }
        Some(())
    }

    fn next(&mut self) -> Option<Range<usize>> {
        self.skip_space()?;
        let bytes = self.text.as_bytes();
        let start = self.at;
        let first = *bytes.get(start)?;
        let rest = &self.text[start..];
        let length = match first {
            b'"' | b'\'' => quoted(rest.as_bytes(), first, false)?,
            b'e' | b'E' if bytes.get(start + 1) == Some(&b'\'') => {
                1 + quoted(&rest.as_bytes()[1..], b'\'', true)?
            }
            b'$' if !bytes.get(start + 1).is_some_and(u8::is_ascii_digit) => {
                let tag = rest.get(..rest.get(1..)?.find('$')? + 2)?;
                tag.len() * 2 + rest.get(tag.len()..)?.find(tag)?
            }
            _ if is_ident(first) => rest
                .bytes()
                .take_while(|b| is_ident(*b) || b.is_ascii_digit() || *b == b'$')
                .count(),
            _ => 1,
        };
        self.at = start + length;
        Some(start..self.at)
    }

    fn skip_space(&mut self) -> Option<()> {
        loop {
            let rest = &self.text[self.at..];
            let trimmed = rest.trim_start_matches([' ', '\t', '\n', '\r', '\x0b', '\x0c']);
            self.at += rest.len() - trimmed.len();
            if trimmed.starts_with("--") {
                self.at += trimmed.find(['\n', '\r']).unwrap_or(trimmed.len());
            } else if trimmed.starts_with("/*") {
                self.at += comment(trimmed)?;
            } else {
                return Some(());
            }
        }
    }
}

fn is_ident(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80
}

/// Length of `'...'` or `"..."`, in which the quote is doubled.
fn quoted(rest: &[u8], quote: u8, has_escapes: bool) -> Option<usize> {
    let mut at = 1;
    loop {
        match *rest.get(at)? {
            b'\\' if has_escapes => at += 2,
            byte if byte == quote && rest.get(at + 1) == Some(&quote) => at += 2,
            byte if byte == quote => return Some(at + 1),
            _ => at += 1,
        }
    }
}

/// Length of `/* ... */`, nested.
fn comment(rest: &str) -> Option<usize> {
    let bytes = rest.as_bytes();
    let (mut at, mut depth) = (2, 1);
    while depth > 0 {
        match bytes.get(at..at + 2)? {
            b"*/" => {
                depth -= 1;
                at += 2;
            }
            b"/*" => {
                depth += 1;
                at += 2;
            }
            _ => at += 1,
        }
    }
    Some(at)
}

/// The number by which [`Statement::executing`] names literal `slot` of the executed statement's text.
pub fn body_slot(slot: u16) -> Option<u16> {
    slot.checked_add(BODY_SLOTS)
}

impl Statement {
    /// What this EXECUTE does, `body` being the statement that its name stands for. Keys and
    /// settings name literals of this text, and those of the body by [`body_slot`].
    pub fn executing(&self, body: &Self) -> Self {
        let args = self.executes.as_ref().map_or(&[][..], |execute| &execute.args);
        let mut problems = self.problems.clone();
        problems.retain(|problem| problem.subject != EXECUTE);
        problems.extend(body.problems.iter().cloned());
        let mut is_followed = true;
        let mut sharded = Vec::new();
        for used in &body.sharded {
            let keys = used.keys.iter().filter_map(|key| {
                let key = substitute(*key, args);
                is_followed &= key.is_some();
                key
            });
            let keys = keys.collect();
            let (relation, column) = (used.relation.clone(), used.column.clone());
            sharded.push(ShardedUse { relation, column, keys });
        }
        if !is_followed {
            problems.push(Problem {
                kind: ProblemKind::Unsupported,
                subject: "EXECUTE whose hospital is no plain literal".into(),
                hint: "Write the hospital as a string, or use the extended protocol.",
            });
        }
        let effect = self.effect_with(body, args, &mut problems);
        let is_plain = self.command == EXECUTE;
        Self {
            command: if is_plain { body.command } else { self.command },
            access: match &self.access {
                // What it was taken for while nobody knew.
                Access::Write(why) if why == EXECUTE => body.access.clone(),
                Access::Read => body.access.clone(),
                write => write.clone(),
            },
            sharded,
            per_shard: self.per_shard.clone().or_else(|| body.per_shard.clone()),
            problems,
            effect,
            unknown_names: self.unknown_names || body.unknown_names,
            executes: None,
            copy_in: None,
            temporary: None,
        }
    }

    fn effect_with(&self, body: &Self, args: &[Arg], problems: &mut Vec<Problem>) -> Effect {
        let is_plain = self.command == EXECUTE;
        match (&self.effect, &body.effect) {
            (effect, Effect::None) => effect.clone(),
            (Effect::None, Effect::Set(settings)) if is_plain => {
                let mut settings = settings.clone();
                for setting in &mut settings {
                    setting.value = match &setting.value {
                        SettingValue::Slot(slot) => {
                            body_slot(*slot).map_or(SettingValue::Computed, SettingValue::Slot)
                        }
                        SettingValue::Param(n) => match argument(args, *n) {
                            Some(slot) => SettingValue::Slot(slot),
                            None => SettingValue::Computed,
                        },
                        other => other.clone(),
                    };
                }
                Effect::Set(settings)
            }
            (Effect::None, effect) if is_plain => effect.clone(),
            (effect, _) => {
                problems.push(Problem {
                    kind: ProblemKind::Unsupported,
                    subject: "EXECUTE of what has effects beside other effects".into(),
                    hint: "Execute it alone, with plain arguments.",
                });
                match effect {
                    Effect::Ddl | Effect::Pin(_) => effect.clone(),
                    _ => Effect::Opaque,
                }
            }
        }
    }
}

/// The literal that is argument `n`, counted from 1.
fn argument(args: &[Arg], n: u16) -> Option<u16> {
    match args.get(usize::from(n).checked_sub(1)?)? {
        Arg::Slot(slot) if *slot < BODY_SLOTS => Some(*slot),
        _ => None,
    }
}

fn substitute(key: KeySource, args: &[Arg]) -> Option<KeySource> {
    Some(match key {
        KeySource::Slot(slot) => KeySource::Slot(body_slot(slot)?),
        KeySource::SlotArray(slot) => KeySource::SlotArray(body_slot(slot)?),
        KeySource::Param(n, _) => KeySource::Slot(argument(args, n)?),
        KeySource::ParamArray(n, _) => KeySource::SlotArray(argument(args, n)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_an_execute_is_found() {
        for (text, name) in [
            ("EXECUTE q", "q"),
            ("/* x */ execute q(1, 'a')", "q"),
            ("execute \"Q \"\"x\"(1)", "\"Q \"\"x\""),
            ("EXECUTE -- q\n  p", "p"),
            ("EXPLAIN EXECUTE q", "q"),
            ("EXPLAIN (FORMAT 'execute x', COSTS off) EXECUTE q(2)", "q"),
            ("EXPLAIN ANALYZE VERBOSE EXECUTE é$1", "é$1"),
            ("CREATE TABLE execute (a, b) AS EXECUTE q", "q"),
            ("CREATE TEMP TABLE t WITH (fillfactor=70) AS EXECUTE q(E'\\'')", "q"),
        ] {
            assert_eq!(execute_name(text).map(|range| &text[range]), Some(name), "{text}");
        }
        for text in ["EXECUTE", "EXECUTE U&\"q\"", "EXPLAIN SELECT 1", "", "EXPLAIN (a"] {
            assert_eq!(execute_name(text), None, "{text}");
        }
    }

    #[test]
    fn the_parts_of_a_prepare_are_found() {
        for (text, types, body) in [
            ("PREPARE q AS SELECT 1", "", "SELECT 1"),
            ("prepare q(int, numeric(10,2)) as SELECT $1;", "(int, numeric(10,2))", "SELECT $1;"),
            ("PREPARE \"as\" (text)/**/AS(SELECT 1)", "(text)", "(SELECT 1)"),
            ("/* a */ PREPARE q -- AS\n AS VALUES (1)", "", "VALUES (1)"),
            ("PREPARE q(\"a) as\", \"b\"\"(\") AS TABLE t", "(\"a) as\", \"b\"\"(\")", "TABLE t"),
        ] {
            assert_eq!(prepare_parts(text), Some(PrepareParts { types, body }), "{text}");
        }
        for text in [
            "PREPARE TRANSACTION 'x'",
            "PREPARE U&\"q\" AS SELECT 1",
            "PREPARE q",
            "x",
            "PREPARE q(\"a'b\") AS SELECT 1",
            "PREPARE q(\"a$b\") AS SELECT 1",
            "PREPARE q(U&\"a\" UESCAPE '!') AS SELECT 1",
        ] {
            assert_eq!(prepare_parts(text), None, "{text}");
        }
    }

    #[test]
    fn no_text_breaks_the_scan() {
        let pieces =
            ["EXECUTE ", "PREPARE ", "q", "(", ")", "'", "\"", "$", "$a$", "/*", "*/", "é"];
        for n in 0..pieces.len().pow(4) {
            let text: String =
                (0..4).map(|i| pieces[n / pieces.len().pow(i) % pieces.len()]).collect();
            execute_name(&text);
            prepare_parts(&text);
            let framed = format!("EXPLAIN {text}");
            execute_name(&framed);
        }
    }
}
