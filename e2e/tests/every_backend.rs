//! One daemon that serves every backend at once: its callers know names and nothing else.

use std::collections::BTreeMap;
use std::process::Output;

use claviger_proto::v1::UnwrapRequest;
use claviger_provider_api::Algorithm;
use e2e::daemon::claviger;
use e2e::process::command;
use e2e::setup::{MATERIAL, client_config, wrap_with};
use e2e::{
    Connection, Daemon, DaemonFiles, Identity, RsaKey, ServiceKind, TestService, Token, Version,
    doctor, python,
};
use tonic::Code;

/// A daemon with a key in each backend, and a caller of all of them.
struct Setup {
    daemon: Daemon,
    caller: Identity,
    keys: Vec<Served>,
    files: DaemonFiles,
    _services: Vec<TestService>,
    _tokens: Vec<Token>,
}

struct Served {
    /// The backend's name too.
    name: &'static str,
    key: RsaKey,
    algorithms: Vec<Algorithm>,
}

impl Setup {
    async fn with(kinds: &[ServiceKind]) -> Self {
        let mut files = DaemonFiles::new();
        let mut keys = Vec::new();
        let mut add =
            |files: &mut DaemonFiles, name, key: RsaKey, version, algorithms: &[Algorithm]| {
                let names: Vec<&str> =
                    algorithms.iter().map(|algorithm| algorithm.name()).collect();
                files.key(name, &names, vec![version]);
                keys.push(Served { name, key, algorithms: algorithms.to_vec() });
            };

        files.key_folder("software", "keys");
        let key = RsaKey::generate(2048);
        key.write_pem(&files.path("keys/one.pem"));
        let version = Version::active(1, &key, "software", "one.pem");
        add(&mut files, "software", key, version, &Algorithm::ALL);
        let mut tokens = Vec::new();
        for (name, token, algorithms) in [
            ("softhsm", Token::softhsm(), &[Algorithm::RsaOaep][..]),
            ("kryoptic", Token::kryoptic(), &Algorithm::ALL[..4]),
        ] {
            let key = RsaKey::generate(2048);
            token.import(&key, "one", "01");
            files.token(name, &token);
            let version = Version::active(1, &key, name, "pkcs11:object=one");
            add(&mut files, name, key, version, algorithms);
            tokens.push(token);
        }
        let mut services = Vec::new();
        for kind in kinds {
            let (name, service) = (kind.name(), TestService::start(*kind).await);
            let key = RsaKey::generate(2048);
            let stored = service.import(&key, "one", None).await.swap_remove(0);
            service.configure(&mut files, name, None).await;
            let version = stored.version(&key, name);
            add(&mut files, name, key, version, &stored.algorithms);
            services.push(service);
        }
        let names: Vec<&str> = keys.iter().map(|key| key.name).collect();
        let caller = files.caller("key-connector", &names, &["wrap", "unwrap", "read"]);
        files.limit("key-connector", "failed_unwraps", "off");
        let daemon = Daemon::start(&mut files);
        Self { daemon, caller, keys, files, _services: services, _tokens: tokens }
    }

    /// `claviger` as the caller.
    fn cli(&self, arguments: &[&str]) -> Output {
        // Writes the files that are named below.
        client_config(&self.files, &self.daemon, &self.caller);
        let output = command(claviger())
            .args(arguments)
            .args(["--endpoint", &format!("https://localhost:{}", self.daemon.address().port())])
            .arg("--ca")
            .arg(self.files.path("caller-ca.pem"))
            .arg("--certificate")
            .arg(self.files.path("caller.crt"))
            .arg("--private-key")
            .arg(self.files.path("caller.key"))
            .output()
            .expect("claviger starts");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {said}\n{}", self.daemon.log());
        output
    }
}

