//! The second setting: real Postgres and pgbench. The databases of one cluster are the shards.
//!
//! pgbench can't make a uuid, so each hospital is a script of its own and pgbench picks one at
//! random for each transaction: the hospital is a literal, the patient a variable. Noisier than
//! the fake backend, but it shows what Postgres itself spends behind each target.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pgward::cli::local;

use crate::Result;
use crate::cells::{Cell, Sample, Samples};
use crate::hospitals;
use crate::load::{Load, Mode, Outcome};
use crate::options::Options;
use crate::process::{Cpu, Ports, RunAs, command, family_cpu_ns};
use crate::protocol::SELECT_PREFIX;
use crate::report::Report;
use crate::set_up;
use crate::targets::{Backend, Launcher, Target, TargetName, USER, pgbouncer_version, prepares};

/// Name of the server in its sandbox.
const SERVER: &str = "shards";
/// One hospital for each bucket of the map, so that every shard has work.
const HOSPITALS: u128 = 100;
/// Patients of each hospital.
const PATIENTS: u32 = 100;

/// How much of it runs.
struct Extent {
    shards: usize,
    rounds: usize,
    seconds: u64,
    clients: &'static [usize],
}

/// Measures and tells.
pub fn run(
    options: &Options,
    sandbox: &local::Sandbox,
    ports: &mut Ports,
    report: &mut Report,
) -> Result<()> {
    let extent = match options.is_quick {
        true => Extent { shards: 10, rounds: 1, seconds: 1, clients: &[16] },
        false => Extent { shards: 100, rounds: 3, seconds: 2, clients: &[1, 16, 64] },
    };
    let hospitals = hospital_of_each_bucket();
    let server = start_server(sandbox, &extent, &hospitals)?;
    let scripts = write_scripts(sandbox.directory(), &hospitals)?;
    let backend = Backend::real(server.port(), extent.shards);
    let launcher = Launcher {
        options,
        scratch: sandbox.directory(),
        backend: &backend,
        wrapper: vec![],
        probe_interval_ms: crate::PROBE_INTERVAL_MS,
    };
    let mut load = Load::start()?;
    let mut targets = Vec::new();
    for name in options.targets.iter().copied() {
        let mut target = launcher.start(name, ports)?;
        target.await_answer(&mut load)?;
        load.close(target.address)?;
        targets.push(target);
    }
    let bench = Bench {
        pgbench: sandbox.program("pgbench"),
        scripts,
        log: sandbox.directory().join("pgbench-log"),
        postmaster: postmaster(sandbox)?,
        seconds: extent.seconds,
    };
    let pgbouncer_prepares = prepares(pgbouncer_version(&options.pgbouncer)?);
    let mut samples = Samples::default();
    for round in 0..extent.rounds {
        for cell in Cell::all().filter(|cell| extent.clients.contains(&cell.clients)) {
            for turn in 0..targets.len() {
                let target = &targets[(turn + round) % targets.len()];
                let can = target.name != TargetName::PgBouncer || pgbouncer_prepares;
                if can || cell.mode != Mode::Prepared {
                    samples.add(cell, target.name, round, bench.turn(target, cell)?);
                }
            }
        }
        eprintln!("pgbench round {} of {} done", round + 1, extent.rounds);
    }
    report.keep("real.tsv", &samples.tsv())?;
    report.say(&format!(
        "# Real Postgres, pgbench\n\n{} rounds of {} s a cell; the large map has {} databases of one \
         cluster. pgbench's logins are part of the figures.",
        extent.rounds, extent.seconds, extent.shards
    ));
    samples.tell(report);
    Ok(())
}

impl Backend {
    /// Databases of one real server.
    fn real(port: u16, shards: usize) -> Self {
        let address = std::net::SocketAddr::from((std::net::Ipv4Addr::LOCALHOST, port));
        let names = database_names(shards);
        Self {
            single: (address, names[0].clone()),
            lenient_database: names[0].clone(),
            shards: names.into_iter().map(|name| (address, name)).collect(),
            hospitals: (0..hospitals::COUNT).map(hospitals::id).collect(),
        }
    }
}

fn database_names(shards: usize) -> Vec<String> {
    (0..shards).map(|n| format!("hospital_{n}")).collect()
}

fn hospital_of_each_bucket() -> Vec<uuid::Uuid> {
    let of_bucket = |bucket| {
        (0..hospitals::COUNT).map(hospitals::id).find(|id| id.as_u128() % HOSPITALS == bucket)
    };
    (0..HOSPITALS).filter_map(of_bucket).collect()
}

