//! Conversations and messages: permissions, state changes, turns, and events.

use std::collections::BTreeSet;
use std::slice;

use futures_util::future::join_all;
use gathering_entity::circle::{self, CircleStatus};
use gathering_entity::conversation::{self, ConversationStatus};
use gathering_entity::{event, message, participant};
use sea_orm::prelude::Uuid;
use sea_orm::{
    ColumnTrait, DatabaseConnection, EntityTrait, IntoActiveModel, PaginatorTrait, QueryFilter,
    QueryOrder, Set, TransactionTrait,
};
use serde_json::{Value, json};

use crate::server::TestServer;

const CONVERSATION: &str = "conversation { id status version topic summary initialPrompt endReason maxTurns turnsTaken \
    turnStrategy startedAt endedAt lastMessageAt updatedAt nextSpeaker { id } facilitator { id } owner { name } \
    circle { id } task { id } participants { edges { position node { id } } } } userErrors { field code message }";

const MESSAGE: &str = "message { id seq role content authorName isPinned agent { id } user { name } parent { id } \
    model { id } mentions { id } conversation { id status version turnsTaken endReason nextSpeaker { id } lastMessageAt } } \
    userErrors { field code message }";

const DELETED: &str = "deletedId current { __typename id } userErrors { field code message }";

/// The transitions of a conversation.
const STEPS: [&str; 5] = ["start", "pause", "resume", "complete", "cancel"];

/// The most statements counted in addition to a mutation's own: authentication, and the delivery of the events of this
/// mutation and of the one before.
const BESIDE: u64 = 7;

/// The demo data, with the tokens of its owner, the guest and an administrator.
struct Desk {
    server: TestServer,
    db: DatabaseConnection,
    demo: String,
    guest: String,
    admin: String,
    /// A circle of the demo user that the guest can edit.
    workshop: String,
    /// The ids of its members.
    team: Vec<String>,
}

impl Desk {
    async fn open() -> Self {
        let server = TestServer::start().await;
        let db = server.database().connect().await;
        let mut desk = Self {
            demo: server.token("demo@example.com").await,
            guest: server.token("guest@example.com").await,
            admin: server.token("admin@example.com").await,
            server,
            db,
            workshop: String::new(),
            team: Vec::new(),
        };
        (desk.workshop, desk.team) = desk.circle("Workshop").await;
        desk
    }

    /// The data of a query by the demo user.
    async fn read(&self, query: &str, id: &str) -> Value {
        let answer = self
            .server
            .ask(Some(&self.demo), query, json!({ "id": id }))
            .await;
        assert_eq!(answer.get("errors"), None, "{answer}");
        answer["data"].clone()
    }

    /// The ids of a circle and of its active members.
    async fn circle(&self, name: &str) -> (String, Vec<String>) {
        let all =
            "{ circles(first: 20) { nodes { id name members(first: 100) { nodes { id } } } } }";
        let data = self.read(all, "").await;
        let circle = list(&data["circles"]["nodes"])
            .find(|circle| circle["name"] == name)
            .expect("a circle");
        let members = list(&circle["members"]["nodes"]).map(|agent| text(&agent["id"]));
        (text(&circle["id"]), members.collect())
    }

    /// The complete response to a mutation.
    async fn ask(&self, token: &str, name: &str, input: Value) -> Value {
        let (kind, selection) = match name {
            "deleteConversation" => ("DeleteInput".to_owned(), DELETED),
            "postMessage" => ("PostMessageInput".to_owned(), MESSAGE),
            "pinMessage" => ("PinMessageInput".to_owned(), MESSAGE),
            "createConversation" => ("CreateConversationInput".to_owned(), CONVERSATION),
            "updateConversation" => ("UpdateConversationInput".to_owned(), CONVERSATION),
            _ => ("ConversationActionInput".to_owned(), CONVERSATION),
        };
        let query =
            format!("mutation ($input: {kind}!) {{ {name}(input: $input) {{ {selection} }} }}");
        let answer = self
            .server
            .ask(Some(token), &query, json!({ "input": input }));
        answer.await
    }

    /// The payload of a mutation, which must not fail.
    async fn payload(&self, token: &str, name: &str, input: Value) -> Value {
        let answer = self.ask(token, name, input).await;
        assert_eq!(answer.get("errors"), None, "{answer}");
        answer["data"][name].clone()
    }

    /// The payload of a mutation by the demo user.
    async fn mutate(&self, name: &str, input: Value) -> Value {
        self.payload(&self.demo, name, input).await
    }

    /// The object in the payload of a mutation by the demo user, which must succeed.
    async fn done(&self, name: &str, input: Value) -> Value {
        let payload = self.mutate(name, input).await;
        assert_eq!(faults(&payload), [""; 0], "{payload}");
        let key = if name.ends_with("Message") {
            "message"
        } else {
            "conversation"
        };
        payload[key].clone()
    }

    /// The user errors of a mutation by the demo user.
    async fn faults(&self, name: &str, input: Value) -> Vec<String> {
        faults(&self.mutate(name, input).await)
    }

    /// The code of the error, and the field that it names.
    async fn refusal(&self, token: &str, name: &str, input: Value) -> String {
        let answer = self.ask(token, name, input).await;
        let said = &answer["errors"][0]["extensions"];
        match said["field"].as_str() {
            Some(field) => format!("{} {field}", text(&said["code"])),
            None => text(&said["code"]),
        }
    }

    /// The input for a conversation in the workshop between its first members.
    fn draft(&self, participants: usize) -> Value {
        json!({
            "topic": "What to do next",
            "circleId": self.workshop,
            "participantIds": self.team[..participants],
        })
    }

    /// Creates an ACTIVE conversation, with these changes to the input, and returns its id.
    async fn talk(&self, participants: usize, other: Value) -> String {
        let mut input = self.draft(participants);
        input["startNow"] = json!(true);
        merge(&mut input, other);
        text(&self.done("createConversation", input).await["id"])
    }

    /// Creates a conversation in this state and returns its id.
    async fn talk_in(&self, status: &str) -> String {
        let steps: &[&str] = match status {
            "ACTIVE" => &["start"],
            "PAUSED" => &["start", "pause"],
            "COMPLETED" => &["start", "complete"],
            "CANCELLED" => &["cancel"],
            _ => &[],
        };
        let made = self.done("createConversation", self.draft(2)).await;
        let id = text(&made["id"]);
        for step in steps {
            self.done(&named(step), json!({ "conversationId": id }))
                .await;
        }
        if status == "FAILED" {
            let failed = conversation::Entity::update_many()
                .set(conversation::ActiveModel {
                    status: Set(ConversationStatus::Failed),
                    ..Default::default()
                })
                .filter(conversation::Column::Id.eq(uuid(&id)));
            failed.exec(&self.db).await.expect("updates");
        }
        id
    }

    async fn says(&self, conversation: &str, content: &str) -> Value {
        let input = json!({ "conversationId": conversation, "content": content });
        self.done("postMessage", input).await
    }

    fn turn(&self, conversation: &str, member: usize, content: &str) -> Value {
        json!({ "conversationId": conversation, "content": content, "agentId": self.team[member] })
    }

    /// Posts a turn of a team member and returns the next speaker, as an index into the team.
    async fn takes_turn(&self, conversation: &str, member: usize, content: &str) -> Option<usize> {
        let turn = self.turn(conversation, member, content);
        self.next(&self.done("postMessage", turn).await)
    }

    fn next(&self, message: &Value) -> Option<usize> {
        let next = &message["conversation"]["nextSpeaker"];
        if next.is_null() {
            return None;
        }
        self.team.iter().position(|id| next["id"] == **id)
    }

    /// The id of the latest event.
    async fn mark(&self) -> Uuid {
        let events = event::Entity::find().order_by_desc(event::Column::Id);
        let latest = events.one(&self.db).await.expect("reads");
        latest.expect("an event").id
    }

    /// The events after this one, oldest first.
    async fn told(&self, since: Uuid) -> Vec<event::Model> {
        event::Entity::find()
            .filter(event::Column::Id.gt(since))
            .order_by_asc(event::Column::Id)
            .all(&self.db)
            .await
            .expect("reads")
    }

    /// Like [`Desk::told`], as the types and payloads of the events.
    async fn facts(&self, since: Uuid) -> Vec<(String, Value)> {
        let events = self.told(since).await.into_iter();
        events
            .map(|mut event| {
                let payload = event.payload.as_object_mut().expect("an object");
                assert_eq!(payload.remove("v"), Some(json!(1)));
                (event.kind, event.payload)
            })
            .collect()
    }

