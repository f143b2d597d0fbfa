//! The rules for reading rows given by their ids, and the circles that a viewer may read.

use std::sync::Arc;

use gathering_entity::{
    agent, api_key_circle, circle, collaborator, conversation, event, member, message, project,
    task,
};
use sea_orm::{
    ColumnTrait, Condition, DbBackend, EntityTrait, QueryFilter, QuerySelect, QueryTrait,
    sea_query::{Expr, ExprTrait, Query, SelectStatement, UnionType},
};
use uuid::Uuid;

use crate::{
    access::PUBLIC_EVENTS,
    cache::{Cache, CacheStats},
    db::{Rule, ViewerIds},
    events::EventType,
};

/// Maximum number of viewers whose rules are cached.
const RULES_KEPT: u64 = 1_000;

/// The rules for reading a row given by its id.
#[derive(Debug, Default)]
pub(crate) struct Rules {
    pub(crate) agent: Rule,
    pub(crate) project: Rule,
    pub(crate) circle: Rule,
    pub(crate) member: Rule,
    pub(crate) task: Rule,
    pub(crate) conversation: Rule,
    pub(crate) message: Rule,
    pub(crate) event: Rule,
}

/// The rules per viewer, cached: they contain only ids, so they never become stale, and building them for every request
/// would cost more than many queries.
pub(crate) struct Rulebook {
    rules: Cache<ViewerIds, Arc<Rules>>,
    backend: DbBackend,
}

impl Rulebook {
    pub(crate) fn new(backend: DbBackend) -> Self {
        Self {
            rules: Cache::new(RULES_KEPT, None),
            backend,
        }
    }

    pub(crate) fn stats(&self) -> CacheStats {
        self.rules.stats()
    }

    pub(super) fn backend(&self) -> DbBackend {
        self.backend
    }

    /// The rules of a viewer who is not an administrator.
    pub(crate) fn rules(&self, ids: ViewerIds) -> Arc<Rules> {
        if let Some(rules) = self.rules.get(&ids) {
            return rules;
        }
        let rules = Arc::new(Rules::of(ids));
        self.rules.insert(ids, Arc::clone(&rules));
        rules
    }
}

/// The ids of the circles that a viewer may read: those that the user owns or that are shared with them, within the
/// limits of the API key.
pub(super) fn circle_ids(ids: ViewerIds) -> SelectStatement {
    let shared = collaborator::Entity::find()
        .select_only()
        .column(collaborator::Column::CircleId)
        .filter(collaborator::Column::UserId.eq(ids.user))
        .into_query();
    let of_user = circle::Entity::find()
        .select_only()
        .column(circle::Column::Id)
        .filter(circle::Column::OwnerId.eq(ids.user))
        .into_query()
        .union(UnionType::All, shared)
        .take();
    if !ids.is_limited() {
        return of_user;
    }
    let of_agent = ids.agent.map(|agent| {
        member::Entity::find()
            .select_only()
            .column(member::Column::CircleId)
            .filter(member::Column::AgentId.eq(agent))
            .filter(member::Column::IsActive.eq(true))
            .into_query()
    });
    let of_key = ids.key.map(|key| {
        api_key_circle::Entity::find()
            .select_only()
            .column(api_key_circle::Column::CircleId)
            .filter(api_key_circle::Column::KeyId.eq(key))
            .into_query()
    });
    let within = [of_agent, of_key].into_iter().flatten();
    within.fold(
        circle::Entity::find()
            .select_only()
            .column(circle::Column::Id)
            .filter(circle::Column::Id.in_subquery(of_user))
            .into_query(),
        |mut select, within| {
            select
                .and_where(circle::Column::Id.in_subquery(within))
                .take()
        },
    )
}

/// Condition: the event ends a membership of the agent. It is the last event of the circle that a key of the agent
/// receives.
pub(super) fn removal_of(agent: Uuid) -> Expr {
    event::Column::AgentId
        .eq(agent)
        .and(event::Column::Kind.eq(EventType::MemberRemoved.dotted()))
}

fn exists(table: &'static str, condition: Condition) -> Expr {
    Expr::exists(
        Query::select()
            .expr(Expr::val(1))
            .from(table)
            .cond_where(condition)
            .take(),
    )
}

fn same(one: impl ColumnTrait, other: impl ColumnTrait) -> Expr {
    Expr::col(one.as_column_ref()).equals(other.as_column_ref())
}

