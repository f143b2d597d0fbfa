//! A database per test: a SQLite file, or a database on the PostgreSQL server that `GATHERING_TEST_DATABASE_URL` names,
//! whose user must be allowed to create databases. Dropping the value drops the database.

use std::env;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::thread;

use gathering_demo as seed;
use sea_orm::sqlx::sqlite::{SqliteJournalMode, SqliteSynchronous};
use sea_orm::{ConnectOptions, ConnectionTrait, DatabaseConnection, DbBackend, DbErr, Statement};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::runtime;
use tokio::sync::OnceCell;
use url::Url;
use uuid::{NoContext, Timestamp, Uuid};

use super::skip::skip;

/// The password of the demo users.
pub(crate) const PASSWORD: &str = "gathering-demo";

/// The PostgreSQL server to create databases on; `None` for SQLite.
fn server() -> Option<Url> {
    let url = env::var("GATHERING_TEST_DATABASE_URL").ok()?;
    Some(Url::parse(&url).expect("GATHERING_TEST_DATABASE_URL is a URL"))
}

/// A database that is dropped with this value.
pub(crate) struct Database {
    url: String,
    /// The file's path, or the database's name on its server.
    name: String,
    place: Place,
}

enum Place {
    File { _folder: TempDir },
    Server(Url),
}

impl Database {
    /// Without tables.
    pub(crate) async fn bare() -> Self {
        match server() {
            Some(server) => Self::on(server, "template0").await,
            None => Self::new_file(),
        }
    }

    /// Migrated, without rows.
    pub(crate) async fn empty() -> Self {
        let database = Self::bare().await;
        let db = database.connect().await;
        gathering_migration::up(&db).await.expect("migrates");
        db.close().await.expect("closes");
        database
    }

    /// As [`Database::empty`], on SQLite also when the tests run on PostgreSQL.
    pub(crate) async fn empty_file() -> Self {
        let database = Self::new_file();
        let db = database.connect().await;
        gathering_migration::up(&db).await.expect("migrates");
        db.close().await.expect("closes");
        database
    }

    /// With the demo data, copied from a database that is seeded once.
    pub(crate) async fn seeded() -> Self {
        static DATABASE: OnceCell<Database> = OnceCell::const_new();
        static FILE: OnceCell<Vec<u8>> = OnceCell::const_new();
        if let Some(server) = server() {
            let template = DATABASE.get_or_init(async || {
                sweep(&server).await;
                Self::filled().await
            });
            let template = &template.await.name;
            Self::on(server, template).await
        } else {
            let file = FILE.get_or_init(async || {
                let database = Self::filled().await;
                fs::read(&database.name).expect("reads")
            });
            let copy = Self::new_file();
            fs::write(&copy.name, file.await).expect("copies");
            copy
        }
    }

    async fn filled() -> Self {
        let database = Self::empty().await;
        let db = database.connect().await;
        seed::seed(&db, PASSWORD).await.expect("seeds");
        db.close().await.expect("closes");
        database
    }

