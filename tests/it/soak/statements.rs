//! What an application of the guide's schema says, with values made up: each statement for one
//! hospital, and those that must be refused.
//!
//! Ids are of a small range, so that rows are found, missed and conflict; no two hospitals have the
//! same, so that a session with a hospital may leave the key out. Each value written is new, so
//! that a write can be told from its absence.

use uuid::Uuid;

use super::world::Hospital;
use crate::support::Dice;

/// A value of a statement.
#[derive(Debug, Clone)]
pub enum Value {
    Id(Uuid),
    Long(i64),
    Int(i32),
    Text(String),
    /// Days since 2000-01-01.
    Date(i32),
    Null,
}

/// One statement, its values as `$1` and so on.
#[derive(Debug, Clone)]
pub struct Statement {
    /// Its name in the report, and as a prepared statement: the text is the same for the same kind.
    pub kind: &'static str,
    pub sql: String,
    pub values: Vec<Value>,
    /// Its rows have one order only.
    pub is_ordered: bool,
    pub is_write: bool,
    /// The SQLSTATE with which pgward must refuse it.
    pub refused: Option<&'static str>,
    /// It takes long enough to be cancelled.
    pub is_slow: bool,
}

impl Statement {
    fn new(kind: &'static str, sql: &str, values: Vec<Value>) -> Self {
        let is_write = false;
        let is_ordered = sql.contains("ORDER BY") && !sql.contains("OVER");
        let sql = sql.to_owned();
        Self { kind, sql, values, is_ordered, is_write, refused: None, is_slow: false }
    }

    fn write(kind: &'static str, sql: &str, values: Vec<Value>) -> Self {
        Self { is_write: true, ..Self::new(kind, sql, values) }
    }

    fn slow(self) -> Self {
        Self { is_slow: true, ..self }
    }

    fn refused(kind: &'static str, code: &'static str, sql: &str, values: Vec<Value>) -> Self {
        Self { refused: Some(code), ..Self::new(kind, sql, values) }
    }
}

