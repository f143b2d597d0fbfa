//! Members: agents in circles.

use std::sync::Arc;

use async_graphql::{Context, Enum, ID, InputObject, Object, SimpleObject};
use futures_util::future::try_join_all;
use gathering_entity::{agent, circle, member, task};
use sea_orm::{
    ColumnTrait, Condition, EntityTrait, FromQueryResult, QueryFilter, QuerySelect, QueryTrait,
    sea_query::{Expr, ExprTrait, JoinType},
};

use crate::{
    agent::Agent,
    circle::Circle,
    ctx::Door,
    error::Error,
    id::Kind,
    page::Listed,
    read::{Totals, count_where},
    scalar::DateTime,
    viewer::Viewer,
};

/// An agent's part in a circle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
#[graphql(remote = "member::MemberRole")]
pub enum MemberRole {
    /// Leads, and takes work.
    Lead,
    /// Takes work.
    Member,
    /// Takes work of its kind.
    Specialist,
    /// Reviews the work of others; no work is routed to it.
    Reviewer,
    /// Watches; no work is routed to it.
    Observer,
}

/// An agent's membership in a circle.
pub struct CircleMember(pub(crate) Arc<member::Model>);

/// An agent's membership in a circle. Read by whoever may read the circle.
#[Object]
impl CircleMember {
    /// The id of the membership, `member_…`.
    pub(crate) async fn id(&self) -> ID {
        Kind::Member.id(self.0.id)
    }

    /// The circle.
    async fn circle(&self, ctx: &Context<'_>) -> Result<Circle, Error> {
        let row = ctx
            .request()
            .row::<circle::Entity>(self.0.circle_id)
            .await?;
        row.map(Circle).ok_or_else(|| Error::not_found("circle"))
    }

    /// The agent.
    async fn agent(&self, ctx: &Context<'_>) -> Result<Agent, Error> {
        self.readable_agent(ctx)
            .await?
            .ok_or_else(|| Error::not_found("agent"))
    }

    /// The agent's part in the circle.
    async fn role(&self) -> MemberRole {
        self.0.role.into()
    }

    /// What the agent is able to do here; when empty, the agent's own competencies count. At most 50 words.
    async fn competencies(&self) -> &[String] {
        &self.0.competencies.0
    }

    /// The kinds of review the agent does here, `all` for every kind; when empty, the agent's own count.
    async fn review_types(&self) -> &[String] {
        &self.0.review_types.0
    }

    /// Whether the agent is in the circle now.
    async fn is_active(&self) -> bool {
        self.0.is_active
    }

    /// When the agent joined, or joined again.
    async fn joined_at(&self) -> DateTime {
        self.0.joined_at.into()
    }

    /// When the agent left; null while it is in the circle.
    async fn left_at(&self) -> Option<DateTime> {
        self.0.left_at.map(DateTime)
    }

    /// The agent's tasks in this circle, counted.
    async fn workload(&self, ctx: &Context<'_>) -> Result<MemberWorkload, Error> {
        MemberWorkload::load(ctx, self.0.id).await
    }
}

impl CircleMember {
    /// The agent, as far as the viewer may read it.
    async fn readable_agent(&self, ctx: &Context<'_>) -> Result<Option<Agent>, Error> {
        let request = ctx.request();
        // Whoever reads a circle reads its active members; one who left is read on other grounds or not at all.
        let row = if self.0.is_active {
            request.row::<agent::Entity>(self.0.agent_id).await?
        } else {
            let rule = &request.viewer()?.rules().agent;
            request
                .readable::<agent::Entity>(rule, self.0.agent_id)
                .await?
        };
        Ok(row.map(Agent))
    }
}

/// An agent's tasks in one circle, counted.
#[derive(Clone, Debug, Default, FromQueryResult, SimpleObject)]
pub struct MemberWorkload {
    /// Tasks that are ASSIGNED, `IN_PROGRESS`, `CHANGES_REQUESTED` or BLOCKED.
    open: i64,
    /// Tasks that wait for a review.
    in_review: i64,
    /// Tasks that are done.
    completed: i64,
    /// Tasks that were given up.
    failed: i64,
}

