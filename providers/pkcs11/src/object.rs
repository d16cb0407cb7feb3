//! A private key among the objects of a token: found by its locator, checked before it is used.

use claviger_provider_api::{Cause, Error, ErrorKind, PublicKey};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;

use crate::error::from_cryptoki;
use crate::module::OpenSession;
use crate::uri::Locator;

/// What a key must be.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) locator: Locator,
    /// `CKA_DECRYPT`.
    pub(crate) decrypt: bool,
    /// `CKA_SIGN`.
    pub(crate) sign: bool,
    /// Whether `CKA_EXTRACTABLE`, or not `CKA_SENSITIVE`, is accepted.
    pub(crate) allow_extractable: bool,
}

/// A private key that was found and is what it must be.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) object: ObjectHandle,
    pub(crate) public_key: PublicKey,
    /// Whether the token would hand it out; none where it does not tell.
    pub(crate) extractable: Option<bool>,
}

/// Looks for the key. None if there is no such object for this session, which may mean no more than
/// that nobody is logged in.
pub(crate) fn find(session: &OpenSession, wanted: &Wanted) -> Result<Option<Found>, Error> {
    session.run(|session| {
        let mut template = vec![Attribute::Class(ObjectClass::PRIVATE_KEY), Attribute::Token(true)];
        template.extend(wanted.locator.object.clone().map(Attribute::Label));
        template.extend(wanted.locator.id.clone().map(Attribute::Id));
        let objects = session.find_objects(&template).map_err(from_cryptoki)?;
        let object = match objects[..] {
            [] => return Ok(None),
            [object] => object,
            _ => {
                let (many, locator) = (objects.len(), &wanted.locator);
                return Err(operator(format!(
                    "{many} private keys match {locator}: name one of them by both object= and id=, \
                     or remove what is there twice"
                )));
            }
        };
        let attributes = Attributes::of(session, object)?;
        attributes.check(wanted)?;
        let extractable = attributes.leaves_the_token();
        let public_key = attributes.public_key(session)?;
        Ok(Some(Found { object, public_key, extractable }))
    })
}

/// What a token tells about a private key; none where it tells nothing.
#[derive(Debug, Default)]
struct Attributes {
    rsa: Option<bool>,
    decrypt: Option<bool>,
    sign: Option<bool>,
    sensitive: Option<bool>,
    extractable: Option<bool>,
    always_authenticate: Option<bool>,
    modulus: Option<Vec<u8>>,
    exponent: Option<Vec<u8>>,
    id: Option<Vec<u8>>,
}

impl Attributes {
    fn of(session: &Session, object: ObjectHandle) -> Result<Self, Error> {
        const ASKED: [AttributeType; 9] = [
            AttributeType::KeyType,
            AttributeType::Decrypt,
            AttributeType::Sign,
            AttributeType::Sensitive,
            AttributeType::Extractable,
            AttributeType::AlwaysAuthenticate,
            AttributeType::Modulus,
            AttributeType::PublicExponent,
            AttributeType::Id,
        ];
        let mut told = Self::default();
        for attribute in session.get_attributes(object, &ASKED).map_err(from_cryptoki)? {
            match attribute {
                Attribute::KeyType(key_type) => told.rsa = Some(key_type == KeyType::RSA),
                Attribute::Decrypt(yes) => told.decrypt = Some(yes),
                Attribute::Sign(yes) => told.sign = Some(yes),
                Attribute::Sensitive(yes) => told.sensitive = Some(yes),
                Attribute::Extractable(yes) => told.extractable = Some(yes),
                Attribute::AlwaysAuthenticate(yes) => told.always_authenticate = Some(yes),
                Attribute::Modulus(bytes) => told.modulus = Some(bytes),
                Attribute::PublicExponent(bytes) => told.exponent = Some(bytes),
                Attribute::Id(bytes) => told.id = Some(bytes),
                _ => {}
            }
        }
        Ok(told)
    }

    fn check(&self, wanted: &Wanted) -> Result<(), Error> {
        let locator = &wanted.locator;
        if self.rsa != Some(true) {
            return Err(unfit(format!("{locator} is no RSA key (CKA_KEY_TYPE)")));
        }
        for (needed, told, name, list) in [
            (wanted.decrypt, self.decrypt, "CKA_DECRYPT", "algorithms"),
            (wanted.sign, self.sign, "CKA_SIGN", "sign_algorithms"),
        ] {
            if needed && told == Some(false) {
                return Err(unfit(format!(
                    "{locator} may not be used so: its {name} is false; set it in the token or take \
                     {list} out of the key's configuration"
                )));
            }
        }
        if self.always_authenticate == Some(true) {
            return Err(unfit(format!(
                "{locator} wants a PIN for each operation (CKA_ALWAYS_AUTHENTICATE), which a service \
                 cannot give; create the key without it"
            )));
        }
        if !wanted.allow_extractable && self.leaves_the_token() != Some(false) {
            let what = match (self.extractable, self.sensitive) {
                (Some(true), _) => "can be taken out of the token (CKA_EXTRACTABLE is true)",
                (_, Some(false)) => "can be read in the token (CKA_SENSITIVE is false)",
                _ => "does not tell whether it can be taken out (CKA_EXTRACTABLE, CKA_SENSITIVE)",
            };
            return Err(Error::needs_operator(
                Cause::ExtractableRefused,
                format!(
                    "{locator} {what}: import or create it sensitive and not extractable, or set \
                 allow_extractable = true if that is meant"
                ),
            ));
        }
        Ok(())
    }

