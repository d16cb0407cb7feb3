//! A real OpenBao or HashiCorp Vault in dev mode on a free loopback port, ended by its own pid.

#![allow(dead_code, reason = "each test program uses its part")]
#![allow(unreachable_pub, reason = "a module of several test programs")]

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use claviger_provider_api::{
    Algorithm, Call, CallerSlot, Error, KeyMaterial, OpenKey, Parameters, SecretSource,
    SignAlgorithm, WrappingKey,
};
use claviger_vault_transit::{AppRole, Auth, Config, Provider, Timeout};
use reqwest::Method;
use rustix::process::{Pid, Signal};
use serde_json::{Value, json};

pub const ROOT: &str = "root";

/// Which server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    OpenBao,
    Vault,
}

/// Runs each test on OpenBao, and as a long one on HashiCorp Vault.
#[macro_export]
macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod openbao {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::$name($crate::backend::Backend::OpenBao).await;
            })*
        }
        mod vault {
            $(#[tokio::test(flavor = "multi_thread")]
            #[ignore = "long: scripts/test --all"]
            async fn $name() {
                super::$name($crate::backend::Backend::Vault).await;
            })*
        }
    };
}

impl Backend {
    pub fn name(self) -> &'static str {
        match self {
            Self::OpenBao => "openbao",
            Self::Vault => "vault",
        }
    }

    fn program(self) -> PathBuf {
        let script = repository().join("scripts/backends");
        let output = Command::new(script).arg(self.name()).stderr(Stdio::inherit()).output();
        let output = output.expect("scripts/backends runs");
        assert!(output.status.success(), "scripts/backends {} failed", self.name());
        PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
    }
}

/// A running server with a Transit engine at `transit`. It ends when dropped.
pub struct Server {
    pub backend: Backend,
    pub address: String,
    pub folder: tempfile::TempDir,
    child: Child,
    http: reqwest::Client,
    tls: bool,
}

impl Server {
    /// Starts over http.
    pub async fn start(backend: Backend) -> Self {
        Self::start_with(backend, false).await
    }

    /// Starts over https, with a CA of its own.
    pub async fn start_tls(backend: Backend) -> Self {
        Self::start_with(backend, true).await
    }

    async fn start_with(backend: Backend, tls: bool) -> Self {
        let program = backend.program();
        for _ in 0..5 {
            if let Some(server) = Self::try_start(backend, &program, tls).await {
                let (status, said) =
                    server.post("sys/mounts/transit", json!({"type": "transit"})).await;
                assert_eq!(status, 204, "{said}");
                return server;
            }
        }
        panic!("{} did not start on any of five ports", backend.name());
    }

    async fn try_start(backend: Backend, program: &Path, tls: bool) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("HOME", folder.path())
            .args(["server", "-dev", "-dev-no-store-token"])
            .arg(format!("-dev-root-token-id={ROOT}"))
            .arg(format!("-dev-listen-address=127.0.0.1:{port}"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        if tls {
            command.arg("-dev-tls").arg(format!("-dev-tls-cert-dir={}", folder.path().display()));
        }
        let child = command.spawn().unwrap();
        let scheme = if tls { "https" } else { "http" };
        let address = format!("{scheme}://127.0.0.1:{port}");
        // A client of the test's own, so that nothing here depends on what is tested.
        let certificates = rustls::ClientConfig::builder_with_provider(Arc::new(
            rustls::crypto::aws_lc_rs::default_provider(),
        ))
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(anything::Accepted))
        .with_no_client_auth();
        let http = reqwest::Client::builder()
            .no_proxy()
            .tls_backend_preconfigured(certificates)
            .build()
            .unwrap();
        let mut server = Self { backend, address, folder, child, http, tls };
        let until = Instant::now() + Duration::from_mins(1);
        while Instant::now() < until {
            if server.child.try_wait().unwrap().is_some() {
                return None;
            }
            let url = format!("{}/v1/sys/health", server.address);
            if server.http.get(url).send().await.is_ok_and(|answer| answer.status() == 200) {
                return Some(server);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        None
    }

    /// Asks the server as root.
    pub async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> (u16, Value) {
        let url = format!("{}/v1/{path}", self.address);
        let mut request = self.http.request(method, url).header("x-vault-token", ROOT);
        if let Some(body) = body {
            request = request.body(body.to_string());
        }
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        let text = answer.text().await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or(Value::Null))
    }

    pub async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        self.ask(Method::POST, path, Some(body)).await
    }

    pub async fn get(&self, path: &str) -> Value {
        let (status, body) = self.ask(Method::GET, path, None).await;
        assert_eq!(status, 200, "{path}: {body}");
        body
    }

    /// Posts, and asks for success.
    pub async fn set(&self, path: &str, body: Value) -> Value {
        let (status, said) = self.post(path, body).await;
        assert!(matches!(status, 200 | 204), "{path}: {status} {said}");
        said
    }

    /// Makes `transit/NAME` of `bits`.
    pub async fn make_key(&self, name: &str, bits: u32) {
        let body = json!({"type": format!("rsa-{bits}")});
        self.set(&format!("transit/keys/{name}"), body).await;
    }

    /// Writes a secret file.
    pub fn secret(&self, name: &str, content: &str) -> SecretSource {
        let path = self.folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        SecretSource::File(path)
    }

    /// A configuration that logs in by a token.
    pub fn config_with_token(&self, token: &str) -> Config {
        self.config(Auth::Token(self.secret("token", token)))
    }

