//! The service behind the proxy: asked as the proxy was asked.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, StatusCode};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::script::Seen;

/// Where requests go.
#[derive(Debug)]
pub(crate) struct Upstream {
    http: reqwest::Client,
    origin: String,
}

/// What the service answered.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Upstream {
    /// `origin` is `http://host:port` or `https://host:port`; `ca` vouches for the latter.
    pub(crate) fn new(origin: &str, ca: Option<&str>) -> Self {
        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(ca.unwrap_or_default().as_bytes()) {
            let certificate = certificate.expect("the CA is good PEM");
            roots.add(certificate).expect("the CA is a CA certificate");
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has TLS 1.2 and 1.3")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .expect("a client of plain options");
        Self { http, origin: origin.trim_end_matches('/').to_owned() }
    }

    /// Where it is.
    pub(crate) fn origin(&self) -> &str {
        &self.origin
    }

    /// Asks. The sentence says why there is no answer.
    pub(crate) async fn ask(&self, seen: &Seen) -> Result<Answered, String> {
        let url = format!("{}{}", self.origin, seen.path);
        let mut headers = seen.headers.clone();
        for of_the_connection in [CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING] {
            headers.remove(of_the_connection);
        }
        let request = self.http.request(seen.method.clone(), url).headers(headers);
        let answer = request.body(seen.body.clone()).send().await;
        let answer = answer.map_err(|error| format!("{error:?}"))?;
        let (status, mut headers) = (answer.status(), answer.headers().clone());
        for of_the_connection in [CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING] {
            headers.remove(of_the_connection);
        }
        let body = answer.bytes().await.map_err(|error| format!("{error:?}"))?;
        Ok(Answered { status, headers, body })
    }
}
