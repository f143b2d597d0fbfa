//! What all deletions have in common.

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

/// What is to be deleted.
#[derive(InputObject)]
pub struct DeleteInput {
    /// Its id.
    pub(crate) id: ID,
    /// Delete it only at this version. Counts for tasks, circles, agents and conversations alone.
    pub(crate) expected_version: Option<i32>,
}

/// The outcome of a deletion.
#[derive(SimpleObject)]
pub struct DeletePayload {
    /// The id of what was deleted; null when nothing was.
    deleted_id: Option<ID>,
    /// What was to be deleted and was not, as it is now.
    current: Option<Node>,
    /// Why it was not deleted.
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

/// Why what others need is not deleted.
pub(crate) fn in_use(message: &str) -> UserError {
    UserError::new("id", UserErrorCode::InUse, message)
}
