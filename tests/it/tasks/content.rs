//! Creation, updates, and deletion of tasks.

use TaskStatus::{
    Assigned, Blocked, Cancelled, ChangesRequested, Completed, Failed, InProgress, InReview,
    Pending,
};

use super::*;

#[tokio::test]
async fn a_new_task_has_the_given_fields_and_the_defaults_of_its_circle() {
    let studio = Studio::open().await;
    let circle = id_of(Kind::Circle, studio.circle);
    let made = studio
        .owner
        .saved(
            "createTask",
            json!({ "circleId": circle, "title": "Plain" }),
        )
        .await;
    assert_eq!(made["status"], "PENDING");
    assert_eq!(made["priority"], "MEDIUM");
    assert_eq!(made["reviewType"], "QUALITY");
    assert_eq!(made["requiresReview"], true);
    assert_eq!(made["createdAt"], made["updatedAt"]);
    studio
        .set_circle(circle::Column::RequireReview, false)
        .await;
    let parent = made["id"].clone();
    let full = json!({ "circleId": circle, "parentId": parent, "title": "Full", "description": " More. \r\n ",
        "requiredCompetencies": ["Rust", " rust ", "SQL"], "priority": "CRITICAL", "reviewType": "SECURITY",
        "estimatedHours": 0.5, "dueAt": "2026-03-01T10:00:00+01:00" });
    let full = studio.owner.saved("createTask", full).await;
    assert_eq!(full["requiresReview"], false);
    assert_eq!(full["parent"]["id"], parent);
    assert_eq!(full["description"], "More.");
    assert_eq!(full["requiredCompetencies"], json!(["rust", "sql"]));
    assert_eq!(full["estimatedHours"], 0.5);
    assert_eq!(full["dueAt"], "2026-03-01T09:00:00.000000Z");
    let row = task::Entity::find().filter(task::Column::Title.eq("Full"));
    let row = row.one(&studio.db).await.expect("reads").expect("the task");
    assert_eq!(
        (row.priority_rank, row.created_by),
        (1, Some(studio.owner_id))
    );
    let insists = json!({ "circleId": circle, "title": "Reviewed", "requiresReview": true });
    let insists = studio.owner.saved("createTask", insists).await;
    assert_eq!(insists["requiresReview"], true);
    assert_eq!(studio.event_types().await, ["TASK_CREATED"; 3]);
}

#[tokio::test]
async fn all_input_errors_of_a_task_are_reported_together() {
    let studio = Studio::open().await;
    let [ada, stranger] = [
        studio.member("Ada").await,
        studio.agent("Stranger", |_| ()).await,
    ];
    let elsewhere = studio.circle("Elsewhere", |_| ()).await;
    let other = studio.task(TaskStatus::Pending, |task| task.circle_id = elsewhere);
    let other = task_id(other.await);
    let circle = id_of(Kind::Circle, studio.circle);
    let many = vec!["a"; 51];
    let creation = json!({ "circleId": circle, "title": "", "description": "a".repeat(20_001),
        "requiredCompetencies": many, "parentId": other, "assigneeId": agent_id(ada), "reviewerId": agent_id(ada),
        "estimatedHours": -0.1 });
    let mut faults = studio.owner.faults("createTask", creation).await;
    faults.sort();
    assert_eq!(
        faults,
        [
            "INVALID parentId",
            "INVALID reviewerId",
            "OUT_OF_RANGE estimatedHours",
            "REQUIRED title",
            "TOO_LONG description",
            "TOO_MANY requiredCompetencies",
        ]
    );
    let creation = json!({ "circleId": circle, "title": "a".repeat(501), "assigneeId": agent_id(stranger),
        "reviewerId": agent_id(stranger) });
    assert_eq!(
        studio.owner.faults("createTask", creation).await,
        [
            "TOO_LONG title",
            "NOT_MEMBER assigneeId",
            "INVALID reviewerId",
        ]
    );
    let task = studio
        .task(TaskStatus::Assigned, |task| task.assignee_id = Some(ada))
        .await;
    let change = json!({ "taskId": task_id(task), "title": null, "priority": null, "requiresReview": null,
        "reviewType": null, "reviewerId": agent_id(ada), "actualHours": -1, "requiredCompetencies": [""] });
    assert_eq!(
        studio.owner.faults("updateTask", change).await,
        [
            "REQUIRED title",
            "INVALID requiredCompetencies.0",
            "REQUIRED priority",
            "REQUIRED requiresReview",
            "REQUIRED reviewType",
            "OUT_OF_RANGE actualHours",
            "INVALID reviewerId",
        ]
    );
    let outside = json!({ "taskId": task_id(task), "reviewerId": agent_id(stranger) });
    assert_eq!(
        studio.owner.faults("updateTask", outside).await,
        ["NOT_MEMBER reviewerId"]
    );
    let working = studio
        .task(TaskStatus::InProgress, |task| task.assignee_id = Some(ada))
        .await;
    let artifacts = vec!["a"; 201];
    let result = json!({ "taskId": task_id(working), "result": "a".repeat(50_001), "artifacts": artifacts,
        "actualHours": -1 });
    assert_eq!(
        studio.owner.faults("submitTask", result).await,
        [
            "TOO_LONG result",
            "TOO_MANY artifacts",
            "OUT_OF_RANGE actualHours",
        ]
    );
    let reason = json!({ "taskId": task_id(working), "reason": "a".repeat(2_001) });
    assert_eq!(
        studio.owner.faults("failTask", reason).await,
        ["TOO_LONG reason"]
    );
    let blank = json!({ "taskId": task_id(working), "reason": "  " });
    assert_eq!(
        studio.owner.faults("blockTask", blank).await,
        ["REQUIRED reason"]
    );
    assert_eq!(studio.event_types().await, [""; 0]);
}

