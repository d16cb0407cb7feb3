//! `claviger doctor`: asks every backend as the daemon would, and says what to do.
//!
//! - `examine`: one replica: opened, compared with its pin, proven, timed
//! - `diagnosis`: what is wrong with a replica, and how far it got
//! - `issuers`: the issuers of tokens
//! - `report`: what was found, for people and as JSON

mod diagnosis;
mod examine;
mod issuers;
mod report;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use claviger_provider_api::{Error, Measure, Provider, WrappingKey};
use futures::{FutureExt, StreamExt};
use tokio::time::timeout;

use super::connection::parse_duration;
use super::daemon_user::ask_as_the_daemon;
use super::failure::{Exit, Failure};
use super::input_output;
use crate::daemon::backends;
use crate::daemon::config::{Config, State, path_or_default};
use crate::daemon::serve::{prepare_state_dir, protect_memory};
use diagnosis::Trouble;
use examine::{ConfiguredReplica, Finding};
use issuers::Issuers;
use report::Report;

/// Replicas of one provider that are examined at a time.
const AT_ONCE: usize = 8;
/// How often those who wait are told for whom.
const PROGRESS_EVERY: Duration = Duration::from_secs(3);
/// How long backends may take to be left.
const LEAVE_WAIT: Duration = Duration::from_secs(2);

/// The arguments of `claviger doctor`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Exit codes:
   0  every replica of every version that is not disabled is sound, and every issuer of tokens
  69  a backend or an issuer cannot be reached, or does not answer; safe to repeat
  75  a backend has no room at the moment
  78  an operator must act; what to do is said for each failure
   1  a backend broke its promise, or a reason that no other code tells
Where several apply: 78, else 1, else 69, else 75.

Examples:
  sudo claviger doctor
  sudo claviger doctor --json user-keys")]
pub struct Args {
    /// Only these keys [default: all]
    #[arg(value_name = "KEY")]
    keys: Vec<String>,
    /// The daemon's configuration, TOML [default: $CLAVIGER_CONFIG, else
    /// /etc/claviger/claviger.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// How long a provider may be silent until it is given up: 500ms, 10s, 2m
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = parse_duration)]
    timeout: Duration,
}

/// Examines; the exit code says how bad it is.
pub fn run(args: &Args, json: bool) -> Result<ExitCode, Failure> {
    let path = path_or_default(args.config.clone());
    ask_as_the_daemon(&path)?;
    let config = Config::load(&path)?;
    let replicas = replicas(&config, &args.keys)?;
    let failed = |error: std::io::Error| Failure::new(Exit::Failure, error.to_string());
    protect_memory();
    let state_dir = config.server.state_dir.as_deref();
    if let Some(state_dir) = state_dir {
        prepare_state_dir(state_dir).map_err(|error| {
            Failure::new(Exit::Configuration, error.to_string())
                .advise("Run it as the daemon's user: it logs in as the daemon does.")
        })?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(failed)?;
    let (findings, measures) =
        runtime.block_on(examine_all(&config, &replicas, args.timeout, !json));
    // Who asks for one key does not ask for the issuers.
    let issuers = match args.keys.as_slice() {
        [] => runtime.block_on(Issuers::examine(&config, args.timeout)),
        _ => Issuers::default(),
    };
    // One that hangs has had its time: the process ends without it.
    runtime.shutdown_background();
    let _ = backends::wait_until_left(LEAVE_WAIT);
    let latched = state_dir.map_or(Ok(Vec::new()), backends::latched_tokens);
    let findings = replicas.iter().zip(findings).collect();
    let report = Report::new(&config, &args.keys, findings, measures, latched, issuers);
    input_output::print(&if json { report.to_json().to_string() } else { report.to_text() })?;
    Ok(ExitCode::from(report.exit_code()))
}

/// Every replica that the daemon would open, of all keys or of those that are named.
fn replicas<'a>(
    config: &'a Config,
    keys: &[String],
) -> Result<Vec<ConfiguredReplica<'a>>, Failure> {
    if let Some(unknown) = keys.iter().find(|key| !config.keys.contains_key(*key)) {
        let known: Vec<&str> = config.keys.keys().map(String::as_str).collect();
        let message = format!("no key {unknown:?} in {}", config.path.display());
        return Err(Failure::new(Exit::Usage, message)
            .advise(format!("Its keys are: {}.", known.join(", "))));
    }
    let wanted = |name: &str| keys.is_empty() || keys.iter().any(|key| key == name);
    let versions =
        config.keys.iter().filter(|(name, _)| wanted(name)).flat_map(|(name, key)| {
            key.versions.iter().map(move |version| (name.as_str(), version))
        });
    Ok(versions
        .filter(|(_, version)| version.state != State::Disabled)
        .flat_map(|(key, version)| {
            version.replicas.iter().map(move |replica| ConfiguredReplica { key, version, replica })
        })
        .collect())
}

