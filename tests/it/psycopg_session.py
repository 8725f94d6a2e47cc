"""An application's session with psycopg 3, unchanged: PGHOST and the like say where pgward is.

Arguments: one hospital per shard, each with patients 1 to 5.
"""

import sys
import uuid

import psycopg

hospitals = [uuid.UUID(text) for text in sys.argv[1:]]

with psycopg.connect(autocommit=True) as conn:
    for hospital in hospitals:
        names = conn.execute(
            "SELECT name FROM patients WHERE hospital_id = %s ORDER BY id", (hospital,)
        ).fetchall()
        assert [name for (name,) in names] == [f"Patient {n}" for n in range(1, 6)], names
    # Prepared after a few executions, with hospitals of several shards in turn.
    for turn in range(12):
        hospital = hospitals[turn % len(hospitals)]
        row = conn.execute(
            "SELECT id, mrn FROM patients WHERE hospital_id = %s AND id = %s",
            (hospital, turn % 5 + 1),
            prepare=turn > 3,
        ).fetchone()
        assert row == (turn % 5 + 1, f"MRN-{turn % 5 + 1}"), row
    try:
        conn.execute("SELECT * FROM patients WHERE mrn = %s", ("MRN-1",))
        raise AssertionError("a statement without a hospital was run")
    except psycopg.Error as error:
        assert error.sqlstate == "PW001", error
        assert error.diag.message_hint, "it says what to do"
    with conn.cursor(binary=True) as cursor:
        cursor.execute(
            "SELECT hospital_id, id FROM patients WHERE hospital_id = %b AND id = 1",
            (hospitals[0],),
        )
        assert cursor.fetchone() == (hospitals[0], 1)

# Transactions: one hospital each; an error rolls back, as anywhere.
with psycopg.connect() as conn:
    for hospital in hospitals:
        with conn.transaction():
            conn.cursor().executemany(
                "INSERT INTO patients (hospital_id, id, mrn, name) VALUES (%s, %s, %s, %s)",
                [(hospital, n, f"MRN-{n}", f"Patient {n}") for n in range(100, 110)],
            )
        count = conn.execute(
            "SELECT count(*) FROM patients WHERE hospital_id = %s", (hospital,)
        ).fetchone()
        assert count == (15,), count
        conn.commit()
    try:
        with conn.transaction():
            conn.execute("DELETE FROM patients WHERE hospital_id = %s", (hospitals[0],))
            conn.execute("DELETE FROM patients WHERE hospital_id = %s", (hospitals[1],))
        raise AssertionError("one transaction wrote to two hospitals")
    except psycopg.Error as error:
        assert error.sqlstate == "PW003", error
    for hospital in hospitals[:2]:
        count = conn.execute(
            "SELECT count(*) FROM patients WHERE hospital_id = %s", (hospital,)
        ).fetchone()
        assert count == (15,), "a refused transaction left a trace"
        conn.commit()

# A pipeline.
with psycopg.connect(autocommit=True) as conn:
    with conn.pipeline():
        cursors = [
            conn.execute("SELECT count(*) FROM patients WHERE hospital_id = %s", (hospital,))
            for hospital in hospitals[:1] * 3
        ]
        assert [cursor.fetchone() for cursor in cursors] == [(15,)] * 3
