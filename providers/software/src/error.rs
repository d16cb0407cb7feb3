//! From what is wrong with a key file to the one error of every provider.

use std::error::Error as StdError;
use std::fmt;

use claviger_provider_api::{Error, ErrorKind, SecretError, SecretSource};

/// Why a key file gave no key. The sentences follow the file's name and say what to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    #[error("cannot be used")]
    Read(#[source] SecretError),
    #[error("needs the passphrase, which cannot be read")]
    Passphrase(#[source] SecretError),
    #[error("is encrypted; give the provider a `passphrase`, such as {{ file = \"…\" }}")]
    NoPassphrase,
    #[error("is not opened by the configured passphrase (or the file is damaged)")]
    WrongPassphrase,
    #[error("needs a passphrase in UTF-8; the configured one is not")]
    PassphraseNotText,
    #[error(
        "is encrypted in an old way ({0}); write it again with \
         `openssl pkcs8 -topk8 -v2 aes-256-cbc -in OLD -out NEW`"
    )]
    OldEncryption(&'static str),
    #[error("is encrypted in a way that is not known here: {0}")]
    UnknownEncryption(String),
    #[error(
        "holds no key in a known form; expected PKCS#8 or PKCS#1 (PEM or DER), encrypted PKCS#8, \
         or PKCS#12 (PFX)"
    )]
    UnknownForm,
    #[error(
        "is neither PEM nor base64; store it anew with `base64 -w0 FILE | vault kv patch … FIELD=-`"
    )]
    NotBase64,
    #[error("holds {0} and no private key")]
    NoPrivateKey(String),
    #[error("holds {0} RSA private keys; put the one to use into a file of its own")]
    SeveralKeys(usize),
    #[error("holds a private key of another kind ({0}); an RSA key is needed")]
    NotRsa(String),
    #[error("is a damaged {what}: {reason}")]
    Damaged { what: &'static str, reason: String },
    #[error("holds an RSA key that is refused: {0}")]
    Refused(String),
}

/// The error for the daemon: a file that could not be read for a passing reason may be there again;
/// everything else is for an operator.
pub(crate) fn of_file(source: &SecretSource, failure: FileError) -> Error {
    let kind = match &failure {
        FileError::Read(error) | FileError::Passphrase(error) => error.kind(),
        _ => ErrorKind::OperatorNeeded,
    };
    Error::new(kind, InFile { source: source.to_string(), failure })
}

/// A failure with its file's name; its causes are the failure's own.
#[derive(Debug)]
struct InFile {
    source: String,
    failure: FileError,
}

impl fmt::Display for InFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "key {} {}", self.source, self.failure)
    }
}

impl StdError for InFile {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.failure.source()
    }
}

/// The one failure of every value that does not unwrap, whatever is wrong with it.
pub(crate) fn unwrap_failed() -> Error {
    Error::new(ErrorKind::UnwrapFailed, "the value does not unwrap under this key")
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::io;

    fn io_error(kind: io::ErrorKind) -> FileError {
        FileError::Read(SecretError::Io { path: "key.pem".into(), source: kind.into() })
    }

    #[test]
    fn each_failure_has_its_kind() {
        let no_credential = SecretError::NoCredential("passphrase".into());
        let table = [
            (io_error(io::ErrorKind::NotFound), ErrorKind::OperatorNeeded),
            (io_error(io::ErrorKind::PermissionDenied), ErrorKind::OperatorNeeded),
            (io_error(io::ErrorKind::StaleNetworkFileHandle), ErrorKind::Unavailable),
            (io_error(io::ErrorKind::TimedOut), ErrorKind::Unavailable),
            (FileError::Passphrase(no_credential), ErrorKind::OperatorNeeded),
            (FileError::WrongPassphrase, ErrorKind::OperatorNeeded),
            (FileError::SeveralKeys(2), ErrorKind::OperatorNeeded),
        ];
        for (failure, kind) in table {
            let error = of_file(&SecretSource::File("/keys/key.pem".into()), failure);
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().starts_with("key file /keys/key.pem "), "{error}");
        }
    }
}
