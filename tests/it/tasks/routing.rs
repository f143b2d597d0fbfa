//! Routing: the choice of assignees and reviewers. Unit tests cover the computation of scores.

use super::*;
use crate::support::actor::text;

impl Studio {
    async fn create(&self, input: Value) -> Value {
        let mut input = input;
        input["circleId"] = json!(id_of(Kind::Circle, self.circle));
        input["title"] = json!("A task");
        self.owner.saved("createTask", input).await
    }
}

#[tokio::test]
async fn a_new_task_is_assigned_to_the_best_matching_member() {
    let studio = Studio::routing(10).await;
    let able = |agent: &mut agent::Model| agent.competencies = words(&["rust", "sql"]);
    let tried = |agent: &mut agent::Model| {
        agent.competencies = words(&["rust", "sql"]);
        agent.reviews_total = 2;
        agent.reviews_approved = 1;
    };
    studio.member_with("Able", able, |_| ()).await;
    let best = studio.member_with("Tried", tried, |_| ()).await;
    studio.member("Unable").await;
    // Its open task in another circle counts towards its load.
    let elsewhere = studio
        .circle("Elsewhere", |circle| circle.status = CircleStatus::Stopped)
        .await;
    studio
        .task(TaskStatus::ChangesRequested, |task| {
            task.assignee_id = Some(best);
            task.circle_id = elsewhere;
        })
        .await;
    let made = studio
        .create(json!({ "requiredCompetencies": ["Rust", "SQL"] }))
        .await;
    assert_eq!(made["status"], "ASSIGNED");
    assert_eq!(made["assignee"]["id"], agent_id(best));
    assert_eq!(made["version"], 2);
    let events = studio.events().await;
    let types: Vec<_> = events.iter().map(|event| event["type"].clone()).collect();
    assert_eq!(types, ["TASK_CREATED", "TASK_ASSIGNED"]);
    assert_eq!(events[0]["toStatus"], "PENDING");
    assert_eq!(events[1]["fromStatus"], "PENDING");
    assert_eq!(
        events[1]["routingScore"], 0.7375,
        "the example in the reference"
    );
    assert_eq!(events[1]["assignee"]["id"], agent_id(best));
}

#[tokio::test]
async fn tasks_are_routed_only_in_running_circles_with_auto_routing() {
    let studio = Studio::routing(10).await;
    let ada = studio.member("Ada").await;
    for status in ["CREATED", "PAUSED", "STOPPED"] {
        studio.set_circle(circle::Column::Status, status).await;
        assert_eq!(
            studio.create(json!({})).await["status"],
            "PENDING",
            "{status}"
        );
    }
    studio.set_circle(circle::Column::Status, "RUNNING").await;
    studio.set_circle(circle::Column::AutoRoute, false).await;
    let made = studio.create(json!({})).await;
    assert_eq!(made["status"], "PENDING");
    let by_hand = studio
        .owner
        .saved("assignTask", json!({ "taskId": made["id"] }))
        .await;
    assert_eq!(by_hand["assignee"]["id"], agent_id(ada));
    let events = studio.events().await;
    let last = events.last().expect("an event");
    assert_eq!(last["type"], "TASK_ASSIGNED");
    // (1 · 0.5 · 0.5 + 1 · 0.3 + 0 · 0.2) · 1.25
    assert_eq!(last["routingScore"], 0.6875);
}

