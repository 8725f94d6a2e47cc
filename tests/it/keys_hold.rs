//! What the analyzer proves, tried on a real server: where it says that each sharded relation of a
//! statement is tied to hospital A, rows of other hospitals must make no difference.
//!
//! Random statements, and the analyzer's golden ones, run on two databases: one with the rows of
//! three hospitals, one with those of A alone. Whatever the analyzer calls keyed must answer alike, and
//! leave the rows of the others as they were.

use std::fmt::Write as _;
use std::sync::Arc;

use pgward::sql::{
    Access, Analyzer, Catalog, Context, Declared, KeySource, Problem, ProblemKind, RelationFact,
    ShardFacts,
};
use tokio_postgres::{Client, NoTls};

use crate::support::{shards, simple};

const A: &str = "aaaaaaaa-aaaa-4aaa-8aaa-aaaaaaaaaaaa";
const B: &str = "bbbbbbbb-bbbb-4bbb-8bbb-bbbbbbbbbbbb";
const C: &str = "cccccccc-cccc-4ccc-8ccc-cccccccccccc";

/// The hospitals of these databases.
pub(crate) const HOSPITALS: [&str; 3] = [A, B, C];

/// Random statements per run; `KEYS_HOLD=100000` tries more.
const STATEMENTS: u64 = 3000;

const TABLES: &str = "
    CREATE TABLE regions (id int PRIMARY KEY, name text);
    CREATE TABLE roles (id int PRIMARY KEY, name text);
    CREATE TABLE hospitals (id uuid PRIMARY KEY, region_id int, code text, name text, is_active bool);
    CREATE TABLE users (hospital_id uuid, id int, email text, role_id int, PRIMARY KEY (hospital_id, id));
    CREATE TABLE patients (hospital_id uuid, id int, mrn text, phone text, email text, name text,
                           PRIMARY KEY (hospital_id, id));
    CREATE TABLE visits (hospital_id uuid, id int, patient_id int, admission_date date, status text,
                         PRIMARY KEY (hospital_id, id));
    CREATE SCHEMA archive;
    CREATE TABLE archive.patients (hospital_id uuid, id int, year int);
    CREATE FUNCTION safe_sum(int) RETURNS int LANGUAGE sql AS 'SELECT $1';
    INSERT INTO regions VALUES (1, 'x'), (2, 'y');
    INSERT INTO roles VALUES (1, 'x'), (2, 'y');
";

/// Temporary tables of the session, with rows that name any hospital: the catalog knows nothing of them.
const TEMPORARY: &str = "
    CREATE TEMP TABLE scratch (hospital_id uuid, id int, name text);
    INSERT INTO scratch VALUES
        ('aaaaaaaa-aaaa-4aaa-8aaa-aaaaaaaaaaaa', 1, 'x'), ('bbbbbbbb-bbbb-4bbb-8bbb-bbbbbbbbbbbb', 1, 'x'),
        ('cccccccc-cccc-4ccc-8ccc-cccccccccccc', 2, 'y'), (NULL, 3, 'z'), ('aaaaaaaa-aaaa-4aaa-8aaa-aaaaaaaaaaaa', 3, 'z');
    CREATE TEMP TABLE t AS SELECT * FROM scratch";

fn rows(hospital: &str, n: i32) -> String {
    format!(
        "INSERT INTO hospitals VALUES ('{hospital}', {n} % 2 + 1, 'x', 'H{n}', true);
         INSERT INTO users SELECT '{hospital}', i, 'e' || i, i % 2 + 1 FROM generate_series(1, 2) i;
         INSERT INTO patients SELECT '{hospital}', i, 'm' || i, 'p' || {n}, 'e' || i, 'x'
             FROM generate_series({n}, {n} + 2) i;
         INSERT INTO visits SELECT '{hospital}', i, i + {n} - 1, '2020-01-01', 's' || {n}
             FROM generate_series(1, 3) i;
         INSERT INTO archive.patients VALUES ('{hospital}', {n}, 2020);"
    )
}

