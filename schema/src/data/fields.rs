//! The fields of object types that a compiled query reads from rows: columns, edges to one object, lists.
//!
//! Fields that need more than that are resolved by the executor.

use std::{collections::HashMap, marker::PhantomData, sync::Arc};

use async_graphql::{InputType, Name, Value};
use sea_orm::{
    ColumnTrait, DbBackend, EntityName, EntityTrait, IdenStatic, Iterable, PrimaryKeyToColumn,
    sea_query::ColumnType,
};
use uuid::Uuid;

use crate::{
    access::Viewer,
    data::{Connection, Listed, Noun, Page, page::ListQuery},
    db::Rule,
    error::Error,
    id::Kind,
};

/// The values of a column in a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cell {
    Id(Kind),
    /// A key that is not shown itself.
    Key,
    Text,
    Bool,
    Int,
    Float,
    Time,
    /// An exact decimal number in millionths.
    Decimal,
    /// A list of texts.
    List,
}

/// A column, and how its values are written.
#[derive(Clone, Copy)]
pub(crate) struct Column {
    pub(crate) name: &'static str,
    pub(crate) cell: Cell,
    /// Whether the values are so long that they are not repeated in a result, and count against `graphql.text_bytes`.
    pub(crate) is_long: bool,
}

impl Column {
    /// # Panics
    /// The column is of a type that no response contains.
    pub(crate) fn of(column: impl ColumnTrait) -> Self {
        let cell = match column.def().get_column_type() {
            ColumnType::Uuid => Cell::Key,
            ColumnType::Text | ColumnType::String(_) | ColumnType::Enum { .. } => Cell::Text,
            ColumnType::Boolean => Cell::Bool,
            ColumnType::Integer | ColumnType::BigInteger => Cell::Int,
            ColumnType::Double => Cell::Float,
            ColumnType::TimestampWithTimeZone => Cell::Time,
            ColumnType::Json | ColumnType::JsonBinary => Cell::List,
            other => unreachable!("a response has no values of type {other:?}"),
        };
        Self {
            name: column.as_str(),
            cell,
            is_long: false,
        }
    }
}

/// An edge to the object whose id a column contains.
pub(crate) struct One {
    pub(crate) column: &'static str,
    /// The name of its type.
    pub(crate) target: String,
    /// Whether the rule for reading applies to the object. Otherwise a reader of the row may read it.
    pub(crate) is_checked: bool,
}

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

/// How the rows of a list become edges.
pub struct Entries {
    /// The node; `None` if the row is the node.
    pub(crate) node: Option<One>,
    /// The name of the type whose fields the row has.
    pub(crate) row: String,
    /// Further fields of the edge.
    pub(crate) extra: Vec<(&'static str, EdgeField)>,
}

/// A further field of an edge.
pub(crate) enum EdgeField {
    Column(Column),
    /// The row as an object.
    Row,
}

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

impl One {
    pub(crate) fn to<T: Noun>(column: impl ColumnTrait) -> Self {
        Self {
            column: column.as_str(),
            target: T::type_name().into_owned(),
            is_checked: false,
        }
    }
}

impl List {
    fn of<L: Listed>(
        select: impl Fn(&ListArguments<'_>) -> Result<Connection<L>, Error> + Send + Sync + 'static,
    ) -> Option<Self> {
        Some(Self {
            select: Box::new(move |arguments| Ok(select(arguments)?.query())),
            entries: L::entries()?,
        })
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
