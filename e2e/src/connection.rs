//! A client that shows all that came back, byte for byte: HTTP/2 over mutual TLS by hand, so that
//! tests depend on no client of ours and can send what no client would.

use std::convert::Infallible;
use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use claviger_proto::v1::{
    GetKeyRequest, GetKeyResponse, ListKeysRequest, ListKeysResponse, RewrapBatchRequest,
    RewrapBatchResponse, RewrapRequest, RewrapResponse, SignRequest, SignResponse,
    UnwrapBatchRequest, UnwrapBatchResponse, UnwrapRequest, UnwrapResponse, VerifyRequest,
    VerifyResponse, WrapRequest, WrapResponse,
};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs;
use rustls::{ClientConfig, ProtocolVersion, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use crate::pki::Identity;

/// Why a connection was not made or a call got no answer at all.
pub type ConnectionError = Box<dyn std::error::Error + Send + Sync>;

/// One HTTP/2 connection. Clones share it; calls on clones run side by side.
#[derive(Clone, Debug)]
pub struct Connection {
    sender: SendRequest<BoxBody<Bytes, Infallible>>,
    /// What TLS agreed on; none on a Unix socket.
    pub tls: Option<TlsFacts>,
}

/// What TLS agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TlsFacts {
    /// The protocol version.
    pub version: ProtocolVersion,
    /// The key exchange.
    pub key_exchange: rustls::NamedGroup,
}

/// All that came back from one call.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The HTTP status: 200 for every gRPC answer.
    pub http_status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body: gRPC frames.
    pub body: Bytes,
    /// The trailers; empty if the answer had none, as one that consists of headers only.
    pub trailers: HeaderMap,
}

impl Connection {
    /// Connects over mutual TLS 1.3; without an `identity`, without a client certificate. In TLS 1.3
    /// a daemon that refuses the certificate does so after this: the first call then fails.
    pub async fn open(
        address: SocketAddr,
        ca: CertificateDer<'static>,
        identity: Option<&Identity>,
    ) -> Result<Self, ConnectionError> {
        Self::open_with(address, client_config(ca, identity)?).await
    }

    /// Connects with a TLS configuration of the test's own.
    pub async fn open_with(
        address: SocketAddr,
        config: ClientConfig,
    ) -> Result<Self, ConnectionError> {
        let tcp = TcpStream::connect(address).await?;
        tcp.set_nodelay(true)?;
        let name = ServerName::try_from("localhost")?;
        let stream = TlsConnector::from(Arc::new(config)).connect(name, tcp).await?;
        let session = stream.get_ref().1;
        let tls = TlsFacts {
            version: session.protocol_version().ok_or("no TLS version")?,
            key_exchange: session.negotiated_key_exchange_group().ok_or("no key exchange")?.name(),
        };
        Ok(Self { tls: Some(tls), ..Self::over(stream).await? })
    }

    /// Connects to a Unix socket.
    pub async fn open_unix(path: &Path) -> Result<Self, ConnectionError> {
        Self::over(UnixStream::connect(path).await?).await
    }

    async fn over(
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    ) -> Result<Self, ConnectionError> {
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await?;
        // Ends with the last clone of the sender; what goes wrong shows in the calls themselves.
        tokio::spawn(connection);
        Ok(Self { sender, tls: None })
    }

    /// Whether the daemon has closed the connection.
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// Wrap.
    pub async fn wrap(&self, request: &WrapRequest) -> Result<WrapResponse, Answer> {
        self.key_service("Wrap", request).await
    }

    /// Unwrap.
    pub async fn unwrap(&self, request: &UnwrapRequest) -> Result<UnwrapResponse, Answer> {
        self.key_service("Unwrap", request).await
    }

    /// UnwrapBatch.
    pub async fn unwrap_batch(
        &self,
        request: &UnwrapBatchRequest,
    ) -> Result<UnwrapBatchResponse, Answer> {
        self.key_service("UnwrapBatch", request).await
    }

