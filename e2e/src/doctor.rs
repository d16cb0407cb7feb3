//! `claviger doctor` on the configuration of a daemon, beside it.

use serde_json::Value;

use crate::daemon::claviger;
use crate::daemon_files::DaemonFiles;
use crate::process::command;

/// The exit code and the report.
pub fn report(files: &DaemonFiles) -> (Option<i32>, Value) {
    let output = command(claviger())
        .args(["doctor", "--json", "--config"])
        .arg(files.configuration_file())
        .envs(files.environment().iter().cloned())
        .output()
        .expect("claviger starts");
    let report = serde_json::from_slice(&output.stdout);
    (output.status.code(), report.unwrap_or_else(|error| panic!("{error}: {output:?}")))
}
