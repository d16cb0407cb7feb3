//! Which certificate is which caller, and which is none.

use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::daemon::config::{Caller, Limits, Match};
use crate::daemon::transport::tls::anchor::AnchorName;
use crate::daemon::transport::verdicts::Verdicts;

fn ca(bundle: &str) -> Arc<AnchorName> {
    Arc::new(AnchorName { bundle: bundle.into(), subject: "CN=ca".to_owned(), sha256: [1; 32] })
}

fn certificate(uris: &[&str], dns: &[&str]) -> PeerCertificate {
    let boxed = |names: &[&str]| names.iter().map(|name| Box::from(*name)).collect();
    PeerCertificate {
        anchor: ca("clients"),
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
    Peer { address, certificate: Some(certificate), verdicts: Verdicts::default() }
}

fn callers(matches: &[&[(Identity, Option<&str>)]], several_cas: bool) -> Callers {
    let caller = |(place, matches): (usize, &&[(Identity, Option<&str>)])| Caller {
        name: format!("caller-{place}"),
        matches: matches
            .iter()
            .map(|(identity, ca)| Match { identity: identity.clone(), ca: ca.map(str::to_owned) })
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
    named.anchor = ca("others");
    assert_eq!(callers.identify(&peer(named.clone())), Ok(CallerIndex(1)));
    named.anchor = ca("third");
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
    let refused =
        callers.identify(&Peer { address, certificate: None, verdicts: Verdicts::default() });
    assert_eq!(refused, Err(Unidentified::NoCertificate));
}

fn token(issuer: &str, subject: Option<&str>, claims: &[(&str, &str)]) -> config::TokenMatch {
    let claim = |(name, value): &(&str, &str)| {
        ((*name).to_owned(), vec![claviger_tokens::ClaimValue::Text((*value).to_owned())])
    };
    config::TokenMatch {
        issuer: issuer.to_owned(),
        subject: subject.map(str::to_owned),
        claims: claims.iter().map(claim).collect(),
        peer: None,
    }
}

#[test]
fn a_token_is_the_one_caller_whose_issuer_subject_claims_and_peer_all_fit() {
    let with_peer = config::TokenMatch {
        peer: Some(Box::new(spiffe("spiffe://a/gateway"))),
        ..token("corp", Some("carol"), &[])
    };
    let entries = [
        token("corp", Some("alice"), &[]),
        token("corp", None, &[("groups", "hsm"), ("mfa", "yes")]),
        with_peer,
        token("other", Some("alice"), &[]),
    ];
    let entries = entries.map(|entry| [(Identity::Token(entry), None)]);
    let entries: Vec<&[(Identity, Option<&str>)]> = entries.iter().map(|one| &one[..]).collect();
    let callers = callers(&entries, true);
    let gateway = peer(certificate(&["spiffe://a/gateway"], &[]));
    let identify = |peer: &Peer, issuer: &str, subject: &str, claims: &str| {
        let claims = Claims::parse(claims.as_bytes()).unwrap();
        callers.identify_token(peer, issuer, subject, &claims)
    };
    assert_eq!(identify(&gateway, "corp", "alice", "{}"), Ok(CallerIndex(0)));
    assert_eq!(identify(&gateway, "other", "alice", "{}"), Ok(CallerIndex(3)));
    let both = r#"{"groups":["a","hsm"],"mfa":"yes"}"#;
    assert_eq!(identify(&gateway, "corp", "bob", both), Ok(CallerIndex(1)));
    assert_eq!(identify(&gateway, "corp", "alice", both), Err(Unidentified::SeveralCallers));
    assert_eq!(identify(&gateway, "corp", "carol", "{}"), Ok(CallerIndex(2)));
    let stranger = peer(certificate(&["spiffe://a/stranger"], &["spiffe://a/gateway"]));
    for (peer, issuer, subject, claims) in [
        (&gateway, "corp", "bob", r#"{"groups":["hsm"]}"#),
        (&gateway, "corp", "Alice", "{}"),
        (&gateway, "unknown", "alice", "{}"),
        (&stranger, "corp", "carol", "{}"),
    ] {
        assert_eq!(identify(peer, issuer, subject, claims), Err(Unidentified::NoCaller));
    }
    // Without its token the gateway is no caller, and an expired certificate helps no token.
    assert_eq!(callers.identify(&gateway), Err(Unidentified::NoCaller));
    let mut expired = certificate(&[], &[]);
    expired.not_after = SystemTime::now() - Duration::from_secs(1);
    assert_eq!(identify(&peer(expired), "corp", "alice", "{}"), Err(Unidentified::Expired));
}
