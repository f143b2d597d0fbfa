//! What a mutation of a task needs to know, read in one statement.

use gathering_entity::{agent, circle, member, task};
use sea_orm::{
    ColumnTrait, DbErr, EntityTrait, FromQueryResult, IdenStatic, QueryFilter, QueryResult,
    QuerySelect, QueryTrait,
    sea_query::{
        CommonTableExpression, Expr, ExprTrait, IntoCondition, JoinType, Query, SelectStatement,
        SubQueryStatement, UnionType, WithClause,
    },
};
use uuid::Uuid;

use crate::{
    circle::{Access, Seen},
    data::{Change, Draft},
    db::revision,
    error::Error,
    input::{Check, UserErrorCode},
    task::{
        routing::{Effects, Situation},
        team::Team,
    },
};

/// The objects that an input names.
#[derive(Default)]
pub(super) struct References<'a> {
    pub(super) parent: Option<Uuid>,
    /// Agents, each with its field of the input.
    pub(super) agents: Vec<(&'a str, Option<Uuid>)>,
}

/// What is known of the objects that an input names.
#[derive(Default)]
pub(super) struct FoundReferences<'a> {
    /// The circle of the parent, if the viewer may read the parent.
    parent_circle: Option<Uuid>,
    /// Whether the parent is the task itself or one of its subtasks.
    is_subtask: bool,
    agents: Vec<(&'a str, Standing)>,
}

/// The relation of an agent to a circle.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// An active member.
    Member,
    /// No member, but the viewer may read it.
    Readable,
    Unknown,
}

impl<'a> References<'a> {
    /// Adds the columns of [`References::found`] to a select from circles. `task` is the task that gets the parent, if
    /// it exists already.
    fn select(&self, select: &mut SelectStatement, change: &Change<'_, Draft>, task: Option<Uuid>) {
        let rules = change.viewer.rules();
        if let Some(parent) = self.parent {
            let parent_circle = task::Entity::find_by_id(parent)
                .select_only()
                .column(task::Column::CircleId)
                .filter(rules.task.condition())
                .into_query();
            select.expr_as(Expr::from(parent_circle), "parent_circle");
            let is_subtask = task.map_or(Expr::val(false), |task| is_part_of(parent, task));
            select.expr_as(is_subtask, "is_subtask");
        }
        for (n, agent) in self.given().map(|(_, agent)| agent).enumerate() {
            let is_member = Expr::exists(
                active_member()
                    .filter(member::Column::AgentId.eq(agent))
                    .into_query(),
            );
            let is_readable = agent::Entity::find_by_id(agent)
                .select_only()
                .column(agent::Column::Id)
                .filter(rules.agent.condition())
                .into_query();
            let standing = Expr::case(is_member, Expr::cust("2"))
                .case(Expr::exists(is_readable), Expr::cust("1"))
                .finally(Expr::cust("0"));
            select.expr_as(standing, format!("standing_{n}"));
        }
    }

    fn is_empty(&self) -> bool {
        self.parent.is_none() && self.given().next().is_none()
    }

    fn given(&self) -> impl Iterator<Item = (&'a str, Uuid)> {
        let given = self.agents.iter();
        given.filter_map(|(field, agent)| Some((*field, (*agent)?)))
    }

    fn found(&self, row: &QueryResult) -> Result<FoundReferences<'a>, DbErr> {
        let (mut parent_circle, mut is_subtask) = (None, false);
        if self.parent.is_some() {
            parent_circle = row.try_get("", "parent_circle")?;
            is_subtask = row.try_get("", "is_subtask")?;
        }
        let standing = |(n, (field, _)): (usize, (&'a str, Uuid))| {
            let standing: i32 = row.try_get("", &format!("standing_{n}"))?;
            let standing = match standing {
                2 => Standing::Member,
                1 => Standing::Readable,
                _ => Standing::Unknown,
            };
            Ok((field, standing))
        };
        let agents = self.given().enumerate().map(standing);
        Ok(FoundReferences {
            parent_circle,
            is_subtask,
            agents: agents.collect::<Result<_, DbErr>>()?,
        })
    }
}

impl FoundReferences<'_> {
    /// Adds a fault for a parent that is not in the same circle, or that is the task itself or one of its subtasks.
    ///
    /// # Errors
    /// `NOT_FOUND` for a parent that the viewer may not read.
    pub(super) fn check_parent(&self, task: &task::Model, check: &mut Check) -> Result<(), Error> {
        let circle = self
            .parent_circle
            .ok_or_else(|| Error::not_found("parentId"))?;
        let message = if circle != task.circle_id {
            "The parent must be a task of the same circle."
        } else if self.is_subtask {
            "A task cannot be its own subtask."
        } else {
            return Ok(());
        };
        check.fault("parentId", UserErrorCode::Invalid, message);
        Ok(())
    }

    /// Adds a fault for each agent that is not an active member of the circle, in the fields that `applies` selects.
    ///
    /// # Errors
    /// `NOT_FOUND` for an agent that the viewer may not read.
    pub(super) fn check_agents(
        &self,
        check: &mut Check,
        applies: impl Fn(&str) -> bool,
    ) -> Result<(), Error> {
        for (field, standing) in &self.agents {
            match standing {
                _ if !applies(field) => {}
                Standing::Member => {}
                Standing::Readable => {
                    let message = "The agent is not an active member of the circle.";
                    check.fault(field, UserErrorCode::NotMember, message);
                }
                Standing::Unknown => return Err(Error::not_found(field)),
            }
        }
        Ok(())
    }
}

