//! What a session is asked to do: bytes and parameters in, bytes out, with the mechanisms for it.

use claviger_provider_api::{
    Algorithm, Digest, Error, ErrorKind, Hash, KeyMaterial, Parameters, SignAlgorithm,
};
use cryptoki::mechanism::rsa::{PkcsMgfType, PkcsOaepParams, PkcsOaepSource, PkcsPssParams};
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::ObjectHandle;
use zeroize::Zeroizing;

use crate::config::Oaep;
use crate::functions::Output;
use crate::module::OpenSession;
use crate::oaep;

/// One private-key operation. It owns its bytes and knows no handle, so that it can cross to another
/// thread, or process.
#[derive(Debug)]
pub(crate) enum Operation {
    /// Gives key material. The value is as long as the modulus and below it.
    Unwrap { wrapped: Vec<u8>, padding: Padding },
    /// Gives a signature over `data`.
    Sign { data: Vec<u8>, scheme: Scheme },
}

/// How an unwrap removes the padding.
#[derive(Debug)]
pub(crate) enum Padding {
    /// `CKM_RSA_PKCS_OAEP`.
    Oaep { hash: Hash, label: Vec<u8> },
    /// `CKM_RSA_X_509`, then OAEP in software.
    RawOaep { hash: Hash, label: Vec<u8> },
    /// `CKM_RSA_PKCS`.
    Pkcs1,
}

/// How a signature is made.
#[derive(Debug)]
pub(crate) enum Scheme {
    /// `CKM_RSA_PKCS` over a DigestInfo.
    Pkcs1,
    /// `CKM_RSA_PKCS_PSS` over a digest; the salt is as long as the hash.
    Pss(Hash),
}

/// Why an operation gave nothing.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The token returned an error: the session is not to be used again.
    Token(Error),
    /// The token did its part and the value was at fault: the session is as good as before.
    Value(Error),
}

impl Operation {
    /// An unwrap with `parameters`.
    pub(crate) fn unwrap(wrapped: &[u8], parameters: &Parameters<'_>, oaep: Oaep) -> Self {
        let label = parameters.label.to_vec();
        let padding = match (parameters.algorithm.hash(), oaep) {
            (None, _) => Padding::Pkcs1,
            (Some(hash), Oaep::Native) => Padding::Oaep { hash, label },
            (Some(hash), Oaep::Software) => Padding::RawOaep { hash, label },
        };
        Self::Unwrap { wrapped: wrapped.to_vec(), padding }
    }

    /// A signature over `digest`, whose hash is the algorithm's.
    pub(crate) fn sign(digest: &Digest, algorithm: SignAlgorithm) -> Self {
        let hash = algorithm.hash();
        if algorithm.is_pss() {
            return Self::Sign { data: digest.as_bytes().to_vec(), scheme: Scheme::Pss(hash) };
        }
        let data = [digest_info(hash), digest.as_bytes()].concat();
        Self::Sign { data, scheme: Scheme::Pkcs1 }
    }

    /// Runs it on a session with a key whose modulus has `modulus_len` bytes.
    pub(crate) fn run(
        self,
        session: &OpenSession,
        key: ObjectHandle,
        modulus_len: usize,
    ) -> Result<Zeroizing<Vec<u8>>, Failure> {
        let functions = session.module().functions();
        match self {
            Self::Unwrap { mut wrapped, padding } => {
                let mechanism = padding.mechanism();
                let output = functions
                    .decrypt(session, &mechanism, key, &mut wrapped, modulus_len)
                    .map_err(|error| Failure::Token(padding.attribute(error)))?;
                padding.remove(output).map(KeyMaterial::into_zeroizing)
            }
            Self::Sign { mut data, scheme } => {
                let mechanism = scheme.mechanism();
                let Output { mut buffer, len } = functions
                    .sign(session, &mechanism, key, &mut data, modulus_len)
                    .map_err(Failure::Token)?;
                buffer.truncate(len);
                Ok(buffer)
            }
        }
    }
}

