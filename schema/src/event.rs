//! Events: records of changes, written in the same transaction as the change.
//!
//! A payload is read leniently: a field that an older version did not write is null or empty, never an error.

use std::{borrow::Cow, sync::Arc};

use async_graphql::{
    Context, Enum, ID, InputObject, Interface, Object, ObjectType, TypeName,
    connection::EmptyFields, resolver_utils::EnumType,
};
use chrono::Utc;
use gathering_entity::{
    agent, circle, collaborator, conversation, event, member, project, task, user,
};
use sea_orm::{ActiveEnum, ColumnTrait, Condition};
use serde_json::Value;
use uuid::Uuid;

use crate::{
    agent::{Agent, AgentStatus},
    circle::{Circle, CircleStatus, CollaboratorRole, members::MemberRole},
    conversation::{Conversation, ConversationStatus, messages::Message},
    data::{Connection, Listed, Order, Page},
    error::Error,
    events::FeedFilter,
    id::Kind,
    project::Project,
    request::RequestExt,
    scalar::DateTime,
    task::{Task, TaskStatus},
    user::User,
};

/// The type of the event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
pub enum EventType {
    /// An agent was created.
    AgentCreated,
    /// An agent was updated.
    AgentUpdated,
    /// The status of an agent changed.
    AgentStatusChanged,
    /// An agent was deleted.
    AgentDeleted,
    /// A project was created.
    ProjectCreated,
    /// A project was updated.
    ProjectUpdated,
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
    /// Access tokens of a user were revoked early: all of them, or those of a stolen session.
    UserTokensRevoked,
    /// Events that a subscriber has not received are no longer stored.
    EventsMissed,
}

impl EventType {
    fn name(self) -> &'static str {
        Self::items()
            .iter()
            .find(|item| item.value == self)
            .map_or("", |item| item.name)
    }

    /// The dotted name in the database: `TASK_CREATED` is `task.created`.
    pub(crate) fn dotted(self) -> String {
        self.name().to_ascii_lowercase().replacen('_', ".", 1)
    }

    /// The dotted names of all event types with this kind of subject.
    pub(crate) fn all_of(subject: &str) -> Vec<String> {
        let types = Self::items().iter().map(|item| item.value.dotted());
        types
            .filter(|name| name.split('.').next() == Some(subject))
            .collect()
    }

    fn from_dotted(dotted: &str) -> Option<Self> {
        let name = dotted.replace('.', "_").to_ascii_uppercase();
        Self::items()
            .iter()
            .find(|item| item.name == name)
            .map(|item| item.value)
    }
}

/// The author of a change: a user or an agent. A null actor is the server.
#[derive(Interface)]
#[graphql(
    field(name = "id", ty = "ID", desc = "The id of the user or agent."),
    field(name = "name", ty = "&str", desc = "The name shown to others.")
)]
pub enum Actor {
    /// A user.
    User(User),
    /// An agent.
    Agent(Agent),
}

/// A record of a change. Written in the transaction of the change and delivered in order.
#[derive(Interface)]
#[graphql(
    field(name = "id", ty = "ID", desc = "The id of the event, `event_…`."),
    field(
        name = "type",
        method = "kind",
        ty = "Result<EventType, Error>",
        desc = "The type of the event."
    ),
    field(
        name = "cursor",
        ty = "String",
        desc = "The position in the delivery order. Pass it as `after` to resume from here."
    ),
    field(name = "occurred_at", ty = "DateTime", desc = "When it happened."),
    field(
        name = "actor",
        ty = "Result<Option<Actor>, Error>",
        desc = "The author of the change; null for the server, or if the viewer may not read the author."
    ),
    field(
        name = "circle",
        ty = "Result<Option<Circle>, Error>",
        desc = "The circle in which it happened; null if the viewer may not read it."
    ),
    field(
        name = "project",
        ty = "Result<Option<Project>, Error>",
        desc = "The project in which it happened; null if the viewer may not read it."
    )
)]
pub enum Event {
    /// An agent event.
    Agent(Of<AgentChange>),
    /// A project event.
    Project(Of<ProjectChange>),
    /// A circle event.
    Circle(Of<CircleChange>),
    /// An event about the sharing of a circle.
    Sharing(Of<SharingChange>),
    /// A member event.
    Member(Of<MemberChange>),
    /// A task event.
    Task(Of<TaskChange>),
    /// A conversation event.
    Conversation(Of<ConversationChange>),
    /// A message event.
    Message(Of<MessageChange>),
    /// A catalogue event.
    Catalogue(Of<CatalogueChange>),
    /// A user event.
    User(Of<UserChange>),
    /// A notice about missed events.
    Missed(EventsMissed),
}

