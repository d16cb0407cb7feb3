//! The contract's own suite against ministack, on keys of every size that KMS has.

mod support;

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::key_wrap::{AES_256, AesKek, KeyWrapPadded};
use aws_lc_rs::rsa::{KeySize, PrivateDecryptingKey};
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::{
    AlgorithmSpec, ExpirationModelType, KeySpec, KeyUsageType, OriginType, WrappingKeySpec,
};
use claviger_conformance::Subject;
use claviger_provider_api::{Algorithm, KeyMaterial, Parameters, PublicKey, SignAlgorithm};
use support::ministack::Ministack;
use support::{OAEP, config, open};

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
    let arn = import(&server, &private).await;
    let folder = tempfile::tempdir().unwrap();
    let config = config(&server.endpoint, folder.path());
    let key = open(&config, &arn, &[Algorithm::RsaOaep], &[]).await.unwrap();
    let spki = private.public_key().as_der().unwrap();
    assert_eq!(key.public_key().sha256(), PublicKey::from_spki(spki.as_ref()).unwrap().sha256());
    let subject = Subject::new("aws-kms/rsa-3072 imported (ministack)", key).without_labels();
    claviger_conformance::run(subject).await.expect_all_passed();
}

/// Imports as docs/backends/aws-kms.md tells: an AES key under the wrapping key, the PKCS#8 key under
/// the AES key (RFC 5649).
async fn import(server: &Ministack, private: &PrivateDecryptingKey) -> String {
    let kms = server.administrator();
    let made = kms
        .create_key()
        .origin(OriginType::External)
        .key_spec(KeySpec::Rsa3072)
        .key_usage(KeyUsageType::EncryptDecrypt)
        .send()
        .await;
    let arn = made.unwrap().key_metadata.unwrap().arn.unwrap();
    let parameters = kms
        .get_parameters_for_import()
        .key_id(&arn)
        .wrapping_algorithm(AlgorithmSpec::RsaAesKeyWrapSha256)
        .wrapping_key_spec(WrappingKeySpec::Rsa4096)
        .send()
        .await
        .unwrap();
    let aes = [7; 32];
    let wrapping = PublicKey::from_spki(parameters.public_key().unwrap().as_ref()).unwrap();
    let under = Parameters::of(Algorithm::RsaOaep256);
    let mut wrapped = wrapping.wrap(&KeyMaterial::copied_from(&aes), &under).unwrap();
    let der: Pkcs8V1Der<'_> = private.as_der().unwrap();
    let mut padded = vec![0; der.as_ref().len() + 16];
    let kek = AesKek::new(&AES_256, &aes).unwrap();
    wrapped.extend_from_slice(kek.wrap_with_padding(der.as_ref(), &mut padded).unwrap());
    kms.import_key_material()
        .key_id(&arn)
        .import_token(parameters.import_token.unwrap())
        .encrypted_key_material(Blob::new(wrapped))
        .expiration_model(ExpirationModelType::KeyMaterialDoesNotExpire)
        .send()
        .await
        .unwrap();
    arn
}
