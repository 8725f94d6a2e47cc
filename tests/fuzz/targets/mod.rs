//! What is fuzzed: each target takes any bytes, and panics where pgward would be wrong.
//!
//! The same targets run in two ways. `make check` replays `tests/fuzz/corpus` and a bounded number
//! of mutations of it, the same ones each time (`tests/it/fuzz.rs`). `make fuzz` gives them to
//! libFuzzer (`tests/fuzz/libfuzzer.rs`), which looks for bytes that reach new code. What it finds
//! goes into the corpus, under a name that says what broke.

pub mod files;
pub mod frames;
pub mod greeting;
pub mod logins;
pub mod scram;
pub mod server;
pub mod session;
pub mod sql;
pub mod startup;

/// One of them.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name, and that of its corpus.
    pub name: &'static str,
    /// Mutations that `make check` tries: the dearer a run, the fewer.
    pub mutations: usize,
    /// Panics where pgward is wrong.
    pub run: fn(&[u8]),
}

/// All of them.
pub const ALL: [Target; 15] = [
    Target { name: "frames", mutations: 20_000, run: frames::run },
    Target { name: "startup", mutations: 4_000, run: startup::run },
    Target { name: "scram", mutations: 3_000, run: scram::run },
    Target { name: "greeting", mutations: 4_000, run: greeting::run },
    Target { name: "server", mutations: 6_000, run: server::run },
    Target { name: "session", mutations: 300, run: session::run },
    Target { name: "answers", mutations: 300, run: session::run_answers },
    Target { name: "sql", mutations: 1_500, run: sql::run },
    Target { name: "config", mutations: 1_000, run: files::run_config },
    Target { name: "shard_map", mutations: 1_500, run: files::run_shard_map },
    Target { name: "users", mutations: 1_500, run: files::run_users },
    Target { name: "hba", mutations: 3_000, run: logins::run_hba },
    Target { name: "ident", mutations: 3_000, run: logins::run_ident },
    Target { name: "userlist", mutations: 3_000, run: logins::run_userlist },
    Target { name: "proofs", mutations: 3_000, run: logins::run_proofs },
];

/// Reads choices off the front of the bytes, so that one input says how as well as what.
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    /// The next byte, 0 at the end.
    pub fn byte(&mut self) -> u8 {
        self.0.split_off_first().copied().unwrap_or_default()
    }

    /// Up to three places at which what follows is cut; none if the first byte is 0.
    pub fn cuts(&mut self) -> Vec<usize> {
        let count = self.byte() % 4;
        (0..count).map(|_| usize::from(self.byte()) << 8 | usize::from(self.byte())).collect()
    }
}

/// Tags of clients, the likely ones twice.
const OF_CLIENTS: &[u8] = b"QPBDESHCXdcfFpQPBDESPBES";
/// Tags of servers.
const OF_SERVERS: &[u8] = b"123CDEGHINSTZcdnstAVRKWvCZDZ";

impl Input<'_> {
    /// What a client sends: as it stands, or messages whose lengths are right.
    pub fn requests(&mut self) -> Vec<u8> {
        self.stream(OF_CLIENTS)
    }

    /// What a server sends, likewise.
    pub fn replies(&mut self) -> Vec<u8> {
        self.stream(OF_SERVERS)
    }

    /// Behind a byte `=`, messages as tag, length of the body in two bytes, body; a tag that does
    /// not exist becomes one that does. Else the bytes as they stand.
    fn stream(&mut self, tags: &[u8]) -> Vec<u8> {
        if self.byte() != b'=' {
            return self.0.to_vec();
        }
        let mut out = Vec::new();
        while !self.0.is_empty() {
            let tag = self.byte();
            let tag = if tags.contains(&tag) { tag } else { tags[usize::from(tag) % tags.len()] };
            let length = usize::from(self.byte()) << 8 | usize::from(self.byte());
            let (body, rest) = self.0.split_at(length.min(self.0.len()));
            self.0 = rest;
            out.push(tag);
            out.extend((body.len() as u32 + 4).to_be_bytes());
            out.extend(body);
        }
        out
    }
}

/// `bytes` in pieces, cut at `cuts` (modulo their length), none of them empty.
pub fn pieces<'a>(bytes: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
    cuts.extend([0, bytes.len()]);
    cuts.sort_unstable();
    let pieces = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]);
    pieces.filter(|piece| !piece.is_empty()).collect()
}

/// A runtime whose time runs only while nothing else can.
pub fn paused() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().start_paused(true).build().expect("a runtime")
}
