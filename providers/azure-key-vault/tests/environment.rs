//! What the environment of the process may decide: where a managed identity gets its tokens, which
//! program `az` is, and nothing else. The environment is the process's, so the provider runs in a
//! child of the test.

mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use azure_key_vault_fake::{CLIENT_ID, CLIENT_SECRET, IDENTITY_HEADER, TENANT};
use claviger_azure_key_vault::{Auth, AzureCli, ManagedIdentity};
use support::{LONG, OAEP, Setup, open, round_trip};
use tokio::net::TcpListener;
use tokio::process::Command;

const TEST: &str = "the_environment_says_where_tokens_are_and_decides_nothing_else";

/// Variables by which other programs are led elsewhere.
const ELSEWHERE: [&str; 9] = [
    "AZURE_AUTHORITY_HOST",
    "AZURE_KEY_VAULT_URL",
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "ALL_PROXY",
    "all_proxy",
    "MSI_ENDPOINT",
];

#[tokio::test]
async fn the_environment_says_where_tokens_are_and_decides_nothing_else() {
    if let Ok(kid) = std::env::var("CLAVIGER_TEST_KID") {
        return open_as_child(&kid).await;
    }
    let setup = Setup::new().await;
    let kid = setup.fake.create("user-keys", 2048);
    let trap = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let trap_url = format!("https://{}", trap.local_addr().unwrap());
    let programs = az(&setup);
    let managed = [
        ("IDENTITY_ENDPOINT".to_owned(), setup.fake.identity_endpoint()),
        ("IDENTITY_HEADER".to_owned(), IDENTITY_HEADER.to_owned()),
    ];
    let with_az = [("PATH".to_owned(), format!("{}:/usr/bin:/bin", programs.display()))];
    let table = [
        ("client_secret", &[][..], Ok(())),
        ("managed_identity", &managed[..], Ok(())),
        ("user_assigned_identity", &managed, Ok(())),
        ("azure_cli", &with_az, Ok(())),
        ("azure_cli", &[], Err("no token")),
    ];
    for (auth, variables, expected) in table {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child
            .args(["--exact", TEST, "--nocapture"])
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", setup.folder.path())
            .envs(ELSEWHERE.map(|name| (name, &trap_url)))
            .env("AZURE_CLIENT_SECRET", "from-the-environment")
            .envs(variables.iter().cloned())
            .env("CLAVIGER_TEST_KID", &kid)
            .env("CLAVIGER_TEST_AUTH", auth)
            .env("CLAVIGER_TEST_FOLDER", setup.folder.path())
            .stdin(Stdio::null());
        let output = child.output().await.unwrap();
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        match expected {
            Ok(()) => {
                assert!(output.status.success(), "{auth}: {said}");
                assert_eq!(setup.fake.asked().len(), 5, "{auth}: {said}");
            }
            Err(text) => {
                assert!(!output.status.success(), "{auth}: {said}");
                assert!(said.contains("OperatorNeeded") && said.contains(text), "{said}");
                setup.fake.asked();
            }
        }
    }
    let went_there = tokio::time::timeout(Duration::from_millis(100), trap.accept()).await;
    assert!(went_there.is_err(), "a request went where the environment said");
}

async fn open_as_child(kid: &str) {
    let folder = std::env::var("CLAVIGER_TEST_FOLDER").unwrap();
    let mut config = support::config(kid.split("/keys/").next().unwrap(), Path::new(&folder));
    match std::env::var("CLAVIGER_TEST_AUTH").unwrap().as_str() {
        "managed_identity" => config.auth = Auth::ManagedIdentity(ManagedIdentity::default()),
        "user_assigned_identity" => {
            let client_id = Some(CLIENT_ID.to_owned());
            config.auth = Auth::ManagedIdentity(ManagedIdentity { client_id });
        }
        "azure_cli" => config.auth = Auth::AzureCli(AzureCli::default()),
        _ => {}
    }
    let key = open(&config, kid, &OAEP, &[], None).await.unwrap();
    round_trip(&*key, LONG).await.unwrap();
}

/// A folder with an `az` that gets its token from the fake, as the real one would from Entra.
fn az(setup: &Setup) -> std::path::PathBuf {
    let folder = setup.folder.path().join("programs");
    std::fs::create_dir(&folder).unwrap();
    let path = folder.join("az");
    let (origin, ca) = (setup.fake.origin(), setup.folder.path().join("ca.pem"));
    let script = format!(
        r#"#!/usr/bin/env python3
import json, ssl, sys, time, urllib.parse, urllib.request
assert sys.argv[1:] == ["account", "get-access-token", "-o", "json", "--scope", "https://vault.azure.net/.default"], sys.argv
form = {{"grant_type": "client_credentials", "client_id": "{CLIENT_ID}", "client_secret": "{CLIENT_SECRET}", "scope": sys.argv[-1]}}
opener = urllib.request.build_opener(
    urllib.request.ProxyHandler({{}}),
    urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile="{ca}")),
)
answer = json.load(opener.open("{origin}/{TENANT}/oauth2/v2.0/token", urllib.parse.urlencode(form).encode()))
print(json.dumps({{"accessToken": answer["access_token"], "expires_on": int(time.time()) + 3599, "tokenType": "Bearer"}}))
"#,
        ca = ca.display()
    );
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
    folder
}
