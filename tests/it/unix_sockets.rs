//! Unix sockets on both sides, with the real psql.

use std::process::{Command, Stdio};

use crate::support::*;

#[tokio::test]
async fn clients_and_servers_meet_over_unix_sockets() {
    let shards = shards();
    let directory = shards.directory().join("sockets");
    std::fs::create_dir(&directory).expect("a directory");
    let socket_lines =
        format!("unix_socket_dir = \"{}\"\nunix_socket_mode = \"0700\"", directory.display());
    // TLS that servers must have is none of a Unix socket's.
    let config = [("listen", &*socket_lines), ("tls", "server_tls_sslmode = \"require\"")];
    let host = shards.directory().join("primary").display().to_string();
    let map = shards.map_with(|shard| (shards.primary.port(), None, shard));
    let map = map.replace("\"127.0.0.1:", &format!("\"{host}:"));
    let ward = Ward::start(shards, &WardOptions { config: &config, map: Some(map) });
    let file = directory.join(format!(".s.PGSQL.{}", ward.port));
    assert!(file.exists());
    let host = format!("host={}", directory.display());
    let id = shards.hospital(1, 2);
    let read = format!("SELECT name FROM patients WHERE hospital_id = '{id}' ORDER BY id");
    let output = ward.psql(&["-d", &host, "-c", &read]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "Patient 1\nPatient 2\n", "{output:?}");

    // What runs for it is cancelled over both sockets: psql does so when it gets Ctrl-C.
    let mark = id.simple();
    let slow = format!("SELECT pg_sleep(60) AS u{mark} FROM patients WHERE hospital_id = '{id}'");
    let mut psql = ward.libpq(shards.sandbox.program("psql"));
    let psql = psql.args(["-X", "-d", &host, "-c", &slow]);
    let psql = psql.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("psql");
    let is_running = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%u{mark}%' \
         AND pid <> pg_backend_pid()"
    );
    eventually("the query", async || shards.psql(1, &is_running) != "0").await;
    let console = ward.console().await;
    let clients = simple(&console, "SHOW CLIENTS").await.expect("rows").join("\n");
    let row = clients.lines().find(|row| row.contains("unix")).expect("a client of the socket");
    assert!(row.contains(&ward.port.to_string()), "{row}");
    let signal = Command::new("kill").args(["-s", "INT", &psql.id().to_string()]).status();
    assert!(signal.expect("kill").success());
    let output = psql.wait_with_output().expect("psql ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("canceling statement due to user request"), "{said}");

    drop(console);
    ward.signal("TERM");
    eventually("the end", async || !file.exists()).await;
    assert_eq!(std::fs::read_dir(&directory).expect("it").count(), 0, "nothing stays behind");
}
