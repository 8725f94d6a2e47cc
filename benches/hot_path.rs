//! What a routing decision costs, in user instructions: framing, analysis on a cache hit, `decide`.
//!
//! Counted by valgrind's callgrind, as the difference of two run lengths, so that neither start-up
//! nor a loaded machine is in it; this program starts itself under valgrind. Nanoseconds stand
//! beside them for orientation. Exits with 1 where the budget is exceeded.
//!
//! `cargo bench --bench hot_path`, with `-- NAME` for the cases whose name contains NAME.

use std::fmt::Write;
use std::hint::black_box;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::Instant;

use pgward::route::{Block, GuardMode, Rights, Route, SessionView, TextValues, Values, decide};
use pgward::shard_map::ShardMap;
use pgward::sql::{
    Analysis, Analyzer, Catalog, Context, Declared, RelationFact, ShardFacts, lexer,
};
use pgward::wire::frontend::{
    Bind, Parse, Query, write_bind_as, write_parse, write_query, write_sync,
};
use pgward::wire::{header, peek};

#[path = "proxies/hospitals.rs"]
mod hospitals;

const VALGRIND: &str = "/usr/bin/valgrind";
/// A routing decision on a cache hit, in instructions.
const DECISION_MAX: f64 = 5_000.0;
/// Iterations of the short run; the long one has [`FACTOR`] times as many.
const SHORT: usize = 200;
const FACTOR: usize = 3;
/// Texts that differ in their literals only.
const TEXTS: usize = 64;
/// Frames over this are refused.
const FRAME_MAX: usize = 1 << 20;
/// Set for the run under valgrind.
const COUNTED: &str = "--counted";

/// One iteration of a case: the number says which text.
type Step = fn(&Subject, usize);

