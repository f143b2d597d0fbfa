//! The team of a circle: who is the best for a task and for its review.

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, Utc};
use gathering_entity::{List, agent, circle, member, task};
use sea_orm::{
    ActiveEnum, ColumnTrait, DbBackend, DbErr, EntityTrait, JoinType, QueryFilter, QueryResult,
    QuerySelect, QueryTrait,
    prelude::Json,
    sea_query::{Expr, ExprTrait, Query, SelectStatement},
};
use serde::{Deserialize, Deserializer, de::Error as _};
use uuid::Uuid;

use crate::{
    db::{Stored, json_rows, list_from},
    text,
};

/// The number of tasks at which an agent's availability is zero.
const FULL_LOAD: f64 = 5.0;

/// The strength of an agent in a competency without a score.
const UNKNOWN_STRENGTH: f64 = 0.5;

/// The statuses in which a task counts towards its agent's load.
const LOADING: [task::TaskStatus; 3] = [
    task::TaskStatus::Assigned,
    task::TaskStatus::InProgress,
    task::TaskStatus::ChangesRequested,
];

/// The requirements of a task.
pub(super) struct Work<'a> {
    pub(super) required: &'a List,
    pub(super) priority_rank: i32,
    /// The reviewer, who never becomes the assignee.
    pub(super) reviewer: Option<Uuid>,
}

/// A candidate for a task, as read from the database.
#[derive(Clone, Deserialize)]
struct Row {
    member: Uuid,
    agent: Uuid,
    #[serde(deserialize_with = "instant_from")]
    joined_at: DateTime<Utc>,
    #[serde(deserialize_with = "role_from")]
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
    /// The number of its reviewed tasks, and how many of them were approved.
    reviews: (i32, i32),
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
            reviews: (row.reviews_total, row.reviews_approved),
            load: u32::try_from(row.load).unwrap_or(u32::MAX),
        }
    }
}

impl Candidate {
    fn availability(&self) -> f64 {
        (1.0 - f64::from(self.load) / FULL_LOAD).max(0.0)
    }

    /// The share of approved reviews, from 0 to 1.
    fn approval(&self) -> f64 {
        match self.reviews {
            (0, _) => 0.0,
            (total, approved) => f64::from(approved) / f64::from(total),
        }
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
        let fit = competency * strength * 0.5 + self.availability() * 0.3 + self.approval() * 0.2;
        let score = fit * (1.0 + f64::from(10 - work.priority_rank) * 0.05);
        // Rounds, so that rounding errors do not decide between equal candidates.
        Some((score * 1e9).round() / 1e9)
    }
}

/// The active members of a circle whose agents are not OFFLINE, in the order in which they joined. Ties go to the
/// earlier member.
#[derive(Clone, Debug, Default)]
pub(super) struct Team(Vec<Candidate>);

impl Team {
    fn new(mut rows: Vec<Row>) -> Self {
        rows.sort_by_key(|row| (row.joined_at, row.member));
        Self(rows.into_iter().map(Candidate::from).collect())
    }

    /// The best candidate for a task, and its score.
    pub(super) fn best(&self, work: &Work<'_>) -> Option<(Uuid, f64)> {
        let scores = self.0.iter().map(|one| (one.agent, one.score(work)));
        first_best(scores.filter_map(|(agent, score)| Some((agent, score?))))
    }

