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
pub(crate) use outbox::{NewEvent, Origin, append, append_rows, event_rows, selected};
pub use relay::Relay;
pub(crate) use relay::notify_ended;
pub use session::Watch;
pub(crate) use session::{Ended, Watches};

/// Maximum number of events in a batch.
pub(crate) const BATCH: usize = 64;

gathering_settings::settings! {
    /// The settings of live events.
    pub struct Settings {
        /// Number of recent events kept in memory; subscribers that are further behind are served from the database.
        history: usize = 1_000, from 64, to 1_000_000;
        /// Time within which an event is dropped if it equals the latest event of its subject; 0s disables this.
        window: Duration = Duration::from_secs(1), from Duration::ZERO, to Duration::from_mins(1);
        /// Interval at which the database is polled for new events, in addition to notifications.
        poll: Duration = Duration::from_secs(1), from Duration::from_millis(10), to Duration::from_hours(1);
        /// Maximum number of events that the server's internal handlers process at the same time.
        handlers: usize = 100, from 1, to 10_000;
        /// How long events are kept, and therefore how long a subscription can be resumed.
        retention: Duration = Duration::from_hours(30 * 24), from Duration::from_hours(1), to Duration::from_hours(3650 * 24);
    }
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
    /// The time from the oldest event of the last pass that published any to its publication.
    pub relay_lag: Duration,
}
