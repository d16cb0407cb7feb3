//! Users' reads through the Key Connector, in both modes, beside the daemon's own calls: SQLite, the
//! connector's HTTP without TLS (as behind a proxy), one token, every record audited and synced.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_SHA256};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use claviger::cli::bench::load::{self, Begun, Counter, SETTLE, Sample, Work, median};
use claviger::cli::local_daemon::{Daemon, KEY, LocalDaemon, free_ports};
use claviger_client::{Client, Config, WrapOptions};
use claviger_files::pem;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use crate::table::{Row, Wanted};
use crate::{CLAVIGER, Effort, Outcome};

/// Connections to the connector, each with one request at a time; calls to the daemon likewise.
const IN_FLIGHT: usize = 16;
/// Users that were enrolled; they read in turn.
const USERS: usize = 100;
const ISSUER: &str = "https://bench.example";

pub(crate) fn measure(runtime: &Runtime, effort: Effort) -> Outcome<Vec<Row>> {
    let mut rows = Vec::new();
    for (name, arguments) in [("software", &[][..]), ("SoftHSM", &["--softhsm"])] {
        rows.extend(runtime.block_on(on(name, arguments, effort))?);
    }
    Ok(rows)
}

async fn on(name: &str, arguments: &[&str], effort: Effort) -> Outcome<Vec<Row>> {
    let folder = tempfile::tempdir()?;
    let local = demo(&folder.path().join("daemon"), arguments)?;
    let daemon = Daemon::start_program(Path::new(CLAVIGER), &local).await?;
    let config = Config::from_file(&local.client)?;
    let clients = (0..4).map(|_| Client::new(&config)).collect::<Result<Vec<_>, _>>()?;
    let wrapped = clients[0].wrap(KEY, &[7; 64], &WrapOptions::default()).await?.wrapped;
    let work = Work {
        keys: [KEY.to_owned()].into(),
        wrapped,
        batch: 1,
        in_flight: IN_FLIGHT,
        time: effort.time,
    };
    let issuer = Issuer::new(folder.path())?;
    let shared = Connector::start(folder.path(), &local, &issuer, "shared-key").await?;
    let per_user = Connector::start(folder.path(), &local, &issuer, "per-user").await?;
    let (mut direct, mut reads, mut unwraps) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=effort.rounds {
        eprintln!("connector: {name}, round {round} of {}", effort.rounds);
        direct.push(load::run(&clients, &work, daemon.pid()).await?);
        reads.push(shared.reads(effort.time).await?);
        unwraps.push(per_user.reads(effort.time).await?);
    }
    drop((shared, per_user));
    daemon.stop().await?;
    let row = |mode: &str, least: f64, ours: &[Sample]| Row {
        what: format!(
            "users' reads through the connector, {mode}, {name} RSA-2048, {IN_FLIGHT} at a time, of \
             the daemon's audited unary unwraps"
        ),
        wanted: Some(Wanted::AtLeast(least)),
        measured: middle(
            &ours.iter().zip(&direct).map(|(o, d)| o.per_second / d.per_second).collect::<Vec<_>>(),
        ),
        unit: "x",
        figures: format!(
            "{:.0}/s, p50 {:.1} ms, p99 {:.1} ms, connector {:.0} µs; daemon alone {:.0}/s, p99 {:.1} ms",
            of(ours, |s| s.per_second),
            of(ours, |s| s.p50_us) / 1e3,
            of(ours, |s| s.p99_us) / 1e3,
            of(ours, |s| s.cpu_us.unwrap_or(f64::NAN)),
            of(&direct, |s| s.per_second),
            of(&direct, |s| s.p99_us) / 1e3,
        ),
    };
    Ok(vec![row("shared-key mode", 1.0, &reads), row("per-user mode", 0.8, &unwraps)])
}

/// The folder of a demo that has run once: certificates, an RSA-2048 key, a daemon with audit.
fn demo(folder: &Path, arguments: &[&str]) -> Outcome<LocalDaemon> {
    let port = free_ports()?;
    let status = Command::new(CLAVIGER)
        .args(["demo", "--once", "--port", &port.to_string(), "--dir"])
        .arg(folder)
        .args(arguments)
        .stdout(Stdio::null())
        .status()?;
    if !status.success() {
        return Err(format!("claviger demo: {status}").into());
    }
    Ok(LocalDaemon::open(folder, port)?)
}

fn of(samples: &[Sample], value: impl Fn(&Sample) -> f64) -> f64 {
    middle(&samples.iter().map(value).collect::<Vec<_>>())
}

fn middle(values: &[f64]) -> f64 {
    median(values.to_vec()).unwrap_or(f64::NAN)
}

/// Who signs users' tokens: a key in a file.
struct Issuer {
    key: KeyPair,
    public: PathBuf,
}

impl Issuer {
    fn new(folder: &Path) -> Outcome<Self> {
        let key = KeyPair::generate(KeySize::Rsa2048)?;
        let public = folder.join("issuer.pem");
        std::fs::write(&public, pem::encode("PUBLIC KEY", key.public_key().as_der()?.as_ref()))?;
        Ok(Self { key, public })
    }

