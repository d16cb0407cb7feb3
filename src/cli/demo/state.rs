//! What the demo keeps between runs: a CA and certificates, a key, two configuration files.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::key::DemoKey;
use super::{Args, KEY, failed};
use crate::cli::failure::{Exit, Failure};
use crate::pki::{Ca, CaOptions, ClientName};

/// Who the demo's client is.
const CLIENT: &str = "spiffe://demo.claviger.example/key-connector";
/// The demo's certificates are made anew at each run.
const VALIDITY: Duration = Duration::from_hours(30 * 24);

/// The demo's folder.
pub(super) struct State {
    /// The folder itself.
    pub dir: PathBuf,
    /// The daemon's configuration.
    pub config: PathBuf,
    /// The client's configuration.
    pub client: PathBuf,
    /// Where the daemon listens; the next port is for operations.
    pub port: u16,
}

impl State {
    /// Makes what is missing, and says what there is: steps 1 and 2.
    pub(super) fn prepare(dir: &Path, args: &Args) -> Result<Self, Failure> {
        make_private_dir(dir)?;
        let state = Self {
            dir: dir.to_owned(),
            config: dir.join("claviger.toml"),
            client: dir.join("client.toml"),
            port: port_of(dir).unwrap_or(args.port),
        };
        state.prepare_certificates()?;
        let key = DemoKey::prepare(&state, args)?;
        if !state.config.exists() {
            check_port_is_free(state.port)?;
            write(&state.config, state.configuration(&key).as_bytes())?;
            write(&state.client, state.client_configuration().as_bytes())?;
        }
        Ok(state)
    }

    /// Keeps the wrapped value, as a Key Connector does.
    pub(super) fn write_wrapped(&self, wrapped: &[u8]) -> Result<(), Failure> {
        write(&self.dir.join("wrapped.bin"), wrapped)
    }

    fn prepare_certificates(&self) -> Result<(), Failure> {
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
                files.iter().for_each(|file| drop(std::fs::remove_file(file)));
                issued.write(&files[0], &files[1])?;
            }
            Ok(())
        };
        ca.and_then(|ca| issue(&ca)).map_err(|error| failed("the development CA", &error))?;
        println!(
            "1. A development CA issues the certificates of both ends, in pki/: the daemon's, and \
             one for\n   {CLIENT}.\n"
        );
        Ok(())
    }

    fn configuration(&self, key: &DemoKey) -> String {
        let Self { port, .. } = self;
        let operations = port + 1;
        let DemoKey { provider, locator, algorithms, public_key_sha256 } = key;
        let pin = hex::encode(public_key_sha256);
        format!(
            r#"# Made by `claviger demo`; yours to change. `claviger config check --config FILE` checks it.

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
file = "audit.jsonl"
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

/// `claviger/demo` in the user's data folder.
pub(super) fn default_dir(softhsm: bool) -> Result<PathBuf, Failure> {
    let data =
        std::env::var_os("XDG_DATA_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/share"));
    let data = data.or(home).ok_or_else(|| {
        Failure::new(Exit::Usage, "HOME is not set").advise("Name a folder with --dir.")
    })?;
    Ok(data.join("claviger").join(if softhsm { "demo-softhsm" } else { "demo" }))
}

/// The port that the folder's configuration names.
fn port_of(dir: &Path) -> Option<u16> {
    let text = std::fs::read_to_string(dir.join("claviger.toml")).ok()?;
    let config: toml::Table = text.parse().ok()?;
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
