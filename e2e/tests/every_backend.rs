//! One daemon that serves every backend at once: its callers know names and nothing else.

use std::collections::BTreeMap;
use std::process::Output;

use claviger_proto::v1::UnwrapRequest;
use claviger_provider_api::Algorithm;
use e2e::daemon::claviger;
use e2e::process::command;
use e2e::scene::{MATERIAL, client_config, wrap_with};
use e2e::{
    Connection, Daemon, Identity, Remote, RsaKey, Site, Token, Version, Which, doctor, python,
};
use tonic::Code;

/// A daemon with a key in each backend, and a caller of all of them.
struct World {
    daemon: Daemon,
    caller: Identity,
    keys: Vec<Served>,
    site: Site,
    _remotes: Vec<Remote>,
    _tokens: Vec<Token>,
}

struct Served {
    /// The backend's name too.
    name: &'static str,
    key: RsaKey,
    algorithms: Vec<Algorithm>,
}

impl World {
    async fn with(services: &[Which]) -> Self {
        let mut site = Site::new();
        let mut keys = Vec::new();
        let mut add = |site: &mut Site, name, key: RsaKey, version, algorithms: &[Algorithm]| {
            let names: Vec<&str> = algorithms.iter().map(|algorithm| algorithm.name()).collect();
            site.key(name, &names, vec![version]);
            keys.push(Served { name, key, algorithms: algorithms.to_vec() });
        };

        site.files("software", "keys");
        let key = RsaKey::generate(2048);
        key.write_pem(&site.path("keys/one.pem"));
        let version = Version::active(1, &key, "software", "one.pem");
        add(&mut site, "software", key, version, &Algorithm::ALL);
        let mut tokens = Vec::new();
        for (name, token, algorithms) in [
            ("softhsm", Token::softhsm(), &[Algorithm::RsaOaep][..]),
            ("kryoptic", Token::kryoptic(), &Algorithm::ALL[..4]),
        ] {
            let key = RsaKey::generate(2048);
            token.import(&key, "one", "01");
            site.token(name, &token);
            let version = Version::active(1, &key, name, "pkcs11:object=one");
            add(&mut site, name, key, version, algorithms);
            tokens.push(token);
        }
        let mut remotes = Vec::new();
        for which in services {
            let (name, remote) = (which.name(), Remote::start(*which).await);
            let key = RsaKey::generate(2048);
            let place = remote.import(&key, "one", None).await.swap_remove(0);
            remote.configure(&mut site, name, None).await;
            let version = place.version(&key, name);
            add(&mut site, name, key, version, &place.algorithms);
            remotes.push(remote);
        }
        let names: Vec<&str> = keys.iter().map(|key| key.name).collect();
        let caller = site.caller("key-connector", &names, &["wrap", "unwrap", "read"]);
        site.limit("key-connector", "failed_unwraps", "off");
        let daemon = Daemon::start(&mut site);
        Self { daemon, caller, keys, site, _remotes: remotes, _tokens: tokens }
    }

    /// `claviger` as the caller.
    fn cli(&self, arguments: &[&str]) -> Output {
        // Writes the files that are named below.
        client_config(&self.site, &self.daemon, &self.caller);
        let output = command(claviger())
            .args(arguments)
            .args(["--endpoint", &format!("https://localhost:{}", self.daemon.address().port())])
            .arg("--ca")
            .arg(self.site.path("caller-ca.pem"))
            .arg("--certificate")
            .arg(self.site.path("caller.crt"))
            .arg("--private-key")
            .arg(self.site.path("caller.key"))
            .output()
            .expect("claviger starts");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {said}\n{}", self.daemon.log());
        output
    }
}

/// Python, the command line and doctor see one key after the other, by name alone.
async fn everybody_is_served(services: &[Which]) {
    let world = World::with(services).await;
    let names: Vec<&str> = world.keys.iter().map(|key| key.name).collect();
    let mut sorted = names.clone();
    sorted.sort_unstable();
    for Served { name, algorithms, .. } in &world.keys {
        let seen = python::story(&world.site, &world.daemon, &world.caller, name);
        assert_eq!(seen["listed"], serde_json::json!(sorted));
        assert_eq!(
            seen["unwrapped_what_python_wrapped"].as_array().unwrap().len(),
            algorithms.len()
        );
        assert_eq!(seen["health"], "SERVING", "{name}");
    }
    let listed = world.cli(&["keys", "list"]);
    let listed = String::from_utf8(listed.stdout).unwrap();
    println!("{listed}");
    let shown: Vec<&str> =
        listed.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(shown, sorted);
    let (exit, report) = doctor::report(&world.site);
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
async fn bad_values_are_answered_alike(services: &[Which]) {
    let world = World::with(services).await;
    let ca = world.site.pki.ca_der();
    let connection = Connection::open(world.daemon.address(), ca, Some(&world.caller));
    let connection = connection.await.unwrap();
    let stranger = RsaKey::generate(2048);
    let mut answers: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for Served { name, key, algorithms } in &world.keys {
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
        let answer = answer.unwrap_or_else(|e| panic!("{name}: {e}\n{}", world.daemon.log()));
        assert_eq!(*answer.key_material, MATERIAL, "{name} serves as before");
    }
    assert_eq!(answers.len(), 1, "{answers:#?}");
    let count: usize = answers.values().map(Vec::len).sum();
    println!("{count} bad values in {} backends, one answer", world.keys.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_daemon_serves_every_backend_by_name_alone() {
    everybody_is_served(&Which::USUAL).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: scripts/test --all"]
async fn one_daemon_serves_every_backend_hashicorp_vault_included() {
    everybody_is_served(&Which::ALL).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_value_is_answered_with_the_same_bytes_whatever_the_backend() {
    bad_values_are_answered_alike(&Which::USUAL).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: scripts/test --all"]
async fn a_bad_value_is_answered_with_the_same_bytes_hashicorp_vault_included() {
    bad_values_are_answered_alike(&Which::ALL).await;
}
