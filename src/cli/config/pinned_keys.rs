//! Pinning: every replica is asked for its public key, and what they agree on goes into the file.

use std::collections::BTreeMap;
use std::fmt;

use claviger_provider_api::{Error, PublicKey};

use crate::cli::configuration_file::{self, version_table};
use crate::daemon::config::{Config, Replica, State, Version};

/// What the backends answered.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Answers {
    /// Versions without a pin, whose replicas all answered and agree.
    pub new: Vec<Pin>,
    /// Versions whose pin was confirmed by at least one replica.
    pub confirmed: Vec<Pin>,
    /// Replicas of pinned versions that did not answer, in words.
    pub silent: Vec<String>,
    /// What else an operator should know of the keys that were found.
    pub notes: Vec<String>,
}

/// The public key of a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pin {
    /// The key's name.
    pub key: String,
    /// The version's number.
    pub version: u32,
    /// The length of the modulus in bits.
    pub bits: usize,
    /// How many replicas answered.
    pub replicas: usize,
    /// SHA-256 of the SubjectPublicKeyInfo.
    pub sha256: [u8; 32],
}

/// Why nothing was pinned: one line per reason.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PinError(pub Vec<String>);

impl fmt::Display for PinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for PinError {}

/// What is said of a public key that is not the pinned one, and of one that another replica does not have:
/// whose key it is compared with, and what to do.
const CHANGED: (&str, &str) =
    ("pinned is", "find out who changed the key before you change the pin");
const DISAGREES: (&str, &str) = (
    "an earlier replica has",
    "the replicas of a version hold one key: correct the locator that is wrong",
);

/// Asks every replica of every version that may be used, one after the other. A version without a
/// pin needs the same answer from all of its replicas; an answer that differs from a pin is an
/// error too. Any error means that nothing is to be pinned.
pub(super) async fn ask_backends(
    config: &Config,
    ask: impl AsyncFn(&Replica, &Version) -> Result<PublicKey, Error>,
) -> Result<Answers, PinError> {
    let (mut answers, mut errors) = (Answers::default(), Vec::new());
    let mut names = names_of_pinned(config);
    for (key, version) in versions(config).filter(|(_, v)| v.state != State::Disabled) {
        let mut found: Option<Pin> = None;
        let mut failed = false;
        for replica in &version.replicas {
            let place = format!(
                "{key} version {}, replica {} in provider {}",
                version.version, replica.locator, replica.provider
            );
            let public_key = match ask(replica, version).await {
                Ok(public_key) => public_key,
                Err(error)
                    if version.public_key_sha256.is_some() && error.another_key().is_none() =>
                {
                    answers.silent.push(format!("{place}: {error}"));
                    continue;
                }
                Err(error) => {
                    errors.push(format!("{place}: {error}"));
                    failed = true;
                    continue;
                }
            };
            let sha256 = public_key.sha256();
            let expected = version.public_key_sha256.map(|pin| (pin, CHANGED));
            let expected = expected.or_else(|| found.as_ref().map(|pin| (pin.sha256, DISAGREES)));
            match expected {
                Some((pin, (whose, advice))) if pin != sha256 => {
                    errors.push(format!(
                        "{place}: has the public key {}, and {whose} {}; {advice}",
                        hex::encode(sha256),
                        hex::encode(pin)
                    ));
                    failed = true;
                }
                _ => {
                    let (key, bits) = (key.to_owned(), public_key.modulus_bits());
                    let first = Pin { key, version: version.version, bits, replicas: 0, sha256 };
                    found.get_or_insert(first).replicas += 1;
                }
            }
        }
        let Some(pin) = found.filter(|_| !failed) else { continue };
        if version.public_key_sha256.is_some() {
            answers.confirmed.push(pin);
            continue;
        }
        let name = format!("{key} version {}", version.version);
        if let Some(other) = names.insert(pin.sha256, name.clone()) {
            errors.push(format!(
                "{name}: has the public key {}, as has {other}; a key has one name and one version: correct the locator of one of them",
                hex::encode(pin.sha256)
            ));
        }
        answers.new.push(pin);
    }
    if errors.is_empty() { Ok(answers) } else { Err(PinError(errors)) }
}

fn versions(config: &Config) -> impl Iterator<Item = (&str, &Version)> {
    config
        .keys
        .iter()
        .flat_map(|(name, key)| key.versions.iter().map(move |version| (name.as_str(), version)))
}

fn names_of_pinned(config: &Config) -> BTreeMap<[u8; 32], String> {
    let name = |(key, version): (&str, &Version)| {
        Some((version.public_key_sha256?, format!("{key} version {}", version.version)))
    };
    versions(config).filter_map(name).collect()
}

/// Writes pins into the configuration's file. Comments and format are kept; a pin that is there is
/// never touched; the file is replaced at once, or not at all.
pub(super) fn write_pins(config: &Config, pins: &[Pin]) -> Result<(), PinError> {
    let one = |message: String| PinError(vec![message]);
    let shown = config.path.display();
    let text = config.text().ok_or_else(|| {
        one(format!(
            "{shown} was changed meanwhile and is left as it is; run `claviger config pin` again"
        ))
    })?;
    let filled = fill_in(&text, pins).map_err(|reason| one(format!("{shown}: {reason}")))?;
    let again = Config::parse(&config.path, &filled).map_err(|errors| {
        one(format!("{shown} is left as it is: with the pins it would be refused\n{errors}"))
    })?;
    for pin in pins {
        let versions = again.keys.get(&pin.key).map(|key| key.versions.as_slice());
        let version = versions.and_then(|v| v.iter().find(|v| v.version == pin.version));
        if version.is_none_or(|version| version.public_key_sha256 != Some(pin.sha256)) {
            return Err(one(format!("{shown} is left as it is: {} did not take its pin", pin.key)));
        }
    }
    configuration_file::replace(config, &filled)
        .map_err(|error| one(format!("{shown} cannot be replaced: {error}; add the lines by hand")))
}

/// The text with pins filled in where there are none.
fn fill_in(text: &str, pins: &[Pin]) -> Result<String, String> {
    configuration_file::edit(text, |document| {
        for pin in pins {
            let versions = configuration_file::versions(document, &pin.key);
            let table = versions.and_then(|versions| version_table(versions, pin.version));
            let table = table.ok_or_else(|| {
                format!("version {} of keys.{} was not found", pin.version, pin.key)
            })?;
            if table.contains_key("public_key_sha256") {
                return Err(format!(
                    "version {} of keys.{} has a pin already",
                    pin.version, pin.key
                ));
            }
            table.insert("public_key_sha256", toml_edit::value(hex::encode(pin.sha256)));
        }
        Ok(())
    })
}

#[cfg(all(test, feature = "software", feature = "pkcs11"))]
mod tests;
