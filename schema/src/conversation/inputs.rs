//! The inputs of the conversation mutations, and their validation.

use std::{
    collections::{HashMap, HashSet},
    ops::RangeInclusive,
};

use async_graphql::{ID, InputObject, MaybeUndefined};
use gathering_entity::{agent, conversation, member, task};
use sea_orm::{
    ColumnTrait, EntityTrait, IntoActiveModel, QueryFilter, QueryOrder, QuerySelect,
    sea_query::LockType,
};
use uuid::Uuid;

use crate::{
    conversation::TurnStrategy,
    data::{Change, Edits},
    error::{Code, Error},
    id::Kind,
    input::{Check, UserErrorCode},
};

/// Maximum length of a topic, in characters.
const MAX_TOPIC: usize = 500;
/// Maximum length of an initial prompt, in characters.
const MAX_PROMPT: usize = 20_000;
/// Maximum length of a summary, in characters.
const MAX_SUMMARY: usize = 20_000;
/// Maximum number of participants.
const MAX_PARTICIPANTS: usize = 20;
/// The allowed values of `maxTurns` in an input.
const TURNS: RangeInclusive<i32> = 1..=50;

/// Input for `createConversation`.
#[derive(InputObject)]
pub(crate) struct CreateConversationInput {
    /// The topic, a single line of 1 to 500 characters.
    pub(super) topic: String,
    /// The participants, in speaking order.
    /// In a circle: 2 to 20 active members; without a circle: 1 to 20 agents of the caller.
    pub(super) participant_ids: Vec<ID>,
    /// The circle in which it takes place.
    pub(super) circle_id: Option<ID>,
    /// The task it is about; must belong to the circle.
    pub(super) task_id: Option<ID>,
    /// The initial prompt for the participants, at most 20,000 characters.
    pub(super) initial_prompt: Option<String>,
    /// The turn strategy, which selects the next speaker.
    #[graphql(default_with = "TurnStrategy::RoundRobin")]
    pub(super) turn_strategy: TurnStrategy,
    /// The facilitating participant. Required with `FACILITATOR_LED`, otherwise not allowed.
    pub(super) facilitator_id: Option<ID>,
    /// The number of turns after which it ends, from 1 to 50.
    #[graphql(default = 10)]
    pub(super) max_turns: i32,
    /// Whether to start it immediately.
    #[graphql(default = false)]
    pub(super) start_now: bool,
}

/// Input for `updateConversation`. Omitted fields keep their value; null clears a nullable field.
#[derive(InputObject)]
pub(crate) struct UpdateConversationInput {
    /// The conversation.
    pub(super) conversation_id: ID,
    /// Fails with `CONFLICT` unless this is the current version.
    pub(super) expected_version: Option<i32>,
    /// The topic, a single line of 1 to 500 characters.
    pub(super) topic: MaybeUndefined<String>,
    /// The summary, at most 20,000 characters.
    pub(super) summary: MaybeUndefined<String>,
    /// The number of turns after which it ends, from 1 to 50.
    /// It must be greater than the number of turns taken, or, once the conversation has ended, not less.
    pub(super) max_turns: MaybeUndefined<i32>,
}

/// Input for a status transition of a conversation, such as `startConversation`.
#[derive(InputObject)]
pub(crate) struct ConversationActionInput {
    /// The conversation.
    pub(super) conversation_id: ID,
    /// The reason, at most 500 characters. Stored as `endReason` if the conversation is completed or cancelled.
    pub(super) reason: Option<String>,
    /// Fails with `CONFLICT` unless this is the current version.
    pub(super) expected_version: Option<i32>,
}

/// The fields of a conversation that an input may set. Undefined keeps the value; null clears it.
#[derive(Default)]
pub(super) struct Fields {
    pub(super) topic: MaybeUndefined<String>,
    pub(super) initial_prompt: MaybeUndefined<String>,
    pub(super) summary: MaybeUndefined<String>,
    pub(super) max_turns: MaybeUndefined<i32>,
}

