//! Access tokens: where they come from, and what happens when they end, are revoked or refused.

mod support;

use std::time::Duration;

use claviger_provider_api::{Algorithm, ErrorKind};
use gcp_kms_fake::{Algorithm as Version, Fault};
use support::{KEY, LONG, Setup, round_trip, write_secret};

const UNWRAP: [Algorithm; 1] = [Algorithm::RsaOaep256];

#[tokio::test]
async fn a_revoked_token_is_replaced_by_a_check_and_counted_as_one_repair() {
    let (setup, _, key) = Setup::with_key().await;
    for repairs in 1..=3 {
        setup.fake.revoke_tokens();
        // What the guard does: the call, a check, and the call once more.
        let error = round_trip(&*key, LONG).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        assert!(error.to_string().contains("invalid authentication credentials"), "{error}");
        key.check().await.unwrap();
        assert_eq!(key.repairs(), repairs);
        round_trip(&*key, LONG).await.unwrap();
        assert_eq!(key.repairs(), repairs);
        assert_eq!(
            setup.fake.asked(),
            ["asymmetricDecrypt", "token", "asymmetricDecrypt", "asymmetricDecrypt"]
        );
    }
    // A check on its own finds out and mends it at once.
    setup.fake.revoke_tokens();
    key.check().await.unwrap();
    assert_eq!(key.repairs(), 4);
    assert_eq!(setup.fake.asked(), ["asymmetricDecrypt", "token", "asymmetricDecrypt"]);
}

#[tokio::test]
async fn a_token_that_ends_is_replaced_before_a_call_needs_it() {
    let setup = Setup::new();
    // Good for an hour, but said to be good for no time at all.
    setup.fake.set_token_lifetime(Duration::from_hours(1), Duration::ZERO);
    let version = setup.fake.create_version(KEY, Version::DecryptOaep2048Sha256);
    let key = setup.open(&version, &UNWRAP, &[]).await.unwrap();
    assert_eq!(setup.fake.asked(), ["token", "getPublicKey", "token", "asymmetricDecrypt"]);
    setup.fake.set_token_lifetime(Duration::from_hours(1), Duration::from_hours(1));
    for _ in 0..3 {
        round_trip(&*key, LONG).await.unwrap();
    }
    assert_eq!(
        setup.fake.asked(),
        ["token", "asymmetricDecrypt", "asymmetricDecrypt", "asymmetricDecrypt"]
    );
    assert_eq!(key.repairs(), 0);
    // Nor does a lifetime that no clock holds do harm.
    setup.fake.next_token(Fault::Changed(serde_json::json!({ "expires_in": u64::MAX })));
    setup.fake.revoke_tokens();
    key.check().await.unwrap();
    round_trip(&*key, LONG).await.unwrap();
}

#[tokio::test]
async fn credentials_that_get_no_more_tokens_need_an_operator_until_they_do() {
    let (setup, version, key) = Setup::with_key().await;
    setup.fake.refuse_credentials(true);
    round_trip(&*key, LONG).await.unwrap();
    setup.fake.revoke_tokens();
    let error = round_trip(&*key, LONG).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    let checked = key.check().await.unwrap_err();
    let called = round_trip(&*key, LONG).await.unwrap_err();
    let opened = setup.open(&version, &UNWRAP, &[]).await.unwrap_err();
    for error in [checked, called, opened] {
        assert_eq!(error.kind(), ErrorKind::OperatorNeeded, "{error}");
        let text = error.to_string();
        assert!(text.contains("invalid_grant") && text.contains("renew the credentials"), "{text}");
        assert!(!text.contains("PRIVATE") && !text.contains("Bearer"), "{text}");
    }
    assert_eq!(key.repairs(), 0);
    setup.fake.refuse_credentials(false);
    round_trip(&*key, LONG).await.unwrap();
    assert_eq!(key.repairs(), 1);
}

