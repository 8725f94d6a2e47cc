//! What the shards' catalogs say: tables, key columns, views, functions. Values only.
//!
//! `crate::catalog` reads [`ShardFacts`] off the shards, `pgward route --schema` off a file;
//! [`Catalog::build`] turns them and the map's declarations into one immutable snapshot that the
//! analyzer resolves names against. Where shards differ, or a name could mean more than one
//! relation, the stricter reading counts. Knows no value, no map and no session.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::functions;

/// Facts read from one shard's database.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ShardFacts {
    /// User tables, views, partitions, foreign tables (not pg_catalog, not information_schema).
    pub relations: Vec<RelationFact>,
    /// User functions (not pg_catalog).
    pub functions: Vec<FunctionFact>,
    /// User types as (schema, name, oid).
    pub types: Vec<(String, String, u32)>,
    /// An operator `=` that takes uuid exists outside pg_catalog.
    pub has_foreign_uuid_equality: bool,
}

/// One relation of a shard.
#[derive(Debug, Clone, PartialEq)]
pub struct RelationFact {
    /// Schema name.
    pub schema: String,
    /// Relation name.
    pub name: String,
    /// pg_class.relkind: r p v m f S ...
    pub kind: char,
    /// (name, type name as format_type says it), in attnum order, dropped ones left out.
    pub columns: Vec<(String, String)>,
    /// What a view or materialized view reads directly, as (schema, name) (pg_depend through
    /// pg_rewrite); a user function that it calls as (schema, `name()`).
    pub reads: Vec<(String, String)>,
    /// Row level security is on and forced.
    pub is_rls_forced: bool,
}

/// One user function of a shard.
#[derive(Debug, Clone, PartialEq)]
pub struct FunctionFact {
    /// Schema name.
    pub schema: String,
    /// Function name.
    pub name: String,
}

/// What the shard map says of tables.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Declared {
    /// The key column's name, e.g. `hospital_id`.
    pub key_column: String,
    /// (schema, table) to key column, where it differs.
    pub key_tables: Vec<((String, String), String)>,
    /// Reference tables as (schema, table).
    pub reference: Vec<(String, String)>,
    /// Functions declared safe by `[guard] safe_functions` (schema.name).
    pub safe_functions: Vec<String>,
    /// The map has one shard.
    pub is_one_shard: bool,
}

/// What a relation means for routing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RelationKind {
    /// Rows belong to hospitals.
    Sharded {
        /// Its key column, of type uuid.
        key: String,
    },
    /// The same on every shard (or the map has but one).
    Reference,
    /// No key and not declared: it might hold anything.
    Undeclared,
    /// Not classified; says why, to follow its name: `a view over a sharded table`.
    Unsupported(&'static str),
    /// A system catalog that serves every login.
    SystemAllowed,
    /// Reads data of all hospitals with no key, e.g. pg_stats.
    SystemUnkeyed,
}

/// One relation of the snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relation {
    /// Schema name.
    pub schema: String,
    /// Relation name; empty for system relations, which share two entries.
    pub name: String,
    /// What it means.
    pub kind: RelationKind,
    /// Column names in order; empty where they are unknown or differ between shards (then an
    /// INSERT needs a column list).
    pub columns: Vec<String>,
}

/// What a call of a function may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FunctionKind {
    /// Of pg_catalog, and read-only in all its overloads.
    BuiltinRead,
    /// Of pg_catalog, for every login, but not proven read-only; says why, e.g. `volatile`.
    BuiltinWrite(&'static str),
    /// Has an effect or an answer of its own on each shard: sequences, advisory locks, ...
    PerShard,
    /// Of pg_catalog, and reads or does what no key guards: `table_to_xml`, `pg_read_file`, ...
    Unkeyed,
    /// A user function that `[guard] safe_functions` names.
    DeclaredSafe,
    /// Any other function, also one that nobody has heard of.
    User,
}

/// An immutable snapshot that names are resolved against.
#[derive(Debug, Clone)]
pub struct Catalog {
    /// Rises with every change; part of the analysis cache's key.
    pub version: u64,
    /// Schema, then name: looked up without building a key.
    relations: HashMap<String, HashMap<String, Relation>>,
    /// Names that mean different things in different schemas, as what holds for all of them.
    ambiguous: HashMap<String, Relation>,
    /// Name, then (schema, declared safe).
    functions: HashMap<String, Vec<(String, bool)>>,
    has_foreign_uuid_equality: bool,
    system_allowed: Relation,
    system_unkeyed: Relation,
}

impl Default for Catalog {
    fn default() -> Self {
        let system = |kind| Relation {
            schema: "pg_catalog".into(),
            name: String::new(),
            kind,
            columns: Vec::new(),
        };
        Self {
            version: 0,
            relations: HashMap::new(),
            ambiguous: HashMap::new(),
            functions: HashMap::new(),
            has_foreign_uuid_equality: false,
            system_allowed: system(RelationKind::SystemAllowed),
            system_unkeyed: system(RelationKind::SystemUnkeyed),
        }
    }
}

