//! Sinks with real sockets: one that is gone, hangs, comes back; nothing is lost over rotations and
//! restarts.

mod otlp;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufReader, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::mpsc;

use rustls::{ServerConfig, ServerConnection, StreamOwned};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::Value;
use tempfile::TempDir;
use tonic::Code;

use super::*;
use crate::daemon::config::{AuditFile, SinkKind, SyslogAddress, TlsSink};
use crate::daemon::records::audit::{Audit, Record};

/// A log with one sink.
struct Fixture {
    directory: TempDir,
    config: AuditFile,
}

impl Fixture {
    /// With a syslog socket at `socket` in its folder.
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let address = SyslogAddress::Unix(directory.path().join("socket"));
        Self::with(directory, SinkKind::Syslog { address })
    }

    fn with(directory: TempDir, kind: SinkKind) -> Self {
        let sink = config::Sink { name: "siem".to_owned(), kind, best_effort: false, spool: 0 };
        let file = AuditFile::at(directory.path().join("audit.jsonl"));
        Self { config: AuditFile { sinks: vec![sink], ..file }, directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn listen(&self) -> UnixDatagram {
        let path = self.path("socket");
        let _ = fs::remove_file(&path);
        let socket = UnixDatagram::bind(path).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        socket
    }

    fn open(&self) -> Audit {
        Audit::open(&config::Audit::File(Box::new(self.config.clone())), Arc::default()).unwrap()
    }

    /// The places of the log's lines, over all its files.
    fn places(&self) -> BTreeSet<u64> {
        let mut files = crate::daemon::records::audit::rotated_files(&self.config.path);
        files.push(self.config.path.clone());
        let texts = files.iter().map(|file| fs::read_to_string(file).unwrap());
        texts.flat_map(|text| text.lines().map(place_of).collect::<Vec<_>>()).collect()
    }
}

fn place_of(line: &str) -> u64 {
    let line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    line["n"].as_u64().unwrap()
}

/// The line in a syslog message.
fn line_of(message: &[u8]) -> &str {
    let text = str::from_utf8(message).unwrap();
    &text[text.find('{').unwrap()..]
}

/// Reads a socket, all the time.
struct Reader {
    places: Arc<Mutex<BTreeSet<u64>>>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Reader {
    fn of(socket: UnixDatagram) -> Self {
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let (places, is_over) =
            (Arc::<Mutex<BTreeSet<u64>>>::default(), Arc::<AtomicBool>::default());
        let (into, ends) = (Arc::clone(&places), Arc::clone(&is_over));
        let thread = std::thread::spawn(move || {
            let mut message = vec![0; 1 << 16];
            while !ends.load(Ordering::Relaxed) {
                if let Ok(length) = socket.recv(&mut message) {
                    lock(&into).insert(place_of(line_of(&message[..length])));
                }
            }
        });
        Self { places, is_over, thread: Some(thread) }
    }

    /// Waits until each of these was there.
    fn wait_for(&self, wanted: &BTreeSet<u64>) {
        let begun = Instant::now();
        while !lock(&self.places).is_superset(wanted) {
            assert!(begun.elapsed() < Duration::from_secs(50), "{wanted:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

async fn record(audit: &Audit, request_id: &str) -> Result<(), AuditError> {
    audit.record(&Record { request_id, ..Record::new(Code::Ok) }).await
}

/// Records until one is durable everywhere; the daemon's own retry is far quicker.
async fn record_until_it_can(audit: &Audit) {
    let begun = Instant::now();
    while let Err(error) = record(audit, "again").await {
        assert!(begun.elapsed() < Duration::from_secs(30), "{error}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_socket_gets_each_line_before_its_call_is_answered() {
    let fixture = Fixture::new();
    let socket = fixture.listen();
    let audit = fixture.open();
    record(&audit, "a").await.unwrap();
    socket.set_nonblocking(true).unwrap();
    let mut message = vec![0; 1 << 16];
    let length = socket.recv(&mut message).expect("it was there before the answer");
    let text = str::from_utf8(&message[..length]).unwrap();
    assert!(text.starts_with("<110>1 20"), "{text}");
    let log = fs::read_to_string(&fixture.config.path).unwrap();
    assert_eq!(line_of(text.as_bytes()), log.trim_end());
}

#[tokio::test]
async fn a_required_sink_that_is_gone_refuses_and_has_everything_after_its_return() {
    let fixture = Fixture::new();
    let socket = fixture.listen();
    let audit = fixture.open();
    record(&audit, "before").await.unwrap();
    drop(socket);
    let begun = Instant::now();
    let error = record(&audit, "gone").await.unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(20), "far less than the limit of a hang");
    assert!(matches!(&error, AuditError::Sink { name, .. } if &**name == "siem"), "{error}");
    assert!(audit.is_failing());
    assert!(audit.state().unwrap().sinks[0].is_failing);
    let reader = Reader::of(fixture.listen());
    record_until_it_can(&audit).await;
    assert!(!audit.is_failing());
    reader.wait_for(&fixture.places().split_off(&1));
    assert_eq!(audit.state().unwrap().sinks[0].behind, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sink_that_hangs_refuses_in_time_and_serves_when_it_reads_again() {
    let mut fixture = Fixture::new();
    fixture.config.hang_limit = Duration::from_millis(1500);
    let socket = fixture.listen();
    let audit = fixture.open();
    // It reads nothing: the system keeps a few messages for it, then none.
    let refused = loop {
        let begun = Instant::now();
        if let Err(error) = record(&audit, "a").await {
            break (begun.elapsed(), error);
        }
    };
    assert!(refused.0 < Duration::from_secs(10), "{refused:?}");
    assert!(refused.1.is_in_the_file(), "{refused:?}");
    let begun = Instant::now();
    while !audit.is_failing() {
        assert!(begun.elapsed() < Duration::from_secs(30));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let reader = Reader::of(socket);
    record_until_it_can(&audit).await;
    reader.wait_for(&fixture.places());
}

#[tokio::test]
async fn without_a_best_effort_sink_calls_are_answered_and_within_its_spool_too() {
    for (best_effort, spool) in [(true, 1 << 30), (false, 1 << 20)] {
        let mut fixture = Fixture::new();
        (fixture.config.sinks[0].best_effort, fixture.config.sinks[0].spool) = (best_effort, spool);
        let audit = fixture.open();
        for at in 0..20 {
            record(&audit, &at.to_string()).await.unwrap();
        }
        assert!(!audit.is_failing());
        fs::rename(&fixture.config.path, fixture.path("audit.jsonl-1")).unwrap();
        record(&audit, "after the rotation").await.unwrap();
        Reader::of(fixture.listen()).wait_for(&fixture.places());
    }
}

#[tokio::test]
async fn beyond_its_spool_a_sink_that_is_away_refuses() {
    let mut fixture = Fixture::new();
    fixture.config.sinks[0].spool = 4000;
    let audit = fixture.open();
    let begun = Instant::now();
    let mut answered = 0;
    while record(&audit, "a").await.is_ok() {
        answered += 1;
        assert!(begun.elapsed() < Duration::from_secs(50));
    }
    assert!((3..100).contains(&answered), "{answered}");
    let reader = Reader::of(fixture.listen());
    record_until_it_can(&audit).await;
    reader.wait_for(&fixture.places());
}

#[tokio::test]
async fn a_sink_that_was_away_gets_the_lines_of_earlier_runs() {
    let mut fixture = Fixture::new();
    fixture.config.sinks[0].spool = 1 << 20;
    let reader = Reader::of(fixture.listen());
    let audit = fixture.open();
    record(&audit, "first").await.unwrap();
    reader.wait_for(&fixture.places());
    drop((audit, reader));
    for run in 0..3 {
        let audit = fixture.open();
        record(&audit, "away").await.unwrap();
        drop(audit);
        fs::rename(&fixture.config.path, fixture.path(&format!("audit.jsonl-{run}"))).unwrap();
    }
    let audit = fixture.open();
    let reader = Reader::of(fixture.listen());
    reader.wait_for(&fixture.places().split_off(&1));
    record(&audit, "last").await.unwrap();
}

#[tokio::test]
async fn the_journal_gets_an_entry_of_each_line() {
    let directory = TempDir::new().unwrap();
    let kind = SinkKind::Journald { socket: directory.path().join("socket") };
    let fixture = Fixture::with(directory, kind);
    let socket = fixture.listen();
    let audit = fixture.open();
    record(&audit, "r-1").await.unwrap();
    let mut message = vec![0; 1 << 16];
    let length = socket.recv(&mut message).unwrap();
    let text = str::from_utf8(&message[..length]).unwrap();
    let log = fs::read_to_string(&fixture.config.path).unwrap();
    assert!(text.starts_with(&format!("MESSAGE={log}PRIORITY=6\n")), "{text}");
    assert!(text.contains("CLAVIGER_REQUEST_ID=r-1\n"), "{text}");
}

/// A certificate authority of the test's own, and a collector that has a certificate of it.
struct Collector {
    config: Arc<ServerConfig>,
    address: SocketAddr,
}

impl Collector {
    /// A collector on a free port, and the sink for it. It does not listen yet.
    fn new(directory: &TempDir) -> (Self, SinkKind) {
        let pair = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let certificate = params.self_signed(&pair).unwrap();
        let ca = directory.path().join("ca.pem");
        fs::write(&ca, claviger_files::pem::encode("CERTIFICATE", certificate.der())).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(pair.serialize_der()));
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (host, port) = ("localhost".to_owned(), address.port());
        let tls = TlsSink { host, port, ca, identity: None };
        let kind = SinkKind::Syslog { address: SyslogAddress::Tls(tls) };
        (Self { config: Arc::new(config), address }, kind)
    }

    /// Listens, and gives the place of each line that it gets, until it has got so many; then it is gone.
    fn listen(&self, until: usize) -> mpsc::Receiver<u64> {
        let (sender, places) = mpsc::channel();
        let (config, begun) = (Arc::clone(&self.config), Instant::now());
        // Another program may have taken the port for a moment.
        let listener = loop {
            match TcpListener::bind(self.address) {
                Ok(listener) => break listener,
                Err(error) => assert!(begun.elapsed() < Duration::from_secs(30), "{error}"),
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        std::thread::spawn(move || {
            let mut left = until;
            while left > 0 {
                let (socket, _) = listener.accept().unwrap();
                let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
                let mut stream = BufReader::new(StreamOwned::new(connection, socket));
                while left > 0
                    && let Some(line) = frame(&mut stream)
                {
                    left -= 1;
                    let _ = sender.send(place_of(line_of(&line)));
                }
            }
        });
        places
    }
}

/// One octet-counted message; none at the end.
fn frame(stream: &mut BufReader<StreamOwned<ServerConnection, TcpStream>>) -> Option<Vec<u8>> {
    let mut length = 0;
    loop {
        let mut byte = [0];
        stream.read_exact(&mut byte).ok()?;
        match byte[0] {
            b' ' => break,
            digit => length = length * 10 + usize::from(digit - b'0'),
        }
    }
    let mut message = vec![0; length];
    stream.read_exact(&mut message).ok()?;
    Some(message)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_over_tls_that_comes_and_goes_has_every_line_in_the_end() {
    let directory = TempDir::new().unwrap();
    let (collector, kind) = Collector::new(&directory);
    let fixture = Fixture::with(directory, kind);
    let audit = fixture.open();
    let mut received = BTreeSet::new();
    for _ in 0..4 {
        // It takes a few lines and is gone, which the daemon learns when it sends the next.
        let places = collector.listen(5);
        for at in 0..8 {
            let _ = record(&audit, &at.to_string()).await;
        }
        received.extend(places.iter());
    }
    let places = collector.listen(usize::MAX);
    record_until_it_can(&audit).await;
    let begun = Instant::now();
    while received != fixture.places() {
        let left = Duration::from_mins(1).saturating_sub(begun.elapsed());
        received.insert(places.recv_timeout(left).expect("every line comes"));
    }
    drop(audit);
}

#[tokio::test]
async fn a_collector_of_another_ca_and_one_that_says_nothing_are_refused_in_words() {
    let directory = TempDir::new().unwrap();
    let (collector, _) = Collector::new(&directory);
    let (_, SinkKind::Syslog { address: SyslogAddress::Tls(other) }) = Collector::new(&directory)
    else {
        unreachable!()
    };
    let tls = TlsSink { port: collector.address.port(), ..other };
    let kind = SinkKind::Syslog { address: SyslogAddress::Tls(tls) };
    let fixture = Fixture::with(directory, kind);
    let _places = collector.listen(1);
    let audit = fixture.open();
    assert!(record(&audit, "a").await.unwrap_err().is_in_the_file());
    drop(audit);

    let directory = TempDir::new().unwrap();
    let (silent, kind) = Collector::new(&directory);
    let _listener = TcpListener::bind(silent.address).unwrap();
    let fixture = Fixture::with(directory, kind);
    let audit = fixture.open();
    assert!(record(&audit, "a").await.unwrap_err().is_in_the_file());
}

#[test]
fn what_a_sink_needs_is_looked_at_before_the_log_is_opened() {
    let directory = TempDir::new().unwrap();
    let (_, kind) = Collector::new(&directory);
    fs::write(directory.path().join("ca.pem"), "no PEM").unwrap();
    let fixture = Fixture::with(directory, kind);
    let error =
        Audit::check(&config::Audit::File(Box::new(fixture.config))).unwrap_err().to_string();
    assert!(error.starts_with("audit.sinks.siem: ") && error.contains("ca.pem"), "{error}");
}
