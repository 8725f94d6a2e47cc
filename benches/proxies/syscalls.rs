//! System calls per transaction, counted by strace on a short run.

use std::path::Path;
use std::time::Duration;

use crate::Result;
use crate::cells::Cell;
use crate::load::Load;
use crate::process::{Process, RunAs};
use crate::report::Report;
use crate::targets::{Target, USER};

const STRACE: &str = "/usr/bin/strace";
/// Clients of the cells that are counted.
const CLIENTS: [usize; 2] = [16, 64];
/// Calls below this share of a transaction are not named.
const NAMED_MIN: f64 = 0.05;

/// Counts for each target and tells.
pub fn run(
    load: &mut Load,
    targets: &[Target],
    directory: &Path,
    time: Duration,
    report: &mut Report,
) -> Result<()> {
    report.say("## System calls per transaction");
    if !Path::new(STRACE).exists() {
        report.say("Not counted: there is no strace on this machine (apt-get install strace).");
        return Ok(());
    }
    let mut rows = Vec::new();
    for cell in Cell::all().filter(|cell| CLIENTS.contains(&cell.clients)) {
        for target in targets {
            let Some(pid) = target.pid() else { continue };
            load.connect(target.address, USER, &target.database, cell.clients)?;
            load.run(target.address, cell.mode, cell.clients, time / 4)?;
            let table = directory.join("strace");
            let log = directory.join("strace-log");
            let args = ["-c", "-f", "-p", &pid.to_string(), "-o", &table.display().to_string()]
                .map(str::to_owned);
            let strace = Process::start(Path::new(STRACE), &args, RunAs::Self_, &log)?;
            await_attached(pid, strace.id())?;
            let outcome = load.run(target.address, cell.mode, cell.clients, time)?;
            strace.end("INT")?;
            let calls = parse(&std::fs::read_to_string(&table)?);
            let per = |count: u64| count as f64 / outcome.transactions.max(1) as f64;
            let total: u64 = calls.iter().map(|(_, count)| count).sum();
            let named = calls.iter().filter(|(_, count)| per(*count) >= NAMED_MIN);
            rows.push(vec![
                format!("{} {}", cell.name(), target.name.name()),
                format!("{:.2}", per(total)),
                named
                    .map(|(name, count)| format!("{name} {:.2}", per(*count)))
                    .collect::<Vec<_>>()
                    .join(", "),
            ]);
        }
    }
    report.table(&["cell, target", "calls/txn", "of them"], &rows);
    Ok(())
}

/// Waits until every thread of `pid` is traced by `tracer`.
fn await_attached(pid: u32, tracer: u32) -> Result<()> {
    let wanted = format!("TracerPid:\t{tracer}\n");
    for _ in 0..200 {
        let mut is_all = true;
        for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
            is_all &= std::fs::read_to_string(thread?.path().join("status"))?.contains(&wanted);
        }
        if is_all {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Err(format!("strace could not attach to process {pid}").into())
}

/// Name and count of each call, most frequent first, off `strace -c`.
fn parse(text: &str) -> Vec<(String, u64)> {
    let mut calls: Vec<(String, u64)> = text
        .lines()
        .filter_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let name = *words.last()?;
            let count = words.get(3)?.parse().ok()?;
            (name != "total").then(|| (name.to_owned(), count))
        })
        .collect();
    calls.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    calls
}
