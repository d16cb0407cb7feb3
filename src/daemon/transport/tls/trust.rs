//! Which client certificates are let in: each named bundle of CAs with its revocation lists.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{Context, SHA256};
use rustls::SignatureScheme;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore};
use rustls_pki_types::{CertificateDer, UnixTime};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::crl::{Belongs, Crl};
use super::files::{certificates, read_trusted, refused};
use super::{DEMO, TlsError};
use crate::daemon::config;
use crate::pki::is_demo_ca;

/// The client CAs, by bundle, and what each has revoked.
#[derive(Debug)]
pub struct ClientTrust {
    anchors: Vec<Anchor>,
    subjects: Vec<DistinguishedName>,
    algorithms: WebPkiSupportedAlgorithms,
    crls: Vec<(String, SystemTime)>,
    fingerprint: [u8; 32],
}

/// One CA. It has a verifier of its own, so that a CRL meets no CA but the one that signed it: two
/// CAs may bear the same name while one follows the other.
#[derive(Debug)]
struct Anchor {
    bundle: Arc<str>,
    lenient: Arc<dyn ClientCertVerifier>,
    strict: Arc<dyn ClientCertVerifier>,
    /// From then on, stale CRLs close the door.
    strict_from: Option<SystemTime>,
}

impl ClientTrust {
    pub(super) fn load(
        config: &config::Tls,
        allow_demo: bool,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, TlsError> {
        let crls = Crl::load(&config.crl)?;
        let mut loading = Loading { config, provider, crls: &crls, seen: Vec::new() };
        let mut anchors = Vec::new();
        let mut fingerprint = Context::new(&SHA256);
        for (bundle, path) in &config.client_ca {
            let bundle: Arc<str> = bundle.as_str().into();
            let cas = certificates(path, &read_trusted(path)?)?;
            if !allow_demo && is_demo_ca(&cas) {
                return Err(refused(path, DEMO));
            }
            fingerprint.update(bundle.as_bytes());
            for ca in cas {
                fingerprint.update(&ca);
                anchors.push(loading.anchor(&bundle, path, ca)?);
            }
        }
        for crl in &crls {
            fingerprint.update(&crl.der);
        }
        let mut subjects: Vec<DistinguishedName> = Vec::new();
        for subject in anchors.iter().flat_map(|anchor| anchor.lenient.root_hint_subjects()) {
            if !subjects.iter().any(|known| known.as_ref() == subject.as_ref()) {
                subjects.push(subject.clone());
            }
        }
        Ok(Self {
            anchors,
            subjects,
            algorithms: provider.signature_verification_algorithms,
            crls: crls
                .iter()
                .map(|crl| (crl.path.display().to_string(), crl.next_update))
                .collect(),
            fingerprint: fingerprint.finish().as_ref().try_into().expect("SHA-256 has 32 bytes"),
        })
    }

    /// Verifies a client's chain (`chain[0]` is its own certificate) as a handshake does: path,
    /// time, purpose, revocation. Gives the bundle that it chains to.
    pub fn verify(&self, chain: &[CertificateDer<'_>], now: SystemTime) -> Result<Arc<str>, Error> {
        let (own, intermediates) = chain.split_first().ok_or(Error::NoCertificatesPresented)?;
        let since_epoch = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let unix_now = UnixTime::since_unix_epoch(since_epoch);
        let mut refusal = Error::InvalidCertificate(CertificateError::UnknownIssuer);
        for anchor in &self.anchors {
            let verifier = if anchor.closed(now) { &anchor.strict } else { &anchor.lenient };
            match verifier.verify_client_cert(own, intermediates, unix_now) {
                Ok(_) => return Ok(anchor.bundle.clone()),
                Err(Error::InvalidCertificate(CertificateError::UnknownIssuer)) => {}
                Err(error) => refusal = error,
            }
        }
        Err(refusal)
    }

    /// The file of a CRL whose `nextUpdate` has passed.
    pub fn first_stale_crl(&self, now: SystemTime) -> Option<&str> {
        self.crls.iter().find(|(_, next_update)| *next_update < now).map(|(path, _)| path.as_str())
    }

    /// How many CAs let nobody in any more, because a CRL of theirs is past its grace.
    pub fn past_grace(&self, now: SystemTime) -> usize {
        self.anchors.iter().filter(|anchor| anchor.closed(now)).count()
    }

    /// The files of CRLs, and when the first list in each promised its successor.
    pub fn crls(&self) -> BTreeMap<&str, SystemTime> {
        let mut files = BTreeMap::new();
        for (path, next_update) in &self.crls {
            let first = files.entry(path.as_str()).or_insert(*next_update);
            *first = (*first).min(*next_update);
        }
        files
    }

    /// SHA-256 of all CAs and CRLs: what is let in has changed when this has, or
    /// [`past_grace`](Self::past_grace).
    pub fn fingerprint(&self) -> [u8; 32] {
        self.fingerprint
    }
}

impl Anchor {
    fn closed(&self, now: SystemTime) -> bool {
        self.strict_from.is_some_and(|from| from <= now)
    }
}

struct Loading<'a> {
    config: &'a config::Tls,
    provider: &'a Arc<CryptoProvider>,
    crls: &'a [Crl],
    seen: Vec<(CertificateDer<'static>, Arc<str>)>,
}

impl Loading<'_> {
    fn anchor(
        &mut self,
        bundle: &Arc<str>,
        path: &Path,
        der: CertificateDer<'static>,
    ) -> Result<Anchor, TlsError> {
        if let Some((_, other)) = self.seen.iter().find(|(ca, other)| *ca == der && other != bundle)
        {
            let reason = format!(
                "one of its CAs is in the bundle {other:?} too: whose client is it then? Keep it \
                 in one"
            );
            return Err(refused(path, &reason));
        }
        let (_, ca) = X509Certificate::from_der(&der)
            .map_err(|_| refused(path, "it holds a certificate that is not X.509"))?;
        let (crls, strict_from) = self.crls_of(path, &ca)?;
        let mut roots = RootCertStore::empty();
        roots
            .add(der.clone())
            .map_err(|error| refused(path, &format!("{} is no CA: {error}", ca.subject())))?;
        let roots = Arc::new(roots);
        let verifier = |strict: bool| {
            let builder =
                WebPkiClientVerifier::builder_with_provider(roots.clone(), self.provider.clone())
                    .with_crls(crls.iter().map(|crl| crl.der.clone()));
            let builder = if strict { builder.enforce_revocation_expiration() } else { builder };
            builder.build().map_err(|error| {
                refused(path, &format!("the CRLs for {} cannot be used: {error}", ca.subject()))
            })
        };
        let lenient = verifier(false)?;
        let strict = if crls.is_empty() { lenient.clone() } else { verifier(true)? };
        let anchor = Anchor { bundle: bundle.clone(), lenient, strict, strict_from };
        self.seen.push((der, bundle.clone()));
        Ok(anchor)
    }

    /// A CA's own lists, with those of intermediates, and when the first of them closes the door.
    fn crls_of(
        &self,
        path: &Path,
        ca: &X509Certificate<'_>,
    ) -> Result<(Vec<&Crl>, Option<SystemTime>), TlsError> {
        if self.crls.is_empty() {
            return Ok((Vec::new(), None));
        }
        let (mut used, mut own, mut forged) = (Vec::new(), false, None);
        for crl in self.crls {
            match crl.belongs_to(ca, &self.provider.signature_verification_algorithms) {
                Belongs::Signed => own = true,
                Belongs::No => {}
                Belongs::NameOnly => {
                    forged = Some(crl);
                    continue;
                }
            }
            used.push(crl);
        }
        match (own, forged) {
            (true, _) => {}
            (false, Some(crl)) => {
                let reason =
                    format!("its CRL bears the name {} and another key's signature", ca.subject());
                return Err(refused(&crl.path, &reason));
            }
            (false, None) => {
                let reason = format!(
                    "there is no CRL of {}; with `crl` set, every client CA needs one",
                    ca.subject()
                );
                return Err(refused(path, &reason));
            }
        }
        let first = used.iter().map(|crl| crl.next_update).min();
        Ok((used, first.map(|next_update| next_update + self.config.crl_grace)))
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
