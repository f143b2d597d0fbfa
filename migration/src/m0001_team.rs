//! Users and their tokens, the audit log, the catalogue of providers, models and personas, agents, projects, circles,
//! tasks, conversations, and the events about them.

use sea_orm_migration::prelude::{
    DbErr, DeriveMigrationName, MigrationTrait, SchemaManager, async_trait,
};

use crate::table::{
    OnDelete::{Cascade, Restrict, SetNull},
    Table, big, bool, int, json_value, key, list, micros, object, one_of, real, text, time, uuid,
};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for table in tables() {
            table.create(manager).await?;
        }
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for table in tables().iter().rev() {
            table.drop(manager).await?;
        }
        Ok(())
    }
}

/// Ordered so that each table references only earlier ones.
fn tables() -> [Table; 17] {
    [
        users(),
        refresh_tokens(),
        revoked_tokens(),
        audit_log(),
        providers(),
        models(),
        personas(),
        agents(),
        projects(),
        circles(),
        circle_collaborators(),
        circle_members(),
        tasks(),
        conversations(),
        conversation_participants(),
        messages(),
        events(),
    ]
}

fn users() -> Table {
    Table::new("users")
        .updated()
        .columns([
            text("email", 3..=254),
            key("email_key", 254),
            text("name", 1..=100),
            text("password_hash", 0..=255),
            one_of("role", &["USER", "ADMIN"]).default("'USER'"),
            bool("is_active").default("TRUE"),
            int("token_version").default("0"),
            int("failed_logins").default("0"),
            time("locked_until").nullable(),
            time("last_login_at").nullable(),
        ])
        .unique("email_key")
}

fn refresh_tokens() -> Table {
    Table::new("refresh_tokens")
        .columns([
            uuid("user_id").to("users", Cascade),
            uuid("family_id"),
            text("token_hash", 0..=64),
            time("expires_at"),
            time("used_at").nullable(),
            uuid("replaced_by").nullable(),
            time("revoked_at").nullable(),
            text("client_ip", 0..=45).nullable(),
            text("user_agent", 0..=255).nullable(),
        ])
        .unique("token_hash")
        .index("user_id, expires_at")
        .index("family_id")
        .index("expires_at")
}

fn revoked_tokens() -> Table {
    Table::keyed("revoked_tokens", "jti")
        .columns([
            uuid("jti"),
            time("created_at"),
            uuid("user_id").to("users", Cascade),
            time("expires_at"),
            time("revoked_at"),
            one_of("reason", &["LOGOUT", "PASSWORD_CHANGED", "ADMIN", "REUSE"]),
        ])
        .index("expires_at")
        .index("user_id")
}

fn audit_log() -> Table {
    Table::new("audit_log")
        .columns([
            text("action", 0..=100),
            one_of("severity", &["INFO", "WARNING", "HIGH", "CRITICAL"]).default("'INFO'"),
            uuid("actor_id").nullable().to("users", SetNull),
            text("client_ip", 0..=45).nullable(),
            text("user_agent", 0..=255).nullable(),
            text("request_id", 0..=64).nullable(),
            text("target_type", 0..=40).nullable(),
            uuid("target_id").nullable(),
            object("details").default("'{}'"),
        ])
        .index("action, id")
        .index("actor_id, id")
        .index("target_id, id")
        .index_where("severity, id", "severity IN ('HIGH', 'CRITICAL')")
}

fn providers() -> Table {
    Table::new("providers")
        .updated()
        .columns([
            text("name", 1..=50),
            text("display_name", 1..=100),
            text("api_base_url", 0..=2048).nullable(),
            bool("is_local").default("FALSE"),
        ])
        .check("ltrim(name, 'abcdefghijklmnopqrstuvwxyz0123456789_-') = ''")
        .check("substr(name, 1, 1) NOT IN ('_', '-')")
        .unique("name")
}

