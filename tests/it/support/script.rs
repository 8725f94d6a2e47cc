//! Sessions over in-memory pipes in front of fake servers, driven line by line: see `transcripts`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use pgward::auth::Users;
use pgward::catalog::CatalogStore;
use pgward::config::{AuthType, Config, Consistency, PoolMode};
use pgward::fleet::health::Answer;
use pgward::fleet::{Fleet, FleetSettings};
use pgward::metrics::Metrics;
use pgward::net::tls::ServerTls;
use pgward::net::{Buffer, Stream};
use pgward::pool::{self, Pools};
use pgward::route::GuardMode;
use pgward::session::login::{Door, Hello, hello};
use pgward::session::welcome::{Greetings, welcome};
use pgward::session::{Services, statements};
use pgward::shard_map::ShardMap;
use pgward::shard_map::source::MapStore;
use pgward::sql::{Analyzer, Catalog, Declared, ShardFacts, schema_facts};
use pgward::wire;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::fake::{self, Stage};
use super::notation::{frontend, shown_backend, startup, words};

/// How long what is expected may take.
const PATIENCE: Duration = Duration::from_secs(8);
/// Nothing for this long means that nothing comes.
const SILENCE: Duration = Duration::from_millis(120);
/// The same for a client that sends bytes as they are: it may leave too early, which is one more case.
const RAW_SILENCE: Duration = Duration::from_millis(8);
const RAW_PIECE_SILENCE: Duration = Duration::from_millis(1);
/// From here on a message that is not whole yet is worth a word.
const SHOWN_PART_BYTES: usize = 1 << 20;

const SCHEMA: &str = include_str!("../../../config/schema.sql");
const USERS: &str = r#"
[[user]]
name = "app"
secret = "x"
server_user = "app"
server_secret = "x"
[[user]]
name = "ward1"
secret = "x"
hospital = "00000000-0000-0000-0000-000000000001"
server_user = "app"
server_secret = "x"
"#;

/// The scene of one case.
pub struct Scene {
    services: Arc<Services>,
    stage: Arc<Stage>,
    clients: BTreeMap<char, Client>,
    /// Lines of the stage that have been told.
    told: usize,
    hosts: BTreeMap<u16, String>,
}

struct Client {
    pipe: Option<WriteHalf<DuplexStream>>,
    reader: JoinHandle<()>,
    heard: Arc<Mutex<Heard>>,
    cancel: Option<(i32, Vec<u8>)>,
    /// Bytes that have been told.
    told: usize,
    is_end_told: bool,
    session: JoinHandle<()>,
}

#[derive(Default)]
struct Heard {
    bytes: Vec<u8>,
    is_closed: bool,
}

/// `@ shards=2 guard=route pool=1 replica down=0 batch=100 packet=1000 statements=2 threshold=2`,
/// and times in seconds: `wait=1 query=1 obey=1 notify=1`
struct Setting {
    config: Config,
    shards: u16,
    has_replica: bool,
    down: Vec<u16>,
}

impl Setting {
    fn parse(line: &str) -> Self {
        let mut config = Config::default();
        config.pool.default_pool_size = 1;
        config.pool.server_login_retry = 0.0;
        let mut setting = Self { config, shards: 1, has_replica: false, down: Vec::new() };
        for word in line.split_whitespace() {
            let config = &mut setting.config;
            match word.split_once('=').unwrap_or((word, "")) {
                ("shards", n) => setting.shards = n.parse().expect("shards"),
                ("replica", _) => setting.has_replica = true,
                ("down", n) => setting.down.push(n.parse().expect("a shard")),
                ("guard", "route") => config.guard.mode = GuardMode::Route,
                ("guard", "strict") => config.guard.mode = GuardMode::Strict,
                ("pool", n) => config.pool.default_pool_size = n.parse().expect("pool"),
                ("wait", n) => config.pool.query_wait_timeout = n.parse().expect("wait"),
                ("batch", n) => config.routing.batch_bytes_max = n.parse().expect("batch"),
                ("packet", n) => config.listen.max_packet_size = n.parse().expect("packet"),
                ("prepared", n) => config.pool.max_prepared_statements = n.parse().expect("n"),
                ("threshold", n) => config.pool.server_prepare_threshold = n.parse().expect("n"),
                ("statements", n) => config.pool.max_client_statements = n.parse().expect("n"),
                ("mode", "statement") => config.pool.pool_mode = PoolMode::Statement,
                ("query", n) => config.pool.query_timeout = n.parse().expect("seconds"),
                ("obey", n) => config.pool.cancel_wait_timeout = n.parse().expect("seconds"),
                ("notify", n) => config.pool.query_wait_notify = n.parse().expect("seconds"),
                ("eventual", _) => config.routing.consistency = Consistency::Eventual,
                other => panic!("unknown setting {other:?}"),
            }
        }
        setting
    }
}

