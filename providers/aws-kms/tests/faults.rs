//! KMS at its worst: its own errors word for word, cut and slow answers, redirects, refused
//! credentials, wrong certificates.

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use claviger_provider_api::{Algorithm, Cause, ErrorKind, Parameters, WrappingKey};
use serde_json::json;
use support::fake::{ARN, Fake, Fault};
use support::{OAEP, call, config, open, round_trip, write_credentials};

const LONG: Duration = Duration::from_secs(30);

async fn opened() -> (Fake, Arc<dyn WrappingKey>, tempfile::TempDir) {
    let fake = Fake::start().await;
    let folder = tempfile::tempdir().unwrap();
    let key = open(&config(&fake.endpoint, folder.path()), ARN, &OAEP, &[]).await.unwrap();
    assert_eq!(fake.asked(), ["GetPublicKey", "Decrypt", "Decrypt"]);
    (fake, key, folder)
}

#[tokio::test]
async fn each_error_of_kms_has_its_kind_and_is_asked_for_once() {
    let (fake, key, _folder) = opened().await;
    let throttled = ErrorKind::Throttled { retry_after: None };
    let table = [
        (400, "ThrottlingException", throttled),
        (400, "LimitExceededException", throttled),
        (500, "DependencyTimeoutException", ErrorKind::Unavailable),
        (500, "KMSInternalException", ErrorKind::Unavailable),
        (500, "KeyUnavailableException", ErrorKind::Unavailable),
        (503, "ServiceUnavailableException", ErrorKind::Unavailable),
        (400, "InvalidCiphertextException", ErrorKind::UnwrapFailed),
        (400, "IncorrectKeyException", ErrorKind::UnwrapFailed),
        (400, "DisabledException", ErrorKind::OperatorNeeded),
        (400, "NotFoundException", ErrorKind::OperatorNeeded),
        (400, "KMSInvalidStateException", ErrorKind::OperatorNeeded),
        (400, "InvalidKeyUsageException", ErrorKind::OperatorNeeded),
        (400, "AccessDeniedException", ErrorKind::OperatorNeeded),
        (400, "InvalidGrantTokenException", ErrorKind::OperatorNeeded),
        (400, "com.amazonaws.kms#AccessDeniedException", ErrorKind::OperatorNeeded),
        (400, "ExpiredTokenException", ErrorKind::Unavailable),
    ];
    for (status, code, kind) in table {
        fake.next_error(status, code);
        let error = round_trip(&*key, LONG).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{code}: {error}");
        let code = code.rsplit('#').next().unwrap();
        let said = format!("kms:Decrypt failed: {code} (HTTP {status}): said by the fake");
        assert!(error.to_string().starts_with(&said), "{error}");
        assert_eq!(error.backend_request_id(), Some("request-1"), "{code}");
        assert_eq!(fake.asked(), ["Decrypt"], "{code}");
    }
    assert_eq!(round_trip(&*key, LONG).await.unwrap().as_deref(), Some("request-1"));
}

#[tokio::test]
async fn the_delay_that_kms_names_is_passed_on() {
    let (fake, key, _folder) = opened().await;
    let body = json!({ "__type": "ThrottlingException" }).to_string();
    fake.next(Fault::Answer(400, "Retry-After: 7\r\n", body));
    let error = round_trip(&*key, LONG).await.unwrap_err();
    let retry_after = Some(Duration::from_secs(7));
    assert_eq!(error.kind(), ErrorKind::Throttled { retry_after }, "{error}");
}

#[tokio::test]
async fn what_is_no_answer_of_kms_is_unavailable_and_is_not_tried_again() {
    let (fake, key, _folder) = opened().await;
    let html = || "<html>bad gateway</html>".to_owned();
    let faults = [
        Fault::Cut,
        Fault::Truncated,
        Fault::Answer(502, "", html()),
        Fault::Answer(503, "", String::new()),
        Fault::Answer(200, "", html()),
    ];
    for fault in faults {
        fake.next(fault.clone());
        let error = round_trip(&*key, LONG).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{fault:?}: {error}");
        assert_eq!(fake.asked(), ["Decrypt"], "{fault:?}");
        round_trip(&*key, LONG).await.unwrap();
        assert_eq!(fake.asked(), ["Decrypt"], "{fault:?}");
    }
}

