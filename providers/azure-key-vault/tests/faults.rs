//! Azure at its worst: its own errors word for word, cut and slow answers, redirects, answers about
//! other keys, wrong certificates.

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use azure_key_vault_fake::{Fake, Fault, Kind};
use claviger_provider_api::{Algorithm, Cause, ErrorKind, Parameters, WrappingKey};
use serde_json::json;
use support::{LONG, OAEP, Setup, call, path, round_trip};

struct Opened {
    setup: Setup,
    kid: String,
    key: Arc<dyn WrappingKey>,
    /// What an unwrap asks for.
    unwrap: String,
}

async fn opened() -> Opened {
    let setup = Setup::new().await;
    let kid = setup.fake.create("user-keys", 2048);
    let key = setup.open(&kid, &OAEP).await.unwrap();
    let get = format!("GET {}", path(&setup.fake, &kid));
    let unwrap = format!("POST {}/unwrapkey", path(&setup.fake, &kid));
    // The first request brings the challenge; then one for the key, and one canary per algorithm.
    let challenged = format!("401 {get}");
    assert_eq!(setup.fake.asked(), [&*challenged, &*get, &*unwrap, &*unwrap]);
    assert_eq!(setup.fake.tokens_issued(), 1);
    Opened { setup, kid, key, unwrap }
}

fn answer(status: u16, headers: &[(&str, &str)], body: &str) -> Fault {
    let headers = headers.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
    Fault::Answer { status, headers, body: body.to_owned() }
}

fn said(code: &str) -> String {
    json!({ "error": { "code": code, "message": "said by the fake" } }).to_string()
}

#[tokio::test]
async fn each_error_of_azure_has_its_kind_and_is_asked_for_once() {
    let Opened { setup, key, unwrap, .. } = opened().await;
    let throttled = ErrorKind::Throttled { retry_after: None };
    let table = [
        (400, "BadParameter", ErrorKind::UnwrapFailed),
        (403, "Forbidden", ErrorKind::OperatorNeeded),
        (404, "KeyNotFound", ErrorKind::OperatorNeeded),
        (408, "RequestTimeout", ErrorKind::Unavailable),
        (409, "Conflict", ErrorKind::OperatorNeeded),
        (429, "Throttled", throttled),
        (500, "InternalServerError", ErrorKind::Unavailable),
        (502, "BadGateway", ErrorKind::Unavailable),
        (503, "ServiceUnavailable", ErrorKind::Unavailable),
        (504, "GatewayTimeout", ErrorKind::Unavailable),
    ];
    for (status, code, kind) in table {
        setup.fake.fault(answer(status, &[], &said(code)));
        let error = round_trip(&*key, LONG).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{code}: {error}");
        let text = format!("unwrapKey: HTTP {status} {code}: said by the fake");
        assert!(error.to_string().starts_with(&text), "{error}");
        assert!(error.backend_request_id().is_some_and(|id| id.len() == 36), "{code}");
        assert_eq!(setup.fake.asked(), [unwrap.as_str()], "{code}");
    }
    assert!(round_trip(&*key, LONG).await.unwrap().is_some_and(|id| id.len() == 36));
}

#[tokio::test]
async fn an_answer_that_is_too_long_is_cut_off_and_is_unavailable() {
    let Opened { setup, key, .. } = opened().await;
    // Good JSON, but for its length: the SDK would read all of it.
    let long = json!({ "padding": "x".repeat(2 << 20) }).to_string();
    for status in [200, 403] {
        setup.fake.fault(answer(status, &[], &long));
        let error = round_trip(&*key, LONG).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{status}: {error}");
        assert!(error.to_string().contains("longer than 1048576 bytes"), "{status}: {error}");
        round_trip(&*key, LONG).await.unwrap();
    }
}

#[tokio::test]
async fn an_empty_secret_file_is_named_as_one() {
    let setup = Setup::new().await;
    let kid = setup.fake.create("user-keys", 2048);
    setup.write_secret("");
    let error = setup.open(&kid, &OAEP).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OperatorNeeded, "{error}");
    assert_eq!(error.cause(), Some(Cause::SecretFile), "{error}");
}

