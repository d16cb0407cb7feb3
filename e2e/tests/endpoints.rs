//! The Rust client while daemons and certificates come and go: its caller sees no error.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

use claviger_client::blocking::Client;
use claviger_client::{Config, UnwrapOptions};
use e2e::setup::{KEY, MATERIAL};
use e2e::{Daemon, Setup, Token};

/// What nothing here takes unless it is broken.
const PATIENCE: Duration = Duration::from_mins(1);

/// Threads that unwrap all the time with one client; an error or other bytes end the test.
struct Callers {
    stop: Arc<AtomicBool>,
    threads: Vec<(JoinHandle<()>, Arc<AtomicUsize>)>,
}

impl Callers {
    fn start(config: &Config, setup: &Setup) -> Self {
        let client = Client::new(config).unwrap();
        let stop = Arc::<AtomicBool>::default();
        let threads = (0..3).map(|_| {
            let calls = Arc::<AtomicUsize>::default();
            let (stop, counted) = (Arc::clone(&stop), Arc::clone(&calls));
            let (client, wrapped) = (client.clone(), setup.wrapped.clone());
            let thread = thread::spawn(move || {
                while !stop.load(Ordering::SeqCst) {
                    let unwrapped = client.unwrap_key(KEY, &wrapped, &UnwrapOptions::default());
                    assert_eq!(*unwrapped.unwrap().key_material, MATERIAL);
                    counted.fetch_add(1, Ordering::SeqCst);
                }
            });
            (thread, calls)
        });
        Self { threads: threads.collect(), stop }
    }

    /// Waits until each thread has ended so many more calls.
    fn more(&self, count: usize) {
        let calls = || self.threads.iter().map(|(_, calls)| calls.load(Ordering::SeqCst));
        let wanted: Vec<_> = calls().map(|calls| calls + count).collect();
        let begun = Instant::now();
        while calls().zip(&wanted).any(|(calls, wanted)| calls < *wanted) {
            assert!(!self.threads.iter().any(|(thread, _)| thread.is_finished()), "a call failed");
            assert!(begun.elapsed() < PATIENCE, "the callers hang");
            sleep(Duration::from_millis(5));
        }
    }

    fn end(self) {
        self.stop.store(true, Ordering::SeqCst);
        for (thread, _) in self.threads {
            thread.join().expect("no call failed");
        }
    }
}

fn patient(config: Config) -> Config {
    Config { timeout: PATIENCE, wait: true, ..config }
}

#[test]
fn one_of_two_daemons_is_killed_and_later_the_other_one() {
    let mut setup = Setup::software();
    let first = setup.start();
    let config = setup.client_config(&first);
    setup.files.next_daemon_is_another();
    let second = setup.start();
    let endpoints = [config.endpoints.clone(), setup.client_config(&second).endpoints].concat();
    let callers = Callers::start(&patient(Config { endpoints, ..config }), &setup);
    callers.more(20);
    first.kill();
    callers.more(20);
    assert!(second.count("claviger_calls_total", &["operation=\"unwrap\""]) >= 40);
    second.kill();
    let _second = setup.start();
    callers.more(20);
    callers.end();
}

#[test]
fn the_only_daemon_restarts_with_its_token_ten_times() {
    let token = Token::softhsm();
    let mut setup = Setup::on(&token);
    let mut daemon = setup.start();
    let callers = Callers::start(&patient(setup.client_config(&daemon)), &setup);
    for round in 0..10 {
        callers.more(5);
        // Asked to stop it answers what it has begun; killed it does not.
        if round % 2 == 0 {
            daemon.terminate()
        } else {
            daemon.kill()
        };
        daemon = Daemon::spawn(&setup.files);
        daemon.wait_until_ready().expect("it starts again");
    }
    callers.more(5);
    callers.end();
}

#[test]
fn certificates_on_both_sides_are_replaced_and_the_old_one_is_revoked() {
    let mut setup = Setup::software();
    let list = setup.files.path("clients.crl");
    let write_list = |setup: &Setup| {
        let text = setup.files.pki.crl_pem(time::Duration::DAY);
        e2e::pki::replace(&list, &text, 0o644);
    };
    write_list(&setup);
    setup.files.set("server.tls.crl", vec![list.to_str().unwrap()]);
    let daemon = setup.start();
    let callers = Callers::start(&patient(setup.client_config(&daemon)), &setup);
    callers.more(20);

    setup.files.pki.server().write(&setup.files.path("."), "server");
    let old = setup.caller.clone();
    setup.caller = setup.files.pki.client("spiffe://example.org/key-connector");
    setup.caller.write(&setup.files.path("."), "caller");
    // The client looks at its files once a second; after that it no longer uses the old one.
    sleep(Duration::from_millis(1_500));
    callers.more(20);
    setup.files.pki.revoke(&old);
    write_list(&setup);
    let folder = setup.files.path("old");
    std::fs::create_dir(&folder).unwrap();
    let (certificate, private_key) = old.write(&folder, "caller");
    let endpoint = format!("https://localhost:{}", daemon.address().port());
    let ca = setup.files.path("caller-ca.pem");
    let old = Config::new(&[endpoint], Some(&ca), Some(&certificate), Some(&private_key)).unwrap();
    let begun = Instant::now();
    while Client::connect(&old).is_ok() {
        assert!(begun.elapsed() < PATIENCE, "the revoked certificate is still good");
        sleep(Duration::from_millis(100));
    }
    callers.more(20);
    callers.end();
}
