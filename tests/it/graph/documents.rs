//! Documents, variables and the schema.

use std::collections::HashMap;

use super::*;

#[tokio::test]
async fn too_complex_documents_are_refused_without_a_statement() {
    let server = serve("demo@example.com").await;
    let before = server.statements();
    let bomb = (0..28)
        .map(|n| {
            format!(
                "fragment F{n} on Query {{ ...F{next} ...F{next} }} ",
                next = n + 1
            )
        })
        .collect::<Vec<_>>()
        .concat();
    let bomb = format!("{{ ...F0 }} {bomb} fragment F28 on Query {{ viewer {{ id }} }}");
    let wide = format!("{{ {} }}", "a ".repeat(5_000));
    let aliased = (0..30)
        .map(|n| format!("a{n}: viewer {{ id }} "))
        .collect::<Vec<_>>()
        .concat();
    let deep = format!(
        "{{ node(id: \"x\") {{ {} id {} }} }}",
        "... on Circle { project { circles { nodes { ".repeat(5),
        "} } } }".repeat(5)
    );
    let nested = format!(
        "{{ circle(id: {}1{}) {{ id }} }}",
        "[".repeat(1_000),
        "]".repeat(1_000)
    );
    let pages =
        "{ circles(first: 100) { nodes { tasks(first: 100) { nodes { id title } } } } }".to_owned();
    for (document, what) in [
        (wide, "tokens"),
        (format!("{{ {aliased} }}"), "root fields"),
        (deep, "levels"),
        (nested, "brackets"),
        (pages, "complexity"),
        (
            format!("# {}\n{{ viewer {{ id }} }}", "x".repeat(40_000)),
            "bytes",
        ),
    ] {
        let error = refused(&server, &document, json!({})).await;
        assert_eq!(error["extensions"]["code"], "QUERY_TOO_COMPLEX", "{what}");
        assert!(
            error["message"].as_str().expect("a message").contains(what),
            "{error}"
        );
        let (limit, actual) = (
            &error["extensions"]["limit"],
            &error["extensions"]["actual"],
        );
        assert!(actual.as_u64() > limit.as_u64(), "{error}");
    }
    let cycle = "{ ...A } fragment A on Query { ...B } fragment B on Query { ...A }";
    assert_eq!(
        refused(&server, cycle, json!({})).await["extensions"]["code"],
        "GRAPHQL_VALIDATION_FAILED"
    );
    assert_eq!(server.statements(), before);
    // Each fragment is counted once, so repeated spreads add no cost.
    let (data, _) = ask(&server, &bomb, json!({})).await;
    assert!(data["viewer"]["id"].is_string());
}

#[tokio::test]
async fn persisted_queries_are_stored_by_their_hash() {
    let server = TestServer::start().await;
    let hash = "af44d6f3d1b4d0d70d3fd4a7ee7eb3d9dbb0dfca6ab7e2fb9a3dcb1e0c8ad3e0";
    let send = async |query: Option<&str>, hash: &str| {
        let body = json!({ "query": query, "extensions": { "persistedQuery": { "version": 1, "sha256Hash": hash } } });
        let response = server
            .request(reqwest::Method::POST, "/graphql")
            .json(&body)
            .send()
            .await
            .expect("an answer");
        response.json::<Value>().await.expect("JSON")
    };
    let unknown = send(None, hash).await;
    assert_eq!(
        unknown["errors"][0]["extensions"]["code"],
        "PERSISTED_QUERY_NOT_FOUND"
    );
    assert_eq!(unknown["errors"][0]["message"], "PersistedQueryNotFound");
    let wrong = send(Some("{ __typename }"), hash).await;
    assert_eq!(wrong["errors"][0]["extensions"]["code"], "BAD_USER_INPUT");
    let right = "7f56e67dd21ab3f30d1ff8b7bed08893f0a0db86449836189b361dd1e56ddb4b";
    for query in [Some("{ __typename }"), None] {
        assert_eq!(
            send(query, right).await,
            json!({ "data": { "__typename": "Query" } })
        );
    }
}

