//! A sign-in, a refusal or an administrative act, for the record.

use sea_orm::entity::prelude::*;

/// How much attention an audit entry deserves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EnumIter, DeriveActiveEnum)]
#[sea_orm(
    rs_type = "String",
    db_type = "Text",
    rename_all = "SCREAMING_SNAKE_CASE"
)]
pub enum AuditSeverity {
    /// Everyday.
    Info,
    /// Worth a look.
    Warning,
    /// Needs a look.
    High,
    /// Needs a look now.
    Critical,
}

/// One row of `audit_log`.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "audit_log")]
pub struct Model {
    /// UUID v7; creation order is id order.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    /// When the row was made.
    pub created_at: DateTimeUtc,
    /// A dotted name such as `auth.login_failed`.
    pub action: String,
    /// How much attention it deserves.
    pub severity: AuditSeverity,
    /// The user who acted, if one was signed in.
    pub actor_id: Option<Uuid>,
    /// The address of the client.
    pub client_ip: Option<String>,
    /// The program of the client.
    pub user_agent: Option<String>,
    /// The request in which it happened.
    pub request_id: Option<String>,
    /// The public prefix of what was acted on.
    pub target_type: Option<String>,
    /// The row that was acted on.
    pub target_id: Option<Uuid>,
    /// More about it, a JSON object.
    #[sea_orm(column_type = "JsonBinary")]
    pub details: Json,
}

/// Empty: a query that joins says so itself.
#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
