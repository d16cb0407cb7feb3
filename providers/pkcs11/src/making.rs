//! A new key pair in a token, which an operator makes or brings along: it does what it is for, stays in the
//! token, and has a name of its own.

use std::sync::Arc;

use aws_lc_rs::rand;
use claviger_provider_api::{Cause, Error, ErrorKind, NewKey, PrivateKey, PublicKey};
use cryptoki::error::{Error as CryptokiError, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, KeyType, ObjectClass, ObjectHandle};
use cryptoki_sys::{CKA_MODULUS, CKA_PUBLIC_EXPONENT};
use zeroize::Zeroize;

use crate::error::from_cryptoki;
use crate::functions::Asked;
use crate::module::OpenSession;
use crate::object;
use crate::operator;
use crate::token_state::TokenState;
use crate::uri::Locator;

/// The length of the `CKA_ID` that a key is given where none is asked for, in bytes.
const ID_LEN: usize = 8;
/// 65537, big-endian.
const PUBLIC_EXPONENT: [u8; 3] = [1, 0, 1];
/// The longest modulus that is read, in bytes.
const LONGEST: usize = 1024;

/// A key pair to be made.
#[derive(Clone, Debug)]
pub(crate) struct NewPair {
    /// Its `CKA_LABEL` and its `CKA_ID`, both.
    pub(crate) locator: Locator,
    /// The length of the modulus in bits.
    pub(crate) bits: u32,
    /// `CKA_DECRYPT`.
    pub(crate) decrypt: bool,
    /// `CKA_SIGN`.
    pub(crate) sign: bool,
    /// The private key that is imported; none: the token generates one.
    pub(crate) imported: Option<Arc<PrivateKey>>,
}

impl NewPair {
    /// What to make: the label is `NAME-vVERSION` and the id is random, where the locator does not say.
    pub(crate) fn of(new: &NewKey<'_>) -> Result<Self, Error> {
        new.refuse_choice()?;
        let asked = new.locator.map(str::parse::<Locator>).transpose().map_err(operator)?;
        let asked = asked.unwrap_or(Locator { object: None, id: None });
        let mut id = vec![0; ID_LEN];
        rand::fill(&mut id)
            .map_err(|_| Error::new(ErrorKind::Internal, "the system gave no random bytes"))?;
        let locator = Locator {
            object: asked.object.or_else(|| Some(new.own_name().into_bytes())),
            id: asked.id.or(Some(id)),
        };
        let (decrypt, sign) = (!new.algorithms.is_empty(), !new.sign_algorithms.is_empty());
        Ok(Self { locator, bits: new.bits, decrypt, sign, imported: None })
    }

    /// The same for a key that is brought along.
    pub(crate) fn with(self, key: &PrivateKey) -> Result<Self, Error> {
        let imported = Some(Arc::new(PrivateKey::from_pkcs8(key.pkcs8().to_vec().into())?));
        Ok(Self { imported, ..self })
    }
}

/// Makes the pair (`C_GenerateKeyPair`, PKCS#11 2.40 section 5.13) and gives its public half. A private
/// key of the same label or the same id is an error: two of one name would serve none.
pub(crate) fn make(state: &TokenState, pair: &NewPair) -> Result<PublicKey, Error> {
    let session = state.open_writable_session()?;
    refuse_taken_names(&session, &pair.locator)?;
    if let Some(key) = &pair.imported {
        return import(&session, pair, key);
    }
    let (public, private) = generate(&session, pair)?;
    public_key(&session, public).inspect_err(|_| {
        // A key whose public half is not known is of no use, and its name would be taken.
        for object in [public, private] {
            if let Err(error) = session.destroy_object(object) {
                tracing::warn!(locator = %pair.locator, %error, "a new key could not be removed");
            }
        }
    })
}

fn refuse_taken_names(session: &OpenSession, locator: &Locator) -> Result<(), Error> {
    let by_label = Locator { object: locator.object.clone(), id: None };
    let by_id = Locator { object: None, id: locator.id.clone() };
    for name in [by_label, by_id] {
        if !object::private_keys(session, Some(&name))?.is_empty() {
            let text = format!(
                "the token has a private key {name} already, which stays as it is: choose another \
                 name with --locator \"pkcs11:object=…\""
            );
            return Err(Error::needs_operator(Cause::KeyAmbiguous, text));
        }
    }
    Ok(())
}

/// The public and the private object.
fn generate(session: &OpenSession, pair: &NewPair) -> Result<(ObjectHandle, ObjectHandle), Error> {
    let mut all_rights = true;
    loop {
        let public = public_template(pair);
        let private = private_template(pair, all_rights);
        match session.generate_key_pair(&Mechanism::RsaPkcsKeyPairGen, &public, &private) {
            // Some modules do not know each right by name; they do not grant what they do not know.
            Err(CryptokiError::Pkcs11(RvError::AttributeTypeInvalid, _)) if all_rights => {
                all_rights = false;
            }
            Err(error) => {
                let what = format_args!("the token did not make {}", pair.locator);
                return Err(operator(from_cryptoki(error).in_context(what)));
            }
            Ok(made) => return Ok(made),
        }
    }
}