/// Name, step, and whether [`DECISION_MAX`] applies.
const CASES: &[(&str, Step, bool)] = &[
    ("frame a Query", frame_query, false),
    ("frame a batch of Parse, Bind, Sync", frame_batch, false),
    ("lex", lex, false),
    ("analyze, hit: literals differ each time", analyze_literals, false),
    ("analyze, hit: parameters", analyze_parameters, false),
    ("analyze, miss", analyze_miss, false),
    ("decide, literal, 1 shard", |s, n| s.decide_literal(&s.small, n), false),
    ("decide, literal, 100 shards, 50,000 hospitals", |s, n| s.decide_literal(&s.large, n), false),
    ("decide, parameter, 1 shard", |s, n| s.decide_parameter(&s.small, n), false),
    (
        "decide, parameter, 100 shards, 50,000 hospitals",
        |s, n| s.decide_parameter(&s.large, n),
        false,
    ),
    ("whole, Query, 1 shard", |s, n| s.whole_query(&s.small, n), true),
    ("whole, Query, 100 shards, 50,000 hospitals", |s, n| s.whole_query(&s.large, n), true),
    ("whole, Parse and Bind, 1 shard", |s, n| s.whole_batch(&s.small, n), true),
    (
        "whole, Parse and Bind, 100 shards, 50,000 hospitals",
        |s, n| s.whole_batch(&s.large, n),
        true,
    ),
    ("whole, Bind of a known statement, 1 shard", |s, n| s.whole_bind(&s.small, n), true),
    (
        "whole, Bind of a known statement, 100 shards, 50,000 hospitals",
        |s, n| s.whole_bind(&s.large, n),
        true,
    ),
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let is_counted = args.first().is_some_and(|arg| arg == COUNTED);
    let wanted = args.get(usize::from(is_counted)).cloned().unwrap_or_default();
    let cases: Vec<_> = CASES.iter().filter(|(name, _, _)| name.contains(&wanted)).collect();
    let subject = Subject::new();
    if is_counted {
        for (_, step, _) in cases {
            for iterations in [SHORT, SHORT, SHORT * FACTOR] {
                hot_path_measured(&subject, *step, iterations);
            }
        }
        return ExitCode::SUCCESS;
    }
    let counted = match count(&wanted, cases.len()) {
        Ok(counted) => counted,
        Err(error) => {
            println!("instructions were not counted: {error}");
            vec![f64::NAN; cases.len()]
        }
    };
    let mut is_met = true;
    println!("{:<64} {:>12} {:>9}", "case", "instructions", "ns");
    for ((name, step, is_decision), instructions) in cases.iter().zip(counted) {
        let note = match is_decision {
            true if instructions > DECISION_MAX => "  over the budget of 5,000",
            _ => "",
        };
        is_met &= note.is_empty();
        println!("{name:<64} {instructions:>12.0} {:>9.0}{note}", time(&subject, *step));
    }
    if is_met { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What callgrind dumps at its end, by name: hence the long one, and no inlining.
#[inline(never)]
fn hot_path_measured(subject: &Subject, step: Step, iterations: usize) {
    for n in 0..iterations {
        step(black_box(subject), n);
    }
}

/// Instructions of one step of each case.
fn count(wanted: &str, cases: usize) -> Result<Vec<f64>, Box<dyn std::error::Error>> {
    if !Path::new(VALGRIND).exists() {
        return Err("there is no valgrind on this machine (apt-get install valgrind)".into());
    }
    let directory = std::env::temp_dir().join(format!("pgward-hot-path-{}", std::process::id()));
    std::fs::create_dir_all(&directory)?;
    let out = directory.join("out");
    let output = Command::new(VALGRIND)
        .args(["--tool=callgrind", "--dump-after=*hot_path_measured*"])
        .arg("--zero-before=*hot_path_measured*")
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(std::env::current_exe()?)
        .args([COUNTED, wanted])
        .output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    let total = |n: usize| -> Result<f64, Box<dyn std::error::Error>> {
        let text = std::fs::read_to_string(format!("{}.{n}", out.display()))?;
        let total = text.lines().find_map(|line| line.strip_prefix("totals: "));
        Ok(total.ok_or("callgrind wrote no totals")?.trim().parse()?)
    };
    // Three dumps a case: warm-up, short, long.
    let counted = (0..cases)
        .map(|case| {
            let (short, long) = (total(3 * case + 2)?, total(3 * case + 3)?);
            Ok((long - short) / (SHORT * (FACTOR - 1)) as f64)
        })
        .collect();
    std::fs::remove_dir_all(&directory)?;
    counted
}

/// Nanoseconds of one step: best of five batches.
fn time(subject: &Subject, step: Step) -> f64 {
    let batch = |_| {
        let started = Instant::now();
        hot_path_measured(subject, step, 20 * TEXTS);
        started.elapsed().as_nanos() as f64 / (20 * TEXTS) as f64
    };
    (0..5).map(batch).fold(f64::INFINITY, f64::min)
}

/// Everything that a step needs, made once.
struct Subject {
    analyzer: Analyzer,
    catalog: Arc<Catalog>,
    rights: Rights,
    small: ShardMap,
    large: ShardMap,
    /// The same statement for different hospitals.
    texts: Vec<String>,
    queries: Vec<Vec<u8>>,
    batches: Vec<Vec<u8>>,
    /// Of the text, and of the statement with parameters.
    literals: Arc<Analysis>,
    parameters: Arc<Analysis>,
}

const PARAMETERS: &str = "SELECT id, name, mrn FROM patients WHERE hospital_id = $1 AND id = $2";

impl Subject {
    fn new() -> Self {
        let analyzer = Analyzer::new(64 << 20, 64 << 10);
        let catalog = Arc::new(catalog());
        let texts: Vec<String> = (0..TEXTS).map(text).collect();
        let context = Context {
            catalog: &catalog,
            search_path: SEARCH_PATH,
            role: "bench",
            param_types: &[],
        };
        let analyze = |text| analyzer.analyze(text, &context).expect("it is plain SQL").analysis;
        let (literals, parameters) = (analyze(texts[0].as_str()), analyze(PARAMETERS));
        Self {
            literals,
            parameters,
            small: map(1, 0),
            large: map(100, hospitals::COUNT),
            queries: texts.iter().map(|text| query(text)).collect(),
            batches: (0..TEXTS).map(batch).collect(),
            rights: Rights::default(),
            texts,
            catalog,
            analyzer,
        }
    }

    fn context(&self) -> Context<'_> {
        Context {
            catalog: &self.catalog,
            search_path: SEARCH_PATH,
            role: "bench",
            param_types: &[],
        }
    }

    fn decide(&self, map: &ShardMap, analysis: &Analysis, values: &dyn Values) {
        let session = SessionView {
            rights: &self.rights,
            hospital: None,
            transaction: None,
            pinned: None,
            temporary: None,
            block: Block::None,
            guard: GuardMode::Strict,
        };
        let route = decide(analysis, values, &session, map);
        assert!(matches!(route, Ok(Route::One { hospital: Some(_), .. })), "{route:?}");
        let _ = black_box(route);
    }

    fn decide_literal(&self, map: &ShardMap, n: usize) {
        let lexed = lexer::Lexed::new(&self.texts[n % TEXTS]);
        self.decide(map, &self.literals, &TextValues { lexed: &lexed, params: &[] });
    }

    fn decide_parameter(&self, map: &ShardMap, n: usize) {
        let bind = bind_of(&self.batches[n % TEXTS]);
        self.decide(map, &self.parameters, &BindValues(bind));
    }

    fn whole_query(&self, map: &ShardMap, n: usize) {
        let (_, body) = frame(&self.queries[n % TEXTS]);
        let sql = Query::read(body).expect("a Query").sql;
        let sql = std::str::from_utf8(sql).expect("UTF-8");
        let analyzed = self.analyzer.analyze(sql, &self.context()).expect("plain SQL");
        let values = TextValues { lexed: &analyzed.lexed, params: &[] };
        self.decide(map, &analyzed.analysis, &values);
    }

    fn whole_batch(&self, map: &ShardMap, n: usize) {
        let batch = &self.batches[n % TEXTS];
        let (_, body) = frame(batch);
        let parse = Parse::read(body).expect("a Parse");
        let sql = std::str::from_utf8(parse.sql).expect("UTF-8");
        let analyzed = self.analyzer.analyze(sql, &self.context()).expect("plain SQL");
        self.decide(map, &analyzed.analysis, &BindValues(bind_of(batch)));
    }

    fn whole_bind(&self, map: &ShardMap, n: usize) {
        self.decide_parameter(map, n);
    }
}

const SEARCH_PATH: &str = "\"$user\", public";

/// [`Values`] straight off a Bind.
struct BindValues<'a>(Bind<'a>);

