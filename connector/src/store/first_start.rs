//! The tables and the one symmetric key of an empty database, made once however many instances start.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use sqlx::error::DatabaseError;
use sqlx::{Connection, Row, SqlitePool};

use super::{Pool, Store, StoreError, on};

/// How often SQLite's file is tried again where another instance makes it at the same time: changes of
/// its journal do not wait by themselves.
const ATTEMPTS: u32 = 100;

impl Store {
    /// Makes the original's tables where they are missing, and with `own` ours. What exists is left as it is.
    pub async fn prepare(&self, own: bool) -> Result<(), StoreError> {
        let own = own.then_some(self.sql.own_table);
        self.make(self.sql.original_tables.iter().copied().chain(own).collect()).await
    }

    /// Makes the tables of approvals where they are missing.
    pub async fn prepare_approvals(&self) -> Result<(), StoreError> {
        self.make(self.approvals_tables().to_vec()).await
    }

    async fn make(&self, statements: Vec<&'static str>) -> Result<(), StoreError> {
        match &self.pool {
            Pool::Sqlite(pool) => {
                let mut attempts = 0;
                loop {
                    match prepare_file(pool, &statements).await {
                        Err(error) if attempts < ATTEMPTS && is_locked(&error) => attempts += 1,
                        outcome => return Ok(outcome?),
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
            Pool::Postgres(pool) => {
                let mut transaction = pool.begin().await?;
                for statement in self.sql.lock.into_iter().chain(statements) {
                    sqlx::query(statement).execute(&mut *transaction).await?;
                }
                transaction.commit().await?;
            }
            Pool::MySql(pool) => {
                let mut connection = pool.acquire().await?.detach();
                for statement in self.sql.lock.into_iter().chain(statements).chain(self.sql.unlock)
                {
                    sqlx::query(statement).execute(&mut connection).await?;
                }
                connection.close().await?;
            }
        }
        Ok(())
    }

    /// The wrapped symmetric key: that of the first row. None where there is no row. `several` is
    /// called where there are more, of which each but the first stands for users who are lost.
    pub async fn symmetric_key(
        &self,
        several: impl FnOnce(usize) + Send,
    ) -> Result<Option<String>, StoreError> {
        let rows: Vec<Option<String>> = on!(self, pool => {
            let rows = sqlx::query(self.sql.symmetric_keys).fetch_all(pool).await?;
            rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?
        });
        if rows.len() > 1 {
            several(rows.len());
        }
        match rows.into_iter().next() {
            None => Ok(None),
            Some(Some(wrapped)) if !wrapped.trim().is_empty() => {
                Ok(Some(wrapped.trim().to_owned()))
            }
            Some(_) => Err(StoreError::Content(
                "the first row of ApplicationDatas has no SymmetricKey: restore it from a backup, \
                 or delete the row if no user is enrolled"
                    .to_owned(),
            )),
        }
    }

    /// Stores a wrapped symmetric key unless there is one. Whose counts is what is read afterwards.
    pub async fn seed(&self, wrapped: &str) -> Result<(), StoreError> {
        on!(self, pool => sqlx::query(self.sql.seed).bind(wrapped).execute(pool).await.map(drop))?;
        Ok(())
    }

    /// Whether the table of per-user mode exists.
    pub async fn has_own_table(&self) -> Result<bool, StoreError> {
        if self.knows_own_table() {
            return Ok(true);
        }
        let tables: i64 = on!(self, pool => {
            sqlx::query(self.sql.own_tables).fetch_one(pool).await?.try_get(0)?
        });
        self.own_table.store(tables > 0, Relaxed);
        Ok(tables > 0)
    }

    /// Whether the table of per-user mode was seen.
    pub(super) fn knows_own_table(&self) -> bool {
        self.own_table.load(Relaxed)
    }
}

async fn prepare_file(pool: &SqlitePool, statements: &[&'static str]) -> Result<(), sqlx::Error> {
    let mut connection = pool.acquire().await?;
    let tables = "SELECT count(*) FROM sqlite_master";
    let tables: i64 = sqlx::query(tables).fetch_one(&mut *connection).await?.try_get(0)?;
    if tables == 0 {
        // As the original does: readers and a writer at the same time.
        sqlx::query("PRAGMA journal_mode = WAL").execute(&mut *connection).await?;
    }
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    for statement in statements {
        sqlx::query(*statement).execute(&mut *transaction).await?;
    }
    transaction.commit().await
}

fn is_locked(error: &sqlx::Error) -> bool {
    // SQLITE_BUSY and SQLITE_LOCKED, and what extends them.
    let code = error.as_database_error().and_then(DatabaseError::code);
    code.and_then(|code| code.parse::<u32>().ok()).is_some_and(|code| matches!(code & 0xff, 5 | 6))
}
