//! Which key an identifier means: versions, rotation, the pin; and keys that are not fit for use.

mod support;

use azure_key_vault_fake::Fault;
use claviger_provider_api::{Algorithm, Cause, ErrorKind, SignAlgorithm, WrappingKey};
use serde_json::json;
use support::{LONG, OAEP, Setup, open, path, round_trip};

/// The identifier of the version that a key's unwraps go to.
async fn asked_for(setup: &Setup, key: &dyn WrappingKey) -> String {
    setup.fake.asked();
    round_trip(key, LONG).await.unwrap();
    let asked = setup.fake.asked();
    let path = asked.last().and_then(|last| last.strip_prefix("POST ")?.strip_suffix("/unwrapkey"));
    format!("{}{}", setup.fake.origin(), path.expect("an unwrap"))
}

#[tokio::test]
async fn a_rotated_key_is_found_by_its_public_key() {
    let setup = Setup::new().await;
    let first = setup.fake.create("user-keys", 2048);
    let bare = format!("{}/keys/user-keys", setup.fake.origin());
    let opened = setup.open(&bare, &OAEP).await.unwrap();
    let pin = opened.public_key().sha256();
    // More than a page of younger versions, in an order that says nothing.
    (0..26).for_each(|_| drop(setup.fake.create("user-keys", 2048)));
    let latest = setup.fake.create("user-keys", 2048);
    // What is open stays what it was.
    round_trip(&*opened, LONG).await.unwrap();
    setup.fake.asked();
    let found = open(&setup.config, &bare, &OAEP, &[], Some(pin)).await.unwrap();
    assert_eq!(found.public_key().sha256(), pin);
    round_trip(&*found, LONG).await.unwrap();
    let asked = setup.fake.asked();
    let pages = asked.iter().filter(|asked| asked.ends_with("/keys/user-keys/versions")).count();
    assert_eq!(pages, 2, "{asked:?}");
    let unwrap = format!("POST {}/unwrapkey", path(&setup.fake, &first));
    assert_eq!(asked.last(), Some(&unwrap));
    // Without a pin, or with its own, the latest is meant and nothing is looked for.
    let newest = setup.open(&bare, &OAEP).await.unwrap();
    assert_eq!(asked_for(&setup, &*newest).await, latest);
    let pin = newest.public_key().sha256();
    setup.fake.asked();
    open(&setup.config, &bare, &OAEP, &[], Some(pin)).await.unwrap();
    let asked = setup.fake.asked();
    assert!(!asked.iter().any(|asked| asked.contains("versions")), "{asked:?}");
}

#[tokio::test]
async fn a_version_of_another_type_stops_no_search_for_the_pinned_key() {
    let setup = Setup::new().await;
    let bare = format!("{}/keys/user-keys", setup.fake.origin());
    setup.fake.create("user-keys", 2048);
    let pinned = setup.fake.create("user-keys", 2048);
    let pin = setup.open(&pinned, &OAEP).await.unwrap().public_key().sha256();
    // Many, so that some are met whatever the order among equally old ones is.
    (0..5).for_each(|_| drop(setup.fake.create_elliptic("user-keys")));
    let found = open(&setup.config, &bare, &OAEP, &[], Some(pin)).await.unwrap();
    assert_eq!(asked_for(&setup, &*found).await, pinned);
    // The latest is what an open without a pin means, and the pinned one may be nowhere.
    let error = setup.open(&bare, &OAEP).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OperatorNeeded, "{error}");
    assert_eq!(error.cause(), Some(Cause::KeyUnfit), "{error}");
    assert!(error.to_string().contains("of the type \"EC\""), "{error}");
    assert!(error.backend_request_id().is_some(), "{error}");
    let error = open(&setup.config, &bare, &OAEP, &[], Some([7; 32])).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OperatorNeeded, "{error}");
    assert!(error.to_string().contains("of the type \"EC\""), "{error}");
    assert!(error.to_string().contains("none of its 6 other versions"), "{error}");
}

