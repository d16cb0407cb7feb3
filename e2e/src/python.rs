//! Python: the independent client, grpcio generated from the .proto alone; and others' modules.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use crate::daemon::Daemon;
use crate::daemon_files::DaemonFiles;
use crate::pki::Identity;
use crate::process::{command, path_from_script, repository};

/// Runs the client's whole story (read, wrap, unwrap, batch, health) as a caller with all of
/// "wrap", "unwrap" and "read" on `key`, and "rewrap" to it and to any public key where it has that
/// too; gives the JSON object of what it saw, or panics with what
/// was wrong. The first call on a machine makes the Python environment.
pub fn story(
    files: &DaemonFiles,
    daemon: &Daemon,
    caller: &Identity,
    key: &str,
) -> serde_json::Value {
    let (certificate, private_key) = caller.write(&files.path("."), "python");
    let output = command(interpreter())
        .arg(repository().join("e2e/python/client.py"))
        .arg("--proto-root")
        .arg(repository().join("proto"))
        .args(["--address", &format!("localhost:{}", daemon.address().port())])
        .arg("--ca")
        .arg(files.path("clients.pem"))
        .arg("--certificate")
        .arg(certificate)
        .arg("--private-key")
        .arg(private_key)
        .args(["--key", key])
        .output()
        .expect("Python starts");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"))
}

/// Python, with everything in `python/requirements.txt`.
pub fn interpreter() -> &'static Path {
    static PYTHON: LazyLock<PathBuf> = LazyLock::new(|| path_from_script("python-venv", &[]));
    &PYTHON
}
