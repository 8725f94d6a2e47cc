//! The console's end of the protocol: simple and extended, over a stream that has logged in.
//!
//! `session::login` finds that the database is a console, checks the password, sends
//! AuthenticationOk, and hands the stream over; [`serve`] sends the rest of the greeting and
//! answers until the client leaves. One command at a time, nothing is pipelined beyond a buffer,
//! and no text that the client sent is ever repeated to it or logged.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::show::{self, INT4, INT8};
use super::{Access, Column, Command, Source, Table};
use crate::net::{Buffer, Stream};
use crate::route::refusals;
use crate::wire::backend::{self, ErrorReply};
use crate::wire::frontend::{self, Bind, Execute, Kind, Named, Parse, Query};
use crate::wire::{self, TxnStatus};

/// What the console says its version is: high enough for drivers that look at it.
pub const SERVER_VERSION: &str = concat!("15.0 (pgward ", env!("CARGO_PKG_VERSION"), ")");

/// Largest message of a console client.
const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// Prepared statements, and portals, of one console client.
const NAMES_MAX: usize = 100;

/// A console client after AuthenticationOk.
pub struct Client {
    /// Its connection.
    pub stream: Stream,
    /// Bytes that were read and not used.
    pub input: Buffer,
    /// Bytes that were not written yet.
    pub output: Buffer,
    /// What it may do.
    pub access: Access,
    /// For BackendKeyData. Nothing runs long enough to be cancelled.
    pub pid: i32,
}

/// Serves a console until its client leaves or breaks the protocol. Cancel safety: dropping it
/// closes the connection and leaves nothing behind.
pub async fn serve(client: Client, source: Arc<dyn Source>) -> io::Result<()> {
    let Client { mut stream, mut input, mut output, access, pid } = client;
    let mut console = Console {
        access,
        source,
        block: TxnStatus::Idle,
        skips: false,
        statements: HashMap::new(),
        portals: HashMap::new(),
    };
    greet(output.tail(), pid);
    loop {
        // Each reply goes out before the next message is looked at: no reply waits in memory.
        stream.drain(&mut output).await?;
        let (tag, body) = loop {
            match wire::header(input.as_slice(), MESSAGE_BYTES_MAX) {
                Ok(Some(head)) if input.len() >= head.total => {
                    let body = &input.as_slice()[wire::HEADER_BYTES..head.total];
                    let body = Bytes::copy_from_slice(body);
                    input.advance(head.total);
                    break (head.tag, body);
                }
                Ok(_) => {
                    if stream.fill(&mut input).await? == 0 {
                        return Ok(());
                    }
                }
                Err(error) => return farewell(stream, output, error).await,
            }
        };
        match console.on_message(tag, &body, output.tail()).await {
            Ok(Next::Answer) => {}
            Ok(Next::Leave) => return Ok(()),
            Err(error) => return farewell(stream, output, error).await,
        }
    }
}

/// The client broke the protocol: say so and close.
async fn farewell(mut stream: Stream, mut output: Buffer, error: wire::Error) -> io::Result<()> {
    refusals::protocol_violation(error.to_string()).encode(output.tail());
    stream.drain(&mut output).await
}

fn greet(out: &mut BytesMut, pid: i32) {
    for (name, value) in [
        ("server_version", SERVER_VERSION),
        ("client_encoding", "UTF8"),
        ("server_encoding", "UTF8"),
        ("DateStyle", "ISO"),
        ("TimeZone", "GMT"),
        ("standard_conforming_strings", "on"),
        ("integer_datetimes", "on"),
        ("is_superuser", "on"),
    ] {
        backend::write_parameter_status(out, name, value);
    }
    backend::write_backend_key_data(out, pid, &[0; 4]);
    backend::write_ready_for_query(out, TxnStatus::Idle);
}

enum Next {
    Answer,
    Leave,
}

