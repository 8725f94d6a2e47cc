//! Six queries that show what pgward does; each says which server served it.
//!
//! The statements ask `inet_server_port()`, so what is printed is what happened, not what was meant
//! to; an answer other than the promised one ends the demo with an error.

use std::time::{Duration, Instant};

use tokio_postgres::{SimpleQueryMessage, SimpleQueryRow};

use super::Error;
use super::load::Hospital;
use super::system::{Shard, System};

/// More than two samples of the freshness of replicas.
const REPLAY_TIME: std::time::Duration = std::time::Duration::from_secs(1);
/// The column of each statement that says which server ran it.
const PORT_COLUMN: &str = "port";

/// How long a replica may take to catch up with what was loaded.
const PATIENCE: Duration = Duration::from_secs(10);

struct Query<'a> {
    about: &'static str,
    hospital: Option<&'a Hospital>,
    sql: String,
    expect: Expect,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expect {
    /// Rows from a replica: the client has written nothing there that the replica may lack.
    Replica,
    /// Rows from a replica, or from the primary where the replica is not fresh enough.
    Either,
    /// Rows from the primary.
    Primary,
    /// This SQLSTATE.
    Refusal(&'static str),
}

/// Asks all six, one after the other, as one client.
pub(super) async fn walk(system: &System, hospitals: &[Hospital]) -> Result<(), Error> {
    let client = system.connect("demo", "").await;
    let client = client.map_err(|source| Error::Sql { what: "connecting".into(), source })?;
    // A read that must see a write of a moment ago goes to the primary; give the replicas that moment.
    tokio::time::sleep(REPLAY_TIME).await;
    for (number, query) in (1..).zip(queries(hospitals)) {
        println!("\n  {number}. {}", query.about);
        for line in query.sql.lines() {
            println!("     {}", line.trim());
        }
        match ask(system, &client, &query).await {
            Ok(messages) => on_rows(system, number, &query, &messages)?,
            Err(error) => on_error(number, &query, error)?,
        }
    }
    Ok(())
}

/// Asks; again, where a replica is to serve and has yet to catch up with the loading.
async fn ask(
    system: &System,
    client: &tokio_postgres::Client,
    query: &Query<'_>,
) -> Result<Vec<SimpleQueryMessage>, tokio_postgres::Error> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let messages = client.simple_query(&query.sql).await?;
        let role = messages.iter().find_map(row).and_then(|row| served_by(system, row));
        let is_good =
            query.expect != Expect::Replica || role.is_some_and(|role| role.1 == "replica");
        if is_good || Instant::now() > deadline {
            return Ok(messages);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn row(message: &SimpleQueryMessage) -> Option<&SimpleQueryRow> {
    match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    }
}

fn served_by<'a>(system: &'a System, row: &SimpleQueryRow) -> Option<(&'a Shard, &'static str)> {
    system.served_by(row.get(PORT_COLUMN)?.parse().ok()?)
}

