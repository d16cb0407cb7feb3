//! From text to a checked configuration, or to everything that is wrong with it.

use std::path::Path;

use claviger_provider_api::public_key::sha256;

use super::callers::{Around, callers};
use super::issuers::issuers;
use super::keys::keys;
use super::providers::Providers;
use super::server::{audit, log, operations, server};
use super::signers::policy;
use super::telemetry::telemetry;
use super::{Config, ConfigErrors};
use claviger_configuration::Node;

impl Config {
    /// Parses and checks `text`. `path` is where it came from: it is named in errors, and relative
    /// paths are taken from its folder.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigErrors> {
        claviger_configuration::read(path, text, |root| config(path, text, root))
    }
}

/// Reads all sections.
fn config(path: &Path, text: &str, root: &Node<'_>) -> Config {
    let known = [
        "server",
        "operations",
        "providers",
        "keys",
        "issuers",
        "callers",
        "audit",
        "log",
        "telemetry",
        "policy",
    ];
    let root = root.with_fields(&known);
    let server_node = root.required("server", "add [server] with listen");
    let server = server(&server_node);
    let callers_node = root.optional("callers");
    let operations = root.field("operations").map(|node| operations(&node, &server, &callers_node));
    let providers_node = root.optional("providers");
    let providers = Providers::read(&providers_node);
    let keys = keys(&root.optional("keys"), &providers);
    let issuers_node = root.optional("issuers");
    let issuers = issuers(&issuers_node);
    let around = Around { server: &server, keys: &keys, issuers: &issuers_node };
    let callers = callers(&callers_node, &around);
    if !server.without_certificate.is_empty() && root.field("issuers").is_none() {
        server_node.optional("listen").error("lets clients in without a certificate, and there are no [issuers] whose tokens could say who they are; add one, or leave client_certificate out");
    }
    let write = "add [audit] with file = \"…\", or off = true to go without";
    let audit = audit(&root.required("audit", write), &keys, &callers);
    let log = log(&root.optional("log"));
    let telemetry = root.field("telemetry").map(|node| telemetry(&node));
    let policy = root.field("policy").map(|node| policy(&node, path));
    let providers = providers.good;
    let with_pin = providers.iter().find(|(_, provider)| provider.secrets.contains_key("pin"));
    // Where `listen` is missing too, it is the section that has another name.
    let lacks_state_dir =
        server_node.field("listen").is_some() && server_node.field("state_dir").is_none();
    if let Some((name, _)) = with_pin.filter(|_| lacks_state_dir) {
        server_node.missing("state_dir", format_args!(
            "provider {name:?} has a PIN, and what became of it must survive a restart: write state_dir = \"/var/lib/claviger\""
        ));
    }
    if let Some(node) = root.field("policy").filter(|_| server.state_dir.is_none()) {
        node.error("needs server.state_dir, where the policy in force is kept; write state_dir = \"/var/lib/claviger\"");
    }
    let (path, sha256, source) = (path.to_owned(), sha256(text.as_bytes()), text.into());
    Config {
        path,
        sha256,
        source,
        server,
        operations,
        providers,
        keys,
        issuers,
        callers,
        audit,
        log,
        telemetry,
        policy,
    }
}
