//! API keys, with which programs authenticate.
//!
//! A key is `gth_`, 30 random characters and a checksum of them, so that scanners recognise leaked keys, and a mistyped
//! key is refused without a statement. The database has only the SHA-256 of a key: a key has 178 random bits, which no
//! slow hash needs to protect.
//!
//! Everything about a key except its revocation and its last use is fixed when it is created, so it is cached. Whether
//! a key is still valid is read from the database, as for sessions.

use std::sync::Arc;

use chrono::{DateTime, SubsecRound, Utc};
use gathering_entity::{List, agent, api_key, api_key_circle, circle, user::UserRole};
use sea_orm::{
    ActiveModelTrait, ColumnTrait, Condition, DatabaseTransaction, EntityTrait, IntoActiveModel,
    PaginatorTrait, QueryFilter, QueryOrder, QuerySelect,
    sea_query::{Expr, LockType},
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::{
    access::{ApiKeyScope, Grant, Viewer, circles_of},
    audit::{AuditAction, Client},
    auth::{
        Accounts, Authenticated, Presented,
        account::by_email,
        credential::{FoundKey, KeyCredential},
        recent::Moment,
        session::lock,
        take_effect,
    },
    db::{Loader, retry_on_conflict},
    error::Error,
    events::{Ended, notify_ended},
    id::Kind,
    input::{Check, UserError, UserErrorCode, entry},
    text,
};

/// Maximum length of a key's name, in characters.
const MAX_NAME: usize = 100;

/// Maximum number of circles to which a key is limited.
pub(crate) const MAX_KEY_CIRCLES: usize = 100;

/// The start of every key.
const PREFIX: &str = "gth_";

/// The number of random characters: 178 bits.
const RANDOM: usize = 30;

/// The number of characters of the checksum.
const CHECKSUM: usize = 6;

/// The number of characters of a key that are stored and shown.
const SHOWN: usize = PREFIX.len() + 6;

const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// The SHA-256 of a key, in hexadecimal.
pub(super) type KeyHash = [u8; 64];

/// Whether a text is an API key, or starts like one.
pub fn is_api_key(text: &str) -> bool {
    text.starts_with(PREFIX)
}

/// The hash of a key; `None` if its checksum is wrong.
pub(super) fn hash(key: &str) -> Option<KeyHash> {
    let rest = key.strip_prefix(PREFIX)?;
    let (random, sum) = rest.split_at_checked(RANDOM)?;
    (sum.as_bytes() == checksum(random)).then(|| digest(key))
}

/// The hash in a row.
pub(super) fn hash_of(row: &api_key::Model) -> Option<KeyHash> {
    row.secret_hash.as_bytes().try_into().ok()
}

fn digest(key: &str) -> KeyHash {
    let digest = text::hex(&Sha256::digest(key));
    let mut hash = [0; 64];
    hash.copy_from_slice(digest.as_bytes());
    hash
}

/// The CRC-32 of the random part in base62, as in GitHub's tokens.
fn checksum(random: &str) -> [u8; CHECKSUM] {
    let mut rest = crc32fast::hash(random.as_bytes()) as usize;
    let mut sum = [0; CHECKSUM];
    for digit in sum.iter_mut().rev() {
        *digit = ALPHABET[rest % ALPHABET.len()];
        rest /= ALPHABET.len();
    }
    sum
}

/// A new key.
fn random_key() -> Result<String, getrandom::Error> {
    let mut random = String::with_capacity(RANDOM);
    while random.len() < RANDOM {
        let mut bytes = [0; RANDOM];
        getrandom::fill(&mut bytes)?;
        // Bytes from 248 on would make some characters more likely than others.
        let fair = bytes.into_iter().filter(|byte| *byte < 248);
        let digits = fair.map(|byte| char::from(ALPHABET[usize::from(byte) % ALPHABET.len()]));
        random.extend(digits.take(RANDOM - random.len()));
    }
    let sum = checksum(&random).map(char::from);
    Ok(PREFIX.chars().chain(random.chars()).chain(sum).collect())
}

/// Condition: the key can be used.
pub(crate) fn usable(now: DateTime<Utc>) -> Condition {
    let lasts = Condition::any()
        .add(api_key::Column::ExpiresAt.is_null())
        .add(api_key::Column::ExpiresAt.gt(now));
    Condition::all()
        .add(api_key::Column::RevokedAt.is_null())
        .add(lasts)
}

/// Whether a key is neither revoked nor expired.
pub(super) fn is_usable(key: &api_key::Model, now: DateTime<Utc>) -> bool {
    key.revoked_at.is_none() && key.expires_at.is_none_or(|at| at > now)
}

/// The input of a new key.
pub(crate) struct NewKey<'a> {
    pub(crate) name: &'a str,
    pub(crate) scopes: &'a [ApiKeyScope],
    pub(crate) agent: Option<Uuid>,
    /// The circles to which the key is limited.
    pub(crate) circles: Option<Vec<Uuid>>,
    pub(crate) expires_at: Option<DateTime<Utc>>,
    pub(crate) quota_class: Option<&'a str>,
    /// Whether the class is configured, and the creator may choose one.
    pub(crate) is_class_allowed: bool,
}

