//! Each reason why a daemon may not serve: it begins while hosts start, and it is there before the
//! daemon starts.

use std::io::Write;
use std::net::TcpListener;
use std::thread::sleep;
use std::time::Duration;

use e2e::connection::Connection;
use e2e::pki::replace;
use e2e::setup::KEY;
use e2e::{RsaKey, Setup};
use rustix::process::Signal;
use tokio::runtime::Runtime;
use tonic::Code;

use super::{Two, reload, say, signal};

/// The fewest connections of one identity that can be configured.
const FEW: usize = 16;

/// Why the first of two daemons does not serve.
struct Reason {
    name: &'static str,
    /// Options that the daemon has from the start.
    options: fn(&mut Setup),
    /// Makes it so.
    begin: fn(&mut Two) -> Held,
    /// What a call gets from the daemon then, where it gets an answer.
    seen_as: Option<Code>,
    /// Whether it is still so after the daemon was started again.
    lasts: bool,
}

/// What goes on for as long as the reason is to last.
type Held = Option<Runtime>;

impl Reason {
    /// So many first reads during service: half of the hosts start while it begins, half when it is so.
    /// And as many when the daemon has been started with it.
    fn fails_no_first_read(&self, reads: usize) {
        let mut two = Two::with(self.options);
        let hosts = two.begin(reads / 2);
        sleep(Duration::from_millis(100));
        let held = (self.begin)(&mut two);
        let mut took = two.end(hosts);
        if let Some(code) = self.seen_as {
            let runtime = Runtime::new().unwrap();
            runtime.block_on(two.setups[0].wait_for(two.first(), code));
        }
        took.extend(two.read(reads - reads / 2));
        took.sort_unstable();
        say(&format!("{}, during service", self.name), &took);
        drop(held);
        two.restart_first();
        let _held = if self.lasts { None } else { (self.begin)(&mut two) };
        say(&format!("{}, before service", self.name), &two.read(reads));
    }
}

fn none(_: &mut Setup) {}

/// UNAVAILABLE.
const HSM_AWAY: Reason = Reason {
    name: "HSM away",
    options: none,
    begin: |two| {
        two.token.take_away();
        None
    },
    seen_as: Some(Code::Unavailable),
    lasts: true,
};

/// FAILED_PRECONDITION.
const KEY_LOST: Reason = Reason {
    name: "key lost",
    options: none,
    begin: |two| {
        two.token.delete(KEY);
        None
    },
    seen_as: Some(Code::FailedPrecondition),
    lasts: true,
};

const ANOTHER_KEY: Reason = Reason {
    name: "another key",
    options: none,
    begin: |two| {
        two.token.delete(KEY);
        two.token.import(&RsaKey::generate(2048), KEY, "01");
        None
    },
    seen_as: Some(Code::FailedPrecondition),
    lasts: true,
};

const PIN_LATCHED: Reason = Reason {
    name: "PIN latched",
    options: none,
    begin: |two| {
        two.token.write_pin("00000000");
        two.restart_first();
        None
    },
    seen_as: Some(Code::FailedPrecondition),
    lasts: true,
};

/// UNAUTHENTICATED for calls in flight; then the caller's connections are closed.
const CALLER_DENIED: Reason = Reason {
    name: "caller denied",
    options: |setup| {
        let denied = setup.files.file("denied", "# none\n", 0o600);
        setup.files.set("server.denied_callers", denied);
    },
    begin: |two| {
        two.setups[0].files.file("denied", "spiffe://example.org/key-connector\n", 0o600);
        None
    },
    seen_as: None,
    lasts: true,
};

/// UNAUTHENTICATED, in the handshake or after it.
const CERTIFICATE_REFUSED: Reason = Reason {
    name: "certificate refused",
    options: none,
    begin: |two| {
        let other = Setup::software();
        replace(&two.setups[0].files.path("clients.pem"), &other.files.pki.ca_pem(), 0o644);
        reload(two.first());
        None
    },
    seen_as: None,
    lasts: true,
};

const CERTIFICATE_FOR_ANOTHER_NAME: Reason = Reason {
    name: "certificate for another name",
    options: none,
    begin: |two| {
        let files = &two.setups[0].files;
        files.pki.server_named(&["other.example.org"]).write(&files.path("."), "server");
        reload(two.first());
        None
    },
    seen_as: None,
    lasts: true,
};

