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
        if update && updated != file {
            std::fs::write(&path, updated).unwrap();
        }
    }
    assert!(update || wrong.is_empty(), "{wrong}");
}

/// `text` with other values where the cache key leaves them out.
fn with_other_values(text: &str, seed: u32) -> String {
    let lexed = lexer::Lexed::new(text);
    let mut out = String::new();
    let mut rest = text;
    for slot in 0..lexed.slot_count() {
        let raw = std::str::from_utf8(lexed.raw(slot as u16)).unwrap();
        let at = rest.find(raw).expect("slots are in order");
        out.push_str(&rest[..at]);
        let n = seed.wrapping_mul(31).wrapping_add(slot as u32) % 90;
        match lexed.is_left_out(slot as u16) {
            true if raw.starts_with('\'') => write!(out, "'v{n}'").unwrap(),
            true if raw.contains(['.', 'e', 'E']) => write!(out, "{n}.5").unwrap(),
            true => write!(out, "{n}").unwrap(),
            false => out.push_str(raw),
        }
        rest = &rest[at + raw.len()..];
    }
    out.push_str(rest);
    out
}

fn analyze(
    analyzer: &Analyzer,
    catalog: &Arc<Catalog>,
    text: &str,
) -> Result<Arc<Analysis>, Error> {
    let types = Settings::of(text).types;
    let context = Context { catalog, search_path: "public", role: "app", param_types: &types };
    analyzer.analyze(text, &context).map(|analyzed| analyzed.analysis)
}

#[test]
fn a_cached_analysis_is_what_a_fresh_one_would_be() {
    let catalog = catalog();
    let warm = Analyzer::new(64 << 20, 1 << 20);
    let mut hits = 0;
    for text in golden_texts() {
        let first = analyze(&warm, &catalog, &text);
        for seed in 0..4 {
            let text = with_other_values(&text, seed);
            let cached = analyze(&warm, &catalog, &text);
            let fresh = analyze(&Analyzer::new(1 << 20, 1 << 20), &catalog, &text);
            assert_eq!(cached, fresh, "{text}");
            hits += usize::from(matches!((&first, &cached), (Ok(a), Ok(b)) if Arc::ptr_eq(a, b)));
        }
    }
    // Most texts differ in values that mean nothing.
    assert!(hits > 1000, "{hits} hits");
}

#[test]
fn the_key_is_all_that_decides_the_meaning() {
    let analyzer = Analyzer::new(1 << 20, 1 << 20);
    let text = "SELECT * FROM patients WHERE hospital_id = $1";
    let keys = |catalog: &Arc<Catalog>, search_path, role, types: &[u32]| {
        let context = Context { catalog, search_path, role, param_types: types };
        let analysis = analyzer.analyze(text, &context).unwrap().analysis;
        analysis.statements[0].sharded.iter().map(|used| used.keys.clone()).collect::<Vec<_>>()
    };
    let old = catalog();
    let new = Arc::new(Catalog::build(2, &[ShardFacts::default()], &declared()));
    let uuid = vec![vec![KeySource::Param(1, ParamKind::Uuid)]];
    assert_eq!(keys(&old, "public", "app", &[]), uuid);
    assert_eq!(keys(&old, "public", "app", &[25]), [[KeySource::Param(1, ParamKind::Text)]]);
    assert_eq!(keys(&old, "public", "app", &[23]), [[]]);
    assert!(keys(&new, "public", "app", &[]).is_empty());
    assert!(keys(&old, "nowhere", "app", &[]).is_empty());
    assert!(keys(&old, "\"$user\"", "app", &[]).is_empty());
    assert_eq!(keys(&old, "\"$user\"", "public", &[]), uuid);
    assert_eq!(keys(&old, "public", "app", &[]), uuid);
}

