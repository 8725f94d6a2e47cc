//! No state of one client reaches another, and each keeps its own: seeded random interleavings of
//! what changes a session, of two clients on few servers, against real Postgres.
//!
//! Each client has a twin connected to Postgres itself, which is sent the same bytes. After every
//! step both must have had the same answers, and at many steps both must report the same settings,
//! role, search_path and reading of a date. Whatever leaks from one client to the other, or is lost
//! on the way from server to server, makes a client differ from its twin. Queries are cancelled, clients
//! die where they are; in some scenes clients also leave things on servers that pin them there.
//!
//! `LEAK_ROUNDS` plays more rounds, `LEAK_SEED` another seed (of one round, as a failure prints it).

use std::net::TcpStream;
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::support::raw::{execute, flush, message, packet, query, sync};
use crate::support::*;

/// How long the rounds of one map may take in a plain run.
const PLAIN_RUN: Duration = Duration::from_secs(8);
/// Steps of a round.
const STEPS: usize = 60;
const TRUST: (&str, &str) = ("auth", "auth_type = \"trust\"");

/// xorshift64*: the same steps for the same seed on every machine.
struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % n
    }

    fn pick<'a, T: ?Sized>(&mut self, all: &[&'a T]) -> &'a T {
        all[self.below(all.len())]
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

/// A client of pgward and its twin.
struct Pair {
    name: &'static str,
    ward: Raw,
    twin: Raw,
    /// Where each takes cancel requests, and what they must say.
    cancels: [(u16, Vec<u8>); 2],
    startup: &'static [(&'static str, &'static str)],
    hospital: Uuid,
    /// Transaction status, by ReadyForQuery.
    status: u8,
    /// In its block something needed a server.
    holds: bool,
    /// As its scene.
    is_strict: bool,
    has_pins: bool,
    /// A batch is open: no Sync since.
    is_unsynced: bool,
    /// What was sent, for a failure.
    sent: Vec<String>,
}

/// One thing that a client does.
struct Step {
    told: String,
    bytes: Vec<u8>,
    /// ReadyForQuery messages that answer it.
    ready: usize,
    /// pgward needs a server for it even where its block is not on one yet.
    needs_server: bool,
}

/// Statements that make and end what keeps a client on its server. Locks are shared, since a client
/// and its twin take the same.
const PINNING: [&str; 14] = [
    "CREATE TEMP TABLE t (x int)",
    "CREATE TEMP TABLE t ON COMMIT DROP AS SELECT 1 AS x",
    "DO $$ BEGIN CREATE TEMP TABLE t (x int); END $$",
    "INSERT INTO t VALUES (1)",
    "DROP TABLE IF EXISTS pg_temp.t",
    "DISCARD TEMP",
    "LISTEN news",
    "LISTEN other",
    "UNLISTEN news",
    "UNLISTEN *",
    "SELECT pg_advisory_lock_shared(42)",
    "SELECT pg_advisory_unlock_all()",
    "DECLARE held CURSOR WITH HOLD FOR SELECT 1",
    "CLOSE held",
];
/// What a probe shows of them.
const PINS_SEEN: &str = ", (SELECT count(*) FROM pg_listening_channels()),
    coalesce((SELECT count(*) FROM pg_class WHERE relnamespace = pg_my_temp_schema()), 0),
    (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),
    (SELECT count(*) FROM pg_cursors WHERE is_holdable)";

/// What one map is like.
struct Scene {
    ward: Ward,
    port: u16,
    database: &'static str,
    hospitals: Vec<Uuid>,
    /// Every statement names its hospital.
    is_strict: bool,
    /// Servers are enough for both clients to keep one each, and they do things that make them.
    has_pins: bool,
}

const STARTUPS: [&[(&str, &str)]; 4] = [
    &[],
    &[("work_mem", "9MB")],
    &[("DateStyle", "ISO"), ("app.x", "start")],
    &[("search_path", "ward_ns, public"), ("TimeZone", "Asia/Tokyo")],
];

