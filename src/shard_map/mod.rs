//! Which shard a hospital is on: the map as an immutable value.
//!
//! Only this room knows the placement rule: `hospital.int % N` is a bucket, a bucket belongs to a
//! shard, and a listed hospital may be elsewhere. `parse` reads maps from text and tells all that
//! is wrong with them, `diff` says what would move, `mint` makes ids that land in a region; all
//! pure. `source` reads files and publishes maps. `locate` is on the hot path: two look-ups, no
//! allocation, whatever the number of hospitals.

mod address;
mod diff;
mod draft;
mod hospital;
mod mint;
mod parse;
mod ranges;
pub mod source;
mod tls;

use std::collections::HashMap;

pub use address::{Address, AddressError};
pub use diff::{BucketMove, HospitalMove, HostMove, MapDiff};
pub use hospital::HospitalId;
pub use mint::{MintError, UuidVersion, mint};
pub use tls::{ShardTls, SslMode};

/// A shard's number, 0-based.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShardId(pub u16);

impl std::fmt::Display for ShardId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// One shard: a primary, its replicas, and where they are.
#[derive(Debug, Clone, PartialEq, Eq)]
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
    /// How they are spoken to, where that is not as for all.
    pub tls: ShardTls,
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

/// Hosts that a shard may have, its primary included: a mask of them fits an `u32`.
pub const HOSTS_MAX: usize = 32;

/// What the map says of ids that it doesn't list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UnknownHospital {
    /// They go where their bucket is.
    #[default]
    Route,
    /// They are refused: the `[[hospital]]` entries are a directory.
    Reject,
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
    /// What happens to an id that is not listed.
    pub unknown_hospital: UnknownHospital,
    /// Index is the shard's id.
    shards: Vec<Shard>,
    /// Index is the bucket; `modulus` entries.
    owners: Vec<ShardId>,
    /// The listed hospitals, each with its shard, by override or by rule. The hash is seeded
    /// per process, since clients choose what is looked up.
    hospitals: HashMap<HospitalId, ShardId, foldhash::quality::RandomState>,
    /// Distinct, by lowest shard.
    regions: Vec<String>,
}

/// What the map declares of tables.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tables {
    /// The key column, e.g. `hospital_id`.
    pub key_column: String,
    /// `schema.table` to its key column where that differs.
    pub key_tables: Vec<(String, String)>,
    /// Reference tables as `schema.table`.
    pub reference: Vec<String>,
}

impl ShardMap {
    /// A map of `shards`, ids 0..n-1 in order, that own buckets of about equal number in rising
    /// order: for tests and benchmarks. With as many shards as buckets, shard i owns bucket i.
    ///
    /// # Panics
    /// Without shards, with fewer buckets than shards, or with other ids.
    pub fn even(modulus: u32, database: &str, shards: Vec<Shard>) -> Self {
        assert!(!shards.is_empty() && shards.len() <= modulus as usize, "too few buckets");
        assert!(shards.iter().enumerate().all(|(i, s)| usize::from(s.id.0) == i), "ids in order");
        let owner = |bucket: u32| shards[bucket as usize * shards.len() / modulus as usize].id;
        Self {
            version: 1,
            modulus,
            database: database.to_owned(),
            tables: Tables { key_column: "hospital_id".to_owned(), ..Tables::default() },
            unknown_hospital: UnknownHospital::Route,
            owners: (0..modulus).map(owner).collect(),
            hospitals: HashMap::default(),
            regions: distinct_regions(&shards),
            shards,
        }
    }

    /// The shard of `hospital`: its override, else the owner of its bucket.
    pub fn locate(&self, hospital: HospitalId) -> Result<ShardId, LocateError> {
        match (self.hospitals.get(&hospital), self.unknown_hospital) {
            (Some(shard), _) => Ok(*shard),
            (None, UnknownHospital::Route) => Ok(self.owner_of(hospital)),
            (None, UnknownHospital::Reject) => Err(LocateError::Unknown(hospital)),
        }
    }

    /// `hospital.int % N`.
    pub fn bucket(&self, hospital: HospitalId) -> u32 {
        bucket(hospital, self.modulus)
    }

    /// The shard that owns `bucket`.
    pub fn owner(&self, bucket: u32) -> Option<ShardId> {
        self.owners.get(bucket as usize).copied()
    }

    /// All shards, by rising id.
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// One shard.
    pub fn shard(&self, id: ShardId) -> Option<&Shard> {
        self.shards.get(usize::from(id.0))
    }

    /// The regions, by their lowest shard.
    pub fn regions(&self) -> &[String] {
        &self.regions
    }

    /// The region of a shard.
    pub fn region_of(&self, id: ShardId) -> Option<&str> {
        self.shard(id).map(|shard| shard.region.as_str())
    }

    /// The listed hospitals and their shards, in no order.
    pub fn hospitals(&self) -> impl ExactSizeIterator<Item = (HospitalId, ShardId)> {
        self.hospitals.iter().map(|(hospital, shard)| (*hospital, *shard))
    }

    /// Is it listed?
    pub fn lists(&self, hospital: HospitalId) -> bool {
        self.hospitals.contains_key(&hospital)
    }

    /// Is it elsewhere than its bucket?
    pub fn is_override(&self, hospital: HospitalId) -> bool {
        self.hospitals.get(&hospital).is_some_and(|shard| *shard != self.owner_of(hospital))
    }

    /// Where its rows are, whether or not it may be reached.
    fn place(&self, hospital: HospitalId) -> ShardId {
        self.hospitals.get(&hospital).copied().unwrap_or_else(|| self.owner_of(hospital))
    }

    /// Files that the map names are relative to `folder`.
    fn resolve(&mut self, folder: &std::path::Path) {
        for shard in &mut self.shards {
            shard.tls.resolve(folder);
        }
    }

    fn owner_of(&self, hospital: HospitalId) -> ShardId {
        self.owners[self.bucket(hospital) as usize] // a bucket is < modulus, the table's length
    }
}

fn bucket(hospital: HospitalId, modulus: u32) -> u32 {
    (hospital.0.as_u128() % u128::from(modulus)) as u32
}

fn distinct_regions(shards: &[Shard]) -> Vec<String> {
    let mut regions: Vec<String> = Vec::new();
    for shard in shards {
        if !regions.contains(&shard.region) {
            regions.push(shard.region.clone());
        }
    }
    regions
}

#[cfg(test)]
mod tests;
