//! Buckets of this instance alone.
//!
//! Their number is bounded. When there is no room, full buckets leave first, for they are as good as new ones; then
//! those that are closest to full, for they forget the least. Spent ones stay, and when all are spent, further clients
//! share one bucket: whatever arrives, no debt is forgotten and no memory is taken.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use super::bucket::{Ask, Given, WINDOW};
use crate::cache::CacheStats;

/// The share of buckets that leave at once, so that making room is rare.
const SHARE: usize = 10;

/// How long no room is made after there was little to make, in microseconds.
const PAUSE: i64 = 1_000_000;

/// The bucket that clients share for whom there is no room.
const SHARED: u128 = 0;

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
    /// By the hash of their keys: when each is full again.
    full_at: HashMap<u128, i64>,
    /// No room is made before this moment.
    next_attempt: i64,
}

impl Buckets {
    /// Where a bucket is, or will be.
    fn place(&self, key: u128, has_room: bool) -> u128 {
        if has_room || self.full_at.contains_key(&key) {
            key
        } else {
            SHARED
        }
    }

    fn debt(&self, place: u128, now: i64) -> Option<i64> {
        self.full_at.get(&place).map(|full_at| full_at - now)
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

    /// Takes from all buckets at one moment; with `whole`, from all or from none.
    pub(super) fn take(&self, asks: &[Ask], whole: bool, now: i64) -> Vec<Given> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.full_at.len() + asks.len() > self.capacity && now >= buckets.next_attempt {
            self.make_room(&mut buckets, now);
        }
        let has_room = buckets.full_at.len() + asks.len() <= self.capacity;
        let places: Vec<_> = asks
            .iter()
            .map(|ask| buckets.place(self.hash(&ask.key), has_room))
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
        let given = Ask::of_all(asks, &debts.collect::<Vec<_>>(), whole);
        for (place, given) in places.into_iter().zip(&given) {
            if given.granted != 0 {
                buckets.full_at.insert(place, now + given.debt);
            }
        }
        given
    }

    fn make_room(&self, buckets: &mut Buckets, now: i64) {
        let full_at = &mut buckets.full_at;
        let before = full_at.len();
        full_at.retain(|_, full_at| *full_at > now);
        let wanted = self.capacity - self.capacity / SHARE;
        if full_at.len() > wanted {
            let mut ends: Vec<_> = full_at.values().copied().collect();
            let excess = ends.len() - wanted;
            let (_, last, _) = ends.select_nth_unstable(excess - 1);
            // What is spent by more than half stays.
            let end = (*last).min(now + WINDOW / 2);
            full_at.retain(|_, full_at| *full_at > end);
        }
        if full_at.len() > wanted {
            // Almost all are spent. Trying again for every newcomer would cost more than it frees.
            buckets.next_attempt = now + PAUSE;
        }
        let gone = (before - full_at.len()) as u64;
        self.evictions.fetch_add(gone, Ordering::Relaxed);
    }

    pub(super) fn stats(&self) -> CacheStats {
        let buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        CacheStats {
            size: buckets.full_at.len() as u64,
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

    fn ask(key: &(impl ToString + ?Sized), limit: u32, cost: i64) -> Ask {
        Ask {
            key: key.to_string(),
            limit,
            cost,
        }
    }

    #[test]
    fn a_flood_of_a_million_addresses_forgets_no_debt_and_takes_no_memory() {
        let memory = Memory::new(10_000);
        let victim = ask("victim", 5, 5);
        assert_eq!(memory.take(&[victim], true, 0)[0].granted, 5);
        for address in 0..1_000_000_i64 {
            // A million in ten seconds.
            let now = address * 10;
            memory.take(&[ask(&address, 300, 1)], true, now);
            if address % 1_000 == 0 {
                let given = memory.take(&[ask("victim", 5, 0)], true, now);
                assert_eq!(given[0].debt, 60_000_000 - now);
            }
        }
        let stats = memory.stats();
        assert!(stats.size <= 10_000, "{}", stats.size);
        assert!(stats.evictions > 900_000, "{}", stats.evictions);
    }

    #[test]
    fn when_every_bucket_is_spent_further_clients_share_one() {
        let memory = Memory::new(1_000);
        for address in 0..1_000 {
            assert_eq!(memory.take(&[ask(&address, 5, 5)], true, 0)[0].granted, 5);
        }
        let newcomers: i64 = (1_000..2_000)
            .map(|address| memory.take(&[ask(&address, 5, 1)], true, 1)[0].granted)
            .sum();
        assert_eq!(newcomers, 5);
        assert_eq!(memory.take(&[ask(&7, 5, 1)], true, 1)[0].granted, 0);
        assert!(memory.stats().size <= 1_001);
    }

    #[test]
    fn of_a_thousand_at_once_exactly_as_many_pass_as_there_is_room_for() {
        let memory = Memory::new(1_000);
        let passed = thread::scope(|scope| {
            let threads = (0..8).map(|_| {
                scope.spawn(|| {
                    (0..125)
                        .map(|_| memory.take(&[ask("one", 120, 1)], true, 0)[0].granted)
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
    fn what_is_asked_for_as_a_whole_leaves_no_trace_where_it_does_not_fit() {
        let memory = Memory::new(1_000);
        let asks = [ask("a", 5, 2), ask("b", 5, 6)];
        assert!(memory.take(&asks, true, 0).iter().all(|given| *given
            == Given {
                granted: 0,
                debt: 0
            }));
        let part: Vec<_> = memory
            .take(&asks, false, 0)
            .iter()
            .map(|given| given.granted)
            .collect();
        assert_eq!(part, [2, 5]);
    }
}