#[test]
fn values_that_the_analysis_reads_are_part_of_the_key() {
    let analyzer = Analyzer::new(1 << 20, 1 << 20);
    let catalog = catalog();
    let of = |text: &str| analyze(&analyzer, &catalog, text).unwrap();
    let a = of("SELECT set_config('a.b', 'x', true)");
    let b = of("SELECT set_config('a.c', 'x', true)");
    let c = of("SELECT set_config('a.b', 'y', true)");
    assert_ne!(a, b);
    assert!(Arc::ptr_eq(&a, &c));
    assert!(Arc::ptr_eq(&b, &of("SELECT set_config('a.c', 'z', true)")));
    // A length is grammar to the parser: any value might matter.
    let d = of("SELECT 'abc'::varchar(2)");
    assert!(Arc::ptr_eq(&d, &of("SELECT 'def'::varchar(2)")));
    assert!(!Arc::ptr_eq(&d, &of("SELECT 'abc'::varchar(3)")));
    assert!(Arc::ptr_eq(&of("SELECT 1 LIMIT -5"), &of("SELECT 2 LIMIT -6")));
}

#[test]
fn long_texts_are_not_cached_and_slots_still_count() {
    let analyzer = Analyzer::new(1 << 20, 10);
    let catalog = catalog();
    let text = "SELECT * FROM patients WHERE hospital_id = 'a'";
    let (a, b) = (analyze(&analyzer, &catalog, text), analyze(&analyzer, &catalog, text));
    assert_eq!(a, b);
    assert!(!Arc::ptr_eq(&a.unwrap(), &b.unwrap()));
}

#[test]
fn deep_texts_are_refused_and_do_no_harm() {
    let catalog = catalog();
    let analyzer = Analyzer::new(1 << 20, 64 << 20);
    let n = 50_000;
    let nested = |open: &str, inner: &str, close: &str, n: usize| {
        format!("SELECT {}{inner}{}", open.repeat(n), close.repeat(n))
    };
    let texts = [
        nested("(", "1", ")", n),
        nested("1+", "1", "", n),
        nested("NOT ", "true", "", n),
        nested("- ", "a", "", n),
        nested("(SELECT ", "1", ")", 2000),
        nested("lower(", "'a'", ")", n),
        nested("ARRAY[", "1", "]", n),
        nested("CASE WHEN true THEN ", "1", " END", n),
        nested("", "1", "::text", n),
        nested("", "a", "[1]", n),
        nested("(SELECT * FROM (", "SELECT 1", ") x)", 2000),
        format!("SELECT 1 WHERE {}true", "true AND (false OR ".repeat(2000) + &")".repeat(0)),
        format!("SELECT * FROM a{}", " JOIN a ON true".repeat(5000)),
        format!("SELECT 1{}", " UNION SELECT 1".repeat(n)),
        format!("{}SELECT 1{}", "(".repeat(3000), ")".repeat(3000)),
        format!("{} SELECT 1", "WITH a AS (".repeat(3000)),
        format!("EXPLAIN {}SELECT 1", "EXPLAIN ".repeat(3000)),
    ];
    for text in texts {
        let _ = analyze(&analyzer, &catalog, &text);
    }
    let deep = format!("SELECT {}a", "- ".repeat(5000));
    assert_eq!(analyze(&analyzer, &catalog, &deep), Err(Error::TooComplex));
    let many = format!("SELECT * FROM patients a{}", ", patients".repeat(2000));
    assert_eq!(analyze(&analyzer, &catalog, &many), Err(Error::TooComplex));
}

#[test]
fn comments_that_the_scanner_squares_are_refused() {
    let catalog = catalog();
    let analyzer = Analyzer::new(1 << 20, 1 << 20);
    for unit in ["/**/", "/*+*/", "*/*"] {
        let text = format!("SELECT 1 {}", unit.repeat(200_000));
        assert_eq!(analyze(&analyzer, &catalog, &text), Err(Error::TooComplex), "{unit}");
    }
    let nested = format!("SELECT 1 {}{}", "/*".repeat(100_000), "*/".repeat(100_000));
    assert_eq!(analyze(&analyzer, &catalog, &nested), Err(Error::TooComplex));
    let many = format!("SELECT 1 {}", ", 1 /* a comment */".repeat(20_000));
    assert!(analyze(&analyzer, &catalog, &many).is_ok());
}

