//! Reads a key file in any of its forms into PKCS#8, the one form that aws-lc takes.
//!
//! Every buffer of ours that holds a key is zeroed. What the PKCS#12 crate copies inside itself while
//! it parses is not: such a file leaves traces in freed memory until they are overwritten.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use claviger_files::pem::{self, Block};
use claviger_provider_api::{Secret, SecretSource};
use pkcs8::der::asn1::{AnyRef, OctetStringRef};
use pkcs8::der::{Decode, SliceReader, Tag, Tagged};
use pkcs8::spki::{AlgorithmIdentifierRef, ObjectIdentifier};
use pkcs8::{EncryptedPrivateKeyInfoRef, PrivateKeyInfoRef, SecretDocument};
use zeroize::Zeroizing;

use crate::error::FileError;
use crate::pkcs12::{self, Pkcs8};

const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");

/// Reads the one RSA key of a file. The passphrase is read only if the file needs one.
pub(crate) fn read(
    source: &SecretSource,
    passphrase: Option<&SecretSource>,
) -> Result<Pkcs8, FileError> {
    let mut file = source.read_blocking().map_err(FileError::Read)?;
    if file.expose().iter().all(u8::is_ascii_whitespace) {
        return Err(FileError::Empty);
    }
    if matches!(source, SecretSource::Vault(_)) && !pem::is_pem(file.expose()) {
        file = from_base64(file.expose())?;
    }
    if pem::is_pem(file.expose()) {
        from_pem(file.expose(), passphrase)
    } else {
        from_der(file.expose(), passphrase)
    }
}

/// A field in Vault is text: PEM as it is, everything else as base64, in which blanks and line ends do
/// not count.
fn from_base64(text: &[u8]) -> Result<Secret, FileError> {
    let mut digits = Zeroizing::new(Vec::with_capacity(text.len()));
    digits.extend(text.iter().filter(|b| !b.is_ascii_whitespace()));
    let mut bytes = Zeroizing::new(vec![0; base64::decoded_len_estimate(digits.len())]);
    let len = STANDARD.decode_slice(&digits, &mut bytes).map_err(|_| FileError::NotBase64)?;
    bytes.truncate(len);
    Ok(Secret::new(bytes))
}

fn from_pem(file: &[u8], passphrase: Option<&SecretSource>) -> Result<Pkcs8, FileError> {
    let Block { label, has_encryption_header, der, .. } = pem::private_key_block(file)?;
    if has_encryption_header {
        return Err(FileError::OldEncryption("DEK-Info in the PEM header"));
    }
    match label.as_str() {
        "PRIVATE KEY" => from_pkcs8(&der),
        "ENCRYPTED PRIVATE KEY" => from_encrypted_pkcs8(&der, passphrase),
        "RSA PRIVATE KEY" => from_pkcs1(&der),
        other => Err(FileError::NotRsa(other.to_owned())),
    }
}

fn from_der(file: &[u8], passphrase: Option<&SecretSource>) -> Result<Pkcs8, FileError> {
    match form(file)? {
        Form::Pkcs8 => from_pkcs8(file),
        Form::EncryptedPkcs8 => from_encrypted_pkcs8(file, passphrase),
        Form::Pkcs1 => from_pkcs1(file),
        Form::Pkcs12 => from_pkcs12(file, passphrase),
    }
}

enum Form {
    Pkcs8,
    EncryptedPkcs8,
    Pkcs1,
    Pkcs12,
}

/// Tells the forms apart by the first two elements of their outer sequence.
fn form(file: &[u8]) -> Result<Form, FileError> {
    if file.starts_with(&[0x30, 0x80]) {
        return Err(FileError::Damaged {
            what: "DER file",
            reason: "it has indefinite lengths (BER); write it again with `openssl pkcs12` or \
                     `openssl pkcs8 -topk8`"
                .to_owned(),
        });
    }
    let outer = AnyRef::from_der(file).map_err(|_| FileError::UnknownForm)?;
    let mut reader = SliceReader::new(outer.value()).map_err(|_| FileError::UnknownForm)?;
    let mut next = || AnyRef::decode(&mut reader).map_err(|_| FileError::UnknownForm);
    let (first, second) = (next()?, next()?);
    match (outer.tag(), first.tag(), second.tag()) {
        (Tag::Sequence, Tag::Integer, Tag::Sequence) if first.value() == [3] => Ok(Form::Pkcs12),
        (Tag::Sequence, Tag::Integer, Tag::Sequence) => Ok(Form::Pkcs8),
        (Tag::Sequence, Tag::Integer, Tag::Integer) => Ok(Form::Pkcs1),
        (Tag::Sequence, Tag::Sequence, Tag::OctetString) => Ok(Form::EncryptedPkcs8),
        (Tag::Sequence, Tag::Integer, Tag::OctetString) => {
            Err(FileError::NotRsa("EC PRIVATE KEY".to_owned()))
        }
        (Tag::Sequence, Tag::Sequence, Tag::Sequence) => {
            Err(FileError::NoPrivateKey("a certificate or a request".to_owned()))
        }
        (Tag::Sequence, Tag::Sequence, Tag::BitString) => {
            Err(FileError::NoPrivateKey("a public key".to_owned()))
        }
        _ => Err(FileError::UnknownForm),
    }
}

