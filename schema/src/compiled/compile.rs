//! From the plan of an operation to statements and output.

use std::{collections::HashMap, sync::Arc};

use async_graphql::{Name, Value};
use async_graphql_value::Value as Input;
use sea_orm::{
    DbBackend,
    sea_query::{Alias, Asterisk, Expr, ExprTrait, IntoIden, JoinType, Query, SelectStatement},
};

use uuid::Uuid;

use crate::{
    access::Viewer,
    compiled::{Declined, types::Types},
    data::{Cell, Column, EdgeField, Field, Fields, List, ListArguments, One, Page, argument},
    db::{ColumnOf, Keyed, Prepared, Rule},
    id::Kind,
    operation::{
        Variables,
        bind::value_of,
        plan::{FieldPlan, Selection},
    },
};

/// Maximum number of tables that a statement joins to its own.
const MAX_JOINS: usize = 8;

/// A response key with its colon, in JSON.
pub(super) type Key = Box<[u8]>;

/// A root field.
pub(super) enum Root {
    /// The name of the root type, as JSON.
    TypeName(&'static str),
    /// An object by its id.
    Row {
        id: Input,
        row: RowPlan,
    },
    List(ListPlan),
}

/// What a statement selects: columns of its table and of joined ones, and the branches that start at its rows.
#[derive(Default)]
pub(super) struct Source {
    columns: Vec<(usize, &'static str)>,
    joins: Vec<Join>,
    pub(super) branches: Vec<Branch>,
}

/// A table that is joined by its primary key.
#[derive(PartialEq)]
struct Join {
    from: usize,
    column: &'static str,
    table: &'static str,
    key: &'static str,
}

/// Statements whose keys are in a column of the rows.
pub(super) struct Branch {
    pub(super) key_at: usize,
    pub(super) to: To,
}

pub(super) enum To {
    Row(RowPlan),
    List(ListPlan),
}

/// Rows by their primary key.
pub(super) struct RowPlan {
    pub(super) statement: Arc<Prepared>,
    /// The branch whose page is in the same statement: the row is then repeated for each entry of the page.
    pub(super) page: Option<usize>,
    pub(super) source: Source,
    pub(super) object: Object,
    pub(super) kind: Kind,
}

/// The fields of an object.
pub(super) struct Object {
    pub(super) slots: Vec<Slot>,
}

pub(super) enum Slot {
    /// The type name, with its key.
    Constant(Key),
    Cell {
        key: Key,
        at: usize,
        cell: Cell,
        is_long: bool,
    },
    One {
        key: Key,
        node: Node,
        is_nullable: bool,
    },
    /// The list of this branch.
    List { key: Key, branch: usize },
}

/// An object that belongs to a row.
pub(super) enum Node {
    /// The row itself.
    Row(Object),
    /// An object in the same row, unless the column is NULL.
    Joined { at: usize, object: Object },
    /// The row of this branch.
    Branch(usize),
}

/// One page of a list for each parent.
pub(super) struct ListPlan {
    list: Arc<List>,
    arguments: Vec<(Name, Input)>,
    /// The statements, if they do not depend on variables.
    pub(super) constant: Option<Arc<Selected>>,
    pub(super) source: Source,
    pub(super) slots: Vec<ConnectionSlot>,
    pub(super) reads: bool,
    pub(super) counts: bool,
}

pub(super) enum ConnectionSlot {
    Constant(Key),
    Edges { key: Key, slots: Vec<EdgeSlot> },
    Nodes { key: Key, node: Node },
    PageInfo { key: Key, slots: Vec<PageInfoSlot> },
    TotalCount(Key),
}

pub(super) enum EdgeSlot {
    Constant(Key),
    Cursor(Key),
    Node { key: Key, node: Node },
    Cell { key: Key, at: usize, cell: Cell },
}

pub(super) enum PageInfoSlot {
    Constant(Key),
    HasPreviousPage(Key),
    HasNextPage(Key),
    StartCursor(Key),
    EndCursor(Key),
}

/// The statements of a list, for given arguments.
pub(super) struct Selected {
    pub(super) rows: Option<Arc<Prepared>>,
    pub(super) count: Option<Arc<Prepared>>,
    pub(super) size: usize,
    pub(super) is_backward: bool,
    pub(super) is_continued: bool,
    pub(super) cursor_tag: [u8; 4],
    pub(super) cursor_at: usize,
    pub(super) cursor_cells: Vec<Cell>,
}

impl Root {
    /// The number of statements.
    pub(super) fn statements(&self) -> u64 {
        match self {
            Self::TypeName(_) => 0,
            Self::Row { row, .. } => row.source.statements(),
            Self::List(list) => list.source.statements(),
        }
    }
}

impl Source {
    fn statements(&self) -> u64 {
        let branches = self.branches.iter().map(|branch| match &branch.to {
            To::Row(row) => row.source.statements(),
            To::List(list) => list.source.statements(),
        });
        1 + branches.sum::<u64>()
    }