fn models() -> Table {
    Table::new("models")
        .updated()
        .columns([
            uuid("provider_id").to("providers", Restrict),
            text("name", 1..=100),
            text("display_name", 1..=200),
            micros("price_input"),
            micros("price_output"),
            micros("price_cache_read"),
            micros("price_cache_write"),
            int("context_window").default("128000").check("> 0"),
            int("max_output").default("4096").check("> 0"),
            bool("supports_vision").default("FALSE"),
            bool("supports_tools").default("TRUE"),
            bool("supports_streaming").default("TRUE"),
            bool("supports_thinking").default("FALSE"),
            bool("is_deprecated").default("FALSE"),
        ])
        .unique("provider_id, name")
        .index("provider_id, id")
}

fn personas() -> Table {
    Table::new("personas")
        .updated()
        .columns([
            text("name", 1..=100),
            key("name_key", 100),
            text("display_name", 1..=200),
            text("role", 1..=200),
            text("category", 0..=50).nullable(),
            text("description", 0..=10_000).nullable(),
            text("icon", 0..=50).nullable(),
            text("motto", 0..=500).nullable(),
            text("prompt", 0..=20_000).nullable(),
            list("traits"),
            list("competencies"),
            list("specializations"),
            list("languages"),
            text("communication_style", 0..=50).nullable(),
            uuid("default_model_id").nullable().to("models", SetNull),
            real("default_temperature")
                .default("0.7")
                .check("BETWEEN 0 AND 2"),
            bool("is_builtin").default("FALSE"),
        ])
        .unique("name_key")
        .index("category, id")
        .index("default_model_id")
}

fn agents() -> Table {
    Table::new("agents")
        .updated()
        .versioned()
        .columns([
            uuid("owner_id").to("users", Restrict),
            text("name", 1..=100),
            key("name_key", 100),
            uuid("persona_id").nullable().to("personas", Restrict),
            uuid("model_id").nullable().to("models", Restrict),
            text("system_prompt", 0..=20_000).nullable(),
            list("traits"),
            list("competencies"),
            list("specializations"),
            list("review_types"),
            text("communication_style", 0..=50).nullable(),
            object("competency_scores").default("'{}'"),
            real("review_strictness")
                .default("0.7")
                .check("BETWEEN 0 AND 1"),
            real("temperature").default("0.7").check("BETWEEN 0 AND 2"),
            int("max_tokens").nullable().check("> 0"),
            one_of("status", &["IDLE", "BUSY", "OFFLINE"]).default("'IDLE'"),
            int("reviews_total").default("0"),
            int("reviews_approved").default("0"),
            time("last_active_at"),
        ])
        .unique("owner_id, name_key")
        .index("owner_id, id")
        .index("owner_id, last_active_at, id")
        .index("owner_id, updated_at, id")
        .index("updated_at, id")
        .index("last_active_at, id")
        .index("name_key, id")
        .index("model_id")
        .index("persona_id")
        .index("status, id")
}

fn projects() -> Table {
    Table::new("projects")
        .updated()
        .columns([
            uuid("owner_id").to("users", Restrict),
            text("name", 1..=200),
            key("name_key", 200),
            text("description", 0..=10_000).nullable(),
            text("repository_url", 0..=2048).nullable(),
            text("default_branch", 1..=100).default("'main'"),
            list("tech_stack"),
            list("languages"),
            list("frameworks"),
            one_of("status", &["ACTIVE", "ARCHIVED"]).default("'ACTIVE'"),
        ])
        .unique_where("owner_id, name_key", "status = 'ACTIVE'")
        .index("owner_id, id")
        .index("owner_id, updated_at, id")
        .index("updated_at, id")
        .index("name_key, id")
}

fn circles() -> Table {
    Table::new("circles")
        .updated()
        .versioned()
        .columns([
            uuid("owner_id").to("users", Restrict),
            uuid("project_id").nullable().to("projects", SetNull),
            text("name", 1..=100),
            key("name_key", 100),
            text("display_name", 0..=200).nullable(),
            text("description", 0..=10_000).nullable(),
            one_of(
                "status",
                &["CREATED", "RUNNING", "PAUSED", "STOPPED", "ARCHIVED"],
            )
            .default("'CREATED'"),
            bool("require_review").default("TRUE"),
            bool("auto_route").default("TRUE"),
            int("max_members").default("50").check("BETWEEN 1 AND 500"),
            int("max_concurrent_tasks")
                .default("5")
                .check("BETWEEN 1 AND 100"),
            time("started_at").nullable(),
            time("stopped_at").nullable(),
            time("archived_at").nullable(),
        ])
        .unique_where("owner_id, name_key", "status <> 'ARCHIVED'")
        .index("owner_id, id")
        .index("owner_id, updated_at, id")
        .index("owner_id, name_key, id")
        .index("project_id, id")
        .index("status, id")
        .index("updated_at, id")
        .index("name_key, id")
}