#[tokio::test]
async fn offline_agents_observers_reviewers_and_former_members_get_no_tasks() {
    let studio = Studio::routing(10).await;
    let offline = |agent: &mut agent::Model| agent.status = AgentStatus::Offline;
    studio.member_with("Offline", offline, |_| ()).await;
    for role in [MemberRole::Reviewer, MemberRole::Observer] {
        let name = role.to_value();
        let member_change = |member: &mut member::Model| member.role = role;
        studio.member_with(&name, |_| (), member_change).await;
    }
    let left = |member: &mut member::Model| {
        member.is_active = false;
        member.left_at = Some(moment());
    };
    studio.member_with("Left", |_| (), left).await;
    let made = studio.create(json!({})).await;
    assert_eq!(made["status"], "PENDING");
    assert_eq!(
        studio
            .owner
            .faults("assignTask", json!({ "taskId": made["id"] }))
            .await,
        ["INVALID agentId"]
    );
    for role in [MemberRole::Lead, MemberRole::Specialist] {
        let member_change = |member: &mut member::Model| member.role = role;
        let agent = studio
            .member_with(&role.to_value(), |_| (), member_change)
            .await;
        let made = studio.create(json!({ "reviewerId": null })).await;
        assert_eq!(made["status"], "ASSIGNED");
        member::Entity::update_many()
            .col_expr(member::Column::Role, Expr::value("OBSERVER"))
            .filter(member::Column::AgentId.eq(agent))
            .exec(&studio.db)
            .await
            .expect("updates");
    }
}

#[tokio::test]
async fn a_task_is_not_routed_to_its_reviewer() {
    let studio = Studio::routing(10).await;
    let able = |agent: &mut agent::Model| agent.competencies = words(&["rust"]);
    let ada = studio.member_with("Ada", able, |_| ()).await;
    let wanted = json!({ "requiredCompetencies": ["rust"], "reviewerId": agent_id(ada) });
    let made = studio.create(wanted.clone()).await;
    assert_eq!(made["status"], "PENDING");
    let bob = studio.member_with("Bob", able, |_| ()).await;
    let made = studio.create(wanted).await;
    // Bob first gets the older pending task, and then this one.
    assert_eq!(made["assignee"]["id"], agent_id(bob));
    let pending = task::Entity::find()
        .filter(task::Column::CircleId.eq(studio.circle))
        .filter(task::Column::AssigneeId.eq(bob))
        .all(&studio.db)
        .await
        .expect("reads");
    assert_eq!(pending.len(), 2);
}

#[tokio::test]
async fn a_released_task_makes_room_for_the_most_urgent_pending_one() {
    let studio = Studio::routing(1).await;
    let ada = studio.member("Ada").await;
    let able = |agent: &mut agent::Model| agent.competencies = words(&["rust"]);
    studio.member_with("Bob", able, |_| ()).await;
    let first = studio.create(json!({})).await;
    assert_eq!(first["status"], "ASSIGNED");
    // A task that no agent can do does not block the others.
    let impossible = studio
        .create(json!({ "priority": "CRITICAL", "requiredCompetencies": ["magic"] }))
        .await;
    let mut waiting = Vec::new();
    for priority in ["LOW", "MEDIUM", "HIGH", "MEDIUM"] {
        let made = studio.create(json!({ "priority": priority })).await;
        assert_eq!(made["status"], "PENDING");
        waiting.push(text(&made["id"]));
    }
    let order = [&waiting[2], &waiting[1], &waiting[3], &waiting[0]];
    let mut hand = text(&first["id"]);
    let reason = |id: &str| json!({ "taskId": id, "reason": "Why." });
    for (next, how) in order.into_iter().zip(0..) {
        match how {
            0 => {
                studio
                    .owner
                    .saved("startTask", json!({ "taskId": hand }))
                    .await;
                studio.owner.saved("blockTask", reason(&hand)).await;
            }
            1 => {
                studio.owner.saved("failTask", reason(&hand)).await;
            }
            2 => {
                studio
                    .owner
                    .saved("cancelTask", json!({ "taskId": hand }))
                    .await;
            }
            _ => {
                studio
                    .owner
                    .saved("startTask", json!({ "taskId": hand }))
                    .await;
                let result = json!({ "taskId": hand, "result": "Done." });
                studio.owner.saved("submitTask", result).await;
                let types = studio.event_types().await;
                let last = &types[types.len() - 2..];
                let received = ["TASK_SUBMITTED", "AGENT_STATUS_CHANGED"];
                assert_eq!(last, received, "a task in review counts towards the limit");
                studio
                    .owner
                    .saved("approveTask", json!({ "taskId": hand }))
                    .await;
            }
        }
        let rows = task::Entity::find()
            .filter(task::Column::CircleId.eq(studio.circle))
            .filter(task::Column::Status.eq(TaskStatus::Assigned))
            .all(&studio.db)
            .await
            .expect("reads");
        let ids: Vec<_> = rows.iter().map(|row| task_id(row.id)).collect();
        assert_eq!(ids, std::slice::from_ref(next));
        let events = studio.events().await;
        let last = events.last().expect("an event");
        assert_eq!(
            (&last["type"], &last["taskId"]),
            (&json!("TASK_ASSIGNED"), &json!(next))
        );
        assert!(last["routingScore"].is_number());
        hand.clone_from(next);
    }
    let row = task::Entity::find().filter(task::Column::PriorityRank.eq(1));
    let row = row.filter(task::Column::CircleId.eq(studio.circle));
    let row = row.one(&studio.db).await.expect("reads").expect("the task");
    assert_eq!(task_id(row.id), text(&impossible["id"]));
    assert_eq!(row.status, TaskStatus::Pending);
    assert_eq!(studio.agent_row(ada).await.version, 1);
}

