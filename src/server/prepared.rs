//! Which shared prepared statements one server has, with its own least-recently-used bound.
//!
//! A statement counts as present from the moment its Parse is put into the server's buffer, so
//! that a pipeline names it once; a failed batch takes back what the server has not confirmed.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};

/// Id of a statement shared by all clients: one per distinct (text, declared types).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StatementId(pub u64);

impl StatementId {
    /// Its name on every server.
    pub fn server_name(self) -> String {
        format!("pgward_{}", self.0)
    }
}

/// What a server says that a statement takes and answers: a hash of the types of its parameters and
/// of its columns. A statement keeps it on its server, which raises 0A000 once it can't.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape(pub u64);

#[derive(Debug)]
struct Held {
    used: u64,
    /// The use that it stands in `oldest` with.
    queued: u64,
    epoch: u64,
    /// Once the server was asked.
    shape: Option<Shape>,
}

/// Statements present on a server.
#[derive(Debug, Default)]
pub struct Prepared {
    named: HashMap<StatementId, Held, foldhash::fast::RandomState>,
    unnamed: Option<StatementId>,
    unnamed_shape: Option<Shape>,
    clock: u64,
    /// By a use that may not be the last: whoever takes one out looks again, so that a use costs
    /// nothing but a number.
    oldest: BinaryHeap<Reverse<(u64, StatementId)>>,
    /// What is parsed from now on is parsed under this; see [`Self::is_old`].
    pub epoch: u64,
    unconfirmed: VecDeque<Option<StatementId>>,
    /// PREPARE was sent for these since the last ReadyForQuery.
    unsure: Vec<StatementId>,
}

impl Prepared {
    /// Is `id` there under its name? Then it counts as used now.
    pub fn touch(&mut self, id: StatementId) -> bool {
        self.clock += 1;
        match self.named.get_mut(&id) {
            Some(held) => {
                held.used = self.clock;
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
        self.confirm(id);
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
        let (used, epoch) = (self.clock, self.epoch);
        self.named.insert(id, Held { used, queued: used, epoch, shape: None });
        self.oldest.push(Reverse((used, id)));
        if self.oldest.len() > 2 * self.named.len() + 64 {
            let named = &self.named;
            let is_there = |held: &Held, used| held.queued == used;
            self.oldest.retain(|Reverse((used, id))| {
                named.get(id).is_some_and(|held| is_there(held, *used))
            });
        }
    }

    /// It was parsed before the epoch of now: whoever prepares it now may mean something else.
    pub fn is_old(&self, id: StatementId) -> bool {
        self.named.get(&id).is_some_and(|held| held.epoch != self.epoch)
    }

    /// The server has described `id`.
    pub fn on_described(&mut self, id: StatementId, shape: Shape) {
        if let Some(held) = self.named.get_mut(&id) {
            held.shape = Some(shape);
        } else if self.is_unnamed(id) {
            self.unnamed_shape = Some(shape);
        }
    }

    /// As the server described the `id` that it has, if it did.
    pub fn shape(&self, id: StatementId) -> Option<Shape> {
        match self.named.get(&id) {
            Some(held) => held.shape,
            None => self.unnamed_shape.filter(|_| self.is_unnamed(id)),
        }
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
        self.unnamed_shape = None;
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
        while self.named.len() > max {
            let Reverse((used, id)) = self.oldest.pop()?;
            let Some(held) = self.named.get_mut(&id).filter(|held| held.queued == used) else {
                continue;
            };
            if held.used == used {
                self.named.remove(&id);
                return Some(id);
            }
            held.queued = held.used;
            self.oldest.push(Reverse((held.used, id)));
        }
        None
    }

    /// Forgets all: DEALLOCATE ALL or DISCARD ALL ran.
    pub fn clear(&mut self) {
        self.named.clear();
        self.oldest.clear();
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
    fn names_that_come_and_go_leave_nothing_behind() {
        let mut prepared = Prepared::default();
        for n in 0..1_000 {
            prepared.confirm(StatementId(n % 3));
            prepared.remove(StatementId(n % 3));
            prepared.confirm(StatementId(n % 3));
        }
        assert!(prepared.oldest.len() <= 128, "{}", prepared.oldest.len());
        assert!(prepared.touch(StatementId(0)));
        let gone = (prepared.evict_over(1), prepared.evict_over(1), prepared.evict_over(1));
        assert_eq!(gone, (Some(StatementId(1)), Some(StatementId(2)), None));
    }

    #[test]
    fn what_was_described_is_known_until_it_is_parsed_anew() {
        let mut prepared = Prepared::default();
        let (id, shape) = (StatementId(1), Shape(7));
        prepared.on_described(id, shape);
        assert_eq!(prepared.shape(id), None);
        prepared.parse_unnamed(Some(id));
        prepared.on_described(id, shape);
        assert_eq!(prepared.shape(id), Some(shape));
        prepared.parse_named(id);
        assert_eq!(prepared.shape(id), None);
        prepared.on_described(id, shape);
        prepared.parse_unnamed(None);
        assert_eq!(prepared.shape(id), Some(shape));
        prepared.epoch += 1;
        assert!(prepared.is_old(id));
        prepared.parse_named(id);
        assert_eq!((prepared.shape(id), prepared.is_old(id)), (None, false));
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
