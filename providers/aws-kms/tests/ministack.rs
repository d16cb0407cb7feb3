//! What an operator meets: aliases, disabled keys, keys of another use, unknown keys, wrong places.

mod support;

use std::time::{Duration, Instant};

use aws_sdk_kms::types::{KeySpec, KeyUsageType};
use claviger_provider_api::{Algorithm, ErrorKind, SignAlgorithm};
use support::{OAEP, config, open, open_pinned, round_trip};
use test_backends::{Ministack, free_port};

const LONG: Duration = Duration::from_secs(30);

#[tokio::test]
async fn every_form_of_a_locator_opens_the_same_key() {
    let server = Ministack::start().await;
    let folder = tempfile::tempdir().unwrap();
    let config = config(&server.endpoint, folder.path());
    let arn = server.key(KeySpec::Rsa2048, KeyUsageType::EncryptDecrypt).await;
    let id = arn.rsplit('/').next().unwrap();
    let kms = server.administrator();
    kms.create_alias().alias_name("alias/user-keys").target_key_id(id).send().await.unwrap();
    let alias_arn = format!("{}:alias/user-keys", arn.rsplit_once(':').unwrap().0);
    let mut found = Vec::new();
    for locator in [id, &arn, "alias/user-keys", &alias_arn] {
        let key = open(&config, locator, &OAEP, &[]).await.unwrap();
        assert!(round_trip(&*key, LONG).await.unwrap().is_some(), "{locator}: no request id");
        found.push(key.public_key().sha256());
    }
    found.dedup();
    assert_eq!(found.len(), 1);
}

#[tokio::test]
async fn an_alias_that_is_pointed_elsewhere_changes_nothing_for_an_open_key() {
    let server = Ministack::start().await;
    let folder = tempfile::tempdir().unwrap();
    let config = config(&server.endpoint, folder.path());
    let first = server.key(KeySpec::Rsa2048, KeyUsageType::EncryptDecrypt).await;
    let second = server.key(KeySpec::Rsa2048, KeyUsageType::EncryptDecrypt).await;
    let kms = server.administrator();
    kms.create_alias().alias_name("alias/moving").target_key_id(&first).send().await.unwrap();
    let unpinned = open(&config, "alias/moving", &OAEP, &[]).await.unwrap();
    let pin = unpinned.public_key().sha256();
    let key = open_pinned(&config, "alias/moving", pin).await.unwrap();
    kms.update_alias().alias_name("alias/moving").target_key_id(&second).send().await.unwrap();
    round_trip(&*key, LONG).await.unwrap();
    key.check().await.unwrap();
    // Who opens it anew is told where it points now, and what to write instead.
    let other = open(&config, "alias/moving", &OAEP, &[]).await.unwrap().public_key().sha256();
    let error = open_pinned(&config, "alias/moving", pin).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OperatorNeeded, "{error}");
    let another = error.another_key().expect("another key was found");
    assert_eq!((another.found, another.pinned), (other, pin));
    for said in [&second, "write the pinned key's own ARN", "a new version", "alias/moving"] {
        assert!(error.to_string().contains(said), "{said}: {error}");
    }
    assert!(error.backend_request_id().is_some(), "{error}");
    open_pinned(&config, &first, pin).await.unwrap();
    // A locator that names one key for ever is not called again here.
    let opened = open_pinned(&config, &second, pin).await.unwrap();
    assert_eq!(opened.public_key().sha256(), other);
}

#[tokio::test]
async fn a_disabled_key_needs_an_operator_and_comes_back_when_it_is_enabled() {
    let server = Ministack::start().await;
    let folder = tempfile::tempdir().unwrap();
    let config = config(&server.endpoint, folder.path());
    let arn = server.key(KeySpec::Rsa2048, KeyUsageType::EncryptDecrypt).await;
    let kms = server.administrator();
    let key = open(&config, &arn, &OAEP, &[]).await.unwrap();
    kms.disable_key().key_id(&arn).send().await.unwrap();
    for error in [
        round_trip(&*key, LONG).await.unwrap_err(),
        key.check().await.unwrap_err(),
        open(&config, &arn, &OAEP, &[]).await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::OperatorNeeded, "{error}");
        assert!(error.to_string().contains("enable the key"), "{error}");
        assert!(error.backend_request_id().is_some(), "{error}");
    }
    kms.enable_key().key_id(&arn).send().await.unwrap();
    round_trip(&*key, LONG).await.unwrap();
    kms.schedule_key_deletion().key_id(&arn).pending_window_in_days(7).send().await.unwrap();
    let error = round_trip(&*key, LONG).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OperatorNeeded, "{error}");
    assert!(error.to_string().contains("deletion"), "{error}");
}

