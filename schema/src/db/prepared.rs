//! Statements that are built once and run often. Their rows stay undecoded.

use std::{
    borrow::Cow,
    collections::HashMap,
    sync::{Arc, LazyLock, OnceLock},
};

use sea_orm::{
    DbBackend, QueryResult, Value,
    sea_query::{
        Alias, ArrayType, Asterisk, Expr, ExprTrait, Func, JoinType, Query, SelectStatement,
        UnionType,
    },
};
use uuid::Uuid;

use crate::{
    db::{BATCH_KEYS, Batch, ColumnOf, Reader, is_among},
    error::Error,
};

/// Rows in the order of their statement.
pub(crate) type RawRows = Arc<Vec<QueryResult>>;

/// Maximum number of parents in one statement on SQLite, which allows at most 500 compound selects.
const SQLITE_PARENTS: usize = 256;

/// Statements for more parents are not kept on SQLite, because their text grows with the number of parents.
const KEPT_PARENTS: usize = 32;

/// The placeholder of the first key; those of further keys follow it. Placeholders are random, so that no client can
/// send one.
static KEY: LazyLock<u128> = LazyLock::new(|| Uuid::now_v7().as_u128());

/// The ids in the rules of a viewer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct ViewerIds {
    pub(crate) user: Uuid,
    /// The API key, if it is limited to circles.
    pub(crate) key: Option<Uuid>,
    /// The agent, if the API key is limited to the circles of an agent.
    pub(crate) agent: Option<Uuid>,
}

impl ViewerIds {
    /// The ids of a user without an API key that limits them.
    pub(crate) fn of_user(user: Uuid) -> Self {
        Self {
            user,
            key: None,
            agent: None,
        }
    }

    /// The ids without the limit to the circles of an agent.
    pub(crate) fn without_agent(&self) -> Self {
        Self {
            agent: None,
            ..*self
        }
    }

    /// Whether an API key limits the viewer to some circles.
    pub(crate) fn is_limited(&self) -> bool {
        self.key.is_some() || self.agent.is_some()
    }

    /// The placeholders of these ids.
    pub(crate) fn placeholders(&self) -> Self {
        let [user, key, agent] = *VIEWER;
        Self {
            user,
            key: self.key.map(|_| key),
            agent: self.agent.map(|_| agent),
        }
    }

    /// The id that replaces a placeholder.
    fn bound(&self, id: Uuid) -> Option<Uuid> {
        let ids = [Some(self.user), self.key, self.agent];
        let place = VIEWER.iter().position(|placeholder| *placeholder == id)?;
        ids[place]
    }
}

/// The placeholders of the user's id, of the API key's and of the agent's.
static VIEWER: LazyLock<[Uuid; 3]> = LazyLock::new(|| std::array::from_fn(|_| Uuid::now_v7()));

fn placeholder(index: usize) -> Uuid {
    Uuid::from_u128(KEY.wrapping_add(index as u128))
}

/// The rows that a statement returns for a key.
pub(crate) enum Keyed {
    /// One statement without a key.
    Without,
    /// At most one row, whose key is its first column.
    One(ColumnOf),
    /// The first rows of each parent.
    Many(ColumnOf),
}

/// A statement as text, with placeholders among its values.
struct Text {
    sql: String,
    values: Vec<Value>,
}

/// A select over numbered columns, without the condition on its key.
pub(crate) struct Prepared {
    name: String,
    select: SelectStatement,
    /// The number of columns.
    width: usize,
    keyed: Keyed,
    backend: DbBackend,
    /// For one key, two keys, up to four keys, and so on.
    texts: [OnceLock<Arc<Text>>; 11],
    is_for_viewer: bool,
}

impl Prepared {
    pub(crate) fn new(
        name: String,
        select: SelectStatement,
        width: usize,
        keyed: Keyed,
        backend: DbBackend,
    ) -> Self {
        let mut prepared = Self {
            name,
            select,
            width,
            keyed,
            backend,
            texts: Default::default(),
            is_for_viewer: false,
        };
        let text = prepared.text(1);
        let is_viewer = |value: &Value| VIEWER.iter().any(|id| *value == Value::from(*id));
        prepared.is_for_viewer = text.values.iter().any(is_viewer);
        prepared
    }

    /// The statement for a number of keys.
    fn text(&self, keys: usize) -> Arc<Text> {
        let size = if self.backend == DbBackend::Postgres {
            // PostgreSQL receives the keys as one array.
            keys.min(2)
        } else {
            keys.next_power_of_two()
        };
        let build = || Arc::new(self.build(size));
        if size > KEPT_PARENTS && matches!(self.keyed, Keyed::Many(_)) {
            return build();
        }
        let at = usize::try_from(size.ilog2()).unwrap_or_default();
        Arc::clone(self.texts[at].get_or_init(build))
    }

    fn build(&self, keys: usize) -> Text {
        let placeholders: Vec<_> = (0..keys).map(placeholder).collect();
        let select = match &self.keyed {
            Keyed::Without => Cow::Borrowed(&self.select),
            Keyed::One(column) => {
                let mut select = self.select.clone();
                let keys = if self.backend == DbBackend::Postgres {
                    &placeholders[..1]
                } else {
                    &placeholders
                };
                select.and_where(is_among(self.backend, column.clone(), keys));
                Cow::Owned(select)
            }
            Keyed::Many(parent) if keys == 1 => {
                Cow::Owned(self.page(parent, Expr::val(placeholders[0])))
            }
            Keyed::Many(parent) => Cow::Owned(self.pages(parent, &placeholders)),
        };
        let statement = self.backend.build(&*select);
        Text {
            sql: statement.sql,
            values: statement.values.map(|values| values.0).unwrap_or_default(),
        }
    }

