//! A real Keycloak: its discovery, its tokens, its keys that change, and two ways to set it up wrong.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use e2e::doctor;
use e2e::issuer::rsa_jwk;
use e2e::process::{command, path_from_script};
use e2e::setup::KEY;
use e2e::{Connection, Daemon, RsaKey, Setup};
use prost::Message;
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};
use tonic::Code;

const ADMIN: &str = "admin";
const PASSWORD: &str = "only-for-this-test";

/// A server with the realm `corp`, ended by its own process id.
struct Keycloak {
    child: Child,
    url: String,
    http: reqwest::Client,
}

impl Keycloak {
    async fn start() -> Self {
        let folder = path_from_script("keycloak", &[]);
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut child = command("bash")
            .arg(folder.join("bin/kc.sh"))
            .args(["start-dev", "--db=dev-mem", "--http-host=127.0.0.1"])
            .arg(format!("--http-port={port}"))
            .env("KC_BOOTSTRAP_ADMIN_USERNAME", ADMIN)
            .env("KC_BOOTSTRAP_ADMIN_PASSWORD", PASSWORD)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .expect("bash starts");
        // Whatever it writes has to be read.
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        std::thread::spawn(move || while let Some(Ok(_)) = lines.next() {});
        let url = format!("http://127.0.0.1:{port}");
        let keycloak = Self { child, url, http: reqwest::Client::new() };
        let begun = Instant::now();
        while keycloak.get("/realms/master/.well-known/openid-configuration").await.is_none() {
            assert!(begun.elapsed() < Duration::from_mins(5), "Keycloak does not start");
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        keycloak.admin("POST", "/admin/realms", &json!({ "realm": "corp", "enabled": true })).await;
        keycloak.realm("POST", "/groups", &json!({ "name": "hsm-approvers" })).await;
        keycloak.realm("POST", "/clients", &client("cli", true)).await;
        keycloak.realm("POST", "/clients", &client("elsewhere", false)).await;
        keycloak.realm("POST", "/users", &user("alice", &["/hsm-approvers"])).await;
        keycloak.realm("POST", "/users", &user("bob", &[])).await;
        keycloak
    }

    fn issuer(&self) -> String {
        format!("{}/realms/corp", self.url)
    }

    async fn get(&self, path: &str) -> Option<Value> {
        let answer = self.http.get(format!("{}{path}", self.url)).send().await.ok()?;
        serde_json::from_str(&answer.text().await.ok()?).ok()
    }

    /// What a user gets with a password: `access_token` and `id_token`.
    async fn sign_in(&self, realm: &str, client: &str, user: &str) -> Value {
        let form = format!(
            "grant_type=password&client_id={client}&username={user}&password={PASSWORD}&scope=openid"
        );
        let url = format!("{}/realms/{realm}/protocol/openid-connect/token", self.url);
        let answer = self.http.post(url).body(form);
        let answer = answer.header("content-type", "application/x-www-form-urlencoded");
        let answer = answer.send().await.unwrap().text().await.unwrap();
        let tokens: Value = serde_json::from_str(&answer).unwrap();
        assert!(tokens["access_token"].is_string(), "{answer}");
        tokens
    }

    async fn access_token(&self, client: &str, user: &str) -> String {
        let tokens = self.sign_in("corp", client, user).await;
        tokens["access_token"].as_str().unwrap().to_owned()
    }

    async fn admin(&self, method: &str, path: &str, body: &Value) -> Value {
        let tokens = self.sign_in("master", "admin-cli", ADMIN).await;
        let request = self.http.request(method.parse().unwrap(), format!("{}{path}", self.url));
        let answer = request
            .bearer_auth(tokens["access_token"].as_str().unwrap())
            .header("content-type", "application/json")
            .body(if body.is_null() { String::new() } else { body.to_string() })
            .send()
            .await
            .unwrap();
        let (status, text) = (answer.status(), answer.text().await.unwrap());
        assert!(status.is_success(), "{method} {path}: {status} {text}");
        serde_json::from_str(&text).unwrap_or_default()
    }

    async fn realm(&self, method: &str, path: &str, body: &Value) -> Value {
        self.admin(method, &format!("/admin/realms/corp{path}"), body).await
    }

    /// A new key that signs from now on.
    async fn change_key(&self, priority: u32) {
        let key = json!({
            "name": format!("key-{priority}"), "providerId": "rsa-generated",
            "providerType": "org.keycloak.keys.KeyProvider",
            "config": { "priority": [priority.to_string()], "keySize": ["2048"] },
        });
        self.realm("POST", "/components", &key).await;
    }

    /// The `kid` that signs now.
    async fn kid(&self) -> String {
        let keys = self.realm("GET", "/keys", &Value::Null).await;
        keys["active"]["RS256"].as_str().unwrap().to_owned()
    }
}

impl Drop for Keycloak {
    fn drop(&mut self) {
        // The script starts Java as a child of its own.
        let group = Pid::from_child(&self.child);
        let _ = kill_process_group(group, Signal::KILL);
        let _ = self.child.wait();
    }
}

/// A public client; its access tokens have the user's groups, and are for the daemon if it says so.
fn client(name: &str, for_the_daemon: bool) -> Value {
    let mut mappers = vec![json!({
        "name": "groups", "protocol": "openid-connect",
        "protocolMapper": "oidc-group-membership-mapper",
        "config": {
            "claim.name": "groups", "full.path": "false", "access.token.claim": "true",
            "id.token.claim": "true",
        },
    })];
    if for_the_daemon {
        mappers.push(json!({
            "name": "audience", "protocol": "openid-connect",
            "protocolMapper": "oidc-audience-mapper",
            "config": {
                "included.custom.audience": "claviger", "access.token.claim": "true",
                "id.token.claim": "true",
            },
        }));
    }
    json!({
        "clientId": name, "publicClient": true, "directAccessGrantsEnabled": true,
        "protocolMappers": mappers,
    })
}

fn user(name: &str, groups: &[&str]) -> Value {
    json!({
        "username": name, "enabled": true, "email": format!("{name}@example.org"),
        "emailVerified": true, "firstName": name, "lastName": name, "groups": groups,
        "credentials": [{ "type": "password", "value": PASSWORD, "temporary": false }],
    })
}

/// A daemon whose caller `approver` is in the group.
fn setup(keycloak: &Keycloak) -> Setup {
    let mut setup = Setup::software();
    setup.files.set("issuers.corp.issuer", keycloak.issuer());
    setup.files.set("issuers.corp.audiences", vec![toml::Value::from("claviger")]);
    let groups = r#"issuer = "corp", claims = { groups = "hsm-approvers" }"#;
    setup.files.token_caller("approver", groups, &[KEY], &["unwrap"]);
    setup
}

async fn ask(setup: &Setup, connection: &Connection, token: &str) -> Code {
    let body = e2e::connection::frame(&setup.request().encode_to_vec());
    let bearer = format!("Bearer {token}");
    let headers = [("authorization", bearer.as_str())];
    connection.call("/claviger.v1.KeyService/Unwrap", body, &headers).await.unwrap().code()
}

/// Waits until this is the reason of the last refusal in the audit log: none is waited for by its answer.
async fn is_last_reason(setup: &Setup, expected: &str) {
    let begun = Instant::now();
    loop {
        let records = setup.files.audit_records();
        let last = records.iter().rev().find_map(|record| record["reason"].as_str());
        if last == Some(expected) {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "{last:?}, not {expected}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: runs Keycloak, which needs Java 17 and mvn"]
async fn keycloaks_tokens_are_callers_while_its_keys_change_and_its_mistakes_are_told() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let keycloak = Keycloak::start().await;
    let mut setup = setup(&keycloak);
    let daemon = setup.start();
    let connection = setup.connect(&daemon).await;

    let alice = keycloak.access_token("cli", "alice").await;
    assert_eq!(ask(&setup, &connection, &alice).await, Code::Ok, "{}", daemon.log());
    let bob = keycloak.access_token("cli", "bob").await;
    assert_eq!(ask(&setup, &connection, &bob).await, Code::Unauthenticated);
    is_last_reason(&setup, "no_caller_matches").await;
    let elsewhere = keycloak.access_token("elsewhere", "alice").await;
    assert_eq!(ask(&setup, &connection, &elsewhere).await, Code::Unauthenticated);
    is_last_reason(&setup, "token_audience").await;
    let (_, report) = doctor::report(&setup.files);
    let issuer = &report["issuers"][0];
    assert_eq!((&issuer["issuer"], &issuer["ok"]), (&json!("corp"), &json!(true)), "{report}");
    assert!(issuer["notes"].to_string().contains("Keycloak"), "{report}");

    change_keys_under_load(&keycloak, &setup, &daemon).await;

    keycloak.realm("PUT", "", &json!({ "defaultSignatureAlgorithm": "HS256" })).await;
    let secret = keycloak.access_token("cli", "alice").await;
    assert_eq!(ask(&setup, &connection, &secret).await, Code::Unauthenticated);
    is_last_reason(&setup, "token_algorithm").await;
    assert!(daemon.log().contains("choose RS256"), "{}", daemon.log());
    keycloak.realm("PUT", "", &json!({ "defaultSignatureAlgorithm": "RS256" })).await;

    let encrypted = encrypted_token(&keycloak).await;
    assert_eq!(encrypted.split('.').count(), 5);
    assert_eq!(ask(&setup, &connection, &encrypted).await, Code::Unauthenticated);
    is_last_reason(&setup, "token_encrypted").await;
    assert!(daemon.log().contains("remove the encryption key"), "{}", daemon.log());

    let again = keycloak.access_token("cli", "alice").await;
    assert_eq!(ask(&setup, &connection, &again).await, Code::Ok);
}

/// Its keys change twice while calls go on, each with the newest token.
async fn change_keys_under_load(keycloak: &Keycloak, setup: &Setup, daemon: &Daemon) {
    let token = Arc::new(std::sync::Mutex::new(keycloak.access_token("cli", "alice").await));
    let (done, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut callers = Vec::new();
    for _ in 0..4 {
        let connection = setup.connect(daemon).await;
        let (token, done, calls) = (Arc::clone(&token), Arc::clone(&done), Arc::clone(&calls));
        let request = setup.request().encode_to_vec();
        callers.push(tokio::spawn(async move {
            while !done.load(Ordering::Relaxed) {
                let bearer = format!("Bearer {}", token.lock().unwrap());
                let body = e2e::connection::frame(&request);
                let headers = [("authorization", bearer.as_str())];
                let path = "/claviger.v1.KeyService/Unwrap";
                let answer = connection.call(path, body, &headers).await.unwrap();
                assert_eq!(answer.code(), Code::Ok, "{answer}");
                calls.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }
    let mut kids = vec![keycloak.kid().await];
    for priority in [200, 300] {
        keycloak.change_key(priority).await;
        kids.push(keycloak.kid().await);
        let before = calls.load(Ordering::Relaxed);
        let newest = keycloak.access_token("cli", "alice").await;
        *token.lock().unwrap() = newest;
        while calls.load(Ordering::Relaxed) < before + 100 {
            let failed = callers.iter().any(tokio::task::JoinHandle::is_finished);
            assert!(!failed, "a call failed:\n{}", daemon.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    done.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.await.unwrap();
    }
    kids.sort_unstable();
    kids.dedup();
    assert_eq!(kids.len(), 3, "the key changed twice");
    println!("{} calls, 0 failed, while the key changed twice", calls.load(Ordering::Relaxed));
}

/// An ID token of a client that has an encryption key.
async fn encrypted_token(keycloak: &Keycloak) -> String {
    let mut jwk = rsa_jwk(&RsaKey::shared(2048), Some("e"));
    e2e::issuer::change(&mut jwk, &json!({ "use": "enc", "alg": "RSA-OAEP" }));
    let mut encrypting = client("encrypting", true);
    encrypting["attributes"] = json!({
        "id.token.encrypted.response.alg": "RSA-OAEP",
        "id.token.encrypted.response.enc": "A256GCM",
        "use.jwks.string": "true", "jwks.string": json!({ "keys": [jwk] }).to_string(),
    });
    keycloak.realm("POST", "/clients", &encrypting).await;
    let tokens = keycloak.sign_in("corp", "encrypting", "alice").await;
    tokens["id_token"].as_str().unwrap().to_owned()
}
