//! A ministack process: KMS on a free loopback port, ended by its own id.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use aws_sdk_kms::Client;
use aws_sdk_kms::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_kms::types::{KeySpec, KeyUsageType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How long it may take to answer: it is up in 1.5 s on a quiet machine.
const START_LIMIT: Duration = Duration::from_mins(2);

/// The server.
pub(crate) struct Ministack {
    process: Child,
    /// Its home.
    _folder: tempfile::TempDir,
    pub(crate) endpoint: String,
}

impl Ministack {
    /// Starts it and waits until it is well.
    pub(crate) async fn start() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let made = Command::new(root.join("scripts/ministack")).stdin(Stdio::null()).output();
        let made = made.unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let program = String::from_utf8(made.stdout).unwrap();

        let folder = tempfile::tempdir().unwrap();
        let port = free_port();
        let process = Command::new(program.trim())
            .env_clear()
            .envs([
                ("PATH", "/usr/bin:/bin"),
                ("SERVICES", "kms"),
                ("BIND_HOST", "127.0.0.1"),
                ("MINISTACK_HOST", "127.0.0.1"),
                ("IOT_MTLS_ENABLED", "0"),
            ])
            .env("GATEWAY_PORT", port.to_string())
            .envs([("HOME", folder.path()), ("TMPDIR", folder.path())])
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut server =
            Self { process, _folder: folder, endpoint: format!("http://127.0.0.1:{port}") };
        let until = Instant::now() + START_LIMIT;
        while !is_well(port).await {
            let ended = server.process.try_wait().unwrap();
            assert!(ended.is_none(), "ministack ended: {ended:?}");
            assert!(Instant::now() < until, "ministack does not answer on port {port}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        server
    }

    /// Whoever manages the keys: the SDK, as an administrator.
    pub(crate) fn administrator(&self) -> Client {
        let config = aws_sdk_kms::Config::builder()
            .behavior_version(BehaviorVersion::v2026_01_12())
            .region(Region::new(super::REGION))
            .endpoint_url(&self.endpoint)
            .credentials_provider(Credentials::new("admin", "admin", None, None, "test"))
            .build();
        Client::from_conf(config)
    }

    /// Makes a key and gives its ARN.
    pub(crate) async fn key(&self, spec: KeySpec, usage: KeyUsageType) -> String {
        let made = self.administrator().create_key().key_spec(spec).key_usage(usage).send().await;
        made.unwrap().key_metadata.unwrap().arn.unwrap()
    }
}

impl Drop for Ministack {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A port on which nobody listens.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

async fn is_well(port: u16) -> bool {
    let asked = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        let request =
            "GET /_ministack/health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).await?;
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    let answer = tokio::time::timeout(Duration::from_secs(2), asked).await;
    matches!(answer, Ok(Ok(answer)) if &answer == b"HTTP/1.1 200")
}
