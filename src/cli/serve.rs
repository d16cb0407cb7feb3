//! `claviger serve`: the daemon.

use std::path::PathBuf;

use super::failure::{Exit, Failure};
use crate::daemon::config::path_or_default;
use crate::daemon::serve::{self, Options, ServeError};

/// The arguments of `claviger serve`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  claviger serve --config /etc/claviger/claviger.toml")]
pub struct Args {
    /// The configuration, TOML [default: $CLAVIGER_CONFIG, else /etc/claviger/claviger.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Run as the demo's daemon: accept its CA, and end with the demo
    #[arg(long, hide = true)]
    demo: bool,
}

/// Serves until it is told to stop.
pub fn run(args: &Args) -> Result<(), Failure> {
    let config = path_or_default(args.config.clone());
    serve::run(&Options { config, demo: args.demo }).map_err(|error| {
        // As `config check` tells them: a line each, and fields for machines.
        if let ServeError::Config(errors) = error {
            return errors.into();
        }
        let exit = match &error {
            ServeError::Required { .. } | ServeError::Listen { .. } => Exit::Unavailable,
            ServeError::System(_) => Exit::Failure,
            _ => Exit::Configuration,
        };
        Failure::new(exit, error.to_string())
    })
}
