//! TLS towards a service, for the providers that speak HTTP.

use std::fmt::Display;
use std::path::Path;
use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use rustls_platform_verifier::BuilderVerifierExt;

use crate::error::{Error, ErrorKind};

/// A client's own certificate with its chain, and its private key.
pub type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// TLS 1.2 or 1.3 over aws-lc-rs with HTTP/2 or 1.1, to servers that the CAs of the PEM file `ca`
/// vouch for, or those of the system. Reads the file.
///
/// # Errors
///
/// [`ErrorKind::OperatorNeeded`] with a sentence about `ca`, the system's CAs or the identity.
pub fn client_config(ca: Option<&Path>, identity: Option<Identity>) -> Result<ClientConfig, Error> {
    let refuse = |reason: String| Error::new(ErrorKind::OperatorNeeded, reason);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::new(ErrorKind::Internal, error))?;
    let builder = match ca {
        None => builder
            .with_platform_verifier()
            .map_err(|error| refuse(format!("the system's CAs cannot be used: {error}")))?,
        Some(path) => builder.with_root_certificates(roots(path).map_err(refuse)?),
    };
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => builder
            .with_client_auth_cert(chain, key)
            .map_err(|error| refuse(format!("the client certificate cannot be used: {error}")))?,
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn roots(path: &Path) -> Result<RootCertStore, String> {
    let unusable = |error: &dyn Display| format!("`ca` {} cannot be used: {error}", path.display());
    let pem = std::fs::read(path).map_err(|error| unusable(&error))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|error| unusable(&error))?;
        roots.add(certificate).map_err(|error| unusable(&error))?;
    }
    if roots.is_empty() {
        return Err(unusable(&"it holds no certificate in PEM form"));
    }
    Ok(roots)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_cas_that_cannot_be_used_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.crt");
        let refusal = || client_config(Some(&path), None).unwrap_err();
        assert!(refusal().to_string().contains("ca.crt cannot be used: No such file"));
        std::fs::write(&path, "no PEM").unwrap();
        assert!(refusal().to_string().ends_with("it holds no certificate in PEM form"));
        let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        std::fs::write(&path, broken).unwrap();
        assert!(refusal().to_string().contains("ca.crt cannot be used: "));
        assert_eq!(refusal().kind(), ErrorKind::OperatorNeeded);
    }
}
