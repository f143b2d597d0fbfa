//! Events: facts about changes, written with the change.
//!
//! A row's payload is read leniently: what an older version did not write is null or empty, never an error.

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

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
pub enum EventType {
    /// An agent was made.
    AgentCreated,
    /// An agent was edited.
    AgentUpdated,
    /// An agent turned idle, busy or offline.
    AgentStatusChanged,
    /// An agent was deleted.
    AgentDeleted,
    /// A project was made.
    ProjectCreated,
    /// A project was edited.
    ProjectUpdated,
    /// A project was deleted.
    ProjectDeleted,
    /// A circle was made.
    CircleCreated,
    /// A circle was edited.
    CircleUpdated,
    /// A circle was started.
    CircleStarted,
    /// A circle was paused.
    CirclePaused,
    /// A circle was stopped.
    CircleStopped,
    /// A circle was put away.
    CircleArchived,
    /// A circle was taken out of the archive.
    CircleRestored,
    /// A circle was deleted.
    CircleDeleted,
    /// A circle was shared with a user.
    CircleShared,
    /// A circle is no longer shared with a user.
    CircleUnshared,
    /// A member was added.
    MemberAdded,
    /// A member was edited.
    MemberUpdated,
    /// A member left.
    MemberRemoved,
    /// A task was made.
    TaskCreated,
    /// A task was edited.
    TaskUpdated,
    /// A task was given to an agent.
    TaskAssigned,
    /// A task was taken from its agent.
    TaskUnassigned,
    /// A task was started.
    TaskStarted,
    /// A task cannot go on.
    TaskBlocked,
    /// A task can go on.
    TaskUnblocked,
    /// A task was submitted.
    TaskSubmitted,
    /// A task passed its review.
    TaskApproved,
    /// A task is to be done again.
    TaskRejected,
    /// A task is done.
    TaskCompleted,
    /// A task was given up.
    TaskFailed,
    /// A task is no longer wanted.
    TaskCancelled,
    /// A task was taken up again.
    TaskReopened,
    /// A task was deleted.
    TaskDeleted,
    /// A conversation was made.
    ConversationCreated,
    /// A conversation was edited.
    ConversationUpdated,
    /// A conversation was started.
    ConversationStarted,
    /// A conversation was paused.
    ConversationPaused,
    /// A conversation goes on.
    ConversationResumed,
    /// A conversation had a turn.
    ConversationTurnCompleted,
    /// A conversation ended.
    ConversationEnded,
    /// A conversation was deleted.
    ConversationDeleted,
    /// A message was added.
    MessageAdded,
    /// A message was pinned or unpinned.
    MessagePinned,
    /// A provider was added, edited or deleted.
    ProviderChanged,
    /// A model was added, edited or deleted.
    ModelChanged,
    /// A persona was added, edited or deleted.
    PersonaChanged,
    /// A user registered.
    UserRegistered,
    /// A user was edited.
    UserUpdated,
    /// A user was locked out after repeated failures to sign in.
    UserLocked,
    /// Access tokens of a user were revoked before their time: all of them, or those of a session that was stolen.
    UserTokensRevoked,
    /// Events were no longer kept when a subscription came back for them.
    EventsMissed,
}

impl EventType {
    fn name(self) -> &'static str {
        Self::items()
            .iter()
            .find(|item| item.value == self)
            .map_or("", |item| item.name)
    }

    /// The dotted name a row carries: `TASK_CREATED` is `task.created`.
    pub(crate) fn dotted(self) -> String {
        self.name().to_ascii_lowercase().replacen('_', ".", 1)
    }

    /// The dotted names of all types about one kind of subject.
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

/// Who made a change: a user or an agent. A null actor is the server itself.
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

/// A fact about a change, written with the change and delivered in order.
#[derive(Interface)]
#[graphql(
    field(name = "id", ty = "ID", desc = "The id of the event, `event_…`."),
    field(
        name = "type",
        method = "kind",
        ty = "Result<EventType, Error>",
        desc = "What happened."
    ),
    field(
        name = "cursor",
        ty = "String",
        desc = "Marks the event's place in the order of delivery: give it as `after` to go on from here."
    ),
    field(name = "occurred_at", ty = "DateTime", desc = "When it happened."),
    field(
        name = "actor",
        ty = "Result<Option<Actor>, Error>",
        desc = "Who made the change, as far as the viewer may read them; null for the server itself."
    ),
    field(
        name = "circle",
        ty = "Result<Option<Circle>, Error>",
        desc = "The circle in which it happened, as far as the viewer may read it."
    ),
    field(
        name = "project",
        ty = "Result<Option<Project>, Error>",
        desc = "The project in which it happened, as far as the viewer may read it."
    )
)]
pub enum Event {
    /// Of an agent.
    Agent(Of<AgentChange>),
    /// Of a project.
    Project(Of<ProjectChange>),
    /// Of a circle.
    Circle(Of<CircleChange>),
    /// Of a circle's sharing.
    Sharing(Of<SharingChange>),
    /// Of a member.
    Member(Of<MemberChange>),
    /// Of a task.
    Task(Of<TaskChange>),
    /// Of a conversation.
    Conversation(Of<ConversationChange>),
    /// Of a message.
    Message(Of<MessageChange>),
    /// Of the catalogue.
    Catalogue(Of<CatalogueChange>),
    /// Of a user.
    User(Of<UserChange>),
    /// Of what is no longer kept.
    Missed(EventsMissed),
}