/// Python, the command line and doctor see one key after the other, by name alone.
async fn everybody_is_served(services: &[ServiceKind]) {
    let setup = Setup::with(services).await;
    let names: Vec<&str> = setup.keys.iter().map(|key| key.name).collect();
    let mut sorted = names.clone();
    sorted.sort_unstable();
    for Served { name, algorithms, .. } in &setup.keys {
        let seen = python::story(&setup.files, &setup.daemon, &setup.caller, name);
        assert_eq!(seen["listed"], serde_json::json!(sorted));
        assert_eq!(
            seen["unwrapped_what_python_wrapped"].as_array().unwrap().len(),
            algorithms.len()
        );
        assert_eq!(seen["health"], "SERVING", "{name}");
    }
    let listed = setup.cli(&["keys", "list"]);
    let listed = String::from_utf8(listed.stdout).unwrap();
    println!("{listed}");
    let shown: Vec<&str> =
        listed.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(shown, sorted);
    let (exit, report) = doctor::report(&setup.files);
    assert_eq!(exit, Some(0), "{report:#}");
    let mut sound = Vec::new();
    for key in report["keys"].as_array().unwrap() {
        let replica = &key["versions"][0]["replicas"][0];
        assert_eq!(replica["ok"], true, "{key:#}");
        assert_eq!(replica["pin_matches"], true, "{key:#}");
        sound.push(key["key"].as_str().unwrap());
        println!("doctor: {} is sound: {}", key["key"], replica["locator"]);
    }
    sound.sort_unstable();
    assert_eq!(sound, sorted);
    println!("{} backends in one daemon: {}", names.len(), names.join(", "));
}

/// Whatever is wrong with a value, and wherever its key lies: the same bytes.
async fn bad_values_are_answered_alike(services: &[ServiceKind]) {
    let setup = Setup::with(services).await;
    let ca = setup.files.pki.ca_der();
    let connection = Connection::open(setup.daemon.address(), ca, Some(&setup.caller));
    let connection = connection.await.unwrap();
    let stranger = RsaKey::generate(2048);
    let mut answers: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for Served { name, key, algorithms } in &setup.keys {
        let algorithm = algorithms[0];
        let good = wrap_with(key, algorithm);
        let mut flipped = good.clone();
        flipped[255] ^= 1;
        let mut not_below = vec![0xff; 256];
        not_below[1] = 0xfe;
        let mut small = vec![0; 256];
        small[255] = 2;
        // The same length, the wrong padding.
        let other = if algorithm == Algorithm::RsaOaep {
            Algorithm::RsaOaep256
        } else {
            Algorithm::RsaOaep
        };
        for (what, wrapped) in [
            ("flipped", flipped),
            ("another hash", wrap_with(key, other)),
            ("PKCS#1 v1.5", wrap_with(key, Algorithm::Rsa15)),
            ("of another key", wrap_with(&stranger, algorithm)),
            ("not below the modulus", not_below),
            ("two", small),
            ("zero", vec![0; 256]),
        ] {
            let request = UnwrapRequest {
                key: (*name).into(),
                wrapped: wrapped.into(),
                ..UnwrapRequest::default()
            };
            let answer = connection.unwrap(&request).await.expect_err(what);
            assert_eq!(answer.code(), Code::InvalidArgument, "{name}, {what}: {answer}");
            answers.entry(answer.comparable()).or_default().push(format!("{name}: {what}"));
        }
        let request =
            UnwrapRequest { key: (*name).into(), wrapped: good.into(), ..Default::default() };
        let answer = connection.unwrap(&request).await;
        let answer = answer.unwrap_or_else(|e| panic!("{name}: {e}\n{}", setup.daemon.log()));
        assert_eq!(*answer.key_material, MATERIAL, "{name} serves as before");
    }
    assert_eq!(answers.len(), 1, "{answers:#?}");
    let count: usize = answers.values().map(Vec::len).sum();
    println!("{count} bad values in {} backends, one answer", setup.keys.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_daemon_serves_every_backend_by_name_alone() {
    everybody_is_served(&ServiceKind::USUAL).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: scripts/test --all"]
async fn one_daemon_serves_every_backend_hashicorp_vault_included() {
    everybody_is_served(&ServiceKind::ALL).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_value_is_answered_with_the_same_bytes_whatever_the_backend() {
    bad_values_are_answered_alike(&ServiceKind::USUAL).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: scripts/test --all"]
async fn a_bad_value_is_answered_with_the_same_bytes_hashicorp_vault_included() {
    bad_values_are_answered_alike(&ServiceKind::ALL).await;
}
