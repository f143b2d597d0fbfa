//! API keys: how programs authenticate.

use std::sync::{Arc, Mutex, PoisonError};

use async_graphql::{Context, ID, InputObject, Object, SimpleObject};
use gathering_entity::{
    api_key, api_key_circle,
    user::{self, UserKind, UserRole},
};
use sea_orm::{
    ColumnTrait, Condition, EntityTrait, QueryFilter, QueryOrder, QuerySelect, QueryTrait,
};
use uuid::Uuid;

use crate::{
    access::{ApiKeyScope, Viewer},
    agent::Agent,
    audit::AuditAction,
    auth::{MAX_KEY_CIRCLES, NewKey, key_details, usable_keys},
    data::{Change, Connection, Noun, Order, Outcome, Page, change, load},
    db::{PageQuery, Rule, distinct},
    error::Error,
    events::Ended,
    id::Kind,
    input::{UserError, entry},
    request::{Request, RequestExt},
    scalar::DateTime,
    user::{User, live},
};

/// An API key.
pub struct ApiKey(Arc<api_key::Model>);

/// An API key, with which a program authenticates in the header `Authorization: Bearer gth_…`.
/// It has the rights of its user within its scopes, and within its circles if it is limited to some. It stays valid when
/// the user changes the password or signs out, and is refused while the user is deactivated. Only the user, the owner
/// of a service account and administrators may see it.
#[Object]
impl ApiKey {
    /// The id of the key, `key_…`.
    pub(crate) async fn id(&self) -> ID {
        Kind::ApiKey.id(self.0.id)
    }

    /// The name, at most 100 characters.
    async fn name(&self) -> &str {
        &self.0.name
    }

    /// The first 10 characters of the secret, to recognise it.
    async fn prefix(&self) -> &str {
        &self.0.prefix
    }

    /// The operations that the key allows.
    async fn scopes(&self) -> Vec<ApiKeyScope> {
        let all = ApiKeyScope::ALL.into_iter();
        all.filter(|scope| scope.is_of(&self.0)).collect()
    }

    /// The user on whose behalf the key acts.
    async fn user(&self, ctx: &Context<'_>) -> Result<Option<User>, Error> {
        let user = ctx.request().row::<user::Entity>(self.0.user_id).await?;
        Ok(user.map(User::new))
    }

    /// The agent on whose behalf the key acts, in the agent's circles only.
    async fn agent(&self, ctx: &Context<'_>) -> Result<Option<Agent>, Error> {
        match self.0.agent_id {
            Some(id) => load::<Agent>(ctx.request(), id).await,
            None => Ok(None),
        }
    }

    /// The circles to which the key is limited, without those that were deleted. Null if it is not limited.
    async fn circle_ids(&self, ctx: &Context<'_>) -> Result<Option<Vec<ID>>, Error> {
        if !self.0.is_limited {
            return Ok(None);
        }
        let select = api_key_circle::Entity::find()
            .order_by_asc(api_key_circle::Column::CircleId)
            .limit(MAX_KEY_CIRCLES as u64)
            .into_query();
        let parent = api_key_circle::Column::KeyId.as_column_ref();
        let pages =
            PageQuery::<api_key_circle::Model>::new("circles of API keys", select, Some(parent));
        let rows = ctx.request().load(pages, self.0.id).await?;
        let ids = rows.iter().map(|row| Kind::Circle.id(row.circle_id));
        Ok(Some(ids.collect()))
    }

    /// The quota class of its separate rate limits. Null for a key that shares the rate limits of its user.
    async fn quota_class(&self) -> Option<&str> {
        self.0.quota_class.as_deref()
    }

    /// When it was created.
    async fn created_at(&self) -> DateTime {
        self.0.created_at.into()
    }

    /// When the key expires. Null if it does not expire.
    async fn expires_at(&self) -> Option<DateTime> {
        self.0.expires_at.map(DateTime)
    }

    /// When the key was last used, to the minute. Null before its first use.
    async fn last_used_at(&self) -> Option<DateTime> {
        self.0.last_used_at.map(DateTime)
    }

    /// When the key was revoked. Null if it was not revoked.
    async fn revoked_at(&self) -> Option<DateTime> {
        self.0.revoked_at.map(DateTime)
    }
}

impl From<Arc<api_key::Model>> for ApiKey {
    fn from(row: Arc<api_key::Model>) -> Self {
        Self(row)
    }
}

impl Noun for ApiKey {
    type Entity = api_key::Entity;
    const KIND: Kind = Kind::ApiKey;
    const NAME: &'static str = "ApiKey";

