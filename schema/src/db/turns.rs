//! Turns: work on the same key is done one after the other on an instance.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

/// The keys on which work is done.
pub(crate) struct Turns<K>(Mutex<HashMap<K, Weak<AsyncMutex<()>>>>);

/// An exclusive lock on a key, released on drop.
pub(crate) struct Turn<K: Eq + Hash> {
    _guard: OwnedMutexGuard<()>,
    _place: Place<K>,
    has_waited: bool,
}

/// A user of a key. The last one to be dropped removes the entry.
struct Place<K: Eq + Hash> {
    key: K,
    mutex: Option<Arc<AsyncMutex<()>>>,
    turns: Arc<Turns<K>>,
}

impl<K> Default for Turns<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash + Clone> Turns<K> {
    /// Waits for the lock on a key.
    pub(crate) async fn take(self: &Arc<Self>, key: K) -> Turn<K> {
        let mutex = {
            let mut all = self.lock();
            let entry = all.entry(key.clone()).or_default();
            entry.upgrade().unwrap_or_else(|| {
                let mutex = Arc::default();
                *entry = Arc::downgrade(&mutex);
                mutex
            })
        };
        let place = Place {
            key,
            mutex: Some(Arc::clone(&mutex)),
            turns: Arc::clone(self),
        };
        let (guard, has_waited) = match Arc::clone(&mutex).try_lock_owned() {
            Ok(guard) => (guard, false),
            Err(_) => (mutex.lock_owned().await, true),
        };
        Turn {
            _guard: guard,
            _place: place,
            has_waited,
        }
    }
}

impl<K: Eq + Hash> Turns<K> {
    fn lock(&self) -> MutexGuard<'_, HashMap<K, Weak<AsyncMutex<()>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Eq + Hash> Turn<K> {
    /// Whether other work on the key has ended in the meantime.
    pub(crate) fn has_waited(&self) -> bool {
        self.has_waited
    }
}

impl<K: Eq + Hash> Drop for Place<K> {
    fn drop(&mut self) {
        let mut all = self.turns.lock();
        drop(self.mutex.take());
        if all
            .get(&self.key)
            .is_some_and(|entry| entry.strong_count() == 0)
        {
            all.remove(&self.key);
        }
    }
}
