//! Certificates for keys that never leave their owner: the public key comes in a request (PKCS#10,
//! RFC 2986), the names come from the operator.

use claviger_files::pem;
use rcgen::SubjectPublicKeyInfo;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

use super::PkiError;

/// The public key of a request whose signature shows that its sender has the private key. Names and
/// extensions that it asks for are not looked at.
#[derive(Debug)]
pub struct CertificateRequest {
    pub(super) public_key: SubjectPublicKeyInfo,
}

impl CertificateRequest {
    /// Reads a request, PEM or DER.
    pub fn parse(file: &[u8]) -> Result<Self, PkiError> {
        let invalid = |reason: &str| PkiError::Invalid(format!("this is no request: {reason}"));
        let der = if pem::is_pem(file) {
            let blocks = pem::blocks(file).map_err(|error| invalid(&error.to_string()))?;
            let [block] = &blocks[..] else {
                return Err(invalid("it holds several blocks of PEM"));
            };
            if !matches!(block.label.as_str(), "CERTIFICATE REQUEST" | "NEW CERTIFICATE REQUEST") {
                return Err(invalid(&format!("it holds {}", block.label)));
            }
            block.der.to_vec()
        } else {
            file.to_vec()
        };
        let (_, request) = X509CertificationRequest::from_der(&der)
            .map_err(|_| invalid("it is not PKCS#10, in PEM or DER"))?;
        request.verify_signature().map_err(|_| {
            invalid("its signature is not by its own key, or of a kind that is not supported")
        })?;
        let spki = request.certification_request_info.subject_pki.raw;
        Ok(Self { public_key: SubjectPublicKeyInfo::from_der(spki)? })
    }
}
