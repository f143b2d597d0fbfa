//! Transfers: requests to give a circle, an agent or a project to a new owner, who accepts or declines.

pub mod event;
pub mod mutations;

use std::sync::Arc;

use async_graphql::{Context, Enum, ID, InputObject, Object};
use chrono::{TimeDelta, Utc};
use gathering_entity::{agent, circle, project, transfer, user};
use sea_orm::{
    ColumnTrait, Condition, DatabaseConnection, EntityTrait, QueryFilter,
    sea_query::{Expr, ExprTrait},
};
use transfer::Column::{ExpiresAt, FromUserId, Status, ToUserId};
use uuid::Uuid;

use crate::{
    access::Viewer,
    data::{Connection, Noun, Order, Page},
    db::Rule,
    error::Error,
    id::Kind,
    node::Node,
    request::RequestExt,
    scalar::DateTime,
    user::User,
};

pub use mutations::TransferMutation;
pub(crate) use mutations::resolve_all;

/// How long a transfer can be accepted.
const LIFETIME: TimeDelta = TimeDelta::days(7);

/// How long a transfer is kept after it can no longer be accepted.
const KEPT: TimeDelta = TimeDelta::days(30);

/// The type of a transferred object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
pub enum TransferKind {
    /// A circle.
    Circle,
    /// An agent.
    Agent,
    /// A project.
    Project,
}

impl TransferKind {
    /// The object of a transfer.
    fn of(row: &transfer::Model) -> Option<(Self, Uuid)> {
        let circle = row.circle_id.map(|id| (Self::Circle, id));
        let agent = row.agent_id.map(|id| (Self::Agent, id));
        let project = row.project_id.map(|id| (Self::Project, id));
        circle.or(agent).or(project)
    }

    /// The type of the object's id.
    fn of_id(self) -> Kind {
        match self {
            Self::Circle => Kind::Circle,
            Self::Agent => Kind::Agent,
            Self::Project => Kind::Project,
        }
    }
}

/// The status of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
#[graphql(remote = "transfer::TransferStatus")]
pub enum TransferStatus {
    /// Not yet accepted or declined.
    Pending,
    /// Accepted: the owner has changed.
    Accepted,
    /// Declined by the new owner.
    Declined,
    /// Cancelled by the owner or an administrator.
    Cancelled,
    /// Expired: the new owner did not respond within 7 days.
    Expired,
}

/// The direction of a transfer, from the caller's point of view.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
pub enum TransferDirection {
    /// The caller is the new owner.
    Incoming,
    /// The caller is the owner at the time of the request.
    Outgoing,
}

/// A transfer.
pub struct Transfer(Arc<transfer::Model>);

/// A request to transfer a circle, an agent or a project to a new owner, who accepts or declines it.
/// Visible to both users and to administrators, and deleted with the object. Stored for 30 days after `expiresAt`.
#[Object]
impl Transfer {
    /// The id of the transfer, `transfer_…`.
    pub(crate) async fn id(&self) -> ID {
        Kind::Transfer.id(self.0.id)
    }

    /// The type of the object.
    async fn kind(&self) -> Result<TransferKind, Error> {
        Ok(self.object()?.0)
    }

    /// The circle, agent or project. Null if the viewer may not read it, as the new owner before the acceptance.
    async fn resource(&self, ctx: &Context<'_>) -> Result<Option<Node>, Error> {
        let (kind, id) = self.object()?;
        Node::load(ctx.request(), kind.of_id(), id).await
    }

    /// The current name of the circle, agent or project.
    /// The new owner may read it while the transfer is `PENDING`; after that, null if the viewer may not read the object.
    async fn name(&self, ctx: &Context<'_>) -> Result<Option<String>, Error> {
        let request = ctx.request();
        let (kind, id) = self.object()?;
        let is_pending = status(&self.0, request.now()) == transfer::TransferStatus::Pending;
        let (any, rules) = (Rule::default(), request.viewer()?.rules());
        let rule = |own| if is_pending { &any } else { own };
        Ok(match kind {
            TransferKind::Circle => {
                let row = request
                    .readable::<circle::Entity>(rule(&rules.circle), id)
                    .await?;
                row.map(|row| row.name.clone())
            }
            TransferKind::Agent => {
                let row = request
                    .readable::<agent::Entity>(rule(&rules.agent), id)
                    .await?;
                row.map(|row| row.name.clone())
            }
            TransferKind::Project => {
                let row = request
                    .readable::<project::Entity>(rule(&rules.project), id)
                    .await?;
                row.map(|row| row.name.clone())
            }
        })
    }

    /// The owner at the time of the request.
    #[graphql(name = "fromUser")]
    async fn previous_owner(&self, ctx: &Context<'_>) -> Result<User, Error> {
        let row = ctx.request().row::<user::Entity>(self.0.from_user_id);
        let row = row.await?.map(User::new);
        row.ok_or_else(|| Error::not_found("fromUser"))
    }

    /// The new owner.
    #[graphql(name = "toUser")]
    async fn new_owner(&self, ctx: &Context<'_>) -> Result<User, Error> {
        let row = ctx.request().row::<user::Entity>(self.0.to_user_id);
        let row = row.await?.map(User::new);
        row.ok_or_else(|| Error::not_found("toUser"))
    }

