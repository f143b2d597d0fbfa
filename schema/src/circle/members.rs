//! Members: agents in circles.

use std::{collections::HashSet, sync::Arc};

use async_graphql::{
    Context, Enum, ID, InputObject, Object, OutputType, SimpleObject, resolver_utils::EnumType,
};
use futures_util::future::try_join_all;
use gathering_entity::{List, agent, circle, member, task};
use sea_orm::{
    ColumnTrait, Condition, EntityTrait, FromQueryResult, IntoActiveModel, PaginatorTrait,
    QueryFilter, QuerySelect, QueryTrait,
    sea_query::{Expr, ExprTrait, JoinType, OnConflict},
};
use serde::Deserialize;
use uuid::Uuid;

use crate::{
    access::Viewer,
    agent::Agent,
    circle::{
        Circle,
        event::membership,
        inputs::{MEMBERS, NewMemberInput},
        sharing,
    },
    data::{Change, Draft, EdgeField, Entries, FieldsOf, Listed, Noun, One, load},
    db::{Rule, Stored, Totals, count_where, is_among, json_rows},
    error::Error,
    events::{EventType, NewEvent},
    id::Kind,
    input::{Check, UserError, UserErrorCode, entry},
    request::RequestExt,
    scalar::DateTime,
    task::ReviewType,
    text,
};

/// Maximum number of agents that one input adds.
const MAX_JOINERS: usize = 100;
/// Maximum number of competencies of a member, and maximum length of one in characters.
const MAX_COMPETENCIES: usize = 50;
const MAX_COMPETENCY: usize = 100;
/// Maximum number of review types of a member, and the word that means all of them.
const MAX_REVIEW_TYPES: usize = 10;
const ALL_REVIEWS: &str = "all";

/// The role of an agent in a circle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
#[graphql(remote = "member::MemberRole")]
pub enum MemberRole {
    /// Leads the circle. Tasks are routed to it.
    Lead,
    /// A regular member. Tasks are routed to it.
    Member,
    /// A specialist. Tasks are routed to it.
    Specialist,
    /// Reviews the work of others. No tasks are routed to it.
    Reviewer,
    /// Observes. No tasks are routed to it.
    Observer,
}

/// An agent's membership in a circle.
pub struct CircleMember(pub(crate) Arc<member::Model>);

impl From<Arc<member::Model>> for CircleMember {
    fn from(row: Arc<member::Model>) -> Self {
        Self(row)
    }
}

impl Noun for CircleMember {
    type Entity = member::Entity;
    const KIND: Kind = Kind::Member;
    const NAME: &'static str = "CircleMember";

    fn readable(viewer: &Viewer) -> Option<Rule> {
        Some(viewer.rules().member.clone())
    }

    fn fields() -> FieldsOf<Self> {
        use member::Column::{
            CircleId, Competencies, IsActive, JoinedAt, LeftAt, ReviewTypes, Role,
        };
        FieldsOf::new()
            .columns([Role, ReviewTypes, IsActive, JoinedAt, LeftAt])
            .texts([Competencies])
            .one::<Circle>("circle", CircleId)
    }
}

/// An agent's membership in a circle. Visible to readers of the circle.
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

    /// The role of the agent in the circle.
    async fn role(&self) -> MemberRole {
        self.0.role.into()
    }

    /// The competencies in this circle, at most 50 entries; if empty, those of the agent apply.
    async fn competencies(&self, ctx: &Context<'_>) -> Result<&[String], Error> {
        ctx.request().text(self.0.competencies.0.as_slice())
    }

    /// The review types in this circle; `all` means every type. If empty, those of the agent apply.
    async fn review_types(&self) -> &[String] {
        &self.0.review_types.0
    }

    /// Whether the agent is currently a member of the circle.
    async fn is_active(&self) -> bool {
        self.0.is_active
    }

    /// When the agent joined, or last rejoined.
    async fn joined_at(&self) -> DateTime {
        self.0.joined_at.into()
    }

    /// When the agent left; null while it is a member.
    async fn left_at(&self) -> Option<DateTime> {
        self.0.left_at.map(DateTime)
    }

    /// The number of the agent's tasks in this circle, by status.
    async fn workload(&self, ctx: &Context<'_>) -> Result<MemberWorkload, Error> {
        MemberWorkload::load(ctx, self.0.id).await
    }
}

