//! Sharing: the access of users to circles, and the collaborators of a circle.

use std::sync::Arc;

use async_graphql::{Context, Enum, SimpleObject};
use futures_util::future::try_join_all;
use gathering_entity::{circle, collaborator, user};
use sea_orm::{
    ActiveModelTrait, ColumnTrait, Condition, DbErr, EntityTrait, FromQueryResult, IdenStatic,
    IntoActiveModel, Iterable, QueryFilter, QueryOrder, QueryResult, QuerySelect, QueryTrait, Set,
    sea_query::{Expr, ExprTrait, SelectStatement},
};
use uuid::Uuid;

use crate::{
    access::Viewer,
    circle::event::{collaboration, owner_changed},
    data::{Change, Column, Draft, EdgeField, Entries, Listed, One, Stop, unique},
    db::revision,
    error::{Code, Error},
    events::EventType,
    id::Kind,
    input::{UserError, UserErrorCode},
    request::RequestExt,
    scalar::DateTime,
    user::User,
};

/// The role of a collaborator: a user with whom a circle is shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
#[graphql(remote = "collaborator::CollaboratorRole")]
pub enum CollaboratorRole {
    /// Can read the circle and its contents.
    Viewer,
    /// Can also change members, tasks and conversations, and start, pause and stop the circle.
    Editor,
}

/// The access level of a user to a circle, lowest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Enum)]
pub enum Access {
    /// Can read the circle and its contents.
    Viewer,
    /// Can also change members, tasks and conversations, and start, pause and stop the circle.
    Editor,
    /// Can also rename, share, archive and delete the circle.
    Owner,
    /// An administrator: full access to every circle.
    Admin,
}

/// Marker type for connections of the users with whom a circle is shared.
pub struct CircleCollaborators;

impl Listed for CircleCollaborators {
    type Entity = collaborator::Entity;
    type Node = User;
    type Extra = Collaboration;
    const NAME: &'static str = "CircleCollaborator";

    async fn nodes(
        ctx: &Context<'_>,
        rows: &[Arc<collaborator::Model>],
    ) -> Result<Vec<Option<User>>, Error> {
        let users = rows
            .iter()
            .map(|row| ctx.request().row::<user::Entity>(row.user_id));
        Ok(try_join_all(users)
            .await?
            .into_iter()
            .map(|user| user.map(User::new))
            .collect())
    }

    fn extra(row: &Arc<collaborator::Model>) -> Collaboration {
        Collaboration {
            role: row.role.into(),
            added_at: row.created_at.into(),
        }
    }

    fn entries() -> Option<Entries> {
        use collaborator::Column::{CreatedAt, Role, UserId};
        Some(Entries {
            node: Some(One::to::<User>(UserId)),
            row: String::new(),
            extra: vec![
                ("role", EdgeField::Column(Column::of(Role))),
                ("addedAt", EdgeField::Column(Column::of(CreatedAt))),
            ],
        })
    }
}

/// Edge fields of a circle's collaborator.
#[derive(SimpleObject)]
pub struct Collaboration {
    /// The role of the user in the circle.
    role: CollaboratorRole,
    /// When the circle was shared with the user.
    added_at: DateTime,
}

/// Circles to which the viewer has exactly one of these access levels.
pub(super) fn with_access(access: &[Access], viewer: &Viewer) -> Condition {
    if viewer.is_admin() {
        let all = access.contains(&Access::Admin);
        return Condition::all().add(Expr::val(all).eq(true));
    }
    let shared = |role: collaborator::CollaboratorRole| {
        let ids = collaborator::Entity::find()
            .select_only()
            .column(collaborator::Column::CircleId)
            .filter(collaborator::Column::UserId.eq(viewer.id()))
            .filter(collaborator::Column::Role.eq(role))
            .into_query();
        circle::Column::Id
            .in_subquery(ids)
            .and(circle::Column::OwnerId.ne(viewer.id()))
    };
    access.iter().fold(
        // Makes an empty list match nothing.
        Condition::any().add(Expr::val(false).eq(true)),
        |any, access| match access {
            Access::Viewer => any.add(shared(collaborator::CollaboratorRole::Viewer)),
            Access::Editor => any.add(shared(collaborator::CollaboratorRole::Editor)),
            Access::Owner => any.add(circle::Column::OwnerId.eq(viewer.id())),
            Access::Admin => any,
        },
    )
}

/// Loads and locks a circle to which the viewer has at least this access. Every change to a circle or its contents
/// locks the circle first, so concurrent changes wait until this transaction ends.
///
/// # Errors
/// `NOT_FOUND`, naming `field`; `FORBIDDEN`.
pub(crate) async fn accessible(
    change: &Change<'_>,
    id: Uuid,
    field: &str,
    least: Access,
) -> Result<circle::Model, Error> {
    let is_circle = change.viewer.rules().circle.and(circle::Column::Id.eq(id));
    let row = change.touched::<circle::Entity>(is_circle, field).await?;
    if change.viewer.is_admin() || row.owner_id == change.viewer.id() {
        return Ok(row);
    }
    let mine = collaborator::Entity::find()
        .filter(collaborator::Column::CircleId.eq(id))
        .filter(collaborator::Column::UserId.eq(change.viewer.id()));
    let share = mine.one(&change.transaction).await?;
    check_access(change, &row, share.map(|share| share.role), field, least)?;
    Ok(row)
}

