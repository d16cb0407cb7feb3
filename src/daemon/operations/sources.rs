//! What is not counted for the metrics but read at each scrape, from those who know it.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;
use tokio::sync::watch;

use crate::daemon::backends::{LatchedToken, latched_tokens};
use crate::daemon::keys::replica::Replica;
use crate::daemon::records::audit::Audit;
use crate::daemon::records::metrics::render::{
    counter, gauge, info, plain_counter, plain_gauge, sample_counter, sample_gauge,
    sample_histogram,
};
use crate::daemon::records::metrics::seconds;
use crate::daemon::request::active::ActiveConfig;
use crate::daemon::request::health::Phase;
use crate::daemon::request::in_flight::InFlight;
use crate::daemon::transport::denied::DeniedCallers;
use crate::daemon::transport::listener::{ConnectionStats, Cut, HandshakeFailure};
use crate::daemon::transport::tls::TlsState;

/// Those who know how the daemon is at the moment of a scrape.
#[derive(Debug)]
pub struct Sources {
    /// Providers and replicas in force.
    pub active: Arc<ArcSwap<ActiveConfig>>,
    /// Where PIN latches are.
    pub state_dir: Option<PathBuf>,
    /// Where the daemon is in its life.
    pub phase: watch::Receiver<Phase>,
    /// Calls in flight.
    pub in_flight: Arc<InFlight>,
    /// What happened to connections.
    pub connections: Arc<ConnectionStats>,
    /// Certificates and CRLs in force.
    pub tls: Option<Arc<TlsState>>,
    /// The list in force.
    pub denied: Arc<DeniedCallers>,
    /// The audit log, and the disk under it.
    pub audit: Arc<Audit>,
}

