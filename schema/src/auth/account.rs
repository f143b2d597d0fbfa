//! Accounts: registration, sign-in and changes.

use std::time::Duration;

use async_graphql::MaybeUndefined;
use chrono::{DateTime, Utc};
use gathering_entity::{
    revoked_token::RevocationReason,
    user::{self, UserKind, UserRole},
};
use sea_orm::{
    ActiveEnum, ActiveModelTrait, ColumnTrait, ConnectionTrait, DatabaseTransaction, DbErr,
    EntityTrait, IntoActiveModel, QueryFilter, Set, TransactionTrait, Unchanged,
    sea_query::OnConflict,
};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    access::Viewer,
    audit::{AuditAction, Client},
    auth::{
        Accounts, SignedIn, changed,
        lockout::{self, Attempt},
        mail::cancel_tokens,
        password::PasswordMatch,
        recovery::verification,
        session::{Ending, is_ended, lock, new_session},
        take_effect, tokens_revoked,
    },
    db::retry_on_conflict,
    error::{Code, Error},
    events::{Ended, EventType, NewEvent, notify_ended},
    text,
};

/// Maximum length of a user's name, in characters.
pub(crate) const MAX_USER_NAME: usize = 100;

/// The validated profile of a new account.
pub(crate) struct Profile {
    pub(crate) email: String,
    pub(crate) email_key: String,
    pub(crate) name: String,
    pub(crate) role: UserRole,
    pub(crate) kind: UserKind,
    /// The owner of a service account.
    pub(crate) owner: Option<Uuid>,
}

impl Profile {
    /// The profile of a person.
    pub(crate) fn person(
        (email, email_key): (String, String),
        name: String,
        role: UserRole,
    ) -> Self {
        Self {
            email,
            email_key,
            name,
            role,
            kind: UserKind::Person,
            owner: None,
        }
    }

    /// The profile of a service account. Its e-mail address is unique and can receive no messages (RFC 2606).
    fn service(name: String, role: UserRole, owner: Uuid) -> Self {
        let email = format!("{}@service.invalid", Uuid::now_v7().simple());
        Self {
            email_key: email.clone(),
            email,
            name,
            role,
            kind: UserKind::Service,
            owner: Some(owner),
        }
    }
}

/// The changes to an account.
#[derive(Clone, Default)]
pub(crate) struct Amendment {
    pub(crate) name: Option<String>,
    pub(crate) role: Option<UserRole>,
    pub(crate) is_active: Option<bool>,
    /// The quota class; null removes it.
    pub(crate) quota_class: MaybeUndefined<String>,
}

impl Amendment {
    /// Keeps only the changes that differ from the row.
    fn to(&self, row: &user::Model) -> Self {
        Self {
            name: self.name.clone().filter(|name| *name != row.name),
            role: self.role.filter(|role| *role != row.role),
            is_active: self
                .is_active
                .filter(|is_active| *is_active != row.is_active),
            quota_class: if self.quota_class.as_opt_ref() == Some(row.quota_class.as_ref()) {
                MaybeUndefined::Undefined
            } else {
                self.quota_class.clone()
            },
        }
    }

    fn names(&self) -> Vec<&'static str> {
        let name = self.name.as_ref().map(|_| "name");
        let role = self.role.map(|_| "role");
        let is_active = self.is_active.map(|_| "isActive");
        let quota_class = self.quota_class.as_opt_ref().map(|_| "quotaClass");
        [name, role, is_active, quota_class]
            .into_iter()
            .flatten()
            .collect()
    }
}

/// A changed account, before the commit.
pub(crate) struct Amended {
    pub(crate) row: user::Model,
    /// The events to append.
    pub(crate) events: Vec<NewEvent>,
    /// The details for the audit log; `None` if nothing has changed.
    pub(crate) details: Option<Value>,
    /// The sessions that end with the commit.
    pub(crate) ended: Option<Ended>,
}

/// Finds the account of an e-mail address. A deleted account has none.
pub(crate) async fn by_email(
    db: &impl ConnectionTrait,
    email: &str,
) -> Result<Option<user::Model>, DbErr> {
    let keys = text::account_keys(email);
    let select = user::Entity::find()
        .filter(user::Column::EmailKey.is_in(&keys))
        .filter(user::Column::DeletedAt.is_null());
    let mut users = select.all(db).await?;
    users.sort_by_key(|user| keys.iter().rposition(|key| *key == user.email_key));
    Ok(users.pop())
}

