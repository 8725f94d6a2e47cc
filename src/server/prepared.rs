//! Which shared prepared statements one server has, with its own least-recently-used bound.
//!
//! A statement counts as present from the moment its Parse is put into the server's buffer, so
//! that a pipeline names it once; a failed batch takes back what the server has not confirmed.

use std::collections::{HashMap, VecDeque};

/// Id of a statement shared by all clients: one per distinct (text, declared types).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StatementId(pub u64);

impl StatementId {
    /// Its name on every server.
    pub fn server_name(self) -> String {
        format!("pgward_{}", self.0)
    }
}

/// Statements present on a server.
#[derive(Debug, Default)]
pub struct Prepared {
    named: HashMap<StatementId, u64, foldhash::fast::RandomState>,
    unnamed: Option<StatementId>,
    clock: u64,
    unconfirmed: VecDeque<Option<StatementId>>,
    /// PREPARE was sent for these since the last ReadyForQuery.
    unsure: Vec<StatementId>,
}

impl Prepared {
    /// Is `id` there under its name? Then it counts as used now.
    pub fn touch(&mut self, id: StatementId) -> bool {
        self.clock += 1;
        match self.named.get_mut(&id) {
            Some(used) => {
                *used = self.clock;
                true
            }
            None => false,
        }
    }

    /// Is `id` the server's unnamed statement?
    pub fn is_unnamed(&self, id: StatementId) -> bool {
        self.unnamed == Some(id)
    }

    /// A Parse of `id` under its name was sent.
    pub fn parse_named(&mut self, id: StatementId) {
        self.clock += 1;
        self.named.insert(id, self.clock);
        self.unconfirmed.push_back(Some(id));
    }

    /// A PREPARE of `id` was sent: an error takes it back, wherever it came from.
    pub fn prepare(&mut self, id: StatementId) {
        self.confirm(id);
        self.unsure.push(id);
    }

    /// `id` is there.
    pub fn confirm(&mut self, id: StatementId) {
        self.clock += 1;
        self.named.insert(id, self.clock);
    }

    /// `id` is not there any more.
    pub fn remove(&mut self, id: StatementId) {
        self.named.remove(&id);
    }

    /// ReadyForQuery came.
    pub fn on_ready(&mut self) {
        self.unsure.clear();
    }

    /// A Parse of the unnamed statement was sent; `id` where it is a shared statement.
    pub fn parse_unnamed(&mut self, id: Option<StatementId>) {
        self.unnamed = id;
        self.unconfirmed.push_back(None);
    }

    /// The unnamed statement is gone: a simple Query ran, or a Parse replaced it.
    pub fn forget_unnamed(&mut self) {
        self.unnamed = None;
    }

    /// ParseComplete came.
    pub fn on_parse_complete(&mut self) {
        self.unconfirmed.pop_front();
    }

    /// An error came: what was not confirmed is not there.
    pub fn on_failure(&mut self) {
        for id in self.unsure.drain(..) {
            self.named.remove(&id);
        }
        if !self.unconfirmed.is_empty() {
            for id in self.unconfirmed.drain(..).flatten() {
                self.named.remove(&id);
            }
            self.unnamed = None;
        }
    }

    /// The longest unused statement, taken out, if more than `max` are held.
    pub fn evict_over(&mut self, max: usize) -> Option<StatementId> {
        if self.named.len() <= max {
            return None;
        }
        let oldest = self.named.iter().min_by_key(|(_, used)| **used).map(|(id, _)| *id)?;
        self.named.remove(&oldest);
        Some(oldest)
    }

    /// Forgets all: DEALLOCATE ALL or DISCARD ALL ran.
    pub fn clear(&mut self) {
        self.named.clear();
        self.unnamed = None;
    }

    /// Named statements held.
    pub fn len(&self) -> usize {
        self.named.len()
    }

    /// None held.
    pub fn is_empty(&self) -> bool {
        self.named.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_batch_takes_back_only_what_was_not_confirmed() {
        let mut prepared = Prepared::default();
        prepared.parse_named(StatementId(1));
        prepared.parse_named(StatementId(2));
        prepared.on_parse_complete();
        prepared.on_failure();
        assert!(prepared.touch(StatementId(1)));
        assert!(!prepared.touch(StatementId(2)));
    }

    #[test]
    fn the_longest_unused_goes_first() {
        let mut prepared = Prepared::default();
        for id in 1..=3 {
            prepared.parse_named(StatementId(id));
            prepared.on_parse_complete();
        }
        assert!(prepared.touch(StatementId(1)));
        assert_eq!(prepared.evict_over(2), Some(StatementId(2)));
        assert_eq!(prepared.evict_over(2), None);
    }

    #[test]
    fn a_failed_unnamed_parse_leaves_no_unnamed_statement() {
        let mut prepared = Prepared::default();
        prepared.parse_unnamed(Some(StatementId(7)));
        assert!(prepared.is_unnamed(StatementId(7)));
        prepared.on_failure();
        assert!(!prepared.is_unnamed(StatementId(7)));
    }
}
