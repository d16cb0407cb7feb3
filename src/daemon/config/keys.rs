//! `[keys.NAME]` and its versions.

use std::collections::{BTreeMap, HashMap};
use std::str::FromStr;

use claviger_provider_api::algorithm::{Member, UnknownAlgorithm};
use claviger_provider_api::{Algorithm, SignAlgorithm};

use super::providers::Providers;
use super::{Balance, Key, Replica, State, Version, values};
use claviger_configuration::Node;

/// What may occur once in a whole configuration, and where it occurred first.
struct Seen<'a> {
    providers: &'a Providers<'a>,
    replicas: HashMap<Replica, String>,
    pins: HashMap<[u8; 32], String>,
}

/// The lists of a key that its versions use unless they have their own.
struct Lists {
    algorithms: Option<Vec<Algorithm>>,
    sign_algorithms: Option<Vec<SignAlgorithm>>,
}

/// `[keys]`. A key that is wrong is there too, so that grants of it are not blamed.
pub(super) fn keys(node: &Node<'_>, providers: &Providers<'_>) -> BTreeMap<String, Key> {
    let mut seen = Seen { providers, replicas: HashMap::new(), pins: HashMap::new() };
    let mut keys = BTreeMap::new();
    for (name, node) in node.entries() {
        if let Err(message) = values::name(name) {
            node.error(message);
        }
        keys.insert(name.to_owned(), key(&node, &mut seen));
    }
    keys
}

fn key(node: &Node<'_>, seen: &mut Seen<'_>) -> Key {
    let node = node.with_fields(&["algorithms", "sign_algorithms", "balance", "versions"]);
    let lists = lists(&node);
    let balance = node.parsed_or("balance", Balance::default(), balance);
    let header = format!("[[{}.versions]]", node.path());
    let add = format!("add {header} with version, state and replicas");
    let items = node.required("versions", &add).some_items(&header, format_args!("; {add}"));
    let items = items.unwrap_or_default();
    let lacks_lists = |item: &Node<'_>| {
        item.field("algorithms").is_none() && item.field("sign_algorithms").is_none()
    };
    let has_lists = lists.algorithms.as_ref().is_some_and(|list| !list.is_empty())
        || lists.sign_algorithms.as_ref().is_some_and(|list| !list.is_empty());
    if !has_lists && items.iter().any(lacks_lists) {
        let write = "write algorithms = [\"RSA-OAEP\"]";
        match node.field("algorithms") {
            Some(algorithms) => algorithms.error(format_args!("is empty; {write}")),
            None => node.missing("algorithms", write),
        }
    }
    let mut numbers = HashMap::new();
    let mut versions: Vec<Version> =
        items.iter().map(|item| version(item, &lists, seen, &mut numbers)).collect();
    versions.sort_by_key(|version| std::cmp::Reverse(version.version));
    Key { versions, balance }
}

fn balance(text: &str) -> Result<Balance, String> {
    match text {
        "priority" => Ok(Balance::Priority),
        "least-busy" => Ok(Balance::LeastBusy),
        _ => Err(format!("{text:?} is not known; write \"priority\" or \"least-busy\"")),
    }
}

fn version(
    node: &Node<'_>,
    of_key: &Lists,
    seen: &mut Seen<'_>,
    numbers: &mut HashMap<u32, String>,
) -> Version {
    let node = node.with_fields(&[
        "version",
        "state",
        "algorithms",
        "sign_algorithms",
        "replicas",
        "public_key_sha256",
        "certificate",
    ]);
    let write = "write version = 1, or the next number that was never used";
    let number = number(&node.required("version", write), numbers);
    let write = "write state = \"active\", \"unwrap-only\" or \"disabled\"";
    let state = node.required("state", write).parsed(state);
    let own = lists(&node);
    let write = "write replicas = [{ provider = \"…\", locator = \"…\" }]";
    let replicas = replicas(&node.required("replicas", write), seen);
    let public_key_sha256 = pin(&node.optional("public_key_sha256"), seen);
    let certificate = node.optional("certificate").file_path();

    let algorithms = own.algorithms.as_ref().or(of_key.algorithms.as_ref());
    let sign_algorithms = own.sign_algorithms.as_ref().or(of_key.sign_algorithms.as_ref());
    let algorithms = algorithms.cloned().unwrap_or_default();
    let sign_algorithms = sign_algorithms.cloned().unwrap_or_default();
    check_lists(&node, &own, &algorithms, &sign_algorithms);
    Version {
        version: number.unwrap_or_default(),
        state: state.unwrap_or(State::Disabled),
        algorithms,
        sign_algorithms,
        replicas,
        public_key_sha256,
        certificate,
    }
}