/// The private object with all its numbers (`C_CreateObject`, PKCS#11 2.40 section 5.7), and a public one of
/// the same id for tools.
fn import(session: &OpenSession, pair: &NewPair, key: &PrivateKey) -> Result<PublicKey, Error> {
    let numbers = key.numbers()?;
    let class = |class| [Attribute::Class(class), Attribute::KeyType(KeyType::RSA)];
    let create = |all_rights| {
        let mut private = class(ObjectClass::PRIVATE_KEY).to_vec();
        private.extend(private_template(pair, all_rights));
        private.extend([
            Attribute::Modulus(numbers.n.to_vec()),
            Attribute::PublicExponent(numbers.e.to_vec()),
            Attribute::PrivateExponent(numbers.d.to_vec()),
            Attribute::Prime1(numbers.p.to_vec()),
            Attribute::Prime2(numbers.q.to_vec()),
            Attribute::Exponent1(numbers.dp.to_vec()),
            Attribute::Exponent2(numbers.dq.to_vec()),
            Attribute::Coefficient(numbers.qi.to_vec()),
        ]);
        let created = session.create_object(&private);
        private.iter_mut().for_each(wipe);
        created
    };
    let created = match create(true) {
        Err(CryptokiError::Pkcs11(RvError::AttributeTypeInvalid, _)) => create(false),
        outcome => outcome,
    };
    created.map_err(|error| {
        let what = format_args!("the token did not take {}", pair.locator);
        operator(from_cryptoki(error).in_context(what))
    })?;
    let mut public = class(ObjectClass::PUBLIC_KEY).to_vec();
    public.extend(names(pair));
    public.extend([
        Attribute::Private(false),
        Attribute::Modulus(numbers.n.to_vec()),
        Attribute::PublicExponent(numbers.e.to_vec()),
        Attribute::Encrypt(pair.decrypt),
        Attribute::Verify(pair.sign),
        Attribute::Wrap(false),
    ]);
    if let Err(error) = session.create_object(&public) {
        tracing::warn!(locator = %pair.locator, %error, "no public object, which nothing here needs");
    }
    PublicKey::from_spki(key.public_key().spki()).map_err(operator)
}

/// Zeroes what is secret in an attribute.
fn wipe(attribute: &mut Attribute) {
    if let Attribute::PrivateExponent(number)
    | Attribute::Prime1(number)
    | Attribute::Prime2(number)
    | Attribute::Exponent1(number)
    | Attribute::Exponent2(number)
    | Attribute::Coefficient(number) = attribute
    {
        number.zeroize();
    }
}

fn names(pair: &NewPair) -> Vec<Attribute> {
    let label = pair.locator.object.clone().map(Attribute::Label);
    let id = pair.locator.id.clone().map(Attribute::Id);
    [Attribute::Token(true)].into_iter().chain(label).chain(id).collect()
}

/// It is of no use in the token: wrapping and verifying happen outside.
fn public_template(pair: &NewPair) -> Vec<Attribute> {
    let mut template = names(pair);
    template.extend([
        Attribute::Private(false),
        Attribute::ModulusBits(u64::from(pair.bits).into()),
        Attribute::PublicExponent(PUBLIC_EXPONENT.to_vec()),
        Attribute::Encrypt(pair.decrypt),
        Attribute::Verify(pair.sign),
        Attribute::Wrap(false),
    ]);
    template
}

fn private_template(pair: &NewPair, all_rights: bool) -> Vec<Attribute> {
    let mut template = names(pair);
    template.extend([
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Decrypt(pair.decrypt),
        Attribute::Sign(pair.sign),
        Attribute::Unwrap(false),
    ]);
    template.extend(all_rights.then_some(Attribute::SignRecover(false)));
    template
}

fn public_key(session: &OpenSession, public: ObjectHandle) -> Result<PublicKey, Error> {
    let asked = [CKA_MODULUS, CKA_PUBLIC_EXPONENT];
    let asked = asked.map(|attribute| Asked { attribute, longest: LONGEST });
    let told = session.module().functions().attributes(session, public, &asked)?;
    let mut told = told.into_iter().map(Option::unwrap_or_default);
    let (modulus, exponent) = (told.next().unwrap_or_default(), told.next().unwrap_or_default());
    PublicKey::from_components(&modulus, &exponent).map_err(|error| {
        operator(format!("the token made a key whose public half is none: {error}; it is removed"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use claviger_provider_api::{Algorithm, SignAlgorithm};

    fn new(locator: Option<&str>) -> NewKey<'_> {
        NewKey {
            name: "user-keys",
            version: 2,
            bits: 3072,
            algorithms: &[Algorithm::RsaOaep],
            sign_algorithms: &[],
            in_software: false,
            locator,
            after: None,
        }
    }

    #[test]
    fn a_key_has_a_label_and_an_id_of_its_own_whatever_is_asked_for() {
        let pair = NewPair::of(&new(None)).unwrap();
        assert_eq!(pair.locator.object.as_deref(), Some(&b"user-keys-v2"[..]));
        assert_eq!(pair.locator.id.as_ref().map(Vec::len), Some(ID_LEN));
        assert_ne!(pair.locator.id, NewPair::of(&new(None)).unwrap().locator.id);
        let pair = NewPair::of(&new(Some("pkcs11:object=mine"))).unwrap();
        assert_eq!(pair.locator.object.as_deref(), Some(&b"mine"[..]));
        let pair = NewPair::of(&new(Some("pkcs11:id=%07"))).unwrap();
        assert_eq!(pair.locator.to_string(), "pkcs11:object=user-keys-v2;id=%07");
    }

    #[test]
    fn a_key_may_do_what_its_lists_ask_for_and_nothing_else() {
        let unwraps = NewPair::of(&new(None)).unwrap();
        assert_eq!((unwraps.decrypt, unwraps.sign), (true, false));
        let signs =
            NewKey { algorithms: &[], sign_algorithms: &[SignAlgorithm::Rs256], ..new(None) };
        let signs = NewPair::of(&signs).unwrap();
        assert_eq!((signs.decrypt, signs.sign), (false, true));
    }
}