impl Accounts {
    /// Creates an account and signs in to it; `None` if the e-mail address has an account.
    ///
    /// # Errors
    /// `FORBIDDEN` if registration is closed.
    pub(crate) async fn register(
        &self,
        client: &Client,
        profile: &Profile,
        password: &str,
    ) -> Result<Option<SignedIn>, Error> {
        if !self.registration {
            return Err(Error::new(
                Code::Forbidden,
                "Registration is closed. Ask an administrator for an account.",
            ));
        }
        let Some(hash) = self.hash_for(profile, password).await? else {
            return Ok(None);
        };
        let attempt = Attempt::new(&profile.email_key, client.address);
        let change = || async {
            let now = self.now();
            let (transaction, _guard) = self.writer.begin().await?;
            let Some(user) = self.insert(&transaction, profile, &hash, Some(now)).await? else {
                return Ok(None);
            };
            attempt.succeeded(&transaction, now).await?;
            if let Some(mails) = &self.mails {
                mails.add(&transaction, verification(&user), now).await?;
            }
            let origin = (Some(user.id), client);
            let events = vec![changed(EventType::UserRegistered, &user, &[])];
            let session = new_session(now);
            let issued = self.issue(&transaction, user, session, client, now).await?;
            self.commit(transaction, origin, events, now).await?;
            Ok(Some(issued.0))
        };
        let registered = retry_on_conflict(change).await?;
        if let Some(signed_in) = &registered {
            self.notify_mails();
            let user = Some(signed_in.user.id);
            self.audit
                .record(AuditAction::Registered, client, user, user, json!({}));
        }
        Ok(registered)
    }

    /// Creates an account for the server's operator; `None` if the e-mail address has one.
    pub(crate) async fn create(
        &self,
        client: &Client,
        profile: &Profile,
        password: &str,
    ) -> Result<Option<user::Model>, Error> {
        let Some(hash) = self.hash_for(profile, password).await? else {
            return Ok(None);
        };
        let change = || async {
            let (transaction, _guard) = self.writer.begin().await?;
            let user = self.insert(&transaction, profile, &hash, None).await?;
            if let Some(user) = &user {
                let events = vec![changed(EventType::UserRegistered, user, &[])];
                self.commit(transaction, (None, client), events, user.created_at)
                    .await?;
            }
            Ok(user)
        };
        let user = retry_on_conflict(change).await?;
        if let Some(user) = &user {
            let details = json!({ "role": user.role.to_value() });
            self.audit.record(
                AuditAction::UserCreated,
                client,
                None,
                Some(user.id),
                details,
            );
        }
        Ok(user)
    }

    /// Creates a service account, without a password. Returns it with the event to append.
    ///
    /// # Errors
    /// The database cannot be written.
    pub(crate) async fn create_service(
        &self,
        transaction: &DatabaseTransaction,
        name: String,
        role: UserRole,
        owner: Uuid,
    ) -> Result<(user::Model, NewEvent), Error> {
        let profile = Profile::service(name, role, owner);
        let user = self.insert(transaction, &profile, "", None).await?;
        let user = user.ok_or_else(Error::conflict)?;
        let event = changed(EventType::UserRegistered, &user, &[]);
        Ok((user, event))
    }

    /// The hash of a new account's password. Skipped if the e-mail address is already taken, because hashing is
    /// expensive.
    async fn hash_for(&self, profile: &Profile, password: &str) -> Result<Option<String>, Error> {
        if by_email(&self.db, &profile.email_key).await?.is_some() {
            return Ok(None);
        }
        self.passwords.hash(password).await.map(Some)
    }

