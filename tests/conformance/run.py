#!/usr/bin/env python3
"""`make conformance`: drivers' own suites and applications, directly and through pgward.

Runs each suite of suites/ against a fresh Postgres: directly, through pgward in session mode and
in transaction mode. A test that does otherwise through pgward than directly is a difference. Each
one must be in differences.toml with its reason, and each one there must still occur: so the list
only shrinks. Prints a table and all differences; writes target/conformance/results.json.

    SUITE=psycopg2,psql MODE=transaction make conformance
"""

import argparse
import concurrent.futures
import fnmatch
import importlib
import json
import os
import re
import shutil
import signal
import sys
import time
import tomllib
import traceback
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import servers  # noqa: E402
from workshop import REPOSITORY, NotToBeHad, Outcome, Target, Workshop, short  # noqa: E402

# In this order: the slow ones first.
SUITES = ["django", "sqlalchemy", "asyncpg", "psycopg2", "psycopg", "pg8000", "guide", "pgbench",
          "tokio_postgres", "libpq_pipeline", "node_pg", "psql", "pg_dump"]
MODES = ["direct", "session", "transaction"]
# Tests of one reason that are named when there are many.
NAMED_MAX = 6
MISSING = Outcome("missing", "it did not run")


def main():
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
    workshop = Workshop(REPOSITORY / "target" / "conformance")
    workshop.make_venv()
    suites = {name: importlib.import_module(f"suites.{name}") for name in options.suites}
    sandbox = servers.Sandbox()
    results, absent = {}, {}
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as executor:
        prepared = {name: executor.submit(module.prepare, workshop)
                    for name, module in suites.items()}
        runs = {}
        for name, module in suites.items():
            try:
                prepared[name].result()
            except NotToBeHad as error:
                absent[name] = short(str(error))
                say(f"{name}: not run: {absent[name]}")
                continue
            except Exception as error:
                # The others go on; the run fails in the end.
                results[name] = {"direct": {"broken": short(str(error))}}
                say(f"{name}: {error!r}")
                continue
            for mode in modes_of(module, options.modes):
                run = executor.submit(run_suite, options, workshop, sandbox, name, module, mode)
                runs[run] = (name, mode)
        for run in concurrent.futures.as_completed(runs):
            name, mode = runs[run]
            results.setdefault(name, {})[mode] = run.result()
    sandbox.close()
    return report(options, results, absent)


def arguments():
    def names(known):
        def split(text):
            chosen = [word for word in re.split(r"[\s,]+", text.replace("-", "_")) if word]
            unknown = set(chosen) - set(known)
            if unknown:
                raise argparse.ArgumentTypeError(f"one of {', '.join(known)}: {unknown}")
            return chosen or list(known)
        return split

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suites", type=names(SUITES), default=SUITES)
    parser.add_argument("--modes", type=names(MODES), default=MODES)
    parser.add_argument("--binary", type=Path, required=True, help="pgward")
    parser.add_argument("--jobs", type=int, default=max(2, os.cpu_count() or 2))
    options = parser.parse_args()
    options.binary = options.binary.resolve()
    if "direct" not in options.modes:
        options.modes = ["direct", *options.modes]
    return options


def modes_of(module, modes):
    """Suites over several shards have nothing to run directly."""
    return [mode for mode in modes if mode in getattr(module, "MODES", MODES)]


def run_suite(options, workshop, sandbox, name, module, mode):
    """Outcomes of a suite in a mode, or why there are none."""
    began = time.monotonic()
    directory = workshop.cache / "runs" / name / mode
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    cluster = servers.Cluster(sandbox, f"{name}-{mode}")
    ward = None
    try:
        with cluster:
            target = Target(mode, cluster.port, cluster.psql, directory, sandbox.bin)
            if mode == "direct":
                outcomes = module.run(workshop, target)
            else:
                ward = ward_for(options, sandbox, module, cluster, name, mode)
                with ward:
                    target.port = ward.port
                    outcomes = module.run(workshop, target)
                    if ward.process.poll() is not None:
                        outcomes["pgward"] = Outcome("fail", f"it ended: {ward.process.poll()}")
    except servers.NotAvailable as error:
        say(f"{name} {mode}: not available: {short(str(error))}")
        return {"not_available": short(str(error))}
    except Exception:
        say(f"{name} {mode}: {traceback.format_exc()}")
        return {"broken": short(traceback.format_exc()[-600:])}
    finally:
        for server in (cluster, ward):
            if server and server.log and server.log.exists():
                shutil.copy(server.log, directory)
    seconds = time.monotonic() - began
    counts = Counter(outcome.status for outcome in outcomes.values())
    say(f"{name} {mode}: {dict(counts)} in {seconds:.0f} s")
    return {"outcomes": outcomes, "seconds": seconds}


def ward_for(options, sandbox, module, cluster, name, mode):
    if getattr(module, "SHARDED", False):
        return module.ward(options, sandbox, cluster, f"{name}-{mode}", mode)
    text = servers.ONE_SHARD.format(database="postgres", port=cluster.port)
    return servers.Ward(sandbox, options.binary, f"{name}-{mode}", text, mode)


def say(text):
    print(text, file=sys.stderr, flush=True)


# --- what came out ---------------------------------------------------------------------------

