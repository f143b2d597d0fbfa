//! Mails to accounts: a queue in the database, and the task that sends it.
//!
//! A mail is a row of the transaction that causes it, so that no mail is lost, and no request waits for the mail server.
//! A row contains only the SHA-256 of its token: the sender computes the token from the signing key and the id of the
//! row.
//!
//! Every instance sends. An instance claims a mail by moving its due time into the future; if the instance ends before
//! the mail is sent, the mail becomes due again. A mail that was not sent is tried again until its token expires.

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, SubsecRound, TimeDelta, Utc};
use futures_util::future::{BoxFuture, join_all};
use gathering_entity::mail::{Column, Entity, MailPurpose, Model};
use sea_orm::{
    ColumnTrait, Condition, ConnectionTrait, DatabaseConnection, EntityTrait, IntoActiveModel,
    QueryFilter, QueryOrder, QuerySelect,
    sea_query::{Expr, ExprTrait},
};
use sha2::{Digest, Sha256};
use tokio::{sync::Notify, time::timeout};
use uuid::Uuid;

use crate::{
    auth::token::Keys,
    clock::Clock,
    db::{Writer, retry_on_conflict},
    error::Error,
    text,
};

/// Maximum number of mails of one kind in [`WINDOW`] for a subject.
const MAX_MAILS: usize = 3;

/// Maximum number of mails of one kind in [`WINDOW`] to an address. Higher, because other users can cause mails to the
/// address, which must not use up the limit of its owner.
const MAX_MAILS_TO_ADDRESS: usize = 10;

/// The time in which mails are counted.
const WINDOW: TimeDelta = TimeDelta::hours(1);

/// The interval at which the queue is read without a notification: for mails of other instances, and for retries.
const POLL: Duration = Duration::from_secs(2);

/// Maximum number of mails that one instance sends at the same time.
const CONCURRENT: u64 = 8;

/// Maximum time to send a mail. A server may check a mail for minutes before it accepts it (RFC 5321, 4.5.3.2).
const SEND_TIMEOUT: Duration = Duration::from_mins(5);

/// How long a claimed mail is not sent by another instance; longer than the attempt.
const CLAIMED: TimeDelta = TimeDelta::minutes(7);

/// The pause after the first failed attempt; each further one doubles it.
const FIRST_PAUSE: TimeDelta = TimeDelta::seconds(5);
const LONGEST_PAUSE: TimeDelta = TimeDelta::minutes(5);

/// The pause after a failure for which [`Retry::Later`] is set.
const REFUSED_PAUSE: TimeDelta = TimeDelta::minutes(10);

/// The place of the token in a link.
pub const TOKEN_PLACE: &str = "{token}";

gathering_settings::settings! {
    /// The links in mails. `{token}` is replaced by the token.
    pub struct MailLinks {
        /// The link in a mail for a new password, such as `https://app.example.com/reset?token={token}`; `{token}` is
        /// replaced by the token for `resetPassword`.
        reset_link: String = TOKEN_PLACE.to_owned();
        /// The link in a mail that verifies an address; `{token}` is replaced by the token for `verifyEmail`.
        verify_link: String = TOKEN_PLACE.to_owned();
    }
}

/// How mails are sent.
#[derive(Clone)]
pub struct MailSettings {
    /// Sends a mail.
    pub mailer: Arc<dyn Mailer>,
    /// The links in mails.
    pub links: MailLinks,
}

/// A mail to one recipient, as plain text.
pub struct Mail {
    /// The same at each attempt to send it.
    pub id: Uuid,
    /// The address of the recipient.
    pub to: String,
    /// The subject.
    pub subject: &'static str,
    /// The text.
    pub text: String,
}

/// Why a mail was not sent.
#[derive(Debug)]
pub struct MailError {
    /// The reason for the log, without the address of the recipient.
    pub reason: String,
    /// When to try again.
    pub retry: Retry,
}

/// When to try again to send a mail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// Soon, because the failure may be short.
    Soon,
    /// After a longer pause, because the server has refused the mail, or may have accepted it.
    Later,
    /// Never, because the mail cannot be sent.
    Never,
}

/// Sends mails.
pub trait Mailer: Send + Sync {
    /// Sends a mail. Returns when the mail server is responsible for it.
    fn send(&self, mail: Mail) -> BoxFuture<'_, Result<(), MailError>>;
}

/// The queue of mails.
pub(super) struct MailQueue {
    keys: Keys,
    settings: MailSettings,
    added: Arc<Notify>,
}

