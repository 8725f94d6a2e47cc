//! The orchestrator's end of the loader process.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{ChildStdin, ChildStdout};
use std::time::Duration;

use crate::Result;
use crate::process::{Process, RunAs};

/// How a transaction is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Mode {
    /// One Query.
    Simple,
    /// An unnamed Parse, Bind, Describe, Execute, Sync each time.
    Extended,
    /// A statement parsed once per connection; then Bind, Execute, Sync.
    Prepared,
}

impl Mode {
    /// All of them, in the order of the tables.
    pub const ALL: [Self; 3] = [Self::Simple, Self::Extended, Self::Prepared];

    /// Its name, as `pgbench -M` has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Simple => "simple",
            Self::Extended => "extended",
            Self::Prepared => "prepared",
        }
    }
}

impl std::str::FromStr for Mode {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        let found = Self::ALL.into_iter().find(|mode| mode.name() == name);
        found.ok_or_else(|| format!("unknown mode {name}"))
    }
}

/// What one run came to.
#[derive(Debug, Clone, Copy, Default)]
pub struct Outcome {
    /// Transactions that were answered: all that were sent.
    pub transactions: u64,
    /// From the first to the last.
    pub elapsed: Duration,
    /// Mean latency.
    pub mean: Duration,
    /// 99th percentile of the latency.
    pub p99: Duration,
}

impl Outcome {
    /// Transactions a second.
    pub fn throughput(&self) -> f64 {
        self.transactions as f64 / self.elapsed.as_secs_f64()
    }
}

/// A running loader.
pub struct Load {
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    _process: Process,
}

impl Load {
    /// Starts the process.
    pub fn start() -> Result<Self> {
        let mut process = Process::start_role("loader", &[], RunAs::Self_)?;
        let (input, output) = process.pipes()?;
        Ok(Self { input, output: BufReader::new(output), _process: process })
    }

    /// Makes sure that `count` clients are logged in.
    pub fn connect(
        &mut self,
        address: SocketAddr,
        user: &str,
        database: &str,
        count: usize,
    ) -> Result<()> {
        self.command(&format!("connect {address} {user} {database} {count}")).map(|_| ())
    }

    /// Closes all clients of `address`.
    pub fn close(&mut self, address: SocketAddr) -> Result<()> {
        self.command(&format!("close {address}")).map(|_| ())
    }

    /// `clients` run transactions for `time`.
    pub fn run(
        &mut self,
        address: SocketAddr,
        mode: Mode,
        clients: usize,
        time: Duration,
    ) -> Result<Outcome> {
        let mode = mode.name();
        self.outcome(&format!("run {address} {mode} {clients} {}", time.as_millis()))
    }

    /// `clients` run `count` transactions each.
    pub fn count(
        &mut self,
        address: SocketAddr,
        mode: Mode,
        clients: usize,
        count: u64,
    ) -> Result<Outcome> {
        let mode = mode.name();
        self.outcome(&format!("count {address} {mode} {clients} {count}"))
    }

    /// Checks that `count` answers come from the shard that owns their hospital.
    pub fn verify(
        &mut self,
        address: SocketAddr,
        mode: Mode,
        shards: u8,
        count: u64,
    ) -> Result<()> {
        let mode = mode.name();
        self.command(&format!("verify {address} {mode} {shards} {count}")).map(|_| ())
    }

    fn outcome(&mut self, command: &str) -> Result<Outcome> {
        let answer = self.command(command)?;
        let numbers: Vec<u64> =
            answer.split_whitespace().map(str::parse).collect::<std::result::Result<_, _>>()?;
        let [transactions, elapsed, mean, p99] = numbers[..] else {
            return Err(format!("loader said: {answer}").into());
        };
        let [elapsed, mean, p99] = [elapsed, mean, p99].map(Duration::from_nanos);
        Ok(Outcome { transactions, elapsed, mean, p99 })
    }

    fn command(&mut self, command: &str) -> Result<String> {
        writeln!(self.input, "{command}")?;
        self.input.flush()?;
        let mut answer = String::new();
        self.output.read_line(&mut answer)?;
        match answer.trim_end().split_once(' ').unwrap_or((answer.trim_end(), "")) {
            ("ok", rest) => Ok(rest.to_owned()),
            (_, error) => Err(format!("{command}: {error}").into()),
        }
    }
}