/// What a console client has prepared, and where it stands.
struct Console {
    access: Access,
    source: Arc<dyn Source>,
    /// BEGIN was said. Nothing depends on it but the status that drivers check.
    block: TxnStatus,
    /// A batch failed: all up to its Sync is skipped.
    skips: bool,
    statements: HashMap<Bytes, Command>,
    portals: HashMap<Bytes, Portal>,
}

struct Portal {
    command: Command,
    formats: Vec<i16>,
    /// Rows that were not fetched yet, once it ran.
    rest: Option<std::vec::IntoIter<Vec<Option<String>>>>,
    columns: Vec<Column>,
}

impl Console {
    async fn on_message(
        &mut self,
        tag: u8,
        body: &Bytes,
        out: &mut BytesMut,
    ) -> Result<Next, wire::Error> {
        use frontend::tag as of;
        match tag {
            of::TERMINATE => return Ok(Next::Leave),
            of::SYNC => {
                self.skips = false;
                if self.block == TxnStatus::Idle {
                    self.portals.clear();
                }
                backend::write_ready_for_query(out, self.block);
            }
            of::QUERY => {
                let query = Query::read(body)?;
                let outcome = self.simple(query.sql, out).await;
                self.report(outcome, out);
                self.skips = false;
                backend::write_ready_for_query(out, self.block);
            }
            of::FLUSH => {}
            of::PARSE | of::BIND | of::DESCRIBE | of::EXECUTE | of::CLOSE if self.skips => {}
            of::PARSE => self.batch(|this, out| this.parse(&Parse::read(body)?, out), out)?,
            of::BIND => self.batch(|this, out| this.bind(&Bind::read(body)?, out), out)?,
            of::DESCRIBE => {
                self.batch(|this, out| this.describe(&Named::read_describe(body)?, out), out)?;
            }
            of::CLOSE => {
                let named = Named::read_close(body)?;
                match named.kind {
                    Kind::Statement => self.statements.remove(named.name).is_some(),
                    Kind::Portal => self.portals.remove(named.name).is_some(),
                };
                backend::write_close_complete(out);
            }
            of::EXECUTE => {
                let execute = Execute::read(body)?;
                let outcome = self.execute(&execute, out).await;
                self.skips = outcome.is_err();
                self.report(outcome, out);
            }
            of::FUNCTION_CALL => {
                self.report(Err(refusals::console_takes_no("function calls")), out);
                backend::write_ready_for_query(out, self.block);
            }
            // What is left of a COPY that never began.
            of::COPY_DATA | of::COPY_DONE | of::COPY_FAIL => {}
            tag => return Err(wire::Error::UnknownTag { tag }),
        }
        Ok(Next::Answer)
    }

    /// Runs one step of a batch; an error is told, and the rest of the batch skipped.
    fn batch(
        &mut self,
        step: impl FnOnce(&mut Self, &mut BytesMut) -> Result<Result<(), ErrorReply>, wire::Error>,
        out: &mut BytesMut,
    ) -> Result<(), wire::Error> {
        let outcome = step(self, out)?;
        self.skips = outcome.is_err();
        self.report(outcome, out);
        Ok(())
    }

    fn report(&mut self, outcome: Result<(), ErrorReply>, out: &mut BytesMut) {
        if let Err(error) = outcome {
            error.encode(out);
            if self.block == TxnStatus::Open {
                self.block = TxnStatus::Failed;
            }
        }
    }

    async fn simple(&mut self, sql: &[u8], out: &mut BytesMut) -> Result<(), ErrorReply> {
        let command = self.command(sql)?;
        self.admit(&command)?;
        if let Some(table) = show::table(&command, &*self.source) {
            describe_rows(out, &table.columns, &[]);
            for row in &table.rows {
                send_row(out, &table.columns, row, &[]);
            }
        }
        self.finish(&command, out).await
    }

    fn command(&self, sql: &[u8]) -> Result<Command, ErrorReply> {
        let text = std::str::from_utf8(sql).map_err(|_| refusals::console_not_utf8())?;
        Command::parse(text)
    }