#[tokio::test]
async fn one_routing_pass_spreads_tasks_over_available_agents() {
    let studio = Studio::routing(100).await;
    let mut team = Vec::new();
    for n in 0..10 {
        let joined = moment() + TimeDelta::seconds(n);
        let member_change = |member: &mut member::Model| member.joined_at = joined;
        team.push(
            studio
                .member_with(&format!("Agent {n}"), |_| (), member_change)
                .await,
        );
    }
    for _ in 0..30 {
        studio.task(TaskStatus::Pending, |_| ()).await;
    }
    studio.create(json!({})).await;
    let rows = task::Entity::find()
        .filter(task::Column::CircleId.eq(studio.circle))
        .order_by_asc(task::Column::Id)
        .all(&studio.db)
        .await
        .expect("reads");
    let given: Vec<_> = rows
        .iter()
        .map(|row| row.assignee_id.expect("is routed"))
        .collect();
    for (n, agent) in given.iter().enumerate() {
        assert_eq!(*agent, team[n % 10], "task {n}");
    }
    let received = studio.event_types().await;
    let routed = received
        .iter()
        .filter(|kind| *kind == "TASK_ASSIGNED")
        .count();
    assert_eq!(routed, 31);
    assert!(rows.iter().all(|row| row.version == 2));
}

#[tokio::test]
async fn a_task_that_becomes_pending_is_routed_again() {
    let studio = Studio::routing(1).await;
    studio.member("Ada").await;
    let task = studio
        .task(TaskStatus::Failed, |task| task.title = "Old".to_owned())
        .await;
    let reopened = studio
        .owner
        .saved("reopenTask", json!({ "taskId": task_id(task) }))
        .await;
    assert_eq!(reopened["status"], "ASSIGNED");
    assert_eq!(reopened["version"], 3);
    let again = studio
        .owner
        .saved("unassignTask", json!({ "taskId": task_id(task) }))
        .await;
    assert_eq!(again["status"], "ASSIGNED");
    assert_eq!(
        studio.event_types().await,
        [
            "TASK_REOPENED",
            "TASK_ASSIGNED",
            "TASK_UNASSIGNED",
            "TASK_ASSIGNED"
        ]
    );
}

