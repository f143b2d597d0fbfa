//! An audit log entry: a sign-in, a refused request or an administrative action.

use sea_orm::entity::prelude::*;

/// The severity of an audit log entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EnumIter, DeriveActiveEnum)]
#[sea_orm(
    rs_type = "String",
    db_type = "Text",
    rename_all = "SCREAMING_SNAKE_CASE"
)]
pub enum AuditSeverity {
    /// Normal operation.
    Info,
    /// Needs attention.
    Warning,
    /// Needs attention soon.
    High,
    /// Needs immediate attention.
    Critical,
}

/// One row of `audit_log`.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "audit_log")]
pub struct Model {
    /// UUID v7; ids sort by creation time.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    /// When the row was created.
    pub created_at: DateTimeUtc,
    /// The action: a dotted name such as `auth.login_failed`.
    pub action: String,
    /// The severity.
    pub severity: AuditSeverity,
    /// The authenticated user who acted; NULL without one.
    pub actor_id: Option<Uuid>,
    /// The client's IP address.
    pub client_ip: Option<String>,
    /// The client's `User-Agent`.
    pub user_agent: Option<String>,
    /// The id of the request that caused it.
    pub request_id: Option<String>,
    /// The id prefix of the target, such as `user`.
    pub target_type: Option<String>,
    /// The id of the target.
    pub target_id: Option<Uuid>,
    /// Further details, a JSON object.
    #[sea_orm(column_type = "JsonBinary")]
    pub details: Json,
}

/// Empty: joins are written in the queries.
#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
