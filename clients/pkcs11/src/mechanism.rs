//! Mechanisms: what a host asks for, in the daemon's algorithms (PKCS#11 2.40 mechanisms,
//! sections 2.1.6 to 2.1.13).

use claviger_provider_api::{Algorithm, Algorithms, Digest, Hash, SignAlgorithm};
use cryptoki_sys::{
    CK_FLAGS, CK_MECHANISM_INFO, CK_MECHANISM_TYPE, CK_ULONG, CKF_DECRYPT, CKF_DIGEST, CKF_ENCRYPT,
    CKF_SIGN, CKF_VERIFY, CKG_MGF1_SHA1, CKG_MGF1_SHA256, CKG_MGF1_SHA384, CKG_MGF1_SHA512,
    CKM_RSA_PKCS, CKM_RSA_PKCS_OAEP, CKM_RSA_PKCS_PSS, CKM_SHA_1, CKM_SHA256, CKM_SHA256_RSA_PKCS,
    CKM_SHA256_RSA_PKCS_PSS, CKM_SHA384, CKM_SHA384_RSA_PKCS, CKM_SHA384_RSA_PKCS_PSS, CKM_SHA512,
    CKM_SHA512_RSA_PKCS, CKM_SHA512_RSA_PKCS_PSS, CKR_KEY_FUNCTION_NOT_PERMITTED,
    CKR_MECHANISM_INVALID, CKR_MECHANISM_PARAM_INVALID, CKZ_DATA_SPECIFIED,
};

use crate::ffi::{Mechanism, Parameter};
use crate::key::Key;
use crate::rv::Result;

/// The longest OAEP label that the daemon takes.
const MAX_LABEL: usize = 1024;

const ALL: [CK_MECHANISM_TYPE; 9] = [
    CKM_RSA_PKCS,
    CKM_RSA_PKCS_OAEP,
    CKM_RSA_PKCS_PSS,
    CKM_SHA256_RSA_PKCS,
    CKM_SHA384_RSA_PKCS,
    CKM_SHA512_RSA_PKCS,
    CKM_SHA256_RSA_PKCS_PSS,
    CKM_SHA384_RSA_PKCS_PSS,
    CKM_SHA512_RSA_PKCS_PSS,
];

const DIGESTS: [CK_MECHANISM_TYPE; 3] = [CKM_SHA256, CKM_SHA384, CKM_SHA512];

/// What a signing or verifying operation is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Input {
    /// A DigestInfo, as CKM_RSA_PKCS takes it; only those of SHA-256, SHA-384 and SHA-512.
    DigestInfo,
    /// A digest of exactly the hash's length.
    Digest(SignAlgorithm),
    /// A message, which is hashed here.
    Message(SignAlgorithm),
}

/// The mechanisms that a key allows, with what can be done with each.
pub(crate) fn of_key(key: &Key) -> impl Iterator<Item = (CK_MECHANISM_TYPE, CK_FLAGS)> {
    ALL.into_iter().map(move |kind| (kind, flags(key, kind))).filter(|(_, flags)| *flags != 0)
}

/// What a token can do whose keys these are, and with which sizes of key.
pub(crate) fn info(keys: &[impl AsRef<Key>], kind: CK_MECHANISM_TYPE) -> Option<CK_MECHANISM_INFO> {
    if digests(keys, kind) {
        return Some(CK_MECHANISM_INFO { ulMinKeySize: 0, ulMaxKeySize: 0, flags: CKF_DIGEST });
    }
    let of_kind = || keys.iter().map(AsRef::as_ref).filter(|key| flags(key, kind) != 0);
    let bits = || of_kind().map(|key| key.public_key.modulus_bits() as CK_ULONG);
    let (min, max) = (bits().min()?, bits().max()?);
    let flags = of_kind().fold(0, |all, key| all | flags(key, kind));
    Some(CK_MECHANISM_INFO { ulMinKeySize: min, ulMaxKeySize: max, flags })
}

/// Whether there may be a key that allows it.
pub(crate) fn is_known(kind: CK_MECHANISM_TYPE) -> bool {
    ALL.contains(&kind) || DIGESTS.contains(&kind)
}

