"""SQLAlchemy's own tests of its PostgreSQL dialects, which ship in its source distribution: over
psycopg and asyncpg."""

SCHEMAS = ("test_schema", "test_schema_2")
TESTS = ("test/dialect/postgresql", "test/dialect/test_suite.py")


def prepare(workshop):
    workshop.sdist("sqlalchemy", workshop.version("SQLAlchemy"))


def run(workshop, target):
    source = workshop.sdist("sqlalchemy", workshop.version("SQLAlchemy"))
    for schema in SCHEMAS:
        target.psql(target.database, f"CREATE SCHEMA {schema}")
    for extension in ("hstore", "citext", "btree_gist"):
        target.psql(target.database, f"CREATE EXTENSION {extension}")
    place = f"postgres@127.0.0.1:{target.port}/{target.database}"
    return workshop.pytest(target, source, [
        *TESTS, "-p", "no:warnings", "--dburi", f"postgresql+psycopg://{place}",
        "--dburi", f"postgresql+asyncpg://{place}"])
