//! Traces and audit records of a running daemon, at the real OpenTelemetry Collector and at one that hangs
//! and goes away.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use claviger_proto::v1::{UnwrapBatchRequest, UnwrapRequest};
use e2e::connection::frame;
use e2e::setup::{KEY, MATERIAL};
use e2e::{Connection, Daemon, Setup, Token};
use otlp_collector::{Behaviour, Collector};
use prost::Message;
use serde_json::Value;
use test_backends::OtelCollector;
use test_backends::collector::Certificates;
use tonic::Code;

const UNWRAP: &str = "/claviger.v1.KeyService/Unwrap";
const BATCH: &str = "/claviger.v1.KeyService/UnwrapBatch";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
/// What a collector asks for; it shows nowhere.
const SECRET: &str = "marker-of-the-collector";

/// Unwraps; gives the code and the request id.
async fn unwrap(
    connection: &Connection,
    request: &UnwrapRequest,
    headers: &[(&'static str, &str)],
) -> (Code, String) {
    let answer = connection.call(UNWRAP, frame(&request.encode_to_vec()), headers).await.unwrap();
    (answer.code(), answer.request_id().unwrap().to_owned())
}

/// All spans in what the real collector wrote.
fn spans(received: &[Value]) -> Vec<&Value> {
    below(received, ["resourceSpans", "scopeSpans", "spans"])
}

/// All log records in it.
fn records(received: &[Value]) -> Vec<&Value> {
    below(received, ["resourceLogs", "scopeLogs", "logRecords"])
}

fn below<'v>(received: &'v [Value], path: [&str; 3]) -> Vec<&'v Value> {
    let mut found: Vec<&Value> = received.iter().collect();
    for name in path {
        found =
            found.iter().flat_map(|value| value[name].as_array().into_iter().flatten()).collect();
    }
    found
}

/// The attribute as text, whatever it is.
fn attribute(of: &Value, name: &str) -> Option<String> {
    let mut attributes = of["attributes"].as_array()?.iter();
    let value = &attributes.find(|attribute| attribute["key"] == name)?["value"];
    ["stringValue", "intValue"].iter().find_map(|kind| Some(value[kind].as_str()?.to_owned()))
}