fn start_server(
    sandbox: &local::Sandbox,
    extent: &Extent,
    hospitals: &[uuid::Uuid],
) -> Result<local::Postgres> {
    let settings =
        [("max_connections", "1000"), ("shared_buffers", "256MB"), ("autovacuum", "off")];
    let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let server = sandbox.primary(SERVER, &local::Options { settings, ..Default::default() })?;
    let rows: Vec<String> =
        hospitals.iter().map(|id| format!("('{id}', 1, 'code', 'name')")).collect();
    let rows = format!(
        "INSERT INTO regions VALUES (1, 'europe');
         INSERT INTO hospitals (id, region_id, code, name) VALUES {};
         INSERT INTO patients (hospital_id, id, mrn, name)
             SELECT h.id, p, 'MRN' || p, 'name ' || p FROM hospitals h, generate_series(1, {PATIENTS}) p;
         VACUUM ANALYZE",
        rows.join(",")
    );
    set_up(&server, &database_names(extent.shards), &rows)?;
    Ok(server)
}

/// One script for each hospital.
fn write_scripts(directory: &Path, hospitals: &[uuid::Uuid]) -> Result<Vec<PathBuf>> {
    let mut scripts = Vec::new();
    for (n, hospital) in hospitals.iter().enumerate() {
        let path = directory.join(format!("hospital-{n}.sql"));
        let mut text = format!("\\set id random(1, {PATIENTS})\n");
        writeln!(text, "{SELECT_PREFIX}'{hospital}' AND id = :id;")?;
        std::fs::write(&path, text)?;
        scripts.push(path);
    }
    Ok(scripts)
}

fn postmaster(sandbox: &local::Sandbox) -> Result<u32> {
    let text = std::fs::read_to_string(sandbox.directory().join(SERVER).join("postmaster.pid"))?;
    Ok(text.lines().next().unwrap_or_default().trim().parse()?)
}

/// How pgbench is run.
struct Bench {
    pgbench: PathBuf,
    scripts: Vec<PathBuf>,
    /// Prefix of its log of each transaction.
    log: PathBuf,
    postmaster: u32,
    seconds: u64,
}

impl Bench {
    fn turn(&self, target: &Target, cell: Cell) -> Result<Sample> {
        let cpu = || target.pid().map(Cpu::of).transpose().map(Option::unwrap_or_default);
        let (before, postgres_before) = (cpu()?, family_cpu_ns(self.postmaster)?);
        let outcome = self.pgbench(target, cell)?;
        // The last backends may still be on their way out.
        std::thread::sleep(Duration::from_millis(50));
        let (after, postgres_after) = (cpu()?, family_cpu_ns(self.postmaster)?);
        let postgres_ns = Some(postgres_after.saturating_sub(postgres_before));
        Ok(Sample { outcome, cpu: after.since(before), postgres_ns })
    }

    fn pgbench(&self, target: &Target, cell: Cell) -> Result<Outcome> {
        let mut args: Vec<String> =
            ["-n", "-l", "-j", "1", "-h", "127.0.0.1", "-U", USER].map(str::to_owned).to_vec();
        args.push(format!("--log-prefix={}", self.log.display()));
        args.push(format!("--port={}", target.address.port()));
        args.push(format!("--protocol={}", cell.mode.name()));
        args.push(format!("--client={}", cell.clients));
        args.push(format!("--time={}", self.seconds));
        args.extend(self.scripts.iter().map(|script| format!("--file={}", script.display())));
        args.push(target.database.clone());
        let output = command(&self.pgbench, &args, RunAs::Self_).output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            let error = String::from_utf8_lossy(&output.stderr);
            let error: Vec<&str> = error.lines().take(5).collect();
            return Err(
                format!("pgbench, {} {}: {error:?}", target.name.name(), cell.name()).into()
            );
        }
        let latencies = self.take_latencies()?;
        let tps = number(&text, "tps = ")?;
        let transactions = latencies.len() as u64;
        let at = (latencies.len() * 99 / 100).min(latencies.len().saturating_sub(1));
        let sum: u64 = latencies.iter().sum();
        Ok(Outcome {
            transactions,
            elapsed: Duration::from_secs_f64(transactions as f64 / tps.max(1e-9)),
            mean: Duration::from_micros(sum / transactions.max(1)),
            p99: Duration::from_micros(latencies.get(at).copied().unwrap_or_default()),
        })
    }

    /// Reads and removes the log: the latency of each transaction, sorted, in microseconds.
    fn take_latencies(&self) -> Result<Vec<u64>> {
        let directory = self.log.parent().ok_or("no directory")?;
        let name = self.log.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let mut latencies = Vec::new();
        for entry in std::fs::read_dir(directory)? {
            let entry = entry?;
            if !entry.file_name().to_string_lossy().starts_with(name) {
                continue;
            }
            let text = std::fs::read_to_string(entry.path())?;
            let times = text.lines().filter_map(|line| line.split(' ').nth(2)?.parse::<u64>().ok());
            latencies.extend(times);
            std::fs::remove_file(entry.path())?;
        }
        latencies.sort_unstable();
        Ok(latencies)
    }
}

/// The number behind `label`.
fn number(text: &str, label: &str) -> Result<f64> {
    let (_, rest) = text.split_once(label).ok_or_else(|| format!("pgbench said: {text}"))?;
    Ok(rest.split_whitespace().next().unwrap_or_default().parse()?)
}
