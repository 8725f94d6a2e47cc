//! The house rules that a machine can check: `src/ARCHITECTURE.md` is the source of truth.
//!
//! Imports between rooms, pure rooms, one place per outside dependency, one place for refusals, a header
//! in each file, no statics, no leftovers. A finding names file and line.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// One source file, without its tests.
struct Source {
    path: String,
    room: String,
    /// (line number, code without its comment)
    lines: Vec<(usize, String)>,
    header: bool,
}

/// What the table of rooms says.
struct Room {
    may_import: BTreeSet<String>,
    pure: bool,
}

#[test]
fn rooms_import_only_what_the_table_allows() {
    let rooms = rooms();
    let mut findings = Vec::new();
    for source in sources("src") {
        let Some(room) = rooms.get(&source.room) else {
            findings.push(format!("{}: room `{}` has no row", source.path, source.room));
            continue;
        };
        for (imported, line) in imports(&source) {
            if imported != source.room && !room.may_import.contains(&imported) {
                findings.push(format!("{}:{line}: imports `{imported}`", source.path));
            }
        }
    }
    report("src/ARCHITECTURE.md does not allow", findings);
}

#[test]
fn each_row_is_a_room() {
    let found: BTreeSet<String> = sources("src").into_iter().map(|source| source.room).collect();
    let named: BTreeSet<String> = rooms().into_keys().collect();
    assert_eq!(named, found, "rooms of the table, rooms of src/");
}

#[test]
fn pure_rooms_have_no_effects() {
    let effects =
        ["tokio::", "Instant::now", "SystemTime::now", "std::fs", "std::net", "rand::", "std::env"];
    let rooms = rooms();
    let mut findings = Vec::new();
    for source in sources("src") {
        if rooms.get(&source.room).is_some_and(|room| room.pure) {
            findings.extend(mentions(&source, &effects));
        }
    }
    report("a pure room names", findings);
}

#[test]
fn each_outside_dependency_has_one_place() {
    let mut findings = Vec::new();
    for row in table("| dependency | place |") {
        let [dependency, places] = &row[..] else { panic!("two columns: {row:?}") };
        let dependency = unquote(dependency);
        let places: Vec<String> = places.split(',').map(unquote).collect();
        for source in sources("src") {
            let file = source.path.trim_start_matches("src/");
            if !places.iter().any(|place| *place == source.room || place == file) {
                findings.extend(mentions(&source, &[&format!("{dependency}::")]));
            }
        }
    }
    report("in another place than its own", findings);
}

/// Where pgward's own errors get their words.
const REFUSALS: &str = "src/route/refusals/";

#[test]
fn refusals_have_one_place() {
    let builders =
        ["ErrorReply::error(", "ErrorReply::fatal(", "Refusal::error(", "Refusal::fatal("];
    let elsewhere = sources("src").into_iter().filter(|source| !source.path.starts_with(REFUSALS));
    let findings = elsewhere.flat_map(|source| mentions(&source, &builders)).collect();
    report("words of an error outside of src/route/refusals", findings);
}

/// `pub` hides from the compiler that nobody calls them.
#[test]
fn each_refusal_has_a_caller() {
    let (refusals, callers): (Vec<Source>, Vec<Source>) =
        sources("src").into_iter().partition(|source| source.path.starts_with(REFUSALS));
    let lines = callers.iter().flat_map(|source| &source.lines);
    let called: BTreeSet<String> =
        lines.flat_map(|(_, text)| text.split("refusals::").skip(1)).map(first_word).collect();
    let mut findings = Vec::new();
    for source in &refusals {
        for (line, text) in &source.lines {
            if let Some(name) = text.strip_prefix("pub fn ").map(first_word)
                && !called.contains(&name)
            {
                findings.push(format!("{}:{line}: {name}", source.path));
            }
        }
    }
    report("nobody calls", findings);
}

#[test]
fn each_file_says_what_it_owns() {
    let all = ["src", "tests", "benches"].into_iter().flat_map(sources);
    let without = all.filter(|source| !source.header);
    report("no `//!` header", without.map(|source| source.path).collect());
}

#[test]
fn nothing_is_global_and_nothing_is_left_over() {
    let mut findings = Vec::new();
    for source in sources("src") {
        findings.extend(mentions(&source, &["dbg!(", "todo!(", "unimplemented!("]));
        // A thread's free list of buffers is the one exception: no lock, and nothing in it lives.
        if source.path != "src/net/mod.rs" {
            findings.extend(mentions(&source, &["static ", "thread_local!"]));
        }
    }
    report("not in the product", findings);
}

#[test]
fn no_file_names_a_machine() {
    // In pieces, so that this file does not name one.
    let paths = ["/ro", "/ho", "/wo", "/Us"].map(String::from);
    let rest = ["ot/", "me/", "rk/", "ers/"];
    let needles: Vec<String> = paths.iter().zip(rest).map(|(a, b)| format!("{a}{b}")).collect();
    let mut findings = Vec::new();
    for directory in ["src", "tests", "benches", "config", "docker", "shard-maps", ".ci", "."] {
        for path in files(&Path::new(ROOT).join(directory), directory != ".") {
            // A worktree's `.git` is a file, and not ours to judge.
            let Ok(text) = std::fs::read_to_string(&path) else { continue };
            if path.ends_with(".git") {
                continue;
            }
            for (number, line) in (1..).zip(text.lines()) {
                if needles.iter().any(|needle| names_path(line, needle)) {
                    findings.push(format!("{}:{number}: {}", path.display(), line.trim()));
                }
            }
        }
    }
    report("a path of one machine", findings);
}

