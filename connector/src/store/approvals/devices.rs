//! Trusted devices: three values of each, which the device alone can open.

use sqlx::Row;

use super::super::{Store, StoreError, on};
use crate::user::UserId;

/// A trusted device's values, as the device wrote them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustedDevice {
    /// The user's key, encrypted to the device's public key.
    pub user_key: String,
    /// The device's public key, encrypted under the user's key.
    pub public_key: String,
    /// The device's private key, encrypted under a key that never leaves the device.
    pub private_key: String,
}

impl Store {
    /// Trusts a device of an enrolled user, or replaces its values; false where there are `most`
    /// already.
    pub async fn trust(
        &self,
        user: UserId,
        device: &str,
        values: &TrustedDevice,
        most: i64,
    ) -> Result<bool, StoreError> {
        let user = user.to_string();
        let count = self
            .words("SELECT count(*) FROM claviger_devices WHERE user_id = ? AND device_id <> ?");
        let replace =
            self.words("DELETE FROM claviger_devices WHERE user_id = ? AND device_id = ?");
        let insert = self.words(
            "INSERT INTO claviger_devices (user_id, device_id, user_key, public_key, private_key) VALUES (?, ?, ?, ?, ?)",
        );
        Ok(on!(self, pool => {
            let mut transaction = pool.begin().await?;
            sqlx::query(replace).bind(&user).bind(device).execute(&mut *transaction).await?;
            let row = sqlx::query(count).bind(&user).bind(device).fetch_one(&mut *transaction);
            let others: i64 = row.await?.try_get(0)?;
            if others >= most {
                return Ok(false);
            }
            let insert = sqlx::query(insert).bind(&user).bind(device);
            let insert = insert.bind(&values.user_key).bind(&values.public_key);
            insert.bind(&values.private_key).execute(&mut *transaction).await?;
            transaction.commit().await?;
            true
        }))
    }

    /// A trusted device's values.
    pub async fn trusted(
        &self,
        user: UserId,
        device: &str,
    ) -> Result<Option<TrustedDevice>, StoreError> {
        let user = user.to_string();
        let statement = self.words(
            "SELECT user_key, public_key, private_key FROM claviger_devices WHERE user_id = ? AND device_id = ?",
        );
        Ok(on!(self, pool => {
            let row = sqlx::query(statement).bind(&user).bind(device).fetch_optional(pool).await?;
            match row {
                None => None,
                Some(row) => Some(TrustedDevice {
                    user_key: row.try_get(0)?,
                    public_key: row.try_get(1)?,
                    private_key: row.try_get(2)?,
                }),
            }
        }))
    }

    /// Trusts a device no longer; false where it was not trusted.
    pub async fn distrust(&self, user: UserId, device: &str) -> Result<bool, StoreError> {
        let user = user.to_string();
        let statement =
            self.words("DELETE FROM claviger_devices WHERE user_id = ? AND device_id = ?");
        Ok(on!(self, pool => {
            let delete = sqlx::query(statement).bind(&user).bind(device);
            delete.execute(pool).await?.rows_affected() == 1
        }))
    }
}
