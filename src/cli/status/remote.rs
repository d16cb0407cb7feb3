//! `/status` of operations listeners, over mutual TLS or, on loopback, without.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use claviger_client::{IdentityFiles, TlsFiles};
use http::header::HOST;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use url::Url;

use crate::cli::failure::{Exit, Failure};
use crate::daemon::operations::status::Status;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest answer that is read, in bytes.
const LONGEST: usize = 256 << 20;

/// Where operations listeners are, and what is shown to them.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Daemons on other hosts")]
pub(super) struct RemoteArgs {
    /// An operations listener: https://host:port, or http://127.0.0.1:port; repeat it for several
    #[arg(long, value_name = "URL", value_parser = endpoint, conflicts_with_all = ["config", "state_dir"])]
    endpoint: Vec<Url>,
    /// The CA certificates that the daemons' certificates are verified with, PEM
    #[arg(long, value_name = "FILE", requires = "endpoint")]
    ca: Option<PathBuf>,
    /// The certificate to show, PEM
    #[arg(long, value_name = "FILE", requires = "endpoint")]
    certificate: Option<PathBuf>,
    /// Its private key, PEM, not readable by others
    #[arg(long, value_name = "FILE", requires = "endpoint")]
    private_key: Option<PathBuf>,
}

/// An operations listener.
pub(super) struct Remote {
    endpoint: String,
    host: String,
    port: u16,
    /// None on loopback without TLS.
    tls: Option<Arc<ClientConfig>>,
}

fn endpoint(text: &str) -> Result<Url, String> {
    let wrong = "write https://host:port, or http://127.0.0.1:port on the daemon's own host";
    let url = Url::parse(text).map_err(|error| format!("{error}; {wrong}"))?;
    let is_origin = url.path() == "/" && url.query().is_none() && url.username().is_empty();
    let is_known = matches!(url.scheme(), "https" | "http") && url.host_str().is_some();
    if is_origin && is_known && url.port_or_known_default().is_some() {
        Ok(url)
    } else {
        Err(wrong.to_owned())
    }
}

impl RemoteArgs {
    /// The endpoints, with what TLS needs; empty where none was given.
    pub(super) fn endpoints(&self) -> Result<Vec<Remote>, Failure> {
        let needs_tls = self.endpoint.iter().any(|url| url.scheme() == "https");
        let tls = if needs_tls { Some(Arc::new(self.tls()?)) } else { None };
        let remote = |url: &Url| Remote {
            endpoint: url.as_str().trim_end_matches('/').to_owned(),
            // As `ServerName` and the resolver want an IPv6 address.
            host: url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned(),
            port: url.port_or_known_default().unwrap_or_default(),
            tls: tls.clone().filter(|_| url.scheme() == "https"),
        };
        Ok(self.endpoint.iter().map(remote).collect())
    }

    fn tls(&self) -> Result<ClientConfig, Failure> {
        let file = |given: &Option<PathBuf>, option: &str| {
            given.clone().ok_or_else(|| {
                Failure::new(Exit::Usage, format!("--{option}: an https endpoint needs it"))
            })
        };
        let ca = file(&self.ca, "ca")?;
        let identity = Some(IdentityFiles {
            certificate: file(&self.certificate, "certificate")?,
            private_key: file(&self.private_key, "private-key")?,
        });
        let files = TlsFiles { ca, identity };
        let mut config = files.client_config()?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }
}

impl Remote {
    /// As it was given.
    pub(super) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    async fn status(&self) -> Result<Status, String> {
        let tcp = TcpStream::connect((&*self.host, self.port)).await;
        let tcp = tcp.map_err(|error| error.to_string())?;
        let Some(tls) = &self.tls else { return self.get(tcp).await };
        let name = ServerName::try_from(self.host.clone()).map_err(|error| error.to_string())?;
        let stream = TlsConnector::from(Arc::clone(tls)).connect(name, tcp).await;
        self.get(stream.map_err(|error| error.to_string())?).await
    }

    async fn get(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    ) -> Result<Status, String> {
        let told = |error: hyper::Error| error.to_string();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(told)?;
        tokio::spawn(connection);
        let request = http::Request::get("/status").header(HOST, &self.host);
        let request = request.body(Empty::<Bytes>::new()).map_err(|error| error.to_string())?;
        let answer = sender.send_request(request).await.map_err(told)?;
        let code = answer.status();
        let body = Limited::new(answer.into_body(), LONGEST).collect().await;
        let body = body.map_err(|error| error.to_string())?.to_bytes();
        match code.as_u16() {
            200 => serde_json::from_slice(&body)
                .map_err(|error| format!("it answered something else: {error}")),
            403 => Err("this certificate is of no caller in operations.readers".to_owned()),
            404 => Err("it has no /status: is this the operations listener?".to_owned()),
            _ => Err(format!("it answered {code}")),
        }
    }
}

/// Asks all of them at once: what each answered, or why it did not.
pub(super) fn ask(remotes: &[Remote]) -> Result<Vec<Result<Status, String>>, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Failure, format!("cannot start: {error}")))?;
    let asked = remotes.iter().map(|remote| async move {
        let answer = tokio::time::timeout(PATIENCE, remote.status()).await;
        answer.unwrap_or_else(|_| Err(format!("no answer within {} s", PATIENCE.as_secs())))
    });
    Ok(runtime.block_on(futures::future::join_all(asked)))
}
