//! The closed-loop loader: its own process, one thread, its CPU never counted as the proxy's.
//!
//! Reads commands from stdin and answers each with one line, so that the connections live through
//! all rounds. `load.rs` is the other end. A run answers only after its last transaction has, so
//! the proxy's CPU between command and answer belongs to exactly the transactions counted.

use std::collections::HashMap;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::Result;
use crate::fake_backend::shard_name;
use crate::hospitals;
use crate::load::Mode;
use crate::protocol::{
    SELECT_PARAMS, SELECT_PREFIX, cstr, error_text, fill, message, split, startup,
};
use crate::random::Random;

/// Name of the prepared statement.
const STATEMENT: &[u8] = b"patient_by_id";
/// Logins in flight at once; more would only fill listen queues.
const LOGINS_AT_ONCE: usize = 64;

/// Entry of the process.
pub fn run() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut loader = Loader {
        pools: HashMap::new(),
        hospitals: (0..hospitals::COUNT).map(hospitals::id).collect(),
    };
    // The commands come on stdin: its end is the parent's.
    for line in std::io::stdin().lines() {
        let answer = match runtime.block_on(loader.command(&line?)) {
            Ok(answer) => format!("ok {answer}"),
            Err(error) => format!("error {}", error.to_string().replace('\n', " ")),
        };
        println!("{answer}");
        std::io::stdout().flush()?;
    }
    Ok(())
}

struct Loader {
    pools: HashMap<SocketAddr, Vec<Client>>,
    hospitals: Arc<[uuid::Uuid]>,
}

/// When a client stops.
#[derive(Clone, Copy)]
enum Until {
    Deadline(Instant),
    Count(u64),
}

impl Loader {
    async fn command(&mut self, line: &str) -> Result<String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["connect", address, user, database, count] => {
                self.connect(address.parse()?, user, database, count.parse()?).await
            }
            ["close", address] => {
                self.pools.remove(&address.parse()?);
                Ok(String::new())
            }
            ["run", address, mode, clients, millis] => {
                let until =
                    Until::Deadline(Instant::now() + Duration::from_millis(millis.parse()?));
                self.run(address.parse()?, mode.parse()?, clients.parse()?, until, None).await
            }
            ["count", address, mode, clients, count] => {
                let until = Until::Count(count.parse()?);
                self.run(address.parse()?, mode.parse()?, clients.parse()?, until, None).await
            }
            ["verify", address, mode, shards, count] => {
                let until = Until::Count(count.parse()?);
                self.run(address.parse()?, mode.parse()?, 1, until, Some(shards.parse()?)).await
            }
            _ => Err(format!("unknown command: {line}").into()),
        }
    }

    async fn connect(
        &mut self,
        address: SocketAddr,
        user: &str,
        database: &str,
        count: usize,
    ) -> Result<String> {
        let pool = self.pools.entry(address).or_default();
        let packet: Arc<[u8]> = startup(user, database).into();
        while pool.len() < count {
            let mut logins = tokio::task::JoinSet::new();
            for n in pool.len()..count.min(pool.len() + LOGINS_AT_ONCE) {
                let (packet, hospitals) = (packet.clone(), self.hospitals.clone());
                logins.spawn(Client::login(address, packet, hospitals, n as u64));
            }
            for login in logins.join_all().await {
                pool.push(login.map_err(|error| error.to_string())?);
            }
        }
        Ok(String::new())
    }

    async fn run(
        &mut self,
        address: SocketAddr,
        mode: Mode,
        clients: usize,
        until: Until,
        verify_shards: Option<u128>,
    ) -> Result<String> {
        let pool = self.pools.get_mut(&address).ok_or("not connected")?;
        if pool.len() < clients {
            return Err("not enough clients connected".into());
        }
        let started = Instant::now();
        let mut running = tokio::task::JoinSet::new();
        for mut client in pool.drain(..clients) {
            running.spawn(async move {
                let outcome = client.transactions(mode, until, verify_shards).await;
                (client, outcome.map_err(|error| error.to_string()))
            });
        }
        let mut latencies = Latencies::default();
        let mut failure = None;
        for (client, outcome) in running.join_all().await {
            match outcome {
                Ok(of_client) => {
                    pool.push(client);
                    latencies.add(&of_client);
                }
                Err(error) => failure = Some(error),
            }
        }
        match failure {
            Some(error) => Err(error.into()),
            None => Ok(latencies.line(started.elapsed())),
        }
    }
}

/// One connection and what it sends.
struct Client {
    stream: TcpStream,
    input: Vec<u8>,
    output: Vec<u8>,
    is_prepared: bool,
    random: Random,
    hospitals: Arc<[uuid::Uuid]>,
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

impl Client {
    async fn login(
        address: SocketAddr,
        packet: Arc<[u8]>,
        hospitals: Arc<[uuid::Uuid]>,
        seed: u64,
    ) -> std::result::Result<Self, Failure> {
        let mut stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        stream.write_all(&packet).await?;
        let mut client = Self {
            stream,
            input: Vec::new(),
            output: Vec::new(),
            is_prepared: false,
            random: Random(seed),
            hospitals,
        };
        client.until_ready(None).await?;
        Ok(client)
    }

