//! The contract's own suite against the fake, on versions of every kind that Cloud KMS has for RSA.

mod support;

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::{KeySize, PrivateDecryptingKey};
use claviger_conformance::Subject;
use claviger_provider_api::{Algorithm, PublicKey, SignAlgorithm};
use gcp_kms_fake::Algorithm as Version;
use support::{KEY, Setup};

async fn whole_suite(name: &str, version: Version, algorithm: Algorithm) {
    let setup = Setup::new();
    let version = setup.fake.create_version(KEY, version);
    let key = setup.open(&version, &[algorithm], &[]).await.unwrap();
    let subject = Subject::new(format!("gcp-kms/{name} (fake)"), key).without_labels();
    claviger_conformance::run(subject).await.expect_all_passed();
}

async fn whole_suite_of_signing(name: &str, version: Version, algorithm: SignAlgorithm) {
    let setup = Setup::new();
    let version = setup.fake.create_version(KEY, version);
    let key = setup.open(&version, &[], &[algorithm]).await.unwrap();
    let subject = Subject::new(format!("gcp-kms/{name} that signs (fake)"), key).without_labels();
    claviger_conformance::run(subject).await.expect_all_passed();
}

#[tokio::test(flavor = "multi_thread")]
async fn rsa_2048_with_sha_1_keeps_the_contract() {
    whole_suite("rsa-2048-sha1", Version::DecryptOaep2048Sha1, Algorithm::RsaOaep).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rsa_2048_with_sha_256_keeps_the_contract() {
    whole_suite("rsa-2048-sha256", Version::DecryptOaep2048Sha256, Algorithm::RsaOaep256).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rsa_4096_with_sha_512_keeps_the_contract() {
    whole_suite("rsa-4096-sha512", Version::DecryptOaep4096Sha512, Algorithm::RsaOaep512).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_sign_keep_the_contract() {
    let pkcs1 = (Version::SignPkcs1_2048Sha256, SignAlgorithm::Rs256);
    whole_suite_of_signing("rsa-2048 pkcs1", pkcs1.0, pkcs1.1).await;
    let pss = (Version::SignPss3072Sha256, SignAlgorithm::Ps256);
    whole_suite_of_signing("rsa-3072 pss", pss.0, pss.1).await;
    let sha512 = (Version::SignPss4096Sha512, SignAlgorithm::Ps512);
    whole_suite_of_signing("rsa-4096 pss-sha512", sha512.0, sha512.1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_imported_key_keeps_the_contract() {
    let private = PrivateDecryptingKey::generate(KeySize::Rsa3072).unwrap();
    let pkcs8: Pkcs8V1Der<'_> = private.as_der().unwrap();
    let setup = Setup::new();
    let version = Version::DecryptOaep3072Sha256;
    let version = setup.fake.import_version(KEY, version, pkcs8.as_ref());
    let key = setup.open(&version, &[Algorithm::RsaOaep256], &[]).await.unwrap();
    let spki = private.public_key().as_der().unwrap();
    assert_eq!(key.public_key().sha256(), PublicKey::from_spki(spki.as_ref()).unwrap().sha256());
    let subject = Subject::new("gcp-kms/rsa-3072-sha256 imported (fake)", key).without_labels();
    claviger_conformance::run(subject).await.expect_all_passed();
}
