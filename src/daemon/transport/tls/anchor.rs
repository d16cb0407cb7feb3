//! One client CA: what its certificate must be to be trusted, and what it demands of the chains
//! below it.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use aws_lc_rs::digest::{SHA256, digest};
use rustls::{CertificateError, OtherError};
use rustls_pki_types::{CertificateDer, Der, TrustAnchor};
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::{FromDer, X509Certificate, X509Version};

use super::TlsError;
use super::constraints::Constraints;
use super::crl::Crl;
use super::der::only;
use super::files::refused;

const SEQUENCE: u8 = 0x30;

/// The CA that vouches for a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnchorName {
    /// The bundle of `client_ca` that it is in.
    pub bundle: Arc<str>,
    /// Its subject, as text.
    pub subject: String,
    /// SHA-256 of its certificate.
    pub sha256: [u8; 32],
}

/// One CA of a bundle, with its revocation lists.
#[derive(Debug)]
pub(super) struct Anchor {
    pub(super) name: Arc<AnchorName>,
    pub(super) trusted: TrustAnchor<'static>,
    /// Its subject: the Name, DER.
    pub(super) subject: Vec<u8>,
    /// The BIT STRING of its public key.
    pub(super) public_key: Vec<u8>,
    path_length: Option<u32>,
    constraints: Constraints,
    may_sign_crls: bool,
    /// What an operator should know about it.
    pub(super) note: Option<String>,
    /// The lists that it has signed and that count; none where no list is configured.
    pub(super) crls: Vec<Arc<Crl>>,
}

/// Why a chain was refused that the library found good.
#[derive(Debug)]
struct Unfit(String);

impl std::fmt::Display for Unfit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unfit {}

/// The refusal with a sentence; the peer is told `certificate_unknown`.
pub(super) fn unfit(reason: impl Into<String>) -> CertificateError {
    CertificateError::Other(OtherError(Arc::new(Unfit(reason.into()))))
}

impl Anchor {
    /// Reads a CA's certificate: one that may sign others, and whose demands can be met.
    pub(super) fn parse(
        bundle: &Arc<str>,
        path: &Path,
        der: &CertificateDer<'_>,
    ) -> Result<Self, TlsError> {
        let (rest, ca) = X509Certificate::from_der(der)
            .map_err(|_| refused(path, "it holds a certificate that is not X.509"))?;
        let no_ca = |reason: &str| refused(path, &format!("{}: {reason}", ca.subject()));
        if !rest.is_empty() {
            return Err(no_ca("there are bytes behind the certificate"));
        }
        if ca.version() != X509Version::V3 {
            return Err(no_ca(
                "it is a version 1 certificate, which does not say whether it is a \
                              CA; have the CA's certificate issued as version 3",
            ));
        }
        let basic = ca.basic_constraints().ok().flatten();
        if !basic.as_ref().is_some_and(|basic| basic.value.ca) {
            return Err(no_ca(
                "it is no CA (basicConstraints without CA:TRUE); the holder of its key \
                              could make certificates for any caller. Name the CA that issued it, \
                              and leave certificates of clients and servers out of this file",
            ));
        }
        let usage = ca.key_usage().ok().flatten();
        if usage.as_ref().is_some_and(|usage| !usage.value.key_cert_sign()) {
            return Err(no_ca("it may not sign certificates (keyUsage without keyCertSign)"));
        }
        let constraints = extensions(&ca).map_err(|reason| no_ca(&reason))?;
        let damaged = || no_ca("its certificate is damaged");
        let inner = |der| only(der, SEQUENCE).map(<[u8]>::to_vec).ok_or_else(damaged);
        let subject = ca.subject().as_raw().to_vec();
        Ok(Self {
            name: Arc::new(AnchorName {
                bundle: bundle.clone(),
                subject: ca.subject().to_string(),
                sha256: digest(&SHA256, der).as_ref().try_into().expect("SHA-256 has 32 bytes"),
            }),
            trusted: TrustAnchor {
                subject: Der::from(inner(&subject)?),
                subject_public_key_info: Der::from(inner(ca.public_key().raw)?),
                name_constraints: constraints.other_forms.clone().map(Der::from),
            },
            subject,
            public_key: ca.public_key().subject_public_key.data.to_vec(),
            path_length: basic.and_then(|basic| basic.value.path_len_constraint),
            constraints,
            may_sign_crls: usage.is_none_or(|usage| usage.value.crl_sign()),
            note: note(&ca, path),
            crls: Vec::new(),
        })
    }

