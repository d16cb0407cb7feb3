//! Sockets that a service manager has opened and keeps open over restarts (sd_listen_fds(3)).

use std::io::{Error, ErrorKind, Result};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use listenfd::ListenFd;

use super::bound::{Bound, BoundUnix};
use crate::daemon::config::Listen;

/// Sockets that were open before this process began.
#[derive(Debug, Default)]
pub struct Inherited {
    tcp: Vec<(SocketAddr, std::net::TcpListener)>,
    unix: Vec<(PathBuf, std::os::unix::net::UnixListener)>,
}

impl Inherited {
    /// Those that `LISTEN_FDS` and `LISTEN_PID` tell of. To be called once, before there are other
    /// threads: the variables are removed, so that no child takes the sockets for its own.
    ///
    /// # Errors
    /// One is neither a TCP nor a Unix stream socket.
    pub fn take_over() -> Result<Self> {
        let mut passed = ListenFd::from_env();
        let mut inherited = Self::default();
        for index in 0..passed.len() {
            if let Ok(Some(listener)) = passed.take_unix_listener(index) {
                let path = listener.local_addr()?.as_pathname().map(Path::to_owned);
                let path = path.ok_or_else(|| Error::other("a Unix socket without a path"))?;
                inherited.unix.push((path, listener));
            } else if let Some(listener) = passed.take_tcp_listener(index)? {
                inherited.tcp.push((listener.local_addr()?, listener));
            }
        }
        Ok(inherited)
    }

    /// The one that listens there, if it was passed. To be called inside a Tokio runtime.
    pub(super) fn take(&mut self, listen: &Listen) -> Result<Option<Bound>> {
        match listen {
            Listen::Tcp(address) => Ok(self.take_tcp(*address)?.map(Bound::mutual)),
            Listen::Unix(path) => {
                let Some(index) = self.unix.iter().position(|(passed, _)| passed == path) else {
                    return Ok(None);
                };
                let (_, listener) = self.unix.swap_remove(index);
                BoundUnix::inherited(listener).map(|unix| Some(Bound::Unix(unix)))
            }
        }
    }

    /// The TCP socket that listens there, if it was passed. To be called inside a Tokio runtime.
    pub fn take_tcp(&mut self, address: SocketAddr) -> Result<Option<tokio::net::TcpListener>> {
        let Some(index) = self.tcp.iter().position(|(passed, _)| *passed == address) else {
            return Ok(None);
        };
        let (_, listener) = self.tcp.swap_remove(index);
        listener.set_nonblocking(true)?;
        tokio::net::TcpListener::from_std(listener).map(Some)
    }

    /// Sees that every socket was taken: connections to another one would wait for ever.
    ///
    /// # Errors
    /// One is left; the text names it.
    pub fn all_taken(&self) -> Result<()> {
        let tcp = self.tcp.iter().map(|(address, _)| address.to_string());
        let unix = self.unix.iter().map(|(path, _)| format!("unix:{}", path.display()));
        let left: Vec<String> = tcp.chain(unix).collect();
        if left.is_empty() {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::InvalidInput,
            format!(
                "the service manager passed a socket for {}, which the configuration does not name; \
                 write the same addresses in the .socket unit and in server.listen",
                left.join(", ")
            ),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_is_taken_for_its_own_address_only_and_none_may_be_left() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("claviger.sock");
        let unix = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let mut inherited =
            Inherited { tcp: vec![(address, listener)], unix: vec![(path.clone(), unix)] };
        let other = Listen::Tcp("127.0.0.1:1".parse().unwrap());
        assert!(inherited.take(&other).unwrap().is_none());
        assert!(inherited.take_tcp(address).unwrap().is_some());
        let error = inherited.all_taken().unwrap_err().to_string();
        assert!(error.contains("claviger.sock") && !error.contains("127.0.0.1"), "{error}");
        let taken = inherited.take(&Listen::Unix(path.clone())).unwrap().unwrap();
        inherited.all_taken().unwrap();
        drop(taken);
        assert!(path.exists(), "the file belongs to the service manager");
    }
}