    /// Checked when it runs, not when it is prepared.
    fn admit(&self, command: &Command) -> Result<(), ErrorReply> {
        command.authorize(self.access)?;
        if self.block == TxnStatus::Failed && !matches!(command, Command::End(_) | Command::Empty) {
            return Err(refusals::in_failed_transaction());
        }
        Ok(())
    }

    /// Does what the command does besides its rows, and says that it is complete.
    async fn finish(&mut self, command: &Command, out: &mut BytesMut) -> Result<(), ErrorReply> {
        let tag = match command {
            Command::Empty => {
                backend::write_empty_query(out);
                return Ok(());
            }
            Command::Show(_) | Command::ShowSetting(..) | Command::Route(_) => "SHOW",
            Command::Help => {
                refusals::console_usage(show::help()).encode(out);
                "SHOW"
            }
            Command::Reload => {
                let said = self.source.reload().await.map_err(refusals::reload_failed)?;
                if !said.is_empty() {
                    refusals::reload_said(said).encode(out);
                }
                "RELOAD"
            }
            Command::Set => {
                refusals::set_ignored().encode(out);
                "SET"
            }
            Command::Begin => {
                self.block = TxnStatus::Open;
                "BEGIN"
            }
            Command::End(tag) => {
                let was = std::mem::replace(&mut self.block, TxnStatus::Idle);
                if was == TxnStatus::Failed { "ROLLBACK" } else { tag }
            }
        };
        backend::write_command_complete(out, tag);
        Ok(())
    }

    fn parse(
        &mut self,
        parse: &Parse<'_>,
        out: &mut BytesMut,
    ) -> Result<Result<(), ErrorReply>, wire::Error> {
        let command = match self.command(parse.sql) {
            Ok(command) => command,
            Err(error) => return Ok(Err(error)),
        };
        if !parse.name.is_empty() && self.statements.contains_key(parse.name) {
            return Ok(Err(refusals::console_duplicate_statement()));
        }
        if self.statements.len() >= NAMES_MAX {
            return Ok(Err(refusals::console_has_too_many("prepared statements")));
        }
        self.statements.insert(Bytes::copy_from_slice(parse.name), command);
        backend::write_parse_complete(out);
        Ok(Ok(()))
    }

    fn bind(
        &mut self,
        bind: &Bind<'_>,
        out: &mut BytesMut,
    ) -> Result<Result<(), ErrorReply>, wire::Error> {
        let Some(command) = self.statements.get(bind.statement).cloned() else {
            return Ok(Err(refusals::console_no_statement()));
        };
        if bind.param_count() > 0 {
            return Ok(Err(refusals::console_takes_no("parameters")));
        }
        if self.portals.len() >= NAMES_MAX {
            return Ok(Err(refusals::console_has_too_many("portals")));
        }
        let columns = show::table(&command, &*self.source).map(|table| table.columns);
        let columns = columns.unwrap_or_default();
        let formats: Vec<i16> = bind.result_formats().collect();
        if !matches!(formats.len(), 0 | 1) && formats.len() != columns.len() {
            return Ok(Err(refusals::console_bad_formats()));
        }
        if let Some(format) = formats.iter().find(|format| !matches!(format, 0 | 1)) {
            return Ok(Err(refusals::bad_format_code(*format)));
        }
        let portal = Portal { command, formats, rest: None, columns };
        self.portals.insert(Bytes::copy_from_slice(bind.portal), portal);
        backend::write_bind_complete(out);
        Ok(Ok(()))
    }

