//! The services that are asked over HTTP: each started, given keys, and put into a daemon's
//! configuration, directly or behind the fault proxy. One more service is one more entry here.

use std::path::PathBuf;

use azure_key_vault_fake::{CLIENT_ID, CLIENT_SECRET, TENANT};
use claviger_provider_api::Algorithm;
use fault_proxy::{FaultProxy, Service};
use gcp_kms_fake::Algorithm as Google;
use test_backends::ministack::{Ministack, REGION};
use test_backends::vault;
use toml::{Table, Value};

use crate::daemon_files::{DaemonFiles, Version};
use crate::rsa_key::RsaKey;

/// What the daemon may do in a Transit engine of the tests.
const TRANSIT_POLICY: &str = r#"
path "transit/keys/*" { capabilities = ["read"] }
path "transit/decrypt/*" { capabilities = ["update"] }
"#;

const KEY_RING: &str = "projects/test-project/locations/europe-west3/keyRings/claviger";

/// A busy machine must not look like a broken service.
const CONNECT_TIMEOUT: &str = "10s";
const REQUEST_TIMEOUT: &str = "30s";

/// Which service it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceKind {
    /// AWS KMS: ministack.
    Aws,
    /// Azure Key Vault: a fake.
    Azure,
    /// Google Cloud KMS: a fake.
    Google,
    /// A real OpenBao.
    OpenBao,
    /// A real HashiCorp Vault, which takes minutes to build.
    Vault,
}

impl ServiceKind {
    /// Those that every run of the tests has.
    pub const USUAL: [Self; 4] = [Self::Aws, Self::Azure, Self::Google, Self::OpenBao];
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Aws, Self::Azure, Self::Google, Self::OpenBao, Self::Vault];

    /// For messages, and as a part of names.
    pub fn name(self) -> &'static str {
        match self {
            Self::Aws => "aws",
            Self::Azure => "azure",
            Self::Google => "google",
            Self::OpenBao => "openbao",
            Self::Vault => "vault",
        }
    }

    /// Whose words it speaks.
    pub fn api(self) -> Service {
        match self {
            Self::Aws => Service::Aws,
            Self::Azure => Service::Azure,
            Self::Google => Service::Google,
            Self::OpenBao | Self::Vault => Service::Vault,
        }
    }
}

/// A running service. It ends when dropped.
#[derive(Debug)]
pub struct TestService {
    /// Which one.
    pub kind: ServiceKind,
    server: Server,
}

#[derive(Debug)]
enum Server {
    Aws(Ministack),
    Azure(azure_key_vault_fake::Fake),
    Google(gcp_kms_fake::Fake),
    Vault(vault::Server),
}

/// Where a service keeps a key, and what the key can there.
#[derive(Clone, Debug)]
pub struct StoredKey {
    /// The best known first.
    pub algorithms: Vec<Algorithm>,
    /// As a configuration names it.
    pub locator: String,
}

impl StoredKey {
    /// The algorithms' names.
    pub fn names(&self) -> Vec<&'static str> {
        self.algorithms.iter().map(|algorithm| algorithm.name()).collect()
    }

    /// An active version 1 of a key that lies here.
    pub fn version(&self, key: &RsaKey, provider: &str) -> Version {
        Version::active(1, key, provider, &self.locator)
    }
}

impl TestService {
    /// Starts it and waits until it is well.
    pub async fn start(kind: ServiceKind) -> Self {
        let server = match kind {
            ServiceKind::Aws => Server::Aws(Ministack::start().await),
            ServiceKind::Azure => {
                let fake = azure_key_vault_fake::Fake::start().await;
                Server::Azure(fake.expect("loopback has a free port"))
            }
            ServiceKind::Google => Server::Google(gcp_kms_fake::Fake::start()),
            ServiceKind::OpenBao => {
                Server::Vault(vault::Server::start(vault::Backend::OpenBao).await)
            }
            ServiceKind::Vault => Server::Vault(vault::Server::start(vault::Backend::Vault).await),
        };
        Self { kind, server }
    }

