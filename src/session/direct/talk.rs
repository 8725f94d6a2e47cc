//! Who is at it in a session whose bytes pass unread: told by the headers of its messages.

use crate::wire::{HEADER_BYTES, TxnStatus};

/// What a session is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Its client has asked for nothing, outside a transaction.
    Idle,
    /// As before, in a transaction.
    IdleInBlock,
    /// An answer is owed.
    Running,
    /// A replication stream, which has no end of its own.
    Streaming,
}

/// The talk of a client and its server.
#[derive(Debug)]
pub(super) struct Talk {
    client: Frames,
    server: Frames,
    /// Requests that are owed a ReadyForQuery.
    asked: usize,
    /// The last of them was a Sync.
    is_extended: bool,
    /// Messages have come whose Sync has not.
    is_begun: bool,
    /// The server takes CopyData.
    is_copy_in: bool,
    is_streaming: bool,
    status: TxnStatus,
    /// ReadyForQuery so far.
    turns: u64,
}

impl Talk {
    /// The server is ready for its first request.
    pub(super) fn new() -> Self {
        Self {
            client: Frames::default(),
            server: Frames::default(),
            asked: 0,
            is_extended: false,
            is_begun: false,
            is_copy_in: false,
            is_streaming: false,
            status: TxnStatus::Idle,
            turns: 0,
        }
    }

    /// The client has sent these.
    pub(super) fn on_client(&mut self, bytes: &[u8]) {
        let mut frames = self.client;
        frames.follow(bytes, |tag, _| self.on_request(tag));
        self.client = frames;
    }

    fn on_request(&mut self, tag: u8) {
        match tag {
            b'Q' | b'F' => {
                self.asked += 1;
                self.is_extended = false;
            }
            // During COPY FROM a server reads over Sync and Flush.
            b'S' if self.is_copy_in => {}
            b'S' => {
                self.asked += 1;
                self.is_extended = true;
                self.is_begun = false;
            }
            b'P' | b'B' | b'D' | b'E' | b'C' => self.is_begun = true,
            b'c' | b'f' => self.is_copy_in = false,
            _ => {}
        }
    }

    /// The server has sent these.
    pub(super) fn on_server(&mut self, bytes: &[u8]) {
        let mut frames = self.server;
        frames.follow(bytes, |tag, first| self.on_reply(tag, first));
        self.server = frames;
    }

    fn on_reply(&mut self, tag: u8, first: u8) {
        match tag {
            b'Z' => {
                self.asked = self.asked.saturating_sub(1);
                self.status = TxnStatus::from_byte(first).unwrap_or(TxnStatus::Idle);
                self.turns += 1;
                (self.is_copy_in, self.is_streaming) = (false, false);
            }
            b'G' => {
                self.is_copy_in = true;
                // The Sync behind its Execute, which libpq sends, is read over.
                if self.is_extended {
                    self.asked = 0;
                    self.is_begun = true;
                }
            }
            b'W' => self.is_streaming = true,
            b'E' | b'C' => (self.is_copy_in, self.is_streaming) = (false, false),
            // At the end of a timeline.
            b'c' => self.is_streaming = false,
            _ => {}
        }
    }

    /// What goes on now.
    pub(super) fn phase(&self) -> Phase {
        match self.status {
            _ if self.is_streaming => Phase::Streaming,
            _ if self.asked > 0 || self.is_begun || self.is_copy_in => Phase::Running,
            TxnStatus::Idle => Phase::Idle,
            _ => Phase::IdleInBlock,
        }
    }

    /// Requests answered.
    pub(super) fn turns(&self) -> u64 {
        self.turns
    }

    /// The client's data is waited for, and none of it is half here.
    pub(super) fn may_fail_copy(&self) -> bool {
        self.is_copy_in && self.client.unfinished() == 0
    }

    /// Bytes of the server's that the message needs of which a part has come; 0: none is.
    pub(super) fn unfinished(&self) -> usize {
        self.server.unfinished()
    }
}

/// Bytes of the header and the first one of the body.
const PEEKED_BYTES: usize = HEADER_BYTES + 1;

/// Follows the messages of one direction through whatever pieces they come in.
#[derive(Debug, Clone, Copy, Default)]
struct Frames {
    peeked: [u8; PEEKED_BYTES],
    /// How many of those are there.
    count: usize,
    /// Bytes of the message under way that are still to come, once its header is known.
    left: usize,
}

