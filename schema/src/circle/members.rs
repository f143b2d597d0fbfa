//! Members: agents in circles.

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
    events::NewEvent,
    id::Kind,
    input::{Check, UserError, UserErrorCode, entry},
    request::RequestExt,
    scalar::DateTime,
    task::ReviewType,
    text,
};

/// Most agents that join with one input.
const MAX_JOINERS: usize = 100;
/// Most competencies of a member, and most characters of one.
const MAX_COMPETENCIES: usize = 50;
const MAX_COMPETENCY: usize = 100;
/// Most kinds of review that a member does, and what stands for all of them.
const MAX_REVIEW_TYPES: usize = 10;
const ALL_REVIEWS: &str = "all";

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
    async fn competencies(&self, ctx: &Context<'_>) -> Result<&[String], Error> {
        ctx.request().text(self.0.competencies.0.as_slice())
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
        let role = filter.role.map(|role| {
            member::Column::Role.is_in(crate::db::distinct(
                role.into_iter().map(member::MemberRole::from),
            ))
        });
        Condition::all().add(present).add_option(role)
    }
}

/// The outcome of a change of one member.
#[derive(SimpleObject)]
pub struct CircleMemberPayload {
    /// The membership as it is now; null when there is none to show.
    member: Option<CircleMember>,
    /// What was wrong with the input.
    user_errors: Vec<UserError>,
}

impl CircleMemberPayload {
    async fn new(ctx: &Context<'_>, outcome: Outcome) -> Result<Self, Error> {
        let row = outcome.row::<member::Entity>(ctx).await?;
        Ok(Self {
            member: row.map(CircleMember),
            user_errors: outcome.errors,
        })
    }
}

/// The outcome of adding members.
#[derive(SimpleObject)]
pub struct CircleMembersPayload {
    /// The circle as it is now; null when there is none to show.
    circle: Option<Circle>,
    /// The memberships of those who joined, in the order of the input; empty when nobody did.
    members: Vec<CircleMember>,
    /// What was wrong with the input.
    user_errors: Vec<UserError>,
}

impl CircleMembersPayload {
    async fn new(ctx: &Context<'_>, outcome: Outcome) -> Result<Self, Error> {
        let joined = outcome.rows.iter().skip(1);
        let joined = joined.map(|id| outcome.load::<member::Entity>(ctx, *id));
        let (circle, members) =
            try_join(outcome.row::<circle::Entity>(ctx), try_join_all(joined)).await?;
        Ok(Self {
            circle: circle.map(Circle),
            members: members.into_iter().flatten().map(CircleMember).collect(),
            user_errors: outcome.errors,
        })
    }
}

/// An agent that is to join a circle.
#[derive(InputObject)]
pub struct NewMemberInput {
    /// The agent. Only its owner and administrators may put it into a circle.
    agent_id: ID,
    /// Its part in the circle.
    #[graphql(default_with = "MemberRole::Member")]
    role: MemberRole,
    /// What it is able to do here, instead of its own competencies; at most 50, of at most 100 characters.
    competencies: Option<Vec<String>>,
    /// The kinds of review it does here, instead of its own: values of `ReviewType`, or `all`; at most 10.
    review_types: Option<Vec<String>>,
}

/// Agents that are to join a circle.
#[derive(InputObject)]
pub struct AddCircleMembersInput {
    /// The circle.
    circle_id: ID,
    /// The agents, from 1 to 100, each once.
    members: Vec<NewMemberInput>,
}

/// What is to be different about a member. Fields that are left out stay as they are; null clears what may be empty.
#[derive(InputObject)]
pub struct UpdateCircleMemberInput {
    /// The membership.
    member_id: ID,
    /// The agent's part in the circle.
    role: MaybeUndefined<MemberRole>,
    /// What the agent is able to do here; at most 50, of at most 100 characters. When empty, its own competencies count.
    competencies: MaybeUndefined<Vec<String>>,
    /// The kinds of review the agent does here: values of `ReviewType`, or `all`; at most 10. When empty, its own count.
    review_types: MaybeUndefined<Vec<String>>,
}

/// A member that is to leave its circle.
#[derive(InputObject)]
pub struct RemoveCircleMemberInput {
    /// The membership.
    member_id: ID,
}

/// An agent that is to join a circle, checked but for who owns it.
pub(crate) struct Joiner {
    /// Its place in the input.
    place: usize,
    agent: Uuid,
    role: member::MemberRole,
    competencies: List,
    review_types: List,
}

impl Joiner {
    /// The path of its agent in the input.
    fn path(&self) -> String {
        format!("members.{}.agentId", self.place)
    }
}

impl NewMemberInput {
    /// The agents that an input names.
    ///
    /// # Errors
    /// `BAD_USER_INPUT` for an id that is none of an agent.
    pub(crate) fn agents(inputs: &[Self]) -> Result<Vec<Uuid>, Error> {
        let agents = inputs.iter().enumerate().map(|(place, input)| {
            Kind::Agent.parse(&input.agent_id, &format!("members.{place}.agentId"))
        });
        agents.collect()
    }

