//! Sockets to listen on, made before anything is served.

use std::io::{Error, ErrorKind, Result};
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;

use tokio::net::{TcpListener, TcpSocket, UnixSocket};

use super::bound::{Bound, BoundUnix};
use super::inherited::Inherited;
use crate::daemon::config::Listen;

/// Connections that wait to be accepted; the system may allow fewer.
const BACKLOG: u32 = 4096;
/// Owner and group may connect: the group of the socket's folder decides who.
const SOCKET_MODE: u32 = 0o660;
/// Only the owner, and root, may connect.
const PRIVATE_MODE: u32 = 0o600;

/// Opens a socket, or takes the one that was passed. To be called inside a Tokio runtime.
///
/// A Unix socket gets mode 0660 whatever the umask; who may connect is a matter of its folder and
/// group, who may call of the peer's uid. A file that an ended process has left is removed first,
/// but only if it is a socket and no process answers there.
///
/// `[::]` takes IPv4 connections as well, unless an IPv4 address among `all` has the same port.
pub fn bind(one: &Listen, all: &[Listen], inherited: &mut Inherited) -> Result<Bound> {
    let bound = inherited.take(one).and_then(|passed| match (passed, one) {
        (Some(passed), _) => Ok(passed),
        (None, Listen::Tcp(address)) => {
            bind_tcp(*address, shares_port_with_ipv4(*address, all)).map(Bound::mutual)
        }
        (None, Listen::Unix(path)) => bind_unix(path, SOCKET_MODE).map(Bound::Unix),
    });
    bound.map_err(|error| {
        let port = match one {
            Listen::Tcp(address) => Some(address.port()),
            Listen::Unix(_) => None,
        };
        cannot_listen(&one.to_string(), port, &error)
    })
}

/// Opens a Unix socket of mode 0600, as [`bind`] does otherwise.
pub fn bind_private(path: &Path) -> Result<BoundUnix> {
    bind_unix(path, PRIVATE_MODE)
        .map_err(|error| cannot_listen(&path.display().to_string(), None, &error))
}

/// Why nothing listens at a place, and what to do where only root may use its port.
fn cannot_listen(place: &str, port: Option<u16>, error: &Error) -> Error {
    let remedy = match (error.kind(), port) {
        (ErrorKind::PermissionDenied, Some(port @ 1..1024)) => format!(
            "; port {port} needs the capability CAP_NET_BIND_SERVICE (in the systemd unit: \
             AmbientCapabilities= and CapabilityBoundingSet=), or take one from 1024 on"
        ),
        _ => String::new(),
    };
    Error::new(error.kind(), format!("cannot listen on {place}: {error}{remedy}"))
}

fn shares_port_with_ipv4(address: SocketAddr, all: &[Listen]) -> bool {
    address.is_ipv6()
        && all.iter().any(|other| match other {
            Listen::Tcp(other) => other.is_ipv4() && other.port() == address.port(),
            Listen::Unix(_) => false,
        })
}

fn bind_tcp(address: SocketAddr, ipv6_only: bool) -> Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    if ipv6_only {
        rustix::net::sockopt::set_ipv6_v6only(&socket, true)?;
    }
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

fn bind_unix(path: &Path, mode: u32) -> Result<BoundUnix> {
    remove_stale(path)?;
    let socket = UnixSocket::new_stream()?;
    // On Linux the file takes over the socket's mode (minus the umask), so that at no moment it is
    // wider than this; elsewhere the call fails and the mode is set right after.
    let _ = rustix::fs::fchmod(&socket, rustix::fs::Mode::from_bits_truncate(mode as _));
    socket.bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    Ok(BoundUnix::new(socket.listen(BACKLOG)?, path))
}

fn remove_stale(path: &Path) -> Result<()> {
    let metadata = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !metadata.file_type().is_socket() {
        return Err(Error::new(ErrorKind::AlreadyExists, "a file that is no socket is there"));
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => std::fs::remove_file(path),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Ok(_) => Err(Error::new(ErrorKind::AddrInUse, "another process answers there")),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn bind(listen: &Listen) -> Result<Bound> {
        super::bind(listen, &[], &mut Inherited::default())
    }

    fn socket() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("claviger.sock");
        (directory, path)
    }

    #[tokio::test]
    async fn a_socket_is_for_owner_and_group_and_leaves_with_its_listener() {
        let (_directory, path) = socket();
        let bound = bind(&Listen::Unix(path.clone())).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
        assert_eq!(bound.local_addr(), None);
        drop(bound);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_socket_that_answers_is_left_alone_and_a_dead_one_is_replaced() {
        let (_directory, path) = socket();
        let alive = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let error = bind(&Listen::Unix(path.clone())).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AddrInUse, "{error}");
        drop(alive);
        assert!(path.exists());
        bind(&Listen::Unix(path.clone())).unwrap();
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_never_removed() {
        let (_directory, path) = socket();
        std::fs::write(&path, "precious").unwrap();
        let error = bind(&Listen::Unix(path.clone())).unwrap_err().to_string();
        assert!(error.contains("no socket") && error.contains("claviger.sock"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn a_port_that_only_root_may_use_comes_with_what_to_do() {
        let denied = Error::from(ErrorKind::PermissionDenied);
        let said = |port| cannot_listen("0.0.0.0", Some(port), &denied).to_string();
        assert!(said(443).contains("port 443 needs the capability CAP_NET_BIND_SERVICE"));
        assert!(!said(8443).contains("capability"));
        assert!(!cannot_listen("unix:/c.sock", None, &denied).to_string().contains("capability"));
    }

    #[tokio::test]
    async fn a_port_that_is_taken_is_named() {
        let first = bind(&Listen::Tcp("127.0.0.1:0".parse().unwrap())).unwrap();
        let address = first.local_addr().unwrap();
        let error = bind(&Listen::Tcp(address)).unwrap_err().to_string();
        assert!(error.contains(&address.to_string()), "{error}");
    }

    #[tokio::test]
    async fn both_families_listen_on_one_port() {
        let any = bind(&Listen::Tcp("0.0.0.0:0".parse().unwrap())).unwrap();
        let port = any.local_addr().unwrap().port();
        drop(any);
        let listen = ["0.0.0.0", "[::]"].map(|ip| format!("{ip}:{port}").parse().unwrap());
        let listen = listen.map(Listen::Tcp);
        for order in [[0, 1], [1, 0]] {
            let listen = order.map(|index| listen[index].clone());
            let bound = listen
                .each_ref()
                .map(|one| super::bind(one, &listen, &mut Inherited::default()).unwrap());
            drop(bound);
        }
    }
}