/// `needle` at the start of a path, not in the middle of one.
fn names_path(line: &str, needle: &str) -> bool {
    line.match_indices(needle).any(|(at, _)| {
        !line[..at].ends_with(|before: char| before.is_alphanumeric() || "-_.}/".contains(before))
    })
}

fn report(what: &str, findings: Vec<String>) {
    assert!(findings.is_empty(), "{what}:\n{}", findings.join("\n"));
}

fn rooms() -> BTreeMap<String, Room> {
    let mut rooms = BTreeMap::new();
    for row in table("| room | may import | pure |") {
        let [name, imports, pure] = &row[..] else { panic!("three columns: {row:?}") };
        let may_import = match imports.as_str() {
            "nothing" => BTreeSet::new(),
            "all above" => rooms.keys().cloned().collect(),
            names => names.split(',').map(unquote).collect(),
        };
        rooms.insert(unquote(name), Room { may_import, pure: pure == "yes" });
    }
    assert!(rooms.len() > 10, "the table was not found");
    rooms
}

/// The rows of the table that begins with `header`.
fn table(header: &str) -> Vec<Vec<String>> {
    let text = std::fs::read_to_string(Path::new(ROOT).join("src/ARCHITECTURE.md")).expect("doc");
    let rows: Vec<Vec<String>> = text
        .lines()
        .skip_while(|line| *line != header)
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .map(|line| {
            let cells = line.trim_start_matches('|').trim_end().trim_end_matches('|');
            cells.split('|').map(|cell| cell.trim().to_owned()).collect()
        })
        .collect();
    assert!(!rows.is_empty(), "no table {header}");
    rows
}

fn unquote(cell: &str) -> String {
    cell.trim().trim_matches('`').to_owned()
}

fn files(directory: &Path, deep: bool) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let mut found = Vec::new();
    for path in entries.map(|entry| entry.expect("an entry").path()) {
        if path.is_file() {
            found.push(path);
        } else if deep {
            found.extend(files(&path, true));
        }
    }
    found.sort();
    found
}

fn sources(directory: &str) -> Vec<Source> {
    let all = files(&Path::new(ROOT).join(directory), true);
    let rust = all.into_iter().filter(|path| path.extension().is_some_and(|ext| ext == "rs"));
    let product = rust.filter(|path| directory != "src" || !path.ends_with("tests.rs"));
    // `main` and `lib` are not rooms: they name all of them.
    let in_rooms = product.filter(|path| !path.ends_with("main.rs") && !path.ends_with("lib.rs"));
    in_rooms.map(read_source).collect()
}

fn read_source(file: PathBuf) -> Source {
    let path = file.strip_prefix(ROOT).expect("below the root").display().to_string();
    let text = std::fs::read_to_string(&file).expect("UTF-8");
    let below = path.strip_prefix("src/").unwrap_or(&path);
    let room = below.split('/').next().expect("a name").trim_end_matches(".rs").to_owned();
    // A `mod tests` with a body is at the end of a file, by convention; one without hides nothing.
    let code = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let lines = (1..)
        .zip(code.lines())
        .map(|(number, line)| (number, line.split("//").next().unwrap_or_default().to_owned()))
        .collect();
    Source { header: text.starts_with("//!"), path, room, lines }
}

/// Rooms named by `crate::...`, with the line where.
fn imports(source: &Source) -> Vec<(String, usize)> {
    let mut found = Vec::new();
    for (index, (line, text)) in source.lines.iter().enumerate() {
        for (at, _) in text.match_indices("crate::") {
            let rest = &text[at + "crate::".len()..];
            if let Some(group) = rest.strip_prefix('{') {
                let more = source.lines[index + 1..].iter().map(|(_, text)| text.as_str());
                let names = group_names(std::iter::once(group).chain(more));
                found.extend(names.into_iter().map(|name| (name, *line)));
            } else {
                found.push((first_word(rest), *line));
            }
        }
    }
    found.retain(|(name, _)| !name.is_empty());
    found
}

/// The names at the first level of `{a::b, c::{d, e}}`, from behind its opening brace.
fn group_names<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<String> {
    let (mut names, mut depth, mut fresh) = (Vec::new(), 1, true);
    for line in lines {
        for (at, letter) in line.char_indices() {
            match letter {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 1 => fresh = true,
                _ if fresh && letter.is_alphabetic() => {
                    names.push(first_word(&line[at..]));
                    fresh = false;
                }
                _ => {}
            }
            if depth == 0 {
                return names;
            }
        }
    }
    names
}

fn first_word(text: &str) -> String {
    text.chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').collect()
}

/// Lines of code that name one of `needles` as a word of its own.
fn mentions(source: &Source, needles: &[&str]) -> Vec<String> {
    let is_word = |line: &str, needle: &str| {
        line.match_indices(needle).any(|(at, _)| {
            !line[..at].ends_with(|before: char| before.is_alphanumeric() || "_'".contains(before))
        })
    };
    let hit = |line: &str| needles.iter().any(|needle| is_word(line, needle));
    let lines = source.lines.iter().filter(|(_, line)| hit(line));
    lines.map(|(number, line)| format!("{}:{number}: {}", source.path, line.trim())).collect()
}

#[test]
fn the_reader_of_imports_reads_them() {
    let text = "use crate::{\n    sql::{A, b},\n    route, };\nuse crate::wire::X; fn f(x: crate::net::Y) {}";
    let lines = (1..).zip(text.lines()).map(|(number, line)| (number, line.to_owned())).collect();
    let source = Source { path: String::new(), room: String::new(), lines, header: true };
    let names: Vec<String> = imports(&source).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["sql", "route", "wire", "net"]);
}
