//! Routing: selects the assignee and the reviewer of a task.
//!
//! The caller holds the lock on the circle's row, so that of two concurrent changes the later one sees the assignments
//! of the earlier one.

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, Utc};
use gathering_entity::{List, agent, circle, member, task};
use sea_orm::{
    ActiveEnum, ColumnTrait, ConnectionTrait, EntityTrait, FromQueryResult, JoinType, QueryFilter,
    QueryOrder, QuerySelect, QueryTrait,
    prelude::Json,
    sea_query::{CaseStatement, Expr, ExprTrait, Query, SelectStatement},
};
use uuid::Uuid;

use crate::{
    data::{Change, Stop},
    db::is_among,
    error::Error,
    input::{UserError, UserErrorCode},
    task::event::{assigned, unassigned},
    text,
};

/// The number of tasks at which an agent's availability is zero.
const FULL_LOAD: f64 = 5.0;

/// The strength of an agent in a competency without a score.
const UNKNOWN_STRENGTH: f64 = 0.5;

/// Maximum number of pending tasks that are considered, highest priority first. Bounds the cost of tasks that no agent
/// can do.
const MOST_LOOKED_AT: u64 = 500;

/// The statuses in which a task counts towards its agent's load.
const LOADING: [task::TaskStatus; 3] = [
    task::TaskStatus::Assigned,
    task::TaskStatus::InProgress,
    task::TaskStatus::ChangesRequested,
];

/// The statuses in which a task counts towards the circle's `max_concurrent_tasks`.
const IN_HAND: [task::TaskStatus; 4] = [
    task::TaskStatus::Assigned,
    task::TaskStatus::InProgress,
    task::TaskStatus::InReview,
    task::TaskStatus::ChangesRequested,
];

/// Whether a task with this status counts towards the circle's `max_concurrent_tasks`.
pub(crate) fn is_in_hand(status: task::TaskStatus) -> bool {
    IN_HAND.contains(&status)
}

/// The requirements of a task.
struct Work<'a> {
    required: &'a List,
    priority_rank: i32,
    /// The reviewer, who never becomes the assignee.
    reviewer: Option<Uuid>,
}

/// A candidate for a task, as read from the database.
#[derive(Clone, FromQueryResult)]
struct Row {
    member: Uuid,
    agent: Uuid,
    joined_at: DateTime<Utc>,
    role: member::MemberRole,
    member_competencies: List,
    agent_competencies: List,
    member_review_types: List,
    agent_review_types: List,
    competency_scores: Json,
    reviews_total: i32,
    reviews_approved: i32,
    load: i64,
}

/// A candidate for a task: a member of the circle.
#[derive(Clone, Debug)]
struct Candidate {
    agent: Uuid,
    takes_work: bool,
    competencies: HashSet<String>,
    review_types: List,
    /// Competency scores from 0 to 1, by folded name.
    scores: HashMap<String, f64>,
    /// The share of approved reviews, from 0 to 1.
    approval: f64,
    /// The number of tasks in all circles that count towards its load.
    load: u32,
}

impl From<Row> for Candidate {
    fn from(row: Row) -> Self {
        let unless_empty = |List(own), List(others)| if own.is_empty() { others } else { own };
        let scores = row.competency_scores.as_object().into_iter().flatten();
        let scores = scores.filter_map(|(name, score)| Some((text::fold(name), score.as_f64()?)));
        Self {
            agent: row.agent,
            takes_work: !matches!(
                row.role,
                member::MemberRole::Reviewer | member::MemberRole::Observer
            ),
            competencies: unless_empty(row.member_competencies, row.agent_competencies)
                .into_iter()
                .collect(),
            review_types: List(unless_empty(
                row.member_review_types,
                row.agent_review_types,
            )),
            scores: scores.collect(),
            approval: if row.reviews_total > 0 {
                f64::from(row.reviews_approved) / f64::from(row.reviews_total)
            } else {
                0.0
            },
            load: u32::try_from(row.load).unwrap_or(u32::MAX),
        }
    }
}

