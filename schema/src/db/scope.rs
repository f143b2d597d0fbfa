//! Lists of which a viewer may read only some rows.

use sea_orm::{
    Condition,
    sea_query::{
        Asterisk, CommonTableExpression, DynIden, Expr, ExprTrait, Func, JoinType, Order, Query,
        SelectStatement, UnionType,
    },
};

use crate::db::ColumnOf;

/// The first rows of the whole table in the order of a list are searched before the rows of each key: this many times
/// the rows of the page.
const NEAR: u64 = 4;

/// Maximum number of keys whose rows are read one by one.
const KEYS: u64 = 256;

/// The rows of a table that a viewer may list.
#[derive(Debug)]
pub(crate) struct Scope {
    /// The condition on a row.
    pub(crate) condition: Condition,
    /// How to find these rows by indexes (PostgreSQL).
    pub(crate) paths: Option<Paths>,
}

/// Indexes that lead to the rows of a [`Scope`]: each row meets the condition of at least one path.
#[derive(Debug)]
pub(crate) struct Paths {
    /// The rows whose column is one of the selected ids.
    pub(crate) keys: (ColumnOf, SelectStatement),
    /// Other rows, by the conditions on them.
    pub(crate) others: Vec<Condition>,
}

/// The rows of a page before a rule applies.
pub(crate) struct PageOf {
    /// The columns of the table, without a condition.
    pub(crate) rows: SelectStatement,
    pub(crate) table: DynIden,
    pub(crate) filter: Condition,
    /// The rows after the cursor.
    pub(crate) beyond: Condition,
    pub(crate) order: Vec<(ColumnOf, Order)>,
    pub(crate) limit: u64,
}

impl PageOf {
    fn sorted(&self, mut select: SelectStatement, limit: u64) -> SelectStatement {
        for (column, direction) in &self.order {
            select.order_by(column.clone(), direction.clone());
        }
        select.limit(limit).take()
    }

    /// The page of the rows that meet a condition.
    pub(crate) fn under(&self, condition: Condition) -> SelectStatement {
        let mut select = self.rows.clone();
        select
            .cond_where(self.beyond.clone())
            .cond_where(self.filter.clone())
            .cond_where(condition);
        self.sorted(select, self.limit)
    }

    /// The page of the rows in a scope.
    ///
    /// The planner does not know how the rows of a viewer are spread. If it expects many, it reads the table in the
    /// order of the list, up to its end if the viewer may read few. This statement does so for the first rows only. If
    /// they do not fill the page, it reads the first rows of each path, unless there are too many keys.
    pub(crate) fn within(&self, scope: Scope) -> SelectStatement {
        let Scope { condition, paths } = scope;
        let Some(Paths {
            keys: (column, keys),
            others,
        }) = paths
        else {
            return self.under(condition);
        };
        let first = self.rows.clone().cond_where(self.beyond.clone()).take();
        let near = Query::select()
            .column((self.table.clone(), Asterisk))
            .from_subquery(self.sorted(first, NEAR * self.limit), self.table.clone())
            .cond_where(self.filter.clone())
            .cond_where(condition.clone())
            .take();
        let near = self.sorted(near, self.limit);
        let count = |select| {
            let count = Func::count(Expr::col(Asterisk));
            let counted = Query::select()
                .expr(count)
                .from_subquery(select, "counted")
                .take();
            Expr::from(counted)
        };
        let all_near = || Query::select().expr(Expr::val(1)).from("near").take();
        let some_keys = || keys.clone().limit(KEYS + 1).take();
        let is_full = || count(all_near()).eq(self.limit);
        let is_open = || count(all_near()).lt(self.limit);
        let few_keys = || is_open().and(count(some_keys()).lte(KEYS));
        let page = |page: SelectStatement, condition: Expr| {
            Query::select()
                .column(("page", Asterisk))
                .from_subquery(page, "page")
                .and_where(condition)
                .take()
        };
        let distinct = Query::select()
            .distinct()
            .column(("every", "id"))
            .from_subquery(keys.clone(), "every")
            .take();
        let of_key = Condition::all().add(Expr::col(column).equals(("readable", "id")));
        let by_key = Query::select()
            .column(("page", Asterisk))
            .from_subquery(distinct, "readable")
            .join_lateral(
                JoinType::InnerJoin,
                self.under(of_key),
                "page",
                Expr::cust("TRUE"),
            )
            .and_where(few_keys())
            .take();
        let has_overlap = !others.is_empty();
        let others = others
            .into_iter()
            .map(|other| page(self.under(other), few_keys()));
        let many_keys = is_open().and(count(some_keys()).gt(KEYS));
        let mut found = Query::select()
            .column(("near", Asterisk))
            .from("near")
            .and_where(is_full())
            .take();
        for arm in [by_key]
            .into_iter()
            .chain(others)
            .chain([page(self.under(condition), many_keys)])
        {
            found.union(UnionType::All, arm);
        }
        let near = CommonTableExpression::new()
            .table_name("near")
            .query(near)
            .to_owned();
        let mut select = self.rows.clone();
        select
            .with_cte(near)
            .from_clear()
            .from_subquery(found, self.table.clone());
        if has_overlap {
            select.distinct_on(self.order.iter().map(|(column, _)| column.clone()));
        }
        self.sorted(select, self.limit)
    }
}
