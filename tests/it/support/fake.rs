//! A fake Postgres on a loopback port: it knows just enough to answer, and a script can say
//! otherwise. It writes down what it hears and says.
//!
//! Connections of host `S0` are `S0`, `S0b`, `S0c`, ... in the order in which they were opened.
//! pgward's own question for the search_path is answered and not written down.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use pgward::wire;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use super::notation::{Word, backend, greeting, shown_backend, shown_frontend, words};

/// What pgward asks of the first server of each user.
const SEARCH_PATH: &str = "SELECT pg_catalog.current_setting('search_path')";
const CANCEL_REQUEST: u32 = 80_877_102;

/// What happened at the servers, and what shall.
#[derive(Default)]
pub struct Stage {
    state: Mutex<State>,
    /// Something was written down.
    pub changed: Notify,
    /// A held answer may go on, a cancel came, an order was given.
    poked: Notify,
}

#[derive(Default)]
struct State {
    lines: Vec<String>,
    rules: Vec<Rule>,
    orders: Vec<(String, Order)>,
    /// Connections that have logged in and not ended.
    open: usize,
    /// Labels by process id.
    pids: HashMap<i32, String>,
}

/// Instead of its own answer to the next message of this kind and text, a host answers these.
struct Rule {
    host: String,
    message: String,
    text: String,
    answer: Vec<Word>,
}

#[derive(Debug, Clone)]
enum Order {
    Go,
    Close,
    Say(Vec<Word>),
    Cancelled,
}

impl Stage {
    /// `S0 on Execute "text": answer`, `S0 go`, `S0 close`, `S0 says answer`.
    pub fn order(&self, line: &str) {
        let (label, order) = line.split_once(' ').expect("an order");
        let mut state = self.lock();
        if let Some(rule) = order.strip_prefix("on ") {
            let (message, rest) = rule.split_once(" \"").expect("a text");
            let (text, answer) = rest.split_once("\":").expect("an answer");
            state.rules.push(Rule {
                host: label.to_owned(),
                message: message.to_owned(),
                text: text.to_owned(),
                answer: words(answer),
            });
            return;
        }
        let order = match order.split_once(' ').unwrap_or((order, "")) {
            ("go", _) => Order::Go,
            ("close", _) => Order::Close,
            ("says", said) => Order::Say(words(said)),
            other => panic!("unknown order {other:?}"),
        };
        state.orders.push((label.to_owned(), order));
        drop(state);
        self.poked.notify_waiters();
    }

    /// Hosts answer as they would again.
    pub fn forget_rules(&self) {
        self.lock().rules.clear();
    }

    /// Lines written down so far.
    pub fn lines(&self) -> Vec<String> {
        self.lock().lines.clone()
    }

    /// Connections that are open, as the servers see it.
    pub fn open(&self) -> usize {
        self.lock().open
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while it was held")
    }

    fn write_down(&self, line: String) {
        self.lock().lines.push(line);
        self.changed.notify_waiters();
    }

    fn rule(&self, host: &str, message: &str, text: &str) -> Option<Vec<Word>> {
        let mut state = self.lock();
        let at = state.rules.iter().position(|rule| {
            rule.host == host && rule.message == message && text.contains(&rule.text)
        })?;
        Some(state.rules.remove(at).answer)
    }
}

/// Serves `host` on a free port, which it answers.
pub async fn start(host: &str, stage: Arc<Stage>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let host = host.to_owned();
    tokio::spawn(async move {
        let mut count = 0;
        let mut unheeded = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut start = vec![0; 8];
            if stream.read_exact(&mut start).await.is_err() {
                continue;
            }
            let code = u32::from_be_bytes(start[4..8].try_into().expect("four bytes"));
            let rest = u32::from_be_bytes(start[..4].try_into().expect("four bytes")) as usize - 8;
            let mut body = vec![0; rest];
            if stream.read_exact(&mut body).await.is_err() {
                continue;
            }
            if code == CANCEL_REQUEST && stage.rule(&host, "CancelRequest", "").is_some() {
                // Heard, and left open: nobody is told what becomes of it.
                unheeded.push(stream);
                continue;
            }
            if code == CANCEL_REQUEST {
                let pid = i32::from_be_bytes(body[..4].try_into().expect("four bytes"));
                cancel(&stage, pid);
                continue;
            }
            let label = match count {
                0 => host.clone(),
                n => format!("{host}{}", (b'a' + n) as char),
            };
            count += 1;
            tokio::spawn(Connection::new(&host, label, stage.clone()).serve(stream));
        }
    });
    port
}

