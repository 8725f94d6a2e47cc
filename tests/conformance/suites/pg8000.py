"""pg8000's own tests, which ship in its source distribution: the protocol in plain Python, without libpq."""

# What asks for other than a Postgres (its CI's rules for logins and container, pytest-benchmark)...
LEFT_OUT = ("test/native/auth", "test/dbapi/auth", "test/legacy/auth", "test/test_readme.py",
            "test/native/test_benchmarks.py", "test/dbapi/test_benchmarks.py",
            "test/legacy/test_benchmarks.py")
# ... and what takes the driver itself more than TEST_SECONDS.
SLOW = ("test/native/test_query.py::test_max_parameters",)


def prepare(workshop):
    workshop.sdist("pg8000", workshop.version("pg8000"))


def run(workshop, target):
    source = workshop.sdist("pg8000", workshop.version("pg8000"))
    target.psql(target.database, "CREATE EXTENSION hstore")
    return workshop.pytest(target, source, [
        "test", *(f"--ignore={path}" for path in LEFT_OUT), *(f"--deselect={test}" for test in SLOW)])
