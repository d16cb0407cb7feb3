//! Whom a provider trusts: the CAs of its `ca` and no other.

mod support;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use claviger_provider_api::ErrorKind;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use support::fake::{ARN, Fake};
use support::{OAEP, config, open, round_trip};
use tokio_rustls::TlsAcceptor;

type Ca = CertifiedIssuer<'static, KeyPair>;

fn ca() -> Ca {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// The fake behind TLS, with a certificate for this name.
async fn fake(ca: &Ca, name: &str) -> Fake {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new([name.to_owned()]).unwrap();
    let chain = vec![params.signed_by(&key, ca).unwrap().der().clone()];
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    Fake::start_with("https", move |stream| acceptor.accept(stream)).await
}

fn write(folder: &Path, text: &str) -> std::path::PathBuf {
    let path = folder.join("ca.pem");
    std::fs::write(&path, text).unwrap();
    path
}

#[tokio::test]
async fn only_a_certificate_of_the_configured_ca_for_the_right_name_is_trusted() {
    let (ours, theirs) = (ca(), ca());
    let folder = tempfile::tempdir().unwrap();
    let good = fake(&ours, "127.0.0.1").await;
    let mut config = config(&good.endpoint, folder.path());
    config.ca = Some(write(folder.path(), &ours.pem()));
    let key = open(&config, ARN, &OAEP, &[]).await.unwrap();
    round_trip(&*key, Duration::from_secs(30)).await.unwrap();

    for (server, case) in [
        (fake(&theirs, "127.0.0.1").await, "another CA"),
        (fake(&ours, "kms.eu-central-1.amazonaws.com").await, "another name"),
    ] {
        let mut config = config.clone();
        config.endpoint = Some(server.endpoint.clone());
        let error = open(&config, ARN, &OAEP, &[]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OperatorNeeded, "{case}: {error}");
        assert!(error.to_string().contains("invalid peer certificate"), "{case}: {error}");
        assert!(error.to_string().contains("look at `ca`"), "{case}: {error}");
        assert!(server.asked().is_empty(), "{case}: something was sent");
    }
    // The system's CAs do not know ours.
    config.ca = None;
    let error = open(&config, ARN, &OAEP, &[]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OperatorNeeded, "{error}");
}

#[tokio::test]
async fn a_ca_file_that_cannot_be_used_is_refused_in_words() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config("https://127.0.0.1:1", folder.path());
    let torn = "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n";
    let no_certificate = "-----BEGIN CERTIFICATE-----\nAAEC\n-----END CERTIFICATE-----\n";
    for (text, expected) in [
        ("", "holds no certificate"),
        ("text", "holds no certificate"),
        (torn, "line 2: not base64"),
        (no_certificate, "no CA certificate"),
    ] {
        config.ca = Some(write(folder.path(), text));
        let error = open(&config, ARN, &OAEP, &[]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OperatorNeeded, "{error}");
        assert!(error.to_string().contains(expected), "{text:?}: {error}");
        assert!(error.to_string().contains("ca.pem"), "{error}");
    }
    config.ca = Some(folder.path().join("none.pem"));
    let error = open(&config, ARN, &OAEP, &[]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OperatorNeeded, "{error}");
}