/// A circle as a draft reads it, with the viewer's role in it.
#[derive(Clone)]
pub(crate) struct Seen {
    circle: circle::Model,
    role: Option<collaborator::CollaboratorRole>,
    revision: String,
}

impl Seen {
    /// The prefix of the columns of the circle.
    const PREFIX: &'static str = "of_circle_";

    /// Adds the columns of a circle to a select from circles. The select must have a rule.
    pub(crate) fn select(select: &mut SelectStatement, change: &Change<'_, Draft>) {
        for column in circle::Column::iter() {
            let name = format!("{}{}", Self::PREFIX, column.as_str());
            select.expr_as(Expr::col(column.as_column_ref()), name);
        }
        let circle = Expr::col(circle::Column::Id.as_column_ref());
        let role = collaborator::Entity::find()
            .select_only()
            .column(collaborator::Column::Role)
            .filter(circle.equals(collaborator::Column::CircleId.as_column_ref()))
            .filter(collaborator::Column::UserId.eq(change.viewer.id()))
            .into_query();
        select.expr_as(Expr::from(role), "viewer_role").expr_as(
            revision::<circle::Entity>(change.backend()),
            "of_circle_revision",
        );
    }

    /// Reads a row with its circle, in the turn of the circle.
    pub(crate) async fn read(
        change: &mut Change<'_, Draft>,
        select: &SelectStatement,
    ) -> Result<Option<QueryResult>, Error> {
        let statement = change.build(select);
        let row = change.read(statement.clone()).await?;
        if let Some(row) = &row
            && let Some(circle) = row.try_get::<Option<Uuid>>(Self::PREFIX, "id")?
            && change.take_turn(circle).await
        {
            return change.read(statement).await;
        }
        Ok(row)
    }

    /// The circle of a row that may have none.
    pub(crate) fn optional(row: &QueryResult) -> Result<Option<Self>, DbErr> {
        let id: Option<Uuid> = row.try_get(Self::PREFIX, "id")?;
        id.map(|_| Self::from_query_result(row, "")).transpose()
    }

    /// Returns the circle if the viewer has at least this access. The commit depends on it: every change of the circle
    /// or its contents changes its revision.
    ///
    /// # Errors
    /// `NOT_FOUND`, naming `field`; `FORBIDDEN`.
    pub(crate) fn accessible(
        self,
        change: &mut Change<'_, Draft>,
        field: &str,
        least: Access,
    ) -> Result<circle::Model, Error> {
        check_access(change, &self.circle, self.role, field, least)?;
        change.touch::<circle::Entity>(self.circle.id, &self.revision);
        Ok(self.circle)
    }
}

impl FromQueryResult for Seen {
    fn from_query_result(row: &QueryResult, prefix: &str) -> Result<Self, DbErr> {
        Ok(Self {
            circle: circle::Model::from_query_result(row, Self::PREFIX)?,
            role: row.try_get(prefix, "viewer_role")?,
            revision: row.try_get(prefix, "of_circle_revision")?,
        })
    }
}

/// Loads and locks a circle whose contents the viewer may change, as [`accessible`] does.
pub(crate) async fn editable(
    change: &Change<'_>,
    id: Uuid,
    field: &str,
) -> Result<circle::Model, Error> {
    accessible(change, id, field, Access::Editor).await
}

/// Checks that the viewer has at least this access to a circle; `role` is the viewer's role as a collaborator, if
/// any.
pub(crate) fn check_access<S>(
    change: &Change<'_, S>,
    circle: &circle::Model,
    role: Option<collaborator::CollaboratorRole>,
    field: &str,
    least: Access,
) -> Result<(), Error> {
    if change.viewer.is_admin() || circle.owner_id == change.viewer.id() {
        return Ok(());
    }
    let access = match role {
        Some(collaborator::CollaboratorRole::Editor) => Access::Editor,
        Some(collaborator::CollaboratorRole::Viewer) => Access::Viewer,
        None => return Err(Error::not_found(field)),
    };
    if access >= least {
        Ok(())
    } else {
        Err(change.forbidden(Kind::Circle, circle.id))
    }
}