    /// Rewrap.
    pub async fn rewrap(&self, request: &RewrapRequest) -> Result<RewrapResponse, Answer> {
        self.key_service("Rewrap", request).await
    }

    /// RewrapBatch.
    pub async fn rewrap_batch(
        &self,
        request: &RewrapBatchRequest,
    ) -> Result<RewrapBatchResponse, Answer> {
        self.key_service("RewrapBatch", request).await
    }

    /// Sign.
    pub async fn sign(&self, request: &SignRequest) -> Result<SignResponse, Answer> {
        self.key_service("Sign", request).await
    }

    /// Verify.
    pub async fn verify(&self, request: &VerifyRequest) -> Result<VerifyResponse, Answer> {
        self.key_service("Verify", request).await
    }

    /// ListKeys.
    pub async fn list_keys(&self, request: &ListKeysRequest) -> Result<ListKeysResponse, Answer> {
        self.key_service("ListKeys", request).await
    }

    /// GetKey.
    pub async fn get_key(&self, request: &GetKeyRequest) -> Result<GetKeyResponse, Answer> {
        self.key_service("GetKey", request).await
    }

    /// A method of `claviger.v1.KeyService`: its message, or the answer that is none. No answer at
    /// all is a panic.
    async fn key_service<M: Message + Default>(
        &self,
        method: &str,
        request: &impl Message,
    ) -> Result<M, Answer> {
        let path = format!("/claviger.v1.KeyService/{method}");
        let answer = self.call(&path, frame(&request.encode_to_vec()), &[]).await;
        let answer = answer.unwrap_or_else(|error| panic!("{method}: {error}"));
        match answer.code() {
            Code::Ok => Ok(answer.message()),
            _ => Err(answer),
        }
    }

    /// Sends `body` as it is to `path`, with further `headers`, and waits for all of the answer. A
    /// header that gRPC always has is replaced, or left out if its new value is empty; `:method` is the
    /// method, where it is not POST.
    pub async fn call(
        &self,
        path: &str,
        body: Bytes,
        headers: &[(&str, &str)],
    ) -> Result<Answer, ConnectionError> {
        let method = headers.iter().find(|(name, _)| *name == ":method");
        let mut request = Request::builder()
            .method(method.map_or("POST", |(_, method)| method))
            .uri(format!("https://localhost{path}"));
        for (name, value) in [("content-type", "application/grpc"), ("te", "trailers")] {
            match headers.iter().find(|(other, _)| *other == name) {
                Some((_, "")) => {}
                Some((_, other)) => request = request.header(name, *other),
                None => request = request.header(name, value),
            }
        }
        for (name, value) in
            headers.iter().filter(|(name, _)| ![":method", "content-type", "te"].contains(name))
        {
            request = request.header(*name, *value);
        }
        let mut sender = self.sender.clone();
        sender.ready().await?;
        let response = sender.send_request(request.body(Full::new(body).boxed())?).await?;
        let (head, body) = response.into_parts();
        let collected = body.collect().await?;
        Ok(Answer {
            http_status: head.status,
            headers: head.headers,
            trailers: collected.trailers().cloned().unwrap_or_default(),
            body: collected.to_bytes(),
        })
    }
}

impl Answer {
    /// The gRPC status code; an answer without one is a panic.
    pub fn code(&self) -> Code {
        let status = self.status_field("grpc-status").unwrap_or_else(|| panic!("{self:?}"));
        Code::from_bytes(status)
    }

    /// The status message, percent-encoded as on the wire.
    pub fn status_message(&self) -> &str {
        let text = self.status_field("grpc-message").unwrap_or_default();
        std::str::from_utf8(text).expect("grpc-message is ASCII")
    }

    /// The status details (google.rpc.Status) in base64, as on the wire.
    pub fn status_details(&self) -> Option<&[u8]> {
        self.status_field("grpc-status-details-bin")
    }

