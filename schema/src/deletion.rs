//! Shared by all delete mutations.

use async_graphql::{Context, ID, InputObject, SimpleObject};
use uuid::Uuid;

use crate::{
    data::Outcome,
    error::Error,
    id::Kind,
    input::{UserError, UserErrorCode},
    node::Node,
    request::RequestExt,
};

/// Input for delete mutations.
#[derive(InputObject)]
pub struct DeleteInput {
    /// The id of the object to delete.
    pub(crate) id: ID,
    /// Deletes the object only if it has this version. Applies to tasks, circles, agents and conversations only.
    pub(crate) expected_version: Option<i32>,
}

/// Payload of delete mutations.
#[derive(SimpleObject)]
pub struct DeletePayload {
    /// The id of the deleted object; null if nothing was deleted.
    deleted_id: Option<ID>,
    /// The current state of the object if it was not deleted.
    current: Option<Node>,
    /// The reasons why the object was not deleted; empty when the mutation succeeded.
    user_errors: Vec<UserError>,
}

impl DeletePayload {
    pub(crate) async fn new(
        ctx: &Context<'_>,
        kind: Kind,
        id: Uuid,
        outcome: Outcome,
    ) -> Result<Self, Error> {
        let is_done = outcome.errors.is_empty();
        let current = if is_done {
            None
        } else {
            Node::load(ctx.request(), kind, id).await?
        };
        Ok(Self {
            deleted_id: is_done.then(|| kind.id(id)),
            current,
            user_errors: outcome.errors,
        })
    }
}

/// The `IN_USE` error for an object that others still refer to.
pub(crate) fn in_use(message: &str) -> UserError {
    UserError::new("id", UserErrorCode::InUse, message)
}