    fn column(&mut self, table: usize, name: &'static str) -> usize {
        let column = (table, name);
        let known = self.columns.iter().position(|known| *known == column);
        known.unwrap_or_else(|| {
            self.columns.push(column);
            self.columns.len() - 1
        })
    }

    fn join(&mut self, join: Join) -> usize {
        let known = self.joins.iter().position(|known| *known == join);
        let at = known.unwrap_or_else(|| {
            self.joins.push(join);
            self.joins.len() - 1
        });
        at + 1
    }

    fn branch(&mut self, branch: Branch) -> usize {
        self.branches.push(branch);
        self.branches.len() - 1
    }

    /// Adds the columns and joins to a select over a table that has `width` columns, and further columns of the table
    /// itself. Returns the new number of columns.
    fn apply(
        &self,
        select: &mut SelectStatement,
        table: &'static str,
        more: &[ColumnOf],
        mut width: usize,
    ) -> usize {
        let alias = |index: usize| match index {
            0 => Alias::new(table),
            index => Alias::new(format!("j{index}")),
        };
        for (index, join) in self.joins.iter().enumerate() {
            let on = Expr::col((alias(index + 1), Alias::new(join.key)))
                .equals((alias(join.from), Alias::new(join.column)));
            select.join_as(JoinType::LeftJoin, join.table, alias(index + 1), on);
        }
        let own = self
            .columns
            .iter()
            .map(|(index, name)| (alias(*index).into_iden(), Alias::new(*name).into_iden()));
        for column in own.chain(more.iter().cloned()) {
            select.expr_as(Expr::col(column), Alias::new(format!("c{width}")));
            width += 1;
        }
        width
    }
}

impl RowPlan {
    /// Reads the row together with the page of its list, if it has exactly one list, without variables and totals.
    fn add_page(&mut self, fields: &Fields, rule: &Rule) {
        const OF: &str = "of";
        const PAGE: &str = "below";
        let branches = self.source.branches.iter().enumerate();
        let mut lists = branches.filter(|(_, branch)| branch.key_at == 0);
        let (Some((at, branch)), None) = (lists.next(), lists.next()) else {
            return;
        };
        let To::List(list) = &branch.to else { return };
        let constant = list.constant.as_ref().filter(|_| !list.counts);
        let Some(rows) = constant.and_then(|selected| selected.rows.as_ref()) else {
            return;
        };
        let key = Expr::col((Alias::new(OF), Alias::new(fields.key)));
        let Some((page, page_width)) = rows.page_of(key) else {
            return;
        };
        // The list may select from the table of the row, so the key has a name of its own.
        let key = Query::select().column(key_of(fields)).take();
        let is_true = || Expr::cust("TRUE");
        let mut select = Query::select()
            .from(fields.table)
            .join_lateral(JoinType::InnerJoin, key, Alias::new(OF), is_true())
            .join_lateral(JoinType::LeftJoin, page, Alias::new(PAGE), is_true())
            .take();
        for column in 0..page_width {
            let name = || Alias::new(format!("c{column}"));
            select.expr_as(Expr::col((Alias::new(PAGE), name())), name());
        }
        let width = (self.source).apply(&mut select, fields.table, &[], page_width);
        select.cond_where(rule.condition());
        let name = format!("{}, {}", self.statement.name(), rows.name());
        let keyed = Keyed::Many(key_of(fields));
        let statement = Prepared::new(name, select, width, keyed, DbBackend::Postgres);
        self.statement = Arc::new(statement);
        self.page = Some(at);
        self.object.shift(page_width);
        for branch in &mut self.source.branches {
            branch.key_at += page_width;
        }
    }
}

impl Object {
    /// Moves the columns of its cells.
    fn shift(&mut self, columns: usize) {
        for slot in &mut self.slots {
            match slot {
                Slot::Cell { at, .. } => *at += columns,
                Slot::One { node, .. } => match node {
                    Node::Row(object) => object.shift(columns),
                    Node::Joined { at, object } => {
                        *at += columns;
                        object.shift(columns);
                    }
                    Node::Branch(_) => {}
                },
                Slot::Constant(_) | Slot::List { .. } => {}
            }
        }
    }
}

impl ListPlan {
    /// The statements for the arguments of a request.
    ///
    /// # Errors
    /// An argument is not valid.
    pub(super) fn select(
        &self,
        viewer: &Viewer,
        variables: &Variables,
        backend: DbBackend,
    ) -> Result<Arc<Selected>, Declined> {
        if let Some(constant) = &self.constant {
            return Ok(Arc::clone(constant));
        }
        self.build(viewer, variables, backend).map(Arc::new)
    }

