//! New keys: each is a key of its own with an alias, which is for people alone.

use std::time::Duration;

use aws_sdk_kms::operation::get_public_key::GetPublicKeyOutput;
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::{
    AlgorithmSpec, ExpirationModelType, KeySpec, KeyUsageType, OriginType, WrappingKeySpec,
};
use claviger_provider_api::making::asked_once;
use claviger_provider_api::{
    Algorithm, Cause, Error, ErrorKind, MadeKey, NewKey, PrivateKey, PublicKey,
};

use crate::client::Backend;
use crate::error::Failure;
use crate::key::{check_algorithms, describe, judge};
use crate::locator::Locator;
use crate::operator;

/// How often, and with what pauses, a key that was just made is asked for: KMS needs a moment until
/// every server of it knows a key.
const LOOKS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(500);

/// Makes a key. Its locator is its ARN; the alias is the one that is asked for, or `NAME-vVERSION`.
pub(crate) async fn create(backend: &Backend, new: &NewKey<'_>) -> Result<MadeKey, Error> {
    let alias = checked_alias(backend, new).await?;
    let made = make(backend, new, new.bits as usize, OriginType::AwsKms).await;
    let arn = made.map_err(|error| asked_once(error, &alias))?;
    finish(backend, new, &arn, &alias).await
}

/// Brings a key along: a key without material is made, and then given it.
pub(crate) async fn import(
    backend: &Backend,
    new: &NewKey<'_>,
    key: &PrivateKey,
) -> Result<MadeKey, Error> {
    let alias = checked_alias(backend, new).await?;
    let made = make(backend, new, key.public_key().modulus_bits(), OriginType::External).await;
    let arn = made.map_err(|error| asked_once(error, &alias))?;
    give_material(backend, &arn, key).await.map_err(|error| {
        error.in_context(format_args!("{arn} was made and may have no material: delete it"))
    })?;
    let mut made = finish(backend, new, &arn, &alias).await?;
    made.notes.push("keep a copy of it: AWS does not promise to keep what is imported".to_owned());
    Ok(made)
}

async fn checked_alias(backend: &Backend, new: &NewKey<'_>) -> Result<String, Error> {
    new.refuse_choice()?;
    check_algorithms(&new.as_opened(""))?;
    let alias = alias(new)?;
    refuse_taken(backend, &alias).await?;
    Ok(alias)
}

async fn give_material(backend: &Backend, arn: &str, key: &PrivateKey) -> Result<(), Error> {
    let parameters = backend.call_renewing(|client| {
        let request = client
            .get_parameters_for_import()
            .key_id(arn)
            .wrapping_algorithm(AlgorithmSpec::RsaAesKeyWrapSha256)
            .wrapping_key_spec(WrappingKeySpec::Rsa4096);
        async move {
            let sent = request.send().await;
            sent.map_err(|error| Failure::of_call("GetParametersForImport", &error))
        }
    });
    let parameters = parameters.await?;
    let broken = |what: &str| {
        let text = format!("kms:GetParametersForImport answered without {what}");
        Error::new(ErrorKind::Internal, text)
    };
    let wrapping_key = parameters.public_key().ok_or_else(|| broken("a wrapping key"))?;
    let wrapping_key =
        PublicKey::from_spki(wrapping_key.as_ref()).map_err(|_| broken("an RSA wrapping key"))?;
    let token = parameters.import_token().ok_or_else(|| broken("an import token"))?;
    let wrapped = Blob::new(key.wrapped_under(&wrapping_key, Algorithm::RsaOaep256)?);
    let imported = backend.call_renewing(|client| {
        let request = client
            .import_key_material()
            .key_id(arn)
            .import_token(token.clone())
            .encrypted_key_material(wrapped.clone())
            .expiration_model(ExpirationModelType::KeyMaterialDoesNotExpire);
        async move {
            let sent = request.send().await;
            sent.map_err(|error| Failure::of_call("ImportKeyMaterial", &error))
        }
    });
    imported.await.map(drop)
}

