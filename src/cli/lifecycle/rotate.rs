//! `claviger keys rotate`: the next version of a key, which unwraps everywhere before it wraps anywhere.

use super::change::{Change, NewVersion};
use super::create::{MadeArgs, check_provider, fields, told};
use super::making::{Wanted, make};
use super::operator::OperatorArgs;
use super::report::Report;
use super::{ConfigurationArgs, key, wrapping_version};
use crate::cli::failure::{Exit, Failure};
use crate::daemon::config::{Config, Key, Replica, State, Version};

/// The arguments of `claviger keys rotate`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
The new version is `unwrap-only`: no daemon wraps under it while another one cannot unwrap it.
Then: `claviger reload` at every daemon, and `claviger keys activate`.

Examples:
  sudo claviger keys rotate user-keys --write
  sudo claviger keys rotate user-keys --provider hsm-b --admin admin.toml --write")]
pub struct Args {
    /// The key's name
    key: String,
    /// The provider that makes the new version [default: the one of the version that wraps now]
    #[arg(long, value_name = "NAME")]
    provider: Option<String>,
    #[command(flatten)]
    made: MadeArgs,
    #[command(flatten)]
    operator: OperatorArgs,
    #[command(flatten)]
    configuration: ConfigurationArgs,
}

/// Makes the next version.
pub fn run(args: &Args, json: bool) -> Result<(), Failure> {
    let config = args.configuration.load()?;
    let (now, number) = before(&config, args)?;
    let provider = args.provider.clone().unwrap_or_else(|| now.replicas[0].provider.clone());
    check_provider(&config, &provider)?;
    let after = now.replicas.iter().find(|replica| replica.provider == provider);
    let wanted = Wanted {
        name: args.key.clone(),
        version: number,
        bits: args.made.bits(),
        algorithms: now.algorithms.clone(),
        sign_algorithms: now.sign_algorithms.clone(),
        in_software: args.made.in_software,
        locator: args.made.locator.clone(),
        after: after.map(|replica| replica.locator.clone()),
    };
    let text = args.operator.text(&config, &provider)?;
    let mut made = make(&config, text, &provider, &wanted, None)?;
    let others = now.replicas.iter().filter(|replica| replica.provider != provider);
    let mut others: Vec<&str> = others.map(|replica| replica.provider.as_str()).collect();
    others.dedup();
    if !others.is_empty() {
        made.notes.push(format!(
            "version {} has replicas in {} too: bring the new key there with the vendor's own means, and \
             add them, before you activate it",
            now.version,
            others.join(", ")
        ));
    }
    let replica = Replica { provider: provider.clone(), locator: made.locator.clone() };
    let new = new_version(&config, args, now, number, replica, made.public_key.sha256());
    Report {
        config: &config,
        done: told("made", &args.key, number, &provider, &made),
        fields: fields(&args.key, number, &provider, &made),
        changes: vec![Change::Version(new)],
        next: vec![
            "claviger reload (at every daemon)".to_owned(),
            format!("claviger keys activate {} --write", args.key),
        ],
    }
    .finish(args.configuration.write, json)
}

/// The version that wraps now, and the number of the next one.
fn before<'a>(config: &'a Config, args: &Args) -> Result<(&'a Version, u32), Failure> {
    let key = key(config, &args.key)?;
    let Some(now) = wrapping_version(key) else {
        let message = format!("{} has no active version to follow", args.key);
        return Err(Failure::new(Exit::Usage, message)
            .advise(format!("`claviger keys activate {}` makes one active.", args.key)));
    };
    if let Some(waiting) = waiting(key, now) {
        let message = format!("{} version {} waits to be activated", args.key, waiting.version);
        return Err(Failure::new(Exit::Usage, message).advise(format!(
            "`claviger keys activate {}` is the next step; or take it out of the configuration.",
            args.key
        )));
    }
    let newest = key.versions.iter().map(|version| version.version).max().unwrap_or_default();
    let number = newest.checked_add(1).ok_or_else(|| {
        Failure::new(Exit::Configuration, format!("{} has no version number left", args.key))
    })?;
    Ok((now, number))
}

/// A version that unwraps already and is newer than the one that wraps.
pub(super) fn waiting<'a>(key: &'a Key, now: &Version) -> Option<&'a Version> {
    key.versions
        .iter()
        .find(|version| version.state == State::UnwrapOnly && version.version > now.version)
}

/// As the version before it, where that has lists of its own.
fn new_version(
    config: &Config,
    args: &Args,
    now: &Version,
    number: u32,
    replica: Replica,
    public_key_sha256: [u8; 32],
) -> NewVersion {
    let own = config.own_lists(&args.key, now.version);
    NewVersion {
        key: args.key.clone(),
        number,
        state: State::UnwrapOnly,
        algorithms: own.0.then(|| now.algorithms.clone()),
        sign_algorithms: own.1.then(|| now.sign_algorithms.clone()),
        replica,
        public_key_sha256,
    }
}
