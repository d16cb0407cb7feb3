//! Collectors that are gone, say nothing or read nothing: a required sink has each record of an answer.

use std::collections::HashSet;
use std::fs;
use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use e2e::daemon_files::request_ids;
use e2e::{Identity, Setup};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::case::{nothing_is_lost, refuses, setup, wait_until};

/// How often a collector looks whether it is to do something else.
const LOOK: Duration = Duration::from_millis(10);

/// What a collector does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Does {
    /// It takes what it is sent.
    Reads,
    /// It is there, and takes nothing.
    Hangs,
    /// It is not there.
    IsGone,
    /// The test is over.
    Ends,
}

const ALL: [Does; 4] = [Does::Reads, Does::Hangs, Does::IsGone, Does::Ends];

/// A collector in a thread of its own.
struct Collector {
    does: Arc<AtomicU8>,
    ids: Arc<Mutex<HashSet<String>>>,
    thread: Option<JoinHandle<()>>,
}

/// What its thread has of it.
#[derive(Clone)]
struct Inside {
    does: Arc<AtomicU8>,
    ids: Arc<Mutex<HashSet<String>>>,
}

impl Inside {
    fn does(&self) -> Does {
        ALL[usize::from(self.does.load(Ordering::Relaxed))]
    }

    fn takes(&self, line: &str) {
        self.ids.lock().unwrap().extend(request_ids(line));
    }
}

impl Collector {
    fn start(work: impl FnOnce(Inside) + Send + 'static) -> Self {
        let (does, ids) = (Arc::<AtomicU8>::default(), Arc::default());
        let inside = Inside { does: Arc::clone(&does), ids: Arc::clone(&ids) };
        let thread = Some(thread::spawn(move || work(inside)));
        Self { does, ids, thread }
    }

    /// A syslog socket at this path.
    fn on_socket(path: PathBuf) -> Self {
        Self::start(move |inside| {
            let mut socket = None;
            let mut message = vec![0; 1 << 16];
            loop {
                match inside.does() {
                    Does::Ends => return,
                    Does::IsGone => {
                        if socket.take().is_some() {
                            fs::remove_file(&path).unwrap();
                        }
                        thread::sleep(LOOK);
                    }
                    Does::Hangs => thread::sleep(LOOK),
                    Does::Reads => {
                        let socket = socket.get_or_insert_with(|| {
                            let socket = UnixDatagram::bind(&path).unwrap();
                            socket.set_read_timeout(Some(LOOK)).unwrap();
                            socket
                        });
                        if let Ok(length) = socket.recv(&mut message) {
                            inside.takes(json(&message[..length]));
                        }
                    }
                }
            }
        })
    }

    /// A syslog collector over TLS.
    fn over_tls(identity: &Identity) -> (Self, SocketAddr) {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![identity.certificate()], identity.private_key())
            .unwrap();
        let config = Arc::new(config);
        let first = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = first.local_addr().unwrap();
        let collector = Self::start(move |inside| {
            let mut listener = Some(first);
            let mut held = Vec::new();
            loop {
                let does = inside.does();
                if matches!(does, Does::Reads | Does::IsGone) {
                    held.clear();
                }
                match does {
                    Does::Ends => return,
                    Does::IsGone => listener = None,
                    Does::Reads | Does::Hangs => {
                        // Another program may have taken the port for a moment.
                        listener = listener.or_else(|| TcpListener::bind(address).ok());
                        match listener.as_ref().and_then(accepted) {
                            Some(socket) if does == Does::Hangs => held.push(socket),
                            Some(socket) => read(socket, &config, &inside),
                            None => {}
                        }
                    }
                }
                thread::sleep(LOOK);
            }
        });
        (collector, address)
    }

    fn does(&self, does: Does) {
        let place = ALL.iter().position(|each| *each == does).unwrap();
        self.does.store(u8::try_from(place).unwrap(), Ordering::Relaxed);
    }

    fn ids(&self) -> HashSet<String> {
        self.ids.lock().unwrap().clone()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.does(Does::Ends);
        // A panic of its thread is the test's.
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(thread::panicking() || matches!(ended, Some(Ok(()))), "the collector panicked");
    }
}

fn accepted(listener: &TcpListener) -> Option<TcpStream> {
    listener.set_nonblocking(true).unwrap();
    let (socket, _) = listener.accept().ok()?;
    socket.set_nonblocking(false).unwrap();
    socket.set_read_timeout(Some(LOOK)).unwrap();
    Some(socket)
}

/// Takes messages from a connection until it ends or the collector is to do something else.
fn read(socket: TcpStream, config: &Arc<ServerConfig>, inside: &Inside) {
    let connection = ServerConnection::new(Arc::clone(config)).unwrap();
    let mut stream = StreamOwned::new(connection, socket);
    let (mut bytes, mut more) = (Vec::new(), vec![0; 1 << 16]);
    while inside.does() == Does::Reads {
        match stream.read(&mut more) {
            Ok(0) => return,
            Ok(length) => bytes.extend_from_slice(&more[..length]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => return,
        }
        while let Some(message) = framed(&mut bytes) {
            inside.takes(json(&message));
        }
    }
}

/// The first whole octet-counted message (RFC 6587, 3.4.1).
fn framed(bytes: &mut Vec<u8>) -> Option<Vec<u8>> {
    let blank = bytes.iter().position(|byte| *byte == b' ')?;
    let length: usize = str::from_utf8(&bytes[..blank]).unwrap().parse().unwrap();
    let end = blank + 1 + length;
    (bytes.len() >= end).then(|| bytes.drain(..end).skip(blank + 1).collect())
}

/// The line of the log in a syslog message.
fn json(message: &[u8]) -> &str {
    let text = str::from_utf8(message).unwrap();
    &text[text.find('{').unwrap()..]
}

/// Refuses while the collector does not read; afterwards it and the file have each answer.
async fn case(setup: &mut Setup, collector: &Collector, what: &str, troubles: &[Does]) {
    let daemon = setup.start();
    let mut answered = HashSet::new();
    for trouble in troubles {
        let what = format!("{what} {trouble:?}");
        let begin = || collector.does(*trouble);
        answered
            .extend(refuses(setup, &daemon, &what, begin, || collector.does(Does::Reads)).await);
    }
    wait_until(what, &daemon, || collector.ids().is_superset(&answered));
    assert_eq!(daemon.terminate().code, Some(0));
    nothing_is_lost(setup, &answered, &setup.files.recorded());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_a_required_syslog_is_gone_or_reads_nothing_no_call_is_answered_and_none_is_lost() {
    let mut setup = setup();
    let path = setup.files.path("syslog");
    setup.files.set("audit.sinks.siem.type", "syslog");
    setup.files.set("audit.sinks.siem.address", format!("unix:{}", path.display()));
    let collector = Collector::on_socket(path);
    case(&mut setup, &collector, "syslog", &[Does::IsGone, Does::Hangs]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_a_required_collector_is_gone_or_says_nothing_no_call_is_answered_and_none_is_lost() {
    let mut setup = setup();
    let (collector, address) = Collector::over_tls(&setup.files.pki.server());
    let ca = setup.files.path("clients.pem").display().to_string();
    setup.files.set("audit.sinks.siem.type", "syslog");
    setup.files.set("audit.sinks.siem.address", format!("tls:localhost:{}", address.port()));
    setup.files.set("audit.sinks.siem.ca", ca);
    case(&mut setup, &collector, "collector", &[Does::IsGone, Does::Hangs]).await;
}
