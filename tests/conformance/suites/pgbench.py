"""pgbench in all its modes; each must run without a failed transaction and keep the accounts' sums."""

from workshop import Outcome, short

SCALE = 1
PROTOCOLS = ("simple", "extended", "prepared")
SCRIPTS = ("tpcb-like", "simple-update", "select-only")
SUMS = """SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(delta) FROM pgbench_history)
AND (SELECT sum(tbalance) FROM pgbench_tellers) = (SELECT sum(bbalance) FROM pgbench_branches)"""
# A pipeline of one's own, which only \\startpipeline gives; extended and prepared have it.
PIPELINE = r"""\set aid random(1, 100000 * :scale)
\startpipeline
BEGIN;
UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid = :aid;
SELECT abalance FROM pgbench_accounts WHERE aid = :aid;
UPDATE pgbench_accounts SET abalance = abalance - 1 WHERE aid = :aid;
END;
\endpipeline
"""


def prepare(workshop):
    pass


def run(workshop, target):
    pgbench = target.bin / "pgbench"
    outcomes = {}

    def note(name, *args):
        text, code = target.run(name, [pgbench, *args], timeout=300)
        failed = "number of failed transactions: 0 " not in text and "-i" not in args
        lines = [line for line in text.splitlines() if "error" in line.lower() or "failed" in line]
        outcomes[name] = (Outcome("fail", short(" ".join(lines[:3]))) if code or failed
                          else Outcome("pass"))

    note("initialize", "-i", "-q", "-s", SCALE)
    for script in SCRIPTS:
        for protocol in PROTOCOLS:
            common = ("-n", "-b", script, "-M", protocol, "-c", 8, "-j", 2, "-s", SCALE)
            note(f"{script}-{protocol}", *common, "-t", 50)
            note(f"{script}-{protocol}-reconnecting", *common, "-t", 5, "-C")
    pipeline = target.directory / "pipeline.sql"
    pipeline.write_text(PIPELINE)
    for protocol in PROTOCOLS[1:]:
        note(f"pipeline-{protocol}", "-n", "-f", pipeline, "-M", protocol, "-c", 8, "-j", 2,
             "-t", 50, "-s", SCALE)
    sums = target.psql(target.database, SUMS)
    outcomes["sums"] = Outcome("pass" if sums == "t" else "fail", f"the sums differ: {sums}")
    return outcomes
