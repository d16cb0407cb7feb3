//! Which certificates a revocation list is for: the list's `issuingDistributionPoint` (RFC 5280
//! 5.2.5) and the certificate's `cRLDistributionPoints` (4.2.1.13), compared as 6.3.3 says.

use super::der::{elements, only};

const SEQUENCE: u8 = 0x30;
const PRIMITIVE: u8 = 0x80;
const CONSTRUCTED: u8 = 0xa0;
/// `directoryName` of a GeneralName.
const DIRECTORY_NAME: u8 = CONSTRUCTED | 4;

/// Reasons for a revocation, as bits of ReasonFlags: the first octet, and the second above it.
pub(super) type Reasons = u16;

/// Every reason there is: bits 1 to 8.
pub(super) const ALL_REASONS: Reasons = 0x807f;

/// What a list is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Scope {
    /// The list is for certificates that name one of these GeneralNames; without, for all.
    names: Option<Vec<Box<[u8]>>>,
    only_users: bool,
    only_cas: bool,
    reasons: Reasons,
}

/// Where a certificate says that lists about it are found.
#[derive(Clone, Debug)]
pub(super) struct DistributionPoint {
    names: Option<Vec<Box<[u8]>>>,
    reasons: Reasons,
    /// The Names of other issuers of its lists: a list of the CA itself does not count for it then,
    /// unless the CA is among them.
    issuers: Option<Vec<Box<[u8]>>>,
}

/// What of a certificate a scope is compared with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Subject<'a> {
    pub(super) is_ca: bool,
    /// Its issuer's Name, which is the list's issuer too.
    pub(super) issuer: &'a [u8],
    pub(super) points: &'a [DistributionPoint],
}

impl Scope {
    /// Of a list without the extension.
    pub(super) const EVERYTHING: Self =
        Self { names: None, only_users: false, only_cas: false, reasons: ALL_REASONS };

    /// Reads the extension's value.
    ///
    /// # Errors
    ///
    /// Why a list with this extension cannot be used.
    pub(super) fn parse(extension: &[u8]) -> Result<Self, &'static str> {
        const DAMAGED: &str = "its issuingDistributionPoint is damaged";
        let parts = only(extension, SEQUENCE).and_then(elements).ok_or(DAMAGED)?;
        let mut scope = Self::EVERYTHING;
        for part in parts {
            match part.tag {
                tag if tag == CONSTRUCTED => {
                    let names = full_name(part.content).ok_or(
                        "its issuingDistributionPoint has a name relative to the issuer, which is \
                         not supported; issue it with a full name",
                    )?;
                    scope.names = Some(names);
                }
                tag if tag == PRIMITIVE | 1 => {
                    scope.only_users = flag(part.content).ok_or(DAMAGED)?;
                }
                tag if tag == PRIMITIVE | 2 => {
                    scope.only_cas = flag(part.content).ok_or(DAMAGED)?;
                }
                tag if tag == PRIMITIVE | 3 => {
                    scope.reasons = reasons(part.content).ok_or(DAMAGED)?;
                }
                tag if tag == PRIMITIVE | 4 => {
                    if flag(part.content).ok_or(DAMAGED)? {
                        return Err(
                            "it is an indirect CRL, with certificates of other CAs, which \
                                    is not supported; name the list of the CA itself",
                        );
                    }
                }
                tag if tag == PRIMITIVE | 5 => {
                    if flag(part.content).ok_or(DAMAGED)? {
                        return Err("it is for attribute certificates only; name the list for \
                                    certificates");
                    }
                }
                _ => return Err(DAMAGED),
            }
        }
        if scope.only_users && scope.only_cas {
            return Err("its issuingDistributionPoint is for no certificate at all");
        }
        Ok(scope)
    }

    /// The reasons about which a list of this scope speaks for a certificate; 0 where it does not.
    pub(super) fn reasons_for(&self, subject: &Subject<'_>) -> Reasons {
        if (subject.is_ca && self.only_users) || (!subject.is_ca && self.only_cas) {
            return 0;
        }
        let points = subject.points.iter().filter(|point| {
            let by_issuer = point
                .issuers
                .as_ref()
                .is_none_or(|issuers| issuers.iter().any(|issuer| **issuer == *subject.issuer));
            by_issuer && meet(point.names.as_deref(), self.names.as_deref())
        });
        let named = points.fold(0, |sum, point| sum | point.reasons & self.reasons);
        if named == 0 && self.names.is_none() { self.reasons } else { named }
    }
}

impl DistributionPoint {
    /// Reads the value of `cRLDistributionPoints`, or gives nothing where it is malformed.
    pub(super) fn parse_all(extension: &[u8]) -> Option<Vec<Self>> {
        let points = elements(only(extension, SEQUENCE)?)?;
        points
            .iter()
            .map(|point| Self::parse((point.tag == SEQUENCE).then_some(point.content)?))
            .collect()
    }

    fn parse(content: &[u8]) -> Option<Self> {
        let mut point = Self { names: None, reasons: ALL_REASONS, issuers: None };
        for part in elements(content)? {
            match part.tag {
                // A relative name meets no full one.
                tag if tag == CONSTRUCTED => {
                    point.names = Some(full_name(part.content).unwrap_or_default());
                }
                tag if tag == PRIMITIVE | 1 => point.reasons = reasons(part.content)?,
                tag if tag == CONSTRUCTED | 2 => {
                    let names = elements(part.content)?;
                    let names = names.iter().filter(|name| name.tag == DIRECTORY_NAME);
                    point.issuers = Some(names.map(|name| name.content.into()).collect());
                }
                _ => return None,
            }
        }
        Some(point)
    }
}

