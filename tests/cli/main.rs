//! Runs the commands of `cases/*.toml` and compares what they print and how they exit.
//!
//! A case is a TOML file: `command` (run by `sh -e`, with `claviger` on the PATH, in an empty folder
//! that is HOME too), and optionally `files`, `stdin`, `stdout`, `stderr` and `exit`. The folder
//! prints as `[DIR]`. At `unix:daemon.sock` listens the small daemon of the client's own tests, whose
//! answers are fixed; at `unix:nobody.sock` nobody. `BLESS=1 cargo test --test cli` writes down what happens now; read the diff.

#[path = "../../clients/rust/tests/calls/daemon.rs"]
#[expect(dead_code, reason = "the client's tests use the rest of it")]
mod daemon;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    command: String,
    #[serde(default)]
    files: BTreeMap<PathBuf, String>,
    #[serde(default)]
    stdin: String,
    #[serde(default)]
    stdout: String,
    #[serde(default)]
    stderr: String,
    #[serde(default)]
    exit: i32,
}

#[test]
fn every_command_prints_and_exits_as_its_case_says() {
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli/cases");
    let mut paths: Vec<_> = fs::read_dir(cases).unwrap().map(|file| file.unwrap().path()).collect();
    paths.sort();
    assert!(paths.len() >= 20, "only {} cases were found", paths.len());
    let wrong: Vec<_> = paths.iter().filter_map(|path| check(path).err()).collect();
    assert!(wrong.is_empty(), "{} cases differ:\n{}", wrong.len(), wrong.join("\n"));
}

fn check(path: &Path) -> Result<(), String> {
    let name = path.file_name().unwrap().to_string_lossy();
    let text = fs::read_to_string(path).unwrap();
    let case: Case = toml::from_str(&text).map_err(|error| format!("{name}: {error}"))?;
    let (stdout, stderr, exit) = run(&case);
    if std::env::var_os("BLESS").is_some() {
        fs::write(path, blessed(&text, &stdout, &stderr, exit)).unwrap();
        return Ok(());
    }
    for (what, expected, found) in [
        ("stdout", &case.stdout, &stdout),
        ("stderr", &case.stderr, &stderr),
        ("exit", &case.exit.to_string(), &exit.to_string()),
    ] {
        if expected != found {
            return Err(format!("{name}: {what} is\n{found}\nand should be\n{expected}"));
        }
    }
    Ok(())
}

fn run(case: &Case) -> (String, String, i32) {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in &case.files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let socket = folder.path().join("daemon.sock");
    let _daemon = runtime.block_on(async { daemon::Daemon::start_on_socket(&socket) });
    let programs = Path::new(env!("CARGO_BIN_EXE_claviger")).parent().unwrap().display();
    let mut child = Command::new("sh")
        .args(["-e", "-c", &case.command])
        .current_dir(folder.path())
        .env_clear()
        .env("PATH", format!("{programs}:/usr/bin:/bin"))
        .env("HOME", folder.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that does not read its input closes it early.
    let _unread = child.stdin.take().unwrap().write_all(case.stdin.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes| {
        let text = String::from_utf8(bytes).expect("the output is text");
        text.replace(folder.path().to_str().unwrap(), "[DIR]")
    };
    (text(output.stdout), text(output.stderr), output.status.code().unwrap())
}

/// The case with its outcome replaced; what comes before it stays as it is.
fn blessed(text: &str, stdout: &str, stderr: &str, exit: i32) -> String {
    let outcome =
        |line: &str| ["stdout =", "stderr =", "exit ="].iter().any(|start| line.starts_with(start));
    let mut case = String::new();
    let tables = text.find("\n[").map_or(text.len(), |at| at + 1);
    let (head, tables) = text.split_at(tables);
    for line in head.lines().take_while(|line| !outcome(line)) {
        case += line;
        case.push('\n');
    }
    for (name, value) in [("stdout", stdout), ("stderr", stderr)] {
        if !value.is_empty() {
            case.extend([name, " = '''\n", value, "'''\n"]);
        }
    }
    if exit != 0 {
        case.extend(["exit = ", &exit.to_string(), "\n"]);
    }
    if !tables.is_empty() {
        case.push('\n');
    }
    case + tables
}
