//! Lists of viewers who may read few of many rows.

use std::collections::HashSet;

use chrono::{DateTime, Duration, Utc};
use gathering_entity::conversation::ConversationStatus;
use gathering_entity::task::{Priority, TaskStatus};
use gathering_entity::{circle, conversation, event, task, user};
use gathering_schema::id::Kind;
use sea_orm::prelude::Uuid;
use sea_orm::{DatabaseConnection, EntityTrait, IntoActiveModel, QueryOrder};

use super::*;
use crate::support::database::Database;

/// More circles than a list reads one by one.
const MANY: usize = 300;

/// The number of rows of each table.
const COUNT: usize = 900;

/// Users and their circles: one with few, one with many, and one whose rows are most of all.
struct Owners {
    users: Vec<user::Model>,
    circles: Vec<Vec<Uuid>>,
}

impl Owners {
    async fn create(db: &DatabaseConnection) -> Self {
        let template = user::Entity::find().order_by_desc(user::Column::Id);
        let template = template.one(db).await.expect("reads").expect("a user");
        let any = circle::Entity::find().one(db).await.expect("reads");
        let any = any.expect("a circle");
        let (mut users, mut circles) = (Vec::new(), Vec::new());
        for (name, count) in [("few", 3), ("many", MANY), ("most", 2)] {
            let user = user::Model {
                id: Uuid::now_v7(),
                email: format!("{name}@example.com"),
                email_key: format!("{name}@example.com"),
                ..template.clone()
            };
            let own = (0..count).map(|n| circle::Model {
                id: Uuid::now_v7(),
                owner_id: user.id,
                project_id: None,
                name: format!("{name} {n}"),
                name_key: format!("{name} {n}"),
                ..any.clone()
            });
            let own: Vec<_> = own.collect();
            circles.push(own.iter().map(|circle| circle.id).collect());
            insert::<user::Entity>(db, vec![user.clone()]).await;
            insert::<circle::Entity>(db, own).await;
            users.push(user);
        }
        Self { users, circles }
    }

    /// The owner of row `n` and its circle: the first two owners have few rows, in runs and alone.
    fn of(&self, n: usize) -> (usize, Uuid) {
        let owner = match n {
            0..30 | 400..405 | 899 => 0,
            30..60 | 500 | 898 => 1,
            _ if n.is_multiple_of(97) => n % 2,
            _ => 2,
        };
        let circles = &self.circles[owner];
        (owner, circles[n % circles.len()])
    }
}

async fn insert<E>(db: &DatabaseConnection, rows: Vec<E::Model>)
where
    E: EntityTrait<Model: IntoActiveModel<E::ActiveModel>>,
{
    let mut rows = rows
        .into_iter()
        .map(IntoActiveModel::into_active_model)
        .peekable();
    while rows.peek().is_some() {
        let some: Vec<_> = rows.by_ref().take(200).collect();
        let insert = E::insert_many(some).exec_without_returning(db);
        insert.await.expect("inserts");
    }
}

fn moment(n: usize) -> DateTime<Utc> {
    let start: DateTime<Utc> = "2026-03-01T00:00:00Z".parse().expect("a moment");
    start + Duration::seconds(i64::try_from(n).expect("is small"))
}