#[tokio::test]
async fn a_latest_version_that_is_disabled_stops_no_search_for_the_pinned_key() {
    let setup = Setup::new().await;
    let bare = format!("{}/keys/user-keys", setup.fake.origin());
    let pinned = setup.fake.create("user-keys", 2048);
    let pin = setup.open(&pinned, &OAEP).await.unwrap().public_key().sha256();
    let latest = setup.fake.create("user-keys", 2048);
    setup.fake.enable(&latest, false);
    let body = json!({ "error": {
        "code": "Forbidden",
        "message": "Operation get is not allowed on a disabled key.",
        "innererror": { "code": "KeyDisabled" },
    } });
    // Shown as disabled, and not shown at all.
    for is_hidden in [false, true] {
        if is_hidden {
            let (headers, body) = (Vec::new(), body.to_string());
            setup.fake.fault(Fault::Answer { status: 403, headers, body });
        }
        let found = open(&setup.config, &bare, &OAEP, &[], Some(pin)).await.unwrap();
        assert_eq!(asked_for(&setup, &*found).await, pinned);
    }
    // Without another one that is pinned it is what the locator means, and must be enabled.
    let error = setup.open(&bare, &OAEP).await.unwrap_err();
    assert_eq!(error.cause(), Some(Cause::KeyDisabled), "{error}");
}

#[tokio::test]
async fn a_key_tells_whether_azure_would_hand_it_out() {
    let setup = Setup::new().await;
    let kid = setup.fake.create("user-keys", 2048);
    for exportable in [false, true] {
        setup.fake.change(&kid, &json!({ "attributes": { "exportable": exportable } }));
        let key = setup.open(&kid, &OAEP).await.unwrap();
        assert_eq!(key.extractable(), Some(exportable));
    }
}

#[tokio::test]
async fn a_pinned_key_that_is_nowhere_needs_an_operator() {
    let setup = Setup::new().await;
    let kid = setup.fake.create("user-keys", 2048);
    setup.fake.create("user-keys", 2048);
    let bare = format!("{}/keys/user-keys", setup.fake.origin());
    let error = open(&setup.config, &bare, &OAEP, &[], Some([7; 32])).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OperatorNeeded, "{error}");
    assert_eq!(error.cause(), Some(Cause::AnotherKey), "{error}");
    assert_eq!(error.another_key().unwrap().pinned, [7; 32]);
    assert!(error.to_string().contains("its 1 other versions"), "{error}");
    // A version that is named is opened as it is; the daemon compares it with the pin.
    let key = open(&setup.config, &kid, &OAEP, &[], Some([7; 32])).await.unwrap();
    assert_eq!(asked_for(&setup, &*key).await, kid);
}

#[tokio::test]
async fn a_next_page_elsewhere_is_not_asked_for() {
    let setup = Setup::new().await;
    setup.fake.create("user-keys", 2048);
    setup.fake.create("user-keys", 2048);
    let elsewhere = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let next = format!("https://{}/keys/user-keys/versions", elsewhere.local_addr().unwrap());
    setup.fake.fault(Fault::Changed(json!({})));
    setup.fake.fault(Fault::Changed(json!({ "nextLink": next })));
    let bare = format!("{}/keys/user-keys", setup.fake.origin());
    let error = open(&setup.config, &bare, &OAEP, &[], Some([7; 32])).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal, "{error}");
    assert!(error.to_string().contains("not the vault"), "{error}");
    let went = tokio::time::timeout(std::time::Duration::from_millis(100), elsewhere.accept());
    assert!(went.await.is_err(), "the token went elsewhere");
}

#[tokio::test]
async fn a_disabled_key_needs_an_operator_and_comes_back_when_it_is_enabled() {
    let setup = Setup::new().await;
    let kid = setup.fake.create("user-keys", 2048);
    let key = setup.open(&kid, &OAEP).await.unwrap();
    setup.fake.enable(&kid, false);
    for error in [
        round_trip(&*key, LONG).await.unwrap_err(),
        key.check().await.unwrap_err(),
        setup.open(&kid, &OAEP).await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::OperatorNeeded, "{error}");
        assert!(error.to_string().contains("enable"), "{error}");
    }
    let error = round_trip(&*key, LONG).await.unwrap_err();
    assert!(error.to_string().contains("403 Forbidden (KeyDisabled)"), "{error}");
    assert!(error.backend_request_id().is_some(), "{error}");
    setup.fake.enable(&kid, true);
    round_trip(&*key, LONG).await.unwrap();
    key.check().await.unwrap();
}

