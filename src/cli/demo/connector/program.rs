//! `claviger-connector` as a process of its own, and requests to it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use super::super::failed;
use super::issuer::Issuer;
use super::{APPROVALS, ORGANIZATION, nonce};
use crate::cli::failure::{Exit, Failure};
use crate::cli::local_daemon::{KEY, LocalDaemon, write};

const NAME: &str = "claviger-connector";
/// How long it may take until it is healthy.
const READY_WITHIN: Duration = Duration::from_secs(20);

/// The program: the one that is named, or beside this one, or in PATH.
pub(super) fn program(named: Option<&Path>) -> Result<PathBuf, Failure> {
    let beside = std::env::current_exe().ok().map(|program| program.with_file_name(NAME));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let in_path = std::env::split_paths(&path).map(|folder| folder.join(NAME));
    let mut places = match named {
        Some(named) => vec![named.to_owned()],
        None => beside.into_iter().chain(in_path).collect(),
    }
    .into_iter();
    places.find(|place| place.is_file()).ok_or_else(|| {
        let message = named.map_or_else(
            || format!("{NAME} is neither beside this program nor in PATH"),
            |named| format!("there is no file {}", named.display()),
        );
        Failure::new(Exit::Usage, message).advise(format!(
            "Build it with `cargo build --package {NAME}`, install the package {NAME}, or name it with \
             --connector-program."
        ))
    })
}

/// The running connector.
#[derive(Debug)]
pub(super) struct Connector {
    child: Child,
    pub(super) config: PathBuf,
    log: PathBuf,
    url: String,
    client: reqwest::Client,
}

/// What an approver is shown.
#[derive(Debug)]
pub(super) struct Requests(Vec<Value>);

impl Connector {
    /// Starts it with a new database and waits until it is healthy.
    pub(super) async fn start(
        program: &Path,
        local: &LocalDaemon,
        issuer: &Issuer,
        port: u16,
    ) -> Result<Self, Failure> {
        let (config, log) = (local.dir.join("connector.toml"), local.dir.join("connector.log"));
        for end in ["", "-wal", "-shm"] {
            // Of the last run, if there was one.
            let _ = std::fs::remove_file(local.dir.join(format!("connector.db{end}")));
        }
        write(&config, configuration(issuer.url(), port).as_bytes())?;
        let file = File::create(&log).map_err(|error| failed("connector.log", &error))?;
        let child = Command::new(program)
            .args(["serve", "--config"])
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| failed("starting the connector", &error))?;
        let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(20)).build();
        let client = client.map_err(|error| failed("the client", &error))?;
        let url = format!("http://localhost:{port}");
        let mut connector = Self { child, config, log, url, client };
        connector.wait_until_ready().await?;
        Ok(connector)
    }

    async fn wait_until_ready(&mut self) -> Result<(), Failure> {
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            let is_good = |path: &'static str| {
                let asked = self.client.get(format!("{}{path}", self.url)).send();
                async move { asked.await.is_ok_and(|answer| answer.status().is_success()) }
            };
            if is_good("/health").await && is_good("/approvals/settings").await {
                return Ok(());
            }
            let has_ended = matches!(self.child.try_wait(), Ok(Some(_)));
            if has_ended || Instant::now() > deadline {
                return Err(Failure::new(Exit::Unavailable, "the connector did not become ready")
                    .advise(format!("Its log is {}.", self.log.display())));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Where it listens.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// Asks it to drain and waits for its end.
    pub(super) async fn stop(mut self) {
        if let Some(pid) = self.child.id().and_then(|pid| i32::try_from(pid).ok())
            && let Some(pid) = rustix::process::Pid::from_raw(pid)
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.child.wait().await;
    }

    /// One request; the body of an answer that is good, null where it has none. None: 404.
    pub(super) async fn ask(
        &self,
        method: Method,
        path: &str,
        header: (&str, &str),
        body: Option<&Value>,
    ) -> Result<Option<Value>, Failure> {
        let request = self.client.request(method, format!("{}{path}", self.url));
        let mut request = request.header(header.0, header.1);
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        let answer = request.send().await.map_err(|error| failed("the connector", &error))?;
        let status = answer.status();
        let text = answer.text().await.map_err(|error| failed("the connector", &error))?;
        if status == http::StatusCode::NOT_FOUND {
            return Ok(None);
        }
        if !status.is_success() {
            let message = format!("the connector answers {path} with {status} {text}");
            return Err(Failure::new(Exit::Failure, message)
                .advise(format!("Its log is {}.", self.log.display())));
        }
        Ok(Some(serde_json::from_str(&text).unwrap_or_default()))
    }

    /// The same with a bearer token, where there must be an answer.
    pub(super) async fn ask_as(
        &self,
        token: &str,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, Failure> {
        let answer =
            self.ask(method, path, ("authorization", &format!("Bearer {token}")), body).await?;
        let nothing = || Failure::new(Exit::Failure, format!("the connector has no {path}"));
        answer.ok_or_else(nothing)
    }

    /// What an approver sees.
    pub(super) async fn list(&self, token: &str) -> Result<Requests, Failure> {
        let mut listed = self.ask_as(token, Method::GET, "/auth-requests", None).await?;
        Ok(Requests(serde_json::from_value(listed["requests"].take()).unwrap_or_default()))
    }

    /// Approves with an ID token.
    pub(super) async fn approve(&self, id: &str, token: &str, expires: u64) -> Result<(), Failure> {
        let body = json!({ "idToken": token, "expires": expires });
        let path = format!("/auth-requests/{id}/approve");
        self.ask_as(token, Method::POST, &path, Some(&body)).await.map(drop)
    }
}

impl Requests {
    /// What an approver's ID token must have as `nonce` to approve a request.
    pub(super) fn nonce_of(&self, id: &str, expires: u64) -> Result<String, Failure> {
        let decoded = |value: &Value| STANDARD.decode(value.as_str()?).ok();
        let nonce = self.0.iter().find(|request| request["id"] == id).and_then(|request| {
            let wrapped: [u8; 32] = decoded(&request["wrappedSha256"])?.try_into().ok()?;
            Some(nonce(&wrapped, &decoded(&request["publicKey"])?, expires))
        });
        nonce.ok_or_else(|| Failure::new(Exit::Failure, "the request is not in the list"))
    }
}

fn configuration(issuer: &str, port: u16) -> String {
    format!(
        r#"# Made by `claviger demo --connector`; yours to change.

[server]
listen    = "127.0.0.1:{port}"
web_vault = "http://localhost:{port}"
proxies   = ["127.0.0.1"]

[issuer]
url = "{issuer}"

[keys]
client = "client.toml"
key    = "{KEY}"
mode   = "per-user"

[database]
kind = "sqlite"
file = "connector.db"

[approvals]
key       = "{ORGANIZATION}"
issuer    = {{ url = "{issuer}" }}
client_id = "{APPROVALS}"
approvers = {{ claims = {{ groups = "device-approvers" }} }}
"#
    )
}
