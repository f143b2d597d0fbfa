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

/// How long after making room there is no other attempt, in microseconds.
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
        buckets.next_attempt = now + PAUSE;
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
