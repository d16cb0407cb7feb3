//! What most tests begin with: a daemon's files with one key, `user-keys`, and one caller who may
//! use it.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use claviger_client::{Client, Config, Health};
use claviger_proto::v1::UnwrapRequest;
use claviger_provider_api::{Algorithm, KeyMaterial, Parameters};
use tonic::Code;

use crate::connection::Connection;
use crate::daemon::Daemon;
use crate::daemon_files::{DaemonFiles, Version};
use crate::pki::Identity;
use crate::rsa_key::RsaKey;
use crate::token::Token;

/// The key's name.
pub const KEY: &str = "user-keys";
/// What is wrapped under it.
pub const MATERIAL: [u8; 32] = *b"thirty-two bytes of key material";

/// A daemon's files with one key and one caller.
#[derive(Debug)]
pub struct Setup {
    /// The daemon's files.
    pub files: DaemonFiles,
    /// The RSA key behind [`KEY`].
    pub key: RsaKey,
    /// Who may wrap, unwrap and read.
    pub caller: Identity,
    /// [`MATERIAL`], wrapped under the key.
    pub wrapped: Vec<u8>,
}

impl Setup {
    /// The key lies in a file.
    pub fn software() -> Self {
        let mut files = DaemonFiles::new();
        let key = RsaKey::shared(2048);
        files.key_folder("files", "keys");
        key.write_pem(&files.path("keys/user-keys.pem"));
        Self::of(files, key, "files", "user-keys.pem")
    }

    /// The key lies in `token`, as `pkcs11:object=user-keys`, imported now.
    pub fn on(token: &Token) -> Self {
        let key = RsaKey::shared(2048);
        token.import(&key, KEY, "01");
        let mut files = DaemonFiles::new();
        files.token("hsm-a", token);
        Self::of(files, key, "hsm-a", "pkcs11:object=user-keys")
    }

    /// The key lies in each of these tokens, in the order in which they are asked: `hsm-a`, `hsm-b` and so
    /// on. What a token needs in its environment, only its own module's process has.
    pub fn on_replicas(tokens: &[&Token]) -> Self {
        const NAMES: [&str; 3] = ["hsm-a", "hsm-b", "hsm-c"];
        const LOCATOR: &str = "pkcs11:object=user-keys";
        let mut files = DaemonFiles::new();
        let key = RsaKey::shared(2048);
        let mut version = Version::active(1, &key, NAMES[0], LOCATOR);
        for (token, name) in tokens.iter().zip(NAMES) {
            token.import(&key, KEY, "01");
            files.provider(name, token.provider_alone());
            if name != NAMES[0] {
                version = version.replica(name, LOCATOR);
            }
        }
        let mut setup = Self::at(files, key, NAMES[0], LOCATOR, Algorithm::RsaOaep);
        setup.files.key(KEY, &[Algorithm::RsaOaep.name()], vec![version]);
        setup
    }

    fn of(files: DaemonFiles, key: RsaKey, provider: &str, locator: &str) -> Self {
        Self::at(files, key, provider, locator, Algorithm::RsaOaep)
    }

    /// The key lies at `locator` of a provider that the configuration has, and lists one algorithm.
    pub fn at(
        mut files: DaemonFiles,
        key: RsaKey,
        provider: &str,
        locator: &str,
        algorithm: Algorithm,
    ) -> Self {
        let version = Version::active(1, &key, provider, locator);
        files.key(KEY, &[algorithm.name()], vec![version]);
        let caller = files.caller("key-connector", &[KEY], &["wrap", "unwrap", "read"]);
        files.limit("key-connector", "failed_unwraps", "off");
        let wrapped = wrap_with(&key, algorithm);
        Self { files, key, caller, wrapped }
    }

    /// Starts the daemon and waits until it is ready.
    pub fn start(&mut self) -> Daemon {
        Daemon::start(&mut self.files)
    }

    /// Connects as the caller.
    pub async fn connect(&self, daemon: &Daemon) -> Connection {
        self.connect_as(daemon, &self.caller).await
    }

    /// Connects as another client of the same CA.
    pub async fn connect_as(&self, daemon: &Daemon, identity: &Identity) -> Connection {
        Connection::open(daemon.address(), self.files.pki.ca_der(), Some(identity))
            .await
            .unwrap_or_else(|error| panic!("no connection: {error}\n{}", daemon.log()))
    }

    /// So many connections of the caller that have begun HTTP/2 and read nothing from then on.
    pub async fn deaf(&self, daemon: &Daemon, connections: usize) -> Vec<impl Send + use<>> {
        let mut deaf = Vec::new();
        for _ in 0..connections {
            let config =
                crate::connection::client_config(self.files.pki.ca_der(), Some(&self.caller));
            deaf.push(crate::connection::deaf(daemon.address(), config.unwrap()).await.unwrap());
        }
        deaf
    }

