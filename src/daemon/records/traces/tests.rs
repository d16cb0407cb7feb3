//! Spans on their way to a collector that takes them, hangs, refuses, and is gone.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use claviger_otlp::common::KeyValue;
use claviger_otlp::common::any_value::Value;
use claviger_otlp::text_of;
use claviger_otlp::trace::Span;
use claviger_otlp::trace::span::SpanKind;
use claviger_otlp::trace::status::StatusCode;
use http::HeaderValue;
use otlp_collector::{Behaviour, Collector, Received};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tempfile::TempDir;
use tonic::Code;

use super::queue::MOST;
use super::*;
use crate::daemon::config::{OtlpCollector, OtlpEndpoint};
use crate::daemon::records::metrics::{Phase, load};

const REQUEST_ID: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn options(address: SocketAddr) -> Telemetry {
    let (host, port) = (address.ip().to_string(), address.port());
    let endpoint = OtlpEndpoint { host, port, is_tls: false };
    Telemetry {
        collector: OtlpCollector { endpoint, ca: None, identity: None, headers: None },
        sampling: Telemetry::ALL,
        service_name: "claviger".to_owned(),
    }
}

fn tracer(address: SocketAddr) -> (Tracer, Arc<TraceMetrics>) {
    let metrics = Arc::<TraceMetrics>::default();
    (Tracer::start(Some(&options(address)), "run-1", &metrics).unwrap(), metrics)
}

fn headers(values: &[(&'static str, &'static str)]) -> HeaderMap {
    let named = |(name, value): &(&'static str, &'static str)| {
        (http::HeaderName::from_static(name), HeaderValue::from_static(value))
    };
    values.iter().map(named).collect()
}

/// Waits until it holds: the thread counts after the collector has answered.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_mins(1), "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// One call without anything below it.
fn call(tracer: &Tracer) {
    let trace = tracer.begin(&HeaderMap::new(), REQUEST_ID).unwrap();
    let mut span = trace.server_span("/claviger.v1.KeyService/GetKey", None, None);
    span.answered(Code::Ok);
}

fn text<'s>(span: &'s Span, name: &str) -> Option<&'s str> {
    text_of(&span.attributes, name)
}

fn number(attributes: &[KeyValue], name: &str) -> Option<i64> {
    let found = attributes.iter().find(|attribute| attribute.key == name)?;
    match found.value.as_ref()?.value {
        Some(Value::IntValue(number)) => Some(number),
        _ => None,
    }
}

fn span_of<'r>(received: &'r Received, name: &str) -> &'r Span {
    let found = received.spans.iter().map(|(_, span)| span).find(|span| span.name == name);
    found.unwrap_or_else(|| panic!("no span {name}: {received:#?}"))
}

