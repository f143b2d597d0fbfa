//! The authenticated caller, and which rows they may read.
//!
//! Every rule exists twice: as a condition on a row given by its id, which is cheap for few rows, and as a condition
//! for lists, which starts from the viewer's circles. A row that the viewer may not read is treated as nonexistent.
//!
//! An API key has the rights of its user, or fewer: a key that is limited to circles, or to the circles of an agent,
//! reads these circles and their contents only.

mod rules;

use std::sync::{Arc, OnceLock};

use async_graphql::Enum;
use chrono::{DateTime, Utc};
use gathering_entity::{agent, api_key, circle, conversation, event, member, project, task, user};
use sea_orm::{
    ColumnTrait, Condition, DbBackend, EntityTrait, QueryFilter, QuerySelect, QueryTrait,
    sea_query::{Expr, ExprTrait, Func, SelectStatement},
};
use uuid::Uuid;

use crate::{
    db::{Paths, Scope, ViewerIds},
    events::{EventType, FeedFilter},
};

pub(crate) use rules::{Rulebook, circles_of};

use rules::{Rules, circle_ids};

/// The types of the events that every signed-in user may read.
pub(crate) const PUBLIC_EVENTS: [EventType; 3] = [
    EventType::ProviderChanged,
    EventType::ModelChanged,
    EventType::PersonaChanged,
];

/// The operations that an API key allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Enum)]
pub enum ApiKeyScope {
    /// Queries and subscriptions.
    Read,
    /// Mutations.
    Write,
    /// Fields for administrators, if the user of the key is one. Each also needs `READ` or `WRITE`.
    Admin,
}

impl ApiKeyScope {
    pub(crate) const ALL: [Self; 3] = [Self::Read, Self::Write, Self::Admin];

    /// The name in the schema and in the database.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Read => "READ",
            Self::Write => "WRITE",
            Self::Admin => "ADMIN",
        }
    }

    /// Whether a key has this scope.
    pub(crate) fn is_of(self, key: &api_key::Model) -> bool {
        key.scopes.0.iter().any(|scope| scope == self.name())
    }
}

/// What has authenticated a request.
#[derive(Clone, Debug)]
pub(crate) enum Grant {
    /// An access token of a session, which expires at this time.
    Session(Uuid, DateTime<Utc>),
    /// An API key.
    Key(Arc<api_key::Model>),
}

impl Grant {
    /// A grant of a session that is not known.
    pub(crate) fn unknown() -> Self {
        Self::Session(Uuid::nil(), DateTime::<Utc>::MIN_UTC)
    }

    /// The ids in the rules of a user with this grant.
    pub(crate) fn ids(&self, user: Uuid) -> ViewerIds {
        match self {
            Self::Session(..) => ViewerIds::of_user(user),
            Self::Key(key) => ViewerIds {
                user,
                key: key.is_limited.then_some(key.id),
                agent: key.agent_id,
            },
        }
    }

    /// The quota class of the API key, if it has one of its own.
    pub(crate) fn quota_class(&self) -> Option<&str> {
        match self {
            Self::Session(..) => None,
            Self::Key(key) => key.quota_class.as_deref(),
        }
    }

    /// The session, or the key.
    pub(crate) fn id(&self) -> Uuid {
        match self {
            Self::Session(id, _) => *id,
            Self::Key(key) => key.id,
        }
    }
}

/// The user on whose behalf an operation runs, and what has authenticated the operation.
#[derive(Clone)]
pub struct Viewer {
    pub(crate) user: Arc<user::Model>,
    grant: Grant,
    ids: ViewerIds,
    rulebook: Arc<Rulebook>,
    /// Looked up at the first use: most queries are compiled for all viewers of a kind.
    rules: OnceLock<Arc<Rules>>,
}

impl Viewer {
    pub(crate) fn new(user: Arc<user::Model>, grant: Grant, rulebook: &Arc<Rulebook>) -> Self {
        let ids = grant.ids(user.id);
        Self::with_ids(user, ids, grant, rulebook)
    }

    fn with_ids(
        user: Arc<user::Model>,
        ids: ViewerIds,
        grant: Grant,
        rulebook: &Arc<Rulebook>,
    ) -> Self {
        Self {
            user,
            grant,
            ids,
            rulebook: Arc::clone(rulebook),
            rules: OnceLock::new(),
        }
    }