/// The mechanisms of a token whose keys these are.
pub(crate) fn list(keys: &[impl AsRef<Key>]) -> Vec<CK_MECHANISM_TYPE> {
    let of_keys = |kind: &_| keys.iter().any(|key| flags(key.as_ref(), *kind) != 0);
    let digests = DIGESTS.into_iter().filter(|kind| digests(keys, *kind));
    ALL.into_iter().filter(of_keys).chain(digests).collect()
}

/// Whether it is a digest, and one that one of these keys signs or verifies.
fn digests(keys: &[impl AsRef<Key>], kind: CK_MECHANISM_TYPE) -> bool {
    let signed = |key: &Key| {
        key.signs.iter().chain(key.verifies.iter()).any(|one| Some(one.hash()) == hash(kind))
    };
    keys.iter().any(|key| signed(key.as_ref()))
}

/// What an operation that digests makes.
pub(crate) fn digesting(mechanism: &Mechanism<'_>) -> Result<Hash> {
    match (hash(mechanism.kind), mechanism.parameter) {
        (Some(hash), Parameter::None) => Ok(hash),
        (Some(_), _) => Err(CKR_MECHANISM_PARAM_INVALID),
        (None, _) => Err(CKR_MECHANISM_INVALID),
    }
}

fn hash(kind: CK_MECHANISM_TYPE) -> Option<Hash> {
    Some(match kind {
        CKM_SHA256 => Hash::Sha256,
        CKM_SHA384 => Hash::Sha384,
        CKM_SHA512 => Hash::Sha512,
        _ => return None,
    })
}

fn flags(key: &Key, kind: CK_MECHANISM_TYPE) -> CK_FLAGS {
    let wrapping = |fits: &dyn Fn(Algorithm) -> bool| {
        let one = |yes: bool, flag| if yes { flag } else { 0 };
        one(key.unwraps.iter().any(fits), CKF_DECRYPT)
            | one(key.wraps.iter().any(fits), CKF_ENCRYPT)
    };
    let signing = |fits: &dyn Fn(SignAlgorithm) -> bool| {
        let one = |yes: bool, flag| if yes { flag } else { 0 };
        one(key.signs.iter().any(fits), CKF_SIGN) | one(key.verifies.iter().any(fits), CKF_VERIFY)
    };
    match kind {
        CKM_RSA_PKCS => {
            wrapping(&|algorithm| algorithm == Algorithm::Rsa15)
                | signing(&|algorithm| !algorithm.is_pss())
        }
        CKM_RSA_PKCS_OAEP => wrapping(&|algorithm| algorithm.hash().is_some()),
        CKM_RSA_PKCS_PSS => signing(&SignAlgorithm::is_pss),
        kind => match message(kind) {
            Some(algorithm) => signing(&|other| other == algorithm),
            None => 0,
        },
    }
}

/// The algorithm and label of an encryption or decryption with a key that allows these algorithms.
pub(crate) fn wrapping(
    mechanism: &Mechanism<'_>,
    allowed: Algorithms,
) -> Result<(Algorithm, Vec<u8>)> {
    let (algorithm, label) = parse(mechanism)?;
    if allowed.is_empty() {
        return Err(CKR_KEY_FUNCTION_NOT_PERMITTED);
    }
    if !allowed.contains(algorithm) {
        // OAEP with another hash than the key's is a wrong parameter of the right mechanism.
        let is_oaep = |algorithm: Algorithm| algorithm.hash().is_some();
        let other_hash = is_oaep(algorithm) && allowed.iter().any(is_oaep);
        return Err(if other_hash { CKR_MECHANISM_PARAM_INVALID } else { CKR_MECHANISM_INVALID });
    }
    Ok((algorithm, label))
}

