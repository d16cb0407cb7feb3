//! Services at their worst, each through the fault proxy and the real daemon: throttled, failing, cut off,
//! slow, not who they say they are.

use std::time::{Duration, Instant};

use claviger_client::Health;
use claviger_proto::v1::{UnwrapBatchRequest, UnwrapRequest, unwrap_batch_result};
use e2e::connection::frame;
use e2e::daemon::claviger;
use e2e::fault_setup::PROVIDER;
use e2e::process::command;
use e2e::setup::KEY;
use e2e::{Connection, DaemonFiles, FaultSetup, Load, ServiceKind};
use fault_proxy::{Answer, Fault, Pattern, Shown, Times};
use tonic::Code;
use tonic_types::StatusExt;

/// Runs each test on each service; on HashiCorp Vault as a long one.
macro_rules! on_each_service {
    ($($name:ident),* $(,)?) => {
        mod aws {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(super::ServiceKind::Aws).await;
            })*
        }
        mod azure {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(super::ServiceKind::Azure).await;
            })*
        }
        mod google {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(super::ServiceKind::Google).await;
            })*
        }
        mod openbao {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(super::ServiceKind::OpenBao).await;
            })*
        }
        mod vault {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            #[ignore = "long: scripts/test --all"]
            async fn $name() {
                super::$name(super::ServiceKind::Vault).await;
            })*
        }
    };
}

on_each_service!(
    a_throttle_is_passed_on_with_the_services_own_delay,
    a_throttled_canary_fails_the_call_that_needs_it_and_no_key,
    the_services_own_request_id_is_in_the_audit_record,
    what_breaks_once_is_repaired_and_retried_in_silence,
    what_stays_broken_is_unavailable_after_one_attempt_to_repair_it,
    whoever_shows_another_certificate_is_told_nothing,
    a_redirect_is_refused_and_never_followed,
    a_slow_service_costs_its_callers_their_deadline_and_no_more,
    a_value_without_an_answer_counts_as_failed_until_there_is_one,
    a_refused_batch_is_one_line_of_the_log,
);

/// The ways in which an answer can be none.
fn breakages(setup: &FaultSetup) -> [Fault; 5] {
    [
        Fault::Answer(setup.service.kind.api().failing()),
        Fault::CutBeforeHeaders,
        Fault::CutAfterHeaders,
        Fault::CutBody,
        Fault::TruncatedBody,
    ]
}

async fn a_throttle_is_passed_on_with_the_services_own_delay(kind: ServiceKind) {
    let setup = FaultSetup::set(kind).await;
    let connection = setup.connect().await;
    for retry_after in [Some(Duration::from_secs(7)), None] {
        let throttled = Fault::Answer(kind.api().throttled(retry_after));
        setup.fault(setup.unwraps_of_value(), Times::Next(1), throttled);
        let (sent, outcome) = setup.ask(&connection).await;
        let answer = outcome.unwrap_err();
        assert_eq!(answer.code(), Code::ResourceExhausted, "{answer}\n{}", setup.daemon.log());
        let details = answer.status().get_error_details();
        let delay = details.retry_info().and_then(|info| info.retry_delay);
        let delay = delay.expect("RESOURCE_EXHAUSTED has a RetryInfo");
        assert_eq!(delay, retry_after.unwrap_or(delay), "the service's own");
        assert!(delay > Duration::ZERO);
        assert_eq!(sent, 1, "a throttle is not tried again inside of a call");
        assert_eq!(setup.base.key_health(&setup.daemon).await, Health::Serving);
        assert!(setup.ask(&connection).await.1.is_ok());
    }
}

/// The call's connection is cut, and the canary that is to tell why gets no answer either.
async fn a_throttled_canary_fails_the_call_that_needs_it_and_no_key(kind: ServiceKind) {
    let setup = FaultSetup::set(kind).await;
    let connection = setup.connect().await;
    setup.fault(setup.unwraps_of_value(), Times::Next(1), Fault::CutBeforeHeaders);
    let throttled = Fault::Answer(kind.api().throttled(Some(Duration::from_secs(7))));
    setup.fault(setup.unwraps(), Times::Always, throttled);
    let all = setup.proxy.count(&setup.unwraps());
    let (sent, outcome) = setup.ask(&connection).await;
    let answer = outcome.unwrap_err();
    assert_eq!(answer.code(), Code::ResourceExhausted, "{answer}\n{}", setup.daemon.log());
    assert!(setup.proxy.count(&setup.unwraps()) - all > sent, "a canary was sent");
    assert_eq!(setup.base.key_health(&setup.daemon).await, Health::Serving);
    setup.proxy.clear().await;
    assert!(setup.ask(&connection).await.1.is_ok());
    let log = setup.daemon.log();
    assert!(!log.contains("replica fails"), "{log}");
}

