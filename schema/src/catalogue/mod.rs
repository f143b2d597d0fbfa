//! What changes of providers, models and personas have in common: every user is told, and the audit log keeps who did it.

pub mod model;
pub mod persona;
pub mod provider;

use chrono::{DateTime, Utc};
use serde_json::json;
use uuid::Uuid;

use crate::{audit::AuditAction, data::Change, events::NewEvent, id::Kind};

/// An entry of the catalogue that a change is about.
pub(crate) struct Entry<'a> {
    /// Its kind, and the type of the events that tell of it.
    pub(crate) kind: (Kind, &'static str),
    pub(crate) id: Uuid,
    pub(crate) name: &'a str,
    pub(crate) updated_at: DateTime<Utc>,
}

impl Entry<'_> {
    /// It was added, or these fields of it were changed.
    pub(crate) fn changed(&self, change: &mut Change<'_>, changed: &[&str]) {
        self.tell(change, changed, false);
    }

    /// It was deleted.
    pub(crate) fn deleted(&self, change: &mut Change<'_>) {
        self.tell(change, &[], true);
    }

    fn tell(&self, change: &mut Change<'_>, changed: &[&str], is_deleted: bool) {
        let (kind, event) = self.kind;
        let details = json!({ "name": self.name, "isDeleted": is_deleted, "changed": changed });
        let mut payload = details.clone();
        payload["updatedAt"] = json!(self.updated_at);
        change.append(NewEvent::new(event, self.id, payload));
        change.note(AuditAction::CatalogueChanged, kind, self.id, details);
    }
}
