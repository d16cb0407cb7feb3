//! 10,000 connections that are open and say nothing: that none is dropped, and what each costs.
#![expect(clippy::cast_precision_loss, reason = "bytes and connections are below 2^52")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use claviger::cli::bench::cpu;
use futures::StreamExt;
use hyper_util::rt::TokioIo;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::child::Server;
use crate::daemon_files::{DaemonFiles, Size};
use crate::table::{Row, Wanted};
use crate::{Effort, Outcome};

const CONNECTIONS: usize = 10_000;
/// Beside them a process has a few files of its own.
const SPARE_FILES: u64 = 200;
/// Longer than the daemon gives a client to say its first word.
const IDLE: Duration = Duration::from_secs(15);
const AT_ONCE: usize = 32;

pub(crate) fn measure(runtime: &Runtime, _: Effort) -> Outcome<Vec<Row>> {
    let connections = raise_file_limit();
    runtime.block_on(async {
        let files = DaemonFiles::new(Size::ONE)?;
        let server = Server::noop(&std::env::current_exe()?, &files.config(), files.port)?;
        let resident = || cpu::resident(server.pid()).ok_or("there is no /proc");
        let dialled = Arc::new(AtomicUsize::new(0));
        let tls = TlsConnector::from(Arc::new(client_tls(&files)?));
        // One alone first: what the first of all costs is not theirs.
        let first = channel(&files, &tls, &Arc::default());
        ask(&first).await?;
        let before = resident()?;
        eprintln!("idle: opening {connections} connections");
        let channels =
            (0..connections).map(|_| channel(&files, &tls, &dialled)).collect::<Vec<_>>();
        ask_all(&channels).await?;
        tokio::time::sleep(IDLE).await;
        let each = (resident()? - before) as f64 / connections as f64 / 1024.0;
        // A channel whose connection was dropped dials again.
        ask_all(&channels).await?;
        let dropped = dialled.load(Ordering::Relaxed) - connections;
        Ok(vec![
            Row {
                what: format!("{connections} idle mTLS connections: memory for each"),
                wanted: Some(Wanted::AtMost(36.0)),
                measured: each,
                unit: " KiB",
                figures: format!("{:.1} MiB before", before as f64 / f64::from(1 << 20)),
            },
            Row {
                what: format!("of these, dropped within {} s", IDLE.as_secs()),
                wanted: Some(Wanted::AtMost(0.0)),
                measured: dropped as f64,
                unit: "",
                figures: String::new(),
            },
        ])
    })
}

/// For this process, and for those that it starts; how many connections that allows.
fn raise_file_limit() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let connections = usize::try_from(files.saturating_sub(SPARE_FILES)).unwrap_or(CONNECTIONS);
    if connections < CONNECTIONS {
        eprintln!("idle: only {connections} connections, as a process may open {files} files here");
    }
    connections.min(CONNECTIONS)
}

fn client_tls(files: &DaemonFiles) -> Outcome<ClientConfig> {
    let file = |name: &str| files.path("pki").join(name);
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(file("ca.crt"))?)?;
    let chain = CertificateDer::pem_file_iter(file("client.crt"))?.collect::<Result<_, _>>()?;
    let key = PrivateKeyDer::from_pem_file(file("client.key"))?;
    let mut config =
        ClientConfig::builder().with_root_certificates(roots).with_client_auth_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

fn channel(files: &DaemonFiles, tls: &TlsConnector, dialled: &Arc<AtomicUsize>) -> Channel {
    let (tls, dialled, port) = (tls.clone(), Arc::clone(dialled), files.port);
    let connect = tower::service_fn(move |_| {
        let (tls, dialled) = (tls.clone(), Arc::clone(&dialled));
        async move {
            dialled.fetch_add(1, Ordering::Relaxed);
            let stream = TcpStream::connect(("127.0.0.1", port)).await?;
            let name = ServerName::try_from("localhost").expect("it is a DNS name");
            tls.connect(name, stream).await.map(TokioIo::new)
        }
    });
    Endpoint::from_static("http://localhost").connect_with_connector_lazy(connect)
}

async fn ask(channel: &Channel) -> Outcome<()> {
    let request = HealthCheckRequest { service: String::new() };
    HealthClient::new(channel.clone()).check(request).await?;
    Ok(())
}

async fn ask_all(channels: &[Channel]) -> Outcome<()> {
    let mut asked = futures::stream::iter(channels).map(ask).buffer_unordered(AT_ONCE);
    while let Some(outcome) = asked.next().await {
        outcome?;
    }
    Ok(())
}