/// A connection to a new database with the rows of `hospitals`.
pub(crate) async fn database(name: &str, hospitals: &[&str]) -> Client {
    let primary = &shards().primary;
    primary.psql("postgres", &format!("CREATE DATABASE {name}")).expect("a database");
    let mut set_up = TABLES.to_owned();
    for (n, hospital) in (1..).zip(hospitals) {
        set_up.push_str(&rows(hospital, n));
    }
    primary.psql(name, &set_up).expect("tables");
    let config = format!(
        "host=127.0.0.1 port={} user=app password=app-secret dbname={name}",
        primary.port()
    );
    primary
        .psql(name, "GRANT ALL ON ALL TABLES IN SCHEMA public, archive TO app; GRANT USAGE ON SCHEMA archive TO app")
        .expect("grants");
    let (client, connection) = tokio_postgres::connect(&config, NoTls).await.expect("a connection");
    tokio::spawn(connection);
    client.batch_execute("SET statement_timeout = '1s'").await.expect("a setting");
    client.batch_execute(TEMPORARY).await.expect("temporary tables");
    client
}

pub(crate) fn catalog() -> Arc<Catalog> {
    let table = |schema: &str, name: &str, columns: &[&str]| RelationFact {
        schema: schema.into(),
        name: name.into(),
        kind: 'r',
        columns: columns
            .iter()
            .map(|column| {
                let is_key = *column == "hospital_id" || (name == "hospitals" && *column == "id");
                ((*column).into(), if is_key { "uuid".into() } else { "text".into() })
            })
            .collect(),
        reads: Vec::new(),
        is_rls_forced: false,
    };
    let public = |name: &str, columns: &[&str]| table("public", name, columns);
    let facts = ShardFacts {
        relations: vec![
            public("regions", &["id", "name"]),
            public("roles", &["id", "name"]),
            public("hospitals", &["id", "region_id", "code", "name", "is_active"]),
            public("users", &["hospital_id", "id", "email", "role_id"]),
            public("patients", &["hospital_id", "id", "mrn", "phone", "email", "name"]),
            public("visits", &["hospital_id", "id", "patient_id", "admission_date", "status"]),
            table("archive", "patients", &["hospital_id", "id", "year"]),
        ],
        ..ShardFacts::default()
    };
    let name = |name: &str| ("public".to_owned(), name.to_owned());
    let declared = Declared {
        key_column: "hospital_id".into(),
        key_tables: vec![(name("hospitals"), "id".into())],
        reference: vec![name("regions"), name("roles")],
        ..Declared::default()
    };
    Arc::new(Catalog::build(1, &[facts], &declared))
}

/// Whether the analyzer says that all of `text` belongs to A; `Some(true)`: and that it reads only.
fn belongs_to_a(analyzer: &Analyzer, catalog: &Arc<Catalog>, text: &str) -> Option<bool> {
    let context = Context { catalog, search_path: "public", role: "app", param_types: &[] };
    let analyzed = analyzer.analyze(text, &context).ok()?;
    let [statement] = analyzed.analysis.statements.as_slice() else { return None };
    let is_a = |key: &KeySource| match key {
        KeySource::Slot(slot) => analyzed.lexed.literal(*slot).as_deref() == Some(A),
        KeySource::SlotArray(slot) => {
            analyzed.lexed.literal(*slot).is_some_and(|list| list == format!("{{{A}}}"))
        }
        _ => false,
    };
    // EXPLAIN tells of all rows; the rest is no query.
    let is_query = matches!(statement.command, "SELECT" | "INSERT" | "UPDATE" | "DELETE");
    let is_temporary = |problem: &Problem| {
        problem.kind == ProblemKind::Unknown && matches!(&*problem.subject, "scratch" | "t")
    };
    let is_keyed = is_query
        && !statement.sharded.is_empty()
        && statement.problems.iter().all(is_temporary)
        && statement.sharded.iter().all(|used| !used.keys.is_empty() && used.keys.iter().all(is_a));
    is_keyed.then_some(statement.access == Access::Read)
}

/// What `text` answers, in any order, and what it leaves behind, which is undone.
async fn outcome(client: &Client, text: &str, is_read: bool) -> Result<Vec<String>, String> {
    if is_read {
        return sorted(client, text).await;
    }
    client.batch_execute("BEGIN").await.expect("a transaction");
    let mut outcome = sorted(client, text).await;
    if let Ok(rows) = &mut outcome {
        for table in ["users", "patients", "visits", "archive.patients"] {
            let all = format!("SELECT '{table}', * FROM {table} WHERE hospital_id = '{A}'");
            rows.extend(sorted(client, &all).await.expect("rows of a table"));
        }
    }
    client.batch_execute("ROLLBACK").await.expect("undone");
    outcome
}

async fn sorted(client: &Client, text: &str) -> Result<Vec<String>, String> {
    let mut rows = simple(client, text).await.map_err(|error| {
        error.as_db_error().map_or(error.to_string(), |error| error.message().to_owned())
    })?;
    rows.sort();
    Ok(rows)
}

