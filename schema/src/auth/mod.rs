//! Accounts: who may sign in, who is asking, and what is known about it afterwards.
//!
//! An access token says who somebody is and nothing else. Whether it still counts (its session and its version), and
//! what its user may do, is read from the database for every request, in one statement with all other requests of that
//! moment: nothing about a person is cached that could be out of date, on any instance. Only revocations are cached,
//! since they are never taken back. When the database cannot say, the request is refused.

mod account;
mod credential;
mod lockout;
mod operator;
mod password;
mod session;
mod token;

use crate::Client;
use crate::audit::AuditAction;
use crate::audit::AuditLog;
use crate::audit::AuditWriter;
use crate::audit::audit_log;
use std::{
    hash::{BuildHasher, RandomState},
    sync::Arc,
    time::Duration,
};

use chrono::{DateTime, SubsecRound, Utc};
use gathering_entity::{audit, lockout as lockouts, refresh_token, revoked_token, user};
use sea_orm::{
    ActiveEnum, ColumnTrait, DatabaseConnection, DatabaseTransaction, EntityTrait, Iterable,
    PrimaryKeyToColumn, QueryFilter, QuerySelect, QueryTrait, sea_query::Expr,
};
use serde_json::json;
use tokio::sync::{Mutex, MutexGuard};
use uuid::Uuid;

pub use operator::{Operator, Reason};
pub use password::Hashing;
pub use token::{Keys, WeakKey};

pub(crate) use account::{Amendment, MAX_USER_NAME, Profile, by_email};
pub(crate) use password::check_password;
pub(crate) use session::{SignedIn, in_session, live};

use crate::{
    access::Viewer,
    cache::{Cache, CacheStats},
    clock::Clock,
    db::{Loader, Writer},
    error::Error,
    events::{Bus, Ended, NewEvent, Watch, append},
};
use credential::{Credential, Found};
use lockout::Attempt;
use password::Passwords;
use token::{Claims, TokenError, TokenSigner};

/// How many accounts may be signed in to at once. Attempts on one account take turns, so that parallel guesses are
/// counted one after the other.
const TURNS: usize = 1_024;

/// Most rows that are purged by one statement.
const PURGED: u64 = 1_000;

/// How long a refresh token is remembered after its end, so that one used twice is still recognised.
const REMEMBERED: Duration = Duration::from_hours(7 * 24);

/// How accounts are kept.
#[derive(Clone)]
pub struct Settings {
    /// The keys of the access tokens.
    pub keys: Keys,
    /// Who gives the tokens out, in their claim `iss`.
    pub issuer: String,
    /// Whom the tokens are for, in their claim `aud`.
    pub audience: String,
    /// How long an access token is good.
    pub access_lifetime: Duration,
    /// How long a session lasts without being refreshed.
    pub refresh_lifetime: Duration,
    /// Whether people may register by themselves.
    pub registration: bool,
    /// How passwords are hashed.
    pub hashing: Hashing,
    /// Most revocations kept in memory.
    pub revoked: u64,
    /// Most entries of the audit log that wait to be written.
    pub audit_queue: usize,
    /// How long the audit log is kept.
    pub audit_retention: Duration,
}

/// An access token as it was read, believed or not.
pub(crate) struct TokenClaims(Result<Claims, TokenError>);

impl TokenClaims {
    /// Who the token says its bearer is, if it is ours and its time has come and is not over.
    pub(crate) fn claimed(&self) -> Option<Uuid> {
        self.0.as_ref().ok().map(|claims| claims.sub)
    }
}

/// The accounts of the server.
pub struct Accounts {
    db: DatabaseConnection,
    writer: Writer,
    clock: Clock,
    mint: TokenSigner,
    passwords: Passwords,
    access_lifetime: Duration,
    refresh_lifetime: Duration,
    registration: bool,
    audit_retention: Duration,
    /// Sessions that were ended before their access tokens were.
    revoked: Cache<Uuid, ()>,
    capacity: u64,
    turns: Box<[Mutex<()>]>,
    hasher: RandomState,
    /// Who is told of changes at once; a command line tells nobody, and the server finds them.
    bus: Option<Arc<Bus>>,
    pub(crate) trail: AuditLog,
}

