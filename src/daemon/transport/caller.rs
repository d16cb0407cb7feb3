//! Which caller of the configuration a peer is.

mod peer;
#[cfg(test)]
mod tests;
mod token_callers;

use std::collections::HashMap;
use std::time::SystemTime;

use claviger_tokens::Claims;

use crate::daemon::config::{self, Identity};
pub use peer::{MalformedCertificate, Peer, PeerAddress, PeerCertificate};
use token_callers::TokenCallers;

/// Uids that are never a caller: root (0), and 65534, which stands for users without a mapping.
const NO_CALLERS_UIDS: [u32; 2] = [0, 65534];

/// The place of a caller in the configuration's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallerIndex(pub usize);

/// Why a peer is no caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unidentified {
    /// TLS without a client certificate.
    #[error("the peer showed no client certificate")]
    NoCertificate,
    /// The time of the certificate, or of an intermediate, is over.
    #[error("the client certificate, or an intermediate of its chain, has expired")]
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

/// The configured callers, by identity: finding one costs the same with one and with 10,000.
#[derive(Debug)]
pub struct Callers {
    spiffe: HashMap<Box<str>, Vec<Entry>>,
    dns: HashMap<Box<str>, Vec<Entry>>,
    uid: HashMap<u32, Vec<Entry>>,
    tokens: TokenCallers,
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
        let mut index = Self {
            spiffe: HashMap::new(),
            dns: HashMap::new(),
            uid: HashMap::new(),
            tokens: TokenCallers::default(),
            several_cas,
        };
        for (place, caller) in callers.iter().enumerate() {
            for one in &caller.matches {
                let entries = match &one.identity {
                    Identity::Spiffe(id) => index.spiffe.entry(id.as_str().into()).or_default(),
                    Identity::Dns(name) => {
                        index.dns.entry(name.to_ascii_lowercase().into()).or_default()
                    }
                    Identity::Uid(uid) => index.uid.entry(*uid).or_default(),
                    Identity::Token(token) => {
                        index.tokens.add(token, one.ca.as_deref(), CallerIndex(place));
                        continue;
                    }
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

    /// Which caller a good token is, on this peer's connection: exactly one entry must match. No entry
    /// that names no issuer matches a call with a token.
    pub fn identify_token(
        &self,
        peer: &Peer,
        issuer: &str,
        subject: &str,
        claims: &Claims,
    ) -> Result<CallerIndex, Unidentified> {
        if peer.certificate.as_ref().is_some_and(|c| c.not_after < SystemTime::now()) {
            return Err(Unidentified::Expired);
        }
        only(self.tokens.matching(peer, issuer, subject, claims))
    }

    fn identify_certificate(
        &self,
        certificate: &PeerCertificate,
    ) -> Result<CallerIndex, Unidentified> {
        if certificate.not_after < SystemTime::now() {
            return Err(Unidentified::Expired);
        }
        let by_this_ca = |entry: &&Entry| match &entry.ca {
            Some(ca) => **ca == *certificate.anchor.bundle,
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
