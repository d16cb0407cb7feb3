//! Answers that only clusters, quotas and broken networks give, from a fake that says one thing.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use claviger_provider_api::{
    Algorithm, Cause, Error, ErrorKind, OpenKey, Provider as _, SecretSource, Timeout,
};
use claviger_vault_transit::{AppRole, Auth, Config, Provider};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// A fake server: counts requests and gives each the same bytes.
struct Fake {
    address: String,
    requests: Arc<AtomicUsize>,
}

impl Fake {
    async fn that_says(answer: impl Into<Vec<u8>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(AtomicUsize::new(0));
        let (count, answer) = (requests.clone(), answer.into());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await;
                count.fetch_add(1, Ordering::SeqCst);
                let _ = stream.write_all(&answer).await;
            }
        });
        Self { address, requests }
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    async fn open(&self) -> Error {
        open(&self.address).await
    }
}

async fn open(address: &str) -> Error {
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, "s.marker").unwrap();
    std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o600)).unwrap();
    let config = Config {
        address: address.to_owned(),
        ca: None,
        namespace: None,
        auth: Auth::Token(SecretSource::File(token)),
        connect_timeout: Timeout(Duration::from_secs(2)),
        timeout: Timeout(Duration::from_millis(500)),
    };
    let provider = Provider::new("vault-a", &config).unwrap();
    let open = OpenKey {
        locator: "transit/k:1",
        algorithms: &[Algorithm::RsaOaep256],
        sign_algorithms: &[],
        public_key_sha256: None,
    };
    let error = provider.open(&open).await.unwrap_err();
    assert!(!format!("{error} {error:?} {provider:?}").contains("marker"));
    error
}

fn answer(status: &str, headers: &str, body: &str) -> String {
    let len = body.len();
    format!(
        "HTTP/1.1 {status}\r\n{headers}Content-Length: {len}\r\nConnection: close\r\n\r\n{body}"
    )
}

#[tokio::test]
async fn a_redirect_is_not_followed_and_is_named() {
    let elsewhere = Fake::that_says(answer("200 OK", "", "{}")).await;
    let location = format!("Location: {}/v1/auth/token/lookup-self\r\n", elsewhere.address);
    for status in ["301 Moved Permanently", "302 Found", "307 Temporary Redirect"] {
        let error = Fake::that_says(answer(status, &location, "")).await.open().await;
        assert_eq!(error.kind(), ErrorKind::OperatorNeeded, "{error}");
        assert!(error.to_string().contains("a redirect, which is never followed"), "{error}");
    }
    assert_eq!(elsewhere.requests(), 0, "the token went elsewhere");
}

#[tokio::test]
async fn a_throttle_keeps_its_delay_and_is_not_tried_again() {
    let overloaded = r#"{"errors":["temporarily overloaded, try again later"]}"#;
    for (status, body) in [("429 Too Many Requests", ""), ("503 Service Unavailable", overloaded)] {
        let fake = Fake::that_says(answer(status, "Retry-After: 7\r\n", body)).await;
        let error = fake.open().await;
        let retry_after = Some(Duration::from_secs(7));
        assert_eq!(error.kind(), ErrorKind::Throttled { retry_after }, "{error}");
        assert_eq!(fake.requests(), 1);
    }
}

#[tokio::test]
async fn what_a_cluster_says_in_passing_is_unavailable_and_not_tried_again() {
    let sealed = r#"{"errors":["Vault is sealed"]}"#;
    for (status, body) in [
        ("412 Precondition Failed", ""),
        ("472 Unknown", ""),
        ("473 Unknown", ""),
        ("500 Internal Server Error", r#"{"errors":["internal error"]}"#),
        ("502 Bad Gateway", "<html>"),
        ("503 Service Unavailable", sealed),
        ("504 Gateway Timeout", ""),
    ] {
        let fake = Fake::that_says(answer(status, "", body)).await;
        let error = fake.open().await;
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{status}: {error}");
        assert_eq!(fake.requests(), 1, "{status}");
    }
}

#[tokio::test]
async fn an_answer_that_is_cut_or_no_answer_is_unavailable() {
    for bytes in [
        "",
        "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"data\":",
        "SSH-2.0-OpenSSH\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]",
        "HTTP/1.1 200 OK\r\nContent-Length: 9999999\r\n\r\n",
    ] {
        let error = Fake::that_says(bytes).await.open().await;
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{bytes:?}: {error}");
    }
}

#[tokio::test]
async fn a_server_that_never_answers_is_unavailable_after_the_timeout() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let error = open(&format!("http://{}", listener.local_addr().unwrap())).await;
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("no answer within 500 ms"), "{error}");
}

#[tokio::test]
async fn an_answer_without_end_is_not_kept() {
    let body = "x".repeat(5 << 20);
    let error = Fake::that_says(answer("200 OK", "", &body)).await.open().await;
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("longer than"), "{error}");
}

/// A server that answers by path: logins work, and everything else is refused, as for tokens that
/// are bound to another address.
async fn server_that_refuses_its_own_tokens(login: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 4096];
            let len = stream.read(&mut request).await.unwrap_or(0);
            let denied = r#"{"errors":["permission denied"]}"#;
            let said = if request[..len].starts_with(b"POST /v1/auth/approle/login ") {
                answer("200 OK", "", login)
            } else {
                answer("403 Forbidden", "", denied)
            };
            let _ = stream.write_all(said.as_bytes()).await;
        }
    });
    address
}

async fn refused_after_login(login: &'static str) -> Error {
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("secret-id");
    std::fs::write(&secret, "s.marker").unwrap();
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
    let config = Config {
        address: server_that_refuses_its_own_tokens(login).await,
        ca: None,
        namespace: None,
        auth: Auth::Approle(AppRole {
            mount: "approle".into(),
            role_id: "role".into(),
            secret_id: SecretSource::File(secret),
        }),
        connect_timeout: Timeout(Duration::from_secs(2)),
        timeout: Timeout(Duration::from_secs(2)),
    };
    let provider = Provider::new("vault-a", &config).unwrap();
    let open = OpenKey {
        locator: "transit/k:1",
        algorithms: &[Algorithm::RsaOaep256],
        sign_algorithms: &[],
        public_key_sha256: None,
    };
    let first = provider.open(&open).await.unwrap_err();
    let again = provider.open(&open).await.unwrap_err();
    assert_eq!(
        (first.kind(), again.kind()),
        (ErrorKind::OperatorNeeded, ErrorKind::OperatorNeeded)
    );
    first
}

#[tokio::test]
async fn a_token_that_was_just_given_and_is_refused_names_the_likely_settings() {
    let login = r#"{"auth":{"client_token":"hvs.x","lease_duration":600,"renewable":true,"policies":["default"]}}"#;
    let error = refused_after_login(login).await;
    assert_eq!(error.cause(), Some(Cause::CredentialsRefused), "{error}");
    assert!(error.to_string().contains("token_bound_cidrs"), "{error}");
}

#[tokio::test]
async fn a_token_for_one_use_is_refused_when_it_is_given() {
    let login = r#"{"auth":{"client_token":"hvs.x","lease_duration":600,"renewable":true,"policies":["default"],"num_uses":1}}"#;
    let error = refused_after_login(login).await;
    assert_eq!(error.cause(), Some(Cause::CredentialsRefused), "{error}");
    assert!(error.to_string().contains("token_num_uses"), "{error}");
}