impl Accounts {
    /// # Errors
    /// The parameters of the hash are out of bounds.
    pub(crate) fn new(
        db: DatabaseConnection,
        writer: Writer,
        settings: Settings,
        clock: Clock,
        bus: Option<Arc<Bus>>,
    ) -> Result<(Self, AuditWriter), String> {
        let passwords = Passwords::new(settings.hashing).map_err(|error| error.to_string())?;
        let (trail, recorder) = audit_log(db.clone(), settings.audit_queue, Arc::clone(&clock));
        let accounts = Self {
            db,
            writer,
            clock,
            mint: TokenSigner {
                keys: settings.keys,
                issuer: settings.issuer,
                audience: settings.audience,
            },
            passwords,
            access_lifetime: settings.access_lifetime,
            refresh_lifetime: settings.refresh_lifetime,
            registration: settings.registration,
            audit_retention: settings.audit_retention,
            revoked: Cache::new(settings.revoked, Some(settings.access_lifetime)),
            capacity: settings.revoked,
            turns: (0..TURNS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
            bus,
            trail,
        };
        Ok((accounts, recorder))
    }

    fn now(&self) -> DateTime<Utc> {
        (self.clock)().trunc_subsecs(6)
    }

    /// Writes what a transaction makes true of users. Answers how many events were left out as duplicates.
    async fn append(
        &self,
        transaction: &DatabaseTransaction,
        (actor, client): (Option<Uuid>, &Client),
        facts: Vec<NewEvent>,
        now: DateTime<Utc>,
    ) -> Result<u64, Error> {
        let window = self.bus.as_ref().map(|bus| bus.window());
        let origin = (actor, client.request_id.as_str());
        append(transaction, origin, facts, now, window.unwrap_or_default()).await
    }

    /// To be called after a commit that has announced something.
    fn committed(&self, duplicates: u64) {
        if let Some(bus) = &self.bus {
            bus.committed(duplicates);
        }
    }

    /// Commits a transaction together with what it makes true of users, and tells those who listen.
    async fn commit(
        &self,
        transaction: DatabaseTransaction,
        origin: (Option<Uuid>, &Client),
        facts: Vec<NewEvent>,
        now: DateTime<Utc>,
    ) -> Result<(), Error> {
        let is_told = !facts.is_empty();
        let duplicates = self.append(&transaction, origin, facts, now).await?;
        self.writer.commit(transaction).await?;
        if is_told {
            self.committed(duplicates);
        }
        Ok(())
    }

    async fn turn(&self, attempt: &Attempt) -> Result<MutexGuard<'_, ()>, Error> {
        let standing = attempt.standing(&self.db, self.now()).await?;
        let hash = self.hasher.hash_one(attempt.queue(&standing));
        let place = usize::try_from(hash % TURNS as u64).unwrap_or_default();
        Ok(self.turns[place].lock().await)
    }

    /// The user who presents an access token, the session it belongs to, and when it expires.
    ///
    /// # Errors
    /// `UNAUTHENTICATED` for a token that is not believed, `FORBIDDEN` for a deactivated account, and whatever keeps the
    /// database from answering.
    pub(crate) async fn authenticate(
        &self,
        loader: &Loader,
        presented: TokenClaims,
        client: &Client,
    ) -> Result<(Arc<user::Model>, Uuid, DateTime<Utc>), Error> {
        let reject = |user, why: &str, error: Error| {
            let details = json!({ "reason": why });
            self.trail
                .record(AuditAction::TokenRejected, client, user, user, details);
            error
        };
        let claims = match presented.0 {
            Ok(claims) => claims,
            Err(TokenError::Expired) => {
                return Err(reject(None, "expired", Error::token_expired()));
            }
            Err(TokenError::Invalid) => {
                return Err(reject(None, "invalid", Error::token_invalid()));
            }
        };
        let user = Some(claims.sub);
        if self.revoked.get(&claims.sid).is_some() {
            return Err(reject(user, "revoked", Error::token_revoked()));
        }
        let credential = (claims.sub, claims.sid);
        let found = loader.load_alone(Credential, credential).await?;
        let Some(found) = found else {
            return Err(reject(None, "unknown user", Error::token_invalid()));
        };
        if !found.user.is_active {
            self.is_over(&found, claims.sid, claims.ver);
            return Err(reject(user, "deactivated", Error::deactivated()));
        }
        if self.is_over(&found, claims.sid, claims.ver) {
            return Err(reject(user, "revoked", Error::token_revoked()));
        }
        let until = DateTime::from_timestamp(claims.exp, 0).unwrap_or_default();
        Ok((found.user, claims.sid, until))
    }

    /// Whether somebody who was authenticated before still would be.
    ///
    /// # Errors
    /// `UNAUTHENTICATED` also for a deactivated account, whose sessions have all ended, and whatever keeps the database
    /// from answering.
    pub(crate) async fn still_signed_in(
        &self,
        loader: &Loader,
        viewer: &Viewer,
    ) -> Result<(), Error> {
        if viewer.expires_at() <= self.now() {
            return Err(Error::token_expired());
        }
        let credential = (viewer.id(), viewer.session());
        let found = loader.load_alone(Credential, credential).await?;
        let found = found.ok_or_else(Error::token_invalid)?;
        let version = viewer.user.token_version;
        if self.is_over(&found, viewer.session(), version) || !found.user.is_active {
            return Err(Error::token_revoked());
        }
        Ok(())
    }

