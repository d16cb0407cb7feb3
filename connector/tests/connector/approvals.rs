//! Approvals: a device, played by WebCrypto in Node, gets a user's key once a person has released it, and
//! in no other way. The organisation's key is in a SoftHSM token.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use claviger_provider_api::Algorithm;
use e2e::daemon_files::Version;
use e2e::issuer::{change, seconds};
use e2e::process::{command, run};
use e2e::{Identity, RsaKey, Setup, Token};
use serde_json::{Value, json};

use crate::databases::sqlite3;
use crate::request::{Reply, send};
use crate::services::{Connector, Services, Stored, folder, new_user};

const ORGANIZATION: &str = "recovery";

/// A connector with approvals, the issuer of its approvers, and one user.
pub(crate) struct Stage {
    pub(crate) services: Services,
    pub(crate) corp: e2e::Issuer,
    user: String,
    email: String,
}

impl Stage {
    pub(crate) fn new() -> Self {
        let token = Token::softhsm();
        let mut setup = Setup::on(&token);
        let organization = RsaKey::generate(2048);
        token.import(&organization, ORGANIZATION, "02");
        let version = Version::active(1, &organization, "hsm-a", "pkcs11:object=recovery");
        setup.files.key(ORGANIZATION, &[Algorithm::RsaOaep.name()], vec![version]);
        let corp = e2e::Issuer::start();
        setup.files.set("issuers.corp.issuer", corp.name());
        setup.files.set("issuers.corp.audiences", vec![toml::Value::from("claviger")]);
        setup.caller = Self::caller(&mut setup);
        let services = Services::of(setup, Some(token));
        let user = new_user();
        let email = format!("{}@example.org", &user[..8]);
        Self { services, corp, user, email }
    }

    /// What docs/connector.md says that the connector needs.
    fn caller(setup: &mut Setup) -> Identity {
        setup.files.caller_with(
            "connector",
            r#"[{ keys = ["user-keys"], operations = ["wrap", "unwrap", "read"] },
                { keys = ["recovery"], operations = ["read"] },
                { keys = ["recovery"], operations = ["rewrap"], to_approved = { issuer = "corp", audiences = ["approvals"], claims = { groups = "device-approvers" } } }]"#,
        )
    }

    /// Stored in that database, with further options of `[approvals]`.
    pub(crate) fn stored(&self, database: String, further: &str) -> Stored {
        let mut stored = Stored::per_user(database);
        stored.further = format!(
            "[limits]\nuser = 'off'\nrefused = 'off'\n[approvals]\nkey = '{ORGANIZATION}'\n\
             issuer = {{ url = '{}' }}\nclient_id = 'approvals'\n\
             approvers = {{ claims = {{ groups = 'device-approvers' }} }}\nrequests = 'off'\n{further}",
            self.corp.name()
        );
        stored
    }

    fn start(&self, further: &str) -> Connector {
        let connector = self.services.start(&self.stored(self.services.sqlite("kc.db"), further));
        self.wait_for_approvals(&connector);
        connector
    }

    /// The tables and the issuer's keys are looked for beside the start.
    fn wait_for_approvals(&self, connector: &Connector) {
        let token = self.user_token();
        let ready = |path, token| get(connector, path, token).status == 200;
        until(connector, "approvals are ready", || {
            ready("/approvals/settings", None)
                && ready("/approvals/recovery", Some(&token))
                && ready("/approvals/organization-key", Some(&token))
        });
    }

    fn user_token(&self) -> String {
        let claims = json!({ "claims": { "email": self.email } });
        self.services.issuer.token_with(&self.user, &claims, &|text| text.to_owned())
    }

    fn approver_token(&self, subject: &str, claims: &Value) -> String {
        let mut all = json!({
            "aud": "approvals", "groups": ["staff", "device-approvers"],
            "email": format!("{subject}@example.org"),
        });
        change(&mut all, claims);
        self.corp.token(subject, &all)
    }

    /// The one request that the list has.
    fn listed(&self, connector: &Connector) -> Value {
        let token = self.approver_token("alice", &json!({}));
        let mut reply = get(connector, "/auth-requests", Some(&token)).json();
        let requests = reply["requests"].as_array_mut().unwrap();
        assert_eq!(requests.len(), 1, "{requests:?}\n{}", connector.log());
        requests.remove(0)
    }

    /// The body that approves what the list shows, as alice's page makes it.
    fn approval(&self, listed: &Value, subject: &str, claims: &Value) -> Value {
        let expires = u64::try_from(seconds()).unwrap() + 600;
        let mut all = json!({ "nonce": nonce(listed, expires) });
        change(&mut all, claims);
        json!({ "idToken": self.approver_token(subject, &all), "expires": expires })
    }

    fn approve(&self, connector: &Connector, id: &Value, subject: &str, body: &Value) -> Reply {
        let path = format!("/auth-requests/{}/approve", id.as_str().unwrap());
        let token = self.approver_token(subject, &json!({}));
        request(connector, "POST", &path, Some(&token), Some(body))
    }

    /// A device of its own folder.
    fn device(&self, connector: &Connector, name: &str) -> Device {
        let folder = self.services.path(name);
        fs::create_dir_all(&folder).unwrap();
        Device { url: format!("http://{}", connector.address), folder }
    }

    /// The user's first device, which has enrolled the user.
    fn enrolled(&self, connector: &Connector) -> Device {
        let first = self.device(connector, "first");
        assert_eq!(first.run(&["enrol", &self.user_token(), "the safe's combination"]), 204);
        first
    }
}

