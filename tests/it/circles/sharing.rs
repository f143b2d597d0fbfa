//! Sharing of circles, and the rights of each role.

use super::*;

#[tokio::test]
async fn a_circle_is_shared_by_e_mail_address_and_can_be_left() {
    let demo = Demo::start().await;
    let (id, guest) = (demo.circle(ATELIER).await, demo.guest.id().await);
    let since = demo.mark().await;
    let share = |email: &str, role: &str| json!({ "circleId": id, "email": email, "role": role });
    let collaborators =
        |role: &str| json!({ "edges": [{ "role": role, "node": { "id": guest } }] });
    let refused = demo.guest.refused("startCircle", of(&id)).await;
    assert_eq!(refused, "NOT_FOUND circleId");
    for role in ["VIEWER", "VIEWER", "EDITOR"] {
        let circle = demo
            .owner
            .done("shareCircle", share(" Guest@EXAMPLE.com ", role))
            .await["circle"]
            .clone();
        assert_eq!(circle["collaborators"], collaborators(role));
        assert_eq!(circle["version"], 1);
    }
    assert_eq!(
        demo.guest.faults("startCircle", of(&id)).await,
        ["BAD_TRANSITION"]
    );
    assert_eq!(
        demo.guest.refused("archiveCircle", of(&id)).await,
        "FORBIDDEN"
    );
    let unknown = json!({ "circleId": id, "userId": UNKNOWN });
    let refused = demo.owner.refused("unshareCircle", unknown).await;
    assert_eq!(refused, "NOT_FOUND userId");
    // After leaving, the guest can no longer read the circle.
    let unshare = json!({ "circleId": id, "userId": guest });
    let payload = demo.guest.done("unshareCircle", unshare.clone()).await;
    assert_eq!(payload["circle"], Value::Null);
    assert_eq!(
        demo.owner.faults("unshareCircle", unshare.clone()).await,
        ["INVALID userId"]
    );
    assert_eq!(
        demo.guest.refused("unshareCircle", unshare.clone()).await,
        "NOT_FOUND circleId"
    );
    demo.admin.done("shareCircle", share(GUEST, "VIEWER")).await;
    assert_eq!(
        demo.guest.refused("startCircle", of(&id)).await,
        "FORBIDDEN"
    );
    let circle = demo.owner.done("unshareCircle", unshare).await["circle"].clone();
    assert_eq!(circle["collaborators"], json!({ "edges": [] }));

    let entry = |ty: &str, role: Value| (json!(ty), role);
    let events = demo.events(&since, 5).await;
    let events: Vec<_> = events
        .iter()
        .map(|event| {
            assert_eq!(event["user"]["id"], guest);
            entry(
                event["type"].as_str().expect("a type"),
                event["role"].clone(),
            )
        })
        .collect();
    let expected = [
        entry("CIRCLE_SHARED", json!("VIEWER")),
        entry("CIRCLE_SHARED", json!("EDITOR")),
        entry("CIRCLE_UNSHARED", Value::Null),
        entry("CIRCLE_SHARED", json!("VIEWER")),
        entry("CIRCLE_UNSHARED", Value::Null),
    ];
    assert_eq!(events, expected);
}

#[tokio::test]
async fn sharing_with_a_deactivated_user_fails_like_with_an_unknown_address() {
    let demo = Demo::start().await;
    let id = demo.circle(ATELIER).await;
    let share = |email: &str| json!({ "circleId": id, "email": email, "role": "VIEWER" });
    let unknown = demo
        .owner
        .payload("shareCircle", share("unknown@example.com"))
        .await;
    assert_eq!(faults(&unknown), ["INVALID email"]);
    let guest = demo.guest.id().await;
    let deactivate = "mutation ($id: ID!) { updateUser(input: { userId: $id, isActive: false }) { userErrors { code } } }";
    demo.admin.ask(deactivate, json!({ "id": guest })).await;
    assert_eq!(
        demo.owner.payload("shareCircle", share(GUEST)).await,
        unknown
    );
    assert_eq!(
        demo.admin.faults("shareCircle", share(OWNER)).await,
        ["INVALID email"]
    );
    assert_eq!(
        demo.owner.faults("shareCircle", share("unknown")).await,
        ["INVALID email"]
    );
}

#[tokio::test]
async fn circle_mutations_require_the_matching_access_level() {
    let demo = Demo::start().await;
    let (library, workshop) = (demo.circle(LIBRARY).await, demo.circle(WORKSHOP).await);
    let owner = demo.owner.id().await;
    for (name, editor_may) in [
        ("startCircle", true),
        ("pauseCircle", true),
        ("stopCircle", true),
        ("updateCircle", false),
        ("archiveCircle", false),
        ("restoreCircle", false),
        ("deleteCircle", false),
        ("shareCircle", false),
        ("unshareCircle", false),
    ] {
        let input = |id: &Value| match name {
            "updateCircle" => json!({ "circleId": id, "name": "Taken over" }),
            "deleteCircle" => json!({ "id": id }),
            "shareCircle" => json!({ "circleId": id, "email": ADMIN, "role": "EDITOR" }),
            "unshareCircle" => json!({ "circleId": id, "userId": owner }),
            _ => of(id),
        };
        assert_eq!(
            demo.guest.refused(name, input(&library)).await,
            "FORBIDDEN",
            "{name}"
        );
        let answer = demo.guest.call(name, input(&workshop)).await;
        let code = &answer["errors"][0]["extensions"]["code"];
        assert_eq!(*code == "FORBIDDEN", !editor_may, "{name}: {answer}");
    }
}