impl MemberWorkload {
    async fn load(ctx: &Context<'_>, member: uuid::Uuid) -> Result<Self, Error> {
        use task::{Column::Status, TaskStatus};
        let mut select = member::Entity::find()
            .select_only()
            .expr_as(
                count_where(crate::task::is_open().add(Status.ne(TaskStatus::Pending))),
                "open",
            )
            .expr_as(count_where(Status.eq(TaskStatus::InReview)), "in_review")
            .expr_as(count_where(Status.eq(TaskStatus::Completed)), "completed")
            .expr_as(count_where(Status.eq(TaskStatus::Failed)), "failed")
            .into_query();
        let own = Expr::col(task::Column::CircleId.as_column_ref())
            .equals(member::Column::CircleId.as_column_ref())
            .and(
                Expr::col(task::Column::AssigneeId.as_column_ref())
                    .equals(member::Column::AgentId.as_column_ref()),
            );
        select.join(JoinType::InnerJoin, task::Entity, own);
        let totals = Totals::new(
            "member workload",
            select,
            Some(member::Column::Id.as_column_ref()),
        );
        ctx.request().load(totals, member).await
    }
}

/// What an edge to or from a member says of the membership.
#[derive(SimpleObject)]
pub struct Membership {
    /// The membership itself.
    membership: CircleMember,
}

/// The members of a circle, as a list of agents.
pub struct CircleMembers;

impl Listed for CircleMembers {
    type Entity = member::Entity;
    type Node = Agent;
    type Extra = Membership;
    const NAME: &'static str = "CircleMember";

    async fn nodes(
        ctx: &Context<'_>,
        rows: &[Arc<member::Model>],
    ) -> Result<Vec<Option<Agent>>, Error> {
        let members = rows.iter().map(|row| CircleMember(Arc::clone(row)));
        try_join_all(members.map(async |member| member.readable_agent(ctx).await)).await
    }

    fn extra(row: &Arc<member::Model>) -> Membership {
        Membership {
            membership: CircleMember(Arc::clone(row)),
        }
    }
}

/// The circles of an agent, each with the agent's membership.
pub struct AgentCircles;

impl Listed for AgentCircles {
    type Entity = member::Entity;
    type Node = Circle;
    type Extra = Membership;
    const NAME: &'static str = "AgentCircle";

    async fn nodes(
        ctx: &Context<'_>,
        rows: &[Arc<member::Model>],
    ) -> Result<Vec<Option<Circle>>, Error> {
        let circles = rows
            .iter()
            .map(|row| ctx.request().row::<circle::Entity>(row.circle_id));
        Ok(try_join_all(circles)
            .await?
            .into_iter()
            .map(|circle| circle.map(Circle))
            .collect())
    }

    fn extra(row: &Arc<member::Model>) -> Membership {
        CircleMembers::extra(row)
    }
}

/// Narrows a list of members. All given conditions must hold; an empty list matches nothing.
#[derive(InputObject)]
pub struct MemberFilter {
    /// Only members with one of these parts.
    role: Option<Vec<MemberRole>>,
    /// Whether members who left are listed too, as far as the viewer may read their agents.
    #[graphql(default_with = "Some(false)")]
    include_inactive: Option<bool>,
}

impl MemberFilter {
    pub(crate) fn condition(filter: Option<Self>, viewer: &Viewer) -> Condition {
        let active = member::Column::IsActive.eq(true);
        let Some(filter) = filter else {
            return Condition::all().add(active);
        };
        let present = if !filter.include_inactive.unwrap_or_default() {
            Condition::all().add(active)
        } else if viewer.is_admin() {
            Condition::all()
        } else {
            let readable = agent::Entity::find()
                .select_only()
                .column(agent::Column::Id)
                .filter(viewer.agents())
                .into_query();
            Condition::any()
                .add(active)
                .add(member::Column::AgentId.in_subquery(readable))
        };
        let role = filter
            .role
            .map(|role| member::Column::Role.is_in(role.into_iter().map(member::MemberRole::from)));
        Condition::all().add(present).add_option(role)
    }
}
