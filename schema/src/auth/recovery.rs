//! Recovery of accounts: new passwords, verified and new e-mail addresses, each by a token in a mail.
//!
//! The answer to a request for a new password and its work are the same whether or not the address has an account: an
//! unknown address gets a row in the queue too, whose mail is not sent. No mail is sent within a request.

use gathering_entity::{
    api_key,
    mail::MailPurpose,
    revoked_token::RevocationReason,
    user::{self, UserKind},
};
use sea_orm::{ActiveModelTrait, ColumnTrait, DatabaseTransaction, IntoActiveModel, Set};
use serde_json::json;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::{
    access::Viewer,
    audit::{AuditAction, Client},
    auth::{
        Accounts, by_email, changed, key_details,
        lockout::{self, Attempt},
        mail::{MailQueue, NewMail, cancel_tokens, consume, find},
        session::{Ending, is_ended, lock},
        take_effect, tokens_revoked,
    },
    db::{is_taken, retry_on_conflict},
    error::{Code, Error},
    events::{Ended, EventType},
    id::Kind,
    text,
};

/// The mail that verifies a user's address.
pub(super) fn verification(user: &user::Model) -> NewMail<'_> {
    NewMail {
        purpose: MailPurpose::VerifyEmail,
        subject: user.id,
        email: &user.email,
        email_key: &user.email_key,
        is_sent: true,
    }
}

/// The subject of a request for an address without an account. The address may be a password that was typed into the
/// wrong field, so only its hash is stored.
fn unknown_subject(email_key: &str) -> Uuid {
    let digest = Sha256::digest(email_key);
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    Uuid::from_bytes(bytes)
}

/// The user of a token: an active person, whose row is locked.
async fn lock_holder(transaction: &DatabaseTransaction, user: Uuid) -> Result<user::Model, Error> {
    let user = lock(transaction, user).await?;
    user.filter(|user| user.is_active && user.kind == UserKind::Person)
        .ok_or_else(Error::bad_mail_token)
}

/// Locks a viewer's row. Their session must not have ended since it was authenticated.
pub(super) async fn lock_viewer(
    transaction: &DatabaseTransaction,
    viewer: &Viewer,
) -> Result<user::Model, Error> {
    let version = viewer.user.token_version;
    let row = lock(transaction, viewer.id()).await?;
    let row = row.filter(|row| row.is_active && row.token_version == version);
    let row = row.ok_or_else(Error::token_revoked)?;
    if is_ended(transaction, viewer.grant().id()).await? {
        return Err(Error::token_revoked());
    }
    Ok(row)
}

impl Accounts {
    /// The queue of mails.
    ///
    /// # Errors
    /// `FORBIDDEN` if no mails are sent.
    fn mails(&self) -> Result<&MailQueue, Error> {
        self.mails.as_ref().ok_or_else(Error::no_mail)
    }

    /// # Errors
    /// `FORBIDDEN` if no mails are sent.
    pub(crate) fn check_mails(&self) -> Result<(), Error> {
        self.mails().map(drop)
    }

    /// Must be called after a commit that has added a mail.
    pub(super) fn notify_mails(&self) {
        if let Some(mails) = &self.mails {
            mails.notify();
        }
    }

    /// Mails a token that sets a new password, if the address belongs to an active person.
    ///
    /// # Errors
    /// `FORBIDDEN` if no mails are sent, and database errors.
    pub(crate) async fn request_password_reset(
        &self,
        client: &Client,
        email: &str,
    ) -> Result<(), Error> {
        let mails = self.mails()?;
        // An invalid address belongs to no account.
        let (email, key) = match text::email_key(email) {
            Some(key) => (email, key),
            None => ("", String::new()),
        };
        let _turn = self.take_turn(&key).await;
        let user = by_email(&self.db, email).await?;
        let user = user.as_ref();
        let unknown = unknown_subject(&key);
        let unknown_key = unknown.simple().to_string();
        let change = || async {
            let now = self.now();
            let (transaction, _guard) = self.writer.begin().await?;
            let row = lock(&transaction, user.map_or(unknown, |user| user.id)).await?;
            // The user's address may have changed since it was read.
            let row = row.filter(|row| user.is_some_and(|user| user.email_key == row.email_key));
            let row = row.as_ref();
            let mail = NewMail {
                purpose: MailPurpose::ResetPassword,
                subject: row.map_or(unknown, |row| row.id),
                email: row.map_or("", |row| &row.email),
                email_key: row.map_or(&unknown_key, |row| &row.email_key),
                is_sent: row.is_some_and(|row| row.is_active && row.kind == UserKind::Person),
            };
            mails.add(&transaction, mail, now).await?;
            self.writer.commit(transaction).await?;
            Ok(row.map(|row| row.id))
        };
        // The sender is not woken: its work would show in the time of the next request that the address has an account.
        let target = retry_on_conflict(change).await?;
        let action = AuditAction::PasswordResetRequested;
        self.audit.record(action, client, None, target, json!({}));
        Ok(())
    }

