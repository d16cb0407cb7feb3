//! From an endpoint to an open HTTP/2 connection.

use std::io;
use std::sync::Arc;

use claviger_files::pem::{self, Beside};
use claviger_provider_api::foreign::chain_line;
use claviger_provider_api::{SecretSource, tls};
use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint};

use super::ExportError;
use super::headers;
use crate::daemon::config::OtlpCollector;

/// An open connection, and what is sent with each request.
pub(super) struct Connection {
    pub(super) channel: Channel,
    pub(super) headers: MetadataMap,
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// TLS, and the name that the collector's certificate must have.
type Tls = (Arc<ClientConfig>, ServerName<'static>);

/// Sees that the files that a connection needs are there and right.
pub(super) fn check(options: &OtlpCollector) -> io::Result<()> {
    headers::read(options.headers.as_deref())?;
    tls(options)?;
    Ok(())
}

/// Reads the files and connects.
pub(super) async fn connect(options: &OtlpCollector) -> Result<Connection, ExportError> {
    let refused = |error: &dyn std::fmt::Display| ExportError::NotConnected(error.to_string());
    let headers = headers::read(options.headers.as_deref()).map_err(|error| refused(&error))?;
    let tls = tls(options).map_err(|error| refused(&error))?;
    let endpoint = &options.endpoint;
    let origin: Uri = endpoint.to_string().parse().map_err(|error| refused(&error))?;
    let (host, port) = (endpoint.host.clone(), endpoint.port);
    let dial = tower::service_fn(move |_: Uri| dial(host.clone(), port, tls.clone()));
    // The connector does what TLS there is; the URI only says how requests are addressed.
    let channel = Endpoint::from_static("http://collector")
        .origin(origin)
        .user_agent(concat!("claviger/", env!("CARGO_PKG_VERSION")))
        .map_err(|error| refused(&error))?
        .connect_with_connector(dial)
        .await
        .map_err(|error| ExportError::NotConnected(chain_line(&error)))?;
    Ok(Connection { channel, headers })
}

async fn dial(host: String, port: u16, tls: Option<Tls>) -> io::Result<TokioIo<Box<dyn Stream>>> {
    let socket = TcpStream::connect((host.as_str(), port)).await?;
    socket.set_nodelay(true)?;
    let stream: Box<dyn Stream> = match tls {
        None => Box::new(socket),
        Some((config, name)) => Box::new(TlsConnector::from(config).connect(name, socket).await?),
    };
    Ok(TokioIo::new(stream))
}

/// None for an endpoint on loopback without TLS.
fn tls(options: &OtlpCollector) -> io::Result<Option<Tls>> {
    if !options.endpoint.is_tls {
        return Ok(None);
    }
    let identity = options.identity.as_ref().map(|(certificate, key)| {
        let in_file = |path: &std::path::Path, error: &dyn std::fmt::Display| {
            io::Error::other(format!("{}: {error}", path.display()))
        };
        let secret = SecretSource::File(key.clone()).read_blocking().map_err(io::Error::other)?;
        let private = pem::private_key(secret.expose()).map_err(|error| in_file(key, &error))?;
        let chain = std::fs::read(certificate).map_err(|error| in_file(certificate, &error))?;
        let chain = pem::certificates(&chain, Beside::Nothing);
        Ok::<_, io::Error>((chain.map_err(|error| in_file(certificate, &error))?, private))
    });
    let config = tls::client_config(options.ca.as_deref(), identity.transpose()?);
    let mut config = config.map_err(io::Error::other)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    let name = ServerName::try_from(options.endpoint.host.clone()).map_err(io::Error::other)?;
    Ok(Some((Arc::new(config), name)))
}
