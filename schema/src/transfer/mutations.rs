//! The mutations of transfers.

use async_graphql::{Context, ID, InputObject, Object, SimpleObject};
use gathering_entity::{
    agent, circle, project,
    transfer::{self, TransferStatus},
    user::{self, UserKind},
};
use sea_orm::{
    ActiveEnum, ActiveModelTrait, ColumnTrait, Condition, EntityTrait, IntoActiveModel,
    QueryFilter, QueryOrder, QuerySelect, Set,
    sea_query::{Expr, ExprTrait, LockType},
};
use serde_json::json;
use transfer::Column::{
    AgentId, CircleId, ExpiresAt, FromUserId, ProjectId, ResolvedAt, Status, ToUserId,
};
use uuid::Uuid;

use crate::{
    agent as agents,
    audit::AuditAction,
    auth::by_email,
    circle::{self as circles, Access},
    data::{Change, Noun, Outcome, Stop, change, unique},
    db::Rule,
    error::Error,
    events::EventType,
    id::Kind,
    input::{Check, UserError, UserErrorCode},
    project as projects,
    transfer::{LIFETIME, Transfer, TransferKind, event, status},
};

/// Maximum length of a message, in characters.
const MAX_MESSAGE: usize = 1_000;

/// Payload of the transfer mutations.
#[derive(SimpleObject)]
pub struct TransferPayload {
    /// The transfer in its current state; null if there is none.
    transfer: Option<Transfer>,
    /// Errors that the caller can correct; empty on success.
    user_errors: Vec<UserError>,
}

impl TransferPayload {
    async fn new(ctx: &Context<'_>, outcome: Outcome) -> Result<Self, Error> {
        Ok(Self {
            transfer: outcome.row::<Transfer>(ctx).await?,
            user_errors: outcome.errors,
        })
    }
}

/// Input for `transferCircle`.
#[derive(InputObject)]
pub struct TransferCircleInput {
    /// The id of the circle.
    circle_id: ID,
    #[graphql(flatten)]
    offer: Offer,
}

/// Input for `transferAgent`.
#[derive(InputObject)]
pub struct TransferAgentInput {
    /// The id of the agent.
    agent_id: ID,
    #[graphql(flatten)]
    offer: Offer,
}

/// Input for `transferProject`.
#[derive(InputObject)]
pub struct TransferProjectInput {
    /// The id of the project.
    project_id: ID,
    #[graphql(flatten)]
    offer: Offer,
}

/// The fields of every request for a transfer.
#[derive(InputObject)]
struct Offer {
    /// The id of the new owner. Exactly one of `newOwnerId` and `email` is required.
    new_owner_id: Option<ID>,
    /// The e-mail address of the new owner. Exactly one of `newOwnerId` and `email` is required.
    email: Option<String>,
    /// A note for the new owner, at most 1,000 characters.
    message: Option<String>,
}

/// Input for `acceptTransfer`, `declineTransfer` and `cancelTransfer`.
#[derive(InputObject)]
pub struct TransferActionInput {
    /// The id of the transfer.
    transfer_id: ID,
}

/// Mutations of transfers.
#[derive(Default)]
pub struct TransferMutation;

#[Object]
impl TransferMutation {
    /// Requests the transfer of a circle to a new owner, who accepts it with `acceptTransfer`.
    /// The request expires after 7 days. Requires its owner, or an administrator if the owner is deactivated.
    /// `NOT_FOUND` for a `newOwnerId` of no active user. `userErrors` codes besides input validation: `INVALID` for an
    /// `email` of no active user, for a service account and for the owner; `BAD_TRANSITION` while another transfer of
    /// the circle is `PENDING`.
    async fn transfer_circle(
        &self,
        ctx: &Context<'_>,
        input: TransferCircleInput,
    ) -> Result<TransferPayload, Error> {
        let field = "circleId";
        request(
            ctx,
            TransferKind::Circle,
            field,
            &input.circle_id,
            &input.offer,
        )
        .await
    }

    /// Requests the transfer of an agent to a new owner, who accepts it with `acceptTransfer`.
    /// The request expires after 7 days. Requires its owner, or an administrator if the owner is deactivated.
    /// `NOT_FOUND` for a `newOwnerId` of no active user. `userErrors` codes besides input validation: `INVALID` for an
    /// `email` of no active user, for a service account and for the owner; `BAD_TRANSITION` while another transfer of
    /// the agent is `PENDING`; `IN_USE` while the agent takes part in a conversation outside of circles that has not
    /// ended.
    async fn transfer_agent(
        &self,
        ctx: &Context<'_>,
        input: TransferAgentInput,
    ) -> Result<TransferPayload, Error> {
        let field = "agentId";
        request(
            ctx,
            TransferKind::Agent,
            field,
            &input.agent_id,
            &input.offer,
        )
        .await
    }