/// Condition on the circle in the outer query: the viewer may read it.
fn is_readable(ids: ViewerIds) -> Condition {
    let shared = exists(
        "circle_collaborators",
        Condition::all()
            .add(same(collaborator::Column::CircleId, circle::Column::Id))
            .add(collaborator::Column::UserId.eq(ids.user)),
    );
    let of_user = Condition::any()
        .add(circle::Column::OwnerId.eq(ids.user))
        .add(shared);
    let of_agent = ids.agent.map(|agent| {
        exists(
            "circle_members",
            Condition::all()
                .add(same(member::Column::CircleId, circle::Column::Id))
                .add(member::Column::AgentId.eq(agent))
                .add(member::Column::IsActive.eq(true)),
        )
    });
    let of_key = ids.key.map(|key| {
        exists(
            "api_key_circles",
            Condition::all()
                .add(same(api_key_circle::Column::CircleId, circle::Column::Id))
                .add(api_key_circle::Column::KeyId.eq(key)),
        )
    });
    if !ids.is_limited() {
        return of_user;
    }
    Condition::all()
        .add(of_user)
        .add_option(of_agent)
        .add_option(of_key)
}

/// Condition: the user owns the circle, or it is shared with them.
pub(crate) fn circles_of(user: Uuid) -> Condition {
    is_readable(ViewerIds::of_user(user))
}

/// Condition: the column is the id of a circle that the viewer may read.
fn in_readable_circle(column: impl ColumnTrait, ids: ViewerIds) -> Expr {
    let this = Condition::all().add(same(circle::Column::Id, column));
    exists("circles", this.add(is_readable(ids)))
}

/// Condition on the conversation in the outer query: the viewer may read it.
fn is_readable_conversation(ids: ViewerIds) -> Condition {
    let private = Condition::all()
        .add(conversation::Column::CircleId.is_null())
        .add(conversation::Column::OwnerId.eq(ids.user));
    Condition::any()
        .add(in_readable_circle(conversation::Column::CircleId, ids))
        .add_option((!ids.is_limited()).then_some(private))
}

impl Rules {
    fn of(ids: ViewerIds) -> Self {
        let own = |column: &dyn Fn() -> Expr| (!ids.is_limited()).then(column);
        let own_agent = match ids.agent {
            Some(agent) => Some(agent::Column::Id.eq(agent)),
            None => own(&|| agent::Column::OwnerId.eq(ids.user)),
        };
        let own_event = match ids.agent {
            Some(agent) => {
                let circle = in_readable_circle(event::Column::CircleId, ids.without_agent());
                Some(removal_of(agent).and(circle))
            }
            None => own(&|| event::Column::OwnerId.eq(ids.user)),
        };
        let members = Condition::all()
            .add(same(member::Column::AgentId, agent::Column::Id))
            .add(member::Column::IsActive.eq(true))
            .add(in_readable_circle(member::Column::CircleId, ids));
        let circles = Condition::all()
            .add(same(circle::Column::ProjectId, project::Column::Id))
            .add(is_readable(ids));
        let conversations = Condition::all()
            .add(same(
                conversation::Column::Id,
                message::Column::ConversationId,
            ))
            .add(is_readable_conversation(ids));
        let of_circle = |circle: Expr| Rule::new(Condition::all().add(circle));
        Self {
            agent: Rule::new(
                Condition::any()
                    .add_option(own_agent)
                    .add(exists("circle_members", members)),
            ),
            project: Rule::new(
                Condition::any()
                    .add_option(own(&|| project::Column::OwnerId.eq(ids.user)))
                    .add(exists("circles", circles)),
            ),
            circle: Rule::new(is_readable(ids)),
            member: of_circle(in_readable_circle(member::Column::CircleId, ids)),
            task: of_circle(in_readable_circle(task::Column::CircleId, ids)),
            conversation: Rule::new(is_readable_conversation(ids)),
            message: Rule::new(Condition::all().add(exists("conversations", conversations))),
            event: Rule::new(
                Condition::any()
                    .add_option(own_event)
                    .add(event::Column::Kind.is_in(PUBLIC_EVENTS.map(EventType::dotted)))
                    .add(in_readable_circle(event::Column::CircleId, ids)),
            ),
        }
    }
}