    /// The Rust client's configuration for the caller, who takes every UNAVAILABLE for an answer.
    pub fn client_config(&self, daemon: &Daemon) -> Config {
        client_config(&self.files, daemon, &self.caller)
    }

    /// The Rust client as the caller.
    pub fn client(&self, daemon: &Daemon) -> Client {
        Client::new(&self.client_config(daemon)).expect("the files were just written")
    }

    /// The daemon's word on the key's health.
    pub async fn key_health(&self, daemon: &Daemon) -> Health {
        let client = self.client(daemon);
        client.health(Some(KEY)).await.unwrap_or_else(|e| panic!("{e}\n{}", daemon.log()))
    }

    /// Waits until the key's health is as told, for half a minute at most.
    pub async fn wait_for_key_health(&self, daemon: &Daemon, health: Health) {
        let begun = Instant::now();
        while self.key_health(daemon).await != health {
            let waited = begun.elapsed();
            assert!(waited.as_secs() < 30, "not {health:?} after {waited:?}:\n{}", daemon.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// [`MATERIAL`], wrapped once more: another value each time.
    pub fn wrap_again(&self) -> Vec<u8> {
        let algorithms = &self.files.configuration["keys"][KEY]["algorithms"];
        let algorithm = algorithms[0].as_str().and_then(|name| name.parse().ok());
        wrap_with(&self.key, algorithm.expect("the key lists one"))
    }

    /// The request to unwrap what is wrapped.
    pub fn request(&self) -> UnwrapRequest {
        UnwrapRequest {
            key: KEY.into(),
            wrapped: self.wrapped.clone().into(),
            ..UnwrapRequest::default()
        }
    }

    /// Unwraps over a new connection: the code that comes back. Wrong material is a panic.
    pub async fn ask(&self, daemon: &Daemon) -> Code {
        self.ask_over(&self.connect(daemon).await).await
    }

    /// The same over an open connection.
    pub async fn ask_over(&self, connection: &Connection) -> Code {
        match connection.unwrap(&self.request()).await {
            Ok(answer) => {
                assert_eq!(&*answer.key_material, MATERIAL, "never a wrong answer");
                Code::Ok
            }
            Err(answer) => answer.code(),
        }
    }

    /// Asks until the code is as told, for half a minute at most.
    pub async fn wait_for(&self, daemon: &Daemon, code: Code) {
        let connection = self.connect(daemon).await;
        let begun = Instant::now();
        loop {
            let last = self.ask_over(&connection).await;
            if last == code {
                return;
            }
            let waited = begun.elapsed();
            assert!(
                waited.as_secs() < 30,
                "{last:?} instead of {code:?} after {waited:?}:\n{}",
                daemon.log()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// The Rust client's configuration for a caller of the daemon, who takes every UNAVAILABLE for an
/// answer.
pub fn client_config(files: &DaemonFiles, daemon: &Daemon, caller: &Identity) -> Config {
    let (certificate, private_key) = caller.write(&files.path("."), "caller");
    let ca = files.path("caller-ca.pem");
    crate::pki::replace(&ca, &files.pki.ca_pem(), 0o644);
    let endpoint = format!("https://localhost:{}", daemon.address().port());
    let config = Config::new(&[endpoint], Some(&ca), Some(&certificate), Some(&private_key))
        .expect("an address and three files");
    Config { patience: Duration::ZERO, ..config }
}

/// The configuration file of `claviger --client` for a caller of the daemon.
pub fn client_file(files: &DaemonFiles, daemon: &Daemon, caller: &Identity) -> PathBuf {
    let (certificate, private_key) = caller.write(&files.path("."), "caller");
    let [ca, certificate, private_key] = [files.path("clients.pem"), certificate, private_key]
        .map(|path| path.display().to_string());
    let endpoint = format!("https://localhost:{}", daemon.address().port());
    let text = format!(
        "endpoint = '{endpoint}'\nca = '{ca}'\ncertificate = '{certificate}'\nprivate_key = '{private_key}'\n"
    );
    let path = files.path("client.toml");
    std::fs::write(&path, text).unwrap();
    path
}

/// [`MATERIAL`] under `key` with RSA-OAEP.
pub fn wrap(key: &RsaKey) -> Vec<u8> {
    wrap_with(key, Algorithm::RsaOaep)
}

/// [`MATERIAL`] under `key`.
pub fn wrap_with(key: &RsaKey, algorithm: Algorithm) -> Vec<u8> {
    let parameters = Parameters::of(algorithm);
    let material = KeyMaterial::copied_from(&MATERIAL);
    key.public_key().wrap(&material, &parameters).expect("32 bytes fit")
}