    fn new_file() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let name = folder.path().join("gathering.db").display().to_string();
        Self {
            url: format!("sqlite://{name}?mode=rwc"),
            name,
            place: Place::File { _folder: folder },
        }
    }

    async fn on(server: Url, template: &str) -> Self {
        let name = name(Uuid::now_v7());
        let statement = format!("CREATE DATABASE {name} TEMPLATE {template}");
        execute(&server, &statement).await.expect("may create");
        let mut url = server.clone();
        url.set_path(&name);
        Self {
            url: url.into(),
            name,
            place: Place::Server(server),
        }
    }

    /// The database's URL.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// A listener for a proxy in front of the PostgreSQL server, the database's URL through the proxy, and the server's
    /// address.
    pub(crate) async fn proxy(&self) -> (TcpListener, Url, (String, u16)) {
        let mut url = Url::parse(&self.url).expect("a URL");
        let host = url.host_str().expect("a host").to_owned();
        let server = (host, url.port().unwrap_or(5432));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let port = listener.local_addr().expect("an address").port();
        url.set_host(Some("127.0.0.1")).expect("is set");
        url.set_port(Some(port)).expect("is set");
        (listener, url, server)
    }

    pub(crate) fn is_postgres(&self) -> bool {
        self.file().is_none()
    }

    /// The file, on SQLite.
    pub(crate) fn file(&self) -> Option<PathBuf> {
        matches!(self.place, Place::File { .. }).then(|| PathBuf::from(&self.name))
    }

    /// This database on PostgreSQL; on SQLite the test is skipped.
    pub(crate) fn only_on_postgres(self) -> Option<Self> {
        if !self.is_postgres() {
            skip("needs PostgreSQL: set GATHERING_TEST_DATABASE_URL");
            return None;
        }
        Some(self)
    }

    /// This database on SQLite; on PostgreSQL the test is skipped.
    pub(crate) fn only_on_sqlite(self) -> Option<Self> {
        if self.is_postgres() {
            skip("needs SQLite: unset GATHERING_TEST_DATABASE_URL");
            return None;
        }
        Some(self)
    }

    /// A new connection pool for the test.
    pub(crate) async fn connect(&self) -> DatabaseConnection {
        connect(&self.url).await.expect("connects")
    }
}

async fn connect(url: &str) -> Result<DatabaseConnection, DbErr> {
    let mut options = ConnectOptions::new(url);
    options
        .max_connections(8)
        .sqlx_logging(false)
        .map_sqlx_sqlite_opts(|sqlite| {
            sqlite
                .journal_mode(SqliteJournalMode::Wal)
                .synchronous(SqliteSynchronous::Normal)
        });
    sea_orm::Database::connect(options).await
}

/// The number that a statement answers on PostgreSQL.
pub(crate) async fn number(db: &impl ConnectionTrait, sql: &str) -> i64 {
    let statement = Statement::from_string(DbBackend::Postgres, sql);
    let row = db
        .query_one_raw(statement)
        .await
        .expect("is asked")
        .expect("a row");
    row.try_get_by_index(0).expect("a number")
}

async fn execute(server: &Url, statement: &str) -> Result<(), DbErr> {
    let db = connect(server.as_str()).await?;
    db.execute_unprepared(statement).await?;
    db.close().await
}

/// The name of a test database, which sorts by its creation time.
fn name(id: Uuid) -> String {
    format!("gathering_test_{}", id.simple())
}

/// Drops the databases that killed runs have left on the server, except those of the last hour, which may be in use.
async fn sweep(server: &Url) {
    let an_hour_ago = Timestamp::now(NoContext).to_unix().0 - 3600;
    let before = name(Uuid::new_v7(Timestamp::from_unix(
        NoContext,
        an_hour_ago,
        0,
    )));
    let db = connect(server.as_str()).await.expect("connects");
    let select = format!(
        "SELECT datname::text FROM pg_database WHERE datname LIKE 'gathering\\_test\\_%' AND datname < '{before}'"
    );
    let statement = Statement::from_string(DbBackend::Postgres, select);
    for row in db.query_all_raw(statement).await.expect("lists") {
        let name: String = row.try_get_by_index(0).expect("a name");
        // Another run may drop the same databases.
        let _ = db
            .execute_unprepared(&format!("DROP DATABASE IF EXISTS {name}"))
            .await;
    }
    db.close().await.expect("closes");
}

impl Drop for Database {
    fn drop(&mut self) {
        let Place::Server(server) = &self.place else {
            return;
        };
        let statement = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name);
        let drop = || {
            let runtime = runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime
                .block_on(execute(server, &statement))
                .map_err(io::Error::other)
        };
        // A runtime cannot block on another one on the same thread. If dropping fails, the next sweep repeats it.
        thread::scope(|scope| {
            let _ = scope.spawn(drop).join();
        });
    }
}