#[tokio::test]
async fn a_trusted_document_is_not_stored_under_a_wrong_hash() {
    let folder = tempfile::tempdir().expect("a folder");
    let manifest = folder.path().join("documents.json");
    fs::write(&manifest, r#"{"one": "{ serverInfo { name } }"}"#).expect("writes");
    for trust in ["audit", "enforce"] {
        let server = TestServer::with(|config| {
            config.graphql.manifest.clone_from(&manifest);
            config.graphql.trusted_documents = match trust {
                "audit" => gathering::config::Trust::Audit,
                _ => gathering::config::Trust::Enforce,
            };
        })
        .await;
        let hash = "0".repeat(64);
        let persisted = json!({ "persistedQuery": { "version": 1, "sha256Hash": hash } });
        let send = async |body: Value| {
            let response = server
                .request(reqwest::Method::POST, "/graphql")
                .json(&body)
                .send();
            response
                .await
                .expect("an answer")
                .json::<Value>()
                .await
                .expect("JSON")
        };
        let named = send(json!({ "documentId": "one", "extensions": persisted })).await;
        assert_eq!(named["data"]["serverInfo"]["name"], "Gathering");
        let by_hash = send(json!({ "extensions": persisted })).await;
        assert_eq!(
            by_hash["errors"][0]["extensions"]["code"],
            "PERSISTED_QUERY_NOT_FOUND"
        );
        let foreign = send(json!({ "query": "{ viewer { id } }" })).await;
        let code = foreign["errors"][0]["extensions"]["code"].as_str();
        assert_eq!(code, (trust == "enforce").then_some("FORBIDDEN"));
    }
}

#[test]
fn the_committed_schema_matches_the_server() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/schema/schema.graphql");
    let committed = fs::read_to_string(path).unwrap_or_default();
    assert!(
        committed.trim_end() == Graph::sdl().trim_end(),
        "run: cargo run -- schema > schema/schema.graphql"
    );
}

#[tokio::test]
async fn every_type_field_and_argument_has_a_description() {
    let server = serve("demo@example.com").await;
    let query = "{ __schema { types { name description
        fields { name description args { name description } } inputFields { name description } enumValues { name description } } } }";
    let (data, _) = ask(&server, query, json!({})).await;
    let mut silent = Vec::new();
    for ty in data["__schema"]["types"].as_array().expect("types") {
        let name = ty["name"].as_str().expect("a name");
        if name.starts_with("__") || name == "ID" {
            continue;
        }
        let mut say = |part: &Value, place: String| {
            if part["description"].as_str().is_none_or(str::is_empty) {
                silent.push(place);
            }
        };
        say(ty, name.to_owned());
        for list in ["fields", "inputFields", "enumValues"] {
            for part in ty[list].as_array().into_iter().flatten() {
                let place = format!("{name}.{}", part["name"].as_str().unwrap_or_default());
                for argument in part["args"].as_array().into_iter().flatten() {
                    say(argument, format!("{place}({})", argument["name"]));
                }
                say(part, place);
            }
        }
    }
    assert!(silent.is_empty(), "{silent:?}");
}

