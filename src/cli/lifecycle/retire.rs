//! `claviger keys retire`: a version is disabled once every stored value was shown not to need it.

use std::path::PathBuf;

use serde_json::json;

use super::change::Change;
use super::report::Report;
use super::values::{Plan, Tried, try_all};
use super::{ConfigurationArgs, key, version, wrapping_version};
use crate::cli::connection::ConnectionArgs;
use crate::cli::failure::{Exit, Failure};
use crate::cli::wrap::ParameterArgs;
use crate::daemon::config::{Config, State, Version};

/// The arguments of `claviger keys retire`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Each value is rewrapped by the daemon under the version that wraps now, and unwrapped again. Values that
the old version had wrapped come out under DIR, as Base64 where they were text: put them in the place of
the old ones, then run the command again with what is stored then. When no value needs the old version any
more, it becomes `disabled`. The client needs a grant with `rewrap` (`to` the key itself), `unwrap` and
`read`.

Examples:
  sudo claviger keys retire user-keys --key-version 1 --out rewrapped values/*
  sudo claviger keys retire user-keys --key-version 1 --write values/*")]
pub struct Args {
    /// The key's name
    key: String,
    /// The version to disable
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    key_version: u32,
    /// All stored values that were wrapped under the key, one in each file: bytes, Base64, or a Key
    /// Connector's data.json
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The folder for new values, each under its file's name
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    #[command(flatten)]
    parameters: ParameterArgs,
    #[command(flatten)]
    configuration: ConfigurationArgs,
    #[command(flatten)]
    connection: ConnectionArgs,
}

/// Tries every value; disables the version where none needs it.
pub fn run(args: &Args, json: bool) -> Result<(), Failure> {
    let config = args.configuration.load()?;
    let (old, now) = versions(&config, args)?;
    if args.files.is_empty() {
        let message = "no stored value was given";
        return Err(Failure::new(Exit::Usage, message).advise(
            "Name every one that is stored: an audit log without unwraps proves nothing, since a program \
             may run for a year between two of them.",
        ));
    }
    let plan = Plan {
        key: &args.key,
        old: old.version,
        now: now.version,
        algorithm: args.parameters.algorithm(),
        label: args.parameters.label(),
        files: &args.files,
        out: args.out.as_deref(),
    };
    let tried = try_all(&plan, &args.connection)?;
    let name = format!("{} version {}", args.key, old.version);
    let fields = json!({
        "key": args.key,
        "version": old.version,
        "values": args.files.len(),
        "independent": tried.independent,
        "rewrapped": tried.rewrapped.iter().map(|file| file.display().to_string()).collect::<Vec<_>>(),
    });
    if !tried.is_free() {
        return Err(still_needed(&name, args, &tried, fields));
    }
    let change =
        Change::State { key: args.key.clone(), version: old.version, state: State::Disabled };
    Report {
        config: &config,
        done: format!(
            "{} of {} values unwrap without {name}: each was rewrapped and unwrapped under version {}",
            tried.independent,
            args.files.len(),
            now.version
        ),
        fields,
        changes: vec![change],
        next: vec![
            "claviger reload (at every daemon)".to_owned(),
            "destroy the key in its backend only when no backup may be restored that needs it".to_owned(),
        ],
    }
    .finish(args.configuration.write, json)
}

/// The version to disable, and the one that wraps now.
fn versions<'a>(config: &'a Config, args: &Args) -> Result<(&'a Version, &'a Version), Failure> {
    let key = key(config, &args.key)?;
    let old = version(&args.key, key, args.key_version)?;
    let name = format!("{} version {}", args.key, old.version);
    if old.state == State::Disabled {
        return Err(Failure::new(Exit::Usage, format!("{name} is disabled already")));
    }
    match wrapping_version(key) {
        Some(now) if now.version == old.version => {
            Err(Failure::new(Exit::Usage, format!("{name} is the one that wraps")).advise(format!(
                "`claviger keys rotate {0}` and `claviger keys activate {0}` come first.",
                args.key
            )))
        }
        Some(now) => Ok((old, now)),
        None => {
            let message = format!("{} has no active version to rewrap under", args.key);
            Err(Failure::new(Exit::Usage, message)
                .advise(format!("`claviger keys activate {}` makes one active.", args.key)))
        }
    }
}

fn still_needed(name: &str, args: &Args, tried: &Tried, mut fields: serde_json::Value) -> Failure {
    let mut lines = vec![format!("{name} stays as it is: not every value does without it")];
    lines.extend(tried.failed.iter().map(|(file, why)| format!("{}: {why}", file.display())));
    for file in &tried.rewrapped {
        lines.push(match &args.out {
            Some(folder) => {
                let new = folder.join(file.file_name().unwrap_or_default());
                format!("{}: store {} in its place", file.display(), new.display())
            }
            None => format!("{}: is still wrapped under it", file.display()),
        });
    }
    if args.out.is_none() && !tried.rewrapped.is_empty() {
        lines.push("--out DIR writes their new values".to_owned());
    }
    fields["reasons"] = json!(lines[1..]);
    let exit = tried.failed.iter().map(|(_, why)| why.exit()).reduce(Exit::or_worse);
    Failure::of_lines(exit.unwrap_or(Exit::Failure), &lines.join("\n"), fields)
}