#[tokio::test]
async fn the_delay_that_azure_names_is_passed_on() {
    let Opened { setup, key, .. } = opened().await;
    let body = r#"{"error":{"code":"Throttled","message":"Request was not processed because too many requests were received. Reason: VaultRequestTypeLimitReached"}}"#;
    setup.fake.fault(answer(429, &[("Retry-After", "7")], body));
    let error = round_trip(&*key, LONG).await.unwrap_err();
    let retry_after = Some(Duration::from_secs(7));
    assert_eq!(error.kind(), ErrorKind::Throttled { retry_after }, "{error}");
}

#[tokio::test]
async fn what_is_no_answer_of_azure_is_unavailable_and_is_not_tried_again() {
    let Opened { setup, key, unwrap, .. } = opened().await;
    let html = "<html>bad gateway</html>";
    let faults = [
        Fault::Cut,
        Fault::Truncated,
        answer(502, &[], html),
        answer(503, &[], ""),
        answer(200, &[], html),
        answer(200, &[], ""),
    ];
    for fault in faults {
        setup.fake.fault(fault.clone());
        let error = round_trip(&*key, LONG).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{fault:?}: {error}");
        assert_eq!(setup.fake.asked(), [unwrap.as_str()], "{fault:?}");
        round_trip(&*key, LONG).await.unwrap();
        assert_eq!(setup.fake.asked(), [unwrap.as_str()], "{fault:?}");
    }
}

#[tokio::test]
async fn a_redirect_is_refused_and_never_followed() {
    let Opened { setup, key, unwrap, .. } = opened().await;
    let elsewhere = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let location = format!("https://{}/", elsewhere.local_addr().unwrap());
    for status in [301, 302, 307, 308] {
        setup.fake.fault(answer(status, &[("Location", &location)], ""));
        let error = round_trip(&*key, LONG).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OperatorNeeded, "{status}: {error}");
        assert!(error.to_string().contains("never followed"), "{status}: {error}");
        assert_eq!(setup.fake.asked(), [unwrap.as_str()], "{status}");
    }
    let followed = tokio::time::timeout(Duration::from_millis(100), elsewhere.accept()).await;
    assert!(followed.is_err(), "the redirect was followed");
}

#[tokio::test]
async fn the_callers_deadline_holds_while_azure_is_slow() {
    let Opened { setup, key, .. } = opened().await;
    setup.fake.fault(Fault::Slow(Duration::from_secs(20)));
    let begun = Instant::now();
    let error = round_trip(&*key, Duration::from_millis(300)).await.unwrap_err();
    let took = begun.elapsed();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{error}");
    assert!(took >= Duration::from_millis(300) && took < Duration::from_secs(15), "{took:?}");
    setup.fake.asked();
    let error = round_trip(&*key, Duration::ZERO).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{error}");
    assert!(setup.fake.asked().is_empty(), "Azure was asked after the deadline");
    round_trip(&*key, LONG).await.unwrap();
}

#[tokio::test]
async fn the_configured_limits_hold_where_no_deadline_is_earlier() {
    let Opened { mut setup, kid, .. } = opened().await;
    let (short, long) = (Duration::from_millis(300), LONG);
    for (attempt, operation) in [(short, long), (short, short)] {
        setup.config.connect_timeout.0 = short;
        setup.config.attempt_timeout.0 = attempt;
        setup.config.operation_timeout.0 = operation;
        // The challenge is not among the requests that are let in, and so is not slow.
        setup.fake.fault(Fault::Slow(Duration::from_mins(1)));
        let error = setup.open(&kid, &OAEP).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    }
}

#[tokio::test]
async fn a_bad_value_is_the_values_fault_and_bad_shapes_never_leave() {
    let Opened { setup, key, unwrap, .. } = opened().await;
    assert!(key.failure_needs_check());
    let parameters = Parameters::of(Algorithm::RsaOaep);
    let mut value = vec![0x55; 256];
    value[0] = 0;
    let error = key.unwrap_key(&value, &parameters, call(LONG)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnwrapFailed, "{error}");
    assert_eq!(setup.fake.asked(), [unwrap.as_str()]);
    for bad in [vec![], vec![1; 255], vec![1; 257], vec![0xff; 256]] {
        let error = key.unwrap_key(&bad, &parameters, call(LONG)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnwrapFailed, "{error}");
    }
    let labelled = Parameters { label: b"tenant", ..parameters };
    let error = key.unwrap_key(&value, &labelled, call(LONG)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OperatorNeeded, "{error}");
    assert!(setup.fake.asked().is_empty(), "Azure was asked");
}

