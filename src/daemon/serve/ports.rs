//! The daemon's ports: where callers connect, and the operations listener.

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use claviger_proto::v1::key_service_server::KeyServiceServer;
use rustls_pki_types::CertificateDer;
use tokio::net::TcpListener;
use tonic::service::Routes;
use tonic_health::pb::health_server::HealthServer;

use crate::daemon::config::Listen;
use crate::daemon::operations::Sources;
use crate::daemon::operations::{self, Authorise, OperationsState, TlsSource};
use crate::daemon::request::admission::{Admission, Services, Shared};
use crate::daemon::request::health::{HealthService, Phase};
use crate::daemon::request::service::Service;
use crate::daemon::serve::ServeError;
use crate::daemon::serve::daemon::Daemon;
use crate::daemon::transport::caller::Peer;
use crate::daemon::transport::listener::{Bound, Inherited, bind};

/// What the daemon listens on.
pub(super) struct Ports {
    pub(super) callers: Vec<Bound>,
    pub(super) operations: Option<TcpListener>,
}

/// How long connections wait in the queues of their sockets while keys are opened for the first time: their
/// calls would be UNAVAILABLE after each restart. No longer, as one backend may hang and others serve.
const KEYS_FIRST: Duration = Duration::from_secs(2);

impl Daemon {
    /// Opens every port, but for those that a service manager has opened already.
    pub(super) fn listen(&self, mut inherited: Inherited) -> Result<Ports, ServeError> {
        let config = self.config.load();
        let failed = |field| move |error| ServeError::Listen { field, error };
        let operations =
            config.operations.as_ref().map(|operations| Listen::Tcp(operations.listen));
        let all: Vec<Listen> =
            config.server.listen.iter().cloned().chain(operations.clone()).collect();
        let mut bind = |one: &Listen| bind(one, &all, &mut inherited);
        let without = &config.server.without_certificate;
        let callers = config.server.listen.iter().map(|listen| match listen {
            Listen::Tcp(address) if without.contains(address) => {
                Ok(bind(listen)?.without_certificate())
            }
            _ => bind(listen),
        });
        let callers = callers.collect::<io::Result<_>>();
        let callers = callers.map_err(failed("server.listen"))?;
        let operations = operations.as_ref().map(bind).transpose();
        let operations = operations.map_err(failed("operations.listen"))?.and_then(Bound::into_tcp);
        inherited.all_taken().map_err(failed("server.listen"))?;
        Ok(Ports { callers, operations })
    }

    pub(super) async fn serve_connections(self, sockets: Vec<Bound>) -> io::Result<()> {
        let shared = Shared {
            snapshot: Arc::clone(&self.snapshot),
            denied: Arc::clone(&self.denied),
            audit: Arc::clone(&self.audit),
            metrics: Arc::clone(&self.metrics),
            in_flight: Arc::clone(&self.in_flight),
            tracer: Arc::clone(&self.tracer),
        };
        let keys = KeyServiceServer::new(Service::new(Arc::clone(&self.guard)))
            .max_decoding_message_size(claviger_proto::MAX_MESSAGE_BYTES)
            .max_encoding_message_size(claviger_proto::MAX_MESSAGE_BYTES);
        let admission =
            Admission::new(Services { keys, others: self.other_routes() }, Arc::new(shared));
        let mut phase = self.phase.subscribe();
        let keys_are_opened = phase.wait_for(|phase| *phase != Phase::Starting);
        let _ = tokio::time::timeout(KEYS_FIRST, keys_are_opened).await;
        self.transport.serve(sockets, admission, self.draining()).await
    }

    /// Never ends well: without a listener there is nothing to wait for.
    pub(super) async fn serve_operations(self, listener: Option<TcpListener>) -> io::Result<()> {
        let Some(listener) = listener else { return std::future::pending().await };
        let tls =
            self.tls.clone().filter(|_| !listener.local_addr().is_ok_and(|a| a.ip().is_loopback()));
        let source =
            tls.map(|tls| -> TlsSource { Arc::new(move || tls.load().operations_config()) });
        let state = Arc::new(OperationsState::new(self.sources()));
        let daemon = self.clone();
        let authorise: Authorise = Arc::new(move |chain| daemon.may_read_metrics(chain));
        let (descriptors, never) = (self.descriptors, std::future::pending());
        operations::serve(listener, source, authorise, state, descriptors, never).await
    }

    /// To all services but that of keys.
    fn other_routes(&self) -> Routes {
        let health = HealthServer::new(HealthService {
            phase: self.phase.subscribe(),
            changes: self.changed.subscribe(),
            audit: Arc::clone(&self.audit),
            snapshot: Arc::clone(&self.snapshot),
        })
        .max_decoding_message_size(claviger_proto::MAX_MESSAGE_BYTES);
        let mut routes = Routes::new(health);
        if self.config.load().server.reflection {
            // grpcui, grpc_cli and Python's client still ask for the older version.
            let v1 = reflection().build_v1().expect(OWN_BUILD);
            let v1alpha = reflection().build_v1alpha().expect(OWN_BUILD);
            routes = routes
                .add_service(v1.max_decoding_message_size(claviger_proto::MAX_MESSAGE_BYTES))
                .add_service(v1alpha.max_decoding_message_size(claviger_proto::MAX_MESSAGE_BYTES));
        }
        routes.prepare()
    }

    pub(super) fn sources(&self) -> Sources {
        Sources {
            active: Arc::clone(&self.active),
            config: Arc::clone(&self.config),
            metrics: Arc::clone(&self.metrics),
            started: self.started,
            phase: self.phase.subscribe(),
            in_flight: Arc::clone(&self.in_flight),
            connections: self.transport.stats(),
            tls: self.tls.clone(),
            denied: Arc::clone(&self.denied),
            audit: Arc::clone(&self.audit),
        }
    }

    /// Whether the certificate is one of a caller in `operations.readers`.
    fn may_read_metrics(&self, chain: &[CertificateDer<'_>]) -> bool {
        let Some(tls) = &self.tls else { return false };
        let config = self.config.load();
        let Some(operations) = &config.operations else { return false };
        let Ok(verified) = tls.load().trust().verify(chain, SystemTime::now()) else {
            return false;
        };
        let Ok(peer) = Peer::with_certificate(operations.listen, verified, chain) else {
            return false;
        };
        let snapshot = self.snapshot.load();
        let caller = snapshot.identify(&peer).ok().filter(|_| !self.denied.denies(&peer));
        caller.is_some_and(|caller| operations.readers.iter().any(|name| **name == *caller.name))
    }

    /// Ends when no more connections are to be accepted.
    fn draining(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut phase = self.phase.subscribe();
        let config = Arc::clone(&self.config);
        async move {
            let _ = phase.wait_for(|phase| *phase == Phase::Draining).await;
            // Time for balancers to see that this daemon is not ready.
            tokio::time::sleep(config.load().server.drain_delay).await;
        }
    }
}

const OWN_BUILD: &str = "the descriptor sets were made by our own build";

fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(claviger_proto::DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}
