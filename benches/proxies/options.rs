//! What the command line and `QUICK=1` ask for.

use std::path::PathBuf;
use std::time::Duration;

use crate::Result;
use crate::targets::TargetName;

/// Command line, for people.
pub const USAGE: &str = "\
make bench [QUICK=1], or: cargo bench --bench proxies -- [options]
  --quick                 a short version in two minutes (also QUICK=1)
  --parts LIST            of: fake, memory, syscalls, instructions, real (default: these), profile
  --targets LIST          of: direct, relay, pgbouncer, pgward-1, pgward-100 (default: all)
  --rounds N, --cell-ms N how often and how long each cell runs
  --pgward PATH           a pgward other than the one just built
PGBOUNCER=PATH names a PgBouncer other than /usr/sbin/pgbouncer.";

/// One part of the benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// CPU, throughput and latency on the fake backend.
    Fake,
    /// Memory per idle client.
    Memory,
    /// System calls per transaction.
    Syscalls,
    /// User instructions per transaction.
    Instructions,
    /// pgbench against real Postgres.
    Real,
    /// Where the CPU goes, by perf: only when named.
    Profile,
}

impl Part {
    const DEFAULT: [Self; 5] =
        [Self::Fake, Self::Memory, Self::Syscalls, Self::Instructions, Self::Real];
    const ALL: [(&'static str, Self); 6] = [
        ("fake", Self::Fake),
        ("memory", Self::Memory),
        ("syscalls", Self::Syscalls),
        ("instructions", Self::Instructions),
        ("real", Self::Real),
        ("profile", Self::Profile),
    ];
}

/// All that can be asked for.
#[derive(Debug, Clone)]
pub struct Options {
    /// The two-minute version.
    pub is_quick: bool,
    /// Which parts run.
    pub parts: Vec<Part>,
    /// Which targets take part.
    pub targets: Vec<TargetName>,
    /// Rounds on the fake backend.
    pub rounds: usize,
    /// How long a cell runs in each of them.
    pub cell: Duration,
    /// The pgward that is measured.
    pub pgward: PathBuf,
    /// The PgBouncer that it is compared with.
    pub pgbouncer: PathBuf,
}

impl Options {
    /// Reads arguments and environment.
    pub fn read(args: impl Iterator<Item = String>) -> Result<Self> {
        let args: Vec<String> = args.collect();
        let quick_env = std::env::var("QUICK").is_ok_and(|value| !value.is_empty() && value != "0");
        let is_quick = quick_env || args.iter().any(|arg| arg == "--quick");
        let mut options = Self {
            is_quick,
            parts: Part::DEFAULT.to_vec(),
            targets: TargetName::ALL.to_vec(),
            rounds: if is_quick { 5 } else { 15 },
            cell: Duration::from_millis(if is_quick { 200 } else { 800 }),
            pgward: env!("CARGO_BIN_EXE_pgward").into(),
            pgbouncer: std::env::var_os("PGBOUNCER")
                .map_or("/usr/sbin/pgbouncer".into(), PathBuf::from),
        };
        let mut args = args.into_iter();
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or(format!("{arg} needs a value\n{USAGE}"));
            match arg.as_str() {
                "--quick" => (),
                "--rounds" => options.rounds = value()?.parse()?,
                "--cell-ms" => options.cell = Duration::from_millis(value()?.parse()?),
                "--pgward" => options.pgward = value()?.into(),
                "--parts" => options.parts = list(&value()?, &Part::ALL)?,
                "--targets" => {
                    let named = TargetName::ALL.map(|target| (target.name(), target));
                    options.targets = list(&value()?, &named)?;
                }
                _ => return Err(format!("unknown argument {arg}\n{USAGE}").into()),
            }
        }
        Ok(options)
    }

    /// Is `part` asked for?
    pub fn has(&self, part: Part) -> bool {
        self.parts.contains(&part)
    }
}

fn list<T: Copy>(text: &str, known: &[(&str, T)]) -> Result<Vec<T>> {
    text.split(',')
        .map(|word| {
            let found = known.iter().find(|(name, _)| *name == word);
            found.map(|(_, value)| *value).ok_or(format!("unknown name {word}\n{USAGE}").into())
        })
        .collect()
}
