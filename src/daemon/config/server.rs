//! `[server]`, `[server.tls]`, `[operations]`, `[audit]` and `[log]`.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use tracing_subscriber::EnvFilter;

use super::sinks::sinks;
use super::{
    Audit, AuditFile, Caller, Checkpoints, Key, Listen, Log, Operation, Operations, Rotation,
    Server, SignedBy, State, Tls, values,
};
use claviger_configuration::{Node, all};

/// The longest path of a Unix socket in bytes: `sun_path` with its final zero is 108 long on
/// Linux and 104 elsewhere.
const MAX_SOCKET_PATH: usize = if cfg!(target_os = "linux") { 107 } else { 103 };

/// A placeholder: on loopback, and on a port that overlaps with none.
const ANY_ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// `[server]`.
pub(super) fn server(node: &Node<'_>) -> Server {
    let node = node.with_fields(&[
        "listen",
        "state_dir",
        "denied_callers",
        "tls",
        "reflection",
        "max_connections",
        "max_connections_per_caller",
        "max_concurrent_calls",
        "max_streams_per_connection",
        "max_handshakes",
        "handshake_timeout",
        "max_connection_age",
        "fleet",
        "drain_delay",
        "drain_timeout",
    ]);
    let at_least_one = |name, default| node.optional(name).integer(1, 1 << 24).unwrap_or(default);
    let limit = |name, default| at_least_one(name, default) as usize;
    let listen_node = node.required("listen", "write listen = [\"0.0.0.0:8443\"]");
    let mut without_certificate = Vec::new();
    let listen = listen(&listen_node, &mut without_certificate);
    let tls = node.field("tls").map(|node| tls(&node));
    let is_tcp = |listen: &Listen| matches!(listen, Listen::Tcp(_));
    if tls.is_none() && listen.iter().flatten().any(is_tcp) {
        listen_node.error(
            "has a TCP address, and there is no [server.tls]; add certificate, private_key and client_ca there, or listen on \"unix:…\" only",
        );
    }
    let max_connections = at_least_one("max_connections", 16_384);
    let quarter = (max_connections / 4).max(16);
    Server {
        // A placeholder has both kinds, as callers need one or the other.
        listen: listen
            .unwrap_or_else(|| vec![Listen::Tcp(ANY_ADDRESS), Listen::Unix(PathBuf::new())]),
        without_certificate,
        state_dir: node.optional("state_dir").file_path(),
        denied_callers: node.optional("denied_callers").file_path(),
        tls,
        reflection: node.flag("reflection", true),
        max_connections: max_connections as usize,
        max_connections_per_caller: limit("max_connections_per_caller", quarter),
        max_concurrent_calls: limit("max_concurrent_calls", 1024),
        max_streams_per_connection: at_least_one("max_streams_per_connection", 128),
        max_handshakes: limit("max_handshakes", 256),
        handshake_timeout: time_limit(&node, "handshake_timeout", Duration::from_secs(5)),
        max_connection_age: time_limit(&node, "max_connection_age", Duration::from_hours(1)),
        fleet: node.optional("fleet").integer(1, 100).unwrap_or(1),
        drain_delay: node.parsed_or("drain_delay", Duration::ZERO, values::duration),
        drain_timeout: node.parsed_or("drain_timeout", Duration::from_secs(30), values::duration),
    }
}

fn time_limit(node: &Node<'_>, name: &str, default: Duration) -> Duration {
    node.parsed_or(name, default, values::positive_duration)
}

fn listen(node: &Node<'_>, without_certificate: &mut Vec<SocketAddr>) -> Option<Vec<Listen>> {
    let items = node.some_items(
        "a list such as [\"0.0.0.0:8443\"]",
        "; write at least one address, such as \"0.0.0.0:8443\"",
    )?;
    let mut seen = HashMap::new();
    let mut sockets = Vec::new();
    for item in &items {
        let Some((socket, is_optional)) = one_listen(item) else { continue };
        if let (Listen::Tcp(address), true) = (&socket, is_optional) {
            without_certificate.push(*address);
        }
        if let Some(first) = seen.insert(format!("{socket:?}"), item.path().to_owned()) {
            item.error(format_args!("is the same as {first}; leave one of them out"));
        } else if let Listen::Tcp(address) = &socket
            && let Some(other) = overlapping(*address, &sockets)
        {
            item.error(format_args!("overlaps with {other}; leave one of them out"));
        }
        sockets.push(socket);
    }
    (sockets.len() == items.len()).then_some(sockets)
}

