//! Writes the result of a compiled query as JSON.

use sea_orm::QueryResult;

use crate::compiled::{
    Declined,
    cell::{key, write_cell, write_cursor},
    compile::{
        Branch, ConnectionSlot, EdgeSlot, ListPlan, Node, Object, PageInfoSlot, RowPlan, Selected,
        Slot, Source, To,
    },
    load::Loaded,
};

/// The output so far.
pub(super) struct Writer {
    pub(super) out: Vec<u8>,
    /// The bytes of texts that count against `graphql.text_bytes`.
    pub(super) text: u64,
    text_limit: u64,
    /// The number of fields in the output.
    pub(super) fields: u64,
}

impl Writer {
    /// A writer that declines as soon as its texts exceed a limit, in bytes.
    pub(super) fn new(text_limit: u64) -> Self {
        Self {
            out: Vec::new(),
            text: 0,
            text_limit,
            fields: 0,
        }
    }

    /// The only row of a page.
    pub(super) fn row(&mut self, plan: &RowPlan, loaded: &Loaded) -> Result<(), Declined> {
        let (place, row) = loaded.page(0).next().ok_or(Declined)?;
        self.object(&plan.object, &plan.source, row, place, loaded)
    }

    /// A key, after a comma unless it is the first one.
    fn key(&mut self, key: &[u8], is_first: bool) {
        if !is_first {
            self.out.push(b',');
        }
        self.fields += 1;
        self.out.extend_from_slice(key);
    }

    fn object(
        &mut self,
        object: &Object,
        source: &Source,
        row: &QueryResult,
        place: usize,
        loaded: &Loaded,
    ) -> Result<(), Declined> {
        self.out.push(b'{');
        for (index, slot) in object.slots.iter().enumerate() {
            match slot {
                Slot::Constant(constant) => self.key(constant, index == 0),
                Slot::Cell {
                    key,
                    at,
                    cell,
                    is_long,
                } => {
                    self.key(key, index == 0);
                    let bytes = write_cell(row, *at, *cell, &mut self.out)?;
                    if *is_long {
                        self.text += bytes as u64;
                        // Aliases repeat a text, so the output must not grow until the end.
                        if self.text > self.text_limit {
                            return Err(Declined);
                        }
                    }
                }
                Slot::One {
                    key,
                    node,
                    is_nullable,
                } => {
                    self.key(key, index == 0);
                    let is_written = self.node(node, source, row, place, loaded)?;
                    if !is_written {
                        if !is_nullable {
                            return Err(Declined);
                        }
                        self.out.extend_from_slice(b"null");
                    }
                }
                Slot::List { key, branch } => {
                    self.key(key, index == 0);
                    let (
                        Some(Branch {
                            to: To::List(plan), ..
                        }),
                        Some(list),
                    ) = (source.branches.get(*branch), loaded.branches.get(*branch))
                    else {
                        return Err(Declined);
                    };
                    self.connection(plan, list, place)?;
                }
            }
        }
        self.out.push(b'}');
        Ok(())
    }

    /// Whether there is an object, which is then written.
    fn node(
        &mut self,
        node: &Node,
        source: &Source,
        row: &QueryResult,
        place: usize,
        loaded: &Loaded,
    ) -> Result<bool, Declined> {
        match node {
            Node::Row(object) => self.object(object, source, row, place, loaded)?,
            Node::Joined { at, object } => {
                if key(row, *at)?.is_none() {
                    return Ok(false);
                }
                self.object(object, source, row, place, loaded)?;
            }
            Node::Branch(branch) => {
                let (
                    Some(Branch {
                        to: To::Row(plan), ..
                    }),
                    Some(rows),
                ) = (source.branches.get(*branch), loaded.branches.get(*branch))
                else {
                    return Err(Declined);
                };
                let Some((place, row)) = rows.page(place).next() else {
                    return Ok(false);
                };
                self.object(&plan.object, &plan.source, row, place, rows)?;
            }
        }
        Ok(true)
    }

