//! What operators see and do: console, HTTP, reload, signals, logs.

use crate::support::*;

#[tokio::test]
async fn the_console_shows_pools_shards_servers_version_and_routes() {
    let shards = shards();
    let ward = Ward::start(shards, &WardOptions::default());
    let client = ward.connect().await;
    let id = shards.hospital(1, 1);
    let read = format!("SELECT 1 FROM patients WHERE hospital_id = '{id}'");
    simple(&client, &read).await.expect("a row");
    let console = ward.console().await;
    for command in ["SHOW POOLS", "SHOW SERVERS", "SHOW SHARDS", "SHOW VERSION"] {
        let rows = simple(&console, command).await;
        assert!(!rows.unwrap_or_else(|error| panic!("{command}: {}", tell(&error))).is_empty());
    }
    assert_eq!(simple(&console, "SHOW SHARDS").await.expect("rows").len(), 4);
    let quoted = read.replace('\'', "''");
    let route = simple(&console, &format!("SHOW ROUTE '{quoted}'")).await.expect("a route");
    let route = route.join("\n");
    assert!(route.contains(&id.to_string()) && route.contains("europe"), "{route}");
    assert!(simple(&console, "DROP EVERYTHING").await.is_err());

    let mut config = ward.client_config();
    config.dbname("pgward");
    assert!(ward.connect_with(&config).await.is_err(), "`app` is not an admin");
}

#[tokio::test]
async fn metrics_health_and_readiness_answer() {
    let shards = shards();
    let ward = Ward::start(shards, &WardOptions::default());
    let client = ward.connect().await;
    let id = shards.hospital(0, 1);
    let read = format!("SELECT name FROM patients WHERE hospital_id = '{id}'");
    simple(&client, &read).await.expect("a row");
    refusal(&client, "SELECT name FROM patients").await;
    assert_eq!(http_get(ward.metrics_port, "/healthz").0, 200);
    eventually("ready", async || http_get(ward.metrics_port, "/readyz").0 == 200).await;
    let (status, metrics) = http_get(ward.metrics_port, "/metrics");
    assert_eq!(status, 200);
    assert!(metrics.lines().any(|line| line.starts_with("pgward_")), "{metrics}");
    assert!(metrics.contains("PW001"), "refusals are counted: {metrics}");
    assert!(!metrics.contains(&id.to_string()), "a hospital is never a label");
}

#[tokio::test]
async fn a_new_map_takes_effect_and_a_bad_one_does_not() {
    let shards = shards();
    let ward = Ward::start(shards, &WardOptions::default());
    let client = ward.connect().await;
    let console = ward.console().await;
    let version = async || {
        let rows = simple(&console, "SHOW SHARDS").await.expect("rows");
        rows.into_iter().filter(|row| row.contains("antarctica")).count()
    };
    let renamed = |version: u32| {
        let map = shards.map().replace("version = 1", &format!("version = {version}"));
        map.replace("\"latin-america\"", "\"antarctica\"")
    };
    let id = shards.hospital(1, 1);
    let read = format!("SELECT name FROM patients WHERE hospital_id = '{id}'");

    ward.write("shard-map.toml", "version = ");
    ward.signal("HUP");
    eventually("the bad map is told", async || ward.log().contains("shard-map.toml")).await;
    assert_eq!(value(&client, &read).await, "Patient 1");
    // Buckets of shards 0 and 1 change places: that moves hospitals, and no data.
    let moved = renamed(2).replace("\"0-24\"", "\"x\"").replace("\"25-49\"", "\"0-24\"");
    ward.write("shard-map.toml", &moved.replace("\"x\"", "\"25-49\""));
    assert!(simple(&console, "RELOAD").await.is_err(), "a map that moves hospitals");
    assert_eq!(version().await, 0);
    assert_eq!(value(&client, &read).await, "Patient 1");

    ward.write("shard-map.toml", &renamed(2));
    ward.signal("HUP");
    eventually("the new map", async || version().await == 1).await;
    assert_eq!(value(&client, &read).await, "Patient 1");
}

#[tokio::test]
async fn logs_have_no_sql_and_no_values() {
    let shards = shards();
    let config = [("log", "level = \"debug\"")];
    let ward = Ward::start(shards, &WardOptions { config: &config, ..Default::default() });
    let client = ward.connect().await;
    let id = shards.hospital(0, 1);
    let secret = "Zebedee";
    let insert = |n: u32| {
        format!(
            "INSERT INTO patients (hospital_id, id, mrn, name) VALUES ('{id}', {n}, 'm', '{secret}')"
        )
    };
    simple(&client, &insert(1)).await.expect_err("a duplicate key");
    simple(&client, &insert(2)).await.expect("a row");
    refusal(&client, &format!("SELECT * FROM patients WHERE name = '{secret}'")).await;
    refusal(&client, &format!("SELEC '{secret}'")).await;
    let log = ward.log();
    for word in [secret, "INSERT INTO", "already exists", "app-password", "app-secret"] {
        assert!(!log.contains(word), "the log has {word:?}:\n{log}");
    }
}

#[tokio::test]
async fn sigterm_ends_it_when_clients_are_done() {
    let shards = shards();
    let mut ward = Ward::start(shards, &WardOptions::default());
    let client = ward.connect().await;
    assert_eq!(value(&client, "SELECT 1").await, "1");
    drop(client);
    ward.signal("TERM");
    let deadline = std::time::Instant::now() + PATIENCE;
    while !ward.has_ended() {
        assert!(std::time::Instant::now() < deadline, "it did not end: {}", ward.log());
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[test]
fn the_configuration_for_containers_is_valid() {
    let config = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docker/pgward.toml");
    let mut check = std::process::Command::new(env!("CARGO_BIN_EXE_pgward"));
    for secret in ["PROBE_SECRET", "APP_SECRET", "DEMO_SECRET", "ADMIN_SECRET"] {
        check.env(secret, "a secret");
    }
    let output = check.args(["check", "--config"]).arg(config).output().expect("pgward check");
    assert!(output.status.success(), "{output:?}");
}
