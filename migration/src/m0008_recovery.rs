//! Recovery of accounts: the mails to send with their tokens, and when an e-mail address was verified.

use sea_orm_migration::prelude::{
    DbErr, DeriveMigrationName, MigrationTrait, SchemaManager, async_trait,
};

use crate::table::{Column, Table, int, key, one_of, text, time, uuid};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        Table::new("users").add(manager, &verified_at()).await?;
        mails().create(manager).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        mails().drop(manager).await?;
        Table::new("users")
            .remove(manager, "email_verified_at")
            .await
    }
}

fn verified_at() -> Column {
    time("email_verified_at").nullable()
}

/// `subject_id` references no user, because a request for an unknown address writes a row too.
fn mails() -> Table {
    Table::new("mails")
        .columns([
            one_of(
                "purpose",
                &[
                    "RESET_PASSWORD",
                    "VERIFY_EMAIL",
                    "CHANGE_EMAIL",
                    "ADDRESS_TAKEN",
                    "ADDRESS_CHANGED",
                ],
            ),
            uuid("subject_id"),
            text("email", 0..=254),
            key("email_key", 254),
            text("token_hash", 64..=64).nullable(),
            time("due_at").nullable(),
            int("attempts").default("0"),
            time("expires_at"),
        ])
        .unique("token_hash")
        .index("subject_id, created_at")
        .index("email_key, created_at")
        .index("expires_at")
        .index_where("due_at", "due_at IS NOT NULL")
}
