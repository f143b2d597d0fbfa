//! Registration, sign-in, sign-out and sessions.

use std::sync::Arc;

use async_graphql::{Context, ID, InputObject, Object, SimpleObject, connection::EmptyFields};
use chrono::{DateTime as ChronoDateTime, Utc};
use gathering_entity::{refresh_token, revoked_token, user::UserRole};
use sea_orm::{ColumnTrait, EntityTrait, QueryTrait};
use uuid::Uuid;

use crate::{
    audit::AuditAction,
    auth::{MAX_USER_NAME, Profile, SignedIn, check_password, in_session, live},
    data::{Connection, Listed, Order, Page, change},
    db::Totals,
    error::Error,
    id::Kind,
    input::{Check, UserError, UserErrorCode},
    rate_limit::{Tier, rate_limit},
    request::RequestExt,
    scalar::DateTime,
    user::User,
};

/// A session of a user.
pub struct Session(Arc<refresh_token::Model>);

/// A session of a user. Ends by sign-out, by revocation, or if it is not refreshed in time.
#[Object]
impl Session {
    /// The id of the session, `signin_…`.
    async fn id(&self) -> ID {
        Kind::SignIn.id(self.0.family_id)
    }

    /// When the user signed in, to the millisecond.
    async fn created_at(&self) -> DateTime {
        started_at(self.0.family_id)
            .unwrap_or(self.0.created_at)
            .into()
    }

    /// When the session was last refreshed.
    async fn refreshed_at(&self) -> DateTime {
        self.0.created_at.into()
    }

    /// When the session expires unless it is refreshed.
    async fn expires_at(&self) -> DateTime {
        self.0.expires_at.into()
    }

    /// The client's IP address at the last refresh.
    async fn client_ip(&self) -> Option<&str> {
        self.0.client_ip.as_deref()
    }

    /// The `User-Agent` header of the client, at most 255 characters.
    async fn user_agent(&self) -> Option<&str> {
        self.0.user_agent.as_deref()
    }

    /// Whether this is the session of the current request.
    async fn is_current(&self, ctx: &Context<'_>) -> bool {
        let viewer = ctx.request().viewer();
        viewer.is_ok_and(|viewer| viewer.grant().id() == self.0.family_id)
    }
}

/// The timestamp of a version 7 UUID.
fn started_at(id: Uuid) -> Option<ChronoDateTime<Utc>> {
    let (seconds, nanoseconds) = id.get_timestamp()?.to_unix();
    ChronoDateTime::from_timestamp(i64::try_from(seconds).ok()?, nanoseconds)
}

/// A connection of sessions.
pub struct Sessions;

impl Listed for Sessions {
    type Entity = refresh_token::Entity;
    type Node = Session;
    type Extra = EmptyFields;
    const NAME: &'static str = "Session";

    async fn nodes(
        _: &Context<'_>,
        rows: &[Arc<refresh_token::Model>],
    ) -> Result<Vec<Option<Session>>, Error> {
        Ok(rows
            .iter()
            .map(|row| Some(Session(Arc::clone(row))))
            .collect())
    }

    fn extra(_: &Arc<refresh_token::Model>) -> EmptyFields {
        EmptyFields
    }
}

/// Statistics of access token revocations.
#[derive(SimpleObject)]
pub struct RevocationStats {
    /// The number of revocations in this instance's cache.
    cached: i32,
    /// The capacity of the cache. Revocations that are evicted from it are found in the database.
    cache_capacity: i32,
    /// The number of revocations in the database, for access tokens that have not expired.
    stored: i32,
}

/// Payload of `register`, `login`, `refreshSession` and `changePassword`.
/// Without `userErrors` all other fields are set.
#[derive(Default, SimpleObject)]
pub struct AuthPayload {
    /// The access token for the header `Authorization: Bearer …`. Valid for at most 15 minutes by default.
    access_token: Option<String>,
    /// When the access token expires.
    access_token_expires_at: Option<DateTime>,
    /// The refresh token, exchanged once by `refreshSession` for new tokens. Store it like a password.
    refresh_token: Option<String>,
    /// When the refresh token expires.
    refresh_token_expires_at: Option<DateTime>,
    /// The signed-in user.
    viewer: Option<User>,
    /// Errors that the caller can correct; empty on success.
    user_errors: Vec<UserError>,
}

impl AuthPayload {
    fn refused(user_errors: Vec<UserError>) -> Self {
        Self {
            user_errors,
            ..Self::default()
        }
    }
}

impl From<SignedIn> for AuthPayload {
    fn from(signed_in: SignedIn) -> Self {
        Self {
            access_token: Some(signed_in.access),
            access_token_expires_at: Some(signed_in.access_expires_at.into()),
            refresh_token: Some(signed_in.refresh),
            refresh_token_expires_at: Some(signed_in.refresh_expires_at.into()),
            viewer: Some(User::signed_in(signed_in.user)),
            user_errors: Vec::new(),
        }
    }
}