#[tokio::test]
async fn a_task_update_changes_only_fields_with_new_values() {
    let studio = Studio::open().await;
    let [ada, bob] = [studio.member("Ada").await, studio.member("Bob").await];
    let parent = studio.task(TaskStatus::Pending, |_| ()).await;
    let task = studio
        .task(TaskStatus::Assigned, |task| {
            task.assignee_id = Some(ada);
            task.description = Some("Something.".to_owned());
            task.required_competencies = words(&["rust"]);
        })
        .await;
    let change = json!({ "taskId": task_id(task), "expectedVersion": 1, "title": "Another", "priority": "LOW",
        "parentId": task_id(parent), "reviewerId": agent_id(bob), "requiresReview": false, "reviewType": "CODE",
        "estimatedHours": 2, "actualHours": 3.5, "dueAt": "2026-03-01T09:00:00Z", "requiredCompetencies": ["SQL"] });
    let changed = studio.owner.saved("updateTask", change.clone()).await;
    assert_eq!(changed["title"], "Another");
    assert_eq!(changed["description"], "Something.");
    assert_eq!(changed["status"], "ASSIGNED");
    assert_eq!(changed["version"], 2);
    assert_eq!(changed["parent"]["id"], task_id(parent));
    assert_eq!(changed["reviewer"]["id"], agent_id(bob));
    assert_eq!(changed["actualHours"], 3.5);
    let row = studio.row(task).await;
    assert_eq!(row.priority_rank, 8);
    let mut again = change;
    again["expectedVersion"] = json!(2);
    studio.owner.saved("updateTask", again).await;
    assert_eq!(
        studio.row(task).await,
        row,
        "the repeated update changes nothing"
    );
    let clear = json!({ "taskId": task_id(task), "parentId": null, "description": null, "requiredCompetencies": null,
        "reviewerId": null, "estimatedHours": null, "actualHours": null, "dueAt": null });
    let cleared = studio.owner.saved("updateTask", clear).await;
    for field in [
        "parent",
        "description",
        "reviewer",
        "estimatedHours",
        "actualHours",
        "dueAt",
    ] {
        assert_eq!(cleared[field], Value::Null, "{field}");
    }
    assert_eq!(cleared["requiredCompetencies"], json!([]));
    assert_eq!(cleared["version"], 3);
    let events = studio.events().await;
    let changed: Vec<_> = events
        .iter()
        .map(|event| event["changed"].clone())
        .collect();
    assert_eq!(
        changed,
        [
            json!([
                "parentId",
                "title",
                "requiredCompetencies",
                "priority",
                "reviewerId",
                "requiresReview",
                "reviewType",
                "estimatedHours",
                "actualHours",
                "dueAt"
            ]),
            json!([
                "parentId",
                "description",
                "requiredCompetencies",
                "reviewerId",
                "estimatedHours",
                "actualHours",
                "dueAt"
            ]),
        ]
    );
    assert!(events.iter().all(|event| event["type"] == "TASK_UPDATED"));
    let stale = json!({ "taskId": task_id(task), "expectedVersion": 2, "title": "Lost" });
    let payload = studio.owner.payload("updateTask", stale).await;
    assert_eq!(payload["userErrors"][0]["code"], "CONFLICT");
    assert_eq!(payload["task"]["title"], "Another");
}

#[tokio::test]
async fn a_reviewer_who_has_left_is_kept_until_changed() {
    let studio = Studio::open().await;
    let left = |member: &mut member::Model| {
        member.is_active = false;
        member.left_at = Some(moment());
    };
    let gone = studio.member_with("Gone", |_| (), left).await;
    let other = studio.member_with("Other", |_| (), left).await;
    let task = studio
        .task(TaskStatus::Pending, |task| task.reviewer_id = Some(gone))
        .await;
    let change = |reviewer| json!({ "taskId": task_id(task), "title": "Another", "reviewerId": agent_id(reviewer) });
    let changed = studio.owner.saved("updateTask", change(gone)).await;
    assert_eq!(changed["title"], "Another");
    assert_eq!(studio.row(task).await.reviewer_id, Some(gone));
    assert_eq!(
        studio.owner.faults("updateTask", change(other)).await,
        ["NOT_MEMBER reviewerId"]
    );
}

