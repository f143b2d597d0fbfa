//! Events: records of changes, written in the same transaction as the change.
//!
//! A payload is read leniently: a field that an older version did not write is null or empty, never an error.

use std::{borrow::Cow, sync::Arc};

use async_graphql::{
    Context, ID, InputObject, Interface, Object, ObjectType, TypeName, connection::EmptyFields,
};
use chrono::Utc;
use gathering_entity::{event, user};
use sea_orm::{ActiveEnum, ColumnTrait, Condition};
use serde_json::Value;
use uuid::Uuid;

use crate::{
    agent::{Agent, event::AgentChange},
    catalogue::event::CatalogueChange,
    circle::{
        Circle,
        event::{CircleChange, MemberChange, SharingChange},
    },
    conversation::event::{ConversationChange, MessageChange},
    data::{Connection, Listed, Order, Page, load},
    db::distinct,
    error::Error,
    events::{EventType, FeedFilter},
    id::{self, Kind},
    project::{Project, ProjectChange},
    request::RequestExt,
    scalar::DateTime,
    task::event::TaskChange,
    transfer::event::TransferChange,
    user::{User, UserChange},
};

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
    /// A transfer event.
    Transfer(Of<TransferChange>),
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
            ("transfer", _) => Self::Transfer(Of::new(row)),
            _ => return None,
        })
    }
}

/// The event fields that are specific to one kind of subject.
pub trait EventDetails: ObjectType + From<Arc<event::Model>> {
    /// The name of the GraphQL type.
    const NAME: &'static str;
}

/// An event with the fields of one kind of subject.
pub struct Of<C: EventDetails> {
    row: Arc<event::Model>,
    change: C,
}

impl<C: EventDetails> Of<C> {
    fn new(row: &Arc<event::Model>) -> Self {
        Self {
            row: Arc::clone(row),
            change: C::from(Arc::clone(row)),
        }
    }
}

impl<C: EventDetails> TypeName for Of<C> {
    fn type_name() -> Cow<'static, str> {
        C::NAME.into()
    }
}

// `roots.rs` adds the description of each type.
#[Object(name_type)]
impl<C: EventDetails> Of<C> {
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
        load(ctx.request(), id).await
    }

    /// The project in which it happened; null if the viewer may not read it.
    async fn project(&self, ctx: &Context<'_>) -> Result<Option<Project>, Error> {
        let Some(id) = self.row.project_id else {
            return Ok(None);
        };
        load(ctx.request(), id).await
    }

    #[graphql(flatten)]
    async fn change(&self) -> &C {
        &self.change
    }
}

/// Reports that events the subscriber has not received are no longer stored.
/// The events that are still stored follow. Sent first when a subscription resumes from too far back, and whenever a
/// subscriber lags that far. Never stored itself.
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

/// Reports that events the subscriber has not received are no longer stored.
/// The events that are still stored follow. Sent first when a subscription resumes from too far back, and whenever a
/// subscriber lags that far. Never stored itself.
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
            .or_else(|| id::parse(&ID(text.to_owned())).map(|(_, uuid)| uuid))
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

/// The user whose id is in the payload of an event.
pub(crate) async fn user_in(
    ctx: &Context<'_>,
    row: &event::Model,
    name: &str,
) -> Result<Option<User>, Error> {
    let Some(id) = row.uuid(name) else {
        return Ok(None);
    };
    Ok(ctx.request().row::<user::Entity>(id).await?.map(User::new))
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
            Self::published(&EventFilter::feed_filter(filter)?)
                .add(ctx.request().viewer()?.events()),
            Self::order(ctx.request().services.epoch),
            page,
        )
    }

    /// The published events that match a filter.
    fn published(filter: &FeedFilter) -> Condition {
        Condition::all()
            .add(event::Column::Position.is_not_null())
            .add(filter.condition())
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
    pub(crate) fn feed_filter(filter: Option<Self>) -> Result<FeedFilter, Error> {
        let Some(filter) = filter else {
            return Ok(FeedFilter::default());
        };
        let subject = match filter.subject_id {
            Some(subject) => match id::parse(&subject) {
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
                .map(|types| distinct(types.into_iter().map(EventType::dotted))),
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
    /// An event is listed shortly after its transaction has committed, in milliseconds as a rule.
    async fn events(
        &self,
        ctx: &Context<'_>,
        first: Option<i32>,
        after: Option<String>,
        last: Option<i32>,
        before: Option<String>,
        filter: Option<EventFilter>,
    ) -> Result<Connection<Events>, Error> {
        let filter = EventFilter::feed_filter(filter)?;
        Connection::within(
            ctx.request().viewer()?.all_events(&filter),
            Events::published(&filter),
            Events::order(ctx.request().services.epoch),
            &Page::new(first, after, last, before)?,
        )
    }
}
