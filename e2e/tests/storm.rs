//! A storm is no attack: many clients of one identity that connect and unwrap at once, as after a restart
//! of what they belong to, all get their answer, and another caller is served meanwhile.

use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use claviger_proto::v1::UnwrapResponse;
use e2e::connection::{Answer, Connection, ConnectionError, frame};
use e2e::setup::{KEY, MATERIAL};
use e2e::{Daemon, Identity, Setup, Token};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tonic::Code;

/// So much nicer than the daemon are the clients of a storm: they stand for other machines, and run on
/// this one.
const NICER: i32 = 19;
/// Clients that connect at a time: all of them share the test's two threads, and who does not go on with
/// a handshake for a second gives way to others.
const CONNECTING: usize = 64;

#[test]
fn three_hundred_clients_of_one_identity_at_once_all_get_their_answer() {
    let measured = storm(300);
    println!("{measured}");
}

#[test]
#[ignore = "long: scripts/test --all"]
fn two_thousand_clients_of_one_identity_at_once_all_get_their_answer() {
    let measured = storm(2000);
    println!("{measured}");
    // The subject is time, and the machine may be busy: the figures stand in docs/performance.md.
    assert!(measured.meanwhile.percentile(99) < Duration::from_secs(2), "{measured}");
}

/// So many clients of one identity connect over mutual TLS and unwrap on SoftHSM at once; another caller
/// asks meanwhile, one call after the other, as it did before.
fn storm(clients: usize) -> Measured {
    let token = Token::softhsm();
    let mut setup = Setup::on(&token);
    // What a busy machine cannot do in time is another matter.
    setup.files.set("server.handshake_timeout", "60s");
    let quiet = setup.files.caller("quiet", &[KEY], &["unwrap"]);
    let daemon = setup.start();
    let other = AnotherCaller::start(&setup, &daemon, quiet);
    let before = other.wait_for(200);
    let begun = Instant::now();
    for answer in at_once(&setup, &daemon, clients) {
        let answer = answer.unwrap_or_else(|error| panic!("{error}\n{}", daemon.log()));
        assert_eq!(answer.code(), Code::Ok, "{answer}");
        assert_eq!(&*answer.message::<UnwrapResponse>().key_material, MATERIAL);
    }
    let took = begun.elapsed();
    let meanwhile = other.wait_for(1);
    drop(other);
    assert_eq!(daemon.count("claviger_refusals_total", &["reason=\"calls_in_flight\""]), 0);
    assert_eq!(daemon.terminate().code, Some(0));
    Measured { clients, took, before, meanwhile }
}

/// What so many clients got, each over a connection of its own that is open until all have it.
fn at_once(setup: &Setup, daemon: &Daemon, clients: usize) -> Vec<Result<Answer, ConnectionError>> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .on_thread_start(|| {
            // Without it the figures would be worse, and everything else the same.
            let _ = rustix::process::nice(NICER);
        })
        .enable_all()
        .build()
        .unwrap();
    let body = frame(&prost::Message::encode_to_vec(&setup.request()));
    let address = daemon.address();
    let connecting = Arc::new(Semaphore::new(CONNECTING));
    let mut asked = JoinSet::new();
    for _ in 0..clients {
        let (ca, identity) = (setup.files.pki.ca_der(), setup.caller.clone());
        let (body, connecting) = (body.clone(), Arc::clone(&connecting));
        let ask = async move {
            let turn = connecting.acquire().await?;
            let mut connection = Connection::open(address, ca.clone(), Some(&identity)).await;
            // On a busy machine it may be the client that is late.
            for _ in 0..100 {
                if connection.is_ok() {
                    break;
                }
                connection = Connection::open(address, ca.clone(), Some(&identity)).await;
            }
            let connection = connection?;
            drop(turn);
            let headers = [("grpc-timeout", "120S")];
            let answer = connection.call("/claviger.v1.KeyService/Unwrap", body, &headers).await?;
            Ok((answer, connection))
        };
        asked.spawn_on(ask, runtime.handle());
    }
    let answers = runtime.block_on(asked.join_all());
    let (answers, connections): (Vec<_>, Vec<_>) = answers
        .into_iter()
        .map(|answered| match answered {
            Ok((answer, connection)) => (Ok(answer), Some(connection)),
            Err(error) => (Err(error), None),
        })
        .unzip();
    drop(connections);
    answers
}

/// A caller that asks one call after the other, in a thread of its own: what the storm does to the test
/// itself is not measured.
struct AnotherCaller(mpsc::Receiver<Duration>);

impl AnotherCaller {
    fn start(setup: &Setup, daemon: &Daemon, identity: Identity) -> Self {
        let (address, ca, request) = (daemon.address(), setup.files.pki.ca_der(), setup.request());
        let (sender, took) = mpsc::channel();
        thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let connection = Connection::open(address, ca, Some(&identity)).await.unwrap();
                loop {
                    let begun = Instant::now();
                    let answer = connection.unwrap(&request).await.unwrap();
                    assert_eq!(&*answer.key_material, MATERIAL);
                    if sender.send(begun.elapsed()).is_err() {
                        return;
                    }
                }
            });
        });
        Self(took)
    }

    /// How long its calls took since the last time, once there were so many.
    fn wait_for(&self, calls: usize) -> Calls {
        let mut took: Vec<_> = self.0.try_iter().collect();
        while took.len() < calls {
            let next = self.0.recv_timeout(Duration::from_mins(1));
            took.push(next.expect("a call takes less than a minute"));
        }
        took.sort_unstable();
        Calls(took)
    }
}

/// How long calls took, the shortest first.
struct Calls(Vec<Duration>);

impl Calls {
    fn percentile(&self, percent: usize) -> Duration {
        let index = (self.0.len() * percent / 100).min(self.0.len() - 1);
        self.0[index]
    }
}

/// What a storm took, and what it cost another caller.
struct Measured {
    clients: usize,
    took: Duration,
    before: Calls,
    meanwhile: Calls,
}

impl std::fmt::Display for Measured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { clients, took, before, meanwhile } = self;
        write!(
            f,
            "{clients} clients at once: none refused, over in {took:.2?}; another caller's calls:"
        )?;
        for (calls, when) in [(before, "before"), (meanwhile, "meanwhile")] {
            let [p50, p99] = [50, 99].map(|percent| calls.percentile(percent));
            write!(f, " {} {when} (p50 {p50:.1?}, p99 {p99:.1?})", calls.0.len())?;
        }
        Ok(())
    }
}
