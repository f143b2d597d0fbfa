//! The deletion of accounts.
//!
//! Nothing that other users use is lost with an account: it must be transferred, or taken from them, before.

use async_graphql::{Context, ID, InputObject, Object, SimpleObject};
use gathering_entity::{agent, circle, collaborator, conversation, member, project};
use sea_orm::{
    ColumnTrait, Condition, EntityTrait, PaginatorTrait, QueryFilter, QueryOrder, QuerySelect,
    QueryTrait, Select,
    sea_query::{Expr, ExprTrait},
};
use serde_json::json;
use uuid::Uuid;

use crate::{
    agent as agents,
    audit::AuditAction,
    circle as circles,
    conversation::workflow as conversations,
    data::{Change, Stop, change},
    db::Rule,
    error::{Code, Error},
    id::Kind,
    input::{UserError, UserErrorCode},
    project as projects,
    rate_limit::{Tier, rate_limit},
    request::RequestExt,
    transfer,
};

/// Input for `deleteAccount`.
#[derive(InputObject)]
pub struct DeleteAccountInput {
    /// The password of the caller.
    #[graphql(secret)]
    current_password: String,
    /// The id of the user whose account is deleted; the caller by default. Other users: for administrators.
    user_id: Option<ID>,
    /// Whether the circles, agents and projects of the account are deleted too.
    /// If false, an account that has any is not deleted.
    #[graphql(default)]
    delete_owned: bool,
}

/// Payload of `deleteAccount`.
#[derive(SimpleObject)]
pub struct DeleteAccountPayload {
    /// The id of the user whose account was deleted; null if it was not.
    deleted_user_id: Option<ID>,
    /// The reasons why the account was not deleted; empty on success.
    user_errors: Vec<UserError>,
}

/// The mutation that deletes accounts.
#[derive(Default)]
pub struct ErasureMutation;

#[Object]
impl ErasureMutation {
    /// Deletes the account of the caller, or for administrators of another user, irrevocably.
    /// Erases the e-mail address, the name, the password, the sessions, the API keys, the known networks and the
    /// service accounts, deletes the conversations outside of circles, and leaves the circles that others share. Ends all
    /// streams and sessions on every instance. The address can be registered again. Messages, tasks, events and the
    /// audit log keep the id of the user, whose name is then `Deleted user`. Has no effect on a deleted account.
    /// `userErrors` codes: `INVALID` for a wrong password, which counts as a failed sign-in; `PROTECTED` for the last
    /// active administrator; `IN_USE` while the account, or one of its service accounts, owns circles, agents or
    /// projects, and with `deleteOwned` while other users use them: circles that are shared, agents in circles of other
    /// users or in open conversations there, projects of circles of other users.
    #[graphql(directive = rate_limit::apply(Tier::Auth))]
    async fn delete_account(
        &self,
        ctx: &Context<'_>,
        input: DeleteAccountInput,
    ) -> Result<DeleteAccountPayload, Error> {
        let request = ctx.request();
        let viewer = request.viewer()?;
        let user = Kind::User.parse_opt(input.user_id.as_ref(), "userId")?;
        let user = user.unwrap_or(viewer.id());
        if user != viewer.id() {
            request.admin()?;
        }
        let accounts = request.accounts();
        let password = &input.current_password;
        let matched = accounts.reauthenticate(&request.client, viewer, password);
        if !matched.await? {
            return Ok(DeleteAccountPayload {
                deleted_user_id: None,
                user_errors: vec![UserError::new(
                    "currentPassword",
                    UserErrorCode::Invalid,
                    "Wrong current password, or too many attempts. After several failures, wait a few minutes.",
                )],
            });
        }
        let outcome = change(ctx, None, async |mut change| {
            let doomed = accounts.lock_doomed(&change.transaction, change.viewer, user);
            let doomed = doomed.await?;
            if doomed.is_erased() {
                return change.commit(vec![]).await;
            }
            if doomed.is_last_admin {
                let message = "The last active administrator cannot be deleted. Make another user an administrator first.";
                return Err(UserError::general(UserErrorCode::Protected, message).into());
            }
            let users = Users(doomed.ids());
            if input.delete_owned {
                users.check_unused(&change).await?;
                users.delete_owned(&mut change).await?;
            } else {
                users.check_owns_nothing(&change).await?;
            }
            users.delete_conversations(&mut change).await?;
            for id in &users.0 {
                circles::leave_all(&mut change, *id).await?;
                transfer::resolve_all(&mut change, *id).await?;
                change.note(AuditAction::UserDeleted, Kind::User, *id, json!({}));
            }
            let erased = accounts.erase(&change.transaction, doomed, change.now);
            for (event, ended) in erased.await? {
                change.append(event);
                change.end(ended);
            }
            change.commit(vec![]).await
        });
        let outcome = outcome.await?;
        let is_done = outcome.errors.is_empty();
        Ok(DeleteAccountPayload {
            deleted_user_id: is_done.then(|| Kind::User.id(user)),
            user_errors: outcome.errors,
        })
    }
}

/// The users who are deleted: a person and their service accounts, or one service account. Their rows are locked.
struct Users(Vec<Uuid>);

impl Users {
    fn own(&self, owner: impl ColumnTrait) -> Expr {
        owner.is_in(self.0.iter().copied())
    }

    fn circles(&self) -> Select<circle::Entity> {
        circle::Entity::find().filter(self.own(circle::Column::OwnerId))
    }

