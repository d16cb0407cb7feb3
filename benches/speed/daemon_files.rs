//! A folder with certificates and the configuration of a daemon with many keys and callers.

use std::fmt::Write;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use aws_lc_rs::signature::Ed25519KeyPair;
use claviger::cli::local_daemon::free_ports;
use claviger::pki::{Ca, CaOptions, ClientName, DEFAULT_LEAF_VALIDITY};
use claviger_client::{Client, Config};
use tempfile::TempDir;

use crate::Outcome;

/// Each record synced and chained, the chain signed as often as by default.
const AUDITED: &str = r#"file = "audit.jsonl"
checkpoints = { origin = "bench.example/audit", key = "audit.key", file = "checkpoints" }"#;

/// The folder of one server.
pub(crate) struct DaemonFiles {
    folder: TempDir,
    pub(crate) port: u16,
    keys: usize,
}

/// How much a daemon has to know.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) keys: usize,
    pub(crate) callers: usize,
    pub(crate) audit: bool,
}

impl Size {
    /// One key, one caller, audit off.
    pub(crate) const ONE: Self = Self { keys: 1, callers: 1, audit: false };
}

impl DaemonFiles {
    pub(crate) fn new(known: Size) -> Outcome<Self> {
        let files = Self { folder: tempfile::tempdir()?, port: free_ports()?, keys: known.keys };
        let ca = CaOptions { demo: true, ..CaOptions::default() };
        let ca = Ca::create(&files.path("pki"), &ca)?;
        let server = ca.issue_server(&["localhost".to_owned()], DEFAULT_LEAF_VALIDITY)?;
        server.write(&files.path("pki/server.crt"), &files.path("pki/server.key"))?;
        // One from the middle: neither the first nor the last in any list.
        let caller = ClientName::Spiffe(spiffe(known.callers / 2));
        let client = ca.issue_client(&caller, DEFAULT_LEAF_VALIDITY)?;
        client.write(&files.path("pki/client.crt"), &files.path("pki/client.key"))?;
        fs::create_dir(files.path("keys"))?;
        if known.audit {
            let key = Ed25519KeyPair::generate()?.to_pkcs8()?;
            let pem = claviger_files::pem::encode("PRIVATE KEY", key.as_ref());
            let mut file = OpenOptions::new();
            let mut file =
                file.write(true).create_new(true).mode(0o600).open(files.path("audit.key"))?;
            file.write_all(pem.as_bytes())?;
        }
        fs::write(files.config(), files.configuration(known))?;
        Ok(files)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.path("claviger.toml")
    }

    /// The names of all keys.
    pub(crate) fn keys(&self) -> Vec<String> {
        (0..self.keys).map(key).collect()
    }

    /// Clients with a connection each. Needs a tokio runtime.
    pub(crate) fn clients(&self, connections: usize) -> Outcome<Vec<Client>> {
        let [ca, certificate, key] =
            ["ca.crt", "client.crt", "client.key"].map(|name| self.path("pki").join(name));
        let endpoint = format!("https://localhost:{}", self.port);
        let config = Config::new(&[endpoint], Some(&ca), Some(&certificate), Some(&key))?;
        let mut clients = Vec::new();
        for _ in 0..connections {
            clients.push(Client::new(&config)?);
        }
        Ok(clients)
    }

    /// Grants and limits as in service; the pins are numbers, as no key ever opens.
    fn configuration(&self, size: Size) -> String {
        let audit = if size.audit { AUDITED } else { "off = true" };
        let mut text = format!(
            r#"[server]
listen    = ["127.0.0.1:{}"]
state_dir = "state"
max_connections_per_caller = 16384
[server.tls]
certificate = "pki/server.crt"
private_key = "pki/server.key"
client_ca   = {{ clients = "pki/ca.crt" }}
[operations]
listen = "127.0.0.1:{}"
[audit]
{audit}
[log]
filter = "warn"
[providers.nothing]
type      = "software"
directory = "keys"
"#,
            self.port,
            self.port + 1
        );
        for number in 0..size.keys {
            let name = key(number);
            let _ = write!(
                text,
                r#"[keys.{name}]
algorithms = ["RSA-OAEP"]
[[keys.{name}.versions]]
version           = 1
state             = "active"
replicas          = [{{ provider = "nothing", locator = "{name}" }}]
public_key_sha256 = "{number:064x}"
"#
            );
        }
        let granted = self.keys().iter().map(|name| format!("{name:?}")).collect::<Vec<_>>();
        let granted = granted.join(", ");
        for number in 0..size.callers {
            let _ = write!(
                text,
                r#"[[callers]]
name   = "caller-{number}"
match  = {{ spiffe = "{}" }}
grants = [{{ keys = [{granted}], operations = ["unwrap", "read"] }}]
limits = {{ rate = "1000000/s", failed_unwraps = "100/h" }}
"#,
                spiffe(number)
            );
        }
        text
    }
}

fn key(number: usize) -> String {
    format!("key-{number:05}")
}

fn spiffe(caller: usize) -> String {
    format!("spiffe://bench.example/caller-{caller:05}")
}
