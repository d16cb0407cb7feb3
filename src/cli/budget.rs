//! `claviger budget`: what a caller has spent of `failed_unwraps`, asked of the running daemon.

use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;
use serde_json::json;

use super::failure::{Exit, Failure};
use super::input_output;
use super::state_dir::StateDir;
use crate::daemon::operations::control::{self, BudgetSpent, NotDone};

/// How long the daemon may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// The commands below `claviger budget`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show how many distinct values of a caller have failed to unwrap with a key
    #[command(after_help = "\
Examples:
  sudo claviger budget show key-connector user-keys")]
    Show(Args),
    /// Set a caller's failed unwraps on a key to zero; the audit log records who did
    #[command(after_help = "\
Examples:
  sudo claviger budget reset key-connector user-keys")]
    Reset(Args),
}

/// The arguments of `claviger budget show` and `claviger budget reset`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The caller's name in the configuration
    caller: String,
    /// The key's name in the configuration
    key: String,
    #[command(flatten)]
    state_dir: StateDir,
}

/// Runs one of them.
pub fn run(command: &Command, json: bool) -> Result<(), Failure> {
    let (args, is_reset) = match command {
        Command::Show(args) => (args, false),
        Command::Reset(args) => (args, true),
    };
    let Args { caller, key, state_dir } = args;
    let (caller, key) = (caller.clone(), key.clone());
    let asked = if is_reset {
        control::Command::BudgetReset { caller: caller.clone(), key: key.clone() }
    } else {
        control::Command::BudgetShow { caller: caller.clone(), key: key.clone() }
    };
    let folder: PathBuf = state_dir.find()?;
    let spent: BudgetSpent = control::ask(&folder, &asked, PATIENCE)?;
    if json {
        let result = json!({ "caller": caller, "key": key, "reset": is_reset, "spent": spent });
        return input_output::print(&result.to_string());
    }
    let told = describe(&spent);
    input_output::print(&if is_reset { format!("given back: {told}") } else { told })
}

fn describe(spent: &BudgetSpent) -> String {
    let BudgetSpent { limit, window_s, failed, unanswered, next_in_s } = spent;
    let (Some(limit), Some(window)) = (limit, window_s) else {
        return "failed_unwraps is off for this caller".to_owned();
    };
    let silent = match unanswered {
        0 => String::new(),
        silent => format!(", {silent} of them without an answer of the backend"),
    };
    let next = next_in_s.map(|next| format!("; the oldest leaves the window in {next} s"));
    let next = next.unwrap_or_default();
    format!("{failed} of {limit} distinct values failed within {window} s{silent}{next}")
}

impl From<NotDone> for Failure {
    fn from(error: NotDone) -> Self {
        let message = error.to_string();
        match error {
            NotDone::NotReached { .. } => Self::new(Exit::Unavailable, message).advise(
                "Is the daemon running, and are you root or its user? Name its state directory with --state-dir.",
            ),
            NotDone::Refused(_) => Self::new(Exit::Failure, message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_spent_is_told_in_one_line() {
        let spent = BudgetSpent {
            limit: Some(100),
            window_s: Some(3600),
            failed: 7,
            unanswered: 2,
            next_in_s: Some(12),
        };
        assert_eq!(
            describe(&spent),
            "7 of 100 distinct values failed within 3600 s, 2 of them without an answer of the backend; the oldest leaves the window in 12 s"
        );
        let off = BudgetSpent { limit: None, window_s: None, ..spent };
        assert_eq!(describe(&off), "failed_unwraps is off for this caller");
    }
}
