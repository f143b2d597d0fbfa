//! Sessions: from sign-in, through any number of refreshes, to sign-out.
//!
//! A session is a family of refresh tokens of which one is valid at a time. Using it issues the next one. A token that
//! is used twice must have been stolen, and ends the session for both of its users. The user's row is locked before a
//! token is added and before sessions are ended, so that no token is added to a session that is being ended.

use std::{sync::Arc, time::Duration};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use chrono::{DateTime, Utc};
use gathering_entity::{
    refresh_token,
    revoked_token::{self, RevocationReason},
    user,
};
use sea_orm::{
    ColumnTrait, Condition, ConnectionTrait, DatabaseTransaction, EntityTrait, QueryFilter,
    QuerySelect, Set,
    sea_query::{Expr, LockType, OnConflict},
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use uuid::{NoContext, Timestamp, Uuid};

use crate::{
    access::Viewer,
    audit::{AuditAction, Client},
    auth::{Accounts, take_effect, tokens_revoked},
    db::retry_on_conflict,
    error::Error,
    events::{Ended, notify_ended},
    id::Kind,
    text,
};

/// The prefix of refresh tokens, for secret scanners.
const PREFIX: &str = "gathering_refresh_";

/// The tokens of a session, as they are issued.
pub(crate) struct SignedIn {
    pub(crate) user: Arc<user::Model>,
    pub(crate) access: String,
    pub(crate) access_expires_at: DateTime<Utc>,
    pub(crate) refresh: String,
    pub(crate) refresh_expires_at: DateTime<Utc>,
}

/// The maximum lifetime of an access token under any configuration.
const LONGEST_ACCESS: Duration = Duration::from_hours(1);

/// The sessions that end.
#[derive(Clone, Copy)]
pub(super) enum Ending {
    /// One session, whose last access token expires no later than this.
    One(Uuid, DateTime<Utc>),
    /// All sessions of the user; the new `token_version`.
    All(i32),
}

impl Ending {
    fn of(self, user: Uuid) -> Ended {
        match self {
            Self::One(session, _) => Ended::One { user, session },
            Self::All(version) => Ended::Before { user, version },
        }
    }
}

/// The result of using a refresh token.
enum Refresh {
    Renewed(SignedIn, Uuid),
    /// It was used before; its session has been ended.
    Reused(Uuid, Uuid),
    Deactivated,
    Unusable,
}

fn hashed(token: &str) -> String {
    text::hex(&Sha256::digest(token))
}

/// The audit log details of a session: the id by which it can be ended.
pub(crate) fn in_session(session: Uuid) -> Value {
    json!({ "session": Kind::SignIn.id(session).as_str() })
}

/// Condition: the refresh token can still be used.
pub(crate) fn live(now: DateTime<Utc>) -> Condition {
    Condition::all()
        .add(refresh_token::Column::UsedAt.is_null())
        .add(refresh_token::Column::RevokedAt.is_null())
        .add(refresh_token::Column::ExpiresAt.gt(now))
}

/// The id of a session that starts now; contains the start time.
pub(super) fn new_session(now: DateTime<Utc>) -> Uuid {
    let seconds = u64::try_from(now.timestamp()).unwrap_or_default();
    Uuid::new_v7(Timestamp::from_unix(
        NoContext,
        seconds,
        now.timestamp_subsec_nanos(),
    ))
}

/// A user's row, locked until the end of the transaction. Other rows may still reference it. `None` for a deleted
/// account.
pub(super) async fn lock(
    transaction: &DatabaseTransaction,
    user: Uuid,
) -> Result<Option<user::Model>, Error> {
    Ok(user::Entity::find_by_id(user)
        .filter(user::Column::DeletedAt.is_null())
        .lock(LockType::NoKeyUpdate)
        .one(transaction)
        .await?)
}

/// Whether a session has been ended. The user's row must be locked.
pub(super) async fn is_ended(
    transaction: &DatabaseTransaction,
    session: Uuid,
) -> Result<bool, Error> {
    let ended = revoked_token::Entity::find_by_id(session);
    Ok(ended.one(transaction).await?.is_some())
}

impl Accounts {
    /// Adds a token to a session; with a new session id, starts the session.
    pub(super) async fn issue(
        &self,
        db: &impl ConnectionTrait,
        user: user::Model,
        session: Uuid,
        client: &Client,
        now: DateTime<Utc>,
    ) -> Result<(SignedIn, Uuid), Error> {
        let mut random = [0; 32];
        getrandom::fill(&mut random).map_err(|error| {
            tracing::error!(%error, "the system's random number generator failed");
            Error::internal()
        })?;
        let refresh = format!("{PREFIX}{}", BASE64_URL_SAFE_NO_PAD.encode(random));
        let refresh_expires_at = now + self.refresh_lifetime;
        let id = Uuid::now_v7();
        let row = refresh_token::ActiveModel {
            id: Set(id),
            created_at: Set(now),
            user_id: Set(user.id),
            family_id: Set(session),
            token_hash: Set(hashed(&refresh)),
            expires_at: Set(refresh_expires_at),
            used_at: Set(None),
            replaced_by: Set(None),
            revoked_at: Set(None),
            client_ip: Set(client.ip()),
            user_agent: Set(client.program()),
        };
        refresh_token::Entity::insert(row)
            .exec_without_returning(db)
            .await?;
        let (access, access_expires_at) =
            self.access_token(&user, session, self.access_lifetime, now)?;
        let signed_in = SignedIn {
            user: Arc::new(user),
            access,
            access_expires_at,
            refresh,
            refresh_expires_at,
        };
        Ok((signed_in, id))
    }

    pub(super) fn access_token(
        &self,
        user: &user::Model,
        session: Uuid,
        lifetime: Duration,
        now: DateTime<Utc>,
    ) -> Result<(String, DateTime<Utc>), Error> {
        let until = now + lifetime;
        // Tokens have a precision of one second.
        let until = DateTime::from_timestamp(until.timestamp(), 0).unwrap_or(until);
        let token = self
            .signer
            .sign((user.id, user.token_version), session, now, until)
            .map_err(|error| {
                tracing::error!(%error, "cannot sign an access token");
                Error::internal()
            })?;
        Ok((token, until))
    }

    /// Exchanges a refresh token for the next one.
    ///
    /// # Errors
    /// `UNAUTHENTICATED` if it cannot be used, `FORBIDDEN` for a deactivated account.
    pub(crate) async fn refresh(&self, client: &Client, token: &str) -> Result<SignedIn, Error> {
        let failed = |user, reason: &str| {
            let details = json!({ "reason": reason });
            self.audit
                .record(AuditAction::TokenRejected, client, user, user, details);
        };
        match retry_on_conflict(|| self.exchange(client, token)).await? {
            Refresh::Renewed(signed_in, session) => {
                let user = Some(signed_in.user.id);
                let details = in_session(session);
                self.audit
                    .record(AuditAction::Refreshed, client, user, user, details);
                Ok(signed_in)
            }
            Refresh::Reused(user, session) => {
                take_effect().await;
                let details = in_session(session);
                let user = Some(user);
                self.audit
                    .record(AuditAction::RefreshReused, client, user, user, details);
                Err(Error::bad_refresh_token())
            }
            Refresh::Deactivated => {
                failed(None, "deactivated");
                Err(Error::deactivated())
            }
            Refresh::Unusable => {
                failed(None, "unusable refresh token");
                Err(Error::bad_refresh_token())
            }
        }
    }

    async fn exchange(&self, client: &Client, token: &str) -> Result<Refresh, Error> {
        let now = self.now();
        let hash = hashed(token);
        let find = || {
            refresh_token::Entity::find().filter(refresh_token::Column::TokenHash.eq(hash.as_str()))
        };
        // An unknown token must not take a lock.
        let Some(row) = find().one(&self.db).await? else {
            return Ok(Refresh::Unusable);
        };
        let (transaction, _guard) = self.writer.begin().await?;
        let Some(user) = lock(&transaction, row.user_id).await? else {
            return Ok(Refresh::Unusable);
        };
        // Another request may have used it before the lock was taken.
        let Some(row) = find().one(&transaction).await? else {
            return Ok(Refresh::Unusable);
        };
        if row.revoked_at.is_some() || row.expires_at <= now {
            return Ok(Refresh::Unusable);
        }
        let session = row.family_id;
        if row.used_at.is_some() {
            let reason = RevocationReason::Reuse;
            let ending = Ending::One(session, now + LONGEST_ACCESS);
            let ended = self.end(&transaction, user.id, ending, reason, now).await?;
            if ended == 0 {
                // The session has ended before; do not report it again.
                return Ok(Refresh::Unusable);
            }
            let events = vec![tokens_revoked(user.id, reason, now)];
            self.commit(transaction, (Some(user.id), client), events, now)
                .await?;
            self.ended(ending.of(user.id));
            return Ok(Refresh::Reused(user.id, session));
        }
        if !user.is_active {
            return Ok(Refresh::Deactivated);
        }
        let (signed_in, next) = self.issue(&transaction, user, session, client, now).await?;
        refresh_token::Entity::update_many()
            .col_expr(refresh_token::Column::UsedAt, Expr::value(now))
            .col_expr(refresh_token::Column::ReplacedBy, Expr::value(next))
            .filter(refresh_token::Column::Id.eq(row.id))
            .exec(&transaction)
            .await?;
        self.writer.commit(transaction).await?;
        Ok(Refresh::Renewed(signed_in, session))
    }

    /// Ends sessions of a user, whose row must be locked. Returns the number of revoked refresh tokens. The access
    /// tokens of one session are revoked by its id; those of all sessions, by a new `token_version`. Must be followed
    /// by [`Accounts::ended`] after the commit, and by [`take_effect`] before the answer.
    pub(super) async fn end(
        &self,
        db: &impl ConnectionTrait,
        user: Uuid,
        ending: Ending,
        reason: RevocationReason,
        now: DateTime<Utc>,
    ) -> Result<u64, Error> {
        let mut tokens = live(now).add(refresh_token::Column::UserId.eq(user));
        if let Ending::One(session, until) = ending {
            tokens = tokens.add(refresh_token::Column::FamilyId.eq(session));
            let row = revoked_token::ActiveModel {
                jti: Set(session),
                created_at: Set(now),
                user_id: Set(user),
                expires_at: Set(until),
                revoked_at: Set(now),
                reason: Set(reason),
            };
            revoked_token::Entity::insert(row)
                .on_conflict(
                    OnConflict::column(revoked_token::Column::Jti)
                        .update_column(revoked_token::Column::ExpiresAt)
                        .to_owned(),
                )
                .exec_without_returning(db)
                .await?;
        }
        if let Ending::All(version) = ending {
            user::Entity::update_many()
                .col_expr(user::Column::TokenVersion, Expr::value(version))
                .filter(user::Column::Id.eq(user))
                .exec(db)
                .await?;
        }
        notify_ended(db, ending.of(user)).await?;
        let ended = refresh_token::Entity::update_many()
            .col_expr(refresh_token::Column::RevokedAt, Expr::value(now))
            .filter(tokens)
            .exec(db)
            .await?;
        Ok(ended.rows_affected)
    }

    /// Signs a viewer out of the current session, of the session of another refresh token of theirs, or of all
    /// sessions. Returns the number of revoked tokens.
    ///
    /// # Errors
    /// The database cannot be written.
    pub(crate) async fn sign_out(
        &self,
        client: &Client,
        viewer: &Viewer,
        refresh_token: Option<&str>,
        everywhere: bool,
    ) -> Result<u64, Error> {
        let ended =
            retry_on_conflict(|| self.leave(client, viewer, refresh_token, everywhere)).await?;
        take_effect().await;
        let user = Some(viewer.id());
        let details = json!({ "everywhere": everywhere });
        self.audit
            .record(AuditAction::LoggedOut, client, user, user, details);
        // Also count the presented access token.
        Ok(ended + 1)
    }

    async fn leave(
        &self,
        client: &Client,
        viewer: &Viewer,
        token: Option<&str>,
        everywhere: bool,
    ) -> Result<u64, Error> {
        let now = self.now();
        let reason = RevocationReason::Logout;
        let (transaction, _guard) = self.writer.begin().await?;
        let user = lock(&transaction, viewer.id()).await?;
        let user = user.ok_or_else(Error::token_invalid)?;
        let latest = now + LONGEST_ACCESS;
        let current = viewer.grant().id();
        let mut sessions = vec![(current, Ord::max(viewer.expires_at(), latest))];
        if let Some(token) = token {
            let other = refresh_token::Entity::find()
                .filter(refresh_token::Column::TokenHash.eq(hashed(token)))
                .filter(refresh_token::Column::UserId.eq(viewer.id()))
                .one(&transaction)
                .await?;
            let other = other.filter(|row| row.family_id != current);
            sessions.extend(other.map(|row| (row.family_id, latest)));
        }
        let mut endings: Vec<Ending> = sessions
            .into_iter()
            .map(|(session, until)| Ending::One(session, until))
            .collect();
        endings.extend(everywhere.then_some(Ending::All(user.token_version + 1)));
        let mut ended = 0;
        for ending in &endings {
            let end = self.end(&transaction, viewer.id(), *ending, reason, now);
            ended += end.await?;
        }
        let events = everywhere.then(|| tokens_revoked(viewer.id(), reason, now));
        let events = events.into_iter().collect();
        self.commit(transaction, (Some(viewer.id()), client), events, now)
            .await?;
        for ending in endings {
            self.ended(ending.of(viewer.id()));
        }
        Ok(ended)
    }

    /// Ends one session, if it belongs to the actor or the actor is an administrator. Returns its owner, and what ends
    /// with the commit.
    ///
    /// # Errors
    /// The database cannot be written.
    pub(crate) async fn end_session(
        &self,
        transaction: &DatabaseTransaction,
        actor: &Viewer,
        session: Uuid,
        now: DateTime<Utc>,
    ) -> Result<Option<(Uuid, Ended)>, Error> {
        let mine = (!actor.is_admin()).then(|| refresh_token::Column::UserId.eq(actor.id()));
        let row = refresh_token::Entity::find()
            .filter(refresh_token::Column::FamilyId.eq(session))
            .filter(live(now))
            .filter(Condition::all().add_option(mine))
            .one(transaction)
            .await?;
        let Some(row) = row else {
            return Ok(None);
        };
        lock(transaction, row.user_id).await?;
        let reason = if row.user_id == actor.id() {
            RevocationReason::Logout
        } else {
            RevocationReason::Admin
        };
        let ending = Ending::One(session, now + LONGEST_ACCESS);
        self.end(transaction, row.user_id, ending, reason, now)
            .await?;
        Ok(Some((row.user_id, ending.of(row.user_id))))
    }

    /// Ends everything on this instance that belongs to sessions whose end is committed. Must be called before the
    /// response of the change is sent.
    pub(crate) fn ended(&self, ended: Ended) {
        if let Ended::One { session, .. } = ended {
            self.revoked.insert(session, ());
        }
        if let Some(bus) = &self.bus {
            bus.watches().end(ended);
        }
    }
}
