//! The PKCS#11 module under test, configured for a daemon of tests, and hosts that load it, in C: one
//! that does what an unmodified Key Connector does, and one that checks every answer
//! (`pkcs11-host/`).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;
use std::time::Duration;

use toml::{Table, Value};

use crate::daemon::Daemon;
use crate::process::{command, run, target_folder};
use crate::setup::{KEY, MATERIAL, Setup};

/// The serial number of the module's token.
pub const SERIAL: &str = "CLAVIGER01";
/// What a host asks for to find the key by its label.
pub const BY_LABEL: &str = "label:user-keys";
/// What a host asks for to find the key by its id, as a number.
pub const BY_ID: &str = "id:258";

/// The module's configuration file, beside the daemon's files.
#[derive(Debug)]
pub struct Module {
    folder: PathBuf,
    /// To be changed by tests as they like; [`Module::write`] makes a file of it.
    pub configuration: Table,
}

/// What a host says of itself after an action.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Said {
    /// Its threads.
    pub tasks: usize,
    /// Its open descriptors; one of them is for counting them.
    pub descriptors: usize,
    /// Its memory.
    pub resident_kb: usize,
    /// How long the action took.
    pub microseconds: f64,
}

impl Module {
    /// For the caller of the setup, with the daemons as the endpoints of one token.
    pub fn new(setup: &Setup, daemons: &[&Daemon]) -> Self {
        let folder = setup.files.path(".");
        let text = |path: &Path| Value::from(path.to_str().expect("temporary paths are UTF-8"));
        let (certificate, private_key) = setup.caller.write(&folder, "caller");
        let ca = folder.join("caller-ca.pem");
        crate::pki::replace(&ca, &setup.files.pki.ca_pem(), 0o644);
        let endpoints = daemons
            .iter()
            .map(|daemon| format!("https://127.0.0.1:{}", daemon.address().port()).into());
        let key = Table::from_iter([("name".into(), KEY.into()), ("id".into(), "0102".into())]);
        let token = Table::from_iter([
            ("label".into(), "claviger".into()),
            ("serial".into(), SERIAL.into()),
            ("endpoints".into(), Value::Array(endpoints.collect())),
            ("ca".into(), text(&ca)),
            ("certificate".into(), text(&certificate)),
            ("private_key".into(), text(&private_key)),
            ("keys".into(), Value::Array(vec![key.into()])),
        ]);
        let configuration = Table::from_iter([
            ("log".into(), text(&folder.join("module.log"))),
            ("tokens".into(), Value::Array(vec![token.into()])),
        ]);
        fs::write(folder.join("wrapped"), &setup.wrapped).expect("the files's folder is writable");
        fs::write(folder.join("material"), MATERIAL).expect("the files's folder is writable");
        let module = Self { folder, configuration };
        module.write();
        module
    }

    /// The module's one token in the configuration.
    pub fn token(&mut self) -> &mut Table {
        let tokens = self.configuration["tokens"].as_array_mut().expect("made as an array");
        tokens[0].as_table_mut().expect("made as a table")
    }

    /// The module's one key in the configuration.
    pub fn key(&mut self) -> &mut Table {
        let keys = self.token()["keys"].as_array_mut().expect("made as an array");
        keys[0].as_table_mut().expect("made as a table")
    }

    /// Where the configuration is.
    pub fn file(&self) -> PathBuf {
        self.folder.join("pkcs11.toml")
    }

    /// Writes the configuration.
    pub fn write(&self) {
        fs::write(self.file(), self.configuration.to_string()).expect("the folder is writable");
    }

