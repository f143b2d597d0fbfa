//! The interface that every noun of the graph implements.

use std::sync::Arc;

use async_graphql::{Context, ID, OutputType, connection::EmptyFields};
use sea_orm::{EntityTrait, FromQueryResult};
use uuid::Uuid;

use crate::{
    access::Viewer,
    data::{
        Listed,
        fields::{Entries, FieldsOf},
    },
    db::Rule,
    error::Error,
    id::Kind,
    request::{Request, RequestExt},
};

/// The row of a noun.
pub(crate) type RowOf<N> = <<N as Noun>::Entity as EntityTrait>::Model;

/// An object type with a global id, backed by one row.
pub trait Noun: OutputType + From<Arc<RowOf<Self>>> + Send + Sync + 'static {
    /// The rows.
    type Entity: EntityTrait<Model: Send + Sync + FromQueryResult>;
    /// The prefix of its ids.
    const KIND: Kind;
    /// The first part of the names of its connection and edge, such as `Project` in `ProjectConnection`.
    const NAME: &'static str;

    /// The rows that the viewer may read; `None` if there are none.
    fn readable(viewer: &Viewer) -> Option<Rule>;

    /// The fields that compiled queries read.
    #[must_use]
    fn fields() -> FieldsOf<Self> {
        FieldsOf::new()
    }
}

/// The object with this row id; `None` if the viewer may not read it.
pub(crate) async fn load<N: Noun>(request: &Request, id: Uuid) -> Result<Option<N>, Error> {
    let Some(rule) = N::readable(request.viewer()?) else {
        return Ok(None);
    };
    let row = request.readable::<N::Entity>(&rule, id).await?;
    Ok(row.map(N::from))
}

/// The object with this public id.
///
/// # Errors
/// `BAD_USER_INPUT` for an id of another kind, `NOT_FOUND` if the viewer may read no such object.
pub(crate) async fn by_id<N: Noun>(ctx: &Context<'_>, id: &ID) -> Result<Option<N>, Error> {
    let request = ctx.request();
    request.viewer()?;
    let id = N::KIND.parse(id, "id")?;
    let object = load::<N>(request, id).await?;
    object.map(Some).ok_or_else(|| Error::not_found("id"))
}

impl<N: Noun> Listed for N {
    type Entity = N::Entity;
    type Node = N;
    type Extra = EmptyFields;
    const NAME: &'static str = N::NAME;

    async fn nodes(_: &Context<'_>, rows: &[Arc<RowOf<N>>]) -> Result<Vec<Option<N>>, Error> {
        let nodes = rows.iter().map(|row| Some(N::from(Arc::clone(row))));
        Ok(nodes.collect())
    }

    fn extra(_: &Arc<RowOf<N>>) -> EmptyFields {
        EmptyFields
    }

    fn entries() -> Option<Entries> {
        Some(Entries {
            node: None,
            row: N::type_name().into_owned(),
            extra: Vec::new(),
        })
    }
}
