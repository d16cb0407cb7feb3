//! Rewrapping: an unwrap whose material stays here and is wrapped again, for a target that the
//! caller's grant names.
//!
//! Everything about the target is judged before the source is touched; whatever fails after that is
//! the failure of the value.

mod public_key;

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use claviger_provider_api::public_key::sha256;
use claviger_provider_api::{Algorithm, KeyMaterial, Parameters, PublicKey, WrappingKey};

use self::public_key::parse_public_key;
use super::abandoned::Progress;
use super::unwrap::{ask, conclude};
use super::wrap::to_wrap;
use super::{Guard, OperationRecord, UnwrapCall, check_label, in_time};
use crate::daemon::config::Operation;
use crate::daemon::keys::keyring::Candidate;
use crate::daemon::request::approvers::{Approval, Approver, NotApproved};
use crate::daemon::request::call::CallContext;
use crate::daemon::request::policy::{Asked, Granted, Values};
use crate::daemon::status::Failure;

/// The longest SubjectPublicKeyInfo that is parsed: one of 8192 bits has some 1060 bytes.
const MAX_SPKI_LEN: usize = 2048;

/// One parsed rewrap.
#[derive(Debug)]
pub struct RewrapCall {
    /// The value and the key that unwraps it.
    pub source: UnwrapCall,
    /// Who is to read the material.
    pub recipient: Recipient,
    /// The algorithm that wraps; required for a public key.
    pub algorithm: Option<Algorithm>,
    /// The OAEP label to wrap with.
    pub label: Bytes,
    /// The longest material that the caller expects, in bytes.
    pub max_key_material_len: Option<u32>,
    /// A person's approval of a public key that no grant lists.
    pub approval: Option<Approval>,
    /// Who gave it, once it was found good.
    pub approver: OnceLock<Approver>,
}

/// Who is to read what is rewrapped.
#[derive(Clone, Debug)]
pub enum Recipient {
    /// A key of the keyring, by name.
    Key(String),
    /// A public key of the caller's own: SubjectPublicKeyInfo, DER.
    PublicKey(Bytes),
}

/// What came out of a rewrap.
#[derive(Clone, Debug)]
pub struct Rewrapped {
    /// The material, wrapped for the target.
    pub wrapped: Vec<u8>,
    /// The version that unwrapped.
    pub source_version: u32,
    /// The version that wrapped; none for a public key of the caller's own.
    pub target_version: Option<u32>,
    /// The algorithm that wrapped.
    pub algorithm: Algorithm,
    /// Of the public key that wrapped.
    pub public_key_sha256: [u8; 32],
}

impl Guard {
    /// Unwraps with the private key in its backend and wraps for the target.
    pub async fn rewrap(
        self: &Arc<Self>,
        context: &Arc<CallContext>,
        call: RewrapCall,
    ) -> Result<Rewrapped, Failure> {
        let batch_item = call.source.batch.as_ref().map(|(_, item)| *item);
        let progress = Arc::<Progress>::default();
        let (guard, owned) = (Arc::clone(self), Arc::clone(context));
        let work = self.abandoned.run_on(Arc::clone(&progress), context.deadline, async move {
            let name = &call.source.key;
            let record = OperationRecord::new(&guard, &owned, Operation::Rewrap, name, batch_item);
            let batch = call.source.batch.as_ref().map(|(batch, _)| &**batch);
            let mut record = record.with(progress).of_batch(batch);
            let outcome = try_rewrap(&guard, &mut record, &call).await;
            record.finish(outcome).await
        });
        in_time(context, batch_item, work).await
    }
}

/// A target that may be wrapped for.
struct Target<'a> {
    to: To,
    /// Of a key of the keyring.
    version: Option<u32>,
    algorithm: Algorithm,
    /// By the grants that name the target.
    values: Vec<&'a Values>,
}

/// The public key that is wrapped for.
#[derive(Clone)]
enum To {
    Key(Arc<dyn WrappingKey>),
    PublicKey(Arc<PublicKey>),
}