/// A socket, and whether clients need no certificate there.
fn one_listen(node: &Node<'_>) -> Option<(Listen, bool)> {
    if !node.is_table() {
        return Some((node.string().and_then(|text| socket(node, text))?, false));
    }
    let node = node.with_fields(&["address", "client_certificate"]);
    let certificate = node.field("client_certificate");
    let is_optional = certificate.as_ref().is_some_and(|node| {
        node.parsed(|word| match word {
            "required" => Ok(false),
            "optional" => Ok(true),
            _ => Err(format!("{word:?} is not known; write \"required\" or \"optional\"")),
        })
        .unwrap_or_default()
    });
    let address = node.required("address", "write address = \"0.0.0.0:8443\"");
    let socket = address.string().and_then(|text| socket(&address, text))?;
    if let (Listen::Unix(_), Some(certificate)) = (&socket, certificate) {
        certificate.error("is for TLS; a Unix socket shows the peer's uid: leave it out");
    }
    Some((socket, is_optional))
}

/// The socket among those that takes this address too: the system lets only one listen. IPv4 and
/// IPv6 may share a port.
fn overlapping(address: SocketAddr, sockets: &[Listen]) -> Option<SocketAddr> {
    let tcp = sockets.iter().filter_map(|socket| match socket {
        Listen::Tcp(other) => Some(*other),
        Listen::Unix(_) => None,
    });
    tcp.filter(|other| other.port() == address.port() && address.port() != 0).find(|other| {
        let (one, two) = (address.ip(), other.ip());
        one.is_ipv4() == two.is_ipv4()
            && (one == two || one.is_unspecified() || two.is_unspecified())
    })
}

fn socket(node: &Node<'_>, text: &str) -> Option<Listen> {
    let Some(path) = text.strip_prefix("unix:") else {
        return node.parsed(|text| values::socket_address(text, "8443")).map(Listen::Tcp);
    };
    if path.is_empty() || path.contains('\0') {
        node.error("has no path; write \"unix:/run/claviger/claviger.sock\"");
        return None;
    }
    let path = node.report().resolve(path);
    let length = path.as_os_str().as_bytes().len();
    if length > MAX_SOCKET_PATH {
        node.error(format_args!(
            "is a path of {length} bytes; a Unix socket's path has at most {MAX_SOCKET_PATH}: write a shorter one"
        ));
        return None;
    }
    Some(Listen::Unix(path))
}

fn tls(node: &Node<'_>) -> Tls {
    let known = ["certificate", "private_key", "client_ca", "crl", "crl_grace", "min_version"];
    let node = node.with_fields(&known);
    let path = |name, write| node.required(name, write).file_path().unwrap_or_default();
    let bundles = "write client_ca = { clients = \"…/clients.pem\" }";
    Tls {
        certificate: path("certificate", "write the path of the server's certificate chain (PEM)"),
        private_key: path("private_key", "write the path of the certificate's private key (PEM)"),
        client_ca: client_ca(&node.required("client_ca", bundles)).unwrap_or_default(),
        crl: node.optional("crl").list("a list of paths", Node::file_path).unwrap_or_default(),
        crl_grace: node.parsed_or("crl_grace", Duration::from_hours(72), values::duration),
        allow_tls12: node.parsed_or("min_version", false, |version| match version {
            "1.2" => Ok(true),
            "1.3" => Ok(false),
            _ => Err(format!("{version:?} is not known; write \"1.3\" or \"1.2\"")),
        }),
    }
}

fn client_ca(node: &Node<'_>) -> Option<BTreeMap<String, PathBuf>> {
    if !node.is_table() {
        node.error("has no name; write client_ca = { clients = \"…/clients.pem\" }");
        return None;
    }
    let bundles = all(node.entries().iter().map(|(name, bundle)| {
        let name = values::name(name).map_err(|message| bundle.error(message)).ok();
        name.zip(bundle.file_path())
    }))?;
    if bundles.is_empty() {
        node.error("is empty: no client could connect; name at least one bundle of client CAs");
    }
    Some(bundles.into_iter().collect())
}

