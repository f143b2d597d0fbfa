//! The GraphQL API: statement counts, pagination, errors, permissions, and validation.

use std::fs;

use gathering_schema::Graph;
use serde_json::{Value, json};

use crate::server::TestServer;

const ATELIER: &str = "circle_01ke6p4zk8e03r000000000001";
const ASSEMBLY: &str = "circle_01ke6p50jge03r000000000002";

/// The operations of typical client screens.
const OPERATIONS: &str = include_str!("acceptance.graphql");

const TEAM: &str = "query ($id: ID!) { circle(id: $id) { members(first: 100) { nodes { id model { id provider { id } } } } } }";

/// The statements that authentication takes.
const AUTHENTICATION: u64 = 1;

/// A server and the token of its caller.
struct Caller {
    server: TestServer,
    token: String,
}

impl Caller {
    async fn graphql(&self, query: &str, variables: Value) -> Value {
        self.server.ask(Some(&self.token), query, variables).await
    }

    fn statements(&self) -> u64 {
        self.server.statements()
    }
}

/// Serves the demo data to the user with this e-mail address.
async fn serve(email: &str) -> Caller {
    let server = TestServer::start().await;
    let token = server.token(email).await;
    Caller { server, token }
}

/// The data of an operation, which must not fail, and the number of its statements without authentication.
async fn ask(caller: &Caller, query: &str, variables: Value) -> (Value, u64) {
    let before = caller.statements();
    let answer = caller.graphql(query, variables).await;
    assert_eq!(answer.get("errors"), None, "{query}");
    let statements = caller.statements() - before - AUTHENTICATION;
    (answer["data"].clone(), statements)
}

/// The first error.
async fn refused(caller: &Caller, query: &str, variables: Value) -> Value {
    let answer = caller.graphql(query, variables).await;
    answer["errors"][0].clone()
}

fn operation(name: &str) -> &'static str {
    let mut operations = OPERATIONS.split("\n\n");
    let found = operations.find(|operation| operation.split(['(', ' ']).nth(1) == Some(name));
    found.expect("an operation of that name")
}

#[tokio::test]
async fn authentication_takes_one_statement_and_anonymous_requests_take_none() {
    let caller = serve("demo@example.com").await;
    let before = caller.statements();
    for statements in 1..=3 {
        caller.graphql("{ __typename }", json!({})).await;
        assert_eq!(caller.statements() - before, statements * AUTHENTICATION);
    }
    let before = caller.statements();
    let answer = caller
        .server
        .ask(None, "{ viewer { id } }", json!({}))
        .await;
    assert_eq!(answer, json!({ "data": { "viewer": null } }));
    assert_eq!(caller.statements(), before);
}

#[tokio::test]
async fn a_team_of_any_size_takes_at_most_five_statements() {
    for email in ["demo@example.com", "admin@example.com"] {
        let server = serve(email).await;
        let (circles, _) = ask(
            &server,
            "{ circles(first: 20) { nodes { id name } } }",
            json!({}),
        )
        .await;
        let solo = circles["circles"]["nodes"]
            .as_array()
            .expect("circles")
            .iter();
        let solo = solo
            .clone()
            .find(|circle| circle["name"] == "Solo")
            .expect("Solo")["id"]
            .clone();
        for (id, size) in [(solo, 1), (json!(ATELIER), 20), (json!(ASSEMBLY), 100)] {
            let (data, statements) = ask(&server, TEAM, json!({ "id": id })).await;
            let members = data["circle"]["members"]["nodes"]
                .as_array()
                .expect("members");
            assert_eq!(members.len(), size);
            assert!(
                statements <= 5,
                "{size} members took {statements} statements"
            );
        }
        let all =
            "{ circles(first: 20) { nodes { members { nodes { model { provider { id } } } } } } }";
        let (data, statements) = ask(&server, all, json!({})).await;
        assert_eq!(data["circles"]["nodes"].as_array().map(Vec::len), Some(12));
        assert!(
            statements <= 5,
            "twelve circles took {statements} statements"
        );
    }
}

