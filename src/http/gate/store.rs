//! The states of the limiter: one for each key, in a bounded number.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use governor::clock::Reference;
use governor::nanos::Nanos;
use governor::state::StateStore;

/// The states of the keys that were used last. When the store is full, it evicts the least recently used key.
pub(super) struct States<K> {
    capacity: usize,
    entries: Mutex<Entries<K>>,
}

struct Entries<K> {
    states: HashMap<K, Entry>,
    /// The keys by their last use.
    by_use: BTreeMap<u64, K>,
    /// How often any key was used.
    uses: u64,
}

struct Entry {
    /// When the bucket will be full.
    full_at: Nanos,
    last_use: u64,
}

impl<K: Copy + Eq + Hash> States<K> {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            capacity: capacity.max(1),
            entries: Mutex::new(Entries {
                states: HashMap::new(),
                by_use: BTreeMap::new(),
                uses: 0,
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Entries<K>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn len(&self) -> usize {
        self.lock().states.len()
    }

    /// Replaces the state of a key in one step, unless the update fails.
    fn update<T, E>(
        &self,
        key: K,
        update: impl FnOnce(Option<Nanos>) -> Result<(T, Nanos), E>,
    ) -> Result<T, E> {
        let mut entries = self.lock();
        let Entries {
            states,
            by_use,
            uses,
        } = &mut *entries;
        *uses += 1;
        let known = states.get_mut(&key);
        let updated = update(known.as_ref().map(|entry| entry.full_at));
        match (known, &updated) {
            (Some(entry), _) => {
                // A refused key is in use too, so a flood of refused requests does not evict its own bucket.
                by_use.remove(&entry.last_use);
                entry.last_use = *uses;
                if let Ok((_, full_at)) = &updated {
                    entry.full_at = *full_at;
                }
                by_use.insert(*uses, key);
            }
            (None, Ok((_, full_at))) => {
                if states.len() >= self.capacity
                    && let Some((_, oldest)) = by_use.pop_first()
                {
                    states.remove(&oldest);
                }
                let entry = Entry {
                    full_at: *full_at,
                    last_use: *uses,
                };
                states.insert(key, entry);
                by_use.insert(*uses, key);
            }
            (None, Err(_)) => {}
        }
        updated.map(|(value, _)| value)
    }
}

/// The same states for a limiter that counts time from its own start. A reload replaces the limiter and keeps the states.
pub(super) struct StatesSince<K> {
    states: Arc<States<K>>,
    start: Nanos,
}

impl<K> StatesSince<K> {
    pub(super) fn new(states: Arc<States<K>>, start: Nanos) -> Self {
        Self { states, start }
    }
}

impl<K: Copy + Eq + Hash> StateStore for StatesSince<K> {
    type Key = K;

    fn measure_and_replace<T, F, E>(&self, key: &K, measure: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        self.states.update(*key, |full_at| {
            let since_start = full_at.map(|full_at| full_at.duration_since(self.start));
            let (value, full_at) = measure(since_start)?;
            Ok((value, full_at + self.start))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts the uses of a key in its state.
    fn count(states: &States<u32>, number: u32) -> u64 {
        let counted = states.update(number, |uses| {
            let uses = uses.map_or(0, Nanos::as_u64) + 1;
            Ok::<_, ()>((uses, Nanos::new(uses)))
        });
        counted.expect("is counted")
    }

    #[test]
    fn a_million_keys_leave_as_many_states_as_the_capacity() {
        let states = States::new(1_000);
        for number in 0..1_000_000 {
            assert_eq!(count(&states, number), 1);
        }
        assert_eq!(states.len(), 1_000);
        assert_eq!(states.lock().by_use.len(), 1_000);
    }

    #[test]
    fn the_least_recently_used_key_is_evicted_first() {
        let states = States::new(3);
        for number in [1, 2, 3, 1] {
            count(&states, number);
        }
        let refused = states.update(2, |_| Err::<((), Nanos), _>("refused"));
        assert_eq!(refused, Err("refused"));
        // The refused key was used after the third, which is evicted.
        assert_eq!(count(&states, 4), 1);
        assert_eq!(count(&states, 2), 2);
        assert_eq!(count(&states, 1), 3);
        assert_eq!(count(&states, 3), 1);
    }

    #[test]
    fn every_use_by_several_threads_counts() {
        let states = States::new(10);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..1_000 {
                        count(&states, 1);
                    }
                });
            }
        });
        assert_eq!(count(&states, 1), 8_001);
    }
}
