//! The public half of a key: wrapping and verifying live here, in software, for every backend.

use std::fmt;

use aws_lc_rs::digest;
use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rsa::{
    OAEP_SHA1_MGF1SHA1, OAEP_SHA256_MGF1SHA256, OAEP_SHA384_MGF1SHA384, OAEP_SHA512_MGF1SHA512,
    OaepAlgorithm, OaepPublicEncryptingKey, Pkcs1PublicEncryptingKey, PublicEncryptingKey,
    PublicKeyComponents,
};
use aws_lc_rs::signature::{
    ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384,
    RSA_PKCS1_2048_8192_SHA512, RSA_PSS_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384,
    RSA_PSS_2048_8192_SHA512, RsaParameters,
};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey as ParsedSpki;
use x509_parser::x509::SubjectPublicKeyInfo;

use crate::algorithm::{Algorithm, Hash, Parameters, SignAlgorithm};
use crate::material::{Digest, KeyMaterial};

/// An RSA public key of 2048 to 8192 bits.
pub struct PublicKey {
    spki: Vec<u8>,
    sha256: [u8; 32],
    modulus: Vec<u8>,
    exponent: Vec<u8>,
    oaep: OaepPublicEncryptingKey,
    pkcs1: Pkcs1PublicEncryptingKey,
    verifying: [ParsedPublicKey; 6],
}

/// Why a public key, or a use of it, was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublicKeyError {
    /// Not a SubjectPublicKeyInfo of an RSA key.
    #[error("not an RSA public key in SubjectPublicKeyInfo form (RFC 5280 section 4.1)")]
    NotRsaSpki,
    /// A modulus of another size.
    #[error("RSA key of {bits} bits refused: 2048 to 8192 bits are supported")]
    Size {
        /// The modulus's length in bits.
        bits: usize,
    },
    /// A public exponent that is even, below 3, or longer than the cryptographic library takes.
    #[error(
        "RSA key refused for its public exponent of {bits} bits: an odd one of 2 to 33 bits is \
         supported, and 65537 is what nearly all keys have"
    )]
    Exponent {
        /// The public exponent's length in bits.
        bits: usize,
    },
    /// A modulus that is no product of two primes, such as an even one.
    #[error("RSA key refused: its modulus is not one that a pair of primes gives")]
    Modulus,
    /// The material does not fit under this key and algorithm.
    #[error("{algorithm} under this key takes at most {max} bytes of key material, not {len}")]
    TooLong {
        /// The algorithm.
        algorithm: Algorithm,
        /// The longest material in bytes.
        max: usize,
        /// The material's length in bytes.
        len: usize,
    },
    /// RSA1_5 with a label.
    #[error("RSA1_5 has no label")]
    LabelNotAllowed,
    /// aws-lc refused for a reason it does not tell.
    #[error("the cryptographic library refused to wrap")]
    Refused,
}

impl PublicKey {
    /// Parses a SubjectPublicKeyInfo (DER). The form that is kept and hashed is the canonical one.
    pub fn from_spki(der: &[u8]) -> Result<Self, PublicKeyError> {
        let (rest, spki) =
            SubjectPublicKeyInfo::from_der(der).map_err(|_| PublicKeyError::NotRsaSpki)?;
        match spki.parsed() {
            Ok(ParsedSpki::RSA(rsa)) if rest.is_empty() => {
                Self::from_components(rsa.modulus, rsa.exponent)
            }
            _ => Err(PublicKeyError::NotRsaSpki),
        }
    }

    /// Builds the key from modulus and public exponent, big-endian, leading zeros allowed.
    pub fn from_components(modulus: &[u8], exponent: &[u8]) -> Result<Self, PublicKeyError> {
        let modulus = without_leading_zeros(modulus).to_vec();
        let exponent = without_leading_zeros(exponent).to_vec();
        let bits = bits(&modulus);
        if !(2048..=8192).contains(&bits) {
            return Err(PublicKeyError::Size { bits });
        }
        check_exponent(&exponent)?;
        let refused = PublicKeyError::Modulus;
        let components = PublicKeyComponents { n: modulus.as_slice(), e: exponent.as_slice() };
        let encrypting: PublicEncryptingKey = components.try_into().map_err(|_| refused.clone())?;
        let spki = encrypting.as_der().map_err(|_| refused.clone())?.as_ref().to_vec();
        let parse = |algorithm: SignAlgorithm| {
            ParsedPublicKey::new(rsa_parameters(algorithm), &spki).map_err(|_| refused.clone())
        };
        let [rs256, rs384, rs512, ps256, ps384, ps512] = SignAlgorithm::ALL.map(parse);
        Ok(Self {
            sha256: sha256(&spki),
            modulus,
            exponent,
            oaep: OaepPublicEncryptingKey::new(encrypting.clone()).map_err(|_| refused.clone())?,
            pkcs1: Pkcs1PublicEncryptingKey::new(encrypting).map_err(|_| refused.clone())?,
            verifying: [rs256?, rs384?, rs512?, ps256?, ps384?, ps512?],
            spki,
        })
    }

