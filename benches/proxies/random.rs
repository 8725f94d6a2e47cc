//! Random numbers that cost nothing, for the loader and the bootstrap; the same in every run.

use crate::hospitals::mix;

/// A random generator that costs nothing (splitmix64).
pub struct Random(pub u64);

impl Random {
    /// A number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        ((u128::from(mix(self.0)) * u128::from(n)) >> 64) as u64
    }
}
