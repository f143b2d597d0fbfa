//! Circle members: joining, updates, and leaving.

use futures_util::future::join_all;
use gathering_entity::{agent, user};
use sea_orm::prelude::Uuid;
use sea_orm::{ColumnTrait, EntityTrait, IntoActiveModel, QueryFilter};
use serde_json::{Value, json};

use crate::support::actor::{ATELIER, Demo, GUEST, LIBRARY, WORKSHOP, faults};

const MEMBERS: &str =
    "query ($id: ID!) { circle(id: $id) { members(first: 100, filter: { includeInactive: true }) {
    edges { membership { id role isActive joinedAt competencies reviewTypes } node { id } } } } }";

impl Demo {
    /// The edges to all current and former members of a circle, in order.
    async fn members(&self, circle: &Value) -> Vec<Value> {
        let data = self.admin.ask(MEMBERS, json!({ "id": circle })).await;
        let edges = data["circle"]["members"]["edges"].as_array();
        edges.expect("members").clone()
    }

    /// Creates a circle of the owner without members.
    async fn empty(&self, name: &str, most: i32) -> Value {
        let input = json!({ "name": name, "maxMembers": most });
        let payload = self.owner.done("createCircle", input).await;
        payload["circle"]["id"].clone()
    }

    /// Creates an agent of the guest.
    async fn agent_of_guest(&self) -> Value {
        let db = self.server.database().connect().await;
        let guest = user::Entity::find().filter(user::Column::Email.eq(GUEST));
        let guest = guest.one(&db).await.expect("reads").expect("a guest");
        let row = agent::Entity::find().one(&db).await.expect("reads");
        let row = agent::Model {
            id: Uuid::now_v7(),
            owner_id: guest.id,
            ..row.expect("an agent")
        };
        let insert = agent::Entity::insert(row.into_active_model());
        insert.exec_without_returning(&db).await.expect("inserts");
        let data = self
            .guest
            .ask("{ agents(first: 1) { nodes { id } } }", json!({}))
            .await;
        data["agents"]["nodes"][0]["id"].clone()
    }
}

fn join(circle: &Value, agents: &[&Value]) -> Value {
    let members: Vec<_> = agents
        .iter()
        .map(|agent| json!({ "agentId": agent }))
        .collect();
    json!({ "circleId": circle, "members": members })
}

#[tokio::test]
async fn agents_join_in_input_order_with_an_event_each() {
    let demo = Demo::start().await;
    let (circle, agents) = (demo.empty("Empty team", 3).await, demo.agents().await);
    let since = demo.mark().await;
    let input = json!({ "circleId": circle, "members": [
        { "agentId": agents[5], "role": "LEAD", "competencies": ["Rust"], "reviewTypes": ["Final"] },
        { "agentId": agents[3], "role": "OBSERVER" },
    ] });
    let payload = demo.owner.done("addCircleMembers", input).await;
    assert_eq!(
        payload["circle"],
        json!({ "id": circle, "members": { "totalCount": 2 } })
    );
    let members = payload["members"].as_array().expect("members");
    let seen: Vec<_> = members
        .iter()
        .map(|one| {
            json!([
                one["agent"]["id"],
                one["role"],
                one["competencies"],
                one["reviewTypes"],
                one["isActive"],
                one["leftAt"]
            ])
        })
        .collect();
    let expected = [
        json!([agents[5], "LEAD", ["rust"], ["final"], true, null]),
        json!([agents[3], "OBSERVER", [], [], true, null]),
    ];
    assert_eq!(seen, expected);
    let events = demo.events(&since, 2).await;
    let received: Vec<_> = events
        .iter()
        .map(|event| {
            json!([
                event["type"],
                event["circle"]["id"],
                event["agentId"],
                event["part"]
            ])
        })
        .collect();
    let expected = [
        json!(["MEMBER_ADDED", circle, agents[5], "LEAD"]),
        json!(["MEMBER_ADDED", circle, agents[3], "OBSERVER"]),
    ];
    assert_eq!(received, expected);
}