    fn build(
        &self,
        viewer: &Viewer,
        variables: &Variables,
        backend: DbBackend,
    ) -> Result<Selected, Declined> {
        let mut values: HashMap<Name, Value> = HashMap::new();
        for (name, value) in &self.arguments {
            if let Some(value) = value_of(value, variables).and_then(Input::into_const) {
                values.insert(name.clone(), value);
            }
        }
        let count = |name| argument(&values, name).map_err(|_| Declined);
        let cursor = |name| argument(&values, name).map_err(|_| Declined);
        let page = Page::new(
            count("first")?,
            cursor("after")?,
            count("last")?,
            cursor("before")?,
        );
        let arguments = ListArguments {
            viewer,
            parent: Uuid::nil(),
            backend,
            page: page.map_err(|_| Declined)?,
            values: &values,
        };
        let query = (self.list.select)(&arguments).map_err(|_| Declined)?;
        let keyed = |parent: Option<ColumnOf>| parent.map_or(Keyed::Without, Keyed::Many);
        let name = match &query.parent {
            Some((_, column)) => format!("{} by {column}", query.list),
            None => query.list.to_owned(),
        };
        let (columns, cursor_tag) = query.cursor;
        let (order, cursor_cells): (Vec<_>, Vec<_>) = columns.into_iter().unzip();
        let rows = self.reads.then(|| {
            let mut select = query.page;
            select.clear_selects();
            let width = self.source.apply(&mut select, query.list, &order, 0);
            let keyed = keyed(query.parent.clone());
            Arc::new(Prepared::new(name, select, width, keyed, backend))
        });
        let count = self.counts.then(|| {
            let mut select = query.all;
            select
                .clear_selects()
                .expr_as(Expr::col(Asterisk).count(), Alias::new("c0"));
            let name = format!("{} in total", query.list);
            Arc::new(Prepared::new(name, select, 1, keyed(query.parent), backend))
        });
        Ok(Selected {
            rows,
            count,
            size: query.size,
            is_backward: query.is_backward,
            is_continued: query.is_continued,
            cursor_tag,
            cursor_at: self.source.columns.len(),
            cursor_cells,
        })
    }
}

/// Compiles root fields for the viewers of one kind.
pub(super) struct Compiler<'a> {
    pub(super) types: &'a Types,
    /// A stand-in whose id is a placeholder.
    pub(super) viewer: &'a Viewer,
    pub(super) backend: DbBackend,
}

impl Compiler<'_> {
    /// A root field; `None` if only the executor can resolve it.
    pub(super) fn root(&self, field: &FieldPlan) -> Option<Root> {
        if field.name == "__typename" {
            return Some(Root::TypeName("\"Query\""));
        }
        if let Some(list) = self.types.all(&field.name) {
            return self.list(field, list).map(Root::List);
        }
        let fields = self.types.by_id(&field.name)?;
        let rule = (fields.readable)(self.viewer)?;
        let mut row = self.row(object(field)?, fields, &rule)?;
        if self.backend == DbBackend::Postgres && is_short(object(field)?, fields) {
            row.add_page(fields, &rule);
        }
        let id = field.argument("id")?.clone();
        Some(Root::Row { id, row })
    }

