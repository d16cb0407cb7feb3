//! The thread that sends spans, tries again where that may help, and says when it cannot.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use claviger_otlp::resource::Resource;
use claviger_otlp::trace::{ResourceSpans, ScopeSpans, Span};
use claviger_otlp::trace_service::ExportTraceServiceRequest;

use super::queue::{Next, Queue};
use crate::daemon::config::Telemetry;
use crate::daemon::records::otlp::{Collector, ExportError, resource, scope};

/// How long a connection, and an answer, may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// The same when the process ends.
const PATIENCE_AT_END: Duration = Duration::from_secs(1);
/// How long it waits before it tries again.
const RETRY: Duration = Duration::from_secs(1);
/// How long the end of the process waits for the last spans.
const LAST_SPANS: Duration = Duration::from_secs(2);
/// How often it says that spans were dropped.
const TELL_EVERY: Duration = Duration::from_mins(1);

/// The thread, which ends when this is dropped.
#[derive(Debug)]
pub(super) struct Exporter {
    queue: Arc<Queue>,
    thread: Option<JoinHandle<()>>,
}

impl Exporter {
    /// Starts it.
    pub(super) fn start(
        queue: Arc<Queue>,
        telemetry: &Telemetry,
        instance: &str,
    ) -> io::Result<Self> {
        let mut sender = Sender {
            collector: Collector::new(&telemetry.collector)?,
            resource: resource(&telemetry.service_name, instance),
            queue: Arc::clone(&queue),
            is_failing: false,
            told: Told::default(),
        };
        let thread =
            thread::Builder::new().name("traces".to_owned()).spawn(move || sender.run())?;
        Ok(Self { queue, thread: Some(thread) })
    }
}

impl Drop for Exporter {
    /// A collector that hangs does not keep the process.
    fn drop(&mut self) {
        self.queue.close();
        let Some(thread) = self.thread.take() else { return };
        let until = Instant::now() + LAST_SPANS;
        while !thread.is_finished() && Instant::now() < until {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

struct Sender {
    collector: Collector,
    resource: Resource,
    queue: Arc<Queue>,
    is_failing: bool,
    told: Told,
}

/// When it was last told that spans were dropped, and how many there were in all.
#[derive(Debug, Default)]
struct Told {
    at: Option<Instant>,
    dropped: u64,
}

impl Told {
    /// How many were dropped since it was told last, where it is time to tell.
    fn news(&mut self, dropped: u64, now: Instant) -> Option<u64> {
        let is_early = self.at.is_some_and(|at| now - at < TELL_EVERY);
        if dropped == self.dropped || is_early {
            return None;
        }
        self.at = Some(now);
        Some(dropped - std::mem::replace(&mut self.dropped, dropped))
    }
}

impl Sender {
    fn run(&mut self) {
        loop {
            match self.queue.next() {
                Next::Send(spans) => self.deliver(&spans),
                Next::Idle => {}
                Next::End => return,
            }
            self.tell_what_was_dropped();
        }
    }

    /// Sends spans until the collector has taken or refused them; once the process ends, one time.
    fn deliver(&mut self, spans: &[Span]) {
        let count = spans.len() as u64;
        loop {
            let is_last = self.queue.is_closed();
            let patience = if is_last { PATIENCE_AT_END } else { PATIENCE };
            let outcome = self.collector.export_spans(self.request(spans), patience);
            self.tell(outcome.as_ref().err());
            let metrics = self.queue.metrics();
            match outcome {
                Ok(taken) => {
                    let rejected = taken.rejected.min(count);
                    metrics.exported(count - rejected);
                    metrics.rejected(rejected);
                    return;
                }
                Err(error) if !error.may_pass() => {
                    metrics.rejected(count);
                    return self.queue.pause(RETRY);
                }
                Err(_) if is_last => {
                    metrics.dropped(count);
                    return self.queue.give_up();
                }
                Err(_) => self.queue.pause(RETRY),
            }
            self.tell_what_was_dropped();
        }
    }

    fn request(&self, spans: &[Span]) -> ExportTraceServiceRequest {
        let scope_spans = ScopeSpans {
            scope: Some(scope("claviger")),
            spans: spans.to_vec(),
            schema_url: String::new(),
        };
        let resource_spans = ResourceSpans {
            resource: Some(self.resource.clone()),
            scope_spans: vec![scope_spans],
            schema_url: String::new(),
        };
        ExportTraceServiceRequest { resource_spans: vec![resource_spans] }
    }

    /// Says when it begins and ceases to fail.
    fn tell(&mut self, error: Option<&ExportError>) {
        let was_failing = std::mem::replace(&mut self.is_failing, error.is_some());
        self.queue.metrics().set_failing(self.is_failing);
        match error {
            Some(error) if !was_failing => {
                tracing::warn!(%error, "the collector of [telemetry] takes no spans; no call waits for it");
            }
            None if was_failing => tracing::info!("the collector of [telemetry] takes spans again"),
            _ => {}
        }
    }

    fn tell_what_was_dropped(&mut self) {
        let dropped = self.queue.metrics().all_dropped();
        let Some(spans) = self.told.news(dropped, Instant::now()) else { return };
        tracing::warn!(
            spans,
            "spans were dropped: the collector of [telemetry] takes fewer than there are"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropped_spans_are_told_at_once_and_then_once_a_minute() {
        let (mut told, begun) = (Told::default(), Instant::now());
        assert_eq!(told.news(0, begun), None);
        assert_eq!(told.news(3, begun), Some(3));
        assert_eq!(told.news(5, begun + Duration::from_secs(59)), None);
        assert_eq!(told.news(9, begun + TELL_EVERY), Some(6));
        assert_eq!(told.news(9, begun + 3 * TELL_EVERY), None);
    }
}