/// A statement that reads, or locks.
pub fn read(hospital: &Hospital, dice: &mut Dice) -> Statement {
    let id = Value::Id(hospital.id);
    let mut patient = || Value::Long(hospital.patient(dice));
    let (one, two, three) = (patient(), patient(), patient());
    let status = status(dice);
    match dice.below(23) {
        0 | 1 => Statement::new(
            "point read",
            "SELECT name, phone, email FROM patients WHERE hospital_id = $1 AND id = $2",
            vec![id, one],
        ),
        2 => Statement::new(
            "index read",
            "SELECT id, name FROM patients WHERE mrn = $2 AND hospital_id = $1 ORDER BY id",
            vec![id, mrn(dice)],
        ),
        3 => Statement::new(
            "join using",
            "SELECT p.name, v.id, v.status FROM patients p JOIN visits v USING (hospital_id)
             WHERE v.patient_id = p.id AND p.hospital_id = $1 AND p.id < $2",
            vec![id, one],
        ),
        4 => Statement::new(
            "outer join on",
            "SELECT p.id, count(v.id) FROM patients p LEFT JOIN visits v
             ON v.hospital_id = p.hospital_id AND v.patient_id = p.id
             WHERE p.hospital_id = $1 GROUP BY p.id",
            vec![id],
        ),
        5 => Statement::new(
            "reference join",
            "SELECT u.id, u.email, r.name FROM users u JOIN roles r ON r.id = u.role_id
             WHERE u.hospital_id = $1 ORDER BY u.id",
            vec![id],
        ),
        6 => Statement::new(
            "hospital and region",
            "SELECT h.code, h.name, h.is_active, g.name FROM hospitals h
             JOIN regions g ON g.id = h.region_id WHERE h.id = $1",
            vec![id],
        ),
        7 => Statement::new(
            "cte",
            "WITH recent AS (SELECT * FROM visits WHERE hospital_id = $1 AND admission_date >= $2)
             SELECT p.name, r.id, r.admission_date FROM patients p
             JOIN recent r ON r.patient_id = p.id WHERE p.hospital_id = $1",
            vec![id, date(dice)],
        ),
        8 => Statement::new(
            "subquery in",
            "SELECT id, name FROM patients WHERE hospital_id = $1 AND id IN
             (SELECT patient_id FROM visits WHERE hospital_id = $1 AND status = $2)",
            vec![id, status],
        ),
        9 => Statement::new(
            "exists",
            "SELECT p.id FROM patients p WHERE p.hospital_id = $1 AND EXISTS (SELECT 1 FROM visits v
             WHERE v.hospital_id = p.hospital_id AND v.patient_id = p.id AND v.status = $2)",
            vec![id, status],
        ),
        10 => Statement::new(
            "in list",
            "SELECT id, mrn, name FROM patients WHERE hospital_id = $1 AND id IN ($2, $3, $4)",
            vec![id, one, two, three],
        ),
        11 => Statement::new(
            "or of one hospital",
            "SELECT id, phone FROM patients
             WHERE (hospital_id = $1 AND id = $2) OR (hospital_id = $1 AND id = $3)",
            vec![id, one, two],
        ),
        12 => Statement::new(
            "aggregate",
            "SELECT status, count(*), min(admission_date), max(id) FROM visits
             WHERE hospital_id = $1 GROUP BY status HAVING count(*) > $2 ORDER BY status",
            vec![id, Value::Long(dice.below(3) as i64)],
        ),
        13 | 14 => Statement::new(
            "page",
            "SELECT id, name, mrn FROM patients WHERE hospital_id = $1 ORDER BY name, id
             LIMIT $2 OFFSET $3",
            vec![
                id,
                Value::Long(1 + dice.below(20) as i64),
                Value::Long(5 * dice.below(8) as i64),
            ],
        ),
        15 => Statement::new(
            "window",
            "SELECT id, row_number() OVER (PARTITION BY status ORDER BY admission_date, id)
             FROM visits WHERE hospital_id = $1",
            vec![id],
        ),
        16 => Statement::new(
            "union",
            "SELECT email FROM users WHERE hospital_id = $1 UNION
             SELECT email FROM patients WHERE hospital_id = $1 AND email IS NOT NULL",
            vec![id],
        ),
        17 => Statement::new(
            "aggregate of all",
            "SELECT count(*), count(DISTINCT patient_id), min(status), max(admission_date)
             FROM visits WHERE hospital_id IN ($1)",
            vec![id],
        ),
        18 => Statement::new(
            "lateral",
            "SELECT p.id, l.id FROM patients p CROSS JOIN LATERAL
             (SELECT v.id FROM visits v WHERE v.hospital_id = p.hospital_id AND v.patient_id = p.id
              ORDER BY v.id DESC LIMIT 1) l WHERE p.hospital_id = $1 ORDER BY p.id",
            vec![id],
        ),
        19 | 20 => Statement::new(
            "for update",
            "SELECT id, phone, name FROM patients WHERE hospital_id = $1 AND id = $2 FOR UPDATE",
            vec![id, one],
        ),
        21 => Statement::new(
            "many rows",
            "SELECT v.id, v.status, n, v.admission_date FROM visits v
             CROSS JOIN generate_series(1, $2::int) n WHERE v.hospital_id = $1 ORDER BY v.id, n",
            vec![id, Value::Int(5 + dice.below(60) as i32)],
        ),
        _ => Statement::new(
            "failing read",
            "SELECT 1 / (count(*) - count(*)) FROM patients WHERE hospital_id = $1",
            vec![id],
        ),
    }
}

/// All that a hospital has, in one order.
pub fn everything(hospital: &Hospital) -> Statement {
    let sql = "SELECT 'h', 0::bigint, code || '|' || name || '|' || is_active::text
          FROM hospitals WHERE id = $1
        UNION ALL SELECT 'u', id, email || '|' || role_id::text FROM users WHERE hospital_id = $1
        UNION ALL SELECT 'p', id, mrn || '|' || coalesce(phone, '-') || '|' || coalesce(email, '-')
          || '|' || name FROM patients WHERE hospital_id = $1
        UNION ALL SELECT 'v', id, patient_id::text || '|' || admission_date::text || '|' || status
          FROM visits WHERE hospital_id = $1 ORDER BY 1, 2";
    Statement::new("everything", sql, vec![Value::Id(hospital.id)])
}

/// A statement that takes a while.
pub fn slow(hospital: &mut Hospital, dice: &mut Dice) -> Statement {
    let (id, patient) = (Value::Id(hospital.id), Value::Long(hospital.patient(dice)));
    match dice.below(3) {
        0 => Statement::new(
            "slow read",
            "SELECT count(*) FROM patients WHERE hospital_id = $1
             AND (SELECT count(*) FROM generate_series(1, 60000)) > 0",
            vec![id],
        ),
        1 => Statement::new(
            "slow read of the primary",
            "SELECT code, pg_sleep(0.02) IS NULL FROM hospitals WHERE id = $1",
            vec![id],
        ),
        _ => Statement::write(
            "slow update",
            "UPDATE patients SET phone = $3 WHERE hospital_id = $1 AND id = $2
             AND (SELECT pg_sleep(0.02)) IS NOT NULL",
            vec![id, patient, hospital.new_text("slow")],
        ),
    }
    .slow()
}

