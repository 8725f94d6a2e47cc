"""asyncpg's own tests, which ship in its source distribution: the extended protocol without libpq."""

import shutil


def _tests(workshop):
    version = workshop.version("asyncpg")
    source = workshop.sdist("asyncpg", version)
    # Beside its sources, the tests would import those, which are not built.
    return source, workshop.cache / f"asyncpg-{version}-tests"


def prepare(workshop):
    source, directory = _tests(workshop)
    if not directory.exists():
        shutil.copytree(source / "tests", directory / "tests")
    (package,) = (workshop.cache / "venv").glob("lib/python*/site-packages/asyncpg")
    # Of the same version, but left out of the binary package.
    shutil.copytree(source / "asyncpg" / "_testbase", package / "_testbase", dirs_exist_ok=True)


def run(workshop, target):
    _, directory = _tests(workshop)
    return workshop.pytest(target, directory, ["tests", "--deselect", "tests/test__sourcecode.py"])