impl Scene {
    /// `line`: words of an `@` line.
    pub async fn new(line: &str) -> Self {
        let Setting { config, shards, has_replica, down } = Setting::parse(line);
        let stage = Arc::<Stage>::default();
        let mut hosts = BTreeMap::new();
        let mut map = String::from(
            "version = 1\nmodulus = 100\ndatabase = \"hospital\"\n\
             key = { column = \"hospital_id\", tables = { \"public.hospitals\" = \"id\" } }\n\
             reference = [\"public.regions\", \"public.roles\"]\n",
        );
        for id in 0..shards {
            let mut host = async |name: String| {
                let port = fake::start(&name, stage.clone()).await;
                hosts.insert(port, name);
                port
            };
            let primary = host(format!("S{id}")).await;
            let replica = match has_replica {
                true => format!("\"127.0.0.1:{}\"", host(format!("R{id}")).await),
                false => String::new(),
            };
            let (first, last) = (100 * id / shards, 100 * (id + 1) / shards - 1);
            let buckets =
                if first == last { format!("{first}") } else { format!("{first}-{last}") };
            write!(
                map,
                "[[shard]]\nid = {id}\nregion = \"r{id}\"\nbuckets = \"{buckets}\"\n\
                 primary = \"127.0.0.1:{primary}\"\nreplicas = [{replica}]\n"
            )
            .expect("a String");
        }
        let map = ShardMap::parse("map.toml", &map).unwrap_or_else(|error| panic!("{error}"));
        let mut health = config.health.clone();
        // One answer holds for the whole case.
        health.health_interval_ms = 3_600_000;
        health.freshness_interval_ms = 3_600_000;
        let fleet = Fleet::new(&map, FleetSettings::new(&health, None));
        let answer = Answer { is_in_recovery: false, timeline: 1, lsn: 100, system: 7 };
        let mut up = fleet.shards();
        up.retain(|state| !down.contains(&state.id().0));
        // The others are down for the first login, so that it is always this one that is asked.
        up[0].on_answer(0, answer, fleet.now());
        let catalog = CatalogStore::fixed(fleet.clone(), catalog(&map));
        let auth = pgward::config::Auth { auth_type: AuthType::Trust, ..config.auth.clone() };
        let users = Users::parse("users.toml", USERS, &auth, [7; 32], &|_| Err("none".into()))
            .unwrap_or_else(|error| panic!("{error}"));
        let services = Arc::new(Services {
            analyzer: Analyzer::new(1 << 20, 1 << 16),
            statements: statements::Store::new(1 << 20),
            greetings: Greetings::default(),
            directory: Default::default(),
            metrics: Arc::new(Metrics::new()),
            users: ArcSwap::from_pointee(users),
            lookup: Default::default(),
            pools: Pools::new(
                pool::Settings::new(&config, Arc::new(ServerTls::plain())),
                &map,
                fleet.clone(),
            ),
            map: MapStore::new(map),
            config: ArcSwap::from_pointee(config),
            catalog,
            fleet,
            writes: Default::default(),
        });
        let mut scene = Self { services, stage, clients: BTreeMap::new(), told: 0, hosts };
        let mut first = Client::start(&scene, "").await;
        first.wait_for_greeting().await;
        first.leave();
        first.session.await.expect("no panic");
        for state in &up {
            state.on_answer(0, answer, state.now());
            if has_replica {
                state.on_answer(1, Answer { is_in_recovery: true, ..answer }, state.now());
            }
        }
        scene.mark();
        scene
    }