#[test]
fn a_call_is_a_span_of_its_callers_trace_with_one_for_each_thing_that_it_waited_for() {
    let collector = Collector::start();
    let (tracer, metrics) = tracer(collector.address());
    let trace = tracer.begin(
        &headers(&[("traceparent", PARENT), ("tracestate", "rojo=00f067aa0ba902b7")]),
        REQUEST_ID,
    );
    let trace = trace.unwrap();
    let authority = "kms.example.org:8443".parse().unwrap();
    let peer = "192.0.2.7:50123".parse().unwrap();
    let mut server =
        trace.server_span("/claviger.v1.KeyService/Unwrap", Some(&authority), Some(peer));
    server.note_caller("kc", REQUEST_ID, Some("theirs"));
    let since = Instant::now();
    trace.waited(&Waited::new(Phase::Queue, since, Duration::from_millis(2)));
    let operation = trace.operation(None);
    operation.waited(&Waited {
        phase: Phase::Backend,
        since,
        took: Duration::from_millis(3),
        provider: Some(("hsm-a", "pkcs11")),
        version: Some(2),
        failure: Some("unavailable"),
    });
    operation.waited(&Waited::new(Phase::Audit, since, Duration::ZERO));
    operation.ended(&Outcome {
        operation: "unwrap",
        key: "user-keys",
        version: Some(2),
        provider: Some("hsm-a"),
        algorithm: Some("RSA-OAEP"),
        code: Code::Unavailable,
        reason: Some("unavailable"),
    });
    server.answered(Code::Unavailable);
    drop(server);

    let received = collector.wait_until(|received| received.spans.len() == 4);
    let server = span_of(&received, "claviger.v1.KeyService/Unwrap");
    assert_eq!(hex::encode(&server.trace_id), "4bf92f3577b34da6a3ce929d0e0e4736");
    assert_eq!(hex::encode(&server.parent_span_id), "00f067aa0ba902b7");
    assert_eq!((server.kind(), server.flags), (SpanKind::Server, 0x301));
    for (name, value) in [
        ("rpc.system.name", "grpc"),
        ("rpc.method", "claviger.v1.KeyService/Unwrap"),
        ("rpc.response.status_code", "UNAVAILABLE"),
        ("error.type", "UNAVAILABLE"),
        ("server.address", "kms.example.org"),
        ("network.peer.address", "192.0.2.7"),
        ("claviger.caller", "kc"),
        ("claviger.request_id", REQUEST_ID),
        ("claviger.caller_request_id", "theirs"),
        ("claviger.key.name", "user-keys"),
        ("claviger.provider", "hsm-a"),
        ("claviger.algorithm", "RSA-OAEP"),
    ] {
        assert_eq!(text(server, name), Some(value), "{name}");
    }
    assert_eq!(number(&server.attributes, "claviger.key.version"), Some(2));
    assert_eq!(server.status.as_ref().unwrap().code(), StatusCode::Error);
    for name in ["queue", "backend", "audit"] {
        let span = span_of(&received, name);
        assert_eq!((&span.trace_id, &span.parent_span_id), (&server.trace_id, &server.span_id));
        assert_eq!(
            (span.kind(), &*span.trace_state),
            (SpanKind::Internal, "rojo=00f067aa0ba902b7")
        );
        assert!(span.start_time_unix_nano >= server.start_time_unix_nano, "{name}");
        assert!(span.end_time_unix_nano >= span.start_time_unix_nano, "{name}");
    }
    let backend = span_of(&received, "backend");
    assert_eq!(text(backend, "claviger.provider.type"), Some("pkcs11"));
    assert_eq!(text(backend, "error.type"), Some("unavailable"));
    assert_eq!(backend.end_time_unix_nano - backend.start_time_unix_nano, 3_000_000);
    let (resource, _) = &received.spans[0];
    assert_eq!(text_of(&resource.attributes, "service.name"), Some("claviger"));
    assert_eq!(text_of(&resource.attributes, "service.instance.id"), Some("run-1"));
    eventually("each is counted", || load(&metrics.exported) == 4);
}

#[test]
fn a_batch_has_a_span_for_each_item_and_what_the_items_waited_for_is_below_them() {
    let collector = Collector::start();
    let (tracer, _) = tracer(collector.address());
    let trace = tracer.begin(&HeaderMap::new(), REQUEST_ID).unwrap();
    let mut server = trace.server_span("/claviger.v1.KeyService/UnwrapBatch", None, None);
    for item in 0..2 {
        let operation = trace.operation(Some(item));
        operation.waited(&Waited::new(Phase::Audit, Instant::now(), Duration::ZERO));
        operation.ended(&Outcome {
            operation: "unwrap",
            key: "user-keys",
            version: None,
            provider: None,
            algorithm: None,
            code: Code::InvalidArgument,
            reason: Some("unwrap_failed"),
        });
    }
    server.answered(Code::Ok);
    drop(server);
    let received = collector.wait_until(|received| received.spans.len() == 5);
    let server = span_of(&received, "claviger.v1.KeyService/UnwrapBatch");
    assert_eq!((hex::encode(&server.trace_id), server.flags), (REQUEST_ID.to_owned(), 0x103));
    assert!(server.parent_span_id.is_empty() && server.status.is_none());
    let named = |name: &str| {
        let spans = received.spans.iter().map(|(_, span)| span);
        let name = name.to_owned();
        spans.filter(move |span| span.name == name).collect::<Vec<_>>()
    };
    let items = named("unwrap");
    assert!(items.iter().all(|item| item.parent_span_id == server.span_id));
    // That a value does not unwrap is no error of the daemon's.
    assert!(items.iter().all(|item| item.status.is_none()));
    let parents: BTreeSet<_> = named("audit").iter().map(|span| &span.parent_span_id).collect();
    assert_eq!(parents, items.iter().map(|item| &item.span_id).collect());
}

