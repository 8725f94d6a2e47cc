//! COPY: which rows it reads, and how those that it writes show their hospital.

use pg_raw_parse::Node;
use pg_raw_parse::nodes;

use super::expr::At;
use super::from::display_name;
use super::{Use, UseKeys, Walk};
use crate::sql::{CopyCheck, CopyIn, Error, Relation, RelationKind, Temporary};
use crate::wire::copy::Format;

/// Longest NULL or DEFAULT marker: no uuid is as short, however it is escaped.
const MARKER_BYTES_MAX: usize = 30;

impl<'a> Walk<'a> {
    /// COPY in either direction.
    pub(super) fn copy(
        &mut self,
        copy: &'a nodes::CopyStmt,
        at: At<'_, 'a>,
    ) -> Result<&'static str, Error> {
        if copy.is_program || copy.filename().is_some() {
            self.writes("COPY with a file");
            self.unsupported("COPY with a file or program", "Use STDIN or STDOUT.");
        }
        if copy.is_from {
            self.writes("COPY FROM");
            self.expr(copy.where_clause(), at)?;
            self.copy_from(copy);
            return Ok("COPY");
        }
        // What it calls is called once for each row, if at all.
        self.found.is_deferred = true;
        match (copy.relation(), copy.query()) {
            (Some(relation), _) => {
                let level = self.facts.place(None);
                self.table(relation, level)?;
            }
            (None, query) => {
                self.query(query, at)?;
            }
        }
        Ok("COPY")
    }

    fn copy_from(&mut self, copy: &'a nodes::CopyStmt) {
        let Some(into) = copy.relation() else { return };
        let Some(relation) = self.written(into) else {
            self.found.temporary = Some(Box::new(Temporary::Fills));
            return;
        };
        let RelationKind::Sharded { key } = &relation.kind else { return };
        let columns: Vec<Option<&str>> = copy.attlist().iter().map(Node::as_str).collect();
        let check = copy_check(copy, relation, key, &columns);
        if check.is_none() {
            self.unsupported(
                "COPY FROM whose rows do not show their hospital",
                "Name the columns, the hospital's among them, and use common options.",
            );
        }
        let relation = display_name(relation);
        self.uses.push(Use {
            relation: relation.clone(),
            column: key.clone(),
            keys: UseKeys::Known(Vec::new()),
        });
        self.found.copy_in = Some(Box::new(CopyIn { relation, check }));
    }
}

fn copy_check(
    copy: &nodes::CopyStmt,
    relation: &Relation,
    key: &str,
    columns: &[Option<&str>],
) -> Option<CopyCheck> {
    let (column, count) = match columns {
        [] => (relation.columns.iter().position(|column| column == key)?, relation.columns.len()),
        _ => (columns.iter().position(|column| *column == Some(key))?, columns.len()),
    };
    let (format, is_header) = options(copy)?;
    Some(CopyCheck { format, is_header, column, count })
}

/// Format and header; `None` for what could make rows look other than they are.
fn options(copy: &nodes::CopyStmt) -> Option<(Format, bool)> {
    let (mut format, mut is_header) = ("text", false);
    let (mut delimiter, mut quote, mut escape) = (None, None, None);
    for option in copy.options() {
        let value = option.arg().as_str();
        match option.defname()?.to_ascii_lowercase().as_str() {
            "format" => format = value?,
            "header" => is_header = is_on(option.arg())?,
            "delimiter" => delimiter = Some(byte(value?, is_delimiter)?),
            "quote" => quote = Some(byte(value?, |b| matches!(b, b'"' | b'\''))?),
            "escape" => escape = Some(byte(value?, |b| matches!(b, b'"' | b'\'' | b'\\'))?),
            "null" | "default" if value?.len() <= MARKER_BYTES_MAX => {}
            "encoding" if is_plain_encoding(value?) => {}
            "freeze" | "force_quote" | "force_null" | "force_not_null" | "on_error"
            | "log_verbosity" | "reject_limit" => {}
            _ => return None,
        }
    }
    let quote = quote.unwrap_or(b'"');
    let escape = escape.unwrap_or(quote);
    let format = match format {
        "text" => Format::Text { delimiter: delimiter.unwrap_or(b'\t') },
        // A quote that is the other's escape is nobody's need.
        "csv" if escape == quote || escape == b'\\' => {
            Format::Csv { delimiter: delimiter.unwrap_or(b','), quote, escape }
        }
        "binary" => Format::Binary,
        _ => return None,
    };
    Some((format, is_header))
}

fn byte(value: &str, is_good: fn(u8) -> bool) -> Option<u8> {
    match value.as_bytes() {
        [byte] if is_good(*byte) => Some(*byte),
        _ => None,
    }
}

/// No byte that a uuid, a quote or an escape may have.
fn is_delimiter(byte: u8) -> bool {
    matches!(byte, b'\t' | b' ' | b',' | b';' | b'|' | b':' | b'^' | b'~' | b'#' | b'&' | b'!')
}

/// Encodings in which a byte below 128 is always the ASCII character.
fn is_plain_encoding(name: &str) -> bool {
    let plain: String = name.chars().filter(char::is_ascii_alphanumeric).collect();
    let plain = plain.to_ascii_lowercase();
    matches!(plain.as_str(), "utf8" | "unicode" | "sqlascii" | "latin1" | "win1252")
}

/// A boolean option's value; `None` for what is none (`match` reads the header, too).
fn is_on(value: Node<'_>) -> Option<bool> {
    match value {
        Node::None => Some(true),
        Node::Boolean(value) => Some(value.boolval),
        Node::Integer(value) if value.ival == 0 || value.ival == 1 => Some(value.ival == 1),
        _ => match value.as_str()?.to_ascii_lowercase().as_str() {
            "true" | "on" | "match" => Some(true),
            "false" | "off" => Some(false),
            _ => None,
        },
    }
}
