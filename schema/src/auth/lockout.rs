//! Slows down password guessing without locking out the owner of the account.
//!
//! Failures are counted per pair of account and network, per network, and per account. Each counter has its own
//! threshold; from then on every further failure doubles the lock time, up to 15 minutes. Failed attempts therefore
//! lock out only users of the same network. An attack from many networks locks the account, except for networks from
//! which its owner has signed in before, of which the latest 20 are stored. Attempts during a lock are neither checked nor counted, so every lock ends.
//!
//! Nonexistent accounts are counted and locked in the same way, so that they cannot be distinguished. The table
//! contains hashes, so that a password typed into the e-mail field is not stored.

use std::{collections::HashMap, net::IpAddr, time::Duration};

use chrono::{DateTime, Utc};
use gathering_entity::lockout;
use sea_orm::{
    ColumnTrait, ConnectionTrait, DbErr, EntityTrait, ExprTrait, QueryFilter, QueryOrder,
    QuerySelect, QueryTrait, Set,
    sea_query::{Expr, OnConflict},
};
use sha2::{Digest, Sha256};

use crate::text;

/// How long failures are counted together, starting with the first one.
const MEMORY: Duration = Duration::from_hours(24);

/// How long a network from which a user has signed in remains known.
const KNOWN: Duration = Duration::from_hours(90 * 24);

/// Maximum number of known networks of an account: those of the latest sign-ins.
const KNOWN_NETWORKS: u64 = 20;

const SHORTEST_LOCK: Duration = Duration::from_mins(1);
const LONGEST_LOCK: Duration = Duration::from_mins(15);

/// The scope of a failure counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Scope {
    /// An account from one network.
    Pair,
    /// A network, for all accounts.
    Network,
    /// An account, from all networks.
    Account,
    /// Not a counter: marks a network from which the account's owner has signed in.
    Known,
}

impl Scope {
    const ALL: [Self; 4] = [Self::Pair, Self::Network, Self::Account, Self::Known];

    /// The number of failures that causes the first lock.
    fn threshold(self) -> i32 {
        match self {
            Self::Pair => 5,
            Self::Network => 20,
            Self::Account => 25,
            Self::Known => i32::MAX,
        }
    }
}

/// A sign-in attempt, identified by hashes.
pub(super) struct Attempt {
    keys: HashMap<Scope, String>,
}

/// The lock status of an attempt.
pub(super) struct LockStatus {
    is_known: bool,
    pub(super) is_locked: bool,
}

impl Attempt {
    /// `account` is the folded e-mail address. All attempts without an address, as on a command line, belong to one
    /// network.
    pub(super) fn new(account: &str, address: Option<IpAddr>) -> Self {
        let network = address.map(text::network).unwrap_or_default();
        let key = |scope: Scope| {
            let [account, network] = match scope {
                Scope::Pair | Scope::Known => [account, &network],
                Scope::Network => ["", &network],
                Scope::Account => [account, ""],
            };
            let rest = hashed(&format!("{scope:?}\n{network}"));
            (scope, format!("{}{rest}", hashed(account)))
        };
        Self {
            keys: Scope::ALL.into_iter().map(key).collect(),
        }
    }

    /// Reads the lock status of the attempt.
    pub(super) async fn status(
        &self,
        db: &impl ConnectionTrait,
        now: DateTime<Utc>,
    ) -> Result<LockStatus, DbErr> {
        let rows = lockout::Entity::find()
            .filter(lockout::Column::Key.is_in(self.keys.values()))
            .filter(lockout::Column::ExpiresAt.gt(now))
            .all(db)
            .await?;
        let row = |scope| rows.iter().find(|row| row.key == self.keys[&scope]);
        let is_locked = |scope| {
            row(scope)
                .and_then(|row| row.locked_until)
                .is_some_and(|until| until > now)
        };
        let is_known = row(Scope::Known).is_some();
        Ok(LockStatus {
            is_known,
            is_locked: is_locked(Scope::Pair)
                || (!is_known && (is_locked(Scope::Account) || is_locked(Scope::Network))),
        })
    }

    /// The key of the attempt's queue, which serializes concurrent guesses so that each one is counted. Attempts from
    /// unknown networks share the queue of the account; attempts from the owner's networks do not wait in it.
    pub(super) fn queue(&self, status: &LockStatus) -> &str {
        &self.keys[if status.is_known {
            &Scope::Pair
        } else {
            &Scope::Account
        }]
    }

