//! An opened key: KMS does the private-key work, one request each, with checksums both ways.

use std::borrow::Cow;
use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use claviger_provider_api::checks::{daemon_call, in_own_time};
use claviger_provider_api::{
    BackendKey, Call, Digest, Error, Hash, KeyMaterial, OpenKey, OpenedKey, Parameters, PublicKey,
    SignAlgorithm, Signature, Unwrapped, WrappingKey,
};
use serde::Deserialize;
use serde_json::json;
use zeroize::Zeroizing;

use crate::client::{Answer, Request};
use crate::description::{self, Crc32c};
use crate::error::{Failure, Operation};
use crate::locator::Locator;
use crate::session::Session;

/// One crypto key version.
pub(crate) struct KmsKey {
    session: Arc<Session>,
    locator: Locator,
    /// Where the version is, without a verb.
    url: String,
}

/// `AsymmetricDecryptResponse`. What is empty or false is left out by KMS.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct UnwrapAnswer<'a> {
    #[serde(borrow, default)]
    plaintext: Cow<'a, str>,
    plaintext_crc32c: Crc32c,
    #[serde(default)]
    verified_ciphertext_crc32c: bool,
}

/// `AsymmetricSignResponse`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SignAnswer {
    name: String,
    #[serde(default)]
    signature: String,
    signature_crc32c: Crc32c,
    #[serde(default)]
    verified_digest_crc32c: bool,
}

impl KmsKey {
    /// Reads the version, and takes it into service once every listed algorithm gave its canary back.
    pub(crate) async fn open(
        session: Arc<Session>,
        locator: Locator,
        open: &OpenKey<'_>,
    ) -> Result<OpenedKey<Self>, Error> {
        let url = format!("{}/v1/{locator}", session.origin()?);
        let key = Self { session, locator, url };
        let version = described(&key.session, &key.locator).await?;
        description::check(&version, &key.locator, open)?;
        let name = key.locator.to_string();
        let opened = OpenedKey::prove(key, name, version.public_key, open).await?;
        tracing::info!(
            provider = opened.backend().session.provider(),
            locator = open.locator,
            protection_level = version.protection_level,
            algorithm = version.algorithm,
            key = ?opened.public_key(),
            "opened"
        );
        Ok(opened)
    }

    /// Reads an answer; nothing of one whose checksums do not fit is used.
    fn unwrapped(answer: &Answer) -> Result<KeyMaterial, Failure> {
        let body: UnwrapAnswer<'_> = answer.json()?;
        if !body.verified_ciphertext_crc32c {
            return Err(broken(answer, "asymmetricDecrypt did not check the value's checksum"));
        }
        let plaintext = decoded(&body.plaintext)
            .ok_or_else(|| broken(answer, "asymmetricDecrypt gave what is no base64"))?;
        if !body.plaintext_crc32c.fits(&plaintext) {
            let what = "asymmetricDecrypt gave a plaintext with a checksum that does not fit";
            return Err(broken(answer, what));
        }
        Ok(KeyMaterial::new(plaintext))
    }

    fn signature(&self, answer: &Answer) -> Result<Signature, Failure> {
        let body: SignAnswer = answer.json()?;
        if body.name != self.locator.as_str() {
            return Err(broken(answer, "asymmetricSign answered for another version"));
        }
        if !body.verified_digest_crc32c {
            return Err(broken(answer, "asymmetricSign did not check the digest's checksum"));
        }
        let bytes = STANDARD
            .decode(&body.signature)
            .ok()
            .filter(|signature| body.signature_crc32c.fits(signature))
            .ok_or_else(|| {
                broken(answer, "asymmetricSign gave a signature with a checksum that does not fit")
            })?;
        Ok(Signature { bytes, backend_request_id: Some(answer.request_id.clone()) })
    }
}

/// What KMS says of a version.
pub(crate) async fn described(
    session: &Session,
    locator: &Locator,
) -> Result<description::Version, Error> {
    let url = format!("{}/v1/{locator}/publicKey", session.origin()?);
    let answer = session.send(|| Request::get(Operation::ReadKey, url), daemon_call().deadline);
    let answer = answer
        .await
        .map_err(|error| in_own_time(error).in_context(format_args!("{locator} cannot be read")))?;
    description::read(&answer, locator)
}

#[async_trait]
impl BackendKey for KmsKey {
    async fn decrypt(
        &self,
        wrapped: &[u8],
        _: &Parameters<'_>,
        call: Call,
    ) -> Result<Unwrapped, Error> {
        let request = || {
            let body = json!({
                "ciphertext": STANDARD.encode(wrapped),
                "ciphertextCrc32c": crc32c::crc32c(wrapped).to_string(),
            });
            Request::post(Operation::Unwrap, format!("{}:asymmetricDecrypt", self.url), &body)
        };
        let answer = self.session.send(request, call.deadline).await?;
        let material = Self::unwrapped(&answer)?;
        Ok(Unwrapped { material, backend_request_id: Some(answer.request_id) })
    }

    async fn sign(
        &self,
        digest: &Digest,
        _: SignAlgorithm,
        call: Call,
    ) -> Result<Signature, Error> {
        let request = || {
            let bytes = digest.as_bytes();
            let body = json!({
                "digest": { hash_name(digest.hash()): STANDARD.encode(bytes) },
                "digestCrc32c": crc32c::crc32c(bytes).to_string(),
            });
            Request::post(Operation::Sign, format!("{}:asymmetricSign", self.url), &body)
        };
        let answer = self.session.send(request, call.deadline).await?;
        Ok(self.signature(&answer)?)
    }

    /// INVALID_ARGUMENT is said of a bad ciphertext and of one that did not arrive as it was sent.
    fn failure_needs_check(&self) -> bool {
        true
    }

    /// KMS has no call that gives a private key away, not of a key that was imported either.
    fn extractable(&self) -> Option<bool> {
        Some(false)
    }

    fn repairs(&self) -> u64 {
        self.session.repairs()
    }

    async fn public_key_now(&self) -> Result<Option<PublicKey>, Error> {
        described(&self.session, &self.locator).await.map(|version| Some(version.public_key))
    }
}

/// Decodes into a buffer that zeroes itself.
fn decoded(plaintext: &str) -> Option<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(vec![0; base64::decoded_len_estimate(plaintext.len())]);
    let len = STANDARD.decode_slice(plaintext, &mut bytes).ok()?;
    bytes.truncate(len);
    Some(bytes)
}

/// The field of the interface's `Digest`.
fn hash_name(hash: Hash) -> &'static str {
    match hash {
        Hash::Sha1 => "sha1",
        Hash::Sha256 => "sha256",
        Hash::Sha384 => "sha384",
        Hash::Sha512 => "sha512",
    }
}

fn broken(answer: &Answer, what: &str) -> Failure {
    Failure::BrokenPromise { what: what.to_owned(), request_id: answer.request_id.clone() }
}
