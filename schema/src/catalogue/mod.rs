//! Shared by changes to providers, models and personas: each one writes an event and an audit log entry.

pub mod event;
pub mod model;
pub mod persona;
pub mod provider;

use chrono::{DateTime, Utc};
use serde_json::json;
use uuid::Uuid;

use crate::{
    audit::AuditAction,
    data::Change,
    events::{EventType, NewEvent},
    id::Kind,
};

/// A catalogue entry that is changed.
pub(crate) struct Entry<'a> {
    /// The kind of the entry, and the type of its events.
    pub(crate) kind: (Kind, EventType),
    pub(crate) id: Uuid,
    pub(crate) name: &'a str,
    pub(crate) updated_at: DateTime<Utc>,
}

impl Entry<'_> {
    /// Records that the entry was added, or that these fields changed.
    pub(crate) fn changed(&self, change: &mut Change<'_>, changed: &[&str]) {
        self.record(change, changed, false);
    }

    /// Records that the entry was deleted.
    pub(crate) fn deleted(&self, change: &mut Change<'_>) {
        self.record(change, &[], true);
    }

    fn record(&self, change: &mut Change<'_>, changed: &[&str], is_deleted: bool) {
        let (kind, event) = self.kind;
        let details = json!({ "name": self.name, "isDeleted": is_deleted, "changed": changed });
        let mut payload = details.clone();
        payload["updatedAt"] = json!(self.updated_at);
        change.append(NewEvent::new(event, self.id, payload));
        change.note(AuditAction::CatalogueChanged, kind, self.id, details);
    }
}