    async fn transactions(
        &mut self,
        mode: Mode,
        until: Until,
        verify_shards: Option<u128>,
    ) -> std::result::Result<Latencies, Failure> {
        let mut latencies = Latencies::default();
        if mode == Mode::Prepared && !self.is_prepared {
            self.output.clear();
            parse(&mut self.output, STATEMENT);
            message(&mut self.output, b'S', |_| ());
            self.stream.write_all(&self.output).await?;
            self.until_ready(None).await?;
            self.is_prepared = true;
        }
        let mut started = Instant::now();
        loop {
            match until {
                Until::Deadline(deadline) if started >= deadline => break,
                Until::Count(count) if latencies.count >= count => break,
                _ => (),
            }
            let hospital = self.hospitals[self.random.below(hospitals::COUNT) as usize];
            let patient = self.random.below(100_000) + 1;
            self.output.clear();
            request(&mut self.output, mode, hospital, patient);
            let expected =
                verify_shards.map(|shards| shard_name((hospital.as_u128() % shards) as u8));
            self.stream.write_all(&self.output).await?;
            self.until_ready(expected.as_deref()).await?;
            let finished = Instant::now();
            latencies.record(finished - started);
            started = finished;
        }
        Ok(latencies)
    }

    /// Reads up to ReadyForQuery. With `expected`, the one row must carry it.
    async fn until_ready(&mut self, expected: Option<&str>) -> std::result::Result<(), Failure> {
        let mut is_expected_seen = expected.is_none();
        loop {
            let mut used = 0;
            while let Some((tag, body, total)) = split(&self.input[used..]) {
                match tag {
                    b'E' => return Err(error_text(body).into()),
                    b'R' if body != [0; 4] => return Err("trust expected".into()),
                    b'D' => {
                        is_expected_seen |= expected.is_some_and(|name| {
                            body.windows(name.len()).any(|window| window == name.as_bytes())
                        });
                    }
                    b'Z' => {
                        self.input.drain(..used + total);
                        return match is_expected_seen {
                            true => Ok(()),
                            false => Err(format!("row of {expected:?} expected").into()),
                        };
                    }
                    _ => (),
                }
                used += total;
            }
            self.input.drain(..used);
            fill(&mut self.stream, &mut self.input).await?;
        }
    }
}

/// What one transaction sends: one write.
fn request(out: &mut Vec<u8>, mode: Mode, hospital: uuid::Uuid, patient: u64) {
    match mode {
        Mode::Simple => message(out, b'Q', |out| {
            let _ = write!(out, "{SELECT_PREFIX}'{hospital}' AND id = {patient}\0");
        }),
        Mode::Extended => {
            parse(out, b"");
            bind(out, b"", hospital, patient);
            message(out, b'D', |out| out.extend_from_slice(b"P\0"));
            message(out, b'E', |out| out.extend_from_slice(&[0; 5]));
            message(out, b'S', |_| ());
        }
        Mode::Prepared => {
            bind(out, STATEMENT, hospital, patient);
            message(out, b'E', |out| out.extend_from_slice(&[0; 5]));
            message(out, b'S', |_| ());
        }
    }
}

/// As libpq: no declared parameter types.
fn parse(out: &mut Vec<u8>, name: &[u8]) {
    message(out, b'P', |out| {
        cstr(out, name);
        cstr(out, SELECT_PARAMS.as_bytes());
        out.extend_from_slice(&0u16.to_be_bytes());
    });
}

/// As libpq: text parameters, one result format.
fn bind(out: &mut Vec<u8>, statement: &[u8], hospital: uuid::Uuid, patient: u64) {
    message(out, b'B', |out| {
        cstr(out, b"");
        cstr(out, statement);
        out.extend_from_slice(&[0, 0, 0, 2]);
        for value in [hospital.to_string(), patient.to_string()] {
            out.extend_from_slice(&(value.len() as u32).to_be_bytes());
            out.extend_from_slice(value.as_bytes());
        }
        out.extend_from_slice(&[0, 1, 0, 0]);
    });
}

/// A histogram with 3 % steps: enough for a p99, and one increment a transaction.
struct Latencies {
    count: u64,
    sum: Duration,
    buckets: Vec<u32>,
}

/// Steps per doubling.
const STEPS: u64 = 32;

impl Default for Latencies {
    fn default() -> Self {
        Self { count: 0, sum: Duration::ZERO, buckets: vec![0; 64 * STEPS as usize] }
    }
}

impl Latencies {
    fn record(&mut self, latency: Duration) {
        self.count += 1;
        self.sum += latency;
        self.buckets[bucket(latency.as_nanos() as u64)] += 1;
    }

    fn add(&mut self, other: &Self) {
        self.count += other.count;
        self.sum += other.sum;
        self.buckets.iter_mut().zip(&other.buckets).for_each(|(mine, theirs)| *mine += theirs);
    }

    /// Upper end of the bucket that holds the quantile.
    fn quantile_ns(&self, quantile: f64) -> u64 {
        let wanted = (self.count as f64 * quantile).ceil() as u64;
        let mut seen = 0;
        for (n, count) in self.buckets.iter().enumerate() {
            seen += u64::from(*count);
            if seen >= wanted {
                return bucket_end(n as u64);
            }
        }
        0
    }

    fn line(&self, elapsed: Duration) -> String {
        let mean = self.sum.as_nanos() as u64 / self.count.max(1);
        let elapsed = elapsed.as_nanos();
        format!("{} {elapsed} {mean} {}", self.count, self.quantile_ns(0.99))
    }
}

fn bucket(ns: u64) -> usize {
    if ns < STEPS {
        return ns as usize;
    }
    let exponent = u64::from(ns.ilog2()) - u64::from(STEPS.ilog2());
    ((exponent + 1) * STEPS + ((ns >> exponent) - STEPS)) as usize
}

fn bucket_end(bucket: u64) -> u64 {
    if bucket < STEPS {
        return bucket;
    }
    let exponent = bucket / STEPS - 1;
    ((bucket % STEPS + STEPS + 1) << exponent) - 1
}
