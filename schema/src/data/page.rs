//! Relay connections with keyset cursors, at every depth.
//!
//! A cursor contains the values of the order columns, so rows that are added or removed before it do not shift the
//! page. A connection loads its rows only if they are selected, and counts them only if `totalCount` is selected.

use std::{borrow::Cow, marker::PhantomData, sync::Arc};

use async_graphql::{
    Context, Object, ObjectType, OutputType, SimpleObject, TypeName, connection::PageInfo,
};
use sea_orm::{
    ColumnTrait, Condition, EntityName, EntityTrait, FromQueryResult, QueryFilter, QueryTrait,
    sea_query::{IntoIden, SelectStatement},
};
use uuid::Uuid;

use crate::{
    data::{
        Order,
        column::{Cell, Column, Entries},
    },
    db::{ColumnOf, Count, PageOf, PageQuery, Scope, Totals},
    error::Error,
    request::RequestExt,
};

/// The default page size.
pub(crate) const DEFAULT_PAGE: u64 = 20;
/// The maximum page size.
pub const MAX_PAGE: u64 = 100;

/// A list that a connection pages through.
pub trait Listed: Send + Sync + 'static {
    /// The entity of the rows.
    type Entity: EntityTrait<Model: Send + Sync + FromQueryResult>;
    /// The GraphQL type of the nodes.
    type Node: OutputType;
    /// Additional fields of an edge; [`async_graphql::connection::EmptyFields`] for none.
    type Extra: ObjectType;
    /// The name prefix of the connection type and the edge type.
    const NAME: &'static str;

    /// Converts rows to nodes, in order; `None` for a row whose node no longer exists.
    fn nodes(
        ctx: &Context<'_>,
        rows: &[Arc<RowOf<Self>>],
    ) -> impl Future<Output = Result<Vec<Option<Self::Node>>, Error>> + Send;

    /// The additional fields of a row's edge.
    fn extra(row: &Arc<RowOf<Self>>) -> Self::Extra;

    /// How a compiled query makes edges of the rows; `None` if only the executor can.
    fn entries() -> Option<Entries> {
        None
    }
}

pub(crate) type RowOf<L> = <<L as Listed>::Entity as EntityTrait>::Model;
type ColOf<L> = <<L as Listed>::Entity as EntityTrait>::Column;

/// The requested page of a list.
#[derive(Clone, Debug)]
pub(crate) struct Page {
    size: u64,
    backward: bool,
    after: Option<String>,
    before: Option<String>,
}

impl Page {
    /// Builds the page from the arguments of a connection field.
    pub(crate) fn new(
        first: Option<i32>,
        after: Option<String>,
        last: Option<i32>,
        before: Option<String>,
    ) -> Result<Self, Error> {
        let size = |number: i32, field: &str| match u64::try_from(number) {
            Ok(size @ 1..=MAX_PAGE) => Ok(size),
            _ => Err(
                Error::bad_input(format!("`{field}` must be from 1 to {MAX_PAGE}.")).field(field),
            ),
        };
        let (size, backward) = match (first, last) {
            (Some(_), Some(_)) => {
                return Err(Error::bad_input("Set `first` or `last`, not both.").field("last"));
            }
            (None, Some(last)) => (size(last, "last")?, true),
            (Some(first), None) => (size(first, "first")?, false),
            (None, None) => (DEFAULT_PAGE, false),
        };
        Ok(Self {
            size,
            backward,
            after,
            before,
        })
    }
}

/// The statements of a connection, for a compiled query.
pub(crate) struct ListQuery {
    pub(crate) list: &'static str,
    pub(crate) all: SelectStatement,
    pub(crate) page: SelectStatement,
    pub(crate) parent: Option<ColumnOf>,
    pub(crate) size: usize,
    pub(crate) is_backward: bool,
    pub(crate) is_continued: bool,
    /// The columns in its cursors, and their common start.
    pub(crate) cursor: (Vec<(ColumnOf, Cell)>, [u8; 4]),
}

/// One page of a list. Rows are loaded, and counted, only if they are selected.
pub struct Connection<L: Listed> {
    list: &'static str,
    all: SelectStatement,
    page: SelectStatement,
    parent: Option<ColumnOf>,
    key: Uuid,
    order: Order<ColOf<L>>,
    size: usize,
    backward: bool,
    /// Whether the page starts at a cursor, so that there are entries on the other side of it.
    continued: bool,
    listed: PhantomData<fn() -> L>,
}

impl<L: Listed> Connection<L> {
    /// A page of all rows that match a condition.
    pub(crate) fn new(
        condition: Condition,
        order: Order<ColOf<L>>,
        page: &Page,
    ) -> Result<Self, Error> {
        let select = L::Entity::find().filter(condition).into_query();
        Self::select(select, None, order, page)
    }

    /// A page of the rows of a scope that match a filter.
    pub(crate) fn within(
        scope: Scope,
        filter: Condition,
        order: Order<ColOf<L>>,
        page: &Page,
    ) -> Result<Self, Error> {
        let rows = L::Entity::find().into_query();
        let all = (rows.clone())
            .cond_where(filter.clone())
            .cond_where(scope.condition.clone())
            .take();
        let select = Self::page_of(rows, filter, &order, page)?.within(scope);
        Ok(Self::paged(all, select, None, order, page))
    }

    /// A page of a parent's rows that match a condition.
    pub(crate) fn of(
        column: ColOf<L>,
        parent: Uuid,
        condition: Condition,
        order: Order<ColOf<L>>,
        page: &Page,
    ) -> Result<Self, Error> {
        let select = L::Entity::find().filter(condition).into_query();
        Self::select(select, Some((column.as_column_ref(), parent)), order, page)
    }

