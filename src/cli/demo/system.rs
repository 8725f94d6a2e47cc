//! The processes of the demo: Postgres servers and `pgward serve`, and what they are configured with.
//!
//! Everything lives in one [`local::Sandbox`] and ends with this process. Knows no rows.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use tokio_postgres::NoTls;

use super::Error;
use crate::cli::local::{HostAuth, Kept, Options, Postgres, Sandbox, free_port};
use crate::document::Problems;
use crate::shard_map::ShardMap;

/// Regions of the four shards; a fifth region's hospitals live with the first's.
pub(super) const SHARD_REGIONS: [&str; 4] =
    ["north-america", "europe", "asia-pacific", "middle-east-africa"];
/// How long pgward may take to be ready.
const PATIENCE: Duration = Duration::from_secs(30);

/// One shard: two real servers.
#[derive(Debug)]
pub(super) struct Shard {
    pub(super) id: u16,
    pub(super) region: &'static str,
    pub(super) primary: Postgres,
    pub(super) replica: Postgres,
}

/// All that runs.
#[derive(Debug)]
pub(super) struct System {
    pgward: Option<Kept>,
    port: u16,
    metrics_port: u16,
    shards: Vec<Shard>,
    sandbox: Sandbox,
}

impl Shard {
    /// To look at the shard itself.
    pub(super) fn psql_line(&self) -> String {
        psql_line(self.primary.port(), "hospital", "app")
    }
}

/// Starts all servers at once; the sandbox and the shards in it.
pub(super) async fn start_shards() -> Result<(System, Vec<Shard>), Error> {
    let sandbox = blocking(Sandbox::new).await?;
    let starting: Vec<_> = (0u16..)
        .zip(SHARD_REGIONS)
        .map(|(id, region)| {
            let sandbox = sandbox.clone();
            tokio::spawn(blocking(move || start_shard(&sandbox, id, region)))
        })
        .collect();
    let mut shards = Vec::new();
    for shard in starting {
        shards.push(shard.await.expect("starting a shard does not panic")?);
    }
    let system = System { pgward: None, port: 0, metrics_port: 0, shards: Vec::new(), sandbox };
    Ok((system, shards))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, crate::cli::local::Error> + Send + 'static,
) -> Result<T, Error> {
    Ok(tokio::task::spawn_blocking(work).await.expect("starting a server does not panic")?)
}

fn start_shard(
    sandbox: &Sandbox,
    id: u16,
    region: &'static str,
) -> Result<Shard, crate::cli::local::Error> {
    let options = Options { auth: HostAuth::Scram, ..Options::default() };
    let primary = sandbox.primary(&format!("shard{id}-primary"), &options)?;
    for sql in [
        "CREATE ROLE app LOGIN PASSWORD 'app'",
        "CREATE ROLE pgward LOGIN PASSWORD 'pgward'",
        "CREATE DATABASE hospital OWNER app",
    ] {
        primary.psql("postgres", sql)?;
    }
    let replica = primary.replica(&format!("shard{id}-replica"))?;
    Ok(Shard { id, region, primary, replica })
}

impl System {
    pub(super) fn add_shards(&mut self, shards: Vec<Shard>) {
        self.shards = shards;
    }

    pub(super) fn shards(&self) -> &[Shard] {
        &self.shards
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    pub(super) fn metrics_address(&self) -> String {
        format!("127.0.0.1:{}", self.metrics_port)
    }

    /// To paste; each user's password is its name, and nothing listens beyond this machine.
    pub(super) fn psql_line(&self, database: &str, user: &str) -> String {
        psql_line(self.port, database, user)
    }

    /// The shard and role of the server on `port`.
    pub(super) fn served_by(&self, port: u16) -> Option<(&Shard, &'static str)> {
        self.shards.iter().find_map(|shard| match port {
            _ if port == shard.primary.port() => Some((shard, "primary")),
            _ if port == shard.replica.port() => Some((shard, "replica")),
            _ => None,
        })
    }

    /// Connects through pgward; `options` as in libpq.
    pub(super) async fn connect(
        &self,
        user: &str,
        options: &str,
    ) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
        let (client, connection) = tokio_postgres::Config::new()
            .host("127.0.0.1")
            .port(self.port)
            .dbname("hospital")
            .user(user)
            .password(user)
            .options(options)
            .connect(NoTls)
            .await?;
        // It ends with its client, and the client reports its errors.
        tokio::spawn(connection);
        Ok(client)
    }

