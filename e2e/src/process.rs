//! Child processes: a clean environment, a sentence when they fail.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// What a child may take over from the environment of the tests; everything else, such as proxies
/// and certificate bundles of the machine, would change what is tested.
const INHERITED: [&str; 5] = ["PATH", "HOME", "USER", "TMPDIR", "XDG_CACHE_HOME"];

/// A command with a clean environment and no stdin.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env_clear().stdin(Stdio::null());
    for name in INHERITED {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command
}

/// Runs a command to its end; anything but success is a panic that says what it printed.
pub fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| {
        panic!("{command:?} did not start: {error}; scripts/setup installs what is missing")
    });
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// Runs one of the repository's scripts and gives the path that it prints. Scripts download, so
/// they keep the whole environment: proxies, mirrors, certificate bundles.
pub fn path_from_script(name: &str, arguments: &[&str]) -> PathBuf {
    let mut script = Command::new(repository().join("scripts").join(name));
    let output = run(script.args(arguments).stdin(Stdio::null()));
    PathBuf::from(String::from_utf8(output.stdout).expect("a path in UTF-8").trim())
}

/// The root of the repository.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("e2e is in the repository")
}

/// The folder of the build that this test is part of: `target/debug`.
pub fn target_folder() -> PathBuf {
    let test = std::env::current_exe().expect("the path of the running test");
    let folder = test.parent().expect("a program is in a folder");
    if folder.ends_with("deps") { folder.parent().expect("target").into() } else { folder.into() }
}
