//! `[telemetry]`, and where an OpenTelemetry collector is.

use std::fmt;
use std::path::PathBuf;

use claviger_configuration::Node;
use claviger_provider_api::options::is_loopback;
use rustls_pki_types::ServerName;
use url::Url;

use super::values;

const WRITE_ENDPOINT: &str = "write endpoint = \"https://collector.example.org:4317\"";
const WRITE_SAMPLING: &str = "write sampling = \"100%\", \"5%\" or \"0.1%\"";
/// The options of a collector.
pub(super) const OF_COLLECTOR: [&str; 6] =
    ["endpoint", "ca", "certificate", "private_key", "headers", "service_name"];
/// What the daemon is called where nothing else is said.
const SERVICE_NAME: &str = "claviger";

/// `[telemetry]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Telemetry {
    /// Where spans go.
    pub collector: OtlpCollector,
    /// How many of [`Telemetry::ALL`] traces that begin here are kept; of others their beginning decides.
    /// Default: all.
    pub sampling: u32,
    /// `service.name` in what is sent. Default: `claviger`.
    pub service_name: String,
}

impl Telemetry {
    /// `sampling = "100%"`.
    pub const ALL: u32 = 100_000;
}

/// An OpenTelemetry collector: OTLP over gRPC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtlpCollector {
    /// `endpoint`.
    pub endpoint: OtlpEndpoint,
    /// `ca`: the only CAs to trust, PEM; none: the system's.
    pub ca: Option<PathBuf>,
    /// `certificate` and `private_key`: what it is shown, PEM.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// `headers`: a secret file with a line `name: value` for each header that is sent.
    pub headers: Option<PathBuf>,
}

/// `https://HOST[:PORT]`, or `http` on loopback.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtlpEndpoint {
    /// A DNS name or an address, without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
    /// Whether it speaks TLS.
    pub is_tls: bool,
}

impl fmt::Display for OtlpEndpoint {
    /// As a URL.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port, is_tls } = self;
        let scheme = if *is_tls { "https" } else { "http" };
        if host.contains(':') {
            return write!(f, "{scheme}://[{host}]:{port}");
        }
        write!(f, "{scheme}://{host}:{port}")
    }
}

/// `[telemetry]`.
pub(super) fn telemetry(node: &Node<'_>) -> Telemetry {
    let node = node.with_fields(&[&OF_COLLECTOR[..], &["sampling"]].concat());
    Telemetry {
        collector: collector(&node),
        sampling: node.parsed_or("sampling", Telemetry::ALL, sampling),
        service_name: service_name(&node),
    }
}

/// The options of a collector in this table.
pub(super) fn collector(node: &Node<'_>) -> OtlpCollector {
    let endpoint = node.required("endpoint", WRITE_ENDPOINT).parsed(endpoint);
    let path = |name: &str| node.field(name).map(|node| node.file_path().unwrap_or_default());
    let (ca, identity, headers) = (path("ca"), identity(node), path("headers"));
    if endpoint.as_ref().is_some_and(|endpoint| !endpoint.is_tls) {
        for field in ["ca", "certificate", "private_key"].iter().filter_map(|n| node.field(n)) {
            field.error("is for an endpoint with https; leave it out");
        }
    }
    // A placeholder contradicts nothing.
    let endpoint = endpoint.unwrap_or_else(|| OtlpEndpoint {
        host: "localhost".to_owned(),
        port: 4317,
        is_tls: true,
    });
    OtlpCollector { endpoint, ca, identity, headers }
}

/// `certificate` and `private_key`: both or none.
pub(super) fn identity(node: &Node<'_>) -> Option<(PathBuf, PathBuf)> {
    let path = |name: &str| node.field(name).map(|node| node.file_path().unwrap_or_default());
    match (path("certificate"), path("private_key")) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (Some(_), None) => {
            node.missing("private_key", "write the path of the certificate's private key (PEM)");
            None
        }
        (None, Some(_)) => {
            node.missing("certificate", "write the path of the private key's certificate (PEM)");
            None
        }
        (None, None) => None,
    }
}

pub(super) fn service_name(node: &Node<'_>) -> String {
    node.parsed_or("service_name", SERVICE_NAME.to_owned(), values::name)
}

fn endpoint(text: &str) -> Result<OtlpEndpoint, String> {
    let refused = |reason: &str| Err(format!("{text:?} {reason}; {WRITE_ENDPOINT}"));
    let Ok(url) = Url::parse(text) else { return refused("is no URL") };
    if !url.username().is_empty() || url.password().is_some() {
        return Err(format!("has a user name; {WRITE_ENDPOINT}, and what it asks for in headers"));
    }
    if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
        return refused("has more than a host and a port");
    }
    let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else {
        return refused("has no host");
    };
    let is_tls = match url.scheme() {
        "https" => true,
        "http" if is_loopback(host) => false,
        "http" => {
            return refused(
                "is http, which is for loopback: who calls for which key is not sent in the clear",
            );
        }
        _ => return refused("is neither https nor http"),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    if ServerName::try_from(host.as_str()).is_err() {
        return refused("names no host that a certificate could have");
    }
    Ok(OtlpEndpoint { host, port, is_tls })
}

/// A percentage with at most three digits behind the point, in hundred thousandths.
fn sampling(text: &str) -> Result<u32, String> {
    let parsed = || {
        let number = text.strip_suffix('%')?;
        let (whole, part) = number.split_once('.').unwrap_or((number, "0"));
        let are_digits = |text: &str, most| {
            (1..=most).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit())
        };
        if !are_digits(whole, 3) || !are_digits(part, 3) {
            return None;
        }
        let thousandths: u32 = format!("{part:0<3}").parse().ok()?;
        Some(whole.parse::<u32>().ok()? * 1000 + thousandths)
    };
    match parsed() {
        Some(share @ 1..=Telemetry::ALL) => Ok(share),
        _ => Err(format!(
            "{text:?} is no share of the traces; {WRITE_SAMPLING}, or leave [telemetry] out"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_a_percentage_above_nothing() {
        for (text, share) in [("100%", 100_000), ("5%", 5_000), ("0.1%", 100), ("0.001%", 1)] {
            assert_eq!(sampling(text), Ok(share), "{text}");
        }
        for wrong in ["", "%", "5", "0%", "100.001%", "101%", "-1%", "+1%", "1.%", ".5%", "0.0001%"]
        {
            assert!(sampling(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_endpoint_is_a_host_and_a_port_and_in_the_clear_only_on_loopback() {
        for (text, shown) in [
            ("https://collector.example.org:4317", "https://collector.example.org:4317"),
            ("https://collector.example.org/", "https://collector.example.org:443"),
            ("https://[2001:db8::1]:4317", "https://[2001:db8::1]:4317"),
            ("http://127.0.0.1:4317", "http://127.0.0.1:4317"),
            ("http://localhost:4317", "http://localhost:4317"),
        ] {
            assert_eq!(endpoint(text).unwrap().to_string(), shown);
        }
        for wrong in [
            "",
            "collector.example.org:4317",
            "http://collector.example.org:4317",
            "https://collector.example.org:4317/v1/traces",
            "https://collector.example.org:4317?a=b",
            "https://user:secret@collector.example.org:4317",
            "ftp://127.0.0.1:4317",
        ] {
            let error = endpoint(wrong).unwrap_err();
            assert!(error.contains(WRITE_ENDPOINT), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
