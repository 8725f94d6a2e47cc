//! One pass over a text: its literals become slots, its comments go, its hint is read.
//!
//! The result ([`Lexed`]) serves three readers: the cache hashes and compares the normalized text
//! piece by piece, the analyzer maps places in the parse tree to slots, and `route` reads the value
//! of a slot or the hint. Tokens are cut as Postgres's own scanner does (`scan.l`, with
//! standard_conforming_strings on); where a text leaves the plain path (`U&'..'`, an unterminated
//! quote, `1x`), nothing is normalized and the text is its own key. Allocates nothing for texts of
//! up to [`INLINE`] literals. Called by `Analyzer::analyze`; `spans` holds the storage.

use std::borrow::Cow;

mod hint;
mod runs;
mod spans;

use hint::Hint;
use runs::{Class, class, find_byte, is_ident, run_end};
use spans::Spans;

/// Spans kept without allocating.
const INLINE: usize = 8;
/// Slots are numbered by u16.
const SLOTS_MAX: usize = u16::MAX as usize;

/// What a literal looks like; decides what stands for it in the cache key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum SlotKind {
    /// `'...'` with nothing to undo.
    #[default]
    Plain,
    /// `'...'` with doubled quotes, or in several parts on several lines.
    Pieced,
    /// Digits only.
    Integer,
    /// With a point or an exponent.
    Decimal,
    /// `E'...'` without a backslash; stays in the key as it is.
    Escape,
    /// `$tag$...$tag$`; stays in the key as it is.
    Dollar,
    /// Any other: `E'..\..'`, `B''`, `X''`, `N''`, `U&''`: has no readable value.
    Opaque,
}

impl SlotKind {
    /// What stands in the key for a literal whose value does not matter. No text has such bytes.
    fn mark(self) -> Option<&'static [u8]> {
        match self {
            Self::Plain | Self::Pieced => Some(&[0xFF]),
            Self::Integer => Some(&[0xFE]),
            Self::Decimal => Some(&[0xFD]),
            Self::Escape | Self::Dollar | Self::Opaque => None,
        }
    }
}

/// Bytes `start..end` of the text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Span {
    start: u32,
    end: u32,
    kind: SlotKind,
}

/// How much of the text the key leaves out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum KeyMode {
    /// Literals and surplus space.
    Slots,
    /// Surplus space only: not a statement whose literals are values.
    Space,
    /// Nothing.
    #[default]
    Verbatim,
}

/// A text after one pass.
#[derive(Debug, Clone, Default)]
pub struct Lexed<'a> {
    /// The text as sent.
    pub text: &'a str,
    slots: Spans,
    spaces: Spans,
    hint: Hint,
    mode: KeyMode,
    /// Comments in the longest run without a token between them.
    comments: usize,
    /// First byte of the first token, and the end of the last one.
    body: (u32, u32),
}

impl<'a> Lexed<'a> {
    /// Lexes `text`, which is shorter than 4 GiB (a message is at most 1 GiB).
    pub fn new(text: &'a str) -> Self {
        let mut lexed = Self { text, ..Self::default() };
        if u32::try_from(text.len()).is_ok() {
            Lexer { bytes: text.as_bytes(), at: 0, token_at: 0, lexed: &mut lexed }.run();
        }
        lexed
    }

