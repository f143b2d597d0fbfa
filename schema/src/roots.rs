//! The root types of the schema.

use std::{borrow::Cow, pin::Pin};

use async_graphql::{
    ContainerType, Context, ContextSelectionSet, MergedObject, ObjectType, OutputType, Positioned,
    Response, SchemaBuilder, ServerResult, SubscriptionType, TypeDirective, Value,
    parser::types::Field,
    registry::{MetaType, Registry},
};
use futures_util::Stream;

use crate::{
    agent, api_key, audit_entry as audit,
    catalogue::{model, persona, provider},
    circle,
    conversation::{self, messages as message},
    dashboard,
    data::{DEFAULT_PAGE, list_size},
    erasure, event, node, project,
    rate_limit::{Tier, rate_limit},
    recovery,
    request::RequestExt,
    root_field::properties,
    server, session,
    subscribe::Subscription,
    task, transfer, user,
};

/// The root of all queries.
#[derive(Default, MergedObject)]
pub struct Query(
    node::NodeQuery,
    server::ServerQuery,
    user::UserQuery,
    dashboard::DashboardQuery,
    provider::ProviderQuery,
    model::ModelQuery,
    persona::PersonaQuery,
    agent::AgentQuery,
    project::ProjectQuery,
    circle::CircleQuery,
    task::TaskQuery,
    conversation::ConversationQuery,
    event::EventQuery,
    session::SessionQuery,
    api_key::ApiKeyQuery,
    transfer::TransferQuery,
    audit::AuditQuery,
);

/// The root of all mutations.
#[derive(Default, MergedObject)]
pub struct Mutation(
    session::SessionMutation,
    recovery::RecoveryMutation,
    api_key::ApiKeyMutation,
    user::UserMutation,
    erasure::ErasureMutation,
    provider::ProviderMutation,
    model::ModelMutation,
    persona::PersonaMutation,
    agent::AgentMutation,
    project::ProjectMutation,
    circle::CircleMutation,
    circle::MemberMutation,
    conversation::ConversationMutation,
    message::MessageMutation,
    task::TaskMutation,
    transfer::TransferMutation,
);

/// A root type. Its schema is completed with default rate tiers, `@listSize` directives for connections, and
/// descriptions of shared arguments.
#[derive(Default)]
pub(crate) struct Root<T>(T);

pub(crate) type Schema = async_graphql::Schema<Root<Query>, Root<Mutation>, Root<Subscription>>;

pub(crate) fn schema() -> SchemaBuilder<Root<Query>, Root<Mutation>, Root<Subscription>> {
    Schema::build(Root::default(), Root::default(), Root::default())
}

impl<T: ObjectType> ContainerType for Root<T> {
    async fn resolve_field(&self, ctx: &Context<'_>) -> ServerResult<Option<Value>> {
        // Every mutation except sign-in needs an authenticated caller.
        if T::type_name() == "Mutation" && !properties(&ctx.item.node.name.node).is_public {
            let viewer = ctx.request().viewer().map_err(async_graphql::Error::from);
            let place = ctx.item.pos;
            viewer.map_err(|error| ctx.set_error_path(error.into_server_error(place)))?;
        }
        self.0.resolve_field(ctx).await
    }
}

impl<T: ObjectType> ObjectType for Root<T> {}

impl<T: ObjectType> OutputType for Root<T> {
    fn type_name() -> Cow<'static, str> {
        T::type_name()
    }

    fn create_type_info(registry: &mut Registry) -> String {
        let name = T::create_type_info(registry);
        complete(registry, &T::type_name());
        name
    }

    async fn resolve(
        &self,
        ctx: &ContextSelectionSet<'_>,
        field: &Positioned<Field>,
    ) -> ServerResult<Value> {
        self.0.resolve(ctx, field).await
    }
}

impl<T: SubscriptionType> SubscriptionType for Root<T> {
    fn type_name() -> Cow<'static, str> {
        T::type_name()
    }

    fn create_type_info(registry: &mut Registry) -> String {
        let name = T::create_type_info(registry);
        complete(registry, &T::type_name());
        name
    }

    fn create_field_stream<'a>(
        &'a self,
        ctx: &'a Context<'_>,
    ) -> Option<Pin<Box<dyn Stream<Item = Response> + Send + 'a>>> {
        self.0.create_field_stream(ctx)
    }
}