#[test]
fn one_shard_where_nothing_is_guarded() {
    let shards = shards();
    prepare(shards);
    let config = [
        TRUST,
        ("pool", "default_pool_size = 1"),
        ("pool", "query_wait_timeout = 15"),
        ("guard", "mode = \"route\""),
    ];
    let map = one_shard_map(shards.primary.port(), "shard0");
    let ward = Ward::start(shards, &WardOptions { map: Some(map), config: &config });
    let hospitals = vec![shards.hospital(0, 1), shards.hospital(0, 1)];
    let port = shards.primary.port();
    play(&Scene { ward, port, database: "shard0", hospitals, is_strict: false, has_pins: false });
}

#[test]
fn several_shards_under_guard() {
    let shards = shards();
    prepare(shards);
    let config = [
        TRUST,
        ("pool", "default_pool_size = 1"),
        ("pool", "query_wait_timeout = 15"),
        ("routing", "consistency = \"primary\""),
    ];
    let ward = Ward::start(shards, &WardOptions { config: &config, ..Default::default() });
    let hospitals = vec![shards.hospital(0, 1), shards.hospital(1, 1)];
    // The twin's one database has them all.
    shards.psql(0, &format!("INSERT INTO hospitals VALUES ('{}', 1, 'H', 'twin')", hospitals[1]));
    let port = shards.primary.port();
    play(&Scene { ward, port, database: "shard0", hospitals, is_strict: true, has_pins: false });
}

#[test]
fn with_what_keeps_clients_on_their_servers() {
    play_with_pins("transaction", 3);
}

#[test]
fn in_session_mode() {
    play_with_pins("session", 2);
}

fn play_with_pins(mode: &str, servers: u32) {
    let shards = shards();
    prepare(shards);
    let (mode, size) =
        (format!("pool_mode = \"{mode}\""), format!("default_pool_size = {servers}"));
    let config = [
        TRUST,
        ("pool", mode.as_str()),
        ("pool", size.as_str()),
        ("pool", "query_wait_timeout = 15"),
        ("guard", "mode = \"route\""),
    ];
    let map = one_shard_map(shards.primary.port(), "shard0");
    let ward = Ward::start(shards, &WardOptions { map: Some(map), config: &config });
    let hospitals = vec![shards.hospital(0, 1), shards.hospital(0, 1)];
    let port = shards.primary.port();
    play(&Scene { ward, port, database: "shard0", hospitals, is_strict: false, has_pins: true });
}

fn prepare(shards: &Shards) {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let roles = "DO $$ BEGIN CREATE ROLE nurse; CREATE ROLE doctor;
            EXCEPTION WHEN duplicate_object THEN NULL; END $$; GRANT nurse, doctor TO app";
        shards.psql(0, roles);
        for shard in 0..4 {
            let grant = "CREATE SCHEMA ward_ns AUTHORIZATION app;
                 GRANT USAGE ON SCHEMA ward_ns TO public;
                 GRANT SELECT ON ALL TABLES IN SCHEMA public TO nurse, doctor";
            shards.psql(shard, grant);
        }
    });
}

fn play(scene: &Scene) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    if let Some(seed) = number("LEAK_SEED") {
        return round(scene, seed);
    }
    let rounds = number("LEAK_ROUNDS").unwrap_or(u64::MAX);
    let deadline = (rounds == u64::MAX).then(|| Instant::now() + PLAIN_RUN);
    // The same rounds each time, so that a failure is a change's; `LEAK_ROUNDS` looks for new ones.
    let first = if rounds == u64::MAX { 1 } else { u64::from(rand::random::<u32>()) };
    let mut played = 0;
    // A few rounds however slow the machine is.
    let is_over = |played| deadline.is_some_and(|end| played > 3 && Instant::now() > end);
    while played < rounds && !is_over(played) {
        round(scene, first + played);
        played += 1;
    }
    eprintln!("leaks: {played} rounds of {STEPS} steps from seed {first}");
}

