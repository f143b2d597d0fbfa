//! Turns: work on the same key is done one after the other on an instance.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

/// The keys on which work is done, each with a state that the work leaves for the next.
pub(crate) struct Turns<K, S = ()>(Mutex<Entries<K, S>>);

type Entries<K, S> = HashMap<K, Weak<AsyncMutex<S>>>;

/// An exclusive lock on a key, released on drop.
pub(crate) struct Turn<K: Eq + Hash, S = ()> {
    guard: OwnedMutexGuard<S>,
    _place: Place<K, S>,
    has_waited: bool,
}

/// A user of a key. The last one to be dropped removes the entry.
struct Place<K: Eq + Hash, S> {
    key: K,
    mutex: Option<Arc<AsyncMutex<S>>>,
    turns: Arc<Turns<K, S>>,
}

impl<K, S> Default for Turns<K, S> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash + Clone, S: Default> Turns<K, S> {
    /// Waits for the lock on a key, behind those who wait for it already. The state of the key is kept from the call on.
    pub(crate) fn take(self: &Arc<Self>, key: K) -> impl Future<Output = Turn<K, S>> + use<K, S> {
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
        async move {
            let (guard, has_waited) = match Arc::clone(&mutex).try_lock_owned() {
                Ok(guard) => (guard, false),
                Err(_) => (mutex.lock_owned().await, true),
            };
            Turn {
                guard,
                _place: place,
                has_waited,
            }
        }
    }
}

impl<K: Eq + Hash, S> Turns<K, S> {
    fn lock(&self) -> MutexGuard<'_, Entries<K, S>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Eq + Hash, S> Turn<K, S> {
    /// Whether other work on the key has ended in the meantime.
    pub(crate) fn has_waited(&self) -> bool {
        self.has_waited
    }

    /// Whether other work waits for the key.
    pub(crate) fn is_awaited(&self) -> bool {
        // The guard and the place refer to the mutex as well.
        Arc::strong_count(OwnedMutexGuard::mutex(&self.guard)) > 2
    }

    pub(crate) fn state(&mut self) -> &mut S {
        &mut self.guard
    }
}

impl<K: Eq + Hash, S> Drop for Place<K, S> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_state_of_a_key_is_kept_while_work_on_it_is_announced() {
        let turns = Arc::<Turns<u8, u32>>::default();
        let mut first = turns.take(1).await;
        assert!(!first.is_awaited());
        let next = turns.take(1);
        assert!(first.is_awaited());
        *first.state() = 7;
        assert_eq!(*turns.take(2).await.state(), 0);
        drop(first);
        let mut next = next.await;
        assert!(!next.is_awaited());
        assert_eq!(*next.state(), 7);
        drop(next);
        assert_eq!(*turns.take(1).await.state(), 0);
        assert!(turns.lock().is_empty());
    }
}