impl Candidate {
    fn availability(&self) -> f64 {
        (1.0 - f64::from(self.load) / FULL_LOAD).max(0.0)
    }

    /// How well the candidate fits the task; `None` if it may not get the task.
    fn score(&self, work: &Work<'_>) -> Option<f64> {
        let List(required) = work.required;
        if !self.takes_work || work.reviewer == Some(self.agent) {
            return None;
        }
        let matched = required
            .iter()
            .filter(|&name| self.competencies.contains(name));
        let (mut count, mut strengths) = (0.0, 0.0);
        for name in matched {
            count += 1.0;
            strengths += self.scores.get(name).unwrap_or(&UNKNOWN_STRENGTH);
        }
        let (competency, strength) = match required.len() {
            0 => (1.0, UNKNOWN_STRENGTH),
            _ if count == 0.0 => return None,
            all => (
                count / f64::from(u32::try_from(all).ok()?),
                strengths / count,
            ),
        };
        let fit = competency * strength * 0.5 + self.availability() * 0.3 + self.approval * 0.2;
        let score = fit * (1.0 + f64::from(10 - work.priority_rank) * 0.05);
        // Rounds, so that rounding errors do not decide between equal candidates.
        Some((score * 1e9).round() / 1e9)
    }
}

/// The active members of a circle whose agents are not OFFLINE, in the order in which they joined. Ties go to the
/// earlier member.
#[derive(Clone, Debug)]
pub(crate) struct Team(Vec<Candidate>);

impl Team {
    fn new(mut rows: Vec<Row>) -> Self {
        rows.sort_by_key(|row| (row.joined_at, row.member));
        Self(rows.into_iter().map(Candidate::from).collect())
    }

    /// The best candidate for a task, and its score.
    fn best(&self, work: &Work<'_>) -> Option<(Uuid, f64)> {
        let scores = self.0.iter().map(|one| (one.agent, one.score(work)));
        first_best(scores.filter_map(|(agent, score)| Some((agent, score?))))
    }

    /// The reviewer for an assignee's work: the most available other member who does reviews of this type.
    pub(crate) fn reviewer(
        &self,
        review_type: task::ReviewType,
        assignee: Option<Uuid>,
    ) -> Option<Uuid> {
        let name = text::fold(&review_type.to_value());
        let does = |one: &&Candidate| {
            let List(types) = &one.review_types;
            Some(one.agent) != assignee && types.iter().any(|own| *own == name || own == "all")
        };
        let reviewers = self.0.iter().filter(does);
        let best = first_best(reviewers.map(|one| (one.agent, one.availability())));
        best.map(|(agent, _)| agent)
    }

    /// Adds to an agent's load; `tasks` may be negative.
    fn weigh(&mut self, agent: Uuid, tasks: i32) {
        for one in self.0.iter_mut().filter(|one| one.agent == agent) {
            one.load = one.load.saturating_add_signed(tasks);
        }
    }
}

/// The entry with the highest number; the first one of equals.
fn first_best(mut all: impl Iterator<Item = (Uuid, f64)>) -> Option<(Uuid, f64)> {
    let first = all.next()?;
    Some(all.fold(
        first,
        |best, next| if next.1 > best.1 { next } else { best },
    ))
}

/// A PENDING task to be routed.
#[derive(FromQueryResult)]
struct Pending {
    id: Uuid,
    title: String,
    required_competencies: List,
    priority_rank: i32,
    reviewer_id: Option<Uuid>,
    version: i32,
    /// How many of the circle's tasks count towards `max_concurrent_tasks`.
    in_hand: i64,
}

/// A task assigned to an agent who leaves the circle.
#[derive(FromQueryResult)]
struct Held {
    id: Uuid,
    title: String,
    status: task::TaskStatus,
    version: i32,
}

