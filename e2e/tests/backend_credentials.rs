//! Credentials that end while the daemon runs: replaced without a failed call where there are better
//! ones, and said in a way that an operator can act on where there are not.

use std::time::Duration;

use claviger_client::Health;
use e2e::fault_setup::PROVIDER;
use e2e::test_service::{secret_file, write_aws_credentials};
use e2e::{FaultSetup, Load, ServiceKind, doctor};
use fault_proxy::{Fault, Pattern, Times};
use tonic::Code;

/// Two callers at work while `disturb` does its worst; gives how often the daemon went in anew.
async fn without_a_failed_call(setup: &FaultSetup, disturb: impl AsyncFn(u32)) {
    let config = setup.base.client_config(&setup.daemon);
    let load = Load::start(&config, &setup.base.wrapped, 2, 0);
    for turn in 0..3 {
        // A login that is a moment old is taken for the one that another call just made.
        tokio::time::sleep(Duration::from_millis(2500)).await;
        load.more(6).await;
        disturb(turn).await;
        load.more(6).await;
    }
    let tally = load.stop().await;
    assert!(tally.failed.is_empty(), "{:?}\n{}", tally.failed, setup.daemon.log());
    assert_eq!(setup.base.key_health(&setup.daemon).await, Health::Serving);
    println!(
        "{}: credentials ended three times during {} calls, none failed",
        setup.service.kind.name(),
        tally.right.len()
    );
}

/// The answer that sends an operator to the log, and what the log says.
async fn an_operator_is_needed(setup: &FaultSetup, said: &str) {
    setup.base.wait_for(&setup.daemon, Code::FailedPrecondition).await;
    let connection = setup.connect().await;
    let answer = setup.ask(&connection).await.1.unwrap_err();
    assert_eq!(answer.code(), Code::FailedPrecondition);
    assert!(answer.status_message().contains("operator"), "{answer}");
    setup.base.wait_for_key_health(&setup.daemon, Health::NotServing).await;
    setup.daemon.wait_for_log(said);
    let (exit, report) = doctor::report(&setup.base.files);
    let trouble = &report["keys"][0]["versions"][0]["replicas"][0]["troubles"][0];
    assert_eq!((exit, &report["ok"]), (Some(78), &false.into()), "{report:#}");
    let advice = trouble["do"].as_str().expect("something to do");
    println!("{}: doctor: {}: {advice}", setup.service.kind.name(), trouble["diagnosis"]);
    assert!(!advice.is_empty(), "{report:#}");
    for secret in ["secret-access-key", "hvs.", "s."] {
        let log = setup.daemon.log();
        let leaked = log.split([' ', '"']).any(|word| word.starts_with(secret) && word.len() > 20);
        assert!(!leaked, "{secret}: {log}");
    }
}

async fn revoked_tokens_are_replaced_without_a_failed_call(kind: ServiceKind) {
    let setup = FaultSetup::set(kind).await;
    let vault = setup.service.vault();
    without_a_failed_call(&setup, async |_| vault.revoke_approle_tokens().await).await;
    let logins = setup.daemon.log().matches("logged in").count();
    assert_eq!(logins, 4, "one at the start, and one for each that was revoked");
}

