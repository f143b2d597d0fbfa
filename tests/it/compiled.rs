//! Compiled queries, compared with the executor on the same database.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::support::actor::{ADMIN, Actor, GUEST, OWNER};
use crate::support::schema::Schema;
use crate::support::server::TestServer;

/// The fields that the executor resolves: they are computed, or depend on the viewer.
const EXECUTED: [&str; 21] = [
    "Agent.events",
    "Agent.recentActivity",
    "Agent.systemPrompt",
    "Circle.events",
    "Circle.metrics",
    "Circle.viewerAccess",
    "CircleMember.agent",
    "CircleMember.workload",
    "Conversation.transcript",
    "Message.mentions",
    "Project.events",
    "Query.apiKeys",
    "Query.auditLog",
    "Query.events",
    "Query.sessions",
    "Query.transfers",
    "Query.users",
    "User.email",
    "User.emailVerifiedAt",
    "User.lastLoginAt",
    "User.quotaClass",
];

/// How a compiled query reaches the objects of each type.
const PATHS: [(&str, &str); 11] = [
    ("Agent", "agents { nodes {"),
    ("Circle", "circles { nodes {"),
    (
        "CircleMember",
        "circles { nodes { members { edges { membership {",
    ),
    ("Conversation", "conversations { nodes {"),
    ("Message", "conversations { nodes { messages { nodes {"),
    ("Model", "models { nodes {"),
    ("Persona", "personas { nodes {"),
    ("Project", "projects { nodes {"),
    ("Provider", "providers { nodes {"),
    ("Task", "tasks { nodes {"),
    ("User", "circles { nodes { owner {"),
];

/// A server that compiles queries, and one that does not, on the same database.
struct Pair {
    compiled: TestServer,
    executed: TestServer,
    schema: Schema,
}

/// The response without its extensions, some of which contain times.
#[derive(Debug, Deserialize, PartialEq)]
struct Text {
    data: Option<Value>,
    errors: Option<Value>,
}

#[derive(Deserialize)]
struct Data {
    data: Option<Box<RawValue>>,
}

impl Pair {
    async fn start() -> Self {
        let compiled = TestServer::with(|config| config.limits.read = 100_000).await;
        let executed = compiled
            .beside(|config| {
                config.limits.read = 100_000;
                config.graphql.limits.compiled_queries = 0;
            })
            .await;
        let schema = Schema::of(&compiled).await;
        Self {
            compiled,
            executed,
            schema,
        }
    }

    async fn actors(&self, email: &str) -> [Actor; 2] {
        let token = self.compiled.token(email).await;
        [&self.compiled, &self.executed].map(|server| server.with_token(&token))
    }

    /// A program with a key of an agent, which reads the circles of the agent.
    async fn with_key_of_agent(&self) -> [Actor; 2] {
        let owner = self.compiled.actor(OWNER).await;
        let members = "{ circle(id: \"circle_01ke6p4zk8e03r000000000001\") { members(first: 1) { nodes { id } } } }";
        let members = owner.ask(members, Value::Null).await;
        let agent = &members["circle"]["members"]["nodes"][0]["id"];
        let input = json!({ "name": "A key", "scopes": ["READ"], "agentId": agent });
        let created = owner.mutate("createApiKey", "secret", input).await;
        let secret = created["data"]["createApiKey"]["secret"].as_str();
        let secret = secret.unwrap_or_else(|| panic!("{created}"));
        [&self.compiled, &self.executed].map(|server| server.with_token(secret))
    }

    /// The number of root fields that compiled queries have answered.
    fn answered(&self) -> u64 {
        self.compiled.graph().compiled_fields().0
    }
}

