//! Replies that a server still owes, in order.
//!
//! Each message we send that will be answered pushes one [`Owed`]; each reply settles the front
//! one. Injected Parse and BEGIN, answers of pgward's own amid a batch and refusals made real
//! differ only in what happens to the reply, so nothing else in pgward counts messages. Owned by
//! `ServerConn`; never sees a socket. Manual: "Extended Query", "Pipelining".
//!
//! ```text
//!   send ──▶ [ Parse·Swallow | Bind·Forward | Synthesize | Execute·Forward | Sync·Forward ] ──▶ reply
//!            back                                                             front
//! ```
//! An ErrorResponse in the extended protocol settles its own message and all behind it up to the
//! next Sync, because the server skips them (and so the synthesized answers among them).

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use super::StatementId;
use crate::wire::TxnStatus;
use crate::wire::backend::ErrorReply;

/// Which message was sent, as far as its reply differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// Answered by ParseComplete.
    Parse,
    /// Answered by BindComplete.
    Bind,
    /// Answered by RowDescription or NoData, for a statement behind ParameterDescription.
    Describe,
    /// As Describe, of this shared statement: its answer is remembered.
    DescribeShared(StatementId),
    /// Answered up to CommandComplete, EmptyQueryResponse or PortalSuspended.
    Execute,
    /// Answered by CloseComplete.
    Close,
    /// As Close, of a client's statement; a DEALLOCATE that is answered here counts as one.
    CloseStatement,
    /// Answered by ReadyForQuery.
    Sync,
    /// Answered up to ReadyForQuery.
    Query,
    /// Answered by FunctionCallResponse and ReadyForQuery.
    FunctionCall,
}

/// What happens to the reply.
#[derive(Debug)]
pub enum Expect {
    /// The client gets it.
    Forward,
    /// Nobody gets it; an error is still the client's.
    Swallow,
    /// Nothing was sent: these bytes are the answer when their turn comes.
    Synthesize(Bytes),
    /// A message that cannot succeed was sent; this refusal takes the place of its error.
    Refuse(Box<ErrorReply>),
}

/// One reply owed.
#[derive(Debug)]
pub struct Owed {
    /// The message that it answers.
    pub message: Message,
    /// What happens to it.
    pub expect: Expect,
}

/// Replies owed; see the module.
#[derive(Debug, Default)]
pub struct Pipeline {
    owed: VecDeque<Owed>,
    copy: Copy,
    status: TxnStatus,
    name_changes: usize,
    /// Messages of the extended protocol went out since the last ReadyForQuery: the server is in
    /// a transaction that the next Sync would commit, whatever its last status was.
    is_unsynced: bool,
}

/// COPY in progress on this server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Copy {
    /// None.
    #[default]
    None,
    /// The server reads CopyData.
    In,
    /// The server sends CopyData.
    Out,
}

/// What to do with one reply frame.
#[derive(Debug, PartialEq)]
pub enum Verdict {
    /// Send it on.
    Forward,
    /// Drop it.
    Swallow,
    /// Send this refusal in its place.
    Replace(Box<ErrorReply>),
}

/// What one reply settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// Nothing yet.
    Nothing,
    /// That message.
    One(Message),
    /// An error: its message and those behind it, up to Sync.
    Failed(Message),
    /// A message outside any request (notice, notification, parameter).
    Async,
}

/// The server is out of step with us; it must be discarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("server sent '{}' where it owed something else", *.0 as char)]
pub struct Desync(pub u8);

impl Pipeline {
    /// A message was put into the server's buffer.
    pub fn push(&mut self, message: Message, expect: Expect) {
        self.is_unsynced |= !is_ready_owner(message) && !matches!(expect, Expect::Synthesize(_));
        self.owed.push_back(Owed { message, expect });
    }

    /// A batch is open on the server: its Sync has not been answered.
    pub fn is_unsynced(&self) -> bool {
        self.is_unsynced
    }