impl Event {
    /// The event in the type that shows it; `None` for a type this version does not know.
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

/// What an event of one kind of subject says beside what all events say.
pub trait Change: ObjectType + From<Arc<event::Model>> {
    /// The name of the GraphQL type.
    const NAME: &'static str;
}

/// An event of one kind of subject.
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

/// A fact about a change of one kind of subject.
#[Object(name_type)]
impl<C: Change> Of<C> {
    /// The id of the event, `event_…`.
    pub(crate) async fn id(&self) -> ID {
        Kind::Event.id(self.row.id)
    }

    /// What happened.
    #[graphql(name = "type")]
    async fn kind(&self) -> Result<EventType, Error> {
        EventType::from_dotted(&self.row.kind).ok_or_else(Error::internal)
    }

    /// Marks the event's place in the order of delivery: give it as `after` to go on from here.
    async fn cursor(&self, ctx: &Context<'_>) -> String {
        Events::cursor(ctx.request().services.epoch, &self.row)
    }

    /// When it happened.
    async fn occurred_at(&self) -> DateTime {
        self.row.occurred_at.into()
    }

    /// Who made the change, as far as the viewer may read them; null for the server itself.
    async fn actor(&self, ctx: &Context<'_>) -> Result<Option<Actor>, Error> {
        // Of an agent that takes its turn the row knows the user, too, who had it do so.
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

    /// The circle in which it happened, as far as the viewer may read it.
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

    /// The project in which it happened, as far as the viewer may read it.
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

/// Tells a subscriber that events which they have not seen are no longer kept. What is kept follows. Comes first when a
/// subscription is resumed from too far back, and whenever a subscriber has fallen that far behind; never stored.
pub struct EventsMissed {
    oldest: Arc<event::Model>,
    now: chrono::DateTime<Utc>,
}

impl EventsMissed {
    /// The cursor just before the oldest event.
    pub(crate) fn before(&self, epoch: Uuid) -> String {
        let mut before = event::Model::clone(&self.oldest);
        before.position = before.position.map(|position| position - 1);
        Events::cursor(epoch, &before)
    }

    pub(crate) fn new(oldest: Arc<event::Model>, now: chrono::DateTime<Utc>) -> Self {
        Self { oldest, now }
    }
}

/// Tells a subscriber that events which they have not seen are no longer kept. What is kept follows. Comes first when a
/// subscription is resumed from too far back, and whenever a subscriber has fallen that far behind; never stored.
#[Object]
impl EventsMissed {
    /// An id of its own, `event_…`; nothing can be fetched by it.
    async fn id(&self) -> ID {
        Kind::Event.id(Uuid::now_v7())
    }

    /// `EVENTS_MISSED`.
    #[graphql(name = "type")]
    async fn kind(&self) -> Result<EventType, Error> {
        Ok(EventType::EventsMissed)
    }

    /// The place before the oldest event that is kept: give it as `after` to go on from here.
    async fn cursor(&self, ctx: &Context<'_>) -> String {
        self.before(ctx.request().services.epoch)
    }

    /// When the subscriber was told.
    async fn occurred_at(&self) -> DateTime {
        self.now.into()
    }

    /// Null: the server itself.
    async fn actor(&self) -> Result<Option<Actor>, Error> {
        Ok(None)
    }

    /// Null.
    async fn circle(&self) -> Result<Option<Circle>, Error> {
        Ok(None)
    }

    /// Null.
    async fn project(&self) -> Result<Option<Project>, Error> {
        Ok(None)
    }

    /// The cursor of the oldest event that is kept.
    async fn oldest_kept(&self, ctx: &Context<'_>) -> String {
        Events::cursor(ctx.request().services.epoch, &self.oldest)
    }
}

/// Reads a payload.
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
    /// The id of the agent, also when it is gone.
    async fn agent_id(&self) -> ID {
        Kind::Agent.id(self.0.subject_id)
    }

    /// The agent as it is now, if it is still there and the viewer may read it.
    async fn agent(&self, ctx: &Context<'_>) -> Result<Option<Agent>, Error> {
        Agent::readable(ctx, Some(self.0.subject_id)).await
    }

    /// The name it had then.
    async fn name(&self) -> &str {
        self.0.text("name").unwrap_or_default()
    }

    /// What it was doing before.
    async fn from_status(&self) -> Option<AgentStatus> {
        self.0
            .value::<agent::AgentStatus>("fromStatus")
            .map(Into::into)
    }

    /// What it was doing from then on.
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
    /// The id of the project, also when it is gone.
    async fn project_id(&self) -> ID {
        Kind::Project.id(self.0.subject_id)
    }

    /// The name it had then.
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
    /// The id of the circle, also when it is gone.
    async fn circle_id(&self) -> ID {
        Kind::Circle.id(self.0.subject_id)
    }

    /// The name it had then.
    async fn name(&self) -> &str {
        self.0.text("name").unwrap_or_default()
    }

    /// Where it stood before.
    async fn from_status(&self) -> Option<CircleStatus> {
        self.0
            .value::<circle::CircleStatus>("fromStatus")
            .map(Into::into)
    }

    /// Where it stood from then on.
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
    /// The id of the circle, also when it is gone.
    async fn circle_id(&self) -> ID {
        Kind::Circle.id(self.0.subject_id)
    }

    /// The user with whom the circle was, or is no longer, shared.
    async fn user(&self, ctx: &Context<'_>) -> Result<Option<User>, Error> {
        let Some(id) = self.0.uuid("userId") else {
            return Ok(None);
        };
        Ok(ctx.request().row::<user::Entity>(id).await?.map(User::new))
    }

    /// What the user may do from then on; null when the circle is no longer shared.
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
    /// The id of the circle, also when it is gone.
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

    /// The id of the agent, also when it is gone.
    async fn agent_id(&self) -> Result<ID, Error> {
        self.0
            .agent_id
            .or_else(|| self.0.uuid("agentId"))
            .map(|id| Kind::Agent.id(id))
            .ok_or_else(Error::internal)
    }

    /// The agent as it is now, if it is still there and the viewer may read it.
    async fn agent(&self, ctx: &Context<'_>) -> Result<Option<Agent>, Error> {
        Agent::readable(ctx, self.0.agent_id.or_else(|| self.0.uuid("agentId"))).await
    }

    /// The agent's part in the circle.
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
    /// The id of the task, also when it is gone.
    async fn task_id(&self) -> ID {
        Kind::Task.id(self.0.subject_id)
    }

    /// The task as it is now, if it is still there.
    async fn task(&self, ctx: &Context<'_>) -> Result<Option<Task>, Error> {
        Task::readable(ctx, Some(self.0.subject_id)).await
    }

    /// The title it had then.
    async fn title(&self) -> &str {
        self.0.text("title").unwrap_or_default()
    }

    /// Where it stood before.
    async fn from_status(&self) -> Option<TaskStatus> {
        self.0
            .value::<task::TaskStatus>("fromStatus")
            .map(Into::into)
    }

    /// Where it stood from then on.
    async fn to_status(&self) -> Option<TaskStatus> {
        self.0.value::<task::TaskStatus>("toStatus").map(Into::into)
    }

    /// The agent who had it from then on, as far as the viewer may read it.
    async fn assignee(&self, ctx: &Context<'_>) -> Result<Option<Agent>, Error> {
        Agent::readable(ctx, self.0.uuid("assigneeId")).await
    }

    /// The agent who reviewed it from then on, as far as the viewer may read it.
    async fn reviewer(&self, ctx: &Context<'_>) -> Result<Option<Agent>, Error> {
        Agent::readable(ctx, self.0.uuid("reviewerId")).await
    }

    /// How well the agent fitted when the task was routed.
    async fn routing_score(&self) -> Option<f64> {
        self.0.payload.get("routingScore")?.as_f64()
    }

    /// What was said about it.
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
    /// The id of the conversation, also when it is gone.
    async fn conversation_id(&self) -> ID {
        Kind::Conversation.id(self.0.subject_id)
    }

    /// The conversation as it is now, if it is still there.
    async fn conversation(&self, ctx: &Context<'_>) -> Result<Option<Conversation>, Error> {
        Conversation::readable(ctx, self.0.subject_id).await
    }

    /// The topic it had then.
    async fn topic(&self) -> &str {
        self.0.text("topic").unwrap_or_default()
    }

    /// Where it stood before.
    async fn from_status(&self) -> Option<ConversationStatus> {
        self.0
            .value::<conversation::ConversationStatus>("fromStatus")
            .map(Into::into)
    }

    /// Where it stood from then on.
    async fn to_status(&self) -> Option<ConversationStatus> {
        self.0
            .value::<conversation::ConversationStatus>("toStatus")
            .map(Into::into)
    }

    /// The number of the turn.
    async fn turn(&self) -> Option<i32> {
        self.0.number("turn")
    }

    /// Why it ended.
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
    /// The id of the conversation, also when it is gone.
    async fn conversation_id(&self) -> Result<ID, Error> {
        let id = self.0.uuid("conversationId").ok_or_else(Error::internal)?;
        Ok(Kind::Conversation.id(id))
    }

    /// The conversation as it is now, if it is still there.
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

    /// The message, if it is still there.
    async fn message(&self, ctx: &Context<'_>) -> Result<Option<Message>, Error> {
        Message::readable(ctx, self.0.subject_id).await
    }

    /// Its number in the conversation.
    async fn seq(&self) -> i32 {
        self.0.number("seq").unwrap_or_default()
    }

    /// How it begins, at most 200 characters.
    async fn excerpt(&self) -> &str {
        self.0.text("excerpt").unwrap_or_default()
    }

    /// Whether it was to be kept in sight from then on, under `MESSAGE_PINNED`; null under `MESSAGE_ADDED`.
    async fn is_pinned(&self) -> Option<bool> {
        self.0.flag("isPinned")
    }
}

/// A change of a provider, model or persona.
pub struct CatalogueChange(Arc<event::Model>);
change!(CatalogueChange, "CatalogueEvent");

#[Object]
impl CatalogueChange {
    /// The id of the provider, model or persona, also when it is gone.
    async fn subject_id(&self) -> ID {
        let kind = match self.0.subject_type.as_str() {
            "provider" => Kind::Provider,
            "model" => Kind::Model,
            _ => Kind::Persona,
        };
        kind.id(self.0.subject_id)
    }