fn cancel(stage: &Stage, pid: i32) {
    let label = {
        let mut state = stage.lock();
        let Some(label) = state.pids.get(&pid).cloned() else { return };
        state.orders.push((label.clone(), Order::Cancelled));
        label
    };
    stage.write_down(format!("{label}> CancelRequest"));
    stage.poked.notify_waiters();
}

/// What comes after the answer in hand.
#[derive(Debug, PartialEq)]
enum After {
    Nothing,
    /// ReadyForQuery.
    Ready,
    /// The server's own answer to this text, then that.
    Run {
        sql: String,
        is_query: bool,
    },
}

#[derive(Debug, PartialEq, Clone, Copy)]
enum Copying {
    No,
    In { is_query: bool, rows: usize },
}

struct Connection {
    host: String,
    label: String,
    pid: i32,
    stage: Arc<Stage>,
    status: u8,
    is_skipping: bool,
    copying: Copying,
    statements: HashMap<Vec<u8>, String>,
    portals: HashMap<Vec<u8>, String>,
    /// Not written down yet.
    heard: Vec<String>,
    said: Vec<String>,
    out: Vec<u8>,
    is_visible: bool,
    /// An answer waits for `go`: the rest of it, and what comes then.
    held: Option<(Vec<Word>, After)>,
    must_close: bool,
}

impl Connection {
    fn new(host: &str, label: String, stage: Arc<Stage>) -> Self {
        let pid = {
            let mut state = stage.lock();
            let pid = 1000 + state.pids.len() as i32;
            state.pids.insert(pid, label.clone());
            pid
        };
        Self {
            host: host.to_owned(),
            label,
            pid,
            stage,
            status: b'I',
            is_skipping: false,
            copying: Copying::No,
            statements: HashMap::new(),
            portals: HashMap::new(),
            heard: Vec::new(),
            said: Vec::new(),
            out: Vec::new(),
            is_visible: false,
            held: None,
            must_close: false,
        }
    }

    async fn serve(self, stream: TcpStream) {
        let stage = self.stage.clone();
        stage.lock().open += 1;
        self.talk(stream).await;
        stage.lock().open -= 1;
    }

    async fn talk(mut self, mut stream: TcpStream) {
        let stage = self.stage.clone();
        if stream.write_all(&greeting(self.pid)).await.is_err() {
            return;
        }
        let mut input: Vec<u8> = Vec::new();
        let mut chunk = vec![0; 1 << 16];
        loop {
            let mut poked = std::pin::pin!(stage.poked.notified());
            poked.as_mut().enable();
            self.take_orders();
            let mut at = 0;
            while self.held.is_none() && !self.must_close {
                let Ok(Some((tag, body))) = wire::peek(&input[at..], 1 << 30) else { break };
                at += body.len() + wire::HEADER_BYTES;
                self.on_message(tag, body);
            }
            input.drain(..at);
            self.flush(&mut stream).await;
            if self.must_close {
                stage.write_down(format!("{}< (closes)", self.label));
                return;
            }
            tokio::select! {
                biased;
                () = &mut poked => {}
                read = stream.read(&mut chunk) => match read {
                    Ok(n) if n > 0 => input.extend(&chunk[..n]),
                    _ => {
                        if self.is_visible {
                            stage.write_down(format!("{}> (closed)", self.label));
                        }
                        return;
                    }
                },
            }
        }
    }

