//! `claviger drain` and `claviger undrain`: one provider out of service, and into it again.

use std::time::Duration;

use serde_json::json;

use super::failure::{Exit, Failure};
use super::input_output;
use super::state_dir::StateDir;
use crate::daemon::operations::control::{self, Drained};
use crate::daemon::operations::status::ReplicaStatus;

/// Beyond the time that calls in flight are waited for.
const PATIENCE: Duration = Duration::from_secs(30);
/// Opening and proving keys takes as long as the backend needs.
const PROVE_PATIENCE: Duration = Duration::from_mins(3);

/// The arguments of `claviger drain`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
From then on no call, no canary and no login reaches the provider, over reloads and restarts
too, until `claviger undrain`. The audit log says who did it.

Exit codes:
   0  it is out of service, and nothing is in flight to it
   1  refused: no such provider, or a key would be left without a replica that serves
  69  no daemon answers
  75  it is out of service, but calls are still in flight to it

Examples:
  sudo claviger drain hsm-a
  sudo claviger drain hsm-a --wait 120 && systemctl stop pkcs11-proxy")]
pub struct DrainArgs {
    /// The provider's name in the configuration
    provider: String,
    /// How long to wait for calls in flight, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(0..=600))]
    wait: u64,
    /// Even where a key is left without a replica that serves
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    state_dir: StateDir,
}

/// The arguments of `claviger undrain`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Its replicas are opened anew and have to unwrap a value under every algorithm before they
serve. One that fails is tried again later, as any other. Where not one is proven, the
provider stays drained.

Exit codes:
   0  every replica of it serves
   1  refused: no such provider, or not one replica was proven
  69  no daemon answers
  78  it is in service, but not with every replica: an operator must act

Examples:
  sudo claviger undrain hsm-a")]
pub struct UndrainArgs {
    /// The provider's name in the configuration
    provider: String,
    #[command(flatten)]
    state_dir: StateDir,
}

/// Takes it out.
pub fn drain(args: &DrainArgs, json: bool) -> Result<(), Failure> {
    let DrainArgs { provider, wait, force, state_dir } = args;
    let folder = state_dir.find()?;
    let command =
        control::Command::Drain { provider: provider.clone(), wait_s: *wait, force: *force };
    let drained: Drained = control::ask(&folder, &command, PATIENCE + Duration::from_secs(*wait))?;
    let told = describe(provider, &drained);
    if drained.unanswered > 0 {
        let fields = json!({ "provider": provider, "drained": drained });
        return Err(Failure::of_lines(Exit::TryAgain, &told, fields));
    }
    if json {
        let result = json!({ "ok": true, "provider": provider, "drained": drained });
        return input_output::print(&result.to_string());
    }
    input_output::print(&told)
}

fn describe(provider: &str, drained: &Drained) -> String {
    let Drained { was_drained, replicas, unanswered, unserved } = drained;
    let already = if *was_drained { "already " } else { "" };
    let count = match replicas {
        1 => "1 replica".to_owned(),
        more => format!("{more} replicas"),
    };
    let calls = match unanswered {
        0 => "nothing is in flight to it".to_owned(),
        1 => "1 operation is still in flight to it".to_owned(),
        more => format!("{more} operations are still in flight to it"),
    };
    let unserved = match &unserved[..] {
        [] => String::new(),
        versions => format!("\nno replica serves: {}", versions.join(", ")),
    };
    format!("{provider} is {already}drained ({count}): {calls}{unserved}")
}

/// Takes it in again.
pub fn undrain(args: &UndrainArgs, json: bool) -> Result<(), Failure> {
    let UndrainArgs { provider, state_dir } = args;
    let folder = state_dir.find()?;
    let command = control::Command::Undrain { provider: provider.clone() };
    let replicas: Vec<ReplicaStatus> = control::ask(&folder, &command, PROVE_PATIENCE)?;
    let all_serve = replicas.iter().all(|replica| replica.state == "serves");
    let lines = match &replicas[..] {
        [] => format!("{provider} is in service; no key uses it"),
        replicas => {
            let lines: Vec<_> = replicas.iter().map(proven).collect();
            format!("{provider} is in service\n{}", lines.join("\n"))
        }
    };
    if !all_serve {
        let fields = json!({ "provider": provider, "replicas": replicas });
        return Err(Failure::of_lines(Exit::Configuration, &lines, fields));
    }
    if json {
        let result = json!({ "ok": true, "provider": provider, "replicas": replicas });
        return input_output::print(&result.to_string());
    }
    input_output::print(&lines)
}

/// How a replica is after it was to prove every algorithm.
fn proven(replica: &ReplicaStatus) -> String {
    let ReplicaStatus { key, version, state, reason, error, .. } = replica;
    match error {
        None => format!("{key} version {version}  {state}"),
        Some(error) => format!("{key} version {version}  {state}  {reason}\n  {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drain_says_what_is_left_in_flight_and_what_nothing_serves() {
        let quiet =
            Drained { was_drained: false, replicas: 1, unanswered: 0, unserved: Vec::new() };
        assert_eq!(
            describe("hsm-a", &quiet),
            "hsm-a is drained (1 replica): nothing is in flight to it"
        );
        let busy = Drained {
            was_drained: true,
            replicas: 2,
            unanswered: 3,
            unserved: vec!["a version 1".to_owned(), "b version 2".to_owned()],
        };
        assert_eq!(
            describe("hsm-a", &busy),
            "hsm-a is already drained (2 replicas): 3 operations are still in flight to it\n\
             no replica serves: a version 1, b version 2"
        );
    }
}