#[tokio::test]
async fn adding_members_succeeds_for_all_agents_or_none() {
    let demo = Demo::start().await;
    let (circle, agents) = (demo.empty("Small team", 2).await, demo.agents().await);
    demo.owner
        .done("addCircleMembers", join(&circle, &[&agents[0]]))
        .await;
    let before = demo.members(&circle).await;
    for (who, expected) in [
        (&[][..], vec!["REQUIRED members"]),
        (&[&agents[1], &agents[0]], vec!["TAKEN members.1.agentId"]),
        (&[&agents[1], &agents[1]], vec!["INVALID members.1.agentId"]),
        (&[&agents[1], &agents[2]], vec!["LIMIT_REACHED members"]),
        (
            &[&agents[0], &agents[1], &agents[2], &agents[1]],
            vec![
                "INVALID members.3.agentId",
                "TAKEN members.0.agentId",
                "LIMIT_REACHED members",
            ],
        ),
    ] {
        let payload = demo
            .owner
            .payload("addCircleMembers", join(&circle, who))
            .await;
        assert_eq!(faults(&payload), expected);
        assert_eq!(payload["circle"]["members"]["totalCount"], 1);
        assert_eq!(payload["members"], json!([]));
    }
    let many: Vec<_> = agents.iter().chain(&agents[..1]).collect();
    let faults = demo
        .owner
        .faults("addCircleMembers", join(&circle, &many))
        .await;
    assert_eq!(faults, ["TOO_MANY members"]);
    let unknown = json!("agent_00000000000000000000000000");
    let refused = demo
        .owner
        .refused("addCircleMembers", join(&circle, &[&agents[1], &unknown]))
        .await;
    assert_eq!(refused, "NOT_FOUND members.1.agentId");
    assert_eq!(demo.members(&circle).await, before);
    demo.owner
        .done("addCircleMembers", join(&circle, &[&agents[1]]))
        .await;
}

#[tokio::test]
async fn an_archived_circle_is_reported_before_input_errors() {
    let demo = Demo::start().await;
    let (circle, agents) = (demo.empty("Archived", 1).await, demo.agents().await);
    let payload = demo
        .owner
        .done("addCircleMembers", join(&circle, &[&agents[0]]))
        .await;
    let member = payload["members"][0]["id"].clone();
    demo.owner
        .done("archiveCircle", json!({ "circleId": circle }))
        .await;
    for (name, input) in [
        ("addCircleMembers", join(&circle, &[])),
        ("addCircleMembers", join(&circle, &[&agents[0]])),
        (
            "updateCircleMember",
            json!({ "memberId": member, "role": null }),
        ),
    ] {
        let payload = demo.owner.payload(name, input).await;
        assert_eq!(faults(&payload), ["BAD_TRANSITION"], "{name}");
    }
}

#[tokio::test]
async fn concurrent_additions_of_one_agent_succeed_once() {
    let demo = Demo::start().await;
    let agents = demo.agents().await;
    for (round, agent) in agents[..5].iter().enumerate() {
        let circle = demo.empty(&format!("Race {round}"), 50).await;
        // Rejoining is a race too.
        for _ in 0..2 {
            let input = join(&circle, &[agent]);
            let adds = (0..3).map(|_| demo.owner.payload("addCircleMembers", input.clone()));
            let mut outcomes: Vec<_> = join_all(adds).await.iter().map(faults).collect();
            outcomes.sort();
            let taken = vec!["TAKEN members.0.agentId".to_owned()];
            assert_eq!(outcomes, [vec![], taken.clone(), taken]);
            let member = demo.members(&circle).await[0]["membership"]["id"].clone();
            demo.owner
                .done("removeCircleMember", json!({ "memberId": member }))
                .await;
        }
    }
}

#[tokio::test]
async fn concurrent_additions_for_the_last_place_succeed_once() {
    let demo = Demo::start().await;
    let agents = demo.agents().await;
    for round in 0..5 {
        let circle = demo.empty(&format!("Last {round}"), 1).await;
        let adds = agents[..3].iter().map(|agent| {
            let input = join(&circle, &[agent]);
            demo.owner.payload("addCircleMembers", input)
        });
        let mut outcomes: Vec<_> = join_all(adds).await.iter().map(faults).collect();
        outcomes.sort();
        let full = vec!["LIMIT_REACHED members".to_owned()];
        assert_eq!(outcomes, [vec![], full.clone(), full]);
    }
}

