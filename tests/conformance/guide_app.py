"""An application of the guide's own kind: SQLAlchemy, synchronous and not, many processes, a hospital
for each request. Run by suites/guide.py; writes {pattern: [status, why]}.

It knows what every answer must be: patients, visits and users are made by rule (suites/guide.py),
and what it writes is under ids of its own.
"""

import asyncio
import contextlib
import json
import multiprocessing
import os
import random
import sys
import time
import traceback

import sqlalchemy as sa
from sqlalchemy import ForeignKeyConstraint, func, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, joinedload, mapped_column, relationship, selectinload

WORKERS = 12
REQUESTS = 25
PAGE = 10
URL = f"postgresql+{{driver}}://postgres@127.0.0.1:{os.environ['PGPORT']}/hospital"
SET = text("SELECT set_config('pgward.hospital_id', :hospital, false)")
SET_LOCAL = text("SELECT set_config('pgward.hospital_id', :hospital, true)")


class Base(DeclarativeBase):
    pass


@sa.event.listens_for(Session, "after_begin")
def set_hospital(session, transaction, connection):
    """After a commit the pool may give another connection, with the last request's hospital."""
    if "hospital" in session.info:
        connection.execute(SET, {"hospital": session.info["hospital"]})


class Region(Base):
    __tablename__ = "regions"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class Hospital(Base):
    __tablename__ = "hospitals"
    id: Mapped[sa.Uuid] = mapped_column(sa.Uuid(as_uuid=False), primary_key=True)
    region_id: Mapped[int] = mapped_column(sa.ForeignKey("regions.id"))
    code: Mapped[str]
    name: Mapped[str]
    is_active: Mapped[bool]
    region: Mapped[Region] = relationship()


class Patient(Base):
    __tablename__ = "patients"
    hospital_id: Mapped[str] = mapped_column(sa.Uuid(as_uuid=False), primary_key=True)
    id: Mapped[int] = mapped_column(sa.BigInteger, primary_key=True, autoincrement=False)
    mrn: Mapped[str]
    phone: Mapped[str | None]
    email: Mapped[str | None]
    name: Mapped[str]
    visits: Mapped[list["Visit"]] = relationship(back_populates="patient", order_by="Visit.id")


class Visit(Base):
    __tablename__ = "visits"
    hospital_id: Mapped[str] = mapped_column(sa.Uuid(as_uuid=False), primary_key=True)
    id: Mapped[int] = mapped_column(sa.BigInteger, primary_key=True, autoincrement=False)
    patient_id: Mapped[int] = mapped_column(sa.BigInteger)
    admission_date: Mapped[sa.Date] = mapped_column(sa.Date)
    status: Mapped[str]
    patient: Mapped[Patient] = relationship(back_populates="visits")
    __table_args__ = (ForeignKeyConstraint(
        ["hospital_id", "patient_id"], ["patients.hospital_id", "patients.id"]),)


def check(got, want, what):
    if got != want:
        raise AssertionError(f"{what}: {got!r}, not {want!r}")


# --- requests: plain functions of a session, the same for both kinds of driver ----------------

