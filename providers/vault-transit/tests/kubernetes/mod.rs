//! A fake of Kubernetes' API server, as far as the servers' login method asks it: TokenReview over TLS
//! (Kubernetes API reference: authentication.k8s.io/v1).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// The service account's id.
pub(crate) const UID: &str = "5b8f2c1e-0d3a-4f0e-9c3b-2f6a1d7e8c90";
/// With what the server under test proves to the cluster who it is.
pub(crate) const REVIEWER: &str = "reviewer-token";

/// The fake. It ends with the test's runtime.
pub(crate) struct FakeApiServer {
    pub(crate) address: String,
    pub(crate) ca_pem: String,
    reviews: Arc<AtomicUsize>,
}

impl FakeApiServer {
    /// A cluster in which `token` is that of `system:serviceaccount:keys:claviger`.
    pub(crate) async fn that_knows(token: &str) -> Self {
        let ca_key = KeyPair::generate().unwrap();
        let mut ca = CertificateParams::new(vec![]).unwrap();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let certificate = certificate.signed_by(&key, &Issuer::from_params(&ca, &ca_key)).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], private)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("https://{}", listener.local_addr().unwrap());
        let reviews = Arc::new(AtomicUsize::new(0));
        let (count, token) = (reviews.clone(), token.to_owned());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                let Some(answer) = answer(&mut stream, &token).await else { continue };
                count.fetch_add(1, Ordering::SeqCst);
                let body = answer.to_string();
                let head = format!(
                    "HTTP/1.1 201 Created\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                    body.len()
                );
                let _ = stream.write_all(format!("{head}{body}").as_bytes()).await;
                let _ = stream.shutdown().await;
            }
        });
        Self { address, ca_pem, reviews }
    }

    /// How often it was asked.
    pub(crate) fn reviews(&self) -> usize {
        self.reviews.load(Ordering::SeqCst)
    }
}

/// The review of the one token; none for anything else than a TokenReview by the reviewer.
async fn answer(stream: &mut (impl AsyncRead + Unpin), token: &str) -> Option<Value> {
    let (head, body) = request(stream).await?;
    let is_review = head.starts_with("POST /apis/authentication.k8s.io/v1/tokenreviews ");
    let by_reviewer = head.contains(&format!("Authorization: Bearer {REVIEWER}\r\n"));
    if !is_review || !by_reviewer {
        return None;
    }
    let review: Value = serde_json::from_slice(&body).ok()?;
    let status = if review["spec"]["token"] == token {
        json!({
            "authenticated": true,
            "user": {"username": "system:serviceaccount:keys:claviger", "uid": UID},
        })
    } else {
        json!({"authenticated": false, "error": "invalid bearer token"})
    };
    Some(json!({
        "kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1", "metadata": {},
        "spec": review["spec"], "status": status,
    }))
}

async fn request(stream: &mut (impl AsyncRead + Unpin)) -> Option<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    loop {
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
        let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
        let head = String::from_utf8(bytes[..end + 2].to_vec()).ok()?;
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
        let length: usize = length?.trim().parse().ok()?;
        if bytes.len() >= end + 4 + length {
            return Some((head, bytes[end + 4..end + 4 + length].to_vec()));
        }
    }
}
