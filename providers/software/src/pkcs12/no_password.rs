//! PKCS#12 made without any password: its key derivation (RFC 7292 appendix B) runs over no octets
//! at all, and not over the two zeros that end an empty password.

use aws_lc_rs::hmac;
use cbc::cipher::block_padding::Pkcs7;
use cbc::cipher::{BlockModeDecrypt, KeyIvInit};
use pkcs8::ObjectIdentifier;
use pkcs8::der::asn1::AnyRef;
use pkcs8::der::{Decode, Reader, SliceReader};
use pkcs8::spki::AlgorithmIdentifierRef;
use pkcs12::kdf::{Pkcs12KeyType, derive_key};
use sha1::Sha1;
use sha2::{Sha256, Sha384, Sha512};
use zeroize::Zeroizing;

use super::{Mac, Pfx, Pkcs8, sequence};

const DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.7.1");
const KEY_BAG: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.12.10.1.1");
const SHROUDED_KEY_BAG: ObjectIdentifier =
    ObjectIdentifier::new_unwrap("1.2.840.113549.1.12.10.1.2");
/// pbeWithSHAAnd3-KeyTripleDES-CBC.
const TRIPLE_DES: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.12.1.3");

const MAX_ITERATIONS: u32 = 10_000_000;

/// The private keys of a file whose MAC says that it was made so; nothing where it was not.
pub(super) fn open(pfx: &Pfx<'_>) -> Option<Vec<Pkcs8>> {
    verify(pfx.mac.as_ref()?, pfx.content)?;
    let mut keys = Vec::new();
    for safe in all(AnyRef::from_der(pfx.content).ok()?)? {
        let (content_type, content) = tagged(safe)?;
        // Keys lie in plain contents, each encrypted alone; encrypted ones hold certificates.
        if content_type != DATA {
            continue;
        }
        let octets = AnyRef::from_der(content).ok()?;
        for bag in all(AnyRef::from_der(octets.value()).ok()?)? {
            let (bag_type, content) = tagged(bag)?;
            if bag_type == KEY_BAG {
                keys.push(Zeroizing::new(content.to_vec()));
            } else if bag_type == SHROUDED_KEY_BAG {
                keys.push(decrypt(content)?);
            }
        }
    }
    Some(keys)
}

fn verify(mac: &Mac<'_>, content: &[u8]) -> Option<()> {
    let Mac { algorithm, digest, salt, iterations } = mac;
    let rounds = rounds(*iterations)?;
    let (hmac, key) = match algorithm.oid.to_string().as_str() {
        "1.3.14.3.2.26" => (
            hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY,
            derive_key::<Sha1>(&[], salt, Pkcs12KeyType::Mac, rounds, 20),
        ),
        "2.16.840.1.101.3.4.2.1" => {
            (hmac::HMAC_SHA256, derive_key::<Sha256>(&[], salt, Pkcs12KeyType::Mac, rounds, 32))
        }
        "2.16.840.1.101.3.4.2.2" => {
            (hmac::HMAC_SHA384, derive_key::<Sha384>(&[], salt, Pkcs12KeyType::Mac, rounds, 48))
        }
        "2.16.840.1.101.3.4.2.3" => {
            (hmac::HMAC_SHA512, derive_key::<Sha512>(&[], salt, Pkcs12KeyType::Mac, rounds, 64))
        }
        _ => return None,
    };
    hmac::verify(&hmac::Key::new(hmac, &key), content, digest).ok()
}

/// EncryptedPrivateKeyInfo in one of the two forms that .NET writes. PBES2 takes no octets for no
/// password in any case.
fn decrypt(encrypted: &[u8]) -> Option<Pkcs8> {
    if let Ok(info) = pkcs8::EncryptedPrivateKeyInfoRef::try_from(encrypted) {
        return Some(info.decrypt([]).ok()?.to_bytes());
    }
    let read = sequence(AnyRef::from_der(encrypted).ok()?, |reader| {
        Ok((AlgorithmIdentifierRef::decode(reader)?, AnyRef::decode(reader)?.value()))
    });
    let (algorithm, data) = read.ok()?;
    let parameters = algorithm.parameters.filter(|_| algorithm.oid == TRIPLE_DES)?;
    let read =
        sequence(parameters, |reader| Ok((AnyRef::decode(reader)?.value(), u32::decode(reader)?)));
    let (salt, iterations) = read.ok()?;
    let derived = |kind, length| {
        Some(Zeroizing::new(derive_key::<Sha1>(&[], salt, kind, rounds(iterations)?, length)))
    };
    let key = derived(Pkcs12KeyType::EncryptionKey, 24)?;
    let iv = derived(Pkcs12KeyType::Iv, 8)?;
    let mut buffer = Zeroizing::new(data.to_vec());
    let cipher = cbc::Decryptor::<des::TdesEde3>::new_from_slices(&key, &iv).ok()?;
    let length = cipher.decrypt_padded::<Pkcs7>(&mut buffer).ok()?.len();
    Some(Zeroizing::new(buffer[..length].to_vec()))
}

fn rounds(iterations: u32) -> Option<i32> {
    (1..=MAX_ITERATIONS).contains(&iterations).then_some(iterations.cast_signed())
}

/// The elements of a SEQUENCE.
fn all(sequence: AnyRef<'_>) -> Option<Vec<AnyRef<'_>>> {
    let mut reader = SliceReader::new(sequence.value()).ok()?;
    let mut found = Vec::new();
    while !reader.is_finished() {
        found.push(AnyRef::decode(&mut reader).ok()?);
    }
    Some(found)
}

/// An OBJECT IDENTIFIER and what stands behind it under an explicit tag.
fn tagged(sequence: AnyRef<'_>) -> Option<(ObjectIdentifier, &[u8])> {
    let mut reader = SliceReader::new(sequence.value()).ok()?;
    let oid = ObjectIdentifier::decode(&mut reader).ok()?;
    Some((oid, AnyRef::decode(&mut reader).ok()?.value()))
}
