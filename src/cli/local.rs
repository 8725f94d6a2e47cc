//! Postgres servers of one's own on this machine: real, unprivileged, and gone with their owner.
//!
//! A [`Sandbox`] is a temporary directory with one `initdb` in it; each [`Postgres`] is a copy of
//! that (a primary) or a `pg_basebackup` (a streaming replica) on a free port of 127.0.0.1. The
//! demo and the integration tests use it; nothing that serves clients does. All calls block.
//!
//! Each server runs under a shell that waits for the end of its standard input, a pipe that only
//! we hold: whatever way this process ends, SIGKILL included, its servers stop and their files go.

use std::ffi::OsStr;
use std::io::{self, BufRead, BufReader};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::shard_map::Address;

/// How long a server may take to start or stop.
const PATIENCE: Duration = Duration::from_secs(60);
/// Other ports to try when one was taken between our look and the server's.
const PORT_ATTEMPTS: usize = 10;
/// Ports that servers get.
const PORTS: std::ops::RangeInclusive<u16> = 61_000..=65_000;
/// Lines of a server's log that an error shows.
const LOG_TAIL_LINES: usize = 15;
/// Environment variable that names the directory of the Postgres programs.
pub const BIN_VARIABLE: &str = "PGWARD_PG_BIN";

/// Says the process id of `"$@"` and runs it until it ends, or until our standard input does: then
/// it gets the signal `$signal`.
const KEEP_PROCESS: &str = r#"
signal=$1; shift
exec 3<&0
"$@" 3<&- </dev/null >/dev/null & process=$!
( exec >/dev/null; read -r _ <&3; kill -"$signal" "$process" ) & watch=$!
echo "$process"
exec >/dev/null
wait "$process"; status=$?
kill "$watch" 2>/dev/null
exit "$status"
"#;

/// Removes directory `$1` when our standard input ends; servers may still be leaving it.
const KEEP_DIRECTORY: &str = r#"
read -r _
tries=0
while [ -e "$1" ] && [ "$tries" -lt 300 ]; do
  rm -rf "$1" 2>/dev/null || sleep 0.1
  tries=$((tries + 1))
done
"#;

/// Why there is no local Postgres.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The programs are not on this machine.
    #[error(
        "PostgreSQL's server programs (initdb, postgres, pg_basebackup, psql) were not found.\n\
         Debian and Ubuntu:  apt-get install postgresql\n\
         Fedora:             dnf install postgresql-server postgresql-contrib\n\
         macOS (Homebrew):   brew install postgresql\n\
         elsewhere:          install PostgreSQL 13 or newer, and name its bin directory in {BIN_VARIABLE}"
    )]
    NotInstalled,
    /// We are root and there is nobody else to run Postgres as.
    #[error("Postgres refuses to run as root, and this machine has no user `postgres` or `nobody`")]
    NoUser,
    /// A file or process could not be used.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// A program ended with an error.
    #[error("{program} failed: {output}")]
    Program {
        /// Its name.
        program: String,
        /// The end of what it said.
        output: String,
    },
    /// The server did not start or stop in time, or ended while starting.
    #[error("Postgres {name} {what}; its log ends:\n{log}")]
    Server {
        /// Which one.
        name: String,
        /// What happened.
        what: &'static str,
        /// The end of its log.
        log: String,
    },
}

fn io_error(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    let what = what.into();
    move |source| Error::Io { what, source }
}

/// A temporary directory with servers in it; it goes when the last of them does.
#[derive(Debug, Clone)]
pub struct Sandbox(Arc<Root>);

#[derive(Debug)]
struct Root {
    bin: PathBuf,
    account: Option<Account>,
    directory: PathBuf,
    /// Held for what its drop does.
    _removal: Kept,
}

/// The unprivileged user that servers run as when we are root.
#[derive(Debug, Clone, Copy)]
struct Account {
    uid: u32,
    gid: u32,
}

/// A process that ends with us, however we end, and whose end its drop waits for.
#[derive(Debug)]
pub struct Kept {
    pipe: Option<ChildStdin>,
    shell: Child,
}

/// How a server lets TCP clients in. Its Unix socket, in a directory of its own, trusts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HostAuth {
    /// No password.
    #[default]
    Trust,
    /// SCRAM-SHA-256.
    Scram,
    /// md5; passwords set on such a server are stored for md5.
    Md5,
}

impl HostAuth {
    fn method(self) -> &'static str {
        match self {
            Self::Trust => "trust",
            Self::Scram => "scram-sha-256",
            Self::Md5 => "md5",
        }
    }

    fn password_encryption(self) -> &'static str {
        match self {
            Self::Trust | Self::Scram => "scram-sha-256",
            Self::Md5 => "md5",
        }
    }
}