#[tokio::test]
async fn a_parent_task_is_in_the_same_circle_and_never_forms_a_cycle() {
    let studio = Studio::open().await;
    let top = studio.task(TaskStatus::Pending, |_| ()).await;
    let mut chain = vec![top];
    for _ in 0..40 {
        let parent = *chain.last().expect("is not empty");
        let part = studio.task(TaskStatus::Pending, |task| task.parent_id = Some(parent));
        chain.push(part.await);
    }
    let put = |task, parent| json!({ "taskId": task_id(task), "parentId": task_id(parent) });
    for part in [top, chain[1], chain[40]] {
        assert_eq!(
            studio.owner.faults("updateTask", put(top, part)).await,
            ["INVALID parentId"]
        );
    }
    let moved = studio.owner.saved("updateTask", put(chain[40], top)).await;
    assert_eq!(moved["parent"]["id"], task_id(top));
    studio
        .owner
        .saved("updateTask", put(chain[1], chain[40]))
        .await;

    let elsewhere = studio.circle("Elsewhere", |_| ()).await;
    let other = studio.task(TaskStatus::Pending, |task| task.circle_id = elsewhere);
    assert_eq!(
        studio
            .owner
            .faults("updateTask", put(top, other.await))
            .await,
        ["INVALID parentId"]
    );
    let nothing = put(top, Uuid::now_v7());
    assert_eq!(
        studio.owner.refused("updateTask", nothing).await,
        "NOT_FOUND parentId"
    );
    // The search also ends if rows are parts of each other.
    task::Entity::update_many()
        .col_expr(task::Column::ParentId, Expr::value(chain[40]))
        .filter(task::Column::Id.eq(top))
        .exec(&studio.db)
        .await
        .expect("updates");
    let alone = studio.task(TaskStatus::Pending, |_| ()).await;
    studio
        .owner
        .saved("updateTask", put(alone, chain[40]))
        .await;
}

#[tokio::test]
async fn assigned_tasks_cannot_be_deleted_and_subtasks_are_kept() {
    let studio = Studio::open().await;
    let ada = studio.member("Ada").await;
    for status in [Assigned, InProgress, InReview, ChangesRequested, Blocked] {
        let task = studio
            .task(status, |task| task.assignee_id = Some(ada))
            .await;
        let payload = studio
            .owner
            .payload("deleteTask", json!({ "id": task_id(task) }))
            .await;
        assert_eq!(payload["userErrors"][0]["code"], "BAD_TRANSITION");
        assert_eq!(payload["deletedId"], Value::Null);
        assert_eq!(payload["current"]["id"], task_id(task));
    }
    for status in [Pending, Completed, Failed, Cancelled] {
        let task = studio.task(status, |_| ()).await;
        let part = studio
            .task(Pending, |part| part.parent_id = Some(task))
            .await;
        let stale = json!({ "id": task_id(task), "expectedVersion": 2 });
        assert_eq!(
            studio.owner.faults("deleteTask", stale).await,
            ["CONFLICT expectedVersion"]
        );
        let payload = studio
            .owner
            .payload("deleteTask", json!({ "id": task_id(task) }))
            .await;
        assert_eq!(payload["userErrors"], json!([]));
        assert_eq!(payload["deletedId"], task_id(task));
        assert_eq!(payload["current"], Value::Null);
        assert_eq!(studio.row(part).await.parent_id, None);
        let again = studio
            .owner
            .refused("deleteTask", json!({ "id": task_id(task) }))
            .await;
        assert_eq!(again, "NOT_FOUND id");
    }
    let events = studio.events().await;
    assert_eq!(events.len(), 4);
    assert!(events.iter().all(|event| event["type"] == "TASK_DELETED"));
    assert!(events.iter().all(|event| event["title"] == "A task"));
}

#[tokio::test]
async fn an_id_of_another_type_is_bad_input() {
    let studio = Studio::open().await;
    let circle = id_of(Kind::Circle, studio.circle);
    for (name, input, field) in [
        ("startTask", json!({ "taskId": circle }), "taskId"),
        ("deleteTask", json!({ "id": "nonsense" }), "id"),
        (
            "createTask",
            json!({ "circleId": circle, "title": "A task", "parentId": circle }),
            "parentId",
        ),
    ] {
        assert_eq!(
            studio.owner.refused(name, input).await,
            format!("BAD_USER_INPUT {field}")
        );
    }
}
