//! Connecting to the database that is configured.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sqlx::Connection;
use sqlx::mysql::{MySqlConnectOptions, MySqlPoolOptions, MySqlSslMode};
use sqlx::pool::PoolOptions;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions, PgSslMode};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};

use super::{Pool, Statements, Store, StoreError, mysql, on, postgres, sqlite};
use crate::config::{Database, DatabaseServer};

/// Longest time to wait for a connection, and for another process that writes to SQLite's file.
const PATIENCE: Duration = Duration::from_secs(15);
/// A connection that was idle for longer is tried before it is used.
const TRIED_AFTER: Duration = Duration::from_secs(1);
/// SQLite reads on several connections and writes on one at a time.
const SQLITE_CONNECTIONS: u32 = 8;

impl Store {
    /// Opens the database; connections are made as they are needed, and again when they are lost.
    pub fn open(config: &Database) -> Self {
        match config {
            Database::Sqlite(file) => {
                let options = SqliteConnectOptions::new()
                    .filename(file)
                    .create_if_missing(true)
                    .busy_timeout(PATIENCE);
                let pool = SqlitePoolOptions::new().max_connections(SQLITE_CONNECTIONS);
                let pool = patient(pool).connect_lazy_with(options);
                Self::of(Pool::Sqlite(pool), &sqlite::STATEMENTS)
            }
            Database::Postgres(server) => {
                let pool = patient(PgPoolOptions::new().max_connections(server.connections));
                let pool = pool.connect_lazy_with(postgres_options(server));
                Self::of(Pool::Postgres(pool), &postgres::STATEMENTS)
            }
            Database::MySql(server) => {
                let pool = patient(MySqlPoolOptions::new().max_connections(server.connections));
                let pool = pool.connect_lazy_with(mysql_options(server));
                Self::of(Pool::MySql(pool), &mysql::STATEMENTS)
            }
        }
    }

    fn of(pool: Pool, sql: &'static Statements) -> Self {
        Self { pool, sql, own_table: Arc::default() }
    }

    /// Whether it answers.
    pub async fn ping(&self) -> Result<(), StoreError> {
        on!(self, pool => sqlx::query("SELECT 1").execute(pool).await.map(drop))?;
        Ok(())
    }

    /// Ends the connections; SQLite's file is complete in itself afterwards.
    pub async fn close(&self) {
        on!(self, pool => pool.close().await);
    }
}

fn patient<DB: sqlx::Database>(options: PoolOptions<DB>) -> PoolOptions<DB> {
    // A look before each use would cost as much as the use.
    options.acquire_timeout(PATIENCE).test_before_acquire(false).before_acquire(
        |connection, used| {
            Box::pin(async move {
                if used.idle_for > TRIED_AFTER {
                    connection.ping().await?;
                }
                Ok(true)
            })
        },
    )
}

fn postgres_options(server: &DatabaseServer) -> PgConnectOptions {
    let mut options = PgConnectOptions::new_without_pgpass()
        .host(&server.host)
        .port(server.port)
        .username(&server.user)
        .database(&server.name)
        .application_name("claviger-connector")
        .ssl_mode(PgSslMode::Disable);
    if let Some(password) = &server.password {
        options = options.password(password);
    }
    match &server.ca {
        Some(ca) => options.ssl_mode(PgSslMode::VerifyFull).ssl_root_cert(ca),
        None => options,
    }
}

fn mysql_options(server: &DatabaseServer) -> MySqlConnectOptions {
    let mut options = MySqlConnectOptions::new()
        .username(&server.user)
        .database(&server.name)
        .ssl_mode(MySqlSslMode::Disabled);
    options = if server.host.starts_with('/') {
        options.socket(Path::new(&server.host))
    } else {
        options.host(&server.host).port(server.port)
    };
    if let Some(password) = &server.password {
        options = options.password(password);
    }
    match &server.ca {
        Some(ca) => options.ssl_mode(MySqlSslMode::VerifyIdentity).ssl_ca(ca),
        None => options,
    }
}
