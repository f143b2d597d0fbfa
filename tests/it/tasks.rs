//! Tasks: creation, updates, transitions, permissions, and events.

mod budget;
mod content;
mod racing;
mod routing;
mod transition;

use std::time::Duration;

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

use crate::server::TestServer;

const DEMO: &str = "demo@example.com";

/// A user with whom the circle is not shared, unless a test shares it.
const GUEST: &str = "guest@example.com";

const ADMIN: &str = "admin@example.com";

/// All fields of a task.
const TASK: &str = "id title description status version priority requiredCompetencies requiresReview reviewType \
    assignee { id } reviewer { id } parent { id } createdBy { name } reviewRound reviewNote statusNote result artifacts \
    estimatedHours actualHours dueAt startedAt submittedAt completedAt createdAt updatedAt";

/// A server, and an empty circle of the demo user.
struct Studio {
    server: TestServer,
    db: DatabaseConnection,
    token: String,
    owner: Uuid,
    circle: Uuid,
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
        let server = TestServer::start().await;
        let db = server.database().connect().await;
        let token = server.token(DEMO).await;
        let mut studio = Self {
            owner: user(&db, DEMO).await,
            server,
            db,
            token,
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
            owner_id: self.owner,
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
            owner_id: self.owner,
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
    async fn seat(&self, circle: Uuid, agent: Uuid, change: impl FnOnce(&mut member::Model)) {
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
        self.seat(self.circle, id, member).await;
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
    async fn share(&self, email: &str, role: CollaboratorRole) -> String {
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
        self.server.token(email).await
    }

    /// The row of a task.
    async fn row(&self, task: Uuid) -> task::Model {
        let row = task::Entity::find_by_id(task).one(&self.db).await;
        row.expect("reads").expect("a task")
    }

    /// The row of an agent.
    async fn agent_row(&self, agent: Uuid) -> agent::Model {
        let row = agent::Entity::find_by_id(agent).one(&self.db).await;
        row.expect("reads").expect("an agent")
    }

    /// The complete response to a mutation of tasks.
    async fn answer(&self, token: &str, name: &str, input: Value) -> Value {
        let ty = match name {
            "createTask" | "updateTask" | "assignTask" | "submitTask" | "approveTask"
            | "rejectTask" => {
                format!("{}{}Input", name[..1].to_uppercase(), &name[1..])
            }
            "blockTask" | "failTask" => "TaskReasonInput".to_owned(),
            "deleteTask" => "DeleteInput".to_owned(),
            _ => "TaskActionInput".to_owned(),
        };
        let payload = if name == "deleteTask" {
            "deletedId current { id }".to_owned()
        } else {
            format!("task {{ {TASK} }}")
        };
        let mutation = format!(
            "mutation ($input: {ty}!) {{ {name}(input: $input) {{ {payload} userErrors {{ field code message }} }} }}"
        );
        self.server
            .ask(Some(token), &mutation, json!({ "input": input }))
            .await
    }

    /// The payload of a mutation by the demo user, which must not fail.
    async fn call(&self, name: &str, input: Value) -> Value {
        let answer = self.answer(&self.token, name, input).await;
        assert_eq!(answer.get("errors"), None, "{answer}");
        answer["data"][name].clone()
    }

    /// The task after a mutation by the demo user, which must succeed.
    async fn done(&self, name: &str, input: Value) -> Value {
        let payload = self.call(name, input).await;
        assert_eq!(payload["userErrors"], json!([]), "{name}");
        payload["task"].clone()
    }

    /// The user errors of a mutation, each as its field and code.
    async fn faults(&self, name: &str, input: Value) -> Vec<(String, String)> {
        let payload = self.call(name, input).await;
        let errors = payload["userErrors"].as_array().expect("a list");
        let fault = |error: &Value| {
            let field = error["field"].as_array().into_iter().flatten();
            let field: Vec<_> = field.map(text).collect();
            (field.join("."), text(&error["code"]))
        };
        errors.iter().map(fault).collect()
    }

    /// The code and the field of the error that a mutation is refused with.
    async fn refused(&self, token: &str, name: &str, input: Value) -> (String, Value) {
        let answer = self.answer(token, name, input).await;
        let error = &answer["errors"][0]["extensions"];
        assert_eq!(answer["data"], Value::Null, "{answer}");
        (text(&error["code"]), error["field"].clone())
    }

    /// Waits until every event has a position.
    async fn announced(&self) {
        let waiting = event::Entity::find().filter(event::Column::Position.is_null());
        for _ in 0..3_000 {
            if waiting
                .clone()
                .one(&self.db)
                .await
                .expect("reads")
                .is_none()
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("an event never got a position");
    }

    /// All events of the circle, oldest first.
    async fn events(&self) -> Vec<Value> {
        self.announced().await;
        let query = "query ($id: ID!) { circle(id: $id) { events(first: 100) { nodes { type \
            actor { __typename name } circle { id } project { id } \
            ... on TaskEvent { taskId title fromStatus toStatus assignee { id } reviewer { id } routingScore note \
            changed } ... on AgentEvent { agentId name from: fromStatus to: toStatus } } } } }";
        let id = id_of(Kind::Circle, self.circle);
        let answer = self
            .server
            .ask(Some(&self.token), query, json!({ "id": id }))
            .await;
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
        self.announced().await;
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

fn text(value: &Value) -> String {
    value
        .as_str()
        .unwrap_or_else(|| panic!("{value}"))
        .to_owned()
}

fn fault(field: &str, code: &str) -> (String, String) {
    (field.to_owned(), code.to_owned())
}
