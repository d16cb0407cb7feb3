//! The independent client: Python's grpcio, generated from the .proto alone.

use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::LazyLock;

use crate::daemon::Daemon;
use crate::process::{command, path_from_script, repository};

/// Runs the client's whole story (wrap, unwrap, read, health) against a daemon; stdout is one JSON
/// object, the exit code 0 or 1.
pub fn story(
    daemon: &Daemon,
    ca: &Path,
    certificate: &Path,
    private_key: &Path,
    key: &str,
) -> Output {
    static PYTHON: LazyLock<PathBuf> = LazyLock::new(|| path_from_script("python-venv"));
    let tests = repository().join("softhsm-tests/python");
    command(&*PYTHON)
        .arg(tests.join("client.py"))
        .args(["--proto-root".as_ref(), repository().join("proto").as_os_str()])
        .args(["--address", &format!("localhost:{}", daemon.address().port())])
        .arg("--ca")
        .arg(ca)
        .arg("--certificate")
        .arg(certificate)
        .arg("--private-key")
        .arg(private_key)
        .args(["--key", key])
        .output()
        .expect("Python starts")
}