impl Padding {
    fn mechanism(&self) -> Mechanism<'_> {
        match self {
            Self::Oaep { hash, label } => {
                let (digest, mgf) = hash_mechanisms(*hash);
                let source = if label.is_empty() {
                    PkcsOaepSource::empty()
                } else {
                    PkcsOaepSource::data_specified(label)
                };
                Mechanism::RsaPkcsOaep(PkcsOaepParams::new(digest, mgf, source))
            }
            Self::RawOaep { .. } => Mechanism::RsaX509,
            Self::Pkcs1 => Mechanism::RsaPkcs,
        }
    }

    /// A token that removes no padding cannot find fault with a value below the modulus: any error
    /// of it is the device's own.
    fn attribute(&self, error: Error) -> Error {
        match (self, error.kind()) {
            (Self::RawOaep { .. }, ErrorKind::UnwrapFailed) => {
                Error::new(ErrorKind::Unavailable, error)
            }
            _ => error,
        }
    }

    fn remove(&self, output: Output) -> Result<KeyMaterial, Failure> {
        let Output { mut buffer, len } = output;
        let Self::RawOaep { hash, label } = self else {
            buffer.truncate(len);
            return Ok(KeyMaterial::new(buffer));
        };
        // Some tokens leave leading zeros out; `len` is at most the buffer's.
        let padded = oaep::left_pad(&mut buffer, len);
        let hash = oaep::OaepHash::from(*hash);
        oaep::unpad(&buffer, hash, hash, label).filter(|_| padded).ok_or_else(|| {
            Failure::Value(Error::new(ErrorKind::UnwrapFailed, "the OAEP padding is wrong"))
        })
    }
}

impl Scheme {
    fn mechanism(&self) -> Mechanism<'static> {
        match self {
            Self::Pkcs1 => Mechanism::RsaPkcs,
            Self::Pss(hash) => {
                let (hash_alg, mgf) = hash_mechanisms(*hash);
                let s_len = (hash.len() as cryptoki_sys::CK_ULONG).into();
                Mechanism::RsaPkcsPss(PkcsPssParams { hash_alg, mgf, s_len })
            }
        }
    }
}

impl Failure {
    /// The error, whether the value or the backend is at fault.
    pub(crate) fn into_error(self) -> Error {
        match self {
            Self::Token(error) | Self::Value(error) => error,
        }
    }
}

/// The mechanism that an algorithm uses, for messages.
pub(crate) fn mechanism_name(algorithm: Algorithm, oaep: Oaep) -> &'static str {
    match (algorithm, oaep) {
        (Algorithm::Rsa15, _) => "CKM_RSA_PKCS",
        (_, Oaep::Native) => "CKM_RSA_PKCS_OAEP",
        (_, Oaep::Software) => "CKM_RSA_X_509",
    }
}

fn hash_mechanisms(hash: Hash) -> (MechanismType, PkcsMgfType) {
    match hash {
        Hash::Sha1 => (MechanismType::SHA1, PkcsMgfType::MGF1_SHA1),
        Hash::Sha256 => (MechanismType::SHA256, PkcsMgfType::MGF1_SHA256),
        Hash::Sha384 => (MechanismType::SHA384, PkcsMgfType::MGF1_SHA384),
        Hash::Sha512 => (MechanismType::SHA512, PkcsMgfType::MGF1_SHA512),
    }
}

/// What precedes a digest in a DigestInfo (RFC 8017 section 9.2 note 1).
fn digest_info(hash: Hash) -> &'static [u8] {
    match hash {
        Hash::Sha1 => b"\x30\x21\x30\x09\x06\x05\x2b\x0e\x03\x02\x1a\x05\x00\x04\x14",
        Hash::Sha256 => {
            b"\x30\x31\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x01\x05\x00\x04\x20"
        }
        Hash::Sha384 => {
            b"\x30\x41\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x02\x05\x00\x04\x30"
        }
        Hash::Sha512 => {
            b"\x30\x51\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x03\x05\x00\x04\x40"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_info_says_how_long_it_and_the_digest_are() {
        for hash in [Hash::Sha1, Hash::Sha256, Hash::Sha384, Hash::Sha512] {
            let info = digest_info(hash);
            assert_eq!(usize::from(info[1]), info.len() - 2 + hash.len());
            assert_eq!(usize::from(*info.last().unwrap()), hash.len());
        }
    }

    #[test]
    fn an_error_of_raw_rsa_is_never_the_values_fault() {
        let error = || Error::new(ErrorKind::UnwrapFailed, "CKR_GENERAL_ERROR from C_Decrypt");
        let raw = Padding::RawOaep { hash: Hash::Sha256, label: Vec::new() };
        assert_eq!(raw.attribute(error()).kind(), ErrorKind::Unavailable);
        let native = Padding::Oaep { hash: Hash::Sha256, label: Vec::new() };
        assert_eq!(native.attribute(error()).kind(), ErrorKind::UnwrapFailed);
    }

    #[test]
    fn a_bad_padding_leaves_the_session_as_good_as_before() {
        let raw = Padding::RawOaep { hash: Hash::Sha256, label: Vec::new() };
        let output = Output { buffer: Zeroizing::new(vec![1; 256]), len: 256 };
        let Err(Failure::Value(error)) = raw.remove(output) else {
            panic!("not the value's fault")
        };
        assert_eq!(error.kind(), ErrorKind::UnwrapFailed);
    }
}
