//! The statements of the loader: rows by key, pages by parent, totals by parent. Each serves any number of keys.

use std::{collections::HashMap, iter, marker::PhantomData, sync::Arc};

use sea_orm::{
    ColumnTrait, Condition, DbBackend, EntityTrait, FromQueryResult, IdenStatic, Iterable,
    ModelTrait, PrimaryKeyToColumn, QueryFilter, QueryResult, QueryTrait, Value,
    sea_query::{
        Alias, ArrayType, Asterisk, DynIden, Expr, ExprTrait, Func, FunctionCall, IntoIden,
        JoinType, Query, SelectStatement, UnionType,
    },
};
use uuid::Uuid;

use crate::{
    db::{Batch, Reader},
    error::Error,
};

/// A table and one of its columns.
pub(crate) type ColumnOf = (DynIden, DynIden);

/// The column alias of a row's parent in a result.
const PARENT: &str = "parent_key";

/// Maximum number of parents in one statement on SQLite, which allows at most 500 compound selects.
const SQLITE_PARENTS: usize = 256;

/// The condition under which a viewer may read a row; the empty rule allows everything. Comparing clones is free.
#[derive(Clone, Debug, Default)]
pub struct Rule(Option<Arc<Condition>>);

impl Rule {
    pub(crate) fn new(condition: Condition) -> Self {
        Self(Some(Arc::new(condition)))
    }

    pub(crate) fn condition(&self) -> Condition {
        self.0
            .as_ref()
            .map_or_else(Condition::all, |rule| (**rule).clone())
    }

    /// The rows that also meet this condition.
    pub(crate) fn and(&self, condition: Expr) -> Condition {
        Condition::all().add(condition).add(self.condition())
    }
}

impl PartialEq for Rule {
    fn eq(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (None, None) => true,
            (Some(one), Some(other)) => Arc::ptr_eq(one, other) || one == other,
            _ => false,
        }
    }
}

/// Condition: `column` is one of the keys. PostgreSQL receives the keys as one array, so that the statement does not
/// depend on their number. SQLite receives a power of two of keys for the same reason, padded with ids that no row has.
pub(crate) fn is_among(backend: DbBackend, column: ColumnOf, keys: &[Uuid]) -> Expr {
    if backend == DbBackend::Postgres {
        Expr::col(column).eq(Func::cust("ANY").arg(array(keys)))
    } else {
        Expr::col(column).is_in(padded(keys))
    }
}

/// Removes duplicates, because a statement has a maximum number of parameters.
pub(crate) fn distinct<T: PartialEq>(list: impl IntoIterator<Item = T>) -> Vec<T> {
    let mut distinct = Vec::new();
    for value in list {
        if !distinct.contains(&value) {
            distinct.push(value);
        }
    }
    distinct
}

/// Condition: the column has one of these values of an input. An empty list matches nothing.
pub(crate) fn is_one_of<V>(column: impl ColumnTrait, list: Vec<impl Into<V>>) -> Expr
where
    V: Into<Value> + PartialEq,
{
    column.is_in(distinct(list.into_iter().map(Into::into)))
}

fn array(keys: &[Uuid]) -> Value {
    Value::Array(
        ArrayType::Uuid,
        Some(Box::new(keys.iter().map(|key| Value::from(*key)).collect())),
    )
}

fn padded(keys: &[Uuid]) -> impl Iterator<Item = Uuid> {
    let missing = keys.len().next_power_of_two() - keys.len();
    keys.iter()
        .copied()
        .chain(iter::repeat_n(Uuid::nil(), missing))
}

fn parent_of(row: &QueryResult) -> Result<Uuid, Error> {
    row.try_get::<Uuid>("", PARENT).map_err(Error::from)
}

/// Rows by a unique key, restricted by a rule.
pub(crate) struct RowsByKey<E: EntityTrait> {
    column: E::Column,
    rule: Rule,
}

impl<E: EntityTrait> RowsByKey<E> {
    /// Rows by primary key.
    pub(crate) fn by_id(rule: Rule) -> Self {
        let id = E::PrimaryKey::iter()
            .next()
            .map(PrimaryKeyToColumn::into_column);
        Self {
            column: id.unwrap_or_else(|| unreachable!("every table has a primary key")),
            rule,
        }
    }

