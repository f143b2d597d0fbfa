//! Nodes: objects that can be fetched by their global id.

use async_graphql::{Context, ID, Interface, Object};
use futures_util::future::try_join_all;
use gathering_entity::event;
use uuid::Uuid;

use crate::{
    agent::{Agent, event::AgentChange},
    api_key::ApiKey,
    audit_entry::AuditEntry,
    catalogue::{event::CatalogueChange, model::Model, persona::Persona, provider::Provider},
    circle::{
        Circle,
        event::{CircleChange, MemberChange, SharingChange},
        members::CircleMember,
    },
    conversation::{
        Conversation,
        event::{ConversationChange, MessageChange},
        messages::Message,
    },
    data::{list_size, load},
    error::Error,
    event::{Event, Of},
    id::{self, Kind},
    project::{Project, ProjectChange},
    request::{Request, RequestExt},
    task::{Task, event::TaskChange},
    transfer::{Transfer, event::TransferChange},
    user::{User, UserChange},
};

/// Maximum number of ids of one `nodes` field.
const MAX_NODES: usize = 100;

/// An object with a global id.
/// See the [GraphQL global object identification specification](https://relay.dev/graphql/objectidentification.htm).
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
    /// An API key.
    ApiKey(ApiKey),
    /// A transfer.
    Transfer(Transfer),
    /// An entry of the audit log.
    Audit(AuditEntry),
    /// An agent event.
    AgentEvent(Of<AgentChange>),
    /// A project event.
    ProjectEvent(Of<ProjectChange>),
    /// A circle event.
    CircleEvent(Of<CircleChange>),
    /// An event about the sharing of a circle.
    SharingEvent(Of<SharingChange>),
    /// A member event.
    MemberEvent(Of<MemberChange>),
    /// A task event.
    TaskEvent(Of<TaskChange>),
    /// A conversation event.
    ConversationEvent(Of<ConversationChange>),
    /// A message event.
    MessageEvent(Of<MessageChange>),
    /// A catalogue event.
    CatalogueEvent(Of<CatalogueChange>),
    /// A user event.
    UserEvent(Of<UserChange>),
    /// A transfer event.
    TransferEvent(Of<TransferChange>),
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
            Event::Transfer(event) => Self::TransferEvent(event),
            Event::Missed(_) => return None,
        })
    }

    /// Loads the object with this id; `None` if it does not exist or the viewer may not read it.
    pub(crate) async fn load(
        request: &Request,
        kind: Kind,
        id: Uuid,
    ) -> Result<Option<Self>, Error> {
        Ok(match kind {
            Kind::User => load::<User>(request, id).await?.map(Self::User),
            Kind::Provider => load::<Provider>(request, id).await?.map(Self::Provider),
            Kind::Model => load::<Model>(request, id).await?.map(Self::Model),
            Kind::Persona => load::<Persona>(request, id).await?.map(Self::Persona),
            Kind::Agent => load::<Agent>(request, id).await?.map(Self::Agent),
            Kind::Project => load::<Project>(request, id).await?.map(Self::Project),
            Kind::Circle => load::<Circle>(request, id).await?.map(Self::Circle),
            Kind::Member => load::<CircleMember>(request, id).await?.map(Self::Member),
            Kind::Task => load::<Task>(request, id).await?.map(Self::Task),
            Kind::Conversation => load::<Conversation>(request, id)
                .await?
                .map(Self::Conversation),
            Kind::Message => load::<Message>(request, id).await?.map(Self::Message),
            Kind::Audit => load::<AuditEntry>(request, id).await?.map(Self::Audit),
            Kind::Event => {
                let row = request
                    .readable::<event::Entity>(&request.viewer()?.rules().event, id)
                    .await?;
                let announced = row.filter(|row| row.position.is_some());
                announced.and_then(|row| Event::of(&row)).and_then(Self::of)
            }
            Kind::ApiKey => load::<ApiKey>(request, id).await?.map(Self::ApiKey),
            Kind::Transfer => load::<Transfer>(request, id).await?.map(Self::Transfer),
            Kind::SignIn => None,
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

    /// Fetches objects by their global ids, in the given order.
    /// An entry is null if the object does not exist or the viewer may not read it. A malformed id is null, with a
    /// `BAD_USER_INPUT` error at its index.
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
