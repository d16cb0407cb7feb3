//! From text to a checked configuration, or to everything that is wrong with it.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use claviger_provider_api::public_key::sha256;
use toml::de::{DeTable, DeValue};

use super::callers::{Around, callers};
use super::error::ConfigErrors;
use super::keys::keys;
use super::providers::providers;
use super::reader::{Node, Report, nearest};
use super::server::{audit, log, operations, overlapping, server};
use super::{Caller, Config, Log, Operations, Server};

impl Config {
    /// Parses and checks `text`. `path` is where it came from: it is named in errors, and relative
    /// paths are taken from its folder.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigErrors> {
        let report = Report::new(path, text);
        let (root, syntax) = DeTable::parse_recoverable(text);
        let config = if syntax.is_empty() {
            let root = DeValue::Table(root.into_inner());
            read(path, text, &Node::root(&report, &root))
        } else {
            let mut lines = HashSet::new();
            for error in syntax {
                let offset = error.span().map_or(0, |span| span.start);
                // One slip makes the parser stumble several times.
                if lines.insert(report.line(offset)) {
                    let message = error.message().lines().collect::<Vec<_>>().join(" ");
                    report.error(offset, "", format_args!("this is not TOML: {message}"));
                }
            }
            None
        };
        let errors = report.into_errors();
        match config {
            Some(config) if errors.is_empty() => Ok(config),
            // Reading gives up only after it said why.
            _ => Err(ConfigErrors { path: path.to_owned(), errors }),
        }
    }
}

/// Reads all sections. The result counts only if nothing was reported.
fn read(path: &Path, text: &str, root: &Node<'_>) -> Option<Config> {
    let fields =
        root.fields(&["server", "operations", "providers", "keys", "callers", "audit", "log"])?;
    let server =
        fields.required("server", "add [server] with listen").and_then(|node| server(&node));
    let operations_node = fields.optional("operations");
    let operations = operations_node.as_ref().map(operations);
    let providers_node = fields.optional("providers");
    let providers = providers_node.as_ref().map(providers).unwrap_or_default();
    let keys = fields.optional("keys").map(|node| keys(&node, &providers)).unwrap_or_default();
    let around = Around { server: server.as_ref(), keys: &keys };
    let callers_node = fields.optional("callers");
    let callers = callers_node.as_ref().map(|node| callers(node, &around)).unwrap_or_default();
    let audit = fields
        .required("audit", "add [audit] with file = \"…\", or off = true to go without")
        .and_then(|node| audit(&node));
    let log = match fields.optional("log") {
        None => Some(Log { json: false, filter: "info".to_owned() }),
        Some(node) => log(&node),
    };

    if let Some((Some(operations), node)) = operations.as_ref().zip(operations_node.as_ref()) {
        check_operations(node, operations, server.as_ref(), &callers, callers_node.as_ref());
    }
    let with_pin = providers.iter().find(|(_, provider)| {
        provider.as_ref().is_some_and(|provider| provider.secrets.contains_key("pin"))
    });
    if let (Some(server), Some((name, _))) = (&server, with_pin)
        && server.state_dir.is_none()
        && let Some(node) = fields.optional("server")
    {
        node.missing("state_dir", format_args!(
            "provider {name:?} has a PIN, and what became of it must survive a restart: write state_dir = \"/var/lib/claviger\""
        ));
    }
    Some(Config {
        path: path.to_owned(),
        sha256: sha256(text.as_bytes()),
        server: server?,
        operations: operations.map_or(Some(None), |operations| operations.map(Some))?,
        providers: all_good(providers)?,
        keys: all_good(keys)?,
        callers,
        audit: audit?,
        log: log?,
    })
}

fn all_good<T>(named: BTreeMap<String, Option<T>>) -> Option<BTreeMap<String, T>> {
    named.into_iter().map(|(name, value)| Some((name, value?))).collect()
}

/// `[operations]` beside the other sections.
fn check_operations(
    node: &Node<'_>,
    operations: &Operations,
    server: Option<&Server>,
    callers: &[Caller],
    callers_node: Option<&Node<'_>>,
) {
    if let (Some(server), Some(listen)) = (server, node.field("listen")) {
        if !operations.listen.ip().is_loopback() && server.tls.is_none() {
            listen.error("is not on loopback, where /metrics needs TLS; add [server.tls], or write \"127.0.0.1:9443\"");
        }
        match overlapping(operations.listen, &server.listen) {
            Some(same) if same == operations.listen => {
                listen.error("is in server.listen too; write another port");
            }
            Some(other) => listen
                .error(format_args!("overlaps with {other} in server.listen; write another port")),
            None => {}
        }
    }
    // A caller that is wrong itself still has its name.
    let named = callers_node.map(Node::elements).unwrap_or_default();
    let named: HashSet<&str> = named
        .iter()
        .filter_map(|caller| caller.field("name"))
        .filter_map(|name| name.text())
        .collect();
    let readers = node.field("readers").map(|node| node.elements()).unwrap_or_default();
    let mut seen = HashSet::new();
    for (item, reader) in readers.iter().zip(&operations.readers) {
        if !seen.insert(reader) {
            item.error("is listed a second time; leave it out");
        } else if !named.contains(reader.as_str()) {
            match nearest(reader, callers.iter().map(|caller| caller.name.as_str())) {
                Some(near) => {
                    item.error(format_args!("{reader:?} is no caller; did you mean {near:?}?"));
                }
                None => item.error(format_args!(
                    "{reader:?} is no caller; add [[callers]] with this name, or leave it out"
                )),
            }
        }
    }
}
