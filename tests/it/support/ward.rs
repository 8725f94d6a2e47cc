//! `pgward serve` as a process of its own, configured as people do: by files.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use pgward::cli::local::{Kept, Sandbox, free_port};
use tokio_postgres::{Client, NoTls};

use super::{PATIENCE, Shards};

/// A running pgward; it ends with this value, or with the process.
pub struct Ward {
    pub port: u16,
    pub metrics_port: u16,
    directory: PathBuf,
    psql: PathBuf,
    pid: u32,
    process: Kept,
}

/// What differs from a plain configuration.
#[derive(Default)]
pub struct WardOptions<'a> {
    /// The shard map's text; default: [`Shards::map`].
    pub map: Option<String>,
    /// Lines for sections: `("pool", "default_pool_size = 1")`.
    pub config: &'a [(&'a str, &'a str)],
}

/// What else may differ.
#[derive(Default)]
pub struct Extra<'a> {
    /// The users file's text; default: [`USERS`].
    pub users: Option<&'a str>,
    /// Where it listens; default: a port of its own.
    pub port: Option<u16>,
    /// Whole sections for the end of the configuration.
    pub sections: &'a str,
}

impl Ward {
    /// Starts it in front of `shards` and waits until it takes clients.
    pub fn start(shards: &Shards, options: &WardOptions<'_>) -> Self {
        Self::start_with(shards, options, &Extra::default())
    }

    /// As [`Self::start`], with more that differs.
    pub fn start_with(shards: &Shards, options: &WardOptions<'_>, extra: &Extra<'_>) -> Self {
        let map = options.map.clone().unwrap_or_else(|| shards.map());
        Self::launch(&shards.sandbox, &map, options.config, extra)
    }

    /// As [`Self::start`], with the shards that `map` names.
    pub fn start_in(sandbox: &Sandbox, map: &str, config_lines: &[(&str, &str)]) -> Self {
        Self::launch(sandbox, map, config_lines, &Extra::default())
    }

    /// As [`Self::start_in`], with another users file.
    pub fn start_for(
        users: &str,
        sandbox: &Sandbox,
        map: &str,
        config_lines: &[(&str, &str)],
    ) -> Self {
        let extra = Extra { users: Some(users), ..Extra::default() };
        Self::launch(sandbox, map, config_lines, &extra)
    }

