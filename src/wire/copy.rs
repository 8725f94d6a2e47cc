//! Rows of COPY FROM STDIN data, cut as Postgres cuts them (`copyfromparse.c`), of which one column is
//! looked at.
//!
//! Takes the bytes as they come and keeps none but those of the column in hand. Stricter than
//! Postgres: what has another number of columns, data behind its end, or the column written in a way
//! that no uuid needs (backslashes, quotes amid it) is an error, and so is all that Postgres itself
//! would find fault with at the ends of lines. Pure. Manual: "COPY", "File Formats".

/// Longest value of the column, in bytes; a uuid has 38 at most.
const KEY_BYTES_MAX: usize = 64;
/// Signature, flags and the length of the header's extension.
const BINARY_HEAD_BYTES: usize = 19;
const SIGNATURE: &[u8; 11] = b"PGCOPY\n\xff\r\n\0";

/// How rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Lines; a backslash takes the next byte's meaning away.
    Text {
        /// Between columns.
        delimiter: u8,
    },
    /// Lines with quoted values.
    Csv {
        /// Between columns.
        delimiter: u8,
        /// Around values.
        quote: u8,
        /// Before a quote or itself within quotes.
        escape: u8,
    },
    /// Counted.
    Binary,
}

/// The data can't be followed: it is wrong, or its column is not plain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unreadable;

/// Why data is not passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It can't be followed.
    Unreadable,
    /// Whoever looked at the column did not want this row.
    Unwanted,
}

/// Cuts data into rows; see the module.
#[derive(Debug)]
pub struct Rows {
    format: Format,
    /// Index of the column that is looked at.
    column: usize,
    /// Columns that each row has.
    count: usize,
    /// The first line is no row.
    is_header: bool,
    line: Line,
    binary: Binary,
}

/// What ends lines, which the first line says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Eol {
    #[default]
    Unknown,
    Nl,
    Cr,
    CrNl,
}

/// How the column's value is written so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Shape {
    #[default]
    Empty,
    Plain,
    Quoted,
    /// Behind its closing quote.
    Closed,
    Odd,
}

/// What may become `\.`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Marker {
    #[default]
    LineStart,
    Backslash,
    Whole,
    No,
}

#[derive(Debug, Default)]
struct Line {
    eol: Eol,
    /// A CR came, and whether an NL follows is yet to be seen.
    is_after_cr: bool,
    is_escaped: bool,
    in_quotes: bool,
    was_escape: bool,
    field: usize,
    key: Vec<u8>,
    shape: Shape,
    marker: Marker,
    has_bytes: bool,
    /// `\.` came.
    is_ended: bool,
}

#[derive(Debug, Default)]
struct Binary {
    /// Bytes of a number, or of the header, that is not whole yet.
    head: Vec<u8>,
    at: BinaryAt,
    field: usize,
    key: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum BinaryAt {
    #[default]
    Header,
    /// Bytes of the header's extension that are left.
    Extension(usize),
    Count,
    Length,
    /// Bytes of a value that are left.
    Value(usize),
    End,
}

impl Rows {
    /// Rows of `count` columns, of which `column` (from 0) is looked at.
    pub fn new(format: Format, is_header: bool, column: usize, count: usize) -> Self {
        let (line, binary) = (Line::default(), Binary::default());
        Self { format, column, count, is_header, line, binary }
    }

    /// The next bytes of the data. `is_wanted` sees the column of each row: its text, or its bytes
    /// where rows are binary. NULL is [`Fault::Unreadable`], or no text of a uuid.
    pub fn feed(
        &mut self,
        bytes: &[u8],
        mut is_wanted: impl FnMut(&[u8]) -> bool,
    ) -> Result<(), Fault> {
        match self.format {
            Format::Text { .. } | Format::Csv { .. } => {
                bytes.iter().try_for_each(|byte| self.byte(*byte, &mut is_wanted))
            }
            Format::Binary => self.binary(bytes, &mut is_wanted),
        }
    }

