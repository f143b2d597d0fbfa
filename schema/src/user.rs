//! Users: people with an account, and service accounts.

use std::sync::Arc;

use async_graphql::{Context, Enum, ID, InputObject, MaybeUndefined, Object, SimpleObject};
use gathering_entity::{event, user};
use sea_orm::{ActiveEnum, ColumnTrait, Condition, sea_query::Expr};
use serde_json::json;
use uuid::Uuid;

use crate::{
    access::Viewer,
    audit::AuditAction,
    auth::{Amendment, MAX_USER_NAME},
    data::{Connection, FieldsOf, Noun, Order, Page, change},
    db::{Rule, contains},
    error::Error,
    event::{EventDetails, Payload},
    id::Kind,
    input::{Check, UserError, UserErrorCode},
    request::RequestExt,
    scalar::DateTime,
};

/// The role of a user on this server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
#[graphql(remote = "user::UserRole")]
pub enum UserRole {
    /// May read and change their own objects and those shared with them.
    User,
    /// May read and change everything, and maintains the catalogue of providers, models and personas.
    Admin,
}

/// The kind of a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
#[graphql(remote = "user::UserKind")]
pub enum UserKind {
    /// A person, who signs in with a password.
    Person,
    /// A service account of a program, which authenticates with API keys and cannot sign in.
    Service,
}

/// A person with an account, or a service account.
pub struct User {
    row: Arc<user::Model>,
    /// Whether the caller has just signed in as this user, in a request that was not authenticated.
    is_self: bool,
}

/// A person with an account, or a service account of a program. Every signed-in user may see a user's name and role.
#[Object]
impl User {
    /// The id of the user, `user_…`.
    pub(crate) async fn id(&self) -> ID {
        Kind::User.id(self.row.id)
    }

    /// The name shown to others, at most 100 characters. `Deleted user` after the account was deleted.
    pub(crate) async fn name(&self) -> &str {
        &self.row.name
    }

    /// Whether the user is a person or a service account.
    async fn kind(&self) -> UserKind {
        self.row.kind.into()
    }

    /// The person who owns a service account. Null for a person, and after the account was deleted.
    async fn owner(&self, ctx: &Context<'_>) -> Result<Option<User>, Error> {
        match self.row.owner_id {
            Some(id) => Ok(ctx.request().row::<user::Entity>(id).await?.map(Self::new)),
            None => Ok(None),
        }
    }

    /// The e-mail address. Null for a service account.
    /// Null unless the caller is the user or an administrator, for a caller with an API key that is limited to circles,
    /// and for a deleted account.
    async fn email(&self, ctx: &Context<'_>) -> Option<&str> {
        let has_email = self.row.kind == user::UserKind::Person && self.row.deleted_at.is_none();
        (has_email && self.is_private_to(ctx)).then_some(&self.row.email)
    }

    /// When the e-mail address was verified. Null for an unverified one.
    /// Null unless the caller may read `email`. An unverified address restricts nothing.
    async fn email_verified_at(&self, ctx: &Context<'_>) -> Option<DateTime> {
        self.row
            .email_verified_at
            .filter(|_| self.is_private_to(ctx))
            .map(DateTime)
    }

    /// The role, which determines the user's permissions.
    async fn role(&self) -> UserRole {
        self.row.role.into()
    }

    /// Whether the user may sign in.
    async fn is_active(&self) -> bool {
        self.row.is_active
    }

    /// The quota class, which determines the user's rate limits. Null for the standard limits.
    /// Null unless the caller is the user or an administrator. If the class is no longer configured, the standard limits
    /// apply.
    async fn quota_class(&self, ctx: &Context<'_>) -> Option<&str> {
        self.row
            .quota_class
            .as_deref()
            .filter(|_| self.is_private_to(ctx))
    }

    /// When the account was created.
    async fn created_at(&self) -> DateTime {
        self.row.created_at.into()
    }

