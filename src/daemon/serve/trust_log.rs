//! What is trusted, in the audit log: each file that took effect, with its SHA-256, at the start too.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use claviger_tokens::KeySource;

use crate::daemon::config;
use crate::daemon::records::audit::{Audit, Event, Trust, Trusted as What};
use crate::daemon::transport::denied::DeniedCallers;
use crate::daemon::transport::tls::TlsState;
use crate::daemon::transport::tokens::{Tokens, Trusted};

/// What the audit log was told.
#[derive(Debug, Default)]
pub(super) struct TrustLog {
    in_force: BTreeMap<Key, [u8; 32]>,
    /// Reloads of TLS that failed.
    failed_reloads: u64,
    denied_failed: bool,
}

/// A file in its part; one file may have two.
type Key = (What, Option<String>, PathBuf);

impl TrustLog {
    /// Writes a record for each file that is in force now and was not before, or not with this
    /// content, and for what was refused since.
    pub(super) fn record(
        &mut self,
        options: Option<&config::Tls>,
        tls: Option<&TlsState>,
        denied: &DeniedCallers,
        tokens: Option<&Tokens>,
        audit: &Audit,
    ) {
        let mut now = in_force(options, tls, denied);
        now.extend(tokens.into_iter().flat_map(Tokens::trusted).filter_map(keys_of));
        for (key, sha256) in &now {
            if self.in_force.get(key) != Some(sha256) {
                write(audit, key, Some(sha256), None);
            }
        }
        self.in_force = now;
        self.record_refusals(tls, denied, audit);
    }

    fn record_refusals(&mut self, tls: Option<&TlsState>, denied: &DeniedCallers, audit: &Audit) {
        let failed = tls.map_or(0, |tls| tls.reloads().1);
        if std::mem::replace(&mut self.failed_reloads, failed) != failed
            && let Some((path, error)) = tls.and_then(TlsState::last_refusal)
        {
            let known = self.in_force.keys().find(|(_, _, known)| *known == path).cloned();
            // The private key is part of the server's certificate.
            let key = known.unwrap_or((What::ServerCertificate, None, path));
            write(audit, &key, None, Some(&error));
        }
        let failed = denied.failed();
        if std::mem::replace(&mut self.denied_failed, failed) != failed
            && failed
            && let Some((path, _)) = denied.file()
        {
            let error = "it cannot be used as it is, or a line of it is no entry; see the log";
            write(audit, &(What::DeniedCallers, None, path), None, Some(error));
        }
    }
}

/// The keys of an issuer that are in force.
fn keys_of(trusted: &Trusted) -> Option<(Key, [u8; 32])> {
    let sha256 = trusted.issuer.known()?.keys.sha256();
    let source = match &trusted.config.settings.source {
        KeySource::File(path) => path.clone(),
        KeySource::Discovery { url, .. } => url.into(),
    };
    Some(((What::IssuerKeys, Some(trusted.name.to_string()), source), sha256))
}

/// The files in force. Which part each has, the configuration says.
fn in_force(
    options: Option<&config::Tls>,
    tls: Option<&TlsState>,
    denied: &DeniedCallers,
) -> BTreeMap<Key, [u8; 32]> {
    let mut found = BTreeMap::new();
    if let (Some(options), Some(tls)) = (options, tls) {
        for (path, sha256) in tls.load().files() {
            for (what, name) in parts(options, path) {
                found.insert((what, name, path.clone()), *sha256);
            }
        }
    }
    if let Some((path, sha256)) = denied.file() {
        found.insert((What::DeniedCallers, None, path), sha256);
    }
    found
}

fn parts(options: &config::Tls, path: &Path) -> Vec<(What, Option<String>)> {
    let bundles = options.client_ca.iter().filter(|(_, file)| *file == path);
    let mut parts: Vec<_> = bundles.map(|(name, _)| (What::ClientCa, Some(name.clone()))).collect();
    if options.crl.iter().any(|file| file == path) {
        parts.push((What::Crl, None));
    }
    if options.certificate == path {
        parts.push((What::ServerCertificate, None));
    }
    parts
}

fn write(audit: &Audit, key: &Key, sha256: Option<&[u8; 32]>, error: Option<&str>) {
    let (what, name, file) = key;
    let trust = Trust { what: *what, name: name.as_deref(), file, sha256, error };
    // It is in the queue, and no call waits for it.
    drop(audit.event(&Event::Trust(trust)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::sync::Arc;
    use std::time::Duration;

    use crate::pki::{Ca, CaOptions};

    const DAY: Duration = Duration::from_hours(24);

    fn write_private(path: &Path, text: &str) {
        std::fs::write(path, text).unwrap();
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o600)).unwrap();
    }

    #[tokio::test]
    async fn what_is_trusted_is_recorded_at_the_start_and_when_it_changes_or_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let ca = Ca::create(&at("ca"), &CaOptions::default()).unwrap();
        let server = ca.issue_server(&["localhost".to_owned()], DAY).unwrap();
        write_private(&at("server.crt"), &server.certificate_pem);
        write_private(&at("server.key"), &server.private_key_pem);
        write_private(&at("clients.pem"), ca.certificate_pem());
        write_private(&at("clients.crl"), &ca.crl(DAY).unwrap());
        write_private(&at("denied"), "uid:1000\n");
        let options = config::Tls {
            certificate: at("server.crt"),
            private_key: at("server.key"),
            client_ca: [("clients".to_owned(), at("clients.pem"))].into(),
            crl: vec![at("clients.crl")],
            crl_grace: DAY,
            allow_tls12: false,
        };
        let tls = TlsState::open(&options, false).unwrap();
        let denied = DeniedCallers::open(Some(&at("denied"))).unwrap();
        let log = config::Audit::File(Box::new(config::AuditFile::at(at("audit"))));
        let audit = Audit::open(&log, Arc::default()).unwrap();
        let mut trust = TrustLog::default();
        let mut told = 0;
        let mut new_lines = async || {
            trust.record(Some(&options), Some(&tls), &denied, None, &audit);
            audit.drain().await.unwrap();
            let text = std::fs::read_to_string(at("audit")).unwrap_or_default();
            let lines: Vec<_> = text.lines().skip(told).map(str::to_owned).collect();
            told += lines.len();
            lines
        };
        let first = new_lines().await;
        assert_eq!(first.len(), 4, "{first:?}");
        for (what, file) in [
            ("client_ca", "clients.pem"),
            ("crl", "clients.crl"),
            ("denied_callers", "denied"),
            ("server_certificate", "server.crt"),
        ] {
            let bytes = std::fs::read(at(file)).unwrap();
            let sha256 = hex::encode(claviger_provider_api::public_key::sha256(&bytes));
            let found = first.iter().find(|line| line.contains(&format!("\"{what}\"")));
            assert!(found.is_some_and(|line| line.contains(&sha256)), "{what}: {first:?}");
        }
        assert_eq!(new_lines().await, Vec::<String>::new());
        write_private(&at("clients.crl"), &ca.crl(DAY).unwrap());
        tls.reload().unwrap();
        let changed = new_lines().await;
        assert!(changed.len() == 1 && changed[0].contains("clients.crl"), "{changed:?}");
        write_private(&at("clients.pem"), "nothing");
        tls.reload().unwrap_err();
        let refused = new_lines().await;
        assert!(refused.len() == 1 && refused[0].contains("no certificate in PEM"), "{refused:?}");
        write_private(&at("denied"), "uid:\n");
        denied.poll();
        // The list is in force without its bad line, and the line is an alarm.
        assert_eq!(new_lines().await.len(), 2);
    }
}
