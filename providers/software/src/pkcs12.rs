//! PKCS#12 (RFC 7292): files that the library opens, and two kinds that it does not: those whose MAC
//! is a PBMAC1 (RFC 9579), and those that were made without any password.

mod no_password;
mod pbmac1;

use p12_keystore::Pkcs12Archive;
use p12_keystore::error::Error;
use pkcs8::der::asn1::AnyRef;
use pkcs8::der::{Decode, Encode, Reader, SliceReader};
use pkcs8::spki::AlgorithmIdentifierRef;
use zeroize::Zeroizing;

use crate::error::FileError;

/// A private key: PKCS#8, DER.
pub(crate) type Pkcs8 = Zeroizing<Vec<u8>>;

/// A PFX, taken apart as far as its MAC.
struct Pfx<'a> {
    version: AnyRef<'a>,
    auth_safe: AnyRef<'a>,
    /// The content that a MAC is over: AuthenticatedSafe.
    content: &'a [u8],
    mac: Option<Mac<'a>>,
}

/// MacData.
struct Mac<'a> {
    algorithm: AlgorithmIdentifierRef<'a>,
    digest: &'a [u8],
    salt: &'a [u8],
    iterations: u32,
}

/// Every private key of a file, PKCS#8. Without a password it is tried with the empty one and with
/// none at all, which are two encodings: OpenSSL and Java write the first, .NET writes the second
/// when it is given `null`.
pub(crate) fn private_keys(der: &[u8], password: Option<&str>) -> Result<Vec<Pkcs8>, FileError> {
    let pfx = Pfx::parse(der).map_err(|error| damaged(&error))?;
    let text = password.unwrap_or_default();
    let opened = match &pfx.mac {
        Some(mac) if mac.algorithm.oid == pbmac1::OID => pbmac1::verify(mac, text, pfx.content)
            .and_then(|()| library(&pfx.without_mac().map_err(|error| damaged(&error))?, text)),
        _ => library(der, text),
    };
    match opened {
        Err(FileError::WrongPassphrase) if text.is_empty() => match no_password::open(&pfx) {
            Some(keys) => Ok(keys),
            None if password.is_none() => Err(FileError::NoPassphrase),
            None => Err(FileError::WrongPassphrase),
        },
        other => other,
    }
}

fn library(der: &[u8], password: &str) -> Result<Vec<Pkcs8>, FileError> {
    let archive = Pkcs12Archive::from_pkcs12(der, password).map_err(|error| match error {
        // Without a MAC only the decryption tells: of the content, or of its padding.
        Error::MacError(_) | Error::Pkcs5Error(_) | Error::UnpadError => FileError::WrongPassphrase,
        Error::UnsupportedEncryptionScheme => {
            FileError::UnknownEncryption("not PBES2, 3DES or RC2-40".to_owned())
        }
        Error::UnsupportedMacAlgorithm => {
            FileError::UnknownEncryption("its MAC is of an unknown kind".to_owned())
        }
        Error::InvalidParameters => {
            FileError::UnknownEncryption("its iteration count is out of bounds".to_owned())
        }
        other => damaged(&other),
    })?;
    Ok(archive.keys.iter().map(|bag| Zeroizing::new(bag.key.as_der().to_vec())).collect())
}

impl<'a> Pfx<'a> {
    fn parse(der: &'a [u8]) -> pkcs8::der::Result<Self> {
        sequence(AnyRef::from_der(der)?, |reader| {
            let version = AnyRef::decode(reader)?;
            let auth_safe = AnyRef::decode(reader)?;
            let content = sequence(auth_safe, |reader| {
                let _content_type = AnyRef::decode(reader)?;
                let explicit = AnyRef::decode(reader)?;
                Ok(AnyRef::from_der(explicit.value())?.value())
            })?;
            let mac = if reader.is_finished() { None } else { Some(Mac::decode(reader)?) };
            Ok(Self { version, auth_safe, content, mac })
        })
    }

    /// The file without its MAC, which was verified.
    fn without_mac(&self) -> pkcs8::der::Result<Zeroizing<Vec<u8>>> {
        let mut content = Zeroizing::new(self.version.to_der()?);
        content.extend(self.auth_safe.to_der()?);
        let sequence = AnyRef::new(pkcs8::der::Tag::Sequence, &content)?;
        Ok(Zeroizing::new(sequence.to_der()?))
    }
}

impl<'a> Mac<'a> {
    fn decode(reader: &mut SliceReader<'a>) -> pkcs8::der::Result<Self> {
        sequence(AnyRef::decode(reader)?, |reader| {
            let (algorithm, digest) = sequence(AnyRef::decode(reader)?, |reader| {
                Ok((AlgorithmIdentifierRef::decode(reader)?, AnyRef::decode(reader)?.value()))
            })?;
            let salt = AnyRef::decode(reader)?.value();
            let iterations = if reader.is_finished() { 1 } else { u32::decode(reader)? };
            Ok(Self { algorithm, digest, salt, iterations })
        })
    }
}

/// Reads the elements of a SEQUENCE.
fn sequence<'a, T>(
    outer: AnyRef<'a>,
    read: impl FnOnce(&mut SliceReader<'a>) -> pkcs8::der::Result<T>,
) -> pkcs8::der::Result<T> {
    outer.sequence(read)
}

fn damaged(reason: &dyn ToString) -> FileError {
    FileError::Damaged { what: "PKCS#12 file", reason: reason.to_string() }
}
