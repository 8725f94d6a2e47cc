//! The hint: `hospital_id='...'` in a leading or trailing comment, sqlcommenter form.
//!
//! A comment counts only if all of it is `key='value'` pairs, so prose that mentions a hospital is
//! no hint. Values are taken as they stand: a UUID has nothing that would be URL-encoded.

/// The hints of one text.
#[derive(Debug, Clone, Default)]
pub(super) enum Hint {
    /// None that counts.
    #[default]
    None,
    /// Where the value stands; all that count are equal.
    One {
        /// Its first byte.
        start: usize,
        /// The byte after it.
        end: usize,
        /// How many comments named it so far.
        seen: u8,
    },
    /// Two that differ, or more than anybody would write.
    Conflict,
}

const NAME: &str = "hospital_id";
/// Comments with a hint, past which a text is refused.
const SEEN_MAX: u8 = 8;

impl Hint {
    /// Notes the hint in the comment whose `inner` text starts at `offset`. It counts before the
    /// first token, and where no token follows. `token_at` is where the last look found a token: what
    /// stands before it need not be looked at again, however many comments there are.
    pub(super) fn on_comment(
        &mut self,
        text: &str,
        inner: &str,
        offset: usize,
        is_inside: bool,
        token_at: &mut usize,
    ) {
        let is_settled = matches!(self, Self::Conflict) || is_inside && offset < *token_at;
        if is_settled || !inner.contains(NAME) {
            return;
        }
        let Some(values) = pairs(inner) else { return };
        if is_inside {
            let tail = text.as_bytes().get(offset + inner.len() + 2..).unwrap_or_default();
            if let Some(left) = left_from_token(tail) {
                *token_at = text.len() - left;
                return;
            }
        }
        for (from, to) in values {
            let (start, end) = (offset + from, offset + to);
            *self = match *self {
                Self::None => Self::One { start, end, seen: 1 },
                Self::One { start: s, end: e, seen }
                    if text.get(s..e) == text.get(start..end) && seen < SEEN_MAX =>
                {
                    Self::One { start: s, end: e, seen: seen + 1 }
                }
                _ => Self::Conflict,
            };
        }
    }

    /// The value, or `Err` where two differ.
    pub(super) fn value<'a>(&self, text: &'a str) -> Result<Option<&'a str>, ()> {
        match *self {
            Self::None => Ok(None),
            Self::One { start, end, .. } => Ok(text.get(start..end)),
            Self::Conflict => Err(()),
        }
    }
}

/// Bytes from the first token of `rest` on; `None`: it has none.
fn left_from_token(mut rest: &[u8]) -> Option<usize> {
    loop {
        rest = match rest {
            [] => return None,
            [b' ' | b'\t' | b'\n' | b'\r' | 0x0c | b';', tail @ ..] => tail,
            [b'-', b'-', tail @ ..] => {
                let line = tail.iter().position(|b| matches!(b, b'\n' | b'\r'));
                &tail[line.unwrap_or(tail.len())..]
            }
            [b'/', b'*', tail @ ..] => {
                let (mut depth, left) = (1, rest.len());
                let mut tail = tail;
                while depth > 0 {
                    tail = match tail {
                        [] => return Some(left),
                        [b'*', b'/', after @ ..] => {
                            depth -= 1;
                            after
                        }
                        [b'/', b'*', after @ ..] => {
                            depth += 1;
                            after
                        }
                        [_, after @ ..] => after,
                    };
                }
                tail
            }
            token => return Some(token.len()),
        };
    }
}

/// The spans of the values of `hospital_id` in `key='value',key='value'`; `None`: not of that form.
fn pairs(inner: &str) -> Option<Vec<(usize, usize)>> {
    let mut values = Vec::new();
    let mut at = 0;
    let skip_space = |at: usize| {
        at + inner[at..].bytes().take_while(|b| matches!(b, b' ' | b'\t' | b'\n' | b'\r')).count()
    };
    loop {
        at = skip_space(at);
        let key_end = at + inner[at..].find(['=', ' ', ',', '\''])?;
        let key = &inner[at..key_end];
        let value = inner[key_end..].strip_prefix("='").map(|_| key_end + 2)?;
        let value_end = value + closing_quote(&inner.as_bytes()[value..])?;
        if key == NAME {
            values.push((value, value_end));
        }
        at = skip_space(value_end + 1);
        match inner.as_bytes().get(at) {
            None => return Some(values),
            Some(b',') => at += 1,
            Some(_) => return None,
        }
    }
}

/// Where the quote is that ends a value; a backslash escapes one.
fn closing_quote(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        match bytes.get(at)? {
            b'\\' => at += 2,
            b'\'' => return Some(at),
            _ => at += 1,
        }
    }
}