    /// Whether a session is over as the database has it. If so, everything that belongs to it on this instance ends.
    fn is_over(&self, found: &Found, session: Uuid, version: i32) -> bool {
        let user = found.user.id;
        if found.is_revoked {
            self.ended(Ended::One { user, session });
        }
        let current = found.user.token_version;
        if current != version {
            let version = current;
            self.ended(Ended::Before { user, version });
        }
        found.is_revoked || current != version
    }

    /// Watches the session that a token names. To be called before the token is authenticated; `None` for a token that is
    /// not believed.
    pub(crate) fn watch(&self, presented: &TokenClaims) -> Option<Watch> {
        let claims = presented.0.as_ref().ok()?;
        let watches = self.bus.as_ref()?.watches();
        Some(watches.watch(claims.sub, claims.sid, claims.ver))
    }

    /// Looks whether the watched sessions of a user still stand, and ends what belongs to those that do not.
    ///
    /// # Errors
    /// The database cannot be read.
    pub(crate) async fn look(&self, loader: &Loader, user: Uuid) -> Result<(), Error> {
        let Some(bus) = &self.bus else {
            return Ok(());
        };
        for session in bus.watches().sessions(user) {
            if let Some(found) = loader.load_alone(Credential, (user, session)).await? {
                let version = found.user.token_version;
                self.ended(Ended::Before { user, version });
                self.is_over(&found, session, version);
            }
        }
        Ok(())
    }

    /// Reads a token that somebody presents. Whether it was revoked is not looked at.
    pub(crate) fn read(&self, token: &str) -> TokenClaims {
        TokenClaims(self.mint.read(token, self.now()))
    }

    /// What the cache of revocations holds and has done.
    pub(crate) fn revoked(&self) -> CacheStats {
        self.revoked.stats()
    }

    /// Most revocations that the cache holds.
    pub(crate) fn revoked_capacity(&self) -> u64 {
        self.capacity
    }

    /// Deletes what has lost its meaning. Other instances may do the same at the same time.
    ///
    /// # Errors
    /// The database cannot be written.
    pub(crate) async fn purge(&self) -> Result<(), Error> {
        let now = self.now();
        let revocations = revoked_token::Column::ExpiresAt.lt(now);
        self.delete::<revoked_token::Entity>(revocations).await?;
        let sessions = refresh_token::Column::ExpiresAt.lt(now - REMEMBERED);
        self.delete::<refresh_token::Entity>(sessions).await?;
        let failures = lockouts::Column::ExpiresAt.lt(now);
        self.delete::<lockouts::Entity>(failures).await?;
        let entries = audit::Column::Id.lt(first_id(now - self.audit_retention));
        self.delete::<audit::Entity>(entries).await
    }

    async fn delete<E: EntityTrait>(&self, condition: Expr) -> Result<(), Error> {
        let key = E::PrimaryKey::iter().next();
        let Some(key) = key.map(PrimaryKeyToColumn::into_column) else {
            return Ok(());
        };
        loop {
            let some = E::find()
                .select_only()
                .column(key)
                .filter(condition.clone())
                .limit(PURGED)
                .into_query();
            let delete = E::delete_many().filter(key.in_subquery(some));
            if delete.exec(&self.db).await?.rows_affected < PURGED {
                return Ok(());
            }
        }
    }
}

/// An account was made, or these fields of it were changed.
fn changed(kind: &'static str, user: &user::Model, changed: &[&str]) -> NewEvent {
    let payload = json!({ "changed": changed, "updatedAt": user.updated_at });
    NewEvent::new(kind, user.id, payload).owner(user.id)
}

/// Access tokens of a user were revoked: all of them, or those of a session whose refresh token was used twice.
fn tokens_revoked(
    user: Uuid,
    reason: revoked_token::RevocationReason,
    now: DateTime<Utc>,
) -> NewEvent {
    let payload = json!({ "reason": reason.to_value(), "at": now });
    NewEvent::new("user.tokens_revoked", user, payload).owner(user)
}

/// The lowest id that a row made at this moment can have.
fn first_id(moment: DateTime<Utc>) -> Uuid {
    let milliseconds = u128::try_from(moment.timestamp_millis()).unwrap_or_default();
    Uuid::from_u128(milliseconds << 80)
}
