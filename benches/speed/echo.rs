//! A bare tonic server with mutual TLS that answers at once: the same messages, nothing behind them.

use std::fs;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use claviger_proto::v1;
use claviger_proto::v1::key_service_server::{KeyService, KeyServiceServer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status};

use crate::Outcome;
use crate::noop::MATERIAL;

/// The file that names its port.
pub(crate) const PORT_FILE: &str = "echo-port";

/// Serves with the certificates of a daemon, on as many threads as the daemon has for its sockets.
pub(crate) fn serve(files: &Path) -> Outcome<()> {
    #[cfg(target_os = "linux")]
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))?;
    let cores = claviger::cli::bench::cpu::cores();
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads((cores / 2).max(1))
        .enable_all()
        .build()?
        .block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            let port = listener.local_addr()?.port().to_string();
            fs::write(files.join(PORT_FILE), port)?;
            let acceptor = TlsAcceptor::from(Arc::new(tls(files)?));
            let (accepted, streams) = tokio::sync::mpsc::channel(64);
            tokio::spawn(accept(listener, acceptor, accepted));
            let streams = futures::stream::unfold(streams, |mut streams| async {
                Some((streams.recv().await?, streams))
            });
            let service = KeyServiceServer::new(Echo);
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(streams)
                .await?;
            Ok(())
        })
}

fn tls(files: &Path) -> Outcome<ServerConfig> {
    let file = |name: &str| files.join("pki").join(name);
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(file("ca.crt"))?)?;
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build()?;
    let chain = CertificateDer::pem_file_iter(file("server.crt"))?.collect::<Result<_, _>>()?;
    let mut config = ServerConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, PrivateKeyDer::from_pem_file(file("server.key"))?)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    accepted: tokio::sync::mpsc::Sender<io::Result<Stream>>,
) {
    while let Ok((stream, _)) = listener.accept().await {
        let (acceptor, accepted) = (acceptor.clone(), accepted.clone());
        tokio::spawn(async move {
            let _ = stream.set_nodelay(true);
            if let Ok(stream) = acceptor.accept(stream).await {
                let _ = accepted.send(Ok(Stream(stream))).await;
            }
        });
    }
}

/// What tonic wants to know of a stream: nothing.
struct Stream(TlsStream<TcpStream>);

impl Connected for Stream {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }
}

struct Echo;

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl KeyService for Echo {
    async fn unwrap(&self, _: Request<v1::UnwrapRequest>) -> Answer<v1::UnwrapResponse> {
        let key_material = Bytes::copy_from_slice(&[7; MATERIAL]);
        Ok(Response::new(v1::UnwrapResponse { key_material, key_version: 1 }))
    }

    async fn wrap(&self, _: Request<v1::WrapRequest>) -> Answer<v1::WrapResponse> {
        Err(not_here())
    }

    async fn unwrap_batch(
        &self,
        _: Request<v1::UnwrapBatchRequest>,
    ) -> Answer<v1::UnwrapBatchResponse> {
        Err(not_here())
    }

    async fn rewrap(&self, _: Request<v1::RewrapRequest>) -> Answer<v1::RewrapResponse> {
        Err(not_here())
    }

    async fn rewrap_batch(
        &self,
        _: Request<v1::RewrapBatchRequest>,
    ) -> Answer<v1::RewrapBatchResponse> {
        Err(not_here())
    }

    async fn sign(&self, _: Request<v1::SignRequest>) -> Answer<v1::SignResponse> {
        Err(not_here())
    }

    async fn verify(&self, _: Request<v1::VerifyRequest>) -> Answer<v1::VerifyResponse> {
        Err(not_here())
    }

    async fn list_keys(&self, _: Request<v1::ListKeysRequest>) -> Answer<v1::ListKeysResponse> {
        Err(not_here())
    }

    async fn get_key(&self, _: Request<v1::GetKeyRequest>) -> Answer<v1::GetKeyResponse> {
        Err(not_here())
    }
}

fn not_here() -> Status {
    Status::unimplemented("the echo only unwraps")
}
