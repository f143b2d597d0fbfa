//! Names: equivalent spellings, invalid names, and the migration of rows from the previous folding.

use sea_orm::{ConnectionTrait, DatabaseConnection, Statement};
use serde_json::{Value, json};

use crate::support::actor::{Actor, faults};
use crate::support::database::{Database, PASSWORD};
use crate::support::server::TestServer;

const FAULTS: &str = "userErrors { field code }";

/// The user errors of a mutation.
async fn faults_of(actor: &Actor, name: &str, input: Value) -> Vec<String> {
    let answer = actor.mutate(name, FAULTS, input).await;
    assert!(answer["errors"].is_null(), "{name}: {answer}");
    faults(&answer["data"][name])
}

async fn register(server: &TestServer, email: &str) -> Vec<String> {
    let answer = server.anonymous().try_register(email, PASSWORD).await;
    faults(&answer["data"]["register"])
}

/// The id of the user who signs in; `None` if the sign-in fails.
async fn signs_in(server: &TestServer, email: &str, password: &str) -> Option<String> {
    let answer = server.anonymous().try_login(email, password).await;
    let id = &answer["data"]["login"]["viewer"]["id"];
    id.as_str().map(str::to_owned)
}

#[tokio::test]
async fn a_name_is_taken_in_every_equivalent_spelling() {
    let server = TestServer::start().await;
    let token = server.token("admin@example.com").await;
    let persona = |name: &str| json!({ "name": name, "displayName": "x", "role": "x" });
    let others = [
        "STRASSE",
        "strasse",
        "STRAẞE",
        "Stra\u{200b}ße",
        "\u{2060}Straße\u{feff}",
        "Straß\u{ad}e",
        "Straße\u{2800}",
        "ſtraſſe",
    ];
    for (mutation, input) in [
        (
            "createProject",
            &(|name: &str| json!({ "name": name })) as &dyn Fn(&str) -> Value,
        ),
        ("createCircle", &|name: &str| json!({ "name": name })),
        ("createAgent", &|name: &str| json!({ "name": name })),
        ("createPersona", &persona),
    ] {
        let first = faults_of(&server.with_token(&token), mutation, input("Straße")).await;
        assert_eq!(first, [""; 0], "{mutation}");
        for other in others {
            let again = faults_of(&server.with_token(&token), mutation, input(other)).await;
            assert_eq!(again, ["TAKEN name"], "{mutation} {other}");
        }
    }
    for list in ["projects", "circles", "agents", "personas"] {
        for search in ["STRASSE", "straße", "rass", "RAẞ", "s\u{200b}tr"] {
            let query = format!(
                "query ($s: String) {{ {list}(filter: {{ search: $s }}) {{ nodes {{ name }} }} }}"
            );
            let answer = server
                .with_token(&token)
                .answer(&query, json!({ "s": search }))
                .await;
            let nodes = answer["data"][list]["nodes"].as_array().expect("nodes");
            assert!(
                nodes.iter().any(|node| node["name"] == "Straße"),
                "{search}: {answer}"
            );
        }
    }
    assert_eq!(register(&server, "straße@example.com").await, [""; 0]);
    for other in [
        "STRASSE@example.com",
        "Strasse@EXAMPLE.com",
        "ſtraſſe@example.com",
    ] {
        assert_eq!(register(&server, other).await, ["TAKEN email"], "{other}");
        assert!(
            signs_in(&server, other, PASSWORD).await.is_some(),
            "{other}"
        );
    }
    assert_eq!(
        register(&server, "ad\u{200b}a@example.com").await,
        ["INVALID email"]
    );

    // Competencies are searched in folded form.
    let skilled = json!({ "name": "Skilled", "competencies": ["Maßarbeit", "MASSARBEIT"] });
    assert_eq!(
        faults_of(&server.with_token(&token), "createAgent", skilled).await,
        [""; 0]
    );
    let query =
        r#"{ agents(filter: { competency: "massARBEIT" }) { nodes { name competencies } } }"#;
    let answer = server.with_token(&token).answer(query, json!({})).await;
    assert_eq!(
        answer["data"]["agents"]["nodes"],
        json!([{ "name": "Skilled", "competencies": ["massarbeit"] }])
    );
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "the cases are a table")]
async fn invisible_text_does_not_satisfy_a_required_field() {
    let server = TestServer::start().await;
    let token = server.token("admin@example.com").await;
    let query = "{ circles(first: 1) { nodes { id name } } models(first: 1) { nodes { id provider { id } } }
        conversations(first: 1, filter: { status: [ACTIVE] }) { nodes { id } } projects(first: 1) { nodes { id } }
        tasks(first: 1, filter: { status: [IN_PROGRESS] }) { nodes { id version } } agents(first: 2) { nodes { id } }
        personas(first: 1) { nodes { id } } }";
    let things = server.with_token(&token).answer(query, json!({})).await;
    let id = |list: &str| things["data"][list]["nodes"][0]["id"].clone();
    let provider = &things["data"]["models"]["nodes"][0]["provider"]["id"];
    let own =
        "{ viewer { id } circles(first: 1) { nodes { members(first: 2) { nodes { id } } } } }";
    let own = server.graphql(own, json!({})).await;
    let agents = own.pointer("/data/circles/nodes/0/members/nodes");
    let agents = [0, 1].map(|n| &agents.expect("agents")[n]["id"]);
    let user = &own["data"]["viewer"]["id"];
    let demo = server.token("demo@example.com").await;
    for blank in [
        "\u{200b}",
        "\u{2060}",
        "\u{ad}",
        "\u{3164}",
        "\u{2800}",
        "\u{202e}",
        "\u{115f}",
        "\u{ffa0}",
        "\u{feff}",
        "\u{200d}\u{fe0f}",
        "\u{e0041}",
        "\u{301}",
        " \u{a0}\u{3000}\u{180e} ",
    ] {
        for (mutation, field, input) in [
            ("createProject", "name", json!({ "name": blank })),
            (
                "updateProject",
                "name",
                json!({ "projectId": id("projects"), "name": blank }),
            ),
            ("createCircle", "name", json!({ "name": blank })),
            ("createAgent", "name", json!({ "name": blank })),
            (
                "updateAgent",
                "name",
                json!({ "agentId": id("agents"), "expectedVersion": 1, "name": blank }),
            ),
            (
                "createPersona",
                "name",
                json!({ "name": blank, "displayName": "x", "role": "x" }),
            ),
            (
                "createPersona",
                "displayName",
                json!({ "name": "x", "displayName": blank, "role": "x" }),
            ),
            (
                "createPersona",
                "role",
                json!({ "name": "x", "displayName": "x", "role": blank }),
            ),
            (
                "createProvider",
                "displayName",
                json!({ "name": "x", "displayName": blank }),
            ),
            (
                "createModel",
                "name",
                json!({ "providerId": provider, "name": blank, "displayName": "x" }),
            ),
            (
                "createModel",
                "displayName",
                json!({ "providerId": provider, "name": "x", "displayName": blank }),
            ),
            (
                "updateModel",
                "displayName",
                json!({ "modelId": id("models"), "displayName": blank }),
            ),
            (
                "createTask",
                "title",
                json!({ "circleId": id("circles"), "title": blank }),
            ),
            (
                "createConversation",
                "topic",
                json!({ "topic": blank, "participantIds": agents }),
            ),
            (
                "postMessage",
                "content",
                json!({ "conversationId": id("conversations"), "content": blank }),
            ),
            ("updateProfile", "name", json!({ "name": blank })),
            (
                "updateUser",
                "name",
                json!({ "userId": user, "name": blank }),
            ),
        ] {
            let token = if mutation == "createConversation" {
                &demo
            } else {
                &token
            };
            let wrong = faults_of(&server.with_token(token), mutation, input).await;
            assert_eq!(
                wrong,
                [format!("REQUIRED {field}")],
                "{mutation} {}",
                blank.escape_unicode()
            );
        }
        let traits = json!({ "name": "x", "traits": ["a", blank] });
        let wrong = faults_of(&server.with_token(&token), "createAgent", traits).await;
        assert_eq!(wrong, ["INVALID traits.1"]);
    }
    let query = format!(
        "mutation ($i: CreateCircleInput!) {{ createCircle(input: $i) {{ circle {{ displayName description }} {FAULTS} }} }}"
    );
    let input =
        json!({ "name": "Bare", "displayName": "\u{200b}", "description": "\u{2800}\n\u{ad}" });
    let made = server
        .with_token(&token)
        .answer(&query, json!({ "i": input }))
        .await;
    let circle = &made["data"]["createCircle"]["circle"];
    assert_eq!(
        circle,
        &json!({ "displayName": null, "description": null }),
        "{made}"
    );
}

