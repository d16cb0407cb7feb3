//! When users' keys were read: gathered, and stored about once a second, so that a read does not wait
//! for a write.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use tracing::warn;

use crate::store::{Store, Timestamp};
use crate::user::UserId;

/// How often what was gathered is stored.
pub const INTERVAL: Duration = Duration::from_secs(1);
/// Users whose times wait at most, where the database does not take them.
const MOST: usize = 100_000;

/// Times that are not stored yet.
#[derive(Debug, Default)]
pub struct Accessed(Mutex<HashMap<UserId, Timestamp>>);

impl Accessed {
    /// Notes a read.
    pub fn note(&self, user: UserId, time: Timestamp) {
        let mut times = self.0.lock().expect("nothing panics with it");
        if times.len() < MOST || times.contains_key(&user) {
            times.insert(user, time);
        }
    }

    /// Stores what was gathered. Where that fails, the times are lost: they are for people alone.
    pub async fn store(&self, store: &Store) {
        let times = std::mem::take(&mut *self.0.lock().expect("nothing panics with it"));
        if times.is_empty() {
            return;
        }
        if let Err(error) = store.touch(times).await {
            warn!(%error, "the times of access were not stored");
        }
    }
}
