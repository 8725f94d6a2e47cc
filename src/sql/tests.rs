//! Golden cases (`tests/golden/analyze/*.txt`) and properties of the analyzer as a whole.
//!
//! A case is the text, `----`, and what [`render`] says of it; a blank line ends it. The first line
//! may be `-- types: uuid, 25` (what Parse declared), `-- path: a, b` (search_path).

use std::fmt::Write as _;
use std::path::Path;

use proptest::prelude::*;

use super::catalog::{Declared, FunctionFact, RelationFact, ShardFacts};
use super::*;

fn relation(
    schema: &str,
    name: &str,
    kind: char,
    columns: &[&str],
    reads: &[&str],
) -> RelationFact {
    let typed = |column: &&str| match column.split_once(' ') {
        Some((name, of)) => (name.to_owned(), of.to_owned()),
        None => ((*column).to_owned(), "text".to_owned()),
    };
    RelationFact {
        schema: schema.into(),
        name: name.into(),
        kind,
        columns: columns.iter().map(typed).collect(),
        reads: reads.iter().map(|read| ("public".into(), (*read).into())).collect(),
        is_rls_forced: false,
    }
}

/// The guide's schema and some strays.
fn facts() -> ShardFacts {
    let table = |name, columns: &[&str]| relation("public", name, 'r', columns, &[]);
    ShardFacts {
        relations: vec![
            table("regions", &["id", "name"]),
            table("roles", &["id", "name"]),
            table("hospitals", &["id uuid", "region_id", "code", "name", "is_active"]),
            table("users", &["hospital_id uuid", "id", "email", "role_id"]),
            table("patients", &["hospital_id uuid", "id", "mrn", "phone", "email", "name"]),
            table("visits", &["hospital_id uuid", "id", "patient_id", "admission_date", "status"]),
            table("notes", &["id", "body"]),
            table("Odd Name", &["hospital_id uuid", "Id"]),
            relation("public", "active_patients", 'v', &["hospital_id uuid"], &["patients"]),
            relation("public", "region_names", 'v', &["name"], &["regions"]),
            relation("archive", "patients", 'r', &["hospital_id uuid", "id", "year"], &[]),
            relation("public", "patients_id_seq", 'S', &["last_value"], &[]),
        ],
        functions: vec![
            FunctionFact { schema: "public".into(), name: "count_all".into() },
            FunctionFact { schema: "public".into(), name: "safe_sum".into() },
        ],
        ..ShardFacts::default()
    }
}

fn declared() -> Declared {
    let public = |name: &str| ("public".to_owned(), name.to_owned());
    Declared {
        key_column: "hospital_id".into(),
        key_tables: vec![(public("hospitals"), "id".into())],
        reference: vec![public("regions"), public("roles")],
        safe_functions: vec!["public.safe_sum".into()],
        is_one_shard: false,
    }
}

fn catalog() -> Arc<Catalog> {
    Arc::new(Catalog::build(1, &[facts()], &declared()))
}

/// What a case's first line may set.
#[derive(Default)]
struct Settings {
    types: Vec<u32>,
    path: Option<String>,
    /// Some `=` on uuid of somebody's own exists.
    is_foreign: bool,
}

impl Settings {
    fn of(text: &str) -> Self {
        let mut settings = Self::default();
        for line in text.lines() {
            if let Some(types) = line.strip_prefix("-- types: ") {
                settings.types = types.split(", ").map(oid).collect();
            } else if let Some(path) = line.strip_prefix("-- path: ") {
                settings.path = Some(path.to_owned());
            } else if line == "-- foreign" {
                settings.is_foreign = true;
            }
        }
        settings
    }
}

fn oid(name: &str) -> u32 {
    match name {
        "uuid" => 2950,
        "text" => 25,
        "varchar" => 1043,
        "uuid[]" => 2951,
        "text[]" => 1009,
        "varchar[]" => 1015,
        "int4" => 23,
        "bytea" => 17,
        _ => 0,
    }
}

/// The facts of `text` in few words.
fn render(text: &str) -> String {
    let settings = Settings::of(text);
    let mut facts = facts();
    facts.has_foreign_uuid_equality = settings.is_foreign;
    let catalog = Arc::new(Catalog::build(1, &[facts], &declared()));
    let context = Context {
        catalog: &catalog,
        search_path: settings.path.as_deref().unwrap_or("\"$user\", public"),
        role: "app",
        param_types: &settings.types,
    };
    match Analyzer::new(1 << 20, 1 << 20).analyze(text, &context) {
        Ok(analyzed) => render_analysis(&analyzed),
        Err(Error::Syntax { message, position }) => {
            format!("error: {message} at {}\n", position.map_or("?".into(), |at| at.to_string()))
        }
        Err(error) => format!("error: {error}\n"),
    }
}

