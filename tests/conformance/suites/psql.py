"""psql, scripted: its backslash commands ask much of the catalogs, and in ways of their own. What it
prints must be what it prints directly."""

from workshop import Outcome

SETUP = """CREATE TABLE ward (id integer PRIMARY KEY, name text NOT NULL, beds integer DEFAULT 4);
CREATE INDEX ward_name ON ward (name);
CREATE VIEW big_ward AS SELECT * FROM ward WHERE beds > 5;
CREATE FUNCTION beds() RETURNS bigint LANGUAGE sql STABLE AS 'SELECT sum(beds) FROM ward';
CREATE TYPE mood AS ENUM ('ok', 'ill');
COMMENT ON TABLE ward IS 'where patients are';
INSERT INTO ward SELECT n, 'Ward ' || n, n FROM generate_series(1, 20) n;
"""
SCRIPTS = {
    "describe": r"\d" "\n" r"\d ward" "\n" r"\d+ ward" "\n" r"\d+ big_ward" "\n" r"\dt" "\n" r"\di+ ward_name"
                "\n" r"\dv" "\n" r"\dT+ mood" "\n" r"\df beds" "\n" r"\sf beds" "\n" r"\sv big_ward"
                "\n" r"\dn" "\n" r"\du" "\n" r"\dx" "\n" r"\dp ward" "\n" r"\dd" "\n" r"\z" "\n" r"\drds",
    "list": r"\l" "\n" r"\db" "\n" r"\dL" "\n" r"\dC" "\n" r"\dO" "\n" r"\do =" "\n" r"\da sum" "\n"
            r"\dF" "\n" r"\dconfig work_mem",
    "gset": "SELECT count(*) AS wards, max(name) AS top FROM ward \\gset\n"
            "\\echo :wards :top\nSELECT :'top' AS quoted, :\"wards\" FROM (SELECT 1 AS \"20\") t;\n",
    "gexec": "SELECT format('SELECT %s AS n', n) FROM generate_series(1, 3) n \\gexec\n",
    "gdesc": "SELECT id, name, beds::numeric(5,2) FROM ward \\gdesc\n",
    "bind_variables": "\\set who Ward\\ 7\nSELECT id FROM ward WHERE name = :'who';\n"
                      "\\if :{?who}\n\\echo yes\n\\else\n\\echo no\n\\endif\n",
    "crosstab": "SELECT id % 2 AS odd, beds % 3 AS third, count(*) FROM ward GROUP BY 1, 2 ORDER BY 1, 2 \\crosstabview\n",
    "copy": "\\copy ward TO 'ward.csv' CSV HEADER\n\\copy (SELECT id, name FROM ward) TO STDOUT\n"
            "BEGIN;\nDELETE FROM ward;\n\\copy ward FROM 'ward.csv' CSV HEADER\nSELECT count(*), sum(beds) FROM ward;\nROLLBACK;\n",
    "copy_stdin": "CREATE TABLE c (a int, b text);\nCOPY c FROM STDIN;\n1\tone\n2\t\\N\n\\.\nSELECT * FROM c;\n"
                  "COPY c FROM STDIN;\nx\tbad\n\\.\nSELECT count(*) FROM c;\nDROP TABLE c;\n",
    "watch": "SELECT 1/(beds - 1) AS share FROM ward WHERE id = (SELECT min(id) FROM ward) \\watch 0.1\nSELECT 'after';\n",
    "errors": "SELECT nothing;\n\\errverbose\nSELECT 1/0;\nSELEC 1;\nSELECT 'after';\n",
    "on_error_rollback": "\\set ON_ERROR_ROLLBACK on\nBEGIN;\nSELECT 1/0;\nSELECT 'goes on';\nINSERT INTO ward VALUES (1, 'x');\n"
                         "SELECT count(*) FROM ward;\nCOMMIT;\n",
    "autocommit_off": "\\set AUTOCOMMIT off\nUPDATE ward SET beds = 0 WHERE id = 1;\nSELECT beds FROM ward WHERE id = 1;\nROLLBACK;\n"
                      "SELECT beds FROM ward WHERE id = 1;\nCOMMIT;\n",
    "fetch_count": "\\set FETCH_COUNT 7\nSELECT * FROM ward ORDER BY id;\nSELECT 'after';\n",
    "encoding": "\\encoding\n\\encoding LATIN1\nSELECT 'x' AS latin;\n\\encoding UTF8\nSELECT 'żółw' AS utf8;\n",
    "settings": "SET search_path = pg_catalog;\nSHOW search_path;\nRESET search_path;\nSHOW search_path;\nSET TIME ZONE 'Asia/Tokyo';\n"
                "SELECT '2020-01-01 00:00+00'::timestamptz;\nDISCARD ALL;\nSHOW TimeZone;\n",
    "prepare": "PREPARE p(int) AS SELECT name FROM ward WHERE id = $1;\nEXECUTE p(3);\nSELECT name, statement FROM pg_prepared_statements;\n"
               "DEALLOCATE p;\nEXECUTE p(3);\n",
    "temporary": "CREATE TEMP TABLE t AS SELECT 1 AS one;\nSELECT * FROM t;\n\\d t\nDROP TABLE t;\nSELECT * FROM t;\n",
    "cursor": "BEGIN;\nDECLARE c CURSOR FOR SELECT id FROM ward ORDER BY id;\nFETCH 2 FROM c;\nMOVE 3 IN c;\nFETCH NEXT FROM c;\nCLOSE c;\nCOMMIT;\n",
    "hold": "DECLARE h CURSOR WITH HOLD FOR SELECT id FROM ward ORDER BY id;\nFETCH 2 FROM h;\nFETCH 1 FROM h;\nCLOSE h;\n",
    "listen": "LISTEN beds;\nNOTIFY beds, 'free';\nSELECT 1;\nUNLISTEN *;\n",
    "advisory_lock": "SELECT pg_advisory_lock(7);\nSELECT count(*) FROM pg_locks WHERE locktype = 'advisory';\nSELECT pg_advisory_unlock(7);\n",
    "large_object": "\\lo_import ward.csv 'beds'\nSELECT count(*) FROM pg_largeobject_metadata;\n\\lo_list\n\\lo_unlink :LASTOID\n",
    "several_statements": "SELECT 1\\; SELECT 2\\; SELECT 3;\nBEGIN\\; SELECT 4\\; ROLLBACK;\n",
    "connect": "SET work_mem = '9MB';\n\\c\nSHOW work_mem;\n\\conninfo\n",
    "do": "DO $$ BEGIN RAISE NOTICE 'hello'; END $$;\nDO $$ BEGIN RAISE EXCEPTION 'no'; END $$;\nSELECT 'after';\n",
    "ddl_in_block": "BEGIN;\nCREATE TABLE d (a int);\nALTER TABLE d ADD b text;\nINSERT INTO d VALUES (1, 'x');\nTABLE d;\nROLLBACK;\nTABLE d;\n",
    "two_phase": "BEGIN;\nINSERT INTO ward VALUES (99, 'x');\nPREPARE TRANSACTION 'tx';\nSELECT count(*) FROM pg_prepared_xacts;\n"
                 "ROLLBACK PREPARED 'tx';\n",
    "vacuum": "VACUUM ANALYZE ward;\nCREATE INDEX CONCURRENTLY ward_beds ON ward (beds);\nDROP INDEX CONCURRENTLY ward_beds;\n",
}


def prepare(workshop):
    pass


def run(workshop, target):
    target.psql(target.database, SETUP)
    outcomes = {}
    for name, text in SCRIPTS.items():
        script = target.directory / f"{name}.sql"
        script.write_text(text)
        answer, code = target.run(name, [target.bin / "psql", "-X", "-a", "-f", script], timeout=60)
        # What differs from run to run and means nothing.
        for own, neutral in ((str(target.directory), "."), (str(target.port), "PORT")):
            answer = answer.replace(own, neutral)
        if name == "watch":
            answer = "\n".join(line for line in answer.splitlines() if "every" not in line)
        if name in ("large_object", "temporary", "listen"):
            # Numbers of objects, of temporary schemas and of processes.
            answer = "".join(c for c in answer if not c.isdigit())
        outcomes[name] = Outcome("pass", answer=f"{answer}\nended with {code}")
    return outcomes
