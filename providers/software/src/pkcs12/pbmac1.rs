//! PBMAC1 (RFC 8018 appendix A.5, RFC 9579): an HMAC under a key of PBKDF2.

use std::num::NonZeroU32;

use aws_lc_rs::{hmac, pbkdf2};
use pkcs8::ObjectIdentifier;
use pkcs8::der::asn1::AnyRef;
use pkcs8::der::{Decode, Reader};
use pkcs8::spki::AlgorithmIdentifierRef;
use zeroize::Zeroizing;

use super::{Mac, sequence};
use crate::error::FileError;

pub(super) const OID: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.5.14");
const PBKDF2: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.5.12");

/// OpenSSL writes 2048 and .NET 100,000; more than this would hold up a start.
const MAX_ITERATIONS: u32 = 10_000_000;
/// RFC 9579 wants at least 20 octets.
const KEY_LENGTHS: std::ops::RangeInclusive<u32> = 20..=64;

struct Parameters<'a> {
    salt: &'a [u8],
    iterations: u32,
    key_length: u32,
    prf: pbkdf2::Algorithm,
    hmac: hmac::Algorithm,
}

/// Verifies the MAC of a PKCS#12 file over its content.
pub(super) fn verify(mac: &Mac<'_>, password: &str, content: &[u8]) -> Result<(), FileError> {
    let parameters = parameters(&mac.algorithm).ok_or_else(|| {
        FileError::UnknownEncryption(
            "its PBMAC1 is not PBKDF2 and HMAC with SHA-1, SHA-256, SHA-384 or SHA-512, with a key \
             length"
                .to_owned(),
        )
    })?;
    let iterations = NonZeroU32::new(parameters.iterations)
        .filter(|count| count.get() <= MAX_ITERATIONS)
        .filter(|_| KEY_LENGTHS.contains(&parameters.key_length))
        .ok_or_else(|| {
            FileError::UnknownEncryption("its PBMAC1's numbers are out of bounds".to_owned())
        })?;
    let mut key = Zeroizing::new(vec![0; parameters.key_length as usize]);
    pbkdf2::derive(parameters.prf, iterations, parameters.salt, password.as_bytes(), &mut key);
    let key = hmac::Key::new(parameters.hmac, &key);
    hmac::verify(&key, content, mac.digest).map_err(|_| FileError::WrongPassphrase)
}

fn parameters<'a>(algorithm: &AlgorithmIdentifierRef<'a>) -> Option<Parameters<'a>> {
    let read = sequence(algorithm.parameters?, |reader| {
        Ok((AlgorithmIdentifierRef::decode(reader)?, AlgorithmIdentifierRef::decode(reader)?))
    });
    let (derivation, scheme) = read.ok()?;
    let (_, hmac) = hashes(scheme.oid)?;
    let of_derivation = derivation.parameters.filter(|_| derivation.oid == PBKDF2)?;
    let read = sequence(of_derivation, |reader| {
        let salt = AnyRef::decode(reader)?.value();
        let (iterations, key_length) = (u32::decode(reader)?, u32::decode(reader)?);
        // None is the default of RFC 8018.
        let prf = if reader.is_finished() {
            None
        } else {
            Some(AlgorithmIdentifierRef::decode(reader)?.oid)
        };
        Ok((salt, iterations, key_length, prf))
    });
    let (salt, iterations, key_length, prf) = read.ok()?;
    let prf = prf.map_or(Some(pbkdf2::PBKDF2_HMAC_SHA1), |prf| Some(hashes(prf)?.0))?;
    Some(Parameters { salt, iterations, key_length, prf, hmac })
}

/// hmacWithSHA1 and its successors (RFC 8018 appendix B.1), as PRF and as MAC.
fn hashes(oid: ObjectIdentifier) -> Option<(pbkdf2::Algorithm, hmac::Algorithm)> {
    match oid.to_string().strip_prefix("1.2.840.113549.2.")? {
        "7" => Some((pbkdf2::PBKDF2_HMAC_SHA1, hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY)),
        "9" => Some((pbkdf2::PBKDF2_HMAC_SHA256, hmac::HMAC_SHA256)),
        "10" => Some((pbkdf2::PBKDF2_HMAC_SHA384, hmac::HMAC_SHA384)),
        "11" => Some((pbkdf2::PBKDF2_HMAC_SHA512, hmac::HMAC_SHA512)),
        _ => None,
    }
}
