//! Models: the language models that agents run on.

use std::sync::Arc;

use async_graphql::{Context, ID, InputObject, MaybeUndefined, Object, SimpleObject};
use gathering_entity::{agent, model, provider};
use sea_orm::{
    ActiveModelTrait, ActiveValue, ColumnTrait, Condition, EntityTrait, IntoActiveModel,
    ModelTrait, Set, TryIntoModel,
};
use uuid::Uuid;

use crate::{
    access::Viewer,
    catalogue::{Entry, provider::Provider},
    data::{Connection, Edits, FieldsOf, Noun, Order, Outcome, Page, by_id, change, unique},
    db::Rule,
    deletion::{DeleteInput, DeletePayload, in_use},
    error::Error,
    events::EventType,
    id::Kind,
    input::{Check, UserError, UserErrorCode},
    request::RequestExt,
    scalar::{DateTime, Decimal},
};

/// Maximum length of a model's name, in characters.
const MAX_NAME: usize = 100;
/// Maximum length of a display name, in characters.
const MAX_DISPLAY_NAME: usize = 200;
/// A price of zero.
const FREE: Decimal = Decimal { micros: 0 };

/// A language model.
pub struct Model(pub(crate) Arc<model::Model>);

/// A language model with its prices and capabilities. Part of the catalogue, which every signed-in user may read.
#[Object]
impl Model {
    /// The id of the model, `model_…`.
    pub(crate) async fn id(&self) -> ID {
        Kind::Model.id(self.0.id)
    }

    /// The provider.
    async fn provider(&self, ctx: &Context<'_>) -> Result<Provider, Error> {
        let row = ctx
            .request()
            .row::<provider::Entity>(self.0.provider_id)
            .await?;
        row.map(Provider)
            .ok_or_else(|| Error::not_found("provider"))
    }

    /// The model's name in the provider's API; unique within the provider, at most 100 characters.
    async fn name(&self) -> &str {
        &self.0.name
    }

    /// The display name, at most 200 characters.
    async fn display_name(&self) -> &str {
        &self.0.display_name
    }

    /// The size of the context window, in tokens.
    async fn context_window(&self) -> i32 {
        self.0.context_window
    }

    /// The maximum number of output tokens per response.
    async fn max_output(&self) -> i32 {
        self.0.max_output
    }

    /// The price of one million input tokens, in US dollars.
    async fn price_input(&self) -> Decimal {
        Decimal {
            micros: self.0.price_input,
        }
    }

    /// The price of one million output tokens, in US dollars.
    async fn price_output(&self) -> Decimal {
        Decimal {
            micros: self.0.price_output,
        }
    }

    /// The price of one million tokens read from the provider's cache, in US dollars.
    async fn price_cache_read(&self) -> Decimal {
        Decimal {
            micros: self.0.price_cache_read,
        }
    }

    /// The price of one million tokens written to the provider's cache, in US dollars.
    async fn price_cache_write(&self) -> Decimal {
        Decimal {
            micros: self.0.price_cache_write,
        }
    }

    /// Whether the model accepts images as input.
    async fn supports_vision(&self) -> bool {
        self.0.supports_vision
    }

    /// Whether the model can call tools.
    async fn supports_tools(&self) -> bool {
        self.0.supports_tools
    }

    /// Whether the model can stream its response.
    async fn supports_streaming(&self) -> bool {
        self.0.supports_streaming
    }

    /// Whether the model supports extended thinking before it responds.
    async fn supports_thinking(&self) -> bool {
        self.0.supports_thinking
    }

    /// Whether the model is deprecated: its provider will retire it.
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

impl From<Arc<model::Model>> for Model {
    fn from(row: Arc<model::Model>) -> Self {
        Self(row)
    }
}

impl Noun for Model {
    type Entity = model::Entity;
    const KIND: Kind = Kind::Model;
    const NAME: &'static str = "Model";

    fn readable(_: &Viewer) -> Option<Rule> {
        Some(Rule::default())
    }

