//! The Rust client while daemons and certificates come and go: its caller sees no error.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

use claviger_client::blocking::Client;
use claviger_client::{Config, UnwrapOptions};
use softhsm_tests::scene::{KEY, MATERIAL};
use softhsm_tests::{Daemon, Scene, Token};

/// What nothing here takes unless it is broken.
const PATIENCE: Duration = Duration::from_mins(1);

/// Threads that unwrap all the time with one client; an error or other bytes end the test.
struct Callers {
    stop: Arc<AtomicBool>,
    calls: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<()>>,
}

impl Callers {
    fn start(config: &Config, scene: &Scene) -> Self {
        let client = Client::new(config).unwrap();
        let (stop, calls) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let threads = (0..3).map(|_| {
            let (stop, calls) = (Arc::clone(&stop), Arc::clone(&calls));
            let (client, wrapped) = (client.clone(), scene.wrapped.clone());
            thread::spawn(move || {
                while !stop.load(Ordering::SeqCst) {
                    let unwrapped = client.unwrap_key(KEY, &wrapped, &UnwrapOptions::default());
                    assert_eq!(*unwrapped.unwrap().key_material, MATERIAL);
                    calls.fetch_add(1, Ordering::SeqCst);
                }
            })
        });
        Self { threads: threads.collect(), stop, calls }
    }

    fn more(&self, count: usize) {
        let wanted = self.calls.load(Ordering::SeqCst) + count;
        let begun = Instant::now();
        while self.calls.load(Ordering::SeqCst) < wanted {
            assert!(!self.threads.iter().any(JoinHandle::is_finished), "a call failed");
            assert!(begun.elapsed() < PATIENCE, "the callers hang");
            sleep(Duration::from_millis(5));
        }
    }

    fn end(self) {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads {
            thread.join().expect("no call failed");
        }
    }
}

fn patient(config: Config) -> Config {
    Config { timeout: PATIENCE, patience: PATIENCE, ..config }
}

#[test]
fn one_of_two_daemons_is_killed_and_later_the_other_one() {
    let mut scene = Scene::software();
    let first = scene.start();
    let config = scene.client_config(&first);
    scene.site.next_daemon_is_another();
    let second = scene.start();
    let endpoints = [config.endpoints.clone(), scene.client_config(&second).endpoints].concat();
    let callers = Callers::start(&patient(Config { endpoints, ..config }), &scene);
    callers.more(50);
    first.kill();
    callers.more(50);
    assert!(second.count("claviger_calls_total", &["operation=\"unwrap\""]) >= 50);
    second.kill();
    let _second = scene.start();
    callers.more(50);
    callers.end();
}

#[test]
fn the_only_daemon_restarts_with_its_token_ten_times() {
    let mut scene = Scene::on(&Token::softhsm());
    let mut daemon = scene.start();
    let callers = Callers::start(&patient(scene.client_config(&daemon)), &scene);
    for round in 0..10 {
        callers.more(10);
        // Asked to stop it answers what it has begun; killed it does not.
        if round % 2 == 0 {
            daemon.terminate()
        } else {
            daemon.kill()
        };
        daemon = Daemon::spawn(&scene.site);
        daemon.wait_until_ready().expect("it starts again");
    }
    callers.more(10);
    callers.end();
}

#[test]
fn certificates_on_both_sides_are_replaced_and_the_old_one_is_revoked() {
    let mut scene = Scene::software();
    let list = scene.site.path("clients.crl");
    let write_list = |scene: &Scene| {
        let text = scene.site.pki.crl_pem(time::Duration::DAY);
        softhsm_tests::pki::replace(&list, &text, 0o644);
    };
    write_list(&scene);
    scene.site.set("server.tls.crl", vec![list.to_str().unwrap()]);
    let daemon = scene.start();
    let callers = Callers::start(&patient(scene.client_config(&daemon)), &scene);
    callers.more(20);

    scene.site.pki.server().write(&scene.site.path("."), "server");
    let old = scene.caller.clone();
    scene.caller = scene.site.pki.client("spiffe://example.org/key-connector");
    scene.caller.write(&scene.site.path("."), "caller");
    // The client looks at its files once a second; after that it no longer uses the old one.
    sleep(Duration::from_millis(1_500));
    callers.more(20);
    scene.site.pki.revoke(&old);
    write_list(&scene);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let begun = Instant::now();
    while runtime.block_on(connects(&scene, &daemon, &old)) {
        assert!(begun.elapsed() < PATIENCE, "the revoked certificate is still good");
        sleep(Duration::from_millis(100));
    }
    callers.more(20);
    callers.end();
}

/// Whether somebody with this certificate gets an answer.
async fn connects(scene: &Scene, daemon: &Daemon, identity: &softhsm_tests::pki::Identity) -> bool {
    use softhsm_tests::connection::Connection;
    let ca = scene.site.pki.ca_der();
    let Ok(connection) = Connection::open(daemon.address(), ca, Some(identity)).await else {
        return false;
    };
    connection.unwrap(&scene.request()).await.is_ok()
}