/// Adds missing directives to the fields of a root, and missing descriptions to arguments.
fn complete(registry: &mut Registry, root: &str) {
    rate_limit.register(registry);
    list_size.register(registry);
    let tier = if root == "Mutation" {
        Tier::Write
    } else {
        Tier::Read
    };
    if let Some(MetaType::Object { fields, .. }) = registry.types.get_mut(root) {
        for field in fields.values_mut() {
            let declared = &mut field.directive_invocations;
            if !declared
                .iter()
                .any(|directive| directive.name == "rateLimit")
            {
                declared.push(rate_limit::apply(tier));
            }
            // Directives show in the SDL only; GraphiQL shows the description.
            let tier = declared
                .iter()
                .find_map(|directive| directive.args.get("tier"));
            let (Some(text), Some(tier)) = (&mut field.description, tier) else {
                continue;
            };
            let suffix = format!("\n\nRate tier: {tier}.");
            if !text.ends_with(&suffix) {
                text.push_str(&suffix);
            }
        }
    }
    for ty in registry.types.values_mut() {
        describe_generic(ty);
        let (MetaType::Object { fields, .. } | MetaType::Interface { fields, .. }) = ty else {
            continue;
        };
        for field in fields.values_mut() {
            let is_connection = field.args.contains_key("first") && field.args.contains_key("last");
            let declared = &mut field.directive_invocations;
            if is_connection
                && !declared
                    .iter()
                    .any(|directive| directive.name == "listSize")
            {
                let names = |names: [&str; 2]| Some(names.map(str::to_owned).to_vec());
                let assumed = u32::try_from(DEFAULT_PAGE).ok();
                let sized = names(["nodes", "edges"]);
                declared.push(list_size::apply(assumed, names(["first", "last"]), sized));
            }
        }
        for argument in fields
            .values_mut()
            .flat_map(|field| field.args.values_mut())
        {
            let description = argument_description(&argument.name).map(ToOwned::to_owned);
            argument.description = argument.description.take().or(description);
        }
    }
}

/// Describes the generic types, which share one doc comment, and `PageInfo` of the GraphQL library.
fn describe_generic(ty: &mut MetaType) {
    let MetaType::Object {
        name,
        description,
        fields,
        ..
    } = ty
    else {
        return;
    };
    let text = if let Some(prefix) = name.strip_suffix("Connection") {
        format!(
            "A page of {}. See the [Relay connection specification](https://relay.dev/graphql/connections.htm).",
            entries(prefix)
        )
    } else if let Some(prefix) = name.strip_suffix("Edge") {
        format!(
            "An edge in a list of {}: an entry with its cursor.",
            entries(prefix)
        )
    } else if let Some(subject) = event_subject(name) {
        format!("An event about {subject}.")
    } else if name == "PageInfo" {
        for (field, text) in [
            (
                "hasPreviousPage",
                "Whether there are entries before the page.",
            ),
            ("hasNextPage", "Whether there are entries after the page."),
            (
                "startCursor",
                "The cursor of the first entry. Null if the page is empty.",
            ),
            (
                "endCursor",
                "The cursor of the last entry. Null if the page is empty.",
            ),
        ] {
            if let Some(field) = fields.get_mut(field) {
                field.description = Some(text.to_owned());
            }
        }
        "Information about the position of a page in its list.".to_owned()
    } else {
        return;
    };
    *description = Some(text);
}

/// The entries of a connection, from the name prefix of its type: `CircleMember` becomes `circle members`.
fn entries(prefix: &str) -> String {
    match prefix {
        "ApiKey" => return "API keys".to_owned(),
        "Audit" => return "audit log entries".to_owned(),
        _ => {}
    }
    let mut text = String::new();
    for letter in prefix.chars() {
        if letter.is_uppercase() && !text.is_empty() {
            text.push(' ');
        }
        text.extend(letter.to_lowercase());
    }
    text.push('s');
    text
}

fn event_subject(name: &str) -> Option<&'static str> {
    Some(match name {
        "AgentEvent" => "an agent",
        "CatalogueEvent" => "an entry of the catalogue: a provider, a model or a persona",
        "CircleEvent" => "a circle",
        "ConversationEvent" => "a conversation",
        "MemberEvent" => "a member of a circle",
        "MessageEvent" => "a message",
        "ProjectEvent" => "a project",
        "SharingEvent" => "the sharing of a circle with a user",
        "TaskEvent" => "a task",
        "TransferEvent" => "a transfer of ownership",
        "UserEvent" => "a user account",
        _ => return None,
    })
}

fn argument_description(name: &str) -> Option<&'static str> {
    Some(match name {
        "first" => {
            "The number of entries from the start, 1 to 100; 20 when neither `first` nor `last` is set."
        }
        "after" => "Returns the entries after this cursor.",
        "last" => "The number of entries from the end, 1 to 100; not together with `first`.",
        "before" => "Returns the entries before this cursor.",
        "filter" => "Filters the list.",
        "orderBy" => "Orders the list.",
        "input" => "The input of the mutation.",
        "id" => "The global id, of the type that the field returns.",
        _ => return None,
    })
}
