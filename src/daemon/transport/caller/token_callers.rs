//! The configured callers by token.

use std::collections::HashMap;

use claviger_tokens::Claims;

use super::{CallerIndex, Peer, PeerAddress};
use crate::daemon::config::{Identity, TokenMatch};

/// The callers by token, by issuer and subject: finding one by its subject costs the same with one and
/// with 10,000.
#[derive(Debug, Default)]
pub(super) struct TokenCallers(HashMap<Box<str>, OfIssuer>);

#[derive(Debug, Default)]
struct OfIssuer {
    by_subject: HashMap<Box<str>, Vec<Entry>>,
    by_claims: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    token: TokenMatch,
    /// The bundle of client CAs that the connection's certificate must be of; none: any.
    ca: Option<Box<str>>,
    caller: CallerIndex,
}

impl TokenCallers {
    pub(super) fn add(&mut self, token: &TokenMatch, ca: Option<&str>, caller: CallerIndex) {
        let entry = Entry { token: token.clone(), ca: ca.map(Into::into), caller };
        let of_issuer = self.0.entry(token.issuer.as_str().into()).or_default();
        match &token.subject {
            Some(subject) => {
                of_issuer.by_subject.entry(subject.as_str().into()).or_default().push(entry);
            }
            None => of_issuer.by_claims.push(entry),
        }
    }

    /// The caller of each entry that matches.
    pub(super) fn matching(
        &self,
        peer: &Peer,
        issuer: &str,
        subject: &str,
        claims: &Claims,
    ) -> impl Iterator<Item = CallerIndex> {
        let of_issuer = self.0.get(issuer);
        let by_subject = of_issuer.and_then(|of| of.by_subject.get(subject)).into_iter().flatten();
        let by_claims = of_issuer.into_iter().flat_map(|of| &of.by_claims);
        let entries = by_subject.chain(by_claims);
        entries.filter(|entry| entry.matches(peer, claims)).map(|entry| entry.caller)
    }
}

impl Entry {
    fn matches(&self, peer: &Peer, claims: &Claims) -> bool {
        let bundle = peer.certificate.as_ref().map(|certificate| &*certificate.anchor.bundle);
        let is_of_ca = self.ca.as_deref().is_none_or(|ca| bundle == Some(ca));
        let is_peer = self.token.peer.as_deref().is_none_or(|wanted| shows(peer, wanted));
        let mut needed = self.token.claims.iter();
        is_of_ca && is_peer && needed.all(|(name, values)| claims.has(name, values))
    }
}

/// Whether the connection itself shows this identity, by the rules of callers by certificate.
fn shows(peer: &Peer, wanted: &Identity) -> bool {
    match (wanted, &peer.certificate, peer.address) {
        (Identity::Spiffe(id), Some(certificate), _) => {
            certificate.spiffe_id().is_ok_and(|found| found == Some(id))
        }
        (Identity::Dns(name), Some(certificate), _) => {
            certificate.uris.is_empty() && certificate.dns.iter().any(|dns| **dns == **name)
        }
        (Identity::Uid(wanted), None, PeerAddress::Unix { uid, .. }) => uid == *wanted,
        _ => false,
    }
}