#[tokio::test]
async fn keys_of_another_use_or_kind_are_refused_in_words() {
    let server = Ministack::start().await;
    let folder = tempfile::tempdir().unwrap();
    let config = config(&server.endpoint, folder.path());
    let signing = server.key(KeySpec::Rsa2048, KeyUsageType::SignVerify).await;
    let unwrapping = server.key(KeySpec::Rsa2048, KeyUsageType::EncryptDecrypt).await;
    let elliptic = server.key(KeySpec::EccNistP256, KeyUsageType::SignVerify).await;
    let (none, ps256) = (&[][..], &[SignAlgorithm::Ps256][..]);
    let table = [
        (&signing, &OAEP[..], &[][..], "made for SIGN_VERIFY"),
        (&unwrapping, none, ps256, "made for ENCRYPT_DECRYPT"),
        (&unwrapping, &OAEP, ps256, "either decrypts or signs"),
        (&elliptic, none, ps256, "ECC_NIST_P256"),
        (&unwrapping, &[Algorithm::RsaOaep512], &[], "cannot unwrap RSA-OAEP-512"),
        (&unwrapping, &[Algorithm::Rsa15], &[], "cannot unwrap RSA1_5"),
    ];
    for (arn, algorithms, sign_algorithms, expected) in table {
        let error = open(&config, arn, algorithms, sign_algorithms).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OperatorNeeded, "{error}");
        assert!(error.to_string().contains(expected), "{expected}: {error}");
    }
}

#[tokio::test]
async fn what_is_not_there_needs_an_operator() {
    let server = Ministack::start().await;
    let folder = tempfile::tempdir().unwrap();
    let config = config(&server.endpoint, folder.path());
    let arn = server.key(KeySpec::Rsa2048, KeyUsageType::EncryptDecrypt).await;
    let id = arn.rsplit('/').next().unwrap().to_owned();
    let mut elsewhere = config.clone();
    elsewhere.region = "us-east-1".to_owned();
    let unknown = "00000000-0000-0000-0000-000000000000";
    for (config, locator) in [(&config, unknown), (&config, "alias/none"), (&elsewhere, &id)] {
        let error = open(config, locator, &OAEP, &[]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OperatorNeeded, "{error}");
        assert!(error.to_string().contains("look at the locator"), "{error}");
    }
}

#[tokio::test]
async fn a_backend_that_is_down_is_unavailable_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(&format!("http://127.0.0.1:{}", free_port()), folder.path());
    let begun = Instant::now();
    let error = open(&config, "alias/any", &OAEP, &[]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert!(!error.to_string().contains("secret-marker"), "{error}");
}

#[tokio::test]
async fn credentials_that_cannot_be_read_name_their_file_and_no_secret() {
    let server = Ministack::start().await;
    let folder = tempfile::tempdir().unwrap();
    let config = config(&server.endpoint, folder.path());
    let arn = server.key(KeySpec::Rsa2048, KeyUsageType::EncryptDecrypt).await;
    let key_file = folder.path().join("key");
    std::fs::write(&key_file, "secret-marker secret-marker").unwrap();
    let error = open(&config, &arn, &OAEP, &[]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OperatorNeeded, "{error}");
    assert!(error.to_string().contains("`credentials.secret_access_key`"), "{error}");
    assert!(!error.to_string().contains("secret-marker"), "{error}");
    std::fs::remove_file(&key_file).unwrap();
    let error = open(&config, &arn, &OAEP, &[]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OperatorNeeded, "{error}");
    assert!(error.to_string().contains(key_file.to_str().unwrap()), "{error}");
}
