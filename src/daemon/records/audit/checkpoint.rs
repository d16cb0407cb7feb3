//! Checkpoints: signed statements of how long the audit log is and what its last line is.
//!
//! A checkpoint is a signed note (C2SP signed-note and tlog-checkpoint): origin, number of lines and
//! Base64 of the last line's SHA-256, a line each, an empty line, and a signature line. The key is
//! Ed25519 in a file, or RSA in a backend. Tools that know signed notes verify the first kind; `claviger
//! audit verify` verifies both.

use std::fmt;
use std::path::Path;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use claviger_provider_api::public_key::{aws_lc_digest, sha256};
use claviger_provider_api::{Digest, PublicKey, SecretSource, SignAlgorithm};
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject;

use super::chain::Head;

/// The signature type of Ed25519 in a key's identifier (C2SP signed-note).
const ED25519_TYPE: u8 = 1;
/// The signature type of schemes without a number, which a name follows (C2SP signed-note).
const NAMED_TYPE: u8 = 0xff;
/// The name of ours: it and the JWA name are a line, and the SubjectPublicKeyInfo (DER) follows.
const RSA_TYPE: &str = "claviger.v1 ";
/// What begins a signature line: an em dash and a space.
const SIGNED_BY: &str = "\u{2014} ";

/// Signs checkpoints of one log with an Ed25519 key.
pub struct Signer {
    origin: String,
    key: Ed25519KeyPair,
}

/// Verifies checkpoints of one log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verifier {
    origin: String,
    key: VerifyingKey,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum VerifyingKey {
    Ed25519([u8; 32]),
    /// The SubjectPublicKeyInfo, DER.
    Rsa(SignAlgorithm, Vec<u8>),
}

/// The signature of a key in a backend.
#[derive(Clone, Debug)]
pub struct Signed {
    /// How it signed.
    pub algorithm: SignAlgorithm,
    /// Its SubjectPublicKeyInfo, DER.
    pub spki: Vec<u8>,
    /// The signature.
    pub signature: Vec<u8>,
}

/// Why a key or a checkpoint is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    /// The private key is no Ed25519 key in PKCS#8.
    #[error(
        "is not an Ed25519 private key in PKCS#8; `openssl genpkey -algorithm ed25519` makes one"
    )]
    NotEd25519,
    /// An origin names a log; it stands in a line of its own.
    #[error(
        "{0:?} is no origin; write a name without blanks and \"+\", such as \"claviger.example.org/audit\""
    )]
    Origin(String),
    /// The public key is no RSA key.
    #[error("is not an RSA public key; `claviger keys public-key` prints it")]
    NotRsa,
    /// The public key is not one as `claviger audit public-key` prints it.
    #[error("is not a public key of checkpoints; `claviger audit public-key` prints it")]
    NotAPublicKey,
    /// The text is no signed note with a checkpoint.
    #[error("is not a checkpoint")]
    NotACheckpoint,
    /// It speaks of another log.
    #[error("is of another log: its origin is {0:?}")]
    OtherOrigin(String),
    /// The signature is missing or wrong.
    #[error("has no valid signature by this key")]
    Signature,
}

impl Signer {
    /// A signer with the Ed25519 key in `pkcs8` (DER, RFC 8410), for the log named `origin`.
    pub fn new(origin: &str, pkcs8: &[u8]) -> Result<Self, CheckpointError> {
        check_origin(origin)?;
        let key = Ed25519KeyPair::from_pkcs8_maybe_unchecked(pkcs8)
            .map_err(|_| CheckpointError::NotEd25519)?;
        Ok(Self { origin: origin.to_owned(), key })
    }

