//! `pgward route` as a user sees it: output and exit code, in one golden file.

use std::fmt::Write as _;
use std::process::Command;

use crate::route_golden::check_file;

#[test]
fn the_command_says_where_and_why() {
    const ID: &str = "f47ac10b-58cc-4372-a567-0e02b2c3d479";
    let map = ["--map", "shard-maps/two-shards.toml", "--schema", "config/schema.sql"];
    let keyed = format!("SELECT * FROM visits WHERE hospital_id = '{ID}' AND id = 7");
    let insert = "INSERT INTO users (hospital_id, id, email, role_id) VALUES ($1, 1, 'x', 1)";
    let join = format!(
        "SELECT * FROM patients p JOIN visits v USING (hospital_id) WHERE p.hospital_id = '{ID}'"
    );
    let cases: Vec<Vec<&str>> = vec![
        vec![&keyed],
        vec!["--json", &keyed],
        vec![&join],
        vec!["--param", ID, insert],
        vec!["SELECT * FROM visits"],
        vec!["--json", "SELECT * FROM visits"],
        vec!["--guard", "route", "--session-hospital", ID, "SELECT * FROM visits"],
        vec!["--login-hospital", "00000000-0000-0000-0000-000000000001", &keyed],
        vec!["SELECT name FROM regions"],
        vec!["SELEC 1"],
        vec!["--guard", "none", "SELECT 1"],
    ];
    let mut text = String::new();
    for case in cases {
        let run = |args: &[&str]| {
            Command::new(env!("CARGO_BIN_EXE_pgward"))
                .current_dir(env!("CARGO_MANIFEST_DIR"))
                .arg("route")
                .args(args)
                .args(&case)
                .output()
                .expect("pgward")
        };
        let output = run(&map);
        let shown = case.iter().map(|arg| match arg.contains(' ') {
            true => format!("\"{arg}\""),
            false => (*arg).to_owned(),
        });
        writeln!(text, "$ pgward route {}", shown.collect::<Vec<_>>().join(" ")).expect("a String");
        text.push_str(&String::from_utf8_lossy(&output.stdout));
        if output.status.code() == Some(2) {
            let words = String::from_utf8_lossy(&output.stderr);
            writeln!(text, "{}", words.lines().next().unwrap_or_default()).expect("a String");
        }
        writeln!(text, "[exit code {}]\n", output.status.code().expect("a code"))
            .expect("a String");
    }
    check_file("route_command.txt", &(text.trim_end().to_owned() + "\n"));
    let missing = ["--map", "shard-maps/two-shards.toml", "--schema", "nowhere.sql", "SELECT 1"];
    let output = Command::new(env!("CARGO_BIN_EXE_pgward")).arg("route").args(missing).output();
    assert_eq!(output.expect("pgward").status.code(), Some(2), "a schema that can't be read");
}