    /// Counts a failure. Returns the end of the lock that it causes for this attempt's network, if any.
    pub(super) async fn failed(
        &self,
        db: &impl ConnectionTrait,
        status: &LockStatus,
        now: DateTime<Utc>,
    ) -> Result<Option<DateTime<Utc>>, DbErr> {
        use lockout::Column::{ExpiresAt, Failures, Key, LockedUntil};
        let scopes: &[Scope] = if status.is_known {
            &[Scope::Pair, Scope::Network]
        } else {
            &[Scope::Pair, Scope::Network, Scope::Account]
        };
        let counted = scopes.iter().map(|scope| lockout::ActiveModel {
            key: Set(self.keys[scope].clone()),
            failures: Set(1),
            locked_until: Set(None),
            expires_at: Set(now + MEMORY),
        });
        let old = |column: lockout::Column| Expr::col((lockout::Entity, column));
        let is_over = || old(ExpiresAt).lte(now);
        let one_more = Expr::case(is_over(), 1).finally(old(Failures).add(1));
        let end = Expr::case(is_over(), now + MEMORY).finally(old(ExpiresAt));
        let counted = lockout::Entity::insert_many(counted)
            .on_conflict(
                OnConflict::column(Key)
                    .value(Failures, one_more)
                    .value(ExpiresAt, end)
                    .to_owned(),
            )
            .exec_with_returning(db)
            .await?;
        let mut lock = None;
        for row in counted {
            let scope = scopes.iter().find(|scope| self.keys[*scope] == row.key);
            let threshold = scope.map_or(i32::MAX, |scope| scope.threshold());
            let Ok(beyond) = u32::try_from(row.failures - threshold) else {
                continue;
            };
            let longer = 2_u32.saturating_pow(beyond);
            let until = now + SHORTEST_LOCK.saturating_mul(longer).min(LONGEST_LOCK);
            lockout::Entity::update_many()
                .col_expr(LockedUntil, Expr::value(until))
                .filter(Key.eq(row.key))
                .exec(db)
                .await?;
            lock = std::cmp::Ord::max(lock, Some(until));
        }
        Ok(lock)
    }

    /// Clears the account's failures, and marks the network as known.
    pub(super) async fn succeeded(
        &self,
        db: &impl ConnectionTrait,
        now: DateTime<Utc>,
    ) -> Result<(), DbErr> {
        let forgotten = [&self.keys[&Scope::Pair], &self.keys[&Scope::Account]];
        lockout::Entity::delete_many()
            .filter(lockout::Column::Key.is_in(forgotten))
            .exec(db)
            .await?;
        let known = lockout::ActiveModel {
            key: Set(self.keys[&Scope::Known].clone()),
            failures: Set(0),
            locked_until: Set(None),
            expires_at: Set(now + KNOWN),
        };
        lockout::Entity::insert(known)
            .on_conflict(
                OnConflict::column(lockout::Column::Key)
                    .update_column(lockout::Column::ExpiresAt)
                    .to_owned(),
            )
            .exec_without_returning(db)
            .await?;
        self.forget_networks(db).await
    }
}

impl Attempt {
    /// Forgets the known networks of the account beyond the maximum, except those of the latest sign-ins.
    async fn forget_networks(&self, db: &impl ConnectionTrait) -> Result<(), DbErr> {
        // The row of a known network counts no failures. The first half of its key belongs to the account; a range of
        // keys uses the index, unlike `LIKE`.
        let known = &self.keys[&Scope::Known];
        let account = &known[..known.len() / 2];
        let others = lockout::Entity::find()
            .select_only()
            .column(lockout::Column::Key)
            .filter(lockout::Column::Key.between(account.to_owned(), format!("{account}g")))
            .filter(lockout::Column::Key.ne(known))
            .filter(lockout::Column::Failures.eq(0))
            .order_by_desc(lockout::Column::ExpiresAt)
            .offset(KNOWN_NETWORKS - 1)
            .limit(KNOWN_NETWORKS)
            .into_query();
        lockout::Entity::delete_many()
            .filter(lockout::Column::Key.in_subquery(others))
            .exec(db)
            .await?;
        Ok(())
    }
}

/// Clears all sign-in failures of an account, from all networks, and its known networks.
pub(super) async fn forget(db: &impl ConnectionTrait, account: &str) -> Result<(), DbErr> {
    lockout::Entity::delete_many()
        .filter(lockout::Column::Key.starts_with(hashed(account)))
        .exec(db)
        .await?;
    Ok(())
}

/// One half of a counter's key.
fn hashed(text: &str) -> String {
    text::hex(&Sha256::digest(text)[..16])
}