    /// The value of string literal `slot` (quotes off, doubled quotes undone), borrowed where
    /// possible. For a number its digits; `None` for what has no readable value.
    pub fn literal(&self, slot: u16) -> Option<Cow<'a, str>> {
        let span = self.slots.get(slot.into())?;
        let raw = self.text.get(span.start as usize..span.end as usize)?;
        match span.kind {
            SlotKind::Plain => raw.get(1..raw.len() - 1).map(Cow::Borrowed),
            SlotKind::Pieced => Some(Cow::Owned(join_pieces(raw))),
            SlotKind::Integer | SlotKind::Decimal => Some(Cow::Borrowed(raw)),
            SlotKind::Escape => raw.get(2..raw.len() - 1).map(Cow::Borrowed),
            SlotKind::Dollar => {
                let tag = raw.get(1..)?.find('$')? + 2;
                raw.get(tag..raw.len() - tag).map(Cow::Borrowed)
            }
            SlotKind::Opaque => None,
        }
    }

    /// The hint `/* hospital_id='...' */`, leading or trailing; several that differ are an error.
    #[allow(clippy::result_unit_err)]
    pub fn hint(&self) -> Result<Option<&'a str>, ()> {
        self.hint.value(self.text)
    }

    /// Comments in the longest run of them; `None` where the text may be read otherwise.
    pub(super) fn comments_in_a_row(&self) -> Option<usize> {
        (self.mode != KeyMode::Verbatim).then_some(self.comments)
    }

    /// The slot of the literal that starts at byte `offset`.
    pub(super) fn slot_at(&self, offset: usize) -> Option<(u16, SlotKind)> {
        let index = self.slots.find(u32::try_from(offset).ok()?)?;
        Some((u16::try_from(index).ok()?, self.slots.get(index)?.kind))
    }

    /// What the literal of `slot` looks like.
    pub(super) fn kind(&self, slot: u16) -> Option<SlotKind> {
        Some(self.slots.get(slot.into())?.kind)
    }

    /// The slot of the number whose sign stands at byte `offset`: `- 5` is one constant to the grammar.
    pub(super) fn slot_after_sign(&self, offset: usize) -> Option<u16> {
        let index = self.slots.after(u32::try_from(offset).ok()?);
        let span = self.slots.get(index)?;
        let between = self.text.as_bytes().get(offset..span.start as usize)?;
        let is_number = matches!(span.kind, SlotKind::Integer | SlotKind::Decimal);
        (is_number && between.iter().all(|b| matches!(b, b'-' | b' ')))
            .then_some(u16::try_from(index).ok()?)
    }

    /// How many slots there are.
    pub(super) fn slot_count(&self) -> usize {
        self.slots.len()
    }

    /// Whether the cache key leaves the value of `slot` out.
    pub(super) fn is_left_out(&self, slot: u16) -> bool {
        self.mode == KeyMode::Slots
            && self.slots.get(slot.into()).is_some_and(|span| span.kind.mark().is_some())
    }

    /// The bytes of `slot` as written.
    pub(super) fn raw(&self, slot: u16) -> &'a [u8] {
        self.slots.get(slot.into()).map_or(&[], |span| {
            self.text.as_bytes().get(span.start as usize..span.end as usize).unwrap_or_default()
        })
    }

    /// The normalized text in pieces: two texts of the same pieces mean the same but for the
    /// values of their slots.
    #[inline]
    pub(super) fn each_piece(&self, mut each: impl FnMut(&[u8])) {
        let bytes = self.text.as_bytes();
        let piece = |from: u32, to: u32| bytes.get(from as usize..to as usize).unwrap_or_default();
        let (mut at, end) = self.body;
        let (mut slot, mut space) = (0, 0);
        let slot_count = if self.mode == KeyMode::Slots { self.slots.len() } else { 0 };
        let space_count = if self.mode == KeyMode::Verbatim { 0 } else { self.spaces.len() };
        loop {
            let next_slot = (slot < slot_count).then(|| self.slots.get(slot)).flatten();
            let next_space = (space < space_count).then(|| self.spaces.get(space)).flatten();
            let (span, mark) = match (next_slot, next_space) {
                (None, None) => break,
                (Some(a), Some(b)) if b.start < a.start => (b, Some(&b" "[..])),
                (None, Some(b)) => (b, Some(&b" "[..])),
                (Some(a), _) => (a, a.kind.mark()),
            };
            match mark {
                Some(b" ") => space += 1,
                _ => slot += 1,
            }
            let Some(mark) = mark else { continue };
            each(piece(at, span.start));
            each(mark);
            at = span.end;
        }
        each(piece(at, end));
    }
}

/// The value of `'it''s' <newline> 'more'`.
fn join_pieces(raw: &str) -> String {
    let mut value = String::with_capacity(raw.len());
    let mut rest = raw;
    while let Some((_, tail)) = rest.split_once('\'') {
        rest = tail;
        while let Some((part, tail)) = rest.split_once('\'') {
            value.push_str(part);
            rest = tail;
            match tail.strip_prefix('\'') {
                Some(tail) => {
                    value.push('\'');
                    rest = tail;
                }
                None => break,
            }
        }
    }
    value
}

