//! The state machine of tasks: allowed transitions, their effects, and their events.

use TaskStatus::{
    Assigned, Blocked, Cancelled, ChangesRequested, Completed, Failed, InProgress, InReview,
    Pending,
};

use super::*;
use crate::support::actor::{GUEST, text};

const ALL: [TaskStatus; 9] = [
    Pending,
    Assigned,
    InProgress,
    InReview,
    ChangesRequested,
    Blocked,
    Completed,
    Failed,
    Cancelled,
];

/// Each transition, with the states that allow it and the state that it leads to.
const MOVES: [(&str, &[TaskStatus], TaskStatus); 11] = [
    (
        "assignTask",
        &[Pending, Assigned, Blocked, ChangesRequested],
        Assigned,
    ),
    (
        "unassignTask",
        &[Assigned, Blocked, ChangesRequested],
        Pending,
    ),
    ("startTask", &[Assigned, ChangesRequested], InProgress),
    ("blockTask", &[InProgress], Blocked),
    ("unblockTask", &[Blocked], InProgress),
    ("submitTask", &[InProgress], InReview),
    ("approveTask", &[InReview], Completed),
    ("rejectTask", &[InReview], ChangesRequested),
    (
        "failTask",
        &[Assigned, InProgress, InReview, ChangesRequested, Blocked],
        Failed,
    ),
    (
        "cancelTask",
        &[
            Pending,
            Assigned,
            InProgress,
            InReview,
            ChangesRequested,
            Blocked,
        ],
        Cancelled,
    ),
    ("reopenTask", &[Failed, Cancelled], Pending),
];

/// The minimal input of a transition.
pub(super) fn least(name: &str, task: Uuid, agent: Uuid) -> Value {
    let mut input = json!({ "taskId": task_id(task) });
    match name {
        "assignTask" => input["agentId"] = json!(agent_id(agent)),
        "blockTask" | "failTask" | "rejectTask" => input["reason"] = json!("Why."),
        "submitTask" => input["result"] = json!("What."),
        _ => {}
    }
    input
}

#[tokio::test]
async fn task_transitions_succeed_only_from_their_allowed_states() {
    let studio = Studio::open().await;
    let [one, other] = [studio.member("One").await, studio.member("Other").await];
    for (name, allowed, to) in MOVES {
        for from in ALL {
            let has_agent = !matches!(from, Pending);
            let task = studio.task(from, |task| {
                task.assignee_id = has_agent.then_some(one);
            });
            let task = task.await;
            let before = studio.row(task).await;
            let payload = studio.owner.payload(name, least(name, task, other)).await;
            let (from_name, to_name) = (from.to_value(), to.to_value());
            if allowed.contains(&from) {
                assert_eq!(payload["userErrors"], json!([]), "{name} from {from_name}");
                assert_eq!(
                    payload["task"]["status"], to_name,
                    "{name} from {from_name}"
                );
                assert_eq!(payload["task"]["version"], 2, "{name} from {from_name}");
            } else {
                let error = &payload["userErrors"][0];
                assert_eq!(error["code"], "BAD_TRANSITION", "{name} from {from_name}");
                assert_eq!(error["field"], Value::Null);
                let article = if matches!(from, Assigned | InProgress | InReview) {
                    "An"
                } else {
                    "A"
                };
                let done = match name {
                    "startTask" => "started",
                    "blockTask" => "blocked",
                    "unblockTask" => "unblocked",
                    "submitTask" => "submitted",
                    "approveTask" => "approved",
                    "rejectTask" => "rejected",
                    "failTask" => "failed",
                    "cancelTask" => "cancelled",
                    "reopenTask" => "reopened",
                    "assignTask" => "assigned",
                    _ => "unassigned",
                };
                let message = format!("{article} {from_name} task cannot be {done}.");
                assert_eq!(error["message"], message);
                assert_eq!(payload["task"]["status"], from_name);
                assert_eq!(studio.row(task).await, before, "{name} from {from_name}");
            }
        }
    }
}

