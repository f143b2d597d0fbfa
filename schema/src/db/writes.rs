//! The writes of a change: one statement on PostgreSQL, one for each write on SQLite.

use std::iter;

use sea_orm::{
    ActiveModelTrait, Condition, ConnectionTrait, DatabaseTransaction, DbBackend, DbErr,
    EntityTrait, Iterable, QueryTrait, UpdateMany,
    sea_query::{
        Asterisk, CommonTableExpression, DeleteStatement, DynIden, Expr, ExprTrait, Func,
        InsertStatement, IntoIden, LockType, OnConflict, Query, SelectStatement, SubQueryStatement,
        UpdateStatement, Value, ValueTuple, WithClause, WithQuery, sea_value_to_json_value,
    },
};
use serde_json::{Value as Json, json};
use uuid::Uuid;

/// The name of the condition of all writes: it has a row if the change is applied. The column of the result has the
/// same name.
const APPLIED: &str = "applied";

/// The column with the number of rows that were inserted last.
const APPENDED: &str = "appended";

/// Maximum number of rows of an insert on SQLite, which limits the number of parameters of a statement.
const MOST_ROWS: usize = 256;

/// The revision of a row, which changes with every update of the row: PostgreSQL's `xmin`. Empty on SQLite, whose
/// changes are serialized.
pub(crate) fn revision<E: EntityTrait>(backend: DbBackend) -> Expr {
    match backend {
        DbBackend::Postgres => Expr::cust(format!("{}.xmin::text", E::default().table_name())),
        _ => Expr::val(""),
    }
}

/// Updates rows without changing them: locks them and changes their revision.
pub(crate) fn touch<E: EntityTrait>() -> UpdateStatement {
    let version = "version";
    Query::update()
        .table(E::default())
        .value(version, Expr::col(version))
        .take()
}

/// The writes of a change, which are applied together if the rows that they depend on have not changed.
#[derive(Default)]
pub(crate) struct Writes {
    held: Vec<SubQueryStatement>,
    parts: Vec<Part>,
}

enum Part {
    Insert(Insert),
    Update(UpdateStatement),
    Delete(DeleteStatement),
}

struct Insert {
    table: DynIden,
    columns: Vec<DynIden>,
    rows: Vec<Vec<Value>>,
    on_conflict: Option<OnConflict>,
}

/// Rows to insert from a select.
pub(crate) struct InsertSelected {
    pub(crate) table: DynIden,
    pub(crate) columns: Vec<DynIden>,
    pub(crate) select: SelectStatement,
}

impl Writes {
    pub(crate) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Depends on a row with this revision, and changes the revision. Rows are locked in the order of the calls.
    pub(crate) fn touch<E: EntityTrait>(&mut self, id: Uuid, known: &str) {
        let is_known = self.is_known::<E>(id, known);
        let touch = touch::<E>().cond_where(is_known).returning_col("id").take();
        self.held.push(touch.into());
    }

    /// Depends on a row with this revision.
    pub(crate) fn hold<E: EntityTrait>(&mut self, id: Uuid, known: &str) {
        let mut hold = Query::select();
        hold.column("id")
            .from(E::default())
            .cond_where(self.is_known::<E>(id, known))
            .lock(LockType::NoKeyUpdate);
        self.held.push(hold.into());
    }

    /// Selects a row with this revision, if the rows before it have theirs.
    fn is_known<E: EntityTrait>(&self, id: Uuid, known: &str) -> Condition {
        let before = self.held.len().checked_sub(1);
        Condition::all()
            .add(Expr::col("id").eq(id))
            .add(revision::<E>(DbBackend::Postgres).eq(known))
            .add_option(before.map(|before| Expr::exists(rows_of(&held(before)))))
    }