impl CircleMember {
    /// The agent; `None` if the viewer may not read it.
    async fn readable_agent(&self, ctx: &Context<'_>) -> Result<Option<Agent>, Error> {
        let request = ctx.request();
        // A reader of a circle may read its active members. A former member is subject to the rules for agents.
        if !self.0.is_active {
            return load(request, self.0.agent_id).await;
        }
        let row = request.row::<agent::Entity>(self.0.agent_id).await?;
        Ok(row.map(Agent))
    }
}

/// The number of an agent's tasks in one circle, by status.
#[derive(Clone, Debug, Default, FromQueryResult, SimpleObject)]
pub struct MemberWorkload {
    /// The number of tasks that are `ASSIGNED`, `IN_PROGRESS`, `CHANGES_REQUESTED` or `BLOCKED`.
    open: i64,
    /// The number of tasks in review.
    in_review: i64,
    /// The number of completed tasks.
    completed: i64,
    /// The number of failed tasks.
    failed: i64,
}

impl MemberWorkload {
    async fn load(ctx: &Context<'_>, member: Uuid) -> Result<Self, Error> {
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

/// Edge fields of connections between circles and agents.
#[derive(SimpleObject)]
pub struct Membership {
    /// The membership.
    membership: CircleMember,
}

/// Marker type for connections of a circle's member agents.
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

    fn entries() -> Option<Entries> {
        Some(Entries {
            node: Some(One::to::<Agent>(member::Column::AgentId)),
            row: CircleMember::type_name().into_owned(),
            extra: vec![("membership", EdgeField::Row)],
        })
    }
}

/// Marker type for connections of an agent's circles, with the membership on each edge.
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

    fn entries() -> Option<Entries> {
        Some(Entries {
            node: Some(One::to::<Circle>(member::Column::CircleId)),
            row: CircleMember::type_name().into_owned(),
            extra: vec![("membership", EdgeField::Row)],
        })
    }
}

/// Filters a list of members. All conditions must match; an empty list matches nothing.
#[derive(InputObject)]
pub struct MemberFilter {
    /// Only members with one of these roles.
    role: Option<Vec<MemberRole>>,
    /// Whether to include former members whose agents the viewer may read.
    #[graphql(default_with = "Some(false)")]
    include_inactive: Option<bool>,
}

impl MemberFilter {
    /// The filter, unless it includes former members, whose agents the viewer may not be allowed to read.
    ///
    /// # Errors
    /// It includes them.
    pub(super) fn of_active(filter: Option<Self>) -> Result<Option<Self>, Error> {
        let is_wide = filter
            .as_ref()
            .is_some_and(|filter| filter.include_inactive == Some(true));
        if is_wide {
            return Err(Error::internal());
        }
        Ok(filter)
    }

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
            .map(|list| crate::db::is_one_of::<member::MemberRole>(member::Column::Role, list));
        Condition::all().add(present).add_option(role)
    }
}

/// An agent to add to a circle. Its input is validated, its ownership is not.
pub(super) struct Joiner {
    /// The index in the input.
    place: usize,
    agent: Uuid,
    role: member::MemberRole,
    competencies: List,
    review_types: List,
}

impl Joiner {
    /// The path of the agent id in the input.
    fn path(&self) -> String {
        format!("members.{}.agentId", self.place)
    }
}

impl NewMemberInput {
    /// Parses the agent ids of an input.
    ///
    /// # Errors
    /// `BAD_USER_INPUT` for an id that is not an agent id.
    pub(super) fn agents(inputs: &[Self]) -> Result<Vec<Uuid>, Error> {
        let agents = inputs.iter().enumerate().map(|(place, input)| {
            Kind::Agent.parse(&input.agent_id, &format!("members.{place}.agentId"))
        });
        agents.collect()
    }

    /// Returns the valid agents to add, and adds validation errors for the others to `check`.
    pub(super) fn check(inputs: &[Self], agents: &[Uuid], check: &mut Check) -> Vec<Joiner> {
        if inputs.len() > MAX_JOINERS {
            let message = format!("`members` must have at most {MAX_JOINERS} entries.");
            check.fault("members", UserErrorCode::TooMany, message);
            return Vec::new();
        }
        let mut known = HashSet::new();
        let mut joiners = Vec::with_capacity(inputs.len());
        for (place, (input, agent)) in inputs.iter().zip(agents).enumerate() {
            let path = |field: &str| format!("members.{place}.{field}");
            let competencies = input.competencies.as_deref().unwrap_or_default();
            let reviews = input.review_types.as_deref().unwrap_or_default();
            let joiner = Joiner {
                place,
                agent: *agent,
                role: input.role.into(),
                competencies: competent(check, &path("competencies"), competencies),
                review_types: reviewing(check, &path("reviewTypes"), reviews),
            };
            if known.insert(*agent) {
                joiners.push(joiner);
            } else {
                let message = "This agent is listed twice.";
                check.fault(&joiner.path(), UserErrorCode::Invalid, message);
            }
        }
        joiners
    }
}

