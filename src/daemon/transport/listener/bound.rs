//! Sockets that listen, for mutual TLS or for peer credentials.

use std::io::Result;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use tokio::net::{TcpListener, UnixListener, UnixStream};

/// A socket that listens.
#[derive(Debug)]
pub enum Bound {
    /// For TLS.
    Tcp(TcpListener, ClientCertificate),
    /// For peer credentials.
    Unix(BoundUnix),
}

/// Whether clients have to show a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientCertificate {
    /// Mutual TLS.
    Required,
    /// A client without one has to say who it is in each call, with a token.
    Optional,
}

/// A Unix socket that listens. Dropped, it removes its file, if that still is its own.
#[derive(Debug)]
pub struct BoundUnix {
    pub(super) listener: UnixListener,
    path: PathBuf,
    /// Device and inode of its own file; none where the file belongs to another.
    file: Option<(u64, u64)>,
}

impl Bound {
    /// A socket for mutual TLS.
    pub(super) fn mutual(listener: TcpListener) -> Self {
        Self::Tcp(listener, ClientCertificate::Required)
    }

    /// The TCP socket, if it is one.
    pub fn into_tcp(self) -> Option<TcpListener> {
        match self {
            Self::Tcp(listener, _) => Some(listener),
            Self::Unix(_) => None,
        }
    }

    /// The same socket, where clients need no certificate. Without effect on a Unix socket.
    #[must_use]
    pub fn without_certificate(self) -> Self {
        match self {
            Self::Tcp(listener, _) => Self::Tcp(listener, ClientCertificate::Optional),
            unix @ Self::Unix(_) => unix,
        }
    }

    /// The TCP address, with the port that the system chose where 0 was asked for.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(listener, _) => listener.local_addr().ok(),
            Self::Unix(_) => None,
        }
    }
}

impl BoundUnix {
    /// Of a socket that has just made its file at `path`.
    pub(super) fn new(listener: UnixListener, path: &Path) -> Self {
        Self { listener, file: identity(path), path: path.to_owned() }
    }

    /// Of a socket whose file belongs to another.
    pub(super) fn inherited(listener: std::os::unix::net::UnixListener) -> Result<Self> {
        listener.set_nonblocking(true)?;
        let listener = UnixListener::from_std(listener)?;
        Ok(Self { listener, path: PathBuf::new(), file: None })
    }

    /// The next connection.
    pub async fn accept(&self) -> Result<UnixStream> {
        Ok(self.listener.accept().await?.0)
    }
}

impl Drop for BoundUnix {
    fn drop(&mut self) {
        if self.file.is_some() && self.file == identity(&self.path) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    std::fs::symlink_metadata(path).ok().map(|file| (file.dev(), file.ino()))
}