    fn take_orders(&mut self) {
        loop {
            let order = {
                let mut state = self.stage.lock();
                let at = state.orders.iter().position(|(label, order)| {
                    *label == self.label && (self.held.is_some() || !matches!(order, Order::Go))
                });
                let Some(at) = at else { return };
                state.orders.remove(at).1
            };
            match order {
                Order::Go => {
                    if let Some((rest, after)) = self.held.take() {
                        self.answer(rest, after);
                    }
                }
                Order::Cancelled => {
                    if let Some((_, after)) = self.held.take() {
                        self.say(&words("ErrorResponse(57014)")[0]);
                        self.fail(!matches!(after, After::Run { is_query: false, .. }));
                    }
                }
                Order::Close => self.must_close = true,
                Order::Say(said) => said.iter().for_each(|word| self.say(word)),
            }
        }
    }

    async fn flush(&mut self, stream: &mut TcpStream) {
        let prefix =
            [("> ", std::mem::take(&mut self.heard)), ("< ", std::mem::take(&mut self.said))];
        for (arrow, words) in prefix {
            if !words.is_empty() {
                self.is_visible = true;
                self.stage.write_down(format!("{}{arrow}{}", self.label, words.join(" ")));
            }
        }
        let out = std::mem::take(&mut self.out);
        // A client that has gone shows in the next read.
        let _ = stream.write_all(&out).await;
    }

    fn say(&mut self, word: &Word) {
        let bytes = backend(word);
        let mut shown = if word.name == "Raw" {
            format!("Raw({})", word.arg(0))
        } else {
            shown_backend(bytes[0], &bytes[wire::HEADER_BYTES..])
        };
        if word.name == "ErrorResponse" {
            shown = format!("ErrorResponse({})", word.args.join(","));
        }
        self.said.push(shown);
        self.out.extend(bytes);
    }

    fn say_words(&mut self, line: &str) {
        words(line).iter().for_each(|word| self.say(word));
    }

    fn ready(&mut self) {
        let status = self.status as char;
        self.say_words(&format!("ReadyForQuery({status})"));
    }

    /// An error: the transaction fails, and the rest of a batch is skipped.
    fn fail(&mut self, is_query: bool) {
        self.copying = Copying::No;
        if self.status == b'T' {
            self.status = b'E';
        }
        if is_query {
            self.ready();
        } else {
            self.is_skipping = true;
        }
    }

    fn error(&mut self, code: &str, is_query: bool) {
        self.say_words(&format!("ErrorResponse({code})"));
        self.fail(is_query);
    }