/// Reads what was made, and names it.
async fn finish(
    backend: &Backend,
    new: &NewKey<'_>,
    arn: &str,
    alias: &str,
) -> Result<MadeKey, Error> {
    let found = just_made(backend, arn).await?;
    let (arn, public_key) = judge(&found, &new.as_opened(arn), Locator::Key)?;
    let named = backend.call_renewing(|client| {
        let request = client.create_alias().alias_name(alias).target_key_id(&arn);
        async move { request.send().await.map_err(|error| Failure::of_call("CreateAlias", &error)) }
    });
    let note = match named.await {
        Ok(_) => format!("its alias is {alias}; the configuration names it by its ARN"),
        Err(error) => format!("it has no alias: {error}"),
    };
    Ok(MadeKey { locator: arn, public_key, notes: vec![note] })
}

/// Aliases have no dots.
fn alias(new: &NewKey<'_>) -> Result<String, Error> {
    match new.locator {
        None => Ok(format!("alias/{}", new.own_name().replace('.', "-"))),
        Some(text) if text.starts_with("alias/") => {
            Locator::parse(text, "").map_err(operator)?;
            Ok(text.to_owned())
        }
        Some(text) => {
            Err(operator(format!("{text:?}: KMS gives a key its id; write its alias, alias/NAME")))
        }
    }
}

/// An alias that is there points to another key, and would stay where it is.
async fn refuse_taken(backend: &Backend, alias: &str) -> Result<(), Error> {
    let described = backend.call_renewing(|client| async move { describe(&client, alias).await });
    match described.await {
        Ok(_) => {
            let text =
                format!("{alias} is there already: choose another with --locator alias/NAME");
            Err(operator(text))
        }
        Err(error) => match error.cause() {
            // One of another type is no RSA key, and is there.
            Some(Cause::KeyUnfit | Cause::KeyDisabled) => {
                Err(error.in_context(format_args!("{alias} is there already")))
            }
            Some(Cause::KeyAbsent | Cause::NotPermitted) => Ok(()),
            _ => Err(error),
        },
    }
}

/// The ARN of the new key.
async fn make(
    backend: &Backend,
    new: &NewKey<'_>,
    bits: usize,
    origin: OriginType,
) -> Result<String, Error> {
    let spec = match bits {
        2048 => KeySpec::Rsa2048,
        3072 => KeySpec::Rsa3072,
        4096 => KeySpec::Rsa4096,
        bits => return Err(operator(format!("KMS has no RSA keys of {bits} bits"))),
    };
    let usage = if new.algorithms.is_empty() {
        KeyUsageType::SignVerify
    } else {
        KeyUsageType::EncryptDecrypt
    };
    let made = backend.call_renewing(|client| {
        let request = client
            .create_key()
            .origin(origin.clone())
            .key_spec(spec.clone())
            .key_usage(usage.clone())
            .description(format!("Claviger: {} version {}", new.name, new.version));
        async move { request.send().await.map_err(|error| Failure::of_call("CreateKey", &error)) }
    });
    let arn = made.await?.key_metadata.and_then(|metadata| metadata.arn);
    arn.ok_or_else(|| Error::new(ErrorKind::Internal, "kms:CreateKey answered without an ARN"))
}

async fn just_made(backend: &Backend, arn: &str) -> Result<GetPublicKeyOutput, Error> {
    let mut looks = 0;
    loop {
        looks += 1;
        let found = backend.call_renewing(|client| async move { describe(&client, arn).await });
        match found.await {
            Err(error) if error.cause() == Some(Cause::KeyAbsent) && looks < LOOKS => {
                tokio::time::sleep(PAUSE).await;
            }
            found => {
                return found
                    .map_err(|error| error.in_context(format_args!("{arn} was made, and")));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alias_of(name: &str, locator: Option<&str>) -> Result<String, String> {
        let new = NewKey {
            name,
            version: 2,
            bits: 3072,
            algorithms: &[],
            sign_algorithms: &[],
            in_software: false,
            locator,
            after: None,
        };
        alias(&new).map_err(|error| error.to_string())
    }

    #[test]
    fn a_key_is_found_by_people_under_its_name_and_version() {
        assert_eq!(alias_of("user.keys", None).unwrap(), "alias/user-keys-v2");
        assert_eq!(alias_of("k", Some("alias/team/k")).unwrap(), "alias/team/k");
        for bad in ["alias/aws/k", "1234abcd-12ab-34cd-56ef-1234567890ab", "k"] {
            assert!(alias_of("k", Some(bad)).unwrap_err().contains("alias"), "{bad}");
        }
    }
}