impl NewKey<'_> {
    /// The checks that need no other rows. Returns the name.
    fn check(&self, may_administer: bool, now: DateTime<Utc>) -> Result<String, Vec<UserError>> {
        let mut check = Check::default();
        let name = check.line("name", self.name, MAX_NAME);
        if self.quota_class.is_some() && !self.is_class_allowed {
            let message = "`quotaClass` must be a quota class of the server's configuration, chosen by an administrator.";
            check.fault("quotaClass", UserErrorCode::Invalid, message);
        }
        if self.scopes.is_empty() {
            check.required("scopes");
        } else if self.scopes.contains(&ApiKeyScope::Admin) {
            if !may_administer {
                let message = "The scope ADMIN requires that you and the user are administrators.";
                check.fault("scopes", UserErrorCode::Invalid, message);
            } else if self.agent.is_some() || self.circles.is_some() {
                let message = "The scope ADMIN cannot be combined with `circleIds` or `agentId`.";
                check.fault("scopes", UserErrorCode::Invalid, message);
            }
        }
        match self.circles.as_deref() {
            Some([]) => check.required("circleIds"),
            Some(circles) if circles.len() > MAX_KEY_CIRCLES => {
                let message = format!("`circleIds` must have at most {MAX_KEY_CIRCLES} entries.");
                check.fault("circleIds", UserErrorCode::TooMany, message);
            }
            _ => {}
        }
        if self.expires_at.is_some_and(|at| at <= now) {
            let message = "`expiresAt` must be in the future.";
            check.fault("expiresAt", UserErrorCode::OutOfRange, message);
        }
        check.faults()?;
        Ok(name)
    }

    /// Checks that the agent belongs to the user, and that the user can read the circles.
    async fn check_limits(
        &self,
        transaction: &DatabaseTransaction,
        user: Uuid,
    ) -> Result<(), Error> {
        if let Some(id) = self.agent {
            // Locked, so that a transfer of the agent revokes the key.
            let own = agent::Entity::find_by_id(id)
                .filter(agent::Column::OwnerId.eq(user))
                .lock(LockType::Share);
            let own = own.one(transaction).await?;
            own.ok_or_else(|| Error::not_found("agentId"))?;
        }
        let Some(circles) = &self.circles else {
            return Ok(());
        };
        let known: Vec<Uuid> = circle::Entity::find()
            .select_only()
            .column(circle::Column::Id)
            .filter(circles_of(user))
            .filter(circle::Column::Id.is_in(circles.iter().copied()))
            .into_tuple()
            .all(transaction)
            .await?;
        match circles.iter().position(|id| !known.contains(id)) {
            Some(place) => Err(Error::not_found(&entry("circleIds", place))),
            None => Ok(()),
        }
    }

    /// Inserts the key. Returns its row and its secret.
    async fn insert(
        &self,
        transaction: &DatabaseTransaction,
        user: Uuid,
        name: String,
        now: DateTime<Utc>,
    ) -> Result<(api_key::Model, String), Error> {
        let secret = random_key().map_err(|error| {
            tracing::error!(%error, "the system's random number generator failed");
            Error::internal()
        })?;
        let scopes = ApiKeyScope::ALL.into_iter();
        let scopes = scopes.filter(|scope| self.scopes.contains(scope));
        let row = api_key::Model {
            id: Uuid::now_v7(),
            created_at: now,
            user_id: user,
            agent_id: self.agent,
            name,
            secret_hash: text::hex(&Sha256::digest(&secret)),
            prefix: secret[..SHOWN].to_owned(),
            scopes: List(scopes.map(|scope| scope.name().to_owned()).collect()),
            is_limited: self.circles.is_some(),
            quota_class: self.quota_class.map(str::to_owned),
            expires_at: self.expires_at.map(|at| at.trunc_subsecs(6)),
            last_used_at: None,
            revoked_at: None,
        };
        let row = row.into_active_model().insert(transaction).await?;
        let limits = self.circles.iter().flatten().map(|circle| {
            let limit = api_key_circle::Model {
                key_id: row.id,
                circle_id: *circle,
            };
            limit.into_active_model()
        });
        let limits: Vec<_> = limits.collect();
        if !limits.is_empty() {
            api_key_circle::Entity::insert_many(limits)
                .exec_without_returning(transaction)
                .await?;
        }
        Ok((row, secret))
    }
}

