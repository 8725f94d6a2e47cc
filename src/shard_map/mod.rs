//! Which shard a hospital is on: the map as an immutable value.
//!
//! Only this file knows the placement rule. Owns [`HospitalId`], buckets, overrides, regions and
//! the directory of hospitals; `source` reads maps from files and publishes them. Pure.

pub mod source;

use uuid::Uuid;

/// A hospital's id: the tenant, and the key of every sharded table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HospitalId(pub Uuid);

/// A shard's number, 0-based.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShardId(pub u16);

/// host:port of one Postgres server.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    /// Host name or IP address.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl std::fmt::Display for ShardId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::fmt::Display for HospitalId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl HospitalId {
    /// Reads exactly the spellings that Postgres's uuid input takes.
    pub fn parse(_text: &str) -> Option<Self> {
        unimplemented!("placement helper")
    }

    /// Reads the 16-byte binary form.
    pub fn from_binary(bytes: &[u8]) -> Option<Self> {
        Uuid::from_slice(bytes).ok().map(Self)
    }
}

/// One shard: a primary, its replicas, and where they are.
#[derive(Debug, Clone, PartialEq)]
pub struct Shard {
    /// Its number.
    pub id: ShardId,
    /// Region name, e.g. `europe`.
    pub region: String,
    /// Host that starts as the primary.
    pub primary: Address,
    /// Hosts that start as replicas.
    pub replicas: Vec<Address>,
    /// Database on these hosts.
    pub database: String,
}

impl Shard {
    /// The primary, then the replicas: the index of a host in this order names it everywhere.
    pub fn hosts(&self) -> impl Iterator<Item = &Address> {
        std::iter::once(&self.primary).chain(&self.replicas)
    }
}

/// Why `locate` has no shard.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LocateError {
    /// Not in the directory, and `unknown_hospital = "reject"`.
    #[error("hospital {0} is not in the shard map")]
    Unknown(HospitalId),
}

/// The map. A transaction keeps the one it began with.
#[derive(Debug, Clone, PartialEq)]
pub struct ShardMap {
    /// Rises with each change of the file.
    pub version: u64,
    /// N, the number of buckets.
    pub modulus: u32,
    /// The database name that clients connect to.
    pub database: String,
    /// Tables, keys and reference tables.
    pub tables: Tables,
    shards: Vec<Shard>,
}

/// What the map declares of tables.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Tables {
    /// The key column, e.g. `hospital_id`.
    pub key_column: String,
    /// `schema.table` to its key column where that differs.
    pub key_tables: Vec<(String, String)>,
    /// Reference tables as `schema.table`.
    pub reference: Vec<String>,
}

impl ShardMap {
    /// The shard of `hospital`: its override, else the owner of its bucket.
    pub fn locate(&self, _hospital: HospitalId) -> Result<ShardId, LocateError> {
        unimplemented!("placement helper")
    }

    /// `hospital.int % N`.
    pub fn bucket(&self, hospital: HospitalId) -> u32 {
        (hospital.0.as_u128() % u128::from(self.modulus)) as u32
    }

    /// All shards, by rising id.
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// One shard.
    pub fn shard(&self, id: ShardId) -> Option<&Shard> {
        self.shards.iter().find(|shard| shard.id == id)
    }
}
