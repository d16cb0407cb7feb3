//! `grpc.health.v1`: whether calls are accepted, and whether a key serves, for those who may use it.

use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, stream};
use tokio::sync::watch;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::Health;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use crate::daemon::records::audit::Audit;
use crate::daemon::request::active::Snapshot;
use crate::daemon::request::call::{self, CallContext};

/// The service name in front of a key's name: `claviger.v1.KeyService/user-keys`.
const PREFIX: &str = "claviger.v1.KeyService";

/// Where the daemon is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Keys are being opened for the first time.
    Starting,
    /// Calls are accepted.
    Ready,
    /// Calls in flight end; no more are wanted.
    Draining,
}

/// The health service.
#[derive(Clone, Debug)]
pub struct HealthService {
    /// Where the daemon is in its life.
    pub phase: watch::Receiver<Phase>,
    /// Counts changes of any replica's health and of the keyring.
    pub changes: watch::Receiver<u64>,
    /// No key serves while its calls cannot be recorded.
    pub audit: Arc<Audit>,
    /// Keys in force, for watches that outlive a reload.
    pub snapshot: Arc<arc_swap::ArcSwap<Snapshot>>,
}

impl HealthService {
    /// The status of `service` for this caller; none for what it may not know about.
    fn status(&self, context: &CallContext, service: &str) -> Option<ServingStatus> {
        let phase = *self.phase.borrow();
        let up = match service.strip_prefix(PREFIX) {
            _ if service.is_empty() => phase == Phase::Ready,
            Some("") => phase == Phase::Ready,
            Some(key) => {
                let snapshot = self.snapshot.load();
                let caller = snapshot.identify(&context.peer).ok()?;
                let granted = caller.grants.get(key.strip_prefix('/')?)?;
                if !granted.key.is_usable() {
                    return None;
                }
                phase != Phase::Draining && granted.key.is_serving() && !self.audit.is_failing()
            }
            None => return None,
        };
        Some(if up { ServingStatus::Serving } else { ServingStatus::NotServing })
    }
}

#[tonic::async_trait]
impl Health for HealthService {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let (context, HealthCheckRequest { service }) = call::open(request)?;
        match self.status(&context, &service) {
            Some(status) => Ok(Response::new(HealthCheckResponse { status: status.into() })),
            None => Err(Status::not_found("unknown service")),
        }
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let (context, HealthCheckRequest { service }) = call::open(request)?;
        let watch = Watch { health: self.clone(), context, service, last: None, ended: false };
        Ok(Response::new(Box::pin(stream::unfold(watch, Watch::next))))
    }
}

/// One watch: a message for each change, and none for what stays.
struct Watch {
    health: HealthService,
    context: Arc<CallContext>,
    service: String,
    last: Option<ServingStatus>,
    ended: bool,
}

impl Watch {
    async fn next(mut self) -> Option<(Result<HealthCheckResponse, Status>, Self)> {
        // A drain tells the watchers once and ends their streams, which else would hold it up.
        while !self.ended {
            self.health.phase.mark_unchanged();
            self.health.changes.mark_unchanged();
            let status = self.health.status(&self.context, &self.service);
            let status = status.unwrap_or(ServingStatus::ServiceUnknown);
            self.ended = *self.health.phase.borrow() == Phase::Draining;
            if self.last != Some(status) {
                self.last = Some(status);
                return Some((Ok(HealthCheckResponse { status: status.into() }), self));
            }
            if self.ended {
                break;
            }
            let ended = tokio::select! {
                changed = self.health.phase.changed() => changed,
                changed = self.health.changes.changed() => changed,
            };
            ended.ok()?;
        }
        None
    }
}