impl Event {
    /// Converts a row to its GraphQL type; `None` if this version does not have the event type.
    pub(crate) fn of(row: &Arc<event::Model>) -> Option<Self> {
        EventType::from_dotted(&row.kind)?;
        let (subject, what) = row.kind.split_once('.')?;
        Some(match (subject, what) {
            ("agent", _) => Self::Agent(Of::new(row)),
            ("project", _) => Self::Project(Of::new(row)),
            ("circle", "shared" | "unshared") => Self::Sharing(Of::new(row)),
            ("circle", _) => Self::Circle(Of::new(row)),
            ("member", _) => Self::Member(Of::new(row)),
            ("task", _) => Self::Task(Of::new(row)),
            ("conversation", _) => Self::Conversation(Of::new(row)),
            ("message", _) => Self::Message(Of::new(row)),
            ("provider" | "model" | "persona", _) => Self::Catalogue(Of::new(row)),
            ("user", _) => Self::User(Of::new(row)),
            _ => return None,
        })
    }
}

/// The event fields that are specific to one kind of subject.
pub trait Change: ObjectType + From<Arc<event::Model>> {
    /// The name of the GraphQL type.
    const NAME: &'static str;
}

/// An event with the fields of one kind of subject.
pub struct Of<C: Change> {
    row: Arc<event::Model>,
    change: C,
}

impl<C: Change> Of<C> {
    fn new(row: &Arc<event::Model>) -> Self {
        Self {
            row: Arc::clone(row),
            change: C::from(Arc::clone(row)),
        }
    }
}

impl<C: Change> TypeName for Of<C> {
    fn type_name() -> Cow<'static, str> {
        C::NAME.into()
    }
}

/// An event about a change of one kind of subject.
#[Object(name_type)]
impl<C: Change> Of<C> {
    /// The id of the event, `event_…`.
    pub(crate) async fn id(&self) -> ID {
        Kind::Event.id(self.row.id)
    }

    /// The type of the event.
    #[graphql(name = "type")]
    async fn kind(&self) -> Result<EventType, Error> {
        EventType::from_dotted(&self.row.kind).ok_or_else(Error::internal)
    }

    /// The position in the delivery order. Pass it as `after` to resume from here.
    async fn cursor(&self, ctx: &Context<'_>) -> String {
        Events::cursor(ctx.request().services.epoch, &self.row)
    }

    /// When it happened.
    async fn occurred_at(&self) -> DateTime {
        self.row.occurred_at.into()
    }

    /// The author of the change; null for the server, or if the viewer may not read the author.
    async fn actor(&self, ctx: &Context<'_>) -> Result<Option<Actor>, Error> {
        // For an agent's turn, the row also names the user who posted it; the agent is the author.
        if let Some(id) = self.row.actor_agent_id {
            let agent = Agent::readable(ctx, Some(id)).await?;
            return Ok(agent.map(Actor::Agent));
        }
        let Some(id) = self.row.actor_user_id else {
            return Ok(None);
        };
        let user = ctx.request().row::<user::Entity>(id).await?;
        Ok(user.map(|row| Actor::User(User::new(row))))
    }

    /// The circle in which it happened; null if the viewer may not read it.
    async fn circle(&self, ctx: &Context<'_>) -> Result<Option<Circle>, Error> {
        let Some(id) = self.row.circle_id else {
            return Ok(None);
        };
        let rule = &ctx.request().viewer()?.rules().circle;
        Ok(ctx
            .request()
            .readable::<circle::Entity>(rule, id)
            .await?
            .map(Circle))
    }

