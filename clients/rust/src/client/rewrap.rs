//! Rewrapping: key material goes from one key to another and is never seen here.

use std::fmt;

use bytes::Bytes;
use claviger_proto::v1;
use claviger_proto::v1::rewrap_batch_result::Result as ItemResult;
use claviger_proto::v1::rewrap_target::Recipient as WireRecipient;

use super::{Client, malformed, service};
use crate::error::Error;

/// One rewrap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RewrapItem {
    /// The key that unwraps, and how.
    pub source: RewrapSource,
    /// The wrapped value, as long as the source's modulus.
    pub wrapped: Vec<u8>,
    /// For whom to wrap, and how.
    pub target: RewrapTarget,
    /// The longest key material that is expected, in bytes; none: the longest that the source can
    /// hold. Where the target has less room than that, the daemon asks for it.
    pub max_key_material_len: Option<u32>,
    /// A person's approval, where the grant asks for one.
    pub approval: Option<Approval>,
}

/// A person's approval of one rewrap to a public key.
#[derive(Clone, PartialEq, Eq)]
pub struct Approval {
    /// The approver's ID token, whose `nonce` names value, public key and `expires`, as
    /// `claviger.proto` says.
    pub id_token: String,
    /// Seconds since 1970.
    pub expires: u64,
}

impl fmt::Debug for Approval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Approval").field("expires", &self.expires).finish_non_exhaustive()
    }
}

/// The key that unwraps, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RewrapSource {
    /// The key's name.
    pub key: String,
    /// The version that wrapped; none: the daemon tries those that fit, newest first.
    pub key_version: Option<u32>,
    /// A JWA name; empty: each version's default.
    pub algorithm: String,
    /// The label that was given when the value was wrapped.
    pub label: Vec<u8>,
}

/// For whom to wrap, and how. The grant of this program must name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RewrapTarget {
    /// Who is to read it.
    pub recipient: Recipient,
    /// A JWA name. Empty: the key's default; a public key has none.
    pub algorithm: String,
    /// The OAEP label, at most 1024 bytes; unwrap needs the same one.
    pub label: Vec<u8>,
}

/// Who is to read what is rewrapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recipient {
    /// A key of the daemon's, by name: its newest active version wraps.
    Key(String),
    /// An RSA public key of at least 2048 bits: SubjectPublicKeyInfo, DER.
    PublicKey(Vec<u8>),
}

/// Key material, wrapped for another key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rewrapped {
    /// As many bytes as the target's modulus has.
    pub wrapped: Vec<u8>,
    /// The version that unwrapped.
    pub source_key_version: u32,
    /// The version that wrapped; none for [`Recipient::PublicKey`].
    pub target_key_version: Option<u32>,
    /// The algorithm that wrapped.
    pub target_algorithm: String,
    /// SHA-256 of the public key that wrapped (SubjectPublicKeyInfo): 32 bytes.
    pub target_public_key_sha256: Vec<u8>,
    /// The daemon's id of the call.
    pub request_id: Option<String>,
}

impl Client {
    /// Unwraps and wraps again in the daemon: the key material is not shown to this program.
    pub async fn rewrap(&self, item: &RewrapItem) -> Result<Rewrapped, Error> {
        let send = |c, r| async move { service(c).rewrap(r).await };
        let (answer, request_id) = self.call(request(item), send).await?;
        Ok(rewrapped(answer, request_id))
    }

    /// Rewraps up to 64 values in one call of at most 64 KiB; each succeeds or fails alone. The
    /// results are in the order of the items.
    pub async fn rewrap_batch(
        &self,
        items: &[RewrapItem],
    ) -> Result<Vec<Result<Rewrapped, Error>>, Error> {
        let items: Vec<_> = items.iter().map(request).collect();
        let expected = items.len();
        let send = |c, r| async move { service(c).rewrap_batch(r).await };
        let (answer, request_id) = self.call(v1::RewrapBatchRequest { items }, send).await?;
        if answer.results.len() != expected {
            return Err(malformed("the batch has not one result per item", request_id.as_ref()));
        }
        let results = answer.results.into_iter().map(|result| match result.result {
            Some(ItemResult::Rewrapped(answer)) => Ok(rewrapped(answer, request_id.clone())),
            Some(ItemResult::Error(error)) => Err(Error::of_item(error, request_id.as_ref())),
            None => Err(malformed("a result of the batch is empty", request_id.as_ref())),
        });
        Ok(results.collect())
    }
}

fn request(item: &RewrapItem) -> v1::RewrapRequest {
    let RewrapItem { source, wrapped, target, max_key_material_len, approval } = item;
    let recipient = match &target.recipient {
        Recipient::Key(name) => WireRecipient::Key(name.clone()),
        Recipient::PublicKey(spki) => WireRecipient::PublicKey(Bytes::copy_from_slice(spki)),
    };
    v1::RewrapRequest {
        source: Some(v1::RewrapSource {
            key: source.key.clone(),
            key_version: source.key_version,
            algorithm: source.algorithm.clone(),
            label: Bytes::copy_from_slice(&source.label),
        }),
        wrapped: Bytes::copy_from_slice(wrapped),
        target: Some(v1::RewrapTarget {
            recipient: Some(recipient),
            algorithm: target.algorithm.clone(),
            label: Bytes::copy_from_slice(&target.label),
        }),
        max_key_material_len: *max_key_material_len,
        approval: approval.as_ref().map(|approval| v1::Approval {
            id_token: approval.id_token.clone(),
            expires: approval.expires,
        }),
    }
}

fn rewrapped(answer: v1::RewrapResponse, request_id: Option<String>) -> Rewrapped {
    Rewrapped {
        wrapped: answer.wrapped.into(),
        source_key_version: answer.source_key_version,
        target_key_version: Some(answer.target_key_version).filter(|version| *version != 0),
        target_algorithm: answer.target_algorithm,
        target_public_key_sha256: answer.target_public_key_sha256.into(),
        request_id,
    }
}