    fn fields() -> FieldsOf<Self> {
        use model::Column::{
            ContextWindow, CreatedAt, DisplayName, IsDeprecated, MaxOutput, Name, PriceCacheRead,
            PriceCacheWrite, PriceInput, PriceOutput, ProviderId, SupportsStreaming,
            SupportsThinking, SupportsTools, SupportsVision, UpdatedAt,
        };
        FieldsOf::new()
            .by_id("model")
            .all("models", |list| {
                Self::list(None, list.get("filter")?, &list.page)
            })
            .columns([Name, DisplayName, ContextWindow, MaxOutput, IsDeprecated])
            .columns([
                SupportsVision,
                SupportsTools,
                SupportsStreaming,
                SupportsThinking,
            ])
            .columns([CreatedAt, UpdatedAt])
            .decimals([PriceInput, PriceOutput, PriceCacheRead, PriceCacheWrite])
            .one::<Provider>("provider", ProviderId)
    }
}

/// Filters a list of models. All conditions must hold.
#[derive(InputObject)]
pub struct ModelFilter {
    /// Only models of this provider.
    provider_id: Option<ID>,
    /// Whether to include deprecated models; false by default.
    #[graphql(default_with = "Some(false)")]
    include_deprecated: Option<bool>,
    /// Only models that accept images (true), or only those that do not (false).
    supports_vision: Option<bool>,
    /// Only models that can call tools (true), or only those that cannot (false).
    supports_tools: Option<bool>,
}

impl ModelFilter {
    /// Excludes deprecated models even without a filter.
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

impl Model {
    /// All models, or those of one provider.
    pub(super) fn list(
        provider: Option<Uuid>,
        filter: Option<ModelFilter>,
        page: &Page,
    ) -> Result<Connection<Self>, Error> {
        let condition = ModelFilter::condition(filter)?;
        let order = Order::ascending([model::Column::Id]);
        match provider {
            Some(provider) => {
                Connection::of(model::Column::ProviderId, provider, condition, order, page)
            }
            None => Connection::new(condition, order, page),
        }
    }
}

/// Queries about models.
#[derive(Default)]
pub struct ModelQuery;

#[Object]
impl ModelQuery {
    /// The model with this id.
    async fn model(&self, ctx: &Context<'_>, id: ID) -> Result<Option<Model>, Error> {
        by_id(ctx, &id).await
    }

    /// All models, oldest first. Deprecated models are included only if the filter selects them.
    async fn models(
        &self,
        ctx: &Context<'_>,
        first: Option<i32>,
        after: Option<String>,
        last: Option<i32>,
        before: Option<String>,
        filter: Option<ModelFilter>,
    ) -> Result<Connection<Model>, Error> {
        ctx.request().viewer()?;
        Model::list(None, filter, &Page::new(first, after, last, before)?)
    }
}

/// Payload of `createModel` and `updateModel`.
#[derive(SimpleObject)]
pub struct ModelPayload {
    /// The model in its current state; null if there is none.
    model: Option<Model>,
    /// Errors that the caller can correct; empty on success.
    user_errors: Vec<UserError>,
}

impl ModelPayload {
    async fn new(ctx: &Context<'_>, outcome: Outcome) -> Result<Self, Error> {
        Ok(Self {
            model: outcome.row::<Model>(ctx).await?,
            user_errors: outcome.errors,
        })
    }
}

/// Input for `createModel`.
#[derive(InputObject)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each capability is a separate field of the input"
)]
pub struct CreateModelInput {
    /// The id of the provider; `NOT_FOUND` if there is no such provider.
    provider_id: ID,
    /// The model's name in the provider's API, 1 to 100 characters; unique within the provider.
    name: String,
    /// The display name, 1 to 200 characters.
    display_name: String,
    /// The size of the context window in tokens, at least 1.
    #[graphql(default = 128_000)]
    context_window: i32,
    /// The maximum number of output tokens per response, at least 1.
    #[graphql(default = 4_096)]
    max_output: i32,
    /// The price of one million input tokens in US dollars, not negative.
    #[graphql(default_with = "FREE")]
    price_input: Decimal,
    /// The price of one million output tokens in US dollars, not negative.
    #[graphql(default_with = "FREE")]
    price_output: Decimal,
    /// The price of one million tokens read from the provider's cache in US dollars, not negative.
    #[graphql(default_with = "FREE")]
    price_cache_read: Decimal,
    /// The price of one million tokens written to the provider's cache in US dollars, not negative.
    #[graphql(default_with = "FREE")]
    price_cache_write: Decimal,
    /// Whether the model accepts images as input.
    #[graphql(default = false)]
    supports_vision: bool,
    /// Whether the model can call tools.
    #[graphql(default = true)]
    supports_tools: bool,
    /// Whether the model can stream its response.
    #[graphql(default = true)]
    supports_streaming: bool,
    /// Whether the model supports extended thinking before it responds.
    #[graphql(default = false)]
    supports_thinking: bool,
}

