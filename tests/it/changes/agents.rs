//! Agents: creation, updates, status changes, and deletion.

use futures_util::future::join_all;
use gathering_entity::conversation::{self, ConversationStatus};
use gathering_entity::task::{self, TaskStatus};
use gathering_entity::{agent, member, participant};
use sea_orm::sea_query::Expr;
use sea_orm::{
    ActiveModelTrait, ColumnTrait, EntityTrait, IntoActiveModel, Iterable, PaginatorTrait,
    QueryFilter, QueryOrder, Set,
};
use serde_json::{Value, json};

use super::{rows, sorted, uuid};
use crate::support::actor::{Demo, faults};

/// A well-formed id without a row.
const UNKNOWN: &str = "agent_01h455vb4pex5vsknk084sn02q";
const NO_MODEL: &str = "model_01h455vb4pex5vsknk084sn02q";
const NO_PERSONA: &str = "persona_01h455vb4pex5vsknk084sn02q";

impl Demo {
    async fn agent(&self, name: &str) -> Value {
        self.owner
            .saved("createAgent", json!({ "name": name }))
            .await
    }

    /// A model, another model, and a persona with the other model as its default.
    async fn character(&self) -> (Value, Value, Value) {
        let query = "{ models(first: 2) { nodes { id } } }";
        let data = self.admin.ask(query, json!({})).await;
        let [one, other] = [0, 1].map(|n| data["models"]["nodes"][n]["id"].clone());
        let input = json!({
            "name": "Sage", "displayName": "The Sage", "role": "Knows", "defaultModelId": other, "defaultTemperature": 1.25,
        });
        let persona = self.admin.saved("createPersona", input).await;
        (one, other, persona["id"].clone())
    }

    /// An agent that the guest can read, because it is a member of a shared circle.
    async fn shared(&self) -> Value {
        let query = "{ circles(first: 1, filter: { search: \"workshop\" }) { nodes { members(first: 1) { nodes { id } } } } }";
        let data = self.guest.ask(query, json!({})).await;
        data["circles"]["nodes"][0]["members"]["nodes"][0]["id"].clone()
    }
}

#[tokio::test]
async fn creating_an_agent_stores_its_fields_and_creates_an_event() {
    let demo = Demo::start().await;
    let (model, _, persona) = demo.character().await;
    let input = json!({
        "name": "  Zoë ", "personaId": persona, "modelId": model, "systemPrompt": "First.\r\nThen.",
        "traits": ["Calm", " calm ", "Quick"], "competencies": [" Rust", "SQL", "rust"], "specializations": ["Trees"],
        "reviewTypes": ["CODE", "All", "code"], "communicationStyle": "terse", "reviewStrictness": 1, "temperature": 0,
        "maxTokens": 1,
    });
    let made = demo.owner.saved("createAgent", input).await;
    let expected = json!({
        "id": made["id"], "owner": { "name": made["owner"]["name"] }, "name": "Zoë", "persona": { "id": persona },
        "model": { "id": model }, "systemPrompt": "First.\nThen.", "status": "IDLE", "traits": ["Calm", "Quick"],
        "competencies": ["rust", "sql"], "specializations": ["Trees"], "reviewTypes": ["code", "all"],
        "communicationStyle": "terse", "reviewStrictness": 1.0, "temperature": 0.0, "maxTokens": 1, "version": 1,
        "updatedAt": made["updatedAt"],
    });
    assert_eq!(made, expected);
    // The competency filter finds the agent, and the agent is listed first because it is the newest.
    let query = "{ agents(first: 1, filter: { competency: \"RUST\" }) { nodes { id } } }";
    let found = demo.owner.ask(query, json!({})).await;
    assert_eq!(found["agents"]["nodes"][0]["id"], made["id"]);

    let user = demo.owner.id().await;
    let events = demo.events_of(&demo.owner, &made["id"], 1).await;
    let expected = json!({
        "type": "AGENT_CREATED", "actor": { "id": user }, "agentId": made["id"], "name": "Zoë", "fromStatus": null,
        "toStatus": null, "changed": [],
    });
    assert_eq!(events, [expected]);
    let row = &demo.rows_of(&made["id"]).await[0];
    assert_eq!(row.owner_id, Some(uuid(&user)));
    assert_eq!(row.agent_id, Some(uuid(&made["id"])));
    assert_eq!((row.circle_id, row.project_id), (None, None));
    let payload = json!({ "name": "Zoë", "changed": [], "version": 1, "v": 1 });
    assert_eq!(row.payload, payload);
}