async fn the_services_own_request_id_is_in_the_audit_record(kind: ServiceKind) {
    let setup = FaultSetup::set(kind).await;
    let connection = setup.connect().await;
    let last = || {
        let mut records = setup.base.files.audit_records();
        let record = records.pop().expect("each call has a record");
        assert_eq!(record["operation"], "unwrap", "{record}");
        (record["outcome"].clone(), record["backend_request_id"].as_str().map(str::to_owned))
    };
    setup.ask(&connection).await.1.unwrap();
    let (outcome, of_good) = last();
    assert_eq!(outcome, "ok");
    let of_good = of_good.expect("each service names its request, or takes our name for it");
    if kind == ServiceKind::Google {
        let named = setup.unwraps_of_value().header("x-goog-request-reason", &of_good);
        assert_eq!(setup.proxy.count(&named), 1, "the name that Google was told");
    }

    // The service's own answer to a bad value, and then one whose id is known.
    let mut bad = setup.base.wrapped.clone();
    bad[100] ^= 1;
    let answer = connection.unwrap(&setup.request_for(&bad)).await.unwrap_err();
    assert_eq!(answer.code(), Code::InvalidArgument);
    let (outcome, of_bad) = last();
    assert_eq!(outcome, "INVALID_ARGUMENT");
    let failing = Fault::Answer(kind.api().failing());
    setup.fault(setup.unwraps_of_value(), Times::Next(2), failing);
    let answer = setup.ask(&connection).await.1.unwrap_err();
    assert_eq!(answer.code(), Code::Unavailable);
    let (outcome, of_failing) = last();
    assert_eq!(outcome, "UNAVAILABLE");
    println!("{}: {of_good}, bad value {of_bad:?}, failing {of_failing:?}", kind.name());
    match kind {
        ServiceKind::OpenBao | ServiceKind::Vault => assert_eq!((of_bad, of_failing), (None, None)),
        ServiceKind::Aws | ServiceKind::Azure | ServiceKind::Google => {
            let of_bad = of_bad.expect("errors are named as well");
            let of_failing = of_failing.expect("errors are named as well");
            let known = "00000000-0000-0000-0000-00000000fa17";
            assert!(kind == ServiceKind::Google || of_failing == known, "{of_failing}");
            assert!(of_good != of_bad && of_bad != of_failing && of_failing != of_good);
        }
    }
}

async fn what_breaks_once_is_repaired_and_retried_in_silence(kind: ServiceKind) {
    let setup = FaultSetup::set(kind).await;
    let connection = setup.connect().await;
    for fault in breakages(&setup) {
        setup.fault(setup.unwraps_of_value(), Times::Next(1), fault.clone());
        let (sent, outcome) = setup.ask(&connection).await;
        outcome.unwrap_or_else(|answer| panic!("{fault:?}: {answer}\n{}", setup.daemon.log()));
        assert_eq!(sent, 2, "{fault:?}: the attempt, and one more");
        // The service takes canaries all the while, and only the caller's value fails.
        setup.fault(setup.unwraps_of_value(), Times::Next(2), fault.clone());
        let (sent, outcome) = setup.ask(&connection).await;
        let answer = outcome.unwrap_err();
        assert_eq!(answer.code(), Code::Unavailable, "{fault:?}: {answer}");
        assert_eq!(sent, 2, "{fault:?}: one silent retry, and no more");
        assert_eq!(setup.base.key_health(&setup.daemon).await, Health::Serving, "{fault:?}");
    }
}

