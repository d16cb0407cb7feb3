//! `[providers.NAME]`: `type` and `required` are read here, the rest by the provider.

use std::collections::BTreeMap;
use std::path::PathBuf;

use claviger_provider_api::{ProviderType, SecretSource, VaultField};
use toml::Spanned;
use toml::de::{DeTable, DeValue, Deserializer};

use super::{Provider, values};
use crate::daemon::backends::{self, PROVIDERS, ProviderConfig, check_secret, provider_types};
use claviger_configuration::{Node, joined, unknown_field};

/// `[providers]`.
pub(super) struct Providers<'a> {
    /// The section, which names those that are wrong as well: keys in them are not blamed.
    node: &'a Node<'a>,
    /// The providers with which nothing is wrong.
    pub(super) good: BTreeMap<String, Provider>,
}

impl<'a> Providers<'a> {
    pub(super) fn read(node: &'a Node<'a>) -> Self {
        let entries = node.entries();
        let mut providers = Self { node, good: BTreeMap::new() };
        for (name, node) in &entries {
            if let Err(message) = values::name(name) {
                node.error(message);
            }
            providers.good.extend(provider(node).map(|provider| ((*name).to_owned(), provider)));
        }
        for (name, node) in &entries {
            providers.check_stores(name, node);
        }
        providers
    }

    /// The name of a provider, if there is one.
    pub(super) fn named<'n>(&self, node: &Node<'n>) -> Option<&'n str> {
        let name = node.string()?;
        if self.node.field(name).is_none() {
            node.names_no("provider", self.node.names(), format_args!("add [providers.{name}]"));
            return None;
        }
        Some(name)
    }

    /// Secrets in Vault are read through a provider that is there, that can, and that needs none
    /// itself.
    fn check_stores(&self, name: &str, node: &Node<'_>) {
        let Some(provider) = self.good.get(name) else { return };
        let secrets = provider.config.provider_type().secrets.iter();
        for (option, node) in secrets.flat_map(|option| options(node, option)) {
            let Some(SecretSource::Vault(vault)) = provider.secrets.get(&option) else { continue };
            let node = node.optional("vault");
            if provider.config.is_secret_store() {
                node.error("would make this provider need Vault in order to log in to Vault; write { file = \"…\" } or { credential = \"…\" }");
                continue;
            }
            let store_node = node.optional("provider");
            let store = self.named(&store_node).and_then(|name| self.good.get(name));
            if let Some(store) = store.filter(|store| !store.config.is_secret_store()) {
                let (name, kind) = (&vault.provider, store.config.type_name());
                store_node.error(format_args!("{name:?} is of type {kind:?}, which holds no secrets of others; name a provider of type \"vault-transit\""));
            }
            if let Err(message) = check_secret(&vault.path, &vault.field) {
                node.error(message);
            }
        }
    }
}

fn provider(node: &Node<'_>) -> Option<Provider> {
    let table = node.table()?;
    let names: Vec<&str> = provider_types().map(|provider_type| provider_type.name).collect();
    let here = values::alternatives(&names);
    let type_node = node.required("type", &format!("write type = {here}"));
    let type_name = type_node.string();
    let provider_type = type_name.and_then(|name| provider_type(&type_node, name, &here));
    let required = node.flag("required", false);
    let provider_type = provider_type?;
    let secrets = secrets(node, provider_type)?;
    let config = own_options(node, table, provider_type)?;
    if let Err(message) = config.validate() {
        node.error(message);
        return None;
    }
    let files = files(node, provider_type);
    Some(Provider { required, config, secrets, files })
}

/// The type of this name; `here` are the names of those in this build.
fn provider_type(node: &Node<'_>, name: &str, here: &str) -> Option<&'static ProviderType> {
    if let Some(built) = provider_types().find(|built| built.name == name) {
        return Some(built);
    }
    if PROVIDERS.iter().any(|known| known.name == name) {
        node.error(format_args!(
            "{name:?} is not in this build; build claviger with the cargo feature {name:?}, or write {here}"
        ));
    } else {
        node.error(format_args!("{name:?} is not known; write {here}"));
    }
    None
}

/// The sources of a provider's secrets, by its options' names. A secret itself, written where its
/// source belongs, is refused here and never repeated: it must not reach a message.
fn secrets(
    node: &Node<'_>,
    provider_type: &ProviderType,
) -> Option<BTreeMap<String, SecretSource>> {
    let mut sources = BTreeMap::new();
    for option in provider_type.secrets {
        for (name, node) in options(node, option) {
            if !node.is_table() {
                node.error("must not stand in this file; write { file = \"…\" }, the path of a file that holds it, or { credential = \"…\" } for systemd");
                return None;
            }
            let text = |name| node.field(name).filter(|source| source.text().is_some());
            let file = || text("file").and_then(|file| file.file_path()).map(SecretSource::File);
            let credential = || text("credential").and_then(|name| name.text());
            let credential = || credential().map(|name| SecretSource::Credential(name.to_owned()));
            let source = match node.field("vault") {
                Some(node) => Some(SecretSource::Vault(vault_field(&node)?)),
                // Any other form is the provider's to refuse.
                None => file().or_else(credential),
            };
            sources.extend(source.map(|source| (name, source)));
        }
    }
    Some(sources)
}

/// The paths that a provider's options name, whole. What is no string is the provider's to refuse.
fn files(node: &Node<'_>, provider_type: &ProviderType) -> BTreeMap<String, PathBuf> {
    let found = provider_type.paths.iter().flat_map(|option| options(node, option));
    let texts = found.filter(|(_, node)| node.text().is_some());
    texts.filter_map(|(name, node)| Some((name, node.file_path()?))).collect()
}

/// The nodes of an option that may be inside tables, by their names; `*` is each name of a table. What
/// stands where a table belongs may be a secret, and is given as the option itself.
fn options<'a>(node: &Node<'a>, option: &str) -> Vec<(String, Node<'a>)> {
    let mut found = vec![(String::new(), node.clone())];
    for part in option.split('.') {
        let inside = |(path, node): (String, Node<'a>)| match part {
            _ if !node.is_table() => vec![(path, node)],
            "*" => {
                node.entries().into_iter().map(|(name, node)| (joined(&path, name), node)).collect()
            }
            name => node.field(name).map(|node| (joined(&path, name), node)).into_iter().collect(),
        };
        found = found.into_iter().flat_map(inside).collect();
    }
    found
}