impl Sources {
    /// Where the daemon is in its life.
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    pub(super) fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        self.phases(encoder)?;
        self.replicas(encoder)?;
        self.providers(encoder)?;
        self.pins(encoder)?;
        self.connections(encoder)?;
        self.tls(encoder)?;
        self.denied(encoder)?;
        self.audit(encoder)
    }

    fn audit(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Whether there is an audit log (1) or `off = true` (0)";
        plain_gauge(encoder, "audit_enabled", help, self.audit.is_on())?;
        let help = "Bytes that are left for the audit log on its file system, its reserve included";
        if let Some(free) = self.audit.free_bytes() {
            plain_gauge(
                encoder,
                "audit_free_bytes",
                help,
                i64::try_from(free).unwrap_or(i64::MAX),
            )?;
        }
        let help = "Whether only the reserve is left: unwrap, rewrap and sign alone are answered";
        plain_gauge(encoder, "audit_in_reserve", help, self.audit.is_in_reserve())
    }

    fn phases(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let phase = self.phase();
        let help = "Whether calls are accepted, as /readyz says";
        plain_gauge(encoder, "ready", help, phase == Phase::Ready)?;
        let help = "Whether the daemon ends and waits for its last calls";
        plain_gauge(encoder, "draining", help, phase == Phase::Draining)?;
        let help = "Calls whose answers have not left yet";
        plain_gauge(encoder, "calls_in_flight", help, self.in_flight.total())?;
        let help = "Calls that wait for room among the calls in flight";
        plain_gauge(encoder, "calls_waiting", help, self.in_flight.waiting())
    }

    fn replicas(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let active = self.active.load();
        let replicas = replicas(&active);
        let mut up = gauge(encoder, "key_up", "Whether a replica serves (1) or not (0)")?;
        for (labels, replica) in &replicas {
            sample_gauge(&mut up, labels, replica.is_serving())?;
        }
        let help = "When a replica's private key last did its work, in seconds since 1970";
        let mut checked = gauge(encoder, "key_check_timestamp_seconds", help)?;
        let now = SystemTime::now();
        for (labels, replica) in replicas.iter().filter(|(_, replica)| replica.key().is_some()) {
            let at = now.checked_sub(replica.proven_ago()).unwrap_or(SystemTime::UNIX_EPOCH);
            sample_gauge(&mut checked, labels, seconds(at))?;
        }
        let asked = || {
            replicas
                .iter()
                .filter_map(|(labels, replica)| Some((labels, replica.backend_calls.measured()?)))
        };
        let help = "Time that a replica's backend took for an operation, its queue included";
        let name = "backend_duration_seconds";
        let mut durations = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (labels, measured) in asked() {
            sample_histogram(&mut durations, labels, &measured.duration)?;
        }
        let help = "Operations that a replica's backend has not answered: in its queue, or running";
        let mut unanswered = gauge(encoder, "backend_operations", help)?;
        for (labels, measured) in asked() {
            let count = i64::try_from(measured.unanswered()).unwrap_or(i64::MAX);
            sample_gauge(&mut unanswered, labels, count)?;
        }
        let help = "Repairs under a replica since it was opened: session, login, module";
        let mut repairs = counter(encoder, "repairs", help)?;
        for (labels, replica) in &replicas {
            let count = replica.key().map_or(0, |key| key.repairs());
            sample_counter(&mut repairs, labels, count)?;
        }
        Ok(())
    }

    fn providers(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut family = info(encoder, "provider", "Configured providers")?;
        for (name, (config, _)) in &self.active.load().replicas.providers {
            family.encode_info(&[
                ("provider", name.as_str()),
                ("type", config.type_name()),
                ("hardware", if config.is_hardware() { "true" } else { "false" }),
            ])?;
        }
        Ok(())
    }

    /// A latch that cannot be read lets nobody log in: it is shown as one without a serial number.
    fn pins(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let Some(state_dir) = &self.state_dir else { return Ok(()) };
        let tokens = latched_tokens(state_dir).unwrap_or_else(|error| {
            tracing::error!(error, "PIN latches cannot be read");
            let [serial, label] = [const { String::new() }; 2];
            vec![LatchedToken { serial, label, is_shut: true, is_exhausted: true }]
        });
        let help = "Whether a refused PIN keeps a token shut until an operator acts";
        let mut latched = gauge(encoder, "pin_latched", help)?;
        for LatchedToken { serial, label, is_shut, .. } in tokens {
            sample_gauge(&mut latched, &[("serial", serial), ("token", label)], is_shut)?;
        }
        Ok(())
    }

    fn connections(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let stats = &self.connections;
        plain_gauge(encoder, "connections", "Open connections", stats.open())?;
        let help = "Connections that were accepted";
        plain_counter(encoder, "connections_accepted", help, stats.accepted())?;
        let help = "Connections closed at once, because as many as allowed were open";
        plain_counter(encoder, "connections_refused", help, stats.refused_at_cap())?;
        let help = "Times that the system refused to accept a connection";
        plain_counter(encoder, "accept_errors", help, stats.accept_errors())?;
        let help = "Connections that served calls and were ended by the daemon";
        let mut cuts = counter(encoder, "connections_cut", help)?;
        for reason in Cut::ALL {
            sample_counter(&mut cuts, &[("reason", reason.name())], stats.cut(reason))?;
        }
        let help = "Answers whose stream was reset, because the peer did not take them in time";
        plain_counter(encoder, "answers_unread", help, stats.unread())?;
        plain_counter(encoder, "handshakes", "TLS handshakes that succeeded", stats.handshakes())?;
        let help = "Connections that did not get as far as their first call";
        let mut failed = counter(encoder, "handshakes_failed", help)?;
        for reason in HandshakeFailure::ALL {
            sample_counter(&mut failed, &[("reason", reason.name())], stats.failed(reason))?;
        }
        Ok(())
    }

    fn tls(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let Some(tls) = &self.tls else { return Ok(()) };
        let (done, failed) = tls.reloads();
        let mut reloads =
            counter(encoder, "tls_reloads", "Certificates and CRLs read again, by outcome")?;
        sample_counter(&mut reloads, &[("outcome", "ok")], done)?;
        sample_counter(&mut reloads, &[("outcome", "refused")], failed)?;
        let help =
            "Whether the certificate files cannot be used as they are; older ones are in force";
        plain_gauge(encoder, "tls_stale", help, tls.alarms().reload_failed)?;
        let loaded = tls.load();
        let name = "certificate_not_after_timestamp_seconds";
        let help = "When the server's certificate expires";
        plain_gauge(encoder, name, help, seconds(loaded.not_after()))?;
        let crls = loaded.trust().crls();
        let help = "When a CRL promised its successor";
        let mut next_update = gauge(encoder, "crl_next_update_timestamp_seconds", help)?;
        for (file, at) in &crls {
            sample_gauge(&mut next_update, &[("crl", file.as_str())], seconds(*at))?;
        }
        let help = "Whether a CRL's successor is overdue; connections are refused after crl_grace";
        let mut stale = gauge(encoder, "crl_stale", help)?;
        let now = SystemTime::now();
        for (file, at) in &crls {
            sample_gauge(&mut stale, &[("crl", file.as_str())], *at < now)?;
        }
        Ok(())
    }

    fn denied(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Entries of the list of denied callers in force";
        plain_gauge(encoder, "denied_callers", help, self.denied.entries())?;
        let help = "Lists of denied callers put in force since the start";
        plain_counter(encoder, "denied_callers_reloads", help, self.denied.generation())?;
        let help = "Whether the list of denied callers could not be read; the last one is in force";
        plain_gauge(encoder, "denied_callers_stale", help, self.denied.failed())
    }
}