#[tokio::test]
async fn screens_stay_within_their_statement_limits_for_every_role() {
    for email in ["demo@example.com", "guest@example.com", "admin@example.com"] {
        let server = serve(email).await;
        let seen = "{ circles(first: 1) { nodes { id tasks(first: 1, filter: {status: [COMPLETED]}) { nodes { assignee { id } } } } }
            projects(first: 1) { nodes { id } }
            conversations(first: 1, filter: {status: [COMPLETED]}) { nodes { id } } }";
        let (seen, _) = ask(&server, seen, json!({})).await;
        let mut circles = vec![seen["circles"]["nodes"][0]["id"].clone()];
        if email != "guest@example.com" {
            circles.extend([json!(ATELIER), json!(ASSEMBLY)]);
        }
        let agent = &seen["circles"]["nodes"][0]["tasks"]["nodes"][0]["assignee"]["id"];
        let project = &seen["projects"]["nodes"][0]["id"];
        let conversation = &seen["conversations"]["nodes"][0]["id"];
        let mut cases = vec![
            ("Q1Home", Value::Null, 11),
            ("Q3Agent", agent.clone(), 10),
            ("Q5Talk", conversation.clone(), 9),
            ("Q6Feed", Value::Null, 6),
        ];
        if !project.is_null() {
            cases.push(("Q4Board", project.clone(), 4));
        }
        for id in circles {
            cases.push(("Q2Team", id.clone(), 5));
            cases.push(("Q2TeamActivity", id.clone(), 8));
            cases.push(("Q2CircleDetail", id, 17));
        }
        for (name, id, ceiling) in cases {
            let (_, statements) = ask(&server, operation(name), json!({ "id": id })).await;
            assert!(
                statements <= ceiling,
                "{email}: {name} took {statements} statements, not {ceiling}"
            );
            assert_ne!(statements, 0, "{email}: {name} was not counted");
        }
    }
}

#[tokio::test]
async fn the_reported_usage_matches_the_statements_sent() {
    let server = serve("demo@example.com").await;
    let before = server.statements();
    let body = json!({ "query": TEAM, "variables": { "id": ATELIER } });
    let request = server
        .server
        .request(reqwest::Method::POST, "/graphql")
        .bearer_auth(&server.token)
        .json(&body);
    let answer = request
        .header("X-Gathering-Usage", "1")
        .send()
        .await
        .expect("an answer");
    let answer: Value = answer.json().await.expect("JSON");
    let usage = &answer["extensions"]["usage"];
    let statements = server.statements() - before - AUTHENTICATION;
    assert_eq!(usage["statements"], json!(statements));
    assert_eq!(usage["complexity"], json!(503));
    assert_eq!(usage["batches"].as_array().map(Vec::len), Some(5));
    let agents = usage["batches"].as_array().expect("batches").iter();
    assert!(
        agents
            .clone()
            .any(|batch| batch["name"] == "agents by id" && batch["keys"] == 20)
    );
}

#[tokio::test]
async fn forward_and_backward_pagination_return_the_same_rows() {
    let server = serve("demo@example.com").await;
    for order in [
        "",
        "orderBy: {field: PRIORITY, direction: ASC}",
        "orderBy: {field: UPDATED_AT}",
    ] {
        let query = |page: &str| {
            format!(
                "query ($id: ID!, $at: String) {{ circle(id: $id) {{ tasks({page} {order}) {{
                    totalCount nodes {{ id }} pageInfo {{ hasNextPage hasPreviousPage startCursor endCursor }} }} }} }}"
            )
        };
        let mut walks = Vec::new();
        for (page, more, at) in [
            ("first: 7, after: $at,", "hasNextPage", "endCursor"),
            ("last: 7, before: $at,", "hasPreviousPage", "startCursor"),
        ] {
            let (mut ids, mut cursor) = (Vec::<Value>::new(), Value::Null);
            loop {
                let (data, _) = ask(
                    &server,
                    &query(page),
                    json!({ "id": ATELIER, "at": cursor }),
                )
                .await;
                let tasks = &data["circle"]["tasks"];
                assert_eq!(tasks["totalCount"], 60);
                let nodes = tasks["nodes"]
                    .as_array()
                    .expect("nodes")
                    .iter()
                    .map(|node| node["id"].clone());
                if at == "endCursor" {
                    ids.extend(nodes);
                } else {
                    ids.splice(0..0, nodes);
                }
                if tasks["pageInfo"][more] == false {
                    break;
                }
                cursor = tasks["pageInfo"][at].clone();
            }
            assert_eq!(ids.len(), 60);
            walks.push(ids);
        }
        assert_eq!(walks[0], walks[1], "{order}");
    }
}