    /// A page of a list.
    pub(super) fn connection(
        &mut self,
        plan: &ListPlan,
        loaded: &Loaded,
        page: usize,
    ) -> Result<(), Declined> {
        let selected = loaded.selected.as_deref().ok_or(Declined)?;
        self.out.push(b'{');
        for (index, slot) in plan.slots.iter().enumerate() {
            let is_first = index == 0;
            match slot {
                ConnectionSlot::Constant(constant) => self.key(constant, is_first),
                ConnectionSlot::Edges { key, slots } => {
                    self.key(key, is_first);
                    self.list(loaded, page, |writer, place, row| {
                        writer.edge(slots, plan, loaded, place, row)
                    })?;
                }
                ConnectionSlot::Nodes { key, node } => {
                    self.key(key, is_first);
                    self.list(loaded, page, |writer, place, row| {
                        writer.required(node, &plan.source, row, place, loaded)
                    })?;
                }
                ConnectionSlot::PageInfo { key, slots } => {
                    self.key(key, is_first);
                    self.page_info(slots, selected, loaded, page)?;
                }
                ConnectionSlot::TotalCount(key) => {
                    self.key(key, is_first);
                    let count = loaded.totals.get(page).and_then(|rows| rows.first());
                    let count = match count {
                        Some(row) => row.try_get_by_index(0).map_err(|_| Declined)?,
                        None => 0_i64,
                    };
                    let count = i32::try_from(count).unwrap_or(i32::MAX);
                    self.out.extend_from_slice(count.to_string().as_bytes());
                }
            }
        }
        self.out.push(b'}');
        Ok(())
    }

    fn list(
        &mut self,
        loaded: &Loaded,
        page: usize,
        mut entry: impl FnMut(&mut Self, usize, &QueryResult) -> Result<(), Declined>,
    ) -> Result<(), Declined> {
        self.out.push(b'[');
        for (index, (place, row)) in loaded.page(page).enumerate() {
            if index > 0 {
                self.out.push(b',');
            }
            entry(self, place, row)?;
        }
        self.out.push(b']');
        Ok(())
    }

    fn required(
        &mut self,
        node: &Node,
        source: &Source,
        row: &QueryResult,
        place: usize,
        loaded: &Loaded,
    ) -> Result<(), Declined> {
        if self.node(node, source, row, place, loaded)? {
            Ok(())
        } else {
            Err(Declined)
        }
    }

    fn edge(
        &mut self,
        slots: &[EdgeSlot],
        plan: &ListPlan,
        loaded: &Loaded,
        place: usize,
        row: &QueryResult,
    ) -> Result<(), Declined> {
        self.out.push(b'{');
        for (index, slot) in slots.iter().enumerate() {
            let is_first = index == 0;
            match slot {
                EdgeSlot::Constant(constant) => self.key(constant, is_first),
                EdgeSlot::Cursor(key) => {
                    self.key(key, is_first);
                    self.cursor(loaded.selected.as_deref().ok_or(Declined)?, row)?;
                }
                EdgeSlot::Node { key, node } => {
                    self.key(key, is_first);
                    self.required(node, &plan.source, row, place, loaded)?;
                }
                EdgeSlot::Cell { key, at, cell } => {
                    self.key(key, is_first);
                    write_cell(row, *at, *cell, &mut self.out)?;
                }
            }
        }
        self.out.push(b'}');
        Ok(())
    }

    fn cursor(&mut self, selected: &Selected, row: &QueryResult) -> Result<(), Declined> {
        write_cursor(
            row,
            selected.cursor_at,
            &selected.cursor_cells,
            selected.cursor_tag,
            &mut self.out,
        )
    }

    fn page_info(
        &mut self,
        slots: &[PageInfoSlot],
        selected: &Selected,
        loaded: &Loaded,
        page: usize,
    ) -> Result<(), Declined> {
        let more = loaded.has_more(page);
        let (has_previous, has_next) = if selected.is_backward {
            (more, selected.is_continued)
        } else {
            (selected.is_continued, more)
        };
        let flag = |is: bool| if is { &b"true"[..] } else { b"false" };
        self.out.push(b'{');
        for (index, slot) in slots.iter().enumerate() {
            let is_first = index == 0;
            match slot {
                PageInfoSlot::Constant(constant) => self.key(constant, is_first),
                PageInfoSlot::HasPreviousPage(key) => {
                    self.key(key, is_first);
                    self.out.extend_from_slice(flag(has_previous));
                }
                PageInfoSlot::HasNextPage(key) => {
                    self.key(key, is_first);
                    self.out.extend_from_slice(flag(has_next));
                }
                PageInfoSlot::StartCursor(key) => {
                    self.key(key, is_first);
                    self.cursor_of(selected, loaded.page(page).next())?;
                }
                PageInfoSlot::EndCursor(key) => {
                    self.key(key, is_first);
                    self.cursor_of(selected, loaded.page(page).last())?;
                }
            }
        }
        self.out.push(b'}');
        Ok(())
    }

    fn cursor_of(
        &mut self,
        selected: &Selected,
        row: Option<(usize, &QueryResult)>,
    ) -> Result<(), Declined> {
        if let Some((_, row)) = row {
            return self.cursor(selected, row);
        }
        self.out.extend_from_slice(b"null");
        Ok(())
    }
}