    /// Nothing is owed.
    pub fn is_empty(&self) -> bool {
        self.owed.is_empty()
    }

    /// Replies owed.
    pub fn len(&self) -> usize {
        self.owed.len()
    }

    /// ReadyForQuery replies owed.
    pub fn has_sync(&self) -> bool {
        self.owed.iter().any(|owed| is_ready_owner(owed.message))
    }

    /// As the last ReadyForQuery said.
    pub fn status(&self) -> TxnStatus {
        self.status
    }

    /// COPY in progress.
    pub fn copy(&self) -> Copy {
        self.copy
    }

    /// The COPY is of an Execute: the server keeps its end to itself until a Sync or Flush comes.
    pub fn is_copy_executed(&self) -> bool {
        self.owed.front().is_some_and(|owed| owed.message == Message::Execute)
    }

    /// The front reply that the server owes.
    pub fn front(&self) -> Option<&Owed> {
        self.owed.front()
    }

    /// What is owed next will be an error, and `reply` takes its place.
    pub fn refuse_front(&mut self, reply: ErrorReply) {
        if let Some(owed) = self.owed.front_mut() {
            owed.expect = Expect::Refuse(Box::new(reply));
        }
    }

    /// Moves synthesized answers whose turn has come into `out`.
    pub fn synthesize_into(&mut self, out: &mut BytesMut) {
        while let Some(Owed { expect: Expect::Synthesize(bytes), message }) = self.owed.front() {
            out.extend_from_slice(bytes);
            self.name_changes += usize::from(changes_names(*message));
            self.owed.pop_front();
        }
    }

    /// Parse and CloseStatement messages of the client that were answered well since
    /// [`Self::forget_name_changes`].
    pub fn name_changes(&self) -> usize {
        self.name_changes
    }

    /// They are counted from here on.
    pub fn forget_name_changes(&mut self) {
        self.name_changes = 0;
    }

    /// Drops what stands before the next Sync, as the server does after an error, and answers
    /// whether a Sync, Query or FunctionCall was among what is left.
    fn skip_to_sync(&mut self) {
        while self.owed.front().is_some_and(|owed| owed.message != Message::Sync) {
            self.owed.pop_front();
        }
    }

    /// The server sent a message with `tag`; `status` is the first body byte of ReadyForQuery.
    /// `Err`: out of step, discard the server.
    pub fn on_reply(&mut self, tag: u8, status: u8) -> Result<(Verdict, Settled), Desync> {
        if matches!(tag, b'N' | b'A' | b'S') {
            return Ok((self.front_verdict_for_async(tag), Settled::Async));
        }
        let desync = Desync(tag);
        let message = self.owed.front().ok_or(desync)?.message;
        let runs = matches!(message, Message::Execute | Message::Query);
        match (tag, message) {
            (b'E', _) => Ok(self.on_error(message)),
            (b'1', Message::Parse)
            | (b'2', Message::Bind)
            | (b'3', Message::Close | Message::CloseStatement) => self.settle(message),
            (b't', Message::Describe | Message::DescribeShared(_)) => {
                Ok((self.verdict(), Settled::Nothing))
            }
            (b'T' | b'n', Message::Describe | Message::DescribeShared(_)) => self.settle(message),
            (b'T' | b'D', _) if runs => Ok((self.verdict(), Settled::Nothing)),
            (b'd' | b'c', _) if runs => Ok((self.verdict(), Settled::Nothing)),
            (b'G', _) if runs => {
                self.copy = Copy::In;
                let verdict = self.verdict();
                if message == Message::Execute {
                    // In COPY IN the server reads over a Sync that was sent ahead of the data
                    // (manual: "COPY Operations"): it will not be answered.
                    self.owed.truncate(1);
                }
                Ok((verdict, Settled::Nothing))
            }
            (b'H', _) if runs => {
                self.copy = Copy::Out;
                Ok((self.verdict(), Settled::Nothing))
            }
            (b'C' | b'I' | b's', Message::Execute) => {
                self.copy = Copy::None;
                self.settle(message)
            }
            (b'C' | b'I', Message::Query) => {
                self.copy = Copy::None;
                Ok((self.verdict(), Settled::One(Message::Execute)))
            }
            (b'V', Message::FunctionCall) => Ok((self.verdict(), Settled::Nothing)),
            (b'Z', _) if is_ready_owner(message) => {
                self.status = TxnStatus::from_byte(status).ok_or(desync)?;
                self.copy = Copy::None;
                // Messages behind the Sync, if any, begin a batch of their own.
                self.is_unsynced = self.owed.iter().skip(1).any(|owed| {
                    !is_ready_owner(owed.message) && !matches!(owed.expect, Expect::Synthesize(_))
                });
                self.settle(message)
            }
            _ => Err(desync),
        }
    }