/// What confines each provider's process, where it has one.
type Measures = BTreeMap<String, Vec<Measure>>;

/// What was found in each place, in their order, and what confines whom. Providers are asked side by side,
/// so that one that hangs holds up no other.
async fn examine_all(
    config: &Config,
    replicas: &[ConfiguredReplica<'_>],
    limit: Duration,
    tell: bool,
) -> (Vec<Finding>, Measures) {
    let mut by_provider: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (index, configured) in replicas.iter().enumerate() {
        by_provider.entry(&configured.replica.provider).or_default().push(index);
    }
    let waiting: Waiting<'_> =
        RefCell::new(by_provider.iter().map(|(name, indices)| (*name, indices.len())).collect());
    let configs = config.providers.iter().map(|(name, provider)| (name, &provider.config));
    let providers = backends::make_each(configs, config.server.state_dir.as_deref(), None);
    let examined = futures::future::join_all(by_provider.iter().map(|(name, indices)| {
        // All keys of a provider stay open until the last one was examined: they share one login.
        examine_provider(&providers[*name].1, name, indices, replicas, limit, &waiting)
    }));
    let examined = tokio::select! {
        examined = examined => examined,
        () = tell_progress(&waiting), if tell => unreachable!("it tells for ever"),
    };
    let mut findings: Vec<(usize, Finding)> = examined.into_iter().flatten().collect();
    findings.sort_unstable_by_key(|(index, _)| *index);
    let of_each = by_provider.keys().filter_map(|name| {
        let measures = providers[*name].1.as_ref().ok()?.measures();
        (!measures.is_empty()).then(|| ((*name).to_owned(), measures))
    });
    let measures = of_each.collect();
    (findings.into_iter().map(|(_, finding)| finding).collect(), measures)
}

/// Replicas of each provider whose examination has not ended.
type Waiting<'a> = RefCell<BTreeMap<&'a str, usize>>;

async fn examine_provider<'a>(
    provider: &Result<Arc<dyn Provider>, Error>,
    name: &'a str,
    indices: &[usize],
    replicas: &[ConfiguredReplica<'_>],
    limit: Duration,
    waiting: &Waiting<'a>,
) -> Vec<(usize, Finding)> {
    let provider = match provider {
        Ok(provider) => provider,
        Err(error) => {
            let refused = |index: &usize| (*index, Finding::of(Trouble::of(error)));
            waiting.borrow_mut().remove(name);
            return indices.iter().map(refused).collect();
        }
    };
    let mut findings: Vec<(usize, Finding)> = Vec::new();
    let mut open: Vec<Arc<dyn WrappingKey>> = Vec::new();
    let mut examinations = futures::stream::iter(indices)
        .map(|index| {
            examine::examine(&**provider, &replicas[*index]).map(move |found| (*index, found))
        })
        .buffer_unordered(AT_ONCE);
    // The time begins anew with each one that ends: many keys may take long, silence may not.
    while let Ok(Some((index, (finding, key)))) = timeout(limit, examinations.next()).await {
        findings.push((index, finding));
        open.extend(key);
        if let Some(left) = waiting.borrow_mut().get_mut(name) {
            *left -= 1;
        }
    }
    for index in indices {
        if !findings.iter().any(|(examined, _)| examined == index) {
            findings.push((*index, Finding::of(Trouble::silent(limit))));
        }
    }
    waiting.borrow_mut().remove(name);
    findings
}

async fn tell_progress(waiting: &Waiting<'_>) {
    loop {
        tokio::time::sleep(PROGRESS_EVERY).await;
        let waiting = waiting.borrow();
        let of_each: Vec<String> =
            waiting.iter().map(|(name, left)| format!("{name} ({left} to go)")).collect();
        eprintln!("waiting for {}", of_each.join(", "));
    }
}