fn round(scene: &Scene, seed: u64) {
    let mut dice = Dice::new(seed);
    let mut pairs =
        ["one", "two"].map(|name| Pair::new(name, scene, STARTUPS[dice.below(4)], &mut dice));
    for number in 0..STEPS {
        let at = dice.below(2);
        // Who would wait for the only server, held by the other's block, must not begin to.
        let other_holds = !scene.has_pins && (pairs[1 - at].holds || pairs[1 - at].is_unsynced);
        if other_holds && (scene.is_strict || dice.one_in(2)) {
            continue;
        }
        let pair = &mut pairs[at];
        // A login may have to try its settings on a server.
        if !other_holds && dice.one_in(40) {
            // It dies where it is, perhaps in a block, and another takes its place.
            for raw in [&pair.ward, &pair.twin] {
                drop(raw.stream.shutdown(std::net::Shutdown::Both));
            }
            *pair = Pair::new(pair.name, scene, STARTUPS[dice.below(4)], &mut dice);
            continue;
        }
        if !other_holds && !pair.is_unsynced && dice.one_in(60) {
            pair.run_cancelled(seed, number);
            continue;
        }
        let step = pair.step(scene, &mut dice);
        if other_holds && (step.needs_server || pair.status != b'I') {
            continue;
        }
        pair.run(&step, seed, number);
        if (pair.status == b'I' || pair.holds)
            && !pair.is_unsynced
            && !dice.one_in(3)
            && !other_holds
        {
            let probe = pair.probe(&mut dice);
            pair.run(&probe, seed, number);
        }
    }
}

impl Pair {
    fn new(
        name: &'static str,
        scene: &Scene,
        startup: &'static [(&'static str, &'static str)],
        dice: &mut Dice,
    ) -> Self {
        let connect = |port: u16, database: &str| {
            let stream = TcpStream::connect(("127.0.0.1", port)).expect("a connection");
            stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            stream.set_nodelay(true).expect("no delay");
            let mut raw = Raw { stream };
            let mut body = format!("user\0app\0database\0{database}\0").into_bytes();
            for (name, value) in startup {
                body.extend(format!("{name}\0{value}\0").into_bytes());
            }
            body.push(0);
            raw.send(&packet(&[&0x0003_0000u32.to_be_bytes(), &body]));
            let mut key = Vec::new();
            loop {
                let message = raw.message().expect("a login within the time");
                let told = String::from_utf8_lossy(&message.body);
                assert_ne!(message.tag, b'E', "{port} {startup:?}: {told}");
                match message.tag {
                    b'K' => key = message.body,
                    b'Z' => return (raw, (port, key)),
                    _ => {}
                }
            }
        };
        let (ward, ward_key) = connect(scene.ward.port, "hospital");
        let (twin, twin_key) = connect(scene.port, scene.database);
        Self {
            name,
            ward,
            twin,
            cancels: [ward_key, twin_key],
            startup,
            hospital: scene.hospitals[dice.below(2)],
            status: b'I',
            holds: false,
            is_strict: scene.is_strict,
            has_pins: scene.has_pins,
            is_unsynced: false,
            sent: Vec::new(),
        }
    }

    /// Sends one step to both and compares what they answer.
    fn run(&mut self, step: &Step, seed: u64, number: usize) {
        self.sent.push(step.told.clone());
        self.ward.send(&step.bytes);
        self.twin.send(&step.bytes);
        self.compare(step, seed, number);
    }

    /// Both run something long, which is cancelled.
    fn run_cancelled(&mut self, seed: u64, number: usize) {
        let sql =
            format!("SELECT pg_sleep(60) FROM public.hospitals WHERE id = '{}'", self.hospital);
        let told = "(cancelled)".to_owned();
        let step = Step { bytes: query(&sql), told, ready: 1, needs_server: true };
        self.sent.push(step.told.clone());
        for (raw, (port, key)) in [&mut self.ward, &mut self.twin].into_iter().zip(&self.cancels) {
            raw.send(&step.bytes);
            raw.stream.set_read_timeout(Some(Duration::from_millis(300))).expect("a timeout");
            let deadline = Instant::now() + PATIENCE;
            // One that comes before the query does nothing, and the next is sent only then.
            while raw.stream.peek(&mut [0]).is_err() {
                assert!(Instant::now() < deadline, "LEAK_SEED={seed} {number}: not cancelled");
                let mut cancel = TcpStream::connect(("127.0.0.1", *port)).expect("a connection");
                let request = packet(&[&80_877_102u32.to_be_bytes(), key]);
                std::io::Write::write_all(&mut cancel, &request).expect("sent");
                drop(std::io::Read::read(&mut cancel, &mut [0]));
            }
            raw.stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        }
        self.compare(&step, seed, number);
    }