/// The audit log details of a key.
pub(crate) fn key_details(row: &api_key::Model) -> Value {
    json!({
        "name": row.name,
        "prefix": row.prefix,
        "scopes": row.scopes,
        "user": Kind::User.id(row.user_id).as_str(),
        "agent": row.agent_id.map(|id| Kind::Agent.id(id).to_string()),
    })
}

impl Accounts {
    /// Creates a key of a user, whose row must be locked. `may_administer` is whether the key may have the scope ADMIN.
    /// Returns the row and the secret, or what is wrong with the input.
    ///
    /// # Errors
    /// `NOT_FOUND` for an agent of another user and for a circle that the user cannot read; and database errors.
    pub(crate) async fn create_key(
        &self,
        transaction: &DatabaseTransaction,
        (user, may_administer): (Uuid, bool),
        new: &NewKey<'_>,
        now: DateTime<Utc>,
    ) -> Result<Result<(api_key::Model, String), Vec<UserError>>, Error> {
        let texts = match new.check(may_administer, now) {
            Ok(texts) => texts,
            Err(faults) => return Ok(Err(faults)),
        };
        new.check_limits(transaction, user).await?;
        let keys = api_key::Entity::find()
            .filter(api_key::Column::UserId.eq(user))
            .filter(usable(now));
        if keys.count(transaction).await? >= self.max_keys {
            let message = format!(
                "The user has {} API keys, which is the maximum. Revoke one first.",
                self.max_keys
            );
            let fault = UserError::general(UserErrorCode::LimitReached, message);
            return Ok(Err(vec![fault]));
        }
        new.insert(transaction, user, texts, now).await.map(Ok)
    }

    /// Revokes a key, whose row must be locked. Returns what ends with the commit, or `None` if it was revoked before.
    /// Must be followed by [`take_effect`] before the answer, which [`Change`](crate::data::Change) does by itself.
    pub(crate) async fn revoke_key(
        &self,
        transaction: &DatabaseTransaction,
        key: &api_key::Model,
        now: DateTime<Utc>,
    ) -> Result<Option<Ended>, Error> {
        if key.revoked_at.is_some() {
            return Ok(None);
        }
        api_key::Entity::update_many()
            .col_expr(api_key::Column::RevokedAt, Expr::value(now))
            .filter(api_key::Column::Id.eq(key.id))
            .exec(transaction)
            .await?;
        let ended = Ended::One {
            user: key.user_id,
            session: key.id,
        };
        notify_ended(transaction, ended).await?;
        Ok(Some(ended))
    }

