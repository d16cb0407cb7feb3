//! One case: callers at work, something that befalls the log and ends again.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use claviger_proto::v1::UnwrapRequest;
use e2e::daemon::claviger;
use e2e::process::{command, run};
use e2e::setup::KEY;
use e2e::{Answer, Connection, Daemon, Load, Setup};
use tonic::Code;

/// How long a call may wait for its refusal: two seconds, and what a machine needs that does something else.
const REFUSED: Duration = Duration::from_secs(10);
/// How long the service may be away afterwards: one second, and the same.
const BACK: Duration = Duration::from_secs(15);
/// Callers beside the one whose calls are timed.
const CALLERS: usize = 8;

/// A daemon with the limit that is shipped, whose key lies in a file.
pub(crate) fn setup() -> Setup {
    let mut setup = Setup::software();
    setup.files.set("audit.hang_limit", "1500ms");
    setup
}

/// Unwraps: the request id, or the answer that is none.
pub(crate) async fn unwrap(connection: &Connection, setup: &Setup) -> Result<String, Answer> {
    let request = UnwrapRequest {
        key: KEY.into(),
        wrapped: setup.wrapped.clone().into(),
        ..UnwrapRequest::default()
    };
    let path = "/claviger.v1.KeyService/Unwrap";
    let frame = e2e::connection::frame(&prost::Message::encode_to_vec(&request));
    let answer = connection.call(path, frame, &[]).await.unwrap();
    let request_id = answer.request_id().unwrap_or_default().to_owned();
    if answer.code() == Code::Ok { Ok(request_id) } else { Err(answer) }
}

/// Unwraps until it is answered again.
pub(crate) async fn unwrap_again(
    connection: &Connection,
    setup: &Setup,
    daemon: &Daemon,
) -> String {
    let begun = Instant::now();
    loop {
        match unwrap(connection, setup).await {
            Ok(request_id) => return request_id,
            Err(answer) => assert_eq!(answer.code(), Code::Unavailable, "{answer}"),
        }
        assert!(begun.elapsed() < Duration::from_mins(1), "{}", daemon.log());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Something after which no call may be answered, until it ends. Gives the request ids that were answered.
pub(crate) async fn refuses(
    setup: &Setup,
    daemon: &Daemon,
    what: &str,
    trouble: impl FnOnce(),
    end: impl FnOnce(),
) -> HashSet<String> {
    let connection = setup.connect(daemon).await;
    let load = Load::start(&setup.client_config(daemon), &setup.wrapped, CALLERS, 0);
    load.more(2 * CALLERS as u64).await;
    trouble();
    let mut answered = HashSet::new();
    let begun = Instant::now();
    let refused = loop {
        let asked = Instant::now();
        match unwrap(&connection, setup).await {
            Ok(request_id) => answered.insert(request_id),
            Err(answer) => {
                assert_eq!(answer.code(), Code::Unavailable, "{what}: {answer}");
                break asked.elapsed();
            }
        };
        assert!(begun.elapsed() < Duration::from_mins(1), "{what}: never refused");
    };
    assert!(refused < REFUSED, "{what}: refused after {refused:?}");
    wait_until(what, daemon, || daemon.operations_get("/readyz").is_ok_and(|said| said.0 == 503));
    // What was on its way arrives; then nothing is answered any more.
    let mut before = load.answered();
    let mut quiet_since = Instant::now();
    while quiet_since.elapsed() < Duration::from_millis(500) {
        tokio::time::sleep(Duration::from_millis(20)).await;
        if std::mem::replace(&mut before, load.answered()) != before {
            quiet_since = Instant::now();
        }
        assert!(begun.elapsed() < Duration::from_mins(1), "{what}: calls are answered meanwhile");
    }
    let begun = Instant::now();
    end();
    answered.insert(unwrap_again(&connection, setup, daemon).await);
    let back = begun.elapsed();
    println!("{what}: refused after {} ms, back after {} ms", ms(refused), ms(back));
    assert!(back < BACK, "{what}: back after {back:?}");
    wait_until(what, daemon, || daemon.operations_get("/readyz").is_ok_and(|said| said.0 == 200));
    load.more(CALLERS as u64).await;
    answered.extend(load.stop().await.right);
    answered
}

/// Something that no call may notice. Gives the request ids that were answered.
pub(crate) async fn goes_on(
    setup: &Setup,
    daemon: &Daemon,
    what: &str,
    changes: &[&dyn Fn()],
) -> HashSet<String> {
    let load = Load::start(&setup.client_config(daemon), &setup.wrapped, CALLERS, 0);
    load.more(2 * CALLERS as u64).await;
    for change in changes {
        change();
        load.more(4 * CALLERS as u64).await;
    }
    let tally = load.stop().await;
    assert!(tally.failed.is_empty(), "{what}: {:?}\n{}", tally.failed[0], daemon.log());
    tally.right.into_iter().collect()
}

/// Each answer has its record in `recorded`, and the chain of the log's files holds.
pub(crate) fn nothing_is_lost(
    setup: &Setup,
    answered: &HashSet<String>,
    recorded: &HashSet<String>,
) {
    let lost: Vec<_> = answered.difference(recorded).collect();
    assert!(lost.is_empty(), "{} of {}: {lost:?}", lost.len(), answered.len());
    let log = setup.files.audit_file();
    run(command(claviger()).args(["audit", "verify", "--rotated"]).arg(log));
}

pub(crate) fn wait_until(what: &str, daemon: &Daemon, is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(50), "{what}:\n{}", daemon.log());
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn ms(duration: Duration) -> u128 {
    duration.as_millis()
}
