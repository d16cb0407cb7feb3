//! From the one symmetric key to each user's own wrapped value, and back.

use std::collections::HashSet;

use super::Tally;
use crate::cli::Failure;
use crate::keys::{Daemon, KeyError, SymmetricKey, open_symmetric_key};
use crate::store::{Form, Store, StoredKey};
use crate::user::UserId;

/// How often a user is tried whose key changes at the same time.
const ATTEMPTS: usize = 10;

/// Puts each user's key into `to`. Goes through the users until no new one has come meanwhile.
pub(super) async fn change(store: &Store, daemon: &Daemon, to: Form) -> Result<(), Failure> {
    store.prepare(true).await?;
    let shared = open_symmetric_key(store, daemon).await?;
    let mut tally = Tally::default();
    let mut seen = HashSet::new();
    loop {
        let users = store.ids().await?;
        let new: Vec<_> = users.into_iter().filter(|user| seen.insert(*user)).collect();
        if new.is_empty() {
            break;
        }
        for user in new {
            match change_one(store, daemon, &shared, user, to).await {
                Ok(true) => tally.changed += 1,
                Ok(false) => tally.unchanged += 1,
                // Whatever cannot be reached now will not be for the next one either.
                Err(error @ (KeyError::NotNow(_) | KeyError::Store(_)))
                    if !matches!(error, KeyError::Store(crate::store::StoreError::Content(_))) =>
                {
                    eprintln!("stopped at user {user}; run it again to go on");
                    return Err(error.into());
                }
                Err(error) => tally.fail(user, &error),
            }
        }
    }
    tally.end(match to {
        Form::Wrapped => "users are now under the RSA key",
        Form::Shared => "users are now under the symmetric key",
    })
}

/// Whether the user was changed; false where the key is in that form, or the user has gone.
async fn change_one(
    store: &Store,
    daemon: &Daemon,
    shared: &SymmetricKey,
    user: UserId,
    to: Form,
) -> Result<bool, KeyError> {
    for _ in 0..ATTEMPTS {
        let Some(stored) = store.key(user).await? else { return Ok(false) };
        if stored.form == to {
            return Ok(false);
        }
        let key = open(daemon, shared, user, &stored).await?;
        let value = match to {
            Form::Wrapped => daemon.wrap_for(user, &key).await?,
            Form::Shared => shared.seal(&key),
        };
        let new = StoredKey { form: to, value };
        let again = open(daemon, shared, user, &new).await?;
        if *again != *key {
            return Err(KeyError::Wrong("the new value opens to another key".to_owned()));
        }
        if !store.change_form(user, &stored, &new).await? {
            continue;
        }
        return match store.key(user).await? {
            Some(found) if found == new => Ok(true),
            // Replaced by the user meanwhile, in whichever form that instance stores.
            Some(found) => open(daemon, shared, user, &found).await.map(|_| found.form == to),
            None => Ok(false),
        };
    }
    Err(KeyError::Wrong("the key changes all the time".to_owned()))
}

async fn open(
    daemon: &Daemon,
    shared: &SymmetricKey,
    user: UserId,
    stored: &StoredKey,
) -> Result<zeroize::Zeroizing<Vec<u8>>, KeyError> {
    match stored.form {
        Form::Wrapped => daemon.unwrap_for(user, &stored.value).await,
        Form::Shared => {
            shared.open(&stored.value).map_err(|error| KeyError::Wrong(error.to_string()))
        }
    }
}