    /// A token of a user's, as Bitwarden's identity server makes it.
    fn token(&self, user: &str) -> Outcome<String> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
        let part = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let header = part(&json!({ "alg": "RS256", "typ": "at+jwt" }));
        let claims = part(&json!({
            "iss": ISSUER, "sub": user, "nbf": now - 5, "iat": now - 5, "exp": now + 7200,
            "scope": ["api", "offline_access"], "amr": ["Application"],
        }));
        let signed = format!("{header}.{claims}");
        let mut signature = vec![0; self.key.public_modulus_len()];
        self.key.sign(
            &RSA_PKCS1_SHA256,
            &SystemRandom::new(),
            signed.as_bytes(),
            &mut signature,
        )?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}

/// A running connector with enrolled users.
struct Connector {
    child: Child,
    port: u16,
    tokens: Arc<[String]>,
}

impl Connector {
    async fn start(
        folder: &Path,
        local: &LocalDaemon,
        issuer: &Issuer,
        mode: &str,
    ) -> Outcome<Self> {
        let port = free_ports()?;
        let config = folder.join(format!("{mode}.toml"));
        let text = format!(
            "[server]\nlisten = '127.0.0.1:{port}'\nweb_vault = 'https://vault.example'\n\
             proxies = ['127.0.0.1']\n[operations]\nlisten = '127.0.0.1:{}'\n\
             [issuer]\nname = '{ISSUER}'\nkeys = '{}'\n\
             [keys]\nclient = '{}'\nkey = '{KEY}'\nmode = '{mode}'\n\
             [database]\nkind = 'sqlite'\nfile = '{}'\n[limits]\nuser = 'off'\nrefused = 'off'\n\
             [log]\nfilter = 'warn'\n",
            port + 1,
            issuer.public.display(),
            local.client.display(),
            folder.join(format!("{mode}.sqlite")).display(),
        );
        std::fs::write(&config, text)?;
        let program = Path::new(CLAVIGER).with_file_name("claviger-connector");
        let mut command = Command::new(&program);
        command.arg("serve").arg("--config").arg(&config);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        let child = child.map_err(|error| format!("{}: {error}", program.display()))?;
        let users = (1..=USERS).map(|n| format!("00000000-0000-4000-8000-{n:012}"));
        let tokens = users.map(|user| issuer.token(&user)).collect::<Outcome<_>>()?;
        let mut connector = Self { child, port, tokens };
        connector.wait_until_healthy()?;
        connector.enrol().await?;
        Ok(connector)
    }

    fn wait_until_healthy(&mut self) -> Outcome<()> {
        let begun = Instant::now();
        let request = "GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Err(format!("the connector ended with {status}").into());
            }
            if answers(self.port + 1, request)
                .is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
            {
                return Ok(());
            }
            if begun.elapsed() > Duration::from_mins(1) {
                return Err("the connector did not become healthy".into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    async fn enrol(&self) -> Outcome<()> {
        let mut connection = Connection::open(self.port).await?;
        let body = json!({ "key": STANDARD.encode([7; 64]) }).to_string();
        for token in &*self.tokens {
            let request = format!(
                "POST /user-keys HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\
                 Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            connection.request(&request).await?;
        }
        Ok(())
    }

    async fn reads(&self, time: Duration) -> Outcome<Sample> {
        let counter = Arc::new(Counter::default());
        let mut readers = JoinSet::new();
        for first in 0..IN_FLIGHT {
            let connection = Connection::open(self.port).await?;
            let (tokens, counter) = (Arc::clone(&self.tokens), Arc::clone(&counter));
            readers.spawn(read_for_ever(connection, tokens, first, counter));
        }
        let measure = async {
            tokio::time::sleep(SETTLE).await;
            let begun = Begun::now(&counter, Some(self.child.id()));
            tokio::time::sleep(time).await;
            begun.end(&counter, 1)
        };
        let sample = tokio::select! {
            sample = measure => Ok(sample),
            Some(ended) = readers.join_next() => Err(ended?.into()),
        };
        readers.shutdown().await;
        sample
    }
}

impl Drop for Connector {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Ends with the first error only.
async fn read_for_ever(
    mut connection: Connection,
    tokens: Arc<[String]>,
    first: usize,
    counter: Arc<Counter>,
) -> String {
    let mut turn = first;
    loop {
        turn = (turn + IN_FLIGHT) % tokens.len();
        let request = format!(
            "GET /user-keys HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\n\r\n",
            tokens[turn]
        );
        let begun = Instant::now();
        if let Err(error) = connection.request(&request).await {
            return error.to_string();
        }
        counter.add(begun.elapsed());
    }
}

/// A connection that is kept.
struct Connection {
    stream: TcpStream,
    answer: Vec<u8>,
}

impl Connection {
    async fn open(port: u16) -> Outcome<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, answer: Vec::with_capacity(4096) })
    }

    /// Sends a request and reads the whole answer, which has to be 200.
    async fn request(&mut self, request: &str) -> Outcome<()> {
        self.stream.write_all(request.as_bytes()).await?;
        self.answer.clear();
        loop {
            if self.stream.read_buf(&mut self.answer).await? == 0 {
                return Err("the connector closed a connection".into());
            }
            let text = std::str::from_utf8(&self.answer)?;
            let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            if body.len() < length.unwrap_or("0").parse()? {
                continue;
            }
            return if head.starts_with("HTTP/1.1 200") { Ok(()) } else { Err(head.into()) };
        }
    }
}

fn answers(port: u16, request: &str) -> std::io::Result<String> {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
