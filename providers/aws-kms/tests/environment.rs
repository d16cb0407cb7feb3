//! What the environment of the process may decide: the credentials of the standard chain, and
//! nothing else. The environment is the process's, so the provider runs in a child of the test.

mod support;

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use support::fake::{ARN, Fake};
use support::{OAEP, config, open, round_trip};
use tokio::net::TcpListener;
use tokio::process::Command;

const TEST: &str = "the_environment_gives_credentials_and_decides_nothing_else";

#[tokio::test]
async fn the_environment_gives_credentials_and_decides_nothing_else() {
    if let Ok(endpoint) = std::env::var("CLAVIGER_TEST_ENDPOINT") {
        return open_as_child(&endpoint).await;
    }
    let fake = Fake::start().await;
    let trap = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let trap_url = format!("http://{}", trap.local_addr().unwrap());
    let home = tempfile::tempdir().unwrap();
    let shared = home.path().join("credentials");
    let profile = "[claviger]\naws_access_key_id = AKIDPROFILE\naws_secret_access_key = b\n";
    std::fs::write(&shared, profile).unwrap();
    let elsewhere = [
        "AWS_ENDPOINT_URL",
        "AWS_ENDPOINT_URL_KMS",
        "HTTP_PROXY",
        "http_proxy",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "all_proxy",
    ];
    let keys = [("AWS_ACCESS_KEY_ID", "AKIDENV"), ("AWS_SECRET_ACCESS_KEY", "a")];
    for (profile, keys, expected) in [
        ("", &keys[..], Ok("AKIDENV")),
        ("claviger", &keys[..], Ok("AKIDPROFILE")),
        ("", &[][..], Err("no credentials found in chain")),
        ("none", &keys[..], Err("profile")),
    ] {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child
            .args(["--exact", TEST, "--nocapture"])
            .env_clear()
            .env("HOME", home.path())
            .env("AWS_SHARED_CREDENTIALS_FILE", &shared)
            .env("AWS_CONFIG_FILE", home.path().join("none"))
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("AWS_REGION", "us-east-1")
            .envs(elsewhere.map(|name| (name, &trap_url)))
            .envs(keys.iter().copied())
            .env("CLAVIGER_TEST_ENDPOINT", &fake.endpoint)
            .env("CLAVIGER_TEST_PROFILE", profile)
            .stdin(Stdio::null());
        let output = child.output().await.unwrap();
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        match expected {
            Ok(id) => {
                assert!(output.status.success(), "{said}");
                let signed = fake.last_authorization();
                assert!(signed.contains(&format!("Credential={id}/")), "{signed}");
                assert!(signed.contains("/eu-central-1/kms/"), "{signed}");
                assert_eq!(fake.asked(), ["GetPublicKey", "Decrypt", "Decrypt", "Decrypt"]);
            }
            Err(text) => {
                assert!(!output.status.success(), "{said}");
                assert!(said.contains("OperatorNeeded") && said.contains(text), "{said}");
                assert!(fake.asked().is_empty(), "{said}");
            }
        }
    }
    let went_there = tokio::time::timeout(Duration::from_millis(100), trap.accept()).await;
    assert!(went_there.is_err(), "a request went where the environment said");
}

async fn open_as_child(endpoint: &str) {
    let mut config = config(endpoint, Path::new(&std::env::var("HOME").unwrap()));
    config.credentials = None;
    config.profile = Some(std::env::var("CLAVIGER_TEST_PROFILE").unwrap());
    config.profile = config.profile.filter(|name| !name.is_empty());
    let key = open(&config, ARN, &OAEP, &[]).await.unwrap();
    round_trip(&*key, Duration::from_secs(30)).await.unwrap();
}