/// Compares the responses, byte for byte in `data`. The executor reports the errors of several fields in the order in
/// which the fields complete.
async fn compare([compiled, executed]: &[Actor; 2], query: &str, variables: &Value) -> Value {
    let mut texts = Vec::new();
    for actor in [compiled, executed] {
        let response = actor.send(query, variables.clone()).await;
        texts.push(response.text().await.expect("text"));
    }
    let parsed = texts.iter().map(|text| {
        let parsed = serde_json::from_str::<Text>(text);
        let mut parsed = parsed.unwrap_or_else(|error| panic!("{error}: {text}"));
        if let Some(Value::Array(errors)) = &mut parsed.errors {
            errors.sort_by_key(Value::to_string);
        }
        parsed
    });
    let parsed: Vec<_> = parsed.collect();
    assert_eq!(parsed[0], parsed[1], "{query} {variables}");
    let data = texts.iter().map(|text| {
        let data: Data = serde_json::from_str(text).expect("JSON");
        data.data.map(|data| data.get().to_owned())
    });
    let data: Vec<_> = data.collect();
    assert_eq!(data[0], data[1], "{query} {variables}");
    serde_json::from_str(&texts[0]).expect("JSON")
}

/// Pseudo-random numbers of the generator `SplitMix64`.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let mixed = mixed ^ (mixed >> 31);
        usize::try_from(mixed % bound as u64).expect("a small number")
    }

    fn is_one_in(&mut self, bound: usize) -> bool {
        self.below(bound) == 0
    }
}

/// A random selection on an object type.
fn selection(schema: &Schema, random: &mut Random, ty: &str, depth: usize) -> String {
    let mut parts = vec!["__typename".to_owned()];
    let fields = &schema.get(ty).fields;
    for place in 0..=random.below(6) {
        let field = &fields[random.below(fields.len())];
        let name = field.named();
        let is_executed = EXECUTED.contains(&&*format!("{ty}.{}", field.name))
            || schema.is_abstract(schema.node_of(name).unwrap_or(name));
        if is_executed && !random.is_one_in(20) {
            continue;
        }
        let alias = if random.is_one_in(4) {
            format!("f{place}: ")
        } else {
            String::new()
        };
        if !schema.is_composite(name) {
            parts.push(format!("{alias}{}", field.name));
        } else if depth > 0 && !schema.is_abstract(name) {
            let arguments = if schema.node_of(name).is_some() {
                arguments(random)
            } else {
                String::new()
            };
            // Aliases keep fields with different arguments apart.
            let below = selection(schema, random, name, depth - 1);
            parts.push(format!(
                "p{depth}{place}: {}{arguments} {below}",
                field.name
            ));
        }
    }
    format!("{{ {} }}", parts.join(" "))
}

fn arguments(random: &mut Random) -> String {
    match random.below(7) {
        0 => String::new(),
        1 => "(first: 1)".to_owned(),
        2 => "(first: 3)".to_owned(),
        3 => "(last: 2)".to_owned(),
        4 => "(first: $first)".to_owned(),
        5 => "(first: $first, after: $after)".to_owned(),
        _ => "(first: 5, before: null)".to_owned(),
    }
}

/// A selection of everything on a connection.
fn connection(schema: &Schema, name: &str, node: &str) -> String {
    let edge = name.replace("Connection", "Edge");
    let edge = schema.get(&edge).fields.iter().map(|field| {
        let below = match &*field.name {
            "node" => node.to_owned(),
            _ if schema.is_composite(field.named()) => plain(schema, field.named()),
            _ => String::new(),
        };
        format!("{} {below}", field.name)
    });
    let edge: Vec<_> = edge.collect();
    format!(
        "{{ __typename totalCount edges {{ __typename {} }} nodes {node}
           pageInfo {{ __typename hasNextPage hasPreviousPage startCursor endCursor }} }}",
        edge.join(" ")
    )
}

/// The fields of a type without arguments and subfields, except those that the executor resolves.
fn plain(schema: &Schema, ty: &str) -> String {
    let fields = schema.get(ty).fields.iter().filter(|field| {
        field.arguments.is_empty()
            && !schema.is_composite(field.named())
            && !EXECUTED.contains(&&*format!("{ty}.{}", field.name))
    });
    let names: Vec<_> = fields.map(|field| field.name.as_str()).collect();
    format!("{{ __typename {} }}", names.join(" "))
}

