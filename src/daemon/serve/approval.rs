//! Four eyes: a configuration is accepted only with the signatures that the policy asks for.
//!
//! The policy in force is kept in the state directory. So one who can edit the file alone can neither grant
//! himself a key nor take the policy out: the signers of the policy before must have signed that.

use std::fs;
use std::io;
use std::path::Path;

use claviger_files::NewMode;
use claviger_provider_api::public_key::sha256;
use serde::{Deserialize, Serialize};

use crate::daemon::config::{Config, Policy, Signature, Signer};

/// The file in the state directory.
const KEPT: &str = "policy.json";
/// A signature is far shorter.
const MOST_BYTES: u64 = 64 << 10;
/// Files that are read from the folder of signatures at most.
const MOST_FILES: usize = 256;

/// Who has approved a configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Approval {
    /// The names of those who signed it, in the policy's order; empty where there is no policy.
    pub signers: Vec<String>,
}

/// Why a configuration is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum NotApproved {
    /// Fewer have signed than must.
    #[error("{}", missing(.0))]
    TooFew(Box<Missing>),
    /// The one that was accepted last does not come before it.
    #[error(
        "has serial {found}, and the configuration in force, which is another one, has {kept}: an older one \
         cannot be put back; write serial = {next} and have it signed", next = kept.saturating_add(1)
    )]
    Older {
        /// In the file.
        found: u32,
        /// That was accepted last.
        kept: u32,
    },
    /// What is kept of the policy cannot be read or written.
    #[error("the policy in force cannot be kept: {path}: {error}")]
    State {
        /// The file.
        path: String,
        /// What the system said.
        error: io::Error,
    },
    /// A policy without a place to keep it would be gone after a restart.
    #[error(
        "needs server.state_dir, which keeps the policy over restarts; write state_dir = \"/var/lib/claviger\""
    )]
    NoState,
}

/// Who has signed, who has not, and what is wrong with the signatures that do not count.
#[derive(Debug, Default)]
pub struct Missing {
    threshold: usize,
    signed: Vec<String>,
    absent: Vec<String>,
    refused: Vec<String>,
    /// The policy is the one before, which the file changes or leaves out.
    is_of_before: bool,
    folder: String,
}

/// What is kept of the policy in force.
#[derive(Debug, Deserialize, PartialEq, Serialize)]
struct Kept {
    threshold: usize,
    serial: u32,
    /// Of the canonical form of the configuration in force.
    sha256: String,
    /// Names and keys.
    signers: Vec<(String, String)>,
}

/// Sees that this configuration has the signatures that the policy in force, and its own, ask for. Writes
/// nothing.
pub fn check(config: &Config) -> Result<Approval, NotApproved> {
    let kept = config.server.state_dir.as_deref().map_or(Ok(None), read_kept)?;
    if config.policy.is_none() && kept.is_none() {
        return Ok(Approval::default());
    }
    if config.policy.is_some() && config.server.state_dir.is_none() {
        return Err(NotApproved::NoState);
    }
    let text = canonical(config);
    let signatures = Signatures::read(&config.signatures_folder());
    let mut approval = Approval::default();
    if let Some(kept) = &kept {
        let found = config.policy.as_ref().map_or(u32::MAX, |policy| policy.serial);
        if found <= kept.serial && hex::encode(sha256(text.as_bytes())) != kept.sha256 {
            return Err(NotApproved::Older { found, kept: kept.serial });
        }
        let signers = kept.signers();
        approval.signers = signatures.approve(&signers, kept.threshold, text.as_bytes(), true)?;
    }
    if let Some(Policy { signers, threshold, .. }) = &config.policy {
        approval.signers = signatures.approve(signers, *threshold, text.as_bytes(), false)?;
    }
    Ok(approval)
}

/// As [`check`]; afterwards the configuration's policy is the one in force.
pub fn accept(config: &Config) -> Result<Approval, NotApproved> {
    let approval = check(config)?;
    if let Some(state_dir) = &config.server.state_dir {
        let kept = config.policy.as_ref().map(|policy| Kept::of(policy, &canonical(config)));
        keep(state_dir, kept)?;
    }
    Ok(approval)
}

fn canonical(config: &Config) -> String {
    Config::canonical(&config.source).unwrap_or_default()
}

