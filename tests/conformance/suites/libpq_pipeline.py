"""PostgreSQL's own test of libpq's pipeline mode (src/test/modules/libpq_pipeline).

Built from Debian's source package of the libpq that is installed: no binary package has it.
"""

import os

from workshop import NotToBeHad, Outcome, short

PACKAGE = "postgresql-15"
# All that the program needs of the server's generated headers.
PG_TYPE = "#define INT4OID 23\n#define INT8OID 20\n#define TEXTOID 25\n#define INTERVALOID 1186\n#define NUMERICOID 1700\n"
# The C library's own stdio will do, and needs nothing of the rest of PostgreSQL.
POSTGRES_FE = "#include_next <postgres_fe.h>\n" + "".join(
    f"#undef {name}\n" for name in (
        "printf", "fprintf", "sprintf", "snprintf", "vprintf", "vfprintf", "vsprintf", "vsnprintf",
        "strerror", "strerror_r"))
SOURCES = ("src/test/modules/libpq_pipeline/libpq_pipeline.c", "src/common/fe_memutils.c",
           "src/common/psprintf.c")


def _program(workshop):
    return workshop.cache / "libpq_pipeline"


def prepare(workshop):
    if _program(workshop).exists():
        return
    try:
        version = workshop.command(["dpkg-query", "-W", "-f", "${source:Version}", "libpq-dev"])
    except (RuntimeError, OSError) as error:
        raise NotToBeHad(f"libpq-dev is not installed: {error}") from error
    source = workshop.debian_source(PACKAGE, version)
    shim = workshop.cache / "libpq_pipeline-shim"
    (shim / "catalog").mkdir(parents=True, exist_ok=True)
    (shim / "catalog" / "pg_type_d.h").write_text(PG_TYPE)
    (shim / "postgres_fe.h").write_text(POSTGRES_FE)
    include = workshop.command(["pg_config", "--includedir"]).strip()
    workshop.command([
        os.environ.get("CC", "cc"), "-DFRONTEND", "-O1", "-w", f"-I{shim}", f"-I{source}/src/include",
        f"-I{source}/src/port", f"-I{include}", f"-I{include}/internal",
        *(source / path for path in SOURCES), "-lpq", "-o", _program(workshop)])


def run(workshop, target):
    program = _program(workshop)
    conninfo = f"host=127.0.0.1 port={target.port} user=postgres dbname={target.database}"
    names = workshop.command([program, "tests"]).split()
    outcomes = {}
    for name in names:
        text, code = target.run(name, [program, "-r", "2000", name, conninfo], timeout=120)
        lines = text.strip().splitlines()
        outcomes[name] = Outcome("pass") if code == 0 else Outcome("fail", short(" ".join(lines[-3:])))
    return outcomes
