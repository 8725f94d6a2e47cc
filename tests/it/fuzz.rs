//! The fuzz targets, bounded: each replays its corpus and the same mutations of it each time.
//!
//! `FUZZ_MUTATIONS=20` tries twenty times as many, `FUZZ_SEED` others. Bytes that break a target
//! are written to the test's own directory and named; they belong into `tests/fuzz/corpus`, under a
//! name that says what broke. `make fuzz` looks for more with libFuzzer.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

#[path = "../fuzz/targets/mod.rs"]
pub mod targets;

const CORPUS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fuzz/corpus");
/// Largest input that a mutation makes.
const BYTES_MAX: usize = 8 << 10;
/// Words that readers look for.
const WORDS: [&[u8]; 28] = [
    b"\0\0\0\x04",
    b"\0\0\0\x03",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\x80\0\0\0",
    b"\0\0\0\x08\x04\xd2\x16\x2f",
    b"\0\0\0\x08\x04\xd2\x16\x30",
    b"\0\x03\0\0",
    b"\0",
    b"\0\0",
    b"'",
    b"''",
    b"/*",
    b"*/",
    b"--",
    b"$$",
    b"E'\\'",
    b"\"",
    b";",
    b"BEGIN",
    b"COMMIT",
    b"SET search_path = x",
    b"hospital_id = '00000000-0000-0000-0000-000000000001'",
    b"S\0\0",
    b"Z\0\x01I",
    b"C\0\x09SELECT 1\0",
    b"E\0\x01\0",
    b"\xe9",
];

fn corpus(name: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(Path::new(CORPUS).join(name))
        .expect("a corpus")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    files.sort();
    let read = |path: PathBuf| (path.clone(), std::fs::read(path).expect("a seed"));
    files.into_iter().map(read).collect()
}

/// Replays and mutates the corpus of target `name`.
fn check(name: &str) {
    let target = targets::ALL.iter().find(|target| target.name == name).expect("a target");
    let seeds = corpus(name);
    assert!(seeds.len() >= 3, "{name}: a corpus of {} files", seeds.len());
    for (path, bytes) in &seeds {
        try_one(target, bytes, &path.display().to_string());
    }
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse().ok());
    let seed = number("FUZZ_SEED").unwrap_or(1);
    let times = number("FUZZ_MUTATIONS").unwrap_or(1) as usize;
    let mut rng = StdRng::seed_from_u64(seed);
    // What is deep or long is slow: it is replayed as it stands.
    let is_quick = |(path, _): &(PathBuf, _)| {
        let name = path.file_name().and_then(|name| name.to_str()).expect("UTF-8");
        !name.starts_with("deep_") && !name.starts_with("many_")
    };
    let seeds: Vec<_> = seeds.into_iter().filter(is_quick).collect();
    for n in 0..target.mutations * times {
        let bytes = mutated(&seeds, &mut rng);
        try_one(target, &bytes, &format!("mutation {n} of seed {seed}"));
    }
}

fn try_one(target: &targets::Target, bytes: &[u8], what: &str) {
    if catch_unwind(AssertUnwindSafe(|| (target.run)(bytes))).is_err() {
        let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{}", target.name));
        std::fs::write(&file, bytes).expect("written");
        panic!("{}: {what} breaks it, see {}", target.name, file.display());
    }
}

fn mutated(seeds: &[(PathBuf, Vec<u8>)], rng: &mut StdRng) -> Vec<u8> {
    let pick = |rng: &mut StdRng| &seeds[rng.random_range(0..seeds.len())].1;
    let mut bytes = pick(rng).clone();
    for _ in 0..rng.random_range(1..6) {
        let at = rng.random_range(0..=bytes.len());
        let end = (at + rng.random_range(0..16)).min(bytes.len());
        match rng.random_range(0..9) {
            0 if at < bytes.len() => bytes[at] ^= 1 << rng.random_range(0..8),
            1 if at < bytes.len() => bytes[at] = rng.random(),
            2 => drop(bytes.drain(at..end)),
            3 => bytes.truncate(at),
            4 => {
                let word = WORDS[rng.random_range(0..WORDS.len())];
                drop(bytes.splice(at..at, word.iter().copied()));
            }
            5 => {
                let word = WORDS[rng.random_range(0..WORDS.len())];
                let end = (at + word.len()).min(bytes.len());
                drop(bytes.splice(at..end, word.iter().copied()));
            }
            6 => {
                let piece = bytes[at..end].to_vec();
                drop(bytes.splice(at..at, piece));
            }
            7 => {
                let other = pick(rng);
                let from = rng.random_range(0..=other.len());
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
            _ if at < bytes.len() => bytes[at] = bytes[at].wrapping_add(1),
            _ => {}
        }
    }
    bytes.truncate(BYTES_MAX);
    bytes
}

macro_rules! bounded {
    ($($name:ident)*) => { $(#[test] fn $name() { check(stringify!($name)); })* };
}

bounded! {
    frames startup scram greeting server session answers sql config shard_map users
    hba ident userlist proofs
}

#[test]
fn each_target_is_run() {
    let mut directories: Vec<String> = std::fs::read_dir(CORPUS)
        .expect("the corpora")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"))
        .collect();
    let mut names: Vec<String> = targets::ALL.iter().map(|target| target.name.to_owned()).collect();
    directories.sort();
    names.sort();
    assert_eq!(directories, names, "directories of the corpus, targets");
}
