//! `[issuers.NAME]`: whose tokens callers may come with, and what is demanded of these.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use claviger_tokens::{ALGORITHMS, Audience, Audiences, KeySource, Rules, Settings};

use super::{Issuer, values};
use claviger_configuration::{Node, all, all_of};
use url::{Host, Url};

/// `[issuers]`, by name.
pub(super) fn issuers(node: &Node<'_>) -> BTreeMap<String, Issuer> {
    let mut found = BTreeMap::new();
    let mut seen: HashMap<String, String> = HashMap::new();
    for (name, node) in node.entries() {
        if let Err(message) = values::name(name) {
            node.error(message);
        }
        let Some(issuer) = issuer(&node) else { continue };
        let by_name = issuer.settings.name.as_ref().map(|name| format!("issuer {name:?}"));
        let by_domain = issuer.trust_domain.as_ref().map(|name| format!("trust domain {name:?}"));
        for what in by_name.into_iter().chain(by_domain) {
            if let Some(first) = seen.insert(what.clone(), node.path().to_owned()) {
                node.error(format_args!(
                    "has the {what}, as {first} has; a token is of one issuer: leave one of them out"
                ));
            }
        }
        found.insert(name.to_owned(), issuer);
    }
    found
}

/// None only where something was reported.
fn issuer(node: &Node<'_>) -> Option<Issuer> {
    let node = node.with_fields(&[
        "issuer",
        "trust_domain",
        "discovery",
        "keys",
        "ca",
        "audiences",
        "algorithms",
        "max_age",
        "cache_time",
        "keys_max_age",
    ]);
    let name = node.field("issuer").map(|node| node.parsed(issuer_name));
    let trust_domain = node.field("trust_domain").map(|node| node.parsed(trust_domain));
    if name.is_none() && trust_domain.is_none() {
        node.missing("issuer", "write what `iss` is in its tokens, to the letter: \"https://…\"");
    }
    let audiences = audiences(&node.required("audiences", AUDIENCES));
    let algorithms = node.field("algorithms").map(|node| {
        node.some_items("a list of algorithms", "; leave it out for all of them")
            .and_then(|items| all(items.iter().map(|item| item.parsed(algorithm))))
    });
    let time = |name, default| node.parsed_or(name, default, values::positive_duration);
    let rules = Rules {
        audiences: audiences?,
        algorithms: match algorithms {
            None => ALGORITHMS.map(str::to_owned).to_vec(),
            Some(listed) => listed?,
        },
        max_age: time("max_age", Duration::from_hours(24)),
    };
    let source = source(&node, name.as_ref().and_then(Option::as_deref));
    let settings = Settings {
        name: all_of(name)?,
        source: source?,
        cache_time: time("cache_time", Duration::from_mins(10)),
        max_age: time("keys_max_age", Duration::from_hours(24)),
    };
    Some(Issuer { settings, trust_domain: all_of(trust_domain)?, rules })
}

const AUDIENCES: &str =
    "write audiences = [\"claviger\"] with what `aud` is in tokens for this daemon";

/// A file, or discovery at the issuer's own URL or another one.
fn source(node: &Node<'_>, issuer: Option<&str>) -> Option<KeySource> {
    let ca_node = node.field("ca");
    if let Some(keys) = node.field("keys") {
        for beside in [node.field("discovery"), ca_node].into_iter().flatten() {
            beside.error("is there beside `keys`, which is a file; leave one of them out");
        }
        return keys.file_path().map(KeySource::File);
    }
    let ca = all_of(ca_node.map(|node| node.file_path()))?;
    let url = match (node.field("discovery"), issuer) {
        (Some(discovery), _) => discovery.parsed(url)?,
        (None, Some(issuer)) => {
            let error = |reason| {
                node.optional("issuer").error(format_args!(
                    "{reason}, so discovery cannot be there; write `discovery` with the URL where it is, or `keys` with a file"
                ));
            };
            url(issuer).map_err(|_| error(format!("{issuer:?} is no https URL"))).ok()?
        }
        (None, None) => {
            if node.field("issuer").is_none() {
                node.missing("keys", "write the file of the trust bundle (JWKS), or `discovery`");
            }
            return None;
        }
    };
    Some(KeySource::Discovery { url, ca })
}

pub(super) fn audiences(node: &Node<'_>) -> Option<Audiences> {
    match node.text() {
        Some("any") => return Some(Audiences::Any),
        Some(_) => {
            node.error("is a string; write a list, or \"any\": then tokens for other services are good here too");
            return None;
        }
        None => {}
    }
    let items = node.some_items("a list of strings", "; write what `aud` is in the tokens")?;
    all(items.iter().map(|item| item.parsed(Audience::parse))).map(Audiences::Of)
}

fn algorithm(text: &str) -> Result<String, String> {
    if ALGORITHMS.contains(&text) {
        return Ok(text.to_owned());
    }
    let secret =
        if text.starts_with("HS") { ": its key would be a secret, not a public key" } else { "" };
    Err(format!(
        "{text:?} is no algorithm for tokens{secret}; write {}",
        values::alternatives(&ALGORITHMS)
    ))
}

fn issuer_name(text: &str) -> Result<String, String> {
    if (1..=512).contains(&text.len()) && text.chars().all(|c| c.is_ascii_graphic()) {
        return Ok(text.to_owned());
    }
    Err(format!("{text:?} is no issuer; write what `iss` is in the tokens, to the letter"))
}

fn trust_domain(text: &str) -> Result<String, String> {
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b);
    if (1..=255).contains(&text.len()) && text.bytes().all(good) {
        return Ok(text.to_owned());
    }
    Err(format!("{text:?} is no SPIFFE trust domain; write one such as \"example.org\""))
}

/// https, or http on loopback.
fn url(text: &str) -> Result<String, String> {
    let is_good = |url: &Url| {
        let is_loopback = match url.host() {
            Some(Host::Ipv4(address)) => address.is_loopback(),
            Some(Host::Ipv6(address)) => address.is_loopback(),
            Some(Host::Domain(name)) => name == "localhost",
            None => false,
        };
        let has_way = url.scheme() == "https" || (url.scheme() == "http" && is_loopback);
        has_way && url.query().is_none() && url.fragment().is_none() && url.username().is_empty()
    };
    let parsed = Url::parse(text).ok().filter(is_good);
    parsed.map(|_| text.to_owned()).ok_or_else(|| {
        format!("{text:?} is no https URL; write one such as \"https://login.example.org\"")
    })
}
