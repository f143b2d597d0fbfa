//! The signed-in user, and which rows they may read.
//!
//! Every rule exists twice: as a condition on a row given by its id, which is cheap for few rows, and as a condition
//! for lists, which starts from the viewer's circles. A row that the viewer may not read is treated as nonexistent.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use gathering_entity::{
    agent, circle, collaborator, conversation, event, member, message, project, task, user,
};
use sea_orm::{
    ColumnTrait, Condition, DbBackend, EntityTrait, QueryFilter, QuerySelect, QueryTrait,
    sea_query::{Expr, ExprTrait, Func, Query, SelectStatement, UnionType},
};
use uuid::Uuid;

use crate::{
    cache::{Cache, CacheStats},
    db::Rule,
    events::EventType,
};

/// Maximum number of users whose rules are cached.
const RULES_KEPT: u64 = 1_000;

/// The types of the events that every signed-in user may read.
pub(crate) const PUBLIC_EVENTS: [EventType; 3] = [
    EventType::ProviderChanged,
    EventType::ModelChanged,
    EventType::PersonaChanged,
];

/// The signed-in user on whose behalf an operation runs.
#[derive(Clone, Debug)]
pub struct Viewer {
    pub(crate) user: Arc<user::Model>,
    session: Uuid,
    expires_at: DateTime<Utc>,
    rules: Arc<Rules>,
    backend: DbBackend,
}

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

/// The rules per user, cached: they contain only ids, so they never become stale, and building them for every request
/// would cost more than many queries.
pub(crate) struct Rulebook {
    rules: Cache<Uuid, Arc<Rules>>,
    of_admins: Arc<Rules>,
    backend: DbBackend,
}

impl Rulebook {
    pub(crate) fn new(backend: DbBackend) -> Self {
        Self {
            rules: Cache::new(RULES_KEPT, None),
            of_admins: Arc::default(),
            backend,
        }
    }

    pub(crate) fn stats(&self) -> CacheStats {
        self.rules.stats()
    }

    fn rules(&self, user: &user::Model) -> Arc<Rules> {
        if user.role == user::UserRole::Admin {
            return Arc::clone(&self.of_admins);
        }
        if let Some(rules) = self.rules.get(&user.id) {
            return rules;
        }
        let rules = Arc::new(Rules::of(user.id));
        self.rules.insert(user.id, Arc::clone(&rules));
        rules
    }
}

impl Viewer {
    pub(crate) fn new(
        user: Arc<user::Model>,
        session: Uuid,
        expires_at: DateTime<Utc>,
        rulebook: &Rulebook,
    ) -> Self {
        Self {
            rules: rulebook.rules(&user),
            user,
            session,
            expires_at,
            backend: rulebook.backend,
        }
    }

    /// A viewer of whom only the id and the role are known.
    pub(crate) fn stand_in(id: Uuid, role: user::UserRole, rulebook: &Rulebook) -> Self {
        let never = DateTime::<Utc>::MIN_UTC;
        let user = user::Model {
            id,
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
            quota_class: None,
        };
        Self::new(Arc::new(user), Uuid::nil(), never, rulebook)
    }

    /// The user's row id.
    pub fn id(&self) -> Uuid {
        self.user.id
    }

    /// The quota class of the user.
    pub(crate) fn quota_class(&self) -> Option<&str> {
        self.user.quota_class.as_deref()
    }

    /// The session of the request.
    pub(crate) fn session(&self) -> Uuid {
        self.session
    }

    /// When the access token expires.
    pub(crate) fn expires_at(&self) -> DateTime<Utc> {
        self.expires_at
    }

    /// Whether the user has the role ADMIN.
    pub fn is_admin(&self) -> bool {
        self.user.role == user::UserRole::Admin
    }

