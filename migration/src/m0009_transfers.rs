//! Transfers of ownership.

use sea_orm_migration::prelude::{
    DbErr, DeriveMigrationName, MigrationTrait, SchemaManager, async_trait,
};

use crate::table::{
    OnDelete::{Cascade, SetNull},
    Table, one_of, text, time, uuid,
};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        transfers().create(manager).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        transfers().drop(manager).await
    }
}

/// A transfer is deleted with its circle, agent or project.
fn transfers() -> Table {
    const PENDING: &str = "status = 'PENDING'";
    Table::new("transfers")
        .columns([
            uuid("circle_id").nullable().to("circles", Cascade),
            uuid("agent_id").nullable().to("agents", Cascade),
            uuid("project_id").nullable().to("projects", Cascade),
            uuid("from_user_id").to("users", Cascade),
            uuid("to_user_id").to("users", Cascade),
            uuid("requested_by").nullable().to("users", SetNull),
            one_of(
                "status",
                &["PENDING", "ACCEPTED", "DECLINED", "CANCELLED", "EXPIRED"],
            )
            .default("'PENDING'"),
            text("message", 1..=1_000).nullable(),
            time("expires_at"),
            time("resolved_at").nullable(),
        ])
        .check("(CASE WHEN circle_id IS NULL THEN 0 ELSE 1 END) + (CASE WHEN agent_id IS NULL THEN 0 ELSE 1 END) + (CASE WHEN project_id IS NULL THEN 0 ELSE 1 END) = 1")
        .check("from_user_id <> to_user_id")
        .check("(status = 'PENDING') = (resolved_at IS NULL)")
        .unique_where("circle_id", PENDING)
        .unique_where("agent_id", PENDING)
        .unique_where("project_id", PENDING)
        // For the deletion of what is transferred.
        .index_where("circle_id", "circle_id IS NOT NULL")
        .index_where("agent_id", "agent_id IS NOT NULL")
        .index_where("project_id", "project_id IS NOT NULL")
        .index("from_user_id, id")
        .index("to_user_id, id")
        .index_where("requested_by", "requested_by IS NOT NULL")
        .index("expires_at")
}
