//! What the tests of this provider share: a fake with a key in it, and a provider for it.
#![allow(dead_code, reason = "each test program uses a part")]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use claviger_gcp_kms::{Config, Provider};
use claviger_provider_api::Timeout;
use claviger_provider_api::{
    Algorithm, Call, CallerSlot, Error, KeyMaterial, OpenKey, Options as _, Parameters,
    Provider as _, SecretSource, SignAlgorithm, WrappingKey,
};
use gcp_kms_fake::{Algorithm as Version, Fake};

/// The crypto key of every test.
pub(crate) const KEY: &str =
    "projects/fake-project/locations/europe-west3/keyRings/claviger/cryptoKeys/user-keys";

/// A time that no healthy call takes.
pub(crate) const LONG: Duration = Duration::from_mins(1);

/// A fake, a folder with the key of its service account, and a configuration for both.
pub(crate) struct Setup {
    pub(crate) fake: Fake,
    pub(crate) folder: tempfile::TempDir,
    pub(crate) config: Config,
}

impl Setup {
    pub(crate) fn new() -> Self {
        let fake = Fake::start();
        let folder = tempfile::tempdir().unwrap();
        let path = write_secret(folder.path(), "service-account.json", &fake.service_account());
        let config = config(fake.endpoint(), Some(path));
        Self { fake, folder, config }
    }

    /// A fake with a version that unwraps RSA-OAEP-256, opened.
    pub(crate) async fn with_key() -> (Self, String, Arc<dyn WrappingKey>) {
        let setup = Self::new();
        let version = setup.fake.create_version(KEY, Version::DecryptOaep2048Sha256);
        let key = setup.open(&version, &[Algorithm::RsaOaep256], &[]).await.unwrap();
        assert_eq!(setup.fake.asked(), ["token", "getPublicKey", "asymmetricDecrypt"]);
        (setup, version, key)
    }

    /// Opens a key with a provider of its own.
    pub(crate) async fn open(
        &self,
        locator: &str,
        algorithms: &[Algorithm],
        sign_algorithms: &[SignAlgorithm],
    ) -> Result<Arc<dyn WrappingKey>, Error> {
        open(&self.config, locator, algorithms, sign_algorithms).await
    }
}

/// A configuration for the server at `endpoint`, with this credentials file.
pub(crate) fn config(endpoint: &str, credentials: Option<PathBuf>) -> Config {
    Config {
        credentials: credentials.map(SecretSource::File),
        endpoint: Some(endpoint.to_owned()),
        metadata_endpoint: None,
        ca: None,
        connect_timeout: Timeout(Duration::from_secs(5)),
        timeout: Timeout(Duration::from_secs(30)),
    }
}

/// Opens a key with a provider of its own.
pub(crate) async fn open(
    config: &Config,
    locator: &str,
    algorithms: &[Algorithm],
    sign_algorithms: &[SignAlgorithm],
) -> Result<Arc<dyn WrappingKey>, Error> {
    config.validate().unwrap();
    config.check_locator(locator).unwrap();
    let provider = Provider::new("gcp", config).unwrap();
    provider.open(&OpenKey { locator, algorithms, sign_algorithms, public_key_sha256: None }).await
}

/// Writes a file that only its owner may read.
pub(crate) fn write_secret(folder: &Path, name: &str, content: &str) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, content).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    path
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
    let algorithm = key.algorithms().iter().next().unwrap();
    let parameters = Parameters::of(algorithm);
    let material = KeyMaterial::copied_from(b"key material");
    let wrapped = key.public_key().wrap(&material, &parameters).unwrap();
    let unwrapped = key.unwrap_key(&wrapped, &parameters, call(time)).await?;
    assert_eq!(unwrapped.material.expose(), b"key material");
    Ok(unwrapped.backend_request_id)
}
