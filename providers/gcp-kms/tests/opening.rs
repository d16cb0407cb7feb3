//! What is found when a key is opened: another algorithm than the listed one, another state, no key.

mod support;

use claviger_provider_api::{Algorithm, ErrorKind, SignAlgorithm};
use gcp_kms_fake::{Algorithm as Version, Fault, VersionState, WrongCrc};
use support::{KEY, LONG, Setup, round_trip};

#[tokio::test]
async fn an_algorithm_that_the_version_cannot_do_is_refused_with_what_to_write() {
    use Algorithm::{Rsa15, RsaOaep, RsaOaep256, RsaOaep384};
    use SignAlgorithm::{Ps256, Rs256};
    let setup = Setup::new();
    let unwraps = setup.fake.create_version(KEY, Version::DecryptOaep2048Sha256);
    let signs = setup.fake.create_version(&format!("{KEY}-sign"), Version::SignPss2048Sha256);
    let other = setup.fake.create_version(&format!("{KEY}-ec"), Version::EcSignP256Sha256);
    let (unwrap, sign) = ("algorithms = [\"RSA-OAEP-256\"]", "sign_algorithms = [\"PS256\"]");
    let none: &[SignAlgorithm] = &[];
    let table: [(&str, &[Algorithm], &[SignAlgorithm], &str); 8] = [
        (&unwraps, &[RsaOaep], none, unwrap),
        (&unwraps, &[RsaOaep256, RsaOaep], none, unwrap),
        (&unwraps, &[RsaOaep384], none, unwrap),
        (&unwraps, &[Rsa15], none, unwrap),
        (&unwraps, &[RsaOaep256], &[Rs256], unwrap),
        (&signs, &[], &[Rs256, Ps256], sign),
        (&signs, &[RsaOaep256], none, sign),
        (&other, &[RsaOaep256], none, "EC_SIGN_P256_SHA256, which is of no use here"),
    ];
    for (locator, algorithms, sign_algorithms, expected) in table {
        let error = setup.open(locator, algorithms, sign_algorithms).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OperatorNeeded, "{error}");
        assert!(error.to_string().contains(expected), "{error}");
        assert_eq!(setup.fake.asked(), ["token", "getPublicKey"], "{error}");
    }
    // `config pin` asks for the public key alone.
    let key = setup.open(&unwraps, &[], &[]).await.unwrap();
    assert_eq!(setup.fake.asked(), ["token", "getPublicKey"]);
    assert_eq!((key.public_key().modulus_bits(), key.extractable()), (2048, Some(false)));
    key.check().await.unwrap();
}

#[tokio::test]
async fn a_version_that_is_not_enabled_says_so_and_serves_again_once_it_is() {
    let (setup, version, key) = Setup::with_key().await;
    for (state, name) in [
        (VersionState::Disabled, "DISABLED"),
        (VersionState::DestroyScheduled, "DESTROY_SCHEDULED"),
        (VersionState::Destroyed, "DESTROYED"),
        (VersionState::PendingImport, "PENDING_IMPORT"),
    ] {
        setup.fake.set_state(&version, state);
        let error = round_trip(&*key, LONG).await.unwrap_err();
        let checked = key.check().await.unwrap_err();
        let opened = setup.open(&version, &[Algorithm::RsaOaep256], &[]).await.unwrap_err();
        for error in [error, checked, opened] {
            assert_eq!(error.kind(), ErrorKind::OperatorNeeded, "{error}");
            let text = error.to_string();
            assert!(text.contains(&format!("current state is: {name}.")), "{text}");
            assert!(text.contains("enable or restore it"), "{text}");
        }
    }
    setup.fake.set_state(&version, VersionState::Enabled);
    round_trip(&*key, LONG).await.unwrap();
    key.check().await.unwrap();
}

#[tokio::test]
async fn a_version_that_is_not_there_or_not_ours_needs_an_operator() {
    let (setup, version, key) = Setup::with_key().await;
    let missing = version.replace("Versions/1", "Versions/7");
    let error = setup.open(&missing, &[Algorithm::RsaOaep256], &[]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OperatorNeeded, "{error}");
    assert!(error.to_string().contains("look at the locator"), "{error}");
    assert!(error.backend_request_id().is_some(), "{error}");
    setup.fake.deny(true);
    let error = round_trip(&*key, LONG).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OperatorNeeded, "{error}");
    let text = error.to_string();
    assert!(text.contains("useToDecrypt") && text.contains("cryptoKeyDecrypter"), "{text}");
    let error = setup.open(&version, &[Algorithm::RsaOaep256], &[]).await.unwrap_err();
    assert!(error.to_string().contains("publicKeyViewer"), "{error}");
    setup.fake.deny(false);
    round_trip(&*key, LONG).await.unwrap();
}

#[tokio::test]
async fn a_public_key_that_may_not_be_the_versions_is_never_believed() {
    let (setup, version, key) = Setup::with_key().await;
    setup.fake.set_wrong_crc(Some(WrongCrc::Pem));
    let error = setup.open(&version, &[Algorithm::RsaOaep256], &[]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal, "{error}");
    assert!(error.to_string().contains("checksum"), "{error}");
    setup.fake.set_wrong_crc(None);
    let other = version.replace("Versions/1", "Versions/2");
    for (fields, kind) in [
        (serde_json::json!({ "name": other }), ErrorKind::Internal),
        (serde_json::json!({ "pem": "-----BEGIN" }), ErrorKind::Internal),
        (serde_json::json!({ "pemCrc32c": null }), ErrorKind::Unavailable),
        (serde_json::json!({ "algorithm": null }), ErrorKind::Unavailable),
    ] {
        setup.fake.next(Fault::Changed(fields.clone()));
        let error = setup.open(&version, &[Algorithm::RsaOaep256], &[]).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{fields}: {error}");
    }
    // What KMS rules out: another key under the same name.
    setup.fake.swap_key(&version);
    let error = key.check().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OperatorNeeded, "{error}");
    assert!(error.to_string().contains("another key there now"), "{error}");
}
