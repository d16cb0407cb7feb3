//! What a scrape reads of a daemon in a given state.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, SystemTime};

use futures::FutureExt;

use super::*;
use crate::daemon::operations::scrape::render;
use crate::daemon::operations::scrape::tests::series;
use crate::daemon::records::metrics::Metrics;
use crate::daemon::request::in_flight::CallerCalls;
use crate::pki::{Ca, CaOptions};

/// A configuration whose files are in `folder`.
fn configuration(folder: &std::path::Path) -> String {
    format!(
        r#"
        [server]
        listen = ["unix:{folder}/claviger.sock"]
        state_dir = "{folder}/state"
        denied_callers = "{folder}/denied"
        [audit]
        off = true
        [providers.files]
        type = "software"
        directory = "{folder}"
        [providers.hsm]
        type = "pkcs11"
        module = "{folder}/module.so"
        token = {{ label = "token" }}
        pin = {{ file = "{folder}/pin" }}
        [keys.user-keys]
        algorithms = ["RSA-OAEP"]
        [[keys.user-keys.versions]]
        version = 2
        state = "active"
        public_key_sha256 = "{pin}"
        replicas = [
            {{ provider = "hsm", locator = "pkcs11:object=a" }},
            {{ provider = "files", locator = "a.pem" }},
        ]
        "#,
        folder = folder.display(),
        pin = "22".repeat(32),
    )
}

fn tls(folder: &std::path::Path) -> Arc<TlsState> {
    let at = |name: &str| folder.join(name);
    let day = Duration::from_hours(24);
    let ca = Ca::create(&at("ca"), &CaOptions::default()).unwrap();
    let server = ca.issue_server(&["localhost".to_owned()], day).unwrap();
    std::fs::write(at("server.crt"), server.certificate_pem).unwrap();
    write_private(&at("server.key"), &server.private_key_pem);
    std::fs::write(at("clients.pem"), ca.certificate_pem()).unwrap();
    // Two lists in one file, of which the newer counts.
    std::fs::write(at("crl"), ca.crl(2 * day).unwrap() + &ca.crl(day).unwrap()).unwrap();
    let config = crate::daemon::config::Tls {
        certificate: at("server.crt"),
        private_key: at("server.key"),
        client_ca: [("clients".to_owned(), at("clients.pem"))].into(),
        crl: vec![at("crl")],
        crl_grace: day,
        allow_tls12: false,
    };
    TlsState::open(&config, false).unwrap()
}

fn write_private(path: &std::path::Path, text: impl AsRef<[u8]>) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

