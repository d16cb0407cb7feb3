//! Mutual TLS: certificates, client CAs and CRLs become what a handshake needs, and are replaced
//! while the daemon runs.
//!
//! - [`trust`]: which client certificates are let in, and what is demanded of their chains
//! - [`anchor`]: what a client CA must be, and its name
//! - `crl`, `scope`: revocation lists, which of them count, and for which certificates
//!
//! TLS 1.3 with X25519MLKEM768 preferred; TLS 1.2 only where the configuration says so. Nothing is
//! resumed: resumption would skip revocation and expiry.

pub mod anchor;
mod constraints;
mod crl;
mod der;
mod files;
mod scope;
pub mod trust;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use claviger_files::FileError;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, kx_group};
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{InconsistentKeys, ServerConfig};
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::daemon::config;
use crate::daemon::transport::file_stamp::FileStamp;
use crate::pki::is_demo_ca;
use files::{Reader, private_key, refused};
use trust::{ClientTrust, ClientVerifier};

/// How long a failed reload rests before the same files are tried again.
const RETRY: Duration = Duration::from_secs(30);

/// The TLS that is in force, and the files that it comes from.
#[derive(Debug)]
pub struct TlsState {
    current: ArcSwap<Loaded>,
    watched: Mutex<Watched>,
    allow_demo: bool,
    reload_failed: AtomicBool,
    crl_stale: AtomicBool,
    reloads: AtomicU64,
    failed_reloads: AtomicU64,
    last_refusal: Mutex<Option<(PathBuf, String)>>,
}

/// What handshakes use from one load to the next.
#[derive(Debug)]
pub struct Loaded {
    server: Arc<ServerConfig>,
    without_certificate: Arc<ServerConfig>,
    operations: Arc<ServerConfig>,
    trust: Arc<ClientTrust>,
    not_after: SystemTime,
    files: Vec<(PathBuf, [u8; 32])>,
}

/// TLS that was loaded and checked and is not yet in force.
#[derive(Debug)]
pub struct PreparedTls {
    loaded: Loaded,
    config: config::Tls,
    stamps: Vec<FileStamp>,
}

/// What an operator has to look at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TlsAlarms {
    /// The files as they are now could not be used: older ones are in force.
    pub reload_failed: bool,
    /// A CRL's `nextUpdate` has passed. Past the grace its CA's clients are refused.
    pub crl_stale: bool,
}

/// Why TLS was not loaded. The message names the file and what to do.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file that cannot be read, or whose content, owner or mode is refused.
    #[error(transparent)]
    File(#[from] FileError),
}

impl TlsError {
    /// The file at fault.
    pub fn path(&self) -> &Path {
        let Self::File(FileError::Io { path, .. } | FileError::Refused { path, .. }) = self;
        path
    }
}

#[derive(Debug)]
struct Watched {
    config: config::Tls,
    stamps: Vec<FileStamp>,
    /// Seen once and not yet twice: files are replaced one after the other.
    unsettled: Option<Vec<FileStamp>>,
    failed_at: Option<Instant>,
}

impl TlsState {
    /// Loads TLS for the first time. `allow_demo` is for `claviger demo` alone.
    pub fn open(config: &config::Tls, allow_demo: bool) -> Result<Arc<Self>, TlsError> {
        let PreparedTls { loaded, config, stamps } = prepare(config, allow_demo)?;
        if loaded.not_after < SystemTime::now() {
            let path = config.certificate.display().to_string();
            tracing::error!(path, "the server's certificate has expired: clients will refuse it");
        }
        loaded.log_notes();
        let state = Self {
            current: ArcSwap::from_pointee(loaded),
            watched: Mutex::new(Watched { config, stamps, unsettled: None, failed_at: None }),
            allow_demo,
            reload_failed: AtomicBool::new(false),
            crl_stale: AtomicBool::new(false),
            reloads: AtomicU64::new(0),
            failed_reloads: AtomicU64::new(0),
            last_refusal: Mutex::new(None),
        };
        state.look_at_crls();
        Ok(Arc::new(state))
    }

    /// Loads TLS, perhaps from other files, without putting it in force.
    pub fn prepare(&self, config: &config::Tls) -> Result<PreparedTls, TlsError> {
        let prepared = prepare(config, self.allow_demo)?;
        let now = SystemTime::now();
        if prepared.loaded.not_after < now && self.current.load().not_after > now {
            let reason = "it has expired, and the one in force has not";
            return Err(refused(&config.certificate, reason));
        }
        Ok(prepared)
    }

