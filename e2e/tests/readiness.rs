//! What systemd and probes are told over a daemon's life.

use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use claviger_client::Health;
use e2e::{Daemon, DaemonFiles, Setup, Token};
use tonic::Code;

/// The other end of `Type=notify`.
struct Manager(UnixDatagram);

impl Manager {
    fn of(files: &mut DaemonFiles) -> Self {
        let path = files.path("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        files.variable("NOTIFY_SOCKET", path);
        Self(socket)
    }

    /// The next message.
    fn told(&self) -> String {
        let mut buffer = [0; 4096];
        let length = self.0.recv(&mut buffer).expect("a message within half a minute");
        String::from_utf8(buffer[..length].to_vec()).unwrap().trim_end().to_owned()
    }
}

fn codes(daemon: &Daemon) -> (u16, u16) {
    let code = |path| daemon.operations_get(path).map_or(0, |(code, _)| code);
    (code("/livez"), code("/readyz"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_service_manager_is_told_each_turn_of_a_life() {
    let mut setup = Setup::software();
    let manager = Manager::of(&mut setup.files);
    let daemon = Daemon::spawn(&setup.files);
    assert_eq!(manager.told(), "READY=1");
    assert_eq!(codes(&daemon), (200, 200));
    for is_valid in [true, false] {
        let file = setup.files.configuration_file();
        if is_valid {
            setup.files.write();
        } else {
            e2e::pki::replace(&file, "nonsense", 0o644);
        }
        daemon.reload();
        let reloading = manager.told();
        let (word, time) = reloading.split_once('\n').expect("two lines");
        assert_eq!(word, "RELOADING=1");
        let time: u64 = time.strip_prefix("MONOTONIC_USEC=").unwrap().parse().unwrap();
        let now = monotonic_usec();
        assert!(time <= now && now - time < 30_000_000, "{time} is not just before {now}");
        assert_eq!(manager.told(), "READY=1", "after a reload that was refused, too");
        assert_eq!(setup.ask(&daemon).await, Code::Ok);
    }
    daemon.ask_to_stop();
    assert_eq!(manager.told(), "STOPPING=1");
    assert_eq!(daemon.wait().code, Some(0));
}

fn monotonic_usec() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap() * 1_000_000 + u64::try_from(now.tv_nsec).unwrap() / 1000
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ports_are_open_before_keys_and_ready_does_not_wait_for_ever() {
    let (token, faults) = Token::softhsm().through_fault_module();
    let mut setup = Setup::on(&token);
    let manager = Manager::of(&mut setup.files);
    faults.on_every("C_Initialize", "hang");
    let begun = Instant::now();
    let daemon = Daemon::spawn(&setup.files);
    while codes(&daemon) != (200, 503) {
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}\n{}", codes(&daemon), daemon.log());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(setup.ask(&daemon).await, Code::Unavailable);
    assert_eq!(setup.key_health(&daemon).await, Health::NotServing);
    assert_eq!(setup.client(&daemon).health(None).await.unwrap(), Health::NotServing);
    assert!(begun.elapsed() < Duration::from_secs(8), "all that was before READY=1");
    assert_eq!(manager.told(), "READY=1");
    let waited = begun.elapsed();
    assert!(waited > Duration::from_secs(9) && waited < Duration::from_secs(14), "{waited:?}");
    assert_eq!(codes(&daemon), (200, 200));
    assert_eq!(setup.client(&daemon).health(None).await.unwrap(), Health::Serving);
    not_serving(&setup, &daemon).await;
    faults.clear();
    setup.wait_for(&daemon, Code::Ok).await;
    assert_eq!(setup.key_health(&daemon).await, Health::Serving);
}

async fn not_serving(setup: &Setup, daemon: &Daemon) {
    assert_eq!(setup.ask(daemon).await, Code::Unavailable);
    assert_eq!(setup.key_health(daemon).await, Health::NotServing);
}