    fn compare(&mut self, step: &Step, seed: u64, number: usize) {
        let (mut twin, mut ward) =
            (answers(&mut self.twin, step.ready), answers(&mut self.ward, step.ready));
        if step.bytes[0] != b'Q' && twin.iter().any(|line| line.starts_with('E')) {
            // pgward may refuse a batch as a whole, where Postgres answers what came before.
            let is_end = |line: &String| line.starts_with(['E', 'Z']);
            twin.retain(is_end);
            ward.retain(is_end);
        }
        let history = self.sent[self.sent.len().saturating_sub(24)..].join("\n    ");
        assert_eq!(
            ward, twin,
            "LEAK_SEED={seed} step {number}: client {} (left) and its twin (right) differ; \
             startup {:?}:\n    {history}",
            self.name, self.startup
        );
        if step.ready > 0 {
            self.status = *twin.last().and_then(|line| line.as_bytes().last()).expect("a status");
            self.is_unsynced = false;
        }
        match self.status {
            b'I' => self.holds = false,
            _ => self.holds |= step.needs_server,
        }
    }

    /// What a server says of the session.
    fn probe(&mut self, dice: &mut Dice) -> Step {
        let sql = format!(
            "SELECT current_user, session_user, current_setting('role'),
             current_setting('work_mem'), current_setting('search_path'),
             current_setting('DateStyle'), current_setting('TimeZone'),
             current_setting('statement_timeout'), current_setting('transaction_read_only'),
             coalesce(nullif(current_setting('app.x', true), ''), '-'),
             '01/02/2020'::date - '2020-01-01'::date,
             '2020-01-01 00:00'::timestamptz - '2020-01-01 00:00+00'{}
             FROM public.hospitals WHERE id = '{}'",
            if self.has_pins { PINS_SEEN } else { "" },
            self.hospital
        );
        let is_batch = dice.one_in(2);
        let bytes = match is_batch {
            true => [parse("", &sql), bind("", "", &[]), execute(), sync()].concat(),
            false => query(&sql),
        };
        Step { told: "(probe)".into(), bytes, ready: 1, needs_server: true }
    }

    fn step(&mut self, scene: &Scene, dice: &mut Dice) -> Step {
        let mut needs_server = false;
        if self.status == b'I' && !self.is_unsynced && dice.one_in(4) {
            self.hospital = scene.hospitals[dice.below(2)];
        }
        match dice.below(12) {
            0..=5 => {
                let sql = self.statement(dice, &mut needs_server);
                Step { bytes: query(&sql), told: sql, ready: 1, needs_server }
            }
            6..=7 => {
                let sql = self.statement(dice, &mut needs_server);
                let bytes = [parse("", &sql), bind("", "", &[]), execute(), sync()].concat();
                Step { bytes, told: format!("[{sql}]"), ready: 1, needs_server: true }
            }
            // A block is looked at as it is before the batch: see `batch`.
            8 if self.status == b'I' || self.holds => self.batch(dice, scene.is_strict),
            9 => self.set_config(dice),
            10 if !scene.is_strict => {
                let (one, two) =
                    (self.plain(dice, &mut needs_server), self.plain(dice, &mut needs_server));
                let sql = format!("{one}; {two}");
                if !self.startup.is_empty() && (sql.contains("RESET") || sql.contains("DEF")) {
                    // RESET goes to the startup's value once all of it has run.
                    return Step { bytes: query(&one), told: one, ready: 1, needs_server: true };
                }
                Step { bytes: query(&sql), told: sql, ready: 1, needs_server: true }
            }
            _ => self.prepared(dice),
        }
    }

    /// One statement of any kind.
    fn statement(&self, dice: &mut Dice, needs_server: &mut bool) -> String {
        match dice.below(5) {
            0 | 1 => self.control(dice).to_owned(),
            _ => self.plain(dice, needs_server),
        }
    }

