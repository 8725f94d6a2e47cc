//! What is measured: how each target is configured and started.

use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::Result;
use crate::fake_backend::shard_host;
use crate::hospitals;
use crate::load::{Load, Mode};
use crate::options::Options;
use crate::process::{Ports, Process, RunAs};

/// Server connections of every pooler.
pub const SERVERS: usize = 20;
/// Most clients at once, in the test of idle ones.
pub const CLIENTS_MAX: usize = 5_000;
/// The user of clients and of server connections.
pub const USER: &str = "bench";
/// The user of pgward's control connections.
pub const PROBE_USER: &str = "probe";
/// The database that clients name.
pub const DATABASE: &str = "hospital";
/// How long a target may take until its first answer (under valgrind, with 50,000 hospitals).
const PATIENCE: Duration = Duration::from_secs(120);

/// The five of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TargetName {
    /// No proxy.
    Direct,
    /// Our own plain TCP relay.
    Relay,
    /// PgBouncer on one database.
    PgBouncer,
    /// pgward with a map of one shard.
    PgwardOne,
    /// pgward with many shards and a directory of hospitals.
    PgwardMany,
}

impl TargetName {
    /// All of them, in the order of the tables.
    pub const ALL: [Self; 5] =
        [Self::Direct, Self::Relay, Self::PgBouncer, Self::PgwardOne, Self::PgwardMany];

    /// Its name on the command line and in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Relay => "relay",
            Self::PgBouncer => "pgbouncer",
            Self::PgwardOne => "pgward-1",
            Self::PgwardMany => "pgward-100",
        }
    }

    /// The account that its process runs under.
    pub fn run_as(self) -> RunAs {
        match self {
            Self::PgBouncer => RunAs::Unprivileged,
            _ => RunAs::Self_,
        }
    }
}

/// What stands behind the targets.
#[derive(Debug, Clone)]
pub struct Backend {
    /// Where everything is for targets that know one database.
    pub single: (SocketAddr, String),
    /// As `single`, for a PgBouncer that forwards prepared statements unread.
    pub lenient_database: String,
    /// Address and database of each shard of the large map.
    pub shards: Vec<(SocketAddr, String)>,
    /// The ids of the directory of the large map.
    pub hospitals: Vec<uuid::Uuid>,
}

impl Backend {
    /// The fake one: each shard is a loopback address.
    pub fn fake(port: u16, shards: u8) -> Self {
        let at = |host: Ipv4Addr| SocketAddr::from((host, port));
        Self {
            single: (at(Ipv4Addr::LOCALHOST), DATABASE.into()),
            lenient_database: format!("{DATABASE}_lenient"),
            shards: (0..shards).map(|n| (at(shard_host(n)), DATABASE.into())).collect(),
            hospitals: (0..hospitals::COUNT).map(hospitals::id).collect(),
        }
    }
}

/// A running target.
pub struct Target {
    /// Which.
    pub name: TargetName,
    /// Where clients connect.
    pub address: SocketAddr,
    /// The database that they name.
    pub database: String,
    process: Option<Process>,
    log: Option<PathBuf>,
}

impl Target {
    /// Its process id; `Direct` has none.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    /// Waits until it answers a transaction.
    pub fn await_answer(&mut self, load: &mut Load) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let tried = load
                .connect(self.address, USER, &self.database, 1)
                .and_then(|()| load.count(self.address, Mode::Simple, 1, 1));
            let Err(error) = tried else { return Ok(()) };
            let has_ended = self.process.as_mut().is_some_and(Process::has_ended);
            if has_ended || Instant::now() > deadline {
                let log = self.log.clone().unwrap_or_default();
                return Err(told(self.name, &error, &log));
            }
            load.close(self.address)?;
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Ends it with `signal` and waits.
    pub fn end(self, signal: &str) -> Result<()> {
        self.process.map_or(Ok(()), |process| process.end(signal))
    }
}

/// Starts targets in front of one backend.
#[derive(Clone)]
pub struct Launcher<'a> {
    /// What was asked for.
    pub options: &'a Options,
    /// Where configurations and logs go.
    pub scratch: &'a Path,
    /// What stands behind.
    pub backend: &'a Backend,
    /// Under which program (valgrind and its arguments); empty for none.
    pub wrapper: Vec<String>,
    /// Milliseconds between pgward's probes; long ones keep them out of instruction counts.
    pub probe_interval_ms: u64,
}

