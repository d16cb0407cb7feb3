//! The same calls from threads without a runtime.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use claviger_client::blocking::Client;
use claviger_client::{
    Client as AsyncClient, Code, Config, Health, Recipient, RewrapItem, RewrapSource, RewrapTarget,
    SignOptions, UnwrapItem, UnwrapOptions, WrapOptions,
};
use tokio::runtime::Runtime;

use crate::daemon::Daemon;
use crate::daemon::Pki;

/// A daemon that runs beside the test, and the test's certificate.
struct Setup {
    runtime: Runtime,
    pki: Pki,
    daemon: Daemon,
}

impl Setup {
    fn new() -> Self {
        Self::with_max_age(None)
    }

    fn with_max_age(max_age: Option<Duration>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let pki = Pki::new();
        let daemon = runtime.block_on(Daemon::start_on(&pki, 0, max_age));
        Self { runtime, pki, daemon }
    }

    fn config(&self) -> Config {
        self.daemon.config(self.pki.client(self.pki.ca_file()))
    }

    fn client(&self) -> Client {
        Client::new(&self.config()).unwrap()
    }
}

#[test]
fn every_call_has_its_blocking_counterpart() {
    let setup = Setup::new();
    let client = Client::connect(&setup.config()).unwrap();
    let wrapped = client.wrap("a", b"material", &WrapOptions::default()).unwrap();
    let again = client.unwrap_key("a", &wrapped.wrapped, &UnwrapOptions::default()).unwrap();
    assert_eq!(*again.key_material, b"material");
    let item =
        UnwrapItem { key: "a".into(), wrapped: b"12".into(), options: UnwrapOptions::default() };
    let batch = client.unwrap_batch(&[item]).unwrap();
    assert_eq!(*batch[0].as_ref().unwrap().key_material, b"21");
    let target = RewrapTarget {
        recipient: Recipient::Key("b".into()),
        algorithm: String::new(),
        label: Vec::new(),
    };
    let source = RewrapSource { key: "a".into(), ..Default::default() };
    let item = RewrapItem {
        source,
        wrapped: b"12".into(),
        target,
        max_key_material_len: None,
        approval: None,
    };
    assert_eq!(client.rewrap(&item).unwrap().wrapped, b"21");
    assert_eq!(client.rewrap_batch(&[item]).unwrap()[0].as_ref().unwrap().wrapped, b"21");
    let options = SignOptions::default();
    let signed = client.sign("a", &[1; 32], "PS256", options).unwrap();
    let verified = client.verify("a", &[1; 32], "PS256", &signed.signature, options).unwrap();
    assert_eq!(verified.key_version, Some(3));
    assert_eq!((client.keys().unwrap().len(), client.key("a").unwrap().name.as_str()), (5, "a"));
    assert_eq!(client.opened_key("a").unwrap().name, "a");
    assert_eq!(client.list_keys(2, None).unwrap().next.as_deref(), Some("2"));
    assert_eq!(client.health(Some("down")).unwrap(), Health::NotServing);
    client.with_request_id("order 66").unwrap().key("a").unwrap();
    assert_eq!(setup.daemon.seen().request_id, "order 66");
    let hasty = client.with_timeout(Duration::from_millis(200));
    assert_eq!(hasty.key("slow").unwrap_err().code, Code::DeadlineExceeded);
    assert_eq!(setup.daemon.seen().handshakes, 1);
}

