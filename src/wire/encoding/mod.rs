//! Client encodings: bytes of a client as text, and text as bytes for it.
//!
//! pgward reads UTF8 and the single-byte encodings. All of those have ASCII in their lower half and one
//! byte a character, so that a text has the same structure and the same positions in each. In others a
//! byte below 128 may be half a character: what such a text says only a server knows. Pure.

mod tables;

use std::borrow::Cow;

use tables::TABLES;

/// A single-byte encoding.
struct Table {
    /// As Postgres shows it.
    name: &'static str,
    /// Characters of the bytes from 128 on; 0: none.
    upper: [u16; 128],
}

/// How a client's text is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Encoding {
    /// UTF8, or SQL_ASCII, which a server takes as its own.
    #[default]
    Utf8,
    /// One byte a character: the place in the tables.
    Single(u8),
    /// Read only as far as it is ASCII.
    Other,
}

/// Further names that Postgres knows, without what is neither letter nor digit.
const ALIASES: [(&str, &str); 27] = [
    ("utf8", "UTF8"),
    ("unicode", "UTF8"),
    ("sqlascii", "SQL_ASCII"),
    ("abc", "WIN1258"),
    ("tcvn", "WIN1258"),
    ("tcvn5712", "WIN1258"),
    ("vscii", "WIN1258"),
    ("alt", "WIN866"),
    ("win", "WIN1251"),
    ("koi8", "KOI8R"),
    ("windows866", "WIN866"),
    ("windows874", "WIN874"),
    ("iso88591", "LATIN1"),
    ("iso88592", "LATIN2"),
    ("iso88593", "LATIN3"),
    ("iso88594", "LATIN4"),
    ("iso88599", "LATIN5"),
    ("iso885910", "LATIN6"),
    ("iso885913", "LATIN7"),
    ("iso885914", "LATIN8"),
    ("iso885915", "LATIN9"),
    ("iso885916", "LATIN10"),
    ("windows1250", "WIN1250"),
    ("windows1251", "WIN1251"),
    ("windows1252", "WIN1252"),
    ("windows1253", "WIN1253"),
    ("windows1254", "WIN1254"),
];

/// Postgres's name of the encoding `name`, if pgward reads it.
pub fn canonical(name: &str) -> Option<&'static str> {
    let letters = name.bytes().filter(u8::is_ascii_alphanumeric);
    let plain: String = letters.map(|byte| char::from(byte.to_ascii_lowercase())).collect();
    let alias = ALIASES.iter().find(|(alias, _)| *alias == plain).map(|(_, name)| *name);
    // windows1255 to windows1258 as well as win1255.
    let short = plain.replace("windows", "win");
    let is_own = |table: &&Table| {
        let own = table.name.bytes().filter(u8::is_ascii_alphanumeric);
        own.map(|byte| byte.to_ascii_lowercase()).eq(short.bytes())
    };
    alias.or_else(|| TABLES.iter().find(is_own).map(|table| table.name))
}

impl Encoding {
    /// The encoding of this name.
    pub fn named(name: &str) -> Self {
        match canonical(name) {
            Some("UTF8" | "SQL_ASCII") => Self::Utf8,
            Some(name) => {
                let place = TABLES.iter().position(|table| table.name == name);
                place.and_then(|at| u8::try_from(at).ok()).map_or(Self::Other, Self::Single)
            }
            None => Self::Other,
        }
    }

    fn table(self) -> Option<&'static [u16; 128]> {
        match self {
            Self::Single(at) => TABLES.get(usize::from(at)).map(|table| &table.upper),
            Self::Utf8 | Self::Other => None,
        }
    }

    /// The text of `bytes`; `None` where they are none, or only a server can tell.
    #[inline]
    pub fn decode(self, bytes: &[u8]) -> Option<Cow<'_, str>> {
        if self == Self::Utf8 || bytes.is_ascii() {
            return std::str::from_utf8(bytes).ok().map(Cow::Borrowed);
        }
        let upper = self.table()?;
        let of_byte = |byte: &u8| match byte.checked_sub(128) {
            None => Some(char::from(*byte)),
            Some(at) => match upper[usize::from(at)] {
                0 => None,
                code => char::from_u32(u32::from(code)),
            },
        };
        bytes.iter().map(of_byte).collect::<Option<String>>().map(Cow::Owned)
    }

    /// `text` as bytes; `None` where it has what the encoding lacks.
    #[inline]
    pub fn encode(self, text: &str) -> Option<Cow<'_, [u8]>> {
        if self == Self::Utf8 || text.is_ascii() {
            return Some(Cow::Borrowed(text.as_bytes()));
        }
        let upper = self.table()?;
        let of_char = |c: char| match u8::try_from(c) {
            Ok(byte) if byte.is_ascii() => Some(byte),
            _ => {
                let at = upper.iter().position(|code| u32::from(*code) == u32::from(c))?;
                u8::try_from(at).ok().map(|at| 128 + at)
            }
        };
        text.chars().map(of_char).collect::<Option<Vec<u8>>>().map(Cow::Owned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_postgres_reads_them() {
        for (name, want) in [
            ("utf-8", Some("UTF8")),
            ("sql_ascii", Some("SQL_ASCII")),
            ("ISO-8859-1", Some("LATIN1")),
            ("latin 9", Some("LATIN9")),
            ("ISO_8859-9", Some("LATIN5")),
            ("iso-8859-8", Some("ISO_8859_8")),
            ("Windows-1258", Some("WIN1258")),
            ("win1252", Some("WIN1252")),
            ("koi8-r", Some("KOI8R")),
            ("SJIS", None),
            ("windows932", None),
            ("win", Some("WIN1251")),
        ] {
            assert_eq!(canonical(name), want, "{name}");
        }
    }

    #[test]
    fn what_is_read_is_written_back() {
        for table in TABLES {
            let encoding = Encoding::named(table.name);
            for byte in 0..=255u8 {
                let Some(text) = encoding.decode(&[byte]).map(Cow::into_owned) else { continue };
                assert_eq!(encoding.encode(&text).as_deref(), Some(&[byte][..]), "{}", table.name);
            }
        }
    }

    #[test]
    fn what_is_no_text_is_not_read() {
        let (win, other) = (Encoding::named("WIN1252"), Encoding::named("SJIS"));
        assert_eq!(win.decode(b"\x80\x81"), None);
        assert_eq!(win.decode(b"\x80").as_deref(), Some("\u{20ac}"));
        assert_eq!(Encoding::named("LATIN1").decode(b"\x80").as_deref(), Some("\u{80}"));
        assert_eq!(win.encode("\u{6f22}"), None);
        assert_eq!(other.decode(b"a"), Some("a".into()));
        assert_eq!(other.decode(b"\x83\x5c"), None);
        assert_eq!(other.encode("\u{e9}"), None);
        assert_eq!(Encoding::Utf8.decode(b"\xe9"), None);
    }
}
