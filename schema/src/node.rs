//! Nodes: objects that can be fetched by their global id.

use async_graphql::{Context, ID, Interface, Object};
use futures_util::future::try_join_all;
use gathering_entity::{
    agent, audit, circle, conversation, event, member, message, model, persona, project, provider,
    task, user,
};
use uuid::Uuid;

use crate::{
    agent::Agent,
    audit_entry::AuditEntry,
    catalogue::{model::Model, persona::Persona, provider::Provider},
    circle::{Circle, members::CircleMember},
    conversation::{Conversation, messages::Message},
    data::list_size,
    error::Error,
    event::{self as events, Event},
    id::{self, Kind},
    project::Project,
    request::{Request, RequestExt},
    task::Task,
    user::User,
};

/// Maximum number of ids of one `nodes` field.
const MAX_NODES: usize = 100;

/// An object with a global id. See the [GraphQL global object identification
/// specification](https://relay.dev/graphql/objectidentification.htm).
#[derive(Interface)]
#[graphql(field(
    name = "id",
    ty = "ID",
    desc = "The global id: the type in lower case, `_`, and 26 characters. Opaque to clients."
))]
pub enum Node {
    /// A user.
    User(User),
    /// A provider.
    Provider(Provider),
    /// A model.
    Model(Model),
    /// A persona.
    Persona(Persona),
    /// An agent.
    Agent(Agent),
    /// A project.
    Project(Project),
    /// A circle.
    Circle(Circle),
    /// A member.
    Member(CircleMember),
    /// A task.
    Task(Task),
    /// A conversation.
    Conversation(Conversation),
    /// A message.
    Message(Message),
    /// An entry of the audit log.
    Audit(AuditEntry),
    /// An agent event.
    AgentEvent(events::Of<events::AgentChange>),
    /// A project event.
    ProjectEvent(events::Of<events::ProjectChange>),
    /// A circle event.
    CircleEvent(events::Of<events::CircleChange>),
    /// An event about the sharing of a circle.
    SharingEvent(events::Of<events::SharingChange>),
    /// A member event.
    MemberEvent(events::Of<events::MemberChange>),
    /// A task event.
    TaskEvent(events::Of<events::TaskChange>),
    /// A conversation event.
    ConversationEvent(events::Of<events::ConversationChange>),
    /// A message event.
    MessageEvent(events::Of<events::MessageChange>),
    /// A catalogue event.
    CatalogueEvent(events::Of<events::CatalogueChange>),
    /// A user event.
    UserEvent(events::Of<events::UserChange>),
}

impl Node {
    fn of(event: Event) -> Option<Self> {
        Some(match event {
            Event::Agent(event) => Self::AgentEvent(event),
            Event::Project(event) => Self::ProjectEvent(event),
            Event::Circle(event) => Self::CircleEvent(event),
            Event::Sharing(event) => Self::SharingEvent(event),
            Event::Member(event) => Self::MemberEvent(event),
            Event::Task(event) => Self::TaskEvent(event),
            Event::Conversation(event) => Self::ConversationEvent(event),
            Event::Message(event) => Self::MessageEvent(event),
            Event::Catalogue(event) => Self::CatalogueEvent(event),
            Event::User(event) => Self::UserEvent(event),
            Event::Missed(_) => return None,
        })
    }

    /// Loads the object with this id; `None` if it does not exist or the viewer may not read it.
    pub(crate) async fn load(
        request: &Request,
        kind: Kind,
        id: Uuid,
    ) -> Result<Option<Self>, Error> {
        let viewer = request.viewer()?;
        let rules = viewer.rules();
        Ok(match kind {
            Kind::User => request
                .row::<user::Entity>(id)
                .await?
                .map(|row| Self::User(User::new(row))),
            Kind::Provider => request
                .row::<provider::Entity>(id)
                .await?
                .map(|row| Self::Provider(Provider(row))),
            Kind::Model => request
                .row::<model::Entity>(id)
                .await?
                .map(|row| Self::Model(Model(row))),
            Kind::Persona => request
                .row::<persona::Entity>(id)
                .await?
                .map(|row| Self::Persona(Persona(row))),
            Kind::Agent => {
                let row = request.readable::<agent::Entity>(&rules.agent, id).await?;
                row.map(|row| Self::Agent(Agent(row)))
            }
            Kind::Project => {
                let row = request
                    .readable::<project::Entity>(&rules.project, id)
                    .await?;
                row.map(|row| Self::Project(Project(row)))
            }
            Kind::Circle => {
                let row = request
                    .readable::<circle::Entity>(&rules.circle, id)
                    .await?;
                row.map(|row| Self::Circle(Circle(row)))
            }
            Kind::Member => {
                let row = request
                    .readable::<member::Entity>(&rules.member, id)
                    .await?;
                row.map(|row| Self::Member(CircleMember(row)))
            }
            Kind::Task => {
                let row = request.readable::<task::Entity>(&rules.task, id).await?;
                row.map(|row| Self::Task(Task(row)))
            }
            Kind::Conversation => {
                let row = request
                    .readable::<conversation::Entity>(&rules.conversation, id)
                    .await?;
                row.map(|row| Self::Conversation(Conversation(row)))
            }
            Kind::Message => {
                let row = request
                    .readable::<message::Entity>(&rules.message, id)
                    .await?;
                row.map(|row| Self::Message(Message(row)))
            }
            Kind::Event => {
                let row = request.readable::<event::Entity>(&rules.event, id).await?;
                let announced = row.filter(|row| row.position.is_some());
                announced.and_then(|row| Event::of(&row)).and_then(Self::of)
            }
            Kind::Audit if viewer.is_admin() => request
                .row::<audit::Entity>(id)
                .await?
                .map(|row| Self::Audit(AuditEntry(row))),
            Kind::Audit | Kind::SignIn => None,
        })
    }
}

/// Queries by global id.
#[derive(Default)]
pub struct NodeQuery;

#[Object]
impl NodeQuery {
    /// Fetches any object by its global id. `NOT_FOUND` if it does not exist or the viewer may not read it.
    async fn node(&self, ctx: &Context<'_>, id: ID) -> Result<Option<Node>, Error> {
        ctx.request().viewer()?;
        let (kind, key) = id::parse(&id)
            .ok_or_else(|| Error::bad_input("`id` is not a valid id.").field("id"))?;
        let node = Node::load(ctx.request(), kind, key).await?;
        node.map(Some).ok_or_else(|| Error::not_found("id"))
    }

    /// Fetches objects by their global ids, in the given order. An entry is null if the object does not exist or the
    /// viewer may not read it. A malformed id is null, with a `BAD_USER_INPUT` error at its index.
    #[graphql(directive = list_size::apply(None, Some(vec!["ids".to_owned()]), None))]
    async fn nodes(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "At most 100 ids, of any types.")] ids: Vec<ID>,
    ) -> Result<Vec<Option<Result<Node, Error>>>, Error> {
        ctx.request().viewer()?;
        if ids.len() > MAX_NODES {
            return Err(
                Error::bad_input(format!("`ids` must have at most {MAX_NODES} entries."))
                    .field("ids"),
            );
        }
        let nodes = ids.iter().map(async |id| {
            let Some((kind, key)) = id::parse(id) else {
                let error = Error::bad_input("This entry of `ids` is not a valid id.");
                return Ok(Some(Err(error.field("ids"))));
            };
            let node = Node::load(ctx.request(), kind, key).await?;
            Ok(node.map(Ok))
        });
        try_join_all(nodes).await
    }
}