/// A mail to add to the queue.
pub(super) struct NewMail<'a> {
    pub(super) purpose: MailPurpose,
    /// The user; a hash of the address if it has no account.
    pub(super) subject: Uuid,
    pub(super) email: &'a str,
    pub(super) email_key: &'a str,
    /// False for a decoy row of an unknown address.
    pub(super) is_sent: bool,
}

/// The SHA-256 of a token, in hexadecimal.
pub(super) fn token_hash(token: &str) -> String {
    text::hex(&Sha256::digest(token))
}

fn has_token(purpose: MailPurpose) -> bool {
    match purpose {
        MailPurpose::ResetPassword | MailPurpose::VerifyEmail | MailPurpose::ChangeEmail => true,
        MailPurpose::AddressTaken | MailPurpose::AddressChanged => false,
    }
}

/// How long a mail is useful, and its token valid.
fn lifetime(purpose: MailPurpose) -> TimeDelta {
    match purpose {
        MailPurpose::ResetPassword => TimeDelta::hours(1),
        _ => TimeDelta::hours(24),
    }
}

/// The purposes that are counted together. A mail to an address that has an account counts like one to a free address.
fn counted(purpose: MailPurpose) -> &'static [MailPurpose] {
    match purpose {
        MailPurpose::ResetPassword => &[MailPurpose::ResetPassword],
        MailPurpose::VerifyEmail => &[MailPurpose::VerifyEmail],
        MailPurpose::ChangeEmail | MailPurpose::AddressTaken => {
            &[MailPurpose::ChangeEmail, MailPurpose::AddressTaken]
        }
        MailPurpose::AddressChanged => &[],
    }
}

/// Makes tokens unusable, and cancels their mails.
async fn cancel(db: &impl ConnectionTrait, mails: Condition) -> Result<u64, Error> {
    let usable = Condition::any()
        .add(Column::TokenHash.is_not_null())
        .add(Column::DueAt.is_not_null());
    let cancelled = Entity::update_many()
        .col_expr(Column::TokenHash, Expr::value(None::<String>))
        .col_expr(Column::DueAt, Expr::value(None::<DateTime<Utc>>))
        .filter(mails)
        .filter(usable)
        .exec(db)
        .await?;
    Ok(cancelled.rows_affected)
}

/// Makes all tokens of a user unusable.
pub(super) async fn cancel_tokens(db: &impl ConnectionTrait, user: Uuid) -> Result<(), Error> {
    let tokens = Condition::all()
        .add(Column::SubjectId.eq(user))
        .add(Column::TokenHash.is_not_null());
    cancel(db, tokens).await.map(drop)
}

/// The mail of a token that can be used.
pub(super) async fn find(
    db: &impl ConnectionTrait,
    token: &str,
    purposes: &[MailPurpose],
    now: DateTime<Utc>,
) -> Result<Option<Model>, Error> {
    Ok(Entity::find()
        .filter(Column::TokenHash.eq(token_hash(token)))
        .filter(Column::Purpose.is_in(purposes.iter().copied()))
        .filter(Column::ExpiresAt.gt(now))
        .one(db)
        .await?)
}

/// Writes the newest of these mails without a change. The lock of a user's row makes PostgreSQL write its log at the
/// commit; without this write, a commit for an unknown address would be faster.
async fn touch(db: &impl ConnectionTrait, mails: &[Model]) -> Result<(), Error> {
    let newest = mails.iter().map(|mail| mail.id).max();
    Entity::update_many()
        .col_expr(Column::Attempts, Expr::col(Column::Attempts))
        .filter(Column::Id.eq(newest))
        .exec(db)
        .await?;
    Ok(())
}

/// Uses the token of a mail; false if another request has used or replaced it.
pub(super) async fn consume(db: &impl ConnectionTrait, mail: &Model) -> Result<bool, Error> {
    let unused = Condition::all()
        .add(Column::Id.eq(mail.id))
        .add(Column::TokenHash.is_not_null());
    Ok(cancel(db, unused).await? == 1)
}

impl MailQueue {
    pub(super) fn new(keys: Keys, settings: MailSettings) -> Self {
        Self {
            keys,
            settings,
            added: Arc::default(),
        }
    }

