//! What the tests of this provider share: servers to talk to, and files with credentials.
#![allow(dead_code, reason = "each test program uses a part")]

pub(crate) mod fake;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use claviger_aws_kms::{Config, Provider, StaticCredentials};
use claviger_provider_api::{
    Algorithm, Call, CallerSlot, Error, KeyMaterial, OpenKey, Options as _, Parameters,
    Provider as _, SecretSource, SignAlgorithm, Timeout, WrappingKey,
};

/// Both algorithms of KMS.
pub(crate) const OAEP: [Algorithm; 2] = [Algorithm::RsaOaep, Algorithm::RsaOaep256];

pub(crate) use test_backends::ministack::REGION;

/// A configuration with an access key in `folder`, for the server at `endpoint`.
pub(crate) fn config(endpoint: &str, folder: &Path) -> Config {
    write_credentials(folder, "AKIDFIRST");
    let file = |name: &str| SecretSource::File(folder.join(name));
    Config {
        region: REGION.to_owned(),
        endpoint: Some(endpoint.to_owned()),
        ca: None,
        credentials: Some(StaticCredentials {
            access_key_id: file("id"),
            secret_access_key: file("key"),
            session_token: None,
        }),
        profile: None,
        connect_timeout: Timeout(Duration::from_secs(5)),
        attempt_timeout: Timeout(Duration::from_secs(20)),
        operation_timeout: Timeout(Duration::from_secs(30)),
    }
}

/// Replaces the access key in `folder`.
pub(crate) fn write_credentials(folder: &Path, id: &str) {
    for (name, value) in [("id", id), ("key", "secret-marker")] {
        let path = folder.join(name);
        std::fs::write(&path, format!("{value}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    }
}

/// Opens a key with a provider of its own.
pub(crate) async fn open(
    config: &Config,
    locator: &str,
    algorithms: &[Algorithm],
    sign_algorithms: &[SignAlgorithm],
) -> Result<Arc<dyn WrappingKey>, Error> {
    let open = OpenKey { locator, algorithms, sign_algorithms, public_key_sha256: None };
    open_with(config, &open).await
}

/// Opens the key with this pin, for both algorithms, with a provider of its own.
pub(crate) async fn open_pinned(
    config: &Config,
    locator: &str,
    public_key_sha256: [u8; 32],
) -> Result<Arc<dyn WrappingKey>, Error> {
    let public_key_sha256 = Some(public_key_sha256);
    let open = OpenKey { locator, algorithms: &OAEP, sign_algorithms: &[], public_key_sha256 };
    open_with(config, &open).await
}

async fn open_with(config: &Config, open: &OpenKey<'_>) -> Result<Arc<dyn WrappingKey>, Error> {
    config.check_locator(open.locator).unwrap();
    Provider::new("aws", config).unwrap().open(open).await
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
    let parameters = Parameters::of(Algorithm::RsaOaep256);
    let wrapped =
        key.public_key().wrap(&KeyMaterial::copied_from(b"key material"), &parameters).unwrap();
    let unwrapped = key.unwrap_key(&wrapped, &parameters, call(time)).await?;
    assert_eq!(unwrapped.material.expose(), b"key material");
    Ok(unwrapped.backend_request_id)
}