/// The events of a task that Ada does, Bob rejects, and Ada does again.
fn life(a: &str, b: &str) -> [(&'static str, Value); 11] {
    let moved = |from: &str, to: &str, note: Value, version: i32| {
        json!({ "title": "Build it", "fromStatus": from, "toStatus": to, "assigneeId": a, "note": note,
            "version": version, "v": 1 })
    };
    let judged = |from: &str, to: &str, note: Value, version: i32, round: i32| {
        let mut payload = moved(from, to, note, version);
        payload["reviewerId"] = json!(b);
        payload["round"] = json!(round);
        payload
    };
    let none = Value::Null;
    [
        (
            "task.created",
            json!({ "title": "Build it", "priority": "HIGH", "toStatus": "ASSIGNED", "changed": [],
            "version": 1, "v": 1 }),
        ),
        (
            "task.assigned",
            json!({ "title": "Build it", "fromStatus": null, "toStatus": "ASSIGNED", "assigneeId": a,
            "routingScore": null, "version": 1, "v": 1 }),
        ),
        (
            "task.started",
            moved("ASSIGNED", "IN_PROGRESS", json!("Now."), 2),
        ),
        (
            "task.blocked",
            moved("IN_PROGRESS", "BLOCKED", json!("No keys."), 3),
        ),
        (
            "task.unblocked",
            moved("BLOCKED", "IN_PROGRESS", none.clone(), 4),
        ),
        (
            "task.submitted",
            judged("IN_PROGRESS", "IN_REVIEW", none.clone(), 5, 1),
        ),
        (
            "task.rejected",
            judged("IN_REVIEW", "CHANGES_REQUESTED", json!("No tests."), 6, 1),
        ),
        (
            "task.started",
            moved("CHANGES_REQUESTED", "IN_PROGRESS", none.clone(), 7),
        ),
        (
            "task.submitted",
            judged("IN_PROGRESS", "IN_REVIEW", none.clone(), 8, 2),
        ),
        (
            "task.approved",
            judged("IN_REVIEW", "COMPLETED", json!("Fine."), 9, 2),
        ),
        (
            "task.completed",
            judged("IN_REVIEW", "COMPLETED", none, 9, 2),
        ),
    ]
}

#[tokio::test]
async fn each_step_of_a_task_creates_its_events_once() {
    let studio = Studio::open().await;
    let [ada, bob] = [studio.member("Ada").await, studio.member("Bob").await];
    let input = json!({ "circleId": id_of(Kind::Circle, studio.circle), "title": " Build it ", "priority": "HIGH",
        "assigneeId": agent_id(ada), "reviewerId": agent_id(bob) });
    let made = studio.owner.saved("createTask", input).await;
    assert_eq!(made["title"], "Build it");
    assert_eq!(
        (&made["status"], &made["version"]),
        (&json!("ASSIGNED"), &json!(1))
    );
    assert_eq!(made["createdBy"]["name"], "Dana Demo");
    assert_eq!(made["requiresReview"], true);
    let id = made["id"].clone();
    let on = |version: i32| json!({ "taskId": id, "expectedVersion": version });
    let with = |version: i32, name: &str, value: &str| {
        let mut input = on(version);
        input[name] = json!(value);
        input
    };

    let started = studio
        .owner
        .saved("startTask", with(1, "note", "Now."))
        .await;
    assert_eq!(started["statusNote"], "Now.");
    let first_start = started["startedAt"].clone();
    assert!(first_start.is_string());
    let blocked = studio
        .owner
        .saved("blockTask", with(2, "reason", " No keys. "))
        .await;
    assert_eq!(blocked["statusNote"], "No keys.");
    let unblocked = studio.owner.saved("unblockTask", on(3)).await;
    assert_eq!(unblocked["statusNote"], Value::Null);
    let mut result = with(4, "result", "It is\r\nbuilt.");
    result["artifacts"] = json!(["src/it.rs", " src/it.rs ", "README"]);
    result["actualHours"] = json!(1.5);
    let submitted = studio.owner.saved("submitTask", result).await;
    assert_eq!(submitted["status"], "IN_REVIEW");
    assert_eq!(submitted["reviewRound"], 1);
    assert_eq!(submitted["result"], "It is\nbuilt.");
    assert_eq!(submitted["artifacts"], json!(["src/it.rs", "README"]));
    assert_eq!(submitted["actualHours"], 1.5);
    assert!(submitted["submittedAt"].is_string());
    assert_eq!(submitted["completedAt"], Value::Null);
    assert_eq!(submitted["reviewer"]["id"], agent_id(bob));
    let rejected = studio
        .owner
        .saved("rejectTask", with(5, "reason", "No tests."))
        .await;
    assert_eq!(rejected["status"], "CHANGES_REQUESTED");
    assert_eq!(rejected["reviewNote"], "No tests.");
    studio.server.pass(90);
    let again = studio.owner.saved("startTask", on(6)).await;
    assert_eq!(
        again["startedAt"], first_start,
        "the first start time is kept"
    );
    let submitted = studio
        .owner
        .saved("submitTask", with(7, "result", "With tests."))
        .await;
    assert_eq!(submitted["reviewRound"], 2);
    assert_eq!(submitted["artifacts"], json!(["src/it.rs", "README"]));
    assert_eq!(submitted["actualHours"], 1.5);
    let approved = studio
        .owner
        .saved("approveTask", with(8, "comment", "Fine."))
        .await;
    assert_eq!(approved["status"], "COMPLETED");
    assert_eq!(approved["reviewNote"], "Fine.");
    assert_eq!(approved["version"], 9);
    let row = task::Entity::find().filter(task::Column::Title.eq("Build it"));
    let row = row.one(&studio.db).await.expect("reads").expect("the task");
    let (start, end) = (
        row.started_at.expect("begun"),
        row.completed_at.expect("ended"),
    );
    let seconds = row.cycle_seconds.expect("counted");
    assert_eq!(i64::from(seconds), (end - start).num_seconds());
    assert!((90..180).contains(&seconds), "{seconds}");
    assert_eq!(row.updated_at, end);

    let agent = studio.agent_row(ada).await;
    assert_eq!((agent.reviews_total, agent.reviews_approved), (2, 1));
    assert_eq!(agent.last_active_at, end);
    assert_eq!(agent.status, AgentStatus::Idle);
    assert_eq!(agent.version, 1, "counters do not change the version");

    let received = studio.payloads(row.id).await;
    let expected = life(&agent_id(ada), &agent_id(bob));
    assert_eq!(received.len(), expected.len(), "{received:#?}");
    for (received, (kind, payload)) in received.iter().zip(expected) {
        assert_eq!((received.0.as_str(), &received.1), (kind, &payload));
    }
}

#[tokio::test]
async fn a_task_without_review_is_completed_on_submission() {
    let studio = Studio::open().await;
    let ada = studio.member("Ada").await;
    let task = studio
        .task(InProgress, |task| {
            task.assignee_id = Some(ada);
            task.requires_review = false;
            task.started_at = Some(moment());
        })
        .await;
    let input = json!({ "taskId": task_id(task), "result": "Done." });
    let done = studio.owner.saved("submitTask", input).await;
    assert_eq!(
        (&done["status"], &done["reviewRound"]),
        (&json!("COMPLETED"), &json!(0))
    );
    assert_eq!(done["completedAt"], done["submittedAt"]);
    assert!(studio.row(task).await.cycle_seconds.is_some());
    assert_eq!(
        studio.event_types().await,
        ["TASK_SUBMITTED", "TASK_COMPLETED"]
    );
    let agent = studio.agent_row(ada).await;
    assert_eq!((agent.reviews_total, agent.reviews_approved), (0, 0));
}

#[tokio::test]
async fn a_reopened_task_is_pending_without_an_assignee() {
    let studio = Studio::open().await;
    let ada = studio.member("Ada").await;
    let task = studio
        .task(InProgress, |task| {
            task.assignee_id = Some(ada);
            task.started_at = Some(moment());
        })
        .await;
    let id = task_id(task);
    let failed = studio
        .owner
        .saved("failTask", json!({ "taskId": id, "reason": "Too hard." }))
        .await;
    assert_eq!(failed["statusNote"], "Too hard.");
    assert_eq!(failed["assignee"]["id"], agent_id(ada));
    assert_eq!(failed["completedAt"], Value::Null);
    let reopened = studio
        .owner
        .saved("reopenTask", json!({ "taskId": id, "note": "Try again." }))
        .await;
    assert_eq!(reopened["status"], "PENDING");
    assert_eq!(reopened["assignee"], Value::Null);
    assert_eq!(reopened["statusNote"], "Try again.");
    assert_eq!(reopened["startedAt"], "2026-02-01T09:00:00.000000Z");
    studio
        .owner
        .saved("cancelTask", json!({ "taskId": id }))
        .await;
    studio
        .owner
        .saved("reopenTask", json!({ "taskId": id }))
        .await;
    let events = studio.events().await;
    let received: Vec<_> = events
        .iter()
        .map(|event| (text(&event["type"]), event["note"].clone()))
        .collect();
    let expected = [
        ("TASK_FAILED", json!("Too hard.")),
        ("TASK_REOPENED", json!("Try again.")),
        ("TASK_CANCELLED", Value::Null),
        ("TASK_REOPENED", Value::Null),
    ];
    assert_eq!(
        received,
        expected.map(|(kind, note)| (kind.to_owned(), note))
    );
}

#[tokio::test]
async fn an_unassigned_task_is_pending_and_its_event_has_the_note() {
    let studio = Studio::open().await;
    let ada = studio.member("Ada").await;
    let task = studio
        .task(Blocked, |task| task.assignee_id = Some(ada))
        .await;
    let input = json!({ "taskId": task_id(task), "note": "On leave." });
    let taken = studio.owner.saved("unassignTask", input).await;
    assert_eq!(taken["assignee"], Value::Null);
    assert_eq!(taken["statusNote"], "On leave.");
    let events = studio.events().await;
    assert_eq!(events.len(), 1);
    assert_eq!(events[0]["type"], "TASK_UNASSIGNED");
    assert_eq!(events[0]["fromStatus"], "BLOCKED");
    assert_eq!(events[0]["toStatus"], "PENDING");
    assert_eq!(events[0]["assignee"], Value::Null);
    assert_eq!(events[0]["note"], "On leave.");
    assert_eq!(
        events[0]["actor"],
        json!({ "__typename": "User", "name": "Dana Demo" })
    );
    let of_agent = event::Entity::find().filter(event::Column::AgentId.eq(ada));
    let of_agent = of_agent.all(&studio.db).await.expect("reads");
    assert_eq!(of_agent.len(), 1, "the event is also linked to the agent");
    assert_eq!(of_agent[0].owner_id, Some(studio.owner_id));
    assert_eq!(of_agent[0].circle_id, Some(studio.circle));
}

#[tokio::test]
async fn an_agent_is_busy_while_it_has_work_in_progress_in_any_circle() {
    let studio = Studio::open().await;
    let ada = studio.member("Ada").await;
    let elsewhere = studio
        .circle("Elsewhere", |circle| circle.status = CircleStatus::Stopped)
        .await;
    studio.join(elsewhere, ada, |_| ()).await;
    let here = studio.task(Assigned, |task| task.assignee_id = Some(ada));
    let here = here.await;
    let there = studio
        .task(Assigned, |task| {
            task.assignee_id = Some(ada);
            task.circle_id = elsewhere;
        })
        .await;
    let on = |task| json!({ "taskId": task_id(task) });
    let because = |task| json!({ "taskId": task_id(task), "reason": "Why." });
    let status = async || studio.agent_row(ada).await.status;

    studio.owner.saved("startTask", on(here)).await;
    assert_eq!(status().await, AgentStatus::Busy);
    studio.owner.saved("startTask", on(there)).await;
    studio.owner.saved("blockTask", because(here)).await;
    assert_eq!(
        status().await,
        AgentStatus::Busy,
        "another circle has a task in progress"
    );
    studio.owner.saved("failTask", because(there)).await;
    assert_eq!(status().await, AgentStatus::Idle);
    studio.owner.saved("unblockTask", on(here)).await;
    assert_eq!(status().await, AgentStatus::Busy);
    studio.owner.saved("cancelTask", on(here)).await;
    assert_eq!(status().await, AgentStatus::Idle);
    let received = studio.payloads(ada).await;
    let flip = |from: &str, to: &str| json!({ "name": "Ada", "fromStatus": from, "toStatus": to, "version": 1, "v": 1 });
    let expected = [
        flip("IDLE", "BUSY"),
        flip("BUSY", "IDLE"),
        flip("IDLE", "BUSY"),
        flip("BUSY", "IDLE"),
    ];
    let expected = expected.map(|payload| ("agent.status_changed".to_owned(), payload));
    assert_eq!(received, expected);
    let seen: Vec<_> = studio.events().await;
    let seen = seen
        .iter()
        .filter(|event| event["type"] == "AGENT_STATUS_CHANGED");
    let seen: Vec<_> = seen
        .map(|event| (text(&event["from"]), text(&event["to"])))
        .collect();
    let (idle, busy) = ("IDLE".to_owned(), "BUSY".to_owned());
    assert_eq!(
        seen,
        [
            (idle.clone(), busy.clone()),
            (idle.clone(), busy.clone()),
            (busy, idle)
        ],
        "a circle has the status changes that its own tasks cause"
    );
}

#[tokio::test]
async fn working_does_not_change_the_status_of_an_offline_agent() {
    let studio = Studio::open().await;
    let off = |agent: &mut agent::Model| agent.status = AgentStatus::Offline;
    let ada = studio.member_with("Ada", off, |_| ()).await;
    let task = studio.task(Assigned, |task| task.assignee_id = Some(ada));
    let on = json!({ "taskId": task_id(task.await) });
    let mut result = on.clone();
    result["result"] = json!("Done.");
    studio.owner.saved("startTask", on).await;
    assert_eq!(studio.agent_row(ada).await.status, AgentStatus::Offline);
    studio.owner.saved("submitTask", result).await;
    let row = studio.agent_row(ada).await;
    assert_eq!(row.status, AgentStatus::Offline);
    assert!(row.last_active_at > moment());
    assert_eq!(
        studio.event_types().await,
        ["TASK_STARTED", "TASK_SUBMITTED"]
    );
}

#[tokio::test]
async fn a_transition_replaces_the_status_note() {
    let studio = Studio::open().await;
    let ada = studio.member("Ada").await;
    for (name, allowed, _) in MOVES {
        let task = studio
            .task(allowed[0], |task| {
                task.assignee_id = (allowed[0] != Pending).then_some(ada);
                task.status_note = Some("Waits for keys.".to_owned());
            })
            .await;
        let moved = studio.owner.saved(name, least(name, task, ada)).await;
        let why = match name {
            "blockTask" | "failTask" => json!("Why."),
            _ => Value::Null,
        };
        assert_eq!(moved["statusNote"], why, "{name}");
    }
}

#[tokio::test]
async fn an_outdated_version_prevents_every_task_transition() {
    let studio = Studio::open().await;
    let ada = studio.member("Ada").await;
    for (name, allowed, _) in MOVES {
        let task = studio
            .task(allowed[0], |task| {
                task.assignee_id = (allowed[0] != Pending).then_some(ada);
                task.version = 7;
            })
            .await;
        let mut input = least(name, task, ada);
        input["expectedVersion"] = json!(6);
        let before = studio.row(task).await;
        let payload = studio.owner.payload(name, input).await;
        let error = &payload["userErrors"][0];
        assert_eq!(error["code"], "CONFLICT", "{name}");
        assert_eq!(error["field"], json!(["expectedVersion"]));
        assert_eq!(payload["task"]["version"], 7);
        assert_eq!(studio.row(task).await, before);
    }
    assert_eq!(studio.event_types().await, [""; 0]);
}

#[tokio::test]
async fn editors_change_tasks_viewers_only_read_and_others_see_none() {
    let studio = Studio::open().await;
    let ada = studio.member("Ada").await;
    let creation = json!({ "circleId": id_of(Kind::Circle, studio.circle), "title": "A task" });
    let mut names: Vec<_> = MOVES.iter().map(|(name, ..)| *name).collect();
    names.extend(["updateTask", "deleteTask"]);
    let task = studio
        .task(Assigned, |task| task.assignee_id = Some(ada))
        .await;
    let input = |name: &str| match name {
        "deleteTask" => json!({ "id": task_id(task), "expectedVersion": 0 }),
        name => {
            let mut input = least(name, task, ada);
            input["expectedVersion"] = json!(0);
            input
        }
    };
    let field = |name: &str| if name == "deleteTask" { "id" } else { "taskId" };
    for name in &names {
        assert_eq!(
            studio.guest.refused(name, input(name)).await,
            format!("NOT_FOUND {}", field(name))
        );
    }
    assert_eq!(
        studio.guest.refused("createTask", creation.clone()).await,
        "NOT_FOUND circleId"
    );
    studio.share(GUEST, CollaboratorRole::Viewer).await;
    for name in &names {
        let refused = studio.guest.refused(name, input(name)).await;
        assert_eq!(refused, "FORBIDDEN", "{name}");
    }
    let refused = studio.guest.refused("createTask", creation.clone()).await;
    assert_eq!(refused, "FORBIDDEN");
    collaborator::Entity::update_many()
        .col_expr(collaborator::Column::Role, Expr::value("EDITOR"))
        .filter(collaborator::Column::CircleId.eq(studio.circle))
        .exec(&studio.db)
        .await
        .expect("updates");
    for actor in [&studio.guest, &studio.admin] {
        for name in &names {
            let answer = actor.call(name, input(name)).await;
            let error = &answer["data"][name]["userErrors"][0];
            assert_eq!(error["code"], "CONFLICT", "{name}: {answer}");
        }
        let answer = actor.call("createTask", creation.clone()).await;
        assert_eq!(answer["data"]["createTask"]["userErrors"], json!([]));
    }
}

#[tokio::test]
async fn tasks_in_an_archived_circle_cannot_be_changed() {
    let studio = Studio::with(|circle| {
        circle.status = CircleStatus::Archived;
        circle.archived_at = Some(moment());
    })
    .await;
    let ada = studio.member("Ada").await;
    for (name, allowed, _) in MOVES {
        let task = studio
            .task(allowed[0], |task| {
                task.assignee_id = (allowed[0] != Pending).then_some(ada);
            })
            .await;
        let faults = studio.owner.faults(name, least(name, task, ada)).await;
        assert_eq!(faults, ["BAD_TRANSITION"], "{name}");
        assert_eq!(studio.row(task).await.status, allowed[0]);
    }
    let task = studio.task(Pending, |_| ()).await;
    let rename = json!({ "taskId": task_id(task), "title": "Another" });
    let remove = json!({ "id": task_id(task) });
    let create = json!({ "circleId": id_of(Kind::Circle, studio.circle), "title": "A task" });
    for (name, input) in [
        ("updateTask", rename),
        ("deleteTask", remove),
        ("createTask", create),
    ] {
        let faults = studio.owner.faults(name, input).await;
        assert_eq!(faults, ["BAD_TRANSITION"], "{name}");
    }
    assert_eq!(studio.event_types().await, [""; 0]);
}

#[tokio::test]
async fn state_and_version_conflicts_are_reported_before_input_errors() {
    let studio = Studio::open().await;
    let stranger = studio.agent("Stranger", |_| ()).await;
    let mut inputs = Vec::new();
    for (name, allowed, _) in MOVES {
        let task = studio.task(allowed[0], |_| ()).await;
        let mut input = least(name, task, stranger);
        match name {
            "assignTask" => {}
            "blockTask" | "failTask" | "rejectTask" => input["reason"] = json!(" "),
            "submitTask" => input["result"] = json!(" "),
            "approveTask" => input["comment"] = json!("a".repeat(10_001)),
            _ => input["note"] = json!("a".repeat(2_001)),
        }
        inputs.push((name, input));
    }
    let task = studio.task(Pending, |_| ()).await;
    inputs.push((
        "updateTask",
        json!({ "taskId": task_id(task), "title": "" }),
    ));
    for (name, input) in &mut inputs {
        let faults = studio.owner.faults(name, input.clone()).await;
        assert_ne!(faults[0], "", "{name}: {faults:?}");
        input["expectedVersion"] = json!(0);
        let faults = studio.owner.faults(name, input.clone()).await;
        assert_eq!(faults, ["CONFLICT expectedVersion"], "{name}");
    }
    studio.set_circle(circle::Column::Status, "ARCHIVED").await;
    let circle = id_of(Kind::Circle, studio.circle);
    inputs.push(("createTask", json!({ "circleId": circle, "title": "" })));
    for (name, input) in inputs {
        let faults = studio.owner.faults(name, input).await;
        assert_eq!(faults, ["BAD_TRANSITION"], "{name}");
    }
}
