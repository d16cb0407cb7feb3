//! What the environment of the process may decide: where the application default credentials are, if the
//! configuration names none, and nothing else. The environment is the process's, so the provider runs
//! in a child of the test.

mod support;

use std::process::Stdio;
use std::time::Duration;

use claviger_provider_api::Algorithm;
use gcp_kms_fake::{Algorithm as Version, Fake};
use support::{KEY, LONG, config, open, round_trip, write_secret};
use tokio::net::TcpListener;
use tokio::process::Command;

const TEST: &str = "the_environment_says_where_default_credentials_are_and_decides_nothing_else";

#[tokio::test]
async fn the_environment_says_where_default_credentials_are_and_decides_nothing_else() {
    if let Ok(endpoint) = std::env::var("CLAVIGER_TEST_ENDPOINT") {
        return open_as_child(&endpoint).await;
    }
    let fake = Fake::start();
    let version = fake.create_version(KEY, Version::DecryptOaep2048Sha256);
    let trap = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let trap_host = trap.local_addr().unwrap().to_string();
    let trap_url = format!("http://{trap_host}");
    let home = tempfile::tempdir().unwrap();
    let account = write_secret(home.path(), "account.json", &fake.service_account());
    let open_to_all = home.path().join("open.json");
    std::fs::write(&open_to_all, fake.service_account()).unwrap();
    let mut user: serde_json::Value = serde_json::from_str(&fake.authorized_user()).unwrap();
    user["token_uri"] = format!("{}/token", fake.endpoint()).into();
    let gcloud = home.path().join(".config/gcloud");
    std::fs::create_dir_all(&gcloud).unwrap();
    let elsewhere = [
        "CLOUDSDK_API_ENDPOINT_OVERRIDES_CLOUDKMS",
        "GOOGLE_CLOUD_UNIVERSE_DOMAIN",
        "GOOGLE_CLOUD_QUOTA_PROJECT",
        "HTTP_PROXY",
        "http_proxy",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "all_proxy",
    ];
    let none = String::new();
    let named = account.display().to_string();
    let missing = home.path().join("none.json").display().to_string();
    let readable = open_to_all.display().to_string();
    for (configured, variable, of_gcloud, expected) in [
        // The configuration goes before everything else.
        (&named, &missing, true, Ok("token")),
        (&none, &named, true, Ok("token")),
        (&none, &none, true, Ok("refresh")),
        (&none, &none, false, Ok("metadata")),
        (&none, &missing, true, Err("none.json")),
        (&none, &readable, true, Err("chmod 600")),
    ] {
        let default = gcloud.join("application_default_credentials.json");
        let _ = std::fs::remove_file(&default);
        if of_gcloud {
            write_secret(&gcloud, "application_default_credentials.json", &user.to_string());
        }
        let mut child = Command::new(std::env::current_exe().unwrap());
        child
            .args(["--exact", TEST, "--nocapture"])
            .env_clear()
            .env("HOME", home.path())
            .env("GCE_METADATA_HOST", &trap_host)
            .env("GOOGLE_APPLICATION_CREDENTIALS", variable)
            .envs(elsewhere.map(|name| (name, &trap_url)))
            .env("CLAVIGER_TEST_ENDPOINT", fake.endpoint())
            .env("CLAVIGER_TEST_VERSION", &version)
            .env("CLAVIGER_TEST_CREDENTIALS", configured)
            .stdin(Stdio::null());
        let output = child.output().await.unwrap();
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        match expected {
            Ok(token) => {
                assert!(output.status.success(), "{said}");
                let rest = ["getPublicKey", "asymmetricDecrypt", "asymmetricDecrypt"];
                assert_eq!(fake.asked(), [&[token][..], &rest].concat());
                assert_eq!(fake.last_header("x-goog-user-project"), "");
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
    let credentials = std::env::var("CLAVIGER_TEST_CREDENTIALS").unwrap();
    let credentials = Some(credentials).filter(|path| !path.is_empty());
    let mut config = config(endpoint, credentials.map(Into::into));
    config.metadata_endpoint = Some(endpoint.to_owned());
    let version = std::env::var("CLAVIGER_TEST_VERSION").unwrap();
    let key = open(&config, &version, &[Algorithm::RsaOaep256], &[]).await.unwrap();
    round_trip(&*key, LONG).await.unwrap();
}
