//! Revocation lists: read from PEM or DER, several to a file; which of them are in force, and what
//! they say of a certificate.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use claviger_files::pem;
use rustls::CertificateError;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls_pki_types::{CertificateRevocationListDer, UnixTime};
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Extension};

use super::TlsError;
use super::der::{elements, only};
use super::files::{Reader, refused};
use super::scope::{ALL_REASONS, Scope, Subject};

/// One revocation list.
#[derive(Clone, Debug)]
pub(super) struct Crl {
    pub(super) path: PathBuf,
    pub(super) der: CertificateRevocationListDer<'static>,
    pub(super) next_update: SystemTime,
    this_update: i64,
    /// cRLNumber, big-endian without leading zeros.
    number: Option<Vec<u8>>,
    issuer: Vec<u8>,
    scope: Scope,
    /// The serial numbers of revoked certificates, without leading zeros.
    revoked: HashSet<Box<[u8]>>,
}

impl Crl {
    /// Reads all lists of all files. A list that is there twice counts once.
    pub(super) fn load(paths: &[PathBuf], reader: &mut Reader) -> Result<Vec<Arc<Self>>, TlsError> {
        let mut lists: Vec<Arc<Self>> = Vec::new();
        for path in paths {
            for list in Self::load_file(path, reader)? {
                if lists.iter().all(|known| known.der != list.der) {
                    lists.push(Arc::new(list));
                }
            }
        }
        Ok(lists)
    }

    fn load_file(path: &Path, reader: &mut Reader) -> Result<Vec<Self>, TlsError> {
        let bytes = reader.trusted(path)?;
        // DER begins with the tag of a SEQUENCE.
        let lists = if bytes.first() == Some(&0x30) {
            vec![CertificateRevocationListDer::from(bytes)]
        } else {
            pem::crls(&bytes).map_err(|error| refused(path, &error.to_string()))?
        };
        let several = lists.len() > 1;
        let parse = |(index, der)| {
            Self::parse(path, der).map_err(|reason| {
                let which =
                    if several { format!("its list {}: ", index + 1) } else { String::new() };
                refused(path, &format!("{which}{reason}"))
            })
        };
        lists.into_iter().enumerate().map(parse).collect()
    }

    fn parse(path: &Path, der: CertificateRevocationListDer<'static>) -> Result<Self, String> {
        let (rest, crl) = CertificateRevocationList::from_der(&der)
            .map_err(|error| format!("it holds a CRL that cannot be parsed: {error}"))?;
        if !rest.is_empty() {
            return Err("there are bytes behind its CRL".to_owned());
        }
        if crl.version().is_none() {
            return Err("it is a version 1 CRL, which cannot say what it is for; issue it as \
                        version 2 (openssl ca -gencrl does, where `crl_extensions` is set)"
                .to_owned());
        }
        if crl.signature_algorithm != crl.tbs_cert_list.signature {
            return Err("its two signature algorithms differ".to_owned());
        }
        let next_update =
            crl.next_update().ok_or("it holds a CRL without nextUpdate (RFC 5280 requires it)")?;
        let extensions = Extensions::of(crl.extensions())?;
        let mut revoked = HashSet::new();
        for entry in crl.iter_revoked_certificates() {
            if let Some(unknown) = entry.extensions().iter().find(|extension| extension.critical) {
                return Err(format!(
                    "an entry has the critical extension {}, which is not supported",
                    unknown.oid
                ));
            }
            revoked.insert(without_zeros(entry.raw_serial()).into());
        }
        let seconds = u64::try_from(next_update.timestamp()).unwrap_or(0);
        Ok(Self {
            path: path.to_owned(),
            next_update: SystemTime::UNIX_EPOCH + Duration::from_secs(seconds),
            this_update: crl.last_update().timestamp(),
            number: extensions.number,
            issuer: crl.issuer().as_raw().to_vec(),
            scope: extensions.scope,
            revoked,
            der,
        })
    }

    /// Whether it bears the CA's name.
    pub(super) fn names(&self, ca: &[u8]) -> bool {
        self.issuer == ca
    }

