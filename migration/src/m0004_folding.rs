//! Applies full case folding to folded names, e-mail addresses and words, and removes invisible characters.
//!
//! Different names may become equal. No row is deleted: where a unique index already has a row with the new key, the
//! row keeps its former key. The former key is not a folded text, so no new name collides with it.

use icu_casemap::{CaseMapper, CaseMapperBorrowed};
use icu_properties::{
    CodePointMapData, CodePointMapDataBorrowed, CodePointSetData, CodePointSetDataBorrowed,
    props::{DefaultIgnorableCodePoint, GeneralCategory},
};
use sea_orm_migration::{
    prelude::{DbErr, DeriveMigrationName, MigrationTrait, SchemaManager, async_trait},
    sea_orm::{ConnectionTrait, DbBackend, QueryResult, Statement, Value, prelude::Uuid},
};
use unicode_normalization::UnicodeNormalization;

/// Rows per read.
const PAGE: u32 = 1_000;

/// Texts and their folded keys: table, text, key, maximum length of the key in characters, and the scope of the unique
/// index.
const KEYS: [Keys; 5] = [
    Keys {
        table: "users",
        text: "email",
        key: "email_key",
        most: 254,
        owned: false,
        status: None,
    },
    Keys {
        table: "personas",
        text: "name",
        key: "name_key",
        most: 100,
        owned: false,
        status: None,
    },
    Keys {
        table: "agents",
        text: "name",
        key: "name_key",
        most: 100,
        owned: true,
        status: None,
    },
    Keys {
        table: "projects",
        text: "name",
        key: "name_key",
        most: 200,
        owned: true,
        status: Some("= 'ACTIVE'"),
    },
    Keys {
        table: "circles",
        text: "name",
        key: "name_key",
        most: 100,
        owned: true,
        status: Some("<> 'ARCHIVED'"),
    },
];

/// Lists of folded words: table and column.
const WORDS: [(&str, &str); 6] = [
    ("personas", "competencies"),
    ("agents", "competencies"),
    ("agents", "review_types"),
    ("circle_members", "competencies"),
    ("circle_members", "review_types"),
    ("tasks", "required_competencies"),
];

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for keys in KEYS {
            keys.refold(manager, fold).await?;
        }
        for (table, column) in WORDS {
            refold_words(manager, table, column).await?;
        }
        Ok(())
    }

    /// Words are not reverted: their former spelling is not stored.
    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for keys in KEYS {
            keys.refold(manager, former_fold).await?;
        }
        Ok(())
    }
}

struct Keys {
    table: &'static str,
    text: &'static str,
    key: &'static str,
    most: usize,
    /// Whether the key is unique per owner.
    owned: bool,
    /// The status condition of the rows among which the key is unique.
    status: Option<&'static str>,
}

impl Keys {
    async fn refold(
        &self,
        manager: &SchemaManager<'_>,
        fold: fn(&str) -> String,
    ) -> Result<(), DbErr> {
        let Self {
            table, text, key, ..
        } = self;
        let is_unique = |alias: &str| match self.status {
            Some(status) => format!("{alias}.status {status}"),
            None => "TRUE".to_owned(),
        };
        let same_owner = if self.owned {
            format!("other.owner_id = {table}.owner_id")
        } else {
            "TRUE".to_owned()
        };
        let update = format!(
            "UPDATE {table} SET {key} = $1 WHERE id = $2 AND NOT ({} AND EXISTS \
             (SELECT 1 FROM {table} other WHERE other.{key} = $1 AND {same_owner} AND {}))",
            is_unique(table),
            is_unique("other"),
        );
        let columns = format!("{text}, {key}");
        let mut last = Uuid::nil();
        loop {
            let rows = page(manager, table, &columns, last).await?;
            let Some(end) = rows.last() else {
                return Ok(());
            };
            last = end.try_get_by(0)?;
            for row in &rows {
                let id: Uuid = row.try_get_by(0)?;
                let (text, key): (String, String) = (row.try_get_by(1)?, row.try_get_by(2)?);
                let new = fold(&text);
                if new != key && !new.is_empty() && new.chars().nth(self.most).is_none() {
                    execute(manager, &update, [new.into(), id.into()]).await?;
                }
            }
        }
    }
}

