//! `[[callers]]`: who may call, by which identity, and what for.

use std::collections::{BTreeMap, HashMap};

use super::grants::grants;
use super::reader::{Fields, Node};
use super::{Caller, Identity, Key, Limits, Listen, Match, Server, values};

/// What callers are checked against.
pub(super) struct Around<'a> {
    /// None where `[server]` itself is wrong; then what depends on it is not judged.
    pub(super) server: Option<&'a Server>,
    /// The keys, right or wrong.
    pub(super) keys: &'a BTreeMap<String, Option<Key>>,
}

/// `[[callers]]`, in the file's order.
pub(super) fn callers(node: &Node<'_>, around: &Around<'_>) -> Vec<Caller> {
    let items = node.items("[[callers]], one for each caller").unwrap_or_default();
    let mut names = HashMap::new();
    let mut identities = HashMap::new();
    let mut callers = Vec::new();
    for item in &items {
        callers.extend(caller(item, around, &mut names, &mut identities));
    }
    callers
}

fn caller(
    node: &Node<'_>,
    around: &Around<'_>,
    names: &mut HashMap<String, String>,
    identities: &mut HashMap<Match, String>,
) -> Option<Caller> {
    let fields = node.fields(&["name", "match", "grants", "limits"])?;
    let name = fields.required("name", "write name = \"…\"").and_then(|node| {
        let name = node.parsed(values::name)?;
        if let Some(first) = names.insert(name.clone(), node.path().to_owned()) {
            node.error(format_args!("{name:?} is the name at {first} too; write another"));
        }
        Some(name)
    });
    let matches = fields
        .required(
            "match",
            "write match = { spiffe = \"spiffe://…\" }, { dns = \"…\" } or { uid = … }",
        )
        .and_then(|node| matches(&node, around, identities));
    let grants = match fields.optional("grants") {
        None => Some(Vec::new()),
        Some(node) => grants(&node, around),
    };
    let limits = fields.optional("limits").map_or(Some(Limits::default()), |node| limits(&node));
    Some(Caller { name: name?, matches: matches?, grants: grants?, limits: limits? })
}

fn matches(
    node: &Node<'_>,
    around: &Around<'_>,
    identities: &mut HashMap<Match, String>,
) -> Option<Vec<Match>> {
    let one_or_many = if node.is_table() {
        vec![node.clone()]
    } else {
        node.items("{ spiffe = \"spiffe://…\" }, { dns = \"…\" }, { uid = … }, or a list of them")?
    };
    if one_or_many.is_empty() {
        node.error("is empty: nobody would be this caller; write { spiffe = \"spiffe://…\" }");
        return None;
    }
    let mut matches = Vec::new();
    for node in &one_or_many {
        let Some(found) = one_match(node, around) else { continue };
        let first = identities.insert(effective(&found, around), node.path().to_owned());
        if let Some(first) = first {
            node.error(format_args!(
                "is the same identity as {first}; exactly one caller may match: leave one of them out"
            ));
        }
        matches.push(found);
    }
    (matches.len() == one_or_many.len()).then_some(matches)
}

/// With one bundle of client CAs, naming it and leaving it out is the same.
fn effective(found: &Match, around: &Around<'_>) -> Match {
    let bundles = around.server.and_then(|server| server.tls.as_ref()).map(|tls| &tls.client_ca);
    let only =
        bundles.filter(|bundles| bundles.len() == 1).and_then(|bundles| bundles.keys().next());
    let is_certificate = !matches!(found.identity, Identity::Uid(_));
    let ca = found.ca.clone().or_else(|| only.filter(|_| is_certificate).cloned());
    Match { identity: found.identity.clone(), ca }
}

fn one_match(node: &Node<'_>, around: &Around<'_>) -> Option<Match> {
    const ONE: &str =
        "write exactly one of spiffe, dns and uid; several identities are a list: [{ … }, { … }]";
    let fields = node.fields(&["spiffe", "dns", "uid", "ca"])?;
    let given = |name: &&str| node.field(name).is_some();
    let kinds: Vec<&str> = ["spiffe", "dns", "uid"].into_iter().filter(given).collect();
    let [kind] = kinds.as_slice() else {
        let count = if kinds.is_empty() { "has no identity" } else { "has several identities" };
        node.error(format_args!("{count}; {ONE}"));
        return None;
    };
    let kind_node = fields.optional(kind)?;
    let ca_node = fields.optional("ca");
    let identity = match *kind {
        "spiffe" => kind_node.parsed(values::spiffe_id),
        "dns" => kind_node.parsed(values::dns_name),
        _ => uid(&kind_node),
    };
    let ca = match &ca_node {
        None => None,
        Some(node) => Some(node.string()?.to_owned()),
    };
    let found = Match { identity: identity?, ca };
    match around.server {
        Some(server) => check_reachable(node, &found, ca_node.as_ref(), server).then_some(found),
        None => Some(found),
    }
}

fn uid(node: &Node<'_>) -> Option<Identity> {
    // Root can be anybody, and 65534 is everybody whom a user namespace does not know.
    let uid = node.integer(0, u32::MAX)?;
    if uid == 0 || uid == 65_534 {
        node.error(format_args!(
            "is {uid}, which never matches; write the uid of a user of its own"
        ));
        return None;
    }
    Some(Identity::Uid(uid))
}

/// Whether a peer with this identity can come in at all.
fn check_reachable(
    node: &Node<'_>,
    found: &Match,
    ca_node: Option<&Node<'_>>,
    server: &Server,
) -> bool {
    if let Identity::Uid(_) = found.identity {
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
    match (&found.ca, ca_node) {
        (Some(ca), Some(node)) if !tls.client_ca.contains_key(ca) => {
            node.error(format_args!(
                "{ca:?} is not in server.tls.client_ca; write {}",
                values::alternatives(&names)
            ));
            false
        }
        (None, _) if names.len() > 1 => {
            node.missing("ca", format_args!(
                "there are several client CAs, so write which one issues this certificate: ca = {}",
                values::alternatives(&names)
            ));
            false
        }
        _ => true,
    }
}

fn limits(node: &Node<'_>) -> Option<Limits> {
    let fields = node.fields(&["rate", "failed_unwraps", "unwraps_alarm"])?;
    let default = Limits::default();
    let read = |fields: &Fields<'_>, name, default| {
        fields.optional(name).map_or(Some(default), |node| node.parsed(values::rate))
    };
    let rate = read(&fields, "rate", default.rate);
    let failed_unwraps = read(&fields, "failed_unwraps", default.failed_unwraps);
    // Where a rate says how much is usual, nothing has to be guessed.
    let usual = default.unwraps_alarm.filter(|_| rate == Some(None));
    let unwraps_alarm = read(&fields, "unwraps_alarm", usual);
    Some(Limits { rate: rate?, failed_unwraps: failed_unwraps?, unwraps_alarm: unwraps_alarm? })
}
