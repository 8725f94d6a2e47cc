//! Where the CPU goes: perf's samples of each proxy, by function. Only when asked for.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::Result;
use crate::cells::Cell;
use crate::load::{Load, Mode};
use crate::process::{Process, RunAs};
use crate::report::Report;
use crate::targets::{Target, USER};

const PERF: &str = "/usr/bin/perf";
/// The cells that the goals speak of.
const CELLS: [Cell; 3] = [
    Cell { mode: Mode::Simple, clients: 16 },
    Cell { mode: Mode::Extended, clients: 16 },
    Cell { mode: Mode::Prepared, clients: 64 },
];
const TIME: Duration = Duration::from_secs(3);
/// Functions of each profile that the report shows; the files have them all.
const SHOWN: usize = 45;

/// Profiles each target and tells.
pub fn run(
    load: &mut Load,
    targets: &[Target],
    directory: &Path,
    report: &mut Report,
) -> Result<()> {
    report.say("## Profile");
    if !Path::new(PERF).exists() {
        report.say("Not taken: there is no perf on this machine (apt-get install linux-perf).");
        return Ok(());
    }
    for target in targets {
        let Some(pid) = target.pid() else { continue };
        for cell in CELLS {
            load.connect(target.address, USER, &target.database, cell.clients)?;
            load.run(target.address, cell.mode, cell.clients, TIME / 10)?;
            let samples = directory.join("perf.data");
            let samples_arg = samples.display().to_string();
            let pid = pid.to_string();
            // cpu-clock: virtual machines often have no hardware counters.
            let args = ["record", "-q", "-e", "cpu-clock", "-F", "4000", "-g", "-p", &pid, "-o"];
            let args: Vec<String> =
                args.iter().map(|arg| (*arg).to_owned()).chain([samples_arg.clone()]).collect();
            let log = directory.join("perf-log");
            let perf = Process::start(Path::new(PERF), &args, RunAs::Self_, &log)?;
            let outcome = load.run(target.address, cell.mode, cell.clients, TIME)?;
            perf.end("INT")?;
            let name = format!("profile-{}-{}", target.name.name(), cell.name().replace(' ', "-"));
            report.say(&format!(
                "### {}, {}: {} transactions",
                target.name.name(),
                cell.name(),
                outcome.transactions
            ));
            let flat = |sort| read(&["--no-children", "-g", "none", "--sort", sort], &samples_arg);
            let (parts, own) = (flat("dso")?, flat("dso,symbol")?);
            // The kernel's part is nearly the same for all: shown as one line.
            let user = own.lines().filter(|line| line.contains("[.]")).take(SHOWN);
            let shown: Vec<&str> = parts.lines().chain(["by function:"]).chain(user).collect();
            report.say(&format!("```\n{}\n```", shown.join("\n")));
            report.keep(&format!("{name}-self.txt"), &own)?;
            let callers = read(&["--children", "-g", "caller,0.5"], &samples_arg)?;
            report.keep(&format!("{name}-callers.txt"), &callers)?;
        }
    }
    Ok(())
}

fn read(args: &[&str], samples: &str) -> Result<String> {
    let output =
        Command::new(PERF).args(["report", "--stdio", "-q", "-i", samples]).args(args).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let lines = text.lines().map(|line| line.trim_end_matches([' ', '-']));
    let lines: Vec<&str> = lines.filter(|line| !line.is_empty()).collect();
    Ok(lines.join("\n"))
}
