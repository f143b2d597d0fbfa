//! Events about transfers.

use std::sync::Arc;

use async_graphql::{Context, ID, Object};
use gathering_entity::{event, transfer};
use serde_json::json;
use uuid::Uuid;

use crate::{
    data::load,
    error::Error,
    event::EventDetails,
    events::{EventType, NewEvent},
    id::Kind,
    request::RequestExt,
    transfer::Transfer,
};

/// A change of a transfer.
pub struct TransferChange(Arc<event::Model>);

impl From<Arc<event::Model>> for TransferChange {
    fn from(row: Arc<event::Model>) -> Self {
        Self(row)
    }
}

impl EventDetails for TransferChange {
    const NAME: &'static str = "TransferEvent";
}

#[Object]
impl TransferChange {
    /// The id of the transfer, even if the transfer has been deleted.
    async fn transfer_id(&self) -> ID {
        Kind::Transfer.id(self.0.subject_id)
    }

    /// The transfer in its current state; null if it has been deleted or the viewer may not read it.
    async fn transfer(&self, ctx: &Context<'_>) -> Result<Option<Transfer>, Error> {
        load(ctx.request(), self.0.subject_id).await
    }
}

/// The event for a new or resolved transfer. Delivered to the user who did not cause it.
pub(super) fn changed(kind: EventType, row: &transfer::Model, recipient: Uuid) -> NewEvent {
    NewEvent::new(kind, row.id, json!({})).owner(recipient)
}
