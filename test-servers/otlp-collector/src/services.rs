//! The two services of a collector.

use std::sync::{Arc, Mutex};

use claviger_otlp::logs_service::logs_service_server::LogsService;
use claviger_otlp::logs_service::{
    ExportLogsPartialSuccess, ExportLogsServiceRequest, ExportLogsServiceResponse,
};
use claviger_otlp::trace_service::trace_service_server::TraceService;
use claviger_otlp::trace_service::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use tokio::sync::watch;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use crate::{Behaviour, Received, lock};

/// Both services, over what was received.
#[derive(Clone, Debug)]
pub(crate) struct Services {
    received: Arc<Mutex<Received>>,
    behaviour: watch::Receiver<Behaviour>,
}

impl Services {
    pub(crate) fn new(
        received: Arc<Mutex<Received>>,
        behaviour: watch::Receiver<Behaviour>,
    ) -> Self {
        Self { received, behaviour }
    }

    /// Notes a request; whether what is in it is taken (or else rejected).
    async fn judge(&self, headers: &MetadataMap) -> Result<bool, Status> {
        {
            let mut received = lock(&self.received);
            received.requests += 1;
            received.headers = headers.clone();
        }
        let mut behaviour = self.behaviour.clone();
        let decided = behaviour.wait_for(|behaviour| *behaviour != Behaviour::Hangs).await;
        let decided = *decided.map_err(|_| Status::unavailable("the collector ends"))?;
        match decided {
            Behaviour::Takes | Behaviour::Hangs => Ok(true),
            Behaviour::Rejects => Ok(false),
            Behaviour::Refuses(code) => Err(Status::new(code, "the test wants it so")),
            Behaviour::TakesAfter(time) => {
                tokio::time::sleep(time).await;
                Ok(true)
            }
        }
    }
}

#[tonic::async_trait]
impl TraceService for Services {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let is_taken = self.judge(request.metadata()).await?;
        let mut spans = Vec::new();
        for sent in request.into_inner().resource_spans {
            let resource = sent.resource.unwrap_or_default();
            let all = sent.scope_spans.into_iter().flat_map(|scope| scope.spans);
            spans.extend(all.map(|span| (resource.clone(), span)));
        }
        if is_taken {
            lock(&self.received).spans.append(&mut spans);
            return Ok(Response::new(ExportTraceServiceResponse::default()));
        }
        let rejected_spans = i64::try_from(spans.len()).unwrap_or(i64::MAX);
        let error_message = "the test wants it so".to_owned();
        let partial_success = Some(ExportTracePartialSuccess { rejected_spans, error_message });
        Ok(Response::new(ExportTraceServiceResponse { partial_success }))
    }
}

#[tonic::async_trait]
impl LogsService for Services {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        let is_taken = self.judge(request.metadata()).await?;
        let mut records = Vec::new();
        for sent in request.into_inner().resource_logs {
            let resource = sent.resource.unwrap_or_default();
            let all = sent.scope_logs.into_iter().flat_map(|scope| scope.log_records);
            records.extend(all.map(|record| (resource.clone(), record)));
        }
        if is_taken {
            lock(&self.received).records.append(&mut records);
            return Ok(Response::new(ExportLogsServiceResponse::default()));
        }
        let rejected_log_records = i64::try_from(records.len()).unwrap_or(i64::MAX);
        let error_message = "the test wants it so".to_owned();
        let partial_success =
            Some(ExportLogsPartialSuccess { rejected_log_records, error_message });
        Ok(Response::new(ExportLogsServiceResponse { partial_success }))
    }
}