impl Catalog {
    /// Builds a snapshot. Shards that differ count as the stricter.
    pub fn build(version: u64, shards: &[ShardFacts], declared: &Declared) -> Self {
        let mut catalog = Self { version, ..Self::default() };
        for facts in shards {
            let classifier = Classifier::new(facts, declared);
            for fact in &facts.relations {
                let relation = Relation {
                    schema: fact.schema.clone(),
                    name: fact.name.clone(),
                    kind: classifier.kind(fact),
                    columns: fact.columns.iter().map(|(name, _)| name.clone()).collect(),
                };
                catalog.add(relation);
            }
            for function in &facts.functions {
                catalog.add_function(function, declared);
            }
            catalog.has_foreign_uuid_equality |= facts.has_foreign_uuid_equality;
        }
        catalog.find_ambiguous();
        catalog
    }

    /// The relation that `name` means; `None`: nobody has heard of it. pg_catalog is searched first
    /// unless the path names it.
    pub fn resolve(
        &self,
        schema: Option<&str>,
        name: &str,
        search_path: &[&str],
    ) -> Option<&Relation> {
        if let Some(schema) = schema {
            return self.resolve_in(schema, name);
        }
        // Any `pg_` name is taken for a system catalog, though users may have tables of such names:
        // the list of pg_catalog's relations grows with each version of Postgres.
        if name.starts_with("pg_") {
            return self.resolve_in("pg_catalog", name);
        }
        // A schema of the path that the role may not use, or that one shard lacks, is passed over
        // by Postgres. So all of the path's schemas that have the name must agree.
        let mut found = search_path.iter().filter_map(|schema| self.resolve_in(schema, name));
        let first = found.next()?;
        if found.all(|other| other.kind == first.kind && other.columns == first.columns) {
            Some(first)
        } else {
            self.ambiguous.get(name).or(Some(&self.system_unkeyed))
        }
    }

    /// What a call of `name` may do. Without a schema, a user function of that name in any schema
    /// counts beside the builtin one, because argument types choose between them.
    pub fn function(&self, schema: Option<&str>, name: &str) -> FunctionKind {
        let users = self.functions.get(name).map_or(&[][..], Vec::as_slice);
        let builtin = match schema {
            None | Some("pg_catalog") => functions::builtin_function(name),
            Some(_) => None,
        };
        let mut candidates =
            users.iter().filter(|(of, _)| schema.is_none_or(|schema| schema == of)).peekable();
        let has_user = candidates.peek().is_some();
        match builtin {
            _ if candidates.any(|(_, is_safe)| !is_safe) => FunctionKind::User,
            Some(kind) => kind,
            None if has_user => FunctionKind::DeclaredSafe,
            None => FunctionKind::User,
        }
    }

    /// Whether some function is called `name`, in any schema: `x.name` may be a call of it.
    pub fn is_function(&self, name: &str) -> bool {
        // Not all of pg_catalog is listed, and each version adds to it.
        let is_unlisted = ["binary_upgrade_", "lo_", "pg_"].iter().any(|of| name.starts_with(of));
        is_unlisted
            || self.functions.contains_key(name)
            || functions::builtin_function(name).is_some()
    }

    /// Whether operators mean what they should under `search_path`: a schema before pg_catalog may
    /// hold an `=` on uuid of its own.
    pub fn is_search_path_safe(&self, search_path: &[&str]) -> bool {
        !self.has_foreign_uuid_equality
            || search_path
                .iter()
                .position(|schema| *schema == "pg_catalog")
                .is_none_or(|position| position == 0)
    }

    /// An operator `=` that takes uuid exists outside pg_catalog, on some shard.
    pub fn has_foreign_uuid_equality(&self) -> bool {
        self.has_foreign_uuid_equality
    }

    fn resolve_in(&self, schema: &str, name: &str) -> Option<&Relation> {
        match schema {
            "pg_catalog" | "information_schema"
                if functions::is_system_relation_allowed(schema, name) =>
            {
                Some(&self.system_allowed)
            }
            "pg_catalog" => name.starts_with("pg_").then_some(&self.system_unkeyed),
            "information_schema" => Some(&self.system_unkeyed),
            _ => self.relations.get(schema)?.get(name),
        }
    }

    fn add(&mut self, relation: Relation) {
        let names = self.relations.entry(relation.schema.clone()).or_default();
        match names.get_mut(&relation.name) {
            Some(known) => known.restrict(&relation, "defined differently on some shards"),
            None => {
                names.insert(relation.name.clone(), relation);
            }
        }
    }

