//! The wire contract of Claviger, generated from `claviger/v1/claviger.proto`, and that of a Kubernetes
//! KMS plugin, generated from `kubernetes/kms_v2.proto`.
//!
//! Messages that carry key material or a token print as `[redacted]`; bytes fields are [`bytes::Bytes`].

#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::pedantic,
    unused_qualifications,
    reason = "generated code"
)]
pub mod v1 {
    //! Package `claviger.v1`. The comments of the .proto file are the documentation.
    tonic::include_proto!("claviger.v1");
}

#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::pedantic,
    unused_qualifications,
    reason = "generated code"
)]
pub mod kms_v2 {
    //! Package `v2` of Kubernetes: its KMS plugin API.
    tonic::include_proto!("v2");
}

use std::fmt;

/// The compiled `FileDescriptorSet`, as server reflection and other tools want it.
pub const DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/claviger.bin"));

/// The largest message that either side accepts, in bytes.
pub const MAX_MESSAGE_BYTES: usize = 64 * 1024;

/// The largest number of items in an `UnwrapBatch` or a `RewrapBatch`.
pub const MAX_BATCH_ITEMS: usize = 64;

/// The metadata key under which each response carries the daemon's request id.
pub const REQUEST_ID: &str = "x-request-id";

impl fmt::Debug for v1::WrapRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WrapRequest")
            .field("key", &self.key)
            .field("key_material", &"[redacted]")
            .field("algorithm", &self.algorithm)
            .field("label", &self.label)
            .finish()
    }
}

impl fmt::Debug for v1::UnwrapResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UnwrapResponse")
            .field("key_material", &"[redacted]")
            .field("key_version", &self.key_version)
            .finish()
    }
}

impl fmt::Debug for v1::Approval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Approval")
            .field("id_token", &"[redacted]")
            .field("expires", &self.expires)
            .finish()
    }
}

impl fmt::Debug for kms_v2::EncryptRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EncryptRequest")
            .field("plaintext", &"[redacted]")
            .field("uid", &self.uid)
            .finish()
    }
}

impl fmt::Debug for kms_v2::DecryptResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DecryptResponse").field("plaintext", &"[redacted]").finish()
    }
}

#[cfg(test)]
mod tests {
    use super::{kms_v2, v1};

    #[test]
    fn messages_with_key_material_print_redacted_even_inside_a_batch() {
        let material = bytes::Bytes::from_static(b"marker-material");
        let wrap = v1::WrapRequest {
            key: "user-keys".into(),
            key_material: material.clone(),
            ..Default::default()
        };
        let batch = v1::UnwrapBatchResponse {
            results: vec![v1::UnwrapBatchResult {
                result: Some(v1::unwrap_batch_result::Result::Unwrapped(v1::UnwrapResponse {
                    key_material: material.clone(),
                    key_version: 1,
                })),
            }],
        };
        let encrypt = kms_v2::EncryptRequest { plaintext: material.clone(), uid: "1".into() };
        let decrypted = kms_v2::DecryptResponse { plaintext: material };
        let approval = v1::Approval { id_token: "marker-token".into(), expires: 1 };
        let texts = [
            format!("{approval:?}"),
            format!("{wrap:?}"),
            format!("{encrypt:?}"),
            format!("{decrypted:?}"),
            format!("{batch:#?}"),
        ];
        for text in texts {
            assert!(!text.contains("marker"), "{text}");
            assert!(text.contains("[redacted]"), "{text}");
        }
    }
}