    /// Records the use of a token: the action on its user, or its refusal.
    fn record_use(
        &self,
        client: &Client,
        outcome: Result<(Uuid, AuditAction), Error>,
    ) -> Result<(), Error> {
        let (user, action, details) = match &outcome {
            Ok((user, action)) => (Some(*user), *action, json!({})),
            Err(error) if error.code == Code::Unauthenticated => {
                let details = json!({ "reason": "unusable token from a mail" });
                (None, AuditAction::TokenRejected, details)
            }
            Err(_) => return outcome.map(drop),
        };
        self.audit.record(action, client, user, user, details);
        outcome.map(drop)
    }

    /// Sets a new password with a token from a mail. Ends all sessions of the user, makes their other tokens unusable
    /// and clears their lockouts. If the address was unverified, verifies it and revokes the user's API keys.
    ///
    /// # Errors
    /// `UNAUTHENTICATED` for a token that cannot be used, and database errors.
    pub(crate) async fn reset_password(
        &self,
        client: &Client,
        token: &str,
        new: &str,
    ) -> Result<(), Error> {
        let reset = self.replace_forgotten(client, token, new).await;
        self.record_use(client, reset)
    }

    async fn replace_forgotten(
        &self,
        client: &Client,
        token: &str,
        new: &str,
    ) -> Result<(Uuid, AuditAction), Error> {
        let purposes = [MailPurpose::ResetPassword];
        // Hashing is expensive, so an unusable token is refused before.
        let mail = find(&self.db, token, &purposes, self.now()).await?;
        let mail = mail.ok_or_else(Error::bad_mail_token)?;
        let hash = self.passwords.hash(new).await?;
        let change = || async {
            let now = self.now();
            let (transaction, _guard) = self.writer.begin().await?;
            let row = lock_holder(&transaction, mail.subject_id).await?;
            if row.email_key != mail.email_key || !consume(&transaction, &mail).await? {
                return Err(Error::bad_mail_token());
            }
            cancel_tokens(&transaction, row.id).await?;
            let (user, version) = (row.id, row.token_version + 1);
            let reason = RevocationReason::PasswordChanged;
            self.end(&transaction, user, Ending::All(version), reason, now)
                .await?;
            let account = text::fold(&row.email);
            lockout::forget(&transaction, &account).await?;
            // The network becomes a known one, so that an attack on the account does not lock it.
            let attempt = Attempt::new(&account, client.address);
            attempt.succeeded(&transaction, now).await?;
            let mut events = vec![tokens_revoked(user, reason, now)];
            let is_verified = row.email_verified_at.is_some();
            let mut row = row.into_active_model();
            row.password_hash = Set(hash.clone());
            row.updated_at = Set(now);
            let mut revoked = Vec::new();
            if !is_verified {
                row.email_verified_at = Set(Some(now));
                // They may have been created by another person, who registered with the address.
                let of_user = api_key::Column::UserId.eq(user);
                revoked = self.revoke_keys(&transaction, of_user, now).await?;
            }
            let row = row.update(&transaction).await?;
            if !is_verified {
                events.push(changed(EventType::UserUpdated, &row, &["emailVerifiedAt"]));
            }
            self.commit(transaction, (Some(user), client), events, now)
                .await?;
            self.ended(Ended::Before { user, version });
            for (key, ended) in revoked {
                self.ended(ended);
                let (target, details) = (Some((Kind::ApiKey, key.id)), key_details(&key));
                let action = AuditAction::ApiKeyRevoked;
                self.audit
                    .record_of(action, client, Some(user), target, details);
            }
            Ok((user, AuditAction::PasswordReset))
        };
        let reset = retry_on_conflict(change).await?;
        take_effect().await;
        Ok(reset)
    }

    /// Mails a token that verifies the viewer's address, unless it is verified.
    ///
    /// # Errors
    /// `FORBIDDEN` if no mails are sent, and database errors.
    pub(crate) async fn request_email_verification(&self, viewer: &Viewer) -> Result<(), Error> {
        let mails = self.mails()?;
        let change = || async {
            let now = self.now();
            let (transaction, _guard) = self.writer.begin().await?;
            let row = lock_viewer(&transaction, viewer).await?;
            if row.email_verified_at.is_none() {
                mails.add(&transaction, verification(&row), now).await?;
            }
            self.writer.commit(transaction).await
        };
        retry_on_conflict(change).await?;
        mails.notify();
        Ok(())
    }