    /// Whether this public key (the BIT STRING of its SubjectPublicKeyInfo) has signed it.
    pub(super) fn is_signed_by(
        &self,
        public_key: &[u8],
        algorithms: &WebPkiSupportedAlgorithms,
    ) -> bool {
        // CertificateList: tbsCertList, signatureAlgorithm, signatureValue.
        let Some(parts) = only(&self.der, 0x30).and_then(elements) else { return false };
        let [list, _, signature] = &parts[..] else { return false };
        let [0, signature @ ..] = signature.content else { return false };
        // An algorithm that is not the list's own does not verify.
        algorithms
            .all
            .iter()
            .any(|algorithm| algorithm.verify_signature(public_key, list.whole, signature).is_ok())
    }

    /// Until when it vouches for certificates.
    pub(super) fn ends(&self, grace: Duration) -> SystemTime {
        self.next_update + grace
    }

    /// Whether `other`, of the same CA, takes this one's place: of one scope the highest cRLNumber
    /// counts (RFC 5280 5.2.3), of one number the newest thisUpdate.
    fn is_replaced_by(&self, other: &Self) -> bool {
        let age = |crl: &Self| {
            let number = crl.number.as_ref();
            (number.is_some(), number.map(Vec::len), number.cloned(), crl.this_update)
        };
        self.scope == other.scope && age(self) < age(other)
    }
}

/// Of the lists that one CA has signed, those that count.
pub(super) fn in_force(lists: &[Arc<Crl>]) -> Vec<Arc<Crl>> {
    let counts = |list: &&Arc<Crl>| !lists.iter().any(|other| list.is_replaced_by(other));
    lists.iter().filter(counts).cloned().collect()
}

/// What the lists of its CA say of a certificate: on any of them it is revoked; and for each reason
/// there must be one that is for this certificate and that is not past its grace (RFC 5280 6.3.3).
pub(super) fn check(
    lists: &[Arc<Crl>],
    serial: &[u8],
    subject: &Subject<'_>,
    grace: Duration,
    now: SystemTime,
) -> Result<(), CertificateError> {
    let serial = without_zeros(serial);
    if lists.iter().any(|list| list.revoked.contains(serial)) {
        return Err(CertificateError::Revoked);
    }
    let reasons = |list: &&Arc<Crl>| list.scope.reasons_for(subject);
    let current = lists.iter().filter(|list| now < list.ends(grace));
    if current.map(|list| reasons(&list)).fold(0, |sum, of| sum | of) == ALL_REASONS {
        return Ok(());
    }
    let stale = lists.iter().filter(|list| reasons(list) != 0 && now >= list.ends(grace));
    Err(match stale.map(|list| list.next_update).min() {
        Some(next_update) => CertificateError::ExpiredRevocationListContext {
            time: unix(now),
            next_update: unix(next_update),
        },
        None => CertificateError::UnknownRevocationStatus,
    })
}

/// The extensions of a list that are looked at.
struct Extensions {
    number: Option<Vec<u8>>,
    scope: Scope,
}

impl Extensions {
    fn of(extensions: &[X509Extension<'_>]) -> Result<Self, String> {
        let mut found = Self { number: None, scope: Scope::EVERYTHING };
        let mut seen = HashSet::new();
        for extension in extensions {
            let oid = extension.oid.to_string();
            match oid.as_str() {
                // cRLNumber
                "2.5.29.20" => {
                    let number = only(extension.value, 0x02);
                    let number = number.filter(|number| number.first().is_some_and(|o| *o < 0x80));
                    let number = number.ok_or("its cRLNumber is damaged")?;
                    found.number = Some(without_zeros(number).to_vec());
                }
                // deltaCRLIndicator
                "2.5.29.27" => {
                    return Err(
                        "it is a delta CRL, which is not supported; name the complete list"
                            .to_owned(),
                    );
                }
                // issuingDistributionPoint
                "2.5.29.28" => found.scope = Scope::parse(extension.value)?,
                _ if extension.critical && oid != "2.5.29.35" => {
                    return Err(format!(
                        "it has the critical extension {oid}, which is not supported"
                    ));
                }
                _ => {}
            }
            if !seen.insert(oid) {
                return Err(format!("it has the extension {} twice", extension.oid));
            }
        }
        Ok(found)
    }
}

fn without_zeros(number: &[u8]) -> &[u8] {
    let zeros = number.iter().take_while(|octet| **octet == 0).count();
    &number[zeros..]
}

pub(super) fn unix(time: SystemTime) -> UnixTime {
    let since_epoch = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    UnixTime::since_unix_epoch(since_epoch)
}
