//! `docs/threat-model.md` names files that exist and defaults that hold.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::daemon::config::Config;

const PAGE: &str = include_str!("../../docs/threat-model.md");
/// Where the code of the page lies.
const FOLDERS: [&str; 11] = [
    "src",
    "providers",
    "clients",
    "connector",
    "files",
    "tokens",
    "proto",
    "e2e",
    "scripts",
    "deploy",
    "docs",
];

fn files_below(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files_below(&path, found);
        } else {
            found.push(path);
        }
    }
}

/// What the page names as code and that looks like a file.
fn named() -> BTreeSet<&'static str> {
    let code = PAGE.split('`').skip(1).step_by(2);
    let is_source = |code: &&str| {
        Path::new(code).extension().is_some_and(|extension| extension == "rs")
            && !code.contains([' ', '*'])
    };
    code.filter(is_source).collect()
}

#[test]
fn each_file_that_the_threat_model_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for folder in FOLDERS {
        files_below(&root.join(folder), &mut files);
    }
    let named = named();
    assert!(named.len() > 40, "{named:?}");
    let missing: Vec<_> =
        named.iter().filter(|name| !files.iter().any(|file| file.ends_with(name))).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn what_one_caller_can_take_stands_there_with_the_defaults_in_force() {
    let text = "[server]\nlisten = [\"unix:/run/c.sock\"]\n[audit]\noff = true\n";
    let server = Config::parse(Path::new("claviger.toml"), text).unwrap().server;
    let seconds = |time: std::time::Duration| time.as_secs();
    for stated in [
        format!("`max_connections` ({})", server.max_connections),
        format!("`max_connections_per_caller` ({})", server.max_connections_per_caller),
        format!("`max_concurrent_calls` ({})", server.max_concurrent_calls),
        format!("`max_streams_per_connection` ({})", server.max_streams_per_connection),
        format!("`max_handshakes` ({})", server.max_handshakes),
        format!("`handshake_timeout` ({} s)", seconds(server.handshake_timeout)),
        format!("`max_connection_age` ({} h)", seconds(server.max_connection_age) / 3600),
        format!("`drain_timeout` ({} s)", seconds(server.drain_timeout)),
        format!("{} of all readers", crate::daemon::operations::page::MOST_PAGES),
        format!("messages of {} KiB", claviger_proto::MAX_MESSAGE_BYTES / 1024),
    ] {
        assert!(PAGE.contains(&stated), "{stated}");
    }
}