impl Fields {
    /// Checks the fields, and sets those that differ from the row.
    pub(super) fn apply(
        &self,
        check: &mut Check,
        row: conversation::Model,
    ) -> (conversation::ActiveModel, Edits) {
        let topic = check.if_given("topic", &self.topic);
        let topic = topic.map(|topic| check.line("topic", topic, MAX_TOPIC));
        let prompt = self.initial_prompt.as_opt_deref();
        let prompt = prompt.map(|value| check.optional_text("initialPrompt", value, MAX_PROMPT));
        let summary = self.summary.as_opt_deref();
        let summary = summary.map(|value| check.optional_text("summary", value, MAX_SUMMARY));
        let max_turns = check.if_given("maxTurns", &self.max_turns).copied();
        // An unchanged value may be outside the allowed range.
        let max_turns = max_turns.filter(|turns| *turns != row.max_turns);
        let max_turns = max_turns.map(|turns| check.range("maxTurns", turns, TURNS));
        // The last turn ends a conversation, so one that has not ended needs at least one turn left.
        let taken = row.turns_taken;
        let least = taken + i32::from(row.ended_at.is_none());
        if max_turns.is_some_and(|turns| TURNS.contains(&turns) && turns < least) {
            let message =
                format!("`maxTurns` must be at least {least}: {taken} turns were taken already.");
            check.fault("maxTurns", UserErrorCode::OutOfRange, message);
        }
        let mut new = row.into_active_model();
        let mut edits = Edits::default();
        edits.set("topic", &mut new.topic, topic);
        edits.set("initialPrompt", &mut new.initial_prompt, prompt);
        edits.set("summary", &mut new.summary, summary);
        edits.set("maxTurns", &mut new.max_turns, max_turns);
        (new, edits)
    }
}

/// A parsed [`CreateConversationInput`].
pub(super) struct NewConversation {
    pub(super) circle: Option<Uuid>,
    task: Option<Uuid>,
    pub(super) facilitator: Option<Uuid>,
    pub(super) participants: Vec<Uuid>,
    strategy: TurnStrategy,
    pub(super) start_now: bool,
    pub(super) fields: Fields,
}

impl NewConversation {
    pub(super) fn parse(input: CreateConversationInput) -> Result<Self, Error> {
        let participants = input.participant_ids.iter().enumerate();
        Ok(Self {
            circle: Kind::Circle.parse_opt(input.circle_id.as_ref(), "circleId")?,
            task: Kind::Task.parse_opt(input.task_id.as_ref(), "taskId")?,
            facilitator: Kind::Agent.parse_opt(input.facilitator_id.as_ref(), "facilitatorId")?,
            participants: participants
                .map(|(n, id)| Kind::Agent.parse(id, &format!("participantIds.{n}")))
                .collect::<Result<_, _>>()?,
            strategy: input.turn_strategy,
            start_now: input.start_now,
            fields: Fields {
                topic: MaybeUndefined::Value(input.topic),
                initial_prompt: Some(input.initial_prompt).into(),
                max_turns: MaybeUndefined::Value(input.max_turns),
                ..Fields::default()
            },
        })
    }

    /// The row of the conversation before its [`Fields`] are applied.
    pub(super) fn row(&self, id: Uuid, change: &Change<'_>) -> conversation::Model {
        conversation::Model {
            id,
            created_at: change.now,
            updated_at: change.now,
            version: 1,
            owner_id: change.viewer.id(),
            circle_id: self.circle,
            task_id: self.task,
            topic: String::new(),
            initial_prompt: None,
            turn_strategy: self.strategy.into(),
            facilitator_id: self.facilitator,
            max_turns: *TURNS.start(),
            turns_taken: 0,
            next_index: 0,
            next_speaker_id: None,
            last_seq: 0,
            status: conversation::ConversationStatus::Pending,
            summary: None,
            end_reason: None,
            started_at: None,
            last_message_at: None,
            ended_at: None,
        }
    }

    /// Checks the participants, the facilitator and the task.
    ///
    /// # Errors
    /// `NOT_FOUND` and `FORBIDDEN`, naming the first such participant; `NOT_FOUND` for the task.
    pub(super) async fn check(&self, change: &Change<'_>, check: &mut Check) -> Result<(), Error> {
        self.check_lists(check);
        if self.participants.len() <= MAX_PARTICIPANTS {
            self.check_participants(change, check).await?;
        }
        self.check_task(change, check).await
    }