fn render_analysis(analyzed: &Analyzed<'_>) -> String {
    let mut out = String::new();
    for statement in &analyzed.analysis.statements {
        render_statement(statement, &analyzed.lexed, &mut out);
    }
    match analyzed.lexed.hint() {
        Ok(None) => {}
        Ok(Some(hint)) => writeln!(out, "hint {hint}").unwrap(),
        Err(()) => out.push_str("hints differ\n"),
    }
    if out.is_empty() { "nothing\n".into() } else { out }
}

fn render_statement(statement: &Statement, lexed: &lexer::Lexed<'_>, out: &mut String) {
    let access = match &statement.access {
        Access::Read => "read".to_owned(),
        Access::Write(why) => format!("write ({why})"),
    };
    write!(out, "{} {access}", statement.command).unwrap();
    for used in &statement.sharded {
        let keys: Vec<String> = used.keys.iter().map(|key| render_key(*key, lexed)).collect();
        write!(out, "; {}.{} ", used.relation, used.column).unwrap();
        match keys.is_empty() {
            true => out.push_str("NO KEY"),
            false => write!(out, "= {}", keys.join(" ")).unwrap(),
        }
    }
    out.push('\n');
    if let Some(what) = &statement.per_shard {
        writeln!(out, "per shard: {what}").unwrap();
    }
    if statement.effect != Effect::None {
        writeln!(out, "effect: {:?}", statement.effect).unwrap();
    }
    for problem in &statement.problems {
        writeln!(out, "{:?}: {}", problem.kind, problem.subject).unwrap();
    }
    if statement.unknown_names {
        out.push_str("unknown names\n");
    }
}

fn render_key(key: KeySource, lexed: &lexer::Lexed<'_>) -> String {
    let literal = |slot| lexed.literal(slot).expect("a key's slot has a value");
    match key {
        KeySource::Slot(slot) => format!("'{}'", literal(slot)),
        KeySource::SlotArray(slot) => format!("any '{}'", literal(slot)),
        KeySource::Param(n, ParamKind::Uuid) => format!("${n}"),
        KeySource::Param(n, ParamKind::Text) => format!("${n} text"),
        KeySource::ParamArray(n, ParamKind::Uuid) => format!("any ${n}"),
        KeySource::ParamArray(n, ParamKind::Text) => format!("any ${n} text"),
    }
}

/// (text, expected) of each case; comments start with `#`.
fn cases(file: &str) -> Vec<(String, String)> {
    let blocks = file.split("\n\n").map(str::trim).filter(|block| block.contains("----"));
    let strip = |block: &str| -> String {
        block.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>().join("\n")
    };
    blocks
        .map(|block| {
            let block = strip(block);
            let (text, expected) = block.split_once("\n----").expect("a case has ----");
            (text.to_owned(), format!("{}\n", expected.trim()))
        })
        .collect()
}

fn golden_files() -> Vec<std::path::PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/analyze");
    let mut files: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn golden_texts() -> Vec<String> {
    let read = |path| std::fs::read_to_string(path).unwrap();
    golden_files().into_iter().flat_map(|path| cases(&read(path))).map(|(text, _)| text).collect()
}

#[test]
fn golden() {
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let mut wrong = String::new();
    for path in golden_files() {
        let file = std::fs::read_to_string(&path).unwrap();
        let mut updated = String::new();
        for block in file.trim_end().split("\n\n") {
            let is_case = block.contains("\n----");
            if !updated.is_empty() {
                updated.push_str("\n\n");
            }
            if !is_case {
                updated.push_str(block.trim_end());
                continue;
            }
            let (text, expected) = block.split_once("\n----").unwrap();
            let sql: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
            let got = render(&sql.join("\n"));
            if got.trim() != expected.trim() {
                writeln!(
                    wrong,
                    "{}\n{text}\n---- want\n{}\n---- got\n{got}",
                    path.display(),
                    expected.trim()
                )
                .unwrap();
            }
            write!(updated, "{text}\n----\n{}", got.trim_end()).unwrap();
        }
        updated.push('\n');
        if update {
            std::fs::write(&path, updated).unwrap();
        }
    }
    assert!(update || wrong.is_empty(), "{wrong}");
}