    fn on_error(&mut self, message: Message) -> (Verdict, Settled) {
        self.copy = Copy::None;
        let is_refusal = matches!(self.owed.front(), Some(Owed { expect: Expect::Refuse(_), .. }));
        let verdict = if is_refusal {
            // A Query still owes its ReadyForQuery.
            if is_ready_owner(message) {
                self.owed.push_front(Owed { message, expect: Expect::Forward });
                self.owed.swap(0, 1);
            }
            match self.owed.pop_front() {
                Some(Owed { expect: Expect::Refuse(reply), .. }) => Verdict::Replace(reply),
                _ => Verdict::Forward,
            }
        } else {
            Verdict::Forward
        };
        if !is_ready_owner(message) {
            self.skip_to_sync();
        }
        (verdict, Settled::Failed(message))
    }

    fn verdict(&self) -> Verdict {
        match self.owed.front().map(|owed| &owed.expect) {
            Some(Expect::Swallow) => Verdict::Swallow,
            _ => Verdict::Forward,
        }
    }

    /// A notice or parameter of a message whose reply nobody gets is nobody's either.
    fn front_verdict_for_async(&self, tag: u8) -> Verdict {
        if tag == b'A' { Verdict::Forward } else { self.verdict() }
    }

    fn settle(&mut self, message: Message) -> Result<(Verdict, Settled), Desync> {
        let verdict = self.verdict();
        self.name_changes += usize::from(changes_names(message) && verdict == Verdict::Forward);
        self.owed.pop_front();
        Ok((verdict, Settled::One(message)))
    }
}

/// It changes what a client's names for statements mean.
fn changes_names(message: Message) -> bool {
    matches!(message, Message::Parse | Message::CloseStatement)
}

