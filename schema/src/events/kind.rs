//! The types of events.

use std::{collections::HashMap, sync::LazyLock};

use async_graphql::{Enum, resolver_utils::EnumType};

/// The type of the event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Enum)]
pub enum EventType {
    /// An agent was created.
    AgentCreated,
    /// An agent was updated.
    AgentUpdated,
    /// The status of an agent changed.
    AgentStatusChanged,
    /// The owner of an agent changed.
    AgentOwnerChanged,
    /// An agent was deleted.
    AgentDeleted,
    /// A project was created.
    ProjectCreated,
    /// A project was updated.
    ProjectUpdated,
    /// The owner of a project changed.
    ProjectOwnerChanged,
    /// A project was deleted.
    ProjectDeleted,
    /// A circle was created.
    CircleCreated,
    /// A circle was updated.
    CircleUpdated,
    /// A circle was started.
    CircleStarted,
    /// A circle was paused.
    CirclePaused,
    /// A circle was stopped.
    CircleStopped,
    /// A circle was archived.
    CircleArchived,
    /// A circle was restored from the archive.
    CircleRestored,
    /// The owner of a circle changed.
    CircleOwnerChanged,
    /// A circle was deleted.
    CircleDeleted,
    /// A circle was shared with a user.
    CircleShared,
    /// A circle is no longer shared with a user.
    CircleUnshared,
    /// A member was added.
    MemberAdded,
    /// A member was updated.
    MemberUpdated,
    /// A member left.
    MemberRemoved,
    /// A task was created.
    TaskCreated,
    /// A task was updated.
    TaskUpdated,
    /// A task was assigned to an agent.
    TaskAssigned,
    /// A task was unassigned from its agent.
    TaskUnassigned,
    /// A task was started.
    TaskStarted,
    /// A task was blocked.
    TaskBlocked,
    /// A task was unblocked.
    TaskUnblocked,
    /// A task was submitted.
    TaskSubmitted,
    /// A task was approved in review.
    TaskApproved,
    /// A task was rejected in review.
    TaskRejected,
    /// A task was completed.
    TaskCompleted,
    /// A task failed.
    TaskFailed,
    /// A task was cancelled.
    TaskCancelled,
    /// A task was reopened.
    TaskReopened,
    /// A task was deleted.
    TaskDeleted,
    /// A conversation was created.
    ConversationCreated,
    /// A conversation was updated.
    ConversationUpdated,
    /// A conversation was started.
    ConversationStarted,
    /// A conversation was paused.
    ConversationPaused,
    /// A conversation was resumed.
    ConversationResumed,
    /// A turn of a conversation was completed.
    ConversationTurnCompleted,
    /// A conversation ended.
    ConversationEnded,
    /// A conversation was deleted.
    ConversationDeleted,
    /// A message was added.
    MessageAdded,
    /// A message was pinned or unpinned.
    MessagePinned,
    /// A provider was added, updated or deleted.
    ProviderChanged,
    /// A model was added, updated or deleted.
    ModelChanged,
    /// A persona was added, updated or deleted.
    PersonaChanged,
    /// A user registered.
    UserRegistered,
    /// A user was updated.
    UserUpdated,
    /// A user was locked out after repeated failed sign-ins.
    UserLocked,
    /// The account of a user was deleted.
    UserDeleted,
    /// Access tokens of a user were revoked early: all of them, or those of a stolen session.
    UserTokensRevoked,
    /// A transfer of ownership was requested.
    TransferRequested,
    /// A transfer of ownership was accepted.
    TransferAccepted,
    /// A transfer of ownership was declined.
    TransferDeclined,
    /// A transfer of ownership was cancelled.
    TransferCancelled,
    /// Events that a subscriber has not received are no longer stored.
    EventsMissed,
}

/// The dotted names, in the order of the variants.
static NAMES: LazyLock<Vec<String>> = LazyLock::new(|| {
    let items = EventType::items().iter();
    let names = items.map(|item| item.name.to_ascii_lowercase().replacen('_', ".", 1));
    names.collect()
});

static BY_NAME: LazyLock<HashMap<&str, EventType>> = LazyLock::new(|| {
    let items = EventType::items().iter();
    let pairs = items.map(|item| (item.value.dotted(), item.value));
    pairs.collect()
});

impl EventType {
    /// The dotted name in the database: `TASK_CREATED` is `task.created`.
    pub(crate) fn dotted(self) -> &'static str {
        &NAMES[self as usize]
    }

    /// The dotted names of all event types with this kind of subject.
    pub(crate) fn all_of(subject: &str) -> Vec<&'static str> {
        let names = NAMES.iter().map(String::as_str);
        names
            .filter(|name| name.split('.').next() == Some(subject))
            .collect()
    }

    /// The type with a dotted name; `None` for a type that this version does not know.
    pub(crate) fn from_dotted(dotted: &str) -> Option<Self> {
        BY_NAME.get(dotted).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_type_has_one_dotted_name() {
        assert_eq!(
            EventType::AgentStatusChanged.dotted(),
            "agent.status_changed"
        );
        for item in EventType::items() {
            assert_eq!(
                EventType::from_dotted(item.value.dotted()),
                Some(item.value)
            );
        }
        assert_eq!(EventType::from_dotted("agent.abducted"), None);
    }
}