/// How a primary is set up; its replicas follow it.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// How TCP clients log in.
    pub auth: HostAuth,
    /// Further settings, as `("work_mem", "1MB")`.
    pub settings: Vec<(String, String)>,
}

/// One running server. Dropping it stops it and removes its files.
#[derive(Debug)]
pub struct Postgres {
    sandbox: Sandbox,
    name: String,
    data: PathBuf,
    port: u16,
    options: Options,
    process: Option<Kept>,
}

impl Sandbox {
    /// Makes the directory and the `initdb` that all its primaries are copies of.
    pub fn new() -> Result<Self, Error> {
        let bin = find_binaries().ok_or(Error::NotInstalled)?;
        let account = unprivileged_account()?;
        let name = format!("pgward-{}-{:08x}", std::process::id(), rand::random::<u32>());
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir(&directory).map_err(io_error("temporary directory"))?;
        let mode = std::fs::Permissions::from_mode(0o700);
        std::fs::set_permissions(&directory, mode).map_err(io_error("temporary directory"))?;
        if let Some(Account { uid, gid }) = account {
            chown(&directory, Some(uid), Some(gid)).map_err(io_error("temporary directory"))?;
        }
        // As ourselves: there may be files of ours in it, beside the servers'.
        let mut shell = command(None, Path::new("/"), "sh");
        shell.args(["-c", KEEP_DIRECTORY, "pgward-directory"]).arg(&directory);
        let removal = Kept::start(&mut shell)?;
        let sandbox = Self(Arc::new(Root { bin, account, directory, _removal: removal }));
        sandbox.run(
            "initdb",
            ["--pgdata=template", "--username=postgres", "--auth=trust", "--encoding=UTF8"]
                .into_iter()
                // Small WAL files: nothing here writes much, and all of it is thrown away.
                .chain(["--no-locale", "--no-sync", "--no-instructions", "--wal-segsize=1"]),
        )?;
        Ok(sandbox)
    }

    /// The directory; files of a run (configuration, logs) may be kept in it.
    pub fn directory(&self) -> &Path {
        &self.0.directory
    }

    /// Path of a Postgres program (`psql`, `pgbench`).
    pub fn program(&self, name: &str) -> PathBuf {
        self.0.bin.join(name)
    }

    /// Starts a primary with nothing in it but the superuser `postgres`.
    pub fn primary(&self, name: &str, options: &Options) -> Result<Postgres, Error> {
        let data = self.0.directory.join(name);
        let mut copy = self.command("cp");
        copy.arg("-Rp").arg("template").arg(&data);
        finish("cp", copy)?;
        let hba = format!(
            "local all all trust\n\
             local replication all trust\n\
             host all all 127.0.0.1/32 {0}\n\
             host replication all 127.0.0.1/32 {0}\n",
            options.auth.method()
        );
        std::fs::write(data.join("pg_hba.conf"), hba).map_err(io_error("pg_hba.conf"))?;
        self.launch(name, data, options)
    }

    /// Runs one of Postgres's programs and returns what it printed.
    fn run<A: AsRef<OsStr>>(
        &self,
        program: &str,
        args: impl IntoIterator<Item = A>,
    ) -> Result<String, Error> {
        let mut command = self.command(self.program(program));
        command.args(args);
        finish(program, command)
    }

    fn command(&self, program: impl AsRef<OsStr>) -> Command {
        command(self.0.account, &self.0.directory, program)
    }

    fn launch(&self, name: &str, data: PathBuf, options: &Options) -> Result<Postgres, Error> {
        let mut server = Postgres {
            sandbox: self.clone(),
            name: name.to_owned(),
            data,
            port: 0,
            options: options.clone(),
            process: None,
        };
        for attempt in 1.. {
            server.port = free_port()?;
            match server.start() {
                Err(Error::Server { log, .. })
                    if log.contains("could not bind") && attempt < PORT_ATTEMPTS => {}
                Err(error) => return Err(error),
                Ok(()) => break,
            }
        }
        Ok(server)
    }
}

impl Postgres {
    /// Its name within the sandbox.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its TCP port on 127.0.0.1; it keeps it over [`Self::stop`] and [`Self::start`].
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where it listens.
    pub fn address(&self) -> Address {
        Address { host: Ipv4Addr::LOCALHOST.to_string(), port: self.port }
    }