    /// When the account was deleted. Null for an account that exists.
    async fn deleted_at(&self) -> Option<DateTime> {
        self.row.deleted_at.map(DateTime)
    }

    /// When the user last signed in.
    /// Null before the first sign-in, unless the caller is the user or an administrator, and for a caller with an API key
    /// that is limited to circles.
    async fn last_login_at(&self, ctx: &Context<'_>) -> Option<DateTime> {
        self.row
            .last_login_at
            .filter(|_| self.is_private_to(ctx))
            .map(DateTime)
    }
}

impl User {
    pub(crate) fn new(row: Arc<user::Model>) -> Self {
        Self {
            row,
            is_self: false,
        }
    }

    /// The user who has just signed in.
    pub(crate) fn signed_in(row: Arc<user::Model>) -> Self {
        Self { row, is_self: true }
    }

    fn is_private_to(&self, ctx: &Context<'_>) -> bool {
        let viewer = ctx.request().viewer();
        let is_own = |viewer: &Viewer| viewer.id() == self.row.id && !viewer.is_limited();
        self.is_self || viewer.is_ok_and(|viewer| viewer.is_admin() || is_own(viewer))
    }
}

impl From<Arc<user::Model>> for User {
    fn from(row: Arc<user::Model>) -> Self {
        Self::new(row)
    }
}

impl Noun for User {
    type Entity = user::Entity;
    const KIND: Kind = Kind::User;
    const NAME: &'static str = "User";

    fn readable(_: &Viewer) -> Option<Rule> {
        Some(Rule::default())
    }

    fn fields() -> FieldsOf<Self> {
        use user::Column::{CreatedAt, DeletedAt, IsActive, Kind, Name, OwnerId, Role};
        FieldsOf::new()
            .columns([Name, Role, IsActive, CreatedAt, Kind, DeletedAt])
            .one::<Self>("owner", OwnerId)
    }
}

/// Filters a list of users. All conditions must hold.
#[derive(InputObject)]
pub struct UserFilter {
    /// Only users with this role.
    role: Option<UserRole>,
    /// Only users of this kind.
    kind: Option<UserKind>,
    /// Only users who may sign in (true), or only those who may not (false).
    is_active: Option<bool>,
    /// Only users whose e-mail address contains this text, ignoring case; at most 100 characters.
    search: Option<String>,
}

impl UserFilter {
    fn condition(self) -> Result<Condition, Error> {
        Ok(Condition::all()
            .add_option(
                self.role
                    .map(|role| user::Column::Role.eq(user::UserRole::from(role))),
            )
            .add_option(
                self.kind
                    .map(|kind| user::Column::Kind.eq(user::UserKind::from(kind))),
            )
            .add_option(
                self.is_active
                    .map(|is_active| user::Column::IsActive.eq(is_active)),
            )
            .add_option(
                self.search
                    .map(|search| {
                        contains(Expr::col(user::Column::EmailKey.as_column_ref()), &search)
                    })
                    .transpose()?,
            ))
    }
}

/// Payload of `updateProfile`, `updateUser` and `createServiceAccount`.
#[derive(SimpleObject)]
pub struct UserPayload {
    /// The user in their current state; null if there is none.
    user: Option<User>,
    /// Errors that the caller can correct; empty on success.
    user_errors: Vec<UserError>,
}

impl UserPayload {
    /// Applies the change unless the input has errors.
    async fn amended(
        ctx: &Context<'_>,
        user: Uuid,
        amendment: Amendment,
        check: Check,
    ) -> Result<Self, Error> {
        let accounts = ctx.request().accounts();
        let faults = check.faults();
        let outcome = change(ctx, Some(user), async |mut change| {
            let row = change.row::<user::Entity>(&live(), user, "userId").await?;
            faults.clone()?;
            let (transaction, now) = (&change.transaction, change.now);
            let amended = accounts.amend(transaction, row, &amendment, now).await?;
            for event in amended.events {
                change.append(event);
            }
            if let Some(ended) = amended.ended {
                change.end(ended);
            }
            if let Some(details) = amended.details {
                change.note(AuditAction::UserChanged, Kind::User, user, details);
            }
            change.commit(vec![user]).await
        });
        let outcome = outcome.await?;
        Ok(Self {
            user: outcome.row::<User>(ctx).await?,
            user_errors: outcome.errors,
        })
    }
}

