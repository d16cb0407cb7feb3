//! Which client certificates are let in: each named bundle of CAs with its revocation lists.
//!
//! Signatures, times, purpose and the building of a path are webpki's; what it leaves out is checked
//! on each path that it finds: what the CA demands, key usages, and revocation.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{Context, SHA256};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError};
use rustls::{RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage, VerifiedPath};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::anchor::{Anchor, AnchorName, key_usages, unfit};
use super::crl::{self, Crl};
use super::files::{Reader, refused};
use super::scope::{DistributionPoint, Subject};
use super::{DEMO, TlsError};
use crate::daemon::config;
use crate::pki::is_demo_ca;

/// The client CAs, by bundle, and what each has revoked.
#[derive(Debug)]
pub struct ClientTrust {
    anchors: Vec<Anchor>,
    subjects: Vec<DistinguishedName>,
    algorithms: WebPkiSupportedAlgorithms,
    /// Every list that counts; of those of intermediates, all.
    crls: Vec<Arc<Crl>>,
    needs_crls: bool,
    grace: Duration,
    fingerprint: [u8; 32],
}

/// What is known of a client whose chain was found good.
#[derive(Clone, Debug)]
pub struct Verified {
    /// The CA that vouches for it.
    pub anchor: Arc<AnchorName>,
    /// When the first certificate of its path ends: its own, or an intermediate.
    pub not_after: SystemTime,
}

impl ClientTrust {
    pub(super) fn load(
        config: &config::Tls,
        allow_demo: bool,
        provider: &Arc<CryptoProvider>,
        reader: &mut Reader,
    ) -> Result<Self, TlsError> {
        let algorithms = provider.signature_verification_algorithms;
        let mut crls = Crl::load(&config.crl, reader)?;
        let mut anchors: Vec<Anchor> = Vec::new();
        let mut fingerprint = Context::new(&SHA256);
        for (bundle, path) in &config.client_ca {
            let bundle: Arc<str> = bundle.as_str().into();
            let cas = reader.ca_certificates(path)?;
            if !allow_demo && is_demo_ca(&cas) {
                return Err(refused(path, DEMO));
            }
            fingerprint.update(bundle.as_bytes());
            for ca in cas {
                fingerprint.update(&ca);
                let mut anchor = Anchor::parse(&bundle, path, &ca)?;
                let twin = anchors.iter().find(|known| known.name.sha256 == anchor.name.sha256);
                if let Some(other) = twin.filter(|twin| twin.name.bundle != bundle) {
                    let reason = format!(
                        "one of its CAs is in the bundle {:?} too: whose client is it then? Keep \
                         it in one",
                        other.name.bundle
                    );
                    return Err(refused(path, &reason));
                }
                if !config.crl.is_empty() {
                    anchor.crls = crls_of(&anchor, &crls, &algorithms)
                        .map_err(|(crl, reason)| refused(crl.unwrap_or(path), &reason))?;
                }
                anchors.push(anchor);
            }
        }
        let mut roots = RootCertStore::empty();
        roots.extend(anchors.iter().map(|anchor| anchor.trusted.clone()));
        crls.retain(|crl| is_in_force(crl, &anchors, &algorithms));
        for crl in &crls {
            fingerprint.update(&crl.der);
        }
        let mut subjects: Vec<DistinguishedName> = Vec::new();
        for subject in roots.subjects() {
            if !subjects.iter().any(|known| known.as_ref() == subject.as_ref()) {
                subjects.push(subject);
            }
        }
        Ok(Self {
            anchors,
            subjects,
            algorithms,
            crls,
            needs_crls: !config.crl.is_empty(),
            grace: config.crl_grace,
            fingerprint: fingerprint.finish().as_ref().try_into().expect("SHA-256 has 32 bytes"),
        })
    }

    /// Verifies a client's chain (`chain[0]` is its own certificate) as a handshake does: path,
    /// time, purpose, revocation. Gives the CA that it chains to.
    pub fn verify(&self, chain: &[CertificateDer<'_>], now: SystemTime) -> Result<Verified, Error> {
        let (own, intermediates) = chain.split_first().ok_or(Error::NoCertificatesPresented)?;
        let own = EndEntityCert::try_from(own).map_err(in_rustls_words)?;
        let mut refusal = CertificateError::UnknownIssuer;
        for anchor in &self.anchors {
            let outcome = RefCell::new(None);
            let judge = |path: &VerifiedPath<'_>| {
                let judged = self.judge(anchor, path, now);
                let error =
                    if judged.is_ok() { Ok(()) } else { Err(webpki::Error::CertDistrusted) };
                outcome.replace(Some(judged));
                error
            };
            let verified = own.verify_for_usage(
                self.algorithms.all,
                std::slice::from_ref(&anchor.trusted),
                intermediates,
                crl::unix(now),
                KeyUsage::client_auth(),
                None,
                Some(&judge),
            );
            let error = match (verified, outcome.take()) {
                (Ok(_), Some(Ok(verified))) => return Ok(verified),
                (_, Some(Err(error))) => error,
                (Err(error), _) => in_rustls_words(error),
                (Ok(_), None) => CertificateError::UnknownIssuer,
            };
            if error != CertificateError::UnknownIssuer {
                refusal = error;
            }
        }
        Err(refusal.into())
    }

