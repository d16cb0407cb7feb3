//! What the tests of this provider share: a fake, a configuration for it, and calls.
#![allow(dead_code, reason = "each test program uses a part")]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use azure_key_vault_fake::{CLIENT_ID, CLIENT_SECRET, Fake, TENANT};
use claviger_azure_key_vault::{Auth, ClientSecret, Config, Provider};
use claviger_provider_api::Timeout;
use claviger_provider_api::{
    Algorithm, Call, CallerSlot, Error, KeyMaterial, OpenKey, Options as _, Parameters,
    Provider as _, SecretSource, SignAlgorithm, WrappingKey,
};

/// The algorithms of Azure that have a hash.
pub(crate) const OAEP: [Algorithm; 2] = [Algorithm::RsaOaep, Algorithm::RsaOaep256];

/// More than any healthy call takes.
pub(crate) const LONG: Duration = Duration::from_secs(30);

/// A fake, a folder with its CA and the secret, and a configuration for it.
pub(crate) struct Setup {
    pub(crate) fake: Fake,
    pub(crate) folder: tempfile::TempDir,
    pub(crate) config: Config,
}

impl Setup {
    pub(crate) async fn new() -> Self {
        Self::around(Fake::start().await.unwrap())
    }

    pub(crate) fn around(fake: Fake) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.pem"), fake.ca_pem()).unwrap();
        write_secret(folder.path(), CLIENT_SECRET);
        let config = config(fake.origin(), folder.path());
        Self { fake, folder, config }
    }

    /// Replaces the secret in its file.
    pub(crate) fn write_secret(&self, secret: &str) {
        write_secret(self.folder.path(), secret);
    }

    /// Opens a key without a pin.
    pub(crate) async fn open(
        &self,
        locator: &str,
        algorithms: &[Algorithm],
    ) -> Result<Arc<dyn WrappingKey>, Error> {
        open(&self.config, locator, algorithms, &[], None).await
    }
}

/// A configuration for a fake, with its CA and the secret in `folder`.
pub(crate) fn config(origin: &str, folder: &Path) -> Config {
    Config {
        vault: origin.to_owned(),
        auth: Auth::ClientSecret(ClientSecret {
            tenant_id: TENANT.to_owned(),
            client_id: CLIENT_ID.to_owned(),
            secret: SecretSource::File(folder.join("secret")),
        }),
        resource: Some("https://vault.azure.net".to_owned()),
        authority: Some(origin.to_owned()),
        ca: Some(folder.join("ca.pem")),
        connect_timeout: Timeout(Duration::from_secs(10)),
        attempt_timeout: Timeout(LONG),
        operation_timeout: Timeout(LONG),
    }
}

/// Writes a secret into a file for us alone.
pub(crate) fn write_secret(folder: &Path, secret: &str) -> PathBuf {
    let path = folder.join("secret");
    std::fs::write(&path, format!("{secret}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    path
}

/// Opens a key with a provider of its own.
pub(crate) async fn open(
    config: &Config,
    locator: &str,
    algorithms: &[Algorithm],
    sign_algorithms: &[SignAlgorithm],
    public_key_sha256: Option<[u8; 32]>,
) -> Result<Arc<dyn WrappingKey>, Error> {
    config.check_locator(locator).unwrap();
    let provider = Provider::new("azure", config).unwrap();
    provider.open(&OpenKey { locator, algorithms, sign_algorithms, public_key_sha256 }).await
}

/// A call with that much time.
pub(crate) fn call(time: Duration) -> Call {
    Call { caller: CallerSlot(1), deadline: Instant::now() + time }
}

/// Wraps in software, unwraps with the key, and gives the backend's request id.
pub(crate) async fn round_trip(
    key: &dyn WrappingKey,
    time: Duration,
) -> Result<Option<String>, Error> {
    let parameters = Parameters::of(key.algorithms().iter().last().unwrap());
    let wrapped =
        key.public_key().wrap(&KeyMaterial::copied_from(b"key material"), &parameters).unwrap();
    let unwrapped = key.unwrap_key(&wrapped, &parameters, call(time)).await?;
    assert_eq!(unwrapped.material.expose(), b"key material");
    Ok(unwrapped.backend_request_id)
}

/// The path of an identifier's key in one version, such as `/keys/user-keys/VERSION`.
pub(crate) fn path<'a>(fake: &Fake, kid: &'a str) -> &'a str {
    kid.strip_prefix(fake.origin()).unwrap()
}