impl Launcher<'_> {
    /// Starts `name`; it may not answer yet.
    pub fn start(&self, name: TargetName, ports: &mut Ports) -> Result<Target> {
        if name == TargetName::Direct {
            let (address, database) = self.backend.single.clone();
            return Ok(Target { name, address, database, process: None, log: None });
        }
        let port = ports.take();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let directory = self.scratch.join(format!("{}-{port}", name.name()));
        std::fs::create_dir_all(&directory)?;
        crate::process::give_away(&directory)?;
        let (program, args) = match name {
            TargetName::Relay => {
                let to = self.backend.single.0.to_string();
                let args = vec!["--role=relay".into(), address.to_string(), to];
                (std::env::current_exe()?, args)
            }
            TargetName::PgBouncer => {
                let config = self.pgbouncer_config(&directory, port)?;
                let args = vec![config.display().to_string()];
                (self.options.pgbouncer.clone(), args)
            }
            _ => {
                let config = self.pgward_config(&directory, name, port)?;
                let config = config.display().to_string();
                let args = vec!["serve".into(), "--config".into(), config];
                (self.options.pgward.clone(), args)
            }
        };
        let (log, run_as) = (directory.join("log"), name.run_as());
        let mut process = match self.wrapper.split_first() {
            None => Process::start(&program, &args, run_as, &log)?,
            Some((wrapper, wrapper_args)) => {
                let mut all = wrapper_args.to_vec();
                all.push(program.display().to_string());
                all.extend(args);
                Process::start(Path::new(wrapper), &all, run_as, &log)?
            }
        };
        process.await_port(address, PATIENCE).map_err(|error| told(name, &error, &log))?;
        let database = match name {
            TargetName::Relay => self.backend.single.1.clone(),
            _ => DATABASE.into(),
        };
        Ok(Target { name, address, database, process: Some(process), log: Some(log) })
    }

    fn pgbouncer_config(&self, directory: &Path, port: u16) -> Result<PathBuf> {
        let users = directory.join("users.txt");
        std::fs::write(&users, format!("\"{USER}\" \"\"\n"))?;
        let version = pgbouncer_version(&self.options.pgbouncer)?;
        let (server, database) = &self.backend.single;
        let (database, prepared) = match prepares(version) {
            true => (database, "max_prepared_statements = 200"),
            false => (&self.backend.lenient_database, ""),
        };
        let text = format!(
            "[databases]\n\
             {DATABASE} = host={} port={} dbname={database}\n\
             [pgbouncer]\n\
             listen_addr = 127.0.0.1\n\
             listen_port = {port}\n\
             unix_socket_dir =\n\
             auth_type = trust\n\
             auth_file = {}\n\
             pool_mode = transaction\n\
             default_pool_size = {SERVERS}\n\
             max_client_conn = {}\n\
             listen_backlog = 4096\n\
             log_connections = 0\n\
             log_disconnections = 0\n\
             {prepared}\n",
            server.ip(),
            server.port(),
            users.display(),
            CLIENTS_MAX + 1_000,
        );
        let path = directory.join("pgbouncer.ini");
        std::fs::write(&path, text)?;
        Ok(path)
    }

    fn pgward_config(&self, directory: &Path, name: TargetName, port: u16) -> Result<PathBuf> {
        std::fs::write(directory.join("shard-map.toml"), self.shard_map(name)?)?;
        std::fs::write(directory.join("users.toml"), format!("[[user]]\nname = \"{USER}\"\n"))?;
        let interval = self.probe_interval_ms;
        let text = format!(
            "shard_map = \"shard-map.toml\"\n\
             users = \"users.toml\"\n\
             [listen]\n\
             listen_port = {port}\n\
             max_client_conn = {}\n\
             [auth]\n\
             auth_type = \"trust\"\n\
             [pool]\n\
             default_pool_size = {SERVERS}\n\
             [health]\n\
             probe_user = \"{PROBE_USER}\"\n\
             health_interval_ms = {interval}\n\
             freshness_interval_ms = {interval}\n\
             [log]\n\
             level = \"warn\"\n\
             format = \"text\"\n",
            CLIENTS_MAX + 1_000,
        );
        let path = directory.join("pgward.toml");
        std::fs::write(&path, text)?;
        Ok(path)
    }

    /// One shard that takes every hospital, or all shards and a directory that refuses others.
    fn shard_map(&self, name: TargetName) -> Result<String> {
        let is_large = name == TargetName::PgwardMany;
        let mut map = format!(
            "version = 1\nmodulus = 100\ndatabase = \"{DATABASE}\"\n\
             key = {{ column = \"hospital_id\", tables = {{ \"public.hospitals\" = \"id\" }} }}\n\
             reference = [\"public.regions\", \"public.roles\"]\n"
        );
        if is_large {
            writeln!(map, "unknown_hospital = \"reject\"")?;
        }
        let single = [self.backend.single.clone()];
        let shards: &[_] = if is_large { &self.backend.shards } else { &single };
        for (id, (address, database)) in shards.iter().enumerate() {
            // Buckets in turn, so that with 100 shards each bucket is a shard.
            let buckets: Vec<String> =
                (id..100).step_by(shards.len()).map(|bucket| bucket.to_string()).collect();
            writeln!(
                map,
                "[[shard]]\nid = {id}\nregion = \"europe\"\nbuckets = \"{}\"\n\
                 primary = \"{address}\"\ndatabase = \"{database}\"",
                buckets.join(",")
            )?;
        }
        if is_large {
            for hospital in &self.backend.hospitals {
                writeln!(map, "[[hospital]]\nid = \"{hospital}\"")?;
            }
        }
        Ok(map)
    }
}

/// An error with the end of what the target itself said.
fn told(name: TargetName, error: &dyn std::fmt::Display, log: &Path) -> Box<dyn std::error::Error> {
    let log = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    let tail = lines[lines.len().saturating_sub(20)..].join("\n");
    format!("{}: {error}; its log ends:\n{tail}", name.name()).into()
}

/// (major, minor) of a PgBouncer.
pub fn pgbouncer_version(program: &Path) -> Result<(u32, u32)> {
    let output = Command::new(program).arg("--version").output();
    let output = output.map_err(|error| format!("{}: {error}", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let numbers = text.split_whitespace().nth(1).unwrap_or_default();
    let mut numbers = numbers.split('.').map(|number| number.parse::<u32>());
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor)),
        _ => Err(format!("{} --version said: {text}", program.display()).into()),
    }
}

/// Does that PgBouncer know prepared statements in transaction mode?
pub fn prepares(version: (u32, u32)) -> bool {
    version >= (1, 21)
}