impl Values for BindValues<'_> {
    fn param(&self, n: u16) -> Option<(i16, Option<&[u8]>)> {
        self.0.param(n)
    }

    fn literal(&self, _slot: u16) -> Option<std::borrow::Cow<'_, str>> {
        None
    }

    fn hint(&self) -> Result<Option<&str>, ()> {
        Ok(None)
    }
}

fn frame_query(subject: &Subject, n: usize) {
    black_box(frame(&subject.queries[n % TEXTS]));
}

fn frame_batch(subject: &Subject, n: usize) {
    let mut rest = subject.batches[n % TEXTS].as_slice();
    while let Ok(Some(header)) = header(rest, FRAME_MAX) {
        black_box(header.tag);
        rest = &rest[header.total..];
    }
}

fn lex(subject: &Subject, n: usize) {
    black_box(lexer::Lexed::new(&subject.texts[n % TEXTS]));
}

fn analyze_literals(subject: &Subject, n: usize) {
    let text = &subject.texts[n % TEXTS];
    let _ = black_box(subject.analyzer.analyze(text, &subject.context()));
}

fn analyze_parameters(subject: &Subject, _: usize) {
    let _ = black_box(subject.analyzer.analyze(PARAMETERS, &subject.context()));
}

/// A cache that is always empty: its making is in the figure, and small beside the parser.
fn analyze_miss(subject: &Subject, n: usize) {
    let analyzer = Analyzer::new(0, 64 << 10);
    let _ = black_box(analyzer.analyze(&subject.texts[n % TEXTS], &subject.context()));
}

