//! Tokens: for one vault alone, replaced without a failed call, and what is said where none is to be
//! had.

mod support;

use std::time::Duration;

use azure_key_vault_fake::{CLIENT_ASSERTION, CLIENT_ID, Fault, TENANT};
use claviger_azure_key_vault::{Auth, WorkloadIdentity};
use claviger_provider_api::{ErrorKind, SecretSource};
use serde_json::json;
use support::{LONG, OAEP, Setup, round_trip, write_secret};

/// Tokens that live so long are renewed from the first: the next one is asked for five minutes before
/// the end.
const WITHIN_RENEWAL: Duration = Duration::from_secs(290);

/// Waits until the fake has given out so many tokens.
async fn issue(setup: &Setup, tokens: usize) {
    let issuing = async {
        while setup.fake.tokens_issued() < tokens {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LONG, issuing).await.expect("the tokens were asked for");
}

#[tokio::test]
async fn a_token_that_the_vault_refuses_is_replaced_without_a_failed_call() {
    let setup = Setup::new().await;
    let kid = setup.fake.create("user-keys", 2048);
    let key = setup.open(&kid, &OAEP).await.unwrap();
    assert_eq!((setup.fake.tokens_issued(), key.repairs()), (1, 0));
    tokio::time::sleep(Duration::from_millis(2100)).await;
    setup.fake.revoke_tokens();
    setup.fake.asked();
    // Many find out at the same time; on a machine that is not held up one token is got for all.
    let calls = (0..8).map(|_| {
        let key = key.clone();
        tokio::spawn(async move { round_trip(&*key, LONG).await })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.unwrap().unwrap();
    }
    let asked = setup.fake.asked();
    assert!(asked.iter().any(|asked| asked.starts_with("401 ")), "{asked:?}");
    assert!((1..=8).contains(&key.repairs()), "{}", key.repairs());
    assert_eq!(setup.fake.tokens_issued() as u64, 1 + key.repairs());
}

#[tokio::test]
async fn a_token_is_renewed_before_it_ends() {
    let setup = Setup::new().await;
    setup.fake.set_token_lifetime(WITHIN_RENEWAL);
    let kid = setup.fake.create("user-keys", 2048);
    let key = setup.open(&kid, &OAEP).await.unwrap();
    // No call waits for it, and it is not begun again a moment later.
    for _ in 0..3 {
        round_trip(&*key, LONG).await.unwrap();
    }
    issue(&setup, 2).await;
    for _ in 0..3 {
        round_trip(&*key, LONG).await.unwrap();
    }
    assert_eq!(setup.fake.tokens_issued(), 2);
    assert_eq!(key.repairs(), 0, "a renewal is no repair");
}

#[tokio::test]
async fn an_authority_that_is_down_or_hangs_holds_up_nobody_while_the_token_is_good() {
    // What hangs has made its token; what is down has made none.
    for (fault, issued) in [(Fault::Cut, 1), (Fault::Slow(Duration::from_mins(10)), 2)] {
        let setup = Setup::new().await;
        setup.fake.set_token_lifetime(WITHIN_RENEWAL);
        let kid = setup.fake.create("user-keys", 2048);
        // The first login is well, and nothing after it.
        setup.fake.login_fault(Fault::Changed(json!({})));
        (0..20).for_each(|_| setup.fake.login_fault(fault.clone()));
        let key = setup.open(&kid, &OAEP).await.unwrap();
        issue(&setup, issued).await;
        tokio::time::sleep(Duration::from_millis(2100)).await;
        for _ in 0..6 {
            round_trip(&*key, Duration::from_secs(2)).await.unwrap();
        }
        assert_eq!((setup.fake.tokens_issued(), key.repairs()), (issued, 0), "{fault:?}");
    }
}

#[tokio::test]
async fn a_token_that_is_refused_shortly_before_its_end_is_replaced_too() {
    let setup = Setup::new().await;
    setup.fake.set_token_lifetime(WITHIN_RENEWAL);
    let kid = setup.fake.create("user-keys", 2048);
    let key = setup.open(&kid, &OAEP).await.unwrap();
    // The second was got beside a call; it must not be young any more when it is refused.
    issue(&setup, 2).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    setup.fake.revoke_tokens();
    round_trip(&*key, LONG).await.unwrap();
    round_trip(&*key, LONG).await.unwrap();
    assert!(key.repairs() >= 1);
}

#[tokio::test]
async fn a_token_that_is_refused_without_a_challenge_is_replaced_on_the_next_call() {
    let setup = Setup::new().await;
    let kid = setup.fake.create("user-keys", 2048);
    let key = setup.open(&kid, &OAEP).await.unwrap();
    tokio::time::sleep(Duration::from_millis(2100)).await;
    setup.fake.fault(Fault::Answer { status: 401, headers: vec![], body: "{}".to_owned() });
    let error = round_trip(&*key, LONG).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OperatorNeeded, "{error}");
    assert!(error.to_string().contains("no other token was tried"), "{error}");
    assert_eq!(setup.fake.tokens_issued(), 1);
    round_trip(&*key, LONG).await.unwrap();
    assert_eq!((setup.fake.tokens_issued(), key.repairs()), (2, 1));
}

#[tokio::test]
async fn credentials_that_the_authority_refuses_need_an_operator_until_they_are_replaced() {
    let setup = Setup::new().await;
    let kid = setup.fake.create("user-keys", 2048);
    let key = setup.open(&kid, &OAEP).await.unwrap();
    tokio::time::sleep(Duration::from_millis(2100)).await;
    setup.fake.set_client_secret("another-secret-marker");
    setup.fake.revoke_tokens();
    for error in [round_trip(&*key, LONG).await.unwrap_err(), key.check().await.unwrap_err()] {
        assert_eq!(error.kind(), ErrorKind::OperatorNeeded, "{error}");
        assert!(error.to_string().contains("AADSTS7000215"), "{error}");
        assert!(!error.to_string().contains("fake-client-secret"), "{error}");
    }
    // The file is read again.
    setup.write_secret("another-secret-marker");
    round_trip(&*key, LONG).await.unwrap();
    key.check().await.unwrap();
}

#[tokio::test]
async fn an_authority_that_is_ill_is_no_fault_of_the_credentials() {
    let mut setup = Setup::new().await;
    let kid = setup.fake.create("user-keys", 2048);
    let answer = |status, headers: Vec<(String, String)>| Fault::Answer {
        status,
        headers,
        body: "{}".to_owned(),
    };
    let retry_after = Some(Duration::from_secs(3));
    for (fault, kind) in [
        (Fault::Cut, ErrorKind::Unavailable),
        (Fault::Truncated, ErrorKind::Unavailable),
        (answer(503, vec![]), ErrorKind::Unavailable),
        (
            answer(429, vec![("Retry-After".to_owned(), "3".to_owned())]),
            ErrorKind::Throttled { retry_after },
        ),
        (answer(302, vec![("Location".to_owned(), "/".to_owned())]), ErrorKind::OperatorNeeded),
    ] {
        setup.fake.login_fault(fault.clone());
        let error = setup.open(&kid, &OAEP).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{fault:?}: {error}");
        assert!(error.to_string().contains("no token"), "{error}");
    }
    setup.config.authority = Some("https://127.0.0.1:1".to_owned());
    let error = setup.open(&kid, &OAEP).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
}

#[tokio::test]
async fn a_vault_that_asks_for_a_token_for_something_else_gets_none() {
    let mut setup = Setup::new().await;
    let kid = setup.fake.create("user-keys", 2048);
    setup.config.resource = Some("https://managedhsm.azure.net".to_owned());
    let error = setup.open(&kid, &OAEP).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OperatorNeeded, "{error}");
    assert!(error.to_string().contains("look at `vault` and `resource`"), "{error}");
    assert_eq!(setup.fake.tokens_issued(), 0);
}