/// The active members of the circle of the outer query.
fn active_member() -> sea_orm::Select<member::Entity> {
    let circle = Expr::col(member::Column::CircleId.as_column_ref());
    member::Entity::find()
        .select_only()
        .column(member::Column::Id)
        .filter(circle.equals(circle::Column::Id.as_column_ref()))
        .filter(member::Column::IsActive.eq(true))
}

/// Whether a task is another task or one of its subtasks at any depth. The recursion terminates even if the parents form
/// a cycle.
fn is_part_of(task: Uuid, whole: Uuid) -> Expr {
    use task::Column::{Id, ParentId};
    let above = task::Entity::find()
        .select_only()
        .columns([Id, ParentId])
        .into_query();
    let of_those = Expr::col(Id.as_column_ref()).equals(("above", "parent_id"));
    let mut all = task::Entity::find_by_id(task)
        .select_only()
        .columns([Id, ParentId])
        .into_query();
    all.union(
        UnionType::Distinct,
        above
            .clone()
            .join(JoinType::InnerJoin, "above", of_those)
            .take(),
    );
    let above = CommonTableExpression::new()
        .table_name("above")
        .columns(["id", "parent_id"])
        .query(all)
        .to_owned();
    let found = Query::select()
        .column("id")
        .from("above")
        .and_where(Expr::col("id").eq(whole))
        .take()
        .with(WithClause::new().recursive(true).cte(above).to_owned());
    Expr::SubQuery(None, Box::new(SubQueryStatement::WithStatement(found))).is_not_null()
}

/// What a mutation reads beside the circle and the task.
#[derive(Default)]
pub(super) struct Reads<'a> {
    pub(super) references: References<'a>,
    /// The agent whose membership is read, instead of the task's reviewer.
    pub(super) agent: Option<Uuid>,
    /// Whether to read the assignee.
    pub(super) assignee: bool,
    /// The condition under which to read the team of the circle.
    pub(super) team: Option<Expr>,
    /// Reads what routing needs after these effects of the change.
    pub(super) routing: Option<Effects>,
}

/// A circle in which a task is created.
pub(super) struct NewScene<'a> {
    pub(super) known: Known,
    pub(super) references: FoundReferences<'a>,
}

/// What the next task that is created in the circle depends on.
pub(super) struct Known {
    pub(super) circle: Seen,
    pub(super) situation: Situation,
}

impl<'a> NewScene<'a> {
    /// Reads the circle, or continues with what an earlier task has left.
    ///
    /// # Errors
    /// `NOT_FOUND` if the viewer may not read the circle.
    pub(super) async fn read(
        change: &mut Change<'_, Draft>,
        circle: Uuid,
        references: &References<'a>,
    ) -> Result<Self, Error> {
        if references.is_empty() {
            if let Some(known) = change.take_turn_or_join(circle).await {
                return Ok(Self {
                    known,
                    references: FoundReferences::default(),
                });
            }
        } else {
            change.take_turn(circle).await;
        }
        let is_circle = circle::Column::Id.eq(circle);
        let is_circle = change.viewer.rules().circle.and(is_circle);
        let mut select = Query::select();
        select.from(circle::Entity).cond_where(is_circle.clone());
        Seen::select(&mut select, change);
        references.select(&mut select, change, None);
        let effects = Effects {
            adds: true,
            frees: false,
        };
        let needs_team = Situation::select(&mut select, change.backend(), effects);
        Team::select(&mut select, change.backend(), needs_team);
        let statement = change.build(&select);
        change.reserve::<circle::Entity>(is_circle).await?;
        let row = change.read(statement).await?;
        let row = row.ok_or_else(|| Error::not_found("circleId"))?;
        Ok(Self {
            known: Known {
                circle: Seen::from_query_result(&row, "")?,
                situation: Situation::from_row(&row)?,
            },
            references: references.found(&row)?,
        })
    }
}

/// A task that the viewer may change, its circle, and what was read with them. The commit depends on the circle.
pub(super) struct Scene<'a> {
    pub(super) circle: circle::Model,
    pub(super) task: task::Model,
    /// Whether the given agent, or else the reviewer, is an active member of the circle.
    pub(super) is_member: bool,
    pub(super) references: FoundReferences<'a>,
    pub(super) assignee: Option<Assignee>,
    pub(super) team: Option<Team>,
    pub(super) situation: Option<Situation>,
}