fn circle_collaborators() -> Table {
    Table::new("circle_collaborators")
        .updated()
        .columns([
            uuid("circle_id").to("circles", Cascade),
            uuid("user_id").to("users", Cascade),
            one_of("role", &["VIEWER", "EDITOR"]),
            uuid("added_by").nullable().to("users", SetNull),
        ])
        .unique("circle_id, user_id")
        .index("circle_id, id")
        .index("user_id, circle_id")
}

fn circle_members() -> Table {
    Table::new("circle_members")
        .updated()
        .columns([
            uuid("circle_id").to("circles", Cascade),
            uuid("agent_id").to("agents", Cascade),
            one_of(
                "role",
                &["LEAD", "MEMBER", "SPECIALIST", "REVIEWER", "OBSERVER"],
            )
            .default("'MEMBER'"),
            list("competencies"),
            list("review_types"),
            bool("is_active").default("TRUE"),
            time("joined_at"),
            time("left_at").nullable(),
        ])
        .check("is_active OR left_at IS NOT NULL")
        .unique("circle_id, agent_id")
        .index("circle_id, joined_at, id")
        .index_where("circle_id, joined_at, id", "is_active")
        .index("agent_id")
        .index_where("agent_id, joined_at, id", "is_active")
}

fn tasks() -> Table {
    Table::new("tasks")
        .updated()
        .versioned()
        .columns([
            uuid("circle_id").to("circles", Cascade),
            uuid("parent_id").nullable().to("tasks", SetNull),
            text("title", 1..=500),
            text("description", 0..=20_000).nullable(),
            list("required_competencies"),
            one_of("priority", &["LOW", "MEDIUM", "HIGH", "CRITICAL"]).default("'MEDIUM'"),
            int("priority_rank").default("5"),
            one_of(
                "status",
                &[
                    "PENDING",
                    "ASSIGNED",
                    "IN_PROGRESS",
                    "IN_REVIEW",
                    "CHANGES_REQUESTED",
                    "BLOCKED",
                    "COMPLETED",
                    "FAILED",
                    "CANCELLED",
                ],
            )
            .default("'PENDING'"),
            uuid("assignee_id").nullable().to("agents", SetNull),
            uuid("reviewer_id").nullable().to("agents", SetNull),
            uuid("created_by").nullable().to("users", SetNull),
            bool("requires_review"),
            one_of(
                "review_type",
                &[
                    "CODE",
                    "ARCHITECTURE",
                    "SECURITY",
                    "DOCUMENTATION",
                    "QUALITY",
                    "FINAL",
                ],
            )
            .default("'QUALITY'"),
            int("review_round").default("0"),
            text("review_note", 0..=10_000).nullable(),
            text("status_note", 0..=2000).nullable(),
            text("result", 0..=50_000).nullable(),
            list("artifacts"),
            real("estimated_hours").nullable().check(">= 0"),
            real("actual_hours").nullable().check(">= 0"),
            time("due_at").nullable(),
            time("started_at").nullable(),
            time("submitted_at").nullable(),
            time("completed_at").nullable(),
            int("cycle_seconds").nullable(),
        ])
        .check(
            "priority_rank = CASE priority \
             WHEN 'CRITICAL' THEN 1 WHEN 'HIGH' THEN 3 WHEN 'MEDIUM' THEN 5 ELSE 8 END",
        )
        .index("circle_id, id")
        .index("circle_id, status, id")
        .index("circle_id, priority_rank, id")
        .index("circle_id, updated_at, id")
        .index("assignee_id, id")
        .index("assignee_id, status")
        .index("circle_id, assignee_id, status")
        .index("reviewer_id, status")
        .index("parent_id, id")
        .index("status, id")
        .index("priority_rank, id")
        .index("updated_at, id")
        .index("due_at")
}

