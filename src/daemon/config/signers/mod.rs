//! `[policy]`: who must have signed a configuration, and what their signatures are.

pub(crate) mod ssh;

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use claviger_configuration::Node;
use minisign_verify::PublicKey;

use super::values;
use ssh::{SshKey, SshSignature};

/// `[policy]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Who may sign; at least one.
    pub signers: Vec<Signer>,
    /// How many of them must have signed.
    pub threshold: usize,
    /// The folder with their signatures. Default: the file's name, and behind it `.signatures`.
    pub signatures: PathBuf,
    /// Counts up with each configuration that is signed, so that an older one is not put back. Default: 0.
    pub serial: u32,
}

/// One who may sign.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signer {
    /// The name in errors and in the audit log.
    pub name: String,
    /// The key.
    pub key: SignerKey,
}

/// The public key of a signer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SignerKey {
    /// `ssh = "ssh-ed25519 AAAA…"`.
    Ssh(SshKey),
    /// `minisign = "RWQ…"`.
    Minisign(String),
}

/// A signature, of one form or the other.
pub enum Signature {
    /// By `ssh-keygen -Y sign -n claviger-config`.
    Ssh(SshSignature),
    /// By `minisign -S`.
    Minisign(minisign_verify::Signature),
}

/// Why a signature does not count.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Its key is not the signer's.
    #[error("is not by this key")]
    AnotherKey,
    /// It is over another text: an older file, or one that was changed since.
    #[error("is over another configuration: an older one, or one that was changed since")]
    AnotherFile,
    /// It was made for something else.
    #[error("is for the namespace {0:?}; sign with `ssh-keygen -Y sign -n {namespace}`", namespace = ssh::NAMESPACE)]
    Namespace(String),
    /// A security key that was not touched.
    #[error("was made by a security key without a touch")]
    NoTouch,
    /// A kind that is not known.
    #[error("is of a kind that is not known; Ed25519 keys sign")]
    Unknown,
}

impl Signature {
    /// Reads what `ssh-keygen -Y sign` or `minisign -S` writes.
    pub fn parse(text: &str) -> Option<Self> {
        let ssh = SshSignature::parse(text).map(Self::Ssh);
        ssh.or_else(|| minisign_verify::Signature::decode(text).ok().map(Self::Minisign))
    }

    /// Whether this key made it over `text`.
    pub fn verify(&self, key: &SignerKey, text: &[u8]) -> Result<(), Refused> {
        match (self, key) {
            (Self::Ssh(signature), SignerKey::Ssh(key)) if signature.key == *key => {
                signature.verify(text)
            }
            (Self::Minisign(signature), SignerKey::Minisign(key)) => {
                let key = PublicKey::from_base64(key).map_err(|_| Refused::Unknown)?;
                key.verify(text, signature, true).map_err(|error| match error {
                    minisign_verify::Error::UnexpectedKeyId => Refused::AnotherKey,
                    minisign_verify::Error::InvalidSignature => Refused::AnotherFile,
                    _ => Refused::Unknown,
                })
            }
            _ => Err(Refused::AnotherKey),
        }
    }
}

impl FromStr for SignerKey {
    type Err = ();

    /// From the text of [`Self::to_string`].
    fn from_str(text: &str) -> Result<Self, ()> {
        let ssh = SshKey::parse(text).map(Self::Ssh);
        let is_minisign = || PublicKey::from_base64(text).is_ok();
        ssh.or_else(|| is_minisign().then(|| Self::Minisign(text.to_owned()))).ok_or(())
    }
}

impl fmt::Display for SignerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ssh(key) => key.fmt(f),
            Self::Minisign(key) => f.write_str(key),
        }
    }
}

/// `[policy]` of the file at `path`.
pub(super) fn policy(node: &Node<'_>, path: &Path) -> Policy {
    let node = node.with_fields(&["signers", "threshold", "signatures", "serial"]);
    let write = "write signers = [{ name = \"alice\", ssh = \"ssh-ed25519 AAAA…\" }]";
    let items =
        node.required("signers", write).some_items("a list of signers", format_args!("; {write}"));
    let items = items.unwrap_or_default();
    let (mut names, mut keys) = (HashMap::new(), HashMap::new());
    let signers: Vec<Signer> =
        items.iter().filter_map(|item| signer(item, &mut names, &mut keys)).collect();
    let threshold_node = node.required("threshold", "write threshold = 2");
    let threshold = threshold_node.integer(1, 1 << 10).unwrap_or(1) as usize;
    if signers.len() == items.len() && !items.is_empty() && threshold > signers.len() {
        threshold_node.error(format_args!(
            "is {threshold}, and there are {} signers: no configuration could be accepted",
            signers.len()
        ));
    }
    let signatures = node.field("signatures").and_then(|signatures| signatures.file_path());
    let signatures = signatures.unwrap_or_else(|| {
        let mut name = path.as_os_str().to_owned();
        name.push(".signatures");
        name.into()
    });
    let serial = node.optional("serial").integer(0, u32::MAX).unwrap_or(0);
    Policy { signers, threshold, signatures, serial }
}

fn signer(
    node: &Node<'_>,
    names: &mut HashMap<String, String>,
    keys: &mut HashMap<String, String>,
) -> Option<Signer> {
    let node = node.with_fields(&["name", "ssh", "minisign"]);
    let name_node = node.required("name", "write name = \"…\"");
    let name = name_node.parsed(values::name);
    if let Some(name) = &name
        && let Some(first) = names.insert(name.clone(), name_node.path().to_owned())
    {
        name_node.error(format_args!("{name:?} is the name at {first} too; write another"));
    }
    let key_node = match (node.field("ssh"), node.field("minisign")) {
        (Some(key), None) | (None, Some(key)) => key,
        (Some(_), Some(_)) => {
            node.error("has ssh and minisign; one signer has one key: leave one of them out");
            return None;
        }
        (None, None) => {
            node.missing("ssh", "write ssh = \"ssh-ed25519 AAAA…\", or minisign = \"RWQ…\"");
            return None;
        }
    };
    let key = key_node.parsed(|text| {
        text.parse::<SignerKey>().map_err(|()| {
            format!("{text:?} is no key that can sign; write an Ed25519 key as in a .pub file of ssh-keygen, or the second line of minisign.pub")
        })
    })?;
    // One person's key under two names would be two signers.
    if let Some(first) = keys.insert(key.to_string(), node.path().to_owned()) {
        key_node.error(format_args!("is the key of {first} too; each signer has a key of its own"));
    }
    Some(Signer { name: name?, key })
}