/// Payload of `logout`.
#[derive(SimpleObject)]
pub struct LogoutPayload {
    /// The number of revoked tokens: the presented access token, and each refresh token.
    revoked_tokens: i32,
    /// Errors that the caller can correct; empty on success.
    user_errors: Vec<UserError>,
}

/// Payload of `revokeSession`.
#[derive(SimpleObject)]
pub struct RevokeSessionPayload {
    /// The id of the session that was ended.
    revoked_session_id: Option<ID>,
    /// Errors that the caller can correct; empty on success.
    user_errors: Vec<UserError>,
}

/// Input for `register`.
#[derive(InputObject)]
pub struct RegisterInput {
    /// The e-mail address, at most 254 characters. Case and Unicode form are ignored in comparisons.
    email: String,
    /// The password, 8 to 128 characters of any kind.
    #[graphql(secret)]
    password: String,
    /// The name shown to others, 1 to 100 characters.
    name: String,
}

/// Input for `login`.
#[derive(InputObject)]
pub struct LoginInput {
    /// The e-mail address of the account.
    email: String,
    /// The password of the account.
    #[graphql(secret)]
    password: String,
}

/// Input for `refreshSession`.
#[derive(InputObject)]
pub struct RefreshSessionInput {
    /// The latest refresh token of the session.
    #[graphql(secret)]
    refresh_token: String,
}

/// Input for `changePassword`.
#[derive(InputObject)]
pub struct ChangePasswordInput {
    /// The current password.
    #[graphql(secret)]
    current_password: String,
    /// The new password, 8 to 128 characters of any kind.
    #[graphql(secret)]
    new_password: String,
}

/// Input for `logout`.
#[derive(InputObject)]
pub struct LogoutInput {
    /// A refresh token of another session of the same user, which ends too.
    #[graphql(secret)]
    refresh_token: Option<String>,
    /// Whether to end all sessions of the user.
    #[graphql(default)]
    everywhere: bool,
}

/// Input for `revokeSession`.
#[derive(InputObject)]
pub struct RevokeSessionInput {
    /// The id of a session of the caller; administrators may end any session.
    session_id: ID,
}

/// Queries about sessions.
#[derive(Default)]
pub struct SessionQuery;

#[Object]
impl SessionQuery {
    /// The sessions of the caller, last refreshed first. Administrators may list those of another user.
    async fn sessions(
        &self,
        ctx: &Context<'_>,
        first: Option<i32>,
        after: Option<String>,
        last: Option<i32>,
        before: Option<String>,
        #[graphql(
            desc = "The user whose sessions are listed; the caller by default. Other users: for administrators."
        )]
        user_id: Option<ID>,
    ) -> Result<Connection<Sessions>, Error> {
        let request = ctx.request();
        let user = match Kind::User.parse_opt(user_id.as_ref(), "userId")? {
            Some(user) if user != request.viewer()?.id() => {
                request.admin()?;
                user
            }
            _ => request.viewer()?.id(),
        };
        Connection::new(
            live(request.now()).add(refresh_token::Column::UserId.eq(user)),
            Order::descending([refresh_token::Column::Id]),
            &Page::new(first, after, last, before)?,
        )
    }

    /// Statistics of access token revocations. For administrators.
    async fn revocation_stats(&self, ctx: &Context<'_>) -> Result<RevocationStats, Error> {
        let request = ctx.request();
        request.admin()?;
        let all = revoked_token::Entity::find().into_query();
        let stored = Totals::count("revocations", all, None);
        let stored = request.load(stored, Uuid::nil()).await?.count;
        let accounts = request.accounts();
        let bounded = |count: u64| i32::try_from(count).unwrap_or(i32::MAX);
        Ok(RevocationStats {
            cached: bounded(accounts.revoked().size),
            cache_capacity: bounded(accounts.revoked_capacity()),
            stored: i32::try_from(stored).unwrap_or(i32::MAX),
        })
    }
}

/// Mutations of sessions.
#[derive(Default)]
pub struct SessionMutation;

#[Object]
impl SessionMutation {
    /// Creates an account and signs in to it.
    /// No authentication required. `FORBIDDEN` if the server's operator has closed registration. `userErrors`: `TAKEN`
    /// for an e-mail address that has an account, `REQUIRED`, `TOO_SHORT`, `TOO_LONG` and `INVALID`.
    #[graphql(directive = rate_limit::apply(Tier::Auth))]
    async fn register(
        &self,
        ctx: &Context<'_>,
        input: RegisterInput,
    ) -> Result<AuthPayload, Error> {
        let request = ctx.request();
        let mut check = Check::default();
        let email = check.email("email", &input.email);
        check_password(&mut check, "password", &input.password);
        let name = check.line("name", &input.name, MAX_USER_NAME);
        if let Err(faults) = check.faults() {
            return Ok(AuthPayload::refused(faults));
        }
        let profile = Profile::person(email, name, UserRole::User);
        let registered = request
            .accounts()
            .register(&request.client, &profile, &input.password);
        Ok(match registered.await? {
            Some(signed_in) => signed_in.into(),
            None => AuthPayload::refused(vec![UserError::new(
                "email",
                UserErrorCode::Taken,
                "An account with this e-mail address already exists. Sign in instead.",
            )]),
        })
    }