#[tokio::test]
async fn an_answer_that_is_too_long_is_cut_off_and_is_unavailable() {
    let (fake, key, _folder) = opened().await;
    // Good JSON, but for its length: the SDK would read all of it.
    let long = json!({ "Padding": "x".repeat(2 << 20) }).to_string();
    for status in [200, 503] {
        fake.next(Fault::Answer(status, "", long.clone()));
        let error = round_trip(&*key, LONG).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{status}: {error}");
        assert!(error.to_string().contains("length limit exceeded"), "{status}: {error}");
        round_trip(&*key, LONG).await.unwrap();
    }
}

#[tokio::test]
async fn an_empty_secret_file_is_named_as_one() {
    let fake = Fake::start().await;
    let folder = tempfile::tempdir().unwrap();
    let config = config(&fake.endpoint, folder.path());
    std::fs::write(folder.path().join("id"), "").unwrap();
    let error = open(&config, ARN, &OAEP, &[]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OperatorNeeded, "{error}");
    assert_eq!(error.cause(), Some(Cause::SecretFile), "{error}");
}

#[tokio::test]
async fn a_symmetric_key_is_unfit_and_a_key_for_signing_as_well() {
    let fake = Fake::start().await;
    let folder = tempfile::tempdir().unwrap();
    let config = config(&fake.endpoint, folder.path());
    fake.next_error(400, "UnsupportedOperationException");
    let symmetric = open(&config, ARN, &OAEP, &[]).await.unwrap_err();
    fake.next(Fault::Changed(json!({ "KeyUsage": "SIGN_VERIFY" })));
    let signing = open(&config, ARN, &OAEP, &[]).await.unwrap_err();
    // The public key of a P-256 key.
    let spki = "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEaxfR8uEsQkf4vOblY6RA8ncDfYEt6zOg9KE5RdiYwpZP40Li/hp/m47n60p8D54WK84zV2sxXs7LtkBoN79R9Q==";
    fake.next(Fault::Changed(json!({ "PublicKey": spki, "KeySpec": "ECC_NIST_P256" })));
    let elliptic = open(&config, ARN, &OAEP, &[]).await.unwrap_err();
    for error in [symmetric, signing, elliptic] {
        assert_eq!(error.kind(), ErrorKind::OperatorNeeded, "{error}");
        assert_eq!(error.cause(), Some(Cause::KeyUnfit), "{error}");
    }
}

#[tokio::test]
async fn a_redirect_is_refused_and_never_followed() {
    let (fake, key, _folder) = opened().await;
    let elsewhere = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let location = format!("Location: http://{}/\r\n", elsewhere.local_addr().unwrap());
    let location: &'static str = location.leak();
    for status in [301, 302, 307, 308] {
        fake.next(Fault::Answer(status, location, String::new()));
        let error = round_trip(&*key, LONG).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OperatorNeeded, "{status}: {error}");
        assert_eq!(fake.asked(), ["Decrypt"], "{status}");
    }
    let followed = tokio::time::timeout(Duration::from_millis(100), elsewhere.accept()).await;
    assert!(followed.is_err(), "the redirect was followed");
}

#[tokio::test]
async fn the_callers_deadline_holds_while_kms_is_slow() {
    let (fake, key, _folder) = opened().await;
    fake.next(Fault::Slow(Duration::from_secs(20)));
    let begun = Instant::now();
    let error = round_trip(&*key, Duration::from_millis(300)).await.unwrap_err();
    let took = begun.elapsed();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{error}");
    assert!((300..800).contains(&took.as_millis()), "{took:?}");
    fake.asked();
    let error = round_trip(&*key, Duration::ZERO).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{error}");
    assert!(fake.asked().is_empty(), "KMS was asked after the deadline");
    round_trip(&*key, LONG).await.unwrap();
}

