//! A line as a log record of OpenTelemetry, and the collector that answers for it.

use std::borrow::Cow;
use std::io;
use std::time::{Duration, SystemTime};

use claviger_otlp::attribute;
use claviger_otlp::common::AnyValue;
use claviger_otlp::logs::{LogRecord, ResourceLogs, ScopeLogs, SeverityNumber};
use claviger_otlp::logs_service::ExportLogsServiceRequest;
use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::daemon::config::OtlpCollector;
use crate::daemon::records::otlp::{Collector, resource, scope};
use crate::daemon::records::traces::TraceParent;

/// Where the records of a sink go.
pub(super) struct Records {
    collector: Collector,
    service_name: String,
    /// Whether a record that the collector rejects is a failure.
    is_required: bool,
}

impl Records {
    /// Reads what the connection needs; connects to nothing.
    pub(super) fn open(
        options: &OtlpCollector,
        service_name: &str,
        is_required: bool,
    ) -> io::Result<Self> {
        Collector::check(options)?;
        let collector = Collector::new(options)?;
        Ok(Self { collector, service_name: service_name.to_owned(), is_required })
    }

    /// Sends lines; what the collector has answered for, it has.
    pub(super) fn send<'l>(
        &mut self,
        lines: impl Iterator<Item = &'l [u8]>,
        patience: Duration,
    ) -> io::Result<()> {
        let taken = self.collector.export_logs(request(lines, &self.service_name), patience)?;
        match taken.rejected {
            0 => Ok(()),
            rejected if self.is_required => {
                // It is no connection that has ended while nothing was sent.
                self.collector.disconnect();
                let reason = taken.message;
                Err(io::Error::other(format!("it rejected {rejected} records: {reason}")))
            }
            rejected => {
                let reason = taken.message;
                tracing::error!(
                    rejected,
                    reason,
                    "an audit sink rejected records: they are left out"
                );
                Ok(())
            }
        }
    }

    /// Whether the last lines were answered for.
    pub(super) fn is_connected(&self) -> bool {
        self.collector.is_connected()
    }
}

/// What is told beside the line itself.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Fields<'a> {
    time: Option<&'a str>,
    n: Option<i64>,
    instance: Cow<'a, str>,
    event: Option<&'a str>,
    request_id: Option<Cow<'a, str>>,
    traceparent: Option<Cow<'a, str>>,
    caller: Option<Cow<'a, str>>,
    identity: Option<Cow<'a, str>>,
    operation: Option<&'a str>,
    key: Option<Cow<'a, str>>,
    version: Option<i64>,
    provider: Option<Cow<'a, str>>,
    algorithm: Option<Cow<'a, str>>,
    outcome: Option<&'a str>,
    state: Option<&'a str>,
    reason: Option<&'a str>,
    backend_request_id: Option<Cow<'a, str>>,
}

/// One request for all lines. Those of one run of the daemon have one resource.
fn request<'l>(
    lines: impl Iterator<Item = &'l [u8]>,
    service_name: &str,
) -> ExportLogsServiceRequest {
    let mut resource_logs: Vec<ResourceLogs> = Vec::new();
    let mut instance = None;
    for line in lines {
        let fields: Fields<'_> = serde_json::from_slice(line).unwrap_or_default();
        if instance.as_deref() != Some(&*fields.instance) {
            let scope_logs =
                ScopeLogs { scope: Some(scope("claviger.audit")), ..Default::default() };
            resource_logs.push(ResourceLogs {
                resource: Some(resource(service_name, &fields.instance)),
                scope_logs: vec![scope_logs],
                schema_url: String::new(),
            });
            instance = Some(fields.instance.clone().into_owned());
        }
        let records = resource_logs.last_mut().and_then(|logs| logs.scope_logs.last_mut());
        records.expect("made above").log_records.push(record(line, &fields));
    }
    ExportLogsServiceRequest { resource_logs }
}

/// The body is the line as it is in the file, so that its hash can be verified.
fn record(line: &[u8], fields: &Fields<'_>) -> LogRecord {
    let at = fields.time.and_then(|text| OffsetDateTime::parse(text, &Rfc3339).ok());
    let at = at.and_then(|at| u64::try_from(at.unix_timestamp_nanos()).ok());
    let (severity_number, severity_text) = severity(fields);
    let parent = fields.traceparent.as_deref().and_then(TraceParent::parse);
    // Without a trace of its caller's, a call's own trace has its request id.
    let own = || hex::decode(fields.request_id.as_deref()?).ok().filter(|id| id.len() == 16);
    let trace_id = parent.map(|parent| parent.trace_id.to_vec()).or_else(own);
    let text = |name: &str, value: Option<&str>| value.map(|value| attribute(name, value));
    let number = |name: &str, value: Option<i64>| value.map(|value| attribute(name, value));
    let attributes = [
        number("claviger.n", fields.n),
        text("claviger.request_id", fields.request_id.as_deref()),
        text("claviger.caller", fields.caller.as_deref()),
        text("claviger.identity", fields.identity.as_deref()),
        text("claviger.operation", fields.operation),
        text("claviger.key.name", fields.key.as_deref()),
        number("claviger.key.version", fields.version),
        text("claviger.provider", fields.provider.as_deref()),
        text("claviger.algorithm", fields.algorithm.as_deref()),
        text("claviger.outcome", fields.outcome),
        text("claviger.reason", fields.reason),
        text("claviger.backend_request_id", fields.backend_request_id.as_deref()),
    ];
    LogRecord {
        time_unix_nano: at.unwrap_or_default(),
        observed_time_unix_nano: now(),
        severity_number: severity_number.into(),
        severity_text: severity_text.to_owned(),
        body: Some(AnyValue::from(String::from_utf8_lossy(line).into_owned())),
        attributes: attributes.into_iter().flatten().collect(),
        flags: parent.is_some_and(|parent| parent.is_sampled).into(),
        trace_id: trace_id.unwrap_or_default(),
        span_id: parent.map_or_else(Vec::new, |parent| parent.span_id.to_vec()),
        event_name: fields
            .event
            .map_or_else(String::new, |event| format!("claviger.audit.{event}")),
        ..Default::default()
    }
}

