//! API keys, with which programs authenticate.
//!
//! A key is `gth_`, 30 random characters and a checksum of them, so that scanners recognise leaked keys, and a mistyped
//! key is refused without a statement. The database has only the SHA-256 of a key: a key has 178 random bits, which no
//! slow hash needs to protect.
//!
//! Everything about a key except its revocation and its last use is fixed when it is created, so it is cached. Whether
//! a key is still valid is read from the database for every request, as for sessions.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use chrono::{DateTime, SubsecRound, TimeDelta, Utc};
use futures_util::future::BoxFuture;
use gathering_entity::api_key;
use sea_orm::{
    ColumnTrait, Condition, DatabaseTransaction, EntityTrait, PaginatorTrait, QueryFilter,
    sea_query::Expr,
};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::{sync::Notify, time::sleep};
use uuid::Uuid;

use crate::{
    access::{Grant, Viewer},
    audit::{AuditAction, Client},
    auth::{Accounts, Authenticated, Presented, credential::KeyCredential},
    clock::Clock,
    db::{Loader, Writer},
    error::Error,
    events::{Ended, notify_ended},
    text,
};

/// The start of every key.
const PREFIX: &str = "gth_";

/// The number of random characters: 178 bits.
const RANDOM: usize = 30;

/// The number of characters of the checksum.
const CHECKSUM: usize = 6;

/// The number of characters of a key that are stored and shown.
const SHOWN: usize = PREFIX.len() + 6;

const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// The precision of the last use of a key.
const USE_PRECISION: TimeDelta = TimeDelta::minutes(1);

/// How long uses are collected before they are written together.
const USES_COLLECTED: Duration = Duration::from_secs(1);

/// Maximum number of uses that wait to be written. Further ones are dropped: the next use of the key is recorded.
const USES_WAITING: usize = 10_000;

/// Maximum number of uses in one statement.
const USES_WRITTEN: usize = 1_000;

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

/// The uses of keys that are not written yet.
#[derive(Default)]
pub(crate) struct KeyUses {
    waiting: Mutex<HashSet<Uuid>>,
    added: Notify,
}

impl KeyUses {
    /// Records the use of a key, at most once a minute.
    fn record(&self, key: &api_key::Model, now: DateTime<Utc>) {
        let is_recent = |at: DateTime<Utc>| now.signed_duration_since(at) < USE_PRECISION;
        if key.last_used_at.is_some_and(is_recent) {
            return;
        }
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() < USES_WAITING && waiting.insert(key.id) {
            self.added.notify_one();
        }
    }

    fn take(&self) -> Vec<Uuid> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.drain().collect()
    }
}

/// Writes when API keys were last used, apart from the requests that use them.
pub struct KeyUseWriter {
    uses: Arc<KeyUses>,
    writer: Writer,
    clock: Clock,
}

impl KeyUseWriter {
    pub(super) fn new(uses: Arc<KeyUses>, writer: Writer, clock: Clock) -> Self {
        Self {
            uses,
            writer,
            clock,
        }
    }

    /// Writes uses until it is dropped.
    pub fn run(self) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            loop {
                self.uses.added.notified().await;
                sleep(USES_COLLECTED).await;
                for keys in self.uses.take().chunks(USES_WRITTEN) {
                    // The cause has been logged. The next use of the key is recorded again.
                    let _ = self.write(keys).await;
                }
            }
        })
    }

    async fn write(&self, keys: &[Uuid]) -> Result<(), Error> {
        let now = (self.clock)().trunc_subsecs(6);
        let (transaction, _guard) = self.writer.begin().await?;
        let is_due = Condition::any()
            .add(api_key::Column::LastUsedAt.is_null())
            .add(api_key::Column::LastUsedAt.lte(now - USE_PRECISION));
        api_key::Entity::update_many()
            .col_expr(api_key::Column::LastUsedAt, Expr::value(now))
            .filter(api_key::Column::Id.is_in(keys.iter().copied()))
            .filter(is_due)
            .exec(&transaction)
            .await?;
        self.writer.commit(transaction).await
    }
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

/// The secret, the hash and the first characters of a new key.
pub(crate) struct NewSecret {
    pub(crate) secret: String,
    pub(crate) hash: String,
    pub(crate) prefix: String,
}

impl NewSecret {
    /// # Errors
    /// `INTERNAL` if the system's random number generator failed.
    pub(crate) fn new() -> Result<Self, Error> {
        let secret = random_key().map_err(|error| {
            tracing::error!(%error, "the system's random number generator failed");
            Error::internal()
        })?;
        Ok(Self {
            hash: text::hex(&Sha256::digest(&secret)),
            prefix: secret[..SHOWN].to_owned(),
            secret,
        })
    }
}

impl Accounts {
    /// Maximum number of keys of a user that can be used.
    pub(crate) fn max_keys(&self) -> u64 {
        self.max_keys
    }

    /// The number of keys of a user that can be used. The user's row must be locked.
    pub(crate) async fn count_keys(
        &self,
        transaction: &DatabaseTransaction,
        user: Uuid,
        now: DateTime<Utc>,
    ) -> Result<u64, Error> {
        let keys = api_key::Entity::find()
            .filter(api_key::Column::UserId.eq(user))
            .filter(usable(now));
        Ok(keys.count(transaction).await?)
    }

    /// Revokes a key, whose row must be locked. Returns what ends with the commit, or `None` if it was revoked before.
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

    /// Looks up a key that this process has not seen yet, so that its streams can be watched and its requests charged
    /// to its user.
    pub(crate) async fn identify(&self, loader: &Loader, presented: &mut Presented) {
        if let Presented::Key(Some(hash), known @ None) = presented
            && let Ok(Some(found)) = loader.load_alone(KeyCredential, *hash, false).await
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
            let details = json!({ "reason": why });
            self.audit
                .record(AuditAction::TokenRejected, client, user, user, details);
            error
        };
        let Some(hash) = hash else {
            return Err(reject(None, "invalid API key", Error::key_invalid()));
        };
        let found = loader.load_alone(KeyCredential, hash, runs_inside).await?;
        let Some(found) = found else {
            return Err(reject(None, "unknown API key", Error::key_invalid()));
        };
        let (key, user) = (found.key, found.user);
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
        if !user.is_active {
            return Err(reject(id, "deactivated", Error::deactivated()));
        }
        self.learn_role(&user);
        if self.known_keys.get(&hash).is_none() {
            self.known_keys.insert(hash, Arc::clone(&key));
        }
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
            found.key.revoked_at.is_none()
                && found.user.is_active
                && found.user.role == viewer.user.role
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