    /// Starts a streaming replica of this server, which has caught up to the call.
    pub fn replica(&self, name: &str) -> Result<Postgres, Error> {
        let data = self.sandbox.0.directory.join(name);
        let mut backup = self.sandbox.command(self.sandbox.program("pg_basebackup"));
        // A slot keeps the WAL that the replica still needs, however long it is stopped.
        backup
            .arg(format!("--host={}", self.data.display()))
            .arg(format!("--port={}", self.port))
            .arg(format!("--pgdata={}", data.display()))
            .arg(format!("--slot={}", name.replace('-', "_")))
            .args(["--username=postgres", "--checkpoint=fast", "--wal-method=stream"])
            .args(["--create-slot", "--write-recovery-conf", "--no-sync"]);
        finish("pg_basebackup", backup)?;
        self.sandbox.launch(name, data, &self.options)
    }

    /// Runs SQL as `postgres` over the Unix socket, past pgward; returns rows as `a|b` lines.
    pub fn psql(&self, database: &str, sql: &str) -> Result<String, Error> {
        let mut psql = self.sandbox.command(self.sandbox.program("psql"));
        psql.arg(format!("--host={}", self.data.display()))
            .arg(format!("--port={}", self.port))
            .arg(format!("--dbname={database}"))
            .args(["--username=postgres", "--no-psqlrc", "--quiet", "--no-align", "--tuples-only"])
            .args(["--set=ON_ERROR_STOP=1", "--command", sql]);
        finish("psql", psql)
    }

    /// Stops it at once, as a crash of its machine would. Its data stays.
    pub fn stop(&mut self) {
        drop(self.process.take());
    }

    /// Starts it (again).
    pub fn start(&mut self) -> Result<(), Error> {
        let log = std::fs::File::create(self.log_path()).map_err(io_error("server log"))?;
        let mut shell = self.sandbox.command("sh");
        // SIGQUIT is Postgres's immediate shutdown.
        Kept::wrap(&mut shell, "QUIT", self.sandbox.program("postgres"));
        shell.arg("-D").arg(&self.data).args(self.settings()).stderr(log);
        self.process = Some(Kept::start(&mut shell)?);
        self.wait_until_ready()
    }

    /// The last lines of its log.
    pub fn log_tail(&self) -> String {
        let log = std::fs::read_to_string(self.log_path()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n")
    }

    fn log_path(&self) -> PathBuf {
        self.sandbox.0.directory.join(format!("{}.log", self.name))
    }

    fn settings(&self) -> Vec<String> {
        let port = self.port.to_string();
        let socket = self.data.display().to_string();
        let own = [
            ("listen_addresses", "127.0.0.1"),
            ("port", port.as_str()),
            ("unix_socket_directories", socket.as_str()),
            ("password_encryption", self.options.auth.password_encryption()),
            // Nothing here outlives its process, so nothing needs to survive a power cut.
            ("fsync", "off"),
            ("full_page_writes", "off"),
            ("shared_buffers", "32MB"),
            ("max_connections", "200"),
            ("wal_keep_size", "64MB"),
            ("hot_standby", "on"),
        ];
        own.into_iter()
            .chain(self.options.settings.iter().map(|(name, value)| (&**name, &**value)))
            .flat_map(|(name, value)| ["-c".to_owned(), format!("{name}={value}")])
            .collect()
    }

    /// Reads what `pg_ctl` reads: the eighth line of `postmaster.pid`.
    fn wait_until_ready(&mut self) -> Result<(), Error> {
        let pid_file = self.data.join("postmaster.pid");
        let deadline = Instant::now() + PATIENCE;
        loop {
            let ended = self.process.as_mut().is_none_or(Kept::has_ended);
            let status = std::fs::read_to_string(&pid_file).unwrap_or_default();
            let failure = if ended {
                Some("ended while starting")
            } else if status.lines().nth(7).is_some_and(|line| line.trim() == "ready") {
                None
            } else if Instant::now() > deadline {
                Some("did not start in time")
            } else {
                std::thread::sleep(Duration::from_millis(20));
                continue;
            };
            let Some(what) = failure else { return Ok(()) };
            self.process = None;
            return Err(Error::Server { name: self.name.clone(), what, log: self.log_tail() });
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.stop();
        // Best effort: the sandbox removes the rest of it.
        let _ = std::fs::remove_dir_all(&self.data);
    }
}

impl Kept {
    /// Starts `program` as us; when we end it gets the signal `end`, as `"TERM"`.
    pub fn spawn(
        program: impl AsRef<OsStr>,
        args: &[&OsStr],
        end: &str,
        stderr: std::fs::File,
    ) -> Result<(Self, u32), Error> {
        let mut shell = Command::new("sh");
        Self::wrap(&mut shell, end, program);
        let mut kept = Self::start(shell.args(args).stderr(stderr))?;
        let pid = kept.read_pid().map_err(io_error("process id"))?;
        Ok((kept, pid))
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.shell.try_wait(), Ok(None))
    }

    fn wrap(shell: &mut Command, end: &str, program: impl AsRef<OsStr>) {
        shell.args(["-c", KEEP_PROCESS, "pgward-keep", end]).arg(program);
    }

    fn start(shell: &mut Command) -> Result<Self, Error> {
        // A process group of its own: Ctrl-C in a terminal is for us to answer, in our order.
        shell.stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0);
        let mut shell = shell.spawn().map_err(io_error("sh"))?;
        Ok(Self { pipe: shell.stdin.take(), shell })
    }

