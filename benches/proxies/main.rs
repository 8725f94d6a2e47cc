//! `make bench`: what pgward costs beside PgBouncer, a plain relay, and no proxy at all.
//!
//! This program is the orchestrator and, started again with `--role=`, the fake backend, the relay
//! and the loader. Targets start once; then rounds, in which each runs each cell in turn, so that a
//! noisy machine is noisy for all. What counts is the proxy's own CPU time per transaction, as a
//! ratio to PgBouncer in the same round. `benches/README.md` says how to read it.

mod cells;
mod fake_backend;
mod hospitals;
mod instructions;
mod load;
mod loader;
mod memory;
mod options;
mod process;
mod profile;
mod protocol;
mod random;
mod real;
mod relay;
mod report;
mod statistics;
mod syscalls;
mod targets;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use fake_backend::shard_name;
use load::{Load, Mode};
use options::{Options, Part};
use pgward::cli::local;
use process::{Cpu, Ports, Process, RunAs};
use report::Report;
use targets::{Backend, DATABASE, Launcher, PROBE_USER, Target, TargetName, USER};

/// Errors end the benchmark: they need words, not types.
type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Shards of the large map.
const SHARDS: u8 = 100;
/// pgward's default.
const PROBE_INTERVAL_MS: u64 = 100;
/// Probes run by the clock while strace and valgrind make all else slow: there they must not count.
const RARE_PROBES_MS: u64 = 60_000;