/// RESOURCE_EXHAUSTED: one session that is busy, one place behind it, and more callers than that.
const FULL_QUEUE: Reason = Reason {
    name: "full queue",
    options: |setup| {
        setup.files.set("providers.hsm-a.sessions", 1);
        setup.files.set("providers.hsm-a.queue", 1);
        setup.files.set("providers.hsm-a.hang_limit", "60s");
    },
    begin: |two| {
        two.faults.on_every("C_Decrypt", "sleep=500");
        let runtime = Runtime::new().unwrap();
        let connection = runtime.block_on(two.setups[0].connect(two.first()));
        for _ in 0..16 {
            let (connection, request) = (connection.clone(), two.setups[0].request());
            runtime.spawn(async move {
                loop {
                    let _ = connection.unwrap(&request).await;
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            });
        }
        Some(runtime)
    },
    seen_as: Some(Code::ResourceExhausted),
    lasts: false,
};

/// RESOURCE_EXHAUSTED: CKR_DEVICE_MEMORY.
const BACKEND_THROTTLED: Reason = Reason {
    name: "throttled backend",
    options: none,
    begin: |two| {
        two.faults.on_every("C_DecryptInit", "rv=0x31");
        None
    },
    seen_as: Some(Code::ResourceExhausted),
    lasts: true,
};

/// INTERNAL for calls in flight: CKR_BUFFER_TOO_SMALL for a buffer of the modulus' length. Then no proof
/// succeeds either, and the key is closed until an operator acts.
const INTERNAL: Reason = Reason {
    name: "INTERNAL",
    options: none,
    begin: |two| {
        two.faults.on_every("C_Decrypt", "rv=0x150");
        None
    },
    seen_as: Some(Code::FailedPrecondition),
    lasts: true,
};

const HSM_HANGS: Reason = Reason {
    name: "HSM does not answer in time",
    options: |setup| setup.files.set("providers.hsm-a.hang_limit", "600s"),
    begin: |two| {
        two.faults.on_every("C_Decrypt", "hang");
        None
    },
    seen_as: None,
    lasts: true,
};

const STANDS_STILL: Reason = Reason {
    name: "daemon stands still",
    options: none,
    begin: |two| {
        signal(two.first(), Signal::STOP);
        None
    },
    seen_as: None,
    lasts: false,
};

/// UNAVAILABLE, because the record cannot be written. Started so, the daemon ends.
const AUDIT_DISK_FULL: Reason = Reason {
    name: "audit log cannot be written",
    options: none,
    begin: |two| {
        let file = two.setups[0].files.audit_file();
        std::fs::remove_file(&file).unwrap();
        std::fs::create_dir(&file).unwrap();
        None
    },
    seen_as: Some(Code::Unavailable),
    lasts: true,
};

const ANOTHER_PROGRAM: Reason = Reason {
    name: "port of another program",
    options: none,
    begin: |two| {
        let address = two.first().address();
        two.first.take().unwrap().kill();
        let listener = TcpListener::bind(address).unwrap();
        std::thread::spawn(move || {
            for peer in listener.incoming() {
                let _ = peer.and_then(|mut peer| peer.write_all(b"220 mail.example.org ESMTP\r\n"));
            }
        });
        None
    },
    seen_as: None,
    // The other program keeps the port: the daemon that is started ends.
    lasts: true,
};

const CONNECTIONS_FULL: Reason = Reason {
    name: "connections full",
    options: |setup| {
        setup.files.set("server.max_connections_per_caller", i64::try_from(FEW).unwrap());
    },
    begin: |two| {
        let runtime = Runtime::new().unwrap();
        let (setup, daemon) = (&two.setups[0], two.first());
        let held: Vec<_> = runtime.block_on(async {
            let (ca, mut held) = (setup.files.pki.ca_der(), Vec::new());
            while held.len() < FEW {
                let open = Connection::open(daemon.address(), ca.clone(), Some(&setup.caller));
                held.extend(open.await);
            }
            held
        });
        runtime.spawn(async move {
            let _held = held;
            std::future::pending::<()>().await;
        });
        Some(runtime)
    },
    seen_as: None,
    lasts: false,
};

macro_rules! tests {
    ($($name:ident: $reason:ident),* $(,)?) => {
        $(#[test]
        fn $name() {
            $reason.fails_no_first_read(12);
        })*

        #[test]
        #[ignore = "long: scripts/test --all"]
        fn a_thousand_first_reads_for_each_reason_before_and_during_service_fail_never() {
            for reason in [$(&$reason),*] {
                reason.fails_no_first_read(500);
            }
        }
    };
}

tests! {
    an_hsm_that_is_away_fails_no_first_read: HSM_AWAY,
    a_key_that_was_lost_fails_no_first_read: KEY_LOST,
    another_key_fails_no_first_read: ANOTHER_KEY,
    a_pin_that_is_latched_fails_no_first_read: PIN_LATCHED,
    a_caller_that_one_daemon_denies_fails_no_first_read: CALLER_DENIED,
    a_client_ca_that_one_daemon_does_not_trust_fails_no_first_read: CERTIFICATE_REFUSED,
    a_certificate_for_another_name_fails_no_first_read: CERTIFICATE_FOR_ANOTHER_NAME,
    a_full_queue_fails_no_first_read: FULL_QUEUE,
    a_backend_that_is_throttled_fails_no_first_read: BACKEND_THROTTLED,
    an_internal_error_fails_no_first_read: INTERNAL,
    an_hsm_that_does_not_answer_in_time_fails_no_first_read: HSM_HANGS,
    a_daemon_that_stands_still_fails_no_first_read: STANDS_STILL,
    an_audit_log_that_cannot_be_written_fails_no_first_read: AUDIT_DISK_FULL,
    another_program_on_the_port_fails_no_first_read: ANOTHER_PROGRAM,
    connections_that_are_used_up_fail_no_first_read: CONNECTIONS_FULL,
}
