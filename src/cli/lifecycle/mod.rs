//! `claviger keys create`, `import`, `rotate`, `activate` and `retire`: what an operator does with keys, beside a
//! daemon that serves.
//!
//! - `create`, `import`, `rotate`: make a key in its backend, with an operator's login (`operator`), in the
//!   process of the user who must be able to read it (`making`)
//! - `byok`: writes a key for Azure's import
//! - `activate`: asks every daemon (`daemons`)
//! - `retire`: tries every stored value (`values`)
//! - `change`: what each of them changes in the configuration; `report`: printed or written

pub mod activate;
#[cfg(feature = "software")]
pub mod byok;
mod change;
pub mod create;
mod daemons;
#[cfg(feature = "software")]
pub mod import;
pub mod making;
mod operator;
mod report;
pub mod retire;
pub mod rotate;
mod values;

use std::path::PathBuf;

use super::failure::{Exit, Failure};
use crate::daemon::config::{Config, Key, State, Version, path_or_default};

/// The configuration, and whether to change it.
#[derive(clap::Args, Debug)]
pub struct ConfigurationArgs {
    /// The daemon's configuration, TOML [default: $CLAVIGER_CONFIG, else
    /// /etc/claviger/claviger.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Write the change into the configuration, comments kept, and keep the file as it was beside it
    /// [default: print the lines]
    #[arg(long)]
    write: bool,
}

impl ConfigurationArgs {
    /// Reads it. With `--write` it is seen first that the file can be replaced, so that no key is made
    /// for a configuration that stays as it is.
    fn load(&self) -> Result<Config, Failure> {
        let path = path_or_default(self.config.clone());
        let config = Config::load(&path)?;
        if self.write {
            let path = path.canonicalize().unwrap_or(path);
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            let folder = folder.unwrap_or(std::path::Path::new("."));
            let write = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
            let flags = rustix::fs::AtFlags::EACCESS;
            rustix::fs::accessat(rustix::fs::CWD, folder, write, flags).map_err(|error| {
                let message = format!("--write: {} cannot be replaced: {error}", path.display());
                Failure::new(Exit::Configuration, message)
                    .advise("Run it as root, or leave --write out and write the lines yourself.")
            })?;
        }
        Ok(config)
    }
}

/// The key of this name.
fn key<'a>(config: &'a Config, name: &str) -> Result<&'a Key, Failure> {
    config.keys.get(name).ok_or_else(|| {
        let known: Vec<&str> = config.keys.keys().map(String::as_str).collect();
        let message = format!("no key {name:?} in {}", config.path.display());
        Failure::new(Exit::Usage, message).advise(match known.as_slice() {
            [] => "`claviger keys create` makes one.".to_owned(),
            _ => format!("Its keys are: {}.", known.join(", ")),
        })
    })
}

/// The version that wraps: the newest active one.
fn wrapping_version(key: &Key) -> Option<&Version> {
    key.versions.iter().find(|version| version.state == State::Active)
}

/// A version by its number.
fn version<'a>(name: &str, key: &'a Key, number: u32) -> Result<&'a Version, Failure> {
    key.versions.iter().find(|version| version.version == number).ok_or_else(|| {
        let numbers: Vec<String> = key.versions.iter().map(|v| v.version.to_string()).collect();
        Failure::new(Exit::Usage, format!("{name} has no version {number}"))
            .advise(format!("Its versions are: {}.", numbers.join(", ")))
    })
}
