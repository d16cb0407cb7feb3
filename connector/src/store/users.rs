//! The users' rows: read, written, moved between the two forms, each in one transaction.

use sqlx::Row;

use super::{Store, StoreError, Timestamp, on};
use crate::user::UserId;

/// A user's key as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredKey {
    /// Under what.
    pub form: Form,
    /// Base64.
    pub value: String,
}

/// Under what a user's key is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The one AES key: in `UserKeys`, as the original does.
    Shared,
    /// The RSA key: in `ClavigerUserKeys`.
    Wrapped,
}

/// A row of `UserKeys`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserRow {
    /// Under the AES key; none where the user's key is stored in the other form.
    pub key: Option<String>,
    /// When the user was enrolled.
    pub created: Timestamp,
    /// When the key was replaced.
    pub revised: Option<Timestamp>,
    /// When the key was read, to about a second.
    pub accessed: Option<Timestamp>,
}

impl Store {
    /// All users, in the order of the database.
    pub async fn ids(&self) -> Result<Vec<UserId>, StoreError> {
        let ids: Vec<String> = on!(self, pool => {
            let rows = sqlx::query(self.sql.ids).fetch_all(pool).await?;
            rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?
        });
        let parse = |id: &String| {
            UserId::parse(id).ok_or_else(|| {
                StoreError::Content(format!(
                    "a row of UserKeys has the id {id:?}, which is no UUID"
                ))
            })
        };
        ids.iter().map(parse).collect()
    }

    /// A user's row.
    pub async fn user(&self, id: UserId) -> Result<Option<UserRow>, StoreError> {
        let id = id.to_string();
        let columns: Option<[Option<String>; 4]> = on!(self, pool => {
            match sqlx::query(self.sql.user).bind(&id).fetch_optional(pool).await? {
                None => None,
                Some(row) => {
                    Some([row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?])
                }
            }
        });
        Ok(columns.map(|[key, created, revised, accessed]| UserRow {
            key,
            created: Timestamp::stored(&created.unwrap_or_default()),
            revised: revised.as_deref().map(Timestamp::stored),
            accessed: accessed.as_deref().map(Timestamp::stored),
        }))
    }

    /// A user's key in whichever form it is. A row without either is an error.
    pub async fn key(&self, id: UserId) -> Result<Option<StoredKey>, StoreError> {
        let known = self.knows_own_table();
        let mut forms = self.forms(id, known).await;
        if let Err(sqlx::Error::Io(_) | sqlx::Error::Database(_)) = forms {
            // A server that was restarted: a read may be asked again, and is on another connection.
            forms = self.forms(id, known).await;
        }
        let mut forms = forms?;
        if forms == Some([None, None]) && !known && self.has_own_table().await? {
            forms = self.forms(id, true).await?;
        }
        match forms {
            None => Ok(None),
            Some([Some(value), _]) => Ok(Some(StoredKey { form: Form::Shared, value })),
            Some([None, Some(value)]) => Ok(Some(StoredKey { form: Form::Wrapped, value })),
            Some([None, None]) => Err(StoreError::Content(format!(
                "user {id} has a row in UserKeys and no key in any form"
            ))),
        }
    }

    /// A user's key under the AES key and under the RSA key, in one look.
    async fn forms(
        &self,
        id: UserId,
        own_table: bool,
    ) -> sqlx::Result<Option<[Option<String>; 2]>> {
        let statement = if own_table { self.sql.keys } else { self.sql.key };
        let id = id.to_string();
        on!(self, pool => {
            match sqlx::query(statement).bind(&id).fetch_optional(pool).await? {
                None => Ok(None),
                Some(row) => Ok(Some([row.try_get(0)?, row.try_get(1)?])),
            }
        })
    }

    /// Enrols a user; false where there is one already.
    pub async fn insert(&self, id: UserId, key: &StoredKey) -> Result<bool, StoreError> {
        let (id, now) = (id.to_string(), Timestamp::now());
        Ok(on!(self, pool => {
            let mut transaction = pool.begin().await?;
            let inserted = sqlx::query(self.sql.insert_user)
                .bind(key.shared())
                .bind(now.text())
                .bind(&id)
                .execute(&mut *transaction)
                .await?
                .rows_affected();
            if inserted == 1 && let Some(wrapped) = key.wrapped() {
                let put = sqlx::query(self.sql.put_wrapped).bind(wrapped).bind(&id);
                put.execute(&mut *transaction).await?;
            }
            transaction.commit().await?;
            inserted == 1
        }))
    }

