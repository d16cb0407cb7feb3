//! `claviger doctor` on a site, beside its daemon.

use serde_json::Value;

use crate::daemon::claviger;
use crate::process::command;
use crate::site::Site;

/// The exit code and the report.
pub fn report(site: &Site) -> (Option<i32>, Value) {
    let output = command(claviger())
        .args(["doctor", "--json", "--config"])
        .arg(site.configuration_file())
        .envs(site.environment().iter().cloned())
        .output()
        .expect("claviger starts");
    let report = serde_json::from_slice(&output.stdout);
    (output.status.code(), report.unwrap_or_else(|error| panic!("{error}: {output:?}")))
}
