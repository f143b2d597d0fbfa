//! Which events a feed delivers.

use gathering_entity::event;
use sea_orm::{ColumnTrait, Condition};
use uuid::Uuid;

/// Selects the events of a subscriber. All conditions must hold.
#[derive(Clone, Debug, Default)]
pub(crate) struct FeedFilter {
    /// The dotted names of event types.
    pub(crate) types: Option<Vec<&'static str>>,
    pub(crate) circle: Option<Uuid>,
    pub(crate) project: Option<Uuid>,
    pub(crate) agent: Option<Uuid>,
    pub(crate) subject: Option<Uuid>,
}

impl FeedFilter {
    pub(crate) fn takes(&self, row: &event::Model) -> bool {
        let matches =
            |expected: Option<Uuid>, actual: Option<Uuid>| expected.is_none() || expected == actual;
        matches(self.circle, row.circle_id)
            && matches(self.project, row.project_id)
            && matches(self.agent, row.agent_id)
            && matches(self.subject, Some(row.subject_id))
            && self
                .types
                .as_ref()
                .is_none_or(|types| types.contains(&row.kind.as_str()))
    }

    pub(crate) fn condition(&self) -> Condition {
        use event::Column::{AgentId, CircleId, Kind as Type, ProjectId, SubjectId};
        Condition::all()
            .add_option(
                self.types
                    .as_ref()
                    .map(|types| Type.is_in(types.iter().copied())),
            )
            .add_option(self.circle.map(|id| CircleId.eq(id)))
            .add_option(self.project.map(|id| ProjectId.eq(id)))
            .add_option(self.agent.map(|id| AgentId.eq(id)))
            .add_option(self.subject.map(|id| SubjectId.eq(id)))
    }
}
