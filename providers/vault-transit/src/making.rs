//! New keys: a Transit key of its own, or the next version of one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use claviger_files::pem;
use claviger_provider_api::making::asked_once;
use claviger_provider_api::{
    Algorithm, Cause, Error, ErrorKind, MadeKey, NewKey, PrivateKey, PublicKey,
};
use serde::{Deserialize, Serialize};

use crate::auth::Session;
use crate::client::Request;
use crate::description;
use crate::error::{Failure, Operation};
use crate::key::check_algorithms;
use crate::locator::Locator;

/// How long making a key may take, its login included: primes take seconds.
const LIMIT: Duration = Duration::from_mins(1);
/// Where a key is made unless its locator says so.
const MOUNT: &str = "transit";

#[derive(Serialize)]
struct Create<'a> {
    #[serde(rename = "type")]
    key_type: &'a str,
    exportable: bool,
    allow_plaintext_backup: bool,
}

#[derive(Serialize)]
struct Rotate {}

#[derive(Serialize)]
struct Import<'a> {
    ciphertext: String,
    hash_function: &'a str,
    #[serde(rename = "type")]
    key_type: &'a str,
    exportable: bool,
    allow_plaintext_backup: bool,
}

/// The body of `GET mount/wrapping_key`.
#[derive(Deserialize)]
struct WrappingKey {
    data: WrappingKeyData,
}

#[derive(Deserialize)]
struct WrappingKeyData {
    public_key: String,
}

/// Makes a key. One that follows a version of a Transit key is its next version there, of the same size;
/// else it is the first version of a Transit key that was not there.
pub(crate) async fn make(session: &Arc<Session>, new: &NewKey<'_>) -> Result<MadeKey, Error> {
    let refuse = |reason: String| Error::new(ErrorKind::OperatorNeeded, reason);
    new.refuse_choice()?;
    let deadline = Instant::now() + LIMIT;
    let locator = match (new.locator, new.after) {
        (Some(locator), _) => locator.parse::<Locator>().map_err(refuse)?,
        (None, Some(after)) => {
            let after = after.parse::<Locator>().map_err(refuse)?;
            check_algorithms(&after, new.algorithms)?;
            return rotate(session, after, new.bits, deadline).await;
        }
        (None, None) => Locator { mount: MOUNT.to_owned(), key: new.name.to_owned(), version: 1 },
    };
    check_algorithms(&locator, new.algorithms)?;
    if locator.version != 1 {
        return Err(refuse(format!("{locator}: the first version of a new key is 1")));
    }
    create(session, locator, new.bits, deadline).await
}

/// Brings a key along as the first version of a Transit key that was not there: `NAME-vVERSION`, unless
/// the locator says otherwise.
pub(crate) async fn import(
    session: &Arc<Session>,
    new: &NewKey<'_>,
    key: &PrivateKey,
) -> Result<MadeKey, Error> {
    let refuse = |reason: String| Error::new(ErrorKind::OperatorNeeded, reason);
    new.refuse_choice()?;
    let deadline = Instant::now() + LIMIT;
    let by_name = || Ok(Locator { mount: MOUNT.to_owned(), key: new.own_name(), version: 1 });
    let locator = new.locator.map_or_else(by_name, |text| text.parse().map_err(refuse))?;
    check_algorithms(&locator, new.algorithms)?;
    if locator.version != 1 {
        return Err(refuse(format!("{locator}: the first version of a new key is 1")));
    }
    refuse_taken(session, &locator, deadline).await?;
    let wrapping_key = format!("{}/wrapping_key", locator.mount);
    let answer = session.send(&Request::get(Operation::MakeKey, wrapping_key), deadline).await?;
    let WrappingKey { data } = answer.json()?;
    let malformed = |what: &dyn std::fmt::Display| {
        Failure::Malformed(format!("a wrapping key that is none: {what}"))
    };
    let spki = pem::public_key(data.public_key.as_bytes()).map_err(|error| malformed(&error))?;
    let wrapping_key = PublicKey::from_spki(&spki).map_err(|error| malformed(&error))?;
    let body = Import {
        ciphertext: STANDARD.encode(key.wrapped_under(&wrapping_key, Algorithm::RsaOaep256)?),
        hash_function: "SHA256",
        key_type: &format!("rsa-{}", key.public_key().modulus_bits()),
        exportable: false,
        allow_plaintext_backup: false,
    };
    let path = format!("{}/keys/{}/import", locator.mount, locator.key);
    ask(session, &Request::post(Operation::MakeKey, path, &body), &locator, deadline).await?;
    made(session, locator, deadline).await
}

/// Transit says nothing of a key that it has, and makes none.
async fn refuse_taken(
    session: &Arc<Session>,
    locator: &Locator,
    deadline: Instant,
) -> Result<(), Error> {
    match session.send(&description::request(locator), deadline).await {
        Err(error) if error.cause() == Some(Cause::KeyAbsent) => Ok(()),
        Err(error) => Err(error),
        Ok(_) => {
            let text = format!(
                "{}/{} is there already and stays as it is: give another locator",
                locator.mount, locator.key
            );
            Err(Error::new(ErrorKind::OperatorNeeded, text))
        }
    }
}

async fn create(
    session: &Arc<Session>,
    locator: Locator,
    bits: u32,
    deadline: Instant,
) -> Result<MadeKey, Error> {
    refuse_taken(session, &locator, deadline).await?;
    let body = Create {
        key_type: &format!("rsa-{bits}"),
        exportable: false,
        allow_plaintext_backup: false,
    };
    let path = format!("{}/keys/{}", locator.mount, locator.key);
    let request = Request::post(Operation::MakeKey, path, &body);
    ask(session, &request, &locator, deadline).await?;
    made(session, locator, deadline).await
}

async fn rotate(
    session: &Arc<Session>,
    after: Locator,
    bits: u32,
    deadline: Instant,
) -> Result<MadeKey, Error> {
    let before = session.send(&description::request(&after), deadline).await?;
    let latest = description::latest(&before)?;
    let next = latest.checked_add(1).ok_or_else(|| {
        Error::new(ErrorKind::OperatorNeeded, format!("{after}: it has no version number left"))
    })?;
    let path = format!("{}/keys/{}/rotate", after.mount, after.key);
    let request = Request::post(Operation::MakeKey, path, &Rotate {});
    let locator = Locator { version: next, ..after };
    ask(session, &request, &locator, deadline).await?;
    let mut made = made(session, locator, deadline).await?;
    let found = made.public_key.modulus_bits();
    if found != bits as usize {
        made.notes.push(format!(
            "Transit's next version has the size of the key, RSA-{found}: --locator mount/name:1 makes \
             a key of another size"
        ));
    }
    Ok(made)
}

/// Sends what is never sent twice.
async fn ask(
    session: &Arc<Session>,
    request: &Request,
    locator: &Locator,
    deadline: Instant,
) -> Result<(), Error> {
    let answer = session.send(request, deadline).await;
    answer.map(drop).map_err(|error| asked_once(error, locator))
}

async fn made(
    session: &Arc<Session>,
    locator: Locator,
    deadline: Instant,
) -> Result<MadeKey, Error> {
    let answer = session.send(&description::request(&locator), deadline).await;
    let read = answer.and_then(|answer| description::read(&answer, &locator));
    let version =
        read.map_err(|error| error.in_context(format_args!("{locator} was made, and")))?;
    Ok(MadeKey { locator: locator.to_string(), public_key: version.public_key, notes: Vec::new() })
}
