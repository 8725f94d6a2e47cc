//! Analyses by text, bounded by bytes.
//!
//! The key is the normalized text compared in full, and all else that decides its meaning. Literals
//! that the analyzer did not look at are left out, so that a driver which interpolates values finds
//! its statement again. Where it did look at some, the text's entry says at which, and a second entry
//! has their values in its key. Looking up allocates nothing. Used by `Analyzer` alone.

use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::Arc;

use quick_cache::{Equivalent, Weighter};

use super::lexer::Lexed;
use super::{Analysis, Context};

/// What an entry weighs beside its text and analysis.
const ENTRY_BYTES: usize = 256;
/// What an entry is taken to weigh when the table is sized.
const ENTRY_BYTES_TYPICAL: usize = 1024;

/// The cache.
pub(super) struct Cache {
    entries: quick_cache::sync::Cache<Key, Entry, ByBytes, Ready>,
    hasher: foldhash::quality::RandomState,
}

/// Found under a text.
#[derive(Clone)]
enum Entry {
    Analysis(Arc<Analysis>),
    /// The analysis depends on the values of these slots, in rising order.
    LooksAt(Arc<[u16]>),
}

/// What a look-up found.
pub(super) enum Found {
    Analysis(Arc<Analysis>),
    /// Nothing; analyses of this text so far looked at these slots.
    Nothing(Option<Arc<[u16]>>),
}

/// Owned key.
struct Key {
    hash: u64,
    text: Box<[u8]>,
    /// Values of the slots that were looked at, as [`Probe::each_value`] writes them.
    values: Option<Box<[u8]>>,
    search_path: Box<str>,
    role: Box<str>,
    param_types: Box<[u32]>,
    catalog_version: u64,
}

/// Borrowed key.
struct Probe<'a> {
    hash: u64,
    lexed: &'a Lexed<'a>,
    context: &'a Context<'a>,
    slots: Option<&'a [u16]>,
}

impl Cache {
    /// Holds about `bytes_max` bytes.
    pub(super) fn new(bytes_max: usize) -> Self {
        let entries = quick_cache::sync::Cache::with(
            (bytes_max / ENTRY_BYTES_TYPICAL).max(16),
            bytes_max as u64,
            ByBytes,
            Ready,
            quick_cache::sync::DefaultLifecycle::default(),
        );
        Self { entries, hasher: foldhash::quality::RandomState::default() }
    }

    /// The analysis of a text that means the same as this one.
    #[inline]
    pub(super) fn get(&self, lexed: &Lexed<'_>, context: &Context<'_>) -> Found {
        match self.entries.get(&self.probe(lexed, context, None)) {
            Some(Entry::Analysis(analysis)) => Found::Analysis(analysis),
            Some(Entry::LooksAt(slots)) => {
                match self.entries.get(&self.probe(lexed, context, Some(&slots))) {
                    Some(Entry::Analysis(analysis)) => Found::Analysis(analysis),
                    _ => Found::Nothing(Some(slots)),
                }
            }
            None => Found::Nothing(None),
        }
    }

    /// Keeps `analysis`, which looked at the values of `slots`; `known` is what [`Self::get`] said.
    pub(super) fn put(
        &self,
        lexed: &Lexed<'_>,
        context: &Context<'_>,
        known: Option<&[u16]>,
        slots: &[u16],
        analysis: &Arc<Analysis>,
    ) {
        let known = known.unwrap_or_default();
        let mut all: Vec<u16> = known.iter().chain(slots).copied().collect();
        all.sort_unstable();
        all.dedup();
        let value = Entry::Analysis(Arc::clone(analysis));
        if all.is_empty() {
            self.entries.insert(self.probe(lexed, context, None).to_key(), value);
            return;
        }
        let key = self.probe(lexed, context, Some(&all)).to_key();
        if all != known {
            // Entries under fewer slots are not found any more and age out.
            let looks_at = Entry::LooksAt(all.into());
            self.entries.insert(self.probe(lexed, context, None).to_key(), looks_at);
        }
        self.entries.insert(key, value);
    }

