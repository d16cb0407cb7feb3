//! Budgets by a clock of the test's own.

use std::future::Future;
use std::task::Poll;

use super::*;

const WINDOW: Duration = Duration::from_hours(1);

fn limits(rate: Option<u32>, failed: Option<u32>) -> Limits {
    let of = |count: Option<u32>| count.map(|count| Rate { count, per: WINDOW });
    Limits { rate: of(rate), failed_unwraps: of(failed), unwraps_alarm: None }
}

/// Lets time pass for what the budget remembers.
fn pass(budget: &Budget, time: Duration) {
    let mut state = budget.lock();
    state.failures.grow_older(time);
    state.unwraps_since = state.unwraps_since.checked_sub(time).unwrap();
}

fn caller_and_key() -> CallerAndKey {
    ("key-connector".into(), "user-keys".into())
}

fn budget_with(limits: Limits) -> Budget {
    Budget::new(caller_and_key(), limits, FailedUnwraps::open(None), 1)
}

fn budget(failed: u32) -> Budget {
    budget_with(limits(None, Some(failed)))
}

fn value(number: u8) -> ValueId {
    [number; 32]
}

/// An unwrap that was let in.
async fn begin(budget: &Budget, number: u8) -> StartedUnwrap<'_> {
    match budget.start_unwrap(value(number)).await.unwrap() {
        Start::Begun(started) => started,
        Start::FailedBefore { .. } => panic!("{number} has failed before"),
    }
}

async fn fail(budget: &Budget, number: u8) -> bool {
    begin(budget, number).await.failed().await
}

async fn failed_before(budget: &Budget, number: u8) -> bool {
    matches!(budget.start_unwrap(value(number)).await, Ok(Start::FailedBefore { .. }))
}

async fn is_refused(budget: &Budget, number: u8) -> bool {
    budget.start_unwrap(value(number)).await.is_err()
}

#[tokio::test]
async fn one_unwrap_of_a_window_alarms_and_none_is_refused() {
    let alarm =
        |count| Limits { unwraps_alarm: Some(Rate { count, per: WINDOW }), ..limits(None, None) };
    let budget = budget_with(alarm(3));
    let alarms: Vec<bool> = (0..6).map(|_| budget.count_unwrap()).collect();
    assert_eq!(alarms, [false, false, false, true, false, false]);
    // The next window begins with the next unwrap.
    pass(&budget, WINDOW);
    budget.put_in_force(alarm(1_000_000), 1);
    assert!((0..6).all(|_| !budget.count_unwrap()));
    assert_eq!(budget.lock().unwraps, 6);
}

#[tokio::test]
async fn the_failure_after_the_last_allowed_one_is_refused_and_successes_cost_nothing() {
    let budget = budget(3);
    for number in 0..10 {
        begin(&budget, number).await.succeeded();
    }
    assert_eq!([fail(&budget, 20).await, fail(&budget, 21).await], [false, false]);
    assert!(fail(&budget, 22).await, "the last one that was left");
    let refused = budget.start_unwrap(value(23)).await.unwrap_err();
    assert!(matches!(
        refused,
        Failure::Exhausted { what: Exhausted::FailedUnwraps, retry_after }
            if retry_after <= WINDOW && retry_after > WINDOW / 2
    ));
    pass(&budget, WINDOW);
    begin(&budget, 23).await.succeeded();
}

#[tokio::test]
async fn a_value_that_failed_is_answered_from_memory_until_its_failure_leaves_the_window() {
    let budget = budget(2);
    fail(&budget, 1).await;
    for _ in 0..1000 {
        assert!(failed_before(&budget, 1).await);
    }
    assert_eq!(budget.spent().failed, 1);
    // Also where nothing is left, and no other value is let in then.
    fail(&budget, 2).await;
    assert!(failed_before(&budget, 1).await);
    assert!(is_refused(&budget, 3).await);
    pass(&budget, WINDOW);
    begin(&budget, 1).await.succeeded();
}

#[tokio::test]
async fn a_value_that_failed_is_asked_once_more_after_a_minute_and_then_after_twice_as_long() {
    let budget = budget(2);
    fail(&budget, 1).await;
    for pause in [1, 2, 4, 8] {
        pass(&budget, Duration::from_secs(60 * pause - 1));
        assert!(failed_before(&budget, 1).await, "{pause}");
        pass(&budget, Duration::from_secs(1));
        let asked = begin(&budget, 1).await;
        assert!(failed_before(&budget, 1).await, "one call asks");
        assert!(!asked.failed().await);
    }
    assert_eq!(budget.spent().failed, 1);
    // A token's trouble had looked like the value's fault: no caller is refused for the whole window.
    pass(&budget, Duration::from_mins(16));
    begin(&budget, 1).await.succeeded();
    assert_eq!(budget.spent().failed, 0);
}

#[tokio::test]
async fn a_value_that_fails_again_and_again_alarms_once_in_a_window() {
    let budget = budget(2);
    fail(&budget, 1).await;
    let mut alarms = Vec::new();
    for repeat in 1..100 {
        let started = budget.start_unwrap(value(1)).await.unwrap();
        if matches!(started, Start::FailedBefore { alarm: true }) {
            alarms.push(repeat);
        }
    }
    assert_eq!(alarms, [10]);
}

#[tokio::test]
async fn of_many_calls_with_one_wrong_value_at_once_one_is_let_in_and_the_others_fail_with_it() {
    let budget = budget(100);
    let first = begin(&budget, 1).await;
    let mut others: Vec<_> = (0..50).map(|_| Box::pin(failed_before(&budget, 1))).collect();
    for other in &mut others {
        assert!(futures::poll!(other).is_pending());
    }
    first.failed().await;
    for other in others {
        assert!(other.await);
    }
    assert_eq!(budget.spent().failed, 1);
}

