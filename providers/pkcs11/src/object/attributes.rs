//! What a token tells about a private key, and whether that is what the configuration asks for.

use claviger_provider_api::{Cause, Error, PublicKey};
use cryptoki::object::{Attribute, ObjectClass, ObjectHandle};
use cryptoki::session::Session;
use cryptoki_sys::{
    CK_ULONG, CKA_ALWAYS_AUTHENTICATE, CKA_DECRYPT, CKA_EXTRACTABLE, CKA_ID, CKA_KEY_TYPE,
    CKA_MODULUS, CKA_PUBLIC_EXPONENT, CKA_SENSITIVE, CKA_SIGN, CKA_SIGN_RECOVER, CKA_UNWRAP,
    CKK_RSA,
};

use super::{LONGEST, Wanted};
use crate::error::from_cryptoki;
use crate::functions::{Asked, Functions};

/// The longest modulus that is read, in bytes: of 16,384 bits.
const LONGEST_MODULUS: usize = 2048;

/// What a token tells about a private key; none where it tells nothing.
#[derive(Debug, Default)]
pub(super) struct Attributes {
    pub(super) rsa: Option<bool>,
    decrypt: Option<bool>,
    sign: Option<bool>,
    sign_recover: Option<bool>,
    unwrap: Option<bool>,
    sensitive: Option<bool>,
    extractable: Option<bool>,
    always_authenticate: Option<bool>,
    modulus: Option<Vec<u8>>,
    exponent: Option<Vec<u8>>,
    id: Option<Vec<u8>>,
}

impl Attributes {
    /// Asks the token for all of them at once.
    pub(super) fn of(
        functions: &Functions,
        session: &Session,
        object: ObjectHandle,
    ) -> Result<Self, Error> {
        let yes_or_no = |attribute| Asked { attribute, longest: 1 };
        let number = |attribute| Asked { attribute, longest: size_of::<CK_ULONG>() };
        let bytes = |attribute, longest| Asked { attribute, longest };
        let asked = [
            number(CKA_KEY_TYPE),
            yes_or_no(CKA_DECRYPT),
            yes_or_no(CKA_SIGN),
            yes_or_no(CKA_SIGN_RECOVER),
            yes_or_no(CKA_UNWRAP),
            yes_or_no(CKA_SENSITIVE),
            yes_or_no(CKA_EXTRACTABLE),
            yes_or_no(CKA_ALWAYS_AUTHENTICATE),
            bytes(CKA_MODULUS, LONGEST_MODULUS),
            bytes(CKA_PUBLIC_EXPONENT, LONGEST),
            bytes(CKA_ID, LONGEST),
        ];
        let told = functions.attributes(session, object, &asked)?;
        let [
            key_type,
            decrypt,
            sign,
            sign_recover,
            unwrap,
            sensitive,
            extractable,
            always,
            rest @ ..,
        ] = <[Option<Vec<u8>>; 11]>::try_from(told).expect("as many values as were asked for");
        let [modulus, exponent, id] = rest;
        Ok(Self {
            rsa: key_type.and_then(|value| ck_ulong(&value)).map(|number| number == CKK_RSA),
            decrypt: decrypt.and_then(|value| ck_bool(&value)),
            sign: sign.and_then(|value| ck_bool(&value)),
            sign_recover: sign_recover.and_then(|value| ck_bool(&value)),
            unwrap: unwrap.and_then(|value| ck_bool(&value)),
            sensitive: sensitive.and_then(|value| ck_bool(&value)),
            extractable: extractable.and_then(|value| ck_bool(&value)),
            always_authenticate: always.and_then(|value| ck_bool(&value)),
            modulus,
            exponent,
            id,
        })
    }

    /// What the token would let the key be used for, and the configuration does not ask of it.
    pub(super) fn unneeded_rights(&self, wanted: &Wanted) -> Vec<String> {
        [
            (self.decrypt, wanted.decrypt, "CKA_DECRYPT"),
            (self.sign, wanted.sign, "CKA_SIGN"),
            (self.sign_recover, false, "CKA_SIGN_RECOVER"),
            (self.unwrap, false, "CKA_UNWRAP"),
        ]
        .into_iter()
        .filter(|(told, needed, _)| *told == Some(true) && !needed)
        .map(|(_, _, name)| name.to_owned())
        .collect()
    }