    fn on_message(&mut self, tag: u8, body: &[u8]) {
        let shown = shown_frontend(tag, body);
        if shown == format!("Query(\"{SEARCH_PATH}\")") {
            let line =
                "RowDescription DataRow(\"public\") CommandComplete(\"SELECT 1\") ReadyForQuery(I)";
            self.out.extend(words(line).iter().flat_map(backend));
            return;
        }
        self.heard.push(shown);
        let text = |name: &[u8], of: &HashMap<Vec<u8>, String>| of.get(name).cloned();
        match tag {
            b'd' | b'c' | b'f' => self.on_copy(tag, body),
            b'S' | b'H' if self.copying != Copying::No => {}
            _ if self.copying != Copying::No => {
                let Copying::In { is_query, .. } = self.copying else { return };
                self.error("08P01", is_query);
            }
            b'S' => {
                self.is_skipping = false;
                if let Some(answer) = self.stage.rule(&self.host, "Sync", "") {
                    self.answer(answer, After::Nothing);
                } else {
                    self.ready();
                }
            }
            b'X' => self.must_close = true,
            _ if self.is_skipping => {}
            b'Q' => {
                let sql =
                    String::from_utf8_lossy(body.strip_suffix(b"\0").unwrap_or(body)).into_owned();
                match self.stage.rule(&self.host, "Query", &sql) {
                    Some(answer) => {
                        let after = After::Run { sql, is_query: true };
                        self.answer(answer, after);
                    }
                    None => {
                        self.run(&sql, true);
                    }
                }
            }
            b'P' => {
                let Ok(parse) = wire::frontend::Parse::read(body) else { return };
                let sql = String::from_utf8_lossy(parse.sql).into_owned();
                if let Some(answer) = self.stage.rule(&self.host, "Parse", &sql) {
                    self.answer(answer, After::Nothing);
                } else if sql == "pgward refused this statement" {
                    self.error("42601", false);
                } else if !parse.name.is_empty() && self.statements.contains_key(parse.name) {
                    self.error("42P05", false);
                } else {
                    self.statements.insert(parse.name.to_vec(), sql);
                    self.say_words("ParseComplete");
                }
            }
            b'B' => {
                let Ok(bind) = wire::frontend::Bind::read(body) else { return };
                match text(bind.statement, &self.statements) {
                    None => self.error("26000", false),
                    Some(sql) => {
                        if let Some(answer) = self.stage.rule(&self.host, "Bind", &sql) {
                            self.answer(answer, After::Nothing);
                        } else {
                            self.portals.insert(bind.portal.to_vec(), sql);
                            self.say_words("BindComplete");
                        }
                    }
                }
            }
            b'D' => {
                let name = &body[1..body.len() - 1];
                let is_statement = body[0] == b'S';
                let of = if is_statement { &self.statements } else { &self.portals };
                match text(name, of) {
                    None => self.error(if is_statement { "26000" } else { "34000" }, false),
                    Some(sql) => {
                        if is_statement {
                            let count =
                                (1..10).take_while(|n| sql.contains(&format!("${n}"))).count();
                            self.say_words(&format!("ParameterDescription({count})"));
                        }
                        self.say_words(if answers_rows(&sql) {
                            "RowDescription"
                        } else {
                            "NoData"
                        });
                    }
                }
            }
            b'E' => {
                let end = body.iter().position(|byte| *byte == 0).unwrap_or(0);
                match text(&body[..end], &self.portals) {
                    None => self.error("34000", false),
                    Some(sql) => match self.stage.rule(&self.host, "Execute", &sql) {
                        Some(answer) => self.answer(answer, After::Run { sql, is_query: false }),
                        None => self.run(&sql, false),
                    },
                }
            }
            b'C' => {
                let name = body[1..body.len() - 1].to_vec();
                if body[0] == b'S' {
                    self.statements.remove(&name);
                } else {
                    self.portals.remove(&name);
                }
                self.say_words("CloseComplete");
            }
            b'H' => {}
            _ => self.error("08P01", true),
        }
    }

    fn on_copy(&mut self, tag: u8, body: &[u8]) {
        let Copying::In { is_query, rows } = self.copying else { return };
        if tag == b'd' {
            let text = String::from_utf8_lossy(body).into_owned();
            if let Some(answer) = self.stage.rule(&self.host, "CopyData", &text) {
                let after = if is_query { After::Ready } else { After::Nothing };
                self.answer(answer, after);
            } else {
                self.copying = Copying::In { is_query, rows: rows + 1 };
            }
            return;
        }
        self.copying = Copying::No;
        if tag == b'f' {
            self.error("57014", is_query);
        } else {
            self.say_words(&format!("CommandComplete(\"COPY {rows}\")"));
            if is_query {
                self.ready();
            }
        }
    }

    /// Says what a rule has it say.
    fn answer(&mut self, answer: Vec<Word>, after: After) {
        let mut answer = answer.into_iter();
        let mut has_failed = false;
        let mut has_answered = false;
        while let Some(word) = answer.next() {
            match word.name.as_str() {
                "hold" => {
                    self.held = Some((answer.collect(), after));
                    return;
                }
                "close" => {
                    self.must_close = true;
                    return;
                }
                "Half" => {
                    let bytes = backend(&words(word.arg(0))[0]);
                    self.said.push(format!("(half of {})", word.arg(0)));
                    self.out.extend(&bytes[..bytes.len() / 2]);
                }
                "Rest" => {
                    let bytes = backend(&words(word.arg(0))[0]);
                    self.said.push(format!("(rest of {})", word.arg(0)));
                    self.out.extend(&bytes[bytes.len() / 2..]);
                }
                "run" => {}
                _ => {
                    has_failed |= word.name == "ErrorResponse";
                    has_answered |= !matches!(
                        word.name.as_str(),
                        "NoticeResponse" | "ParameterStatus" | "NotificationResponse"
                    );
                    self.say(&word);
                }
            }
        }
        match after {
            After::Nothing if has_failed => self.fail(false),
            After::Nothing => {}
            After::Ready if has_failed => self.fail(true),
            After::Ready => self.ready(),
            After::Run { is_query, .. } if has_failed => self.fail(is_query),
            After::Run { is_query: true, .. } if has_answered => self.ready(),
            After::Run { is_query: false, .. } if has_answered => {}
            After::Run { sql, is_query } => self.run(&sql, is_query),
        }
    }