/// A user whose account has not been deleted.
pub(crate) fn live() -> Rule {
    Rule::new(Condition::all().add(user::Column::DeletedAt.is_null()))
}

/// Input for `updateProfile`. Omitted fields keep their value.
#[derive(InputObject)]
pub struct UpdateProfileInput {
    /// The name shown to others, 1 to 100 characters.
    name: MaybeUndefined<String>,
}

/// Input for `updateUser`. Omitted fields keep their value; null clears a nullable field.
#[derive(InputObject)]
pub struct UpdateUserInput {
    /// The id of the user, who must not be the caller.
    user_id: ID,
    /// The name shown to others, 1 to 100 characters.
    name: MaybeUndefined<String>,
    /// The new role. Revokes the user's access tokens; refreshed sessions continue with the new role.
    role: MaybeUndefined<UserRole>,
    /// Whether the user may sign in. If false, all their sessions end.
    is_active: MaybeUndefined<bool>,
    /// The quota class, one of those in the server's configuration. Null assigns the standard limits.
    quota_class: MaybeUndefined<String>,
}

/// Input for `createServiceAccount`.
#[derive(InputObject)]
pub struct CreateServiceAccountInput {
    /// The name shown to others, 1 to 100 characters.
    name: String,
    /// The id of the owner: an active person, who may create and revoke the API keys of the account.
    owner_id: ID,
    /// The role.
    #[graphql(default_with = "UserRole::User")]
    role: UserRole,
}

/// Mutations of users.
#[derive(Default)]
pub struct UserMutation;

#[Object]
impl UserMutation {
    /// Updates the caller's name.
    async fn update_profile(
        &self,
        ctx: &Context<'_>,
        input: UpdateProfileInput,
    ) -> Result<UserPayload, Error> {
        let viewer = ctx.request().viewer()?.id();
        let mut check = Check::default();
        let name = check.if_given("name", &input.name);
        let name = name.map(|name| check.line("name", name, MAX_USER_NAME));
        let amendment = Amendment {
            name,
            ..Amendment::default()
        };
        UserPayload::amended(ctx, viewer, amendment, check).await
    }

    /// Updates another user: their name, their role, their quota class, and whether they may sign in.
    /// For administrators. `userErrors`: validation codes, and `PROTECTED` for the caller's own account.
    async fn update_user(
        &self,
        ctx: &Context<'_>,
        input: UpdateUserInput,
    ) -> Result<UserPayload, Error> {
        let admin = ctx.request().admin()?.id();
        let user = Kind::User.parse(&input.user_id, "userId")?;
        let mut check = Check::default();
        let name = check.if_given("name", &input.name);
        let name = name.map(|name| check.line("name", name, MAX_USER_NAME));
        let role = check.if_given("role", &input.role).copied();
        let is_active = check.if_given("isActive", &input.is_active).copied();
        if let MaybeUndefined::Value(class) = &input.quota_class
            && !ctx.request().services.limiter.has_class(class)
        {
            let message = "`quotaClass` must be a quota class of the server's configuration.";
            check.fault("quotaClass", UserErrorCode::Invalid, message);
        }
        if user == admin {
            let message =
                "You cannot change your own account with this mutation. Ask another administrator.";
            check.fault("userId", UserErrorCode::Protected, message);
        }
        let amendment = Amendment {
            name,
            role: role.map(user::UserRole::from),
            is_active,
            quota_class: input.quota_class,
        };
        UserPayload::amended(ctx, user, amendment, check).await
    }

