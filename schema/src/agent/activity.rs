//! The recent activity of an agent.

use std::sync::Arc;

use async_graphql::{Context, Object, SimpleObject};
use gathering_entity::{agent, conversation, message, participant, task};
use sea_orm::{
    ColumnTrait, Condition, EntityTrait, FromQueryResult, QueryFilter, QueryOrder, QuerySelect,
    QueryTrait,
    sea_query::{self, Expr, ExprTrait, Func, JoinType, NullOrdering, Query, SelectStatement},
};
use uuid::Uuid;

use crate::{
    access::Viewer,
    conversation::Conversation,
    data::list_size,
    db::{PageQuery, Totals},
    error::Error,
    request::RequestExt,
    task::Task,
};

/// Maximum number of tasks in [`AgentActivity`].
const RECENT_TASKS: u64 = 10;
/// Maximum number of conversations in [`AgentActivity`].
const RECENT_CONVERSATIONS: u64 = 5;

/// The recent activity of an agent.
pub struct AgentActivity {
    pub(super) agent: Uuid,
}

/// The recent activity of an agent: totals, latest conversations and latest tasks.
/// Limited to the objects that the viewer may read.
#[Object]
impl AgentActivity {
    /// The number of messages written by the agent.
    async fn total_messages(&self, ctx: &Context<'_>) -> Result<i64, Error> {
        Ok(self.totals(ctx).await?.messages)
    }

    /// The number of completed tasks assigned to the agent.
    async fn completed_tasks(&self, ctx: &Context<'_>) -> Result<i64, Error> {
        Ok(self.totals(ctx).await?.completed)
    }

    /// The number of tasks assigned to the agent that are `IN_PROGRESS`.
    async fn active_tasks(&self, ctx: &Context<'_>) -> Result<i64, Error> {
        Ok(self.totals(ctx).await?.active)
    }

    /// The number of conversations with a message from the agent.
    async fn conversations_participated(&self, ctx: &Context<'_>) -> Result<i64, Error> {
        Ok(self.totals(ctx).await?.conversations)
    }

    /// The five most recently started conversations in which it takes part; those not started come last.
    #[graphql(directive = list_size::apply(Some(5), None, None))]
    async fn recent_conversations(
        &self,
        ctx: &Context<'_>,
    ) -> Result<Vec<AgentConversation>, Error> {
        let mut select = conversations(ctx.request().viewer()?, Condition::all());
        let messages = || {
            Query::select()
                .expr(Func::count(Expr::val(1)))
                .from(message::Entity)
                .and_where(
                    Expr::col(message::Column::ConversationId.as_column_ref())
                        .equals(conversation::Column::Id.as_column_ref()),
                )
                .take()
        };
        let mut own = messages();
        own.and_where(
            Expr::col(message::Column::AgentId.as_column_ref())
                .equals(participant::Column::AgentId.as_column_ref()),
        );
        select
            .expr_as(own, "own_messages")
            .expr_as(messages(), "total_messages")
            .order_by_with_nulls(
                conversation::Column::StartedAt.as_column_ref(),
                sea_query::Order::Desc,
                NullOrdering::Last,
            )
            .order_by(
                conversation::Column::Id.as_column_ref(),
                sea_query::Order::Desc,
            )
            .limit(RECENT_CONVERSATIONS);
        let pages = PageQuery::<RecentConversation>::new(
            "recent conversations",
            select,
            Some(participant::Column::AgentId.as_column_ref()),
        );
        let rows = ctx.request().load(pages, self.agent).await?;
        Ok(rows
            .iter()
            .map(|row| AgentConversation {
                conversation: Conversation(Arc::clone(&row.conversation)),
                own_messages: row.own_messages,
                total_messages: row.total_messages,
            })
            .collect())
    }