#[tokio::test]
async fn of_many_calls_with_one_good_value_at_once_all_are_let_in_after_the_first() {
    let budget = budget(2);
    let first = begin(&budget, 1).await;
    let mut others: Vec<_> = (0..50).map(|_| Box::pin(begin(&budget, 1))).collect();
    for other in &mut others {
        assert!(futures::poll!(other).is_pending());
    }
    first.succeeded();
    let started = futures::future::join_all(others).await;
    assert_eq!(started.len(), 50, "more than failures are left");
    started.into_iter().for_each(StartedUnwrap::succeeded);
    assert!(budget.lock().asked.is_empty());
}

#[tokio::test]
async fn who_waited_for_a_call_without_a_verdict_does_not_wait_again() {
    let budget = budget(2);
    let first = begin(&budget, 1).await;
    let mut others: Vec<_> = (0..5).map(|_| Box::pin(begin(&budget, 1))).collect();
    for other in &mut others {
        assert!(futures::poll!(other).is_pending());
    }
    first.spared();
    let started = futures::future::join_all(others).await;
    assert_eq!(budget.lock().asked_for_the_first_time, 1, "one value, however many calls");
    drop(started);
    assert_eq!(budget.lock().asked_for_the_first_time, 0);
    assert_eq!(budget.spent().failed, 0);
}

#[tokio::test]
async fn a_backend_that_never_answers_counts_until_it_answers() {
    let budget = budget(2);
    begin(&budget, 1).await.unanswered().await;
    begin(&budget, 1).await.unanswered().await;
    let Spent { failed, unanswered, .. } = budget.spent();
    assert_eq!((failed, unanswered), (1, 1), "one value, however often");
    fail(&budget, 2).await;
    assert!(is_refused(&budget, 3).await);
    // It is let in although nothing is left: it counts already.
    begin(&budget, 1).await.succeeded();
    assert_eq!(budget.spent().failed, 1);
    fail(&budget, 3).await;
    assert!(is_refused(&budget, 4).await);
}

#[tokio::test]
async fn who_leaves_after_a_miss_has_spent_a_failure_and_who_was_spared_has_not() {
    let budget = budget(2);
    let mut left = begin(&budget, 1).await;
    left.missed();
    drop(left);
    assert_eq!(budget.spent().failed, 1);
    let mut spared = begin(&budget, 2).await;
    spared.missed();
    spared.spared();
    let mut failed = begin(&budget, 3).await;
    failed.missed();
    assert!(failed.failed().await);
    assert_eq!(budget.spent().failed, 2);
}

#[tokio::test]
async fn calls_at_once_cannot_fail_more_often_than_the_limit() {
    let budget = budget(2);
    let first = begin(&budget, 1).await;
    let second = begin(&budget, 2).await;
    let mut third = Box::pin(budget.start_unwrap(value(3)));
    let poll =
        std::future::poll_fn(|context| Poll::Ready(third.as_mut().poll(context).is_pending()));
    assert!(poll.await);
    first.failed().await;
    second.failed().await;
    assert!(third.await.is_err());
}

#[tokio::test]
async fn a_changed_key_is_asked_again_and_what_counts_goes_on_counting() {
    let budget = budget(2);
    fail(&budget, 1).await;
    fail(&budget, 2).await;
    let limits = limits(None, Some(2));
    budget.put_in_force(limits, 1);
    assert!(failed_before(&budget, 1).await, "nothing has changed");
    budget.put_in_force(limits, 2);
    assert!(is_refused(&budget, 3).await);
    begin(&budget, 1).await.succeeded();
    fail(&budget, 2).await;
    assert_eq!(budget.spent().failed, 1);
    assert!(failed_before(&budget, 2).await);
}

#[tokio::test]
async fn an_operator_gives_a_budget_back() {
    let budget = budget(2);
    fail(&budget, 1).await;
    fail(&budget, 2).await;
    assert!(is_refused(&budget, 3).await);
    assert_eq!(budget.reset().unwrap(), 2);
    begin(&budget, 3).await.succeeded();
    fail(&budget, 1).await;
    assert_eq!(budget.spent().failed, 1);
}

#[tokio::test]
async fn what_was_spent_survives_the_end_of_the_process_to_the_last_failure() {
    let folder = tempfile::tempdir().unwrap();
    let open = || {
        let file = FailedUnwraps::open(Some(folder.path()));
        Budget::new(caller_and_key(), limits(None, Some(4)), file, 1)
    };
    let budget = open();
    for number in 1..=3 {
        fail(&budget, number).await;
    }
    begin(&budget, 9).await.unanswered().await;
    begin(&budget, 9).await.succeeded();
    // As after a kill: nothing else was written.
    let budget = open();
    assert_eq!(budget.spent().failed, 4, "what was taken back is written within a second");
    assert!(failed_before(&budget, 1).await);
    assert!(is_refused(&budget, 4).await);
    assert_eq!(budget.reset().unwrap(), 4);
    assert_eq!(open().spent().failed, 0);
}

#[test]
fn a_rate_allows_its_count_at_once_and_then_says_when() {
    let budget = budget_with(limits(Some(5), None));
    for _ in 0..5 {
        budget.spend_call().unwrap();
    }
    assert!(matches!(
        budget.spend_call(),
        Err(Failure::Exhausted { what: Exhausted::Rate, retry_after })
            if retry_after <= WINDOW / 5
    ));
}