    fn read_pid(&mut self) -> io::Result<u32> {
        let stdout = self.shell.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        line.trim().parse().map_err(|_| io::ErrorKind::InvalidData.into())
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        drop(self.pipe.take());
        let _ = self.shell.wait();
    }
}

/// A command as the unprivileged user, with none of the caller's `PG*` variables.
fn command(account: Option<Account>, directory: &Path, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command
        .current_dir(directory)
        .env_clear()
        .envs(std::env::vars_os().filter(|(name, _)| name == "PATH"))
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stderr(Stdio::null());
    if let Some(Account { uid, gid }) = account {
        command.uid(uid).gid(gid);
    }
    command
}

/// Runs `command` to its end; its standard output, or an error with the end of what it said.
fn finish(program: &str, mut command: Command) -> Result<String, Error> {
    let output = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .output()
        .map_err(io_error(program))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim_end().to_owned();
    Err(Error::Program { program: program.to_owned(), output: said })
}

/// Directory of the server programs: the variable, else the newest of Debian's, else `PATH`'s.
fn find_binaries() -> Option<PathBuf> {
    let complete = |bin: &PathBuf| {
        ["initdb", "postgres", "pg_basebackup", "psql"].iter().all(|name| bin.join(name).is_file())
    };
    if let Some(named) = std::env::var_os(BIN_VARIABLE) {
        return Some(PathBuf::from(named)).filter(complete);
    }
    let debian = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = debian
        .filter_map(|entry| {
            let version: u32 = entry.file_name().to_str()?.parse().ok()?;
            Some((version, entry.path().join("bin")))
        })
        .filter(|(_, bin)| complete(bin))
        .max();
    newest
        .map(|(_, bin)| bin)
        .or_else(|| std::env::split_paths(&std::env::var_os("PATH")?).find(complete))
}

/// `None` where we are not root. Postgres itself refuses to run as root.
fn unprivileged_account() -> Result<Option<Account>, Error> {
    let us = finish("id", {
        let mut id = Command::new("id");
        id.arg("-u");
        id
    })?;
    if us != "0" {
        return Ok(None);
    }
    let accounts = std::fs::read_to_string("/etc/passwd").map_err(io_error("/etc/passwd"))?;
    ["postgres", "nobody"]
        .into_iter()
        .find_map(|name| account_in(&accounts, name))
        .map(Some)
        .ok_or(Error::NoUser)
}

fn account_in(passwd: &str, name: &str) -> Option<Account> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        if fields.next() != Some(name) {
            return None;
        }
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some(Account { uid, gid })
    })
}

/// A port that was free a moment ago, of a range that outgoing connections do not use (Linux).
pub fn free_port() -> Result<u16, Error> {
    let mut failure = io::ErrorKind::AddrInUse.into();
    for _ in 0..PORT_ATTEMPTS * 10 {
        match TcpListener::bind((Ipv4Addr::LOCALHOST, rand::random_range(PORTS))) {
            Ok(listener) => {
                return Ok(listener.local_addr().map_err(io_error("free port"))?.port());
            }
            Err(error) => failure = error,
        }
    }
    Err(io_error("free port")(failure))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_read_from_passwd_lines() {
        let passwd = "root:x:0:0::/root:/bin/sh\npostgres:x:101:104::/var:/bin/sh\nodd\nnobody:x\n";
        let account = account_in(passwd, "postgres").expect("it is there");
        assert_eq!((account.uid, account.gid), (101, 104));
        assert!(account_in(passwd, "nobody").is_none());
        assert!(account_in(passwd, "odd").is_none());
        assert!(account_in(passwd, "none").is_none());
    }
}
