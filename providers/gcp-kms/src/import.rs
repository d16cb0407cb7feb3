//! A key that is brought along, through an import job.

use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use claviger_provider_api::making::asked_once;
use claviger_provider_api::{
    Algorithm, Cause, Error, ErrorKind, MadeKey, NewKey, PrivateKey, PublicKey,
};
use serde::Deserialize;
use serde_json::json;
use uuid::Uuid;

use crate::description;
use crate::key::described;
use crate::locator::Locator;
use crate::making::{
    LIMIT, PAUSE, get, make_room, needs_a_place, post, protection_level, template,
    wait_until_enabled,
};
use crate::operator;
use crate::session::Session;

/// `ImportJob` (google/cloud/kms/v1/resources.proto).
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct JobBody {
    #[serde(default)]
    state: String,
    public_key: Option<JobKey>,
}

#[derive(Deserialize)]
struct JobKey {
    #[serde(default)]
    pem: String,
}

/// Brings a key along as version 1 of a crypto key that was not there and makes no versions of its own.
pub(crate) async fn import(
    session: &Session,
    new: &NewKey<'_>,
    private: &PrivateKey,
) -> Result<MadeKey, Error> {
    let deadline = Instant::now() + LIMIT;
    let locator: Locator = new.locator.ok_or_else(needs_a_place)?.parse().map_err(operator)?;
    let open = new.as_opened(locator.as_str());
    let bits = private.public_key().modulus_bits() as u32;
    let algorithm = description::algorithm_for(&open, bits)?;
    let mut notes = make_room(session, &locator, deadline).await?;
    let (key, _) = locator.key_and_number();
    let (ring, id) = key.rsplit_once("/cryptoKeys/").expect("the name of a crypto key");
    let job = format!("{ring}/importJobs/claviger-{}", Uuid::now_v7());
    let wrapping_key = wrapping_key(session, new, &job, deadline).await?;
    let mut body = template(new, &algorithm);
    body["importOnly"] = true.into();
    let path = format!("{ring}/cryptoKeys?cryptoKeyId={id}&skipInitialVersionCreation=true");
    let made = post(session, &path, &body, deadline).await;
    made.map_err(|error| asked_once(error, key))?;
    let body = json!({
        "algorithm": algorithm,
        "importJob": job,
        "wrappedKey": STANDARD.encode(private.wrapped_under(&wrapping_key, Algorithm::RsaOaep256)?),
    });
    let imported = post(session, &format!("{key}/cryptoKeyVersions:import"), &body, deadline).await;
    imported.map_err(|error| error.in_context(format_args!("{key} was made and may be empty")))?;
    wait_until_enabled(session, &locator, deadline).await?;
    let version = described(session, &locator).await?;
    description::check(&version, &locator, &open)?;
    notes.push(format!("its protection level is {}", version.protection_level));
    Ok(MadeKey { locator: locator.to_string(), public_key: version.public_key, notes })
}

/// Makes an import job, which ends by itself after three days, and waits for its key.
async fn wrapping_key(
    session: &Session,
    new: &NewKey<'_>,
    job: &str,
    deadline: Instant,
) -> Result<PublicKey, Error> {
    let (ring, id) = job.rsplit_once("/importJobs/").expect("the name of an import job");
    let body = json!({
        "importMethod": "RSA_OAEP_3072_SHA256_AES_256",
        "protectionLevel": protection_level(new),
    });
    post(session, &format!("{ring}/importJobs?importJobId={id}"), &body, deadline).await?;
    loop {
        let JobBody { state, public_key } = get(session, job, deadline).await?.json()?;
        if state == "ACTIVE" {
            let pem = public_key.map(|key| key.pem).unwrap_or_default();
            let broken = || {
                Error::new(ErrorKind::Internal, format!("{job} has no RSA key"))
                    .with_cause(Cause::WrongAnswer)
            };
            let (_, spki) = pem_rfc7468::decode_vec(pem.as_bytes()).map_err(|_| broken())?;
            return PublicKey::from_spki(&spki).map_err(|_| broken());
        }
        if state != "PENDING_GENERATION" {
            return Err(operator(format!("{job} cannot be used: it is not ACTIVE")));
        }
        tokio::time::sleep(PAUSE).await;
    }
}
