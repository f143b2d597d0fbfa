//! The end of sessions, for the streams and connections that belong to them.
//!
//! Each stream and each WebSocket connection holds a [`Watch`] of its session. The change that ends the session marks
//! its watches after the commit and before its own response, so that no event of a stream follows this response.
//! Checking a watch takes no statement and shares no lock with other streams.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use tokio::sync::watch::Sender;
use uuid::Uuid;

/// Sessions that have ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// One session of a user.
    One {
        /// The user.
        user: Uuid,
        /// The session.
        session: Uuid,
    },
    /// All sessions authenticated before the user's `token_version` changed to this one.
    Before {
        /// The user.
        user: Uuid,
        /// The new `token_version`.
        version: i32,
    },
    /// As [`Ended::Before`], and all streams and connections of API keys, because the rights of the user have changed.
    All {
        /// The user.
        user: Uuid,
        /// The new `token_version`.
        version: i32,
    },
}

impl Ended {
    fn user(self) -> Uuid {
        match self {
            Self::One { user, .. } | Self::Before { user, .. } | Self::All { user, .. } => user,
        }
    }

    fn concerns(self, watched: &Watched) -> bool {
        watched.user == self.user()
            && match self {
                Self::One { session, .. } => watched.session == session,
                Self::Before { version, .. } => watched.version.is_some_and(|of| of < version),
                Self::All { version, .. } => watched.version.is_none_or(|of| of < version),
            }
    }

    /// The notification for other instances.
    pub(crate) fn to_notice(self) -> String {
        match self {
            Self::One { user, session } => format!("{user} {session}"),
            Self::Before { user, version } => format!("{user} {version}"),
            Self::All { user, version } => format!("{user} {version} keys"),
        }
    }

    /// Parses the text of [`Ended::to_notice`]; `None` for any other text.
    pub(super) fn from_notice(notice: &str) -> Option<Self> {
        let (user, which) = notice.split_once(' ')?;
        let user = user.parse().ok()?;
        if let Some(version) = which.strip_suffix(" keys") {
            let version = version.parse().ok()?;
            return Some(Self::All { user, version });
        }
        if let Ok(version) = which.parse() {
            return Some(Self::Before { user, version });
        }
        let session = which.parse().ok()?;
        Some(Self::One { user, session })
    }
}

/// All watches of this instance, by user. Bounded by the number of streams and connections.
#[derive(Default)]
pub(crate) struct Watches(Mutex<HashMap<Uuid, Vec<Weak<Watched>>>>);

struct Watched {
    user: Uuid,
    session: Uuid,
    /// The user's `token_version` in the access token; `None` for an API key.
    version: Option<i32>,
    has_ended: Sender<bool>,
    watches: Arc<Watches>,
}

/// Watches a session, until the last clone is dropped.
#[derive(Clone)]
pub struct Watch(Arc<Watched>);

impl Watches {
    /// Starts to watch a session, or with no version an API key. Must be called before the session is checked, so that
    /// no end is missed.
    pub(crate) fn watch(
        self: &Arc<Self>,
        user: Uuid,
        session: Uuid,
        version: Option<i32>,
    ) -> Watch {
        let watched = Arc::new(Watched {
            user,
            session,
            version,
            has_ended: Sender::new(false),
            watches: Arc::clone(self),
        });
        let mut all = self.lock();
        all.entry(user).or_default().push(Arc::downgrade(&watched));
        Watch(watched)
    }

    /// Marks the watches of ended sessions. After it returns, [`Watch::unless_ended`] runs nothing for them any more.
    pub(crate) fn end(&self, ended: Ended) {
        // Not marked under the lock, because dropping a watch takes the lock.
        for watched in self.of(ended.user()) {
            if ended.concerns(&watched) {
                watched.has_ended.send_replace(true);
            }
        }
    }

    /// The sessions of a user that are watched and have not ended.
    pub(crate) fn sessions(&self, user: Uuid) -> Vec<Uuid> {
        let watched = self.of(user).into_iter();
        let active = watched.filter(|watched| !*watched.has_ended.borrow());
        let mut sessions: Vec<Uuid> = active.map(|watched| watched.session).collect();
        sessions.sort_unstable();
        sessions.dedup();
        sessions
    }

    fn of(&self, user: Uuid) -> Vec<Arc<Watched>> {
        let all = self.lock();
        let watched = all.get(&user).into_iter().flatten();
        watched.filter_map(Weak::upgrade).collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Uuid, Vec<Weak<Watched>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let mut all = self.watches.lock();
        if let Some(watched) = all.get_mut(&self.user) {
            watched.retain(|watched| watched.strong_count() > 0);
            if watched.is_empty() {
                all.remove(&self.user);
            }
        }
    }
}

impl Watch {
    /// Whether the session has ended.
    pub fn has_ended(&self) -> bool {
        *self.0.has_ended.borrow()
    }

    /// Waits until the session has ended.
    pub async fn ended(&self) {
        // The sender lives as long as `self`.
        let _ = self.0.has_ended.subscribe().wait_for(|ended| *ended).await;
    }

    /// Runs `work` unless the session has ended. The end of the session waits for `work`, so that nothing follows its
    /// response; `work` must be short, and must not wait.
    pub fn unless_ended<T>(&self, work: impl FnOnce() -> T) -> Option<T> {
        let has_ended = self.0.has_ended.borrow();
        (!*has_ended).then(work)
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut watch = formatter.debug_struct("Watch");
        watch.field("has_ended", &self.has_ended()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADA: Uuid = Uuid::from_u128(1);
    const BOB: Uuid = Uuid::from_u128(2);
    const HERE: Uuid = Uuid::from_u128(3);
    const THERE: Uuid = Uuid::from_u128(4);
    const KEY: Uuid = Uuid::from_u128(5);

    #[test]
    fn an_ended_session_marks_its_own_watches_and_no_others() {
        let watches = Arc::new(Watches::default());
        let all = [
            watches.watch(ADA, HERE, Some(1)),
            watches.watch(ADA, HERE, Some(1)),
            watches.watch(ADA, THERE, Some(1)),
            watches.watch(ADA, THERE, Some(2)),
            watches.watch(BOB, HERE, Some(1)),
            watches.watch(ADA, KEY, None),
        ];
        let ended = || all.each_ref().map(Watch::has_ended);
        watches.end(Ended::One {
            user: ADA,
            session: HERE,
        });
        assert_eq!(ended(), [true, true, false, false, false, false]);
        assert_eq!(watches.sessions(ADA), [THERE, KEY]);
        let version = 2;
        watches.end(Ended::Before { user: ADA, version });
        assert_eq!(ended(), [true, true, true, false, false, false]);
        assert_eq!(all[0].unless_ended(|| "done"), None);
        assert_eq!(all[3].unless_ended(|| "done"), Some("done"));
        watches.end(Ended::All { user: ADA, version });
        assert_eq!(ended(), [true, true, true, false, false, true]);
        drop(all);
        assert!(watches.lock().is_empty());
    }

    #[test]
    fn notices_survive_a_round_trip() {
        let (user, session, version) = (ADA, HERE, 7);
        for ended in [
            Ended::One { user, session },
            Ended::Before { user, version },
            Ended::All { user, version },
        ] {
            assert_eq!(Ended::from_notice(&ended.to_notice()), Some(ended));
        }
        let [bare, word, keys] = ["", " x", " x keys"].map(|rest| format!("{ADA}{rest}"));
        for text in ["", "x", &bare, &word, &keys, "x 1"] {
            assert_eq!(Ended::from_notice(text), None);
        }
    }
}
