//! Signing up, in and out, and the sessions between.

use crate::auth::MAX_USER_NAME;
use crate::auth::check_password;
use std::sync::Arc;

use async_graphql::{Context, ID, InputObject, Object, SimpleObject, connection::EmptyFields};
use chrono::{DateTime as ChronoDateTime, Utc};
use gathering_entity::{refresh_token, revoked_token, user::UserRole};
use sea_orm::{ColumnTrait, EntityTrait, QueryTrait};
use uuid::Uuid;

use crate::{
    audit::AuditAction,
    auth::{Profile, SignedIn, in_session, live},
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

/// A place where a user is signed in.
pub struct Session(Arc<refresh_token::Model>);

/// A place where a user is signed in, until they sign out there or do not come back for long.
#[Object]
impl Session {
    /// The id of the session, `signin_…`.
    async fn id(&self) -> ID {
        Kind::SignIn.id(self.0.family_id)
    }

    /// When the user signed in, to the millisecond.
    async fn created_at(&self) -> DateTime {
        began(self.0.family_id).unwrap_or(self.0.created_at).into()
    }

    /// When the session was last refreshed.
    async fn refreshed_at(&self) -> DateTime {
        self.0.created_at.into()
    }

    /// When the session ends unless it is refreshed before.
    async fn expires_at(&self) -> DateTime {
        self.0.expires_at.into()
    }

    /// The address from which it was last refreshed.
    async fn client_ip(&self) -> Option<&str> {
        self.0.client_ip.as_deref()
    }

    /// What the client said it is, at most 255 characters.
    async fn user_agent(&self) -> Option<&str> {
        self.0.user_agent.as_deref()
    }

    /// Whether this is the session that asks.
    async fn is_current(&self, ctx: &Context<'_>) -> bool {
        let viewer = ctx.request().viewer();
        viewer.is_ok_and(|viewer| viewer.session() == self.0.family_id)
    }
}

/// The moment that is part of an id.
fn began(id: Uuid) -> Option<ChronoDateTime<Utc>> {
    let (seconds, nanoseconds) = id.get_timestamp()?.to_unix();
    ChronoDateTime::from_timestamp(i64::try_from(seconds).ok()?, nanoseconds)
}

/// Sessions as a list.
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

/// How revocations are kept.
#[derive(SimpleObject)]
pub struct RevocationStats {
    /// How many this instance holds in memory.
    cached: i32,
    /// How many it holds at most; the least recently used make room, and are found in the database.
    cache_capacity: i32,
    /// How many the database holds: those of access tokens that have not expired.
    stored: i32,
}

/// The outcome of a sign-in. Without `userErrors` all other fields have a value.
#[derive(Default, SimpleObject)]
pub struct AuthPayload {
    /// Goes into the header `Authorization: Bearer …`, for at most 15 minutes by default.
    access_token: Option<String>,
    /// When the access token expires.
    access_token_expires_at: Option<DateTime>,
    /// Exchanged by `refreshSession` for new tokens, once. Keep it like a password.
    refresh_token: Option<String>,
    /// When the refresh token expires.
    refresh_token_expires_at: Option<DateTime>,
    /// Who is signed in.
    viewer: Option<User>,
    /// What was wrong with the input.
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

/// The outcome of a sign-out.
#[derive(SimpleObject)]
pub struct LogoutPayload {
    /// How many tokens can no longer be used: the access token that was presented, and each refresh token.
    revoked_tokens: i32,
    /// What was wrong with the input.
    user_errors: Vec<UserError>,
}

/// The outcome of ending a session.
#[derive(SimpleObject)]
pub struct RevokeSessionPayload {
    /// The session that was ended.
    revoked_session_id: Option<ID>,
    /// What was wrong with the input.
    user_errors: Vec<UserError>,
}

/// A new account.
#[derive(InputObject)]
pub struct RegisterInput {
    /// The e-mail address, at most 254 characters. Two that differ only in case or in Unicode form are the same.
    email: String,
    /// The password, 8 to 128 characters of any kind.
    #[graphql(secret)]
    password: String,
    /// The name shown to others, 1 to 100 characters.
    name: String,
}

/// Somebody who signs in.
#[derive(InputObject)]
pub struct LoginInput {
    /// The e-mail address of the account.
    email: String,
    /// Its password.
    #[graphql(secret)]
    password: String,
}

/// A session that goes on.
#[derive(InputObject)]
pub struct RefreshSessionInput {
    /// The refresh token that was given out last.
    #[graphql(secret)]
    refresh_token: String,
}

/// A new password.
#[derive(InputObject)]
pub struct ChangePasswordInput {
    /// The password until now.
    #[graphql(secret)]
    current_password: String,
    /// The password from now on, 8 to 128 characters of any kind.
    #[graphql(secret)]
    new_password: String,
}

/// Where to sign out.
#[derive(InputObject)]
pub struct LogoutInput {
    /// A refresh token of another session of the same user that is to end too.
    #[graphql(secret)]
    refresh_token: Option<String>,
    /// Whether all sessions of the user end.
    #[graphql(default)]
    everywhere: bool,
}

/// Which session ends.
#[derive(InputObject)]
pub struct RevokeSessionInput {
    /// The session, one of the signed-in user's own; for administrators, anybody's.
    session_id: ID,
}

/// Queries about sessions.
#[derive(Default)]
pub struct SessionQuery;

#[Object]
impl SessionQuery {
    /// The sessions of the signed-in user, or, for administrators, of another; the one that was refreshed last comes
    /// first.
    async fn sessions(
        &self,
        ctx: &Context<'_>,
        first: Option<i32>,
        after: Option<String>,
        last: Option<i32>,
        before: Option<String>,
        #[graphql(desc = "Another user than the one who asks. For administrators.")]
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

    /// How revocations of access tokens are kept. For administrators.
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

/// Signing up, in and out.
#[derive(Default)]
pub struct SessionMutation;

#[Object]
impl SessionMutation {
    /// Makes an account and signs in to it. For everyone, unless the server's operator has closed registration
    /// (`FORBIDDEN`). Error codes of `userErrors`: `TAKEN` for an e-mail address that has an account, `REQUIRED`, `TOO_SHORT`,
    /// `TOO_LONG` and `INVALID`.
    #[graphql(directive = rate_limit::apply(Tier::Auth))]
    async fn register(
        &self,
        ctx: &Context<'_>,
        input: RegisterInput,
    ) -> Result<AuthPayload, Error> {
        let request = ctx.request();
        let mut check = Check::default();
        let (email, email_key) = check.email("email", &input.email);
        check_password(&mut check, "password", &input.password);
        let name = check.line("name", &input.name, MAX_USER_NAME);
        if let Err(faults) = check.faults() {
            return Ok(AuthPayload::refused(faults));
        }
        let profile = Profile {
            email,
            email_key,
            name,
            role: UserRole::User,
        };
        let registered = request
            .accounts()
            .register(&request.client, &profile, &input.password);
        Ok(match registered.await? {
            Some(signed_in) => signed_in.into(),
            None => AuthPayload::refused(vec![UserError::new(
                "email",
                UserErrorCode::Taken,
                "There is an account with this e-mail address already. Sign in instead.",
            )]),
        })
    }

    /// Signs in. For everyone. A wrong password, an unknown e-mail address and an account that is locked after several
    /// failures (for a minute, then twice as long each time, up to 15 minutes) are all answered `UNAUTHENTICATED`, in the
    /// same words and the same time; a deactivated account is `FORBIDDEN`.
    #[graphql(directive = rate_limit::apply(Tier::Auth))]
    async fn login(&self, ctx: &Context<'_>, input: LoginInput) -> Result<AuthPayload, Error> {
        let request = ctx.request();
        let accounts = request.accounts();
        let signed_in = accounts.sign_in(&request.client, &input.email, &input.password);
        Ok(signed_in.await?.into())
    }

    /// Exchanges a refresh token for new tokens. For everyone. A refresh token works once: using it again ends the whole
    /// session, since one of the two who have it has stolen it. `UNAUTHENTICATED` when it cannot be used.
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

    /// Ends the session of the access token that is presented, at once and on every instance; with `everywhere` all
    /// sessions of the user.
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

    /// Gives the signed-in user a new password, ends all of their sessions and begins a new one. Error codes of
    /// `userErrors`: `INVALID` for a wrong current password, `REQUIRED`, `TOO_SHORT` and `TOO_LONG`. Wrong ones count as failed
    /// sign-ins.
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
                "This is not your current password, or there were too many attempts. After several failures, wait some \
                 minutes.",
            )]),
        })
    }

    /// Ends one session, at once and on every instance. `NOT_FOUND` for one that is not the user's own, except for
    /// administrators.
    async fn revoke_session(
        &self,
        ctx: &Context<'_>,
        input: RevokeSessionInput,
    ) -> Result<RevokeSessionPayload, Error> {
        let request = ctx.request();
        let viewer = request.viewer()?;
        let session = Kind::SignIn.parse(&input.session_id, "sessionId")?;
        let accounts = request.accounts();
        let ended = change(ctx, async |mut change| {
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
