//! A client that sends bytes as it likes, without a thread of its own; and its answers, told in a
//! way in which those of pgward and of the oracle must be equal.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::Message;
use crate::support::raw::{message, packet};

/// How long an answer may take, a restart of its server included.
const ANSWER_PATIENCE: Duration = Duration::from_secs(60);

/// A connection, logged in as `app`, or another.
pub struct Wire {
    stream: BufReader<TcpStream>,
    /// Its own port: how pgward's console names it.
    pub port: u16,
    server: u16,
    /// Body of BackendKeyData.
    cancel_key: Vec<u8>,
}

/// What came up to ReadyForQuery.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    pub messages: Vec<Message>,
}

impl Wire {
    pub async fn login(port: u16, database: &str, user: &str) -> io::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.set_nodelay(true)?;
        let own = stream.local_addr()?.port();
        let stream = BufReader::new(stream);
        let mut wire = Self { stream, port: own, server: port, cancel_key: Vec::new() };
        let names = format!("user\0{user}\0database\0{database}\0\0");
        wire.send(&packet(&[&0x0003_0000u32.to_be_bytes(), names.as_bytes()])).await?;
        let answer = wire.answer().await.map_err(|_| io::ErrorKind::UnexpectedEof)?;
        if let Some(error) = answer.error() {
            return Err(io::Error::other(String::from_utf8_lossy(&error.body).into_owned()));
        }
        let key = answer.messages.into_iter().find(|message| message.tag == b'K');
        wire.cancel_key = key.map(|key| key.body).unwrap_or_default();
        Ok(wire)
    }

    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes).await
    }

    /// Closes without a word.
    pub fn leave(&self) {
        let _ = socket2::SockRef::from(self.stream.get_ref()).shutdown(std::net::Shutdown::Both);
    }

    /// Up to ReadyForQuery; `Err` with what came before the connection ended.
    pub async fn answer(&mut self) -> Result<Answer, Answer> {
        let mut answer = Answer::default();
        loop {
            match self.message().await {
                Some(message) => answer.messages.push(message),
                None => return Err(answer),
            }
            if answer.messages.last().is_some_and(|message| message.tag == b'Z') {
                return Ok(answer);
            }
        }
    }

    /// One message; `None` at the end.
    ///
    /// # Panics
    /// If none comes: that nobody answers is never right.
    pub async fn message(&mut self) -> Option<Message> {
        let reading = async {
            let mut head = [0; 5];
            self.stream.read_exact(&mut head).await.ok()?;
            let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
            let mut body = vec![0; length.checked_sub(4)?];
            self.stream.read_exact(&mut body).await.ok()?;
            Some(Message { tag: head[0], body })
        };
        timeout(ANSWER_PATIENCE, reading).await.unwrap_or_else(|_| {
            panic!("no answer within {ANSWER_PATIENCE:?} from port {}", self.server)
        })
    }

    /// Cancels what runs here, after a while; ends when the server has taken it.
    pub fn cancel_after(&self, delay: Duration) -> impl Future<Output = ()> + Send + use<> {
        let bytes = packet(&[&80877102u32.to_be_bytes(), &self.cancel_key]);
        let server = self.server;
        async move {
            tokio::time::sleep(delay).await;
            let Ok(mut stream) = TcpStream::connect(("127.0.0.1", server)).await else { return };
            if stream.write_all(&bytes).await.is_ok() {
                let _ = stream.read(&mut [0; 1]).await;
            }
        }
    }

    /// Rows of a Query that must succeed, columns joined by `|`.
    pub async fn rows(&mut self, sql: &str) -> Result<Vec<String>, String> {
        let server = self.server;
        let lost = |_| format!("the connection to port {server} ended");
        let query = message(b'Q', &[sql.as_bytes(), b"\0"]);
        self.stream.get_mut().write_all(&query).await.map_err(|error| error.to_string())?;
        let answer = self.answer().await.map_err(lost)?;
        match answer.error() {
            Some(error) => {
                Err(format!("{}: {}", error.sqlstate(), String::from_utf8_lossy(&error.body)))
            }
            None => Ok(answer.rows()),
        }
    }
}

impl Answer {
    /// Its error. A server may be lost after an error of its own: that is the last word then.
    pub fn error(&self) -> Option<&Message> {
        self.messages.iter().rfind(|message| message.tag == b'E')
    }

    /// SQLSTATE of its error, or "".
    pub fn code(&self) -> &str {
        self.error().map_or("", Message::sqlstate)
    }

    /// Transaction status at its end.
    pub fn status(&self) -> u8 {
        self.messages.last().and_then(|ready| ready.body.first()).copied().unwrap_or(b'?')
    }

    pub fn has_tag(&self, text: &str) -> bool {
        let is_it =
            |message: &Message| message.tag == b'C' && message.body.starts_with(text.as_bytes());
        self.messages.iter().any(is_it)
    }

    pub fn row_count(&self) -> usize {
        self.messages.iter().filter(|message| message.tag == b'D').count()
    }

    fn rows(&self) -> Vec<String> {
        self.messages.iter().filter(|message| message.tag == b'D').map(columns).collect()
    }

    /// What must be equal. Rows of the results that `is_ordered` does not name ordered are sorted.
    pub fn told(&self, is_ordered: &[bool]) -> Vec<String> {
        let (mut told, mut rows, mut at) = (Vec::new(), Vec::new(), 0);
        for message in &self.messages {
            if message.tag == b'D' {
                rows.push(format!("D {}", message.body.escape_ascii()));
                continue;
            }
            if !is_ordered.get(at).copied().unwrap_or_default() {
                rows.sort_unstable();
            }
            told.append(&mut rows);
            at += usize::from(matches!(message.tag, b'C' | b's' | b'I'));
            match message.tag {
                b'N' | b'S' => {}
                b'E' => told.push(format!("E {}", message.sqlstate())),
                b'T' => told.push(format!("T {}", fields(&message.body))),
                tag => told.push(format!("{} {}", char::from(tag), message.body.escape_ascii())),
            }
        }
        told
    }
}

fn columns(row: &Message) -> String {
    let (mut at, mut columns) = (2, Vec::new());
    while let Some(length) = row.body.get(at..at + 4) {
        let length = i32::from_be_bytes(length.try_into().expect("four bytes"));
        let value = row.body.get(at + 4..at + 4 + length.max(0) as usize).unwrap_or_default();
        columns.push(String::from_utf8_lossy(value).into_owned());
        at += 4 + length.max(0) as usize;
    }
    columns.join("|")
}

/// Names, types and formats: the OIDs of tables are each database's own.
fn fields(body: &[u8]) -> String {
    let (mut told, mut rest) = (String::new(), body.get(2..).unwrap_or_default());
    while let Some(end) = rest.iter().position(|byte| *byte == 0) {
        let name = String::from_utf8_lossy(&rest[..end]);
        let Some(numbers) = rest.get(end + 7..end + 19) else { break };
        told += &format!("{name}:{numbers:?} ");
        rest = &rest[end + 19..];
    }
    told
}