    fn row(&self, selected: &[Arc<FieldPlan>], fields: &Fields, rule: &Rule) -> Option<RowPlan> {
        let mut source = Source::default();
        source.column(0, fields.key);
        let object = self.object(selected, fields, 0, &mut source)?;
        let mut select = Query::select().from(fields.table).take();
        let width = source.apply(&mut select, fields.table, &[], 0);
        select.cond_where(rule.condition());
        let name = format!("{} by {}", fields.table, fields.key);
        let keyed = Keyed::One(key_of(fields));
        let statement = Prepared::new(name, select, width, keyed, self.backend);
        Some(RowPlan {
            statement: Arc::new(statement),
            page: None,
            source,
            object,
            kind: fields.kind,
        })
    }

    fn object(
        &self,
        selected: &[Arc<FieldPlan>],
        fields: &Fields,
        table: usize,
        source: &mut Source,
    ) -> Option<Object> {
        let slots = selected.iter().map(|field| {
            let key = key(field);
            if let Some(constant) = type_name(field, &fields.name) {
                return Some(Slot::Constant(constant));
            }
            Some(match fields.by_name.get(field.name.as_str())? {
                Field::Column(column) => Slot::Cell {
                    key,
                    at: source.column(table, column.name),
                    cell: column.cell,
                    is_long: column.is_long,
                },
                Field::One(one) => Slot::One {
                    key,
                    node: self.one(one, object(field)?, table, source)?,
                    is_nullable: !field.ty.is_non_null(),
                },
                Field::List(list) => {
                    let to = To::List(self.list(field, list)?);
                    let key_at = source.column(table, fields.key);
                    let branch = source.branch(Branch { key_at, to });
                    Slot::List { key, branch }
                }
            })
        });
        Some(Object {
            slots: slots.collect::<Option<_>>()?,
        })
    }

    /// An object by a column: joined if it is short and needs no rule.
    fn one(
        &self,
        one: &One,
        selected: &[Arc<FieldPlan>],
        table: usize,
        source: &mut Source,
    ) -> Option<Node> {
        let fields = self.types.get(&one.target)?;
        let rule = if one.is_checked {
            (fields.readable)(self.viewer)?
        } else {
            Rule::default()
        };
        let is_joined =
            rule == Rule::default() && source.joins.len() < MAX_JOINS && is_short(selected, fields);
        if is_joined {
            let join = source.join(Join {
                from: table,
                column: one.column,
                table: fields.table,
                key: fields.key,
            });
            return Some(Node::Joined {
                at: source.column(join, fields.key),
                object: self.object(selected, fields, join, source)?,
            });
        }
        let to = To::Row(self.row(selected, fields, &rule)?);
        let key_at = source.column(table, one.column);
        Some(Node::Branch(source.branch(Branch { key_at, to })))
    }

    fn list(&self, field: &FieldPlan, list: &Arc<List>) -> Option<ListPlan> {
        let mut source = Source::default();
        let (mut reads, mut counts) = (false, false);
        let mut slots = Vec::new();
        for part in object(field)? {
            let key = key(part);
            if let Some(constant) = type_name(part, field.ty.inner_named_type()) {
                slots.push(ConnectionSlot::Constant(constant));
                continue;
            }
            reads |= part.name != "totalCount";
            slots.push(match part.name.as_str() {
                "edges" => ConnectionSlot::Edges {
                    key,
                    slots: self.edges(part, list, &mut source)?,
                },
                "nodes" => ConnectionSlot::Nodes {
                    key,
                    node: self.node(object(part)?, list, &mut source)?,
                },
                "pageInfo" => ConnectionSlot::PageInfo {
                    key,
                    slots: page_info(object(part)?)?,
                },
                "totalCount" => {
                    counts = true;
                    ConnectionSlot::TotalCount(key)
                }
                _ => return None,
            });
        }
        let mut plan = ListPlan {
            list: Arc::clone(list),
            arguments: field.arguments.clone(),
            constant: None,
            source,
            slots,
            reads,
            counts,
        };
        if !plan.arguments.iter().any(|(_, value)| is_variable(value)) {
            let selected = plan.build(self.viewer, &Variables::default(), self.backend);
            plan.constant = Some(Arc::new(selected.ok()?));
        }
        Some(plan)
    }

