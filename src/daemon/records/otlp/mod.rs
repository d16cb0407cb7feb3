//! A connection to an OpenTelemetry collector: OTLP over gRPC, for spans and for log records.
//!
//! It is driven by the thread that asks, and only while that asks: no call of the daemon waits for it.
//! Files are read again for each connection.
//!
//! - `connection`: from an endpoint to a channel; `headers`: what is sent with each request
//! - `resource`: which process speaks

mod connection;
mod headers;
mod resource;

use std::fmt;
use std::io;
use std::time::Duration;

use claviger_otlp::logs_service::ExportLogsServiceRequest;
use claviger_otlp::logs_service::logs_service_client::LogsServiceClient;
use claviger_otlp::trace_service::ExportTraceServiceRequest;
use claviger_otlp::trace_service::trace_service_client::TraceServiceClient;
use claviger_provider_api::foreign::printable;
use tokio::runtime::{Builder, Runtime};
use tonic::{Code, Request, Response, Status};

use self::connection::Connection;
use crate::daemon::config::OtlpCollector;
use crate::daemon::records::metrics::code_name;

pub(in crate::daemon::records) use self::resource::{resource, scope};

/// A collector.
pub(in crate::daemon::records) struct Collector {
    options: OtlpCollector,
    runtime: Option<Runtime>,
    connection: Option<Connection>,
}

/// What became of a request that was answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::daemon::records) struct Taken {
    /// How many of its spans or records were rejected, for good.
    pub(in crate::daemon::records) rejected: u64,
    /// Why, or what else the collector had to say.
    pub(in crate::daemon::records) message: String,
}

/// Why a request was not taken.
#[derive(Debug, thiserror::Error)]
pub(in crate::daemon::records) enum ExportError {
    /// There is no connection.
    #[error("{0}")]
    NotConnected(String),
    /// The collector did not answer.
    #[error("it has not answered within {0:?}")]
    TimedOut(Duration),
    /// It answered with an error.
    #[error("it answered {}: {message}", code_name(*code))]
    Refused {
        /// Its gRPC code.
        code: Code,
        /// Its words, on one line.
        message: String,
    },
}

impl ExportError {
    /// Whether the same request may be taken later (OTLP, "Failures").
    pub(in crate::daemon::records) fn may_pass(&self) -> bool {
        match self {
            Self::NotConnected(_) | Self::TimedOut(_) => true,
            Self::Refused { code, .. } => matches!(
                code,
                Code::Cancelled
                    | Code::DeadlineExceeded
                    | Code::ResourceExhausted
                    | Code::Aborted
                    | Code::OutOfRange
                    | Code::Unavailable
                    | Code::DataLoss
            ),
        }
    }
}

impl From<ExportError> for io::Error {
    fn from(error: ExportError) -> Self {
        let kind = match &error {
            ExportError::TimedOut(_) => io::ErrorKind::TimedOut,
            ExportError::NotConnected(_) | ExportError::Refused { .. } => io::ErrorKind::Other,
        };
        Self::new(kind, error.to_string())
    }
}

impl Collector {
    /// Reads its files once, to see that they are right. Connects to nothing.
    pub(in crate::daemon::records) fn check(options: &OtlpCollector) -> io::Result<()> {
        connection::check(options)
    }

    /// Of these options. Reads and connects to nothing yet.
    pub(in crate::daemon::records) fn new(options: &OtlpCollector) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_io().enable_time().build()?;
        Ok(Self { options: options.clone(), runtime: Some(runtime), connection: None })
    }

    /// Whether the last request over this connection was answered.
    pub(in crate::daemon::records) fn is_connected(&self) -> bool {
        self.connection.is_some()
    }

    /// The next request is sent over a new connection.
    pub(in crate::daemon::records) fn disconnect(&mut self) {
        self.connection = None;
    }

    /// Sends spans; waits for a connection and for the answer so long each.
    pub(in crate::daemon::records) fn export_spans(
        &mut self,
        request: ExportTraceServiceRequest,
        patience: Duration,
    ) -> Result<Taken, ExportError> {
        let answer = self.ask(request, patience, async |channel, request| {
            TraceServiceClient::new(channel).export(request).await
        })?;
        let partly = answer.partial_success.unwrap_or_default();
        Ok(taken(partly.rejected_spans, &partly.error_message))
    }

    /// Sends log records; waits for a connection and for the answer so long each.
    pub(in crate::daemon::records) fn export_logs(
        &mut self,
        request: ExportLogsServiceRequest,
        patience: Duration,
    ) -> Result<Taken, ExportError> {
        let answer = self.ask(request, patience, async |channel, request| {
            LogsServiceClient::new(channel).export(request).await
        })?;
        let partly = answer.partial_success.unwrap_or_default();
        Ok(taken(partly.rejected_log_records, &partly.error_message))
    }

    fn ask<Q, A>(
        &mut self,
        message: Q,
        patience: Duration,
        ask: impl AsyncFnOnce(tonic::transport::Channel, Request<Q>) -> Result<Response<A>, Status>,
    ) -> Result<A, ExportError> {
        let runtime = self.runtime.as_ref().expect("it is there until the collector is dropped");
        let outcome = runtime.block_on(async {
            let connection = match self.connection.take() {
                Some(connection) => connection,
                None => within(patience, connection::connect(&self.options)).await??,
            };
            let mut request = Request::new(message);
            request.metadata_mut().clone_from(&connection.headers);
            let answer = within(patience, ask(connection.channel.clone(), request)).await?;
            Ok((connection, answer.map_err(|status| refused(&status))?.into_inner()))
        });
        outcome.map(|(connection, answer)| {
            self.connection = Some(connection);
            answer
        })
    }
}

impl Drop for Collector {
    /// A name server that hangs does not keep the thread.
    fn drop(&mut self) {
        self.connection = None;
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl fmt::Debug for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Collector").field("options", &self.options).finish_non_exhaustive()
    }
}

async fn within<T>(patience: Duration, work: impl Future<Output = T>) -> Result<T, ExportError> {
    tokio::time::timeout(patience, work).await.map_err(|_| ExportError::TimedOut(patience))
}

fn refused(status: &Status) -> ExportError {
    // What tonic itself says has its cause beside it.
    let cause = std::error::Error::source(status).map(claviger_provider_api::foreign::chain_line);
    let message = match cause {
        Some(cause) => format!("{}: {cause}", status.message()),
        None => status.message().to_owned(),
    };
    ExportError::Refused { code: status.code(), message: printable(&message) }
}

fn taken(rejected: i64, message: &str) -> Taken {
    Taken { rejected: u64::try_from(rejected).unwrap_or_default(), message: printable(message) }
}
