//! What a single value may look like: names, sizes in time, rates, hashes, identities.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use claviger_provider_api::options;

use super::{Identity, Rate};
use crate::spiffe;

/// The names of providers, keys, callers and client CAs go to metrics, logs and health names.
pub(crate) fn name(text: &str) -> Result<String, String> {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b);
    let starts_well = text.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    if starts_well && text.len() <= 64 && text.bytes().all(inner) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "{text:?} is no name; write 1 to 64 of a-z, 0-9, \".\", \"_\" and \"-\", a letter or digit first"
    ))
}

/// `"500ms"`, `"30s"`, `"5m"`, `"72h"`, `"1d"`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    options::duration(text).ok_or_else(|| {
        format!("{text:?} is no duration; write a number and a unit: \"500ms\", \"30s\", \"5m\", \"72h\" or \"1d\"")
    })
}

/// As [`duration`], but longer than nothing.
pub(super) fn positive_duration(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err(format!("{text:?} leaves no time; write at least \"1ms\"")),
        duration => Ok(duration),
    }
}

/// `"50/s"`, `"100/h"`; none for `"off"`.
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
            "d" => 86_400,
            _ => return None,
        };
        let is_number = count.bytes().all(|b| b.is_ascii_digit());
        let count = count.parse().ok().filter(|count| is_number && *count > 0)?;
        Some(Some(Rate { count, per: Duration::from_secs(seconds) }))
    };
    parsed().ok_or_else(|| {
        format!("{text:?} is no rate; write \"50/s\", \"600/m\", \"100/h\", \"1000/d\" or \"off\"")
    })
}

/// 64 hexadecimal digits.
pub(super) fn sha256(text: &str) -> Result<[u8; 32], String> {
    sha256_or(text, "or leave the field out and run `claviger config pin`")
}

/// 64 hexadecimal digits; `advice` goes on where they are not.
pub(super) fn sha256_or(text: &str, advice: &str) -> Result<[u8; 32], String> {
    let mut hash = [0; 32];
    hex::decode_to_slice(text, &mut hash)
        .map(|()| hash)
        .map_err(|_| format!("{text:?} is no SHA-256; write 64 hexadecimal digits, {advice}"))
}

/// An IP address and a port; `port` is what to write where there is none.
pub(super) fn socket_address(text: &str, port: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        let given = text.rsplit_once(':').map(|(_, port)| port);
        let port = given.filter(|port| port.parse::<u16>().is_ok()).unwrap_or(port);
        format!(
            "{text:?} is no IP address and port; write \"0.0.0.0:{port}\", \"[::]:{port}\" or \"127.0.0.1:{port}\""
        )
    })
}

/// A SPIFFE ID with a path: the identity of a workload.
pub(super) fn spiffe_id(text: &str) -> Result<Identity, String> {
    let Err(reason) = spiffe::check(text) else { return Ok(Identity::Spiffe(text.to_owned())) };
    let shown: String = text.chars().take(80).collect();
    Err(format!("{shown:?} {reason}; write \"spiffe://example.org/name\""))
}

/// A DNS name in lower case: letters, digits, hyphens and, as container networks have them,
/// underscores; no wildcard, no address.
pub(super) fn dns_name(text: &str) -> Result<Identity, String> {
    let good_label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_".contains(&b))
    };
    // A last label of digits only is read as an IPv4 address by some (RFC 1123 section 2.1).
    let last_is_number =
        text.rsplit('.').next().is_some_and(|label| label.bytes().all(|b| b.is_ascii_digit()));
    let reason = if text.contains('*') {
        "has a wildcard, which names no client in particular"
    } else if text.parse::<IpAddr>().is_ok() {
        "is an address, which is no identity"
    } else if text.bytes().any(|b| b.is_ascii_uppercase()) {
        "has capital letters; certificates are compared in lower case"
    } else if text.len() > 253 || last_is_number || !text.split('.').all(good_label) {
        "is no DNS name"
    } else {
        return Ok(Identity::Dns(text.to_owned()));
    };
    let shown: String = text.chars().take(80).collect();
    Err(format!("{shown:?} {reason}; write a whole name such as \"kc.example.org\""))
}

/// `"a", "b" or "c"`, for messages.
pub(super) fn alternatives(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        [only] => format!("{only:?}"),
        [first @ .., last] => {
            let first: Vec<String> = first.iter().map(|name| format!("{name:?}")).collect();
            format!("{} or {last:?}", first.join(", "))
        }
    }
}

/// A size in bytes, written `256MiB` or `2GiB`: 1 MiB to 1 TiB.
pub(super) fn size(text: &str) -> Result<u64, String> {
    let number = |unit: &str, shift: u32| {
        let number = text.strip_suffix(unit)?;
        let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        let number: u64 = is_number.then(|| number.parse().ok()).flatten()?;
        number.checked_shl(shift).filter(|bytes| bytes >> shift == number)
    };
    match number("MiB", 20).or_else(|| number("GiB", 30)) {
        Some(bytes) if (1 << 20..=1 << 40).contains(&bytes) => Ok(bytes),
        _ => Err(format!("{text:?} is no size from 1MiB to 1024GiB; write \"256MiB\"")),
    }
}

/// The name of an audit log in its checkpoints: printable, without blanks and `+` (C2SP signed-note).
pub(super) fn checkpoint_origin(text: &str) -> Result<String, String> {
    let good = |c: char| c.is_ascii_graphic() && c != '+';
    if !text.is_empty() && text.len() <= 128 && text.chars().all(good) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "{text:?} is no name of a log; write printable characters without blanks and \"+\", such as \"claviger.example.org/audit\""
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_has_a_unit_and_bounds() {
        assert_eq!(size("1MiB"), Ok(1 << 20));
        assert_eq!(size("1024GiB"), Ok(1 << 40));
        for wrong in ["", "MiB", "0MiB", "1", "1MB", "+1MiB", "1025GiB", "99999999999999GiB"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn durations_and_rates_have_a_unit() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("72h"), Ok(Duration::from_hours(72)));
        assert_eq!(duration("1d"), Ok(Duration::from_hours(24)));
        for bad in ["", "5", "h", "-5s", "+5s", "5 s", "1.5h", "5S", "99999999999d", "5é"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        let per = Duration::from_mins(1);
        assert_eq!(rate("600/m"), Ok(Some(Rate { count: 600, per })));
        assert_eq!(rate("off"), Ok(None));
        for bad in ["", "0/s", "+5/s", "5", "5/", "/s", "5/w", "4294967296/s", "5/s/s"] {
            assert!(rate(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn dns_names_are_whole_and_in_lower_case() {
        for good in ["localhost", "kc.example.org", "xn--bcher-kva.example", "1a.example", "a_b.c"]
        {
            assert_eq!(dns_name(good), Ok(Identity::Dns(good.to_owned())));
        }
        let long = format!("{}.example", "a".repeat(64));
        for bad in [
            "",
            "*.example.org",
            "Kc.example.org",
            "10.0.0.1",
            "::1",
            "a..b",
            "a.",
            ".a",
            "-a.b",
            "a-.b",
            "bücher.example",
            "1.2.3.256",
            &long,
        ] {
            assert!(dns_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_are_short_and_plain() {
        assert!(
            name("user-keys_2.a").is_ok() && name("0").is_ok() && name(&"a".repeat(64)).is_ok()
        );
        for bad in ["", "-a", ".a", "A", "a b", "a/b", "ä", &"a".repeat(65)] {
            assert!(name(bad).is_err(), "{bad}");
        }
    }
}