fn conversations() -> Table {
    Table::new("conversations")
        .updated()
        .versioned()
        .columns([
            uuid("owner_id").to("users", Restrict),
            uuid("circle_id").nullable().to("circles", SetNull),
            uuid("task_id").nullable().to("tasks", SetNull),
            text("topic", 1..=500),
            text("initial_prompt", 0..=20_000).nullable(),
            one_of(
                "turn_strategy",
                &[
                    "ROUND_ROBIN",
                    "MENTION_BASED",
                    "FREE_FORM",
                    "FACILITATOR_LED",
                ],
            )
            .default("'ROUND_ROBIN'"),
            uuid("facilitator_id").nullable().to("agents", SetNull),
            int("max_turns").default("10").check("BETWEEN 1 AND 200"),
            int("turns_taken").default("0"),
            int("next_index").default("0"),
            uuid("next_speaker_id").nullable().to("agents", SetNull),
            int("last_seq").default("0"),
            one_of(
                "status",
                &[
                    "PENDING",
                    "ACTIVE",
                    "PAUSED",
                    "COMPLETED",
                    "FAILED",
                    "CANCELLED",
                ],
            )
            .default("'PENDING'"),
            text("summary", 0..=20_000).nullable(),
            text("end_reason", 0..=500).nullable(),
            time("started_at").nullable(),
            time("last_message_at").nullable(),
            time("ended_at").nullable(),
        ])
        .index("owner_id, id")
        .index("circle_id, id")
        .index("circle_id, status, id")
        .index("task_id, id")
        .index("status, id")
        .index("facilitator_id")
        .index("next_speaker_id")
}

fn conversation_participants() -> Table {
    Table::keyed("conversation_participants", "conversation_id, agent_id")
        .columns([
            uuid("conversation_id").to("conversations", Cascade),
            uuid("agent_id").to("agents", Cascade),
            int("position"),
            time("joined_at"),
        ])
        .unique("conversation_id, position")
        .index("agent_id, conversation_id")
}

fn messages() -> Table {
    Table::new("messages")
        .columns([
            uuid("conversation_id").to("conversations", Cascade),
            int("seq"),
            one_of("role", &["USER", "ASSISTANT", "SYSTEM", "TOOL"]),
            uuid("agent_id").nullable().to("agents", SetNull),
            uuid("user_id").nullable().to("users", SetNull),
            text("author_name", 1..=200),
            text("content", 1..=100_000),
            list("mentions"),
            uuid("parent_id").nullable().to("messages", SetNull),
            bool("is_pinned").default("FALSE"),
            uuid("model_id").nullable().to("models", SetNull),
            int("tokens_input").nullable(),
            int("tokens_output").nullable(),
            int("thinking_ms").nullable(),
            json_value("tool_calls").nullable(),
            json_value("tool_results").nullable(),
        ])
        .unique("conversation_id, seq")
        .index("agent_id, id")
        .index("agent_id, conversation_id")
        .index("conversation_id, is_pinned, seq")
        .index("user_id")
        .index("parent_id")
        .index("model_id")
}

/// No foreign keys: events are kept after their subjects are deleted.
fn events() -> Table {
    Table::keyed("events", "id")
        .columns([
            uuid("id"),
            big("position").nullable(),
            text("type", 0..=60),
            text("subject_type", 0..=40),
            uuid("subject_id"),
            uuid("owner_id").nullable(),
            uuid("circle_id").nullable(),
            uuid("project_id").nullable(),
            uuid("agent_id").nullable(),
            uuid("actor_user_id").nullable(),
            uuid("actor_agent_id").nullable(),
            object("payload"),
            text("request_id", 0..=64).nullable(),
            time("occurred_at"),
        ])
        .unique("position")
        .index("circle_id, position")
        .index("owner_id, position")
        .index("project_id, position")
        .index("agent_id, position")
        .index("subject_id, position")
        .index("type, position")
        .index("occurred_at")
}
