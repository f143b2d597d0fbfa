//! The demo data: the same rows every time, so that guides, tests and benchmarks can count on them.
//!
//! The rows are the files in `data/`, one per noun, and refer to each other by name. Row n of a table, from 1, was made n
//! seconds after `start` and has the UUID of that moment, with the table's number and n in the places that are random
//! elsewhere. What is not set here has the column's default.

mod events;
mod rows;

use std::collections::HashMap;
use std::fmt;

use argon2::{Argon2, PasswordHasher};
use chrono::TimeDelta;
use futures_util::future::BoxFuture;
use gathering_entity::user;
use sea_orm::prelude::{DateTimeUtc, Uuid};
use sea_orm::{
    ActiveModelTrait, ColumnTrait, ConnectionTrait, DatabaseConnection, DatabaseTransaction,
    DbBackend, DbErr, EntityTrait, PaginatorTrait, QueryFilter, SqliteTransactionMode,
    TransactionOptions, TransactionTrait,
};

use crate::rows::Data;

/// The e-mail address of the user who owns the demo data.
pub const DEMO_EMAIL: &str = "demo@example.com";

/// Why the demo data was not inserted.
#[derive(Debug)]
pub enum SeedError {
    /// The database has users that are not part of the demo data; nothing was written.
    Occupied,
    /// The password cannot be hashed.
    Password,
    /// A file of the demo data is malformed; nothing was written.
    Data(String),
    /// A statement failed; nothing was written.
    Database(DbErr),
}

impl fmt::Display for SeedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Occupied => {
                f.write_str("the database already has users; the demo data needs an empty database")
            }
            Self::Password => f.write_str("the demo password cannot be hashed; choose another"),
            Self::Data(reason) => write!(f, "the demo data is malformed: {reason}"),
            Self::Database(error) => write!(f, "the demo data could not be written: {error}"),
        }
    }
}

impl std::error::Error for SeedError {}

impl From<DbErr> for SeedError {
    fn from(error: DbErr) -> Self {
        Self::Database(error)
    }
}

/// Inserts the demo data into a migrated database in one transaction; does nothing if it is already there. All demo
/// users get this password.
///
/// # Errors
/// If the database has other users, or cannot be written.
pub fn seed<'a>(
    db: &'a DatabaseConnection,
    password: &'a str,
) -> BoxFuture<'a, Result<(), SeedError>> {
    Box::pin(async move {
        let data = Data::read()?;
        let transaction = db
            .begin_with_options(TransactionOptions {
                sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
                ..TransactionOptions::default()
            })
            .await?;
        if transaction.get_database_backend() == DbBackend::Postgres {
            // A concurrent run waits here and then finds the users of the first one.
            transaction
                .execute_unprepared("LOCK TABLE users IN SHARE ROW EXCLUSIVE MODE")
                .await?;
        }
        let ours = (1..).zip(&data.users).map(|(n, _)| Table::User.id(n));
        let others = user::Entity::find().filter(user::Column::Id.is_not_in(ours));
        if others.count(&transaction).await? > 0 {
            return Err(SeedError::Occupied);
        }
        if user::Entity::find().count(&transaction).await? == 0 {
            let hashes = hashes(password, data.users.len()).await?;
            fill(&transaction, &data, hashes).await?;
            transaction.commit().await?;
        }
        Ok(())
    })
}

/// Returns one hash per user, each with its own salt. The crate's defaults are those that OWASP recommends: argon2id
/// with 19 MiB, two passes and one lane.
async fn hashes(password: &str, users: usize) -> Result<Vec<String>, SeedError> {
    let password = password.to_owned();
    let hash = move || {
        let hash = |_| Argon2::default().hash_password(password.as_bytes());
        let hashes = (0..users).map(hash);
        hashes
            .map(|hash| hash.map(|hash| hash.to_string()))
            .collect()
    };
    let hashes: Result<_, argon2::password_hash::Error> = tokio::task::spawn_blocking(hash)
        .await
        .map_err(|_| SeedError::Password)?;
    hashes.map_err(|_| SeedError::Password)
}

async fn fill(db: &DatabaseTransaction, data: &Data, hashes: Vec<String>) -> Result<(), SeedError> {
    let ids = data.ids();
    insert(db, data.users(hashes)).await?;
    insert(db, data.providers()).await?;
    insert(db, data.models(&ids)?).await?;
    insert(db, data.personas(&ids)?).await?;
    insert(db, data.agents(&ids)?).await?;
    insert(db, data.projects(&ids)?).await?;
    insert(db, data.circles(&ids)?).await?;
    insert(db, data.collaborators(&ids)?).await?;
    insert(db, data.members(&ids)?).await?;
    insert(db, data.tasks(&ids)?).await?;
    insert(db, data.conversations(&ids)?).await?;
    insert(db, data.participants(&ids)?).await?;
    insert(db, data.messages(&ids)?).await?;
    insert(db, data.events(&ids)?).await?;
    Ok(())
}

/// Inserts rows that set the same columns, in batches below the limit of bound parameters of either database.
async fn insert<A: ActiveModelTrait>(db: &DatabaseTransaction, rows: Vec<A>) -> Result<(), DbErr> {
    let mut rows = rows.into_iter().peekable();
    while rows.peek().is_some() {
        A::Entity::insert_many(rows.by_ref().take(500))
            .exec_without_returning(db)
            .await?;
    }
    Ok(())
}

/// A table, with its number in the ids of its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Table {
    User = 1,
    Provider,
    Model,
    Persona,
    Agent,
    Project,
    Circle,
    Collaborator,
    Member,
    Task,
    Conversation,
    Message,
    Event,
}

impl Table {
    /// The id of row n.
    fn id(self, n: u32) -> Uuid {
        const VERSION: u128 = 7 << 76;
        const VARIANT: u128 = 0b10 << 62;
        let milliseconds = u128::from(made(n).timestamp_millis().unsigned_abs());
        Uuid::from_u128(
            milliseconds << 80 | VERSION | (self as u128) << 64 | VARIANT | u128::from(n),
        )
    }
}

/// 2026-01-05T09:00:00Z.
fn start() -> DateTimeUtc {
    DateTimeUtc::UNIX_EPOCH + TimeDelta::seconds(1_767_603_600)
}

/// When row n of a table was created.
fn made(n: u32) -> DateTimeUtc {
    start() + TimeDelta::seconds(n.into())
}

/// The ids of the rows that others refer to, by table and name.
#[derive(Default)]
struct Ids(HashMap<(Table, String), Uuid>);

impl Ids {
    /// Adds the rows of a table, whose names come in the order of the rows.
    fn add<'a>(&mut self, table: Table, names: impl Iterator<Item = &'a String>) {
        let ids = (1..).zip(names);
        self.0
            .extend(ids.map(|(n, name)| ((table, name.clone()), table.id(n))));
    }

    /// The id of the row with this name.
    fn get(&self, table: Table, name: &str) -> Result<Uuid, SeedError> {
        let id = self.0.get(&(table, name.to_owned())).copied();
        id.ok_or_else(|| SeedError::Data(format!("no {table:?} is named {name}")))
    }

    /// The id of the row with this name, if there is a name.
    fn find(&self, table: Table, name: Option<&String>) -> Result<Option<Uuid>, SeedError> {
        name.map(|name| self.get(table, name)).transpose()
    }

    /// The owner of all demo objects.
    fn owner(&self) -> Result<Uuid, SeedError> {
        self.get(Table::User, DEMO_EMAIL)
    }
}