    /// The data has ended.
    pub fn finish(&mut self, mut is_wanted: impl FnMut(&[u8]) -> bool) -> Result<(), Fault> {
        if let Format::Binary = self.format {
            let is_whole = match self.binary.at {
                BinaryAt::End => true,
                // Postgres takes the end of the data for the trailer.
                BinaryAt::Count => self.binary.head.is_empty(),
                _ => false,
            };
            return if is_whole { Ok(()) } else { Err(Fault::Unreadable) };
        }
        let line = &self.line;
        // A backslash may be the last byte: it takes nothing's meaning away.
        if line.in_quotes {
            // Nobody reads the values of a header.
            return if self.is_header { Ok(()) } else { Err(Fault::Unreadable) };
        }
        if line.is_after_cr || line.has_bytes {
            return self.end_line(&mut is_wanted);
        }
        Ok(())
    }

    fn byte(&mut self, byte: u8, is_wanted: &mut dyn FnMut(&[u8]) -> bool) -> Result<(), Fault> {
        if self.line.is_after_cr {
            self.line.is_after_cr = false;
            if byte == b'\n' {
                self.line.eol = Eol::CrNl;
                return self.end_line(is_wanted);
            }
            if self.line.eol == Eol::CrNl {
                return Err(Fault::Unreadable);
            }
            self.line.eol = Eol::Cr;
            self.end_line(is_wanted)?;
        }
        if self.line.is_ended {
            return Err(Fault::Unreadable);
        }
        let delimiter = match self.format {
            Format::Text { delimiter } => {
                if self.text_escape(byte)? {
                    return Ok(());
                }
                delimiter
            }
            Format::Csv { delimiter, quote, escape } => {
                if self.csv_quote(byte, quote, escape) {
                    return Ok(());
                }
                delimiter
            }
            Format::Binary => return Err(Fault::Unreadable),
        };
        let line = &mut self.line;
        match byte {
            b'\r' if !line.in_quotes => match line.eol {
                Eol::Unknown | Eol::CrNl => {
                    line.is_after_cr = true;
                    Ok(())
                }
                Eol::Cr => self.end_line(is_wanted),
                Eol::Nl => Err(Fault::Unreadable),
            },
            b'\n' if !line.in_quotes => match line.eol {
                Eol::Unknown | Eol::Nl => {
                    line.eol = Eol::Nl;
                    self.end_line(is_wanted)
                }
                Eol::Cr | Eol::CrNl => Err(Fault::Unreadable),
            },
            _ => {
                line.has_bytes = true;
                if byte == delimiter && !line.in_quotes {
                    line.field += 1;
                } else {
                    self.value_byte(byte);
                }
                Ok(())
            }
        }
    }

    /// The backslashes of text; `true`: the byte has been dealt with.
    fn text_escape(&mut self, byte: u8) -> Result<bool, Fault> {
        let line = &mut self.line;
        if line.is_escaped {
            line.is_escaped = false;
            line.marker = match (line.marker, byte) {
                (Marker::Backslash, b'.') => Marker::Whole,
                // Postgres ends the data there.
                (_, b'.') => return Err(Fault::Unreadable),
                _ => Marker::No,
            };
            return Ok(true);
        }
        if line.marker == Marker::Whole && !matches!(byte, b'\r' | b'\n') {
            return Err(Fault::Unreadable);
        }
        if byte != b'\\' {
            if !matches!(byte, b'\r' | b'\n') {
                line.marker = Marker::No;
            }
            return Ok(false);
        }
        line.is_escaped = true;
        line.has_bytes = true;
        line.marker = if line.marker == Marker::LineStart { Marker::Backslash } else { Marker::No };
        if line.field == self.column {
            line.shape = Shape::Odd;
        }
        Ok(true)
    }

    /// The quotes of CSV; `true`: the byte has been dealt with.
    fn csv_quote(&mut self, byte: u8, quote: u8, escape: u8) -> bool {
        let line = &mut self.line;
        line.marker = match (line.marker, byte) {
            (marker, b'\r' | b'\n') => marker,
            (Marker::LineStart, b'\\') => Marker::Backslash,
            (Marker::Backslash, b'.') => Marker::Whole,
            _ => Marker::No,
        };
        let is_key = line.field == self.column;
        if escape != quote {
            if line.in_quotes && byte == escape {
                line.was_escape = !line.was_escape;
            }
            let was_escape = line.was_escape;
            if byte != escape {
                line.was_escape = false;
            }
            if (byte == quote && was_escape) || (line.in_quotes && byte == escape) {
                line.has_bytes = true;
                if is_key {
                    line.shape = Shape::Odd;
                }
                return true;
            }
        }
        if byte != quote {
            return false;
        }
        line.has_bytes = true;
        line.in_quotes = !line.in_quotes;
        if is_key {
            line.shape = match (line.shape, line.in_quotes) {
                (Shape::Empty, true) => Shape::Quoted,
                (Shape::Quoted, false) => Shape::Closed,
                _ => Shape::Odd,
            };
        }
        true
    }