    /// Adds a mail, and makes the earlier tokens for the same purpose unusable. Does nothing if too many mails were sent
    /// within the last hour. After the commit, [`MailQueue::notify`] sends it without delay.
    pub(super) async fn add(
        &self,
        db: &impl ConnectionTrait,
        mail: NewMail<'_>,
        now: DateTime<Utc>,
    ) -> Result<(), Error> {
        let purposes = counted(mail.purpose);
        if !purposes.is_empty() {
            let is_recent = Condition::all()
                .add(Column::CreatedAt.gt(now - WINDOW))
                .add(Column::Purpose.is_in(purposes.iter().copied()));
            let of_subject = Column::SubjectId.eq(mail.subject);
            let to_address = Column::EmailKey.eq(mail.email_key);
            let recent = Entity::find()
                .filter(of_subject.clone().or(to_address))
                .filter(is_recent)
                .limit((MAX_MAILS + MAX_MAILS_TO_ADDRESS) as u64);
            let recent = recent.all(db).await?;
            let count =
                |is_counted: &dyn Fn(&&Model) -> bool| recent.iter().filter(is_counted).count();
            if count(&|row| row.subject_id == mail.subject) >= MAX_MAILS
                || count(&|row| row.email_key == mail.email_key) >= MAX_MAILS_TO_ADDRESS
            {
                return touch(db, &recent).await;
            }
            let earlier = Condition::all()
                .add(of_subject)
                .add(Column::Purpose.is_in(purposes.iter().copied()));
            cancel(db, earlier).await?;
        }
        let id = Uuid::now_v7();
        let mut tokens = self.keys.mail_tokens(mail.purpose, id);
        let token = tokens.next().filter(|_| has_token(mail.purpose));
        let row = Model {
            id,
            created_at: now,
            purpose: mail.purpose,
            subject_id: mail.subject,
            email: mail.email.to_owned(),
            email_key: mail.email_key.to_owned(),
            token_hash: token.map(|token| token_hash(&token)),
            due_at: mail.is_sent.then_some(now),
            attempts: 0,
            expires_at: now + lifetime(mail.purpose),
        };
        Entity::insert(row.into_active_model())
            .exec_without_returning(db)
            .await?;
        Ok(())
    }

    /// Wakes the sender.
    pub(super) fn notify(&self) {
        self.added.notify_one();
    }

    /// Creates the task that sends the mails.
    pub(super) fn sender(
        &self,
        db: DatabaseConnection,
        writer: Writer,
        clock: Clock,
    ) -> MailSender {
        MailSender {
            db,
            writer,
            clock,
            keys: self.keys.clone(),
            settings: self.settings.clone(),
            added: Arc::clone(&self.added),
        }
    }
}

/// Sends the mails of the queue.
pub struct MailSender {
    db: DatabaseConnection,
    writer: Writer,
    clock: Clock,
    keys: Keys,
    settings: MailSettings,
    added: Arc<Notify>,
}

