//! `mount/key:version`: which version of which key in which Transit engine; and the path of a secret.

use std::fmt;
use std::str::FromStr;

const EXPECTED: &str = "write mount/key:version, such as transit/user-keys:1";

/// A locator, checked so strictly that its parts go into a URL as they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Locator {
    /// Where the engine is mounted; may have several segments.
    pub(crate) mount: String,
    /// The key's name.
    pub(crate) key: String,
    /// From 1: the server would read 0 as the latest.
    pub(crate) version: u32,
}

impl FromStr for Locator {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.rsplit_once(':').and_then(|(path, version)| {
            path.rsplit_once('/').map(|(mount, key)| (mount, key, version))
        });
        let Some((mount, key, version)) = parts else {
            return Err(format!("{text:?} is no locator of Transit; {EXPECTED}"));
        };
        if !is_path(mount) || !is_segment(key) {
            return Err(format!(
                "{text:?}: mount and key take letters, digits, '.', '_' and '-', and no segment \
                 may be empty or only dots; {EXPECTED}"
            ));
        }
        let canonical = !version.starts_with('0') && version.bytes().all(|b| b.is_ascii_digit());
        match version.parse() {
            Ok(version) if canonical => {
                Ok(Self { mount: mount.to_owned(), key: key.to_owned(), version })
            }
            _ => Err(format!("{text:?}: the version is a number from 1; {EXPECTED}")),
        }
    }
}

impl fmt::Display for Locator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}:{}", self.mount, self.key, self.version)
    }
}

/// Checks the names of a secret's field.
pub(crate) fn check_secret(path: &str, field: &str) -> Result<(), String> {
    let expected = "write mount/data/name, such as secret/data/claviger";
    let segments: Vec<&str> = path.split('/').collect();
    let inner = segments.get(1..segments.len() - 1).unwrap_or_default();
    if !is_path(path) || !inner.contains(&"data") {
        return Err(format!("{path:?} is no path of a secret in KV version 2; {expected}"));
    }
    if field.is_empty() {
        return Err("the field's name is empty; write the name of the secret's field".into());
    }
    Ok(())
}

/// Whether `text` is one or more good segments, joined by slashes.
pub(crate) fn is_path(text: &str) -> bool {
    text.len() <= 512 && text.split('/').all(is_segment)
}

/// Whether `text` may stand between two slashes of a URL: no dot segments, nothing to escape.
fn is_segment(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    (1..=128).contains(&text.len()) && text.bytes().all(allowed) && text.bytes().any(|b| b != b'.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_locator_reads_back_as_itself() {
        for text in ["transit/user-keys:1", "team/a/transit/k.2026_x:4294967295"] {
            assert_eq!(text.parse::<Locator>().unwrap().to_string(), text);
        }
        let locator: Locator = "team/transit/user-keys:12".parse().unwrap();
        assert_eq!(
            (&*locator.mount, &*locator.key, locator.version),
            ("team/transit", "user-keys", 12)
        );
    }

    #[test]
    fn what_could_reach_another_path_is_refused_with_what_to_write() {
        for bad in [
            "",
            "transit",
            "transit/k",
            "transit/k:",
            "transit/k:0",
            "transit/k:01",
            "transit/k:+1",
            "transit/k:-1",
            "transit/k:4294967296",
            "transit/k:1 ",
            "/k:1",
            "transit//k:1",
            "transit/../sys/k:1",
            "transit/..:1",
            "transit/.:1",
            "transit/k%2f:1",
            "transit/k?x:1",
            "transit/k#x:1",
            "transit/ke y:1",
            "transit/ké:1",
            "transit/k\n:1",
            "k:1",
            "transit\\x/k:1",
            "https://h/transit/k:1",
        ] {
            let error = bad.parse::<Locator>().unwrap_err();
            assert!(error.contains("write mount/key:version"), "{bad:?}: {error}");
        }
    }

    #[test]
    fn only_a_path_of_kv_version_2_is_one() {
        for good in ["secret/data/claviger", "team/kv/data/hsm/pin", "kv/data/data"] {
            check_secret(good, "pin").unwrap();
        }
        for bad in [
            "",
            "secret/claviger",
            "data/claviger",
            "secret/data",
            "secret/data/",
            "/secret/data/x",
            "secret/data/../x",
            "secret/data/x?version=1",
            "v1/secret",
        ] {
            let error = check_secret(bad, "pin").unwrap_err();
            assert!(error.contains("write mount/data/name"), "{bad}: {error}");
        }
        assert!(check_secret("secret/data/x", "").unwrap_err().contains("field"));
    }
}