    /// The name in reports.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The page of the parent with this key, and its number of columns; `None` for a statement without a parent.
    pub(crate) fn page_of(&self, key: Expr) -> Option<(SelectStatement, usize)> {
        match &self.keyed {
            Keyed::Many(parent) => Some((self.page(parent, key), self.width)),
            Keyed::Without | Keyed::One(_) => None,
        }
    }

    fn page(&self, parent: &ColumnOf, key: Expr) -> SelectStatement {
        let mut select = self.select.clone();
        select.and_where(Expr::col(parent.clone()).eq(key));
        select
    }

    /// The first rows of every parent, each followed by the parent's key. A window function would number all rows of
    /// all parents first; this reads no row beyond the limit of each parent. Both databases process the parents one
    /// after the other and return the rows of each in the order of its select.
    fn pages(&self, parent: &ColumnOf, keys: &[Uuid]) -> SelectStatement {
        let page = || Alias::new("page");
        if self.backend == DbBackend::Postgres {
            let key = || Alias::new("key");
            let inner = self.page(parent, Expr::col((key(), key())));
            return Query::select()
                .column((page(), Asterisk))
                .expr(Expr::col((key(), key())))
                .from_function(Func::cust("unnest").arg(array(&keys[..1])), key())
                .join_lateral(JoinType::InnerJoin, inner, page(), Expr::cust("TRUE"))
                .take();
        }
        let mut arms = keys.iter().map(|key| {
            Query::select()
                .column((page(), Asterisk))
                .expr(Expr::val(*key))
                .from_subquery(self.page(parent, Expr::val(*key)), page())
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

    /// Whether the statements are the same text with the same values.
    fn is_same(&self, other: &Self) -> bool {
        let (one, other) = (self.text(1), other.text(1));
        one.sql == other.sql && one.values == other.values
    }
}

fn array(keys: &[Uuid]) -> Value {
    let keys = keys.iter().map(|key| Value::from(*key)).collect();
    Value::Array(ArrayType::Uuid, Some(Box::new(keys)))
}

impl Text {
    /// The values, with the placeholders replaced.
    fn bind(&self, keys: &[Uuid], viewer: ViewerIds) -> Vec<Value> {
        let bound = |value: &Value| match value {
            Value::Array(ArrayType::Uuid, Some(items)) if items[..] == [placeholder(0).into()] => {
                array(keys)
            }
            Value::Uuid(Some(id)) => {
                if let Some(id) = viewer.bound(*id) {
                    return id.into();
                }
                let index = usize::try_from(id.as_u128().wrapping_sub(*KEY));
                match index {
                    // No row has the nil id.
                    Ok(index) if index < 2 * BATCH_KEYS => {
                        keys.get(index).copied().unwrap_or_default().into()
                    }
                    _ => value.clone(),
                }
            }
            value => value.clone(),
        };
        self.values.iter().map(bound).collect()
    }
}

/// The rows of a prepared statement, by key.
#[derive(Clone)]
pub(crate) struct PreparedRows {
    statement: Arc<Prepared>,
    viewer: ViewerIds,
}

impl PreparedRows {
    /// `viewer` replaces the placeholders of the viewer's ids.
    pub(crate) fn new(statement: &Arc<Prepared>, viewer: ViewerIds) -> Self {
        Self {
            statement: Arc::clone(statement),
            viewer: if statement.is_for_viewer {
                viewer
            } else {
                ViewerIds::default()
            },
        }
    }
}

impl PartialEq for PreparedRows {
    fn eq(&self, other: &Self) -> bool {
        self.viewer == other.viewer
            && (Arc::ptr_eq(&self.statement, &other.statement)
                || self.statement.is_same(&other.statement))
    }
}

impl Batch for PreparedRows {
    type Key = Uuid;
    type Value = RawRows;

    fn name(&self) -> String {
        self.statement.name.clone()
    }

    async fn run(&self, db: &Reader, keys: &[Uuid]) -> Result<HashMap<Uuid, RawRows>, Error> {
        let statement = &*self.statement;
        let chunk = match (&statement.keyed, statement.backend) {
            (Keyed::Many(_), DbBackend::Sqlite) => SQLITE_PARENTS,
            _ => keys.len(),
        };
        let mut found = HashMap::with_capacity(keys.len());
        for keys in keys.chunks(chunk) {
            let text = statement.text(keys.len());
            let rows = db.run(&text.sql, text.bind(keys, self.viewer)).await?;
            match statement.keyed {
                Keyed::Without => {
                    let rows = Arc::new(rows);
                    found.extend(keys.iter().map(|key| (*key, Arc::clone(&rows))));
                }
                Keyed::Many(_) if keys.len() == 1 => {
                    found.insert(keys[0], Arc::new(rows));
                }
                Keyed::One(_) => {
                    for row in rows {
                        found.insert(row.try_get_by_index(0)?, Arc::new(vec![row]));
                    }
                }
                Keyed::Many(_) => {
                    let mut pages: HashMap<Uuid, Vec<QueryResult>> = HashMap::new();
                    for row in rows {
                        let parent = row.try_get_by_index(statement.width)?;
                        pages.entry(parent).or_default().push(row);
                    }
                    found.extend(pages.into_iter().map(|(key, page)| (key, Arc::new(page))));
                }
            }
        }
        Ok(found)
    }
}