/// An alarm, a gap and a refused reload or file are for an operator; so is a call that failed for no
/// fault of its caller's.
fn severity(fields: &Fields<'_>) -> (SeverityNumber, &'static str) {
    const INFO: (SeverityNumber, &str) = (SeverityNumber::Info, "INFO");
    const WARN: (SeverityNumber, &str) = (SeverityNumber::Warn, "WARN");
    const ERROR: (SeverityNumber, &str) = (SeverityNumber::Error, "ERROR");
    let outcome = fields.outcome.or(fields.state).unwrap_or("ok");
    match (fields.event.unwrap_or_default(), outcome) {
        ("alarm" | "gap" | "reload-refused" | "clock-step", _) | ("replica", "diverges") => ERROR,
        ("operation", "UNAVAILABLE" | "FAILED_PRECONDITION" | "INTERNAL" | "DEADLINE_EXCEEDED") => {
            ERROR
        }
        (_, "ok" | "in_force" | "serves" | "in_service") => INFO,
        _ => WARN,
    }
}

fn now() -> u64 {
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_1970.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use claviger_otlp::common::any_value::Value;
    use claviger_otlp::text_of;

    use super::*;

    const LINE: &str = r#"{"seq":1,"schema":2,"time":"2026-12-01T08:00:00.000001Z","instance":"i-1","event":"operation","request_id":"0af7651916cd43dd8448eb211c80319c","caller":"kc","operation":"unwrap","key":"user-keys","version":2,"provider":"hsm","outcome":"ok","n":7}"#;

    fn only(line: &str) -> LogRecord {
        let request = request([line.as_bytes()].into_iter(), "claviger");
        request.resource_logs[0].scope_logs[0].log_records[0].clone()
    }

    #[test]
    fn a_record_has_the_line_as_it_is_and_what_it_is_found_by() {
        let record = only(LINE);
        let body = record.body.unwrap().value.unwrap();
        assert_eq!(body, Value::StringValue(LINE.to_owned()));
        assert_eq!(record.time_unix_nano, 1_796_112_000_000_001_000);
        assert_eq!(record.event_name, "claviger.audit.operation");
        assert_eq!(record.severity_text, "INFO");
        assert_eq!(text_of(&record.attributes, "claviger.caller"), Some("kc"));
        assert_eq!(text_of(&record.attributes, "claviger.key.name"), Some("user-keys"));
        assert!(record.attributes.contains(&attribute("claviger.n", 7_i64)));
        assert!(record.attributes.contains(&attribute("claviger.key.version", 2_i64)));
    }

    #[test]
    fn a_record_belongs_to_its_callers_trace_or_else_to_that_of_its_request() {
        let record = only(LINE);
        assert_eq!(hex::encode(record.trace_id), "0af7651916cd43dd8448eb211c80319c");
        assert!(record.span_id.is_empty());
        let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let line = LINE.replace("\"caller\"", &format!("\"traceparent\":\"{parent}\",\"caller\""));
        let record = only(&line);
        assert_eq!(hex::encode(record.trace_id), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!((hex::encode(record.span_id), record.flags), ("00f067aa0ba902b7".into(), 1));
        let strange = LINE.replace("0af7651916cd43dd8448eb211c80319c", "no id");
        assert!(only(&strange).trace_id.is_empty());
    }

    #[test]
    fn what_an_operator_must_look_at_is_an_error() {
        let of = |from: &str, to: &str| only(&LINE.replace(from, to)).severity_text;
        assert_eq!(of("\"ok\"", "\"UNAVAILABLE\""), "ERROR");
        assert_eq!(of("\"ok\"", "\"INVALID_ARGUMENT\""), "WARN");
        assert_eq!(of("\"operation\",\"request", "\"alarm\",\"request"), "ERROR");
    }

    #[test]
    fn records_of_one_run_share_a_resource_and_those_of_another_have_their_own() {
        let second = LINE.replace("i-1", "i-2");
        let lines = [LINE, LINE, &second].map(str::as_bytes);
        let request = request(lines.into_iter(), "keys-eu");
        let counts: Vec<_> = request
            .resource_logs
            .iter()
            .map(|logs| {
                let attributes = &logs.resource.as_ref().unwrap().attributes;
                assert_eq!(text_of(attributes, "service.name"), Some("keys-eu"));
                let instance = text_of(attributes, "service.instance.id").unwrap().to_owned();
                (instance, logs.scope_logs[0].log_records.len())
            })
            .collect();
        assert_eq!(counts, [("i-1".to_owned(), 2), ("i-2".to_owned(), 1)]);
    }
}