/// The hash in the list stands for the value itself.
fn nonce(listed: &Value, expires: u64) -> String {
    let decoded = |name: &str| STANDARD.decode(listed[name].as_str().unwrap()).unwrap();
    let key: [u8; 32] = sha256(&decoded("publicKey"));
    let mut hashed = b"claviger-approval-v1".to_vec();
    hashed.extend(decoded("wrappedSha256"));
    hashed.extend(key);
    hashed.extend(expires.to_be_bytes());
    e2e::issuer::part(sha256(&hashed))
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    claviger_provider_api::public_key::sha256(bytes)
}

/// Waits for a condition, half a minute at most.
fn until(connector: &Connector, what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(
            begun.elapsed() < Duration::from_secs(30),
            "not after half a minute: {what}\n{}",
            connector.log()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A device in Node.
struct Device {
    url: String,
    folder: PathBuf,
}

impl Device {
    fn run(&self, arguments: &[&str]) -> Value {
        let (command_name, rest) = arguments.split_first().unwrap();
        let output = run(command("node")
            .arg(folder("approvals/device.mjs"))
            .arg(command_name)
            .arg(&self.url)
            .arg(&self.folder)
            .args(rest));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn ask(&self, email: &str, kind: &str) -> Value {
        let asked = self.run(&["ask", email, kind]);
        assert_eq!(asked["status"], 201, "{asked}");
        asked
    }

    fn fetch(&self, first: &Self) -> Value {
        self.run(&["fetch", first.folder.to_str().unwrap()])
    }
}

fn get(connector: &Connector, path: &str, token: Option<&str>) -> Reply {
    request(connector, "GET", path, token, None)
}

fn request(
    connector: &Connector,
    method: &str,
    path: &str,
    token: Option<&str>,
    body: Option<&Value>,
) -> Reply {
    let authorization = token.map(|token| format!("Bearer {token}")).unwrap_or_default();
    let mut headers = Vec::new();
    if token.is_some() {
        headers.push(("authorization", authorization.as_str()));
    }
    if body.is_some() {
        headers.push(("content-type", "application/json"));
    }
    let body = body.map(Value::to_string);
    send(connector.address, method, path, &headers, body.as_deref())
}

fn with_code(connector: &Connector, id: &Value, code: &str) -> Reply {
    let path = format!("/auth-requests/{}", id.as_str().unwrap());
    send(connector.address, "GET", &path, &[("x-access-code", code)], None)
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// A new device of the user asks, alice approves, the device decrypts an item, once.
pub(crate) fn is_approved_once(stage: &Stage, stored: &Stored) {
    let connector = stage.services.start(stored);
    stage.wait_for_approvals(&connector);
    let first = stage.enrolled(&connector);
    let new = stage.device(&connector, "new");
    let asked = new.ask(&stage.email, "admin");
    assert_eq!(new.fetch(&first), json!({ "status": 200, "state": "open" }));

    let listed = stage.listed(&connector);
    assert_eq!((&listed["id"], &listed["fingerprint"]), (&asked["id"], &asked["fingerprint"]));
    assert_eq!(
        (&listed["email"], &listed["publicKey"]),
        (&stage.email.as_str().into(), &asked["publicKey"])
    );
    let approval = stage.approval(&listed, "alice", &json!({}));
    let approved = stage.approve(&connector, &asked["id"], "alice", &approval);
    assert_eq!(approved.status, 204, "{approved:?}\n{}", connector.log());
    let log = connector.log();
    // A connector that was restarted, or another instance, gives it too.
    assert_eq!(connector.stop(), Some(0));
    let connector = stage.services.start(stored);
    stage.wait_for_approvals(&connector);
    let new = Device { url: format!("http://{}", connector.address), ..new };
    assert_eq!(new.fetch(&first)["item"], "the safe's combination");
    assert_eq!(new.fetch(&first)["status"], 404, "it is given once");
    let again = stage.approve(&connector, &asked["id"], "alice", &approval);
    assert_eq!(again.status, 404, "it is decided once");

    let alice = stage.approver_token("alice", &json!({}));
    let history = get(&connector, "/auth-requests/history", Some(&alice)).json();
    let one = &history["requests"][0];
    assert_eq!(
        (&one["state"], &one["by"]),
        (&"fetched".into(), &"alice@example.org (alice)".into())
    );

    let record = stage.services.setup.files.audit_records_of("connector", 1);
    let record = record.iter().find(|record| record["operation"] == "rewrap").unwrap();
    assert_eq!((&record["approver"], &record["outcome"]), (&"alice".into(), &"ok".into()));
    let caller_id = record["caller_request_id"].as_str().unwrap();
    assert!(caller_id.starts_with(&format!("user:{}:", stage.user)), "{record}");
    assert!(log.contains("an approval was decided") && log.contains("alice@example.org"), "{log}");
    let written = log
        + &connector.log()
        + &fs::read_to_string(stage.services.setup.files.audit_file()).unwrap();
    let id_token = approval["idToken"].as_str().unwrap();
    assert!(!written.contains(id_token.rsplit('.').next().unwrap()), "a token is in a log");
}

#[test]
fn an_approved_device_gets_the_key_once_and_the_log_names_who_approved() {
    let stage = Stage::new();
    let database = stage.services.path("kc.db");
    is_approved_once(&stage, &stage.stored(stage.services.sqlite("kc.db"), ""));
    // Nothing that opens anything is left of the request, and the original's tables are as they were.
    let left = "SELECT value IS NULL, public_key, code_hash FROM claviger_auth_requests";
    assert_eq!(sqlite3(&database, left), "1||");
    assert_eq!(sqlite3(&database, "SELECT count(*) FROM UserKeys"), "0");
}

#[test]
fn what_is_not_approved_is_given_to_no_device() {
    let stage = Stage::new();
    let connector = stage.start("");
    let first = stage.enrolled(&connector);
    let new = stage.device(&connector, "new");
    let asked = new.ask(&stage.email, "admin");
    let (id, listed) = (&asked["id"], stage.listed(&connector));
    let good = stage.approval(&listed, "alice", &json!({}));
    let for_another_key = {
        let other = RsaKey::generate(2048);
        let mut swapped = listed.clone();
        swapped["publicKey"] = STANDARD.encode(other.public_key().spki()).into();
        stage.approval(&swapped, "alice", &json!({}))
    };
    let no_approver = json!({ "groups": ["staff"] });
    let later =
        json!({ "idToken": good["idToken"], "expires": good["expires"].as_u64().unwrap() + 1 });
    for (case, body, status) in [
        ("swapped public key", for_another_key, 403),
        ("another expiry", later, 403),
        ("another person's", stage.approval(&listed, "bob", &json!({})), 403),
        ("of no approver", stage.approval(&listed, "alice", &no_approver), 403),
        ("no nonce", stage.approval(&listed, "alice", &json!({ "nonce": null })), 403),
        ("for another client", stage.approval(&listed, "alice", &json!({ "aud": "x" })), 401),
        ("expired", stage.approval(&listed, "alice", &json!({ "exp": seconds() - 60 })), 401),
        ("a device's value", json!({ "value": "AAAA" }), 400),
        ("nothing", json!({}), 400),
        ("both", json!({ "value": "AAAA", "idToken": good["idToken"], "expires": 1 }), 400),
    ] {
        let reply = stage.approve(&connector, id, "alice", &body);
        assert_eq!(reply.status, status, "{case}: {reply:?}\n{}", connector.log());
    }
    // Without a token, or with one of no approver, nothing is seen and nothing decided.
    let path = format!("/auth-requests/{}/deny", id.as_str().unwrap());
    let carol = stage.approver_token("carol", &no_approver);
    for (token, status) in [(None, 401), (Some(carol.as_str()), 403), (Some("x.y.z"), 401)] {
        assert_eq!(get(&connector, "/auth-requests", token).status, status);
        assert_eq!(request(&connector, "POST", &path, token, None).status, status);
    }
    // The user's own token sees it, and approves nothing of it.
    let own = stage.user_token();
    let seen = get(&connector, "/auth-requests", Some(&own)).json();
    assert_eq!(seen["requests"][0]["id"], *id);
    let value = json!({ "value": STANDARD.encode([7; 256]) });
    let approve = format!("/auth-requests/{}/approve", id.as_str().unwrap());
    assert_eq!(request(&connector, "POST", &approve, Some(&own), Some(&value)).status, 404);
    assert_eq!(get(&connector, "/auth-requests/history", Some(&own)).status, 403);
    assert_eq!(new.fetch(&first), json!({ "status": 200, "state": "open" }));

    // Denied is decided: an approval comes too late.
    let alice = stage.approver_token("alice", &json!({}));
    assert_eq!(request(&connector, "POST", &path, Some(&alice), None).status, 204);
    assert_eq!(stage.approve(&connector, id, "alice", &good).status, 404);
    assert_eq!(new.fetch(&first), json!({ "status": 200, "state": "denied" }));
    // The token that approved this device approves no other one.
    let second = stage.device(&connector, "second");
    let asked = second.ask(&stage.email, "admin");
    let replayed = stage.approve(&connector, &asked["id"], "alice", &good);
    assert_eq!(replayed.status, 403, "{replayed:?}");
    let causes: Vec<Value> = stage
        .services
        .setup
        .files
        .audit_records_of("connector", 5)
        .iter()
        .filter(|record| record["operation"] == "rewrap")
        .map(|record| record["cause"].clone())
        .collect();
    assert!(
        causes.len() >= 4 && causes.iter().all(|cause| cause == "approval_nonce"),
        "{causes:?}"
    );
}

#[test]
fn an_approval_is_of_the_value_that_was_looked_at() {
    let stage = Stage::new();
    let connector = stage.start("");
    stage.enrolled(&connector);
    let new = stage.device(&connector, "new");
    let asked = new.ask(&stage.email, "admin");
    let listed = stage.listed(&connector);
    // Between the look and the approval the user's key is replaced: what was asked for ends.
    let first = stage.enrolled(&connector);
    let approval = stage.approval(&listed, "alice", &json!({}));
    assert_eq!(stage.approve(&connector, &asked["id"], "alice", &approval).status, 404);
    assert_eq!(new.fetch(&first)["status"], 404);
}

#[test]
fn another_device_of_the_user_approves_with_its_own_key() {
    let stage = Stage::new();
    let connector = stage.start("");
    let first = stage.enrolled(&connector);
    let new = stage.device(&connector, "new");
    let asked = new.ask(&stage.email, "device");
    let id = asked["id"].as_str().unwrap();
    // It is nothing for approvers, nor for another user.
    let alice = stage.approver_token("alice", &json!({}));
    let path = format!("/auth-requests/{id}/approve");
    let list = get(&connector, "/auth-requests", Some(&alice)).json();
    assert_eq!(list, json!({ "requests": [] }));
    let other = stage.services.issuer.token(&new_user());
    assert_eq!(get(&connector, "/auth-requests", Some(&other)).json(), json!({ "requests": [] }));
    let value = json!({ "value": STANDARD.encode([7; 256]) });
    assert_eq!(request(&connector, "POST", &path, Some(&other), Some(&value)).status, 404);
    let short = json!({ "value": STANDARD.encode([7; 255]) });
    let own = stage.user_token();
    assert_eq!(request(&connector, "POST", &path, Some(&own), Some(&short)).status, 400);

    assert_eq!(first.run(&["approve", &own, id]), 204);
    assert_eq!(new.fetch(&first)["item"], "the safe's combination");
    let rewraps = stage.services.setup.files.audit_records();
    assert!(rewraps.iter().all(|record| record["operation"] != "rewrap"), "the HSM is not asked");
}

#[test]
fn codes_ids_and_times_that_are_wrong_look_alike() {
    let stage = Stage::new();
    let connector = stage.start("admin_expiry = '3s'");
    let first = stage.enrolled(&connector);
    let new = stage.device(&connector, "new");
    let asked = new.ask(&stage.email, "admin");
    let unknown = json!("00000000-0000-4000-8000-000000000000");
    let answers: Vec<Reply> = [
        with_code(&connector, &unknown, "a code of some length"),
        with_code(&connector, &asked["id"], "a code of some length"),
        with_code(&connector, &asked["id"], ""),
        with_code(&connector, &json!("no-uuid"), ""),
    ]
    .into();
    for answer in &answers {
        assert_eq!((answer.status, answer.body.as_str()), (404, ""), "{answer:?}");
    }
    // What has expired is the same, and an approval comes too late.
    let listed = stage.listed(&connector);
    let approval = stage.approval(&listed, "alice", &json!({}));
    until(&connector, "the request expires", || new.fetch(&first)["status"] == 404);
    assert_eq!(stage.approve(&connector, &asked["id"], "alice", &approval).status, 404);
    // Nothing is left of what no one decided, however many strangers ask.
    assert_eq!(connector.stop(), Some(0));
    let connector = stage.start("admin_expiry = '3s'");
    let database = stage.services.path("kc.db");
    until(&connector, "the request is deleted", || {
        sqlite3(&database, "SELECT count(*) FROM claviger_auth_requests") == "0"
    });
}

#[test]
fn a_request_ends_after_twenty_wrong_codes() {
    let stage = Stage::new();
    let connector = stage.start("");
    let first = stage.enrolled(&connector);
    let new = stage.device(&connector, "new");
    let asked = new.ask(&stage.email, "admin");
    for _ in 0..19 {
        assert_eq!(with_code(&connector, &asked["id"], "not the access code").status, 404);
    }
    assert_eq!(new.fetch(&first)["state"], "open");
    assert_eq!(with_code(&connector, &asked["id"], "not the access code").status, 404);
    assert_eq!(new.fetch(&first)["status"], 404);
}

#[test]
fn an_email_of_no_user_is_answered_alike_and_has_the_same_bounds() {
    let stage = Stage::new();
    let connector = stage.start("");
    stage.enrolled(&connector);
    let key = STANDARD.encode(RsaKey::shared(2048).public_key().spki());
    let ask = |email: &str| {
        let body = json!({ "email": email, "publicKey": key, "accessCode": "sixteen or more!", "kind": "admin" });
        request(&connector, "POST", "/auth-requests", None, Some(&body))
    };
    for email in [stage.email.as_str(), "nobody@example.org"] {
        for _ in 0..5 {
            let reply = ask(email);
            assert_eq!(reply.status, 201, "{reply:?}");
            assert_eq!(
                with_code(&connector, &reply.json()["id"], "sixteen or more!").body,
                r#"{"state":"open"}"#
            );
        }
        assert_eq!(ask(&email.to_uppercase()).status, 429, "a sixth is too many");
    }
    // What strangers asked for in the user's name, the user denies; devices of the user still ask.
    let own = stage.user_token();
    let list = get(&connector, "/auth-requests", Some(&own)).json();
    let id = list["requests"][0]["id"].as_str().unwrap().to_owned();
    let path = format!("/auth-requests/{id}/deny");
    assert_eq!(request(&connector, "POST", &path, Some(&own), None).status, 204);
    assert_eq!(ask(&stage.email).status, 201);
    // Approvers see the user's alone.
    let alice = stage.approver_token("alice", &json!({}));
    let listed = get(&connector, "/auth-requests", Some(&alice)).json();
    assert_eq!(listed["requests"].as_array().unwrap().len(), 5);
}

#[test]
fn of_many_who_fetch_at_once_one_gets_the_value() {
    let stage = Stage::new();
    let stored = stage.stored(stage.services.sqlite("kc.db"), "");
    let (one, two) = (stage.services.start(&stored), stage.services.start(&stored));
    stage.wait_for_approvals(&one);
    stage.wait_for_approvals(&two);
    stage.enrolled(&one);
    let new = stage.device(&one, "new");
    let asked = new.ask(&stage.email, "admin");
    let approval = stage.approval(&stage.listed(&one), "alice", &json!({}));
    assert_eq!(stage.approve(&two, &asked["id"], "alice", &approval).status, 204);
    let request: Value =
        serde_json::from_slice(&fs::read(new.folder.join("request.json")).unwrap()).unwrap();
    let code = request["accessCode"].as_str().unwrap();
    let given = std::thread::scope(|scope| {
        let fetches: Vec<_> = (0..16)
            .map(|number| {
                let connector = if number % 2 == 0 { &one } else { &two };
                let id = &asked["id"];
                scope.spawn(move || with_code(connector, id, code).status)
            })
            .collect();
        fetches
            .into_iter()
            .map(|fetch| fetch.join().unwrap())
            .filter(|status| *status == 200)
            .count()
    });
    assert_eq!(given, 1, "{}\n{}", one.log(), two.log());
}

#[test]
fn a_device_that_is_named_keeps_its_trust_when_the_key_is_replaced_and_others_lose_it() {
    let stage = Stage::new();
    let connector = stage.start("");
    let first = stage.enrolled(&connector);
    let own = stage.user_token();
    let devices = [new_user(), new_user()];
    let path = |device: &str| format!("/approvals/devices/{device}");
    let values = json!({ "encryptedUserKey": "4.a", "encryptedPublicKey": "2.b", "encryptedPrivateKey": "2.c" });
    for device in &devices {
        assert_eq!(get(&connector, &path(device), Some(&own)).status, 404);
        assert_eq!(
            request(&connector, "PUT", &path(device), Some(&own), Some(&values)).status,
            204
        );
        assert_eq!(get(&connector, &path(device), Some(&own)).json(), values);
    }
    let other = stage.services.issuer.token(&new_user());
    assert_eq!(get(&connector, &path(&devices[0]), Some(&other)).status, 404);
    let value =
        fs::read(first.folder.join("item.json")).map(|_| STANDARD.encode([1; 256])).unwrap();
    let body = json!({ "value": value, "device": devices[1] });
    assert_eq!(
        request(&connector, "PUT", "/approvals/recovery", Some(&own), Some(&body)).status,
        204
    );
    assert_eq!(get(&connector, &path(&devices[0]), Some(&own)).status, 404);
    assert_eq!(get(&connector, &path(&devices[1]), Some(&own)).json(), values);
    assert_eq!(request(&connector, "DELETE", &path(&devices[1]), Some(&own), None).status, 204);
    assert_eq!(request(&connector, "DELETE", &path(&devices[1]), Some(&own), None).status, 404);

    // An e-mail is of one user; who withdraws gives it free.
    let same = |user: &str| {
        let claims = json!({ "claims": { "email": stage.email.to_uppercase() } });
        stage.services.issuer.token_with(user, &claims, &|text| text.to_owned())
    };
    let another = same(&new_user());
    let body = json!({ "value": STANDARD.encode([1; 256]) });
    let put = |token: &str, body: &Value| {
        request(&connector, "PUT", "/approvals/recovery", Some(token), Some(body)).status
    };
    assert_eq!(put(&another, &body), 409);
    assert_eq!(request(&connector, "DELETE", "/approvals/recovery", Some(&own), None).status, 204);
    assert_eq!(
        get(&connector, "/approvals/recovery", Some(&own)).json(),
        json!({ "enrolled": false })
    );
    assert_eq!(put(&another, &body), 204);
    assert_eq!(put(&another, &json!({ "value": STANDARD.encode([1; 255]) })), 400);
    assert_eq!(put(&other, &body), 400, "a token without an e-mail");
    assert_eq!(put(&another, &json!({ "value": "-", "more": 1 })), 400);
}

#[test]
fn a_request_with_a_wrong_field_is_refused_with_its_name() {
    let stage = Stage::new();
    let connector = stage.start("");
    let key = STANDARD.encode(RsaKey::shared(2048).public_key().spki());
    let good = json!({ "email": "a@b.org", "publicKey": key, "accessCode": "sixteen or more!", "kind": "admin" });
    let small = STANDARD.encode(small_key());
    // A type that is wrong, and a field that is not known.
    let unreadable = 2;
    for (field, value) in [
        ("email", json!("nobody")),
        ("email", json!(5)),
        ("publicKey", json!("AAAA")),
        ("publicKey", json!(small)),
        ("accessCode", json!("short")),
        ("accessCode", json!("x".repeat(129))),
        ("kind", json!("other")),
        ("algorithm", json!("RSA1_5")),
        ("more", json!(1)),
    ] {
        let mut body = good.clone();
        body[field] = value;
        let reply = request(&connector, "POST", "/auth-requests", None, Some(&body));
        assert_eq!(reply.status, 400, "{body}: {reply:?}");
        let is_named =
            reply.body.contains(field) || reply.body.contains("docs/connector-approvals.md");
        assert!(is_named, "{body}: {reply:?}");
    }
    assert_eq!(request(&connector, "POST", "/auth-requests", None, Some(&good)).status, 201);
    let nothing = request(&connector, "GET", "/approvals/nothing", None, None);
    assert_eq!(nothing.status, 404);
    // What a body holds that is wrong is not in the log.
    let secret = stage.approver_token("alice", &json!({}));
    for (path, body) in [
        ("/auth-requests", json!({ "accessCode": 1_234_567_890_123_456_789_u64 })),
        ("/auth-requests/00000000-0000-4000-8000-000000000000/approve", json!(secret)),
        (
            "/auth-requests/00000000-0000-4000-8000-000000000000/approve",
            json!({ "expires": secret }),
        ),
    ] {
        let reply = request(&connector, "POST", path, Some(&secret), Some(&body));
        assert_eq!(reply.status, 400, "{reply:?}");
    }
    let log = connector.log();
    assert_eq!(log.matches("the body of a request is wrong").count(), 3 + unreadable, "{log}");
    assert!(!log.contains("1234567890123456789") && !log.contains(&secret), "{log}");
    // Where approvals are off, there is nothing of them.
    let plain = stage.services.start(&Stored::per_user(stage.services.sqlite("plain.db")));
    assert_eq!(request(&plain, "POST", "/auth-requests", None, Some(&good)).status, 404);
}

/// SubjectPublicKeyInfo of 1024 bits, by OpenSSL.
fn small_key() -> Vec<u8> {
    let script = "openssl genrsa 1024 2>/dev/null | openssl rsa -pubout -outform DER 2>/dev/null";
    run(command("sh").args(["-c", script])).stdout
}