#[test]
fn a_caller_that_goes_away_is_cancelled_and_a_method_that_is_not_there_has_no_name() {
    let collector = Collector::start();
    let (tracer, _) = tracer(collector.address());
    let trace = tracer.begin(&HeaderMap::new(), REQUEST_ID).unwrap();
    drop(trace.server_span("/claviger.v1.KeyService/Open", None, None));
    let received = collector.wait_until(|received| !received.spans.is_empty());
    let span = span_of(&received, "grpc");
    assert_eq!(text(span, "rpc.method"), Some("_OTHER"));
    assert_eq!(text(span, "rpc.method_original"), Some("claviger.v1.KeyService/Open"));
    assert_eq!(text(span, "rpc.response.status_code"), Some("CANCELLED"));
}

#[test]
fn each_method_of_the_contract_has_its_name() {
    let contract = include_str!("../../../../proto/claviger/v1/claviger.proto");
    let methods = contract.lines().filter_map(|line| line.trim().strip_prefix("rpc "));
    let methods = methods.filter_map(|line| line.split('(').next());
    let methods = methods.map(|method| format!("claviger.v1.KeyService/{method}"));
    let named: BTreeSet<String> = call::METHODS.map(str::to_owned).into();
    assert_eq!(methods.collect::<BTreeSet<_>>(), named);
}

#[test]
fn a_trace_is_kept_as_its_caller_keeps_it_and_begins_anew_where_its_header_is_malformed() {
    let collector = Collector::start();
    let (tracer, _) = tracer(collector.address());
    let begin = |value| tracer.begin(&headers(&[("traceparent", value)]), REQUEST_ID);
    assert!(begin(PARENT).is_some());
    assert!(begin("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00").is_none());
    assert!(begin("00-xyz").is_some());
    assert!(Tracer::default().begin(&headers(&[("traceparent", PARENT)]), REQUEST_ID).is_none());
}

#[test]
fn of_traces_that_begin_here_a_share_is_kept() {
    let kept = |sampling| {
        let ids = (0..100_000_u64).map(|n| {
            let random = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            format!("{n:016x}{random:016x}")
        });
        ids.filter(|id| new_trace(id, sampling).is_some()).count()
    };
    assert_eq!(kept(Telemetry::ALL), 100_000);
    assert!((4_800..5_200).contains(&kept(5_000)), "{}", kept(5_000));
    assert!((90..110).contains(&kept(100)), "{}", kept(100));
    assert_eq!(new_trace("no id", Telemetry::ALL), None);
}

#[test]
fn what_a_collector_that_hangs_has_no_room_for_is_dropped_and_counted_and_nothing_waits() {
    let collector = Collector::start();
    collector.behave(Behaviour::Hangs);
    let (tracer, metrics) = tracer(collector.address());
    let calls = 2 * MOST as u64;
    for _ in 0..calls {
        call(&tracer);
    }
    let dropped = load(&metrics.dropped);
    assert!(dropped > 0 && dropped < calls, "{dropped}");
    collector.behave(Behaviour::Takes);
    collector.wait_until(|received| received.spans.len() as u64 >= calls - dropped);
    call(&tracer);
    let accounted = || [&metrics.exported, &metrics.dropped, &metrics.rejected].map(load);
    eventually("each is counted once", || accounted().iter().sum::<u64>() == calls + 1);
}

#[test]
fn spans_wait_for_a_collector_that_is_away_and_are_sent_once() {
    let collector = Collector::start();
    let address = collector.address();
    drop(collector);
    let (tracer, metrics) = tracer(address);
    call(&tracer);
    let is_failing = || metrics.failing.load(std::sync::atomic::Ordering::Relaxed);
    eventually("it is told", is_failing);
    let collector = Collector::at(address, None);
    collector.behave(Behaviour::Refuses(Code::Unavailable));
    collector.wait_until(|received| received.requests > 0);
    collector.behave(Behaviour::Takes);
    collector.wait_until(|received| received.spans.len() == 1);
    eventually("it is counted once", || load(&metrics.exported) == 1 && !is_failing());
    drop(tracer);
    assert_eq!(collector.received().spans.len(), 1);
}