/// Input for `updateModel`. Omitted fields keep their value; no field can be null.
#[derive(InputObject)]
pub struct UpdateModelInput {
    /// The id of the model.
    model_id: ID,
    #[graphql(flatten)]
    fields: ModelFields,
}

/// The fields that can be created and updated. An undefined field keeps its value.
#[derive(InputObject)]
struct ModelFields {
    /// The display name, 1 to 200 characters.
    display_name: MaybeUndefined<String>,
    /// The size of the context window in tokens, at least 1.
    context_window: MaybeUndefined<i32>,
    /// The maximum number of output tokens per response, at least 1.
    max_output: MaybeUndefined<i32>,
    /// The price of one million input tokens in US dollars, not negative.
    price_input: MaybeUndefined<Decimal>,
    /// The price of one million output tokens in US dollars, not negative.
    price_output: MaybeUndefined<Decimal>,
    /// The price of one million tokens read from the provider's cache in US dollars, not negative.
    price_cache_read: MaybeUndefined<Decimal>,
    /// The price of one million tokens written to the provider's cache in US dollars, not negative.
    price_cache_write: MaybeUndefined<Decimal>,
    /// Whether the model accepts images as input.
    supports_vision: MaybeUndefined<bool>,
    /// Whether the model can call tools.
    supports_tools: MaybeUndefined<bool>,
    /// Whether the model can stream its response.
    supports_streaming: MaybeUndefined<bool>,
    /// Whether the model supports extended thinking before it responds.
    supports_thinking: MaybeUndefined<bool>,
    /// Whether the model is deprecated: its provider will retire it.
    is_deprecated: MaybeUndefined<bool>,
}

impl CreateModelInput {
    /// The name, and the fields that an update can change too.
    fn into_parts(self) -> (String, ModelFields) {
        use MaybeUndefined::Value;
        let fields = ModelFields {
            display_name: Value(self.display_name),
            context_window: Value(self.context_window),
            max_output: Value(self.max_output),
            price_input: Value(self.price_input),
            price_output: Value(self.price_output),
            price_cache_read: Value(self.price_cache_read),
            price_cache_write: Value(self.price_cache_write),
            supports_vision: Value(self.supports_vision),
            supports_tools: Value(self.supports_tools),
            supports_streaming: Value(self.supports_streaming),
            supports_thinking: Value(self.supports_thinking),
            is_deprecated: Value(false),
        };
        (self.name, fields)
    }
}

impl ModelFields {
    /// Applies the fields to the row, and collects the errors of the input.
    fn apply(&self, new: &mut model::ActiveModel, check: &mut Check, edits: &mut Edits) {
        let name = check.if_given("displayName", &self.display_name);
        let name = name.map(|name| check.line("displayName", name, MAX_DISPLAY_NAME));
        edits.set("displayName", &mut new.display_name, name);
        let mut number = |field, value: &MaybeUndefined<i32>, column: &mut ActiveValue<i32>| {
            let value = check.if_given(field, value);
            let value = value.map(|value| check.range(field, *value, 1..=i32::MAX));
            edits.set(field, column, value);
        };
        number(
            "contextWindow",
            &self.context_window,
            &mut new.context_window,
        );
        number("maxOutput", &self.max_output, &mut new.max_output);
        let mut price = |field, value: &MaybeUndefined<Decimal>, column: &mut ActiveValue<i64>| {
            let value = check.if_given(field, value);
            let value = value.map(|value| micros(check, field, *value));
            edits.set(field, column, value);
        };
        price("priceInput", &self.price_input, &mut new.price_input);
        price("priceOutput", &self.price_output, &mut new.price_output);
        price(
            "priceCacheRead",
            &self.price_cache_read,
            &mut new.price_cache_read,
        );
        price(
            "priceCacheWrite",
            &self.price_cache_write,
            &mut new.price_cache_write,
        );
        let mut flag = |field, value: &MaybeUndefined<bool>, column: &mut ActiveValue<bool>| {
            edits.set(field, column, check.if_given(field, value).copied());
        };
        flag(
            "supportsVision",
            &self.supports_vision,
            &mut new.supports_vision,
        );
        flag(
            "supportsTools",
            &self.supports_tools,
            &mut new.supports_tools,
        );
        flag(
            "supportsStreaming",
            &self.supports_streaming,
            &mut new.supports_streaming,
        );
        flag(
            "supportsThinking",
            &self.supports_thinking,
            &mut new.supports_thinking,
        );
        flag("isDeprecated", &self.is_deprecated, &mut new.is_deprecated);
    }
}

