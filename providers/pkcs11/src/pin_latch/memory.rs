//! Refusals that this process knows of: asking again costs neither PBKDF2 nor a line in the log.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use aws_lc_rs::{hmac, rand};
use claviger_provider_api::Secret;

use super::LatchError;
use super::record::Names;

/// The last refusal of each record.
static REFUSALS: Mutex<BTreeMap<PathBuf, Refusal>> = Mutex::new(BTreeMap::new());

/// Of this process alone, so that what is kept of a PIN is worth nothing outside it. None without
/// random bytes: then nothing is kept.
static KEY: LazyLock<Option<hmac::Key>> = LazyLock::new(|| {
    let mut key = zeroize::Zeroizing::new([0; 32]);
    rand::fill(key.as_mut()).ok()?;
    Some(hmac::Key::new(hmac::HMAC_SHA256, key.as_ref()))
});

/// Tells one content of a record from the next: it is replaced by rename.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    file: (u64, u64, u64),
    modified: (i64, i64),
    changed: (i64, i64),
}

struct Refusal {
    stamp: Stamp,
    /// None where no PIN is tried any more.
    pin: Option<hmac::Tag>,
}

impl Stamp {
    /// None if there is no record.
    pub(super) fn of(record: &Path) -> Option<Self> {
        let file = record.symlink_metadata().ok()?;
        Some(Self {
            file: (file.dev(), file.ino(), file.size()),
            modified: (file.mtime(), file.mtime_nsec()),
            changed: (file.ctime(), file.ctime_nsec()),
        })
    }
}

/// Keeps a refusal, which was read from the record after its stamp was.
pub(super) fn remember(record: &Path, stamp: Option<Stamp>, pin: &Secret, error: &LatchError) {
    let (Some(stamp), Some(key)) = (stamp, &*KEY) else { return };
    let pin = match error {
        LatchError::SamePin { .. } => Some(hmac::sign(key, pin.expose())),
        LatchError::Exhausted { .. } => None,
        _ => return,
    };
    tracing::error!(%error, "PIN latch; not said again while nothing changes");
    refusals().insert(record.to_owned(), Refusal { stamp, pin });
}

/// The refusal, if neither the record nor the PIN changed since.
pub(super) fn recall(record: &Path, pin: &Secret, names: &Names) -> Option<LatchError> {
    let refusals = refusals();
    let refusal = refusals.get(record)?;
    if Stamp::of(record) != Some(refusal.stamp) {
        return None;
    }
    let Some(tag) = &refusal.pin else { return Some(LatchError::exhausted(names)) };
    let same = hmac::verify(KEY.as_ref()?, pin.expose(), tag.as_ref()).is_ok();
    same.then(|| LatchError::same_pin(names))
}

fn refusals() -> MutexGuard<'static, BTreeMap<PathBuf, Refusal>> {
    REFUSALS.lock().unwrap_or_else(PoisonError::into_inner)
}
