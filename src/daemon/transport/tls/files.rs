//! Certificate and CRL files: read whole, and refused where another user could write them.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::TlsError;

/// The largest certificate or CRL file that is read, in bytes.
const MAX_FILE: u64 = 64 << 20;

/// Every certificate of a PEM file; at least one.
pub(super) fn certificates(
    path: &Path,
    pem: &[u8],
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let found = found.map_err(|error| refused(path, &format!("it is not PEM: {error}")))?;
    if found.is_empty() {
        return Err(refused(path, "it holds no certificate in PEM"));
    }
    Ok(found)
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    Ok(open(path)?.1)
}

/// Reads a file that decides who is let in: nobody but root and us may be able to write it.
pub(super) fn read_trusted(path: &Path) -> Result<Vec<u8>, TlsError> {
    let (metadata, bytes) = open(path)?;
    let own_uid = rustix::process::geteuid().as_raw();
    if metadata.uid() != 0 && metadata.uid() != own_uid {
        let uid = metadata.uid();
        let reason = format!("it is owned by uid {uid}; chown it to root or to uid {own_uid}");
        return Err(refused(path, &reason));
    }
    if metadata.mode() & 0o022 != 0 {
        let mode = metadata.mode() & 0o777;
        return Err(refused(path, &format!("mode {mode:o} lets others write it; chmod 644 it")));
    }
    Ok(bytes)
}

fn open(path: &Path) -> Result<(std::fs::Metadata, Vec<u8>), TlsError> {
    let io = |source| TlsError::Io { path: path.to_owned(), source };
    // Asked by name first, because opening a FIFO would wait for its writer.
    if !std::fs::metadata(path).map_err(io)?.is_file() {
        return Err(refused(path, "it is not a regular file"));
    }
    let file = File::open(path).map_err(io)?;
    let metadata = file.metadata().map_err(io)?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(refused(path, "it is larger than 64 MiB"));
    }
    Ok((metadata, bytes))
}

pub(super) fn refused(path: &Path, reason: &str) -> TlsError {
    TlsError::Refused { path: path.to_owned(), reason: reason.to_owned() }
}