    /// The name it had then.
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

    /// The user as they are now.
    async fn user(&self, ctx: &Context<'_>) -> Result<Option<User>, Error> {
        Ok(ctx
            .request()
            .row::<user::Entity>(self.0.subject_id)
            .await?
            .map(User::new))
    }

    /// Why it happened. For revoked tokens `LOGOUT` (everywhere), `PASSWORD_CHANGED`, `ADMIN` or `REUSE` (of a refresh token);
    /// for a user who was locked out `FAILED_LOGINS`.
    async fn reason(&self) -> Option<&str> {
        self.0.text("reason")
    }

    /// The names of the fields that changed.
    async fn changed(&self) -> Vec<String> {
        self.0.changed()
    }
}

/// Events as a list.
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
    /// Cursors of one database mean nothing to another.
    fn order(epoch: Uuid) -> Order<event::Column> {
        Order::descending([event::Column::Position]).salted(epoch)
    }

    pub(crate) fn cursor(epoch: Uuid, row: &event::Model) -> String {
        Self::order(epoch).cursor(row)
    }

    /// The position that a cursor names.
    ///
    /// # Errors
    /// `BAD_USER_INPUT` for what is no cursor of an event of this database.
    pub(crate) fn position(epoch: Uuid, cursor: &str) -> Result<i64, Error> {
        let values = Self::order(epoch).values(cursor, "after")?;
        match values.first() {
            Some(sea_orm::Value::BigInt(Some(position))) => Ok(*position),
            _ => Err(Error::internal()),
        }
    }

    /// The announced events of a circle, project or agent that the viewer may read.
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

/// Narrows a list of events. All given conditions must hold; an empty list matches nothing.
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
    /// Only events of this subject, whatever its type.
    subject_id: Option<ID>,
}

impl EventFilter {
    /// What it lets pass.
    pub(crate) fn wanted(filter: Option<Self>) -> Result<FeedFilter, Error> {
        let Some(filter) = filter else {
            return Ok(FeedFilter::default());
        };
        let subject = match filter.subject_id {
            Some(id) => match crate::id::parse(&id) {
                Some((_, uuid)) => Some(uuid),
                None => {
                    return Err(Error::bad_input("`subjectId` must be an id.").field("subjectId"));
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

/// Queries about events.
#[derive(Default)]
pub struct EventQuery;

#[Object]
impl EventQuery {
    /// The events that the viewer may read, newest first.
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