    async fn row(&self, id: &str) -> conversation::Model {
        let row = conversation::Entity::find_by_id(uuid(id));
        row.one(&self.db).await.expect("reads").expect("a row")
    }
}

fn list(value: &Value) -> slice::Iter<'_, Value> {
    value.as_array().expect("a list").iter()
}

fn text(value: &Value) -> String {
    value
        .as_str()
        .unwrap_or_else(|| panic!("{value}"))
        .to_owned()
}

fn uuid(id: &str) -> Uuid {
    gathering_schema::id::parse(&id.into()).expect("an id").1
}

fn merge(input: &mut Value, other: Value) {
    let Value::Object(other) = other else { return };
    for (name, value) in other {
        input[name] = value;
    }
}

/// The mutation of a transition.
fn named(step: &str) -> String {
    format!("{step}Conversation")
}

/// The field and the code of each user error.
fn faults(payload: &Value) -> Vec<String> {
    list(&payload["userErrors"])
        .map(|error| {
            let code = text(&error["code"]);
            match error["field"].as_array() {
                Some(path) => {
                    let path: Vec<_> = path.iter().map(text).collect();
                    format!("{}: {code}", path.join("."))
                }
                None => code,
            }
        })
        .collect()
}

#[tokio::test]
async fn creating_a_conversation_keeps_the_order_of_its_participants() {
    let desk = Desk::open().await;
    let mark = desk.mark().await;
    let task =
        "query ($id: ID!) { circle(id: $id) { project { id } tasks(first: 1) { nodes { id } } } }";
    let circle = desk.read(task, &desk.workshop).await["circle"].clone();
    let task = &circle["tasks"]["nodes"][0]["id"];
    let order = [4, 0, 2].map(|n| desk.team[n].clone());
    let made = desk
        .done(
            "createConversation",
            json!({
                "topic": "  What to do next ", "participantIds": order, "circleId": desk.workshop, "taskId": task,
                "initialPrompt": "Be brief.\r\nBe kind.", "turnStrategy": "FACILITATOR_LED", "facilitatorId": order[1],
                "maxTurns": 50,
            }),
        )
        .await;
    for (field, value) in [
        ("status", json!("PENDING")),
        ("version", json!(1)),
        ("topic", json!("What to do next")),
        ("initialPrompt", json!("Be brief.\nBe kind.")),
        ("turnStrategy", json!("FACILITATOR_LED")),
        ("maxTurns", json!(50)),
        ("turnsTaken", json!(0)),
        ("nextSpeaker", Value::Null),
        ("startedAt", Value::Null),
        ("facilitator", json!({ "id": order[1] })),
        ("owner", json!({ "name": "Dana Demo" })),
        ("circle", json!({ "id": desk.workshop })),
        ("task", json!({ "id": task })),
    ] {
        assert_eq!(made[field], value, "{field}");
    }
    let edges: Vec<_> = (0..)
        .zip(&order)
        .map(|(n, id)| json!({ "position": n, "node": { "id": id } }))
        .collect();
    assert_eq!(made["participants"]["edges"], json!(edges));

    let told = desk.told(mark).await;
    assert_eq!(told.len(), 1);
    let row = desk.row(&text(&made["id"])).await;
    let (event, demo) = (&told[0], row.owner_id);
    assert_eq!(event.kind, "conversation.created");
    assert_eq!(event.subject_id, row.id);
    assert_eq!(event.owner_id, Some(demo));
    assert_eq!(event.actor_user_id, Some(demo));
    assert_eq!(event.circle_id, Some(uuid(&desk.workshop)));
    assert_eq!(
        event.project_id.map(|_| ()),
        circle["project"]["id"].as_str().map(|_| ())
    );
    let payload = json!({ "topic": "What to do next", "changed": [], "version": 1, "v": 1 });
    assert_eq!(event.payload, payload);
}

#[tokio::test]
async fn a_conversation_can_be_started_on_creation() {
    let desk = Desk::open().await;
    let mark = desk.mark().await;
    let mut input = desk.draft(3);
    input["startNow"] = json!(true);
    let made = desk.done("createConversation", input.clone()).await;
    assert_eq!(made["status"], "ACTIVE");
    assert_eq!(made["version"], 2);
    assert!(made["startedAt"].is_string());
    assert_eq!(made["nextSpeaker"]["id"], *desk.team[0]);
    assert_eq!(made["maxTurns"], 10);
    let topic = "What to do next";
    let facts = desk.facts(mark).await;
    let expected = [
        (
            "conversation.created",
            json!({ "topic": topic, "changed": [], "version": 1 }),
        ),
        (
            "conversation.started",
            json!({ "topic": topic, "fromStatus": "PENDING", "toStatus": "ACTIVE", "version": 2 }),
        ),
    ];
    assert_eq!(
        facts,
        expected.map(|(kind, payload)| (kind.to_owned(), payload))
    );

    merge(
        &mut input,
        json!({ "turnStrategy": "FACILITATOR_LED", "facilitatorId": desk.team[2] }),
    );
    let led = desk.done("createConversation", input).await;
    assert_eq!(led["nextSpeaker"]["id"], *desk.team[2]);
}

#[tokio::test]
async fn all_input_errors_of_a_conversation_are_reported_together() {
    let desk = Desk::open().await;
    let mark = desk.mark().await;
    let team = &desk.team;
    let mut crowd = Vec::new();
    for name in ["Assembly", "Atelier"] {
        crowd = desk.circle(name).await.1;
        if crowd.len() > 20 {
            break;
        }
    }
    let stranger = crowd
        .iter()
        .find(|id| !team.contains(id))
        .expect("an agent");
    let cases = [
        (
            json!({ "topic": " ", "maxTurns": 51, "participantIds": [team[0], team[0], stranger], "facilitatorId": team[1] }),
            vec![
                "topic: REQUIRED",
                "maxTurns: OUT_OF_RANGE",
                "participantIds.1: INVALID",
                "facilitatorId: INVALID",
                "participantIds.2: NOT_MEMBER",
            ],
        ),
        (
            json!({ "topic": "x".repeat(501), "maxTurns": 0 }),
            vec!["topic: TOO_LONG", "maxTurns: OUT_OF_RANGE"],
        ),
        (
            json!({ "topic": "Two\nlines", "initialPrompt": "x".repeat(20_001) }),
            vec!["topic: INVALID", "initialPrompt: TOO_LONG"],
        ),
        (
            json!({ "participantIds": [] }),
            vec!["participantIds: REQUIRED"],
        ),
        (
            json!({ "participantIds": [team[0]] }),
            vec!["participantIds: INVALID"],
        ),
        (
            json!({ "participantIds": crowd[..21] }),
            vec!["participantIds: TOO_MANY"],
        ),
        (
            json!({ "turnStrategy": "FACILITATOR_LED" }),
            vec!["facilitatorId: REQUIRED"],
        ),
        (
            json!({ "turnStrategy": "FACILITATOR_LED", "facilitatorId": team[5] }),
            vec!["facilitatorId: INVALID"],
        ),
    ];
    for (other, expected) in cases {
        let mut input = desk.draft(2);
        merge(&mut input, other);
        let payload = desk.mutate("createConversation", input.clone()).await;
        assert_eq!(faults(&payload), expected, "{input}");
        assert_eq!(payload["conversation"], Value::Null);
    }
    assert_eq!(desk.facts(mark).await, []);
}

#[tokio::test]
async fn the_smallest_and_largest_conversations_are_accepted() {
    let desk = Desk::open().await;
    let (circle, crowd) = desk.circle("Assembly").await;
    for (size, turns) in [(2, 1), (20, 50)] {
        let input = json!({ "topic": "x".repeat(500), "circleId": circle, "participantIds": crowd[..size],
            "maxTurns": turns, "initialPrompt": "x".repeat(20_000) });
        let made = desk.done("createConversation", input).await;
        assert_eq!(list(&made["participants"]["edges"]).count(), size);
    }
}