/// Runs `text` on both, if it is said to be of A: whether it was, and answered without error.
async fn try_both(all: &Client, only: &Client, text: &str, is_read: bool) -> bool {
    let others = format!(
        "SELECT md5(string_agg(t::text, '' ORDER BY t::text)) FROM (
             SELECT p::text FROM patients p WHERE hospital_id <> '{A}'
             UNION ALL SELECT v::text FROM visits v WHERE hospital_id <> '{A}'
             UNION ALL SELECT u::text FROM users u WHERE hospital_id <> '{A}'
             UNION ALL SELECT h::text FROM hospitals h WHERE id <> '{A}') t"
    );
    let on_all = outcome(all, text, is_read).await;
    let on_only = outcome(only, text, is_read).await;
    // Endless recursion, or a slow machine: nothing to compare.
    let is_late = |of: &Result<Vec<String>, String>| {
        of.as_ref().is_err_and(|error| error.contains("statement timeout"))
    };
    if is_late(&on_all) || is_late(&on_only) {
        return false;
    }
    let few = |of: &Result<Vec<String>, String>| match of {
        Ok(rows) => format!("{} rows: {:?}", rows.len(), &rows[..rows.len().min(5)]),
        Err(error) => error.clone(),
    };
    assert!(
        on_all == on_only,
        "rows of other hospitals make a difference to: {text}\nwith them {}\nwithout {}",
        few(&on_all),
        few(&on_only)
    );
    if !is_read {
        all.batch_execute("BEGIN").await.expect("a transaction");
        let before = simple(all, &others).await.expect("others");
        if all.batch_execute(text).await.is_ok() {
            assert_eq!(
                simple(all, &others).await.expect("others"),
                before,
                "rows of others: {text}"
            );
        }
        all.batch_execute("ROLLBACK").await.expect("undone");
    }
    on_all.is_ok()
}

#[tokio::test]
async fn keys_hold_on_a_real_server() {
    let all = database("keys_all", &[A, B, C]).await;
    let only = database("keys_only", &[A]).await;
    let catalog = catalog();
    let analyzer = Analyzer::new(1 << 20, 1 << 20);

    let mut golden = 0;
    // Catalogs differ between databases.
    for text in golden_texts().into_iter().filter(|text| !text.contains("pg_class")) {
        let text = text.replace("'a'", &format!("'{A}'")).replace("'{a}'", &format!("'{{{A}}}'"));
        if let Some(is_read) = belongs_to_a(&analyzer, &catalog, &text) {
            golden += usize::from(try_both(&all, &only, &text, is_read).await);
        }
    }
    assert!(golden > 100, "{golden} golden statements ran");

    let count =
        std::env::var("KEYS_HOLD").map_or(STATEMENTS, |count| count.parse().expect("a number"));
    let first = std::env::var("KEYS_HOLD_SEED").map_or(0, |seed| seed.parse().expect("a number"));
    let (mut keyed, mut ran) = (0, 0);
    for seed in first..first + count {
        let text = Maker::new(seed).statement();
        if let Some(is_read) = belongs_to_a(&analyzer, &catalog, &text) {
            keyed += 1;
            ran += u64::from(try_both(&all, &only, &text, is_read).await);
        }
    }
    eprintln!("{golden} golden; of {count} random statements {keyed} are keyed and {ran} ran");
    assert!(keyed > count / 20, "{keyed} of {count} are keyed: too few to prove anything");
    assert!(ran > keyed / 2, "{ran} of {keyed} ran: the maker makes wrong ones");
}

pub(crate) fn golden_texts() -> Vec<String> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/analyze");
    let mut texts = Vec::new();
    for entry in std::fs::read_dir(folder).expect("golden files") {
        let file = std::fs::read_to_string(entry.expect("a file").path()).expect("a text");
        for (text, _) in file.split("\n\n").filter_map(|block| block.split_once("\n----")) {
            let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
            texts.push(lines.join("\n"));
        }
    }
    texts
}

/// Makes statements that mostly run. Every relation of a query level shows a uuid and an int.
struct Maker {
    state: u64,
    names: u32,
    /// WITH names in sight.
    ctes: Vec<String>,
    /// The level in hand is the outermost.
    is_top: bool,
}

/// A relation in sight: expressions of its uuid, if it has one, and its int.
#[derive(Clone)]
struct Seen {
    hospital: Option<String>,
    number: String,
}