#[tokio::test]
async fn names_reject_invisible_controls_and_keep_joiners() {
    let server = TestServer::start().await;
    let token = server.token("demo@example.com").await;
    for bad in [
        "a\u{202e}b",
        "a\u{2066}b\u{2069}",
        "a\u{2028}b",
        "a\u{2029}b",
        "a\u{fff9}b",
        "a\u{206a}b",
        "a\u{e0068}\u{e0069}",
        "a\u{0}b",
        "a\u{7f}b",
        "a\u{85}b",
        "a\nb",
    ] {
        let wrong = faults_of(
            &server.with_token(&token),
            "createProject",
            json!({ "name": bad }),
        )
        .await;
        assert_eq!(wrong, ["INVALID name"], "{}", bad.escape_unicode());
    }
    for good in [
        "👩\u{200d}💻",
        "❤\u{fe0f}",
        "می\u{200c}خواهم",
        "क्\u{200d}ष",
        "🏴\u{e0067}\u{e0062}\u{e0065}\u{e006e}\u{e0067}\u{e007f}",
        "שלום\u{200f}!",
        "ไทย\u{200b}ดี",
        "𝒜da",
    ] {
        let query = format!(
            "mutation ($i: CreateProjectInput!) {{ createProject(input: $i) {{ project {{ name }} {FAULTS} }} }}"
        );
        let made = server
            .with_token(&token)
            .answer(&query, json!({ "i": { "name": good } }))
            .await;
        assert_eq!(
            made["data"]["createProject"]["project"]["name"], good,
            "{made}"
        );
    }
    let admin = server.token("admin@example.com").await;
    let providers = server
        .graphql("{ providers(first: 1) { nodes { id } } }", json!({}))
        .await;
    let provider = &providers["data"]["providers"]["nodes"][0]["id"];
    let model = |name: &str| json!({ "providerId": provider, "name": name, "displayName": "x" });
    assert_eq!(
        faults_of(&server.with_token(&admin), "createModel", model("edge-1")).await,
        [""; 0]
    );
    let wrong = faults_of(
        &server.with_token(&admin),
        "createModel",
        model("edge\u{200b}-1"),
    )
    .await;
    assert_eq!(wrong, ["INVALID name"]);
    let url = json!({ "name": "Linked", "repositoryUrl": "https://exam\u{200b}ple.com/x" });
    assert_eq!(
        faults_of(&server.with_token(&token), "createProject", url).await,
        ["INVALID repositoryUrl"]
    );
}

