//! The hand-written competitor of `bench/compare.sh`: `handwritten DATABASE_URL`
//!
//! axum and sqlx, without GraphQL: one route for each workload, one statement for each read, rows decoded by
//! position, and the same `data` as in the answers of the server. It has no authentication, limits, logs or metrics.

use std::{error::Error, time::Duration};

use axum::{
    Router,
    extract::{Json, Path, State},
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::{get, post},
    serve::ListenerExt,
};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::{
    PgPool, Row,
    postgres::{PgPoolOptions, PgRow},
};
use uuid::Uuid;

mod answer;

use answer::{
    Agent, AgentModel, AgentNode, Circle, Data, Edge, Id, Members, Membership, Model, Nodes,
    PageInfo, Payload, Provider, Task, Time,
};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// The connections of the server's pool.
const CONNECTIONS: u32 = 20;

/// The size of the page of `bench/queries/team.graphql`.
const TEAM: usize = 100;

const TEAM_STATEMENT: &str = "\
SELECT c.id, c.name, m.role, m.joined_at, a.id, a.name, a.status, o.id, o.display_name, p.id, p.name, p.is_local \
FROM circles AS c \
LEFT JOIN circle_members AS m ON m.circle_id = c.id AND m.is_active \
LEFT JOIN agents AS a ON a.id = m.agent_id \
LEFT JOIN models AS o ON o.id = a.model_id \
LEFT JOIN providers AS p ON p.id = o.provider_id \
WHERE c.id = $1 ORDER BY m.joined_at, m.id LIMIT 101";

// The pages are read first, so that each of the other tables is joined once and not for each page.
const CIRCLES_STATEMENT: &str = "\
WITH page AS MATERIALIZED ( \
  SELECT c.id AS circle_id, c.name, m.* \
  FROM (SELECT id, name FROM circles ORDER BY id DESC LIMIT 20) AS c \
  LEFT JOIN LATERAL ( \
    SELECT id AS member_id, role, joined_at, agent_id FROM circle_members \
    WHERE circle_id = c.id AND is_active ORDER BY joined_at, id LIMIT 20 \
  ) AS m ON true \
) \
SELECT m.circle_id, m.name, m.role, m.joined_at, a.id, a.name, a.status, o.id, o.display_name, p.id, p.name, p.is_local \
FROM page AS m \
LEFT JOIN agents AS a ON a.id = m.agent_id \
LEFT JOIN models AS o ON o.id = a.model_id \
LEFT JOIN providers AS p ON p.id = o.provider_id \
ORDER BY m.circle_id DESC, m.joined_at, m.member_id";

const AGENT_STATEMENT: &str = "\
SELECT a.id, a.name, a.status, a.last_active_at, o.id, o.display_name \
FROM agents AS a LEFT JOIN models AS o ON o.id = a.model_id WHERE a.id = $1";

const LOCK_STATEMENT: &str = "\
SELECT owner_id, project_id, require_review FROM circles \
WHERE id = $1 AND status <> 'ARCHIVED' FOR NO KEY UPDATE";

const TASK_STATEMENT: &str = "\
INSERT INTO tasks (id, created_at, updated_at, circle_id, title, description, created_by, requires_review) \
VALUES ($1, $2, $2, $3, $4, $5, $6, $7)";

const EVENT_STATEMENT: &str = "\
INSERT INTO events (id, type, subject_type, subject_id, owner_id, circle_id, project_id, actor_user_id, payload, \
  request_id, occurred_at) \
VALUES ($1, 'task.created', 'task', $2, $3, $4, $5, $3, $6, $7, $8)";

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = std::env::args().nth(1).ok_or("DATABASE_URL is missing")?;
    let pool = PgPoolOptions::new()
        .max_connections(CONNECTIONS)
        .min_connections(4)
        .acquire_timeout(Duration::from_secs(10))
        .test_before_acquire(false) // saves a round trip for each statement
        .connect(&url)
        .await?;
    let routes = Router::new()
        .route("/typename", get(typename))
        .route("/agents/{id}", get(agent))
        .route("/circles/{id}", get(team))
        .route("/circles", get(circles))
        .route("/tasks", post(create_task))
        .with_state(pool);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("listening on http://{}", listener.local_addr()?);
    let listener = listener.tap_io(|stream| {
        let _ = stream.set_nodelay(true);
    });
    axum::serve(listener, routes).await?;
    Ok(())
}

/// Why a request fails.
enum Failure {
    NotFound,
    Database(sqlx::Error),
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        match self {
            Self::NotFound => StatusCode::NOT_FOUND.into_response(),
            Self::Database(error) => {
                eprintln!("{error}");
                StatusCode::INTERNAL_SERVER_ERROR.into_response()
            }
        }
    }
}