#[tokio::test]
async fn members_are_ordered_by_join_time_and_former_members_are_optional() {
    let server = serve("demo@example.com").await;
    let query = "query ($id: ID!) { circle(id: $id) {
        now: members(first: 100) { totalCount edges { membership { role joinedAt } } }
        ever: members(first: 100, filter: {includeInactive: true}) { totalCount } } }";
    let (data, _) = ask(&server, query, json!({ "id": ATELIER })).await;
    let members = &data["circle"]["now"];
    assert_eq!(members["totalCount"], 20);
    assert_eq!(data["circle"]["ever"]["totalCount"], 22);
    let joined: Vec<_> = members["edges"]
        .as_array()
        .expect("edges")
        .iter()
        .map(|edge| edge["membership"]["joinedAt"].as_str())
        .collect();
    assert!(joined.is_sorted());
    assert_eq!(members["edges"][0]["membership"]["role"], "LEAD");
}

#[tokio::test]
async fn invalid_arguments_are_refused_by_name() {
    let server = serve("demo@example.com").await;
    let circles = "query ($first: Int, $last: Int, $after: String, $search: String) {
        circles(first: $first, last: $last, after: $after, filter: {search: $search}) { nodes { id } } }";
    let (agents, _) = ask(
        &server,
        "{ agents(first: 1) { pageInfo { endCursor } } }",
        json!({}),
    )
    .await;
    let foreign = &agents["agents"]["pageInfo"]["endCursor"];
    for (variables, field) in [
        (json!({ "first": 0 }), "first"),
        (json!({ "first": -1 }), "first"),
        (json!({ "first": 1_000_000 }), "first"),
        (json!({ "last": 101 }), "last"),
        (json!({ "first": 1, "last": 1 }), "last"),
        (json!({ "after": "" }), "after"),
        (json!({ "after": "no cursor" }), "after"),
        (json!({ "after": foreign }), "after"),
        (json!({ "after": "A".repeat(100_000) }), "after"),
        (json!({ "search": "x".repeat(101) }), "search"),
        (json!({ "search": "a\u{0}b" }), "search"),
    ] {
        let error = refused(&server, circles, variables.clone()).await;
        assert_eq!(error["extensions"]["code"], "BAD_USER_INPUT", "{variables}");
        assert_eq!(error["extensions"]["field"], field, "{variables}");
        assert_eq!(error["path"], json!(["circles"]));
    }
    for id in [
        "",
        "circle",
        "circle_",
        "agent_01ke6p9h3ge02r00000000004p",
        "circle_'; DROP TABLE circles",
        "☃",
    ] {
        let error = refused(
            &server,
            "query ($id: ID!) { circle(id: $id) { id } }",
            json!({ "id": id }),
        )
        .await;
        assert_eq!(error["extensions"]["code"], "BAD_USER_INPUT", "{id}");
        assert_eq!(error["extensions"]["expected"], "circle", "{id}");
    }
    let nothing = json!({ "id": "circle_01h455vb4pex5vsknk084sn02q" });
    let answer = server
        .graphql(
            "query ($id: ID!) { circle(id: $id) { id } node(id: $id) { id } }",
            nothing,
        )
        .await;
    assert_eq!(answer["data"], json!({ "circle": null, "node": null }));
    assert_eq!(answer["errors"][0]["extensions"]["code"], "NOT_FOUND");
}

#[tokio::test]
async fn names_are_searched_in_any_script_and_case() {
    let server = serve("demo@example.com").await;
    let query =
        "query ($search: String) { agents(first: 100, filter: {search: $search}) { totalCount } }";
    for (search, count) in [
        ("ada", 5),
        (" ADA ", 5),
        ("ＡＤＡ", 5),
        ("a_a", 0),
        ("%", 0),
        ("\\", 0),
        ("Ωmega", 0),
        ("🦀", 0),
    ] {
        let (data, _) = ask(&server, query, json!({ "search": search })).await;
        assert_eq!(data["agents"]["totalCount"], count, "{search}");
    }
}

