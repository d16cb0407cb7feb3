//! The tables of approvals: recovery values, trusted devices, requests. Their statements are the same in
//! each kind of database but for the parameters' names.

mod devices;
mod recovery;
mod requests;

use sqlx::AssertSqlSafe;

pub use devices::TrustedDevice;
pub use recovery::{Enrolled, Recovery};
pub use requests::{Added, Kind, NewRequest, Request, State};

use super::{Pool, Store};

/// The tables, with what MySQL has to be told about texts: two e-mails are one only to the letter.
macro_rules! tables {
    ($of_mysql:literal) => {
        &[
            concat!(
                "CREATE TABLE IF NOT EXISTS claviger_recovery (user_id VARCHAR(36) NOT NULL PRIMARY KEY, email VARCHAR(254) NOT NULL UNIQUE, value TEXT NOT NULL, revised BIGINT NOT NULL)",
                $of_mysql
            ),
            concat!(
                "CREATE TABLE IF NOT EXISTS claviger_devices (user_id VARCHAR(36) NOT NULL, device_id VARCHAR(36) NOT NULL, user_key TEXT NOT NULL, public_key TEXT NOT NULL, private_key TEXT NOT NULL, PRIMARY KEY (user_id, device_id))",
                $of_mysql
            ),
            concat!(
                "CREATE TABLE IF NOT EXISTS claviger_auth_requests (id VARCHAR(36) NOT NULL PRIMARY KEY, user_id VARCHAR(36) NULL, email VARCHAR(254) NOT NULL, kind VARCHAR(8) NOT NULL, algorithm VARCHAR(16) NOT NULL, public_key TEXT NOT NULL, code_hash VARCHAR(64) NOT NULL, fingerprint VARCHAR(64) NOT NULL, wrong BIGINT NOT NULL, created BIGINT NOT NULL, expires BIGINT NOT NULL, state VARCHAR(8) NOT NULL, value TEXT NULL, decided BIGINT NULL, decided_by VARCHAR(800) NULL)",
                $of_mysql
            ),
        ]
    };
}

const TABLES: &[&str] = tables!("");
const MYSQL_TABLES: &[&str] = tables!(" CHARACTER SET utf8mb4 COLLATE utf8mb4_bin");

impl Store {
    /// The tables of approvals, to be made where they are missing.
    pub(super) fn approvals_tables(&self) -> &'static [&'static str] {
        if matches!(self.pool, Pool::MySql(_)) { MYSQL_TABLES } else { TABLES }
    }

    /// A statement with `?` for its parameters, as this kind of database writes them.
    fn words(&self, statement: &'static str) -> AssertSqlSafe<String> {
        AssertSqlSafe(match self.pool {
            Pool::Postgres(_) => numbered(statement),
            Pool::Sqlite(_) | Pool::MySql(_) => statement.to_owned(),
        })
    }
}

/// PostgreSQL's parameters are `$1`, `$2` and so on. No text of ours has a question mark.
fn numbered(statement: &str) -> String {
    let mut parts = statement.split('?');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for (place, part) in parts.enumerate() {
        text = format!("{text}${}{part}", place + 1);
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn parameters_of_postgresql_are_numbered() {
        assert_eq!(super::numbered("a = ? AND b = ?"), "a = $1 AND b = $2");
    }
}
