//! A played source of facts, the table of commands, and real clients over a socket.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use tokio::net::{TcpListener, TcpStream};
use tokio_postgres::{NoTls, SimpleQueryMessage};

use super::*;
use crate::fleet::FleetSettings;
use crate::fleet::health::Answer;
use crate::net::{Buffer, Stream};
use crate::shard_map::Shard;

/// Facts of two shards that nobody has to run.
pub(crate) struct Played {
    map: Arc<ShardMap>,
    fleet: Arc<Fleet>,
    metrics: Arc<Metrics>,
    listens: AtomicBool,
    reloads: AtomicBool,
}

impl Default for Played {
    fn default() -> Self {
        let shard = |id, host: &str, region: &str| Shard {
            id: ShardId(id),
            region: region.into(),
            primary: Address { host: host.into(), port: 5432 },
            replicas: vec![Address { host: format!("{host}-replica"), port: 5433 }],
            database: "hospital".into(),
            tls: Default::default(),
        };
        let shards = vec![shard(0, "a", "europe"), shard(1, "b", "asia")];
        let settings = FleetSettings::new(&config::Health::default(), None);
        let map = Arc::new(ShardMap::even(100, "hospital", shards));
        Self {
            fleet: Fleet::new(&map, settings),
            map,
            metrics: Arc::default(),
            listens: true.into(),
            reloads: true.into(),
        }
    }
}

impl Played {
    pub(crate) fn raise_primary(&self) {
        let answer = Answer { is_in_recovery: false, timeline: 3, lsn: 0x1_0000_00ff, system: 1 };
        let shard = self.fleet.shard(ShardId(0)).unwrap();
        shard.on_answer(0, answer, self.fleet.now());
    }

    pub(crate) fn stop_listening(&self) {
        self.listens.store(false, Ordering::Relaxed);
    }

    fn fail_reload(&self) {
        self.reloads.store(false, Ordering::Relaxed);
    }
}

impl Source for Played {
    fn pools(&self) -> Vec<PoolRow> {
        let pool = |host: &str, maxwait_us| PoolRow {
            database: "hospital".into(),
            user: "app".into(),
            shard: ShardId(1),
            address: Address { host: host.into(), port: 5433 },
            role: Role::Replica,
            cl_active: 1,
            cl_waiting: 2,
            sv_active: 1,
            sv_idle: 3,
            sv_used: 0,
            sv_login: 0,
            size: 20,
            maxwait_us,
            pool_mode: "transaction",
        };
        vec![pool("b-replica", 1_500_000), pool("b-third", 3)]
    }

    fn servers(&self) -> Vec<ServerRow> {
        vec![ServerRow {
            id: 8,
            user: "app".into(),
            database: "hospital".into(),
            shard: ShardId(1),
            address: Address { host: "b-replica".into(), port: 5433 },
            role: Role::Replica,
            state: "active",
            local_port: 40_000,
            connect_time: UNIX_EPOCH,
            request_time: UNIX_EPOCH + Duration::from_secs(86_400),
            close_needed: false,
            client: Some(4),
            remote_pid: 1234,
            prepared_statements: 2,
            tls: String::new(),
            transactions: 5_000_000_000,
        }]
    }

    fn clients(&self) -> Vec<ClientRow> {
        vec![ClientRow {
            id: 4,
            user: "app".into(),
            database: "hospital".into(),
            state: "active",
            ip: Some(IpAddr::from([127, 0, 0, 1])),
            tls: String::new(),
            port: 50_000,
            connect_time: UNIX_EPOCH,
            request_time: UNIX_EPOCH,
            wait_us: 0,
            server: Some(8),
            shard: Some(ShardId(1)),
            pin: None,
            application_name: "demo".into(),
            prepared_statements: 1,
        }]
    }

    fn stats(&self) -> StatsRow {
        StatsRow { queries: 12, ..StatsRow::default() }
    }

    fn users(&self) -> Vec<String> {
        vec!["app".into(), "dba".into()]
    }

    fn map(&self) -> Arc<ShardMap> {
        self.map.clone()
    }

    fn fleet(&self) -> Arc<Fleet> {
        self.fleet.clone()
    }

    fn config(&self) -> Arc<Config> {
        let peer = crate::config::Peer { id: 2, host: "ward2".into(), port: 6432 };
        Arc::new(Config { peer: vec![peer], ..Config::default() })
    }

    fn metrics(&self) -> Arc<Metrics> {
        self.metrics.clone()
    }

    fn catalog_version(&self) -> u64 {
        5
    }

    fn is_listening(&self) -> bool {
        self.listens.load(Ordering::Relaxed)
    }

