//! How many statements operations take.

use super::*;

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
        caller.server.jump(READ_AGAIN);
        caller.graphql("{ __typename }", json!({})).await;
        assert_eq!(caller.statements() - before, statements * AUTHENTICATION);
    }
    let before = caller.statements();
    let answer = caller
        .server
        .anonymous()
        .answer("{ viewer { id } }", json!({}))
        .await;
    assert_eq!(answer, json!({ "data": { "viewer": null } }));
    assert_eq!(caller.statements(), before);
}

#[tokio::test]
async fn a_team_of_any_size_takes_at_most_two_statements() {
    for email in ["demo@example.com", "admin@example.com"] {
        let server = serve(email).await;
        let of_one = if server.server.database().is_postgres() {
            1
        } else {
            2
        };
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
            assert_eq!(statements, of_one, "{size} members");
        }
        let all =
            "{ circles(first: 20) { nodes { members { nodes { model { provider { id } } } } } } }";
        let (data, statements) = ask(&server, all, json!({})).await;
        assert_eq!(data["circles"]["nodes"].as_array().map(Vec::len), Some(12));
        assert_eq!(statements, 2, "twelve circles");
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
            cases.push(("Q2Team", id.clone(), 2));
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
    server.server.jump(READ_AGAIN);
    let before = server.statements();
    let body = json!({ "query": TEAM, "variables": { "id": ATELIER } });
    let request = server
        .server
        .request(reqwest::Method::POST, "/graphql")
        .bearer_auth(server.actor.token())
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
    let mut batches = usage["batches"].as_array().expect("batches").clone();
    batches.sort_by_key(|batch| batch["name"].to_string());
    let expected = if server.server.database().is_postgres() {
        json!([{ "name": "circles by id, circle_members by circle_id", "keys": 1 }])
    } else {
        json!([
            { "name": "circle_members by circle_id", "keys": 1 },
            { "name": "circles by id", "keys": 1 },
        ])
    };
    assert_eq!(json!(batches), expected);
}
