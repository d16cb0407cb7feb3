//! The contract's own suite on keys of every size, and on keys that list only a part.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::{KeySize, PrivateDecryptingKey};
use claviger_conformance::Subject;
use claviger_provider_api::{Algorithm, OpenKey, Provider as _, SignAlgorithm, WrappingKey};
use claviger_software::{Config, Provider};

async fn open(
    size: KeySize,
    algorithms: &[Algorithm],
    sign_algorithms: &[SignAlgorithm],
) -> Arc<dyn WrappingKey> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key.der");
    let key = PrivateDecryptingKey::generate(size).unwrap();
    let der: Pkcs8V1Der<'_> = key.as_der().unwrap();
    std::fs::write(&path, der.as_ref()).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let directory = Some(folder.path().to_owned());
    let config = Config { directory, passphrase: None, files: BTreeMap::default() };
    let provider = Provider::new("files", &config).unwrap();
    let open = OpenKey { locator: "key.der", algorithms, sign_algorithms, public_key_sha256: None };
    // Neither the provider nor the file is needed any more once a key is open.
    provider.open(&open).await.unwrap()
}

async fn whole_suite(name: &str, size: KeySize) {
    let key = open(size, &Algorithm::ALL, &SignAlgorithm::ALL).await;
    claviger_conformance::run(Subject::new(name, key)).await.expect_all_passed();
}

#[tokio::test(flavor = "multi_thread")]
async fn rsa_2048_keeps_the_contract() {
    whole_suite("software/rsa-2048", KeySize::Rsa2048).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rsa_3072_keeps_the_contract() {
    whole_suite("software/rsa-3072", KeySize::Rsa3072).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rsa_4096_keeps_the_contract() {
    whole_suite("software/rsa-4096", KeySize::Rsa4096).await;
}

#[tokio::test]
async fn a_key_that_lists_one_algorithm_refuses_the_others() {
    let key = open(KeySize::Rsa2048, &[Algorithm::RsaOaep256], &[]).await;
    let subject = Subject::new("software/rsa-2048 with RSA-OAEP-256 alone", key);
    claviger_conformance::run(subject).await.expect_all_passed();
}

#[tokio::test]
async fn a_key_that_only_signs_unwraps_nothing() {
    let key = open(KeySize::Rsa2048, &[], &[SignAlgorithm::Ps256, SignAlgorithm::Rs512]).await;
    let subject = Subject::new("software/rsa-2048 that only signs", key);
    claviger_conformance::run(subject).await.expect_all_passed();
}