/// Shares a circle with a user, or changes the user's role.
pub(super) async fn share(
    change: &mut Change<'_>,
    circle: &circle::Model,
    user: Uuid,
    role: collaborator::CollaboratorRole,
) -> Result<(), Error> {
    let share = collaborator::Entity::find()
        .filter(collaborator::Column::CircleId.eq(circle.id))
        .filter(collaborator::Column::UserId.eq(user));
    match share.one(&change.transaction).await? {
        Some(share) if share.role == role => return Ok(()),
        Some(share) => {
            let mut share = share.into_active_model();
            share.role = Set(role);
            share.updated_at = Set(change.now);
            share.update(&change.transaction).await?;
        }
        None => {
            let share = collaborator::Model {
                id: Uuid::now_v7(),
                created_at: change.now,
                updated_at: change.now,
                circle_id: circle.id,
                user_id: user,
                role,
                added_by: Some(change.viewer.id()),
            };
            collaborator::Entity::insert(share.into_active_model())
                .exec_without_returning(&change.transaction)
                .await?;
        }
    }
    change.append(collaboration(
        EventType::CircleShared,
        circle,
        user,
        Some(role),
    ));
    Ok(())
}

/// Stops sharing a circle with a user.
///
/// # Errors
/// `INVALID` if the circle is not shared with the user; `NOT_FOUND` if there is no such user.
pub(super) async fn unshare(
    change: &mut Change<'_>,
    circle: &circle::Model,
    user: Uuid,
) -> Result<(), Stop> {
    let share = collaborator::Entity::delete_many()
        .filter(collaborator::Column::CircleId.eq(circle.id))
        .filter(collaborator::Column::UserId.eq(user));
    let gone = share.exec(&change.transaction).await?;
    if gone.rows_affected == 0 {
        let field = "userId";
        change
            .lock_reference::<user::Entity>(Some(user), field)
            .await?;
        let message = "The circle is not shared with this user.";
        return Err(UserError::new(field, UserErrorCode::Invalid, message).into());
    }
    change.append(collaboration(EventType::CircleUnshared, circle, user, None));
    Ok(())
}

/// Appends a `circle.unshared` event for each collaborator of a circle.
pub(super) async fn unshare_all(
    change: &mut Change<'_>,
    circle: &circle::Model,
) -> Result<(), Error> {
    let users: Vec<Uuid> = collaborator::Entity::find()
        .select_only()
        .column(collaborator::Column::UserId)
        .filter(collaborator::Column::CircleId.eq(circle.id))
        .order_by_asc(collaborator::Column::Id)
        .into_tuple()
        .all(&change.transaction)
        .await?;
    for user in users {
        change.append(collaboration(EventType::CircleUnshared, circle, user, None));
    }
    Ok(())
}

/// Stops sharing all circles with a user.
pub(crate) async fn leave_all(change: &mut Change<'_>, user: Uuid) -> Result<(), Error> {
    let circles: Vec<Uuid> = collaborator::Entity::find()
        .select_only()
        .column(collaborator::Column::CircleId)
        .filter(collaborator::Column::UserId.eq(user))
        .order_by_asc(collaborator::Column::CircleId)
        .into_tuple()
        .all(&change.transaction)
        .await?;
    for id in circles {
        let is_circle = Condition::all().add(circle::Column::Id.eq(id));
        let circle = change.touched::<circle::Entity>(is_circle, "userId").await;
        let circle = match circle {
            // Deleted at the same time.
            Err(error) if error.code == Code::NotFound => continue,
            circle => circle?,
        };
        collaborator::Entity::delete_many()
            .filter(collaborator::Column::CircleId.eq(id))
            .filter(collaborator::Column::UserId.eq(user))
            .exec(&change.transaction)
            .await?;
        change.append(collaboration(
            EventType::CircleUnshared,
            &circle,
            user,
            None,
        ));
    }
    Ok(())
}

/// Changes the owner of a circle, whose row must be locked. The former owner becomes an editor, unless deactivated.
///
/// # Errors
/// `TAKEN` if another circle of the new owner has its name.
pub(crate) async fn change_owner(
    change: &mut Change<'_>,
    row: circle::Model,
    to: Uuid,
) -> Result<(), Stop> {
    let (from, version) = (row.owner_id, row.version);
    let mut new = row.into_active_model();
    new.owner_id = Set(to);
    new.version = Set(version + 1);
    new.updated_at = Set(change.now);
    let row = unique(new.update(&change.transaction).await, || {
        let message = "You already have a circle with this name.";
        UserError::general(UserErrorCode::Taken, message)
    })?;
    // The owner of a circle is not a collaborator.
    collaborator::Entity::delete_many()
        .filter(collaborator::Column::CircleId.eq(row.id))
        .filter(collaborator::Column::UserId.eq(to))
        .exec(&change.transaction)
        .await?;
    change.append(owner_changed(&row, from));
    let former = user::Column::Id
        .eq(from)
        .and(user::Column::IsActive.eq(true));
    if change.any::<user::Entity>(former).await? {
        let role = collaborator::CollaboratorRole::Editor;
        share(change, &row, from, role).await?;
    }
    Ok(())
}