    pub(crate) fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Agents the viewer may list.
    pub(crate) fn agents(&self) -> Condition {
        self.unless_admin(|id| {
            let shared = member::Entity::find()
                .select_only()
                .column(member::Column::AgentId)
                .filter(member::Column::IsActive.eq(true))
                .filter(self.in_circles(&member::Column::CircleId, id))
                .into_query();
            Condition::any()
                .add(agent::Column::OwnerId.eq(id))
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
                .filter(self.in_circles(&circle::Column::Id, id))
                .into_query();
            Condition::any()
                .add(project::Column::OwnerId.eq(id))
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
        self.unless_admin(|id| {
            Condition::any()
                .add(self.in_circles(&conversation::Column::CircleId, id))
                .add(
                    Condition::all()
                        .add(conversation::Column::CircleId.is_null())
                        .add(conversation::Column::OwnerId.eq(id)),
                )
        })
    }

    /// Events the viewer may list.
    pub(crate) fn events(&self) -> Condition {
        self.unless_admin(|id| {
            Condition::any()
                .add(event::Column::OwnerId.eq(id))
                .add(self.in_circles(&event::Column::CircleId, id))
                .add(event::Column::Kind.is_in(PUBLIC_EVENTS.map(EventType::dotted)))
        })
    }

    fn in_readable_circle(&self, column: impl ColumnTrait) -> Condition {
        self.unless_admin(|id| Condition::all().add(self.in_circles(&column, id)))
    }

    /// Condition: `column` is the id of a circle that the user may read.
    fn in_circles(&self, column: &impl ColumnTrait, user: Uuid) -> Expr {
        self.among(column, circle_ids(user))
    }

    /// Condition: `column` is one of the selected ids. PostgreSQL may plan a subquery as a join that reads the whole
    /// table; it looks up an array of ids in an index.
    fn among(&self, column: &impl ColumnTrait, ids: SelectStatement) -> Expr {
        if self.backend == DbBackend::Postgres {
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

/// The ids of the circles that a user owns or that are shared with them.
fn circle_ids(user: Uuid) -> SelectStatement {
    let shared = collaborator::Entity::find()
        .select_only()
        .column(collaborator::Column::CircleId)
        .filter(collaborator::Column::UserId.eq(user))
        .into_query();
    circle::Entity::find()
        .select_only()
        .column(circle::Column::Id)
        .filter(circle::Column::OwnerId.eq(user))
        .into_query()
        .union(UnionType::All, shared)
        .take()
}

impl Rules {
    fn of(user: Uuid) -> Self {
        let exists = |table: &'static str, condition: Condition| {
            Expr::exists(
                Query::select()
                    .expr(Expr::val(1))
                    .from(table)
                    .cond_where(condition)
                    .take(),
            )
        };
        let same = |one: (_, _), other: (_, _)| Expr::col(one).equals(other);
        // For the circle in the outer query.
        let mine = || {
            let shared = exists(
                "circle_collaborators",
                Condition::all()
                    .add(same(
                        collaborator::Column::CircleId.as_column_ref(),
                        circle::Column::Id.as_column_ref(),
                    ))
                    .add(collaborator::Column::UserId.eq(user)),
            );
            Condition::any()
                .add(circle::Column::OwnerId.eq(user))
                .add(shared)
        };
        let readable = |circle: (_, _)| {
            exists(
                "circles",
                Condition::all()
                    .add(same(circle::Column::Id.as_column_ref(), circle))
                    .add(mine()),
            )
        };
        let conversation = || {
            Condition::any()
                .add(readable(conversation::Column::CircleId.as_column_ref()))
                .add(
                    Condition::all()
                        .add(conversation::Column::CircleId.is_null())
                        .add(conversation::Column::OwnerId.eq(user)),
                )
        };
        Self {
            agent: Rule::new(
                Condition::any()
                    .add(agent::Column::OwnerId.eq(user))
                    .add(exists(
                        "circle_members",
                        Condition::all()
                            .add(same(
                                member::Column::AgentId.as_column_ref(),
                                agent::Column::Id.as_column_ref(),
                            ))
                            .add(member::Column::IsActive.eq(true))
                            .add(readable(member::Column::CircleId.as_column_ref())),
                    )),
            ),
            project: Rule::new(
                Condition::any()
                    .add(project::Column::OwnerId.eq(user))
                    .add(exists(
                        "circles",
                        Condition::all()
                            .add(same(
                                circle::Column::ProjectId.as_column_ref(),
                                project::Column::Id.as_column_ref(),
                            ))
                            .add(mine()),
                    )),
            ),
            circle: Rule::new(mine()),
            member: Rule::new(
                Condition::all().add(readable(member::Column::CircleId.as_column_ref())),
            ),
            task: Rule::new(Condition::all().add(readable(task::Column::CircleId.as_column_ref()))),
            conversation: Rule::new(conversation()),
            message: Rule::new(
                Condition::all().add(exists(
                    "conversations",
                    Condition::all()
                        .add(same(
                            conversation::Column::Id.as_column_ref(),
                            message::Column::ConversationId.as_column_ref(),
                        ))
                        .add(conversation()),
                )),
            ),
            event: Rule::new(
                Condition::any()
                    .add(event::Column::OwnerId.eq(user))
                    .add(event::Column::Kind.is_in(PUBLIC_EVENTS.map(EventType::dotted)))
                    .add(readable(event::Column::CircleId.as_column_ref())),
            ),
        }
    }
}