#[tokio::test]
async fn participants_are_active_members_or_outside_circles_the_users_own_agents() {
    let desk = Desk::open().await;
    let all = "query ($id: ID!) { circle(id: $id) { members(first: 100, filter: { includeInactive: true }) {
        edges { membership { isActive } node { id } } } } }";
    let atelier = desk.circle("Atelier").await.0;
    let members = desk.read(all, &atelier).await["circle"]["members"]["edges"].clone();
    let left = list(&members)
        .find(|edge| edge["membership"]["isActive"] == false)
        .map(|edge| edge["node"]["id"].clone())
        .expect("a member who left");
    let input = json!({ "topic": "Who is here", "circleId": atelier,
        "participantIds": [members[0]["node"]["id"], left] });
    assert_eq!(
        desk.faults("createConversation", input).await,
        ["participantIds.1: NOT_MEMBER"]
    );

    // The guest can read the members of the workshop, but not an agent that is only in the atelier.
    let alone = |ids: Value| json!({ "topic": "Alone", "participantIds": ids });
    let create = "createConversation";
    let hidden = list(&members).find(|edge| {
        let id = edge["node"]["id"].as_str().expect("an id");
        !desk.team.iter().any(|member| member == id)
    });
    let hidden = &hidden.expect("an agent outside the workshop")["node"]["id"];
    let own = "mutation { createAgent(input: { name: \"Own\" }) { agent { id } } }";
    let own = desk.server.ask(Some(&desk.guest), own, json!({})).await;
    let own = &own["data"]["createAgent"]["agent"]["id"];
    let input = alone(json!([own, desk.team[1], desk.team[0]]));
    assert_eq!(
        desk.refusal(&desk.guest, create, input).await,
        "FORBIDDEN participantIds.1"
    );
    let input = alone(json!([desk.team[0], hidden]));
    assert_eq!(
        desk.refusal(&desk.guest, create, input).await,
        "NOT_FOUND participantIds.1"
    );
    let mut input = desk.draft(1);
    input["participantIds"] = json!([desk.team[0], hidden]);
    assert_eq!(
        desk.refusal(&desk.guest, create, input).await,
        "NOT_FOUND participantIds.1"
    );
    let input = alone(json!([desk.workshop]));
    assert_eq!(
        desk.refusal(&desk.guest, create, input).await,
        "BAD_USER_INPUT participantIds.0"
    );

    // A user's own agent may be the only participant. Agents of other users are refused, even for an administrator.
    let made = desk.done(create, alone(json!([hidden]))).await;
    assert_eq!(made["circle"], Value::Null);
    assert_eq!(
        desk.refusal(&desk.admin, create, alone(json!([hidden])))
            .await,
        "FORBIDDEN participantIds.0"
    );
}

#[tokio::test]
async fn the_task_of_a_conversation_must_belong_to_its_circle() {
    let desk = Desk::open().await;
    let tasks = "query ($id: ID!) { circle(id: $id) { tasks(first: 1) { nodes { id } } } }";
    let atelier = desk.circle("Atelier").await.0;
    let foreign = desk.read(tasks, &atelier).await["circle"]["tasks"]["nodes"][0]["id"].clone();
    let mut input = desk.draft(2);
    input["taskId"] = foreign;
    assert_eq!(
        desk.faults("createConversation", input.clone()).await,
        ["taskId: INVALID"]
    );
    assert_eq!(
        desk.refusal(&desk.guest, "createConversation", input).await,
        "NOT_FOUND taskId"
    );
    let own = desk.read(tasks, &desk.workshop).await["circle"]["tasks"]["nodes"][0]["id"].clone();
    let alone = json!({ "topic": "Alone", "participantIds": [desk.team[0]], "taskId": own });
    assert_eq!(
        desk.faults("createConversation", alone).await,
        ["taskId: INVALID"]
    );
}

#[tokio::test]
async fn conversation_transitions_succeed_only_from_their_allowed_states() {
    let desk = Desk::open().await;
    for (step, from, to) in [
        ("start", vec!["PENDING"], "ACTIVE"),
        ("pause", vec!["ACTIVE"], "PAUSED"),
        ("resume", vec!["PAUSED"], "ACTIVE"),
        ("complete", vec!["ACTIVE"], "COMPLETED"),
        ("cancel", vec!["PENDING", "ACTIVE", "PAUSED"], "CANCELLED"),
    ] {
        for status in [
            "PENDING",
            "ACTIVE",
            "PAUSED",
            "COMPLETED",
            "FAILED",
            "CANCELLED",
        ] {
            let id = desk.talk_in(status).await;
            let before = desk.row(&id).await;
            let mark = desk.mark().await;
            let payload = desk
                .mutate(&named(step), json!({ "conversationId": id }))
                .await;
            let shown = &payload["conversation"];
            let facts = desk.facts(mark).await;
            if !from.contains(&status) {
                assert_eq!(faults(&payload), ["BAD_TRANSITION"], "{step} {status}");
                let article = if status == "ACTIVE" { "An" } else { "A" };
                let done = ["started", "paused", "resumed", "completed", "cancelled"];
                let done = done.iter().find(|done| done.starts_with(step));
                let done = done.expect("a participle");
                assert_eq!(
                    payload["userErrors"][0]["message"],
                    format!("{article} {status} conversation cannot be {done}.")
                );
                assert_eq!(shown["status"], status);
                assert_eq!(desk.row(&id).await, before);
                assert_eq!(facts, []);
                continue;
            }
            assert_eq!(faults(&payload), [""; 0], "{step} {status}");
            assert_eq!(shown["status"], to);
            assert_eq!(shown["version"], before.version + 1);
            let is_ended = !["ACTIVE", "PAUSED"].contains(&to);
            assert_eq!(shown["endedAt"].is_string(), is_ended);
            assert_eq!(shown["nextSpeaker"].is_null(), is_ended);
            let mut payload = json!({ "topic": "What to do next", "fromStatus": status, "toStatus": to,
                "version": before.version + 1 });
            let kind = match step {
                "start" => "conversation.started",
                "pause" => "conversation.paused",
                "resume" => "conversation.resumed",
                _ => {
                    let reason = to.to_lowercase();
                    assert_eq!(shown["endReason"], reason);
                    payload["reason"] = json!(reason);
                    "conversation.ended"
                }
            };
            assert_eq!(facts, [(kind.to_owned(), payload)]);
        }
    }
}

#[tokio::test]
async fn the_end_reason_of_a_conversation_is_stored_as_given() {
    let desk = Desk::open().await;
    for (step, word) in [("complete", "completed"), ("cancel", "cancelled")] {
        let id = desk.talk(2, json!({})).await;
        let mark = desk.mark().await;
        let long = json!({ "conversationId": id, "reason": "x".repeat(501) });
        assert_eq!(desk.faults(&named(step), long).await, ["reason: TOO_LONG"]);
        let input = json!({ "conversationId": id, "reason": " We agree. " });
        assert_eq!(
            desk.done(&named(step), input).await["endReason"],
            "We agree."
        );
        let facts = desk.facts(mark).await;
        assert_eq!(facts.len(), 1);
        assert_eq!(facts[0].1["reason"], word);
    }
}

#[tokio::test]
async fn concurrent_transitions_of_a_conversation_succeed_once() {
    let desk = Desk::open().await;
    let beside = desk.server.beside(|_| ()).await;
    for (step, from) in [
        ("start", "PENDING"),
        ("complete", "ACTIVE"),
        ("resume", "PAUSED"),
    ] {
        let id = desk.talk_in(from).await;
        let mark = desk.mark().await;
        let name = named(step);
        let query = format!(
            "mutation ($id: ID!) {{ {name}(input: {{ conversationId: $id }}) {{ userErrors {{ field code }} }} }}"
        );
        let asked = (0..6).map(|n| {
            let server = if n % 2 == 0 { &desk.server } else { &beside };
            server.ask(Some(&desk.demo), &query, json!({ "id": id }))
        });
        let mut outcomes: Vec<_> = join_all(asked)
            .await
            .iter()
            .map(|answer| faults(&answer["data"][&name]).concat())
            .collect();
        outcomes.sort();
        let mut expected = vec!["BAD_TRANSITION"; 6];
        expected[5] = "";
        expected.sort_unstable();
        assert_eq!(outcomes, expected, "{step}");
        assert_eq!(desk.facts(mark).await.len(), 1);
    }
}

