//! Values that no database can hold: every error concerns the client's input, and none is `INTERNAL`.

use std::collections::BTreeMap;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use reqwest::StatusCode;
use serde_json::{Map, Value, json};

use crate::support::schema::{Argument, Schema};
use crate::support::server::TestServer;
use crate::support::wait::within;

/// Mutations that would invalidate the session or the account of the other calls.
const LEFT_OUT: [&str; 3] = ["logout", "register", "changePassword"];

/// The approximate start of a year, in microseconds since the epoch.
fn micros(year: i64) -> i64 {
    (year - 1970) * 31_556_952_000_000
}

/// A cursor with another time. The time follows the tag of the list.
fn forged(cursor: &str, micros: i64) -> String {
    let mut bytes = BASE64_URL_SAFE_NO_PAD.decode(cursor).expect("base64");
    bytes[4..12].copy_from_slice(&micros.to_be_bytes());
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

fn code(answer: &Value) -> &str {
    answer["errors"][0]["extensions"]["code"]
        .as_str()
        .unwrap_or_default()
}

#[tokio::test]
async fn a_cursor_with_a_time_outside_the_database_range_is_refused() {
    let server = TestServer::start().await;
    for list in [
        "agents(first: 1, orderBy: {field: UPDATED_AT, direction: ASC}",
        "agents(first: 1, orderBy: {field: LAST_ACTIVE_AT, direction: DESC}",
        "projects(first: 1, orderBy: {field: UPDATED_AT, direction: DESC}",
        "circles(first: 1, orderBy: {field: UPDATED_AT, direction: ASC}",
        "tasks(first: 1, orderBy: {field: UPDATED_AT, direction: ASC}",
    ] {
        let query = format!("{{ page: {list}) {{ pageInfo {{ endCursor }} }} }}");
        let page = server.graphql(&query, json!({})).await;
        let cursor = page["data"]["page"]["pageInfo"]["endCursor"].as_str();
        let cursor = cursor.unwrap_or_else(|| panic!("{page}"));
        for year in [-262_143, -4_714, -4_713, -1, 10_001, 262_141, 292_000] {
            for argument in ["after", "before"] {
                let query =
                    format!("query($c: String) {{ {list}, {argument}: $c) {{ nodes {{ id }} }} }}");
                let cursor = forged(cursor, micros(year));
                let answer = server.graphql(&query, json!({ "c": cursor })).await;
                assert_eq!(code(&answer), "BAD_USER_INPUT", "{year} {list}: {answer}");
                assert_eq!(answer["errors"][0]["extensions"]["field"], argument);
            }
        }
        for edge in [i64::MIN, i64::MAX] {
            let query = format!("query($c: String) {{ {list}, after: $c) {{ nodes {{ id }} }} }}");
            let answer = server
                .graphql(&query, json!({ "c": forged(cursor, edge) }))
                .await;
            assert_eq!(code(&answer), "BAD_USER_INPUT", "{answer}");
        }
        let near = forged(cursor, micros(9_998));
        let query = format!("query($c: String) {{ {list}, after: $c) {{ nodes {{ id }} }} }}");
        let answer = server.graphql(&query, json!({ "c": near })).await;
        assert!(answer["errors"].is_null(), "{answer}");
    }
}

#[tokio::test]
async fn a_cursor_accepts_any_number() {
    let server = TestServer::start().await;
    for list in [
        "tasks(first: 1, orderBy: {field: PRIORITY, direction: ASC}",
        "tasks(first: 1, orderBy: {field: PRIORITY, direction: DESC}",
    ] {
        let query = format!("{{ page: {list}) {{ pageInfo {{ endCursor }} }} }}");
        let page = server.graphql(&query, json!({})).await;
        let cursor = page["data"]["page"]["pageInfo"]["endCursor"].as_str();
        let cursor = cursor.unwrap_or_else(|| panic!("{page}"));
        for number in [i64::MIN, -1, 1 << 31, i64::MAX] {
            let query = format!("query($c: String) {{ {list}, after: $c) {{ nodes {{ id }} }} }}");
            let variables = json!({ "c": forged(cursor, number) });
            let answer = server.graphql(&query, variables).await;
            assert!(answer["errors"].is_null(), "{answer}");
        }
    }
}

#[tokio::test]
async fn an_event_subscription_refuses_a_nonexistent_cursor() {
    let server = TestServer::start().await;
    let token = server.token("demo@example.com").await;
    let query = "{ events(first: 1) { pageInfo { endCursor } } }";
    let page = server.graphql(query, json!({})).await;
    let cursor = page["data"]["events"]["pageInfo"]["endCursor"].as_str();
    let cursor = cursor.expect("a cursor");
    for position in [i64::MIN, -1, 0, i64::MAX] {
        let variables = json!({ "c": forged(cursor, position) });
        let query = "query($c: String) { events(first: 1, after: $c) { nodes { id } } }";
        let answer = server.graphql(query, variables.clone()).await;
        assert!(answer["errors"].is_null(), "{answer}");
    }
    for after in [
        forged(cursor, i64::MAX),
        "nonsense".to_owned(),
        "\0".to_owned(),
        "é".to_owned(),
    ] {
        let query = "subscription($c: String) { events(after: $c) { cursor } }";
        let stream = server
            .with_token(&token)
            .listen(query, json!({ "c": after }))
            .await;
        assert_eq!(stream.status(), StatusCode::OK);
        let text = within("the end of the stream", stream.text())
            .await
            .expect("text");
        assert!(text.contains("\"code\":\"BAD_USER_INPUT\""), "{text}");
    }
}

/// Ids of existing objects, by their type.
async fn things(server: &TestServer) -> BTreeMap<&'static str, Value> {
    let query = "{ viewer { id } circles(first: 1) { nodes { id owner { id } members(first: 1) { nodes { id } } } }
        tasks(first: 1) { nodes { id } } conversations(first: 1, filter: { status: [ACTIVE] }) { nodes { id
        messages(first: 1) { nodes { id } } } } projects(first: 1) { nodes { id } } agents(first: 1) { nodes { id } }
        providers(first: 1) { nodes { id } } models(first: 1) { nodes { id } } personas(first: 1) { nodes { id } } }";
    let admin = server.token("admin@example.com").await;
    let answer = server.with_token(&admin).answer(query, json!({})).await;
    let at = |path: &str| {
        let id = answer.pointer(&format!("/data/{path}/id"));
        id.unwrap_or_else(|| panic!("{path}: {answer}")).clone()
    };
    BTreeMap::from([
        ("user", at("viewer")),
        ("circle", at("circles/nodes/0")),
        ("agent", at("circles/nodes/0/members/nodes/0")),
        ("task", at("tasks/nodes/0")),
        ("conversation", at("conversations/nodes/0")),
        ("message", at("conversations/nodes/0/messages/nodes/0")),
        ("project", at("projects/nodes/0")),
        ("provider", at("providers/nodes/0")),
        ("model", at("models/nodes/0")),
        ("persona", at("personas/nodes/0")),
    ])
}