type Labels = [(&'static str, String); 4];

/// Every replica with its labels, in the order of key names.
fn replicas(active: &ActiveConfig) -> Vec<(Labels, &Arc<Replica>)> {
    let mut keys: Vec<_> = active.snapshot.keyring.keys.values().collect();
    keys.sort_unstable_by_key(|key| &key.name);
    let mut replicas = Vec::with_capacity(active.replicas.by_specification.len());
    for key in keys {
        for version in &key.versions {
            for (place, replica) in version.replicas.iter().enumerate() {
                let labels = [
                    ("key", key.name.clone()),
                    ("version", version.number.to_string()),
                    ("provider", replica.specification.place.provider.clone()),
                    ("replica", place.to_string()),
                ];
                replicas.push((labels, replica));
            }
        }
    }
    replicas
}

#[cfg(test)]
impl Sources {
    /// Of a daemon that was configured so and has not opened any key; with what sets its phase.
    pub(crate) fn of(
        configuration: &str,
        metrics: &crate::daemon::records::metrics::Metrics,
    ) -> (Self, watch::Sender<Phase>) {
        use crate::daemon::config::Config;
        use crate::daemon::request::active::Previous;
        use crate::daemon::request::failed_unwraps::FailedUnwraps;

        let config = Config::parse(std::path::Path::new("claviger.toml"), configuration).unwrap();
        let changed = watch::Sender::new(0);
        let audit = Arc::new(Audit::off());
        let previous = Previous {
            active: None,
            failed_unwraps: &FailedUnwraps::open(None),
            changed: &changed,
            audit: &audit,
        };
        let active = ActiveConfig::build(&config, metrics, &previous).unwrap();
        let (phases, phase) = watch::channel(Phase::Starting);
        let sources = Self {
            active: Arc::new(ArcSwap::from_pointee(active)),
            state_dir: config.server.state_dir,
            phase,
            in_flight: Arc::new(InFlight::new(8)),
            connections: Arc::default(),
            tls: None,
            denied: DeniedCallers::open(config.server.denied_callers.as_deref()).unwrap(),
            audit,
        };
        (sources, phases)
    }
}

#[cfg(all(test, feature = "software", feature = "pkcs11"))]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

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
        let soon = std::time::Instant::now() + Duration::from_secs(1);
        let started = sources.in_flight.start(&caller, soon).now_or_never();
        let _call = started.expect("there is room").unwrap();
        let before = series(&render(&metrics, &sources));
        phases.send_replace(Phase::Draining);
        let after = series(&render(&metrics, &sources));

        let crl = format!("crl=\"{}/crl\"", folder.path().display());
        let expected = [
            (r#"key_up{key="user-keys",version="2",provider="hsm",replica="0"}"#, 0.0),
            (r#"key_up{key="user-keys",version="2",provider="files",replica="1"}"#, 0.0),
            (r#"repairs_total{key="user-keys",version="2",provider="hsm",replica="0"}"#, 0.0),
            (r#"provider_info{provider="hsm",type="pkcs11",hardware="true"}"#, 1.0),
            (r#"provider_info{provider="files",type="software",hardware="false"}"#, 1.0),
            ("calls_in_flight", 1.0),
            ("calls_waiting", 0.0),
            ("answers_unread_total", 0.0),
            ("ready", 0.0),
            ("draining", 0.0),
            ("audit_enabled", 0.0),
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
            let series = series(&render(&metrics, &sources));
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
}