    fn leaves_the_token(&self) -> Option<bool> {
        match (self.extractable, self.sensitive) {
            (Some(false), Some(true)) => Some(false),
            (Some(true), _) | (_, Some(false)) => Some(true),
            _ => None,
        }
    }

    /// From the private key object, or from the public one with the same `CKA_ID` where the private
    /// one does not tell.
    fn public_key(self, session: &Session) -> Result<PublicKey, Error> {
        let (modulus, exponent) = match (self.modulus, self.exponent) {
            (Some(modulus), Some(exponent)) if !exponent.is_empty() => (modulus, exponent),
            (modulus, _) => {
                let id = self.id.filter(|id| !id.is_empty()).ok_or_else(no_public_half)?;
                let (public_modulus, exponent) = public_object(session, id)?;
                if modulus.is_some_and(|modulus| {
                    without_leading_zeros(&modulus) != without_leading_zeros(&public_modulus)
                }) {
                    return Err(operator(
                        "the public key object with the private key's CKA_ID has another modulus: \
                         give each pair an id of its own",
                    ));
                }
                (public_modulus, exponent)
            }
        };
        PublicKey::from_components(&modulus, &exponent).map_err(unfit)
    }
}

fn public_object(session: &Session, id: Vec<u8>) -> Result<(Vec<u8>, Vec<u8>), Error> {
    let template = [Attribute::Class(ObjectClass::PUBLIC_KEY), Attribute::Id(id)];
    let objects = session.find_objects(&template).map_err(from_cryptoki)?;
    let [object] = objects[..] else { return Err(no_public_half()) };
    let (mut modulus, mut exponent) = (None, None);
    let asked = [AttributeType::Modulus, AttributeType::PublicExponent];
    for attribute in session.get_attributes(object, &asked).map_err(from_cryptoki)? {
        match attribute {
            Attribute::Modulus(bytes) => modulus = Some(bytes),
            Attribute::PublicExponent(bytes) => exponent = Some(bytes),
            _ => {}
        }
    }
    modulus.zip(exponent).ok_or_else(no_public_half)
}

fn no_public_half() -> Error {
    operator(
        "the token does not tell the key's modulus and public exponent, and there is no single public \
         key object with the same CKA_ID: import the public key under the private key's id",
    )
}

/// A key of another type, or made for another use.
fn unfit(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::needs_operator(Cause::KeyUnfit, source)
}

fn operator(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::new(ErrorKind::OperatorNeeded, source)
}

fn without_leading_zeros(bytes: &[u8]) -> &[u8] {
    &bytes[bytes.iter().take_while(|byte| **byte == 0).count()..]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted() -> Wanted {
        let locator = "pkcs11:object=user-keys".parse().unwrap();
        Wanted { locator, decrypt: true, sign: false, allow_extractable: false }
    }

    fn good() -> Attributes {
        Attributes {
            rsa: Some(true),
            decrypt: Some(true),
            sensitive: Some(true),
            extractable: Some(false),
            ..Attributes::default()
        }
    }

    #[test]
    fn a_key_that_is_what_it_must_be_passes() {
        good().check(&wanted()).unwrap();
        assert_eq!(good().leaves_the_token(), Some(false));
        // It need not be able to do what nobody asks of it.
        Attributes { sign: Some(false), ..good() }.check(&wanted()).unwrap();
    }

    #[test]
    fn a_key_that_could_leave_the_token_is_refused_unless_that_is_meant() {
        let leaky = [
            Attributes { extractable: Some(true), ..good() },
            Attributes { sensitive: Some(false), ..good() },
            Attributes { extractable: None, sensitive: None, ..good() },
        ];
        for attributes in leaky {
            let error = attributes.check(&wanted()).unwrap_err();
            assert!(error.to_string().contains("allow_extractable = true"), "{error}");
            assert_ne!(attributes.leaves_the_token(), Some(false));
            attributes.check(&Wanted { allow_extractable: true, ..wanted() }).unwrap();
        }
    }

    #[test]
    fn a_key_of_another_kind_or_use_is_refused_by_the_attributes_name() {
        let cases = [
            (Attributes { rsa: Some(false), ..good() }, "CKA_KEY_TYPE"),
            (Attributes { decrypt: Some(false), ..good() }, "CKA_DECRYPT"),
            (Attributes { always_authenticate: Some(true), ..good() }, "CKA_ALWAYS_AUTHENTICATE"),
        ];
        for (attributes, expected) in cases {
            let error = attributes.check(&wanted()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::OperatorNeeded);
            assert!(error.to_string().contains(expected), "{error}");
        }
        let signing = Wanted { sign: true, ..wanted() };
        let error = Attributes { sign: Some(false), ..good() }.check(&signing).unwrap_err();
        assert!(error.to_string().contains("CKA_SIGN"), "{error}");
    }
}
