//! New keys: a key of its own, or the next version of one.

use std::time::{Duration, Instant};

use azure_security_keyvault_keys::models::{CreateKeyParameters, KeyOperation, KeyType};
use claviger_provider_api::making::asked_once;
use claviger_provider_api::{Cause, Error, ErrorKind, MadeKey, NewKey};

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
    let parse = |text: &str| Locator::parse(text, origin).map_err(operator);
    let (locator, in_hardware) = match (new.locator, new.after) {
        (None, Some(after)) => {
            new.refuse_choice().map_err(|_| {
                operator("the next version of a key is protected as the one before".to_owned())
            })?;
            let after = parse(after)?;
            let before = versions::find(backend, &after, &new.as_opened("")).await?;
            (after.without_version(), before.in_hardware)
        }
        (asked, _) => {
            let locator = asked.map_or_else(|| Ok(Locator::named(new.name, origin)), parse)?;
            if locator.version.is_some() {
                let text = format!("{locator}: Azure gives a version its id; leave it out");
                return Err(operator(text));
            }
            refuse_taken(backend, &locator, new).await?;
            (locator, !new.in_software)
        }
    };
    let found = make(backend, &locator, in_hardware, new).await?;
    let notes = if found.in_hardware {
        Vec::new()
    } else {
        vec!["Azure protects it in software (type RSA)".to_owned()]
    };
    let (locator, public_key) = (found.locator.to_string(), found.public_key);
    Ok(MadeKey { locator, public_key, notes })
}

/// Creating a key that is there would add a version to it, whatever it is used for.
async fn refuse_taken(backend: &Backend, locator: &Locator, new: &NewKey<'_>) -> Result<(), Error> {
    match versions::find(backend, locator, &new.as_opened("")).await {
        Err(error) if error.cause() == Some(Cause::KeyAbsent) => Ok(()),
        Err(error) if error.kind() != ErrorKind::OperatorNeeded => Err(error),
        Err(error) if error.cause() == Some(Cause::NotPermitted) => Err(error),
        _ => {
            let text = format!(
                "{locator} is there already and stays as it is: choose another with --locator \
                 {locator}-2"
            );
            Err(operator(text))
        }
    }
}

async fn make(
    backend: &Backend,
    locator: &Locator,
    in_hardware: bool,
    new: &NewKey<'_>,
) -> Result<Found, Error> {
    let mut operations = Vec::new();
    operations.extend((!new.algorithms.is_empty()).then_some(KeyOperation::UnwrapKey));
    operations.extend((!new.sign_algorithms.is_empty()).then_some(KeyOperation::Sign));
    let parameters = CreateKeyParameters {
        kty: Some(if in_hardware { KeyType::RsaHsm } else { KeyType::Rsa }),
        key_size: i32::try_from(new.bits).ok(),
        key_ops: Some(operations),
        ..CreateKeyParameters::default()
    };
    let asking = async {
        let parameters = parameters.try_into()?;
        backend.keys().create_key(&locator.name, parameters, None).await?.into_model()
    };
    let made = backend.ask(Operation::CreateKey, Instant::now() + LIMIT, asking).await;
    let key = made.map_err(|error| match (error.kind(), in_hardware, new.after) {
        // What a vault of the standard tier says is no sentence to rely on.
        (ErrorKind::OperatorNeeded, true, None) if error.cause() != Some(Cause::NotPermitted) => {
            let text = format!("{error}; a vault without keys in hardware needs --in-software");
            error.retold(ErrorKind::OperatorNeeded, text)
        }
        _ => asked_once(error, locator),
    })?;
    let kid = key.key.as_ref().and_then(|jwk| jwk.kid.clone()).unwrap_or_default();
    let version = locator.version_of(&kid).ok_or_else(|| {
        let text = format!("{locator}: the vault answered for the key {kid:?}");
        Error::new(ErrorKind::Internal, text).with_cause(Cause::WrongAnswer)
    })?;
    let locator = locator.with_version(version);
    versions::usable(&locator, key).map_err(|reason| operator(format!("{locator}: {reason}")))
}
