//! `[server]`, `[server.tls]`, `[operations]`, `[audit]` and `[log]`.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use tracing_subscriber::EnvFilter;

use super::reader::{Fields, Node};
use super::{Audit, Checkpoints, Listen, Log, Operations, Server, Tls, values};

/// The longest path of a Unix socket in bytes: `sun_path` with its final zero is 108 long on
/// Linux and 104 elsewhere.
const MAX_SOCKET_PATH: usize = if cfg!(target_os = "linux") { 107 } else { 103 };

/// `[server]`.
pub(super) fn server(node: &Node<'_>) -> Option<Server> {
    let fields = node.fields(&[
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
        "drain_delay",
        "drain_timeout",
    ])?;
    let at_least_one = |name, default| {
        fields.optional(name).map_or(Some(default), |node| node.integer(1, 1 << 24))
    };
    let listen_node = fields.required("listen", "write listen = [\"0.0.0.0:8443\"]");
    let listen = listen_node.as_ref().and_then(listen);
    let tls = fields.optional("tls").map(|node| tls(&node));
    if let (Some(node), Some(listen), None) = (&listen_node, &listen, &tls)
        && listen.iter().any(|listen| matches!(listen, Listen::Tcp(_)))
    {
        node.error(
            "has a TCP address, and there is no [server.tls]; add certificate, private_key and client_ca there, or listen on \"unix:…\" only",
        );
    }
    let path = |name| fields.optional(name).map_or(Some(None), |node| node.file_path().map(Some));
    let state_dir = path("state_dir");
    let denied_callers = path("denied_callers");
    let reflection = fields.optional("reflection").map_or(Some(true), |node| node.boolean());
    let max_connections = at_least_one("max_connections", 16_384);
    let quarter = (max_connections.unwrap_or_default() / 4).max(16);
    let max_connections_per_caller = at_least_one("max_connections_per_caller", quarter);
    let max_concurrent_calls = at_least_one("max_concurrent_calls", 1024);
    let max_streams_per_connection = at_least_one("max_streams_per_connection", 128);
    let max_handshakes = at_least_one("max_handshakes", 256);
    let handshake_timeout = duration(&fields, "handshake_timeout", Duration::from_secs(5));
    let max_connection_age = duration(&fields, "max_connection_age", Duration::from_hours(1));
    let drain_delay = match fields.optional("drain_delay") {
        None => Some(Duration::ZERO),
        Some(node) => node.parsed(values::duration),
    };
    let drain_timeout = match fields.optional("drain_timeout") {
        None => Some(Duration::from_secs(30)),
        Some(node) => node.parsed(values::duration),
    };
    Some(Server {
        listen: listen?,
        state_dir: state_dir?,
        denied_callers: denied_callers?,
        tls: tls.map_or(Some(None), |tls| tls.map(Some))?,
        reflection: reflection?,
        max_connections: max_connections? as usize,
        max_connections_per_caller: max_connections_per_caller? as usize,
        max_concurrent_calls: max_concurrent_calls? as usize,
        max_streams_per_connection: max_streams_per_connection?,
        max_handshakes: max_handshakes? as usize,
        handshake_timeout: handshake_timeout?,
        max_connection_age: max_connection_age?,
        drain_delay: drain_delay?,
        drain_timeout: drain_timeout?,
    })
}

fn duration(fields: &Fields<'_>, name: &str, default: Duration) -> Option<Duration> {
    fields.optional(name).map_or(Some(default), |node| node.parsed(values::positive_duration))
}

