//! Transfers of circles, agents and projects: requests, answers, rights, events, and concurrent changes.

mod acceptance;
mod access;
mod races;
mod requests;

use serde_json::{Value, json};

use crate::support::actor::{ADMIN, Actor, Demo, GUEST, OWNER, faults, refusal};

/// The fields selected of a transfer.
const TRANSFER: &str =
    "transfer { id kind status name message resolvedAt fromUser { id } toUser { id }
    requestedBy { id } resource { id } } userErrors { field code message }";

/// The answer to a mutation of a transfer.
async fn answer(actor: &Actor, name: &str, input: Value) -> Value {
    actor.mutate(name, TRANSFER, input).await
}

/// The payload of a mutation of a transfer.
async fn payload(actor: &Actor, name: &str, input: Value) -> Value {
    let answer = answer(actor, name, input).await;
    assert_eq!(answer.get("errors"), None, "{name}: {answer}");
    answer["data"][name].clone()
}

/// The transfer that a mutation without user errors returns.
async fn transferred(actor: &Actor, name: &str, input: Value) -> Value {
    let payload = payload(actor, name, input).await;
    assert_eq!(payload["userErrors"], json!([]), "{name}");
    payload["transfer"].clone()
}

/// The error code of a mutation of a transfer that fails.
async fn failure(actor: &Actor, name: &str, input: Value) -> String {
    refusal(&answer(actor, name, input).await)
}

fn this(transfer: &Value) -> Value {
    json!({ "transferId": transfer["id"] })
}

/// A kind of object that can be transferred.
#[derive(Clone, Copy)]
struct Thing {
    create: &'static str,
    update: &'static str,
    delete: &'static str,
    transfer: &'static str,
    /// The name of its id in inputs.
    id: &'static str,
    kind: &'static str,
    event: &'static str,
}

const THINGS: [Thing; 3] = [
    Thing {
        create: "createCircle",
        update: "updateCircle",
        delete: "deleteCircle",
        transfer: "transferCircle",
        id: "circleId",
        kind: "CIRCLE",
        event: "CIRCLE_OWNER_CHANGED",
    },
    Thing {
        create: "createAgent",
        update: "updateAgent",
        delete: "deleteAgent",
        transfer: "transferAgent",
        id: "agentId",
        kind: "AGENT",
        event: "AGENT_OWNER_CHANGED",
    },
    Thing {
        create: "createProject",
        update: "updateProject",
        delete: "deleteProject",
        transfer: "transferProject",
        id: "projectId",
        kind: "PROJECT",
        event: "PROJECT_OWNER_CHANGED",
    },
];

impl Thing {
    /// Creates one with this name and returns its id.
    async fn create(self, actor: &Actor, name: &str) -> Value {
        let saved = actor.saved(self.create, json!({ "name": name })).await;
        saved["id"].clone()
    }

    /// The input of an update to this name.
    fn named(self, id: &Value, name: &str) -> Value {
        let mut input = json!({ "name": name });
        input[self.id] = id.clone();
        input
    }

    /// The input of a transfer to the user with this e-mail address.
    fn to(self, id: &Value, email: &str) -> Value {
        let mut input = json!({ "email": email });
        input[self.id] = id.clone();
        input
    }

    /// Requests a transfer.
    async fn offer(self, actor: &Actor, id: &Value, email: &str) -> Value {
        transferred(actor, self.transfer, self.to(id, email)).await
    }

    /// Transfers one from an actor to another.
    async fn give(self, id: &Value, from: &Actor, email: &str, to: &Actor) -> Value {
        let offered = self.offer(from, id, email).await;
        transferred(to, "acceptTransfer", this(&offered)).await
    }
}

const CIRCLE: Thing = THINGS[0];
const AGENT: Thing = THINGS[1];
const PROJECT: Thing = THINGS[2];

/// The ids of the transfers in an actor's list with this filter, newest first.
async fn listed(actor: &Actor, filter: Value) -> Vec<Value> {
    let query = "query ($filter: TransferFilter) { transfers(first: 100, filter: $filter) {
        totalCount nodes { id } } }";
    let data = actor.ask(query, json!({ "filter": filter })).await;
    let nodes = data["transfers"]["nodes"].as_array().expect("nodes");
    assert_eq!(data["transfers"]["totalCount"], nodes.len());
    nodes.iter().map(|node| node["id"].clone()).collect()
}

/// The status of a transfer, as an administrator sees it.
async fn status(demo: &Demo, transfer: &Value) -> Value {
    let query = "query ($id: ID!) { node(id: $id) { ... on Transfer { status } } }";
    let data = demo.admin.ask(query, json!({ "id": transfer["id"] })).await;
    data["node"]["status"].clone()
}

/// The e-mail address of the owner of an object.
async fn owner(demo: &Demo, id: &Value) -> Value {
    let query = "query ($id: ID!) { node(id: $id) { ... on Circle { owner { email } }
        ... on Agent { owner { email } } ... on Project { owner { email } } } }";
    let data = demo.admin.ask(query, json!({ "id": id })).await;
    data["node"]["owner"]["email"].clone()
}

/// Activates or deactivates a user.
async fn set_active(demo: &Demo, user: &Value, is_active: bool) {
    let input = json!({ "userId": user, "isActive": is_active });
    let answer = demo.admin.mutate("updateUser", "user { isActive }", input);
    let answer = answer.await;
    let user = &answer["data"]["updateUser"]["user"];
    assert_eq!(user["isActive"], is_active, "{answer}");
}
