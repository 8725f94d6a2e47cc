//! What `decide` lets through for one hospital answers the same with and without the other hospitals.
//!
//! Mutants of the golden statements (tokens and bracketed parts swapped, dropped, doubled and taken from
//! other statements) are analysed through one warm cache and decided in guard mode `strict` on a map of
//! several shards. Whatever passes for a hospital runs on a database of three hospitals and on one that has
//! that hospital's rows only: same rows out, same rows left, and no other hospital's row changed. Where
//! `keys_hold` makes statements that mean something, this one makes those that nobody would think of.
//!
//! `DIFFERENTIAL_SEED` starts elsewhere, `DIFFERENTIAL_SECONDS` goes on for longer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pgward::route::{Block, GuardMode, Rights, Route, SessionView, TextValues, decide};
use pgward::shard_map::ShardMap;
use pgward::sql::{Access, Analyzer, Catalog, Context};
use tokio_postgres::Client;

use crate::keys_hold::{HOSPITALS, catalog, database, golden_texts};
use crate::support::simple;

/// Words after which the choice among equal rows is the planner's.
const CHOOSES: [&str; 14] = [
    "limit", "fetch", "offset", "on", "over", "agg", "random", "ctid", "cmin", "xmin", "now",
    "clock", "pg_", "explain",
];
const ROUND: usize = 64;

#[tokio::test]
async fn other_hospitals_make_no_difference() {
    let seed = number("DIFFERENTIAL_SEED", 1);
    let time = Duration::from_secs(number("DIFFERENTIAL_SECONDS", 12));
    eprintln!("DIFFERENTIAL_SEED={seed}");
    let all = plain_plans(database("differential_all", &HOSPITALS).await).await;
    let mut only = Vec::new();
    for (n, hospital) in (1..).zip(HOSPITALS) {
        // Rows are numbered as in the database of all.
        let client = database(&format!("differential_{n}"), &HOSPITALS).await;
        only_of(&client, hospital).await;
        only.push((hospital, plain_plans(client).await));
    }
    let mut maker = Maker { state: seed, texts: golden_texts().iter().map(|t| cut(t)).collect() };
    let (catalog, analyzer, map) = (catalog(), Analyzer::new(1 << 20, 1 << 16), map());
    let (mut made, mut passed, mut ran) = (0u64, 0u64, 0u64);
    let deadline = Instant::now() + time;
    while Instant::now() < deadline {
        for _ in 0..ROUND {
            let text = maker.statement();
            made += 1;
            let Some((hospital, is_read)) = passes(&analyzer, &catalog, &map, &text) else {
                continue;
            };
            passed += 1;
            let (_, alone) = only.iter().find(|(of, _)| *of == hospital).expect("one of them");
            ran += u64::from(compare(&all, alone, hospital, &text, is_read).await);
        }
    }
    eprintln!(
        "of {made} statements {passed} passed, {ran} ran without error and made no difference"
    );
    assert!(ran > 20, "{ran} of {made}: too few to prove anything");
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().expect("a number"))
}

/// Plans by which rows come as they were inserted, so that answers can be compared.
async fn plain_plans(client: Client) -> Client {
    let set =
        "SET enable_indexscan = off; SET enable_bitmapscan = off; SET enable_indexonlyscan = off;
               SET enable_hashjoin = off; SET enable_hashagg = off; SET jit = off;
               SET statement_timeout = '500ms'";
    client.batch_execute(set).await.expect("settings");
    client
}

async fn only_of(client: &Client, hospital: &str) {
    let tables = ["users", "patients", "visits", "archive.patients"];
    for table in tables {
        let delete = format!("DELETE FROM {table} WHERE hospital_id <> '{hospital}'");
        client.batch_execute(&delete).await.expect("its own rows only");
    }
    let delete = format!("DELETE FROM hospitals WHERE id <> '{hospital}'");
    client.batch_execute(&delete).await.expect("its own rows only");
}

/// Four shards, all the hospitals anywhere.
fn map() -> ShardMap {
    let mut text = "version = 1\nmodulus = 100\ndatabase = \"hospital\"\n\
         key = { column = \"hospital_id\", tables = { \"public.hospitals\" = \"id\" } }\n\
         reference = [\"public.regions\", \"public.roles\"]\n"
        .to_owned();
    for shard in 0..4 {
        let (first, last) = (shard * 25, shard * 25 + 24);
        text += &format!(
            "[[shard]]\nid = {shard}\nregion = \"europe\"\nbuckets = \"{first}-{last}\"\n\
             primary = \"h{shard}:5432\"\n"
        );
    }
    ShardMap::parse("map.toml", &text).unwrap_or_else(|problems| panic!("{problems}"))
}

