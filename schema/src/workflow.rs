//! Changes of status.

use crate::{events::EventType, input::UserError};

/// A change of status that a mutation makes.
#[derive(Clone, Copy)]
pub(crate) struct Transition<S: 'static> {
    /// The statuses in which it is allowed.
    pub(crate) from: &'static [S],
    /// The status after it.
    pub(crate) to: S,
    /// The event that it appends.
    pub(crate) event: EventType,
    /// The past participle for messages, such as `started`.
    pub(crate) verb: &'static str,
}

impl<S: Copy + PartialEq> Transition<S> {
    /// Checks that an object with a status may make the transition. `name` is the GraphQL name of the status.
    ///
    /// # Errors
    /// `BAD_TRANSITION`.
    pub(crate) fn check(&self, noun: &str, status: S, name: &str) -> Result<(), UserError> {
        if self.from.contains(&status) {
            Ok(())
        } else {
            Err(UserError::cannot(noun, name, self.verb))
        }
    }
}
