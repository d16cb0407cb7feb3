//! `claviger pin`: forgets failed logins, so that a token's PIN is tried again.

use std::path::Path;
use std::time::{Duration, SystemTime};

use clap::Subcommand;
use claviger_pkcs11::pin_latch::{self, LatchError, LatchedToken};
use serde_json::json;

use super::daemon_user::DaemonUser;
use super::failure::{Exit, Failure};
use super::input_output;
use super::state_dir::StateDir;
use crate::daemon::operations::control;

/// The commands below `claviger pin`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Forget the failed logins of a token, once its PIN's file holds the right PIN
    #[command(after_help = "\
Examples:
  claviger pin clear --serial 2f3a9b1c4d5e6f70
  claviger pin clear --state-dir /var/lib/claviger --all")]
    Clear(ClearArgs),
}

/// The arguments of `claviger pin clear`.
#[derive(clap::Args, Debug)]
#[command(group(clap::ArgGroup::new("which").required(true)))]
pub struct ClearArgs {
    #[command(flatten)]
    state_dir: StateDir,
    /// The token's serial number; all tokens that share it are meant
    #[arg(long, group = "which")]
    serial: Option<String>,
    /// Every token that has failed logins
    #[arg(long, group = "which")]
    all: bool,
}

/// Runs one of them.
pub fn run(command: &Command, json: bool) -> Result<(), Failure> {
    let Command::Clear(args) = command;
    let state_dir = args.state_dir.find()?;
    if let Some(user) = DaemonUser::of(Some(&state_dir))? {
        user.enter()?;
    }
    let latched = pin_latch::list(&state_dir)?;
    let mut serials: Vec<_> = match &args.serial {
        Some(serial) => vec![serial.clone()],
        None => latched.iter().map(|token| token.serial.clone()).collect(),
    };
    serials.dedup();
    let mut cleared = Vec::new();
    for serial in serials {
        if pin_latch::clear(&state_dir, &serial)? {
            cleared.push(serial);
        }
    }
    // Where a daemon runs, its audit log says who did it.
    if !cleared.is_empty() {
        let command = control::Command::PinCleared { tokens: cleared.clone() };
        let _ = control::ask::<()>(&state_dir, &command, Duration::from_secs(5));
    }
    if let (Some(serial), true) = (&args.serial, cleared.is_empty()) {
        return Err(nothing_to_clear(serial, &latched, &state_dir));
    }
    if json {
        return input_output::print(&json!({ "cleared": cleared }).to_string());
    }
    input_output::print(&match cleared.as_slice() {
        [] => "no token has failed logins".to_owned(),
        cleared => {
            format!("cleared {}: the PIN is tried again at the next login", cleared.join(", "))
        }
    })
}

fn nothing_to_clear(serial: &str, latched: &[LatchedToken], state_dir: &Path) -> Failure {
    let message = format!("token {serial:?} has no failed logins in {}", state_dir.display());
    let others: Vec<_> = latched.iter().map(describe).collect();
    Failure::new(Exit::Failure, message).advise(match others.as_slice() {
        [] => "No token has; is it the daemon's state directory?".to_owned(),
        others => format!("These have: {}.", others.join("; ")),
    })
}

fn describe(token: &LatchedToken) -> String {
    let minutes =
        SystemTime::now().duration_since(token.since).map_or(0, |since| since.as_secs() / 60);
    let LatchedToken { serial, label, attempts, refused, .. } = token;
    format!(
        "{serial:?} (token {label:?}, {attempts} logins, {refused} refused, the first {minutes} minutes \
         ago)"
    )
}

impl From<LatchError> for Failure {
    fn from(error: LatchError) -> Self {
        let message = match std::error::Error::source(&error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        };
        Self::new(Exit::Failure, message)
    }
}
