//! An opened key: Transit does the private-key work, one request each.

use std::borrow::Cow;
use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use claviger_provider_api::checks::{daemon_call, in_own_time};
use claviger_provider_api::{
    Algorithm, BackendKey, BatchItem, Call, Cause, Digest, Error, Hash, OpenKey, OpenedKey,
    Parameters, PublicKey, SignAlgorithm, Signature, Unwrapped,
};
use serde::{Deserialize, Serialize};

use crate::auth::Session;
use crate::batch;
use crate::client::Request;
use crate::description;
use crate::error::Operation;
use crate::locator::Locator;
use crate::value::{UnwrapRequest, decoded};

/// One version of a Transit key.
pub(crate) struct TransitKey {
    session: Arc<Session>,
    locator: Locator,
    exportable: bool,
}

#[derive(Deserialize)]
struct UnwrapAnswer<'a> {
    request_id: Option<String>,
    #[serde(borrow)]
    data: UnwrapData<'a>,
}

#[derive(Deserialize)]
struct UnwrapData<'a> {
    #[serde(borrow)]
    plaintext: Cow<'a, str>,
}

#[derive(Serialize)]
struct SignRequest {
    input: String,
    prehashed: bool,
    key_version: u32,
    signature_algorithm: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    salt_length: Option<&'static str>,
}

#[derive(Deserialize)]
struct SignAnswer {
    request_id: Option<String>,
    data: SignData,
}

#[derive(Deserialize)]
struct SignData {
    signature: String,
}

impl TransitKey {
    /// Looks the version up, and takes it into service once every listed algorithm gave its canary
    /// back.
    pub(crate) async fn open(
        session: Arc<Session>,
        locator: Locator,
        open: &OpenKey<'_>,
    ) -> Result<OpenedKey<Self>, Error> {
        check_algorithms(&locator, open.algorithms)?;
        let version = described(&session, &locator).await?;
        if version.exportable {
            tracing::warn!(
                provider = session.provider(),
                %locator,
                "THE SERVER WOULD HAND THIS KEY OUT: it was made exportable or open to plaintext \
                 backups, which cannot be undone; keep export/ and backup/ out of every policy"
            );
        }
        let name = locator.to_string();
        let key = Self { session, locator, exportable: version.exportable };
        OpenedKey::prove(key, name, version.public_key, open).await
    }

    /// The request for one value.
    fn request(&self, wrapped: &[u8], algorithm: Algorithm) -> UnwrapRequest {
        UnwrapRequest {
            ciphertext: format!("vault:v{}:{}", self.locator.version, STANDARD.encode(wrapped)),
            padding_scheme: algorithm.hash().is_none().then_some("pkcs1v15"),
        }
    }

    fn decrypt_path(&self) -> String {
        format!("{}/decrypt/{}", self.locator.mount, self.locator.key)
    }
}

/// Transit has one padding for RSA, and another one on some servers.
pub(crate) fn check_algorithms(locator: &Locator, algorithms: &[Algorithm]) -> Result<(), Error> {
    for algorithm in algorithms {
        if !matches!(algorithm, Algorithm::RsaOaep256 | Algorithm::Rsa15) {
            let reason = format!(
                "{locator}: Transit does OAEP with SHA-256 only, so {algorithm} cannot work; take it \
                 off the list, or keep the key in another backend"
            );
            return Err(Error::needs_operator(Cause::AlgorithmNotOffered, reason));
        }
    }
    Ok(())
}

#[async_trait]
impl BackendKey for TransitKey {
    async fn decrypt(
        &self,
        wrapped: &[u8],
        parameters: &Parameters<'_>,
        call: Call,
    ) -> Result<Unwrapped, Error> {
        let body = self.request(wrapped, parameters.algorithm);
        let request = Request::post(Operation::Unwrap, self.decrypt_path(), &body);
        let answer = self.session.send(&request, call.deadline).await?;
        let UnwrapAnswer { request_id, data } = answer.json()?;
        let material = decoded(&data.plaintext)
            .map_err(|error| Error::from(error).with_backend_request_id(request_id.clone()))?;
        Ok(Unwrapped { material, backend_request_id: request_id })
    }

    async fn decrypt_batch(
        &self,
        items: &[BatchItem<'_>],
        call: Call,
    ) -> Vec<Result<Unwrapped, Error>> {
        let requests = items
            .iter()
            .map(|item| self.request(item.wrapped, item.parameters.algorithm))
            .collect();
        batch::send(&self.session, self.decrypt_path(), requests, call.deadline).await
    }

    fn batch_limit(&self) -> usize {
        batch::LIMIT
    }

    async fn sign(
        &self,
        digest: &Digest,
        algorithm: SignAlgorithm,
        call: Call,
    ) -> Result<Signature, Error> {
        let Locator { mount, key, version } = &self.locator;
        let body = SignRequest {
            input: STANDARD.encode(digest.as_bytes()),
            prehashed: true,
            key_version: *version,
            signature_algorithm: if algorithm.is_pss() { "pss" } else { "pkcs1v15" },
            salt_length: algorithm.is_pss().then_some("hash"),
        };
        let path = format!("{mount}/sign/{key}/{}", hash_name(algorithm.hash()));
        let request = Request::post(Operation::Sign, path, &body);
        let answer = self.session.send(&request, call.deadline).await?;
        let SignAnswer { request_id, data } = answer.json()?;
        let signature = data.signature.strip_prefix(&format!("vault:v{version}:"));
        // What is no signature of this version does not verify, and goes no further.
        let bytes = signature.and_then(|signature| STANDARD.decode(signature).ok());
        Ok(Signature { bytes: bytes.unwrap_or_default(), backend_request_id: request_id })
    }

    /// A bad ciphertext is HTTP 500, as is a server that fails.
    fn failure_needs_check(&self) -> bool {
        true
    }

    fn extractable(&self) -> Option<bool> {
        Some(self.exportable)
    }

    fn repairs(&self) -> u64 {
        self.session.repairs()
    }

    async fn public_key_now(&self) -> Result<Option<PublicKey>, Error> {
        described(&self.session, &self.locator).await.map(|version| Some(version.public_key))
    }

    fn hint(&self, algorithm: Algorithm) -> Option<&'static str> {
        (algorithm == Algorithm::Rsa15)
            .then_some("OpenBao, and Vault before 1.19, ignore `padding_scheme`")
    }
}

async fn described(
    session: &Arc<Session>,
    locator: &Locator,
) -> Result<description::Version, Error> {
    let answer = session.send(&description::request(locator), daemon_call().deadline).await;
    let unreadable =
        |error| in_own_time(error).in_context(format_args!("{locator} cannot be read"));
    description::read(&answer.map_err(unreadable)?, locator)
}

fn hash_name(hash: Hash) -> &'static str {
    match hash {
        Hash::Sha1 => "sha1",
        Hash::Sha256 => "sha2-256",
        Hash::Sha384 => "sha2-384",
        Hash::Sha512 => "sha2-512",
    }
}