    /// Signs in.
    /// No authentication required. `UNAUTHENTICATED` for a wrong password, an unknown e-mail address and a locked
    /// account, with the same message and response time. Several failures lock an account for one minute, then twice as
    /// long each time, up to 15 minutes. `FORBIDDEN` for a deactivated account.
    #[graphql(directive = rate_limit::apply(Tier::Auth))]
    async fn login(&self, ctx: &Context<'_>, input: LoginInput) -> Result<AuthPayload, Error> {
        let request = ctx.request();
        let accounts = request.accounts();
        let signed_in = accounts.sign_in(&request.client, &input.email, &input.password);
        Ok(signed_in.await?.into())
    }

    /// Exchanges a refresh token for new tokens.
    /// No authentication required. A refresh token can be used once: a second use ends the whole session, because the
    /// token must have been stolen. `UNAUTHENTICATED` if the token cannot be used.
    #[graphql(directive = rate_limit::apply(Tier::Auth))]
    async fn refresh_session(
        &self,
        ctx: &Context<'_>,
        input: RefreshSessionInput,
    ) -> Result<AuthPayload, Error> {
        let request = ctx.request();
        let refreshed = request
            .accounts()
            .refresh(&request.client, &input.refresh_token);
        Ok(refreshed.await?.into())
    }

    /// Ends the caller's session, immediately and on every instance. With `everywhere`, ends all sessions of the user.
    async fn logout(&self, ctx: &Context<'_>, input: LogoutInput) -> Result<LogoutPayload, Error> {
        let request = ctx.request();
        let viewer = request.viewer()?;
        let token = input.refresh_token.as_deref();
        let accounts = request.accounts();
        let revoked = accounts.sign_out(&request.client, viewer, token, input.everywhere);
        let revoked = revoked.await?;
        if let Some(key) = &request.key {
            key.made();
        }
        Ok(LogoutPayload {
            revoked_tokens: i32::try_from(revoked).unwrap_or(i32::MAX),
            user_errors: Vec::new(),
        })
    }

    /// Changes the caller's password, ends all of their sessions and starts a new one.
    /// `userErrors`: `INVALID` for a wrong current password, `REQUIRED`, `TOO_SHORT` and `TOO_LONG`. A wrong password
    /// counts as a failed sign-in.
    async fn change_password(
        &self,
        ctx: &Context<'_>,
        input: ChangePasswordInput,
    ) -> Result<AuthPayload, Error> {
        let request = ctx.request();
        let viewer = request.viewer()?;
        let mut check = Check::default();
        check_password(&mut check, "newPassword", &input.new_password);
        if let Err(faults) = check.faults() {
            return Ok(AuthPayload::refused(faults));
        }
        let (current, new) = (&input.current_password, &input.new_password);
        let changed = request
            .accounts()
            .change_password(&request.client, viewer, current, new);
        Ok(match changed.await? {
            Some(signed_in) => signed_in.into(),
            None => AuthPayload::refused(vec![UserError::new(
                "currentPassword",
                UserErrorCode::Invalid,
                "Wrong current password, or too many attempts. After several failures, wait a few minutes.",
            )]),
        })
    }

    /// Ends one session, immediately and on every instance.
    /// `NOT_FOUND` for a session of another user, except for administrators.
    async fn revoke_session(
        &self,
        ctx: &Context<'_>,
        input: RevokeSessionInput,
    ) -> Result<RevokeSessionPayload, Error> {
        let request = ctx.request();
        let viewer = request.viewer()?;
        let session = Kind::SignIn.parse(&input.session_id, "sessionId")?;
        let accounts = request.accounts();
        let ended = change(ctx, None, async |mut change| {
            let (transaction, now) = (&change.transaction, change.now);
            let ended = accounts.end_session(transaction, viewer, session, now);
            let (owner, ended) = ended.await?.ok_or_else(|| Error::not_found("sessionId"))?;
            change.end(ended);
            change.note(
                AuditAction::SessionRevoked,
                Kind::User,
                owner,
                in_session(session),
            );
            change.commit(vec![session]).await
        });
        ended.await?;
        Ok(RevokeSessionPayload {
            revoked_session_id: Some(input.session_id),
            user_errors: Vec::new(),
        })
    }
}
