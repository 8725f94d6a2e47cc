//! Any text: the lexer, the grammar, the walk and the cache.
//!
//! The oracle is the cache: what it answers is what a fresh analysis would say, for this text and for
//! one that differs in its values only.

use std::sync::{Arc, OnceLock};

use pgward::sql::{
    Analysis, Analyzer, Catalog, Context, Declared, Effect, KeySource, SettingValue, lexer,
    schema_facts,
};

use super::Input;

const SCHEMA: &str = include_str!("../../../config/schema.sql");
const PATHS: [&str; 4] = ["\"$user\", public", "public", "", "public, pg_catalog"];
/// OIDs that parameters may be declared with: none, uuid, text, int4.
const TYPES: [u32; 4] = [0, 2950, 25, 23];
/// Longest text that is worth a run.
const BYTES_MAX: usize = 256 << 10;
/// The stack of a thread that serves clients.
const STACK_BYTES: usize = 2 << 20;

/// How, then the text. Parts between NULs repeat in turn: `SELECT `, `(`, `1`, `)` nests.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let how = input.byte();
    let count = usize::from(input.byte());
    let mut text = String::new();
    for (n, part) in input.0.split(|byte| *byte == 0).enumerate() {
        let times = if n % 2 == 1 { 16 * count } else { 1 };
        let part = String::from_utf8_lossy(part);
        if text.len() + part.len() * times > BYTES_MAX {
            return;
        }
        text.push_str(&part.repeat(times));
    }
    match input.0.contains(&0) {
        // Deep texts meet the stack that they would meet in service.
        true => std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().stack_size(STACK_BYTES);
            let handle = thread.spawn_scoped(scope, || look(how, &text)).expect("a thread");
            if let Err(panic) = handle.join() {
                std::panic::resume_unwind(panic);
            }
        }),
        false => look(how, &text),
    }
}

fn catalog() -> &'static Arc<Catalog> {
    static CATALOG: OnceLock<Arc<Catalog>> = OnceLock::new();
    CATALOG.get_or_init(|| {
        let facts = schema_facts(SCHEMA).expect("a schema");
        let keys = [("public.hospitals".to_owned(), "id".to_owned())];
        let reference = ["public.regions".to_owned(), "public.roles".to_owned()];
        let declared = Declared::new("hospital_id", &keys, &reference, &[], false);
        Arc::new(Catalog::build(1, std::slice::from_ref(&facts), &declared))
    })
}

fn look(how: u8, text: &str) {
    let types = [TYPES[usize::from(how >> 2 & 3)], TYPES[usize::from(how >> 4 & 3)]];
    let context = Context {
        catalog: catalog(),
        search_path: PATHS[usize::from(how & 3)],
        role: "app",
        param_types: &types,
    };
    let cached = Analyzer::new(1 << 20, 1 << 20);
    let first = cached.analyze(text, &context);
    if let Ok(analyzed) = &first {
        // Twice, so that the second comes from the cache.
        let again = cached.analyze(text, &context).expect("as before");
        assert_eq!(analyzed.analysis, again.analysis, "{text:?}");
        check_slots(&analyzed.analysis, &analyzed.lexed);
    }
    for seed in [1, 7] {
        let other = other_values(text, seed);
        let from_cache = cached.analyze(&other, &context).map(|analyzed| analyzed.analysis);
        let fresh = Analyzer::new(1, 0).analyze(&other, &context).map(|analyzed| analyzed.analysis);
        assert_eq!(from_cache, fresh, "{other:?} behind {text:?}");
    }
    let lexed = lexer::Lexed::new(text);
    for slot in 0..64 {
        let _ = lexed.literal(slot);
    }
    let _ = lexed.hint();
}

/// Where an analysis names a literal there is one, and it can be read.
fn check_slots(analysis: &Analysis, lexed: &lexer::Lexed<'_>) {
    for statement in &analysis.statements {
        for used in &statement.sharded {
            for key in &used.keys {
                if let KeySource::Slot(slot) | KeySource::SlotArray(slot) = key {
                    assert!(lexed.literal(*slot).is_some(), "key in unreadable slot {slot}");
                }
            }
        }
        if let Effect::Set(settings) = &statement.effect {
            for setting in settings {
                if let SettingValue::Slot(slot) = setting.value {
                    assert!(lexed.literal(slot).is_some(), "value in unreadable slot {slot}");
                }
            }
        }
    }
}

/// `text` with other digits, and other letters between single quotes, as most literals have them.
fn other_values(text: &str, seed: u8) -> String {
    let mut is_quoted = false;
    let change = |c: char| match c {
        '\'' => {
            is_quoted = !is_quoted;
            c
        }
        '0'..='9' => char::from(b'0' + (c as u8 - b'0' + seed) % 10),
        'a'..='f' if is_quoted => char::from(b'a' + (c as u8 - b'a' + seed) % 6),
        _ => c,
    };
    text.chars().map(change).collect()
}
