//! Locators: Azure's key identifiers, checked before any part of them reaches a URL.

use std::fmt;

/// A key identifier, checked so strictly that its parts go into a URL as they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Locator {
    /// `https://HOST[:PORT]`, the provider's own vault.
    origin: String,
    /// The key's name.
    pub(crate) name: String,
    /// The version; without one it is found by the pinned public key.
    pub(crate) version: Option<String>,
}

impl Locator {
    /// Checks a locator of the vault at `origin`.
    pub(crate) fn parse(text: &str, origin: &str) -> Result<Self, String> {
        let refuse = |reason: &str| {
            Err(format!(
                "{text:?} {reason}; write the key identifier, {origin}/keys/NAME or \
                 {origin}/keys/NAME/VERSION"
            ))
        };
        let Some(path) = text.strip_prefix(origin) else {
            return refuse("is no key of this provider's vault");
        };
        let parts: Vec<&str> = path.split('/').collect();
        let (name, version) = match parts[..] {
            ["", "keys", name] => (name, None),
            ["", "keys", name, version] => (name, Some(version)),
            _ => return refuse("is no key identifier"),
        };
        if !is_name(name) {
            return refuse("has a name that no key has (1 to 127 letters, digits and hyphens)");
        }
        if version.is_some_and(|version| !is_version(version)) {
            return refuse("has a version that is not 32 digits 0-9a-f");
        }
        Ok(Self {
            origin: origin.to_owned(),
            name: name.to_owned(),
            version: version.map(str::to_owned),
        })
    }

    /// The key of this name in the vault at `origin`, without a version. Other letters than a name may
    /// have become hyphens.
    pub(crate) fn named(name: &str, origin: &str) -> Self {
        let fits = |letter: char| if letter.is_ascii_alphanumeric() { letter } else { '-' };
        let (origin, name) = (origin.to_owned(), name.chars().map(fits).collect());
        Self { origin, name, version: None }
    }

    /// This key, in whichever version.
    pub(crate) fn without_version(&self) -> Self {
        Self { version: None, ..self.clone() }
    }

    /// The version of this key that `kid` names, if it names one.
    pub(crate) fn version_of<'a>(&self, kid: &'a str) -> Option<&'a str> {
        let (rest, version) = kid.rsplit_once('/')?;
        let (_, name) = rest.rsplit_once("/keys/")?;
        (name.eq_ignore_ascii_case(&self.name) && is_version(version)).then_some(version)
    }

    /// This key, in one version.
    pub(crate) fn with_version(&self, version: &str) -> Self {
        Self { version: Some(version.to_owned()), ..self.clone() }
    }
}

impl fmt::Display for Locator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/keys/{}", self.origin, self.name)?;
        self.version.as_ref().map_or(Ok(()), |version| write!(f, "/{version}"))
    }
}

fn is_name(text: &str) -> bool {
    (1..=127).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

fn is_version(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const VAULT: &str = "https://contoso.vault.azure.net";
    const VERSION: &str = "78deebed173b48e48f55abf87ed4cf71";

    #[test]
    fn an_identifier_reads_back_as_itself() {
        for path in ["keys/user-keys".to_owned(), format!("keys/User-Keys-2026/{VERSION}")] {
            let text = format!("{VAULT}/{path}");
            assert_eq!(Locator::parse(&text, VAULT).unwrap().to_string(), text);
        }
        let locator = Locator::parse(&format!("{VAULT}/keys/a/{VERSION}"), VAULT).unwrap();
        assert_eq!((&*locator.name, locator.version.as_deref()), ("a", Some(VERSION)));
    }

    #[test]
    fn what_could_reach_another_key_or_vault_is_refused_with_what_to_write() {
        let long = "a".repeat(128);
        for bad in [
            "",
            "user-keys",
            "https://contoso.vault.azure.net",
            "https://contoso.vault.azure.net/keys",
            "https://contoso.vault.azure.net/keys/",
            "https://contoso.vault.azure.net/keys/a/",
            "https://contoso.vault.azure.net/secrets/a",
            "https://contoso.vault.azure.net//keys/a",
            "https://contoso.vault.azure.net/keys/a/b",
            "https://contoso.vault.azure.net/keys/a/78DEEBED173B48E48F55ABF87ED4CF71",
            "https://contoso.vault.azure.net/keys/a/78deebed173b48e48f55abf87ed4cf71/unwrapkey",
            "https://contoso.vault.azure.net/keys/..",
            "https://contoso.vault.azure.net/keys/a%2fb",
            "https://contoso.vault.azure.net/keys/a?x",
            "https://contoso.vault.azure.net/keys/a#x",
            "https://contoso.vault.azure.net/keys/a b",
            "https://contoso.vault.azure.net/keys/a_b",
            "https://contoso.vault.azure.net/keys/\u{e9}",
            "https://contoso.vault.azure.net.example.org/keys/a",
            "https://contoso.vault.azure.net@example.org/keys/a",
            "https://other.vault.azure.net/keys/a",
            "http://contoso.vault.azure.net/keys/a",
            &format!("https://contoso.vault.azure.net/keys/{long}"),
        ] {
            let error = Locator::parse(bad, VAULT).unwrap_err();
            assert!(error.contains("write the key identifier"), "{bad:?}: {error}");
        }
    }

    #[test]
    fn a_version_is_taken_only_from_an_identifier_of_the_same_key() {
        let locator = Locator::parse(&format!("{VAULT}/keys/user-keys"), VAULT).unwrap();
        let kid = |name: &str, version: &str| format!("{VAULT}/keys/{name}/{version}");
        assert_eq!(locator.version_of(&kid("User-Keys", VERSION)), Some(VERSION));
        for (name, version) in [("other", VERSION), ("user-keys", ""), ("user-keys", "../../x")] {
            assert_eq!(locator.version_of(&kid(name, version)), None, "{name} {version}");
        }
        assert_eq!(locator.version_of(VERSION), None);
    }
}
