//! The grants of a caller: which keys, which operations, and what narrows them.

use std::collections::BTreeSet;

use super::callers::Around;
use super::reader::{Fields, Node, nearest};
use super::{Grant, Operation, PublicKeys, narrowness, values};

/// `grants`, in the file's order.
pub(super) fn grants(node: &Node<'_>, around: &Around<'_>) -> Option<Vec<Grant>> {
    let items =
        node.items("a list such as [{ keys = [\"…\"], operations = [\"unwrap\", \"read\"] }]")?;
    let read: Vec<Option<Grant>> = items.iter().map(|item| grant(item, around)).collect();
    narrowness::check(&items, &read, around.keys);
    read.into_iter().collect()
}

fn grant(node: &Node<'_>, around: &Around<'_>) -> Option<Grant> {
    let fields = node.fields(&["keys", "operations", "wrapped_sha256", "to", "to_public_keys"])?;
    let keys = fields
        .required("keys", "write keys = [\"…\"] with names from [keys]")
        .and_then(|node| unique(&node, "key", |item| known_key(item, around)));
    let operations = fields
        .required("operations", "write operations = [\"unwrap\", \"read\"]")
        .and_then(|node| unique(&node, "operation", |item| item.parsed(operation)));
    let wrapped_sha256 = match fields.optional("wrapped_sha256") {
        None => Some(None),
        Some(node) => unique(&node, "wrapped value", |item| item.parsed(wrapped_sha256)).map(Some),
    };
    let to = fields
        .optional("to")
        .map_or(Some(Vec::new()), |node| unique(&node, "key", |item| known_key(item, around)));
    let to_public_keys = fields
        .optional("to_public_keys")
        .map_or(Some(PublicKeys::Only(Vec::new())), |node| public_keys(&node));
    let operations = operations?;
    check_targets(&fields, &operations);
    Some(Grant {
        keys: keys?,
        operations,
        wrapped_sha256: wrapped_sha256?,
        to: to?,
        to_public_keys: to_public_keys?,
    })
}

/// `"any"` or a list.
fn public_keys(node: &Node<'_>) -> Option<PublicKeys> {
    match node.text() {
        Some("any") => Some(PublicKeys::Any),
        Some(_) => {
            node.error("is a string; write a list of SHA-256, or \"any\": then a caller with this grant can read the key material");
            None
        }
        None => {
            unique(node, "public key", |item| item.parsed(public_key_sha256)).map(PublicKeys::Only)
        }
    }
}

/// What narrows an operation stands beside that operation, and a rewrap goes nowhere by itself.
fn check_targets(fields: &Fields<'_>, operations: &[Operation]) {
    let given = |name| fields.optional(name);
    let rewraps = operations.contains(&Operation::Rewrap);
    let targets = [given("to"), given("to_public_keys")];
    if rewraps && targets.iter().all(Option::is_none) {
        fields.node().missing(
            "to",
            "\"rewrap\" has no target by itself: write to = [\"…\"] with names from [keys], or to_public_keys = [\"…\"] with the SHA-256 of public keys",
        );
    }
    for node in targets.into_iter().flatten().filter(|_| !rewraps) {
        node.error("is for the operation \"rewrap\"; add it to operations, or leave this out");
    }
    if let Some(node) = given("wrapped_sha256").filter(|_| !opens(operations)) {
        node.error("is for the operations \"unwrap\" and \"rewrap\"; add one of them to operations, or leave this out");
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
    let items = node.items("a list of strings")?;
    if items.is_empty() {
        node.error(format_args!("is empty; write at least one {what}, or leave the grant out"));
        return None;
    }
    let mut seen = BTreeSet::new();
    let mut values = Vec::new();
    for item in &items {
        let Some(value) = read(item) else { continue };
        if !seen.insert(value.clone()) {
            item.error(format_args!("is listed a second time; leave it out"));
        }
        values.push(value);
    }
    (values.len() == items.len()).then_some(values)
}

fn known_key(node: &Node<'_>, around: &Around<'_>) -> Option<String> {
    let name = node.string()?;
    if around.keys.contains_key(name) {
        return Some(name.to_owned());
    }
    // Looking at every name for every error would be quadratic.
    let names = around.keys.keys().map(String::as_str);
    let near = if node.report().is_long() { None } else { nearest(name, names) };
    match near {
        Some(near) => node.error(format_args!("{name:?} is no key; did you mean {near:?}?")),
        None => node.error(format_args!("{name:?} is no key; add [keys.{name}], or leave it out")),
    }
    None
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