    fn reload(&self) -> BoxFuture<'_, Result<String, String>> {
        let reloads = self.reloads.load(Ordering::Relaxed);
        Box::pin(async move {
            if reloads { Ok("map version 2".into()) } else { Err("map.toml:3:1: overlap".into()) }
        })
    }

    fn route(&self, sql: &str) -> Vec<(String, String)> {
        vec![("shard".into(), "1".into()), ("bytes".into(), sql.len().to_string())]
    }
}

#[test]
fn commands_are_read_and_guarded() {
    use show::Show;
    type Case = (&'static str, Result<Command, &'static str>, bool);
    let cases: [Case; 30] = [
        ("", Ok(Command::Empty), true),
        (" ; ", Ok(Command::Empty), true),
        ("SHOW POOLS", Ok(Command::Show(Show::Pools)), true),
        ("show pools;", Ok(Command::Show(Show::Pools)), true),
        ("Show\n\tServers ;", Ok(Command::Show(Show::Servers)), true),
        ("SELECT version", Ok(Command::Show(Show::Version)), true),
        ("SHOW stats_totals", Ok(Command::Show(Show::StatsTotals)), true),
        ("SHOW CONFIG", Ok(Command::Show(Show::Config)), true),
        ("SHOW HELP", Ok(Command::Help), true),
        ("SHOW client_encoding", Ok(Command::ShowSetting("client_encoding", "UTF8")), true),
        (
            "SHOW TRANSACTION ISOLATION LEVEL",
            Ok(Command::ShowSetting("transaction_isolation", "read committed")),
            true,
        ),
        ("SHOW ROUTE 'SELECT ''a'''", Ok(Command::Route("SELECT 'a'".into())), true),
        ("SHOW ROUTE SELECT 1", Ok(Command::Route("SELECT 1".into())), true),
        ("SHOW ROUTE 'SELECT 1", Err("42601"), true),
        ("SHOW ROUTE 'a' 'b'", Err("42601"), true),
        ("SHOW ROUTE", Err("42601"), true),
        ("SHOW", Err("42601"), true),
        ("SHOW POOLS, CLIENTS", Err("42601"), true),
        ("SHOW FDS", Err("42601"), true),
        ("RELOAD", Ok(Command::Reload), false),
        ("reload;", Ok(Command::Reload), false),
        ("RELOAD everything", Err("42601"), true),
        ("SET x = 1", Ok(Command::Set), true),
        ("BEGIN", Ok(Command::Begin), true),
        ("COMMIT", Ok(Command::End("COMMIT")), true),
        ("ROLLBACK", Ok(Command::End("ROLLBACK")), true),
        ("PAUSE", Err("0A000"), true),
        ("kill hospital", Err("0A000"), true),
        ("DELETE FROM patients", Err("42601"), true),
        ("SHOW é", Err("42601"), true),
    ];
    for (text, want, stats_may) in cases {
        let got = Command::parse(text);
        match (&got, &want) {
            (Ok(got), Ok(want)) => {
                assert_eq!(got, want, "{text}");
                assert_eq!(got.authorize(Access::Stats).is_ok(), stats_may, "{text}");
                assert_eq!(got.authorize(Access::Admin), Ok(()), "{text}");
            }
            (Err(got), Err(want)) => {
                assert_eq!(got.sqlstate, *want, "{text}");
                assert!(!got.message.contains("patients"), "repeats what was typed");
            }
            _ => panic!("{text}: {got:?}, not {want:?}"),
        }
    }
}

#[test]
fn only_listed_users_have_access() {
    let config = config::Admin {
        admin_users: vec!["dba".into()],
        stats_users: vec!["exporter".into(), "dba".into()],
    };
    assert_eq!(Access::of(&config, "dba"), Some(Access::Admin));
    assert_eq!(Access::of(&config, "exporter"), Some(Access::Stats));
    assert_eq!(Access::of(&config, "app"), None);
    assert_eq!(Access::of(&config::Admin::default(), ""), None);
    assert!(is_console("pgward") && is_console("pgbouncer") && !is_console("hospital"));
}

#[test]
fn every_show_has_rows_as_wide_as_its_columns() {
    let source = Played::default();
    source.raise_primary();
    for (name, _, show) in show::ALL {
        let table = show.table(&source);
        assert!(!table.rows.is_empty(), "{name}");
        assert!(table.rows.iter().all(|row| row.len() == table.columns.len()), "{name}");
        let mut names: Vec<_> = table.columns.iter().map(|column| column.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), table.columns.len(), "{name} has a column twice");
        // A column that says it is a number is one.
        for (index, column) in table.columns.iter().enumerate() {
            for value in table.rows.iter().filter_map(|row| row[index].as_ref()) {
                let parses = match column.oid {
                    show::INT4 => value.parse::<i32>().is_ok(),
                    show::INT8 => value.parse::<i64>().is_ok(),
                    _ => true,
                };
                assert!(parses, "{name}.{}: {value}", column.name);
            }
        }
    }
}