/// A statement that writes.
pub fn write(hospital: &mut Hospital, dice: &mut Dice) -> Statement {
    let id = Value::Id(hospital.id);
    let (one, two) = (hospital.patient(dice), hospital.patient(dice));
    let (one, two) = (Value::Long(one), Value::Long(two));
    let (visit, user) = (Value::Long(hospital.visit(dice)), Value::Long(hospital.user(dice)));
    let (new, other) = (hospital.new_text("n"), hospital.new_text("o"));
    match dice.below(17) {
        0 => {
            let email = match dice.one_in(3) {
                true => Value::Null,
                false => hospital.new_text("e"),
            };
            Statement::write(
                "insert",
                "INSERT INTO patients (hospital_id, id, mrn, phone, email, name)
                 VALUES ($1, $2, $3, $4, $5, $6)",
                vec![id, one, mrn(dice), other, email, new],
            )
        }
        1 => Statement::write(
            "insert returning",
            "INSERT INTO patients (hospital_id, id, mrn, name) VALUES ($1, $2, $3, $4)
             ON CONFLICT DO NOTHING RETURNING id, name",
            vec![id, one, mrn(dice), new],
        ),
        2 | 3 => Statement::write(
            "upsert of rows",
            "INSERT INTO patients (hospital_id, id, mrn, name)
             VALUES ($1, $2, $3, $4), ($1, $5, $3, $6) ON CONFLICT (hospital_id, id)
             DO UPDATE SET name = excluded.name, mrn = excluded.mrn RETURNING id, name",
            vec![id, one, mrn(dice), new, two, other],
        ),
        4 | 5 => Statement::write(
            "insert visit",
            "INSERT INTO visits (hospital_id, id, patient_id, admission_date, status)
             VALUES ($1, $2, $3, $4, $5) ON CONFLICT (hospital_id, id)
             DO UPDATE SET status = excluded.status, patient_id = excluded.patient_id
             RETURNING id, patient_id, status",
            vec![id, visit, one, date(dice), status(dice)],
        ),
        6 => Statement::write(
            "insert select",
            "INSERT INTO visits (hospital_id, id, patient_id, admission_date, status)
             SELECT $1, $2::bigint, p.id, $3::date, 'planned' FROM patients p
             WHERE p.hospital_id = $1 AND p.id = $4 ON CONFLICT DO NOTHING",
            vec![id, visit, date(dice), one],
        ),
        7 | 8 => Statement::write(
            "update",
            "UPDATE patients SET phone = $3, name = $4 WHERE hospital_id = $1 AND id = $2",
            vec![id, one, other, new],
        ),
        9 => Statement::write(
            "update returning",
            "UPDATE visits SET status = $2 WHERE hospital_id = $1 AND status = $3 RETURNING id",
            vec![id, status(dice), status(dice)],
        ),
        10 => Statement::write(
            "update from",
            "UPDATE visits v SET admission_date = $2 FROM patients p WHERE p.hospital_id = $1
             AND v.hospital_id = p.hospital_id AND v.patient_id = p.id AND p.id = $3",
            vec![id, date(dice), one],
        ),
        11 => Statement::write(
            "delete returning",
            "DELETE FROM visits WHERE hospital_id = $1 AND id = $2 RETURNING status",
            vec![id, visit],
        ),
        12 => Statement::write(
            "delete",
            "DELETE FROM patients WHERE hospital_id = $1 AND id = $2",
            vec![id, one],
        ),
        13 => Statement::write(
            "writing cte",
            "WITH gone AS (DELETE FROM visits WHERE hospital_id = $1 AND patient_id = $2
             RETURNING id) SELECT count(*) FROM gone",
            vec![id, one],
        ),
        14 => Statement::write(
            "update hospital",
            "UPDATE hospitals SET name = $2, is_active = NOT is_active WHERE id = $1
             RETURNING name, is_active",
            vec![id, new],
        ),
        15 => Statement::write(
            "upsert user",
            "INSERT INTO users (hospital_id, id, email, role_id) VALUES ($1, $2, $3, $4)
             ON CONFLICT (hospital_id, id)
             DO UPDATE SET email = excluded.email, role_id = excluded.role_id",
            // The fifth role does not exist.
            vec![id, user, new, Value::Int(1 + dice.below(5) as i32)],
        ),
        _ => Statement::write(
            "delete user",
            "DELETE FROM users WHERE hospital_id = $1 AND id = $2",
            vec![id, user],
        ),
    }
}