/// The sections for traces and audit records to a collector on loopback.
fn configure(setup: &mut Setup, endpoint: &str) {
    let headers = setup.files.file("headers", &format!("x-key: {SECRET}\n"), 0o600);
    for section in ["telemetry", "audit.sinks.collector"] {
        setup.files.set(&format!("{section}.endpoint"), endpoint);
        setup.files.set(&format!("{section}.headers"), headers.as_str());
    }
    setup.files.set("audit.sinks.collector.type", "otlp");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_real_collector_has_the_spans_of_a_call_and_each_record_over_tls() {
    let token = Token::softhsm();
    let mut setup = Setup::on(&token);
    let client_ca = setup.files.path("clients.pem");
    let folder = setup.files.path("collector");
    std::fs::create_dir(&folder).unwrap();
    let (certificate, private_key) = setup.files.pki.server().write(&folder, "collector");
    let certificates = Certificates { certificate, private_key, client_ca: client_ca.clone() };
    let collector = OtelCollector::start(Some(&certificates));
    configure(&mut setup, &format!("https://localhost:{}", collector.port()));
    let (certificate, private_key) =
        setup.files.pki.client("spiffe://example.org/claviger").write(&folder, "client");
    for section in ["telemetry", "audit.sinks.collector"] {
        let files =
            [("ca", &client_ca), ("certificate", &certificate), ("private_key", &private_key)];
        for (option, path) in files {
            setup.files.set(&format!("{section}.{option}"), path.to_str().unwrap());
        }
    }
    setup.files.set("telemetry.service_name", "keys-eu");
    let daemon = setup.start();
    let connection = setup.connect(&daemon).await;
    let headers = [
        ("traceparent", PARENT),
        ("tracestate", "rojo=00f067aa0ba902b7"),
        ("x-request-id", "kc-1"),
    ];
    let (code, request_id) = unwrap(&connection, &setup.request(), &headers).await;
    assert_eq!(code, Code::Ok);
    let batch = UnwrapBatchRequest { items: vec![setup.request(), setup.request()] };
    let answer = connection.call(BATCH, frame(&batch.encode_to_vec()), &[]).await.unwrap();
    let of_batch = answer.request_id().unwrap().to_owned();

    // The record was there before the answer; the file of the collector is written a moment later.
    let received = collector.wait_until(|received| {
        let ended = |name: &str| spans(received).iter().any(|span| span["name"] == name);
        ended("claviger.v1.KeyService/Unwrap") && ended("claviger.v1.KeyService/UnwrapBatch")
    });
    let traced: Vec<_> =
        spans(&received).into_iter().filter(|span| span["traceId"] == TRACE).collect();
    let server =
        traced.iter().find(|span| span["name"] == "claviger.v1.KeyService/Unwrap").unwrap();
    assert_eq!((&server["parentSpanId"], &server["kind"]), (&"00f067aa0ba902b7".into(), &2.into()));
    assert_eq!(server["traceState"], "rojo=00f067aa0ba902b7");
    for (name, value) in [
        ("rpc.system.name", "grpc"),
        ("rpc.response.status_code", "OK"),
        ("claviger.caller", "key-connector"),
        ("claviger.request_id", &*request_id),
        ("claviger.caller_request_id", "kc-1"),
        ("claviger.key.name", KEY),
        ("claviger.key.version", "1"),
        ("claviger.provider", "hsm-a"),
    ] {
        assert_eq!(attribute(server, name).as_deref(), Some(value), "{name}");
    }
    for name in ["queue", "backend", "audit"] {
        let span = traced.iter().find(|span| span["name"] == name);
        let span = span.unwrap_or_else(|| panic!("no span {name}: {traced:#?}"));
        assert_eq!(span["parentSpanId"], server["spanId"], "{name}");
    }
    let items = spans(&received).iter().filter(|span| span["name"] == "unwrap").count();
    assert_eq!(items, 2, "one for each item of the batch");
    let batch = spans(&received).into_iter().find(|span| span["traceId"] == *of_batch);
    assert!(batch.is_some(), "a trace that begins here has the request id");

    // Each line as it is in the file: those of the calls were there before their answers.
    let log = std::fs::read_to_string(setup.files.audit_file()).unwrap();
    let received = collector.wait_until(|received| {
        let bodies: BTreeSet<&str> = records(received)
            .iter()
            .filter_map(|record| record["body"]["stringValue"].as_str())
            .collect();
        log.split_inclusive('\n')
            .filter_map(|line| line.strip_suffix('\n'))
            .all(|line| bodies.contains(line))
    });
    let record = records(&received).into_iter().find(|record| record["traceId"] == TRACE).unwrap();
    assert_eq!(record["eventName"], "claviger.audit.operation");
    assert_eq!(attribute(record, "claviger.request_id"), Some(request_id));
    let names: BTreeSet<_> = received
        .iter()
        .flat_map(|sent| ["resourceSpans", "resourceLogs"].map(|name| &sent[name][0]["resource"]))
        .filter_map(|resource| attribute(resource, "service.name"))
        .collect();
    assert_eq!(names, ["claviger".to_owned(), "keys-eu".to_owned()].into());
    let all = serde_json::to_string(&received).unwrap() + &daemon.log();
    let material = std::str::from_utf8(&MATERIAL).unwrap();
    for secret in [material, SECRET, &hex::encode(&setup.wrapped), &hex::encode(MATERIAL)] {
        assert!(!all.contains(secret), "{secret}");
    }
    drop(daemon);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_required_collector_that_hangs_refuses_key_material_and_serves_again_when_it_goes_on() {
    let collector = OtelCollector::start(None);
    let mut setup = Setup::software();
    configure(&mut setup, &format!("http://127.0.0.1:{}", collector.port()));
    setup.files.set("audit.hang_limit", "1500ms");
    let daemon = setup.start();
    let connection = setup.connect(&daemon).await;
    setup.wait_for(&daemon, Code::Ok).await;
    collector.freeze();
    let begun = Instant::now();
    let (code, _) = unwrap(&connection, &setup.request(), &[]).await;
    assert_eq!(code, Code::Unavailable, "{}", daemon.log());
    let first_in = begun.elapsed();
    assert!(first_in < Duration::from_secs(8), "{first_in:?}");
    // Now at once.
    let begun = Instant::now();
    let (code, _) = unwrap(&connection, &setup.request(), &[]).await;
    assert_eq!(code, Code::Unavailable);
    let refused_in = begun.elapsed();
    collector.thaw();
    let begun = Instant::now();
    setup.wait_for(&daemon, Code::Ok).await;
    println!("refused in {first_in:?}, then {refused_in:?}, back after {:?}", begun.elapsed());
    let answered: BTreeSet<String> = setup
        .files
        .audit_records_of("key-connector", 1)
        .iter()
        .filter(|record| record["outcome"] == "ok")
        .map(|record| record["request_id"].as_str().unwrap().to_owned())
        .collect();
    collector.wait_until(|received| {
        let there: BTreeSet<String> = records(received)
            .iter()
            .filter_map(|record| attribute(record, "claviger.request_id"))
            .collect();
        there.is_superset(&answered)
    });
}

/// Waits until the metric is at least so much.
fn wait_for_metric(daemon: &Daemon, name: &str, labels: &[&str], least: f64) {
    let begun = Instant::now();
    while daemon.metric(name, labels) < least {
        assert!(begun.elapsed() < Duration::from_mins(1), "{name} {labels:?}: {}", daemon.log());
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_of_traces_that_hangs_or_is_gone_costs_no_call_anything() {
    let collector = Collector::start();
    let mut setup = Setup::software();
    setup.files.set("telemetry.endpoint", collector.endpoint());
    let daemon = setup.start();
    let connection = setup.connect(&daemon).await;
    assert_eq!(unwrap(&connection, &setup.request(), &[]).await.0, Code::Ok);
    wait_for_metric(&daemon, "claviger_trace_spans_total", &["outcome=\"exported\""], 1.0);
    collector.behave(Behaviour::Hangs);
    assert_eq!(unwrap(&connection, &setup.request(), &[]).await.0, Code::Ok);
    collector.wait_until(|received| received.requests > 1);
    assert_eq!(unwrap(&connection, &setup.request(), &[]).await.0, Code::Ok);
    drop(collector);
    daemon.wait_for_log("takes no spans; no call waits for it");
    assert_eq!(unwrap(&connection, &setup.request(), &[]).await.0, Code::Ok);
    assert!((daemon.metric("claviger_trace_collector_failing", &[]) - 1.0).abs() < f64::EPSILON);
    let begun = Instant::now();
    let exit = daemon.terminate();
    assert_eq!(exit.code, Some(0), "{}", exit.log);
    assert!(begun.elapsed() < Duration::from_secs(30), "a stop does not wait for it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_time_of_calls_is_split_into_queue_backend_and_audit() {
    const CALLS: u32 = 32;
    let token = Token::softhsm();
    let mut setup = Setup::on(&token);
    // One after the other, so that the others wait for their turn in the token's queue.
    setup.files.set("providers.hsm-a.sessions", 1);
    let daemon = setup.start();
    let connection = setup.connect(&daemon).await;
    let request = setup.request();
    let calls = (0..CALLS).map(|_| unwrap(&connection, &request, &[]));
    for (code, _) in futures::future::join_all(calls).await {
        assert_eq!(code, Code::Ok, "{}", daemon.log());
    }
    let key = format!("key=\"{KEY}\"");
    let of = |name: &str, phase: &str| {
        let phase = format!("phase=\"{phase}\"");
        daemon.metric(&format!("claviger_call_phase_seconds_{name}"), &[&key, &phase])
    };
    for phase in ["queue", "backend", "audit"] {
        assert!((of("count", phase) - f64::from(CALLS)).abs() < 0.5, "{phase}");
        assert!(of("sum", phase) > 0.0, "{phase}");
    }
}
