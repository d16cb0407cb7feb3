//! The database: the original's two tables, and beside them one of our own and those of approvals.
//!
//! Each kind of database has the same statements in its own words (`sqlite`, `postgres`, `mysql`);
//! ids and times go to and fro as text, so that the code is the same for all.

mod approvals;
mod connect;
mod first_start;
mod mysql;
mod postgres;
mod sqlite;
mod timestamp;
mod users;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use sqlx::{MySqlPool, PgPool, SqlitePool};

pub use approvals::{Added, Enrolled, Kind, NewRequest, Recovery, Request, State, TrustedDevice};
pub use timestamp::{Timestamp, seconds_since_1970};
pub use users::{Form, StoredKey, UserRow};

/// An open database. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    pool: Pool,
    sql: &'static Statements,
    /// Whether the table of per-user mode was seen. It is never removed.
    own_table: Arc<AtomicBool>,
}

#[derive(Clone, Debug)]
enum Pool {
    Sqlite(SqlitePool),
    Postgres(PgPool),
    MySql(MySqlPool),
}

/// Why the database did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It cannot be reached, or it refused.
    #[error("the database: {0}")]
    Database(#[from] sqlx::Error),
    /// What is in it, and what to do.
    #[error("{0}")]
    Content(String),
}

/// The statements of one kind of database.
#[derive(Debug)]
struct Statements {
    /// The original's tables as its first migration makes them, and the row that says that it ran.
    original_tables: &'static [&'static str],
    /// The table of per-user mode.
    own_table: &'static str,
    /// How many tables of our own there are: 0 or 1.
    own_tables: &'static str,
    symmetric_keys: &'static str,
    /// Adds row 1 unless there is any row; the primary key decides between two that try at once.
    seed: &'static str,
    ids: &'static str,
    /// Key and the three times of a user.
    user: &'static str,
    /// A user's key in its two forms, of which the second is NULL: where there is no table of our own.
    key: &'static str,
    /// A user's key in its two forms.
    keys: &'static str,
    /// Nothing where the user exists.
    insert_user: &'static str,
    /// All columns; nothing where the user exists.
    insert_whole_user: &'static str,
    replace_key: &'static str,
    /// Key to NULL, where it is still the value that was read.
    clear_key: &'static str,
    /// Key from NULL.
    restore_key: &'static str,
    put_wrapped: &'static str,
    /// Where it is still the value that was read.
    take_wrapped: &'static str,
    delete_wrapped: &'static str,
    delete_user: &'static str,
    touch: &'static str,
    /// A lock for one connection's transaction or session, where the kind needs one.
    lock: Option<&'static str>,
    unlock: Option<&'static str>,
}

/// The same code for each kind of database.
macro_rules! on {
    ($store:expr, $pool:ident => $body:expr) => {
        match &$store.pool {
            $crate::store::Pool::Sqlite($pool) => $body,
            $crate::store::Pool::Postgres($pool) => $body,
            $crate::store::Pool::MySql($pool) => $body,
        }
    };
}
pub(crate) use on;
