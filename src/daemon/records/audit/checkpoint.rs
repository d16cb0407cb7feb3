//! Checkpoints: signed statements of how long the audit log is and what its last line is.
//!
//! A checkpoint is a signed note (C2SP signed-note and tlog-checkpoint): origin, number of lines and
//! Base64 of the last line's SHA-256, a line each, an empty line, and a signature line. The key is
//! Ed25519. Tools that know signed notes verify it; `claviger audit verify` does too.

use std::fmt;
use std::path::Path;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use claviger_provider_api::SecretSource;
use claviger_provider_api::public_key::sha256;
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject;

use super::chain::Head;

/// The signature type of Ed25519 in a key's identifier (C2SP signed-note).
const ED25519_TYPE: u8 = 1;
/// What begins a signature line: an em dash and a space.
const SIGNED_BY: &str = "\u{2014} ";

/// Signs checkpoints of one log.
pub struct Signer {
    origin: String,
    key: Ed25519KeyPair,
}

/// Verifies checkpoints of one log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verifier {
    origin: String,
    public_key: [u8; 32],
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
        Verifier { origin: self.origin.clone(), public_key }
    }

    /// The signed note that says: the log has `head.records` lines, the last one with this hash.
    pub fn sign(&self, head: &Head) -> String {
        let text = text(&self.origin, head);
        let mut signature = self.verifier().key_id().to_vec();
        signature.extend_from_slice(self.key.sign(text.as_bytes()).as_ref());
        format!("{text}\n{SIGNED_BY}{} {}\n", self.origin, BASE64.encode(signature))
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer").field("origin", &self.origin).finish_non_exhaustive()
    }
}

impl Verifier {
    /// From a public key in the form of C2SP signed-note: `ORIGIN+ID+KEY`.
    pub fn parse(key: &str) -> Result<Self, CheckpointError> {
        let refused = || CheckpointError::NotAPublicKey;
        let mut parts = key.trim().splitn(3, '+');
        let (Some(origin), Some(id), Some(encoded)) = (parts.next(), parts.next(), parts.next())
        else {
            return Err(refused());
        };
        let decoded = BASE64.decode(encoded).map_err(|_| refused())?;
        let [ED25519_TYPE, public_key @ ..] = decoded.as_slice() else { return Err(refused()) };
        let public_key = public_key.try_into().map_err(|_| refused())?;
        let verifier = Self { origin: origin.to_owned(), public_key };
        check_origin(origin)?;
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
        let key = UnparsedPublicKey::new(&ED25519, &self.public_key);
        let good = |signature: Vec<u8>| key.verify(text.as_bytes(), &signature).is_ok();
        if !note.lines().skip(4).filter_map(by_us).any(good) {
            return Err(CheckpointError::Signature);
        }
        Ok(head)
    }

    fn key_id(&self) -> [u8; 4] {
        let named = [self.origin.as_bytes(), b"\n", &[ED25519_TYPE], &self.public_key].concat();
        let [a, b, c, d, ..] = sha256(&named);
        [a, b, c, d]
    }
}

impl fmt::Display for Verifier {
    /// As in C2SP signed-note: `ORIGIN+ID+KEY`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let typed = [&[ED25519_TYPE][..], &self.public_key].concat();
        write!(f, "{}+{}+{}", self.origin, hex::encode(self.key_id()), BASE64.encode(typed))
    }
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
fn text(origin: &str, head: &Head) -> String {
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
    fn a_public_key_of_go_s_package_note_is_read_and_one_with_a_wrong_id_is_not() {
        let key = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
        assert_eq!(Verifier::parse(key).unwrap().to_string(), key);
        let refused = Err(CheckpointError::NotAPublicKey);
        assert_eq!(Verifier::parse(&key.replace("c74f", "c74e")), refused);
        assert_eq!(Verifier::parse("a+b"), refused);
        assert!(matches!(Signer::new("a b", &[]), Err(CheckpointError::Origin(_))));
    }
}
