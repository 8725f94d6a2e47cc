//! TOML files that people edit, read so that every problem is told at once, with its place.
//!
//! serde stops at the first error and knows no places afterwards; so a file is parsed into a
//! spanned document, its keys are taken one by one through [`Fields`], and whatever is wrong goes
//! into a [`Report`]. Used by `config` and `shard_map`; knows nothing of what they mean. Only
//! [`read`] touches a file.

use std::cell::RefCell;
use std::fmt;
use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};

pub use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Problems that are told one by one; of the others only the number.
pub const PROBLEMS_LISTED_MAX: usize = 100;
/// Bytes of a file; 50,000 hospitals take about 5 MB.
pub const FILE_BYTES_MAX: u64 = 64 << 20;

/// Something wrong at a place of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file as it was named.
    pub file: String,
    /// 1-based.
    pub line: usize,
    /// 1-based, in characters.
    pub column: usize,
    /// What is wrong and what to do.
    pub message: String,
}

/// All problems of a file, in its order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems {
    /// At most [`PROBLEMS_LISTED_MAX`].
    pub list: Vec<Problem>,
    /// How many more there are.
    pub more: usize,
}

/// Why a file is not usable.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It can't be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It says something wrong.
    #[error(transparent)]
    Problems(#[from] Problems),
}

impl std::error::Error for Problems {}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: {}", self.file, self.line, self.column, self.message)
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.list.iter().enumerate() {
            let newline = if i == 0 { "" } else { "\n" };
            write!(f, "{newline}{problem}")?;
        }
        match self.more {
            0 => Ok(()),
            more => write!(f, "\nand {more} more"),
        }
    }
}

/// The text of `path`, if it is a file of reasonable size in UTF-8.
pub fn read(path: &Path) -> Result<String, LoadError> {
    let fail = |source| LoadError::Read { path: path.to_owned(), source };
    let size = std::fs::metadata(path).map_err(fail)?.len();
    if size > FILE_BYTES_MAX {
        return Err(fail(std::io::Error::other(format!(
            "{size} bytes are more than the {FILE_BYTES_MAX} that are read"
        ))));
    }
    std::fs::read_to_string(path).map_err(fail)
}

/// Collects problems while a document is read.
#[derive(Debug)]
pub struct Report<'t> {
    file: String,
    text: &'t str,
    /// Byte offset at which each line starts.
    line_starts: Vec<usize>,
    /// Byte offset and message.
    found: RefCell<Vec<(usize, String)>>,
}

/// A parsed document.
pub type Root<'t> = Spanned<DeTable<'t>>;

/// Parses `text`. Where it isn't TOML, only that is told: what it would mean is a guess.
pub fn parse<'t>(file: &str, text: &'t str) -> Result<(Report<'t>, Root<'t>), Problems> {
    let report = Report::new(file, text);
    let (root, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        report.at(&error.span().unwrap_or_default(), error.message());
    }
    report.finish(())?;
    Ok((report, root))
}

impl<'t> Report<'t> {
    /// Nothing found yet in `text`, which is called `file` in problems; it need not be TOML.
    pub fn new(file: &str, text: &'t str) -> Self {
        Self {
            file: file.to_owned(),
            text,
            line_starts: std::iter::once(0)
                .chain(text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(i, _)| i + 1))
                .collect(),
            found: RefCell::default(),
        }
    }

    /// Notes a problem at the start of `span`.
    pub fn at(&self, span: &Range<usize>, message: impl Into<String>) {
        self.found.borrow_mut().push((span.start, message.into()));
    }

    /// The 1-based line of the start of `span`.
    pub fn line(&self, span: &Range<usize>) -> usize {
        self.line_starts.partition_point(|start| *start <= span.start)
    }

    /// `value` if nothing was wrong so far; forgets what was.
    pub fn finish<T>(&self, value: T) -> Result<T, Problems> {
        let mut found = self.found.take();
        if found.is_empty() {
            return Ok(value);
        }
        found.sort();
        found.dedup(); // a pattern that stands for twenty shards is wrong once
        let more = found.len().saturating_sub(PROBLEMS_LISTED_MAX);
        found.truncate(PROBLEMS_LISTED_MAX);
        let list = found
            .into_iter()
            .map(|(offset, message)| {
                let line = self.line(&(offset..offset));
                let start = self.line_starts[line - 1];
                let before = self.text.as_bytes().get(start..offset).unwrap_or_default();
                let column = String::from_utf8_lossy(before).chars().count() + 1;
                Problem { file: self.file.clone(), line, column, message }
            })
            .collect();
        Err(Problems { list, more })
    }
}