#[tokio::test]
async fn an_answer_about_another_key_is_never_believed() {
    let Opened { setup, kid, key, .. } = opened().await;
    let other = kid.replace(&kid[kid.len() - 4..], "0000");
    for changed in [
        json!({ "kid": other }),
        json!({ "kid": kid.replace("user-keys", "other") }),
        json!({ "kid": null }),
        json!({ "value": null }),
    ] {
        setup.fake.fault(Fault::Changed(changed.clone()));
        let error = round_trip(&*key, LONG).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Internal, "{changed}: {error}");
    }
    // A canary that comes back as something else, or not at all.
    setup.fake.fault(Fault::Changed(json!({ "value": "AAAA" })));
    let error = key.check().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal, "{error}");
    setup.fake.fault(answer(400, &[], &said("BadParameter")));
    let error = key.check().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    key.check().await.unwrap();
    // The key itself.
    setup.fake.fault(Fault::Changed(json!({ "key": { "kid": other, "kty": "RSA" } })));
    let error = setup.open(&kid, &OAEP).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal, "{error}");
}

#[tokio::test]
async fn an_algorithm_that_does_not_work_is_found_when_the_key_is_opened() {
    let Opened { setup, kid, .. } = opened().await;
    for (status, code, kind, expected) in [
        (400, "BadParameter", ErrorKind::OperatorNeeded, "take it off the list"),
        (403, "Forbidden", ErrorKind::OperatorNeeded, "HTTP 403"),
        (500, "InternalServerError", ErrorKind::Unavailable, "InternalServerError"),
    ] {
        setup.fake.fault(Fault::Changed(json!({})));
        setup.fake.fault(answer(status, &[], &said(code)));
        let error = setup.open(&kid, &OAEP).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(expected), "{error}");
        assert!(error.backend_request_id().is_some(), "{error}");
    }
}

#[tokio::test]
async fn only_a_certificate_of_the_configured_ca_for_the_right_name_is_trusted() {
    let Opened { setup, .. } = opened().await;
    for (other, case) in [
        (Fake::start().await.unwrap(), "another CA"),
        (
            Fake::start_with(Kind::Vault, 0, "contoso.vault.azure.net").await.unwrap(),
            "another name",
        ),
    ] {
        let kid = other.create("user-keys", 2048);
        let mut config = setup.config.clone();
        config.vault = other.origin().to_owned();
        if case == "another name" {
            std::fs::write(setup.folder.path().join("other.pem"), other.ca_pem()).unwrap();
            config.ca = Some(setup.folder.path().join("other.pem"));
        }
        let error = support::open(&config, &kid, &OAEP, &[], None).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OperatorNeeded, "{case}: {error}");
        assert!(error.to_string().contains("certificate"), "{case}: {error}");
        assert!(other.asked().is_empty(), "{case}: something was sent");
    }
}

#[tokio::test]
async fn a_ca_file_that_cannot_be_used_is_refused_in_words() {
    let Opened { mut setup, kid, .. } = opened().await;
    let torn = "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n";
    let path = setup.folder.path().join("bad.pem");
    for (text, expected) in [("", "holds no certificate"), (torn, "cannot be used")] {
        std::fs::write(&path, text).unwrap();
        setup.config.ca = Some(path.clone());
        let error = setup.open(&kid, &OAEP).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OperatorNeeded, "{error}");
        assert!(error.to_string().contains(expected), "{text:?}: {error}");
        assert!(error.to_string().contains("bad.pem"), "{error}");
    }
    std::fs::remove_file(&path).unwrap();
    let error = setup.open(&kid, &OAEP).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OperatorNeeded, "{error}");
}

#[tokio::test]
async fn a_backend_that_is_down_is_unavailable() {
    let Opened { setup, kid, key, .. } = opened().await;
    let Setup { fake, folder, config } = setup;
    drop(fake);
    let error = support::open(&config, &kid, &OAEP, &[], None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    drop((key, folder));
}
