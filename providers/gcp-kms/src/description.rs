//! What KMS says about a version: its public key, and the one algorithm that it has.

use claviger_provider_api::algorithm::names;
use claviger_provider_api::foreign::printable;
use claviger_provider_api::{Algorithm, Cause, Error, OpenKey, PublicKey, SignAlgorithm};
use serde::Deserialize;

use crate::client::Answer;
use crate::error::Failure;
use crate::locator::Locator;

/// A version that can be used.
pub(crate) struct Version {
    pub(crate) public_key: PublicKey,
    /// KMS's name of the algorithm, such as `RSA_DECRYPT_OAEP_3072_SHA256`.
    pub(crate) algorithm: String,
    /// Where the key is: `SOFTWARE`, `HSM`, `EXTERNAL`.
    pub(crate) protection_level: String,
}

/// `PublicKey` (google/cloud/kms/v1/resources.proto).
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PublicKeyBody {
    name: String,
    #[serde(default)]
    algorithm: String,
    #[serde(default)]
    pem: String,
    pem_crc32c: Option<Crc32c>,
    #[serde(default)]
    protection_level: String,
}

/// A checksum: an Int64Value, which JSON has as a string.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Crc32c(u32);

impl TryFrom<String> for Crc32c {
    type Error = std::num::ParseIntError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse().map(Self)
    }
}

impl Crc32c {
    /// Whether it is the checksum of `bytes`.
    pub(crate) fn fits(self, bytes: &[u8]) -> bool {
        crc32c::crc32c(bytes) == self.0
    }
}

/// Reads an answer to `getPublicKey`.
pub(crate) fn read(answer: &Answer, locator: &Locator) -> Result<Version, Error> {
    let body: PublicKeyBody = answer.json()?;
    let broken = |what: String| Failure::BrokenPromise {
        what: format!("getPublicKey {what}"),
        request_id: answer.request_id.clone(),
    };
    if body.name != locator.as_str() {
        let what = format!("answered for {:?}", printable(&body.name));
        return Err(broken(what).into());
    }
    if body.pem.is_empty() {
        let reason = format!(
            "{locator} ({}) has no public key; a key for RSA_DECRYPT_OAEP_… or RSA_SIGN_… is needed",
            printable(&body.algorithm)
        );
        return Err(Error::needs_operator(Cause::KeyUnfit, reason));
    }
    let malformed = |what: &str| Failure::Malformed {
        what: what.into(),
        request_id: answer.request_id.clone(),
    };
    if body.algorithm.is_empty() {
        return Err(malformed("no algorithm").into());
    }
    let Some(checksum) = body.pem_crc32c else {
        return Err(malformed("no pemCrc32c").into());
    };
    if !checksum.fits(body.pem.as_bytes()) {
        return Err(broken("gave a public key with a checksum that does not fit".into()).into());
    }
    let refuse = |why: &dyn std::fmt::Display| {
        let algorithm = printable(&body.algorithm);
        let reason = format!("{locator} ({algorithm}) cannot be used: {why}");
        Error::needs_operator(Cause::KeyUnfit, reason)
    };
    let (label, spki) = pem_rfc7468::decode_vec(body.pem.as_bytes())
        .map_err(|_| broken("gave a public key that is no PEM".into()))?;
    if label != "PUBLIC KEY" {
        return Err(broken(format!("gave a {:?}", printable(label))).into());
    }
    let public_key = PublicKey::from_spki(&spki).map_err(|error| refuse(&error))?;
    let protection_level = printable(&body.protection_level);
    Ok(Version { public_key, algorithm: body.algorithm, protection_level })
}

/// What a version can do, by KMS's name of its algorithm: padding, size and hash are one thing there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ability {
    Unwrap(Algorithm),
    Sign(SignAlgorithm),
}

fn ability(name: &str) -> Option<Ability> {
    let (what, hash) = name.rsplit_once('_')?;
    let (what, _bits) = what.rsplit_once('_')?;
    Some(match (what, hash) {
        ("RSA_DECRYPT_OAEP", "SHA1") => Ability::Unwrap(Algorithm::RsaOaep),
        ("RSA_DECRYPT_OAEP", "SHA256") => Ability::Unwrap(Algorithm::RsaOaep256),
        ("RSA_DECRYPT_OAEP", "SHA512") => Ability::Unwrap(Algorithm::RsaOaep512),
        ("RSA_SIGN_PKCS1", "SHA256") => Ability::Sign(SignAlgorithm::Rs256),
        ("RSA_SIGN_PKCS1", "SHA512") => Ability::Sign(SignAlgorithm::Rs512),
        ("RSA_SIGN_PSS", "SHA256") => Ability::Sign(SignAlgorithm::Ps256),
        ("RSA_SIGN_PSS", "SHA512") => Ability::Sign(SignAlgorithm::Ps512),
        _ => return None,
    })
}