    /// Replaces a user's key, or enrols the user.
    pub async fn put(&self, id: UserId, key: &StoredKey) -> Result<(), StoreError> {
        while !self.replace(id, key).await? {
            if self.insert(id, key).await? {
                break;
            }
        }
        Ok(())
    }

    async fn replace(&self, id: UserId, key: &StoredKey) -> Result<bool, StoreError> {
        let own_table = key.form == Form::Wrapped || self.has_own_table().await?;
        let (id, now) = (id.to_string(), Timestamp::now());
        Ok(on!(self, pool => {
            let mut transaction = pool.begin().await?;
            let replaced = sqlx::query(self.sql.replace_key)
                .bind(key.shared())
                .bind(now.text())
                .bind(&id)
                .execute(&mut *transaction)
                .await?
                .rows_affected();
            if replaced == 1 && own_table {
                let query = match key.wrapped() {
                    Some(wrapped) => sqlx::query(self.sql.put_wrapped).bind(wrapped).bind(&id),
                    None => sqlx::query(self.sql.delete_wrapped).bind(&id),
                };
                query.execute(&mut *transaction).await?;
            }
            transaction.commit().await?;
            replaced == 1
        }))
    }

    /// Puts a user's key into the other form, unless it is no longer `from`: false then.
    pub async fn change_form(
        &self,
        id: UserId,
        from: &StoredKey,
        to: &StoredKey,
    ) -> Result<bool, StoreError> {
        let id = id.to_string();
        Ok(on!(self, pool => {
            let mut transaction = pool.begin().await?;
            let (first, second) = match to.form {
                Form::Wrapped => (
                    sqlx::query(self.sql.clear_key).bind(&id).bind(&from.value),
                    sqlx::query(self.sql.put_wrapped).bind(&to.value).bind(&id),
                ),
                Form::Shared => (
                    sqlx::query(self.sql.take_wrapped).bind(&id).bind(&from.value),
                    sqlx::query(self.sql.restore_key).bind(&to.value).bind(&id),
                ),
            };
            let taken = first.execute(&mut *transaction).await?.rows_affected();
            let given = match taken {
                1 => second.execute(&mut *transaction).await?.rows_affected(),
                _ => 0,
            };
            if given == 0 {
                transaction.rollback().await?;
                return Ok(false);
            }
            transaction.commit().await?;
            true
        }))
    }

    /// Adds a user's row as it is; false where the user exists.
    pub async fn import(&self, id: UserId, row: &UserRow) -> Result<bool, StoreError> {
        let id = id.to_string();
        let text = |time: &Option<Timestamp>| time.as_ref().map(|time| time.text().to_owned());
        Ok(on!(self, pool => {
            let insert = sqlx::query(self.sql.insert_whole_user)
                .bind(row.key.as_deref())
                .bind(row.created.text())
                .bind(text(&row.revised))
                .bind(text(&row.accessed))
                .bind(&id);
            insert.execute(pool).await?.rows_affected() == 1
        }))
    }

    /// Removes a user and the key; false where there is none.
    pub async fn remove(&self, id: UserId) -> Result<bool, StoreError> {
        let own_table = self.has_own_table().await?;
        let id = id.to_string();
        Ok(on!(self, pool => {
            let mut transaction = pool.begin().await?;
            let removed = sqlx::query(self.sql.delete_user).bind(&id).execute(&mut *transaction);
            let removed = removed.await?.rows_affected();
            if own_table {
                let delete = sqlx::query(self.sql.delete_wrapped).bind(&id);
                delete.execute(&mut *transaction).await?;
            }
            transaction.commit().await?;
            removed == 1
        }))
    }

    /// Notes when users' keys were read.
    pub async fn touch(
        &self,
        users: impl IntoIterator<Item = (UserId, Timestamp)> + Send,
    ) -> Result<(), StoreError> {
        let users: Vec<_> =
            users.into_iter().map(|(id, time)| (id.to_string(), time.text().to_owned())).collect();
        on!(self, pool => {
            let mut transaction = pool.begin().await?;
            for (id, time) in &users {
                let touch = sqlx::query(self.sql.touch).bind(time).bind(id);
                touch.execute(&mut *transaction).await?;
            }
            transaction.commit().await?;
        });
        Ok(())
    }
}

impl StoredKey {
    fn shared(&self) -> Option<&str> {
        (self.form == Form::Shared).then_some(self.value.as_str())
    }

    fn wrapped(&self) -> Option<&str> {
        (self.form == Form::Wrapped).then_some(self.value.as_str())
    }
}
