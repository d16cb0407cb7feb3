//! Calls over connections in memory, with a clock that stands still but for what is waited for.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::connect::{Driver, Target};
use crate::endpoints::Endpoints;
use crate::{Client, Config, Error, SignOptions, UnwrapOptions};

use daemon::{Daemon, Reach};

#[expect(dead_code, reason = "the tests over TLS use the rest of it")]
#[path = "../../tests/calls/daemon.rs"]
mod daemon;

const TIMEOUT: Duration = Duration::from_secs(10);

/// Daemons in memory, and a client of all of them.
struct Setup {
    daemons: Vec<Arc<Daemon>>,
    client: Client,
}

impl Setup {
    fn new(daemons: usize, change: impl FnOnce(&mut Config)) -> Self {
        let daemons: Vec<_> = (0..daemons).map(|_| Arc::new(Daemon::in_memory())).collect();
        let mut config = Config::new(&["unix:/not-used"], None, None, None).unwrap();
        (config.timeout, config.patience) = (TIMEOUT, Duration::ZERO);
        change(&mut config);
        let target = |(number, daemon): (usize, &Arc<Daemon>)| {
            let daemon = Arc::clone(daemon);
            let dial = move || {
                let daemon = Arc::clone(&daemon);
                Box::pin(async move { daemon.dial().await }) as _
            };
            Target::in_memory(&format!("daemon-{number}"), Box::new(dial))
        };
        let targets = daemons.iter().enumerate().map(target).collect();
        let client = Client::of(Endpoints::of(targets, Driver::Always, config.max_idle), &config);
        Self { daemons, client }
    }

    fn waiting(daemons: usize) -> Self {
        Self::new(daemons, |config| config.wait = true)
    }

    async fn unwrap(&self) -> Result<(), Error> {
        let options = UnwrapOptions::default();
        self.client.unwrap_key("a", b"wrapped", &options).await.map(drop)
    }

    /// An unwrap with the time that it took.
    async fn timed(&self) -> (Result<(), Error>, Duration) {
        let begun = Instant::now();
        let outcome = self.unwrap().await;
        (outcome, begun.elapsed())
    }

    fn calls(&self) -> Vec<usize> {
        self.daemons.iter().map(|daemon| daemon.seen().calls).collect()
    }

    /// Changes a daemon after a while.
    fn later(&self, number: usize, after: Duration, change: impl FnOnce(&Daemon) + Send + 'static) {
        let daemon = Arc::clone(&self.daemons[number]);
        tokio::spawn(async move {
            sleep(after).await;
            change(&daemon);
        });
    }
}

fn unavailable() -> Status {
    Status::unavailable("the key cannot be reached")
}

fn looks_again_after(delay: Duration) -> Status {
    let details = ErrorDetails::with_retry_info(Some(delay));
    Status::with_error_details(Code::Unavailable, "the key cannot be reached", details)
}

fn throttled(delay: Duration) -> Status {
    let details = ErrorDetails::with_retry_info(Some(delay));
    Status::with_error_details(Code::ResourceExhausted, "no room", details)
}

fn limit_reached(delay: Duration) -> Status {
    let mut details = ErrorDetails::with_quota_failure_violation("caller", "rate");
    details.set_retry_info(Some(delay));
    Status::with_error_details(Code::ResourceExhausted, "used up", details)
}

fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_is_away_for_less_than_the_timeout_fails_no_call_that_waits() {
    for away in [1.5, 5.0, 9.0, 9.7] {
        let setup = Setup::waiting(1);
        setup.daemons[0].set_answer(Some(unavailable()));
        setup.later(0, seconds(away), |daemon| daemon.set_answer(None));
        let (outcome, took) = setup.timed().await;
        outcome.unwrap();
        assert!(took >= seconds(away) && took < seconds(away + 0.8), "{away}: {took:?}");
        assert!(setup.calls()[0] < 35, "{:?}", setup.calls());
    }
}