async fn refold_words(manager: &SchemaManager<'_>, table: &str, column: &str) -> Result<(), DbErr> {
    let json = match manager.get_database_backend() {
        DbBackend::Postgres => "CAST($1 AS jsonb)",
        _ => "$1",
    };
    let update = format!("UPDATE {table} SET {column} = {json} WHERE id = $2");
    let columns = format!("CAST({column} AS text)");
    let mut last = Uuid::nil();
    loop {
        let rows = page(manager, table, &columns, last).await?;
        let Some(end) = rows.last() else {
            return Ok(());
        };
        last = end.try_get_by(0)?;
        for row in &rows {
            let (id, words): (Uuid, String) = (row.try_get_by(0)?, row.try_get_by(1)?);
            if let Some(folded) = refolded(&words) {
                execute(manager, &update, [folded.into(), id.into()]).await?;
            }
        }
    }
}

/// A list of words, folded again and without duplicates; `None` if it does not change.
fn refolded(list: &str) -> Option<String> {
    let words: Vec<String> = serde_json::from_str(list).ok()?;
    let mut new: Vec<String> = Vec::with_capacity(words.len());
    for word in &words {
        let folded = Some(fold(word)).filter(|folded| !folded.is_empty());
        let folded = folded.unwrap_or_else(|| word.clone());
        if !new.contains(&folded) {
            new.push(folded);
        }
    }
    (new != words).then(|| serde_json::Value::from(new).to_string())
}

/// The rows after an id: column 0 is the id, followed by `columns`.
async fn page(
    manager: &SchemaManager<'_>,
    table: &str,
    columns: &str,
    last: Uuid,
) -> Result<Vec<QueryResult>, DbErr> {
    let select =
        format!("SELECT id, {columns} FROM {table} WHERE id > $1 ORDER BY id LIMIT {PAGE}");
    let backend = manager.get_database_backend();
    let page = Statement::from_sql_and_values(backend, &select, [last.into()]);
    manager.get_connection().query_all_raw(page).await
}

async fn execute(manager: &SchemaManager<'_>, sql: &str, values: [Value; 2]) -> Result<(), DbErr> {
    let statement = Statement::from_sql_and_values(manager.get_database_backend(), sql, values);
    manager.get_connection().execute_raw(statement).await?;
    Ok(())
}

fn fold(text: &str) -> String {
    const MAPPER: CaseMapperBorrowed = CaseMapper::new();
    const IGNORABLE: CodePointSetDataBorrowed =
        CodePointSetData::new::<DefaultIgnorableCodePoint>();
    const CATEGORY: CodePointMapDataBorrowed<GeneralCategory> = CodePointMapData::new();
    const EMPTY: [char; 5] = [
        '\u{2800}',
        '\u{1d159}',
        '\u{13441}',
        '\u{13442}',
        '\u{fffc}',
    ];
    let is_visible = |letter: &char| {
        !IGNORABLE.contains(*letter)
            && CATEGORY.get(*letter) != GeneralCategory::Format
            && !EMPTY.contains(letter)
    };
    let case_fold = |letters: &mut dyn Iterator<Item = char>| {
        let visible: String = letters.filter(is_visible).collect();
        MAPPER.fold_string(&visible).into_owned()
    };
    let once = case_fold(&mut text.nfd());
    let twice = case_fold(&mut once.nfkc());
    let folded: String = twice.nfkc().collect();
    folded.trim().to_owned()
}

/// The folding before this migration.
fn former_fold(text: &str) -> String {
    let folded: String = text
        .nfkc()
        .flat_map(char::to_lowercase)
        .map(|letter| if letter == 'ς' { 'σ' } else { letter })
        .nfkc()
        .collect();
    folded.trim().to_owned()
}
