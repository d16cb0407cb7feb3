//! A daemon of one's own with all it needs in one folder: CA, certificates, key, configuration,
//! process. The demo and the benchmarks share it.

mod daemon;
mod key;
#[cfg(feature = "pkcs11")]
pub mod softhsm;

use std::fs::{File, TryLockError};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use claviger_files::NewMode;
pub use daemon::{Daemon, is_ready};
pub use key::{Backend, KEY_FILE, LocalKey, make_key_file, read_public};

use super::failure::{Exit, Failure};
use crate::pki::{Ca, CaOptions, ClientName};

/// The name of the local daemon's key.
pub const KEY: &str = "user-keys";
/// The SPIFFE identity of the local daemon's client.
pub const CLIENT: &str = "spiffe://demo.claviger.example/key-connector";
/// What a folder was made with whose configuration has no provider `demo`.
const TWO: &str = "two HSMs";
/// The certificates are made anew at each run.
const VALIDITY: Duration = Duration::from_hours(30 * 24);

/// The folder.
#[derive(Clone, Debug)]
pub struct LocalDaemon {
    /// The folder itself.
    pub dir: PathBuf,
    /// The daemon's configuration.
    pub config: PathBuf,
    /// The client's configuration.
    pub client: PathBuf,
    /// Where the daemon listens.
    pub port: u16,
    /// Where its operations listener is: in a new folder the next port.
    pub operations_port: u16,
}

impl LocalDaemon {
    /// A local daemon in `dir`, which is made if it is missing. `port` is for a new one.
    pub fn open(dir: &Path, port: u16) -> Result<Self, Failure> {
        make_private_dir(dir)?;
        let config = configuration_of(dir);
        let port_of = |field| config.as_ref().and_then(|config| port_of(config, field));
        let port = port_of("server").unwrap_or(port);
        Ok(Self {
            dir: dir.to_owned(),
            config: dir.join("claviger.toml"),
            client: dir.join("client.toml"),
            port,
            operations_port: port_of("operations").unwrap_or(port.saturating_add(1)),
        })
    }

    /// Makes `port` the daemon's, and the next one its operations listener's, in the configurations of
    /// a folder that has some. The rest of them stays as it is.
    pub fn use_port(&mut self, port: u16) -> Result<(), Failure> {
        let operations = port.saturating_add(1);
        (self.port, self.operations_port) = (port, operations);
        if !self.config.exists() {
            return Ok(());
        }
        edit(&self.config, |config| {
            config["server"]["listen"] = array_of(format!("127.0.0.1:{port}"));
            config["operations"]["listen"] = toml_edit::value(format!("127.0.0.1:{operations}"));
        })?;
        edit(&self.client, |client| {
            client["endpoint"] = toml_edit::value(format!("https://localhost:{port}"));
        })
    }

    /// Locks the folder until the file is dropped, so that no other process of this program changes what is in it.
    pub fn alone(&self) -> Result<File, Failure> {
        let folder = File::open(&self.dir);
        let folder = folder.map_err(|error| failed(&self.dir.display().to_string(), &error))?;
        match folder.try_lock() {
            Ok(()) => Ok(folder),
            Err(TryLockError::WouldBlock) => {
                let message = format!("a demo runs in {} already", self.dir.display());
                Err(Failure::new(Exit::Unavailable, message)
                    .advise("End it or name another folder with --dir."))
            }
            Err(TryLockError::Error(error)) => Err(failed("locking the folder", &error)),
        }
    }

    /// Refuses ports that another program listens on: it would be taken for the daemon.
    pub fn check_ports_are_free(&self) -> Result<(), Failure> {
        for port in [self.port, self.operations_port] {
            TcpListener::bind(("127.0.0.1", port)).map_err(|error| {
                let message = format!("port {port} of 127.0.0.1 is taken: {error}");
                Failure::new(Exit::Unavailable, message).advise("Name another one with --port.")
            })?;
        }
        Ok(())
    }

    /// Refuses a folder that was made with another kind of backend: what is in it stays as it is.
    pub fn check_backend(&self, backend: Backend) -> Result<(), Failure> {
        self.check_made_with(&format!("a provider of type {:?}", backend.type_name()))
    }

    /// Refuses a folder that was not made with two HSMs.
    #[cfg(feature = "pkcs11")]
    pub fn check_two(&self) -> Result<(), Failure> {
        self.check_made_with(TWO)
    }

    fn check_made_with(&self, wanted: &str) -> Result<(), Failure> {
        match made_with(&self.dir) {
            Some(other) if other != wanted => {
                let dir = self.dir.display();
                let message = format!("{dir} is the folder of a demo with {other}, not {wanted}");
                Err(Failure::new(Exit::Usage, message).advise("Name another folder with --dir."))
            }
            _ => Ok(()),
        }
    }

    /// Writes the two configurations, if they are missing: every call audited, unless `audit` is
    /// false.
    pub fn configure(&self, key: &LocalKey, audit: bool) -> Result<(), Failure> {
        if self.config.exists() {
            return Ok(());
        }
        self.check_ports_are_free()?;
        self.configure_anew(key, audit)
    }

