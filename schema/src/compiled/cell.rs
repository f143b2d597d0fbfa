//! Writes the values of raw rows as JSON.

use async_graphql::{ScalarType, Value};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use chrono::{DateTime, Utc};
use sea_orm::{
    QueryResult,
    sqlx::{ColumnIndex, Decode, Row, types::Json},
};
use uuid::Uuid;

use crate::{
    compiled::Declined,
    data::Cell,
    id::Kind,
    json::{write_json, write_text},
    scalar::{self, Decimal},
};

/// A value of a raw row; `None` for NULL.
fn get<'r, T, R>(row: &'r R, at: usize) -> Result<Option<T>, Declined>
where
    R: Row,
    usize: ColumnIndex<R>,
    T: Decode<'r, R::Database>,
{
    row.try_get_unchecked(at).map_err(|_| Declined)
}

/// Writes a value; returns the bytes of its text.
fn write<'r, R>(row: &'r R, at: usize, cell: Cell, out: &mut Vec<u8>) -> Result<usize, Declined>
where
    R: Row,
    usize: ColumnIndex<R>,
    &'r str: Decode<'r, R::Database>,
    bool: Decode<'r, R::Database>,
    i64: Decode<'r, R::Database>,
    f64: Decode<'r, R::Database>,
    Uuid: Decode<'r, R::Database>,
    DateTime<Utc>: Decode<'r, R::Database>,
    Json<Vec<String>>: Decode<'r, R::Database>,
{
    let mut bytes = 0;
    let is_null = match cell {
        Cell::Id(kind) => get(row, at)?.map(|id| write_id(out, kind, id)),
        Cell::Text => get(row, at)?.map(|text: &str| {
            bytes = text.len();
            write_text(out, text);
        }),
        Cell::Bool => get(row, at)?.map(|is: bool| {
            out.extend_from_slice(if is { b"true" } else { b"false" });
        }),
        Cell::Int => get(row, at)?.map(|number: i64| write_json(out, &number)),
        Cell::Float => get(row, at)?.map(|number: f64| write_json(out, &number)),
        Cell::Time => {
            get(row, at)?.map(|time| scalar::DateTime(time).with_text(|text| write_text(out, text)))
        }
        Cell::Decimal => get(row, at)?.map(|micros| {
            if let Value::String(text) = (Decimal { micros }).to_value() {
                write_text(out, &text);
            }
        }),
        Cell::List => get(row, at)?.map(|Json(list): Json<Vec<String>>| {
            bytes = list.iter().map(String::len).sum();
            write_json(out, &list);
        }),
        Cell::Key => return Err(Declined),
    }
    .is_none();
    if is_null {
        out.extend_from_slice(b"null");
    }
    Ok(bytes)
}

/// Writes a value as JSON; returns the bytes of its text.
pub(super) fn write_cell(
    row: &QueryResult,
    at: usize,
    cell: Cell,
    out: &mut Vec<u8>,
) -> Result<usize, Declined> {
    if let Some(row) = row.try_as_pg_row() {
        return write(row, at, cell, out);
    }
    write(row.try_as_sqlite_row().ok_or(Declined)?, at, cell, out)
}

/// A key; `None` for NULL.
pub(super) fn key(row: &QueryResult, at: usize) -> Result<Option<Uuid>, Declined> {
    if let Some(row) = row.try_as_pg_row() {
        return get(row, at);
    }
    get(row.try_as_sqlite_row().ok_or(Declined)?, at)
}

/// Adds a value to the bytes of a cursor, as [`Order::cursor`](crate::data::Order::cursor) does.
fn add<'r, R>(row: &'r R, at: usize, cell: Cell, bytes: &mut Vec<u8>) -> Result<(), Declined>
where
    R: Row,
    usize: ColumnIndex<R>,
    &'r str: Decode<'r, R::Database>,
    i64: Decode<'r, R::Database>,
    Uuid: Decode<'r, R::Database>,
    DateTime<Utc>: Decode<'r, R::Database>,
{
    match cell {
        Cell::Key | Cell::Id(_) => {
            let id: Uuid = get(row, at)?.ok_or(Declined)?;
            bytes.extend_from_slice(id.as_bytes());
        }
        Cell::Int => {
            let number: i64 = get(row, at)?.ok_or(Declined)?;
            bytes.extend_from_slice(&number.to_be_bytes());
        }
        Cell::Time => {
            let time: DateTime<Utc> = get(row, at)?.ok_or(Declined)?;
            bytes.extend_from_slice(&time.timestamp_micros().to_be_bytes());
        }
        Cell::Text => {
            let text: &str = get(row, at)?.ok_or(Declined)?;
            let length = u16::try_from(text.len()).map_err(|_| Declined)?;
            bytes.extend_from_slice(&length.to_be_bytes());
            bytes.extend_from_slice(text.as_bytes());
        }
        Cell::Bool | Cell::Float | Cell::Decimal | Cell::List => return Err(Declined),
    }
    Ok(())
}

/// Writes the cursor of a row. `cells` are those of the order columns, which start at `at`.
pub(super) fn write_cursor(
    row: &QueryResult,
    at: usize,
    cells: &[Cell],
    tag: [u8; 4],
    out: &mut Vec<u8>,
) -> Result<(), Declined> {
    let mut bytes = Vec::with_capacity(64);
    bytes.extend_from_slice(&tag);
    for (at, cell) in (at..).zip(cells) {
        if let Some(row) = row.try_as_pg_row() {
            add(row, at, *cell, &mut bytes)?;
        } else {
            let row = row.try_as_sqlite_row().ok_or(Declined)?;
            add(row, at, *cell, &mut bytes)?;
        }
    }
    write_text(out, &BASE64_URL_SAFE_NO_PAD.encode(bytes));
    Ok(())
}

fn write_id(out: &mut Vec<u8>, kind: Kind, id: Uuid) {
    out.push(b'"');
    kind.write(id, out);
    out.push(b'"');
}
