//! What would move if one map took the place of another.
//!
//! A map moves no data: where two maps place a hospital on different shards, its rows would be
//! gone for its users. So a reload is refused where anything is listed here.

use std::collections::HashMap;
use std::fmt;

use super::{Address, HospitalId, ShardId, ShardMap, ranges};

/// Moves of each kind that are listed one by one; of the others only the number.
const LISTED_MAX: usize = 100;

/// A bucket with another owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BucketMove {
    /// The bucket.
    pub bucket: u32,
    /// Its owner in the running map.
    pub from: ShardId,
    /// Its owner in the next.
    pub to: ShardId,
}

/// A listed hospital on another shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HospitalMove {
    /// The hospital.
    pub hospital: HospitalId,
    /// Its shard in the running map.
    pub from: ShardId,
    /// Its shard in the next.
    pub to: ShardId,
}

/// A database of one shard that the next map gives to another, rows and all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostMove {
    /// The host.
    pub address: Address,
    /// The database there.
    pub database: String,
    /// Its shard in the running map.
    pub from: ShardId,
    /// Its shard in the next.
    pub to: ShardId,
}

/// All that would move, by rising bucket, hospital and shard.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MapDiff {
    /// The running N and the next, where they differ; then buckets can't be compared.
    pub modulus: Option<(u32, u32)>,
    /// Buckets with another owner: all of them, there are at most N.
    pub buckets: Vec<BucketMove>,
    /// Hospitals that either map lists and that are elsewhere: at most 100.
    pub hospitals: Vec<HospitalMove>,
    /// How many hospitals more.
    pub more_hospitals: usize,
    /// Hosts that changed shards: at most 100.
    pub hosts: Vec<HostMove>,
    /// How many hosts more.
    pub more_hosts: usize,
}

impl MapDiff {
    /// Nothing would move.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl ShardMap {
    /// What would move if `next` took this map's place.
    pub fn diff(&self, next: &ShardMap) -> MapDiff {
        let (hospitals, more_hospitals) = self.hospital_moves(next);
        let (hosts, more_hosts) = self.host_moves(next);
        let same_modulus = self.modulus == next.modulus;
        MapDiff {
            modulus: (!same_modulus).then_some((self.modulus, next.modulus)),
            buckets: if same_modulus { self.bucket_moves(next) } else { Vec::new() },
            hospitals,
            more_hospitals,
            hosts,
            more_hosts,
        }
    }

    fn bucket_moves(&self, next: &ShardMap) -> Vec<BucketMove> {
        let owners = (0..).zip(self.owners.iter().zip(&next.owners));
        let moves = owners.filter(|(_, (from, to))| from != to);
        moves.map(|(bucket, (from, to))| BucketMove { bucket, from: *from, to: *to }).collect()
    }

    fn hospital_moves(&self, next: &ShardMap) -> (Vec<HospitalMove>, usize) {
        let added = next.hospitals.keys().filter(|h| !self.hospitals.contains_key(h));
        let listed = self.hospitals.keys().chain(added);
        let moves = listed.map(|&hospital| HospitalMove {
            hospital,
            from: self.place(hospital),
            to: next.place(hospital),
        });
        let mut moves: Vec<_> = moves.filter(|m| m.from != m.to).collect();
        moves.sort_by_key(|m| m.hospital);
        bounded(moves)
    }

    /// A shard may change its hosts; but a database that held one shard's rows and now serves
    /// another's needs a map without it in between, so that nobody swaps two lines by mistake.
    fn host_moves(&self, next: &ShardMap) -> (Vec<HostMove>, usize) {
        let shards = self.shards.iter();
        let owned = shards.flat_map(|s| s.hosts().map(move |h| ((h, s.database.as_str()), s.id)));
        let owned: HashMap<_, _> = owned.collect();
        let mut moves = Vec::new();
        for shard in &next.shards {
            for address in shard.hosts() {
                match owned.get(&(address, shard.database.as_str())) {
                    Some(from) if *from != shard.id => moves.push(HostMove {
                        address: address.clone(),
                        database: shard.database.clone(),
                        from: *from,
                        to: shard.id,
                    }),
                    _ => {}
                }
            }
        }
        bounded(moves)
    }
}

fn bounded<T>(mut moves: Vec<T>) -> (Vec<T>, usize) {
    let more = moves.len().saturating_sub(LISTED_MAX);
    moves.truncate(LISTED_MAX);
    (moves, more)
}

impl fmt::Display for MapDiff {
    /// One line for each kind and pair of shards.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lines = Vec::new();
        if let Some((from, to)) = self.modulus {
            lines.push(format!("modulus {from} -> {to}: nearly every hospital would move"));
        }
        let mut pairs: Vec<_> = self.buckets.iter().map(|m| (m.from, m.to)).collect();
        pairs.sort_unstable();
        pairs.dedup();
        for (from, to) in pairs {
            let of_pair = self.buckets.iter().filter(|m| (m.from, m.to) == (from, to));
            let buckets: Vec<u32> = of_pair.map(|m| m.bucket).collect();
            lines.push(format!("buckets {}: shard {from} -> {to}", ranges::show(&buckets)));
        }
        for HospitalMove { hospital, from, to } in &self.hospitals {
            lines.push(format!("hospital {hospital}: shard {from} -> {to}"));
        }
        if self.more_hospitals > 0 {
            lines.push(format!("and {} hospitals more", self.more_hospitals));
        }
        for HostMove { address, database, from, to } in &self.hosts {
            lines.push(format!("host {address}/{database}: shard {from} -> {to}"));
        }
        if self.more_hosts > 0 {
            lines.push(format!("and {} hosts more", self.more_hosts));
        }
        f.write_str(&lines.join("\n"))
    }
}