def list_patients(session, number, hospital, patients):
    """Pagination with what belongs to each row."""
    page = random.randrange(patients // PAGE)
    rows = session.scalars(
        select(Patient).options(joinedload(Patient.visits))
        .where(Patient.hospital_id == hospital, Patient.id <= patients)
        .order_by(Patient.id).limit(PAGE).offset(page * PAGE)).unique().all()
    check([row.id for row in rows], list(range(page * PAGE + 1, page * PAGE + PAGE + 1)), "a page")
    for row in rows:
        check(row.name, f"Patient {row.id} of H{number}", "a name")
        seen = [visit.id for visit in row.visits if visit.id < 10_000]
        check(seen, [row.id * 10 + v for v in range(1, 2 + row.id % 3)], "visits")
        check({visit.hospital_id for visit in row.visits} | {row.hospital_id}, {hospital}, "hospital")


def filter_visits(session, number, hospital, patients):
    """Filters, a count and a join."""
    count = session.scalar(
        select(func.count()).select_from(Visit)
        .where(Visit.hospital_id == hospital, Visit.status == "open", Visit.id < 10_000))
    check(count, patients, "open visits")
    rows = session.execute(
        select(Patient.name, Visit.id)
        .join(Visit, (Visit.hospital_id == Patient.hospital_id) & (Visit.patient_id == Patient.id))
        .where(Patient.hospital_id == hospital, Patient.name.like("%7 of%"), Visit.status == "closed",
               Patient.id <= patients, Visit.id < 10_000)
        .order_by(Visit.id)).all()
    want = [(f"Patient {p} of H{number}", p * 10 + v) for p in range(1, patients + 1) if p % 10 == 7
            for v in range(2, 2 + p % 3)]
    check([tuple(row) for row in rows], want, "closed visits of sevens")


def one_patient(session, number, hospital, patients):
    """The identity map, and a second query for the many."""
    id = random.randint(1, patients)
    row = session.get(Patient, (hospital, id), options=[selectinload(Patient.visits)])
    check(row.mrn, f"H{number}-{id}", "an mrn")
    check({visit.hospital_id for visit in row.visits}, {hospital}, "hospital of visits")


def hospital_and_region(session, number, hospital, patients):
    """A reference table beside the hospital."""
    row = session.scalars(
        select(Hospital).options(joinedload(Hospital.region)).where(Hospital.id == hospital)).one()
    check((row.code, row.is_active), (f"H{number}", number % 2 == 0), "hospital")
    check(row.region.id, 1, "region")


def unfiltered(session, number, hospital, patients):
    """Nothing in the statement but the key: what is elsewhere stays there."""
    rows = session.execute(text("SELECT DISTINCT code FROM hospitals h WHERE id = :h"), {"h": hospital}).all()
    check([tuple(row) for row in rows], [(f"H{number}",)], "code")


def write_and_read(session, number, hospital, patients):
    """A unit of work, read back; what fails is rolled back to its savepoint."""
    id = random.randrange(10_000, 1 << 40)
    patient = Patient(hospital_id=hospital, id=id, mrn=f"new-{id}", name=f"New {id}")
    patient.visits.append(Visit(hospital_id=hospital, id=id, admission_date=sa.func.current_date(), status="open"))
    session.add(patient)
    session.flush()
    with contextlib.suppress(sa.exc.IntegrityError), session.begin_nested():
        session.execute(sa.insert(Patient).values(hospital_id=hospital, id=id, mrn="twice", name="twice"))
    session.execute(sa.update(Visit).where(Visit.hospital_id == hospital, Visit.id == id).values(status="seen"))
    session.commit()
    name, status = session.execute(
        select(Patient.name, Visit.status).join(Visit, (Visit.hospital_id == Patient.hospital_id) & (Visit.patient_id == Patient.id))
        .where(Patient.hospital_id == hospital, Patient.id == id)).one()
    check((name, status), (f"New {id}", "seen"), "what was written")
    session.execute(sa.delete(Visit).where(Visit.hospital_id == hospital, Visit.id == id))
    session.execute(sa.delete(Patient).where(Patient.hospital_id == hospital, Patient.id == id))
    session.commit()


def foreign_hospital(session, number, hospital, patients, other=None):
    """The session's hospital and another in the statement: refused, and the session goes on."""
    try:
        rows = session.execute(select(Patient.id).where(Patient.hospital_id == other)).all()
    except DBAPIError as error:
        state = getattr(error.orig, "sqlstate", None)
        check(state in ("PW003", "42501"), True, f"SQLSTATE {state}")
        session.rollback()
        return
    raise AssertionError(f"{len(rows)} rows of another hospital")


REQUEST_KINDS = [list_patients, filter_visits, one_patient, hospital_and_region, unfiltered, write_and_read]


# --- patterns ------------------------------------------------------------------------------------

def sync_engine(driver="psycopg", **options):
    defaults = {"pool_size": 3, "max_overflow": 2, "pool_pre_ping": True, "pool_recycle": 1}
    return sa.create_engine(URL.format(driver=driver), **{**defaults, **options})


def request(session, kind, number, hospital, patients):
    session.info["hospital"] = hospital
    kind(session, number, hospital, patients)
    session.commit()


def sync_requests(kind, driver):
    def pattern(hospitals, patients):
        engine = sync_engine(driver)
        for number, hospital in random.sample(hospitals, len(hospitals)):
            with Session(engine) as session:
                request(session, kind, number, hospital, patients)
        engine.dispose()
    return pattern


def async_requests(kind, driver):
    def pattern(hospitals, patients):
        async def serve():
            engine = create_async_engine(URL.format(driver=driver), pool_size=4, pool_pre_ping=True, pool_recycle=1)

            async def one(number, hospital):
                async with AsyncSession(engine) as session:
                    await session.run_sync(request, kind, number, hospital, patients)
            await asyncio.gather(*(one(*hospital) for hospital in random.sample(hospitals, len(hospitals))))
            await engine.dispose()
        asyncio.run(serve())
    return pattern


def refuses_others(hospitals, patients):
    engine = sync_engine()
    with Session(engine) as session:
        for (number, hospital), (_, other) in zip(hospitals, hospitals[1:] + hospitals[:1]):
            session.info["hospital"] = hospital
            foreign_hospital(session, number, hospital, patients, other)
            one_patient(session, number, hospital, patients)
            session.commit()
            session.expunge_all()


def connection_options(hospitals, patients):
    """The hospital is the connection's: an engine for each."""
    for number, hospital in hospitals[:8]:
        engine = sync_engine(connect_args={"options": f"-c pgward.hospital_id={hospital}"})
        with Session(engine) as session:
            for kind in REQUEST_KINDS:
                kind(session, number, hospital, patients)
                session.commit()
                session.expunge_all()
        engine.dispose()


def connection_settings_asyncpg(hospitals, patients):
    async def serve():
        for number, hospital in hospitals[:8]:
            engine = create_async_engine(
                URL.format(driver="asyncpg"),
                connect_args={"server_settings": {"pgward.hospital_id": hospital}})
            async with AsyncSession(engine) as session:
                for kind in REQUEST_KINDS:
                    await session.run_sync(kind, number, hospital, patients)
                    await session.commit()
            await engine.dispose()
    asyncio.run(serve())


def background_worker(hospitals, patients):
    """One connection, and a hospital for each task: set for the session, for a transaction, and back."""
    engine = sync_engine(pool_size=1, max_overflow=0)
    # The connection is kept, and so is what was set on it.
    with engine.connect() as connection, Session(bind=connection) as session:
        for _ in range(3):
            for number, hospital in random.sample(hospitals, len(hospitals)):
                local = random.random() < 0.5
                session.execute(SET_LOCAL if local else SET, {"hospital": hospital})
                for kind in random.sample(REQUEST_KINDS[:5], 2):
                    kind(session, number, hospital, patients)
                if random.random() < 0.3:
                    session.rollback()
                session.commit()
                session.expunge_all()


def worker(seed, hospitals, patients, errors):
    """One process with a pool of its own; half of them are asynchronous."""
    random.seed(seed)
    try:
        if seed % 3 == 2:
            for kind in REQUEST_KINDS:
                async_requests(kind, "asyncpg")(random.sample(hospitals, 6), patients)
            return
        engine = sync_engine()
        for _ in range(REQUESTS):
            number, hospital = random.choice(hospitals)
            with Session(engine) as session:
                request(session, random.choice(REQUEST_KINDS), number, hospital, patients)
            if seed % 3 == 1:
                time.sleep(random.random() * 0.1)
    except BaseException:
        errors.put(traceback.format_exc()[-1500:])


def worker_processes(hospitals, patients):
    context = multiprocessing.get_context("spawn")
    errors = context.Queue()
    processes = [context.Process(target=worker, args=(seed, hospitals, patients, errors)) for seed in range(WORKERS)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
        if process.is_alive():
            process.kill()
            raise AssertionError("a worker hangs")
    if not errors.empty():
        raise AssertionError(errors.get())
    check([process.exitcode for process in processes], [0] * WORKERS, "exits")


def patterns():
    for kind in REQUEST_KINDS:
        for driver in ("psycopg", "psycopg2"):
            yield f"sync {driver}: {kind.__name__}", sync_requests(kind, driver)
        for driver in ("psycopg", "asyncpg"):
            yield f"async {driver}: {kind.__name__}", async_requests(kind, driver)
    for pattern in (refuses_others, connection_options, connection_settings_asyncpg, background_worker, worker_processes):
        yield pattern.__name__, pattern


def main():
    report, known, patients = sys.argv[1], sys.argv[2], int(sys.argv[3])
    with open(known) as file:
        hospitals = [(int(number), id) for number, id in json.load(file).items()]
    outcomes = {}
    for name, pattern in patterns():
        random.seed(name)
        try:
            pattern(hospitals, patients)
            outcomes[name] = ("pass", "")
        except Exception as error:
            traceback.print_exc()
            outcomes[name] = ("fail", f"{type(error).__name__}: {error}")
    with open(report, "w") as file:
        json.dump(outcomes, file)


if __name__ == "__main__":
    main()