#[tokio::test]
async fn a_new_agent_takes_omitted_fields_from_its_persona() {
    let demo = Demo::start().await;
    let (model, preferred, persona) = demo.character().await;
    for (n, (given, expected)) in [
        (json!({}), (Value::Null, Value::Null, 0.7)),
        (
            json!({ "personaId": persona }),
            (persona.clone(), preferred, 1.25),
        ),
        (
            json!({ "personaId": persona, "modelId": model, "temperature": 0.5 }),
            (persona, model, 0.5),
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let mut input = given;
        input["name"] = json!(format!("New {n}"));
        let made = demo.owner.saved("createAgent", input).await;
        let shown = (
            made["persona"]["id"].clone(),
            made["model"]["id"].clone(),
            made["temperature"].as_f64().expect("a number"),
        );
        assert_eq!(shown, expected);
        assert_eq!(made["reviewStrictness"], 0.7);
        assert_eq!(made["maxTokens"], Value::Null);
        for list in ["traits", "competencies", "specializations", "reviewTypes"] {
            assert_eq!(made[list], json!([]), "{list}");
        }
    }
}

#[tokio::test]
async fn all_input_errors_of_an_agent_are_reported_together() {
    let demo = Demo::start().await;
    let words = |count: usize| (0..count).map(|n| format!("w{n}")).collect::<Vec<_>>();
    let mut input = json!({
        "name": "x".repeat(101), "systemPrompt": "x".repeat(20_001), "traits": words(51), "competencies": ["x", "\u{fdfa}".repeat(100)],
        "specializations": [" "], "reviewTypes": ["code", "poetry"], "communicationStyle": "x".repeat(51),
        "reviewStrictness": 1.01, "temperature": -0.01, "maxTokens": 0,
    });
    let expected = [
        "INVALID reviewTypes.1",
        "INVALID specializations.0",
        "OUT_OF_RANGE maxTokens",
        "OUT_OF_RANGE reviewStrictness",
        "OUT_OF_RANGE temperature",
        "TOO_LONG communicationStyle",
        "TOO_LONG competencies.1",
        "TOO_LONG name",
        "TOO_LONG systemPrompt",
        "TOO_MANY traits",
    ];
    let refused = demo.owner.payload("createAgent", input.clone()).await;
    assert_eq!(refused["agent"], Value::Null);
    assert_eq!(sorted(faults(&refused)), expected);

    let agent = demo.agent("Zoë").await;
    input["agentId"] = agent["id"].clone();
    let refused = demo.owner.payload("updateAgent", input).await;
    assert_eq!(refused["agent"], agent);
    assert_eq!(sorted(faults(&refused)), expected);
    let nulls = json!({
        "agentId": agent["id"], "name": null, "reviewStrictness": null, "temperature": null, "status": null,
    });
    let expected = [
        "REQUIRED name",
        "REQUIRED reviewStrictness",
        "REQUIRED status",
        "REQUIRED temperature",
    ];
    assert_eq!(
        sorted(demo.owner.faults("updateAgent", nulls).await),
        expected
    );

    // Too many review types, and a name that is too long after folding.
    let many: Vec<_> = (0..11).map(|_| "all").collect();
    let input = json!({ "name": "\u{fdfa}".repeat(100), "reviewTypes": many });
    let expected = ["TOO_LONG name", "TOO_MANY reviewTypes"];
    assert_eq!(
        sorted(demo.owner.faults("createAgent", input).await),
        expected
    );
    demo.events_of(&demo.owner, &agent["id"], 1).await;
}

#[tokio::test]
async fn agent_names_are_unique_per_owner_in_any_spelling() {
    let demo = Demo::start().await;
    let agent = demo.agent("Zoë").await;
    let taken = ["TAKEN name"];
    let again = json!({ "name": " ZOË " });
    assert_eq!(demo.owner.faults("createAgent", again.clone()).await, taken);
    demo.guest.saved("createAgent", again).await;
    let other = demo.agent("Other").await;
    let rename = json!({ "agentId": other["id"], "name": "zoë" });
    let refused = demo.owner.payload("updateAgent", rename).await;
    assert_eq!(faults(&refused), taken);
    assert_eq!(refused["agent"], other);
    // An agent can be renamed to another spelling of its current name.
    let rename = json!({ "agentId": agent["id"], "name": "ZOË" });
    let renamed = demo.owner.saved("updateAgent", rename).await;
    assert_eq!(renamed["name"], "ZOË");
}

#[tokio::test]
async fn concurrent_creations_of_agents_with_one_name_succeed_once() {
    let demo = Demo::start().await;
    let made = (0..8).map(|_| demo.owner.payload("createAgent", json!({ "name": "Zoë" })));
    let made = join_all(made).await;
    let count = made.iter().filter(|payload| payload["agent"].is_object());
    assert_eq!(count.count(), 1);
    let taken = made
        .iter()
        .filter(|payload| faults(payload) == ["TAKEN name"]);
    assert_eq!(taken.count(), 7);
}

#[tokio::test]
async fn an_agent_update_keeps_omitted_fields_and_null_clears_fields() {
    let demo = Demo::start().await;
    let (model, _, persona) = demo.character().await;
    let full = json!({
        "name": "Zoë", "personaId": persona, "modelId": model, "systemPrompt": "Be.", "traits": ["calm"],
        "competencies": ["rust"], "specializations": ["trees"], "reviewTypes": ["all"], "communicationStyle": "terse",
        "maxTokens": 9,
    });
    let made = demo.owner.saved("createAgent", full).await;
    let mut expected = made.clone();
    let update =
        json!({ "agentId": made["id"], "name": "Zoe", "temperature": 2, "competencies": ["SQL"] });
    let changed = demo.owner.saved("updateAgent", update).await;
    expected["name"] = json!("Zoe");
    expected["temperature"] = json!(2.0);
    expected["competencies"] = json!(["sql"]);
    expected["version"] = json!(2);
    expected["updatedAt"] = changed["updatedAt"].clone();
    assert_eq!(changed, expected);
    assert_ne!(changed["updatedAt"], made["updatedAt"]);

    let nulls = json!({
        "agentId": made["id"], "personaId": null, "modelId": null, "systemPrompt": null, "traits": null,
        "competencies": null, "specializations": null, "reviewTypes": null, "communicationStyle": " ", "maxTokens": null,
    });
    let cleared = demo.owner.saved("updateAgent", nulls).await;
    for field in [
        "persona",
        "model",
        "systemPrompt",
        "communicationStyle",
        "maxTokens",
    ] {
        assert_eq!(cleared[field], Value::Null, "{field}");
    }
    for field in ["traits", "competencies", "specializations", "reviewTypes"] {
        assert_eq!(cleared[field], json!([]), "{field}");
    }
    assert_eq!(cleared["version"], 3);

    // Values that equal the current ones are no change.
    let same = json!({
        "agentId": made["id"], "name": " Zoe", "temperature": 2.0, "status": "IDLE", "traits": [], "modelId": null,
    });
    assert_eq!(demo.owner.saved("updateAgent", same).await, cleared);
    let events = demo.events_of(&demo.owner, &made["id"], 3).await;
    let entry = |n: usize| (events[n]["type"].clone(), events[n]["changed"].clone());
    let changed = json!(["name", "competencies", "temperature"]);
    assert_eq!(entry(1), (json!("AGENT_UPDATED"), changed));
    let changed = json!([
        "systemPrompt",
        "traits",
        "specializations",
        "competencies",
        "reviewTypes",
        "communicationStyle",
        "maxTokens",
        "personaId",
        "modelId"
    ]);
    assert_eq!(entry(2), (json!("AGENT_UPDATED"), changed));
    let rows = demo.rows_of(&made["id"]).await;
    let versions: Vec<_> = rows.iter().map(|row| &row.payload["version"]).collect();
    assert_eq!(versions, [1, 2, 3]);
}

#[tokio::test]
async fn an_outdated_version_prevents_changing_or_deleting_an_agent() {
    let demo = Demo::start().await;
    let agent = demo.agent("Zoë").await;
    let rename = |version: i32, name: &str| json!({ "agentId": agent["id"], "expectedVersion": version, "name": name });
    let changed = demo.owner.saved("updateAgent", rename(1, "One")).await;
    let refused = demo
        .owner
        .payload("updateAgent", rename(1, "Another"))
        .await;
    assert_eq!(faults(&refused), ["CONFLICT expectedVersion"]);
    assert_eq!(refused["agent"], changed);
    // The version is checked before the rest of the input.
    let mut input = rename(1, "");
    input["modelId"] = json!(NO_MODEL);
    let refused = demo.owner.payload("updateAgent", input).await;
    assert_eq!(faults(&refused), ["CONFLICT expectedVersion"]);
    let input = json!({ "id": agent["id"], "expectedVersion": 1 });
    let refused = demo.owner.payload("deleteAgent", input).await;
    assert_eq!(faults(&refused), ["CONFLICT expectedVersion"]);
    assert_eq!(refused["deletedId"], Value::Null);
    assert_eq!(refused["current"], changed);
    let input = json!({ "id": agent["id"], "expectedVersion": 2 });
    let deleted = demo.owner.payload("deleteAgent", input).await;
    assert_eq!(deleted["deletedId"], agent["id"]);
    let types = demo.events_of(&demo.owner, &agent["id"], 3).await;
    let types: Vec<_> = types.iter().map(|event| event["type"].clone()).collect();
    assert_eq!(types, ["AGENT_CREATED", "AGENT_UPDATED", "AGENT_DELETED"]);
    assert_eq!(
        demo.rows_of(&agent["id"]).await[2].payload,
        json!({ "name": "One", "changed": [], "version": 2, "v": 1 })
    );
    let gone = json!({ "id": agent["id"] });
    assert_eq!(
        demo.owner.refused("deleteAgent", gone).await,
        "NOT_FOUND id"
    );
}

#[tokio::test]
async fn an_owner_sets_an_agent_offline_and_back() {
    let demo = Demo::start().await;
    let agent = demo.agent("Zoë").await;
    let id = agent["id"].clone();
    let put = |status: &str| json!({ "agentId": id, "status": status });
    let refused = demo.owner.payload("updateAgent", put("BUSY")).await;
    assert_eq!(faults(&refused), ["INVALID status"]);
    assert_eq!(refused["agent"], agent);

    let both = json!({ "agentId": id, "status": "OFFLINE", "name": "Zoe" });
    let offline = demo.owner.saved("updateAgent", both).await;
    assert_eq!(offline["status"], "OFFLINE");
    assert_eq!(offline["version"], 2);
    assert_eq!(
        demo.owner.saved("updateAgent", put("OFFLINE")).await,
        offline
    );
    let idle = demo.owner.saved("updateAgent", put("IDLE")).await;
    assert_eq!(
        (&idle["status"], &idle["version"]),
        (&json!("IDLE"), &json!(3))
    );
    demo.owner.saved("updateAgent", put("OFFLINE")).await;

    // The agent has a task in progress, so it becomes BUSY when it is brought back.
    let db = demo.db.clone();
    let tasks = task::Entity::find().order_by_asc(task::Column::Id);
    let task = tasks.one(&db).await.expect("reads").expect("a task");
    let mut task = task.into_active_model();
    task.assignee_id = Set(Some(uuid(&id)));
    task.status = Set(TaskStatus::InProgress);
    task.update(&db).await.expect("writes");
    let busy = demo.owner.saved("updateAgent", put("IDLE")).await;
    assert_eq!(
        (&busy["status"], &busy["version"]),
        (&json!("BUSY"), &json!(5))
    );
    // The agent is not OFFLINE, so setting IDLE changes nothing.
    assert_eq!(demo.owner.saved("updateAgent", put("IDLE")).await, busy);
    demo.owner.saved("updateAgent", put("OFFLINE")).await;

    let events = demo.events_of(&demo.owner, &id, 7).await;
    let received: Vec<_> = events[1..]
        .iter()
        .map(|event| {
            json!([
                event["type"],
                event["changed"],
                event["fromStatus"],
                event["toStatus"]
            ])
        })
        .collect();
    let turned = |from: &str, to: &str| json!(["AGENT_STATUS_CHANGED", [], from, to]);
    let expected = [
        json!(["AGENT_UPDATED", ["name"], null, null]),
        turned("IDLE", "OFFLINE"),
        turned("OFFLINE", "IDLE"),
        turned("IDLE", "OFFLINE"),
        turned("OFFLINE", "BUSY"),
        turned("BUSY", "OFFLINE"),
    ];
    assert_eq!(received, expected);
    let payload = json!({
        "name": "Zoe", "fromStatus": "OFFLINE", "toStatus": "BUSY", "version": 5, "v": 1,
    });
    assert_eq!(demo.rows_of(&id).await[5].payload, payload);
}

#[tokio::test]
async fn only_the_owner_and_administrators_change_an_agent() {
    let demo = Demo::start().await;
    let agent = demo.shared().await;
    let rename = json!({ "agentId": agent, "name": "Mine" });
    let delete = json!({ "id": agent });
    for (name, input) in [("updateAgent", &rename), ("deleteAgent", &delete)] {
        let refused = demo.guest.refused(name, input.clone()).await;
        assert_eq!(refused, "FORBIDDEN", "{name}");
    }
    // An object that the user cannot read is reported as not found.
    let private = demo.agent("Private").await;
    let rename = json!({ "agentId": private["id"], "name": "Mine" });
    let refused = demo.guest.refused("updateAgent", rename.clone()).await;
    assert_eq!(refused, "NOT_FOUND agentId");
    let delete = json!({ "id": private["id"] });
    let refused = demo.guest.refused("deleteAgent", delete).await;
    assert_eq!(refused, "NOT_FOUND id");

    let renamed = demo.admin.saved("updateAgent", rename).await;
    assert_eq!(renamed["owner"], private["owner"]);
    let events = demo.events_of(&demo.owner, &private["id"], 2).await;
    assert_eq!(events[1]["actor"]["id"], demo.admin.id().await);
    let row = &demo.rows_of(&private["id"]).await[1];
    assert_eq!(row.owner_id, Some(uuid(&demo.owner.id().await)));
    demo.admin.delete("deleteAgent", &private["id"]).await;
}

#[tokio::test]
async fn the_persona_and_model_of_an_agent_must_exist() {
    let demo = Demo::start().await;
    let agent = demo.agent("Zoë").await;
    for (field, id) in [("personaId", NO_PERSONA), ("modelId", NO_MODEL)] {
        let create = json!({ "name": "New", field: id });
        let refused = demo.owner.refused("createAgent", create).await;
        assert_eq!(refused, format!("NOT_FOUND {field}"));
        let update = json!({ "agentId": agent["id"], field: id });
        let refused = demo.owner.refused("updateAgent", update).await;
        assert_eq!(refused, format!("NOT_FOUND {field}"));
        let malformed = json!({ "name": "New", field: UNKNOWN });
        let refused = demo.owner.refused("createAgent", malformed).await;
        assert_eq!(refused, format!("BAD_USER_INPUT {field}"));
    }
    let update = json!({ "agentId": UNKNOWN, "name": "New" });
    let refused = demo.owner.refused("updateAgent", update).await;
    assert_eq!(refused, "NOT_FOUND agentId");
    demo.events_of(&demo.owner, &agent["id"], 1).await;
}

#[tokio::test]
async fn an_agent_with_open_tasks_cannot_be_deleted() {
    let demo = Demo::start().await;
    let db = demo.db.clone();
    let tasks = task::Entity::find().order_by_asc(task::Column::Id);
    let task = tasks.one(&db).await.expect("reads").expect("a task");
    for (n, status) in TaskStatus::iter().enumerate() {
        let agent = demo.agent(&format!("Worker {n}")).await;
        let mut given = task.clone().into_active_model();
        given.assignee_id = Set(Some(uuid(&agent["id"])));
        given.status = Set(status);
        given.update(&db).await.expect("writes");
        let input = json!({ "id": agent["id"] });
        let payload = demo.owner.payload("deleteAgent", input).await;
        let is_open = matches!(
            status,
            TaskStatus::Assigned
                | TaskStatus::InProgress
                | TaskStatus::InReview
                | TaskStatus::ChangesRequested
                | TaskStatus::Blocked
        );
        let expected = if is_open {
            vec!["IN_USE id"]
        } else {
            Vec::new()
        };
        assert_eq!(faults(&payload), expected, "{status:?}");
        let current = if is_open { agent.clone() } else { Value::Null };
        assert_eq!(payload["current"], current, "{status:?}");
        demo.events_of(&demo.owner, &agent["id"], if is_open { 1 } else { 2 })
            .await;
    }
    // A reviewer can be deleted, because the task can be approved without it.
    let agent = demo.agent("Reviewer").await;
    let review = task::Entity::update_many()
        .col_expr(task::Column::ReviewerId, Expr::value(uuid(&agent["id"])))
        .filter(task::Column::Status.eq(TaskStatus::InReview));
    review.exec(&db).await.expect("writes");
    demo.owner.delete("deleteAgent", &agent["id"]).await;
}

#[tokio::test]
async fn an_agent_in_an_open_conversation_cannot_be_deleted() {
    let demo = Demo::start().await;
    let db = demo.db.clone();
    let talks = conversation::Entity::find().order_by_asc(conversation::Column::Id);
    let talk = talks
        .one(&db)
        .await
        .expect("reads")
        .expect("a conversation");
    for (n, status) in ConversationStatus::iter().enumerate() {
        let agent = demo.agent(&format!("Talker {n}")).await;
        let part = participant::ActiveModel {
            conversation_id: Set(talk.id),
            agent_id: Set(uuid(&agent["id"])),
            position: Set(100 + i32::try_from(n).expect("is small")),
            joined_at: Set(talk.created_at),
        };
        part.insert(&db).await.expect("writes");
        let put = conversation::Entity::update_many()
            .col_expr(conversation::Column::Status, Expr::value(status))
            .filter(conversation::Column::Id.eq(talk.id));
        put.exec(&db).await.expect("writes");
        let input = json!({ "id": agent["id"] });
        let payload = demo.owner.payload("deleteAgent", input).await;
        let is_open = matches!(
            status,
            ConversationStatus::Pending | ConversationStatus::Active | ConversationStatus::Paused
        );
        let left = agent::Entity::find_by_id(uuid(&agent["id"])).count(&db);
        assert_eq!(
            left.await.expect("counts"),
            u64::from(is_open),
            "{status:?}"
        );
        assert_eq!(payload["deletedId"].is_null(), is_open, "{status:?}");
    }
}

#[tokio::test]
async fn deleting_an_agent_creates_a_removal_event_in_each_of_its_circles() {
    let demo = Demo::start().await;
    let db = demo.db.clone();
    let agent = demo.agent("Leaver").await["id"].clone();
    let project = demo.owner.saved("createProject", json!({ "name": "Ours" }));
    let project = project.await["id"].clone();
    let create = "mutation ($input: CreateCircleInput!) { createCircle(input: $input) { circle { id } userErrors { code } } }";
    for name in ["One", "Two", "Three"] {
        let input = json!({ "name": name, "projectId": project, "members": [{ "agentId": agent, "role": "LEAD" }] });
        demo.owner.ask(create, json!({ "input": input })).await;
    }
    let members = member::Entity::find()
        .filter(member::Column::AgentId.eq(uuid(&agent)))
        .order_by_asc(member::Column::Id);
    let mut members = members.all(&db).await.expect("reads");
    // The agent has already left one of the circles.
    let left = members.remove(1);
    let joined_at = left.joined_at;
    let mut left = left.into_active_model();
    left.is_active = Set(false);
    left.left_at = Set(Some(joined_at));
    let left = left.update(&db).await.expect("writes");
    let (owner, admin) = (demo.owner.id().await, demo.admin.id().await);
    demo.admin.delete("deleteAgent", &agent).await;

    assert_eq!(rows(&db, left.id).await.len(), 1);
    let deleted = &rows(&db, uuid(&agent)).await[1];
    assert_eq!(deleted.kind, "agent.deleted");
    for member in &members {
        let received = rows(&db, member.id).await;
        let removed = &received[1];
        assert_eq!((received.len(), &*removed.kind), (2, "member.removed"));
        assert_eq!(removed.owner_id, Some(uuid(&owner)));
        assert_eq!(removed.circle_id, Some(member.circle_id));
        assert_eq!(removed.project_id, Some(uuid(&project)));
        assert_eq!(removed.agent_id, Some(member.agent_id));
        assert_eq!(removed.actor_user_id, Some(uuid(&admin)));
        assert!(removed.id < deleted.id);
        let added = &received[0].payload;
        let mut expected = added.clone();
        expected["updatedAt"] = removed.payload["updatedAt"].clone();
        assert_eq!(removed.payload, expected);
        assert_ne!(removed.payload["updatedAt"], added["updatedAt"]);
    }
}
