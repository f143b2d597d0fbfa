//! Conversations and messages: permissions, state changes, turns, and events.

mod changes;
mod circles;
mod creation;
mod messages;

use std::collections::BTreeSet;
use std::ops::Deref;
use std::pin::pin;
use std::slice;

use futures_util::future::join_all;
use gathering_entity::circle::{self, CircleStatus};
use gathering_entity::conversation::{self, ConversationStatus};
use gathering_entity::{event, message, participant};
use sea_orm::prelude::Uuid;
use sea_orm::{
    ColumnTrait, EntityTrait, IntoActiveModel, PaginatorTrait, QueryFilter, QueryOrder, Set,
    TransactionTrait,
};
use serde_json::{Value, json};

use crate::support::actor::{Actor, Demo, OWNER, faults, text};
use crate::support::database::number;
use crate::support::wait::{until, until_some};

/// The transitions of a conversation.
const STEPS: [&str; 5] = ["start", "pause", "resume", "complete", "cancel"];

/// The most statements counted in addition to a mutation's own: authentication, and the delivery of the events of this
/// mutation and of the one before.
const BESIDE: u64 = 7;

/// The demo data, and the objects of its conversations.
struct Desk {
    demo: Demo,
    /// A circle of the demo user that the guest can edit.
    workshop: String,
    /// The ids of its members.
    team: Vec<String>,
}

impl Deref for Desk {
    type Target = Demo;

    fn deref(&self) -> &Demo {
        &self.demo
    }
}

impl Desk {
    async fn open() -> Self {
        let mut desk = Self {
            demo: Demo::start().await,
            workshop: String::new(),
            team: Vec::new(),
        };
        (desk.workshop, desk.team) = desk.circle("Workshop").await;
        desk
    }

    /// The data of a query by the demo user.
    async fn read(&self, query: &str, id: &str) -> Value {
        self.owner.ask(query, json!({ "id": id })).await
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
        text(&self.owner.saved("createConversation", input).await["id"])
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
        let made = self.owner.saved("createConversation", self.draft(2)).await;
        let id = text(&made["id"]);
        for step in steps {
            self.owner
                .saved(&named(step), json!({ "conversationId": id }))
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

    async fn posts(&self, conversation: &str, content: &str) -> Value {
        let input = json!({ "conversationId": conversation, "content": content });
        self.owner.saved("postMessage", input).await
    }

    fn turn(&self, conversation: &str, member: usize, content: &str) -> Value {
        json!({ "conversationId": conversation, "content": content, "agentId": self.team[member] })
    }

    /// Posts a turn of a team member and returns the next speaker, as an index into the team.
    async fn takes_turn(&self, conversation: &str, member: usize, content: &str) -> Option<usize> {
        let turn = self.turn(conversation, member, content);
        self.next(&self.owner.saved("postMessage", turn).await)
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
    async fn events_after(&self, since: Uuid) -> Vec<event::Model> {
        event::Entity::find()
            .filter(event::Column::Id.gt(since))
            .order_by_asc(event::Column::Id)
            .all(&self.db)
            .await
            .expect("reads")
    }

    /// Like [`Desk::events_after`], as the types and payloads of the events.
    async fn payloads_after(&self, since: Uuid) -> Vec<(String, Value)> {
        let events = self.events_after(since).await.into_iter();
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