/// What a statement begins with whose literals are values; `with` is another.
const VALUE_WORDS: [u64; 5] =
    [lower(b"select"), lower(b"insert"), lower(b"update"), lower(b"delete"), lower(b"values")];

/// A word as a number, its letters in lower case; no other byte becomes a letter.
const fn lower(word: &[u8; 6]) -> u64 {
    let [a, b, c, d, e, f] = *word;
    u64::from_le_bytes([a, b, c, d, e, f, 0, 0]) | 0x2020_2020_2020
}

struct Lexer<'a, 'b> {
    bytes: &'a [u8],
    at: usize,
    /// Where the last look beyond a comment found a token.
    token_at: usize,
    lexed: &'b mut Lexed<'a>,
}

impl Lexer<'_, '_> {
    fn run(mut self) {
        self.lexed.mode = KeyMode::Slots;
        if matches!(self.peek(0).map(class), Some(Class::Space | Class::Dash | Class::Slash)) {
            self.space(false);
        }
        let start = self.at;
        if self.lexed.mode == KeyMode::Slots && !self.has_values() {
            self.lexed.mode = KeyMode::Space;
        }
        // Where the last token was a string, two of them may turn out to be one.
        let mut string_end = usize::MAX;
        let mut end = start;
        while let Some(&byte) = self.bytes.get(self.at) {
            let mut class = class(byte);
            if class == Class::Space {
                match self.peek(1).map(runs::class) {
                    None | Some(Class::Space | Class::Dash | Class::Slash) => {}
                    // One space between tokens, as nearly all are: on with what it precedes.
                    Some(next) if byte == b' ' => {
                        self.at += 1;
                        class = next;
                    }
                    Some(_) => {}
                }
            }
            match class {
                Class::Space => {
                    self.space(true);
                    continue;
                }
                Class::Dash if self.peek(1) == Some(b'-') => {
                    self.space(true);
                    continue;
                }
                Class::Slash if self.peek(1) == Some(b'*') => {
                    self.space(true);
                    continue;
                }
                Class::Quote => {
                    if string_end == end {
                        self.give_up();
                    }
                    self.string();
                    string_end = self.at;
                }
                Class::Ident => self.word(&mut string_end),
                Class::Digit => self.number(),
                Class::Dot if self.peek(1).is_some_and(|b| b.is_ascii_digit()) => self.number(),
                Class::DoubleQuote => self.quoted_name(),
                Class::Dollar => self.dollar(),
                _ => self.at += 1,
            }
            end = self.at;
        }
        self.lexed.body = (start as u32, end as u32);
        // A space after the last token is no part of the key.
        self.lexed.spaces.truncate_from(end as u32);
        if self.lexed.mode == KeyMode::Verbatim {
            self.lexed.body = (0, self.bytes.len() as u32);
        }
    }

    /// Cuts no corner from here on: the text as sent is the key.
    fn give_up(&mut self) {
        self.lexed.mode = KeyMode::Verbatim;
    }

    fn peek(&self, ahead: usize) -> Option<u8> {
        self.bytes.get(self.at + ahead).copied()
    }

    /// Whether the text starts as a statement whose literals are values.
    fn has_values(&self) -> bool {
        let mut rest = self.bytes.get(self.at..).unwrap_or_default();
        while let [b'(' | b' ', tail @ ..] = rest {
            rest = tail;
        }
        let length = match rest.first_chunk() {
            Some(head) if VALUE_WORDS.contains(&lower(head)) => 6,
            _ if rest.get(..4).is_some_and(|head| head.eq_ignore_ascii_case(b"with")) => 4,
            _ => return false,
        };
        !rest.get(length).is_some_and(|b| is_ident(*b))
    }

    #[inline]
    fn skip_while(&mut self, is: impl Fn(u8) -> bool) {
        self.at = run_end(self.bytes, self.at, is);
    }

    #[inline]
    fn rest(&self) -> &[u8] {
        self.bytes.get(self.at..).unwrap_or_default()
    }