    /// Puts TLS in force for handshakes from now on.
    pub fn commit(&self, prepared: PreparedTls) {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        self.put_in_force(&mut watched, prepared);
    }

    /// Reads the files of the configuration in force again; on any error the old ones stay.
    pub fn reload(&self) -> Result<(), TlsError> {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        self.reload_watched(&mut watched)
    }

    /// Looks whether a file has changed, and reloads once two looks in a row have found the same.
    /// Raises and clears the alarms. Blocks on the file system.
    pub fn poll(&self) {
        self.look_at_crls();
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let now = stamps(&watched.config);
        if now == watched.stamps {
            watched.unsettled = None;
            if watched.failed_at.is_none_or(|at| at.elapsed() < RETRY) {
                return;
            }
        } else if watched.unsettled.as_ref() != Some(&now) {
            watched.unsettled = Some(now);
            return;
        }
        if let Err(error) = self.reload_watched(&mut watched) {
            let error = &error as &dyn std::error::Error;
            tracing::error!(error, "TLS not reloaded: the old certificates stay in force");
        }
    }

    /// What handshakes use now.
    pub fn load(&self) -> Arc<Loaded> {
        self.current.load_full()
    }

    /// What an operator has to look at.
    pub fn alarms(&self) -> TlsAlarms {
        TlsAlarms {
            reload_failed: self.reload_failed.load(Ordering::Relaxed),
            crl_stale: self.crl_stale.load(Ordering::Relaxed),
        }
    }

    /// How many reloads were put in force, and how many failed.
    pub fn reloads(&self) -> (u64, u64) {
        (self.reloads.load(Ordering::Relaxed), self.failed_reloads.load(Ordering::Relaxed))
    }

    /// The file that the last failed reload failed for, and why.
    pub fn last_refusal(&self) -> Option<(PathBuf, String)> {
        self.last_refusal.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn reload_watched(&self, watched: &mut Watched) -> Result<(), TlsError> {
        // Taken before the files are read: what changes meanwhile is found at the next look.
        watched.stamps = stamps(&watched.config);
        watched.unsettled = None;
        match self.prepare(&watched.config) {
            Ok(prepared) => {
                self.put_in_force(watched, prepared);
                Ok(())
            }
            Err(error) => {
                watched.failed_at = Some(Instant::now());
                let refusal = Some((error.path().to_owned(), error.to_string()));
                *self.last_refusal.lock().unwrap_or_else(PoisonError::into_inner) = refusal;
                self.reload_failed.store(true, Ordering::Relaxed);
                self.failed_reloads.fetch_add(1, Ordering::Relaxed);
                Err(error)
            }
        }
    }

    fn put_in_force(&self, watched: &mut Watched, prepared: PreparedTls) {
        let PreparedTls { loaded, config, stamps } = prepared;
        *watched = Watched { config, stamps, unsettled: None, failed_at: None };
        loaded.log_notes();
        self.current.store(Arc::new(loaded));
        self.reload_failed.store(false, Ordering::Relaxed);
        self.reloads.fetch_add(1, Ordering::Relaxed);
        self.look_at_crls();
        tracing::info!("TLS certificates in force");
    }

    fn look_at_crls(&self) {
        let loaded = self.current.load();
        let stale = loaded.trust.first_stale_crl(SystemTime::now());
        let was = self.crl_stale.swap(stale.is_some(), Ordering::Relaxed);
        if let (Some(crl), false) = (stale, was) {
            tracing::error!(crl, "a CRL is past its nextUpdate: replace it before the grace ends");
        }
    }
}

impl Loaded {
    /// For callers: a client certificate is required, and HTTP/2 is all that is spoken.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        self.server.clone()
    }

    /// For callers, where `client_certificate = "optional"`: one that is shown is verified all the same.
    pub fn without_certificate(&self) -> Arc<ServerConfig> {
        self.without_certificate.clone()
    }

    /// For the operations listener: a client certificate is optional, and HTTP/1.1 is spoken too.
    pub fn operations_config(&self) -> Arc<ServerConfig> {
        self.operations.clone()
    }

    /// Which client certificates are let in.
    pub fn trust(&self) -> &Arc<ClientTrust> {
        &self.trust
    }

