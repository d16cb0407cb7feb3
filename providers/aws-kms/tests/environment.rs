//! What the environment of the process may decide: the credentials of the standard chain, and
//! nothing else. The environment is the process's, so the provider runs in a child of the test.

mod support;

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use support::fake::{ARN, Fake, Fault};
use support::{OAEP, config, open, round_trip};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::process::Command;

/// The test that is a child of the others when it is told an endpoint.
const CHILD: &str = "the_environment_gives_credentials_and_decides_nothing_else";

#[tokio::test]
async fn the_environment_gives_credentials_and_decides_nothing_else() {
    if let Ok(endpoint) = std::env::var("CLAVIGER_TEST_ENDPOINT") {
        return open_as_child(&endpoint).await;
    }
    let fake = Fake::start().await;
    let trap = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let trap_url = format!("http://{}", trap.local_addr().unwrap());
    let home = home();
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
        let mut child = child(home.path(), &fake, profile);
        child.envs(elsewhere.map(|name| (name, &trap_url))).envs(keys.iter().copied());
        let (opened, said) = outcome(child).await;
        match expected {
            Ok(id) => {
                assert!(opened, "{said}");
                let signed = fake.last_authorization();
                assert!(signed.contains(&format!("Credential={id}/")), "{signed}");
                assert!(signed.contains("/eu-central-1/kms/"), "{signed}");
                assert_eq!(fake.asked(), ["GetPublicKey", "Decrypt", "Decrypt", "Decrypt"]);
            }
            Err(text) => {
                assert!(!opened, "{said}");
                assert!(said.contains("OperatorNeeded") && said.contains(text), "{said}");
                assert!(fake.asked().is_empty(), "{said}");
            }
        }
    }
    let went_there = tokio::time::timeout(Duration::from_millis(100), trap.accept()).await;
    assert!(went_there.is_err(), "a request went where the environment said");
}

#[tokio::test]
async fn a_chain_without_a_network_is_unavailable_and_names_its_last_source() {
    let (fake, home) = (Fake::start().await, home());
    let mut child = child(home.path(), &fake, "");
    child
        .env_remove("AWS_EC2_METADATA_DISABLED")
        .env("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:1");
    let (opened, said) = outcome(child).await;
    assert!(!opened && said.contains("kind: Unavailable"), "{said}");
    assert!(said.contains("could not communicate with IMDS"), "{said}");
    assert!(said.contains("needs `credentials` or `profile`"), "{said}");
}