#[tokio::test]
async fn an_outdated_version_prevents_every_change_of_a_conversation() {
    let desk = Desk::open().await;
    let id = desk.talk_in("PAUSED").await;
    let before = desk.row(&id).await;
    let mark = desk.mark().await;
    let stale = before.version - 1;
    // The version is checked before the rest of the input.
    let mut calls = vec![(
        "updateConversation".to_owned(),
        json!({ "conversationId": id, "topic": "", "expectedVersion": stale }),
    )];
    calls.extend(STEPS.map(|step| {
        (
            named(step),
            json!({ "conversationId": id, "reason": "x".repeat(501), "expectedVersion": stale }),
        )
    }));
    for (name, input) in calls {
        let payload = desk.mutate(&name, input).await;
        assert_eq!(faults(&payload), ["expectedVersion: CONFLICT"], "{name}");
        assert_eq!(payload["conversation"]["version"], before.version);
    }
    let input = json!({ "id": id, "expectedVersion": stale });
    let payload = desk.mutate("deleteConversation", input).await;
    assert_eq!(faults(&payload), ["expectedVersion: CONFLICT"]);
    assert_eq!(payload["deletedId"], Value::Null);
    assert_eq!(
        payload["current"],
        json!({ "__typename": "Conversation", "id": id })
    );
    assert_eq!(desk.row(&id).await, before);
    assert_eq!(desk.facts(mark).await, []);
    let input = json!({ "conversationId": id, "expectedVersion": before.version });
    desk.done("resumeConversation", input).await;
}

#[tokio::test]
async fn a_conversation_update_announces_only_the_changed_fields() {
    let desk = Desk::open().await;
    let id = desk.talk(2, json!({})).await;
    let mark = desk.mark().await;
    let update = |other: Value| {
        let mut input = json!({ "conversationId": id });
        merge(&mut input, other);
        desk.mutate("updateConversation", input)
    };
    let payload =
        update(json!({ "topic": " Another ", "summary": "So far.", "maxTurns": 12 })).await;
    let shown = &payload["conversation"];
    assert_eq!(
        [
            &shown["topic"],
            &shown["summary"],
            &shown["maxTurns"],
            &shown["version"]
        ],
        [&json!("Another"), &json!("So far."), &json!(12), &json!(3)]
    );
    for same in [
        json!({}),
        json!({ "topic": "Another", "summary": "So far.", "maxTurns": 12 }),
    ] {
        assert_eq!(update(same).await["conversation"]["version"], 3);
    }
    for (other, expected) in [
        (
            json!({ "topic": null, "maxTurns": null }),
            vec!["topic: REQUIRED", "maxTurns: REQUIRED"],
        ),
        (
            json!({ "summary": "x".repeat(20_001), "maxTurns": 51 }),
            vec!["summary: TOO_LONG", "maxTurns: OUT_OF_RANGE"],
        ),
    ] {
        let payload = update(other).await;
        assert_eq!(faults(&payload), expected);
        assert_eq!(payload["conversation"]["version"], 3);
    }
    assert_eq!(
        update(json!({ "summary": null })).await["conversation"]["summary"],
        Value::Null
    );
    // The summary can also be changed after the end.
    desk.done("completeConversation", json!({ "conversationId": id }))
        .await;
    let summed = update(json!({ "summary": "All of it." })).await;
    assert_eq!(summed["conversation"]["summary"], "All of it.");
    let facts = desk.facts(mark).await;
    let changed: Vec<_> = facts
        .iter()
        .filter(|(kind, _)| kind == "conversation.updated")
        .map(|(_, payload)| (payload["changed"].clone(), payload["version"].clone()))
        .collect();
    assert_eq!(
        changed,
        [
            (json!(["topic", "summary", "maxTurns"]), json!(3)),
            (json!(["summary"]), json!(4)),
            (json!(["summary"]), json!(6)),
        ]
    );
    assert_eq!(facts.len(), 4);
}

#[tokio::test]
async fn max_turns_cannot_be_set_below_the_turns_taken() {
    let desk = Desk::open().await;
    let id = desk.talk(2, json!({})).await;
    desk.takes_turn(&id, 0, "One.").await;
    desk.takes_turn(&id, 1, "Two.").await;
    let most = |turns: i32| json!({ "conversationId": id, "maxTurns": turns });
    // Without a turn left the conversation would never end.
    for turns in [1, 2] {
        let payload = desk.mutate("updateConversation", most(turns)).await;
        assert_eq!(faults(&payload), ["maxTurns: OUT_OF_RANGE"]);
        let message = "`maxTurns` must be at least 3: 2 turns were taken already.";
        assert_eq!(payload["userErrors"][0]["message"], message);
    }
    desk.done("updateConversation", most(3)).await;
    assert_eq!(desk.takes_turn(&id, 0, "Three.").await, None);
    assert_eq!(desk.row(&id).await.end_reason.as_deref(), Some("max_turns"));
    // An ended conversation takes no more turns, so the limit may equal the turns taken.
    desk.done("updateConversation", most(4)).await;
    desk.done("updateConversation", most(3)).await;
    assert_eq!(
        desk.faults("updateConversation", most(2)).await,
        ["maxTurns: OUT_OF_RANGE"]
    );

    // A value from before the bound existed is kept.
    let long = "{ conversations(last: 1) { nodes { id maxTurns turnsTaken topic } } }";
    let long = desk.read(long, "").await["conversations"]["nodes"][0].clone();
    assert_eq!([&long["maxTurns"], &long["turnsTaken"]], [200, 150]);
    let input = json!({ "conversationId": long["id"], "maxTurns": 200, "topic": "Another" });
    desk.done("updateConversation", input).await;
    let input = json!({ "conversationId": long["id"], "maxTurns": 50 });
    assert_eq!(
        desk.faults("updateConversation", input).await,
        ["maxTurns: OUT_OF_RANGE"]
    );
}

#[tokio::test]
async fn editors_change_conversations_in_a_circle_and_owners_those_outside() {
    let desk = Desk::open().await;
    let talks = "query ($id: ID!) { circle(id: $id) { conversations(first: 1, filter: { status: [ACTIVE, PAUSED, COMPLETED] })
        { nodes { id messages(first: 1) { nodes { id } } } } } }";
    let calls = |id: &Value, message: &Value| {
        let mut calls = vec![
            (
                "updateConversation".to_owned(),
                json!({ "conversationId": id, "topic": "" }),
                "conversationId",
            ),
            (
                "deleteConversation".to_owned(),
                json!({ "id": id, "expectedVersion": 0 }),
                "id",
            ),
            (
                "postMessage".to_owned(),
                json!({ "conversationId": id, "content": "" }),
                "conversationId",
            ),
            (
                "pinMessage".to_owned(),
                json!({ "messageId": message, "isPinned": false }),
                "messageId",
            ),
        ];
        let step = |step| {
            let input = json!({ "conversationId": id, "expectedVersion": 0 });
            (named(step), input, "conversationId")
        };
        calls.extend(STEPS.map(step));
        calls
    };
    // The guest can read the library, edit the workshop, and see nothing of the atelier.
    for (name, refusal) in [
        ("Library", Some("FORBIDDEN")),
        ("Workshop", None),
        ("Atelier", Some("NOT_FOUND")),
    ] {
        let (circle, team) = desk.circle(name).await;
        let data = desk.read(talks, &circle).await["circle"]["conversations"]["nodes"][0].clone();
        for (mutation, input, field) in calls(&data["id"], &data["messages"]["nodes"][0]["id"]) {
            let expected = match refusal {
                Some("NOT_FOUND") => format!("NOT_FOUND {field}"),
                Some(code) => code.to_owned(),
                None => {
                    desk.payload(&desk.guest, &mutation, input).await;
                    continue;
                }
            };
            let refused = desk.refusal(&desk.guest, &mutation, input).await;
            assert_eq!(refused, expected, "{name} {mutation}");
        }
        let input = json!({ "topic": "New", "circleId": circle, "participantIds": team[..2] });
        match refusal {
            None => {
                let payload = desk.payload(&desk.guest, "createConversation", input).await;
                assert_eq!(faults(&payload), [""; 0]);
                let made = desk.row(&text(&payload["conversation"]["id"])).await;
                let events = desk.told(Uuid::nil()).await;
                let told = events.iter().find(|event| event.subject_id == made.id);
                let told = told.expect("an event");
                // An event in a circle belongs to the circle's owner.
                assert_eq!(told.actor_user_id, Some(made.owner_id));
                assert_ne!(told.owner_id, Some(made.owner_id));
            }
            Some("NOT_FOUND") => assert_eq!(
                desk.refusal(&desk.guest, "createConversation", input).await,
                "NOT_FOUND circleId"
            ),
            Some(code) => {
                assert_eq!(
                    desk.refusal(&desk.guest, "createConversation", input).await,
                    code
                );
            }
        }
    }
    // A conversation outside circles is visible only to its owner and administrators.
    let alone = json!({ "topic": "Alone", "participantIds": [desk.team[0]], "startNow": true });
    let id = desk.done("createConversation", alone).await["id"].clone();
    let message = desk.says(&text(&id), "Hello.").await["id"].clone();
    for (mutation, input, field) in calls(&id, &message) {
        desk.mutate(&mutation, input.clone()).await;
        desk.payload(&desk.admin, &mutation, input.clone()).await;
        let refused = desk.refusal(&desk.guest, &mutation, input).await;
        assert_eq!(refused, format!("NOT_FOUND {field}"), "{mutation}");
    }
}

