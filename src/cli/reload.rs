//! `claviger reload`: has the running daemon read its configuration again, and waits for the outcome.

use std::time::Duration;

use serde_json::json;

use super::failure::{Exit, Failure};
use super::input_output;
use super::state_dir::StateDir;
use crate::daemon::operations::control::{self, NotDone, Reloaded};

/// A reload waits ten seconds for new keys to open; the rest is reading files.
const PATIENCE: Duration = Duration::from_mins(1);

/// The arguments of `claviger reload`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Exit codes:
   0  the configuration as it is in the file is in force
  69  no daemon answers
  78  it was refused: the old configuration stays in force

Examples:
  sudo claviger reload
  sudo claviger reload --config /etc/claviger/claviger.toml")]
pub struct Args {
    #[command(flatten)]
    state_dir: StateDir,
}

/// Reloads; says what changed, or why nothing did.
pub fn run(args: &Args, json: bool) -> Result<(), Failure> {
    let folder = args.state_dir.find()?;
    let reloaded: Reloaded = control::ask(&folder, &control::Command::Reload, PATIENCE).map_err(
        |error| match error {
            NotDone::Refused(reason) => {
                let message =
                    format!("{reason}\nreload refused: the old configuration stays in force");
                let fields = json!({ "reasons": reason.lines().collect::<Vec<_>>() });
                Failure::of_lines(Exit::Configuration, &message, fields)
            }
            error @ NotDone::NotReached { .. } => error.into(),
        },
    )?;
    if json {
        return input_output::print(
            &json!({ "ok": true, "changed": reloaded.changed }).to_string(),
        );
    }
    let changed = reloaded.changed.iter().map(|change| format!("\n  {change}"));
    input_output::print(&match reloaded.changed.as_slice() {
        [] => "reloaded: nothing in the configuration changed; files were read again".to_owned(),
        _ => format!("reloaded:{}", changed.collect::<String>()),
    })
}
