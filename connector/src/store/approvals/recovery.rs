//! Recovery values: a user's key under the organisation's public key, and the e-mail that names the user.

use sqlx::Row;

use super::super::{Store, StoreError, on};
use crate::user::UserId;

/// What is stored of an enrolled user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovery {
    /// In the one spelling.
    pub email: String,
    /// The user's key under the organisation's public key, in Base64.
    pub value: String,
}

/// Whether a user was enrolled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enrolled {
    /// Yes, or the value was replaced.
    Yes,
    /// Another user has the e-mail.
    EmailTaken,
}

impl Store {
    /// Enrols a user or replaces the value. Requests for the value before end, and each trusted device
    /// is forgotten but `keep`.
    pub async fn enrol(
        &self,
        user: UserId,
        recovery: &Recovery,
        keep: &str,
        now: i64,
    ) -> Result<Enrolled, StoreError> {
        match self.enrolled(&user.to_string(), recovery, keep, now).await {
            Ok(()) => Ok(Enrolled::Yes),
            Err(sqlx::Error::Database(error)) if error.is_unique_violation() => {
                Ok(Enrolled::EmailTaken)
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn enrolled(
        &self,
        user: &str,
        recovery: &Recovery,
        keep: &str,
        now: i64,
    ) -> sqlx::Result<()> {
        let Recovery { email, value } = recovery;
        let replace = self.words(
            "UPDATE claviger_recovery SET email = ?, value = ?, revised = ? WHERE user_id = ?",
        );
        let insert = self.words(
            "INSERT INTO claviger_recovery (email, value, revised, user_id) VALUES (?, ?, ?, ?)",
        );
        let end = self.words(END_OF_USER);
        let forget =
            self.words("DELETE FROM claviger_devices WHERE user_id = ? AND device_id <> ?");
        on!(self, pool => {
            // Writes before anything is read: SQLite does not let a reader become a writer at any time.
            let mut transaction = pool.begin().await?;
            let put = sqlx::query(replace).bind(email).bind(value).bind(now).bind(user);
            if put.execute(&mut *transaction).await?.rows_affected() == 0 {
                let put = sqlx::query(insert).bind(email).bind(value).bind(now).bind(user);
                put.execute(&mut *transaction).await?;
            }
            sqlx::query(end).bind(user).execute(&mut *transaction).await?;
            sqlx::query(forget).bind(user).bind(keep).execute(&mut *transaction).await?;
            transaction.commit().await
        })
    }

    /// What is stored of a user; none: the user is not enrolled.
    pub async fn recovery(&self, user: UserId) -> Result<Option<Recovery>, StoreError> {
        let statement = self.words("SELECT email, value FROM claviger_recovery WHERE user_id = ?");
        let user = user.to_string();
        Ok(on!(self, pool => {
            match sqlx::query(statement).bind(&user).fetch_optional(pool).await? {
                None => None,
                Some(row) => Some(Recovery { email: row.try_get(0)?, value: row.try_get(1)? }),
            }
        }))
    }

    /// The user whose e-mail it is.
    pub async fn user_of(&self, email: &str) -> Result<Option<UserId>, StoreError> {
        let statement = self.words("SELECT user_id FROM claviger_recovery WHERE email = ?");
        let user: Option<String> = on!(self, pool => {
            match sqlx::query(statement).bind(email).fetch_optional(pool).await? {
                None => None,
                Some(row) => row.try_get(0)?,
            }
        });
        Ok(user.as_deref().and_then(UserId::parse))
    }

    /// Forgets a user: value, devices, and what is open; false where the user is not enrolled.
    pub async fn withdraw(&self, user: UserId) -> Result<bool, StoreError> {
        let user = user.to_string();
        let remove = self.words("DELETE FROM claviger_recovery WHERE user_id = ?");
        let end = self.words(END_OF_USER);
        let forget = self.words("DELETE FROM claviger_devices WHERE user_id = ?");
        Ok(on!(self, pool => {
            let mut transaction = pool.begin().await?;
            let removed = sqlx::query(remove).bind(&user).execute(&mut *transaction).await?;
            sqlx::query(end).bind(&user).execute(&mut *transaction).await?;
            sqlx::query(forget).bind(&user).execute(&mut *transaction).await?;
            transaction.commit().await?;
            removed.rows_affected() == 1
        }))
    }
}

/// Ends what a user's devices have asked for, and erases what was approved and not fetched.
const END_OF_USER: &str = "UPDATE claviger_auth_requests SET state = 'expired', value = NULL, public_key = '', code_hash = '' WHERE user_id = ? AND state IN ('open', 'approved')";