/// KMS's name of the one algorithm that does what is listed, with keys of so many bits.
pub(crate) fn algorithm_for(open: &OpenKey<'_>, bits: u32) -> Result<String, Error> {
    let refuse = |reason: String| Error::needs_operator(Cause::AlgorithmNotOffered, reason);
    let (what, hash) = match (open.algorithms, open.sign_algorithms) {
        ([Algorithm::RsaOaep], []) => ("RSA_DECRYPT_OAEP", "SHA1"),
        ([Algorithm::RsaOaep256], []) => ("RSA_DECRYPT_OAEP", "SHA256"),
        ([Algorithm::RsaOaep512], []) => ("RSA_DECRYPT_OAEP", "SHA512"),
        ([], [SignAlgorithm::Rs256]) => ("RSA_SIGN_PKCS1", "SHA256"),
        ([], [SignAlgorithm::Rs512]) => ("RSA_SIGN_PKCS1", "SHA512"),
        ([], [SignAlgorithm::Ps256]) => ("RSA_SIGN_PSS", "SHA256"),
        ([], [SignAlgorithm::Ps512]) => ("RSA_SIGN_PSS", "SHA512"),
        _ => {
            let reason = "a key of Google's has one algorithm: list one of RSA-OAEP, RSA-OAEP-256 and \
                          RSA-OAEP-512, or one of RS256, RS512, PS256 and PS512";
            return Err(refuse(reason.to_owned()));
        }
    };
    if hash == "SHA512" && bits != 4096 {
        return Err(refuse(format!(
            "Google has {what} with SHA-512 for 4096 bits only: --bits 4096"
        )));
    }
    Ok(format!("{what}_{bits}_{hash}"))
}

