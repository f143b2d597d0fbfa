//! Access control: calls every root field as each kind of caller and compares the outcomes with `access.md`.
//!
//! A new root field gets a row automatically. A mutation needs an input in `World::input` that does no harm if it
//! succeeds, because later calls use the same data.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::{env, fs};

use gathering_entity::collaborator::{self, CollaboratorRole};
use gathering_entity::{circle, user};
use sea_orm::prelude::Uuid;
use sea_orm::{ActiveModelTrait, ColumnTrait, EntityTrait, QueryFilter, QueryOrder, Set};
use serde_json::{Value, json};

use crate::support::account::Tokens;
use crate::support::database::PASSWORD;
use crate::support::schema::{Field, Schema};
use crate::support::server::TestServer;
use crate::support::world;

const SNAPSHOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/access.md");

const HEAD: &str = "# Access by caller

Each root field, called as each kind of caller: an anonymous caller, a user without data, a viewer and an editor of the
circle, its owner, and an administrator. `data` is a result, `stream` an open subscription, `null` and `empty` are
results without content, other words are error codes; `userErrors` is an accepted call with rejected input. Generated
by a test. Regenerate with `UPDATE_SNAPSHOTS=1 cargo test --test it access`.

";

/// The circle that all named objects belong to.
const CIRCLE: &str = "circle_01ke6p4zk8e03r000000000001";

/// An account that the mutations under test change.
const SPARE: &str = "spare@example.com";

const CALLERS: [(&str, Option<&str>); 6] = [
    ("anonymous", None),
    ("stranger", Some("stranger@example.com")),
    ("viewer", Some("viewer@example.com")),
    ("editor", Some("editor@example.com")),
    ("owner", Some("demo@example.com")),
    ("admin", Some("admin@example.com")),
];

/// The event types, each with the kind of event to look for and whether the event belongs to the circle.
const EVENTS: [(&str, &str, bool); 10] = [
    ("AgentEvent", "AGENT_CREATED", false),
    ("ProjectEvent", "PROJECT_CREATED", false),
    ("CircleEvent", "CIRCLE_CREATED", true),
    ("SharingEvent", "CIRCLE_SHARED", true),
    ("MemberEvent", "MEMBER_ADDED", true),
    ("TaskEvent", "TASK_CREATED", true),
    ("ConversationEvent", "CONVERSATION_CREATED", true),
    ("MessageEvent", "MESSAGE_ADDED", true),
    ("CatalogueEvent", "MODEL_CHANGED", false),
    ("UserEvent", "USER_UPDATED", false),
];

/// A server with an account for each kind of caller, and the ids of the objects to query.
struct Access {
    server: TestServer,
    schema: Schema,
    /// The id of one object per type.
    things: BTreeMap<String, String>,
}

impl Access {
    async fn new() -> Self {
        let server = TestServer::on(world::database().await, |_| ()).await;
        let schema = Schema::of(&server).await;
        let mut world = Self {
            server,
            schema,
            things: BTreeMap::new(),
        };
        let known = ["demo@example.com", "admin@example.com"];
        let callers = CALLERS.iter().filter_map(|(_, email)| *email);
        let new = callers.filter(|email| !known.contains(email));
        for email in new.chain([SPARE]) {
            world.server.anonymous().register(email).await;
        }
        for email in known {
            world.sign_in(email).await;
        }
        world.share().await;
        world.find_things().await;
        world
    }

    /// Adds the viewer and the editor as collaborators of the circle.
    async fn share(&self) {
        let db = self.server.database().connect().await;
        let circles = circle::Entity::find().order_by_asc(circle::Column::Id);
        let circle = circles.one(&db).await.expect("reads").expect("a circle");
        for (email, role) in [
            ("viewer@example.com", CollaboratorRole::Viewer),
            ("editor@example.com", CollaboratorRole::Editor),
        ] {
            let user = user::Entity::find().filter(user::Column::Email.eq(email));
            let user = user.one(&db).await.expect("reads").expect("a user");
            let row = collaborator::ActiveModel {
                id: Set(Uuid::now_v7()),
                created_at: Set(user.created_at),
                updated_at: Set(user.created_at),
                circle_id: Set(circle.id),
                user_id: Set(user.id),
                role: Set(role),
                added_by: Set(None),
            };
            row.insert(&db).await.expect("inserts");
        }
        db.close().await.expect("closes");
    }

