//! What was done, seen and compared, counted: a checker that compared nothing has shown nothing.

use std::collections::BTreeMap;
use std::fmt;

/// Counts by section and name.
#[derive(Debug, Default)]
pub struct Tally(BTreeMap<(&'static str, String), u64>);

/// Sections, in the order in which they are told.
pub const STATEMENTS: &str = "statements compared, by kind";
pub const REFUSED: &str = "refusals that had to come, by kind";
pub const COMPARED: &str = "compared";
pub const ERRORS: &str = "errors that the oracle had too, by SQLSTATE";
pub const FAULTS: &str = "faults injected";
pub const SEEN: &str = "errors that faults excuse, by SQLSTATE";
pub const UNKNOWN: &str = "outcomes that were unknown";
const SECTIONS: [&str; 7] = [STATEMENTS, REFUSED, COMPARED, ERRORS, FAULTS, SEEN, UNKNOWN];

impl Tally {
    pub fn add(&mut self, section: &'static str, name: impl Into<String>, count: u64) {
        *self.0.entry((section, name.into())).or_default() += count;
    }

    pub fn take_in(&mut self, other: Self) {
        for ((section, name), count) in other.0 {
            self.add(section, name, count);
        }
    }

    pub fn get(&self, section: &'static str, name: &str) -> u64 {
        self.0.get(&(section, name.to_owned())).copied().unwrap_or_default()
    }

    pub fn sum(&self, section: &'static str) -> u64 {
        self.of(section).map(|(_, count)| count).sum()
    }

    fn of(&self, section: &'static str) -> impl Iterator<Item = (&str, u64)> {
        let of_it = self.0.iter().filter(move |((of, _), _)| *of == section);
        of_it.map(|((_, name), count)| (name.as_str(), *count))
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for section in SECTIONS {
            let told: Vec<String> =
                self.of(section).map(|(name, count)| format!("{name} {count}")).collect();
            writeln!(f, "  {section} ({}): {}", self.sum(section), told.join(", "))?;
        }
        Ok(())
    }
}