#[tokio::test]
async fn every_field_has_the_same_value_as_from_the_executor() {
    let pair = Pair::start().await;
    let schema = &pair.schema;
    let mut executed = BTreeSet::new();
    for email in [OWNER, GUEST, ADMIN] {
        let actors = pair.actors(email).await;
        let mut queries = Vec::new();
        for root in &schema.get("Query").fields {
            if let Some(node) = schema.node_of(root.named()) {
                let node = if schema.is_abstract(node) {
                    "{ __typename }".to_owned()
                } else {
                    plain(schema, node)
                };
                let below = connection(schema, root.named(), &node);
                queries.push((
                    format!("Query.{}", root.name),
                    format!("{{ {} {below} }}", root.name),
                ));
            }
        }
        for (ty, path) in PATHS {
            for field in &schema.get(ty).fields {
                let name = field.named();
                let below = match schema.node_of(name) {
                    Some(node) if schema.is_abstract(node) => "{ nodes { __typename } }".to_owned(),
                    Some(node) => {
                        format!(
                            "(first: 3) {}",
                            connection(schema, name, &plain(schema, node))
                        )
                    }
                    None if schema.is_composite(name) => "{ __typename }".to_owned(),
                    None => String::new(),
                };
                let closed = "}".repeat(1 + path.matches('{').count());
                let query = format!("{{ {path} __typename {} {below} {closed}", field.name);
                queries.push((format!("{ty}.{}", field.name), query));
            }
        }
        for (field, query) in queries {
            let before = pair.answered();
            compare(&actors, &query, &Value::Null).await;
            if pair.answered() == before {
                executed.insert(field);
            }
        }
    }
    let executed: Vec<_> = executed.iter().map(String::as_str).collect();
    assert_eq!(executed, EXECUTED);
}

#[tokio::test]
async fn random_selections_have_the_same_response_as_from_the_executor() {
    let pair = Pair::start().await;
    let before = pair.answered();
    let mut random = Random(1);
    let ids = "{ circles { nodes { id } pageInfo { endCursor } } agents { nodes { id } } projects { nodes { id } }
        tasks { nodes { id } } conversations { nodes { id } } }";
    let mut callers = Vec::new();
    for email in [OWNER, GUEST, ADMIN] {
        callers.push(pair.actors(email).await);
    }
    callers.push(pair.with_key_of_agent().await);
    for actors in callers {
        let known = compare(&actors, ids, &Value::Null).await;
        for _ in 0..200 {
            let (root, list, ty) = [
                ("circle", "circles", "Circle"),
                ("agent", "agents", "Agent"),
                ("project", "projects", "Project"),
                ("task", "tasks", "Task"),
                ("conversation", "conversations", "Conversation"),
            ][random.below(5)];
            let below = selection(&pair.schema, &mut random, ty, 4);
            let nodes = known["data"][list]["nodes"].as_array().expect("a list");
            let id = match nodes.get(random.below(nodes.len() + 1)) {
                Some(node) => node["id"].clone(),
                None => json!(format!("{root}_01ke6p4zk8e03r00000000zzzz")),
            };
            let one = if random.is_one_in(3) {
                format!("{list}(first: $first) {{ nodes {below} edges {{ cursor }} }}")
            } else {
                format!("{root}(id: $id) {below}")
            };
            let query = format!(
                "query ($id: ID!, $first: Int, $after: String) {{ x: {root}(id: $id) {{ id }} viewer {{ id }} {one} }}"
            );
            let query = if query.matches("$after").count() > 1 || random.is_one_in(2) {
                query
            } else {
                query.replace("viewer { id }", "")
            };
            let query = if query.matches("$after").count() == 1 {
                query.replace(", $after: String", "")
            } else {
                query
            };
            let query = if query.matches("$first").count() == 1 {
                query.replace(", $first: Int", "")
            } else {
                query
            };
            let first = [Value::Null, json!(2), json!(0), json!(100)][random.below(4)].clone();
            let after = [Value::Null, json!("no cursor")][usize::from(random.is_one_in(5))].clone();
            let variables = json!({ "id": id, "first": first, "after": after });
            compare(&actors, &query, &variables).await;
        }
    }
    let answered = pair.answered() - before;
    assert!(answered > 700, "{answered}");
}