    /// The user who requested the transfer: the owner, or an administrator if the owner is deactivated.
    async fn requested_by(&self, ctx: &Context<'_>) -> Result<Option<User>, Error> {
        let Some(id) = self.0.requested_by else {
            return Ok(None);
        };
        Ok(ctx.request().row::<user::Entity>(id).await?.map(User::new))
    }

    /// The status.
    async fn status(&self, ctx: &Context<'_>) -> TransferStatus {
        status(&self.0, ctx.request().now()).into()
    }

    /// A note for the new owner, at most 1,000 characters.
    async fn message(&self, ctx: &Context<'_>) -> Result<Option<&str>, Error> {
        ctx.request().text(self.0.message.as_deref())
    }

    /// When it was created.
    async fn created_at(&self) -> DateTime {
        self.0.created_at.into()
    }

    /// When it expires unless it has been accepted, 7 days after its creation.
    async fn expires_at(&self) -> DateTime {
        self.0.expires_at.into()
    }

    /// When it was accepted, declined or cancelled, or expired. Null while it is `PENDING`.
    async fn resolved_at(&self, ctx: &Context<'_>) -> Option<DateTime> {
        let is_expired = self.0.expires_at <= ctx.request().now();
        let expired = is_expired.then_some(self.0.expires_at);
        self.0.resolved_at.or(expired).map(DateTime)
    }
}

impl Transfer {
    fn object(&self) -> Result<(TransferKind, Uuid), Error> {
        TransferKind::of(&self.0).ok_or_else(Error::internal)
    }
}

impl From<Arc<transfer::Model>> for Transfer {
    fn from(row: Arc<transfer::Model>) -> Self {
        Self(row)
    }
}

impl Noun for Transfer {
    type Entity = transfer::Entity;
    const KIND: Kind = Kind::Transfer;
    const NAME: &'static str = "Transfer";

    fn readable(viewer: &Viewer) -> Option<Rule> {
        // The objects may be outside of the circles of a limited key.
        if viewer.is_limited() {
            return None;
        }
        if viewer.is_admin() {
            return Some(Rule::default());
        }
        Some(Rule::new(is_party(viewer)))
    }
}

/// Condition: the viewer is one of the two users.
fn is_party(viewer: &Viewer) -> Condition {
    Condition::any()
        .add(ToUserId.eq(viewer.id()))
        .add(FromUserId.eq(viewer.id()))
}

/// The status at a time. The status of an expired transfer is not written when it expires.
fn status(row: &transfer::Model, now: chrono::DateTime<Utc>) -> transfer::TransferStatus {
    use transfer::TransferStatus::{Expired, Pending};
    match row.status {
        Pending if row.expires_at <= now => Expired,
        status => status,
    }
}

/// Deletes old transfers.
///
/// # Errors
/// The database cannot be written.
pub(crate) async fn purge(
    db: &DatabaseConnection,
    now: chrono::DateTime<Utc>,
) -> Result<(), Error> {
    transfer::Entity::delete_many()
        .filter(ExpiresAt.lt(now - KEPT))
        .exec(db)
        .await?;
    Ok(())
}

/// Filters a list of transfers. All conditions must hold; an empty list matches nothing.
#[derive(InputObject)]
pub struct TransferFilter {
    /// Only transfers of this direction.
    direction: Option<TransferDirection>,
    /// Only transfers with one of these statuses.
    status: Option<Vec<TransferStatus>>,
}

impl TransferFilter {
    fn condition(self, viewer: &Viewer, now: chrono::DateTime<Utc>) -> Condition {
        let direction = self.direction.map(|direction| match direction {
            TransferDirection::Incoming => ToUserId.eq(viewer.id()),
            TransferDirection::Outgoing => FromUserId.eq(viewer.id()),
        });
        let status = self.status.map(|list| {
            // Makes an empty list match nothing.
            let none = Condition::any().add(Expr::val(false).eq(true));
            list.into_iter()
                .fold(none, |any, status| any.add(has_status(status.into(), now)))
        });
        Condition::all().add_option(direction).add_option(status)
    }
}

/// Condition: the transfer has this status at a time.
fn has_status(status: transfer::TransferStatus, now: chrono::DateTime<Utc>) -> Condition {
    use transfer::TransferStatus::{Expired, Pending};
    let stored = Condition::all().add(Status.eq(status));
    match status {
        Pending => stored.add(ExpiresAt.gt(now)),
        Expired => Condition::any().add(stored).add(
            Condition::all()
                .add(Status.eq(Pending))
                .add(ExpiresAt.lte(now)),
        ),
        _ => stored,
    }
}

/// Queries about transfers.
#[derive(Default)]
pub struct TransferQuery;

#[Object]
impl TransferQuery {
    /// The transfers from and to the caller, newest first. For administrators: those of all users.
    async fn transfers(
        &self,
        ctx: &Context<'_>,
        first: Option<i32>,
        after: Option<String>,
        last: Option<i32>,
        before: Option<String>,
        filter: Option<TransferFilter>,
    ) -> Result<Connection<Transfer>, Error> {
        let request = ctx.request();
        let viewer = request.viewer()?;
        let own = (!viewer.is_admin()).then(|| is_party(viewer));
        let filter = filter.map(|filter| filter.condition(viewer, request.now()));
        Connection::new(
            Condition::all().add_option(own).add_option(filter),
            Order::descending([transfer::Column::Id]),
            &Page::new(first, after, last, before)?,
        )
    }
}
