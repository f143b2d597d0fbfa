//! The only door from a resolver to the world: who asks, the loader, the clock.

use std::sync::Arc;

use async_graphql::{Context, ID, Name};
use chrono::{DateTime, SubsecRound, Utc};
use sea_orm::EntityTrait;
use serde_json::json;
use uuid::Uuid;

use crate::{
    Services,
    auth::{Accounts, Act, Client},
    error::Error,
    id::Kind,
    limit::Payer,
    load::{Batch, Waiting},
    read::{Keyed, Rule},
    viewer::Viewer,
};

/// One operation under way.
pub(crate) struct Request {
    pub(crate) services: Arc<Services>,
    pub(crate) viewer: Option<Viewer>,
    pub(crate) client: Client,
    /// Whose rate buckets the operation takes from.
    pub(crate) payer: Payer,
    pub(crate) waiting: Arc<Waiting>,
    /// The keys of the answer that the rate limiter has refused.
    pub(crate) refused: Vec<Name>,
}

/// Opens the door.
pub(crate) trait Door {
    /// The operation that the resolver is part of.
    fn request(&self) -> &Request;
}

impl Door for Context<'_> {
    #[expect(
        clippy::disallowed_methods,
        reason = "every other access goes through here"
    )]
    fn request(&self) -> &Request {
        self.data_unchecked::<Arc<Request>>()
    }
}

impl Request {
    /// The signed-in user.
    ///
    /// # Errors
    /// `UNAUTHENTICATED` when nobody is.
    pub(crate) fn viewer(&self) -> Result<&Viewer, Error> {
        self.viewer.as_ref().ok_or_else(Error::unauthenticated)
    }

    /// The signed-in administrator.
    ///
    /// # Errors
    /// `UNAUTHENTICATED`, or `FORBIDDEN` for other users.
    pub(crate) fn admin(&self) -> Result<&Viewer, Error> {
        let viewer = self.viewer()?;
        if viewer.is_admin() {
            return Ok(viewer);
        }
        let (trail, actor) = (&self.accounts().trail, Some(viewer.id()));
        trail.record(Act::Refused, &self.client, actor, None, json!({}));
        Err(Error::admins_only())
    }

    /// Whether the rate limiter has refused what is answered under this key.
    pub(crate) fn is_refused(&self, key: &Name) -> bool {
        self.refused.contains(key)
    }

    /// The accounts.
    pub(crate) fn accounts(&self) -> &Accounts {
        &self.services.accounts
    }

    /// The time, in the database's precision.
    pub(crate) fn now(&self) -> DateTime<Utc> {
        (self.services.clock)().trunc_subsecs(6)
    }

    /// The answer of a batch for one key.
    pub(crate) async fn load<B: Batch>(&self, batch: B, key: B::Key) -> Result<B::Value, Error> {
        self.services.loader.load(&self.waiting, batch, key).await
    }

    /// A row whose id came from something the viewer may read, and which may therefore be read too.
    pub(crate) async fn row<E>(&self, id: Uuid) -> Result<Option<Arc<E::Model>>, Error>
    where
        E: EntityTrait<Model: Send + Sync>,
    {
        self.load(Keyed::<E>::by_id(Rule::default()), id).await
    }

    /// A row if a rule lets the viewer read it.
    pub(crate) async fn readable<E>(
        &self,
        rule: &Rule,
        id: Uuid,
    ) -> Result<Option<Arc<E::Model>>, Error>
    where
        E: EntityTrait<Model: Send + Sync>,
    {
        self.load(Keyed::<E>::by_id(rule.clone()), id).await
    }

    /// The row that a client asks for by its public id.
    ///
    /// # Errors
    /// `BAD_USER_INPUT` for an id of another kind, `NOT_FOUND` where there is nothing that the viewer can read.
    pub(crate) async fn look_up<E>(
        &self,
        kind: Kind,
        rule: &Rule,
        id: &ID,
    ) -> Result<Arc<E::Model>, Error>
    where
        E: EntityTrait<Model: Send + Sync>,
    {
        let key = kind.parse(id, "id")?;
        self.readable::<E>(rule, key)
            .await?
            .ok_or_else(|| Error::not_found("id"))
    }
}