    pub fn config(&self, auth: Auth) -> Config {
        Config {
            address: self.address.clone(),
            ca: self.tls.then(|| self.folder.path().join("vault-ca.pem")),
            namespace: None,
            auth,
            connect_timeout: Timeout(Duration::from_secs(3)),
            timeout: Timeout(Duration::from_secs(10)),
        }
    }

    /// The policy that the documentation names, and an AppRole with it; tokens live for `ttl`.
    pub async fn config_with_approle(&self, ttl: &str, max_ttl: &str) -> Config {
        self.least_policy().await;
        self.set("sys/auth/approle", json!({"type": "approle"})).await;
        let role = json!({
            "token_policies": ["claviger"], "token_ttl": ttl, "token_max_ttl": max_ttl,
        });
        self.set("auth/approle/role/claviger", role).await;
        let role_id = self.get("auth/approle/role/claviger/role-id").await;
        let secret = self.set("auth/approle/role/claviger/secret-id", json!({})).await;
        self.config(Auth::Approle(AppRole {
            mount: "approle".into(),
            role_id: role_id["data"]["role_id"].as_str().unwrap().into(),
            secret_id: self.secret("secret-id", secret["data"]["secret_id"].as_str().unwrap()),
        }))
    }

    /// The least policy, as in `docs/backends/vault-transit.md`.
    pub async fn least_policy(&self) {
        let page = repository().join("docs/backends/vault-transit.md");
        let page = std::fs::read_to_string(page).unwrap();
        let policy = page.split_once("```hcl\n").unwrap().1.split_once("```").unwrap().0;
        self.set("sys/policies/acl/claviger", json!({"policy": policy})).await;
    }

    /// The one share of the seal, which dev mode prints a moment after it serves.
    pub async fn unseal_share(&self) -> String {
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap();
            if let Some(share) = log.lines().find_map(|line| line.strip_prefix("Unseal Key: ")) {
                return share.trim().to_owned();
            }
            assert!(Instant::now() < until, "no share of the seal in {log}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Stops the server in the middle of whatever it does, without ending it.
    pub fn freeze(&self) {
        rustix::process::kill_process(self.pid(), Signal::STOP).unwrap();
    }

    pub fn thaw(&self) {
        rustix::process::kill_process(self.pid(), Signal::CONT).unwrap();
    }

    /// CPU time that the server has used so far (Linux).
    pub fn cpu_time(&self) -> Duration {
        cpu_time(&self.child.id().to_string())
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed()).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Dev mode keeps everything in memory: there is nothing to save.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// CPU time of a process, by its name in /proc (Linux).
pub fn cpu_time(process: &str) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    // The name in parentheses may contain blanks; utime and stime are fields 14 and 15.
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let fields = fields.split_whitespace().skip(11).take(2);
    let ticks: u64 = fields.map(|field| field.parse::<u64>().unwrap()).sum();
    Duration::from_nanos(ticks * 1_000_000_000 / rustix::param::clock_ticks_per_second())
}

/// Of more than one crate's tests.
fn repository() -> &'static Path {
    let mut folders = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    folders.find(|folder| folder.join("scripts/backends").exists()).expect("a checkout has it")
}

/// Opens a key with the algorithms that this backend has.
pub async fn open(config: &Config, locator: &str) -> Result<Arc<dyn WrappingKey>, Error> {
    open_with(config, locator, &[Algorithm::RsaOaep256], &[]).await
}

pub async fn open_with(
    config: &Config,
    locator: &str,
    algorithms: &[Algorithm],
    sign_algorithms: &[SignAlgorithm],
) -> Result<Arc<dyn WrappingKey>, Error> {
    let provider = Provider::new("vault-a", config, None).unwrap();
    provider.open(&OpenKey { locator, algorithms, sign_algorithms }).await
}

/// A call that may take `limit`.
pub fn call(limit: Duration) -> Call {
    Call { caller: CallerSlot(1), deadline: Instant::now() + limit }
}

/// Wraps and unwraps 32 bytes; gives the id under which the server logged it.
pub async fn round_trip(key: &dyn WrappingKey) -> Result<Option<String>, Error> {
    let parameters = Parameters::of(Algorithm::RsaOaep256);
    let material = KeyMaterial::copied_from(&[7; 32]);
    let wrapped = key.public_key().wrap(&material, &parameters).unwrap();
    let unwrapped = key.unwrap_key(&wrapped, &parameters, call(Duration::from_secs(10))).await?;
    assert_eq!(unwrapped.material.expose(), [7; 32]);
    Ok(unwrapped.backend_request_id)
}

mod anything {
    use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
    use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
    use rustls::{DigitallySignedStruct, Error, SignatureScheme};

    /// Takes any certificate: the test's own client only asks the server that it started.
    #[derive(Debug)]
    pub(super) struct Accepted;

    impl ServerCertVerifier for Accepted {
        fn verify_server_cert(
            &self,
            _end_entity: &CertificateDer<'_>,
            _intermediates: &[CertificateDer<'_>],
            _server_name: &ServerName<'_>,
            _ocsp_response: &[u8],
            _now: UnixTime,
        ) -> Result<ServerCertVerified, Error> {
            Ok(ServerCertVerified::assertion())
        }

        fn verify_tls12_signature(
            &self,
            _message: &[u8],
            _certificate: &CertificateDer<'_>,
            _signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn verify_tls13_signature(
            &self,
            _message: &[u8],
            _certificate: &CertificateDer<'_>,
            _signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            rustls::crypto::aws_lc_rs::default_provider()
                .signature_verification_algorithms
                .supported_schemes()
        }
    }
}
