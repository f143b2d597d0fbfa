//! The choice of reviewers and assignees.

use TaskStatus::{InReview, Pending};

use super::transition::least;
use super::*;

#[tokio::test]
async fn the_reviewer_comes_from_the_task_or_from_the_review() {
    let studio = Studio::open().await;
    let [ada, bob, cleo] = [
        studio.member("Ada").await,
        studio.member("Bob").await,
        studio.member("Cleo").await,
    ];
    let stranger = studio.agent("Stranger", |_| ()).await;
    let task = studio
        .task(InReview, |task| {
            task.assignee_id = Some(ada);
            task.reviewer_id = Some(bob);
        })
        .await;
    let by = |agent| json!({ "taskId": task_id(task), "reviewerId": agent_id(agent) });
    assert_eq!(
        studio.owner.faults("approveTask", by(ada)).await,
        ["INVALID reviewerId"]
    );
    assert_eq!(
        studio.owner.faults("approveTask", by(stranger)).await,
        ["NOT_MEMBER reviewerId"]
    );
    let unknown = by(Uuid::now_v7());
    assert_eq!(
        studio.owner.refused("approveTask", unknown).await,
        "NOT_FOUND reviewerId"
    );
    let approved = studio.owner.saved("approveTask", by(cleo)).await;
    assert_eq!(approved["reviewer"]["id"], agent_id(cleo));
    let events = studio.events().await;
    assert_eq!(events.len(), 2);
    assert!(
        events
            .iter()
            .all(|event| event["reviewer"]["id"] == agent_id(cleo))
    );

    let task = studio
        .task(InReview, |task| {
            task.assignee_id = Some(ada);
            task.reviewer_id = Some(bob);
        })
        .await;
    let input = json!({ "taskId": task_id(task), "reason": "No.", "reviewerId": agent_id(cleo) });
    let rejected = studio.owner.saved("rejectTask", input).await;
    assert_eq!(rejected["reviewer"]["id"], agent_id(cleo));
}

#[tokio::test]
async fn a_former_member_is_not_recorded_as_the_reviewer() {
    let studio = Studio::open().await;
    let [ada, bob] = [studio.member("Ada").await, studio.member("Bob").await];
    let left = |member: &mut member::Model| {
        member.is_active = false;
        member.left_at = Some(moment());
    };
    let gone = studio.member_with("Gone", |_| (), left).await;
    for name in ["approveTask", "rejectTask"] {
        for (reviewer, named) in [(gone, None), (bob, Some(bob))] {
            let task = studio
                .task(InReview, |task| {
                    task.assignee_id = Some(ada);
                    task.reviewer_id = Some(reviewer);
                })
                .await;
            studio.owner.saved(name, least(name, task, ada)).await;
            assert_eq!(studio.row(task).await.reviewer_id, named, "{name}");
            for (kind, payload) in studio.payloads(task).await {
                assert_eq!(payload["reviewerId"], json!(named.map(agent_id)), "{kind}");
            }
        }
    }
}

#[tokio::test]
async fn an_approval_without_a_comment_keeps_the_review_note() {
    let studio = Studio::open().await;
    let ada = studio.member("Ada").await;
    for (comment, said) in [
        (None, "No tests."),
        (Some(" "), "No tests."),
        (Some("Fine."), "Fine."),
    ] {
        let task = studio
            .task(InReview, |task| {
                task.assignee_id = Some(ada);
                task.review_note = Some("No tests.".to_owned());
            })
            .await;
        let input = json!({ "taskId": task_id(task), "comment": comment });
        let approved = studio.owner.saved("approveTask", input).await;
        assert_eq!(approved["reviewNote"], said);
    }
}

#[tokio::test]
async fn a_task_is_assigned_only_to_members_and_never_to_its_reviewer() {
    let studio = Studio::open().await;
    let [ada, bob] = [studio.member("Ada").await, studio.member("Bob").await];
    let gone = studio
        .member_with(
            "Gone",
            |_| (),
            |member| {
                member.is_active = false;
                member.left_at = Some(moment());
            },
        )
        .await;
    let task = studio
        .task(Pending, |task| task.reviewer_id = Some(bob))
        .await;
    let to = |agent| json!({ "taskId": task_id(task), "agentId": agent_id(agent) });
    let refused = [(gone, "NOT_MEMBER agentId"), (bob, "INVALID agentId")];
    for (agent, expected) in refused {
        assert_eq!(
            studio.owner.faults("assignTask", to(agent)).await,
            [expected]
        );
    }
    let unknown = studio.owner.refused("assignTask", to(Uuid::now_v7()));
    assert_eq!(unknown.await, "NOT_FOUND agentId");
    let given = studio.owner.saved("assignTask", to(ada)).await;
    assert_eq!(given["assignee"]["id"], agent_id(ada));
    assert_eq!(
        studio.owner.faults("assignTask", to(ada)).await,
        ["BAD_TRANSITION"],
        "assigning the same agent again is not a transition"
    );
    assert_eq!(studio.row(task).await.version, 2);
    assert_eq!(studio.event_types().await, ["TASK_ASSIGNED"]);
}