    fn control(&self, dice: &mut Dice) -> &'static str {
        if self.status == b'I' {
            return dice.pick(&["BEGIN", "BEGIN", "BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT a"]);
        }
        // Before it has a server, a chained block takes the defaults anew.
        let is_chained = self.holds && !self.is_strict && dice.one_in(5);
        if is_chained {
            return dice.pick(&["COMMIT AND CHAIN", "ROLLBACK AND CHAIN"]);
        }
        dice.pick(&[
            "COMMIT",
            "ROLLBACK",
            "SAVEPOINT a",
            "SAVEPOINT b",
            "ROLLBACK TO a",
            "ROLLBACK TO b",
            "RELEASE a",
            "RELEASE b",
            "BEGIN",
        ])
    }

    /// A statement that is no transaction control.
    fn plain(&self, dice: &mut Dice, needs_server: &mut bool) -> String {
        // In a block that no server has yet, pgward answers the settings by itself.
        *needs_server |= self.status != b'I' && self.holds;
        if self.has_pins && dice.one_in(4) {
            *needs_server = true;
            return dice.pick(&PINNING).into();
        }
        match dice.below(6) {
            0 => {
                *needs_server = true;
                let fails = ["1 / (count(*) - count(*))", "'x'::text::int"];
                let what = match dice.one_in(2) {
                    true => dice.pick(&fails),
                    false => "count(*)",
                };
                format!("SELECT {what} FROM public.hospitals WHERE id = '{}'", self.hospital)
            }
            1 => {
                *needs_server = true;
                dice.pick(&["SELECT 1", "SELECT 1 / 0", "SHOW work_mem", "SHOW datestyle"]).into()
            }
            _ => {
                let sql = self.setting(dice);
                *needs_server |=
                    self.status == b'I' || sql.contains("RESET") || sql.contains("DEF");
                sql.into()
            }
        }
    }

    fn setting(&self, dice: &mut Dice) -> &'static str {
        dice.pick(&[
            "SET work_mem = '5MB'",
            "SET work_mem = '6MB'",
            "SET LOCAL work_mem = '7MB'",
            "RESET work_mem",
            "SET work_mem TO DEFAULT",
            "SET app.x = 'one'",
            "SET app.x = 'it''s \\ two'",
            "SET LOCAL app.x = 'three'",
            "RESET app.x",
            "SET ROLE nurse",
            "SET ROLE doctor",
            "SET LOCAL ROLE nurse",
            "SET ROLE NONE",
            "RESET ROLE",
            "SET SESSION AUTHORIZATION DEFAULT",
            "SET SESSION AUTHORIZATION app",
            "SET search_path = ward_ns",
            "SET search_path = public, ward_ns",
            "SET LOCAL search_path = ward_ns, public",
            "RESET search_path",
            "SET datestyle = 'SQL, DMY'",
            "SET datestyle = 'ISO'",
            "SET datestyle = 'MDY'",
            "SET LOCAL datestyle = 'DMY'",
            "RESET datestyle",
            "SET TIME ZONE 'Europe/Athens'",
            "SET TIME ZONE 'UTC'",
            "RESET TimeZone",
            "SET statement_timeout = 12345",
            "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
            "SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE",
            "RESET ALL",
            "RESET ALL",
        ])
    }

    /// set_config, with literals or parameters, perhaps left half done.
    fn set_config(&self, dice: &mut Dice) -> Step {
        let (name, value) = dice.pick(&[
            &("work_mem", "8MB"),
            &("app.x", "four"),
            &("role", "doctor"),
            &("search_path", "ward_ns"),
            &("datestyle", "DMY"),
        ]);
        let is_local = dice.pick(&["true", "false", "false"]);
        let limit = i32::from(dice.one_in(3));
        let is_literal = dice.one_in(2);
        let told = format!("[set_config({name}, {value}, {is_local}) by {is_literal}, {limit}]");
        let run = message(b'E', &[b"\0", &limit.to_be_bytes()]);
        let bytes = match is_literal {
            true => {
                let sql = format!("SELECT set_config('{name}', '{value}', {is_local})");
                [parse("", &sql), bind("", "", &[]), run, sync()].concat()
            }
            false => {
                let sql = format!("SELECT set_config('{name}', $1, {is_local})");
                let is_null = self.startup.is_empty()
                    && dice.one_in(5)
                    && *name != "role"
                    && *name != "search_path";
                let value = (!is_null).then_some(*value);
                [parse("", &sql), bind("", "", &[value]), run, sync()].concat()
            }
        };
        Step { told, bytes, ready: 1, needs_server: true }
    }

    /// Several statements before one Sync, portals of both kinds, perhaps with a Flush between.
    fn batch(&mut self, dice: &mut Dice, is_strict: bool) -> Step {
        let mut bytes = Vec::new();
        let mut told = String::from("[");
        let mut needs_server = true;
        for portal in ["", "p", "q"] {
            let sql = match dice.below(6) {
                0 if !is_strict && self.status == b'I' => self.control(dice).to_owned(),
                _ => self.plain(dice, &mut needs_server),
            };
            // RESET goes to the startup's value once the batch has ended.
            if !self.startup.is_empty() && (sql.contains("RESET") || sql.contains("DEF")) {
                continue;
            }
            // Under guard no portal with a name changes the session.
            let is_query = sql.starts_with("SELECT") || sql.starts_with("SHOW");
            if is_strict && !portal.is_empty() && !is_query {
                continue;
            }
            // Under guard names must not change amid a batch.
            let names = ["search_path", "ROLE", "AUTHORIZATION", "ALL"];
            if is_strict && names.iter().any(|name| sql.contains(name)) {
                continue;
            }
            bytes.extend([parse("", &sql), bind(portal, "", &[])].concat());
            bytes.extend(message(b'E', &[portal.as_bytes(), b"\0\0\0\0\0"]));
            bytes.extend(message(b'C', &[b"P", portal.as_bytes(), b"\0"]));
            told += &format!("{portal}: {sql} | ");
            // Under guard a batch that shows no hospital before its first Flush is on any shard.
            if !is_strict && dice.one_in(4) {
                bytes.extend(flush());
                told += "Flush | ";
            }
        }
        bytes.extend(sync());
        Step { told: told + "Sync]", bytes, ready: 1, needs_server }
    }

    /// Named statements, their names given twice and taken away.
    fn prepared(&self, dice: &mut Dice) -> Step {
        let name = dice.pick(&["s1", "s2"]);
        let sql = format!(
            "SELECT '01/02/2020'::date - '2020-01-01'::date, current_setting('work_mem')
             FROM public.hospitals WHERE id = '{}'",
            self.hospital
        );
        let (told, bytes) = match dice.below(8) {
            0..=2 => (format!("[Parse {name}]"), [parse(name, &sql), sync()].concat()),
            3 | 4 => {
                // Bound where it was parsed for the same settings: what a literal in it means was
                // settled by then.
                let run = [bind("", name, &[]), execute(), sync()].concat();
                let close = message(b'C', &[b"S", name.as_bytes(), b"\0"]);
                (format!("[Parse {name} anew, run]"), [close, parse(name, &sql), run].concat())
            }
            5 => {
                let close = message(b'C', &[b"S", name.as_bytes(), b"\0"]);
                (format!("[Close {name}]"), [close, sync()].concat())
            }
            6 => ("DEALLOCATE ALL".into(), query("DEALLOCATE ALL")),
            _ => ("DISCARD ALL".into(), query("DISCARD ALL")),
        };
        Step { told, bytes, ready: 1, needs_server: true }
    }
}

