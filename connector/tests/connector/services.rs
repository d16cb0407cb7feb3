//! What each test begins with: a daemon with one key, an issuer, and connectors before it.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Output};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};
use std::time::{Duration, Instant};

use claviger_provider_api::Algorithm;
use e2e::process::{command, run};
use e2e::setup::{Setup, client_file};
use e2e::{Daemon, DaemonFiles, RsaKey, Token};
use rustix::process::{Pid, Signal, kill_process};

use crate::issuer::Issuer;
use crate::request::{Reply, send};

/// The web vault's origin.
pub(crate) const VAULT: &str = "https://localhost:4443";
const PATIENCE: Duration = Duration::from_mins(1);

/// A daemon and an issuer.
pub(crate) struct Services {
    pub(crate) setup: Setup,
    pub(crate) daemon: Option<Daemon>,
    pub(crate) issuer: Issuer,
    _token: Option<Token>,
    client: PathBuf,
}

/// How a connector stores keys, and where.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) mode: &'static str,
    /// The lines of `[database]`.
    pub(crate) database: String,
    /// Further lines, such as `[limits]`.
    pub(crate) further: String,
}

impl Services {
    /// The key is in a file.
    pub(crate) fn software() -> Self {
        Self::of(Setup::software(), None)
    }

    /// The key is in a SoftHSM token.
    pub(crate) fn softhsm() -> Self {
        let token = Token::softhsm();
        Self::of(Setup::on(&token), Some(token))
    }

    /// The key is the one of `tests/databases/key.pfx`, in a file.
    pub(crate) fn of_the_databases() -> Self {
        let key = pfx();
        let mut files = DaemonFiles::new();
        files.key_folder("files", "keys");
        key.write_pem(&files.path("keys/user-keys.pem"));
        Self::of(Setup::at(files, key, "files", "user-keys.pem", Algorithm::RsaOaep), None)
    }

    /// The key is in each of two SoftHSM tokens.
    pub(crate) fn on_replicas(tokens: &[Token; 2]) -> Self {
        Self::of(Setup::on_replicas(&tokens.each_ref()), None)
    }

    /// For a setup that was made elsewhere, and the token that its key is in.
    pub(crate) fn of(mut setup: Setup, token: Option<Token>) -> Self {
        let daemon = setup.start();
        let client = client_file(&setup.files, &daemon, &setup.caller);
        Self { setup, daemon: Some(daemon), issuer: Issuer::start(), _token: token, client }
    }

    /// A path in the daemon's folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.setup.files.path(name)
    }

    /// `[database]` for a SQLite file of that name.
    pub(crate) fn sqlite(&self, name: &str) -> String {
        format!("kind = 'sqlite'\nfile = '{}'", self.path(name).display())
    }

    /// A configuration file for that, with ports of its own.
    pub(crate) fn configuration(&self, stored: &Stored) -> (PathBuf, SocketAddr, SocketAddr) {
        let [listen, operations] = free_ports();
        let issuer = self.issuer.name();
        let (client, mode, database, further) =
            (self.client.display(), stored.mode, &stored.database, &stored.further);
        let text = format!(
            "[server]\nlisten = '{listen}'\nweb_vault = '{VAULT}/'\nproxies = ['127.0.0.1']\n\
             [operations]\nlisten = '{operations}'\n[issuer]\nurl = '{issuer}'\n\
             [keys]\nclient = '{client}'\nkey = 'user-keys'\nmode = '{mode}'\n\
             [database]\n{database}\n{further}\n"
        );
        let name = format!("connector-{}.toml", listen.port());
        let path = self.setup.files.file(&name, &text, 0o644);
        (path.into(), listen, operations)
    }

    /// Starts a connector and waits until it is healthy.
    pub(crate) fn start(&self, stored: &Stored) -> Connector {
        let connector = self.spawn(stored);
        connector.wait_until_healthy();
        connector
    }

    /// Starts a connector.
    pub(crate) fn spawn(&self, stored: &Stored) -> Connector {
        let (configuration, address, operations) = self.configuration(stored);
        Self::spawn_at(&configuration, address, operations)
    }

    /// Starts a connector by that configuration, which is one of [`Self::configuration`] changed, with
    /// the ports of another.
    pub(crate) fn spawn_file(&self, stored: &Stored, text: &str) -> Connector {
        let (configuration, address, operations) = self.configuration(stored);
        let ours = fs::read_to_string(&configuration).unwrap();
        let listen = |text: &str| -> Vec<String> {
            text.lines().filter(|line| line.starts_with("listen")).map(str::to_owned).collect()
        };
        let mut text = text.to_owned();
        for (theirs, ours) in listen(&text).into_iter().zip(listen(&ours)) {
            text = text.replace(&theirs, &ours);
        }
        let name = configuration.file_name().unwrap().to_str().unwrap().to_owned();
        self.setup.files.file(&name, &text, 0o644);
        Self::spawn_at(&configuration, address, operations)
    }

    /// Starts a connector by that configuration, which names these addresses.
    pub(crate) fn spawn_at(
        configuration: &Path,
        address: SocketAddr,
        operations: SocketAddr,
    ) -> Connector {
        let log = configuration.with_extension("log");
        let file = File::options().create(true).append(true).open(&log).unwrap();
        let child = command(env!("CARGO_BIN_EXE_claviger-connector"))
            .arg("serve")
            .arg("--config")
            .arg(configuration)
            .stderr(file)
            .spawn()
            .unwrap();
        Connector { child, address, operations, log }
    }

    /// Runs a command of the connector to its end.
    pub(crate) fn command(&self, stored: &Stored, arguments: &[&str]) -> Output {
        let (configuration, ..) = self.configuration(stored);
        command(env!("CARGO_BIN_EXE_claviger-connector"))
            .args(arguments)
            .arg("--config")
            .arg(configuration)
            .output()
            .unwrap()
    }

    /// GET /user-keys of a user.
    pub(crate) fn get(&self, connector: &Connector, user: &str) -> Reply {
        connector.user_keys("GET", &self.issuer.token(user), None)
    }

    /// POST or PUT of a user's key.
    pub(crate) fn write(
        &self,
        connector: &Connector,
        method: &str,
        user: &str,
        key: &str,
    ) -> Reply {
        let body = format!("{{\"key\":\"{key}\"}}");
        connector.user_keys(method, &self.issuer.token(user), Some(&body))
    }
}