fn is_ready_owner(message: Message) -> bool {
    matches!(message, Message::Sync | Message::Query | Message::FunctionCall)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pipeline(messages: &[(Message, bool)]) -> Pipeline {
        let mut pipeline = Pipeline::default();
        for (message, swallow) in messages {
            let expect = if *swallow { Expect::Swallow } else { Expect::Forward };
            pipeline.push(*message, expect);
        }
        pipeline
    }

    fn feed(pipeline: &mut Pipeline, replies: &[u8]) -> String {
        let mut out = String::new();
        for tag in replies {
            match pipeline.on_reply(*tag, b'I') {
                Ok((Verdict::Forward, _)) => out.push(*tag as char),
                Ok((Verdict::Swallow, _)) => out.push('.'),
                Ok((Verdict::Replace(_), _)) => out.push('!'),
                Err(_) => return out + "desync",
            }
            let mut synthesized = BytesMut::new();
            pipeline.synthesize_into(&mut synthesized);
            out.push_str(std::str::from_utf8(&synthesized).unwrap());
        }
        out
    }

    #[test]
    fn replies_settle_in_order() {
        use Message::*;
        for (sent, replies, want) in [
            (&[(Query, false)][..], &b"TDDCZ"[..], "TDDCZ"),
            (&[(Query, false)], b"TDCTDCEZ", "TDCTDCEZ"),
            (&[(Query, false)], b"NIZ", "NIZ"),
            (&[(Parse, true), (Bind, false), (Execute, false), (Sync, false)], b"12DCZ", ".2DCZ"),
            (&[(Parse, false), (Describe, false), (Sync, false)], b"1tTZ", "1tTZ"),
            (&[(Parse, true), (Bind, false), (Sync, false)], b"EZ", "EZ"),
            (&[(Parse, true), (Query, false), (Sync, true)], b"EZ", "E."),
            (&[(Execute, false), (Sync, false), (Bind, false), (Sync, false)], b"EZ2Z", "EZ2Z"),
            (&[(Parse, true)], b"SN1", "..."),
            (&[(Query, false)], b"1", "desync"),
            (&[(Sync, false)], b"D", "desync"),
            (&[(Bind, false)], b"Z", "desync"),
            (&[], b"Z", "desync"),
            (&[], b"E", "desync"),
        ] {
            assert_eq!(feed(&mut pipeline(sent), replies), want, "{sent:?} {replies:?}");
        }
    }

    #[test]
    fn a_synthesized_answer_waits_for_its_turn_and_dies_with_its_batch() {
        let sent = |pipeline: &mut Pipeline| {
            pipeline.push(Message::Bind, Expect::Forward);
            pipeline.push(Message::Parse, Expect::Synthesize(Bytes::from_static(b"<1>")));
            pipeline.push(Message::Execute, Expect::Forward);
            pipeline.push(Message::Sync, Expect::Forward);
        };
        let mut good = Pipeline::default();
        sent(&mut good);
        assert_eq!(feed(&mut good, b"2CZ"), "2<1>CZ");
        let mut bad = Pipeline::default();
        sent(&mut bad);
        assert_eq!(feed(&mut bad, b"EZ"), "EZ");
        assert!(bad.is_empty());
    }

    #[test]
    fn a_refusal_takes_the_place_of_the_error_that_makes_it_real() {
        let mut pipeline = Pipeline::default();
        let reply = ErrorReply::error("PW001", "no key");
        pipeline.push(Message::Parse, Expect::Refuse(Box::new(reply)));
        pipeline.push(Message::Sync, Expect::Forward);
        assert_eq!(feed(&mut pipeline, b"EZ"), "!Z");
    }

    #[test]
    fn a_refused_query_still_ends() {
        let mut pipeline = pipeline(&[(Message::Query, false), (Message::Sync, false)]);
        assert_eq!(feed(&mut pipeline, b"G"), "G");
        pipeline.refuse_front(ErrorReply::error("PW003", "a row"));
        assert_eq!(feed(&mut pipeline, b"EZZ"), "!ZZ");
        assert!(pipeline.is_empty());
    }

    #[test]
    fn a_batch_without_its_sync_is_no_clean_state() {
        let mut pipeline = pipeline(&[(Message::Bind, false), (Message::Execute, false)]);
        assert_eq!(feed(&mut pipeline, b"2C"), "2C");
        assert!(pipeline.is_empty() && pipeline.is_unsynced());
        pipeline.push(Message::Sync, Expect::Forward);
        assert_eq!(feed(&mut pipeline, b"Z"), "Z");
        assert!(!pipeline.is_unsynced());
    }

    #[test]
    fn status_is_what_ready_for_query_says() {
        let mut pipeline = pipeline(&[(Message::Query, false)]);
        pipeline.on_reply(b'Z', b'T').unwrap();
        assert_eq!(pipeline.status(), TxnStatus::Open);
        pipeline.push(Message::Sync, Expect::Forward);
        assert_eq!(pipeline.on_reply(b'Z', b'?'), Err(Desync(b'Z')));
    }
}
