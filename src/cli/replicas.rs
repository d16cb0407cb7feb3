//! `claviger replicas`: how every replica is, asked of the running daemon.

use std::time::Duration;

use serde_json::json;

use super::failure::Failure;
use super::input_output;
use super::state_dir::StateDir;
use crate::daemon::operations::control::{self, ReplicaStatus};

/// The daemon has it at hand.
const PATIENCE: Duration = Duration::from_secs(10);

/// The arguments of `claviger replicas`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
States:
  serves    its last private-key operation came back right
  fails     it cannot be reached, or an operator must act; it is tried again
  diverges  another key, wrong bytes, or an algorithm that it does not do: no call is given to it
  drained   taken out of service with `claviger drain`
  opening   not open yet

Examples:
  sudo claviger replicas
  sudo claviger replicas --json | jq '.replicas[] | select(.state != \"serves\")'")]
pub struct Args {
    #[command(flatten)]
    state_dir: StateDir,
}

/// Lists them.
pub fn run(args: &Args, json: bool) -> Result<(), Failure> {
    let folder = args.state_dir.find()?;
    let replicas: Vec<ReplicaStatus> =
        control::ask(&folder, &control::Command::Replicas, PATIENCE)?;
    if json {
        return input_output::print(&json!({ "replicas": replicas }).to_string());
    }
    input_output::print(&match &replicas[..] {
        [] => "no key is configured".to_owned(),
        replicas => table(replicas),
    })
}

/// One line for each replica, and one more for why it does not serve.
pub(super) fn table(replicas: &[ReplicaStatus]) -> String {
    let names: Vec<_> =
        replicas.iter().map(|r| format!("{} version {}", r.key, r.version)).collect();
    let width = names.iter().map(String::len).max().unwrap_or_default();
    let providers = replicas.iter().map(|replica| replica.provider.len()).max();
    let provider_width = providers.unwrap_or_default();
    let lines = replicas.iter().zip(names).map(|(replica, name)| {
        let ReplicaStatus { provider, state, error, unanswered, proven_ago_s, .. } = replica;
        let proven = match proven_ago_s {
            Some(ago) if state != "drained" => format!("  proven {ago} s ago"),
            _ => String::new(),
        };
        let calls = match unanswered {
            0 => String::new(),
            calls => format!("  {calls} in flight"),
        };
        let error = error.as_ref().map(|error| format!("\n  {error}")).unwrap_or_default();
        format!("{name:width$}  {provider:provider_width$}  {state:8}{proven}{calls}{error}")
    });
    lines.map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_replica_has_a_line_and_its_reason() {
        let serving = ReplicaStatus {
            key: "user-keys".to_owned(),
            version: 1,
            provider: "hsm-a".to_owned(),
            locator: "pkcs11:object=a".to_owned(),
            state: "serves".to_owned(),
            error: None,
            unanswered: 3,
            proven_ago_s: Some(4),
        };
        let failing = ReplicaStatus {
            provider: "b".to_owned(),
            state: "fails".to_owned(),
            error: Some("no such token".to_owned()),
            unanswered: 0,
            proven_ago_s: None,
            ..serving.clone()
        };
        assert_eq!(
            table(&[serving, failing]),
            "user-keys version 1  hsm-a  serves    proven 4 s ago  3 in flight\n\
             user-keys version 1  b      fails   \n  no such token"
        );
    }
}
