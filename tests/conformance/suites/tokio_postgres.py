"""The tests of the tokio-postgres crate, which ship in it: the very version that pgward is built with."""

import json
import os
import re
import shutil

from workshop import REPOSITORY, Outcome, short

EXTENSIONS = ("hstore", "citext", "ltree")
# Where the server of a run is; the crate's tests have a port of their own in their texts.
AT = '''
/// Where the server of this run is.
fn at(text: &str) -> &'static str {
    let port = std::env::var("CONFORMANCE_PORT").expect("CONFORMANCE_PORT");
    text.replace("5433", &port).leak()
}
'''


def _cargo(workshop, *args, cwd, **env):
    cargo = os.environ.get("CARGO", "cargo")
    return workshop.command([cargo, *args], cwd=cwd, env={**os.environ, **env})


def prepare(workshop):
    metadata = json.loads(_cargo(workshop, "metadata", "--locked", "--format-version=1",
                                 cwd=REPOSITORY))
    (package,) = [p for p in metadata["packages"] if p["name"] == "tokio-postgres"]
    directory = workshop.cache / f"tokio-postgres-{package['version']}"
    if not directory.exists():
        partial = directory.with_name(directory.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        source = os.path.dirname(package["manifest_path"])
        shutil.copytree(source, partial)
        # A workspace of its own, although it lies in ours.
        with open(partial / "Cargo.toml", "a") as manifest:
            manifest.write("\n[workspace]\n")
        tests = partial / "tests" / "test"
        for name in ("main.rs", "runtime.rs"):
            text = (tests / name).read_text()
            text = re.sub(r'("[^"]*\b5433\b[^"]*")', r"crate::at(\1)", text)
            (tests / name).write_text(text + (AT if name == "main.rs" else ""))
        partial.rename(directory)
    built = _cargo(
        workshop, "test", "--locked", "--all-features", "--test", "test", "--no-run",
        "--message-format=json", cwd=directory,
        CARGO_TARGET_DIR=str(workshop.cache / "tokio-postgres-target"))
    artifacts = [json.loads(line) for line in built.splitlines() if line.startswith("{")]
    (workshop.tokio_postgres,) = [
        a["executable"] for a in artifacts
        if a.get("executable") and a["target"]["name"] == "test"]


def run(workshop, target):
    for extension in EXTENSIONS:
        target.psql(target.database, f"CREATE EXTENSION {extension}")
    env = target.environment(CONFORMANCE_PORT=target.port, RUST_BACKTRACE=0)
    for name in ("PGUSER", "PGDATABASE"):
        del env[name]
    text, _ = target.run("tests", [workshop.tokio_postgres, "--test-threads=4"], env=env, timeout=300)
    why = dict(re.findall(r"^---- (\S+) stdout ----\n\n?(?:.*panicked at.*\n)?(.*(?:\n.+)?)", text, re.M))
    words = {"ok": "pass", "FAILED": "fail", "ignored": "skip"}
    outcomes = {}
    for name, word in re.findall(r"^test (\S+)(?: - should panic)? \.\.\. (ok|FAILED|ignored)", text, re.M):
        outcomes[name] = Outcome(words[word], short(why.get(name, "")))
    return outcomes