fn number(node: &Node<'_>, numbers: &mut HashMap<u32, String>) -> Option<u32> {
    let number = node.integer(1, u32::MAX)?;
    if let Some(first) = numbers.insert(number, node.path().to_owned()) {
        node.error(format_args!(
            "is {number}, as {first} is already; write a number that was never used"
        ));
    }
    Some(number)
}

fn state(text: &str) -> Result<State, String> {
    match text {
        "active" => Ok(State::Active),
        "unwrap-only" => Ok(State::UnwrapOnly),
        "disabled" => Ok(State::Disabled),
        _ => {
            Err(format!("{text:?} is not known; write \"active\", \"unwrap-only\" or \"disabled\""))
        }
    }
}

/// Reads `algorithms` and `sign_algorithms`.
fn lists(node: &Node<'_>) -> Lists {
    let algorithms = node.field("algorithms").map(|node| list(&node));
    let sign_algorithms = node.field("sign_algorithms").map(|node| list(&node));
    if let (Some(algorithms), Some(sign_algorithms)) = (&algorithms, &sign_algorithms) {
        check_mix(node, algorithms, sign_algorithms);
    }
    Lists { algorithms, sign_algorithms }
}

fn check_mix(node: &Node<'_>, algorithms: &[Algorithm], sign_algorithms: &[SignAlgorithm]) {
    if algorithms.contains(&Algorithm::Rsa15) && !sign_algorithms.is_empty() {
        node.error("unwraps RSA1_5 and signs: a padding oracle would let an attacker forge signatures; give signing a key of its own, or leave RSA1_5 out");
    }
}

fn list<A>(node: &Node<'_>) -> Vec<A>
where
    A: Member + PartialEq + FromStr<Err = UnknownAlgorithm>,
{
    let items = node.items("a list of algorithms");
    let mut algorithms = Vec::new();
    for item in items.iter().flatten() {
        let parse = |name: &str| name.parse::<A>().map_err(|error| format!("{name:?} {error}"));
        let Some(algorithm) = item.parsed(parse) else { continue };
        if algorithms.contains(&algorithm) {
            item.error(format_args!("lists {algorithm} a second time; leave it out"));
        }
        algorithms.push(algorithm);
    }
    // A placeholder is not empty, as empty lists are reported.
    if algorithms.is_empty() && items.is_none_or(|items| !items.is_empty()) {
        algorithms.push(A::MEMBERS[0]);
    }
    algorithms
}

/// Checks the lists that a version with lists of its own has in the end; what is wrong with its
/// key's lists was said there.
fn check_lists(
    node: &Node<'_>,
    own: &Lists,
    algorithms: &[Algorithm],
    sign_algorithms: &[SignAlgorithm],
) {
    let listed = [own.algorithms.is_some(), own.sign_algorithms.is_some()];
    if listed != [false; 2] && algorithms.is_empty() && sign_algorithms.is_empty() {
        let message = "leaves this version without any algorithm; write [\"RSA-OAEP\"]";
        node.field("algorithms").as_ref().unwrap_or(node).error(message);
    }
    // Mixed from the key's list and its own.
    if listed[0] != listed[1] {
        check_mix(node, algorithms, sign_algorithms);
    }
}

fn replicas(node: &Node<'_>, seen: &mut Seen<'_>) -> Vec<Replica> {
    let items = node.some_items(
        "a list such as [{ provider = \"…\", locator = \"…\" }]",
        "; write at least one { provider = \"…\", locator = \"…\" }",
    );
    let mut replicas = Vec::new();
    for item in items.iter().flatten() {
        let Some(replica) = replica(item, seen.providers) else { continue };
        if let Some(first) = seen.replicas.insert(replica.clone(), item.path().to_owned()) {
            item.error(format_args!(
                "is the same provider and locator as {first}; one private key belongs to one version: leave one of them out"
            ));
        }
        replicas.push(replica);
    }
    replicas
}

fn replica(node: &Node<'_>, providers: &Providers<'_>) -> Option<Replica> {
    let node = node.with_fields(&["provider", "locator"]);
    let provider = node.required("provider", "write the NAME of a [providers.NAME]");
    let provider = providers.named(&provider);
    let locator_node = node.required("locator", "write where the key lives in its backend");
    let locator = locator_node.string()?;
    let provider = provider?;
    if let Some(good) = providers.good.get(provider)
        && let Err(message) = good.config.check_locator(locator)
    {
        locator_node.error(message);
        return None;
    }
    Some(Replica { provider: provider.to_owned(), locator: locator.to_owned() })
}

fn pin(node: &Node<'_>, seen: &mut Seen<'_>) -> Option<[u8; 32]> {
    let pin = node.parsed(values::sha256)?;
    if let Some(first) = seen.pins.insert(pin, node.path().to_owned()) {
        node.error(format_args!(
            "is the same key as {first}; a key has one name, else the limits of a grant could be passed by: leave one of them out"
        ));
    }
    Some(pin)
}