fn listen(node: &Node<'_>) -> Option<Vec<Listen>> {
    let items = node.items("a list such as [\"0.0.0.0:8443\"]")?;
    if items.is_empty() {
        node.error("is empty; write at least one address, such as \"0.0.0.0:8443\"");
        return None;
    }
    let mut seen = HashMap::new();
    let mut sockets = Vec::new();
    for item in &items {
        let Some(socket) = item.string().and_then(|text| socket(item, text)) else { continue };
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

/// The socket among those that takes this address too: the system lets only one listen. IPv4 and
/// IPv6 may share a port.
pub(super) fn overlapping(address: SocketAddr, sockets: &[Listen]) -> Option<SocketAddr> {
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

fn tls(node: &Node<'_>) -> Option<Tls> {
    let fields = node.fields(&[
        "certificate",
        "private_key",
        "client_ca",
        "crl",
        "crl_grace",
        "min_version",
    ])?;
    let certificate = fields
        .required("certificate", "write the path of the server's certificate chain (PEM)")
        .and_then(|node| node.file_path());
    let private_key = fields
        .required("private_key", "write the path of the certificate's private key (PEM)")
        .and_then(|node| node.file_path());
    let client_ca = fields
        .required("client_ca", "write client_ca = { clients = \"…/clients.pem\" }")
        .and_then(|node| client_ca(&node));
    let crl = match fields.optional("crl") {
        None => Some(Vec::new()),
        Some(node) => node
            .items("a list of paths")
            .and_then(|items| items.iter().map(Node::file_path).collect()),
    };
    let crl_grace = match fields.optional("crl_grace") {
        None => Some(Duration::from_hours(72)),
        Some(node) => node.parsed(values::duration),
    };
    let allow_tls12 = match fields.optional("min_version") {
        None => Some(false),
        Some(node) => node.parsed(|version| match version {
            "1.2" => Ok(true),
            "1.3" => Ok(false),
            _ => Err(format!("{version:?} is not known; write \"1.3\" or \"1.2\"")),
        }),
    };
    Some(Tls {
        certificate: certificate?,
        private_key: private_key?,
        client_ca: client_ca?,
        crl: crl?,
        crl_grace: crl_grace?,
        allow_tls12: allow_tls12?,
    })
}

fn client_ca(node: &Node<'_>) -> Option<BTreeMap<String, PathBuf>> {
    if !node.is_table() {
        node.error("has no name; write client_ca = { clients = \"…/clients.pem\" }");
        return None;
    }
    let mut bundles = BTreeMap::new();
    let mut entries = 0;
    for (name, bundle) in node.entries() {
        entries += 1;
        let good_name = values::name(name).map_err(|message| bundle.error(message)).ok();
        bundles.extend(good_name.zip(bundle.file_path()));
    }
    if entries == 0 {
        node.error("is empty: nobody could connect; name at least one bundle of client CAs");
    }
    (entries > 0 && bundles.len() == entries).then_some(bundles)
}

/// `[operations]`, without its readers' names checked.
pub(super) fn operations(node: &Node<'_>) -> Option<Operations> {
    let fields = node.fields(&["listen", "readers"])?;
    let listen = fields
        .required("listen", "write listen = \"127.0.0.1:9443\"")
        .and_then(|node| node.parsed(operations_address));
    let readers = match fields.optional("readers") {
        None => Some(Vec::new()),
        Some(node) => node
            .items("a list of callers' names")
            .and_then(|items| items.iter().map(|item| item.string().map(str::to_owned)).collect()),
    };
    Some(Operations { listen: listen?, readers: readers? })
}

fn operations_address(text: &str) -> Result<SocketAddr, String> {
    if text.starts_with("unix:") {
        return Err(format!(
            "{text:?} is a Unix socket, and kubelets and load balancers ask over TCP; write \"127.0.0.1:9443\""
        ));
    }
    values::socket_address(text, "9443")
}

/// `[audit]`.
pub(super) fn audit(node: &Node<'_>) -> Option<Audit> {
    const WRITE: &str =
        "write file = \"/var/log/claviger/audit.jsonl\", or off = true to go without";
    let fields = node.fields(&["file", "off", "group_readable", "checkpoints"])?;
    let file = fields.optional("file").map(|node| match node.string() {
        Some("-" | "stdout" | "stderr" | "/dev/stdout" | "/dev/stderr") => {
            node.error(NO_STREAM);
            None
        }
        Some(_) => node.file_path(),
        None => None,
    });
    let boolean = |name| fields.optional(name).map_or(Some(false), |node| node.boolean());
    let (off, group_reads) = (boolean("off"), boolean("group_readable"));
    let checkpoints = match fields.optional("checkpoints") {
        None => Some(None),
        Some(node) => checkpoints(&node).map(Some),
    };
    match (file, off?) {
        (None, true) => Some(Audit::Off),
        (Some(path), false) => {
            Some(Audit::File { path: path?, group_reads: group_reads?, checkpoints: checkpoints? })
        }
        (Some(_), true) => {
            node.error("has a file and off = true; leave one of them out");
            None
        }
        (None, false) => {
            node.missing("file", WRITE);
            None
        }
    }
}

/// `audit.checkpoints`.
fn checkpoints(node: &Node<'_>) -> Option<Checkpoints> {
    let fields = node.fields(&["origin", "key", "file", "every"])?;
    let origin = fields
        .required("origin", "write the log's name, such as \"claviger.example.org/audit\"")
        .and_then(|node| node.parsed(values::checkpoint_origin));
    let key = fields
        .required(
            "key",
            "write the path of an Ed25519 key; `openssl genpkey -algorithm ed25519` makes one",
        )
        .and_then(|node| node.file_path());
    let file = fields
        .required("file", "write the path of a second file, best on another disk")
        .and_then(|node| node.file_path());
    let every = duration(&fields, "every", Duration::from_mins(10));
    Some(Checkpoints { origin: origin?, key: key?, file: file?, every: every? })
}

/// What an audit log cannot be.
const NO_STREAM: &str = "is no file: a record is on the disk before its answer leaves, which no stream can promise; write file = \"/var/log/claviger/audit.jsonl\" and have your collector read that";

/// `[log]`.
pub(super) fn log(node: &Node<'_>) -> Option<Log> {
    let fields = node.fields(&["format", "filter"])?;
    let json = fields.optional("format").map_or(Some(false), |node| {
        node.parsed(|format| match format {
            "text" => Ok(false),
            "json" => Ok(true),
            _ => Err(format!("{format:?} is not known; write \"text\" or \"json\"")),
        })
    });
    let filter = fields.optional("filter").map_or(Some("info".to_owned()), |node| {
        node.parsed(|filter| match EnvFilter::try_new(filter) {
            Ok(_) => Ok(filter.to_owned()),
            Err(error) => Err(format!(
                "{filter:?} is no filter ({error}); write \"info\" or \"claviger=debug,warn\""
            )),
        })
    });
    Some(Log { json: json?, filter: filter? })
}
