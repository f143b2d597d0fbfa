//! Rows that the demo data lacks, so that every edge of the schema has a target and every private field a value. Some
//! of them link to circles that a caller who follows the link cannot read.

use chrono::{DateTime, TimeDelta, Utc};
use gathering_entity::member::MemberRole;
use gathering_entity::message::MessageRole;
use gathering_entity::transfer::TransferStatus;
use gathering_entity::{
    List, agent, api_key, api_key_circle, audit, circle, conversation, event, member, message,
    model, participant, project, task, transfer, user,
};
use sea_orm::prelude::Uuid;
use sea_orm::sea_query::Expr;
use sea_orm::{
    ActiveModelTrait, ColumnTrait, DatabaseConnection, EntityTrait, IntoActiveModel, Order,
    QueryFilter, QueryOrder, QuerySelect, Set,
};
use serde_json::{Value, json};

use super::database::Database;

/// A database with the demo data and the additional rows.
pub(crate) async fn database() -> Database {
    let database = Database::seeded().await;
    let db = database.connect().await;
    populate(&db).await;
    db.close().await.expect("closes");
    database
}

fn moment() -> DateTime<Utc> {
    "2026-02-01T09:00:00Z".parse().expect("a moment")
}

async fn populate(db: &DatabaseConnection) {
    let users = user::Entity::find().order_by_asc(user::Column::Id);
    let users = users.all(db).await.expect("reads");
    let [admin, demo, guest] = [0, 1, 2].map(|n| users[n].id);
    user::Entity::update_many()
        .col_expr(user::Column::LastLoginAt, Expr::value(moment()))
        .col_expr(user::Column::EmailVerifiedAt, Expr::value(moment()))
        .exec(db)
        .await
        .expect("updates");
    agent::Entity::update_many()
        .col_expr(agent::Column::SystemPrompt, Expr::value("A secret."))
        .exec(db)
        .await
        .expect("updates");

    let circles = circle::Entity::find().order_by_asc(circle::Column::Id);
    let circles = circles.all(db).await.expect("reads");
    let projects = project::Entity::find().order_by_asc(project::Column::Id);
    let project = projects.one(db).await.expect("reads").expect("a project");
    let models = model::Entity::find().order_by_asc(model::Column::Id);
    let model = models.one(db).await.expect("reads").expect("a model");
    let mut events = Vec::new();
    // A circle that is not shared, and the two that the guest can read.
    for circle in [&circles[0], &circles[4], &circles[5]] {
        let mut linked = circle.clone().into_active_model();
        linked.project_id = Set(Some(project.id));
        linked.update(db).await.expect("updates");
        events.extend(enrich(db, circle, project.id, &users, model.id).await);
    }
    let of = |kind: &str, subject: Uuid, payload: Value| NewEvent {
        kind: kind.to_owned(),
        subject,
        payload,
        circle: None,
        project: None,
        agent: None,
        actor: Ok(admin),
    };
    events.extend([
        of("model.changed", model.id, json!({ "name": "A model" })),
        of("user.updated", guest, json!({ "changed": ["name"] })),
        of("user.updated", demo, json!({ "changed": ["name"] })),
    ]);
    let shared = transfers(db, &circles[0], project.id, [demo, guest]).await;
    let owners = json!({ "previousOwnerId": guest, "newOwnerId": demo });
    events.extend([
        of("project.owner_changed", project.id, owners),
        of("transfer.requested", shared, json!({})),
    ]);
    append(db, events, demo).await;

    // A conversation outside circles, with a task and an agent of a shared circle.
    let shared_task = task::Entity::find().filter(task::Column::CircleId.eq(circles[4].id));
    let shared_task = shared_task.one(db).await.expect("reads");
    let shared_task = shared_task.expect("a task").id;
    let shared_agent = member::Entity::find()
        .filter(member::Column::CircleId.eq(circles[4].id))
        .filter(member::Column::IsActive.eq(true))
        .order_by_desc(member::Column::Id);
    let shared_agent = shared_agent.one(db).await.expect("reads");
    let shared_agent = shared_agent.expect("a member").agent_id;
    let alone = conversation::Entity::find()
        .filter(conversation::Column::CircleId.eq(circles[0].id))
        .order_by_desc(conversation::Column::Id);
    let alone = alone.one(db).await.expect("reads").expect("a conversation");
    let mut alone = alone.into_active_model();
    alone.circle_id = Set(None);
    alone.task_id = Set(Some(shared_task));
    let alone = alone.update(db).await.expect("updates");
    take_part(db, alone.id, shared_agent).await;
    let said = message::ActiveModel {
        id: Set(Uuid::now_v7()),
        created_at: Set(moment()),
        conversation_id: Set(alone.id),
        seq: Set(alone.last_seq + 1),
        role: Set(MessageRole::Assistant),
        agent_id: Set(Some(shared_agent)),
        author_name: Set("An agent".to_owned()),
        content: Set("Said in private.".to_owned()),
        ..Default::default()
    };
    said.insert(db).await.expect("inserts");

    add_keys(db, [admin, demo, guest], shared_agent, circles[4].id).await;
    add_service_account(db, demo).await;

    let entry = audit::ActiveModel {
        id: Set(Uuid::now_v7()),
        created_at: Set(moment()),
        action: Set("test.done".to_owned()),
        actor_id: Set(Some(admin)),
        target_type: Set(Some("circle".to_owned())),
        target_id: Set(Some(circles[0].id)),
        ..Default::default()
    };
    entry.insert(db).await.expect("inserts");
}

