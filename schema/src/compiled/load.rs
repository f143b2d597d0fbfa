//! Loads the rows of a compiled query: one request to the loader for all keys of a statement.

use std::sync::Arc;

use futures_util::future::{BoxFuture, FutureExt, join, try_join, try_join_all};
use sea_orm::QueryResult;
use uuid::Uuid;

use crate::{
    access::Viewer,
    compiled::{
        Declined, cell,
        compile::{Branch, ListPlan, RowPlan, Selected, Source, To},
    },
    db::{Prepared, PreparedRows, RawRows},
    operation::Variables,
    request::Request,
};

/// The rows of a statement: one page for each key, and what belongs to the rows.
pub(super) struct Loaded {
    /// The statements of a list.
    pub(super) selected: Option<Arc<Selected>>,
    pages: Vec<RawRows>,
    /// The number of rows before each page.
    starts: Vec<usize>,
    pub(super) totals: Vec<RawRows>,
    pub(super) branches: Vec<Loaded>,
}

impl Loaded {
    fn new(selected: Option<Arc<Selected>>, pages: Vec<RawRows>, totals: Vec<RawRows>) -> Self {
        let size = selected.as_ref().map_or(1, |selected| selected.size);
        let mut count = 0;
        let starts = pages.iter().map(|page| {
            let start = count;
            count += page.len().min(size);
            start
        });
        Self {
            starts: starts.collect(),
            selected,
            pages,
            totals,
            branches: Vec::new(),
        }
    }

    /// The rows of a page in the order of the list, each with its place among all rows.
    pub(super) fn page(&self, page: usize) -> impl Iterator<Item = (usize, &QueryResult)> {
        let rows = &*self.pages[page];
        let (size, is_backward) = self
            .selected
            .as_ref()
            .map_or((1, false), |selected| (selected.size, selected.is_backward));
        let count = rows.len().min(size);
        let start = self.starts[page];
        (0..count).map(move |index| {
            let at = if is_backward {
                count - 1 - index
            } else {
                index
            };
            (start + index, &rows[at])
        })
    }

    /// Whether there are more rows than the page has.
    pub(super) fn has_more(&self, page: usize) -> bool {
        let size = self.selected.as_ref().map_or(1, |selected| selected.size);
        self.pages[page].len() > size
    }

    fn rows(&self) -> impl Iterator<Item = &QueryResult> {
        (0..self.pages.len()).flat_map(|page| self.page(page).map(|(_, row)| row))
    }
}

/// Loads rows for a request.
pub(super) struct Rows<'a> {
    pub(super) request: &'a Request,
    pub(super) viewer: &'a Viewer,
    pub(super) variables: &'a Variables,
}

