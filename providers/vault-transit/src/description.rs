//! What the server says about a key: its type, its versions, their public halves.

use std::collections::BTreeMap;

use claviger_provider_api::{Cause, Error, PublicKey};
use serde::Deserialize;
use serde_json::Value;

use crate::client::{Answer, Request};
use crate::error::{Failure, Operation};
use crate::locator::Locator;

/// The body of `GET mount/keys/key`.
#[derive(Deserialize)]
struct Body {
    data: Description,
}

#[derive(Deserialize)]
struct Description {
    #[serde(rename = "type")]
    key_type: String,
    /// Symmetric keys have numbers here, not objects.
    keys: BTreeMap<String, Value>,
    latest_version: u32,
    min_decryption_version: u32,
    /// Versions below it were trimmed: nothing brings them back.
    #[serde(default)]
    min_available_version: u32,
    /// OpenBao's: kept, and of no use until it is restored.
    #[serde(default)]
    soft_deleted: bool,
    #[serde(default)]
    exportable: bool,
    #[serde(default)]
    allow_plaintext_backup: bool,
}

/// A version's public half, and what its owner should know.
#[derive(Debug)]
pub(crate) struct Version {
    pub(crate) public_key: PublicKey,
    /// Whether the server would hand out the private half to those who may ask.
    pub(crate) exportable: bool,
}

/// Asks for a key's description.
pub(crate) fn request(locator: &Locator) -> Request {
    Request::get(Operation::ReadKey, format!("{}/keys/{}", locator.mount, locator.key))
}

/// Finds the version that a locator names.
pub(crate) fn read(answer: &Answer, locator: &Locator) -> Result<Version, Error> {
    let Body { data } = answer.json()?;
    version(&data, locator)
}

/// The number of the latest version.
pub(crate) fn latest(answer: &Answer) -> Result<u32, Error> {
    let Body { data } = answer.json()?;
    Ok(data.latest_version)
}

fn version(data: &Description, locator: &Locator) -> Result<Version, Error> {
    let refuse =
        |cause, reason: String| Err(Error::needs_operator(cause, format!("{locator}: {reason}")));
    let Description { key_type, keys, latest_version, min_decryption_version, .. } = data;
    if !matches!(key_type.as_str(), "rsa-2048" | "rsa-3072" | "rsa-4096") {
        let reason =
            format!("the key is of type {key_type:?}; rsa-2048, rsa-3072 and rsa-4096 can be used");
        return refuse(Cause::KeyUnfit, reason);
    }
    if data.soft_deleted {
        let reason = format!(
            "the key is soft-deleted; restore it with `bao write -f {}/keys/{}/soft-delete-restore`",
            locator.mount, locator.key
        );
        return refuse(Cause::KeyDisabled, reason);
    }
    if locator.version > *latest_version {
        let reason = format!("there is no such version; the latest is {latest_version}");
        return refuse(Cause::KeyAbsent, reason);
    }
    if locator.version < data.min_available_version {
        let reason = format!(
            "the version was trimmed: the oldest that is left is min_available_version, {}; restore \
             a backup of the key, or disable the version here",
            data.min_available_version
        );
        return refuse(Cause::KeyAbsent, reason);
    }
    if locator.version < *min_decryption_version {
        let reason = format!(
            "the version is below the key's min_decryption_version, {min_decryption_version}; \
             lower that, or disable the version here"
        );
        return refuse(Cause::KeyDisabled, reason);
    }
    let Some(version) = keys.get(&locator.version.to_string()) else {
        let reason = "the server has no such version any more; it may have been trimmed";
        return refuse(Cause::KeyAbsent, reason.to_owned());
    };
    let Some(pem) = version.get("public_key").and_then(Value::as_str) else {
        return Err(Failure::Malformed("a version without public_key".into()).into());
    };
    let spki = claviger_files::pem::public_key(pem.as_bytes())
        .map_err(|error| Failure::Malformed(format!("a public key that is no PEM: {error}")))?;
    let public_key = PublicKey::from_spki(&spki).map_err(|error| {
        Error::needs_operator(Cause::KeyUnfit, format!("{locator} cannot be used: {error}"))
    })?;
    Ok(Version { public_key, exportable: data.exportable || data.allow_plaintext_backup })
}

#[cfg(test)]
mod tests {
    use super::*;
    use claviger_provider_api::ErrorKind;

    fn described(data: &str, locator: &str) -> Error {
        let data: Description = serde_json::from_str(data).unwrap();
        version(&data, &locator.parse().unwrap()).unwrap_err()
    }

    #[test]
    fn a_version_that_cannot_serve_is_refused_with_the_reason() {
        let rsa = r#"{"type":"rsa-2048","keys":{"2":{"public_key":"x"},"4":{}},"latest_version":4,"min_decryption_version":2}"#;
        let trimmed = r#"{"type":"rsa-2048","keys":{"4":{}},"latest_version":4,"min_decryption_version":4,"min_available_version":4}"#;
        let deleted = r#"{"type":"rsa-2048","keys":{"1":{"public_key":"x"}},"latest_version":1,"min_decryption_version":1,"soft_deleted":true}"#;
        let aes = r#"{"type":"aes256-gcm96","keys":{"1":1700000000},"latest_version":1,"min_decryption_version":1}"#;
        for (data, locator, said, cause) in [
            (rsa, "transit/k:1", "lower that", Cause::KeyDisabled),
            (rsa, "transit/k:5", "the latest is 4", Cause::KeyAbsent),
            (rsa, "transit/k:3", "trimmed", Cause::KeyAbsent),
            (trimmed, "transit/k:1", "min_available_version, 4", Cause::KeyAbsent),
            (deleted, "transit/k:1", "soft-delete-restore", Cause::KeyDisabled),
            (aes, "transit/k:1", "aes256-gcm96", Cause::KeyUnfit),
        ] {
            let error = described(data, locator);
            assert_eq!(error.kind(), ErrorKind::OperatorNeeded);
            assert_eq!(error.cause(), Some(cause), "{error}");
            assert!(error.to_string().contains(said), "{error}");
        }
        // Lowering min_decryption_version brings a trimmed version not back.
        assert!(!described(trimmed, "transit/k:1").to_string().contains("lower"));
        for locator in ["transit/k:2", "transit/k:4"] {
            assert_eq!(described(rsa, locator).kind(), ErrorKind::Unavailable, "{locator}");
        }
    }
}
