//! Lists of viewers who may read few of many rows.

use std::collections::{HashMap, HashSet};

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
            _ if n % 97 == 0 => n % 2,
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

#[tokio::test]
async fn a_viewer_of_few_rows_gets_all_of_them_in_order_and_no_others() {
    let database = Database::seeded().await;
    let db = database.connect().await;
    let owners = Owners::create(&db).await;

    let any = task::Entity::find().one(&db).await.expect("reads");
    let any = any.expect("a task");
    let priorities = [
        (Priority::Low, 8),
        (Priority::Medium, 5),
        (Priority::High, 3),
        (Priority::Critical, 1),
    ];
    let tasks: Vec<_> = (0..900)
        .map(|n| {
            let (priority, priority_rank) = priorities[n / 3 % 4];
            let status = if n % 5 == 0 {
                TaskStatus::Blocked
            } else {
                TaskStatus::Completed
            };
            task::Model {
                id: Uuid::now_v7(),
                circle_id: owners.of(n).1,
                updated_at: moment(n * 31 % 900 / 4),
                parent_id: None,
                assignee_id: None,
                reviewer_id: None,
                priority,
                priority_rank,
                status,
                ..any.clone()
            }
        })
        .collect();
    insert::<task::Entity>(&db, tasks.clone()).await;

    let any = conversation::Entity::find().one(&db).await.expect("reads");
    let any = any.expect("a conversation");
    let conversations: Vec<_> = (0..900)
        .map(|n| {
            let (owner, circle) = owners.of(n);
            conversation::Model {
                id: Uuid::now_v7(),
                owner_id: owners.users[owner].id,
                // Some are outside circles.
                circle_id: (n % 4 > 0).then_some(circle),
                task_id: None,
                facilitator_id: None,
                next_speaker_id: None,
                status: ConversationStatus::Completed,
                ..any.clone()
            }
        })
        .collect();
    insert::<conversation::Entity>(&db, conversations.clone()).await;

    let before = event::Entity::find().order_by_desc(event::Column::Position);
    let before = before.one(&db).await.expect("reads").expect("an event");
    let before = before.position.expect("is numbered");
    let events: Vec<_> = (0..900)
        .map(|n| {
            let (owner, circle) = owners.of(n);
            // Some belong to a circle alone, some to a user alone, and some to all.
            let is_public = n % 50 == 0;
            event::Model {
                id: Uuid::now_v7(),
                position: Some(before + 1 + i64::try_from(n).expect("is small")),
                kind: if is_public {
                    "persona.changed"
                } else {
                    "task.deleted"
                }
                .to_owned(),
                subject_type: if is_public { "persona" } else { "task" }.to_owned(),
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
        })
        .collect();
    insert::<event::Entity>(&db, events.clone()).await;

    let server = TestServer::on(database, |_| ()).await;
    let uncompiled = server
        .beside(|config| config.graphql.limits.compiled_queries = 0)
        .await;
    for (owner, (name, size)) in [("few", 9), ("many", 9), ("most", 99)]
        .into_iter()
        .enumerate()
    {
        let email = format!("{name}@example.com");
        let circles: HashSet<_> = owners.circles[owner].iter().copied().collect();
        let own: HashMap<_, _> = tasks
            .iter()
            .filter(|task| circles.contains(&task.circle_id))
            .map(|task| (task.id, task))
            .collect();
        let in_order = |mut ids: Vec<Uuid>, key: &dyn Fn(&task::Model) -> (i64, Uuid)| {
            ids.sort_by_key(|id| key(own[id]));
            ids
        };
        let all: Vec<Uuid> = own.keys().copied().collect();
        let blocked = |id: &Uuid| own[id].status == TaskStatus::Blocked;
        let blocked: Vec<Uuid> = all.iter().copied().filter(blocked).collect();
        let user = owners.users[owner].id;
        let held = conversations.iter().filter(|one| match one.circle_id {
            Some(circle) => circles.contains(&circle),
            None => one.owner_id == user,
        });
        let seen = events.iter().filter(|one| {
            one.kind == "persona.changed"
                || one.owner_id == Some(user)
                || one
                    .circle_id
                    .is_some_and(|circle| circles.contains(&circle))
        });
        let newest = |ids: Vec<Uuid>| ids.into_iter().rev().collect::<Vec<_>>();
        let by_id = |task: &task::Model| (0, task.id);
        let by_rank = |task: &task::Model| (i64::from(task.priority_rank), task.id);
        let by_update = |task: &task::Model| (task.updated_at.timestamp(), task.id);
        let expected = [
            (
                "tasks",
                "",
                Kind::Task,
                newest(in_order(all.clone(), &by_id)),
            ),
            (
                "tasks",
                ", filter: {status: BLOCKED}",
                Kind::Task,
                newest(in_order(blocked.clone(), &by_id)),
            ),
            (
                "tasks",
                ", orderBy: {field: PRIORITY, direction: ASC}",
                Kind::Task,
                in_order(all.clone(), &by_rank),
            ),
            (
                "tasks",
                ", filter: {status: BLOCKED}, orderBy: {field: UPDATED_AT}",
                Kind::Task,
                newest(in_order(blocked, &by_update)),
            ),
            (
                "conversations",
                "",
                Kind::Conversation,
                newest(held.map(|one| one.id).collect()),
            ),
            (
                "events",
                ", filter: {types: [TASK_DELETED, PERSONA_CHANGED]}",
                Kind::Event,
                newest(seen.map(|one| one.id).collect()),
            ),
        ];
        let (compiled, executed) = (server.actor(&email).await, uncompiled.actor(&email).await);
        for (list, arguments, kind, ids) in expected {
            let ids: Vec<_> = ids.into_iter().map(|id| kind.id(id).to_string()).collect();
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