    /// The project in which it happened; null if the viewer may not read it.
    async fn project(&self, ctx: &Context<'_>) -> Result<Option<Project>, Error> {
        let Some(id) = self.row.project_id else {
            return Ok(None);
        };
        let rule = &ctx.request().viewer()?.rules().project;
        Ok(ctx
            .request()
            .readable::<project::Entity>(rule, id)
            .await?
            .map(Project))
    }

    #[graphql(flatten)]
    async fn change(&self) -> &C {
        &self.change
    }
}

/// Reports that events the subscriber has not received are no longer stored. The events that are still stored follow.
/// Sent first when a subscription resumes from too far back, and whenever a subscriber lags that far. Never stored
/// itself.
pub struct EventsMissed {
    oldest: Arc<event::Model>,
    now: chrono::DateTime<Utc>,
}

impl EventsMissed {
    /// The cursor of the position before the oldest stored event.
    pub(crate) fn before(&self, epoch: Uuid) -> String {
        let mut before = event::Model::clone(&self.oldest);
        before.position = before.position.map(|position| position - 1);
        Events::cursor(epoch, &before)
    }

    pub(crate) fn new(oldest: Arc<event::Model>, now: chrono::DateTime<Utc>) -> Self {
        Self { oldest, now }
    }
}

/// Reports that events the subscriber has not received are no longer stored. The events that are still stored follow.
/// Sent first when a subscription resumes from too far back, and whenever a subscriber lags that far. Never stored
/// itself.
#[Object]
impl EventsMissed {
    /// A generated id, `event_…`. It cannot be used to fetch the event.
    async fn id(&self) -> ID {
        Kind::Event.id(Uuid::now_v7())
    }

    /// Always `EVENTS_MISSED`.
    #[graphql(name = "type")]
    async fn kind(&self) -> Result<EventType, Error> {
        Ok(EventType::EventsMissed)
    }

    /// The position before the oldest stored event. Pass it as `after` to resume from there.
    async fn cursor(&self, ctx: &Context<'_>) -> String {
        self.before(ctx.request().services.epoch)
    }

    /// When the event was sent to the subscriber.
    async fn occurred_at(&self) -> DateTime {
        self.now.into()
    }

    /// Always null: the author is the server.
    async fn actor(&self) -> Result<Option<Actor>, Error> {
        Ok(None)
    }

    /// Always null.
    async fn circle(&self) -> Result<Option<Circle>, Error> {
        Ok(None)
    }

    /// Always null.
    async fn project(&self) -> Result<Option<Project>, Error> {
        Ok(None)
    }

    /// The cursor of the oldest stored event.
    async fn oldest_kept(&self, ctx: &Context<'_>) -> String {
        Events::cursor(ctx.request().services.epoch, &self.oldest)
    }
}

/// Typed access to an event's payload.
pub(crate) trait Payload {
    fn payload(&self) -> &Value;

    fn text(&self, name: &str) -> Option<&str> {
        self.payload().get(name)?.as_str()
    }

    fn number(&self, name: &str) -> Option<i32> {
        self.payload().get(name)?.as_i64()?.try_into().ok()
    }

    fn flag(&self, name: &str) -> Option<bool> {
        self.payload().get(name)?.as_bool()
    }

    fn value<E: ActiveEnum<Value = String>>(&self, name: &str) -> Option<E> {
        E::try_from_value(&self.text(name)?.to_owned()).ok()
    }

    fn uuid(&self, name: &str) -> Option<Uuid> {
        let text = self.text(name)?;
        Uuid::parse_str(text)
            .ok()
            .or_else(|| crate::id::parse(&ID(text.to_owned())).map(|(_, uuid)| uuid))
    }

    fn changed(&self) -> Vec<String> {
        let names = self.payload().get("changed").and_then(Value::as_array);
        let names = names.into_iter().flatten().filter_map(Value::as_str);
        names.map(ToOwned::to_owned).collect()
    }
}

impl Payload for event::Model {
    fn payload(&self) -> &Value {
        &self.payload
    }
}

