//! What most tests begin with: a site with one key, `user-keys`, and one caller who may use it.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use claviger_client::{Client, Config, Health};
use claviger_proto::v1::UnwrapRequest;
use claviger_provider_api::{Algorithm, KeyMaterial, Parameters};
use tonic::Code;

use crate::connection::Connection;
use crate::daemon::Daemon;
use crate::pki::Identity;
use crate::rsa_key::RsaKey;
use crate::site::{Site, Version};
use crate::token::Token;

/// The key's name.
pub const KEY: &str = "user-keys";
/// What is wrapped under it.
pub const MATERIAL: [u8; 32] = *b"thirty-two bytes of key material";

/// A site with one key and one caller.
#[derive(Debug)]
pub struct Scene {
    /// The daemon's place.
    pub site: Site,
    /// The RSA key behind [`KEY`].
    pub key: RsaKey,
    /// Who may wrap, unwrap and read.
    pub caller: Identity,
    /// [`MATERIAL`], wrapped under the key.
    pub wrapped: Vec<u8>,
}

impl Scene {
    /// The key lies in a file.
    pub fn software() -> Self {
        let mut site = Site::new();
        let key = RsaKey::shared(2048);
        site.files("files", "keys");
        key.write_pem(&site.path("keys/user-keys.pem"));
        Self::of(site, key, "files", "user-keys.pem")
    }

    /// The key lies in `token`, as `pkcs11:object=user-keys`, imported now.
    pub fn on(token: &Token) -> Self {
        let key = RsaKey::shared(2048);
        token.import(&key, KEY, "01");
        let mut site = Site::new();
        site.token("hsm-a", token);
        Self::of(site, key, "hsm-a", "pkcs11:object=user-keys")
    }

    fn of(site: Site, key: RsaKey, provider: &str, locator: &str) -> Self {
        Self::at(site, key, provider, locator, Algorithm::RsaOaep)
    }

    /// The key lies at `locator` of a provider that the site has, and lists one algorithm.
    pub fn at(
        mut site: Site,
        key: RsaKey,
        provider: &str,
        locator: &str,
        algorithm: Algorithm,
    ) -> Self {
        let version = Version::active(1, &key, provider, locator);
        site.key(KEY, &[algorithm.name()], vec![version]);
        let caller = site.caller("key-connector", &[KEY], &["wrap", "unwrap", "read"]);
        site.limit("key-connector", "failed_unwraps", "off");
        let wrapped = wrap_with(&key, algorithm);
        Self { site, key, caller, wrapped }
    }

    /// Starts the daemon and waits until it is ready.
    pub fn start(&mut self) -> Daemon {
        Daemon::start(&mut self.site)
    }

    /// Connects as the caller.
    pub async fn connect(&self, daemon: &Daemon) -> Connection {
        self.connect_as(daemon, &self.caller).await
    }

    /// Connects as somebody else of the same CA.
    pub async fn connect_as(&self, daemon: &Daemon, identity: &Identity) -> Connection {
        Connection::open(daemon.address(), self.site.pki.ca_der(), Some(identity))
            .await
            .unwrap_or_else(|error| panic!("no connection: {error}\n{}", daemon.log()))
    }

    /// So many connections of the caller that have begun HTTP/2 and read nothing from then on.
    pub async fn deaf(&self, daemon: &Daemon, connections: usize) -> Vec<impl Send + use<>> {
        let mut deaf = Vec::new();
        for _ in 0..connections {
            let config =
                crate::connection::client_config(self.site.pki.ca_der(), Some(&self.caller));
            deaf.push(crate::connection::deaf(daemon.address(), config.unwrap()).await.unwrap());
        }
        deaf
    }

    /// The Rust client's configuration for the caller, who takes every UNAVAILABLE for an answer.
    pub fn client_config(&self, daemon: &Daemon) -> Config {
        client_config(&self.site, daemon, &self.caller)
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

/// The Rust client's configuration for a caller of the site, who takes every UNAVAILABLE for an
/// answer.
pub fn client_config(site: &Site, daemon: &Daemon, caller: &Identity) -> Config {
    let (certificate, private_key) = caller.write(&site.path("."), "caller");
    let ca = site.path("caller-ca.pem");
    crate::pki::replace(&ca, &site.pki.ca_pem(), 0o644);
    let endpoint = format!("https://localhost:{}", daemon.address().port());
    let config = Config::new(&[endpoint], Some(&ca), Some(&certificate), Some(&private_key))
        .expect("an address and three files");
    Config { patience: Duration::ZERO, ..config }
}

/// The configuration file of `claviger --client` for a caller of the site.
pub fn client_file(site: &Site, daemon: &Daemon, caller: &Identity) -> PathBuf {
    let (certificate, private_key) = caller.write(&site.path("."), "caller");
    let [ca, certificate, private_key] =
        [site.path("clients.pem"), certificate, private_key].map(|path| path.display().to_string());
    let endpoint = format!("https://localhost:{}", daemon.address().port());
    let text = format!(
        "endpoint = '{endpoint}'\nca = '{ca}'\ncertificate = '{certificate}'\nprivate_key = '{private_key}'\n"
    );
    let path = site.path("client.toml");
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
