//! The erasure of an account: its row stays without personal data, because events, messages and the audit log refer to
//! it.

use chrono::{DateTime, Utc};
use gathering_entity::{
    api_key, audit, idempotency, mail, message, refresh_token,
    user::{self, UserKind, UserRole},
};
use sea_orm::{
    ActiveModelTrait, ColumnTrait, Condition, ConnectionTrait, DatabaseTransaction, DbBackend,
    EntityTrait, IntoActiveModel, QueryFilter, QueryOrder, QuerySelect, QueryTrait, Set,
    sea_query::{Expr, ExprTrait, LockType},
};
use uuid::Uuid;

use crate::{
    access::Viewer,
    audit::Client,
    auth::{
        Accounts, changed,
        lockout::{self, Attempt},
        recovery::lock_viewer,
    },
    db::retry_on_conflict,
    error::Error,
    events::{Ended, EventType, NewEvent, notify_ended},
    text,
};

/// The name of every deleted account.
const NAME: &str = "Deleted user";

/// An account that is to be erased, whose rows are locked.
pub(crate) struct Doomed {
    /// The account, and the service accounts that it owns.
    rows: Vec<user::Model>,
    /// Whether no active administrator would be left.
    pub(crate) is_last_admin: bool,
}

impl Doomed {
    /// The ids of the account and of its service accounts.
    pub(crate) fn ids(&self) -> Vec<Uuid> {
        self.rows.iter().map(|row| row.id).collect()
    }

    /// Whether the account has been erased before.
    pub(crate) fn is_erased(&self) -> bool {
        self.rows.iter().all(|row| row.deleted_at.is_some())
    }
}

impl Accounts {
    /// Checks the viewer's password again; false for a wrong one, which counts as a failed sign-in.
    ///
    /// # Errors
    /// The database cannot be read or written.
    pub(crate) async fn reauthenticate(
        &self,
        client: &Client,
        viewer: &Viewer,
        password: &str,
    ) -> Result<bool, Error> {
        let user = &viewer.user;
        let attempt = Attempt::new(&text::fold(&user.email), client.address);
        let _guard = self.lock_queue(&attempt).await?;
        let matched = self.attempt(client, &attempt, Some(user), password).await?;
        if matched.is_none() {
            return Ok(false);
        }
        let clear = || async {
            let (transaction, _guard) = self.writer.begin().await?;
            attempt.succeeded(&transaction, self.now()).await?;
            self.writer.commit(transaction).await
        };
        retry_on_conflict(clear).await?;
        Ok(true)
    }

    /// Locks an account and its service accounts, so that until the end of the transaction nothing can be created that
    /// belongs to them.
    ///
    /// # Errors
    /// `UNAUTHENTICATED` if the viewer's session has ended; `NOT_FOUND` if there is no such user.
    pub(crate) async fn lock_doomed(
        &self,
        transaction: &DatabaseTransaction,
        viewer: &Viewer,
        user: Uuid,
    ) -> Result<Doomed, Error> {
        use user::Column::{Id, IsActive, Kind, OwnerId, Role};
        // The administrators are locked in one order, so that two of them cannot delete each other.
        let is_admin = Role
            .eq(UserRole::Admin)
            .and(Kind.eq(UserKind::Person))
            .and(IsActive.eq(true));
        let admins = user::Entity::find()
            .filter(is_admin)
            .order_by_asc(Id)
            .lock(LockType::NoKeyUpdate)
            .all(transaction)
            .await?;
        lock_viewer(transaction, viewer).await?;
        let locked = |condition: Expr| {
            user::Entity::find()
                .filter(condition)
                .order_by_asc(Id)
                .lock(LockType::Update)
        };
        let account = locked(Id.eq(user)).one(transaction).await?;
        let account = account.ok_or_else(|| Error::not_found("userId"))?;
        let is_last_admin = matches!(admins.as_slice(), [last] if last.id == user);
        let mut rows = vec![account];
        rows.extend(locked(OwnerId.eq(user)).all(transaction).await?);
        Ok(Doomed {
            rows,
            is_last_admin,
        })
    }

    /// Erases the personal data of an account that owns nothing any more: its e-mail address, name, password, sessions,
    /// API keys, mails, known networks and idempotency keys. Returns the events to append, and what ends with the
    /// commit.
    ///
    /// # Errors
    /// The database cannot be written.
    pub(crate) async fn erase(
        &self,
        transaction: &DatabaseTransaction,
        doomed: Doomed,
        now: DateTime<Utc>,
    ) -> Result<Vec<(NewEvent, Ended)>, Error> {
        let ids = doomed.ids();
        let addresses = doomed.rows.iter().map(|row| row.email_key.clone());
        let mails = Condition::any()
            .add(mail::Column::SubjectId.is_in(ids.clone()))
            .add(mail::Column::EmailKey.is_in(addresses));
        mail::Entity::delete_many()
            .filter(mails)
            .exec(transaction)
            .await?;
        refresh_token::Entity::delete_many()
            .filter(refresh_token::Column::UserId.is_in(ids.clone()))
            .exec(transaction)
            .await?;
        idempotency::Entity::delete_many()
            .filter(idempotency::Column::UserId.is_in(ids.clone()))
            .exec(transaction)
            .await?;
        erase_keys(transaction, &ids).await?;
        message::Entity::update_many()
            .col_expr(message::Column::AuthorName, Expr::value(NAME))
            .filter(message::Column::UserId.is_in(ids))
            .exec(transaction)
            .await?;
        let mut erased = Vec::with_capacity(doomed.rows.len());
        for row in doomed.rows {
            lockout::forget(transaction, &text::fold(&row.email)).await?;
            let (user, version) = (row.id, row.token_version + 1);
            // Unique, and no message can be sent to it (RFC 2606).
            let email = format!("{}@deleted.invalid", user.simple());
            let mut row = row.into_active_model();
            row.email = Set(email.clone());
            row.email_key = Set(email);
            row.name = Set(NAME.to_owned());
            row.password_hash = Set(String::new());
            row.role = Set(UserRole::User);
            row.is_active = Set(false);
            row.token_version = Set(version);
            row.last_login_at = Set(None);
            row.owner_id = Set(None);
            row.quota_class = Set(None);
            row.email_verified_at = Set(None);
            row.updated_at = Set(now);
            row.deleted_at = Set(Some(now));
            let row = row.update(transaction).await?;
            let ended = Ended::All { user, version };
            notify_ended(transaction, ended).await?;
            erased.push((changed(EventType::UserDeleted, &row, &[]), ended));
        }
        Ok(erased)
    }
}

/// Deletes the API keys of users, and their names in the audit log.
async fn erase_keys(transaction: &DatabaseTransaction, users: &[Uuid]) -> Result<(), Error> {
    let of_users = api_key::Column::UserId.is_in(users.iter().copied());
    let keys = api_key::Entity::find()
        .select_only()
        .column(api_key::Column::Id)
        .filter(of_users.clone())
        .into_query();
    let without_name = Expr::cust(match transaction.get_database_backend() {
        DbBackend::Postgres => "details - 'name'",
        _ => "json_remove(details, '$.name')",
    });
    audit::Entity::update_many()
        .col_expr(audit::Column::Details, without_name)
        .filter(audit::Column::TargetId.in_subquery(keys))
        .exec(transaction)
        .await?;
    api_key::Entity::delete_many()
        .filter(of_users)
        .exec(transaction)
        .await?;
    Ok(())
}
