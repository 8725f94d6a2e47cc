//! Programs that people use, unchanged: psql, psycopg, pgbench. (The other modules are tokio-postgres.)

use std::path::Path;
use std::process::{Command, Output};

use pgward::cli::local::Options;

use crate::support::*;

fn said(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    format!("{}{}", String::from_utf8_lossy(out), String::from_utf8_lossy(err))
}

#[test]
fn psql_describes_inserts_reads_and_is_refused() {
    let shards = shards();
    let ward = Ward::start(shards, &WardOptions::default());
    let id = shards.hospital(1, 2);
    let described = ward.psql(&["-c", "\\d patients"]);
    assert!(
        described.status.success() && said(&described).contains("hospital_id|uuid"),
        "{described:?}"
    );
    let listed = ward.psql(&["-c", "\\dt"]);
    assert!(listed.status.success() && said(&listed).contains("|visits|"), "{}", said(&listed));
    let insert =
        format!("INSERT INTO patients (hospital_id, id, mrn, name) VALUES ('{id}', 3, 'm', 'Ada')");
    let select = format!("SELECT name FROM patients WHERE hospital_id = '{id}' ORDER BY id");
    let output = ward.psql(&["-c", &insert, "-c", &select]);
    assert_eq!(said(&output), "Patient 1\nPatient 2\nAda\n");
    let refused = ward.psql(&["-c", "SELECT * FROM patients"]);
    assert!(!refused.status.success());
    assert!(said(&refused).contains("HINT:"), "{}", said(&refused));
}

/// A python with psycopg: `PGWARD_PYTHON`, else the first of the usual ones.
fn python() -> String {
    let named = std::env::var("PGWARD_PYTHON").ok();
    let usual = ["python3", "/usr/bin/python3"].map(String::from);
    let has_psycopg = |python: &String| {
        let import = Command::new(python).args(["-c", "import psycopg"]).output();
        import.is_ok_and(|output| output.status.success())
    };
    named.into_iter().chain(usual).find(has_psycopg).expect(
        "no python3 with psycopg: `make test` installs it on Debian (python3-psycopg); \
         elsewhere: pip install 'psycopg[binary]', and name the python in PGWARD_PYTHON",
    )
}

#[test]
fn psycopg_works() {
    let shards = shards();
    let ward = Ward::start(shards, &WardOptions::default());
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/psycopg_session.py");
    let hospitals = [0, 1, 2, 3].map(|shard| shards.hospital(shard, 5).to_string());
    let output = ward.libpq(python()).arg(script).args(hospitals).output().expect("python");
    assert!(output.status.success(), "{}", said(&output));
}

#[test]
fn pgbench_runs_a_keyed_script_over_four_shards_in_all_modes() {
    let shards = shards();
    let ward = Ward::start(shards, &WardOptions::default());
    let directory = shards.directory().join("pgbench-scripts");
    std::fs::create_dir_all(&directory).expect("a directory");
    let mut scripts = Vec::new();
    for shard in 0..4 {
        let id = shards.hospital(shard, 100);
        let script = directory.join(format!("{shard}.sql"));
        let text = format!(
            "\\set id random(1, 100)\n\
             SELECT name, mrn FROM patients WHERE hospital_id = '{id}' AND id = :id;\n\
             BEGIN;\n\
             UPDATE patients SET phone = :id WHERE hospital_id = '{id}' AND id = :id;\n\
             SELECT phone FROM patients WHERE hospital_id = '{id}' AND id = :id;\n\
             COMMIT;\n"
        );
        std::fs::write(&script, text).expect("a script");
        scripts.push(script);
    }
    for mode in ["simple", "extended", "prepared"] {
        let mut pgbench = ward.libpq(shards.sandbox.program("pgbench"));
        pgbench.args(["-n", "-c", "8", "-j", "2", "-t", "50", "-M", mode]);
        for script in &scripts {
            pgbench.arg("-f").arg(script);
        }
        let output = pgbench.output().expect("pgbench");
        assert!(output.status.success(), "{mode}: {}", said(&output));
        let all = "number of transactions actually processed: 400/400";
        assert!(said(&output).contains(all), "{mode}: {}", said(&output));
    }
}

#[test]
fn stock_pgbench_runs_on_a_map_of_one_shard() {
    let shards = Shards::start(&Options::default());
    shards.primary.psql("postgres", "CREATE DATABASE bench OWNER app").expect("a database");
    let options = WardOptions {
        map: Some(one_shard_map(shards.primary.port(), "bench")),
        config: &[("guard", "mode = \"route\"")],
    };
    let ward = Ward::start(&shards, &options);
    let pgbench = |args: &[&str]| {
        let mut pgbench = ward.libpq(shards.sandbox.program("pgbench"));
        let output = pgbench.args(args).output().expect("pgbench");
        assert!(output.status.success(), "{args:?}: {}", said(&output));
    };
    pgbench(&["-i", "-s", "1", "-q"]);
    for mode in ["simple", "extended", "prepared"] {
        pgbench(&["-c", "4", "-t", "25", "-M", mode]);
        pgbench(&["-n", "-S", "-c", "4", "-t", "50", "-M", mode]);
    }
    // Each run but those with -n empties the history first: what is there is the last one's.
    let done = shards.primary.psql("bench", "SELECT count(*) FROM pgbench_history").expect("rows");
    assert_eq!(done, "100");
}