    /// Mails a token that makes a new address the viewer's; to an address that has an account, a mail that says so.
    /// False for a wrong password.
    ///
    /// # Errors
    /// `FORBIDDEN` if no mails are sent, and database errors.
    pub(crate) async fn change_email(
        &self,
        client: &Client,
        viewer: &Viewer,
        (email, email_key): &(String, String),
        password: &str,
    ) -> Result<bool, Error> {
        let mails = self.mails()?;
        let user = &viewer.user;
        let attempt = Attempt::new(&text::fold(&user.email), client.address);
        let _guard = self.lock_queue(&attempt).await?;
        let matched = self.attempt(client, &attempt, Some(user), password).await?;
        if matched.is_none() {
            return Ok(false);
        }
        let other = by_email(&self.db, email).await?;
        let other = other.filter(|other| other.id != user.id);
        let (purpose, email, email_key) = match &other {
            Some(other) => (MailPurpose::AddressTaken, &other.email, &other.email_key),
            None => (MailPurpose::ChangeEmail, email, email_key),
        };
        let change = || async {
            let now = self.now();
            let (transaction, _guard) = self.writer.begin().await?;
            let row = lock_viewer(&transaction, viewer).await?;
            attempt.succeeded(&transaction, now).await?;
            let mail = NewMail {
                purpose,
                subject: row.id,
                email,
                email_key,
                is_sent: true,
            };
            mails.add(&transaction, mail, now).await?;
            self.writer.commit(transaction).await
        };
        retry_on_conflict(change).await?;
        mails.notify();
        let id = Some(user.id);
        self.audit
            .record(AuditAction::EmailChangeRequested, client, id, id, json!({}));
        Ok(true)
    }

    /// Verifies an address with a token from a mail to it. A new address becomes the user's, and the former one gets a
    /// mail unless only the spelling differs.
    ///
    /// # Errors
    /// `UNAUTHENTICATED` for a token that cannot be used, or whose address has another account, and database errors.
    pub(crate) async fn verify_email(&self, client: &Client, token: &str) -> Result<(), Error> {
        let verified = self.prove_address(client, token).await;
        self.record_use(client, verified)
    }

    async fn prove_address(
        &self,
        client: &Client,
        token: &str,
    ) -> Result<(Uuid, AuditAction), Error> {
        let purposes = [MailPurpose::VerifyEmail, MailPurpose::ChangeEmail];
        let mail = find(&self.db, token, &purposes, self.now()).await?;
        let mail = mail.ok_or_else(Error::bad_mail_token)?;
        let is_change = mail.purpose == MailPurpose::ChangeEmail;
        let change = || async {
            let now = self.now();
            let (transaction, _guard) = self.writer.begin().await?;
            let row = lock_holder(&transaction, mail.subject_id).await?;
            if !consume(&transaction, &mail).await? {
                return Err(Error::bad_mail_token());
            }
            let mut names = vec!["emailVerifiedAt"];
            let former = row.clone();
            let mut row = row.into_active_model();
            row.email_verified_at = Set(Some(now));
            row.updated_at = Set(now);
            if is_change {
                let other = by_email(&transaction, &mail.email).await?;
                if other.is_some_and(|other| other.id != former.id) {
                    return Err(Error::bad_mail_token());
                }
                names.insert(0, "email");
                row.email = Set(mail.email.clone());
                row.email_key = Set(mail.email_key.clone());
                if former.email_key != mail.email_key {
                    self.leave_address(&transaction, &former).await?;
                }
            } else if former.email_key != mail.email_key {
                return Err(Error::bad_mail_token());
            }
            let row = match row.update(&transaction).await {
                // Another user has registered with the address at the same time.
                Err(error) if is_taken(&error) => return Err(Error::bad_mail_token()),
                updated => updated?,
            };
            let events = vec![changed(EventType::UserUpdated, &row, &names)];
            self.commit(transaction, (Some(row.id), client), events, now)
                .await?;
            Ok(row.id)
        };
        let user = retry_on_conflict(change).await?;
        let action = if is_change {
            self.notify_mails();
            AuditAction::EmailChanged
        } else {
            AuditAction::EmailVerified
        };
        take_effect().await;
        Ok((user, action))
    }

    /// Makes the tokens unusable that were mailed to a former address, and sends a notice to the address.
    async fn leave_address(
        &self,
        transaction: &DatabaseTransaction,
        former: &user::Model,
    ) -> Result<(), Error> {
        cancel_tokens(transaction, former.id).await?;
        // Another user of the address must not inherit its known networks.
        lockout::forget(transaction, &text::fold(&former.email)).await?;
        let Some(mails) = &self.mails else {
            return Ok(());
        };
        let notice = NewMail {
            purpose: MailPurpose::AddressChanged,
            subject: former.id,
            email: &former.email,
            email_key: &former.email_key,
            is_sent: true,
        };
        mails.add(transaction, notice, self.now()).await
    }
}