#[tokio::test]
async fn the_configured_limit_holds_where_no_deadline_is_earlier() {
    let fake = Fake::start().await;
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(&fake.endpoint, folder.path());
    let key = open(&config, ARN, &OAEP, &[]).await.unwrap();
    fake.next(Fault::Slow(Duration::from_mins(1)));
    config.connect_timeout.0 = Duration::from_millis(300);
    config.attempt_timeout.0 = Duration::from_millis(300);
    let error = open(&config, ARN, &OAEP, &[]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    drop(key);
}

#[tokio::test]
async fn a_bad_value_is_the_values_fault_and_bad_shapes_never_leave() {
    let (fake, key, _folder) = opened().await;
    assert!(!key.failure_needs_check());
    let parameters = Parameters::of(Algorithm::RsaOaep);
    let mut value = vec![0x55; 256];
    value[0] = 0;
    let error = key.unwrap_key(&value, &parameters, call(LONG)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnwrapFailed, "{error}");
    assert_eq!(fake.asked(), ["Decrypt"]);
    for bad in [vec![], vec![1; 255], vec![1; 257], vec![0xff; 256]] {
        let error = key.unwrap_key(&bad, &parameters, call(LONG)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnwrapFailed, "{error}");
    }
    let labelled = Parameters { label: b"tenant", ..parameters };
    let error = key.unwrap_key(&value, &labelled, call(LONG)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OperatorNeeded, "{error}");
    assert!(fake.asked().is_empty(), "KMS was asked");
}

#[tokio::test]
async fn an_answer_about_another_key_is_never_believed() {
    let (fake, key, _folder) = opened().await;
    let other = ARN.replace("1234abcd", "00000000");
    fake.next(Fault::Changed(json!({ "KeyId": other })));
    let error = round_trip(&*key, LONG).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal, "{error}");
    fake.next(Fault::Changed(json!({ "Plaintext": null })));
    let error = round_trip(&*key, LONG).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal, "{error}");
    // A canary that comes back as something else.
    fake.next(Fault::Changed(json!({ "Plaintext": "AAAA" })));
    let error = key.check().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal, "{error}");
    key.check().await.unwrap();
}

#[tokio::test]
async fn an_algorithm_that_does_not_work_is_found_when_the_key_is_opened() {
    let fake = Fake::start().await;
    let folder = tempfile::tempdir().unwrap();
    let config = config(&fake.endpoint, folder.path());
    for (status, code, kind, expected) in [
        (400, "InvalidCiphertextException", ErrorKind::OperatorNeeded, "take it off the list"),
        (400, "AccessDeniedException", ErrorKind::OperatorNeeded, "allow kms:GetPublicKey"),
        (500, "KMSInternalException", ErrorKind::Unavailable, "KMSInternalException"),
    ] {
        fake.next(Fault::Changed(json!({})));
        fake.next_error(status, code);
        let error = open(&config, ARN, &OAEP, &[]).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(expected), "{error}");
        assert!(error.backend_request_id().is_some(), "{error}");
    }
    fake.next(Fault::Changed(json!({ "KeyId": "1234abcd-12ab-34cd-56ef-1234567890ab" })));
    let error = open(&config, ARN, &OAEP, &[]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal, "{error}");
}

#[tokio::test]
async fn expired_credentials_are_replaced_by_a_check_and_counted_as_one_repair() {
    let (fake, key, folder) = opened().await;
    for code in ["ExpiredTokenException", "UnrecognizedClientException"] {
        let (old, new) = match code {
            "ExpiredTokenException" => ("AKIDFIRST", "AKIDSECOND"),
            _ => ("AKIDSECOND", "AKIDTHIRD"),
        };
        let before = key.repairs();
        fake.refuse(old, code);
        let error = round_trip(&*key, LONG).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        write_credentials(folder.path(), new);
        key.check().await.unwrap();
        assert_eq!(key.repairs(), before + 1);
        round_trip(&*key, LONG).await.unwrap();
        key.check().await.unwrap();
        assert_eq!(key.repairs(), before + 1);
    }
}

#[tokio::test]
async fn credentials_that_stay_expired_need_an_operator() {
    let (fake, key, folder) = opened().await;
    fake.asked();
    fake.refuse("AKIDFIRST", "ExpiredTokenException");
    let error = key.check().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OperatorNeeded, "{error}");
    assert!(error.to_string().contains("renew them at their source"), "{error}");
    assert_eq!(key.repairs(), 0);
    assert_eq!(fake.asked(), ["Decrypt", "Decrypt"]);
    let error = open(&config(&fake.endpoint, folder.path()), ARN, &OAEP, &[]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OperatorNeeded, "{error}");
    // Many at once ask for credentials one at a time, and none of them for ever.
    write_credentials(folder.path(), "AKIDSECOND");
    let checks = (0..8).map(|_| {
        let key = key.clone();
        tokio::spawn(async move { key.check().await })
    });
    for check in checks.collect::<Vec<_>>() {
        check.await.unwrap().unwrap();
    }
    assert_eq!(key.repairs(), 1);
    round_trip(&*key, LONG).await.unwrap();
}
