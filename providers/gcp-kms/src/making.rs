//! New keys: a crypto key of its own, in a key ring that is made if it is not there, or the next version
//! of one.

use std::time::{Duration, Instant};

use claviger_provider_api::making::asked_once;
use claviger_provider_api::{Cause, Error, ErrorKind, MadeKey, NewKey};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::client::{Answer, Request};
use crate::description;
use crate::error::Operation;
use crate::key::described;
use crate::locator::Locator;
use crate::operator;
use crate::session::Session;

/// How long making a key may take, its login included: keys in hardware take a while.
pub(crate) const LIMIT: Duration = Duration::from_mins(2);
/// The pause between two looks at a version that KMS still generates.
pub(crate) const PAUSE: Duration = Duration::from_millis(300);

/// `CryptoKeyVersion` (google/cloud/kms/v1/resources.proto).
#[derive(Deserialize)]
struct VersionBody {
    name: String,
    #[serde(default)]
    state: String,
}

/// Makes a key. One that follows a version of a crypto key is its next version, by its template; else it
/// is version 1 of a crypto key that was not there.
pub(crate) async fn create(session: &Session, new: &NewKey<'_>) -> Result<MadeKey, Error> {
    let deadline = Instant::now() + LIMIT;
    let (locator, mut notes) = match (new.locator, new.after) {
        (None, Some(after)) => {
            new.refuse_choice().map_err(|_| {
                operator("the next version of a key is protected as the one before".to_owned())
            })?;
            let after: Locator = after.parse().map_err(operator)?;
            let before = described(session, &after).await?;
            description::check(&before, &after, &new.as_opened(after.as_str()))?;
            (next_version(session, &after, deadline).await?, Vec::new())
        }
        (Some(locator), _) => {
            let locator: Locator = locator.parse().map_err(operator)?;
            first_version(session, &locator, new, deadline).await?
        }
        (None, None) => return Err(needs_a_place()),
    };
    wait_until_enabled(session, &locator, deadline).await?;
    let version = described(session, &locator).await?;
    description::check(&version, &locator, &new.as_opened(locator.as_str()))?;
    let bits = version.public_key.modulus_bits();
    if bits != new.bits as usize {
        notes.push(format!("the key's template says RSA-{bits}"));
    }
    notes.push(format!("its protection level is {}", version.protection_level));
    Ok(MadeKey { locator: locator.to_string(), public_key: version.public_key, notes })
}

/// Google has no default project, location or key ring.
pub(crate) fn needs_a_place() -> Error {
    let text = "Google needs a place for it: write the version's name, --locator \
                projects/P/locations/L/keyRings/R/cryptoKeys/K/cryptoKeyVersions/1";
    operator(text.to_owned())
}

async fn next_version(
    session: &Session,
    after: &Locator,
    deadline: Instant,
) -> Result<Locator, Error> {
    let (key, _) = after.key_and_number();
    let answer = post(session, &format!("{key}/cryptoKeyVersions"), &json!({}), deadline).await;
    let answer = answer.map_err(|error| asked_once(error, format_args!("a version of {key}")))?;
    let VersionBody { name, .. } = answer.json()?;
    let locator: Locator = name.parse().map_err(operator)?;
    if locator.key_and_number().0 != key {
        let text = format!("KMS answered for {locator} and not for {key}");
        return Err(Error::new(ErrorKind::Internal, text).with_cause(Cause::WrongAnswer));
    }
    Ok(locator)
}

/// Version 1 of a crypto key, and notes on what else was made.
async fn first_version(
    session: &Session,
    locator: &Locator,
    new: &NewKey<'_>,
    deadline: Instant,
) -> Result<(Locator, Vec<String>), Error> {
    let algorithm = description::algorithm_for(&new.as_opened(locator.as_str()), new.bits)?;
    let notes = make_room(session, locator, deadline).await?;
    let (key, _) = locator.key_and_number();
    let (ring, id) = key.rsplit_once("/cryptoKeys/").expect("the name of a crypto key");
    let path = format!("{ring}/cryptoKeys?cryptoKeyId={id}");
    let made = post(session, &path, &template(new, &algorithm), deadline).await;
    made.map_err(|error| asked_once(error, key))?;
    Ok((locator.clone(), notes))
}

/// A crypto key that makes versions for one algorithm.
pub(crate) fn template(new: &NewKey<'_>, algorithm: &str) -> Value {
    let purpose = if new.algorithms.is_empty() { "ASYMMETRIC_SIGN" } else { "ASYMMETRIC_DECRYPT" };
    let protection_level = protection_level(new);
    json!({
        "purpose": purpose,
        "versionTemplate": { "algorithm": algorithm, "protectionLevel": protection_level },
    })
}

/// Where it is to be protected, in KMS's words.
pub(crate) fn protection_level(new: &NewKey<'_>) -> &'static str {
    if new.in_software { "SOFTWARE" } else { "HSM" }
}

/// Sees that version 1 of a crypto key can be made, and makes its key ring if it is not there. Gives notes
/// on that.
pub(crate) async fn make_room(
    session: &Session,
    locator: &Locator,
    deadline: Instant,
) -> Result<Vec<String>, Error> {
    let (key, number) = locator.key_and_number();
    if number != "1" {
        return Err(operator(format!("{locator}: the first version of a new key is 1")));
    }
    let (ring, _) = key.rsplit_once("/cryptoKeys/").expect("the name of a crypto key");
    if is_there(session, ring, deadline).await? {
        if is_there(session, key, deadline).await? {
            let text = format!("{key} is there already and stays as it is: give another locator");
            return Err(operator(text));
        }
        return Ok(Vec::new());
    }
    let (location, ring_id) = ring.rsplit_once("/keyRings/").expect("the name of a key ring");
    let path = format!("{location}/keyRings?keyRingId={ring_id}");
    post(session, &path, &json!({}), deadline).await?;
    Ok(vec![format!("the key ring {ring} was made too, and cannot be deleted")])
}

/// Waits until KMS has made a version.
pub(crate) async fn wait_until_enabled(
    session: &Session,
    locator: &Locator,
    deadline: Instant,
) -> Result<(), Error> {
    loop {
        let answer = get(session, locator.as_str(), deadline).await;
        let answer = answer
            .map_err(|error| error.in_context(format_args!("{locator} was made, and then")))?;
        let VersionBody { state, .. } = answer.json()?;
        match state.as_str() {
            "ENABLED" => return Ok(()),
            "PENDING_GENERATION" | "PENDING_IMPORT" => tokio::time::sleep(PAUSE).await,
            other => {
                let other = claviger_provider_api::foreign::printable(other);
                return Err(operator(format!("{locator} was made, and its state is {other}")));
            }
        }
    }
}

async fn is_there(session: &Session, name: &str, deadline: Instant) -> Result<bool, Error> {
    match get(session, name, deadline).await {
        Ok(_) => Ok(true),
        Err(error) if error.cause() == Some(Cause::KeyAbsent) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Reads a resource.
pub(crate) async fn get(session: &Session, name: &str, deadline: Instant) -> Result<Answer, Error> {
    let url = format!("{}/v1/{name}", session.origin()?);
    session.send(|| Request::get(Operation::MakeKey, url), deadline).await
}

/// Asks for one to be made.
pub(crate) async fn post(
    session: &Session,
    path: &str,
    body: &Value,
    deadline: Instant,
) -> Result<Answer, Error> {
    let url = format!("{}/v1/{path}", session.origin()?);
    session.send(|| Request::post(Operation::MakeKey, url, body), deadline).await
}