/// Columns are an interface: exporters and dashboards read them by name and type.
#[test]
fn columns_are_as_recorded() {
    let mut text = String::new();
    for (name, _, show) in show::ALL {
        let columns = show.table(&Played::default()).columns;
        let columns = columns.iter().map(|column| format!("{}:{}", column.name, column.oid));
        text.push_str(&format!("SHOW {name}\n----\n"));
        text.push_str(&columns.collect::<Vec<_>>().join("\n"));
        text.push_str("\n\n");
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/admin/columns.txt");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(std::path::Path::new(path).parent().unwrap()).unwrap();
        std::fs::write(path, &text).unwrap();
    }
    assert_eq!(std::fs::read_to_string(path).unwrap(), text);
}

/// A listener whose clients are let in without a password, as `session::login` would after one.
async fn listen(access: Access, source: Arc<Played>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(let_in(socket, access, source.clone()));
        }
    });
    port
}

async fn let_in(socket: TcpStream, access: Access, source: Arc<Played>) {
    let (mut stream, mut input, mut output) =
        (Stream::from(socket), Buffer::default(), Buffer::default());
    loop {
        // An untagged packet begins with its length; an SSLRequest has 8 bytes.
        while input.len() < 4 || input.len() < length_of(&input) {
            if stream.fill(&mut input).await.unwrap() == 0 {
                return;
            }
        }
        let length = length_of(&input);
        input.advance(length);
        if length > 8 {
            break;
        }
        output.push(b"N");
        stream.drain(&mut output).await.unwrap();
    }
    crate::wire::backend::write_authentication_ok(output.tail());
    let client = console::Client { stream, input, output, access, pid: 77 };
    let _ = serve(client, source).await;
}

fn length_of(input: &Buffer) -> usize {
    u32::from_be_bytes(input.as_slice()[..4].try_into().unwrap()) as usize
}

async fn connect(port: u16) -> tokio_postgres::Client {
    let config = format!("host=127.0.0.1 port={port} user=dba dbname=pgward sslmode=disable");
    let (client, connection) = tokio_postgres::connect(&config, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

#[tokio::test]
async fn the_extended_protocol_works() {
    let source = Arc::new(Played::default());
    source.raise_primary();
    let client = connect(listen(Access::Admin, source).await).await;

    // tokio-postgres asks for binary results.
    let rows = client.query("SHOW SERVERS", &[]).await.unwrap();
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].get::<_, &str>("addr"), "b-replica");
    assert_eq!(rows[0].get::<_, i32>("shard"), 1);
    assert_eq!(rows[0].get::<_, i64>("transactions"), 5_000_000_000);
    assert_eq!(rows[0].get::<_, &str>("request_time"), "1970-01-02 00:00:00 UTC");

    let rows = client.query("SHOW HOSTS", &[]).await.unwrap();
    assert_eq!(rows[0].get::<_, &str>("role"), "primary");
    assert_eq!(rows[0].get::<_, &str>("lsn"), "1/FF");
    assert_eq!(rows[1].get::<_, Option<i32>>("timeline"), None);

    let error = client.query("SHOW NONSENSE", &[]).await.unwrap_err();
    assert_eq!(error.code().unwrap().code(), "42601");
    let error = client.query("PAUSE", &[]).await.unwrap_err();
    assert_eq!(error.code().unwrap().code(), "0A000");

    // The connection goes on, and a statement can be kept.
    let statement = client.prepare("SHOW ROUTE 'SELECT 1'").await.unwrap();
    for _ in 0..3 {
        let rows = client.query(&statement, &[]).await.unwrap();
        assert_eq!(rows[1].get::<_, &str>("value"), "8");
    }
    assert_eq!(client.execute("RELOAD", &[]).await.unwrap(), 0);
}

#[tokio::test]
async fn portals_are_fetched_in_pieces() {
    let mut client = connect(listen(Access::Stats, Arc::default()).await).await;
    let transaction = client.transaction().await.unwrap();
    let portal = transaction.bind("SHOW LISTS", &[]).await.unwrap();
    let mut names: Vec<String> = Vec::new();
    loop {
        let rows = transaction.query_portal(&portal, 4).await.unwrap();
        if rows.is_empty() {
            break;
        }
        assert!(rows.len() <= 4);
        names.extend(rows.iter().map(|row| row.get::<_, String>(0)));
    }
    assert_eq!(names.len(), 15);
    transaction.commit().await.unwrap();
}