#[test]
fn descriptions_start_with_a_short_sentence_in_plain_words() {
    let sdl = Graph::sdl();
    let mut wrong = Vec::new();
    let mut types = HashMap::new();
    // The descriptions are the odd parts; each is followed by the item that it describes.
    let parts: Vec<_> = sdl.split("\"\"\"").collect();
    for pair in parts[1..].chunks(2) {
        let (text, item) = (unindented(pair[0]), pair[1]);
        let place = item.trim().lines().next().unwrap_or_default();
        let first = text.lines().next().unwrap_or_default();
        let is_short = |start: &str| start.chars().count() <= 100 && start.ends_with(['.', ':']);
        let mut ends = first.match_indices(['.', ':']);
        let starts_short = ends.any(|(at, _)| {
            let (start, rest) = first.split_at(at + 1);
            is_short(start) && (rest.is_empty() || rest.starts_with(' '))
        });
        let is_wrapped = text.lines().nth(1).is_some_and(|line| !line.is_empty());
        if !starts_short || is_wrapped && !is_short(first) {
            wrong.push(format!("{place}: the first sentence is too long: {first}"));
        }
        let words = format!(
            " {} ",
            text.to_lowercase()
                .replace(|c: char| !c.is_alphabetic(), " ")
        );
        for denied in DENIED {
            if words.contains(&format!(" {denied} ")) {
                wrong.push(format!("{place}: `{denied}`: {text}"));
            }
        }
        let is_type = [
            "type ",
            "input ",
            "enum ",
            "interface ",
            "union ",
            "scalar ",
        ]
        .iter()
        .any(|keyword| place.starts_with(keyword));
        if is_type && let Some(other) = types.insert(text, place) {
            wrong.push(format!("{place}: has the description of {other}"));
        }
    }
    assert!(types.len() > 100, "{types:?}");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Words that descriptions do not use: colloquial, or a riddle for a reader who searches for the standard term.
const DENIED: [&str; 20] = [
    "as good as",
    "asks",
    "at once",
    "behind",
    "believed",
    "by now",
    "goes on",
    "handed out",
    "knows",
    "made of",
    "nobody",
    "of its own",
    "put away",
    "somebody",
    "stands",
    "told",
    "what becomes",
    "what the",
    "which is to be",
    "whoever",
];

fn unindented(description: &str) -> String {
    let lines = description.trim().lines().map(str::trim);
    lines.collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn operations_are_validated_as_the_graphql_specification_requires() {
    let server = serve("demo@example.com").await;
    let conflict = "{ circles(first: 1, orderBy: {field: NAME, direction: ASC}) { nodes { a: name } } ...F }
        fragment F on Query { circles(first: 1, orderBy: {field: NAME, direction: DESC}) { nodes { b: name } } }";
    for (document, code) in [
        (conflict, "GRAPHQL_VALIDATION_FAILED"),
        (
            "{ viewer { x: id ...F } } fragment F on User { x: name }",
            "GRAPHQL_VALIDATION_FAILED",
        ),
        ("{ __typename { a } }", "GRAPHQL_VALIDATION_FAILED"),
        ("{ __typename(a: 1) }", "GRAPHQL_VALIDATION_FAILED"),
        ("{ __typename @skip }", "GRAPHQL_VALIDATION_FAILED"),
        (
            "{ circles(orderBy: {field: \"NAME\"}) { totalCount } }",
            "GRAPHQL_VALIDATION_FAILED",
        ),
        (
            "{ circles(filter: {search: \"a\", search: \"b\"}) { totalCount } }",
            "GRAPHQL_VALIDATION_FAILED",
        ),
        ("query() { __typename }", "GRAPHQL_PARSE_FAILED"),
        ("queryFoo { __typename }", "GRAPHQL_PARSE_FAILED"),
    ] {
        let error = refused(&server, document, json!({})).await;
        assert_eq!(error["extensions"]["code"], code, "{document}: {error}");
    }
    for document in [
        "query ($d: SortDirection) { circles(orderBy: {field: NAME, direction: $d}) { totalCount } }",
        "query ($s: String) { circles(filter: {search: $s}) { totalCount } }",
        "query ($a: Boolean = true) { circles { totalCount } __typename @skip(if: $a) }",
        "query ($ids: [ ID! # ids\n ]! = []) { circles { totalCount } nodes(ids: $ids) { id } }",
        "\"Counts.\" query Q(\"Text.\" $s: String = \"\") { circles(filter: {search: $s}) { totalCount } }",
        "{ circles(filter: {search: \"\"}) { totalCount } a: agents(filter: {search: \"\\ud83d\\ude00\\u{1F600}\"}) { totalCount } }",
    ] {
        let (data, _) = ask(&server, document, json!({})).await;
        assert!(
            data["circles"]["totalCount"].as_i64() > Some(0),
            "{document}: {data}"
        );
    }
    let answer = server.graphql(
        "{ circles(first: 2) { nodes { tasks(first: 0) { totalCount } } } }",
        json!({}),
    );
    let answer = answer.await;
    assert!(answer.get("data").is_some_and(Value::is_null), "{answer}");
}

#[tokio::test]
async fn introspection_is_allowed_within_the_complexity_limits() {
    let server = serve("demo@example.com").await;
    let nested = |levels: usize| {
        format!(
            "{{ __type(name: \"Node\") {{ {} name {} }} }}",
            "possibleTypes { interfaces { ".repeat(levels),
            "} } ".repeat(levels)
        )
    };
    let (data, _) = ask(&server, &nested(1), json!({})).await;
    assert!(data["__type"]["possibleTypes"].is_array());
    let aliases = (0..90)
        .map(|n| format!("a{n}: fields {{ description args {{ name description }} }} "))
        .collect::<Vec<_>>()
        .concat();
    for document in [
        nested(4),
        nested(9),
        format!("{{ __schema {{ types {{ {aliases} }} }} }}"),
    ] {
        let error = refused(&server, &document, json!({})).await;
        assert_eq!(error["extensions"]["code"], "QUERY_TOO_COMPLEX", "{error}");
    }
}

#[tokio::test]
async fn an_omitted_variable_leaves_its_field_unchanged() {
    let server = serve("demo@example.com").await;
    let create = "mutation { a: createProject(input: {name: \"Once\", description: \"Kept\"}) { project { id } }
        a: createProject(input: {name: \"Once\", description: \"Kept\"}) { userErrors { code } } }";
    let (made, _) = ask(&server, create, json!({})).await;
    assert_eq!(made["a"]["userErrors"], json!([]), "equal fields run once");
    let update = "mutation ($id: ID!, $n: String, $d: String) {
        updateProject(input: {projectId: $id, name: $n, description: $d}) { project { name description } } }";
    let id = &made["a"]["project"]["id"];
    let (data, _) = ask(&server, update, json!({ "id": id, "n": "Twice" })).await;
    let project = &data["updateProject"]["project"];
    assert_eq!(*project, json!({ "name": "Twice", "description": "Kept" }));
}
