//! `[[callers]]`: who may call, by which identity, and what for.

use std::collections::{BTreeMap, HashMap};

use super::grants::grants;
use super::token_matches::{self, token_match};
use super::{Caller, Identity, Key, Limits, Listen, Match, Rate, Server, values};
use claviger_configuration::Node;

/// What callers are checked against.
pub(super) struct Around<'a> {
    pub(super) server: &'a Server,
    pub(super) keys: &'a BTreeMap<String, Key>,
    /// `[issuers]`, whose names count even where they are wrong themselves.
    pub(super) issuers: &'a Node<'a>,
}

/// What may occur once in a whole configuration, and where it occurred first.
#[derive(Default)]
struct Seen {
    names: HashMap<String, String>,
    identities: HashMap<Match, String>,
}

/// `[[callers]]`, in the file's order.
pub(super) fn callers(node: &Node<'_>, around: &Around<'_>) -> Vec<Caller> {
    let items = node.items("[[callers]], one for each caller").unwrap_or_default();
    let mut seen = Seen::default();
    let callers: Vec<Caller> = items.iter().map(|item| caller(item, around, &mut seen)).collect();
    token_matches::check_overlaps(&items, &callers);
    callers
}

fn caller(node: &Node<'_>, around: &Around<'_>, seen: &mut Seen) -> Caller {
    let node = node.with_fields(&["name", "match", "grants", "limits"]);
    let name_node = node.required("name", "write name = \"…\"");
    let name = name_node.parsed(values::name);
    if let Some(name) = &name
        && let Some(first) = seen.names.insert(name.clone(), name_node.path().to_owned())
    {
        name_node.error(format_args!("{name:?} is the name at {first} too; write another"));
    }
    let write = "write match = { spiffe = \"spiffe://…\" }, { dns = \"…\" }, { uid = … } or { issuer = \"…\", subject = \"…\" }";
    Caller {
        name: name.unwrap_or_default(),
        matches: matches(&node.required("match", write), around, seen),
        grants: grants(&node.optional("grants"), around.keys, around.issuers),
        limits: limits(&node.optional("limits"), around.server.fleet),
    }
}

fn matches(node: &Node<'_>, around: &Around<'_>, seen: &mut Seen) -> Vec<Match> {
    let one_or_many = if node.is_table() {
        vec![node.clone()]
    } else {
        let wanted = "{ spiffe = \"spiffe://…\" }, { dns = \"…\" }, { uid = … }, { issuer = \"…\", subject = \"…\" }, or a list of them";
        let write = ": no client would be this caller; write { spiffe = \"spiffe://…\" }";
        node.some_items(wanted, write).unwrap_or_default()
    };
    let mut matches = Vec::new();
    for node in &one_or_many {
        let Some(found) = one_match(node, around) else { continue };
        let path = node.path().to_owned();
        if let Some(first) = seen.identities.insert(effective(&found, around.server), path) {
            node.error(format_args!(
                "is the same identity as {first}; exactly one caller may match: leave one of them out"
            ));
        }
        matches.push(found);
    }
    matches
}

/// With one bundle of client CAs, naming it and leaving it out is the same.
fn effective(found: &Match, server: &Server) -> Match {
    let bundles = server.tls.as_ref().map(|tls| &tls.client_ca);
    let only =
        bundles.filter(|bundles| bundles.len() == 1).and_then(|bundles| bundles.keys().next());
    let of_peer = match &found.identity {
        Identity::Token(token) => token.peer.as_deref(),
        identity => Some(identity),
    };
    let is_certificate = of_peer.is_some_and(|identity| !matches!(identity, Identity::Uid(_)));
    let ca = found.ca.clone().or_else(|| only.filter(|_| is_certificate).cloned());
    Match { identity: found.identity.clone(), ca }
}

