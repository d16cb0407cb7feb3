//! Locators of keys in a token: the path attributes `object`, `id` and `type` of a PKCS#11 URI (RFC 7512).

use std::fmt;
use std::str::FromStr;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, percent_encode};

/// The characters that may stand for themselves in an attribute's value besides letters and digits:
/// `unreserved` and `pk11-path-res-avail` (RFC 7512 section 2.3).
const PLAIN: &[u8] = b"-._~:[]@!$'()*+,=&";

/// What is written as `%XX` in the value of `object`.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Which private key of a token is meant: by its label, by its identifier, or by both. The token
/// itself is not part of it.
///
/// `Display` gives the URI that parses to the same locator: `pkcs11:object=user-keys;id=%02`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Locator {
    /// `CKA_LABEL`, exactly these bytes.
    pub object: Option<Vec<u8>>,
    /// `CKA_ID`, exactly these bytes.
    pub id: Option<Vec<u8>>,
}

/// Why a locator was refused. No value is ever repeated: it may hold a PIN.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UriError {
    /// Another scheme, or none.
    #[error("a locator starts with \"pkcs11:\", as in pkcs11:object=user-keys;id=%02")]
    Scheme,
    /// Neither `object` nor `id` is there.
    #[error("name the key by object= (its CKA_LABEL) or id= (its CKA_ID), or by both")]
    NoKey,
    /// Two semicolons in a row, or one at an end.
    #[error("attribute {0} is empty: attributes are separated by single semicolons")]
    EmptyAttribute(usize),
    /// An attribute that is no `name=value`.
    #[error("attribute {0} has no \"=\": write name=value")]
    NoValue(usize),
    /// `object` or `id` with nothing after the equals sign.
    #[error("{0}= has no value: leave the attribute out or give it one")]
    EmptyValue(&'static str),
    /// The same attribute twice (RFC 7512 section 2.3).
    #[error("{0} is given twice")]
    Duplicate(&'static str),
    /// `type` with anything but `private`.
    #[error("type may only be \"private\": a wrapping key is a private key")]
    Type,
    /// An attribute that RFC 7512 does not define.
    #[error("attribute {0} is not known; a locator has object, id and type")]
    Unknown(usize),
    /// An attribute of RFC 7512 that belongs elsewhere in the configuration.
    #[error("{attribute} does not belong into a locator: {instead}")]
    Misplaced {
        /// The attribute's name.
        attribute: &'static str,
        /// Where its value goes.
        instead: &'static str,
    },
    /// A query with no attribute of RFC 7512.
    #[error(
        "a locator has no query: leave out \"?\" and what follows; as part of a name, \"?\" is %3F"
    )]
    Query,
    /// A percent sign without two hexadecimal digits.
    #[error(
        "the value of {0} has a \"%\" without two hexadecimal digits; a percent sign itself is %25"
    )]
    PercentEncoding(&'static str),
    /// A character that RFC 7512 section 2.3 does not allow as it is.
    #[error("{character:?} in the value of {attribute} must be written as {encoded}")]
    Character {
        /// The attribute's name.
        attribute: &'static str,
        /// The character.
        character: char,
        /// How it is written.
        encoded: String,
    },
}

const TOKEN: &str = "the token is chosen by providers.NAME.token, not by the locator";
const SLOT: &str = "slots change their numbers and names; choose the token by providers.NAME.token";
const MODULE: &str = "the module is the file in providers.NAME.module";
const PIN: &str = "the PIN's source is providers.NAME.pin, a file or a credential";

/// The attributes of RFC 7512 that a locator may not have, and where their values go.
const MISPLACED: [(&str, &str); 14] = [
    ("token", TOKEN),
    ("serial", TOKEN),
    ("manufacturer", TOKEN),
    ("model", TOKEN),
    ("slot-id", SLOT),
    ("slot-description", SLOT),
    ("slot-manufacturer", SLOT),
    ("library-manufacturer", MODULE),
    ("library-description", MODULE),
    ("library-version", MODULE),
    ("module-name", MODULE),
    ("module-path", MODULE),
    ("pin-source", PIN),
    ("pin-value", PIN),
];

impl Locator {
    /// The locator with the bytes that its id spells in hexadecimal digits, as tools print a `CKA_ID`:
    /// `id=%01` for `id=01`. None if the id cannot be read so.
    pub(crate) fn with_id_of_digits(&self) -> Option<Self> {
        let id = hex::decode(self.id.as_ref()?).ok().filter(|id| !id.is_empty())?;
        Some(Self { object: self.object.clone(), id: Some(id) })
    }
}

impl FromStr for Locator {
    type Err = UriError;

