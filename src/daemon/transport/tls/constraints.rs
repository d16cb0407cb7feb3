//! A CA's name constraints on URIs and directory names (RFC 5280 4.2.1.10), which webpki does not
//! evaluate: it refuses every certificate under them.

use x509_parser::asn1_rs::{Any, Tag};
use x509_parser::extensions::{GeneralName, NameConstraints};
use x509_parser::prelude::{X509Certificate, X509Name};

use super::der::{elements, encode, only};

const SEQUENCE: u8 = 0x30;
const DIRECTORY_NAME: u8 = 0xa4;
const URI: u8 = 0x86;

/// The constraints of one CA.
#[derive(Clone, Debug, Default)]
pub(super) struct Constraints {
    permitted: Subtrees,
    excluded: Subtrees,
    /// The content of NameConstraints with the other forms, for webpki.
    pub(super) other_forms: Option<Vec<u8>>,
}

#[derive(Clone, Debug, Default)]
struct Subtrees {
    /// Hosts, or domains with a leading dot; in lower case.
    hosts: Vec<String>,
    directory_names: Vec<Name>,
}

/// A distinguished name as a list of its relative ones; those are sets of type and value.
type Name = Vec<Vec<(String, Vec<u8>)>>;

impl Constraints {
    /// Reads the extension, both as bytes and parsed.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub(super) fn parse(value: &[u8], parsed: &NameConstraints<'_>) -> Result<Self, String> {
        Ok(Self {
            permitted: Subtrees::of(parsed.permitted_subtrees.as_ref())?,
            excluded: Subtrees::of(parsed.excluded_subtrees.as_ref())?,
            other_forms: other_forms(value).ok_or("its nameConstraints are damaged")?,
        })
    }

    /// Whether the certificate's names keep to the constraints.
    ///
    /// # Errors
    ///
    /// The name that does not.
    pub(super) fn check(&self, certificate: &X509Certificate<'_>) -> Result<(), String> {
        let Self { permitted, excluded, .. } = self;
        let san = certificate.subject_alternative_name().map_err(|error| error.to_string())?;
        let names = san.iter().flat_map(|san| &san.value.general_names);
        let mut directory_names = vec![certificate.subject()];
        for name in names {
            match name {
                GeneralName::URI(uri)
                    if !(permitted.hosts.is_empty() && excluded.hosts.is_empty()) =>
                {
                    let host = host(uri).ok_or_else(|| format!("the URI {uri:?} has no host"))?;
                    let within = |hosts: &[String]| hosts.iter().any(|base| covers(base, &host));
                    let missed = !permitted.hosts.is_empty() && !within(&permitted.hosts);
                    if missed || within(&excluded.hosts) {
                        return Err(format!("the URI {uri:?}"));
                    }
                }
                GeneralName::DirectoryName(name) => directory_names.push(name),
                _ => {}
            }
        }
        for shown in directory_names {
            let name = normal(shown);
            let within = |bases: &[Name]| bases.iter().any(|base| name.starts_with(base));
            let bases = &permitted.directory_names;
            let missed = !name.is_empty() && !bases.is_empty() && !within(bases);
            if missed || within(&excluded.directory_names) {
                return Err(format!("the name {shown}"));
            }
        }
        Ok(())
    }
}

impl Subtrees {
    fn of(
        parsed: Option<&Vec<x509_parser::extensions::GeneralSubtree<'_>>>,
    ) -> Result<Self, String> {
        let mut subtrees = Self::default();
        for subtree in parsed.into_iter().flatten() {
            match &subtree.base {
                GeneralName::URI(host) => subtrees.hosts.push(host.to_ascii_lowercase()),
                GeneralName::DirectoryName(name) => subtrees.directory_names.push(normal(name)),
                GeneralName::Invalid(..) => {
                    return Err("its nameConstraints are damaged".to_owned());
                }
                _ => {}
            }
        }
        Ok(subtrees)
    }
}

/// The host of a URI with an authority, in lower case; a host in brackets is an address, not a name.
fn host(uri: &str) -> Option<String> {
    let (_, rest) = uri.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next()?;
    let host_and_port = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let host = host_and_port.split(':').next()?;
    let is_name =
        !host.is_empty() && !host.starts_with('[') && host.parse::<std::net::Ipv4Addr>().is_err();
    is_name.then(|| host.to_ascii_lowercase())
}