macro_rules! change {
    ($name:ident, $graphql:literal) => {
        impl From<Arc<event::Model>> for $name {
            fn from(row: Arc<event::Model>) -> Self {
                Self(row)
            }
        }

        impl Change for $name {
            const NAME: &'static str = $graphql;
        }
    };
}

/// A change of an agent.
pub struct AgentChange(Arc<event::Model>);
change!(AgentChange, "AgentEvent");

#[Object]
impl AgentChange {
    /// The id of the agent, even if the agent has been deleted.
    async fn agent_id(&self) -> ID {
        Kind::Agent.id(self.0.subject_id)
    }

    /// The agent in its current state; null if it has been deleted or the viewer may not read it.
    async fn agent(&self, ctx: &Context<'_>) -> Result<Option<Agent>, Error> {
        Agent::readable(ctx, Some(self.0.subject_id)).await
    }

    /// The name at the time of the event.
    async fn name(&self) -> &str {
        self.0.text("name").unwrap_or_default()
    }

    /// The status before the change.
    async fn from_status(&self) -> Option<AgentStatus> {
        self.0
            .value::<agent::AgentStatus>("fromStatus")
            .map(Into::into)
    }

    /// The status after the change.
    async fn to_status(&self) -> Option<AgentStatus> {
        self.0
            .value::<agent::AgentStatus>("toStatus")
            .map(Into::into)
    }

    /// The names of the fields that changed.
    async fn changed(&self) -> Vec<String> {
        self.0.changed()
    }
}

/// A change of a project.
pub struct ProjectChange(Arc<event::Model>);
change!(ProjectChange, "ProjectEvent");

#[Object]
impl ProjectChange {
    /// The id of the project, even if the project has been deleted.
    async fn project_id(&self) -> ID {
        Kind::Project.id(self.0.subject_id)
    }

    /// The name at the time of the event.
    async fn name(&self) -> &str {
        self.0.text("name").unwrap_or_default()
    }

    /// The names of the fields that changed.
    async fn changed(&self) -> Vec<String> {
        self.0.changed()
    }
}

/// A change of a circle.
pub struct CircleChange(Arc<event::Model>);
change!(CircleChange, "CircleEvent");

#[Object]
impl CircleChange {
    /// The id of the circle, even if the circle has been deleted.
    async fn circle_id(&self) -> ID {
        Kind::Circle.id(self.0.subject_id)
    }

    /// The name at the time of the event.
    async fn name(&self) -> &str {
        self.0.text("name").unwrap_or_default()
    }

    /// The status before the change.
    async fn from_status(&self) -> Option<CircleStatus> {
        self.0
            .value::<circle::CircleStatus>("fromStatus")
            .map(Into::into)
    }

    /// The status after the change.
    async fn to_status(&self) -> Option<CircleStatus> {
        self.0
            .value::<circle::CircleStatus>("toStatus")
            .map(Into::into)
    }

    /// The names of the fields that changed.
    async fn changed(&self) -> Vec<String> {
        self.0.changed()
    }
}

/// A change of a circle's sharing.
pub struct SharingChange(Arc<event::Model>);
change!(SharingChange, "SharingEvent");

#[Object]
impl SharingChange {
    /// The id of the circle, even if the circle has been deleted.
    async fn circle_id(&self) -> ID {
        Kind::Circle.id(self.0.subject_id)
    }

    /// The user with whom the circle was shared or is no longer shared.
    async fn user(&self, ctx: &Context<'_>) -> Result<Option<User>, Error> {
        let Some(id) = self.0.uuid("userId") else {
            return Ok(None);
        };
        Ok(ctx.request().row::<user::Entity>(id).await?.map(User::new))
    }

    /// The role of the user after the change; null if the circle is no longer shared.
    async fn role(&self) -> Option<CollaboratorRole> {
        self.0
            .value::<collaborator::CollaboratorRole>("role")
            .map(Into::into)
    }
}

/// A change of a member.
pub struct MemberChange(Arc<event::Model>);
change!(MemberChange, "MemberEvent");

#[Object]
impl MemberChange {
    /// The id of the circle, even if the circle has been deleted.
    async fn circle_id(&self) -> Result<ID, Error> {
        self.0
            .circle_id
            .map(|id| Kind::Circle.id(id))
            .ok_or_else(Error::internal)
    }

