//! The versions of a key by the hash of their public keys, which Kubernetes calls a key id.

use std::collections::BTreeMap;
use std::sync::Mutex;

use claviger_client::{Client, Error, Key, KeyVersionState};

/// The versions of one key, as the daemon told them last.
#[derive(Debug, Default)]
pub(super) struct Versions {
    /// Key ids by version: 64 hexadecimal digits each.
    ids: Mutex<BTreeMap<u32, String>>,
}

impl Versions {
    /// Asks the daemon anew. Gives the key id that wraps now: of the newest active version whose public
    /// key the daemon knows.
    pub(super) async fn refresh(
        &self,
        client: &Client,
        key: &str,
    ) -> Result<Option<String>, Error> {
        let key = client.key(key).await?;
        let active = newest_active(&key);
        let known =
            key.versions.into_iter().filter(|version| !version.public_key_sha256.is_empty());
        let ids = known.map(|v| (v.version, hex::encode(&v.public_key_sha256))).collect();
        *self.ids.lock().expect("no panic while locked") = ids;
        Ok(active)
    }

    /// The key id of a version.
    pub(super) async fn id(
        &self,
        client: &Client,
        key: &str,
        version: u32,
    ) -> Result<Option<String>, Error> {
        if self.known_id(version).is_none() {
            self.refresh(client, key).await?;
        }
        Ok(self.known_id(version))
    }

    /// The version of a key id. A version that the daemon has no longer is none.
    pub(super) async fn version(
        &self,
        client: &Client,
        key: &str,
        id: &str,
    ) -> Result<Option<u32>, Error> {
        if self.known_version(id).is_none() {
            self.refresh(client, key).await?;
        }
        Ok(self.known_version(id))
    }

    fn known_id(&self, version: u32) -> Option<String> {
        self.ids.lock().expect("no panic while locked").get(&version).cloned()
    }

    fn known_version(&self, id: &str) -> Option<u32> {
        let ids = self.ids.lock().expect("no panic while locked");
        ids.iter().find_map(|(version, known)| (known == id).then_some(*version))
    }
}

fn newest_active(key: &Key) -> Option<String> {
    let active = key.versions.iter().filter(|version| {
        version.state() == KeyVersionState::Active && !version.public_key_sha256.is_empty()
    });
    let newest = active.max_by_key(|version| version.version)?;
    Some(hex::encode(&newest.public_key_sha256))
}

#[cfg(test)]
mod tests {
    use claviger_client::KeyVersion;

    use super::*;

    fn version(version: u32, state: KeyVersionState, hash: &'static [u8]) -> KeyVersion {
        let mut one = KeyVersion { version, public_key_sha256: hash.into(), ..Default::default() };
        one.set_state(state);
        one
    }

    #[test]
    fn the_key_id_is_of_the_newest_active_version_that_is_known() {
        let versions = vec![
            version(4, KeyVersionState::Active, b""),
            version(2, KeyVersionState::Active, b"\x02"),
            version(3, KeyVersionState::UnwrapOnly, b"\x03"),
            version(1, KeyVersionState::Active, b"\x01"),
        ];
        let key = Key { versions, ..Default::default() };
        assert_eq!(newest_active(&key), Some("02".to_owned()));
        assert_eq!(newest_active(&Key::default()), None);
    }
}