    /// SubjectPublicKeyInfo, DER (RFC 5280 section 4.1).
    pub fn spki(&self) -> &[u8] {
        &self.spki
    }

    /// SHA-256 of [`PublicKey::spki`]: what a configuration pins.
    pub fn sha256(&self) -> [u8; 32] {
        self.sha256
    }

    /// The modulus, big-endian, without leading zeros.
    pub fn modulus(&self) -> &[u8] {
        &self.modulus
    }

    /// The public exponent, big-endian, without leading zeros.
    pub fn exponent(&self) -> &[u8] {
        &self.exponent
    }

    /// The length in bytes of the modulus, of a wrapped value and of a signature.
    pub fn modulus_len(&self) -> usize {
        self.modulus.len()
    }

    /// The length of the modulus in bits.
    pub fn modulus_bits(&self) -> usize {
        self.modulus.len() * 8 - self.modulus[0].leading_zeros() as usize
    }

    /// Whether `wrapped`, read as a number, is below the modulus (RFC 8017 section 5.1.2). Both
    /// have the same length.
    pub fn value_in_range(&self, wrapped: &[u8]) -> bool {
        wrapped.len() == self.modulus.len() && wrapped < self.modulus.as_slice()
    }

    /// Encrypts `material` (RFC 8017 sections 7.1.1 and 7.2.1); gives exactly
    /// [`PublicKey::modulus_len`] bytes.
    pub fn wrap(
        &self,
        material: &KeyMaterial,
        parameters: &Parameters<'_>,
    ) -> Result<Vec<u8>, PublicKeyError> {
        let Parameters { algorithm, label } = *parameters;
        let max = algorithm.max_material_len(self.modulus_len());
        let len = material.expose().len();
        if len > max {
            return Err(PublicKeyError::TooLong { algorithm, max, len });
        }
        let mut wrapped = vec![0; self.modulus_len()];
        let outcome = match oaep(algorithm) {
            Some(oaep) => {
                self.oaep.encrypt(oaep, material.expose(), &mut wrapped, Some(label)).map(|_| ())
            }
            None if !label.is_empty() => return Err(PublicKeyError::LabelNotAllowed),
            None => self.pkcs1.encrypt(material.expose(), &mut wrapped).map(|_| ()),
        };
        outcome.map(|()| wrapped).map_err(|_| PublicKeyError::Refused)
    }

    /// Whether `signature` is good over `digest` (RFC 8017 sections 8.1.2 and 8.2.2).
    pub fn verify(&self, digest: &Digest, algorithm: SignAlgorithm, signature: &[u8]) -> bool {
        if digest.hash() != algorithm.hash() {
            return false;
        }
        let digest =
            digest::Digest::import_less_safe(digest.as_bytes(), aws_lc_digest(algorithm.hash()))
                .expect("a Digest has its hash's length");
        self.verifying[algorithm as usize].verify_digest_sig(&digest, signature).is_ok()
    }
}

/// The aws-lc parameters of an OAEP algorithm; none for RSA1_5.
pub fn oaep(algorithm: Algorithm) -> Option<&'static OaepAlgorithm> {
    algorithm.hash().map(|hash| match hash {
        Hash::Sha1 => &OAEP_SHA1_MGF1SHA1,
        Hash::Sha256 => &OAEP_SHA256_MGF1SHA256,
        Hash::Sha384 => &OAEP_SHA384_MGF1SHA384,
        Hash::Sha512 => &OAEP_SHA512_MGF1SHA512,
    })
}

/// The aws-lc digest algorithm of a hash.
pub fn aws_lc_digest(hash: Hash) -> &'static digest::Algorithm {
    match hash {
        Hash::Sha1 => &digest::SHA1_FOR_LEGACY_USE_ONLY,
        Hash::Sha256 => &digest::SHA256,
        Hash::Sha384 => &digest::SHA384,
        Hash::Sha512 => &digest::SHA512,
    }
}

/// SHA-256 of `bytes`.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    digest::digest(&digest::SHA256, bytes).as_ref().try_into().expect("SHA-256 gives 32 bytes")
}

fn rsa_parameters(algorithm: SignAlgorithm) -> &'static RsaParameters {
    match algorithm {
        SignAlgorithm::Rs256 => &RSA_PKCS1_2048_8192_SHA256,
        SignAlgorithm::Rs384 => &RSA_PKCS1_2048_8192_SHA384,
        SignAlgorithm::Rs512 => &RSA_PKCS1_2048_8192_SHA512,
        SignAlgorithm::Ps256 => &RSA_PSS_2048_8192_SHA256,
        SignAlgorithm::Ps384 => &RSA_PSS_2048_8192_SHA384,
        SignAlgorithm::Ps512 => &RSA_PSS_2048_8192_SHA512,
    }
}

