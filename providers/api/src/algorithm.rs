//! What can be done with a key, named as in JWA (RFC 7518 sections 3.1 and 4.1).

use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A hash function of an algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hash {
    /// SHA-1, 20 bytes; only inside OAEP, where its weakness does not matter.
    Sha1,
    /// SHA-256, 32 bytes.
    Sha256,
    /// SHA-384, 48 bytes.
    Sha384,
    /// SHA-512, 64 bytes.
    Sha512,
}

impl Hash {
    /// The output length in bytes.
    #[expect(clippy::len_without_is_empty, reason = "a hash is never empty")]
    pub fn len(self) -> usize {
        match self {
            Self::Sha1 => 20,
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }
}

/// An algorithm that wraps and unwraps. The MGF1 hash is always the OAEP hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Algorithm {
    /// RSAES-OAEP with SHA-1 (RFC 8017 section 7.1).
    #[serde(rename = "RSA-OAEP")]
    RsaOaep,
    /// RSAES-OAEP with SHA-256.
    #[serde(rename = "RSA-OAEP-256")]
    RsaOaep256,
    /// RSAES-OAEP with SHA-384.
    #[serde(rename = "RSA-OAEP-384")]
    RsaOaep384,
    /// RSAES-OAEP with SHA-512.
    #[serde(rename = "RSA-OAEP-512")]
    RsaOaep512,
    /// RSAES-PKCS1-v1_5 (RFC 8017 section 7.2). Only where a key lists it.
    #[serde(rename = "RSA1_5")]
    Rsa15,
}

impl Algorithm {
    /// Every algorithm, in the order of the wire contract.
    pub const ALL: [Self; 5] =
        [Self::RsaOaep, Self::RsaOaep256, Self::RsaOaep384, Self::RsaOaep512, Self::Rsa15];

    /// The JWA name.
    pub fn name(self) -> &'static str {
        match self {
            Self::RsaOaep => "RSA-OAEP",
            Self::RsaOaep256 => "RSA-OAEP-256",
            Self::RsaOaep384 => "RSA-OAEP-384",
            Self::RsaOaep512 => "RSA-OAEP-512",
            Self::Rsa15 => "RSA1_5",
        }
    }

    /// The OAEP hash; none for RSA1_5.
    pub fn hash(self) -> Option<Hash> {
        match self {
            Self::RsaOaep => Some(Hash::Sha1),
            Self::RsaOaep256 => Some(Hash::Sha256),
            Self::RsaOaep384 => Some(Hash::Sha384),
            Self::RsaOaep512 => Some(Hash::Sha512),
            Self::Rsa15 => None,
        }
    }

    /// The longest key material, in bytes, under a modulus of `modulus_bytes`
    /// (RFC 8017 sections 7.1.1 and 7.2.1).
    pub fn max_material_len(self, modulus_bytes: usize) -> usize {
        let overhead = self.hash().map_or(11, |hash| 2 * hash.len() + 2);
        modulus_bytes.saturating_sub(overhead)
    }
}

/// How a value was wrapped.
#[derive(Clone, Copy, Debug)]
pub struct Parameters<'a> {
    /// The algorithm.
    pub algorithm: Algorithm,
    /// The OAEP label (RFC 8017 section 7.1); empty where there is none, and for RSA1_5.
    pub label: &'a [u8],
}

impl Parameters<'_> {
    /// An algorithm without a label.
    pub fn of(algorithm: Algorithm) -> Self {
        Self { algorithm, label: &[] }
    }
}

/// An algorithm that signs and verifies a digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum SignAlgorithm {
    /// RSASSA-PKCS1-v1_5 with SHA-256 (RFC 8017 section 8.2).
    #[serde(rename = "RS256")]
    Rs256,
    /// RSASSA-PKCS1-v1_5 with SHA-384.
    #[serde(rename = "RS384")]
    Rs384,
    /// RSASSA-PKCS1-v1_5 with SHA-512.
    #[serde(rename = "RS512")]
    Rs512,
    /// RSASSA-PSS with SHA-256, MGF1-SHA-256 and a salt of 32 bytes (RFC 8017 section 8.1).
    #[serde(rename = "PS256")]
    Ps256,
    /// RSASSA-PSS with SHA-384, MGF1-SHA-384 and a salt of 48 bytes.
    #[serde(rename = "PS384")]
    Ps384,
    /// RSASSA-PSS with SHA-512, MGF1-SHA-512 and a salt of 64 bytes.
    #[serde(rename = "PS512")]
    Ps512,
}

impl SignAlgorithm {
    /// Every algorithm, in the order of the wire contract.
    pub const ALL: [Self; 6] =
        [Self::Rs256, Self::Rs384, Self::Rs512, Self::Ps256, Self::Ps384, Self::Ps512];

