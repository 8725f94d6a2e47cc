//! Limits of clients and of server connections: how many, the words at the limit, and that places
//! come back.

use std::time::Duration;

use crate::support::raw::query;
use crate::support::*;

fn unguarded(shards: &Shards) -> Option<String> {
    Some(one_shard_map(shards.primary.port(), "shard0"))
}

fn base<'a>(more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let mut config = vec![("auth", "auth_type = \"trust\""), ("guard", "mode = \"route\"")];
    config.extend(more);
    config
}

fn refused(ward: &Ward, user: &str) -> (String, String) {
    match Cancellable::try_login(ward, Login { user, ..Login::default() }) {
        Ok(_) => (String::new(), String::new()),
        Err(messages) => (code_of(&messages), words_of(&messages)),
    }
}

fn full(key: &str) -> (String, String) {
    let words = match key {
        "max_client_conn" => "no more connections allowed (max_client_conn)".to_owned(),
        _ => format!("client connections exceeded ({key})"),
    };
    ("53300".to_owned(), words)
}

#[tokio::test]
async fn clients_are_counted_until_their_sockets_are_closed() {
    let shards = shards();
    let config = base(&[
        ("listen", "max_client_conn = 4"),
        ("listen", "max_user_client_connections = 2"),
        ("listen", "admin_reserved_connections = 1"),
    ]);
    let users = format!(
        "{USERS}
        [[user]]
        name = \"many\"
        server_user = \"app\"
        server_secret_file = \"app-secret\"
        max_user_client_connections = 3
        "
    );
    let options = WardOptions { map: unguarded(shards), config: &config };
    let extra = Extra { users: Some(&users), ..Extra::default() };
    let ward = Ward::start_with(shards, &options, &extra);
    let login = |user| Cancellable::login(&ward, Login { user, ..Login::default() });
    let apps = [login("app"), login("app")];
    assert_eq!(refused(&ward, "app"), full("max_user_client_connections"));
    let mut many = vec![login("many"), login("many")];
    assert_eq!(refused(&ward, "many"), full("max_client_conn"));
    // The console has a way in, for those who may use it, and no more than are reserved.
    let console = |user: &str| {
        let mut config = ward.client_config();
        config.dbname("pgward").user(user);
        config
    };
    let admin = ward.connect_with(&console("admin")).await.expect("a reserved connection");
    let rows = simple(&admin, "SHOW CLIENTS").await.expect("SHOW CLIENTS");
    assert_eq!(rows.len(), 4);
    for (user, what) in [("app", "no admin"), ("admin", "no second one")] {
        let error = ward.connect_with(&console(user)).await.expect_err(what);
        assert_eq!(sqlstate(&error), "53300", "{what}");
    }
    drop(apps);
    let deadline = std::time::Instant::now() + PATIENCE;
    while many.len() < 3 {
        assert!(std::time::Instant::now() < deadline, "their places are not free");
        let login = Login { user: "many", ..Login::default() };
        many.extend(Cancellable::try_login(&ward, login).ok());
    }
    drop(admin);
    while refused(&ward, "many") != full("max_user_client_connections") {
        assert!(std::time::Instant::now() < deadline, "the console's place is not free");
        // Its driver closes the connection when it gets its turn.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[test]
fn clients_of_the_database_are_limited() {
    let shards = shards();
    let config = base(&[("listen", "max_db_client_connections = 1")]);
    let options = WardOptions { map: unguarded(shards), config: &config };
    let ward = Ward::start(shards, &options);
    let client = Cancellable::login(&ward, Login::default());
    assert_eq!(refused(&ward, "migrate"), full("max_db_client_connections"));
    drop(client);
    let deadline = std::time::Instant::now() + PATIENCE;
    while refused(&ward, "app").0 == "53300" {
        assert!(std::time::Instant::now() < deadline, "the place does not come back");
    }
}

/// Server connections of `app` to `database`, as that database sees them.
fn connections(shards: &Shards, name: &str) -> usize {
    let sql = format!("SELECT count(*) FROM pg_stat_activity WHERE application_name = '{name}'");
    shards.psql(0, &sql).trim().parse().expect("a count")
}

#[test]
fn server_connections_are_limited_across_pools() {
    let shards = shards();
    let config = [
        ("auth", "auth_type = \"trust\""),
        ("guard", "mode = \"route\""),
        ("pool", "max_user_connections = 2"),
        ("pool", "default_pool_size = 5"),
    ];
    let ward = Ward::start(shards, &WardOptions { config: &config, ..Default::default() });
    let hospitals: Vec<_> = (0..4).map(|shard| shards.hospital(shard, 1)).collect();
    // Sessions keep their application_name on the server: it tells theirs from other tests'.
    let login = || {
        let more = "application_name\0limited\0";
        Cancellable::login(&ward, Login { more, ..Login::default() })
    };
    let write = |hospital| {
        format!("UPDATE patients SET phone = '1' WHERE hospital_id = '{hospital}' AND id = 1")
    };
    let (mut a, mut b, mut c) = (login(), login(), login());
    // An idle connection of one pool makes room for another's.
    for _ in 0..2 {
        for hospital in &hospitals {
            assert_eq!(a.code(&write(hospital)), "");
            assert!(connections(shards, "limited") <= 2);
        }
    }
    // All are in use: the next one waits until one is given back, and gets its place.
    for (client, hospital) in [(&mut a, &hospitals[0]), (&mut b, &hospitals[1])] {
        assert_eq!(client.code("BEGIN"), "");
        assert_eq!(client.code(&write(hospital)), "");
    }
    c.raw.send(&query(&write(&hospitals[2])));
    c.raw.stream.set_read_timeout(Some(Duration::from_millis(200))).expect("a timeout");
    assert!(c.raw.message().is_none(), "it waits");
    c.raw.stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    assert_eq!(a.code("COMMIT"), "");
    assert_eq!(code_of(&c.raw.until(b'Z').expect("an answer")), "");
    assert!(connections(shards, "limited") <= 2);
    assert_eq!(b.code("COMMIT"), "");
}

#[test]
fn connections_of_one_database_are_limited() {
    let shards = shards();
    let config = [
        ("auth", "auth_type = \"trust\""),
        ("guard", "mode = \"route\""),
        ("pool", "max_db_connections = 1"),
        ("pool", "query_wait_timeout = 0.3"),
    ];
    let ward = Ward::start(shards, &WardOptions { config: &config, ..Default::default() });
    let hospitals: Vec<_> = (0..2).map(|shard| shards.hospital(shard, 1)).collect();
    let mut clients: Vec<_> = (0..3).map(|_| Cancellable::login(&ward, Login::default())).collect();
    let write = |hospital| {
        format!("UPDATE patients SET phone = '1' WHERE hospital_id = '{hospital}' AND id = 1")
    };
    assert_eq!(clients[0].code("BEGIN"), "");
    assert_eq!(clients[0].code(&write(&hospitals[0])), "");
    let answer = clients[1].query(&write(&hospitals[0]));
    assert_eq!(code_of(&answer), "57014");
    assert!(words_of(&answer).starts_with("query_wait_timeout"), "{answer:?}");
    assert_eq!(clients[2].code(&write(&hospitals[1])), "", "another database has its own");
    assert_eq!(clients[0].code("COMMIT"), "");
    assert_eq!(clients[1].code(&write(&hospitals[0])), "");
}

#[test]
fn the_reserve_is_for_those_who_have_waited() {
    let shards = shards();
    let config = base(&[
        ("pool", "default_pool_size = 1"),
        ("pool", "reserve_pool_size = 1"),
        ("pool", "reserve_pool_timeout = 0.1"),
        ("pool", "query_wait_timeout = 0.4"),
    ]);
    let options = WardOptions { map: unguarded(shards), config: &config };
    let ward = Ward::start(shards, &options);
    let mut clients: Vec<_> = (0..3).map(|_| Cancellable::login(&ward, Login::default())).collect();
    for client in &mut clients[..2] {
        assert_eq!(client.code("BEGIN"), "");
        assert_eq!(client.code("SELECT * FROM regions FOR UPDATE SKIP LOCKED"), "");
    }
    assert_eq!(clients[2].code("SELECT 1"), "57014", "the reserve has one");
    assert_eq!(clients[1].code("ROLLBACK"), "");
    assert_eq!(clients[2].code("SELECT 1"), "");
}

#[tokio::test]
async fn a_pool_that_nobody_uses_is_forgotten() {
    let shards = shards();
    let config = base(&[("pool", "pool_idle_timeout = 0.2"), ("pool", "server_lifetime = 0")]);
    let options = WardOptions { map: unguarded(shards), config: &config };
    let ward = Ward::start(shards, &options);
    let mut client = Cancellable::login(&ward, Login::default());
    let console = ward.console().await;
    let pools = || async { simple(&console, "SHOW POOLS").await.expect("SHOW POOLS").len() };
    for _ in 0..2 {
        assert_eq!(client.code("SELECT * FROM regions"), "");
        eventually("the pool is forgotten", || async { pools().await == 0 }).await;
    }
}

#[test]
fn a_server_user_may_have_a_pool_of_its_own_size() {
    let shards = shards();
    let config = base(&[("pool", "query_wait_timeout = 0.3")]);
    let users = format!(
        "{USERS}
        [[user]]
        name = \"small\"
        server_user = \"pgward\"
        server_secret_file = \"probe-secret\"
        pool_size = 1
        [[user]]
        name = \"also\"
        server_user = \"pgward\"
        server_secret_file = \"probe-secret\"
        "
    );
    let options = WardOptions { map: unguarded(shards), config: &config };
    let extra = Extra { users: Some(&users), ..Extra::default() };
    let ward = Ward::start_with(shards, &options, &extra);
    let login = |user| Cancellable::login(&ward, Login { user, ..Login::default() });
    let hold = |client: &mut Cancellable| {
        assert_eq!(client.code("BEGIN"), "");
        client.code("SELECT pg_sleep(0)")
    };
    let (mut first, mut second) = (login("small"), login("also"));
    assert_eq!(hold(&mut first), "");
    assert_eq!(hold(&mut second), "57014", "the one place of their server user is taken");
    let mut others = [login("app"), login("app")];
    assert!(others.iter_mut().all(|client| hold(client).is_empty()), "pools of others are larger");
    assert_eq!(first.code("COMMIT"), "");
    assert_eq!(second.code("ROLLBACK"), "");
    assert_eq!(hold(&mut second), "");
}
