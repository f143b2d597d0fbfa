//! Live events: from the outbox to whoever listens.
//!
//! One task numbers what was committed, reads it in order and appends it to a history of fixed size. Everybody who
//! listens reads that at their own pace; who falls out of it goes on from the table, and comes back when they have caught
//! up. So nobody waits for a slow listener, memory does not grow, and nothing is lost that the table still has.

mod bus;
mod filter;
mod handler;
mod outbox;
mod relay;
mod session;

use std::time::Duration;

pub(crate) use bus::{Bus, SHARING, changes_sharing};
pub(crate) use filter::FeedFilter;
pub(crate) use handler::Handler;
pub(crate) use outbox::{NewEvent, append};
pub use relay::Relay;
pub(crate) use relay::notify_ended;
pub use session::Watch;
pub(crate) use session::{Ended, Watches};

/// Most events that are handed out at once.
pub(crate) const BATCH: usize = 64;

/// How events are handed out.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How many of the latest events are kept in memory.
    pub history: usize,
    /// How long an event counts as a duplicate of an equal one; zero lets all pass.
    pub window: Duration,
    /// How often the outbox is looked at without being told.
    pub poll: Duration,
    /// How long events are kept.
    pub retention: Duration,
    /// How many events the server's own handlers handle at once.
    pub handlers: usize,
}

/// What has been handed out so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Events that were handed out here, whichever instance they come from.
    pub published: u64,
    /// Events that subscribers were given.
    pub delivered: u64,
    /// Events that were left out as duplicates.
    pub deduplicated: u64,
    /// How often a subscriber fell out of the history and went on from the table.
    pub lagged: u64,
    /// How often a handler has failed.
    pub handler_errors: u64,
    /// Open subscriptions.
    pub subscribers: u64,
    /// Events in memory.
    pub history: u64,
}