impl MailSender {
    /// Sends mails until `stop`, and finishes those that it has begun to send.
    pub fn run(self, mut stop: BoxFuture<'static, ()>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            loop {
                // The cause of an error has been logged. The mails stay in the queue.
                let tried = self.send_due().await.unwrap_or_default();
                let pause = if tried == 0 { POLL } else { Duration::ZERO };
                tokio::select! {
                    biased;
                    () = &mut stop => break,
                    _ = timeout(pause, self.added.notified()) => {}
                }
            }
        })
    }

    fn now(&self) -> DateTime<Utc> {
        (self.clock)().trunc_subsecs(6)
    }

    /// Tries to send the mails that are due. Returns the number of those that this instance has tried.
    async fn send_due(&self) -> Result<usize, Error> {
        let now = self.now();
        let due = Entity::find()
            .filter(Column::DueAt.lte(now))
            .filter(Column::ExpiresAt.gt(now))
            .order_by_asc(Column::DueAt)
            .limit(CONCURRENT);
        let due = due.all(&self.db).await?;
        let tried = join_all(due.into_iter().map(|mail| self.try_to_send(mail))).await;
        let tried = tried.into_iter().collect::<Result<Vec<_>, _>>()?;
        Ok(tried.into_iter().filter(|is_tried| *is_tried).count())
    }

    /// Sends a mail; false if another instance is sending it.
    async fn try_to_send(&self, mail: Model) -> Result<bool, Error> {
        let claimed = self.now() + CLAIMED;
        if !self.reschedule(&mail, mail.due_at, Some(claimed)).await? {
            return Ok(false);
        }
        let failed = |reason: &str| MailError {
            reason: reason.to_owned(),
            retry: Retry::Later,
        };
        let sent = match self.mail(&mail) {
            Some(content) => {
                let sent = timeout(SEND_TIMEOUT, self.settings.mailer.send(content)).await;
                sent.unwrap_or_else(|_| Err(failed("timeout")))
            }
            // Another instance may have the key.
            None => Err(failed("the signing key of its token is not configured")),
        };
        let next = match sent {
            Ok(()) => None,
            Err(error) => {
                let pause = pause(mail.attempts, error.retry);
                let next = pause.map(|pause| self.now() + pause);
                let next = next.filter(|next| *next < mail.expires_at);
                let (id, attempts) = (mail.id, mail.attempts);
                let then = next.map_or("it is dropped", |_| "it is tried again");
                tracing::warn!(mail = %id, reason = error.reason, attempts, "cannot send a mail; {then}");
                next
            }
        };
        self.reschedule(&mail, Some(claimed), next).await?;
        Ok(true)
    }

    /// Moves the due time of a mail; false if it is not the expected one, because another instance has claimed the mail,
    /// or its token was used or replaced.
    async fn reschedule(
        &self,
        mail: &Model,
        expected: Option<DateTime<Utc>>,
        next: Option<DateTime<Utc>>,
    ) -> Result<bool, Error> {
        let change = || async {
            let (transaction, _guard) = self.writer.begin().await?;
            let moved = Entity::update_many()
                .col_expr(Column::DueAt, Expr::value(next))
                .col_expr(Column::Attempts, Expr::value(mail.attempts + 1))
                .filter(Column::Id.eq(mail.id))
                .filter(Column::DueAt.eq(expected))
                .exec(&transaction)
                .await?;
            self.writer.commit(transaction).await?;
            Ok(moved.rows_affected == 1)
        };
        retry_on_conflict(change).await
    }

    /// The content of a mail; `None` if none of the keys is that of its token.
    fn mail(&self, mail: &Model) -> Option<Mail> {
        let token = match &mail.token_hash {
            Some(hash) => {
                let mut tokens = self.keys.mail_tokens(mail.purpose, mail.id);
                tokens.find(|token| token_hash(token) == *hash)?
            }
            None => String::new(),
        };
        let (subject, text) = self.text(mail.purpose, &token);
        Some(Mail {
            id: mail.id,
            to: mail.email.clone(),
            subject,
            text,
        })
    }

    fn text(&self, purpose: MailPurpose, token: &str) -> (&'static str, String) {
        let links = &self.settings.links;
        match purpose {
            MailPurpose::ResetPassword => (
                "Set a new password",
                format!(
                    "A new password was requested for your account.\nUse this within one hour to set it:\n\n{}\n\n\
                     If you did not request it, ignore this mail. Your password is unchanged.\n",
                    links.reset_link.replace(TOKEN_PLACE, token)
                ),
            ),
            MailPurpose::VerifyEmail => (
                "Verify your e-mail address",
                format!(
                    "This e-mail address was entered for an account.\nUse this within 24 hours to verify it:\n\n{}\n\n\
                     If you did not enter it, ignore this mail.\n",
                    links.verify_link.replace(TOKEN_PLACE, token)
                ),
            ),
            MailPurpose::ChangeEmail => (
                "Verify your new e-mail address",
                format!(
                    "This e-mail address was entered as the new address of an account.\nUse this within 24 hours to confirm \
                     the change:\n\n{}\n\nIf you did not enter it, ignore this mail. Nothing changes.\n",
                    links.verify_link.replace(TOKEN_PLACE, token)
                ),
            ),
            MailPurpose::AddressTaken => (
                "Your e-mail address has an account already",
                "This e-mail address was entered as the new address of an account, but it\nhas an account already. \
                 Nothing changes.\n\nIf you did not enter it, ignore this mail.\n"
                    .to_owned(),
            ),
            MailPurpose::AddressChanged => (
                "Your e-mail address was changed",
                "The e-mail address of your account was replaced by another one, which\nreceives all further mails.\n\n\
                 If you did not do this, tell the operator of the server immediately.\n"
                    .to_owned(),
            ),
        }
    }
}

/// The pause after a failed attempt; `None` if there is no further one.
fn pause(attempts: i32, retry: Retry) -> Option<TimeDelta> {
    match retry {
        Retry::Soon => {
            let doubled = 2_i32.saturating_pow(u32::try_from(attempts).unwrap_or_default());
            let pause = FIRST_PAUSE.checked_mul(doubled);
            Some(pause.map_or(LONGEST_PAUSE, |pause| pause.min(LONGEST_PAUSE)))
        }
        Retry::Later => Some(REFUSED_PAUSE),
        Retry::Never => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_maximum() {
        let seconds = |attempts| pause(attempts, Retry::Soon).map(|pause| pause.num_seconds());
        assert_eq!([0, 1, 2, 3].map(seconds), [5, 10, 20, 40].map(Some));
        assert_eq!([6, 31, i32::MAX].map(seconds), [Some(300); 3]);
    }

    #[test]
    fn a_refused_mail_is_tried_again_within_its_lifetime() {
        let pause = pause(0, Retry::Later).expect("a further attempt");
        assert!(pause * 2 < lifetime(MailPurpose::ResetPassword));
    }
}
