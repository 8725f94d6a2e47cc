"""The guide's own application patterns over four shards: guide_app.py, with every answer checked."""

import json

import servers
from workshop import HERE, REPOSITORY, Outcome, short

SHARDED = True
# In session mode a client's server is on one shard, and so are its hospitals.
MODES = ("transaction",)
SHARDS = 4
HOSPITALS_PER_SHARD = 6
PATIENTS = 40
REGIONS = ("north-america", "europe", "asia-pacific", "latin-america")
# Bucket is the id modulo 100: these are plain to read, and fall on the shard that their name says.
ROWS = """
INSERT INTO hospitals VALUES ('{id}', 1, 'H{number}', 'Hospital {number}', {number} % 2 = 0);
INSERT INTO users SELECT '{id}', n, 'user' || n || '@h{number}', 1 + n % 2 FROM generate_series(1, 5) n;
INSERT INTO patients SELECT '{id}', n, 'H{number}-' || n, '555-' || n, 'p' || n || '@h{number}', 'Patient ' || n || ' of H{number}'
    FROM generate_series(1, {patients}) n;
INSERT INTO visits SELECT '{id}', p * 10 + v, p, date '2024-01-01' + p, CASE WHEN v = 1 THEN 'open' ELSE 'closed' END
    FROM generate_series(1, {patients}) p, generate_series(1, 1 + p % 3) v;
"""


def hospitals():
    """(number, id) of all of them: number n is on shard n % 4."""
    for number in range(SHARDS * HOSPITALS_PER_SHARD):
        bucket = (number % SHARDS) * 25 + number // SHARDS
        # 2**32 is 96 modulo 100, and so on: the last digits are chosen to hit the bucket.
        base = 0x6BA7B810_9DAD_41D1_80B4_000000000000 + (number << 20)
        value = base + (bucket - base) % 100
        text = f"{value:032x}"
        yield number, f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def prepare(workshop):
    pass


def ward(options, sandbox, cluster, name, mode):
    config = REPOSITORY / "config"
    schema = (config / "schema.sql").read_text() + (config / "reference-rows.sql").read_text()
    text = ('version = 1\nmodulus = 100\ndatabase = "hospital"\n'
            'key = { column = "hospital_id", tables = { "public.hospitals" = "id" } }\n'
            'reference = ["public.regions", "public.roles"]\n')
    for shard, region in enumerate(REGIONS):
        cluster.psql("postgres", f"CREATE DATABASE shard{shard}")
        rows = "".join(ROWS.format(id=id, number=number, patients=PATIENTS)
                       for number, id in hospitals() if number % SHARDS == shard)
        cluster.psql(f"shard{shard}", schema + rows)
        text += (f'\n[[shard]]\nid = {shard}\nregion = "{region}"\n'
                 f'buckets = "{shard * 25}-{shard * 25 + 24}"\n'
                 f'primary = "127.0.0.1:{cluster.port}"\ndatabase = "shard{shard}"\n')
    size = 60 if mode == "session" else 4
    return servers.Ward(sandbox, options.binary, name, text, mode,
                        sections={"pool": {"default_pool_size": size}})


def run(workshop, target):
    report = target.directory / "report.json"
    known = target.directory / "hospitals.json"
    known.write_text(json.dumps(dict(hospitals())))
    target.database = "hospital"
    text, code = target.run(
        "app", [workshop.python, HERE / "guide_app.py", report, known, PATIENTS], timeout=900)
    if not report.exists():
        raise RuntimeError(f"guide_app.py ended with {code}: {text[-1000:]}")
    outcomes = {test: Outcome(status, short(why))
                for test, (status, why) in json.loads(report.read_text()).items()}
    outcomes["each row is of its own hospital"] = strays(target)
    return outcomes


def strays(target):
    """Past pgward: no row was written to a shard that its hospital does not live on."""
    found = []
    for shard in range(SHARDS):
        own = ", ".join(f"'{id}'" for number, id in hospitals() if number % SHARDS == shard)
        for table in ("patients", "visits", "users"):
            count = target.psql(f"shard{shard}", f"SELECT count(*) FROM {table} WHERE hospital_id NOT IN ({own})")
            if count != "0":
                found.append(f"shard {shard}: {count} of {table}")
    return Outcome("fail", "; ".join(found)) if found else Outcome("pass")