    /// Does what `line` says.
    pub async fn play(&mut self, line: &str) {
        let (who, rest) = line.split_once(' ').unwrap_or((line, ""));
        let name = who.chars().next().expect("a name");
        match (who, rest.split_once(' ').unwrap_or((rest, ""))) {
            ("wait", (ms, _)) => sleep(Duration::from_millis(ms.parse().expect("ms"))).await,
            (_, ("login", params)) => {
                let client = Client::start(self, params).await;
                self.clients.insert(name, client);
            }
            _ if who.ends_with('>') => {
                if !self.clients.contains_key(&name) {
                    let mut client = Client::start(self, "").await;
                    client.wait_for_greeting().await;
                    self.clients.insert(name, client);
                }
                let client = self.clients.get_mut(&name).expect("just inserted");
                client.say(rest, &self.services).await;
            }
            _ => self.stage.order(line),
        }
    }

    /// What happened since the last time that this was told.
    pub fn tell(&self) -> Vec<String> {
        let mut told = self.stage.lines().split_off(self.told);
        for (name, client) in &self.clients {
            told.extend(client.tell().into_iter().map(|line| format!("{name}< {line}")));
        }
        told
    }

    /// What was told is told.
    pub fn mark(&mut self) {
        self.told = self.stage.lines().len();
        self.clients.values_mut().for_each(Client::mark);
    }

    /// Waits until what happened is `expected`; without an expectation, or past all patience, for
    /// silence. What happened is what [`Self::tell`] says.
    pub async fn settle(&self, expected: Option<&[String]>) {
        let deadline = Instant::now() + if expected.is_some() { PATIENCE } else { SILENCE };
        let mut last = self.tell();
        let mut silent_since = Instant::now();
        loop {
            let now = self.tell();
            if expected.is_some_and(|expected| expected == now) {
                return;
            }
            if now != last {
                silent_since = Instant::now();
                last = now;
            }
            let is_silent = silent_since.elapsed() > SILENCE;
            if is_silent && (expected.is_none() || Instant::now() > deadline) {
                return;
            }
            let _ = timeout(Duration::from_millis(5), self.stage.changed.notified()).await;
        }
    }

    /// A client that logs in, sends `pieces` as they are and leaves once nothing more comes. What it
    /// heard behind the greeting.
    pub async fn raw(&self, pieces: &[&[u8]]) -> Raw {
        let mut client = Client::start(self, "").await;
        client.wait_for_greeting().await;
        let greeting = client.told;
        for piece in pieces {
            let pipe = client.pipe.as_mut().expect("a pipe");
            // A session that has ended reads no more.
            let _ = timeout(PATIENCE, pipe.write_all(piece)).await.expect("the session reads on");
            client.wait_for_silence(RAW_PIECE_SILENCE).await;
        }
        client.wait_for_silence(RAW_SILENCE).await;
        // The other half stays open: the last words are heard.
        let mut pipe = client.pipe.take().expect("a pipe");
        let _ = pipe.shutdown().await;
        let session = timeout(PATIENCE, &mut client.session).await.expect("the session ends");
        session.expect("no panic");
        let bytes = client.heard.lock().expect("sound").bytes.split_off(greeting);
        Raw { bytes }
    }

