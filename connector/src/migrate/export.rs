//! From the database into a JSON file that the original reads.

use std::path::Path;

use super::Tally;
use super::import::{Data, User};
use crate::cli::{Exit, Failure};
use crate::keys::{Daemon, open_symmetric_key};
use crate::store::{Store, Timestamp};

/// Makes the file, readable by its owner alone. Users whose keys are in the per-user form are named:
/// `migrate shared-key` comes first.
pub(super) async fn export(store: &Store, daemon: &Daemon, file: &Path) -> Result<(), Failure> {
    let shared = open_symmetric_key(store, daemon).await?;
    let mut data = Data { symmetric_key: store.symmetric_key(|_| ()).await?, user_key: Vec::new() };
    let mut tally = Tally::default();
    for id in store.ids().await? {
        let Some(row) = store.user(id).await? else { continue };
        let Some(key) = row.key else {
            tally.fail(id, &"the key is in the per-user form; run `migrate shared-key` first");
            continue;
        };
        if shared.open(&key).is_err() {
            tally.fail(id, &"the stored key does not open");
            continue;
        }
        tally.changed += 1;
        data.user_key.push(User {
            id: id.to_string(),
            key,
            creation_date: row.created.iso(),
            revision_date: row.revised.as_ref().map(Timestamp::iso),
            last_access_date: row.accessed.as_ref().map(Timestamp::iso),
        });
    }
    if tally.failed.is_empty() {
        let text = serde_json::to_vec_pretty(&data).expect("it is all text");
        claviger_files::create(file, &text, 0o600)
            .map_err(|error| Failure::new(Exit::Failure, format!("{}: {error}", file.display())))?;
    }
    tally.end("users were exported")
}
