//! The sections of the file, one function each. Each reports what is wrong and goes on.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use claviger_configuration::{Node, all_of};
use claviger_tokens::{KeySource, Settings, person};

use super::database::database;
use super::values::{address, duration, network, one_of, origin, rate, url};
use super::{Approvals, Config, Keys, Limits, Log, Mode, Rate, Server, Transport};

/// The whole file; none only where something was reported.
pub(super) fn config(path: &Path, root: &Node<'_>) -> Option<Config> {
    let known =
        ["server", "operations", "issuer", "keys", "database", "limits", "approvals", "log"];
    let root = root.with_fields(&known);
    let server =
        server_section(&root.required("server", "write [server] with `listen` and `web_vault`"));
    let operations = root.field("operations").map(|node| operations_section(&node));
    let issuer = root.required("issuer", "write [issuer] with `url`, or with `keys` and `name`");
    let issuer = issuer_section(&issuer);
    let keys = root.required("keys", "write [keys] with `client`, `key` and `mode`");
    let keys = keys_section(&keys);
    let stored = root.required("database", "write [database] with `kind = \"sqlite\"` and `file`");
    let stored = database(&stored);
    let limits = limits_section(&root.optional("limits"));
    let approvals = root.field("approvals").map(|node| approvals_section(&node));
    let log = log_section(&root.optional("log"));
    Some(Config {
        path: path.to_owned(),
        server: server?,
        operations: all_of(operations)?,
        issuer: issuer?,
        keys: keys?,
        database: stored?,
        limits,
        approvals: all_of(approvals)?,
        log,
    })
}

fn server_section(node: &Node<'_>) -> Option<Server> {
    let known = ["listen", "web_vault", "tls", "proxies", "max_connections", "drain_timeout"];
    let node = node.with_fields(&known);
    let listen = node.required("listen", "write an address and a port: \"0.0.0.0:5000\"");
    let listen = listen.parsed(address);
    let web_vault = node.required("web_vault", "write the web vault's origin").parsed(origin);
    let transport = transport(&node);
    let max_connections = node.optional("max_connections").integer(1, 65_536).unwrap_or(1024);
    let drain_timeout = node.parsed_or("drain_timeout", Duration::from_secs(20), duration);
    Some(Server {
        listen: listen?,
        transport: transport?,
        web_vault: web_vault?,
        max_connections,
        drain_timeout,
    })
}

fn transport(node: &Node<'_>) -> Option<Transport> {
    match (node.field("tls"), node.field("proxies")) {
        (Some(tls), None) => {
            let tls = tls.with_fields(&["certificate", "private_key"]);
            let (certificate, private_key) = (file(&tls, "certificate"), file(&tls, "private_key"));
            Some(Transport::Tls { certificate: certificate?, private_key: private_key? })
        }
        (None, Some(proxies)) => {
            let wanted = "a list of addresses and networks: [\"172.16.0.0/12\"]";
            let items = proxies.some_items(wanted, format_args!("; write {wanted}"))?;
            let parsed = claviger_configuration::all(items.iter().map(|item| item.parsed(network)));
            Some(Transport::Proxied(parsed?))
        }
        (None, None) => {
            node.missing(
                "tls",
                "write tls = { certificate = …, private_key = … }, or `proxies` for plain HTTP \
                 behind a proxy that you name",
            );
            None
        }
        (Some(_), Some(proxies)) => {
            proxies.error("is for plain HTTP, and `tls` is there too; leave one of them out");
            None
        }
    }
}

fn operations_section(node: &Node<'_>) -> Option<SocketAddr> {
    let node = node.with_fields(&["listen"]);
    node.required("listen", "write an address and a port: \"127.0.0.1:9444\"").parsed(address)
}

