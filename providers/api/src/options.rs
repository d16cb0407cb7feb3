//! Options that several providers have: time limits and origins.

use std::net::IpAddr;
use std::time::Duration;

use serde::Deserialize;
use url::Url;

/// A time limit in a configuration: a number and a unit, `"500ms"`, `"5s"` or `"1m"`; 1 ms to 5
/// minutes, for a call that takes longer helps no caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Timeout(pub Duration);

/// The longest time limit, in milliseconds.
const MAX_MILLISECONDS: u64 = 300_000;

impl Timeout {
    /// A limit of so many seconds, for a default.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }
}

impl TryFrom<String> for Timeout {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let units = [("ms", 1), ("s", 1000), ("m", 60_000)];
        let parsed = units.into_iter().find_map(|(unit, milliseconds)| {
            let number = text.strip_suffix(unit)?;
            let digits = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
            number.parse::<u64>().ok().filter(|_| digits)?.checked_mul(milliseconds)
        });
        match parsed {
            Some(milliseconds @ 1..=MAX_MILLISECONDS) => {
                Ok(Self(Duration::from_millis(milliseconds)))
            }
            _ => Err(format!(
                "{text:?} is no time limit; write a number and a unit, \"1ms\" to \"5m\": \
                 \"500ms\", \"5s\", \"1m\""
            )),
        }
    }
}

/// Checks that limits that are part of `operation_timeout` are not longer than it.
pub fn check_timeouts(operation: Timeout, parts: &[Timeout]) -> Result<(), String> {
    if parts.iter().all(|part| part.0 <= operation.0) {
        return Ok(());
    }
    Err("`operation_timeout` is shorter than `attempt_timeout` or `connect_timeout`, which are part \
         of it; make it the longest"
        .into())
}

/// Checks that the path of an optional file is not empty.
pub fn check_path(name: &str, path: Option<&std::path::Path>) -> Result<(), String> {
    match path {
        Some(path) if path.as_os_str().is_empty() => {
            Err(format!("`{name}` is empty; write the path of a PEM file, or leave it out"))
        }
        _ => Ok(()),
    }
}

/// Where requests may go without TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlainHttp {
    /// Nowhere.
    Never,
    /// To this host itself, where no one else can listen in.
    OnLoopback,
}

/// Checks that the option `name` is `https://HOST[:PORT]` and nothing more, or `http` where
/// `plain_http` permits it; gives scheme, host and port without a slash at the end.
pub fn origin(name: &str, text: &str, plain_http: PlainHttp) -> Result<String, String> {
    let refuse = |reason: &str| {
        Err(format!("`{name}` {reason}; write \"https://HOST\" or \"https://HOST:PORT\""))
    };
    let Ok(url) = Url::parse(text) else { return refuse("is no URL") };
    if !url.username().is_empty() || url.password().is_some() {
        return refuse("has a user name");
    }
    if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
        return refuse("has more than a host");
    }
    match (url.scheme(), plain_http) {
        ("https" | "http", _) if !url.has_host() => refuse("has no host"),
        ("https", _) => Ok(url.origin().ascii_serialization()),
        ("http", PlainHttp::OnLoopback) if url.host_str().is_some_and(is_loopback) => {
            Ok(url.origin().ascii_serialization())
        }
        ("http", PlainHttp::OnLoopback) => {
            refuse("is http, which is for loopback addresses only: what is sent is secret")
        }
        ("http", PlainHttp::Never) => refuse("is http, and no token goes out in the clear"),
        _ => refuse("is neither https nor http"),
    }
}

/// Whether `host`, a name or an address with or without brackets, is this host itself.
pub fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_limit_has_a_unit_and_bounds() {
        for (text, milliseconds) in [("1ms", 1), ("500ms", 500), ("5s", 5000), ("5m", 300_000)] {
            let limit = Timeout::try_from(text.to_owned()).unwrap();
            assert_eq!(limit.0, Duration::from_millis(milliseconds));
        }
        for bad in ["", "5", "5 s", "0s", "6m", "-1s", "+1s", "1h", "1.5s", "99999999999999999999s"]
        {
            let error = Timeout::try_from(bad.to_owned()).unwrap_err();
            assert!(error.contains("is no time limit; write a number and a unit"), "{error}");
        }
    }

    #[test]
    fn an_origin_is_https_or_on_this_host() {
        let check = |text| origin("address", text, PlainHttp::OnLoopback);
        for (good, origin) in [
            ("https://vault.example.org", "https://vault.example.org"),
            ("https://vault.example.org:443/", "https://vault.example.org"),
            ("https://[2001:db8::1]:8200", "https://[2001:db8::1]:8200"),
            ("http://127.0.0.1:8200", "http://127.0.0.1:8200"),
            ("http://[::1]:8200", "http://[::1]:8200"),
            ("http://localhost:1", "http://localhost:1"),
        ] {
            assert_eq!(check(good).unwrap(), origin);
        }
        for (bad, reason) in [
            ("http://vault.example.org", "loopback addresses only"),
            ("http://127.0.0.1.example.org", "loopback addresses only"),
            ("https://user:secret@vault", "user name"),
            ("https://vault/v1", "more than a host"),
            ("https://vault?x", "more than a host"),
            ("https://vault#x", "more than a host"),
            ("vault.example.org", "no URL"),
            ("", "no URL"),
            ("vault:8200", "more than a host"),
            ("ftp://127.0.0.1", "neither https nor http"),
        ] {
            let error = check(bad).unwrap_err();
            assert!(error.contains(reason) && error.contains("write \"https://HOST"), "{error}");
            assert!(!error.contains("secret@"), "{error}");
        }
        let error = origin("vault", "http://127.0.0.1", PlainHttp::Never).unwrap_err();
        assert!(error.contains("in the clear"), "{error}");
    }

    #[test]
    fn the_whole_operation_has_the_longest_limit() {
        let [short, long] = [Timeout::from_secs(1), Timeout::from_secs(2)];
        assert_eq!(check_timeouts(long, &[short, long]), Ok(()));
        assert!(check_timeouts(short, &[short, long]).unwrap_err().contains("`operation_timeout`"));
    }
}