#[test]
fn comments_in_a_row_do_not_overflow_the_stack() {
    let catalog = catalog();
    // Without a cache, which has one key for all comments.
    let analyzer = Analyzer::new(1 << 20, 0);
    for head in ["", "SELECT 1 ", "SELECT U&'a' "] {
        for comment in ["/* */ ", "--\n", "-- x\r/* y */ "] {
            let text = format!("{head}{}", comment.repeat(200_000));
            let got = analyze(&analyzer, &catalog, &text);
            assert_eq!(got, Err(Error::TooComplex), "{head}{comment}");
            let text = format!("{head}{}", comment.repeat(4_000));
            assert!(analyze(&analyzer, &catalog, &text).is_ok(), "{head}{comment}");
        }
    }
}

#[test]
fn large_texts_of_ordinary_shape_pass() {
    let catalog = catalog();
    let analyzer = Analyzer::new(1 << 20, 64 << 20);
    let rows = vec!["('a', 1, 'x')"; 5000].join(", ");
    let text = format!("INSERT INTO patients (hospital_id, id, name) VALUES {rows}");
    let analysis = analyze(&analyzer, &catalog, &text).unwrap();
    assert_eq!(analysis.statements[0].sharded[0].keys.len(), 5000);
    let arms = vec!["SELECT id FROM patients WHERE hospital_id = 'a'"; 500].join(" UNION ALL ");
    let analysis = analyze(&analyzer, &catalog, &arms).unwrap();
    assert!(analysis.statements[0].sharded.iter().all(|used| used.keys.len() == 1));
    let list = vec!["'a'"; 20_000].join(",");
    let text = format!("SELECT id FROM patients WHERE hospital_id IN ({list})");
    assert_eq!(
        analyze(&analyzer, &catalog, &text).unwrap().statements[0].sharded[0].keys.len(),
        20_000
    );
    let text = format!("SELECT {}1", "1 + ".repeat(900));
    assert!(analyze(&analyzer, &catalog, &text).is_ok());
}

fn any_golden_text() -> impl Strategy<Value = String> {
    proptest::sample::select(golden_texts())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever is sent, the answer is facts or an error.
    #[test]
    fn any_text(text in "[ -~]{0,60}") {
        let _ = render(&text);
    }

    /// Texts that are nearly right: pieces of right ones, cut and joined.
    #[test]
    fn any_mutation(
        a in any_golden_text(),
        b in any_golden_text(),
        cut in 0.0..1.0_f64,
        resume in 0.0..1.0_f64,
        insert in "[ '\"$();,*=-]{0,3}",
    ) {
        let at = |text: &str, part: f64| {
            let mut at = (text.len() as f64 * part) as usize;
            while !text.is_char_boundary(at) {
                at -= 1;
            }
            at
        };
        let text = format!("{}{insert}{}", &a[..at(&a, cut)], &b[at(&b, resume)..]);
        let _ = render(&text);
    }

    /// The same, cut between words, which more often parses.
    #[test]
    fn any_shuffle(a in any_golden_text(), b in any_golden_text(), cut in 0..40_usize, resume in 0..40_usize) {
        let head: Vec<&str> = a.split(' ').take(cut).collect();
        let tail: Vec<&str> = b.split(' ').skip(resume).collect();
        let text = format!("{} {}", head.join(" "), tail.join(" "));
        let warm = Analyzer::new(1 << 20, 1 << 20);
        let catalog = catalog();
        let first = analyze(&warm, &catalog, &text);
        prop_assert_eq!(&first, &analyze(&warm, &catalog, &text));
        let other = with_other_values(&text, 7);
        let cached = analyze(&warm, &catalog, &other);
        prop_assert_eq!(cached, analyze(&Analyzer::new(1 << 20, 1 << 20), &catalog, &other));
    }
}
