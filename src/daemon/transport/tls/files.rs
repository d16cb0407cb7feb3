//! Certificate and CRL files: read whole, and refused where another user could write them or put
//! another file in their place.

use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{SHA256, digest};
use claviger_files::pem::{self, Beside};
use claviger_files::{FileError, Protection};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::TlsError;

/// The largest certificate or CRL file that is read, in bytes.
const MAX_FILE: u64 = 64 << 20;
/// The largest private key's file, in bytes.
const MAX_KEY_FILE: u64 = 1 << 20;

/// Reads the files of one load, and keeps the SHA-256 of what decides who is trusted.
#[derive(Debug, Default)]
pub(super) struct Reader {
    /// Of each file that was read, in that order; secrets are not among them.
    pub(super) sha256: Vec<(PathBuf, [u8; 32])>,
}

impl Reader {
    /// Every certificate of the server's PEM file, its own first; at least one. Its owner does not
    /// matter: the private key must be the one of the certificate.
    pub(super) fn server_chain(
        &mut self,
        path: &Path,
    ) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let file = claviger_files::read(path, Protection::Public, MAX_FILE)?;
        self.remember(path, &file);
        pem::certificates(&file, Beside::Keys).map_err(|error| refused(path, &error.to_string()))
    }

    /// Every certificate of a bundle of client CAs; at least one.
    pub(super) fn ca_certificates(
        &mut self,
        path: &Path,
    ) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let file = self.trusted(path)?;
        pem::certificates(&file, Beside::Nothing).map_err(|error| refused(path, &error.to_string()))
    }

    /// A file that decides who is let in.
    pub(super) fn trusted(&mut self, path: &Path) -> Result<Vec<u8>, TlsError> {
        claviger_files::check_folders(path)?;
        let file = claviger_files::read(path, Protection::Trusted, MAX_FILE)?;
        self.remember(path, &file);
        Ok(file.to_vec())
    }

    fn remember(&mut self, path: &Path, file: &[u8]) {
        let sha256 = digest(&SHA256, file).as_ref().try_into().expect("SHA-256 has 32 bytes");
        self.sha256.push((path.to_owned(), sha256));
    }
}

/// The private key of a file that only we and root can read.
pub(super) fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    claviger_files::check_folders(path)?;
    let file = claviger_files::read(path, Protection::Secret, MAX_KEY_FILE)?;
    pem::private_key(&file).map_err(|error| refused(path, &error.to_string()))
}

pub(super) fn refused(path: &Path, reason: &str) -> TlsError {
    FileError::Refused { path: path.to_owned(), reason: reason.to_owned() }.into()
}