#[tokio::test]
async fn addresses_and_code_in_a_message_are_not_mentions() {
    let server = TestServer::start().await;
    let query = "{ conversations(first: 1, filter: { status: [ACTIVE] }) { nodes { id participants { nodes { name } } } } }";
    let found = server.graphql(query, json!({})).await;
    let talk = &found["data"]["conversations"]["nodes"][0];
    let name = talk["participants"]["nodes"][0]["name"].as_str();
    let name = name.unwrap_or_else(|| panic!("{found}"));
    for (content, expected) in [
        (format!("mail {name}@example.com or x@{name}.example"), 0),
        (format!("see https://host/@{name}"), 0),
        (format!("run `@{name}` and ``x ` @{name}``"), 0),
        (format!("```\n@{name}\n```\n~~~\n@{name}"), 0),
        (format!("@{name}"), 1),
        (format!("so (@{name})"), 1),
        (format!("`code`, then\n@{name}, go on"), 1),
    ] {
        let post = "mutation ($i: PostMessageInput!) { postMessage(input: $i) { message { mentions { name } } } }";
        let input = json!({ "conversationId": talk["id"], "content": content });
        let posted = server.graphql(post, json!({ "i": input })).await;
        let mentions = &posted["data"]["postMessage"]["message"]["mentions"];
        let mentions = mentions.as_array().unwrap_or_else(|| panic!("{posted}"));
        assert_eq!(mentions.len(), expected, "{content}");
    }
}

#[tokio::test]
async fn a_malformed_id_fails_only_its_own_entry() {
    let server = TestServer::start().await;
    let viewer = server.graphql("{ viewer { id } }", json!({})).await;
    let viewer = &viewer["data"]["viewer"]["id"];
    let ids = json!([
        "nonsense",
        viewer,
        "task_01h455vb4pex5vsknk084sn02q",
        "",
        viewer,
        "user_\0"
    ]);
    let query = "query ($ids: [ID!]!) { some: nodes(ids: $ids) { id } }";
    let answer = server.graphql(query, json!({ "ids": ids })).await;
    let user = json!({ "id": viewer });
    assert_eq!(
        answer["data"]["some"],
        json!([null, user, null, null, user, null]),
        "{answer}"
    );
    let errors = answer["errors"].as_array().expect("errors");
    let mut paths: Vec<_> = errors.iter().map(|error| error["path"].clone()).collect();
    paths.sort_by_key(|path| path[1].as_u64());
    assert_eq!(
        paths,
        [json!(["some", 0]), json!(["some", 3]), json!(["some", 5])]
    );
    for error in errors {
        assert_eq!(error["extensions"]["code"], "BAD_USER_INPUT", "{answer}");
        assert_eq!(error["extensions"]["field"], "ids", "{answer}");
    }
}