    /// A signer with the Ed25519 key in a PEM file, which no other user may read. The error says what
    /// is wrong with the file.
    pub fn from_pem_file(origin: &str, path: &Path) -> Result<Self, String> {
        let source = SecretSource::File(path.to_owned());
        let pem = source.read_blocking().map_err(|error| error.to_string())?;
        let key = PrivatePkcs8KeyDer::from_pem_slice(pem.expose())
            .map_err(|_| CheckpointError::NotEd25519.to_string())?;
        Self::new(origin, key.secret_pkcs8_der()).map_err(|error| error.to_string())
    }

    /// What verifies its checkpoints.
    pub fn verifier(&self) -> Verifier {
        let public_key = self.key.public_key().as_ref();
        let public_key = public_key.try_into().expect("an Ed25519 public key has 32 bytes");
        Verifier { origin: self.origin.clone(), key: VerifyingKey::Ed25519(public_key) }
    }

    /// The signed note that says: the log has `head.records` lines, the last one with this hash.
    pub fn sign(&self, head: &Head) -> String {
        let text = text(&self.origin, head);
        self.verifier().note(&text, self.key.sign(text.as_bytes()).as_ref())
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer").field("origin", &self.origin).finish_non_exhaustive()
    }
}

impl Verifier {
    /// What verifies the checkpoints of an RSA key, from its SubjectPublicKeyInfo (DER).
    pub fn rsa(
        origin: &str,
        algorithm: SignAlgorithm,
        spki: &[u8],
    ) -> Result<Self, CheckpointError> {
        check_origin(origin)?;
        let key = PublicKey::from_spki(spki).map_err(|_| CheckpointError::NotRsa)?;
        let key = VerifyingKey::Rsa(algorithm, key.spki().to_vec());
        Ok(Self { origin: origin.to_owned(), key })
    }

    /// The signed note of a checkpoint's text.
    pub(super) fn note(&self, text: &str, signature: &[u8]) -> String {
        let signature = [&self.key_id(), signature].concat();
        format!("{text}\n{SIGNED_BY}{} {}\n", self.origin, BASE64.encode(signature))
    }

    /// From a public key in the form of C2SP signed-note: `ORIGIN+ID+KEY`.
    pub fn parse(key: &str) -> Result<Self, CheckpointError> {
        let refused = || CheckpointError::NotAPublicKey;
        let mut parts = key.trim().splitn(3, '+');
        let (Some(origin), Some(id), Some(encoded)) = (parts.next(), parts.next(), parts.next())
        else {
            return Err(refused());
        };
        let decoded = BASE64.decode(encoded).map_err(|_| refused())?;
        let verifier = match decoded.as_slice() {
            [ED25519_TYPE, key @ ..] => {
                check_origin(origin)?;
                let key = VerifyingKey::Ed25519(key.try_into().map_err(|_| refused())?);
                Self { origin: origin.to_owned(), key }
            }
            [NAMED_TYPE, named @ ..] => {
                let (algorithm, spki) = named_rsa(named).ok_or_else(refused)?;
                Self::rsa(origin, algorithm, spki)?
            }
            _ => return Err(refused()),
        };
        if id != hex::encode(verifier.key_id()) {
            return Err(refused());
        }
        Ok(verifier)
    }

    /// What a signed note's checkpoint says, if this key signed it for this log.
    pub fn verify(&self, note: &str) -> Result<Head, CheckpointError> {
        let (origin, head) = parse(note)?;
        if origin != self.origin {
            return Err(CheckpointError::OtherOrigin(origin.to_owned()));
        }
        let text = text(origin, &head);
        let by_us = |line: &str| -> Option<Vec<u8>> {
            let encoded = line.strip_prefix(SIGNED_BY)?.strip_prefix(origin)?.strip_prefix(' ')?;
            let decoded = BASE64.decode(encoded).ok()?;
            decoded.strip_prefix(&self.key_id()).map(<[u8]>::to_vec)
        };
        let mut signatures = note.lines().skip(4).filter_map(by_us);
        if !signatures.any(|signature| self.key.is_good(text.as_bytes(), &signature)) {
            return Err(CheckpointError::Signature);
        }
        Ok(head)
    }

