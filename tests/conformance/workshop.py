"""What suites are made of: sources, a Python with pinned packages, and ways to run them.

Everything fetched or built is kept under target/conformance, by name and version, and made again
where it is missing. Sources come through the ordinary package clients; none of them is ours, and
none is copied into the repository.
"""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import threading
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
# Seconds that one test of a Python suite may take before it counts as hung.
TEST_SECONDS = 60
# Seconds that a whole suite may take in one mode.
SUITE_SECONDS = 3000
WHY_CHARS_MAX = 300


class NotToBeHad(Exception):
    """Something that a suite needs can't be had on this machine; says what."""


@dataclass
class Outcome:
    """How one test ended: `pass`, `fail` or `skip`, and why, or what it answered."""

    status: str
    why: str = ""
    # Where there is one, it must be the direct run's.
    answer: str = None


@dataclass
class Target:
    """What one suite runs against in one mode."""

    mode: str
    port: int
    # Past pgward, as the superuser: `psql(database, sql)`.
    psql: callable
    # Scratch files of this run, and the logs that it leaves.
    directory: Path
    bin: Path
    database: str = "postgres"

    def environment(self, **more):
        """Variables by which libpq and most drivers find the target."""
        env = {key: value for key, value in os.environ.items() if not key.startswith("PG")}
        env.update(
            PGHOST="127.0.0.1", PGPORT=str(self.port), PGUSER="postgres",
            PGDATABASE=self.database, PYTHONDONTWRITEBYTECODE="1", LC_ALL="C.UTF-8", TZ="UTC",
            NO_COLOR="1")
        env.update({key: str(value) for key, value in more.items()})
        return env

    def run(self, name, command, cwd=None, env=None, timeout=SUITE_SECONDS):
        """Runs a program to its end; its output, which is also in `name`.log."""
        log = self.directory / f"{name}.log"
        with open(log, "wb") as output:
            process = subprocess.Popen(
                [str(word) for word in command], cwd=cwd or self.directory,
                env=env or self.environment(), stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, start_new_session=True)
            try:
                process.wait(timeout)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                process.wait()
                output.write(b"\nconformance: took too long, killed\n")
        return log.read_text(errors="replace"), process.returncode


class Workshop:
    """target/conformance and how to fill it."""

    def __init__(self, cache):
        self.cache = cache
        self.cache.mkdir(parents=True, exist_ok=True)
        self._lock = threading.RLock()

    @property
    def python(self):
        """The interpreter of the venv with the packages of requirements.txt."""
        return self.cache / "venv" / "bin" / "python"

    def make_venv(self):
        """Makes the venv, and again where requirements.txt has changed."""
        wanted = (HERE / "requirements.txt").read_text()
        stamp = self.cache / "venv" / "requirements.txt"
        if stamp.exists() and stamp.read_text() == wanted:
            return
        shutil.rmtree(self.cache / "venv", ignore_errors=True)
        self.command([sys.executable, "-m", "venv", self.cache / "venv"])
        self.command([self.python, "-m", "pip", "install", "-q", "--only-binary", ":all:",
                      "-r", HERE / "requirements.txt"])
        stamp.write_text(wanted)

    def version(self, package):
        """The pinned version of a package of requirements.txt."""
        name = re.escape(package) + r"(?:\[\w+\])?"
        found = re.search(rf"^{name}==(\S+)", (HERE / "requirements.txt").read_text(), re.M)
        return found.group(1)

    def sdist(self, package, version):
        """The unpacked source distribution of a Python package."""
        with self._lock:
            directory = self.cache / f"{package}-{version}"
            if not directory.exists():
                downloads = self.cache / "downloads"
                self.command([
                    self.python, "-m", "pip", "download", "-q", "--no-deps", "--no-binary",
                    package, "-d", downloads, f"{package}=={version}"])
                self.unpack(downloads / f"{package}-{version}.tar.gz", directory)
            return directory

    def debian_source(self, package, version):
        """The unpacked upstream part of a Debian source package (apt, without root's files)."""
        with self._lock:
            directory = self.cache / f"{package}-{version}"
            if directory.exists():
                return directory
            if not shutil.which("apt-get"):
                raise NotToBeHad(f"the source of {package} {version}: there is no apt-get")
            apt = self.cache / "apt"
            (apt / "lists" / "partial").mkdir(parents=True, exist_ok=True)
            (apt / "archives" / "partial").mkdir(parents=True, exist_ok=True)
            targets = self.command(
                ["apt-get", "indextargets", "--format", "$(REPO_URI) $(SUITE) $(COMPONENT)",
                 "Created-By: Packages"]).splitlines()
            wanted = sorted({line for line in targets if line.endswith(" main")})
            (apt / "sources.list").write_text("".join(f"deb-src {line}\n" for line in wanted))
            options = [f"-oDir::State::Lists={apt}/lists", f"-oDir::Etc::SourceList={apt}/sources.list",
                       "-oDir::Etc::SourceParts=/dev/null", f"-oDir::Cache={apt}",
                       "-oAPT::Sandbox::User=root"]
            try:
                self.command(["apt-get", *options, "update", "-qq"])
                self.command(["apt-get", *options, "source", "--download-only", "-qq",
                              f"{package}={version}"], cwd=apt / "archives")
            except RuntimeError as error:
                raise NotToBeHad(f"the source of {package} {version}: {error}") from error
            upstream = version.rsplit("-", 1)[0]
            found = [path for path in (apt / "archives").glob(f"{package}_{upstream}.orig.tar.*")
                     if not path.name.endswith(".asc")]
            self.unpack(found[0], directory)
            return directory

    def unpack(self, archive, directory):
        """Unpacks an archive with one folder at its top, whole or not at all."""
        partial = directory.with_name(directory.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        with tarfile.open(archive) as tar:
            # Where it is not there (Python before 3.11.4), archives are trusted as pip trusts them.
            safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
            tar.extractall(partial, **safely)
        (top,) = partial.iterdir()
        top.rename(directory)
        partial.rmdir()

    def command(self, words, **options):
        """Runs a program and returns what it printed; an error says the end of it."""
        done = subprocess.run([str(word) for word in words], text=True, capture_output=True, **options)
        if done.returncode != 0:
            raise RuntimeError(f"{words[0]}: {(done.stdout + done.stderr).strip()[-600:]}")
        return done.stdout

    def pytest(self, target, cwd, args, env=None):
        """Runs tests under pytest; their outcomes by id."""
        report = target.directory / "junit.xml"
        text, _ = target.run(
            "pytest",
            [self.python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout",
             TEST_SECONDS, "--junitxml", report, *args],
            cwd=cwd, env=env or target.environment())
        if not report.exists():
            raise RuntimeError(f"pytest: {text[-1000:]}")
        return read_junit(report)


def read_junit(path):
    """Outcomes of a JUnit report."""
    outcomes = {}
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        outcome = Outcome("pass")
        for child in case:
            why = short(child.get("message") or child.text or "")
            if child.tag in ("failure", "error"):
                outcome = Outcome("fail", why)
            elif child.tag == "skipped" and outcome.status == "pass":
                outcome = Outcome("skip", why)
        outcomes[f"{case.get('classname')}::{case.get('name')}"] = outcome
    return outcomes


def short(text):
    """One line of a message."""
    return " ".join(text.split())[:WHY_CHARS_MAX]