    fn push_slot(&mut self, start: usize, kind: SlotKind) {
        if self.lexed.slots.len() >= SLOTS_MAX {
            self.give_up();
            return;
        }
        self.lexed.slots.push(Span { start: start as u32, end: self.at as u32, kind });
    }

    /// A run of white space and comments; in the key one space stands for it.
    fn space(&mut self, is_inside: bool) {
        let start = self.at;
        let mut comments = 0;
        while let Some(byte) = self.peek(0) {
            match class(byte) {
                Class::Space => self.at += 1,
                Class::Dash if self.peek(1) == Some(b'-') => {
                    comments += 1;
                    let rest = &self.bytes[self.at..];
                    let line = rest.iter().position(|b| matches!(b, b'\n' | b'\r'));
                    self.at += line.unwrap_or(rest.len());
                }
                Class::Slash if self.peek(1) == Some(b'*') => {
                    comments += 1;
                    self.comment(is_inside);
                }
                _ => break,
            }
        }
        self.lexed.comments = self.lexed.comments.max(comments);
        let is_plain = self.at - start == 1 && self.bytes[start] == b' ';
        if is_inside && !is_plain {
            let span = Span { start: start as u32, end: self.at as u32, kind: SlotKind::Plain };
            self.lexed.spaces.push(span);
        }
    }

    /// `/* ... */`, nested.
    fn comment(&mut self, is_inside: bool) {
        let start = self.at;
        self.at += 2;
        let mut depth = 1usize;
        while depth > 0 {
            match (self.peek(0), self.peek(1)) {
                (Some(b'*'), Some(b'/')) => {
                    depth -= 1;
                    self.at += 2;
                }
                (Some(b'/'), Some(b'*')) => {
                    depth += 1;
                    self.at += 2;
                }
                (Some(_), _) => self.at += 1,
                (None, _) => {
                    self.give_up();
                    return;
                }
            }
        }
        let inner = &self.lexed.text[start + 2..self.at - 2];
        let token_at = &mut self.token_at;
        self.lexed.hint.on_comment(self.lexed.text, inner, start + 2, is_inside, token_at);
    }

    /// A name or keyword, or a string with a letter before it.
    #[inline]
    fn word(&mut self, string_end: &mut usize) {
        let start = self.at;
        self.skip_while(is_ident);
        if self.at - start == 1 {
            self.letter(start, string_end);
        }
    }

    /// What a single letter before a quote makes of the string.
    fn letter(&mut self, start: usize, string_end: &mut usize) {
        match (self.bytes[start], self.peek(0)) {
            (b'e' | b'E', Some(b'\'')) => {
                let has_escape = self.escape_string();
                let kind = if has_escape { SlotKind::Opaque } else { SlotKind::Escape };
                self.push_slot(start, kind);
                *string_end = self.at;
            }
            (b'b' | b'B' | b'x' | b'X' | b'n' | b'N', Some(b'\'')) => {
                self.skip_string();
                self.push_slot(start, SlotKind::Opaque);
                *string_end = self.at;
            }
            // UESCAPE may follow and change what it means.
            (b'u' | b'U', Some(b'&')) if matches!(self.peek(1), Some(b'\'' | b'"')) => {
                self.give_up();
                self.at += 1;
            }
            _ => {}
        }
    }

    fn string(&mut self) {
        let start = self.at;
        let kind = if self.skip_string() { SlotKind::Plain } else { SlotKind::Pieced };
        self.push_slot(start, kind);
    }

    /// Skips `'...'` and the parts that continue it; whether it is in one part without quotes.
    fn skip_string(&mut self) -> bool {
        let mut is_plain = true;
        self.at += 1;
        loop {
            let Some(quote) = find_byte(self.rest(), b'\'') else {
                self.give_up();
                self.at = self.bytes.len();
                return false;
            };
            self.at += quote + 1;
            if self.peek(0) == Some(b'\'') {
                self.at += 1;
                is_plain = false;
            } else if self.continues() {
                is_plain = false;
            } else {
                return is_plain;
            }
        }
    }