#[tokio::test]
async fn a_former_member_rejoins_with_the_same_id() {
    let demo = Demo::start().await;
    let (circle, agents) = (demo.empty("Again", 2).await, demo.agents().await);
    let input = json!({ "circleId": circle, "members": [
        { "agentId": agents[0], "role": "LEAD", "competencies": ["rust"] }, { "agentId": agents[1] },
    ] });
    demo.owner.done("addCircleMembers", input).await;
    let before = demo.members(&circle).await;
    let member = json!({ "memberId": before[0]["membership"]["id"] });
    let since = demo.mark().await;
    let payload = demo.owner.done("removeCircleMember", member.clone()).await;
    assert_eq!(payload["member"]["isActive"], false);
    assert!(payload["member"]["leftAt"].is_string());
    for name in ["removeCircleMember", "updateCircleMember"] {
        let payload = demo.owner.payload(name, member.clone()).await;
        assert_eq!(faults(&payload), ["NOT_MEMBER memberId"], "{name}");
        assert_eq!(payload["member"]["id"], member["memberId"]);
    }
    // A former member takes no place, and needs a free one to rejoin.
    let full = demo
        .owner
        .faults("addCircleMembers", join(&circle, &[&agents[2], &agents[0]]))
        .await;
    assert_eq!(full, ["LIMIT_REACHED members"]);
    let input = json!({ "circleId": circle, "maxMembers": 3 });
    demo.owner.done("updateCircle", input).await;
    let input = json!({ "circleId": circle, "members": [
        { "agentId": agents[2] }, { "agentId": agents[0], "role": "REVIEWER", "reviewTypes": ["all"] },
    ] });
    let payload = demo.owner.done("addCircleMembers", input).await;
    let again = &payload["members"][1];
    assert_eq!(again["id"], member["memberId"]);
    assert_eq!(again["role"], "REVIEWER");
    assert_eq!(
        (&again["competencies"], &again["reviewTypes"]),
        (&json!([]), &json!(["all"]))
    );
    assert_eq!(
        (&again["isActive"], &again["leftAt"]),
        (&json!(true), &Value::Null)
    );
    // Members are ordered by the time when they last joined.
    let after = demo.members(&circle).await;
    assert_eq!(after.len(), 3);
    assert_eq!(after[0], before[1]);
    let expected = [
        "MEMBER_REMOVED",
        "CIRCLE_UPDATED",
        "MEMBER_ADDED",
        "MEMBER_ADDED",
    ];
    assert_eq!(demo.announced(&since, 4).await, expected);
}

#[tokio::test]
async fn a_member_update_without_a_change_creates_no_event() {
    let demo = Demo::start().await;
    let (circle, agents) = (demo.empty("Parts", 50).await, demo.agents().await);
    let payload = demo
        .owner
        .done("addCircleMembers", join(&circle, &[&agents[0]]))
        .await;
    let id = payload["members"][0]["id"].clone();
    let since = demo.mark().await;
    let update = |mut fields: Value| {
        fields["memberId"] = id.clone();
        fields
    };
    let fields = json!({ "role": "MEMBER", "competencies": [] });
    demo.owner.done("updateCircleMember", update(fields)).await;
    let fields = json!({ "role": "SPECIALIST", "competencies": ["SQL"], "reviewTypes": ["security", "ALL"] });
    let payload = demo.owner.done("updateCircleMember", update(fields)).await;
    let expected = json!({ "id": id, "role": "SPECIALIST", "competencies": ["sql"], "reviewTypes": ["security", "all"], "isActive": true });
    assert_eq!(payload["member"], expected);
    let fields = json!({ "competencies": null });
    let payload = demo.admin.done("updateCircleMember", update(fields)).await;
    assert_eq!(payload["member"]["competencies"], json!([]));
    let fields = json!({ "role": null, "competencies": ["sql", " ", ""], "reviewTypes": ["all", " All ", "Art"] });
    let faults = demo
        .owner
        .faults("updateCircleMember", update(fields))
        .await;
    assert_eq!(
        faults,
        [
            "REQUIRED role",
            "INVALID competencies.1",
            "INVALID reviewTypes.2"
        ]
    );

    let events = demo.events(&since, 2).await;
    let received: Vec<_> = events
        .iter()
        .map(|event| {
            json!([
                event["type"],
                event["agentId"],
                event["part"],
                event["changed"]
            ])
        })
        .collect();
    let expected = [
        json!([
            "MEMBER_UPDATED",
            agents[0],
            "SPECIALIST",
            ["role", "competencies", "reviewTypes"]
        ]),
        json!(["MEMBER_UPDATED", agents[0], "SPECIALIST", ["competencies"]]),
    ];
    assert_eq!(received, expected);
}

