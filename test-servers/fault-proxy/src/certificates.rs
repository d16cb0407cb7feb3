//! What the proxy shows to those who connect: a certificate of its CA, or one that must be refused.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls_pki_types::PrivatePkcs8KeyDer;
use tokio_rustls::TlsAcceptor;

/// Which certificate is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shown {
    /// One of the proxy's CA, for localhost and 127.0.0.1.
    #[default]
    Good,
    /// One of another CA for the right names.
    OfAnotherCa,
    /// One of the proxy's CA for another name.
    ForAnotherName,
}

/// All of them.
pub(crate) struct Certificates {
    pub(crate) ca_pem: String,
    good: TlsAcceptor,
    of_another_ca: TlsAcceptor,
    for_another_name: TlsAcceptor,
}

type Ca = CertifiedIssuer<'static, KeyPair>;

impl Certificates {
    pub(crate) fn new() -> Self {
        let (ours, theirs) = (ca("fault proxy CA"), ca("fault proxy CA"));
        Self {
            ca_pem: ours.pem(),
            good: acceptor(&ours, &["localhost", "127.0.0.1"]),
            of_another_ca: acceptor(&theirs, &["localhost", "127.0.0.1"]),
            for_another_name: acceptor(&ours, &["service.example.org"]),
        }
    }

    pub(crate) fn acceptor(&self, shown: Shown) -> &TlsAcceptor {
        match shown {
            Shown::Good => &self.good,
            Shown::OfAnotherCa => &self.of_another_ca,
            Shown::ForAnotherName => &self.for_another_name,
        }
    }
}

fn ca(name: &str) -> Ca {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name.push(DnType::CommonName, name);
    parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let key = KeyPair::generate().expect("an EC key is generated");
    CertifiedIssuer::self_signed(parameters, key).expect("a CA signs itself")
}

fn acceptor(ca: &Ca, names: &[&str]) -> TlsAcceptor {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let key = KeyPair::generate().expect("an EC key is generated");
    let parameters = CertificateParams::new(names).expect("names are ASCII");
    let certificate = parameters.signed_by(&key, ca).expect("the CA signs").der().clone();
    let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has TLS 1.2 and 1.3")
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .expect("the key is the certificate's");
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    TlsAcceptor::from(Arc::new(tls))
}
