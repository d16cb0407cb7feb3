//! Whether users can get their keys, asked of the database, the issuer's keys and the daemon.

use std::time::{Duration, Instant};

use claviger_client::Health as DaemonHealth;
use claviger_tokens::Issuer;
use tokio::sync::Mutex;
use tracing::{info, warn};

use crate::config::Mode;
use crate::keys::Keys;
use crate::store::Store;

/// How old an answer may be; checks by many cost the daemon no more than one.
const MAX_AGE: Duration = Duration::from_secs(3);

/// In the words of the original's own framework.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// All is well.
    Healthy,
    /// Users get their keys, and will not after a restart: the daemon says that its key is not well.
    Degraded,
    /// Users do not get their keys.
    Unhealthy,
}

/// The last answer. Asked by one at a time.
#[derive(Debug, Default)]
pub struct Cached(Mutex<Option<(Health, Instant)>>);

impl Cached {
    /// The last answer, or a new one.
    pub async fn get(&self, store: &Store, keys: &Keys, issuer: &Issuer) -> Health {
        let mut last = self.0.lock().await;
        if let Some((health, at)) = *last
            && at.elapsed() < MAX_AGE
        {
            return health;
        }
        let before = last.map(|(health, _)| health);
        let (health, reason) = ask(store, keys, issuer).await;
        if before != Some(health) {
            if health == Health::Healthy {
                info!("healthy");
            } else {
                warn!(?health, reason, "not healthy");
            }
        }
        *last = Some((health, Instant::now()));
        health
    }
}

async fn ask(store: &Store, keys: &Keys, issuer: &Issuer) -> (Health, String) {
    if let Err(error) = store.ping().await {
        return (Health::Unhealthy, error.to_string());
    }
    if issuer.known().is_none() {
        return (Health::Unhealthy, "the issuer's keys are not known".to_owned());
    }
    let daemon = match keys.daemon().health().await {
        Ok(DaemonHealth::Serving) => {
            return if keys.mode() == Mode::SharedKey && !keys.shared().is_open() {
                (Health::Unhealthy, "the symmetric key is not open".to_owned())
            } else {
                (Health::Healthy, String::new())
            };
        }
        Ok(DaemonHealth::NotServing) => "the daemon's key is not well".to_owned(),
        Err(error) => error.to_string(),
    };
    match keys.mode() {
        Mode::SharedKey if keys.shared().is_open() => (Health::Degraded, daemon),
        _ => (Health::Unhealthy, daemon),
    }
}
