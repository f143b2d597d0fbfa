//! Projects: creation, updates, archiving, and deletion.

use gathering_entity::circle;
use sea_orm::sea_query::Expr;
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter};
use serde_json::{Value, json};

use super::{sorted, uuid};
use crate::support::actor::{Demo, faults};

impl Demo {
    async fn project(&self, name: &str) -> Value {
        let input = json!({ "name": name });
        self.owner.saved("createProject", input).await
    }
}

#[tokio::test]
async fn creating_updating_and_deleting_a_project_creates_one_event_each() {
    let demo = Demo::start().await;
    let made = demo.project(" Élan ").await;
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
    let changed = demo.owner.saved("updateProject", update.clone()).await;
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
    assert_eq!(demo.owner.saved("updateProject", update).await, changed);
    let nulls = json!({
        "projectId": id, "description": null, "repositoryUrl": " ", "techStack": null, "languages": [], "frameworks": null,
    });
    let cleared = demo.owner.saved("updateProject", nulls).await;
    assert_eq!(cleared["description"], Value::Null);
    assert_eq!(cleared["repositoryUrl"], Value::Null);
    assert_eq!(cleared["frameworks"], json!([]));
    assert_eq!(cleared["name"], "Vim");
    demo.admin.delete("deleteProject", &id).await;

    let [owner, admin] = [demo.owner.id().await, demo.admin.id().await];
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
        event("PROJECT_CREATED", &owner, "Élan", json!([])),
        event("PROJECT_UPDATED", &owner, "Vim", all),
        event("PROJECT_UPDATED", &owner, "Vim", some),
        event("PROJECT_DELETED", &admin, "Vim", json!([])),
    ];
    assert_eq!(demo.events_of(&demo.owner, &id, 4).await, expected);
    for row in demo.rows_of(&id).await {
        assert_eq!(row.owner_id, Some(uuid(&owner)));
        assert_eq!(row.project_id, Some(uuid(&id)));
        assert!(row.payload["updatedAt"].is_string());
    }
}

#[tokio::test]
async fn all_input_errors_of_a_project_are_reported_together() {
    let demo = Demo::start().await;
    let words: Vec<_> = (0..51).map(|n| format!("w{n}")).collect();
    let mut input = json!({
        "name": "\u{fdfa}".repeat(200), "description": "x".repeat(10_001), "repositoryUrl": "git@example.com:x",
        "defaultBranch": "x".repeat(101), "techStack": words, "languages": [""], "frameworks": ["axum", "x".repeat(101)],
    });
    let expected = [
        "INVALID languages.0",
        "INVALID repositoryUrl",
        "TOO_LONG defaultBranch",
        "TOO_LONG description",
        "TOO_LONG frameworks.1",
        "TOO_LONG name",
        "TOO_MANY techStack",
    ];
    let refused = demo.owner.payload("createProject", input.clone()).await;
    assert_eq!(refused["project"], Value::Null);
    assert_eq!(sorted(faults(&refused)), expected);
    let project = demo.project("Élan").await;
    input["projectId"] = project["id"].clone();
    let refused = demo.owner.payload("updateProject", input).await;
    assert_eq!(refused["project"], project);
    assert_eq!(sorted(faults(&refused)), expected);
    let nulls =
        json!({ "projectId": project["id"], "name": null, "defaultBranch": null, "status": null });
    let expected = ["REQUIRED defaultBranch", "REQUIRED name", "REQUIRED status"];
    assert_eq!(
        sorted(demo.owner.faults("updateProject", nulls).await),
        expected
    );
    demo.events_of(&demo.owner, &project["id"], 1).await;
}

#[tokio::test]
async fn the_name_of_an_archived_project_can_be_reused() {
    let demo = Demo::start().await;
    let first = demo.project("Élan").await;
    let taken = ["TAKEN name"];
    let again = json!({ "name": "E\u{301}LAN" });
    let refused = demo.owner.faults("createProject", again.clone()).await;
    assert_eq!(refused, taken);
    // Project names are unique per owner.
    demo.guest.saved("createProject", again.clone()).await;
    let put = |status: &str| json!({ "projectId": first["id"], "status": status });
    demo.owner.saved("updateProject", put("ARCHIVED")).await;
    let second = demo.owner.saved("createProject", again).await;
    let refused = demo.owner.payload("updateProject", put("ACTIVE")).await;
    assert_eq!(faults(&refused), taken);
    assert_eq!(refused["project"]["status"], "ARCHIVED");
    demo.owner.delete("deleteProject", &second["id"]).await;
    let back = demo.owner.saved("updateProject", put("ACTIVE")).await;
    assert_eq!(back["status"], "ACTIVE");
}

#[tokio::test]
async fn collaborators_cannot_change_a_project_and_its_circles_survive_deletion() {
    let demo = Demo::start().await;
    let project = demo.project("Élan").await;
    let rename = json!({ "projectId": project["id"], "name": "Mine" });
    let delete = json!({ "id": project["id"] });
    let refused = demo.guest.refused("updateProject", rename.clone()).await;
    assert_eq!(refused, "NOT_FOUND projectId");
    let refused = demo.guest.refused("deleteProject", delete.clone()).await;
    assert_eq!(refused, "NOT_FOUND id");

    // A circle that the guest can edit is linked to the project.
    let query = "{ circles(first: 1, filter: { access: [EDITOR] }) { nodes { id } } }";
    let shared = demo.guest.ask(query, json!({})).await;
    let shared = shared["circles"]["nodes"][0]["id"].clone();
    let link = circle::Entity::update_many()
        .col_expr(circle::Column::ProjectId, Expr::value(uuid(&project["id"])))
        .filter(circle::Column::Id.eq(uuid(&shared)));
    link.exec(&demo.db.clone()).await.expect("writes");
    for (name, input) in [("updateProject", rename), ("deleteProject", delete)] {
        let refused = demo.guest.refused(name, input).await;
        assert_eq!(refused, "FORBIDDEN", "{name}");
    }
    demo.owner.delete("deleteProject", &project["id"]).await;
    let query = "query($id: ID!) { circle(id: $id) { project { id } } }";
    let left = demo.guest.ask(query, json!({ "id": shared })).await;
    assert_eq!(left["circle"], json!({ "project": null }));
}

#[tokio::test]
async fn a_single_line_text_allows_tabs_but_no_other_control_characters() {
    let demo = Demo::start().await;
    let project = demo.project("Two\tcolumns").await;
    assert_eq!(project["name"], "Two\tcolumns");
    let expected = ["INVALID name"];
    for name in ["Two\nlines", "Two\r\nlines", "A\u{b}bell"] {
        let input = json!({ "name": name });
        assert_eq!(
            demo.owner.faults("createProject", input).await,
            expected,
            "{name:?}"
        );
    }
}

#[tokio::test]
async fn a_repository_url_needs_a_host_and_has_no_credentials() {
    let demo = Demo::start().await;
    let id = demo.project("Élan").await["id"].clone();
    let update = |url: &str| json!({ "projectId": id, "repositoryUrl": url });
    for url in [
        "http://localhost",
        "Https://example.com:8443/a%20path?q=a@b#c",
        "https://[2001:db8::1]/x",
        "https://bücher.example/é",
    ] {
        let changed = demo.owner.saved("updateProject", update(url)).await;
        assert_eq!(changed["repositoryUrl"], url);
    }
    let expected = ["INVALID repositoryUrl"];
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
        let faults = demo.owner.faults("updateProject", update(url)).await;
        assert_eq!(faults, expected, "{url}");
    }
}