#[tokio::test]
async fn the_simple_protocol_and_blocks_work() {
    let source = Arc::new(Played::default());
    let client = connect(listen(Access::Admin, source.clone()).await).await;
    let messages = client.simple_query("SHOW POOLS").await.unwrap();
    let rows: Vec<_> = messages
        .iter()
        .filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row.get("database").unwrap()),
            _ => None,
        })
        .collect();
    assert_eq!(rows, ["hospital/1/b-replica:5433", "hospital/1/b-third:5433"]);

    client.simple_query("BEGIN").await.unwrap();
    client.simple_query("NONSENSE").await.unwrap_err();
    let error = client.simple_query("SHOW VERSION").await.unwrap_err();
    assert_eq!(error.code().unwrap().code(), "25P02");
    client.simple_query("ROLLBACK").await.unwrap();
    client.simple_query("SHOW VERSION").await.unwrap();
    client.simple_query("").await.unwrap();

    source.fail_reload();
    let error = client.simple_query("RELOAD").await.unwrap_err();
    assert_eq!(error.code().unwrap().code(), "F0000");
    assert_eq!(error.as_db_error().unwrap().detail(), Some("map.toml:3:1: overlap"));
}

#[tokio::test]
async fn stats_users_only_look() {
    let client = connect(listen(Access::Stats, Arc::default()).await).await;
    for sql in ["RELOAD", "reload ;"] {
        let error = client.simple_query(sql).await.unwrap_err();
        assert_eq!(error.code().unwrap().code(), "42501");
        let error = client.execute(sql, &[]).await.unwrap_err();
        assert_eq!(error.code().unwrap().code(), "42501");
    }
    assert_eq!(client.query("SHOW SHARDS", &[]).await.unwrap().len(), 2);
}

/// What PgBouncer's exporter does, through libpq.
#[tokio::test]
async fn psql_works() {
    let port = listen(Access::Stats, Arc::default()).await;
    let psql = |sql: &str| {
        let mut command = tokio::process::Command::new("psql");
        command.args(["-h", "127.0.0.1", "-U", "dba", "-d", "pgbouncer", "-XAt", "-c", sql]);
        command.arg("-p").arg(port.to_string()).kill_on_drop(true);
        command
    };
    let output = psql("SHOW VERSION;").output().await.expect("psql is installed for the tests");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "pgward 0.1.0");
    let output = psql("SHOW HELP").output().await.unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("SHOW ROUTE"));
    let output = psql("SHUTDOWN").output().await.unwrap();
    assert!(!output.status.success());
}

#[tokio::test]
async fn broken_messages_end_the_connection_with_words() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    for (message, state) in [
        (&b"Q\0\0\0\x03"[..], "08P01"),  // a length below its own four bytes
        (b"Q\x7f\xff\xff\xff", "08P01"), // two gigabytes
        (b"Q\0\0\0\x05x", "08P01"),      // no NUL
        (b"?\0\0\0\x04", "08P01"),       // no such message
        (b"B\0\0\0\x04", "08P01"),       // an empty Bind
        (b"D\0\0\0\x06?\0", "08P01"),    // neither statement nor portal
    ] {
        let port = listen(Access::Admin, Arc::default()).await;
        let mut socket = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        socket.write_all(b"\0\0\0\x09\0\x03\0\0\0").await.unwrap();
        socket.write_all(message).await.unwrap();
        let mut replies = Vec::new();
        socket.read_to_end(&mut replies).await.unwrap();
        let needle = format!("C{state}\0");
        let found = replies.windows(needle.len()).any(|window| window == needle.as_bytes());
        assert!(found, "{message:?}: {}", String::from_utf8_lossy(&replies));
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]
    /// Whatever bytes come, the console ends or waits; it doesn't panic.
    #[test]
    fn no_bytes_make_it_panic(
        frames in proptest::collection::vec(
            (proptest::sample::select(b"QPBDECSHXFdcf?".to_vec()),
             proptest::collection::vec(proptest::num::u8::ANY, 0..40)), 0..12)
    ) {
        let mut bytes = Vec::new();
        for (tag, body) in frames {
            bytes.push(tag);
            bytes.extend((body.len() as u32 + 4).to_be_bytes());
            bytes.extend(body);
        }
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (ours, mut theirs) = tokio::io::duplex(1 << 20);
            let mut input = Buffer::default();
            input.push(&bytes);
            let client = console::Client {
                stream: Stream::Memory(Box::new(ours)),
                input,
                output: Buffer::default(),
                access: Access::Admin,
                pid: 1,
            };
            tokio::io::AsyncWriteExt::shutdown(&mut theirs).await.unwrap();
            let _ = serve(client, Arc::new(Played::default())).await;
        });
    }
}
