//! Services at their worst, each through the fault proxy and the real daemon: throttled, ill, cut off,
//! slow, not who they say they are.

use std::time::{Duration, Instant};

use claviger_client::Health;
use claviger_proto::v1::UnwrapRequest;
use fault_proxy::{Answer, Fault, Pattern, Shown, Times};
use e2e::connection::frame;
use e2e::{Connection, Load, Stage, Which};
use tonic::Code;
use tonic_types::StatusExt;

/// Runs each test on each service; on HashiCorp Vault as a long one.
macro_rules! on_each_service {
    ($($name:ident),* $(,)?) => {
        mod aws {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(super::Which::Aws).await;
            })*
        }
        mod azure {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(super::Which::Azure).await;
            })*
        }
        mod google {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(super::Which::Google).await;
            })*
        }
        mod openbao {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(super::Which::OpenBao).await;
            })*
        }
        mod vault {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            #[ignore = "long: scripts/test --all"]
            async fn $name() {
                super::$name(super::Which::Vault).await;
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
);

/// The ways in which an answer can be none.
fn breakages(stage: &Stage) -> [Fault; 5] {
    [
        Fault::Answer(stage.remote.which.service().ill()),
        Fault::CutBeforeHeaders,
        Fault::CutAfterHeaders,
        Fault::CutBody,
        Fault::TruncatedBody,
    ]
}

async fn a_throttle_is_passed_on_with_the_services_own_delay(which: Which) {
    let stage = Stage::set(which).await;
    let connection = stage.connect().await;
    for retry_after in [Some(Duration::from_secs(7)), None] {
        let throttled = Fault::Answer(which.service().throttled(retry_after));
        stage.fault(stage.unwraps_of_value(), Times::Next(1), throttled);
        let (sent, outcome) = stage.ask(&connection).await;
        let answer = outcome.unwrap_err();
        assert_eq!(answer.code(), Code::ResourceExhausted, "{answer}\n{}", stage.daemon.log());
        let details = answer.status().get_error_details();
        let delay = details.retry_info().and_then(|info| info.retry_delay);
        let delay = delay.expect("RESOURCE_EXHAUSTED has a RetryInfo");
        assert_eq!(delay, retry_after.unwrap_or(delay), "the service's own");
        assert!(delay > Duration::ZERO);
        assert_eq!(sent, 1, "a throttle is not tried again inside of a call");
        assert_eq!(stage.scene.key_health(&stage.daemon).await, Health::Serving);
        assert!(stage.ask(&connection).await.1.is_ok());
    }
}

/// The call's connection is cut, and the canary that is to tell why gets no answer either.
async fn a_throttled_canary_fails_the_call_that_needs_it_and_no_key(which: Which) {
    let stage = Stage::set(which).await;
    let connection = stage.connect().await;
    stage.fault(stage.unwraps_of_value(), Times::Next(1), Fault::CutBeforeHeaders);
    let throttled = Fault::Answer(which.service().throttled(Some(Duration::from_secs(7))));
    stage.fault(stage.unwraps(), Times::Always, throttled);
    let all = stage.proxy.count(&stage.unwraps());
    let (sent, outcome) = stage.ask(&connection).await;
    let answer = outcome.unwrap_err();
    assert_eq!(answer.code(), Code::ResourceExhausted, "{answer}\n{}", stage.daemon.log());
    assert!(stage.proxy.count(&stage.unwraps()) - all > sent, "a canary was sent");
    assert_eq!(stage.scene.key_health(&stage.daemon).await, Health::Serving);
    stage.proxy.clear().await;
    assert!(stage.ask(&connection).await.1.is_ok());
    let log = stage.daemon.log();
    assert!(!log.contains("replica fails"), "{log}");
}

async fn the_services_own_request_id_is_in_the_audit_record(which: Which) {
    let stage = Stage::set(which).await;
    let connection = stage.connect().await;
    let last = || {
        let mut records = stage.scene.site.audit_records();
        let record = records.pop().expect("each call has a record");
        assert_eq!(record["operation"], "unwrap", "{record}");
        (record["outcome"].clone(), record["backend_request_id"].as_str().map(str::to_owned))
    };
    stage.ask(&connection).await.1.unwrap();
    let (outcome, of_good) = last();
    assert_eq!(outcome, "ok");
    let of_good = of_good.expect("each service names its request, or takes our name for it");
    if which == Which::Google {
        let named = stage.unwraps_of_value().header("x-goog-request-reason", &of_good);
        assert_eq!(stage.proxy.count(&named), 1, "the name that Google was told");
    }

    // The service's own answer to a bad value, and then one whose id is known.
    let mut bad = stage.scene.wrapped.clone();
    bad[100] ^= 1;
    let answer = connection.unwrap(&stage.request_for(&bad)).await.unwrap_err();
    assert_eq!(answer.code(), Code::InvalidArgument);
    let (outcome, of_bad) = last();
    assert_eq!(outcome, "INVALID_ARGUMENT");
    let ill = Fault::Answer(which.service().ill());
    stage.fault(stage.unwraps_of_value(), Times::Next(2), ill);
    let answer = stage.ask(&connection).await.1.unwrap_err();
    assert_eq!(answer.code(), Code::Unavailable);
    let (outcome, of_ill) = last();
    assert_eq!(outcome, "UNAVAILABLE");
    println!("{}: {of_good}, bad value {of_bad:?}, ill {of_ill:?}", which.name());
    match which {
        Which::OpenBao | Which::Vault => assert_eq!((of_bad, of_ill), (None, None)),
        Which::Aws | Which::Azure | Which::Google => {
            let of_bad = of_bad.expect("errors are named as well");
            let of_ill = of_ill.expect("errors are named as well");
            let known = "00000000-0000-0000-0000-00000000fa17";
            assert!(which == Which::Google || of_ill == known, "{of_ill}");
            assert!(of_good != of_bad && of_bad != of_ill && of_ill != of_good);
        }
    }
}

async fn what_breaks_once_is_repaired_and_retried_in_silence(which: Which) {
    let stage = Stage::set(which).await;
    let connection = stage.connect().await;
    for fault in breakages(&stage) {
        stage.fault(stage.unwraps_of_value(), Times::Next(1), fault.clone());
        let (sent, outcome) = stage.ask(&connection).await;
        outcome.unwrap_or_else(|answer| panic!("{fault:?}: {answer}\n{}", stage.daemon.log()));
        assert_eq!(sent, 2, "{fault:?}: the attempt, and one more");
        // The service takes canaries all the while, and only the caller's value fails.
        stage.fault(stage.unwraps_of_value(), Times::Next(2), fault.clone());
        let (sent, outcome) = stage.ask(&connection).await;
        let answer = outcome.unwrap_err();
        assert_eq!(answer.code(), Code::Unavailable, "{fault:?}: {answer}");
        assert_eq!(sent, 2, "{fault:?}: one silent retry, and no more");
        assert_eq!(stage.scene.key_health(&stage.daemon).await, Health::Serving, "{fault:?}");
    }
}

async fn what_stays_broken_is_unavailable_after_one_attempt_to_repair_it(which: Which) {
    let stage = Stage::set(which).await;
    let connection = stage.connect().await;
    for fault in breakages(&stage) {
        stage.fault(stage.unwraps(), Times::Always, fault.clone());
        let all = stage.proxy.count(&stage.unwraps());
        let (sent, outcome) = stage.ask(&connection).await;
        let canaries = stage.proxy.count(&stage.unwraps()) - all - sent;
        let answer = outcome.unwrap_err();
        assert_eq!(answer.code(), Code::Unavailable, "{fault:?}: {answer}");
        assert_eq!(sent, 1, "{fault:?}: what was not repaired is not tried again");
        // One of the call's own; the daemon's watch over the key may send one at the same time.
        assert!((1..=3).contains(&canaries), "{fault:?}: {canaries} canaries");
        assert_eq!(stage.scene.key_health(&stage.daemon).await, Health::NotServing, "{fault:?}");
        stage.heal().await;
    }
    stage.proxy.cut_off().await;
    let (sent, outcome) = stage.ask(&connection).await;
    assert_eq!((sent, outcome.unwrap_err().code()), (0, Code::Unavailable));
    stage.heal().await;
}

async fn whoever_shows_another_certificate_is_told_nothing(which: Which) {
    let stage = Stage::set(which).await;
    let connection = stage.connect().await;
    for shown in [Shown::OfAnotherCa, Shown::ForAnotherName] {
        stage.proxy.show(shown).await;
        let (told, tried) = (stage.proxy.seen().len(), stage.proxy.connections());
        let (_, outcome) = stage.ask(&connection).await;
        let code = outcome.unwrap_err().code();
        assert_eq!(code, Code::FailedPrecondition, "{shown:?}\n{}", stage.daemon.log());
        assert!(stage.proxy.connections() > tried, "{shown:?}: a new connection was tried");
        assert_eq!(stage.proxy.seen().len(), told, "{shown:?}: something was sent");
        stage.scene.wait_for_key_health(&stage.daemon, Health::NotServing).await;
        assert!(stage.daemon.log().contains("certificate"), "{}", stage.daemon.log());
        stage.heal().await;
    }
}

async fn a_redirect_is_refused_and_never_followed(which: Which) {
    let stage = Stage::set(which).await;
    let connection = stage.connect().await;
    let elsewhere = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let location = format!("http://{}/", elsewhere.local_addr().unwrap());
    for status in [301, 302, 307, 308] {
        let redirect = Fault::Answer(Answer::redirect(status, &location));
        stage.fault(Pattern::any(), Times::Always, redirect);
        let (sent, outcome) = stage.ask(&connection).await;
        let answer = outcome.unwrap_err();
        let log = || stage.daemon.log();
        assert_eq!(answer.code(), Code::FailedPrecondition, "{status}: {answer}\n{}", log());
        assert_eq!(sent, 1, "{status}");
        stage.heal().await;
    }
    let followed = tokio::time::timeout(Duration::from_millis(200), elsewhere.accept()).await;
    assert!(followed.is_err(), "the redirect was followed");
}

async fn a_slow_service_costs_its_callers_their_deadline_and_no_more(which: Which) {
    const ENOUGH: usize = 5;
    const AT_MOST: usize = 20;
    let stage = Stage::set(which).await;
    let connection = stage.connect().await;
    let (limit, long) = (Duration::from_millis(700), Duration::from_mins(1));
    let within = Duration::from_millis(50);
    for (fault, name) in [
        (Fault::Delay(long), "asked late"),
        (Fault::SlowFirstByte(long), "slow first byte"),
        (Fault::SlowBody(long), "slow body"),
    ] {
        stage.fault(stage.unwraps_of_value(), Times::Always, fault);
        let (mut least, mut most, mut calls) = (Duration::MAX, Duration::ZERO, 0);
        // A busy machine delays everybody now and then: more calls are made until one was undisturbed.
        while calls < ENOUGH || (least >= within && calls < AT_MOST) {
            let (code, took) = with_deadline(&connection, &stage.scene.request(), "700m").await;
            assert_eq!(code, Code::DeadlineExceeded, "{name}\n{}", stage.daemon.log());
            assert!(took + within >= limit, "{name}: {took:?} is too soon");
            let overshoot = took.saturating_sub(limit);
            (least, most, calls) = (least.min(overshoot), most.max(overshoot), calls + 1);
        }
        println!(
            "{}, {name}: past a deadline of 700 ms by {least:.1?} at least, {most:.1?} at most, \
             {calls} calls",
            which.name()
        );
        assert!(least < within, "{name}: {least:?} at least, {calls} calls");
        assert!(most < Duration::from_secs(10), "{name}: {most:?} at most");
        stage.heal().await;
    }
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
    let stage = Stage::set(Which::Google).await;
    let connection = stage.connect().await;
    for fault in [
        Fault::ChangedField("plaintextCrc32c", "1".into()),
        Fault::ChangedField("plaintextCrc32c", serde_json::Value::Null),
        Fault::ChangedField("verifiedCiphertextCrc32c", false.into()),
        Fault::ChangedField("plaintext", "AAAA".into()),
    ] {
        stage.fault(stage.unwraps(), Times::Always, fault.clone());
        let (sent, outcome) = stage.ask(&connection).await;
        let code = outcome.expect_err("the material may be anything").code();
        assert!(
            matches!(code, Code::Internal | Code::Unavailable),
            "{fault:?}: {code:?}\n{}",
            stage.daemon.log()
        );
        assert!(sent <= 2, "{fault:?}: {sent} requests");
        stage.heal().await;
        // On the way once, and well again: a repaired attempt may come back right, never wrong.
        stage.fault(stage.unwraps_of_value(), Times::Next(1), fault.clone());
        let (sent, outcome) = stage.ask(&connection).await;
        let code = outcome.map_or_else(|answer| answer.code(), |()| Code::Ok);
        println!("{fault:?} once: {code:?} after {sent} requests");
        assert!(
            matches!(code, Code::Ok | Code::Internal | Code::Unavailable),
            "{fault:?}: {code:?}"
        );
        assert!(sent <= 2, "{fault:?}: {sent} requests");
        stage.heal().await;
    }
}

/// OpenBao says 500 to a bad value, as it does when it is ill.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_bad_values_for_openbao_change_nobodys_health() {
    const AT_A_TIME: u32 = 8;
    let stage = Stage::set(Which::OpenBao).await;
    let honest = stage.scene.client_config(&stage.daemon);
    let load = Load::start(&honest, &stage.scene.wrapped, 1, 0);
    let connection = stage.connect().await;
    let bad = |number: u32| {
        let mut garbage = vec![0x55; 256];
        garbage[0] = 0;
        garbage[252..].copy_from_slice(&number.to_be_bytes());
        stage.request_for(&garbage)
    };
    let mut answers = std::collections::BTreeSet::new();
    for first in (0..1000).step_by(AT_A_TIME as usize) {
        let requests: Vec<_> = (first..first + AT_A_TIME).map(bad).collect();
        let calls = requests.iter().map(|request| connection.unwrap(request));
        for outcome in futures::future::join_all(calls).await {
            answers.insert(outcome.unwrap_err().comparable());
        }
        if first % 200 == 0 {
            assert_eq!(stage.scene.key_health(&stage.daemon).await, Health::Serving);
        }
    }
    assert_eq!(answers.len(), 1, "one answer for all: {answers:#?}");
    let tally = load.stop().await;
    assert!(tally.failed.is_empty(), "the honest caller: {:?}", tally.failed);
    assert!(!tally.right.is_empty());
    assert_eq!(stage.scene.key_health(&stage.daemon).await, Health::Serving);
    let log = stage.daemon.log();
    assert!(!log.contains("replica fails"), "nobody's health changed: {log}");
    assert_eq!(log.matches("logged in").count(), 1, "nor was there a second login: {log}");
    println!("1000 bad values; {} honest calls meanwhile, none failed", tally.right.len());
}
