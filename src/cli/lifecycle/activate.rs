//! `claviger keys activate`: the version that waits becomes the one that wraps, once every daemon could
//! unwrap what is wrapped under it.

use claviger_client::{Client, Error, Health, Key as ServedKey};
use serde_json::json;

use super::change::Change;
use super::daemons::DaemonsArgs;
use super::report::Report;
use super::rotate::waiting;
use super::{ConfigurationArgs, key, version, wrapping_version};
use crate::cli::failure::{Exit, Failure};
use crate::daemon::config::{Config, State, Version};

/// The arguments of `claviger keys activate`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Every daemon is asked first: it must have the new version open, with the public key that the
configuration pins, and the key must be serving. The client needs a grant with `read`. The version that
wrapped before becomes `unwrap-only`.

Examples:
  sudo claviger keys activate user-keys --write
  sudo claviger keys activate user-keys --client daemon-a.toml --client daemon-b.toml --write")]
pub struct Args {
    /// The key's name
    key: String,
    /// The version [default: the newest one that unwraps and does not wrap]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    key_version: Option<u32>,
    #[command(flatten)]
    configuration: ConfigurationArgs,
    #[command(flatten)]
    daemons: DaemonsArgs,
}

/// Activates it.
pub fn run(args: &Args, json: bool) -> Result<(), Failure> {
    let config = args.configuration.load()?;
    let (new, before) = versions(&config, args)?;
    let name = format!("{} version {}", args.key, new.version);
    let Some(sha256) = new.public_key_sha256 else {
        return Err(Failure::new(Exit::Configuration, format!("{name} has no public_key_sha256"))
            .advise("`claviger config pin` asks the backends for it."));
    };
    let ask = async |client: &Client| -> Result<(ServedKey, Health), Error> {
        Ok((client.key(&args.key).await?, client.health(Some(&args.key)).await?))
    };
    let answers = args.daemons.each(&ask)?;
    let mut ready = Vec::new();
    let mut missing = Vec::new();
    for (daemon, answer) in answers {
        let verdict = match &answer {
            Ok((served, health)) => verdict(served, *health, new.version, &sha256),
            Err(error) => Err(Failure::from(error.clone()).to_string()),
        };
        match verdict {
            Ok(()) => ready.push(daemon),
            Err(reason) => missing.push(format!("{daemon}: {reason}")),
        }
    }
    if !missing.is_empty() {
        let lines = format!("{name} is not activated:\n{}", missing.join("\n"));
        return Err(Failure::of_lines(Exit::Unavailable, &lines, json!({ "reasons": missing })));
    }
    let state = |version: &Version, state| Change::State {
        key: args.key.clone(),
        version: version.version,
        state,
    };
    let mut changes = vec![state(new, State::Active)];
    changes.extend(before.iter().map(|before| state(before, State::UnwrapOnly)));
    Report {
        config: &config,
        done: format!("open: {name} at {}", ready.join(", ")),
        fields: json!({ "key": args.key, "version": new.version, "daemons": ready }),
        changes,
        next: vec!["claviger reload (at every daemon)".to_owned()],
    }
    .finish(args.configuration.write, json)
}

/// The version to activate, and those that are active now.
fn versions<'a>(
    config: &'a Config,
    args: &Args,
) -> Result<(&'a Version, Vec<&'a Version>), Failure> {
    let key = key(config, &args.key)?;
    let active: Vec<_> = key.versions.iter().filter(|v| v.state == State::Active).collect();
    let new = match (args.key_version, wrapping_version(key)) {
        (Some(number), _) => Some(version(&args.key, key, number)?),
        (None, Some(now)) => waiting(key, now),
        (None, None) => key.versions.iter().find(|v| v.state == State::UnwrapOnly),
    };
    let Some(new) = new else {
        let message = format!("no version of {} waits to be activated", args.key);
        return Err(Failure::new(Exit::Usage, message)
            .advise(format!("`claviger keys rotate {}` makes one.", args.key)));
    };
    let name = format!("{} version {}", args.key, new.version);
    match new.state {
        State::UnwrapOnly => {}
        State::Active => {
            return Err(Failure::new(Exit::Usage, format!("{name} is active already")));
        }
        State::Disabled => {
            return Err(Failure::new(Exit::Usage, format!("{name} is disabled"))
                .advise("Make it `unwrap-only`, reload every daemon, and activate it then."));
        }
    }
    if let Some(newer) = active.iter().find(|active| active.version > new.version) {
        let message = format!("{name} would not wrap: version {} is newer", newer.version);
        return Err(Failure::new(Exit::Usage, message)
            .advise("The newest active version wraps: make that one `unwrap-only` yourself."));
    }
    Ok((new, active))
}

/// Why a daemon could not unwrap what is wrapped under the version.
fn verdict(key: &ServedKey, health: Health, number: u32, sha256: &[u8; 32]) -> Result<(), String> {
    let Some(served) = key.versions.iter().find(|version| version.version == number) else {
        return Err("does not have it: reload that daemon".to_owned());
    };
    if served.public_key.is_empty() {
        return Err("has not opened it: `claviger doctor` says why".to_owned());
    }
    if served.public_key_sha256[..] != sha256[..] {
        return Err("has another public key: its configuration is another one".to_owned());
    }
    match health {
        Health::Serving => Ok(()),
        Health::NotServing => Err("does not serve the key at the moment".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use claviger_client::KeyVersion;

    use super::*;

    #[test]
    fn a_daemon_is_ready_only_with_the_pinned_key_open_and_serving() {
        let open = KeyVersion {
            version: 2,
            public_key: vec![1].into(),
            public_key_sha256: vec![7; 32].into(),
            ..KeyVersion::default()
        };
        let closed = KeyVersion { public_key: Vec::new().into(), ..open.clone() };
        let other = KeyVersion { public_key_sha256: vec![8; 32].into(), ..open.clone() };
        let older = KeyVersion { version: 1, ..open.clone() };
        for (version, health, said) in [
            (&open, Health::Serving, None),
            (&open, Health::NotServing, Some("does not serve")),
            (&closed, Health::Serving, Some("has not opened it")),
            (&other, Health::Serving, Some("another public key")),
            (&older, Health::Serving, Some("does not have it")),
        ] {
            let key = ServedKey { versions: vec![version.clone()], ..ServedKey::default() };
            let verdict = verdict(&key, health, 2, &[7; 32]).err();
            assert_eq!(verdict.is_some(), said.is_some(), "{verdict:?}");
            assert!(said.is_none_or(|said| verdict.unwrap().contains(said)));
        }
    }
}