#[test]
fn how_the_daemon_is_can_be_read_at_any_time() {
    let folder = tempfile::tempdir().unwrap();
    write_private(&folder.path().join("denied"), "uid:7\nuid:8\n");
    let metrics = Arc::new(Metrics::default());
    let (mut sources, phases) = Sources::of(&configuration(folder.path()), &metrics);
    sources.tls = Some(tls(folder.path()));
    let sources = Arc::new(sources);
    let caller = Arc::new(CallerCalls::new(8));
    let soon = Instant::now() + Duration::from_secs(1);
    let started = sources.in_flight.start(&caller, soon).now_or_never();
    let _call = started.expect("there is room").unwrap();
    let before = series(&render(&sources));
    phases.send_replace(Phase::Draining);
    let after = series(&render(&sources));

    let crl = format!("crl=\"{}/crl\"", folder.path().display());
    let sha256 = hex::encode(sources.config.load().sha256);
    let config = format!("config_info{{sha256=\"{sha256}\"}}");
    let expected = [
        (r#"key_up{key="user-keys",version="2",provider="hsm",replica="0"}"#, 0.0),
        (r#"key_up{key="user-keys",version="2",provider="files",replica="1"}"#, 0.0),
        (r#"key_diverges{key="user-keys",version="2",provider="hsm",replica="0"}"#, 0.0),
        (r#"provider_drained{provider="hsm"}"#, 0.0),
        (r#"failovers_total{key="user-keys"}"#, 0.0),
        (r#"repairs_total{key="user-keys",version="2",provider="hsm",replica="0"}"#, 0.0),
        (r#"provider_info{provider="hsm",type="pkcs11",hardware="true"}"#, 1.0),
        (r#"provider_info{provider="files",type="software",hardware="false"}"#, 1.0),
        ("calls_in_flight", 1.0),
        ("calls_waiting", 0.0),
        ("answers_unread_total", 0.0),
        ("ready", 0.0),
        ("draining", 0.0),
        ("audit_enabled", 0.0),
        (r#"provider_process_up{provider="hsm"}"#, 0.0),
        (r#"provider_process_starts_total{provider="hsm"}"#, 0.0),
        (&*config, 1.0),
        ("connections", 0.0),
        ("connections_accepted_total", 0.0),
        ("connections_refused_total", 0.0),
        ("accept_errors_total", 0.0),
        (r#"connections_cut_total{reason="denied"}"#, 0.0),
        ("handshakes_total", 0.0),
        (r#"handshakes_failed_total{reason="revoked"}"#, 0.0),
        ("denied_callers", 2.0),
        ("denied_callers_reloads_total", 0.0),
        ("denied_callers_stale", 0.0),
        (r#"tls_reloads_total{outcome="refused"}"#, 0.0),
        ("tls_stale", 0.0),
        (&*format!("crl_stale{{{crl}}}"), 0.0),
    ];
    for (name, value) in expected {
        assert_eq!(before.get(&format!("claviger_{name}")), Some(&value), "{name}");
    }
    assert_eq!((after["claviger_ready"], after["claviger_draining"]), (0.0, 1.0));
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
    let within_a_day = |name: &str| (0.0..=86_400.0).contains(&(before[name] - now));
    assert!(within_a_day("claviger_certificate_not_after_timestamp_seconds"));
    let next_update = format!("claviger_crl_next_update_timestamp_seconds{{{crl}}}");
    assert!(within_a_day(&next_update), "of the list that counts: {}", before[&next_update]);
    let never_proven = before.keys().all(|name| !name.contains("check_timestamp"));
    assert!(never_proven, "a replica that was never open has no time");
}

#[test]
fn a_refused_pin_is_seen_and_so_is_a_latch_that_cannot_be_read() {
    let folder = tempfile::tempdir().unwrap();
    write_private(&folder.path().join("denied"), "# nobody\n");
    let state_dir = folder.path().join("state");
    std::fs::create_dir(&state_dir).unwrap();
    let metrics = Arc::new(Metrics::default());
    let (sources, _) = Sources::of(&configuration(folder.path()), &metrics);
    let sources = Arc::new(sources);
    let latched = || {
        let series = series(&render(&sources));
        let latched = |(name, value): (String, f64)| {
            Some((name.strip_prefix("claviger_pin_latched")?.to_owned(), value))
        };
        series.into_iter().filter_map(latched).collect::<Vec<_>>()
    };
    assert_eq!(latched(), []);
    let latch = claviger_pkcs11::pin_latch::Latch::new(&state_dir);
    let pin = claviger_provider_api::Secret::new(b"1234".to_vec().into());
    let owner = |label: &str| claviger_pkcs11::pin_latch::PinOwner {
        token: claviger_pkcs11::TokenIdentity {
            label: label.to_owned(),
            serial: "0123".to_owned(),
            manufacturer: String::new(),
            model: String::new(),
        },
        user: "user".to_owned(),
    };
    let attempt = latch.attempt(&owner("a"), &pin).unwrap();
    let of_token = |label: &str| format!("{{serial=\"0123\",token=\"{label}\"}}");
    assert_eq!(latched(), [(of_token("a"), 0.0)], "no outcome yet");
    attempt.refused().unwrap();
    // Tokens that share a serial number are two series.
    drop(latch.attempt(&owner("b"), &pin).unwrap());
    assert_eq!(latched(), [(of_token("a"), 1.0), (of_token("b"), 0.0)]);
    std::fs::set_permissions(state_dir.join("pin"), std::fs::Permissions::from_mode(0o777))
        .unwrap();
    assert_eq!(latched(), [("{serial=\"\",token=\"\"}".to_owned(), 1.0)]);
}