/// Mutations of models.
#[derive(Default)]
pub struct ModelMutation;

#[Object]
impl ModelMutation {
    /// Adds a model to the catalogue. For administrators. `userErrors`: validation codes, and `TAKEN` for the name.
    async fn create_model(
        &self,
        ctx: &Context<'_>,
        input: CreateModelInput,
    ) -> Result<ModelPayload, Error> {
        ctx.request().admin()?;
        let provider = Kind::Provider.parse(&input.provider_id, "providerId")?;
        let id = Uuid::now_v7();
        let (name, fields) = input.into_parts();
        let outcome = change(ctx, None, async |mut change| {
            change
                .lock_reference::<provider::Entity>(Some(provider), "providerId")
                .await?;
            let mut check = Check::default();
            let mut new = model::ActiveModel {
                id: Set(id),
                created_at: Set(change.now),
                updated_at: Set(change.now),
                provider_id: Set(provider),
                name: Set(check.exact_line("name", &name, MAX_NAME)),
                ..Default::default()
            };
            fields.apply(&mut new, &mut check, &mut Edits::default());
            check.faults()?;
            let row = new.try_into_model()?;
            let insert = model::Entity::insert(row.clone().into_active_model());
            let inserted = insert.exec_without_returning(&change.transaction).await;
            unique(inserted, name_taken)?;
            entry(&row).changed(&mut change, &[]);
            change.commit(vec![id]).await
        });
        ModelPayload::new(ctx, outcome.await?).await
    }

    /// Updates a model. For administrators.
    async fn update_model(
        &self,
        ctx: &Context<'_>,
        input: UpdateModelInput,
    ) -> Result<ModelPayload, Error> {
        ctx.request().admin()?;
        let id = Kind::Model.parse(&input.model_id, "modelId")?;
        let outcome = change(ctx, Some(id), async |mut change| {
            let rule = Rule::default();
            let row = change.row::<model::Entity>(&rule, id, "modelId");
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
        ModelPayload::new(ctx, outcome.await?).await
    }

    /// Deletes a model.
    /// Personas lose it as their default model. For administrators. `userErrors`: `IN_USE` while an agent uses it.
    async fn delete_model(
        &self,
        ctx: &Context<'_>,
        input: DeleteInput,
    ) -> Result<DeletePayload, Error> {
        ctx.request().admin()?;
        let id = Kind::Model.parse(&input.id, "id")?;
        let outcome = change(ctx, Some(id), async |mut change| {
            let rule = Rule::default();
            let row = change.lock_for_delete::<model::Entity>(&rule, id, "id");
            let row = row.await?;
            let agents = agent::Column::ModelId.eq(id);
            if change.any::<agent::Entity>(agents).await? {
                let message = "Agents use this model. Assign them another model first, or mark it as deprecated.";
                return Err(in_use(message).into());
            }
            entry(&row).deleted(&mut change);
            row.delete(&change.transaction).await?;
            change.commit(vec![]).await
        });
        DeletePayload::new(ctx, Kind::Model, id, outcome.await?).await
    }
}

fn name_taken() -> UserError {
    let message = "Another model of the provider has this name.";
    UserError::new("name", UserErrorCode::Taken, message)
}

/// The price in millionths of a US dollar; a negative price is an error.
fn micros(check: &mut Check, field: &str, price: Decimal) -> i64 {
    if price.micros < 0 {
        let message = format!("`{field}` must not be negative.");
        check.fault(field, UserErrorCode::OutOfRange, message);
    }
    price.micros
}

fn entry(row: &model::Model) -> Entry<'_> {
    Entry {
        kind: (Kind::Model, EventType::ModelChanged),
        id: row.id,
        name: &row.name,
        updated_at: row.updated_at,
    }
}
