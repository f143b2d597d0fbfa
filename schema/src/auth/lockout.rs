//! Guessing passwords is slowed down, without locking the rightful owner out.
//!
//! Failures are counted for the pair of an account and a network, for the network as a whole, and for the account as a
//! whole; each has its own threshold, from which on every further failure locks it for twice as long, up to 15 minutes.
//! Somebody who fails therefore locks nobody out but those who share their network. An attack from many networks locks
//! the account, but not for networks from which its owner has signed in before. Attempts on what is locked are neither
//! checked nor counted, so a lock always ends.
//!
//! Accounts that do not exist are counted and locked like others: nothing tells them apart. The table holds hashes, so
//! that a password which somebody types in place of their e-mail address is not kept.

use std::{collections::HashMap, net::IpAddr, time::Duration};

use chrono::{DateTime, Utc};
use gathering_entity::lockout;
use sea_orm::{
    ColumnTrait, ConnectionTrait, DbErr, EntityTrait, ExprTrait, QueryFilter, Set,
    sea_query::{Expr, OnConflict},
};
use sha2::{Digest, Sha256};

use crate::text;

/// How long failures are counted together, from the first on.
const MEMORY: Duration = Duration::from_hours(24);

/// How long a network from which a user signed in is known.
const KNOWN: Duration = Duration::from_hours(90 * 24);

const SHORTEST_LOCK: Duration = Duration::from_mins(1);
const LONGEST_LOCK: Duration = Duration::from_mins(15);

/// What failures are counted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Scope {
    /// An account as seen from a network.
    Pair,
    /// A network, whatever the account.
    Network,
    /// An account, whatever the network.
    Account,
    /// Nothing: the mark of a network from which an account's owner has signed in.
    Known,
}

impl Scope {
    const ALL: [Self; 4] = [Self::Pair, Self::Network, Self::Account, Self::Known];

    /// The failure that locks for the first time.
    fn threshold(self) -> i32 {
        match self {
            Self::Pair => 5,
            Self::Network => 20,
            Self::Account => 25,
            Self::Known => i32::MAX,
        }
    }
}

/// Somebody who tries to sign in to an account, by hashes.
pub(super) struct Attempt {
    keys: HashMap<Scope, String>,
}

/// Whether an attempt may be made.
pub(super) struct LockStatus {
    is_known: bool,
    pub(super) is_locked: bool,
}

impl Attempt {
    /// `account` is the folded e-mail address. Without a network, as on a command line, everybody comes from the same.
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

    /// Looks up how the attempt stands.
    pub(super) async fn standing(
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

    /// The queue in which the attempt waits, so that guesses made at once are counted one after the other. Whoever signs
    /// in from where the owner does not waits with all others who do; the owner does not wait behind them.
    pub(super) fn queue(&self, standing: &LockStatus) -> &str {
        &self.keys[if standing.is_known {
            &Scope::Pair
        } else {
            &Scope::Account
        }]
    }

    /// Counts a failure. Answers until when it locks the account for this attempt's network, if it does.
    pub(super) async fn failed(
        &self,
        db: &impl ConnectionTrait,
        standing: &LockStatus,
        now: DateTime<Utc>,
    ) -> Result<Option<DateTime<Utc>>, DbErr> {
        use lockout::Column::{ExpiresAt, Failures, Key, LockedUntil};
        let scopes: &[Scope] = if standing.is_known {
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

    /// Forgets the account's failures, and knows the network from now on.
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
        Ok(())
    }
}

/// Forgets all failures to sign in to an account, from whatever network, and the networks that it knew.
pub(super) async fn forget(db: &impl ConnectionTrait, account: &str) -> Result<(), DbErr> {
    lockout::Entity::delete_many()
        .filter(lockout::Column::Key.starts_with(hashed(account)))
        .exec(db)
        .await?;
    Ok(())
}

/// Half of a key.
fn hashed(text: &str) -> String {
    text::hex(&Sha256::digest(text)[..16])
}
