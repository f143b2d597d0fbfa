//! An ordered talk between agents, and users, under a turn strategy.

use sea_orm::entity::prelude::*;

/// Who speaks next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EnumIter, DeriveActiveEnum)]
#[sea_orm(
    rs_type = "String",
    db_type = "Text",
    rename_all = "SCREAMING_SNAKE_CASE"
)]
pub enum TurnStrategy {
    /// Each in turn.
    RoundRobin,
    /// Whoever is mentioned, else each in turn.
    MentionBased,
    /// Whoever is mentioned, else any of the others.
    FreeForm,
    /// Whoever the facilitator calls on.
    FacilitatorLed,
}

/// Where a conversation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EnumIter, DeriveActiveEnum)]
#[sea_orm(
    rs_type = "String",
    db_type = "Text",
    rename_all = "SCREAMING_SNAKE_CASE"
)]
pub enum ConversationStatus {
    /// Not started.
    Pending,
    /// Under way.
    Active,
    /// Halted for now.
    Paused,
    /// Came to its end.
    Completed,
    /// Broke off.
    Failed,
    /// Called off.
    Cancelled,
}

/// One row of `conversations`.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "conversations")]
pub struct Model {
    /// UUID v7; creation order is id order.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    /// When the row was made.
    pub created_at: DateTimeUtc,
    /// When the row was last changed.
    pub updated_at: DateTimeUtc,
    /// Grows by one with every edit and state transition.
    pub version: i32,
    /// Whose it is.
    pub owner_id: Uuid,
    /// Where it is held.
    pub circle_id: Option<Uuid>,
    /// What it is about.
    pub task_id: Option<Uuid>,
    /// 1 to 500 characters.
    pub topic: String,
    /// What the participants are told first, at most 20,000 characters.
    pub initial_prompt: Option<String>,
    /// Who speaks next.
    pub turn_strategy: TurnStrategy,
    /// The participant who leads, under `FACILITATOR_LED`.
    pub facilitator_id: Option<Uuid>,
    /// The turn that ends it, 1 to 200.
    pub max_turns: i32,
    /// Agents' messages so far.
    pub turns_taken: i32,
    /// The position to which the round has come.
    pub next_index: i32,
    /// The participant whose turn it is.
    pub next_speaker_id: Option<Uuid>,
    /// The number of its latest message.
    pub last_seq: i32,
    /// Where it stands.
    pub status: ConversationStatus,
    /// What came of it, at most 20,000 characters.
    pub summary: Option<String>,
    /// Why it ended, at most 500 characters.
    pub end_reason: Option<String>,
    /// When it was started.
    pub started_at: Option<DateTimeUtc>,
    /// When its latest message was written.
    pub last_message_at: Option<DateTimeUtc>,
    /// When it ended.
    pub ended_at: Option<DateTimeUtc>,
}

/// Empty: a query that joins says so itself.
#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