    /// Imports a key; gives each place where it now lies, as it is named `via` the proxy.
    pub async fn import(
        &self,
        key: &RsaKey,
        name: &str,
        via: Option<&FaultProxy>,
    ) -> Vec<StoredKey> {
        match &self.server {
            Server::Aws(server) => {
                let algorithms = vec![Algorithm::RsaOaep256, Algorithm::RsaOaep];
                vec![StoredKey { algorithms, locator: server.import(key.pkcs8()).await }]
            }
            Server::Azure(fake) => {
                let algorithms = vec![Algorithm::RsaOaep256, Algorithm::RsaOaep, Algorithm::Rsa15];
                let kid = fake.import(name, key.pkcs8());
                let locator = kid.replace(fake.origin(), &origin(fake.origin(), via));
                vec![StoredKey { algorithms, locator }]
            }
            // A key version has one algorithm for ever.
            Server::Google(fake) => google_algorithms(key)
                .into_iter()
                .map(|(algorithm, at_google)| {
                    let crypto_key = format!("{KEY_RING}/cryptoKeys/{name}-{}", algorithm.name());
                    let locator = fake.import_version(&crypto_key, at_google, key.pkcs8());
                    StoredKey { algorithms: vec![algorithm], locator }
                })
                .collect(),
            Server::Vault(server) => {
                server.import(name, key.pkcs8()).await;
                let mut algorithms = vec![Algorithm::RsaOaep256];
                // OpenBao ignores the field that asks for it.
                algorithms.extend((self.kind == ServiceKind::Vault).then_some(Algorithm::Rsa15));
                vec![StoredKey { algorithms, locator: format!("transit/{name}:1") }]
            }
        }
    }

    /// What the service itself makes of `material` under a key of its own, where it wraps at all.
    pub async fn wrap(
        &self,
        stored: &StoredKey,
        algorithm: Algorithm,
        material: &[u8],
    ) -> Option<Vec<u8>> {
        if !stored.algorithms.contains(&algorithm) {
            return None;
        }
        match &self.server {
            Server::Aws(server) => Some(server.wrap(&stored.locator, algorithm, material).await),
            Server::Vault(server) if algorithm == Algorithm::RsaOaep256 => {
                let name = stored.locator.strip_prefix("transit/")?.strip_suffix(":1")?;
                Some(server.wrap(name, material).await)
            }
            Server::Azure(_) | Server::Google(_) | Server::Vault(_) => None,
        }
    }

    /// A proxy in front of it, over https.
    pub async fn proxy(&self) -> FaultProxy {
        match &self.server {
            Server::Aws(server) => FaultProxy::start_tls(&server.endpoint, None).await,
            Server::Azure(fake) => FaultProxy::start_tls(fake.origin(), Some(fake.ca_pem())).await,
            Server::Google(fake) => FaultProxy::start_tls(fake.endpoint(), None).await,
            Server::Vault(server) => FaultProxy::start_tls(&server.address, None).await,
        }
    }

    /// Adds it as a provider, with credentials of its own that may unwrap and nothing else.
    pub async fn configure(
        &self,
        files: &mut DaemonFiles,
        provider: &str,
        via: Option<&FaultProxy>,
    ) {
        let mut options = Table::new();
        let mut set = |name: &str, value: Value| drop(options.insert(name.into(), value));
        if let Some(ca) = via.and_then(FaultProxy::ca_pem) {
            set("ca", files.file(&format!("{provider}-ca.pem"), ca, 0o644).into());
        }
        set("connect_timeout", CONNECT_TIMEOUT.into());
        match &self.server {
            Server::Aws(server) => {
                set("type", "aws-kms".into());
                set("region", REGION.into());
                set("endpoint", origin(&server.endpoint, via).into());
                set("attempt_timeout", REQUEST_TIMEOUT.into());
                set("operation_timeout", REQUEST_TIMEOUT.into());
                write_aws_credentials(files, provider, "AKIDFIRST");
                let file = |name: &str| secret_file(files, &format!("{provider}-{name}"));
                let credentials =
                    [("access_key_id", file("id")), ("secret_access_key", file("key"))];
                set("credentials", table(credentials));
            }
            Server::Azure(fake) => {
                set("type", "azure-key-vault".into());
                set("vault", origin(fake.origin(), via).into());
                set("authority", origin(fake.origin(), via).into());
                set("resource", "https://vault.azure.net".into());
                set("attempt_timeout", REQUEST_TIMEOUT.into());
                set("operation_timeout", REQUEST_TIMEOUT.into());
                if via.is_none() {
                    set(
                        "ca",
                        files.file(&format!("{provider}-ca.pem"), fake.ca_pem(), 0o644).into(),
                    );
                }
                let secret = format!("{provider}-secret");
                files.file(&secret, CLIENT_SECRET, 0o600);
                let application = [
                    ("tenant_id", TENANT.into()),
                    ("client_id", CLIENT_ID.into()),
                    ("secret", secret_file(files, &secret)),
                ];
                set("auth", table([("client_secret", table(application))]));
            }
            Server::Google(fake) => {
                set("type", "gcp-kms".into());
                set("endpoint", origin(fake.endpoint(), via).into());
                set("timeout", REQUEST_TIMEOUT.into());
                let account = format!("{provider}-account.json");
                files.file(&account, &fake.service_account(), 0o600);
                set("credentials", secret_file(files, &account));
            }
            Server::Vault(server) => {
                set("type", "vault-transit".into());
                set("address", origin(&server.address, via).into());
                set("timeout", REQUEST_TIMEOUT.into());
                let (role_id, secret_id) = server.approle(TRANSIT_POLICY, "1h", "24h").await;
                let secret_id_file = format!("{provider}-secret-id");
                files.file(&secret_id_file, &secret_id, 0o600);
                let role = [
                    ("role_id", Value::from(role_id)),
                    ("secret_id", secret_file(files, &secret_id_file)),
                ];
                set("auth", table([("approle", table(role))]));
            }
        }
        files.provider(provider, options);
    }

