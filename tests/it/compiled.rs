//! Compiled queries, compared with the executor on the same database.

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::support::actor::{ADMIN, Actor, GUEST, OWNER};
use crate::support::schema::Schema;
use crate::support::server::TestServer;

/// The arguments of a page.
const PAGE: [&str; 6] = ["first", "after", "last", "before", "filter", "orderBy"];

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

    /// The number of root fields that compiled queries have answered.
    fn answered(&self) -> u64 {
        self.compiled.graph().compiled_fields().0
    }
}

/// Compares the responses, byte for byte in `data`.
async fn compare([compiled, executed]: &[Actor; 2], query: &str, variables: &Value) -> Value {
    let mut texts = Vec::new();
    for actor in [compiled, executed] {
        let response = actor.send(query, variables.clone()).await;
        texts.push(response.text().await.expect("text"));
    }
    let parsed = texts.iter().map(|text| {
        serde_json::from_str::<Text>(text).unwrap_or_else(|error| panic!("{error}: {text}"))
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

/// Pseudo-random numbers (SplitMix64).
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

/// Whether a field of this type is a connection.
fn is_connection(name: &str) -> bool {
    name.ends_with("Connection")
}

/// A random selection on an object type.
fn selection(schema: &Schema, random: &mut Random, ty: &str, depth: usize) -> String {
    let mut parts = vec!["__typename".to_owned()];
    let fields = &schema.get(ty).fields;
    for place in 0..1 + random.below(6) {
        let field = &fields[random.below(fields.len())];
        let is_paged = field
            .arguments
            .iter()
            .all(|argument| PAGE.contains(&argument.name.as_str()));
        if !is_paged {
            continue;
        }
        let name = field.named();
        let alias = if random.is_one_in(4) {
            format!("f{place}: ")
        } else {
            String::new()
        };
        if !schema.is_composite(name) {
            parts.push(format!("{alias}{}", field.name));
        } else if depth > 0 && !schema.is_abstract(name) {
            let arguments = if is_connection(name) {
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

#[tokio::test]
async fn every_field_has_the_same_value_as_from_the_executor() {
    let pair = Pair::start().await;
    for email in [OWNER, GUEST, ADMIN] {
        let actors = pair.actors(email).await;
        for root in &pair.schema.get("Query").fields {
            let Some(node) = pair
                .schema
                .node_of(root.named())
                .filter(|_| is_connection(root.named()))
            else {
                continue;
            };
            if pair.schema.is_abstract(node) {
                continue;
            }
            for field in &pair.schema.get(node).fields {
                let name = field.named();
                let is_paged = field
                    .arguments
                    .iter()
                    .all(|argument| PAGE.contains(&argument.name.as_str()));
                if !is_paged || pair.schema.is_abstract(name) {
                    continue;
                }
                let below = if is_connection(name) {
                    let entry = pair.schema.node_of(name).expect("a node");
                    let node = pair.schema.selection(entry);
                    let edge = name.replace("Connection", "Edge");
                    let extra = pair.schema.get(&edge).fields.iter().map(|extra| {
                        if pair.schema.is_composite(extra.named()) {
                            let below = pair.schema.selection(extra.named());
                            format!("{} {below}", extra.name)
                        } else {
                            extra.name.clone()
                        }
                    });
                    let extra: Vec<_> = extra.collect();
                    format!(
                        "(first: 3) {{ totalCount edges {{ __typename {} }} nodes {node} pageInfo {{ __typename
                        hasNextPage hasPreviousPage startCursor endCursor }} }}",
                        extra.join(" ")
                    )
                } else if pair.schema.is_composite(name) {
                    pair.schema.selection(name)
                } else {
                    String::new()
                };
                let query = format!(
                    "{{ {} {{ nodes {{ id {} {below} }} }} }}",
                    root.name, field.name
                );
                compare(&actors, &query, &Value::Null).await;
            }
        }
    }
    assert!(pair.answered() > 100, "{}", pair.answered());
}

#[tokio::test]
async fn random_selections_have_the_same_response_as_from_the_executor() {
    let pair = Pair::start().await;
    let before = pair.answered();
    let mut random = Random(1);
    let ids = "{ circles { nodes { id } pageInfo { endCursor } } agents { nodes { id } } projects { nodes { id } }
        tasks { nodes { id } } conversations { nodes { id } } }";
    for email in [OWNER, GUEST, ADMIN] {
        let actors = pair.actors(email).await;
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
    assert!(answered > 600, "{answered}");
}
