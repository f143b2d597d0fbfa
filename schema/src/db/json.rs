//! Lists of rows in a column of another row.

use sea_orm::{
    DbBackend, DbErr, QueryResult,
    sea_query::{Expr, Func, Query, SelectStatement},
};
use serde::de::DeserializeOwned;

/// How SQLite stores a column that is read as JSON. PostgreSQL has types.
#[derive(Clone, Copy)]
pub(crate) enum Stored {
    /// A text or a number.
    Plain,
    /// A UUID, 16 bytes.
    Uuid,
    /// JSON text.
    Json,
}

/// The rows of a select as text: a JSON array of objects with these columns.
pub(crate) fn json_rows(
    backend: DbBackend,
    select: SelectStatement,
    columns: &[(&'static str, Stored)],
) -> Expr {
    const ROWS: &str = "rows";
    let array = if backend == DbBackend::Postgres {
        Expr::cust(r#"coalesce(json_agg("rows"), '[]')::text"#)
    } else {
        let fields = columns.iter().flat_map(|(name, stored)| {
            let column = Expr::col((ROWS, *name));
            let value = match stored {
                Stored::Plain => column,
                // The hexadecimal form of NULL is an empty text.
                Stored::Uuid => Func::cust("nullif")
                    .arg(Func::cust("hex").arg(column))
                    .arg("")
                    .into(),
                Stored::Json => Func::cust("json").arg(column).into(),
            };
            [Expr::val(*name), value]
        });
        let object = Func::cust("json_object").args(fields);
        Func::cust("json_group_array").arg(object).into()
    };
    let rows = Query::select()
        .expr(array)
        .from_subquery(select, ROWS)
        .take();
    Expr::from(rows)
}

/// Reads a column that [`json_rows`] has selected; empty if it is NULL.
///
/// # Errors
/// The column is missing or has other fields.
pub(crate) fn list_from<T: DeserializeOwned>(
    row: &QueryResult,
    column: &str,
) -> Result<Vec<T>, DbErr> {
    let list: Option<String> = row.try_get("", column)?;
    let list = list.map(|list| serde_json::from_str(&list));
    let list = list.transpose();
    Ok(list
        .map_err(|error| DbErr::Json(error.to_string()))?
        .unwrap_or_default())
}
