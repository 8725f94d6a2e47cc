//! COPY FROM STDIN into a sharded table: each row must be of the one hospital that the COPY is for.
//!
//! Rows go to the server as they come, because it keeps none before CopyDone; a row of another
//! hospital, or one that can't be read, has the COPY fail instead. Called by `relay`.

use super::relay::Running;
use crate::route::refusals;
use crate::server::ServerConn;
use crate::shard_map::HospitalId;
use crate::sql::CopyCheck;
use crate::wire::backend::ErrorReply;
use crate::wire::copy::{Fault, Format, Rows};
use crate::wire::frontend;

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