impl Stored {
    pub(crate) fn shared(database: impl Into<String>) -> Self {
        Self::of("shared-key", database)
    }

    pub(crate) fn per_user(database: impl Into<String>) -> Self {
        Self::of("per-user", database)
    }

    fn of(mode: &'static str, database: impl Into<String>) -> Self {
        let further = "[limits]\nuser = 'off'\nrefused = 'off'".to_owned();
        Self { mode, database: database.into(), further }
    }
}

/// A running connector. When dropped it is killed, by its own process id only.
pub(crate) struct Connector {
    child: Child,
    pub(crate) address: SocketAddr,
    pub(crate) operations: SocketAddr,
    log: PathBuf,
}

impl Connector {
    pub(crate) fn user_keys(&self, method: &str, token: &str, body: Option<&str>) -> Reply {
        let authorization = format!("Bearer {token}");
        let mut headers = vec![("authorization", authorization.as_str())];
        if body.is_some() {
            headers.push(("content-type", "application/json"));
        }
        send(self.address, method, "/user-keys", &headers, body)
    }

    pub(crate) fn wait_until_healthy(&self) {
        self.wait_for(200);
    }

    /// Waits until /health has a status.
    pub(crate) fn wait_for(&self, status: u16) {
        let begun = Instant::now();
        loop {
            let connected = std::net::TcpStream::connect(self.operations).is_ok();
            if connected && send(self.operations, "GET", "/health", &[], None).status == status {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "/health is not {status}:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.pid()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// SIGTERM, and the exit code.
    pub(crate) fn stop(mut self) -> Option<i32> {
        self.signal(Signal::TERM);
        self.child.wait().unwrap().code()
    }
}

impl Drop for Connector {
    fn drop(&mut self) {
        // Both fail only where it has ended and was waited for already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A folder of the repository's.
pub(crate) fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(name)
}

/// The RSA key under which the databases' symmetric keys are wrapped.
fn pfx() -> RsaKey {
    let folder_of_its_own = tempfile::tempdir().unwrap();
    let (pem, der) = (folder_of_its_own.path().join("pem"), folder_of_its_own.path().join("der"));
    run(command("openssl")
        .args(["pkcs12", "-nocerts", "-nodes", "-passin", "pass:test", "-in"])
        .arg(folder("databases/key.pfx"))
        .arg("-out")
        .arg(&pem));
    run(command("openssl")
        .args(["pkcs8", "-topk8", "-nocrypt", "-outform", "DER", "-in"])
        .arg(&pem)
        .arg("-out")
        .arg(&der));
    RsaKey::from_pkcs8(&fs::read(der).unwrap())
}

/// Two free ports on loopback that no other test of this process gets, from below the range that the
/// system hands out to clients.
fn free_ports() -> [SocketAddr; 2] {
    static NEXT: LazyLock<AtomicU16> = LazyLock::new(|| {
        let random = e2e::encoding::random(2);
        AtomicU16::new(10_000 + u16::from_be_bytes([random[0], random[1]]) % 15_000)
    });
    [(); 2].map(|()| {
        loop {
            let address = SocketAddr::from(([127, 0, 0, 1], NEXT.fetch_add(1, Relaxed)));
            if TcpListener::bind(address).is_ok() {
                return address;
            }
        }
    })
}

/// A fresh user.
pub(crate) fn new_user() -> String {
    let bytes = e2e::encoding::random(16);
    let hex = hex::encode(bytes);
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

/// A fresh key of 32 bytes, in Base64.
pub(crate) fn new_key() -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(e2e::encoding::random(32))
}
