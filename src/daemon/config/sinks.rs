//! `[audit.sinks.NAME]`.

use std::path::PathBuf;

use claviger_configuration::Node;

use super::telemetry::{OF_COLLECTOR, collector, identity, service_name};
use super::{Sink, SinkKind, SyslogAddress, TlsSink, values};

const WRITE_TYPE: &str = "write type = \"syslog\", \"journald\" or \"otlp\"";
const WRITE_ADDRESS: &str = "write address = \"tls:siem.example.org:6514\" or \"unix:/dev/log\"";
/// Where systemd's journal listens.
const JOURNAL: &str = "/run/systemd/journal/socket";
/// The spool of a sink that no call needs.
const BEST_EFFORT_SPOOL: u64 = 1 << 30;

/// All sinks, in the file's order.
pub(super) fn sinks(node: &Node<'_>) -> Vec<Sink> {
    node.entries().into_iter().map(|(name, node)| sink(name, &node)).collect()
}

fn sink(name: &str, node: &Node<'_>) -> Sink {
    if let Err(message) = values::name(name) {
        node.error(message);
    }
    let kind = node.required("type", WRITE_TYPE).parsed(kind);
    let (node, kind) = match kind {
        Some(Kind::Syslog) => syslog(node),
        Some(Kind::Journald) => {
            let node = node.with_fields(&["type", "socket", "best_effort", "spool"]);
            let socket = node.field("socket").and_then(|socket| socket.file_path());
            (node, SinkKind::Journald { socket: socket.unwrap_or_else(|| JOURNAL.into()) })
        }
        Some(Kind::Otlp) => {
            let known = [&["type", "best_effort", "spool"][..], &OF_COLLECTOR].concat();
            let node = node.with_fields(&known);
            let (collector, service_name) = (Box::new(collector(&node)), service_name(&node));
            (node, SinkKind::Otlp { collector, service_name })
        }
        None => (node.clone(), SinkKind::Journald { socket: JOURNAL.into() }),
    };
    let best_effort = node.flag("best_effort", false);
    let default = if best_effort { BEST_EFFORT_SPOOL } else { 0 };
    let spool = node.parsed_or("spool", default, values::size);
    Sink { name: name.to_owned(), kind, best_effort, spool }
}

enum Kind {
    Syslog,
    Journald,
    Otlp,
}

fn kind(text: &str) -> Result<Kind, String> {
    match text {
        "syslog" => Ok(Kind::Syslog),
        "journald" => Ok(Kind::Journald),
        "otlp" => Ok(Kind::Otlp),
        _ => Err(format!("{text:?} is not known; {WRITE_TYPE}")),
    }
}

fn syslog<'a>(node: &Node<'a>) -> (Node<'a>, SinkKind) {
    let of_tls = ["ca", "certificate", "private_key"];
    let known = [&["type", "address", "best_effort", "spool"][..], &of_tls].concat();
    let node = node.with_fields(&known);
    let address = node.required("address", WRITE_ADDRESS).parsed(address);
    let address = match address {
        Some(Address::Tls(host, port)) => SyslogAddress::Tls(tls(&node, host, port)),
        unix => {
            let path = match unix {
                Some(Address::Unix(path)) => node.report().resolve(&path),
                _ => PathBuf::new(),
            };
            for field in of_tls.iter().filter_map(|name| node.field(name)) {
                field
                    .error("is for an address such as \"tls:siem.example.org:6514\"; leave it out");
            }
            SyslogAddress::Unix(path)
        }
    };
    (node, SinkKind::Syslog { address })
}

enum Address {
    Unix(String),
    Tls(String, u16),
}

fn address(text: &str) -> Result<Address, String> {
    let refused = || Err(format!("{text:?} is no address; {WRITE_ADDRESS}"));
    if let Some(path) = text.strip_prefix("unix:") {
        return if path.is_empty() { refused() } else { Ok(Address::Unix(path.to_owned())) };
    }
    let Some((host, port)) = text.strip_prefix("tls:").and_then(|rest| rest.rsplit_once(':'))
    else {
        return refused();
    };
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    match port.parse() {
        Ok(port) if port > 0 && rustls_pki_types::ServerName::try_from(host).is_ok() => {
            Ok(Address::Tls(host.to_owned(), port))
        }
        _ => refused(),
    }
}

fn tls(node: &Node<'_>, host: String, port: u16) -> TlsSink {
    let write = "write the path of the CA certificates of the collector (PEM)";
    let ca = node.required("ca", write).file_path().unwrap_or_default();
    TlsSink { host, port, ca, identity: identity(node) }
}
