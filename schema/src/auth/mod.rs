//! Accounts: who may sign in, authentication, and the audit log.
//!
//! An access token contains only the identity of its user. Whether it is still valid (its session and its version) and
//! what its user may do is read from the database, in one statement together with all concurrent requests. What was read
//! is used for a moment (`recent`), and a change of it is answered after that moment, so that no request sees stale data
//! that was sent after the answer. If the database does not respond, the request is refused.

mod account;
mod api_key;
mod credential;
mod erasure;
mod key_uses;
mod lockout;
mod mail;
mod operator;
mod password;
mod recent;
mod recovery;
mod session;
mod token;

use std::{
    hash::{BuildHasher, RandomState},
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use chrono::{DateTime, SubsecRound, Utc};
use gathering_entity::{
    api_key as keys, audit, lockout as lockouts, mail as mails, refresh_token, revoked_token,
    user::{self, UserRole},
};
use sea_orm::{
    ActiveEnum, ColumnTrait, DatabaseConnection, DatabaseTransaction, EntityTrait, Iterable,
    PrimaryKeyToColumn, QueryFilter, QuerySelect, QueryTrait, sea_query::Expr,
};
use serde_json::json;
use tokio::sync::{Mutex, MutexGuard};
use uuid::Uuid;

pub use api_key::is_api_key;
pub use key_uses::KeyUseWriter;
pub use mail::{Mail, MailError, MailLinks, MailSender, MailSettings, Mailer, Retry, TOKEN_PLACE};
pub use operator::{KeyInput, Operator, Reason};
pub use password::Hashing;
pub use token::{Keys, WeakKey};

pub(crate) use account::{Amendment, MAX_USER_NAME, Profile, by_email};
pub(crate) use api_key::{MAX_KEY_CIRCLES, NewKey, key_details, usable as usable_keys};
pub(crate) use password::check_password;
pub(crate) use recent::take_effect;
pub(crate) use session::{SignedIn, in_session, live};

use api_key::KeyHash;
use credential::{Credential, Found, FoundKey};
use key_uses::KeyUses;
use lockout::Attempt;
use mail::MailQueue;
use password::Passwords;
use recent::{Moment, Recent};
use token::{Claims, TokenError, TokenSigner};

use crate::{
    Client,
    access::{Grant, Viewer},
    audit::{AuditAction, AuditLog, AuditWriter, audit_log},
    cache::{Cache, CacheStats},
    clock::Clock,
    db::{Loader, Writer},
    error::Error,
    events::{Bus, Ended, EventType, NewEvent, Origin, Watch, append},
};

/// Maximum number of accounts in concurrent sign-ins. Attempts on one account are serialized, so that parallel guesses
/// are counted one after the other.
const QUEUES: usize = 1_024;

/// Maximum number of rows purged by one statement.
const PURGED: u64 = 1_000;

/// Maximum number of users whose standing is cached.
const ROLES: u64 = 10_000;

/// Maximum number of API keys that are cached.
const KNOWN_KEYS: u64 = 10_000;

/// The interval at which the quota class of a refused user is read again, in microseconds.
const CHECK_INTERVAL: i64 = 1_000_000;

/// How long an expired refresh token is stored, so that a second use is still recognised.
const REMEMBERED: Duration = Duration::from_hours(7 * 24);

/// How long an expired revocation is stored, so that an instance whose clock is fast does not delete one whose token is
/// still valid on other instances.
const CLOCK_TOLERANCE: Duration = Duration::from_hours(24);

/// The settings of accounts.
#[derive(Clone)]
pub struct Settings {
    /// The keys for access tokens.
    pub keys: Keys,
    /// How mails are sent; `None` if none are.
    pub mail: Option<MailSettings>,
    /// Everything else.
    pub policy: Policy,
}

gathering_settings::settings! {
    /// How accounts are kept, without the keys.
    pub struct Policy {
        /// The issuer of the tokens (the claim `iss`).
        issuer: String = "gathering".to_owned();
        /// The audience of the tokens (the claim `aud`).
        audience: String = "gathering".to_owned();
        /// Lifetime of an access token.
        access_lifetime: Duration = Duration::from_mins(15), from Duration::from_secs(1), to Duration::from_hours(1);
        /// Lifetime of a session that is not refreshed.
        refresh_lifetime: Duration = Duration::from_hours(30 * 24), from Duration::from_secs(1), to Duration::from_hours(365 * 24);
        /// Whether users may register themselves.
        registration: bool = true;
        /// The parameters of password hashing.
        hashing: Hashing, prefix "hash_";
        /// Maximum number of access tokens whose verified claims are cached in memory; with 0, each request verifies its
        /// token's signature.
        verified_tokens: u64 = 10_000, from 0, to 10_000_000;
        /// Maximum number of API keys of a user that are neither revoked nor expired.
        api_keys: u64 = 100, from 0, to 1_000_000;
        /// Maximum number of revoked access tokens cached in memory; all are in the database.
        revoked_tokens: u64 = 10_000, from 1, to 10_000_000;
        /// Maximum number of audit log entries that wait to be written.
        audit_queue: usize = 10_000, from 100, to 1_000_000;
        /// How long entries of the audit log are kept.
        audit_retention: Duration = Duration::from_hours(365 * 24), from Duration::from_hours(1), to Duration::from_hours(3650 * 24);
    }
}

/// A credential that a request presents, before it is checked in the database.
pub(crate) enum Presented {
    /// An access token: its claims, or why it is not accepted.
    Token(Result<Arc<Claims>, TokenError>),
    /// An API key: its hash, unless its checksum is wrong, and the key as it was at an earlier request.
    Key(Option<KeyHash>, Option<Arc<keys::Model>>),
}

impl Presented {
    /// The user in the claims, if the token was issued by this server and has not expired; the user of an API key that
    /// is known.
    pub(crate) fn claimed(&self) -> Option<Uuid> {
        match self {
            Self::Token(claims) => claims.as_ref().ok().map(|claims| claims.sub),
            Self::Key(_, known) => known.as_ref().map(|key| key.user_id),
        }
    }

    /// Whether it is an API key that this process has not seen yet, with a right checksum.
    pub(crate) fn is_new_key(&self) -> bool {
        matches!(self, Self::Key(Some(_), None))
    }
}

/// What is known of a credential from an earlier request.
pub(crate) struct Expected {
    pub(crate) user: Uuid,
    pub(crate) standing: Arc<Standing>,
    pub(crate) grant: Grant,
}

impl Expected {
    /// The quota class of the API key, or else of the user.
    pub(crate) fn quota_class(&self) -> Option<&str> {
        let own = self.grant.quota_class();
        own.or(self.standing.class.as_deref())
    }
}

/// The user of a credential, and what it grants.
pub(crate) type Authenticated = (Arc<user::Model>, Grant);

/// What an operation depends on before its caller is authenticated: the role, with which a query reads early, and the
/// quota class, with which it is charged.
pub(crate) struct Standing {
    pub(crate) role: UserRole,
    pub(crate) class: Option<String>,
    /// When a refusal may next be checked, by the monotonic clock.
    next_check: AtomicI64,
}

impl Standing {
    fn of(user: &user::Model) -> Self {
        Self {
            role: user.role,
            class: user.quota_class.clone(),
            next_check: AtomicI64::new(i64::MIN),
        }
    }

    fn is_of(&self, user: &user::Model) -> bool {
        self.role == user.role && self.class == user.quota_class
    }

    /// Whether a refusal must be checked, because the class may have changed since an earlier request: at most once a
    /// second.
    pub(crate) fn is_check_due(&self, monotonic: i64) -> bool {
        let due = self.next_check.load(Ordering::Relaxed);
        let (next, order) = (monotonic + CHECK_INTERVAL, Ordering::Relaxed);
        monotonic >= due
            && self
                .next_check
                .compare_exchange(due, next, order, order)
                .is_ok()
    }
}

/// The accounts of the server.
pub struct Accounts {
    db: DatabaseConnection,
    writer: Writer,
    clock: Clock,
    signer: TokenSigner,
    passwords: Passwords,
    access_lifetime: Duration,
    refresh_lifetime: Duration,
    registration: bool,
    audit_retention: Duration,
    /// `None` if no mails are sent.
    mails: Option<MailQueue>,
    /// The standing of users at an earlier request. Authentication reads it from the database again.
    roles: Cache<Uuid, Arc<Standing>>,
    /// API keys at an earlier request. Authentication reads them from the database again.
    known_keys: Cache<KeyHash, Arc<keys::Model>>,
    /// The users of valid sessions, and valid API keys.
    recent_sessions: Recent<(Uuid, Uuid), Arc<user::Model>>,
    recent_keys: Recent<KeyHash, FoundKey>,
    key_uses: Arc<KeyUses>,
    max_keys: u64,
    /// Sessions that were ended before their access tokens expired.
    revoked: Cache<Uuid, ()>,
    capacity: u64,
    queues: Box<[Mutex<()>]>,
    hasher: RandomState,
    /// Notified of changes. `None` on a command line: the server then finds the changes by polling.
    bus: Option<Arc<Bus>>,
    pub(crate) audit: AuditLog,
}

impl Accounts {
    /// # Errors
    /// The hashing parameters are out of bounds.
    pub(crate) fn new(
        db: DatabaseConnection,
        writer: Writer,
        settings: Settings,
        clock: Clock,
        bus: Option<Arc<Bus>>,
    ) -> Result<(Self, AuditWriter), String> {
        let Settings { keys, mail, policy } = settings;
        let settings = policy;
        let mails = mail.map(|mail| MailQueue::new(keys.clone(), mail));
        let passwords = Passwords::new(&settings.hashing).map_err(|error| error.to_string())?;
        let (audit, audit_writer) = audit_log(db.clone(), settings.audit_queue, Arc::clone(&clock));
        let accounts = Self {
            db,
            writer,
            clock,
            signer: TokenSigner::new(
                keys,
                settings.issuer,
                settings.audience,
                settings.verified_tokens,
                settings.access_lifetime,
            ),
            passwords,
            access_lifetime: settings.access_lifetime,
            refresh_lifetime: settings.refresh_lifetime,
            registration: settings.registration,
            audit_retention: settings.audit_retention,
            mails,
            roles: Cache::new(ROLES, None),
            known_keys: Cache::new(KNOWN_KEYS, None),
            recent_sessions: Recent::new(),
            recent_keys: Recent::new(),
            key_uses: Arc::default(),
            max_keys: settings.api_keys,
            revoked: Cache::new(settings.revoked_tokens, Some(settings.access_lifetime)),
            capacity: settings.revoked_tokens,
            queues: (0..QUEUES).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
            bus,
            audit,
        };
        Ok((accounts, audit_writer))
    }

    /// Creates the task that writes when API keys were last used.
    pub(crate) fn key_use_writer(&self) -> KeyUseWriter {
        let uses = Arc::clone(&self.key_uses);
        KeyUseWriter::new(uses, self.writer.clone(), Arc::clone(&self.clock))
    }

    /// Creates the task that sends mails; `None` if none are sent.
    pub(crate) fn mail_sender(&self) -> Option<MailSender> {
        let mails = self.mails.as_ref()?;
        let (db, writer) = (self.db.clone(), self.writer.clone());
        Some(mails.sender(db, writer, Arc::clone(&self.clock)))
    }

    fn now(&self) -> DateTime<Utc> {
        (self.clock)().trunc_subsecs(6)
    }

    /// Appends the events of a transaction. Returns the number of events dropped as duplicates.
    async fn append(
        &self,
        transaction: &DatabaseTransaction,
        (actor, client): (Option<Uuid>, &Client),
        events: Vec<NewEvent>,
        now: DateTime<Utc>,
    ) -> Result<u64, Error> {
        let window = self.bus.as_ref().map(|bus| bus.window());
        let origin = Origin {
            user: actor,
            agent: None,
            request: client.request_id.as_str(),
        };
        append(transaction, origin, events, now, window.unwrap_or_default()).await
    }

    /// Must be called after a commit that has appended events.
    fn committed(&self, duplicates: u64) {
        if let Some(bus) = &self.bus {
            bus.committed(duplicates);
        }
    }

    /// Commits a transaction together with its events, and notifies the bus.
    async fn commit(
        &self,
        transaction: DatabaseTransaction,
        origin: (Option<Uuid>, &Client),
        events: Vec<NewEvent>,
        now: DateTime<Utc>,
    ) -> Result<(), Error> {
        let has_events = !events.is_empty();
        let duplicates = self.append(&transaction, origin, events, now).await?;
        self.writer.commit(transaction).await?;
        if has_events {
            self.committed(duplicates);
        }
        Ok(())
    }

    async fn lock_queue(&self, attempt: &Attempt) -> Result<MutexGuard<'_, ()>, Error> {
        let status = attempt.status(&self.db, self.now()).await?;
        Ok(self.take_turn(attempt.queue(&status)).await)
    }

    /// Waits until no other request of this instance has the same key.
    async fn take_turn(&self, key: &str) -> MutexGuard<'_, ()> {
        let hash = self.hasher.hash_one(key);
        let place = usize::try_from(hash % QUEUES as u64).unwrap_or_default();
        self.queues[place].lock().await
    }

    /// The user of a credential that was valid a moment ago, and what it grants.
    pub(crate) fn recent(&self, presented: &Presented) -> Option<Authenticated> {
        let time = self.now();
        let now = Moment::new(time);
        match presented {
            Presented::Token(Ok(claims)) => {
                let user = self.recent_sessions.get(&(claims.sub, claims.sid), now)?;
                let grant = Grant::Session(claims.sid, claims.expires_at());
                (user.token_version == claims.ver).then_some((user, grant))
            }
            Presented::Key(Some(hash), _) => {
                let FoundKey { key, user, .. } = self.recent_keys.get(hash, now)?;
                if !api_key::is_usable(&key, time) {
                    return None;
                }
                self.key_uses.record(&key, time);
                Some((user, Grant::Key(key)))
            }
            Presented::Token(Err(_)) | Presented::Key(None, _) => None,
        }
    }

    /// The user of an access token or an API key, and what it grants, read from the database.
    ///
    /// # Errors
    /// `UNAUTHENTICATED` for a credential that is not accepted, `FORBIDDEN` for a deactivated account, and database errors.
    pub(crate) async fn authenticate(
        &self,
        loader: &Loader,
        presented: Presented,
        client: &Client,
        runs_inside: bool,
    ) -> Result<Authenticated, Error> {
        let reject = |user, why: &str, error: Error| {
            let details = json!({ "reason": why });
            self.audit
                .record(AuditAction::TokenRejected, client, user, user, details);
            error
        };
        let claims = match presented {
            Presented::Token(Ok(claims)) => claims,
            Presented::Token(Err(TokenError::Expired)) => {
                return Err(reject(None, "expired", Error::token_expired()));
            }
            Presented::Token(Err(TokenError::Invalid)) => {
                return Err(reject(None, "invalid", Error::token_invalid()));
            }
            Presented::Key(hash, _) => {
                let key = self.authenticate_key(loader, hash, client, runs_inside);
                return key.await;
            }
        };
        let user = Some(claims.sub);
        if self.revoked.get(&claims.sid).is_some() {
            return Err(reject(user, "revoked", Error::token_revoked()));
        }
        let credential = (claims.sub, claims.sid);
        let read = Moment::new(self.now());
        let found = loader
            .load_alone(Credential, credential, runs_inside)
            .await?;
        let Some(found) = found else {
            return Err(reject(None, "unknown user", Error::token_invalid()));
        };
        if !found.user.is_active && found.user.deleted_at.is_none() {
            self.is_over(&found, claims.sid, claims.ver);
            return Err(reject(user, "deactivated", Error::deactivated()));
        }
        if self.is_over(&found, claims.sid, claims.ver) {
            return Err(reject(user, "revoked", Error::token_revoked()));
        }
        self.learn(&found.user);
        self.recent_sessions
            .insert(credential, Arc::clone(&found.user), read);
        let grant = Grant::Session(claims.sid, claims.expires_at());
        Ok((found.user, grant))
    }

    fn learn(&self, user: &user::Model) {
        let known = self.roles.get(&user.id);
        if !known.is_some_and(|known| known.is_of(user)) {
            self.roles.insert(user.id, Arc::new(Standing::of(user)));
        }
    }

    /// What is known of a credential from an earlier request, if anything.
    pub(crate) fn expected(&self, presented: &Presented) -> Option<Expected> {
        let user = presented.claimed()?;
        let grant = match presented {
            Presented::Token(_) => Grant::unknown(),
            Presented::Key(_, known) => Grant::Key(known.clone()?),
        };
        Some(Expected {
            user,
            standing: self.roles.get(&user)?,
            grant,
        })
    }

    /// Checks that an authenticated viewer is still signed in.
    ///
    /// # Errors
    /// `UNAUTHENTICATED`, also for a deactivated account, because all of its sessions have ended; and database errors.
    pub(crate) async fn still_signed_in(
        &self,
        loader: &Loader,
        viewer: &Viewer,
    ) -> Result<(), Error> {
        let (session, expires_at) = match viewer.grant() {
            Grant::Session(session, expires_at) => (*session, *expires_at),
            Grant::Key(key) => return self.is_key_valid(loader, viewer, key).await,
        };
        if expires_at <= self.now() {
            return Err(Error::token_expired());
        }
        let credential = (viewer.id(), session);
        let found = loader.load_alone(Credential, credential, false).await?;
        let found = found.ok_or_else(Error::token_invalid)?;
        let version = viewer.user.token_version;
        if self.is_over(&found, session, version) || !found.user.is_active {
            return Err(Error::token_revoked());
        }
        Ok(())
    }

    /// Whether a session has ended according to the database. If so, ends everything on this instance that belongs to
    /// it.
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

    /// Watches a session or an API key. Must be called before the credential is authenticated; `None` for one that is
    /// not accepted.
    pub(crate) fn watch(&self, presented: &Presented) -> Option<Watch> {
        let watches = self.bus.as_ref()?.watches();
        Some(match presented {
            Presented::Token(claims) => {
                let claims = claims.as_ref().ok()?;
                watches.watch(claims.sub, claims.sid, Some(claims.ver))
            }
            Presented::Key(_, known) => {
                let key = known.as_ref()?;
                watches.watch(key.user_id, key.id, None)
            }
        })
    }

    /// Checks whether the watched sessions of a user are still valid, and ends everything that belongs to the others.
    ///
    /// # Errors
    /// The database cannot be read.
    pub(crate) async fn check_watched(&self, loader: &Loader, user: Uuid) -> Result<(), Error> {
        let Some(bus) = &self.bus else {
            return Ok(());
        };
        for session in bus.watches().sessions(user) {
            if let Some(found) = loader
                .load_alone(Credential, (user, session), false)
                .await?
            {
                let version = found.user.token_version;
                self.ended(if found.user.is_active {
                    Ended::Before { user, version }
                } else {
                    Ended::All { user, version }
                });
                self.is_over(&found, session, version);
            }
        }
        Ok(())
    }

    /// Decodes an access token or an API key. Does not check whether it was revoked.
    pub(crate) fn read(&self, token: &str) -> Presented {
        if is_api_key(token) {
            let hash = api_key::hash(token);
            let known = hash.and_then(|hash| self.known_keys.get(&hash));
            let known = known.filter(|key| api_key::is_usable(key, self.now()));
            return Presented::Key(hash, known);
        }
        Presented::Token(self.signer.read(token, self.now()))
    }

    /// Statistics of the cache of API keys.
    pub(crate) fn known_keys(&self) -> CacheStats {
        self.known_keys.stats()
    }

    /// Statistics of the cache of valid sessions.
    pub(crate) fn recent_sessions(&self) -> CacheStats {
        self.recent_sessions.stats()
    }

    /// Statistics of the cache of valid API keys.
    pub(crate) fn recent_keys(&self) -> CacheStats {
        self.recent_keys.stats()
    }

    /// Statistics of the cache of roles and quota classes.
    pub(crate) fn roles(&self) -> CacheStats {
        self.roles.stats()
    }

    /// Statistics of the cache of verified tokens.
    pub(crate) fn verified(&self) -> CacheStats {
        self.signer.verified()
    }

    /// Statistics of the revocation cache.
    pub(crate) fn revoked(&self) -> CacheStats {
        self.revoked.stats()
    }

    /// The capacity of the revocation cache.
    pub(crate) fn revoked_capacity(&self) -> u64 {
        self.capacity
    }

    /// Deletes expired rows. Other instances may do so at the same time.
    ///
    /// # Errors
    /// The database cannot be written.
    pub(crate) async fn purge(&self) -> Result<(), Error> {
        let now = self.now();
        let revocations = revoked_token::Column::ExpiresAt.lt(now - CLOCK_TOLERANCE);
        self.delete::<revoked_token::Entity>(revocations).await?;
        let sessions = refresh_token::Column::ExpiresAt.lt(now - REMEMBERED);
        self.delete::<refresh_token::Entity>(sessions).await?;
        let failures = lockouts::Column::ExpiresAt.lt(now);
        self.delete::<lockouts::Entity>(failures).await?;
        let mails = mails::Column::ExpiresAt.lt(now);
        self.delete::<mails::Entity>(mails).await?;
        let past = now - self.audit_retention;
        for ended in [keys::Column::RevokedAt, keys::Column::ExpiresAt] {
            self.delete::<keys::Entity>(ended.lt(past)).await?;
        }
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

/// The event for an account that was created or has changed fields.
fn changed(kind: EventType, user: &user::Model, changed: &[&str]) -> NewEvent {
    let payload = json!({ "changed": changed, "updatedAt": user.updated_at });
    NewEvent::new(kind, user.id, payload).owner(user.id)
}

/// The event for revoked access tokens of a user: all of them, or those of a session whose refresh token was used
/// twice.
fn tokens_revoked(
    user: Uuid,
    reason: revoked_token::RevocationReason,
    now: DateTime<Utc>,
) -> NewEvent {
    let payload = json!({ "reason": reason.to_value(), "at": now });
    NewEvent::new(EventType::UserTokensRevoked, user, payload).owner(user)
}

/// The lowest possible id of a row created at this time.
fn first_id(moment: DateTime<Utc>) -> Uuid {
    let milliseconds = u128::try_from(moment.timestamp_millis()).unwrap_or_default();
    Uuid::from_u128(milliseconds << 80)
}