    fn node(&self, selected: &[Arc<FieldPlan>], list: &List, source: &mut Source) -> Option<Node> {
        let entries = &list.entries;
        if let Some(one) = &entries.node {
            return self.one(one, selected, 0, source);
        }
        let fields = self.types.get(&entries.row)?;
        self.object(selected, fields, 0, source).map(Node::Row)
    }

    fn edges(&self, field: &FieldPlan, list: &List, source: &mut Source) -> Option<Vec<EdgeSlot>> {
        let slots = object(field)?.iter().map(|part| {
            let key = key(part);
            if let Some(constant) = type_name(part, field.ty.inner_named_type()) {
                return Some(EdgeSlot::Constant(constant));
            }
            if part.name == "cursor" {
                return Some(EdgeSlot::Cursor(key));
            }
            if part.name == "node" {
                let node = self.node(object(part)?, list, source)?;
                return Some(EdgeSlot::Node { key, node });
            }
            let mut extra = list.entries.extra.iter();
            let (_, extra) = extra.find(|(name, _)| *name == part.name.as_str())?;
            Some(match extra {
                EdgeField::Column(Column { name, cell, .. }) => EdgeSlot::Cell {
                    key,
                    at: source.column(0, name),
                    cell: *cell,
                },
                EdgeField::Row => {
                    let fields = self.types.get(&list.entries.row)?;
                    let node = Node::Row(self.object(object(part)?, fields, 0, source)?);
                    EdgeSlot::Node { key, node }
                }
            })
        });
        slots.collect()
    }
}

fn page_info(selected: &[Arc<FieldPlan>]) -> Option<Vec<PageInfoSlot>> {
    let slots = selected.iter().map(|part| {
        if let Some(constant) = type_name(part, "PageInfo") {
            return Some(PageInfoSlot::Constant(constant));
        }
        let key = key(part);
        Some(match part.name.as_str() {
            "hasPreviousPage" => PageInfoSlot::HasPreviousPage(key),
            "hasNextPage" => PageInfoSlot::HasNextPage(key),
            "startCursor" => PageInfoSlot::StartCursor(key),
            "endCursor" => PageInfoSlot::EndCursor(key),
            _ => return None,
        })
    });
    slots.collect()
}

/// The key of an object, as a column.
fn key_of(fields: &Fields) -> ColumnOf {
    let name = |name| Alias::new(name).into_iden();
    (name(fields.table), name(fields.key))
}

/// The selection on an object of one type.
fn object(field: &FieldPlan) -> Option<&[Arc<FieldPlan>]> {
    match &field.selection {
        Selection::Object(fields) => Some(fields),
        Selection::Leaf | Selection::Abstract(_) => None,
    }
}

fn key(field: &FieldPlan) -> Key {
    // Names have no characters that JSON escapes.
    format!("\"{}\":", field.key).into_bytes().into()
}

fn type_name(field: &FieldPlan, name: &str) -> Option<Key> {
    (field.name == "__typename")
        .then(|| format!("\"{}\":\"{name}\"", field.key).into_bytes().into())
}

/// Whether a selection has no texts that are better not repeated in the rows that refer to the object.
fn is_short(selected: &[Arc<FieldPlan>], fields: &Fields) -> bool {
    selected
        .iter()
        .all(|field| match fields.by_name.get(field.name.as_str()) {
            Some(Field::Column(column)) => !column.is_long && column.cell != Cell::List,
            _ => true,
        })
}

fn is_variable(value: &Input) -> bool {
    match value {
        Input::Variable(_) => true,
        Input::List(items) => items.iter().any(is_variable),
        Input::Object(fields) => fields.values().any(is_variable),
        _ => false,
    }
}