    /// Requests the transfer of a project to a new owner, who accepts it with `acceptTransfer`.
    /// The request expires after 7 days. Requires its owner, or an administrator if the owner is deactivated.
    /// `NOT_FOUND` for a `newOwnerId` of no active user. `userErrors` codes besides input validation: `INVALID` for an
    /// `email` of no active user, for a service account and for the owner; `BAD_TRANSITION` while another transfer of
    /// the project is `PENDING`.
    async fn transfer_project(
        &self,
        ctx: &Context<'_>,
        input: TransferProjectInput,
    ) -> Result<TransferPayload, Error> {
        let field = "projectId";
        request(
            ctx,
            TransferKind::Project,
            field,
            &input.project_id,
            &input.offer,
        )
        .await
    }

    /// Accepts a transfer: the caller becomes the owner of the circle, agent or project.
    /// A circle keeps its members, tasks, conversations and project; its former owner becomes an editor, unless
    /// deactivated. An agent keeps its memberships and tasks; its API keys are revoked. A project keeps its circles.
    /// Requires the new owner. `userErrors` codes: `TAKEN` if another object of the caller has the name, and then the
    /// transfer stays `PENDING`; `IN_USE` as in `transferAgent`; `BAD_TRANSITION` unless the transfer is `PENDING`.
    async fn accept_transfer(
        &self,
        ctx: &Context<'_>,
        input: TransferActionInput,
    ) -> Result<TransferPayload, Error> {
        let id = Kind::Transfer.parse(&input.transfer_id, "transferId")?;
        let outcome = change(ctx, Some(id), async |mut change| {
            let seen = readable(&change, id, None).await?;
            check_new_owner(&change, &seen).await?;
            // The object is locked first, as by its other changes and its deletion.
            let owned = Owned::lock(&change, &seen).await?;
            let row = readable(&change, id, Some(LockType::NoKeyUpdate)).await?;
            // A pending transfer is from the current owner, because nothing else changes the owner.
            check_pending(&change, &row, "accepted")?;
            owned.give(&mut change, row.to_user_id).await?;
            let recipient = row.from_user_id;
            resolve(&mut change, row, TransferStatus::Accepted, recipient).await?;
            change.commit(vec![id]).await
        });
        TransferPayload::new(ctx, outcome.await?).await
    }

    /// Declines a transfer. Requires the new owner.
    /// `userErrors` codes: `BAD_TRANSITION` unless the transfer is `PENDING`.
    async fn decline_transfer(
        &self,
        ctx: &Context<'_>,
        input: TransferActionInput,
    ) -> Result<TransferPayload, Error> {
        let id = Kind::Transfer.parse(&input.transfer_id, "transferId")?;
        let outcome = change(ctx, Some(id), async |mut change| {
            let row = readable(&change, id, Some(LockType::NoKeyUpdate)).await?;
            if row.to_user_id != change.viewer.id() {
                return Err(change.forbidden(Kind::Transfer, id).into());
            }
            check_pending(&change, &row, "declined")?;
            let recipient = row.from_user_id;
            resolve(&mut change, row, TransferStatus::Declined, recipient).await?;
            change.commit(vec![id]).await
        });
        TransferPayload::new(ctx, outcome.await?).await
    }

    /// Cancels a transfer. Requires the owner of the circle, agent or project, or an administrator.
    /// `userErrors` codes: `BAD_TRANSITION` unless the transfer is `PENDING`.
    async fn cancel_transfer(
        &self,
        ctx: &Context<'_>,
        input: TransferActionInput,
    ) -> Result<TransferPayload, Error> {
        let id = Kind::Transfer.parse(&input.transfer_id, "transferId")?;
        let outcome = change(ctx, Some(id), async |mut change| {
            let row = readable(&change, id, Some(LockType::NoKeyUpdate)).await?;
            if row.from_user_id != change.viewer.id() && !change.viewer.is_admin() {
                return Err(change.forbidden(Kind::Transfer, id).into());
            }
            check_pending(&change, &row, "cancelled")?;
            let recipient = row.to_user_id;
            resolve(&mut change, row, TransferStatus::Cancelled, recipient).await?;
            change.commit(vec![id]).await
        });
        TransferPayload::new(ctx, outcome.await?).await
    }
}

