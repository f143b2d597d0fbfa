//! Providers: companies and local servers that run models.

use std::sync::Arc;

use async_graphql::{Context, ID, InputObject, MaybeUndefined, Object, SimpleObject};
use gathering_entity::{model, provider};
use sea_orm::{
    ActiveModelTrait, ColumnTrait, Condition, EntityTrait, IntoActiveModel, ModelTrait, Set,
    TryIntoModel,
};
use uuid::Uuid;

use crate::{
    access::Viewer,
    catalogue::{
        Entry,
        model::{Model, ModelFilter},
    },
    data::{Connection, Edits, FieldsOf, Noun, Order, Outcome, Page, by_id, change, unique},
    db::Rule,
    deletion::{DeleteInput, DeletePayload, in_use},
    error::Error,
    events::EventType,
    id::Kind,
    input::{Check, UserError, UserErrorCode},
    request::RequestExt,
    scalar::DateTime,
};

/// Maximum length of a provider's name, in characters.
const MAX_NAME: usize = 50;
/// Maximum length of a display name, in characters.
const MAX_DISPLAY_NAME: usize = 100;

/// A provider of language models.
pub struct Provider(pub(crate) Arc<provider::Model>);

/// A company or local server that runs language models. Part of the catalogue, which every signed-in user may read.
#[Object]
impl Provider {
    /// The id of the provider, `provider_…`.
    pub(crate) async fn id(&self) -> ID {
        Kind::Provider.id(self.0.id)
    }

    /// The unique name, of lower-case letters, digits, `_` and `-`; at most 50 characters.
    async fn name(&self) -> &str {
        &self.0.name
    }

    /// The display name, at most 100 characters.
    async fn display_name(&self) -> &str {
        &self.0.display_name
    }

    /// The base URL of the API, http or https; null for the provider's default.
    async fn api_base_url(&self) -> Option<&str> {
        self.0.api_base_url.as_deref()
    }

    /// Whether the provider runs on the same machine as this server, so that no data leaves the machine.
    async fn is_local(&self) -> bool {
        self.0.is_local
    }

    /// When it was added to the catalogue.
    async fn created_at(&self) -> DateTime {
        self.0.created_at.into()
    }

    /// When it was last changed.
    async fn updated_at(&self) -> DateTime {
        self.0.updated_at.into()
    }

    /// The provider's models, oldest first. Deprecated models are included only if the filter selects them.
    async fn models(
        &self,
        first: Option<i32>,
        after: Option<String>,
        last: Option<i32>,
        before: Option<String>,
        filter: Option<ModelFilter>,
    ) -> Result<Connection<Model>, Error> {
        let page = Page::new(first, after, last, before)?;
        Model::list(Some(self.0.id), filter, &page)
    }
}

impl From<Arc<provider::Model>> for Provider {
    fn from(row: Arc<provider::Model>) -> Self {
        Self(row)
    }
}

impl Noun for Provider {
    type Entity = provider::Entity;
    const KIND: Kind = Kind::Provider;
    const NAME: &'static str = "Provider";

    fn readable(_: &Viewer) -> Option<Rule> {
        Some(Rule::default())
    }

    fn fields() -> FieldsOf<Self> {
        use provider::Column::{ApiBaseUrl, CreatedAt, DisplayName, IsLocal, Name, UpdatedAt};
        FieldsOf::new()
            .by_id("provider")
            .all("providers", |list| Self::list(&list.page))
            .columns([Name, DisplayName, ApiBaseUrl, IsLocal, CreatedAt, UpdatedAt])
            .list("models", |list| {
                Model::list(Some(list.parent), list.get("filter")?, &list.page)
            })
    }
}

impl Provider {
    fn list(page: &Page) -> Result<Connection<Self>, Error> {
        let order = Order::ascending([provider::Column::Id]);
        Connection::new(Condition::all(), order, page)
    }
}

/// Queries about providers.
#[derive(Default)]
pub struct ProviderQuery;

#[Object]
impl ProviderQuery {
    /// The provider with this id.
    async fn provider(&self, ctx: &Context<'_>, id: ID) -> Result<Option<Provider>, Error> {
        by_id(ctx, &id).await
    }

    /// All providers, oldest first.
    async fn providers(
        &self,
        ctx: &Context<'_>,
        first: Option<i32>,
        after: Option<String>,
        last: Option<i32>,
        before: Option<String>,
    ) -> Result<Connection<Provider>, Error> {
        ctx.request().viewer()?;
        Provider::list(&Page::new(first, after, last, before)?)
    }
}

/// Payload of `createProvider` and `updateProvider`.
#[derive(SimpleObject)]
pub struct ProviderPayload {
    /// The provider in its current state; null if there is none.
    provider: Option<Provider>,
    /// Errors that the caller can correct; empty on success.
    user_errors: Vec<UserError>,
}

impl ProviderPayload {
    async fn new(ctx: &Context<'_>, outcome: Outcome) -> Result<Self, Error> {
        Ok(Self {
            provider: outcome.row::<Provider>(ctx).await?,
            user_errors: outcome.errors,
        })
    }
}

/// Input for `createProvider`.
#[derive(InputObject)]
pub struct CreateProviderInput {
    /// The unique name, 1 to 50 lower-case letters, digits, `_` and `-`, starting with a letter or digit.
    name: String,
    /// The display name, 1 to 100 characters.
    display_name: String,
    /// The base URL of the API, http or https, without a user name; none for the provider's default.
    api_base_url: Option<String>,
    /// Whether the provider runs on the same machine as this server, so that no data leaves the machine.
    #[graphql(default = false)]
    is_local: bool,
}

