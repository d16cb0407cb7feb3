//! `[keys.NAME]` and its versions.

use std::collections::{BTreeMap, HashMap};
use std::str::FromStr;

use claviger_provider_api::algorithm::{Member, UnknownAlgorithm};
use claviger_provider_api::{Algorithm, SignAlgorithm};

use super::providers::named;
use super::reader::{Fields, Node};
use super::{Key, Provider, Replica, State, Version, values};

/// What may occur once in a whole configuration, and where it occurred first.
struct Seen<'a> {
    providers: &'a BTreeMap<String, Option<Provider>>,
    replicas: HashMap<Replica, String>,
    pins: HashMap<[u8; 32], String>,
}

/// The lists of a key that its versions use unless they have their own.
struct Lists {
    algorithms: Option<Vec<Algorithm>>,
    sign_algorithms: Option<Vec<SignAlgorithm>>,
}

impl Lists {
    fn is_empty(&self) -> bool {
        self.algorithms.as_ref().is_none_or(Vec::is_empty)
            && self.sign_algorithms.as_ref().is_none_or(Vec::is_empty)
    }
}

/// `[keys]`. None for a key that is there but wrong, so that grants of it are not blamed.
pub(super) fn keys(
    node: &Node<'_>,
    providers: &BTreeMap<String, Option<Provider>>,
) -> BTreeMap<String, Option<Key>> {
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

fn key(node: &Node<'_>, seen: &mut Seen<'_>) -> Option<Key> {
    let fields = node.fields(&["algorithms", "sign_algorithms", "versions"])?;
    let lists = lists(&fields);
    let header = format!("[[{}.versions]]", node.path());
    let Some(versions_node) = fields.optional("versions") else {
        node.missing("versions", format_args!("add {header} with version, state and replicas"));
        return None;
    };
    let items = versions_node.items(&header)?;
    if items.is_empty() {
        versions_node
            .error(format_args!("is empty; add {header} with version, state and replicas"));
        return None;
    }
    let lacks_lists = |item: &Node<'_>| {
        item.field("algorithms").is_none() && item.field("sign_algorithms").is_none()
    };
    if lists.as_ref().is_some_and(Lists::is_empty) && items.iter().any(lacks_lists) {
        let write = "write algorithms = [\"RSA-OAEP\"]";
        match node.field("algorithms") {
            Some(algorithms) => algorithms.error(format_args!("is empty; {write}")),
            None => node.missing("algorithms", write),
        }
    }
    let mut numbers = HashMap::new();
    let mut versions: Vec<Version> = Vec::new();
    for item in &items {
        versions.extend(version(item, lists.as_ref(), seen, &mut numbers));
    }
    versions.sort_by_key(|version| std::cmp::Reverse(version.version));
    (versions.len() == items.len()).then_some(Key { versions })
}

