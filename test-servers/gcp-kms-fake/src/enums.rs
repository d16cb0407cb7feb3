//! The enums of the interface, with their names and numbers (google/cloud/kms/v1/resources.proto).

use aws_lc_rs::digest;
use aws_lc_rs::rsa::{
    OAEP_SHA1_MGF1SHA1, OAEP_SHA256_MGF1SHA256, OAEP_SHA512_MGF1SHA512, OaepAlgorithm,
};
use aws_lc_rs::signature::{
    RSA_PKCS1_SHA256, RSA_PKCS1_SHA512, RSA_PSS_SHA256, RSA_PSS_SHA512, RsaEncoding,
};
use serde_json::{Value, json};

/// An enum whose values travel as names, or as numbers if a client asks for that.
pub(crate) trait Wire: Copy + 'static {
    /// Every value that the fake knows, with its name and number.
    const VALUES: &'static [(Self, &'static str, i64)];

    /// The name.
    fn name(self) -> &'static str
    where
        Self: PartialEq,
    {
        let found = Self::VALUES.iter().find(|(value, ..)| *value == self);
        found.expect("every value is in the table").1
    }

    /// As JSON.
    fn to_json(self, encoding: Encoding) -> Value
    where
        Self: PartialEq,
    {
        let found = Self::VALUES.iter().find(|(value, ..)| *value == self);
        let (_, name, number) = found.expect("every value is in the table");
        match encoding {
            Encoding::Names => json!(name),
            Encoding::Numbers => json!(number),
        }
    }

    /// From JSON: a name or a number.
    fn from_json(value: &Value) -> Option<Self> {
        let found = Self::VALUES.iter().find(|(_, name, number)| {
            value.as_str() == Some(name) || value.as_i64() == Some(*number)
        });
        found.map(|(value, ..)| *value)
    }
}

/// How enums are written in an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    Names,
    Numbers,
}

/// What a key version does, for ever: the padding, the size and the hash are one thing in KMS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are those of the interface")]
pub enum Algorithm {
    DecryptOaep2048Sha1,
    DecryptOaep3072Sha1,
    DecryptOaep4096Sha1,
    DecryptOaep2048Sha256,
    DecryptOaep3072Sha256,
    DecryptOaep4096Sha256,
    DecryptOaep4096Sha512,
    SignPkcs1_2048Sha256,
    SignPkcs1_3072Sha256,
    SignPkcs1_4096Sha256,
    SignPkcs1_4096Sha512,
    SignPss2048Sha256,
    SignPss3072Sha256,
    SignPss4096Sha256,
    SignPss4096Sha512,
    EcSignP256Sha256,
}

impl Wire for Algorithm {
    const VALUES: &'static [(Self, &'static str, i64)] = &[
        (Self::DecryptOaep2048Sha1, "RSA_DECRYPT_OAEP_2048_SHA1", 37),
        (Self::DecryptOaep3072Sha1, "RSA_DECRYPT_OAEP_3072_SHA1", 38),
        (Self::DecryptOaep4096Sha1, "RSA_DECRYPT_OAEP_4096_SHA1", 39),
        (Self::DecryptOaep2048Sha256, "RSA_DECRYPT_OAEP_2048_SHA256", 8),
        (Self::DecryptOaep3072Sha256, "RSA_DECRYPT_OAEP_3072_SHA256", 9),
        (Self::DecryptOaep4096Sha256, "RSA_DECRYPT_OAEP_4096_SHA256", 10),
        (Self::DecryptOaep4096Sha512, "RSA_DECRYPT_OAEP_4096_SHA512", 17),
        (Self::SignPkcs1_2048Sha256, "RSA_SIGN_PKCS1_2048_SHA256", 5),
        (Self::SignPkcs1_3072Sha256, "RSA_SIGN_PKCS1_3072_SHA256", 6),
        (Self::SignPkcs1_4096Sha256, "RSA_SIGN_PKCS1_4096_SHA256", 7),
        (Self::SignPkcs1_4096Sha512, "RSA_SIGN_PKCS1_4096_SHA512", 16),
        (Self::SignPss2048Sha256, "RSA_SIGN_PSS_2048_SHA256", 2),
        (Self::SignPss3072Sha256, "RSA_SIGN_PSS_3072_SHA256", 3),
        (Self::SignPss4096Sha256, "RSA_SIGN_PSS_4096_SHA256", 4),
        (Self::SignPss4096Sha512, "RSA_SIGN_PSS_4096_SHA512", 15),
        (Self::EcSignP256Sha256, "EC_SIGN_P256_SHA256", 12),
    ];
}

