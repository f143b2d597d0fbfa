//! Tables and migrations.

use super::*;

/// The columns of each table with their type and nullability, from the database's catalogue.
async fn catalogue(db: &DatabaseConnection) -> BTreeMap<String, BTreeMap<String, (String, bool)>> {
    let sql = match db.get_database_backend() {
        DbBackend::Postgres => {
            "SELECT table_name::text, column_name::text, data_type::text, is_nullable::text \
             FROM information_schema.columns WHERE table_schema = 'public' AND is_identity = 'NO'"
        }
        _ => {
            "SELECT t.name, c.name, c.type, iif(c.\"notnull\", 'NO', 'YES') \
             FROM sqlite_schema t, pragma_table_info(t.name) c \
             WHERE t.type = 'table' AND t.name NOT LIKE 'sqlite_%'"
        }
    };
    let mut tables: BTreeMap<String, BTreeMap<_, _>> = BTreeMap::new();
    for row in rows(db, sql).await {
        let [table, column, kind, nullable] = row.try_into().expect("four columns");
        let column = (column, (kind, nullable == "YES"));
        tables.entry(table).or_default().extend([column]);
    }
    tables.remove("seaql_migrations");
    tables
}

/// The columns of each table according to its entity, with the database's names of types.
fn expected(backend: DbBackend) -> BTreeMap<String, BTreeMap<String, (String, bool)>> {
    let mut tables = BTreeMap::new();
    macro_rules! add {
        ($entity:ident) => {
            let columns = $entity::Column::iter().map(|column| {
                let definition = column.def();
                let kind = kind(definition.get_column_type(), backend);
                (
                    column.as_str().to_owned(),
                    (kind.to_owned(), definition.is_null()),
                )
            });
            let table = $entity::Entity.table_name().to_owned();
            tables.insert(table, columns.collect());
        };
    }
    for_each_entity!(add);
    tables
}

fn kind(column: &ColumnType, backend: DbBackend) -> &'static str {
    let (postgres, sqlite) = match column {
        ColumnType::Uuid => ("uuid", "BLOB"),
        ColumnType::Text | ColumnType::String(_) => ("text", "TEXT"),
        ColumnType::Integer => ("integer", "INTEGER"),
        ColumnType::BigInteger => ("bigint", "INTEGER"),
        ColumnType::Double => ("double precision", "REAL"),
        ColumnType::Boolean => ("boolean", "INTEGER"),
        ColumnType::TimestampWithTimeZone => ("timestamp with time zone", "TEXT"),
        ColumnType::Json | ColumnType::JsonBinary => ("jsonb", "TEXT"),
        other => panic!("no entity has a column of the type {other:?}"),
    };
    match backend {
        DbBackend::Postgres => postgres,
        _ => sqlite,
    }
}

#[tokio::test]
async fn every_table_matches_its_entity() {
    let database = Database::empty().await;
    let db = database.connect().await;
    assert_eq!(catalogue(&db).await, expected(db.get_database_backend()));
}

/// The definitions of all tables, constraints and indexes in the database's catalogue.
async fn definitions(db: &DatabaseConnection) -> BTreeSet<Vec<String>> {
    let sql = match db.get_database_backend() {
        DbBackend::Postgres => {
            "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' \
             UNION ALL SELECT conrelid::regclass::text || ' ' || pg_get_constraintdef(oid) \
               FROM pg_constraint WHERE connamespace = 'public'::regnamespace \
             UNION ALL SELECT table_name || ' ' || column_name || ' ' || data_type \
               || coalesce(collation_name, '') || coalesce(column_default, '') \
               FROM information_schema.columns WHERE table_schema = 'public' \
             UNION ALL SELECT relname || ' ' || relkind::text FROM pg_class \
               WHERE relnamespace = 'public'::regnamespace"
        }
        _ => "SELECT name || ' ' || coalesce(sql, '') FROM sqlite_schema",
    };
    rows(db, sql).await.into_iter().collect()
}

#[tokio::test]
async fn migrating_down_removes_everything_and_up_creates_it_again() {
    let database = Database::bare().await;
    let db = database.connect().await;
    let nothing = definitions(&db).await;
    assert_eq!(gathering_migration::pending(&db).await, Ok(10));
    assert_eq!(definitions(&db).await, nothing, "`pending` writes nothing");

    gathering_migration::up(&db).await.expect("up");
    assert_eq!(gathering_migration::pending(&db).await, Ok(0));
    let all = definitions(&db).await;
    assert_ne!(all, nothing);

    gathering_migration::down(&db).await.expect("down");
    assert_eq!(definitions(&db).await, nothing);

    gathering_migration::up(&db).await.expect("up again");
    assert_eq!(definitions(&db).await, all);
}

#[tokio::test]
async fn concurrent_migrations_all_succeed() {
    let database = Database::bare().await;
    let mut instances = tokio::task::JoinSet::new();
    for _ in 0..6 {
        let db = database.connect().await;
        instances.spawn(async move { gathering_migration::up(&db).await });
    }
    for up in within("six migrations", instances.join_all()).await {
        assert_eq!(up, Ok(()));
    }
    let db = database.connect().await;
    assert_eq!(gathering_migration::pending(&db).await, Ok(0));
    assert_eq!(catalogue(&db).await, expected(db.get_database_backend()));
}

#[tokio::test]
async fn a_database_of_a_newer_version_is_refused() {
    let database = Database::empty().await;
    let db = database.connect().await;
    db.execute_unprepared("INSERT INTO seaql_migrations VALUES ('m9999_future', 0)")
        .await
        .expect("inserts");
    let pending = gathering_migration::pending(&db).await.map(drop);
    for refused in [pending, gathering_migration::up(&db).await] {
        let line = refused.expect_err("refused").to_string();
        assert!(line.contains("newer version of Gathering"), "{line}");
    }
}

#[test]
fn the_operators_are_told_how_long_the_rows_of_each_table_are_kept() {
    let manual = include_str!("../../../ops/README.md");
    let (_, section) = manual.split_once("## Retention\n").expect("the section");
    let section = section.split("\n## ").next().unwrap_or_default();
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    let mut told: Vec<&str> = rows
        .flat_map(|row| row.split('|').nth(1).unwrap_or_default().split('`'))
        .filter(|word| word.chars().any(char::is_alphabetic))
        .collect();
    told.sort_unstable();
    assert_eq!(told, super::tables());
}