#[tokio::test]
async fn a_submitted_task_gets_the_reviewer_with_the_least_load() {
    let studio = Studio::open().await;
    let ada = studio
        .member_with("Ada", |agent| agent.review_types = words(&["all"]), |_| ())
        .await;
    let submitted = async |change: &dyn Fn(&mut task::Model)| {
        let task = studio.task(TaskStatus::InProgress, |task| {
            task.assignee_id = Some(ada);
            change(task);
        });
        let input = json!({ "taskId": task_id(task.await), "result": "Done." });
        studio.owner.saved("submitTask", input).await["reviewer"]["id"].clone()
    };
    assert_eq!(
        submitted(&|_| ()).await,
        Value::Null,
        "no other agent can review"
    );
    let other = |agent: &mut agent::Model| agent.review_types = words(&["security"]);
    let guard = studio.member_with("Guard", other, |_| ()).await;
    assert_eq!(submitted(&|_| ()).await, Value::Null);
    let security = |task: &mut task::Model| task.review_type = ReviewType::Security;
    assert_eq!(submitted(&security).await, agent_id(guard));
    // The review types of a membership override those of the agent, and an observer may review.
    let instead = |member: &mut member::Model| {
        member.review_types = words(&["quality"]);
        member.role = MemberRole::Observer;
        member.joined_at = moment() + TimeDelta::seconds(5);
    };
    let here = studio.member_with("Here", other, instead).await;
    assert_eq!(submitted(&|_| ()).await, agent_id(here));
    assert_eq!(submitted(&security).await, agent_id(guard));
    let earlier = |member: &mut member::Model| {
        member.review_types = words(&["all"]);
        member.joined_at = moment() + TimeDelta::seconds(1);
    };
    let earlier = studio.member_with("Earlier", |_| (), earlier).await;
    assert_eq!(
        submitted(&|_| ()).await,
        agent_id(earlier),
        "the earliest member among equals"
    );
    studio
        .task(TaskStatus::Assigned, |task| {
            task.assignee_id = Some(earlier);
        })
        .await;
    assert_eq!(
        submitted(&|_| ()).await,
        agent_id(here),
        "the reviewer with less load"
    );
    agent::Entity::update_many()
        .col_expr(agent::Column::Status, Expr::value("OFFLINE"))
        .filter(agent::Column::Id.eq(here))
        .exec(&studio.db)
        .await
        .expect("updates");
    assert_eq!(
        submitted(&|_| ()).await,
        agent_id(earlier),
        "an offline agent does not review"
    );
    let named = |task: &mut task::Model| task.reviewer_id = Some(guard);
    assert_eq!(
        submitted(&named).await,
        agent_id(guard),
        "a named reviewer is kept"
    );
    member::Entity::update_many()
        .col_expr(member::Column::IsActive, Expr::value(false))
        .col_expr(member::Column::LeftAt, Expr::value(moment()))
        .filter(member::Column::AgentId.eq(guard))
        .exec(&studio.db)
        .await
        .expect("updates");
    assert_eq!(
        submitted(&named).await,
        agent_id(earlier),
        "a former member does not review"
    );
}

#[tokio::test]
async fn tasks_of_a_leaving_agent_are_reassigned_within_the_limit() {
    let studio = Studio::routing(2).await;
    let (ada, bob) = (studio.member("Ada").await, studio.member("Bob").await);
    let [blocked, returned, begun] = [
        TaskStatus::Blocked,
        TaskStatus::ChangesRequested,
        TaskStatus::Assigned,
    ]
    .map(|status| {
        studio.task(status, move |task| {
            task.assignee_id = Some(ada);
            task.status_note = Some("Waits for keys.".to_owned());
            if status == TaskStatus::Assigned {
                task.priority = Priority::High;
                task.priority_rank = 3;
            }
        })
    });
    let (blocked, returned, begun) = (blocked.await, returned.await, begun.await);
    let reviewed = studio.task(TaskStatus::Assigned, |task| {
        task.assignee_id = Some(bob);
        task.reviewer_id = Some(ada);
    });
    let reviewed = reviewed.await;
    let member = member::Entity::find().filter(member::Column::AgentId.eq(ada));
    let member = member.one(&studio.db).await.expect("reads");
    let id = id_of(Kind::Member, member.expect("a member").id);
    let remove = "mutation ($input: RemoveCircleMemberInput!) { removeCircleMember(input: $input) { \
        member { isActive } userErrors { code } } }";
    let input = json!({ "input": { "memberId": id } });
    let answer = studio.owner.answer(remove, input).await;
    let payload = &answer["data"]["removeCircleMember"];
    assert_eq!(
        *payload,
        json!({ "member": { "isActive": false }, "userErrors": [] })
    );
    // Bob already has one open task, so he gets only the most urgent of the three.
    assert_eq!(studio.row(begun).await.assignee_id, Some(bob));
    assert_eq!(studio.row(begun).await.version, 3);
    for task in [blocked, returned] {
        let row = studio.row(task).await;
        assert_eq!(
            (row.status, row.assignee_id, row.status_note, row.version),
            (TaskStatus::Pending, None, None, 2)
        );
    }
    assert_eq!(studio.row(reviewed).await.reviewer_id, Some(ada));
    let events = studio.events().await;
    let received: Vec<_> = events
        .iter()
        .map(|event| {
            (
                text(&event["type"]),
                event["taskId"].clone(),
                event["fromStatus"].clone(),
            )
        })
        .collect();
    let taken = |task, from: &str| {
        (
            "TASK_UNASSIGNED".to_owned(),
            json!(task_id(task)),
            json!(from),
        )
    };
    let routed = (
        "TASK_ASSIGNED".to_owned(),
        json!(task_id(begun)),
        json!("PENDING"),
    );
    assert_eq!(
        received[received.len() - 4..],
        [
            taken(blocked, "BLOCKED"),
            taken(returned, "CHANGES_REQUESTED"),
            taken(begun, "ASSIGNED"),
            routed
        ]
    );
}

