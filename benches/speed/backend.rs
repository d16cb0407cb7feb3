//! `claviger bench` on SoftHSM and on the software provider.

use std::process::{Command, Stdio};

use serde_json::Value;
use tokio::runtime::Runtime;

use crate::table::{Row, Wanted};
use crate::{CLAVIGER, Effort, Outcome};

pub(crate) fn measure(_: &Runtime, effort: Effort) -> Outcome<Vec<Row>> {
    let quiet = bench(&["--softhsm"], effort)?;
    let audited = bench(&["--softhsm", "--audit", "--in-flight", "64"], effort)?;
    let software = bench(&[], effort)?;
    let rate = |report: &Value, calls: &str, what: &str, least: f64| {
        let (raw, ours) = (&report["raw"]["median"], &report[calls]["median"]);
        Row {
            what: format!("SoftHSM RSA-2048, {what}: unwraps/s, of raw C_Decrypt on every core"),
            wanted: Some(Wanted::AtLeast(least)),
            measured: number(&report[calls]["ratio"]["rate"]),
            unit: "",
            figures: format!(
                "{:.0}/s against {:.0}/s; p50 {:.1} ms, p99 {:.1} ms; server {:.0} µs, client {:.0} µs",
                number(&ours["per_second"]),
                number(&raw["per_second"]),
                number(&ours["p50_us"]) / 1e3,
                number(&ours["p99_us"]) / 1e3,
                number(&ours["cpu_us"]),
                number(&ours["client_cpu_us"]),
            ),
        }
    };
    let cost = |calls: &str, what: &str, most: f64| {
        let (raw, ours) = (&software["raw"]["median"], &software[calls]["median"]);
        Row {
            what: format!("software RSA-2048, {what}: server CPU per unwrap, of bare aws-lc-rs"),
            wanted: Some(Wanted::AtMost(most)),
            measured: number(&software[calls]["ratio"]["cpu"]),
            unit: "x",
            figures: format!(
                "{:.0} µs against {:.0} µs; {:.0}/s against {:.0}/s",
                number(&ours["cpu_us"]),
                number(&raw["cpu_us"]),
                number(&ours["per_second"]),
                number(&raw["per_second"]),
            ),
        }
    };
    Ok(vec![
        rate(&quiet, "unary", "audit off, 16 in flight, unary", 0.88),
        rate(&quiet, "batch", "audit off, batches of 16", 0.95),
        rate(&audited, "unary", "audit on, 64 in flight, unary", 0.85),
        rate(&audited, "batch", "audit on, batches of 16", 0.93),
        cost("unary", "unary", 1.25),
        cost("batch", "batches of 16", 1.10),
    ])
}

fn bench(arguments: &[&str], effort: Effort) -> Outcome<Value> {
    eprintln!("claviger bench {}", arguments.join(" "));
    let output = Command::new(CLAVIGER)
        .args(["--json", "bench"])
        .args(arguments)
        .args(["--rounds", &effort.rounds.to_string()])
        .args(["--seconds", &effort.time.as_secs().to_string()])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()?;
    if !output.status.success() {
        return Err(format!("claviger bench: {}", output.status).into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(f64::NAN)
}
