//! Conversation mutations.

use async_graphql::{Context, Object, SimpleObject};
use gathering_entity::{conversation, participant};
use sea_orm::{ActiveEnum, ActiveModelTrait, EntityTrait, IntoActiveModel, Set, TryIntoModel};
use serde_json::json;
use uuid::Uuid;

use crate::{
    circle::{self, check_open},
    conversation::{
        Conversation, editable,
        event::EventScope,
        inputs::{
            ConversationActionInput, CreateConversationInput, Fields, NewConversation,
            UpdateConversationInput,
        },
        turns,
        workflow::{self, CANCEL, COMPLETE, PAUSE, RESUME, START},
    },
    data::{Outcome, change, check_version},
    deletion::{DeleteInput, DeletePayload},
    error::Error,
    events::EventType,
    id::Kind,
    input::{Check, UserError},
};

/// Payload of the conversation mutations.
#[derive(SimpleObject)]
pub(crate) struct ConversationPayload {
    /// The conversation in its current state; null if there is none.
    conversation: Option<Conversation>,
    /// Errors that the caller can correct; empty on success.
    user_errors: Vec<UserError>,
}

impl ConversationPayload {
    async fn new(ctx: &Context<'_>, outcome: Outcome) -> Result<Self, Error> {
        Ok(Self {
            conversation: outcome.row::<Conversation>(ctx).await?,
            user_errors: outcome.errors,
        })
    }
}

/// Conversation mutations.
#[derive(Default)]
pub struct ConversationMutation;

#[Object]
impl ConversationMutation {
    /// Creates a conversation in a circle, or without one among the caller's own agents.
    /// A circle requires editor access. `userErrors` codes besides input validation: `NOT_MEMBER` for a participant
    /// that is not an active member of the circle; `INVALID` for a participant that is listed twice, for a facilitator
    /// that is not needed or not a participant, and for a task of another circle; `BAD_TRANSITION` in an archived
    /// circle.
    async fn create_conversation(
        &self,
        ctx: &Context<'_>,
        input: CreateConversationInput,
    ) -> Result<ConversationPayload, Error> {
        let id = Uuid::now_v7();
        let new = NewConversation::parse(input)?;
        let outcome = change(ctx, None, async |mut change| {
            let circle = match new.circle {
                Some(id) => Some(circle::editable(&change, id, "circleId").await?),
                None => None,
            };
            if let Some(circle) = &circle {
                check_open(circle)?;
            }
            let mut check = Check::default();
            let (row, _) = new.fields.apply(&mut check, new.row(id, &change));
            new.check(&change, &mut check).await?;
            check.faults()?;
            let mut row = row.try_into_model()?;
            let scope = EventScope::of(&row, circle.as_ref());
            change.append(scope.conversation_event(
                EventType::ConversationCreated,
                &row,
                json!({ "changed": [] }),
            ));
            if new.start_now {
                let from = row.status;
                let mut ids = new.participants.iter().copied();
                row.next_speaker_id = turns::first_speaker(new.facilitator, &mut ids);
                row.status = START.to;
                row.started_at = Some(change.now);
                row.version += 1;
                change.append(workflow::event(&START, scope, &row, from));
            }
            conversation::Entity::insert(row.into_active_model())
                .exec_without_returning(&change.transaction)
                .await?;
            let participants =
                (0..)
                    .zip(&new.participants)
                    .map(|(position, agent)| participant::ActiveModel {
                        conversation_id: Set(id),
                        agent_id: Set(*agent),
                        position: Set(position),
                        joined_at: Set(change.now),
                    });
            participant::Entity::insert_many(participants)
                .exec_without_returning(&change.transaction)
                .await?;
            change.commit(vec![id]).await
        });
        ConversationPayload::new(ctx, outcome.await?).await
    }