async fn try_rewrap<'a>(
    guard: &Guard,
    record: &mut OperationRecord<'a>,
    call: &'a RewrapCall,
) -> Result<Rewrapped, Failure> {
    let granted = record.grant()?;
    let target = match &call.recipient {
        Recipient::Key(name) => key_as_target(record, granted, name, call)?,
        Recipient::PublicKey(spki) => {
            public_key_as_target(guard, record, granted, spki, call).await?
        }
    };
    let source = &call.source;
    let candidates = check_label(source.algorithm, &source.label)
        .and_then(|()| {
            let len = source.wrapped.len();
            granted.key.for_unwrap(len, source.version, source.algorithm, &source.label)
        })
        .map_err(of_source)?;
    let room = target.room();
    check_room(room, target.algorithm, call, &candidates)?;
    let longest = call.max_key_material_len.map_or(room, |max| room.min(max as usize));

    let may = |sha256: &_| target.values.iter().any(|values| values.contains(sha256));
    let (budget, unwrapped) = ask(record, granted, source, candidates, may, Some(longest)).await?;
    let outcome = match unwrapped {
        Ok((material, source_version)) => wrap_for(guard, record, &target, material, longest, call)
            .await
            .map(|wrapped| (wrapped, source_version)),
        Err(failure) => Err(failure),
    };
    let (wrapped, source_version) = conclude(record, granted, budget, outcome).await?;
    Ok(Rewrapped {
        wrapped,
        source_version,
        target_version: target.version,
        algorithm: target.algorithm,
        public_key_sha256: target.to.public_key().sha256(),
    })
}

/// Wraps what was unwrapped. What fails here is the failure of the value.
async fn wrap_for(
    guard: &Guard,
    record: &mut OperationRecord<'_>,
    target: &Target<'_>,
    material: KeyMaterial,
    longest: usize,
    call: &RewrapCall,
) -> Result<Vec<u8>, Failure> {
    if material.expose().len() > longest {
        record.set_cause("material_too_long");
        return Err(Failure::UnwrapFailed);
    }
    let (to, algorithm, label) = (target.to.clone(), target.algorithm, call.label.clone());
    let wrap = move || to.public_key().wrap(&material, &Parameters { algorithm, label: &label });
    let wrapped = guard.public_work.run(record.context().call(), wrap).await?;
    let wrapped = wrapped.map_err(|error| {
        let request_id = &*record.context().request_id;
        tracing::error!(request_id, %error, "rewrapping failed");
        Failure::UnwrapFailed
    })?;
    record.target().wrapped_sha256 = Some(sha256(&wrapped));
    Ok(wrapped)
}

fn key_as_target<'a>(
    record: &mut OperationRecord<'a>,
    granted: &'a Granted,
    name: &'a str,
    call: &RewrapCall,
) -> Result<Target<'a>, Failure> {
    record.target().key = Some(name);
    let (key, values) = granted.rewraps_to_key(name)?;
    check_label(call.algorithm, &call.label).map_err(of_target)?;
    let Candidate { version, algorithm } =
        to_wrap(record, key, call.algorithm, &call.label).map_err(of_target)?;
    // The default algorithm may be the one that has no label.
    check_label(Some(algorithm), &call.label).map_err(of_target)?;
    let to = To::Key(Arc::clone(version.opened_key().ok_or_else(Failure::unavailable)?));
    Ok(note(record, Target { to, version: Some(version.number), algorithm, values }))
}

/// Looks the grant up before it parses the key, which takes up to milliseconds.
async fn public_key_as_target<'a>(
    guard: &Guard,
    record: &mut OperationRecord<'a>,
    granted: &'a Granted,
    spki: &Bytes,
    call: &'a RewrapCall,
) -> Result<Target<'a>, Failure> {
    if spki.len() > MAX_SPKI_LEN {
        let allowed = format!("must be at most {MAX_SPKI_LEN} bytes, not {}", spki.len());
        return Err(Failure::Field { field: "target.public_key", allowed });
    }
    // What is parsed below is exactly what was hashed here.
    let public_key_sha256 = sha256(spki);
    record.target().public_key_sha256 = Some(public_key_sha256);
    let values = match granted.rewraps_to_public_key(&public_key_sha256) {
        Ok(values) => values,
        Err(not_listed) => {
            let approved = approved(record, granted, call, &public_key_sha256).await;
            approved.map_err(|why| why.unwrap_or(not_listed))?
        }
    };
    check_label(call.algorithm, &call.label).map_err(of_target)?;
    let oaep = call.algorithm.filter(|algorithm| *algorithm != Algorithm::Rsa15);
    let algorithm = oaep.ok_or_else(|| Failure::Field {
        field: "target.algorithm",
        allowed: "must be RSA-OAEP, RSA-OAEP-256, RSA-OAEP-384 or RSA-OAEP-512 for a public key"
            .into(),
    })?;
    let parse = {
        let spki = spki.clone();
        move || parse_public_key(&spki)
    };
    let public_key = guard.public_work.run(record.context().call(), parse).await??;
    let to = To::PublicKey(Arc::new(public_key));
    Ok(note(record, Target { to, version: None, algorithm, values }))
}