/// The hospital that `text` may run for, and whether it is said to read only.
fn passes(
    analyzer: &Analyzer,
    catalog: &Arc<Catalog>,
    map: &ShardMap,
    text: &str,
) -> Option<(&'static str, bool)> {
    let context = Context { catalog, search_path: "public", role: "app", param_types: &[] };
    let analyzed = analyzer.analyze(text, &context).ok()?;
    let [statement] = analyzed.analysis.statements.as_slice() else { return None };
    // Others tell of all rows (EXPLAIN), or are no queries.
    if !matches!(statement.command, "SELECT" | "INSERT" | "UPDATE" | "DELETE") {
        return None;
    }
    let rights = Rights::default();
    let session = SessionView {
        rights: &rights,
        hospital: None,
        transaction: None,
        pinned: None,
        temporary: None,
        block: Block::None,
        guard: GuardMode::Strict,
    };
    let values = TextValues { lexed: &analyzed.lexed, params: &[] };
    // The parser refuses `NOT /* x */ IN`, which Postgres takes; behind the cache it is not asked.
    if let Ok(fresh) = Analyzer::new(0, 0).analyze(text, &context) {
        assert_eq!(fresh.analysis, analyzed.analysis, "the cache has another meaning of: {text}");
    }
    match decide(&analyzed.analysis, &values, &session, map).ok()? {
        Route::One { hospital: Some(hospital), .. } if !statement.sharded.is_empty() => {
            let id = hospital.to_string();
            let of = HOSPITALS.iter().find(|known| **known == id)?;
            Some((of, statement.access == Access::Read))
        }
        _ => None,
    }
}

/// Whether it ran without error; panics where the two differ.
async fn compare(all: &Client, alone: &Client, hospital: &str, text: &str, is_read: bool) -> bool {
    let (with, without) = (
        outcome(all, hospital, text, is_read).await,
        outcome(alone, hospital, text, is_read).await,
    );
    // Rows that a condition leaves out may be looked at by another condition first: its error comes
    // with them only (no guard but row level security helps), or a time limit.
    let (Ok(with), Ok(without)) = (with, without) else { return false };
    let lower = text.to_lowercase();
    if CHOOSES.iter().any(|word| lower.contains(word)) && with.rows.len() == without.rows.len() {
        return true;
    }
    assert_eq!(with.rows, without.rows, "other hospitals make a difference to: {text}");
    assert_eq!(with.left, without.left, "other hospitals make a difference to: {text}");
    assert_eq!(with.others_before, with.others_after, "rows of others were changed by: {text}");
    true
}

/// What a statement answered and left behind.
struct Outcome {
    rows: Vec<String>,
    left: Vec<String>,
    others_before: Vec<String>,
    others_after: Vec<String>,
}

async fn outcome(
    client: &Client,
    hospital: &str,
    text: &str,
    is_read: bool,
) -> Result<Outcome, tokio_postgres::Error> {
    let sorted = |rows: Result<Vec<String>, tokio_postgres::Error>| {
        rows.map(|mut rows| {
            rows.sort();
            rows
        })
    };
    if is_read {
        let rows = sorted(simple(client, text).await)?;
        let none = Vec::new;
        return Ok(Outcome { rows, left: none(), others_before: none(), others_after: none() });
    }
    let state = |of: &str| {
        let tables = ["users", "patients", "visits", "archive.patients"];
        let each = tables.map(|t| {
            format!("SELECT '{t}' || x::text FROM {t} x WHERE hospital_id {of} '{hospital}'")
        });
        let hospitals =
            format!("SELECT 'h' || x::text FROM hospitals x WHERE id {of} '{hospital}'");
        format!("{} UNION ALL {hospitals}", each.join(" UNION ALL "))
    };
    let (own, others) = (state("="), state("IS DISTINCT FROM"));
    client.batch_execute("BEGIN").await?;
    let all = async {
        let others_before = sorted(simple(client, &others).await)?;
        let rows = sorted(simple(client, text).await)?;
        let left = sorted(simple(client, &own).await)?;
        let others_after = sorted(simple(client, &others).await)?;
        Ok(Outcome { rows, left, others_before, others_after })
    }
    .await;
    client.batch_execute("ROLLBACK").await?;
    all
}

/// Makes mutants.
struct Maker {
    state: u64,
    texts: Vec<Vec<String>>,
}