    fn add_function(&mut self, function: &FunctionFact, declared: &Declared) {
        let entries = self.functions.entry(function.name.clone()).or_default();
        if entries.iter().all(|(schema, _)| *schema != function.schema) {
            let is_safe = declared.is_safe(&function.schema, &function.name);
            entries.push((function.schema.clone(), is_safe));
        }
    }

    fn find_ambiguous(&mut self) {
        let mut names: HashMap<&str, Vec<&Relation>> = HashMap::new();
        for relation in self.relations.values().flat_map(HashMap::values) {
            names.entry(&relation.name).or_default().push(relation);
        }
        let mut ambiguous = HashMap::new();
        for relations in names.into_values().filter(|relations| relations.len() > 1) {
            let mut all = relations[0].clone();
            for other in &relations[1..] {
                all.restrict(other, "several schemas have it, and they differ: name the schema");
            }
            ambiguous.insert(all.name.clone(), all);
        }
        self.ambiguous = ambiguous;
    }
}

impl Relation {
    /// Narrows to what holds for `self` and `other`.
    fn restrict(&mut self, other: &Self, why: &'static str) {
        if self.columns != other.columns {
            self.columns.clear();
        }
        if self.kind != other.kind {
            self.kind = stricter(&self.kind, &other.kind, why);
        }
    }
}

/// What is safe to assume of a relation that is `a` here and `b` there. Only a table that nobody
/// declared absorbs a reference table; all else that differs has no common reading.
fn stricter(a: &RelationKind, b: &RelationKind, why: &'static str) -> RelationKind {
    use RelationKind::{Reference, SystemUnkeyed, Undeclared, Unsupported};
    match (a, b) {
        (Reference, Undeclared) | (Undeclared, Reference) => Undeclared,
        (SystemUnkeyed, Reference) | (Reference, SystemUnkeyed) => SystemUnkeyed,
        _ => Unsupported(why),
    }
}

impl Declared {
    /// From the shard map's `schema.table` names and `[guard] safe_functions`. A name without a
    /// schema is one of `public`.
    pub fn new(
        key_column: &str,
        key_tables: &[(String, String)],
        reference: &[String],
        safe_functions: &[String],
        is_one_shard: bool,
    ) -> Self {
        let split = |name: &str| {
            let (schema, name) = name.split_once('.').unwrap_or(("public", name));
            (schema.to_owned(), name.to_owned())
        };
        let key_tables = key_tables.iter();
        Self {
            key_column: key_column.to_owned(),
            key_tables: key_tables.map(|(name, column)| (split(name), column.clone())).collect(),
            reference: reference.iter().map(|name| split(name)).collect(),
            safe_functions: safe_functions.to_vec(),
            is_one_shard,
        }
    }

    fn is_reference(&self, fact: &RelationFact) -> bool {
        self.reference.iter().any(|(schema, name)| (schema, name) == (&fact.schema, &fact.name))
    }

    fn key_of(&self, fact: &RelationFact) -> Option<&str> {
        self.key_tables
            .iter()
            .find(|((schema, name), _)| (schema, name) == (&fact.schema, &fact.name))
            .map(|(_, column)| column.as_str())
    }

    fn is_safe(&self, schema: &str, name: &str) -> bool {
        self.safe_functions
            .iter()
            .any(|safe| safe.split_once('.').is_some_and(|safe| safe == (schema, name)))
    }
}

/// Classifies the relations of one shard.
struct Classifier<'a> {
    relations: BTreeMap<(&'a str, &'a str), &'a RelationFact>,
    declared: &'a Declared,
}

impl<'a> Classifier<'a> {
    fn new(facts: &'a ShardFacts, declared: &'a Declared) -> Self {
        let relations = facts
            .relations
            .iter()
            .map(|fact| ((fact.schema.as_str(), fact.name.as_str()), fact))
            .collect();
        Self { relations, declared }
    }

    fn kind(&self, fact: &RelationFact) -> RelationKind {
        match fact.kind {
            'r' | 'p' | 'f' => self.table_kind(fact),
            'v' | 'm' => self.view_kind(fact),
            _ if self.declared.is_one_shard => RelationKind::Reference,
            'S' => RelationKind::Unsupported("a sequence"),
            _ => RelationKind::Unsupported("neither a table nor a view"),
        }
    }

    /// The key column wins over a declaration as reference: the stricter reading.
    fn table_kind(&self, fact: &RelationFact) -> RelationKind {
        let declared_key = self.declared.key_of(fact);
        let key = declared_key.unwrap_or(&self.declared.key_column);
        match fact.columns.iter().find(|(name, _)| name == key) {
            Some((_, of)) if of == "uuid" => RelationKind::Sharded { key: key.to_owned() },
            Some(_) => RelationKind::Unsupported("a table whose key column is not of type uuid"),
            None if declared_key.is_some() => {
                RelationKind::Unsupported("a table without the key column that the map declares")
            }
            None if self.declared.is_reference(fact) => RelationKind::Reference,
            None => self.undeclared(),
        }
    }