#[tokio::test]
async fn a_decimal_that_would_lose_digits_is_refused() {
    let server = TestServer::start().await;
    let token = server.token("admin@example.com").await;
    let models = server
        .graphql("{ models(first: 1) { nodes { id } } }", json!({}))
        .await;
    let model = &models["data"]["models"]["nodes"][0]["id"];
    let set = async |price: &str, is_literal: bool| {
        let (declared, price, variables) = if is_literal {
            ("", price, "{}".to_owned())
        } else {
            ("($p: Decimal)", "$p", format!("{{\"p\":{price}}}"))
        };
        let query = format!(
            "mutation{declared} {{ updateModel(input: {{modelId: {model}, priceInput: {price}}}) {{ model {{ priceInput }} }} }}"
        );
        let body = format!(
            "{{\"query\":{},\"variables\":{variables}}}",
            Value::from(query)
        );
        let request = server
            .request(reqwest::Method::POST, "/graphql")
            .bearer_auth(&token);
        let request = request
            .header("content-type", "application/json")
            .body(body);
        let answer: Value = request
            .send()
            .await
            .expect("an answer")
            .json()
            .await
            .expect("JSON");
        answer
    };
    for is_literal in [false, true] {
        for (price, shown) in [
            ("3", "3.000000"),
            ("9007199254741", "9007199254741.000000"),
            ("\"0.100001\"", "0.100001"),
        ] {
            let answer = set(price, is_literal).await;
            assert_eq!(
                answer["data"]["updateModel"]["model"]["priceInput"], shown,
                "{answer}"
            );
        }
        // A literal keeps all its digits, a JSON number does not.
        for (price, shown) in [
            ("0.27", "0.270000"),
            ("1.0", "1.000000"),
            ("9007199254740.9935", "9007199254740.993500"),
        ] {
            let answer = set(price, is_literal).await;
            let set = &answer["data"]["updateModel"]["model"]["priceInput"];
            let message = answer["errors"][0]["message"].as_str().unwrap_or_default();
            if is_literal {
                assert_eq!(set, shown, "{answer}");
            } else {
                assert!(set.is_null() && message.contains("as a string"), "{answer}");
            }
        }
        for price in [
            "0.10000000000000000001",
            "1e3",
            "1e30",
            "100000000000000000000",
        ] {
            let answer = set(price, is_literal).await;
            let message = answer["errors"][0]["message"].as_str().unwrap_or_default();
            assert!(answer["data"]["updateModel"].is_null(), "{price}: {answer}");
            assert!(!message.is_empty(), "{price}: {answer}");
            if !is_literal {
                assert!(message.contains("as a string"), "{price}: {answer}");
            }
        }
    }
}

async fn run(db: &DatabaseConnection, sql: &str) {
    db.execute_unprepared(sql)
        .await
        .unwrap_or_else(|error| panic!("{sql}: {error}"));
}

