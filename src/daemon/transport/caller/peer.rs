//! Who is at the other end of a connection.

use std::borrow::Cow;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA256, digest};
use rustls_pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::Unidentified;

/// Who is at the other end of a connection. Each request carries it as `Arc<Peer>`.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Where the connection comes from.
    pub address: PeerAddress,
    /// Its certificate, already verified; none on a Unix socket.
    pub certificate: Option<PeerCertificate>,
}

/// Where a connection comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerAddress {
    /// A TCP connection.
    Tcp(SocketAddr),
    /// A Unix socket; the user as the kernel knows it.
    Unix {
        /// The effective user of the process that connected.
        uid: u32,
        /// That process, where the system tells.
        pid: Option<i32>,
    },
}

/// What a verified client certificate says.
#[derive(Clone)]
pub struct PeerCertificate {
    /// The client CA bundle that it chains to.
    pub ca: Arc<str>,
    /// Its URI SANs, as they are.
    pub uris: Box<[Box<str>]>,
    /// Its DNS SANs, in lower case.
    pub dns: Box<[Box<str>]>,
    /// SHA-256 of the certificate.
    pub sha256: [u8; 32],
    /// Its serial number, big-endian as in the certificate.
    pub serial: Box<[u8]>,
    /// From then on it is no longer valid.
    pub not_after: SystemTime,
    pub(super) chain: Box<[CertificateDer<'static>]>,
}

/// A certificate whose names cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("the client certificate cannot be parsed: {0}")]
pub struct MalformedCertificate(&'static str);

impl Peer {
    /// A peer that showed a certificate, which `ca` has verified. `chain[0]` is the peer's own.
    pub fn with_certificate(
        address: SocketAddr,
        ca: Arc<str>,
        chain: &[CertificateDer<'_>],
    ) -> Result<Self, MalformedCertificate> {
        let certificate = Some(PeerCertificate::parse(ca, chain)?);
        Ok(Self { address: PeerAddress::Tcp(address), certificate })
    }

    /// A process at the other end of a Unix socket.
    pub fn with_uid(uid: u32, pid: Option<i32>) -> Self {
        Self { address: PeerAddress::Unix { uid, pid }, certificate: None }
    }

    /// The identity as audit records name it: the URI SAN, else the first DNS SAN, else the uid.
    pub fn identity(&self) -> Option<Cow<'_, str>> {
        match (&self.certificate, self.address) {
            (Some(certificate), _) => {
                let name = certificate.uris.first().or(certificate.dns.first())?;
                Some(Cow::Borrowed(name))
            }
            (None, PeerAddress::Unix { uid, .. }) => Some(Cow::Owned(format!("uid:{uid}"))),
            (None, PeerAddress::Tcp(_)) => None,
        }
    }
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix { uid, pid: Some(pid) } => write!(f, "unix:uid={uid},pid={pid}"),
            Self::Unix { uid, pid: None } => write!(f, "unix:uid={uid}"),
        }
    }
}

impl PeerCertificate {
    fn parse(ca: Arc<str>, chain: &[CertificateDer<'_>]) -> Result<Self, MalformedCertificate> {
        let own = chain.first().ok_or(MalformedCertificate("the chain is empty"))?;
        let (_, certificate) =
            X509Certificate::from_der(own).map_err(|_| MalformedCertificate("not X.509"))?;
        let (mut uris, mut dns) = (Vec::new(), Vec::new());
        let names = certificate
            .subject_alternative_name()
            .map_err(|_| MalformedCertificate("its SAN extension appears twice or is damaged"))?;
        for name in names.iter().flat_map(|extension| &extension.value.general_names) {
            match name {
                GeneralName::URI(uri) => uris.push((*uri).into()),
                GeneralName::DNSName(name) => dns.push(name.to_ascii_lowercase().into()),
                GeneralName::Invalid(..) => {
                    return Err(MalformedCertificate("one of its SANs is damaged"));
                }
                _ => {}
            }
        }
        let not_after = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0);
        Ok(Self {
            ca,
            uris: uris.into(),
            dns: dns.into(),
            sha256: digest(&SHA256, own).as_ref().try_into().expect("SHA-256 has 32 bytes"),
            serial: certificate.raw_serial().into(),
            not_after: SystemTime::UNIX_EPOCH + Duration::from_secs(not_after),
            chain: chain.iter().map(|der| der.clone().into_owned()).collect(),
        })
    }

    /// The certificate and the intermediates that came with it, DER.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The one URI SAN, when it is a SPIFFE ID.
    pub(super) fn spiffe_id(&self) -> Result<Option<&str>, Unidentified> {
        match &*self.uris {
            [] => Ok(None),
            [uri] if is_spiffe_id(uri) => Ok(Some(uri)),
            [_] => Err(Unidentified::NotSpiffe),
            _ => Err(Unidentified::SeveralUris),
        }
    }
}

impl fmt::Debug for PeerCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerCertificate")
            .field("ca", &self.ca)
            .field("uris", &self.uris)
            .field("dns", &self.dns)
            .field("sha256", &hex::encode(self.sha256))
            .field("serial", &hex::encode(&self.serial))
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// Whether this is the SPIFFE ID of a workload, by the SPIFFE ID standard, section 2: a trust
/// domain in lower case and a path; no user, port, query, fragment or percent-encoding.
pub fn is_spiffe_id(uri: &str) -> bool {
    let Some((domain, path)) = uri.strip_prefix("spiffe://").and_then(|rest| rest.split_once('/'))
    else {
        return false;
    };
    let domain_character =
        |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'.' | b'-' | b'_');
    let path_character = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'-' | b'_');
    uri.len() <= 2048
        && (1..=255).contains(&domain.len())
        && domain.bytes().all(domain_character)
        && path.split('/').all(|segment| {
            !matches!(segment, "" | "." | "..") && segment.bytes().all(path_character)
        })
}
