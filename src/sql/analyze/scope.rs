//! What a column name means: the relations that a query level sees, and those of the levels around it.
//!
//! Follows parse_relation.c for names that Postgres accepts: it takes a name from the innermost level
//! that has it and refuses one that two relations of a level have. So where the catalog knows less than
//! Postgres (a function's columns, an expression's name) a name that might be one of those means nothing
//! here, and never something of a level further out.

use super::facts::NodeId;

/// One column that a relation shows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Column<'a> {
    /// `None`: Postgres makes up the name, so it may be any.
    pub(super) name: Option<&'a str>,
    /// Set where it holds hospital keys.
    pub(super) node: Option<NodeId>,
}

/// The columns that a relation shows, in order.
#[derive(Debug, Clone, Default)]
pub(super) struct Columns<'a> {
    pub(super) list: Vec<Column<'a>>,
    /// There may be others, anywhere among them.
    pub(super) is_open: bool,
}

/// A relation in a FROM list.
#[derive(Debug, Clone)]
pub(super) struct Item<'a> {
    /// What qualifies its columns; a join has none of its own.
    pub(super) name: Option<&'a str>,
    /// Set for a table without alias: `public.patients.id` means it too.
    pub(super) schema: Option<&'a str>,
    pub(super) columns: Columns<'a>,
    /// Its columns can be named without qualification. Not so inside a join, which shows them.
    pub(super) is_bare: bool,
}

/// A query level, and those around it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scope<'s, 'a> {
    pub(super) items: &'s [Item<'a>],
    pub(super) outer: Option<&'s Scope<'s, 'a>>,
}

/// Of what a name matched.
enum Match {
    None,
    /// One column, which may or may not hold keys.
    One(Option<NodeId>),
    /// Several, or perhaps one that is not known.
    Unclear,
}

impl<'a> Columns<'a> {
    /// Columns that nothing is known of.
    pub(super) fn unknown() -> Self {
        Self { list: Vec::new(), is_open: true }
    }

    /// Applies the names of `AS t(a, b)`. Where positions are not certain, nothing is.
    pub(super) fn rename(&mut self, names: &[Option<&'a str>]) {
        if names.is_empty() {
            return;
        }
        if self.is_open {
            *self = Self::unknown();
            return;
        }
        for (column, name) in self.list.iter_mut().zip(names) {
            column.name = *name;
        }
    }

    /// The column `name`, if it is certain.
    pub(super) fn node(&self, name: &str) -> Option<NodeId> {
        match self.find(name) {
            Match::One(node) => node,
            Match::None | Match::Unclear => None,
        }
    }

    /// Whether it certainly has a column `name`.
    pub(super) fn has(&self, name: &str) -> bool {
        self.list.iter().any(|column| column.name == Some(name))
    }

    fn find(&self, name: &str) -> Match {
        let mut found = self.list.iter().filter(|column| column.name == Some(name));
        let is_unclear = self.is_open || self.list.iter().any(|column| column.name.is_none());
        match (found.next(), found.next()) {
            (Some(column), None) => Match::One(column.node),
            (Some(_), Some(_)) => Match::Unclear,
            (None, _) if is_unclear => Match::Unclear,
            (None, _) => Match::None,
        }
    }
}

impl<'s, 'a> Scope<'s, 'a> {
    /// The node of column `name`.
    pub(super) fn bare(&self, name: &str) -> Option<NodeId> {
        let mut scope = Some(self);
        while let Some(level) = scope {
            let (mut found, mut is_unclear, mut count) = (None, false, 0);
            for item in level.items.iter().filter(|item| item.is_bare) {
                match item.columns.find(name) {
                    Match::One(node) => {
                        found = node;
                        count += 1;
                    }
                    Match::Unclear => is_unclear = true,
                    Match::None => {}
                }
            }
            match count {
                0 if is_unclear => return None,
                0 => scope = level.outer,
                // Were an unknown column to have that name as well, Postgres would refuse it.
                1 => return found,
                _ => return None,
            }
        }
        None
    }

    /// The node of column `name` of the relation that is called `table`.
    pub(super) fn qualified(
        &self,
        schema: Option<&str>,
        table: &str,
        name: &str,
    ) -> Option<NodeId> {
        self.item(schema, table)?.columns.node(name)
    }

    /// The relation that is called `table`.
    pub(super) fn item(&self, schema: Option<&str>, table: &str) -> Option<&'s Item<'a>> {
        let mut scope = Some(self);
        while let Some(level) = scope {
            let mut found = level.items.iter().filter(|item| {
                item.name == Some(table) && (schema.is_none() || item.schema == schema)
            });
            match (found.next(), found.next()) {
                (Some(item), None) => return Some(item),
                (Some(_), Some(_)) => return None,
                (None, _) => scope = level.outer,
            }
        }
        None
    }
}