    /// The answer of a Postgres to `sql`.
    fn run(&mut self, sql: &str, is_query: bool) {
        let before = self.status;
        let mut is_empty = true;
        for statement in sql.split(';').map(str::trim).filter(|s| !s.is_empty()) {
            is_empty = false;
            if !self.run_one(statement, is_query) {
                return;
            }
        }
        if is_empty {
            self.say_words("EmptyQueryResponse");
        }
        debug_assert!(before != 0);
        if is_query {
            self.ready();
        }
    }

    fn run_one(&mut self, sql: &str, is_query: bool) -> bool {
        let upper = sql.to_ascii_uppercase();
        let mut first = upper.split([' ', '\n', '(']);
        let command = first.next().unwrap_or("").to_owned();
        let is_rollback_to = upper.starts_with("ROLLBACK TO");
        if self.status == b'E' && !matches!(command.as_str(), "ROLLBACK" | "COMMIT" | "END") {
            self.error("25P02", is_query);
            return false;
        }
        match command.as_str() {
            "BEGIN" | "START" => {
                if self.status == b'T' {
                    self.say_words("NoticeResponse(25001)");
                }
                self.status = b'T';
                self.say_words("CommandComplete(\"BEGIN\")");
            }
            "COMMIT" | "END" | "ROLLBACK" => {
                let word = if command == "ROLLBACK" || self.status == b'E' { "ROLLBACK" } else { "COMMIT" };
                if self.status == b'I' {
                    self.say_words("NoticeResponse(25P01)");
                }
                self.status = if is_rollback_to { b'T' } else { b'I' };
                self.say_words(&format!("CommandComplete(\"{word}\")"));
            }
            "DISCARD" => {
                self.statements.clear();
                self.portals.clear();
                self.say_words("CommandComplete(\"DISCARD ALL\")");
            }
            "INSERT" => self.say_words("CommandComplete(\"INSERT 0 1\")"),
            "UPDATE" | "DELETE" => self.say_words(&format!("CommandComplete(\"{command} 1\")")),
            "COPY" if upper.contains("FROM STDIN") => {
                self.say_words("CopyInResponse");
                self.copying = Copying::In { is_query, rows: 0 };
                return false;
            }
            "COPY" => self.say_words(
                "CopyOutResponse CopyData(\"1\\n\") CopyData(\"2\\n\") CopyDone CommandComplete(\"COPY 2\")",
            ),
            _ if answers_rows(sql) => {
                if is_query {
                    self.say_words("RowDescription");
                }
                let value = sql.split('\'').nth(3).filter(|_| sql.contains("set_config"));
                self.say_words(&format!("DataRow(\"{}\")", value.unwrap_or("1")));
                let tag = if command == "SHOW" { "SHOW" } else { "SELECT 1" };
                self.say_words(&format!("CommandComplete(\"{tag}\")"));
            }
            _ => self.say_words(&format!("CommandComplete(\"{command}\")")),
        }
        true
    }
}

fn answers_rows(sql: &str) -> bool {
    let first = sql.trim_start().get(..4).unwrap_or_default();
    ["SELE", "SHOW", "WITH", "VALU"].iter().any(|word| first.eq_ignore_ascii_case(word))
}