    async fn find_things(&mut self) {
        let events = EVENTS.map(|(ty, kind, in_circle)| {
            let circle = if in_circle { ", circleId: $id" } else { "" };
            format!("{ty}: events(first: 1, filter: {{types: [{kind}]{circle}}}) {{ nodes {{ __typename id }} }} ")
        });
        let query = format!(
            "query ($id: ID!) {{
              circle(id: $id) {{ __typename id owner {{ __typename id }} project {{ __typename id }}
                members(first: 1) {{ edges {{ membership {{ __typename id }} node {{ __typename id
                  persona {{ __typename id }} model {{ __typename id provider {{ __typename id }} }} }} }} }}
                tasks(first: 1) {{ nodes {{ __typename id }} }}
                conversations(first: 1) {{ nodes {{ __typename id messages(first: 1) {{ nodes {{ __typename id }} }} }} }} }}
              auditLog(last: 1) {{ nodes {{ __typename id }} }}
              {} }}",
            events.concat()
        );
        let admin = self.server.token("admin@example.com").await;
        let answer = self
            .server
            .with_token(&admin)
            .answer(&query, json!({ "id": CIRCLE }))
            .await;
        assert_eq!(answer.get("errors"), None);
        find(&answer["data"], &mut self.things);
    }

    fn thing(&self, ty: &str) -> &str {
        let thing = self.things.get(ty);
        thing.unwrap_or_else(|| panic!("find_things finds nothing of the type {ty}"))
    }

    /// The calls of a query field, each as its label in the table and its arguments.
    fn calls(&self, field: &Field) -> Vec<(String, Value)> {
        let required: Vec<_> = field
            .required()
            .map(|argument| (&*argument.name, &*argument.ty))
            .collect();
        let is_any = self.schema.is_abstract(field.named());
        let types = || self.schema.get(field.named()).possible.iter();
        let named = |ty: &String| format!("{}({ty})", field.name);
        let mut calls = match *required {
            [] => vec![(field.name.clone(), json!({}))],
            [("id", "ID!")] if is_any => {
                let call = |ty: &String| (named(ty), json!({ "id": self.thing(ty) }));
                types().map(call).collect()
            }
            [("ids", "[ID!]!")] if is_any => {
                let call = |ty: &String| (named(ty), json!({ "ids": [self.thing(ty)] }));
                types().map(call).collect()
            }
            [("id", "ID!")] => vec![(
                field.name.clone(),
                json!({ "id": self.thing(field.named()) }),
            )],
            [("circleId", "ID!")] => {
                vec![(field.name.clone(), json!({ "circleId": CIRCLE }))]
            }
            [("conversationId", "ID!")] => vec![(
                field.name.clone(),
                json!({ "conversationId": self.thing("Conversation") }),
            )],
            _ => panic!("add the arguments of the query {} here", field.name),
        };
        if field.name == "taskUpdated" {
            calls = vec![
                (named(&"circleId".to_owned()), json!({ "circleId": CIRCLE })),
                (
                    named(&"assigneeId".to_owned()),
                    json!({ "assigneeId": self.thing("Agent") }),
                ),
            ];
        }
        if field.name == "agentStatusChanged" {
            let agents = json!({ "agentIds": [self.thing("Agent")] });
            calls.push((named(&"agentIds".to_owned()), agents));
        }
        if field.argument("userId").is_some() {
            let other_user = json!({ "userId": self.thing("User") });
            calls.push((format!("{}(userId)", field.name), other_user));
        }
        calls
    }

    /// An input that leaves the data usable for later calls if the mutation succeeds.
    async fn input(&self, mutation: &str, caller: &str) -> Value {
        match mutation {
            "register" => {
                json!({ "email": format!("new-{caller}@example.com"), "password": PASSWORD, "name": "New" })
            }
            "login" => json!({ "email": SPARE, "password": PASSWORD }),
            "refreshSession" => {
                json!({ "refreshToken": self.sign_in(SPARE).await.refresh })
            }
            "logout" => json!({}),
            "changePassword" => {
                json!({ "currentPassword": "not this one", "newPassword": PASSWORD })
            }
            "revokeSession" => {
                let owner = self.sign_in("demo@example.com").await;
                let query = "{ sessions(first: 1) { nodes { id isCurrent } } }";
                let answer = self
                    .server
                    .with_token(&owner.access)
                    .answer(query, json!({}))
                    .await;
                let session = &answer["data"]["sessions"]["nodes"][0];
                assert_eq!(session["isCurrent"], true);
                json!({ "sessionId": session["id"] })
            }
            "updateProfile" => json!({ "name": "A name" }),
            "updateUser" => {
                let token = self.server.token(SPARE).await;
                let viewer = self
                    .server
                    .with_token(&token)
                    .answer("{ viewer { id } }", json!({}))
                    .await;
                json!({ "userId": viewer["data"]["viewer"]["id"], "name": "Spare" })
            }
            "createProvider" => json!({ "name": format!("new-{caller}"), "displayName": "New" }),
            "updateProvider" => json!({ "providerId": self.thing("Provider") }),
            "deleteProvider" => json!({ "id": self.thing("Provider") }),
            "createModel" => {
                let name = format!("new-{caller}");
                json!({ "providerId": self.thing("Provider"), "name": name, "displayName": "New" })
            }
            "updateModel" => json!({ "modelId": self.thing("Model") }),
            "deleteModel" => json!({ "id": self.thing("Model") }),
            "createPersona" => {
                json!({ "name": format!("new-{caller}"), "displayName": "New", "role": "None" })
            }
            "updatePersona" => json!({ "personaId": self.thing("Persona") }),
            "deletePersona" => json!({ "id": self.thing("Persona") }),
            "createProject" | "createAgent" => json!({ "name": format!("new-{caller}") }),
            "updateProject" => json!({ "projectId": self.thing("Project") }),
            // A caller who may delete projects gets a new project to delete.
            "deleteProject" if matches!(caller, "owner" | "admin") => {
                let create = "mutation ($input: CreateProjectInput!) { createProject(input: $input) { project { id } } }";
                let input = json!({ "input": { "name": format!("doomed-{caller}") } });
                let made = self.server.graphql(create, input).await;
                json!({ "id": made["data"]["createProject"]["project"]["id"] })
            }
            "deleteProject" => json!({ "id": self.thing("Project") }),
            "updateAgent" => json!({ "agentId": self.thing("Agent") }),
            "deleteAgent" => json!({ "id": self.thing("Agent"), "expectedVersion": 0 }),
            _ => self.input_in_circle(mutation).await,
        }
    }

    /// As [`Access::input`], for mutations of a circle or in one.
    async fn input_in_circle(&self, mutation: &str) -> Value {
        match mutation {
            "createConversation" => {
                json!({ "topic": "", "circleId": CIRCLE, "participantIds": [self.thing("Agent")] })
            }
            "updateConversation" => {
                json!({ "conversationId": self.thing("Conversation"), "topic": "" })
            }
            "startConversation"
            | "pauseConversation"
            | "resumeConversation"
            | "completeConversation"
            | "cancelConversation" => {
                json!({ "conversationId": self.thing("Conversation"), "expectedVersion": 0 })
            }
            "deleteConversation" => {
                json!({ "id": self.thing("Conversation"), "expectedVersion": 0 })
            }
            "postMessage" => {
                json!({ "conversationId": self.thing("Conversation"), "content": "" })
            }
            "pinMessage" => json!({ "messageId": self.thing("Message"), "isPinned": false }),
            "createCircle" => json!({ "name": "A circle" }),
            // The circle is running, so none of these changes it.
            "updateCircle" | "startCircle" | "archiveCircle" | "restoreCircle" => {
                json!({ "circleId": CIRCLE })
            }
            "pauseCircle" | "stopCircle" => json!({ "circleId": CIRCLE, "expectedVersion": 0 }),
            "deleteCircle" => json!({ "id": CIRCLE }),
            "shareCircle" => {
                json!({ "circleId": CIRCLE, "email": "viewer@example.com", "role": "VIEWER" })
            }
            "unshareCircle" => json!({ "circleId": CIRCLE, "userId": self.thing("User") }),
            "addCircleMembers" => {
                json!({ "circleId": CIRCLE, "members": [{ "agentId": self.thing("Agent") }] })
            }
            "updateCircleMember" => json!({ "memberId": self.thing("CircleMember") }),
            "removeCircleMember" => json!({ "memberId": self.former_member().await }),
            "createTask" => json!({ "circleId": CIRCLE, "title": "A task" }),
            "updateTask" => json!({ "taskId": self.thing("Task"), "title": "A task" }),
            "deleteTask" => json!({ "id": self.thing("Task"), "expectedVersion": 0 }),
            "assignTask" | "unassignTask" | "startTask" | "unblockTask" | "approveTask"
            | "cancelTask" | "reopenTask" => {
                json!({ "taskId": self.thing("Task"), "expectedVersion": 0 })
            }
            "blockTask" | "failTask" | "rejectTask" => {
                json!({ "taskId": self.thing("Task"), "reason": "Why.", "expectedVersion": 0 })
            }
            "submitTask" => {
                json!({ "taskId": self.thing("Task"), "result": "What.", "expectedVersion": 0 })
            }
            _ => panic!("add a harmless input of the mutation {mutation} here"),
        }
    }

    /// The id of a member who has already left the circle.
    async fn former_member(&self) -> Value {
        let members = "query ($id: ID!) { circle(id: $id) { members(first: 100, filter: { includeInactive: true }) {
            edges { membership { id isActive } } } } }";
        let admin = self.server.token("admin@example.com").await;
        let variables = json!({ "id": CIRCLE });
        let answer = self
            .server
            .with_token(&admin)
            .answer(members, variables)
            .await;
        let edges = answer["data"]["circle"]["members"]["edges"].as_array();
        let mut members = edges
            .expect("members")
            .iter()
            .map(|edge| &edge["membership"]);
        let former = members.find(|member| member["isActive"] == false);
        former.expect("a former member")["id"].clone()
    }

    async fn sign_in(&self, email: &str) -> Tokens {
        self.server.anonymous().login(email, PASSWORD).await
    }

    /// The outcome of a call as one or two words.
    async fn outcome(
        &self,
        email: Option<&str>,
        root: &str,
        field: &Field,
        arguments: &Value,
    ) -> String {
        // Each call uses a new session, because it may end it.
        let token = match email {
            Some(email) => Some(self.server.token(email).await),
            None => None,
        };
        let declared = |name: &String| {
            let argument = field.argument(name).expect("is an argument");
            format!("${name}: {}", argument.ty)
        };
        let given: Vec<_> = arguments.as_object().expect("an object").keys().collect();
        let declared: Vec<_> = given.iter().map(|name| declared(name)).collect();
        let passed: Vec<_> = given
            .iter()
            .map(|name| format!("{name}: ${name}"))
            .collect();
        let around = |list: &[String]| match list {
            [] => String::new(),
            list => format!("({})", list.join(", ")),
        };
        let ty = field.named();
        let is_connection = self.schema.node_of(ty).is_some();
        let selection = if is_connection {
            "{ totalCount nodes { __typename } }"
        } else if self.schema.field(ty, "userErrors").is_some() {
            "{ userErrors { code } }"
        } else {
            "{ __typename }"
        };
        let (name, kind) = (&field.name, root.to_lowercase());
        let document = format!(
            "{kind} {} {{ {name}{} {selection} }}",
            around(&declared),
            around(&passed)
        );
        let answer = if root == "Subscription" {
            let Some(error) = self.listen(token.as_deref(), &document, arguments).await else {
                return "stream".to_owned();
            };
            error
        } else {
            let (token, variables) = (token.as_deref(), arguments.clone());
            self.server.caller(token).answer(&document, variables).await
        };
        if let Some(errors) = answer.get("errors") {
            assert_eq!(
                errors.as_array().map(Vec::len),
                Some(1),
                "{document}: {answer}"
            );
            return text(&errors[0]["extensions"]["code"]);
        }
        let value = &answer["data"][name];
        if let Some(error) = value["userErrors"].get(0) {
            return format!("userErrors {}", text(&error["code"]));
        }
        let is_empty = |list: &Value| list.as_array().is_some_and(Vec::is_empty);
        match value {
            Value::Null => "null",
            Value::Array(list) if list.is_empty() => "empty",
            Value::Array(list) if list.iter().all(Value::is_null) => "null",
            _ if is_connection && is_empty(&value["nodes"]) => {
                assert_eq!(value["totalCount"], 0, "{document}");
                "empty"
            }
            _ => "data",
        }
        .to_owned()
    }

    /// The error of a subscription, or `None` if it started.
    async fn listen(
        &self,
        token: Option<&str>,
        document: &str,
        variables: &Value,
    ) -> Option<Value> {
        self.server.until_no_subscriber_is_left().await;
        let response = self
            .server
            .caller(token)
            .listen(document, variables.clone())
            .await;
        if self.server.subscribers().await > 0 {
            return None;
        }
        let text = response.text().await.expect("text");
        let data = text.lines().find_map(|line| line.strip_prefix("data: "));
        Some(serde_json::from_str(data.unwrap_or(&text)).expect("JSON"))
    }

    async fn table(&self) -> String {
        let callers = CALLERS.map(|(name, _)| name);
        let mut table = format!(
            "{HEAD}| field | {} |\n|---|{}\n",
            callers.join(" | "),
            "---|".repeat(callers.len())
        );
        for root in ["Query", "Mutation", "Subscription"] {
            for field in &self.schema.get(root).fields {
                let is_mutation = root == "Mutation";
                let calls = if is_mutation {
                    vec![(field.name.clone(), Value::Null)]
                } else {
                    self.calls(field)
                };
                for (name, arguments) in calls {
                    let mut outcomes = Vec::new();
                    for (caller, email) in CALLERS {
                        let arguments = if is_mutation {
                            json!({ "input": self.input(&name, caller).await })
                        } else {
                            arguments.clone()
                        };
                        outcomes.push(self.outcome(email, root, field, &arguments).await);
                    }
                    writeln!(table, "| `{root}.{name}` | {} |", outcomes.join(" | "))
                        .expect("writes");
                }
            }
        }
        table
    }
}

fn text(value: &Value) -> String {
    value.as_str().expect("a text").to_owned()
}

/// Collects the first object of each type in a response.
fn find(value: &Value, things: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(object) => {
            if let (Some(Value::String(ty)), Some(Value::String(id))) =
                (object.get("__typename"), object.get("id"))
            {
                things.entry(ty.clone()).or_insert_with(|| id.clone());
            }
            object.values().for_each(|value| find(value, things));
        }
        Value::Array(list) => list.iter().for_each(|value| find(value, things)),
        _ => {}
    }
}

#[tokio::test]
async fn every_root_field_answers_each_kind_of_caller_as_documented() {
    let world = Access::new().await;
    let table = world.table().await;
    if env::var_os("UPDATE_SNAPSHOTS").is_some() {
        fs::write(SNAPSHOT, &table).expect("writes");
    }
    let committed = fs::read_to_string(SNAPSHOT).unwrap_or_default();
    for (line, expected) in table.lines().zip(committed.lines()) {
        assert_eq!(
            line, expected,
            "if the difference is intended, rerun with UPDATE_SNAPSHOTS=1"
        );
    }
    assert!(table == committed, "rerun with UPDATE_SNAPSHOTS=1");
}