    /// The id of the membership.
    async fn member_id(&self) -> ID {
        Kind::Member.id(self.0.subject_id)
    }

    /// The id of the agent, even if the agent has been deleted.
    async fn agent_id(&self) -> Result<ID, Error> {
        self.0
            .agent_id
            .or_else(|| self.0.uuid("agentId"))
            .map(|id| Kind::Agent.id(id))
            .ok_or_else(Error::internal)
    }

    /// The agent in its current state; null if it has been deleted or the viewer may not read it.
    async fn agent(&self, ctx: &Context<'_>) -> Result<Option<Agent>, Error> {
        Agent::readable(ctx, self.0.agent_id.or_else(|| self.0.uuid("agentId"))).await
    }

    /// The role of the agent in the circle.
    async fn role(&self) -> MemberRole {
        self.0
            .value::<member::MemberRole>("role")
            .unwrap_or(member::MemberRole::Member)
            .into()
    }

    /// The names of the fields that changed.
    async fn changed(&self) -> Vec<String> {
        self.0.changed()
    }
}

/// A change of a task.
pub struct TaskChange(Arc<event::Model>);
change!(TaskChange, "TaskEvent");

#[Object]
impl TaskChange {
    /// The id of the task, even if the task has been deleted.
    async fn task_id(&self) -> ID {
        Kind::Task.id(self.0.subject_id)
    }

    /// The task in its current state; null if it has been deleted.
    async fn task(&self, ctx: &Context<'_>) -> Result<Option<Task>, Error> {
        Task::readable(ctx, Some(self.0.subject_id)).await
    }

    /// The title at the time of the event.
    async fn title(&self) -> &str {
        self.0.text("title").unwrap_or_default()
    }

    /// The status before the change.
    async fn from_status(&self) -> Option<TaskStatus> {
        self.0
            .value::<task::TaskStatus>("fromStatus")
            .map(Into::into)
    }

    /// The status after the change.
    async fn to_status(&self) -> Option<TaskStatus> {
        self.0.value::<task::TaskStatus>("toStatus").map(Into::into)
    }

    /// The assignee after the change; null if there is none or the viewer may not read it.
    async fn assignee(&self, ctx: &Context<'_>) -> Result<Option<Agent>, Error> {
        Agent::readable(ctx, self.0.uuid("assigneeId")).await
    }

    /// The reviewer after the change; null if there is none or the viewer may not read it.
    async fn reviewer(&self, ctx: &Context<'_>) -> Result<Option<Agent>, Error> {
        Agent::readable(ctx, self.0.uuid("reviewerId")).await
    }

    /// The score of the assignee when the task was routed.
    async fn routing_score(&self) -> Option<f64> {
        self.0.payload.get("routingScore")?.as_f64()
    }

    /// The note or reason given with the change.
    async fn note(&self) -> Option<&str> {
        self.0.text("note")
    }

    /// The names of the fields that changed.
    async fn changed(&self) -> Vec<String> {
        self.0.changed()
    }
}

/// A change of a conversation.
pub struct ConversationChange(Arc<event::Model>);
change!(ConversationChange, "ConversationEvent");

#[Object]
impl ConversationChange {
    /// The id of the conversation, even if the conversation has been deleted.
    async fn conversation_id(&self) -> ID {
        Kind::Conversation.id(self.0.subject_id)
    }

    /// The conversation in its current state; null if it has been deleted.
    async fn conversation(&self, ctx: &Context<'_>) -> Result<Option<Conversation>, Error> {
        Conversation::readable(ctx, self.0.subject_id).await
    }

    /// The topic at the time of the event.
    async fn topic(&self) -> &str {
        self.0.text("topic").unwrap_or_default()
    }

    /// The status before the change.
    async fn from_status(&self) -> Option<ConversationStatus> {
        self.0
            .value::<conversation::ConversationStatus>("fromStatus")
            .map(Into::into)
    }

    /// The status after the change.
    async fn to_status(&self) -> Option<ConversationStatus> {
        self.0
            .value::<conversation::ConversationStatus>("toStatus")
            .map(Into::into)
    }