/// Answers up to the last of `ready` ReadyForQuery messages, as far as they must be equal.
fn answers(raw: &mut Raw, ready: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut left = ready;
    while left > 0 {
        let Some(message) = raw.message() else {
            lines.push("(the end)".into());
            return lines;
        };
        let text = String::from_utf8_lossy(&message.body).replace('\0', " ");
        match message.tag {
            b'N' | b'S' | b'T' | b't' => {}
            b'E' => lines.push(format!("E {}", message.sqlstate())),
            tag => lines.push(format!("{} {}", char::from(tag), text)),
        }
        left -= usize::from(message.tag == b'Z');
    }
    lines
}

fn parse(name: &str, sql: &str) -> Vec<u8> {
    message(b'P', &[name.as_bytes(), b"\0", sql.as_bytes(), b"\0\0\0"])
}

/// Bind with text parameters, `None` for NULL.
fn bind(portal: &str, statement: &str, values: &[Option<&str>]) -> Vec<u8> {
    let mut body = [portal.as_bytes(), b"\0", statement.as_bytes(), b"\0\0\0"].concat();
    body.extend((values.len() as u16).to_be_bytes());
    for value in values {
        match value {
            Some(value) => {
                body.extend((value.len() as u32).to_be_bytes());
                body.extend(value.as_bytes());
            }
            None => body.extend((-1i32).to_be_bytes()),
        }
    }
    body.extend([0, 0]);
    message(b'B', &[&body])
}
