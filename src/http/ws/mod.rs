//! GraphQL over WebSocket: the sub-protocol `graphql-transport-ws`.
//!
//! A connection is one task, the task of the original HTTP connection, and owns all its state; both end together.
//! Everything is bounded: the size and rate of its messages, the number of operations, the time without an answer, and
//! the data that the client has not read. The next events of a subscription are polled when the socket has accepted the
//! previous ones.

mod connection;
mod outgoing;
mod protocol;
mod upgrade;

pub(crate) use upgrade::UpgradeTask;
pub(super) use upgrade::{is_upgrade, upgrade};
