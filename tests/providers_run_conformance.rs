//! Every provider runs the contract's suite: a folder in `providers/` that does not is a failure.

use std::fs;
use std::path::{Path, PathBuf};

/// The contract and the suite themselves.
const NOT_PROVIDERS: [&str; 2] = ["api", "conformance"];

/// Providers whose suite needs more than their own folder has, and where it runs instead: PKCS#11
/// needs a token, and its module reads the environment, hence a process of its own.
const ELSEWHERE: [(&str, &str); 1] = [("pkcs11", "e2e")];

const CALL: &str = "claviger_conformance::run(";

#[test]
fn every_provider_runs_the_suite() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (providers, faults) = survey(root);
    assert!(providers.iter().any(|name| name == "software"), "found only {providers:?}");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn a_provider_without_the_suite_is_found() {
    let root = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &str| {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write("providers/api/Cargo.toml", "");
    write("providers/good/tests/conformance.rs", "claviger_conformance::run(subject).await");
    write("providers/silent/Cargo.toml", "");
    write("providers/comment/tests/conformance.rs", "// claviger_conformance::run(subject)");
    write(
        "providers/ignored/tests/conformance.rs",
        "#[ignore = \"slow\"]\nclaviger_conformance::run(subject)",
    );
    write("providers/pkcs11/tests/conformance.rs", "");
    write("e2e/tests/other.rs", "claviger_pkcs11::Provider::new()");
    let (providers, faults) = survey(root.path());
    assert_eq!(providers, ["comment", "good", "ignored", "pkcs11", "silent"]);
    for name in ["comment", "ignored", "pkcs11", "silent"] {
        let found = faults.iter().any(|fault| fault.starts_with(&format!("providers/{name} ")));
        assert!(found, "{name} is not among {faults:?}");
    }
    assert_eq!(faults.len(), 4, "{faults:?}");

    write(
        "e2e/src/bin/suite.rs",
        "claviger_pkcs11::Provider::new();\nclaviger_conformance::run(subject).await",
    );
    assert_eq!(survey(root.path()).1.len(), 3);
}

/// The providers, and a sentence for each that does not run the suite.
fn survey(root: &Path) -> (Vec<String>, Vec<String>) {
    let mut providers: Vec<String> = fs::read_dir(root.join("providers"))
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_type().unwrap().is_dir())
        .map(|entry| entry.file_name().into_string().unwrap())
        .filter(|name| !NOT_PROVIDERS.contains(&name.as_str()))
        .collect();
    providers.sort();
    let faults = providers.iter().filter_map(|name| fault(root, name)).collect();
    (providers, faults)
}

fn fault(root: &Path, name: &str) -> Option<String> {
    if let Some((_, folder)) = ELSEWHERE.iter().find(|(provider, _)| *provider == name) {
        let opens = format!("claviger_{name}::");
        let runs = sources(&root.join(folder))
            .iter()
            .any(|path| has_line_with(path, CALL) && has_line_with(path, &opens));
        return (!runs).then(|| {
            format!("providers/{name} does not run the suite: no file in {folder} has both `{opens}` and `{CALL}`")
        });
    }
    let file = format!("providers/{name}/tests/conformance.rs");
    let path = root.join(&file);
    if !path.is_file() {
        return Some(format!("providers/{name} does not run the suite: there is no {file}"));
    }
    if !has_line_with(&path, CALL) {
        return Some(format!("providers/{name} does not run the suite: {file} lacks `{CALL}`"));
    }
    has_line_with(&path, "#[ignore")
        .then(|| format!("providers/{name} does not always run the suite: {file} ignores a test"))
}

/// Whether a line that is no comment holds `text`.
fn has_line_with(path: &Path, text: &str) -> bool {
    let source = fs::read_to_string(path).unwrap();
    source.lines().map(str::trim).any(|line| !line.starts_with("//") && line.contains(text))
}

/// All Rust files below a folder, but for what cargo built.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut found = Vec::new();
    for path in entries.map(|entry| entry.unwrap().path()) {
        if path.is_dir() && !path.ends_with("target") {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}
