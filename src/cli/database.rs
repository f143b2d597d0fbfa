//! `migrate`, and the database of the other commands.

use clap::Subcommand;
use gathering::StartError;
use gathering::config::Config;
use gathering::db::Database;

use super::output::print;

#[derive(Clone, Copy, Subcommand)]
pub(super) enum Direction {
    /// Apply pending migrations (the default)
    Up,
    /// Print the number of pending migrations
    Status,
    /// Revert all migrations; all data is lost
    Down {
        /// Confirm that all data is deleted
        #[arg(long, required = true)]
        delete_all_data: bool,
    },
}

/// Brings the database up to date, or back.
pub(super) async fn migrate(database: &Database, direction: Direction) -> Result<(), StartError> {
    let connection = database.connection();
    let pending = gathering_migration::pending(connection).await?;
    match direction {
        Direction::Status if pending == 0 => print("the database is up to date\n"),
        Direction::Status => print(&format!("pending migrations: {pending}\n")),
        Direction::Up => {
            gathering_migration::up(connection).await?;
            print(&format!("applied migrations: {pending}\n"));
        }
        Direction::Down { .. } => {
            gathering_migration::down(connection).await?;
            print("all migrations are reverted\n");
        }
    }
    Ok(())
}

/// Opens the database, runs one task and closes it.
pub(super) async fn on_database(
    config: &Config,
    work: impl AsyncFnOnce(&Database) -> Result<(), StartError>,
) -> Result<(), StartError> {
    let database = Database::open(&config.database).await?;
    let done = work(&database).await;
    database.close().await;
    done
}
