//! The grants of a caller: which keys, which operations, and what narrows them.

use std::collections::{BTreeMap, BTreeSet};

use super::token_matches::to_approved;
use super::{Grant, Key, Operation, PublicKeys, narrowness, values};
use claviger_configuration::{Node, all};

/// `grants`, in the file's order.
pub(super) fn grants(
    node: &Node<'_>,
    keys: &BTreeMap<String, Key>,
    issuers: &Node<'_>,
) -> Vec<Grant> {
    let items =
        node.items("a list such as [{ keys = [\"…\"], operations = [\"unwrap\", \"read\"] }]");
    let items = items.unwrap_or_default();
    let grants: Vec<Grant> = items.iter().map(|item| grant(item, keys, issuers)).collect();
    narrowness::check(&items, &grants, keys);
    grants
}

fn grant(node: &Node<'_>, known: &BTreeMap<String, Key>, issuers: &Node<'_>) -> Grant {
    let targets = ["to", "to_public_keys", "to_approved"];
    let node =
        node.with_fields(&[&["keys", "operations", "wrapped_sha256"], &targets[..]].concat());
    let known_keys = |node: &Node<'_>| unique(node, "key", |item| known_key(item, known));
    let keys = known_keys(&node.required("keys", "write keys = [\"…\"] with names from [keys]"));
    let write = "write operations = [\"unwrap\", \"read\"]";
    let operations =
        unique(&node.required("operations", write), "operation", |item| item.parsed(operation));
    // A list that is wrong is a list still: without one, a grant is for every value.
    let wrapped_sha256 = node.field("wrapped_sha256").map(|node| {
        unique(&node, "wrapped value", |item| item.parsed(wrapped_sha256)).unwrap_or_default()
    });
    let to = known_keys(&node.optional("to"));
    let to_public_keys = public_keys(&node.optional("to_public_keys"));
    let to_approved = node.field("to_approved").and_then(|node| to_approved(&node, issuers));
    if let Some(operations) = &operations {
        check_targets(&node, operations);
    }
    Grant {
        keys: keys.unwrap_or_default(),
        operations: operations.unwrap_or_default(),
        wrapped_sha256,
        to: to.unwrap_or_default(),
        to_public_keys,
        to_approved,
    }
}

/// `"any"` or a list.
fn public_keys(node: &Node<'_>) -> PublicKeys {
    let list = match node.text() {
        Some("any") => return PublicKeys::Any,
        Some(_) => {
            node.error("is a string; write a list of SHA-256, or \"any\": then a caller with this grant can read the key material");
            None
        }
        None => unique(node, "public key", |item| item.parsed(public_key_sha256)),
    };
    PublicKeys::Only(list.unwrap_or_default())
}

/// What narrows an operation stands beside that operation, and a rewrap goes nowhere by itself.
fn check_targets(node: &Node<'_>, operations: &[Operation]) {
    let rewraps = operations.contains(&Operation::Rewrap);
    let targets = ["to", "to_public_keys", "to_approved"].map(|target| node.field(target));
    if rewraps && targets.iter().all(Option::is_none) {
        node.missing(
            "to",
            "\"rewrap\" has no target by itself: write to = [\"…\"] with names from [keys], to_public_keys = [\"…\"] with the SHA-256 of public keys, or to_approved = { issuer = \"…\", claims = { … } } with whose approval counts",
        );
    }
    for target in targets.into_iter().flatten().filter(|_| !rewraps) {
        target.error("is for the operation \"rewrap\"; add it to operations, or leave this out");
    }
    if !opens(operations) {
        node.optional("wrapped_sha256").error("is for the operations \"unwrap\" and \"rewrap\"; add one of them to operations, or leave this out");
    }
}

/// Whether they look into wrapped values.
fn opens(operations: &[Operation]) -> bool {
    operations.iter().any(|operation| matches!(operation, Operation::Unwrap | Operation::Rewrap))
}

/// A list that is neither empty nor says anything twice.
fn unique<T: Ord + Clone>(
    node: &Node<'_>,
    what: &str,
    read: impl Fn(&Node<'_>) -> Option<T>,
) -> Option<Vec<T>> {
    let write = format_args!("; write at least one {what}, or leave the grant out");
    let items = node.some_items("a list of strings", write)?;
    let mut seen = BTreeSet::new();
    all(items.iter().map(|item| {
        let value = read(item)?;
        if !seen.insert(value.clone()) {
            item.error("is listed a second time; leave it out");
        }
        Some(value)
    }))
}

fn known_key(node: &Node<'_>, known: &BTreeMap<String, Key>) -> Option<String> {
    let name = node.string()?;
    if !known.contains_key(name) {
        let add = format_args!("add [keys.{name}], or leave it out");
        node.names_no("key", known.keys().map(String::as_str), add);
        return None;
    }
    Some(name.to_owned())
}

fn operation(text: &str) -> Result<Operation, String> {
    Operation::ALL.into_iter().find(|operation| operation.name() == text).ok_or_else(|| {
        let names = Operation::ALL.map(Operation::name);
        format!("{text:?} is not known; write {}", values::alternatives(&names))
    })
}

fn wrapped_sha256(text: &str) -> Result<[u8; 32], String> {
    values::sha256_or(text, "as `claviger wrapped-sha256` prints them")
}

fn public_key_sha256(text: &str) -> Result<[u8; 32], String> {
    values::sha256_or(text, "of the public key's SubjectPublicKeyInfo (DER)")
}