/// What a person has approved, who is recorded; or why it is not available, where that is all.
async fn approved<'a>(
    record: &mut OperationRecord<'a>,
    granted: &'a Granted,
    call: &'a RewrapCall,
    public_key_sha256: &[u8; 32],
) -> Result<Vec<&'a Values>, Option<Failure>> {
    let (approval, wrapped) = (call.approval.as_ref(), &call.source.wrapped);
    let outcome = granted.rewraps_by_approval(Asked { approval, wrapped, public_key_sha256 }).await;
    let (values, approver) = outcome.map_err(|why| {
        let why = why?;
        record.set_cause(why.cause());
        let context = record.context();
        if context.caller.log_limit.allows() {
            let (request_id, caller) = (&*context.request_id, &*context.caller.name);
            tracing::info!(request_id, caller, "approval refused: {why}");
        }
        (why == NotApproved::NoKeys).then_some(Failure::IssuerAway)
    })?;
    if let Some(approver) = approver {
        let approver = call.approver.get_or_init(|| approver);
        let noted = record.target();
        noted.approver_issuer = Some(&approver.issuer);
        noted.approver = Some(&approver.subject);
        noted.approval_sha256 = Some(approver.token_sha256);
    }
    Ok(values)
}

/// From here on the audit record says for whom.
fn note<'a>(record: &mut OperationRecord<'_>, target: Target<'a>) -> Target<'a> {
    let noted = record.target();
    noted.version = target.version;
    noted.public_key_sha256 = Some(target.to.public_key().sha256());
    noted.algorithm = Some(target.algorithm.name());
    target
}

impl To {
    fn public_key(&self) -> &PublicKey {
        match self {
            Self::Key(key) => key.public_key(),
            Self::PublicKey(public_key) => public_key,
        }
    }
}

impl Target<'_> {
    /// The longest material that fits, in bytes.
    fn room(&self) -> usize {
        self.algorithm.max_material_len(self.to.public_key().modulus_len())
    }
}

/// Whether everything fits that the source can hold, or that the caller expects of it: a target
/// that is too small would make the length of the material show. A caller who expects too little
/// can still find the length out, at one counted failure each time.
fn check_room(
    room: usize,
    algorithm: Algorithm,
    call: &RewrapCall,
    candidates: &[Candidate<'_>],
) -> Result<(), Failure> {
    let wrapped_len = call.source.wrapped.len();
    let held = candidates.iter().map(|c| c.algorithm.max_material_len(wrapped_len)).max();
    let held = held.unwrap_or_default();
    let expected = call.max_key_material_len.map_or(held, |max| held.min(max as usize));
    if expected <= room {
        return Ok(());
    }
    let allowed = match call.max_key_material_len {
        Some(_) => {
            format!("takes at most {room} bytes of key material under {algorithm}, not {expected}")
        }
        None => format!(
            "takes at most {room} bytes of key material under {algorithm}, and the source may hold {held}; say in max_key_material_len how long it is at most"
        ),
    };
    Err(Failure::Field { field: "target", allowed })
}

/// A failure of the source, with its field named as in a RewrapRequest.
fn of_source(failure: Failure) -> Failure {
    renamed(failure, |field| match field {
        "key" => "source.key",
        "key_version" => "source.key_version",
        "algorithm" => "source.algorithm",
        "label" => "source.label",
        other => other,
    })
}

/// A failure of the target, with its field named as in a RewrapRequest.
fn of_target(failure: Failure) -> Failure {
    renamed(failure, |field| match field {
        "key" => "target.key",
        "algorithm" => "target.algorithm",
        "label" => "target.label",
        other => other,
    })
}

fn renamed(failure: Failure, name: impl Fn(&'static str) -> &'static str) -> Failure {
    match failure {
        Failure::Field { field, allowed } => Failure::Field { field: name(field), allowed },
        other => other,
    }
}
