//! Starting and ending the processes that are measured, and reading what they used.
//!
//! Every process gets all the file descriptors that it may have, dies with the benchmark, and is
//! ended by its own id. Reads `/proc`: Linux only.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Result;

/// First port tried: above the ephemeral range, which thousands of clients use up.
const FIRST_PORT: u16 = 61_000;
/// The account for programs that refuse to run as root.
const UNPRIVILEGED: &str = "postgres";

/// Whose rights a process gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunAs {
    /// Those of the benchmark.
    Self_,
    /// Not root's: PgBouncer and Postgres refuse root.
    Unprivileged,
}

/// A child that is killed when this goes.
pub struct Process {
    child: Child,
}

impl Process {
    /// Starts `program`, its output in `log`.
    pub fn start(program: &Path, args: &[String], run_as: RunAs, log: &Path) -> Result<Self> {
        let log = std::fs::File::create(log)?;
        let mut command = command(program, args, run_as);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().map_err(|e| format!("{}: {e}", program.display()))?;
        Ok(Self { child })
    }

    /// Starts this very program in another role, with pipes.
    pub fn start_role(role: &str, args: &[String], run_as: RunAs) -> Result<Self> {
        let mut all = vec![format!("--role={role}")];
        all.extend_from_slice(args);
        let mut command = command(&std::env::current_exe()?, &all, run_as);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        Ok(Self { child })
    }

    /// Waits for the line `ready` of a role that says so.
    pub fn await_ready(mut self) -> Result<Self> {
        let mut line = String::new();
        if let Some(output) = self.child.stdout.take() {
            BufReader::new(output).read_line(&mut line)?;
        }
        match line.trim() {
            "ready" => Ok(self),
            other => Err(format!("process said {other:?} instead of ready").into()),
        }
    }

    /// Takes stdin and stdout of a role.
    pub fn pipes(&mut self) -> Result<(ChildStdin, ChildStdout)> {
        let input = self.child.stdin.take().ok_or("no stdin")?;
        let output = self.child.stdout.take().ok_or("no stdout")?;
        Ok((input, output))
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it accepts connections at `address`.
    pub fn await_port(&mut self, address: SocketAddr, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        while TcpStream::connect(address).is_err() {
            if self.has_ended() || Instant::now() > deadline {
                return Err(format!("nothing accepts connections at {address}").into());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Has it ended?
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Asks it to end with `signal` (as `kill` names it) and waits.
    pub fn end(mut self, signal: &str) -> Result<()> {
        Command::new("kill").arg(format!("-{signal}")).arg(self.id().to_string()).status()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `program` with all file descriptors, without root where asked, ended with its parent. The shell
/// and setpriv replace themselves, so that the child's id is the program's.
pub fn command(program: &Path, args: &[String], run_as: RunAs) -> Command {
    let mut command = Command::new("setpriv");
    command.arg("--pdeathsig=KILL");
    if run_as == RunAs::Unprivileged && is_root() {
        command.arg(format!("--reuid={UNPRIVILEGED}")).arg(format!("--regid={UNPRIVILEGED}"));
        command.arg("--clear-groups");
    }
    command.args(["sh", "-c", "ulimit -n \"$(ulimit -Hn)\"; exec \"$@\"", "sh"]);
    command.arg(program).args(args).current_dir("/");
    command
}

/// Are we root?
pub fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0)
}

/// Hands `path` to the account of [`RunAs::Unprivileged`].
pub fn give_away(path: &Path) -> Result<()> {
    if is_root() {
        let owner = format!("{UNPRIVILEGED}:{UNPRIVILEGED}");
        let status = Command::new("chown").arg(owner).arg(path).status()?;
        if !status.success() {
            return Err(format!("chown {}: {status}", path.display()).into());
        }
    }
    Ok(())
}

/// Free ports of the loopback interface, no two alike.
pub struct Ports(u16);

impl Ports {
    /// Starts at a place that depends on our process id, so that two benchmarks rarely meet.
    pub fn new() -> Self {
        Self(FIRST_PORT + (std::process::id() % 40) as u16 * 100)
    }

    /// The next free one.
    pub fn take(&mut self) -> u16 {
        loop {
            self.0 = self.0.checked_add(1).unwrap_or(FIRST_PORT);
            if TcpListener::bind((Ipv4Addr::LOCALHOST, self.0)).is_ok() {
                return self.0;
            }
        }
    }
}

/// CPU time of a process so far.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cpu {
    /// On a CPU, all threads that live (from schedstat, in nanoseconds).
    pub total_ns: u64,
    /// In user mode (from stat, in steps of 10 ms).
    pub user_ns: u64,
    /// In the kernel (from stat).
    pub system_ns: u64,
}

impl Cpu {
    /// Reads it for `pid`. The process must be asleep for an exact reading.
    pub fn of(pid: u32) -> Result<Self> {
        let mut total_ns = 0;
        for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
            let path = thread?.path().join("schedstat");
            let text = std::fs::read_to_string(path)?;
            total_ns += text.split(' ').next().unwrap_or_default().parse::<u64>()?;
        }
        let (user, system) = ticks(pid)?;
        Ok(Self { total_ns, user_ns: user * TICK_NS, system_ns: system * TICK_NS })
    }

    /// What was used since `earlier`.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            total_ns: self.total_ns - earlier.total_ns,
            user_ns: self.user_ns - earlier.user_ns,
            system_ns: self.system_ns - earlier.system_ns,
        }
    }
}

/// USER_HZ is 100 on every Linux that matters here.
const TICK_NS: u64 = 10_000_000;

/// utime and stime.
fn ticks(pid: u32) -> Result<(u64, u64)> {
    let fields = stat(pid)?;
    Ok((fields[11].parse()?, fields[12].parse()?))
}

/// Fields of `/proc/<pid>/stat` after the command's name: state first, utime at 11.
fn stat(pid: u32) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, rest) = text.rsplit_once(") ").ok_or("strange stat")?;
    Ok(rest.split(' ').map(str::to_owned).collect())
}

/// CPU time of a process, its living children and those that it waited for, in nanoseconds, by the
/// tick: what a whole Postgres cluster used.
pub fn family_cpu_ns(pid: u32) -> Result<u64> {
    let own = stat(pid)?;
    let mut total: u64 = 0;
    for field in &own[11..15] {
        total += field.parse::<u64>()?;
    }
    for entry in std::fs::read_dir("/proc")? {
        let Some(child) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // A process may end between the two readings: its time is then the parent's next time.
        if let Ok(fields) = stat(child)
            && fields[1] == pid.to_string()
        {
            total += fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
        }
    }
    Ok(total * TICK_NS)
}

/// Resident memory of a process, in KiB.
pub fn resident_kib(pid: u32) -> Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find(|line| line.starts_with("VmRSS:")).ok_or("no VmRSS")?;
    Ok(line.split_whitespace().nth(1).ok_or("strange VmRSS")?.parse()?)
}