def differences_of(suite, by_mode):
    """(mode, test, direct's outcome, the mode's) of all that differ."""
    direct = by_mode.get("direct", {}).get("outcomes")
    found = []
    for mode, result in by_mode.items():
        outcomes = result.get("outcomes")
        if mode == "direct" or outcomes is None:
            continue
        if direct is None:
            # Nothing to compare with: each must pass.
            found += [(mode, test, Outcome("pass"), outcome)
                      for test, outcome in sorted(outcomes.items()) if outcome.status != "pass"]
            continue
        for test in sorted(direct.keys() | outcomes.keys()):
            expected, got = direct.get(test, MISSING), outcomes.get(test, MISSING)
            if expected.status == "pass" and got.status == "pass" and expected.answer != got.answer:
                got = Outcome("fail", first_difference(expected.answer, got.answer))
            if expected.status != got.status:
                found.append((mode, test, expected, got))
    return found


def first_difference(expected, got):
    """The first line where two answers part."""
    lines, others = (expected or "").splitlines(), (got or "").splitlines()
    for number, line in enumerate(lines):
        if number >= len(others) or others[number] != line:
            other = others[number] if number < len(others) else "(the end)"
            return short(f"line {number + 1}: {line!r}, here {other!r}")
    return short(f"more: {others[len(lines):][:1]!r}")


class Known:
    """differences.toml."""

    def __init__(self, path):
        self.entries = tomllib.loads(path.read_text()).get("difference", [])
        for entry in self.entries:
            entry["met"] = set()
            for key in ("suite", "modes", "tests", "reason"):
                if not entry.get(key):
                    raise SystemExit(f"{path}: an entry without {key}: {entry}")

    def reason(self, suite, mode, test):
        """Why this may differ, if it may."""
        for entry in self.entries:
            if entry["suite"] != suite or mode not in entry["modes"]:
                continue
            for pattern in entry["tests"]:
                # Only `*` is special: ids have brackets of their own.
                if fnmatch.fnmatchcase(test, pattern.replace("[", "[[]")):
                    entry["met"].add((mode, pattern))
                    return entry["reason"]
        return None

    def gone(self, ran):
        """What is listed and did not occur, of the (suite, mode) pairs that ran."""
        return [
            (entry["suite"], mode, pattern)
            for entry in self.entries
            for mode in entry["modes"]
            for pattern in entry["tests"]
            if (entry["suite"], mode) in ran and (mode, pattern) not in entry["met"]
            and not entry.get("sometimes")]


def report(options, results, absent):
    known = Known(HERE / "differences.toml")
    is_fine = True
    ran, listed, unlisted, better = set(), {}, [], []
    for suite in sorted(results):
        for mode, result in results[suite].items():
            if "outcomes" in result:
                ran.add((suite, mode))
        for mode, test, expected, got in differences_of(suite, results[suite]):
            reason = known.reason(suite, mode, test)
            if reason:
                listed.setdefault((suite, mode, reason), []).append(test)
            elif expected.status in ("fail", "skip") and got.status == "pass":
                better.append((suite, mode, test))
            else:
                unlisted.append((suite, mode, test, expected, got))

    print_table(results, absent)
    if listed:
        print("\nDifferences with a reason:")
        for (suite, mode, reason), tests in sorted(listed.items()):
            more = f", and {len(tests) - NAMED_MAX} more" if len(tests) > NAMED_MAX else ""
            print(f"  {suite}, {mode}, {len(tests)}: {reason}\n"
                  f"      {', '.join(tests[:NAMED_MAX])}{more}")
    for suite, mode, test in better:
        print(f"  {suite}, {mode}: {test} passes, but not directly")
    if unlisted:
        is_fine = False
        print("\nDifferences without a reason in differences.toml:")
        for suite, mode, test, expected, got in unlisted:
            print(f"  {suite}, {mode}: {test}: {expected.status} -> {got.status}: {short(got.why)}")
    gone = known.gone(ran)
    if gone:
        is_fine = False
        print("\nListed in differences.toml, and no longer so:")
        for suite, mode, pattern in gone:
            print(f"  {suite}, {mode}: {pattern}")
    for suite in sorted(results):
        for mode, result in results[suite].items():
            if "broken" in result:
                is_fine = False
                print(f"\n{suite}, {mode}: did not run: {result['broken']}")
    # One that was asked for by name must run; the others are told of, above and below.
    if absent and len(options.suites) < len(SUITES):
        is_fine = False
    write_json(REPOSITORY / "target" / "conformance" / "results.json", results, absent)
    total = sum(len(r.get("outcomes", {})) for by_mode in results.values() for r in by_mode.values())
    missing = f"; NOT RUN: {', '.join(sorted(absent))}" if absent else ""
    print(f"\n{total} tests, {sum(map(len, listed.values()))} differences with a reason, "
          f"{len(unlisted)} without, {len(gone)} gone{missing}: {'ok' if is_fine else 'FAILED'}")
    return 0 if is_fine else 1


def print_table(results, absent):
    print(f"{'suite':16}" + "".join(f"{mode:>28}" for mode in MODES))
    for suite in SUITES:
        if suite in absent:
            print(f"{suite:16}  not run: {absent[suite]}")
        elif suite in results:
            print(f"{suite:16}" + "".join(f"{cell(results[suite].get(mode)):>28}" for mode in MODES))


def cell(result):
    if result is None:
        return "-"
    if "outcomes" not in result:
        return "not available" if "not_available" in result else "did not run"
    counts = Counter(outcome.status for outcome in result["outcomes"].values())
    words = [f"{counts[word]} {word}" for word in ("pass", "fail", "skip") if counts[word]]
    return ", ".join(words) or "nothing"


def write_json(path, results, absent):
    plain = {
        suite: {
            mode: {
                key: {test: vars(outcome) for test, outcome in value.items()}
                if key == "outcomes" else value
                for key, value in result.items()}
            for mode, result in by_mode.items()}
        for suite, by_mode in results.items()}
    path.write_text(json.dumps({"suites": plain, "not_run": absent}, indent=1, sort_keys=True))


if __name__ == "__main__":
    sys.exit(main())
