//! A stream over TLS 1.2 or 1.3 to a collector that a CA file vouches for.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use claviger_files::pem::{self, Beside};
use claviger_provider_api::SecretSource;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls_pki_types::{CertificateDer, ServerName};

use crate::daemon::config::TlsSink;

/// A collector.
pub(super) struct TlsTarget {
    host: String,
    port: u16,
    name: ServerName<'static>,
    config: Arc<ClientConfig>,
}

/// A connection to it.
pub(super) struct Stream(StreamOwned<ClientConnection, TcpStream>);

impl TlsTarget {
    /// Reads the CA, and the certificate with its key if the collector asks for one.
    pub(super) fn open(options: &TlsSink) -> io::Result<Self> {
        let name = ServerName::try_from(options.host.clone()).map_err(io::Error::other)?;
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&options.ca)? {
            roots.add(certificate).map_err(|error| in_file(&options.ca, &error))?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_root_certificates(roots);
        let config = match &options.identity {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let pem = SecretSource::File(key.clone()).read_blocking();
                let pem = pem.map_err(io::Error::other)?;
                let private =
                    pem::private_key(pem.expose()).map_err(|error| in_file(key, &error))?;
                let chain = certificates(certificate)?;
                let config = builder.with_client_auth_cert(chain, private);
                config.map_err(|error| in_file(certificate, &error))?
            }
        };
        let (host, port) = (options.host.clone(), options.port);
        Ok(Self { host, port, name, config: Arc::new(config) })
    }

    /// Connects; `patience` is for each step of it, and for each write afterwards.
    pub(super) fn connect(&self, patience: Duration) -> io::Result<Stream> {
        let mut refused = None;
        for address in (self.host.as_str(), self.port).to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, patience) {
                Ok(socket) => return self.handshake(socket, patience),
                Err(error) => refused = Some(error),
            }
        }
        Err(refused.unwrap_or_else(|| io::Error::other("the collector's name has no address")))
    }

    fn handshake(&self, socket: TcpStream, patience: Duration) -> io::Result<Stream> {
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(patience))?;
        socket.set_write_timeout(Some(patience))?;
        let connection = ClientConnection::new(Arc::clone(&self.config), self.name.clone());
        let mut stream = StreamOwned::new(connection.map_err(io::Error::other)?, socket);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        Ok(Stream(stream))
    }
}

impl Stream {
    /// Sends it all. A collector that has ended the connection is noticed before: what is written to it
    /// would be lost without an error.
    pub(super) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.see_that_it_is_open()?;
        self.0.write_all(bytes)?;
        self.0.flush()
    }

    /// Says that nothing more comes, and waits until the collector has said the same: then it has all.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        self.0.conn.send_close_notify();
        self.0.flush()?;
        self.0.sock.shutdown(std::net::Shutdown::Write)?;
        let mut rest = [0; 512];
        while self.0.read(&mut rest)? > 0 {}
        Ok(())
    }

    fn see_that_it_is_open(&mut self) -> io::Result<()> {
        let ended = || {
            io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "the collector has ended the connection",
            )
        };
        let mut byte = [0];
        self.0.sock.set_nonblocking(true)?;
        let read = self.0.read(&mut byte);
        self.0.sock.set_nonblocking(false)?;
        match read {
            Ok(0) => Err(ended()),
            // A collector says nothing (RFC 5425), and what it says is of no interest.
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error),
        }
    }
}

fn certificates(path: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let file = std::fs::read(path).map_err(|error| in_file(path, &error))?;
    pem::certificates(&file, Beside::Nothing).map_err(|error| in_file(path, &error))
}

fn in_file(path: &Path, error: &dyn std::fmt::Display) -> io::Error {
    io::Error::other(format!("{}: {error}", path.display()))
}
