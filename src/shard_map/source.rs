//! Where maps come from: read a file, validate it, compare it with the running one, publish it.
//!
//! The only part of the room that touches files or is shared between threads. A map that is
//! wrong, that would move hospitals, or whose version doesn't rise leaves the running one as it
//! is. Called by `proxy` at start and on SIGHUP, by the console's RELOAD, and by `cli`.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;

use crate::document::{self, LoadError};

use super::{MapDiff, ShardMap};

/// Reads the map in `path`; files that it names are relative to it.
pub fn load(path: &Path) -> Result<ShardMap, LoadError> {
    let text = document::read(path)?;
    let mut map = ShardMap::parse(&path.display().to_string(), &text)?;
    map.resolve(path.parent().unwrap_or(Path::new("")));
    Ok(map)
}

/// The running map.
#[derive(Debug)]
pub struct MapStore {
    current: ArcSwap<ShardMap>,
    /// Held from the comparison to the swap, so that two reloads can't both pass it.
    publishing: Mutex<()>,
}

/// What a reload did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReloadOutcome {
    /// The file says what is running.
    Unchanged,
    /// The new map is running.
    Published {
        /// Version of the old map.
        from: u64,
        /// Version of the new one.
        to: u64,
    },
}

/// Why a map was not taken; the old one serves on.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// Not readable, or wrong.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// It differs from the running map and its version isn't higher.
    #[error("version {next} does not rise above the running {running}: raise `version`")]
    Version {
        /// The running version.
        running: u64,
        /// The version in the file.
        next: u64,
    },
    /// It places hospitals elsewhere.
    #[error("the map would move hospitals, and a map moves no data:\n{0}")]
    Moves(Box<MapDiff>),
}

impl MapStore {
    /// Begins with `map`.
    pub fn new(map: ShardMap) -> Self {
        Self { current: ArcSwap::from_pointee(map), publishing: Mutex::new(()) }
    }

    /// The running map: a transaction keeps the one it began with.
    pub fn current(&self) -> Arc<ShardMap> {
        self.current.load_full()
    }

    /// The running map for a short look, without touching its reference count.
    pub fn peek(&self) -> arc_swap::Guard<Arc<ShardMap>> {
        self.current.load()
    }

    /// What [`Self::publish`] would do now.
    pub fn check(&self, next: &ShardMap) -> Result<ReloadOutcome, ReloadError> {
        let running = self.peek();
        if running.as_ref() == next {
            return Ok(ReloadOutcome::Unchanged);
        }
        let moves = running.diff(next);
        if !moves.is_empty() {
            return Err(ReloadError::Moves(Box::new(moves)));
        }
        if next.version <= running.version {
            let (running, next) = (running.version, next.version);
            return Err(ReloadError::Version { running, next });
        }
        Ok(ReloadOutcome::Published { from: running.version, to: next.version })
    }

    /// Takes `next` if it may follow the running map.
    pub fn publish(&self, next: ShardMap) -> Result<ReloadOutcome, ReloadError> {
        // Nothing panics under the lock; and the map behind it is whole in any case.
        let _publishing = self.publishing.lock().unwrap_or_else(PoisonError::into_inner);
        let outcome = self.check(&next)?;
        if let ReloadOutcome::Published { from, to } = outcome {
            assert!(to > from, "a map's version never falls");
            self.current.store(Arc::new(next));
        }
        Ok(outcome)
    }

    /// Reads `path` and publishes what it says.
    pub fn reload(&self, path: &Path) -> Result<ReloadOutcome, ReloadError> {
        self.publish(load(path)?)
    }
}
