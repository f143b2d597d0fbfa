//! Edge cases of documents and variables: their cost, invalid values, and directives.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::support::server::TestServer;

fn code(answer: &Value) -> &str {
    answer["errors"][0]["extensions"]["code"]
        .as_str()
        .unwrap_or_default()
}

#[tokio::test]
async fn deeply_nested_lists_of_an_interface_are_refused() {
    let server = TestServer::start().await;
    let levels = 20;
    let document = format!(
        "{{ {} id {} }}",
        "events(first: 1) { nodes { circle { ".repeat(levels),
        "} } }".repeat(levels)
    );
    let answer = server.graphql(&document, json!({})).await;
    assert_eq!(code(&answer), "QUERY_TOO_COMPLEX", "{answer}");
}

#[tokio::test]
async fn selections_with_exponentially_many_merges_are_refused() {
    let server = TestServer::start().await;
    let levels = 30;
    let mut document = String::from("{ task(id: 1) { ...Z0 } }");
    for level in 0..levels {
        let next = level + 1;
        let _ = write!(
            document,
            " fragment Z{level} on Task {{ a: parent {{ ...Z{next} ...Q1 }} b: parent {{ ...Z{next} }} }}"
        );
        if level > 0 {
            let _ = write!(
                document,
                " fragment Q{level} on Task {{ a: parent {{ ...Q{next} }} b: parent {{ ...Q{next} }} }}"
            );
        }
    }
    let _ = write!(
        document,
        " fragment Z{levels} on Task {{ id }} fragment Q{levels} on Task {{ id }}"
    );
    let answer = server.graphql(&document, json!({})).await;
    assert_eq!(code(&answer), "QUERY_TOO_COMPLEX", "{answer}");
}

#[tokio::test]
async fn a_fragment_is_counted_in_each_operation() {
    let server = TestServer::start().await;
    let operations = |count: usize| {
        let names = (0..count).map(|number| format!("query Q{number} {{ ...F }} "));
        let fields = "__typename ".repeat(1_000);
        names.collect::<String>() + &format!("fragment F on Query {{ {fields} }}")
    };
    for (count, expected) in [(5, "GRAPHQL_VALIDATION_FAILED"), (300, "QUERY_TOO_COMPLEX")] {
        let answer = server.graphql(&operations(count), json!({})).await;
        assert_eq!(code(&answer), expected, "{count} operations: {answer}");
    }
}

#[tokio::test]
async fn repeated_filter_values_count_once_and_list_lengths_are_limited() {
    let server = TestServer::start().await;
    let query = "query ($s: [TaskStatus!]) { circles { nodes { tasks(filter: { status: $s }) { totalCount } } } }";
    let once = json!({ "s": ["COMPLETED"] });
    let often = json!({ "s": vec!["COMPLETED"; 1_000] });
    assert_eq!(
        server.graphql(query, often).await["data"],
        server.graphql(query, once).await["data"],
    );
    for (items, lists) in [(1_001, 1), (1_000, 10)] {
        let (mut variables, mut definitions, mut fields) =
            (json!({}), String::new(), String::new());
        for list in 0..lists {
            let _ = write!(definitions, "$l{list}: [ID!]! ");
            let _ = write!(fields, "n{list}: nodes(ids: $l{list}) {{ id }} ");
            variables[format!("l{list}")] = json!(vec!["circle_0"; items]);
        }
        let query = format!("query ({definitions}) {{ {fields} }}");
        let answer = server.graphql(&query, variables).await;
        assert_eq!(code(&answer), "BAD_USER_INPUT", "{answer}");
        let last = format!("l{}", lists - 1);
        assert_eq!(answer["errors"][0]["extensions"]["field"], last);
    }
}

#[tokio::test]
async fn a_variable_error_names_the_variable_and_omits_a_long_value() {
    let server = TestServer::start().await;
    let query =
        "query ($a: String, $b: Int) { agents(first: $b, filter: { search: $a }) { totalCount } }";
    let long = "variable a: ".repeat(50_000);
    let answer = server.graphql(query, json!({ "b": long })).await;
    assert_eq!(code(&answer), "BAD_USER_INPUT");
    assert_eq!(answer["errors"][0]["extensions"]["field"], "b");
    let message = answer["errors"][0]["message"].as_str().expect("a message");
    assert!(message.len() < 1_000, "{} bytes", message.len());

    let create = "mutation ($input: CreateProjectInput!) { createProject(input: $input) { userErrors { code } } }";
    let answer = server
        .graphql(create, json!({ "input": { "name": 5 } }))
        .await;
    assert_eq!(code(&answer), "BAD_USER_INPUT");
    assert_eq!(answer["errors"][0]["extensions"]["field"], "input");
}