    /// A viewer of whom only the ids, the role and the grant are known.
    pub(crate) fn stand_in(
        ids: ViewerIds,
        role: user::UserRole,
        grant: Grant,
        rulebook: &Arc<Rulebook>,
    ) -> Self {
        let never = DateTime::<Utc>::MIN_UTC;
        let user = user::Model {
            id: ids.user,
            role,
            created_at: never,
            updated_at: never,
            email: String::new(),
            email_key: String::new(),
            name: String::new(),
            password_hash: String::new(),
            is_active: true,
            token_version: 0,
            last_login_at: None,
            kind: user::UserKind::Person,
            owner_id: None,
            quota_class: None,
            email_verified_at: None,
            deleted_at: None,
        };
        Self::with_ids(Arc::new(user), ids, grant, rulebook)
    }

    /// The user's row id.
    pub fn id(&self) -> Uuid {
        self.user.id
    }

    /// The ids in the viewer's rules.
    pub(crate) fn ids(&self) -> ViewerIds {
        self.ids
    }

    /// The session, or the API key.
    pub(crate) fn grant(&self) -> &Grant {
        &self.grant
    }

    /// The API key, if the request was authenticated with one.
    pub(crate) fn key(&self) -> Option<&api_key::Model> {
        match &self.grant {
            Grant::Session(..) => None,
            Grant::Key(key) => Some(key),
        }
    }

    /// The quota class of the API key, or else of the user.
    pub(crate) fn quota_class(&self) -> Option<&str> {
        let own = self.grant.quota_class();
        own.or(self.user.quota_class.as_deref())
    }

    /// The agent on whose behalf the API key acts.
    pub(crate) fn agent(&self) -> Option<Uuid> {
        self.ids.agent
    }

    /// Whether the viewer reads and changes some circles and their contents only.
    pub(crate) fn is_limited(&self) -> bool {
        self.ids.is_limited()
    }

    /// When the access token or the API key expires.
    pub(crate) fn expires_at(&self) -> DateTime<Utc> {
        match &self.grant {
            Grant::Session(_, expires_at) => *expires_at,
            Grant::Key(key) => key.expires_at.unwrap_or(DateTime::<Utc>::MAX_UTC),
        }
    }

    /// Whether the user has the role ADMIN, and the request may use it.
    pub fn is_admin(&self) -> bool {
        self.user.role == user::UserRole::Admin
            && !self.is_limited()
            && self.key().is_none_or(|key| ApiKeyScope::Admin.is_of(key))
    }

    /// Whether the viewer may read what is private to the owner of an agent.
    pub(crate) fn knows_agent(&self, agent: &agent::Model) -> bool {
        let is_own = agent.owner_id == self.id() && self.agent().is_none_or(|own| own == agent.id);
        self.is_admin() || is_own
    }

    /// Whether an event ends a membership of the agent on whose behalf the API key acts.
    pub(crate) fn is_removal(&self, event: &event::Model) -> bool {
        self.agent()
            .is_some_and(|agent| event.agent_id == Some(agent))
            && event.kind == EventType::MemberRemoved.dotted()
    }

    /// The rules for rows given by their ids; no rule restricts an administrator.
    pub(crate) fn rules(&self) -> &Rules {
        self.rules.get_or_init(|| {
            if self.is_admin() {
                Arc::default()
            } else {
                self.rulebook.rules(self.ids)
            }
        })
    }

    /// Agents the viewer may list.
    pub(crate) fn agents(&self) -> Condition {
        self.unless_admin(|id| {
            let shared = member::Entity::find()
                .select_only()
                .column(member::Column::AgentId)
                .filter(member::Column::IsActive.eq(true))
                .filter(self.in_circles(&member::Column::CircleId))
                .into_query();
            let own = match self.agent() {
                Some(agent) => Some(agent::Column::Id.eq(agent)),
                None => (!self.is_limited()).then(|| agent::Column::OwnerId.eq(id)),
            };
            Condition::any()
                .add_option(own)
                .add(self.among(&agent::Column::Id, shared))
        })
    }

    /// Projects the viewer may list.
    pub(crate) fn projects(&self) -> Condition {
        self.unless_admin(|id| {
            let linked = circle::Entity::find()
                .select_only()
                .column(circle::Column::ProjectId)
                .filter(circle::Column::ProjectId.is_not_null())
                .filter(self.in_circles(&circle::Column::Id))
                .into_query();
            let own = (!self.is_limited()).then(|| project::Column::OwnerId.eq(id));
            Condition::any()
                .add_option(own)
                .add(self.among(&project::Column::Id, linked))
        })
    }

