//! New keys: a key of its own, the next version of one, or one that is brought along.

use std::time::{Duration, Instant};

use azure_security_keyvault_keys::models::{
    CreateKeyParameters, ImportKeyParameters, JsonWebKey, Key, KeyOperation, KeyType,
};
use claviger_provider_api::making::asked_once;
use claviger_provider_api::{Cause, Error, ErrorKind, MadeKey, NewKey, PrivateKey};

use crate::client::Backend;
use crate::error::Operation;
use crate::key::check_algorithms;
use crate::locator::Locator;
use crate::operator;
use crate::versions::{self, Found};

/// How long making a key may take, its login included.
const LIMIT: Duration = Duration::from_mins(1);

/// Makes a key. One that follows a version of a key is its next version, of the same protection; else it
/// is the first version of a key that was not there.
pub(crate) async fn create(
    backend: &Backend,
    origin: &str,
    new: &NewKey<'_>,
) -> Result<MadeKey, Error> {
    check_algorithms(&new.as_opened(""))?;
    let (locator, in_hardware) = match (new.locator, new.after) {
        (None, Some(after)) => {
            new.refuse_choice().map_err(|_| {
                operator("the next version of a key is protected as the one before".to_owned())
            })?;
            let after = Locator::parse(after, origin).map_err(operator)?;
            let before = versions::find(backend, &after, &new.as_opened("")).await?;
            (after.without_version(), before.in_hardware)
        }
        _ => (free_place(backend, origin, new, new.name).await?, !new.in_software),
    };
    let parameters = CreateKeyParameters {
        kty: Some(if in_hardware { KeyType::RsaHsm } else { KeyType::Rsa }),
        key_size: i32::try_from(new.bits).ok(),
        key_ops: Some(operations(new)),
        ..CreateKeyParameters::default()
    };
    let asking = async {
        let parameters = parameters.try_into()?;
        backend.keys().create_key(&locator.name, parameters, None).await?.into_model()
    };
    let made = backend.ask(Operation::CreateKey, Instant::now() + LIMIT, asking).await;
    let was_chosen = in_hardware && new.after.is_none();
    made_key(&locator, made.map_err(|error| advised(error, &locator, was_chosen))?)
}

/// Brings a key along as the first version of a key that was not there: `NAME-vVERSION`, unless the locator
/// says otherwise. It travels over TLS as a JWK (RFC 7517), as with Azure's own tools.
pub(crate) async fn import(
    backend: &Backend,
    origin: &str,
    new: &NewKey<'_>,
    key: &PrivateKey,
) -> Result<MadeKey, Error> {
    check_algorithms(&new.as_opened(""))?;
    let locator = free_place(backend, origin, new, &new.own_name()).await?;
    let numbers = key.numbers()?;
    let some = |number: &[u8]| Some(number.to_vec());
    let operations = operations(new).iter().map(ToString::to_string).collect();
    let jwk = JsonWebKey {
        kty: Some(if new.in_software { KeyType::Rsa } else { KeyType::RsaHsm }),
        key_ops: Some(operations),
        n: some(numbers.n),
        e: some(numbers.e),
        d: some(numbers.d),
        p: some(numbers.p),
        q: some(numbers.q),
        dp: some(numbers.dp),
        dq: some(numbers.dq),
        qi: some(numbers.qi),
        ..JsonWebKey::default()
    };
    let parameters = ImportKeyParameters {
        hsm: Some(!new.in_software),
        key: Some(jwk),
        ..ImportKeyParameters::default()
    };
    let asking = async {
        let parameters = parameters.try_into()?;
        backend.keys().import_key(&locator.name, parameters, None).await?.into_model()
    };
    let imported = backend.ask(Operation::ImportKey, Instant::now() + LIMIT, asking).await;
    let imported = imported.map_err(|error| advised(error, &locator, !new.in_software))?;
    made_key(&locator, imported)
}

/// Where a key of its own goes. Making a key that is there would add a version to it, whatever it is used
/// for.
async fn free_place(
    backend: &Backend,
    origin: &str,
    new: &NewKey<'_>,
    name: &str,
) -> Result<Locator, Error> {
    let by_name = || Ok(Locator::named(name, origin));
    let parse = |text: &str| Locator::parse(text, origin).map_err(operator);
    let locator = new.locator.map_or_else(by_name, parse)?;
    if locator.version.is_some() {
        return Err(operator(format!("{locator}: Azure gives a version its id; leave it out")));
    }
    if let Err(error) = versions::find(backend, &locator, &new.as_opened("")).await {
        match error.cause() {
            Some(Cause::KeyAbsent) => return Ok(locator),
            // A key of another type is there as well.
            Some(Cause::KeyUnfit | Cause::KeyDisabled) => {}
            _ => return Err(error),
        }
    }
    let text = format!(
        "{locator} is there already and stays as it is: choose another with --locator {locator}-2"
    );
    Err(operator(text))
}

/// What only the private half does: all else is done in the daemon.
fn operations(new: &NewKey<'_>) -> Vec<KeyOperation> {
    let mut operations = Vec::new();
    operations.extend((!new.algorithms.is_empty()).then_some(KeyOperation::UnwrapKey));
    operations.extend((!new.sign_algorithms.is_empty()).then_some(KeyOperation::Sign));
    operations
}

/// The error of a request to make a key. What a vault of the standard tier says of keys in hardware is no
/// sentence to rely on.
fn advised(error: Error, locator: &Locator, in_hardware: bool) -> Error {
    let is_permitted = error.cause() != Some(Cause::NotPermitted);
    if error.kind() == ErrorKind::OperatorNeeded && in_hardware && is_permitted {
        let text = format!("{error}; a vault without keys in hardware needs --in-software");
        return error.retold(ErrorKind::OperatorNeeded, text);
    }
    asked_once(error, locator)
}

/// The version that the vault says it has made.
fn made_key(locator: &Locator, key: Key) -> Result<MadeKey, Error> {
    let kid = key.key.as_ref().and_then(|jwk| jwk.kid.clone()).unwrap_or_default();
    let version = locator.version_of(&kid).ok_or_else(|| {
        let text = format!("{locator}: the vault answered for the key {kid:?}");
        Error::new(ErrorKind::Internal, text).with_cause(Cause::WrongAnswer)
    })?;
    let locator = locator.with_version(version);
    let Found { locator, public_key, in_hardware, .. } = versions::usable(&locator, key)
        .map_err(|reason| operator(format!("{locator}: {reason}")))?;
    let note = "Azure protects it in software (type RSA)";
    let notes = if in_hardware { Vec::new() } else { vec![note.to_owned()] };
    Ok(MadeKey { locator: locator.to_string(), public_key, notes })
}
