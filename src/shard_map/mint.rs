//! Makes hospital ids that land in a region, by drawing until one does.
//!
//! Pure: time and randomness are arguments.

use uuid::Builder;

use super::{HospitalId, ShardMap};

/// Which UUID is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UuidVersion {
    /// Random.
    V4,
    /// Milliseconds of the Unix epoch, then random: rises with time, so that indexes stay compact.
    #[default]
    V7,
}

/// Why there is no such id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MintError {
    /// The map has no such region.
    #[error("the shard map has no region `{region}`; it has: {}", known.join(", "))]
    NoRegion {
        /// What was asked for.
        region: String,
        /// What there is.
        known: Vec<String>,
    },
    /// No bucket belongs to the region's shards.
    #[error("no bucket belongs to region `{0}`: only hospitals with an override live there")]
    NoBucket(String),
    /// The source of randomness repeats itself.
    #[error("no id found in {0} draws: the random numbers are not random")]
    NotRandom(u64),
}

/// An id whose bucket is owned by a shard of `region`; `unix_ms` is used by v7.
pub fn mint(
    map: &ShardMap,
    region: &str,
    version: UuidVersion,
    unix_ms: u64,
    mut random: impl FnMut() -> [u8; 16],
) -> Result<HospitalId, MintError> {
    if !map.regions().iter().any(|known| known == region) {
        let known = map.regions().to_vec();
        return Err(MintError::NoRegion { region: region.to_owned(), known });
    }
    if !map.owners.iter().any(|owner| map.region_of(*owner) == Some(region)) {
        return Err(MintError::NoBucket(region.to_owned()));
    }
    // One bucket of N is hit by a draw with probability 1/N: this many miss with e^-64.
    let draws_max = 64 * u64::from(map.modulus);
    for _ in 0..draws_max {
        let bytes = random();
        let uuid = match version {
            UuidVersion::V4 => Builder::from_random_bytes(bytes).into_uuid(),
            UuidVersion::V7 => {
                let [_, _, _, _, _, _, tail @ ..] = bytes;
                Builder::from_unix_timestamp_millis(unix_ms, &tail).into_uuid()
            }
        };
        let hospital = HospitalId(uuid);
        if !map.lists(hospital) && map.region_of(map.owner_of(hospital)) == Some(region) {
            return Ok(hospital);
        }
    }
    Err(MintError::NotRandom(draws_max))
}