/// A subquery that counts the load of the outer query's agent.
fn load() -> SelectStatement {
    let own = Expr::col(task::Column::AssigneeId.as_column_ref())
        .equals(agent::Column::Id.as_column_ref());
    Query::select()
        .expr(Expr::col(task::Column::Id.as_column_ref()).count())
        .from(task::Entity)
        .and_where(own)
        .and_where(task::Column::Status.is_in(LOADING))
        .take()
}

/// Routes the circle's PENDING tasks in order of priority, up to `max_concurrent_tasks`. Does nothing if the circle
/// is not RUNNING or does not route automatically. Call it last, with the circle locked and up to date: its writes
/// depend on the earlier ones. Takes at most three statements, regardless of the number of tasks.
pub(crate) async fn assign_pending(
    change: &mut Change<'_>,
    circle: &circle::Model,
) -> Result<(), Error> {
    if circle.status != circle::CircleStatus::Running || !circle.auto_route {
        return Ok(());
    }
    let waiting = pending(change, circle).await?;
    let Some(first) = waiting.first() else {
        return Ok(());
    };
    let room = i64::from(circle.max_concurrent_tasks) - first.in_hand;
    let room = usize::try_from(room).unwrap_or_default();
    let mut team = team(change, circle.id).await?;
    let mut routed = Vec::new();
    for one in &waiting {
        if routed.len() == room {
            break;
        }
        let work = Work {
            required: &one.required_competencies,
            priority_rank: one.priority_rank,
            reviewer: one.reviewer_id,
        };
        if let Some((agent, score)) = team.best(&work) {
            team.weigh(agent, 1);
            routed.push((one, agent, score));
        }
    }
    if routed.is_empty() {
        return Ok(());
    }
    give(
        change,
        routed.iter().map(|(task, agent, _)| (task.id, *agent)),
    )
    .await?;
    for (task, agent, score) in routed {
        let subject = (task.id, task.title.as_str(), task.version + 1);
        let to = (agent, Some(score));
        let from = Some(task::TaskStatus::Pending);
        change.append(assigned(circle, subject, from, to, None));
    }
    Ok(())
}

/// Releases the tasks of an agent who leaves a circle: tasks that are assigned, blocked or returned from a review
/// become PENDING and are routed again. Reviews are kept; a task that is submitted later gets another reviewer if
/// its reviewer is no longer a member.
///
/// Call it with the circle locked, after the membership was deactivated, so that no task is routed back. If the
/// agent has work in progress or in review, the result is `IN_USE` and the change must be dropped.
pub(crate) async fn release(
    change: &mut Change<'_>,
    circle: &circle::Model,
    agent: Uuid,
) -> Result<(), Stop> {
    use task::TaskStatus::{Assigned, Blocked, ChangesRequested, InProgress, InReview};
    let held = task::Entity::find()
        .select_only()
        .columns([
            task::Column::Id,
            task::Column::Title,
            task::Column::Status,
            task::Column::Version,
        ])
        .filter(task::Column::CircleId.eq(circle.id))
        .filter(task::Column::AssigneeId.eq(agent))
        .filter(task::Column::Status.is_in([
            Assigned,
            Blocked,
            ChangesRequested,
            InProgress,
            InReview,
        ]))
        .order_by_asc(task::Column::Id)
        .into_model::<Held>()
        .all(&change.transaction)
        .await?;
    if held
        .iter()
        .any(|task| matches!(task.status, InProgress | InReview))
    {
        let message = "The agent has work in progress or in review in this circle.";
        return Err(UserError::general(UserErrorCode::InUse, message).into());
    }
    if !held.is_empty() {
        task::Entity::update_many()
            .col_expr(
                task::Column::Status,
                Expr::value(task::TaskStatus::Pending.to_value()),
            )
            .col_expr(task::Column::AssigneeId, Expr::value(None::<Uuid>))
            .col_expr(task::Column::StatusNote, Expr::value(None::<String>))
            .col_expr(
                task::Column::Version,
                Expr::col(task::Column::Version).add(1),
            )
            .col_expr(task::Column::UpdatedAt, Expr::value(change.now))
            .filter(task::Column::CircleId.eq(circle.id))
            .filter(task::Column::AssigneeId.eq(agent))
            .filter(task::Column::Status.is_in([Assigned, Blocked, ChangesRequested]))
            .exec(&change.transaction)
            .await?;
        for task in &held {
            let subject = (task.id, task.title.as_str(), task.version + 1);
            let from = (task.status, Some(agent));
            change.append(unassigned(circle, subject, from, None));
        }
        assign_pending(change, circle).await?;
    }
    Ok(())
}

