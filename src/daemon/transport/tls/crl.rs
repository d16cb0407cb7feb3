//! Revocation lists: read from PEM or DER, several to a file, each matched to the CA that signed it.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls_pki_types::CertificateRevocationListDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};

use super::TlsError;
use super::files::{read_trusted, refused};

/// One revocation list.
#[derive(Clone, Debug)]
pub(super) struct Crl {
    pub(super) path: PathBuf,
    pub(super) der: CertificateRevocationListDer<'static>,
    pub(super) next_update: SystemTime,
    this_update: i64,
    issuer: Vec<u8>,
}

/// How a list and a CA belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Belongs {
    /// The CA has signed it.
    Signed,
    /// It bears the CA's name, and another key's signature.
    NameOnly,
    /// It is another CA's: perhaps of an intermediate that clients send along.
    No,
}

impl Crl {
    /// Reads all lists of all files, newest first: where one CA has two, the newest counts.
    pub(super) fn load(paths: &[PathBuf]) -> Result<Vec<Self>, TlsError> {
        let mut lists = Vec::new();
        for path in paths {
            lists.extend(Self::load_file(path)?);
        }
        lists.sort_by_key(|crl| std::cmp::Reverse(crl.this_update));
        Ok(lists)
    }

    fn load_file(path: &Path) -> Result<Vec<Self>, TlsError> {
        let bytes = read_trusted(path)?;
        // DER begins with the tag of a SEQUENCE.
        if bytes.first() == Some(&0x30) {
            return Ok(vec![Self::parse(path, bytes.into())?]);
        }
        let lists: Result<Vec<_>, _> =
            CertificateRevocationListDer::pem_slice_iter(&bytes).collect();
        let lists =
            lists.map_err(|error| refused(path, &format!("it is neither PEM nor DER: {error}")))?;
        if lists.is_empty() {
            return Err(refused(path, "it holds no CRL, neither in PEM nor in DER"));
        }
        lists.into_iter().map(|der| Self::parse(path, der)).collect()
    }

    fn parse(path: &Path, der: CertificateRevocationListDer<'static>) -> Result<Self, TlsError> {
        let (_, crl) = CertificateRevocationList::from_der(&der)
            .map_err(|_| refused(path, "it holds a CRL that cannot be parsed"))?;
        let next_update = crl.next_update().ok_or_else(|| {
            refused(path, "it holds a CRL without nextUpdate (RFC 5280 requires it)")
        })?;
        let seconds = u64::try_from(next_update.timestamp()).unwrap_or(0);
        Ok(Self {
            path: path.to_owned(),
            next_update: SystemTime::UNIX_EPOCH + Duration::from_secs(seconds),
            this_update: crl.last_update().timestamp(),
            issuer: crl.issuer().as_raw().to_vec(),
            der,
        })
    }

    /// Whether this is the list of that CA.
    pub(super) fn belongs_to(
        &self,
        ca: &X509Certificate<'_>,
        algorithms: &WebPkiSupportedAlgorithms,
    ) -> Belongs {
        if self.issuer != ca.subject().as_raw() {
            return Belongs::No;
        }
        let Ok((_, crl)) = CertificateRevocationList::from_der(&self.der) else {
            return Belongs::NameOnly;
        };
        let key = &ca.public_key().subject_public_key.data;
        let signature = &crl.signature_value.data;
        // An algorithm that is not the list's own does not verify; the handshake checks the
        // identifiers as well.
        let signed = algorithms.all.iter().any(|algorithm| {
            algorithm.verify_signature(key, crl.tbs_cert_list.as_ref(), signature).is_ok()
        });
        if signed { Belongs::Signed } else { Belongs::NameOnly }
    }
}
