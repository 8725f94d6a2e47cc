//! Lines, fields and tokens of `pg_hba.conf`, `pg_ident.conf` and what is written like them.
//!
//! As Postgres splits them (`hba.c`): white space between fields, commas between the tokens of a
//! field, `#` to the end of the line, double quotes around what is to be taken as it is, a
//! backslash at the end of a line to go on in the next. Unlike there, a quote that nobody closes is a
//! problem. Pure, and iterative: any text is split or has problems.

use crate::document::Report;

/// Longest token, in bytes.
const TOKEN_BYTES_MAX: usize = 10_240;

/// A piece of a field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Token {
    /// Without its quotes.
    pub text: String,
    /// It began with a quote: keywords in it are names.
    pub is_quoted: bool,
    /// Byte offset in the text.
    pub at: usize,
}

impl Token {
    /// It is `word`, and means it.
    pub fn is(&self, word: &str) -> bool {
        !self.is_quoted && self.text == word
    }
}

/// The fields of a line, each with one token or more.
pub(super) type Line = Vec<Vec<Token>>;

/// All lines of `text` that say something.
pub(super) fn lines(report: &Report<'_>, text: &str) -> Vec<Line> {
    let mut splitter = Splitter { report, lines: Vec::new(), line: Line::new(), state: Between };
    let mut chars = text.char_indices().peekable();
    let mut is_comment = false;
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' if text[at + 1..].starts_with('\n') => drop(chars.next()),
            '\\' if text[at + 1..].starts_with("\r\n") => drop((chars.next(), chars.next())),
            '\n' => {
                splitter.end_line();
                is_comment = false;
            }
            _ if is_comment => {}
            '#' if !splitter.is_in_quotes() => {
                splitter.end_token();
                is_comment = true;
            }
            _ => splitter.take(at, c),
        }
    }
    splitter.end_line();
    splitter.lines
}

struct Splitter<'r, 't> {
    report: &'r Report<'t>,
    lines: Vec<Line>,
    line: Line,
    state: State,
}

/// Where in a line.
enum State {
    /// Between fields.
    Between,
    /// Behind a comma: the field goes on.
    Comma,
    /// In a token; the second is the place of the quote that is open.
    Token(Token, Option<usize>),
    /// Behind a quote that may be the end, or the first of two which are one.
    Closing(Token, usize),
}
use State::{Between, Closing, Comma};

impl Splitter<'_, '_> {
    fn is_in_quotes(&self) -> bool {
        matches!(self.state, State::Token(_, Some(_)))
    }

    fn take(&mut self, at: usize, c: char) {
        self.state = match std::mem::replace(&mut self.state, Between) {
            State::Token(token, Some(open)) if c == '"' => Closing(token, open),
            State::Token(mut token, Some(open)) => {
                token.text.push(c);
                State::Token(token, Some(open))
            }
            Closing(mut token, open) if c == '"' => {
                token.text.push('"');
                State::Token(token, Some(open))
            }
            Closing(token, _) => {
                self.state = State::Token(token, None);
                return self.take(at, c);
            }
            State::Token(token, None) => match c {
                '"' => State::Token(token, Some(at)),
                ',' => {
                    self.push(token);
                    Comma
                }
                _ if is_space(c) => {
                    self.push(token);
                    self.line.push(Vec::new());
                    Between
                }
                _ => {
                    let mut token = token;
                    token.text.push(c);
                    State::Token(token, None)
                }
            },
            state @ (Between | Comma) => match c {
                _ if is_space(c) => state,
                ',' => Comma,
                _ => {
                    let is_quoted = c == '"';
                    let text = if is_quoted { String::new() } else { c.to_string() };
                    State::Token(Token { text, is_quoted, at }, is_quoted.then_some(at))
                }
            },
        };
    }

    fn push(&mut self, token: Token) {
        if token.text.len() > TOKEN_BYTES_MAX {
            let what = format!("a word of more than {TOKEN_BYTES_MAX} bytes");
            self.report.at(&(token.at..token.at), what);
            return;
        }
        match self.line.last_mut() {
            Some(field) => field.push(token),
            None => self.line.push(vec![token]),
        }
    }

    fn end_token(&mut self) {
        match std::mem::replace(&mut self.state, Between) {
            State::Token(token, open) => {
                if let Some(open) = open {
                    self.report.at(&(open..open), "this quote is not closed");
                }
                self.push(token);
            }
            Closing(token, _) => self.push(token),
            Between | Comma => {}
        }
    }

    fn end_line(&mut self) {
        self.end_token();
        let mut line = std::mem::take(&mut self.line);
        line.retain(|field| !field.is_empty());
        if !line.is_empty() {
            self.lines.push(line);
        }
    }
}

/// White space within a line.
fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\r' | '\x0b' | '\x0c')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn split(text: &str) -> String {
        let report = Report::new("f", text);
        let lines = lines(&report, text);
        let token = |token: &Token| match token.is_quoted {
            true => format!("<{}>", token.text),
            false => token.text.clone(),
        };
        let field = |field: &Vec<Token>| field.iter().map(token).collect::<Vec<_>>().join("+");
        let line = |line: &Line| line.iter().map(field).collect::<Vec<_>>().join(" ");
        let out = lines.iter().map(line).collect::<Vec<_>>().join(" | ");
        match report.finish(()) {
            Ok(()) => out,
            Err(problems) => format!("{out} ! {problems}"),
        }
    }

    #[test]
    fn lines_split_as_in_postgres() {
        for (text, want) in [
            ("", ""),
            (" \t\r\n# all\n", ""),
            ("host all all", "host all all"),
            ("a b#c\nd", "a b | d"),
            ("a,b, c d", "a+b+c d"),
            ("a ,b c", "a b c"),
            ("a,,b,", "a+b"),
            ("\"all\" x\"y z\"w", "<all> xy zw"),
            ("\"a\"\"b\" \"\" \"a,b #c\"", "<a\"b> <> <a,b #c>"),
            ("a \\\nb\\\r\nc", "a bc"),
            ("# a \\\n b\nc", "c"),
            ("a\\ b\\", "a\\ b\\"),
            ("\"a\nb", "<a> | b ! f:1:1: this quote is not closed"),
        ] {
            assert_eq!(split(text), want, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_splits(text in "[a-z\"#,\\\\ \n\r\\PC]{0,60}") {
            split(&text);
        }
    }
}