    /// All that the module has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("module.log")).unwrap_or_default()
    }

    /// A program that loads the module and is to find this configuration.
    pub fn program(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = command(program);
        command.env("CLAVIGER_PKCS11_CONF", self.file());
        command
    }

    /// The host, to do these actions with the key that it finds by label or id.
    pub fn host(&self, key: &str, actions: &[&str]) -> Command {
        let mut command = self.program(host());
        self.arguments(&mut command, key, actions);
        command
    }

    /// What the host is called with.
    pub fn arguments(&self, command: &mut Command, key: &str, actions: &[&str]) {
        command.arg(library()).args([SERIAL, key]);
        command.arg(self.folder.join("wrapped")).arg(self.folder.join("material")).args(actions);
    }

    /// Lets the host do these actions; gives what it said after each.
    pub fn act(&self, key: &str, actions: &[&str]) -> Vec<Said> {
        let output = self.host(key, actions).output().expect("the host starts");
        self.said(&output)
    }

    /// What a host that has ended said. One that failed is a panic with the module's log.
    pub fn said(&self, output: &Output) -> Vec<Said> {
        let text = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        let status = output.status;
        assert!(status.success(), "{status}\n{text}{errors}\nthe module's log:\n{}", self.log());
        assert_eq!(errors, "", "neither the host nor the module has anything to complain about");
        text.lines().filter_map(Said::parse).collect()
    }
}

/// The times that a host has printed, one for each of its cycles; the shortest first.
pub fn times(output: &Output) -> Vec<Duration> {
    let text = String::from_utf8_lossy(&output.stdout);
    let microseconds = text.lines().filter_map(|line| line.strip_prefix("us ")?.parse().ok());
    let mut times: Vec<_> = microseconds.map(|us: f64| Duration::from_secs_f64(us / 1e6)).collect();
    times.sort_unstable();
    times
}

/// What 99 of a hundred of these took at most; the shortest comes first.
pub fn p99(times: &[Duration]) -> Duration {
    times.get(times.len() * 99 / 100).or(times.last()).copied().unwrap_or_default()
}

impl Said {
    fn parse(line: &str) -> Option<Self> {
        let (_, values) = line.split_once(": tasks ")?;
        let mut values = format!("tasks {values}");
        values.retain(|c| c != ',');
        let values: Vec<&str> = values.split(' ').collect();
        let value = |index: usize| values.get(index)?.parse::<f64>().ok();
        #[expect(clippy::cast_sign_loss, reason = "counts are whole numbers from 0 on")]
        let count = |index| value(index).map(|count| count as usize);
        Some(Self {
            tasks: count(1)?,
            descriptors: count(3)?,
            resident_kb: count(5)?,
            microseconds: value(7)?,
        })
    }
}

/// The module under test: `CLAVIGER_PKCS11_MODULE`, else the one of this build.
pub fn library() -> PathBuf {
    if let Some(path) = std::env::var_os("CLAVIGER_PKCS11_MODULE") {
        return path.into();
    }
    let path = target_folder().join("libclaviger_pkcs11.so");
    assert!(
        path.exists(),
        "{} was not built: run `cargo build -p claviger-pkcs11-module`, or name another with \
         CLAVIGER_PKCS11_MODULE",
        path.display()
    );
    path
}

/// The host, compiled by the first test of a process that needs it.
pub fn host() -> &'static Path {
    static HOST: LazyLock<PathBuf> = LazyLock::new(|| compiled("host"));
    &HOST
}

/// The program that asks the module for everything, right and wrong.
pub fn answers() -> &'static Path {
    static ANSWERS: LazyLock<PathBuf> = LazyLock::new(|| compiled("answers"));
    &ANSWERS
}

fn compiled(name: &str) -> PathBuf {
    let folder = target_folder();
    let own = folder.join(format!("pkcs11-{name}-{}", std::process::id()));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("pkcs11-host/{name}.c"));
    run(command("cc")
        .args(["-std=gnu17", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-pthread", "-o"])
        .arg(&own)
        .arg(source)
        .arg("-ldl"));
    // Test processes that run side by side make the same file.
    let path = folder.join(format!("pkcs11-{name}"));
    fs::rename(own, &path).expect("the build's folder is writable");
    path
}