    /// The status with its parsed details, as tonic reads it.
    pub fn status(&self) -> tonic::Status {
        tonic::Status::from_header_map(&self.trailers)
            .or_else(|| tonic::Status::from_header_map(&self.headers))
            .unwrap_or_else(|| panic!("no gRPC status: {self:?}"))
    }

    /// The daemon's request id.
    pub fn request_id(&self) -> Option<&str> {
        std::str::from_utf8(self.status_field(claviger_proto::REQUEST_ID)?).ok()
    }

    /// All of the answer but the values of the request id: what must be the same for every cause
    /// of a failed unwrap. Headers and trailers keep their order.
    pub fn comparable(&self) -> String {
        let fields = |map: &HeaderMap| {
            map.iter()
                .map(|(name, value)| match name.as_str() {
                    claviger_proto::REQUEST_ID => format!("{name}: [request id]"),
                    _ => format!("{name}: {value:?}"),
                })
                .collect::<Vec<_>>()
                .join("\n")
        };
        format!(
            "{}\n{}\n\n{}\n\n{}",
            self.http_status,
            fields(&self.headers),
            hex::encode(&self.body),
            fields(&self.trailers)
        )
    }

    /// The one message of a successful answer.
    pub fn message<M: Message + Default>(&self) -> M {
        let length = self.body.get(1..5).map(|bytes| bytes.try_into().expect("four bytes"));
        let length = length.map_or_else(|| panic!("no frame: {self:?}"), u32::from_be_bytes);
        assert_eq!(self.body[0], 0, "not compressed");
        assert_eq!(self.body.len(), 5 + length as usize, "one frame and nothing else");
        M::decode(self.body.slice(5..)).expect("a protobuf message")
    }

    fn status_field(&self, name: &str) -> Option<&[u8]> {
        self.trailers.get(name).or_else(|| self.headers.get(name)).map(http::HeaderValue::as_bytes)
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.code(), self.status_message())
    }
}

/// One gRPC frame (gRPC over HTTP/2, "Length-Prefixed-Message"): not compressed.
pub fn frame(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(5 + message.len());
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).expect("tests send less than 4 GiB"));
    frame.put_slice(message);
    frame.freeze()
}

/// TLS 1.3 with no resumption, as a client of the test's CA.
pub fn client_config(
    ca: CertificateDer<'static>,
    identity: Option<&Identity>,
) -> Result<ClientConfig, rustls::Error> {
    let mut roots = RootCertStore::empty();
    roots.add(ca)?;
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            builder.with_client_auth_cert(vec![identity.certificate()], identity.private_key())?
        }
    };
    config.resumption = Resumption::disabled();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// A connection that has begun HTTP/2; nothing is read from it after the daemon's first byte.
pub async fn deaf(
    address: SocketAddr,
    config: ClientConfig,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>, ConnectionError> {
    let tcp = TcpStream::connect(address).await?;
    let name = ServerName::try_from("localhost")?;
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, tcp).await?;
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await?;
    stream.read_u8().await?;
    Ok(stream)
}

/// The same as a tonic channel, for streams (health Watch, reflection) and generated clients.
pub async fn channel(
    address: SocketAddr,
    ca: CertificateDer<'static>,
    identity: Option<&Identity>,
) -> Result<Channel, ConnectionError> {
    let connector = TlsConnector::from(Arc::new(client_config(ca, identity)?));
    // The scheme is http because TLS happens below tonic; `origin` sets what the server sees.
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?
        .origin(http::Uri::from_static("https://localhost"))
        .connect_timeout(Duration::from_secs(10));
    let connect = tower::service_fn(move |_| {
        let connector = connector.clone();
        async move {
            let tcp = TcpStream::connect(address).await?;
            tcp.set_nodelay(true)?;
            let name = ServerName::try_from("localhost").expect("a DNS name");
            connector.connect(name, tcp).await.map(TokioIo::new)
        }
    });
    Ok(endpoint.connect_with_connector(connect).await?)
}
