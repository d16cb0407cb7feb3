//! Bitwarden's own command line program against the connector: it enrols users by SSO, stores items, and
//! reads them on other devices, over restarts and in both modes. The identity server and the vault are
//! the ones of `tests/bitwarden/server.mjs`.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use e2e::Daemon;
use e2e::process::{command, path_from_script};
use serde_json::{Value, json};

use crate::databases::sqlite3;
use crate::services::{Connector, Services, Stored, folder, new_key};

/// The program listens on one port of its own choice for the browser to come back.
static SIGN_IN: Mutex<()> = Mutex::new(());

/// A connector over TLS, and a server whose users have their keys in it.
struct Installation {
    services: Services,
    connector: Option<Connector>,
    configuration: PathBuf,
    address: SocketAddr,
    operations: SocketAddr,
    server: Child,
    url: String,
    program: PathBuf,
    ca: PathBuf,
    devices: usize,
    _alone: MutexGuard<'static, ()>,
}

/// The program with a folder of its own, signed in.
struct Device {
    folder: PathBuf,
    session: String,
}

/// How a user signs in.
enum By<'a> {
    /// In the browser, with this e-mail address.
    Sso(&'a str),
    /// By the API key of the user with this id.
    ApiKey(&'a str),
}

impl Installation {
    /// In shared-key mode, on SQLite.
    fn start(services: Services) -> Self {
        let alone = SIGN_IN.lock().unwrap_or_else(PoisonError::into_inner);
        let program = path_from_script("bitwarden-cli", &[]);
        let (certificate, key) =
            services.setup.files.pki.server().write(&services.path("."), "https");
        let [certificate, key] = [certificate, key].map(|path| path.display().to_string());
        let ca = services.path("https-ca.pem");
        fs::write(&ca, services.setup.files.pki.ca_pem()).unwrap();

        let stored = Stored::shared(services.sqlite("kc.db"));
        let (configuration, address, operations) = services.configuration(&stored);
        let connector = format!("https://localhost:{}", address.port());
        let mut server = command("node")
            .arg(folder("bitwarden/server.mjs"))
            .args([&certificate, &key, &connector])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut url = String::new();
        BufReader::new(server.stdout.take().unwrap()).read_line(&mut url).unwrap();
        let url = url.trim().to_owned();

        let text = fs::read_to_string(&configuration).unwrap();
        let text = text.replace(
            &format!("url = '{}'", services.issuer.name()),
            &format!("url = '{url}/identity'\nca = '{}'", ca.display()),
        );
        let tls = format!("tls = {{ certificate = '{certificate}', private_key = '{key}' }}");
        fs::write(&configuration, text.replace("proxies = ['127.0.0.1']", &tls)).unwrap();
        let mut installation = Self {
            services,
            connector: None,
            configuration,
            address,
            operations,
            server,
            url,
            program,
            ca,
            devices: 0,
            _alone: alone,
        };
        installation.start_connector();
        installation
    }

    fn start_connector(&mut self) {
        let connector = Services::spawn_at(&self.configuration, self.address, self.operations);
        connector.wait_until_healthy();
        self.connector = Some(connector);
    }

    /// Ends the connector and the daemon, and starts both anew.
    fn restart(&mut self) {
        assert_eq!(self.connector.take().unwrap().stop(), Some(0));
        drop(self.services.daemon.take());
        self.services.daemon = Some(Daemon::start(&mut self.services.setup.files));
        self.start_connector();
    }

    /// Serves in another mode, and moves each user to it.
    fn migrate(&mut self, from: &str, to: &str) {
        let text = fs::read_to_string(&self.configuration).unwrap();
        let (old, new) = (format!("mode = '{from}'"), format!("mode = '{to}'"));
        assert!(text.contains(&old), "{text}");
        fs::write(&self.configuration, text.replace(&old, &new)).unwrap();
        self.restart();
        let output = self.operator(&["migrate", to]);
        assert!(output.status.success(), "{output:?}");
    }

    /// A command of the connector.
    fn operator(&self, arguments: &[&str]) -> Output {
        command(env!("CARGO_BIN_EXE_claviger-connector"))
            .args(arguments)
            .arg("--config")
            .arg(&self.configuration)
            .output()
            .unwrap()
    }

    /// The ids of the users who have a key here.
    fn users(&self) -> Vec<String> {
        let output = self.operator(&["users", "list"]);
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(|line| line.split('\t').next().unwrap().to_owned()).collect()
    }

    /// Signs in on a new device; what the program said where that failed.
    fn sign_in(&mut self, by: &By<'_>) -> Result<Device, String> {
        let mut attempts = 0;
        loop {
            attempts += 1;
            match self.sign_in_once(by) {
                // The program at times loses its own token between two of its steps, before it has asked
                // the connector for anything; on a new device it may be tried again.
                Err(said) if attempts < 5 && said.contains("Access token not found") => {
                    println!("attempt {attempts}: {said}");
                }
                outcome => return outcome,
            }
        }
    }

    fn sign_in_once(&mut self, by: &By<'_>) -> Result<Device, String> {
        self.devices += 1;
        let folder = self.services.path(&format!("device-{}", self.devices));
        fs::create_dir(&folder).unwrap();
        let mut device = Device { folder, session: String::new() };
        let connector = format!("https://localhost:{}", self.address.port());
        let url = self.url.as_str();
        let (server, login, environment) = match by {
            // The program takes the connector's address from the server's answer.
            By::Sso(email) => (vec![url], ["--sso", "ORGANISATION"], vec![("SSO_USER", *email)]),
            By::ApiKey(id) => (
                vec![url, "--key-connector", &connector],
                ["--apikey", "--raw"],
                vec![("BW_CLIENTID", *id), ("BW_CLIENTSECRET", "not checked")],
            ),
        };
        self.said(&device, &[&["config", "server"], &server[..]].concat(), &[])?;
        let login = [&["login", "--raw"], &login[..]].concat();
        device.session = self.said(&device, &login, &environment)?;
        Ok(device)
    }

    /// What the program printed, or said where it failed. Enter answers the one question that it has:
    /// whether the connector's domain is right.
    fn said(
        &self,
        device: &Device,
        arguments: &[&str],
        environment: &[(&str, &str)],
    ) -> Result<String, String> {
        let path = std::env::var("PATH").unwrap();
        let mut bw = command("timeout");
        bw.arg("300").arg(&self.program).args(arguments).current_dir(&device.folder);
        // Where `xdg-open` is.
        bw.env("PATH", format!("{}:{path}", folder("bitwarden").display()));
        bw.env("NODE_EXTRA_CA_CERTS", &self.ca).env("BITWARDENCLI_APPDATA_DIR", &device.folder);
        bw.envs(environment.iter().copied());
        if !device.session.is_empty() {
            bw.env("BW_SESSION", &device.session);
        }
        bw.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut bw = bw.spawn().unwrap();
        // Fails where the program has ended already.
        let _ = bw.stdin.take().unwrap().write_all(b"\n");
        let output = bw.wait_with_output().unwrap();
        let [out, err] = [output.stdout, output.stderr].map(|b| String::from_utf8(b).unwrap());
        if output.status.success() { Ok(out.trim().to_owned()) } else { Err(out + &err) }
    }

    /// Stores an item with a password, which the program encrypts under the user's key.
    fn store(&self, device: &Device, name: &str, password: &str) {
        let template = self.said(device, &["get", "template", "item"], &[]).unwrap();
        let mut item: Value = serde_json::from_str(&template).unwrap();
        item["name"] = json!(name);
        item["login"] = json!({ "username": "anna", "password": password, "uris": [] });
        let item = STANDARD.encode(item.to_string());
        self.said(device, &["create", "item", &item], &[]).unwrap();
    }

    /// The password of an item, decrypted by the program.
    fn password(&self, device: &Device, name: &str) -> String {
        self.said(device, &["get", "password", name], &[]).unwrap()
    }

    /// The same on a device that has never seen the user.
    fn password_elsewhere(&mut self, by: &By<'_>, name: &str) -> String {
        let device = self.sign_in(by);
        let log = || self.connector.as_ref().unwrap().log();
        let device = device.unwrap_or_else(|said| panic!("{said}\n{}", log()));
        self.password(&device, name)
    }

    fn unwraps_of(&self, user: &str) -> usize {
        let named = format!("user:{user}:");
        let records = self.services.setup.files.audit_records();
        let of_user = |record: &&Value| {
            record["operation"] == "unwrap"
                && record["outcome"] == "ok"
                && record["caller_request_id"].as_str().is_some_and(|id| id.starts_with(&named))
        };
        records.iter().filter(of_user).count()
    }
}

impl Drop for Installation {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

#[test]
#[ignore = "long: installs Bitwarden's command line program, which needs node and npm"]
fn bitwardens_own_program_decrypts_an_item_over_restarts_and_in_both_modes() {
    let mut installation = Installation::start(Services::softhsm());
    let (anna, password) = (By::Sso("anna@example.org"), new_key());
    let first = installation.sign_in(&anna).unwrap();
    let [user] = &installation.users()[..] else { panic!("one user is enrolled") };
    let (user, api_key) = (user.clone(), format!("user.{user}"));
    installation.store(&first, "mail", &password);
    assert_eq!(installation.password_elsewhere(&anna, "mail"), password);

    installation.restart();
    assert_eq!(installation.password_elsewhere(&By::ApiKey(&api_key), "mail"), password);

    installation.migrate("shared-key", "per-user");
    let database = installation.services.path("kc.db");
    assert_eq!(sqlite3(&database, "SELECT count(*) FROM UserKeys WHERE Key IS NULL"), "1");
    let before = installation.unwraps_of(&user);
    assert_eq!(installation.password_elsewhere(&anna, "mail"), password);
    assert_eq!(installation.unwraps_of(&user), before + 1, "one unwrap in the token for this read");
    installation.restart();
    assert_eq!(installation.password_elsewhere(&By::ApiKey(&api_key), "mail"), password);

    installation.migrate("per-user", "shared-key");
    assert_eq!(sqlite3(&database, "SELECT count(*) FROM UserKeys WHERE Key IS NULL"), "0");
    assert_eq!(installation.password_elsewhere(&anna, "mail"), password);
    assert_eq!(installation.users(), [user]);
}

#[test]
#[ignore = "long: installs Bitwarden's command line program, which needs node and npm"]
fn a_user_whose_enrolment_stopped_half_way_gets_in_after_users_remove() {
    let mut installation = Installation::start(Services::software());
    let (user, password) = (By::Sso("half-way@example.org"), new_key());
    // The key is stored here, and then the server does not take its part.
    let said = installation.sign_in(&user).err().expect("the server refuses");
    assert!(said.contains("the server refuses the first time"), "{said}");
    let said = installation.sign_in(&user).err().expect("there is a key already");
    assert!(said.contains("Key Connector error"), "{said}");

    let [id] = &installation.users()[..] else { panic!("one user has a key here") };
    let output = installation.operator(&["users", "remove", id, "--yes"]);
    assert!(output.status.success(), "{output:?}");
    let device = installation.sign_in(&user).unwrap();
    installation.store(&device, "mail", &password);
    assert_eq!(installation.password_elsewhere(&user, "mail"), password);
}