    /// A byte of a value that means itself.
    fn value_byte(&mut self, byte: u8) {
        let line = &mut self.line;
        if line.field != self.column {
            return;
        }
        line.shape = match line.shape {
            Shape::Empty => Shape::Plain,
            Shape::Closed => Shape::Odd,
            shape => shape,
        };
        match line.key.len() < KEY_BYTES_MAX {
            true => line.key.push(byte),
            false => line.shape = Shape::Odd,
        }
    }

    fn end_line(&mut self, is_wanted: &mut dyn FnMut(&[u8]) -> bool) -> Result<(), Fault> {
        let line = &mut self.line;
        let (field, shape, marker) = (line.field, line.shape, line.marker);
        let key = std::mem::take(&mut line.key);
        (line.field, line.shape, line.marker) = (0, Shape::Empty, Marker::LineStart);
        (line.has_bytes, line.is_after_cr, line.was_escape) = (false, false, false);
        if std::mem::take(&mut self.is_header) {
            return Ok(());
        }
        if marker == Marker::Whole {
            line.is_ended = true;
            return Ok(());
        }
        if field + 1 != self.count || shape == Shape::Odd {
            return Err(Fault::Unreadable);
        }
        if is_wanted(&key) { Ok(()) } else { Err(Fault::Unwanted) }
    }

    fn binary(
        &mut self,
        mut bytes: &[u8],
        is_wanted: &mut dyn FnMut(&[u8]) -> bool,
    ) -> Result<(), Fault> {
        while !bytes.is_empty() {
            match self.binary.at {
                BinaryAt::Header => {
                    let Some(head) = self.take_head(&mut bytes, BINARY_HEAD_BYTES) else { break };
                    let (signature, rest) = head.split_at(SIGNATURE.len());
                    let (flags, extension) = rest.split_at(4);
                    // A flag would be the OIDs of servers before 12, or something of those to come.
                    if signature != SIGNATURE || flags != [0; 4] {
                        return Err(Fault::Unreadable);
                    }
                    let length = usize::try_from(number(extension)).or(Err(Fault::Unreadable))?;
                    self.binary.at = BinaryAt::Extension(length);
                    if length == 0 {
                        self.binary.at = BinaryAt::Count;
                    }
                }
                BinaryAt::Extension(left) => {
                    let n = left.min(bytes.len());
                    bytes = &bytes[n..];
                    self.binary.at = match left - n {
                        0 => BinaryAt::Count,
                        left => BinaryAt::Extension(left),
                    };
                }
                BinaryAt::Count => {
                    let Some(head) = self.take_head(&mut bytes, 2) else { break };
                    match i16::from_be_bytes([head[0], head[1]]) {
                        -1 => self.binary.at = BinaryAt::End,
                        n if usize::try_from(n) == Ok(self.count) => {
                            self.binary.field = 0;
                            self.binary.at = BinaryAt::Length;
                        }
                        _ => return Err(Fault::Unreadable),
                    }
                }
                BinaryAt::Length => {
                    let Some(head) = self.take_head(&mut bytes, 4) else { break };
                    self.binary.key.clear();
                    match number(&head) {
                        // NULL is no hospital.
                        -1 if self.binary.field == self.column => return Err(Fault::Unreadable),
                        -1 => self.end_value(is_wanted)?,
                        n => {
                            let n = usize::try_from(n).or(Err(Fault::Unreadable))?;
                            self.binary.at = BinaryAt::Value(n);
                            if n == 0 {
                                self.end_value(is_wanted)?;
                            }
                        }
                    }
                }
                BinaryAt::Value(left) => {
                    let n = left.min(bytes.len());
                    if self.binary.field == self.column {
                        if self.binary.key.len() + left > KEY_BYTES_MAX {
                            return Err(Fault::Unreadable);
                        }
                        self.binary.key.extend_from_slice(&bytes[..n]);
                    }
                    bytes = &bytes[n..];
                    self.binary.at = BinaryAt::Value(left - n);
                    if left == n {
                        self.end_value(is_wanted)?;
                    }
                }
                BinaryAt::End => return Err(Fault::Unreadable),
            }
        }
        Ok(())
    }