impl Maker {
    fn below(&mut self, n: usize) -> usize {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % n.max(1) as u64) as usize
    }

    fn statement(&mut self) -> String {
        let index = self.below(self.texts.len());
        let mut tokens = self.texts[index].clone();
        for _ in 0..self.below(4) {
            self.mutate(&mut tokens);
        }
        let hospital = HOSPITALS[self.below(3)];
        let space = [" ", " ", " ", "\n", " /* x */ ", " -- x\n"][self.below(6)];
        let word = |token: &String| match token.as_str() {
            "'a'" => format!("'{hospital}'"),
            "'{a}'" => format!("'{{{hospital}}}'"),
            // Another hospital, where the text has two.
            "'b'" => format!("'{}'", HOSPITALS[0]),
            other => other.to_owned(),
        };
        tokens.iter().map(word).collect::<Vec<_>>().join(space)
    }

    fn mutate(&mut self, tokens: &mut Vec<String>) {
        const WORDS: [&[&str]; 9] = [
            &["JOIN", "LEFT JOIN", "RIGHT JOIN", "FULL JOIN", "CROSS JOIN", "NATURAL JOIN", ","],
            &["AND", "OR", "AND NOT", "IS NOT DISTINCT FROM"],
            &["=", "<>", "IN", "NOT IN", "IS NOT DISTINCT FROM", "= ANY", "= ALL"],
            &["UNION", "UNION ALL", "INTERSECT", "EXCEPT"],
            &["EXISTS", "NOT EXISTS", "h IN", "1 ="],
            &["patients", "visits", "users", "hospitals", "regions", "archive.patients"],
            &["hospital_id", "id", "p.hospital_id", "v.hospital_id", "r.*", "p.*", "*"],
            &[
                "SELECT",
                "SELECT DISTINCT",
                "SELECT count(*),",
                "SELECT p.count,",
                "SELECT max(id),",
            ],
            &["WHERE", "WHERE NOT", "ON", "HAVING", "GROUP BY hospital_id HAVING"],
        ];
        let at = self.below(tokens.len());
        match self.below(7) {
            // A word by one that may stand in its place.
            0..=2 => {
                let known: Vec<(usize, &[&str])> = (0..tokens.len())
                    .flat_map(|at| {
                        let of = |words: &&&[&str]| {
                            words.iter().any(|word| word.eq_ignore_ascii_case(&tokens[at]))
                        };
                        WORDS.iter().find(of).map(|words| (at, *words))
                    })
                    .collect();
                if known.is_empty() {
                    return;
                }
                let (at, words) = known[self.below(known.len())];
                tokens[at] = words[self.below(words.len())].to_owned();
            }
            // A bracketed part by one of another text.
            3 | 4 => {
                let Some(part) = bracketed(tokens, at) else { return };
                let from = self.below(self.texts.len());
                let other_at = self.below(self.texts[from].len());
                let Some(other) = bracketed(&self.texts[from], other_at) else { return };
                let other = self.texts[from][other].to_vec();
                tokens.splice(part, other);
            }
            5 => {
                let other = self.below(tokens.len());
                tokens.swap(at, other);
            }
            _ => {
                // A condition goes, with its AND.
                let end = (at + 1 + self.below(4)).min(tokens.len());
                tokens.drain(at..end);
            }
        }
        if tokens.is_empty() {
            tokens.push("SELECT".into());
        }
    }
}

/// From the first `(` at or behind `at` to its `)`.
fn bracketed(tokens: &[String], at: usize) -> Option<std::ops::Range<usize>> {
    let start = at + tokens[at..].iter().position(|token| token == "(")?;
    let mut depth = 0;
    for (index, token) in tokens.iter().enumerate().skip(start) {
        match token.as_str() {
            "(" => depth += 1,
            ")" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(start..index + 1);
        }
    }
    None
}

/// Rough tokens: names with their dots, strings, numbers, the rest by the byte, but for `::`, `<>` and such.
fn cut(text: &str) -> Vec<String> {
    let mut tokens = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(first) = chars.next() {
        let mut token = first.to_string();
        let is_name = |c: char| c.is_alphanumeric() || matches!(c, '_' | '.' | '$' | '"');
        let is_sign = |c: char| "<>=!~:|&#?@".contains(c);
        match first {
            c if c.is_whitespace() => continue,
            '\'' => {
                for next in chars.by_ref() {
                    token.push(next);
                    if next == '\'' {
                        break;
                    }
                }
            }
            c if is_name(c) => {
                while let Some(next) = chars.next_if(|next| is_name(*next)) {
                    token.push(next);
                }
            }
            c if is_sign(c) => {
                while let Some(next) = chars.next_if(|next| is_sign(*next)) {
                    token.push(next);
                }
            }
            _ => {}
        }
        tokens.push(token);
    }
    if tokens.is_empty() { vec!["SELECT".into()] } else { tokens }
}