    /// The ten newest tasks assigned to it.
    #[graphql(directive = list_size::apply(Some(10), None, None))]
    async fn recent_tasks(&self, ctx: &Context<'_>) -> Result<Vec<Task>, Error> {
        let select = task::Entity::find()
            .filter(ctx.request().viewer()?.tasks())
            .order_by_desc(task::Column::Id)
            .limit(RECENT_TASKS)
            .into_query();
        let pages = PageQuery::<task::Model>::new(
            "recent tasks",
            select,
            Some(task::Column::AssigneeId.as_column_ref()),
        );
        let rows = ctx.request().load(pages, self.agent).await?;
        Ok(rows.iter().map(|row| Task(Arc::clone(row))).collect())
    }
}

impl AgentActivity {
    async fn totals(&self, ctx: &Context<'_>) -> Result<ActivityTotals, Error> {
        let viewer = ctx.request().viewer()?;
        let of_agent = |column: (_, _)| Expr::col(column).equals(agent::Column::Id.as_column_ref());
        let messages = |count: sea_query::FunctionCall| {
            let mut select = Query::select()
                .expr(count)
                .from(message::Entity)
                .and_where(of_agent(message::Column::AgentId.as_column_ref()))
                .take();
            if !viewer.is_admin() {
                let readable = conversation::Entity::find()
                    .select_only()
                    .column(conversation::Column::Id)
                    .filter(viewer.conversations())
                    .into_query();
                select.and_where(message::Column::ConversationId.in_subquery(readable));
            }
            select
        };
        let tasks = |status: task::TaskStatus| {
            Query::select()
                .expr(Func::count(Expr::val(1)))
                .from(task::Entity)
                .and_where(of_agent(task::Column::AssigneeId.as_column_ref()))
                .and_where(task::Column::Status.eq(status))
                .cond_where(viewer.tasks())
                .take()
        };
        let talked_in = Expr::col(message::Column::ConversationId.as_column_ref());
        let select = agent::Entity::find()
            .select_only()
            .expr_as(messages(Func::count(Expr::val(1))), "messages")
            .expr_as(messages(Func::count_distinct(talked_in)), "conversations")
            .expr_as(tasks(task::TaskStatus::Completed), "completed")
            .expr_as(tasks(task::TaskStatus::InProgress), "active")
            .into_query();
        let totals = Totals::new(
            "agent activity",
            select,
            Some(agent::Column::Id.as_column_ref()),
        );
        ctx.request().load(totals, self.agent).await
    }
}

#[derive(Clone, Default, FromQueryResult)]
struct ActivityTotals {
    messages: i64,
    conversations: i64,
    completed: i64,
    active: i64,
}

struct RecentConversation {
    conversation: Arc<conversation::Model>,
    own_messages: i64,
    total_messages: i64,
}

impl FromQueryResult for RecentConversation {
    fn from_query_result(row: &sea_orm::QueryResult, prefix: &str) -> Result<Self, sea_orm::DbErr> {
        Ok(Self {
            conversation: Arc::new(conversation::Model::from_query_result(row, prefix)?),
            own_messages: row.try_get(prefix, "own_messages")?,
            total_messages: row.try_get(prefix, "total_messages")?,
        })
    }
}

/// A conversation in which an agent takes part, with message counts.
#[derive(SimpleObject)]
pub struct AgentConversation {
    /// The conversation.
    conversation: Conversation,
    /// The number of messages in it written by the agent.
    own_messages: i64,
    /// The total number of messages in it.
    total_messages: i64,
}

/// Selects the conversations in which an agent takes part and that the viewer may read, joined with the participation.
pub(super) fn conversations(viewer: &Viewer, condition: Condition) -> SelectStatement {
    let mut select = conversation::Entity::find()
        .filter(viewer.conversations())
        .filter(condition)
        .into_query();
    let takes_part = Expr::col(participant::Column::ConversationId.as_column_ref())
        .equals(conversation::Column::Id.as_column_ref());
    select.join(JoinType::InnerJoin, participant::Entity, takes_part);
    select
}
