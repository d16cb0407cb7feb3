//! A real OpenBao or HashiCorp Vault in dev mode, with a Transit engine at `transit`.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use claviger_provider_api::PublicKey;
use reqwest::Method;
use rustix::process::Signal;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};

use crate::import::{modulus_bits, wrapped_for_import};
use crate::process::{Process, command, free_port, program_from_script};

/// The root token.
pub const ROOT: &str = "root";

/// Which server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// OpenBao.
    OpenBao,
    /// HashiCorp Vault: only ever a test server.
    Vault,
}

impl Backend {
    /// As `scripts/backends` calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::OpenBao => "openbao",
            Self::Vault => "vault",
        }
    }
}

/// A running server. It ends when dropped.
#[derive(Debug)]
pub struct Server {
    /// Which one.
    pub backend: Backend,
    /// Where it is: `http://127.0.0.1:PORT`, or `https`.
    pub address: String,
    process: Process,
    http: reqwest::Client,
    tls: bool,
}

impl Server {
    /// Starts over http. The first call on a machine builds the server.
    pub async fn start(backend: Backend) -> Self {
        Self::start_with(backend, false).await
    }

    /// Starts over https, with a CA of its own ([`Server::ca`]).
    pub async fn start_tls(backend: Backend) -> Self {
        Self::start_with(backend, true).await
    }

