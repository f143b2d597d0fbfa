//! Circles: creation, updates, state changes, sharing, deletion, and their events.

mod changes;
mod creation;
mod sharing;

use futures_util::future::join_all;
use gathering_entity::event;
use sea_orm::{EntityTrait, QueryOrder};
use serde_json::{Value, json};

use crate::support::actor::{
    ADMIN, ATELIER, Demo, GUEST, LIBRARY, OWNER, WORKSHOP, faults, selected,
};
use crate::support::counted::CountedGraph;

/// A well-formed id without a row.
const NO_PROJECT: &str = "project_01h455vb4pex5vsknk084sn02q";

const UNKNOWN: &str = "user_01h455vb4pex5vsknk084sn02q";

impl Demo {
    /// Creates a circle of the owner in this state.
    async fn in_state(&self, name: &str, status: &str) -> Value {
        let input = json!({ "name": name });
        let circle = self.owner.done("createCircle", input).await["circle"]["id"].clone();
        let steps: &[&str] = match status {
            "CREATED" => &[],
            "RUNNING" => &["startCircle"],
            "PAUSED" => &["startCircle", "pauseCircle"],
            "STOPPED" => &["startCircle", "stopCircle"],
            _ => &["archiveCircle"],
        };
        for step in steps {
            self.owner.done(step, json!({ "circleId": circle })).await;
        }
        circle
    }
}

fn of(circle: &Value) -> Value {
    json!({ "circleId": circle })
}