/// Requests a transfer.
async fn request(
    ctx: &Context<'_>,
    kind: TransferKind,
    field: &'static str,
    object: &ID,
    offer: &Offer,
) -> Result<TransferPayload, Error> {
    let object = kind.of_id().parse(object, field)?;
    let new_owner = Kind::User.parse_opt(offer.new_owner_id.as_ref(), "newOwnerId")?;
    let outcome = change(ctx, None, async |mut change| {
        let owner = lock_own(&change, kind, object, field).await?;
        let mut check = Check::default();
        let message = check.optional_text("message", offer.message.as_deref(), MAX_MESSAGE);
        let email = offer.email.as_deref();
        let email = email.map(|email| check.email("email", email).0);
        let to_field = if new_owner.is_some() {
            "newOwnerId"
        } else {
            "email"
        };
        let fault = |message| UserError::new(to_field, UserErrorCode::Invalid, message);
        if new_owner.is_some() == email.is_some() {
            let message = "Exactly one of `newOwnerId` and `email` is required.";
            check.fault(to_field, UserErrorCode::Invalid, message);
        }
        check.faults()?;
        let db = &change.transaction;
        let to = match new_owner {
            Some(id) => user::Entity::find_by_id(id).one(db).await?,
            None => by_email(db, &email.unwrap_or_default()).await?,
        };
        // The response must not reveal that a deactivated account exists.
        let Some(to) = to.filter(|user| user.is_active) else {
            return Err(match new_owner {
                Some(_) => Error::not_found("newOwnerId").into(),
                None => fault("No active user has this e-mail address.").into(),
            });
        };
        if to.id == owner {
            return Err(fault("This user is the owner already.").into());
        }
        if to.kind != UserKind::Person {
            return Err(fault("A service account cannot become an owner by a transfer.").into());
        }
        if kind == TransferKind::Agent {
            agents::check_transferable(&change, object).await?;
        }
        let of = |is: TransferKind| (kind == is).then_some(object);
        let row = transfer::Model {
            id: Uuid::now_v7(),
            created_at: change.now,
            circle_id: of(TransferKind::Circle),
            agent_id: of(TransferKind::Agent),
            project_id: of(TransferKind::Project),
            from_user_id: owner,
            to_user_id: to.id,
            requested_by: Some(change.viewer.id()),
            status: TransferStatus::Pending,
            message,
            expires_at: change.now + LIFETIME,
            resolved_at: None,
        };
        expire(&change, kind, object).await?;
        let insert = transfer::Entity::insert(row.clone().into_active_model());
        let inserted = insert.exec_without_returning(&change.transaction).await;
        unique(inserted, || {
            let prefix = kind.of_id().prefix();
            UserError::bad_transition(format!(
                "The {prefix} has a pending transfer. Cancel it first."
            ))
        })?;
        change.append(event::changed(EventType::TransferRequested, &row, to.id));
        note(&mut change, AuditAction::TransferRequested, &row);
        let id = row.id;
        Ok(change.commit(vec![id]).await?.with_row(row))
    });
    TransferPayload::new(ctx, outcome.await?).await
}

/// Locks an object that the viewer may transfer, and returns its owner.
///
/// # Errors
/// `NOT_FOUND`, naming `field`; `FORBIDDEN`.
async fn lock_own(
    change: &Change<'_>,
    kind: TransferKind,
    id: Uuid,
    field: &str,
) -> Result<Uuid, Error> {
    let owner = match kind {
        TransferKind::Circle => {
            let row = circles::accessible(change, id, field, Access::Owner).await?;
            row.owner_id
        }
        TransferKind::Agent => {
            let rule = &change.viewer.rules().agent;
            let row = change.row::<agent::Entity>(rule, id, field).await?;
            agents::editable(change, row)?.owner_id
        }
        TransferKind::Project => projects::editable(change, id, field).await?.owner_id,
    };
    if owner != change.viewer.id() {
        let is_active = user::Column::Id
            .eq(owner)
            .and(user::Column::IsActive.eq(true));
        if change.any::<user::Entity>(is_active).await? {
            return Err(change.forbidden(kind.of_id(), id));
        }
    }
    Ok(owner)
}

/// Writes the status of an expired transfer of the object, which would prevent another request.
async fn expire(change: &Change<'_>, kind: TransferKind, object: Uuid) -> Result<(), Error> {
    let column = match kind {
        TransferKind::Circle => CircleId,
        TransferKind::Agent => AgentId,
        TransferKind::Project => ProjectId,
    };
    transfer::Entity::update_many()
        .col_expr(Status, Expr::value(TransferStatus::Expired.to_value()))
        .col_expr(ResolvedAt, Expr::col(ExpiresAt))
        .filter(column.eq(object))
        .filter(Status.eq(TransferStatus::Pending))
        .filter(ExpiresAt.lte(change.now))
        .exec(&change.transaction)
        .await?;
    Ok(())
}

/// A transfer that the viewer may read, optionally locked until the end of the change.
///
/// # Errors
/// `NOT_FOUND`.
async fn readable(
    change: &Change<'_>,
    id: Uuid,
    lock: Option<LockType>,
) -> Result<transfer::Model, Error> {
    let none = || Error::not_found("transferId");
    let rule = Transfer::readable(change.viewer).ok_or_else(none)?;
    let mut select = transfer::Entity::find_by_id(id).filter(rule.condition());
    if let Some(lock) = lock {
        select = select.lock(lock);
    }
    let row = select.one(&change.transaction).await?;
    row.ok_or_else(none)
}