#[tokio::test]
async fn conversations_in_an_archived_circle_cannot_be_changed() {
    let desk = Desk::open().await;
    let id = desk.talk(2, json!({})).await;
    let message = desk.says(&id, "Hello.").await["id"].clone();
    let archived = circle::Entity::find_by_id(uuid(&desk.workshop));
    let archived = archived
        .one(&desk.db)
        .await
        .expect("reads")
        .expect("a circle");
    let mut archived = archived.into_active_model();
    archived.status = Set(CircleStatus::Archived);
    let update = circle::Entity::update(archived).exec(&desk.db);
    update.await.expect("updates");
    let before = desk.row(&id).await;
    let mark = desk.mark().await;
    let mut calls = vec![
        ("createConversation".to_owned(), desk.draft(2)),
        (
            "updateConversation".to_owned(),
            json!({ "conversationId": id, "topic": "Another" }),
        ),
        ("deleteConversation".to_owned(), json!({ "id": id })),
        (
            "postMessage".to_owned(),
            json!({ "conversationId": id, "content": "Hello?" }),
        ),
        (
            "pinMessage".to_owned(),
            json!({ "messageId": message, "isPinned": true }),
        ),
    ];
    calls.extend(STEPS.map(|step| (named(step), json!({ "conversationId": id }))));
    for (name, input) in calls {
        assert_eq!(
            desk.faults(&name, input).await,
            ["BAD_TRANSITION"],
            "{name}"
        );
    }
    assert_eq!(desk.row(&id).await, before);
    assert_eq!(desk.facts(mark).await, []);
}

#[tokio::test]
async fn deleting_a_conversation_deletes_its_messages() {
    let desk = Desk::open().await;
    let id = desk.talk(2, json!({})).await;
    let first = desk.says(&id, "Hello.").await["id"].clone();
    let answer = json!({ "conversationId": id, "content": "Hello!", "parentId": first });
    desk.done("postMessage", answer).await;
    let input = json!({ "id": id });
    let payload = desk.mutate("deleteConversation", input.clone()).await;
    assert_eq!(faults(&payload), ["BAD_TRANSITION"]);
    assert_eq!(payload["current"]["id"], *id);
    desk.done("completeConversation", json!({ "conversationId": id }))
        .await;
    let mark = desk.mark().await;
    let payload = desk.mutate("deleteConversation", input.clone()).await;
    assert_eq!(payload["deletedId"], *id);
    assert_eq!(payload["current"], Value::Null);
    let key = uuid(&id);
    let messages = message::Entity::find().filter(message::Column::ConversationId.eq(key));
    let participants =
        participant::Entity::find().filter(participant::Column::ConversationId.eq(key));
    assert_eq!(messages.count(&desk.db).await.expect("counts"), 0);
    assert_eq!(participants.count(&desk.db).await.expect("counts"), 0);
    let told = json!({ "topic": "What to do next", "changed": [], "version": 3 });
    assert_eq!(
        desk.facts(mark).await,
        [("conversation.deleted".to_owned(), told)]
    );
    assert_eq!(
        desk.refusal(&desk.demo, "deleteConversation", input).await,
        "NOT_FOUND id"
    );
    for status in ["PENDING", "PAUSED", "FAILED", "CANCELLED"] {
        let input = json!({ "id": desk.talk_in(status).await });
        assert_eq!(
            desk.faults("deleteConversation", input).await,
            [""; 0],
            "{status}"
        );
    }
}

#[tokio::test]
async fn users_post_to_active_or_paused_conversations_and_agents_only_to_active_ones() {
    let desk = Desk::open().await;
    for (status, user, agent) in [
        ("PENDING", vec!["BAD_TRANSITION"], vec!["BAD_TRANSITION"]),
        ("ACTIVE", vec![], vec![]),
        ("PAUSED", vec![], vec!["BAD_TRANSITION"]),
        ("COMPLETED", vec!["BAD_TRANSITION"], vec!["BAD_TRANSITION"]),
        ("FAILED", vec!["BAD_TRANSITION"], vec!["BAD_TRANSITION"]),
        ("CANCELLED", vec!["BAD_TRANSITION"], vec!["BAD_TRANSITION"]),
    ] {
        let id = desk.talk_in(status).await;
        let before = desk.row(&id).await;
        let input = json!({ "conversationId": id, "content": "Hello." });
        assert_eq!(desk.faults("postMessage", input).await, user, "{status}");
        let turn = desk.turn(&id, 0, "Hello.");
        assert_eq!(desk.faults("postMessage", turn).await, agent, "{status}");
        let after = desk.row(&id).await;
        assert_eq!(after.version, before.version);
        assert_eq!(after.status, before.status);
        if user.len() + agent.len() == 2 {
            assert_eq!(after, before);
        }
    }
}

#[tokio::test]
async fn all_input_errors_of_a_message_are_reported_and_nothing_is_added() {
    let desk = Desk::open().await;
    let id = desk.talk(2, json!({})).await;
    let other = desk.talk(2, json!({})).await;
    let foreign = desk.says(&other, "Elsewhere.").await["id"].clone();
    let before = desk.row(&id).await;
    let mark = desk.mark().await;
    for (other, expected) in [
        (
            json!({ "content": " \n", "agentId": desk.team[5], "parentId": foreign }),
            vec![
                "content: REQUIRED",
                "agentId: NOT_MEMBER",
                "parentId: INVALID",
            ],
        ),
        (
            json!({ "content": "x".repeat(100_001) }),
            vec!["content: TOO_LONG"],
        ),
        (json!({ "content": "a\u{0}b" }), vec!["content: INVALID"]),
        (json!({ "agentId": desk.team[1] }), vec!["agentId: INVALID"]),
    ] {
        let mut input = json!({ "conversationId": id, "content": "Hello." });
        merge(&mut input, other);
        assert_eq!(desk.faults("postMessage", input).await, expected);
    }
    let atelier =
        "query ($id: ID!) { circle(id: $id) { conversations(first: 1, filter: { status: [ACTIVE] })
        { nodes { messages(first: 1) { nodes { id } } } } } }";
    let hidden = desk.read(atelier, &desk.circle("Atelier").await.0).await["circle"]["conversations"]
        ["nodes"][0]["messages"]["nodes"][0]["id"]
        .clone();
    let input = json!({ "conversationId": id, "content": "Hello.", "parentId": hidden });
    assert_eq!(
        desk.refusal(&desk.guest, "postMessage", input).await,
        "NOT_FOUND parentId"
    );
    assert_eq!(desk.row(&id).await, before);
    assert_eq!(desk.facts(mark).await, []);
    let input = json!({ "conversationId": id, "content": "x".repeat(100_000) });
    desk.done("postMessage", input).await;
}