#[tokio::test]
async fn a_leaving_member_returns_tasks_and_cannot_leave_with_one_in_progress() {
    let demo = Demo::start().await;
    // The circle has so many open tasks that returned ones are not routed again.
    let circle = demo.circle(ATELIER).await;
    let tasks = "query ($id: ID!) { circle(id: $id) { tasks(first: 100) { nodes { id status assignee { id } } } } }";
    let tasks = async || {
        let data = demo.owner.ask(tasks, json!({ "id": circle })).await;
        data["circle"]["tasks"]["nodes"]
            .as_array()
            .expect("tasks")
            .clone()
    };
    let before = tasks().await;
    let has = |agent: &Value, states: &[&str]| {
        let held = before
            .iter()
            .filter(|task| task["assignee"]["id"] == *agent);
        held.filter(|task| states.iter().any(|state| task["status"] == *state))
            .count()
    };
    let (mut stayed, mut gave_back) = (0, 0);
    let members = demo.members(&circle).await;
    for edge in members
        .iter()
        .filter(|edge| edge["membership"]["isActive"] == true)
    {
        let agent = &edge["node"]["id"];
        let input = json!({ "memberId": edge["membership"]["id"] });
        let held = has(agent, &["ASSIGNED", "BLOCKED", "CHANGES_REQUESTED"]);
        let since = demo.mark().await;
        let payload = demo.owner.payload("removeCircleMember", input).await;
        if has(agent, &["IN_PROGRESS", "IN_REVIEW"]) > 0 {
            assert_eq!(faults(&payload), ["IN_USE"]);
            assert_eq!(payload["member"]["isActive"], true);
            stayed += 1;
            continue;
        }
        assert_eq!(faults(&payload), [""; 0]);
        let mut expected = vec!["TASK_UNASSIGNED"; held + 1];
        expected[0] = "MEMBER_REMOVED";
        assert_eq!(demo.announced(&since, held + 1).await, expected);
        let kept = tasks().await;
        let kept = kept.iter().filter(|task| task["assignee"]["id"] == *agent);
        let is_done = |task: &Value| task["status"] == "COMPLETED" || task["status"] == "FAILED";
        assert!(kept.clone().all(is_done));
        gave_back += held;
    }
    assert!(
        stayed > 0 && gave_back > 0,
        "{stayed} stayed, {gave_back} tasks"
    );
}

#[tokio::test]
async fn editors_add_only_their_own_agents_and_viewers_none() {
    let demo = Demo::start().await;
    let (library, workshop) = (demo.circle(LIBRARY).await, demo.circle(WORKSHOP).await);
    let own = demo.agent_of_guest().await;
    let payload = demo
        .guest
        .done("addCircleMembers", join(&workshop, &[&own]))
        .await;
    let own_member = payload["members"][0]["id"].clone();
    let refused = demo
        .guest
        .refused("addCircleMembers", join(&library, &[&own]))
        .await;
    assert_eq!(refused, "FORBIDDEN");
    let atelier = demo.circle(ATELIER).await;
    let refused = demo
        .guest
        .refused("addCircleMembers", join(&atelier, &[&own]))
        .await;
    assert_eq!(refused, "NOT_FOUND circleId");
    // An editor can read the agents of other users in this circle, but cannot add them to another one.
    let others = demo.members(&library).await[0].clone();
    let refused = demo
        .guest
        .refused(
            "addCircleMembers",
            join(&workshop, &[&others["node"]["id"]]),
        )
        .await;
    assert_eq!(refused, "FORBIDDEN members.0.agentId");
    // The owner of the circle cannot add the guest's agent to another one either, but an administrator can.
    let refused = demo
        .owner
        .refused("addCircleMembers", join(&library, &[&own]))
        .await;
    assert_eq!(refused, "FORBIDDEN members.0.agentId");
    demo.admin
        .done("addCircleMembers", join(&library, &[&own]))
        .await;

    let of = |member: &Value| json!({ "memberId": member });
    let theirs = of(&others["membership"]["id"]);
    for name in ["updateCircleMember", "removeCircleMember"] {
        assert_eq!(
            demo.guest.refused(name, theirs.clone()).await,
            "FORBIDDEN",
            "{name}"
        );
        let hidden = demo.members(&atelier).await[0]["membership"]["id"].clone();
        let refused = demo.guest.refused(name, of(&hidden)).await;
        assert_eq!(refused, "NOT_FOUND memberId", "{name}");
        demo.guest.done(name, of(&own_member)).await;
    }
    let unknown = json!("member_00000000000000000000000000");
    let refused = demo.owner.refused("removeCircleMember", of(&unknown)).await;
    assert_eq!(refused, "NOT_FOUND memberId");
}