    fn from_str(uri: &str) -> Result<Self, UriError> {
        let (scheme, rest) = uri.split_once(':').ok_or(UriError::Scheme)?;
        if !scheme.eq_ignore_ascii_case("pkcs11") {
            return Err(UriError::Scheme);
        }
        let (path, query) = match rest.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (rest, None),
        };
        let mut locator = Self { object: None, id: None };
        let mut type_given = false;
        let attributes = path.split(';').enumerate().filter(|_| !path.is_empty());
        for (index, attribute) in attributes {
            let position = index + 1;
            if attribute.is_empty() {
                return Err(UriError::EmptyAttribute(position));
            }
            let (name, value) = attribute.split_once('=').ok_or(UriError::NoValue(position))?;
            match name {
                "object" => set(&mut locator.object, "object", value)?,
                "id" => set(&mut locator.id, "id", value)?,
                "type" if type_given => return Err(UriError::Duplicate("type")),
                "type" if value == "private" => type_given = true,
                "type" => return Err(UriError::Type),
                _ => return Err(misplaced(name).unwrap_or(UriError::Unknown(position))),
            }
        }
        if let Some(query) = query {
            let mut names = query.split('&').filter_map(|attribute| attribute.split('=').next());
            return Err(names.find_map(misplaced).unwrap_or(UriError::Query));
        }
        if locator.object.is_none() && locator.id.is_none() {
            return Err(UriError::NoKey);
        }
        Ok(locator)
    }
}

impl fmt::Display for Locator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("pkcs11:")?;
        if let Some(object) = &self.object {
            write!(f, "object={}", percent_encode(object, ENCODED))?;
        }
        if let Some(id) = &self.id {
            f.write_str(if self.object.is_some() { ";id=" } else { "id=" })?;
            // The whole value is encoded, as RFC 7512 section 2.3 recommends for identifiers.
            id.iter().try_for_each(|byte| write!(f, "%{byte:02X}"))?;
        }
        Ok(())
    }
}

fn misplaced(name: &str) -> Option<UriError> {
    let (attribute, instead) = MISPLACED.into_iter().find(|(attribute, _)| *attribute == name)?;
    Some(UriError::Misplaced { attribute, instead })
}

fn set(field: &mut Option<Vec<u8>>, attribute: &'static str, value: &str) -> Result<(), UriError> {
    if field.is_some() {
        return Err(UriError::Duplicate(attribute));
    }
    if value.is_empty() {
        return Err(UriError::EmptyValue(attribute));
    }
    let mut characters = value.chars();
    while let Some(character) = characters.next() {
        if character == '%' {
            let digits = [characters.next(), characters.next()];
            if !digits.iter().all(|digit| digit.is_some_and(|digit| digit.is_ascii_hexdigit())) {
                return Err(UriError::PercentEncoding(attribute));
            }
        } else if !is_plain(character) {
            let mut utf8 = [0; 4];
            let utf8 = character.encode_utf8(&mut utf8).as_bytes();
            let encoded = percent_encode(utf8, NON_ALPHANUMERIC).to_string();
            return Err(UriError::Character { attribute, character, encoded });
        }
    }
    *field = Some(percent_decode_str(value).collect());
    Ok(())
}