#[tokio::test(start_paused = true)]
async fn a_wait_without_success_ends_at_the_timeout_and_not_before() {
    let setup = Setup::waiting(2);
    setup.daemons[0].set_answer(Some(unavailable()));
    setup.daemons[1].set_reach(Reach::Refuses);
    let (outcome, took) = setup.timed().await;
    let error = outcome.unwrap_err();
    assert_eq!(error.code, Code::Unavailable);
    let expected = "daemon-0: the key cannot be reached; cannot reach the daemon at daemon-1: ";
    assert!(error.message.starts_with(expected), "{error}");
    assert!((TIMEOUT..TIMEOUT + seconds(0.1)).contains(&took), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_wait_is_spent_once_until_a_call_succeeds_again() {
    let setup = Setup::waiting(1);
    setup.daemons[0].set_answer(Some(unavailable()));
    assert_eq!(setup.timed().await.1.as_secs(), 10);
    for _ in 0..3 {
        let (outcome, took) = setup.timed().await;
        outcome.unwrap_err();
        assert!((seconds(0.8)..seconds(1.2)).contains(&took), "{took:?}");
    }
    setup.daemons[0].set_answer(None);
    setup.unwrap().await.unwrap();
    setup.daemons[0].set_answer(Some(unavailable()));
    assert_eq!(setup.timed().await.1.as_secs(), 10, "one that succeeded lets the next ones wait");
}

#[tokio::test(start_paused = true)]
async fn a_daemon_that_stands_still_holds_no_thread_longer_than_a_second_once_a_wait_is_spent() {
    let setup = Setup::waiting(1);
    setup.daemons[0].set_reach(Reach::NeverAnswers);
    assert_eq!(setup.timed().await.1.as_secs(), 10);
    let (outcome, took) = setup.timed().await;
    outcome.unwrap_err();
    assert_eq!(took.as_secs(), 1);
}

#[tokio::test(start_paused = true)]
async fn without_the_option_each_endpoint_is_asked_once() {
    let setup = Setup::new(2, |_| ());
    for daemon in &setup.daemons {
        daemon.set_answer(Some(unavailable()));
    }
    let (outcome, took) = setup.timed().await;
    assert_eq!(outcome.unwrap_err().code, Code::Unavailable);
    assert_eq!(setup.calls(), [1, 1]);
    assert!(took < seconds(0.1), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn the_pause_follows_the_daemons_own_word() {
    let setup = Setup::waiting(1);
    setup.daemons[0].set_answer(Some(throttled(seconds(3.0))));
    setup.later(0, seconds(1.0), |daemon| daemon.set_answer(None));
    let (outcome, took) = setup.timed().await;
    outcome.unwrap();
    assert!((seconds(3.0)..seconds(4.0)).contains(&took), "{took:?}");
    assert_eq!(setup.calls(), [2]);
    // One that does not fit into what is left ends the call at once.
    setup.daemons[0].set_answer(Some(throttled(seconds(30.0))));
    let (outcome, took) = setup.timed().await;
    let error = outcome.unwrap_err();
    assert_eq!((error.code, error.retry_after), (Code::ResourceExhausted, Some(seconds(30.0))));
    assert!(took < seconds(0.1), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_daemon_that_says_when_it_looks_again_is_asked_then_and_not_before() {
    let setup = Setup::waiting(1);
    setup.daemons[0].set_answer(Some(looks_again_after(seconds(2.0))));
    setup.later(0, seconds(1.0), |daemon| daemon.set_answer(None));
    let (outcome, took) = setup.timed().await;
    outcome.unwrap();
    assert!((seconds(2.0)..seconds(2.2)).contains(&took), "{took:?}");
    assert_eq!(setup.calls(), [2]);
    // Another process may have taken its place: every three seconds, and once more before the end.
    setup.daemons[0].set_answer(Some(looks_again_after(seconds(300.0))));
    let (outcome, took) = setup.timed().await;
    let error = outcome.unwrap_err();
    assert_eq!((error.code, error.retry_after), (Code::Unavailable, Some(seconds(300.0))));
    assert!((TIMEOUT..TIMEOUT + seconds(0.1)).contains(&took), "{took:?}");
    assert_eq!(setup.calls(), [2 + 5]);
}

#[tokio::test(start_paused = true)]
async fn a_limit_of_the_callers_is_asked_of_no_other_endpoint_and_waited_for_where_it_fits() {
    let setup = Setup::waiting(2);
    setup.daemons[0].set_answer(Some(limit_reached(seconds(3600.0))));
    let (outcome, took) = setup.timed().await;
    assert_eq!(outcome.unwrap_err().code, Code::ResourceExhausted);
    assert!(took < seconds(0.1), "{took:?}");
    setup.daemons[0].set_answer(Some(limit_reached(seconds(0.5))));
    setup.later(0, seconds(0.2), |daemon| daemon.set_answer(None));
    let (outcome, took) = setup.timed().await;
    outcome.unwrap();
    assert!((seconds(0.5)..seconds(1.0)).contains(&took), "{took:?}");
    assert_eq!(setup.calls(), [3, 0]);
}

#[tokio::test(start_paused = true)]
async fn every_reason_that_is_the_daemons_own_goes_to_the_next_endpoint() {
    for code in [
        Code::Unavailable,
        Code::FailedPrecondition,
        Code::Unauthenticated,
        Code::ResourceExhausted,
        Code::Internal,
        Code::Unimplemented,
        Code::DeadlineExceeded,
        Code::Unknown,
    ] {
        let setup = Setup::new(2, |_| ());
        setup.daemons[0].set_answer(Some(Status::new(code, "not here")));
        setup.unwrap().await.unwrap_or_else(|error| panic!("{code:?}: {error}"));
        assert_eq!(setup.calls(), [1, 1], "{code:?}");
        setup.unwrap().await.unwrap();
        assert_eq!(setup.calls(), [1, 2], "{code:?}: the next call goes to the other one first");
    }
    for code in [Code::InvalidArgument, Code::PermissionDenied] {
        let setup = Setup::waiting(2);
        setup.daemons[0].set_answer(Some(Status::new(code, "nowhere")));
        assert_eq!(setup.unwrap().await.unwrap_err().code, code);
        assert_eq!(setup.calls(), [1, 0], "{code:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_an_operator_must_mend_everywhere_is_not_waited_for() {
    let setup = Setup::waiting(2);
    for daemon in &setup.daemons {
        daemon.set_answer(Some(Status::failed_precondition("the key is missing")));
    }
    let (outcome, took) = setup.timed().await;
    let error = outcome.unwrap_err();
    assert_eq!(error.code, Code::FailedPrecondition);
    assert_eq!(error.message, "daemon-0: the key is missing; daemon-1: the key is missing");
    assert!(took < seconds(0.1), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_is_slow_is_left_to_it_and_the_next_one_is_asked_too() {
    let setup = Setup::new(2, |_| ());
    setup.daemons[0].set_delay(seconds(5.0));
    let (outcome, took) = setup.timed().await;
    outcome.unwrap();
    assert!((seconds(1.0)..seconds(1.1)).contains(&took), "{took:?}");
    sleep(seconds(0.1)).await;
    assert_eq!(setup.daemons[0].seen().cancelled, 1, "the call that lost is cancelled");
    let (outcome, took) = setup.timed().await;
    outcome.unwrap();
    assert!(took < seconds(0.1), "{took:?}: the slow one is left out for a while");
    assert_eq!(setup.calls(), [1, 2]);
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_cannot_be_connected_to_is_passed_by_after_the_same_time() {
    let setup = Setup::new(2, |_| ());
    setup.daemons[0].set_reach(Reach::NeverAnswers);
    let (outcome, took) = setup.timed().await;
    outcome.unwrap();
    assert!((seconds(1.0)..seconds(1.1)).contains(&took), "{took:?}");
    let setup = Setup::new(2, |_| ());
    setup.daemons[0].set_reach(Reach::NeverAnswers);
    let begun = Instant::now();
    setup.client.sign("a", &[1; 32], "PS256", SignOptions::default()).await.unwrap();
    assert_eq!(begun.elapsed().as_secs(), 1, "connecting twice does a signature no harm");
}

#[tokio::test(start_paused = true)]
async fn what_is_not_idempotent_is_asked_of_one_endpoint_at_a_time() {
    let setup = Setup::new(2, |_| ());
    setup.daemons[0].set_delay(seconds(5.0));
    setup.client.sign("a", &[1; 32], "PS256", SignOptions::default()).await.unwrap();
    assert_eq!(setup.calls(), [1, 0]);
}

#[tokio::test(start_paused = true)]
async fn the_slow_answer_counts_where_it_comes_first_and_a_failure_of_the_other_ends_nothing() {
    let setup = Setup::new(2, |_| ());
    setup.daemons[0].set_delay(seconds(2.0));
    setup.daemons[1].set_answer(Some(unavailable()));
    let (outcome, took) = setup.timed().await;
    outcome.unwrap();
    assert!((seconds(2.0)..seconds(2.1)).contains(&took), "{took:?}");
    assert_eq!(setup.calls(), [1, 1]);
}

#[tokio::test(start_paused = true)]
async fn after_five_calls_one_in_ten_is_asked_twice_where_every_endpoint_is_slow() {
    let setup = Setup::new(2, |_| ());
    for daemon in &setup.daemons {
        daemon.set_delay(seconds(1.5));
    }
    for _ in 0..105 {
        setup.unwrap().await.unwrap();
    }
    let asked = setup.calls().iter().sum::<usize>();
    assert!((110..=120).contains(&asked), "{asked} requests of 105 calls");
}

#[tokio::test(start_paused = true)]
async fn hedging_can_be_switched_off() {
    let setup = Setup::new(2, |config| config.hedge = None);
    setup.daemons[0].set_delay(seconds(5.0));
    let (outcome, took) = setup.timed().await;
    outcome.unwrap();
    assert_eq!((took.as_secs(), setup.calls()), (5, vec![1, 0]));
}

#[tokio::test(start_paused = true)]
async fn an_unwrap_whose_connections_break_again_and_again_is_repeated_while_it_waits() {
    let setup = Setup::waiting(2);
    for daemon in &setup.daemons {
        daemon.set_delay(seconds(0.3));
    }
    for cut in 1..=8 {
        for number in 0..2 {
            setup.later(number, seconds(0.2 * f64::from(cut)), Daemon::cut);
        }
    }
    let (outcome, took) = setup.timed().await;
    outcome.unwrap();
    assert!((seconds(1.6)..seconds(3.0)).contains(&took), "{took:?}");
    assert!(setup.calls().iter().sum::<usize>() > 4, "{:?}", setup.calls());
    // A signature may have been made: it is asked for once more at most.
    let begun = Instant::now();
    for cut in 1..=8 {
        for number in 0..2 {
            setup.later(number, seconds(0.2 * f64::from(cut)), Daemon::cut);
        }
    }
    let error =
        setup.client.sign("a", &[1; 32], "PS256", SignOptions::default()).await.unwrap_err();
    assert_eq!(error.code, Code::Unavailable, "{error}");
    assert!(begun.elapsed() < seconds(0.7), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn fifty_callers_that_wait_do_not_come_back_at_the_same_moment() {
    let setup = Arc::new(Setup::waiting(1));
    setup.daemons[0].set_answer(Some(unavailable()));
    setup.later(0, seconds(4.0), |daemon| daemon.set_answer(None));
    let callers = (0..50).map(|_| {
        let setup = Arc::clone(&setup);
        tokio::spawn(async move {
            let (outcome, took) = setup.timed().await;
            outcome.unwrap();
            took
        })
    });
    let mut took = Vec::new();
    for caller in callers.collect::<Vec<_>>() {
        took.push(caller.await.unwrap());
    }
    took.sort();
    let spread = took[49].saturating_sub(took[0]);
    assert!(spread > Duration::from_millis(200), "{spread:?}");
}
