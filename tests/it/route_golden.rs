//! Where each statement goes, as golden tables: `tests/golden/route/*.txt`.
//!
//! A file is blocks of input, `----` and expected output, split by blank lines; lines that begin
//! with `#` are notes. `UPDATE_GOLDEN=1` rewrites what is expected. In the input, `H42` is the id of
//! hospital 42, whose bucket is 42. A line `session: ...` holds until the next one, a line
//! `params: ...` for its block; see [`Setting`] and [`Param`] for their words. The tables are those
//! of `config/schema.sql` and `tests/golden/route/schema.sql`.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use pgward::route::{
    Block, Bound, CrossHospital, GuardMode, Hospitals, Refusal, Rights, Role, Route, SessionView,
    TemporaryTables, TextValues, decide, refuse_text,
};
use pgward::shard_map::{HospitalId, ShardMap};
use pgward::sql::{Analyzer, Catalog, Context, Declared, schema_facts};

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// Compares `got` with the golden file `name`, or writes it.
pub(crate) fn check_file(name: &str, got: &str) {
    let path = golden(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, got).expect("the golden file");
        return;
    }
    let want = std::fs::read_to_string(&path).unwrap_or_default();
    let differing = got.lines().zip(want.lines()).find(|(got, want)| got != want);
    assert!(got == want, "{name}: first difference {differing:#?} (UPDATE_GOLDEN=1 rewrites)");
}

/// The lines of a reply as psql shows them.
pub(crate) fn reply_lines(reply: &Refusal) -> String {
    let mut text = format!("{} {}: {}", reply.severity, reply.sqlstate, reply.message);
    if let Some(position) = reply.position {
        write!(text, " (position {position})").expect("a String");
    }
    for (name, value) in [("DETAIL", &reply.detail), ("HINT", &reply.hint)] {
        if let Some(value) = value {
            write!(text, "\n{name}: {value}").expect("a String");
        }
    }
    text
}

fn hospital(n: &str) -> HospitalId {
    let n: u32 = n.parse().expect("a hospital's number");
    HospitalId::parse(&format!("{n:032x}")).expect("a hospital")
}

/// `H42` becomes the id of hospital 42.
fn expand(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('H') {
        let digits = rest[at + 1..].bytes().take_while(u8::is_ascii_digit).count();
        let is_word = rest[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let (head, tail) = rest.split_at(at + 1);
        if digits == 0 || is_word {
            out.push_str(head);
            rest = tail;
        } else {
            out.push_str(&head[..at]);
            out.push_str(&hospital(&tail[..digits]).to_string());
            rest = &tail[digits..];
        }
    }
    out + rest
}

/// A session line: `guard=route map=4 login=1,2 hospital=1 txn=1 held=replica block=rw cross=read`,
/// or `pinned=1 temp=t,u`: on a server that it keeps, with these temporary tables.
/// `map=reject` knows only hospitals 1 and 2.
struct Setting {
    guard: GuardMode,
    map: ShardMap,
    rights: Rights,
    hospital: Option<HospitalId>,
    transaction: Option<HospitalId>,
    held: Role,
    block: Block,
    pinned: Option<HospitalId>,
    temporary: TemporaryTables,
}

impl Setting {
    fn parse(line: &str) -> Self {
        let mut setting = Self {
            guard: GuardMode::Strict,
            map: map("100"),
            rights: Rights::default(),
            hospital: None,
            transaction: None,
            held: Role::Primary,
            block: Block::None,
            pinned: None,
            temporary: TemporaryTables::new(),
        };
        for word in line.split_whitespace() {
            let (name, value) = word.split_once('=').expect("name=value");
            match (name, value) {
                ("guard", "strict") => setting.guard = GuardMode::Strict,
                ("guard", "route") => setting.guard = GuardMode::Route,
                ("map", value) => setting.map = map(value),
                ("login", list) => {
                    let list = list.split(',').map(hospital).collect();
                    setting.rights.hospitals = Hospitals::Only(list);
                }
                ("cross", "read") => setting.rights.cross_hospital = CrossHospital::Read,
                ("cross", "write") => setting.rights.cross_hospital = CrossHospital::Write,
                ("hospital", n) => setting.hospital = Some(hospital(n)),
                ("txn", n) => setting.transaction = Some(hospital(n)),
                ("pinned", n) => setting.pinned = Some(hospital(n)),
                ("temp", list) => {
                    let names = list.split(',').map(|name| (name.to_owned(), false));
                    setting.temporary = names.collect();
                }
                ("held", "replica") => setting.held = Role::Replica,
                ("block", "rw") => setting.block = Block::ReadWrite,
                ("block", "ro") => setting.block = Block::ReadOnly,
                ("block", "snapshot") => {
                    setting.block = Block::Snapshot { read_only: false, serializable: false };
                }
                ("block", "snapshot-ro") => {
                    setting.block = Block::Snapshot { read_only: true, serializable: false };
                }
                ("block", "serializable-ro") => {
                    setting.block = Block::Snapshot { read_only: true, serializable: true };
                }
                _ => panic!("session: {word}"),
            }
        }
        setting
    }

    fn view(&self) -> SessionView<'_> {
        let bound = |hospital| Bound {
            hospital: Some(hospital),
            shard: self.map.locate(hospital).expect("its shard"),
            role: self.held,
        };
        SessionView {
            rights: &self.rights,
            hospital: self.hospital,
            transaction: self.transaction.map(bound),
            pinned: self.pinned.map(bound),
            temporary: Some(&self.temporary),
            block: self.block,
            guard: self.guard,
        }
    }
}

