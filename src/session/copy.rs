//! COPY FROM STDIN into a sharded table: each row must be of the one hospital that the COPY is for.
//!
//! Rows go to the server as they come, because it keeps none before CopyDone; a row of another
//! hospital, or one that can't be read, has the COPY fail instead. Called by `relay`.

use super::relay::Running;
use super::{End, OUTPUT_BYTES_MAX, Session, violation};
use crate::route::refusals;
use crate::server::{Copy, ServerConn};
use crate::shard_map::HospitalId;
use crate::sql::CopyCheck;
use crate::wire;
use crate::wire::backend::ErrorReply;
use crate::wire::copy::{Fault, Format, Rows};
use crate::wire::frontend::{self, tag};

/// What the server is told; the client gets pgward's own words.
const REASON: &[u8] = b"refused by pgward";

/// Looks at the rows of one COPY.
#[derive(Debug)]
pub(super) struct Watch {
    rows: Rows,
    is_binary: bool,
    hospital: HospitalId,
}

impl Watch {
    /// All rows must be of `hospital`.
    pub fn new(check: CopyCheck, hospital: HospitalId) -> Self {
        let CopyCheck { format, is_header, column, count } = check;
        let is_binary = format == Format::Binary;
        Self { rows: Rows::new(format, is_header, column, count), is_binary, hospital }
    }

    /// The next bytes of the data.
    pub fn on_data(&mut self, bytes: &[u8]) -> Result<(), ErrorReply> {
        let (hospital, is_binary) = (self.hospital, self.is_binary);
        self.rows.feed(bytes, |key| is_of(key, hospital, is_binary)).map_err(refusal)
    }

    /// The client says that the data is whole.
    pub fn on_done(&mut self) -> Result<(), ErrorReply> {
        let (hospital, is_binary) = (self.hospital, self.is_binary);
        self.rows.finish(|key| is_of(key, hospital, is_binary)).map_err(refusal)
    }
}

impl Session {
    /// COPY FROM STDIN: hands the client's data on as it comes, without waiting for whole frames.
    /// Answers whether there was any.
    pub(super) fn feed_copy(
        &mut self,
        server: &mut ServerConn,
        running: &mut Running,
    ) -> Result<bool, End> {
        let mut is_progress = false;
        while server.output_len() < OUTPUT_BYTES_MAX && server.pipeline().copy() == Copy::In {
            let is_fed = match running.copy_left {
                0 if running.is_copy_refused => false,
                0 => self.feed_message(server, running)?,
                _ => self.feed_data(server, running),
            };
            if !is_fed {
                break;
            }
            is_progress = true;
        }
        Ok(is_progress)
    }

    /// The next bytes of the CopyData under way, or of a CopyFail; `false`: there are none yet.
    fn feed_data(&mut self, server: &mut ServerConn, running: &mut Running) -> bool {
        let input = self.input.as_slice();
        let n = running.copy_left.min(input.len());
        if n == 0 {
            return false;
        }
        server.send_bytes(&input[..n]);
        running.copy_left -= n;
        let looked = running.watch.as_mut().map_or(Ok(()), |of| of.on_data(&input[..n]));
        self.input.advance(n);
        match looked {
            Err(refusal) => refuse(server, running, refusal),
            Ok(()) if running.is_copy_refused && running.copy_left == 0 => send_fail(server),
            Ok(()) => {}
        }
        true
    }

    /// The client's next message, of CopyData its head; `false`: nothing can be done with it yet.
    fn feed_message(
        &mut self,
        server: &mut ServerConn,
        running: &mut Running,
    ) -> Result<bool, End> {
        let input = self.input.as_slice();
        let header = match wire::header(input, 1 << 30) {
            Ok(Some(header)) => header,
            Ok(None) => return Ok(false),
            Err(error) => return Err(End::Fatal(violation(&error))),
        };
        match header.tag {
            tag::COPY_DATA => {
                server.send_bytes(&input[..wire::HEADER_BYTES]);
                running.copy_left = header.total - wire::HEADER_BYTES;
                self.input.advance(wire::HEADER_BYTES);
            }
            tag::COPY_FAIL => {
                running.watch = None;
                running.copy_left = header.total;
                running.is_copy_ended = true;
            }
            tag::COPY_DONE if header.total == wire::HEADER_BYTES => {
                match running.watch.take().map(|mut watch| watch.on_done()) {
                    Some(Err(refusal)) => refuse(server, running, refusal),
                    _ => server.send_bytes(&input[..header.total]),
                }
                if server.pipeline().is_copy_executed() {
                    // The client's Sync goes out behind the answer, which would wait for it.
                    server.send_bytes(&[tag::FLUSH, 0, 0, 0, 4]);
                }
                self.input.advance(header.total);
                running.is_copy_ended = true;
            }
            // The server reads over these in COPY IN, and they are not answered.
            tag::FLUSH | tag::SYNC if !running.is_copy_ended && input.len() >= header.total => {
                self.input.advance(header.total);
            }
            tag::TERMINATE => return Err(End::Client),
            // Its answer, or the end of the data, is still on its way.
            _ if running.is_copy_ended => return Ok(false),
            tag => return Err(End::Fatal(violation(&wire::Error::UnknownTag { tag }))),
        }
        Ok(true)
    }
}

fn is_of(key: &[u8], hospital: HospitalId, is_binary: bool) -> bool {
    let found = match is_binary {
        true => HospitalId::from_binary(key),
        false => std::str::from_utf8(key).ok().and_then(HospitalId::parse),
    };
    found == Some(hospital)
}

fn refusal(fault: Fault) -> ErrorReply {
    match fault {
        Fault::Unreadable => refusals::unreadable_row(),
        Fault::Unwanted => refusals::foreign_row(),
    }
}

/// Has the COPY under way fail with `reply`. What is left of the CopyData at hand must be sent first.
pub(super) fn refuse(server: &mut ServerConn, running: &mut Running, reply: ErrorReply) {
    server.refuse_copy(reply);
    running.watch = None;
    running.is_copy_refused = true;
    if running.copy_left == 0 {
        send_fail(server);
    }
}

/// Ends the COPY on the server.
pub(super) fn send_fail(server: &mut ServerConn) {
    let mut fail = bytes::BytesMut::new();
    frontend::write_copy_fail(&mut fail, REASON);
    server.send_bytes(&fail);
}