#[test]
fn what_a_collector_refuses_for_good_is_counted_and_not_sent_again() {
    for refusal in [Behaviour::Refuses(Code::InvalidArgument), Behaviour::Rejects] {
        let collector = Collector::start();
        collector.behave(refusal);
        let (tracer, metrics) = tracer(collector.address());
        call(&tracer);
        collector.wait_until(|received| received.requests == 1);
        collector.behave(Behaviour::Takes);
        call(&tracer);
        collector.wait_until(|received| !received.spans.is_empty());
        eventually("both are counted", || load(&metrics.exported) == 1);
        assert_eq!(load(&metrics.rejected), 1, "{refusal:?}");
    }
}

#[test]
fn the_end_of_the_process_sends_what_is_left_and_does_not_wait_for_a_collector_that_hangs() {
    let collector = Collector::start();
    let (first, metrics) = tracer(collector.address());
    call(&first);
    drop(first);
    // On a busy machine the thread may end after its two seconds.
    eventually("it is counted", || load(&metrics.exported) == 1);
    assert_eq!(collector.received().spans.len(), 1);
    collector.behave(Behaviour::Hangs);
    let (second, _) = tracer(collector.address());
    call(&second);
    let begun = Instant::now();
    drop(second);
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

/// A secret file.
fn write(path: &Path, content: &str) {
    std::fs::write(path, content).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

/// A collector that demands the client certificate of `folder`, and the options for it.
fn over_tls(folder: &TempDir) -> (Collector, Telemetry) {
    let pair = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let certificate = params.self_signed(&pair).unwrap();
    let path = |name: &str| folder.path().join(name);
    write(&path("ca.pem"), &claviger_files::pem::encode("CERTIFICATE", certificate.der()));
    write(&path("key.pem"), &pair.serialize_pem());
    write(&path("headers"), "authorization: Bearer first\n");
    let mut roots = RootCertStore::empty();
    roots.add(certificate.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(pair.serialize_der()));
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let collector = Collector::at("127.0.0.1:0".parse().unwrap(), Some(Arc::new(config)));
    let mut telemetry = options(collector.address());
    telemetry.collector.endpoint.host = "localhost".to_owned();
    telemetry.collector.endpoint.is_tls = true;
    telemetry.collector.ca = Some(path("ca.pem"));
    telemetry.collector.identity = Some((path("ca.pem"), path("key.pem")));
    telemetry.collector.headers = Some(path("headers"));
    (collector, telemetry)
}

#[test]
fn over_tls_both_sides_show_certificates_and_headers_are_read_again_for_each_connection() {
    let folder = TempDir::new().unwrap();
    let (collector, telemetry) = over_tls(&folder);
    Tracer::check(&telemetry).unwrap();
    let metrics = Arc::<TraceMetrics>::default();
    let tracer = Tracer::start(Some(&telemetry), "", &metrics).unwrap();
    call(&tracer);
    let received = collector.wait_until(|received| received.spans.len() == 1);
    assert_eq!(received.headers.get("authorization").unwrap(), "Bearer first");
    collector.behave(Behaviour::Refuses(Code::Unauthenticated));
    call(&tracer);
    collector.wait_until(|received| received.requests == 2);
    write(&folder.path().join("headers"), "authorization: Bearer second\n");
    collector.behave(Behaviour::Takes);
    call(&tracer);
    let received = collector.wait_until(|received| received.spans.len() == 2);
    assert_eq!(received.headers.get("authorization").unwrap(), "Bearer second");
}

#[test]
fn files_that_are_missing_are_told_by_their_paths() {
    let folder = TempDir::new().unwrap();
    let (_collector, telemetry) = over_tls(&folder);
    for name in ["ca.pem", "key.pem", "headers"] {
        let path = folder.path().join(name);
        let content = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let error = Tracer::check(&telemetry).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
        write(&path, &content);
    }
}