    /// Rows by another unique column.
    pub(crate) fn by(column: E::Column, rule: Rule) -> Self {
        Self { column, rule }
    }
}

impl<E: EntityTrait> Clone for RowsByKey<E> {
    fn clone(&self) -> Self {
        Self {
            column: self.column,
            rule: self.rule.clone(),
        }
    }
}

impl<E: EntityTrait> PartialEq for RowsByKey<E> {
    fn eq(&self, other: &Self) -> bool {
        self.column.as_str() == other.column.as_str() && self.rule == other.rule
    }
}

impl<E> Batch for RowsByKey<E>
where
    E: EntityTrait<Model: Send + Sync>,
{
    type Key = Uuid;
    type Value = Option<Arc<E::Model>>;

    fn name(&self) -> String {
        format!("{} by {}", E::default().table_name(), self.column.as_str())
    }

    async fn run(&self, db: &Reader, keys: &[Uuid]) -> Result<HashMap<Uuid, Self::Value>, Error> {
        let select = E::find()
            .filter(self.rule.condition())
            .filter(is_among(db.backend(), self.column.as_column_ref(), keys))
            .into_query();
        let rows: Vec<E::Model> = db.all(&select).await?;
        Ok(rows
            .into_iter()
            .filter_map(|row| match row.get(self.column) {
                Value::Uuid(Some(key)) => Some((key, Some(Arc::new(row)))),
                _ => None,
            })
            .collect())
    }
}

/// The ordered rows of a statement with a limit, for each parent.
pub(crate) struct PageQuery<R> {
    shape: Arc<QueryTemplate>,
    row: PhantomData<fn() -> R>,
}

#[derive(PartialEq)]
struct QueryTemplate {
    name: &'static str,
    /// The statement for one parent, without the condition on the parent.
    select: SelectStatement,
    /// The parent column; `None` for a list without a parent.
    parent: Option<ColumnOf>,
}

impl<R> PageQuery<R> {
    pub(crate) fn new(
        name: &'static str,
        select: SelectStatement,
        parent: Option<ColumnOf>,
    ) -> Self {
        Self {
            shape: Arc::new(QueryTemplate {
                name,
                select,
                parent,
            }),
            row: PhantomData,
        }
    }
}

impl<R> Clone for PageQuery<R> {
    fn clone(&self) -> Self {
        Self {
            shape: Arc::clone(&self.shape),
            row: PhantomData,
        }
    }
}

impl<R> PartialEq for PageQuery<R> {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shape, &other.shape) || self.shape == other.shape
    }
}

impl QueryTemplate {
    fn of(&self, parent: &ColumnOf, key: Expr) -> SelectStatement {
        let mut select = self.select.clone();
        select.and_where(Expr::col(parent.clone()).eq(key));
        select
    }

    /// The first rows of every parent in one statement. A window function would number all rows of all parents first;
    /// this reads no row beyond the limit of each parent. Both databases process the parents one after the other and
    /// return the rows of each in the order of its select.
    fn of_each(&self, backend: DbBackend, parent: &ColumnOf, keys: &[Uuid]) -> SelectStatement {
        let page = || Alias::new("page");
        if backend == DbBackend::Postgres {
            let key = || Alias::new("key");
            let inner = self.of(parent, Expr::col((key(), key())));
            return Query::select()
                .expr_as(Expr::col((key(), key())), Alias::new(PARENT))
                .column((page(), Asterisk))
                .from_function(Func::cust("unnest").arg(array(keys)), key())
                .join_lateral(JoinType::InnerJoin, inner, page(), Expr::cust("TRUE"))
                .take();
        }
        let mut arms = padded(keys).map(|key| {
            Query::select()
                .expr_as(Expr::val(key), Alias::new(PARENT))
                .column((page(), Asterisk))
                .from_subquery(self.of(parent, Expr::val(key)), page())
                .take()
        });
        let mut select = arms
            .next()
            .unwrap_or_else(|| unreachable!("a batch has at least one key"));
        for arm in arms {
            select.union(UnionType::All, arm);
        }
        select
    }
}