    /// Those who are to join, and what is wrong with the rest.
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
                let message = "This agent is named twice.";
                check.fault(&joiner.path(), UserErrorCode::Invalid, message);
            }
        }
        joiners
    }
}

fn competent(check: &mut Check, field: &str, values: &[String]) -> List {
    check.words(field, values, MAX_COMPETENCIES, MAX_COMPETENCY)
}

/// Kinds of review, folded.
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

/// Changes of members.
#[derive(Default)]
pub struct MemberMutation;

#[Object]
impl MemberMutation {
    /// Adds agents to a circle, all of them or none; one that has left joins anew. For editors of the circle who own the
    /// agents, and for administrators: an agent of somebody else is `NOT_FOUND` or, where the user may read it,
    /// `FORBIDDEN`. Codes of `userErrors` beside those of the input: `TAKEN` for an agent that is an active member
    /// already; `INVALID` for one that is named twice; `LIMIT_REACHED` for more than the circle's `maxMembers`;
    /// `BAD_TRANSITION` while the circle is ARCHIVED.
    async fn add_circle_members(
        &self,
        ctx: &Context<'_>,
        input: AddCircleMembersInput,
    ) -> Result<CircleMembersPayload, Error> {
        let id = Kind::Circle.parse(&input.circle_id, "circleId")?;
        let agents = NewMemberInput::agents(&input.members)?;
        let outcome = change(ctx, async |mut change| {
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
                    let message = "This agent is a member already.";
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

    /// Changes an active member's part in a circle. For editors of the circle. Codes of `userErrors` beside those of the
    /// input: `NOT_MEMBER` for one that has left; `BAD_TRANSITION` while the circle is ARCHIVED.
    async fn update_circle_member(
        &self,
        ctx: &Context<'_>,
        input: UpdateCircleMemberInput,
    ) -> Result<CircleMemberPayload, Error> {
        let id = Kind::Member.parse(&input.member_id, "memberId")?;
        let outcome = change(ctx, async |mut change| {
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
                change.append(fact("member.updated", &circle, &row, edits.names()));
            }
            change.commit(vec![id]).await
        });
        CircleMemberPayload::new(ctx, outcome.await?).await
    }

    /// Takes an agent out of a circle. Its tasks there that are ASSIGNED, `CHANGES_REQUESTED` or BLOCKED wait for another
    /// agent then. For editors of the circle. Codes of `userErrors`: `NOT_MEMBER` for one that has left already; `IN_USE`
    /// while a task of the agent there is `IN_PROGRESS` or `IN_REVIEW`; `BAD_TRANSITION` while the circle is ARCHIVED.
    async fn remove_circle_member(
        &self,
        ctx: &Context<'_>,
        input: RemoveCircleMemberInput,
    ) -> Result<CircleMemberPayload, Error> {
        let id = Kind::Member.parse(&input.member_id, "memberId")?;
        let outcome = change(ctx, async |mut change| {
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
    /// A membership in a circle whose members the viewer may change, and the circle.
    async fn member(&self, id: Uuid, field: &str) -> Result<(circle::Model, member::Model), Error> {
        // A membership keeps its circle, so nothing is lost by looking first and locking the circle before it.
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

    /// How many active members a circle has.
    pub(crate) async fn count_members(&self, circle: Uuid) -> Result<i32, Error> {
        let active = member::Entity::find()
            .filter(member::Column::CircleId.eq(circle))
            .filter(member::Column::IsActive.eq(true));
        let count = active.count(&self.transaction).await?;
        Ok(i32::try_from(count).unwrap_or(i32::MAX))
    }

    /// The memberships, past ones too, that agents who are to join have in a circle.
    async fn members(&self, circle: Uuid, joiners: &[Joiner]) -> Result<Vec<member::Model>, Error> {
        let agents: Vec<_> = joiners.iter().map(|joiner| joiner.agent).collect();
        let backend = self.transaction.get_database_backend();
        let agent = member::Column::AgentId.as_column_ref();
        let rows = member::Entity::find()
            .filter(member::Column::CircleId.eq(circle))
            .filter(is_among(backend, agent, &agents));
        Ok(rows.all(&self.transaction).await?)
    }

    /// Only who owns an agent puts it into a circle. None of the agents is deleted until this change is done.
    ///
    /// # Errors
    /// `NOT_FOUND` and `FORBIDDEN`, naming the first that is not the viewer's.
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

    /// Lets agents join a circle, in one statement; `known` are their past memberships there, which they take up again.
    /// Answers the memberships.
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
            self.append(fact("member.added", circle, &row, &[]));
            row.id
        });
        Ok(joined.collect())
    }
}

/// Who has left cannot be changed, only added again.
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

/// An agent has left a circle.
pub(crate) fn removed(circle: &circle::Model, row: &member::Model) -> NewEvent {
    fact("member.removed", circle, row, &[])
}

fn fact(
    kind: &'static str,
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
