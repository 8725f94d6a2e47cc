"""psycopg 3's own tests. They are in its repository only, in no package: CONFORMANCE_PSYCOPG names a
checkout of the version that requirements.txt pins, or else it is cloned from upstream."""

import os
import subprocess
from pathlib import Path

from workshop import NotToBeHad, short

UPSTREAM = "https://github.com/psycopg/psycopg"
# As upstream's own CI: what takes long, or tests the machine's clock, is left out.
MARKERS = "not slow and not flakey and not mypy and not crdb and not timing"


def _source(workshop):
    named = os.environ.get("CONFORMANCE_PSYCOPG")
    return Path(named) if named else workshop.cache / f"psycopg-{workshop.version('psycopg')}"


def prepare(workshop):
    source = _source(workshop)
    if not (source / "tests").exists():
        try:
            workshop.command(
                ["git", "clone", "-q", "--depth=1", f"--branch={workshop.version('psycopg')}",
                 UPSTREAM, source], env={**os.environ, "GIT_TERMINAL_PROMPT": "0"}, timeout=300)
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            raise NotToBeHad(
                f"psycopg's tests (CONFORMANCE_PSYCOPG may name a checkout): {short(str(error))}"
            ) from error


def run(workshop, target):
    dsn = f"host=127.0.0.1 port={target.port} user=postgres dbname={target.database}"
    return workshop.pytest(
        target, _source(workshop),
        ["tests", "-m", MARKERS, "--test-dsn", dsn])