    /// Whether the key is what is wanted; the error says what is not.
    pub(super) fn check(&self, wanted: &Wanted) -> Result<(), Error> {
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
            let text = format!(
                "{locator} {what}: import or create it sensitive and not extractable, or set \
                 allow_extractable = true if that is meant"
            );
            return Err(Error::needs_operator(Cause::ExtractableRefused, text));
        }
        Ok(())
    }

    /// Whether the token would hand the key out; none where it does not tell.
    pub(super) fn leaves_the_token(&self) -> Option<bool> {
        match (self.extractable, self.sensitive) {
            (Some(false), Some(true)) => Some(false),
            (Some(true), _) | (_, Some(false)) => Some(true),
            _ => None,
        }
    }

    /// From the private key object, or from the public one with the same `CKA_ID` where the private
    /// one does not tell.
    pub(super) fn public_key(
        self,
        functions: &Functions,
        session: &Session,
    ) -> Result<PublicKey, Error> {
        let (modulus, exponent) = match (self.modulus, self.exponent) {
            (Some(modulus), Some(exponent)) if !exponent.is_empty() => (modulus, exponent),
            (modulus, _) => {
                let id = self.id.filter(|id| !id.is_empty()).ok_or_else(no_public_half)?;
                let (public_modulus, exponent) = public_object(functions, session, id)?;
                if modulus.is_some_and(|modulus| {
                    without_leading_zeros(&modulus) != without_leading_zeros(&public_modulus)
                }) {
                    return Err(unfit(
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

fn public_object(
    functions: &Functions,
    session: &Session,
    id: Vec<u8>,
) -> Result<(Vec<u8>, Vec<u8>), Error> {
    let template = [Attribute::Class(ObjectClass::PUBLIC_KEY), Attribute::Id(id)];
    let objects = session.find_objects(&template).map_err(from_cryptoki)?;
    let [object] = objects[..] else { return Err(no_public_half()) };
    let asked = [
        Asked { attribute: CKA_MODULUS, longest: LONGEST_MODULUS },
        Asked { attribute: CKA_PUBLIC_EXPONENT, longest: LONGEST },
    ];
    let mut told = functions.attributes(session, object, &asked)?;
    let exponent = told.pop().flatten();
    told.pop().flatten().zip(exponent).ok_or_else(no_public_half)
}

/// A `CK_BBOOL` (PKCS#11 2.40 section 3.3); none if it is not one byte.
fn ck_bool(value: &[u8]) -> Option<bool> {
    match value {
        [byte] => Some(*byte != 0),
        _ => None,
    }
}

fn ck_ulong(value: &[u8]) -> Option<CK_ULONG> {
    value.try_into().ok().map(CK_ULONG::from_ne_bytes)
}

fn no_public_half() -> Error {
    unfit(
        "the token does not tell the key's modulus and public exponent, and there is no single public \
         key object with the same CKA_ID: import the public key under the private key's id",
    )
}

fn unfit(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::needs_operator(Cause::KeyUnfit, source)
}

fn without_leading_zeros(bytes: &[u8]) -> &[u8] {
    &bytes[bytes.iter().take_while(|byte| **byte == 0).count()..]
}

#[cfg(test)]
mod tests {
    use claviger_provider_api::ErrorKind;

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
        // It need not be able to do what nothing asks of it.
        Attributes { sign: Some(false), ..good() }.check(&wanted()).unwrap();
    }

    #[test]
    fn a_right_that_nothing_asks_for_is_named() {
        let all = Some(true);
        let broad = Attributes { sign: all, sign_recover: all, unwrap: all, ..good() };
        assert_eq!(
            broad.unneeded_rights(&wanted()),
            ["CKA_SIGN", "CKA_SIGN_RECOVER", "CKA_UNWRAP"]
        );
        let signing = Wanted { decrypt: false, sign: true, ..wanted() };
        assert_eq!(
            broad.unneeded_rights(&signing),
            ["CKA_DECRYPT", "CKA_SIGN_RECOVER", "CKA_UNWRAP"]
        );
        assert!(good().unneeded_rights(&wanted()).is_empty());
        assert!(Attributes { sign: Some(false), ..good() }.unneeded_rights(&wanted()).is_empty());
    }

    #[test]
    fn a_boolean_is_told_by_one_byte_and_by_no_other_length() {
        assert_eq!(
            [ck_bool(&[0]), ck_bool(&[1]), ck_bool(&[0xff])],
            [Some(false), Some(true), Some(true)]
        );
        for odd in [&[][..], &[0, 0]] {
            assert_eq!(ck_bool(odd), None);
        }
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