    /// What webpki leaves out, for one path that it has found.
    fn judge(
        &self,
        anchor: &Anchor,
        path: &VerifiedPath<'_>,
        now: SystemTime,
    ) -> Result<Verified, CertificateError> {
        let mut ders = vec![path.end_entity().der()];
        ders.extend(path.intermediate_certificates().map(webpki::Cert::der));
        let parsed: Result<Vec<_>, _> =
            ders.iter().map(|der| X509Certificate::from_der(der)).collect();
        let parsed = parsed.map_err(|_| CertificateError::BadEncoding)?;
        let chain: Vec<_> = parsed.into_iter().map(|(_, certificate)| certificate).collect();
        anchor.demands(&chain)?;
        key_usages(&chain)?;
        if self.needs_crls {
            for (depth, certificate) in chain.iter().enumerate() {
                self.check_revocation(anchor, certificate, chain.get(depth + 1), depth > 0, now)?;
            }
        }
        let ends = chain.iter().map(|certificate| certificate.validity().not_after.timestamp());
        let first = u64::try_from(ends.min().unwrap_or(0)).unwrap_or(0);
        let not_after = SystemTime::UNIX_EPOCH + Duration::from_secs(first);
        Ok(Verified { anchor: anchor.name.clone(), not_after })
    }

    /// Looks one certificate of a path up in the lists of its issuer, which is the anchor or an
    /// intermediate.
    fn check_revocation(
        &self,
        anchor: &Anchor,
        certificate: &X509Certificate<'_>,
        intermediate: Option<&X509Certificate<'_>>,
        is_ca: bool,
        now: SystemTime,
    ) -> Result<(), CertificateError> {
        let lists = match intermediate {
            None => anchor.crls.clone(),
            Some(issuer) => self.crls_of_intermediate(issuer),
        };
        let points = certificate
            .iter_extensions()
            .find(|extension| extension.oid.to_id_string() == "2.5.29.31")
            .map(|extension| DistributionPoint::parse_all(extension.value));
        let points = points.map_or(Some(Vec::new()), |points| points);
        let points = points.ok_or(CertificateError::BadEncoding)?;
        let subject = Subject { is_ca, issuer: certificate.issuer().as_raw(), points: &points };
        crl::check(&lists, certificate.raw_serial(), &subject, self.grace, now)
    }

    fn crls_of_intermediate(&self, issuer: &X509Certificate<'_>) -> Vec<Arc<Crl>> {
        let usage = issuer.key_usage().ok().flatten();
        if usage.is_some_and(|usage| !usage.value.crl_sign()) {
            return Vec::new();
        }
        let key = &issuer.public_key().subject_public_key.data;
        let named = self.crls.iter().filter(|crl| crl.names(issuer.subject().as_raw()));
        let signed: Vec<_> =
            named.filter(|crl| crl.is_signed_by(key, &self.algorithms)).cloned().collect();
        crl::in_force(&signed)
    }

    /// The file of a CRL that counts and whose `nextUpdate` has passed.
    pub fn first_stale_crl(&self, now: SystemTime) -> Option<String> {
        let stale = self.crls.iter().find(|crl| crl.next_update < now);
        stale.map(|crl| crl.path.display().to_string())
    }

    /// How many of the CRLs that count are past their grace, and vouch for no certificate any more.
    pub fn past_grace(&self, now: SystemTime) -> usize {
        self.crls.iter().filter(|crl| crl.ends(self.grace) <= now).count()
    }

    /// The files of CRLs, and when the first list that counts in each promised its successor.
    pub fn crls(&self) -> BTreeMap<String, SystemTime> {
        let mut files = BTreeMap::new();
        for crl in &self.crls {
            let first = files.entry(crl.path.display().to_string()).or_insert(crl.next_update);
            *first = (*first).min(crl.next_update);
        }
        files
    }

    /// SHA-256 of all CAs and of the CRLs that count: what is let in has changed when this has, or
    /// [`past_grace`](Self::past_grace).
    pub fn fingerprint(&self) -> [u8; 32] {
        self.fingerprint
    }