impl<R> Batch for PageQuery<R>
where
    R: FromQueryResult + Send + Sync + 'static,
{
    type Key = Uuid;
    type Value = Arc<Vec<Arc<R>>>;

    fn name(&self) -> String {
        match &self.shape.parent {
            Some((_, column)) => format!("{} by {column}", self.shape.name),
            None => self.shape.name.to_owned(),
        }
    }

    async fn run(&self, db: &Reader, keys: &[Uuid]) -> Result<HashMap<Uuid, Self::Value>, Error> {
        let shape = &*self.shape;
        let (parent, only) = match (&shape.parent, keys) {
            (None, [key, ..]) => (None, Some((*key, shape.select.clone()))),
            (Some(parent), [key]) => (None, Some((*key, shape.of(parent, Expr::val(*key))))),
            (parent, _) => (parent.as_ref(), None),
        };
        if let Some((key, select)) = only {
            let rows: Vec<R> = db.all(&select).await?;
            return Ok(HashMap::from([(
                key,
                Arc::new(rows.into_iter().map(Arc::new).collect()),
            )]));
        }
        let Some(parent) = parent else {
            return Ok(HashMap::new());
        };
        let size = match db.backend() {
            DbBackend::Postgres => keys.len(),
            _ => SQLITE_PARENTS,
        };
        let mut pages: HashMap<Uuid, Vec<Arc<R>>> = HashMap::new();
        for keys in keys.chunks(size) {
            for row in db.rows(&shape.of_each(db.backend(), parent, keys)).await? {
                let page = pages.entry(parent_of(&row)?).or_default();
                page.push(Arc::new(R::from_query_result(&row, "")?));
            }
        }
        Ok(pages
            .into_iter()
            .map(|(key, page)| (key, Arc::new(page)))
            .collect())
    }
}

/// Aggregates of a statement, for each parent.
pub(crate) struct Totals<R> {
    shape: Arc<QueryTemplate>,
    row: PhantomData<fn() -> R>,
}

impl<R> Totals<R> {
    pub(crate) fn new(
        name: &'static str,
        select: SelectStatement,
        parent: Option<ColumnOf>,
    ) -> Self {
        Self {
            shape: Arc::new(QueryTemplate {
                name,
                select,
                parent,
            }),
            row: PhantomData,
        }
    }
}

impl<R> Clone for Totals<R> {
    fn clone(&self) -> Self {
        Self {
            shape: Arc::clone(&self.shape),
            row: PhantomData,
        }
    }
}

impl<R> PartialEq for Totals<R> {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shape, &other.shape) || self.shape == other.shape
    }
}

impl<R> Batch for Totals<R>
where
    R: FromQueryResult + Clone + Default + Send + Sync + 'static,
{
    type Key = Uuid;
    type Value = R;

    fn name(&self) -> String {
        format!("{} in total", self.shape.name)
    }

    async fn run(&self, db: &Reader, keys: &[Uuid]) -> Result<HashMap<Uuid, R>, Error> {
        let mut select = self.shape.select.clone();
        let Some(parent) = &self.shape.parent else {
            let row = db.all(&select).await?.pop().unwrap_or_default();
            return Ok(keys.iter().map(|key| (*key, Clone::clone(&row))).collect());
        };
        let column: Expr = Expr::col(parent.clone());
        select
            .expr_as(column.clone(), Alias::new(PARENT).into_iden())
            .and_where(is_among(db.backend(), parent.clone(), keys))
            .add_group_by([column]);
        let rows = db.rows(&select).await?;
        rows.iter()
            .map(|row| Ok((parent_of(row)?, R::from_query_result(row, "")?)))
            .collect()
    }
}

/// The number of rows.
#[derive(Clone, Copy, Debug, Default, FromQueryResult)]
pub(crate) struct Count {
    pub(crate) count: i64,
}

impl Totals<Count> {
    /// Counts the rows of a select.
    pub(crate) fn count(
        name: &'static str,
        mut select: SelectStatement,
        parent: Option<ColumnOf>,
    ) -> Self {
        select
            .clear_selects()
            .expr_as(Expr::col(Asterisk).count(), Alias::new("count"));
        Self::new(name, select, parent)
    }
}

/// Counts the rows of a group that match a condition.
pub(crate) fn count_where(condition: impl Into<Condition>) -> FunctionCall {
    Func::count(Expr::case(condition.into(), 1))
}