#[tokio::test]
async fn a_message_has_its_author_mentions_and_parent() {
    let desk = Desk::open().await;
    let id = desk.talk(3, json!({})).await;
    let names = "query ($id: ID!) { circle(id: $id) { members(first: 3) { nodes { name model { id } lastActiveAt } } } }";
    let people = desk.read(names, &desk.workshop).await["circle"]["members"]["nodes"].clone();
    let name = |n: usize| text(&people[n]["name"]);
    let mark = desk.mark().await;
    let body = format!(
        "  @{} and @{}: {}",
        name(2).to_uppercase(),
        name(1),
        "ä".repeat(300)
    );
    let asked = desk.says(&id, &body).await;
    assert_eq!(asked["seq"], 1);
    assert_eq!(asked["role"], "USER");
    assert_eq!(asked["authorName"], "Dana Demo");
    assert_eq!(asked["user"]["name"], "Dana Demo");
    assert_eq!(asked["agent"], Value::Null);
    assert_eq!(asked["content"], body.trim());
    assert_eq!(
        asked["mentions"],
        json!([{ "id": desk.team[2] }, { "id": desk.team[1] }])
    );
    let mut turn = desk.turn(&id, 0, "I heard you.");
    turn["parentId"] = asked["id"].clone();
    let said = desk.done("postMessage", turn).await;
    assert_eq!(said["seq"], 2);
    assert_eq!(said["role"], "ASSISTANT");
    assert_eq!(said["authorName"], *name(0));
    assert_eq!(said["agent"]["id"], *desk.team[0]);
    assert_eq!(said["user"], Value::Null);
    assert_eq!(said["model"], people[0]["model"]);
    assert_eq!(said["parent"]["id"], asked["id"]);
    assert_eq!(said["mentions"], json!([]));
    let talk = &said["conversation"];
    assert_eq!([&talk["turnsTaken"], &talk["version"]], [1, 2]);
    assert!(talk["lastMessageAt"].is_string());
    let after = desk.read(names, &desk.workshop).await["circle"]["members"]["nodes"].clone();
    assert_ne!(after[0]["lastActiveAt"], people[0]["lastActiveAt"]);
    assert_eq!(after[1], people[1]);

    let row = message::Entity::find_by_id(uuid(&text(&asked["id"])));
    let row = row.one(&desk.db).await.expect("reads").expect("a message");
    assert_eq!(
        row.mentions.0,
        [2, 1].map(|n| uuid(&desk.team[n]).to_string())
    );
    let excerpt: String = body.trim().chars().take(200).collect();
    let told = desk.told(mark).await;
    let kinds: Vec<_> = told.iter().map(|event| event.kind.as_str()).collect();
    let kinds_expected = [
        "message.added",
        "message.added",
        "conversation.turn_completed",
    ];
    assert_eq!(kinds, kinds_expected);
    let payload = |seq: i32, role: &str, excerpt: &str| json!({ "conversationId": id, "seq": seq, "role": role, "excerpt": excerpt, "v": 1 });
    assert_eq!(told[0].payload, payload(1, "USER", &excerpt));
    assert_eq!(told[0].agent_id, None);
    assert_eq!(told[1].payload, payload(2, "ASSISTANT", "I heard you."));
    // The event also names the user who posted for the agent.
    for event in &told {
        assert_eq!(event.actor_user_id, row.user_id);
    }
    let speaker = Some(uuid(&desk.team[0]));
    for event in &told[1..] {
        assert_eq!([event.agent_id, event.actor_agent_id], [speaker, speaker]);
        assert_eq!(event.circle_id, Some(uuid(&desk.workshop)));
    }
    let payload = json!({ "topic": "What to do next", "turn": 1, "nextSpeakerId": desk.team[1],
        "version": 2, "v": 1 });
    assert_eq!(told[2].payload, payload);
}

#[tokio::test]
async fn the_last_turn_or_an_end_marker_completes_a_conversation() {
    let desk = Desk::open().await;
    for (turns, words, reason) in [
        (2, "That is all I know.", "max_turns"),
        (10, "So be it. [Terminé]", "marker"),
        (2, "[done]", "marker"),
    ] {
        let id = desk.talk(2, json!({ "maxTurns": turns })).await;
        desk.says(&id, "Write [DONE] when you are.").await;
        assert_eq!(desk.takes_turn(&id, 0, "I am not done.").await, Some(1));
        let mark = desk.mark().await;
        let last = desk.done("postMessage", desk.turn(&id, 1, words)).await;
        let talk = &last["conversation"];
        assert_eq!(talk["status"], "COMPLETED");
        assert_eq!(talk["endReason"], reason);
        assert_eq!(talk["nextSpeaker"], Value::Null);
        assert_eq!([&talk["turnsTaken"], &talk["version"]], [2, 3]);
        assert!(desk.row(&id).await.ended_at.is_some());
        let topic = "What to do next";
        let expected = [
            (
                "message.added",
                json!({ "conversationId": id, "seq": 3, "role": "ASSISTANT", "excerpt": words }),
            ),
            (
                "conversation.turn_completed",
                json!({ "topic": topic, "turn": 2, "nextSpeakerId": null, "version": 2 }),
            ),
            (
                "conversation.ended",
                json!({ "topic": topic, "fromStatus": "ACTIVE", "toStatus": "COMPLETED", "reason": reason, "version": 3 }),
            ),
        ];
        let told = desk.facts(mark).await;
        assert_eq!(
            told,
            expected.map(|(kind, payload)| (kind.to_owned(), payload))
        );
        let speaker = Some(uuid(&desk.team[1]));
        for event in desk.told(mark).await {
            assert_eq!(event.actor_agent_id, speaker);
        }
        let late = json!({ "conversationId": id, "content": "One more thing." });
        assert_eq!(desk.faults("postMessage", late).await, ["BAD_TRANSITION"]);
    }
}

#[tokio::test]
async fn each_turn_strategy_selects_the_next_speaker() {
    let desk = Desk::open().await;
    let names = "query ($id: ID!) { circle(id: $id) { members(first: 4) { nodes { name } } } }";
    let people = desk.read(names, &desk.workshop).await["circle"]["members"]["nodes"].clone();
    let name = |n: usize| text(&people[n]["name"]);
    let at = |n: usize| format!("Well, @{}?", name(n));
    let strategy = |name: &str| json!({ "turnStrategy": name });

    let id = desk.talk(3, strategy("ROUND_ROBIN")).await;
    for (speaker, next) in [(0, 1), (1, 2), (2, 0), (0, 1)] {
        assert_eq!(desk.takes_turn(&id, speaker, &at(0)).await, Some(next));
        assert_eq!(desk.next(&desk.says(&id, &at(0)).await), Some(next));
    }

    let id = desk.talk(4, strategy("MENTION_BASED")).await;
    assert_eq!(desk.next(&desk.says(&id, &at(2)).await), Some(2));
    assert_eq!(desk.takes_turn(&id, 2, &at(3)).await, Some(3));
    // The round robin continues with the second, then the third.
    assert_eq!(desk.next(&desk.says(&id, "Hm.").await), Some(1));
    assert_eq!(desk.takes_turn(&id, 1, &at(1)).await, Some(2));

    let id = desk.talk(4, strategy("FREE_FORM")).await;
    assert_eq!(desk.takes_turn(&id, 3, &at(2)).await, Some(2));
    let next = desk.takes_turn(&id, 1, "Out of turn.").await;
    assert!(next.is_some_and(|next| next != 1));
    assert_eq!(desk.next(&desk.says(&id, "Hm.").await), next);
    let stranger = desk.turn(&id, 5, "And I?");
    assert_eq!(
        desk.faults("postMessage", stranger).await,
        ["agentId: NOT_MEMBER"]
    );

    let mut led = strategy("FACILITATOR_LED");
    led["facilitatorId"] = json!(desk.team[1]);
    let id = desk.talk(4, led).await;
    let ask = format!("Let me ask {} first.", name(3));
    for (speaker, words, next) in [
        (1, ask.as_str(), 3),
        (3, &at(0), 1),
        (1, "Who else?", 1),
        (1, &at(0), 0),
    ] {
        assert_eq!(desk.takes_turn(&id, speaker, words).await, Some(next));
    }
}

#[tokio::test]
async fn concurrent_messages_are_numbered_without_gaps() {
    const EACH: usize = 12;
    let desk = Desk::open().await;
    let beside = desk.server.beside(|_| ()).await;
    let alone = json!({ "topic": "Alone", "participantIds": desk.team[..2], "startNow": true });
    let alone = desk.done("createConversation", alone).await;
    let talks = [desk.talk(2, json!({})).await, text(&alone["id"])];
    let post = "mutation ($input: PostMessageInput!) { postMessage(input: $input) { message { seq } userErrors { field code } } }";
    let mark = desk.mark().await;
    let posts = (0..2 * EACH).map(|n| {
        let server = if n % 3 == 0 { &beside } else { &desk.server };
        let input = json!({ "conversationId": talks[n % 2], "content": format!("Number {n}.") });
        server.ask(Some(&desk.demo), post, json!({ "input": input }))
    });
    // At the same time, several requests take the turn of the same agent.
    let turns = (0..6).map(|n| {
        let server = if n % 2 == 0 { &beside } else { &desk.server };
        let input = desk.turn(&talks[0], 0, "My turn.");
        server.ask(Some(&desk.demo), post, json!({ "input": input }))
    });
    let (posts, turns) = futures_util::future::join(join_all(posts), join_all(turns)).await;
    for answer in &posts {
        let payload = &answer["data"]["postMessage"];
        assert!(payload["message"]["seq"].is_i64(), "{answer}");
    }
    let mut outcomes: Vec<_> = turns
        .iter()
        .map(|answer| faults(&answer["data"]["postMessage"]).concat())
        .collect();
    outcomes.sort();
    assert_eq!(outcomes[0], "");
    assert_eq!(outcomes[1..], ["agentId: INVALID"; 5]);

    for (talk, count) in talks.iter().zip([EACH + 1, EACH]) {
        let row = desk.row(talk).await;
        let messages = message::Entity::find()
            .filter(message::Column::ConversationId.eq(row.id))
            .order_by_asc(message::Column::Seq);
        let messages = messages.all(&desk.db).await.expect("reads");
        let seqs: Vec<_> = messages.iter().map(|message| message.seq).collect();
        let expected: Vec<_> = (1..).take(count).collect();
        assert_eq!(seqs, expected);
        assert_eq!(Some(&row.last_seq), expected.last());
        assert_eq!(row.turns_taken, i32::from(count > EACH));
    }
    let added = desk.facts(mark).await;
    let added = added.iter().filter(|(kind, _)| kind == "message.added");
    let numbers: BTreeSet<_> = added
        .map(|(_, payload)| format!("{} {}", payload["conversationId"], payload["seq"]))
        .collect();
    assert_eq!(numbers.len(), 2 * EACH + 1);
}