    fn undeclared(&self) -> RelationKind {
        if self.declared.is_one_shard { RelationKind::Reference } else { RelationKind::Undeclared }
    }

    /// A view is what it reads, through views of views; the first of the strictest kind decides.
    fn view_kind(&self, view: &'a RelationFact) -> RelationKind {
        if view.reads.is_empty() {
            // Only functions of pg_catalog, which pg_depend does not list: they may read anything.
            return match self.declared.is_one_shard {
                true => RelationKind::Reference,
                false => RelationKind::Unsupported("a view that reads no table"),
            };
        }
        let mut kind = RelationKind::Reference;
        let mut seen = HashSet::new();
        let mut queue = vec![view];
        while let Some(next) = queue.pop() {
            for (schema, name) in &next.reads {
                let read = (schema.as_str(), name.as_str());
                if !seen.insert(read) {
                    continue;
                }
                match self.relations.get(&read) {
                    Some(fact) if matches!(fact.kind, 'v' | 'm') && !fact.reads.is_empty() => {
                        queue.push(fact);
                    }
                    Some(fact) => kind = stricter_of_view(kind, self.kind(fact)),
                    None => kind = stricter_of_view(kind, self.unlisted_kind(schema, name)),
                }
            }
        }
        kind
    }

    /// Something a view reads that is no relation of the user's.
    fn unlisted_kind(&self, schema: &str, name: &str) -> RelationKind {
        if let Some(function) = name.strip_suffix("()") {
            return match self.declared.is_safe(schema, function) || self.declared.is_one_shard {
                true => RelationKind::Reference,
                false => RelationKind::Unsupported("a view over a user function"),
            };
        }
        match schema {
            "pg_catalog" | "information_schema" => {
                match functions::is_system_relation_allowed(schema, name) {
                    true => RelationKind::Reference,
                    false => RelationKind::SystemUnkeyed,
                }
            }
            _ => self.undeclared(),
        }
    }
}

fn stricter_of_view(a: RelationKind, b: RelationKind) -> RelationKind {
    fn rank(kind: &RelationKind) -> u8 {
        match kind {
            RelationKind::Reference | RelationKind::SystemAllowed => 0,
            RelationKind::Undeclared => 1,
            RelationKind::SystemUnkeyed => 2,
            RelationKind::Sharded { .. } | RelationKind::Unsupported(_) => 3,
        }
    }
    let b = match b {
        RelationKind::Sharded { .. } => RelationKind::Unsupported("a view over a sharded table"),
        other => other,
    };
    if rank(&b) > rank(&a) { b } else { a }
}

/// Postgres's NAMEDATALEN, less its NUL.
const NAME_BYTES_MAX: usize = 63;

/// The schemas of a `search_path` as Postgres reads it: unquoted names in lower case, `$user`
/// replaced by `role`. `None`: not a list of names.
pub fn parse_search_path(path: &str, role: &str) -> Option<Vec<String>> {
    let mut schemas = Vec::new();
    let mut rest = path.trim_ascii();
    if rest.is_empty() {
        return Some(schemas);
    }
    loop {
        let (name, tail) = if let Some(quoted) = rest.strip_prefix('"') {
            parse_quoted(quoted)?
        } else {
            let end = rest.find(|c: char| c == ',' || c.is_ascii_whitespace());
            let (name, tail) = rest.split_at(end.unwrap_or(rest.len()));
            if name.is_empty() || name.contains('"') {
                return None;
            }
            // Which other letters Postgres folds depends on the database's encoding.
            if name.chars().any(|c| !c.is_ascii() && c.to_lowercase().ne([c])) {
                return None;
            }
            (name.to_ascii_lowercase(), tail)
        };
        // Postgres would cut it, and find a schema by what is left.
        if name.len() > NAME_BYTES_MAX {
            return None;
        }
        schemas.push(if name == "$user" { role.to_owned() } else { name });
        rest = tail.trim_ascii_start();
        if rest.is_empty() {
            return Some(schemas);
        }
        rest = rest.strip_prefix(',')?.trim_ascii_start();
    }
}

/// The name up to its closing quote, doubled quotes undone, and what follows.
fn parse_quoted(text: &str) -> Option<(String, &str)> {
    let mut name = String::new();
    let mut rest = text;
    loop {
        let (part, tail) = rest.split_once('"')?;
        name.push_str(part);
        match tail.strip_prefix('"') {
            Some(after) => {
                name.push('"');
                rest = after;
            }
            // Empty: no schema is called so, and `SET search_path = ''` means just that.
            None => return Some((name, tail)),
        }
    }
}

#[cfg(test)]
mod tests;
