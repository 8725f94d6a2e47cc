//! `pgward demo`: a whole hospital system on this machine, to look at and to type at.
//!
//! Four shards, each a real primary with a real streaming replica, behind a real `pgward serve`;
//! the schema goes in shard by shard as a migration would, the rows through pgward. Then six
//! queries show what happens where, and the system stays up until Ctrl-C. `system` starts and
//! names things, `load` makes rows, `walk` asks; nothing of it is left behind.

mod load;
mod system;
mod walk;

use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};

use super::local;
use crate::document::Problems;
use crate::shard_map::MintError;
use system::System;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Port of pgward on 127.0.0.1; another one is taken where it is in use.
    #[arg(long, default_value_t = 6432)]
    port: u16,
    /// End after the six queries.
    #[arg(long)]
    no_wait: bool,
}

/// Why the demo ended early.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Local(#[from] local::Error),
    #[error("{what}: {source}")]
    Io { what: &'static str, source: std::io::Error },
    #[error("{what}: {}", tell(.source))]
    Sql { what: String, source: tokio_postgres::Error },
    #[error(transparent)]
    Map(#[from] Problems),
    #[error(transparent)]
    Mint(#[from] MintError),
    #[error("pgward {what}; its log ends:\n{log}")]
    Ward { what: &'static str, log: String },
    #[error("query {number} was to show {expected}, but {found}")]
    Walk { number: usize, expected: &'static str, found: String },
}

/// The server's own words, which tokio-postgres keeps to itself.
fn tell(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) => {
            let hint = db.hint().map(|hint| format!(" HINT: {hint}")).unwrap_or_default();
            format!("{} {}: {}{hint}", db.severity(), db.code().code(), db.message())
        }
        None => error.to_string(),
    }
}

pub(super) fn run(args: Args) -> ExitCode {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("pgward demo: {error}");
            return ExitCode::from(1);
        }
    };
    let outcome = runtime.block_on(async {
        // biased: whoever wants to leave is not kept waiting.
        tokio::select! {
            biased;
            told = told_to_stop() => told.map(|()| true),
            shown = show(&args) => shown.map(|()| false),
        }
    });
    // Waits for servers that are still starting, so that their owners can stop them.
    drop(runtime);
    match outcome {
        Ok(stopped) => {
            let newline = if stopped { "\n" } else { "" };
            println!("{newline}Stopped. Nothing is left behind.");
            ExitCode::SUCCESS
        }
        Err(Error::Local(error @ local::Error::NotInstalled)) => {
            eprintln!("pgward demo: {error}");
            ExitCode::from(2)
        }
        Err(error) => {
            eprintln!("\npgward demo: {error}");
            ExitCode::from(1)
        }
    }
}

async fn told_to_stop() -> Result<(), Error> {
    let io = |source| Error::Io { what: "signals", source };
    let mut interrupt = signal(SignalKind::interrupt()).map_err(io)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(io)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(io)?;
    tokio::select! {
        biased;
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
    Ok(())
}

async fn show(args: &Args) -> Result<(), Error> {
    println!("[1/5] Starting 4 shards, each a primary and a streaming replica");
    let (mut system, shards) = system::start_shards().await?;
    for shard in &shards {
        println!(
            "      shard {}  {:<19} primary {}  replica {}",
            shard.id,
            shard.region,
            shard.primary.address(),
            shard.replica.address()
        );
    }
    system.add_shards(shards);
    println!("[2/5] Starting pgward");
    system.start_pgward(args.port).await?;
    println!("      127.0.0.1:{}", system.port());
    println!("[3/5] Schema and reference rows, shard by shard (options=-c pgward.shard=N)");
    for shard in system.shards() {
        load::migrate(&system, shard.id).await?;
    }
    println!("[4/5] Loading through pgward");
    let hospitals = load::hospitals(&system.map()?)?;
    load::load(&system, &hospitals).await?;
    println!("[5/5] Six queries");
    walk::walk(&system, &hospitals).await?;
    if args.no_wait {
        return Ok(());
    }
    print_lines_to_paste(&system, &hospitals);
    system.pgward_ended().await
}

fn print_lines_to_paste(system: &System, hospitals: &[load::Hospital]) {
    let (here, there) = (hospitals[0].id, hospitals[1].id);
    println!(
        "
It stays up. Paste this into another terminal:

  {psql}

and there, for two hospitals on two shards:

  INSERT INTO patients (hospital_id, id, mrn, name) VALUES ('{here}', 900001, 'MRN-A', 'Ada Test');
  INSERT INTO patients (hospital_id, id, mrn, name) VALUES ('{there}', 900001, 'MRN-B', 'Bo Test');
  SELECT *, inet_server_port() FROM patients WHERE hospital_id = '{here}' AND id = 900001;
  SELECT *, inet_server_port() FROM patients WHERE hospital_id = '{there}' AND id = 900001;
  SELECT * FROM patients;    -- refused, and it says what to do

What pgward sees, and a look at each shard past pgward:

  {console} -c 'SHOW SERVERS'
  curl http://{metrics}/metrics",
        psql = system.psql_line("hospital", "demo"),
        console = system.psql_line("pgward", "admin"),
        metrics = system.metrics_address(),
    );
    for shard in system.shards() {
        println!("  {}", shard.psql_line());
    }
    println!("\nCtrl-C stops it all and leaves nothing behind.");
}