/// The signatures of a folder, with the names of their files.
struct Signatures {
    folder: String,
    found: Vec<(String, Signature)>,
}

impl Signatures {
    /// Those that can be read; other files are passed over.
    fn read(folder: &Path) -> Self {
        let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
        let mut found: Vec<_> = entries
            .take(MOST_FILES)
            .filter(|entry| entry.metadata().is_ok_and(|file| file.len() <= MOST_BYTES))
            .filter_map(|entry| {
                let text = fs::read_to_string(entry.path()).ok()?;
                Some((entry.file_name().to_string_lossy().into_owned(), Signature::parse(&text)?))
            })
            .collect();
        found.sort_by(|(one, _), (other, _)| one.cmp(other));
        Self { folder: folder.display().to_string(), found }
    }

    /// The names of the signers that have signed, if they are enough.
    fn approve(
        &self,
        signers: &[Signer],
        threshold: usize,
        text: &[u8],
        is_of_before: bool,
    ) -> Result<Vec<String>, NotApproved> {
        let mut all = Missing { threshold, is_of_before, ..Missing::default() };
        let mut used = vec![false; self.found.len()];
        for Signer { name, key } in signers {
            let mut has_signed = false;
            for (at, (file, signature)) in self.found.iter().enumerate() {
                use crate::daemon::config::SignatureRefused::AnotherKey;
                match signature.verify(key, text) {
                    Ok(()) => (has_signed, used[at]) = (true, true),
                    Err(AnotherKey) => {}
                    Err(reason) => {
                        used[at] = true;
                        all.refused.push(format!("{file} of {name} {reason}"));
                    }
                }
            }
            if has_signed { &mut all.signed } else { &mut all.absent }.push(name.clone());
        }
        if all.signed.len() >= threshold {
            return Ok(all.signed);
        }
        let others = self.found.iter().zip(used).filter(|(_, used)| !used);
        all.refused.extend(others.map(|((file, _), _)| format!("{file} is by no signer's key")));
        all.folder.clone_from(&self.folder);
        Err(NotApproved::TooFew(Box::new(all)))
    }
}

fn missing(all: &Missing) -> String {
    let Missing { threshold, signed, absent, refused, is_of_before, folder } = all;
    let names =
        |names: &[String]| if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    let of = if *is_of_before {
        " of the policy in force, which the file cannot change alone,"
    } else {
        ""
    };
    let mut text = format!(
        "{} of the {threshold} signatures{of} that are needed: signed by {}; missing: {}",
        signed.len(),
        names(signed),
        names(absent)
    );
    for reason in refused {
        text.extend(["; ", reason]);
    }
    let to_do = "; sign what `claviger config canonical` prints, and put the signatures into ";
    text.extend([to_do, folder]);
    text
}

impl Kept {
    fn of(policy: &Policy, canonical: &str) -> Self {
        let signers = policy.signers.iter();
        let signers = signers.map(|signer| (signer.name.clone(), signer.key.to_string())).collect();
        let (threshold, serial) = (policy.threshold, policy.serial);
        Self { threshold, serial, sha256: hex::encode(sha256(canonical.as_bytes())), signers }
    }

    fn signers(&self) -> Vec<Signer> {
        let signers = self
            .signers
            .iter()
            .filter_map(|(name, key)| Some(Signer { name: name.clone(), key: key.parse().ok()? }));
        signers.collect()
    }
}

fn read_kept(state_dir: &Path) -> Result<Option<Kept>, NotApproved> {
    let path = state_dir.join(KEPT);
    let failed = |error| NotApproved::State { path: path.display().to_string(), error };
    match fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|error| failed(error.into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(error)),
    }
}

fn keep(state_dir: &Path, kept: Option<Kept>) -> Result<(), NotApproved> {
    let path = state_dir.join(KEPT);
    let failed = |error| NotApproved::State { path: path.display().to_string(), error };
    if read_kept(state_dir)? == kept {
        return Ok(());
    }
    match kept {
        Some(kept) => {
            let text = serde_json::to_vec(&kept).map_err(|error| failed(error.into()))?;
            claviger_files::replace(&path, &text, NewMode::Exactly(0o600)).map_err(failed)
        }
        None => fs::remove_file(&path).map_err(failed),
    }
}
