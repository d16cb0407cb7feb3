//! A sink over OTLP, with a collector that answers, hangs, refuses, rejects, and is gone.

use claviger_otlp::common::any_value::Value as AnyValue;
use claviger_otlp::logs::LogRecord;
use claviger_otlp::text_of;
use otlp_collector::{Behaviour, Collector, Received};

use super::*;
use crate::daemon::config::{OtlpCollector, OtlpEndpoint};

fn fixture(collector: &Collector) -> Fixture {
    let port = collector.address().port();
    let endpoint = OtlpEndpoint { host: "127.0.0.1".to_owned(), port, is_tls: false };
    let collector = Box::new(OtlpCollector { endpoint, ca: None, identity: None, headers: None });
    let service_name = "claviger".to_owned();
    Fixture::with(TempDir::new().unwrap(), SinkKind::Otlp { collector, service_name })
}

fn body(record: &LogRecord) -> &str {
    match record.body.as_ref().and_then(|body| body.value.as_ref()) {
        Some(AnyValue::StringValue(line)) => line,
        body => panic!("{body:?}"),
    }
}

fn places(received: &Received) -> Vec<u64> {
    received.records.iter().map(|(_, record)| place_of(body(record))).collect()
}

/// Waits until the collector has each of these lines, once.
fn wait_for_each_once(collector: &Collector, wanted: &BTreeSet<u64>) {
    let received = collector.wait_until(|received| {
        let places: BTreeSet<_> = places(received).into_iter().collect();
        places.is_superset(wanted)
    });
    let all = places(&received);
    assert_eq!(all.len(), all.iter().collect::<BTreeSet<_>>().len(), "none twice: {all:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_has_each_line_before_its_call_is_answered() {
    let collector = Collector::start();
    let fixture = fixture(&collector);
    let audit = fixture.open();
    record(&audit, "a").await.unwrap();
    let received = collector.received();
    let [(resource, line)] = &received.records[..] else { panic!("{received:#?}") };
    let log = fs::read_to_string(&fixture.config.path).unwrap();
    assert_eq!(body(line), log.trim_end());
    let instance = audit.instance().unwrap().to_string();
    let attributes = &resource.attributes;
    assert_eq!(text_of(attributes, "service.name"), Some("claviger"));
    assert_eq!(text_of(attributes, "service.instance.id"), Some(&*instance));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_required_collector_that_is_gone_refuses_and_has_each_line_once_after_its_return() {
    let collector = Collector::start();
    let address = collector.address();
    let fixture = fixture(&collector);
    let audit = fixture.open();
    record(&audit, "before").await.unwrap();
    drop(collector);
    let begun = Instant::now();
    let error = record(&audit, "gone").await.unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(20), "far less than the limit of a hang");
    assert!(error.is_in_the_file(), "{error}");
    assert!(audit.is_failing());
    let collector = Collector::at(address, None);
    record_until_it_can(&audit).await;
    assert!(!audit.is_failing());
    wait_for_each_once(&collector, &fixture.places().split_off(&1));
    assert_eq!(audit.state().unwrap().sinks[0].behind, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_hangs_refuses_in_time_and_serves_when_it_answers_again() {
    let collector = Collector::start();
    let mut fixture = fixture(&collector);
    fixture.config.hang_limit = Duration::from_millis(1500);
    let audit = fixture.open();
    record(&audit, "before").await.unwrap();
    collector.behave(Behaviour::Hangs);
    let begun = Instant::now();
    let error = record(&audit, "hangs").await.unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert!(error.is_in_the_file(), "{error}");
    collector.behave(Behaviour::Takes);
    record_until_it_can(&audit).await;
    let wanted = fixture.places();
    collector.wait_until(|received| {
        places(received).into_iter().collect::<BTreeSet<_>>().is_superset(&wanted)
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_collector_refuses_or_rejects_is_not_there() {
    for wrong in [Behaviour::Refuses(Code::PermissionDenied), Behaviour::Rejects] {
        let collector = Collector::start();
        let fixture = fixture(&collector);
        let audit = fixture.open();
        record(&audit, "before").await.unwrap();
        collector.behave(wrong);
        assert!(record(&audit, "refused").await.unwrap_err().is_in_the_file(), "{wrong:?}");
        collector.behave(Behaviour::Takes);
        record_until_it_can(&audit).await;
        wait_for_each_once(&collector, &fixture.places());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_best_effort_collector_calls_are_answered_and_what_it_rejects_is_left_out() {
    let collector = Collector::start();
    let mut fixture = fixture(&collector);
    (fixture.config.sinks[0].best_effort, fixture.config.sinks[0].spool) = (true, 1 << 30);
    let audit = fixture.open();
    collector.behave(Behaviour::Rejects);
    record(&audit, "rejected").await.unwrap();
    collector.wait_until(|received| received.requests > 0);
    let begun = Instant::now();
    while audit.state().unwrap().sinks[0].behind > 0 {
        assert!(begun.elapsed() < Duration::from_secs(30), "it is tried for ever");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    collector.behave(Behaviour::Hangs);
    record(&audit, "hangs").await.unwrap();
    assert!(!audit.is_failing());
    collector.behave(Behaviour::Takes);
    wait_for_each_once(&collector, &fixture.places().split_off(&1));
}

#[test]
fn the_files_of_a_collector_are_looked_at_before_the_log_is_opened() {
    let collector = Collector::start();
    let mut fixture = fixture(&collector);
    let missing = fixture.path("headers");
    let SinkKind::Otlp { collector, .. } = &mut fixture.config.sinks[0].kind else {
        unreachable!()
    };
    collector.headers = Some(missing);
    let error = Audit::check(&config::Audit::File(Box::new(fixture.config))).unwrap_err();
    let error = error.to_string();
    assert!(error.starts_with("audit.sinks.siem: ") && error.contains("headers"), "{error}");
}