    /// Checks the number of participants, that each is listed once, and the facilitator.
    fn check_lists(&self, check: &mut Check) {
        let field = "participantIds";
        if self.participants.len() > MAX_PARTICIPANTS {
            let message = format!("`{field}` must have at most {MAX_PARTICIPANTS} entries.");
            check.fault(field, UserErrorCode::TooMany, message);
        } else if self.participants.is_empty() {
            let message = format!("`{field}` must not be empty.");
            check.fault(field, UserErrorCode::Required, message);
        } else if self.circle.is_some() && self.participants.len() < 2 {
            let message = "A conversation in a circle needs at least 2 participants.";
            check.fault(field, UserErrorCode::Invalid, message);
        } else {
            for (n, _) in self.repeated() {
                let message = "This agent is listed twice.";
                check.fault(&format!("{field}.{n}"), UserErrorCode::Invalid, message);
            }
        }
        let is_led = self.strategy == TurnStrategy::FacilitatorLed;
        let (code, message) = match self.facilitator {
            None if is_led => (
                UserErrorCode::Required,
                "A FACILITATOR_LED conversation requires a facilitator.",
            ),
            Some(_) if !is_led => (
                UserErrorCode::Invalid,
                "Only a FACILITATOR_LED conversation has a facilitator.",
            ),
            Some(id) if !self.participants.contains(&id) => (
                UserErrorCode::Invalid,
                "The facilitator must be one of the participants.",
            ),
            _ => return,
        };
        check.fault("facilitatorId", code, message);
    }

    /// The repeated participants, with their index in the list.
    fn repeated(&self) -> impl Iterator<Item = (usize, Uuid)> {
        let mut known = HashSet::new();
        let all = self.participants.iter().copied().enumerate();
        all.filter(move |(_, id)| !known.insert(*id))
    }

    /// Checks that the participants are active members of the circle, or, without one, the viewer's own agents. Locks
    /// the agents against deletion until the transaction ends.
    ///
    /// # Errors
    /// `NOT_FOUND` and `FORBIDDEN`, naming the first such agent.
    async fn check_participants(
        &self,
        change: &Change<'_>,
        check: &mut Check,
    ) -> Result<(), Error> {
        let ids = || self.participants.iter().copied();
        let rule = &change.viewer.rules().agent;
        let agents: Vec<(Uuid, Uuid)> = agent::Entity::find()
            .select_only()
            .columns([agent::Column::Id, agent::Column::OwnerId])
            .filter(rule.condition())
            .filter(agent::Column::Id.is_in(ids()))
            .order_by_asc(agent::Column::Id)
            .lock(LockType::Share)
            .into_tuple()
            .all(&change.transaction)
            .await?;
        let agents: HashMap<_, _> = agents.into_iter().collect();
        let field = |n: usize| format!("participantIds.{n}");
        if let Some(n) = ids().position(|id| !agents.contains_key(&id)) {
            return Err(Error::not_found(&field(n)));
        }
        let Some(circle) = self.circle else {
            if change.viewer.is_limited() {
                let message = "An API key that is limited to circles requires `circleId`.";
                return Err(Error::new(Code::Forbidden, message).field("circleId"));
            }
            let is_foreign = |(_, id): &(usize, Uuid)| agents[id] != change.viewer.id();
            return match ids().enumerate().find(is_foreign) {
                Some((n, id)) => Err(change.forbidden(Kind::Agent, id).field(&field(n))),
                None => Ok(()),
            };
        };
        let members: HashSet<Uuid> = member::Entity::find()
            .select_only()
            .column(member::Column::AgentId)
            .filter(member::Column::CircleId.eq(circle))
            .filter(member::Column::IsActive.eq(true))
            .filter(member::Column::AgentId.is_in(ids()))
            .into_tuple()
            .all(&change.transaction)
            .await?
            .into_iter()
            .collect();
        let repeated: HashSet<_> = self.repeated().map(|(n, _)| n).collect();
        for (n, id) in ids().enumerate() {
            if !members.contains(&id) && !repeated.contains(&n) {
                let message = "The agent is not an active member of the circle.";
                check.fault(&field(n), UserErrorCode::NotMember, message);
            }
        }
        Ok(())
    }

    /// Checks that the task belongs to the circle.
    ///
    /// # Errors
    /// `NOT_FOUND`.
    async fn check_task(&self, change: &Change<'_>, check: &mut Check) -> Result<(), Error> {
        let Some(id) = self.task else { return Ok(()) };
        let task = task::Entity::find_by_id(id).filter(change.viewer.rules().task.condition());
        let task = task.one(&change.transaction).await?;
        let task = task.ok_or_else(|| Error::not_found("taskId"))?;
        if self.circle != Some(task.circle_id) {
            let message = "The task must belong to the circle of the conversation.";
            check.fault("taskId", UserErrorCode::Invalid, message);
        }
        Ok(())
    }
}
