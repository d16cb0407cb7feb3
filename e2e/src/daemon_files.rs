//! A folder with one daemon's configuration and everything that it names: certificates, state
//! directory, audit log. It outlives restarts of its daemon.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use toml::{Table, Value};

use crate::pki::{Identity, Pki, replace};
use crate::rsa_key::RsaKey;
use crate::token::Token;

/// The files of one daemon.
#[derive(Debug)]
pub struct DaemonFiles {
    folder: TempDir,
    /// Who issues certificates here.
    pub pki: Pki,
    /// The configuration, to be changed by tests; [`DaemonFiles::write`] makes a file of it.
    pub configuration: Table,
    environment: Vec<(OsString, OsString)>,
}

/// A version of a key, as a test configures it.
#[derive(Clone, Debug)]
pub struct Version(Table);

impl Version {
    /// An active version with one replica, pinned to `key`.
    pub fn active(number: i64, key: &RsaKey, provider: &str, locator: &str) -> Self {
        let mut version = Table::new();
        version.insert("version".into(), number.into());
        version.insert("state".into(), "active".into());
        version.insert("public_key_sha256".into(), key.public_key_sha256().into());
        version.insert("replicas".into(), Value::Array(Vec::new()));
        Self(version).replica(provider, locator)
    }

    /// One more replica.
    #[must_use]
    pub fn replica(mut self, provider: &str, locator: &str) -> Self {
        let mut replica = Table::new();
        replica.insert("provider".into(), provider.into());
        replica.insert("locator".into(), locator.into());
        let replicas = self.0["replicas"].as_array_mut().expect("made as an array");
        replicas.push(replica.into());
        self
    }

    /// Sets one option: `state`, `algorithms`, `sign_algorithms`, `public_key_sha256`, …
    #[must_use]
    pub fn with(mut self, option: &str, value: impl Into<Value>) -> Self {
        self.0.insert(option.into(), value.into());
        self
    }
}