#[tokio::test]
async fn nodes_returns_objects_in_the_order_of_the_ids() {
    let server = serve("guest@example.com").await;
    let (mine, _) = ask(
        &server,
        "{ viewer { id } circles { nodes { id } } }",
        json!({}),
    )
    .await;
    let shared = &mine["circles"]["nodes"][0]["id"];
    let ids = json!([
        ATELIER,
        mine["viewer"]["id"],
        shared,
        "task_01h455vb4pex5vsknk084sn02q"
    ]);
    let (data, _) = ask(
        &server,
        "query ($ids: [ID!]!) { nodes(ids: $ids) { __typename id } }",
        json!({ "ids": ids }),
    )
    .await;
    let expected = json!([
        null,
        { "__typename": "User", "id": mine["viewer"]["id"] },
        { "__typename": "Circle", "id": shared },
        null,
    ]);
    assert_eq!(data["nodes"], expected);
}

#[tokio::test]
async fn a_collaborator_sees_only_shared_objects() {
    let server = serve("guest@example.com").await;
    let query = "{ circles { totalCount nodes { name viewerAccess } }
        tasks { totalCount } agents { totalCount nodes { systemPrompt circles { nodes { name } } } }
        projects { totalCount } conversations { totalCount }
        dashboard { circles { total } tasks { open } }
        users: auditLog { totalCount } }";
    let answer = server.graphql(query, json!({})).await;
    assert_eq!(answer["errors"][0]["extensions"]["code"], "FORBIDDEN");
    assert_eq!(answer["data"], Value::Null);
    let query = query.replace("users: auditLog { totalCount }", "");
    let (data, _) = ask(&server, &query, json!({})).await;
    let access: Vec<_> = data["circles"]["nodes"]
        .as_array()
        .expect("circles")
        .iter()
        .map(|circle| (circle["name"].clone(), circle["viewerAccess"].clone()))
        .collect();
    assert_eq!(
        access,
        [
            (json!("Workshop"), json!("EDITOR")),
            (json!("Library"), json!("VIEWER"))
        ]
    );
    assert_eq!(data["tasks"]["totalCount"], 40);
    assert_eq!(data["dashboard"]["circles"]["total"], 2);
    assert_eq!(data["conversations"]["totalCount"], 8);
    for agent in data["agents"]["nodes"].as_array().expect("agents") {
        assert_eq!(agent["systemPrompt"], Value::Null);
        for circle in agent["circles"]["nodes"].as_array().expect("circles") {
            assert!(circle["name"] == "Library" || circle["name"] == "Workshop");
        }
    }
    for secret in [ATELIER, ASSEMBLY] {
        let error = refused(
            &server,
            "query ($id: ID!) { circle(id: $id) { id } }",
            json!({ "id": secret }),
        )
        .await;
        assert_eq!(error["extensions"]["code"], "NOT_FOUND");
    }
}

#[tokio::test]
async fn an_anonymous_caller_gets_only_public_fields() {
    let server = TestServer::start().await;
    let answer = server
        .ask(
            None,
            "{ viewer { id } serverInfo { name maxPageSize } circle(id: \"x\") { id } }",
            json!({}),
        )
        .await;
    assert_eq!(
        answer["data"],
        json!({ "viewer": null, "serverInfo": { "name": "Gathering", "maxPageSize": 100 }, "circle": null })
    );
    assert_eq!(answer["errors"][0]["extensions"]["code"], "UNAUTHENTICATED");
}

#[tokio::test]
async fn concurrent_requests_get_their_own_responses() {
    let server = serve("demo@example.com").await;
    let before = server.statements();
    let asked = (0..64).map(|place| {
        let id = if place % 2 == 0 { ATELIER } else { ASSEMBLY };
        let server = &server;
        async move { (id, server.graphql("query ($id: ID!) { circle(id: $id) { id members(first: 100) { totalCount nodes { id model { id } } } } }", json!({ "id": id })).await) }
    });
    for (id, answer) in futures_util::future::join_all(asked).await {
        assert_eq!(answer["data"]["circle"]["id"], id);
        let size = if id == ATELIER { 20 } else { 100 };
        assert_eq!(
            answer["data"]["circle"]["members"]["nodes"]
                .as_array()
                .map(Vec::len),
            Some(size)
        );
    }
    let statements = server.statements() - before;
    assert!(
        statements < 64 * 5,
        "64 requests shared no statement: {statements}"
    );
}

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
                "audit" => gathering::config::TrustedDocuments::Audit,
                _ => gathering::config::TrustedDocuments::Enforce,
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
    let answer = server.server.ask(
        Some(&server.token),
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