pub(super) fn competent(check: &mut Check, field: &str, values: &[String]) -> List {
    check.words(field, values, MAX_COMPETENCIES, MAX_COMPETENCY)
}

/// Validates review types and folds their case.
pub(crate) fn reviewing(check: &mut Check, field: &str, values: &[String]) -> List {
    let List(words) = check.words(field, values, MAX_REVIEW_TYPES, MAX_COMPETENCY);
    let is_unknown = |word: &&String| {
        let mut types = ReviewType::items().iter();
        *word != ALL_REVIEWS && types.all(|item| text::fold(item.name) != **word)
    };
    if let Some(unknown) = words.iter().find(is_unknown) {
        let mut folded = values.iter().map(|value| text::fold(value));
        let place = folded.position(|word| word == *unknown).unwrap_or_default();
        let field = entry(field, place);
        let message = format!("`{field}` must be a value of `ReviewType`, or `{ALL_REVIEWS}`.");
        check.fault(&field, UserErrorCode::Invalid, message);
    }
    List(words)
}

/// Adds a fault if the joining agents and the `present` members exceed `maxMembers`.
pub(super) fn check_room(check: &mut Check, circle: &circle::Model, present: i32, joining: usize) {
    let room = usize::try_from(circle.max_members - present).unwrap_or_default();
    // A bound that is out of range has been reported already.
    if joining > room && MEMBERS.contains(&circle.max_members) {
        let message = format!(
            "The circle allows at most {} active members and has {present}.",
            circle.max_members
        );
        check.fault("members", UserErrorCode::LimitReached, message);
    }
}

/// Adds a fault for each joining agent that is already an active member. Returns the number of the others. `known` are
/// the memberships of the joining agents.
pub(super) fn check_absent(check: &mut Check, joiners: &[Joiner], known: &[Known]) -> usize {
    let mut fresh = joiners.len();
    for joiner in joiners {
        let is_there = |agent: &Known| agent.id == joiner.agent && agent.is_active.is_some();
        if known.iter().any(is_there) {
            let message = "This agent is already a member.";
            check.fault(&joiner.path(), UserErrorCode::Taken, message);
            fresh -= 1;
        }
    }
    fresh
}

/// A former member cannot be changed, only added again.
pub(super) fn check_present(row: &member::Model) -> Result<(), UserError> {
    if row.is_active {
        return Ok(());
    }
    let message = "The agent has left the circle.";
    Err(UserError::new(
        "memberId",
        UserErrorCode::NotMember,
        message,
    ))
}

/// Loads a membership that the viewer may change, with its circle, which is locked.
pub(super) async fn editable(
    change: &Change<'_>,
    id: Uuid,
    field: &str,
) -> Result<(circle::Model, member::Model), Error> {
    // A membership never changes its circle, so its circle may be read before it is locked.
    let circle = member::Entity::find_by_id(id)
        .select_only()
        .column(member::Column::CircleId);
    let circle: Option<Uuid> = circle.into_tuple().one(&change.transaction).await?;
    let circle = circle.ok_or_else(|| Error::not_found(field))?;
    let circle = sharing::editable(change, circle, field).await?;
    let any = Rule::default();
    let row = change.row::<member::Entity>(&any, id, field).await?;
    Ok((circle, row))
}

/// The number of active members of a circle.
pub(super) async fn count(change: &Change<'_>, circle: Uuid) -> Result<i32, Error> {
    let active = member::Entity::find()
        .filter(member::Column::CircleId.eq(circle))
        .filter(member::Column::IsActive.eq(true));
    let count = active.count(&change.transaction).await?;
    Ok(i32::try_from(count).unwrap_or(i32::MAX))
}

