//! The events of the demo data: one for the creation of each row that has any.

use gathering_entity::event;
use gathering_entity::task::TaskStatus;
use sea_orm::prelude::Uuid;
use sea_orm::{ActiveEnum, Set};
use serde_json::{Value, json};

use crate::rows::Data;
use crate::{Ids, SeedError, Table, made};

/// The fields of an event that differ between events.
#[derive(Default)]
struct NewEvent<'a> {
    /// The event type; its prefix is the subject's type.
    kind: &'static str,
    subject: Uuid,
    circle: Option<&'a String>,
    project: Option<Uuid>,
    agent: Option<Uuid>,
    payload: Value,
}

impl Data {
    /// One event for each created row, with positions in the same order.
    pub(crate) fn events(&self, ids: &Ids) -> Result<Vec<event::ActiveModel>, SeedError> {
        let of_agents = (1..).zip(&self.agents).map(|(n, row)| {
            Ok::<_, SeedError>(NewEvent {
                kind: "agent.created",
                subject: Table::Agent.id(n),
                agent: Some(Table::Agent.id(n)),
                payload: json!({"v": 1, "version": 1, "name": row.name, "changed": []}),
                ..NewEvent::default()
            })
        });
        let of_projects = (1..).zip(&self.projects).map(|(n, row)| {
            Ok(NewEvent {
                kind: "project.created",
                subject: Table::Project.id(n),
                project: Some(Table::Project.id(n)),
                payload: json!({"v": 1, "name": row.name, "changed": []}),
                ..NewEvent::default()
            })
        });
        let of_circles = (1..).zip(&self.circles).map(|(n, row)| {
            Ok(NewEvent {
                kind: "circle.created",
                subject: Table::Circle.id(n),
                circle: Some(&row.name),
                payload: json!({"v": 1, "version": 1, "name": row.name, "changed": []}),
                ..NewEvent::default()
            })
        });
        let of_members = (1..).zip(&self.members).map(|(n, row)| {
            let agent = ids.get(Table::Agent, &row.agent)?;
            Ok(NewEvent {
                kind: "member.added",
                subject: Table::Member.id(n),
                circle: Some(&row.circle),
                agent: Some(agent),
                payload: json!({
                    "v": 1,
                    "circleId": ids.get(Table::Circle, &row.circle)?,
                    "agentId": agent,
                    "role": row.role.to_value(),
                    "changed": [],
                }),
                ..NewEvent::default()
            })
        });
        let of_tasks = (1..).zip(&self.tasks).map(|(n, row)| {
            Ok(NewEvent {
                kind: "task.created",
                subject: Table::Task.id(n),
                circle: Some(&row.circle),
                payload: json!({
                    "v": 1,
                    "version": 1,
                    "title": row.title,
                    "priority": row.priority.to_value(),
                    "toStatus": TaskStatus::Pending.to_value(),
                    "changed": [],
                }),
                ..NewEvent::default()
            })
        });
        let of_conversations = (1..).zip(&self.conversations).map(|(n, row)| {
            Ok(NewEvent {
                kind: "conversation.created",
                subject: Table::Conversation.id(n),
                circle: row.circle.as_ref(),
                payload: json!({"v": 1, "version": 1, "topic": row.topic, "changed": []}),
                ..NewEvent::default()
            })
        });
        let all = of_agents
            .chain(of_projects)
            .chain(of_circles)
            .chain(of_members)
            .chain(of_tasks)
            .chain(of_conversations);
        (1..)
            .zip(all)
            .map(|(n, event)| self.event(ids, n, event?))
            .collect()
    }

    fn event(
        &self,
        ids: &Ids,
        n: u32,
        event: NewEvent<'_>,
    ) -> Result<event::ActiveModel, SeedError> {
        let circle = event.circle;
        let circle = circle.and_then(|name| self.circles.iter().find(|row| row.name == *name));
        let project = circle.and_then(|row| row.project.as_ref());
        Ok(event::ActiveModel {
            id: Set(Table::Event.id(n)),
            position: Set(Some(n.into())),
            kind: Set(event.kind.to_owned()),
            subject_type: Set(event.kind.split('.').take(1).collect()),
            subject_id: Set(event.subject),
            owner_id: Set(Some(ids.owner()?)),
            circle_id: Set(ids.find(Table::Circle, event.circle)?),
            project_id: Set(event.project.or(ids.find(Table::Project, project)?)),
            agent_id: Set(event.agent),
            actor_user_id: Set(Some(ids.owner()?)),
            payload: Set(event.payload),
            occurred_at: Set(made(n)),
            ..Default::default()
        })
    }
}
