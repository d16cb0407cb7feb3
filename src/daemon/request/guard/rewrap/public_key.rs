//! The public keys of callers that a rewrap may wrap for, and why others are refused.

use claviger_provider_api::PublicKey;

use crate::daemon::status::Failure;

/// The smallest public exponent (NIST SP 800-56B section 6.2), big-endian.
const MIN_EXPONENT: [u8; 3] = [1, 0, 1];

/// An RSA public key that material may be wrapped for, exactly in the form in which it was sent.
pub(super) fn parse_public_key(spki: &[u8]) -> Result<PublicKey, Failure> {
    let refused = |allowed: String| Failure::Field { field: "target.public_key", allowed };
    let key = PublicKey::from_spki(spki).map_err(|error| refused(error.to_string()))?;
    // The parser is lenient, and what is hashed and granted should be what was sent.
    if key.spki() != spki {
        return Err(refused(
            "is not DER: rsaEncryption with NULL parameters (RFC 3279 section 2.3.1)".into(),
        ));
    }
    let exponent = key.exponent();
    let too_small = exponent.len() < 3 || (exponent.len() == 3 && exponent < &MIN_EXPONENT[..]);
    if too_small || exponent.last().is_none_or(|last| last % 2 == 0) {
        return Err(refused("must have an odd public exponent of at least 65537".into()));
    }
    if key.modulus().last().is_none_or(|last| last % 2 == 0) {
        return Err(refused("has an even modulus: that is no RSA key".into()));
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn der(tag: u8, content: &[u8]) -> Vec<u8> {
        let len = content.len();
        let mut der = vec![tag];
        match len {
            0..0x80 => der.push(len as u8),
            0x80..0x100 => der.extend([0x81, len as u8]),
            _ => der.extend([0x82, (len >> 8) as u8, len as u8]),
        }
        der.extend(content);
        der
    }

    fn spki(modulus: &[u8], exponent: &[u8]) -> Vec<u8> {
        let integer = |bytes: &[u8]| {
            let sign: &[u8] = if bytes[0] < 0x80 { &[] } else { &[0] };
            der(2, &[sign, bytes].concat())
        };
        let rsa = der(0x30, &[integer(modulus), integer(exponent)].concat());
        let oid = [6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1, 5, 0];
        der(0x30, &[der(0x30, &oid), der(3, &[vec![0], rsa].concat())].concat())
    }

    fn modulus(bits: usize) -> Vec<u8> {
        let mut modulus = vec![0xc5; bits / 8];
        modulus.iter_mut().step_by(7).for_each(|byte| *byte = 0x9d);
        *modulus.last_mut().unwrap() = 0x01;
        modulus
    }

    fn refusal(spki: &[u8]) -> String {
        match parse_public_key(spki) {
            Err(Failure::Field { field: "target.public_key", allowed }) => allowed,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_public_key_of_usual_size_and_exponent_is_taken() {
        for bits in [2048, 3072, 4096, 8192] {
            let key = parse_public_key(&spki(&modulus(bits), &[1, 0, 1])).unwrap();
            assert_eq!(key.modulus_bits(), bits);
        }
        parse_public_key(&spki(&modulus(2048), &[1, 0, 0, 1])).unwrap();
    }

    #[test]
    fn sizes_and_exponents_that_nobody_should_wrap_for_are_refused_in_words() {
        for bits in [512, 1024, 2040] {
            assert!(refusal(&spki(&modulus(bits), &[1, 0, 1])).contains("2048 to 8192 bits"));
        }
        for exponent in [&[1][..], &[3], &[17], &[1, 1], &[1, 0, 0], &[0xff, 0xff]] {
            let refusal = refusal(&spki(&modulus(2048), exponent));
            assert!(refusal.contains("exponent"), "{exponent:?}: {refusal}");
        }
        for exponent in [&[0][..], &[1, 0, 2], &[1; 9], &[0xff; 256]] {
            refusal(&spki(&modulus(2048), exponent));
        }
        let mut even = modulus(2048);
        *even.last_mut().unwrap() = 2;
        refusal(&spki(&even, &[1, 0, 1]));
        refusal(&spki(&modulus(16_384), &[1, 0, 1]));
    }

    #[test]
    fn no_bytes_make_the_parser_panic_and_what_it_takes_it_takes_as_it_is() {
        let good = spki(&modulus(2048), &[1, 0, 1]);
        parse_public_key(&good).unwrap();
        // xorshift64: the same mutations in every run.
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut random = |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % below as u64) as usize
        };
        let mut refused = 0;
        for round in 0..20_000 {
            let mut bytes = good.clone();
            // The header first: a changed modulus is another key and no error.
            let within = if round % 4 == 0 { bytes.len() } else { 40 };
            for _ in 0..=random(3) {
                match random(4) {
                    0 => bytes.truncate(random(bytes.len() + 1)),
                    1 => bytes.insert(random(within.min(bytes.len() + 1)), random(256) as u8),
                    _ if bytes.is_empty() => {}
                    _ => {
                        let at = random(within.min(bytes.len()));
                        bytes[at] = random(256) as u8;
                    }
                }
            }
            match parse_public_key(&bytes) {
                Ok(key) => assert_eq!(key.spki(), bytes),
                Err(_) => refused += 1,
            }
        }
        assert!((5_000..20_000).contains(&refused), "{refused}");
    }
}