/// The best candidate for a task, and its score. The task itself is not counted in the load.
pub(crate) async fn best_match(
    change: &Change<'_>,
    task: &task::Model,
) -> Result<Option<(Uuid, Option<f64>)>, Error> {
    let mut team = team(change, task.circle_id).await?;
    if let Some(agent) = task.assignee_id.filter(|_| LOADING.contains(&task.status)) {
        team.weigh(agent, -1);
    }
    let work = Work {
        required: &task.required_competencies,
        priority_rank: task.priority_rank,
        reviewer: task.reviewer_id,
    };
    let best = team.best(&work);
    Ok(best.map(|(agent, score)| (agent, Some(score))))
}

/// The candidates of a circle, with their load in all circles.
pub(crate) async fn team(change: &Change<'_>, circle: Uuid) -> Result<Team, Error> {
    use {agent::Column as Of, member::Column as In};
    let agents = member::Entity::belongs_to(agent::Entity)
        .from(In::AgentId)
        .to(Of::Id);
    let rows = member::Entity::find()
        .select_only()
        .column_as(In::Id, "member")
        .column_as(In::AgentId, "agent")
        .columns([In::JoinedAt, In::Role])
        .column_as(In::Competencies, "member_competencies")
        .column_as(Of::Competencies, "agent_competencies")
        .column_as(In::ReviewTypes, "member_review_types")
        .column_as(Of::ReviewTypes, "agent_review_types")
        .columns([Of::CompetencyScores, Of::ReviewsTotal, Of::ReviewsApproved])
        .expr_as(Expr::from(load()), "load")
        .join(JoinType::InnerJoin, agents.into())
        .filter(In::CircleId.eq(circle))
        .filter(In::IsActive.eq(true))
        .filter(Of::Status.ne(agent::AgentStatus::Offline))
        .into_model::<Row>()
        .all(&change.transaction)
        .await?;
    Ok(Team::new(rows))
}

/// The PENDING tasks, highest priority first; none if `max_concurrent_tasks` is reached.
async fn pending(change: &Change<'_>, circle: &circle::Model) -> Result<Vec<Pending>, Error> {
    use task::Column::{
        CircleId, Id, PriorityRank, RequiredCompetencies, ReviewerId, Status, Title, Version,
    };
    let in_hand = task::Entity::find()
        .select_only()
        .expr(Expr::col(Id).count())
        .filter(CircleId.eq(circle.id))
        .filter(Status.is_in(IN_HAND))
        .into_query();
    Ok(task::Entity::find()
        .select_only()
        .columns([Id, Title, RequiredCompetencies, PriorityRank, ReviewerId])
        .column(Version)
        .expr_as(Expr::from(in_hand.clone()), "in_hand")
        .filter(CircleId.eq(circle.id))
        .filter(Status.eq(task::TaskStatus::Pending))
        .filter(Expr::from(in_hand).lt(circle.max_concurrent_tasks))
        .order_by_asc(PriorityRank)
        .order_by_asc(Id)
        .limit(MOST_LOOKED_AT)
        .into_model::<Pending>()
        .all(&change.transaction)
        .await?)
}