/// The number of active members of the circle of the outer query.
pub(super) fn present() -> Expr {
    let circle = Expr::col(member::Column::CircleId.as_column_ref());
    let active = member::Entity::find()
        .select_only()
        .expr(Expr::col(member::Column::Id).count())
        .filter(circle.equals(circle::Column::Id.as_column_ref()))
        .filter(member::Column::IsActive.eq(true))
        .into_query();
    Expr::from(active)
}

/// The owners of joining agents that the viewer may read, and the memberships of the agents in the circle of the outer
/// query.
#[derive(Deserialize)]
pub(super) struct Known {
    id: Uuid,
    owner_id: Uuid,
    /// The membership, current or former.
    membership: Option<Uuid>,
    is_active: Option<i32>,
}

impl Known {
    /// A column with the list, for [`Known::list`]. `circle` is the circle that the agents join.
    pub(super) fn column(change: &Change<'_, Draft>, joiners: &[Joiner], circle: Uuid) -> Expr {
        let backend = change.backend();
        let ids: Vec<_> = joiners.iter().map(|joiner| joiner.agent).collect();
        let id = agent::Column::Id.as_column_ref();
        let is_here = Expr::col(member::Column::AgentId.as_column_ref())
            .equals(id.clone())
            .and(member::Column::CircleId.eq(circle));
        let is_active = Expr::case(member::Column::IsActive.eq(true), Expr::cust("1"));
        let agents = agent::Entity::find()
            .select_only()
            .columns([agent::Column::Id, agent::Column::OwnerId])
            .column_as(member::Column::Id, "membership")
            .expr_as(is_active, "is_active")
            .filter(change.viewer.rules().agent.condition())
            .filter(is_among(backend, id, &ids))
            .into_query()
            .join(JoinType::LeftJoin, member::Entity, is_here)
            .take();
        let columns = [
            ("id", Stored::Uuid),
            ("owner_id", Stored::Uuid),
            ("membership", Stored::Uuid),
            ("is_active", Stored::Plain),
        ];
        json_rows(backend, agents, &columns)
    }
}

/// Checks that the viewer may add the agents: only their owner or an administrator may.
///
/// # Errors
/// `NOT_FOUND` and `FORBIDDEN`, naming the first agent concerned.
pub(super) fn check_joiners(
    change: &Change<'_, Draft>,
    joiners: &[Joiner],
    known: &[Known],
) -> Result<(), Error> {
    for joiner in joiners {
        match known.iter().find(|agent| agent.id == joiner.agent) {
            None => return Err(Error::not_found(&joiner.path())),
            Some(agent) if !change.viewer.is_admin() && agent.owner_id != change.viewer.id() => {
                return Err(change
                    .forbidden(Kind::Agent, joiner.agent)
                    .field(&joiner.path()));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// Adds agents to a circle and returns the ids of the memberships. Former memberships are reactivated.
pub(super) fn add(
    change: &mut Change<'_, Draft>,
    circle: &circle::Model,
    joiners: Vec<Joiner>,
    known: &[Known],
) -> Vec<Uuid> {
    use member::Column::{
        AgentId, CircleId, Competencies, IsActive, JoinedAt, LeftAt, ReviewTypes, Role, UpdatedAt,
    };
    let new: Vec<_> = joiners
        .into_iter()
        .map(|joiner| member::Model {
            id: Uuid::now_v7(),
            created_at: change.now,
            updated_at: change.now,
            circle_id: circle.id,
            agent_id: joiner.agent,
            role: joiner.role,
            competencies: joiner.competencies,
            review_types: joiner.review_types,
            is_active: true,
            joined_at: change.now,
            left_at: None,
        })
        .collect();
    let again = OnConflict::columns([CircleId, AgentId])
        .update_columns([
            UpdatedAt,
            Role,
            Competencies,
            ReviewTypes,
            IsActive,
            JoinedAt,
            LeftAt,
        ])
        .to_owned();
    let rows = new.iter().cloned().map(IntoActiveModel::into_active_model);
    change.insert_or_update(rows, again);
    let joined = new.into_iter().map(|mut row| {
        let past = known.iter().find(|agent| agent.id == row.agent_id);
        row.id = past.and_then(|past| past.membership).unwrap_or(row.id);
        change.append(membership(EventType::MemberAdded, circle, &row, &[]));
        row.id
    });
    joined.collect()
}

/// The event for an agent that has left a circle.
pub(crate) fn removed(circle: &circle::Model, row: &member::Model) -> NewEvent {
    membership(EventType::MemberRemoved, circle, row, &[])
}