impl DaemonFiles {
    /// A folder with a CA, a server certificate, a state directory, an audit file, and
    /// free ports on loopback. Providers, keys and callers are still to come.
    #[expect(clippy::new_without_default, reason = "each call makes another folder")]
    pub fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("claviger-daemon-").tempdir();
        let folder = folder.expect("the temporary folder is writable");
        let mut files =
            Self { folder, pki: Pki::new(), configuration: Table::new(), environment: Vec::new() };
        fs::create_dir(files.path("state")).expect("a fresh folder is writable");
        replace(&files.path("clients.pem"), &files.pki.ca_pem(), 0o644);
        let (certificate, private_key) = files.pki.server().write(files.folder.path(), "server");
        files.set("server.state_dir", path_value(&files.path("state")));
        files.set("server.tls.certificate", path_value(&certificate));
        files.set("server.tls.private_key", path_value(&private_key));
        files.set("server.tls.client_ca.clients", path_value(&files.path("clients.pem")));
        files.set("audit.file", path_value(&files.audit_file()));
        // The disk of a machine that tests may be slow.
        files.set("audit.hang_limit", "1m");
        files.choose_ports();
        files
    }

    /// A path in the daemon's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file into the folder, by rename; gives its path, as a configuration names it.
    pub fn file(&self, name: &str, content: &str, mode: u32) -> String {
        let path = self.path(name);
        replace(&path, content, mode);
        path.to_str().expect("temporary paths are UTF-8").to_owned()
    }

    /// The configuration file.
    pub fn configuration_file(&self) -> PathBuf {
        self.path("claviger.toml")
    }

    /// The audit log.
    pub fn audit_file(&self) -> PathBuf {
        self.path("audit.jsonl")
    }

    /// The records of the audit log so far, each a JSON object, once none has come for a moment: a refusal
    /// is written beside its answer, and not before it.
    pub fn audit_records(&self) -> Vec<serde_json::Value> {
        let read = || fs::read_to_string(self.audit_file()).unwrap_or_default();
        let mut text = read();
        for _ in 0..20 {
            std::thread::sleep(Duration::from_millis(10));
            let before = std::mem::replace(&mut text, read());
            if before == text {
                break;
            }
        }
        // The last line may be half written.
        let whole = text.rfind('\n').map_or("", |end| &text[..=end]);
        whole
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}")))
            .collect()
    }

    /// The records of a caller, once there are so many.
    pub fn audit_records_of(&self, caller: &str, at_least: usize) -> Vec<serde_json::Value> {
        let begun = Instant::now();
        loop {
            let mut records = self.audit_records();
            records.retain(|record| record["caller"] == caller);
            if records.len() >= at_least {
                return records;
            }
            assert!(begun.elapsed() < Duration::from_secs(30), "{records:#?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The request ids in the audit log and its rotated files.
    pub fn recorded(&self) -> HashSet<String> {
        let mut ids = HashSet::new();
        for entry in fs::read_dir(self.folder.path()).expect("it is ours") {
            let path = entry.expect("it is ours").path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let is_rotated =
                |ending: &str| ending.bytes().all(|b| matches!(b, b'0'..=b'9' | b'.' | b'-'));
            if name.strip_prefix("audit.jsonl").is_some_and(is_rotated) {
                let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{name}: {e}"));
                ids.extend(request_ids(&text));
            }
        }
        ids
    }

    /// Sets one option by its path, such as `server.drain_timeout`, making tables on the way.
    pub fn set(&mut self, path: &str, value: impl Into<Value>) {
        let (tables, option) = path.rsplit_once('.').map_or(("", path), |split| split);
        let mut table = &mut self.configuration;
        for name in tables.split('.').filter(|name| !name.is_empty()) {
            let entry = table.entry(name).or_insert_with(|| Table::new().into());
            table = entry.as_table_mut().unwrap_or_else(|| panic!("{path}: {name} is no table"));
        }
        table.insert(option.into(), value.into());
    }

    /// Adds a provider.
    pub fn provider(&mut self, name: &str, options: Table) {
        self.set(&format!("providers.{name}"), options);
    }

    /// Adds a folder inside the daemon's, which it makes, as a provider of keys in files.
    pub fn key_folder(&mut self, name: &str, folder: &str) {
        let path = self.path(folder);
        fs::create_dir(&path).expect("the files's folder is writable");
        fs::set_permissions(&path, Permissions::from_mode(0o700)).expect("it is ours");
        let options = [("type", "software".into()), ("directory", path_value(&path))];
        let options = options.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        self.provider(name, options);
    }

    /// Adds a token as a provider, and what its module needs to the daemon's environment.
    pub fn token(&mut self, name: &str, token: &Token) {
        self.provider(name, token.provider());
        self.environment.extend(token.environment().iter().cloned());
    }

    /// Puts a variable into the daemon's environment.
    pub fn variable(&mut self, name: &str, value: impl Into<OsString>) {
        self.environment.push((name.into(), value.into()));
    }

    /// Adds a key, newest version first.
    pub fn key(&mut self, name: &str, algorithms: &[&str], versions: Vec<Version>) {
        let mut key = Table::new();
        key.insert("algorithms".into(), strings(algorithms));
        let versions = versions.into_iter().map(|version| version.0.into()).collect();
        key.insert("versions".into(), Value::Array(versions));
        self.set(&format!("keys.{name}"), key);
    }

    /// Adds a caller with one grant and gives it a certificate that names it.
    pub fn caller(&mut self, name: &str, keys: &[&str], operations: &[&str]) -> Identity {
        let mut grant = Table::new();
        grant.insert("keys".into(), strings(keys));
        grant.insert("operations".into(), strings(operations));
        self.add_caller(name, vec![Value::from(grant)].into())
    }

    /// The same with grants as the configuration has them: `[{ keys = ["a"], … }]`.
    pub fn caller_with(&mut self, name: &str, grants: &str) -> Identity {
        let table: Table = format!("grants = {grants}").parse().expect("grants in TOML");
        self.add_caller(name, table["grants"].clone())
    }

    fn add_caller(&mut self, name: &str, grants: Value) -> Identity {
        let spiffe = format!("spiffe://example.org/{name}");
        let mut caller = Table::new();
        caller.insert("name".into(), name.into());
        caller.insert(
            "match".into(),
            Table::from_iter([("spiffe".to_owned(), Value::from(spiffe.as_str()))]).into(),
        );
        caller.insert("grants".into(), grants);
        self.callers().push(caller.into());
        self.pki.client(&spiffe)
    }

    /// Adds a caller by token with one grant; `found` is the inside of its `match`.
    pub fn token_caller(&mut self, name: &str, found: &str, keys: &[&str], operations: &[&str]) {
        let mut grant = Table::new();
        grant.insert("keys".into(), strings(keys));
        grant.insert("operations".into(), strings(operations));
        let mut caller: Table = format!("match = {{ {found} }}").parse().expect("a match in TOML");
        caller.insert("name".into(), name.into());
        caller.insert("grants".into(), vec![Value::from(grant)].into());
        self.callers().push(caller.into());
    }

    /// Sets an option of a caller that was added: `limits.rate`, `limits.failed_unwraps`, …
    pub fn limit(&mut self, caller: &str, limit: &str, value: &str) {
        let table = self
            .callers()
            .iter_mut()
            .filter_map(Value::as_table_mut)
            .find(|table| table["name"].as_str() == Some(caller))
            .unwrap_or_else(|| panic!("no caller {caller:?} was added"));
        let limits = table.entry("limits").or_insert_with(|| Table::new().into());
        limits.as_table_mut().expect("made as a table").insert(limit.into(), value.into());
    }

    fn callers(&mut self) -> &mut Vec<Value> {
        let callers =
            self.configuration.entry("callers").or_insert_with(|| Vec::<Value>::new().into());
        callers.as_array_mut().expect("made as an array")
    }

    /// Writes the configuration file, by rename.
    pub fn write(&self) {
        replace(&self.configuration_file(), &self.configuration.to_string(), 0o644);
    }

    /// Where callers connect.
    pub fn address(&self) -> SocketAddr {
        parse_address(&self.configuration["server"]["listen"][0])
    }

    /// Where /readyz and /metrics are.
    pub fn operations_address(&self) -> SocketAddr {
        parse_address(&self.configuration["operations"]["listen"])
    }

    /// What the daemon finds in its environment beside the ordinary.
    pub fn environment(&self) -> &[(OsString, OsString)] {
        &self.environment
    }

    /// Gives the next daemon a state directory, an audit file and ports of its own, so that it can
    /// stand in for the one that runs.
    pub fn next_daemon_is_another(&mut self) {
        let state = self.path("second-state");
        fs::create_dir(&state).expect("the files's folder is writable");
        self.set("server.state_dir", path_value(&state));
        self.set("audit.file", path_value(&self.path("second-audit.jsonl")));
        self.choose_ports();
    }

    /// Takes other ports, where the last ones were taken.
    pub(crate) fn choose_ports(&mut self) {
        let [service, operations] = free_ports();
        self.set("server.listen", vec![Value::from(format!("127.0.0.1:{service}"))]);
        self.set("operations.listen", format!("127.0.0.1:{operations}"));
    }
}

/// The request ids in these lines of an audit log.
pub fn request_ids(lines: &str) -> HashSet<String> {
    let id = |line: &str| {
        let record: serde_json::Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        record["request_id"].as_str().map(str::to_owned)
    };
    lines.lines().filter_map(id).collect()
}

/// Two free ports on loopback, from below the range that the system hands out to clients: there,
/// any connection of another test could take a port between two starts of the same daemon.
fn free_ports() -> [u16; 2] {
    let mut bytes = [0; 2];
    let mut free = || loop {
        aws_lc_rs::rand::fill(&mut bytes).expect("random bytes");
        let port = 10_000 + u16::from_ne_bytes(bytes) % 20_000;
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)) {
            return (port, listener);
        }
    };
    // Both listeners are open until both ports are known, so that the ports differ.
    let (first, second) = (free(), free());
    [first.0, second.0]
}

fn parse_address(value: &Value) -> SocketAddr {
    let text = value.get("address").unwrap_or(value).as_str();
    text.and_then(|text| text.parse().ok()).expect("a TCP address was configured")
}

fn path_value(path: &Path) -> Value {
    path.to_str().expect("temporary paths are UTF-8").into()
}

fn strings(items: &[&str]) -> Value {
    Value::Array(items.iter().map(|item| Value::from(*item)).collect())
}
