//! Which hospital keys hold where: equalities, the places they hold at, and their closure.
//!
//! A *node* is the key column of one occurrence of a relation (or an output column of a subquery that
//! passes one through). A *place* is a part of a query whose conditions hold for a row, or the
//! row does not matter: the WHERE of a level, the ON of a join. A place's parent is where its rows
//! must pass next, so its facts hold too. The ON of an outer join is a place that only the nullable side
//! is under; a subquery that might let a row decide about others (LIMIT, aggregates) has no parent.
//! [`Facts::solve`] starts from one node with the facts of its place; a node that is equal to it
//! brings the facts of its own place, for then its row is really there.

use std::collections::{BTreeSet, HashSet};

use crate::sql::{Error, KeySource};

/// Facts looked at for one statement, before it is called too complex.
const STEPS_MAX: u32 = 2_000_000;

/// A column that holds hospital keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct NodeId(u32);

/// Conditions that hold together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct PlaceId(u32);

/// A condition that is true for each row that matters.
#[derive(Debug, Clone)]
pub(super) enum Fact {
    /// Two columns are equal.
    Same(NodeId, NodeId),
    /// A column is one of these values.
    Is(NodeId, Vec<KeySource>),
}

#[derive(Debug, Default)]
struct Place {
    parent: Option<PlaceId>,
    facts: Vec<Fact>,
    /// Places whose own facts hold here too: an EXISTS that is true has a row.
    includes: Vec<PlaceId>,
}

/// All facts of one statement.
#[derive(Debug, Default)]
pub(super) struct Facts {
    places: Vec<Place>,
    /// Place of each node.
    nodes: Vec<PlaceId>,
    steps: u32,
}

impl Facts {
    /// A new place under `parent`.
    pub(super) fn place(&mut self, parent: Option<PlaceId>) -> PlaceId {
        self.places.push(Place { parent, ..Place::default() });
        PlaceId((self.places.len() - 1) as u32)
    }

    /// A new column of a row that is at `place`.
    pub(super) fn node(&mut self, place: PlaceId) -> NodeId {
        self.nodes.push(place);
        NodeId((self.nodes.len() - 1) as u32)
    }

    /// Notes what holds at `place`.
    pub(super) fn add(&mut self, place: PlaceId, facts: impl IntoIterator<Item = Fact>) {
        self.places[place.0 as usize].facts.extend(facts);
    }

    /// The rows of `place` must pass `parent` next, or (`None`) need not.
    pub(super) fn set_parent(&mut self, place: PlaceId, parent: Option<PlaceId>) {
        self.places[place.0 as usize].parent = parent;
    }

    /// What holds at `inner` holds at `place` as well.
    pub(super) fn include(&mut self, place: PlaceId, inner: PlaceId) {
        self.places[place.0 as usize].includes.push(inner);
    }

    /// All values that `node` must have. Empty: none is proven.
    pub(super) fn solve(&mut self, node: NodeId) -> Result<Vec<KeySource>, Error> {
        let mut keys = BTreeSet::new();
        let mut class = HashSet::from([node]);
        let mut active = Vec::new();
        let mut is_active = HashSet::new();
        self.activate(self.nodes[node.0 as usize], &mut active, &mut is_active);
        loop {
            let mut joined = Vec::new();
            for place in &active {
                for fact in &self.places[place.0 as usize].facts {
                    self.steps += 1;
                    match fact {
                        Fact::Is(node, values) if class.contains(node) => keys.extend(values),
                        Fact::Same(a, b) if class.contains(a) != class.contains(b) => {
                            let new = if class.contains(a) { *b } else { *a };
                            class.insert(new);
                            joined.push(new);
                        }
                        _ => {}
                    }
                }
            }
            if self.steps > STEPS_MAX {
                return Err(Error::TooComplex);
            }
            if joined.is_empty() {
                return Ok(keys.into_iter().collect());
            }
            for node in joined {
                self.activate(self.nodes[node.0 as usize], &mut active, &mut is_active);
            }
        }
    }

    /// Adds `place`, where its rows pass next, and what holds there too.
    fn activate(
        &self,
        place: PlaceId,
        active: &mut Vec<PlaceId>,
        is_active: &mut HashSet<PlaceId>,
    ) {
        let mut queue = vec![place];
        while let Some(place) = queue.pop() {
            if !is_active.insert(place) {
                continue;
            }
            active.push(place);
            let Place { parent, includes, .. } = &self.places[place.0 as usize];
            queue.extend(parent);
            queue.extend(includes);
        }
    }
}

/// What holds if any of `arms` does: a value for a column that each arm has values for.
pub(super) fn any_of(arms: &[Vec<Fact>]) -> Vec<Fact> {
    let Some((first, others)) = arms.split_first() else { return Vec::new() };
    let mut facts = Vec::new();
    let mut done = HashSet::new();
    for fact in first {
        let Fact::Is(node, _) = fact else { continue };
        if !done.insert(*node) {
            continue;
        }
        let mut all = values_of(*node, first);
        let is_in_each = others.iter().all(|arm| {
            let values = values_of(*node, arm);
            all.extend(&values);
            !values.is_empty()
        });
        if is_in_each {
            facts.push(Fact::Is(*node, all));
        }
    }
    facts
}

fn values_of(of: NodeId, facts: &[Fact]) -> Vec<KeySource> {
    let values = facts.iter().filter_map(|fact| match fact {
        Fact::Is(node, values) if *node == of => Some(values),
        _ => None,
    });
    values.flatten().copied().collect()
}
