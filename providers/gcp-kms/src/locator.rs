//! Locators: the full name of a crypto key version, checked before it reaches a URL.

use std::fmt;
use std::str::FromStr;

/// What an expected locator looks like, for messages.
const EXPECTED: &str = "write the version's full name, \
                        projects/P/locations/L/keyRings/R/cryptoKeys/K/cryptoKeyVersions/N";

/// The name of a crypto key version: it names one key pair for ever.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Locator(String);

impl Locator {
    /// The name, as it stands in a URL.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The names of the key and the version's number.
    pub(crate) fn key_and_number(&self) -> (&str, &str) {
        self.0.rsplit_once("/cryptoKeyVersions/").expect("the name of a version")
    }
}

impl FromStr for Locator {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refuse = |reason: &str| Err(format!("{text:?} {reason}; {EXPECTED}"));
        let parts: Vec<&str> = text.split('/').collect();
        let (project, location, ring, key, version) = match parts[..] {
            [
                "projects",
                project,
                "locations",
                location,
                "keyRings",
                ring,
                "cryptoKeys",
                key,
                "cryptoKeyVersions",
                version,
            ] => (project, location, ring, key, version),
            ["projects", _, "locations", _, "keyRings", _, "cryptoKeys", _] => {
                return refuse(
                    "names a crypto key, which has many versions; say which one, for it is the \
                     version that is a key pair",
                );
            }
            _ => return refuse("names no crypto key version"),
        };
        if !is_project(project) {
            return refuse("has no good project id or number");
        }
        if !is_location(location) {
            return refuse("has no good location, such as global or europe-west3");
        }
        if !is_id(ring) || !is_id(key) {
            return refuse(
                "has a key ring or a key whose name is not 1 to 63 letters, digits, '_' and '-'",
            );
        }
        let canonical = !version.starts_with('0') && version.bytes().all(|b| b.is_ascii_digit());
        if !canonical || version.parse::<u32>().is_err() {
            return refuse("has no version number from 1");
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Locator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An id or a number; ids of old domain-scoped projects have a colon and dots (`example.org:name`).
fn is_project(text: &str) -> bool {
    let letter = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-');
    let word = |text: &str| !text.is_empty() && text.bytes().all(letter);
    match text.split_once(':') {
        None => text.len() <= 63 && word(text),
        Some((domain, id)) => text.len() <= 128 && domain.split('.').all(word) && word(id),
    }
}

fn is_location(text: &str) -> bool {
    let letter = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-');
    (1..=63).contains(&text.len()) && text.bytes().all(letter)
}

fn is_id(text: &str) -> bool {
    let letter = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-');
    (1..=63).contains(&text.len()) && text.bytes().all(letter)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "projects/p-1/locations/europe-west3/keyRings/Ring_1/cryptoKeys/user-keys/\
                        cryptoKeyVersions/12";

    #[test]
    fn a_full_name_reads_back_as_itself() {
        let global = "projects/123456789012/locations/global/keyRings/r/cryptoKeys/k/\
                      cryptoKeyVersions/1";
        let scoped = GOOD.replace("p-1", "example.org:old-project");
        for text in [GOOD, global, &scoped] {
            assert_eq!(text.parse::<Locator>().unwrap().as_str(), text);
        }
    }

    #[test]
    fn what_could_reach_another_path_is_refused_with_what_to_write() {
        let table = [
            ("p-1", ""),
            ("p-1", "P"),
            ("p-1", ".."),
            ("p-1", "p%2f"),
            ("p-1", "a:b:c"),
            ("p-1", ".org:a"),
            ("europe-west3", ""),
            ("europe-west3", "."),
            ("europe-west3", "Europe"),
            ("Ring_1", ""),
            ("Ring_1", "a.b"),
            ("Ring_1", "a b"),
            ("Ring_1", "a?b"),
            ("Ring_1", "a#b"),
            ("user-keys", "é"),
            ("user-keys", "a:asymmetricDecrypt"),
            ("12", ""),
            ("12", "0"),
            ("12", "01"),
            ("12", "+1"),
            ("12", "4294967296"),
            ("12", "1:destroy"),
            ("12", "1/"),
            ("12", "1\n"),
            ("12", "latest"),
            ("projects/", "/projects/"),
            ("projects/", "https://cloudkms.googleapis.com/v1/projects/"),
            ("cryptoKeyVersions", "versions"),
        ];
        for (from, to) in table {
            let text = GOOD.replace(from, to);
            let error = text.parse::<Locator>().unwrap_err();
            assert!(error.contains("write the version's full name"), "{text:?}: {error}");
        }
        let key = GOOD.trim_end_matches("/cryptoKeyVersions/12");
        let error = key.parse::<Locator>().unwrap_err();
        assert!(error.contains("say which one"), "{error}");
        assert!(format!("{GOOD}/publicKey").parse::<Locator>().is_err());
    }
}