    async fn insert(
        &self,
        db: &impl ConnectionTrait,
        profile: &Profile,
        hash: &str,
        last_login_at: Option<DateTime<Utc>>,
    ) -> Result<Option<user::Model>, Error> {
        let now = self.now();
        let user = user::Model {
            id: Uuid::now_v7(),
            created_at: now,
            updated_at: now,
            email: profile.email.clone(),
            email_key: profile.email_key.clone(),
            name: profile.name.clone(),
            password_hash: hash.to_owned(),
            role: profile.role,
            is_active: true,
            token_version: 0,
            last_login_at,
            kind: profile.kind,
            owner_id: profile.owner,
            quota_class: None,
            email_verified_at: None,
            deleted_at: None,
        };
        let inserted = user::Entity::insert(user.clone().into_active_model())
            .on_conflict(
                OnConflict::column(user::Column::EmailKey)
                    .do_nothing()
                    .to_owned(),
            )
            .exec_without_returning(db)
            .await?;
        Ok((inserted > 0).then_some(user))
    }

    /// Signs in. The response is the same for a wrong password, an unknown e-mail address and a locked account.
    ///
    /// # Errors
    /// `UNAUTHENTICATED`, or `FORBIDDEN` for a deactivated account whose password is correct.
    pub(crate) async fn sign_in(
        &self,
        client: &Client,
        email: &str,
        password: &str,
    ) -> Result<SignedIn, Error> {
        // An invalid address belongs to no account.
        let (email, key) = match text::email_key(email) {
            Some(key) => (email, key),
            None => ("", String::new()),
        };
        let attempt = Attempt::new(&key, client.address);
        let _guard = self.lock_queue(&attempt).await?;
        let user = by_email(&self.db, email).await?;
        let matched = self
            .attempt(client, &attempt, user.as_ref(), password)
            .await?;
        let (Some(user), Some(matched)) = (user, matched) else {
            return Err(Error::bad_credentials());
        };
        let id = Some(user.id);
        if !user.is_active {
            let details = json!({ "reason": "deactivated" });
            self.audit
                .record(AuditAction::LoginFailed, client, id, id, details);
            return Err(Error::deactivated());
        }
        let rehashed = match matched {
            PasswordMatch::Outdated => Some(self.passwords.hash(password).await?),
            _ => None,
        };
        let change = || async {
            let now = self.now();
            let (transaction, _guard) = self.writer.begin().await?;
            // The account must not have changed since the password was checked.
            let current = lock(&transaction, user.id)
                .await?
                .filter(|current| current.is_active && current.token_version == user.token_version);
            let Some(current) = current else {
                return Ok(None);
            };
            attempt.succeeded(&transaction, now).await?;
            let mut current = current.into_active_model();
            current.last_login_at = Set(Some(now));
            if let Some(hash) = &rehashed {
                current.password_hash = Set(hash.clone());
            }
            let current = current.update(&transaction).await?;
            let session = new_session(now);
            let issued = self
                .issue(&transaction, current, session, client, now)
                .await?;
            self.writer.commit(transaction).await?;
            Ok(Some(issued.0))
        };
        let Some(signed_in) = retry_on_conflict(change).await? else {
            return Err(Error::bad_credentials());
        };
        self.audit
            .record(AuditAction::LoginSucceeded, client, id, id, json!({}));
        Ok(signed_in)
    }

    /// Checks a password; `None` if it is wrong, or not checked because of earlier failures.
    pub(super) async fn attempt(
        &self,
        client: &Client,
        attempt: &Attempt,
        user: Option<&user::Model>,
        password: &str,
    ) -> Result<Option<PasswordMatch>, Error> {
        let status = attempt.status(&self.db, self.now()).await?;
        let hash = user
            .filter(|user| !status.is_locked && user.kind == UserKind::Person)
            // Imported without a password.
            .filter(|user| !user.password_hash.is_empty())
            .map(|user| user.password_hash.as_str());
        let matched = self.passwords.verify(password, hash).await?;
        if matched != PasswordMatch::Wrong {
            return Ok(Some(matched));
        }
        let id = user.map(|user| user.id);
        let mut details = json!({});
        if status.is_locked {
            details = json!({ "reason": "locked" });
        } else {
            let count = || async {
                let now = self.now();
                let (transaction, _guard) = self.writer.begin().await?;
                let locked = attempt.failed(&transaction, &status, now).await?;
                let duplicates = match locked {
                    Some(_) => self.announce_lock(&transaction, client, id, now).await?,
                    None => 0,
                };
                self.writer.commit(transaction).await?;
                if locked.is_some() {
                    self.committed(duplicates);
                }
                Ok(locked)
            };
            if let Some(until) = retry_on_conflict(count).await? {
                let details = json!({ "until": until });
                self.audit
                    .record(AuditAction::Locked, client, None, id, details);
            }
        }
        self.audit
            .record(AuditAction::LoginFailed, client, None, id, details);
        Ok(None)
    }