fn main() -> ExitCode {
    // cargo passes --bench.
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let role = args.first().and_then(|arg| arg.strip_prefix("--role="));
    let outcome = match role {
        Some("fake-backend") => fake_backend::run(&args[1..]),
        Some("relay") => relay::run(&args[1..]),
        Some("loader") => loader::run(),
        Some(other) => Err(format!("unknown role {other}").into()),
        None => Options::read(args.into_iter()).and_then(|options| measure(&options)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(options: &Options) -> Result<()> {
    let started = Instant::now();
    let mut report = Report::new()?;
    let mut ports = Ports::new();
    describe(options, &mut report)?;
    let sandbox = local::Sandbox::new()?;
    if options.parts.iter().any(|part| *part != Part::Real) {
        fake_setting(options, &sandbox, &mut ports, &mut report)?;
    }
    if options.has(Part::Real) {
        real::run(options, &sandbox, &mut ports, &mut report)?;
    }
    report.say(&format!("Took {:.0} s.", started.elapsed().as_secs_f64()));
    report.finish(if options.is_quick { "quick.md" } else { "full.md" })
}

/// What ran where, for whoever reads the figures later.
fn describe(options: &Options, report: &mut Report) -> Result<()> {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name\t: "));
    let (major, minor) = targets::pgbouncer_version(&options.pgbouncer)?;
    report.say("# pgward beside PgBouncer");
    report.say(&format!(
        "{} CPUs ({}), Linux {}, load {} at the start. PgBouncer {major}.{minor}{}. \
         {} rounds of {} ms a cell; ratios are medians of the rounds with a 95 % bootstrap interval.",
        std::thread::available_parallelism()?,
        model.unwrap_or("unknown"),
        read("/proc/sys/kernel/osrelease").trim(),
        read("/proc/loadavg").split(' ').next().unwrap_or_default(),
        match targets::prepares((major, minor)) {
            true => "",
            false =>
                ", which has no prepared statements in transaction mode: on the fake backend, \
                 which lets it, it forwards Bind unread, cheaper than any pooler that is right",
        },
        options.rounds,
        options.cell.as_millis(),
    ));
    Ok(())
}

fn fake_setting(
    options: &Options,
    sandbox: &local::Sandbox,
    ports: &mut Ports,
    report: &mut Report,
) -> Result<()> {
    // pgward's control connections need a catalog that is real.
    let real = sandbox.primary("control", &local::Options::default())?;
    set_up(&real, &[DATABASE.to_owned()], "")?;
    let port = ports.take();
    let args = [
        port.to_string(),
        SHARDS.to_string(),
        format!("127.0.0.1:{}", real.port()),
        PROBE_USER.to_owned(),
    ];
    let _fake = Process::start_role("fake-backend", &args, RunAs::Self_)?.await_ready()?;
    let backend = Backend::fake(port, SHARDS);
    let launcher = Launcher {
        options,
        scratch: sandbox.directory(),
        backend: &backend,
        wrapper: vec![],
        probe_interval_ms: PROBE_INTERVAL_MS,
    };
    let mut load = Load::start()?;
    if options.has(Part::Fake) || options.has(Part::Profile) {
        let targets = start_all(&launcher, ports, &mut load)?;
        report.say("# Fake backend");
        if options.has(Part::Fake) {
            tell_idle(&targets, report)?;
            let samples = cells::run(&mut load, &targets, options.rounds, options.cell)?;
            report.keep("fake.tsv", &samples.tsv())?;
            samples.tell(report);
        }
        if options.has(Part::Profile) {
            profile::run(&mut load, &targets, sandbox.directory(), report)?;
        }
        close_all(&mut load, targets)?;
    }
    if options.has(Part::Syscalls) {
        let launcher = Launcher { probe_interval_ms: RARE_PROBES_MS, ..launcher.clone() };
        let targets = start_all(&launcher, ports, &mut load)?;
        syscalls::run(&mut load, &targets, sandbox.directory(), options.cell / 2, report)?;
        close_all(&mut load, targets)?;
    }
    if options.has(Part::Instructions) {
        instructions::run(&launcher, ports, &mut load, report)?;
    }
    if options.has(Part::Memory) {
        memory::run(&launcher, ports, &mut load, report)?;
    }
    Ok(())
}

fn close_all(load: &mut Load, targets: Vec<Target>) -> Result<()> {
    targets.iter().try_for_each(|target| load.close(target.address))
}

/// Starts what was asked for; each must answer rightly before anything is measured.
fn start_all(launcher: &Launcher<'_>, ports: &mut Ports, load: &mut Load) -> Result<Vec<Target>> {
    let mut targets = Vec::new();
    for name in launcher.options.targets.iter().copied() {
        let mut target = launcher.start(name, ports)?;
        target.await_answer(load)?;
        let shards = if name == TargetName::PgwardMany { SHARDS } else { 1 };
        for mode in Mode::ALL {
            load.verify(target.address, mode, shards, 300).map_err(|error| {
                format!("{}: wrong answer, e.g. not {}: {error}", name.name(), shard_name(0))
            })?;
        }
        warm_up(launcher.options, load, &target)?;
        targets.push(target);
    }
    Ok(targets)
}

/// Until every server connection that will be needed is there and has prepared what is asked: with
/// a hundred shards that takes a while, and is not what is measured.
fn warm_up(options: &Options, load: &mut Load, target: &Target) -> Result<()> {
    let clients = cells::CLIENTS.into_iter().max().unwrap_or_default();
    load.connect(target.address, USER, &target.database, clients)?;
    for mode in Mode::ALL {
        load.run(target.address, mode, clients, 2 * options.cell)?;
    }
    Ok(())
}

/// What each proxy uses while nobody asks it anything.
fn tell_idle(targets: &[Target], report: &mut Report) -> Result<()> {
    let read =
        || -> Result<Vec<Cpu>> { targets.iter().filter_map(Target::pid).map(Cpu::of).collect() };
    let before = read()?;
    let time = Duration::from_secs(2);
    std::thread::sleep(time);
    let after = read()?;
    let names = targets.iter().filter(|target| target.pid().is_some());
    let rows: Vec<Vec<String>> = names
        .zip(after.into_iter().zip(before))
        .map(|(target, (after, before))| {
            let used = after.since(before).total_ns as f64 / 1e6 / time.as_secs_f64();
            vec![target.name.name().to_owned(), format!("{used:.2}")]
        })
        .collect();
    report.say("CPU while idle (probes and timers; it is part of the figures below):");
    report.table(&["target", "ms a second"], &rows);
    Ok(())
}

/// Users, databases, tables and `rows` on a real server.
fn set_up(server: &local::Postgres, databases: &[String], rows: &str) -> Result<()> {
    server
        .psql("postgres", &format!("CREATE ROLE {USER} LOGIN; CREATE ROLE {PROBE_USER} LOGIN"))?;
    let Some((template, copies)) = databases.split_first() else { return Ok(()) };
    server.psql("postgres", &format!("CREATE DATABASE {template}"))?;
    server.psql(template, include_str!("../../config/schema.sql"))?;
    server.psql(template, &format!("GRANT SELECT ON ALL TABLES IN SCHEMA public TO {USER}"))?;
    for statement in rows.split(';').filter(|statement| !statement.trim().is_empty()) {
        server.psql(template, statement)?;
    }
    for copy in copies {
        let copied = format!("CREATE DATABASE {copy} TEMPLATE {template} STRATEGY file_copy");
        server.psql("postgres", &copied)?;
    }
    Ok(())
}
