//! The contract's own suite on keys of every size in a real server over TLS.

mod backend;

use claviger_conformance::Subject;
use claviger_provider_api::{Algorithm, SignAlgorithm};

use backend::{Backend, Server, open_with};

async fn whole_suite(backend: Backend, bits: u32) {
    let server = Server::start_tls(backend).await;
    server.make_key("k", bits).await;
    let algorithms: &[Algorithm] = match backend {
        Backend::OpenBao => &[Algorithm::RsaOaep256],
        Backend::Vault => &[Algorithm::RsaOaep256, Algorithm::Rsa15],
    };
    let config = server.config_with_token(backend::ROOT);
    let key = open_with(&config, "transit/k:1", algorithms, &SignAlgorithm::ALL).await.unwrap();
    let subject = Subject::new(format!("{}/rsa-{bits}", backend.name()), key).without_labels();
    claviger_conformance::run(subject).await.expect_all_passed();
}

async fn rsa_2048_keeps_the_contract(backend: Backend) {
    whole_suite(backend, 2048).await;
}

async fn rsa_3072_keeps_the_contract(backend: Backend) {
    whole_suite(backend, 3072).await;
}

async fn rsa_4096_keeps_the_contract(backend: Backend) {
    whole_suite(backend, 4096).await;
}

async fn a_key_that_only_signs_unwraps_nothing(backend: Backend) {
    let server = Server::start(backend).await;
    server.make_key("k", 2048).await;
    let config = server.config_with_token(backend::ROOT);
    let sign_algorithms = [SignAlgorithm::Ps256, SignAlgorithm::Rs512];
    let key = open_with(&config, "transit/k:1", &[], &sign_algorithms).await.unwrap();
    let name = format!("{}/rsa-2048 that only signs, over http", backend.name());
    let subject = Subject::new(name, key).without_labels();
    claviger_conformance::run(subject).await.expect_all_passed();
}

on_both!(
    rsa_2048_keeps_the_contract,
    rsa_3072_keeps_the_contract,
    rsa_4096_keeps_the_contract,
    a_key_that_only_signs_unwraps_nothing,
);