    /// Updates a conversation in any status.
    /// Requires editor access to its circle; without a circle, its owner or an administrator. `userErrors` codes
    /// besides input validation: `CONFLICT`; `BAD_TRANSITION` in an archived circle.
    async fn update_conversation(
        &self,
        ctx: &Context<'_>,
        input: UpdateConversationInput,
    ) -> Result<ConversationPayload, Error> {
        let id = Kind::Conversation.parse(&input.conversation_id, "conversationId")?;
        let fields = Fields {
            topic: input.topic,
            summary: input.summary,
            max_turns: input.max_turns,
            ..Fields::default()
        };
        let outcome = change(ctx, Some(id), async |mut change| {
            let (row, scope) = editable(&change, id, "conversationId").await?;
            check_version(input.expected_version, row.version)?;
            let version = row.version + 1;
            let mut check = Check::default();
            let (mut new, edits) = fields.apply(&mut check, row);
            check.faults()?;
            if !edits.is_empty() {
                new.version = Set(version);
                new.updated_at = Set(change.now);
                let row = new.update(&change.transaction).await?;
                let changed = json!({ "changed": edits.names() });
                let event = EventType::ConversationUpdated;
                change.append(scope.conversation_event(event, &row, changed));
            }
            change.commit(vec![id]).await
        });
        ConversationPayload::new(ctx, outcome.await?).await
    }

    /// Starts a `PENDING` conversation: it becomes `ACTIVE` and its first speaker is set.
    /// Requires editor access to its circle; without a circle, its owner or an administrator. `userErrors` codes:
    /// `BAD_TRANSITION`; `CONFLICT`.
    async fn start_conversation(
        &self,
        ctx: &Context<'_>,
        input: ConversationActionInput,
    ) -> Result<ConversationPayload, Error> {
        let outcome = workflow::transit(ctx, &START, &input).await?;
        ConversationPayload::new(ctx, outcome).await
    }

    /// Pauses an `ACTIVE` conversation: agents take no turns, users may still post messages.
    /// Requires editor access to its circle; without a circle, its owner or an administrator. `userErrors` codes:
    /// `BAD_TRANSITION`; `CONFLICT`.
    async fn pause_conversation(
        &self,
        ctx: &Context<'_>,
        input: ConversationActionInput,
    ) -> Result<ConversationPayload, Error> {
        let outcome = workflow::transit(ctx, &PAUSE, &input).await?;
        ConversationPayload::new(ctx, outcome).await
    }

    /// Resumes a `PAUSED` conversation: it becomes `ACTIVE`.
    /// Requires editor access to its circle; without a circle, its owner or an administrator. `userErrors` codes:
    /// `BAD_TRANSITION`; `CONFLICT`.
    async fn resume_conversation(
        &self,
        ctx: &Context<'_>,
        input: ConversationActionInput,
    ) -> Result<ConversationPayload, Error> {
        let outcome = workflow::transit(ctx, &RESUME, &input).await?;
        ConversationPayload::new(ctx, outcome).await
    }

    /// Ends an `ACTIVE` conversation as `COMPLETED`.
    /// Requires editor access to its circle; without a circle, its owner or an administrator. `userErrors` codes:
    /// `BAD_TRANSITION`; `CONFLICT`.
    async fn complete_conversation(
        &self,
        ctx: &Context<'_>,
        input: ConversationActionInput,
    ) -> Result<ConversationPayload, Error> {
        let outcome = workflow::transit(ctx, &COMPLETE, &input).await?;
        ConversationPayload::new(ctx, outcome).await
    }

    /// Cancels a `PENDING`, `ACTIVE` or `PAUSED` conversation: it becomes `CANCELLED`.
    /// Requires editor access to its circle; without a circle, its owner or an administrator. `userErrors` codes:
    /// `BAD_TRANSITION`; `CONFLICT`.
    async fn cancel_conversation(
        &self,
        ctx: &Context<'_>,
        input: ConversationActionInput,
    ) -> Result<ConversationPayload, Error> {
        let outcome = workflow::transit(ctx, &CANCEL, &input).await?;
        ConversationPayload::new(ctx, outcome).await
    }

    /// Deletes a conversation that is not `ACTIVE`, with its messages.
    /// Requires editor access to its circle; without a circle, its owner or an administrator. `userErrors` codes:
    /// `BAD_TRANSITION`; `CONFLICT`.
    async fn delete_conversation(
        &self,
        ctx: &Context<'_>,
        input: DeleteInput,
    ) -> Result<DeletePayload, Error> {
        let id = Kind::Conversation.parse(&input.id, "id")?;
        let outcome = change(ctx, Some(id), async |mut change| {
            let (row, scope) = editable(&change, id, "id").await?;
            check_version(input.expected_version, row.version)?;
            if row.status == conversation::ConversationStatus::Active {
                let status = row.status.to_value();
                Err(UserError::cannot("conversation", &status, "deleted"))?;
            }
            workflow::delete(&mut change, row, scope).await?;
            change.commit(vec![]).await
        });
        DeletePayload::new(ctx, Kind::Conversation, id, outcome.await?).await
    }
}