    /// When the server's own certificate ends.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// The files of certificates, client CAs and CRLs that it was made of, each with the SHA-256 of
    /// its bytes.
    pub fn files(&self) -> &[(PathBuf, [u8; 32])] {
        &self.files
    }

    fn log_notes(&self) {
        for note in self.trust.notes() {
            tracing::warn!("{note}");
        }
    }
}

/// Loads TLS as [`TlsState::open`] does and forgets it; gives what an operator should know although
/// nothing is wrong.
pub fn check(config: &config::Tls, allow_demo: bool) -> Result<Vec<String>, TlsError> {
    let loaded = prepare(config, allow_demo)?.loaded;
    let mut notes = loaded.trust.notes();
    if loaded.not_after < SystemTime::now() {
        let path = config.certificate.display();
        notes.push(format!("{path} has expired: no caller will accept it"));
    }
    Ok(notes)
}

fn prepare(config: &config::Tls, allow_demo: bool) -> Result<PreparedTls, TlsError> {
    let stamps = stamps(config);
    let provider = Arc::new(provider());
    let mut reader = Reader::default();
    let chain = reader.server_chain(&config.certificate)?;
    if !allow_demo && is_demo_ca(&chain) {
        return Err(refused(&config.certificate, DEMO));
    }
    let not_after = not_after(&config.certificate, &chain[0])?;
    let key = certified_key(config, chain, &provider)?;
    let trust = Arc::new(ClientTrust::load(config, allow_demo, &provider, &mut reader)?);
    let server = |mandatory: bool, alpn: &[&[u8]]| {
        let verifier = ClientVerifier::new(trust.clone(), mandatory);
        server_config(config, &provider, &key, verifier, alpn)
    };
    let loaded = Loaded {
        server: server(true, &[b"h2"])?,
        without_certificate: server(false, &[b"h2"])?,
        operations: server(false, &[b"h2", b"http/1.1"])?,
        trust,
        not_after,
        files: reader.sha256,
    };
    Ok(PreparedTls { loaded, config: config.clone(), stamps })
}

const DEMO: &str = "it comes from the demo's CA, whose key is no secret; `claviger pki init` makes \
                    a CA of your own";

/// aws-lc-rs with the hybrid post-quantum key exchange first.
pub(crate) fn provider() -> CryptoProvider {
    CryptoProvider {
        kx_groups: vec![
            kx_group::X25519MLKEM768,
            kx_group::X25519,
            kx_group::SECP256R1,
            kx_group::SECP384R1,
        ],
        ..aws_lc_rs::default_provider()
    }
}

fn certified_key(
    config: &config::Tls,
    chain: Vec<CertificateDer<'static>>,
    provider: &CryptoProvider,
) -> Result<Arc<CertifiedKey>, TlsError> {
    let path = &config.private_key;
    let key = provider
        .key_provider
        .load_private_key(private_key(path)?)
        .map_err(|error| refused(path, &format!("its key cannot be used: {error}")))?;
    let certified = CertifiedKey::new(chain, key);
    match certified.keys_match() {
        Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => {
            Ok(Arc::new(certified))
        }
        Err(_) => {
            let certificate = config.certificate.display();
            Err(refused(path, &format!("its key is not the one of the certificate {certificate}")))
        }
    }
}

fn server_config(
    config: &config::Tls,
    provider: &Arc<CryptoProvider>,
    key: &Arc<CertifiedKey>,
    verifier: ClientVerifier,
    alpn: &[&[u8]],
) -> Result<Arc<ServerConfig>, TlsError> {
    let (tls13, both) = (&[&rustls::version::TLS13][..], rustls::ALL_VERSIONS);
    let mut server = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(if config.allow_tls12 { both } else { tls13 })
        .map_err(|error| refused(&config.certificate, &error.to_string()))?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(key.clone())));
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.send_tls13_tickets = 0;
    server.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(Arc::new(server))
}

fn not_after(path: &Path, certificate: &[u8]) -> Result<SystemTime, TlsError> {
    let (_, certificate) = X509Certificate::from_der(certificate)
        .map_err(|_| refused(path, "its certificate is not X.509"))?;
    let seconds = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0);
    Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}

fn stamps(config: &config::Tls) -> Vec<FileStamp> {
    [&config.certificate, &config.private_key]
        .into_iter()
        .chain(config.client_ca.values())
        .chain(&config.crl)
        .map(|path| FileStamp::of(path))
        .collect()
}
