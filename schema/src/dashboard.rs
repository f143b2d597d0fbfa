//! The dashboard: what the viewer may read, counted.

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
};

/// What the viewer may read, counted.
pub struct Dashboard;

/// What the viewer may read, counted. Each part is counted only when selected.
#[Object]
impl Dashboard {
    /// Agents.
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

    /// Circles.
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

    /// Tasks.
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
            .expr_as(count_where(crate::task::is_open()), "open")
            .expr_as(count_where(Status.eq(TaskStatus::InReview)), "in_review")
            .expr_as(
                count_where(crate::task::is_open().add(DueAt.lt(now))),
                "overdue",
            )
            .expr_as(count_where(done_today), "completed_today")
            .filter(ctx.request().viewer()?.tasks())
            .into_query();
        ctx.request()
            .load(Totals::new("tasks", select, None), Uuid::nil())
            .await
    }

    /// Conversations.
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

/// Agents, counted.
#[derive(Clone, Default, FromQueryResult, SimpleObject)]
pub struct AgentTotals {
    /// All agents.
    total: i64,
    /// Agents ready for work.
    idle: i64,
    /// Agents at work.
    busy: i64,
    /// Agents taken out of work.
    offline: i64,
}

/// Circles, counted.
#[derive(Clone, Default, FromQueryResult, SimpleObject)]
pub struct CircleTotals {
    /// All circles.
    total: i64,
    /// Circles at work.
    running: i64,
}

/// Tasks, counted.
#[derive(Clone, Default, FromQueryResult, SimpleObject)]
pub struct TaskTotals {
    /// Tasks that are PENDING, ASSIGNED, `IN_PROGRESS`, `CHANGES_REQUESTED` or BLOCKED.
    open: i64,
    /// Tasks that wait for a review.
    in_review: i64,
    /// Open tasks that should be done by now.
    overdue: i64,
    /// Tasks done since midnight in UTC.
    completed_today: i64,
}

/// Conversations, counted.
#[derive(Clone, Default, FromQueryResult, SimpleObject)]
pub struct ConversationTotals {
    /// All conversations.
    total: i64,
    /// Conversations under way.
    active: i64,
}

/// The dashboard's query.
#[derive(Default)]
pub struct DashboardQuery;

#[Object]
impl DashboardQuery {
    /// What the viewer may read, counted.
    async fn dashboard(&self, ctx: &Context<'_>) -> Result<Dashboard, Error> {
        ctx.request().viewer()?;
        Ok(Dashboard)
    }
}