#[test]
fn threads_share_one_connection_and_do_not_wait_for_each_others_calls() {
    let setup = Setup::new();
    let client = setup.client();
    client.key("a").unwrap();
    let (ended, slow_ended) = mpsc::channel();
    let slow = client.with_timeout(Duration::from_secs(10));
    let slow = thread::spawn(move || {
        let code = slow.key("slow").unwrap_err().code;
        ended.send(()).unwrap();
        code
    });
    let quick: Vec<_> = (0..8)
        .map(|n| {
            let client = client.clone();
            thread::spawn(move || {
                for _ in 0..20 {
                    assert_eq!(client.key(&format!("key-{n}")).unwrap().name, format!("key-{n}"));
                }
            })
        })
        .collect();
    for thread in quick {
        thread.join().unwrap();
    }
    assert!(slow_ended.try_recv().is_err(), "the slow call still runs");
    assert_eq!(slow.join().unwrap(), Code::DeadlineExceeded);
    assert_eq!(setup.daemon.seen().handshakes, 1);
}

#[test]
fn an_idle_connection_is_replaced_before_a_call() {
    let setup = Setup::new();
    let config = Config { max_idle: Duration::from_millis(50), ..setup.config() };
    let client = Client::new(&config).unwrap();
    for _ in 0..3 {
        client.key("a").unwrap();
        thread::sleep(Duration::from_millis(100));
    }
    assert_eq!((setup.daemon.seen().handshakes, setup.daemon.seen().calls), (3, 3));
}

#[test]
fn a_connection_that_ended_between_calls_fails_no_call_and_costs_none() {
    let setup = Setup::with_max_age(Some(Duration::from_millis(20)));
    let client = setup.client();
    for n in 1..=10 {
        client.key("a").unwrap();
        assert_eq!(setup.daemon.seen().calls, n);
        thread::sleep(Duration::from_millis(40));
    }
    assert!(setup.daemon.seen().handshakes > 5, "{}", setup.daemon.seen().handshakes);
}

#[test]
fn a_daemon_that_restarts_between_or_during_calls_is_not_noticed() {
    let Setup { runtime, pki, daemon } = Setup::new();
    let patience = Duration::from_mins(1);
    let config = daemon.config(pki.client(pki.ca_file()));
    let client = Client::new(&Config { wait: true, timeout: patience, ..config }).unwrap();
    client.key("a").unwrap();
    let port = runtime.block_on(daemon.stop());
    let daemon = runtime.block_on(Daemon::start_on(&pki, port, None));
    client.key("a").unwrap();
    assert_eq!(daemon.seen().calls, 1);
    let port = runtime.block_on(daemon.stop());
    let caller = thread::spawn(move || client.key("a").map(|key| key.name));
    thread::sleep(Duration::from_millis(200));
    let _daemon = runtime.block_on(Daemon::start_on(&pki, port, None));
    assert_eq!(caller.join().unwrap().unwrap(), "a");
}

/// Both clients run on one thread each and are measured by its CPU time, in turn: what else the
/// machine does then hits neither.
#[test]
#[ignore = "long: scripts/test --all"]
fn a_blocking_call_costs_little_more_than_an_asynchronous_one() {
    const CALLS: u32 = 200;
    let setup = Setup::new();
    let config = setup.config();
    let blocking = Client::new(&config).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let asynchronous = AsyncClient::new(&config).unwrap();
    let of_asynchronous = || {
        runtime.block_on(async {
            let begun = cpu_time();
            for _ in 0..CALLS {
                asynchronous.key("a").await.unwrap();
            }
            cpu_time().saturating_sub(begun) / CALLS
        })
    };
    let of_blocking = || {
        let begun = cpu_time();
        for _ in 0..CALLS {
            blocking.key("a").unwrap();
        }
        cpu_time().saturating_sub(begun) / CALLS
    };
    let mut best = [Duration::MAX; 2];
    for _ in 0..15 {
        best = [best[0].min(of_asynchronous()), best[1].min(of_blocking())];
    }
    let ratio = best[1].as_secs_f64() / best[0].as_secs_f64();
    println!("CPU of a call: asynchronous {:?}, blocking {:?}: {ratio:.2}", best[0], best[1]);
    assert!(ratio <= 1.15, "asynchronous {:?}, blocking {:?}: {ratio:.2}", best[0], best[1]);
}

fn cpu_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(now).unwrap()
}