async fn what_stays_broken_is_unavailable_after_one_attempt_to_repair_it(kind: ServiceKind) {
    let setup = FaultSetup::set(kind).await;
    let connection = setup.connect().await;
    for fault in breakages(&setup) {
        setup.fault(setup.unwraps(), Times::Always, fault.clone());
        let all = setup.proxy.count(&setup.unwraps());
        let (sent, outcome) = setup.ask(&connection).await;
        let canaries = setup.proxy.count(&setup.unwraps()) - all - sent;
        let answer = outcome.unwrap_err();
        assert_eq!(answer.code(), Code::Unavailable, "{fault:?}: {answer}");
        assert_eq!(sent, 1, "{fault:?}: what was not repaired is not tried again");
        // One of the call's own; the daemon's watch over the key may send one at the same time.
        assert!((1..=3).contains(&canaries), "{fault:?}: {canaries} canaries");
        assert_eq!(setup.base.key_health(&setup.daemon).await, Health::NotServing, "{fault:?}");
        setup.heal().await;
    }
    setup.proxy.cut_off().await;
    let (sent, outcome) = setup.ask(&connection).await;
    assert_eq!((sent, outcome.unwrap_err().code()), (0, Code::Unavailable));
    setup.heal().await;
}

async fn whoever_shows_another_certificate_is_told_nothing(kind: ServiceKind) {
    let setup = FaultSetup::set(kind).await;
    let connection = setup.connect().await;
    for shown in [Shown::OfAnotherCa, Shown::ForAnotherName] {
        setup.proxy.show(shown).await;
        let (told, tried) = (setup.proxy.seen().len(), setup.proxy.connections());
        let (_, outcome) = setup.ask(&connection).await;
        let code = outcome.unwrap_err().code();
        assert_eq!(code, Code::FailedPrecondition, "{shown:?}\n{}", setup.daemon.log());
        assert!(setup.proxy.connections() > tried, "{shown:?}: a new connection was tried");
        assert_eq!(setup.proxy.seen().len(), told, "{shown:?}: something was sent");
        setup.base.wait_for_key_health(&setup.daemon, Health::NotServing).await;
        assert!(setup.daemon.log().contains("certificate"), "{}", setup.daemon.log());
        setup.heal().await;
    }
}

async fn a_redirect_is_refused_and_never_followed(kind: ServiceKind) {
    let setup = FaultSetup::set(kind).await;
    let connection = setup.connect().await;
    let elsewhere = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let location = format!("http://{}/", elsewhere.local_addr().unwrap());
    for status in [301, 302, 307, 308] {
        let redirect = Fault::Answer(Answer::redirect(status, &location));
        setup.fault(Pattern::any(), Times::Always, redirect);
        let (sent, outcome) = setup.ask(&connection).await;
        let answer = outcome.unwrap_err();
        let log = || setup.daemon.log();
        assert_eq!(answer.code(), Code::FailedPrecondition, "{status}: {answer}\n{}", log());
        assert_eq!(sent, 1, "{status}");
        setup.heal().await;
    }
    let followed = tokio::time::timeout(Duration::from_millis(200), elsewhere.accept()).await;
    assert!(followed.is_err(), "the redirect was followed");
}

async fn a_slow_service_costs_its_callers_their_deadline_and_no_more(kind: ServiceKind) {
    const ENOUGH: usize = 5;
    const AT_MOST: usize = 20;
    let setup = FaultSetup::set(kind).await;
    let connection = setup.connect().await;
    let (limit, long) = (Duration::from_millis(700), Duration::from_mins(1));
    let within = Duration::from_millis(50);
    for (fault, name) in [
        (Fault::Delay(long), "asked late"),
        (Fault::SlowFirstByte(long), "slow first byte"),
        (Fault::SlowBody(long), "slow body"),
    ] {
        setup.fault(setup.unwraps_of_value(), Times::Always, fault);
        let (mut least, mut most, mut calls) = (Duration::MAX, Duration::ZERO, 0);
        // A busy machine delays every call now and then: more calls are made until one was undisturbed.
        while calls < ENOUGH || (least >= within && calls < AT_MOST) {
            let (code, took) = with_deadline(&connection, &setup.base.request(), "700m").await;
            assert_eq!(code, Code::DeadlineExceeded, "{name}\n{}", setup.daemon.log());
            assert!(took + within >= limit, "{name}: {took:?} is too soon");
            let overshoot = took.saturating_sub(limit);
            (least, most, calls) = (least.min(overshoot), most.max(overshoot), calls + 1);
        }
        println!(
            "{}, {name}: past a deadline of 700 ms by {least:.1?} at least, {most:.1?} at most, \
             {calls} calls",
            kind.name()
        );
        assert!(least < within, "{name}: {least:?} at least, {calls} calls");
        assert!(most < Duration::from_secs(10), "{name}: {most:?} at most");
        setup.heal().await;
    }
}

