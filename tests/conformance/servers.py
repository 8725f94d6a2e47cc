"""Postgres clusters and pgwards of a run's own: unprivileged, on free ports, gone with the run.

Each (suite, mode) gets a fresh cluster, so that suites can run side by side and neither sees
what the other left. In the modes `session` and `transaction` a pgward with a map of one shard
and guard `route` stands in front of it; in `direct` nothing does.
"""

import atexit
import ctypes
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

# Seconds that a server may take to start or stop.
PATIENCE = 60
# The range that the tests of src/cli/local.rs use: above the ephemeral ports.
PORTS = (61_000, 65_000)
PR_SET_PDEATHSIG = 1
# Roles that drivers' suites expect, with their passwords. `postgres` is the superuser.
ROLES = {"pass_user": "password", "md5_user": "password", "scram_user": "password"}

SETTINGS = {
    "fsync": "off",
    "max_connections": "400",
    "max_prepared_transactions": "20",
    "wal_level": "logical",
    "listen_addresses": "'127.0.0.1,::1'",
    "log_min_messages": "warning",
    # Statement texts tell what a suite was doing when a server complained.
    "log_min_error_statement": "error",
}

# As tokio-postgres's own docker/sql_setup.sh lets its users in: Postgres's rules and pgward's.
HBA = """local all all trust
host all pass_user 127.0.0.1/32 password
host all md5_user 127.0.0.1/32 md5
host all scram_user 127.0.0.1/32 scram-sha-256
host all pass_user ::1/128 password
host all all 127.0.0.1/32 trust
host all all ::1/128 trust
"""
# What a suite may ask of Postgres only.
HBA_REPLICATION = "host replication all 127.0.0.1/32 trust\n"


def free_port():
    """A port that nobody listens on now."""
    for _ in range(1000):
        port = random.randint(*PORTS)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue
    raise RuntimeError("no free port")


def binaries():
    """The directory of Postgres's programs: PGWARD_PG_BIN, or the newest installed."""
    named = os.environ.get("PGWARD_PG_BIN")
    if named:
        return Path(named)
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if found:
        return max(found, key=lambda path: int(path.parent.name))
    initdb = shutil.which("initdb")
    if initdb:
        return Path(initdb).parent
    raise SystemExit("PostgreSQL's server programs were not found; PGWARD_PG_BIN may name them")


def _account():
    """Whom Postgres runs as where we are root: subprocess arguments."""
    if os.getuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
            return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
        except KeyError:
            continue
    raise SystemExit("Postgres refuses to run as root, and there is no user `postgres`")


def _die_with_parent(signal_number):
    """What a child calls to get that signal when we end, however we do (Linux only)."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return lambda: libc.prctl(PR_SET_PDEATHSIG, signal_number)


class Sandbox:
    """A temporary directory with one `initdb` in it, that every cluster is a copy of."""

    def __init__(self):
        self.bin = binaries()
        self.account = _account()
        self.directory = Path(tempfile.mkdtemp(prefix="pgward-conformance-"))
        self.running = []
        atexit.register(self.close)
        # The clusters' user must reach its own directories below.
        self.directory.chmod(0o711)
        self.home = self.directory / "postgres"
        self.home.mkdir()
        if self.account:
            os.chown(self.home, self.account["user"], self.account["group"])
        self.run_as_postgres(
            [self.bin / "initdb", "--pgdata=template", "--username=postgres", "--auth=trust",
             "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync", "--no-instructions"])

    def run_as_postgres(self, command):
        """Runs a program as the clusters' user, in their directory."""
        done = subprocess.run(
            command, cwd=self.home, text=True, capture_output=True, timeout=PATIENCE * 3,
            **self.account)
        if done.returncode != 0:
            raise RuntimeError(f"{command[0]} failed: {done.stdout}{done.stderr}")
        return done.stdout

    def start(self, command, log, signal_number, **options):
        """Starts a server that ends with us, by that signal."""
        with open(log, "ab") as output:
            process = subprocess.Popen(
                [str(word) for word in command], stdin=subprocess.DEVNULL, stdout=output,
                stderr=output, preexec_fn=_die_with_parent(signal_number), **options)
        self.running.append((process, signal_number))
        return process

    def stop(self, process):
        """Ends a server and waits for its end."""
        for entry in [entry for entry in self.running if entry[0] is process]:
            self.running.remove(entry)
            if process.poll() is None:
                process.send_signal(entry[1])
                try:
                    process.wait(PATIENCE)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    def close(self):
        """Ends all servers and removes all files."""
        for process, _ in list(self.running):
            self.stop(process)
        shutil.rmtree(self.directory, ignore_errors=True)