    /// The number of the turn.
    async fn turn(&self) -> Option<i32> {
        self.0.number("turn")
    }

    /// The reason for the end.
    async fn reason(&self) -> Option<&str> {
        self.0.text("reason")
    }

    /// The names of the fields that changed.
    async fn changed(&self) -> Vec<String> {
        self.0.changed()
    }
}

/// A change of a message.
pub struct MessageChange(Arc<event::Model>);
change!(MessageChange, "MessageEvent");

#[Object]
impl MessageChange {
    /// The id of the conversation, even if the conversation has been deleted.
    async fn conversation_id(&self) -> Result<ID, Error> {
        let id = self.0.uuid("conversationId").ok_or_else(Error::internal)?;
        Ok(Kind::Conversation.id(id))
    }

    /// The conversation in its current state; null if it has been deleted.
    async fn conversation(&self, ctx: &Context<'_>) -> Result<Option<Conversation>, Error> {
        let Some(id) = self.0.uuid("conversationId") else {
            return Ok(None);
        };
        Conversation::readable(ctx, id).await
    }

    /// The id of the message.
    async fn message_id(&self) -> ID {
        Kind::Message.id(self.0.subject_id)
    }

    /// The message; null if it has been deleted.
    async fn message(&self, ctx: &Context<'_>) -> Result<Option<Message>, Error> {
        Message::readable(ctx, self.0.subject_id).await
    }

    /// The sequence number in the conversation.
    async fn seq(&self) -> i32 {
        self.0.number("seq").unwrap_or_default()
    }

    /// The beginning of the content, at most 200 characters.
    async fn excerpt(&self) -> &str {
        self.0.text("excerpt").unwrap_or_default()
    }

    /// Whether the message was pinned, with `MESSAGE_PINNED`; null with `MESSAGE_ADDED`.
    async fn is_pinned(&self) -> Option<bool> {
        self.0.flag("isPinned")
    }
}

/// A change of a provider, model or persona.
pub struct CatalogueChange(Arc<event::Model>);
change!(CatalogueChange, "CatalogueEvent");

#[Object]
impl CatalogueChange {
    /// The id of the provider, model or persona, even if it has been deleted.
    async fn subject_id(&self) -> ID {
        let kind = match self.0.subject_type.as_str() {
            "provider" => Kind::Provider,
            "model" => Kind::Model,
            _ => Kind::Persona,
        };
        kind.id(self.0.subject_id)
    }

    /// The name at the time of the event.
    async fn name(&self) -> &str {
        self.0.text("name").unwrap_or_default()
    }

    /// Whether it was deleted.
    async fn is_deleted(&self) -> bool {
        self.0.flag("isDeleted").unwrap_or_default()
    }

    /// The names of the fields that changed.
    async fn changed(&self) -> Vec<String> {
        self.0.changed()
    }
}

/// A change of a user.
pub struct UserChange(Arc<event::Model>);
change!(UserChange, "UserEvent");

#[Object]
impl UserChange {
    /// The id of the user.
    async fn user_id(&self) -> ID {
        Kind::User.id(self.0.subject_id)
    }

    /// The user in their current state.
    async fn user(&self, ctx: &Context<'_>) -> Result<Option<User>, Error> {
        Ok(ctx
            .request()
            .row::<user::Entity>(self.0.subject_id)
            .await?
            .map(User::new))
    }

    /// The reason for the event. Revoked tokens: `LOGOUT` (everywhere), `PASSWORD_CHANGED`, `ADMIN` or `REUSE` (of a
    /// refresh token). Locked-out user: `FAILED_LOGINS`.
    async fn reason(&self) -> Option<&str> {
        self.0.text("reason")
    }

    /// The names of the fields that changed.
    async fn changed(&self) -> Vec<String> {
        self.0.changed()
    }
}

/// Marker type for connections of events.
pub struct Events;

impl Listed for Events {
    type Entity = event::Entity;
    type Node = Event;
    type Extra = EmptyFields;
    const NAME: &'static str = "Event";