fn one_match(node: &Node<'_>, around: &Around<'_>) -> Option<Match> {
    let of_token = ["issuer", "subject", "claims"];
    let node = node.with_fields(&["spiffe", "dns", "uid", "ca", "issuer", "subject", "claims"]);
    let is_token = of_token.iter().any(|field| node.field(field).is_some());
    let given = |kind: &&str| node.field(kind).is_some();
    let kinds: Vec<&str> = ["spiffe", "dns", "uid"].into_iter().filter(given).collect();
    let peer = match kinds.as_slice() {
        ["spiffe"] => Some(node.optional("spiffe").parsed(values::spiffe_id)?),
        ["dns"] => Some(node.optional("dns").parsed(values::dns_name)?),
        ["uid"] => Some(uid(&node.optional("uid"))?),
        [] if is_token => None,
        _ => {
            let count = if kinds.is_empty() { "has no identity" } else { "has several identities" };
            node.error(format_args!("{count}; write exactly one of spiffe, dns and uid, or issuer with subject or claims; several identities are a list: [{{ … }}, {{ … }}]"));
            return None;
        }
    };
    let ca_node = node.field("ca");
    let ca = match &ca_node {
        None => None,
        Some(node) => Some(node.string()?.to_owned()),
    };
    let is_reachable = match &peer {
        Some(peer) => check_reachable(&node, peer, ca_node.as_ref(), around.server),
        None => ca_node.as_ref().is_none_or(|node| check_bundle(node, around.server)),
    };
    let identity = match peer {
        peer if is_token => token_match(&node, around.issuers, peer).map(Identity::Token),
        peer => peer,
    };
    Some(Match { identity: identity?, ca }).filter(|_| is_reachable)
}

fn uid(node: &Node<'_>) -> Option<Identity> {
    // Root can act as any user, and 65534 stands for every user that a user namespace does not map.
    let uid = node.integer(0, u32::MAX)?;
    if uid == 0 || uid == 65_534 {
        node.error(format_args!(
            "is {uid}, which never matches; write the uid of a user of its own"
        ));
        return None;
    }
    Some(Identity::Uid(uid))
}

/// Whether a bundle of client CAs has this name.
fn check_bundle(node: &Node<'_>, server: &Server) -> bool {
    let bundles = server.tls.as_ref().map(|tls| &tls.client_ca);
    let names: Vec<&str> = bundles.into_iter().flatten().map(|(name, _)| name.as_str()).collect();
    let is_known = node.text().is_some_and(|ca| names.contains(&ca));
    // A placeholder has no bundles.
    if !is_known && !names.is_empty() {
        node.error(format_args!(
            "{:?} is not in server.tls.client_ca; write {}",
            node.text().unwrap_or_default(),
            values::alternatives(&names)
        ));
    }
    is_known
}

/// Whether a peer with this identity can come in at all.
fn check_reachable(
    node: &Node<'_>,
    identity: &Identity,
    ca_node: Option<&Node<'_>>,
    server: &Server,
) -> bool {
    if let Identity::Uid(_) = identity {
        if let Some(ca) = ca_node {
            ca.error("belongs to a certificate; leave it out beside uid");
            return false;
        }
        let has_unix = server.listen.iter().any(|listen| matches!(listen, Listen::Unix(_)));
        if !has_unix {
            node.error("has a uid, which only a Unix socket shows; add \"unix:…\" to server.listen, or match by certificate");
        }
        return has_unix;
    }
    let Some(tls) = &server.tls else {
        // With a TCP address, its lack of TLS was reported already.
        if server.listen.iter().all(|listen| matches!(listen, Listen::Unix(_))) {
            node.error("names a certificate, and there are only Unix sockets; match by { uid = … }, or listen on TCP with [server.tls]");
        }
        return false;
    };
    let names: Vec<&str> = tls.client_ca.keys().map(String::as_str).collect();
    match ca_node {
        Some(ca) if !names.is_empty() => check_bundle(ca, server),
        None if names.len() > 1 => {
            node.missing("ca", format_args!(
                "there are several client CAs, so write which one issues this certificate: ca = {}",
                values::alternatives(&names)
            ));
            false
        }
        _ => true,
    }
}

fn limits(node: &Node<'_>, fleet: u32) -> Limits {
    let node = node.with_fields(&["rate", "failed_unwraps", "unwraps_alarm"]);
    let default = Limits::default();
    let share = |name, default: Option<Rate>| {
        let limit = node.parsed_or(name, default, values::rate)?;
        Limits::shared_by(limit, fleet).or_else(|| {
            node.optional(name).error(format_args!(
                "is less than one for each of the {fleet} daemons of server.fleet; write at least {fleet}"
            ));
            None
        })
    };
    let rate = share("rate", default.rate);
    // Where a rate says how much is usual, nothing has to be guessed.
    let usual = default.unwraps_alarm.filter(|_| rate.is_none());
    Limits {
        rate,
        failed_unwraps: share("failed_unwraps", default.failed_unwraps),
        unwraps_alarm: node.parsed_or("unwraps_alarm", usual, values::rate),
    }
}