struct Walk {
    schema: Schema,
    things: BTreeMap<&'static str, Value>,
}

impl Walk {
    /// A valid value, for required arguments that are not under test.
    fn plain(&self, field: &str, argument: &Argument) -> Value {
        let value = match argument.named() {
            "String" if argument.name.eq_ignore_ascii_case("email") => json!("x@example.com"),
            "String" if argument.name == "name" => json!("x"),
            "String" => json!("some text"),
            "Int" => json!(1),
            "Float" => json!(0.5),
            "Boolean" => json!(true),
            "DateTime" => json!("2026-01-05T09:00:00Z"),
            "Decimal" => json!("1"),
            "ID" => {
                let name = format!("{} {field}", argument.name).to_lowercase();
                let found = self.things.iter().find(|(kind, _)| name.contains(**kind));
                found.map_or_else(|| self.things["circle"].clone(), |(_, id)| id.clone())
            }
            input if self.schema.get(input).kind == "INPUT_OBJECT" => {
                let inputs = self.schema.get(input).inputs.iter();
                self.object(field, inputs.filter(|input| input.is_required()))
            }
            // An enum: variables carry its values as strings.
            _ => json!(self.schema.first_value(argument.named())),
        };
        argument.wrapped(value)
    }

    fn object<'a>(&self, field: &str, inputs: impl Iterator<Item = &'a Argument>) -> Value {
        let members = inputs.map(|input| (input.name.clone(), self.plain(field, input)));
        Value::Object(members.collect::<Map<_, _>>())
    }

    /// Values of an argument of which exactly one part is unusual or invalid.
    fn odd(&self, field: &str, argument: &Argument) -> Vec<Value> {
        let values = match argument.named() {
            "String" => vec![
                json!("\0"),
                json!("a\u{0}b"),
                json!("\u{ffff}\u{10ffff}"),
                json!("x".repeat(20_001)),
            ],
            "Int" => vec![
                json!(i32::MIN),
                json!(i32::MAX),
                json!(0),
                json!(2_147_483_648_i64),
                json!(1e300),
            ],
            "Float" => vec![json!(f64::MAX), json!(f64::MIN), json!(5e-324), json!(-0.0)],
            "DateTime" => [
                "0000-01-01T00:00:00Z",
                "0000-01-01T00:00:00+23:59",
                "9999-12-31T23:59:59.999999999Z",
                "9999-12-31T23:59:59-23:59",
                "-4713-01-01T00:00:00Z",
                "+262142-01-01T00:00:00Z",
                "2016-12-31T23:59:60Z",
                "\0",
            ]
            .map(|text| json!(text))
            .to_vec(),
            "Decimal" => vec![
                json!("9223372036854.775807"),
                json!("-9223372036854.775807"),
                json!(1e30),
                json!("\0"),
            ],
            "ID" => [
                "",
                "\0",
                "circle_\0",
                "circle_7zzzzzzzzzzzzzzzzzzzzzzzzz",
                "user_00000000000000000000000000",
                "é",
            ]
            .map(|text| json!(text))
            .into_iter()
            .chain([json!(i64::MIN)])
            .collect(),
            input if self.schema.get(input).kind == "INPUT_OBJECT" => {
                let inputs = &self.schema.get(input).inputs;
                let required = || inputs.iter().filter(|input| input.is_required());
                let odd = inputs.iter().flat_map(|input| {
                    let values = self.odd(field, input);
                    values.into_iter().map(|value| (input.name.clone(), value))
                });
                odd.map(|(name, value)| {
                    let mut object = self.object(field, required());
                    object[name] = value;
                    object
                })
                .collect()
            }
            _ => Vec::new(),
        };
        values
            .into_iter()
            .map(|value| argument.wrapped(value))
            .collect()
    }
}

