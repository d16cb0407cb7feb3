//! Cloud KMS at its worst: its own errors, wrong checksums, cut and slow answers, redirects.

mod support;

use std::time::{Duration, Instant};

use claviger_provider_api::{Algorithm, Digest, ErrorKind, Hash, Parameters, SignAlgorithm};
use gcp_kms_fake::{Algorithm as Version, Fault, WrongCrc};
use serde_json::json;
use support::{KEY, LONG, Setup, call, round_trip};

#[tokio::test]
async fn each_error_of_kms_has_its_kind_and_is_asked_for_once() {
    let (setup, _, key) = Setup::with_key().await;
    let table = [
        ("INVALID_ARGUMENT", 400, ErrorKind::UnwrapFailed),
        ("FAILED_PRECONDITION", 400, ErrorKind::OperatorNeeded),
        ("PERMISSION_DENIED", 403, ErrorKind::OperatorNeeded),
        ("NOT_FOUND", 404, ErrorKind::OperatorNeeded),
        ("ABORTED", 409, ErrorKind::Unavailable),
        ("RESOURCE_EXHAUSTED", 429, ErrorKind::Throttled { retry_after: None }),
        ("CANCELLED", 499, ErrorKind::Unavailable),
        ("INTERNAL", 500, ErrorKind::Unavailable),
        ("UNKNOWN", 500, ErrorKind::Unavailable),
        ("UNIMPLEMENTED", 501, ErrorKind::OperatorNeeded),
        ("UNAVAILABLE", 503, ErrorKind::Unavailable),
        ("DEADLINE_EXCEEDED", 504, ErrorKind::Unavailable),
    ];
    for (code, status, kind) in table {
        setup.fake.next(Fault::error(code, "said by the fake"));
        let error = round_trip(&*key, LONG).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{code}: {error}");
        let said = format!("asymmetricDecrypt failed: {code} (HTTP {status}): said by the fake");
        assert!(error.to_string().starts_with(&said), "{error}");
        assert_eq!(setup.fake.asked(), ["asymmetricDecrypt"], "{code}");
        let id = setup.fake.last_header("x-goog-request-reason");
        assert_eq!(error.backend_request_id(), Some(&*id), "{code}");
    }
}

#[tokio::test]
async fn a_request_carries_the_id_that_the_audit_record_has() {
    let (setup, _, key) = Setup::with_key().await;
    let first = round_trip(&*key, LONG).await.unwrap().unwrap();
    assert_eq!(setup.fake.last_header("x-goog-request-reason"), first);
    assert!(setup.fake.last_header("user-agent").starts_with("claviger/"));
    let second = round_trip(&*key, LONG).await.unwrap().unwrap();
    assert_ne!(first, second);
}

#[tokio::test]
async fn the_delay_that_kms_names_is_passed_on() {
    let (setup, _, key) = Setup::with_key().await;
    let delay = Duration::from_millis(7500);
    setup.fake.next(Fault::throttled(Some(delay)));
    let error = round_trip(&*key, LONG).await.unwrap_err();
    let expected = ErrorKind::Throttled { retry_after: Some(delay) };
    assert_eq!(error.kind(), expected, "{error}");
    assert!(error.to_string().contains("Cryptographic requests per minute"), "{error}");
    let header = vec![("retry-after", "3".to_owned())];
    setup.fake.next(Fault::Answer(429, header, String::new()));
    let error = round_trip(&*key, LONG).await.unwrap_err();
    let expected = ErrorKind::Throttled { retry_after: Some(Duration::from_secs(3)) };
    assert_eq!(error.kind(), expected, "{error}");
}

#[tokio::test]
async fn what_is_no_answer_of_kms_is_unavailable_and_is_not_tried_again() {
    let (setup, _, key) = Setup::with_key().await;
    let html = || "<html>bad gateway</html>".to_owned();
    let faults = [
        Fault::Cut,
        Fault::Truncated,
        Fault::Answer(502, vec![], html()),
        Fault::Answer(503, vec![], String::new()),
        Fault::Answer(200, vec![], html()),
        Fault::Answer(200, vec![], "{}".to_owned()),
    ];
    for fault in faults {
        setup.fake.next(fault.clone());
        let error = round_trip(&*key, LONG).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{fault:?}: {error}");
        assert_eq!(setup.fake.asked(), ["asymmetricDecrypt"], "{fault:?}");
        round_trip(&*key, LONG).await.unwrap();
        assert_eq!(setup.fake.asked(), ["asymmetricDecrypt"], "{fault:?}");
    }
    setup.fake.next(Fault::Answer(200, vec![], " ".repeat((1 << 20) + 1)));
    let error = round_trip(&*key, LONG).await.unwrap_err();
    assert!(error.to_string().contains("longer than"), "{error}");
}

#[tokio::test]
async fn a_redirect_is_refused_and_never_followed() {
    let (setup, _, key) = Setup::with_key().await;
    let elsewhere = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let location = format!("http://{}/", elsewhere.local_addr().unwrap());
    for status in [301, 302, 307, 308] {
        let header = vec![("location", location.clone())];
        setup.fake.next(Fault::Answer(status, header, String::new()));
        let error = round_trip(&*key, LONG).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OperatorNeeded, "{status}: {error}");
        assert!(error.to_string().contains("never followed"), "{error}");
        assert_eq!(setup.fake.asked(), ["asymmetricDecrypt"], "{status}");
    }
    let followed = tokio::time::timeout(Duration::from_millis(100), elsewhere.accept()).await;
    assert!(followed.is_err(), "the redirect was followed");
}

