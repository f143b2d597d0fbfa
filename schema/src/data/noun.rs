//! The interface that every noun of the graph implements.

use std::{collections::HashMap, marker::PhantomData, sync::Arc};

use async_graphql::{Context, ID, OutputType, connection::EmptyFields};
use sea_orm::{EntityName, EntityTrait, FromQueryResult, IdenStatic, Iterable, PrimaryKeyToColumn};
use uuid::Uuid;

use crate::{
    access::Viewer,
    data::{
        column::{Cell, Column, Entries, One},
        fields::{Field, Fields, List, ListArguments},
        page::{Connection, Listed},
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

type ColumnOf<N> = <<N as Noun>::Entity as EntityTrait>::Column;

/// Collects the fields of a noun.
pub struct FieldsOf<N> {
    fields: Fields,
    noun: PhantomData<fn() -> N>,
}

impl<N: Noun> FieldsOf<N> {
    /// The fields `id` and `__typename`.
    pub(crate) fn new() -> Self {
        let key = <N::Entity as EntityTrait>::PrimaryKey::iter()
            .next()
            .map(PrimaryKeyToColumn::into_column);
        let key = key.unwrap_or_else(|| unreachable!("every table has a primary key"));
        let id = Column {
            cell: Cell::Id(N::KIND),
            ..Column::of(key)
        };
        Self {
            fields: Fields {
                name: N::type_name().into_owned(),
                table: N::Entity::default().table_name(),
                key: key.as_str(),
                kind: N::KIND,
                readable: N::readable,
                by_name: HashMap::from([("id".to_owned(), Field::Column(id))]),
                by_id: None,
                all: None,
            },
            noun: PhantomData,
        }
    }

    fn with(mut self, name: String, field: Field) -> Self {
        self.fields.by_name.insert(name, field);
        self
    }

    /// Columns whose fields have the same names.
    pub(crate) fn columns(self, columns: impl IntoIterator<Item = ColumnOf<N>>) -> Self {
        columns.into_iter().fold(self, |fields, column| {
            fields.with(
                camel_case(column.as_str()),
                Field::Column(Column::of(column)),
            )
        })
    }

    /// Columns of texts that count against `graphql.text_bytes`.
    pub(crate) fn texts(self, columns: impl IntoIterator<Item = ColumnOf<N>>) -> Self {
        columns.into_iter().fold(self, |fields, column| {
            let text = Column {
                is_long: true,
                ..Column::of(column)
            };
            fields.with(camel_case(column.as_str()), Field::Column(text))
        })
    }

    /// Columns of exact decimal numbers.
    pub(crate) fn decimals(self, columns: impl IntoIterator<Item = ColumnOf<N>>) -> Self {
        columns.into_iter().fold(self, |fields, column| {
            let decimal = Column {
                cell: Cell::Decimal,
                ..Column::of(column)
            };
            fields.with(camel_case(column.as_str()), Field::Column(decimal))
        })
    }

    /// An edge to an object that every reader of the row may read.
    pub(crate) fn one<T: Noun>(self, name: &str, column: ColumnOf<N>) -> Self {
        self.with(name.to_owned(), Field::One(One::to::<T>(column)))
    }

    /// An edge to an object that is null if the viewer may not read it.
    pub(crate) fn one_readable<T: Noun>(self, name: &str, column: ColumnOf<N>) -> Self {
        let one = One {
            is_checked: true,
            ..One::to::<T>(column)
        };
        self.with(name.to_owned(), Field::One(one))
    }

    /// A list of the object's rows. `select` ignores the parent.
    pub(crate) fn list<L: Listed>(
        self,
        name: &str,
        select: impl Fn(&ListArguments<'_>) -> Result<Connection<L>, Error> + Send + Sync + 'static,
    ) -> Self {
        match List::of(select) {
            Some(list) => self.with(name.to_owned(), Field::List(Arc::new(list))),
            None => self,
        }
    }

    /// The root field that returns an object by its id.
    pub(crate) fn by_id(mut self, root: &'static str) -> Self {
        self.fields.by_id = Some(root);
        self
    }

    /// The root field that returns a list.
    pub(crate) fn all<L: Listed>(
        mut self,
        root: &'static str,
        select: impl Fn(&ListArguments<'_>) -> Result<Connection<L>, Error> + Send + Sync + 'static,
    ) -> Self {
        self.fields.all = List::of(select).map(|list| (root, Arc::new(list)));
        self
    }
}

impl<N> From<FieldsOf<N>> for Fields {
    fn from(fields: FieldsOf<N>) -> Self {
        fields.fields
    }
}

/// The name of a field: `display_name` becomes `displayName`.
fn camel_case(column: &str) -> String {
    let mut name = String::with_capacity(column.len());
    let mut is_start = false;
    for letter in column.chars() {
        if letter == '_' {
            is_start = true;
        } else if is_start {
            name.extend(letter.to_uppercase());
            is_start = false;
        } else {
            name.push(letter);
        }
    }
    name
}
