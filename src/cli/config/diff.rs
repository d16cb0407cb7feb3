//! `claviger config diff`: what a reload would change, and whether it would be refused.

mod options;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use serde_json::json;

use super::Args;
use crate::cli::failure::{Exit, Failure};
use crate::cli::input_output;
use crate::cli::state_dir;
use crate::daemon::config::{Config, changes, needs_restart, path_or_default};
use crate::daemon::operations::control::{self, InForce};
use options::Difference;

pub(super) const AFTER_HELP: &str = "\
What is read is what a reload would read: whether files, backends and keys behind it are well, it finds
out itself.

Exit codes:
   0  nothing would change
   1  something would change
  69  no daemon answers
  78  a reload would refuse it: something is wrong, or needs a restart

Examples:
  sudo claviger config diff
  sudo claviger config diff --config claviger.toml.new
  claviger config diff --from old.toml --config new.toml --json | jq .options";

/// How long the daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// The arguments of `claviger config diff`.
#[derive(clap::Args, Debug)]
pub struct DiffArgs {
    #[command(flatten)]
    args: Args,
    /// Compare it with this file instead of what the running daemon has in force
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// The running daemon's state directory [default: the one of the configuration]
    #[arg(long, value_name = "DIR", conflicts_with = "from")]
    state_dir: Option<PathBuf>,
}

/// Compares them.
pub(super) fn run(args: &DiffArgs, json: bool) -> Result<ExitCode, Failure> {
    let path = path_or_default(args.args.config.clone());
    let before = match &args.from {
        Some(file) => Config::load(file)?,
        None => in_force(args.state_dir.as_deref(), &path)?,
    };
    let after = Config::load(&path)?;
    after.check_for_serve()?;
    let compared = Compared::of(&before, &after);
    let text = if json { compared.to_json(&before, &after) } else { compared.to_text() };
    input_output::print(&text)?;
    Ok(compared.exit())
}

/// What the running daemon has in force.
fn in_force(state_dir: Option<&Path>, config: &Path) -> Result<Config, Failure> {
    let state_dir =
        state_dir.map_or_else(|| state_dir::in_configuration(config), |known| Ok(known.into()))?;
    let InForce { file, text } =
        control::ask(&state_dir, &control::Command::Configuration, PATIENCE)?;
    Ok(Config::parse(&file, &text)?)
}

/// What is different.
struct Compared {
    /// A phrase each, as a reload logs it.
    changes: Vec<String>,
    /// Single options, as they stand in the files.
    options: Vec<Difference>,
    needs_restart: Vec<&'static str>,
}

impl Compared {
    fn of(before: &Config, after: &Config) -> Self {
        let changes = changes(before, after);
        // Another way to write the same is no change.
        let options = if changes.is_empty() {
            Vec::new()
        } else {
            options::differences(&before.source, &after.source)
        };
        Self { changes, options, needs_restart: needs_restart(before, after) }
    }

    fn exit(&self) -> ExitCode {
        match (&*self.changes, &*self.needs_restart) {
            ([], _) => ExitCode::SUCCESS,
            (_, []) => ExitCode::from(Exit::Failure as u8),
            _ => ExitCode::from(Exit::Configuration as u8),
        }
    }

    fn to_text(&self) -> String {
        if self.changes.is_empty() {
            return "nothing would change".to_owned();
        }
        let mut lines = vec!["would change:".to_owned()];
        lines.extend(self.changes.iter().map(|change| format!("  {change}")));
        lines.push("by these options:".to_owned());
        lines.extend(self.options.iter().map(|option| format!("  {option}")));
        if !self.needs_restart.is_empty() {
            let options = self.needs_restart.join(", ");
            lines.push(format!("a reload would refuse it; these need a restart: {options}"));
        }
        lines.join("\n")
    }

    fn to_json(&self, before: &Config, after: &Config) -> String {
        let file =
            |config: &Config| json!({ "file": config.path, "sha256": hex::encode(config.sha256) });
        let said = json!({
            "from": file(before),
            "to": file(after),
            "changes": self.changes,
            "options": self.options.iter().map(Difference::to_json).collect::<Vec<_>>(),
            "needs_restart": self.needs_restart,
        });
        said.to_string()
    }
}
