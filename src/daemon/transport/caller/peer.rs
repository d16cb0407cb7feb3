//! Who is at the other end of a connection.

use std::borrow::Cow;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use aws_lc_rs::digest::{SHA256, digest};
use rustls_pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::Unidentified;
use crate::daemon::transport::tls::anchor::AnchorName;
use crate::daemon::transport::tls::trust::Verified;
use crate::daemon::transport::verdicts::Verdicts;
use crate::spiffe;

/// Who is at the other end of a connection. Each request carries it as `Arc<Peer>`.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Where the connection comes from.
    pub address: PeerAddress,
    /// Its certificate, already verified; none on a Unix socket, and where a token is enough.
    pub certificate: Option<PeerCertificate>,
    /// The tokens that were found good on this connection.
    pub verdicts: Verdicts,
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
    /// The CA that vouches for it, and the bundle of client CAs that it is in.
    pub anchor: Arc<AnchorName>,
    /// Its URI SANs, as they are.
    pub uris: Box<[Box<str>]>,
    /// Its DNS SANs, in lower case.
    pub dns: Box<[Box<str>]>,
    /// SHA-256 of the certificate.
    pub sha256: [u8; 32],
    /// Its serial number, big-endian as in the certificate.
    pub serial: Box<[u8]>,
    /// From then on its chain is no longer valid: its own end, or that of an intermediate.
    pub not_after: SystemTime,
    pub(super) chain: Box<[CertificateDer<'static>]>,
}

/// A certificate whose names cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("the client certificate cannot be parsed: {0}")]
pub struct MalformedCertificate(&'static str);

impl Peer {
    /// A peer that showed a certificate, which was verified. `chain[0]` is the peer's own.
    pub fn with_certificate(
        address: SocketAddr,
        verified: Verified,
        chain: &[CertificateDer<'_>],
    ) -> Result<Self, MalformedCertificate> {
        let certificate = Some(PeerCertificate::parse(verified, chain)?);
        Ok(Self { address: PeerAddress::Tcp(address), certificate, verdicts: Verdicts::default() })
    }

    /// A peer over TLS that showed no certificate, where none is needed.
    pub fn without_certificate(address: SocketAddr) -> Self {
        let address = PeerAddress::Tcp(address);
        Self { address, certificate: None, verdicts: Verdicts::default() }
    }

    /// A process at the other end of a Unix socket.
    pub fn with_uid(uid: u32, pid: Option<i32>) -> Self {
        let address = PeerAddress::Unix { uid, pid };
        Self { address, certificate: None, verdicts: Verdicts::default() }
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
    fn parse(
        verified: Verified,
        chain: &[CertificateDer<'_>],
    ) -> Result<Self, MalformedCertificate> {
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
        Ok(Self {
            anchor: verified.anchor,
            uris: uris.into(),
            dns: dns.into(),
            sha256: digest(&SHA256, own).as_ref().try_into().expect("SHA-256 has 32 bytes"),
            serial: certificate.raw_serial().into(),
            not_after: verified.not_after,
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
            [uri] if spiffe::is_id(uri) => Ok(Some(uri)),
            [_] => Err(Unidentified::NotSpiffe),
            _ => Err(Unidentified::SeveralUris),
        }
    }
}

impl fmt::Debug for PeerCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerCertificate")
            .field("ca", &self.anchor.bundle)
            .field("uris", &self.uris)
            .field("dns", &self.dns)
            .field("sha256", &hex::encode(self.sha256))
            .field("serial", &hex::encode(&self.serial))
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}
