//! Who a certificate's name may log in as: maps as in `pg_ident.conf`.
//!
//! Lines of `map system-name user`. The system name is literal, or a regular expression behind a
//! slash whose first group may be used as `\1` in the user; a user `all` is any. As in Postgres an
//! expression matches anywhere in the name unless it says `^` and `$`. Unlike there its syntax is that
//! of the regex crate, which needs linear time whatever the name. Pure.

use std::collections::HashMap;

use regex::{Regex, RegexBuilder};

use super::tokens::{self, Line, Token};
use crate::document::{Problems, Report};

/// Memory of one compiled expression, in bytes.
const REGEX_BYTES_MAX: usize = 1 << 20;
/// Longest system name that an expression is tried on; names in certificates have some 60 bytes.
const NAME_BYTES_MAX: usize = 4096;

/// The maps of a file.
#[derive(Debug, Clone, Default)]
pub struct Maps(HashMap<String, Vec<Entry>>);

#[derive(Debug, Clone)]
struct Entry {
    system: System,
    user: User,
}

#[derive(Debug, Clone)]
enum System {
    Literal(String),
    Pattern(Box<Regex>),
}

#[derive(Debug, Clone)]
enum User {
    All,
    /// With `\1` where the pattern's first group goes.
    Name(String),
}

impl Maps {
    /// Reads `text`, called `file` in problems.
    pub fn parse(file: &str, text: &str) -> Result<Self, Problems> {
        let report = Report::new(file, text);
        let mut maps: HashMap<String, Vec<Entry>> = HashMap::new();
        for line in tokens::lines(&report, text) {
            if let Some((map, entry)) = entry(&report, &line) {
                maps.entry(map).or_default().push(entry);
            }
        }
        report.finish(Self(maps))
    }

    /// There is a map of that name.
    pub fn has(&self, map: &str) -> bool {
        self.0.contains_key(map)
    }

    /// Whether `map` lets the bearer of the name `system` log in as `user`.
    pub fn allow(&self, map: &str, system: &str, user: &str) -> bool {
        let entries = self.0.get(map).map(Vec::as_slice).unwrap_or_default();
        entries.iter().any(|entry| entry.allows(system, user))
    }
}

impl Entry {
    fn allows(&self, system: &str, user: &str) -> bool {
        let group = match &self.system {
            System::Literal(literal) if literal == system => None,
            System::Literal(_) => return false,
            System::Pattern(_) if system.len() > NAME_BYTES_MAX => return false,
            System::Pattern(pattern) => match pattern.captures(system) {
                Some(found) => Some(found.get(1).map_or("", |group| group.as_str()).to_owned()),
                None => return false,
            },
        };
        match (&self.user, group) {
            (User::All, _) => true,
            (User::Name(name), None) => name == user,
            // An empty group would leave a name that the expression did not mean.
            (User::Name(name), Some(group)) if name.contains("\\1") => {
                !group.is_empty() && name.replacen("\\1", &group, 1) == user
            }
            (User::Name(name), Some(_)) => name == user,
        }
    }
}

fn entry(report: &Report<'_>, line: &Line) -> Option<(String, Entry)> {
    let wrong = |at: usize, what: &str| report.at(&(at..at), what);
    let first = line[0][0].at;
    if let Some(list) = line.iter().find(|field| field.len() != 1) {
        wrong(list[0].at, "lists are not allowed here");
        return None;
    }
    let tokens: Vec<&Token> = line.iter().map(|field| &field[0]).collect();
    let [map, system, user] = tokens[..] else {
        wrong(first, "a line has three words: map, system name, user");
        return None;
    };
    for token in [map, system, user] {
        if token.text.starts_with('@') && !token.is_quoted {
            wrong(token.at, "files by @ are not supported here");
            return None;
        }
    }
    let system = match system.text.strip_prefix('/') {
        Some(pattern) if !system.is_quoted || !pattern.is_empty() => {
            System::Pattern(Box::new(pattern_of(report, system.at, pattern)?))
        }
        _ => System::Literal(system.text.clone()),
    };
    let user = match user.text.as_str() {
        _ if user.is("all") => User::All,
        name if !user.is_quoted && (name.starts_with('+') || name.starts_with('/')) => {
            wrong(user.at, "groups and expressions are not supported as user");
            return None;
        }
        name if name.contains("\\1") => {
            let has_group =
                matches!(&system, System::Pattern(pattern) if pattern.captures_len() > 1);
            if !has_group {
                wrong(user.at, "`\\1` needs an expression with a (group)");
                return None;
            }
            User::Name(name.to_owned())
        }
        name => User::Name(name.to_owned()),
    };
    Some((map.text.clone(), Entry { system, user }))
}

fn pattern_of(report: &Report<'_>, at: usize, pattern: &str) -> Option<Regex> {
    let built = RegexBuilder::new(pattern).size_limit(REGEX_BYTES_MAX).build();
    if built.is_err() {
        report.at(&(at..at), "this regular expression can't be read, or is too large");
    }
    built.ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAPS: &str = r#"
# map   system                      user
staff   anna                        app
staff   "Berta Blau"                ward7
mail    /^(.*)@hospital\.example$   \1
mail    /^root@                     admin
open    /example                    all
"#;

    #[test]
    fn names_log_in_as_their_map_says() {
        let maps = Maps::parse("ident", MAPS).unwrap();
        for (map, system, user, want) in [
            ("staff", "anna", "app", true),
            ("staff", "anna", "ward7", false),
            ("staff", "Anna", "app", false),
            ("staff", "Berta Blau", "ward7", true),
            ("mail", "anna@hospital.example", "anna", true),
            ("mail", "anna@hospital.example", "berta", false),
            ("mail", "anna@hospital.example.evil", "anna", false),
            ("mail", "@hospital.example", "", false),
            ("mail", "root@anywhere", "admin", true),
            ("open", "an example of anybody", "whoever", true),
            ("none", "anna", "app", false),
        ] {
            assert_eq!(maps.allow(map, system, user), want, "{map} {system} {user}");
        }
        assert!(!maps.allow("open", &"example".repeat(1000), "x"), "too long to be tried");
        assert!(maps.has("staff") && !maps.has("none"));
    }

    #[test]
    fn all_problems_come_at_once() {
        let text = "a b\nm s,t u\nm /( u\nm s \\1\nm /x \\1\nm s +g\nm s /p\n@f s u\nm s \"+g\"\n\
                    m /.{500}{500} u\n";
        let problems = Maps::parse("ident", text).unwrap_err().to_string();
        let want = [
            "ident:1:1: a line has three words: map, system name, user",
            "ident:2:3: lists are not allowed here",
            "ident:3:3: this regular expression can't be read, or is too large",
            "ident:4:5: `\\1` needs an expression with a (group)",
            "ident:5:6: `\\1` needs an expression with a (group)",
            "ident:6:5: groups and expressions are not supported as user",
            "ident:7:5: groups and expressions are not supported as user",
            "ident:8:1: files by @ are not supported here",
            "ident:10:3: this regular expression can't be read, or is too large",
        ];
        assert_eq!(problems, want.join("\n"));
    }

    proptest! {
        #[test]
        fn any_text_is_maps_or_has_a_problem(
            text in "(m [/a-z()*\\\\.]{0,9} [a-z\\\\1]{0,5}\n){0,3}\\PC{0,20}",
            name in "\\PC{0,20}",
        ) {
            match Maps::parse("ident", &text) {
                Ok(maps) => drop(maps.allow("m", &name, "user")),
                Err(problems) => prop_assert!(!problems.list.is_empty()),
            }
        }
    }
}