fn is_plain(character: char) -> bool {
    character.is_ascii_alphanumeric()
        || u8::try_from(character).is_ok_and(|character| PLAIN.contains(&character))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn locator(object: Option<&[u8]>, id: Option<&[u8]>) -> Locator {
        Locator { object: object.map(<[u8]>::to_vec), id: id.map(<[u8]>::to_vec) }
    }

    fn refused(uri: &str) -> String {
        uri.parse::<Locator>().expect_err(uri).to_string()
    }

    #[test]
    fn a_key_is_named_by_object_by_id_or_by_both() {
        let parsed = |uri: &str| uri.parse::<Locator>().unwrap();
        assert_eq!(parsed("pkcs11:object=user-keys"), locator(Some(b"user-keys"), None));
        assert_eq!(parsed("pkcs11:id=%02"), locator(None, Some(&[2])));
        let both = locator(Some(b"a b"), Some(&[0, 0xff, b'x']));
        assert_eq!(parsed("PKCS11:id=%00%fFx;type=private;object=a%20b"), both);
        assert_eq!(both.to_string(), "pkcs11:object=a%20b;id=%00%FF%78");
    }

    #[test]
    fn an_id_that_was_copied_from_a_tool_is_known_by_its_digits() {
        let meant = |uri: &str| {
            uri.parse::<Locator>().unwrap().with_id_of_digits().map(|meant| meant.to_string())
        };
        assert_eq!(meant("pkcs11:id=01").as_deref(), Some("pkcs11:id=%01"));
        assert_eq!(meant("pkcs11:object=a;id=0aF0").as_deref(), Some("pkcs11:object=a;id=%0A%F0"));
        for other in ["pkcs11:id=%01", "pkcs11:id=011", "pkcs11:id=xy", "pkcs11:object=01"] {
            assert_eq!(meant(other), None, "{other}");
        }
    }

    #[test]
    fn every_plain_character_of_the_grammar_stands_for_itself() {
        let value = "az09-._~:[]@!$'()*+,=&";
        let parsed: Locator = format!("pkcs11:object={value}").parse().unwrap();
        assert_eq!(parsed.object.unwrap(), value.as_bytes());
    }

    #[test]
    fn what_belongs_elsewhere_is_refused_with_the_place_where_it_goes() {
        for (attribute, instead) in MISPLACED {
            for uri in [
                format!("pkcs11:{attribute}=x;object=a"),
                format!("pkcs11:object=a?{attribute}=x"),
                format!("pkcs11:object=a?vendor=1&{attribute}=x"),
            ] {
                let error = refused(&uri);
                assert!(error.contains(attribute) && error.contains(instead), "{uri}: {error}");
            }
        }
        assert!(refused("pkcs11:token=production;object=a").contains("providers.NAME.token"));
    }

    #[test]
    fn malformed_locators_are_refused_for_their_own_reason() {
        for (uri, error) in [
            ("", UriError::Scheme),
            ("object=a", UriError::Scheme),
            (" pkcs11:object=a", UriError::Scheme),
            ("arn:object=a", UriError::Scheme),
            ("pkcs11:", UriError::NoKey),
            ("pkcs11:type=private", UriError::NoKey),
            ("pkcs11:;object=a", UriError::EmptyAttribute(1)),
            ("pkcs11:object=a;", UriError::EmptyAttribute(2)),
            ("pkcs11:object=a;;id=%01", UriError::EmptyAttribute(2)),
            ("pkcs11:object", UriError::NoValue(1)),
            ("pkcs11:object=", UriError::EmptyValue("object")),
            ("pkcs11:object=a;id=", UriError::EmptyValue("id")),
            ("pkcs11:object=a;object=a", UriError::Duplicate("object")),
            ("pkcs11:id=a;id=b", UriError::Duplicate("id")),
            ("pkcs11:type=private;type=private;id=a", UriError::Duplicate("type")),
            ("pkcs11:object=a;type=public", UriError::Type),
            ("pkcs11:object=a;type=Private", UriError::Type),
            ("pkcs11:Object=a", UriError::Unknown(1)),
            ("pkcs11:object=a;x-vendor=b", UriError::Unknown(2)),
            ("pkcs11:object=a; id=b", UriError::Unknown(2)),
            ("pkcs11:object=a?", UriError::Query),
            ("pkcs11:object=a?x-vendor=b", UriError::Query),
            ("pkcs11:object=%", UriError::PercentEncoding("object")),
            ("pkcs11:object=a%2", UriError::PercentEncoding("object")),
            ("pkcs11:id=%0g", UriError::PercentEncoding("id")),
            ("pkcs11:id=%+1", UriError::PercentEncoding("id")),
        ] {
            assert_eq!(uri.parse::<Locator>(), Err(error), "{uri}");
        }
    }

    #[test]
    fn characters_outside_of_the_grammar_are_refused_with_how_they_are_written() {
        for (character, encoded) in
            [(' ', "%20"), ('/', "%2F"), ('#', "%23"), ('"', "%22"), ('|', "%7C"), ('ü', "%C3%BC")]
        {
            let error = refused(&format!("pkcs11:object=a{character}b"));
            assert!(error.contains(encoded), "{error}");
            let written: Locator = format!("pkcs11:object=a{encoded}b").parse().unwrap();
            assert_eq!(written.object.unwrap(), format!("a{character}b").as_bytes());
        }
    }

    #[test]
    fn a_misplaced_pin_is_not_repeated() {
        for uri in ["object=a?pin-value=4711", "object=a;pin-value=4711", "object=a;4711"] {
            assert!(!refused(&format!("pkcs11:{uri}")).contains("4711"));
        }
        assert!(!refused("pkcs11:object=a;4711=x").contains("4711"));
    }

    proptest! {
        #[test]
        fn any_bytes_survive_being_written_and_parsed(
            object in proptest::option::of(vec(any::<u8>(), 1..80)),
            id in vec(any::<u8>(), 1..80),
            id_given in any::<bool>(),
        ) {
            let id = (id_given || object.is_none()).then_some(id);
            let locator = Locator { object, id };
            prop_assert_eq!(locator.to_string().parse::<Locator>(), Ok(locator));
        }

        #[test]
        fn whatever_parses_is_the_same_after_it_was_written(uri in "pkcs11:(object|id|type)=[ -~é]{0,12}(;(object|id|type|token)=[a-z%0-9A-F]{0,9})?") {
            if let Ok(locator) = uri.parse::<Locator>() {
                prop_assert_eq!(locator.to_string().parse::<Locator>(), Ok(locator));
            }
        }
    }
}
