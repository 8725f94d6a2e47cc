//! User instructions per transaction, counted by valgrind's callgrind.
//!
//! Each target runs under valgrind; its counters are dumped after a warm-up, after a short run and
//! after a long one. The difference of the two, over the difference of their transactions, has
//! neither logins nor start-up in it, and is the same on a loaded machine.

use std::path::{Path, PathBuf};

use crate::Result;
use crate::load::{Load, Mode};
use crate::process::{Ports, RunAs, command};
use crate::report::Report;
use crate::targets::{Launcher, Target, TargetName, USER};

const VALGRIND: &str = "/usr/bin/valgrind";
const CLIENTS: usize = 16;

/// Counts for each target and tells.
pub fn run(
    launcher: &Launcher<'_>,
    ports: &mut Ports,
    load: &mut Load,
    report: &mut Report,
) -> Result<()> {
    report.say("## User instructions per transaction");
    if !Path::new(VALGRIND).exists() {
        report.say("Not counted: there is no valgrind on this machine (apt-get install valgrind).");
        return Ok(());
    }
    let each: u64 = if launcher.options.is_quick { 60 } else { 250 };
    let mut rows = Vec::new();
    for name in launcher.options.targets.iter().copied() {
        if name == TargetName::Direct {
            continue;
        }
        let output = launcher.scratch.join(format!("callgrind-{}", name.name()));
        std::fs::create_dir_all(&output)?;
        crate::process::give_away(&output)?;
        let (output, vgdb) = (output.join("out"), output.join("vgdb"));
        let launcher = Launcher {
            wrapper: vec![
                VALGRIND.into(),
                "--tool=callgrind".into(),
                // Each dump shall be readable by itself.
                "--compress-strings=no".into(),
                format!("--callgrind-out-file={}", output.display()),
                format!("--vgdb-prefix={}", vgdb.display()),
            ],
            probe_interval_ms: crate::RARE_PROBES_MS,
            ..launcher.clone()
        };
        let mut target = launcher.start(name, ports)?;
        target.await_answer(load)?;
        load.connect(target.address, USER, &target.database, CLIENTS)?;
        let run_as = name.run_as();
        let mut dumps = Dumps { output, vgdb, run_as, count: 0 };
        let mut row = vec![name.name().to_owned()];
        for mode in Mode::ALL {
            row.push(format!("{:.0}", per_transaction(load, &target, mode, each, &mut dumps)?));
            for (kind, flag) in [("self", "no"), ("inclusive", "yes")] {
                let name = format!("instructions-{}-{}-{kind}.txt", name.name(), mode.name());
                report.keep(&name, &dumps.annotate(flag)?)?;
            }
        }
        rows.push(row);
        load.close(target.address)?;
        target.end("KILL")?;
    }
    let head = Mode::ALL.map(Mode::name);
    report.table(&[&["target, 16 clients"], &head[..]].concat(), &rows);
    Ok(())
}

fn per_transaction(
    load: &mut Load,
    target: &Target,
    mode: Mode,
    each: u64,
    dumps: &mut Dumps,
) -> Result<f64> {
    let pid = target.pid().ok_or("no process")?;
    // Long enough that every connection has prepared, every cache is filled.
    load.count(target.address, mode, CLIENTS, each)?;
    dumps.take(pid)?;
    let mut counted = |each| -> Result<(u64, u64)> {
        let outcome = load.count(target.address, mode, CLIENTS, each)?;
        Ok((outcome.transactions, dumps.take(pid)?))
    };
    let (short_transactions, short) = counted(each)?;
    let (long_transactions, long) = counted(3 * each)?;
    let transactions = long_transactions - short_transactions;
    Ok((long as f64 - short as f64) / transactions as f64)
}

/// The counters that callgrind writes: each dump starts again at zero.
struct Dumps {
    output: PathBuf,
    /// Prefix of the pipes through which valgrind is told.
    vgdb: PathBuf,
    /// Only its own account may tell it.
    run_as: RunAs,
    count: u32,
}

impl Dumps {
    /// The last one, by function.
    fn annotate(&self, inclusive: &str) -> Result<String> {
        let path = format!("{}.{}", self.output.display(), self.count);
        // A dump begins with its callers, each with the whole: below a threshold of 100 they would
        // be all there is.
        let inclusive = format!("--inclusive={inclusive}");
        let args = [inclusive, "--threshold=100".into(), "--auto=no".into(), path];
        let output = std::process::Command::new("callgrind_annotate").args(args).output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let lines: Vec<&str> = text.lines().filter(|line| !line.contains("(100.0%)")).collect();
        Ok(lines.join("\n"))
    }

    /// Instructions of all threads since the last one.
    fn take(&mut self, pid: u32) -> Result<u64> {
        let prefix = format!("--vgdb-prefix={}", self.vgdb.display());
        let args = [prefix, "--dump".into(), pid.to_string()];
        let told = command(Path::new("callgrind_control"), &args, self.run_as).output()?;
        if !told.status.success() {
            return Err(String::from_utf8_lossy(&told.stderr).into_owned().into());
        }
        self.count += 1;
        let path = format!("{}.{}", self.output.display(), self.count);
        for _ in 0..500 {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            if let Some(total) = text.lines().find_map(|line| line.strip_prefix("totals: ")) {
                return Ok(total.trim().parse()?);
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        Err(format!("callgrind wrote no {path}").into())
    }
}
