//! Lists, look-ups, and who may read them.

use super::*;

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
        .anonymous()
        .answer(
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