#[tokio::test]
async fn the_callers_deadline_holds_while_kms_is_slow() {
    let (setup, _, key) = Setup::with_key().await;
    setup.fake.next(Fault::Slow(Duration::from_mins(1)));
    let begun = Instant::now();
    let error = round_trip(&*key, Duration::from_millis(300)).await.unwrap_err();
    let took = begun.elapsed();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{error}");
    assert!(error.backend_request_id().is_some(), "{error}");
    assert!((300..20_000).contains(&took.as_millis()), "{took:?}");
    setup.fake.asked();
    let error = round_trip(&*key, Duration::ZERO).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{error}");
    assert!(setup.fake.asked().is_empty(), "KMS was asked after the deadline");
    round_trip(&*key, LONG).await.unwrap();
}

#[tokio::test]
async fn the_configured_limit_holds_where_no_deadline_is_earlier() {
    let mut setup = Setup::new();
    let version = setup.fake.create_version(KEY, Version::DecryptOaep2048Sha256);
    setup.config.connect_timeout.0 = Duration::from_millis(500);
    setup.config.timeout.0 = Duration::from_millis(500);
    setup.fake.next(Fault::Slow(Duration::from_mins(1)));
    let error = setup.open(&version, &[Algorithm::RsaOaep256], &[]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("500 ms"), "{error}");
}

#[tokio::test]
async fn a_bad_value_is_the_values_fault_and_bad_shapes_never_leave() {
    let (setup, _, key) = Setup::with_key().await;
    assert!(key.failure_needs_check());
    let parameters = Parameters::of(Algorithm::RsaOaep256);
    let mut value = vec![0x55; 256];
    value[0] = 0;
    let error = key.unwrap_key(&value, &parameters, call(LONG)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnwrapFailed, "{error}");
    assert_eq!(setup.fake.asked(), ["asymmetricDecrypt"]);
    key.check().await.unwrap();
    assert_eq!(setup.fake.asked(), ["asymmetricDecrypt"]);
    for bad in [vec![], vec![1; 255], vec![1; 257], vec![0xff; 256]] {
        let error = key.unwrap_key(&bad, &parameters, call(LONG)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnwrapFailed, "{error}");
    }
    let labelled = Parameters { label: b"tenant", ..parameters };
    let error = key.unwrap_key(&value, &labelled, call(LONG)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OperatorNeeded, "{error}");
    let other = Parameters::of(Algorithm::RsaOaep);
    let error = key.unwrap_key(&value, &other, call(LONG)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal, "{error}");
    assert!(setup.fake.asked().is_empty(), "KMS was asked");
}

#[tokio::test]
async fn what_does_not_arrive_as_it_was_sent_is_never_used() {
    let (setup, _, key) = Setup::with_key().await;
    // On the way there: KMS sees that the checksum does not fit. It says what it says of bad values,
    // and the canary tells that the key is well.
    setup.fake.next(Fault::CorruptedRequest);
    let error = round_trip(&*key, LONG).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnwrapFailed, "{error}");
    assert!(error.to_string().contains("did not match"), "{error}");
    key.check().await.unwrap();
    // On the way back, or nowhere looked at.
    let changed = |fields| Fault::Changed(fields);
    for fault in [
        changed(json!({ "plaintext": "AAAA" })),
        changed(json!({ "plaintext": null })),
        changed(json!({ "plaintextCrc32c": "1" })),
        changed(json!({ "verifiedCiphertextCrc32c": false })),
        changed(json!({ "verifiedCiphertextCrc32c": null })),
        changed(json!({ "plaintext": "!" })),
    ] {
        setup.fake.next(fault.clone());
        let error = round_trip(&*key, LONG).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Internal, "{fault:?}: {error}");
        assert!(!error.to_string().contains("AAAA"), "{error}");
    }
    for wrong in [WrongCrc::Plaintext, WrongCrc::NotVerified] {
        setup.fake.set_wrong_crc(Some(wrong));
        let error = round_trip(&*key, LONG).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Internal, "{wrong:?}: {error}");
        let error = key.check().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Internal, "{wrong:?}: {error}");
    }
    setup.fake.set_wrong_crc(None);
    key.check().await.unwrap();
}

#[tokio::test]
async fn a_signature_that_is_not_right_in_every_way_never_leaves() {
    let setup = Setup::new();
    let version = setup.fake.create_version(KEY, Version::SignPss2048Sha256);
    let key = setup.open(&version, &[], &[SignAlgorithm::Ps256]).await.unwrap();
    let digest = Digest::new(Hash::Sha256, &[7; 32]).unwrap();
    let signature = key.sign(&digest, SignAlgorithm::Ps256, call(LONG)).await.unwrap();
    assert!(key.public_key().verify(&digest, SignAlgorithm::Ps256, &signature.bytes));
    let other = version.replace("Versions/1", "Versions/2");
    for fault in [
        Fault::Changed(json!({ "signatureCrc32c": "1" })),
        Fault::Changed(json!({ "verifiedDigestCrc32c": null })),
        Fault::Changed(json!({ "name": other })),
        Fault::Changed(json!({ "signature": null, "signatureCrc32c": "0" })),
    ] {
        setup.fake.next(fault.clone());
        let error = key.sign(&digest, SignAlgorithm::Ps256, call(LONG)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Internal, "{fault:?}: {error}");
        assert!(error.backend_request_id().is_some(), "{fault:?}");
    }
    // A signature that fits its checksum, by another key.
    setup.fake.swap_key(&version);
    let error = key.sign(&digest, SignAlgorithm::Ps256, call(LONG)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal, "{error}");
    assert!(error.to_string().contains("does not verify"), "{error}");
    setup.fake.next(Fault::CorruptedRequest);
    let error = key.sign(&digest, SignAlgorithm::Ps256, call(LONG)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OperatorNeeded, "{error}");
    let error = key.sign(&digest, SignAlgorithm::Rs256, call(LONG)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal, "{error}");
}