/// A map of `shards` (or `reject`), with the guide's tables.
fn map(shards: &str) -> ShardMap {
    let mut text = String::from(
        "version = 1\nmodulus = 100\ndatabase = \"hospital\"\n\
         key = { column = \"hospital_id\", tables = { \"public.hospitals\" = \"id\" } }\n\
         reference = [\"public.regions\", \"public.roles\"]\n",
    );
    let count: u32 = if shards == "reject" { 2 } else { shards.parse().expect("a number") };
    if shards == "reject" {
        text.push_str("unknown_hospital = \"reject\"\n");
        for n in ["1", "2"] {
            write!(text, "[[hospital]]\nid = \"{}\"\n", hospital(n)).expect("a String");
        }
    }
    for id in 0..count {
        let (first, last) = (100 * id / count, 100 * (id + 1) / count - 1);
        let buckets = if first == last { format!("{first}") } else { format!("{first}-{last}") };
        write!(
            text,
            "[[shard]]\nid = {id}\nregion = \"r{id}\"\nbuckets = \"{buckets}\"\n\
             primary = \"pg{id}:5432\"\n"
        )
        .expect("a String");
    }
    ShardMap::parse("map.toml", &text).unwrap_or_else(|problems| panic!("{problems}"))
}

/// A parameter: `type=value`, where the type is `0`, `uuid`, `text`, `varchar`, `int8`, `uuid[]` or
/// `text[]`, and the value `null`, `t...` (text format), `b42` (hospital 42 in binary) or `x00ff...`
/// (bytes in binary format).
struct Param {
    of: u32,
    format: i16,
    bytes: Option<Vec<u8>>,
}

impl Param {
    fn parse(word: &str) -> Self {
        let (of, value) = word.split_once('=').expect("type=value");
        let of = match of {
            "0" => 0,
            "uuid" => 2950,
            "text" => 25,
            "varchar" => 1043,
            "int8" => 20,
            "uuid[]" => 2951,
            "text[]" => 1009,
            _ => panic!("params: {word}"),
        };
        let (format, bytes) = match value.split_at(1) {
            _ if value == "null" => (0, None),
            ("t", text) => (0, Some(expand(text).into_bytes())),
            ("b", n) => (1, Some(hospital(n).0.as_bytes().to_vec())),
            ("x", hex) => {
                let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex");
                (1, Some((0..hex.len()).step_by(2).map(byte).collect()))
            }
            _ => panic!("params: {word}"),
        };
        Self { of, format, bytes }
    }
}

