//! The buckets of one instance, in memory.
//!
//! Their number is bounded. If there is no room, full buckets are removed: they are equal to new ones. If there are
//! none, further clients share one bucket per limit, so that no debt is forgotten and memory does not grow.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::{
    cache::CacheStats,
    rate_limit::bucket::{Acquire, Debt, Granted},
};

/// If fewer than `capacity / SHARE` buckets could be removed, the next attempt is delayed.
const SHARE: usize = 10;

/// The delay after an attempt that removed few buckets, in microseconds.
const PAUSE: i64 = 100_000;

pub(super) struct Memory {
    capacity: usize,
    buckets: Mutex<Buckets>,
    hashers: [RandomState; 2],
    hits: AtomicU64,
    misses: AtomicU64,
    evictions: AtomicU64,
}

#[derive(Default)]
struct Buckets {
    /// The buckets by the hashes of their keys.
    by_hash: HashMap<u128, Bucket>,
    /// No buckets are removed before this time.
    next_attempt: i64,
}

#[derive(Clone, Copy)]
struct Bucket {
    /// When it is full again.
    full_at: i64,
    /// The interval with which `full_at` was computed.
    interval: i64,
}

impl Bucket {
    fn debt(self, now: i64) -> Debt {
        Debt {
            micros: self.full_at - now,
            interval: self.interval,
        }
    }
}

impl Buckets {
    /// The key of a bucket. Without room, a bucket that all clients with the same limit share.
    fn place(&self, key: u128, limit: u32, has_room: bool) -> u128 {
        if has_room || self.by_hash.contains_key(&key) {
            key
        } else {
            u128::from(limit)
        }
    }

    fn debt(&self, place: u128, now: i64) -> Option<Debt> {
        self.by_hash.get(&place).map(|bucket| bucket.debt(now))
    }
}

impl Memory {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            capacity,
            buckets: Mutex::default(),
            hashers: [RandomState::new(), RandomState::new()],
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            evictions: AtomicU64::new(0),
        }
    }

    fn hash(&self, key: &str) -> u128 {
        let [high, low] = &self.hashers;
        u128::from(high.hash_one(key)) << 64 | u128::from(low.hash_one(key))
    }

    /// Takes from all buckets atomically: nothing if a required cost does not fit.
    pub(super) fn take(&self, acquires: &[Acquire], now: i64) -> Vec<Granted> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.by_hash.len() + acquires.len() > self.capacity && now >= buckets.next_attempt {
            self.make_room(&mut buckets, now);
        }
        let has_room = buckets.by_hash.len() + acquires.len() <= self.capacity;
        let places: Vec<_> = acquires
            .iter()
            .map(|acquire| buckets.place(self.hash(&acquire.key), acquire.limit, has_room))
            .collect();
        let debts = places.iter().map(|place| {
            let debt = buckets.debt(*place, now);
            let counter = if debt.is_some() {
                &self.hits
            } else {
                &self.misses
            };
            counter.fetch_add(1, Ordering::Relaxed);
            debt.unwrap_or_default()
        });
        let grants = Acquire::of_all(acquires, &debts.collect::<Vec<_>>());
        for ((acquire, place), grant) in acquires.iter().zip(places).zip(&grants) {
            if grant.granted != 0 {
                // Two buckets of an operation may be the same shared bucket, which then has both debts.
                let interval = acquire.interval();
                let full_at = now;
                let new = Bucket { full_at, interval };
                let bucket = buckets.by_hash.entry(place).or_insert(new);
                let Debt { micros, interval } = acquire.apply(bucket.debt(now), grant.granted);
                let full_at = now + micros;
                *bucket = Bucket { full_at, interval };
            }
        }
        grants
    }

    fn make_room(&self, buckets: &mut Buckets, now: i64) {
        let before = buckets.by_hash.len();
        buckets.by_hash.retain(|_, bucket| bucket.full_at > now);
        let gone = before - buckets.by_hash.len();
        if gone < self.capacity / SHARE {
            // An attempt for every new client would cost more than it frees.
            buckets.next_attempt = now + PAUSE;
        }
        self.evictions.fetch_add(gone as u64, Ordering::Relaxed);
    }

    pub(super) fn stats(&self) -> CacheStats {
        let buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        CacheStats {
            size: buckets.by_hash.len() as u64,
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
            evictions: self.evictions.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn acquire(key: &(impl ToString + ?Sized), limit: u32, cost: i64) -> Acquire {
        Acquire {
            key: key.to_string(),
            limit,
            cost,
            is_required: true,
        }
    }

    #[test]
    fn a_million_addresses_evict_no_debt_and_memory_stays_bounded() {
        let memory = Memory::new(50_000);
        let victim = acquire("victim", 5, 5);
        assert_eq!(memory.take(&[victim], 0)[0].granted, 5);
        for address in 0..1_000_000_i64 {
            // A million in ten seconds.
            let now = address * 10;
            let grants = memory.take(&[acquire(&address, 300, 1)], now);
            assert_eq!(grants[0].granted, 1, "{address}");
            if address % 1_000 == 0 {
                let grants = memory.take(&[acquire("victim", 5, 0)], now);
                assert_eq!(grants[0].debt, 60_000_000 - now);
            }
        }
        let stats = memory.stats();
        assert!(stats.size <= 50_000, "{}", stats.size);
        assert!(stats.evictions > 900_000, "{}", stats.evictions);
    }

    #[test]
    fn without_room_new_clients_share_one_bucket() {
        let memory = Memory::new(1_000);
        for address in 0..1_000 {
            assert_eq!(memory.take(&[acquire(&address, 5, 5)], 0)[0].granted, 5);
        }
        let newcomers: i64 = (1_000..2_000)
            .map(|address| memory.take(&[acquire(&address, 5, 1)], 1)[0].granted)
            .sum();
        assert_eq!(newcomers, 5);
        assert_eq!(memory.take(&[acquire(&7, 5, 1)], 1)[0].granted, 0);
        assert!(memory.stats().size <= 1_001, "and the shared one");
    }

    #[test]
    fn concurrent_requests_never_exceed_the_limit() {
        let memory = Memory::new(1_000);
        let passed = thread::scope(|scope| {
            let threads = (0..8).map(|_| {
                scope.spawn(|| {
                    (0..125)
                        .map(|_| memory.take(&[acquire("one", 120, 1)], 0)[0].granted)
                        .sum::<i64>()
                })
            });
            let threads: Vec<_> = threads.collect();
            threads
                .into_iter()
                .map(|thread| thread.join().expect("ends"))
                .sum::<i64>()
        });
        assert_eq!(passed, 120);
    }

    #[test]
    fn an_atomic_request_that_does_not_fit_takes_nothing() {
        let memory = Memory::new(1_000);
        let acquires = [acquire("a", 5, 2), acquire("b", 5, 6)];
        assert!(memory.take(&acquires, 0).iter().all(|grant| *grant
            == Granted {
                granted: 0,
                debt: 0
            }));
        let optional = acquires.map(|acquire| Acquire {
            is_required: false,
            ..acquire
        });
        let part: Vec<_> = memory
            .take(&optional, 0)
            .iter()
            .map(|grant| grant.granted)
            .collect();
        assert_eq!(part, [2, 5]);
    }
}