fn queries(hospitals: &[Hospital]) -> [Query<'_>; 6] {
    let in_region = |region| hospitals.iter().find(|hospital| hospital.region == region);
    let [europe, asia, latin] = ["europe", "asia-pacific", "latin-america"]
        .map(|region| in_region(region).expect("has one"));
    let query = |about, hospital, expect, sql| Query { about, hospital, sql, expect };
    [
        query(
            "A patient of a European hospital: a read, so a replica may serve it.",
            Some(europe),
            Expect::Replica,
            format!(
                "SELECT id, mrn, name, phone, inet_server_port() AS port FROM patients
                 WHERE hospital_id = '{}' AND id IN (7, 8)",
                europe.id
            ),
        ),
        query(
            "A new visit of that patient: a write, so its shard's primary.",
            Some(europe),
            Expect::Primary,
            format!(
                "INSERT INTO visits (hospital_id, id, patient_id, admission_date, status)
                 VALUES ('{}', 5001, 7, '2026-11-23', 'admitted')
                 RETURNING id, admission_date, status, inet_server_port() AS port",
                europe.id
            ),
        ),
        query(
            "The same client reads it at once: it sees what it wrote, whoever serves it.",
            Some(europe),
            Expect::Either,
            format!(
                "SELECT id, admission_date, status, inet_server_port() AS port FROM visits
                 WHERE hospital_id = '{}' AND id > 5000",
                europe.id
            ),
        ),
        query(
            "A join in Asia Pacific: the key of one table holds for the other.",
            Some(asia),
            Expect::Replica,
            format!(
                "SELECT v.status, count(*) AS visits, count(DISTINCT p.id) AS patients,
                 inet_server_port() AS port
                 FROM patients p JOIN visits v ON v.hospital_id = p.hospital_id AND v.patient_id = p.id
                 WHERE p.hospital_id = '{}' GROUP BY v.status ORDER BY v.status",
                asia.id
            ),
        ),
        query(
            "Latin America has no shard of its own yet: its hospitals live in North America's.",
            Some(latin),
            Expect::Replica,
            format!(
                "SELECT h.code, h.name, r.name AS region, inet_server_port() AS port
                 FROM hospitals h JOIN regions r ON r.id = h.region_id
                 WHERE h.id = '{}'",
                latin.id
            ),
        ),
        query(
            "Nobody said which hospital: pgward does not guess, and does not ask them all.",
            None,
            Expect::Refusal("PW001"),
            "SELECT id, name FROM patients WHERE mrn = 'MRN-0001-0007'".to_owned(),
        ),
    ]
}

fn on_rows(
    system: &System,
    number: usize,
    query: &Query<'_>,
    messages: &[SimpleQueryMessage],
) -> Result<(), Error> {
    let rows: Vec<_> = messages.iter().filter_map(row).collect();
    let wrong = |expected, found: &str| Error::Walk { number, expected, found: found.to_owned() };
    let Some(first) = rows.first() else { return Err(wrong("rows", "there were none")) };
    let Some((shard, role)) = served_by(system, first) else {
        return Err(wrong("a server of the demo", "another one answered"));
    };
    match query.expect {
        Expect::Refusal(_) => return Err(wrong("a refusal", "there were rows")),
        Expect::Primary if role != "primary" => {
            return Err(wrong("the primary", "a replica ran it"));
        }
        Expect::Replica if role != "replica" => {
            return Err(wrong("a replica", "the primary ran it"));
        }
        Expect::Primary | Expect::Replica | Expect::Either => {}
    }
    let hospital = query.hospital.map(|hospital| hospital.id.to_string()).unwrap_or_default();
    println!("     -> hospital {hospital}");
    println!("     -> shard {}, region {}, served by its {role}", shard.id, shard.region);
    print_table(&rows);
    Ok(())
}

fn on_error(number: usize, query: &Query<'_>, error: tokio_postgres::Error) -> Result<(), Error> {
    match (query.expect, error.as_db_error()) {
        (Expect::Refusal(code), Some(db)) if db.code().code() == code => {
            println!("     -> hospital none, shard none: refused, and no server saw it");
            println!("        ERROR {code}: {}", db.message());
            if let Some(detail) = db.detail() {
                println!("        DETAIL: {detail}");
            }
            if let Some(hint) = db.hint() {
                println!("        HINT: {hint}");
            }
            Ok(())
        }
        _ => Err(Error::Sql { what: format!("query {number}"), source: error }),
    }
}

fn print_table(rows: &[&SimpleQueryRow]) {
    let names: Vec<String> = rows[0].columns().iter().map(|c| c.name().to_owned()).collect();
    let mut table = vec![names];
    for row in rows {
        table.push((0..row.len()).map(|at| row.get(at).unwrap_or("").to_owned()).collect());
    }
    let width = |at: usize| table.iter().map(|row| row[at].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..table[0].len()).map(width).collect();
    for row in &table {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        println!("        {}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
}