    fn agents(&self) -> Select<agent::Entity> {
        agent::Entity::find().filter(self.own(agent::Column::OwnerId))
    }

    fn projects(&self) -> Select<project::Entity> {
        project::Entity::find().filter(self.own(project::Column::OwnerId))
    }

    /// # Errors
    /// `IN_USE`.
    async fn check_owns_nothing(&self, change: &Change<'_>) -> Result<(), Stop> {
        let db = &change.transaction;
        let circles = self.circles().count(db).await?;
        let agents = self.agents().count(db).await?;
        let projects = self.projects().count(db).await?;
        if circles + agents + projects == 0 {
            return Ok(());
        }
        let message = format!(
            "The account and its service accounts own objects (circles: {circles}, agents: {agents}, projects: {projects}). \
             Transfer or delete them first, or set `deleteOwned`."
        );
        Err(in_use(message).into())
    }

    /// Checks that no other user uses what the users own.
    ///
    /// # Errors
    /// `IN_USE`.
    async fn check_unused(&self, change: &Change<'_>) -> Result<(), Stop> {
        let db = &change.transaction;
        let with_others = collaborator::Entity::find()
            .select_only()
            .column(collaborator::Column::CircleId)
            .filter(self.own(collaborator::Column::UserId).not())
            .into_query();
        let shared = circle::Column::Id.in_subquery(with_others);
        let elsewhere = circle::Entity::find()
            .select_only()
            .column(circle::Column::Id)
            .filter(self.own(circle::Column::OwnerId).not())
            .into_query();
        let at_work = member::Entity::find()
            .select_only()
            .column(member::Column::AgentId)
            .filter(member::Column::IsActive.eq(true))
            .filter(member::Column::CircleId.in_subquery(elsewhere))
            .into_query();
        let at_work = agent::Column::Id.in_subquery(at_work);
        let of_others = circle::Entity::find()
            .select_only()
            .column(circle::Column::ProjectId)
            .filter(self.own(circle::Column::OwnerId).not())
            .filter(circle::Column::ProjectId.is_not_null())
            .into_query();
        let used = project::Column::Id.in_subquery(of_others);
        let used = [
            (
                self.circles().filter(shared).count(db).await?,
                "Circles are shared with other users",
            ),
            (
                self.agents().filter(at_work).count(db).await?,
                "Agents are members of circles of other users",
            ),
            (
                self.projects().filter(used).count(db).await?,
                "Projects have circles of other users",
            ),
        ];
        let used = used.into_iter().filter(|(count, _)| *count > 0);
        let errors: Vec<UserError> = used
            .map(|(count, what)| {
                in_use(format!("{what} ({count}). Transfer or remove them first."))
            })
            .collect();
        if errors.is_empty() {
            Ok(())
        } else {
            Err(errors.into())
        }
    }

    /// # Errors
    /// `IN_USE` for an agent with open tasks or conversations.
    async fn delete_owned(&self, change: &mut Change<'_>) -> Result<(), Stop> {
        for id in ids(change, self.circles(), circle::Column::Id).await? {
            let own = Condition::all()
                .add(circle::Column::Id.eq(id))
                .add(self.own(circle::Column::OwnerId));
            let row = change.touched::<circle::Entity>(own, "userId").await;
            circles::delete(change, row.map_err(lost)?).await?;
        }
        // The agents may take part in them.
        self.delete_conversations(change).await?;
        for id in ids(change, self.agents(), agent::Column::Id).await? {
            let own = self.rule(agent::Column::OwnerId);
            let row = change.lock_for_delete::<agent::Entity>(&own, id, "userId");
            let row = row.await.map_err(lost)?;
            match agents::delete(change, row).await {
                Err(Stop::Refused(_)) => {
                    let message = "An agent has open tasks or conversations in circles of other users. End them first.";
                    return Err(in_use(message).into());
                }
                deleted => deleted?,
            }
        }
        for id in ids(change, self.projects(), project::Column::Id).await? {
            let own = self.rule(project::Column::OwnerId);
            let row = change.lock_for_delete::<project::Entity>(&own, id, "userId");
            projects::delete(change, row.await.map_err(lost)?).await?;
        }
        Ok(())
    }

    /// Deletes the conversations outside of circles, which no other user may read.
    async fn delete_conversations(&self, change: &mut Change<'_>) -> Result<(), Stop> {
        use conversation::Column::{CircleId, Id, OwnerId};
        let private = conversation::Entity::find()
            .filter(self.own(OwnerId))
            .filter(CircleId.is_null());
        for id in ids(change, private, Id).await? {
            let own = self.rule(OwnerId);
            let row = change.lock_for_delete::<conversation::Entity>(&own, id, "userId");
            conversations::delete_private(change, row.await.map_err(lost)?).await?;
        }
        Ok(())
    }

    fn rule(&self, owner: impl ColumnTrait) -> Rule {
        Rule::new(Condition::all().add(self.own(owner)))
    }
}

async fn ids<E: EntityTrait>(
    change: &Change<'_>,
    select: Select<E>,
    id: E::Column,
) -> Result<Vec<Uuid>, Error> {
    let select = select.select_only().column(id).order_by_asc(id);
    Ok(select.into_tuple().all(&change.transaction).await?)
}

/// An object that another transaction has deleted or transferred: the change is repeated.
fn lost(error: Error) -> Error {
    if error.code == Code::NotFound {
        Error::conflict()
    } else {
        error
    }
}

fn in_use(message: impl Into<String>) -> UserError {
    UserError::general(UserErrorCode::InUse, message)
}
