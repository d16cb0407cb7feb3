//! Which version of a key a locator means, and whether it is fit for use.

use azure_core::time::OffsetDateTime;
use azure_security_keyvault_keys::models::{Key, KeyClientGetKeyOptions, KeyProperties, KeyType};
use claviger_provider_api::checks::{daemon_call, in_own_time};
use claviger_provider_api::{AnotherKey, Cause, Error, ErrorKind, OpenKey, PublicKey};
use futures::TryStreamExt;

use crate::client::Backend;
use crate::error::{Operation, request_id};
use crate::locator::Locator;

/// One version of a key, as the vault describes it.
#[derive(Debug)]
pub(crate) struct Found {
    /// With its version.
    pub(crate) locator: Locator,
    pub(crate) public_key: PublicKey,
    pub(crate) in_hardware: bool,
    pub(crate) exportable: bool,
    enabled: bool,
    key_ops: Vec<String>,
}

/// A version, and what it is if it is a key that can be used, or why it is none.
struct Described {
    /// With its version, where it is known.
    locator: Locator,
    found: Result<Found, Error>,
}

impl Described {
    fn is_pinned(&self, sha256: [u8; 32]) -> bool {
        self.found.as_ref().is_ok_and(|found| found.public_key.sha256() == sha256)
    }
}

/// The version that the locator names. Without one: the latest, if its public key is the pinned one or
/// none is pinned; else whichever version has the pinned one, looked for from the newest on. Versions of
/// another type of key may lie between.
pub(crate) async fn find(
    backend: &Backend,
    locator: &Locator,
    open: &OpenKey<'_>,
) -> Result<Found, Error> {
    let latest = read_or_disabled(backend, locator).await?;
    let pin = open.public_key_sha256.filter(|_| locator.version.is_none());
    let Some(pin) = pin.filter(|pin| !latest.is_pinned(*pin)) else { return latest.found };
    let versions = older_versions(backend, locator, &latest.locator).await?;
    for version in &versions {
        let older = read_or_disabled(backend, &locator.with_version(version)).await?;
        if older.is_pinned(pin) {
            return older.found;
        }
    }
    let none = format!(
        "none of its {} other versions has the pinned key; was it deleted?",
        versions.len()
    );
    match latest.found {
        Ok(found) => {
            let reason = format!("the latest version of {locator} is another key, and {none}");
            let found = found.public_key.sha256();
            Err(Error::new(ErrorKind::OperatorNeeded, AnotherKey { found, pinned: pin, reason }))
        }
        Err(error) => {
            let reason =
                format!("{locator}: the latest version cannot be used ({error}), and {none}");
            Err(error.retold(ErrorKind::OperatorNeeded, reason).with_cause(Cause::AnotherKey))
        }
    }
}

impl Found {
    /// Whether the key may do what it is opened for.
    pub(crate) fn check_use(&self, open: &OpenKey<'_>) -> Result<(), Error> {
        let refuse = |cause, reason: String| {
            Err(Error::needs_operator(cause, format!("{}: {reason}", self.locator)))
        };
        if !self.enabled {
            return refuse(Cause::KeyDisabled, "this version is disabled; enable it".to_owned());
        }
        for (operation, is_needed) in
            [("unwrapKey", !open.algorithms.is_empty()), ("sign", !open.sign_algorithms.is_empty())]
        {
            if is_needed && !self.key_ops.iter().any(|permitted| permitted == operation) {
                let reason = format!(
                    "its `key_ops` ({}) do not have {operation:?}; add it, or make a key for it",
                    self.key_ops.join(", ")
                );
                return refuse(Cause::KeyUnfit, reason);
            }
        }
        Ok(())
    }
}

/// As [`read`]; a version that the vault does not show while it is disabled is none that can be used.
async fn read_or_disabled(backend: &Backend, locator: &Locator) -> Result<Described, Error> {
    match read(backend, locator).await {
        Err(error) if error.cause() == Some(Cause::KeyDisabled) => {
            Ok(Described { locator: locator.clone(), found: Err(error) })
        }
        outcome => outcome,
    }
}

async fn read(backend: &Backend, locator: &Locator) -> Result<Described, Error> {
    let options = KeyClientGetKeyOptions {
        key_version: locator.version.clone(),
        ..KeyClientGetKeyOptions::default()
    };
    let asking = async {
        let answer = backend.keys().get_key(&locator.name, Some(options)).await?;
        let id = request_id(answer.headers());
        Ok((answer.into_model()?, id))
    };
    let (key, id) = ask(backend, Operation::GetKey, asking).await?;
    let kid = key.key.as_ref().and_then(|jwk| jwk.kid.as_deref()).unwrap_or_default();
    let version = locator
        .version_of(kid)
        .filter(|found| locator.version.as_deref().is_none_or(|asked| asked == *found));
    let Some(version) = version else {
        let reason = format!("{locator}: the vault answered for the key {kid:?}");
        return Err(Error::new(ErrorKind::Internal, reason)
            .with_cause(Cause::WrongAnswer)
            .with_backend_request_id(id));
    };
    let locator = locator.with_version(version);
    let found = usable(&locator, key).map_err(|reason| {
        let reason = format!("{locator}: {reason}");
        Error::needs_operator(Cause::KeyUnfit, reason).with_backend_request_id(id)
    });
    Ok(Described { locator, found })
}

/// Asks within the daemon's own time.
async fn ask<T>(
    backend: &Backend,
    operation: Operation,
    asking: impl Future<Output = azure_core::Result<T>>,
) -> Result<T, Error> {
    backend.ask(operation, daemon_call().deadline, asking).await.map_err(in_own_time)
}

/// What a version is, by the vault's description, if it is an RSA key.
pub(crate) fn usable(locator: &Locator, key: Key) -> Result<Found, String> {
    let jwk = key.key.unwrap_or_default();
    let in_hardware = match &jwk.kty {
        Some(KeyType::Rsa) => false,
        Some(KeyType::RsaHsm) => true,
        other => {
            let kty = other.as_ref().map_or("none", AsRef::as_ref);
            return Err(format!("it is a key of the type {kty:?}; RSA or RSA-HSM is needed"));
        }
    };
    let (n, e) = (jwk.n.unwrap_or_default(), jwk.e.unwrap_or_default());
    let public_key = PublicKey::from_components(&n, &e)
        .map_err(|error| format!("it cannot be used: {error}"))?;
    let attributes = key.attributes.unwrap_or_default();
    Ok(Found {
        locator: locator.clone(),
        public_key,
        in_hardware,
        exportable: attributes.exportable == Some(true),
        enabled: attributes.enabled != Some(false),
        key_ops: jwk.key_ops.unwrap_or_default(),
    })
}

/// All versions but the latest, from the newest on; the vault lists them in no order.
async fn older_versions(
    backend: &Backend,
    locator: &Locator,
    latest: &Locator,
) -> Result<Vec<String>, Error> {
    let asking = async {
        let pages = backend.keys().list_key_properties_versions(&locator.name, None)?;
        pages.try_collect::<Vec<KeyProperties>>().await
    };
    let listed = ask(backend, Operation::ListVersions, asking).await?;
    let mut versions: Vec<(Option<OffsetDateTime>, String)> = listed
        .into_iter()
        .filter_map(|item| {
            let version = locator.version_of(item.kid.as_deref()?)?.to_owned();
            Some((item.attributes.and_then(|attributes| attributes.created), version))
        })
        .filter(|(_, version)| latest.version.as_ref() != Some(version))
        .collect();
    versions.sort_by(|left, right| right.cmp(left));
    Ok(versions.into_iter().map(|(_, version)| version).collect())
}
