//! Compiled queries: root fields that run as whole lists, without the executor.
//!
//! A plan is compiled once: statements with the selected columns, objects by one key joined into the row that refers to
//! them, and the output. A page is then loaded with one request to the loader for all its parents, and its rows are
//! written as JSON without being decoded into objects.
//!
//! A compiled query never reports an error. It declines whenever the executor could: for fields that are not
//! described in [`Fields`](crate::data::Fields), for arguments that are not valid, for an object that the viewer may not
//! read, and after an error of the database. The executor then resolves the root field, so that both give the same
//! response.

mod cell;
mod compile;
mod load;
mod types;
mod write;

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use async_graphql::{ID, InputType, Name, parser::types::OperationType};
use async_graphql_value::Value as Input;
use futures_util::future::join_all;
use gathering_entity::user::UserRole;
use sea_orm::DbBackend;
use uuid::Uuid;

use crate::{
    access::{Grant, Rulebook, Viewer},
    cache::{Cache, CacheStats},
    compiled::{
        compile::{Compiler, Root},
        load::Rows,
        types::Types,
        write::Writer,
    },
    db::ViewerIds,
    operation::{Plan, Variables, bind::value_of},
    request::Request,
};

/// The root field needs the executor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Declined;

/// The root fields of an operation that do not need the executor.
pub(crate) struct Query {
    roots: Vec<(Name, Root)>,
}

/// Compiles queries, and keeps them.
pub(crate) struct Queries {
    types: Types,
    backend: DbBackend,
    rulebook: Arc<Rulebook>,
    /// The queries, by plan and by kind of viewer.
    compiled: Cache<(u64, bool, ViewerIds), Arc<Query>>,
    /// Root fields that were written, and those that declined.
    written: AtomicU64,
    declined: AtomicU64,
}

impl Queries {
    /// `capacity` is the maximum number of queries; with 0, the executor resolves everything.
    pub(crate) fn new(backend: DbBackend, rulebook: Arc<Rulebook>, capacity: u64) -> Self {
        Self {
            types: Types::new(),
            backend,
            rulebook,
            compiled: Cache::weighed(capacity, |_, query: &Arc<Query>| {
                query.roots.iter().map(|(_, root)| root.statements()).sum()
            }),
            written: AtomicU64::new(0),
            declined: AtomicU64::new(0),
        }
    }

    pub(crate) fn stats(&self) -> CacheStats {
        self.compiled.stats()
    }

    /// The number of root fields that compiled queries have written, and the number of those that declined.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let [written, declined] =
            [&self.written, &self.declined].map(|count| count.load(Ordering::Relaxed));
        (written, declined)
    }

    /// Runs the root fields of a query, except those with the keys `without`; returns those that did not decline.
    pub(crate) async fn run(
        &self,
        query: &Query,
        request: &Request,
        variables: &Variables,
        without: &[Name],
    ) -> Vec<(Name, Vec<u8>)> {
        let Some(viewer) = &request.viewer else {
            return Vec::new();
        };
        let rows = &Rows {
            request,
            viewer,
            variables,
        };
        let roots = query.roots.iter();
        let roots = roots.filter(|(key, _)| !without.contains(key));
        let roots = roots.map(async |(key, root)| (key, write(rows, root).await));
        let mut done = Vec::with_capacity(query.roots.len());
        for (key, written) in join_all(roots).await {
            let count = if written.is_ok() {
                &self.written
            } else {
                &self.declined
            };
            count.fetch_add(1, Ordering::Relaxed);
            done.extend(written.ok().map(|written| (key.clone(), written)));
        }
        done
    }

    /// The compiled query of a plan, for viewers of the same kind.
    pub(crate) fn compile(&self, plan: &Plan, viewer: &Viewer) -> Arc<Query> {
        let (is_admin, ids) = (viewer.is_admin(), viewer.ids().placeholders());
        let key = (plan.id, is_admin, ids);
        if let Some(known) = self.compiled.get(&key) {
            return known;
        }
        let role = if is_admin {
            UserRole::Admin
        } else {
            UserRole::User
        };
        let compiler = Compiler {
            types: &self.types,
            viewer: &Viewer::stand_in(ids, role, Grant::unknown(), &self.rulebook),
            backend: self.backend,
        };
        let roots = plan.roots().iter().filter_map(|field| {
            let root = compiler.root(field)?;
            Some((field.key.clone(), root))
        });
        let roots = if plan.kind == OperationType::Query {
            roots.collect()
        } else {
            Vec::new()
        };
        let query = Arc::new(Query { roots });
        self.compiled.insert(key, Arc::clone(&query));
        query
    }
}

impl Query {
    pub(crate) fn is_empty(&self) -> bool {
        self.roots.is_empty()
    }
}

async fn write(rows: &Rows<'_>, root: &Root) -> Result<Vec<u8>, Declined> {
    let mut writer = Writer::new(rows.request.services.limits.text_bytes);
    match root {
        Root::TypeName(name) => writer.out.extend_from_slice(name.as_bytes()),
        Root::Row { id, row } => {
            let id = value_of(id, rows.variables).and_then(Input::into_const);
            let id: ID = InputType::parse(id).map_err(|_| Declined)?;
            let id = row.kind.parse(&id, "id").map_err(|_| Declined)?;
            let loaded = rows.by_id(row, id).await?;
            writer.row(row, &loaded)?;
        }
        Root::List(list) => {
            // A list without a parent has one page.
            let loaded = rows.list(list, &[Some(Uuid::nil())]).await?;
            writer.connection(list, &loaded, 0)?;
        }
    }
    if !rows.request.takes_text(writer.text) {
        rows.request.return_text(writer.text);
        return Err(Declined);
    }
    rows.request
        .fields
        .fetch_add(writer.fields, Ordering::Relaxed);
    Ok(writer.out)
}