    /// Revokes all keys of a user or of an agent, whose row must be locked. Returns them, each with what ends with the
    /// commit.
    pub(crate) async fn revoke_keys(
        &self,
        transaction: &DatabaseTransaction,
        of: Expr,
        now: DateTime<Utc>,
    ) -> Result<Vec<(api_key::Model, Ended)>, Error> {
        let keys = api_key::Entity::find()
            .filter(of)
            .filter(api_key::Column::RevokedAt.is_null())
            .order_by_asc(api_key::Column::Id)
            .lock(LockType::NoKeyUpdate);
        let mut revoked = Vec::new();
        for key in keys.all(transaction).await? {
            if let Some(ended) = self.revoke_key(transaction, &key, now).await? {
                revoked.push((key, ended));
            }
        }
        Ok(revoked)
    }

    /// As [`Accounts::create_key`], for the server's operator, who gives the user's e-mail address; `None` if there is no
    /// such user.
    pub(super) async fn operate_create_key(
        &self,
        client: &Client,
        email: &str,
        new: &NewKey<'_>,
    ) -> Result<Option<Result<(api_key::Model, String), Vec<UserError>>>, Error> {
        let Some(user) = by_email(&self.db, email).await? else {
            return Ok(None);
        };
        let create = || async {
            let now = self.now();
            let (transaction, _guard) = self.writer.begin().await?;
            lock(&transaction, user.id).await?;
            let owner = (user.id, user.role == UserRole::Admin);
            let created = self.create_key(&transaction, owner, new, now).await?;
            self.writer.commit(transaction).await?;
            Ok(created)
        };
        let created = retry_on_conflict(create).await?;
        if let Ok((row, _)) = &created {
            let target = Some((Kind::ApiKey, row.id));
            let details = key_details(row);
            self.audit
                .record_of(AuditAction::ApiKeyCreated, client, None, target, details);
        }
        Ok(Some(created))
    }

    /// The keys of a user that can be used, newest first; `None` if there is no such user.
    pub(super) async fn keys_by_email(
        &self,
        email: &str,
    ) -> Result<Option<Vec<api_key::Model>>, Error> {
        let Some(user) = by_email(&self.db, email).await? else {
            return Ok(None);
        };
        let keys = api_key::Entity::find()
            .filter(api_key::Column::UserId.eq(user.id))
            .filter(usable(self.now()))
            .order_by_desc(api_key::Column::Id);
        Ok(Some(keys.all(&self.db).await?))
    }

    /// As [`Accounts::revoke_key`], for the server's operator; false if there is no such key.
    pub(super) async fn operate_revoke_key(
        &self,
        client: &Client,
        id: Uuid,
    ) -> Result<bool, Error> {
        let revoke = || async {
            let (transaction, _guard) = self.writer.begin().await?;
            let Some(row) = api_key::Entity::find_by_id(id).one(&transaction).await? else {
                return Ok(None);
            };
            let ended = self.revoke_key(&transaction, &row, self.now()).await?;
            self.writer.commit(transaction).await?;
            Ok(Some((row, ended)))
        };
        let Some((row, ended)) = retry_on_conflict(revoke).await? else {
            return Ok(false);
        };
        take_effect().await;
        if ended.is_some() {
            let target = Some((Kind::ApiKey, id));
            let details = key_details(&row);
            self.audit
                .record_of(AuditAction::ApiKeyRevoked, client, None, target, details);
        }
        Ok(true)
    }

    /// Looks up a key that this process has not seen yet, so that its streams can be watched and its requests charged
    /// to its user.
    pub(crate) async fn identify(&self, loader: &Loader, presented: &mut Presented) {
        if let Presented::Key(Some(hash), known @ None) = presented
            && let Ok(Some(found)) = loader.load_alone(KeyCredential, *hash, false).await
            && found.is_active
            && is_usable(&found.key, self.now())
        {
            *known = Some(found.key);
        }
    }

