//! TLS 1.3 with a client certificate, from three PEM files that are read again when they change.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use claviger_files::pem::{self, Beside, PemError};
use claviger_files::{FileError, Protection};
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::config::{ConfigError, IdentityFiles, TlsFiles};

/// How often a look at the files is worth its system calls.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// The largest private key's file, in bytes.
const MAX_KEY_FILE: u64 = 1 << 20;

/// What a connection needs, as the files have it now.
pub(crate) struct Identity {
    files: TlsFiles,
    state: Mutex<State>,
}

struct State {
    config: Arc<ClientConfig>,
    generation: u64,
    stamps: Option<Vec<Stamp>>,
    looked: Instant,
}

/// Another one: another file, or other bytes. It follows symbolic links, which is how Kubernetes
/// replaces all files of a folder at once.
#[derive(PartialEq, Eq)]
struct Stamp {
    inode: (u64, u64),
    length: u64,
    changed: (i64, i64),
}

impl Identity {
    /// Reads the files; names the one that is wrong.
    pub(crate) fn read(files: &TlsFiles) -> Result<Self, ConfigError> {
        let stamps = stamps(files);
        let config = Arc::new(client_config(files)?);
        let state = State { config, generation: 0, stamps, looked: Instant::now() };
        Ok(Self { files: files.clone(), state: Mutex::new(state) })
    }

    /// The file with this program's certificate, where it shows one.
    pub(crate) fn certificate(&self) -> Option<&Path> {
        self.files.identity.as_ref().map(|identity| identity.certificate.as_path())
    }

    /// The configuration, and a number that grows when the files change. Files that are wrong, as
    /// they are for a moment while they are replaced one by one, leave the last good ones in
    /// force.
    pub(crate) fn current(&self) -> (Arc<ClientConfig>, u64) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.looked.elapsed() >= LOOK_INTERVAL {
            state.looked = Instant::now();
            let stamps = stamps(&self.files);
            if stamps.is_some()
                && stamps != state.stamps
                && let Ok(config) = client_config(&self.files)
            {
                state.config = Arc::new(config);
                state.generation += 1;
                state.stamps = stamps;
            }
        }
        (Arc::clone(&state.config), state.generation)
    }
}

