//! From an endpoint to a channel that connects when it is needed, and again when it was lost.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tonic::transport::Channel;

use crate::config::{ConfigError, Endpoint};
use crate::tls;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// An idle connection is asked this often whether it still exists: a firewall forgets it silently,
/// and the next call would wait for its whole deadline to find out.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Why no connection came about.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("cannot reach the daemon at {endpoint}: {reason}")]
    Unreachable { endpoint: String, reason: String },
    #[error("the daemon at {endpoint} showed a certificate that `ca` does not vouch for: {reason}")]
    NotTheDaemon { endpoint: String, reason: String },
}

/// A channel to `endpoint`. Its files are read now; it connects at the first call.
pub(crate) fn channel(endpoint: &Endpoint) -> Result<Channel, ConfigError> {
    let target = Arc::new(Target::new(endpoint)?);
    // tonic refuses to hand an https URI to a connector other than its own: the URI says http, the
    // origin (`:scheme` and `:authority` of each request) says what is true.
    let (uri, origin) = match endpoint {
        Endpoint::Tls { .. } => {
            let origin = endpoint.to_string();
            (origin.replacen("https", "http", 1), origin)
        }
        Endpoint::Unix(_) => ("http://localhost".to_owned(), "http://localhost".to_owned()),
    };
    let unusable = |_| ConfigError::Field {
        field: "endpoint",
        reason: format!("`{endpoint}` is not an address that HTTP/2 can carry"),
    };
    let origin: Uri = origin.parse().map_err(unusable)?;
    let uri: Uri = uri.parse().map_err(unusable)?;
    let connector = tower::service_fn(move |_: Uri| {
        let target = Arc::clone(&target);
        async move { target.connect().await.map(TokioIo::new) }
    });
    Ok(tonic::transport::Endpoint::from(uri)
        .origin(origin)
        .user_agent(concat!("claviger-client/", env!("CARGO_PKG_VERSION")))
        .expect("the version is a header value")
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .connect_with_connector_lazy(connector))
}

struct Target {
    endpoint: String,
    address: Address,
}

enum Address {
    Tls { host: String, port: u16, name: ServerName<'static>, connector: TlsConnector },
    Unix(PathBuf),
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Target {
    fn new(endpoint: &Endpoint) -> Result<Self, ConfigError> {
        let address = match endpoint {
            Endpoint::Tls { host, port, files } => Address::Tls {
                name: ServerName::try_from(host.clone()).map_err(|_| ConfigError::Field {
                    field: "endpoint",
                    reason: format!("`{host}` is neither a DNS name nor an IP address"),
                })?,
                host: host.clone(),
                port: *port,
                connector: TlsConnector::from(Arc::new(tls::client_config(files)?)),
            },
            Endpoint::Unix(path) => Address::Unix(path.clone()),
        };
        Ok(Self { endpoint: endpoint.to_string(), address })
    }

    async fn connect(&self) -> Result<Box<dyn Stream>, ConnectError> {
        match tokio::time::timeout(CONNECT_TIMEOUT, self.dial()).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(self.explain(&error)),
            Err(_) => {
                let seconds = CONNECT_TIMEOUT.as_secs();
                Err(self.unreachable(format!("no answer within {seconds} seconds")))
            }
        }
    }

    async fn dial(&self) -> io::Result<Box<dyn Stream>> {
        match &self.address {
            Address::Unix(path) => Ok(Box::new(UnixStream::connect(path).await?)),
            Address::Tls { host, port, name, connector } => {
                let tcp = TcpStream::connect((host.as_str(), *port)).await?;
                tcp.set_nodelay(true)?;
                let tls = connector.connect(name.clone(), tcp).await?;
                if tls.get_ref().1.alpn_protocol() != Some(b"h2") {
                    return Err(io::Error::other("it does not speak HTTP/2, hence no gRPC"));
                }
                Ok(Box::new(tls))
            }
        }
    }

    fn explain(&self, error: &io::Error) -> ConnectError {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(rustls::Error::InvalidCertificate(reason)) => ConnectError::NotTheDaemon {
                endpoint: self.endpoint.clone(),
                reason: reason.to_string(),
            },
            _ => self.unreachable(error.to_string()),
        }
    }

    fn unreachable(&self, reason: String) -> ConnectError {
        ConnectError::Unreachable { endpoint: self.endpoint.clone(), reason }
    }
}