    /// Writes the event for a locked account. For a nonexistent account the same is written and rolled back, so that
    /// the response time does not reveal whether the account exists.
    async fn announce_lock(
        &self,
        transaction: &DatabaseTransaction,
        client: &Client,
        user: Option<Uuid>,
        now: DateTime<Utc>,
    ) -> Result<u64, Error> {
        let part = transaction.begin().await?;
        let subject = user.unwrap_or_else(Uuid::now_v7);
        let payload = json!({ "reason": "FAILED_LOGINS", "at": now });
        let locked = NewEvent::new(EventType::UserLocked, subject, payload).owner(subject);
        let duplicates = self.append(&part, (None, client), vec![locked], now);
        let duplicates = duplicates.await?;
        match user {
            Some(_) => part.commit().await?,
            None => part.rollback().await?,
        }
        Ok(duplicates)
    }

    /// Changes a viewer's password, ends all of their sessions and starts a new one; `None` if the current password is
    /// wrong.
    ///
    /// # Errors
    /// The database cannot be written.
    pub(crate) async fn change_password(
        &self,
        client: &Client,
        viewer: &Viewer,
        current: &str,
        new: &str,
    ) -> Result<Option<SignedIn>, Error> {
        let user = &viewer.user;
        let attempt = Attempt::new(&text::fold(&user.email), client.address);
        let _guard = self.lock_queue(&attempt).await?;
        let matched = self.attempt(client, &attempt, Some(user), current).await?;
        if matched.is_none() {
            return Ok(None);
        }
        let signed_in = self
            .replace_password(client, user.id, new, Some(viewer))
            .await?;
        take_effect().await;
        // The password is changed even if the earlier failures cannot be cleared.
        if let Err(error) = attempt.succeeded(&self.db, self.now()).await {
            tracing::warn!(cause = %error, "cannot clear the failed sign-in attempts");
        }
        let id = Some(user.id);
        self.audit
            .record(AuditAction::PasswordChanged, client, id, id, json!({}));
        Ok(signed_in)
    }

    /// Changes a user's password for the server's operator, and ends all of their sessions; false if there is no such
    /// user.
    ///
    /// # Errors
    /// The database cannot be written.
    pub(crate) async fn set_password(
        &self,
        client: &Client,
        email: &str,
        new: &str,
    ) -> Result<bool, Error> {
        let user = by_email(&self.db, email).await?;
        let Some(user) = user.filter(|user| user.kind == UserKind::Person) else {
            return Ok(false);
        };
        self.replace_password(client, user.id, new, None).await?;
        take_effect().await;
        lockout::forget(&self.db, &text::fold(&user.email)).await?;
        self.audit.record(
            AuditAction::PasswordChanged,
            client,
            None,
            Some(user.id),
            json!({}),
        );
        Ok(true)
    }

    /// Replaces a password, ends all sessions, and starts a new one for the viewer, if there is one. Does nothing if
    /// the viewer's session was ended after the password was checked.
    async fn replace_password(
        &self,
        client: &Client,
        user: Uuid,
        new: &str,
        viewer: Option<&Viewer>,
    ) -> Result<Option<SignedIn>, Error> {
        let hash = self.passwords.hash(new).await?;
        let change = || async {
            let now = self.now();
            let (transaction, _guard) = self.writer.begin().await?;
            let row = lock(&transaction, user).await?;
            let row = row.ok_or_else(Error::token_invalid)?;
            if let Some(viewer) = viewer {
                let version = viewer.user.token_version;
                let is_valid = row.is_active && row.token_version == version;
                if !is_valid || is_ended(&transaction, viewer.grant().id()).await? {
                    return Err(Error::token_revoked());
                }
            }
            cancel_tokens(&transaction, user).await?;
            let reason = RevocationReason::PasswordChanged;
            let version = row.token_version + 1;
            self.end(&transaction, user, Ending::All(version), reason, now)
                .await?;
            let row = user::ActiveModel {
                id: Unchanged(user),
                password_hash: Set(hash.clone()),
                updated_at: Set(now),
                ..Default::default()
            };
            let row = row.update(&transaction).await?;
            let signed_in = match viewer {
                Some(_) => {
                    let session = new_session(now);
                    Some(self.issue(&transaction, row, session, client, now).await?.0)
                }
                None => None,
            };
            let origin = (viewer.map(Viewer::id), client);
            let events = vec![tokens_revoked(user, reason, now)];
            self.commit(transaction, origin, events, now).await?;
            self.ended(Ended::Before { user, version });
            Ok(signed_in)
        };
        retry_on_conflict(change).await
    }