/// Whether a version does what a configuration lists; if not, what to write instead.
pub(crate) fn check(version: &Version, locator: &Locator, open: &OpenKey<'_>) -> Result<(), Error> {
    let algorithm = printable(&version.algorithm);
    let (does, good) = match ability(&version.algorithm) {
        None => {
            let reason = format!(
                "{locator} is a version for {algorithm}, which is of no use here; make a key for \
                 RSA_DECRYPT_OAEP_… or RSA_SIGN_…"
            );
            return Err(Error::needs_operator(Cause::KeyUnfit, reason));
        }
        Some(Ability::Unwrap(does)) => (
            format!("unwraps {does} and does nothing else; write algorithms = [\"{does}\"]"),
            open.sign_algorithms.is_empty() && open.algorithms.iter().all(|listed| *listed == does),
        ),
        Some(Ability::Sign(does)) => (
            format!(
                "signs with {does} and does nothing else; write sign_algorithms = [\"{does}\"]"
            ),
            open.algorithms.is_empty() && open.sign_algorithms.iter().all(|listed| *listed == does),
        ),
    };
    if good {
        return Ok(());
    }
    let listed = names(
        open.algorithms
            .iter()
            .map(ToString::to_string)
            .chain(open.sign_algorithms.iter().map(ToString::to_string)),
    );
    let reason = format!("{locator} is a version for {algorithm}: it {does} (listed is {listed})");
    Err(Error::needs_operator(Cause::AlgorithmNotOffered, reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rsa_algorithm_of_kms_is_known_and_no_other() {
        let table = [
            ("RSA_DECRYPT_OAEP_2048_SHA1", Some(Ability::Unwrap(Algorithm::RsaOaep))),
            ("RSA_DECRYPT_OAEP_3072_SHA256", Some(Ability::Unwrap(Algorithm::RsaOaep256))),
            ("RSA_DECRYPT_OAEP_4096_SHA512", Some(Ability::Unwrap(Algorithm::RsaOaep512))),
            ("RSA_SIGN_PKCS1_2048_SHA256", Some(Ability::Sign(SignAlgorithm::Rs256))),
            ("RSA_SIGN_PKCS1_4096_SHA512", Some(Ability::Sign(SignAlgorithm::Rs512))),
            ("RSA_SIGN_PSS_3072_SHA256", Some(Ability::Sign(SignAlgorithm::Ps256))),
            ("RSA_SIGN_PSS_4096_SHA512", Some(Ability::Sign(SignAlgorithm::Ps512))),
            ("RSA_SIGN_RAW_PKCS1_2048", None),
            ("EC_SIGN_P256_SHA256", None),
            ("GOOGLE_SYMMETRIC_ENCRYPTION", None),
            ("CRYPTO_KEY_VERSION_ALGORITHM_UNSPECIFIED", None),
            ("", None),
        ];
        for (name, expected) in table {
            assert_eq!(ability(name), expected, "{name}");
        }
    }

    #[test]
    fn a_key_is_made_for_the_one_algorithm_that_is_listed() {
        use Algorithm::{RsaOaep, RsaOaep256, RsaOaep384, RsaOaep512};
        let name = |algorithms: &[Algorithm], sign_algorithms: &[SignAlgorithm], bits| {
            let open =
                OpenKey { locator: "", algorithms, sign_algorithms, public_key_sha256: None };
            algorithm_for(&open, bits)
        };
        for algorithm in [RsaOaep, RsaOaep256, RsaOaep512] {
            let made = ability(&name(&[algorithm], &[], 4096).unwrap());
            assert_eq!(made, Some(Ability::Unwrap(algorithm)));
        }
        for algorithm in [SignAlgorithm::Rs256, SignAlgorithm::Ps512] {
            let made = ability(&name(&[], &[algorithm], 4096).unwrap());
            assert_eq!(made, Some(Ability::Sign(algorithm)));
        }
        assert_eq!(name(&[RsaOaep256], &[], 3072).unwrap(), "RSA_DECRYPT_OAEP_3072_SHA256");
        for (algorithms, sign_algorithms, bits) in [
            (&[RsaOaep, RsaOaep256][..], &[][..], 3072),
            (&[RsaOaep384], &[], 3072),
            (&[RsaOaep512], &[], 3072),
            (&[RsaOaep], &[SignAlgorithm::Rs256], 3072),
            (&[], &[], 3072),
        ] {
            assert!(name(algorithms, sign_algorithms, bits).is_err());
        }
    }

    #[test]
    fn a_key_that_is_no_rsa_key_or_has_no_public_half_is_unfit() {
        let name = "projects/p/locations/global/keyRings/r/cryptoKeys/k/cryptoKeyVersions/1";
        let locator: Locator = name.parse().unwrap();
        let elliptic = "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEaxfR8uEsQkf4vOblY6RA8ncDfYEt\n6zOg9KE5RdiYwpZP40Li/hp/m47n60p8D54WK84zV2sxXs7LtkBoN79R9Q==\n-----END PUBLIC KEY-----\n";
        for (algorithm, pem) in
            [("EC_SIGN_P256_SHA256", elliptic), ("GOOGLE_SYMMETRIC_ENCRYPTION", "")]
        {
            let crc = crc32c::crc32c(pem.as_bytes()).to_string();
            let body = serde_json::json!({
                "name": name, "algorithm": algorithm, "pem": pem, "pemCrc32c": crc,
            });
            let answer = Answer::of(&body.to_string());
            let error = read(&answer, &locator).err().unwrap();
            assert_eq!(error.cause(), Some(Cause::KeyUnfit), "{error}");
        }
        let raw = Version {
            public_key: PublicKey::from_components(&[0xff; 256], &[1, 0, 1]).unwrap(),
            algorithm: "RSA_SIGN_RAW_PKCS1_2048".into(),
            protection_level: "HSM".into(),
        };
        let open = OpenKey {
            locator: name,
            algorithms: &[],
            sign_algorithms: &[SignAlgorithm::Rs256],
            public_key_sha256: None,
        };
        assert_eq!(check(&raw, &locator, &open).unwrap_err().cause(), Some(Cause::KeyUnfit));
        // Another RSA algorithm is a matter of the list.
        let pss = Version { algorithm: "RSA_SIGN_PSS_2048_SHA256".into(), ..raw };
        let error = check(&pss, &locator, &open).unwrap_err();
        assert_eq!(error.cause(), Some(Cause::AlgorithmNotOffered), "{error}");
    }

    #[test]
    fn a_checksum_is_a_number_in_a_string() {
        // The check value of CRC-32C, over the digits 1 to 9.
        let crc: Crc32c = serde_json::from_str("\"3808858755\"").unwrap();
        assert!(crc.fits(b"123456789"));
        assert!(!crc.fits(b"12345678"));
        for bad in ["\"\"", "\"-1\"", "\"4294967296\"", "null"] {
            assert!(serde_json::from_str::<Crc32c>(bad).is_err(), "{bad}");
        }
    }
}
