//! The tier and the audience of each root field, measured with requests and compared with the schema.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fmt::Write;
use std::fs;

use async_graphql::parser::parse_schema;
use async_graphql::parser::types::{TypeKind, TypeSystemDefinition};
use gathering_schema::Graph;
use serde_json::{Value, json};

use super::{Answer, PLENTY, aliases, ask, serve};
use crate::support::server::TestServer;

const TIERS: [&str; 4] = ["AUTH", "WRITE", "READ", "HEALTH"];

/// The quota of the tier under test.
const FEW: u32 = 3;

const SCHEMA: &str = "{ __schema {
        queryType { ...Root } mutationType { ...Root } subscriptionType { ...Root }
        types { name kind enumValues { name } inputFields { name defaultValue type { ...Type } } }
    } }
    fragment Root on __Type { name fields { name type { ...Type } args { name defaultValue type { ...Type } } } }
    fragment Type on __Type { kind name ofType { kind name ofType { kind name ofType { kind name } } } }";

/// A root field with its required arguments and a minimal selection.
struct Field {
    root: String,
    name: String,
    text: String,
}

impl Field {
    /// An operation that selects this field this many times.
    fn operation(&self, times: usize) -> String {
        format!(
            "{} {}",
            self.root.to_lowercase(),
            aliases(&self.text, times)
        )
    }
}

/// A minimal value of a type.
fn value(ty: &Value, types: &BTreeMap<&str, &Value>) -> String {
    let name = ty["name"].as_str().unwrap_or_default();
    match (ty["kind"].as_str().expect("a kind"), name) {
        ("NON_NULL", _) => value(&ty["ofType"], types),
        ("LIST", _) => "[]".to_owned(),
        ("ENUM", _) => types[name]["enumValues"][0]["name"]
            .as_str()
            .expect("a value")
            .to_owned(),
        ("INPUT_OBJECT", _) => format!("{{{}}}", values(&types[name]["inputFields"], types)),
        (_, "Int" | "Float") => "1".to_owned(),
        (_, "Boolean") => "true".to_owned(),
        _ => r#""x""#.to_owned(),
    }
}

/// Values for the required inputs.
fn values(inputs: &Value, types: &BTreeMap<&str, &Value>) -> String {
    let inputs = inputs.as_array().into_iter().flatten();
    let needed = inputs
        .filter(|input| input["type"]["kind"] == "NON_NULL" && input["defaultValue"].is_null());
    let values = needed.map(|input| {
        let name = input["name"].as_str().expect("a name");
        format!("{name}: {}", value(&input["type"], types))
    });
    values.collect::<Vec<_>>().join(", ")
}

