//! A real Kubernetes API server and its etcd, with secrets that are encrypted by a plugin.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::prelude::{BASE64_STANDARD, Engine};
use e2e::process::{command, path_from_script, run};
use serde_json::{Value, json};
use tempfile::TempDir;
use test_backends::free_port;

/// How long either of them may take to answer.
const START_LIMIT: Duration = Duration::from_mins(2);

/// A running API server with one namespace.
pub(crate) struct ApiServer {
    folder: TempDir,
    program: PathBuf,
    etcdctl: PathBuf,
    etcd: Child,
    etcd_port: u16,
    server: Child,
    port: u16,
}

impl ApiServer {
    /// Starts both and waits until they serve. The first call on a machine builds the API server.
    pub(crate) fn start(socket: &Path) -> Self {
        let program = path_from_script("backends", &["kube-apiserver"]);
        let etcd_folder = path_from_script("etcd", &[]);
        let folder = tempfile::tempdir().unwrap();
        write_credentials(folder.path());
        let encryption = json!({
            "apiVersion": "apiserver.config.k8s.io/v1",
            "kind": "EncryptionConfiguration",
            "resources": [{ "resources": ["secrets"], "providers": [
                { "kms": { "apiVersion": "v2", "name": "claviger",
                    "endpoint": format!("unix://{}", socket.display()), "timeout": "3s" } },
                { "identity": {} },
            ]}],
        });
        fs::write(folder.path().join("encryption.yaml"), encryption.to_string()).unwrap();
        let (etcd_port, peer_port, port) = (free_port(), free_port(), free_port());
        let etcd = start_etcd(&etcd_folder, folder.path(), etcd_port, peer_port);
        let server = start_server(&program, folder.path(), etcd_port, port);
        let etcdctl = etcd_folder.join("etcdctl");
        let cluster = Self { folder, program, etcdctl, etcd, etcd_port, server, port };
        cluster.wait();
        cluster
    }

    /// Ends the API server and starts it anew; etcd goes on.
    pub(crate) fn restart(&mut self) {
        self.server.kill().unwrap();
        self.server.wait().unwrap();
        self.server = start_server(&self.program, self.folder.path(), self.etcd_port, self.port);
        self.wait();
    }

    /// Makes or replaces a secret with one value.
    pub(crate) fn write_secret(&self, name: &str, value: &str) {
        let secret = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": name },
            "data": { "value": BASE64_STANDARD.encode(value) } });
        if self.call("GET", &format!("/{name}"), None)["kind"] == "Secret" {
            self.put(name, &secret);
            return;
        }
        let made = self.call("POST", "", Some(&secret));
        assert_eq!(made["kind"], "Secret", "{made}\n{}", self.log());
    }

    /// Reads a secret and writes it back, as a storage migration does.
    pub(crate) fn write_again(&self, name: &str) {
        let secret = self.call("GET", &format!("/{name}"), None);
        self.put(name, &secret);
    }

    fn put(&self, name: &str, secret: &Value) {
        let put = self.call("PUT", &format!("/{name}"), Some(secret));
        assert_eq!(put["kind"], "Secret", "{put}\n{}", self.log());
    }

    /// A secret's value.
    pub(crate) fn read_secret(&self, name: &str) -> String {
        let secret = self.call("GET", &format!("/{name}"), None);
        let value =
            secret["data"]["value"].as_str().unwrap_or_else(|| panic!("{secret}\n{}", self.log()));
        String::from_utf8(BASE64_STANDARD.decode(value).unwrap()).unwrap()
    }

    /// What lies in etcd, as text as far as it is text.
    pub(crate) fn stored(&self, name: &str) -> String {
        let endpoint = format!("http://127.0.0.1:{}", self.etcd_port);
        let key = format!("/registry/secrets/default/{name}");
        let mut get = command(&self.etcdctl);
        get.env("ETCDCTL_API", "3").args([
            "--endpoints",
            &endpoint,
            "get",
            "--print-value-only",
            &key,
        ]);
        String::from_utf8_lossy(&run(&mut get).stdout).into_owned()
    }

    /// What the API server has said.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("server.log")).unwrap_or_default()
    }

    /// One call as an administrator: method, and path below the secrets of the namespace.
    fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        let url =
            format!("https://127.0.0.1:{}/api/v1/namespaces/default/secrets{path}", self.port);
        let mut curl = self.curl(&url);
        curl.args(["--request", method, "--header", "Content-Type: application/json"]);
        if let Some(body) = body {
            curl.arg("--data").arg(body.to_string());
        }
        serde_json::from_slice(&run(&mut curl).stdout).expect("the API server answers in JSON")
    }

    fn curl(&self, url: &str) -> Command {
        let mut curl = command("curl");
        curl.args([
            "--silent",
            "--show-error",
            "--insecure",
            "--cert",
            "admin.crt",
            "--key",
            "admin.key",
        ]);
        curl.current_dir(self.folder.path()).arg(url);
        curl
    }

    fn wait(&self) {
        let url = format!("https://127.0.0.1:{}/readyz", self.port);
        let until = Instant::now() + START_LIMIT;
        while self.curl(&url).output().expect("curl is there").stdout != b"ok" {
            assert!(Instant::now() < until, "{}", self.log());
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        for child in [&mut self.server, &mut self.etcd] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn start_etcd(programs: &Path, folder: &Path, port: u16, peer_port: u16) -> Child {
    let (client, peer) =
        (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{peer_port}"));
    let mut etcd = command(programs.join("etcd"));
    etcd.arg("--data-dir").arg(folder.join("etcd"));
    etcd.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
    etcd.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
    etcd.args(["--initial-cluster", &format!("default={peer}")]);
    spawn(&mut etcd, &folder.join("etcd.log"))
}

fn start_server(program: &Path, folder: &Path, etcd_port: u16, port: u16) -> Child {
    let mut server = command(program);
    server.args([
        &format!("--etcd-servers=http://127.0.0.1:{etcd_port}"),
        &format!("--secure-port={port}"),
        "--bind-address=127.0.0.1",
        "--cert-dir=.",
        "--client-ca-file=ca.crt",
        "--authorization-mode=RBAC",
        "--service-account-issuer=https://kubernetes.example",
        "--service-account-key-file=accounts.pub",
        "--service-account-signing-key-file=accounts.key",
        "--service-cluster-ip-range=10.0.0.0/24",
        "--encryption-provider-config=encryption.yaml",
    ]);
    spawn(server.current_dir(folder), &folder.join("server.log"))
}

fn spawn(command: &mut Command, log: &Path) -> Child {
    let log = File::options().create(true).append(true).open(log).unwrap();
    command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// A CA, an administrator's certificate and the keys of service accounts.
fn write_credentials(folder: &Path) {
    let script = "\
        openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=test-ca -keyout ca.key -out ca.crt
        openssl req -newkey rsa:2048 -nodes -subj /O=system:masters/CN=admin -keyout admin.key -out admin.csr
        openssl x509 -req -in admin.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -out admin.crt
        openssl genrsa -out accounts.key 2048
        openssl rsa -in accounts.key -pubout -out accounts.pub";
    run(command("sh").args(["-e", "-c", script]).current_dir(folder));
}
