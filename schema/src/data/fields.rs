//! The fields of object types that a compiled query reads from rows: columns, edges to one object, lists.
//!
//! Fields that need more than that are resolved by the executor.

use std::{collections::HashMap, sync::Arc};

use async_graphql::{InputType, Name, Value};
use sea_orm::DbBackend;
use uuid::Uuid;

use crate::{
    access::Viewer,
    data::{
        column::{Column, Entries, One},
        page::{Connection, ListQuery, Listed, Page},
    },
    db::Rule,
    error::Error,
    id::Kind,
};

/// A field of an object type.
pub(crate) enum Field {
    Column(Column),
    One(One),
    List(Arc<List>),
}

/// A list: a root field, or a field of an object.
pub(crate) struct List {
    pub(crate) select: Select,
    pub(crate) entries: Entries,
}

type Select = Box<dyn Fn(&ListArguments<'_>) -> Result<ListQuery, Error> + Send + Sync>;

/// The arguments of a list.
pub(crate) struct ListArguments<'a> {
    /// A stand-in for the parent, whose key is bound later.
    pub(crate) parent: Uuid,
    pub(crate) viewer: &'a Viewer,
    pub(crate) backend: DbBackend,
    pub(crate) page: Page,
    pub(crate) values: &'a HashMap<Name, Value>,
}

impl ListArguments<'_> {
    /// An argument.
    ///
    /// # Errors
    /// The value is not valid.
    pub(crate) fn get<T: InputType>(&self, name: &str) -> Result<T, Error> {
        argument(self.values, name)
    }
}

/// # Errors
/// The value is not valid.
pub(crate) fn argument<T: InputType>(
    values: &HashMap<Name, Value>,
    name: &str,
) -> Result<T, Error> {
    let value = values.get(name).cloned();
    T::parse(value).map_err(|_| Error::bad_input(format!("`{name}` is not valid.")).field(name))
}

/// The fields of an object type, or of a root.
pub(crate) struct Fields {
    pub(crate) name: String,
    pub(crate) table: &'static str,
    /// The primary key.
    pub(crate) key: &'static str,
    pub(crate) kind: Kind,
    pub(crate) readable: fn(&Viewer) -> Option<Rule>,
    pub(crate) by_name: HashMap<String, Field>,
    /// The root field that returns an object by its id.
    pub(crate) by_id: Option<&'static str>,
    /// The root field that returns a list.
    pub(crate) all: Option<(&'static str, Arc<List>)>,
}

impl List {
    pub(super) fn of<L: Listed>(
        select: impl Fn(&ListArguments<'_>) -> Result<Connection<L>, Error> + Send + Sync + 'static,
    ) -> Option<Self> {
        Some(Self {
            select: Box::new(move |arguments| Ok(select(arguments)?.query())),
            entries: L::entries()?,
        })
    }
}
