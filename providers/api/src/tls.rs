//! TLS towards a service, for the providers that speak HTTP.

use std::error::Error as StdError;
use std::fmt::Display;
use std::io;
use std::path::Path;
use std::sync::Arc;

use claviger_files::pem::{self, Beside};
use rustls::{AlertDescription, ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use rustls_platform_verifier::BuilderVerifierExt;

use crate::cause::Cause;
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
    let refuse = |reason: String| Error::needs_operator(Cause::WrongCa, reason);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::new(ErrorKind::Internal, error))?;
    let builder = match ca {
        None => builder
            .with_platform_verifier()
            .map_err(|error| refuse(format!("the system's CAs cannot be used: {error}")))?,
        Some(path) => builder.with_root_certificates(trust(path, certificates(path)?)?),
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

/// Whether one of the causes is that the server's certificate was refused, or that the server refused
/// ours or wants one: an operator must act. Those inside an [`io::Error`] are hidden from `source`, and
/// are looked at too.
pub fn holds_certificate_error(error: &(dyn StdError + 'static)) -> bool {
    if let Some(tls) = error.downcast_ref::<rustls::Error>() {
        return is_about_certificates(tls);
    }
    let held = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    held.is_some_and(|held| holds_certificate_error(held))
        || error.source().is_some_and(holds_certificate_error)
}

fn is_about_certificates(error: &rustls::Error) -> bool {
    matches!(
        error,
        rustls::Error::InvalidCertificate(_)
            | rustls::Error::InvalidCertRevocationList(_)
            | rustls::Error::NoCertificatesPresented
            | rustls::Error::AlertReceived(
                AlertDescription::BadCertificate
                    | AlertDescription::UnsupportedCertificate
                    | AlertDescription::CertificateRevoked
                    | AlertDescription::CertificateExpired
                    | AlertDescription::CertificateUnknown
                    | AlertDescription::CertificateRequired
                    | AlertDescription::UnknownCA
            )
    )
}

/// The certificates of the PEM file of an option `ca`, as PEM, once every one was found good.
///
/// # Errors
///
/// [`ErrorKind::OperatorNeeded`] with a sentence that names the file.
pub fn ca_pem(path: &Path) -> Result<String, Error> {
    let certificates = certificates(path)?;
    trust(path, certificates.clone())?;
    Ok(certificates.iter().map(|certificate| pem::encode("CERTIFICATE", certificate)).collect())
}

fn unusable(path: &Path, error: &dyn Display) -> Error {
    let text = format!("`ca` {} cannot be used: {error}", path.display());
    Error::needs_operator(Cause::WrongCa, text)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let file = std::fs::read(path).map_err(|error| unusable(path, &error))?;
    let certificates = pem::certificates(&file, Beside::Nothing);
    certificates.map_err(|error| unusable(path, &error))
}

fn trust(path: &Path, certificates: Vec<CertificateDer<'static>>) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        roots.add(certificate).map_err(|error| {
            unusable(path, &format_args!("it holds what is no CA certificate: {error}"))
        })?;
    }
    Ok(roots)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot reach the server")]
    struct Unreachable(#[source] io::Error);

    #[test]
    fn a_file_of_cas_that_cannot_be_used_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.crt");
        let refusal = || client_config(Some(&path), None).unwrap_err();
        assert!(refusal().to_string().contains("ca.crt cannot be used: No such file"));
        std::fs::write(&path, "no PEM").unwrap();
        assert!(refusal().to_string().ends_with("it holds no certificate in PEM"));
        let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        std::fs::write(&path, broken).unwrap();
        assert!(refusal().to_string().contains("ca.crt cannot be used: "));
        assert_eq!(refusal().kind(), ErrorKind::OperatorNeeded);
    }

    #[test]
    fn a_certificate_that_was_refused_is_found_however_deep_it_lies() {
        let expired = || rustls::Error::InvalidCertificate(rustls::CertificateError::Expired);
        let alert = rustls::Error::AlertReceived;
        for (tls, expected) in [
            (expired(), true),
            (rustls::Error::NoCertificatesPresented, true),
            (alert(AlertDescription::CertificateRequired), true),
            (alert(AlertDescription::UnknownCA), true),
            (alert(AlertDescription::HandshakeFailure), false),
            (rustls::Error::DecryptError, false),
        ] {
            assert_eq!(holds_certificate_error(&tls), expected, "{tls}");
        }
        // As an HTTP client holds it: in an I/O error, in an I/O error, as the source of its own.
        let held = io::Error::other(io::Error::other(expired()));
        assert!(holds_certificate_error(&held));
        assert!(holds_certificate_error(&Unreachable(held)));
        assert!(!holds_certificate_error(&io::Error::from(io::ErrorKind::ConnectionReset)));
    }
}
