//! What a single value may look like: addresses, origins, rates.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use claviger_configuration::nearest;
use claviger_provider_api::options;
use ipnet::IpNet;

/// So many in so many seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// How many, and how many at once.
    pub count: u32,
    /// In how many seconds.
    pub seconds: u32,
}

/// `"60/m"`; none for `"off"`.
pub(super) fn rate(text: &str) -> Result<Option<Rate>, String> {
    if text == "off" {
        return Ok(None);
    }
    let parsed = || {
        let (count, unit) = text.split_once('/')?;
        let seconds = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            _ => return None,
        };
        let count: u32 = count.parse().ok().filter(|count| *count > 0)?;
        Some(Rate { count, seconds })
    };
    parsed().map(Some).ok_or_else(|| {
        format!("{text:?} is no rate; write a number and a unit, \"10/s\", \"60/m\" or \"600/h\", or \"off\"")
    })
}

/// `"500ms"`, `"20s"`; more than nothing.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let duration = options::duration(text).filter(|duration| !duration.is_zero());
    duration.ok_or_else(|| {
        format!(
            "{text:?} is no time to wait; write a number and a unit: \"500ms\", \"20s\" or \"1m\""
        )
    })
}

pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        format!("{text:?} is no address; write an IP address and a port, such as \"0.0.0.0:5000\" or \"[::]:5000\"")
    })
}

/// A network, or one address.
pub(super) fn network(text: &str) -> Result<IpNet, String> {
    let network = text.parse::<IpNet>().ok().map(|network| network.trunc());
    let alone = || text.parse::<IpAddr>().ok().map(IpNet::from);
    network.or_else(alone).ok_or_else(|| {
        format!("{text:?} is no network; write an address or a network, such as \"172.16.0.0/12\"")
    })
}

/// Scheme, host and port as a browser writes them into `Origin`; a slash at the end is dropped, as
/// the original does.
pub(super) fn origin(text: &str) -> Result<String, String> {
    let origin = text.strip_suffix('/').unwrap_or(text);
    let host = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
    let good = |host: &str| {
        !host.is_empty()
            && host.bytes().all(|b| b.is_ascii_graphic() && !b"/?#@".contains(&b))
            && !host.bytes().any(|b| b.is_ascii_uppercase())
    };
    host.filter(|host| good(host)).map(|_| origin.to_owned()).ok_or_else(|| {
        format!("{text:?} is no origin; write scheme and host in lower case: \"https://vault.example.org\"")
    })
}

/// An issuer's URL, without a slash at its end.
pub(super) fn url(text: &str) -> Result<String, String> {
    let parsed = reqwest::Url::parse(text).ok().filter(|url| {
        matches!(url.scheme(), "http" | "https")
            && url.query().is_none()
            && url.fragment().is_none()
    });
    parsed.map(|_| text.trim_end_matches('/').to_owned()).ok_or_else(|| {
        format!(
            "{text:?} is no URL; write where discovery is: \"https://vault.example.org/identity\""
        )
    })
}

/// One of a few words.
pub(super) fn one_of<T: Copy>(text: &str, words: &[(&str, T)]) -> Result<T, String> {
    if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
        return Ok(*value);
    }
    let all: Vec<_> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
    let all = all.join(" or ");
    let meant = nearest(text, words.iter().map(|(word, _)| *word));
    Err(match meant {
        Some(meant) => format!("{text:?} is not known; did you mean {meant:?}? Or write {all}"),
        None => format!("{text:?} is not known; write {all}"),
    })
}