/// Adds transfers of a circle and of a project from a user to another, one of them accepted, and returns its id.
async fn transfers(
    db: &DatabaseConnection,
    circle: &circle::Model,
    project: Uuid,
    [from, to]: [Uuid; 2],
) -> Uuid {
    let pending = transfer::ActiveModel {
        id: Set(Uuid::now_v7()),
        created_at: Set(moment()),
        circle_id: Set(Some(circle.id)),
        from_user_id: Set(from),
        to_user_id: Set(to),
        requested_by: Set(Some(from)),
        status: Set(TransferStatus::Pending),
        message: Set(Some("A note.".to_owned())),
        expires_at: Set(moment() + TimeDelta::days(36_500)),
        ..Default::default()
    };
    let mut accepted = pending.clone();
    pending.insert(db).await.expect("inserts");
    accepted.id = Set(Uuid::now_v7());
    accepted.circle_id = Set(None);
    accepted.project_id = Set(Some(project));
    accepted.status = Set(TransferStatus::Accepted);
    accepted.resolved_at = Set(Some(moment()));
    accepted.insert(db).await.expect("inserts").id
}

/// Adds a key of each user, with an agent and a circle.
async fn add_keys(db: &DatabaseConnection, users: [Uuid; 3], agent: Uuid, circle: Uuid) {
    for user in users {
        let key = api_key::ActiveModel {
            id: Set(Uuid::now_v7()),
            created_at: Set(moment()),
            user_id: Set(user),
            agent_id: Set(Some(agent)),
            name: Set("A key".to_owned()),
            secret_hash: Set(format!("{:064x}", user.as_u128())),
            prefix: Set("gth_000000".to_owned()),
            scopes: Set(List(vec!["READ".to_owned()])),
            is_limited: Set(true),
            quota_class: Set(Some("batch".to_owned())),
            expires_at: Set(Some(moment() + TimeDelta::days(36_500))),
            last_used_at: Set(Some(moment())),
            revoked_at: Set(Some(moment())),
        };
        let key = key.insert(db).await.expect("inserts");
        let limit = api_key_circle::ActiveModel {
            key_id: Set(key.id),
            circle_id: Set(circle),
        };
        limit.insert(db).await.expect("inserts");
    }
}

async fn add_service_account(db: &DatabaseConnection, owner: Uuid) {
    let service = user::ActiveModel {
        id: Set(Uuid::now_v7()),
        created_at: Set(moment()),
        updated_at: Set(moment()),
        email: Set("crawler@service.invalid".to_owned()),
        email_key: Set("crawler@service.invalid".to_owned()),
        name: Set("Crawler".to_owned()),
        password_hash: Set(String::new()),
        kind: Set(user::UserKind::Service),
        owner_id: Set(Some(owner)),
        ..Default::default()
    };
    service.insert(db).await.expect("inserts");
}

/// An event to insert.
struct NewEvent {
    kind: String,
    subject: Uuid,
    payload: Value,
    circle: Option<Uuid>,
    project: Option<Uuid>,
    agent: Option<Uuid>,
    /// `Ok` for a user, `Err` for an agent.
    actor: Result<Uuid, Uuid>,
}

