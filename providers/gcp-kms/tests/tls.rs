//! Whom a provider trusts: the CAs of its `ca` and no other.

mod support;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use claviger_provider_api::{Algorithm, ErrorKind};
use gcp_kms_fake::{Algorithm as Version, Fake};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use support::{KEY, LONG, Setup, round_trip};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

type Ca = CertifiedIssuer<'static, KeyPair>;

fn ca() -> Ca {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A TLS proxy in front of the fake, with a certificate for this name; gives its endpoint.
async fn tls_proxy(fake: &Fake, ca: &Ca, name: &str) -> String {
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
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("https://{}", listener.local_addr().unwrap());
    let behind: SocketAddr = fake.endpoint().trim_start_matches("http://").parse().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut outside = acceptor.accept(stream).await?;
                let mut inside = TcpStream::connect(behind).await?;
                tokio::io::copy_bidirectional(&mut outside, &mut inside).await
            });
        }
    });
    endpoint
}

fn write(folder: &Path, text: &str) -> PathBuf {
    let path = folder.join("ca.pem");
    std::fs::write(&path, text).unwrap();
    path
}

#[tokio::test]
async fn only_a_certificate_of_the_configured_ca_for_the_right_name_is_trusted() {
    let (ours, theirs) = (ca(), ca());
    let mut setup = Setup::new();
    let version = setup.fake.create_version(KEY, Version::DecryptOaep2048Sha256);
    setup.config.ca = Some(write(setup.folder.path(), &ours.pem()));
    setup.config.endpoint = Some(tls_proxy(&setup.fake, &ours, "127.0.0.1").await);
    let key = setup.open(&version, &[Algorithm::RsaOaep256], &[]).await.unwrap();
    round_trip(&*key, LONG).await.unwrap();
    setup.fake.asked();

    let unwrap = [Algorithm::RsaOaep256];
    for (endpoint, case) in [
        (tls_proxy(&setup.fake, &theirs, "127.0.0.1").await, "another CA"),
        (tls_proxy(&setup.fake, &ours, "cloudkms.googleapis.com").await, "another name"),
    ] {
        setup.config.endpoint = Some(endpoint);
        let error = setup.open(&version, &unwrap, &[]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OperatorNeeded, "{case}: {error}");
        assert!(error.to_string().contains("certificate"), "{case}: {error}");
        assert_eq!(setup.fake.asked(), ["token"], "{case}: something was sent");
    }
    // The system's CAs do not know ours.
    setup.config.ca = None;
    setup.config.endpoint = Some(tls_proxy(&setup.fake, &ours, "127.0.0.1").await);
    let error = setup.open(&version, &unwrap, &[]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OperatorNeeded, "{error}");
}

#[tokio::test]
async fn a_ca_file_that_cannot_be_used_is_refused_in_words() {
    let mut setup = Setup::new();
    let version = setup.fake.create_version(KEY, Version::DecryptOaep2048Sha256);
    let torn = "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n";
    let no_certificate = "-----BEGIN CERTIFICATE-----\nAAEC\n-----END CERTIFICATE-----\n";
    for text in ["", "text", torn, no_certificate] {
        setup.config.ca = Some(write(setup.folder.path(), text));
        let error = setup.open(&version, &[], &[]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OperatorNeeded, "{error}");
        assert!(error.to_string().contains("ca.pem cannot be used"), "{text:?}: {error}");
    }
    setup.config.ca = Some(setup.folder.path().join("none.pem"));
    let error = setup.open(&version, &[], &[]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OperatorNeeded, "{error}");
    assert!(setup.fake.asked().is_empty(), "something was sent");
}
