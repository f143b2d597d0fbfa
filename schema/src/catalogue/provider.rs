//! Providers: who runs models.

use std::sync::Arc;

use async_graphql::{
    Context, ID, InputObject, MaybeUndefined, Object, SimpleObject, connection::EmptyFields,
};
use gathering_entity::{model, provider};
use sea_orm::{
    ActiveModelTrait, ColumnTrait, Condition, EntityTrait, IntoActiveModel, ModelTrait, Set,
};
use uuid::Uuid;

use crate::{
    catalogue::{
        Entry,
        model::{ModelFilter, Models},
    },
    data::{Connection, Edits, Listed, Order, Outcome, Page, change},
    db::{Rule, is_taken},
    deletion::{DeleteInput, DeletePayload, in_use},
    error::Error,
    id::Kind,
    input::{Check, UserError, UserErrorCode},
    request::RequestExt,
    scalar::DateTime,
};

/// Most characters of a provider's name.
const MAX_NAME: usize = 50;
/// Most characters of the name shown to people.
const MAX_DISPLAY_NAME: usize = 100;

/// Who runs models.
pub struct Provider(pub(crate) Arc<provider::Model>);

/// A company or local server that runs language models. Part of the catalogue that every signed-in user may read.
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

    /// The name shown to people, at most 100 characters.
    async fn display_name(&self) -> &str {
        &self.0.display_name
    }

    /// Where its API is reached, an http or https address; null for the usual one.
    async fn api_base_url(&self) -> Option<&str> {
        self.0.api_base_url.as_deref()
    }

    /// Whether it runs beside this server, so that nothing leaves the machine.
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

    /// The models it runs, in the order in which they were added.
    async fn models(
        &self,
        first: Option<i32>,
        after: Option<String>,
        last: Option<i32>,
        before: Option<String>,
        filter: Option<ModelFilter>,
    ) -> Result<Connection<Models>, Error> {
        Connection::of(
            model::Column::ProviderId,
            self.0.id,
            ModelFilter::condition(filter)?,
            Order::ascending([model::Column::Id]),
            &Page::new(first, after, last, before)?,
        )
    }
}

/// Providers as a list.
pub struct Providers;

impl Listed for Providers {
    type Entity = provider::Entity;
    type Node = Provider;
    type Extra = EmptyFields;
    const NAME: &'static str = "Provider";

    async fn nodes(
        _: &Context<'_>,
        rows: &[Arc<provider::Model>],
    ) -> Result<Vec<Option<Provider>>, Error> {
        Ok(rows
            .iter()
            .map(|row| Some(Provider(Arc::clone(row))))
            .collect())
    }

    fn extra(_: &Arc<provider::Model>) -> EmptyFields {
        EmptyFields
    }
}

/// Queries about providers.
#[derive(Default)]
pub struct ProviderQuery;

#[Object]
impl ProviderQuery {
    /// The provider with this id.
    async fn provider(&self, ctx: &Context<'_>, id: ID) -> Result<Option<Provider>, Error> {
        ctx.request().viewer()?;
        let row = ctx
            .request()
            .look_up::<provider::Entity>(Kind::Provider, &Rule::default(), &id)
            .await?;
        Ok(Some(Provider(row)))
    }

    /// All providers, in the order in which they were added.
    async fn providers(
        &self,
        ctx: &Context<'_>,
        first: Option<i32>,
        after: Option<String>,
        last: Option<i32>,
        before: Option<String>,
    ) -> Result<Connection<Providers>, Error> {
        ctx.request().viewer()?;
        Connection::new(
            Condition::all(),
            Order::ascending([provider::Column::Id]),
            &Page::new(first, after, last, before)?,
        )
    }
}

/// The outcome of a change of a provider.
#[derive(SimpleObject)]
pub struct ProviderPayload {
    /// The provider as it is now; null when there is none to show.
    provider: Option<Provider>,
    /// What was wrong with the input.
    user_errors: Vec<UserError>,
}

impl ProviderPayload {
    async fn new(ctx: &Context<'_>, outcome: Outcome) -> Result<Self, Error> {
        Ok(Self {
            provider: outcome.row::<provider::Entity>(ctx).await?.map(Provider),
            user_errors: outcome.errors,
        })
    }
}

/// A provider that is to be added.
#[derive(InputObject)]
pub struct CreateProviderInput {
    /// The unique name, 1 to 50 lower-case letters, digits, `_` and `-`, of which the first is a letter or digit.
    name: String,
    /// The name shown to people, 1 to 100 characters.
    display_name: String,
    /// Where its API is reached, an http or https address without a user name; none for the usual one.
    api_base_url: Option<String>,
    /// Whether it runs beside this server, so that nothing leaves the machine.
    #[graphql(default = false)]
    is_local: bool,
}