fn catalog(map: &ShardMap) -> Arc<Catalog> {
    let read = |path| std::fs::read_to_string(path).expect("a schema");
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let text = read(root.join("config/schema.sql")) + &read(golden("route/schema.sql"));
    let facts = schema_facts(&text).expect("a schema");
    let tables = &map.tables;
    let safe = ["public.age_group".to_owned()];
    let is_one_shard = map.shards().len() == 1;
    let (keys, reference) = (&tables.key_tables, &tables.reference);
    let declared = Declared::new(&tables.key_column, keys, reference, &safe, is_one_shard);
    // Part of the cache's key: each map of these tests has its own.
    let version = map.shards().len() as u64;
    Arc::new(Catalog::build(version, &[facts], &declared))
}

/// The answer to one block.
fn answer(analyzer: &Analyzer, setting: &Setting, params: &[Param], text: &str) -> String {
    let catalog = catalog(&setting.map);
    let param_types: Vec<u32> = params.iter().map(|param| param.of).collect();
    let context = Context {
        catalog: &catalog,
        search_path: "\"$user\", public",
        role: "app",
        param_types: &param_types,
    };
    let text = expand(text);
    let route = match analyzer.analyze(&text, &context) {
        Ok(analyzed) => {
            let params: Vec<_> =
                params.iter().map(|param| (param.format, param.bytes.as_deref())).collect();
            let values = TextValues { lexed: &analyzed.lexed, params: &params };
            decide(&analyzed.analysis, &values, &setting.view(), &setting.map)
        }
        Err(error) => Err(refuse_text(&error)),
    };
    match route {
        Ok(Route::One { hospital, shard, role }) => {
            let n = hospital.map_or("-".to_owned(), |h| h.0.as_u128().to_string());
            format!("one hospital={n} shard={shard} role={}", role_name(role))
        }
        Ok(Route::Any { role }) => format!("any role={}", role_name(role)),
        Err(refusal) => {
            let lines = reply_lines(&refusal);
            assert!(!lines.contains("00000000-"), "names a hospital: {lines}");
            lines
        }
    }
}

fn role_name(role: Role) -> &'static str {
    match role {
        Role::Primary => "primary",
        Role::Replica => "replica",
    }
}

/// Runs the blocks of one file and gives it back with the answers.
fn run(analyzer: &Analyzer, text: &str) -> String {
    let mut setting = Setting::parse("");
    let mut out = String::new();
    for block in text.trim_end().split("\n\n") {
        let mut params = Vec::new();
        let mut statement = Vec::new();
        let mut notes_only = true;
        for line in block.lines().take_while(|line| *line != "----") {
            writeln!(out, "{line}").expect("a String");
            if let Some(words) = line.strip_prefix("session:") {
                setting = Setting::parse(words);
            } else if let Some(words) = line.strip_prefix("params:") {
                params = words.split_whitespace().map(Param::parse).collect();
            } else if !line.starts_with('#') {
                notes_only = false;
                statement.push(line);
            }
        }
        if !notes_only {
            let answer = answer(analyzer, &setting, &params, &statement.join("\n"));
            writeln!(out, "----\n{answer}").expect("a String");
        }
        out.push('\n');
    }
    out.truncate(out.trim_end().len());
    out + "\n"
}

#[test]
fn statements_go_where_the_tables_say() {
    let analyzer = Analyzer::new(1 << 20, 1 << 16);
    let mut names: Vec<String> = std::fs::read_dir(golden("route"))
        .expect("golden files")
        .map(|entry| entry.expect("a file").file_name().into_string().expect("UTF-8"))
        .filter(|name| name.ends_with(".txt"))
        .collect();
    names.sort();
    assert!(!names.is_empty());
    for name in names {
        let name = format!("route/{name}");
        let text = std::fs::read_to_string(golden(&name)).expect("a golden file");
        let first = run(&analyzer, &text);
        // The second time the analysis comes from the cache: the answer is the same.
        assert_eq!(first, run(&analyzer, &text), "{name}");
        check_file(&name, &first);
    }
}