fn frame(buf: &[u8]) -> (u8, &[u8]) {
    peek(black_box(buf), FRAME_MAX).expect("a frame").expect("a whole one")
}

/// The second message of a batch.
fn bind_of(batch: &[u8]) -> Bind<'_> {
    let parse = header(black_box(batch), FRAME_MAX).expect("a frame").expect("a whole one");
    Bind::read(frame(&batch[parse.total..]).1).expect("a Bind")
}

fn text(n: usize) -> String {
    let hospital = hospitals::id(n as u64);
    let id = 4711 * n;
    format!("SELECT id, name, mrn FROM patients WHERE hospital_id = '{hospital}' AND id = {id}")
}

fn query(text: &str) -> Vec<u8> {
    let mut out = bytes::BytesMut::new();
    write_query(&mut out, text.as_bytes());
    out.to_vec()
}

fn batch(n: usize) -> Vec<u8> {
    let mut body = vec![0; 2];
    body.extend_from_slice(&[0, 0, 0, 2]);
    for value in [hospitals::id(n as u64).to_string(), (4711 * n).to_string()] {
        body.extend_from_slice(&(value.len() as u32).to_be_bytes());
        body.extend_from_slice(value.as_bytes());
    }
    body.extend_from_slice(&[0, 0]);
    let mut out = bytes::BytesMut::new();
    write_parse(&mut out, b"", PARAMETERS.as_bytes(), std::iter::empty());
    write_bind_as(&mut out, &Bind::read(&body).expect("a Bind"), b"");
    write_sync(&mut out);
    out.to_vec()
}

/// Shards that own the buckets in turn; with `directory` hospitals, others are refused.
fn map(shards: usize, directory: u64) -> ShardMap {
    let mut text = String::from(
        "version = 1\nmodulus = 100\ndatabase = \"hospital\"\nkey = { column = \"hospital_id\" }\n",
    );
    if directory > 0 {
        text.push_str("unknown_hospital = \"reject\"\n");
    }
    for id in 0..shards {
        let buckets: Vec<String> = (id..100).step_by(shards).map(|n| n.to_string()).collect();
        let buckets = buckets.join(",");
        let _ = write!(
            text,
            "[[shard]]\nid = {id}\nregion = \"europe\"\nbuckets = \"{buckets}\"\nprimary = \"h{id}:5432\"\n"
        );
    }
    for n in 0..directory {
        let _ = write!(text, "[[hospital]]\nid = \"{}\"\n", hospitals::id(n));
    }
    match ShardMap::parse("bench", &text) {
        Ok(map) => map,
        Err(problems) => panic!("{problems}"),
    }
}

fn catalog() -> Catalog {
    let columns = [
        ("hospital_id", "uuid"),
        ("id", "bigint"),
        ("mrn", "text"),
        ("phone", "text"),
        ("email", "text"),
        ("name", "text"),
    ];
    let patients = RelationFact {
        schema: "public".into(),
        name: "patients".into(),
        kind: 'r',
        columns: columns.map(|(name, kind)| (name.into(), kind.into())).to_vec(),
        reads: vec![],
        is_rls_forced: false,
    };
    let facts = ShardFacts { relations: vec![patients], ..ShardFacts::default() };
    let declared = Declared { key_column: "hospital_id".into(), ..Declared::default() };
    Catalog::build(1, &[facts], &declared)
}