    fn key_id(&self) -> [u8; 4] {
        let named = [self.origin.as_bytes(), b"\n", &self.key.typed()].concat();
        let [a, b, c, d, ..] = sha256(&named);
        [a, b, c, d]
    }
}

impl fmt::Display for Verifier {
    /// As in C2SP signed-note: `ORIGIN+ID+KEY`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let typed = BASE64.encode(self.key.typed());
        write!(f, "{}+{}+{typed}", self.origin, hex::encode(self.key_id()))
    }
}

impl VerifyingKey {
    /// The signature type, and the key.
    fn typed(&self) -> Vec<u8> {
        match self {
            Self::Ed25519(key) => [&[ED25519_TYPE][..], key].concat(),
            Self::Rsa(algorithm, spki) => {
                let named = format!("{RSA_TYPE}{}\n", algorithm.name());
                [&[NAMED_TYPE][..], named.as_bytes(), spki].concat()
            }
        }
    }

    fn is_good(&self, text: &[u8], signature: &[u8]) -> bool {
        match self {
            Self::Ed25519(key) => {
                UnparsedPublicKey::new(&ED25519, key).verify(text, signature).is_ok()
            }
            Self::Rsa(algorithm, spki) => PublicKey::from_spki(spki)
                .is_ok_and(|key| key.verify(&digest_of(text, *algorithm), *algorithm, signature)),
        }
    }
}

/// What an algorithm signs of a text.
pub fn digest_of(text: &[u8], algorithm: SignAlgorithm) -> Digest {
    let hash = algorithm.hash();
    let digest = aws_lc_rs::digest::digest(aws_lc_digest(hash), text);
    Digest::new(hash, digest.as_ref()).expect("a digest has its hash's length")
}

/// Our kind of key behind [`NAMED_TYPE`].
fn named_rsa(named: &[u8]) -> Option<(SignAlgorithm, &[u8])> {
    let end = named.iter().position(|byte| *byte == b'\n')?;
    let name = std::str::from_utf8(&named[..end]).ok()?.strip_prefix(RSA_TYPE)?;
    let algorithm = SignAlgorithm::ALL.into_iter().find(|algorithm| algorithm.name() == name)?;
    Some((algorithm, &named[end + 1..]))
}

/// What a checkpoint says, whether or not its signature is good.
pub fn parse(note: &str) -> Result<(&str, Head), CheckpointError> {
    let mut lines = note.lines();
    let mut next = || lines.next().ok_or(CheckpointError::NotACheckpoint);
    let (origin, records, hash, empty) = (next()?, next()?, next()?, next()?);
    let records = records.parse().map_err(|_| CheckpointError::NotACheckpoint)?;
    let hash = BASE64.decode(hash).map_err(|_| CheckpointError::NotACheckpoint)?;
    let sha256 = hash.try_into().map_err(|_| CheckpointError::NotACheckpoint)?;
    if !empty.is_empty() {
        return Err(CheckpointError::NotACheckpoint);
    }
    Ok((origin, Head { records, sha256 }))
}

/// What is signed: it ends in a line end.
pub(super) fn text(origin: &str, head: &Head) -> String {
    format!("{origin}\n{}\n{}\n", head.records, BASE64.encode(head.sha256))
}

