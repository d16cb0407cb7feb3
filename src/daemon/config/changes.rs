//! What a reload changes: what is added, removed or changed, by the names that it has in the file; and what
//! it cannot change.

use std::collections::BTreeMap;
use std::fmt::Display;

use super::{Caller, Config};

/// The differences between two configurations, a phrase each, such as `key user-keys changed`; in the
/// order of the sections. None where both say the same.
pub fn changes(old: &Config, new: &Config) -> Vec<String> {
    let mut changes = Vec::new();
    let sections = [
        (old.server != new.server, "server"),
        (old.operations != new.operations, "operations"),
        (old.audit != new.audit, "audit"),
        (old.log != new.log, "log"),
        (old.telemetry != new.telemetry, "telemetry"),
        (old.policy != new.policy, "policy"),
    ];
    changes.extend(
        sections.iter().filter(|(is, _)| *is).map(|(_, section)| format!("[{section}] changed")),
    );
    named("provider", &old.providers, &new.providers, &mut changes);
    named("key", &old.keys, &new.keys, &mut changes);
    named("issuer", &old.issuers, &new.issuers, &mut changes);
    named("caller", &by_name(&old.callers), &by_name(&new.callers), &mut changes);
    changes
}

/// The options that differ and belong to the process: a reload refuses another value for them.
pub fn needs_restart(old: &Config, new: &Config) -> Vec<&'static str> {
    let (before, after) = (&old.server, &new.server);
    let options = [
        (
            before.listen != after.listen
                || before.without_certificate != after.without_certificate,
            "server.listen",
        ),
        (before.state_dir != after.state_dir, "server.state_dir"),
        (before.tls.is_some() != after.tls.is_some(), "server.tls"),
        (before.reflection != after.reflection, "server.reflection"),
        (before.max_connections != after.max_connections, "server.max_connections"),
        (before.max_concurrent_calls != after.max_concurrent_calls, "server.max_concurrent_calls"),
        (old.operations != new.operations, "operations"),
        (old.audit != new.audit, "audit"),
        (old.log.json != new.log.json, "log.format"),
        (old.telemetry != new.telemetry, "telemetry"),
    ];
    options.into_iter().filter(|(differs, _)| *differs).map(|(_, option)| option).collect()
}

fn by_name(callers: &[Caller]) -> BTreeMap<&str, &Caller> {
    callers.iter().map(|caller| (caller.name.as_str(), caller)).collect()
}

fn named<K: Ord + Display, V: PartialEq>(
    what: &str,
    old: &BTreeMap<K, V>,
    new: &BTreeMap<K, V>,
    changes: &mut Vec<String>,
) {
    let phrase = |name: &K, happened: &str| format!("{what} {name} {happened}");
    for (name, value) in new {
        match old.get(name) {
            None => changes.push(phrase(name, "added")),
            Some(before) if before != value => changes.push(phrase(name, "changed")),
            Some(_) => {}
        }
    }
    let gone = old.keys().filter(|name| !new.contains_key(name));
    changes.extend(gone.map(|name| phrase(name, "removed")));
}

#[cfg(all(test, feature = "software"))]
mod tests {
    use super::*;

    const TEXT: &str = "[server]\nlisten = [\"unix:/run/c.sock\"]\n[audit]\noff = true\n[providers.files]\ntype = \"software\"\ndirectory = \"keys\"\n[keys.a]\nalgorithms = [\"RSA-OAEP\"]\n[[keys.a.versions]]\nversion = 1\nstate = \"active\"\nreplicas = [{ provider = \"files\", locator = \"a.pem\" }]\n[[callers]]\nname = \"one\"\nmatch = { uid = 7 }\n";

    fn parse(text: &str) -> Config {
        Config::parse("claviger.toml".as_ref(), text).unwrap()
    }

    #[test]
    fn each_difference_is_named_once_and_no_difference_is_none() {
        let old = parse(TEXT);
        assert!(changes(&old, &parse(&format!("# a comment\n{TEXT}"))).is_empty());
        let text = TEXT
            .replace("a.pem", "b.pem")
            .replace("\"one\"", "\"two\"")
            .replace("directory = \"keys\"", "directory = \"other\"")
            .replace("[audit]", "drain_timeout = \"1s\"\n[audit]");
        assert_eq!(
            changes(&old, &parse(&text)),
            [
                "[server] changed",
                "provider files changed",
                "key a changed",
                "caller two added",
                "caller one removed"
            ]
        );
    }
}