    /// What is allowed and worth a word to an operator, one sentence a CA.
    pub fn notes(&self) -> Vec<String> {
        self.anchors.iter().filter_map(|anchor| anchor.note.clone()).collect()
    }
}

/// A CA's own lists. An error names the list at fault, or none where the CA has no list.
fn crls_of<'a>(
    anchor: &Anchor,
    crls: &'a [Arc<Crl>],
    algorithms: &WebPkiSupportedAlgorithms,
) -> Result<Vec<Arc<Crl>>, (Option<&'a std::path::Path>, String)> {
    let subject = &anchor.name.subject;
    let named = || crls.iter().filter(|crl| crl.names(&anchor.subject));
    let signed: Vec<_> =
        named().filter(|crl| crl.is_signed_by(&anchor.public_key, algorithms)).cloned().collect();
    let Some(first) = signed.first() else {
        let Some(other) = named().next() else {
            let reason =
                format!("there is no CRL of {subject}; with `crl` set, every client CA needs one");
            return Err((None, reason));
        };
        let reason = format!(
            "its CRL bears the name {subject} and another key's signature; fetch the list that \
             this CA has signed"
        );
        return Err((Some(&other.path), reason));
    };
    if !anchor.may_sign_crls() {
        let reason =
            format!("{subject}, which has signed it, may not sign CRLs (keyUsage without cRLSign)");
        let path = crls.iter().find(|crl| Arc::ptr_eq(crl, first)).map(|crl| &*crl.path);
        return Err((path, reason));
    }
    Ok(crl::in_force(&signed))
}

/// Whether a list counts: it is no CA's here, or its CA has no newer one of its scope.
fn is_in_force(crl: &Arc<Crl>, anchors: &[Anchor], algorithms: &WebPkiSupportedAlgorithms) -> bool {
    let signers = anchors.iter().filter(|anchor| {
        crl.names(&anchor.subject) && crl.is_signed_by(&anchor.public_key, algorithms)
    });
    let mut counts = signers.map(|anchor| anchor.crls.iter().any(|own| Arc::ptr_eq(own, crl)));
    counts.next().is_none_or(|first| first || counts.any(|counts| counts))
}

/// As rustls words a refusal, except that a signature of another key, under the name of a CA here,
/// makes an unknown issuer: two CAs may bear one name.
fn in_rustls_words(error: webpki::Error) -> CertificateError {
    use webpki::Error as E;
    match error {
        E::BadDer | E::BadDerTime | E::TrailingData(_) => CertificateError::BadEncoding,
        E::CertNotValidYet { time, not_before } => {
            CertificateError::NotValidYetContext { time, not_before }
        }
        E::CertExpired { time, not_after } => CertificateError::ExpiredContext { time, not_after },
        E::InvalidCertValidity => CertificateError::Expired,
        E::UnknownIssuer | E::InvalidSignatureForPublicKey => CertificateError::UnknownIssuer,
        E::RequiredEkuNotFoundContext(_) => CertificateError::InvalidPurpose,
        E::CaUsedAsEndEntity => unfit(
            "the client certificate is a CA's own (basicConstraints CA:TRUE); have one issued \
             without it",
        ),
        E::EndEntityUsedAsCa => unfit(
            "a certificate that is no CA (basicConstraints without CA:TRUE) has signed another one",
        ),
        E::PathLenConstraintViolated => {
            unfit("an intermediate allows fewer intermediates below it (pathLenConstraint)")
        }
        E::NameConstraintViolation => unfit(
            "its names are not within a CA's nameConstraints, or an intermediate constrains URIs or \
             directory names, which is evaluated for CAs in client_ca only: name that CA there",
        ),
        E::UnsupportedCriticalExtension => unfit(
            "one of its certificates has a critical extension that is not supported; where it is an \
             intermediate's policyConstraints or inhibitAnyPolicy, name that CA in client_ca",
        ),
        other => CertificateError::Other(OtherError(Arc::new(other))),
    }
}

/// The question that a handshake asks of [`ClientTrust`].
#[derive(Debug)]
pub(super) struct ClientVerifier {
    trust: Arc<ClientTrust>,
    mandatory: bool,
}

impl ClientVerifier {
    pub(super) fn new(trust: Arc<ClientTrust>, mandatory: bool) -> Self {
        Self { trust, mandatory }
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.trust.subjects
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let mut chain = vec![end_entity.clone()];
        chain.extend(intermediates.iter().cloned());
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(now.as_secs());
        self.trust.verify(&chain, now).map(|_| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.trust.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.trust.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.trust.algorithms.supported_schemes()
    }
}
