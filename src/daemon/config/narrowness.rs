//! Whether lists of wrapped values restrict anything: what a caller may do with every value, one
//! rewrap after another, until it can read the key material.
//!
//! Targets are compared by public key: a key's name and the hash of one of its versions are the same
//! target.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fmt;

use super::{Grant, Key, Operation, PublicKeys, State};
use claviger_configuration::Node;

/// Reports lists of values that mean nothing beside the caller's other grants.
pub(super) fn check(items: &[Node<'_>], grants: &[Grant], keys: &BTreeMap<String, Key>) {
    let (narrow, wide): (Vec<_>, Vec<_>) =
        items.iter().zip(grants).partition(|(_, grant)| grant.wrapped_sha256.is_some());
    if narrow.is_empty() {
        return;
    }
    let wide = Wide::new(wide.iter().map(|(node, grant)| (node.path(), *grant)).collect(), keys);
    let mut reached = HashMap::new();
    for (node, grant) in narrow {
        let covered = grant.keys.iter().find_map(|key| {
            reached
                .entry(key.as_str())
                .or_insert_with(|| wide.reached_from(key))
                .covers(&wide, grant)
        });
        let (Some(list), Some(wider)) = (node.field("wrapped_sha256"), covered) else { continue };
        list.error(format_args!(
            "restricts nothing: {wider} for every value; leave one of them out"
        ));
    }
}

/// The grants of a caller that hold for every value.
struct Wide<'a> {
    grants: Vec<(&'a str, &'a Grant)>,
    by_key: HashMap<&'a str, Vec<usize>>,
    /// The keys by the hashes of their public keys.
    pinned: HashMap<&'a [u8; 32], &'a str>,
}

/// Where a rewrap goes to.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Target<'a> {
    Key(&'a str),
    PublicKey(&'a [u8; 32]),
}

/// What every value of one key can become, and by which grants.
#[derive(Default)]
struct Reached<'a> {
    /// By which grants its key material can be read, if it can.
    opened: Option<String>,
    targets: HashMap<Target<'a>, String>,
}

impl<'a> Wide<'a> {
    fn new(grants: Vec<(&'a str, &'a Grant)>, keys: &'a BTreeMap<String, Key>) -> Self {
        let mut by_key: HashMap<&str, Vec<usize>> = HashMap::new();
        for (index, (_, grant)) in grants.iter().enumerate() {
            for key in &grant.keys {
                by_key.entry(key).or_default().push(index);
            }
        }
        let mut pinned = HashMap::new();
        for (name, key) in keys {
            let in_use = key.versions.iter().filter(|version| version.state != State::Disabled);
            pinned.extend(
                in_use.filter_map(|v| Some((v.public_key_sha256.as_ref()?, name.as_str()))),
            );
        }
        Self { grants, by_key, pinned }
    }

    fn reached_from(&self, key: &'a str) -> Reached<'a> {
        let mut reached = Reached::default();
        let mut seen = HashSet::new();
        let mut next = VecDeque::from([(key, String::new())]);
        while let Some((key, way)) = next.pop_front() {
            for index in self.by_key.get(key).into_iter().flatten() {
                let (path, grant) = self.grants[*index];
                let any = grant.to_public_keys == PublicKeys::Any;
                let opens = if grant.operations.contains(&Operation::Unwrap) {
                    Some(format!("{way}{path} grants \"unwrap\" with {key:?}"))
                } else if any && grant.operations.contains(&Operation::Rewrap) {
                    Some(format!(
                        "{way}{path} grants \"rewrap\" with {key:?} to any public key, which is as good as \"unwrap\","
                    ))
                } else {
                    None
                };
                reached.opened = reached.opened.or(opens);
                if !seen.insert(*index) {
                    continue;
                }
                for named in targets(grant) {
                    let target = self.same(named);
                    let way = format!("{way}{path} grants \"rewrap\" with {key:?} to {named}");
                    if let Target::Key(name) = target
                        && !reached.targets.contains_key(&target)
                    {
                        next.push_back((name, format!("{way}, and ")));
                    }
                    reached.targets.entry(target).or_insert(way);
                }
            }
        }
        reached
    }

    /// One target for a key, whether it is named or one of its public keys is.
    fn same(&self, target: Target<'a>) -> Target<'a> {
        match target {
            Target::PublicKey(sha256) => {
                self.pinned.get(sha256).map_or(target, |name| Target::Key(name))
            }
            Target::Key(_) => target,
        }
    }
}

impl<'a> Reached<'a> {
    /// What lets every value of the key through to where `grant` lets the listed ones.
    fn covers(&self, wide: &Wide<'a>, grant: &'a Grant) -> Option<String> {
        let by_target = || targets(grant).find_map(|target| self.targets.get(&wide.same(target)));
        self.opened.as_ref().or_else(by_target).cloned()
    }
}

/// The targets that a grant names.
fn targets(grant: &Grant) -> impl Iterator<Item = Target<'_>> {
    let public_keys = match &grant.to_public_keys {
        PublicKeys::Any => &[][..],
        PublicKeys::Only(hashes) => hashes,
    };
    let keys = grant.to.iter().map(|name| Target::Key(name));
    keys.chain(public_keys.iter().map(Target::PublicKey))
}

impl fmt::Display for Target<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(name) => write!(f, "{name:?}"),
            Self::PublicKey(sha256) => write!(f, "the public key {}", hex::encode(sha256)),
        }
    }
}
