//! What a blocking client leaves in its process: nothing but a socket. Alone in its program, since
//! it counts the program's threads.

#![cfg(target_os = "linux")]

#[expect(dead_code, reason = "the other tests use the rest")]
#[path = "calls/daemon.rs"]
mod daemon;

use std::fs;
use std::thread;

use claviger_client::blocking::Client;
use daemon::{Daemon, Pki};

fn threads() -> usize {
    fs::read_dir("/proc/self/task").unwrap().count()
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn a_blocking_client_has_no_thread_and_its_descriptors_do_not_grow() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let pki = Pki::new();
    let daemon = runtime.block_on(Daemon::start(&pki));
    let config = daemon.config(pki.client(pki.ca_file()));
    let before = (threads(), descriptors());

    let client = Client::new(&config).unwrap();
    assert_eq!((threads(), descriptors()), before, "a client that was never used has nothing");
    client.key("a").unwrap();
    assert_eq!(threads(), before.0);
    let warm = descriptors();
    for _ in 0..100 {
        client.key("a").unwrap();
    }
    assert_eq!((threads(), descriptors()), (before.0, warm));

    let waiting = client.clone();
    let call =
        thread::spawn(move || waiting.with_timeout(std::time::Duration::from_secs(1)).key("slow"));
    while daemon.seen().calls < 102 {
        thread::yield_now();
    }
    assert_eq!(threads(), before.0 + 1, "the caller's own");
    call.join().unwrap().unwrap_err();
    assert_eq!(daemon.seen().handshakes, 1);
}