    /// Changes an account, whose row must be locked.
    ///
    /// # Errors
    /// The database cannot be written.
    pub(crate) async fn amend(
        &self,
        transaction: &DatabaseTransaction,
        row: user::Model,
        amendment: &Amendment,
        now: DateTime<Utc>,
    ) -> Result<Amended, Error> {
        let user = row.id;
        let amendment = amendment.to(&row);
        let names = amendment.names();
        if names.is_empty() {
            return Ok(Amended {
                row,
                events: Vec::new(),
                details: None,
                ended: None,
            });
        }
        let revokes = amendment.role.is_some() || amendment.is_active == Some(false);
        let version = row.token_version + 1;
        if amendment.is_active == Some(false) {
            cancel_tokens(transaction, user).await?;
            let reason = RevocationReason::Admin;
            self.end(transaction, user, Ending::All(version), reason, now)
                .await?;
        }
        let ended = revokes.then_some(Ended::All { user, version });
        if let Some(ended) = ended {
            notify_ended(transaction, ended).await?;
        }
        let mut row = row.into_active_model();
        row.updated_at = Set(now);
        if let Some(name) = amendment.name {
            row.name = Set(name);
        }
        if let Some(role) = amendment.role {
            row.role = Set(role);
            row.token_version = Set(version);
        }
        if let Some(is_active) = amendment.is_active {
            row.is_active = Set(is_active);
        }
        if let Some(class) = amendment.quota_class.as_opt_ref() {
            row.quota_class = Set(class.cloned());
        }
        let row = row.update(transaction).await?;
        let mut events = vec![changed(EventType::UserUpdated, &row, &names)];
        if revokes {
            events.push(tokens_revoked(user, RevocationReason::Admin, now));
        }
        let details = json!({
            "changed": names,
            "role": row.role.to_value(),
            "isActive": row.is_active,
            "quotaClass": row.quota_class,
        });
        Ok(Amended {
            row,
            events,
            details: Some(details),
            ended,
        })
    }

    /// Changes an account, given by its e-mail address, for the server's operator; `None` if there is no such account.
    ///
    /// # Errors
    /// The database cannot be written.
    pub(crate) async fn amend_by_email(
        &self,
        client: &Client,
        email: &str,
        amendment: &Amendment,
    ) -> Result<Option<user::Model>, Error> {
        let Some(user) = by_email(&self.db, email).await? else {
            return Ok(None);
        };
        let change = || async {
            let now = self.now();
            let (transaction, _guard) = self.writer.begin().await?;
            let Some(row) = lock(&transaction, user.id).await? else {
                return Ok(None);
            };
            let amended = self.amend(&transaction, row, amendment, now).await?;
            let Amended {
                row,
                events,
                details,
                ended,
            } = amended;
            self.commit(transaction, (None, client), events, now)
                .await?;
            if let Some(ended) = ended {
                self.ended(ended);
            }
            Ok(Some((row, details)))
        };
        let Some((row, details)) = retry_on_conflict(change).await? else {
            return Ok(None);
        };
        if let Some(details) = details {
            take_effect().await;
            self.audit.record(
                AuditAction::UserChanged,
                client,
                None,
                Some(row.id),
                details,
            );
        }
        Ok(Some(row))
    }

    /// An access token without a refresh token, for the server's operator.
    ///
    /// # Errors
    /// The database cannot be read.
    pub(crate) async fn operator_token(
        &self,
        email: &str,
        lifetime: Duration,
    ) -> Result<Option<String>, Error> {
        let Some(user) = by_email(&self.db, email).await? else {
            return Ok(None);
        };
        let now = self.now();
        let (token, _) = self.access_token(&user, new_session(now), lifetime, now)?;
        Ok(Some(token))
    }
}