fn stamps(files: &TlsFiles) -> Option<Vec<Stamp>> {
    let stamp = |path: &PathBuf| {
        let metadata = fs::metadata(path).ok()?;
        Some(Stamp {
            inode: (metadata.dev(), metadata.ino()),
            length: metadata.len(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    };
    let own = files.identity.iter().flat_map(|own| [&own.certificate, &own.private_key]);
    std::iter::once(&files.ca).chain(own).map(stamp).collect()
}

impl TlsFiles {
    /// The TLS that this crate's clients use, with ALPN `h2`: for a program that asks the daemon's operations
    /// listener with the same files.
    pub fn client_config(&self) -> Result<ClientConfig, ConfigError> {
        client_config(self)
    }
}

fn client_config(files: &TlsFiles) -> Result<ClientConfig, ConfigError> {
    let builder = ClientConfig::builder_with_provider(Arc::new(provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("aws-lc-rs speaks TLS 1.3")
        .with_root_certificates(roots(&files.ca)?);
    let mut config = match &files.identity {
        None => builder.with_no_client_auth(),
        Some(IdentityFiles { certificate: path, private_key: key }) => builder
            .with_client_auth_cert(certificates(path, Beside::Keys)?, private_key(key)?)
            .map_err(|error| match error {
                rustls::Error::InconsistentKeys(_) => {
                    invalid(key, format!("is not the private key of {}", path.display()))
                }
                error => invalid(path, format!("not usable: {error}")),
            })?,
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    // A resumed session would skip the daemon's look at revocation lists; it issues no tickets.
    config.resumption = Resumption::disabled();
    Ok(config)
}

fn provider() -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups = vec![
        aws_lc_rs::kx_group::X25519MLKEM768,
        aws_lc_rs::kx_group::X25519,
        aws_lc_rs::kx_group::SECP256R1,
        aws_lc_rs::kx_group::SECP384R1,
    ];
    provider
}

fn roots(path: &Path) -> Result<RootCertStore, ConfigError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path, Beside::Nothing)? {
        roots
            .add(certificate)
            .map_err(|error| invalid(path, format!("not a CA certificate: {error}")))?;
    }
    Ok(roots)
}

fn certificates(path: &Path, beside: Beside) -> Result<Vec<CertificateDer<'static>>, ConfigError> {
    let file = fs::read(path).map_err(|error| unreadable(path, &error))?;
    pem::certificates(&file, beside).map_err(|error| not_usable(path, &error))
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, ConfigError> {
    let file = claviger_files::read(path, Protection::Secret, MAX_KEY_FILE);
    let file = file.map_err(|error| match error {
        FileError::Io { source, .. } => unreadable(path, &source),
        FileError::Refused { reason, .. } => invalid(path, reason),
    })?;
    pem::private_key(&file).map_err(|error| not_usable(path, &error))
}

fn not_usable(path: &Path, error: &PemError) -> ConfigError {
    invalid(path, error.to_string())
}

fn unreadable(path: &Path, error: &std::io::Error) -> ConfigError {
    ConfigError::Unreadable { path: path.to_owned(), reason: error.to_string() }
}

fn invalid(path: &Path, reason: String) -> ConfigError {
    ConfigError::Invalid { path: path.to_owned(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn files(folder: &Path) -> TlsFiles {
        let pair = rcgen::generate_simple_self_signed(["localhost".into()]).unwrap();
        let write = |name: &str, text: String, mode| -> PathBuf {
            let path = folder.join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            path
        };
        let identity = IdentityFiles {
            certificate: write("client.crt", pair.cert.pem(), 0o644),
            private_key: write("client.key", pair.signing_key.serialize_pem(), 0o600),
        };
        TlsFiles { ca: write("ca.pem", pair.cert.pem(), 0o644), identity: Some(identity) }
    }

    fn own(files: &TlsFiles) -> &IdentityFiles {
        files.identity.as_ref().unwrap()
    }

    fn with_key(files: &TlsFiles, private_key: PathBuf) -> TlsFiles {
        let identity = Some(IdentityFiles { private_key, ..own(files).clone() });
        TlsFiles { identity, ..files.clone() }
    }

    #[test]
    fn good_files_prefer_the_hybrid_key_exchange_and_never_resume() {
        let folder = tempfile::tempdir().unwrap();
        let config = client_config(&files(folder.path())).unwrap();
        assert_eq!(
            config.crypto_provider().kx_groups[0].name(),
            rustls::NamedGroup::X25519MLKEM768
        );
        assert_eq!(config.alpn_protocols, [b"h2"]);
    }

    #[test]
    fn changed_files_are_read_again_and_half_changed_ones_are_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let old = files(folder.path());
        let identity = Identity::read(&old).unwrap();
        let look = || {
            identity.state.lock().unwrap().looked -= LOOK_INTERVAL;
            identity.current().1
        };
        assert_eq!(look(), 0);
        let pair = rcgen::generate_simple_self_signed(["localhost".into()]).unwrap();
        fs::write(&own(&old).certificate, pair.cert.pem()).unwrap();
        assert_eq!(look(), 0, "the key is not there yet");
        fs::write(&own(&old).private_key, pair.signing_key.serialize_pem()).unwrap();
        assert_eq!((look(), look()), (1, 1));
        fs::remove_file(&old.ca).unwrap();
        assert_eq!(look(), 1);
    }

    #[test]
    fn a_private_key_that_others_may_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let files = files(folder.path());
        for mode in [0o644, 0o604, 0o620] {
            fs::set_permissions(&own(&files).private_key, fs::Permissions::from_mode(mode))
                .unwrap();
            let error = client_config(&files).unwrap_err().to_string();
            assert!(error.contains("client.key") && error.contains("chmod 600"), "{error}");
        }
        fs::set_permissions(&own(&files).private_key, fs::Permissions::from_mode(0o640)).unwrap();
        client_config(&files).unwrap();
    }

    #[test]
    fn a_wrong_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let good = files(folder.path());
        let other = folder.path().join("other.key");
        fs::write(&other, rcgen::KeyPair::generate().unwrap().serialize_pem()).unwrap();
        fs::set_permissions(&other, fs::Permissions::from_mode(0o600)).unwrap();
        let missing = folder.path().join("missing.pem");
        for (files, expected) in [
            (TlsFiles { ca: missing.clone(), ..good.clone() }, "missing.pem: No such file"),
            (
                TlsFiles { ca: own(&good).private_key.clone(), ..good.clone() },
                "it holds PRIVATE KEY, where only certificate belongs",
            ),
            (with_key(&good, folder.path().into()), "not a regular file"),
            (with_key(&good, other), "other.key: is not the private key of"),
        ] {
            let error = client_config(&files).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        fs::write(&own(&good).private_key, "no key").unwrap();
        let error = client_config(&good).unwrap_err().to_string();
        assert!(error.contains("client.key: it holds no private key in PEM"), "{error}");
    }
}
