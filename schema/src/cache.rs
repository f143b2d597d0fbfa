//! The only module that creates caches: always bounded, with LRU eviction and statistics.

use std::{
    borrow::Borrow,
    hash::Hash,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use moka::{notification::RemovalCause, policy::EvictionPolicy, sync};

/// A bounded cache. Clones share their entries.
#[derive(Clone)]
pub struct Cache<K, V> {
    entries: sync::Cache<K, V>,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    hits: AtomicU64,
    misses: AtomicU64,
    evictions: AtomicU64,
}

/// The size of a cache, and its counters since the start of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheStats {
    /// The number of entries.
    pub size: u64,
    /// Lookups that found an entry.
    pub hits: u64,
    /// Lookups that found no entry.
    pub misses: u64,
    /// Entries evicted to make room.
    pub evictions: u64,
}

impl<K, V> Cache<K, V>
where
    K: Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// Creates a cache of at most `capacity` entries, each kept for at most `ttl` if it is given.
    pub fn new(capacity: u64, ttl: Option<Duration>) -> Self {
        Self::build(capacity, ttl, |_, _| 0)
    }

    /// Creates a cache of at most `capacity` entries, where an entry counts as many times as `weigh` returns.
    pub fn weighed(capacity: u64, weigh: impl Fn(&K, &V) -> u64 + Send + Sync + 'static) -> Self {
        Self::build(capacity, None, weigh)
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the only place that creates caches"
    )]
    fn build(
        capacity: u64,
        ttl: Option<Duration>,
        weigh: impl Fn(&K, &V) -> u64 + Send + Sync + 'static,
    ) -> Self {
        let counts = Arc::new(Counts::default());
        let evictions = Arc::clone(&counts);
        let mut builder = sync::Cache::builder()
            .max_capacity(capacity)
            .eviction_policy(EvictionPolicy::lru())
            .weigher(move |key, value| {
                u32::try_from(weigh(key, value)).map_or(u32::MAX, |others| others.saturating_add(1))
            })
            .eviction_listener(move |_, _, cause| {
                if cause == RemovalCause::Size {
                    evictions.evictions.fetch_add(1, Ordering::Relaxed);
                }
            });
        if let Some(ttl) = ttl {
            builder = builder.time_to_live(ttl);
        }
        Self {
            entries: builder.build(),
            counts,
        }
    }

    /// Returns the entry of a key and marks it as the most recently used.
    pub fn get<Q>(&self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let found = self.entries.get(key);
        let count = if found.is_some() {
            &self.counts.hits
        } else {
            &self.counts.misses
        };
        count.fetch_add(1, Ordering::Relaxed);
        found
    }

    /// Stores an entry, evicting the least recently used one if the cache is full.
    pub fn insert(&self, key: K, value: V) {
        self.entries.insert(key, value);
    }

    /// Removes an entry.
    pub fn remove<Q>(&self, key: &Q)
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.entries.invalidate(key);
    }

    /// The size and the counters of the cache.
    pub fn stats(&self) -> CacheStats {
        self.entries.run_pending_tasks();
        CacheStats {
            size: self.entries.entry_count(),
            hits: self.counts.hits.load(Ordering::Relaxed),
            misses: self.counts.misses.load(Ordering::Relaxed),
            evictions: self.counts.evictions.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heavy_entry_evicts_several_light_ones() {
        let cache = Cache::weighed(3, |_, value: &&str| value.len() as u64);
        for (key, value) in [(1, ""), (2, ""), (3, ""), (4, "a"), (5, "long")] {
            cache.insert(key, value);
            cache.stats();
        }
        let kept: Vec<_> = (1..=5).filter(|key| cache.get(key).is_some()).collect();
        assert_eq!(kept, [3, 4]);
    }

    #[test]
    fn a_full_cache_evicts_the_least_recently_used_entry() {
        let cache = Cache::new(2, None);
        cache.insert(1, "one");
        cache.insert(2, "two");
        cache.stats();
        assert_eq!(cache.get(&1), Some("one"));
        cache.insert(3, "three");
        let stats = cache.stats();
        assert_eq!((stats.size, stats.evictions), (2, 1));
        assert_eq!(cache.get(&1), Some("one"));
        assert_eq!(cache.get(&2), None);
        assert_eq!(cache.get(&3), Some("three"));
        let stats = cache.stats();
        assert_eq!((stats.hits, stats.misses), (3, 1));
    }
}