    /// Authenticates a key.
    pub(super) async fn authenticate_key(
        &self,
        loader: &Loader,
        hash: Option<KeyHash>,
        client: &Client,
        runs_inside: bool,
    ) -> Result<Authenticated, Error> {
        let reject = |user, why: &str, error: Error| {
            if let Some(hash) = hash {
                // The network pays for further requests with the key.
                self.known_keys.remove(&hash);
            }
            let details = json!({ "reason": why });
            self.audit
                .record(AuditAction::TokenRejected, client, user, user, details);
            error
        };
        let Some(hash) = hash else {
            return Err(reject(None, "invalid API key", Error::key_invalid()));
        };
        let read = Moment::new(self.now());
        let found = loader.load_alone(KeyCredential, hash, runs_inside).await?;
        let Some(found) = found else {
            return Err(reject(None, "unknown API key", Error::key_invalid()));
        };
        let FoundKey {
            key,
            user,
            is_active,
        } = found.clone();
        let (id, session) = (Some(user.id), key.id);
        if key.revoked_at.is_some() {
            self.ended(Ended::One {
                user: user.id,
                session,
            });
            return Err(reject(id, "revoked API key", Error::key_revoked()));
        }
        let now = self.now();
        if key.expires_at.is_some_and(|at| at <= now) {
            return Err(reject(id, "expired API key", Error::key_expired()));
        }
        if !is_active {
            return Err(reject(id, "deactivated", Error::deactivated()));
        }
        self.learn(&user);
        if self.known_keys.get(&hash).is_none() {
            self.known_keys.insert(hash, Arc::clone(&key));
        }
        self.recent_keys.insert(hash, found, read);
        self.key_uses.record(&key, now);
        Ok((user, Grant::Key(key)))
    }

    /// Checks that a key which authenticated a viewer still gives the same rights.
    pub(super) async fn is_key_valid(
        &self,
        loader: &Loader,
        viewer: &Viewer,
        key: &api_key::Model,
    ) -> Result<(), Error> {
        if key.expires_at.is_some_and(|at| at <= self.now()) {
            return Err(Error::key_expired());
        }
        let hash = hash_of(key).ok_or_else(Error::key_invalid)?;
        let found = loader.load_alone(KeyCredential, hash, false).await?;
        let is_valid = found.is_some_and(|found| {
            found.key.revoked_at.is_none() && found.is_active && found.user.role == viewer.user.role
        });
        if is_valid {
            Ok(())
        } else {
            Err(Error::key_revoked())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn keys_are_distinct_and_have_a_valid_checksum() {
        let keys: HashSet<String> = (0..1_000).map(|_| random_key().expect("a key")).collect();
        assert_eq!(keys.len(), 1_000);
        for key in &keys {
            assert_eq!(key.len(), PREFIX.len() + RANDOM + CHECKSUM);
            assert!(
                key[PREFIX.len()..]
                    .bytes()
                    .all(|byte| ALPHABET.contains(&byte))
            );
            assert!(is_api_key(key));
            assert_eq!(hash(key), Some(digest(key)));
        }
    }

    #[test]
    fn a_changed_key_is_refused() {
        let key = random_key().expect("a key");
        for place in PREFIX.len()..key.len() {
            let other = if key.as_bytes()[place] == b'0' {
                "1"
            } else {
                "0"
            };
            let mut changed = key.clone();
            changed.replace_range(place..=place, other);
            assert_eq!(hash(&changed), None, "{changed}");
        }
        let longer = format!("{key}0");
        for text in [
            "",
            PREFIX,
            "gth_ß",
            &key[1..],
            &key[..key.len() - 1],
            &longer,
        ] {
            assert_eq!(hash(text), None, "{text}");
        }
    }

    #[test]
    fn the_checksum_is_the_crc_32_in_base62() {
        // The check value of CRC-32 is 0xCBF43926.
        assert_eq!(&checksum("123456789"), b"3jZRME");
    }
}