    fn describe(
        &mut self,
        named: &Named<'_>,
        out: &mut BytesMut,
    ) -> Result<Result<(), ErrorReply>, wire::Error> {
        let (columns, formats) = match named.kind {
            Kind::Statement => {
                let Some(command) = self.statements.get(named.name) else {
                    return Ok(Err(refusals::console_no_statement()));
                };
                backend::write_parameter_description(out, &[]);
                let table = show::table(command, &*self.source);
                (table.map(|table| table.columns).unwrap_or_default(), Vec::new())
            }
            Kind::Portal => match self.portals.get(named.name) {
                Some(portal) => (portal.columns.clone(), portal.formats.clone()),
                None => return Ok(Err(refusals::console_no_portal())),
            },
        };
        if columns.is_empty() {
            backend::write_no_data(out);
        } else {
            describe_rows(out, &columns, &formats);
        }
        Ok(Ok(()))
    }

    async fn execute(
        &mut self,
        execute: &Execute<'_>,
        out: &mut BytesMut,
    ) -> Result<(), ErrorReply> {
        let portal = self.portals.get(execute.portal).ok_or_else(refusals::console_no_portal)?;
        let command = portal.command.clone();
        self.admit(&command)?;
        let source = self.source.clone();
        let portal =
            self.portals.get_mut(execute.portal).ok_or_else(refusals::console_no_portal)?;
        if !portal.columns.is_empty() {
            let rest = portal.rest.get_or_insert_with(|| {
                let table: Option<Table> = show::table(&command, &*source);
                table.map(|table| table.rows).unwrap_or_default().into_iter()
            });
            let limit = usize::try_from(execute.max_rows).ok().filter(|rows| *rows > 0);
            for row in rest.by_ref().take(limit.unwrap_or(usize::MAX)) {
                send_row(out, &portal.columns, &row, &portal.formats);
            }
            if limit.is_some() && rest.len() > 0 {
                out.put_slice(&[backend::tag::PORTAL_SUSPENDED, 0, 0, 0, 4]);
                return Ok(());
            }
        }
        self.finish(&command, out).await
    }
}

/// The format of a column: none said, one for all, or one for each.
fn format_of(formats: &[i16], index: usize) -> i16 {
    match formats {
        [] => 0,
        [all] => *all,
        each => each.get(index).copied().unwrap_or(0),
    }
}

/// RowDescription. The builder of `wire` says text format; a client that asked for binary looks.
fn describe_rows(out: &mut BytesMut, columns: &[Column], formats: &[i16]) {
    let pairs: Vec<(&str, u32)> = columns.iter().map(|column| (column.name, column.oid)).collect();
    let start = out.len();
    backend::write_row_description(out, &pairs);
    let mut at = start + wire::HEADER_BYTES + 2;
    for (index, column) in columns.iter().enumerate() {
        at += column.name.len() + 1 + 4 + 2 + 4 + 2 + 4;
        (&mut out[at..at + 2]).put_i16(format_of(formats, index));
        at += 2;
    }
}

/// DataRow; numbers in binary where asked. A number that doesn't fit its column goes as NULL.
fn send_row(out: &mut BytesMut, columns: &[Column], row: &[Option<String>], formats: &[i16]) {
    if formats.iter().all(|format| *format == 0) {
        backend::write_data_row(out, row.iter().map(Option::as_deref));
        return;
    }
    let mut body = BytesMut::new();
    body.put_i16(row.len() as i16);
    for (index, (column, value)) in columns.iter().zip(row).enumerate() {
        let is_binary = format_of(formats, index) == 1;
        let value: Option<Vec<u8>> = value.as_ref().and_then(|text| match column.oid {
            INT4 if is_binary => text.parse::<i32>().ok().map(|n| n.to_be_bytes().to_vec()),
            INT8 if is_binary => text.parse::<i64>().ok().map(|n| n.to_be_bytes().to_vec()),
            _ => Some(text.clone().into_bytes()),
        });
        match value {
            Some(bytes) => {
                body.put_i32(bytes.len() as i32);
                body.put_slice(&bytes);
            }
            None => body.put_i32(-1),
        }
    }
    out.put_u8(backend::tag::DATA_ROW);
    out.put_i32(body.len() as i32 + 4);
    out.put(body.chunk());
}
