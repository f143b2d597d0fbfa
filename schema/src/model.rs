//! Models: the language models that agents run on.

use std::sync::Arc;

use async_graphql::{Context, ID, InputObject, Object, connection::EmptyFields};
use gathering_entity::{model, provider};
use sea_orm::{ColumnTrait, Condition};

use crate::{
    ctx::Door,
    error::Error,
    id::Kind,
    page::{Connection, Listed, Order, Page},
    provider::Provider,
    read::Rule,
    scalar::{DateTime, Decimal},
};

/// A language model.
pub struct Model(pub(crate) Arc<model::Model>);

/// A language model with its prices and abilities. Part of the catalogue that every signed-in user may read.
#[Object]
impl Model {
    /// The id of the model, `model_…`.
    pub(crate) async fn id(&self) -> ID {
        Kind::Model.id(self.0.id)
    }

    /// Who runs it.
    async fn provider(&self, ctx: &Context<'_>) -> Result<Provider, Error> {
        let row = ctx
            .request()
            .row::<provider::Entity>(self.0.provider_id)
            .await?;
        row.map(Provider)
            .ok_or_else(|| Error::not_found("provider"))
    }

    /// The name by which the provider's API knows it; unique for each provider, at most 100 characters.
    async fn name(&self) -> &str {
        &self.0.name
    }

    /// The name shown to people, at most 200 characters.
    async fn display_name(&self) -> &str {
        &self.0.display_name
    }

    /// How many tokens it can take in at once.
    async fn context_window(&self) -> i32 {
        self.0.context_window
    }

    /// How many tokens it can write in one answer.
    async fn max_output(&self) -> i32 {
        self.0.max_output
    }

    /// US dollars for a million tokens of input.
    async fn price_input(&self) -> Decimal {
        Decimal {
            micros: self.0.price_input,
        }
    }

    /// US dollars for a million tokens of output.
    async fn price_output(&self) -> Decimal {
        Decimal {
            micros: self.0.price_output,
        }
    }

    /// US dollars for a million tokens read from the provider's cache.
    async fn price_cache_read(&self) -> Decimal {
        Decimal {
            micros: self.0.price_cache_read,
        }
    }

    /// US dollars for a million tokens written to the provider's cache.
    async fn price_cache_write(&self) -> Decimal {
        Decimal {
            micros: self.0.price_cache_write,
        }
    }

    /// Whether it understands pictures.
    async fn supports_vision(&self) -> bool {
        self.0.supports_vision
    }

    /// Whether it can call tools.
    async fn supports_tools(&self) -> bool {
        self.0.supports_tools
    }

    /// Whether its answer can be read while it is written.
    async fn supports_streaming(&self) -> bool {
        self.0.supports_streaming
    }

    /// Whether it can think before it answers.
    async fn supports_thinking(&self) -> bool {
        self.0.supports_thinking
    }

    /// Whether its provider will retire it.
    async fn is_deprecated(&self) -> bool {
        self.0.is_deprecated
    }

    /// When it was added to the catalogue.
    async fn created_at(&self) -> DateTime {
        self.0.created_at.into()
    }

    /// When it was last changed.
    async fn updated_at(&self) -> DateTime {
        self.0.updated_at.into()
    }
}

/// Models as a list.
pub struct Models;

impl Listed for Models {
    type Entity = model::Entity;
    type Node = Model;
    type Extra = EmptyFields;
    const NAME: &'static str = "Model";

    async fn nodes(
        _: &Context<'_>,
        rows: &[Arc<model::Model>],
    ) -> Result<Vec<Option<Model>>, Error> {
        Ok(rows
            .iter()
            .map(|row| Some(Model(Arc::clone(row))))
            .collect())
    }

    fn extra(_: &Arc<model::Model>) -> EmptyFields {
        EmptyFields
    }
}

/// Narrows a list of models. All given conditions must hold.
#[derive(InputObject)]
pub struct ModelFilter {
    /// Only models of this provider.
    provider_id: Option<ID>,
    /// Whether deprecated models are listed too.
    #[graphql(default_with = "Some(false)")]
    include_deprecated: Option<bool>,
    /// Only models that understand pictures, or only those that do not.
    supports_vision: Option<bool>,
    /// Only models that can call tools, or only those that cannot.
    supports_tools: Option<bool>,
}

impl ModelFilter {
    /// Without a filter deprecated models are left out as well.
    pub(crate) fn condition(filter: Option<Self>) -> Result<Condition, Error> {
        let Some(filter) = filter else {
            return Ok(Condition::all().add(model::Column::IsDeprecated.eq(false)));
        };
        let provider = Kind::Provider.parse_opt(filter.provider_id.as_ref(), "providerId")?;
        let current = (!filter.include_deprecated.unwrap_or_default())
            .then(|| model::Column::IsDeprecated.eq(false));
        Ok(Condition::all()
            .add_option(provider.map(|id| model::Column::ProviderId.eq(id)))
            .add_option(current)
            .add_option(
                filter
                    .supports_vision
                    .map(|is| model::Column::SupportsVision.eq(is)),
            )
            .add_option(
                filter
                    .supports_tools
                    .map(|is| model::Column::SupportsTools.eq(is)),
            ))
    }
}

/// Queries about models.
#[derive(Default)]
pub struct ModelQuery;

#[Object]
impl ModelQuery {
    /// The model with this id.
    async fn model(&self, ctx: &Context<'_>, id: ID) -> Result<Option<Model>, Error> {
        ctx.request().viewer()?;
        let row = ctx
            .request()
            .look_up::<model::Entity>(Kind::Model, &Rule::default(), &id)
            .await?;
        Ok(Some(Model(row)))
    }

    /// All models, in the order in which they were added; deprecated ones only when the filter includes them.
    async fn models(
        &self,
        ctx: &Context<'_>,
        first: Option<i32>,
        after: Option<String>,
        last: Option<i32>,
        before: Option<String>,
        filter: Option<ModelFilter>,
    ) -> Result<Connection<Models>, Error> {
        ctx.request().viewer()?;
        Connection::new(
            ModelFilter::condition(filter)?,
            Order::ascending([model::Column::Id]),
            &Page::new(first, after, last, before)?,
        )
    }
}