/// A base with a leading dot covers every host below it, and another the one host that it is.
fn covers(base: &str, host: &str) -> bool {
    if base.starts_with('.') {
        host.len() > base.len() && host.ends_with(base)
    } else {
        base == host
    }
}

/// A name in which strings compare as RFC 5280 7.1 says: without case, and blanks folded.
fn normal(name: &X509Name<'_>) -> Name {
    let relative = name.iter_rdn().map(|rdn| {
        let part = |part: &x509_parser::x509::AttributeTypeAndValue<'_>| {
            let value = part.attr_value();
            let folded = text(value).map(|text| {
                text.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase().into_bytes()
            });
            (part.attr_type().to_string(), folded.unwrap_or_else(|| value.data.to_vec()))
        };
        let mut set: Vec<_> = rdn.iter().map(part).collect();
        set.sort_unstable();
        set
    });
    relative.collect()
}

fn text(value: &Any<'_>) -> Option<String> {
    match value.tag() {
        Tag::Utf8String | Tag::PrintableString | Tag::Ia5String | Tag::VisibleString => {
            String::from_utf8(value.data.to_vec()).ok()
        }
        Tag::T61String => Some(value.data.iter().copied().map(char::from).collect()),
        Tag::BmpString => {
            let units =
                value.data.chunks_exact(2).map(|unit| u16::from_be_bytes([unit[0], unit[1]]));
            char::decode_utf16(units).collect::<Result<_, _>>().ok()
        }
        _ => None,
    }
}

/// The content of NameConstraints without the subtrees that are evaluated here; nothing, where none
/// is left. The outer nothing: it is malformed.
#[expect(clippy::option_option, reason = "malformed, and well-formed with nothing left")]
fn other_forms(value: &[u8]) -> Option<Option<Vec<u8>>> {
    let mut content = Vec::new();
    for list in elements(only(value, SEQUENCE)?)? {
        let mut kept = Vec::new();
        for subtree in elements(list.content)? {
            let base = elements(only(subtree.whole, SEQUENCE)?)?.first()?.tag;
            if !matches!(base, URI | DIRECTORY_NAME) {
                kept.extend(subtree.whole);
            }
        }
        if !kept.is_empty() {
            content.extend(encode(list.tag, &kept));
        }
    }
    Some((!content.is_empty()).then_some(content))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_read_from_a_uri_with_an_authority() {
        for (uri, expected) in [
            ("spiffe://Example.org/a", Some("example.org")),
            ("https://me@a.example:8443?x", Some("a.example")),
            ("https://10.0.0.1/", None),
            ("https://[::1]/", None),
            ("urn:uuid:1", None),
            ("spiffe:///a", None),
        ] {
            assert_eq!(host(uri).as_deref(), expected, "{uri}");
        }
    }

    #[test]
    fn a_dot_in_front_covers_what_is_below_and_not_the_domain_itself() {
        assert!(covers("a.example", "a.example") && !covers("a.example", "b.a.example"));
        assert!(covers(".a.example", "b.a.example") && covers(".a.example", "c.b.a.example"));
        assert!(!covers(".a.example", "a.example") && !covers(".a.example", "ba.example"));
        assert!(!covers("", "a.example"));
    }

    #[test]
    fn webpki_keeps_the_forms_that_it_knows() {
        let subtree = |tag: u8, value: &[u8]| encode(SEQUENCE, &encode(tag, value));
        let (uri, dns) = (subtree(URI, b".a"), subtree(0x82, b"a"));
        let all = encode(0xa0, &[uri.clone(), dns.clone()].concat());
        let extension = encode(SEQUENCE, &[all, encode(0xa1, &uri)].concat());
        assert_eq!(other_forms(&extension), Some(Some(encode(0xa0, &dns))));
        assert_eq!(other_forms(&encode(SEQUENCE, &encode(0xa1, &uri))), Some(None));
        assert_eq!(other_forms(&[0x30, 1, 0xa0]), None);
    }
}