    /// Skips `E'...'`, from its quote; whether it has a backslash or more than one part.
    fn escape_string(&mut self) -> bool {
        let mut has_escape = false;
        self.at += 1;
        loop {
            match self.peek(0) {
                Some(b'\\') => {
                    has_escape = true;
                    self.at += 2;
                }
                Some(b'\'') if self.peek(1) == Some(b'\'') => {
                    has_escape = true;
                    self.at += 2;
                }
                Some(b'\'') => {
                    self.at += 1;
                    match self.continues() {
                        true => has_escape = true,
                        false => return has_escape,
                    }
                }
                Some(_) => self.at += 1,
                None => {
                    self.give_up();
                    self.at = self.bytes.len();
                    return true;
                }
            }
        }
    }

    /// After a closing quote: white space with a newline in it, and another quote, continue the
    /// string. Steps behind that quote.
    #[inline]
    fn continues(&mut self) -> bool {
        let end = run_end(self.bytes, self.at, |b| class(b) == Class::Space);
        if self.bytes.get(end) != Some(&b'\'') {
            return false;
        }
        let has_newline = self.bytes[self.at..end].iter().any(|b| matches!(b, b'\n' | b'\r'));
        if has_newline {
            self.at = end + 1;
        }
        has_newline
    }

    fn quoted_name(&mut self) {
        self.at += 1;
        match find_byte(self.rest(), b'"') {
            // A doubled quote is read as two names that touch: the same bytes either way.
            Some(quote) => self.at += quote + 1,
            None => {
                self.give_up();
                self.at = self.bytes.len();
            }
        }
    }

    fn digits(&mut self) {
        self.skip_while(|b| b.is_ascii_digit());
    }

    fn number(&mut self) {
        let start = self.at;
        let mut kind = SlotKind::Integer;
        self.digits();
        if !self.peek(0).is_some_and(|b| is_ident(b) || b == b'.') {
            self.push_slot(start, kind);
            return;
        }
        if self.peek(0) == Some(b'.') {
            kind = SlotKind::Decimal;
            self.at += 1;
            self.digits();
        }
        if matches!(self.peek(0), Some(b'e' | b'E')) {
            let sign = usize::from(matches!(self.peek(1), Some(b'+' | b'-')));
            if self.peek(1 + sign).is_some_and(|b| b.is_ascii_digit()) {
                kind = SlotKind::Decimal;
                self.at += 1 + sign;
                self.digits();
            }
        }
        // `1x`, `0x1F`, `1_000`, `1..2`: what they are depends on the version of Postgres.
        if self.peek(0).is_some_and(|b| is_ident(b) || b == b'.') {
            self.give_up();
        }
        self.push_slot(start, kind);
    }

    /// `$1`, or a string between `$tag$`.
    fn dollar(&mut self) {
        let start = self.at;
        self.at += 1;
        if self.peek(0).is_some_and(|b| b.is_ascii_digit()) {
            self.digits();
            return;
        }
        let rest = &self.bytes[self.at..];
        let tag = rest.iter().take_while(|b| **b != b'$' && is_ident(**b)).count();
        let is_tag =
            rest.get(tag) == Some(&b'$') && !rest.first().is_some_and(|b| b.is_ascii_digit());
        if !is_tag {
            return;
        }
        let delimiter = &self.bytes[start..self.at + tag + 1];
        let body = self.at + tag + 1;
        match find(&self.bytes[body..], delimiter) {
            Some(length) => {
                self.at = body + length + delimiter.len();
                self.push_slot(start, SlotKind::Dollar);
            }
            None => {
                self.give_up();
                self.at = self.bytes.len();
            }
        }
    }
}

/// Where `needle`, which starts with `$`, stands in `hay`. Each mismatch moves on to the next `$`,
/// and a tag has none inside, so this is linear.
fn find(hay: &[u8], needle: &[u8]) -> Option<usize> {
    let mut from = 0;
    loop {
        let at = from + hay.get(from..).and_then(|rest| find_byte(rest, b'$'))?;
        if hay[at..].starts_with(needle) {
            return Some(at);
        }
        from = at + 1;
    }
}

#[cfg(test)]
mod tests;
