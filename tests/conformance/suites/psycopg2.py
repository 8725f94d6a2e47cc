"""psycopg2's own tests, which ship in its source distribution: libpq, synchronous and not."""


def prepare(workshop):
    workshop.sdist("psycopg2", workshop.version("psycopg2-binary"))


def run(workshop, target):
    source = workshop.sdist("psycopg2", workshop.version("psycopg2-binary"))
    # Some of its tests are skipped where they can't make it: it is theirs.
    target.psql(target.database, "CREATE EXTENSION IF NOT EXISTS hstore")
    env = target.environment(PSYCOPG2_TESTDB=target.database)
    return workshop.pytest(target, source, ["tests"], env)
