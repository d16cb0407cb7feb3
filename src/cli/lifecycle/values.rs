//! Tries stored values: each is rewrapped by the daemon, and what came out is unwrapped and compared.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use claviger_client::{
    Client, Error, Recipient, RewrapItem, RewrapSource, RewrapTarget, UnwrapOptions,
};
use claviger_files::NewMode;

use crate::cli::connection::ConnectionArgs;
use crate::cli::failure::{Exit, Failure};
use crate::cli::{input_output, stored};
use crate::daemon::serve::protect_memory;

/// What to try.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    pub(super) key: &'a str,
    /// The version that is to be done without.
    pub(super) old: u32,
    /// The version that wraps.
    pub(super) now: u32,
    /// Of the stored values; empty: each version's default.
    pub(super) algorithm: String,
    pub(super) label: Vec<u8>,
    pub(super) files: &'a [PathBuf],
    /// Where new values go.
    pub(super) out: Option<&'a Path>,
}

/// What came of it.
#[derive(Debug, Default)]
pub(super) struct Tried {
    /// How many values the old version has not wrapped.
    pub(super) independent: usize,
    /// Those that it has.
    pub(super) rewrapped: Vec<PathBuf>,
    /// Those that could not be tried, and why.
    pub(super) failed: Vec<(PathBuf, Failure)>,
}

impl Tried {
    /// Whether no value needs the old version.
    pub(super) fn is_free(&self) -> bool {
        self.rewrapped.is_empty() && self.failed.is_empty()
    }
}

/// Tries every value, one after the other.
pub(super) fn try_all(plan: &Plan<'_>, connection: &ConnectionArgs) -> Result<Tried, Failure> {
    protect_memory();
    check_out(plan)?;
    connection.call(async |client| {
        let mut tried = Tried::default();
        for file in plan.files {
            match try_one(plan, client, file).await {
                Ok(true) => tried.rewrapped.push(file.clone()),
                Ok(false) => tried.independent += 1,
                Err(failure) => tried.failed.push((file.clone(), failure)),
            }
        }
        Ok(tried)
    })
}

/// Every new value has a name of its own, and stands in the place of no value that was given.
fn check_out(plan: &Plan<'_>) -> Result<(), Failure> {
    let Some(folder) = plan.out else { return Ok(()) };
    std::fs::create_dir_all(folder).map_err(|error| {
        Failure::new(Exit::Usage, format!("--out: {}: {error}", folder.display()))
    })?;
    let mut names = HashSet::new();
    for file in plan.files {
        let refused =
            |reason: &str| Failure::new(Exit::Usage, format!("{}: {reason}", file.display()));
        let name = file.file_name().ok_or_else(|| refused("is no file"))?;
        if !names.insert(name) {
            return Err(refused("another file has the same name: --out has one of each name"));
        }
        if folder
            .join(name)
            .canonicalize()
            .ok()
            .is_some_and(|new| file.canonicalize().ok() == Some(new))
        {
            return Err(refused("would be overwritten: give another folder with --out"));
        }
    }
    Ok(())
}

/// Whether the old version has wrapped the value; then its new form is written.
async fn try_one(plan: &Plan<'_>, client: &Client, file: &Path) -> Result<bool, Failure> {
    let content = stored::read_file(file, "stored value")?;
    let wrapped = stored::wrapped_value(&content)?;
    let rewrapped = client.rewrap(&item(plan, &wrapped)).await?;
    let target = rewrapped.target_key_version.unwrap_or_default();
    if target != plan.now {
        let message = format!(
            "the daemon wraps under version {target}, and the configuration says {}",
            plan.now
        );
        return Err(Failure::new(Exit::Configuration, message).advise("Reload the daemon first."));
    }
    let before = unwrap(plan, client, &wrapped, rewrapped.source_key_version).await?;
    let after = unwrap(plan, client, &rewrapped.wrapped, plan.now).await?;
    if aws_lc_rs::constant_time::verify_slices_are_equal(&before, &after).is_err() {
        let message = "its new form does not hold the same key material";
        return Err(Failure::new(Exit::Failure, message).advise("Do not use what was written."));
    }
    if rewrapped.source_key_version != plan.old {
        return Ok(false);
    }
    if let Some(folder) = plan.out {
        let new = folder.join(file.file_name().unwrap_or_default());
        let form = if content == wrapped {
            rewrapped.wrapped
        } else {
            format!("{}\n", *input_output::encode(&rewrapped.wrapped)).into_bytes()
        };
        claviger_files::replace(&new, &form, NewMode::ByUmask).map_err(|error| {
            Failure::new(Exit::Failure, format!("{}: cannot be written: {error}", new.display()))
        })?;
    }
    Ok(true)
}

fn item(plan: &Plan<'_>, wrapped: &[u8]) -> RewrapItem {
    RewrapItem {
        source: RewrapSource {
            key: plan.key.to_owned(),
            key_version: None,
            algorithm: plan.algorithm.clone(),
            label: plan.label.clone(),
        },
        wrapped: wrapped.to_vec(),
        target: RewrapTarget {
            recipient: Recipient::Key(plan.key.to_owned()),
            algorithm: plan.algorithm.clone(),
            label: plan.label.clone(),
        },
        max_key_material_len: None,
        approval: None,
    }
}

async fn unwrap(
    plan: &Plan<'_>,
    client: &Client,
    wrapped: &[u8],
    version: u32,
) -> Result<zeroize::Zeroizing<Vec<u8>>, Error> {
    let options = UnwrapOptions {
        key_version: Some(version),
        algorithm: plan.algorithm.clone(),
        label: plan.label.clone(),
    };
    Ok(client.unwrap_key(plan.key, wrapped, &options).await?.key_material)
}
