//! A caller that asks for fifty times what its rate allows: nine quiet callers lose no call, and how long
//! theirs take beside it is printed.

use std::thread;
use std::time::{Duration, Instant};

use e2e::connection::frame;
use e2e::setup::{KEY, MATERIAL};
use e2e::{Connection, Daemon, Identity, Setup};
use tokio::time::{MissedTickBehavior, interval};
use tonic::Code;

/// What each caller may ask for in a second.
const RATE: u32 = 20;
/// How much more the hog asks for.
const TIMES: u32 = 50;
/// Callers that ask for half of what they may.
const QUIET: usize = 9;

#[test]
fn nine_quiet_callers_lose_no_call_beside_one_at_fifty_times_its_rate() {
    println!("{}", measure(Duration::from_secs(2)).0);
}

#[test]
#[ignore = "long: compares times"]
fn nine_quiet_callers_take_as_long_beside_one_at_fifty_times_its_rate() {
    let (measured, meanwhile) = measure(Duration::from_secs(30));
    println!("{measured}");
    // The machine may be busy: the figures stand in docs/performance.md.
    assert!(meanwhile < Duration::from_secs(1), "{measured}");
}

/// The quiet callers for so long alone and for so long beside the hog: what they say, and their p99 then.
fn measure(time: Duration) -> (String, Duration) {
    let mut setup = Setup::software();
    let mut callers = Vec::new();
    for number in 0..=QUIET {
        let name = if number == 0 { "hog".to_owned() } else { format!("quiet-{number}") };
        callers.push(setup.files.caller(&name, &[KEY], &["unwrap"]));
        setup.files.limit(&name, "rate", &format!("{RATE}/s"));
    }
    let daemon = setup.start();
    let (hog, quiet) = callers.split_first().unwrap();
    let before = asked_by(&setup, &daemon, quiet, time);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.unwrap();
    let asking = runtime.block_on(asks_too_much(&setup, &daemon, hog));
    let meanwhile = asked_by(&setup, &daemon, quiet, time);
    let right = daemon.count("claviger_calls_total", &["outcome=\"ok\""]);
    let refused = daemon.count("claviger_calls_total", &["outcome=\"RESOURCE_EXHAUSTED\""]);
    let ended: Vec<_> = asking.iter().filter(|task| task.is_finished()).collect();
    assert!(ended.is_empty(), "the hog asks to the end");
    drop(runtime);
    assert!(refused > 0, "the hog asks for more than it may");
    let text = format!(
        "nine quiet callers: {} calls alone, p50 {:?}, p99 {:?}; {} beside the hog, p50 {:?}, p99 {:?}: {:.2}x; \
         of all calls {right} were right, and {refused} of the hog's refused",
        before.len(),
        percentile(&before, 50),
        percentile(&before, 99),
        meanwhile.len(),
        percentile(&meanwhile, 50),
        percentile(&meanwhile, 99),
        percentile(&meanwhile, 99).as_secs_f64() / percentile(&before, 99).as_secs_f64(),
    );
    let p99 = percentile(&meanwhile, 99);
    assert_eq!(daemon.terminate().code, Some(0));
    (text, p99)
}

/// How long each call of the quiet callers took, the shortest first. One that fails is a panic.
fn asked_by(setup: &Setup, daemon: &Daemon, callers: &[Identity], time: Duration) -> Vec<Duration> {
    let each = |caller: &Identity| {
        let (address, ca, request) = (daemon.address(), setup.files.pki.ca_der(), setup.request());
        let caller = caller.clone();
        // In a thread of its own: what the hog does to the test itself is not measured.
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                let connection = Connection::open(address, ca, Some(&caller)).await.unwrap();
                let mut turns = interval(Duration::from_secs(1) / (RATE / 2));
                turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
                let (begun, mut took) = (Instant::now(), Vec::new());
                while begun.elapsed() < time {
                    turns.tick().await;
                    let asked = Instant::now();
                    let answer = connection.unwrap(&request).await;
                    took.push(asked.elapsed());
                    let answer = answer.unwrap_or_else(|refused| panic!("{refused}"));
                    assert_eq!(&*answer.key_material, MATERIAL);
                }
                took
            })
        })
    };
    let threads: Vec<_> = callers.iter().map(each).collect();
    let mut took: Vec<_> =
        threads.into_iter().flat_map(|thread| thread.join().expect("no call fails")).collect();
    took.sort_unstable();
    took
}

/// So many tasks as its rate is exceeded, each of which asks for the whole rate, over four connections.
async fn asks_too_much(
    setup: &Setup,
    daemon: &Daemon,
    hog: &Identity,
) -> Vec<tokio::task::JoinHandle<()>> {
    let mut connections = Vec::new();
    for _ in 0..4 {
        connections.push(std::sync::Arc::new(setup.connect_as(daemon, hog).await));
    }
    let body = frame(&prost::Message::encode_to_vec(&setup.request()));
    let ask = |number: u32| {
        let connection = std::sync::Arc::clone(&connections[number as usize % connections.len()]);
        let body = body.clone();
        tokio::spawn(async move {
            let mut turns = interval(Duration::from_secs(1) / RATE);
            loop {
                turns.tick().await;
                let answer = connection.call("/claviger.v1.KeyService/Unwrap", body.clone(), &[]);
                let code = answer.await.unwrap().code();
                assert!(matches!(code, Code::Ok | Code::ResourceExhausted), "{code:?}");
            }
        })
    };
    (0..TIMES).map(ask).collect()
}

/// Of durations in their order.
fn percentile(took: &[Duration], percent: usize) -> Duration {
    took.get(took.len() * percent / 100).copied().unwrap_or_default()
}
