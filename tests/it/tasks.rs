//! Tasks: creation, updates, transitions, permissions, and events.

mod budget;
mod content;
mod overtaken;
mod racing;
mod review;
mod routing;
mod together;
mod transition;

use std::ops::Deref;

use chrono::{DateTime, TimeDelta, Utc};
use gathering_entity::agent::AgentStatus;
use gathering_entity::circle::CircleStatus;
use gathering_entity::collaborator::CollaboratorRole;
use gathering_entity::member::MemberRole;
use gathering_entity::task::{Priority, ReviewType, TaskStatus};
use gathering_entity::{List, agent, circle, collaborator, event, member, task, user};
use gathering_schema::id::Kind;
use sea_orm::prelude::Uuid;
use sea_orm::sea_query::Expr;
use sea_orm::{
    ActiveEnum, ColumnTrait, DatabaseConnection, EntityTrait, IntoActiveModel, QueryFilter,
    QueryOrder,
};
use serde_json::{Value, json};

use crate::support::actor::{Demo, OWNER, text};

/// A server, and an empty circle of the demo user.
struct Studio {
    demo: Demo,
    owner_id: Uuid,
    circle: Uuid,
}

impl Deref for Studio {
    type Target = Demo;

    fn deref(&self) -> &Demo {
        &self.demo
    }
}

fn moment() -> DateTime<Utc> {
    "2026-02-01T09:00:00Z".parse().expect("a moment")
}

fn words(words: &[&str]) -> List {
    List(words.iter().map(|word| (*word).to_owned()).collect())
}

fn id_of(kind: Kind, id: Uuid) -> String {
    kind.id(id).to_string()
}

fn task_id(id: Uuid) -> String {
    id_of(Kind::Task, id)
}

fn agent_id(id: Uuid) -> String {
    id_of(Kind::Agent, id)
}

impl Studio {
    /// A circle that is not running, so tasks are assigned only by users.
    async fn open() -> Self {
        Self::with(|circle| circle.status = CircleStatus::Stopped).await
    }

    /// A running circle that routes up to this many tasks.
    async fn routing(most: i32) -> Self {
        Self::with(|circle| circle.max_concurrent_tasks = most).await
    }

    async fn with(change: impl FnOnce(&mut circle::Model)) -> Self {
        let demo = Demo::start().await;
        let mut studio = Self {
            owner_id: user(&demo.db, OWNER).await,
            demo,
            circle: Uuid::nil(),
        };
        studio.circle = studio.circle("Studio", change).await;
        studio
    }

    /// Creates another circle of the demo user.
    async fn circle(&self, name: &str, change: impl FnOnce(&mut circle::Model)) -> Uuid {
        let mut row = circle::Model {
            id: Uuid::now_v7(),
            created_at: moment(),
            updated_at: moment(),
            version: 1,
            owner_id: self.owner_id,
            project_id: None,
            name: name.to_owned(),
            name_key: name.to_lowercase(),
            display_name: None,
            description: None,
            status: CircleStatus::Running,
            require_review: true,
            auto_route: true,
            max_members: 500,
            max_concurrent_tasks: 5,
            started_at: None,
            stopped_at: None,
            archived_at: None,
        };
        change(&mut row);
        let id = row.id;
        let insert = circle::Entity::insert(row.into_active_model());
        insert
            .exec_without_returning(&self.db)
            .await
            .expect("inserts");
        id
    }

    /// Changes the circle directly in the database.
    async fn set_circle(&self, column: circle::Column, value: impl Into<sea_orm::Value>) {
        circle::Entity::update_many()
            .col_expr(column, Expr::value(value))
            .filter(circle::Column::Id.eq(self.circle))
            .exec(&self.db)
            .await
            .expect("updates");
    }

    /// Creates an agent of the demo user, in no circle.
    async fn agent(&self, name: &str, change: impl FnOnce(&mut agent::Model)) -> Uuid {
        let mut row = agent::Model {
            id: Uuid::now_v7(),
            created_at: moment(),
            updated_at: moment(),
            version: 1,
            owner_id: self.owner_id,
            name: name.to_owned(),
            name_key: name.to_lowercase(),
            persona_id: None,
            model_id: None,
            system_prompt: None,
            traits: List::default(),
            competencies: List::default(),
            specializations: List::default(),
            review_types: List::default(),
            communication_style: None,
            competency_scores: json!({}),
            review_strictness: 0.7,
            temperature: 0.7,
            max_tokens: None,
            status: AgentStatus::Idle,
            reviews_total: 0,
            reviews_approved: 0,
            last_active_at: moment(),
        };
        change(&mut row);
        let id = row.id;
        let insert = agent::Entity::insert(row.into_active_model());
        insert
            .exec_without_returning(&self.db)
            .await
            .expect("inserts");
        id
    }