/// What is to be different about a provider. Fields that are left out stay as they are; null clears what may be empty.
#[derive(InputObject)]
pub struct UpdateProviderInput {
    /// The provider.
    provider_id: ID,
    /// The name shown to people, 1 to 100 characters.
    display_name: MaybeUndefined<String>,
    /// Where its API is reached, an http or https address without a user name; null for the usual one.
    api_base_url: MaybeUndefined<String>,
    /// Whether it runs beside this server, so that nothing leaves the machine.
    is_local: MaybeUndefined<bool>,
}

/// Changes of providers.
#[derive(Default)]
pub struct ProviderMutation;

#[Object]
impl ProviderMutation {
    /// Adds a provider to the catalogue. For administrators. Codes of `userErrors` beside those of the input: `TAKEN` for the
    /// name.
    async fn create_provider(
        &self,
        ctx: &Context<'_>,
        input: CreateProviderInput,
    ) -> Result<ProviderPayload, Error> {
        ctx.request().admin()?;
        let id = Uuid::now_v7();
        let outcome = change(ctx, async |mut change| {
            let mut check = Check::default();
            let url = input.api_base_url.as_deref();
            let row = provider::Model {
                id,
                created_at: change.now,
                updated_at: change.now,
                name: check.identifier("name", &input.name, MAX_NAME),
                display_name: check.line("displayName", &input.display_name, MAX_DISPLAY_NAME),
                api_base_url: check.url("apiBaseUrl", url),
                is_local: input.is_local,
            };
            if let Err(faults) = check.faults() {
                return Ok(Outcome::refused(None, faults));
            }
            let insert = provider::Entity::insert(row.clone().into_active_model());
            match insert.exec_without_returning(&change.transaction).await {
                Err(error) if is_taken(&error) => {
                    let message = "Another provider has this name.";
                    let taken = UserError::new("name", UserErrorCode::Taken, message);
                    return Ok(Outcome::fault(None, taken));
                }
                done => done?,
            };
            entry(&row).changed(&mut change, &[]);
            change.commit(vec![id]).await
        });
        ProviderPayload::new(ctx, outcome.await?).await
    }

    /// Changes a provider. For administrators.
    async fn update_provider(
        &self,
        ctx: &Context<'_>,
        input: UpdateProviderInput,
    ) -> Result<ProviderPayload, Error> {
        ctx.request().admin()?;
        let id = Kind::Provider.parse(&input.provider_id, "providerId")?;
        let outcome = change(ctx, async |mut change| {
            let rule = Rule::default();
            let row = change.row::<provider::Entity>(&rule, id, "providerId");
            let mut new = row.await?.into_active_model();
            let (mut check, mut edits) = (Check::default(), Edits::default());
            let display_name = check.if_given("displayName", &input.display_name);
            let display_name =
                display_name.map(|name| check.line("displayName", name, MAX_DISPLAY_NAME));
            edits.set("displayName", &mut new.display_name, display_name);
            let url = input.api_base_url.as_opt_deref();
            let url = url.map(|url| check.url("apiBaseUrl", url));
            edits.set("apiBaseUrl", &mut new.api_base_url, url);
            let is_local = check.if_given("isLocal", &input.is_local);
            edits.set("isLocal", &mut new.is_local, is_local.copied());
            if let Err(faults) = check.faults() {
                return Ok(Outcome::refused(Some(id), faults));
            }
            if !edits.is_empty() {
                new.updated_at = Set(change.now);
                let row = new.update(&change.transaction).await?;
                entry(&row).changed(&mut change, edits.names());
            }
            change.commit(vec![id]).await
        });
        ProviderPayload::new(ctx, outcome.await?).await
    }

    /// Deletes a provider. For administrators. Codes of `userErrors`: `IN_USE` while it has models.
    async fn delete_provider(
        &self,
        ctx: &Context<'_>,
        input: DeleteInput,
    ) -> Result<DeletePayload, Error> {
        ctx.request().admin()?;
        let id = Kind::Provider.parse(&input.id, "id")?;
        let outcome = change(ctx, async |mut change| {
            let rule = Rule::default();
            let row = change.lock_for_delete::<provider::Entity>(&rule, id, "id");
            let row = row.await?;
            let models = model::Column::ProviderId.eq(id);
            if change.any::<model::Entity>(models).await? {
                let message = "The provider has models. Delete them first.";
                return Ok(Outcome::fault(Some(id), in_use(message)));
            }
            entry(&row).deleted(&mut change);
            row.delete(&change.transaction).await?;
            change.commit(vec![]).await
        });
        DeletePayload::new(ctx, Kind::Provider, id, outcome.await?).await
    }
}

fn entry(row: &provider::Model) -> Entry<'_> {
    Entry {
        kind: (Kind::Provider, "provider.changed"),
        id: row.id,
        name: &row.name,
        updated_at: row.updated_at,
    }
}
