//! Who is at the other end of a connection, and which caller of the configuration that is.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA256, digest};
use rustls_pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::daemon::config::{self, Identity};

/// Users that never are a caller: root, and the one that stands for "nobody".
const NO_CALLERS_UIDS: [u32; 2] = [0, 65534];

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
    chain: Box<[CertificateDer<'static>]>,
}

/// The place of a caller in the configuration's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallerIndex(pub usize);

/// Why a peer is no caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unidentified {
    /// TLS without a client certificate.
    #[error("the peer showed no client certificate")]
    NoCertificate,
    /// The certificate's time is over.
    #[error("the client certificate has expired")]
    Expired,
    /// More than one URI SAN.
    #[error("the client certificate has several URI SANs; one is the identity")]
    SeveralUris,
    /// A URI SAN that is no SPIFFE ID of a workload.
    #[error("the client certificate's URI SAN is not a SPIFFE ID (spiffe://trust-domain/path)")]
    NotSpiffe,
    /// Neither a URI nor a DNS SAN. The common name is never an identity.
    #[error("the client certificate has neither a URI SAN nor a DNS SAN")]
    NoName,
    /// User 0 or 65534.
    #[error("uid {0} never is a caller")]
    ReservedUid(u32),
    /// No entry of the configuration.
    #[error("no entry of [[callers]] matches")]
    NoCaller,
    /// Several entries of the configuration.
    #[error("several entries of [[callers]] match")]
    SeveralCallers,
}

