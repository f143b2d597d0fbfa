//! `backup`: an online copy of a SQLite database.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use gathering::StartError;
use gathering::config::{Config, DatabaseUrl};
use gathering::db::Database;
use gathering_entity::journal;
use sea_orm::sea_query::Expr;
use sea_orm::{ConnectionTrait, EntityTrait, Statement};
use uuid::Uuid;

use super::database::on_database;
use super::output::print;

/// Copies the database to a new file.
pub(super) async fn backup(config: &Config, file: &Path) -> Result<(), StartError> {
    if config.database.url.is_postgres() {
        return Err(StartError::new(format!(
            "a PostgreSQL database is copied with its own tools: `pg_dump --format=custom --file={} DATABASE_URL`, \
             and restored with `pg_restore`",
            file.display()
        )));
    }
    let unusable = |error: io::Error| {
        StartError::new(format!(
            "the backup {} cannot be written ({error}): choose another file",
            file.display()
        ))
    };
    if let Some(source) = Database::file_of(&config.database).filter(|source| !source.exists()) {
        return Err(StartError::new(format!(
            "the database {} does not exist",
            source.display()
        )));
    }
    if file.exists() {
        return Err(unusable(io::ErrorKind::AlreadyExists.into()));
    }
    let folder = file
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    // SQLite refuses to write into a file that is not empty, and a temporary one is removed if the copy fails.
    let copy = tempfile::NamedTempFile::new_in(folder).map_err(unusable)?;
    on_database(config, async |database| {
        let connection = database.connection();
        let path = copy.path().display().to_string();
        let vacuum = Statement::from_sql_and_values(
            connection.get_database_backend(),
            "VACUUM INTO ?",
            [path.into()],
        );
        connection.execute_raw(vacuum).await?;
        Ok(())
    })
    .await?;
    begin_history(copy.path()).await?;
    fs::set_permissions(copy.path(), Permissions::from_mode(0o600)).map_err(unusable)?;
    copy.as_file().sync_all().map_err(unusable)?;
    copy.persist_noclobber(file)
        .map_err(|error| unusable(error.error))?;
    // The name of the file is durable only after its folder is.
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(unusable)?;
    print(&format!("the database is copied to {}\n", file.display()));
    if config.auth.signing_key.expose().is_empty() {
        print(&format!(
            "copy {} too: it signs the access tokens\n",
            config.data.dir.join("signing-keys").display()
        ));
    }
    Ok(())
}

/// Gives the copy another event history. A server on a restored copy assigns the positions after the backup again, so it
/// must refuse the cursors that clients got from the original.
async fn begin_history(copy: &Path) -> Result<(), StartError> {
    let url = DatabaseUrl::sqlite(copy);
    let connection = sea_orm::Database::connect(url.expose()).await?;
    journal::Entity::update_many()
        .col_expr(journal::Column::Epoch, Expr::value(Uuid::now_v7()))
        .exec(&connection)
        .await?;
    connection.close().await?;
    Ok(())
}
