//! RSA keys in files: for first steps, for tests, and for moving a PFX away. The private keys are in
//! this process's memory, not in hardware.
//!
//! A locator is the name of a key file in the configured directory, or an absolute path. A file holds
//! exactly one RSA key: PKCS#8 (RFC 5958) or PKCS#1 (RFC 8017), PEM or DER; PKCS#8 encrypted with
//! PBES2 (RFC 8018); or PKCS#12 / PFX (RFC 7292).

mod error;
mod file;
mod key;
mod pem;
mod workers;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use claviger_provider_api::{Error, ErrorKind, OpenKey, SecretSource, WrappingKey};
use serde::Deserialize;

use key::SoftwareKey;
use workers::Workers;

/// The options of `type = "software"`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where relative locators are looked up.
    pub directory: PathBuf,
    /// What opens encrypted PKCS#8 and PKCS#12 files; read when a key is opened.
    pub passphrase: Option<SecretSource>,
}

impl Config {
    /// Checks what can be checked without a backend: what is wrong, and what to write instead.
    pub fn validate(&self) -> Result<(), String> {
        if self.directory.as_os_str().is_empty() {
            return Err("`directory` is empty; write the folder that holds the key files".into());
        }
        Ok(())
    }

    /// Checks the syntax of a locator.
    pub fn check_locator(&self, locator: &str) -> Result<(), String> {
        let expected = "write the name of a file in `directory`, or an absolute path";
        if locator.is_empty() {
            return Err(format!("the locator is empty; {expected}"));
        }
        if locator.ends_with('/') || locator.contains('\0') {
            return Err(format!("{locator:?} names no file; {expected}"));
        }
        if locator.starts_with("pkcs11:") || locator.starts_with("arn:") || locator.contains("://")
        {
            return Err(format!("{locator:?} is another provider's locator; {expected}"));
        }
        Ok(())
    }
}

/// Opens key files. Its worker threads, one per core, end once it and all its keys were dropped.
#[derive(Debug)]
pub struct Provider {
    name: String,
    config: Config,
    workers: Arc<Workers>,
}

impl Provider {
    /// Makes a provider and starts its threads; touches no file. It has no state to keep.
    pub fn new(name: &str, config: &Config, _state_dir: Option<&Path>) -> Result<Self, Error> {
        let refuse = |reason: String| Error::new(ErrorKind::OperatorNeeded, reason);
        config.validate().map_err(refuse)?;
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Self {
            name: name.to_owned(),
            config: config.clone(),
            workers: Arc::new(Workers::start(threads)?),
        })
    }

    /// Opens a key: reads its file, checks it, proves each listed algorithm.
    pub async fn open(&self, open: &OpenKey<'_>) -> Result<Arc<dyn WrappingKey>, Error> {
        let refuse = |reason: String| Error::new(ErrorKind::OperatorNeeded, reason);
        self.config.check_locator(open.locator).map_err(refuse)?;
        let path = self.config.directory.join(open.locator);
        let passphrase = self.config.passphrase.clone();
        // Reading may block and a passphrase is slow on purpose: a thread of its own, so that
        // neither the reactor nor other keys wait.
        let private = workers::on_own_thread("claviger-open", move || {
            let pkcs8 = file::read(&path, passphrase.as_ref())
                .map_err(|failure| error::of_file(&path, failure))?;
            key::Private::new(&pkcs8).map_err(|failure| error::of_file(&path, failure))
        })
        .await?;
        let key = SoftwareKey::open(private, open, self.workers.clone()).await?;
        tracing::warn!(
            provider = self.name,
            locator = open.locator,
            key = ?key.public_key(),
            "THIS KEY IS NOT IN HARDWARE: it is in a file and in this process's memory; whoever \
             reads either has it. For tests and first steps, and to move a key away."
        );
        Ok(Arc::new(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config { directory: "/etc/claviger/keys".into(), passphrase: None }
    }

    #[test]
    fn what_is_no_file_name_is_refused_with_what_to_write() {
        for bad in ["", "keys/", "a\0b", "pkcs11:object=a", "arn:aws:kms:eu:1:key/a", "file:///a"] {
            let error = config().check_locator(bad).unwrap_err();
            assert!(error.contains("absolute path"), "{bad:?}: {error}");
        }
        for good in ["user-keys.pem", "2026/user-keys.pfx", "/run/secrets/key.der"] {
            config().check_locator(good).unwrap();
        }
    }

    #[test]
    fn an_empty_directory_is_refused() {
        assert!(config().validate().is_ok());
        let empty = Config { directory: PathBuf::new(), ..config() };
        assert!(empty.validate().unwrap_err().contains("`directory`"));
        let kind = Provider::new("files", &empty, None).unwrap_err().kind();
        assert_eq!(kind, ErrorKind::OperatorNeeded);
    }

    #[test]
    fn unknown_options_are_errors_and_known_ones_read_back() {
        let text = "directory = \"/keys\"\npassphrase = { file = \"/run/passphrase\" }";
        let config: Config = toml::from_str(text).unwrap();
        assert_eq!(config.passphrase, Some(SecretSource::File("/run/passphrase".into())));
        let error = toml::from_str::<Config>("directory = \"/keys\"\npasphrase = 1").unwrap_err();
        assert!(error.to_string().contains("pasphrase"), "{error}");
    }
}
