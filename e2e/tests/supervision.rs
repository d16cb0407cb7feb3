//! What the daemon tells a service manager: ready, reloading, stopping, and that it is alive.

use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use e2e::{Daemon, Setup};
use rustix::process::{Pid, Signal, kill_process};

/// Longer than a start takes on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_mins(1);

/// The socket that systemd would listen at (sd_notify(3)).
struct Manager(UnixDatagram);

impl Manager {
    fn of(setup: &mut Setup) -> Self {
        let path = setup.files.path("notify.sock");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        setup.files.variable("NOTIFY_SOCKET", path);
        Self(socket)
    }

    /// The next message; none if there is none for a while.
    fn heard(&self) -> Option<String> {
        let mut message = [0; 1024];
        let length = self.0.recv(&mut message).ok()?;
        Some(String::from_utf8(message[..length].to_vec()).unwrap())
    }

    /// Waits for a message that begins so, and gives it.
    fn hears(&self, beginning: &str) -> String {
        let begun = Instant::now();
        loop {
            if let Some(message) = self.heard().filter(|heard| heard.starts_with(beginning)) {
                return message;
            }
            assert!(begun.elapsed() < PATIENCE, "no {beginning} for {PATIENCE:?}");
        }
    }
}

fn signal(daemon: &Daemon, signal: Signal) {
    let pid = Pid::from_raw(daemon.pid().cast_signed()).unwrap();
    kill_process(pid, signal).unwrap();
}

#[test]
fn the_service_manager_hears_of_start_reload_and_stop_and_that_the_daemon_lives() {
    let mut setup = Setup::software();
    let manager = Manager::of(&mut setup);
    setup.files.variable("WATCHDOG_USEC", "300000");
    let daemon = setup.start();
    manager.hears("READY=1");
    for _ in 0..3 {
        manager.hears("WATCHDOG=1");
    }
    daemon.reload();
    // What `Type=notify-reload` asks for: the time tells this reload from the one before.
    let reloading = manager.hears("RELOADING=1");
    let (_, time) = reloading.trim_end().split_once("MONOTONIC_USEC=").unwrap();
    assert!(time.parse::<u64>().unwrap() > 0, "{reloading}");
    manager.hears("READY=1");

    signal(&daemon, Signal::STOP);
    // What was sent before it stood still.
    while manager.heard().is_some() {}
    assert_eq!(manager.heard(), None, "a daemon that stands still does not say that it lives");
    signal(&daemon, Signal::CONT);
    manager.hears("WATCHDOG=1");
    daemon.ask_to_stop();
    manager.hears("STOPPING=1");
    assert_eq!(daemon.wait().code, Some(0));
}

#[test]
fn without_a_watchdog_nothing_is_said_between_start_and_stop() {
    let mut setup = Setup::software();
    let manager = Manager::of(&mut setup);
    let daemon = setup.start();
    manager.hears("READY=1");
    assert_eq!(manager.heard(), None);
    daemon.ask_to_stop();
    manager.hears("STOPPING=1");
    assert_eq!(daemon.wait().code, Some(0));
}
