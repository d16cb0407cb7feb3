//! The contract's own suite against ministack, on keys of every size that KMS has.

mod support;

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::{KeySize, PrivateDecryptingKey};
use aws_sdk_kms::types::{KeySpec, KeyUsageType};
use claviger_conformance::Subject;
use claviger_provider_api::{Algorithm, PublicKey, SignAlgorithm};
use support::{OAEP, config, open};
use test_backends::Ministack;

async fn whole_suite(name: &str, spec: KeySpec) {
    let server = Ministack::start().await;
    let arn = server.key(spec, KeyUsageType::EncryptDecrypt).await;
    let folder = tempfile::tempdir().unwrap();
    let key = open(&config(&server.endpoint, folder.path()), &arn, &OAEP, &[]).await.unwrap();
    let subject = Subject::new(format!("aws-kms/{name} (ministack)"), key).without_labels();
    claviger_conformance::run(subject).await.expect_all_passed();
}

#[tokio::test(flavor = "multi_thread")]
async fn rsa_2048_keeps_the_contract() {
    whole_suite("rsa-2048", KeySpec::Rsa2048).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rsa_3072_keeps_the_contract() {
    whole_suite("rsa-3072", KeySpec::Rsa3072).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rsa_4096_keeps_the_contract() {
    whole_suite("rsa-4096", KeySpec::Rsa4096).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_signs_keeps_the_contract() {
    let server = Ministack::start().await;
    let arn = server.key(KeySpec::Rsa2048, KeyUsageType::SignVerify).await;
    let folder = tempfile::tempdir().unwrap();
    let config = config(&server.endpoint, folder.path());
    let key = open(&config, &arn, &[], &SignAlgorithm::ALL).await.unwrap();
    let subject = Subject::new("aws-kms/rsa-2048 that signs (ministack)", key).without_labels();
    claviger_conformance::run(subject).await.expect_all_passed();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_imported_key_that_lists_one_algorithm_keeps_the_contract() {
    let server = Ministack::start().await;
    let private = PrivateDecryptingKey::generate(KeySize::Rsa3072).unwrap();
    let pkcs8: Pkcs8V1Der<'_> = private.as_der().unwrap();
    // As docs/backends/aws-kms.md tells.
    let arn = server.import(pkcs8.as_ref()).await;
    let folder = tempfile::tempdir().unwrap();
    let config = config(&server.endpoint, folder.path());
    let key = open(&config, &arn, &[Algorithm::RsaOaep], &[]).await.unwrap();
    let spki = private.public_key().as_der().unwrap();
    assert_eq!(key.public_key().sha256(), PublicKey::from_spki(spki.as_ref()).unwrap().sha256());
    let subject = Subject::new("aws-kms/rsa-3072 imported (ministack)", key).without_labels();
    claviger_conformance::run(subject).await.expect_all_passed();
}
