//! One value as Transit takes it, and as it gives it back (api-docs: Transit, "Decrypt data").

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use claviger_provider_api::KeyMaterial;
use serde::Serialize;
use zeroize::Zeroizing;

use crate::error::Failure;

/// One value for the server.
#[derive(Serialize)]
pub(crate) struct UnwrapRequest {
    /// `vault:vVERSION:` and the wrapped value in base64.
    pub(crate) ciphertext: String,
    /// The padding, where it is not OAEP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) padding_scheme: Option<&'static str>,
}

/// Decodes into a buffer that zeroes itself.
pub(crate) fn decoded(plaintext: &str) -> Result<KeyMaterial, Failure> {
    let mut bytes = Zeroizing::new(vec![0; base64::decoded_len_estimate(plaintext.len())]);
    let len = STANDARD
        .decode_slice(plaintext, &mut bytes)
        .map_err(|_| Failure::Malformed("a plaintext that is no base64".into()))?;
    bytes.truncate(len);
    Ok(KeyMaterial::new(bytes))
}