/// The assignee of a task.
#[derive(FromQueryResult)]
pub(super) struct Assignee {
    pub(super) id: Uuid,
    pub(super) owner_id: Uuid,
    pub(super) name: String,
    pub(super) status: agent::AgentStatus,
    pub(super) version: i32,
    pub(super) revision: String,
    /// Whether another task of the agent is `IN_PROGRESS`.
    pub(super) is_at_work: bool,
}

impl Assignee {
    fn from_row(row: &QueryResult) -> Result<Option<Self>, DbErr> {
        let id: Option<Uuid> = row.try_get(Self::PREFIX, "id")?;
        id.map(|_| Self::from_query_result(row, Self::PREFIX))
            .transpose()
    }

    const PREFIX: &'static str = "assignee_";

    fn select(select: &mut SelectStatement, change: &Change<'_, Draft>) {
        use agent::Column::{Id, Name, OwnerId, Status, Version};
        let prefixed = |name: &str| format!("{}{name}", Self::PREFIX);
        for column in [Id, OwnerId, Name, Status, Version] {
            select.expr_as(Expr::col(column.as_column_ref()), prefixed(column.as_str()));
        }
        let others = Query::select()
            .expr(Expr::val(1))
            .from_as(task::Entity, "others")
            .and_where(Expr::col(("others", "assignee_id")).equals(Id.as_column_ref()))
            .and_where(Expr::col(("others", "status")).eq(task::TaskStatus::InProgress))
            .and_where(
                Expr::col(("others", "id"))
                    .equals(task::Column::Id.as_column_ref())
                    .not(),
            )
            .take();
        let is_assignee =
            Expr::col(task::Column::AssigneeId.as_column_ref()).equals(Id.as_column_ref());
        select
            .expr_as(
                revision::<agent::Entity>(change.backend()),
                prefixed("revision"),
            )
            .expr_as(Expr::exists(others), prefixed("is_at_work"))
            .join(JoinType::LeftJoin, agent::Entity, is_assignee);
    }
}

impl<'a> Scene<'a> {
    /// Reads a task that the viewer may change.
    ///
    /// # Errors
    /// `NOT_FOUND`, naming `field`; `FORBIDDEN`.
    pub(super) async fn read(
        change: &mut Change<'_, Draft>,
        id: Uuid,
        field: &str,
        reads: Reads<'a>,
    ) -> Result<Self, Error> {
        let rules = change.viewer.rules();
        let of_task = |column| {
            let task = task::Entity::find_by_id(id).select_only().column(column);
            task.filter(rules.task.condition()).into_query()
        };
        let is_circle = circle::Column::Id.in_subquery(of_task(task::Column::CircleId));
        change
            .reserve::<circle::Entity>(is_circle.into_condition())
            .await?;
        if reads.assignee {
            let is_assignee = agent::Column::Id.in_subquery(of_task(task::Column::AssigneeId));
            change
                .reserve::<agent::Entity>(is_assignee.into_condition())
                .await?;
        }
        let of_circle = Expr::col(task::Column::CircleId.as_column_ref())
            .equals(circle::Column::Id.as_column_ref());
        let mut select = task::Entity::find_by_id(id).into_query();
        select
            .join(JoinType::InnerJoin, circle::Entity, of_circle)
            .cond_where(rules.circle.condition());
        Seen::select(&mut select, change);
        let agent = Expr::col(member::Column::AgentId.as_column_ref());
        let membership = active_member().filter(match reads.agent {
            Some(id) => agent.eq(id),
            None => agent.equals(task::Column::ReviewerId.as_column_ref()),
        });
        select.expr_as(Expr::exists(membership.into_query()), "is_member");
        reads.references.select(&mut select, change, Some(id));
        if reads.assignee {
            Assignee::select(&mut select, change);
        }
        let has_team = reads.team.is_some();
        let mut needs_team = reads.team;
        if let Some(effects) = reads.routing {
            let for_routing = Situation::select(&mut select, change.backend(), effects);
            needs_team = Some(match needs_team {
                Some(needs_team) => needs_team.or(for_routing),
                None => for_routing,
            });
        }
        if let Some(needs_team) = needs_team {
            Team::select(&mut select, change.backend(), needs_team);
        }
        let row = Seen::read(change, &select).await?;
        let row = row.ok_or_else(|| Error::not_found(field))?;
        let circle = Seen::from_query_result(&row, "")?;
        let assignee = if reads.assignee {
            Assignee::from_row(&row)?
        } else {
            None
        };
        Ok(Self {
            circle: circle.accessible(change, field, Access::Editor)?,
            task: task::Model::from_query_result(&row, "")?,
            is_member: row.try_get("", "is_member")?,
            references: reads.references.found(&row)?,
            assignee,
            team: has_team.then(|| Team::from_row(&row)).transpose()?,
            situation: (reads.routing.map(|_| Situation::from_row(&row))).transpose()?,
        })
    }
}