    /// Whether its keyUsage, where there is one, has cRLSign.
    pub(super) fn may_sign_crls(&self) -> bool {
        self.may_sign_crls
    }

    /// Holds a chain, whose signatures are good, to what this CA demands: `chain[0]` is the client's
    /// certificate, and the last one the one that this CA has signed.
    pub(super) fn demands(&self, chain: &[X509Certificate<'_>]) -> Result<(), CertificateError> {
        let below = chain.iter().skip(1).filter(|ca| ca.subject() != ca.issuer()).count();
        if self.path_length.is_some_and(|most| below > most as usize) {
            return Err(unfit(format!(
                "{} allows fewer intermediates below it (pathLenConstraint)",
                self.name.subject
            )));
        }
        for certificate in chain {
            self.constraints.check(certificate).map_err(|name| {
                unfit(format!("{} does not allow {name} (nameConstraints)", self.name.subject))
            })?;
        }
        Ok(())
    }
}

/// Holds a chain to its own key usages (RFC 8446 4.4.2.2, RFC 5280 6.1.4 (n)).
pub(super) fn key_usages(chain: &[X509Certificate<'_>]) -> Result<(), CertificateError> {
    for (depth, certificate) in chain.iter().enumerate() {
        let Some(usage) = certificate.key_usage().map_err(|_| CertificateError::BadEncoding)?
        else {
            continue;
        };
        if depth == 0 && !usage.value.digital_signature() {
            return Err(unfit(
                "the client certificate's keyUsage is without digitalSignature, so its key may not \
                 sign a handshake",
            ));
        }
        if depth > 0 && !usage.value.key_cert_sign() {
            return Err(unfit(format!(
                "the intermediate {} may not sign certificates (keyUsage without keyCertSign)",
                certificate.subject()
            )));
        }
    }
    Ok(())
}

/// The name constraints; an error about what is critical and cannot be met.
fn extensions(ca: &X509Certificate<'_>) -> Result<Constraints, String> {
    let mut constraints = Constraints::default();
    for extension in ca.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::NameConstraints(parsed) => {
                constraints = Constraints::parse(extension.value, parsed)?;
            }
            ParsedExtension::PolicyConstraints(policy)
                if policy.require_explicit_policy.is_some() =>
            {
                return Err("it demands a certificate policy of each certificate below it \
                            (policyConstraints, requireExplicitPolicy), and policies are not \
                            evaluated here; name a CA without it"
                    .to_owned());
            }
            // Of no effect where no policy is demanded.
            ParsedExtension::PolicyConstraints(_)
            | ParsedExtension::InhibitAnyPolicy(_)
            | ParsedExtension::PolicyMappings(_)
            | ParsedExtension::CertificatePolicies(_)
            | ParsedExtension::BasicConstraints(_)
            | ParsedExtension::KeyUsage(_)
            | ParsedExtension::ExtendedKeyUsage(_)
            | ParsedExtension::SubjectAlternativeName(_) => {}
            ParsedExtension::ParseError { .. } => {
                return Err(format!("its extension {} is damaged", extension.oid));
            }
            _ if extension.critical => {
                return Err(format!(
                    "it has the critical extension {}, which is not supported; name another CA",
                    extension.oid
                ));
            }
            _ => {}
        }
    }
    Ok(constraints)
}

/// What is allowed and worth a word.
fn note(ca: &X509Certificate<'_>, path: &Path) -> Option<String> {
    let (subject, path) = (ca.subject(), path.display());
    let usage = ca.extended_key_usage().ok().flatten();
    let self_signed = ca.subject() == ca.issuer();
    if self_signed && usage.is_some_and(|usage| usage.value.client_auth || usage.value.server_auth)
    {
        return Some(format!(
            "{path}: {subject} is a certificate of a client or server that is its own CA: the holder \
             of its key can make certificates for any caller"
        ));
    }
    let ends = ca.validity().not_after;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    (ends.timestamp() < now.as_secs().cast_signed()).then(|| {
        format!(
            "{path}: {subject} has expired ({ends}); its clients are let in until it is taken out \
             of this file"
        )
    })
}
