//! Status transitions of conversations.

use async_graphql::Context;
use chrono::{DateTime, Utc};
use gathering_entity::{
    circle,
    conversation::{self, ConversationStatus},
};
use sea_orm::{
    ActiveEnum, ActiveModelBehavior, ActiveModelTrait, ColumnTrait, Condition, EntityTrait,
    IntoActiveModel, ModelTrait, QueryFilter, QueryOrder, QuerySelect, Set,
    sea_query::{Expr, ExprTrait, LockType},
};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    conversation::{
        editable, event::EventScope, inputs::ConversationActionInput, participants, turns,
    },
    data::{Change, Outcome, change, check_version},
    error::Error,
    events::{EventType, NewEvent},
    id::Kind,
    input::Check,
    workflow::Transition,
};

/// Maximum length of an end reason, in characters.
const MAX_REASON: usize = 500;

pub(super) const START: Transition<ConversationStatus> = Transition {
    from: &[ConversationStatus::Pending],
    to: ConversationStatus::Active,
    event: EventType::ConversationStarted,
    verb: "started",
};

pub(super) const PAUSE: Transition<ConversationStatus> = Transition {
    from: &[ConversationStatus::Active],
    to: ConversationStatus::Paused,
    event: EventType::ConversationPaused,
    verb: "paused",
};

pub(super) const RESUME: Transition<ConversationStatus> = Transition {
    from: &[ConversationStatus::Paused],
    to: ConversationStatus::Active,
    event: EventType::ConversationResumed,
    verb: "resumed",
};

pub(super) const COMPLETE: Transition<ConversationStatus> = Transition {
    from: &[ConversationStatus::Active],
    to: ConversationStatus::Completed,
    event: EventType::ConversationEnded,
    verb: "completed",
};

pub(super) const CANCEL: Transition<ConversationStatus> = Transition {
    from: &[
        ConversationStatus::Pending,
        ConversationStatus::Active,
        ConversationStatus::Paused,
    ],
    to: ConversationStatus::Cancelled,
    event: EventType::ConversationEnded,
    verb: "cancelled",
};

/// Makes the status transition of a mutation.
pub(super) async fn transit(
    ctx: &Context<'_>,
    transition: &'static Transition<ConversationStatus>,
    input: &ConversationActionInput,
) -> Result<Outcome, Error> {
    let id = Kind::Conversation.parse(&input.conversation_id, "conversationId")?;
    change(ctx, Some(id), async |mut change| {
        let (row, scope) = editable(&change, id, "conversationId").await?;
        check_version(input.expected_version, row.version)?;
        transition.check("conversation", row.status, &row.status.to_value())?;
        let mut check = Check::default();
        let reason = check.optional_text("reason", input.reason.as_deref(), MAX_REASON);
        check.faults()?;
        let from = row.status;
        let facilitator = row.facilitator_id;
        let version = row.version + 1;
        let mut new = row.into_active_model();
        new.version = Set(version);
        if transition.event == START.event {
            let participants = participants(&change, id).await?;
            let mut ids = participants.iter().map(|participant| participant.id);
            new.started_at = Set(Some(change.now));
            new.next_speaker_id = Set(turns::first_speaker(facilitator, &mut ids));
        }
        apply(transition, &mut new, reason, change.now);
        let row = new.update(&change.transaction).await?;
        change.append(event(transition, scope, &row, from));
        change.commit(vec![id]).await
    })
    .await
}

/// Applies a transition to the row. If it ends the conversation, `reason` becomes the end reason, or else the
/// transition's own reason.
pub(super) fn apply(
    transition: &Transition<ConversationStatus>,
    new: &mut conversation::ActiveModel,
    reason: Option<String>,
    now: DateTime<Utc>,
) {
    new.status = Set(transition.to);
    new.updated_at = Set(now);
    if let Some(code) = end_reason(transition) {
        new.ended_at = Set(Some(now));
        new.next_speaker_id = Set(None);
        new.end_reason = Set(Some(reason.unwrap_or_else(|| code.to_owned())));
    }
}

