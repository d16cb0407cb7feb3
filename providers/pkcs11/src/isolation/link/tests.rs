//! Tests of a link without a process at its other end.

use super::*;
use claviger_provider_api::CallerSlot;

fn link() -> (Link, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (Link::new(1, ours, 2), theirs)
}

fn call(caller: u32) -> api::Call {
    let deadline = Instant::now() + Duration::from_mins(1);
    api::Call { caller: CallerSlot(caller), deadline }
}

fn answer(id: u64, outcome: Outcome) -> Answer {
    Answer { id, repairs: 0, outcome: Some(outcome), queued: 0 }
}

#[tokio::test]
async fn an_answer_reaches_the_one_who_asked() {
    let (link, _theirs) = link();
    let first = link.call(7, call(1), Asked::Check(Check {}));
    let second = link.call(7, call(1), Asked::Check(Check {}));
    let answers = async {
        link.answered(answer(1, Outcome::Bytes(b"second".to_vec())));
        link.answered(answer(0, Outcome::Bytes(b"first".to_vec())));
    };
    let (first, second, ()) = tokio::join!(first, second, answers);
    let bytes = |reply| match reply {
        Ok(Reply::Bytes(bytes)) => bytes.to_vec(),
        other => panic!("{other:?}"),
    };
    assert_eq!((bytes(first), bytes(second)), (b"first".to_vec(), b"second".to_vec()));
}

#[tokio::test]
async fn a_caller_has_so_many_calls_in_flight_and_no_more_even_those_that_he_left() {
    let (link, _theirs) = link();
    let ask = |caller| link.call(7, call(caller), Asked::Check(Check {}));
    for _ in 0..2 {
        assert!(futures::poll!(Box::pin(ask(1))).is_pending());
    }
    let kind = ask(1).await.unwrap_err().kind();
    assert_eq!(kind, ErrorKind::Throttled { retry_after: None });
    assert!(futures::poll!(Box::pin(ask(2))).is_pending(), "another caller has his own");
    link.answered(answer(0, Outcome::Well(Check {})));
    assert!(futures::poll!(Box::pin(ask(1))).is_pending());
}

#[tokio::test]
async fn when_the_process_ends_all_who_wait_hear_why_and_so_do_those_who_come() {
    let (link, _theirs) = link();
    let asked = link.call(7, call(1), Asked::Check(Check {}));
    let (outcome, ()) = tokio::join!(asked, async { link.end("it was killed by signal 11") });
    let error = outcome.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(error.to_string(), "it was killed by signal 11");
    let error = link.call(7, call(1), Asked::Check(Check {})).await.unwrap_err();
    assert_eq!(error.to_string(), "it was killed by signal 11");
}

#[tokio::test]
async fn a_call_that_is_not_answered_is_late_and_then_overdue() {
    let (link, _theirs) = link();
    let deadline = Instant::now() + Duration::from_millis(10);
    let fault = link.check(7, deadline).await.unwrap_err();
    assert_eq!(fault.error.kind(), ErrorKind::DeadlineExceeded);
    tokio::time::sleep(Duration::from_millis(30)).await;
    let silence = link.silence();
    assert!(silence.overdue >= Duration::from_millis(20), "{silence:?}");
    assert!(silence.calls >= Duration::from_millis(30), "{silence:?}");
    link.answered(answer(0, Outcome::Well(Check {})));
    assert_eq!(link.silence().overdue, Duration::ZERO);
}