/// Serialises an answer of about this many bytes.
fn json<T: Serialize>(data: T, capacity: usize) -> Response {
    let mut bytes = Vec::with_capacity(capacity);
    match serde_json::to_writer(&mut bytes, &Data { data }) {
        Ok(()) => ([(CONTENT_TYPE, "application/json")], bytes).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn typename() -> Response {
    let body = r#"{"data":{"__typename":"Query"}}"#;
    ([(CONTENT_TYPE, "application/json")], body).into_response()
}

async fn agent(State(pool): State<PgPool>, Path(id): Path<String>) -> Result<Response, Failure> {
    let id = Id::parse("agent", &id).ok_or(Failure::NotFound)?;
    let row = sqlx::query(AGENT_STATEMENT).bind(id).fetch_optional(&pool);
    let row = row.await?.ok_or(Failure::NotFound)?;
    let model = match row.try_get(4)? {
        Some(id) => Some(AgentModel {
            id: Id("model", id),
            display_name: row.try_get(5)?,
        }),
        None => None,
    };
    let agent = AgentNode {
        id: Id("agent", row.try_get(0)?),
        name: row.try_get(1)?,
        status: row.try_get(2)?,
        last_active_at: Time(row.try_get(3)?),
        model,
    };
    Ok(json(Agent { agent }, 512))
}

async fn team(State(pool): State<PgPool>, Path(id): Path<String>) -> Result<Response, Failure> {
    let id = Id::parse("circle", &id).ok_or(Failure::NotFound)?;
    let rows = sqlx::query(TEAM_STATEMENT).bind(id).fetch_all(&pool);
    let rows = rows.await?;
    let first = rows.first().ok_or(Failure::NotFound)?;
    let mut circle = new_circle(first, rows.len().min(TEAM))?;
    let mut last = None;
    for row in rows.iter().take(TEAM) {
        circle.members.edges.extend(edge(row)?);
        last = Some(row);
    }
    circle.members.page_info = Some(PageInfo {
        has_next_page: rows.len() > TEAM,
        end_cursor: match last {
            Some(row) => row.try_get::<Option<Uuid>, _>(4)?.map(|id| Id("after", id)),
            None => None,
        },
    });
    let capacity = 256 + 300 * rows.len();
    Ok(json(Circle { circle }, capacity))
}

async fn circles(State(pool): State<PgPool>) -> Result<Response, Failure> {
    let rows = sqlx::query(CIRCLES_STATEMENT).fetch_all(&pool).await?;
    let (mut nodes, mut current): (Vec<answer::CircleNode>, _) = (Vec::with_capacity(20), None);
    for row in &rows {
        let id: Uuid = row.try_get(0)?;
        if current != Some(id) {
            nodes.push(new_circle(row, 20)?);
            current = Some(id);
        }
        if let Some(circle) = nodes.last_mut() {
            circle.members.edges.extend(edge(row)?);
        }
    }
    let circles = Nodes { nodes };
    Ok(json(answer::Circles { circles }, 256 + 300 * rows.len()))
}

/// The circle of a row, without members yet.
fn new_circle(row: &PgRow, members: usize) -> Result<answer::CircleNode<'_>, sqlx::Error> {
    Ok(answer::CircleNode {
        id: Id("circle", row.try_get(0)?),
        name: row.try_get(1)?,
        members: Members {
            edges: Vec::with_capacity(members),
            page_info: None,
        },
    })
}

/// The member of a row; `None` in the row of a circle without members.
fn edge(row: &PgRow) -> Result<Option<Edge<'_>>, sqlx::Error> {
    let Some(agent) = row.try_get(4)? else {
        return Ok(None);
    };
    let model = match row.try_get(7)? {
        Some(id) => Some(Model {
            id: Id("model", id),
            display_name: row.try_get(8)?,
            provider: Provider {
                id: Id("provider", row.try_get(9)?),
                name: row.try_get(10)?,
                is_local: row.try_get(11)?,
            },
        }),
        None => None,
    };
    Ok(Some(Edge {
        membership: Membership {
            role: row.try_get(2)?,
            joined_at: Time(row.try_get(3)?),
        },
        node: answer::Node {
            id: Id("agent", agent),
            name: row.try_get(5)?,
            status: row.try_get(6)?,
            model,
        },
    }))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct NewTask {
    circle_id: String,
    title: String,
    description: Option<String>,
}

/// The payload of the event.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Created<'a> {
    v: i32,
    title: &'a str,
    priority: &'static str,
    to_status: &'static str,
    changed: [&'static str; 0],
    version: i32,
}

#[expect(
    clippy::disallowed_methods,
    reason = "this program is no part of the server"
)]
fn now() -> DateTime<Utc> {
    Utc::now()
}

async fn create_task(
    State(pool): State<PgPool>,
    Json(new): Json<NewTask>,
) -> Result<Response, Failure> {
    let circle = Id::parse("circle", &new.circle_id).ok_or(Failure::NotFound)?;
    if new.title.is_empty() || new.title.chars().count() > 500 {
        return Ok(StatusCode::UNPROCESSABLE_ENTITY.into_response());
    }
    let (id, time) = (Uuid::now_v7(), now());
    let mut transaction = pool.begin().await?;
    let row = sqlx::query(LOCK_STATEMENT).bind(circle);
    let row = row.fetch_optional(&mut *transaction).await?;
    let row = row.ok_or(Failure::NotFound)?;
    let owner: Uuid = row.try_get(0)?;
    sqlx::query(TASK_STATEMENT)
        .bind(id)
        .bind(time)
        .bind(circle)
        .bind(&new.title)
        .bind(&new.description)
        .bind(owner)
        .bind(row.try_get::<bool, _>(2)?)
        .execute(&mut *transaction)
        .await?;
    let payload = Created {
        v: 1,
        title: &new.title,
        priority: "MEDIUM",
        to_status: "PENDING",
        changed: [],
        version: 1,
    };
    sqlx::query(EVENT_STATEMENT)
        .bind(Uuid::now_v7())
        .bind(id)
        .bind(owner)
        .bind(circle)
        .bind(row.try_get::<Option<Uuid>, _>(1)?)
        .bind(sqlx::types::Json(payload))
        .bind(Uuid::now_v7().simple().to_string())
        .bind(time)
        .execute(&mut *transaction)
        .await?;
    transaction.commit().await?;
    let task = Task {
        id: Id("task", id),
        title: &new.title,
        status: "PENDING",
        version: 1,
    };
    let create_task = Payload {
        task,
        user_errors: [],
    };
    Ok(json(answer::CreateTask { create_task }, 256))
}