#[tokio::test]
async fn posting_to_a_conversation_of_any_size_takes_few_statements() {
    let desk = Desk::open().await;
    let (assembly, crowd) = desk.circle("Assembly").await;
    let long = "query ($id: ID!) { circle(id: $id) { conversations(last: 1) { nodes { id nextSpeaker { id } } } } }";
    let long = desk.read(long, &assembly).await["circle"]["conversations"]["nodes"][0].clone();
    let mut talks = vec![(text(&long["id"]), text(&long["nextSpeaker"]["id"]))];
    for size in [2, 20] {
        let input = json!({ "topic": "Much", "circleId": assembly, "participantIds": crowd[..size], "startNow": true });
        let made = desk.done("createConversation", input).await;
        talks.push((text(&made["id"]), crowd[0].clone()));
    }
    let post = "mutation ($input: PostMessageInput!) { postMessage(input: $input) { message { id seq } userErrors { code } } }";
    for (id, agent) in talks {
        for input in [
            json!({ "conversationId": id, "content": "Hello.", "agentId": agent }),
            json!({ "conversationId": id, "content": "Hello." }),
        ] {
            let before = desk.server.statements();
            let answer = desk
                .server
                .ask(Some(&desk.demo), post, json!({ "input": input }))
                .await;
            assert!(
                answer["data"]["postMessage"]["message"]["id"].is_string(),
                "{answer}"
            );
            let statements = desk.server.statements() - before;
            assert!(statements <= 12 + BESIDE, "{statements}");
        }
    }
}

#[tokio::test]
async fn creating_a_conversation_of_twenty_takes_few_statements() {
    let desk = Desk::open().await;
    let (assembly, crowd) = desk.circle("Assembly").await;
    let create = "mutation ($input: CreateConversationInput!) { createConversation(input: $input) { conversation { id } userErrors { code } } }";
    for size in [2, 20] {
        let input = json!({ "topic": "Many", "circleId": assembly, "participantIds": crowd[..size], "startNow": true });
        let before = desk.server.statements();
        let answer = desk
            .server
            .ask(Some(&desk.demo), create, json!({ "input": input }));
        assert!(answer.await["data"]["createConversation"]["conversation"]["id"].is_string());
        let statements = desk.server.statements() - before;
        assert!(statements <= 9 + BESIDE, "{statements}");
    }
}

#[tokio::test]
async fn pinning_a_pinned_message_again_creates_no_event() {
    let desk = Desk::open().await;
    let id = desk.talk(2, json!({})).await;
    desk.takes_turn(&id, 0, "Remember this.").await;
    let said = desk.says(&id, "I will.").await["id"].clone();
    let turn = "query ($id: ID!) { conversation(id: $id) { messages(first: 1) { nodes { id } } } }";
    let turn = desk.read(turn, &id).await["conversation"]["messages"]["nodes"][0]["id"].clone();
    desk.done("completeConversation", json!({ "conversationId": id }))
        .await;
    let before = desk.row(&id).await;
    let mark = desk.mark().await;
    let pin = |message: &Value, is_pinned: bool| {
        desk.done(
            "pinMessage",
            json!({ "messageId": message, "isPinned": is_pinned }),
        )
    };
    assert_eq!(pin(&said, false).await["isPinned"], false);
    for pinned in join_all((0..4).map(|_| pin(&turn, true))).await {
        assert_eq!(pinned["isPinned"], true);
    }
    assert_eq!(pin(&turn, false).await["isPinned"], false);
    assert_eq!(pin(&turn, true).await["isPinned"], true);
    let pinned = |is_pinned: bool| {
        let payload = json!({ "conversationId": id, "seq": 1, "role": "ASSISTANT", "excerpt": "Remember this.",
            "isPinned": is_pinned });
        ("message.pinned".to_owned(), payload)
    };
    assert_eq!(
        desk.facts(mark).await,
        [pinned(true), pinned(false), pinned(true)]
    );
    for event in desk.told(mark).await {
        assert_eq!(event.agent_id, Some(uuid(&desk.team[0])));
        assert_eq!(event.actor_user_id, Some(before.owner_id));
        assert_eq!(event.actor_agent_id, None);
    }
    assert_eq!(desk.row(&id).await, before);
}

#[tokio::test]
async fn conversation_events_appear_in_the_feed_of_the_circle() {
    let desk = Desk::open().await;
    let latest = "query ($id: ID!) { circle(id: $id) { events(first: 1) { nodes { cursor } } } }";
    let latest =
        desk.read(latest, &desk.workshop).await["circle"]["events"]["nodes"][0]["cursor"].clone();
    let id = desk.talk(2, json!({ "maxTurns": 1 })).await;
    desk.says(&id, "Say it in one sentence.").await;
    desk.takes_turn(&id, 0, "As you wish.").await;
    let said = "query ($id: ID!) { conversation(id: $id) { messages(last: 1) { nodes { id } } } }";
    let said = desk.read(said, &id).await["conversation"]["messages"]["nodes"][0]["id"].clone();
    desk.done("pinMessage", json!({ "messageId": said, "isPinned": true }))
        .await;

    let feed = "query ($id: ID!, $before: String) { circle(id: $id) { events(last: 50, before: $before) { nodes { type actor { __typename }
        ... on ConversationEvent { conversationId fromStatus toStatus turn reason }
        ... on MessageEvent { conversationId seq excerpt isPinned message { content } } } } } }";
    let variables = json!({ "id": desk.workshop, "before": latest });
    let mut nodes = Vec::new();
    for _ in 0..1_000 {
        let answer = desk
            .server
            .ask(Some(&desk.guest), feed, variables.clone())
            .await;
        nodes.clear();
        nodes.extend(
            list(&answer["data"]["circle"]["events"]["nodes"])
                .rev()
                .cloned(),
        );
        if nodes.len() >= 7 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let (user, agent) = (
        json!({ "__typename": "User" }),
        json!({ "__typename": "Agent" }),
    );
    let of = |kind: &str, actor: &Value, other: Value| {
        let mut node = json!({ "type": kind, "actor": actor, "conversationId": id });
        merge(&mut node, other);
        node
    };
    let step = |from: Value, to: Value, turn: Value, reason: Value| json!({ "fromStatus": from, "toStatus": to, "turn": turn, "reason": reason });
    let said = |seq: i32, words: &str, is_pinned: Value| {
        json!({ "seq": seq, "excerpt": words, "isPinned": is_pinned,
        "message": { "content": words } })
    };
    let none = || Value::Null;
    assert_eq!(
        nodes,
        [
            of(
                "CONVERSATION_CREATED",
                &user,
                step(none(), none(), none(), none())
            ),
            of(
                "CONVERSATION_STARTED",
                &user,
                step(json!("PENDING"), json!("ACTIVE"), none(), none())
            ),
            of(
                "MESSAGE_ADDED",
                &user,
                said(1, "Say it in one sentence.", none())
            ),
            of("MESSAGE_ADDED", &agent, said(2, "As you wish.", none())),
            of(
                "CONVERSATION_TURN_COMPLETED",
                &agent,
                step(none(), none(), json!(1), none())
            ),
            of(
                "CONVERSATION_ENDED",
                &agent,
                step(
                    json!("ACTIVE"),
                    json!("COMPLETED"),
                    none(),
                    json!("max_turns")
                )
            ),
            of(
                "MESSAGE_PINNED",
                &user,
                said(2, "As you wish.", json!(true))
            ),
        ]
    );
}