/// `[operations]`; `callers` is the section that names who may read.
pub(super) fn operations(node: &Node<'_>, server: &Server, callers: &Node<'_>) -> Operations {
    let node = node.with_fields(&["listen", "readers"]);
    let listen_node = node.required("listen", "write listen = \"127.0.0.1:9443\"");
    let listen = listen_node.parsed(operations_address).unwrap_or(ANY_ADDRESS);
    if !listen.ip().is_loopback() && server.tls.is_none() {
        listen_node.error("is not on loopback, where /metrics needs TLS; add [server.tls], or write \"127.0.0.1:9443\"");
    }
    match overlapping(listen, &server.listen) {
        Some(same) if same == listen => {
            listen_node.error("is in server.listen too; write another port");
        }
        Some(other) => listen_node
            .error(format_args!("overlaps with {other} in server.listen; write another port")),
        None => {}
    }
    Operations { listen, readers: readers(&node.optional("readers"), callers) }
}

fn readers(node: &Node<'_>, callers: &Node<'_>) -> Vec<String> {
    // A caller that is wrong itself still has its name.
    let names = callers.elements();
    let names = names.iter().filter_map(|caller| caller.field("name")?.text());
    let names: HashSet<&str> = names.collect();
    let mut seen = HashSet::new();
    let reader = |item: &Node<'_>| {
        let reader = item.string()?.to_owned();
        if !seen.insert(reader.clone()) {
            item.error("is listed a second time; leave it out");
        } else if !names.contains(reader.as_str()) {
            let add = "add [[callers]] with this name, or leave it out";
            item.names_no("caller", names.iter().copied(), add);
        }
        Some(reader)
    };
    node.list("a list of callers' names", reader).unwrap_or_default()
}

fn operations_address(text: &str) -> Result<SocketAddr, String> {
    if text.starts_with("unix:") {
        return Err(format!(
            "{text:?} is a Unix socket, and kubelets and load balancers ask over TCP; write \"127.0.0.1:9443\""
        ));
    }
    values::socket_address(text, "9443")
}

/// `[audit]`; what signs its checkpoints is one of `keys`, and none of `callers` may sign with that.
pub(super) fn audit(node: &Node<'_>, keys: &BTreeMap<String, Key>, callers: &[Caller]) -> Audit {
    const WRITE: &str =
        "write file = \"/var/log/claviger/audit.jsonl\", or off = true to go without";
    let node = node.with_fields(&[
        "file",
        "off",
        "group_readable",
        "max_size",
        "max_age",
        "keep",
        "checkpoints",
        "sinks",
        "hang_limit",
    ]);
    let file = node.field("file").map(|file| audit_file(&file).unwrap_or_default());
    // A placeholder contradicts neither a file nor its lack.
    let off = node.field("off").is_some_and(|off| off.boolean().unwrap_or(file.is_none()));
    let group_reads = node.flag("group_readable", false);
    let rotation = rotation(&node);
    let checkpoints = node.field("checkpoints").map(|node| checkpoints(&node, keys, callers));
    let sinks = sinks(&node.optional("sinks"));
    let hang_limit = hang_limit(&node);
    match (file, off) {
        (Some(path), false) => {
            let file = AuditFile { path, group_reads, rotation, checkpoints, sinks, hang_limit };
            return Audit::File(Box::new(file));
        }
        (Some(_), true) => node.error("has a file and off = true; leave one of them out"),
        (None, false) => node.missing("file", WRITE),
        (None, true) => {}
    }
    Audit::Off
}

fn audit_file(node: &Node<'_>) -> Option<PathBuf> {
    if let "-" | "stdout" | "stderr" | "/dev/stdout" | "/dev/stderr" = node.string()? {
        node.error("is no file: a record is on the disk before its answer leaves, which no stream can promise; write file = \"/var/log/claviger/audit.jsonl\" and have your collector read that");
        return None;
    }
    node.file_path()
}

/// `audit.hang_limit`.
fn hang_limit(node: &Node<'_>) -> Duration {
    let limit = time_limit(node, "hang_limit", Duration::from_millis(1500));
    if !(Duration::from_millis(100)..=Duration::from_mins(1)).contains(&limit) {
        node.optional("hang_limit").error("is not from 100ms to 1m; write hang_limit = \"1500ms\"");
    }
    limit
}