/// Input for `updateProvider`. Omitted fields keep their value; null clears a nullable field.
#[derive(InputObject)]
pub struct UpdateProviderInput {
    /// The id of the provider.
    provider_id: ID,
    #[graphql(flatten)]
    fields: ProviderFields,
}

/// The fields that can be created and updated. An undefined field keeps its value.
#[derive(InputObject)]
struct ProviderFields {
    /// The display name, 1 to 100 characters.
    display_name: MaybeUndefined<String>,
    /// The base URL of the API, http or https, without a user name; null for the provider's default.
    api_base_url: MaybeUndefined<String>,
    /// Whether the provider runs on the same machine as this server, so that no data leaves the machine.
    is_local: MaybeUndefined<bool>,
}

impl CreateProviderInput {
    /// The name, and the fields that an update can change too.
    fn into_parts(self) -> (String, ProviderFields) {
        let fields = ProviderFields {
            display_name: MaybeUndefined::Value(self.display_name),
            api_base_url: Some(self.api_base_url).into(),
            is_local: MaybeUndefined::Value(self.is_local),
        };
        (self.name, fields)
    }
}

impl ProviderFields {
    /// Applies the fields to the row, and collects the errors of the input.
    fn apply(&self, new: &mut provider::ActiveModel, check: &mut Check, edits: &mut Edits) {
        let display_name = check.if_given("displayName", &self.display_name);
        let display_name =
            display_name.map(|name| check.line("displayName", name, MAX_DISPLAY_NAME));
        edits.set("displayName", &mut new.display_name, display_name);
        let url = self.api_base_url.as_opt_deref();
        let url = url.map(|url| check.url("apiBaseUrl", url));
        edits.set("apiBaseUrl", &mut new.api_base_url, url);
        let is_local = check.if_given("isLocal", &self.is_local);
        edits.set("isLocal", &mut new.is_local, is_local.copied());
    }
}

/// Mutations of providers.
#[derive(Default)]
pub struct ProviderMutation;

#[Object]
impl ProviderMutation {
    /// Adds a provider to the catalogue. For administrators. `userErrors`: validation codes, and `TAKEN` for the name.
    async fn create_provider(
        &self,
        ctx: &Context<'_>,
        input: CreateProviderInput,
    ) -> Result<ProviderPayload, Error> {
        ctx.request().admin()?;
        let id = Uuid::now_v7();
        let (name, fields) = input.into_parts();
        let outcome = change(ctx, None, async |mut change| {
            let mut check = Check::default();
            let mut new = provider::ActiveModel {
                id: Set(id),
                created_at: Set(change.now),
                updated_at: Set(change.now),
                name: Set(check.identifier("name", &name, MAX_NAME)),
                ..Default::default()
            };
            fields.apply(&mut new, &mut check, &mut Edits::default());
            check.faults()?;
            let row = new.try_into_model()?;
            let insert = provider::Entity::insert(row.clone().into_active_model());
            let inserted = insert.exec_without_returning(&change.transaction).await;
            unique(inserted, name_taken)?;
            entry(&row).changed(&mut change, &[]);
            change.commit(vec![id]).await
        });
        ProviderPayload::new(ctx, outcome.await?).await
    }

    /// Updates a provider. For administrators.
    async fn update_provider(
        &self,
        ctx: &Context<'_>,
        input: UpdateProviderInput,
    ) -> Result<ProviderPayload, Error> {
        ctx.request().admin()?;
        let id = Kind::Provider.parse(&input.provider_id, "providerId")?;
        let outcome = change(ctx, Some(id), async |mut change| {
            let rule = Rule::default();
            let row = change.row::<provider::Entity>(&rule, id, "providerId");
            let mut new = row.await?.into_active_model();
            let (mut check, mut edits) = (Check::default(), Edits::default());
            input.fields.apply(&mut new, &mut check, &mut edits);
            check.faults()?;
            if !edits.is_empty() {
                new.updated_at = Set(change.now);
                let row = new.update(&change.transaction).await?;
                entry(&row).changed(&mut change, edits.names());
            }
            change.commit(vec![id]).await
        });
        ProviderPayload::new(ctx, outcome.await?).await
    }

    /// Deletes a provider. For administrators. `userErrors`: `IN_USE` while it has models.
    async fn delete_provider(
        &self,
        ctx: &Context<'_>,
        input: DeleteInput,
    ) -> Result<DeletePayload, Error> {
        ctx.request().admin()?;
        let id = Kind::Provider.parse(&input.id, "id")?;
        let outcome = change(ctx, Some(id), async |mut change| {
            let rule = Rule::default();
            let row = change.lock_for_delete::<provider::Entity>(&rule, id, "id");
            let row = row.await?;
            let models = model::Column::ProviderId.eq(id);
            if change.any::<model::Entity>(models).await? {
                let message = "The provider has models. Delete them first.";
                return Err(in_use(message).into());
            }
            entry(&row).deleted(&mut change);
            row.delete(&change.transaction).await?;
            change.commit(vec![]).await
        });
        DeletePayload::new(ctx, Kind::Provider, id, outcome.await?).await
    }
}

fn name_taken() -> UserError {
    let message = "Another provider has this name.";
    UserError::new("name", UserErrorCode::Taken, message)
}

fn entry(row: &provider::Model) -> Entry<'_> {
    Entry {
        kind: (Kind::Provider, EventType::ProviderChanged),
        id: row.id,
        name: &row.name,
        updated_at: row.updated_at,
    }
}