impl Unidentified {
    /// A word for audit records; a closed set.
    pub fn reason(self) -> &'static str {
        match self {
            Self::NoCertificate => "no_certificate",
            Self::Expired => "certificate_expired",
            Self::SeveralUris => "several_uri_sans",
            Self::NotSpiffe => "not_a_spiffe_id",
            Self::NoName => "no_san",
            Self::ReservedUid(_) => "reserved_uid",
            Self::NoCaller => "no_caller_matches",
            Self::SeveralCallers => "several_callers_match",
        }
    }
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
    fn spiffe_id(&self) -> Result<Option<&str>, Unidentified> {
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

/// The configured callers, by identity: finding one costs the same with one and with 10,000.
#[derive(Debug)]
pub struct Callers {
    spiffe: HashMap<Box<str>, Vec<Entry>>,
    dns: HashMap<Box<str>, Vec<Entry>>,
    uid: HashMap<u32, Vec<Entry>>,
    several_cas: bool,
}

/// One identity of one caller; in a checked configuration an identity has one for each CA at most.
#[derive(Debug)]
struct Entry {
    ca: Option<Box<str>>,
    caller: CallerIndex,
}

impl Callers {
    /// Indexes the callers. With several client CA bundles, an entry that names none matches
    /// no certificate.
    pub fn new(callers: &[config::Caller], several_cas: bool) -> Self {
        let mut index =
            Self { spiffe: HashMap::new(), dns: HashMap::new(), uid: HashMap::new(), several_cas };
        for (place, caller) in callers.iter().enumerate() {
            for one in &caller.matches {
                let entries = match &one.identity {
                    Identity::Spiffe(id) => index.spiffe.entry(id.as_str().into()).or_default(),
                    Identity::Dns(name) => {
                        index.dns.entry(name.to_ascii_lowercase().into()).or_default()
                    }
                    Identity::Uid(uid) => index.uid.entry(*uid).or_default(),
                };
                let ca = one.ca.as_deref().map(Into::into);
                entries.push(Entry { ca, caller: CallerIndex(place) });
            }
        }
        index
    }

    /// Which caller this is: exactly one entry must match. To be asked for each call, because a
    /// certificate may expire while its connection is open.
    pub fn identify(&self, peer: &Peer) -> Result<CallerIndex, Unidentified> {
        match (&peer.certificate, peer.address) {
            (Some(certificate), _) => self.identify_certificate(certificate),
            (None, PeerAddress::Unix { uid, .. }) if NO_CALLERS_UIDS.contains(&uid) => {
                Err(Unidentified::ReservedUid(uid))
            }
            (None, PeerAddress::Unix { uid, .. }) => {
                only(self.uid.get(&uid).into_iter().flatten().map(|entry| entry.caller))
            }
            (None, PeerAddress::Tcp(_)) => Err(Unidentified::NoCertificate),
        }
    }

    fn identify_certificate(
        &self,
        certificate: &PeerCertificate,
    ) -> Result<CallerIndex, Unidentified> {
        if certificate.not_after < SystemTime::now() {
            return Err(Unidentified::Expired);
        }
        let by_this_ca = |entry: &&Entry| match &entry.ca {
            Some(ca) => **ca == *certificate.ca,
            None => !self.several_cas,
        };
        if let Some(id) = certificate.spiffe_id()? {
            let entries = self.spiffe.get(id).into_iter().flatten();
            return only(entries.filter(by_this_ca).map(|entry| entry.caller));
        }
        if certificate.dns.is_empty() {
            return Err(Unidentified::NoName);
        }
        let exact = certificate.dns.iter().filter(|name| !name.contains('*'));
        let entries = exact.filter_map(|name| self.dns.get(name)).flatten();
        only(entries.filter(by_this_ca).map(|entry| entry.caller))
    }
}

/// The one caller among these; several entries of the same caller are one.
fn only(mut found: impl Iterator<Item = CallerIndex>) -> Result<CallerIndex, Unidentified> {
    let first = found.next().ok_or(Unidentified::NoCaller)?;
    if found.all(|other| other == first) { Ok(first) } else { Err(Unidentified::SeveralCallers) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::config::{Caller, Limits, Match};

    fn certificate(uris: &[&str], dns: &[&str]) -> PeerCertificate {
        let boxed = |names: &[&str]| names.iter().map(|name| Box::from(*name)).collect();
        PeerCertificate {
            ca: "clients".into(),
            uris: boxed(uris),
            dns: boxed(dns),
            sha256: [0; 32],
            serial: Box::new([1]),
            not_after: SystemTime::now() + Duration::from_mins(1),
            chain: Box::new([]),
        }
    }

    fn peer(certificate: PeerCertificate) -> Peer {
        let address = PeerAddress::Tcp("127.0.0.1:1".parse().unwrap());
        Peer { address, certificate: Some(certificate) }
    }

    fn callers(matches: &[&[(Identity, Option<&str>)]], several_cas: bool) -> Callers {
        let caller = |(place, matches): (usize, &&[(Identity, Option<&str>)])| Caller {
            name: format!("caller-{place}"),
            matches: matches
                .iter()
                .map(|(identity, ca)| Match {
                    identity: identity.clone(),
                    ca: ca.map(str::to_owned),
                })
                .collect(),
            grants: Vec::new(),
            limits: Limits::default(),
        };
        let list: Vec<_> = matches.iter().enumerate().map(caller).collect();
        Callers::new(&list, several_cas)
    }

    fn spiffe(id: &str) -> Identity {
        Identity::Spiffe(id.to_owned())
    }

    fn dns(name: &str) -> Identity {
        Identity::Dns(name.to_owned())
    }

    #[test]
    fn a_uri_san_is_the_identity_and_the_dns_sans_beside_it_are_not() {
        let callers = callers(&[&[(spiffe("spiffe://a/kc"), None)], &[(dns("kc.a"), None)]], false);
        let both = peer(certificate(&["spiffe://a/kc"], &["kc.a"]));
        assert_eq!(callers.identify(&both), Ok(CallerIndex(0)));
        let other = peer(certificate(&["spiffe://a/other"], &["kc.a"]));
        assert_eq!(callers.identify(&other), Err(Unidentified::NoCaller));
        let name = peer(certificate(&[], &["unknown.a", "kc.a"]));
        assert_eq!(callers.identify(&name), Ok(CallerIndex(1)));
    }

    #[test]
    fn names_that_are_no_identity_match_nobody() {
        let callers = callers(
            &[&[(spiffe("spiffe://a/kc"), None), (dns("*.a"), None), (dns("kc.a"), None)]],
            false,
        );
        for (uris, names, expected) in [
            (&["spiffe://a/kc", "spiffe://a/b"][..], &[][..], Unidentified::SeveralUris),
            (&["https://a/kc"], &["kc.a"], Unidentified::NotSpiffe),
            (&["spiffe://a/kc?x"], &[], Unidentified::NotSpiffe),
            (&[], &[], Unidentified::NoName),
            (&[], &["*.a"], Unidentified::NoCaller),
            (&[], &["kc.a."], Unidentified::NoCaller),
            (&[], &["x.kc.a"], Unidentified::NoCaller),
        ] {
            assert_eq!(callers.identify(&peer(certificate(uris, names))), Err(expected));
        }
    }

    #[test]
    fn two_callers_in_one_certificate_are_none_but_two_names_of_one_caller_are_one() {
        let callers = callers(&[&[(dns("a"), None), (dns("b"), None)], &[(dns("c"), None)]], false);
        assert_eq!(callers.identify(&peer(certificate(&[], &["a", "b"]))), Ok(CallerIndex(0)));
        let mixed = callers.identify(&peer(certificate(&[], &["a", "c"])));
        assert_eq!(mixed, Err(Unidentified::SeveralCallers));
    }

    #[test]
    fn the_same_name_from_two_cas_is_two_callers() {
        let callers = callers(
            &[
                &[(spiffe("spiffe://a/kc"), Some("clients"))],
                &[(spiffe("spiffe://a/kc"), Some("others"))],
                &[(dns("kc.a"), None)],
            ],
            true,
        );
        let mut named = certificate(&["spiffe://a/kc"], &[]);
        assert_eq!(callers.identify(&peer(named.clone())), Ok(CallerIndex(0)));
        named.ca = "others".into();
        assert_eq!(callers.identify(&peer(named.clone())), Ok(CallerIndex(1)));
        named.ca = "third".into();
        assert_eq!(callers.identify(&peer(named)), Err(Unidentified::NoCaller));
        let without_ca = callers.identify(&peer(certificate(&[], &["kc.a"])));
        assert_eq!(without_ca, Err(Unidentified::NoCaller));
    }

    #[test]
    fn an_expired_certificate_stops_matching_on_its_open_connection() {
        let callers = callers(&[&[(dns("a"), None)]], false);
        let mut old = certificate(&[], &["a"]);
        old.not_after = SystemTime::now() - Duration::from_secs(1);
        assert_eq!(callers.identify(&peer(old)), Err(Unidentified::Expired));
    }

    #[test]
    fn root_and_nobody_are_no_callers_even_when_configured() {
        let identities = [0, 65534, 1000].map(|uid| (Identity::Uid(uid), None));
        let callers = callers(&[&identities], false);
        assert_eq!(callers.identify(&Peer::with_uid(1000, None)), Ok(CallerIndex(0)));
        assert_eq!(callers.identify(&Peer::with_uid(1001, None)), Err(Unidentified::NoCaller));
        for uid in [0, 65534] {
            let refused = callers.identify(&Peer::with_uid(uid, None));
            assert_eq!(refused, Err(Unidentified::ReservedUid(uid)));
        }
    }

    #[test]
    fn tcp_without_a_certificate_is_nobody() {
        let callers = callers(&[&[(dns("a"), None)]], false);
        let address = PeerAddress::Tcp("127.0.0.1:1".parse().unwrap());
        let refused = callers.identify(&Peer { address, certificate: None });
        assert_eq!(refused, Err(Unidentified::NoCertificate));
    }

    #[test]
    fn spiffe_ids_follow_the_standard() {
        for id in ["spiffe://example.org/key-connector", "spiffe://a_b-1.c/x/Y.z_1"] {
            assert!(is_spiffe_id(id), "{id}");
        }
        let long = format!("spiffe://a/{}", "x".repeat(2048));
        for id in [
            "spiffe://example.org",
            "spiffe://example.org/",
            "spiffe:///x",
            "SPIFFE://a/x",
            "spiffe://A/x",
            "spiffe://a:1/x",
            "spiffe://u@a/x",
            "spiffe://a/x?q",
            "spiffe://a/x#f",
            "spiffe://a/%41",
            "spiffe://a//x",
            "spiffe://a/x/",
            "spiffe://a/../x",
            "spiffe://a/./x",
            "https://a/x",
            &long,
        ] {
            assert!(!is_spiffe_id(id), "{id}");
        }
    }
}
