//! From an endpoint to an open connection.

use std::io;
use std::net::ToSocketAddrs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::uri::{Authority, Scheme};
use rustls::AlertDescription;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use crate::certificate;
use crate::channel::{Channel, Origin};
use crate::config::{ConfigError, Endpoint};
use crate::drained::received_alert;
use crate::error::{EndpointFailure, for_people};
use crate::tls::Identity;

/// Who drives the connections, and what follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Driver {
    /// A runtime of the program, all the time: it answers and sends pings, and has threads to look
    /// host names up.
    Always,
    /// The calls themselves: between them nothing moves, and there is no thread but the caller's.
    OnlyInCalls,
}

/// An endpoint that can be connected to.
pub(crate) struct Target {
    endpoint: String,
    origin: Origin,
    address: Address,
    driver: Driver,
}

enum Address {
    Tls {
        host: String,
        port: u16,
        name: ServerName<'static>,
        identity: Box<Identity>,
    },
    Unix(PathBuf),
    #[cfg(test)]
    InMemory(Dial),
}

/// How a test is connected to without a network, so that its clock can be stopped.
#[cfg(test)]
pub(crate) type Dial = Box<
    dyn Fn() -> std::pin::Pin<Box<dyn Future<Output = io::Result<tokio::io::DuplexStream>> + Send>>
        + Send
        + Sync,
>;

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Target {
    /// Reads the endpoint's files.
    pub(crate) fn new(endpoint: &Endpoint, driver: Driver) -> Result<Self, ConfigError> {
        let name = endpoint.to_string();
        let (origin, address) = match endpoint {
            Endpoint::Tls { host, port, files } => {
                let unusable = || ConfigError::Field {
                    field: "endpoint",
                    reason: format!("`{name}` does not name a host that HTTP/2 can carry"),
                };
                let authority = name.strip_prefix("https://").unwrap_or(&name);
                let authority: Authority = authority.parse().map_err(|_| unusable())?;
                let address = Address::Tls {
                    name: ServerName::try_from(host.clone()).map_err(|_| unusable())?,
                    host: host.clone(),
                    port: *port,
                    identity: Box::new(Identity::read(files)?),
                };
                (Origin { scheme: Scheme::HTTPS, authority }, address)
            }
            Endpoint::Unix(path) => {
                let authority = Authority::from_static("localhost");
                (Origin { scheme: Scheme::HTTP, authority }, Address::Unix(path.clone()))
            }
        };
        Ok(Self { endpoint: name, origin, address, driver })
    }

    /// The endpoint, as it was configured.
    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    #[cfg(test)]
    pub(crate) fn in_memory(name: &str, dial: Dial) -> Self {
        let authority = Authority::from_static("localhost");
        Self {
            endpoint: name.to_owned(),
            origin: Origin { scheme: Scheme::HTTP, authority },
            address: Address::InMemory(dial),
            driver: Driver::Always,
        }
    }

    /// A number that grows when the endpoint's files change.
    pub(crate) fn generation(&self) -> u64 {
        match &self.address {
            Address::Tls { identity, .. } => identity.current().1,
            Address::Unix(_) => 0,
            #[cfg(test)]
            Address::InMemory(_) => 0,
        }
    }

    /// Connects within `limit`.
    pub(crate) async fn connect(&self, limit: Duration) -> Result<Channel, EndpointFailure> {
        let open = async {
            let pings = self.driver == Driver::Always;
            let stream = self.dial().await.map_err(|error| self.explain(&error))?;
            let opened = Channel::open(stream, self.origin.clone(), pings).await;
            opened.map_err(|(error, alert)| match alert {
                Some(alert) => self.refused(alert),
                None => EndpointFailure::Unreachable(for_people(&error.to_string())),
            })
        };
        let opened = tokio::time::timeout(limit, open).await;
        opened.unwrap_or_else(|_| {
            Err(EndpointFailure::Unreachable(format!("no answer within {limit:.1?}")))
        })
    }

    /// The daemon refused this program's certificate.
    pub(crate) fn refused(&self, alert: AlertDescription) -> EndpointFailure {
        EndpointFailure::CertificateRefused(match &self.address {
            Address::Tls { identity, .. } => match identity.certificate() {
                Some(file) => certificate::refused(alert, file),
                None => "the daemon wants a client certificate beside the token".to_owned(),
            },
            Address::Unix(_) => format!("TLS alert {alert:?}"),
            #[cfg(test)]
            Address::InMemory(_) => format!("TLS alert {alert:?}"),
        })
    }

    async fn dial(&self) -> io::Result<Box<dyn Stream>> {
        match &self.address {
            Address::Unix(path) => Ok(Box::new(UnixStream::connect(path).await?)),
            #[cfg(test)]
            Address::InMemory(dial) => Ok(Box::new(dial().await?)),
            Address::Tls { host, port, name, identity } => {
                let tcp = self.reach(host, *port).await?;
                tcp.set_nodelay(true)?;
                let connector = TlsConnector::from(Arc::clone(&identity.current().0));
                let tls = connector.connect(name.clone(), tcp).await?;
                if tls.get_ref().1.alpn_protocol() != Some(b"h2") {
                    return Err(io::Error::other("it does not speak HTTP/2, hence no gRPC"));
                }
                Ok(Box::new(tls))
            }
        }
    }

    async fn reach(&self, host: &str, port: u16) -> io::Result<TcpStream> {
        match self.driver {
            Driver::Always => TcpStream::connect((host, port)).await,
            // tokio would start a thread to look a name up.
            Driver::OnlyInCalls => {
                let addresses: Vec<_> = (host, port).to_socket_addrs()?.collect();
                TcpStream::connect(&addresses[..]).await
            }
        }
    }

    fn explain(&self, error: &io::Error) -> EndpointFailure {
        if let Some(alert) = received_alert(error) {
            return self.refused(alert);
        }
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(rustls::Error::InvalidCertificate(reason)) => {
                EndpointFailure::NotTheDaemon(certificate::not_trusted(reason))
            }
            _ => EndpointFailure::Unreachable(for_people(&error.to_string())),
        }
    }
}
