//! The server's certificate, read again when its files change.

use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};
use std::time::{Duration, SystemTime};

use claviger_files::{Protection, pem};
use rustls::ServerConfig;
use tokio_rustls::TlsAcceptor;
use tracing::{info, warn};

/// How often the files are looked at.
pub(super) const CHECK: Duration = Duration::from_secs(30);

/// TLS 1.2 and 1.3, without client certificates.
pub(super) struct Tls {
    certificate: PathBuf,
    private_key: PathBuf,
    current: RwLock<(Option<SystemTime>, TlsAcceptor)>,
}

impl Tls {
    pub(super) fn read(certificate: &Path, private_key: &Path) -> Result<Self, String> {
        let changed = changed(certificate, private_key);
        let acceptor = acceptor(certificate, private_key)?;
        Ok(Self {
            certificate: certificate.to_owned(),
            private_key: private_key.to_owned(),
            current: RwLock::new((changed, acceptor)),
        })
    }

    pub(super) fn acceptor(&self) -> TlsAcceptor {
        self.current.read().expect("nothing panics with it").1.clone()
    }

    /// Reads the files again if they have changed; the old certificate stays where that fails.
    pub(super) fn refresh(&self) {
        let now = changed(&self.certificate, &self.private_key);
        if self.current.read().expect("nothing panics with it").0 == now {
            return;
        }
        match acceptor(&self.certificate, &self.private_key) {
            Ok(acceptor) => {
                *self.current.write().expect("nothing panics with it") = (now, acceptor);
                info!("the certificate was read again");
            }
            Err(reason) => {
                warn!(reason, "the certificate cannot be read; the old one stays in use");
            }
        }
    }
}

/// When the younger of the files was changed.
fn changed(certificate: &Path, private_key: &Path) -> Option<SystemTime> {
    let time = |path: &Path| path.metadata().and_then(|metadata| metadata.modified()).ok();
    time(certificate).max(time(private_key))
}

fn acceptor(certificate: &Path, private_key: &Path) -> Result<TlsAcceptor, String> {
    let read = |path: &Path, protection| {
        claviger_files::read(path, protection, 1 << 20).map_err(|error| error.to_string())
    };
    let named = |path: &Path, error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let chain = pem::certificates(&read(certificate, Protection::Public)?, pem::Beside::Keys)
        .map_err(|error| named(certificate, &error))?;
    let key = pem::private_key(&read(private_key, Protection::Secret)?)
        .map_err(|error| named(private_key, &error))?;
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|error| named(certificate, &error))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