/// A circle of the demo user that the guest can edit, with two agents, and conversations of the guest in these states.
struct Room {
    circle: Value,
    agents: Vec<Value>,
    talks: Vec<Value>,
}

impl Desk {
    /// The payload of a mutation, which must have no user errors.
    async fn gets(&self, token: &str, name: &str, shown: &str, input: Value) -> Value {
        let kind = format!("{}{}Input", name[..1].to_uppercase(), &name[1..]);
        let kind = match name {
            "deleteCircle" | "deleteAgent" => "DeleteInput",
            "stopCircle" | "archiveCircle" => "CircleActionInput",
            "resumeConversation" => "ConversationActionInput",
            _ => &kind,
        };
        let query = format!(
            "mutation ($input: {kind}!) {{ {name}(input: $input) {{ {shown} userErrors {{ field code }} }} }}"
        );
        let answer = self
            .server
            .ask(Some(token), &query, json!({ "input": input }))
            .await;
        let payload = &answer["data"][name];
        assert_eq!(payload["userErrors"], json!([]), "{name}: {answer}");
        payload.clone()
    }

    async fn room(&self, name: &str, states: &[&str]) -> Room {
        let mut agents = Vec::new();
        for number in [1, 2] {
            let input = json!({ "name": format!("{name} {number}") });
            let made = self.gets(&self.demo, "createAgent", "agent { id }", input);
            agents.push(made.await["agent"]["id"].clone());
        }
        let members: Vec<_> = agents.iter().map(|id| json!({ "agentId": id })).collect();
        let input = json!({ "name": name, "members": members });
        let made = self.gets(&self.demo, "createCircle", "circle { id }", input);
        let circle = made.await["circle"]["id"].clone();
        let input = json!({ "circleId": circle, "email": "guest@example.com", "role": "EDITOR" });
        self.gets(&self.demo, "shareCircle", "circle { id }", input)
            .await;
        let mut talks = Vec::new();
        for state in states {
            let input = json!({ "topic": state, "circleId": circle, "participantIds": agents,
                "startNow": *state != "PENDING" });
            let made = self.payload(&self.guest, "createConversation", input).await;
            let id = made["conversation"]["id"].clone();
            let step = match *state {
                "PAUSED" => "pauseConversation",
                "COMPLETED" => "completeConversation",
                _ => "",
            };
            if !step.is_empty() {
                self.payload(&self.guest, step, json!({ "conversationId": id }))
                    .await;
            }
            talks.push(id);
        }
        Room {
            circle,
            agents,
            talks,
        }
    }
}

#[tokio::test]
async fn deleting_a_circle_ends_its_conversations() {
    let desk = Desk::open().await;
    let room = desk
        .room("Gone", &["PENDING", "ACTIVE", "PAUSED", "COMPLETED"])
        .await;
    let ids: Vec<_> = room.talks.iter().map(text).collect();
    let completed = desk.row(&ids[3]).await;
    let mark = desk.mark().await;
    let input = json!({ "id": room.circle });
    desk.gets(&desk.demo, "deleteCircle", "deletedId", input)
        .await;

    let told = desk.told(mark).await;
    let circle = Some(uuid(&text(&room.circle)));
    assert_eq!(told.len(), 5);
    for (n, (from, version)) in [("PENDING", 2), ("ACTIVE", 3), ("PAUSED", 4)]
        .iter()
        .enumerate()
    {
        let row = desk.row(&ids[n]).await;
        assert_eq!(row.status, ConversationStatus::Cancelled);
        assert_eq!((row.circle_id, row.version), (None, *version));
        assert_eq!(row.end_reason.as_deref(), Some("cancelled"));
        assert_eq!(row.next_speaker_id, None);
        assert_eq!(row.ended_at, Some(row.updated_at));
        let event = &told[n];
        assert_eq!(event.kind, "conversation.ended");
        assert_eq!((event.subject_id, event.circle_id), (row.id, circle));
        let payload = json!({ "topic": from, "fromStatus": from, "toStatus": "CANCELLED", "reason": "cancelled",
            "version": version, "v": 1 });
        assert_eq!(event.payload, payload);
    }
    assert_eq!(told[3].kind, "circle.unshared");
    assert_eq!(told[4].kind, "circle.deleted");
    let left = desk.row(&ids[3]).await;
    assert_eq!(left.circle_id, None);
    assert_eq!(
        (left.status, left.version),
        (ConversationStatus::Completed, completed.version)
    );

    // Agents of other users can no longer be used there, and their owner can delete them.
    for id in &room.talks {
        let turn = json!({ "conversationId": id, "content": "Go on.", "agentId": room.agents[0] });
        let payload = desk.payload(&desk.guest, "postMessage", turn).await;
        assert!(faults(&payload).contains(&"BAD_TRANSITION".to_owned()));
    }
    for id in &room.agents {
        let input = json!({ "id": id });
        desk.gets(&desk.demo, "deleteAgent", "deletedId", input)
            .await;
    }
}

#[tokio::test]
async fn deleting_a_circle_with_any_number_of_conversations_takes_few_statements() {
    let desk = Desk::open().await;
    for size in [1, 12] {
        let room = desk
            .room(&format!("Room {size}"), &vec!["ACTIVE"; size])
            .await;
        let before = desk.server.statements();
        let input = json!({ "id": room.circle });
        desk.gets(&desk.demo, "deleteCircle", "deletedId", input)
            .await;
        let statements = desk.server.statements() - before;
        assert!(statements <= 7 + BESIDE, "{size}: {statements}");
    }
}

#[tokio::test]
async fn archiving_a_circle_pauses_its_conversations() {
    let desk = Desk::open().await;
    let room = desk.room("Away", &["PENDING", "ACTIVE"]).await;
    let mark = desk.mark().await;
    let input = json!({ "circleId": room.circle });
    desk.gets(&desk.demo, "archiveCircle", "circle { id }", input)
        .await;
    let [pending, active] = [0, 1].map(|n| text(&room.talks[n]));
    assert_eq!(desk.row(&pending).await.status, ConversationStatus::Pending);
    assert_eq!(desk.row(&active).await.status, ConversationStatus::Paused);
    let facts = desk.facts(mark).await;
    let kinds: Vec<_> = facts.iter().map(|(kind, _)| kind.as_str()).collect();
    assert_eq!(kinds, ["circle.archived", "conversation.paused"]);
    let payload =
        json!({ "topic": "ACTIVE", "fromStatus": "ACTIVE", "toStatus": "PAUSED", "version": 3 });
    assert_eq!(facts[1].1, payload);
}

#[tokio::test]
async fn a_conversation_update_succeeds_while_its_circle_is_deleted() {
    let desk = Desk::open().await;
    let id = desk.talk_in("PAUSED").await;
    let gone = desk.db.begin().await.expect("begins");
    circle::Entity::delete_by_id(uuid(&desk.workshop))
        .exec(&gone)
        .await
        .expect("deletes");
    let input = json!({ "conversationId": id, "topic": "Another" });
    let changed = desk.done("updateConversation", input);
    let goes = async {
        // Gives the update time to wait for the circle's row; the result is the same if it has not started.
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        gone.commit().await.expect("commits");
    };
    let (changed, ()) = futures_util::future::join(changed, goes).await;
    assert_eq!(
        (&changed["topic"], &changed["circle"]),
        (&json!("Another"), &Value::Null)
    );
}

#[tokio::test]
async fn losing_access_to_a_circle_ends_access_to_its_conversation_events() {
    let desk = Desk::open().await;
    let room = desk.room("Left", &["ACTIVE"]).await;
    let viewer = desk
        .server
        .ask(Some(&desk.guest), "{ viewer { id } }", json!({}))
        .await;
    let input = json!({ "circleId": room.circle, "userId": viewer["data"]["viewer"]["id"] });
    desk.gets(&desk.demo, "unshareCircle", "circle { id }", input)
        .await;
    let message = desk.says(&text(&room.talks[0]), "Between us.").await;
    let query = "query ($id: ID!) { events(filter: { subjectId: $id }) { nodes { ... on MessageEvent { excerpt } } } }";
    let variables = json!({ "id": message["id"] });
    let heard = async |token: &str| {
        let answer = desk.server.ask(Some(token), query, variables.clone()).await;
        answer["data"]["events"]["nodes"].clone()
    };
    let told = json!([{ "excerpt": "Between us." }]);
    while heard(&desk.demo).await != told {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert_eq!(heard(&desk.guest).await, json!([]));
}