    async fn nodes(
        _: &Context<'_>,
        rows: &[Arc<event::Model>],
    ) -> Result<Vec<Option<Event>>, Error> {
        Ok(rows.iter().map(Event::of).collect())
    }

    fn extra(_: &Arc<event::Model>) -> EmptyFields {
        EmptyFields
    }
}

impl Events {
    /// Newest first. The cursors are bound to the epoch, so that those of another database are rejected.
    fn order(epoch: Uuid) -> Order<event::Column> {
        Order::descending([event::Column::Position]).salted(epoch)
    }

    pub(crate) fn cursor(epoch: Uuid, row: &event::Model) -> String {
        Self::order(epoch).cursor(row)
    }

    /// The position that a cursor encodes.
    ///
    /// # Errors
    /// `BAD_USER_INPUT` if it is not the cursor of an event of this database.
    pub(crate) fn position(epoch: Uuid, cursor: &str) -> Result<i64, Error> {
        let values = Self::order(epoch).values(cursor, "after")?;
        match values.first() {
            Some(sea_orm::Value::BigInt(Some(position))) => Ok(*position),
            _ => Err(Error::internal()),
        }
    }

    /// The published events of a circle, project or agent that the viewer may read.
    pub(crate) fn of(
        ctx: &Context<'_>,
        column: event::Column,
        parent: Uuid,
        filter: Option<EventFilter>,
        page: &Page,
    ) -> Result<Connection<Self>, Error> {
        Connection::of(
            column,
            parent,
            Self::condition(ctx, filter)?,
            Self::order(ctx.request().services.epoch),
            page,
        )
    }

    fn condition(ctx: &Context<'_>, filter: Option<EventFilter>) -> Result<Condition, Error> {
        let readable = ctx.request().viewer()?.events();
        Ok(Condition::all()
            .add(event::Column::Position.is_not_null())
            .add(readable)
            .add(EventFilter::wanted(filter)?.condition()))
    }
}

/// Filters a list of events. All conditions must match; an empty list matches nothing.
#[derive(InputObject)]
pub struct EventFilter {
    /// Only events of these types.
    types: Option<Vec<EventType>>,
    /// Only events in this circle.
    circle_id: Option<ID>,
    /// Only events in this project.
    project_id: Option<ID>,
    /// Only events that concern this agent.
    agent_id: Option<ID>,
    /// Only events about this subject, an id of any type.
    subject_id: Option<ID>,
}

impl EventFilter {
    /// Converts the input to the internal event filter.
    pub(crate) fn wanted(filter: Option<Self>) -> Result<FeedFilter, Error> {
        let Some(filter) = filter else {
            return Ok(FeedFilter::default());
        };
        let subject = match filter.subject_id {
            Some(id) => match crate::id::parse(&id) {
                Some((_, uuid)) => Some(uuid),
                None => {
                    return Err(
                        Error::bad_input("`subjectId` must be a valid id.").field("subjectId")
                    );
                }
            },
            None => None,
        };
        Ok(FeedFilter {
            types: filter
                .types
                .map(|types| crate::db::distinct(types.into_iter().map(EventType::dotted))),
            circle: Kind::Circle.parse_opt(filter.circle_id.as_ref(), "circleId")?,
            project: Kind::Project.parse_opt(filter.project_id.as_ref(), "projectId")?,
            agent: Kind::Agent.parse_opt(filter.agent_id.as_ref(), "agentId")?,
            subject,
        })
    }
}

/// Event queries.
#[derive(Default)]
pub struct EventQuery;

#[Object]
impl EventQuery {
    /// Lists the events that the viewer may read, newest first.
    async fn events(
        &self,
        ctx: &Context<'_>,
        first: Option<i32>,
        after: Option<String>,
        last: Option<i32>,
        before: Option<String>,
        filter: Option<EventFilter>,
    ) -> Result<Connection<Events>, Error> {
        Connection::new(
            Events::condition(ctx, filter)?,
            Events::order(ctx.request().services.epoch),
            &Page::new(first, after, last, before)?,
        )
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
                EventType::from_dotted(&item.value.dotted()),
                Some(item.value)
            );
        }
        assert_eq!(EventType::from_dotted("agent.abducted"), None);
    }
}
