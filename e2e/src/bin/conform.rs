//! Runs the conformance suite against keys in a token, as a process of its own: a PKCS#11 module's
//! environment, initialisation and login belong to a process.
//!
//! The one argument is a TOML file: `[provider]` with the options of the pkcs11 provider,
//! `state_dir`, and `[[keys]]` as [`Key`]. The exit code is 0 if every case passed.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use claviger_conformance::{Report, Subject};
use claviger_pkcs11::{Config, Provider};
use claviger_provider_api::{Algorithm, OpenKey, SignAlgorithm};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Plan {
    state_dir: PathBuf,
    provider: Config,
    keys: Vec<Key>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Key {
    /// The name in the report.
    name: String,
    locator: String,
    algorithms: Vec<Algorithm>,
    #[serde(default)]
    sign_algorithms: Vec<SignAlgorithm>,
    /// Whether this key's OAEP takes a label.
    labels: bool,
}

fn main() -> ExitCode {
    if std::env::args_os()
        .nth(1)
        .is_some_and(|argument| argument == claviger_pkcs11::CHILD_ARGUMENT)
    {
        return claviger_pkcs11::run_child();
    }
    let runtime = tokio::runtime::Runtime::new().expect("a runtime starts");
    runtime.block_on(conform_all())
}

async fn conform_all() -> ExitCode {
    let file = std::env::args_os().nth(1).expect("usage: conform PLAN.toml");
    let text = std::fs::read_to_string(file).expect("the plan is readable");
    let plan: Plan = toml::from_str(&text).unwrap_or_else(|error| panic!("{error}"));
    plan.provider.validate().expect("the provider's options are right");
    let provider = Provider::new("conform", &plan.provider, Some(&plan.state_dir))
        .expect("a provider touches no backend yet");

    let (mut passed, mut failed) = (0, 0);
    for key in &plan.keys {
        let report = conform(&provider, key).await;
        println!("{report}");
        passed += report.passed;
        failed += report.failed.len();
    }
    println!("conformance: {passed} cases passed, {failed} failed");
    // SoftHSM's exit handlers crash under a thread that is still inside.
    drop(provider);
    assert!(claviger_pkcs11::wait_until_left(Duration::from_mins(1)), "the module was left");
    ExitCode::from(u8::from(failed > 0))
}

async fn conform(provider: &Provider, key: &Key) -> Report {
    let opened = provider
        .open(&OpenKey {
            locator: &key.locator,
            algorithms: &key.algorithms,
            sign_algorithms: &key.sign_algorithms,
            public_key_sha256: None,
        })
        .await
        .unwrap_or_else(|error| panic!("{}: {error}", key.name));
    let subject = Subject::new(&key.name, opened);
    claviger_conformance::run(if key.labels { subject } else { subject.without_labels() }).await
}
