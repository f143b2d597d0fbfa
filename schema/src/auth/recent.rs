//! Credentials that were read a moment ago.
//!
//! A credential that was valid is accepted for [`LIFE`] without another read. A change of an account, a session or an
//! API key is answered [`EFFECT`] after its commit, when no instance accepts what was read before the commit. So a
//! request that is sent after the answer sees the change on every instance, without a message between them. A change by
//! another program takes effect within [`LIFE`].

use std::{
    hash::Hash,
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use tokio::time::sleep;

use crate::cache::{Cache, CacheStats};

/// How long a credential is accepted after its read has begun.
const LIFE: Duration = Duration::from_millis(100);

/// How long after its commit a change is in effect everywhere: longer than [`LIFE`], since the clocks of two machines
/// differ in speed.
const EFFECT: Duration = Duration::from_millis(125);

/// How long a credential stays in memory, since the row of a user has personal data.
const KEPT: Duration = Duration::from_secs(1);

/// Maximum number of credentials.
const CAPACITY: u64 = 10_000;

/// A moment by two clocks: the monotonic one stops while the machine sleeps, and the other one can be set.
#[derive(Clone, Copy)]
pub(super) struct Moment {
    monotonic: Instant,
    time: DateTime<Utc>,
}

impl Moment {
    pub(super) fn new(time: DateTime<Utc>) -> Self {
        Self {
            monotonic: Instant::now(),
            time,
        }
    }

    fn is_within_life_of(self, earlier: Self) -> bool {
        let elapsed = self.time.signed_duration_since(earlier.time);
        self.monotonic.duration_since(earlier.monotonic) < LIFE
            && elapsed.to_std().is_ok_and(|elapsed| elapsed < LIFE)
    }
}

/// Valid credentials of one type.
pub(super) struct Recent<K, V>(Cache<K, (V, Moment)>);

impl<K, V> Recent<K, V>
where
    K: Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    pub(super) fn new() -> Self {
        Self(Cache::new(CAPACITY, Some(KEPT)))
    }

    /// The value of a credential, if its read began a moment before `now`.
    pub(super) fn get(&self, key: &K, now: Moment) -> Option<V> {
        let (value, read) = self.0.get(key)?;
        now.is_within_life_of(read).then_some(value)
    }

    /// Keeps the value of a valid credential; `read` is a moment before the read began.
    pub(super) fn insert(&self, key: K, value: V, read: Moment) {
        self.0.insert(key, (value, read));
    }

    pub(super) fn stats(&self) -> CacheStats {
        self.0.stats()
    }
}

/// Waits until a change of an account, a session or an API key, which is committed, is in effect on every instance.
pub(crate) async fn take_effect() {
    sleep(EFFECT).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_expires_by_either_clock() {
        let read = Moment::new(DateTime::UNIX_EPOCH);
        let recent = Recent::new();
        recent.insert(1, "valid", read);
        let after = |monotonic: u64, time: i64| Moment {
            monotonic: read.monotonic + Duration::from_millis(monotonic),
            time: read.time + chrono::TimeDelta::milliseconds(time),
        };
        let known = |monotonic, time| recent.get(&1, after(monotonic, time)).is_some();
        assert!(known(0, 0));
        assert!(known(99, 99));
        assert!(!known(100, 0));
        assert!(!known(0, 100));
        assert!(!known(0, -1));
        assert_eq!(recent.get(&2, read), None);
    }

    #[test]
    fn a_change_is_answered_after_the_last_use_of_an_earlier_read() {
        assert!(EFFECT >= LIFE + LIFE / 5);
    }
}