fn parse(mechanism: &Mechanism<'_>) -> Result<(Algorithm, Vec<u8>)> {
    match (mechanism.kind, mechanism.parameter) {
        (CKM_RSA_PKCS, Parameter::None) => Ok((Algorithm::Rsa15, Vec::new())),
        (CKM_RSA_PKCS_OAEP, Parameter::Oaep { hash, mgf, source, label }) => {
            let algorithm = match (hash, mgf) {
                (CKM_SHA_1, CKG_MGF1_SHA1) => Algorithm::RsaOaep,
                (CKM_SHA256, CKG_MGF1_SHA256) => Algorithm::RsaOaep256,
                (CKM_SHA384, CKG_MGF1_SHA384) => Algorithm::RsaOaep384,
                (CKM_SHA512, CKG_MGF1_SHA512) => Algorithm::RsaOaep512,
                // Above all another MGF than the hash, Java's default.
                _ => return Err(CKR_MECHANISM_PARAM_INVALID),
            };
            // Without a label some hosts do not say where it comes from.
            let source_is_known = source == CKZ_DATA_SPECIFIED || label.is_empty() && source == 0;
            if !source_is_known || label.len() > MAX_LABEL {
                return Err(CKR_MECHANISM_PARAM_INVALID);
            }
            Ok((algorithm, label.to_vec()))
        }
        (CKM_RSA_PKCS | CKM_RSA_PKCS_OAEP, _) => Err(CKR_MECHANISM_PARAM_INVALID),
        _ => Err(CKR_MECHANISM_INVALID),
    }
}

/// What an operation that signs or verifies will be given.
pub(crate) fn signing(mechanism: &Mechanism<'_>) -> Result<Input> {
    let kind = mechanism.kind;
    match mechanism.parameter {
        Parameter::None if kind == CKM_RSA_PKCS => Ok(Input::DigestInfo),
        Parameter::None => match message(kind) {
            Some(algorithm) if !algorithm.is_pss() => Ok(Input::Message(algorithm)),
            Some(_) => Err(CKR_MECHANISM_PARAM_INVALID),
            None if kind == CKM_RSA_PKCS_PSS => Err(CKR_MECHANISM_PARAM_INVALID),
            None => Err(CKR_MECHANISM_INVALID),
        },
        Parameter::Pss { hash, mgf, salt_len } => {
            let algorithm = pss(hash, mgf, salt_len).ok_or(CKR_MECHANISM_PARAM_INVALID)?;
            match message(kind) {
                None => Ok(Input::Digest(algorithm)),
                Some(of_kind) if of_kind == algorithm => Ok(Input::Message(algorithm)),
                Some(_) => Err(CKR_MECHANISM_PARAM_INVALID),
            }
        }
        _ if ALL.contains(&kind) => Err(CKR_MECHANISM_PARAM_INVALID),
        _ => Err(CKR_MECHANISM_INVALID),
    }
}

/// The daemon's PSS: MGF1 with the same hash, and a salt as long as its digest.
fn pss(hash: CK_ULONG, mgf: CK_ULONG, salt_len: CK_ULONG) -> Option<SignAlgorithm> {
    let algorithm = match (hash, mgf) {
        (CKM_SHA256, CKG_MGF1_SHA256) => SignAlgorithm::Ps256,
        (CKM_SHA384, CKG_MGF1_SHA384) => SignAlgorithm::Ps384,
        (CKM_SHA512, CKG_MGF1_SHA512) => SignAlgorithm::Ps512,
        _ => return None,
    };
    (salt_len as usize == algorithm.hash().len()).then_some(algorithm)
}

/// The algorithm of a mechanism that hashes.
fn message(kind: CK_MECHANISM_TYPE) -> Option<SignAlgorithm> {
    Some(match kind {
        CKM_SHA256_RSA_PKCS => SignAlgorithm::Rs256,
        CKM_SHA384_RSA_PKCS => SignAlgorithm::Rs384,
        CKM_SHA512_RSA_PKCS => SignAlgorithm::Rs512,
        CKM_SHA256_RSA_PKCS_PSS => SignAlgorithm::Ps256,
        CKM_SHA384_RSA_PKCS_PSS => SignAlgorithm::Ps384,
        CKM_SHA512_RSA_PKCS_PSS => SignAlgorithm::Ps512,
        _ => return None,
    })
}