fn version(
    node: &Node<'_>,
    of_key: Option<&Lists>,
    seen: &mut Seen<'_>,
    numbers: &mut HashMap<u32, String>,
) -> Option<Version> {
    let fields = node.fields(&[
        "version",
        "state",
        "algorithms",
        "sign_algorithms",
        "replicas",
        "public_key_sha256",
        "certificate",
    ])?;
    let number = fields
        .required("version", "write version = 1, or the next number that was never used")
        .and_then(|node| {
            let number = node.integer(1, u32::MAX)?;
            if let Some(first) = numbers.insert(number, node.path().to_owned()) {
                node.error(format_args!(
                    "is {number}, as {first} is already; write a number that was never used"
                ));
            }
            Some(number)
        });
    let state = fields
        .required("state", "write state = \"active\", \"unwrap-only\" or \"disabled\"")
        .and_then(|node| node.parsed(state));
    let own = lists(&fields);
    let replicas = fields
        .required("replicas", "write replicas = [{ provider = \"…\", locator = \"…\" }]")
        .and_then(|node| replicas(&node, seen));
    let public_key_sha256 = fields.optional("public_key_sha256").map(|node| pin(&node, seen));
    let certificate = fields.optional("certificate").map(|node| node.file_path());

    let (own, of_key) = (own?, of_key?);
    let algorithms = own.algorithms.as_ref().or(of_key.algorithms.as_ref());
    let sign_algorithms = own.sign_algorithms.as_ref().or(of_key.sign_algorithms.as_ref());
    let algorithms = algorithms.cloned().unwrap_or_default();
    let sign_algorithms = sign_algorithms.cloned().unwrap_or_default();
    check_lists(node, &own, &algorithms, &sign_algorithms);
    Some(Version {
        version: number?,
        state: state?,
        algorithms,
        sign_algorithms,
        replicas: replicas?,
        public_key_sha256: public_key_sha256.map_or(Some(None), |pin| pin.map(Some))?,
        certificate: certificate.map_or(Some(None), |path| path.map(Some))?,
    })
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

/// Reads `algorithms` and `sign_algorithms`; none where one of them is wrong.
fn lists(fields: &Fields<'_>) -> Option<Lists> {
    let algorithms = fields.optional("algorithms").map(|node| list::<Algorithm>(&node));
    let sign = fields.optional("sign_algorithms").map(|node| list::<SignAlgorithm>(&node));
    if algorithms.as_ref().is_some_and(Option::is_none)
        || sign.as_ref().is_some_and(Option::is_none)
    {
        return None;
    }
    let lists = Lists { algorithms: algorithms.flatten(), sign_algorithms: sign.flatten() };
    let mixed = lists.algorithms.as_ref().is_some_and(|list| list.contains(&Algorithm::Rsa15))
        && lists.sign_algorithms.as_ref().is_some_and(|list| !list.is_empty());
    if mixed {
        fields.node().error(RSA15_AND_SIGNING);
    }
    Some(lists)
}

const RSA15_AND_SIGNING: &str = "unwraps RSA1_5 and signs: a padding oracle would let an attacker forge signatures; give signing a key of its own, or leave RSA1_5 out";

fn list<A>(node: &Node<'_>) -> Option<Vec<A>>
where
    A: Member + PartialEq + FromStr<Err = UnknownAlgorithm>,
{
    let items = node.items("a list of algorithms")?;
    let mut algorithms = Vec::new();
    for item in &items {
        let parsed =
            item.parsed(|name| name.parse::<A>().map_err(|error| format!("{name:?} {error}")));
        let Some(algorithm) = parsed else { continue };
        if algorithms.contains(&algorithm) {
            item.error(format_args!("lists {algorithm} a second time; leave it out"));
        }
        algorithms.push(algorithm);
    }
    (algorithms.len() == items.len()).then_some(algorithms)
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
    if listed[0] != listed[1]
        && algorithms.contains(&Algorithm::Rsa15)
        && !sign_algorithms.is_empty()
    {
        node.error(RSA15_AND_SIGNING);
    }
}

fn replicas(node: &Node<'_>, seen: &mut Seen<'_>) -> Option<Vec<Replica>> {
    let items = node.items("a list such as [{ provider = \"…\", locator = \"…\" }]")?;
    if items.is_empty() {
        node.error("is empty; write at least one { provider = \"…\", locator = \"…\" }");
        return None;
    }
    let mut replicas = Vec::new();
    for item in &items {
        let Some(replica) = replica(item, seen.providers) else { continue };
        if let Some(first) = seen.replicas.insert(replica.clone(), item.path().to_owned()) {
            item.error(format_args!(
                "is the same provider and locator as {first}; one private key belongs to one version: leave one of them out"
            ));
        }
        replicas.push(replica);
    }
    (replicas.len() == items.len()).then_some(replicas)
}

fn replica(node: &Node<'_>, providers: &BTreeMap<String, Option<Provider>>) -> Option<Replica> {
    let fields = node.fields(&["provider", "locator"])?;
    let provider = fields
        .required("provider", "write the NAME of a [providers.NAME]")
        .and_then(|node| named(&node, providers));
    let locator_node = fields.required("locator", "write where the key lives in its backend")?;
    let locator = locator_node.string()?;
    let (name, provider) = provider?;
    if let Some(provider) = provider
        && let Err(message) = provider.config.check_locator(locator)
    {
        locator_node.error(message);
        return None;
    }
    Some(Replica { provider: name.to_owned(), locator: locator.to_owned() })
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
