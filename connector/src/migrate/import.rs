//! From the original's JSON file into the database: the same values, each opened before and after.

use std::path::Path;

use claviger_files::Protection;
use serde::{Deserialize, Serialize};

use super::Tally;
use crate::cli::{Exit, Failure};
use crate::keys::{Daemon, open_symmetric_key};
use crate::store::{Store, Timestamp, UserRow};
use crate::user::UserId;

/// Longest file: some hundred thousand users.
const MAX_BYTES: u64 = 256 << 20;

/// The original's file.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Data {
    pub(super) symmetric_key: Option<String>,
    #[serde(default)]
    pub(super) user_key: Vec<User>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct User {
    pub(super) id: String,
    pub(super) key: String,
    pub(super) creation_date: String,
    pub(super) revision_date: Option<String>,
    pub(super) last_access_date: Option<String>,
}

/// Takes the users over. The database must have no symmetric key, or the file's.
pub(super) async fn import(store: &Store, daemon: &Daemon, file: &Path) -> Result<(), Failure> {
    let data = read(file)?;
    let wrapped = data.symmetric_key.as_deref().filter(|key| !key.is_empty()).ok_or_else(|| {
        Failure::new(Exit::Failure, format!("{}: it has no symmetricKey", file.display()))
    })?;
    store.prepare(false).await?;
    // Before the database is touched: a value that does not unwrap here must not get in.
    daemon.unwrap(wrapped).await.map_err(crate::keys::KeyError::from)?;
    store.seed(wrapped).await?;
    if store.symmetric_key(|_| ()).await?.as_deref() != Some(wrapped) {
        let message = "the database has another symmetric key: these are two installations, whose \
                       users cannot be put together";
        return Err(Failure::new(Exit::Failure, message));
    }
    let shared = open_symmetric_key(store, daemon).await?;
    let mut tally = Tally::default();
    for user in &data.user_key {
        let Some(id) = UserId::parse(&user.id) else {
            return Err(Failure::new(Exit::Failure, format!("{:?} is no user's UUID", user.id)));
        };
        let row = match row(user) {
            Ok(row) => row,
            Err(reason) => {
                tally.fail(id, &reason);
                continue;
            }
        };
        if shared.open(&user.key).is_err() {
            tally.fail(id, &"the key in the file does not open");
            continue;
        }
        let inserted = store.import(id, &row).await?;
        match store.user(id).await? {
            Some(stored) if stored.key == row.key && inserted => tally.changed += 1,
            Some(stored) if stored.key == row.key => tally.unchanged += 1,
            _ => tally.fail(id, &"the database has another key of this user, which was left there"),
        }
    }
    tally.end("users were imported")
}

fn row(user: &User) -> Result<UserRow, String> {
    let time = |text: &String| {
        Timestamp::from_iso(text).ok_or_else(|| format!("{text:?} is no date in ISO 8601"))
    };
    Ok(UserRow {
        key: Some(user.key.clone()),
        created: time(&user.creation_date)?,
        revised: user.revision_date.as_ref().map(time).transpose()?,
        accessed: user.last_access_date.as_ref().map(time).transpose()?,
    })
}

fn read(file: &Path) -> Result<Data, Failure> {
    let wrong = |reason: String| Failure::new(Exit::Failure, reason);
    let bytes = claviger_files::read(file, Protection::Public, MAX_BYTES)
        .map_err(|error| wrong(error.to_string()))?;
    let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    serde_json::from_slice(text).map_err(|error| wrong(format!("{}: {error}", file.display())))
}