/// The digest in a DigestInfo (RFC 8017 section 9.2, note 1) and the algorithm that signs it; none
/// for anything else that a host may want signed: the daemon signs digests and nothing but digests.
pub(crate) fn digest_info(data: &[u8]) -> Option<(SignAlgorithm, Digest)> {
    /// `SEQUENCE { SEQUENCE { OID 2.16.840.1.101.3.4.2.N, NULL }, OCTET STRING }` for a hash.
    fn head(number: u8, length: u8) -> [u8; 19] {
        let mut head = *b"\x30\0\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\0\x05\x00\x04\0";
        (head[1], head[14], head[18]) = (17 + length, number, length);
        head
    }
    [
        (SignAlgorithm::Rs256, head(1, 32)),
        (SignAlgorithm::Rs384, head(2, 48)),
        (SignAlgorithm::Rs512, head(3, 64)),
    ]
    .into_iter()
    .find_map(|(algorithm, head)| {
        Some((algorithm, Digest::new(algorithm.hash(), data.strip_prefix(&head)?)?))
    })
}

/// The hash as aws-lc has it.
pub(crate) fn hasher(hash: Hash) -> aws_lc_rs::digest::Context {
    aws_lc_rs::digest::Context::new(claviger_provider_api::public_key::aws_lc_digest(hash))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::tests::key;
    use std::sync::Arc;

    fn oaep(hash: CK_ULONG, mgf: CK_ULONG, source: CK_ULONG, label: &[u8]) -> Mechanism<'_> {
        let parameter = Parameter::Oaep { hash, mgf, source, label };
        Mechanism { kind: CKM_RSA_PKCS_OAEP, parameter }
    }

    fn pss(
        kind: CK_ULONG,
        hash: CK_ULONG,
        mgf: CK_ULONG,
        salt_len: CK_ULONG,
    ) -> Mechanism<'static> {
        Mechanism { kind, parameter: Parameter::Pss { hash, mgf, salt_len } }
    }

    #[test]
    fn another_mgf_than_the_hash_is_an_invalid_parameter() {
        let good = parse(&oaep(CKM_SHA_1, CKG_MGF1_SHA1, CKZ_DATA_SPECIFIED, b"")).unwrap();
        assert_eq!(good, (Algorithm::RsaOaep, vec![]));
        let good = parse(&oaep(CKM_SHA512, CKG_MGF1_SHA512, CKZ_DATA_SPECIFIED, b"x")).unwrap();
        assert_eq!(good, (Algorithm::RsaOaep512, b"x".to_vec()));
        let long = [0; MAX_LABEL + 1];
        for bad in [
            oaep(CKM_SHA256, CKG_MGF1_SHA1, CKZ_DATA_SPECIFIED, b""),
            oaep(CKM_SHA_1, CKG_MGF1_SHA256, CKZ_DATA_SPECIFIED, b""),
            oaep(CKM_SHA_1, CKG_MGF1_SHA1, 0, b"label"),
            oaep(CKM_SHA_1, CKG_MGF1_SHA1, 2, b""),
            oaep(CKM_SHA_1, CKG_MGF1_SHA1, CKZ_DATA_SPECIFIED, &long),
            Mechanism { kind: CKM_RSA_PKCS_OAEP, parameter: Parameter::None },
            Mechanism { kind: CKM_RSA_PKCS, parameter: Parameter::Other },
        ] {
            assert_eq!(parse(&bad), Err(CKR_MECHANISM_PARAM_INVALID), "{bad:?}");
        }
        let other = Mechanism { kind: CKM_SHA256_RSA_PKCS, parameter: Parameter::None };
        assert_eq!(parse(&other), Err(CKR_MECHANISM_INVALID));
    }

    #[test]
    fn pss_has_one_hash_and_a_salt_of_its_length() {
        let good = pss(CKM_RSA_PKCS_PSS, CKM_SHA256, CKG_MGF1_SHA256, 32);
        assert_eq!(signing(&good), Ok(Input::Digest(SignAlgorithm::Ps256)));
        let good = pss(CKM_SHA384_RSA_PKCS_PSS, CKM_SHA384, CKG_MGF1_SHA384, 48);
        assert_eq!(signing(&good), Ok(Input::Message(SignAlgorithm::Ps384)));
        for bad in [
            pss(CKM_RSA_PKCS_PSS, CKM_SHA256, CKG_MGF1_SHA1, 32),
            pss(CKM_RSA_PKCS_PSS, CKM_SHA256, CKG_MGF1_SHA256, 20),
            pss(CKM_RSA_PKCS_PSS, CKM_SHA_1, CKG_MGF1_SHA1, 20),
            pss(CKM_SHA256_RSA_PKCS_PSS, CKM_SHA384, CKG_MGF1_SHA384, 48),
            Mechanism { kind: CKM_RSA_PKCS_PSS, parameter: Parameter::None },
            Mechanism { kind: CKM_SHA256_RSA_PKCS_PSS, parameter: Parameter::Other },
        ] {
            assert_eq!(signing(&bad), Err(CKR_MECHANISM_PARAM_INVALID), "{bad:?}");
        }
        let other = Mechanism { kind: CKM_SHA_1, parameter: Parameter::None };
        assert_eq!(signing(&other), Err(CKR_MECHANISM_INVALID));
    }

    #[test]
    fn only_a_digest_info_of_a_known_hash_is_signed() {
        let known = hex::decode("3031300d060960864801650304020105000420").unwrap();
        let data = [known.as_slice(), &[7; 32]].concat();
        let (algorithm, digest) = digest_info(&data).unwrap();
        assert_eq!((algorithm, digest.as_bytes()), (SignAlgorithm::Rs256, &[7; 32][..]));
        let known = hex::decode("3051300d060960864801650304020305000440").unwrap();
        let data = [known.as_slice(), &[7; 64]].concat();
        assert_eq!(digest_info(&data).unwrap().0, SignAlgorithm::Rs512);
        let sha1 = hex::decode("3021300906052b0e03021a05000414").unwrap();
        for bad in [
            &[sha1.as_slice(), &[7; 20]].concat()[..],
            &data[..data.len() - 1],
            &[data.as_slice(), &[0]].concat(),
            &[7; 32],
            b"",
        ] {
            assert!(digest_info(bad).is_none(), "{}", hex::encode(bad));
        }
    }

    #[test]
    fn the_list_of_mechanisms_says_what_the_keys_allow() {
        let unwrapping = Arc::new(key(&["RSA-OAEP", "RSA1_5"], &[]));
        let signing = Arc::new(key(&["RSA-OAEP-256"], &["RS256", "PS512"]));
        assert_eq!(list(&[Arc::clone(&unwrapping)]), [CKM_RSA_PKCS, CKM_RSA_PKCS_OAEP]);
        let both = [unwrapping, signing];
        assert_eq!(
            list(&both),
            [
                CKM_RSA_PKCS,
                CKM_RSA_PKCS_OAEP,
                CKM_RSA_PKCS_PSS,
                CKM_SHA256_RSA_PKCS,
                CKM_SHA512_RSA_PKCS_PSS,
                CKM_SHA256,
                CKM_SHA512
            ]
        );
        assert_eq!(info(&both, CKM_SHA512).unwrap().flags, CKF_DIGEST);
        assert_eq!(info(&both, CKM_SHA384).map(|info| info.flags), None);
        let one = info(&both, CKM_RSA_PKCS).unwrap();
        assert_eq!(one.flags, CKF_DECRYPT | CKF_ENCRYPT | CKF_SIGN | CKF_VERIFY);
        assert_eq!((one.ulMinKeySize, one.ulMaxKeySize), (2048, 2048));
        assert_eq!(info(&both, CKM_RSA_PKCS_OAEP).unwrap().flags, CKF_DECRYPT | CKF_ENCRYPT);
        assert_eq!(info(&both, CKM_SHA384_RSA_PKCS).map(|info| info.flags), None);
        assert!(is_known(CKM_SHA384_RSA_PKCS) && !is_known(CKM_SHA_1));
        assert!(list(&[] as &[Arc<Key>]).is_empty());
    }
}