/// A table whose keys are being taken; those that nobody takes are unknown.
#[derive(Debug)]
pub struct Fields<'a, 't> {
    report: &'a Report<'t>,
    table: &'a DeTable<'t>,
    span: Range<usize>,
    /// For messages: empty for the root, else such as `[[shard]]`.
    name: &'static str,
    known: Vec<&'static str>,
}

impl<'a, 't> Fields<'a, 't> {
    /// The whole document.
    pub fn root(report: &'a Report<'t>, root: &'a Root<'t>) -> Self {
        Self { report, table: root.get_ref(), span: 0..0, name: "", known: Vec::new() }
    }

    /// Where the table begins.
    pub fn span(&self) -> &Range<usize> {
        &self.span
    }

    /// Where the value of `key` begins; the table's begin if it has none.
    pub fn span_of(&self, key: &str) -> Range<usize> {
        self.table.get(key).map_or(self.span.clone(), Spanned::span)
    }

    /// Reports each of `keys` that the table lacks.
    pub fn require(&self, keys: &[&str]) {
        for key in keys.iter().filter(|key| !self.table.contains_key(**key)) {
            self.report.at(&self.span, format!("`{key}` is missing{}", self.inside()));
        }
    }

    /// Whether the table has `key`, whatever its value.
    pub fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// A string.
    pub fn string(&mut self, key: &'static str) -> Option<Spanned<&'a str>> {
        let value = self.take(key)?;
        match value.get_ref() {
            DeValue::String(text) => Some(Spanned::new(value.span(), text.as_ref())),
            _ => self.wrong(key, value, "a string"),
        }
    }

    /// A string that no message quotes, whatever it is.
    pub fn secret(&mut self, key: &'static str) -> Option<Spanned<&'a str>> {
        let value = self.take(key)?;
        if let DeValue::String(text) = value.get_ref() {
            return Some(Spanned::new(value.span(), text.as_ref()));
        }
        self.report.at(&value.span(), format!("`{key}` must be a string"));
        None
    }

    /// `true` or `false`.
    pub fn boolean(&mut self, key: &'static str) -> Option<Spanned<bool>> {
        let value = self.take(key)?;
        match value.get_ref() {
            DeValue::Boolean(flag) => Some(Spanned::new(value.span(), *flag)),
            _ => self.wrong(key, value, "true or false"),
        }
    }

    /// A whole number in `range`.
    pub fn integer(
        &mut self,
        key: &'static str,
        range: RangeInclusive<u64>,
    ) -> Option<Spanned<u64>> {
        let value = self.take(key)?;
        let parsed = match value.get_ref() {
            DeValue::Integer(digits) => u64::from_str_radix(digits.as_str(), digits.radix()).ok(),
            _ => None,
        };
        match parsed {
            Some(number) if range.contains(&number) => Some(Spanned::new(value.span(), number)),
            _ => {
                let (low, high) = range.into_inner();
                self.wrong(key, value, &format!("a whole number from {low} to {high}"))
            }
        }
    }

    /// A date and time: TOML's own, or a string that `read` understands.
    pub fn datetime(
        &mut self,
        key: &'static str,
        read: impl Fn(&str) -> Result<toml::value::Datetime, String>,
    ) -> Option<Spanned<toml::value::Datetime>> {
        let value = self.take(key)?;
        match value.get_ref() {
            DeValue::Datetime(datetime) => Some(Spanned::new(value.span(), *datetime)),
            DeValue::String(text) => match read(text) {
                Ok(datetime) => Some(Spanned::new(value.span(), datetime)),
                Err(why) => {
                    self.report.at(&value.span(), format!("`{key}` {why}"));
                    None
                }
            },
            _ => self.wrong(key, value, "a date and time"),
        }
    }

    /// Seconds from 0 to `max`, fractions allowed.
    pub fn seconds(&mut self, key: &'static str, max: f64) -> Option<Spanned<f64>> {
        let value = self.take(key)?;
        let parsed = match value.get_ref() {
            DeValue::Integer(digits) => u64::from_str_radix(digits.as_str(), digits.radix())
                .ok()
                .and_then(|whole| whole.to_string().parse().ok()),
            DeValue::Float(digits) => digits.as_str().parse::<f64>().ok(),
            _ => None,
        };
        match parsed {
            Some(seconds) if (0.0..=max).contains(&seconds) => {
                Some(Spanned::new(value.span(), seconds))
            }
            _ => self.wrong(key, value, &format!("seconds from 0 to {max}")),
        }
    }

    /// A list of strings; empty if there is none.
    pub fn strings(&mut self, key: &'static str) -> Vec<Spanned<&'a str>> {
        let Some(value) = self.take(key) else { return Vec::new() };
        let DeValue::Array(array) = value.get_ref() else {
            self.wrong::<()>(key, value, "a list of strings");
            return Vec::new();
        };
        let strings = array.iter().filter_map(|item| match item.get_ref() {
            DeValue::String(text) => Some(Spanned::new(item.span(), text.as_ref())),
            _ => self.wrong(key, item, "a list of strings"),
        });
        strings.collect()
    }

    /// The pairs of a table whose values are strings; empty if there is none.
    pub fn pairs(&mut self, key: &'static str) -> Vec<(Spanned<&'a str>, Spanned<&'a str>)> {
        let Some(value) = self.take(key) else { return Vec::new() };
        let DeValue::Table(table) = value.get_ref() else {
            self.wrong::<()>(key, value, "a table of strings");
            return Vec::new();
        };
        let pairs = table.iter().filter_map(|(name, item)| match item.get_ref() {
            DeValue::String(text) => Some((
                Spanned::new(name.span(), name.get_ref().as_ref()),
                Spanned::new(item.span(), text.as_ref()),
            )),
            _ => self.wrong(key, item, "a table of strings"),
        });
        pairs.collect()
    }

    /// A table; `name` is for messages.
    pub fn table(&mut self, key: &'static str, name: &'static str) -> Option<Fields<'a, 't>> {
        let value = self.take(key)?;
        match value.get_ref() {
            DeValue::Table(table) => Some(self.inner(table, value.span(), name)),
            _ => self.wrong(key, value, "a table"),
        }
    }

    /// A list of tables, such as `[[shard]]`; `name` is for messages.
    pub fn tables(&mut self, key: &'static str, name: &'static str) -> Vec<Fields<'a, 't>> {
        let Some(value) = self.take(key) else { return Vec::new() };
        let DeValue::Array(array) = value.get_ref() else {
            self.wrong::<()>(key, value, &format!("written as {name}"));
            return Vec::new();
        };
        let tables = array.iter().filter_map(|item| match item.get_ref() {
            DeValue::Table(table) => Some(self.inner(table, item.span(), name)),
            _ => self.wrong(key, item, &format!("written as {name}")),
        });
        tables.collect()
    }

    /// Reports the keys that nobody took.
    pub fn finish(self) {
        for (key, _) in self.table.iter() {
            let name = key.get_ref().as_ref();
            if !self.known.contains(&name) {
                let known = self.known.iter().map(|k| format!("`{k}`")).collect::<Vec<_>>();
                let message =
                    format!("unknown key `{name}`{}; known: {}", self.inside(), known.join(", "));
                self.report.at(&key.span(), message);
            }
        }
    }

    fn inner(
        &self,
        table: &'a DeTable<'t>,
        span: Range<usize>,
        name: &'static str,
    ) -> Fields<'a, 't> {
        Fields { report: self.report, table, span, name, known: Vec::new() }
    }

    fn take(&mut self, key: &'static str) -> Option<&'a Spanned<DeValue<'t>>> {
        self.known.push(key);
        self.table.get(key)
    }

    fn wrong<T>(&self, key: &str, value: &Spanned<DeValue<'t>>, want: &str) -> Option<T> {
        let is = match value.get_ref() {
            DeValue::Integer(digits) => digits.to_string(),
            DeValue::Float(digits) => digits.to_string(),
            DeValue::Boolean(value) => value.to_string(),
            other => format!("{} {}", article(other.type_str()), other.type_str()),
        };
        self.report.at(&value.span(), format!("`{key}` must be {want}, not {is}"));
        None
    }

    fn inside(&self) -> String {
        if self.name.is_empty() { String::new() } else { format!(" in {}", self.name) }
    }
}

fn article(noun: &str) -> &'static str {
    if noun.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Reads `text` as a table with one of each kind.
    fn problems(text: &str) -> Vec<String> {
        let found = parse("f.toml", text).and_then(|(report, root)| {
            let mut fields = Fields::root(&report, &root);
            fields.require(&["name"]);
            fields.string("name");
            fields.integer("count", 1..=0xff);
            fields.strings("list");
            fields.pairs("map");
            if let Some(mut inner) = fields.table("inner", "`inner`") {
                inner.string("a");
                inner.finish();
            }
            for mut item in fields.tables("item", "[[item]]") {
                item.require(&["a"]);
                item.string("a");
                item.finish();
            }
            fields.finish();
            report.finish(())
        });
        let list = found.err().map(|problems| problems.list).unwrap_or_default();
        list.iter().map(Problem::to_string).collect()
    }

    #[test]
    fn every_kind_of_problem_has_its_place() {
        let fine = "name = 'n'\ncount = 0xff\nlist = ['a']\nmap = { b = 'c' }\n[inner]\na = 'b'\n\
                    [[item]]\na = 'x'\n[[item]]\na = 'y'\n";
        let cases: &[(&str, &[&str])] = &[
            (fine, &[]),
            ("", &["f.toml:1:1: `name` is missing"]),
            (
                "name = 'é' # ö\r\n'ü' = 1",
                &["f.toml:2:1: unknown key `ü`; known: `name`, `count`, \
              `list`, `map`, `inner`, `item`"],
            ),
            ("name = 1.5", &["f.toml:1:8: `name` must be a string, not 1.5"]),
            ("name = []", &["f.toml:1:8: `name` must be a string, not an array"]),
            (
                "name = ''\ncount = 0",
                &["f.toml:2:9: `count` must be a whole number from 1 to 255, not 0"],
            ),
            (
                "name = ''\ncount = 1.0",
                &["f.toml:2:9: `count` must be a whole number from 1 to 255, not 1.0"],
            ),
            (
                "name = 'é'; list = 1",
                &["f.toml:1:11: unexpected key or value, expected newline, `#`"],
            ),
            (
                "name = ''\nlist = ['é', 1, 2]",
                &[
                    "f.toml:2:14: `list` must be a list of strings, not 1",
                    "f.toml:2:17: `list` must be a list of strings, not 2",
                ],
            ),
            (
                "name = ''\nmap = { a = 1 }",
                &["f.toml:2:13: `map` must be a table of strings, not 1"],
            ),
            ("name = ''\n[[inner]]", &["f.toml:2:1: `inner` must be a table, not an array"]),
            ("name = ''\n[item]", &["f.toml:2:1: `item` must be written as [[item]], not a table"]),
            (
                "name = ''\n[[item]]\nb = 1",
                &[
                    "f.toml:2:1: `a` is missing in [[item]]",
                    "f.toml:3:1: unknown key `b` in [[item]]; known: `a`",
                ],
            ),
        ];
        for (text, want) in cases {
            assert_eq!(problems(text), *want, "{text:?}");
        }
    }

    #[test]
    fn files_that_cannot_be_read() {
        let folder = std::env::temp_dir();
        let error = read(&folder).expect_err("a folder is no file");
        assert!(error.to_string().starts_with("cannot read "), "{error}");
        let file = folder.join(format!("pgward-document-{}", std::process::id()));
        std::fs::write(&file, [0xff, 0xfe]).expect("write");
        assert!(read(&file).is_err(), "not UTF-8");
        std::fs::File::create(&file)
            .and_then(|f| f.set_len(FILE_BYTES_MAX + 1))
            .expect("a big one");
        let error = read(&file).expect_err("too big");
        assert!(error.to_string().contains("more than the 67108864"), "{error}");
        std::fs::remove_file(&file).expect("remove");
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "[a-z=\\[\\]{}\"'.#é\n\r 0-9-]{0,80}") {
            problems(&text);
        }
    }
}
