//! Projects: creation, updates, archiving, and deletion.

use gathering_entity::circle;
use sea_orm::sea_query::Expr;
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter};
use serde_json::{Value, json};

use super::{ADMIN, DEMO, GUEST, Team, faults, forbidden, not_found, uuid, wrong};

impl Team {
    async fn project(&self, name: &str) -> Value {
        let input = json!({ "name": name });
        self.thing(DEMO, "createProject", input).await
    }
}

#[tokio::test]
async fn creating_updating_and_deleting_a_project_creates_one_event_each() {
    let team = Team::new().await;
    let made = team.project(" Élan ").await;
    let id = made["id"].clone();
    let expected = json!({
        "id": id, "owner": made["owner"], "name": "Élan", "description": null, "repositoryUrl": null,
        "defaultBranch": "main", "status": "ACTIVE", "techStack": [], "languages": [], "frameworks": [],
        "updatedAt": made["updatedAt"],
    });
    assert_eq!(made, expected);
    let fields = json!({
        "name": "Vim", "description": "Long.\nLonger.", "repositoryUrl": "HTTPS://example.com/x", "defaultBranch": "dev",
        "techStack": ["Rust", "rust"], "languages": ["Rust"], "frameworks": ["axum"], "status": "ARCHIVED",
    });
    let mut update = fields.clone();
    update["projectId"] = id.clone();
    let changed = team.thing(DEMO, "updateProject", update.clone()).await;
    for (field, value) in fields.as_object().expect("an object") {
        let value = if field == "techStack" {
            json!(["Rust"])
        } else {
            value.clone()
        };
        assert_eq!(changed[field], value, "{field}");
    }
    assert_ne!(changed["updatedAt"], made["updatedAt"]);
    // Repeating the update changes nothing.
    assert_eq!(team.thing(DEMO, "updateProject", update).await, changed);
    let nulls = json!({
        "projectId": id, "description": null, "repositoryUrl": " ", "techStack": null, "languages": [], "frameworks": null,
    });
    let cleared = team.thing(DEMO, "updateProject", nulls).await;
    assert_eq!(cleared["description"], Value::Null);
    assert_eq!(cleared["repositoryUrl"], Value::Null);
    assert_eq!(cleared["frameworks"], json!([]));
    assert_eq!(cleared["name"], "Vim");
    team.delete(ADMIN, "deleteProject", &id).await;

    let [demo, admin] = [team.user(DEMO).await, team.user(ADMIN).await];
    let all = json!([
        "name",
        "description",
        "repositoryUrl",
        "defaultBranch",
        "techStack",
        "languages",
        "frameworks",
        "status"
    ]);
    let some = json!([
        "description",
        "repositoryUrl",
        "techStack",
        "languages",
        "frameworks"
    ]);
    let event = |ty: &str, actor: &Value, name: &str, changed: Value| {
        json!({
            "type": ty, "actor": { "id": actor }, "projectId": id, "name": name, "changed": changed, "project": null,
        })
    };
    let expected = [
        event("PROJECT_CREATED", &demo, "Élan", json!([])),
        event("PROJECT_UPDATED", &demo, "Vim", all),
        event("PROJECT_UPDATED", &demo, "Vim", some),
        event("PROJECT_DELETED", &admin, "Vim", json!([])),
    ];
    assert_eq!(team.events(DEMO, &id, 4).await, expected);
    for row in team.rows(&id).await {
        assert_eq!(row.owner_id, Some(uuid(&demo)));
        assert_eq!(row.project_id, Some(uuid(&id)));
        assert!(row.payload["updatedAt"].is_string());
    }
}

#[tokio::test]
async fn all_input_errors_of_a_project_are_reported_together() {
    let team = Team::new().await;
    let words: Vec<_> = (0..51).map(|n| format!("w{n}")).collect();
    let mut input = json!({
        "name": "\u{fdfa}".repeat(200), "description": "x".repeat(10_001), "repositoryUrl": "git@example.com:x",
        "defaultBranch": "x".repeat(101), "techStack": words, "languages": [""], "frameworks": ["axum", "x".repeat(101)],
    });
    let expected = wrong([
        ("name", "TOO_LONG"),
        ("description", "TOO_LONG"),
        ("repositoryUrl", "INVALID"),
        ("defaultBranch", "TOO_LONG"),
        ("techStack", "TOO_MANY"),
        ("languages.0", "INVALID"),
        ("frameworks.1", "TOO_LONG"),
    ]);
    let refused = team.payload(DEMO, "createProject", input.clone()).await;
    assert_eq!(refused["project"], Value::Null);
    assert_eq!(faults(&refused), expected);
    let project = team.project("Élan").await;
    input["projectId"] = project["id"].clone();
    let refused = team.payload(DEMO, "updateProject", input).await;
    assert_eq!(refused["project"], project);
    assert_eq!(faults(&refused), expected);
    let nulls =
        json!({ "projectId": project["id"], "name": null, "defaultBranch": null, "status": null });
    let expected = wrong([
        ("name", "REQUIRED"),
        ("defaultBranch", "REQUIRED"),
        ("status", "REQUIRED"),
    ]);
    assert_eq!(team.faults(DEMO, "updateProject", nulls).await, expected);
    team.events(DEMO, &project["id"], 1).await;
}

