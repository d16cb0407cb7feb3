//! Options that several providers have: time limits and origins.

use std::net::IpAddr;
use std::time::Duration;

use serde::Deserialize;
use url::Url;

/// A time: a number and a unit, `"500ms"`, `"30s"`, `"5m"`, `"72h"` or `"1d"`. None where it is
/// something else, or more than ten years: on those no clock overflows.
pub fn duration(text: &str) -> Option<Duration> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (count, unit) = text.split_at(digits);
    let milliseconds: u64 = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    let total = count.parse::<u64>().ok()?.checked_mul(milliseconds)?;
    (total <= 3650 * 86_400_000).then(|| Duration::from_millis(total))
}

/// A time limit in a configuration, as [`duration`], of `SECONDS` where it is left out; 1 ms to 5
/// minutes, for a call that takes longer helps no caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Timeout<const SECONDS: u64>(pub Duration);

impl<const SECONDS: u64> Default for Timeout<SECONDS> {
    fn default() -> Self {
        Self(Duration::from_secs(SECONDS))
    }
}

impl<const SECONDS: u64> TryFrom<String> for Timeout<SECONDS> {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let allowed = Duration::from_millis(1)..=Duration::from_mins(5);
        duration(&text).filter(|limit| allowed.contains(limit)).map(Self).ok_or_else(|| {
            format!(
                "{text:?} is no time limit; write a number and a unit, \"1ms\" to \"5m\": \
                 \"500ms\", \"5s\", \"1m\""
            )
        })
    }
}

/// Checks that limits that are part of another one are not longer than it; each has its option's name.
pub fn check_timeouts(whole: (&str, Duration), parts: &[(&str, Duration)]) -> Result<(), String> {
    let longer = parts.iter().find(|(_, limit)| *limit > whole.1);
    longer.map_or(Ok(()), |(part, _)| {
        Err(format!(
            "`{}` is shorter than `{part}`, which is part of it; make it the longest",
            whole.0
        ))
    })
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
            let limit = Timeout::<5>::try_from(text.to_owned()).unwrap();
            assert_eq!(limit.0, Duration::from_millis(milliseconds));
        }
        assert_eq!(Timeout::<5>::default().0, Duration::from_secs(5));
        for bad in ["", "5", "5 s", "0s", "6m", "-1s", "+1s", "1h", "1.5s", "99999999999999999999s"]
        {
            let error = Timeout::<5>::try_from(bad.to_owned()).unwrap_err();
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
        let [short, long] = [1, 2].map(Duration::from_secs);
        let parts = [("attempt_timeout", short), ("connect_timeout", long)];
        assert_eq!(check_timeouts(("operation_timeout", long), &parts), Ok(()));
        let error = check_timeouts(("operation_timeout", short), &parts).unwrap_err();
        assert!(
            error.starts_with("`operation_timeout` is shorter than `connect_timeout`"),
            "{error}"
        );
    }
}