/// Every root field, including those of introspection.
async fn fields() -> Vec<Field> {
    let server = TestServer::start().await;
    let answer = server.anonymous().answer(SCHEMA, json!({})).await;
    let schema = &answer["data"]["__schema"];
    let types = schema["types"].as_array().expect("types").iter();
    let types = types.map(|ty| (ty["name"].as_str().expect("a name"), ty));
    let types: BTreeMap<_, _> = types.collect();
    let mut fields = Vec::new();
    for root in ["queryType", "mutationType", "subscriptionType"] {
        let ty = &schema[root];
        let root = ty["name"].as_str().expect("a name").to_owned();
        let mut add = |name: &str, text: String| {
            let (root, name) = (root.clone(), name.to_owned());
            fields.push(Field { root, name, text });
        };
        if root != "Subscription" {
            add("__typename", "__typename".to_owned());
        }
        if root == "Query" {
            add("__schema", "__schema { __typename }".to_owned());
            add("__type", r#"__type(name: "Query") { name }"#.to_owned());
        }
        for field in ty["fields"].as_array().expect("fields") {
            let name = field["name"].as_str().expect("a name");
            let arguments = match values(&field["args"], &types) {
                none if none.is_empty() => none,
                some => format!("({some})"),
            };
            let mut named = &field["type"];
            while !named["ofType"].is_null() {
                named = &named["ofType"];
            }
            let below = match named["kind"].as_str() {
                Some("SCALAR" | "ENUM") => "",
                _ => " { __typename }",
            };
            add(name, format!("{name}{arguments}{below}"));
        }
    }
    fields.sort_by(|one, other| (&other.root, &one.name).cmp(&(&one.root, &other.name)));
    fields
}

/// The tiers that the schema declares for root fields.
fn declared() -> BTreeMap<(String, String), String> {
    let mut declared = BTreeMap::new();
    let schema = parse_schema(Graph::sdl()).expect("parses");
    for definition in schema.definitions {
        let TypeSystemDefinition::Type(ty) = definition else {
            continue;
        };
        let root = ty.node.name.node.to_string();
        let TypeKind::Object(object) = ty.node.kind else {
            continue;
        };
        if !["Query", "Mutation", "Subscription"].contains(&root.as_str()) {
            continue;
        }
        for field in object.fields {
            let limits = field.node.directives.iter();
            let limits = limits.filter(|directive| directive.node.name.node == "rateLimit");
            let tiers: Vec<_> = limits
                .filter_map(|limit| limit.node.get_argument("tier"))
                .map(|tier| tier.node.to_string())
                .collect();
            let name = field.node.name.node.to_string();
            assert_eq!(tiers.len(), 1, "{root}.{name}: {tiers:?}");
            declared.insert((root.clone(), name), tiers[0].clone());
        }
    }
    declared
}

/// Whether a root field was refused. A refusal by the bucket of all requests has no path.
fn is_refused(answer: &Answer) -> bool {
    answer.codes().contains(&"RATE_LIMITED") && answer.body["errors"][0]["path"].is_array()
}

/// The root fields that are refused once this tier is exhausted.
async fn spent(tier: usize, fields: &[Field]) -> BTreeSet<usize> {
    let mut limits = [PLENTY; 4];
    limits[tier] = FEW;
    let server = serve(|config| {
        let [auth, write, read, health] = limits;
        config.limits.auth = auth;
        config.limits.write = write;
        config.limits.read = read;
        config.limits.health = health;
    })
    .await;
    let mut refused = BTreeSet::new();
    for (place, field) in fields.iter().enumerate() {
        // Each field is requested from another address, so that the bucket of all requests is not exhausted.
        let address = format!("198.51.100.{place}");
        // A subscription has one root field.
        let (requests, times) = if field.root == "Subscription" {
            (FEW, 1)
        } else {
            (1, FEW)
        };
        for _ in 0..requests {
            let few = ask(&server, &address, None, &field.operation(times as usize)).await;
            assert!(!is_refused(&few), "{}", few.body);
            assert_ne!(
                few.body["errors"][0]["extensions"]["code"], "GRAPHQL_VALIDATION_FAILED",
                "{}",
                few.body
            );
        }
        let answer = ask(&server, &address, None, &field.operation(1)).await;
        if is_refused(&answer) {
            assert_eq!(answer.body["errors"][0]["extensions"]["tier"], TIERS[tier]);
            refused.insert(place);
        }
    }
    refused
}

/// The audience of a root field, from the responses to an anonymous caller, a user, and an administrator.
async fn audience(server: &TestServer, field: &Field) -> &'static str {
    let mut codes = Vec::new();
    for email in [None, Some("demo@example.com"), Some("admin@example.com")] {
        let token = match email {
            Some(email) => Some(server.token(email).await),
            None => None,
        };
        let operation = field.operation(1);
        let answer = if field.root == "Subscription" {
            let listened = server
                .caller(token.as_deref())
                .listen(&operation, json!({}))
                .await;
            // A subscription that has started sends no result yet, so its body is not read.
            let has_begun =
                listened.headers()["content-type"] == "text/event-stream; charset=utf-8";
            if has_begun {
                Value::Null
            } else {
                listened.json().await.expect("JSON")
            }
        } else {
            server
                .caller(token.as_deref())
                .answer(&operation, json!({}))
                .await
        };
        let code = &answer["errors"][0]["extensions"]["code"];
        codes.push(code.as_str().unwrap_or_default().to_owned());
    }
    match [&*codes[0], &*codes[1], &*codes[2]] {
        ["UNAUTHENTICATED", "FORBIDDEN", other] if other != "FORBIDDEN" => "administrators",
        ["UNAUTHENTICATED", other, _] if other != "UNAUTHENTICATED" => "users",
        _ => "everyone",
    }
}

#[tokio::test]
async fn every_root_field_is_charged_to_its_declared_tier() {
    let fields = fields().await;
    let declared = declared();
    let mut spent_by = Vec::new();
    for tier in 0..TIERS.len() {
        spent_by.push(spent(tier, &fields).await);
    }
    let open = TestServer::start().await;
    let mut table = String::from(
        "# Rate tiers\n\nGenerated by a test that exhausts each tier, records the refused root fields, and calls \
         each field as an anonymous caller, a user and an administrator. Regenerate with `UPDATE_SNAPSHOTS=1 cargo test`.\n\n\
         | Root field | Tier | For |\n|---|---|---|\n",
    );
    for (place, field) in fields.iter().enumerate() {
        let Field { root, name, .. } = field;
        let tiers = TIERS.iter().zip(&spent_by);
        let tiers = tiers.filter(|(_, refused)| refused.contains(&place));
        let tiers: Vec<_> = tiers.map(|(tier, _)| *tier).collect();
        let known = declared.get(&(root.clone(), name.clone()));
        let tier = match (name.as_str(), tiers.as_slice()) {
            ("rateLimit", []) => "free",
            (_, [tier]) => tier,
            _ => panic!("{root}.{name} has the tiers {tiers:?}"),
        };
        let expected = match name.as_str() {
            "rateLimit" => "free",
            // Introspection fields are not part of the schema definition.
            system if system.starts_with("__") => "READ",
            _ => known.expect("is declared"),
        };
        assert_eq!(tier, expected, "{root}.{name}");
        let audience = audience(&open, field).await;
        writeln!(table, "| `{root}.{name}` | {tier} | {audience} |").expect("is written");
    }
    let asked = fields.iter().filter(|field| !field.name.starts_with("__"));
    assert_eq!(asked.count(), declared.len());

    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/tiers.md");
    if env::var("UPDATE_SNAPSHOTS").is_ok_and(|update| update == "1") {
        fs::write(path, &table).expect("is written");
    }
    let committed = fs::read_to_string(path).unwrap_or_default();
    assert!(
        committed == table,
        "tiers.md is outdated; if the change is intended, run UPDATE_SNAPSHOTS=1 cargo test --test it limits::tier\n{table}"
    );
}