#[tokio::test]
async fn the_name_of_an_archived_project_can_be_reused() {
    let team = Team::new().await;
    let first = team.project("Élan").await;
    let taken = wrong([("name", "TAKEN")]);
    let again = json!({ "name": "E\u{301}LAN" });
    let refused = team.faults(DEMO, "createProject", again.clone()).await;
    assert_eq!(refused, taken);
    // Project names are unique per owner.
    team.thing(GUEST, "createProject", again.clone()).await;
    let put = |status: &str| json!({ "projectId": first["id"], "status": status });
    team.thing(DEMO, "updateProject", put("ARCHIVED")).await;
    let second = team.thing(DEMO, "createProject", again).await;
    let refused = team.payload(DEMO, "updateProject", put("ACTIVE")).await;
    assert_eq!(faults(&refused), taken);
    assert_eq!(refused["project"]["status"], "ARCHIVED");
    team.delete(DEMO, "deleteProject", &second["id"]).await;
    let back = team.thing(DEMO, "updateProject", put("ACTIVE")).await;
    assert_eq!(back["status"], "ACTIVE");
}

#[tokio::test]
async fn collaborators_cannot_change_a_project_and_its_circles_survive_deletion() {
    let team = Team::new().await;
    let project = team.project("Élan").await;
    let rename = json!({ "projectId": project["id"], "name": "Mine" });
    let delete = json!({ "id": project["id"] });
    let refused = team.refusal(GUEST, "updateProject", rename.clone()).await;
    assert_eq!(refused, not_found("projectId"));
    let refused = team.refusal(GUEST, "deleteProject", delete.clone()).await;
    assert_eq!(refused, not_found("id"));

    // A circle that the guest can edit is linked to the project.
    let query = "{ circles(first: 1, filter: { access: [EDITOR] }) { nodes { id } } }";
    let shared = team.data(GUEST, query, json!({})).await;
    let shared = shared["circles"]["nodes"][0]["id"].clone();
    let link = circle::Entity::update_many()
        .col_expr(circle::Column::ProjectId, Expr::value(uuid(&project["id"])))
        .filter(circle::Column::Id.eq(uuid(&shared)));
    link.exec(&team.db().await).await.expect("writes");
    for (name, input) in [("updateProject", rename), ("deleteProject", delete)] {
        let refused = team.refusal(GUEST, name, input).await;
        assert_eq!(refused, forbidden(), "{name}");
    }
    team.delete(DEMO, "deleteProject", &project["id"]).await;
    let query = "query($id: ID!) { circle(id: $id) { project { id } } }";
    let left = team.data(GUEST, query, json!({ "id": shared })).await;
    assert_eq!(left["circle"], json!({ "project": null }));
}

#[tokio::test]
async fn a_single_line_text_allows_tabs_but_no_other_control_characters() {
    let team = Team::new().await;
    let project = team.project("Two\tcolumns").await;
    assert_eq!(project["name"], "Two\tcolumns");
    let expected = wrong([("name", "INVALID")]);
    for name in ["Two\nlines", "Two\r\nlines", "A\u{b}bell"] {
        let input = json!({ "name": name });
        assert_eq!(
            team.faults(DEMO, "createProject", input).await,
            expected,
            "{name:?}"
        );
    }
}

#[tokio::test]
async fn a_repository_url_needs_a_host_and_has_no_credentials() {
    let team = Team::new().await;
    let id = team.project("Élan").await["id"].clone();
    let update = |url: &str| json!({ "projectId": id, "repositoryUrl": url });
    for url in [
        "http://localhost",
        "Https://example.com:8443/a%20path?q=a@b#c",
        "https://[2001:db8::1]/x",
        "https://bücher.example/é",
    ] {
        let changed = team.thing(DEMO, "updateProject", update(url)).await;
        assert_eq!(changed["repositoryUrl"], url);
    }
    let expected = wrong([("repositoryUrl", "INVALID")]);
    for url in [
        "https://",
        "https://[",
        "https://?q",
        "https://:80",
        "https:///example.com",
        "https:example.com",
        "http://\\",
        "http:\\\\example.com",
        "https://example.com:99999",
        "https://exa mple.com",
        "https://exa\tmple.com",
        "https://user:secret@example.com",
        "https://user@example.com",
        "https://:secret@example.com",
        "ftp://example.com",
        "javascript:alert(1)",
        "git@example.com:x",
        "example.com",
    ] {
        let faults = team.faults(DEMO, "updateProject", update(url)).await;
        assert_eq!(faults, expected, "{url}");
    }
}