    /// Creates a service account for a program.
    /// It has no password and cannot sign in; its owner and administrators create its API keys with `createApiKey`.
    /// `updateUser` disables it. For administrators. `userErrors`: validation codes, and `INVALID` for an owner who is a
    /// service account or deactivated.
    async fn create_service_account(
        &self,
        ctx: &Context<'_>,
        input: CreateServiceAccountInput,
    ) -> Result<UserPayload, Error> {
        let request = ctx.request();
        request.admin()?;
        let owner = Kind::User.parse(&input.owner_id, "ownerId")?;
        let accounts = request.accounts();
        let outcome = change(ctx, None, async |mut change| {
            let owner = change.lock_reference::<user::Entity>(Some(owner), "ownerId");
            let owner = owner.await?.ok_or_else(|| Error::not_found("ownerId"))?;
            let mut check = Check::default();
            let name = check.line("name", &input.name, MAX_USER_NAME);
            if owner.kind != user::UserKind::Person || !owner.is_active {
                let message = "The owner must be a person with an active account.";
                check.fault("ownerId", UserErrorCode::Invalid, message);
            }
            check.faults()?;
            let role = user::UserRole::from(input.role);
            let created = accounts.create_service(&change.transaction, name, role, owner.id);
            let (row, event) = created.await?;
            change.append(event);
            let details = json!({
                "role": row.role.to_value(),
                "owner": Kind::User.id(owner.id).as_str(),
            });
            change.note(
                AuditAction::ServiceAccountCreated,
                Kind::User,
                row.id,
                details,
            );
            let outcome = change.commit(vec![row.id]).await?;
            Ok(outcome.with_row(row))
        });
        let outcome = outcome.await?;
        Ok(UserPayload {
            user: outcome.row::<User>(ctx).await?,
            user_errors: outcome.errors,
        })
    }
}

/// Queries about users.
#[derive(Default)]
pub struct UserQuery;

#[Object]
impl UserQuery {
    /// The signed-in user, or null for an anonymous caller.
    async fn viewer(&self, ctx: &Context<'_>) -> Option<User> {
        let viewer = ctx.request().viewer.as_ref()?;
        Some(User::new(Arc::clone(&viewer.user)))
    }

    /// All users, newest first, without deleted accounts. For administrators.
    async fn users(
        &self,
        ctx: &Context<'_>,
        first: Option<i32>,
        after: Option<String>,
        last: Option<i32>,
        before: Option<String>,
        filter: Option<UserFilter>,
    ) -> Result<Connection<User>, Error> {
        ctx.request().admin()?;
        let condition = filter
            .map(UserFilter::condition)
            .transpose()?
            .unwrap_or_else(Condition::all);
        Connection::new(
            condition.add(user::Column::DeletedAt.is_null()),
            Order::descending([user::Column::Id]),
            &Page::new(first, after, last, before)?,
        )
    }
}

/// A change of a user.
pub struct UserChange(Arc<event::Model>);

impl From<Arc<event::Model>> for UserChange {
    fn from(row: Arc<event::Model>) -> Self {
        Self(row)
    }
}

impl EventDetails for UserChange {
    const NAME: &'static str = "UserEvent";
}

#[Object]
impl UserChange {
    /// The id of the user.
    async fn user_id(&self) -> ID {
        Kind::User.id(self.0.subject_id)
    }

    /// The user in their current state.
    async fn user(&self, ctx: &Context<'_>) -> Result<Option<User>, Error> {
        Ok(ctx
            .request()
            .row::<user::Entity>(self.0.subject_id)
            .await?
            .map(User::new))
    }

    /// The reason for the event.
    /// Revoked tokens: `LOGOUT` (everywhere), `PASSWORD_CHANGED`, `ADMIN` or `REUSE` (of a refresh token). Locked-out
    /// user: `FAILED_LOGINS`.
    async fn reason(&self) -> Option<&str> {
        self.0.text("reason")
    }

    /// The names of the fields that changed.
    async fn changed(&self) -> Vec<String> {
        self.0.changed()
    }
}