async fn texts(db: &DatabaseConnection, sql: &str) -> Vec<String> {
    let statement = Statement::from_string(db.get_database_backend(), sql);
    let rows = db.query_all_raw(statement).await.expect("answers");
    rows.iter()
        .map(|row| row.try_get_by_index(0).expect("text"))
        .collect()
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "the cases are a table")]
async fn the_folding_migration_updates_rows_and_loses_none() {
    let database = Database::seeded().await;
    let db = database.connect().await;
    // The database as the previous version left it.
    run(
        &db,
        "DELETE FROM seaql_migrations WHERE version = 'm0004_folding'",
    )
    .await;
    let nth = |table: &str, n: usize| {
        format!("id = (SELECT id FROM {table} ORDER BY id LIMIT 1 OFFSET {n})")
    };
    let named = async |table: &str, column: &str, n: usize, text: &str, key: &str| {
        let place = nth(table, n);
        run(
            &db,
            &format!(
                "UPDATE {table} SET {column} = '{text}', {column}_key = '{key}' WHERE {place}"
            ),
        )
        .await;
    };
    run(
        &db,
        "UPDATE agents SET owner_id = (SELECT id FROM users ORDER BY id LIMIT 1)",
    )
    .await;
    named("agents", "name", 0, "Straße", "straße").await;
    named("agents", "name", 1, "STRASSE", "strasse").await;
    named("agents", "name", 2, "Maß", "maß").await;
    named("agents", "name", 3, "Ma\u{200b}ß", "ma\u{200b}ß").await;
    named("agents", "name", 4, "\u{200b}", "\u{200b}").await;
    let long = "ß".repeat(100);
    named("agents", "name", 5, &long, &long).await;
    named("personas", "name", 0, "Groß", "groß").await;
    named(
        "users",
        "email",
        0,
        "straße@example.com",
        "straße@example.com",
    )
    .await;
    named(
        "users",
        "email",
        1,
        "Strasse@example.com",
        "strasse@example.com",
    )
    .await;
    named("users", "email", 2, "groß@example.com", "groß@example.com").await;
    // Rows outside the unique index do not conflict.
    run(
        &db,
        "UPDATE projects SET owner_id = (SELECT id FROM users ORDER BY id LIMIT 1)",
    )
    .await;
    named("projects", "name", 0, "Fuß", "fuß").await;
    named("projects", "name", 1, "Fuss", "fuss").await;
    run(
        &db,
        &format!(
            "UPDATE projects SET status = 'ARCHIVED' WHERE {}",
            nth("projects", 1)
        ),
    )
    .await;
    for (table, column) in [
        ("agents", "competencies"),
        ("tasks", "required_competencies"),
    ] {
        let words = r#"["maß","mass","rust","\u200b"]"#;
        run(
            &db,
            &format!(
                "UPDATE {table} SET {column} = '{words}' WHERE {}",
                nth(table, 0)
            ),
        )
        .await;
    }
    let counts =
        "SELECT CAST((SELECT count(*) FROM agents) + (SELECT count(*) FROM users) AS text)";
    let before = texts(&db, counts).await;

    gathering_migration::up(&db).await.expect("up");
    assert_eq!(texts(&db, counts).await, before);
    let keys = async |table: &str, key: &str, most: usize| {
        texts(
            &db,
            &format!("SELECT {key} FROM {table} ORDER BY id LIMIT {most}"),
        )
        .await
    };
    let agents = keys("agents", "name_key", 6).await;
    assert_eq!(
        agents,
        [
            "straße",
            "strasse",
            "mass",
            "ma\u{200b}ß",
            "\u{200b}",
            &long
        ]
    );
    assert_eq!(keys("personas", "name_key", 1).await, ["gross"]);
    let users = keys("users", "email_key", 3).await;
    assert_eq!(
        users,
        [
            "straße@example.com",
            "strasse@example.com",
            "gross@example.com"
        ]
    );
    assert_eq!(keys("projects", "name_key", 2).await, ["fuss", "fuss"]);
    for (table, column) in [
        ("agents", "competencies"),
        ("tasks", "required_competencies"),
    ] {
        let list = texts(
            &db,
            &format!("SELECT CAST({column} AS text) FROM {table} ORDER BY id LIMIT 1"),
        )
        .await;
        let list: Value = serde_json::from_str(&list[0]).expect("JSON");
        assert_eq!(list, json!(["mass", "rust", "\u{200b}"]));
    }
    let ids = texts(&db, "SELECT email FROM users ORDER BY id LIMIT 3").await;
    assert_eq!(
        ids,
        [
            "straße@example.com",
            "Strasse@example.com",
            "groß@example.com"
        ]
    );
    db.close().await.expect("closes");

    // Each user still signs in to their own account, and equivalent addresses cannot be registered.
    let server = TestServer::on(database, |_| ()).await;
    let mut found = Vec::new();
    for email in [
        "straße@example.com",
        "STRASSE@example.com",
        "GROSS@example.com",
    ] {
        let id = signs_in(&server, email, PASSWORD).await;
        found.push(id.unwrap_or_else(|| panic!("{email} signs in")));
    }
    assert_eq!(
        signs_in(&server, "Straße@Example.com", PASSWORD)
            .await
            .as_ref(),
        Some(&found[0])
    );
    assert_eq!(
        signs_in(&server, "strasse@example.com", PASSWORD)
            .await
            .as_ref(),
        Some(&found[1])
    );
    assert_eq!(
        signs_in(&server, "groß@example.com", PASSWORD)
            .await
            .as_ref(),
        Some(&found[2])
    );
    assert_ne!(found[0], found[1]);
    for email in [
        "ſtraſſe@example.com",
        "STRAẞE@example.com",
        "gross@example.com",
    ] {
        assert_eq!(register(&server, email).await, ["TAKEN email"], "{email}");
    }
}