    async fn start_with(backend: Backend, tls: bool) -> Self {
        let program = program_from_script("backends", &[backend.name()]);
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
        let port = free_port();
        let process = Process::start(|folder| {
            let mut command = command(program);
            command
                .args(["server", "-dev", "-dev-no-store-token"])
                .arg(format!("-dev-root-token-id={ROOT}"))
                .arg(format!("-dev-listen-address=127.0.0.1:{port}"));
            if tls {
                command.arg("-dev-tls").arg(format!("-dev-tls-cert-dir={}", folder.display()));
            }
            command
        });
        let scheme = if tls { "https" } else { "http" };
        let address = format!("{scheme}://127.0.0.1:{port}");
        let mut server = Self { backend, address, process, http: client(None), tls };
        let until = Instant::now() + Duration::from_mins(2);
        while Instant::now() < until {
            if !server.process.is_running() {
                return None;
            }
            // Written while the server starts.
            if let Some(ca) = server.ca().and_then(|path| std::fs::read(path).ok()) {
                server.http = client(Some(&ca));
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
        let answer = request.send().await.expect("the server answers");
        let status = answer.status().as_u16();
        let text = answer.text().await.expect("the whole answer comes");
        (status, serde_json::from_str(&text).unwrap_or(Value::Null))
    }

    /// Posts.
    pub async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        self.ask(Method::POST, path, Some(body)).await
    }

    /// Reads what must be there.
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

    /// Imports an RSA key (PKCS#8, DER) as `transit/NAME`, version 1.
    pub async fn import(&self, name: &str, pkcs8: &[u8]) {
        let answer = self.get("transit/wrapping_key").await;
        let pem = answer["data"]["public_key"].as_str().expect("a wrapping key in PEM");
        let pem = rustls::pki_types::SubjectPublicKeyInfoDer::from_pem_slice(pem.as_bytes());
        let wrapping_key = PublicKey::from_spki(&pem.expect("good PEM")).expect("an RSA key");
        let body = json!({
            "ciphertext": STANDARD.encode(wrapped_for_import(&wrapping_key, pkcs8)),
            "hash_function": "SHA256",
            "type": format!("rsa-{}", modulus_bits(pkcs8)),
        });
        self.set(&format!("transit/keys/{name}/import"), body).await;
    }

    /// Wraps under `transit/NAME`, as Transit itself does: OAEP with SHA-256.
    pub async fn wrap(&self, name: &str, material: &[u8]) -> Vec<u8> {
        let body = json!({ "plaintext": STANDARD.encode(material) });
        let answer = self.set(&format!("transit/encrypt/{name}"), body).await;
        let wrapped = answer["data"]["ciphertext"].as_str().expect("a value that is wrapped");
        let wrapped = wrapped.rsplit(':').next().unwrap_or_default();
        STANDARD.decode(wrapped).expect("it is base64")
    }

    /// Makes an AppRole `claviger` with this policy (HCL), whose tokens live for `ttl`; gives the
    /// role's id and a secret id.
    pub async fn approle(&self, policy: &str, ttl: &str, max_ttl: &str) -> (String, String) {
        self.set("sys/policies/acl/claviger", json!({"policy": policy})).await;
        self.set("sys/auth/approle", json!({"type": "approle"})).await;
        let role = json!({
            "token_policies": ["claviger"], "token_ttl": ttl, "token_max_ttl": max_ttl,
        });
        self.set("auth/approle/role/claviger", role).await;
        let text = |value: &Value| value.as_str().expect("an id").to_owned();
        let role_id = self.get("auth/approle/role/claviger/role-id").await;
        let secret = self.set("auth/approle/role/claviger/secret-id", json!({})).await;
        (text(&role_id["data"]["role_id"]), text(&secret["data"]["secret_id"]))
    }

    /// Ends every token that an AppRole gave.
    pub async fn revoke_approle_tokens(&self) {
        self.set("sys/leases/revoke-prefix/auth/approle/login", json!({"sync": true})).await;
    }

    /// Makes a token with a policy of that name, for an hour.
    pub async fn token(&self, policy: &str) -> String {
        let body = json!({"policies": [policy], "ttl": "1h"});
        let answer = self.set("auth/token/create", body).await;
        answer["auth"]["client_token"].as_str().expect("a token").to_owned()
    }

    /// The least policy, as `docs/backends/vault-transit.md` prints it.
    pub fn least_policy() -> String {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let page = root.join("docs/backends/vault-transit.md");
        let page = std::fs::read_to_string(page).expect("the page is there");
        let policy = page.split_once("```hcl\n").and_then(|(_, rest)| rest.split_once("```"));
        policy.expect("the page has a policy").0.to_owned()
    }

    /// Seals it: from then on it answers nothing until it is unsealed.
    pub async fn seal(&self) {
        self.set("sys/seal", json!({})).await;
    }

    /// Unseals it with this share.
    pub async fn unseal(&self, share: &str) {
        self.set("sys/unseal", json!({"key": share})).await;
    }

    /// The one share of the seal, which dev mode prints a moment after it serves.
    pub async fn unseal_share(&self) -> String {
        let until = Instant::now() + Duration::from_mins(1);
        loop {
            let log = self.process.log();
            if let Some(share) = log.lines().find_map(|line| line.strip_prefix("Unseal Key: ")) {
                return share.trim().to_owned();
            }
            assert!(Instant::now() < until, "no share of the seal in {log}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Writes a file of mode 0600 into the server's folder.
    pub fn secret_file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.process.folder().join(name);
        std::fs::write(&path, content).expect("the server's folder is writable");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))
            .expect("it is our own file");
        path
    }

    /// The CA of its certificate, PEM; none over http.
    pub fn ca(&self) -> Option<PathBuf> {
        self.tls.then(|| self.process.folder().join("vault-ca.pem"))
    }

    /// Its folder, which ends with it.
    pub fn folder(&self) -> &Path {
        self.process.folder()
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Stops the server in the middle of whatever it does, without ending it. It stands still when this
    /// returns.
    pub fn freeze(&self) {
        self.process.stop();
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.process.signal(Signal::CONT);
    }
}

/// A client of the tests' own, so that nothing here depends on what is tested. Without a CA it
/// trusts no certificate, which is enough for http.
fn client(ca: Option<&[u8]>) -> reqwest::Client {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca.unwrap_or_default()).flatten() {
        roots.add(certificate).expect("the server wrote a CA certificate");
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has TLS 1.2 and 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let client = reqwest::Client::builder().no_proxy().tls_backend_preconfigured(tls).build();
    client.expect("a client of plain options")
}