/// Collects the ids of a list page by page, in both directions, and returns them in the order of the list.
async fn walk(actor: &Actor, list: &str, size: usize, arguments: &str) -> Vec<String> {
    let mut walks = Vec::new();
    for (page, more, at) in [
        ("first: $size, after: $at", "hasNextPage", "endCursor"),
        ("last: $size, before: $at", "hasPreviousPage", "startCursor"),
    ] {
        let query = format!(
            "query ($at: String, $size: Int) {{ list: {list}({page} {arguments}) {{ totalCount nodes {{ id }} \
             pageInfo {{ hasNextPage hasPreviousPage startCursor endCursor }} }} }}"
        );
        let (mut ids, mut cursor) = (Vec::<String>::new(), Value::Null);
        loop {
            let answer = actor
                .answer(&query, json!({ "at": cursor, "size": size }))
                .await;
            let list = &answer["data"]["list"];
            let nodes = list["nodes"]
                .as_array()
                .unwrap_or_else(|| panic!("{answer}"));
            let nodes = nodes
                .iter()
                .map(|node| node["id"].as_str().expect("an id").to_owned());
            if at == "endCursor" {
                ids.extend(nodes);
            } else {
                ids.splice(0..0, nodes);
            }
            if list["pageInfo"][more] == false {
                assert_eq!(list["totalCount"], ids.len(), "{list}");
                break;
            }
            cursor = list["pageInfo"][at].clone();
        }
        walks.push(ids);
    }
    assert_eq!(walks[0], walks[1], "{list} {arguments}");
    walks.remove(0)
}

/// The rows of all owners, in the order of their ids.
struct Rows {
    tasks: Vec<task::Model>,
    conversations: Vec<conversation::Model>,
    events: Vec<event::Model>,
}

impl Rows {
    async fn create(db: &DatabaseConnection, owners: &Owners) -> Self {
        let any = task::Entity::find().one(db).await.expect("reads");
        let any = any.expect("a task");
        let tasks: Vec<_> = (0..COUNT).map(|n| task_of(n, owners, &any)).collect();
        let any = conversation::Entity::find().one(db).await.expect("reads");
        let any = any.expect("a conversation");
        let conversation = |n| conversation_of(n, owners, &any);
        let conversations: Vec<_> = (0..COUNT).map(conversation).collect();
        let last = event::Entity::find().order_by_desc(event::Column::Position);
        let last = last.one(db).await.expect("reads").expect("an event");
        let last = last.position.expect("is numbered");
        let events: Vec<_> = (0..COUNT).map(|n| event_of(n, owners, last)).collect();
        insert::<task::Entity>(db, tasks.clone()).await;
        insert::<conversation::Entity>(db, conversations.clone()).await;
        insert::<event::Entity>(db, events.clone()).await;
        Self {
            tasks,
            conversations,
            events,
        }
    }

    /// The lists of a user, each with its arguments and the ids in its order.
    fn lists(&self, user: Uuid, circles: &HashSet<Uuid>) -> Vec<(&str, &str, Vec<String>)> {
        let tasks = self.tasks.iter();
        let tasks: Vec<_> = tasks
            .filter(|task| circles.contains(&task.circle_id))
            .collect();
        let blocked = tasks.iter().copied();
        let blocked: Vec<_> = blocked
            .filter(|task| task.status == TaskStatus::Blocked)
            .collect();
        let ids = |tasks: Vec<&task::Model>| {
            let ids = tasks.into_iter().map(|task| Kind::Task.id(task.id));
            ids.map(|id| id.to_string()).collect::<Vec<_>>()
        };
        let mut ranked = tasks.clone();
        ranked.sort_by_key(|task| (task.priority_rank, task.id));
        let mut updated = blocked.clone();
        updated.sort_by_key(|task| (task.updated_at, task.id));
        let own = self.conversations.iter().filter(|one| match one.circle_id {
            Some(circle) => circles.contains(&circle),
            None => one.owner_id == user,
        });
        let own = own.map(|one| Kind::Conversation.id(one.id).to_string());
        let seen = self.events.iter().filter(|one| {
            one.kind == "persona.changed"
                || one.owner_id == Some(user)
                || one
                    .circle_id
                    .is_some_and(|circle| circles.contains(&circle))
        });
        let seen = seen.map(|one| Kind::Event.id(one.id).to_string());
        let newest = |ids: Vec<String>| ids.into_iter().rev().collect::<Vec<_>>();
        let by_rank = ", orderBy: {field: PRIORITY, direction: ASC}";
        let by_update = ", filter: {status: BLOCKED}, orderBy: {field: UPDATED_AT}";
        let by_type = ", filter: {types: [TASK_DELETED, PERSONA_CHANGED]}";
        vec![
            ("tasks", "", newest(ids(tasks))),
            ("tasks", ", filter: {status: BLOCKED}", newest(ids(blocked))),
            ("tasks", by_rank, ids(ranked)),
            ("tasks", by_update, newest(ids(updated))),
            ("conversations", "", newest(own.collect())),
            ("events", by_type, newest(seen.collect())),
        ]
    }
}