    /// What a client hears to one request up to ReadyForQuery, its own end, or past all patience.
    pub async fn ask(&self, line: &str) -> Raw {
        let mut client = Client::start(self, "").await;
        client.wait_for_greeting().await;
        let greeting = client.told;
        let pipe = client.pipe.as_mut().expect("a pipe");
        let _ = pipe.write_all(&Raw::bytes(line)).await;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (bytes, is_closed) = {
                let heard = client.heard.lock().expect("sound");
                (heard.bytes[greeting..].to_vec(), heard.is_closed)
            };
            let is_ready = bytes.len() > 5 && bytes[bytes.len() - 6..].starts_with(b"Z\0\0\0\x05");
            if is_ready || is_closed || Instant::now() > deadline {
                client.leave();
                let session = timeout(PATIENCE, &mut client.session).await;
                session.expect("the session ends").expect("no panic");
                return Raw { bytes };
            }
            sleep(Duration::from_millis(1)).await;
        }
    }

    /// Servers answer honestly again.
    pub fn forget_rules(&self) {
        self.stage.forget_rules();
    }

    /// All clients leave. Servers that are left, by host.
    pub async fn end(&mut self) -> String {
        for client in self.clients.values_mut() {
            client.leave();
        }
        let deadline = Instant::now() + PATIENCE;
        for client in self.clients.values_mut() {
            if timeout(PATIENCE, &mut client.session).await.is_err() {
                return "= (a session does not end)".to_owned();
            }
        }
        loop {
            let pools = self.services.pools.all();
            let is_free =
                pools.iter().all(|pool| pool.gate().load(std::time::Instant::now()).taken == 0);
            let open: usize = pools
                .iter()
                .map(|pool| pool.counters().open.load(std::sync::atomic::Ordering::SeqCst))
                .sum();
            let is_seen = open == self.stage.open();
            if is_free && is_seen && self.services.directory.is_empty() {
                let mut idle = BTreeMap::new();
                for pool in pools {
                    let open = pool.counters().open.load(std::sync::atomic::Ordering::SeqCst);
                    let host = &self.hosts[&pool.target().address.port];
                    idle.insert(host.clone(), open);
                }
                let idle: Vec<_> =
                    idle.iter().map(|(host, open)| format!("{host} {open}")).collect();
                return format!("= idle: {}", idle.join(", "));
            }
            if Instant::now() > deadline {
                return "= (a server is not given back)".to_owned();
            }
            sleep(Duration::from_millis(2)).await;
        }
    }
}

fn catalog(map: &ShardMap) -> Catalog {
    static FACTS: OnceLock<ShardFacts> = OnceLock::new();
    let facts = FACTS.get_or_init(|| schema_facts(SCHEMA).expect("a schema"));
    let tables = &map.tables;
    let is_one_shard = map.shards().len() == 1;
    let (keys, reference) = (&tables.key_tables, &tables.reference);
    let declared = Declared::new(&tables.key_column, keys, reference, &[], is_one_shard);
    Catalog::build(1, std::slice::from_ref(facts), &declared)
}

/// What a client heard.
pub struct Raw {
    pub bytes: Vec<u8>,
}

impl Raw {
    /// The bytes of a client's line.
    pub fn bytes(line: &str) -> Vec<u8> {
        words(line).iter().flat_map(frontend).collect()
    }

    /// In words, up to what is no whole message.
    pub fn told(&self) -> String {
        let (mut told, mut rest) = (Vec::new(), &self.bytes[..]);
        while let Ok(Some((tag, body))) = wire::peek(rest, 1 << 30) {
            told.push(shown_backend(tag, body));
            rest = &rest[body.len() + wire::HEADER_BYTES..];
        }
        if !rest.is_empty() {
            told.push(format!("({} bytes)", rest.len()));
        }
        told.join(" ")
    }
}

impl Client {
    async fn start(scene: &Scene, params: &str) -> Self {
        let (near, far) = tokio::io::duplex(1 << 16);
        let (read, mut write) = tokio::io::split(far);
        let heard = Arc::<Mutex<Heard>>::default();
        let reader = tokio::spawn(listen(read, heard.clone(), scene.stage.clone()));
        let mut named = vec![("user", "app"), ("database", "hospital")];
        for (name, value) in params.split_whitespace().filter_map(|word| word.split_once('=')) {
            named.retain(|(known, _)| *known != name);
            named.push((name, value));
        }
        write.write_all(&startup(&named)).await.expect("room in the pipe");
        let services = scene.services.clone();
        let session = tokio::spawn(serve(services, Stream::Memory(Box::new(near))));
        let pipe = Some(write);
        Self { pipe, reader, heard, cancel: None, told: 0, is_end_told: false, session }
    }