    /// A page of a select over the entity's columns, which may join the table of the parent column.
    pub(crate) fn select(
        all: SelectStatement,
        parent: Option<(ColumnOf, Uuid)>,
        order: Order<ColOf<L>>,
        page: &Page,
    ) -> Result<Self, Error> {
        let select = Self::page_of(all.clone(), Condition::all(), &order, page)?;
        let select = select.under(Condition::all());
        Ok(Self::paged(all, select, parent, order, page))
    }

    fn page_of(
        rows: SelectStatement,
        filter: Condition,
        order: &Order<ColOf<L>>,
        page: &Page,
    ) -> Result<PageOf, Error> {
        let mut beyond = Condition::all();
        if let Some(after) = &page.after {
            beyond = beyond.add(order.beyond(order.values(after, "after")?, true));
        }
        if let Some(before) = &page.before {
            beyond = beyond.add(order.beyond(order.values(before, "before")?, false));
        }
        let direction = order.direction(page.backward);
        let columns = order.columns.iter();
        Ok(PageOf {
            rows,
            table: L::Entity::default().into_iden(),
            filter,
            beyond,
            order: columns
                .map(|column| (column.as_column_ref(), direction.clone()))
                .collect(),
            // One additional row shows whether there is a next page.
            limit: page.size + 1,
        })
    }

    fn paged(
        all: SelectStatement,
        select: SelectStatement,
        parent: Option<(ColumnOf, Uuid)>,
        order: Order<ColOf<L>>,
        page: &Page,
    ) -> Self {
        let (parent, key) = parent.unzip();
        Self {
            list: L::Entity::default().table_name(),
            all,
            page: select,
            parent,
            key: key.unwrap_or_default(),
            order,
            size: usize::try_from(page.size).unwrap_or(usize::MAX),
            backward: page.backward,
            continued: if page.backward {
                page.before.is_some()
            } else {
                page.after.is_some()
            },
            listed: PhantomData,
        }
    }

    pub(crate) fn query(self) -> ListQuery {
        let columns = self.order.columns.iter();
        let columns = columns.map(|column| (column.as_column_ref(), Column::of(*column).cell));
        ListQuery {
            list: self.list,
            cursor: (columns.collect(), self.order.tag()),
            all: self.all,
            page: self.page,
            parent: self.parent,
            size: self.size,
            is_backward: self.backward,
            is_continued: self.continued,
        }
    }

    /// The rows of the page in the order of the list, and whether there are more in the direction of paging.
    async fn rows(&self, ctx: &Context<'_>) -> Result<(Vec<Arc<RowOf<L>>>, bool), Error> {
        let pages = PageQuery::<RowOf<L>>::new(self.list, self.page.clone(), self.parent.clone());
        let rows = ctx.request().load(pages, self.key).await?;
        let mut page: Vec<_> = rows.iter().take(self.size).cloned().collect();
        if self.backward {
            page.reverse();
        }
        Ok((page, rows.len() > self.size))
    }
}

impl<L: Listed> TypeName for Connection<L> {
    fn type_name() -> Cow<'static, str> {
        format!("{}Connection", L::NAME).into()
    }
}

/// One page of a list. See the [Relay connection specification](https://relay.dev/graphql/connections.htm).
#[Object(name_type)]
impl<L: Listed> Connection<L> {
    /// The entries of the page, each with its cursor.
    async fn edges(&self, ctx: &Context<'_>) -> Result<Vec<Edge<L>>, Error> {
        let (rows, _) = self.rows(ctx).await?;
        let nodes = L::nodes(ctx, &rows).await?;
        Ok(rows
            .iter()
            .zip(nodes)
            .filter_map(|(row, node)| {
                Some(Edge {
                    cursor: self.order.cursor(&**row),
                    node: node?,
                    extra: L::extra(row),
                })
            })
            .collect())
    }

    /// The nodes of the page without their cursors.
    async fn nodes(&self, ctx: &Context<'_>) -> Result<Vec<L::Node>, Error> {
        let (rows, _) = self.rows(ctx).await?;
        Ok(L::nodes(ctx, &rows).await?.into_iter().flatten().collect())
    }

    /// The cursors at both ends of the page, and whether there are more pages.
    async fn page_info(&self, ctx: &Context<'_>) -> Result<PageInfo, Error> {
        let (rows, more) = self.rows(ctx).await?;
        let (has_previous_page, has_next_page) = if self.backward {
            (more, self.continued)
        } else {
            (self.continued, more)
        };
        Ok(PageInfo {
            has_previous_page,
            has_next_page,
            start_cursor: rows.first().map(|row| self.order.cursor(&**row)),
            end_cursor: rows.last().map(|row| self.order.cursor(&**row)),
        })
    }

    /// The number of entries that match the filter, on all pages. Counted only if selected.
    async fn total_count(&self, ctx: &Context<'_>) -> Result<i32, Error> {
        let totals = Totals::<Count>::count(self.list, self.all.clone(), self.parent.clone());
        let total = ctx.request().load(totals, self.key).await?;
        Ok(i32::try_from(total.count).unwrap_or(i32::MAX))
    }
}

/// An edge: one entry of a list with its cursor.
#[derive(SimpleObject)]
#[graphql(name_type)]
pub struct Edge<L: Listed> {
    /// The cursor of the entry, for the arguments `after` and `before`.
    cursor: String,
    /// The node: the entry itself.
    node: L::Node,
    #[graphql(flatten)]
    extra: L::Extra,
}

impl<L: Listed> TypeName for Edge<L> {
    fn type_name() -> Cow<'static, str> {
        format!("{}Edge", L::NAME).into()
    }
}
