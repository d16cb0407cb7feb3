//! The proxy is what it says: each fault as a client meets it, over http and https, and counted.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fault_proxy::{Answer, Fault, FaultProxy, Pattern, Service, Shown, Times};
use http::Method;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const BODY: &str = r#"{"plaintextCrc32c":"1","host":"service.example.org"}"#;

/// A service that answers everything with [`BODY`], and refuses another `host`.
async fn service() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = vec![0; 65_536];
                let mut len = 0;
                while !request[..len].ends_with(b"the end") {
                    match stream.read(&mut request[len..]).await {
                        Ok(0) | Err(_) => return,
                        Ok(more) => len += more,
                    }
                }
                let request = String::from_utf8_lossy(&request[..len]).to_ascii_lowercase();
                let status =
                    if request.contains("host: service.example.org\r\n") { 200 } else { 421 };
                let head = format!("HTTP/1.1 {status} Status\r\nconnection: close\r\nx-own: 1\r\n");
                let answer = format!("{head}content-length: {}\r\n\r\n{BODY}", BODY.len());
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    origin
}

fn client(ca: Option<&str>) -> reqwest::Client {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca.unwrap_or_default().as_bytes()) {
        roots.add(certificate.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let redirect = reqwest::redirect::Policy::none();
    let client = reqwest::Client::builder().no_proxy().redirect(redirect);
    client.tls_backend_preconfigured(tls).build().unwrap()
}

async fn ask(client: &reqwest::Client, proxy: &FaultProxy) -> reqwest::Result<(u16, String)> {
    let request = client.post(format!("{}/v1/decrypt/k?x=1", proxy.url()));
    let answer = request.header("host", "service.example.org").body("{} the end").send().await?;
    let status = answer.status().as_u16();
    Ok((status, answer.text().await?))
}

#[tokio::test]
async fn what_no_script_names_goes_through_as_it_came() {
    let proxy = FaultProxy::start(&service().await, None).await;
    let client = client(None);
    for _ in 0..3 {
        assert_eq!(ask(&client, &proxy).await.unwrap(), (200, BODY.to_owned()));
    }
    let unwraps = Service::Vault.unwraps().method(Method::POST).body("the end");
    assert_eq!(proxy.count(&unwraps), 3);
    assert_eq!(proxy.count(&Service::Google.unwraps()), 0);
    assert_eq!(proxy.seen()[0].path, "/v1/decrypt/k?x=1");
    assert_eq!(proxy.connections(), 1, "a good connection is kept");
}

#[tokio::test]
async fn each_cut_is_an_error_and_the_next_request_is_well() {
    let proxy = FaultProxy::start(&service().await, None).await;
    let client = client(None);
    for fault in [Fault::CutBeforeHeaders, Fault::CutAfterHeaders, Fault::CutBody] {
        proxy.on(Pattern::any(), Times::Next(1), fault.clone());
        let begun = proxy.seen().len();
        let error = ask(&client, &proxy).await.unwrap_err();
        assert_eq!(error.is_request(), matches!(fault, Fault::CutBeforeHeaders), "{error:?}");
        assert_eq!(proxy.seen().len(), begun + 1, "asked once");
        assert_eq!(ask(&client, &proxy).await.unwrap().0, 200, "after {fault:?}");
    }
    proxy.cut_off().await;
    assert!(ask(&client, &proxy).await.is_err());
    proxy.clear().await;
    assert_eq!(ask(&client, &proxy).await.unwrap().0, 200);
}

#[tokio::test]
async fn answers_are_replaced_changed_and_truncated() {
    let proxy = FaultProxy::start(&service().await, None).await;
    let client = client(None);
    let once = |fault| proxy.on(Pattern::any(), Times::Next(1), fault);
    once(Fault::TruncatedBody);
    assert_eq!(ask(&client, &proxy).await.unwrap(), (200, BODY[..BODY.len() / 2].to_owned()));
    once(Fault::ChangedField("plaintextCrc32c", json!("2")));
    assert!(ask(&client, &proxy).await.unwrap().1.contains(r#""plaintextCrc32c":"2""#));
    once(Fault::Answer(Answer::redirect(307, "http://127.0.0.1:1/")));
    assert_eq!(ask(&client, &proxy).await.unwrap(), (307, String::new()));
    let seven = Some(Duration::from_secs(7));
    for (service, status, said) in [
        (Service::Aws, 400, "ThrottlingException"),
        (Service::Azure, 429, "\"Throttled\""),
        (Service::Google, 429, "\"retryDelay\":\"7s\""),
        (Service::Vault, 429, "rate limit quota exceeded"),
    ] {
        once(Fault::Answer(service.throttled(seven)));
        let (found, body) = ask(&client, &proxy).await.unwrap();
        assert_eq!(found, status, "{service:?}: {body}");
        assert!(body.contains(said), "{service:?}: {body}");
    }
}

#[tokio::test]
async fn slow_answers_are_slow_and_whole() {
    let proxy = FaultProxy::start(&service().await, None).await;
    let client = client(None);
    let delay = Duration::from_millis(200);
    for fault in [Fault::Delay(delay), Fault::SlowFirstByte(delay), Fault::SlowBody(delay)] {
        proxy.on(Pattern::any(), Times::Next(1), fault);
        let begun = Instant::now();
        assert_eq!(ask(&client, &proxy).await.unwrap(), (200, BODY.to_owned()));
        assert!(begun.elapsed() >= delay, "{:?}", begun.elapsed());
    }
}

#[tokio::test]
async fn only_the_good_certificate_is_good() {
    let proxy = FaultProxy::start_tls(&service().await, None).await;
    let client = client(proxy.ca_pem());
    assert!(proxy.url().starts_with("https://127.0.0.1:"));
    assert_eq!(ask(&client, &proxy).await.unwrap().0, 200);
    for shown in [Shown::OfAnotherCa, Shown::ForAnotherName] {
        proxy.show(shown).await;
        let seen = proxy.seen().len();
        let error = ask(&client, &proxy).await.unwrap_err();
        assert!(format!("{error:?}").contains("InvalidCertificate"), "{shown:?}: {error:?}");
        assert_eq!(proxy.seen().len(), seen, "{shown:?}: nothing was sent");
    }
    proxy.show(Shown::Good).await;
    assert_eq!(ask(&client, &proxy).await.unwrap().0, 200);
}