/// Checks that the viewer is the new owner, and keeps the account active until the end of the change.
///
/// # Errors
/// `FORBIDDEN`.
async fn check_new_owner(change: &Change<'_>, row: &transfer::Model) -> Result<(), Error> {
    if row.to_user_id != change.viewer.id() {
        return Err(change.forbidden(Kind::Transfer, row.id));
    }
    let user = user::Entity::find_by_id(row.to_user_id)
        .filter(user::Column::IsActive.eq(true))
        .lock(LockType::Share)
        .one(&change.transaction);
    user.await?.map(|_| ()).ok_or_else(Error::deactivated)
}

/// Checks that a transfer is pending.
///
/// # Errors
/// `BAD_TRANSITION`.
fn check_pending(change: &Change<'_>, row: &transfer::Model, done: &str) -> Result<(), UserError> {
    let status = status(row, change.now);
    if status == TransferStatus::Pending {
        Ok(())
    } else {
        Err(UserError::cannot("transfer", &status.to_value(), done))
    }
}

/// Writes the result of a transfer. `recipient` is the user who did not cause it.
async fn resolve(
    change: &mut Change<'_>,
    row: transfer::Model,
    status: TransferStatus,
    recipient: Uuid,
) -> Result<(), Error> {
    let mut new = row.into_active_model();
    new.status = Set(status);
    new.resolved_at = Set(Some(change.now));
    let row = new.update(&change.transaction).await?;
    let (kind, action) = match status {
        TransferStatus::Accepted => (EventType::TransferAccepted, AuditAction::TransferAccepted),
        TransferStatus::Declined => (EventType::TransferDeclined, AuditAction::TransferDeclined),
        _ => (EventType::TransferCancelled, AuditAction::TransferCancelled),
    };
    change.append(event::changed(kind, &row, recipient));
    note(change, action, &row);
    Ok(())
}

/// Declines the pending transfers to a user whose account is deleted, and erases the user's notes.
pub(crate) async fn resolve_all(change: &mut Change<'_>, user: Uuid) -> Result<(), Error> {
    let pending = transfer::Entity::find()
        .filter(ToUserId.eq(user))
        .filter(Status.eq(TransferStatus::Pending))
        .filter(ExpiresAt.gt(change.now))
        .order_by_asc(transfer::Column::Id)
        .lock(LockType::NoKeyUpdate);
    for row in pending.all(&change.transaction).await? {
        let recipient = row.from_user_id;
        resolve(change, row, TransferStatus::Declined, recipient).await?;
    }
    transfer::Entity::update_many()
        .col_expr(transfer::Column::Message, Expr::value(None::<String>))
        .filter(FromUserId.eq(user))
        .exec(&change.transaction)
        .await?;
    Ok(())
}

/// Adds an audit log entry about the object of a transfer.
fn note(change: &mut Change<'_>, action: AuditAction, row: &transfer::Model) {
    let Some((kind, id)) = TransferKind::of(row) else {
        return;
    };
    let user = |id| Kind::User.id(id).to_string();
    let details = json!({
        "transfer": Kind::Transfer.id(row.id).as_str(),
        "from": user(row.from_user_id),
        "to": user(row.to_user_id),
    });
    change.note(action, kind.of_id(), id, details);
}

/// The locked object of a transfer.
enum Owned {
    Circle(circle::Model),
    Agent(agent::Model),
    Project(project::Model),
}

impl Owned {
    /// # Errors
    /// `NOT_FOUND` if the object has been deleted, and the transfer with it.
    async fn lock(change: &Change<'_>, row: &transfer::Model) -> Result<Self, Error> {
        let (any, field) = (Rule::default(), "transferId");
        Ok(match TransferKind::of(row).ok_or_else(Error::internal)? {
            (TransferKind::Circle, id) => {
                let circle = Condition::all().add(circle::Column::Id.eq(id));
                Self::Circle(change.touched::<circle::Entity>(circle, field).await?)
            }
            (TransferKind::Agent, id) => {
                Self::Agent(change.row::<agent::Entity>(&any, id, field).await?)
            }
            (TransferKind::Project, id) => {
                Self::Project(change.row::<project::Entity>(&any, id, field).await?)
            }
        })
    }

    /// Changes the owner.
    ///
    /// # Errors
    /// `TAKEN`, `IN_USE`.
    async fn give(self, change: &mut Change<'_>, to: Uuid) -> Result<(), Stop> {
        match self {
            Self::Circle(row) => circles::change_owner(change, row, to).await,
            Self::Agent(row) => agents::change_owner(change, row, to).await,
            Self::Project(row) => projects::change_owner(change, row, to).await,
        }
    }
}