impl Maker {
    fn new(seed: u64) -> Self {
        Self {
            state: seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1,
            names: 0,
            ctes: Vec::new(),
            is_top: false,
        }
    }

    /// Below `n` (splitmix64).
    fn below(&mut self, n: usize) -> usize {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % n as u64) as usize
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn pick<'s>(&mut self, of: &[&'s str]) -> &'s str {
        of[self.below(of.len())]
    }

    fn name(&mut self) -> String {
        self.names += 1;
        format!("t{}", self.names)
    }

    fn statement(&mut self) -> String {
        let mut text = String::new();
        if self.chance(30) {
            let count = 1 + self.below(2);
            let mut parts = Vec::new();
            for _ in 0..count {
                let name = self.name();
                let body = self.query(1, &[]);
                parts.push(format!("{name} AS ({body})"));
                self.ctes.push(name);
            }
            write!(text, "WITH {} ", parts.join(", ")).expect("a String");
        }
        match self.below(10) {
            0 => text.push_str(&self.update()),
            1 => text.push_str(&self.delete()),
            2 => text.push_str(&self.insert()),
            _ => text.push_str(&self.query(2, &[])),
        }
        text
    }

    fn update(&mut self) -> String {
        let mut seen = vec![Seen {
            hospital: Some("patients.hospital_id".into()),
            number: "patients.id".into(),
        }];
        let (from, others) = self.from(1, &[]);
        seen.extend(others);
        let condition = self.keyed_condition(&seen, &[], 1);
        format!(
            "UPDATE patients SET name = 'changed' FROM {from} WHERE {condition} RETURNING patients.id"
        )
    }

    fn delete(&mut self) -> String {
        let mut seen =
            vec![Seen { hospital: Some("visits.hospital_id".into()), number: "visits.id".into() }];
        let (using, others) = self.from(1, &[]);
        seen.extend(others);
        let condition = self.keyed_condition(&seen, &[], 1);
        format!("DELETE FROM visits USING {using} WHERE {condition} RETURNING visits.id")
    }

    fn insert(&mut self) -> String {
        let query = self.query(1, &[]);
        format!("INSERT INTO archive.patients (hospital_id, id) {query} RETURNING *")
    }

    /// A query with columns h and n. `outer`: what levels around it show.
    fn query(&mut self, depth: usize, outer: &[Seen]) -> String {
        if depth > 0 && self.chance(12) {
            let (a, b) = (self.query(depth - 1, outer), self.query(depth - 1, outer));
            let operator = self.pick(&["UNION", "UNION ALL", "UNION ALL", "INTERSECT", "EXCEPT"]);
            let cut = if self.chance(15) { " ORDER BY 1 DESC, 2 DESC LIMIT 2" } else { "" };
            return format!("({a}) {operator} ({b}){cut}");
        }
        let (from, seen) = self.from(depth, outer);
        self.is_top = outer.is_empty() && depth == 2;
        let condition = self.keyed_condition(&seen, outer, depth);
        let of = seen[self.below(seen.len())].clone();
        let hospital = of.hospital.clone().unwrap_or_else(|| format!("'{A}'::uuid"));
        let number = of.number;
        let mut tail = String::new();
        let targets = match self.below(12) {
            0 => {
                write!(tail, " GROUP BY {hospital}").expect("a String");
                if hospital.starts_with('\'') {
                    tail.clear();
                    format!("'{A}'::uuid AS h, count(*)::int AS n")
                } else {
                    if self.chance(30) {
                        tail.push_str(" HAVING count(*) > 1");
                    }
                    format!("{hospital} AS h, count(*)::int AS n")
                }
            }
            1 => format!("'{A}'::uuid AS h, max({number})::int AS n"),
            2 => format!("DISTINCT {hospital} AS h, {number} AS n"),
            3 => {
                write!(tail, " ORDER BY {number}, {hospital}").expect("a String");
                format!("DISTINCT ON ({number}) {hospital} AS h, {number} AS n")
            }
            4 => format!(
                "{hospital} AS h, (row_number() OVER (ORDER BY {hospital}, {number}))::int AS n"
            ),
            5 if depth > 0 => {
                let mut all = seen.clone();
                all.extend_from_slice(outer);
                let inner = self.query(depth - 1, &all);
                format!("{hospital} AS h, (SELECT count(*)::int FROM ({inner}) c) AS n")
            }
            6 => {
                write!(tail, " GROUP BY {number}").expect("a String");
                format!("'{A}'::uuid AS h, {number} AS n")
            }
            _ => {
                if self.chance(20) {
                    tail.push_str(" ORDER BY 1 DESC, 2 DESC LIMIT 2");
                }
                format!("{hospital} AS h, {number} AS n")
            }
        };
        format!("SELECT {targets} FROM {from} WHERE {condition}{tail}")
    }

    /// A FROM list and what it shows.
    fn from(&mut self, depth: usize, outer: &[Seen]) -> (String, Vec<Seen>) {
        let (mut text, mut seen) = self.source(depth, outer);
        while self.chance(40) && seen.len() < 3 {
            if self.chance(25) {
                let mut left = seen.clone();
                left.extend_from_slice(outer);
                let (more, shown) = match depth > 0 && self.chance(30) {
                    true => self.lateral(depth, &left),
                    false => self.source(depth, outer),
                };
                text = format!("{text}, {more}");
                seen.extend(shown);
                // A comma binds less than JOIN.
                return (text, seen);
            }
            let kind =
                self.pick(&["JOIN", "JOIN", "LEFT JOIN", "LEFT JOIN", "RIGHT JOIN", "FULL JOIN"]);
            let (more, shown) = if depth > 0 && self.chance(15) && !kind.starts_with(['R', 'F']) {
                let mut left = seen.clone();
                left.extend_from_slice(outer);
                self.lateral(depth, &left)
            } else {
                self.source(depth, outer)
            };
            let mut both = seen.clone();
            both.extend(shown.iter().cloned());
            let on = match kind {
                // Postgres merges only such.
                "FULL JOIN" => self.equality(&both, &[]),
                _ if self.chance(70) => {
                    let a = self.link(&seen, &shown);
                    let b = self.condition(&both, outer, depth.saturating_sub(1), 1);
                    if self.chance(50) { a } else { format!("{a} AND {b}") }
                }
                _ => self.condition(&both, outer, depth.saturating_sub(1), 1),
            };
            text = format!("{text} {kind} {more} ON {on}");
            if self.chance(20) {
                text = format!("({text})");
            }
            seen = both;
        }
        (text, seen)
    }

    fn lateral(&mut self, depth: usize, left: &[Seen]) -> (String, Vec<Seen>) {
        let name = self.name();
        let query = self.query(depth - 1, left);
        (format!("LATERAL ({query}) {name}"), vec![shown(&name)])
    }

    fn source(&mut self, depth: usize, outer: &[Seen]) -> (String, Vec<Seen>) {
        let name = self.name();
        if depth > 0 && self.chance(30) {
            let query = self.query(depth - 1, outer);
            return match self.chance(20) {
                true => {
                    let seen =
                        Seen { hospital: Some(format!("{name}.x")), number: format!("{name}.y") };
                    (format!("({query}) {name} (x, y)"), vec![seen])
                }
                false => (format!("({query}) {name}"), vec![shown(&name)]),
            };
        }
        if !self.ctes.is_empty() && self.chance(40) {
            let index = self.below(self.ctes.len());
            let cte = self.ctes[index].clone();
            return (format!("{cte} {name}"), vec![shown(&name)]);
        }
        if self.chance(12) {
            let (a, b) = (self.name(), self.name());
            let kind = self.pick(&["JOIN", "LEFT JOIN", "RIGHT JOIN", "FULL JOIN"]);
            let seen =
                Seen { hospital: Some(format!("{name}.hospital_id")), number: format!("{a}.id") };
            // The merged column, under the alias of USING.
            return (
                format!("(patients {a} {kind} visits {b} USING (hospital_id) AS {name})"),
                vec![seen],
            );
        }
        let (table, key, number) = [
            ("patients", Some("hospital_id"), "id"),
            ("visits", Some("hospital_id"), "patient_id"),
            ("visits", Some("hospital_id"), "id"),
            ("users", Some("hospital_id"), "id"),
            ("hospitals", Some("id"), "region_id"),
            ("regions", None, "id"),
            ("scratch", Some("hospital_id"), "id"),
        ][self.below(7)];
        let hospital = key.map(|key| format!("{name}.{key}"));
        (format!("{table} {name}"), vec![Seen { hospital, number: format!("{name}.{number}") }])
    }

    /// A condition that tends to tie everything to A.
    fn keyed_condition(&mut self, seen: &[Seen], outer: &[Seen], depth: usize) -> String {
        let mut parts = Vec::new();
        // Some levels leave it to those around them.
        let is_left = !self.is_top && self.chance(40);
        self.is_top = false;
        for (index, one) in seen.iter().enumerate().filter(|_| !is_left) {
            let Some(hospital) = &one.hospital else { continue };
            if self.chance(12) {
                continue;
            }
            let others: Vec<&String> = seen[..index]
                .iter()
                .chain(outer)
                .filter_map(|other| other.hospital.as_ref())
                .collect();
            if !others.is_empty() && self.chance(60) {
                let other = others[self.below(others.len())];
                parts.push(format!("{hospital} = {other}"));
            } else {
                parts.push(self.literal(hospital));
            }
        }
        while self.chance(25) {
            parts.push(self.condition(seen, outer, depth.saturating_sub(1), 1));
        }
        if parts.is_empty() { "true".into() } else { parts.join(" AND ") }
    }

    fn literal(&mut self, hospital: &str) -> String {
        match self.below(6) {
            0 => format!("{hospital} IN ('{A}')"),
            1 => format!("{hospital} = ANY ('{{{A}}}')"),
            2 => format!("'{A}'::uuid = {hospital}"),
            3 => format!("({hospital} = '{A}' OR {hospital} IN ('{A}', NULL))"),
            _ => format!("{hospital} = '{A}'"),
        }
    }

    /// An equality between something of each.
    fn link(&mut self, left: &[Seen], right: &[Seen]) -> String {
        let (a, b) = (&left[self.below(left.len())], &right[self.below(right.len())]);
        match (&a.hospital, &b.hospital) {
            (Some(a), Some(b)) if self.chance(75) => format!("{a} = {b}"),
            _ => format!("{} = {}", a.number, b.number),
        }
    }

    fn equality(&mut self, seen: &[Seen], outer: &[Seen]) -> String {
        let all: Vec<&Seen> = seen.iter().chain(outer).collect();
        let (a, b) = (all[self.below(all.len())], all[self.below(all.len())]);
        match (&a.hospital, &b.hospital) {
            (Some(a), Some(b)) if self.chance(60) => format!("{a} = {b}"),
            _ => format!("{} = {}", a.number, b.number),
        }
    }

    /// Anything of type boolean.
    fn condition(&mut self, seen: &[Seen], outer: &[Seen], depth: usize, nest: usize) -> String {
        let all: Vec<Seen> = seen.iter().chain(outer).cloned().collect();
        let one = all[self.below(all.len())].clone();
        let hospital = one.hospital.clone().unwrap_or_else(|| format!("'{A}'::uuid"));
        let number = one.number;
        match self.below(if depth > 0 { 18 } else { 10 }) {
            0 => format!("{number} < 3"),
            1 => format!("{hospital} IS NULL"),
            2 => format!("{hospital} <> '{A}'"),
            3 => self.literal(&hospital),
            4 | 5 => self.equality(seen, outer),
            6 if nest > 0 => {
                let (a, b) = (
                    self.condition(seen, outer, depth, nest - 1),
                    self.condition(seen, outer, depth, nest - 1),
                );
                format!("({a} OR {b})")
            }
            7 if nest > 0 => format!("NOT ({})", self.condition(seen, outer, depth, nest - 1)),
            8 => format!("{hospital} IS NOT DISTINCT FROM '{A}'"),
            9 => {
                let other = all[self.below(all.len())].clone();
                let of = other.hospital.unwrap_or_else(|| format!("'{A}'::uuid"));
                format!("({hospital}, {number}) = ({of}, {})", other.number)
            }
            10 | 11 => format!("EXISTS ({})", self.query(depth - 1, &all)),
            12 => format!("NOT EXISTS ({})", self.query(depth - 1, &all)),
            13 => format!("({hospital}, {number}) IN ({})", self.query(depth - 1, &all)),
            14 => format!("{hospital} IN (SELECT h FROM ({}) q)", self.query(depth - 1, &all)),
            15 => format!("({hospital}, {number}) NOT IN ({})", self.query(depth - 1, &all)),
            16 => format!(
                "{hospital} = (SELECT h FROM ({}) q ORDER BY 1 LIMIT 1)",
                self.query(depth - 1, &all)
            ),
            17 => format!("{number} > (SELECT count(*) FROM ({}) q)", self.query(depth - 1, &all)),
            _ => "true".into(),
        }
    }
}

/// A relation that shows h and n.
fn shown(name: &str) -> Seen {
    Seen { hospital: Some(format!("{name}.h")), number: format!("{name}.n") }
}