    async fn wait_for_greeting(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let bytes = self.heard.lock().expect("sound").bytes.clone();
            if bytes.ends_with(b"Z\0\0\0\x05I") {
                break;
            }
            assert!(Instant::now() < deadline, "no greeting: {:?}", self.tell());
            sleep(Duration::from_millis(1)).await;
        }
        self.mark();
    }

    /// Waits until nothing has come for as long as `silence`.
    async fn wait_for_silence(&self, silence: Duration) {
        let count = || {
            let heard = self.heard.lock().expect("sound");
            (heard.bytes.len(), heard.is_closed)
        };
        let mut before = count();
        loop {
            sleep(silence).await;
            let now = count();
            if now.1 || now == before {
                return;
            }
            before = now;
        }
    }

    async fn say(&mut self, line: &str, services: &Arc<Services>) {
        if line == "(close)" {
            return self.leave();
        }
        if let Some(limit) = line.strip_prefix("(cancel").and_then(|rest| rest.strip_suffix(')')) {
            let (pid, key) = self.cancel.clone().expect("a greeting");
            let services = services.clone();
            let ms = limit.trim().parse().map(Duration::from_millis);
            tokio::spawn(async move {
                services.directory.cancel(pid, &key, ms.unwrap_or(PATIENCE)).await;
            });
            return;
        }
        let mut bytes = Vec::new();
        for word in words(line) {
            match word.name.as_str() {
                // `(half)`: the message before it lacks its last bytes.
                "" => bytes.truncate(bytes.len() - 5),
                _ => bytes.extend(frontend(&word)),
            }
        }
        if let Some(pipe) = &mut self.pipe {
            // It may be closed already: what was heard shows it.
            let _ = pipe.write_all(&bytes).await;
        }
    }

    fn leave(&mut self) {
        self.reader.abort();
        self.pipe = None;
    }

    fn tell(&self) -> Vec<String> {
        let heard = self.heard.lock().expect("sound");
        let mut lines = Vec::new();
        let mut line: Vec<String> = Vec::new();
        let mut rest = &heard.bytes[self.told..];
        while let Ok(Some((tag, body))) = wire::peek(rest, 1 << 30) {
            line.push(shown_backend(tag, body));
            rest = &rest[body.len() + wire::HEADER_BYTES..];
            if tag == b'Z' {
                lines.push(std::mem::take(&mut line).join(" "));
            }
        }
        if rest.len() > SHOWN_PART_BYTES {
            line.push(format!("({} bytes of a {:?})", rest.len(), rest[0] as char));
        }
        if heard.is_closed && !self.is_end_told {
            line.push("(closed)".to_owned());
        }
        if !line.is_empty() {
            lines.push(line.join(" "));
        }
        lines
    }

    fn mark(&mut self) {
        let heard = self.heard.lock().expect("sound");
        let mut rest = &heard.bytes[self.told..];
        while let Ok(Some((tag, body))) = wire::peek(rest, 1 << 30) {
            if tag == b'K' {
                let pid = i32::from_be_bytes(body[..4].try_into().expect("four bytes"));
                self.cancel = Some((pid, body[4..].to_vec()));
            }
            rest = &rest[body.len() + wire::HEADER_BYTES..];
        }
        // Half a message is told when it is whole, or that it never will be.
        self.told = heard.bytes.len() - if heard.is_closed { 0 } else { rest.len() };
        self.is_end_told |= heard.is_closed;
    }
}

async fn listen(mut pipe: ReadHalf<DuplexStream>, heard: Arc<Mutex<Heard>>, stage: Arc<Stage>) {
    let mut chunk = vec![0; 1 << 16];
    loop {
        let read = pipe.read(&mut chunk).await.unwrap_or(0);
        {
            let mut heard = heard.lock().expect("sound");
            heard.bytes.extend(&chunk[..read]);
            heard.is_closed = read == 0;
        }
        stage.changed.notify_waiters();
        if read == 0 {
            return;
        }
    }
}

/// A connection as `proxy` serves it.
async fn serve(services: Arc<Services>, stream: Stream) {
    let users = services.users.load_full();
    let door = Door {
        users: &users,
        lookup: None,
        database: "hospital",
        refusal: None,
        reserved_for: None,
        tls: None,
    };
    let deadline = Instant::now() + PATIENCE;
    let Ok(Hello::Login(login)) = hello(stream, &door, deadline).await else {
        return;
    };
    match welcome(services.clone(), login, None, deadline).await {
        Ok(session) => session.run().await,
        Err((mut stream, refusal)) => {
            let mut output = Buffer::default();
            refusal.encode(output.tail());
            let _ = stream.drain(&mut output).await;
        }
    }
}