    /// Makes an agent a member of a circle.
    async fn join(&self, circle: Uuid, agent: Uuid, change: impl FnOnce(&mut member::Model)) {
        let mut row = member::Model {
            id: Uuid::now_v7(),
            created_at: moment(),
            updated_at: moment(),
            circle_id: circle,
            agent_id: agent,
            role: MemberRole::Member,
            competencies: List::default(),
            review_types: List::default(),
            is_active: true,
            joined_at: moment(),
            left_at: None,
        };
        change(&mut row);
        let insert = member::Entity::insert(row.into_active_model());
        insert
            .exec_without_returning(&self.db)
            .await
            .expect("inserts");
    }

    /// Creates an agent that is a member of the circle.
    async fn member(&self, name: &str) -> Uuid {
        self.member_with(name, |_| (), |_| ()).await
    }

    async fn member_with(
        &self,
        name: &str,
        agent: impl FnOnce(&mut agent::Model),
        member: impl FnOnce(&mut member::Model),
    ) -> Uuid {
        let id = self.agent(name, agent).await;
        self.join(self.circle, id, member).await;
        id
    }

    /// Inserts a task of the circle directly into the database.
    async fn task(&self, status: TaskStatus, change: impl FnOnce(&mut task::Model)) -> Uuid {
        let mut row = task::Model {
            id: Uuid::now_v7(),
            created_at: moment(),
            updated_at: moment(),
            version: 1,
            circle_id: self.circle,
            parent_id: None,
            title: "A task".to_owned(),
            description: None,
            required_competencies: List::default(),
            priority: Priority::Medium,
            priority_rank: 5,
            status,
            assignee_id: None,
            reviewer_id: None,
            created_by: None,
            requires_review: true,
            review_type: ReviewType::Quality,
            review_round: 0,
            review_note: None,
            status_note: None,
            result: None,
            artifacts: List::default(),
            estimated_hours: None,
            actual_hours: None,
            due_at: None,
            started_at: None,
            submitted_at: None,
            completed_at: None,
            cycle_seconds: None,
        };
        change(&mut row);
        let id = row.id;
        let insert = task::Entity::insert(row.into_active_model());
        insert
            .exec_without_returning(&self.db)
            .await
            .expect("inserts");
        id
    }

    /// Shares the circle, and returns a token of the collaborator.
    async fn share(&self, email: &str, role: CollaboratorRole) {
        let row = collaborator::Model {
            id: Uuid::now_v7(),
            created_at: moment(),
            updated_at: moment(),
            circle_id: self.circle,
            user_id: user(&self.db, email).await,
            role,
            added_by: None,
        };
        let insert = collaborator::Entity::insert(row.into_active_model());
        insert
            .exec_without_returning(&self.db)
            .await
            .expect("inserts");
    }

    /// The row of a task.
    async fn row(&self, task: Uuid) -> task::Model {
        let row = task::Entity::find_by_id(task).one(&self.db).await;
        row.expect("reads").expect("a task")
    }

    /// All tasks of the circle.
    async fn tasks(&self) -> Vec<task::Model> {
        let rows = task::Entity::find().filter(task::Column::CircleId.eq(self.circle));
        rows.all(&self.db).await.expect("reads")
    }

    /// The row of an agent.
    async fn agent_row(&self, agent: Uuid) -> agent::Model {
        let row = agent::Entity::find_by_id(agent).one(&self.db).await;
        row.expect("reads").expect("an agent")
    }

    /// All events of the circle, oldest first.
    async fn events(&self) -> Vec<Value> {
        self.until_all_is_announced().await;
        let query = "query ($id: ID!) { circle(id: $id) { events(first: 100) { nodes { type \
            actor { __typename name } circle { id } project { id } \
            ... on TaskEvent { taskId title fromStatus toStatus assignee { id } reviewer { id } routingScore note \
            changed } ... on AgentEvent { agentId name from: fromStatus to: toStatus } } } } }";
        let id = id_of(Kind::Circle, self.circle);
        let answer = self.owner.answer(query, json!({ "id": id })).await;
        let nodes = answer["data"]["circle"]["events"]["nodes"].as_array();
        let nodes = nodes.unwrap_or_else(|| panic!("{answer}"));
        nodes.iter().rev().cloned().collect()
    }

    /// The types of the circle's events, oldest first.
    async fn event_types(&self) -> Vec<String> {
        let events = self.events().await;
        events.iter().map(|event| text(&event["type"])).collect()
    }

    /// The payloads of a subject's events as they are stored, oldest first.
    async fn payloads(&self, subject: Uuid) -> Vec<(String, Value)> {
        self.until_all_is_announced().await;
        let rows = event::Entity::find()
            .filter(event::Column::SubjectId.eq(subject))
            .order_by_asc(event::Column::Position)
            .all(&self.db)
            .await
            .expect("reads");
        rows.into_iter()
            .map(|row| (row.kind, row.payload))
            .collect()
    }
}

async fn user(db: &DatabaseConnection, email: &str) -> Uuid {
    let user = user::Entity::find().filter(user::Column::Email.eq(email));
    user.one(db).await.expect("reads").expect("a user").id
}