/// What aws-lc takes: odd, at least 3, at most 33 bits (RFC 8017 section 3.1 has no upper limit).
fn check_exponent(exponent: &[u8]) -> Result<(), PublicKeyError> {
    let bits = bits(exponent);
    let odd = exponent.last().is_some_and(|byte| byte % 2 == 1);
    if odd && (2..=33).contains(&bits) { Ok(()) } else { Err(PublicKeyError::Exponent { bits }) }
}

/// The length in bits of a number without leading zeros.
fn bits(number: &[u8]) -> usize {
    number.first().map_or(0, |top| number.len() * 8 - top.leading_zeros() as usize)
}

fn without_leading_zeros(bytes: &[u8]) -> &[u8] {
    &bytes[bytes.iter().take_while(|b| **b == 0).count()..]
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RSA-{} {}", self.modulus_bits(), hex::encode(self.sha256))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::rsa::{KeySize, OaepPrivateDecryptingKey, PrivateDecryptingKey};

    fn key() -> PrivateDecryptingKey {
        PrivateDecryptingKey::generate(KeySize::Rsa2048).unwrap()
    }

    fn public(key: &PrivateDecryptingKey) -> PublicKey {
        PublicKey::from_spki(key.public_key().as_der().unwrap().as_ref()).unwrap()
    }

    #[test]
    fn what_is_wrapped_unwraps_with_the_same_label_only() {
        let private = key();
        let public = public(&private);
        let private = OaepPrivateDecryptingKey::new(private).unwrap();
        for algorithm in Algorithm::ALL.into_iter().filter(|a| a.hash().is_some()) {
            let parameters = Parameters { algorithm, label: b"tenant" };
            let wrapped = public.wrap(&KeyMaterial::copied_from(b"key"), &parameters).unwrap();
            let mut out = [0; 256];
            let oaep = oaep(algorithm).unwrap();
            assert_eq!(private.decrypt(oaep, &wrapped, &mut out, Some(b"tenant")).unwrap(), b"key");
            assert!(private.decrypt(oaep, &wrapped, &mut out, None).is_err());
        }
    }

    #[test]
    fn an_spki_reads_back_as_itself_and_other_bytes_are_refused() {
        let public = public(&key());
        let again = PublicKey::from_spki(public.spki()).unwrap();
        assert_eq!(again.sha256(), public.sha256());
        assert_eq!(public.modulus_bits(), 2048);
        let mut longer = public.spki().to_vec();
        longer.push(0);
        for bad in [&longer[..], &public.spki()[1..], b"", b"\x30\x00"] {
            assert_eq!(PublicKey::from_spki(bad).unwrap_err(), PublicKeyError::NotRsaSpki);
        }
    }

    #[test]
    fn a_key_that_is_refused_is_told_its_real_reason() {
        let of = |modulus: &[u8], exponent: &[u8]| {
            PublicKey::from_components(modulus, exponent).map(|key| key.modulus_bits())
        };
        let odd = |len| [&vec![0xc3; len - 1][..], &[0x01]].concat();
        for bits in [1024, 2040, 8200, 16384] {
            let size = Err(PublicKeyError::Size { bits });
            assert_eq!(of(&odd(bits / 8), &[1, 0, 1]), size);
        }
        for (exponent, bits) in [
            (&[][..], 0),
            (&[0], 0),
            (&[1], 1),
            (&[1, 0, 0], 17),
            (&[2, 0, 0, 0, 1], 34),
            (&[1, 0, 0, 0, 0, 0, 0, 0, 1], 65),
        ] {
            let refused = of(&odd(256), exponent).unwrap_err();
            assert_eq!(refused, PublicKeyError::Exponent { bits }, "{exponent:?}");
            assert!(!refused.to_string().contains("8192"), "{refused}");
        }
        for exponent in [&[3][..], &[1, 0, 1], &[1, 0, 0, 0, 1]] {
            assert_eq!(of(&odd(256), exponent), Ok(2048), "{exponent:?}");
        }
        let even = [&odd(256)[..255], &[0]].concat();
        assert_eq!(of(&even, &[1, 0, 1]), Err(PublicKeyError::Modulus));
    }

    #[test]
    fn material_that_is_too_long_is_refused_with_the_limit() {
        let public = public(&key());
        let error = public
            .wrap(&KeyMaterial::copied_from(&[0; 215]), &Parameters::of(Algorithm::RsaOaep))
            .unwrap_err();
        assert!(error.to_string().contains("at most 214 bytes"), "{error}");
    }
}
