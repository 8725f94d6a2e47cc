//! When each hospital was last written through this pgward: what a read of it must see.
//!
//! For `consistency = "hospital"`: an application's pool spreads one user over many sessions, so
//! the session's own last write is not enough. Bounded: past [`HOSPITALS_MAX`] entries in a part,
//! its floor rises for all, which only sends reads to primaries for a moment.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::shard_map::HospitalId;

/// Parts, each behind a lock of its own.
const PARTS: usize = 64;
/// Hospitals remembered in each part.
const HOSPITALS_MAX: usize = 4_096;

type Part = Mutex<HashMap<HospitalId, u64, foldhash::fast::RandomState>>;

/// Last writes, as `Fleet::now` at their outcome.
pub struct Writes {
    parts: Vec<Part>,
    hasher: foldhash::fast::RandomState,
    /// Writes that may have been to any hospital.
    floor: AtomicU64,
}

impl Default for Writes {
    fn default() -> Self {
        Self {
            parts: (0..PARTS).map(|_| Part::default()).collect(),
            hasher: foldhash::fast::RandomState::default(),
            floor: AtomicU64::new(1),
        }
    }
}

impl Writes {
    /// A write to `hospital` has an outcome.
    pub fn note(&self, hospital: HospitalId, now: u64) {
        let mut part = self.part(hospital);
        if part.len() >= HOSPITALS_MAX && !part.contains_key(&hospital) {
            part.clear();
            self.note_all(now);
        }
        part.insert(hospital, now);
    }

    /// A write that may have been to any hospital has an outcome.
    pub fn note_all(&self, now: u64) {
        self.floor.fetch_max(now, Ordering::AcqRel);
    }

    /// What a read of `hospital` must see.
    pub fn last(&self, hospital: HospitalId) -> u64 {
        let last = self.part(hospital).get(&hospital).copied().unwrap_or_default();
        last.max(self.floor.load(Ordering::Acquire))
    }

    fn part(
        &self,
        hospital: HospitalId,
    ) -> std::sync::MutexGuard<'_, HashMap<HospitalId, u64, foldhash::fast::RandomState>> {
        let part = &self.parts[self.hasher.hash_one(hospital) as usize % PARTS];
        part.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hospital(n: u128) -> HospitalId {
        HospitalId(uuid::Uuid::from_u128(n))
    }

    #[test]
    fn a_write_counts_for_its_hospital_only() {
        let writes = Writes::default();
        writes.note(hospital(1), 50);
        assert_eq!((writes.last(hospital(1)), writes.last(hospital(2))), (50, 1));
        writes.note_all(60);
        assert_eq!((writes.last(hospital(1)), writes.last(hospital(2))), (60, 60));
    }

    #[test]
    fn a_forgotten_hospital_is_never_read_too_old() {
        let writes = Writes::default();
        for n in 1..=(PARTS * HOSPITALS_MAX * 2) as u64 {
            writes.note(hospital(n.into()), n);
        }
        let remembered: usize = writes.parts.iter().map(|part| part.lock().unwrap().len()).sum();
        assert!(remembered <= PARTS * HOSPITALS_MAX);
        assert!(
            (1..=(PARTS * HOSPITALS_MAX * 2) as u64).all(|n| writes.last(hospital(n.into())) >= n)
        );
    }
}