    fn readable(viewer: &Viewer) -> Option<Rule> {
        // A key must not show other keys.
        if viewer.key().is_some() {
            return None;
        }
        if viewer.is_admin() {
            return Some(Rule::default());
        }
        let services = user::Entity::find()
            .select_only()
            .column(user::Column::Id)
            .filter(user::Column::OwnerId.eq(viewer.id()))
            .into_query();
        let rule = Condition::any()
            .add(api_key::Column::UserId.eq(viewer.id()))
            .add(api_key::Column::UserId.in_subquery(services));
        Some(Rule::new(rule))
    }
}

/// Filters a list of API keys. All conditions must hold.
#[derive(InputObject)]
pub struct ApiKeyFilter {
    /// Whether to include keys that were revoked or have expired.
    #[graphql(default)]
    include_inactive: bool,
}

/// Input for `createApiKey`.
#[derive(InputObject)]
pub struct CreateApiKeyInput {
    /// The name, 1 to 100 characters.
    name: String,
    /// The operations that the key allows, at least one.
    /// `ADMIN` requires that the user is an administrator, and cannot be combined with `circleIds` or `agentId`.
    scopes: Vec<ApiKeyScope>,
    /// Limits the key to these circles and their contents: 1 to 100 circles that the user can read.
    circle_ids: Option<Vec<ID>>,
    /// An agent of the user: the key acts as this agent, and is limited to the circles of which it is an active member.
    agent_id: Option<ID>,
    /// When the key expires, in the future. Without it, the key does not expire.
    expires_at: Option<DateTime>,
    /// A quota class of the server's configuration. Only administrators may choose one.
    /// The rate limits of such a key are separate; a key without a class shares those of its user.
    quota_class: Option<String>,
    /// A service account on whose behalf the key acts; the caller by default.
    user_id: Option<ID>,
}

/// Payload of `createApiKey`.
#[derive(SimpleObject)]
pub struct CreateApiKeyPayload {
    /// The key; null if there is none.
    api_key: Option<ApiKey>,
    /// The secret, 40 characters. Shown once: null when a request is repeated with the same idempotency key.
    secret: Option<String>,
    /// Errors that the caller can correct; empty on success.
    user_errors: Vec<UserError>,
}

/// Input for `revokeApiKey`.
#[derive(InputObject)]
pub struct RevokeApiKeyInput {
    /// The id of the key.
    id: ID,
}

/// Payload of `revokeApiKey`.
#[derive(SimpleObject)]
pub struct RevokeApiKeyPayload {
    /// The key in its current state; null if there is none.
    api_key: Option<ApiKey>,
    /// Errors that the caller can correct; empty on success.
    user_errors: Vec<UserError>,
}

impl CreateApiKeyInput {
    /// The input for accounts.
    fn parse(&self, request: &Request) -> Result<NewKey<'_>, Error> {
        let is_admin = request.viewer()?.is_admin();
        let is_allowed = |class: &str| is_admin && request.services.limiter.has_class(class);
        let circles = self.circle_ids.as_ref().map(|ids| {
            let ids = ids.iter().enumerate();
            let ids = ids.map(|(n, id)| Kind::Circle.parse(id, &entry("circleIds", n)));
            ids.collect::<Result<Vec<_>, _>>()
        });
        Ok(NewKey {
            name: &self.name,
            scopes: &self.scopes,
            agent: Kind::Agent.parse_opt(self.agent_id.as_ref(), "agentId")?,
            circles: circles.transpose()?.map(distinct),
            expires_at: self.expires_at.as_ref().map(|at| at.0),
            quota_class: self.quota_class.as_deref(),
            is_class_allowed: self.quota_class.as_deref().is_some_and(is_allowed),
        })
    }
}

/// Checks that a key is not created for another person, or for a service account of another owner.
fn check_user(change: &Change<'_>, user: &user::Model) -> Result<(), Error> {
    let viewer = change.viewer;
    let is_service =
        user.kind == UserKind::Service && (viewer.is_admin() || user.owner_id == Some(viewer.id()));
    if user.id == viewer.id() || is_service {
        return Ok(());
    }
    Err(change.forbidden(Kind::User, user.id).field("userId"))
}

/// Ends what a revoked key has started, and records the revocation.
fn note_revoked(change: &mut Change<'_>, row: &api_key::Model, ended: Ended) {
    change.end(ended);
    let details = key_details(row);
    change.note(AuditAction::ApiKeyRevoked, Kind::ApiKey, row.id, details);
}

/// Revokes the keys of an agent, whose row must be locked.
pub(crate) async fn revoke_of_agent(change: &mut Change<'_>, agent: Uuid) -> Result<(), Error> {
    let of_agent = api_key::Column::AgentId.eq(agent);
    let accounts = change.accounts();
    let revoked = accounts.revoke_keys(&change.transaction, of_agent, change.now);
    for (row, ended) in revoked.await? {
        note_revoked(change, &row, ended);
    }
    Ok(())
}

