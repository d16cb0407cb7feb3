//! What users notice of HSMs that are lost, a daemon that restarts and certificates that are renewed:
//! nothing.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use e2e::{Daemon, Token};
use rustix::process::{Pid, Signal, kill_process};

use crate::services::{Services, Stored, new_key, new_user};

/// Each asks ten times a second: 200 reads a second in all.
const READERS: usize = 20;
const BETWEEN_READS: Duration = Duration::from_millis(100);
/// Between two events.
const CALM: Duration = Duration::from_secs(2);
const CALLER: &str = "spiffe://example.org/key-connector";

#[test]
#[ignore = "long: half a minute of 200 reads a second"]
fn lost_hsms_restarts_and_renewed_certificates_fail_none_of_200_reads_a_second_in_per_user_mode() {
    let tokens = [Token::softhsm(), Token::softhsm()];
    let mut services = Services::on_replicas(&tokens);
    let connector = services.start(&Stored::per_user(services.sqlite("losses.db")));
    let users: Vec<_> = (0..READERS).map(|_| (new_user(), new_key())).collect();
    for (user, key) in &users {
        assert_eq!(services.write(&connector, "POST", user, key).status, 200);
    }
    let mut daemon = services.daemon.take().expect("it was started");
    let (done, reads, slowest) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    let services = &services;
    let read = |(user, key): &(String, String)| {
        while !done.load(Relaxed) {
            let begun = Instant::now();
            let reply = services.get(&connector, user);
            assert_eq!(reply.status, 200, "{}", connector.log());
            assert_eq!(reply.key(), *key, "never another's key");
            reads.fetch_add(1, Relaxed);
            slowest.fetch_max(begun.elapsed().as_millis() as usize, Relaxed);
            thread::sleep(BETWEEN_READS.saturating_sub(begun.elapsed()));
        }
    };
    let begun = Instant::now();
    thread::scope(|scope| {
        for user in &users {
            scope.spawn(|| read(user));
        }
        let event = |what: &str, act: &mut dyn FnMut()| {
            let (before, longest) = (reads.load(Relaxed), slowest.swap(0, Relaxed));
            act();
            thread::sleep(CALM);
            let after = reads.load(Relaxed);
            println!(
                "{what}: {} reads, the slowest before {longest} ms, now {} ms",
                after - before,
                slowest.load(Relaxed)
            );
            assert!(after > before, "reads go on after: {what}\n{}", connector.log());
        };
        for (token, name) in tokens.iter().zip(["first", "second"]) {
            event(&format!("the {name} HSM is away"), &mut || token.take_away());
            event(&format!("the {name} HSM is back"), &mut || {
                token.bring_back();
                // Before the other one goes, this one has to be found again.
                wait_until_both_serve(&daemon);
            });
        }
        event("one module's process is killed", &mut || {
            let child = *daemon.children().first().expect("a process for each provider");
            let child = i32::try_from(child).ok().and_then(Pid::from_raw).expect("a process id");
            kill_process(child, Signal::KILL).expect("it is a child of the daemon");
            wait_until_both_serve(&daemon);
        });
        event("the daemon is stopped and started", &mut || {
            daemon = started_after(services, || daemon.ask_to_stop());
        });
        event("the daemon is killed and started", &mut || {
            daemon = started_after(services, || {
                let pid = i32::try_from(daemon.pid()).ok().and_then(Pid::from_raw);
                kill_process(pid.expect("a process id"), Signal::KILL).expect("it is ours");
            });
        });
        let (pki, folder) = (&services.setup.files.pki, services.path("."));
        event("the server certificate is renewed", &mut || {
            drop(pki.server().write(&folder, "server"));
        });
        event("the client certificate is renewed", &mut || {
            drop(pki.client(CALLER).write(&folder, "caller"));
        });
        done.store(true, Relaxed);
    });
    let (reads, seconds) = (reads.load(Relaxed), begun.elapsed().as_secs_f64());
    println!("{reads} reads in {seconds:.1} s, none failed");
}

/// The daemon anew, with the ports of the one that `end` ends.
fn started_after(services: &Services, mut end: impl FnMut()) -> Daemon {
    end();
    let begun = Instant::now();
    loop {
        let mut daemon = Daemon::spawn(&services.setup.files);
        if daemon.wait_until_ready().is_ok() {
            return daemon;
        }
        // The port may not be free yet.
        assert!(begun.elapsed() < Duration::from_mins(1), "{}", daemon.log());
    }
}

fn wait_until_both_serve(daemon: &Daemon) {
    let begun = Instant::now();
    let serving = || daemon.metric("claviger_key_up", &[]);
    while serving() < 2.0 {
        assert!(begun.elapsed() < Duration::from_mins(1), "{}", daemon.log());
        thread::sleep(Duration::from_millis(50));
    }
}