    /// The reviewer for an assignee's work: the most available other member who does reviews of this type.
    pub(super) fn reviewer(
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

    /// Adds the column of [`Team::from_row`] to a select from circles. The team is read only under a condition.
    pub(super) fn select(select: &mut SelectStatement, backend: DbBackend, condition: Expr) {
        let team = json_rows(backend, candidates(), &TEAM);
        select.expr_as(Expr::case(condition, team), "team");
    }

    /// The team of a selected circle; empty if it was not read.
    pub(super) fn from_row(row: &QueryResult) -> Result<Self, DbErr> {
        Ok(Self::new(list_from(row, "team")?))
    }

    /// Takes over the effects of a change of a task on the team.
    pub(super) fn follow(&mut self, before: Option<&task::Model>, after: &task::Model) {
        let loaded =
            |task: &task::Model| task.assignee_id.filter(|_| LOADING.contains(&task.status));
        if let Some(agent) = before.and_then(loaded) {
            self.weigh(agent, -1);
        }
        if let Some(agent) = loaded(after) {
            self.weigh(agent, 1);
        }
    }

    /// Counts a review of an agent's work.
    pub(super) fn review(&mut self, agent: Uuid, is_approved: bool) {
        for one in self.0.iter_mut().filter(|one| one.agent == agent) {
            one.reviews.0 += 1;
            one.reviews.1 += i32::from(is_approved);
        }
    }

    /// Adds to an agent's load; `tasks` may be negative.
    pub(super) fn weigh(&mut self, agent: Uuid, tasks: i32) {
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

/// The columns of [`Row`].
const TEAM: [(&str, Stored); 12] = [
    ("member", Stored::Uuid),
    ("agent", Stored::Uuid),
    ("joined_at", Stored::Plain),
    ("role", Stored::Plain),
    ("member_competencies", Stored::Json),
    ("agent_competencies", Stored::Json),
    ("member_review_types", Stored::Json),
    ("agent_review_types", Stored::Json),
    ("competency_scores", Stored::Json),
    ("reviews_total", Stored::Plain),
    ("reviews_approved", Stored::Plain),
    ("load", Stored::Plain),
];

/// SQLite separates the date and the time by a space.
fn instant_from<'de, D: Deserializer<'de>>(instant: D) -> Result<DateTime<Utc>, D::Error> {
    let instant = String::deserialize(instant)?;
    instant.parse().map_err(D::Error::custom)
}

fn role_from<'de, D: Deserializer<'de>>(role: D) -> Result<member::MemberRole, D::Error> {
    let role = String::deserialize(role)?;
    member::MemberRole::try_from_value(&role).map_err(D::Error::custom)
}

/// The load of the outer query's agent.
fn load() -> Expr {
    let own = Expr::col(task::Column::AssigneeId.as_column_ref())
        .equals(agent::Column::Id.as_column_ref());
    count_in(LOADING, &own)
}

/// Counts the tasks with one of the statuses. Each status is counted by itself: PostgreSQL may read the tasks with every
/// status to find those with several.
pub(super) fn count_in<const N: usize>(statuses: [task::TaskStatus; N], tasks: &Expr) -> Expr {
    let count = |status| {
        Query::select()
            .expr(Expr::col(task::Column::Id.as_column_ref()).count())
            .from(task::Entity)
            .and_where(tasks.clone())
            .and_where(has_status(status))
            .take()
    };
    let counts = statuses.into_iter().map(|status| Expr::from(count(status)));
    counts.reduce(Expr::add).unwrap_or_else(|| Expr::val(0))
}

/// Whether a task has the status, which is part of the text of the statement: so the database can use an index on the
/// tasks with the status, and its statistics about the status.
pub(super) fn has_status(status: task::TaskStatus) -> Expr {
    let status = Expr::Constant(status.to_value().into());
    Expr::col(task::Column::Status.as_column_ref()).eq(status)
}

/// The best candidate for a task, and its score. The task itself is not counted in the load.
pub(super) fn best_match(mut team: Team, task: &task::Model) -> Option<(Uuid, f64)> {
    if let Some(agent) = task.assignee_id.filter(|_| LOADING.contains(&task.status)) {
        team.weigh(agent, -1);
    }
    team.best(&Work {
        required: &task.required_competencies,
        priority_rank: task.priority_rank,
        reviewer: task.reviewer_id,
    })
}

/// The candidates of the circle of the outer query, with their load in all circles.
fn candidates() -> SelectStatement {
    use {agent::Column as Of, member::Column as In};
    let agents = member::Entity::belongs_to(agent::Entity)
        .from(In::AgentId)
        .to(Of::Id);
    let circle = Expr::col(In::CircleId.as_column_ref());
    member::Entity::find()
        .select_only()
        .column_as(In::Id, "member")
        .column_as(In::AgentId, "agent")
        .columns([In::JoinedAt, In::Role])
        .column_as(In::Competencies, "member_competencies")
        .column_as(Of::Competencies, "agent_competencies")
        .column_as(In::ReviewTypes, "member_review_types")
        .column_as(Of::ReviewTypes, "agent_review_types")
        .columns([Of::CompetencyScores, Of::ReviewsTotal, Of::ReviewsApproved])
        .expr_as(load(), "load")
        .join(JoinType::InnerJoin, agents.into())
        .filter(circle.equals(circle::Column::Id.as_column_ref()))
        .filter(In::IsActive.eq(true))
        .filter(Of::Status.ne(agent::AgentStatus::Offline))
        .into_query()
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