    /// Writes them in any case.
    pub fn configure_anew(&self, key: &LocalKey, audit: bool) -> Result<(), Failure> {
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

    fn configuration(&self, key: &LocalKey, audit: bool) -> String {
        let Self { port, operations_port: operations, .. } = self;
        let LocalKey { providers, replicas, algorithms, public_key } = key;
        let replica = |(provider, locator): &(&str, &str)| {
            format!("{{ provider = \"{provider}\", locator = \"{locator}\" }}")
        };
        let replicas = replicas.iter().map(replica).collect::<Vec<_>>().join(", ");
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

{providers}
[keys.{KEY}]
algorithms = {algorithms}

[[keys.{KEY}.versions]]
version           = 1
state             = "active"
replicas          = [{replicas}]
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

/// Changes a TOML file; comments and format are kept.
pub fn edit(path: &Path, change: impl FnOnce(&mut toml_edit::DocumentMut)) -> Result<(), Failure> {
    let shown = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|error| failed(&shown, &error))?;
    let mut document = text
        .parse::<toml_edit::DocumentMut>()
        .map_err(|error| Failure::new(Exit::Configuration, format!("{shown}: {error}")))?;
    change(&mut document);
    write(path, document.to_string().as_bytes())
}

fn array_of(text: String) -> toml_edit::Item {
    toml_edit::value(toml_edit::Array::from_iter([text]))
}

/// The folder's configuration, if it has one.
fn configuration_of(dir: &Path) -> Option<toml::Table> {
    std::fs::read_to_string(dir.join("claviger.toml")).ok()?.parse().ok()
}

/// The kind of backend that a folder was made with, if it was.
pub fn backend_of(dir: &Path) -> Option<Backend> {
    let config = configuration_of(dir)?;
    Backend::named(type_of(&config)?)
}

/// What a folder was made with, if it was.
fn made_with(dir: &Path) -> Option<String> {
    let config = configuration_of(dir)?;
    let one = type_of(&config).map(|name| format!("a provider of type {name:?}"));
    Some(one.unwrap_or_else(|| TWO.to_owned()))
}

/// The type of the provider that a configuration of one provider names.
fn type_of(config: &toml::Table) -> Option<&str> {
    config.get("providers")?.get("demo")?.get("type")?.as_str()
}

/// The first port that a table of the configuration listens on.
fn port_of(config: &toml::Table, table: &str) -> Option<u16> {
    let listen = config.get(table)?.get("listen")?;
    let first = listen.get(0).unwrap_or(listen).as_str()?;
    first.rsplit_once(':')?.1.parse().ok().filter(|port| *port != 0)
}

/// A port of loopback that is free, as is the next one.
pub fn free_ports() -> Result<u16, Failure> {
    let listen = |port| TcpListener::bind(("127.0.0.1", port));
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

/// Writes a file for ourselves alone, in the place of an old one.
pub fn write(path: &Path, content: &[u8]) -> Result<(), Failure> {
    claviger_files::replace(path, content, NewMode::Exactly(0o600))
        .map_err(|error| failed(&path.display().to_string(), &error))
}

fn failed(what: &str, error: &dyn std::error::Error) -> Failure {
    Failure::new(Exit::Failure, format!("{what}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_demo_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let local = LocalDaemon::open(folder.path(), 8443).unwrap();
        let alone = local.alone().unwrap();
        let other = LocalDaemon::open(folder.path(), 8443).unwrap();
        let said = other.alone().unwrap_err().to_string();
        assert!(said.contains("a demo runs in") && said.contains("--dir"), "{said}");
        // Not only dropped: a process that another test starts may hold a copy for a moment.
        alone.unlock().unwrap();
        other.alone().unwrap();
    }

    #[test]
    fn a_folder_keeps_the_ports_of_its_configuration_and_both_must_be_free() {
        let folder = tempfile::tempdir().unwrap();
        // Another program may take one meanwhile.
        let new = (0..10).find_map(|_| {
            let port = free_ports().unwrap();
            let new = LocalDaemon::open(folder.path(), port).unwrap();
            assert_eq!((new.port, new.operations_port), (port, port + 1));
            new.check_ports_are_free().is_ok().then_some(new)
        });
        let new = new.expect("two ports that are free");
        let port = new.port;
        let config = |port: u16, operations: u16| {
            format!(
                "[server]\nlisten = [\"127.0.0.1:{port}\"]\n\
                 [operations]\nlisten = \"127.0.0.1:{operations}\"\n"
            )
        };
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = (taken.local_addr().unwrap().port(), taken);
        for (ours, operations) in [(taken.0, port), (port, taken.0)] {
            std::fs::write(&new.config, config(ours, operations)).unwrap();
            let kept = LocalDaemon::open(folder.path(), 8443).unwrap();
            assert_eq!((kept.port, kept.operations_port), (ours, operations));
            let said = kept.check_ports_are_free().unwrap_err().to_string();
            assert!(said.contains(" of 127.0.0.1 is taken"), "{said}");
            assert!(said.contains("--port"), "{said}");
        }
    }

    #[test]
    fn a_port_that_is_asked_for_replaces_the_ones_of_an_old_folder_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let mut local = LocalDaemon::open(folder.path(), 8443).unwrap();
        let config = "# mine\n[server]\nlisten = [\"127.0.0.1:8443\"]\ndrain_timeout = \"1s\" # short\n[operations]\nlisten = \"127.0.0.1:8444\"\n";
        std::fs::write(&local.config, config).unwrap();
        std::fs::write(&local.client, "endpoint = \"https://localhost:8443\"\n").unwrap();
        local.use_port(9000).unwrap();
        let again = LocalDaemon::open(folder.path(), 8443).unwrap();
        assert_eq!((again.port, again.operations_port), (9000, 9001));
        let changed = config.replace("8443", "9000").replace("8444", "9001");
        assert_eq!(std::fs::read_to_string(&local.config).unwrap(), changed);
        let client = std::fs::read_to_string(&local.client).unwrap();
        assert_eq!(client, "endpoint = \"https://localhost:9000\"\n");
    }
}