/// Fills the empty columns in a circle and returns the events to insert.
async fn enrich(
    db: &DatabaseConnection,
    circle: &circle::Model,
    project: Uuid,
    users: &[user::Model],
    model: Uuid,
) -> Vec<NewEvent> {
    let members = member::Entity::find()
        .filter(member::Column::CircleId.eq(circle.id))
        .order_by_asc(member::Column::Id);
    let members = members.all(db).await.expect("reads");
    let mut active = members.iter().filter(|member| member.is_active);
    let [one, other] = [(); 2].map(|()| active.next().expect("a member").agent_id);
    let foreign = agent::Entity::find()
        .filter(agent::Column::Id.is_not_in(members.iter().map(|member| member.agent_id)))
        .order_by_desc(agent::Column::Id);
    let foreign = foreign.one(db).await.expect("reads").expect("an agent").id;
    let left = member::ActiveModel {
        id: Set(Uuid::now_v7()),
        created_at: Set(circle.created_at),
        updated_at: Set(moment()),
        circle_id: Set(circle.id),
        agent_id: Set(foreign),
        role: Set(MemberRole::Member),
        is_active: Set(false),
        joined_at: Set(circle.created_at),
        left_at: Set(Some(moment())),
        ..Default::default()
    };
    left.insert(db).await.expect("inserts");

    let tasks = task::Entity::find()
        .filter(task::Column::CircleId.eq(circle.id))
        .order_by(task::Column::Id, Order::Asc)
        .limit(2);
    let tasks = tasks.all(db).await.expect("reads");
    let mut part = tasks[1].clone().into_active_model();
    part.parent_id = Set(Some(tasks[0].id));
    part.reviewer_id = Set(Some(foreign));
    part.created_by = Set(Some(users[1].id));
    part.update(db).await.expect("updates");

    let talk = conversation::Entity::find()
        .filter(conversation::Column::CircleId.eq(circle.id))
        .order_by_asc(conversation::Column::Id);
    let talk = talk.one(db).await.expect("reads").expect("a conversation");
    let conversation = talk.id;
    let mut talk = talk.into_active_model();
    talk.task_id = Set(Some(tasks[0].id));
    talk.facilitator_id = Set(Some(one));
    talk.next_speaker_id = Set(Some(other));
    talk.update(db).await.expect("updates");
    take_part(db, conversation, foreign).await;

    let messages = message::Entity::find()
        .filter(message::Column::ConversationId.eq(conversation))
        .order_by_asc(message::Column::Seq)
        .limit(2);
    let messages = messages.all(db).await.expect("reads");
    let mut answer = messages[1].clone().into_active_model();
    answer.parent_id = Set(Some(messages[0].id));
    answer.model_id = Set(Some(model));
    let mentions = [one, foreign].map(|agent| agent.to_string());
    answer.mentions = Set(List(mentions.to_vec()));
    answer.update(db).await.expect("updates");

    let of = |kind: &str, subject: Uuid, payload: Value, actor| NewEvent {
        kind: kind.to_owned(),
        subject,
        payload,
        circle: Some(circle.id),
        project: Some(project),
        agent: Some(one),
        actor,
    };
    let by_user = Ok(users[1].id);
    let changed = json!({ "name": circle.name, "changed": [] });
    let shared = json!({ "userId": users[2].id, "role": "VIEWER" });
    let assigned = json!({ "title": tasks[0].title, "assigneeId": one, "reviewerId": other });
    let owners = json!({ "previousOwnerId": users[2].id, "newOwnerId": users[1].id });
    let added = json!({ "conversationId": conversation, "seq": 1, "excerpt": "Words." });
    vec![
        of("circle.updated", circle.id, changed, by_user),
        of("circle.shared", circle.id, shared, by_user),
        of("task.assigned", tasks[0].id, assigned, Err(one)),
        of("task.updated", tasks[1].id, json!({}), Err(foreign)),
        of("message.added", messages[0].id, added, by_user),
        of("agent.status_changed", one, json!({}), by_user),
        of("agent.owner_changed", one, owners.clone(), by_user),
        of("circle.owner_changed", circle.id, owners, by_user),
    ]
}

async fn take_part(db: &DatabaseConnection, conversation: Uuid, agent: Uuid) {
    let row = participant::ActiveModel {
        conversation_id: Set(conversation),
        agent_id: Set(agent),
        position: Set(99),
        joined_at: Set(moment()),
    };
    row.insert(db).await.expect("inserts");
}

async fn append(db: &DatabaseConnection, events: Vec<NewEvent>, owner: Uuid) {
    let last = event::Entity::find().order_by_desc(event::Column::Position);
    let last = last.one(db).await.expect("reads").expect("an event");
    let after = last.position.expect("a position") + 1;
    for (position, event) in (after..).zip(events) {
        let (subject, _) = event.kind.split_once('.').expect("a subject");
        let owner = match subject {
            "user" => Some(event.subject),
            "model" => None,
            _ => Some(owner),
        };
        let row = event::ActiveModel {
            id: Set(Uuid::now_v7()),
            position: Set(Some(position)),
            subject_type: Set(subject.to_owned()),
            subject_id: Set(event.subject),
            owner_id: Set(owner),
            circle_id: Set(event.circle),
            project_id: Set(event.project),
            agent_id: Set(event.agent),
            actor_user_id: Set(event.actor.ok()),
            actor_agent_id: Set(event.actor.err()),
            payload: Set(event.payload),
            occurred_at: Set(moment()),
            kind: Set(event.kind),
            request_id: Set(None),
        };
        row.insert(db).await.expect("inserts");
    }
}
