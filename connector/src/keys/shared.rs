//! The one symmetric key: made once, unwrapped once at the start, waited for until it is open.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::{error, info, warn};

use super::{Daemon, KEY_LEN, KeyError, SymmetricKey};
use crate::store::{Store, StoreError};

/// How long a request waits for a key that is not open yet.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest pause between two attempts to open it. A value that the daemon refuses costs it nothing
/// when it is asked again, and the row may have been put right.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// The symmetric key, open or not yet. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Shared(watch::Sender<Option<Arc<SymmetricKey>>>);

impl Default for Shared {
    fn default() -> Self {
        Self(watch::Sender::new(None))
    }
}

impl Shared {
    /// The key; waits for it, ten seconds at most.
    pub async fn get(&self) -> Result<Arc<SymmetricKey>, KeyError> {
        let mut key = self.0.subscribe();
        let open = timeout(PATIENCE, key.wait_for(Option::is_some)).await;
        let not_yet = || KeyError::NotNow("the symmetric key is not open yet".to_owned());
        open.ok().and_then(|key| key.ok()?.clone()).ok_or_else(not_yet)
    }

    /// Whether it is open.
    pub fn is_open(&self) -> bool {
        self.0.borrow().is_some()
    }

    /// Opens the key, however long that takes; makes one where the database has none. A key that is
    /// open stays in use until the stored one has been opened again.
    pub async fn open(&self, store: &Store, daemon: &Daemon) {
        let mut pause = Duration::from_millis(250);
        loop {
            match opened(store, daemon).await {
                Ok(key) => {
                    self.0.send_replace(Some(Arc::new(key)));
                    info!("the symmetric key is open");
                    return;
                }
                Err(reason @ (KeyError::NotNow(_) | KeyError::Store(StoreError::Database(_)))) => {
                    warn!(%reason, "the symmetric key cannot be opened now; trying again");
                }
                Err(reason) => {
                    error!(%reason, "the symmetric key does not open; trying again");
                }
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

/// Unwraps the stored symmetric key.
pub async fn open_symmetric_key(store: &Store, daemon: &Daemon) -> Result<SymmetricKey, KeyError> {
    match stored(store).await? {
        Some(wrapped) => unwrapped(daemon, &wrapped).await,
        None => Err(KeyError::Wrong(
            "ApplicationDatas has no row, so there is no symmetric key".to_owned(),
        )),
    }
}

/// The same, after making one where there is none. Of several instances that do so at once the
/// database lets one win, and what is stored is what each of them opens.
async fn opened(store: &Store, daemon: &Daemon) -> Result<SymmetricKey, KeyError> {
    store.prepare(false).await?;
    if stored(store).await?.is_none() {
        let wrapped = daemon.wrap(&*SymmetricKey::random_bytes()).await?;
        store.seed(&wrapped).await?;
        info!("the database had no symmetric key: one was made and wrapped");
    }
    open_symmetric_key(store, daemon).await
}

async fn stored(store: &Store) -> Result<Option<String>, KeyError> {
    let several = |rows: usize| {
        error!(
            rows,
            "ApplicationDatas has several rows, of which the first counts: users enrolled \
            under another one are lost; see \"Several rows\" in docs/connector.md"
        );
    };
    Ok(store.symmetric_key(several).await?)
}

async fn unwrapped(daemon: &Daemon, wrapped: &str) -> Result<SymmetricKey, KeyError> {
    let bytes = daemon.unwrap(wrapped).await?;
    SymmetricKey::from_bytes(&bytes).ok_or_else(|| {
        let len = bytes.len();
        KeyError::Wrong(format!("the symmetric key has {len} bytes instead of {KEY_LEN}"))
    })
}
