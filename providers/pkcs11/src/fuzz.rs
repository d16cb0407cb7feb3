//! Mutated inputs for what reads bytes that others wrote: locators of the configuration, and what a token
//! decrypted. The messages of the module's process are in `isolation/fuzz.rs`.

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::{KeySize, OAEP_SHA1_MGF1SHA1, OaepPrivateDecryptingKey, PrivateDecryptingKey};
use claviger_fuzz::{Effort, Fuzz, outcome};
use claviger_provider_api::{KeyMaterial, PrivateKey};
use num_bigint::BigUint;

use crate::oaep::{OaepHash, reference, unpad};
use crate::uri::Locator;

/// Whatever is refused is refused with a sentence that repeats nothing of it, and what is taken is the
/// same after it was written.
fn locator(input: &[u8]) -> u64 {
    let text = String::from_utf8_lossy(input);
    match text.parse::<Locator>() {
        Ok(locator) => {
            let written = locator.to_string();
            assert_eq!(written.parse::<Locator>().as_ref(), Ok(&locator));
            assert!(written.is_ascii());
            let lengths = [&locator.object, &locator.id].map(|part| part.as_ref().map(Vec::len));
            outcome(lengths)
        }
        Err(error) => outcome(error.to_string()),
    }
}

#[test]
fn locators_of_any_bytes() {
    Fuzz::new("locator", 200).run(Effort::Short, locator);
}

#[test]
#[ignore = "long: minutes of mutated inputs"]
fn locators_of_any_bytes_for_minutes() {
    Fuzz::new("locator", 200).run(Effort::Long, locator);
}

/// The first two bytes choose hashes, the third the label; the others are the block before it is masked,
/// so that mutations reach the padding.
struct Block {
    hash: OaepHash,
    mgf1_hash: OaepHash,
    label: &'static [u8],
    em: Vec<u8>,
}

const HASHES: [OaepHash; 4] =
    [OaepHash::Sha1, OaepHash::Sha256, OaepHash::Sha384, OaepHash::Sha512];
const LABELS: [&[u8]; 2] = [b"", b"a label"];

impl Block {
    fn of(input: &[u8]) -> Option<Self> {
        let (&[hash, mgf1_hash, label], block) = input.split_first_chunk()?;
        let of = |byte: u8| HASHES[usize::from(byte) % HASHES.len()];
        let (hash, mgf1_hash) = (of(hash), of(mgf1_hash));
        let label = LABELS[usize::from(label) % LABELS.len()];
        Some(Self { hash, mgf1_hash, label, em: reference::masked(block, hash, mgf1_hash) })
    }
}

/// Agrees with a decoder that is written as RFC 8017 is, with a branch for each step.
fn oaep(input: &[u8]) -> u64 {
    let Some(Block { hash, mgf1_hash, label, em }) = Block::of(input) else { return 0 };
    let found = unpad(&em, hash, mgf1_hash, label);
    let expected = reference::unpad(&em, hash, mgf1_hash, label);
    let step = expected.as_ref().err().copied();
    assert_eq!(found.as_ref().map(KeyMaterial::expose), expected.as_deref().ok());
    outcome((step, hash as u8, found.map(|found| found.expose().len())))
}

/// Blocks that are right, with the hash's own number in front, so that mutations begin at a success.
fn oaep_seeds(fuzz: Fuzz) -> Fuzz {
    let seeds = HASHES.iter().zip(0_u8..).flat_map(|(hash, place)| {
        LABELS.iter().zip(0_u8..).map(move |(label, of_label)| {
            let block = reference::block(*hash, label, 12, b"key material");
            [&[place, place, of_label][..], &block].concat()
        })
    });
    seeds.fold(fuzz, Fuzz::seed)
}

#[test]
fn unpadding_of_any_block() {
    oaep_seeds(Fuzz::new("oaep", 260)).run(Effort::Short, oaep);
}

#[test]
#[ignore = "long: minutes of mutated inputs"]
fn unpadding_of_any_block_for_minutes() {
    oaep_seeds(Fuzz::new("oaep", 260)).run(Effort::Long, oaep);
}

/// A key as numbers, and the same key in aws-lc-rs.
struct Both {
    n: BigUint,
    e: BigUint,
    of_aws_lc: OaepPrivateDecryptingKey,
}

impl Both {
    fn new() -> Self {
        let key = PrivateDecryptingKey::generate(KeySize::Rsa2048).unwrap();
        let der: Pkcs8V1Der<'_> = key.as_der().unwrap();
        let numbers = PrivateKey::from_pkcs8(der.as_ref().to_vec().into()).unwrap();
        let numbers = numbers.numbers().unwrap();
        let number = BigUint::from_bytes_be;
        let (n, e) = (number(numbers.n), number(numbers.e));
        Self { n, e, of_aws_lc: OaepPrivateDecryptingKey::new(key).unwrap() }
    }

    /// The value whose decryption is `em`; none where no value's is.
    fn wrapped(&self, em: &[u8]) -> Option<Vec<u8>> {
        let number = BigUint::from_bytes_be(em);
        if number >= self.n {
            return None;
        }
        let bytes = number.modpow(&self.e, &self.n).to_bytes_be();
        let mut wrapped = vec![0; 256 - bytes.len()];
        wrapped.extend(bytes);
        Some(wrapped)
    }
}

/// Agrees with aws-lc-rs on what a 2048-bit key decrypts.
fn oaep_beside_aws_lc(both: &Both, input: &[u8]) -> u64 {
    let mut block = input.to_vec();
    block.resize(256, 0);
    let em = reference::masked(&block, OaepHash::Sha1, OaepHash::Sha1);
    let Some(wrapped) = both.wrapped(&em) else { return 0 };
    let mut buffer = [0; 256];
    let expected = both.of_aws_lc.decrypt(&OAEP_SHA1_MGF1SHA1, &wrapped, &mut buffer, None).ok();
    let found = unpad(&em, OaepHash::Sha1, OaepHash::Sha1, b"");
    assert_eq!(found.as_ref().map(KeyMaterial::expose), expected.as_deref());
    outcome(expected.map(|expected| expected.len()))
}

fn beside_aws_lc(effort: Effort) {
    let both = Both::new();
    let padding = 256 - 2 * 20 - 2 - 12;
    let block = reference::block(OaepHash::Sha1, b"", padding, b"key material");
    let fuzz = Fuzz::new("oaep", 256).seed(block);
    fuzz.run(effort, |input| oaep_beside_aws_lc(&both, input));
}

#[test]
fn unpadding_beside_aws_lc() {
    beside_aws_lc(Effort::Short);
}

#[test]
#[ignore = "long: minutes of mutated inputs"]
fn unpadding_beside_aws_lc_for_minutes() {
    beside_aws_lc(Effort::Long);
}