    /// Options of its provider with which keys can be made, in a file of its own beside the daemon's.
    pub fn admin(&self, files: &DaemonFiles) -> PathBuf {
        let options = match &self.server {
            Server::Vault(_) => {
                files.file("operator.token", vault::ROOT, 0o600);
                "auth = { token = { file = \"operator.token\" } }\n"
            }
            Server::Aws(_) | Server::Azure(_) | Server::Google(_) => "",
        };
        files.file("admin.toml", options, 0o644).into()
    }

    /// The ministack, to be asked as an administrator.
    pub fn aws(&self) -> &Ministack {
        match &self.server {
            Server::Aws(server) => server,
            _ => panic!("{} is not AWS", self.kind.name()),
        }
    }

    /// The Vault or OpenBao, to be asked as root.
    pub fn vault(&self) -> &vault::Server {
        match &self.server {
            Server::Vault(server) => server,
            _ => panic!("{} is no Vault", self.kind.name()),
        }
    }

    /// The fake of Google Cloud KMS, to be told what to do.
    pub fn google(&self) -> &gcp_kms_fake::Fake {
        match &self.server {
            Server::Google(fake) => fake,
            _ => panic!("{} is not Google", self.kind.name()),
        }
    }

    /// The fake of Azure Key Vault, to be told what to do.
    pub fn azure(&self) -> &azure_key_vault_fake::Fake {
        match &self.server {
            Server::Azure(fake) => fake,
            _ => panic!("{} is not Azure", self.kind.name()),
        }
    }
}

/// What Google has for keys of this size, the best known first.
fn google_algorithms(key: &RsaKey) -> [(Algorithm, Google); 2] {
    let (sha256, sha1) = match key.public_key().modulus_len() {
        256 => (Google::DecryptOaep2048Sha256, Google::DecryptOaep2048Sha1),
        384 => (Google::DecryptOaep3072Sha256, Google::DecryptOaep3072Sha1),
        _ => (Google::DecryptOaep4096Sha256, Google::DecryptOaep4096Sha1),
    };
    [(Algorithm::RsaOaep256, sha256), (Algorithm::RsaOaep, sha1)]
}

/// Where the daemon is to find a service that is at `own`.
fn origin(own: &str, via: Option<&FaultProxy>) -> String {
    via.map_or_else(|| own.to_owned(), FaultProxy::url)
}

/// The access key that [`TestService::configure`] names, or another one in its place.
pub fn write_aws_credentials(files: &DaemonFiles, provider: &str, id: &str) {
    files.file(&format!("{provider}-key"), "secret-access-key", 0o600);
    files.file(&format!("{provider}-id"), id, 0o600);
}

/// `{ file = "…" }` for a file of the daemon's folder.
pub fn secret_file(files: &DaemonFiles, name: &str) -> Value {
    let path = files.path(name);
    table([("file", path.to_str().expect("temporary paths are UTF-8").into())])
}

fn table<const N: usize>(entries: [(&str, Value); N]) -> Value {
    Value::Table(entries.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}
