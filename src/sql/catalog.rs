//! What the shards' catalogs say: tables, key columns, views, functions. Values only; `crate::catalog`
//! reads them off the shards, `pgward route --schema` off a file.

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
    /// What a view or materialized view reads directly, as (schema, name) (pg_depend through pg_rewrite).
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

/// An immutable snapshot that names are resolved against.
#[derive(Debug, Clone, Default)]
pub struct Catalog {
    /// Rises with every change; part of the analysis cache's key.
    pub version: u64,
}

impl Catalog {
    /// Builds a snapshot. Shards that differ count as the stricter.
    pub fn build(_version: u64, _shards: &[ShardFacts], _declared: &Declared) -> Self {
        unimplemented!("route helper")
    }
}