/// `{ provider = "…", path = "…", field = "…" }`. What else stands there may be a secret, and is not
/// repeated.
fn vault_field(node: &Node<'_>) -> Option<VaultField> {
    let write = "write { provider = \"…\", path = \"secret/data/…\", field = \"…\" }";
    if !node.is_table() {
        node.error(format_args!("is no field of a secret in Vault; {write}"));
        return None;
    }
    let node = node.with_fields(&["provider", "path", "field"]);
    let text = |name| {
        let node = node.required(name, write);
        let text = node.text();
        if text.is_none() {
            node.error("is no string; write one");
        }
        text
    };
    let [provider, path, field] = ["provider", "path", "field"].map(text);
    Some(VaultField::new(provider?, path?, field?))
}

/// Lets the provider read its own options, with relative paths resolved.
fn own_options(
    node: &Node<'_>,
    table: &DeTable<'_>,
    provider_type: &ProviderType,
) -> Option<ProviderConfig> {
    let mut options = table.clone();
    options.remove("type");
    options.remove("required");
    for option in provider_type.paths {
        let path: Vec<&str> = option.split('.').collect();
        resolve_inside(node, &mut options, &path);
    }
    for option in provider_type.secrets {
        let path: Vec<&str> = option.split('.').chain(["file"]).collect();
        resolve_inside(node, &mut options, &path);
    }
    let options = Spanned::new(node.offset()..node.offset(), options);
    backends::read_options(provider_type.name, Deserializer::from(options))
        .map_err(|error| own_error(node, table, &error))
        .ok()
}

fn resolve_inside(node: &Node<'_>, table: &mut DeTable<'_>, path: &[&str]) {
    let [name, inside @ ..] = path else { return };
    if *name == "*" {
        for (_, value) in table.iter_mut() {
            if let DeValue::Table(table) = value.get_mut() {
                resolve_inside(node, table, inside);
            }
        }
        return;
    }
    match table.get_mut(*name).map(Spanned::get_mut) {
        Some(DeValue::String(path)) if inside.is_empty() => resolve(node, path),
        Some(DeValue::Table(table)) => resolve_inside(node, table, inside),
        _ => {}
    }
}

fn resolve(node: &Node<'_>, path: &mut std::borrow::Cow<'_, str>) {
    match node.report().resolve(path).into_os_string().into_string() {
        Ok(resolved) => *path = resolved.into(),
        Err(_) => node.error(format_args!(
            "{path:?} is relative to a folder whose name is not UTF-8; write the whole path"
        )),
    }
}

/// Reports what serde said about a provider's options, at the option it is about.
fn own_error(node: &Node<'_>, table: &DeTable<'_>, error: &toml::de::Error) {
    let offset = error.span().map(|span| span.start);
    let (mut path, mut at) = (node.path().to_owned(), node.offset());
    let mut inside = Some(table);
    while let Some(table) = inside.take() {
        let hit = table.iter().find(|(name, value)| {
            let (name, value) = (name.span(), value.span());
            let covers = |offset| name.contains(&offset) || value.contains(&offset);
            offset.is_some_and(covers)
        });
        if let Some((name, value)) = hit {
            path = joined(&path, name.get_ref());
            at = name.span().start;
            inside = value.get_ref().as_table();
        }
    }
    let message = error.message().trim();
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let (field, message) = match quoted.as_slice() {
        [field] if message.starts_with("missing field") => {
            (joined(&path, field), "is missing; write it in this table".to_owned())
        }
        [field, known @ ..] if message.starts_with("unknown field") => {
            (path, unknown_field(field, known))
        }
        [variant, known @ ..] if message.starts_with("unknown variant") => {
            let known = values::alternatives(known);
            (path, format!("{variant:?} is not known; write {known}"))
        }
        _ => (path, message.lines().collect::<Vec<_>>().join(" ")),
    };
    node.report().error(at, &field, message);
}

#[cfg(all(test, feature = "software", not(feature = "pkcs11")))]
mod tests {
    use crate::daemon::config::Config;

    #[test]
    fn a_provider_that_was_left_out_of_the_build_says_so() {
        let text = "[server]\nlisten = [\"unix:/run/c.sock\"]\n[audit]\noff = true\n[providers.a]\ntype = \"pkcs11\"\n";
        let error = Config::parse("claviger.toml".as_ref(), text).unwrap_err().to_string();
        let expected = "claviger.toml:6: providers.a.type: \"pkcs11\" is not in this build; build claviger with the cargo feature \"pkcs11\", or write ";
        assert!(error.starts_with(expected) && error.contains("\"software\""), "{error}");
    }
}
