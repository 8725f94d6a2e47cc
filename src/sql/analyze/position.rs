//! Where a syntax error is. The parser's binding keeps the position to itself, so it is found again.
//!
//! The grammar stops at the first token that can't go on, so a text cut before that token is either
//! right or "at end of input", and one cut behind it is wrong as the whole is: bisect. Costs a few
//! parses, on the way to an error only, and none for long texts.

use crate::sql::Error;

/// Texts over this get no position.
const TEXT_BYTES_MAX: usize = 16 * 1024;

/// The parser's error as Postgres would put it.
pub(super) fn syntax_error(text: &str, error: &pg_raw_parse::Error) -> Error {
    let message = message_of(error);
    // The grammar's own stack is bounded: deeper nesting than it takes.
    if message.starts_with("memory exhausted") {
        return Error::TooComplex;
    }
    let position = position(text, &message);
    Error::Syntax { message, position }
}

fn message_of(error: &pg_raw_parse::Error) -> String {
    match error {
        pg_raw_parse::Error::Parse(error) => error.to_string(),
        // Neither happens: the protocol has no NUL in a text, and parsing raises no other error.
        _ => "syntax error".into(),
    }
}

/// 1-based, in characters.
fn position(text: &str, message: &str) -> Option<u32> {
    let chars = |end: usize| text.get(..end).map(|head| head.chars().count() as u32 + 1);
    if message.ends_with("at end of input") {
        return chars(text.len());
    }
    let (_, near) = message.split_once(" at or near \"")?;
    let near = near.strip_suffix('"')?;
    if text.len() > TEXT_BYTES_MAX || near.is_empty() {
        return None;
    }
    // Places where the token may stand, and the last of them that the error is not behind.
    let places: Vec<usize> = text.match_indices(near).map(|(at, _)| at).collect();
    let is_wrong_with = |at: usize| {
        let cut = text.get(..at + near.len()).unwrap_or(text);
        pg_raw_parse::parse(cut).is_err_and(|error| message_of(&error) == message)
    };
    let index = places.partition_point(|at| !is_wrong_with(*at));
    chars(*places.get(index).or(places.last())?)
}