impl Rows<'_> {
    /// An object by its id. What depends on the id alone is loaded at the same time.
    pub(super) async fn by_id(&self, plan: &RowPlan, id: Uuid) -> Result<Loaded, Declined> {
        if let Some(page) = plan.page {
            return self.with_page(plan, page, id).await;
        }
        let branches = || plan.source.branches.iter();
        let early = branches().filter(|branch| branch.key_at == 0);
        let early = try_join_all(early.map(|branch| self.branch(branch, vec![Some(id)])));
        let (pages, early) = try_join(self.pages(&plan.statement, &[Some(id)]), early).await?;
        let mut loaded = Loaded::new(None, pages, Vec::new());
        if loaded.rows().next().is_none() {
            return Err(Declined);
        }
        let late = branches().filter(|branch| branch.key_at != 0);
        let late = late.map(|branch| self.branch_of(branch, &loaded));
        let (mut early, mut late) = (early.into_iter(), try_join_all(late).await?.into_iter());
        let merged = branches().filter_map(|branch| {
            if branch.key_at == 0 {
                early.next()
            } else {
                late.next()
            }
        });
        loaded.branches = merged.collect();
        Ok(loaded)
    }

    /// An object by its id, in a statement with the page of one of its lists.
    async fn with_page(&self, plan: &RowPlan, page: usize, id: Uuid) -> Result<Loaded, Declined> {
        let rows = self.pages(&plan.statement, &[Some(id)]).await?;
        let mut loaded = Loaded::new(None, rows.clone(), Vec::new());
        let Some(row) = loaded.rows().next() else {
            return Err(Declined);
        };
        let To::List(list) = &plan.source.branches[page].to else {
            return Err(Declined);
        };
        let selected = list.constant.clone().ok_or(Declined)?;
        // The last column of a cursor is a unique key. It is NULL in the only row of an object with an empty list.
        let entry = selected.cursor_at + selected.cursor_cells.len() - 1;
        let entries = match cell::key(row, entry)? {
            Some(_) => rows,
            None => vec![RawRows::default()],
        };
        let mut entries = Some(Loaded::new(Some(selected), entries, Vec::new()));
        let branches = plan.source.branches.iter().enumerate();
        let branches = branches.map(|(at, branch)| match entries.take_if(|_| at == page) {
            Some(entries) => self.with_branches(entries, &list.source).boxed(),
            None => self.branch_of(branch, &loaded),
        });
        loaded.branches = try_join_all(branches).await?;
        Ok(loaded)
    }

    /// One page for each key.
    pub(super) async fn list(
        &self,
        plan: &ListPlan,
        keys: &[Option<Uuid>],
    ) -> Result<Loaded, Declined> {
        let backend = self.request.services.backend;
        let selected = plan.select(self.viewer, self.variables, backend)?;
        let pages = async {
            match &selected.rows {
                Some(rows) => self.pages(rows, keys).await,
                None => Ok(Vec::new()),
            }
        };
        let totals = async {
            match &selected.count {
                Some(count) => self.pages(count, keys).await,
                None => Ok(Vec::new()),
            }
        };
        let (pages, totals) = join(pages, totals).await;
        let loaded = Loaded::new(Some(selected), pages?, totals?);
        self.with_branches(loaded, &plan.source).await
    }

    async fn rows(&self, plan: &RowPlan, keys: &[Option<Uuid>]) -> Result<Loaded, Declined> {
        let pages = self.pages(&plan.statement, keys).await?;
        let loaded = Loaded::new(None, pages, Vec::new());
        self.with_branches(loaded, &plan.source).await
    }

    async fn with_branches(&self, mut loaded: Loaded, source: &Source) -> Result<Loaded, Declined> {
        if !source.branches.is_empty() {
            let branches = source.branches.iter();
            let branches = branches.map(|branch| self.branch_of(branch, &loaded));
            loaded.branches = try_join_all(branches).await?;
        }
        Ok(loaded)
    }

    /// A branch of loaded rows.
    fn branch_of<'a>(
        &'a self,
        branch: &'a Branch,
        loaded: &Loaded,
    ) -> BoxFuture<'a, Result<Loaded, Declined>> {
        let keys = loaded.rows().map(|row| cell::key(row, branch.key_at));
        match keys.collect() {
            Ok(keys) => self.branch(branch, keys),
            Err(declined) => std::future::ready(Err(declined)).boxed(),
        }
    }

    fn branch<'a>(
        &'a self,
        branch: &'a Branch,
        keys: Vec<Option<Uuid>>,
    ) -> BoxFuture<'a, Result<Loaded, Declined>> {
        async move {
            match &branch.to {
                To::Row(plan) => self.rows(plan, &keys).await,
                To::List(plan) => self.list(plan, &keys).await,
            }
        }
        .boxed()
    }

    /// The rows of each key; none where there is no key.
    async fn pages(
        &self,
        statement: &Arc<Prepared>,
        keys: &[Option<Uuid>],
    ) -> Result<Vec<RawRows>, Declined> {
        let batch = PreparedRows::new(statement, self.viewer.ids());
        let known: Vec<Uuid> = keys.iter().copied().flatten().collect();
        // The executor repeats the query and reports the error.
        let pages = self.request.load_all(batch, &known).await;
        let pages = pages.map_err(|_| Declined)?;
        if known.len() == keys.len() {
            return Ok(pages);
        }
        let (mut pages, none) = (pages.into_iter(), RawRows::default());
        let pages = keys.iter().map(|key| {
            let page = key.and_then(|_| pages.next());
            page.unwrap_or_else(|| Arc::clone(&none))
        });
        Ok(pages.collect())
    }
}
