//! Events about the catalogue.

use std::sync::Arc;

use async_graphql::{ID, Object};
use gathering_entity::event;

use crate::{
    event::{EventDetails, Payload},
    id::Kind,
};

/// A change of a provider, model or persona.
pub struct CatalogueChange(Arc<event::Model>);

impl From<Arc<event::Model>> for CatalogueChange {
    fn from(row: Arc<event::Model>) -> Self {
        Self(row)
    }
}

impl EventDetails for CatalogueChange {
    const NAME: &'static str = "CatalogueEvent";
}

#[Object]
impl CatalogueChange {
    /// The id of the provider, model or persona, even if it has been deleted.
    async fn subject_id(&self) -> ID {
        let kind = match self.0.subject_type.as_str() {
            "provider" => Kind::Provider,
            "model" => Kind::Model,
            _ => Kind::Persona,
        };
        kind.id(self.0.subject_id)
    }

    /// The name at the time of the event.
    async fn name(&self) -> &str {
        self.0.text("name").unwrap_or_default()
    }

    /// Whether it was deleted.
    async fn is_deleted(&self) -> bool {
        self.0.flag("isDeleted").unwrap_or_default()
    }

    /// The names of the fields that changed.
    async fn changed(&self) -> Vec<String> {
        self.0.changed()
    }
}