/// Whether `origin` may name a log: printable, without blanks and `+` (C2SP signed-note).
pub(super) fn check_origin(origin: &str) -> Result<(), CheckpointError> {
    let good = |c: char| c.is_ascii_graphic() && c != '+';
    if !origin.is_empty() && origin.len() <= 128 && origin.chars().all(good) {
        Ok(())
    } else {
        Err(CheckpointError::Origin(origin.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORIGIN: &str = "claviger.example.org/audit";

    fn signer() -> Signer {
        let key = Ed25519KeyPair::generate().unwrap().to_pkcs8().unwrap();
        Signer::new(ORIGIN, key.as_ref()).unwrap()
    }

    #[test]
    fn a_checkpoint_says_size_and_head_to_the_one_who_has_the_public_key() {
        let (signer, head) = (signer(), Head { records: 12, sha256: [7; 32] });
        let note = signer.sign(&head);
        assert!(note.starts_with("claviger.example.org/audit\n12\nBwcH"), "{note}");
        let verifier = Verifier::parse(&signer.verifier().to_string()).unwrap();
        assert_eq!(verifier, signer.verifier());
        assert_eq!(verifier.verify(&note), Ok(head));
    }

    #[test]
    fn each_changed_character_of_what_is_signed_is_found() {
        let signer = signer();
        let note = signer.sign(&Head { records: 12, sha256: [7; 32] });
        let signed_until = note.find("\n\n").unwrap();
        for at in 0..signed_until {
            let mut changed = note.clone().into_bytes();
            changed[at] = if changed[at] == b'0' { b'1' } else { b'0' };
            let changed = String::from_utf8(changed).unwrap();
            assert!(signer.verifier().verify(&changed).is_err(), "at {at}");
        }
    }

    #[test]
    fn another_key_and_another_log_are_refused() {
        let (ours, other) = (signer(), signer());
        let note = ours.sign(&Head::START);
        assert_eq!(other.verifier().verify(&note), Err(CheckpointError::Signature));
        let renamed = note.replace("claviger.example.org", "other.example.org");
        let refused = CheckpointError::OtherOrigin("other.example.org/audit".to_owned());
        assert_eq!(ours.verifier().verify(&renamed), Err(refused));
        for text in ["", "a\nb\nc\n\n", "a\n1\nAAAA\n\n"] {
            assert_eq!(
                ours.verifier().verify(text),
                Err(CheckpointError::NotACheckpoint),
                "{text:?}"
            );
        }
    }

    #[test]
    fn an_rsa_key_of_a_backend_verifies_with_its_algorithm_only() {
        use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
        use aws_lc_rs::rand::SystemRandom;
        use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
        use aws_lc_rs::signature::RSA_PSS_SHA256;
        let pair = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
        let spki: PublicKeyX509Der<'_> = pair.public_key().as_der().unwrap();
        let head = Head { records: 7, sha256: [9; 32] };
        let signed_text = text(ORIGIN, &head);
        let mut signature = vec![0; pair.public_modulus_len()];
        let random = SystemRandom::new();
        pair.sign(&RSA_PSS_SHA256, &random, signed_text.as_bytes(), &mut signature).unwrap();

        let verifier = Verifier::rsa(ORIGIN, SignAlgorithm::Ps256, spki.as_ref()).unwrap();
        let note = verifier.note(&signed_text, &signature);
        assert_eq!(verifier.verify(&note), Ok(head));
        let printed = verifier.to_string();
        assert_eq!(Verifier::parse(&printed).unwrap(), verifier);
        let other = Verifier::rsa(ORIGIN, SignAlgorithm::Rs256, spki.as_ref()).unwrap();
        assert_eq!(other.verify(&note), Err(CheckpointError::Signature));
        assert_eq!(
            verifier.verify(&note.replace("\n7\n", "\n8\n")),
            Err(CheckpointError::Signature)
        );
        assert_eq!(Verifier::rsa(ORIGIN, SignAlgorithm::Ps256, b"x"), Err(CheckpointError::NotRsa));
    }

    #[test]
    fn a_public_key_of_go_s_package_note_is_read_and_one_with_a_wrong_id_is_not() {
        let key = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
        assert_eq!(Verifier::parse(key).unwrap().to_string(), key);
        let refused = Err(CheckpointError::NotAPublicKey);
        assert_eq!(Verifier::parse(&key.replace("c74f", "c74e")), refused);
        assert_eq!(Verifier::parse("a+b"), refused);
        assert!(matches!(Signer::new("a b", &[]), Err(CheckpointError::Origin(_))));
    }
}
