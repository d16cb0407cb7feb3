//! Where a daemon's state directory is: by its configuration, or by its own name.

use std::path::{Path, PathBuf};

use super::failure::{Exit, Failure};
use crate::daemon::config::path_or_default;

/// The options of commands that need the state directory and nothing else of the configuration.
#[derive(clap::Args, Debug)]
pub struct StateDir {
    /// The daemon's configuration, which names its state directory [default: $CLAVIGER_CONFIG, else
    /// /etc/claviger/claviger.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The daemon's state directory itself
    #[arg(long, value_name = "DIR", conflicts_with = "config")]
    state_dir: Option<PathBuf>,
}

impl StateDir {
    /// The folder. Reads `server.state_dir` of the configuration and nothing else, so that the rest
    /// may be wrong.
    pub fn find(&self) -> Result<PathBuf, Failure> {
        match &self.state_dir {
            Some(folder) => Ok(folder.clone()),
            None => in_configuration(&path_or_default(self.config.clone())),
        }
    }
}

/// The folder that a configuration names.
pub fn in_configuration(config: &Path) -> Result<PathBuf, Failure> {
    let file = config.display();
    let wrong = |reason: String| {
        Failure::new(Exit::Configuration, format!("{file}: {reason}"))
            .advise("Name the right file with --config, or the directory with --state-dir.")
    };
    let text = std::fs::read_to_string(config).map_err(|error| wrong(error.to_string()))?;
    let table: toml::Table = text
        .parse()
        .map_err(|error: toml::de::Error| wrong(format!("not TOML: {}", error.message())))?;
    let state_dir = table.get("server").and_then(|server| server.get("state_dir"));
    let state_dir = state_dir.and_then(toml::Value::as_str);
    let folder = config.parent().unwrap_or(Path::new(""));
    state_dir
        .map(|state_dir| folder.join(state_dir))
        .ok_or_else(|| wrong("[server] has no state_dir".to_owned()))
}
