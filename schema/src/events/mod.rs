//! Live events: from the outbox to the subscribers.
//!
//! One task numbers committed events, reads them in order and appends them to a history of fixed size. Each subscriber
//! reads the history at its own pace; one that falls behind the history continues from the table, and returns to the
//! history when it has caught up. So nothing waits for a slow subscriber, memory is bounded, and no event is lost as
//! long as the table contains it.

mod bus;
mod filter;
mod handler;
mod kind;
mod outbox;
mod relay;
mod session;

use std::time::Duration;

pub(crate) use bus::{Bus, SHARING, changes_sharing};
pub(crate) use filter::FeedFilter;
pub(crate) use handler::Handler;
pub use kind::EventType;
pub(crate) use outbox::{NewEvent, append};
pub use relay::Relay;
pub(crate) use relay::notify_ended;
pub use session::Watch;
pub(crate) use session::{Ended, Watches};

/// Maximum number of events in a batch.
pub(crate) const BATCH: usize = 64;

/// The settings of live events.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The number of latest events in memory.
    pub history: usize,
    /// How long an event counts as a duplicate of an equal one; zero disables deduplication.
    pub window: Duration,
    /// How often the outbox is polled.
    pub poll: Duration,
    /// How long events are stored.
    pub retention: Duration,
    /// The number of events that the server's handlers handle concurrently.
    pub handlers: usize,
}

/// The event statistics of this instance.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Events published on this instance, including those of other instances.
    pub published: u64,
    /// Events delivered to subscribers.
    pub delivered: u64,
    /// Events dropped as duplicates.
    pub deduplicated: u64,
    /// How often a subscriber fell behind the history and continued from the table.
    pub lagged: u64,
    /// How often a handler failed.
    pub handler_errors: u64,
    /// Open subscriptions.
    pub subscribers: u64,
    /// Events in memory.
    pub history: u64,
}