fn from_pkcs8(der: &[u8]) -> Result<Pkcs8, FileError> {
    let damaged = |reason: pkcs8::Error| FileError::Damaged {
        what: "PKCS#8 key",
        reason: reason.to_string(),
    };
    let oid = PrivateKeyInfoRef::try_from(der).map_err(damaged)?.algorithm.oid;
    if oid != RSA {
        return Err(FileError::NotRsa(kind_of_key(oid)));
    }
    Ok(Zeroizing::new(der.to_vec()))
}

/// Wraps RSAPrivateKey into PrivateKeyInfo.
fn from_pkcs1(der: &[u8]) -> Result<Pkcs8, FileError> {
    let damaged = |reason: &dyn ToString| FileError::Damaged {
        what: "PKCS#1 key",
        reason: reason.to_string(),
    };
    let algorithm = AlgorithmIdentifierRef { oid: RSA, parameters: Some(AnyRef::NULL) };
    let key = OctetStringRef::new(der).map_err(|error| damaged(&error))?;
    let info = PrivateKeyInfoRef::new(algorithm, key);
    let document = SecretDocument::try_from(info).map_err(|error| damaged(&error))?;
    Ok(document.to_bytes())
}

fn from_encrypted_pkcs8(der: &[u8], passphrase: Option<&SecretSource>) -> Result<Pkcs8, FileError> {
    use pkcs8::pkcs5::Error as Pkcs5;
    if is_pbes1(der) {
        return Err(FileError::OldEncryption("PBES1"));
    }
    let info = EncryptedPrivateKeyInfoRef::try_from(der)
        .map_err(|error| FileError::UnknownEncryption(error.to_string()))?;
    let source = passphrase.ok_or(FileError::NoPassphrase)?;
    let passphrase = source.read_blocking().map_err(FileError::Passphrase)?.without_line_end();
    match info.decrypt(passphrase.expose()) {
        Ok(document) => from_pkcs8(document.as_bytes()),
        Err(pkcs8::Error::EncryptedPrivateKey(
            error @ (Pkcs5::UnsupportedAlgorithm { .. } | Pkcs5::AlgorithmParametersInvalid { .. }),
        )) => Err(FileError::UnknownEncryption(error.to_string())),
        Err(_) => Err(FileError::WrongPassphrase),
    }
}

/// Whether EncryptedPrivateKeyInfo names one of the schemes before PBES2: those of PKCS#5 (RFC 8018
/// appendix A.3) or of PKCS#12 (RFC 7292 appendix C).
fn is_pbes1(der: &[u8]) -> bool {
    let oid = AnyRef::from_der(der)
        .and_then(|outer| AlgorithmIdentifierRef::decode(&mut SliceReader::new(outer.value())?));
    let oid = oid.map(|algorithm| algorithm.oid.to_string()).unwrap_or_default();
    let pkcs5 = oid.strip_prefix("1.2.840.113549.1.5.");
    pkcs5.is_some_and(|scheme| matches!(scheme, "1" | "3" | "4" | "6" | "10" | "11"))
        || oid.starts_with("1.2.840.113549.1.12.1.")
}

fn from_pkcs12(der: &[u8], passphrase: Option<&SecretSource>) -> Result<Pkcs8, FileError> {
    let read = |source: &SecretSource| source.read_blocking().map(Secret::without_line_end);
    let secret = passphrase.map(read).transpose().map_err(FileError::Passphrase)?;
    let text = secret.as_ref().map(|secret| std::str::from_utf8(secret.expose())).transpose();
    let keys = pkcs12::private_keys(der, text.map_err(|_| FileError::PassphraseNotText)?)?;
    let is_rsa = |key: &&Pkcs8| {
        PrivateKeyInfoRef::try_from(key.as_slice()).is_ok_and(|key| key.algorithm.oid == RSA)
    };
    let mut rsa = keys.iter().filter(is_rsa);
    match (rsa.next(), rsa.count()) {
        (Some(key), 0) => from_pkcs8(key),
        (Some(_), more) => Err(FileError::SeveralKeys(more + 1)),
        (None, _) => match keys.first() {
            // An error that names its kind.
            Some(other) => from_pkcs8(other),
            None => Err(FileError::NoPrivateKey("certificates".to_owned())),
        },
    }
}

fn kind_of_key(oid: ObjectIdentifier) -> String {
    match oid.to_string().as_str() {
        "1.2.840.10045.2.1" => "EC",
        "1.3.101.112" => "Ed25519",
        "1.3.101.110" => "X25519",
        "1.2.840.10040.4.1" => "DSA",
        "1.2.840.113549.1.1.10" => "RSA for PSS signatures only",
        "1.2.840.113549.1.1.7" => "RSA for OAEP only, under an OID that is not supported",
        other => return format!("OID {other}"),
    }
    .to_owned()
}
