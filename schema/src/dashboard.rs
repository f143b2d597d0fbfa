//! The dashboard: totals of the objects that the viewer may read.

use async_graphql::{Context, Object, SimpleObject};
use chrono::NaiveTime;
use gathering_entity::{agent, circle, conversation, task};
use sea_orm::{
    ColumnTrait, Condition, EntityTrait, FromQueryResult, QueryFilter, QuerySelect, QueryTrait,
    sea_query::{Expr, Func},
};
use uuid::Uuid;

use crate::{
    db::{Totals, count_where},
    error::Error,
    request::RequestExt,
    task::is_open,
};

/// Totals of the agents, circles, tasks and conversations that the viewer may read.
pub struct Dashboard;

/// Totals of the objects that the viewer may read. Each part is computed only if it is selected.
#[Object]
impl Dashboard {
    /// Totals of agents.
    async fn agents(&self, ctx: &Context<'_>) -> Result<AgentTotals, Error> {
        use agent::{AgentStatus, Column::Status};
        let select = agent::Entity::find()
            .select_only()
            .expr_as(Func::count(Expr::val(1)), "total")
            .expr_as(count_where(Status.eq(AgentStatus::Idle)), "idle")
            .expr_as(count_where(Status.eq(AgentStatus::Busy)), "busy")
            .expr_as(count_where(Status.eq(AgentStatus::Offline)), "offline")
            .filter(ctx.request().viewer()?.agents())
            .into_query();
        ctx.request()
            .load(Totals::new("agents", select, None), Uuid::nil())
            .await
    }

    /// Totals of circles.
    async fn circles(&self, ctx: &Context<'_>) -> Result<CircleTotals, Error> {
        use circle::{CircleStatus, Column::Status};
        let select = circle::Entity::find()
            .select_only()
            .expr_as(Func::count(Expr::val(1)), "total")
            .expr_as(count_where(Status.eq(CircleStatus::Running)), "running")
            .filter(ctx.request().viewer()?.circles())
            .into_query();
        ctx.request()
            .load(Totals::new("circles", select, None), Uuid::nil())
            .await
    }

    /// Totals of tasks.
    async fn tasks(&self, ctx: &Context<'_>) -> Result<TaskTotals, Error> {
        use task::{
            Column::{CompletedAt, DueAt, Status},
            TaskStatus,
        };
        let now = ctx.request().now();
        let today = now.date_naive().and_time(NaiveTime::MIN).and_utc();
        let done_today = Condition::all()
            .add(Status.eq(TaskStatus::Completed))
            .add(CompletedAt.gte(today));
        let select = task::Entity::find()
            .select_only()
            .expr_as(count_where(is_open()), "open")
            .expr_as(count_where(Status.eq(TaskStatus::InReview)), "in_review")
            .expr_as(count_where(is_open().add(DueAt.lt(now))), "overdue")
            .expr_as(count_where(done_today), "completed_today")
            .filter(ctx.request().viewer()?.tasks())
            .into_query();
        ctx.request()
            .load(Totals::new("tasks", select, None), Uuid::nil())
            .await
    }

    /// Totals of conversations.
    async fn conversations(&self, ctx: &Context<'_>) -> Result<ConversationTotals, Error> {
        use conversation::{Column::Status, ConversationStatus};
        let select = conversation::Entity::find()
            .select_only()
            .expr_as(Func::count(Expr::val(1)), "total")
            .expr_as(count_where(Status.eq(ConversationStatus::Active)), "active")
            .filter(ctx.request().viewer()?.conversations())
            .into_query();
        ctx.request()
            .load(Totals::new("conversations", select, None), Uuid::nil())
            .await
    }
}

/// The number of agents, in total and by status.
#[derive(Clone, Default, FromQueryResult, SimpleObject)]
pub struct AgentTotals {
    /// The number of agents.
    total: i64,
    /// The number of `IDLE` agents.
    idle: i64,
    /// The number of `BUSY` agents.
    busy: i64,
    /// The number of `OFFLINE` agents.
    offline: i64,
}

/// The number of circles, in total and running.
#[derive(Clone, Default, FromQueryResult, SimpleObject)]
pub struct CircleTotals {
    /// The number of circles.
    total: i64,
    /// The number of `RUNNING` circles.
    running: i64,
}

/// The number of tasks by status, overdue, and completed today.
#[derive(Clone, Default, FromQueryResult, SimpleObject)]
pub struct TaskTotals {
    /// The number of tasks that are `PENDING`, `ASSIGNED`, `IN_PROGRESS`, `CHANGES_REQUESTED` or `BLOCKED`.
    open: i64,
    /// The number of tasks in review.
    in_review: i64,
    /// The number of open tasks that are past their due time.
    overdue: i64,
    /// The number of tasks completed since midnight in UTC.
    completed_today: i64,
}

/// The number of conversations, in total and active.
#[derive(Clone, Default, FromQueryResult, SimpleObject)]
pub struct ConversationTotals {
    /// The number of conversations.
    total: i64,
    /// The number of `ACTIVE` conversations.
    active: i64,
}

/// The dashboard query.
#[derive(Default)]
pub struct DashboardQuery;

#[Object]
impl DashboardQuery {
    /// Totals of the agents, circles, tasks and conversations that the viewer may read.
    async fn dashboard(&self, ctx: &Context<'_>) -> Result<Dashboard, Error> {
        ctx.request().viewer()?;
        Ok(Dashboard)
    }
}