#[tokio::test]
async fn no_argument_value_causes_an_internal_error() {
    let server = TestServer::start().await;
    let walk = Walk {
        schema: Schema::of(&server).await,
        things: things(&server).await,
    };
    let admin = server.token("admin@example.com").await;
    let mut tried = 0;
    for (operation, root) in [("query", "Query"), ("mutation", "Mutation")] {
        for field in &walk.schema.get(root).fields {
            if LEFT_OUT.contains(&&*field.name) {
                continue;
            }
            let selection = if walk.schema.is_composite(field.named()) {
                walk.schema.selection(field.named())
            } else {
                String::new()
            };
            for argument in &field.arguments {
                for value in walk.odd(&field.name, argument) {
                    let mut variables = walk.object(&field.name, field.required());
                    variables[&argument.name] = value;
                    let given = || {
                        let given = field.arguments.iter();
                        given.filter(|argument| variables.get(&argument.name).is_some())
                    };
                    let declared: Vec<_> =
                        given().map(|a| format!("${}: {}", a.name, a.ty)).collect();
                    let passed: Vec<_> = given().map(|a| format!("{0}: ${0}", a.name)).collect();
                    let query = format!(
                        "{operation}({}) {{ {}({}) {selection} }}",
                        declared.join(", "),
                        field.name,
                        passed.join(", "),
                    );
                    let answer = server
                        .with_token(&admin)
                        .answer(&query, variables.clone())
                        .await;
                    for error in answer["errors"].as_array().into_iter().flatten() {
                        let code = error["extensions"]["code"].as_str().expect("a code");
                        assert!(
                            [
                                "BAD_USER_INPUT",
                                "NOT_FOUND",
                                "FORBIDDEN",
                                "UNAUTHENTICATED",
                                "CONFLICT",
                                "GRAPHQL_VALIDATION_FAILED",
                            ]
                            .contains(&code),
                            "{query} {variables}: {answer}"
                        );
                    }
                    tried += 1;
                }
            }
        }
    }
    // The token was valid to the end, and many values were tried.
    let last = server
        .with_token(&admin)
        .answer("{ viewer { id } }", json!({}))
        .await;
    assert!(last["data"]["viewer"]["id"].is_string(), "{last}");
    assert!(tried > 500, "{tried}");
}
