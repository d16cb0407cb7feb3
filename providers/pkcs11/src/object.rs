//! A private key among the objects of a token: found by its locator, checked before it is used.

mod attributes;

use claviger_provider_api::{Cause, Error, PublicKey};
use cryptoki::error::{Error as CryptokiError, RvError};
use cryptoki::object::{Attribute, ObjectClass, ObjectHandle};
use cryptoki::session::Session;
use cryptoki_sys::{CKA_ID, CKA_LABEL};

use self::attributes::Attributes;
use crate::error::from_cryptoki;
use crate::functions::{Asked, Functions};
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
    /// The attributes that allow uses which the configuration does not ask for, such as `CKA_SIGN`.
    pub(crate) unneeded_rights: Vec<String>,
}

/// The longest label, `CKA_ID` or public exponent that is read, in bytes.
const LONGEST: usize = 1024;
/// How many of the keys that are there an error names.
const NAMED: usize = 10;

/// Looks for the key. None if there is no such object for this session, which may mean no more than
/// that there is no login.
pub(crate) fn find(session: &OpenSession, wanted: &Wanted) -> Result<Option<Found>, Error> {
    let functions = session.module().functions();
    let object = match private_keys(session, Some(&wanted.locator))?[..] {
        [] => return Ok(None),
        [object] => object,
        ref objects => return Err(several(functions, session, objects, &wanted.locator)),
    };
    let attributes = Attributes::of(functions, session, object)?;
    attributes.check(wanted)?;
    let extractable = attributes.leaves_the_token();
    let unneeded_rights = attributes.unneeded_rights(wanted);
    let public_key = attributes.public_key(functions, session)?;
    Ok(Some(Found { object, public_key, extractable, unneeded_rights }))
}

/// The private keys that the session sees, in words: for the error about one that it does not see.
pub(crate) fn visible(session: &OpenSession) -> Result<String, Error> {
    let objects = private_keys(session, None)?;
    if objects.is_empty() {
        return Ok("no private key at all".to_owned());
    }
    Ok(names(session.module().functions(), session, &objects))
}

/// An RSA private key, as it is shown to an operator who chooses one.
pub(crate) struct Shown {
    pub(crate) locator: Locator,
    pub(crate) public_key: Result<PublicKey, Error>,
    /// Why it could not unwrap for the daemon.
    pub(crate) unfit: Option<Error>,
}

/// The RSA private keys that the session sees and that have a label or an id to name them by.
pub(crate) fn rsa_keys(session: &OpenSession) -> Result<Vec<Shown>, Error> {
    let functions = session.module().functions();
    let mut shown = Vec::new();
    for object in private_keys(session, None)? {
        let Some(locator) = locator_of(functions, session, object) else { continue };
        let attributes = Attributes::of(functions, session, object)?;
        if attributes.rsa != Some(true) {
            continue;
        }
        let wanted = Wanted {
            locator: locator.clone(),
            decrypt: true,
            sign: false,
            allow_extractable: false,
        };
        let unfit = attributes.check(&wanted).err();
        let public_key = attributes.public_key(functions, session);
        shown.push(Shown { locator, public_key, unfit });
    }
    Ok(shown)
}

/// The private keys that the session sees and that the locator names, or all of them.
pub(crate) fn private_keys(
    session: &Session,
    locator: Option<&Locator>,
) -> Result<Vec<ObjectHandle>, Error> {
    let mut template = vec![Attribute::Class(ObjectClass::PRIVATE_KEY)];
    if let Some(locator) = locator {
        template.extend(locator.object.clone().map(Attribute::Label));
        template.extend(locator.id.clone().map(Attribute::Id));
    }
    // Some modules do not know CKA_TOKEN, or not in a search; they have no session objects either.
    let on_token = [&template[..], &[Attribute::Token(true)]].concat();
    match session.find_objects(&on_token) {
        Err(CryptokiError::Pkcs11(RvError::AttributeTypeInvalid, _)) => {
            session.find_objects(&template).map_err(from_cryptoki)
        }
        found => found.map_err(from_cryptoki),
    }
}

fn several(
    functions: &Functions,
    session: &Session,
    objects: &[ObjectHandle],
    locator: &Locator,
) -> Error {
    let (many, names) = (objects.len(), names(functions, session, objects));
    Error::needs_operator(
        Cause::KeyAmbiguous,
        format!(
            "{many} private keys match {locator} ({names}): name one of them by both object= and id=, \
             or remove what is there twice"
        ),
    )
}

/// The locators of objects, as a configuration would have them.
fn names(functions: &Functions, session: &Session, objects: &[ObjectHandle]) -> String {
    let name = |object: &ObjectHandle| {
        let locator = locator_of(functions, session, *object);
        locator.map_or_else(|| "one without label and id".to_owned(), |known| known.to_string())
    };
    let names = objects.iter().take(NAMED).map(name).collect::<Vec<_>>().join(", ");
    match objects.len().saturating_sub(NAMED) {
        0 => names,
        more => format!("{names} and {more} more"),
    }
}

/// By what an object can be named; none where it has neither label nor id.
fn locator_of(functions: &Functions, session: &Session, object: ObjectHandle) -> Option<Locator> {
    let asked = [CKA_LABEL, CKA_ID].map(|attribute| Asked { attribute, longest: LONGEST });
    let mut told = functions.attributes(session, object, &asked).unwrap_or_default();
    let id = told.pop().flatten().filter(|id| !id.is_empty());
    let object = told.pop().flatten().filter(|label| !label.is_empty());
    (object.is_some() || id.is_some()).then_some(Locator { object, id })
}