/// Assigns PENDING tasks to agents, in one statement.
async fn give(change: &Change<'_>, tasks: impl Iterator<Item = (Uuid, Uuid)>) -> Result<(), Error> {
    let mut ids = Vec::new();
    let mut to = CaseStatement::new();
    for (task, agent) in tasks {
        ids.push(task);
        to = to.case(task::Column::Id.eq(task), Expr::val(agent));
    }
    let backend = change.transaction.get_database_backend();
    let assigned = task::Entity::update_many()
        .col_expr(
            task::Column::Status,
            Expr::value(task::TaskStatus::Assigned.to_value()),
        )
        .col_expr(task::Column::AssigneeId, to.into())
        .col_expr(task::Column::StatusNote, Expr::value(None::<String>))
        .col_expr(
            task::Column::Version,
            Expr::col(task::Column::Version).add(1),
        )
        .col_expr(task::Column::UpdatedAt, Expr::value(change.now))
        .filter(is_among(backend, task::Column::Id.as_column_ref(), &ids))
        .filter(task::Column::Status.eq(task::TaskStatus::Pending))
        .exec(&change.transaction)
        .await?;
    if assigned.rows_affected == ids.len() as u64 {
        Ok(())
    } else {
        Err(Error::conflict())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const ROLES: [member::MemberRole; 5] = [
        member::MemberRole::Lead,
        member::MemberRole::Member,
        member::MemberRole::Specialist,
        member::MemberRole::Reviewer,
        member::MemberRole::Observer,
    ];

    fn list(words: &[&str]) -> List {
        List(words.iter().map(|word| (*word).to_owned()).collect())
    }

    fn row(n: u128) -> Row {
        Row {
            member: Uuid::from_u128(n),
            agent: Uuid::from_u128(1_000 + n),
            joined_at: DateTime::UNIX_EPOCH,
            role: member::MemberRole::Member,
            member_competencies: List::default(),
            agent_competencies: List::default(),
            member_review_types: List::default(),
            agent_review_types: List::default(),
            competency_scores: json!({}),
            reviews_total: 0,
            reviews_approved: 0,
            load: 0,
        }
    }

    fn score(row: Row, required: &[&str], priority_rank: i32) -> Option<f64> {
        let work = Work {
            required: &list(required),
            priority_rank,
            reviewer: None,
        };
        Candidate::from(row).score(&work)
    }

    #[test]
    fn scores_equal_the_reference_values() {
        let example = || Row {
            agent_competencies: list(&["rust", "sql"]),
            load: 1,
            reviews_total: 2,
            reviews_approved: 1,
            ..row(1)
        };
        assert_eq!(score(example(), &["rust", "sql"], 5), Some(0.7375));
        assert_eq!(
            score(example(), &[], 5),
            Some(0.7375),
            "no competency is required"
        );
        // (0.5 · 0.5 · 0.5 + 0.24 + 0.10) · 1.25
        assert_eq!(score(example(), &["rust", "design"], 5), Some(0.58125));
        assert_eq!(score(example(), &["design"], 5), None);
        for (rank, factor) in [(1, 1.45), (3, 1.35), (5, 1.25), (8, 1.1)] {
            let expected = (0.59 * factor * 1e9_f64).round() / 1e9;
            assert_eq!(score(example(), &["rust"], rank), Some(expected));
        }
        let measured = Row {
            competency_scores: json!({ "Rust": 0.9 }),
            ..example()
        };
        // s is the mean of 0.9 and 0.5.
        assert_eq!(score(measured, &["rust", "sql"], 5), Some(0.8625));
        let replaced = Row {
            member_competencies: list(&["design"]),
            ..example()
        };
        assert_eq!(score(replaced, &["rust"], 5), None);
        let full = Row {
            load: 7,
            ..example()
        };
        assert_eq!(
            score(full, &[], 5),
            Some(0.4375),
            "availability is never negative"
        );
        let takes = ROLES.map(|role| score(Row { role, ..row(1) }, &[], 5).is_some());
        assert_eq!(takes, [true, true, true, false, false]);
    }

    /// Reproducible pseudo-random numbers.
    struct Dice(u64);

    impl Dice {
        fn roll(&mut self, sides: u64) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0 % sides
        }

        fn small(&mut self, sides: u64) -> i32 {
            i32::try_from(self.roll(sides)).unwrap_or_default()
        }

        fn words(&mut self) -> List {
            let all = ["rust", "sql", "design", "all", "code"];
            let some = all.iter().filter(|_| self.roll(3) == 0);
            List(some.map(|word| (*word).to_owned()).collect())
        }

        fn team(&mut self) -> Vec<Row> {
            let size = self.roll(8);
            let mut rows: Vec<_> = (0..size)
                .map(|n| {
                    let total = self.small(3);
                    Row {
                        role: ROLES[usize::try_from(self.roll(5)).unwrap_or_default()],
                        joined_at: DateTime::UNIX_EPOCH
                            + chrono::TimeDelta::days(self.small(3).into()),
                        agent_competencies: self.words(),
                        member_competencies: self.words(),
                        agent_review_types: self.words(),
                        reviews_total: total,
                        reviews_approved: self.small(3).clamp(0, total),
                        load: i64::from(self.small(3) * 3),
                        ..row(u128::from(n))
                    }
                })
                .collect();
            for n in 1..rows.len() {
                let other = self.roll(n as u64 + 1);
                rows.swap(n, usize::try_from(other).unwrap_or_default());
            }
            rows
        }
    }

    fn copy(rows: &[Row]) -> Vec<(Uuid, DateTime<Utc>, Uuid, Candidate)> {
        let all = rows.iter().cloned();
        all.map(|row| (row.agent, row.joined_at, row.member, row.into()))
            .collect()
    }

    #[test]
    fn the_highest_score_wins_and_ties_go_to_the_earliest_member() {
        let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
        let mut ties = 0;
        for _ in 0..5_000 {
            let rows = dice.team();
            let required = dice.words();
            let reviewer = Some(Uuid::from_u128(1_000 + u128::from(dice.roll(8))));
            let work = Work {
                required: &required,
                priority_rank: 5,
                reviewer,
            };
            let all = copy(&rows);
            let best = Team::new(rows).best(&work);
            let scored: Vec<_> = all
                .iter()
                .filter_map(|(agent, joined, member, one)| {
                    Some((*agent, *joined, *member, one.score(&work)?))
                })
                .collect();
            let Some((agent, score)) = best else {
                assert!(scored.is_empty());
                continue;
            };
            assert_ne!(Some(agent), reviewer);
            let winner = scored.iter().find(|one| one.0 == agent);
            let winner = winner.expect("is a candidate");
            for other in scored.iter().filter(|other| other.0 != agent) {
                assert!(other.3 <= score);
                if other.3.total_cmp(&score).is_eq() {
                    ties += 1;
                    assert!((winner.1, winner.2) < (other.1, other.2));
                }
            }
        }
        assert!(ties > 100, "{ties} ties are too few to test");
    }

    #[test]
    fn the_reviewer_is_the_least_loaded_other_member_with_the_review_type() {
        let mut dice = Dice(0x2545_f491_4f6c_dd1d);
        let mut found = 0;
        for _ in 0..5_000 {
            let rows = dice.team();
            let all = copy(&rows);
            let assignee = Some(Uuid::from_u128(1_000 + u128::from(dice.roll(8))));
            let reviewer = Team::new(rows).reviewer(task::ReviewType::Code, assignee);
            let able: Vec<_> = all
                .iter()
                .filter(|(agent, _, _, one)| {
                    let List(types) = &one.review_types;
                    Some(*agent) != assignee
                        && (types.contains(&"all".to_owned()) || types.contains(&"code".to_owned()))
                })
                .collect();
            let Some(reviewer) = reviewer else {
                assert!(able.is_empty());
                continue;
            };
            found += 1;
            let one = able.iter().find(|one| one.0 == reviewer);
            let one = one.expect("is a candidate");
            for other in &able {
                let (mine, theirs) = (one.3.load.clamp(0, 5), other.3.load.clamp(0, 5));
                assert!((mine, one.1, one.2) <= (theirs, other.1, other.2));
            }
        }
        assert!(found > 500);
    }
}