    /// Writes the files that people edit, and starts `pgward serve` on them.
    pub(super) async fn start_pgward(&mut self, wanted_port: u16) -> Result<(), Error> {
        let is_free = |port| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok();
        let wanted = Some(wanted_port).filter(|port| *port != 0 && is_free(*port));
        self.port = wanted.map_or_else(free_port, Ok)?;
        self.metrics_port = free_port()?;
        let io = |source| Error::Io { what: "files of pgward", source };
        self.write("shard-map.toml", &self.shard_map()).map_err(io)?;
        self.write("users.toml", USERS).map_err(io)?;
        self.write("probe-secret", "pgward").map_err(io)?;
        self.write("pgward.toml", &self.config()).map_err(io)?;
        let log = std::fs::File::create(self.sandbox.directory().join("pgward.log")).map_err(io)?;
        let program = std::env::current_exe().map_err(io)?;
        let config = self.sandbox.directory().join("pgward.toml");
        let args = [OsStr::new("serve"), OsStr::new("--config"), config.as_os_str()];
        let (pgward, _pid) = Kept::spawn(program, &args, "KILL", log)?;
        self.pgward = Some(pgward);
        self.wait_until_ready().await
    }

    async fn wait_until_ready(&mut self) -> Result<(), Error> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if self.pgward.as_mut().is_none_or(Kept::has_ended) {
                return Err(self.ward_error("ended while starting"));
            }
            match self.connect("demo", "").await {
                Ok(_) => return Ok(()),
                Err(source) if Instant::now() > deadline => {
                    return Err(Error::Sql { what: "pgward is not ready".into(), source });
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    /// Returns when pgward has ended, which it should not.
    pub(super) async fn pgward_ended(&mut self) -> Result<(), Error> {
        while !self.pgward.as_mut().is_none_or(Kept::has_ended) {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        Err(self.ward_error("ended"))
    }

    fn ward_error(&self, what: &'static str) -> Error {
        let log = self.sandbox.directory().join("pgward.log");
        let log = std::fs::read_to_string(log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        Error::Ward { what, log: lines[lines.len().saturating_sub(15)..].join("\n") }
    }

    fn write(&self, name: &str, text: &str) -> std::io::Result<()> {
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        options.open(self.sandbox.directory().join(name))?.write_all(text.as_bytes())
    }

    /// The shard map that pgward runs with.
    pub(super) fn map(&self) -> Result<ShardMap, Problems> {
        ShardMap::parse("shard-map.toml", &self.shard_map())
    }

    fn shard_map(&self) -> String {
        let mut text = String::from(
            "version = 1\nmodulus = 100\ndatabase = \"hospital\"\n\
             key = { column = \"hospital_id\", tables = { \"public.hospitals\" = \"id\" } }\n\
             reference = [\"public.regions\", \"public.roles\"]\n",
        );
        for Shard { id, region, primary, replica } in &self.shards {
            let (first, last) = (id * 25, id * 25 + 24);
            let (primary, replica) = (primary.address(), replica.address());
            // Writing to a String does not fail.
            let _ = write!(
                text,
                "\n[[shard]]\nid = {id}\nregion = \"{region}\"\nbuckets = \"{first}-{last}\"\n\
                 primary = \"{primary}\"\nreplicas = [\"{replica}\"]\n"
            );
        }
        text
    }

    fn config(&self) -> String {
        format!(
            "shard_map = \"shard-map.toml\"\nusers = \"users.toml\"\n\n\
             [listen]\nlisten_port = {}\n\n\
             [health]\nprobe_user = \"pgward\"\nprobe_secret_file = \"probe-secret\"\n\n\
             [admin]\nadmin_users = [\"admin\"]\n\n\
             [metrics]\naddress = \"127.0.0.1:{}\"\n",
            self.port, self.metrics_port
        )
    }
}

impl Drop for System {
    fn drop(&mut self) {
        drop(self.pgward.take());
        // All at once: each stops its server and removes some 40 MB.
        std::thread::scope(|scope| {
            for shard in self.shards.drain(..) {
                scope.spawn(move || drop(shard));
            }
        });
    }
}

fn psql_line(port: u16, database: &str, user: &str) -> String {
    format!("psql \"host=127.0.0.1 port={port} dbname={database} user={user} password={user}\"")
}

/// `demo` for applications, `migrate` for the schema, `admin` for the console.
const USERS: &str = r#"
# Passwords are the names: nothing of this listens beyond the machine.
[[user]]
name = "demo"
secret = "demo"
server_user = "app"
server_secret = "app"

[[user]]
name = "migrate"
secret = "migrate"
server_user = "app"
server_secret = "app"
shard_access = true

[[user]]
name = "admin"
secret = "admin"
server_user = "app"
server_secret = "app"
"#;
