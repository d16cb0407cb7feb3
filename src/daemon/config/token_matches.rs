//! Callers by token: `match = { issuer, subject, claims }`, and whether two of them are one; approvers by
//! token: `to_approved`.

use std::collections::HashMap;
use std::time::Duration;

use claviger_configuration::Node;
use claviger_tokens::person;

use super::issuers::audiences;
use super::{Caller, Identity, Match, ToApproved, TokenMatch, values};

/// What makes a token a caller, read from a `match` with `issuer`; `peer` is what stands beside it.
pub(super) fn token_match(
    node: &Node<'_>,
    issuers: &Node<'_>,
    peer: Option<Identity>,
) -> Option<TokenMatch> {
    let issuer = issuer(node, issuers)?;
    let (subject, claims) = person(node, "would be this caller")?;
    Some(TokenMatch { issuer: issuer.to_owned(), subject, claims, peer: peer.map(Box::new) })
}

/// `to_approved` of a grant.
pub(super) fn to_approved(node: &Node<'_>, issuers: &Node<'_>) -> Option<ToApproved> {
    let node = node.with_fields(&["issuer", "audiences", "subject", "claims", "max_age"]);
    let name = issuer(&node, issuers)?;
    let is_named = issuers.field(name).is_some_and(|issuer| issuer.field("issuer").is_some());
    if !is_named {
        node.optional("issuer").error(
            "has no `issuer` of its own under [issuers], and an ID token names one; write another",
        );
    }
    let audiences = match node.field("audiences") {
        Some(node) => Some(audiences(&node)?),
        None => None,
    };
    let (subject, claims) = person(&node, "could approve")?;
    let max_age = node.parsed_or("max_age", Duration::from_mins(15), values::positive_duration);
    Some(ToApproved { issuer: name.to_owned(), audiences, subject, claims, max_age })
}

/// A name from `[issuers]`.
fn issuer<'a>(node: &Node<'a>, issuers: &Node<'_>) -> Option<&'a str> {
    let issuer_node = node.required("issuer", "write a name from [issuers]");
    let issuer = issuer_node.string()?;
    if !issuers.names().any(|name| name == issuer) {
        let add = format_args!("add [issuers.{issuer}], or leave it out");
        issuer_node.names_no("issuer", issuers.names(), add);
        return None;
    }
    Some(issuer)
}

/// A match, and the place of its caller.
type Placed<'a> = (usize, &'a Match, &'a TokenMatch);

/// Reports matches that are never the only one: each token that one lets in, another lets in too.
pub(super) fn check_overlaps(items: &[Node<'_>], callers: &[Caller]) {
    let mut of_issuer: HashMap<&str, Vec<Placed<'_>>> = HashMap::new();
    let mut of_subject: HashMap<(&str, &str), Vec<Placed<'_>>> = HashMap::new();
    for (place, caller) in callers.iter().enumerate() {
        for found in &caller.matches {
            let Identity::Token(token) = &found.identity else { continue };
            of_issuer.entry(&token.issuer).or_default().push((place, found, token));
            if let Some(subject) = &token.subject {
                let same = of_subject.entry((&token.issuer, subject)).or_default();
                same.push((place, found, token));
            }
        }
    }
    for (wide_place, wide_match, wide) in of_issuer.values().flatten() {
        let candidates = match &wide.subject {
            Some(subject) => of_subject.get(&(wide.issuer.as_str(), subject.as_str())),
            None => of_issuer.get(wide.issuer.as_str()),
        };
        let covered = candidates.into_iter().flatten().find(|(place, found, narrow)| {
            place != wide_place && found != wide_match && covers(wide_match, wide, found, narrow)
        });
        let Some((place, ..)) = covered else { continue };
        let (wide, narrow) = (&callers[*wide_place].name, &callers[*place].name);
        items[*place].optional("match").error(format_args!(
            "matches only tokens that are the caller {wide:?} too, and exactly one may match: {narrow:?} would never be let in; make {wide:?} narrower, or leave one of them out"
        ));
    }
}

/// Whether each token that is the second is the first too.
fn covers(
    wide_match: &Match,
    wide: &TokenMatch,
    narrow_match: &Match,
    narrow: &TokenMatch,
) -> bool {
    let same_or_any =
        |wide: &Option<String>, narrow: &Option<String>| wide.is_none() || wide == narrow;
    let claims = wide.claims.iter().all(|(name, allowed)| {
        let needed = narrow.claims.get(name);
        needed.is_some_and(|needed| needed.iter().all(|value| allowed.contains(value)))
    });
    claims
        && same_or_any(&wide.subject, &narrow.subject)
        && same_or_any(&wide_match.ca, &narrow_match.ca)
        && (wide.peer.is_none() || wide.peer == narrow.peer)
}
