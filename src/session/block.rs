//! The client's transaction block while no server holds it.
//!
//! BEGIN costs nothing until the shard is known: it is answered at once, what may stand before
//! the first real statement (SAVEPOINT, SET LOCAL, ...) is answered and queued, and all of it goes
//! out with the first statement that needs a server. A refusal in between fails the block here, as
//! Postgres would. Once a server holds the block, its own status rules. Pure.

use crate::route::{self, refusals};
use crate::sql::{Isolation, Transaction, TransactionModes};
use crate::wire::TxnStatus;
use crate::wire::backend::ErrorReply;

/// Statements that may be queued before a server is needed.
const QUEUE_MAX: usize = 1_000;

/// The block; see the module.
#[derive(Debug, Default)]
pub enum Block {
    /// None.
    #[default]
    None,
    /// Begun for the client only.
    Pending(Pending),
    /// A server holds it.
    Server(TransactionModes),
    /// Failed; the queue is what ROLLBACK TO may go back to, `None` where a server was lost.
    Failed(Option<Pending>),
}

/// What goes out with the first statement.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Pending {
    /// The client's own BEGIN, as sent.
    pub begin: Box<[u8]>,
    modes: TransactionModes,
    queue: Vec<Box<[u8]>>,
    savepoints: Vec<(String, usize)>,
}

