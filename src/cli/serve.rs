//! `claviger serve`: the daemon.

use std::path::PathBuf;
use std::process::ExitCode;

/// The arguments of `claviger serve`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  claviger serve --config /etc/claviger/claviger.toml")]
pub struct Args {
    /// The configuration, TOML
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

/// Serves until it is told to stop.
pub fn run(args: &Args) -> ExitCode {
    crate::daemon::serve::run(&args.config)
}