#[tokio::test]
async fn a_vault_that_asked_for_something_else_once_is_asked_again() {
    let setup = Setup::new().await;
    let kid = setup.fake.create("user-keys", 2048);
    let key = setup.open(&kid, &OAEP).await.unwrap();
    for challenge in [
        "Bearer authorization=\"https://a.example/t\", resource=\"https://managedhsm.azure.net\"",
        "Bearer authorization=\"https://a.example/t\", scope=\"https://a.example/.default\"",
        "Bearer resource=\"\"",
    ] {
        setup.fake.fault(Fault::Answer {
            status: 401,
            headers: vec![("WWW-Authenticate".to_owned(), challenge.to_owned())],
            body: "{}".to_owned(),
        });
        let error = round_trip(&*key, LONG).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OperatorNeeded, "{challenge}: {error}");
        assert!(error.to_string().contains("look at `vault` and `resource`"), "{error}");
        key.check().await.unwrap();
        round_trip(&*key, LONG).await.unwrap();
    }
    assert_eq!(key.repairs(), 0);
}

#[tokio::test]
async fn a_federated_token_is_read_from_its_file_each_time() {
    let mut setup = Setup::new().await;
    let kid = setup.fake.create("user-keys", 2048);
    setup.config.auth = Auth::WorkloadIdentity(WorkloadIdentity {
        tenant_id: TENANT.to_owned(),
        client_id: CLIENT_ID.to_owned(),
        token: SecretSource::File(write_secret(setup.folder.path(), "stale")),
    });
    let error = setup.open(&kid, &OAEP).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OperatorNeeded, "{error}");
    setup.write_secret(CLIENT_ASSERTION);
    let key = setup.open(&kid, &OAEP).await.unwrap();
    round_trip(&*key, LONG).await.unwrap();
}

#[tokio::test]
async fn a_secret_that_cannot_be_read_names_its_file_and_no_secret() {
    let setup = Setup::new().await;
    let kid = setup.fake.create("user-keys", 2048);
    setup.write_secret("secret-marker secret-marker");
    let error = setup.open(&kid, &OAEP).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OperatorNeeded, "{error}");
    assert!(error.to_string().contains("`auth.client_secret.secret`"), "{error}");
    assert!(!format!("{error} {error:?}").contains("secret-marker"), "{error}");
    let file = setup.folder.path().join("secret");
    std::fs::remove_file(&file).unwrap();
    let error = setup.open(&kid, &OAEP).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OperatorNeeded, "{error}");
    assert!(error.to_string().contains(file.to_str().unwrap()), "{error}");
    assert_eq!(setup.fake.tokens_issued(), 0);
}