/// Whether two names of distribution points have a part in common; one without a name meets all.
fn meet(one: Option<&[Box<[u8]>]>, other: Option<&[Box<[u8]>]>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => one.iter().any(|name| other.contains(name)),
        _ => true,
    }
}

/// The GeneralNames of a DistributionPointName in its form `fullName`.
fn full_name(content: &[u8]) -> Option<Vec<Box<[u8]>>> {
    let names = elements(only(content, CONSTRUCTED)?)?;
    Some(names.iter().map(|name| name.whole.into()).collect())
}

fn flag(content: &[u8]) -> Option<bool> {
    match content {
        // DER omits what is false; some issuers do not.
        [0] => Some(false),
        [0xff] => Some(true),
        _ => None,
    }
}

fn reasons(bit_string: &[u8]) -> Option<Reasons> {
    let [unused @ 0..=7, octets @ ..] = bit_string else { return None };
    let first = Reasons::from(octets.first().copied().unwrap_or(0));
    let second = Reasons::from(octets.get(1).copied().unwrap_or(0));
    (!octets.is_empty() || *unused == 0).then_some((first | second << 8) & ALL_REASONS)
}

#[cfg(test)]
mod tests {
    use super::super::der::encode;
    use super::*;

    const URI: u8 = PRIMITIVE | 6;

    fn name(uris: &[&str]) -> Vec<u8> {
        let names: Vec<u8> = uris.iter().flat_map(|uri| encode(URI, uri.as_bytes())).collect();
        encode(CONSTRUCTED, &encode(CONSTRUCTED, &names))
    }

    fn idp(parts: &[&[u8]]) -> Result<Scope, &'static str> {
        Scope::parse(&encode(SEQUENCE, &parts.concat()))
    }

    fn points(parts: &[&[u8]]) -> Vec<DistributionPoint> {
        let point = encode(SEQUENCE, &parts.concat());
        DistributionPoint::parse_all(&encode(SEQUENCE, &point)).unwrap()
    }

    fn leaf(points: &[DistributionPoint]) -> Subject<'_> {
        Subject { is_ca: false, issuer: b"ca", points }
    }

    const ONLY_USERS: &[u8] = &[PRIMITIVE | 1, 1, 0xff];
    const ONLY_CAS: &[u8] = &[PRIMITIVE | 2, 1, 0xff];
    const KEY_COMPROMISE: &[u8] = &[PRIMITIVE | 3, 2, 6, 0x40];

    #[test]
    fn a_list_with_a_name_is_for_certificates_that_name_it_and_for_no_others() {
        let scope = idp(&[&name(&["http://a/1", "ldap://a/1"])]).unwrap();
        let (same, other) = (points(&[&name(&["http://a/1"])]), points(&[&name(&["http://a/2"])]));
        assert_eq!(scope.reasons_for(&leaf(&same)), ALL_REASONS);
        assert_eq!(scope.reasons_for(&leaf(&other)), 0);
        assert_eq!(scope.reasons_for(&leaf(&[])), 0);
        for points in [&same, &other, &Vec::new()] {
            assert_eq!(Scope::EVERYTHING.reasons_for(&leaf(points)), ALL_REASONS);
        }
    }

    #[test]
    fn lists_of_users_and_of_cas_are_for_one_kind() {
        let (users, cas) = (idp(&[ONLY_USERS]).unwrap(), idp(&[ONLY_CAS]).unwrap());
        let ca = Subject { is_ca: true, ..leaf(&[]) };
        assert_eq!([users.reasons_for(&leaf(&[])), users.reasons_for(&ca)], [ALL_REASONS, 0]);
        assert_eq!([cas.reasons_for(&leaf(&[])), cas.reasons_for(&ca)], [0, ALL_REASONS]);
    }

    #[test]
    fn reasons_are_those_of_the_list_and_of_the_point() {
        let some = idp(&[KEY_COMPROMISE]).unwrap();
        assert_eq!(some.reasons_for(&leaf(&[])), 0x40);
        let point = points(&[&[PRIMITIVE | 1, 3, 7, 0xbf, 0x80]]);
        assert_eq!(Scope::EVERYTHING.reasons_for(&leaf(&point)), ALL_REASONS & !0x40);
    }

    #[test]
    fn a_point_of_another_issuer_does_not_count() {
        let by = |issuer: &[u8]| {
            let issuer = encode(CONSTRUCTED | 2, &encode(DIRECTORY_NAME, issuer));
            points(&[&name(&["http://a/1"]), &issuer])
        };
        let scope = idp(&[&name(&["http://a/1"])]).unwrap();
        assert_eq!(scope.reasons_for(&leaf(&by(b"other"))), 0);
        assert_eq!(scope.reasons_for(&leaf(&by(b"ca"))), ALL_REASONS);
    }

    #[test]
    fn what_is_damaged_or_not_supported_is_refused_in_words() {
        let indirect: &[u8] = &[PRIMITIVE | 4, 1, 0xff];
        let attributes: &[u8] = &[PRIMITIVE | 5, 1, 0xff];
        let relative = encode(CONSTRUCTED, &encode(CONSTRUCTED | 1, &[]));
        for (parts, expected) in [
            (&[indirect][..], "indirect"),
            (&[attributes], "attribute certificates"),
            (&[&relative], "relative"),
            (&[ONLY_USERS, ONLY_CAS], "no certificate at all"),
            (&[&[PRIMITIVE | 1, 1, 1]], "damaged"),
            (&[&[PRIMITIVE | 3, 0]], "damaged"),
            (&[&[PRIMITIVE | 9, 0]], "damaged"),
        ] {
            let said = idp(parts).unwrap_err();
            assert!(said.contains(expected), "{said}");
        }
        assert!(Scope::parse(&[0x30, 5]).is_err());
        assert!(DistributionPoint::parse_all(&[0x30, 2, 0x31, 0]).is_none());
    }
}
