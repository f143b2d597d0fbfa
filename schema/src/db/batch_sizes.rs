//! The sizes of the batches that the loader has sent, by name.

use std::sync::{
    OnceLock,
    atomic::{AtomicU64, Ordering},
};

/// Maximum number of names. The batches of further ones are counted together.
const NAMES: usize = 128;

/// The name of the batches whose own name has no room.
const OTHER: &str = "other";

/// The sizes of the batches of one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchSizes {
    /// The name, such as `circles by id`.
    pub name: String,
    /// Number of keys in all batches.
    pub keys: u64,
    /// Number of batches for each of the [`BatchSizes::BOUNDS`] that have at most so many keys, and more than the
    /// previous bound.
    pub batches: [u64; Self::BOUNDS.len()],
}

impl BatchSizes {
    /// Upper bounds of the number of keys; the last one is the maximum of a batch.
    pub const BOUNDS: [u32; 5] = [1, 10, 50, 200, 1_000];
}

/// Counts batches. Takes no lock: a name is added once and never removed.
pub(super) struct SizeCounter([OnceLock<Slot>; NAMES]);

struct Slot {
    name: String,
    keys: AtomicU64,
    batches: [AtomicU64; BatchSizes::BOUNDS.len()],
}

impl Slot {
    fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            keys: AtomicU64::new(0),
            batches: Default::default(),
        }
    }
}

impl Default for SizeCounter {
    fn default() -> Self {
        Self([const { OnceLock::new() }; NAMES])
    }
}

impl SizeCounter {
    /// Counts a batch.
    pub(super) fn record(&self, name: &str, keys: usize) {
        for (at, slot) in self.0.iter().enumerate() {
            let is_last = at + 1 == NAMES;
            let slot = slot.get_or_init(|| Slot::new(if is_last { OTHER } else { name }));
            if is_last || slot.name == name {
                let keys = keys as u64;
                slot.keys.fetch_add(keys, Ordering::Relaxed);
                let bounds = &BatchSizes::BOUNDS[..BatchSizes::BOUNDS.len() - 1];
                let size = bounds.partition_point(|bound| u64::from(*bound) < keys);
                slot.batches[size].fetch_add(1, Ordering::Relaxed);
                return;
            }
        }
    }

    /// The counted batches, by name.
    pub(super) fn read(&self) -> Vec<BatchSizes> {
        let slots = self.0.iter().map_while(OnceLock::get);
        slots
            .map(|slot| BatchSizes {
                name: slot.name.clone(),
                keys: slot.keys.load(Ordering::Relaxed),
                batches: slot
                    .batches
                    .each_ref()
                    .map(|batches| batches.load(Ordering::Relaxed)),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_counted_by_size_and_name() {
        let counter = SizeCounter::default();
        for (name, keys) in [("a", 1), ("b", 10), ("a", 11), ("a", 1_000), ("a", 1)] {
            counter.record(name, keys);
        }
        let sizes = |name: &str, keys, batches| BatchSizes {
            name: name.to_owned(),
            keys,
            batches,
        };
        assert_eq!(
            counter.read(),
            [
                sizes("a", 1_013, [2, 0, 1, 0, 1]),
                sizes("b", 10, [0, 1, 0, 0, 0])
            ]
        );
    }

    #[test]
    fn the_number_of_names_is_bounded() {
        let counter = SizeCounter::default();
        for _ in 0..2 {
            for number in 0..2 * NAMES {
                counter.record(&number.to_string(), 1);
            }
        }
        let sizes = counter.read();
        assert_eq!(sizes.len(), NAMES);
        assert_eq!((sizes[0].name.as_str(), sizes[0].keys), ("0", 2));
        let other = sizes.last().expect("a name");
        assert_eq!(other.name, OTHER);
        assert_eq!(other.keys, 2 * (NAMES as u64 + 1));
    }
}
