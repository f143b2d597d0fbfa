//! The audit log: sign-ins, refused requests and administrative actions.

use std::sync::Arc;

use async_graphql::{Context, Enum, ID, InputObject, Object};
use gathering_entity::{audit, user};
use sea_orm::{ColumnTrait, Condition};
use serde_json::Value;

use crate::{
    access::Viewer,
    data::{Connection, Noun, Order, Page},
    db::{Rule, filter, is_one_of},
    error::Error,
    id::{self, Kind},
    request::RequestExt,
    scalar::DateTime,
    user::User,
};

/// The severity of an audit log entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
#[graphql(remote = "audit::AuditSeverity")]
pub enum AuditSeverity {
    /// Normal operation.
    Info,
    /// Needs attention when it is frequent.
    Warning,
    /// Needs attention.
    High,
    /// Needs immediate attention.
    Critical,
}

/// An audit log entry.
pub struct AuditEntry(pub(crate) Arc<audit::Model>);

/// An audit log entry: a sign-in, a refused request or an administrative action. For administrators.
#[Object]
impl AuditEntry {
    /// The id of the entry, `audit_…`.
    pub(crate) async fn id(&self) -> ID {
        Kind::Audit.id(self.0.id)
    }

    /// The action, such as `auth.login_failed`; at most 100 characters.
    async fn action(&self) -> &str {
        &self.0.action
    }

    /// The severity.
    async fn severity(&self) -> AuditSeverity {
        self.0.severity.into()
    }

    /// The user who performed the action; null if the caller was not authenticated.
    async fn actor(&self, ctx: &Context<'_>) -> Result<Option<User>, Error> {
        let Some(id) = self.0.actor_id else {
            return Ok(None);
        };
        Ok(ctx.request().row::<user::Entity>(id).await?.map(User::new))
    }

    /// The IP address of the client.
    async fn client_ip(&self) -> Option<&str> {
        self.0.client_ip.as_deref()
    }

    /// The `User-Agent` header of the client, at most 255 characters.
    async fn user_agent(&self) -> Option<&str> {
        self.0.user_agent.as_deref()
    }

    /// The id of the request, as in the header `X-Request-Id`.
    async fn request_id(&self) -> Option<&str> {
        self.0.request_id.as_deref()
    }

    /// The id of the affected object.
    async fn target_id(&self) -> Option<ID> {
        let kind = Kind::from_prefix(self.0.target_type.as_deref()?)?;
        Some(kind.id(self.0.target_id?))
    }

    /// Further details as JSON; never contains a secret.
    async fn details(&self) -> &Value {
        &self.0.details
    }

    /// When it was created.
    async fn created_at(&self) -> DateTime {
        self.0.created_at.into()
    }
}

impl From<Arc<audit::Model>> for AuditEntry {
    fn from(row: Arc<audit::Model>) -> Self {
        Self(row)
    }
}

impl Noun for AuditEntry {
    type Entity = audit::Entity;
    const KIND: Kind = Kind::Audit;
    const NAME: &'static str = "Audit";

    fn readable(viewer: &Viewer) -> Option<Rule> {
        viewer.is_admin().then(Rule::default)
    }
}

/// Filters the audit log. All conditions must hold; an empty list matches nothing.
#[derive(InputObject)]
pub struct AuditFilter {
    /// Only entries with exactly this action; at most 100 characters.
    action: Option<String>,
    /// Only entries with one of these severities.
    severity: Option<Vec<AuditSeverity>>,
    /// Only actions of this user.
    actor_id: Option<ID>,
    /// Only actions on the object with this id.
    target_id: Option<ID>,
}

impl AuditFilter {
    fn condition(self) -> Result<Condition, Error> {
        use audit::Column::{Action, ActorId, Severity, TargetId};
        let action = self
            .action
            .map(|action| filter(&action, "action"))
            .transpose()?;
        let severity = self
            .severity
            .map(|list| is_one_of::<audit::AuditSeverity>(Severity, list));
        let actor = Kind::User.parse_opt(self.actor_id.as_ref(), "actorId")?;
        let target = match self.target_id {
            Some(id) => match id::parse(&id) {
                Some((_, uuid)) => Some(uuid),
                None => return Err(Error::bad_input("`targetId` must be an id.").field("targetId")),
            },
            None => None,
        };
        Ok(Condition::all()
            .add_option(action.map(|action| Action.eq(action)))
            .add_option(severity)
            .add_option(actor.map(|id| ActorId.eq(id)))
            .add_option(target.map(|id| TargetId.eq(id))))
    }
}

/// Queries about the audit log.
#[derive(Default)]
pub struct AuditQuery;

#[Object]
impl AuditQuery {
    /// The audit log: sign-ins, refused requests and administrative actions, newest first. For administrators.
    async fn audit_log(
        &self,
        ctx: &Context<'_>,
        first: Option<i32>,
        after: Option<String>,
        last: Option<i32>,
        before: Option<String>,
        filter: Option<AuditFilter>,
    ) -> Result<Connection<AuditEntry>, Error> {
        ctx.request().admin()?;
        let condition = filter.map(AuditFilter::condition).transpose()?;
        Connection::new(
            condition.unwrap_or_else(Condition::all),
            Order::descending([audit::Column::Id]),
            &Page::new(first, after, last, before)?,
        )
    }
}