#[tokio::test]
async fn starting_a_circle_routes_the_most_urgent_tasks_first() {
    let studio = Studio::with(|circle| {
        circle.status = CircleStatus::Stopped;
        circle.max_concurrent_tasks = 3;
    })
    .await;
    studio.member("Ada").await;
    let mut tasks = Vec::new();
    for (priority, rank) in [
        (Priority::Low, 8),
        (Priority::High, 3),
        (Priority::Medium, 5),
        (Priority::Critical, 1),
        (Priority::High, 3),
    ] {
        let task = studio.task(TaskStatus::Pending, |task| {
            task.priority = priority;
            task.priority_rank = rank;
        });
        tasks.push(task.await);
    }
    let start = "mutation ($input: CircleActionInput!) { startCircle(input: $input) { \
        circle { status } userErrors { code } } }";
    let input = json!({ "input": { "circleId": id_of(Kind::Circle, studio.circle) } });
    let answer = studio.owner.answer(start, input).await;
    let payload = &answer["data"]["startCircle"];
    assert_eq!(
        *payload,
        json!({ "circle": { "status": "RUNNING" }, "userErrors": [] })
    );
    let events = studio.events().await;
    let routed: Vec<_> = events
        .iter()
        .filter(|event| event["type"] == "TASK_ASSIGNED")
        .map(|event| text(&event["taskId"]))
        .collect();
    assert_eq!(routed, [tasks[3], tasks[1], tasks[4]].map(task_id));
}

#[tokio::test]
async fn routing_a_task_clears_its_status_note() {
    let studio = Studio::routing(10).await;
    studio.member("Ada").await;
    let task = studio.task(TaskStatus::Pending, |task| {
        task.status_note = Some("Waits for keys.".to_owned());
    });
    let task = task.await;
    studio.create(json!({})).await;
    let row = studio.row(task).await;
    assert_eq!((row.status, row.status_note), (TaskStatus::Assigned, None));
}

#[tokio::test]
async fn creating_an_assigned_task_also_routes_the_pending_ones() {
    let studio = Studio::routing(2).await;
    let [ada, bob] = [studio.member("Ada").await, studio.member("Bob").await];
    let [first, second] = [
        studio.task(TaskStatus::Pending, |_| ()).await,
        studio.task(TaskStatus::Pending, |_| ()).await,
    ];
    let made = studio.create(json!({ "assigneeId": agent_id(ada) })).await;
    assert_eq!(
        (&made["status"], &made["version"]),
        (&json!("ASSIGNED"), &json!(1))
    );
    // The new task counts towards Ada's load and takes one of the two places.
    assert_eq!(studio.row(first).await.assignee_id, Some(bob));
    assert_eq!(studio.row(second).await.status, TaskStatus::Pending);
    assert_eq!(
        studio.event_types().await,
        ["TASK_CREATED", "TASK_ASSIGNED", "TASK_ASSIGNED"]
    );
}