    fn launch(
        sandbox: &Sandbox,
        map: &str,
        config_lines: &[(&str, &str)],
        extra: &Extra<'_>,
    ) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let directory = sandbox.directory().join(format!("ward-{number}"));
        std::fs::create_dir(&directory).expect("a directory for pgward");
        let port = extra.port.unwrap_or_else(|| free_port().expect("a port"));
        // A port is free until somebody listens on it, so the same one may be found twice.
        let other = std::iter::repeat_with(|| free_port().expect("a port"));
        let metrics_port = { other }.find(|found| *found != port).expect("another port");
        write(&directory, "shard-map.toml", map);
        write(&directory, "users.toml", extra.users.unwrap_or(USERS));
        write(&directory, "app-secret", "app-secret\n");
        write(&directory, "probe-secret", "probe-secret\n");
        let config = config(port, metrics_port, config_lines) + extra.sections;
        write(&directory, "pgward.toml", &config);
        let (process, pid) = spawn(&directory);
        let psql = sandbox.program("psql");
        let mut ward = Self { port, metrics_port, directory, psql, pid, process };
        ward.wait_until_listening();
        ward
    }

    fn wait_until_listening(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(!self.process.has_ended(), "pgward ended while starting:\n{}", self.log());
            assert!(Instant::now() < deadline, "pgward does not listen:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Whether the process has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.process.has_ended()
    }

    /// Sends it a signal, as `"HUP"`.
    pub fn signal(&self, signal: &str) {
        let status = Command::new("kill").args(["-s", signal, &self.pid.to_string()]).status();
        assert!(status.expect("kill").success());
    }

    /// Its resident memory, in bytes.
    pub fn memory_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).expect("alive");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
        let kilobytes = line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number");
        kilobytes << 10
    }

    /// What it logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("log")).expect("its log")
    }

    /// Writes its configuration anew, with other lines than it was started with.
    pub fn configure(&self, more: &[(&str, &str)]) {
        self.write("pgward.toml", &config(self.port, self.metrics_port, more));
    }

    /// Writes one of its files anew: `"shard-map.toml"`.
    pub fn write(&self, name: &str, text: &str) {
        write(&self.directory, name, text);
    }

    /// A client's settings: user `app`, database `hospital`.
    pub fn client_config(&self) -> tokio_postgres::Config {
        let mut config = tokio_postgres::Config::new();
        config.host("127.0.0.1").port(self.port).dbname("hospital");
        config.user("app").password("app-password").connect_timeout(PATIENCE);
        config
    }

    /// A client, user `app`.
    pub async fn connect(&self) -> Client {
        self.connect_with(&self.client_config()).await.expect("a login")
    }

    /// A client of the console.
    pub async fn console(&self) -> Client {
        let mut config = self.client_config();
        config.dbname("pgward").user("admin").password("admin-password");
        self.connect_with(&config).await.expect("a login")
    }

    /// A client with settings of its own.
    pub async fn connect_with(
        &self,
        config: &tokio_postgres::Config,
    ) -> Result<Client, tokio_postgres::Error> {
        let (client, connection) = config.connect(NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// Runs the real psql as `app`, with further arguments.
    pub fn psql(&self, args: &[&str]) -> Output {
        self.libpq(&self.psql)
            .args(["-X", "-qAt", "-v", "ON_ERROR_STOP=1"])
            .args(args)
            .output()
            .unwrap()
    }

    /// A program of libpq's, told by its environment where pgward is.
    pub fn libpq(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .env("PGHOST", "127.0.0.1")
            .env("PGPORT", self.port.to_string())
            .env("PGDATABASE", "hospital")
            .env("PGUSER", "app")
            .env("PGPASSWORD", "app-password")
            .env_remove("PGOPTIONS");
        command
    }
}

fn spawn(directory: &Path) -> (Kept, u32) {
    let log = std::fs::File::create(directory.join("log")).expect("a log");
    let config = directory.join("pgward.toml");
    let args = [OsStr::new("serve"), OsStr::new("--config"), config.as_os_str()];
    Kept::spawn(env!("CARGO_BIN_EXE_pgward"), &args, "KILL", log).expect("pgward")
}

fn write(directory: &Path, name: &str, text: &str) {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(directory.join(name)).expect(name);
    file.write_all(text.as_bytes()).expect(name);
}

fn config(port: u16, metrics_port: u16, more: &[(&str, &str)]) -> String {
    let mut sections: BTreeMap<&str, String> = BTreeMap::new();
    let probe = "probe_user = \"pgward\"\nprobe_secret_file = \"probe-secret\"\n";
    sections.insert("listen", format!("listen_port = {port}\n"));
    sections.insert("metrics", format!("address = \"127.0.0.1:{metrics_port}\"\n"));
    sections.insert("health", probe.to_owned());
    sections.insert("admin", "admin_users = [\"admin\"]\n".to_owned());
    for (section, line) in more {
        let text = sections.entry(section).or_default();
        text.push_str(line);
        text.push('\n');
    }
    let mut text = "shard_map = \"shard-map.toml\"\nusers = \"users.toml\"\n".to_owned();
    for (section, lines) in sections {
        text.push_str(&format!("\n[{section}]\n{lines}"));
    }
    text
}

/// `app` for applications, `migrate` for shard-addressed sessions, `admin` for the console.
pub const USERS: &str = r#"
[[user]]
name = "app"
secret = "app-password"
server_user = "app"
server_secret_file = "app-secret"

[[user]]
name = "migrate"
secret = "migrate-password"
server_user = "app"
server_secret_file = "app-secret"
shard_access = true

[[user]]
name = "admin"
secret = "admin-password"
server_user = "app"
server_secret_file = "app-secret"
"#;

/// Status code and body of a GET.
pub fn http_get(port: u16, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("the HTTP port");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
    (status, body)
}
