//! The contract's own suite against the fake, on keys of every size that Azure has.

mod support;

use azure_key_vault_fake::{Fake, Kind};
use claviger_conformance::Subject;
use claviger_provider_api::{Algorithm, Options as _, SignAlgorithm};
use support::{OAEP, Setup, open};

async fn whole_suite(bits: usize, algorithms: &[Algorithm], sign_algorithms: &[SignAlgorithm]) {
    let setup = Setup::new().await;
    let kid = setup.fake.create("user-keys", bits);
    let key = open(&setup.config, &kid, algorithms, sign_algorithms, None).await.unwrap();
    let signs = if sign_algorithms.is_empty() { "" } else { " that signs" };
    let name = format!("azure-key-vault/rsa-{bits}{signs} (fake)");
    claviger_conformance::run(Subject::new(name, key).without_labels()).await.expect_all_passed();
}

#[tokio::test(flavor = "multi_thread")]
async fn rsa_2048_with_all_of_azures_algorithms_keeps_the_contract() {
    whole_suite(2048, &[Algorithm::RsaOaep, Algorithm::RsaOaep256, Algorithm::Rsa15], &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rsa_3072_keeps_the_contract() {
    whole_suite(3072, &OAEP, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rsa_4096_keeps_the_contract() {
    whole_suite(4096, &[Algorithm::RsaOaep256], &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_unwraps_and_signs_keeps_the_contract() {
    whole_suite(2048, &[Algorithm::RsaOaep], &SignAlgorithm::ALL).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_managed_hsm_keeps_the_contract() {
    let fake = Fake::start_with(Kind::ManagedHsm, 0, "127.0.0.1").await.unwrap();
    let mut setup = Setup::around(fake);
    setup.config.resource = Some("https://managedhsm.azure.net".to_owned());
    assert!(setup.config.is_hardware());
    let kid = setup.fake.create("user-keys", 2048);
    let key = setup.open(&kid, &OAEP).await.unwrap();
    let subject = Subject::new("azure-key-vault/managed hsm (fake)", key).without_labels();
    claviger_conformance::run(subject).await.expect_all_passed();
}
