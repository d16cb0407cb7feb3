//! Several endpoints, endpoints that go and come back, and certificates that change.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use claviger_client::{Client, Code, Config, WrapOptions};
use tokio::net::TcpListener;

use crate::daemon::Daemon;
use crate::daemon::Pki;
use crate::daemon::config;

/// What nothing here takes unless it is broken.
const PATIENCE: Duration = Duration::from_mins(1);

/// All of them, in this order, without waiting.
pub(crate) fn all(pki: &Pki, ports: &[u16]) -> Config {
    let files = pki.client(pki.ca_file());
    let endpoints = ports.iter().flat_map(|port| config(*port, files.clone()).endpoints).collect();
    Config { endpoints, ..config(ports[0], files) }
}

fn both(pki: &Pki, ports: [u16; 2]) -> Config {
    all(pki, &ports)
}

async fn two() -> (Pki, Daemon, Daemon) {
    let pki = Pki::new();
    let (first, second) = (Daemon::start(&pki).await, Daemon::start(&pki).await);
    (pki, first, second)
}

async fn until<F: Future<Output = bool>>(mut reached: impl FnMut() -> F) {
    let begun = Instant::now();
    while !reached().await {
        assert!(begun.elapsed() < PATIENCE, "still not");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Callers that call until told to stop; any error is a panic.
struct Callers {
    client: Client,
    stop: tokio::sync::watch::Sender<bool>,
    calls: Arc<AtomicUsize>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Callers {
    fn start(client: &Client) -> Self {
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let calls = Arc::<AtomicUsize>::default();
        let tasks = (0..4).map(|_| {
            let (client, stopped, calls) = (client.clone(), stopped.clone(), Arc::clone(&calls));
            tokio::spawn(async move {
                while !*stopped.borrow() {
                    client.key("a").await.unwrap();
                    calls.fetch_add(1, Ordering::SeqCst);
                }
            })
        });
        Self { client: client.clone(), stop, tasks: tasks.collect(), calls }
    }

    async fn more(&self, count: usize) {
        let wanted = self.calls.load(Ordering::SeqCst) + count;
        until(async || {
            assert!(!self.tasks.iter().any(tokio::task::JoinHandle::is_finished), "a call failed");
            self.calls.load(Ordering::SeqCst) >= wanted
        })
        .await;
    }

    async fn end(self) {
        self.stop.send(true).unwrap();
        for task in self.tasks {
            task.await.unwrap();
        }
        self.client.key("a").await.unwrap();
    }
}

#[tokio::test]
async fn the_first_endpoint_is_preferred_and_the_second_serves_while_it_is_gone() {
    let (pki, first, second) = two().await;
    let client = Client::new(&both(&pki, [first.port, second.port])).unwrap();
    let callers = Callers::start(&client);
    callers.more(100).await;
    assert_eq!(second.seen().calls, 0);
    let port = first.stop().await;
    callers.more(100).await;
    assert!(second.seen().calls >= 100, "{}", second.seen().calls);
    let first = Daemon::start_on(&pki, port, None).await;
    until(async || first.seen().calls > 0).await;
    second.stop().await;
    callers.more(100).await;
    callers.end().await;
}

#[tokio::test]
async fn a_daemon_that_restarts_fails_no_call() {
    let pki = Pki::new();
    let daemon = Daemon::start(&pki).await;
    let config = Config { wait: true, timeout: PATIENCE, ..both(&pki, [daemon.port, 1]) };
    let config = Config { endpoints: config.endpoints[..1].to_vec(), ..config };
    let callers = Callers::start(&Client::new(&config).unwrap());
    callers.more(50).await;
    let port = daemon.stop().await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let daemon = Daemon::start_on(&pki, port, None).await;
    daemon.set_serving(false);
    until(async || daemon.seen().calls > 0).await;
    daemon.set_serving(true);
    callers.more(50).await;
    callers.end().await;
}

#[tokio::test]
async fn a_call_whose_connection_breaks_is_sent_once_more_and_no_more() {
    let (pki, first, second) = two().await;
    let client = Client::new(&both(&pki, [first.port, second.port])).unwrap();
    let error = client.key("cut").await.unwrap_err();
    assert_eq!(error.code, Code::Unavailable, "{error}");
    assert_eq!((first.seen().calls, second.seen().calls), (1, 1));
    assert_eq!(error.request_id, Some(second.seen().request_id), "the id was the same one");
    assert_eq!(first.seen().request_id, second.seen().request_id);

    let alone = Client::new(&config(first.port, pki.client(pki.ca_file()))).unwrap();
    let error = alone.key("cut").await.unwrap_err();
    assert_eq!((error.code, first.seen().calls), (Code::Unavailable, 3));
}

#[tokio::test]
async fn what_is_refused_for_the_request_or_the_caller_is_not_asked_of_the_next() {
    let (pki, first, second) = two().await;
    let client = Client::new(&both(&pki, [first.port, second.port])).unwrap();
    for (key, code) in [("field", Code::InvalidArgument), ("nobody", Code::PermissionDenied)] {
        let error = client.wrap(key, b"m", &WrapOptions::default()).await.unwrap_err();
        assert_eq!(error.code, code, "{error}");
    }
    assert_eq!((first.seen().calls, second.seen().calls), (2, 0));
    // A full queue is that daemon's own.
    let error = client.wrap("busy", b"m", &WrapOptions::default()).await.unwrap_err();
    assert_eq!(error.code, Code::ResourceExhausted, "{error}");
    assert_eq!((first.seen().calls, second.seen().calls), (3, 1));
}

#[tokio::test]
async fn what_one_endpoint_cannot_serve_each_other_one_is_asked_once() {
    let pki = Pki::new();
    let daemons = [Daemon::start(&pki).await, Daemon::start(&pki).await, Daemon::start(&pki).await];
    let calls = || daemons.each_ref().map(|daemon| daemon.seen().calls);
    let config = all(&pki, &daemons.each_ref().map(|daemon| daemon.port));
    daemons[0].set_serving(false);
    daemons[1].set_serving(false);
    Client::new(&config).unwrap().key("a").await.unwrap();
    assert_eq!(calls(), [1, 1, 1]);
    daemons[2].set_serving(false);
    let error = Client::new(&config).unwrap().key("a").await.unwrap_err();
    assert_eq!((error.code, calls()), (Code::Unavailable, [2, 2, 2]), "{error}");
    for daemon in &daemons {
        let expected = format!("https://localhost:{}: the key is not open", daemon.port);
        assert!(error.message.contains(&expected), "{error}");
    }
}

#[tokio::test]
async fn daemons_that_come_back_together_are_waited_for() {
    let (pki, first, second) = two().await;
    first.set_serving(false);
    second.set_serving(false);
    let config = both(&pki, [first.port, second.port]);
    let client = Client::new(&Config { timeout: PATIENCE, wait: true, ..config }).unwrap();
    let call = tokio::spawn(async move { client.key("a").await.map(|key| key.name) });
    until(async || second.seen().calls >= 2).await;
    second.set_serving(true);
    assert_eq!(call.await.unwrap().unwrap(), "a");
}

#[tokio::test]
async fn a_daemon_that_was_gone_when_the_others_could_not_serve_is_asked_when_it_is_back() {
    let (pki, first, second) = two().await;
    let config = both(&pki, [first.port, second.port]);
    let port = second.stop().await;
    first.set_serving(false);
    let client = Client::new(&Config { timeout: PATIENCE, wait: true, ..config }).unwrap();
    let call = tokio::spawn(async move { client.key("a").await.map(|key| key.name) });
    until(async || first.seen().calls >= 1).await;
    let second = Daemon::start_on(&pki, port, None).await;
    assert_eq!(call.await.unwrap().unwrap(), "a");
    assert_eq!(second.seen().calls, 1);
}

#[tokio::test]
async fn daemons_that_are_killed_together_fail_no_call() {
    let (pki, first, second) = two().await;
    let config = both(&pki, [first.port, second.port]);
    let config = Config { timeout: PATIENCE, wait: true, ..config };
    let callers = Callers::start(&Client::new(&config).unwrap());
    callers.more(50).await;
    // A call loses the connection to one, goes to the other, and loses that too.
    let (mut first, mut second) = (first, second);
    for _ in 0..6 {
        let ports = [first.stop().await, second.stop().await];
        second = Daemon::start_on(&pki, ports[1], None).await;
        second.set_serving(false);
        first = Daemon::start_on(&pki, ports[0], None).await;
        first.set_serving(false);
        until(async || first.seen().calls + second.seen().calls > 0).await;
        first.set_serving(true);
        callers.more(50).await;
    }
    callers.end().await;
}

#[tokio::test]
async fn a_key_is_described_by_an_endpoint_that_has_opened_it() {
    let (pki, first, second) = two().await;
    let config = both(&pki, [first.port, second.port]);
    let opened = |key: &claviger_client::Key| -> Vec<bool> {
        key.versions.iter().map(|version| !version.public_key.is_empty()).collect()
    };
    let client = || Client::new(&config).unwrap();
    assert_eq!(opened(&client().opened_key("one-version").await.unwrap()), [true]);
    assert_eq!((first.seen().calls, second.seen().calls), (1, 0));
    // What is missing at both is taken from the first one.
    assert_eq!(opened(&client().opened_key("a").await.unwrap()), [true, false]);
    assert_eq!((first.seen().calls, second.seen().calls), (2, 1));
    first.set_opened(false);
    let both = client();
    assert_eq!(opened(&both.opened_key("a").await.unwrap()), [true, false]);
    assert_eq!(opened(&client().opened_key("one-version").await.unwrap()), [true]);
    assert_eq!((first.seen().calls, second.seen().calls), (4, 3));
    // The next call goes to the one that was not found wanting.
    both.key("a").await.unwrap();
    assert_eq!((first.seen().calls, second.seen().calls), (4, 4));
    // What one has said stands, whatever becomes of the other.
    second.set_serving(false);
    assert_eq!(opened(&client().opened_key("a").await.unwrap()), [false, false]);
    second.stop().await;
    assert_eq!(opened(&client().opened_key("a").await.unwrap()), [false, false]);
    let alone = Client::new(&crate::daemon::config(first.port, pki.client(pki.ca_file()))).unwrap();
    assert_eq!(opened(&alone.opened_key("one-version").await.unwrap()), [false]);
}

#[tokio::test]
async fn an_endpoint_that_never_answers_is_left_out_for_a_while() {
    let pki = Pki::new();
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let accepted = Arc::<AtomicUsize>::default();
    let port = silent.local_addr().unwrap().port();
    let count = Arc::clone(&accepted);
    let _listener = tokio::spawn(async move {
        let mut kept = Vec::new();
        loop {
            kept.push(silent.accept().await.unwrap());
            count.fetch_add(1, Ordering::SeqCst);
        }
    });
    let daemon = Daemon::start(&pki).await;
    let config = Config { timeout: Duration::from_secs(4), ..both(&pki, [port, daemon.port]) };
    let client = Client::new(&config).unwrap();
    client.key("a").await.unwrap();
    assert_eq!(accepted.load(Ordering::SeqCst), 1);
    // Half of the deadline went into the first endpoint; nothing of it goes there now.
    let quick = client.with_timeout(Duration::from_millis(900));
    quick.key("a").await.unwrap();
    assert_eq!(accepted.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn the_deadline_holds_over_both_endpoints_together() {
    let pki = Pki::new();
    let silent = [
        TcpListener::bind("127.0.0.1:0").await.unwrap(),
        TcpListener::bind("127.0.0.1:0").await.unwrap(),
    ];
    let ports = [0, 1].map(|n: usize| silent[n].local_addr().unwrap().port());
    let timeout = Duration::from_millis(400);
    let patience = PATIENCE;
    let client = Client::new(&Config { timeout, patience, ..both(&pki, ports) }).unwrap();
    let begun = Instant::now();
    let error = client.key("a").await.unwrap_err();
    assert_eq!(error.code, Code::DeadlineExceeded, "{error}");
    assert!(error.to_string().contains(&ports[1].to_string()), "{error}");
    assert_eq!(error.request_id, None);
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());

    let (first, second) = (Daemon::start(&pki).await, Daemon::start(&pki).await);
    let config = Config { timeout, patience, ..both(&pki, [first.port, second.port]) };
    let error = Client::new(&config).unwrap().key("slow").await.unwrap_err();
    assert_eq!(error.code, Code::DeadlineExceeded, "{error}");
    assert_eq!((first.seen().calls, second.seen().calls), (1, 1), "each got half of it");
}

#[tokio::test]
async fn an_error_of_all_names_every_endpoint() {
    let pki = Pki::new();
    let ports = [Daemon::start(&pki).await.stop().await, Daemon::start(&pki).await.stop().await];
    let error = Client::new(&both(&pki, ports)).unwrap().key("a").await.unwrap_err();
    assert_eq!((error.code, error.request_id.as_deref()), (Code::Unavailable, None));
    for port in ports {
        let expected = format!("cannot reach the daemon at https://localhost:{port}: ");
        assert!(error.to_string().contains(&expected), "{error}");
    }
}

#[tokio::test]
async fn a_certificate_that_is_replaced_on_disk_is_shown_without_a_failed_call() {
    let (pki, daemon, client) = crate::connected().await;
    let callers = Callers::start(&client);
    callers.more(10).await;
    let old = daemon.seen().peer;
    pki.client(pki.ca_file());
    until(async || daemon.seen().peer != old).await;
    callers.more(10).await;
    assert_eq!(daemon.seen().handshakes, 2);
    callers.end().await;
}

#[tokio::test]
async fn a_configuration_without_an_endpoint_is_refused() {
    let pki = Pki::new();
    let config = Config { endpoints: Vec::new(), ..config(1, pki.client(pki.ca_file())) };
    let error = Client::new(&config).unwrap_err().to_string();
    assert!(error.contains("endpoint: is missing"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_certificate_is_never_taken_for_a_lost_connection() {
    let (pki, stranger) = (Pki::new(), Pki::new());
    let daemon = Daemon::start(&pki).await;
    let config = daemon.config(stranger.client(pki.ca_file()));
    for run in 1..=200 {
        let error = Client::new(&config).unwrap().key("a").await.unwrap_err();
        assert_eq!(error.code, Code::Unauthenticated, "run {run}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_does_not_trust_this_programs_ca_yet_is_passed_by() {
    let (new, old) = (Pki::new(), Pki::new());
    let (first, second) = (Daemon::start(&old).await, Daemon::start(&new).await);
    // The client trusts both servers and has its certificate from the new CA.
    let both_cas = old.path("both.pem");
    let pem = |pki: &Pki| std::fs::read_to_string(pki.ca_file()).unwrap();
    std::fs::write(&both_cas, pem(&old) + &pem(&new)).unwrap();
    let config = both(&new, [first.port, second.port]);
    let files = new.client(both_cas);
    let endpoints =
        [first.port, second.port].map(|port| crate::daemon::config(port, files.clone()).endpoints);
    let config = Config { endpoints: endpoints.concat(), ..config };
    for run in 1..=50 {
        let key = Client::new(&config).unwrap().key("a").await;
        key.unwrap_or_else(|error| panic!("run {run}: {error}"));
    }
    assert_eq!((first.seen().calls, second.seen().calls), (0, 50));
    second.stop().await;
    let error = Client::new(&config).unwrap().key("a").await.unwrap_err();
    assert_eq!(error.code, Code::Unauthenticated, "the most telling reason: {error}");
}