#[tokio::test]
async fn an_expired_key_still_unwraps_and_no_longer_signs() {
    let setup = Setup::new().await;
    let kid = setup.fake.create("user-keys", 2048);
    setup.fake.change(&kid, &json!({ "attributes": { "exp": 1_000_000_000 } }));
    let key = setup.open(&kid, &OAEP).await.unwrap();
    round_trip(&*key, LONG).await.unwrap();
    let signing = &[SignAlgorithm::Ps256];
    let error = open(&setup.config, &kid, &[], signing, None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OperatorNeeded, "{error}");
    assert!(error.to_string().contains("expired"), "{error}");
}

#[tokio::test]
async fn keys_that_may_not_do_it_are_refused_in_words() {
    let setup = Setup::new().await;
    let unwrapping = setup.fake.create("unwrapping", 2048);
    setup.fake.change(&unwrapping, &json!({ "key_ops": ["unwrapKey", "wrapKey"] }));
    let signing = setup.fake.create("signing", 2048);
    setup.fake.change(&signing, &json!({ "key_ops": ["sign", "verify"] }));
    let (none, ps256) = (&[][..], &[SignAlgorithm::Ps256][..]);
    let table = [
        (&unwrapping, none, ps256, "do not have \"sign\""),
        (&signing, &OAEP[..], &[][..], "do not have \"unwrapKey\""),
        (&unwrapping, &[Algorithm::RsaOaep512], &[], "cannot unwrap RSA-OAEP-512"),
        (&unwrapping, &[Algorithm::RsaOaep384], &[], "cannot unwrap RSA-OAEP-384"),
    ];
    for (kid, algorithms, sign_algorithms, expected) in table {
        let error = open(&setup.config, kid, algorithms, sign_algorithms, None).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OperatorNeeded, "{error}");
        assert!(error.to_string().contains(expected), "{expected}: {error}");
    }
    open(&setup.config, &signing, none, ps256, None).await.unwrap();
    // Taken away later.
    let key = setup.open(&unwrapping, &OAEP).await.unwrap();
    setup.fake.change(&unwrapping, &json!({ "key_ops": ["wrapKey"] }));
    let error = round_trip(&*key, LONG).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OperatorNeeded, "{error}");
    assert!(error.to_string().contains("KeyOperationForbidden"), "{error}");
}

#[tokio::test]
async fn what_is_not_there_or_no_rsa_key_needs_an_operator() {
    let setup = Setup::new().await;
    let kid = setup.fake.create("user-keys", 2048);
    let origin = setup.fake.origin();
    for locator in
        [format!("{origin}/keys/none"), format!("{origin}/keys/user-keys/{}", "0".repeat(32))]
    {
        let error = setup.open(&locator, &OAEP).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OperatorNeeded, "{error}");
        assert!(error.to_string().contains("look at the locator"), "{error}");
        assert!(error.backend_request_id().is_some(), "{error}");
    }
    let elliptic = json!({ "key": { "kid": kid, "kty": "EC", "crv": "P-256" } });
    setup.fake.fault(Fault::Changed(elliptic));
    let error = setup.open(&kid, &OAEP).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OperatorNeeded, "{error}");
    assert_eq!(error.cause(), Some(Cause::KeyUnfit), "{error}");
    assert!(error.to_string().contains("\"EC\""), "{error}");
    // Deleted while it was open.
    let key = setup.open(&kid, &OAEP).await.unwrap();
    setup.fake.remove("user-keys");
    let error = round_trip(&*key, LONG).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OperatorNeeded, "{error}");
    assert!(error.to_string().contains("KeyNotFound"), "{error}");
}