async fn a_revoked_token_that_nobody_replaces_needs_an_operator(kind: ServiceKind) {
    let mut setup = FaultSetup::set(kind).await;
    // The policy `claviger` is that of the AppRole.
    let token = setup.service.vault().token("claviger").await;
    setup.base.files.file("token", &token, 0o600);
    let auth = secret_file(&setup.base.files, "token");
    let auth = toml::Table::from_iter([("token".to_owned(), auth)]);
    setup.base.files.set(&format!("providers.{PROVIDER}.auth"), auth);
    setup.base.files.write();
    setup.daemon.reload();
    setup.daemon.wait_for_log("reloaded");
    setup.wait_until_well().await;

    let vault = setup.service.vault();
    vault.set("auth/token/revoke", serde_json::json!({ "token": token })).await;
    an_operator_is_needed(&setup, "put a token that is good into its file").await;
    assert!(!setup.daemon.log().contains(&token));
    setup.base.files.file("token", &vault.token("claviger").await, 0o600);
    setup.wait_until_well().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revoked_tokens_of_openbao_are_replaced_without_a_failed_call() {
    revoked_tokens_are_replaced_without_a_failed_call(ServiceKind::OpenBao).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: scripts/test --all"]
async fn revoked_tokens_of_vault_are_replaced_without_a_failed_call() {
    revoked_tokens_are_replaced_without_a_failed_call(ServiceKind::Vault).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_token_of_openbao_that_nobody_replaces_needs_an_operator() {
    a_revoked_token_that_nobody_replaces_needs_an_operator(ServiceKind::OpenBao).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: scripts/test --all"]
async fn a_revoked_token_of_vault_that_nobody_replaces_needs_an_operator() {
    a_revoked_token_that_nobody_replaces_needs_an_operator(ServiceKind::Vault).await;
}

/// AWS answers `ExpiredTokenException` to whatever is signed with this access key.
fn expire_aws(setup: &FaultSetup, id: &str) {
    let signed_with = Pattern::any().header("authorization", &format!("Credential={id}/"));
    let expired = Fault::Answer(setup.service.kind.api().expired());
    setup.fault(signed_with, Times::Always, expired);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expired_credentials_of_aws_are_replaced_without_a_failed_call() {
    let setup = FaultSetup::set(ServiceKind::Aws).await;
    let ids = ["AKIDFIRST", "AKIDSECOND", "AKIDTHIRD", "AKIDFOURTH"];
    without_a_failed_call(&setup, async |turn| {
        let turn = turn as usize;
        write_aws_credentials(&setup.base.files, PROVIDER, ids[turn + 1]);
        expire_aws(&setup, ids[turn]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expired_credentials_of_aws_that_nobody_replaces_need_an_operator() {
    let setup = FaultSetup::set(ServiceKind::Aws).await;
    expire_aws(&setup, "AKIDFIRST");
    an_operator_is_needed(&setup, "renew them at their source").await;
    write_aws_credentials(&setup.base.files, PROVIDER, "AKIDSECOND");
    setup.wait_until_well().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revoked_tokens_of_azure_are_replaced_without_a_failed_call() {
    let setup = FaultSetup::set(ServiceKind::Azure).await;
    let azure = setup.service.azure();
    without_a_failed_call(&setup, async |_| azure.revoke_tokens()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_of_azure_that_was_replaced_elsewhere_needs_an_operator() {
    let setup = FaultSetup::set(ServiceKind::Azure).await;
    let azure = setup.service.azure();
    azure.set_client_secret("another-client-secret");
    azure.revoke_tokens();
    an_operator_is_needed(&setup, "secret").await;
    setup.base.files.file(&format!("{PROVIDER}-secret"), "another-client-secret", 0o600);
    setup.wait_until_well().await;
    let log = setup.daemon.log();
    assert!(!log.contains("another-client-secret") && !log.contains("fake-client-secret"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revoked_tokens_of_google_are_replaced_without_a_failed_call() {
    let setup = FaultSetup::set(ServiceKind::Google).await;
    let google = setup.service.google();
    without_a_failed_call(&setup, async |_| google.revoke_tokens()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_account_of_google_that_gets_no_tokens_needs_an_operator() {
    let setup = FaultSetup::set(ServiceKind::Google).await;
    let google = setup.service.google();
    google.refuse_credentials(true);
    google.revoke_tokens();
    an_operator_is_needed(&setup, "replica fails").await;
    assert!(!setup.daemon.log().contains("PRIVATE KEY"), "{}", setup.daemon.log());
    google.refuse_credentials(false);
    setup.wait_until_well().await;
}