    fn probe<'a>(
        &self,
        lexed: &'a Lexed<'a>,
        context: &'a Context<'a>,
        slots: Option<&'a [u16]>,
    ) -> Probe<'a> {
        let mut probe = Probe { hash: 0, lexed, context, slots };
        let mut hasher = self.hasher.build_hasher();
        lexed.each_piece(|piece| hasher.write(piece));
        probe.each_value(|piece| hasher.write(piece));
        hasher.write(context.search_path.as_bytes());
        hasher.write(context.role.as_bytes());
        for of in context.param_types {
            hasher.write_u32(*of);
        }
        hasher.write_u64(context.catalog.version);
        probe.hash = hasher.finish();
        probe
    }
}

impl Probe<'_> {
    /// Number, length and bytes of each slot that was looked at.
    #[inline]
    fn each_value(&self, mut each: impl FnMut(&[u8])) {
        for slot in self.slots.into_iter().flatten() {
            let raw = self.lexed.raw(*slot);
            each(&slot.to_be_bytes());
            each(&(raw.len() as u64).to_be_bytes());
            each(raw);
        }
    }

    fn to_key(&self) -> Key {
        let mut text = Vec::with_capacity(self.lexed.text.len());
        self.lexed.each_piece(|piece| text.extend_from_slice(piece));
        let values = self.slots.map(|_| {
            let mut values = Vec::new();
            self.each_value(|piece| values.extend_from_slice(piece));
            values.into_boxed_slice()
        });
        Key {
            hash: self.hash,
            text: text.into_boxed_slice(),
            values,
            search_path: self.context.search_path.into(),
            role: self.context.role.into(),
            param_types: self.context.param_types.into(),
            catalog_version: self.context.catalog.version,
        }
    }
}

/// Whether the pieces that `pieces` writes are `whole`.
#[inline]
fn is_whole(whole: &[u8], pieces: impl FnOnce(&mut dyn FnMut(&[u8]))) -> bool {
    let mut rest = Some(whole);
    pieces(&mut |piece| rest = rest.and_then(|rest| rest.strip_prefix(piece)));
    rest.is_some_and(<[u8]>::is_empty)
}

impl Equivalent<Key> for Probe<'_> {
    fn equivalent(&self, key: &Key) -> bool {
        self.hash == key.hash
            && self.context.catalog.version == key.catalog_version
            && self.context.param_types == &*key.param_types
            && self.context.search_path == &*key.search_path
            && self.context.role == &*key.role
            && is_whole(&key.text, |each| self.lexed.each_piece(each))
            && match (&key.values, self.slots) {
                (None, None) => true,
                (Some(values), Some(_)) => is_whole(values, |each| self.each_value(each)),
                _ => false,
            }
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash
            && self.text == other.text
            && self.values == other.values
            && self.search_path == other.search_path
            && self.role == other.role
            && self.param_types == other.param_types
            && self.catalog_version == other.catalog_version
    }
}

impl Eq for Key {}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl Hash for Probe<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

/// Keys come with their hash.
#[derive(Clone, Default)]
struct Ready;

/// Gives back the hash that it is given.
#[derive(Default)]
struct ReadyHasher(u64);

impl BuildHasher for Ready {
    type Hasher = ReadyHasher;

    fn build_hasher(&self) -> ReadyHasher {
        ReadyHasher(0)
    }
}

impl Hasher for ReadyHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

#[derive(Clone)]
struct ByBytes;

impl Weighter<Key, Entry> for ByBytes {
    fn weight(&self, key: &Key, entry: &Entry) -> u64 {
        let values = key.values.as_ref().map_or(0, |values| values.len());
        let strings = key.text.len() + key.search_path.len() + key.role.len() + values;
        let entry = match entry {
            Entry::Analysis(analysis) => analysis.size(),
            Entry::LooksAt(slots) => 2 * slots.len(),
        };
        (ENTRY_BYTES + strings + 4 * key.param_types.len() + entry) as u64
    }
}
