//! Resident memory per idle client: what 5,000 logged-in clients add to a fresh process.

use crate::Result;
use crate::load::{Load, Mode};
use crate::process::{Ports, resident_kib};
use crate::report::Report;
use crate::targets::{CLIENTS_MAX, Launcher, TargetName, USER};

/// Clients that are there before the first reading, so that pools and caches are warm.
const WARM: usize = 64;

/// Measures each target and tells.
pub fn run(
    launcher: &Launcher<'_>,
    ports: &mut Ports,
    load: &mut Load,
    report: &mut Report,
) -> Result<()> {
    let mut rows = Vec::new();
    for name in launcher.options.targets.iter().copied() {
        if name == TargetName::Direct {
            continue;
        }
        let mut target = launcher.start(name, ports)?;
        target.await_answer(load)?;
        let pid = target.pid().ok_or("no process")?;
        let resident = || Ok::<f64, Box<dyn std::error::Error>>(resident_kib(pid)? as f64);
        load.connect(target.address, USER, &target.database, WARM)?;
        load.count(target.address, Mode::Simple, WARM, 50)?;
        load.count(target.address, Mode::Prepared, WARM, 50)?;
        let base = resident()?;
        load.connect(target.address, USER, &target.database, WARM + CLIENTS_MAX)?;
        let idle = resident()?;
        in_waves(load, target.address, Mode::Simple)?;
        let queried = resident()?;
        in_waves(load, target.address, Mode::Prepared)?;
        let prepared = resident()?;
        let each = |now: f64| format!("{:.2}", (now - base) / CLIENTS_MAX as f64);
        rows.push(vec![
            name.name().to_owned(),
            format!("{:.1}", base / 1024.0),
            each(idle),
            each(queried),
            each(prepared),
        ]);
        load.close(target.address)?;
        target.end("KILL")?;
    }
    report.say(&format!("## Resident memory per idle client, {CLIENTS_MAX} of them"));
    report.table(
        &["target", "MiB before", "KiB each, logged in", "after a query", "after preparing one"],
        &rows,
    );
    Ok(())
}

/// Every client runs one transaction, [`WARM`] at a time: a run takes the first of the loader's
/// clients and puts them back at its end.
fn in_waves(load: &mut Load, address: std::net::SocketAddr, mode: Mode) -> Result<()> {
    for _ in 0..(CLIENTS_MAX + WARM).div_ceil(WARM) {
        load.count(address, mode, WARM, 1)?;
    }
    Ok(())
}
