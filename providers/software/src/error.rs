//! From what is wrong with a key file to the one error of every provider.

use std::error::Error as StdError;
use std::{fmt, io};

use claviger_files::pem::PemError;
use claviger_provider_api::{Cause, Error, ErrorKind, SecretError, SecretSource};

/// Why a key file gave no key. The sentences follow the file's name and say what to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    #[error("cannot be used")]
    Read(#[source] SecretError),
    #[error("is empty")]
    Empty,
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
         `openssl pkcs8 -topk8 -v2 aes-256-cbc -in OLD -out NEW`; \
         where openssl refuses to read it, add `-provider legacy -provider default`"
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
    #[error("cannot be used: {0}")]
    Pem(#[from] PemError),
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
    let cause = cause(&failure);
    Error::new(kind, InFile { source: source.to_string(), failure }).with_cause(cause)
}

fn cause(failure: &FileError) -> Option<Cause> {
    match failure {
        // The file is the key: if it is not there, the key is not.
        FileError::Read(SecretError::Io { source, .. })
            if source.kind() == io::ErrorKind::NotFound =>
        {
            Some(Cause::KeyAbsent)
        }
        FileError::Read(error) | FileError::Passphrase(error) => error.cause(),
        FileError::Empty | FileError::PassphraseNotText => Some(Cause::SecretFile),
        FileError::NoPassphrase | FileError::WrongPassphrase => Some(Cause::CredentialsRefused),
        FileError::OldEncryption(_)
        | FileError::UnknownEncryption(_)
        | FileError::UnknownForm
        | FileError::NotBase64
        | FileError::Pem(_)
        | FileError::NoPrivateKey(_)
        | FileError::SeveralKeys(_)
        | FileError::NotRsa(_)
        | FileError::Damaged { .. }
        | FileError::Refused(_) => Some(Cause::KeyUnfit),
    }
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

    fn io_error(kind: io::ErrorKind) -> FileError {
        FileError::Read(SecretError::Io { path: "key.pem".into(), source: kind.into() })
    }

    #[test]
    fn each_failure_has_its_kind_and_its_cause() {
        use ErrorKind::{OperatorNeeded, Unavailable};
        let unsafe_file = || SecretError::Unsafe { path: "key.pem".into(), reason: "chmod".into() };
        let no_credential = SecretError::NoCredential("passphrase".into());
        let table = [
            (io_error(io::ErrorKind::NotFound), OperatorNeeded, Some(Cause::KeyAbsent)),
            (io_error(io::ErrorKind::PermissionDenied), OperatorNeeded, Some(Cause::SecretFile)),
            (io_error(io::ErrorKind::StaleNetworkFileHandle), Unavailable, Some(Cause::SecretFile)),
            (io_error(io::ErrorKind::TimedOut), Unavailable, Some(Cause::SecretFile)),
            (FileError::Read(unsafe_file()), OperatorNeeded, Some(Cause::SecretFile)),
            (FileError::Passphrase(unsafe_file()), OperatorNeeded, Some(Cause::SecretFile)),
            (FileError::Passphrase(no_credential), OperatorNeeded, Some(Cause::SecretFile)),
            (FileError::Empty, OperatorNeeded, Some(Cause::SecretFile)),
            (FileError::WrongPassphrase, OperatorNeeded, Some(Cause::CredentialsRefused)),
            (FileError::NoPassphrase, OperatorNeeded, Some(Cause::CredentialsRefused)),
            (FileError::SeveralKeys(2), OperatorNeeded, Some(Cause::KeyUnfit)),
            (FileError::NotRsa("EC".into()), OperatorNeeded, Some(Cause::KeyUnfit)),
        ];
        for (failure, kind, cause) in table {
            let error = of_file(&SecretSource::File("/keys/key.pem".into()), failure);
            assert_eq!((error.kind(), error.cause()), (kind, cause), "{error}");
            assert!(error.to_string().starts_with("key file /keys/key.pem "), "{error}");
        }
    }
}