#[tokio::test]
async fn a_token_that_is_refused_from_the_start_needs_an_operator() {
    let setup = Setup::new();
    setup.fake.set_token_lifetime(Duration::ZERO, Duration::from_hours(1));
    let version = setup.fake.create_version(KEY, Version::DecryptOaep2048Sha256);
    let error = setup.open(&version, &UNWRAP, &[]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OperatorNeeded, "{error}");
    assert!(error.to_string().contains("so is a token that was just given"), "{error}");
    assert_eq!(setup.fake.asked(), ["token", "getPublicKey"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_calls_at_once_ask_for_one_token() {
    let (setup, _, key) = Setup::with_key().await;
    setup.fake.revoke_tokens();
    round_trip(&*key, LONG).await.unwrap_err();
    setup.fake.asked();
    let calls = (0..16).map(|_| {
        let key = key.clone();
        tokio::spawn(async move { round_trip(&*key, LONG).await })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.unwrap().unwrap();
    }
    let tokens = setup.fake.asked().iter().filter(|asked| *asked == "token").count();
    assert_eq!((tokens, key.repairs()), (1, 1));
}

#[tokio::test]
async fn a_token_endpoint_that_is_ill_is_unavailable_and_one_that_throttles_says_so() {
    let (setup, _, key) = Setup::with_key().await;
    setup.fake.revoke_tokens();
    round_trip(&*key, LONG).await.unwrap_err();
    let header = vec![("retry-after", "9".to_owned())];
    let throttled = ErrorKind::Throttled { retry_after: Some(Duration::from_secs(9)) };
    for (fault, kind) in [
        (Fault::Cut, ErrorKind::Unavailable),
        (Fault::Truncated, ErrorKind::Unavailable),
        (Fault::Answer(500, vec![], String::new()), ErrorKind::Unavailable),
        (Fault::Answer(200, vec![], "<html>".into()), ErrorKind::Unavailable),
        (
            Fault::Answer(302, vec![("location", "/".into())], String::new()),
            ErrorKind::OperatorNeeded,
        ),
        (Fault::Answer(429, header, String::new()), throttled),
        (Fault::Changed(serde_json::json!({ "access_token": "a b" })), ErrorKind::Unavailable),
    ] {
        setup.fake.next_token(fault.clone());
        let error = round_trip(&*key, LONG).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{fault:?}: {error}");
    }
    setup.fake.next_token(Fault::Slow(Duration::from_mins(1)));
    let error = round_trip(&*key, Duration::from_millis(300)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{error}");
    round_trip(&*key, LONG).await.unwrap();
    assert_eq!(key.repairs(), 1);
}

#[tokio::test]
async fn a_workload_identity_federation_gives_tokens_with_and_without_impersonation() {
    for (impersonate, asked) in [(false, &["sts"][..]), (true, &["sts", "generateAccessToken"][..])]
    {
        let setup = Setup::new();
        let token = setup.fake.subject_token();
        let subject = write_secret(setup.folder.path(), "subject", &format!("{token}\n"));
        let file = setup.fake.external_account(&subject, impersonate);
        write_secret(setup.folder.path(), "service-account.json", &file);
        let version = setup.fake.create_version(KEY, Version::DecryptOaep2048Sha256);
        let key = setup.open(&version, &UNWRAP, &[]).await.unwrap();
        let rest = ["getPublicKey", "asymmetricDecrypt"];
        assert_eq!(setup.fake.asked(), [asked, &rest].concat());
        round_trip(&*key, LONG).await.unwrap();
        // The subject token is read anew for each access token.
        write_secret(setup.folder.path(), "subject", "an old one");
        setup.fake.revoke_tokens();
        round_trip(&*key, LONG).await.unwrap_err();
        let error = round_trip(&*key, LONG).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OperatorNeeded, "{error}");
        assert!(!error.to_string().contains("an old one"), "{error}");
        write_secret(setup.folder.path(), "subject", &token);
        round_trip(&*key, LONG).await.unwrap();
    }
}

#[tokio::test]
async fn a_person_who_logged_in_with_gcloud_gets_tokens() {
    let setup = Setup::new();
    let mut file: serde_json::Value = serde_json::from_str(&setup.fake.authorized_user()).unwrap();
    file["token_uri"] = format!("{}/token", setup.fake.endpoint()).into();
    file["quota_project_id"] = "fake-project".into();
    write_secret(setup.folder.path(), "service-account.json", &file.to_string());
    let version = setup.fake.create_version(KEY, Version::DecryptOaep2048Sha256);
    let key = setup.open(&version, &UNWRAP, &[]).await.unwrap();
    assert_eq!(setup.fake.asked(), ["refresh", "getPublicKey", "asymmetricDecrypt"]);
    assert_eq!(setup.fake.last_header("x-goog-user-project"), "fake-project");
    round_trip(&*key, LONG).await.unwrap();
}

#[tokio::test]
async fn credentials_that_cannot_be_used_are_refused_in_words_before_anything_is_sent() {
    let setup = Setup::new();
    let version = setup.fake.create_version(KEY, Version::DecryptOaep2048Sha256);
    let other = Setup::new();
    // Another service account's key, with the right names.
    let stolen = other.fake.service_account().replace(other.fake.endpoint(), setup.fake.endpoint());
    for (content, expected, asked) in [
        ("not JSON", "not JSON in the form", &[][..]),
        ("{\"type\":\"gdch_service_account\"}", "`type` is none of", &[]),
        (&stolen, "Invalid JWT Signature", &["token"]),
    ] {
        write_secret(setup.folder.path(), "service-account.json", content);
        let error = setup.open(&version, &UNWRAP, &[]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OperatorNeeded, "{error}");
        assert!(error.to_string().contains(expected), "{error}");
        assert_eq!(setup.fake.asked(), asked);
    }
    let path = setup.folder.path().join("service-account.json");
    std::fs::remove_file(&path).unwrap();
    let error = setup.open(&version, &UNWRAP, &[]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OperatorNeeded, "{error}");
    assert!(error.to_string().contains("service-account.json"), "{error}");
}

#[tokio::test]
async fn nothing_that_is_printed_holds_a_secret() {
    let (setup, _, key) = Setup::with_key().await;
    let account: serde_json::Value = serde_json::from_str(&setup.fake.service_account()).unwrap();
    let private = account["private_key"].as_str().unwrap();
    let secret = private.lines().nth(3).unwrap();
    let printed = format!("{key:?} {:?}", setup.config);
    assert!(printed.contains("service-account.json"), "{printed}");
    assert!(!printed.contains(secret) && !printed.contains("ya29"), "{printed}");
}