/// Queries about API keys.
#[derive(Default)]
pub struct ApiKeyQuery;

#[Object]
impl ApiKeyQuery {
    /// The API keys of the caller, newest first.
    /// The owner of a service account may list its keys, and administrators may list those of any user. `FORBIDDEN` for
    /// other users, and for a caller with an API key.
    #[expect(clippy::too_many_arguments, reason = "the arguments of the field")]
    async fn api_keys(
        &self,
        ctx: &Context<'_>,
        first: Option<i32>,
        after: Option<String>,
        last: Option<i32>,
        before: Option<String>,
        filter: Option<ApiKeyFilter>,
        #[graphql(desc = "The user whose keys are listed; the caller by default.")] user_id: Option<
            ID,
        >,
    ) -> Result<Connection<ApiKey>, Error> {
        let request = ctx.request();
        let viewer = request.viewer()?;
        let user = Kind::User.parse_opt(user_id.as_ref(), "userId")?;
        let user = user.unwrap_or(viewer.id());
        if user != viewer.id() && !viewer.is_admin() {
            let row = request.row::<user::Entity>(user).await?;
            if row.is_none_or(|row| row.owner_id != Some(viewer.id())) {
                request.admin()?;
            }
        }
        let is_inactive_included = filter.is_some_and(|filter| filter.include_inactive);
        let usable = (!is_inactive_included).then(|| usable_keys(request.now()));
        let condition = Condition::all()
            .add(api_key::Column::UserId.eq(user))
            .add_option(usable);
        let order = Order::descending([api_key::Column::Id]);
        Connection::new(condition, order, &Page::new(first, after, last, before)?)
    }
}

/// Mutations of API keys.
#[derive(Default)]
pub struct ApiKeyMutation;

#[Object]
impl ApiKeyMutation {
    /// Creates an API key for the caller, or for a service account of which the caller is the owner.
    /// Administrators may create keys for any service account. The secret is in the response only. `FORBIDDEN` for
    /// another user, and for a caller with an API key. `userErrors`: validation codes, and `LIMIT_REACHED` for a user
    /// with the maximum number of keys (100 by default).
    async fn create_api_key(
        &self,
        ctx: &Context<'_>,
        input: CreateApiKeyInput,
    ) -> Result<CreateApiKeyPayload, Error> {
        let request = ctx.request();
        let new = input.parse(request)?;
        let user = Kind::User.parse_opt(input.user_id.as_ref(), "userId")?;
        let user = user.unwrap_or(request.viewer()?.id());
        let accounts = request.accounts();
        let secret = Mutex::new(None);
        let keep = |created: String| {
            *secret.lock().unwrap_or_else(PoisonError::into_inner) = Some(created);
        };
        let outcome = change(ctx, None, async |mut change| {
            let user = change.row::<user::Entity>(&live(), user, "userId").await?;
            check_user(&change, &user)?;
            let may_administer = user.role == UserRole::Admin && change.viewer.is_admin();
            let (transaction, now) = (&change.transaction, change.now);
            let owner = (user.id, may_administer);
            let (row, created) = accounts.create_key(transaction, owner, &new, now).await??;
            let (id, details) = (row.id, key_details(&row));
            change.note(AuditAction::ApiKeyCreated, Kind::ApiKey, id, details);
            let outcome = change.commit(vec![id]).await?;
            keep(created);
            Ok(outcome.with_row(row))
        });
        let outcome = outcome.await?;
        let secret = secret.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok(CreateApiKeyPayload {
            api_key: outcome.row::<ApiKey>(ctx).await?,
            secret,
            user_errors: outcome.errors,
        })
    }

    /// Revokes an API key, immediately and on every instance, and ends its streams and connections.
    /// `NOT_FOUND` for a key of another user, except for the owner of a service account and administrators. `FORBIDDEN`
    /// for a caller with an API key.
    async fn revoke_api_key(
        &self,
        ctx: &Context<'_>,
        input: RevokeApiKeyInput,
    ) -> Result<RevokeApiKeyPayload, Error> {
        let request = ctx.request();
        let id = Kind::ApiKey.parse(&input.id, "id")?;
        let rule = ApiKey::readable(request.viewer()?).ok_or_else(|| Error::not_found("id"))?;
        let accounts = request.accounts();
        let outcome: Outcome = change(ctx, None, async |mut change| {
            let row = change.row::<api_key::Entity>(&rule, id, "id").await?;
            let revoked = accounts.revoke_key(&change.transaction, &row, change.now);
            if let Some(ended) = revoked.await? {
                note_revoked(&mut change, &row, ended);
            }
            change.commit(vec![id]).await
        })
        .await?;
        Ok(RevokeApiKeyPayload {
            api_key: outcome.row::<ApiKey>(ctx).await?,
            user_errors: outcome.errors,
        })
    }
}