fn task_of(n: usize, owners: &Owners, any: &task::Model) -> task::Model {
    let priorities = [
        (Priority::Low, 8),
        (Priority::Medium, 5),
        (Priority::High, 3),
        (Priority::Critical, 1),
    ];
    let (priority, priority_rank) = priorities[n / 3 % 4];
    task::Model {
        id: Uuid::now_v7(),
        circle_id: owners.of(n).1,
        updated_at: moment(n * 31 % COUNT / 4),
        parent_id: None,
        assignee_id: None,
        reviewer_id: None,
        priority,
        priority_rank,
        status: if n.is_multiple_of(5) {
            TaskStatus::Blocked
        } else {
            TaskStatus::Completed
        },
        ..any.clone()
    }
}

fn conversation_of(n: usize, owners: &Owners, any: &conversation::Model) -> conversation::Model {
    let (owner, circle) = owners.of(n);
    conversation::Model {
        id: Uuid::now_v7(),
        owner_id: owners.users[owner].id,
        // Some are outside circles.
        circle_id: (!n.is_multiple_of(4)).then_some(circle),
        task_id: None,
        facilitator_id: None,
        next_speaker_id: None,
        status: ConversationStatus::Completed,
        ..any.clone()
    }
}

/// Some events belong to a circle alone, some to a user alone, and some to all.
fn event_of(n: usize, owners: &Owners, last: i64) -> event::Model {
    let (owner, circle) = owners.of(n);
    let is_public = n.is_multiple_of(50);
    let (kind, subject) = if is_public {
        ("persona.changed", "persona")
    } else {
        ("task.deleted", "task")
    };
    event::Model {
        id: Uuid::now_v7(),
        position: Some(last + 1 + i64::try_from(n).expect("is small")),
        kind: kind.to_owned(),
        subject_type: subject.to_owned(),
        subject_id: Uuid::now_v7(),
        owner_id: (!is_public && n % 3 != 1).then(|| owners.users[owner].id),
        circle_id: (!is_public && n % 3 != 2).then_some(circle),
        project_id: None,
        agent_id: None,
        actor_user_id: None,
        actor_agent_id: None,
        payload: json!({ "v": 1, "name": "A name", "title": "A title", "changed": [] }),
        request_id: None,
        occurred_at: moment(n),
    }
}

#[tokio::test]
async fn a_viewer_of_few_rows_gets_all_of_them_in_order_and_no_others() {
    let database = Database::seeded().await;
    let db = database.connect().await;
    let owners = Owners::create(&db).await;
    let rows = Rows::create(&db, &owners).await;
    db.close().await.expect("closes");
    let server = TestServer::on(database, |_| ()).await;
    let uncompiled = server
        .beside(|config| config.graphql.limits.compiled_queries = 0)
        .await;
    for (owner, (name, size)) in [("few", 9), ("many", 9), ("most", 99)]
        .into_iter()
        .enumerate()
    {
        let email = format!("{name}@example.com");
        let circles = owners.circles[owner].iter().copied().collect();
        let (compiled, executed) = (server.actor(&email).await, uncompiled.actor(&email).await);
        for (list, arguments, ids) in rows.lists(owners.users[owner].id, &circles) {
            for actor in [&compiled, &executed] {
                let mut found = walk(actor, list, size, arguments).await;
                if list == "events" {
                    // The demo data has public events, too.
                    found.truncate(ids.len());
                }
                assert_eq!(found, ids, "{list} {arguments} of {name}");
            }
        }
    }
}
