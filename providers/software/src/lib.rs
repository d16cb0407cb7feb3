//! RSA keys in files: for first steps, for tests, and for moving a PFX away. The private keys are in
//! this process's memory, not in hardware.
//!
//! A locator is a name from `files`, or the name of a key file in the configured directory, or an
//! absolute path. A file holds
//! exactly one RSA key: PKCS#8 (RFC 5958) or PKCS#1 (RFC 8017), PEM or DER; PKCS#8 encrypted with
//! PBES2 (RFC 8018); or PKCS#12 / PFX (RFC 7292).

mod error;
mod file;
mod key;
mod making;
mod pkcs12;
mod workers;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use claviger_provider_api::{
    self as api, Error, ErrorKind, MadeKey, NewKey, OpenKey, Options, PrivateKey, ProviderType,
    SecretSource, WrappingKey,
};
use serde::Deserialize;

use key::SoftwareKey;
use workers::Workers;

/// The options of `type = "software"`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where relative locators are looked up.
    pub directory: Option<PathBuf>,
    /// What opens encrypted PKCS#8 and PKCS#12 files; read when a key is opened.
    pub passphrase: Option<SecretSource>,
    /// Key files that are read from somewhere else, such as Vault, by their locators.
    #[serde(default)]
    pub files: BTreeMap<String, SecretSource>,
}

/// What the daemon knows of this type of provider.
pub const PROVIDER_TYPE: ProviderType = ProviderType {
    name: "software",
    paths: &["directory"],
    secrets: &["passphrase", "files.*"],
    is_billed: false,
    keeps_files: true,
    quota: "no quota; one operation per processor core at a time",
    check_secret: None,
};

impl Options for Config {
    fn provider_type(&self) -> &'static ProviderType {
        &PROVIDER_TYPE
    }

    fn validate(&self) -> Result<(), String> {
        match &self.directory {
            Some(directory) if directory.as_os_str().is_empty() => {
                Err("`directory` is empty; write the folder that holds the key files".into())
            }
            None if self.files.is_empty() => Err("`directory` is missing, and there are no \
                                                  `files`; write the folder that holds the key \
                                                  files"
                .into()),
            _ => Ok(()),
        }
    }

    fn secret_sources(&mut self) -> Vec<&mut SecretSource> {
        self.passphrase.iter_mut().chain(self.files.values_mut()).collect()
    }

    fn check_locator(&self, locator: &str) -> Result<(), String> {
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
        if self.directory.is_none()
            && !self.files.contains_key(locator)
            && !locator.starts_with('/')
        {
            return Err(format!(
                "{locator:?} is not in `files`, and there is no `directory`; {expected}, or add it to \
                 `files`"
            ));
        }
        Ok(())
    }

    fn is_hardware(&self) -> bool {
        false
    }

    fn provider(&self, name: &str, _: Option<&Path>) -> Result<Arc<dyn api::Provider>, Error> {
        Ok(Arc::new(Provider::new(name, self)?))
    }
}

impl Config {
    /// Where a key file is read from.
    fn source(&self, locator: &str) -> SecretSource {
        let in_directory = || {
            let directory = self.directory.as_deref().unwrap_or(Path::new(""));
            SecretSource::File(directory.join(locator))
        };
        self.files.get(locator).cloned().unwrap_or_else(in_directory)
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
    /// Makes a provider and starts its threads; touches no file.
    pub fn new(name: &str, config: &Config) -> Result<Self, Error> {
        let refuse = |reason: String| Error::new(ErrorKind::OperatorNeeded, reason);
        config.validate().map_err(refuse)?;
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Self {
            name: name.to_owned(),
            config: config.clone(),
            workers: Arc::new(Workers::start(threads)?),
        })
    }
}

/// Reads the one RSA key of a file in any form that a key file may have. Blocks.
///
/// # Errors
///
/// As a key that is opened: the file is named, and what is wrong with it.
pub fn read_private_key(
    file: &SecretSource,
    passphrase: Option<&SecretSource>,
) -> Result<PrivateKey, Error> {
    let pkcs8 = file::read(file, passphrase).map_err(|failure| error::of_file(file, failure))?;
    PrivateKey::from_pkcs8(pkcs8).map_err(|error| error.in_context(file))
}

#[async_trait]
impl api::Provider for Provider {
    async fn open(&self, open: &OpenKey<'_>) -> Result<Arc<dyn WrappingKey>, Error> {
        let refuse = |reason: String| Error::new(ErrorKind::OperatorNeeded, reason);
        self.config.check_locator(open.locator).map_err(refuse)?;
        let source = self.config.source(open.locator);
        let passphrase = self.config.passphrase.clone();
        // Reading may block and a passphrase is slow on purpose: a thread of its own, so that
        // neither the reactor nor other keys wait.
        let (pair, name) = workers::on_own_thread("claviger-open", move || {
            let pkcs8 = file::read(&source, passphrase.as_ref())
                .map_err(|failure| error::of_file(&source, failure))?;
            let pair = key::Private::pair(&pkcs8);
            let pair = pair.map_err(|failure| error::of_file(&source, failure))?;
            Ok((pair, format!("key {source}")))
        })
        .await?;
        let key = SoftwareKey::open(pair, name, open, self.workers.clone()).await?;
        tracing::warn!(
            provider = self.name,
            locator = open.locator,
            key = ?key.public_key(),
            "THIS KEY IS NOT IN HARDWARE: it is in a file and in this process's memory; a user who \
             reads either has it. For tests and first steps, and to move a key away."
        );
        Ok(Arc::new(key))
    }

    async fn create_key(&self, new: &NewKey<'_>) -> Result<MadeKey, Error> {
        making::create(&self.config, new).await
    }

    async fn import_key(&self, new: &NewKey<'_>, key: &PrivateKey) -> Result<MadeKey, Error> {
        making::import(&self.config, new, key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use claviger_provider_api::VaultField;

    fn config() -> Config {
        Config {
            directory: Some("/etc/claviger/keys".into()),
            passphrase: None,
            files: BTreeMap::new(),
        }
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
        let empty = Config { directory: Some(PathBuf::new()), ..config() };
        assert!(empty.validate().unwrap_err().contains("`directory`"));
        let kind = Provider::new("files", &empty).unwrap_err().kind();
        assert_eq!(kind, ErrorKind::OperatorNeeded);
        let nothing = Config { directory: None, ..config() };
        assert!(nothing.validate().unwrap_err().contains("`directory` is missing"));
    }

    #[test]
    fn a_name_in_files_goes_before_the_directory_which_may_be_left_out() {
        let text = "files = { \"kc.pfx\" = { vault = { provider = \"vault-a\", path = \"secret/data/kc\", field = \"pfx\" } } }";
        let mut config: Config = toml::from_str(text).unwrap();
        config.validate().unwrap();
        config.check_locator("kc.pfx").unwrap();
        config.check_locator("/keys/other.pem").unwrap();
        let error = config.check_locator("other.pem").unwrap_err();
        assert!(error.contains("is not in `files`"), "{error}");
        let vault = SecretSource::Vault(VaultField::new("vault-a", "secret/data/kc", "pfx"));
        assert_eq!(config.source("kc.pfx"), vault);
        config.directory = Some("/keys".into());
        config.check_locator("other.pem").unwrap();
        assert_eq!(config.source("other.pem"), SecretSource::File("/keys/other.pem".into()));
        assert_eq!(config.secret_sources().len(), 1);
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
