//! A mail to an account: queued, sent or cancelled, with the hash of its token.

use sea_orm::entity::prelude::*;

/// Why a mail is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EnumIter, DeriveActiveEnum)]
#[sea_orm(
    rs_type = "String",
    db_type = "Text",
    rename_all = "SCREAMING_SNAKE_CASE"
)]
pub enum MailPurpose {
    /// Has a token that sets a new password.
    ResetPassword,
    /// Has a token that verifies the user's address.
    VerifyEmail,
    /// Has a token that makes a new address the user's.
    ChangeEmail,
    /// Says that a user wanted to use an address that has an account.
    AddressTaken,
    /// Says to the former address that it was replaced.
    AddressChanged,
}

/// One row of `mails`.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "mails")]
pub struct Model {
    /// UUID v7; ids sort by creation time.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    /// When the row was created.
    pub created_at: DateTimeUtc,
    /// Why the mail is sent.
    pub purpose: MailPurpose,
    /// The user; a hash of the address if it has no account.
    pub subject_id: Uuid,
    /// The recipient's address.
    pub email: String,
    /// The folded address.
    pub email_key: String,
    /// The SHA-256 of the token, in hexadecimal; `None` without a token, or if it can no longer be used.
    pub token_hash: Option<String>,
    /// When to try to send it next; `None` if it was sent, or is not to be sent.
    pub due_at: Option<DateTimeUtc>,
    /// Number of attempts to send it.
    pub attempts: i32,
    /// When the token expires; the mail is not sent afterwards.
    pub expires_at: DateTimeUtc,
}

/// Empty: joins are written in the queries.
#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