/// How a transaction statement was answered.
#[derive(Debug, PartialEq)]
pub enum Answer {
    /// With this command tag.
    Tag(&'static str),
    /// With this tag, behind a warning.
    Warned(ErrorReply, &'static str),
    /// With this error; the block has failed.
    Refused(ErrorReply),
}

impl Pending {
    /// BEGIN and the queue, in order.
    pub fn statements(&self) -> impl Iterator<Item = &[u8]> {
        std::iter::once(&*self.begin).chain(self.queue.iter().map(|text| &**text))
    }

    /// Something in it is more than a savepoint: statements may mean something else in it.
    pub fn has_settings(&self) -> bool {
        let is_savepoint = |text: &[u8]| {
            let text = text.trim_ascii_start();
            let word = text.split(u8::is_ascii_whitespace).next().unwrap_or_default();
            word.eq_ignore_ascii_case(b"savepoint") || word.eq_ignore_ascii_case(b"release")
        };
        !self.queue.iter().all(|text| is_savepoint(text))
    }

    /// Its modes so far.
    pub fn modes(&self) -> TransactionModes {
        self.modes
    }
}

impl Block {
    /// As ReadyForQuery says it, while no server is held.
    pub fn status(&self) -> TxnStatus {
        match self {
            Self::None => TxnStatus::Idle,
            Self::Pending(_) | Self::Server(_) => TxnStatus::Open,
            Self::Failed(_) => TxnStatus::Failed,
        }
    }

    /// For `route::decide`; `default_isolation` and `default_read_only` are the session's settings.
    pub fn view(&self, defaults: TransactionModes) -> route::Block {
        let modes = match self {
            Self::None => return route::Block::None,
            Self::Pending(pending) => pending.modes,
            Self::Server(modes) => *modes,
            Self::Failed(_) => TransactionModes::default(),
        };
        let read_only = modes.read_only.or(defaults.read_only).unwrap_or(false);
        match modes.isolation.or(defaults.isolation) {
            Some(Isolation::RepeatableRead) => {
                route::Block::Snapshot { read_only, serializable: false }
            }
            Some(Isolation::Serializable) => {
                route::Block::Snapshot { read_only, serializable: true }
            }
            _ if read_only => route::Block::ReadOnly,
            _ => route::Block::ReadWrite,
        }
    }

    /// A statement was refused or failed without a server.
    pub fn fail(&mut self) {
        *self = match std::mem::take(self) {
            Self::Pending(pending) => Self::Failed(Some(pending)),
            other => other,
        };
    }

    /// The server that held it is gone.
    pub fn lose(&mut self) {
        *self = Self::Failed(None);
    }

    /// Queues a statement that may stand before the first real one (SET LOCAL, SET CONSTRAINTS), in
    /// the client's encoding: a server will have that by then.
    pub fn queue(&mut self, text: &[u8]) -> Result<(), ErrorReply> {
        let Self::Pending(pending) = self else { return Ok(()) };
        if pending.queue.len() >= QUEUE_MAX {
            self.fail();
            return Err(refusals::too_many_before_hospital(QUEUE_MAX));
        }
        pending.queue.push(text.into());
        Ok(())
    }

    /// Transaction control while no server is held; `text` is the statement as sent.
    pub fn on_control(&mut self, control: &Transaction, text: &[u8]) -> Answer {
        if let Self::Failed(_) = self {
            return self.on_control_failed(control);
        }
        match control {
            Transaction::Begin(modes) => match self {
                Self::None => {
                    let begin = text.into();
                    *self = Self::Pending(Pending { begin, modes: *modes, ..Pending::default() });
                    Answer::Tag(if is_start(text) { "START TRANSACTION" } else { "BEGIN" })
                }
                _ => Answer::Warned(refusals::already_in_transaction(), "BEGIN"),
            },
            Transaction::Commit { chain } => self.end("COMMIT", *chain),
            Transaction::Rollback { chain } => self.end("ROLLBACK", *chain),
            Transaction::Savepoint(name) => self.savepoint(name, text),
            Transaction::Release(name) => self.release(name, text),
            Transaction::RollbackTo(name) => self.rollback_to(name),
            Transaction::SetTransaction(modes) => self.set_transaction(*modes, text),
            Transaction::SetConstraints => match self {
                Self::Pending(_) => match self.queue(text) {
                    Ok(()) => Answer::Tag("SET CONSTRAINTS"),
                    Err(refusal) => Answer::Refused(refusal),
                },
                _ => Answer::Warned(
                    refusals::no_transaction_for("SET CONSTRAINTS"),
                    "SET CONSTRAINTS",
                ),
            },
        }
    }

    fn on_control_failed(&mut self, control: &Transaction) -> Answer {
        match control {
            // What it began with may have been set on the server that is gone: a client that goes on
            // would be in another transaction than it thinks, or in none.
            Transaction::Commit { chain: true } | Transaction::Rollback { chain: true }
                if matches!(self, Self::Failed(None)) =>
            {
                Answer::Refused(refusals::lost_chain())
            }
            // COMMIT of a failed transaction is a ROLLBACK, and says so.
            Transaction::Commit { chain } | Transaction::Rollback { chain } => {
                self.end("ROLLBACK", *chain)
            }
            Transaction::RollbackTo(name) => self.rollback_to(name),
            _ => Answer::Refused(refusals::in_failed_transaction()),
        }
    }

    fn end(&mut self, tag: &'static str, chain: bool) -> Answer {
        let ended = std::mem::take(self);
        match ended {
            Self::None if chain => {
                Answer::Refused(refusals::transaction_required(&format!("{tag} AND CHAIN")))
            }
            Self::None => Answer::Warned(refusals::no_transaction(), tag),
            Self::Pending(pending) | Self::Failed(Some(pending)) if chain => {
                *self = Self::Pending(Pending {
                    begin: pending.begin,
                    modes: pending.modes,
                    ..Pending::default()
                });
                Answer::Tag(tag)
            }
            _ => Answer::Tag(tag),
        }
    }

    fn savepoint(&mut self, name: &str, text: &[u8]) -> Answer {
        let Self::Pending(pending) = self else {
            return Answer::Refused(refusals::transaction_required("SAVEPOINT"));
        };
        let at = pending.queue.len() + 1;
        pending.savepoints.push((name.to_owned(), at));
        match self.queue(text) {
            Ok(()) => Answer::Tag("SAVEPOINT"),
            Err(refusal) => Answer::Refused(refusal),
        }
    }

    fn release(&mut self, name: &str, text: &[u8]) -> Answer {
        let Self::Pending(pending) = self else {
            return Answer::Refused(refusals::transaction_required("RELEASE SAVEPOINT"));
        };
        match pending.savepoints.iter().rposition(|(n, _)| n == name) {
            Some(at) => {
                pending.savepoints.truncate(at);
                match self.queue(text) {
                    Ok(()) => Answer::Tag("RELEASE"),
                    Err(refusal) => Answer::Refused(refusal),
                }
            }
            None => {
                self.fail();
                Answer::Refused(refusals::no_savepoint(name))
            }
        }
    }

    fn rollback_to(&mut self, name: &str) -> Answer {
        let pending = match self {
            Self::Pending(pending) | Self::Failed(Some(pending)) => pending,
            // The savepoint went with the server: only the whole transaction can be run again.
            Self::Failed(None) => return Answer::Refused(refusals::lost_savepoint()),
            _ => return Answer::Refused(refusals::transaction_required("ROLLBACK TO SAVEPOINT")),
        };
        match pending.savepoints.iter().rposition(|(n, _)| n == name) {
            Some(at) => {
                let mut pending = std::mem::take(pending);
                pending.queue.truncate(pending.savepoints[at].1);
                pending.savepoints.truncate(at + 1);
                *self = Self::Pending(pending);
                Answer::Tag("ROLLBACK")
            }
            None => {
                self.fail();
                Answer::Refused(refusals::no_savepoint(name))
            }
        }
    }

    fn set_transaction(&mut self, modes: TransactionModes, text: &[u8]) -> Answer {
        let Self::Pending(pending) = self else {
            return Answer::Warned(refusals::no_transaction_for("SET TRANSACTION"), "SET");
        };
        let old = pending.modes;
        pending.modes = TransactionModes {
            isolation: modes.isolation.or(old.isolation),
            read_only: modes.read_only.or(old.read_only),
            deferrable: modes.deferrable.or(old.deferrable),
        };
        match self.queue(text) {
            Ok(()) => Answer::Tag("SET"),
            Err(refusal) => Answer::Refused(refusal),
        }
    }
}

fn is_start(text: &[u8]) -> bool {
    text.trim_ascii_start().get(..5).is_some_and(|word| word.eq_ignore_ascii_case(b"start"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin() -> Block {
        let mut block = Block::None;
        block.on_control(&Transaction::Begin(TransactionModes::default()), b"BEGIN");
        block
    }

    fn queue(block: &Block) -> Vec<&str> {
        match block {
            Block::Pending(pending) => pending.statements().flat_map(std::str::from_utf8).collect(),
            other => panic!("expected a pending block, got {other:?}"),
        }
    }

    #[test]
    fn begin_and_end_cost_nothing() {
        let mut block = begin();
        assert_eq!(block.status(), TxnStatus::Open);
        let commit = Transaction::Commit { chain: false };
        assert_eq!(block.on_control(&commit, b"COMMIT"), Answer::Tag("COMMIT"));
        assert_eq!(block.status(), TxnStatus::Idle);
        assert!(matches!(block.on_control(&commit, b"COMMIT"), Answer::Warned(_, "COMMIT")));
    }

    #[test]
    fn a_failed_block_takes_only_its_end() {
        let mut block = begin();
        block.fail();
        assert_eq!(block.status(), TxnStatus::Failed);
        let savepoint = Transaction::Savepoint("s".into());
        assert!(
            matches!(block.on_control(&savepoint, b""), Answer::Refused(r) if r.sqlstate == "25P02")
        );
        let commit = Transaction::Commit { chain: false };
        assert_eq!(block.on_control(&commit, b"COMMIT"), Answer::Tag("ROLLBACK"));
        assert_eq!(block.status(), TxnStatus::Idle);
    }

    #[test]
    fn rollback_to_revives_a_failed_block_with_its_queue_cut() {
        let mut block = begin();
        block.on_control(&Transaction::Savepoint("a".into()), b"SAVEPOINT a");
        block.queue(b"SET LOCAL x = 1").unwrap();
        block.on_control(&Transaction::Savepoint("b".into()), b"SAVEPOINT b");
        block.fail();
        assert_eq!(
            block.on_control(&Transaction::RollbackTo("a".into()), b""),
            Answer::Tag("ROLLBACK")
        );
        assert_eq!(queue(&block), ["BEGIN", "SAVEPOINT a"]);
        let gone = block.on_control(&Transaction::RollbackTo("b".into()), b"");
        assert!(matches!(gone, Answer::Refused(r) if r.sqlstate == "3B001"));
        assert_eq!(block.status(), TxnStatus::Failed);
    }

    #[test]
    fn a_block_whose_server_was_lost_can_only_end() {
        let mut block = begin();
        block.on_control(&Transaction::Savepoint("a".into()), b"SAVEPOINT a");
        block.lose();
        let back = block.on_control(&Transaction::RollbackTo("a".into()), b"");
        assert!(matches!(back, Answer::Refused(r) if r.sqlstate == "40001"));
        for chained in [Transaction::Rollback { chain: true }, Transaction::Commit { chain: true }]
        {
            let refused = block.on_control(&chained, b"");
            assert!(matches!(refused, Answer::Refused(r) if r.sqlstate == "40001"));
            assert_eq!(block.status(), TxnStatus::Failed);
        }
        let rollback = Transaction::Rollback { chain: false };
        assert_eq!(block.on_control(&rollback, b""), Answer::Tag("ROLLBACK"));
    }

    #[test]
    fn a_released_savepoint_is_gone_but_its_work_stays() {
        let mut block = begin();
        block.on_control(&Transaction::Savepoint("a".into()), b"SAVEPOINT a");
        block.queue(b"SET LOCAL x = 1").unwrap();
        let release = Transaction::Release("a".into());
        assert_eq!(block.on_control(&release, b"RELEASE a"), Answer::Tag("RELEASE"));
        assert_eq!(queue(&block), ["BEGIN", "SAVEPOINT a", "SET LOCAL x = 1", "RELEASE a"]);
        let back = block.on_control(&Transaction::RollbackTo("a".into()), b"");
        assert!(matches!(back, Answer::Refused(r) if r.sqlstate == "3B001"));
    }

    #[test]
    fn modes_decide_where_it_may_read() {
        let mut block = begin();
        let defaults = TransactionModes::default();
        assert_eq!(block.view(defaults), route::Block::ReadWrite);
        let modes = TransactionModes { read_only: Some(true), ..defaults };
        block.on_control(&Transaction::SetTransaction(modes), b"SET TRANSACTION READ ONLY");
        assert_eq!(block.view(defaults), route::Block::ReadOnly);
        let modes = TransactionModes { isolation: Some(Isolation::Serializable), ..defaults };
        block.on_control(&Transaction::SetTransaction(modes), b"SET TRANSACTION ...");
        assert_eq!(
            block.view(defaults),
            route::Block::Snapshot { read_only: true, serializable: true }
        );
    }
}