impl Frames {
    /// Tells the tag and the first byte of the body (0 where it is empty) of each message that ends
    /// in `bytes`. A length that is none is taken for 4: the other side will complain.
    fn follow(&mut self, mut bytes: &[u8], mut on_end: impl FnMut(u8, u8)) {
        while let Some((first, rest)) = bytes.split_first() {
            if self.count < HEADER_BYTES {
                self.peeked[self.count] = *first;
                self.count += 1;
                bytes = rest;
                if self.count == HEADER_BYTES {
                    let length =
                        self.peeked[1..HEADER_BYTES].try_into().map_or(0, u32::from_be_bytes);
                    self.left = (length as usize).saturating_sub(4);
                    self.peeked[HEADER_BYTES] = 0;
                }
            } else {
                if self.count == HEADER_BYTES {
                    self.peeked[HEADER_BYTES] = *first;
                    self.count += 1;
                }
                let passed = self.left.min(bytes.len());
                self.left -= passed;
                bytes = &bytes[passed..];
            }
            if self.count >= HEADER_BYTES && self.left == 0 {
                self.count = 0;
                on_end(self.peeked[0], self.peeked[HEADER_BYTES]);
            }
        }
    }

    fn unfinished(&self) -> usize {
        match self.count {
            0 => 0,
            count if count < HEADER_BYTES => HEADER_BYTES - count,
            _ => self.left,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Messages by tag: of the client in lower-case words of this test, `Z` with its status.
    fn play(talk: &mut Talk, script: &str) {
        for word in script.split_whitespace() {
            let (side, message) = word.split_at(1);
            let (tag, body) = message.split_at(1);
            let mut bytes = tag.as_bytes().to_vec();
            bytes.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
            bytes.extend_from_slice(body.as_bytes());
            // Byte by byte, as the worst network would have it.
            for byte in &bytes {
                match side {
                    ">" => talk.on_client(std::slice::from_ref(byte)),
                    _ => talk.on_server(std::slice::from_ref(byte)),
                }
            }
        }
    }

    #[test]
    fn who_is_at_it_is_known_after_each_message() {
        use Phase::*;
        for (script, want) in [
            ("", Idle),
            (">Qselect <Trow", Running),
            (">Qselect <Trow <Drow <CSELECT <ZI", Idle),
            (">Qbegin <CBEGIN <ZT", IdleInBlock),
            (">Qbegin <ZT >Qx <Eerror <ZE", IdleInBlock),
            (">Qa >Qb <ZI", Running),
            (">Qa >Qb <ZI <ZI", Idle),
            (">Ps >Bp >Ex", Running),
            (">Ps >H <1", Running),
            (">Ps >Bp >Ex >S <1 <2 <C", Running),
            (">Ps >Bp >Ex >S <1 <2 <C <ZI", Idle),
            // COPY FROM by a Query: the client's turn is a request still.
            (">Qcopy <Gt", Running),
            (">Qcopy <Gt >drow >S >c", Running),
            (">Qcopy <Gt >drow >S >c <CCOPY <ZI", Idle),
            (">Qcopy <Gt >drow <Eerror <ZI >drow >c", Idle),
            // Of libpq's two Syncs the server reads over the first.
            (">Ps >Bp >Ex >S <1 <2 <Gt", Running),
            (">Ps >Bp >Ex >S <1 <2 <Gt >drow >c >S <CCOPY <ZI", Idle),
            (">Ps >Bp >Ex >S <1 <2 <Gt >drow <Eerror >c >S <ZT", IdleInBlock),
            (">Qcopy <Ht <drow <drow", Running),
            (">Qcopy <Ht <drow <c <CCOPY <ZI", Idle),
            (">QSTART_REPLICATION <W <dk >dr <dk", Streaming),
            (">QSTART_REPLICATION <W <dk >c <c", Running),
            (">QSTART_REPLICATION <W <dk >c <c <CCOPY <ZI", Idle),
            (">QSTART_REPLICATION <W <dk <Ecancelled <ZI", Idle),
            // More answers than questions: nothing is owed.
            ("<ZI >Qa <ZI", Idle),
        ] {
            let mut talk = Talk::new();
            play(&mut talk, script);
            assert_eq!(talk.phase(), want, "{script}");
        }
    }

    #[test]
    fn a_message_ends_where_its_length_says() {
        let mut talk = Talk::new();
        talk.on_server(b"D\0\0");
        assert_eq!(talk.unfinished(), 2);
        talk.on_server(b"\0\x0a");
        assert_eq!(talk.unfinished(), 6);
        talk.on_server(b"Z\0\0\0\x05T");
        assert_eq!((talk.unfinished(), talk.turns()), (0, 0), "a body that looks like one");
        talk.on_server(b"Z\0\0\0\x05TZ\0\0\0\x05I");
        assert_eq!((talk.unfinished(), talk.turns()), (0, 2));
        // No length at all must not stop it.
        talk.on_server(b"D\0\0\0\0");
        assert_eq!(talk.unfinished(), 0);
        talk.on_client(b"Q\xff\xff\xff\xff");
        assert_eq!(talk.phase(), Phase::Idle);
    }
}