#[tokio::test]
async fn directives_of_other_operations_are_ignored() {
    let server = TestServer::start().await;
    let query = "query A($s: Boolean) { models(filter: { includeDeprecated: $s }) { totalCount } }
        query B($s: Boolean!) { __typename @include(if: $s) }";
    let token = server.token("demo@example.com").await;
    let request = server.request(reqwest::Method::POST, "/graphql");
    let body = json!({ "query": query, "variables": { "s": null }, "operationName": "A" });
    let answer = request.bearer_auth(token).json(&body).send().await;
    let answer: Value = answer.expect("an answer").json().await.expect("JSON");
    assert!(answer["data"]["models"]["totalCount"].is_u64(), "{answer}");
}

#[tokio::test]
async fn an_invalid_custom_scalar_value_refuses_the_whole_request() {
    let server = TestServer::start().await;
    let create = |name: &str| {
        format!("a: createProject(input: {{ name: \"{name}\" }}) {{ project {{ id }} }}")
    };
    let task = "b: createTask(input: { circleId: \"circle_0\", title: \"T\", dueAt:";
    let literals = ["\"nope\"", "5", "{ a: 1 }", "NOPE"];
    for literal in literals {
        let mutation = format!(
            "mutation {{ {} {task} {literal} }}) {{ task {{ id }} }} }}",
            create("Nope")
        );
        let answer = server.graphql(&mutation, json!({})).await;
        assert_eq!(code(&answer), "GRAPHQL_VALIDATION_FAILED", "{answer}");
        assert!(answer.get("data").is_none(), "{answer}");
        let default = format!(
            "query ($d: DateTime = {literal}) {{ tasks(filter: {{ dueBefore: $d }}) {{ totalCount }} }}"
        );
        let answer = server.graphql(&default, json!({})).await;
        assert_eq!(code(&answer), "GRAPHQL_VALIDATION_FAILED", "{answer}");
    }
    let mutation = format!(
        "mutation ($d: DateTime) {{ {} {task} $d }}) {{ task {{ id }} }} }}",
        create("Nope")
    );
    let model = format!(
        "mutation ($i: CreateModelInput!) {{ {} b: createModel(input: $i) {{ model {{ id }} }} }}",
        create("Nope")
    );
    let input =
        json!({ "providerId": "provider_0", "name": "m", "displayName": "M", "priceInput": 0.5 });
    for (mutation, variables, field) in [
        (mutation, json!({ "d": "nope" }), "d"),
        (model, json!({ "i": input }), "i"),
    ] {
        let answer = server.graphql(&mutation, variables).await;
        assert_eq!(code(&answer), "BAD_USER_INPUT", "{answer}");
        assert_eq!(answer["errors"][0]["extensions"]["field"], field);
        assert!(answer.get("data").is_none(), "{answer}");
    }
    let search = "{ projects(filter: { search: \"Nope\" }) { totalCount } }";
    let found = server.graphql(search, json!({})).await;
    assert_eq!(found["data"]["projects"]["totalCount"], 0);
}

#[tokio::test]
async fn a_mutation_that_selects_only_typename_needs_a_valid_token() {
    let server = TestServer::start().await;
    let answer = server
        .with_token("bad")
        .answer("mutation { __typename }", json!({}))
        .await;
    assert_eq!(code(&answer), "UNAUTHENTICATED");
    let token = server.token("demo@example.com").await;
    let request = server.request(reqwest::Method::POST, "/graphql");
    let request = request.bearer_auth(token).header("idempotency-key", "none");
    let body = json!({ "query": "mutation { __typename }" });
    let answer = request.json(&body).send().await.expect("an answer");
    let answer: Value = answer.json().await.expect("JSON");
    assert_eq!(answer["data"], json!({ "__typename": "Mutation" }));
}