    /// The JWA name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Rs384 => "RS384",
            Self::Rs512 => "RS512",
            Self::Ps256 => "PS256",
            Self::Ps384 => "PS384",
            Self::Ps512 => "PS512",
        }
    }

    /// The hash whose digest is signed.
    pub fn hash(self) -> Hash {
        match self {
            Self::Rs256 | Self::Ps256 => Hash::Sha256,
            Self::Rs384 | Self::Ps384 => Hash::Sha384,
            Self::Rs512 | Self::Ps512 => Hash::Sha512,
        }
    }

    /// Whether this is RSASSA-PSS (else RSASSA-PKCS1-v1_5).
    pub fn is_pss(self) -> bool {
        matches!(self, Self::Ps256 | Self::Ps384 | Self::Ps512)
    }
}

/// A name that is no algorithm of its kind; prints what is allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not known; allowed: {allowed}")]
pub struct UnknownAlgorithm {
    allowed: String,
}

/// Joins the names of algorithms with commas, for messages.
pub fn names<T: fmt::Display>(algorithms: impl IntoIterator<Item = T>) -> String {
    algorithms.into_iter().map(|a| a.to_string()).collect::<Vec<_>>().join(", ")
}

/// A member of a [`Set`]: an enum of at most eight variants.
pub trait Member: Copy + fmt::Display + 'static {
    /// Every member.
    const MEMBERS: &'static [Self];
    /// The member's bit, 0 to 7.
    fn bit(self) -> u8;
}

macro_rules! named {
    ($type:ty) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }
        impl FromStr for $type {
            type Err = UnknownAlgorithm;
            fn from_str(name: &str) -> Result<Self, UnknownAlgorithm> {
                Self::ALL
                    .into_iter()
                    .find(|a| a.name() == name)
                    .ok_or_else(|| UnknownAlgorithm { allowed: names(Self::ALL) })
            }
        }
        impl Member for $type {
            const MEMBERS: &'static [Self] = &Self::ALL;
            fn bit(self) -> u8 {
                self as u8
            }
        }
    };
}
named!(Algorithm);
named!(SignAlgorithm);

/// A set of algorithms in one byte.
pub struct Set<T>(u8, PhantomData<T>);

/// The algorithms a key can unwrap.
pub type Algorithms = Set<Algorithm>;
/// The algorithms a key can sign with.
pub type SignAlgorithms = Set<SignAlgorithm>;

impl<T: Member> Set<T> {
    /// The empty set.
    pub const EMPTY: Self = Self(0, PhantomData);

    /// Whether `algorithm` is in the set.
    pub fn contains(self, algorithm: T) -> bool {
        self.0 & (1 << algorithm.bit()) != 0
    }

    /// Whether nothing is in the set.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The members, in the order of the wire contract.
    pub fn iter(self) -> impl Iterator<Item = T> {
        T::MEMBERS.iter().copied().filter(move |a| self.contains(*a))
    }
}

impl<T> Clone for Set<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Set<T> {}
impl<T> PartialEq for Set<T> {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}
impl<T> Eq for Set<T> {}

impl<T: Member> FromIterator<T> for Set<T> {
    fn from_iter<I: IntoIterator<Item = T>>(members: I) -> Self {
        Self(members.into_iter().fold(0, |bits, a| bits | (1 << a.bit())), PhantomData)
    }
}

impl<T: Member> fmt::Debug for Set<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}]", names(self.iter()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_back_and_unknown_ones_say_what_is_allowed() {
        for algorithm in Algorithm::ALL {
            assert_eq!(algorithm.name().parse(), Ok(algorithm));
        }
        for algorithm in SignAlgorithm::ALL {
            assert_eq!(algorithm.name().parse(), Ok(algorithm));
        }
        let error = "RSA-OAEP-1".parse::<Algorithm>().unwrap_err().to_string();
        assert!(error.contains("RSA-OAEP, RSA-OAEP-256"), "{error}");
    }

    #[test]
    fn the_longest_material_follows_rfc_8017() {
        assert_eq!(Algorithm::RsaOaep.max_material_len(256), 214);
        assert_eq!(Algorithm::RsaOaep512.max_material_len(256), 126);
        assert_eq!(Algorithm::Rsa15.max_material_len(256), 245);
    }

    #[test]
    fn a_set_holds_what_was_put_in() {
        let set: Algorithms = [Algorithm::RsaOaep, Algorithm::Rsa15].into_iter().collect();
        assert!(set.contains(Algorithm::Rsa15) && !set.contains(Algorithm::RsaOaep256));
        assert_eq!(format!("{set:?}"), "[RSA-OAEP, RSA1_5]");
    }
}
