//! From a stored value to a user's key and back, in both forms, by the daemon.

mod daemon;
mod shared;
mod symmetric;

use zeroize::Zeroizing;

pub use daemon::{Daemon, DaemonError};
pub use shared::{Shared, open_symmetric_key};
pub use symmetric::{DoesNotOpen, KEY_LEN, SymmetricKey};

use crate::config::Mode;
use crate::store::{Form, Store, StoreError, StoredKey};
use crate::user::UserId;

/// What opens and seals users' keys.
#[derive(Debug)]
pub struct Keys {
    mode: Mode,
    daemon: Daemon,
    shared: Shared,
}

/// Why a user's key was not opened or sealed.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The daemon or its backend cannot be reached, or the symmetric key is not open yet: try again.
    #[error("{0}")]
    NotNow(String),
    /// The stored value is not one of this user's, or not under this key.
    #[error("{0}")]
    Wrong(String),
    /// The key is longer than what fits under the RSA key.
    #[error("the key is longer than what fits under the wrapping key")]
    TooLong,
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Keys {
    /// For new keys in `mode`.
    pub fn new(mode: Mode, daemon: Daemon, shared: Shared) -> Self {
        Self { mode, daemon, shared }
    }

    /// Opens a user's key. In per-user form that is one unwrap; where `mode` is per-user and the value
    /// is still under the symmetric key, that key is unwrapped for this once.
    pub async fn open(
        &self,
        store: &Store,
        user: UserId,
        stored: &StoredKey,
    ) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        match (stored.form, self.mode) {
            (Form::Wrapped, _) => Ok(self.daemon.unwrap_for(user, &stored.value).await?),
            (Form::Shared, Mode::SharedKey) => opened(&*self.shared.get().await?, user, stored),
            (Form::Shared, Mode::PerUser) => {
                opened(&open_symmetric_key(store, &self.daemon).await?, user, stored)
            }
        }
    }

    /// Seals a user's key in the form of the mode.
    pub async fn seal(&self, user: UserId, key: &[u8]) -> Result<StoredKey, KeyError> {
        Ok(match self.mode {
            Mode::SharedKey => {
                StoredKey { form: Form::Shared, value: self.shared.get().await?.seal(key) }
            }
            Mode::PerUser => {
                let value = self.daemon.wrap_for(user, key).await?;
                StoredKey { form: Form::Wrapped, value }
            }
        })
    }

    /// The symmetric key, which in per-user mode is never opened.
    pub fn shared(&self) -> &Shared {
        &self.shared
    }

    /// The daemon.
    pub fn daemon(&self) -> &Daemon {
        &self.daemon
    }

    /// How new keys are stored.
    pub fn mode(&self) -> Mode {
        self.mode
    }
}

fn opened(
    key: &SymmetricKey,
    user: UserId,
    stored: &StoredKey,
) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    key.open(&stored.value).map_err(|error| KeyError::Wrong(format!("user {user}: {error}")))
}