    /// Circles the viewer may list.
    pub(crate) fn circles(&self) -> Condition {
        self.in_readable_circle(circle::Column::Id)
    }

    /// Tasks the viewer may list.
    pub(crate) fn tasks(&self) -> Condition {
        self.in_readable_circle(task::Column::CircleId)
    }

    /// Conversations the viewer may list.
    pub(crate) fn conversations(&self) -> Condition {
        self.unless_admin(|_| {
            Condition::any()
                .add(self.in_circles(&conversation::Column::CircleId))
                .add_option(self.private_conversations())
        })
    }

    /// Conversations of the user outside circles.
    fn private_conversations(&self) -> Option<Condition> {
        let private = Condition::all()
            .add(conversation::Column::CircleId.is_null())
            .add(conversation::Column::OwnerId.eq(self.id()));
        (!self.is_limited()).then_some(private)
    }

    /// Events the viewer may list.
    pub(crate) fn events(&self) -> Condition {
        self.unless_admin(|_| {
            Condition::any()
                .add_option(self.own_events())
                .add(self.in_circles(&event::Column::CircleId))
                .add(event::Column::Kind.is_in(PUBLIC_EVENTS.map(EventType::dotted)))
        })
    }

    /// Events that the viewer may list wherever they happened.
    fn own_events(&self) -> Option<Expr> {
        match self.agent() {
            Some(agent) => {
                let circles = circle_ids(self.ids.without_agent());
                let circle = self.among(&event::Column::CircleId, circles);
                Some(rules::removal_of(agent).and(circle))
            }
            None => (!self.is_limited()).then(|| event::Column::OwnerId.eq(self.id())),
        }
    }

    /// Tasks the viewer may list, for a list of all tasks.
    pub(crate) fn all_tasks(&self) -> Scope {
        self.scope(self.tasks(), &task::Column::CircleId, Vec::new())
    }

    /// Conversations the viewer may list, for a list of all conversations.
    pub(crate) fn all_conversations(&self) -> Scope {
        let others = self.private_conversations().into_iter();
        let column = &conversation::Column::CircleId;
        self.scope(self.conversations(), column, others.collect())
    }

    /// Events the viewer may list, for a list of all events that match a filter.
    pub(crate) fn all_events(&self, filter: &FeedFilter) -> Scope {
        let types = PUBLIC_EVENTS.map(EventType::dotted).into_iter();
        let types = types.filter(|kind| {
            let all = filter.types.as_ref();
            all.is_none_or(|all| all.contains(kind))
        });
        let others = types
            .map(|kind| event::Column::Kind.eq(kind))
            .chain(self.own_events())
            .map(|other| Condition::all().add(other));
        self.scope(self.events(), &event::Column::CircleId, others.collect())
    }

    /// The rows that meet a condition: those of the viewer's circles, and others.
    fn scope(
        &self,
        condition: Condition,
        circle: &impl ColumnTrait,
        others: Vec<Condition>,
    ) -> Scope {
        let has_rule = !self.is_admin() && self.rulebook.backend() == DbBackend::Postgres;
        Scope {
            condition,
            paths: has_rule.then(|| Paths {
                keys: (circle.as_column_ref(), circle_ids(self.ids)),
                others,
            }),
        }
    }

    fn in_readable_circle(&self, column: impl ColumnTrait) -> Condition {
        self.unless_admin(|_| Condition::all().add(self.in_circles(&column)))
    }

    /// Condition: `column` is the id of a circle that the viewer may read.
    fn in_circles(&self, column: &impl ColumnTrait) -> Expr {
        self.among(column, circle_ids(self.ids))
    }

    /// Condition: `column` is one of the selected ids. PostgreSQL may plan a subquery as a join that reads the whole
    /// table; it looks up an array of ids in an index.
    fn among(&self, column: &impl ColumnTrait, ids: SelectStatement) -> Expr {
        if self.rulebook.backend() == DbBackend::Postgres {
            let array = Func::cust("ARRAY").arg(Expr::from(ids));
            Expr::col(column.as_column_ref()).eq(Func::cust("ANY").arg(array))
        } else {
            column.in_subquery(ids)
        }
    }

    fn unless_admin(&self, condition: impl FnOnce(Uuid) -> Condition) -> Condition {
        if self.is_admin() {
            Condition::all()
        } else {
            condition(self.id())
        }
    }
}
