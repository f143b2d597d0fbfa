//! Members: agents in circles.

use crate::data::Noun;
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use async_graphql::{
    Context, Enum, ID, InputObject, MaybeUndefined, Object, SimpleObject, resolver_utils::EnumType,
};
use futures_util::future::{try_join, try_join_all};
use gathering_entity::{List, agent, circle, member, task};
use sea_orm::{
    ActiveEnum, ActiveModelTrait, ColumnTrait, Condition, ConnectionTrait, EntityTrait,
    FromQueryResult, IntoActiveModel, PaginatorTrait, QueryFilter, QueryOrder, QuerySelect,
    QueryTrait, Set,
    sea_query::{Expr, ExprTrait, JoinType, LockType, OnConflict},
};
use serde_json::json;
use uuid::Uuid;

use crate::{
    access::Viewer,
    agent::Agent,
    circle::{Access, Circle, check_open, check_room},
    data::{Change, Edits, Listed, Outcome, change},
    db::{Rule, Totals, count_where, is_among},
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

/// Payload of `updateCircleMember` and `removeCircleMember`.
#[derive(SimpleObject)]
pub struct CircleMemberPayload {
    /// The membership in its current state; null if there is none.
    member: Option<CircleMember>,
    /// Errors that the caller can correct; empty on success.
    user_errors: Vec<UserError>,
}

impl CircleMemberPayload {
    async fn new(ctx: &Context<'_>, outcome: Outcome) -> Result<Self, Error> {
        Ok(Self {
            member: outcome.row::<CircleMember>(ctx).await?,
            user_errors: outcome.errors,
        })
    }
}

/// Payload of `addCircleMembers`.
#[derive(SimpleObject)]
pub struct CircleMembersPayload {
    /// The circle in its current state; null if there is none or the caller can no longer read it.
    circle: Option<Circle>,
    /// The memberships of the added agents, in the order of the input; empty if none was added.
    members: Vec<CircleMember>,
    /// Errors that the caller can correct; empty on success.
    user_errors: Vec<UserError>,
}

impl CircleMembersPayload {
    async fn new(ctx: &Context<'_>, outcome: Outcome) -> Result<Self, Error> {
        let joined = outcome.rows.iter().skip(1);
        let joined = joined.map(|id| outcome.load::<CircleMember>(ctx, *id));
        let (circle, members) = try_join(outcome.row::<Circle>(ctx), try_join_all(joined)).await?;
        Ok(Self {
            circle,
            members: members.into_iter().flatten().collect(),
            user_errors: outcome.errors,
        })
    }
}

/// An agent to add to a circle.
#[derive(InputObject)]
pub struct NewMemberInput {
    /// The agent. Only its owner or an administrator may add it to a circle.
    agent_id: ID,
    /// The role in the circle.
    #[graphql(default_with = "MemberRole::Member")]
    role: MemberRole,
    /// The competencies in this circle, instead of the agent's own; at most 50 of at most 100 characters.
    competencies: Option<Vec<String>>,
    /// The review types in this circle, instead of the agent's own. At most 10 values of `ReviewType`, or `all`.
    review_types: Option<Vec<String>>,
}

/// Input for `addCircleMembers`.
#[derive(InputObject)]
pub struct AddCircleMembersInput {
    /// The circle.
    circle_id: ID,
    /// The agents to add: 1 to 100, each once.
    members: Vec<NewMemberInput>,
}

/// Input for `updateCircleMember`. Omitted fields keep their value; null clears a nullable field.
#[derive(InputObject)]
pub struct UpdateCircleMemberInput {
    /// The membership.
    member_id: ID,
    /// The role of the agent in the circle.
    role: MaybeUndefined<MemberRole>,
    /// The competencies in this circle; at most 50 entries of at most 100 characters. If empty, those of the agent
    /// apply.
    competencies: MaybeUndefined<Vec<String>>,
    /// The review types in this circle: at most 10 values of `ReviewType`, or `all`. If empty, those of the agent
    /// apply.
    review_types: MaybeUndefined<Vec<String>>,
}

/// Input for `removeCircleMember`.
#[derive(InputObject)]
pub struct RemoveCircleMemberInput {
    /// The membership.
    member_id: ID,
}

/// An agent to add to a circle. Its input is validated, its ownership is not.
pub(crate) struct Joiner {
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
    pub(crate) fn agents(inputs: &[Self]) -> Result<Vec<Uuid>, Error> {
        let agents = inputs.iter().enumerate().map(|(place, input)| {
            Kind::Agent.parse(&input.agent_id, &format!("members.{place}.agentId"))
        });
        agents.collect()
    }

    /// Returns the valid agents to add, and adds validation errors for the others to `check`.
    pub(crate) fn check(inputs: &[Self], agents: &[Uuid], check: &mut Check) -> Vec<Joiner> {
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

fn competent(check: &mut Check, field: &str, values: &[String]) -> List {
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
        let mut given = values.iter().map(|value| text::fold(value));
        let place = given.position(|word| word == *unknown).unwrap_or_default();
        let field = entry(field, place);
        let message = format!("`{field}` must be a value of `ReviewType`, or `{ALL_REVIEWS}`.");
        check.fault(&field, UserErrorCode::Invalid, message);
    }
    List(words)
}

/// Member mutations.
#[derive(Default)]
pub struct MemberMutation;

#[Object]
impl MemberMutation {
    /// Adds agents to a circle, all of them or none; former members rejoin. Requires editor access to the circle and
    /// ownership of the agents, or an administrator: an agent of another user is `FORBIDDEN`, or `NOT_FOUND` if the
    /// caller may not read it. `userErrors` codes besides input validation: `TAKEN` for an agent that is already an
    /// active member; `INVALID` for an agent that is listed twice; `LIMIT_REACHED` for more than the circle's
    /// `maxMembers`; `BAD_TRANSITION` while the circle is `ARCHIVED`.
    async fn add_circle_members(
        &self,
        ctx: &Context<'_>,
        input: AddCircleMembersInput,
    ) -> Result<CircleMembersPayload, Error> {
        let id = Kind::Circle.parse(&input.circle_id, "circleId")?;
        let agents = NewMemberInput::agents(&input.members)?;
        let outcome = change(ctx, None, async |mut change| {
            let circle = change.circle(id, "circleId", Access::Editor).await?;
            if let Err(fault) = check_open(&circle) {
                return Ok(Outcome::fault(Some(id), fault));
            }
            let mut check = Check::default();
            if agents.is_empty() {
                check.required("members");
            }
            let joiners = NewMemberInput::check(&input.members, &agents, &mut check);
            change.check_joiners(&joiners).await?;
            let known = change.members(id, &joiners).await?;
            let mut fresh = joiners.len();
            for joiner in &joiners {
                let is_there = |member: &&member::Model| member.agent_id == joiner.agent;
                if known
                    .iter()
                    .find(is_there)
                    .is_some_and(|member| member.is_active)
                {
                    let message = "This agent is already a member.";
                    check.fault(&joiner.path(), UserErrorCode::Taken, message);
                    fresh -= 1;
                }
            }
            let present = change.count_members(id).await?;
            check_room(&mut check, &circle, present, fresh);
            if let Err(faults) = check.faults() {
                return Ok(Outcome::refused(Some(id), faults));
            }
            let mut rows = vec![id];
            rows.extend(change.add_members(&circle, joiners, &known).await?);
            change.commit(rows).await
        });
        CircleMembersPayload::new(ctx, outcome.await?).await
    }

    /// Updates an active membership. Requires editor access to the circle. `userErrors` codes besides input validation:
    /// `NOT_MEMBER` if the agent has left; `BAD_TRANSITION` while the circle is `ARCHIVED`.
    async fn update_circle_member(
        &self,
        ctx: &Context<'_>,
        input: UpdateCircleMemberInput,
    ) -> Result<CircleMemberPayload, Error> {
        let id = Kind::Member.parse(&input.member_id, "memberId")?;
        let outcome = change(ctx, None, async |mut change| {
            let (circle, row) = change.member(id, "memberId").await?;
            if let Err(fault) = check_open(&circle).and_then(|()| check_present(&row)) {
                return Ok(Outcome::fault(Some(id), fault));
            }
            let mut check = Check::default();
            let role = check.if_given("role", &input.role);
            let role = role.map(|role| member::MemberRole::from(*role));
            let competencies = input.competencies.as_opt_deref();
            let competencies = competencies
                .map(|values| competent(&mut check, "competencies", values.unwrap_or_default()));
            let reviews = input.review_types.as_opt_deref();
            let reviews = reviews
                .map(|values| reviewing(&mut check, "reviewTypes", values.unwrap_or_default()));
            if let Err(faults) = check.faults() {
                return Ok(Outcome::refused(Some(id), faults));
            }
            let mut new = row.into_active_model();
            let mut edits = Edits::default();
            edits.set("role", &mut new.role, role);
            edits.set("competencies", &mut new.competencies, competencies);
            edits.set("reviewTypes", &mut new.review_types, reviews);
            if !edits.is_empty() {
                new.updated_at = Set(change.now);
                let row = new.update(&change.transaction).await?;
                change.append(fact(EventType::MemberUpdated, &circle, &row, edits.names()));
            }
            change.commit(vec![id]).await
        });
        CircleMemberPayload::new(ctx, outcome.await?).await
    }

    /// Removes an agent from a circle. Its tasks there that are `ASSIGNED`, `CHANGES_REQUESTED` or `BLOCKED` become
    /// `PENDING`. Requires editor access to the circle. `userErrors` codes: `NOT_MEMBER` if the agent has left already;
    /// `IN_USE` while one of its tasks there is `IN_PROGRESS` or `IN_REVIEW`; `BAD_TRANSITION` while the circle is
    /// `ARCHIVED`.
    async fn remove_circle_member(
        &self,
        ctx: &Context<'_>,
        input: RemoveCircleMemberInput,
    ) -> Result<CircleMemberPayload, Error> {
        let id = Kind::Member.parse(&input.member_id, "memberId")?;
        let outcome = change(ctx, None, async |mut change| {
            let (circle, row) = change.member(id, "memberId").await?;
            if let Err(fault) = check_open(&circle).and_then(|()| check_present(&row)) {
                return Ok(Outcome::fault(Some(id), fault));
            }
            let mut new = row.into_active_model();
            new.is_active = Set(false);
            new.left_at = Set(Some(change.now));
            new.updated_at = Set(change.now);
            let row = new.update(&change.transaction).await?;
            change.append(removed(&circle, &row));
            if let Err(fault) = change.release_tasks(&circle, row.agent_id).await? {
                return Ok(Outcome::fault(Some(id), fault));
            }
            change.commit(vec![id]).await
        });
        CircleMemberPayload::new(ctx, outcome.await?).await
    }
}

impl Change<'_> {
    /// Loads a membership that the viewer may change, with its circle, which is locked.
    async fn member(&self, id: Uuid, field: &str) -> Result<(circle::Model, member::Model), Error> {
        // A membership never changes its circle, so its circle may be read before it is locked.
        let circle = member::Entity::find_by_id(id)
            .select_only()
            .column(member::Column::CircleId);
        let circle: Option<Uuid> = circle.into_tuple().one(&self.transaction).await?;
        let circle = circle.ok_or_else(|| Error::not_found(field))?;
        let circle = self.circle(circle, field, Access::Editor).await?;
        let any = Rule::default();
        let row = self.row::<member::Entity>(&any, id, field).await?;
        Ok((circle, row))
    }

    /// The number of active members of a circle.
    pub(crate) async fn count_members(&self, circle: Uuid) -> Result<i32, Error> {
        let active = member::Entity::find()
            .filter(member::Column::CircleId.eq(circle))
            .filter(member::Column::IsActive.eq(true));
        let count = active.count(&self.transaction).await?;
        Ok(i32::try_from(count).unwrap_or(i32::MAX))
    }

    /// The memberships, current and former, of joining agents in a circle.
    async fn members(&self, circle: Uuid, joiners: &[Joiner]) -> Result<Vec<member::Model>, Error> {
        let agents: Vec<_> = joiners.iter().map(|joiner| joiner.agent).collect();
        let backend = self.transaction.get_database_backend();
        let agent = member::Column::AgentId.as_column_ref();
        let rows = member::Entity::find()
            .filter(member::Column::CircleId.eq(circle))
            .filter(is_among(backend, agent, &agents));
        Ok(rows.all(&self.transaction).await?)
    }

    /// Checks that the viewer may add the agents: only their owner or an administrator may. Locks them against deletion
    /// until the transaction ends.
    ///
    /// # Errors
    /// `NOT_FOUND` and `FORBIDDEN`, naming the first agent concerned.
    pub(crate) async fn check_joiners(&self, joiners: &[Joiner]) -> Result<(), Error> {
        if joiners.is_empty() {
            return Ok(());
        }
        let agents: Vec<_> = joiners.iter().map(|joiner| joiner.agent).collect();
        let backend = self.transaction.get_database_backend();
        let owners = agent::Entity::find()
            .select_only()
            .columns([agent::Column::Id, agent::Column::OwnerId])
            .filter(self.viewer.rules().agent.condition())
            .filter(is_among(
                backend,
                agent::Column::Id.as_column_ref(),
                &agents,
            ))
            .order_by_asc(agent::Column::Id)
            .lock(LockType::KeyShare);
        let owners: Vec<(Uuid, Uuid)> = owners.into_tuple().all(&self.transaction).await?;
        let owners: HashMap<_, _> = owners.into_iter().collect();
        for joiner in joiners {
            match owners.get(&joiner.agent) {
                None => return Err(Error::not_found(&joiner.path())),
                Some(owner) if !self.viewer.is_admin() && *owner != self.viewer.id() => {
                    return Err(self
                        .forbidden(Kind::Agent, joiner.agent)
                        .field(&joiner.path()));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// Adds agents to a circle, in one statement, and returns the ids of the memberships. `known` are former
    /// memberships in the circle, which are reactivated.
    pub(crate) async fn add_members(
        &mut self,
        circle: &circle::Model,
        joiners: Vec<Joiner>,
        known: &[member::Model],
    ) -> Result<Vec<Uuid>, Error> {
        use member::Column::{
            AgentId, CircleId, Competencies, IsActive, JoinedAt, LeftAt, ReviewTypes, Role,
            UpdatedAt,
        };
        if joiners.is_empty() {
            return Ok(Vec::new());
        }
        let new: Vec<_> = joiners
            .into_iter()
            .map(|joiner| member::Model {
                id: Uuid::now_v7(),
                created_at: self.now,
                updated_at: self.now,
                circle_id: circle.id,
                agent_id: joiner.agent,
                role: joiner.role,
                competencies: joiner.competencies,
                review_types: joiner.review_types,
                is_active: true,
                joined_at: self.now,
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
        member::Entity::insert_many(rows)
            .on_conflict(again)
            .exec_without_returning(&self.transaction)
            .await?;
        let joined = new.into_iter().map(|mut row| {
            let past = known.iter().find(|past| past.agent_id == row.agent_id);
            row.id = past.map_or(row.id, |past| past.id);
            self.append(fact(EventType::MemberAdded, circle, &row, &[]));
            row.id
        });
        Ok(joined.collect())
    }
}

/// A former member cannot be changed, only added again.
fn check_present(row: &member::Model) -> Result<(), UserError> {
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

/// The event for an agent that has left a circle.
pub(crate) fn removed(circle: &circle::Model, row: &member::Model) -> NewEvent {
    fact(EventType::MemberRemoved, circle, row, &[])
}

fn fact(
    kind: EventType,
    circle: &circle::Model,
    row: &member::Model,
    changed: &[&str],
) -> NewEvent {
    let payload = json!({
        "circleId": Kind::Circle.id(row.circle_id).as_str(),
        "agentId": Kind::Agent.id(row.agent_id).as_str(),
        "role": row.role.to_value(),
        "changed": changed,
        "updatedAt": row.updated_at,
    });
    NewEvent::new(kind, row.id, payload)
        .owner(circle.owner_id)
        .circle(circle.id)
        .project(circle.project_id)
        .agent(row.agent_id)
}
