//! Answers to a transfer at the same time as other changes.

use futures_util::future::join;

use super::*;
use crate::support::account::unauthenticated;

const ROUNDS: usize = 6;

/// `done`, or the code of the error.
fn outcome(name: &str, answer: &Value) -> String {
    if answer.get("errors").is_some() {
        return refusal(answer);
    }
    match &faults(&answer["data"][name])[..] {
        [] => "done".to_owned(),
        [fault, ..] => fault.clone(),
    }
}

#[tokio::test]
async fn a_transfer_is_accepted_once() {
    let demo = Demo::start().await;
    let beside = demo.server.beside(|_| ()).await;
    let elsewhere = beside.actor(GUEST).await;
    for thing in THINGS {
        for round in 0..ROUNDS {
            let id = thing.create(&demo.owner, &format!("Round {round}")).await;
            let offered = thing.offer(&demo.owner, &id, GUEST).await;
            let since = demo.mark().await;
            let name = "acceptTransfer";
            let (one, other) = join(
                answer(&demo.guest, name, this(&offered)),
                answer(&elsewhere, name, this(&offered)),
            )
            .await;
            let mut outcomes = [outcome(name, &one), outcome(name, &other)];
            outcomes.sort();
            assert_eq!(outcomes, ["BAD_TRANSITION", "done"]);
            assert_eq!(owner(&demo, &id).await, GUEST);
            demo.until_all_is_announced().await;
            let events = demo.announced(&since, 2).await;
            let changes = events.iter().filter(|kind| *kind == thing.event);
            assert_eq!(changes.count(), 1, "{events:?}");
        }
    }
}

#[tokio::test]
async fn an_acceptance_and_a_cancellation_do_not_both_succeed() {
    let demo = Demo::start().await;
    let beside = demo.server.beside(|_| ()).await;
    let elsewhere = beside.actor(GUEST).await;
    for thing in THINGS {
        for round in 0..ROUNDS {
            let id = thing.create(&demo.owner, &format!("Round {round}")).await;
            let offered = thing.offer(&demo.owner, &id, GUEST).await;
            let (accepted, cancelled) = join(
                answer(&elsewhere, "acceptTransfer", this(&offered)),
                answer(&demo.owner, "cancelTransfer", this(&offered)),
            )
            .await;
            let accepted = outcome("acceptTransfer", &accepted);
            let cancelled = outcome("cancelTransfer", &cancelled);
            let (user, end) = if accepted == "done" {
                assert_eq!(cancelled, "BAD_TRANSITION");
                (GUEST, "ACCEPTED")
            } else {
                assert_eq!(accepted, "BAD_TRANSITION");
                assert_eq!(cancelled, "done");
                (OWNER, "CANCELLED")
            };
            assert_eq!(owner(&demo, &id).await, user);
            assert_eq!(status(&demo, &offered).await, end);
        }
    }
}

#[tokio::test]
async fn an_acceptance_and_a_deletion_do_not_both_succeed() {
    let demo = Demo::start().await;
    let beside = demo.server.beside(|_| ()).await;
    let elsewhere = beside.actor(GUEST).await;
    for thing in THINGS {
        for round in 0..ROUNDS {
            let id = thing.create(&demo.owner, &format!("Round {round}")).await;
            let offered = thing.offer(&demo.owner, &id, GUEST).await;
            let (accepted, deleted) = join(
                answer(&elsewhere, "acceptTransfer", this(&offered)),
                demo.owner.call(thing.delete, json!({ "id": id })),
            )
            .await;
            let accepted = outcome("acceptTransfer", &accepted);
            let deleted = outcome(thing.delete, &deleted);
            if deleted == "done" {
                assert_eq!(accepted, "NOT_FOUND transferId");
                let left = listed(&demo.admin, json!({ "status": ["PENDING"] })).await;
                assert_eq!(left, [Value::Null; 0]);
            } else {
                assert_eq!(accepted, "done");
                // A deletion that has waited may not see yet that the former owner is an editor.
                let is_editor = thing.kind == "CIRCLE" && deleted == "FORBIDDEN";
                assert!(is_editor || deleted == "NOT_FOUND id", "{deleted}");
                assert_eq!(owner(&demo, &id).await, GUEST);
            }
        }
    }
}

#[tokio::test]
async fn one_of_two_simultaneous_requests_is_pending() {
    let demo = Demo::start().await;
    let beside = demo.server.beside(|_| ()).await;
    let elsewhere = beside.actor(OWNER).await;
    for thing in THINGS {
        for round in 0..ROUNDS {
            let id = thing.create(&demo.owner, &format!("Round {round}")).await;
            let name = thing.transfer;
            let (one, other) = join(
                answer(&demo.owner, name, thing.to(&id, GUEST)),
                answer(&elsewhere, name, thing.to(&id, ADMIN)),
            )
            .await;
            let mut outcomes = [outcome(name, &one), outcome(name, &other)];
            outcomes.sort();
            assert_eq!(outcomes, ["BAD_TRANSITION", "done"]);
        }
    }
}

#[tokio::test]
async fn an_update_during_the_acceptance_is_not_lost() {
    let demo = Demo::start().await;
    let beside = demo.server.beside(|_| ()).await;
    let elsewhere = beside.actor(GUEST).await;
    for thing in THINGS {
        for round in 0..ROUNDS {
            let id = thing.create(&demo.owner, &format!("Before {round}")).await;
            let offered = thing.offer(&demo.owner, &id, GUEST).await;
            let after = format!("After {round}");
            let (accepted, updated) = join(
                answer(&elsewhere, "acceptTransfer", this(&offered)),
                demo.owner.call(thing.update, thing.named(&id, &after)),
            )
            .await;
            assert_eq!(outcome("acceptTransfer", &accepted), "done");
            let query = "query ($id: ID!) { node(id: $id) { ... on Circle { name } ... on Agent { name } ... on Project { name } } }";
            let data = elsewhere.ask(query, json!({ "id": id })).await;
            let is_updated = outcome(thing.update, &updated) == "done";
            assert_eq!(data["node"]["name"] == after, is_updated, "{updated}");
            assert_eq!(owner(&demo, &id).await, GUEST);
        }
    }
}

#[tokio::test]
async fn no_key_of_the_agent_survives_the_acceptance() {
    let demo = Demo::start().await;
    let beside = demo.server.beside(|_| ()).await;
    let elsewhere = beside.actor(GUEST).await;
    for round in 0..ROUNDS {
        let id = AGENT.create(&demo.owner, &format!("Round {round}")).await;
        let offered = AGENT.offer(&demo.owner, &id, GUEST).await;
        let key = json!({ "name": "A key", "scopes": ["READ"], "agentId": id });
        let (accepted, created) = join(
            answer(&elsewhere, "acceptTransfer", this(&offered)),
            demo.owner.mutate("createApiKey", "secret", key),
        )
        .await;
        assert_eq!(outcome("acceptTransfer", &accepted), "done");
        if let Some(secret) = created["data"]["createApiKey"]["secret"].as_str() {
            let caller = demo.server.with_token(secret);
            assert_eq!(caller.who().await, unauthenticated());
        } else {
            assert_eq!(refusal(&created), "NOT_FOUND agentId");
        }
    }
}
