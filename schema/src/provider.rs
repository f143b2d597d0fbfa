//! Providers: who runs models.

use std::sync::Arc;

use async_graphql::{Context, ID, Object, connection::EmptyFields};
use gathering_entity::{model, provider};
use sea_orm::Condition;

use crate::{
    ctx::Door,
    error::Error,
    id::Kind,
    model::{ModelFilter, Models},
    page::{Connection, Listed, Order, Page},
    read::Rule,
    scalar::DateTime,
};

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
