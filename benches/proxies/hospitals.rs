//! The hospitals of the benchmark: the same ids for the map's directory and for the loader.

use uuid::Uuid;

/// Hospitals in the directory of the large map.
pub const COUNT: u64 = 50_000;

/// The id of hospital `n`: looks random, and is the same in every run.
pub fn id(n: u64) -> Uuid {
    let bits = u128::from(mix(2 * n)) << 64 | u128::from(mix(2 * n + 1));
    uuid::Builder::from_random_bytes(bits.to_be_bytes()).into_uuid()
}

/// One step of splitmix64.
pub fn mix(n: u64) -> u64 {
    let mut z = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