#[tokio::test]
async fn a_token_file_that_cannot_be_read_needs_an_operator_and_is_named() {
    let (fake, home) = (Fake::start().await, home());
    let nowhere = home.path().join("none");
    let of_container = format!("{}/credentials", fake.endpoint);
    let role = ("AWS_ROLE_ARN", "arn:aws:iam::111122223333:role/claviger");
    let agent = ("AWS_CONTAINER_CREDENTIALS_FULL_URI", of_container.as_str());
    for (variable, other) in
        [("AWS_WEB_IDENTITY_TOKEN_FILE", role), ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", agent)]
    {
        for path in [nowhere.as_path(), home.path()] {
            let mut child = child(home.path(), &fake, "");
            child.env(variable, path).envs([other]);
            let (_, said) = outcome(child).await;
            assert!(said.contains("OperatorNeeded"), "{said}");
            let named = format!("gives no credentials: look at {variable}, which is {path:?}");
            // As `unwrap` quotes it.
            assert!(said.replace("\\\"", "\"").contains(&named), "{named}: {said}");
        }
    }
    let mut child = child(home.path(), &fake, "web-identity");
    child.env("AWS_REGION", "eu-central-1");
    let (_, said) = outcome(child).await;
    assert!(said.contains("OperatorNeeded"), "{said}");
    assert!(said.contains("the profile's `web_identity_token_file`"), "{said}");
    assert!(fake.asked().is_empty());
}

#[tokio::test]
async fn a_containers_agent_that_refuses_needs_an_operator_and_one_that_is_busy_does_not() {
    let (fake, home) = (Fake::start().await, home());
    for (status, refused) in [(400, true), (403, true), (404, true), (429, false)] {
        fake.next(Fault::Answer(status, "", r#"{"code":"AccessDenied","message":"no"}"#.into()));
        let mut child = child(home.path(), &fake, "");
        child.env("AWS_CONTAINER_CREDENTIALS_FULL_URI", format!("{}/credentials", fake.endpoint));
        let (_, said) = outcome(child).await;
        let expected = if refused {
            format!("the container's agent gives no credentials (HTTP {status})")
        } else {
            "kind: Unavailable".to_owned()
        };
        assert_eq!(said.contains("kind: OperatorNeeded"), refused, "{status}: {said}");
        assert!(said.contains(&expected), "{status}: {said}");
        assert_eq!(fake.asked().len(), 1);
    }
}

#[tokio::test]
async fn a_role_that_sts_refuses_needs_an_operator_and_what_may_pass_does_not() {
    let (fake, home) = (Fake::start().await, home());
    let token = home.path().join("token");
    std::fs::write(&token, "a.token.of-somebody").unwrap();
    let role = ("AWS_ROLE_ARN", "arn:aws:iam::111122223333:role/claviger");
    for (profile, status, code, refused) in [
        ("", 403, "AccessDenied", true),
        ("", 400, "ExpiredTokenException", true),
        ("", 400, "InvalidIdentityToken", true),
        ("", 400, "ValidationError", true),
        ("role", 403, "AccessDenied", true),
        ("role", 403, "InvalidClientTokenId", true),
        ("", 400, "IDPCommunicationError", false),
        ("", 400, "Throttling", false),
        ("role", 400, "Throttling", false),
        ("", 503, "ServiceUnavailable", false),
    ] {
        let xml = format!(
            "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error>\
             <Type>Sender</Type><Code>{code}</Code><Message>as STS says</Message></Error>\
             <RequestId>11112222-3333</RequestId></ErrorResponse>"
        );
        fake.next(Fault::Answer(status, "", xml));
        let mut child = child(home.path(), &fake, profile);
        child.env("AWS_ENDPOINT_URL_STS", &fake.endpoint).env("AWS_REGION", "eu-central-1");
        if profile.is_empty() {
            child.env("AWS_WEB_IDENTITY_TOKEN_FILE", &token).envs([role]);
        }
        let (_, said) = outcome(child).await;
        let expected = if refused {
            format!("STS gives no credentials ({code}, HTTP {status})")
        } else {
            "kind: Unavailable".to_owned()
        };
        assert_eq!(said.contains("kind: OperatorNeeded"), refused, "{code}: {said}");
        assert!(said.contains(&expected) && said.contains("as STS says"), "{code}: {said}");
        assert!(!said.contains("of-somebody"), "{said}");
        assert_eq!(fake.asked().len(), 1, "{code}");
    }
}

/// A home with AWS's shared files.
fn home() -> TempDir {
    let home = tempfile::tempdir().unwrap();
    let credentials = "[claviger]\naws_access_key_id = AKIDPROFILE\naws_secret_access_key = b\n";
    std::fs::write(home.path().join("credentials"), credentials).unwrap();
    let role = "role_arn = arn:aws:iam::111122223333:role/claviger\n";
    let profiles = format!(
        "[profile role]\n{role}source_profile = claviger\n\
         [profile web-identity]\n{role}web_identity_token_file = /none/token\n"
    );
    std::fs::write(home.path().join("config"), profiles).unwrap();
    home
}

/// A process that opens the fake's key, with this profile or, if there is none, the standard chain.
fn child(home: &Path, fake: &Fake, profile: &str) -> Command {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child
        .args(["--exact", CHILD, "--nocapture"])
        .env_clear()
        .env("HOME", home)
        .env("AWS_SHARED_CREDENTIALS_FILE", home.join("credentials"))
        .env("AWS_CONFIG_FILE", home.join("config"))
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env("AWS_REGION", "us-east-1")
        .env("CLAVIGER_TEST_ENDPOINT", &fake.endpoint)
        .env("CLAVIGER_TEST_PROFILE", profile)
        .stdin(Stdio::null());
    child
}

/// Whether it opened the key, and what it said.
async fn outcome(mut child: Command) -> (bool, String) {
    let output = child.output().await.unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

async fn open_as_child(endpoint: &str) {
    let mut config = config(endpoint, Path::new(&std::env::var("HOME").unwrap()));
    config.credentials = None;
    config.profile = Some(std::env::var("CLAVIGER_TEST_PROFILE").unwrap());
    config.profile = config.profile.filter(|name| !name.is_empty());
    let key = open(&config, ARN, &OAEP, &[]).await.unwrap();
    round_trip(&*key, Duration::from_secs(30)).await.unwrap();
}
