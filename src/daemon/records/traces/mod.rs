//! Traces: a span for each call that is sampled, and one for each thing that it waited for, sent to an
//! OpenTelemetry collector by a thread of its own.
//!
//! No call waits for the collector: spans that find no room in the queue are dropped and counted. A span
//! holds names, numbers and ids; never key material, a wrapped value or a token, and nothing of why a
//! value failed that its caller is not told.
//!
//! - `context`: what a caller says of its trace; `call`: the spans of one call
//! - `queue`: where spans wait; `exporter`: the thread that sends them

mod call;
mod context;
mod exporter;
mod queue;

#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;

use http::HeaderMap;

pub use call::{CallTrace, OperationTrace, Outcome, ServerSpan, Waited};
pub use context::{SpanId, TraceId, TraceParent};

use crate::daemon::config::Telemetry;
use crate::daemon::records::metrics::TraceMetrics;
use crate::daemon::records::otlp::Collector;
use exporter::Exporter;
use queue::Queue;

/// What begins traces. Without `[telemetry]` it begins none, at the price of one comparison.
#[derive(Debug, Default)]
pub struct Tracer(Option<Tracing>);

#[derive(Debug)]
struct Tracing {
    queue: Arc<Queue>,
    /// In hundred thousandths.
    sampling: u32,
    _exporter: Exporter,
}

impl Tracer {
    /// Starts the thread that sends spans. `instance` is what the run is called in its audit log.
    pub fn start(
        telemetry: Option<&Telemetry>,
        instance: &str,
        metrics: &Arc<TraceMetrics>,
    ) -> io::Result<Self> {
        let Some(telemetry) = telemetry else { return Ok(Self::default()) };
        let queue = Arc::new(Queue::new(Arc::clone(metrics)));
        let exporter = Exporter::start(Arc::clone(&queue), telemetry, instance)?;
        let sampling = telemetry.sampling;
        Ok(Self(Some(Tracing { queue, sampling, _exporter: exporter })))
    }

    /// Sees that the files of [`Tracer::start`] are there and right. Connects to nothing.
    pub fn check(telemetry: &Telemetry) -> io::Result<()> {
        Collector::check(&telemetry.collector)
    }

    /// The trace of a call, where it is sampled: as its caller's own is, or by its share of those
    /// that begin here. Its trace id is the caller's, else the request id.
    pub fn begin(&self, headers: &HeaderMap, request_id: &str) -> Option<Arc<CallTrace>> {
        let tracing = self.0.as_ref()?;
        let (parent, trace_id) = match TraceParent::of(headers) {
            Some((_, parent)) if parent.is_sampled => (Some(parent.span_id), parent.trace_id),
            Some(_) => return None,
            None => (None, new_trace(request_id, tracing.sampling)?),
        };
        let state = if parent.is_some() { context::state(headers) } else { String::new() };
        Some(Arc::new(CallTrace::new(Arc::clone(&tracing.queue), trace_id, parent, state)))
    }
}

/// The request id as a trace id, if its trace is among the share that is sampled.
fn new_trace(request_id: &str, sampling: u32) -> Option<TraceId> {
    let mut trace_id = [0; 16];
    hex::decode_to_slice(request_id, &mut trace_id).ok()?;
    // By the seven bytes that are random in any trace id (W3C Trace Context 2, section 2.2.2.2).
    let mut random = [0; 8];
    random[1..].copy_from_slice(&trace_id[9..]);
    let place = u128::from(u64::from_be_bytes(random)) * u128::from(Telemetry::ALL);
    (place < u128::from(sampling) << 56).then_some(trace_id)
}