impl Algorithm {
    pub(crate) fn bits(self) -> usize {
        let name = Wire::name(self);
        [2048, 3072, 4096].into_iter().find(|bits| name.contains(&bits.to_string())).unwrap_or(256)
    }

    pub(crate) fn purpose(self) -> Purpose {
        if Wire::name(self).contains("_DECRYPT_") {
            Purpose::AsymmetricDecrypt
        } else {
            Purpose::AsymmetricSign
        }
    }

    /// The hash, and the field of the interface's `Digest` that holds it.
    pub(crate) fn hash(self) -> (&'static digest::Algorithm, &'static str) {
        let name = Wire::name(self);
        if name.ends_with("SHA512") {
            (&digest::SHA512, "sha512")
        } else if name.ends_with("SHA256") {
            (&digest::SHA256, "sha256")
        } else {
            (&digest::SHA1_FOR_LEGACY_USE_ONLY, "sha1")
        }
    }

    pub(crate) fn oaep(self) -> Option<&'static OaepAlgorithm> {
        let name = Wire::name(self);
        (self.purpose() == Purpose::AsymmetricDecrypt).then(|| {
            if name.ends_with("SHA512") {
                &OAEP_SHA512_MGF1SHA512
            } else if name.ends_with("SHA256") {
                &OAEP_SHA256_MGF1SHA256
            } else {
                &OAEP_SHA1_MGF1SHA1
            }
        })
    }

    pub(crate) fn encoding(self) -> Option<&'static dyn RsaEncoding> {
        let name = Wire::name(self);
        let (pss, sha512) = (name.contains("_PSS_"), name.ends_with("SHA512"));
        match (name.starts_with("RSA_SIGN_"), pss, sha512) {
            (true, true, true) => Some(&RSA_PSS_SHA512),
            (true, true, false) => Some(&RSA_PSS_SHA256),
            (true, false, true) => Some(&RSA_PKCS1_SHA512),
            (true, false, false) => Some(&RSA_PKCS1_SHA256),
            _ => None,
        }
    }
}

/// Whether a version can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are those of the interface")]
pub enum VersionState {
    Enabled,
    Disabled,
    Destroyed,
    DestroyScheduled,
    PendingGeneration,
    PendingImport,
    ImportFailed,
}

impl Wire for VersionState {
    const VALUES: &'static [(Self, &'static str, i64)] = &[
        (Self::Enabled, "ENABLED", 1),
        (Self::Disabled, "DISABLED", 2),
        (Self::Destroyed, "DESTROYED", 3),
        (Self::DestroyScheduled, "DESTROY_SCHEDULED", 4),
        (Self::PendingGeneration, "PENDING_GENERATION", 5),
        (Self::PendingImport, "PENDING_IMPORT", 6),
        (Self::ImportFailed, "IMPORT_FAILED", 7),
    ];
}

/// What a crypto key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    AsymmetricSign,
    AsymmetricDecrypt,
}

impl Wire for Purpose {
    const VALUES: &'static [(Self, &'static str, i64)] = &[
        (Self::AsymmetricSign, "ASYMMETRIC_SIGN", 5),
        (Self::AsymmetricDecrypt, "ASYMMETRIC_DECRYPT", 6),
    ];
}

/// Where keys live; in the fake it is only a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProtectionLevel {
    Software,
    Hsm,
}

impl Wire for ProtectionLevel {
    const VALUES: &'static [(Self, &'static str, i64)] =
        &[(Self::Software, "SOFTWARE", 1), (Self::Hsm, "HSM", 2)];
}

/// How a key that is imported is wrapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ImportMethod {
    RsaOaep3072Sha256Aes256,
}

impl Wire for ImportMethod {
    const VALUES: &'static [(Self, &'static str, i64)] =
        &[(Self::RsaOaep3072Sha256Aes256, "RSA_OAEP_3072_SHA256_AES_256", 3)];
}

/// Whether an import job can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ImportJobState {
    PendingGeneration,
    Active,
}

impl Wire for ImportJobState {
    const VALUES: &'static [(Self, &'static str, i64)] =
        &[(Self::PendingGeneration, "PENDING_GENERATION", 1), (Self::Active, "ACTIVE", 2)];
}
