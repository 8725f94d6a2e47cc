//! The main part: rounds in which each target runs each cell in turn, and what they came to.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use crate::Result;
use crate::load::{Load, Mode, Outcome};
use crate::process::Cpu;
use crate::report::{Report, interval, spread};
use crate::statistics::{bootstrap, median, range};
use crate::targets::{Target, TargetName, USER};

/// Clients of the cells.
pub const CLIENTS: [usize; 3] = [1, 16, 64];
/// Direct has no proxy whose CPU needs many rounds.
const DIRECT_EVERY: usize = 3;

/// Protocol and number of clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cell {
    /// How transactions are sent.
    pub mode: Mode,
    /// By how many clients.
    pub clients: usize,
}

impl Cell {
    /// All nine.
    pub fn all() -> impl Iterator<Item = Self> {
        Mode::ALL.into_iter().flat_map(|mode| CLIENTS.map(|clients| Self { mode, clients }))
    }

    /// For tables.
    pub fn name(self) -> String {
        format!("{} {}", self.mode.name(), self.clients)
    }
}

/// One target's turn at one cell in one round.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// What the clients saw.
    pub outcome: Outcome,
    /// What the proxy used.
    pub cpu: Cpu,
    /// What the Postgres servers used, where that was measured.
    pub postgres_ns: Option<u64>,
}

impl Sample {
    /// Microseconds of the proxy's CPU per transaction.
    pub fn cpu_us(&self) -> f64 {
        self.cpu.total_ns as f64 / 1e3 / self.outcome.transactions.max(1) as f64
    }
}

/// All turns of one setting, by round.
#[derive(Debug, Default)]
pub struct Samples(BTreeMap<(Cell, TargetName), BTreeMap<usize, Sample>>);

impl Samples {
    /// Adds the turn of `round`.
    pub fn add(&mut self, cell: Cell, target: TargetName, round: usize, sample: Sample) {
        self.0.entry((cell, target)).or_default().insert(round, sample);
    }

    fn of(&self, cell: Cell, target: TargetName) -> Vec<Sample> {
        self.0.get(&(cell, target)).map_or(vec![], |rounds| rounds.values().copied().collect())
    }

    /// Ratios of CPU per transaction of `target` to `base`, round by round.
    fn ratios(&self, cell: Cell, target: TargetName, base: TargetName) -> Vec<f64> {
        let (Some(mine), Some(theirs)) = (self.0.get(&(cell, target)), self.0.get(&(cell, base)))
        else {
            return vec![];
        };
        let paired = mine.iter().filter_map(|(round, sample)| Some((sample, theirs.get(round)?)));
        paired.map(|(sample, base)| sample.cpu_us() / base.cpu_us()).collect()
    }

    fn cells(&self) -> Vec<Cell> {
        let mut cells: Vec<Cell> = self.0.keys().map(|(cell, _)| *cell).collect();
        cells.dedup();
        cells
    }

    /// One line per turn.
    pub fn tsv(&self) -> String {
        let mut text = String::from(
            "mode\tclients\ttarget\tround\ttransactions\telapsed_ns\tmean_ns\tp99_ns\tcpu_ns\tuser_ns\tsystem_ns\n",
        );
        for ((cell, target), rounds) in &self.0 {
            for (round, sample) in rounds {
                let Outcome { transactions, elapsed, mean, p99 } = sample.outcome;
                let _ = writeln!(
                    text,
                    "{}\t{}\t{}\t{round}\t{transactions}\t{}\t{}\t{}\t{}\t{}\t{}",
                    cell.mode.name(),
                    cell.clients,
                    target.name(),
                    elapsed.as_nanos(),
                    mean.as_nanos(),
                    p99.as_nanos(),
                    sample.cpu.total_ns,
                    sample.cpu.user_ns,
                    sample.cpu.system_ns,
                );
            }
        }
        text
    }

    /// The tables of one setting.
    pub fn tell(&self, report: &mut Report) {
        let mut rows = Vec::new();
        for cell in self.cells() {
            for target in TargetName::ALL {
                let samples = self.of(cell, target);
                if !samples.is_empty() {
                    rows.push(self.row(cell, target, &samples));
                }
            }
        }
        report.table(
            &[
                "cell, target",
                "CPU us/txn (min-max)",
                "of it user",
                "x PgBouncer [95 %]",
                "x relay [95 %]",
                "txn/s",
                "mean us",
                "p99 us",
                "Postgres us/txn",
            ],
            &rows,
        );
    }

    fn row(&self, cell: Cell, target: TargetName, samples: &[Sample]) -> Vec<String> {
        let over = |of: fn(&Sample) -> f64| samples.iter().map(of).collect::<Vec<_>>();
        let transactions: u64 = samples.iter().map(|sample| sample.outcome.transactions).sum();
        let user: u64 = samples.iter().map(|sample| sample.cpu.user_ns).sum();
        let postgres: Vec<f64> = samples
            .iter()
            .filter_map(|sample| {
                Some(sample.postgres_ns? as f64 / 1e3 / sample.outcome.transactions.max(1) as f64)
            })
            .collect();
        let ratio = |base| match target == base || target == TargetName::Direct {
            true => "-".to_owned(),
            false => interval(bootstrap(&self.ratios(cell, target, base))),
        };
        let (cpu, user) = match target {
            TargetName::Direct => ("-".to_owned(), "-".to_owned()),
            _ => {
                let user = user as f64 / 1e3 / transactions.max(1) as f64;
                (spread(range(&over(Sample::cpu_us))), format!("{user:.1}"))
            }
        };
        vec![
            format!("{} {}", cell.name(), target.name()),
            cpu,
            user,
            ratio(TargetName::PgBouncer),
            ratio(TargetName::Relay),
            format!("{:.0}", median(&over(|sample| sample.outcome.throughput()))),
            format!("{:.0}", median(&over(|sample| sample.outcome.mean.as_nanos() as f64 / 1e3))),
            format!("{:.0}", median(&over(|sample| sample.outcome.p99.as_nanos() as f64 / 1e3))),
            match postgres.is_empty() {
                true => "-".into(),
                false => format!("{:.1}", median(&postgres)),
            },
        ]
    }
}

/// Runs all cells on the fake backend: `rounds` rounds, each target in turn, none always first.
pub fn run(
    load: &mut Load,
    targets: &[Target],
    rounds: usize,
    cell_time: Duration,
) -> Result<Samples> {
    let most = CLIENTS.into_iter().max().unwrap_or_default();
    for target in targets {
        load.connect(target.address, USER, &target.database, most)?;
    }
    let mut samples = Samples::default();
    for round in 0..rounds {
        for (n, cell) in Cell::all().enumerate() {
            for turn in 0..targets.len() {
                let target = &targets[(turn + round + n) % targets.len()];
                if target.name == TargetName::Direct && round % DIRECT_EVERY != 0 {
                    continue;
                }
                let sample = turn_of(load, target, cell, cell_time)?;
                samples.add(cell, target.name, round, sample);
            }
        }
        eprintln!("round {} of {rounds} done", round + 1);
    }
    Ok(samples)
}

fn turn_of(load: &mut Load, target: &Target, cell: Cell, time: Duration) -> Result<Sample> {
    load.run(target.address, cell.mode, cell.clients, time / 10)?;
    let before = target.pid().map(Cpu::of).transpose()?.unwrap_or_default();
    let outcome = load.run(target.address, cell.mode, cell.clients, time)?;
    let after = target.pid().map(Cpu::of).transpose()?.unwrap_or_default();
    Ok(Sample { outcome, cpu: after.since(before), postgres_ns: None })
}