    /// Inserts rows; a row that conflicts is handled by `on_conflict`.
    pub(crate) fn insert<A: ActiveModelTrait>(
        &mut self,
        rows: impl IntoIterator<Item = A>,
        on_conflict: Option<OnConflict>,
    ) {
        let columns = <A::Entity as EntityTrait>::Column::iter;
        let mut set = Vec::new();
        let rows: Vec<_> = rows
            .into_iter()
            .map(|row| {
                let values =
                    columns().filter_map(|column| Some((column, row.get(column).into_value()?)));
                let (names, values): (Vec<_>, _) = values.unzip();
                set = names;
                values
            })
            .collect();
        if !rows.is_empty() {
            self.parts.push(Part::Insert(Insert {
                table: A::Entity::default().into_iden(),
                columns: set.into_iter().map(IntoIden::into_iden).collect(),
                rows,
                on_conflict,
            }));
        }
    }

    pub(crate) fn update<E: EntityTrait>(&mut self, update: UpdateMany<E>) {
        self.parts.push(Part::Update(update.into_query()));
    }

    pub(crate) fn delete<E: EntityTrait>(&mut self, id: Uuid) {
        let mut delete = Query::delete();
        delete
            .from_table(E::default())
            .and_where(Expr::col("id").eq(id));
        self.parts.push(Part::Delete(delete));
    }

    /// Adds writes that depend on the same rows.
    pub(crate) fn absorb(&mut self, others: Self) {
        for part in others.parts {
            let Part::Insert(new) = part else {
                self.parts.push(part);
                continue;
            };
            let known = self.parts.iter_mut().find_map(|known| match known {
                Part::Insert(known) if known.takes(&new) => Some(known),
                _ => None,
            });
            match known {
                Some(known) => known.rows.extend(new.rows),
                None => self.parts.push(Part::Insert(new)),
            }
        }
    }

    /// Executes the writes and then `last` as one statement, on PostgreSQL. Returns the number of rows inserted by
    /// `last`, or `None` if a row that the writes depend on has changed, and nothing was written.
    ///
    /// # Errors
    /// The statement failed.
    pub(crate) async fn execute(
        self,
        db: &impl ConnectionTrait,
        last: Option<InsertSelected>,
    ) -> Result<Option<usize>, DbErr> {
        let Some(row) = db.query_one(&self.into_statement(last)).await? else {
            return Ok(None);
        };
        if !row.try_get("", APPLIED)? {
            return Ok(None);
        }
        let appended: i64 = row.try_get("", APPENDED)?;
        Ok(Some(usize::try_from(appended).unwrap_or_default()))
    }

    /// The statement of [`Writes::execute`]. Its parts see the same snapshot of the database. A locked row is read again
    /// after the wait for its lock, so its revision is the current one.
    fn into_statement(self, last: Option<InsertSelected>) -> WithQuery {
        let mut with = WithClause::new();
        let mut add = |name: &str, query: SubQueryStatement| {
            with.cte(
                CommonTableExpression::new()
                    .table_name(name.to_owned())
                    .query(query)
                    .to_owned(),
            );
        };
        let mut applied = Query::select().expr_as(Expr::val(1), "is").take();
        for (n, part) in self.held.into_iter().enumerate() {
            applied = Query::select()
                .expr_as(Expr::val(1), "is")
                .from(held(n))
                .take();
            add(&held(n), part);
        }
        add(APPLIED, applied.into());
        let is_applied = || Expr::exists(rows_of(APPLIED));
        for (n, part) in self.parts.into_iter().enumerate() {
            let part = match part {
                Part::Insert(insert) => insert.into_select(is_applied()).into(),
                Part::Update(mut update) => update.and_where(is_applied()).take().into(),
                Part::Delete(mut delete) => delete.and_where(is_applied()).take().into(),
            };
            add(&format!("write_{n}"), part);
        }
        let mut result = Query::select();
        result.expr_as(is_applied(), APPLIED);
        if let Some(InsertSelected {
            table,
            columns,
            mut select,
        }) = last
        {
            select.and_where(is_applied());
            let mut insert = insert_select(table, columns, select);
            add("last", insert.returning_col("id").take().into());
            let count = Query::select()
                .expr(Func::count(Expr::col(Asterisk)))
                .from("last")
                .take();
            result.expr_as(Expr::from(count), APPENDED);
        } else {
            result.expr_as(Expr::cust("0::bigint"), APPENDED);
        }
        result.with(with)
    }