    fn end_value(&mut self, is_wanted: &mut dyn FnMut(&[u8]) -> bool) -> Result<(), Fault> {
        if self.binary.field == self.column && !is_wanted(&self.binary.key) {
            return Err(Fault::Unwanted);
        }
        self.binary.field += 1;
        let is_last = self.binary.field == self.count;
        self.binary.at = if is_last { BinaryAt::Count } else { BinaryAt::Length };
        Ok(())
    }

    /// `n` bytes, once they are all there.
    fn take_head(&mut self, bytes: &mut &[u8], n: usize) -> Option<Vec<u8>> {
        let missing = n - self.binary.head.len();
        let (head, rest) = bytes.split_at(missing.min(bytes.len()));
        self.binary.head.extend_from_slice(head);
        *bytes = rest;
        (self.binary.head.len() == n).then(|| std::mem::take(&mut self.binary.head))
    }
}

fn number(bytes: &[u8]) -> i32 {
    bytes.try_into().map_or(-2, i32::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: Format = Format::Text { delimiter: b'\t' };
    const CSV: Format = Format::Csv { delimiter: b',', quote: b'"', escape: b'"' };
    const SLASHED: Format = Format::Csv { delimiter: b';', quote: b'\'', escape: b'\\' };

    /// The values of the second of three columns, and how it ended.
    fn keys(format: Format, is_header: bool, pieces: &[&[u8]]) -> String {
        let mut rows = Rows::new(format, is_header, 1, 3);
        let mut seen = String::new();
        let mut see = |key: &[u8]| {
            seen.push_str(&format!("{} ", key.escape_ascii()));
            key != b"bad"
        };
        let fed = pieces.iter().try_for_each(|piece| rows.feed(piece, &mut see));
        let end = match fed.and_then(|()| rows.finish(&mut see)) {
            Ok(()) => "ok",
            Err(Fault::Unreadable) => "unreadable",
            Err(Fault::Unwanted) => "unwanted",
        };
        seen + end
    }

    fn binary(rows: &[&[Option<&[u8]>]]) -> Vec<u8> {
        let mut out = [&SIGNATURE[..], &[0; 8]].concat();
        for row in rows {
            out.extend((row.len() as u16).to_be_bytes());
            for value in *row {
                out.extend(value.map_or(-1, |value| value.len() as i32).to_be_bytes());
                out.extend(value.unwrap_or_default());
            }
        }
        out.extend((-1i16).to_be_bytes());
        out
    }

    fn cases() -> Vec<(Format, bool, Vec<u8>, &'static str)> {
        let text =
            |format, header, text: &str, want| (format, header, text.as_bytes().to_vec(), want);
        let (a, b) = (Some(&b"a"[..]), Some(&b""[..]));
        let whole = binary(&[&[a, Some(b"k"), None], &[None, b, b]]);
        let extended = [&SIGNATURE[..], b"\0\0\0\0\0\0\0\x02xx", &whole[19..]].concat();
        vec![
            text(TEXT, false, "", "ok"),
            text(TEXT, false, "a\tk\tc\nx\ty\tz\n", "k y ok"),
            text(TEXT, false, "a\tk\tc\r\nx\ty\tz\r\n", "k y ok"),
            text(TEXT, false, "a\tk\tc\rx\ty\tz", "k y ok"),
            text(TEXT, false, "a\tk\tc\rx\ty\tz\r", "k y ok"),
            text(TEXT, false, "a\tk\tc\nx\ty\tz\r\n", "k unreadable"),
            text(TEXT, false, "a\tk\tc\r\nx\ty\tz\n", "k unreadable"),
            text(TEXT, false, "a\tk\tc\rx\ty\tz\n", "k unreadable"),
            // A backslash takes any meaning away, also that of an end of line.
            text(TEXT, false, "a\\\tb\tk\tc\\\nd\\\\\n", "k ok"),
            text(TEXT, false, "a\tk\tc\\", "k ok"),
            text(TEXT, false, "a\tk\\", "unreadable"),
            text(TEXT, false, "a\t\\N\tc\n", "unreadable"),
            text(TEXT, false, "a\tk\\x41\tc\n", "unreadable"),
            text(TEXT, false, "a\tbad\tc\nx\ty\tz\n", "bad unwanted"),
            text(TEXT, false, "a\tk\n", "unreadable"),
            text(TEXT, false, "a\tk\tc\td\n", "unreadable"),
            text(TEXT, false, "\n", "unreadable"),
            text(TEXT, false, "a\tk\tc\n\\.\n", "k ok"),
            text(TEXT, false, "a\tk\tc\n\\.", "k ok"),
            text(TEXT, false, "a\tk\tc\n\\.\nx\tbad\tz\n", "k unreadable"),
            text(TEXT, false, "a\tk\tc\\.\n", "unreadable"),
            text(TEXT, false, "\\.a\tk\tc\n", "unreadable"),
            text(TEXT, true, "what\never\tk\tc\n", "k ok"),
            text(TEXT, true, "", "ok"),
            text(CSV, false, "a,k,c\na,\"k\",\"x,\"\"\ny\"\n", "k k ok"),
            text(CSV, false, "a,\"k\"\"\",c\n", "unreadable"),
            text(CSV, false, "a,k\"k\",c\n", "unreadable"),
            text(CSV, false, "a,\"k\"k,c\n", "unreadable"),
            text(CSV, false, "a,,c\n", " ok"),
            text(CSV, false, "a,k,\"c\n", "unreadable"),
            text(CSV, false, "a\\,k,c\\\n", "k ok"),
            text(CSV, false, "\"a\"\"\",k,c\r\n\"\r\n,\",y,z", "k y ok"),
            text(CSV, false, "a,k,c\n\\.\n", "k ok"),
            text(CSV, false, "a,k,c\n\\.\na,k,c\n", "k unreadable"),
            text(CSV, false, "\\.a,k,c\n", "k ok"),
            text(CSV, true, "\"he\nad\",\na,k,c\n", "k ok"),
            text(CSV, true, "a,\"b\n", "ok"),
            text(SLASHED, false, "'a\\';';k;'\\\\'\n\\;y;'z\n'\n", "k y ok"),
            text(SLASHED, false, "a;'k\\'';c\n", "unreadable"),
            (Format::Binary, false, whole.clone(), "k  ok"),
            (Format::Binary, false, extended, "k  ok"),
            (Format::Binary, false, whole[..whole.len() - 2].to_vec(), "k  ok"),
            (Format::Binary, false, whole[..whole.len() - 3].to_vec(), "k  unreadable"),
            (Format::Binary, false, [&whole[..], b"x"].concat(), "k  unreadable"),
            (Format::Binary, false, binary(&[&[a, None, a]]), "unreadable"),
            (Format::Binary, false, binary(&[&[a, Some(b"bad"), a]]), "bad unwanted"),
            (Format::Binary, false, binary(&[&[a, a]]), "unreadable"),
            (Format::Binary, false, binary(&[&[a, Some(&[b'x'; 65]), a]]), "unreadable"),
            (Format::Binary, false, b"PGCOPY\n\xff\r\n\0\0\x01\0\0\0\0\0\0".to_vec(), "unreadable"),
            (Format::Binary, false, b"a\tk\tc\nand so on, and so on".to_vec(), "unreadable"),
        ]
    }

    #[test]
    fn rows_are_cut_as_postgres_cuts_them() {
        for (format, is_header, data, want) in cases() {
            let got = keys(format, is_header, &[&data]);
            assert_eq!(got, want, "{format:?} {:?}", data.escape_ascii().to_string());
        }
    }

    #[test]
    fn any_split_of_the_bytes_gives_the_same_rows() {
        for (format, is_header, data, want) in cases() {
            let bytes: Vec<&[u8]> = data.chunks(1).collect();
            assert_eq!(keys(format, is_header, &bytes), want, "{format:?} byte by byte");
            for at in 0..=data.len() {
                let (head, tail) = data.split_at(at);
                assert_eq!(keys(format, is_header, &[head, tail]), want, "{format:?} cut at {at}");
            }
        }
    }
}