/// A value that a service never answers may be one whose failure an attacker wants for nothing.
async fn a_value_without_an_answer_counts_as_failed_until_there_is_one(kind: ServiceKind) {
    let setup = FaultSetup::set_with(kind, |files| {
        files.limit("key-connector", "failed_unwraps", "2/h");
        let limits = match kind {
            ServiceKind::Aws | ServiceKind::Azure => {
                &["connect_timeout", "attempt_timeout", "operation_timeout"][..]
            }
            ServiceKind::Google | ServiceKind::OpenBao | ServiceKind::Vault => {
                &["connect_timeout", "timeout"]
            }
        };
        for limit in limits {
            files.set(&format!("providers.{PROVIDER}.{limit}"), "2s");
        }
    })
    .await;
    let connection = setup.connect().await;
    let failed = || budget(&setup.base.files);
    let silence = Fault::Delay(Duration::from_mins(1));

    // One whose caller waits for it, and one whose caller leaves.
    setup.fault(setup.unwraps_of_value(), Times::Always, silence.clone());
    let (sent, outcome) = setup.ask(&connection).await;
    assert_eq!((sent, outcome.unwrap_err().code()), (2, Code::Unavailable), "asked, and once more");
    assert_eq!(failed(), (1, 1), "{}", setup.daemon.log());
    let [other, third] = [(); 2].map(|()| setup.base.wrap_again());
    setup.fault(kind.api().unwraps_of(&other), Times::Always, silence);
    let request = setup.request_for(&other);
    let (code, _) = with_deadline(&connection, &request, "300m").await;
    assert_eq!(code, Code::DeadlineExceeded);
    let begun = Instant::now();
    while failed() != (2, 2) {
        assert!(begun.elapsed() < Duration::from_mins(1), "{}", setup.daemon.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let unanswered = setup.daemon.count("claviger_unanswered_unwraps_total", &[]);
    assert_eq!(unanswered, 2);
    let refused = connection.unwrap(&setup.request_for(&third)).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");

    // What counts may be asked again, and what unwraps then is taken back.
    setup.heal().await;
    assert_eq!(failed(), (1, 1));
    connection.unwrap(&request).await.unwrap();
    assert_eq!(failed(), (0, 0));
    connection.unwrap(&setup.request_for(&third)).await.unwrap();
}

/// What `claviger budget show` says: how many values count, and how many of them had no answer.
fn budget(files: &DaemonFiles) -> (u64, u64) {
    let output = command(claviger())
        .args(["--json", "budget", "show", "key-connector", KEY, "--config"])
        .arg(files.configuration_file())
        .output()
        .unwrap();
    let shown: serde_json::Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    let count = |name: &str| shown["spent"][name].as_u64().unwrap();
    (count("failed"), count("unanswered"))
}

async fn a_refused_batch_is_one_line_of_the_log(kind: ServiceKind) {
    const ITEMS: usize = 8;
    let setup = FaultSetup::set(kind).await;
    let connection = setup.connect().await;
    let items = (0..ITEMS).map(|_| setup.request_for(&setup.base.wrap_again())).collect();
    let refusal = Fault::Answer(Answer::redirect(302, "https://localhost/"));
    setup.fault(Pattern::any(), Times::Always, refusal);
    let batch = connection.unwrap_batch(&UnwrapBatchRequest { items }).await.unwrap();
    assert_eq!(batch.results.len(), ITEMS);
    for result in batch.results {
        let Some(unwrap_batch_result::Result::Error(error)) = result.result else {
            panic!("something was unwrapped")
        };
        assert_eq!(error.code, Code::FailedPrecondition as i32, "{error:?}");
    }
    let log = setup.daemon.log();
    let lines = log.lines().filter(|line| line.contains("backend: ")).count();
    assert_eq!(lines, 1, "{log}");
    let records = setup.base.files.audit_records();
    let of_items = records.iter().filter(|record| record["batch_item"].is_u64());
    assert_eq!(of_items.count(), ITEMS, "each has its record");
}

/// One unwrap with a deadline: the code, and when it came.
async fn with_deadline(
    connection: &Connection,
    request: &UnwrapRequest,
    timeout: &str,
) -> (Code, Duration) {
    let call = frame(&prost::Message::encode_to_vec(request));
    let begun = Instant::now();
    let headers = [("grpc-timeout", timeout)];
    let answer = connection.call("/claviger.v1.KeyService/Unwrap", call, &headers).await;
    (answer.expect("the daemon answers").code(), begun.elapsed())
}

/// Google's checksums, wrong in either direction.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_of_google_with_a_wrong_checksum_is_never_given_out() {
    let setup = FaultSetup::set(ServiceKind::Google).await;
    let connection = setup.connect().await;
    for fault in [
        Fault::ChangedField("plaintextCrc32c", "1".into()),
        Fault::ChangedField("plaintextCrc32c", serde_json::Value::Null),
        Fault::ChangedField("verifiedCiphertextCrc32c", false.into()),
        Fault::ChangedField("plaintext", "AAAA".into()),
    ] {
        setup.fault(setup.unwraps(), Times::Always, fault.clone());
        let (sent, outcome) = setup.ask(&connection).await;
        let code = outcome.expect_err("the material may be anything").code();
        assert!(
            matches!(code, Code::Internal | Code::Unavailable),
            "{fault:?}: {code:?}\n{}",
            setup.daemon.log()
        );
        assert!(sent <= 2, "{fault:?}: {sent} requests");
        setup.heal().await;
        // On the way once, and well again: a repaired attempt may come back right, never wrong.
        setup.fault(setup.unwraps_of_value(), Times::Next(1), fault.clone());
        let (sent, outcome) = setup.ask(&connection).await;
        let code = outcome.map_or_else(|answer| answer.code(), |()| Code::Ok);
        println!("{fault:?} once: {code:?} after {sent} requests");
        assert!(
            matches!(code, Code::Ok | Code::Internal | Code::Unavailable),
            "{fault:?}: {code:?}"
        );
        assert!(sent <= 2, "{fault:?}: {sent} requests");
        setup.heal().await;
    }
}

/// OpenBao says 500 to a bad value, as it does when it fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_bad_values_for_openbao_change_nobodys_health() {
    const AT_A_TIME: u32 = 8;
    let setup = FaultSetup::set(ServiceKind::OpenBao).await;
    let honest = setup.base.client_config(&setup.daemon);
    let load = Load::start(&honest, &setup.base.wrapped, 1, 0);
    let connection = setup.connect().await;
    let bad = |number: u32| {
        let mut garbage = vec![0x55; 256];
        garbage[0] = 0;
        garbage[252..].copy_from_slice(&number.to_be_bytes());
        setup.request_for(&garbage)
    };
    let mut answers = std::collections::BTreeSet::new();
    for first in (0..1000).step_by(AT_A_TIME as usize) {
        let requests: Vec<_> = (first..first + AT_A_TIME).map(bad).collect();
        let calls = requests.iter().map(|request| connection.unwrap(request));
        for outcome in futures::future::join_all(calls).await {
            answers.insert(outcome.unwrap_err().comparable());
        }
        if first % 200 == 0 {
            assert_eq!(setup.base.key_health(&setup.daemon).await, Health::Serving);
        }
    }
    assert_eq!(answers.len(), 1, "one answer for all: {answers:#?}");
    let tally = load.stop().await;
    assert!(tally.failed.is_empty(), "the honest caller: {:?}", tally.failed);
    assert!(!tally.right.is_empty());
    assert_eq!(setup.base.key_health(&setup.daemon).await, Health::Serving);
    let log = setup.daemon.log();
    assert!(!log.contains("replica fails"), "no key's health changed: {log}");
    assert_eq!(log.matches("logged in").count(), 1, "nor was there a second login: {log}");
    println!("1000 bad values; {} honest calls meanwhile, none failed", tally.right.len());
}