fn issuer_section(node: &Node<'_>) -> Option<Settings> {
    let node = node.with_fields(&["url", "keys", "ca", "name"]);
    let name = node.field("name").map(|node| node.parsed(non_empty));
    let ca = node.field("ca").map(|node| node.file_path());
    let source = match (node.field("url"), node.field("keys")) {
        (Some(at), None) => {
            at.parsed(url).zip(all_of(ca)).map(|(url, ca)| KeySource::Discovery { url, ca })
        }
        (None, Some(keys)) => {
            if name.is_none() {
                node.missing("name", "write what `iss` is in its tokens");
            }
            if ca.is_some() {
                keys.error("is a file, which needs no `ca`; leave that out");
            }
            keys.file_path().map(KeySource::File)
        }
        (None, None) => {
            node.missing("url", "write where discovery is, or `keys` for a file");
            None
        }
        (Some(_), Some(keys)) => {
            keys.error("is there beside `url`; leave one of them out");
            None
        }
    };
    Some(Settings {
        name: all_of(name)?,
        source: source?,
        cache_time: Duration::from_mins(10),
        max_age: Duration::from_hours(24),
    })
}

fn keys_section(node: &Node<'_>) -> Option<Keys> {
    let node = node.with_fields(&["client", "key", "mode", "timeout"]);
    let client = file(&node, "client");
    let key = node.required("key", "write the name that the daemon gives the key");
    let key = key.parsed(non_empty);
    let modes = [("shared-key", Mode::SharedKey), ("per-user", Mode::PerUser)];
    let mode = node.required("mode", "write \"shared-key\" or \"per-user\"");
    let mode = mode.parsed(|text| one_of(text, &modes));
    let timeout = node.parsed_or("timeout", Duration::from_secs(10), duration);
    Some(Keys { client: client?, key: key?, mode: mode?, timeout })
}

fn limits_section(node: &Node<'_>) -> Limits {
    let node = node.with_fields(&["user", "refused"]);
    let (user, refused) = (Rate { count: 60, seconds: 60 }, Rate { count: 120, seconds: 60 });
    Limits {
        user: node.parsed_or("user", Some(user), rate),
        refused: node.parsed_or("refused", Some(refused), rate),
    }
}

fn approvals_section(node: &Node<'_>) -> Option<Approvals> {
    let node = node.with_fields(&[
        "key",
        "issuer",
        "client_id",
        "approvers",
        "scope",
        "max_age",
        "device_expiry",
        "admin_expiry",
        "requests",
    ]);
    let key = node.required("key", "write the name that the daemon gives the organisation's key");
    let key = key.parsed(non_empty);
    let issuer = node.required("issuer", "write { url = \"https://login.example.org\" }");
    let issuer = issuer_section(&issuer);
    let client_id = node.required("client_id", "write the client that approvers sign in with");
    let client_id = client_id.parsed(non_empty);
    let approvers = node.required("approvers", "write { claims = { groups = \"…\" } }");
    let approvers = person(&approvers.with_fields(&["subject", "claims"]), "could approve");
    let minutes = |name, most: u64| node.parsed_or(name, Duration::from_mins(most), duration);
    let (max_age, device_expiry) = (minutes("max_age", 15), minutes("device_expiry", 15));
    Some(Approvals {
        key: key?,
        issuer: issuer?,
        client_id: client_id?,
        approvers: approvers?,
        scope: node.parsed_or("scope", String::new(), non_empty),
        max_age,
        device_expiry,
        admin_expiry: node.parsed_or("admin_expiry", Duration::from_hours(7 * 24), duration),
        requests: node.parsed_or("requests", Some(Rate { count: 30, seconds: 3600 }), rate),
    })
}

fn log_section(node: &Node<'_>) -> Log {
    let node = node.with_fields(&["format", "filter"]);
    let formats = [("text", false), ("json", true)];
    Log {
        json: node.parsed_or("format", false, |text| one_of(text, &formats)),
        filter: node.parsed_or("filter", "info".to_owned(), crate::log::filter),
    }
}

/// A file that must be named.
pub(super) fn file(node: &Node<'_>, name: &str) -> Option<PathBuf> {
    node.required(name, "write the path of a file").file_path()
}

pub(super) fn non_empty(text: &str) -> Result<String, String> {
    let clean = !text.is_empty() && !text.chars().any(char::is_control);
    clean.then(|| text.to_owned()).ok_or_else(|| "is empty; write a text".to_owned())
}
