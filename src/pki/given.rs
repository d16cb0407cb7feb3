//! A CA that is kept elsewhere: its certificate and its key, from two files. It signs, and keeps no
//! books.

use std::path::Path;

use claviger_files::pem::{self, Beside};
use rcgen::{Issuer, KeyPair};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use super::{OverKey, PkiError, io};

/// A CA certificate with its key, of which nothing is written down.
pub struct GivenCa {
    /// Its name, as its certificate spells it: DER.
    subject: Vec<u8>,
    issuer: Issuer<'static, KeyPair>,
}

impl GivenCa {
    /// Reads both, PEM. The key's file is checked as every secret's is; the certificate must be one
    /// that may sign others, today, and must be over that key.
    pub fn read(certificate_path: &Path, key_path: &Path) -> Result<Self, PkiError> {
        let files = CaFiles::read(certificate_path, key_path)?;
        let refused = |reason: String| PkiError::damaged(certificate_path, reason);
        let (_, certificate) = X509Certificate::from_der(&files.certificate)
            .map_err(|_| refused("its certificate is not X.509".to_owned()))?;
        if !certificate.is_ca() {
            return Err(refused("it is no CA: its basicConstraints do not say CA:TRUE".to_owned()));
        }
        let usage = certificate.key_usage().ok().flatten();
        if usage.is_some_and(|usage| !usage.value.key_cert_sign()) {
            return Err(refused("its keyUsage does not have keyCertSign".to_owned()));
        }
        let validity = certificate.validity();
        if !validity.is_valid_at(OffsetDateTime::now_utc().into()) {
            let (from, to) = (validity.not_before, validity.not_after);
            return Err(refused(format!("it is valid from {from} to {to}, and not today")));
        }
        let subject = certificate.subject().as_raw().to_vec();
        let issuer = files.issuer().map_err(|_| refused(UNUSUAL_NAME.to_owned()))?;
        Ok(Self { subject, issuer })
    }

    /// Issues a certificate over a wrapping key's public key. DER.
    pub fn issue_over_key(&self, over: &OverKey) -> Result<Vec<u8>, PkiError> {
        let (der, _) = over.signed_by(&self.issuer)?;
        let names_issuer = X509Certificate::from_der(&der)
            .is_ok_and(|(_, made)| made.issuer().as_raw() == self.subject);
        // A name that differs from the CA's by a byte matches no issuer: no chain is found by it.
        if names_issuer { Ok(der) } else { Err(PkiError::Invalid(UNUSUAL_NAME.to_owned())) }
    }
}

/// What rcgen cannot repeat.
const UNUSUAL_NAME: &str = "the CA's name cannot be repeated: it has a part twice, such as DC or OU, or one of several values; \
     take a CA whose name has each part once, or none: then one signs that is thrown away";

/// A CA's two files, which belong together.
pub(super) struct CaFiles {
    pub(super) certificate_pem: String,
    pub(super) certificate: CertificateDer<'static>,
    key: KeyPair,
}

impl CaFiles {
    pub(super) fn read(certificate_path: &Path, key_path: &Path) -> Result<Self, PkiError> {
        let file = std::fs::read(certificate_path).map_err(io(certificate_path))?;
        let chain = pem::certificates(&file, Beside::Keys)
            .map_err(|error| PkiError::damaged(certificate_path, error.to_string()))?;
        let certificate = chain[0].clone();
        let certificate_pem = pem::encode("CERTIFICATE", &certificate);
        let key_pem = claviger_provider_api::secret::read_secret_file(key_path)?;
        let key = pem::private_key(key_pem.expose())
            .map(Zeroizing::new)
            .map_err(|error| PkiError::damaged(key_path, error.to_string()))?;
        let key = KeyPair::try_from(&*key).map_err(|_| {
            PkiError::damaged(
                key_path,
                "its private key is neither RSA, nor EC on a curve of NIST's, nor Ed25519",
            )
        })?;
        let (_, parsed) = X509Certificate::from_der(&certificate)
            .map_err(|_| PkiError::damaged(certificate_path, "its certificate is not X.509"))?;
        if *parsed.public_key().subject_public_key.data != *key.public_key_raw() {
            let reason = format!("it is not the key of {}", certificate_path.display());
            return Err(PkiError::damaged(key_path, reason));
        }
        Ok(Self { certificate_pem, certificate, key })
    }

    pub(super) fn issuer(self) -> Result<Issuer<'static, KeyPair>, PkiError> {
        Ok(Issuer::from_ca_cert_der(&self.certificate, self.key)?)
    }
}

impl std::fmt::Debug for GivenCa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GivenCa").finish_non_exhaustive()
    }
}