/// The event of a transition that was applied to `row`.
pub(super) fn event(
    transition: &Transition<ConversationStatus>,
    scope: EventScope,
    row: &conversation::Model,
    from: ConversationStatus,
) -> NewEvent {
    let payload = payload(transition, from, end_reason(transition));
    scope.conversation_event(transition.event, row, payload)
}

/// The machine-readable end reason, if the transition ends the conversation.
fn end_reason(transition: &Transition<ConversationStatus>) -> Option<&'static str> {
    match transition.to {
        ConversationStatus::Completed => Some("completed"),
        ConversationStatus::Cancelled => Some("cancelled"),
        _ => None,
    }
}

/// The event payload: the status before and after, and the end reason.
pub(super) fn payload(
    transition: &Transition<ConversationStatus>,
    from: ConversationStatus,
    reason: Option<&str>,
) -> Value {
    let to = transition.to;
    let mut payload = json!({ "fromStatus": from.to_value(), "toStatus": to.to_value() });
    if let Some(reason) = reason {
        payload["reason"] = json!(reason);
    }
    payload
}

/// Pauses the active conversations of a circle that is stopped or archived.
pub(crate) async fn pause_all(
    change: &mut Change<'_>,
    circle: &circle::Model,
) -> Result<(), Error> {
    transit_all(change, circle, &PAUSE).await
}

/// Cancels the conversations of a circle that is deleted. Otherwise agents of other users would continue to work
/// for the conversation's owner.
pub(crate) async fn cancel_all(
    change: &mut Change<'_>,
    circle: &circle::Model,
) -> Result<(), Error> {
    transit_all(change, circle, &CANCEL).await
}

/// Deletes a conversation, whose row must be locked, with its messages.
pub(super) async fn delete(
    change: &mut Change<'_>,
    row: conversation::Model,
    scope: EventScope,
) -> Result<(), Error> {
    let kind = EventType::ConversationDeleted;
    change.append(scope.conversation_event(kind, &row, json!({ "changed": [] })));
    row.delete(&change.transaction).await?;
    Ok(())
}

/// As [`delete`], for a conversation outside of circles.
pub(crate) async fn delete_private(
    change: &mut Change<'_>,
    row: conversation::Model,
) -> Result<(), Error> {
    let scope = EventScope::of(&row, None);
    delete(change, row, scope).await
}

/// Applies a status transition, in one statement, to all conversations of a circle whose status allows it.
async fn transit_all(
    change: &mut Change<'_>,
    circle: &circle::Model,
    transition: &Transition<ConversationStatus>,
) -> Result<(), Error> {
    use conversation::Column::{CircleId, Id, OwnerId, Status, Topic, Version};
    let movable = Condition::all()
        .add(CircleId.eq(circle.id))
        .add(Status.is_in(transition.from.iter().copied()));
    let moved: Vec<(Uuid, Uuid, String, i32, ConversationStatus)> = conversation::Entity::find()
        .select_only()
        .columns([Id, OwnerId, Topic, Version, Status])
        .filter(movable.clone())
        .order_by_asc(Id)
        .lock(LockType::NoKeyUpdate)
        .into_tuple()
        .all(&change.transaction)
        .await?;
    if moved.is_empty() {
        return Ok(());
    }
    let mut new = conversation::ActiveModel::new();
    apply(transition, &mut new, None, change.now);
    conversation::Entity::update_many()
        .set(new)
        .col_expr(Version, Expr::col(Version).add(1))
        .filter(movable)
        .exec(&change.transaction)
        .await?;
    for (id, owner, topic, version, from) in moved {
        let mut payload = payload(transition, from, end_reason(transition));
        payload["topic"] = json!(topic);
        payload["version"] = json!(version + 1);
        let event = EventScope::in_circle(circle).new_event(transition.event, id, payload);
        // After the circle's deletion, only the owner may read the conversation.
        let ends = transition.event == CANCEL.event;
        change.append(if ends { event.owner(owner) } else { event });
    }
    Ok(())
}
