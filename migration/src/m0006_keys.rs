//! API keys, and service accounts: users without a password, who have an owner.

use sea_orm_migration::prelude::{
    DbErr, DeriveMigrationName, MigrationTrait, SchemaManager, async_trait,
};

use crate::table::{
    OnDelete::{Cascade, Restrict},
    Table, bool, list, one_of, text, time, uuid,
};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let users = Table::new("users");
        let kind = one_of("kind", &["PERSON", "SERVICE"]).default("'PERSON'");
        users.add(manager, &kind).await?;
        let owner = uuid("owner_id").nullable().to("users", Restrict);
        users.add(manager, &owner).await?;
        api_keys().create(manager).await?;
        api_key_circles().create(manager).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        api_key_circles().drop(manager).await?;
        api_keys().drop(manager).await?;
        let users = Table::new("users");
        users.remove(manager, "owner_id").await?;
        users.remove(manager, "kind").await
    }
}

/// A key of an agent is deleted with the agent, because without the agent it would reach more.
fn api_keys() -> Table {
    Table::new("api_keys")
        .columns([
            uuid("user_id").to("users", Cascade),
            uuid("agent_id").nullable().to("agents", Cascade),
            text("name", 1..=100),
            text("secret_hash", 64..=64),
            text("prefix", 1..=20),
            list("scopes"),
            bool("is_limited").default("FALSE"),
            text("quota_class", 1..=50).nullable(),
            time("expires_at").nullable(),
            time("last_used_at").nullable(),
            time("revoked_at").nullable(),
        ])
        .unique("secret_hash")
        .index("user_id, id")
        .index_where("agent_id", "agent_id IS NOT NULL")
        .index_where("revoked_at", "revoked_at IS NOT NULL")
}

/// The circles to which a key with `is_limited` is limited.
fn api_key_circles() -> Table {
    Table::keyed("api_key_circles", "key_id, circle_id")
        .columns([
            uuid("key_id").to("api_keys", Cascade),
            uuid("circle_id").to("circles", Cascade),
        ])
        .index("circle_id")
}
