//! Credentials that end while the daemon runs: replaced without a failed call where there are better
//! ones, and said in a way that an operator can act on where there are not.

use std::time::Duration;

use claviger_client::Health;
use fault_proxy::{Fault, Pattern, Times};
use e2e::remote::{secret_file, write_aws_credentials};
use e2e::stage::PROVIDER;
use e2e::{Load, Stage, Which, doctor};
use tonic::Code;

/// Two callers at work while `disturb` does its worst; gives how often the daemon went in anew.
async fn without_a_failed_call(stage: &Stage, disturb: impl AsyncFn(u32)) {
    let config = stage.scene.client_config(&stage.daemon);
    let load = Load::start(&config, &stage.scene.wrapped, 2, 0);
    for turn in 0..3 {
        // A login that is a moment old is taken for the one that another call just made.
        tokio::time::sleep(Duration::from_millis(2500)).await;
        load.more(6).await;
        disturb(turn).await;
        load.more(6).await;
    }
    let tally = load.stop().await;
    assert!(tally.failed.is_empty(), "{:?}\n{}", tally.failed, stage.daemon.log());
    assert_eq!(stage.scene.key_health(&stage.daemon).await, Health::Serving);
    println!(
        "{}: credentials ended three times during {} calls, none failed",
        stage.remote.which.name(),
        tally.right.len()
    );
}

/// The answer that sends an operator to the log, and what the log says.
async fn an_operator_is_needed(stage: &Stage, said: &str) {
    stage.scene.wait_for(&stage.daemon, Code::FailedPrecondition).await;
    let connection = stage.connect().await;
    let answer = stage.ask(&connection).await.1.unwrap_err();
    assert_eq!(answer.code(), Code::FailedPrecondition);
    assert!(answer.status_message().contains("operator"), "{answer}");
    stage.scene.wait_for_key_health(&stage.daemon, Health::NotServing).await;
    stage.daemon.wait_for_log(said);
    let (exit, report) = doctor::report(&stage.scene.site);
    let trouble = &report["keys"][0]["versions"][0]["replicas"][0]["troubles"][0];
    assert_eq!((exit, &report["ok"]), (Some(78), &false.into()), "{report:#}");
    let advice = trouble["do"].as_str().expect("something to do");
    println!("{}: doctor: {}: {advice}", stage.remote.which.name(), trouble["diagnosis"]);
    assert!(!advice.is_empty(), "{report:#}");
    for secret in ["secret-access-key", "hvs.", "s."] {
        let log = stage.daemon.log();
        let leaked = log.split([' ', '"']).any(|word| word.starts_with(secret) && word.len() > 20);
        assert!(!leaked, "{secret}: {log}");
    }
}

async fn revoked_tokens_are_replaced_without_a_failed_call(which: Which) {
    let stage = Stage::set(which).await;
    let vault = stage.remote.vault();
    without_a_failed_call(&stage, async |_| vault.revoke_approle_tokens().await).await;
    let logins = stage.daemon.log().matches("logged in").count();
    assert_eq!(logins, 4, "one at the start, and one for each that was revoked");
}

async fn a_revoked_token_that_nobody_replaces_needs_an_operator(which: Which) {
    let mut stage = Stage::set(which).await;
    // The policy `claviger` is that of the AppRole.
    let token = stage.remote.vault().token("claviger").await;
    stage.scene.site.file("token", &token, 0o600);
    let auth = secret_file(&stage.scene.site, "token");
    let auth = toml::Table::from_iter([("token".to_owned(), auth)]);
    stage.scene.site.set(&format!("providers.{PROVIDER}.auth"), auth);
    stage.scene.site.write();
    stage.daemon.reload();
    stage.daemon.wait_for_log("reloaded");
    stage.wait_until_well().await;

    let vault = stage.remote.vault();
    vault.set("auth/token/revoke", serde_json::json!({ "token": token })).await;
    an_operator_is_needed(&stage, "put a token that is good into its file").await;
    assert!(!stage.daemon.log().contains(&token));
    stage.scene.site.file("token", &vault.token("claviger").await, 0o600);
    stage.wait_until_well().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revoked_tokens_of_openbao_are_replaced_without_a_failed_call() {
    revoked_tokens_are_replaced_without_a_failed_call(Which::OpenBao).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: scripts/test --all"]
async fn revoked_tokens_of_vault_are_replaced_without_a_failed_call() {
    revoked_tokens_are_replaced_without_a_failed_call(Which::Vault).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_token_of_openbao_that_nobody_replaces_needs_an_operator() {
    a_revoked_token_that_nobody_replaces_needs_an_operator(Which::OpenBao).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: scripts/test --all"]
async fn a_revoked_token_of_vault_that_nobody_replaces_needs_an_operator() {
    a_revoked_token_that_nobody_replaces_needs_an_operator(Which::Vault).await;
}

/// AWS answers `ExpiredTokenException` to whatever is signed with this access key.
fn expire_aws(stage: &Stage, id: &str) {
    let signed_with = Pattern::any().header("authorization", &format!("Credential={id}/"));
    let expired = Fault::Answer(stage.remote.which.service().expired());
    stage.fault(signed_with, Times::Always, expired);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expired_credentials_of_aws_are_replaced_without_a_failed_call() {
    let stage = Stage::set(Which::Aws).await;
    let ids = ["AKIDFIRST", "AKIDSECOND", "AKIDTHIRD", "AKIDFOURTH"];
    without_a_failed_call(&stage, async |turn| {
        let turn = turn as usize;
        write_aws_credentials(&stage.scene.site, PROVIDER, ids[turn + 1]);
        expire_aws(&stage, ids[turn]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expired_credentials_of_aws_that_nobody_replaces_need_an_operator() {
    let stage = Stage::set(Which::Aws).await;
    expire_aws(&stage, "AKIDFIRST");
    an_operator_is_needed(&stage, "renew them at their source").await;
    write_aws_credentials(&stage.scene.site, PROVIDER, "AKIDSECOND");
    stage.wait_until_well().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revoked_tokens_of_azure_are_replaced_without_a_failed_call() {
    let stage = Stage::set(Which::Azure).await;
    let azure = stage.remote.azure();
    without_a_failed_call(&stage, async |_| azure.revoke_tokens()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_of_azure_that_was_replaced_elsewhere_needs_an_operator() {
    let stage = Stage::set(Which::Azure).await;
    let azure = stage.remote.azure();
    azure.set_client_secret("another-client-secret");
    azure.revoke_tokens();
    an_operator_is_needed(&stage, "secret").await;
    stage.scene.site.file(&format!("{PROVIDER}-secret"), "another-client-secret", 0o600);
    stage.wait_until_well().await;
    let log = stage.daemon.log();
    assert!(!log.contains("another-client-secret") && !log.contains("fake-client-secret"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revoked_tokens_of_google_are_replaced_without_a_failed_call() {
    let stage = Stage::set(Which::Google).await;
    let google = stage.remote.google();
    without_a_failed_call(&stage, async |_| google.revoke_tokens()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_account_of_google_that_gets_no_tokens_needs_an_operator() {
    let stage = Stage::set(Which::Google).await;
    let google = stage.remote.google();
    google.refuse_credentials(true);
    google.revoke_tokens();
    an_operator_is_needed(&stage, "replica fails").await;
    assert!(!stage.daemon.log().contains("PRIVATE KEY"), "{}", stage.daemon.log());
    google.refuse_credentials(false);
    stage.wait_until_well().await;
}
