"""pg_dump and pg_restore of one shard through pgward: what comes back is what was there."""

from workshop import Outcome, short

SETUP = """CREATE SCHEMA clinic;
CREATE TYPE clinic.mood AS ENUM ('ok', 'ill');
CREATE SEQUENCE clinic.numbers START 42;
CREATE TABLE clinic.patient (id bigint PRIMARY KEY DEFAULT nextval('clinic.numbers'), name text,
    mood clinic.mood, photo bytea, tags text[], born date, facts jsonb);
CREATE INDEX ON clinic.patient USING gin (facts);
CREATE TABLE clinic.visit (id serial PRIMARY KEY, patient bigint REFERENCES clinic.patient, at timestamptz);
CREATE VIEW clinic.ill AS SELECT * FROM clinic.patient WHERE mood = 'ill';
CREATE MATERIALIZED VIEW clinic.counts AS SELECT mood, count(*) FROM clinic.patient GROUP BY 1;
CREATE FUNCTION clinic.f() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RETURN NEW; END$$;
CREATE TRIGGER t BEFORE INSERT ON clinic.visit FOR EACH ROW EXECUTE FUNCTION clinic.f();
INSERT INTO clinic.patient (name, mood, photo, tags, born, facts)
SELECT E'N\\n\\t\\\\' || n, CASE WHEN n % 3 = 0 THEN 'ill' ELSE 'ok' END::clinic.mood,
    decode(md5(n::text), 'hex'), ARRAY['a', NULL, n::text], date '1950-01-01' + n, jsonb_build_object('n', n)
FROM generate_series(1, 5000) n;
INSERT INTO clinic.visit (patient, at) SELECT id, timestamptz '2020-01-01' + id * interval '1 hour' FROM clinic.patient;
SELECT lo_from_bytea(0, 'a large object');
REFRESH MATERIALIZED VIEW clinic.counts;
"""
DIGEST = """SELECT (SELECT md5(string_agg(p::text, ',' ORDER BY id)) FROM clinic.patient p),
    (SELECT md5(string_agg(v::text, ',' ORDER BY id)) FROM clinic.visit v),
    (SELECT string_agg(c::text, ',' ORDER BY mood) FROM clinic.counts c), nextval('clinic.numbers')"""
FORMATS = {"plain": "p", "custom": "c", "directory": "d", "tar": "t"}


def prepare(workshop):
    pass


def run(workshop, target):
    target.psql(target.database, SETUP)
    before = target.psql(target.database, DIGEST)
    outcomes = {}
    for name, letter in FORMATS.items():
        dump = target.directory / f"dump-{name}"
        jobs = ["-j", 2] if name == "directory" else []
        text, code = target.run(
            f"dump-{name}", [target.bin / "pg_dump", "-F", letter, *jobs, "-f", dump, "-n", "clinic"],
            timeout=120)
        outcomes[f"dump-{name}"] = Outcome("fail", short(text)) if code else Outcome("pass")
        if code:
            continue
        target.psql(target.database, "DROP SCHEMA clinic CASCADE")
        if name == "plain":
            command = [target.bin / "psql", "-Xq", "-v", "ON_ERROR_STOP=1", "-f", dump]
        else:
            command = [target.bin / "pg_restore", "-e", "-d", target.database,
                       *(["-j", 2] if name in ("directory", "custom") else []), dump]
        text, code = target.run(f"restore-{name}", command, timeout=120)
        outcomes[f"restore-{name}"] = Outcome("fail", short(text)) if code else Outcome("pass")
        if code:
            target.psql(target.database, "DROP SCHEMA IF EXISTS clinic CASCADE;" + SETUP)
            continue
        after = target.psql(target.database, DIGEST)
        # nextval: each reading takes one.
        same = after.rsplit("|", 1)[0] == before.rsplit("|", 1)[0]
        outcomes[f"same-{name}"] = Outcome("pass" if same else "fail", f"{before} became {after}")
    everything = target.directory / "everything.sql"
    text, code = target.run("everything", [target.bin / "pg_dump", "--blobs", "-f", everything], timeout=120)
    has_object = not code and "a large object".encode().hex() in everything.read_text()
    outcomes["large-objects"] = Outcome("pass" if has_object else "fail", short(text))
    # What pg_dump sets on its session stays with it.
    text, code = target.run("after", [target.bin / "psql", "-XAt", "-c", "SHOW search_path"])
    outcomes["search-path-after"] = Outcome("pass", answer=text)
    return outcomes
