"""The npm driver `pg`: node_pg.js over its features. Its own tests are in no package."""

import json
import shutil

from workshop import HERE, NotToBeHad, Outcome, short

VERSIONS = ("pg@8.23.1", "pg-cursor@2.22.0", "pg-query-stream@4.17.0", "pg-copy-streams@7.0.0")


def prepare(workshop):
    if not (shutil.which("node") and shutil.which("npm")):
        raise NotToBeHad("node and npm")
    directory = workshop.cache / "node"
    directory.mkdir(exist_ok=True)
    stamp = directory / "versions"
    if not stamp.exists() or stamp.read_text() != " ".join(VERSIONS):
        workshop.command(["npm", "install", "--no-audit", "--no-fund", "--no-save", "--prefix", directory, *VERSIONS])
        stamp.write_text(" ".join(VERSIONS))
    shutil.copy(HERE / "node_pg.js", directory)


def run(workshop, target):
    report = target.directory / "report.json"
    text, code = target.run(
        "node", ["node", workshop.cache / "node" / "node_pg.js", report], timeout=300)
    if not report.exists():
        raise RuntimeError(f"node_pg.js ended with {code}: {text[-800:]}")
    return {test: Outcome(status, short(why))
            for test, (status, why) in json.loads(report.read_text()).items()}
