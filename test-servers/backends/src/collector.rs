//! The real OpenTelemetry Collector: OTLP over gRPC in, a file of JSON objects out.

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::process::{Process, command, free_port, program_from_script};

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_mins(2);

/// What it shows and demands.
#[derive(Clone, Debug)]
pub struct Certificates {
    /// Its certificate chain, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub private_key: PathBuf,
    /// The CAs of its clients, PEM.
    pub client_ca: PathBuf,
}

/// A running collector. It ends when dropped.
#[derive(Debug)]
pub struct OtelCollector {
    process: Process,
    port: u16,
}

impl OtelCollector {
    /// Starts it, over TLS with client certificates where there are some. The first call on a machine
    /// builds it.
    pub fn start(certificates: Option<&Certificates>) -> Self {
        let program = program_from_script("backends", &["collector"]);
        for _ in 0..5 {
            let port = free_port();
            let process = Process::start(|folder| {
                let path = folder.join("collector.yaml");
                fs::write(&path, configuration(folder, port, certificates))
                    .expect("a fresh folder is writable");
                let mut command = command(&program);
                command.arg("--config").arg(path);
                command
            });
            let mut collector = Self { process, port };
            if collector.is_up() {
                return collector;
            }
        }
        panic!("the collector did not start on any of five ports");
    }

    /// Its port on loopback.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Stops it, as a process that hangs.
    pub fn freeze(&self) {
        self.process.stop();
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.process.signal(Signal::CONT);
    }

    /// What it was given so far: an object for each request.
    pub fn received(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.process.folder().join("received.jsonl"));
        // The last line may be half written.
        let text = text.unwrap_or_default();
        let whole = text.rfind('\n').map_or("", |end| &text[..=end]);
        whole.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    /// What it was given, once `is_enough`.
    pub fn wait_until(&self, is_enough: impl Fn(&[Value]) -> bool) -> Vec<Value> {
        let begun = Instant::now();
        loop {
            let received = self.received();
            if is_enough(&received) {
                return received;
            }
            let log = || self.process.log();
            assert!(begun.elapsed() < PATIENCE, "{received:#?}\n{}", log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// False if it ended, as it does where the port was taken.
    fn is_up(&mut self) -> bool {
        let until = Instant::now() + PATIENCE;
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            if !self.process.is_running() {
                return false;
            }
            assert!(Instant::now() < until, "it does not listen: {}", self.process.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        self.process.is_running()
    }
}

/// YAML, of which JSON is a part.
fn configuration(folder: &Path, port: u16, certificates: Option<&Certificates>) -> String {
    let mut grpc = json!({ "endpoint": format!("127.0.0.1:{port}") });
    if let Some(Certificates { certificate, private_key, client_ca }) = certificates {
        grpc["tls"] = json!({
            "cert_file": certificate,
            "key_file": private_key,
            "client_ca_file": client_ca,
        });
    }
    let pipeline = json!({ "receivers": ["otlp"], "exporters": ["file"] });
    json!({
        "receivers": { "otlp": { "protocols": { "grpc": grpc } } },
        "exporters": {
            "file": { "path": folder.join("received.jsonl"), "flush_interval": "50ms" },
        },
        "service": {
            "telemetry": { "metrics": { "level": "none" } },
            "pipelines": { "traces": pipeline, "logs": pipeline },
        },
    })
    .to_string()
}
