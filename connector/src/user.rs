//! A user: the UUID that the identity server gives them, in each of its spellings.

use std::fmt;

use uuid::Uuid;

/// A user's id. Shown in lower case with dashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UserId(Uuid);

impl UserId {
    /// From 32 hexadecimal digits in any case, with dashes or without, or with dashes in braces; as
    /// .NET's `Guid.Parse` takes them, but for spaces around.
    pub fn parse(text: &str) -> Option<Self> {
        let inner = text.strip_prefix('{').map(|text| text.strip_suffix('}'));
        let (text, braced) = match inner {
            None => (text, false),
            Some(Some(inner)) => (inner, true),
            Some(None) => return None,
        };
        let right_length = text.len() == 36 || (text.len() == 32 && !braced);
        let uuid = Uuid::try_parse(text).ok().filter(|_| right_length)?;
        Some(Self(uuid))
    }

    /// The sixteen bytes, in the order in which they are written (RFC 9562).
    pub fn bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }
}

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_counts_in_any_case_with_or_without_dashes_and_in_braces() {
        let plain = "2bb58a1920014a8b822379b2ba7d5229";
        let id = UserId::parse(plain).unwrap();
        assert_eq!(id.to_string(), "2bb58a19-2001-4a8b-8223-79b2ba7d5229");
        let dashed = id.to_string();
        for same in [dashed.to_uppercase(), format!("{{{dashed}}}"), plain.to_uppercase()] {
            assert_eq!(UserId::parse(&same), Some(id), "{same}");
        }
        for other in [
            "",
            "bob",
            "5",
            &format!(" {dashed} "),
            &format!("{{{dashed}"),
            &format!("{dashed}}}"),
            &format!("urn:uuid:{dashed}"),
            &format!("{{{plain}}}"),
            &format!("({dashed})"),
        ] {
            assert_eq!(UserId::parse(other), None, "{other}");
        }
    }
}