/// A statement that leaves its hospital to the session.
pub fn keyless(hospital: &mut Hospital, dice: &mut Dice) -> Statement {
    let (one, two) = (hospital.patient(dice), hospital.patient(dice));
    let (first, last) = (Value::Long(one.min(two)), Value::Long(one.max(two)));
    let (patient, visit) = (Value::Long(one), Value::Long(hospital.visit(dice)));
    let new = hospital.new_text("k");
    match dice.below(8) {
        0 | 1 => Statement::new(
            "keyless read",
            "SELECT name, phone FROM patients WHERE id = $1",
            vec![patient],
        ),
        2 => Statement::new(
            "keyless join",
            "SELECT p.name, v.id, v.status FROM patients p JOIN visits v ON v.patient_id = p.id
             WHERE p.id = $1",
            vec![patient],
        ),
        3 => Statement::new(
            "keyless range",
            "SELECT id, patient_id FROM visits WHERE patient_id BETWEEN $1 AND $2 ORDER BY id",
            vec![first, last],
        ),
        4 => Statement::new(
            "keyless lock",
            "SELECT id, name FROM patients WHERE id = $1 FOR UPDATE",
            vec![patient],
        ),
        5 | 6 => Statement::write(
            "keyless update",
            "UPDATE patients SET phone = $2 WHERE id = $1",
            vec![patient, new],
        ),
        _ => Statement::write("keyless delete", "DELETE FROM visits WHERE id = $1", vec![visit]),
    }
}

/// A statement that pgward must refuse, wherever it comes.
pub fn refused(hospital: &Hospital, other: Uuid, dice: &mut Dice) -> Statement {
    let (id, other) = (Value::Id(hospital.id), Value::Id(other));
    let patient = Value::Long(hospital.patient(dice));
    match dice.below(12) {
        0 => Statement::refused("no key", "PW001", "SELECT count(*) FROM patients", vec![]),
        1 => Statement::refused(
            "no key but an id",
            "PW001",
            "SELECT name FROM patients WHERE id = $1",
            vec![patient],
        ),
        2 => Statement::refused(
            "update without key",
            "PW001",
            "UPDATE visits SET status = 'gone' WHERE patient_id = $1",
            vec![patient],
        ),
        3 => Statement::refused("delete without key", "PW001", "DELETE FROM visits", vec![]),
        4 => Statement::refused(
            "join without key",
            "PW001",
            "SELECT p.name FROM patients p JOIN visits v ON v.patient_id = p.id
             WHERE p.hospital_id = $1",
            vec![id],
        ),
        5 => Statement::refused(
            "key of the outer side only",
            "PW001",
            "SELECT count(*) FROM patients p LEFT JOIN visits v ON v.hospital_id = $1
             AND v.patient_id = p.id AND p.hospital_id = $1",
            vec![id],
        ),
        6 => Statement::refused(
            "key under not",
            "PW001",
            "SELECT id FROM patients WHERE NOT hospital_id <> $1",
            vec![id],
        ),
        7 => Statement::refused(
            "in of two hospitals",
            "PW003",
            "SELECT id FROM patients WHERE hospital_id IN ($1, $2)",
            vec![id, other],
        ),
        8 => Statement::refused(
            "or of two hospitals",
            "PW003",
            "SELECT id FROM patients WHERE hospital_id = $1 OR hospital_id = $2",
            vec![id, other],
        ),
        9 => Statement::refused(
            "join of two hospitals",
            "PW003",
            "SELECT p.id FROM patients p JOIN visits v ON v.patient_id = p.id
             WHERE p.hospital_id = $1 AND v.hospital_id = $2",
            vec![id, other],
        ),
        10 => Statement::refused(
            "rows of two hospitals",
            "PW003",
            "INSERT INTO patients (hospital_id, id, mrn, name)
             VALUES ($1, $3, 'm', 'lost'), ($2, $3, 'm', 'lost')",
            vec![id, other, patient],
        ),
        _ => Statement::refused(
            "subquery of another hospital",
            "PW003",
            "DELETE FROM visits WHERE hospital_id = $1 AND patient_id IN
             (SELECT id FROM patients WHERE hospital_id = $2)",
            vec![id, other],
        ),
    }
}

fn status(dice: &mut Dice) -> Value {
    Value::Text(dice.pick(&["planned", "admitted", "discharged", "it's \\ odd"]).to_owned())
}

fn mrn(dice: &mut Dice) -> Value {
    Value::Text(format!("MRN-{}", dice.below(30)))
}

fn date(dice: &mut Dice) -> Value {
    Value::Date(8_000 + dice.below(400) as i32)
}