    /// Applies the writes one by one, on SQLite.
    ///
    /// # Errors
    /// A write failed; the transaction must be rolled back.
    pub(crate) async fn apply(self, transaction: &DatabaseTransaction) -> Result<(), DbErr> {
        for part in self.parts {
            match part {
                Part::Insert(insert) => insert.apply(transaction).await?,
                Part::Update(update) => _ = transaction.execute(&update).await?,
                Part::Delete(delete) => _ = transaction.execute(&delete).await?,
            }
        }
        Ok(())
    }
}

impl Insert {
    /// Whether the rows of another insert can be inserted by this one.
    fn takes(&self, other: &Self) -> bool {
        self.table == other.table
            && self.columns == other.columns
            && self.on_conflict.is_none()
            && other.on_conflict.is_none()
    }

    fn into_select(mut self, condition: Expr) -> InsertStatement {
        let mut select = Query::select();
        if self.rows.len() == 1 {
            select.exprs(self.rows.remove(0).into_iter().map(Expr::val));
        } else {
            // One parameter for all rows: the statement does not depend on their number.
            let rows = self.rows.iter().map(|row| object(&self.columns, row));
            let rows = Value::from(Json::Array(rows.collect()));
            let kind = Expr::cust(format!("NULL::\"{}\"", self.table));
            let from = Func::cust("jsonb_populate_recordset").arg(kind).arg(rows);
            select
                .columns(self.columns.iter().map(|column| ("new", column.clone())))
                .from_function(from, "new");
        }
        select.and_where(condition);
        let mut insert = insert_select(self.table, self.columns, select);
        if let Some(on_conflict) = self.on_conflict {
            insert.on_conflict(on_conflict);
        }
        insert
    }

    async fn apply(self, transaction: &DatabaseTransaction) -> Result<(), DbErr> {
        for rows in self.rows.chunks(MOST_ROWS) {
            let mut insert = match rows {
                [row] => Query::insert()
                    .into_table(self.table.clone())
                    .columns(self.columns.clone())
                    .values_panic(row.iter().cloned().map(Expr::val))
                    .take(),
                rows => insert_select(self.table.clone(), self.columns.clone(), padded(rows)),
            };
            if let Some(on_conflict) = self.on_conflict.clone() {
                insert.on_conflict(on_conflict);
            }
            transaction.execute(&insert).await?;
        }
        Ok(())
    }
}

/// Selects the rows from a list of a power of two of rows, so that SQLite need not prepare a statement for each number
/// of rows. In the other rows, the first column is NULL; it is the primary key of the table.
fn padded(rows: &[Vec<Value>]) -> SelectStatement {
    let none: Vec<Value> = (rows.iter().take(1).flatten().map(Value::as_null)).collect();
    let columns = (1..=none.len()).map(|n| format!("column{n}"));
    let count = rows.len().next_power_of_two();
    let all = rows.iter().cloned().chain(iter::repeat(none)).take(count);
    Query::select()
        .columns(columns)
        .from_values(all.map(ValueTuple::Many), "new")
        .and_where(Expr::col("column1").is_not_null())
        .take()
}

/// A row as JSON.
fn object(columns: &[DynIden], row: &[Value]) -> Json {
    let value = |value: &Value| match value {
        Value::ChronoDateTimeUtc(instant) => json!(instant),
        value => sea_value_to_json_value(value),
    };
    let names = columns.iter().map(ToString::to_string);
    Json::Object(names.zip(row.iter().map(value)).collect())
}

fn insert_select(
    table: DynIden,
    columns: Vec<DynIden>,
    select: SelectStatement,
) -> InsertStatement {
    let mut insert = Query::insert();
    insert.into_table(table).columns(columns);
    // Fails only if the numbers of columns differ.
    let _ = insert.select_from(select);
    insert
}

fn held(n: usize) -> String {
    format!("held_{n}")
}

fn rows_of(name: &str) -> SelectStatement {
    Query::select()
        .expr(Expr::val(1))
        .from(name.to_owned())
        .take()
}
