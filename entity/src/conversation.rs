//! An ordered conversation between agents, and users, with a turn strategy.

use sea_orm::entity::prelude::*;

/// The turn strategy, which selects the next speaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EnumIter, DeriveActiveEnum)]
#[sea_orm(
    rs_type = "String",
    db_type = "Text",
    rename_all = "SCREAMING_SNAKE_CASE"
)]
pub enum TurnStrategy {
    /// Participants take turns in order.
    RoundRobin,
    /// The mentioned participant; without a mention, participants take turns in order.
    MentionBased,
    /// The mentioned participant; without a mention, any other participant.
    FreeForm,
    /// The participant that the facilitator names.
    FacilitatorLed,
}

/// The status of a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EnumIter, DeriveActiveEnum)]
#[sea_orm(
    rs_type = "String",
    db_type = "Text",
    rename_all = "SCREAMING_SNAKE_CASE"
)]
pub enum ConversationStatus {
    /// Created, not started.
    Pending,
    /// In progress.
    Active,
    /// Paused.
    Paused,
    /// Completed.
    Completed,
    /// Failed.
    Failed,
    /// Cancelled.
    Cancelled,
}

/// One row of `conversations`.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "conversations")]
pub struct Model {
    /// UUID v7; ids sort by creation time.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    /// When the row was created.
    pub created_at: DateTimeUtc,
    /// When the row was last changed.
    pub updated_at: DateTimeUtc,
    /// Incremented by each edit and state transition; used for optimistic locking.
    pub version: i32,
    /// The user who owns it.
    pub owner_id: Uuid,
    /// The circle.
    pub circle_id: Option<Uuid>,
    /// The task that is discussed.
    pub task_id: Option<Uuid>,
    /// 1 to 500 characters.
    pub topic: String,
    /// The initial prompt for the participants, at most 20,000 characters.
    pub initial_prompt: Option<String>,
    /// The turn strategy, which selects the next speaker.
    pub turn_strategy: TurnStrategy,
    /// The facilitator, for the strategy `FACILITATOR_LED`.
    pub facilitator_id: Option<Uuid>,
    /// Maximum number of turns, 1 to 200; the last one ends the conversation.
    pub max_turns: i32,
    /// Number of messages by agents so far.
    pub turns_taken: i32,
    /// The position of the next participant in the round.
    pub next_index: i32,
    /// The participant whose turn it is.
    pub next_speaker_id: Option<Uuid>,
    /// The number of its latest message.
    pub last_seq: i32,
    /// The status.
    pub status: ConversationStatus,
    /// The result, at most 20,000 characters.
    pub summary: Option<String>,
    /// The reason for the end, at most 500 characters.
    pub end_reason: Option<String>,
    /// When it was started.
    pub started_at: Option<DateTimeUtc>,
    /// When its latest message was created.
    pub last_message_at: Option<DateTimeUtc>,
    /// When it ended.
    pub ended_at: Option<DateTimeUtc>,
}

/// Empty: joins are written in the queries.
#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
