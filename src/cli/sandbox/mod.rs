//! A daemon of one's own with all it needs in one folder: CA, certificates, key, configuration,
//! process. The demo and the benchmarks share it.

mod daemon;
mod key;
#[cfg(feature = "pkcs11")]
pub mod softhsm;

use std::path::{Path, PathBuf};
use std::time::Duration;

pub use daemon::{Daemon, is_ready};
pub use key::{Backend, SandboxKey};

use super::failure::{Exit, Failure};
use crate::pki::{Ca, CaOptions, ClientName};

/// The name of the sandbox's key.
pub const KEY: &str = "user-keys";
/// Who the sandbox's client is.
pub const CLIENT: &str = "spiffe://demo.claviger.example/key-connector";
/// The certificates are made anew at each run.
const VALIDITY: Duration = Duration::from_hours(30 * 24);

/// The folder.
#[derive(Clone, Debug)]
pub struct Sandbox {
    /// The folder itself.
    pub dir: PathBuf,
    /// The daemon's configuration.
    pub config: PathBuf,
    /// The client's configuration.
    pub client: PathBuf,
    /// Where the daemon listens; the next port is for operations.
    pub port: u16,
}

impl Sandbox {
    /// A sandbox in `dir`, which is made if it is missing. `port` only counts in a new one.
    pub fn open(dir: &Path, port: u16) -> Result<Self, Failure> {
        make_private_dir(dir)?;
        Ok(Self {
            dir: dir.to_owned(),
            config: dir.join("claviger.toml"),
            client: dir.join("client.toml"),
            port: port_of(dir).unwrap_or(port),
        })
    }

    /// Refuses a folder that was made with another kind of backend: what is in it stays as it is.
    pub fn check_backend(&self, backend: Backend) -> Result<(), Failure> {
        let type_name = backend.type_name();
        match type_of(&self.dir) {
            Some(other) if other != type_name => {
                let message = format!(
                    "{} is the folder of a demo with a provider of type {other:?}, not {type_name:?}",
                    self.dir.display()
                );
                Err(Failure::new(Exit::Usage, message).advise("Name another folder with --dir."))
            }
            _ => Ok(()),
        }
    }

    /// Writes the two configurations, if they are missing: every call audited, unless `audit` is
    /// false.
    pub fn configure(&self, key: &SandboxKey, audit: bool) -> Result<(), Failure> {
        if self.config.exists() {
            return Ok(());
        }
        check_port_is_free(self.port)?;
        write(&self.config, self.configuration(key, audit).as_bytes())?;
        write(&self.client, self.client_configuration().as_bytes())
    }

    /// A development CA, made if it is missing, and new certificates for both ends.
    pub fn prepare_certificates(&self) -> Result<(), Failure> {
        let pki = self.dir.join("pki");
        let ca = if pki.join("ca.crt").exists() {
            Ca::load(&pki)
        } else {
            let common_name = "Claviger demo CA".to_owned();
            Ca::create(&pki, &CaOptions { common_name, demo: true, ..CaOptions::default() })
        };
        let issue = |ca: &Ca| {
            let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
            let server = ca.issue_server(&names, VALIDITY)?;
            let client = ca.issue_client(&ClientName::Spiffe(CLIENT.to_owned()), VALIDITY)?;
            for (name, issued) in [("server", server), ("key-connector", client)] {
                let files =
                    [pki.join(name).with_extension("crt"), pki.join(name).with_extension("key")];
                // Those of the last run: certificates are not written over.
                for file in &files {
                    let _ = std::fs::remove_file(file);
                }
                issued.write(&files[0], &files[1])?;
            }
            Ok(())
        };
        ca.and_then(|ca| issue(&ca)).map_err(|error| failed("the development CA", &error))
    }

    fn configuration(&self, key: &SandboxKey, audit: bool) -> String {
        let Self { port, .. } = self;
        let operations = port + 1;
        let SandboxKey { provider, locator, algorithms, public_key } = key;
        let pin = hex::encode(public_key.sha256());
        let audit = if audit { "file = \"audit.jsonl\"" } else { "off = true" };
        format!(
            r#"# Made by `claviger demo`, which alone accepts its certificates; yours to change.

[server]
listen    = ["127.0.0.1:{port}"]
state_dir = "state"

[server.tls]
certificate = "pki/server.crt"
private_key = "pki/server.key"
client_ca   = {{ clients = "pki/ca.crt" }}

[operations]
listen = "127.0.0.1:{operations}"

[providers.demo]
{provider}

[keys.{KEY}]
algorithms = {algorithms}

[[keys.{KEY}.versions]]
version           = 1
state             = "active"
replicas          = [{{ provider = "demo", locator = "{locator}" }}]
public_key_sha256 = "{pin}"

[[callers]]
name   = "key-connector"
match  = {{ spiffe = "{CLIENT}" }}
grants = [{{ keys = ["{KEY}"], operations = ["wrap", "unwrap", "read"] }}]

[audit]
{audit}
"#
        )
    }

    fn client_configuration(&self) -> String {
        format!(
            r#"# Made by `claviger demo`: how a client reaches its daemon.
endpoint    = "https://localhost:{}"
ca          = "pki/ca.crt"
certificate = "pki/key-connector.crt"
private_key = "pki/key-connector.key"
"#,
            self.port
        )
    }
}

/// The folder's configuration, if it has one.
fn configuration_of(dir: &Path) -> Option<toml::Table> {
    std::fs::read_to_string(dir.join("claviger.toml")).ok()?.parse().ok()
}

/// The type of the provider that the folder's configuration names.
fn type_of(dir: &Path) -> Option<String> {
    let config = configuration_of(dir)?;
    Some(config.get("providers")?.get("demo")?.get("type")?.as_str()?.to_owned())
}

/// The port that the folder's configuration names.
fn port_of(dir: &Path) -> Option<u16> {
    let config = configuration_of(dir)?;
    let listen = config.get("server")?.get("listen")?.get(0)?.as_str()?;
    listen.rsplit_once(':')?.1.parse().ok()
}

fn check_port_is_free(port: u16) -> Result<(), Failure> {
    for port in [port, port.saturating_add(1)] {
        std::net::TcpListener::bind(("127.0.0.1", port)).map_err(|error| {
            Failure::new(Exit::Unavailable, format!("port {port} of 127.0.0.1 is taken: {error}"))
                .advise("Name another one with --port.")
        })?;
    }
    Ok(())
}

/// A port of loopback that is free, as is the next one.
pub fn free_ports() -> Result<u16, Failure> {
    let listen = |port| std::net::TcpListener::bind(("127.0.0.1", port));
    let free = (0..100).find_map(|_| {
        let port = listen(0).ok()?.local_addr().ok()?.port();
        listen(port.checked_add(1)?).ok()?;
        Some(port)
    });
    free.ok_or_else(|| Failure::new(Exit::Unavailable, "127.0.0.1 has no two free ports in a row"))
}

/// A folder for ourselves alone.
pub(super) fn make_private_dir(dir: &Path) -> Result<(), Failure> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|error| failed(&dir.display().to_string(), &error))
}

/// Writes a file for ourselves alone: a new one, renamed over the old one.
pub(super) fn write(path: &Path, content: &[u8]) -> Result<(), Failure> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let new = path.with_extension("new");
    let _ = std::fs::remove_file(&new);
    let write = || {
        let mut file =
            std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(content)?;
        std::fs::rename(&new, path)
    };
    write().map_err(|error| failed(&path.display().to_string(), &error))
}

fn failed(what: &str, error: &dyn std::error::Error) -> Failure {
    Failure::new(Exit::Failure, format!("{what}: {error}"))
}