@dataclass
class Cluster:
    """One running Postgres with the roles of `ROLES`."""

    sandbox: Sandbox
    name: str
    port: int = 0
    process: subprocess.Popen = None
    log: Path = None

    def __enter__(self):
        data = self.sandbox.home / self.name
        self.sandbox.run_as_postgres(["cp", "-Rp", "template", data])
        self.log = self.sandbox.directory / f"{self.name}.log"
        (data / "pg_hba.conf").write_text(HBA + HBA_REPLICATION)
        with open(data / "postgresql.conf", "a") as conf:
            conf.writelines(f"{key} = {value}\n" for key, value in SETTINGS.items())
            conf.write(f"unix_socket_directories = '{data}'\n")
        for _ in range(10):
            self.port = free_port()
            self.process = self.sandbox.start(
                [self.sandbox.bin / "postgres", "-D", data, "-p", self.port], self.log,
                signal.SIGINT, cwd=data, **self.sandbox.account)
            if self._wait():
                break
        else:
            raise RuntimeError(f"Postgres {self.name} does not start: {self.log.read_text()[-2000:]}")
        for role, password in ROLES.items():
            encryption = "md5" if role == "md5_user" else "scram-sha-256"
            self.psql("postgres", f"SET password_encryption = '{encryption}';"
                                  f"CREATE ROLE {role} LOGIN PASSWORD '{password}'")
        return self

    def _wait(self):
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and self.process.poll() is None:
            done = subprocess.run([self.sandbox.bin / "pg_isready", "-q", "-h", "127.0.0.1",
                                   "-p", str(self.port)])
            if done.returncode == 0:
                return True
            time.sleep(0.05)
        self.sandbox.stop(self.process)
        return False

    def psql(self, database, sql):
        """Runs SQL on the server itself, as the superuser; its rows, unaligned."""
        done = subprocess.run(
            [self.sandbox.bin / "psql", "-XqAt", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1",
             "-p", str(self.port), "-U", "postgres", "-d", database, "-c", sql],
            text=True, capture_output=True, timeout=PATIENCE)
        if done.returncode != 0:
            raise RuntimeError(f"psql: {done.stderr}")
        return done.stdout.strip()

    def __exit__(self, *_):
        self.sandbox.stop(self.process)
        shutil.rmtree(self.sandbox.home / self.name, ignore_errors=True)


USERS = """
[[user]]
name = "postgres"
secret = "postgres"
cross_hospital = "none"
""" + "".join(
    f'\n[[user]]\nname = "{role}"\nsecret = "{password}"\nserver_user = "{role}"\nserver_secret = "{password}"\n'
    for role, password in ROLES.items())

ONE_SHARD = """version = 1
modulus = 100
database = "{database}"
key = {{ column = "hospital_id" }}

[[shard]]
id = 0
region = "europe"
buckets = "0-99"
primary = "127.0.0.1:{port}"
database = "{database}"
"""


class NotAvailable(Exception):
    """pgward does not know this mode (yet)."""


@dataclass
class Ward:
    """One running `pgward serve`, configured by files as people do it."""

    sandbox: Sandbox
    binary: Path
    name: str
    map: str
    mode: str
    users: str = USERS
    sections: dict = field(default_factory=dict)
    port: int = 0
    process: subprocess.Popen = None
    log: Path = None

    def __enter__(self):
        directory = self.sandbox.directory / f"ward-{self.name}"
        directory.mkdir()
        self.log = self.sandbox.directory / f"ward-{self.name}.log"
        (directory / "shard-map.toml").write_text(self.map)
        (directory / "users.toml").write_text(self.users)
        (directory / "hba.conf").write_text(HBA)
        for _ in range(10):
            self.port = free_port()
            (directory / "pgward.toml").write_text(self._config())
            check = subprocess.run(
                [self.binary, "check", "--config", directory / "pgward.toml"],
                text=True, capture_output=True)
            if check.returncode != 0:
                raise NotAvailable(check.stdout + check.stderr)
            self.process = self.sandbox.start(
                [self.binary, "serve", "--config", directory / "pgward.toml"], self.log,
                signal.SIGKILL)
            if self._wait():
                return self
        raise RuntimeError(f"pgward does not start: {self.log.read_text()[-2000:]}")

    def _config(self):
        sections = {
            "listen": {"listen_port": self.port},
            "auth": {"auth_type": '"hba"', "auth_hba_file": '"hba.conf"'},
            "pool": {"pool_mode": f'"{self.mode}"', "default_pool_size": 50},
            "guard": {"mode": '"route"'},
            "health": {"probe_user": '"postgres"'},
            "log": {"format": '"text"'},
        }
        for name, keys in self.sections.items():
            sections.setdefault(name, {}).update(keys)
        text = 'shard_map = "shard-map.toml"\nusers = "users.toml"\n'
        for name, keys in sections.items():
            text += f"\n[{name}]\n" + "".join(f"{key} = {value}\n" for key, value in keys.items())
        return text

    def _wait(self):
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and self.process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return True
            time.sleep(0.02)
        self.sandbox.stop(self.process)
        return False

    def __exit__(self, *_):
        self.sandbox.stop(self.process)