/// `audit.max_size`, `audit.max_age` and `audit.keep`.
fn rotation(node: &Node<'_>) -> Rotation {
    let max_size = node.field("max_size").map(|size| size.parsed(values::size).unwrap_or(1 << 28));
    let max_age = node.field("max_age").map(|age| {
        let found = age.parsed(values::positive_duration).unwrap_or(Duration::from_hours(24));
        if found < Duration::from_mins(1) {
            age.error("is less than a minute; write max_age = \"24h\"");
        }
        found
    });
    let keep = node.optional("keep").integer(1, 1 << 20).map(|keep| keep as usize);
    if let (Some(keep), None, None) = (node.field("keep"), max_size, max_age) {
        keep.error("counts files that the daemon itself leaves; write max_size = \"256MiB\" or max_age = \"24h\" too, or leave it out");
    }
    Rotation { max_size, max_age, keep }
}

/// `audit.checkpoints`.
fn checkpoints(node: &Node<'_>, keys: &BTreeMap<String, Key>, callers: &[Caller]) -> Checkpoints {
    let node = node.with_fields(&["origin", "key", "signed_by", "file", "every"]);
    let path = |name, write| node.required(name, write).file_path().unwrap_or_default();
    let origin = "write the log's name, such as \"claviger.example.org/audit\"";
    Checkpoints {
        origin: node
            .required("origin", origin)
            .parsed(values::checkpoint_origin)
            .unwrap_or_default(),
        signed_by: signed_by(&node, keys, callers),
        file: path("file", "write the path of a second file, best on another disk"),
        every: time_limit(&node, "every", Duration::from_mins(10)),
    }
}

fn signed_by(node: &Node<'_>, keys: &BTreeMap<String, Key>, callers: &[Caller]) -> SignedBy {
    let file = node.field("key").map(|key| SignedBy::File(key.file_path().unwrap_or_default()));
    let name = node.field("signed_by").map(|name| signing_key(&name, keys, callers));
    match (file, name) {
        (Some(_), Some(_)) => node.error("has key and signed_by; leave one of them out"),
        (None, None) => node.missing("key", "write the path of an Ed25519 key (`openssl genpkey -algorithm ed25519` makes one), or signed_by = \"…\" with a key of [keys] that signs"),
        (Some(one), None) | (None, Some(one)) => return one,
    }
    SignedBy::File(PathBuf::new())
}

/// The name of a key that signs, and that no caller signs with: who could, could sign another log.
fn signing_key(node: &Node<'_>, keys: &BTreeMap<String, Key>, callers: &[Caller]) -> SignedBy {
    let name = node.string().unwrap_or_default();
    let Some(key) = keys.get(name) else {
        let add = "add it to [keys], with sign_algorithms = [\"PS256\"]";
        node.names_no("key", keys.keys().map(String::as_str), add);
        return SignedBy::Key(name.to_owned());
    };
    let newest = key.versions.iter().find(|version| version.state == State::Active);
    if newest.is_none_or(|version| version.sign_algorithms.is_empty()) {
        node.error(format_args!("{name:?} has no active version that signs; write sign_algorithms = [\"PS256\"] in [keys.{name}]"));
    }
    let signs = |caller: &&Caller| {
        let mut grants = caller.grants.iter();
        grants.any(|grant| {
            grant.keys.iter().any(|key| key == name) && grant.operations.contains(&Operation::Sign)
        })
    };
    if let Some(caller) = callers.iter().find(signs) {
        node.error(format_args!("{name:?} may be signed with by caller {:?}, who could sign another log; give checkpoints a key of their own", caller.name));
    }
    SignedBy::Key(name.to_owned())
}

/// `[log]`.
pub(super) fn log(node: &Node<'_>) -> Log {
    let node = node.with_fields(&["format", "filter"]);
    Log {
        json: node.parsed_or("format", false, |format| match format {
            "text" => Ok(false),
            "json" => Ok(true),
            _ => Err(format!("{format:?} is not known; write \"text\" or \"json\"")),
        }),
        filter: node.parsed_or("filter", "info".to_owned(), |filter| {
            EnvFilter::try_new(filter).map(|_| filter.to_owned()).map_err(|error| {
                format!(
                    "{filter:?} is no filter ({error}); write \"info\" or \"claviger=debug,warn\""
                )
            })
        }),
    }
}
